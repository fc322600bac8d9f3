/* SPDX-License-Identifier: MIT */
/*
 * test_uart.c - riscv/uart.c: registers, interrupts, and bytes in both
 * directions, as drivers move them; save and load.
 */
#include "rig.h"

#include <sys/resource.h>
#include <sys/socket.h>

enum { DATA = 0, IER = 1, IIR = 2, FCR = 2, LCR = 3, MCR = 4, LSR = 5, MSR = 6, SCR = 7 };

static struct vmm_error err;
static struct machine m;
static struct device *uart;
static int con[2];		/* con[0] is the host's end of the console */

static uint8_t rd(unsigned int reg)
{
	return (uint8_t)rig_read(&m, MAP_UART + reg, 1);
}

static void wr(unsigned int reg, uint8_t val)
{
	rig_write(&m, MAP_UART + reg, 1, val);
}

static unsigned int pulses(void)
{
	return fake_pulses(fake_vm(), IRQ_UART);
}

/* A console over a socket; in and out say which directions it has. */
static void make(int in, int out)
{
	const int little = 4096;

	fake_reset();
	rig_make(&m, 1, 0);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, con), 0);
	setsockopt(con[1], SOL_SOCKET, SO_SNDBUF, &little, sizeof(little));
	assert_ok(uart_add(&m, in ? con[1] : -1, out ? con[1] : -1, &err));
	uart = machine_device(&m, UART_NAME);
	rig_reset(&m, uart);
	assert_ok(loop_start(&m.loop, &err));
}

