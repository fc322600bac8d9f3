/* SPDX-License-Identifier: MIT */
/*
 * shared.h - what a test guest and its host program know of each other.
 *
 * A page at a fixed address carries arguments in and counters out: the host
 * program reads and writes it with vmm_read() and vmm_write(), before the start
 * and while the guest runs.  A guest that finds something wrong rings the
 * doorbell with GUEST_REPORT and the address of a struct guest_report, and
 * leaves with GUEST_FAILED.
 */
#ifndef GUEST_SHARED_H
#define GUEST_SHARED_H

#include <stdint.h>

#define GUEST_SHARED	0x80001000ull	/* guest-physical: guest.ld puts it there */
#define GUEST_HARTS	64

#define GUEST_FAILED	99		/* exit code, after a report */
#define GUEST_REPORT	0xfa17000000000000ull	/* doorbell: | address of a report */
#define GUEST_REPORT_MASK 0xffff000000000000ull

struct guest_shared {
	uint64_t	arg[8];
	uint64_t	counter[GUEST_HARTS];
};

struct guest_report {
	uint64_t	file, what;	/* addresses of strings */
	uint64_t	line, hart, a, b;
};

#endif
