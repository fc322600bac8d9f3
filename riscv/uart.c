/* SPDX-License-Identifier: MIT */
/*
 * uart.c - the serial port: an ns16550a with a console stream behind it.
 *
 * After the data sheet of the PC16550D.  There is no baud rate: a byte written
 * has left at once, unless the host cannot take it; then THRE stays clear and
 * the guest waits.  What a driver may look for is there (FIFO, loopback, divisor
 * latch, scratch); line errors and modem signals never change.
 *
 * The interrupt is an edge: a pulse is sent when a condition becomes true that
 * was not, and a driver that reads IIR until nothing is left misses none.
 *
 * The SBI console (sbi.c) shares the stream.  Input goes to whoever reads: the
 * UART takes bytes off the stream only when its driver asks for them, by
 * enabling the interrupt or by looking at LSR.
 *
 * Saved: every register, and received bytes not yet read.  I/O lock held.
 */
#include <stdlib.h>
#include <string.h>

#include "../core/stream.h"
#include "map.h"
#include "platform.h"

enum { UART_DATA = 0, UART_IER = 1, UART_IIR = 2, UART_LCR = 3, UART_MCR = 4, UART_LSR = 5,
       UART_MSR = 6, UART_SCR = 7 };

#define IER_RX		0x01u
#define IER_TX		0x02u
#define IIR_NONE	0x01u
#define IIR_TX		0x02u
#define IIR_RX		0x04u
#define IIR_FIFO	0xc0u
#define FCR_ENABLE	0x01u
#define FCR_CLEAR_RX	0x02u
#define LCR_DLAB	0x80u
#define MCR_LOOP	0x10u
#define LSR_DR		0x01u
#define LSR_THRE	0x60u	/* and the shift register empty */
#define MSR_IDLE	0xb0u	/* carrier, data set ready, clear to send */

#define UART_FIFO	64u

_Static_assert(STREAM_LOW >= UART_FIFO, "room that is not scarce is for a whole FIFO");

struct uart {
	struct device	dev;
	struct stream	stream;
	/* What the guest can see, and a snapshot keeps. */
	uint8_t		ier, fcr, lcr, mcr, scr, dll, dlm;
	uint8_t		tx_empty;	/* "transmitter empty" not yet told */
	uint8_t		told;		/* IER bits that a pulse was sent for */
	uint8_t		rx[UART_FIFO];
	uint32_t	rx_head, rx_len;
	/* What only the host knows. */
	int		ready;		/* the stream has input for who asks */
};

/* THRE: a driver that finds it set writes a FIFO's worth of bytes at once. */
static int uart_thre(const struct uart *u)
{
	return stream_room(&u->stream) >= STREAM_LOW;
}

static void uart_update(struct uart *u)
{
	uint8_t now = 0;

	if (u->rx_len)
		now |= IER_RX;
	if (u->tx_empty && uart_thre(u))
		now |= IER_TX;
	now &= u->ier;
	if (now & ~u->told)
		irq_pulse(&u->dev.irq);
	u->told = now;
}

/* Move what the stream has into the FIFO. */
static void uart_fill(struct uart *u)
{
	uint8_t buf[UART_FIFO];
	size_t n, i;

	n = stream_read(&u->stream, buf, UART_FIFO - u->rx_len);
	for (i = 0; i < n; i++)
		u->rx[(u->rx_head + u->rx_len++) % UART_FIFO] = buf[i];
	u->ready = 0;
	/* Listen for more once there is room for it. */
	stream_want(&u->stream, u->rx_len < UART_FIFO);
}

static void uart_input(void *arg)
{
	struct uart *u = arg;

	if (u->ier & IER_RX) {
		uart_fill(u);
		uart_update(u);
	} else {
		/* Nobody listens yet: it can wait where it is. */
		u->ready = 1;
		stream_want(&u->stream, 0);
	}
}

static void uart_room(void *arg)
{
	struct uart *u = arg;

	u->tx_empty = 1;
	uart_update(u);
}

