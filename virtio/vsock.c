/* SPDX-License-Identifier: MIT */
/*
 * vsock.c - virtio socket device (virtio 1.2, 5.10): streams between programs
 * in the guest and sockets of this process.  No vhost module, no /dev/vsock.
 *
 * Each connection is an AF_UNIX socket: its other end is the host program's.
 * What the guest sends goes into that socket at once, on the thread that took
 * the notification, unless it is much; what the program sends is read straight
 * into the guest's buffers.  A packet therefore costs one copy, and an answer
 * one switch of threads.
 *
 * Memory.  Bytes count as forwarded, and are given back to the guest as credit,
 * when the socket has taken them.  Only what it does not take is kept here, and
 * a guest that keeps to its credit cannot make that more than the connection's
 * window.  In the other direction nothing is read before there is both credit
 * and a buffer: what waits, waits in the socket.
 *
 * What the guest is to be told is a set of bits in each connection, sent in
 * order of arrival when it offers buffers.  Answers to packets that belong to
 * no connection are kept in a short list; if that is full the guest's packets
 * wait in their ring (5.10.6.1.2).
 *
 * A guest that breaks the rules loses the connection, and nothing else.
 *
 * Not done: SEQPACKET; datagrams; other CIDs than the guest's and the host's.
 *
 * I/O lock held.  Saved: the CID.  Connections are not: a restored guest is
 * told that they are gone (TRANSPORT_RESET), and until it has heard that none
 * is made.
 */
#include <errno.h>
#include <poll.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <linux/virtio_ids.h>
#include <linux/virtio_ring.h>

#include "../core/clock.h"
#include "vsock.h"

#define VSOCK_F_STREAM	0		/* 5.10.3 */
#define VSOCK_HDR	((uint32_t)sizeof(struct virtio_vsock_hdr))
#define VSOCK_BOTH	((uint32_t)(VIRTIO_VSOCK_SHUTDOWN_RCV | VIRTIO_VSOCK_SHUTDOWN_SEND))
#define VSOCK_MEMORY	(64u << 20)	/* shared out as windows */
#define VSOCK_SHARE	64u		/* of what is left of it, for one */
#define VSOCK_WINDOW_MAX (256u << 10)
#define VSOCK_WINDOW_MIN (16u << 10)
#define VSOCK_TURN	(64u << 10)	/* bytes before others have a turn */
#define VSOCK_AT_ONCE	(32u << 10)	/* bytes taken on the vCPU's thread */
#define VSOCK_SMALL	4096u		/* bytes of which the guest need not hear soon */
#define VSOCK_DELAY_NS	1000000
#define VSOCK_LOST_NS	500000000ull	/* to offer a buffer, to be told that all is lost */
#define VSOCK_TOLD_NS	5000000000ull	/* to take note of it: it may be slow */

/*
 * Packets of the guest that wait for room in the list of answers are taken up
 * when it offers buffers.  It may do so only when it has none left: so those
 * that it has offered must never be more than the answers.
 */
_Static_assert(VSOCK_RESETS >= QUEUE_SIZE_MAX, "answers for every buffer of a ring");

/* A turn of a connection ends because... */
enum { VSOCK_DONE, VSOCK_MORE, VSOCK_NO_ROOM, VSOCK_GONE };

/* ---- Connections ------------------------------------------------------------- */

static struct vsock_conn **vsock_bucket(struct vsock *vs, uint32_t port, uint32_t peer_port)
{
	uint32_t h = (port * 0x9e3779b1u) ^ (peer_port * 0x85ebca6bu);

	return &vs->table[(h ^ h >> 16) % VSOCK_HASH];
}

static void vsock_link(struct vsock_conn *c, struct vsock_conn **at)
{
	c->next = *at;
	if (c->next)
		c->next->link = &c->next;
	c->link = at;
	*at = c;
}

static void vsock_unlink(struct vsock_conn *c)
{
	if (c->next)
		c->next->link = c->link;
	*c->link = c->next;
}

struct vsock_conn *vsock_find(struct vsock *vs, uint32_t port, uint32_t peer_port)
{
	struct vsock_conn *c = *vsock_bucket(vs, port, peer_port);

	while (c && (c->port != port || c->peer_port != peer_port))
		c = c->next;
	return c;
}

static void vsock_on_socket(void *arg, uint32_t events);

