/* SPDX-License-Identifier: MIT */
/*
 * mem.c - guest RAM: see mem.h.
 *
 * RAM is anonymous memory, in huge pages where the host has them.  A memfd
 * would be nearer to what a snapshot and a vhost-user process want, but each
 * of its pages costs four to six times what a page of this does, and is never
 * huge on a host as Debian sets it up: a boot would take half as long again
 * (docs/decisions/anonymous-ram.md).
 *
 * Address space is reserved with room to align: a 2 MiB page of the host can
 * then back a 2 MiB page of the guest, and KVM map it at once.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "mem.h"
#include "pagemap.h"

#define MEM_ALIGN	(2ull << 20)
#define MEM_PAGE	4096u

/* A core dump of the host program is no place for a guest's RAM, and a child
   has no use for it. */
static void mem_advise(void *p, size_t len)
{
	madvise(p, len, MADV_DONTDUMP);
	madvise(p, len, MADV_DONTFORK);
}

/* Address space for RAM, aligned; what it maps is laid over it. */
static int mem_reserve(struct mem *m, uint64_t gpa, uint64_t size, struct vmm_error *err)
{
	uint64_t total = size + MEM_TAIL, room = total + MEM_ALIGN;
	uint8_t *p, *start;

	memset(m, 0, sizeof(*m));
	m->gpa = gpa;
	m->size = size;
	m->kind = MEM_ANON;
	m->fd = -1;
	p = mmap(NULL, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
		 -1, 0);
	if (p == MAP_FAILED)
		return fail_sys(err, errno, "%llu MiB of guest RAM",
				(unsigned long long)(size >> 20));
	start = p + ((gpa - (uintptr_t)p) & (MEM_ALIGN - 1));
	if (start > p)
		munmap(p, (size_t)(start - p));
	munmap(start + total, (size_t)(p + room - (start + total)));
	m->hva = start;
	return 0;
}

int mem_init(struct mem *m, uint64_t gpa, uint64_t size, struct vmm_error *err)
{
	int rc = mem_reserve(m, gpa, size, err);

	if (rc)
		return rc;
	/* A host without huge pages refuses. */
	madvise(m->hva, size, MADV_HUGEPAGE);
	mem_advise(m->hva, size + MEM_TAIL);
	return 0;
}

int mem_init_private(struct mem *m, uint64_t gpa, uint64_t size, int fd, struct vmm_error *err)
{
	int rc = mem_reserve(m, gpa, size, err);

	if (rc)
		return rc;
	m->kind = MEM_PRIVATE;
	m->fd = fd;
	rc = mem_rewind(m, err);
	if (rc)
		mem_fini(m);
	return rc;
}

int mem_rewind(struct mem *m, struct vmm_error *err)
{
	/* Anew, rather than dropping pages: parts may have been discarded. */
	if (mmap(m->hva, m->size + MEM_TAIL, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_NORESERVE | MAP_FIXED, m->fd, 0) == MAP_FAILED)
		return fail_sys(err, errno, "mapping %llu MiB of guest RAM",
				(unsigned long long)(m->size >> 20));
	mem_advise(m->hva, m->size + MEM_TAIL);
	return 0;
}

void mem_fini(struct mem *m)
{
	if (!m->hva)
		return;
	munmap(m->hva, m->size + MEM_TAIL);
	if (m->kind == MEM_SHARED)
		close(m->fd);
	m->hva = NULL;
}

int mem_clear(struct mem *m, struct vmm_error *err)
{
	int r = mem_discard(m, m->hva, m->size + MEM_TAIL);

	return r < 0 ? fail_sys(err, -r, "clearing guest RAM") : 0;
}

struct mem_copying {
	const struct mem *m;
	int		fd;
};

/* Copy what is not zero of a run of pages; but a zero page that was copied
   before must become one again. */
static int mem_copy_run(void *arg, size_t off, size_t len)
{
	static const uint8_t zero[MEM_PAGE];
	const struct mem_copying *c = arg;
	const uint8_t *p = c->m->hva;
	size_t end = off + len, run;

	while (off < end) {
		while (off < end && c->m->kind != MEM_PRIVATE &&
		       memcmp(p + off, zero, MEM_PAGE) == 0)
			off += MEM_PAGE;
		run = off;
		while (run < end && (c->m->kind == MEM_PRIVATE ||
				     memcmp(p + run, zero, MEM_PAGE) != 0))
			run += MEM_PAGE;
		while (off < run) {
			ssize_t n = pwrite(c->fd, p + off, run - off, (off_t)off);

			if (n < 0 && errno != EINTR)
				return errno;
			off += n > 0 ? (size_t)n : 0;
		}
	}
	return 0;
}

/* What a file holds, as seen through the mapping: a part may be discarded. */
static int mem_copy_file(const struct mem_copying *c)
{
	off_t data = 0, hole, end = (off_t)(c->m->size + MEM_TAIL);
	int r = 0;

	while (r == 0 && data < end) {
		data = lseek(c->m->fd, data, SEEK_DATA);
		if (data < 0)
			return errno == ENXIO ? 0 : errno;
		hole = lseek(c->m->fd, data, SEEK_HOLE);
		if (hole < 0)
			return errno;
		r = mem_copy_run((void *)(uintptr_t)c, (size_t)data, (size_t)(hole - data));
		data = hole;
	}
	return r;
}

