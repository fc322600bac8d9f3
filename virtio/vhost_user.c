/* SPDX-License-Identifier: MIT */
/*
 * vhost_user.c - front end of the vhost-user protocol (QEMU,
 * docs/interop/vhost-user.rst): a device that another process serves, such as
 * virtiofsd for a directory, or qemu-storage-daemon for a disk image.
 *
 * That process maps the guest's RAM, a memfd, and gets for each ring an eventfd
 * that KVM writes when the guest notifies, and one to write when it has an
 * interrupt for the guest.  Only the latter passes through here: an interrupt
 * line of ours is pulsed, and the kernel cannot do that from an eventfd.
 *
 * Of the protocol that is used which every back end has: features, memory,
 * rings, and a configuration (blk; that of fs is a name, and ours).  Not done:
 * requests of the back end to us, a log of dirty pages, another back end for a
 * device that had one.
 *
 * The back end is trusted with the guest, but not to answer: it is waited for
 * VHOST_TIMEOUT_MS in all, with the I/O lock held, when the driver starts the device,
 * when the machine is held and when it is reset.  When it has hung up, or has no
 * ring, we serve the rings ourselves: each request fails.  Which ones it had in flight
 * we know from looking at the rings at each of its interrupts (struct flight); should
 * that be lost, the device asks its driver for a reset.  If it is given up with rings,
 * it may write to them and to their buffers at any time: none of those is handed back,
 * the device asks for a reset, and no driver can set it up after that.
 *
 * While the machine is held the rings are stopped, and what is in flight is waited
 * for; they are started again when the loop goes on.
 *
 * I/O lock held.  Nothing is saved, and a machine with such a device cannot be:
 * what the back end knows of the files that the guest has open is not here.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <fcntl.h>
#include <time.h>
#include <unistd.h>

#include <linux/fuse.h>
#include <linux/virtio_blk.h>
#include <linux/virtio_config.h>
#include <linux/virtio_fs.h>
#include <linux/virtio_ids.h>
#include <linux/virtio_ring.h>

#include "../core/clock.h"
#include "devices.h"

#ifndef VHOST_TIMEOUT_MS		/* a test has less time */
#define VHOST_TIMEOUT_MS 10000
#endif
#define VHOST_CONFIG_BLK 60u		/* bytes that every back end knows */
#define VHOST_CONFIG_MAX 256u
#define VHOST_TAG_MAX	36u

/* Messages, and whether they have an answer. */
enum {
	VHOST_GET_FEATURES	= 1,
	VHOST_SET_FEATURES	= 2,
	VHOST_SET_OWNER		= 3,
	VHOST_SET_MEM_TABLE	= 5,
	VHOST_SET_VRING_NUM	= 8,
	VHOST_SET_VRING_ADDR	= 9,
	VHOST_SET_VRING_BASE	= 10,
	VHOST_GET_VRING_BASE	= 11,
	VHOST_SET_VRING_KICK	= 12,
	VHOST_SET_VRING_CALL	= 13,
	VHOST_GET_PROTOCOL_FEATURES = 15,
	VHOST_SET_PROTOCOL_FEATURES = 16,
	VHOST_GET_QUEUE_NUM	= 17,
	VHOST_SET_VRING_ENABLE	= 18,
	VHOST_GET_CONFIG	= 24
};

#define VHOST_VERSION		1u	/* flags of a message */
#define VHOST_VERSION_MASK	3u
#define VHOST_REPLY		4u
#define VHOST_NEED_REPLY	8u

#define VHOST_F_PROTOCOL	(1ull << 30)	/* among the features: it has these: */
#define VHOST_P_MQ		(1ull << 0)
#define VHOST_P_REPLY_ACK	(1ull << 3)
#define VHOST_P_CONFIG		(1ull << 9)

/* What may be passed on to the guest: the device's own, and split rings'. */
#define VHOST_PASS	(0xffffffull | 1ull << VIRTIO_RING_F_INDIRECT_DESC | \
			 1ull << VIRTIO_RING_F_EVENT_IDX | 1ull << VIRTIO_F_VERSION_1)

