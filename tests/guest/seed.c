/* SPDX-License-Identifier: MIT */
/*
 * seed.c - the entropy source CSR (Zkr) gives 16 bits at a time that differ.
 *
 * Leaves with 3 if there is no such CSR.
 */
#include "lib/guest.h"

static int absent(struct frame *f, uint64_t cause, uint64_t value)
{
	(void)f;
	(void)value;
	CHECK_EQ(cause, 2);
	quit(3);
}

int main(void)
{
	unsigned int i, same = 0;
	uint64_t v, last = 0;

	on_exception = absent;
	for (i = 0; i < 200; i++) {
		v = CSR_SWAP(CSR_SEED, 0);
		CHECK_EQ(v >> 30 & 3, 2);		/* ES16 */
		CHECK_EQ(v >> 16 & 0x3fff, 0);
		same += v == last;
		last = v;
	}
	CHECK(same < 5);
	return 0;
}