static int setup(void **state)
{
	(void)state;
	make(1, 1);
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

static void type(const char *text)
{
	assert_int_equal(write(con[0], text, strlen(text)), (ssize_t)strlen(text));
}

static void await_pulse(unsigned int seen)
{
	unsigned int i;

	for (i = 0; pulses() == seen; i++)
		if (i < 1000)
			sched_yield();
		else
			nap_ms(1);
}

static void expect_console(const char *text)
{
	char buf[100] = "";

	assert_true(readable(con[0], 1000));
	assert_int_equal(read(con[0], buf, sizeof(buf) - 1), strlen(text));
	assert_string_equal(buf, text);
}

/* ---- Registers ------------------------------------------------------------------- */

static void test_power_on(void **state)
{
	unsigned int i;

	(void)state;
	assert_int_equal(rd(IER), 0);
	assert_int_equal(rd(IIR), 0x01);
	assert_int_equal(rd(LCR), 0);
	assert_int_equal(rd(MCR), 0);
	assert_int_equal(rd(LSR), 0x60);
	assert_int_equal(rd(MSR), 0xb0);
	assert_int_equal(rd(SCR), 0);
	assert_int_equal(rd(DATA), 0);
	for (i = 8; i < 0x100; i++) {
		assert_int_equal(rd(i), 0);
		wr(i, 0xff);
	}
	assert_int_equal(rd(LSR), 0x60);
	assert_int_equal(pulses(), 0);
}

static void test_registers(void **state)
{
	(void)state;
	wr(SCR, 0xa5);
	assert_int_equal(rd(SCR), 0xa5);
	wr(IER, 0xf0);			/* bits that are not there stay 0 */
	assert_int_equal(rd(IER), 0);
	wr(MCR, 0xe3);
	assert_int_equal(rd(MCR), 0x03);
	wr(LCR, 0x83);			/* divisor latch */
	wr(DATA, 0x12);
	wr(IER, 0x34);
	assert_int_equal(rd(DATA), 0x12);
	assert_int_equal(rd(IER), 0x34);
	assert_int_equal(rd(SCR), 0xa5);
	wr(LCR, 0x03);
	assert_int_equal(rd(IER), 0);
	assert_int_equal(rd(DATA), 0);
	assert_int_equal(rd(LCR), 0x03);
	assert_false(readable(con[0], 0));	/* 0x12 was no character */
	/* The FIFO is announced once it is on. */
	wr(FCR, 0x01);
	assert_int_equal(rd(IIR), 0xc1);
	wr(FCR, 0x00);
	assert_int_equal(rd(IIR), 0x01);
	/* LSR and MSR are read-only. */
	wr(LSR, 0xff);
	wr(MSR, 0xff);
	assert_int_equal(rd(LSR), 0x60);
	assert_int_equal(rd(MSR), 0xb0);
}

static void test_loopback(void **state)
{
	static const struct { uint8_t mcr, msr; } t[] = {
		{ 0x10, 0x00 }, { 0x11, 0x20 }, { 0x12, 0x10 }, { 0x14, 0x40 }, { 0x18, 0x80 },
		{ 0x1f, 0xf0 }, { 0x0f, 0xb0 },
	};
	unsigned int i;

	(void)state;
	for (i = 0; i < sizeof(t) / sizeof(t[0]); i++) {
		wr(MCR, t[i].mcr);
		assert_int_equal(rd(MSR), t[i].msr);
	}
	wr(MCR, 0x10);
	wr(FCR, 0x01);
	for (i = 0; i < 64; i++)
		wr(DATA, (uint8_t)(i + 1));
	for (i = 0; i < 64; i++) {
		assert_int_equal(rd(LSR), 0x61);
		assert_int_equal(rd(DATA), i + 1);
	}
	assert_int_equal(rd(LSR), 0x60);
	/* More than the FIFO holds is lost, as in a real one. */
	for (i = 0; i < 200; i++)
		wr(DATA, (uint8_t)i);
	for (i = 0; rd(LSR) & 1; i++)
		assert_int_equal(rd(DATA), i);
	assert_int_equal(i, 64);
	wr(DATA, 'x');
	wr(FCR, 0x03);			/* clear what was received */
	assert_int_equal(rd(LSR), 0x60);
	assert_false(readable(con[0], 0));
	wr(MCR, 0);
	wr(DATA, 'y');
	expect_console("y");
}

static void test_wide_access(void **state)
{
	(void)state;
	/* Whatever the width, a register is one byte. */
	rig_write(&m, MAP_UART + SCR, 4, 0x112233a5);
	assert_int_equal(rig_read(&m, MAP_UART + SCR, 4), 0xa5);
	assert_int_equal(rig_read(&m, MAP_UART + LSR, 8), 0x60);
	rig_write(&m, MAP_UART + DATA, 8, 0x1122334455667741ull);
	expect_console("A");
}

/* ---- Interrupts -------------------------------------------------------------------- */

static void test_transmit_interrupt(void **state)
{
	unsigned int n;

	(void)state;
	wr(DATA, 'a');
	assert_int_equal(pulses(), 0);		/* none is enabled */
	wr(IER, 0x02);
	assert_int_equal(pulses(), 1);
	assert_false(fake_level(fake_vm(), IRQ_UART));
	assert_int_equal(rd(IIR), 0x02);
	assert_int_equal(rd(IIR), 0x01);	/* reading acknowledged it */
	assert_int_equal(pulses(), 1);
	wr(DATA, 'b');
	assert_int_equal(pulses(), 2);
	wr(DATA, 'c');				/* not acknowledged: no new edge */
	assert_int_equal(pulses(), 2);
	assert_int_equal(rd(IIR), 0x02);
	/* Off and on again: it is told anew that there is room. */
	wr(IER, 0);
	n = pulses();
	wr(IER, 0x02);
	assert_int_equal(pulses(), n + 1);
	expect_console("abc");
}

static void test_receive_interrupt(void **state)
{
	unsigned int n;

	(void)state;
	wr(IER, 0x01);
	type("xyz");
	await_pulse(0);
	n = pulses();
	assert_int_equal(n, 1);
	assert_int_equal(rd(IIR), 0x04);
	assert_int_equal(rd(LSR), 0x61);
	assert_int_equal(rd(DATA), 'x');
	assert_int_equal(rd(IIR), 0x04);	/* there is more */
	assert_int_equal(rd(DATA), 'y');
	assert_int_equal(rd(DATA), 'z');
	assert_int_equal(rd(IIR), 0x01);
	assert_int_equal(rd(LSR), 0x60);
	assert_int_equal(pulses(), n);
	type("w");
	await_pulse(n);
	assert_int_equal(rd(DATA), 'w');
	/* What has arrived is told of when it may be. */
	wr(IER, 0);
	wr(MCR, 0x10);
	wr(DATA, 'v');
	n = pulses();
	wr(IER, 0x01);
	assert_int_equal(pulses(), n + 1);
	assert_int_equal(rd(DATA), 'v');
}

static void test_priority(void **state)
{
	(void)state;
	wr(MCR, 0x10);
	wr(IER, 0x03);
	wr(DATA, 'r');
	assert_int_equal(rd(IIR), 0x04);	/* receive before transmit */
	assert_int_equal(rd(DATA), 'r');
	assert_int_equal(rd(IIR), 0x02);
	assert_int_equal(rd(IIR), 0x01);
}

/* ---- As drivers do ------------------------------------------------------------------- */

#define FLOOD	200000u

struct reader_thread {
	size_t		got;
	int		wrong;
};

static uint8_t pattern(size_t i)
{
	return (uint8_t)('!' + (i * 7 + i / 90) % 90);
}

static void *slow_reader(void *arg)
{
	struct reader_thread *r = arg;
	uint8_t buf[2000];
	ssize_t n, i;

	while (r->got < FLOOD) {
		/* Long enough for all buffers to fill, now and then. */
		if (r->got / 80000 != (r->got + sizeof(buf)) / 80000 || !r->got)
			nap_ms(100);
		n = read(con[0], buf, 1 + r->got % sizeof(buf));
		if (n <= 0)
			break;
		for (i = 0; i < n; i++)
			r->wrong += buf[i] != pattern(r->got + (size_t)i);
		r->got += (size_t)n;
	}
	return NULL;
}

/* As Linux' 8250 driver: at each interrupt, if THRE is set, 16 bytes at once.
   Nothing may be lost, and no interrupt may be missing. */
static void test_flood_by_interrupt(void **state)
{
	struct reader_thread r = { 0 };
	unsigned int seen = 0, i;
	size_t sent = 0;
	pthread_t t;
	uint8_t iir;

	(void)state;
	pthread_create(&t, NULL, slow_reader, &r);
	wr(FCR, 0x01);
	wr(IER, 0x02);
	while (sent < FLOOD) {
		await_pulse(seen);
		seen = pulses();
		while (!((iir = rd(IIR)) & 1)) {
			if ((iir & 0x0e) != 0x02 || !(rd(LSR) & 0x20))
				continue;
			for (i = 0; i < 16 && sent < FLOOD; i++, sent++)
				wr(DATA, pattern(sent));
		}
	}
	pthread_join(t, NULL);
	assert_int_equal(r.got, FLOOD);
	assert_int_equal(r.wrong, 0);
}

/* As an early console: looks at THRE before each byte. */
static void test_flood_by_polling(void **state)
{
	struct reader_thread r = { 0 };
	pthread_t t;
	size_t i;

	(void)state;
	pthread_create(&t, NULL, slow_reader, &r);
	for (i = 0; i < FLOOD; i++) {
		while (!(rd(LSR) & 0x20))
			sched_yield();
		wr(DATA, pattern(i));
	}
	pthread_join(t, NULL);
	assert_int_equal(r.got, FLOOD);
	assert_int_equal(r.wrong, 0);
}

static void *fast_writer(void *arg)
{
	uint8_t buf[1000];
	size_t done, i;

	for (done = 0; done < FLOOD; done += sizeof(buf)) {
		for (i = 0; i < sizeof(buf); i++)
			buf[i] = pattern(done + i);
		if (write(con[0], buf, sizeof(buf)) != sizeof(buf))
			break;
	}
	return arg;
}

static void test_input_flood(void **state)
{
	unsigned int seen = 0;
	size_t got = 0;
	pthread_t t;

	(void)state;
	pthread_create(&t, NULL, fast_writer, NULL);
	wr(FCR, 0x01);
	wr(IER, 0x01);
	while (got < FLOOD) {
		await_pulse(seen);
		seen = pulses();
		while (!(rd(IIR) & 1))
			while (rd(LSR) & 1)
				assert_int_equal(rd(DATA), pattern(got++));
	}
	pthread_join(t, NULL);
	assert_int_equal(rd(LSR) & 1, 0);
}

/* Until a driver asks, input stays where another can have it: the SBI console. */
static void test_input_shared(void **state)
{
	char buf[16] = "";
	size_t n;

	(void)state;
	type("to sbi");
	nap_ms(20);
	loop_lock(&m.loop);
	n = uart_get(uart, buf, sizeof(buf));
	loop_unlock(&m.loop);
	assert_int_equal(n, 6);
	assert_string_equal(buf, "to sbi");
	/* A driver that polls, without interrupts. */
	type("p");
	while (!(rd(LSR) & 1))
		nap_ms(1);
	assert_int_equal(rd(DATA), 'p');
	assert_int_equal(pulses(), 0);
	loop_lock(&m.loop);
	assert_int_equal(uart_put(uart, "sbi", 3), 3);
	assert_int_equal(uart_put(NULL, "nowhere", 7), 7);
	assert_int_equal(uart_get(NULL, buf, 7), 0);
	assert_int_equal(uart_get(uart, buf, 0), 0);
	loop_unlock(&m.loop);
	expect_console("sbi");
	type("q");				/* asking for nothing ended nothing */
	while (!(rd(LSR) & 1))
		nap_ms(1);
	assert_int_equal(rd(DATA), 'q');
}

/* The FIFO is full, and input comes: it waits, and is not taken for its end. */
static void test_input_while_full(void **state)
{
	unsigned int i;

	(void)state;
	type("a");
	nap_ms(10);
	wr(MCR, 0x10);
	for (i = 0; i < 64; i++)
		wr(DATA, 'f');
	assert_int_equal(rd(LSR), 0x61);
	wr(MCR, 0);
	type("b");
	nap_ms(5);
	for (i = 0; i < 64; i++)
		assert_int_equal(rd(DATA), 'f');
	while (!(rd(LSR) & 1))
		nap_ms(1);
	assert_int_equal(rd(DATA), 'a');
	while (!(rd(LSR) & 1))
		nap_ms(1);
	assert_int_equal(rd(DATA), 'b');
}

/* The host's end goes away: the guest is not disturbed. */
static void test_hang_up(void **state)
{
	unsigned int i;

	(void)state;
	wr(IER, 0x01);
	type("bye");
	await_pulse(0);
	close(con[0]);
	for (i = 0; i < 100000 / (SLOW ? 10 : 1); i++)
		wr(DATA, 'x');
	for (i = 0; rd(LSR) & 1; i++)
		rd(DATA);
	assert_int_equal(i, 3);
	assert_int_equal(rd(LSR), 0x60);
	con[0] = dup(con[1]);
}

static void test_no_descriptors(void **state)
{
	unsigned int i;

	(void)state;
	make(0, 0);
	for (i = 0; i < 1000; i++)
		wr(DATA, 'x');
	assert_int_equal(rd(LSR), 0x60);
	wr(IER, 0x03);
	assert_int_equal(rd(IIR), 0x02);
	assert_false(readable(con[0], 0));
}

static void test_add_errors(void **state)
{
	struct rlimit old, few;
	struct device *d = uart;
	int before = fds(), rc;

	(void)state;
	assert_fails(uart_add(&m, -1, -1, &err), VMM_EINVAL, "serial already");
	assert_fails(uart_add(&m, 500, -1, &err), VMM_ESYS, "console input, descriptor 500");
	assert_ptr_equal(machine_device(&m, UART_NAME), d);
	assert_int_equal(fds(), before);
	/* No descriptors left to listen with: an error, not a deaf console. */
	rig_free(&m);
	rig_make(&m, 1, 0);
	before = fds();
	getrlimit(RLIMIT_NOFILE, &old);
	few = old;
	rc = -1;
	for (few.rlim_cur = (rlim_t)before; few.rlim_cur < (rlim_t)before + 12; few.rlim_cur++) {
		setrlimit(RLIMIT_NOFILE, &few);
		rc = uart_add(&m, con[1], con[1], &err);
		setrlimit(RLIMIT_NOFILE, &old);
		if (rc == 0)
			break;
		assert_int_equal(rc, VMM_ESYS);
		assert_int_equal(err.os_errno, EMFILE);
		assert_int_equal(fds(), before);
	}
	assert_int_equal(rc, 0);
	uart = machine_device(&m, UART_NAME);
	assert_ok(loop_start(&m.loop, &err));
	wr(IER, 0x01);
	type("x");
	await_pulse(0);
	assert_int_equal(rd(DATA), 'x');
}

/* ---- Save and load --------------------------------------------------------------------- */

static void test_save_load(void **state)
{
	struct writer w;
	unsigned int i;

	(void)state;
	wr(LCR, 0x80);
	wr(DATA, 0x0c);
	wr(IER, 0x01);
	wr(LCR, 0x1b);
	wr(MCR, 0x1f);
	wr(FCR, 0x01);
	wr(SCR, 0x77);
	for (i = 0; i < 40; i++)		/* around the ring's end */
		wr(DATA, 'z'), rd(DATA);
	for (i = 0; i < 50; i++)
		wr(DATA, (uint8_t)i);
	wr(IER, 0x03);
	w = rig_save(uart);
	close(con[0]);
	close(con[1]);
	rig_free(&m);

	make(1, 1);
	assert_ok(rig_load(&m, uart, w.data, w.len, &err));
	assert_int_equal(rd(LCR), 0x1b);
	assert_int_equal(rd(MCR), 0x1f);
	assert_int_equal(rd(SCR), 0x77);
	assert_int_equal(rd(IER), 0x03);
	assert_int_equal(rd(IIR), 0xc4);
	for (i = 0; i < 50; i++)
		assert_int_equal(rd(DATA), i);
	assert_int_equal(rd(IIR), 0xc2);
	wr(LCR, 0x80);
	assert_int_equal(rd(DATA), 0x0c);
	assert_int_equal(rd(IER), 0x01);
	wr(LCR, 0);
	/* And the line goes on to work. */
	wr(MCR, 0);
	wr(DATA, 'k');
	expect_console("k");
	i = pulses();
	type("r");
	await_pulse(i);
	assert_int_equal(rd(DATA), 'r');
	free(w.data);
}

/* Whatever is loaded: an error or a device that stays within its bounds. */
static void test_load_anything(void **state)
{
	unsigned int i, k, seed = 1;
	uint8_t data[200];
	struct writer w;
	size_t n;

	(void)state;
	for (i = 0; i < 30; i++)
		wr(MCR, 0x10), wr(DATA, 'x');
	w = rig_save(uart);
	for (n = 0; n < w.len; n++)
		assert_fails(rig_load(&m, uart, w.data, n, &err), VMM_EFORMAT, UART_NAME);
	w.data[9] = 65;
	assert_fails(rig_load(&m, uart, w.data, w.len, &err), VMM_EFORMAT, "65 bytes received");
	rd(LSR);
	rd(DATA);
	for (i = 0; i < 400; i++) {
		for (k = 0; k < sizeof(data); k++)
			data[k] = (uint8_t)rand_r(&seed);
		if (rig_load(&m, uart, data, (size_t)rand_r(&seed) % sizeof(data), &err))
			rig_reset(&m, uart);
		send(con[0], "i", 1, MSG_DONTWAIT);
		for (k = 0; k < 8; k++)
			rd(k);
		wr(LCR, 0);
		wr(IER, 0x03);
		for (k = 0; k < 100; k++)
			rd(DATA);
	}
	free(w.data);
}

static void test_reset(void **state)
{
	(void)state;
	wr(MCR, 0x10);
	wr(DATA, 'x');
	wr(SCR, 1);
	wr(LCR, 3);
	wr(IER, 3);
	rig_reset(&m, uart);
	assert_int_equal(rd(LSR), 0x60);
	assert_int_equal(rd(IIR), 0x01);
	assert_int_equal(rd(MCR) | rd(SCR) | rd(LCR) | rd(IER), 0);
	/* What comes then is heard. */
	wr(IER, 0x01);
	type("n");
	while (!(rd(LSR) & 1))
		nap_ms(1);
	assert_int_equal(rd(DATA), 'n');
}

int main(void)
{
#define T(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(test_power_on), T(test_registers), T(test_loopback), T(test_wide_access),
		T(test_transmit_interrupt), T(test_receive_interrupt), T(test_priority),
		T(test_flood_by_interrupt), T(test_flood_by_polling), T(test_input_flood),
		T(test_input_shared), T(test_input_while_full), T(test_hang_up),
		cmocka_unit_test_teardown(test_no_descriptors, teardown), T(test_add_errors),
		T(test_save_load), T(test_load_anything), T(test_reset),
	};

	time_limit(20);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