struct vhost_msg {
	uint32_t	request, flags, size;
	union {
		uint64_t	u64;
		struct {
			uint32_t	index, num;
		} ring;
		struct {
			uint32_t	index, flags;
			uint64_t	desc, used, avail, log;
		} addr;
		struct {
			uint32_t	n, pad;
			uint64_t	gpa, len, uaddr, off;
		} mem;
		struct {
			uint32_t	off, len, flags;
			uint8_t		data[VHOST_CONFIG_MAX];
		} config;
		uint8_t		bytes[12 + VHOST_CONFIG_MAX];
	} __attribute__((packed));
} __attribute__((packed));

#define VHOST_HDR	12u

struct vhost_ring {
	struct vhost	*vu;
	struct io	call;		/* eventfd, or -1 */
	uint8_t		running;
	struct flight	flight;		/* while it runs */
};

struct vhost {
	struct virtio	v;
	struct virtio_ops ops;		/* type and id are of what is behind it */
	struct io	io;		/* the socket, or -1 */
	uint8_t		config[VHOST_CONFIG_MAX];
	uint64_t	features;	/* of the back end */
	uint64_t	protocol;	/* agreed on with it */
	uint64_t	deadline;	/* for all that it is asked to do now */
	uint8_t		dead;		/* it was there, and is gone */
	struct vhost_ring ring[QUEUES_MAX];
};

/* ---- Messages -------------------------------------------------------------------- */

static void vhost_set_deadline(struct vhost *vu)
{
	vu->deadline = clock_ns() + VHOST_TIMEOUT_MS * 1000000ull;
}

/* Wait for the socket.  0, or -errno. */
static int vhost_ready(struct vhost *vu, short events)
{
	struct pollfd p = { .fd = vu->io.fd, .events = events };
	uint64_t now = clock_ns();
	int r = now < vu->deadline ?
		poll(&p, 1, (int)((vu->deadline - now) / 1000000u) + 1) : 0;

	if (r < 0)
		return errno == EINTR ? 0 : -errno;
	return r ? 0 : -ETIMEDOUT;
}

/* Send a message, and a descriptor if fd >= 0.  0, or -errno. */
static int vhost_send(struct vhost *vu, struct vhost_msg *m, uint32_t request, uint32_t size,
		      int fd)
{
	union {
		struct cmsghdr	align;
		char		buf[CMSG_SPACE(sizeof(int))];
	} u;
	uint8_t *p = (uint8_t *)m;
	struct iovec iov = { p, VHOST_HDR + size };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
	struct cmsghdr *c;
	ssize_t n;
	int r;

	m->request = request;
	m->flags |= VHOST_VERSION;
	m->size = size;
	if (fd >= 0) {
		memset(&u, 0, sizeof(u));
		msg.msg_control = u.buf;
		msg.msg_controllen = sizeof(u.buf);
		c = CMSG_FIRSTHDR(&msg);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(c), &fd, sizeof(fd));
	}
	while (iov.iov_len) {
		n = sendmsg(vu->io.fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
		if (n < 0 && errno != EAGAIN && errno != EINTR)
			return -errno;
		if (n < 0) {
			r = vhost_ready(vu, POLLOUT);
			if (r < 0)
				return r;
			continue;
		}
		iov.iov_base = (uint8_t *)iov.iov_base + n;
		iov.iov_len -= (size_t)n;
		msg.msg_control = NULL;
		msg.msg_controllen = 0;
	}
	return 0;
}

/* Has it hung up, or does it in a moment?  Then it touches no ring any more. */
static int vhost_hung_up(struct vhost *vu)
{
	const struct timespec nap = { .tv_nsec = 200000 };
	struct pollfd p = { .fd = vu->io.fd, .events = POLLRDHUP };

	return ppoll(&p, 1, &nap, NULL) > 0;
}

static int vhost_recv_bytes(struct vhost *vu, uint8_t *p, size_t n)
{
	ssize_t got;
	int r;

	while (n) {
		got = recv(vu->io.fd, p, n, MSG_DONTWAIT);
		if (got == 0)
			return -ECONNRESET;
		if (got < 0 && errno != EAGAIN && errno != EINTR)
			return -errno;
		if (got < 0) {
			r = vhost_ready(vu, POLLIN);
			if (r < 0)
				return r;
			continue;
		}
		p += got;
		n -= (size_t)got;
	}
	return 0;
}

