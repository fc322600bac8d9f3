/* SPDX-License-Identifier: MIT */
/*
 * test_rtc.c - riscv/rtc.c: the time, the alarm and its interrupt.
 */
#include "rig.h"

enum { TIME_LOW = 0x00, TIME_HIGH = 0x04, ALARM_LOW = 0x08, ALARM_HIGH = 0x0c, ENABLE = 0x10,
       CLEAR_ALARM = 0x14, ALARM_STATUS = 0x18, CLEAR_INTERRUPT = 0x1c };

#define MS	1000000ull
#define S	1000000000ull

static struct vmm_error err;
static struct machine m;
static struct device *rtc;

static uint32_t rd(unsigned int reg)
{
	return (uint32_t)rig_read(&m, MAP_RTC + reg, 4);
}

static void wr(unsigned int reg, uint64_t val)
{
	rig_write(&m, MAP_RTC + reg, 4, (uint32_t)val);
}

static uint64_t guest_time(void)
{
	uint64_t low = rd(TIME_LOW);

	return low | (uint64_t)rd(TIME_HIGH) << 32;
}

static uint64_t host_time(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_REALTIME, &ts);
	return (uint64_t)ts.tv_sec * S + (uint64_t)ts.tv_nsec;
}

static void set_time(uint64_t ns)
{
	wr(TIME_HIGH, ns >> 32);
	wr(TIME_LOW, ns);
}

static void set_alarm(uint64_t ns)
{
	wr(ALARM_HIGH, ns >> 32);
	wr(ALARM_LOW, ns);
}

static unsigned int pulses(void)
{
	return fake_pulses(fake_vm(), IRQ_RTC);
}

/* Has there been a pulse within ms? */
static int rings(unsigned int ms)
{
	uint64_t end = now_ms() + ms;

	while (!pulses() && now_ms() < end)
		nap_ms(1);
	return pulses() == 1;
}

static int setup(void **state)
{
	(void)state;
	fake_reset();
	rig_make(&m, 1, 0);
	assert_ok(rtc_add(&m, &err));
	rtc = machine_device(&m, "rtc");
	rig_reset(&m, rtc);
	assert_ok(loop_start(&m.loop, &err));
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	rig_free(&m);
	return 0;
}

static void test_time(void **state)
{
	uint64_t before, t, after;
	int i;

	(void)state;
	for (i = 0; i < 1000; i++) {
		before = host_time();
		t = guest_time();
		after = host_time();
		assert_true(before <= t && t <= after);
	}
	/* The high half is of the moment the low one was read. */
	t = rd(TIME_LOW);
	nap_ms(2);
	assert_true((t | (uint64_t)rd(TIME_HIGH) << 32) <= host_time() - 2 * MS);
}

static void test_set_time(void **state)
{
	uint64_t t;

	(void)state;
	set_time(1000 * S);
	t = guest_time();
	assert_in_range(t, 1000 * S, 1010 * S);
	nap_ms(5);
	assert_in_range(guest_time(), t + 5 * MS, t + 10 * S);
	/* Before 1970, and past 2554. */
	set_time(0);
	assert_in_range(guest_time(), 0, 10 * S);
	set_time(~0ull - 100 * S);
	assert_true(guest_time() >= ~0ull - 100 * S);
}

static void test_alarm(void **state)
{
	(void)state;
	wr(ENABLE, 1);
	assert_int_equal(rd(ENABLE), 1);
	assert_int_equal(rd(ALARM_STATUS), 0);
	set_alarm(guest_time() + 30 * MS);
	assert_int_equal(rd(ALARM_STATUS), 1);
	assert_false(pulses());
	assert_true(rings(5000));
	assert_int_equal(rd(ALARM_STATUS), 0);
	wr(CLEAR_INTERRUPT, 1);
	assert_int_equal(pulses(), 1);
	assert_int_equal(fake_level(fake_vm(), IRQ_RTC), 0);
}

static void test_alarm_registers(void **state)
{
	(void)state;
	set_alarm(0x7234567890abcdefull);
	assert_int_equal(rd(ALARM_LOW), 0x90abcdef);
	assert_int_equal(rd(ALARM_HIGH), 0x72345678);
	assert_int_equal(rd(ALARM_STATUS), 1);
	wr(CLEAR_ALARM, 1);
	assert_int_equal(rd(ALARM_STATUS), 0);
	wr(ENABLE, 0xfffffffe);
	assert_int_equal(rd(ENABLE), 0);
	/* What is not a register. */
	assert_int_equal(rd(0x20) | rd(0xffc), 0);
	wr(0x20, 1);
	wr(0xffc, 1);
}

