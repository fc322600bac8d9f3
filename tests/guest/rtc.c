/* SPDX-License-Identifier: MIT */
/*
 * rtc.c - the real-time clock: what it tells (counter[0], ns), that it moves,
 * that it can be set, and that its alarm comes, not early and once.
 */
#include "lib/guest.h"

static unsigned int alarms;

static uint64_t now(void)
{
	uint64_t low = R32(RTC);

	return low | (uint64_t)R32(RTC + 4) << 32;
}

static void on_message(uint32_t id)
{
	CHECK_EQ(id, 12);
	alarms++;
	R32(RTC + 0x1c) = 1;			/* clear the interrupt */
}

static void alarm_at(uint64_t t)
{
	R32(RTC + 0x10) = 1;			/* interrupt on */
	R32(RTC + 0x0c) = (uint32_t)(t >> 32);
	R32(RTC + 0x08) = (uint32_t)t;
}

int main(void)
{
	uint64_t t, last, due;
	unsigned int i;

	on_msi = on_message;
	imsic_init();
	imsic_enable(12);
	aplic_route(IRQ_RTC, 0, 12);
	shared.counter[0] = last = now();
	for (i = 0; i < 1000; i++) {
		t = now();
		CHECK(t >= last);
		last = t;
	}
	for (i = 0; i < 5; i++) {
		due = now() + 20000000;
		alarm_at(due);
		wait_for(alarms == i + 1);
		CHECK(now() >= due);
		CHECK_EQ(R32(RTC + 0x18), 0);	/* not armed any more */
	}
	alarm_at(now() - 1000);			/* the past is now */
	wait_for(alarms == 6);
	alarm_at(now() + 50000000);
	R32(RTC + 0x14) = 1;			/* never mind */
	R32(RTC + 0x04) = 0x10000000;		/* another day */
	R32(RTC + 0x00) = 0;
	t = now();
	CHECK(t >= 0x1000000000000000ul && t < 0x1000000000000000ul + 60000000000ul);
	CHECK_EQ(alarms, 6);
	return 0;
}