/* The answer to a message, which has at least min bytes.  0, or -errno. */
static int vhost_recv(struct vhost *vu, struct vhost_msg *m, uint32_t request, uint32_t min)
{
	int r;

	memset(m, 0, sizeof(*m));
	r = vhost_recv_bytes(vu, (uint8_t *)m, VHOST_HDR);
	if (r < 0)
		return r;
	if (m->request != request || (m->flags & VHOST_VERSION_MASK) != VHOST_VERSION ||
	    !(m->flags & VHOST_REPLY) || m->size < min || m->size > sizeof(m->bytes))
		return -EPROTO;
	return vhost_recv_bytes(vu, m->bytes, m->size);
}

static int vhost_get_u64(struct vhost *vu, uint32_t request, uint64_t *val)
{
	struct vhost_msg m = { .flags = 0 };
	int r = vhost_send(vu, &m, request, 0, -1);

	if (r == 0)
		r = vhost_recv(vu, &m, request, sizeof(m.u64));
	*val = r == 0 ? m.u64 : 0;
	return r;
}

static int vhost_set_u64(struct vhost *vu, uint32_t request, uint64_t val)
{
	struct vhost_msg m = { .u64 = val };

	return vhost_send(vu, &m, request, sizeof(m.u64), -1);
}

static int vhost_set_ring(struct vhost *vu, uint32_t request, uint32_t index, uint32_t num)
{
	struct vhost_msg m = { .ring = { index, num } };

	return vhost_send(vu, &m, request, sizeof(m.ring), -1);
}

static int vhost_set_eventfd(struct vhost *vu, uint32_t request, uint32_t index, int fd)
{
	struct vhost_msg m = { .u64 = index };

	return vhost_send(vu, &m, request, sizeof(m.u64), fd);
}

/* Has it a ring that it may write to? */
static int vhost_serves(const struct vhost *vu)
{
	uint32_t i;

	for (i = 0; i < vu->v.nqueues && !vu->ring[i].running; i++)
		;
	return i < vu->v.nqueues;
}

/* ---- Failing ----------------------------------------------------------------------------- */

/* Answer a request in place of the back end. */
static void vhost_refuse(struct vhost *vu, struct queue *q, const struct chain *c)
{
	struct fuse_out_header out = { .len = sizeof(out), .error = -EIO };
	const uint8_t status = VIRTIO_BLK_S_IOERR;
	uint32_t written = 0;

	if (vu->ops.id == VIRTIO_ID_BLOCK && c->in_len) {
		chain_write(c, c->in_len - 1, &status, 1);
		written = c->in_len == 1;
	} else if (c->in_len >= sizeof(out) &&
		   chain_read(c, offsetof(struct fuse_in_header, unique), &out.unique,
			      sizeof(out.unique)) == sizeof(out.unique)) {
		written = (uint32_t)chain_write(c, 0, &out, sizeof(out));
	}
	queue_push(q, c->head, written);
}

/* All that is there, and all that will be; within notify(), which has a bound. */
static void vhost_refuse_all(struct vhost *vu, struct queue *q)
{
	struct chain c;

	while (queue_pop(q, &c))
		vhost_refuse(vu, q, &c);
	queue_signal(q);
}

/* The back end had this ring, and will not touch it again. */
static void vhost_take_over(struct vhost *vu, struct queue *q)
{
	struct vhost_ring *r = &vu->ring[q->index];
	struct chain c;

	if (r->running && queue_flight_end(q, &r->flight) < 0) {
		virtio_log(&vu->v, VMM_LOG_WARN, "queue %u: what was in flight is not known", q->index);
		virtio_break(&vu->v);
		return;
	}
	while (r->running && queue_flight_pop(q, &r->flight, &c))
		vhost_refuse(vu, q, &c);
	/* It may have answered some that it has not told of, or we not heard of yet; and
	   whether the driver wants to be told of the next depends on those. */
	if (r->running)
		virtio_interrupt(&vu->v);
	/* Notifications are for us from now on. */
	if (q->kick.fd >= 0 && !q->kick.watched &&
	    loop_add(vu->v.env.loop, &q->kick, EPOLLIN) < 0)
		virtio_break(&vu->v);
	queue_signal(q);
	/* The driver may be adding as fast as we refuse: see transport_notify(). */
	queue_again(q);
}