/* Everything that is not zero into fd, an empty memfd. */
static int mem_copy_out(const struct mem *m, int fd)
{
	struct mem_copying c = { m, fd };
	int r = m->kind == MEM_ANON ? 0 : mem_copy_file(&c);

	if (r == 0 && m->kind != MEM_SHARED)
		r = pagemap_own(m->hva, m->size + MEM_TAIL, mem_copy_run, &c);
	if (r == -ENOTTY || r == -EINVAL)	/* an old kernel: look at it all */
		r = mem_copy_run(&c, 0, m->size + MEM_TAIL);
	return r < 0 ? -r : r;
}

static int mem_memfd(const struct mem *m, int *fd, struct vmm_error *err)
{
	int r;

	*fd = memfd_create("vmm-ram", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (*fd < 0)
		return fail_sys(err, errno, "memfd for guest RAM");
	r = ftruncate(*fd, (off_t)(m->size + MEM_TAIL)) < 0 ? errno : mem_copy_out(m, *fd);
	if (!r)
		return 0;
	close(*fd);
	*fd = -1;
	return fail_sys(err, r, "memfd of %llu MiB for guest RAM",
			(unsigned long long)(m->size >> 20));
}

int mem_copy(const struct mem *m, int *fd, struct vmm_error *err)
{
	int rc = mem_memfd(m, fd, err);

	if (rc == 0)
		mem_seal(*fd);
	return rc;
}

void mem_seal(int fd)
{
	/* Of a memfd that nobody maps for writing this cannot fail. */
	fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
}

int mem_share(struct mem *m, struct vmm_error *err)
{
	int fd, rc;

	if (m->kind == MEM_SHARED)
		return 0;
	rc = mem_memfd(m, &fd, err);
	if (rc)
		return rc;
	if (mmap(m->hva, m->size + MEM_TAIL, PROT_READ | PROT_WRITE,
		 MAP_SHARED | MAP_NORESERVE | MAP_FIXED, fd, 0) == MAP_FAILED) {
		rc = fail_sys(err, errno, "mapping %llu MiB of guest RAM",
			      (unsigned long long)(m->size >> 20));
		close(fd);
		return rc;
	}
	mem_advise(m->hva, m->size + MEM_TAIL);
	m->fd = fd;
	m->kind = MEM_SHARED;
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

int mem_load(const struct mem *m, uint64_t gpa, int fd, uint64_t off, uint64_t len,
	     const char *name, struct vmm_error *err)
{
	uint8_t *dst = mem_get(m, gpa, len);
	uint64_t done = 0;
	ssize_t n;

	if (!dst)
		return fail(err, VMM_EFORMAT, "%s: %llu bytes do not fit into %llu MiB of RAM",
			    name, (unsigned long long)len, (unsigned long long)(m->size >> 20));
	while (done < len) {
		/* Linux reads at most 2 GiB at once, and says how much. */
		n = pread(fd, dst + done, len - done, (off_t)(off + done));
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

/*
 * Where the pages of a file lie below, MADV_DONTNEED would bring back what the
 * snapshot holds: fresh zero pages take their place instead.  (The price is a
 * mapping more for each run of them: the kernel's limit on those can be met.)
 */
int mem_discard(struct mem *m, void *p, uint64_t len)
{
	uint64_t start = (uint64_t)((uint8_t *)p - m->hva), end = start + len;
	int r;

	start = (start + MEM_PAGE - 1) & ~(uint64_t)(MEM_PAGE - 1);
	end &= ~(uint64_t)(MEM_PAGE - 1);
	if (start >= end)
		return 0;
	if (m->kind == MEM_PRIVATE) {
		/* Dropping a private page would show the frozen one again. */
		if (mmap(m->hva + start, end - start, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1,
			 0) == MAP_FAILED)
			return -errno;
		mem_advise(m->hva + start, end - start);
		return 0;
	}
	/* MADV_REMOVE punches a hole into the memfd, not just into a mapping. */
	r = madvise(m->hva + start, end - start,
		    m->kind == MEM_SHARED ? MADV_REMOVE : MADV_DONTNEED);
	return r < 0 ? -errno : 0;
}

uint64_t mem_used(const struct mem *m)
{
	unsigned char vec[4096];
	uint64_t off, n, i, pages = 0;

	if (!m->hva)
		return 0;
	for (off = 0; off < m->size; off += n * MEM_PAGE) {
		n = (m->size - off) / MEM_PAGE;
		n = n < sizeof(vec) ? n : sizeof(vec);
		if (mincore(m->hva + off, n * MEM_PAGE, vec) < 0)
			return 0;
		for (i = 0; i < n; i++)
			pages += vec[i] & 1;
	}
	return pages * MEM_PAGE;
}
