/* SPDX-License-Identifier: MIT */
/*
 * pagemap.c - PAGEMAP_SCAN (Linux, Documentation/admin-guide/mm/pagemap.rst):
 * see pagemap.h.
 *
 * The kernel walks page tables, so that holes cost nothing, and needs neither a
 * dirty log nor write protection to tell what has been written.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "pagemap.h"

/* linux/fs.h, which may be older than the kernel. */
struct pagemap_region {
	uint64_t	start, end, categories;
};

struct pagemap_arg {
	uint64_t	size, flags, start, end, walk_end, vec, vec_len, max_pages;
	uint64_t	inverted, mask, anyof, wanted;
};

#define PAGEMAP_SCAN_	_IOWR('f', 16, struct pagemap_arg)
#define PAGEMAP_FILE	(1u << 2)
#define PAGEMAP_PRESENT	(1u << 3)
#define PAGEMAP_SWAPPED	(1u << 4)
#define PAGEMAP_ZERO	(1u << 5)

int pagemap_own(const void *start, size_t len, int (*fn)(void *arg, size_t off, size_t len),
		void *arg)
{
	struct pagemap_region vec[64];
	struct pagemap_arg a = {
		.size = sizeof(a),
		.start = (uintptr_t)start,
		.end = (uintptr_t)start + len,
		.vec = (uintptr_t)vec,
		.vec_len = 64,
		.inverted = PAGEMAP_FILE | PAGEMAP_ZERO,
		.mask = PAGEMAP_FILE | PAGEMAP_ZERO,
		.anyof = PAGEMAP_PRESENT | PAGEMAP_SWAPPED,
		.wanted = PAGEMAP_PRESENT,
	};
	int fd, i, n, r = 0;

	fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	while (r == 0 && a.start < a.end) {
		n = ioctl(fd, PAGEMAP_SCAN_, &a);
		if (n < 0) {
			r = -errno;
			break;
		}
		for (i = 0; i < n && r == 0; i++)
			r = fn(arg, vec[i].start - (uintptr_t)start, vec[i].end - vec[i].start);
		a.start = a.walk_end;
	}
	close(fd);
	return r;
}
