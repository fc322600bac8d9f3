/* SPDX-License-Identifier: MIT */
/*
 * test_bus.c - core/bus.c: which device answers, and where nobody does.
 */
#include "unit.h"

#include "../../core/bus.h"

static struct vmm_error err;
static struct bus bus;

/* A device that remembers its last access. */
struct dev {
	uint64_t	off, val;
	unsigned int	len, reads, writes;
};

static uint64_t dev_read(void *arg, uint64_t off, unsigned int len)
{
	struct dev *d = arg;

	d->off = off;
	d->len = len;
	d->reads++;
	return 0x1122334455667788ull;
}

static void dev_write(void *arg, uint64_t off, unsigned int len, uint64_t val)
{
	struct dev *d = arg;

	d->off = off;
	d->len = len;
	d->val = val;
	d->writes++;
}

static const struct bus_ops ops = { dev_read, dev_write };

static int setup(void **state)
{
	(void)state;
	memset(&bus, 0, sizeof(bus));
	return 0;
}

static void test_find(void **state)
{
	struct dev a = { 0 }, b = { 0 };
	uint64_t v;

	(void)state;
	/* Adjacent, added in the wrong order. */
	assert_ok(bus_add(&bus, 0x2000, 0x100, &ops, &b, &err));
	assert_ok(bus_add(&bus, 0x1000, 0x1000, &ops, &a, &err));
	assert_int_equal(bus_read(&bus, 0x1ffc, 4, &v), 1);
	assert_int_equal(v, 0x1122334455667788ull);
	assert_int_equal(a.off, 0xffc);
	assert_int_equal(a.len, 4);
	assert_int_equal(bus_write(&bus, 0x2000, 8, 99), 1);
	assert_int_equal(b.off, 0);
	assert_int_equal(b.len, 8);
	assert_int_equal(b.val, 99);
	assert_int_equal(bus_write(&bus, 0x20ff, 1, 1), 1);
	assert_int_equal(b.off, 0xff);
	assert_int_equal(a.reads + a.writes + b.reads + b.writes, 3);
}

/* In a hole reads are 0 and writes are dropped; over an edge, too. */
static void test_holes(void **state)
{
	static const struct { uint64_t gpa; unsigned int len; } hole[] = {
		{ 0, 8 }, { 0xfff, 1 }, { 0xffc, 8 }, { 0x1100, 1 }, { 0x10fd, 4 }, { 0x10f9, 8 },
		{ UINT64_MAX, 1 }, { UINT64_MAX - 7, 8 }, { UINT64_MAX, 8 }, { 1ull << 63, 4 },
		{ 0x1fff, 2 }, { 0x2008, 1 }, { 0x2007, 2 },
	};
	struct dev a = { 0 }, b = { 0 };
	unsigned int i;
	uint64_t v;

	(void)state;
	for (i = 0; i < sizeof(hole) / sizeof(hole[0]); i++) {
		v = 7;
		assert_int_equal(bus_read(&bus, hole[i].gpa, hole[i].len, &v), 0);
		assert_int_equal(v, 0);
	}
	assert_ok(bus_add(&bus, 0x1000, 0x100, &ops, &a, &err));
	assert_ok(bus_add(&bus, 0x2000, 0x8, &ops, &b, &err));
	for (i = 0; i < sizeof(hole) / sizeof(hole[0]); i++) {
		v = 7;
		assert_int_equal(bus_read(&bus, hole[i].gpa, hole[i].len, &v), 0);
		assert_int_equal(v, 0);
		assert_int_equal(bus_write(&bus, hole[i].gpa, hole[i].len, 1), 0);
	}
	assert_int_equal(a.reads + a.writes + b.reads + b.writes, 0);
}

static void test_overlap(void **state)
{
	static const struct { uint64_t gpa, size; } bad[] = {
		{ 0x1000, 0x100 }, { 0x1001, 1 }, { 0xfff, 2 }, { 0x10ff, 0x10 }, { 0, 0x10000 },
		{ 0x1000, 1 },
	};
	struct dev a = { 0 };
	unsigned int i;

	(void)state;
	assert_ok(bus_add(&bus, 0x1000, 0x100, &ops, &a, &err));
	for (i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		assert_fails(bus_add(&bus, bad[i].gpa, bad[i].size, &ops, &a, &err), VMM_EINVAL,
			     "overlaps");
	assert_int_equal(bus.nregions, 1);
	assert_ok(bus_add(&bus, 0xf00, 0x100, &ops, &a, &err));
	assert_ok(bus_add(&bus, 0x1100, 0x100, &ops, &a, &err));
}

static void test_full(void **state)
{
	struct dev d[BUS_MAX] = { { 0 } };
	unsigned int i;
	uint64_t v;

	(void)state;
	/* From both ends to the middle. */
	for (i = 0; i < BUS_MAX; i++) {
		unsigned int n = i % 2 ? BUS_MAX - 1 - i / 2 : i / 2;

		assert_ok(bus_add(&bus, 0x10000ull * (n + 1), 0x1000, &ops, &d[n], &err));
	}
	assert_fails(bus_add(&bus, 0x10, 0x10, &ops, &d[0], &err), VMM_ENOTSUP, "48");
	for (i = 0; i < BUS_MAX; i++) {
		assert_int_equal(bus_read(&bus, 0x10000ull * (i + 1) + i, 1, &v), 1);
		assert_int_equal(d[i].off, i);
		assert_int_equal(d[i].reads, 1);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(test_find, setup),
		cmocka_unit_test_setup(test_holes, setup),
		cmocka_unit_test_setup(test_overlap, setup),
		cmocka_unit_test_setup(test_full, setup),
	};

	time_limit(5);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