static uint8_t uart_take(struct uart *u)
{
	uint8_t byte;

	if (!u->rx_len)
		return 0;
	byte = u->rx[u->rx_head];
	u->rx_head = (u->rx_head + 1) % UART_FIFO;
	/* Not before the last byte is gone: one turn of the I/O thread for a
	   FIFO of input, and a driver that drains it comes to an end. */
	if (--u->rx_len == 0)
		stream_want(&u->stream, 1);
	return byte;
}

static uint8_t uart_iir(struct uart *u)
{
	uint8_t id = IIR_NONE;

	if (u->rx_len && u->ier & IER_RX) {
		id = IIR_RX;
	} else if (u->tx_empty && u->ier & IER_TX && uart_thre(u)) {
		id = IIR_TX;
		u->tx_empty = 0;	/* reading it is the acknowledgement */
	}
	return id | (u->fcr & FCR_ENABLE ? IIR_FIFO : 0);
}

static uint64_t uart_read(void *dev, uint64_t off, unsigned int len)
{
	struct uart *u = dev;
	uint8_t val = 0;

	(void)len;
	switch (off) {
	case UART_DATA:
		val = u->lcr & LCR_DLAB ? u->dll : uart_take(u);
		break;
	case UART_IER:
		val = u->lcr & LCR_DLAB ? u->dlm : u->ier;
		break;
	case UART_IIR:
		val = uart_iir(u);
		break;
	case UART_LCR:
		val = u->lcr;
		break;
	case UART_MCR:
		val = u->mcr;
		break;
	case UART_LSR:
		if (u->ready)
			uart_fill(u);
		val = (uint8_t)((u->rx_len ? LSR_DR : 0) | (uart_thre(u) ? LSR_THRE : 0));
		break;
	case UART_MSR:
		/* In loopback the outputs of MCR come back as inputs. */
		val = MSR_IDLE;
		if (u->mcr & MCR_LOOP)
			val = (uint8_t)((u->mcr & 0x0c) << 4 | (u->mcr & 2) << 3 | (u->mcr & 1) << 5);
		break;
	case UART_SCR:
		val = u->scr;
		break;
	default:
		break;
	}
	uart_update(u);
	return val;
}

static void uart_transmit(struct uart *u, uint8_t byte)
{
	if (u->mcr & MCR_LOOP) {
		if (u->rx_len < UART_FIFO)
			u->rx[(u->rx_head + u->rx_len++) % UART_FIFO] = byte;
	} else {
		stream_write(&u->stream, &byte, 1);
	}
	u->tx_empty = 1;
}

static void uart_write(void *dev, uint64_t off, unsigned int len, uint64_t wide)
{
	struct uart *u = dev;
	uint8_t val = (uint8_t)wide;

	(void)len;
	switch (off) {
	case UART_DATA:
		if (u->lcr & LCR_DLAB)
			u->dll = val;
		else
			uart_transmit(u, val);
		break;
	case UART_IER:
		if (u->lcr & LCR_DLAB) {
			u->dlm = val;
			break;
		}
		if (val & ~u->ier & IER_TX)
			u->tx_empty = 1;
		u->ier = val & 0x0f;
		if (u->ready && u->ier & IER_RX)
			uart_fill(u);
		break;
	case UART_IIR:			/* FCR */
		if (val & FCR_CLEAR_RX) {
			u->rx_len = 0;
			stream_want(&u->stream, 1);
		}
		u->fcr = val & FCR_ENABLE;
		break;
	case UART_LCR:
		u->lcr = val;
		break;
	case UART_MCR:
		u->mcr = val & 0x1f;
		break;
	case UART_SCR:
		u->scr = val;
		break;
	default:
		break;
	}
	uart_update(u);
}

size_t uart_put(struct device *d, const void *p, size_t n)
{
	return d ? stream_write(&((struct uart *)d)->stream, p, n) : n;
}

size_t uart_get(struct device *d, void *p, size_t n)
{
	struct uart *u = (struct uart *)d;
	size_t got;

	if (!u)
		return 0;
	got = stream_read(&u->stream, p, n);
	if (u->ready && got < n) {
		u->ready = 0;
		stream_want(&u->stream, 1);
	}
	return got;
}

