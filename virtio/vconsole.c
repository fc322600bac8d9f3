/* SPDX-License-Identifier: MIT */
/*
 * vconsole.c - virtio console (virtio 1.2, 5.3): a terminal, and ports with
 * names, which the guest finds as /dev/virtio-ports/NAME.
 *
 * Each port has a stream (core/stream.h) and two queues.  Bytes go from one to
 * the other without a buffer in between: input is read when the guest has
 * offered room for it, output is taken from a request as far as the stream has
 * room, and the request goes back to its ring until there is more.
 *
 * With more than one port, or a name, there is a pair of control queues
 * (VIRTIO_CONSOLE_F_MULTIPORT).  What the guest is still to be told about a
 * port is a set of bits, sent when it offers buffers: it cannot make us keep a
 * list of messages.  Input of a named port waits until the guest opens it, for
 * a driver drops what comes before.
 *
 * Not done: adding and removing ports while the guest runs.
 *
 * I/O lock held.  Saved: names, what the guest has opened and what it is owed,
 * and how much of a request has been written.  Streams are not.
 */
#include <stdlib.h>
#include <string.h>

#include <linux/virtio_console.h>
#include <linux/virtio_ids.h>

#include "../core/stream.h"
#include "devices.h"

#define VCON_NAME	32u
#define VCON_TURN	(256u << 10)	/* bytes written before others have a turn */

/* What the guest is to be told about a port, in this order. */
enum { VCON_ADD = 1, VCON_TERMINAL = 2, VCON_NAMED = 4, VCON_OPEN = 8, VCON_SIZE = 16 };

struct vcon_port {
	struct vcon	*con;
	struct queue	*rx, *tx;
	struct stream	stream;
	uint32_t	id;
	char		name[VCON_NAME];	/* empty: a terminal */
	uint8_t		owed;		/* VCON_* */
	uint8_t		open;		/* by the guest */
	uint32_t	done;		/* bytes written of the first request of tx */
};

struct vcon {
	struct virtio	v;
	struct virtio_console_config config;
	uint32_t	nports;
	struct vcon_port port[CONSOLE_PORTS];
};

static int vcon_multiport(const struct vcon *con)
{
	return virtio_has(&con->v, VIRTIO_CONSOLE_F_MULTIPORT);
}

/* 5.3.2: the control queues come second. */
static uint32_t vcon_queue_of(uint32_t port)
{
	return port ? 2 * port + 2 : 0;
}

/* ---- Bytes ------------------------------------------------------------------- */

/* From the stream to the guest: called when either has something new. */
static void vcon_receive(void *arg)
{
	struct vcon_port *p = arg;
	uint32_t turns = p->rx->num;
	struct chain c;
	uint16_t i;
	size_t n;

	if (p->name[0] && !p->open) {
		stream_want(&p->stream, 0);	/* or epoll would report it without end */
		return;
	}
	while (queue_pop(p->rx, &c)) {
		for (i = c.nout; i < c.nout + c.nin && !c.iov[i].iov_len; i++)
			;
		if (i == c.nout + c.nin) {
			virtio_fail(&p->con->v, "a buffer for input has no room");
			return;
		}
		if (!turns--) {
			queue_unpop(p->rx);
			queue_again(p->rx);
			break;
		}
		n = stream_read(&p->stream, c.iov[i].iov_base, c.iov[i].iov_len);
		if (!n) {
			queue_unpop(p->rx);
			queue_signal(p->rx);
			stream_want(&p->stream, 1);
			return;
		}
		queue_push(p->rx, c.head, (uint32_t)n);
	}
	/* No room: the next notification brings us back. */
	stream_want(&p->stream, 0);
	queue_signal(p->rx);
}

/* Write as much of a request as goes.  1: all of it. */
static int vcon_write(struct vcon_port *p, const struct chain *c, uint32_t *turn)
{
	uint8_t buf[4096];
	size_t n, taken;

	while (p->done < c->out_len) {
		if (!*turn) {
			queue_again(p->tx);
			return 0;
		}
		n = chain_read(c, p->done, buf, sizeof(buf));
		taken = stream_write(&p->stream, buf, n);
		p->done += (uint32_t)taken;
		*turn -= *turn < taken ? *turn : (uint32_t)taken;
		if (taken < n)
			return 0;	/* vcon_room() comes later */
	}
	p->done = 0;
	return 1;
}

