/* SPDX-License-Identifier: MIT */
/*
 * idle.c - every hart sleeps in WFI for good; rings 1 when hart 0 is about to.
 *
 * WFI may end for no reason: counter[hart] says how often it did.
 */
#include "lib/guest.h"

static void sleep_on(uint64_t arg)
{
	(void)arg;
	for (;;) {
		__asm__ volatile("wfi");
		shared.counter[hart()]++;
	}
}

int main(void)
{
	unsigned int i, n = harts();

	for (i = 1; i < n; i++)
		hart_start(i, sleep_on, 0);
	ring(1);
	sleep_on(0);
	return 0;
}
