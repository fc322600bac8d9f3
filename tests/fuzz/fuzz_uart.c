/* SPDX-License-Identifier: MIT */
/*
 * fuzz_uart.c - register accesses in any order, with a host that types, reads
 * or does not; saved, loaded and reset in between.
 *
 * Bytes of input: what to do, then what with.  The I/O thread is played here,
 * so that a run is the same every time.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../../riscv/map.h"
#include "../../riscv/platform.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t fuzz_seed(unsigned int n, uint8_t *buf, size_t cap);

static struct machine m;
static struct device *uart;
static int con[2];

static void set_up(void)
{
	const struct log log = { NULL, NULL };
	const int little = 4096;

	if (machine_init(&m, "fuzz", &log, NULL) ||
	    socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, con) ||
	    uart_add(&m, con[1], con[1], NULL))
		abort();
	setsockopt(con[1], SOL_SOCKET, SO_SNDBUF, &little, sizeof(little));
	uart = machine_device(&m, UART_NAME);
}

/* What the I/O thread would do now. */
static void turn(void)
{
	struct epoll_event ev[4];
	int i, n = epoll_wait(m.loop.epfd, ev, 4, 0);

	for (i = 0; i < n; i++) {
		struct io *io = ev[i].data.ptr;

		if (ev[i].data.ptr != &m.loop && io->watched)
			io->fn(io->arg, ev[i].events);
	}
}

/* Saved and loaded it is what it was. */
static void round_trip(void)
{
	struct writer a = { 0 }, b = { 0 };
	struct reader r;

	uart->ops->save(uart, &a);
	r = (struct reader){ a.data, a.len, 0 };
	if (uart->ops->load(uart, &r, NULL))
		abort();
	uart->ops->save(uart, &b);
	if (a.len != b.len || memcmp(a.data, b.data, a.len) != 0)
		abort();
	free(a.data);
	free(b.data);
}

static void load_anything(const uint8_t *p, size_t n)
{
	struct reader r = { p, n, 0 };

	if (uart->ops->load(uart, &r, NULL))
		uart->ops->reset(uart);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static uint8_t junk[70000];
	size_t i = 0, n;
	uint64_t v;

	if (!uart)
		set_up();
	uart->ops->reset(uart);
	while (i + 1 < size) {
		uint8_t op = data[i++], arg = data[i++];

		switch (op & 15) {
		case 0: case 1: case 2:
			bus_read(&m.bus, MAP_UART + (arg & 7), 1u << (op >> 4 & 3), &v);
			if (v > 0xff)
				abort();
			break;
		case 3: case 4: case 5: case 6:
			bus_write(&m.bus, MAP_UART + (op >> 4 & 7), 1, arg);
			break;
		case 7:
			bus_read(&m.bus, MAP_UART + arg, 8, &v);
			bus_write(&m.bus, MAP_UART + arg, 8, ~v);
			break;
		case 8:
			n = (size_t)write(con[0], junk, arg);
			break;
		case 9:
			n = (size_t)read(con[0], junk, arg * 256u);
			memset(junk, 0, sizeof(junk));
			break;
		case 10: case 11:
			turn();
			break;
		case 12:
			n = uart_put(uart, junk, arg * 256u);
			if (n > arg * 256u)
				abort();
			break;
		case 13:
			n = uart_get(uart, junk, arg);
			if (n > arg)
				abort();
			break;
		case 14:
			round_trip();
			break;
		default:
			n = arg < size - i ? arg : size - i;
			load_anything(data + i, n);
			i += n;
			break;
		}
		bus_read(&m.bus, MAP_UART + 5, 1, &v);
		if (v & ~0x61ull)
			abort();
	}
	return 0;
}

size_t fuzz_seed(unsigned int n, uint8_t *buf, size_t cap)
{
	/* Linux' probe and output; input by interrupt; loopback; a flood. */
	static const uint8_t seed[4][64] = {
		{ 0x13, 0, 0x33, 0x03, 0x23, 0x01, 0x43, 0x0b, 0, 5, 0x03, 'h', 0x03, 'i', 0, 2,
		  0x13, 0x02, 0, 2, 10, 0, 9, 4 },
		{ 0x13, 0x01, 8, 70, 10, 0, 0, 2, 0, 5, 0, 0, 0, 0, 10, 0, 14, 0, 13, 64, 0, 0 },
		{ 0x43, 0x10, 0x03, 'x', 0x03, 'y', 0, 6, 0, 0, 14, 0, 0x23, 0x03, 0x43, 0, 0, 5 },
		{ 12, 255, 12, 255, 0x13, 0x02, 0x03, 'f', 0, 2, 9, 255, 10, 0, 0, 2, 9, 255, 10, 0,
		  15, 12, 3, 1, 0x1b, 0x1f, 7, 0, 0, 1, 2, 2, 'a', 'b' },
	};

	if (n >= 4 || cap < 64)
		return 0;
	memcpy(buf, seed[n], 64);
	return 64;
}
