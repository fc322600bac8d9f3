/* SPDX-License-Identifier: MIT */
/*
 * mem.c - guest RAM: see mem.h.
 *
 * The mapping is shared, so that what we and KVM write is in the memfd, where
 * a vhost-user process sees it and a snapshot can freeze it.  Address space is
 * reserved first with room to align: a 2 MiB page of the host can then back a
 * 2 MiB page of the guest.
 */
#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <unistd.h>

#include "mem.h"

#define MEM_ALIGN	(2ull << 20)

int mem_init(struct mem *m, uint64_t gpa, uint64_t size, struct vmm_error *err)
{
	uint64_t total = size + MEM_TAIL, room = total + MEM_ALIGN;
	uint8_t *p, *start;
	int rc;

	memset(m, 0, sizeof(*m));
	m->gpa = gpa;
	m->size = size;
	m->fd = memfd_create("vmm-ram", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (m->fd < 0)
		return fail_sys(err, errno, "memfd for %llu MiB of guest RAM",
				(unsigned long long)(size >> 20));
	if (ftruncate(m->fd, (off_t)total) < 0) {
		rc = fail_sys(err, errno, "guest RAM of %llu MiB", (unsigned long long)(size >> 20));
		goto close_fd;
	}
	p = mmap(NULL, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (p == MAP_FAILED) {
		rc = fail_sys(err, errno, "address space for %llu MiB of guest RAM",
			      (unsigned long long)(size >> 20));
		goto close_fd;
	}
	start = p + ((gpa - (uintptr_t)p) & (MEM_ALIGN - 1));
	if (start > p)
		munmap(p, (size_t)(start - p));
	munmap(start + total, (size_t)(p + room - (start + total)));
	if (mmap(start, total, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE | MAP_FIXED,
		 m->fd, 0) == MAP_FAILED) {
		rc = fail_sys(err, errno, "mapping %llu MiB of guest RAM",
			      (unsigned long long)(size >> 20));
		munmap(start, total);
		goto close_fd;
	}
	/* A core dump of the host program is no place for a guest's RAM. */
	madvise(start, total, MADV_DONTDUMP);
	m->hva = start;
	return 0;

close_fd:
	close(m->fd);
	m->fd = -1;
	return rc;
}

void mem_fini(struct mem *m)
{
	if (!m->hva)
		return;
	munmap(m->hva, m->size + MEM_TAIL);
	close(m->fd);
	m->hva = NULL;
}

int mem_clear(struct mem *m, struct vmm_error *err)
{
	/* MADV_REMOVE punches the hole in the memfd, not just in the mapping. */
	if (madvise(m->hva, m->size + MEM_TAIL, MADV_REMOVE) < 0)
		return fail_sys(err, errno, "clearing guest RAM");
	return 0;
}

void *mem_get(const struct mem *m, uint64_t gpa, uint64_t len)
{
	uint64_t off = gpa - m->gpa;

	if (gpa < m->gpa || off > m->size || len > m->size - off)
		return NULL;
	return m->hva + off;
}

void *mem_tail(const struct mem *m)
{
	return m->hva + m->size;
}

uint64_t mem_tail_gpa(const struct mem *m)
{
	return m->gpa + m->size;
}

int mem_load(const struct mem *m, uint64_t gpa, int fd, int64_t off, uint64_t len,
	     const char *name, struct vmm_error *err)
{
	uint8_t *dst = mem_get(m, gpa, len);
	uint64_t done = 0;
	ssize_t n;

	if (!dst)
		return fail(err, VMM_EFORMAT, "%s: %llu bytes do not fit into %llu MiB of RAM",
			    name, (unsigned long long)len, (unsigned long long)(m->size >> 20));
	while (done < len) {
		size_t want = len - done < (1u << 30) ? (size_t)(len - done) : 1u << 30;

		if (off < 0) {
			n = read(fd, dst + done, want);
		} else {
			off_t src = (off_t)(off + (int64_t)done);

			/* The memfd's file offset is ours alone to move. */
			if (lseek(m->fd, (off_t)(gpa - m->gpa + done), SEEK_SET) < 0)
				return fail_sys(err, errno, "guest RAM");
			n = sendfile(m->fd, fd, &src, want);
			if (n < 0 && (errno == EINVAL || errno == ENOSYS))
				n = pread(fd, dst + done, want, (off_t)(off + (int64_t)done));
		}
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return fail_sys(err, errno, "read %s", name);
		if (n == 0)
			return fail(err, VMM_EFORMAT, "%s: ends %llu bytes too early", name,
				    (unsigned long long)(len - done));
		done += (uint64_t)n;
	}
	return 0;
}

uint64_t mem_used(const struct mem *m)
{
	struct stat st;

	if (!m->hva || fstat(m->fd, &st) < 0)
		return 0;
	return (uint64_t)st.st_blocks * 512;
}
