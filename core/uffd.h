/* SPDX-License-Identifier: MIT */
/*
 * uffd.h - userfaultfd: to be asked for the pages that a mapping lacks.
 *
 * A thread that touches one waits, inside the kernel, until somebody who reads
 * the descriptor has put the page there and wakes it.  KVM's faults must be
 * among them, for which the caller needs /dev/userfaultfd, CAP_SYS_PTRACE, or
 * the sysctl vm.unprivileged_userfaultfd (Linux, admin-guide/mm/userfaultfd.rst).
 *
 * Functions give 0 (or a descriptor) or -errno.
 */
#ifndef CORE_UFFD_H
#define CORE_UFFD_H

#include <stddef.h>
#include <stdint.h>

struct uffd_fault {
	uint8_t		*page;
	int		write;
};

int uffd_open(void);

/*
 * Whether a memfd can lack pages next to some that it has.  On a host that puts
 * memfds into huge pages it cannot: who writes one page makes 2 MiB of zeroes of
 * the others, and nobody is asked for them.  Then this is -EOPNOTSUPP.
 */
int uffd_can_watch(int memfd);

/* What either gave, for people. */
const char *uffd_note(int r);

/* Watch a mapping; no page of it may have been touched.  Unwatching wakes all
   who wait there. */
int uffd_watch(int uffd, void *start, size_t len);
int uffd_unwatch(int uffd, void *start, size_t len);

/* The faults that wait to be read, at most n; 0 if there are none. */
int uffd_read(int uffd, struct uffd_fault *faults, unsigned int n);

int uffd_wake(int uffd, void *start, size_t len);

/* Put a page there, of this content or of zeroes, and wake who waits for it;
   a page that is there already stays. */
int uffd_copy(int uffd, void *page, const void *from, size_t len);
int uffd_zero(int uffd, void *page, size_t len);

#endif
