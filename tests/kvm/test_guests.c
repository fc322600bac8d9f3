/* SPDX-License-Identifier: MIT */
/*
 * test_guests.c - what the tiny guests of tests/guest find, or do to us.
 *
 * Each case runs one guest, many of them once for each number of harts and
 * each mode of the interrupt controller that this host's kernel gets right
 * (option -m: that mode only, right or not).  Guests check themselves; those
 * that misbehave are checked from here: they harm only themselves.
 */
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kvmtest.h"

static void start(struct vmm *vm)
{
	CALL(vmm_start(vm, &test_err));
}

static void expect_exit(struct vmm *vm, uint64_t code, int seconds)
{
	expect_event(vm, VMM_EV_SHUTDOWN, code, seconds);
	CHECK_EQ(vmm_state(vm), VMM_STOPPED);
	vmm_free(vm);
}

/* A case's argument is a mode, a number of harts and a variant. */
#define ARG(mode, harts, variant) ((uint64_t)(mode) << 32 | (uint64_t)(harts) << 16 | (variant))
static uint32_t harts, variant;

static void unpack(void)
{
	test_options.irqchip = (uint32_t)(test_arg >> 32);
	harts = test_arg >> 16 & 0xffff;
	variant = test_arg & 0xffff;
	if (!test_mode_sound(test_options.irqchip))
		test_note("not sound on this kernel: %s", test_host()->note);
}

/* ---- Guests that check themselves --------------------------------------------- */

static void hello(void)
{
	struct console con;
	struct vmm *vm;

	unpack();
	console_open(&con);
	vm = guest_new_io("hello", harts, con.in, con.out);
	guest_arg(vm, 0, 42);
	start(vm);
	CHECK_EQ(console_find(&con, "hello from hart 0\n", NULL, 20000), 0);
	expect_exit(vm, 42, 20);
	console_close(&con);
}

static void smp(void)
{
	struct vmm *vm;

	unpack();
	vm = guest_new("smp", harts, 1);
	guest_arg(vm, 0, 20000);
	guest_arg(vm, 1, 300);
	start(vm);
	expect_exit(vm, 0, 60);
}

static void timer(void)
{
	struct vmm *vm;
	uint64_t lost = 0;
	uint32_t i;
	int sstc;

	unpack();
	sstc = strstr(test_host()->isa, "_sstc") != NULL;
	vm = guest_new("timer", harts, 1);
	guest_arg(vm, 0, 60);
	guest_arg(vm, 1, test_host()->timebase_hz / 200);
	guest_arg(vm, 2, sstc ? 1 : 2);
	start(vm);
	expect_event(vm, VMM_EV_SHUTDOWN, 0, 60);
	for (i = 0; i < harts; i++)
		lost += guest_counter(vm, i);
	if (lost)
		test_note("KVM lost %llu timers set by SBI", (unsigned long long)lost);
	vmm_free(vm);
}

static void aplic(void)
{
	struct console con;
	struct vmm *vm;

	unpack();
	console_open(&con);
	vm = guest_new_io("aplic", harts, con.in, con.out);
	start(vm);
	expect_exit(vm, 0, 60);
	console_finish(&con);
	CHECK_EQ(con.len, 51 * harts);
	console_close(&con);
}

static void uart_rx(void)
{
	struct console con;
	uint64_t total, i;
	struct vmm *vm;
	uint8_t *data;

	unpack();
	total = variant == 2 ? 300000 : 4000;
	data = malloc(total);
	for (i = 0; i < total; i++)
		data[i] = (uint8_t)(i * 7 + i / 256);
	console_open(&con);
	vm = guest_new_io("uart_rx", harts, con.in, con.out);
	guest_arg(vm, 0, total);
	guest_arg(vm, 1, variant);
	start(vm);
	if (variant == 0)		/* some wait before the guest listens */
		console_send(&con, data, 100);
	expect_event(vm, VMM_EV_DOORBELL, 1, 20);
	console_send(&con, data + (variant == 0 ? 100 : 0), total - (variant == 0 ? 100 : 0));
	expect_event(vm, VMM_EV_SHUTDOWN, 0, 60);
	test_note("%llu bytes, %llu interrupts", (unsigned long long)guest_counter(vm, 0),
		  (unsigned long long)guest_counter(vm, 1));
	vmm_free(vm);
	console_finish(&con);
	CHECK_EQ(con.len, total / 1000);
	console_close(&con);
	free(data);
}

