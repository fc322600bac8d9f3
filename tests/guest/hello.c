/* SPDX-License-Identifier: MIT */
/*
 * hello.c - says hello and leaves with the code in arg[0].
 *
 * arg[1]: 0 by returning, 1 by the doorbell's exit register, 2 by SBI SRST
 * (whose code is always 0).
 */
#include "lib/guest.h"

int main(void)
{
	print("hello from hart ");
	print_number(hart());
	print("\n");
	CHECK_EQ(R32(DOORBELL + VMM_GUEST_MAGIC), VMM_GUEST_MAGIC_VALUE);
	if (shared.arg[1] == 1)
		R32(DOORBELL + VMM_GUEST_EXIT) = (uint32_t)shared.arg[0];
	else if (shared.arg[1] == 2)
		sbi(SBI_SRST, 0, 0, 0, 0);
	return (int)shared.arg[0];
}