struct vsock_conn *vsock_conn_new(struct vsock *vs, int fd, uint32_t port, uint32_t peer_port,
				  uint8_t state)
{
	struct vsock_conn *c = calloc(1, sizeof(*c));
	int size;

	if (!c) {
		close(fd);
		return NULL;
	}
	c->vs = vs;
	c->io = (struct io){ .fn = vsock_on_socket, .arg = c, .fd = fd };
	c->port = port;
	c->peer_port = peer_port;
	c->state = state;
	/* The less is left, the smaller the window; some have the least, whatever is. */
	c->window = vs->windows < VSOCK_MEMORY ? (VSOCK_MEMORY - vs->windows) / VSOCK_SHARE : 0;
	if (c->window > VSOCK_WINDOW_MAX)
		c->window = VSOCK_WINDOW_MAX;
	if (c->window < VSOCK_WINDOW_MIN)
		c->window = VSOCK_WINDOW_MIN;
	vs->windows += c->window;
	vs->nconns++;
	/* The socket keeps bytes, too, and fills first.  The kernel doubles this. */
	size = (int)c->window / 2;
	if (c->window < VSOCK_WINDOW_MAX)
		setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
	vsock_link(c, vsock_bucket(vs, port, peer_port));
	return c;
}

/* Let it wait for buffers of the guest, behind the others. */
static void vsock_wait(struct vsock_conn *c)
{
	struct vsock *vs = c->vs;

	if (c->wait_link)
		return;
	c->wait_next = NULL;
	c->wait_link = vs->wait_tail;
	*vs->wait_tail = c;
	vs->wait_tail = &c->wait_next;
}

static void vsock_wait_end(struct vsock_conn *c)
{
	if (!c->wait_link)
		return;
	if (c->wait_next)
		c->wait_next->wait_link = c->wait_link;
	else
		c->vs->wait_tail = c->wait_link;
	*c->wait_link = c->wait_next;
	c->wait_link = NULL;
}

void vsock_owe(struct vsock_conn *c, uint8_t what)
{
	c->owed |= what;
	vsock_wait(c);
}

static void vsock_close(struct vsock_conn *c)
{
	if (c->io.fd < 0)
		return;
	loop_del(c->vs->v.env.loop, &c->io);
	c->vs->v.env.loop->lingering -= c->lingers;
	c->lingers = 0;
	close(c->io.fd);
	c->io.fd = -1;
}

void vsock_conn_free(struct vsock_conn *c)
{
	vsock_wait_end(c);
	vsock_unlink(c);
	vsock_close(c);
	c->vs->nconns--;
	c->vs->windows -= c->window;
	free(c->buf);
	free(c);
}

/*
 * The guest has closed it.  The host program is to read all that was sent, then
 * the end; what it has sent itself is thrown away first, or else the kernel
 * would make the end an error.
 */
static void vsock_hang_up(struct vsock_conn *c)
{
	uint8_t scrap[4096];
	int n = VSOCK_WINDOW_MAX / sizeof(scrap);

	shutdown(c->io.fd, SHUT_RD);
	while (n-- && recv(c->io.fd, scrap, sizeof(scrap), MSG_DONTWAIT) > 0)
		;
	vsock_conn_free(c);
}

static void vsock_watch(struct vsock_conn *c);

/* The guest knows nothing of it any more. */
static void vsock_forget(struct vsock_conn *c)
{
	if (c->io.fd < 0) {
		vsock_conn_free(c);
		return;
	}
	if (!c->len) {
		vsock_hang_up(c);
		return;
	}
	vsock_wait_end(c);
	vsock_unlink(c);
	vsock_link(c, &c->vs->draining);
	c->state = VSOCK_DRAINING;
	c->owed = 0;
	vsock_watch(c);
}

/* The host program is gone.  Say so, and no more. */
static void vsock_finish(struct vsock_conn *c, uint8_t last)
{
	if (c->state == VSOCK_DRAINING) {
		vsock_conn_free(c);
		return;
	}
	vsock_close(c);
	free(c->buf);
	c->buf = NULL;
	c->len = 0;
	c->state = VSOCK_CLOSING;
	c->shut = VSOCK_BOTH;
	c->ready = 0;
	c->owed &= VSOCK_RESPONSE;
	vsock_owe(c, last);
}

/* Bytes that the guest takes now (5.10.6.3). */
static uint32_t vsock_credit(const struct vsock_conn *c)
{
	uint32_t used = c->tx_cnt - c->peer_fwd;

	return used < c->peer_alloc ? c->peer_alloc - used : 0;
}

/*
 * Watch the socket for what can be dealt with, or not at all: epoll reports an
 * end of the connection whether or not it is asked to.
 */
static void vsock_watch(struct vsock_conn *c)
{
	struct loop *loop = c->vs->v.env.loop;
	uint32_t events = c->len ? EPOLLOUT : 0;
	int on = c->len != 0;

	if (c->state == VSOCK_OPEN && c->eof) {
		on = 1;			/* for EPOLLHUP */
	} else if (c->state == VSOCK_OPEN && !c->wait_link && vsock_credit(c)) {
		events |= EPOLLIN;
		on = 1;
	}
	if (!on) {
		loop_del(loop, &c->io);
	} else if (c->io.watched) {
		if (events != c->watch)
			loop_mod(loop, &c->io, events);
	} else if (loop_add(loop, &c->io, events) < 0) {
		vsock_finish(c, VSOCK_RST);
		return;
	}
	c->watch = events;
	if (c->state == VSOCK_DRAINING && !c->lingers) {
		c->lingers = 1;
		loop->lingering++;
	}
}

