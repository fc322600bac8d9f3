/* SPDX-License-Identifier: MIT */
/*
 * storm.c - a guest that is never at rest, to be frozen at any moment.
 *
 * Hart 0 leaves the guest all the time, each way there is, and checks that
 * everything is done once: stores to and loads from a device, the doorbell by
 * register (values 1 << 32 | n) and by SBI (2 << 32 | n), bytes of the debug
 * console ('a' + n % 23), the entropy source.  The last hart, if it is not the
 * only one, is started again and again, stops each time, and says how often it
 * ran.  Those in between hand a message round and sleep while it is elsewhere.
 * Every hart but the last has a timer, every two milliseconds, without which it sees
 * that something is lost: counter[hart] counts what it got done, counter[32 + hart]
 * timers.
 *
 * arg[0]	ticks of time a second
 * arg[1]	not 0: timers may be early
 * arg[7]	not 0: the end
 */
#include "lib/guest.h"

#define TOKEN	5

static unsigned int n, ring_size, victim, up, seeds = 1;
static uint64_t due[GUEST_HARTS], tokens[GUEST_HARTS], newest[GUEST_HARTS];
static uint64_t starts, runs, bells, bytes;

static void on_message(uint32_t id)
{
	CHECK_EQ(id, TOKEN);
	tokens[hart()]++;
}

static void on_tick(void)
{
	unsigned int h = hart();
	uint64_t now = time_now();

	CHECK(shared.arg[1] || now >= due[h]);
	shared.counter[32 + h]++;
	due[h] = now + shared.arg[0] / 500;
	timer_set(due[h]);
}

static void clock_on(void)
{
	imsic_init();
	imsic_enable(TOKEN);
	__asm__ volatile("csrs sie, %0" : : "r"(SIE_TIMER));
	due[hart()] = time_now();
	timer_set(due[hart()]);
}

/* Time goes forward, here and as seen from here everywhere. */
static void check_time(void)
{
	unsigned int h = hart(), i;
	uint64_t seen = 0, now;

	for (i = 0; i < n; i++) {
		now = __atomic_load_n(&newest[i], __ATOMIC_SEQ_CST);
		if (now > seen)
			seen = now;
	}
	now = time_now();
	CHECK(now >= seen);
	__atomic_store_n(&newest[h], now, __ATOMIC_SEQ_CST);
}

/* ---- The last hart ----------------------------------------------------------- */

static void run_once(uint64_t arg)
{
	CHECK_EQ(arg, ~starts);
	check_time();
	shared.counter[hart()]++;
	__atomic_store_n(&runs, starts, __ATOMIC_SEQ_CST);
}

static void drive(void)
{
	if (__atomic_load_n(&runs, __ATOMIC_SEQ_CST) != starts ||
	    sbi(SBI_HSM, 2, victim, 0, 0).value != 1)
		return;			/* it runs, or has not stopped yet */
	starts++;
	hart_start(victim, run_once, ~starts);
}

/* ---- Those in between ----------------------------------------------------------- */

static void hand_round(uint64_t arg)
{
	unsigned int h = hart();
	uint64_t r;

	(void)arg;
	clock_on();
	/* A message to a hart that has not begun is lost. */
	__atomic_add_fetch(&up, 1, __ATOMIC_SEQ_CST);
	while (__atomic_load_n(&up, __ATOMIC_SEQ_CST) < ring_size)
		;
	for (r = 1;; r++) {
		if (h == 1)
			msi(1 + h % ring_size, TOKEN);
		wait_for(__atomic_load_n(&tokens[h], __ATOMIC_SEQ_CST) >= r);
		check_time();
		shared.counter[h]++;
		if (h != 1)
			msi(1 + h % ring_size, TOKEN);
	}
}

/* ---- Hart 0 ------------------------------------------------------------------------ */

static int absent(struct frame *f, uint64_t cause, uint64_t value)
{
	(void)value;
	CHECK_EQ(cause, 2);
	seeds = 0;
	f->pc += 4;
	return 1;
}

static void go_out(uint64_t i)
{
	uint64_t v;

	R8(UART + 7) = (uint8_t)i;
	CHECK_EQ(R8(UART + 7), (uint8_t)i);
	if (sbi(SBI_DBCN, 2, 'a' + bytes % 23, 0, 0).error == 0)
		bytes++;
	CHECK_EQ(sbi(VMM_GUEST_SBI, 77, i, 0, 0).error, SBI_NOT_SUPPORTED);
	if (seeds) {
		v = CSR_SWAP(CSR_SEED, 0);
		CHECK(!seeds || v >> 30 == 2);
	}
	if (i % 64 == 0) {
		bells++;
		R64(DOORBELL) = 1ul << 32 | bells;
		ring(2ul << 32 | bells);
	}
}

int main(void)
{
	unsigned int i;
	uint64_t r;

	on_msi = on_message;
	on_timer = on_tick;
	on_exception = absent;
	has_sstc();
	n = harts();
	victim = n - 1;
	ring_size = n > 2 ? n - 2 : 0;
	for (i = 1; i <= ring_size; i++)
		hart_start(i, hand_round, 0);
	clock_on();
	for (r = 1; !shared.arg[7]; r++) {
		irqs_on();
		irqs_off();
		go_out(r);
		check_time();
		if (victim)
			drive();
		shared.counter[0] = r;
	}
	return 0;
}