static void test_past_alarm(void **state)
{
	(void)state;
	wr(ENABLE, 1);
	set_alarm(guest_time() - S);
	assert_true(rings(5000));
}

static void test_alarm_at_zero(void **state)
{
	(void)state;
	wr(ENABLE, 1);
	set_alarm(0);
	assert_true(rings(5000));
}

static void test_cleared_alarm(void **state)
{
	(void)state;
	wr(ENABLE, 1);
	set_alarm(guest_time() + 20 * MS);
	wr(CLEAR_ALARM, 1);
	assert_false(rings(60));
}

/* With its interrupt off an alarm is remembered. */
static void test_masked_alarm(void **state)
{
	(void)state;
	set_alarm(guest_time() + MS);
	while (rd(ALARM_STATUS))
		nap_ms(1);
	assert_false(pulses());
	wr(ENABLE, 1);
	assert_int_equal(pulses(), 1);
	wr(CLEAR_INTERRUPT, 1);
	wr(ENABLE, 0);
	wr(ENABLE, 1);
	assert_int_equal(pulses(), 1);
}

/* Setting the clock forward past the alarm makes it ring. */
static void test_clock_past_alarm(void **state)
{
	(void)state;
	wr(ENABLE, 1);
	set_alarm(guest_time() + 3600 * S);
	assert_false(rings(20));
	set_time(guest_time() + 3601 * S);
	assert_true(rings(5000));
}

static void test_wild_alarms(void **state)
{
	static const uint64_t at[] = { ~0ull, 1ull << 63, (1ull << 63) - 1, 1, ~0u, 1ull << 32 };
	unsigned int i, k;

	(void)state;
	for (i = 0; i < 6; i++) {
		for (k = 0; k < 6; k++) {
			set_time(at[i]);
			set_alarm(at[k]);
			rd(ALARM_STATUS);
		}
	}
}

static void test_save_load(void **state)
{
	struct writer w;
	uint64_t t;

	(void)state;
	set_time(5000 * S);
	wr(ENABLE, 1);
	set_alarm(5000 * S + 200 * MS);
	w = rig_save(rtc);
	rig_free(&m);

	setup(NULL);
	assert_ok(rig_load(&m, rtc, w.data, w.len, &err));
	t = guest_time();
	assert_in_range(t, 5000 * S, 5010 * S);
	assert_int_equal(rd(ENABLE), 1);
	assert_true(rings(5000));
	assert_true(guest_time() >= 5000 * S + 200 * MS);
	free(w.data);
}

static void test_load_anything(void **state)
{
	unsigned int i, k, seed = 7;
	struct writer w = rig_save(rtc);
	uint8_t data[64];
	size_t n;

	(void)state;
	for (n = 0; n < w.len; n++)
		assert_fails(rig_load(&m, rtc, w.data, n, &err), VMM_EFORMAT, "rtc");
	for (i = 0; i < 1000; i++) {
		for (k = 0; k < sizeof(data); k++)
			data[k] = (uint8_t)rand_r(&seed);
		rig_load(&m, rtc, data, i % 2 ? w.len : sizeof(data), &err);
		for (k = 0; k < 0x24; k += 4)
			rd(k);
		wr(ENABLE, 1);
	}
	free(w.data);
}

static void test_reset(void **state)
{
	unsigned int before;

	(void)state;
	set_time(5000 * S);
	wr(ENABLE, 1);
	set_alarm(5000 * S + 30 * MS);
	rig_reset(&m, rtc);
	before = pulses();		/* on a slow machine it may have rung */
	nap_ms(60);
	assert_int_equal(pulses(), before);
	assert_true(guest_time() > 1000000000 * S);
	assert_int_equal(rd(ENABLE) | rd(ALARM_STATUS) | rd(ALARM_LOW) | rd(ALARM_HIGH), 0);
}

int main(void)
{
#define T(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(test_time), T(test_set_time), T(test_alarm), T(test_alarm_registers),
		T(test_past_alarm), T(test_alarm_at_zero), T(test_cleared_alarm),
		T(test_masked_alarm), T(test_clock_past_alarm), T(test_wild_alarms),
		T(test_save_load), T(test_load_anything), T(test_reset),
	};

	time_limit(20);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