static void vhost_disconnect(struct vhost *vu)
{
	uint32_t i;

	for (i = 0; i < vu->v.nqueues; i++) {
		loop_del(vu->v.env.loop, &vu->ring[i].call);
		vu->ring[i].running = 0;
	}
	loop_del(vu->v.env.loop, &vu->io);
	if (vu->io.fd >= 0)
		close(vu->io.fd);
	vu->io.fd = -1;
}

static void vhost_gone(struct vhost *vu, const char *why)
{
	uint32_t i;

	vu->dead = 1;
	vu->v.notify_by = NOTIFY_LOOP;
	virtio_trouble(&vu->v, ECONNRESET, "its back end is gone: %s", why);
	if (vhost_serves(vu) && !vhost_hung_up(vu)) {
		/* Nothing is handed back; without features no driver sets the device up again. */
		shutdown(vu->io.fd, SHUT_RDWR);
		vu->v.offers = 0;
		virtio_break(&vu->v);
	}
	for (i = 0; i < vu->v.nqueues; i++)
		if (vu->v.active && vu->v.queue[i].ready)
			vhost_take_over(vu, &vu->v.queue[i]);
	vhost_disconnect(vu);
}

/* ---- Rings --------------------------------------------------------------------------- */

static void vhost_on_socket(void *arg, uint32_t events)
{
	(void)events;
	vhost_gone(arg, "it has closed its socket");
}

static void vhost_on_call(void *arg, uint32_t events)
{
	struct vhost_ring *r = arg;
	uint64_t count;

	(void)events;
	if (read(r->call.fd, &count, sizeof(count)) != sizeof(count) || !r->vu->v.active)
		return;
	queue_flight_look(&r->vu->v.queue[r - r->vu->ring], &r->flight);
	virtio_interrupt(&r->vu->v);
}

/*
 * Wait until as much is done as the driver has asked for by now; while it resets the device
 * it may go on asking.  A ring must not be asked back before: qemu-storage-daemon lets go of
 * its eventfds then, finishes what is in flight nevertheless, and gives up when it has nobody
 * to tell of it.
 */
static int vhost_drain(struct vhost *vu, struct queue *q)
{
	struct flight *f = &vu->ring[q->index].flight;
	uint64_t one = 1;
	uint16_t end;

	queue_flight_look(q, f);
	end = f->avail;
	/* There may be requests that it has not been notified of yet. */
	if (end != f->used && q->kick.fd >= 0 && write(q->kick.fd, &one, sizeof(one)) < 0 &&
	    errno != EAGAIN)
		return -errno;
	/* More than a ring's worth is a driver's nonsense, or it has gone past the end. */
	while (end != f->used && (uint16_t)(end - f->used) <= q->num) {
		if (vhost_hung_up(vu))
			return -ECONNRESET;
		if (clock_ns() >= vu->deadline)
			return -ETIMEDOUT;
		queue_flight_look(q, f);
	}
	return 0;
}

/* RAM that can be given away is a memfd, shared. */
static int vhost_set_mem(struct vhost *vu)
{
	const struct mem *mem = vu->v.env.mem;
	struct vhost_msg m = { .mem = { 1, 0, mem->gpa, mem->size, (uintptr_t)mem->hva, 0 } };
	int ack = (vu->protocol & VHOST_P_REPLY_ACK) != 0, r;

	if (mem->kind != MEM_SHARED)
		return -EOPNOTSUPP;
	m.flags = ack ? VHOST_NEED_REPLY : 0;
	r = vhost_send(vu, &m, VHOST_SET_MEM_TABLE, sizeof(m.mem), mem->fd);
	if (r == 0 && ack) {
		r = vhost_recv(vu, &m, VHOST_SET_MEM_TABLE, sizeof(m.u64));
		if (r == 0 && m.u64)
			r = -EPROTO;
	}
	return r;
}

