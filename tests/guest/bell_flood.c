/* SPDX-License-Identifier: MIT */
/*
 * bell_flood.c - every hart rings arg[0] times, without a pause; then the last
 * one to finish ends the machine.
 *
 * Values are hart << 32 | n, n from 1: by SBI on even harts, by the doorbell's
 * register on odd ones.  None may be lost, nor may the end.
 */
#include "lib/guest.h"

static unsigned int done, all;

static void flood(uint64_t arg)
{
	uint64_t i, v;

	(void)arg;
	for (i = 1; i <= shared.arg[0]; i++) {
		v = (uint64_t)hart() << 32 | i;
		if (hart() % 2)
			R64(DOORBELL + VMM_GUEST_RING) = v;
		else
			ring(v);
		shared.counter[hart()] = i;
	}
	if (__atomic_add_fetch(&done, 1, __ATOMIC_SEQ_CST) == all)
		quit(5);
	for (;;)
		__asm__ volatile("wfi");
}

int main(void)
{
	unsigned int i;

	all = harts();
	for (i = 1; i < all; i++)
		hart_start(i, flood, 0);
	flood(0);
	return 0;
}
