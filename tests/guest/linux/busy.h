/* SPDX-License-Identifier: MIT */
/*
 * busy.h - what busy.c and its host program know of each other.
 */
#ifndef BUSY_H
#define BUSY_H

#include <stdint.h>

#define BUSY_PORT	7000		/* vsock */

enum { BUSY_FLOAT = 0, BUSY_VECTOR = 1, BUSY_TIME = 2, BUSY_DISK = 3, BUSY_OVERLAY = 4,
       BUSY_NET = 5, BUSY_PARTS = 6 };

struct status {
	uint64_t	count[BUSY_PARTS];
	uint64_t	failed, cpus, absent;	/* absent: bits, of parts there are not */
	uint64_t	resent;			/* frames that were not answered */
	uint64_t	longest;		/* a sleep of 2 ms, in ns */
	char		wrong[160];
};

#endif
