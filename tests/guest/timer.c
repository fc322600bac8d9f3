/* SPDX-License-Identifier: MIT */
/*
 * timer.c - on every hart: arg[0] timer interrupts, arg[1] ticks apart.
 *
 * None comes early, time never goes back, a deadline that has passed comes at
 * once, one that is taken back does not come.  By Sstc if the host has it, and
 * by SBI in any case.  arg[2]: what the host says of Sstc (1 there is, 2 not).
 * counter[hart]: how often KVM lost one that was set by SBI.
 */
#include "lib/guest.h"

static uint64_t due[GUEST_HARTS], fired[GUEST_HARTS];
static unsigned int finished;
static int by_sbi;

static void set(uint64_t when)
{
	if (by_sbi)
		shared.counter[hart()] += timer_by_sbi(when);
	else
		timer_set(when);
}

static void on_tick(void)
{
	CHECK(time_now() >= due[hart()]);
	fired[hart()]++;
	set(~0ul);
}

static void ticks(uint64_t arg)
{
	uint64_t i, t, last = time_now();
	unsigned int me = hart();

	(void)arg;
	__asm__ volatile("csrs sie, %0" : : "r"(SIE_TIMER));
	for (i = 0; i < shared.arg[0]; i++) {
		due[me] = time_now() + (i % 4 ? shared.arg[1] : 0);
		set(due[me]);
		wait_for(fired[me] == i + 1);
		t = time_now();
		CHECK(t >= last);
		last = t;
	}
	/* Taken back before it is due. */
	due[me] = ~0ul;
	set(time_now() + 1000000);
	set(~0ul);
	irqs_on();
	while (time_now() < last + 2000)
		;
	irqs_off();
	CHECK_EQ(fired[me], shared.arg[0]);
	fired[me] = 0;
	__atomic_add_fetch(&finished, 1, __ATOMIC_SEQ_CST);
}

int main(void)
{
	unsigned int i, n = harts();

	on_timer = on_tick;
	if (shared.arg[2])
		CHECK_EQ(has_sstc(), shared.arg[2] == 1);
	for (i = 1; i < n; i++)
		hart_start(i, ticks, 0);
	ticks(0);
	while (__atomic_load_n(&finished, __ATOMIC_SEQ_CST) < n)
		;
	by_sbi = 1;
	ticks(0);
	return 0;
}