static int vhost_ring_start(struct vhost *vu, struct queue *q)
{
	struct vhost_ring *ring = &vu->ring[q->index];
	struct vhost_msg m = { .addr = { q->index, 0, (uintptr_t)q->desc, (uintptr_t)q->used,
					 (uintptr_t)q->avail, 0 } };
	uint64_t one = 1;
	int r;

	if (q->kick.fd < 0)
		return -EMFILE;
	r = vhost_set_ring(vu, VHOST_SET_VRING_NUM, q->index, q->num);
	if (r == 0)
		r = vhost_set_ring(vu, VHOST_SET_VRING_BASE, q->index, q->last_avail);
	if (r == 0)
		r = vhost_send(vu, &m, VHOST_SET_VRING_ADDR, sizeof(m.addr), -1);
	if (r == 0)
		r = vhost_set_eventfd(vu, VHOST_SET_VRING_CALL, q->index, ring->call.fd);
	if (r == 0)
		r = loop_add(vu->v.env.loop, &ring->call, EPOLLIN);
	if (r < 0)
		return r;
	/* The next message makes it the back end's, whatever fails after that. */
	ring->running = 1;
	queue_flight_start(q, &ring->flight);
	r = vhost_set_eventfd(vu, VHOST_SET_VRING_KICK, q->index, q->kick.fd);
	if (r == 0 && (vu->features & VHOST_F_PROTOCOL))
		r = vhost_set_ring(vu, VHOST_SET_VRING_ENABLE, q->index, 1);
	if (r < 0)
		return r;
	/* There may be requests whose notification went to its predecessor. */
	if (write(q->kick.fd, &one, sizeof(one)) < 0)
		return 0;		/* full: it is pending already */
	return 0;
}

static void vhost_start(struct vhost *vu)
{
	uint64_t features = vu->v.features | (vu->features & VHOST_F_PROTOCOL);
	uint32_t i;
	int r;

	if (!vu->v.active || vu->io.fd < 0 || vhost_serves(vu))
		return;
	vhost_set_deadline(vu);
	r = vhost_set_u64(vu, VHOST_SET_FEATURES, features);
	if (r == 0)
		r = vhost_set_mem(vu);
	for (i = 0; r == 0 && i < vu->v.nqueues; i++)
		if (vu->v.queue[i].ready)
			r = vhost_ring_start(vu, &vu->v.queue[i]);
	if (r < 0)
		vhost_gone(vu, r == -EOPNOTSUPP ? "guest RAM is not shared with it" : strerror(-r));
}

/* It has nothing in flight: take the ring from it. */
static int vhost_ring_stop(struct vhost *vu, struct queue *q)
{
	struct vhost_ring *ring = &vu->ring[q->index];
	struct vhost_msg m = { .ring = { q->index, 0 } };
	uint16_t before = ring->flight.used;
	int r = vhost_drain(vu, q);

	if (r == 0)
		r = vhost_send(vu, &m, VHOST_GET_VRING_BASE, sizeof(m.ring), -1);
	if (r == 0)
		r = vhost_recv(vu, &m, VHOST_GET_VRING_BASE, sizeof(m.ring));
	if (r < 0)
		return r;
	ring->running = 0;
	queue_resume_at(q, (uint16_t)m.ring.num);
	vhost_on_call(ring, 0);
	loop_del(vu->v.env.loop, &ring->call);
	if (vu->v.active && ring->flight.used != before)
		virtio_interrupt(&vu->v);
	return 0;
}

/* On return the back end touches no ring. */
static void vhost_stop(struct vhost *vu)
{
	uint32_t i;
	int r = 0;

	vhost_set_deadline(vu);
	for (i = 0; i < vu->v.nqueues && r == 0; i++)
		if (vu->ring[i].running)
			r = vhost_ring_stop(vu, &vu->v.queue[i]);
	if (r < 0)
		vhost_gone(vu, strerror(-r));
}

/* Start it when the loop goes on: any ring that is notified will do. */
static void vhost_again(struct vhost *vu)
{
	uint32_t i;

	for (i = 0; i < vu->v.nqueues && !vu->v.queue[i].ready; i++)
		;
	if (vu->v.active && i < vu->v.nqueues)
		queue_again(&vu->v.queue[i]);
}

/* ---- The back end ------------------------------------------------------------------------ */