/* From the guest to the stream. */
static void vcon_transmit(struct vcon_port *p)
{
	uint32_t turn = VCON_TURN;
	struct chain c;

	while (queue_pop(p->tx, &c)) {
		if (!vcon_write(p, &c, &turn)) {
			queue_unpop(p->tx);
			break;
		}
		queue_push(p->tx, c.head, 0);
	}
	queue_signal(p->tx);
}

static void vcon_room(void *arg)
{
	struct vcon_port *p = arg;

	if (p->con->v.active)
		queue_again(p->tx);
}

/* ---- Control messages (5.3.6.2) ------------------------------------------------- */

/* The message for one owed bit; returns its length. */
static size_t vcon_message(struct vcon_port *p, uint8_t owed, uint8_t *buf)
{
	struct virtio_console_control m = { p->id, 0, 1 };
	size_t n = sizeof(m);
	/* 5.3.6.2.  For years Linux took them in the other order. */
	const uint16_t size[2] = { p->con->config.cols, p->con->config.rows };

	switch (owed) {
	case VCON_ADD:
		m.event = VIRTIO_CONSOLE_PORT_ADD;
		break;
	case VCON_TERMINAL:
		m.event = VIRTIO_CONSOLE_CONSOLE_PORT;
		break;
	case VCON_NAMED:
		m.event = VIRTIO_CONSOLE_PORT_NAME;
		memcpy(buf + n, p->name, strlen(p->name));
		n += strlen(p->name);
		break;
	case VCON_SIZE:
		m.event = VIRTIO_CONSOLE_RESIZE;
		memcpy(buf + n, size, sizeof(size));
		n += sizeof(size);
		break;
	default:
		m.event = VIRTIO_CONSOLE_PORT_OPEN;
		break;
	}
	memcpy(buf, &m, sizeof(m));
	return n;
}

static void vcon_tell(struct vcon *con)
{
	struct queue *q = &con->v.queue[2];
	uint8_t buf[sizeof(struct virtio_console_control) + VCON_NAME];
	struct vcon_port *p;
	struct chain c;
	uint8_t owed;

	if (!vcon_multiport(con))
		return;
	for (p = con->port; p < con->port + con->nports; p++) {
		while (p->owed && queue_pop(q, &c)) {
			owed = (uint8_t)(p->owed & -p->owed);
			p->owed ^= owed;
			queue_push(q, c.head, (uint32_t)
				   chain_write(&c, 0, buf, vcon_message(p, owed, buf)));
		}
	}
	queue_signal(q);
}

static void vcon_heard(struct vcon *con, const struct chain *c)
{
	struct virtio_console_control m;
	struct vcon_port *p;
	uint32_t i;

	if (chain_read(c, 0, &m, sizeof(m)) != sizeof(m))
		return;
	if (m.event == VIRTIO_CONSOLE_DEVICE_READY) {
		for (i = 0; m.value && i < con->nports; i++)
			con->port[i].owed = VCON_ADD;
		return;
	}
	if (m.id >= con->nports)
		return;
	p = &con->port[m.id];
	if (m.event == VIRTIO_CONSOLE_PORT_READY && m.value) {
		p->owed |= p->name[0] ? VCON_NAMED | VCON_OPEN : VCON_TERMINAL | VCON_OPEN;
		if (!p->name[0] && con->config.cols)
			p->owed |= VCON_SIZE;
	} else if (m.event == VIRTIO_CONSOLE_PORT_OPEN) {
		p->open = m.value != 0;
		vcon_receive(p);
	}
}

static void vcon_notify(struct virtio *v, struct queue *q)
{
	struct vcon *con = (struct vcon *)v;
	struct vcon_port *p;
	struct chain c;
	uint32_t i = q->index;

	if (vcon_multiport(con) && (i == 2 || i == 3)) {
		while (i == 3 && queue_pop(q, &c)) {
			vcon_heard(con, &c);
			queue_push(q, c.head, 0);
		}
		if (i == 3)
			queue_signal(q);
		vcon_tell(con);
		return;
	}
	p = &con->port[i < 2 ? 0 : i / 2 - 1];
	if (i % 2)
		vcon_transmit(p);
	else
		vcon_receive(p);
}

/* ---- The device --------------------------------------------------------------------- */

/* 5.3.4: a character written here comes out, before there is any queue. */
static void vcon_config_write(struct virtio *v, uint32_t off, uint32_t len, uint64_t val)
{
	struct vcon *con = (struct vcon *)v;
	uint8_t byte = (uint8_t)val;

	(void)len;
	if (off == offsetof(struct virtio_console_config, emerg_wr))
		stream_write(&con->port[0].stream, &byte, 1);
}

