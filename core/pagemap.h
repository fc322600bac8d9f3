/* SPDX-License-Identifier: MIT */
/*
 * pagemap.h - which pages of a mapping hold memory of their own.
 */
#ifndef CORE_PAGEMAP_H
#define CORE_PAGEMAP_H

#include <stddef.h>

/*
 * Call fn for each run of pages, in order, that are in memory or swapped out
 * and belong to this mapping alone: anonymous ones, and of a private mapping
 * of a file those that have been written.  Stops when fn gives something other
 * than 0, and returns that.  -errno: the kernel (before 6.7) cannot say.
 */
int pagemap_own(const void *start, size_t len, int (*fn)(void *arg, size_t off, size_t len),
		void *arg);

#endif