static int vhost_connect(struct vhost *vu, int fd, struct vmm_error *err)
{
	int type;
	socklen_t len = sizeof(type);

	vu->io.fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	if (vu->io.fd < 0 || getsockopt(vu->io.fd, SOL_SOCKET, SO_TYPE, &type, &len) < 0)
		return fail_sys(err, errno, "%s: its vhost-user socket", vu->v.name);
	if (type != SOCK_STREAM)
		return fail(err, VMM_EINVAL, "%s: its vhost-user socket is no stream", vu->v.name);
	return 0;
}

/* The configuration of a disk is the back end's. */
static int vhost_get_config(struct vhost *vu, struct vmm_error *err)
{
	struct virtio_blk_config *c = (struct virtio_blk_config *)(void *)vu->config;
	struct vhost_msg m = { .config = { 0, VHOST_CONFIG_BLK, 0, { 0 } } };
	const uint32_t size = 12 + VHOST_CONFIG_BLK;
	int r;

	if (vu->ops.id != VIRTIO_ID_BLOCK)
		return 0;
	if (!(vu->protocol & VHOST_P_CONFIG))
		return fail(err, VMM_ENOTSUP, "%s: its back end cannot describe the disk",
			    vu->v.name);
	r = vhost_send(vu, &m, VHOST_GET_CONFIG, size, -1);
	if (r == 0)
		r = vhost_recv(vu, &m, VHOST_GET_CONFIG, size);
	if (r < 0)
		return fail_sys(err, -r, "configuration of %s", vu->v.name);
	memcpy(vu->config, m.config.data, VHOST_CONFIG_BLK);
	c->num_queues = vu->v.nqueues;
	return 0;
}

/* Who are you, and what can you do? */
static int vhost_greet(struct vhost *vu, struct vmm_error *err)
{
	uint64_t queues = 0;
	int r;

	vhost_set_deadline(vu);
	r = vhost_get_u64(vu, VHOST_GET_FEATURES, &vu->features);
	vu->protocol = 0;
	if (r == 0 && (vu->features & VHOST_F_PROTOCOL)) {
		r = vhost_get_u64(vu, VHOST_GET_PROTOCOL_FEATURES, &vu->protocol);
		vu->protocol &= VHOST_P_MQ | VHOST_P_REPLY_ACK | VHOST_P_CONFIG;
		if (r == 0)
			r = vhost_set_u64(vu, VHOST_SET_PROTOCOL_FEATURES, vu->protocol);
	}
	if (r == 0 && (vu->protocol & VHOST_P_MQ)) {
		r = vhost_get_u64(vu, VHOST_GET_QUEUE_NUM, &queues);
		if (r == 0 && queues < vu->v.nqueues)
			return fail(err, VMM_EINVAL, "%s: its back end has %llu queues at most",
				    vu->v.name, (unsigned long long)queues);
	}
	if (r == 0) {
		struct vhost_msg m = { .flags = 0 };

		r = vhost_send(vu, &m, VHOST_SET_OWNER, 0, -1);
	}
	if (r < 0)
		return fail_sys(err, -r, "%s: its back end", vu->v.name);
	vu->v.offers = vu->features & VHOST_PASS;
	if (vu->ops.id == VIRTIO_ID_BLOCK && vu->v.nqueues == 1)
		vu->v.offers &= ~(1ull << VIRTIO_BLK_F_MQ);
	/* It could not be written; and with wce at 0, as qemu-storage-daemon has it in spite
	   of its cache, a driver would never flush (5.2.5.2). */
	if (vu->ops.id == VIRTIO_ID_BLOCK)
		vu->v.offers &= ~(1ull << VIRTIO_BLK_F_CONFIG_WCE);
	if (!(vu->v.offers >> VIRTIO_F_VERSION_1 & 1))
		return fail(err, VMM_ENOTSUP, "%s: its back end knows no virtio 1", vu->v.name);
	return vhost_get_config(vu, err);
}

static int vhost_attach(struct vhost *vu, int fd, struct vmm_error *err)
{
	int r = vhost_connect(vu, fd, err);

	if (!r)
		r = vhost_greet(vu, err);
	if (!r) {
		/* Answers are read where they are expected, on any thread. */
		r = loop_add(vu->v.env.loop, &vu->io, EPOLLRDHUP);
		r = r < 0 ? fail_sys(err, -r, "%s: its vhost-user socket", vu->v.name) : 0;
	}
	return r;
}

/* ---- The device ---------------------------------------------------------------------------- */

