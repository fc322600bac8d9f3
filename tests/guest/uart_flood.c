/* SPDX-License-Identifier: MIT */
/*
 * uart_flood.c - writes arg[0] bytes to the console as fast as it can.
 *
 * The first arg[2] of them by SBI in pieces of 4000, which is fast.  Then, by
 * arg[1]: 0 by the UART, waiting for THRE; 1 by the UART without looking; 2 as
 * before; 3 by SBI, byte by byte.  Byte n is 'a' + n % 23; counter[0] is how
 * many have been written.
 */
#include "lib/guest.h"

static char text[23 * 200];

int main(void)
{
	uint64_t n, k, total = shared.arg[0];
	struct sbiret r;

	for (n = 0; n < sizeof(text); n++)
		text[n] = (char)('a' + n % 23);
	for (n = 0; n < total; ) {
		char byte = (char)('a' + n % 23);

		switch (n < shared.arg[2] ? 2 : shared.arg[1]) {
		case 0:
			while (!(R8(UART + UART_LSR) & 0x20))
				;
			R8(UART + UART_DATA) = (uint8_t)byte;
			n++;
			break;
		case 1:
			R8(UART + UART_DATA) = (uint8_t)byte;
			n++;
			break;
		case 2:
			k = n < shared.arg[2] ? shared.arg[2] - n : total - n;
			k = k < 4000 ? k : 4000;
			r = sbi(SBI_DBCN, 0, k, (uintptr_t)text + n % 23, 0);
			CHECK_EQ(r.error, 0);
			CHECK(r.value <= k);
			n += r.value;
			break;
		default:
			n += sbi(SBI_DBCN, 2, (uint8_t)byte, 0, 0).error == 0;
			break;
		}
		shared.counter[0] = n;
	}
	return 0;
}
