/* SPDX-License-Identifier: MIT */
/*
 * spin.c - every hart counts as fast as it can and never stops.
 *
 * Rings 1 when all of them count.
 */
#include "lib/guest.h"

static void spin(uint64_t arg)
{
	(void)arg;
	for (;;)
		shared.counter[hart()]++;
}

int main(void)
{
	unsigned int i, n = harts();

	for (i = 1; i < n; i++)
		hart_start(i, spin, 0);
	for (i = 1; i < n; i++)
		while (!shared.counter[i])
			;
	ring(1);
	spin(0);
	return 0;
}