static void vhost_activate(struct virtio *v)
{
	vhost_start((struct vhost *)v);
}

/* Of the guest if nobody else is notified; else of us: the machine goes on. */
static void vhost_notify(struct virtio *v, struct queue *q)
{
	struct vhost *vu = (struct vhost *)v;

	if (vu->dead)
		vhost_refuse_all(vu, q);
	else
		vhost_start(vu);
}

static void vhost_reset(struct virtio *v)
{
	vhost_stop((struct vhost *)v);
}

static void vhost_quiesce(struct virtio *v)
{
	vhost_stop((struct vhost *)v);
	vhost_again((struct vhost *)v);
}

static void vhost_free(struct virtio *v)
{
	struct vhost *vu = (struct vhost *)v;
	uint32_t i;

	vhost_disconnect(vu);
	for (i = 0; i < v->nqueues; i++)
		if (vu->ring[i].call.fd >= 0)
			close(vu->ring[i].call.fd);
	virtio_fini(v);
	free(vu);
}

static const struct virtio_ops vhost_ops = {
	.type		= "vhost-blk",
	.id		= VIRTIO_ID_BLOCK,
	.unsaved	= 1,
	.notify		= vhost_notify,
	.activate	= vhost_activate,
	.reset		= vhost_reset,
	.quiesce	= vhost_quiesce,
	.free		= vhost_free,
};

static int vhost_describe(struct vhost *vu, const struct vhost_user_config *cfg, uint32_t queues,
			  struct vmm_error *err)
{
	struct virtio_fs_config fs;
	uint32_t i;
	size_t n;

	vu->v.notify_by = NOTIFY_EXTERNAL;
	vu->v.config = vu->config;
	vu->v.config_size = VHOST_CONFIG_BLK;
	if (vu->ops.id == VIRTIO_ID_FS) {
		memset(&fs, 0, sizeof(fs));
		n = cfg->tag ? strlen(cfg->tag) : 0;
		if (!n || n > VHOST_TAG_MAX)
			return fail(err, VMM_EINVAL, "%s: a tag has 1 to %u bytes", vu->v.name,
				    VHOST_TAG_MAX);
		memcpy(fs.tag, cfg->tag, n);
		fs.num_request_queues = queues - 1;
		vu->v.config_size = sizeof(fs);
		memcpy(vu->config, &fs, sizeof(fs));
	}
	for (i = 0; i < queues; i++) {
		struct vhost_ring *r = &vu->ring[i];

		r->vu = vu;
		r->call.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
		if (r->call.fd < 0)
			return fail_sys(err, errno, "eventfd of %s", vu->v.name);
	}
	return 0;
}

int vhost_user_new(struct virtio **out, const struct virtio_env *env, const char *name,
		   const struct vhost_user_config *cfg, struct vmm_error *err)
{
	struct vhost *vu = calloc(1, sizeof(*vu));
	uint32_t n = cfg->queues ? cfg->queues : 1, i;
	int r;

	*out = NULL;
	if (!vu)
		return fail(err, VMM_ENOMEM, "%s", name);
	vu->ops = vhost_ops;
	vu->io = (struct io){ .fn = vhost_on_socket, .arg = vu, .fd = -1 };
	for (i = 0; i < QUEUES_MAX; i++)
		vu->ring[i].call = (struct io){ .fn = vhost_on_call, .arg = &vu->ring[i], .fd = -1 };
	if (cfg->id == VIRTIO_ID_FS) {
		vu->ops.type = "vhost-fs";
		vu->ops.id = VIRTIO_ID_FS;
		n++;			/* 5.11.2: one for what cannot wait */
	}
	if (n > QUEUES_MAX || (cfg->id != VIRTIO_ID_FS && cfg->id != VIRTIO_ID_BLOCK))
		r = fail(err, VMM_EINVAL, "%s: %u queues of device type %u", name, n, cfg->id);
	else
		r = virtio_init(&vu->v, &vu->ops, env, name, n, err);
	if (!r)
		r = vhost_describe(vu, cfg, n, err);
	if (!r)
		r = vhost_attach(vu, cfg->fd, err);
	if (r) {
		vhost_free(&vu->v);
		return r;
	}
	*out = &vu->v;
	return 0;
}
