/* SPDX-License-Identifier: MIT */
/*
 * test_sbi.c - riscv/sbi.c: what a guest may ask of the debug console, and
 * what it may point it at.
 */
#include "rig.h"

#include <sys/socket.h>

#include "../../vmm_guest.h"

#define DBCN		0x4442434e
#define END		(MAP_RAM + RIG_RAM)

#define OK		0
#define FAILED		((uint64_t)-1)
#define NOT_SUPPORTED	((uint64_t)-2)
#define INVALID		((uint64_t)-3)

static struct vmm_error err;
static struct machine m;
static struct fake_vcpu *v;
static int con[2];

static int setup(void **state)
{
	(void)state;
	fake_reset();
	rig_make(&m, 1, 0);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, con), 0);
	assert_ok(uart_add(&m, con[1], con[1], &err));
	v = fake_vcpu(fake_vm(), 0);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	close(con[0]);
	close(con[1]);
	rig_free(&m);
	return 0;
}

/* One call, as vcpu.c makes it; gives what is in a0, and a1 in *value. */
static uint64_t call(uint64_t ext, uint64_t fn, uint64_t a0, uint64_t a1, uint64_t a2,
		     uint64_t *value)
{
	const struct kvm_sbi_exit *s;

	fake_sbi(v, ext, fn, a0, a1, a2);
	loop_lock(&m.loop);
	assert_int_equal(m.arch_exit(&m.vcpu[0]), VMM_EXIT_SBI);
	loop_unlock(&m.loop);
	s = kvm_exit_data(v->run);
	*value = s->ret[1];
	return s->ret[0];
}

static void test_write(void **state)
{
	char buf[100] = "";
	uint64_t n;

	(void)state;
	memcpy(mem_get(&m.mem, MAP_RAM + 100, 5), "hello", 5);
	assert_int_equal(call(DBCN, 0, 5, MAP_RAM + 100, 0, &n), OK);
	assert_int_equal(n, 5);
	assert_int_equal(read(con[0], buf, sizeof(buf)), 5);
	assert_string_equal(buf, "hello");
	assert_int_equal(call(DBCN, 2, 0x1234, 0, 0, &n), OK);	/* one byte */
	assert_int_equal(read(con[0], buf, sizeof(buf)), 1);
	assert_int_equal(buf[0], 0x34);
	assert_int_equal(call(DBCN, 0, 0, MAP_RAM, 0, &n), OK);
	assert_int_equal(n, 0);
	assert_false(readable(con[0], 0));
}

/* However much a guest names, a call moves a bounded part and says how much. */
static void test_huge(void **state)
{
	uint64_t n, done = 0;
	char buf[5000];

	(void)state;
	assert_int_equal(call(DBCN, 0, ~0ull, MAP_RAM, 0, &n), OK);
	assert_in_range(n, 1, 65536);
	while (done < n)
		done += (uint64_t)read(con[0], buf, sizeof(buf));
	assert_int_equal(done, n);
	assert_false(readable(con[0], 0));
	/* Also if all of it were RAM. */
	assert_int_equal(call(DBCN, 0, RIG_RAM, MAP_RAM, 0, &n), OK);
	assert_in_range(n, 1, 65536);
}

static void test_bounds(void **state)
{
	static const struct { uint64_t len, lo, hi; uint64_t ret; } t[] = {
		{ 1, END - 1, 0, OK }, { 2, END - 1, 0, INVALID }, { 1, END, 0, INVALID },
		{ 0, END, 0, OK }, { 1, MAP_RAM - 1, 0, INVALID }, { 1, 0, 0, INVALID },
		{ 8, MAP_RAM - 4, 0, INVALID }, { 4096, END - 4096, 0, OK },
		{ 4096, END - 4095, 0, INVALID }, { ~0ull, ~0ull, 0, INVALID },
		{ ~0ull, ~0ull - 100, 0, INVALID }, { 1, MAP_RAM, 1, INVALID },
		{ 1, MAP_RAM, ~0ull, INVALID }, { 1, MAP_UART, 0, INVALID },
		{ 16, END + 8, 0, INVALID },	/* the platform's pages */
	};
	unsigned int i, fn;
	uint64_t n;

	(void)state;
	for (fn = 0; fn < 2; fn++)
		for (i = 0; i < sizeof(t) / sizeof(t[0]); i++)
			if (call(DBCN, fn, t[i].len, t[i].lo, t[i].hi, &n) != t[i].ret)
				fail_msg("function %u, case %u", fn, i);
}

static void test_read(void **state)
{
	uint64_t n;
	char *p = mem_get(&m.mem, END - 4, 4);

	(void)state;
	assert_int_equal(call(DBCN, 1, 10, MAP_RAM, 0, &n), OK);
	assert_int_equal(n, 0);			/* nothing there: it does not wait */
	assert_int_equal(write(con[0], "input", 5), 5);
	assert_int_equal(call(DBCN, 1, 0, END - 4, 0, &n), OK);
	assert_int_equal(n, 0);
	assert_int_equal(call(DBCN, 1, 4, END - 4, 0, &n), OK);
	assert_int_equal(n, 4);
	assert_memory_equal(p, "inpu", 4);
	assert_int_equal(call(DBCN, 1, 4, END - 4, 0, &n), OK);
	assert_int_equal(n, 1);
	assert_memory_equal(p, "tnpu", 4);
	assert_int_equal(*(uint8_t *)mem_tail(&m.mem), 0);
}

/* Nobody reads the console: the guest is told, and nothing it was told is
   written is lost. */
