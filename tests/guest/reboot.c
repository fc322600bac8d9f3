/* SPDX-License-Identifier: MIT */
/*
 * reboot.c - asks for a restart at once: cold (arg[0] = 1) or warm (2).
 *
 * What it finds in RAM must be as it is after a power-on.
 */
#include "lib/guest.h"

static uint64_t dirt[512];

int main(void)
{
	unsigned int i;

	for (i = 0; i < 512; i++) {
		CHECK_EQ(dirt[i], 0);
		dirt[i] = ~0ul;
	}
	CHECK_EQ(shared.counter[1], 0);
	shared.counter[1] = 1;
	CHECK_EQ(R8(UART + 7), 0);		/* scratch register */
	R8(UART + 7) = 0x55;
	CHECK_EQ(R8(UART + 7), 0x55);
	sbi(SBI_SRST, 0, shared.arg[0] ? shared.arg[0] : 1, 0, 0);
	return 1;
}