static void uart_reset(struct device *d)
{
	struct uart *u = (struct uart *)d;

	u->ier = u->fcr = u->lcr = u->mcr = u->scr = u->dll = u->dlm = 0;
	u->tx_empty = u->told = 0;
	u->rx_len = 0;
	stream_want(&u->stream, 1);
}

static void uart_save(const struct device *d, struct writer *w)
{
	const struct uart *u = (const struct uart *)d;
	uint32_t i;

	put_u8(w, u->ier);
	put_u8(w, u->fcr);
	put_u8(w, u->lcr);
	put_u8(w, u->mcr);
	put_u8(w, u->scr);
	put_u8(w, u->dll);
	put_u8(w, u->dlm);
	put_u8(w, u->tx_empty);
	put_u8(w, u->told);
	put_u8(w, (uint8_t)u->rx_len);
	for (i = 0; i < u->rx_len; i++)
		put_u8(w, u->rx[(u->rx_head + i) % UART_FIFO]);
}

static int uart_load(struct device *d, struct reader *r, struct vmm_error *err)
{
	struct uart *u = (struct uart *)d;
	uint32_t n;

	u->ier = get_u8(r) & 0x0f;
	u->fcr = get_u8(r) & FCR_ENABLE;
	u->lcr = get_u8(r);
	u->mcr = get_u8(r) & 0x1f;
	u->scr = get_u8(r);
	u->dll = get_u8(r);
	u->dlm = get_u8(r);
	u->tx_empty = get_u8(r) & 1;
	u->told = get_u8(r) & 0x0f;
	n = get_u8(r);
	u->rx_head = u->rx_len = 0;
	if (n > UART_FIFO)
		return fail(err, VMM_EFORMAT, "state of %s: %u bytes received", d->name, n);
	u->rx_len = n;
	get_bytes(r, u->rx, n);
	u->ready = 0;
	stream_want(&u->stream, u->rx_len < UART_FIFO);
	return reader_end(r, d->name, err);
}

static void uart_free(struct device *d)
{
	stream_close(&((struct uart *)d)->stream);
	free(d);
}

int uart_replace(struct device *d, int in_fd, int out_fd, struct vmm_error *err)
{
	struct uart *u = (struct uart *)d;
	struct stream old = u->stream;
	struct loop *loop = old.loop;
	int rc;

	rc = stream_open(&u->stream, loop, in_fd, out_fd, uart_input, uart_room, u, err);
	if (rc) {
		u->stream = old;
		return rc;
	}
	stream_close(&old);
	stream_want(&u->stream, u->rx_len < UART_FIFO);
	return 0;
}

static const struct bus_ops uart_bus = { uart_read, uart_write };

static const struct device_ops uart_ops = {
	.type		= "serial",
	.version	= 1,
	.bus		= &uart_bus,
	.reset		= uart_reset,
	.save		= uart_save,
	.load		= uart_load,
	.free		= uart_free,
};

int uart_add(struct machine *m, int in_fd, int out_fd, struct vmm_error *err)
{
	struct uart *u = calloc(1, sizeof(*u));
	int r;

	if (!u)
		return fail(err, VMM_ENOMEM, "serial port");
	u->dev = (struct device){
		.ops = &uart_ops, .name = UART_NAME, .gpa = MAP_UART, .size = 0x100,
		.irq.line = IRQ_UART, .compatible = "ns16550a",
		.cell_name = "clock-frequency", .cell = 1843200,
	};
	r = stream_open(&u->stream, &m->loop, in_fd, out_fd, uart_input, uart_room, u, err);
	if (r) {
		free(u);
		return r;
	}
	r = stream_want(&u->stream, 1);
	if (r < 0) {
		uart_free(&u->dev);
		return fail_sys(err, -r, "console input, descriptor %d", in_fd);
	}
	return machine_add(m, &u->dev, err);
}
