/* SPDX-License-Identifier: MIT */
/*
 * clock.c - see clock.h.
 */
#include "clock.h"

uint64_t clock_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

void clock_after(struct timespec *ts, int ms)
{
	uint64_t ns = clock_ns() + (ms > 0 ? (uint64_t)ms * 1000000u : 0);

	ts->tv_sec = (time_t)(ns / 1000000000u);
	ts->tv_nsec = (long)(ns % 1000000000u);
}
