/* SPDX-License-Identifier: MIT */
/*
 * uart_rx.c - receives arg[0] bytes from the console, all of them, in order.
 *
 * arg[1]: 0 by interrupt, 1 by polling LSR, 2 by SBI.  Byte n is to be
 * n * 7 + n / 256.  Sends "!" for every 1000.  counter[0] counts bytes,
 * counter[1] interrupts.  Rings 1 when it listens.
 */
#include "lib/guest.h"

static uint64_t got;

static void take(uint8_t byte)
{
	CHECK_EQ(byte, (uint8_t)(got * 7 + got / 256));
	if (++got % 1000 == 0)
		R8(UART + UART_DATA) = '!';
	shared.counter[0] = got;
}

static void on_message(uint32_t id)
{
	uint8_t iir;

	CHECK_EQ(id, 10);
	shared.counter[1]++;
	while (((iir = R8(UART + UART_IIR)) & 1) == 0) {
		CHECK_EQ(iir & 0x0f, 4);		/* received data */
		while (R8(UART + UART_LSR) & 1)
			take(R8(UART + UART_DATA));
	}
}

int main(void)
{
	static uint8_t buf[777];
	struct sbiret r;
	uint64_t i;

	on_msi = on_message;
	if (shared.arg[1] == 0) {
		imsic_init();
		imsic_enable(10);
		aplic_route(IRQ_UART, 0, 10);
		R8(UART + UART_FCR) = 1;
		R8(UART + UART_IER) = 1;
	}
	ring(1);
	while (got < shared.arg[0]) {
		switch (shared.arg[1]) {
		case 0:
			wait_for(got == shared.arg[0]);
			break;
		case 1:
			if (R8(UART + UART_LSR) & 1)
				take(R8(UART + UART_DATA));
			break;
		default:
			r = sbi(SBI_DBCN, 1, sizeof(buf), (uintptr_t)buf, 0);
			CHECK_EQ(r.error, 0);
			CHECK(r.value <= sizeof(buf));
			for (i = 0; i < r.value; i++)
				take(buf[i]);
			break;
		}
	}
	return 0;
}
