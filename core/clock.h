/* SPDX-License-Identifier: MIT */
/*
 * clock.h - the host's monotonic clock.
 */
#ifndef CORE_CLOCK_H
#define CORE_CLOCK_H

#include <stdint.h>
#include <time.h>

/* CLOCK_MONOTONIC in nanoseconds. */
uint64_t clock_ns(void);

/* The moment ms milliseconds from now, on CLOCK_MONOTONIC; ms < 0 counts as 0. */
void clock_after(struct timespec *ts, int ms);

#endif