static void test_full(void **state)
{
	char buf[5000];
	uint64_t n, taken = 0, got = 0;
	ssize_t r;

	(void)state;
	do {
		assert_int_equal(call(DBCN, 0, 4096, MAP_RAM, 0, &n), OK);
		taken += n;
		assert_true(taken < 10u << 20);
	} while (n);
	assert_int_equal(call(DBCN, 2, 'x', 0, 0, &n), FAILED);
	assert_int_not_equal(call(1, 0, 'y', 0, 0, &n), OK);	/* legacy putchar */
	assert_ok(loop_start(&m.loop, &err));
	while (got < taken) {
		r = read(con[0], buf, sizeof(buf));
		assert_true(r > 0);
		assert_null(memchr(buf, 'x', (size_t)r));
		assert_null(memchr(buf, 'y', (size_t)r));
		got += (uint64_t)r;
	}
	assert_int_equal(got, taken);
	assert_int_equal(call(DBCN, 2, 'z', 0, 0, &n), OK);
	assert_int_equal(read(con[0], buf, sizeof(buf)), 1);
	assert_int_equal(buf[0], 'z');
}

static void test_legacy(void **state)
{
	char c = 0;
	uint64_t n;

	(void)state;
	assert_int_equal(call(1, 0, 'A', 0, 0, &n), OK);
	assert_int_equal(read(con[0], &c, 1), 1);
	assert_int_equal(c, 'A');
	assert_int_equal(call(2, 0, 0, 0, 0, &n), (uint64_t)-1);
	assert_int_equal(write(con[0], "\xff", 1), 1);
	assert_int_equal(call(2, 0, 0, 0, 0, &n), 0xff);
	assert_int_equal(call(2, 0, 0, 0, 0, &n), (uint64_t)-1);
}

static void test_unknown(void **state)
{
	static const uint64_t ext[] = { 0, 3, 8, 0x10, 0x4442434d, 0x08000000, ~0ull, 1ull << 32 };
	unsigned int i;
	uint64_t n;

	(void)state;
	for (i = 0; i < sizeof(ext) / sizeof(ext[0]); i++)
		assert_int_equal(call(ext[i], 0, 1, MAP_RAM, 0, &n), NOT_SUPPORTED);
	assert_int_equal(call(DBCN, 3, 1, MAP_RAM, 0, &n), NOT_SUPPORTED);
	assert_int_equal(call(DBCN, ~0ull, 1, MAP_RAM, 0, &n), NOT_SUPPORTED);
	assert_int_equal(call(VMM_GUEST_SBI, 2, 1, 0, 0, &n), NOT_SUPPORTED);
	assert_int_equal(call(VMM_GUEST_SBI, ~0ull, 1, 0, 0, &n), NOT_SUPPORTED);
	assert_false(readable(con[0], 0));
	assert_false(readable(m.events.fd, 0));
}

static int no_more(const void *arg)
{
	(void)arg;
	return 0;
}

static void test_doorbell(void **state)
{
	struct vmm_event ev;
	uint64_t n;

	(void)state;
	m.vcpu[0].id = 5;
	assert_int_equal(call(VMM_GUEST_SBI, VMM_GUEST_SBI_RING, 0x1122334455667788, 0, 0, &n), OK);
	events_take(&m.events, 0, no_more, NULL, &ev);
	assert_int_equal(ev.type, VMM_EV_DOORBELL);
	assert_int_equal(ev.value, 0x1122334455667788);
	assert_int_equal(ev.vcpu, 5);
	m.vcpu[0].id = 0;
}

/* A console that is not there takes everything and gives nothing. */
static void test_no_console(void **state)
{
	uint64_t n;

	(void)state;
	rig_free(&m);
	rig_make(&m, 1, 0);
	v = fake_vcpu(fake_vm(), 0);
	assert_int_equal(call(DBCN, 0, 5, MAP_RAM, 0, &n), OK);
	assert_int_equal(n, 5);
	assert_int_equal(call(DBCN, 1, 5, MAP_RAM, 0, &n), OK);
	assert_int_equal(n, 0);
	assert_int_equal(call(DBCN, 2, 'x', 0, 0, &n), OK);
	assert_int_equal(call(1, 0, 'x', 0, 0, &n), OK);
	assert_int_equal(call(2, 0, 0, 0, 0, &n), (uint64_t)-1);
}

static uint64_t csr(uint64_t number)
{
	const struct kvm_csr_exit *c;

	fake_csr(v, number);
	loop_lock(&m.loop);
	assert_int_equal(m.arch_exit(&m.vcpu[0]), VMM_EXIT_CSR);
	loop_unlock(&m.loop);
	c = kvm_exit_data(v->run);
	return c->ret;
}

static void test_seed(void **state)
{
	uint64_t or = 0, and = ~0ull;
	int i;

	(void)state;
	for (i = 0; i < 200; i++) {
		uint64_t s = csr(0x015);

		/* Sixteen bits of entropy, and the state that says so. */
		assert_int_equal(s & ~0xffffull, 2ull << 30);
		or |= s;
		and &= s;
	}
	assert_int_equal(or & 0xffff, 0xffff);
	assert_int_equal(and & 0xffff, 0);
	assert_int_equal(csr(0x016), 0);
	assert_int_equal(csr(~0ull), 0);
}

int main(void)
{
#define T(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(test_write), T(test_huge), T(test_bounds), T(test_read), T(test_full),
		T(test_legacy), T(test_unknown), T(test_doorbell), T(test_no_console), T(test_seed),
	};

	time_limit(10);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