static void vcon_activate(struct virtio *v)
{
	struct vcon *con = (struct vcon *)v;
	uint32_t i;

	for (i = 0; i < con->nports; i++)
		if (!con->port[i].name[0] || con->port[i].open)
			stream_want(&con->port[i].stream, 1);
}

static void vcon_reset(struct virtio *v)
{
	struct vcon *con = (struct vcon *)v;
	uint32_t i;

	for (i = 0; i < con->nports; i++) {
		struct vcon_port *p = &con->port[i];

		stream_want(&p->stream, 0);
		p->owed = p->open = 0;
		p->done = 0;
	}
}

/* What waits for room in a stream here finds another where it is restored. */
static void vcon_quiesce(struct virtio *v)
{
	struct vcon *con = (struct vcon *)v;
	uint32_t i;

	for (i = 0; i < con->nports; i++)
		if (con->port[i].stream.starved)
			queue_again(con->port[i].tx);
}

static void vcon_save(const struct virtio *v, struct writer *w)
{
	const struct vcon *con = (const struct vcon *)v;
	uint32_t i;

	put_u16(w, con->config.cols);
	put_u16(w, con->config.rows);
	put_u32(w, con->nports);
	for (i = 0; i < con->nports; i++) {
		put_str(w, con->port[i].name);
		put_u8(w, con->port[i].owed);
		put_u8(w, con->port[i].open);
		put_u32(w, con->port[i].done);
	}
}

static int vcon_load(struct virtio *v, struct reader *r, struct vmm_error *err)
{
	struct vcon *con = (struct vcon *)v;
	char name[VCON_NAME] = "";
	uint32_t i;

	con->config.cols = get_u16(r);
	con->config.rows = get_u16(r);
	if (get_u32(r) != con->nports)
		return fail(err, VMM_EFORMAT, "state of %s: it cannot have so many ports", v->name);
	for (i = 0; i < con->nports; i++) {
		struct vcon_port *p = &con->port[i];

		get_str(r, name, sizeof(name));
		memcpy(p->name, name, sizeof(p->name));
		p->owed = get_u8(r) & (VCON_ADD | VCON_TERMINAL | VCON_NAMED | VCON_OPEN | VCON_SIZE);
		p->open = get_u8(r) & 1;
		p->done = get_u32(r);
	}
	return 0;
}

static int vcon_set_queues(struct virtio *v, uint32_t n, struct vmm_error *err);

static void vcon_free(struct virtio *v)
{
	struct vcon *con = (struct vcon *)v;
	uint32_t i;

	for (i = 0; i < con->nports; i++)
		stream_close(&con->port[i].stream);
	virtio_fini(v);
	free(con);
}

static const struct virtio_ops vcon_ops = {
	.type		= "console",
	.id		= VIRTIO_ID_CONSOLE,
	.version	= 1,
	.notify		= vcon_notify,
	.activate	= vcon_activate,
	.reset		= vcon_reset,
	.config_write	= vcon_config_write,
	.quiesce	= vcon_quiesce,
	.save		= vcon_save,
	.load		= vcon_load,
	.set_queues	= vcon_set_queues,
	.free		= vcon_free,
};

/* ---- Ports ---------------------------------------------------------------------- */

static int vcon_add(struct vcon *con, const struct console_port *cfg, struct vmm_error *err)
{
	struct vcon_port *p = &con->port[con->nports];
	const char *name = cfg->name ? cfg->name : "";

	memset(p, 0, sizeof(*p));
	p->con = con;
	p->id = con->nports++;
	if (strlen(name) >= sizeof(p->name))
		return fail(err, VMM_EINVAL, "%s: the name of port %u is too long", con->v.name,
			    p->id);
	memcpy(p->name, name, strlen(name));
	return stream_open(&p->stream, con->v.env.loop, cfg->in_fd, cfg->out_fd, vcon_receive,
			   vcon_room, p, err);
}

/* Each port to its queues, and the guest is to know of them. */
static void vcon_describe(struct vcon *con)
{
	struct vcon_port *p;

	for (p = con->port; p < con->port + con->nports; p++) {
		p->rx = &con->v.queue[vcon_queue_of(p->id)];
		p->tx = p->rx + 1;
	}
	con->v.offers &= ~(1ull << VIRTIO_CONSOLE_F_MULTIPORT);
	if (con->v.nqueues > 2)
		con->v.offers |= 1ull << VIRTIO_CONSOLE_F_MULTIPORT;
	con->config.max_nr_ports = con->nports;
	virtio_config_changed(&con->v);
}

