/* SPDX-License-Identifier: MIT */
/*
 * uffd.c - see uffd.h.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "uffd.h"

#define UFFD_BATCH	16u

int uffd_open(void)
{
	struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_MISSING_SHMEM };
	int dev, fd, r;

	fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (fd < 0) {
		r = errno;
		dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
		if (dev < 0)
			return -r;
		fd = ioctl(dev, _IO(0xaa, 0x00), O_CLOEXEC | O_NONBLOCK);
		r = errno;
		close(dev);
		if (fd < 0)
			return -r;
	}
	if (ioctl(fd, UFFDIO_API, &api) < 0) {
		r = errno;
		close(fd);
		return -r;
	}
	return fd;
}

int uffd_can_watch(int memfd)
{
	size_t page = (size_t)getpagesize();
	struct stat st;
	void *p;
	int r;

	/* shmem tells so the size of the pages that it would take. */
	if (fstat(memfd, &st) < 0)
		return -errno;
	if (st.st_blksize > getpagesize())
		return -EOPNOTSUPP;
	p = mmap(NULL, page, PROT_NONE, MAP_PRIVATE, memfd, 0);
	if (p == MAP_FAILED)
		return -errno;
	r = madvise(p, page, MADV_DONTNEED) < 0 ? -EBUSY : 0;
	munmap(p, page);
	return r;
}

const char *uffd_note(int r)
{
	if (r >= 0)
		return "userfaultfd is permitted";
	if (r == -EOPNOTSUPP)
		return "this host puts memfds into huge pages (transparent_hugepage/shmem_enabled)";
	if (r == -EBUSY)
		return "memory of this process is locked as it is mapped (mlockall)";
	if (r == -EPERM)
		return "userfaultfd is not permitted: it takes access to /dev/userfaultfd, CAP_SYS_PTRACE, "
		       "or vm.unprivileged_userfaultfd=1";
	if (r == -ENOSYS || r == -EINVAL)
		return "this kernel has no userfaultfd for shared memory";
	return strerrordesc_np(-r);
}

int uffd_watch(int uffd, void *start, size_t len)
{
	struct uffdio_register r = {
		.range = { (uintptr_t)start, len },
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};

	return ioctl(uffd, UFFDIO_REGISTER, &r) < 0 ? -errno : 0;
}

int uffd_unwatch(int uffd, void *start, size_t len)
{
	struct uffdio_range r = { (uintptr_t)start, len };

	return ioctl(uffd, UFFDIO_UNREGISTER, &r) < 0 ? -errno : 0;
}

int uffd_read(int uffd, struct uffd_fault *faults, unsigned int n)
{
	struct uffd_msg msg[UFFD_BATCH];
	unsigned int i, got = 0;
	ssize_t r;

	r = read(uffd, msg, (n < UFFD_BATCH ? n : UFFD_BATCH) * sizeof(*msg));
	if (r < 0)
		return errno == EAGAIN || errno == EINTR ? 0 : -errno;
	for (i = 0; i < (size_t)r / sizeof(*msg); i++) {
		if (msg[i].event != UFFD_EVENT_PAGEFAULT)
			continue;
		faults[got].page = (uint8_t *)(uintptr_t)(msg[i].arg.pagefault.address & ~0xfffull);
		faults[got++].write = !!(msg[i].arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WRITE);
	}
	return (int)got;
}

int uffd_wake(int uffd, void *start, size_t len)
{
	struct uffdio_range r = { (uintptr_t)start, len };

	return ioctl(uffd, UFFDIO_WAKE, &r) < 0 ? -errno : 0;
}

int uffd_copy(int uffd, void *page, const void *from, size_t len)
{
	struct uffdio_copy c = { (uintptr_t)page, (uintptr_t)from, len, 0, 0 };

	/* EAGAIN: the mappings of this process are just being changed. */
	while (ioctl(uffd, UFFDIO_COPY, &c) < 0) {
		if (errno == EEXIST && len == (size_t)getpagesize())
			return uffd_wake(uffd, page, len);
		if (errno != EAGAIN || c.copy > 0)
			return -errno;
	}
	return 0;
}

int uffd_zero(int uffd, void *page, size_t len)
{
	struct uffdio_zeropage z = { { (uintptr_t)page, len }, 0, 0 };

	while (ioctl(uffd, UFFDIO_ZEROPAGE, &z) < 0) {
		if (errno == EEXIST)
			return uffd_wake(uffd, page, len);
		if (errno != EAGAIN || z.zeropage > 0)
			return -errno;
	}
	return 0;
}