/*
 * The loop has ended, and nobody has read these for a while.  Whoever reads them
 * later is to find an end, not to wait for a run that may never come.
 */
static void vsock_give_up(void *arg)
{
	struct vsock *vs = arg;

	while (vs->draining)
		vsock_conn_free(vs->draining);
}

/* ---- Packets to the guest ------------------------------------------------------- */

/* A buffer of the guest with room for a header and something more. */
static int vsock_take(struct vsock *vs, struct chain *c)
{
	if (!queue_pop(&vs->v.queue[VSOCK_RX], c))
		return 0;
	if (c->in_len > VSOCK_HDR)
		return 1;
	virtio_fail(&vs->v, "a receive buffer has no room");
	return 0;
}

/* In a buffer that has been taken; n bytes are behind the header already. */
static void vsock_put(struct vsock_conn *c, const struct chain *buf, uint16_t op, uint32_t flags,
		      uint32_t n)
{
	struct vsock *vs = c->vs;
	struct virtio_vsock_hdr h = {
		.src_cid = VSOCK_HOST, .dst_cid = vs->config.guest_cid,
		.src_port = c->port, .dst_port = c->peer_port,
		.len = n, .type = VIRTIO_VSOCK_TYPE_STREAM, .op = op, .flags = flags,
		.buf_alloc = c->window, .fwd_cnt = c->fwd_cnt,
	};

	c->fwd_told = c->fwd_cnt;
	c->owed &= (uint8_t)~VSOCK_CREDIT;
	chain_write(buf, 0, &h, sizeof(h));
	queue_push(&vs->v.queue[VSOCK_RX], buf->head, VSOCK_HDR + n);
}

/* Say all that is owed.  VSOCK_DONE, VSOCK_NO_ROOM or VSOCK_GONE. */
static int vsock_say(struct vsock_conn *c)
{
	struct chain *buf = &c->vs->rx[0];
	uint8_t what;

	while (c->owed) {
		if (!vsock_take(c->vs, buf))
			return VSOCK_NO_ROOM;
		what = (uint8_t)(c->owed & -c->owed);
		c->owed ^= what;
		if (what == VSOCK_REQUEST)
			vsock_put(c, buf, VIRTIO_VSOCK_OP_REQUEST, 0, 0);
		else if (what == VSOCK_RESPONSE)
			vsock_put(c, buf, VIRTIO_VSOCK_OP_RESPONSE, 0, 0);
		else if (what == VSOCK_CREDIT)
			vsock_put(c, buf, VIRTIO_VSOCK_OP_CREDIT_UPDATE, 0, 0);
		else if (what == VSOCK_SHUTDOWN)
			vsock_put(c, buf, VIRTIO_VSOCK_OP_SHUTDOWN, c->shut, 0);
		else
			vsock_put(c, buf, VIRTIO_VSOCK_OP_RST, 0, 0);
	}
	/* Nothing is kept for the guest's answer: to whatever it says of a
	   connection that is not there the answer is a reset. */
	if (c->state != VSOCK_CLOSING)
		return VSOCK_DONE;
	vsock_conn_free(c);
	return VSOCK_GONE;
}

/*
 * Take up to max buffers of the guest, and describe in iov what of them may be
 * filled: no header, no more than credit bytes in all.
 */
static uint32_t vsock_gather(struct vsock *vs, uint32_t max, uint32_t credit, struct iovec *iov,
			     size_t *niov, uint32_t *size)
{
	uint32_t n, skip, run;
	uint16_t i;

	*niov = *size = 0;
	for (n = 0; n < max && *size < credit && vsock_take(vs, &vs->rx[n]); n++) {
		const struct chain *c = &vs->rx[n];

		if (*niov + c->nin > CHAIN_MAX) {
			queue_unpop(&vs->v.queue[VSOCK_RX]);
			break;
		}
		for (skip = VSOCK_HDR, i = c->nout; i < c->nout + c->nin && *size < credit; i++) {
			run = (uint32_t)c->iov[i].iov_len;
			if (skip >= run) {
				skip -= run;
				continue;
			}
			run -= skip;
			if (run > credit - *size)
				run = credit - *size;
			iov[*niov].iov_base = (uint8_t *)c->iov[i].iov_base + skip;
			iov[(*niov)++].iov_len = run;
			*size += run;
			skip = 0;
		}
	}
	return n;
}

/* The host program has closed the connection, or its half of it. */
static void vsock_ended(struct vsock_conn *c)
{
	struct pollfd p = { .fd = c->io.fd };

	if (poll(&p, 1, 0) > 0 && (p.revents & POLLHUP)) {
		vsock_finish(c, VSOCK_SHUTDOWN);
		return;
	}
	c->eof = 1;
	c->shut |= VIRTIO_VSOCK_SHUTDOWN_SEND;
	vsock_owe(c, VSOCK_SHUTDOWN);
}