static void rtc(void)
{
	struct timespec ts;
	uint64_t before, told;
	struct vmm *vm;

	unpack();
	vm = guest_new("rtc", 1, 1);
	clock_gettime(CLOCK_REALTIME, &ts);
	before = (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
	start(vm);
	expect_event(vm, VMM_EV_SHUTDOWN, 0, 60);
	told = guest_counter(vm, 0);
	CHECK(told >= before && told < before + 60000000000ull * test_options.factor);
	vmm_free(vm);
}

static void seed(void)
{
	struct vmm *vm;

	unpack();
	if (!strstr(test_host()->isa, "_zkr"))
		test_skip("this host has no Zkr");
	vm = guest_new("seed", 1, 0);
	start(vm);
	expect_exit(vm, 0, 20);
}

/* ---- Guests that misbehave ------------------------------------------------------ */

static void holes(void)
{
	struct vmm *vm;

	unpack();
	vm = guest_new("holes", harts, 1);
	guest_arg(vm, 1, 16u << 20);
	start(vm);
	expect_event(vm, VMM_EV_SHUTDOWN, 0, 60);
	test_note("%llu accesses", (unsigned long long)guest_counter(vm, 0));
	vmm_free(vm);
}

static const uint64_t flood[] = { 2000, 2000, 1000000, 2000 };

/* All of a flood arrives, in order. */
static void uart_flood(void)
{
	struct console con;
	struct vmm *vm;
	uint64_t i;

	unpack();
	console_open(&con);
	vm = guest_new_io("uart_flood", 1, con.in, con.out);
	guest_arg(vm, 0, flood[variant]);
	guest_arg(vm, 1, variant);
	start(vm);
	expect_exit(vm, 0, 60);
	console_finish(&con);
	CHECK_EQ(con.len, flood[variant]);
	for (i = 0; i < con.len; i++)
		if (con.text[i] != (char)('a' + i % 23))
			test_fail("byte %llu is wrong", (unsigned long long)i);
	console_close(&con);
}

/* Memory of this process beside the guest's RAM. */
static uint64_t rss_beside(struct vmm *vm)
{
	struct vmm_stats st = VMM_STATS_INIT;

	CALL(vmm_stat(vm, &st, &test_err));
	return rss_kib() - st.memory_used / 1024;
}

/* Nobody reads: the guest waits where it can (0, 2, 3), loses bytes where it
   does not look (1), and in no case takes the host's memory or its time. */
static void uart_flood_unread(void)
{
	const uint64_t room = 65536 + 4096, prefix = room - 1000;
	uint64_t rss, was;
	struct vmm *vm;
	int p[2];

	unpack();
	CHECK(pipe2(p, O_CLOEXEC) == 0);
	CHECK(fcntl(p[1], F_SETPIPE_SZ, 4096) == 4096);
	vm = guest_new_io("uart_flood", 1, -1, p[1]);
	guest_arg(vm, 0, prefix + 3000);
	guest_arg(vm, 1, variant);
	guest_arg(vm, 2, prefix);
	rss = rss_beside(vm);
	start(vm);
	if (variant == 1) {
		expect_event(vm, VMM_EV_SHUTDOWN, 0, 60);
	} else {
		do {
			was = guest_counter(vm, 0);
			sleep_ms(1000 * test_options.factor);
		} while (guest_counter(vm, 0) != was || was < prefix);
		CHECK(was <= room + 64);
		CALL(vmm_pause(vm, &test_err));
		start(vm);
	}
	test_note("%llu KiB of memory", (unsigned long long)(rss_beside(vm) - rss));
	CHECK(rss_beside(vm) < rss + 512);
	was = now_ms();
	vmm_free(vm);
	was = now_ms() - was;
	test_note("freed in %llu ms", (unsigned long long)was);
	CHECK(was < 5000 * test_options.factor);
}

static void bell_flood(void)
{
	uint64_t next[GUEST_HARTS] = { 0 }, all = 0, rings = 2000;
	struct vmm_event ev;
	struct vmm *vm;
	uint32_t h;

	unpack();
	vm = guest_new("bell_flood", harts, 0);
	guest_arg(vm, 0, rings);
	start(vm);
	sleep_ms(200);			/* let them crowd */
	for (;;) {
		next_event(vm, &ev, 30);
		if (ev.type != VMM_EV_DOORBELL)
			break;
		h = (uint32_t)(ev.value >> 32);
		CHECK(h < harts);
		CHECK_EQ((uint32_t)ev.value, ++next[h]);
		all++;
		if (all % 500 == 0)
			sleep_ms(20);
	}
	CHECK_EQ(ev.type, VMM_EV_SHUTDOWN);
	CHECK_EQ(ev.value, 5);
	CHECK_EQ(all, rings * harts);
	vmm_free(vm);
}

/* Nobody listens: it can still be held still, and killed. */
static void bell_flood_unheard(void)
{
	struct vmm_event ev;
	struct vmm *vm;
	uint64_t was;

	unpack();
	vm = guest_new("bell_flood", harts, 0);
	guest_arg(vm, 0, 1000000);
	start(vm);
	sleep_ms(200);
	was = guest_counter(vm, 0);
	CHECK(was < 1000);
	CALL(vmm_pause(vm, &test_err));
	start(vm);
	next_event(vm, &ev, 5);
	CHECK_EQ(ev.type, VMM_EV_DOORBELL);
	CALL(vmm_stop(vm, &test_err));
	vmm_free(vm);
}

/*
 * What forbidden.c's deeds end in.  Where it is for the host's CPU or kernel to
 * say, the guest may trap and get over it, or crash, or hang (an instruction
 * fetched from a hole is a trap on Linux 7.2 and ends the guest on 6.12): but
 * never is it a fault of ours.
 */
enum { TRAP_OR_CRASH = 0x100, HANG_OR_CRASH };

static const struct {
	const char	*name;
	uint32_t	type;
} deeds[] = {
	{ "jump-to-hole", TRAP_OR_CRASH },
	{ "jump-to-device", TRAP_OR_CRASH },
	{ "trap-vector-in-hole", HANG_OR_CRASH },
	{ "traps-for-ever", VMM_EV_NONE },
	{ "atomic-on-device", TRAP_OR_CRASH },
	{ "lr-in-hole", TRAP_OR_CRASH },
	{ "sc-in-hole", TRAP_OR_CRASH },
	{ "misaligned-read", TRAP_OR_CRASH },
	{ "misaligned-write", TRAP_OR_CRASH },
	{ "behind-ram", TRAP_OR_CRASH },
	{ "float-load-from-hole", TRAP_OR_CRASH },
	{ "reset-by-failure", VMM_EV_CRASH },
	{ "last-hart-stops", VMM_EV_NONE },
	{ "beyond-all-addresses", TRAP_OR_CRASH },
	{ "console-buffers", VMM_EV_SHUTDOWN },
	{ "sbi-calls", VMM_EV_SHUTDOWN },
};
#define DEEDS (sizeof(deeds) / sizeof(deeds[0]))

static void forbidden(void)
{
	uint32_t want;
	struct vmm_event ev;
	struct vmm *vm;
	uint64_t t;

	unpack();
	want = deeds[variant].type;
	vm = guest_new("forbidden", harts, 1);
	guest_arg(vm, 0, variant);
	guest_arg(vm, 1, 16u << 20);
	start(vm);
	do {
		CALL(vmm_wait(vm, (want == VMM_EV_NONE || want == HANG_OR_CRASH ? 1000 : 20000) *
			      (int)test_options.factor, &ev, &test_err));
		test_note("%s: %s %llu %s", deeds[variant].name, event_name(ev.type),
			  (unsigned long long)ev.value, ev.detail);
	} while (ev.type == VMM_EV_DOORBELL && (ev.value & GUEST_REPORT_MASK) != GUEST_REPORT);
	if (want == TRAP_OR_CRASH)
		CHECK(ev.type == VMM_EV_CRASH || ev.type == VMM_EV_SHUTDOWN);
	else if (want == HANG_OR_CRASH)
		CHECK(ev.type == VMM_EV_CRASH || ev.type == VMM_EV_NONE);
	else
		CHECK_EQ(ev.type, want);
	if (ev.type == VMM_EV_SHUTDOWN)
		CHECK_EQ(ev.value, 7);
	if (ev.type == VMM_EV_NONE) {
		t = now_ms();
		CALL(vmm_stop(vm, &test_err));
		CHECK(now_ms() - t < 2000 * test_options.factor);
	}
	/* Whatever it did, its machine can be used again. */
	CHECK_EQ(vmm_state(vm), VMM_STOPPED);
	CALL(vmm_reset(vm, &test_err));
	guest_arg(vm, 0, 14);
	guest_arg(vm, 1, 16u << 20);
	start(vm);
	expect_event(vm, VMM_EV_DOORBELL, 2, 20);
	expect_exit(vm, 7, 20);
}

/* ---- All of them -------------------------------------------------------------------- */

static struct test_case cases[400];
static char names[400][48];
static size_t ncases;

static void add(const char *name, void (*fn)(void), unsigned int seconds, uint32_t mode,
		uint32_t nharts, uint32_t which)
{
	snprintf(names[ncases], sizeof(names[0]), "%s-%u-%s", name, nharts, test_mode_name(mode));
	cases[ncases] = (struct test_case){ names[ncases], fn, seconds, ARG(mode, nharts, which) };
	ncases++;
}

/* With each mode: what depends on interrupts. */
static void add_mode(uint32_t mode)
{
	add("hello", hello, 30, mode, 1, 0);
	add("smp", smp, 90, mode, 1, 0);
	add("smp", smp, 90, mode, 2, 0);
	add("smp", smp, 90, mode, 4, 0);
	add("timer", timer, 90, mode, 1, 0);
	add("timer", timer, 90, mode, 4, 0);
	add("aplic", aplic, 90, mode, 1, 0);
	add("aplic", aplic, 90, mode, 4, 0);
	add("uart-rx-irq", uart_rx, 90, mode, 1, 0);
	add("holes", holes, 90, mode, 1, 0);
	add("holes", holes, 90, mode, 2, 0);
	add("rtc", rtc, 90, mode, 1, 0);
}

int main(int argc, char **argv)
{
	struct vmm_host host = VMM_HOST_INIT;
	struct vmm_error err;
	uint32_t mode, i;
	char name[48];

	if (vmm_probe(&host, &err)) {
		printf("skip guests - %s\n", err.message);
		return 77;
	}
	printf("# Linux %s, %s\n# %s\n", host.kernel, host.isa, host.note);
	for (mode = VMM_IRQCHIP_AIA_EMUL; mode <= VMM_IRQCHIP_AIA_AUTO; mode++)
		if (host.irqchips_sound >> mode & 1)
			add_mode(mode);
	mode = VMM_IRQCHIP_DEFAULT;
	add("smp", smp, 120, mode, 16, 0);
	add("uart-rx-poll", uart_rx, 90, mode, 1, 1);
	add("uart-rx-sbi", uart_rx, 90, mode, 1, 2);
	add("seed", seed, 30, mode, 1, 0);
	for (i = 0; i < 4; i++) {
		snprintf(name, sizeof(name), "uart-flood-%u", i);
		add(name, uart_flood, 90, mode, 1, i);
		snprintf(name, sizeof(name), "uart-flood-unread-%u", i);
		add(name, uart_flood_unread, 90, mode, 1, i);
	}
	add("bell-flood", bell_flood, 90, mode, 1, 0);
	add("bell-flood", bell_flood, 90, mode, 4, 0);
	add("bell-flood", bell_flood, 120, mode, 8, 0);
	add("bell-flood-unheard", bell_flood_unheard, 60, mode, 2, 0);
	for (i = 0; i < DEEDS; i++) {
		snprintf(name, sizeof(name), "forbidden-%s", deeds[i].name);
		add(name, forbidden, 60, mode, i == 12 ? 1 : 1 + i % 2, i);
	}
	return test_main(argc, argv, cases, ncases);
}