/* As it was saved: names come later. */
static int vcon_set_queues(struct virtio *v, uint32_t n, struct vmm_error *err)
{
	const struct console_port none = { NULL, -1, -1 };
	struct vcon *con = (struct vcon *)v;
	uint32_t nports = n == 2 ? 1 : n / 2 - 1;
	int r;

	if (!n || n % 2 || nports > CONSOLE_PORTS)
		return fail(err, VMM_EFORMAT, "%s: a console with %u queues", v->name, n);
	r = virtio_set_queues(v, n, err);
	while (!r && con->nports > nports)
		stream_close(&con->port[--con->nports].stream);
	while (!r && con->nports < nports)
		r = vcon_add(con, &none, err);
	if (!r)
		vcon_describe(con);
	return r;
}

/* ---- From outside ---------------------------------------------------------------------- */

int console_new(struct virtio **out, const struct virtio_env *env, const char *name,
		const struct console_port *ports, uint32_t nports, struct vmm_error *err)
{
	struct vcon *con = calloc(1, sizeof(*con));
	int multiport = nports > 1 || (nports && ports[0].name), r;
	uint32_t i;

	*out = NULL;
	if (!con)
		return fail(err, VMM_ENOMEM, "%s", name);
	if (!nports || nports > CONSOLE_PORTS)
		r = fail(err, VMM_EINVAL, "%s: 1 to %u ports, not %u", name, CONSOLE_PORTS, nports);
	else
		r = virtio_init(&con->v, &vcon_ops, env, name, multiport ? 2 * nports + 2 : 2, err);
	for (i = 0; !r && i < nports; i++)
		r = vcon_add(con, &ports[i], err);
	if (r) {
		vcon_free(&con->v);
		return r;
	}
	con->v.offers |= 1ull << VIRTIO_CONSOLE_F_SIZE | 1ull << VIRTIO_CONSOLE_F_EMERG_WRITE;
	vcon_describe(con);
	con->v.config = &con->config;
	con->v.config_size = sizeof(con->config);
	*out = &con->v;
	return 0;
}

int console_port(const struct virtio *v, const char *name)
{
	const struct vcon *con = (const struct vcon *)v;
	uint32_t i;

	for (i = 0; i < con->nports; i++)
		if (strcmp(con->port[i].name, name) == 0)
			return (int)i;
	return -1;
}

int console_add_port(struct virtio *v, const struct console_port *port, struct vmm_error *err)
{
	struct vcon *con = (struct vcon *)v;
	int r;

	if (console_port(v, port->name) >= 0)
		return fail(err, VMM_EINVAL, "%s has a port %s already", v->name, port->name);
	if (con->nports == CONSOLE_PORTS)
		return fail(err, VMM_ENOTSUP, "%s: more than %u ports", v->name, CONSOLE_PORTS);
	r = vcon_add(con, port, err);
	if (!r)
		r = virtio_set_queues(v, 2 * con->nports + 2, err);
	if (r)
		stream_close(&con->port[--con->nports].stream);
	else
		vcon_describe(con);
	return r;
}

int console_replace(struct virtio *v, uint32_t port, int in_fd, int out_fd, struct vmm_error *err)
{
	struct vcon *con = (struct vcon *)v;
	struct vcon_port *p;
	struct stream new;
	int r;

	if (port >= con->nports)
		return fail(err, VMM_EINVAL, "%s has no port %u", v->name, port);
	p = &con->port[port];
	r = stream_open(&new, v->env.loop, in_fd, out_fd, vcon_receive, vcon_room, p, err);
	if (r)
		return r;
	stream_close(&p->stream);
	p->stream = new;		/* it is not watched yet, and may move */
	p->stream.in.arg = p->stream.out.arg = &p->stream;
	if (v->active)
		vcon_activate(v);
	return 0;
}

void console_resize(struct virtio *v, uint16_t cols, uint16_t rows)
{
	struct vcon *con = (struct vcon *)v;

	con->config.cols = cols;
	con->config.rows = rows;
	virtio_config_changed(v);
	if (v->active && vcon_multiport(con) && !con->port[0].name[0]) {
		con->port[0].owed |= VCON_SIZE;
		vcon_tell(con);
	}
}