/*
 * From the socket to the guest.  VSOCK_MORE: others have their turn.  More than
 * one buffer is only taken when one was not enough.
 */
static int vsock_receive(struct vsock_conn *c)
{
	struct vsock *vs = c->vs;
	uint32_t batch = 1, turn = 0, credit, size, left, n, i, run;
	struct iovec iov[CHAIN_MAX];
	struct msghdr msg = { .msg_iov = iov };
	ssize_t r;

	c->ready = 0;
	while ((credit = vsock_credit(c))) {
		if (turn >= VSOCK_TURN)
			return VSOCK_MORE;
		n = vsock_gather(vs, batch, credit, iov, &msg.msg_iovlen, &size);
		if (!n) {
			c->ready = 1;
			return VSOCK_NO_ROOM;
		}
		do
			r = recvmsg(c->io.fd, &msg, MSG_DONTWAIT);
		while (r < 0 && errno == EINTR);
		left = r > 0 ? (uint32_t)r : 0;
		turn += left;
		for (i = 0; left; i++, left -= run) {
			run = vs->rx[i].in_len - VSOCK_HDR;
			if (run > left)
				run = left;
			c->tx_cnt += run;
			vsock_put(c, &vs->rx[i], VIRTIO_VSOCK_OP_RW, 0, run);
		}
		for (; i < n; i++)
			queue_unpop(&vs->v.queue[VSOCK_RX]);
		if (r == 0)
			vsock_ended(c);
		else if (r < 0 && errno != EAGAIN)
			vsock_finish(c, VSOCK_RST);
		if (r < (ssize_t)size)
			break;
		batch = VSOCK_BATCH;
	}
	return VSOCK_DONE;
}

void vsock_pump(struct vsock *vs, int data)
{
	struct queue *q = &vs->v.queue[VSOCK_RX];
	struct chain *buf = &vs->rx[0];
	struct vsock_conn *c;
	int r;

	for (; vs->nresets && vsock_take(vs, buf); vs->nresets--) {
		struct vsock_reset *to = &vs->reset[vs->reset_head++ % VSOCK_RESETS];
		struct virtio_vsock_hdr h = {
			.src_cid = to->src_cid, .dst_cid = to->dst_cid,
			.src_port = to->src_port, .dst_port = to->dst_port,
			.type = to->type, .op = VIRTIO_VSOCK_OP_RST,
		};

		chain_write(buf, 0, &h, sizeof(h));
		queue_push(q, buf->head, sizeof(h));
	}
	while (!vs->nresets && !vs->lost && (c = vs->wait)) {
		if (!c->owed && !data)
			break;
		r = vsock_say(c);
		if (r == VSOCK_DONE && c->ready && data)
			r = vsock_receive(c);
		if (r == VSOCK_NO_ROOM)
			break;
		/* Whoever has more is watched again: epoll takes turns. */
		if (r == VSOCK_GONE || c->owed || c->ready)
			continue;
		vsock_wait_end(c);
		if (c->state == VSOCK_OPEN)
			vsock_watch(c);
	}
	queue_signal(q);
}

/* ---- Packets of the guest --------------------------------------------------------- */

void vsock_refuse(struct vsock *vs, const struct virtio_vsock_hdr *h)
{
	struct vsock_reset *r;

	if (h->op == VIRTIO_VSOCK_OP_RST || vs->nresets == VSOCK_RESETS)
		return;
	r = &vs->reset[(vs->reset_head + vs->nresets++) % VSOCK_RESETS];
	*r = (struct vsock_reset){ h->dst_cid, h->src_cid, h->dst_port, h->src_port, h->type };
}

/*
 * The socket has taken n bytes more: the guest may send as many again.  It is
 * told when half a window has come together, if nothing else tells it before.
 */
static void vsock_forwarded(struct vsock_conn *c, uint32_t n)
{
	c->fwd_cnt += n;
	if (c->state == VSOCK_OPEN && c->fwd_cnt - c->fwd_told >= c->window / 2)
		vsock_owe(c, VSOCK_CREDIT);
}

