/* SPDX-License-Identifier: MIT */
/*
 * aplic.c - wired interrupts: from the UART, and pended by software, to every
 * hart, each exactly once.
 *
 * The UART's "transmitter empty" interrupt comes after each byte and after it
 * is enabled.  A source that is pended by software (setipnum) becomes one
 * message on the hart it is routed to; one that is disabled, none.
 */
#include "lib/guest.h"

#define SOURCE	29			/* nobody's */

static unsigned int uart_seen[GUEST_HARTS], soft_seen[GUEST_HARTS], up, leave;

static void on_message(uint32_t id)
{
	if (id == 10) {
		CHECK_EQ(R8(UART + UART_IIR) & 0x0f, 2);	/* transmitter empty */
		__atomic_add_fetch(&uart_seen[hart()], 1, __ATOMIC_SEQ_CST);
	} else {
		CHECK_EQ(id, 11);
		__atomic_add_fetch(&soft_seen[hart()], 1, __ATOMIC_SEQ_CST);
	}
}

static void listen(uint64_t arg)
{
	(void)arg;
	imsic_init();
	imsic_enable(10);
	imsic_enable(11);
	__atomic_add_fetch(&up, 1, __ATOMIC_SEQ_CST);
	if (hart())
		wait_for(__atomic_load_n(&leave, __ATOMIC_SEQ_CST));
}

/* Hart 0 takes its own interrupts while it waits for another's. */
static void await(unsigned int *count, unsigned int want)
{
	irqs_on();
	while (__atomic_load_n(count, __ATOMIC_SEQ_CST) < want)
		;
	irqs_off();
}

/* Long enough for an interrupt that should not come to come. */
static void pause_ticks(uint64_t t)
{
	uint64_t until = time_now() + t;

	irqs_on();
	while (time_now() < until)
		;
	irqs_off();
}

int main(void)
{
	unsigned int i, h, n = harts();

	on_msi = on_message;
	for (i = 1; i < n; i++)
		hart_start(i, listen, 0);
	listen(0);
	while (__atomic_load_n(&up, __ATOMIC_SEQ_CST) < n)
		;
	for (h = 0; h < n; h++) {
		aplic_route(IRQ_UART, h, 10);
		R8(UART + UART_IER) = 2;
		await(&uart_seen[h], 1);
		for (i = 0; i < 50; i++) {
			R8(UART + UART_DATA) = (uint8_t)('0' + i % 10);
			await(&uart_seen[h], 2 + i);
		}
		R8(UART + UART_IER) = 0;
		R8(UART + UART_DATA) = '\n';

		aplic_route(SOURCE, h, 11);
		for (i = 0; i < 50; i++) {
			R32(APLIC + APLIC_SETIPNUM) = SOURCE;
			await(&soft_seen[h], 1 + i);
		}
		R32(APLIC + APLIC_CLRIENUM) = SOURCE;
		R32(APLIC + APLIC_SETIPNUM) = SOURCE;
		pause_ticks(20000);
		CHECK_EQ(uart_seen[h], 51);
		CHECK_EQ(soft_seen[h], 50);
		R32(APLIC + APLIC_SETIENUM) = SOURCE;	/* and then it comes */
		await(&soft_seen[h], 51);
	}
	pause_ticks(20000);
	for (h = 0; h < n; h++) {
		CHECK_EQ(uart_seen[h], 51);
		CHECK_EQ(soft_seen[h], 51);
	}
	return 0;
}