/* Bytes the socket has taken; -1: nobody reads it any more. */
static int64_t vsock_send(struct vsock_conn *c, struct iovec *iov, size_t niov)
{
	struct msghdr msg = { .msg_iov = iov, .msg_iovlen = niov };
	ssize_t n;

	do
		n = sendmsg(c->io.fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return errno == EAGAIN || errno == ENOBUFS || errno == ENOMEM ? 0 : -1;
	vsock_forwarded(c, (uint32_t)n);
	return n;
}

/*
 * Nobody reads what the guest sends any more, and it is told so; but what there
 * is for it, or still comes, it gets.
 */
static void vsock_unread(struct vsock_conn *c)
{
	ssize_t r;
	char byte;

	free(c->buf);
	c->buf = NULL;
	c->head = c->len = 0;
	if (c->state == VSOCK_DRAINING || c->eof) {
		vsock_finish(c, VSOCK_SHUTDOWN);
		return;
	}
	do
		r = recv(c->io.fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
	while (r < 0 && errno == EINTR);
	if (r == 0 || (r < 0 && errno != EAGAIN)) {
		vsock_finish(c, r ? VSOCK_RST : VSOCK_SHUTDOWN);
		return;
	}
	vsock_forwarded(c, c->rx_cnt - c->fwd_cnt);
	c->shut |= VIRTIO_VSOCK_SHUTDOWN_RCV;
	vsock_owe(c, VSOCK_SHUTDOWN);
}

/* Keep len bytes of the packet from off on; the window has room for them. */
static int vsock_keep(struct vsock_conn *c, const struct chain *buf, uint32_t off, uint32_t len)
{
	uint32_t run, tail;

	if (!c->buf)
		c->buf = malloc(c->window);
	if (!c->buf)
		return -1;
	for (; len; len -= run, off += run) {
		tail = (c->head + c->len) % c->window;
		run = c->window - tail < len ? c->window - tail : len;
		if (chain_read(buf, off, c->buf + tail, run) != run)
			return -1;
		c->len += run;
	}
	return 0;
}

/* Write what was kept.  -1: nobody reads it any more. */
static int vsock_flush(struct vsock_conn *c)
{
	uint32_t run = c->window - c->head < c->len ? c->window - c->head : c->len;
	struct iovec iov[2] = { { c->buf + c->head, run }, { c->buf, c->len - run } };
	int64_t n = vsock_send(c, iov, 2);

	if (n < 0)
		return -1;
	c->head = (c->head + (uint32_t)n) % c->window;
	c->len -= (uint32_t)n;
	if (c->len)
		return 0;
	free(c->buf);
	c->buf = NULL;
	c->head = 0;
	if (c->peer_shut & VIRTIO_VSOCK_SHUTDOWN_SEND)
		shutdown(c->io.fd, SHUT_WR);
	return 0;
}

/* A packet with data.  0, or -1: the connection is to be reset. */
static int vsock_data(struct vsock_conn *c, struct chain *buf, uint32_t len)
{
	uint32_t i, first = 0, skip = VSOCK_HDR, left = len;
	int64_t n = 0;

	if (c->state != VSOCK_OPEN || (c->peer_shut & VIRTIO_VSOCK_SHUTDOWN_SEND) ||
	    len > buf->out_len - VSOCK_HDR || len > c->window - (c->rx_cnt - c->fwd_cnt))
		return -1;
	c->rx_cnt += len;
	if (c->shut & VIRTIO_VSOCK_SHUTDOWN_RCV) {
		vsock_forwarded(c, len);	/* it had not heard of that yet */
		return 0;
	}
	if (!c->len && len) {
		struct iovec iov[CHAIN_MAX];

		for (i = 0; left; i++) {
			struct iovec *v = &iov[first];

			*v = buf->iov[i];
			if (skip >= v->iov_len) {
				skip -= (uint32_t)v->iov_len;
				continue;
			}
			v->iov_base = (uint8_t *)v->iov_base + skip;
			v->iov_len -= skip;
			if (v->iov_len > left)
				v->iov_len = left;
			left -= (uint32_t)v->iov_len;
			skip = 0;
			first++;
		}
		n = vsock_send(c, iov, first);
		if (n < 0) {
			vsock_unread(c);
			return 0;
		}
	}
	if (n == len)
		return 0;
	if (vsock_keep(c, buf, VSOCK_HDR + (uint32_t)n, len - (uint32_t)n) < 0)
		return -1;
	vsock_watch(c);
	return 0;
}

/* 5.10.6.5.  Returns as vsock_data(). */
static int vsock_shut(struct vsock_conn *c, uint32_t flags)
{
	if (c->state != VSOCK_OPEN || !(flags & VSOCK_BOTH))
		return -1;
	flags &= ~c->peer_shut;
	c->peer_shut |= flags & VSOCK_BOTH;
	if ((c->peer_shut & VSOCK_BOTH) == VSOCK_BOTH)
		return -1;		/* which is the answer to that */
	if ((flags & VIRTIO_VSOCK_SHUTDOWN_SEND) && !c->len)
		shutdown(c->io.fd, SHUT_WR);
	if (flags & VIRTIO_VSOCK_SHUTDOWN_RCV) {
		shutdown(c->io.fd, SHUT_RD);
		c->eof = 1;
		c->ready = 0;
		vsock_watch(c);
	}
	return 0;
}

/* The guest wants to reach a program of the host. */
static int vsock_accept(struct vsock *vs, const struct virtio_vsock_hdr *h)
{
	int fd = vsock_dial(vs, h->dst_port);
	struct vsock_conn *c;

	c = fd < 0 ? NULL : vsock_conn_new(vs, fd, h->dst_port, h->src_port, VSOCK_OPEN);
	if (!c)
		return -1;
	c->peer_alloc = h->buf_alloc;
	c->peer_fwd = h->fwd_cnt;
	vsock_owe(c, VSOCK_RESPONSE);
	return 0;
}

/* One packet.  There is room for an answer that belongs to no connection. */
static void vsock_packet(struct vsock *vs, struct chain *buf)
{
	struct virtio_vsock_hdr h;
	struct vsock_conn *c;
	int r = -1;

	if (chain_read(buf, 0, &h, sizeof(h)) != sizeof(h)) {
		virtio_fail(&vs->v, "a packet has no header");
		return;
	}
	if (h.src_cid != vs->config.guest_cid || h.dst_cid != VSOCK_HOST ||
	    h.type != VIRTIO_VSOCK_TYPE_STREAM || !vsock_settled(vs)) {
		vsock_refuse(vs, &h);
		return;
	}
	c = vsock_find(vs, h.dst_port, h.src_port);
	if (!c) {
		if (h.op != VIRTIO_VSOCK_OP_REQUEST || vsock_accept(vs, &h) < 0)
			vsock_refuse(vs, &h);
		return;
	}
	c->peer_alloc = h.buf_alloc;
	c->peer_fwd = h.fwd_cnt;
	switch (h.op) {
	case VIRTIO_VSOCK_OP_RESPONSE:
		if (c->state == VSOCK_CALLING && !(c->owed & VSOCK_REQUEST)) {
			vsock_answer(c, 0);
			r = 0;
		}
		break;
	case VIRTIO_VSOCK_OP_RW:
		r = vsock_data(c, buf, h.len);
		break;
	case VIRTIO_VSOCK_OP_SHUTDOWN:
		r = vsock_shut(c, h.flags);
		break;
	case VIRTIO_VSOCK_OP_CREDIT_REQUEST:
		if (c->state == VSOCK_OPEN)
			vsock_owe(c, VSOCK_CREDIT);
		r = 0;
		break;
	case VIRTIO_VSOCK_OP_CREDIT_UPDATE:
		r = 0;
		break;
	default:			/* RST, and what is against the rules */
		break;
	}
	if (r == 0) {
		if (c->state == VSOCK_OPEN && !c->wait_link)
			vsock_watch(c);
		return;
	}
	if (c->state == VSOCK_CALLING) {
		if (h.op == VIRTIO_VSOCK_OP_RST && !(c->owed & VSOCK_REQUEST))
			vsock_answer(c, 1);
		return;
	}
	vsock_refuse(vs, &h);
	vsock_forget(c);
}

/* Its socket is ready, or gone. */
static void vsock_on_socket(void *arg, uint32_t events)
{
	struct vsock_conn *c = arg;
	struct vsock *vs = c->vs;

	if (c->len && vsock_flush(c) < 0) {
		vsock_unread(c);
		vsock_pump(vs, 1);
		return;
	}
	if (c->state == VSOCK_DRAINING) {
		if (!c->len)
			vsock_hang_up(c);
		return;
	}
	if (c->eof) {
		if (events & (EPOLLHUP | EPOLLERR))
			vsock_finish(c, VSOCK_SHUTDOWN);
	} else if (!c->wait_link && (events & ~(uint32_t)EPOLLOUT) &&
		   vsock_receive(c) == VSOCK_NO_ROOM) {
		vsock_wait(c);
	}
	if (c->state == VSOCK_OPEN)
		vsock_watch(c);
	vsock_pump(vs, 1);
}

static void vsock_on_timer(void *arg, uint32_t events)
{
	struct vsock *vs = arg;
	uint64_t count;

	(void)events;
	if (read(vs->timer.fd, &count, sizeof(count)) < 0)
		return;
	vs->armed = 0;
	queue_signal(&vs->v.queue[VSOCK_TX]);
}

/* Have vsock_on_timer() called soon.  0: it will not be. */
static int vsock_arm(struct vsock *vs)
{
	const struct itimerspec when = { .it_value = { .tv_nsec = VSOCK_DELAY_NS } };

	if (vs->armed)
		return 1;
	if (vs->timer.fd < 0) {
		vs->timer.fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
		if (vs->timer.fd < 0)
			return 0;
		if (loop_add(vs->v.env.loop, &vs->timer, EPOLLIN) < 0) {
			close(vs->timer.fd);
			vs->timer.fd = -1;
			return 0;
		}
	}
	vs->armed = timerfd_settime(vs->timer.fd, 0, &when, NULL) == 0;
	return vs->armed;
}

/*
 * Packets have been taken, of so many bytes: tell the guest.  It does nothing
 * with that but free their memory, yet an interrupt costs it as much as an
 * answer does; for a few small ones it comes later, for all in a millisecond.
 * A driver that polls, and so would wait for it, does without EVENT_IDX.
 */
static void vsock_taken(struct vsock *vs, uint64_t bytes)
{
	struct queue *q = &vs->v.queue[VSOCK_TX];
	uint16_t n = (uint16_t)(q->used_idx - q->seen_idx);

	if (bytes > VSOCK_SMALL || n > q->num / 8 ||
	    !virtio_has(&vs->v, VIRTIO_RING_F_EVENT_IDX) || !vsock_arm(vs))
		queue_signal(q);
}

static void vsock_transmit(struct vsock *vs)
{
	struct queue *q = &vs->v.queue[VSOCK_TX];
	int later = vs->tx_later;
	uint64_t bytes = 0;
	struct chain c;

	vs->tx_later = 0;
	while (queue_pop(q, &c)) {
		bytes += c.out_len;
		if (vs->nresets == VSOCK_RESETS) {
			vs->tx_stalled = 1;
			queue_unpop(q);
			break;
		}
		/* So much that two threads are worth their price. */
		if (bytes > VSOCK_AT_ONCE && !later) {
			vs->tx_later = 1;
			queue_unpop(q);
			queue_again(q);
			break;
		}
		vsock_packet(vs, &c);
		queue_push(q, c.head, 0);
	}
	vsock_taken(vs, bytes);
	vsock_pump(vs, 0);
}

/* The guest has offered buffers. */
static void vsock_room(struct vsock *vs)
{
	struct queue *q = &vs->v.queue[VSOCK_RX];
	int data = vs->rx_later;

	vs->rx_later = 0;
	vsock_pump(vs, data);
	if (!data && !vs->lost && vs->wait && !vs->wait->owed) {
		vs->rx_later = 1;
		queue_again(q);
	}
	if (vs->tx_stalled && vs->nresets < VSOCK_RESETS) {
		vs->tx_stalled = 0;
		queue_again(&vs->v.queue[VSOCK_TX]);
	}
}

/* ---- Connections that are gone (5.10.6.7) -------------------------------------------- */

/* No connection is left, but for those that are wanted. */
static void vsock_drop(struct vsock *vs)
{
	struct vsock_conn *c, *next;
	uint32_t i;

	for (i = 0; i < VSOCK_HASH; i++) {
		for (c = vs->table[i]; c; c = next) {
			next = c->next;
			if (c->state == VSOCK_CALLING) {
				c->call->refused = 0;
				vsock_owe(c, VSOCK_REQUEST);
			} else {
				vsock_forget(c);
			}
		}
	}
	vs->nresets = 0;
	vs->tx_stalled = vs->tx_later = vs->rx_later = 0;
}

static void vsock_lose(struct vsock *vs)
{
	vs->lost = vs->untold = 1;
	vs->late = 0;
	vs->lost_until = 0;
}

/* The guest has taken note.  If we had given up waiting it has ended, just now,
   what was begun since. */
static void vsock_found(struct vsock *vs)
{
	if (vs->late) {
		vsock_drop(vs);
		queue_again(&vs->v.queue[VSOCK_TX]);
	}
	vs->lost = vs->late = 0;
	queue_again(&vs->v.queue[VSOCK_RX]);
}

int vsock_settled(struct vsock *vs)
{
	if (vs->lost && vs->lost_until && clock_ns() >= vs->lost_until) {
		vsock_found(vs);
		vs->late = 1;
	}
	return !vs->lost;
}

/* 1: the guest has been told. */
static int vsock_tell(struct vsock *vs)
{
	const struct virtio_vsock_event ev = { .id = VIRTIO_VSOCK_EVENT_TRANSPORT_RESET };
	struct queue *q = &vs->v.queue[VSOCK_EVENT];
	struct chain c;

	if (!queue_pop(q, &c))
		return 0;
	if (c.in_len < sizeof(ev)) {
		virtio_fail(&vs->v, "a buffer for events has no room");
		return 0;
	}
	queue_push(q, c.head, (uint32_t)chain_write(&c, 0, &ev, sizeof(ev)));
	queue_signal(q);
	vs->untold = 0;
	return 1;
}

/*
 * Tell the guest, then wait until it offers a buffer again: it has taken note
 * then.  To be notified of that we have to see the end of the ring.
 */
static void vsock_event(struct vsock *vs)
{
	struct queue *q = &vs->v.queue[VSOCK_EVENT];
	int now = vs->untold && vsock_tell(vs);
	struct chain c;
	uint16_t n;

	if (!vs->lost && !vs->late)
		return;
	if (!vs->lost_until || now)
		vs->lost_until = clock_ns() + (vs->untold ? VSOCK_LOST_NS : VSOCK_TOLD_NS);
	if (vs->untold)
		return;
	for (n = 0; queue_pop(q, &c); n++)
		;
	if (!now && q->last_avail != vs->told_at)
		vsock_found(vs);
	vs->told_at = q->last_avail;
	while (n--)
		queue_unpop(q);
}

static void vsock_notify(struct virtio *v, struct queue *q)
{
	struct vsock *vs = (struct vsock *)v;

	if (q->index == VSOCK_TX)
		vsock_transmit(vs);
	else if (q->index == VSOCK_RX)
		vsock_room(vs);
	else
		vsock_event(vs);
}

/* ---- The device ---------------------------------------------------------------------- */

/* Also of a restored machine: what waited then is looked at again. */
static void vsock_activate(struct virtio *v)
{
	uint32_t i;

	for (i = 0; i < VSOCK_QUEUES; i++)
		queue_again(&v->queue[i]);
}

static void vsock_reset(struct virtio *v)
{
	struct vsock *vs = (struct vsock *)v;

	vsock_drop(vs);
	vs->lost = vs->untold = vs->late = 0;
}

static void vsock_quiesce(struct virtio *v)
{
	struct vsock *vs = (struct vsock *)v;

	queue_signal(&v->queue[VSOCK_TX]);
	/* A guest that does not run takes note of nothing: vsock_event() gives it
	   time anew when it does. */
	if (vs->lost && vs->lost_until) {
		vs->lost_until = 0;
		queue_again(&v->queue[VSOCK_EVENT]);
	}
}

static void vsock_save(const struct virtio *v, struct writer *w)
{
	const struct vsock *vs = (const struct vsock *)v;

	put_u64(w, vs->config.guest_cid);
}

static int vsock_cid_ok(uint64_t cid)
{
	return cid > VSOCK_HOST && cid < UINT32_MAX;	/* 5.10.4 */
}

static int vsock_load(struct virtio *v, struct reader *r, struct vmm_error *err)
{
	struct vsock *vs = (struct vsock *)v;
	uint64_t cid = get_u64(r);

	if (!vsock_cid_ok(cid))
		return fail(err, VMM_EFORMAT, "state of %s: its CID", v->name);
	vs->config.guest_cid = cid;
	vsock_lose(vs);
	return 0;
}

static void vsock_free(struct virtio *v)
{
	struct vsock *vs = (struct vsock *)v;
	uint32_t i;

	for (i = 0; i < VSOCK_HASH; i++)
		while (vs->table[i])
			vsock_conn_free(vs->table[i]);
	vsock_give_up(vs);
	if (v->env.loop && v->env.loop->give_up_arg == vs)
		v->env.loop->give_up = NULL;
	vsock_unlisten(vs);
	loop_del(v->env.loop, &vs->timer);
	if (vs->timer.fd >= 0)
		close(vs->timer.fd);
	virtio_fini(v);
	free(vs);
}

static const struct virtio_ops vsock_ops = {
	.type		= "vsock",
	.id		= VIRTIO_ID_VSOCK,
	.version	= 1,
	.notify		= vsock_notify,
	.activate	= vsock_activate,
	.reset		= vsock_reset,
	.quiesce	= vsock_quiesce,
	.save		= vsock_save,
	.load		= vsock_load,
	.free		= vsock_free,
};

int vsock_new(struct virtio **out, const struct virtio_env *env, const char *name, uint32_t cid,
	      struct vmm_error *err)
{
	struct vsock *vs = malloc(sizeof(*vs));
	int r;

	*out = NULL;
	if (!vs)
		return fail(err, VMM_ENOMEM, "%s", name);
	memset(vs, 0, offsetof(struct vsock, rx));
	vs->wait_tail = &vs->wait;
	vs->timer = (struct io){ .fn = vsock_on_timer, .arg = vs, .fd = -1 };
	if (vsock_cid_ok(cid))
		r = virtio_init(&vs->v, &vsock_ops, env, name, VSOCK_QUEUES, err);
	else
		r = fail(err, VMM_EINVAL, "%s: a guest's CID is not %u", name, cid);
	if (r) {
		vsock_free(&vs->v);
		return r;
	}
	vs->v.offers |= 1ull << VSOCK_F_STREAM;
	vs->config.guest_cid = cid;
	vs->v.config = &vs->config;
	vs->v.config_size = sizeof(vs->config);
	env->loop->give_up = vsock_give_up;
	env->loop->give_up_arg = vs;
	*out = &vs->v;
	return 0;
}

int vsock_set_cid(struct virtio *v, uint32_t cid, struct vmm_error *err)
{
	struct vsock *vs = (struct vsock *)v;

	if (!vsock_cid_ok(cid))
		return fail(err, VMM_EINVAL, "%s: a guest's CID is not %u", v->name, cid);
	if (cid == vs->config.guest_cid)
		return 0;
	vs->config.guest_cid = cid;
	vsock_drop(vs);
	vsock_lose(vs);
	virtio_config_changed(v);
	queue_again(&v->queue[VSOCK_EVENT]);
	return 0;
}

void vsock_hang_up_all(struct virtio *v)
{
	vsock_drop((struct vsock *)v);
}
