/* SPDX-License-Identifier: MIT */
/*
 * net.c - virtio network device (virtio 1.2, 5.1) on a descriptor: a tap, a
 * datagram socket (one frame each), or a stream socket where each frame is led
 * by its length, four bytes, big-endian, as passt and QEMU speak.  Which one it
 * is, is found out.
 *
 * Frames go without a copy in between: a tap or datagram socket reads straight
 * into the guest's buffers.  How many those must be is not known before; so as
 * many are taken as the last frame filled, and behind them lies a buffer of our
 * own.  What runs over is copied into further buffers, or waits there, all of
 * it, until the guest has offered more; if it does not, the frame is dropped, as
 * a network may (net_wait).  A stream is read into that same buffer, many frames at once.
 *
 * With a tap that has IFF_VNET_HDR the guest leaves checksums and segmentation
 * to the host (CSUM, TSO), and gets frames that lack them.  Its header is then
 * the kernel's to check.
 *
 * A few frames are sent on the vCPU's thread; a stream of them is left to the
 * I/O thread, and needs no notifications while it lasts.
 *
 * When the other side is gone the link goes down, and the guest runs on.
 *
 * Not done: more than one pair of queues, a control queue, UDP segmentation.
 *
 * I/O lock held.  Saved: MAC, features offered, limits.  Frames are not.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <linux/if_tun.h>
#include <linux/virtio_ids.h>
#include <linux/virtio_net.h>

#include "devices.h"
#include "throttle.h"

#define NET_HDR		12u		/* 5.1.6, with VERSION_1 */
#define NET_FRAME	65550u		/* the longest: 64 KiB and an Ethernet header */
#define NET_FRAME_MIN	14u
#define NET_BUF		(128u << 10)
#define NET_BUFS	64u		/* of the guest, for one frame */
#define NET_TURN	64u		/* frames before others have a turn */
#define NET_WAIT_MS	100u		/* for more buffers, where there are some */
#define NET_AT_ONCE	(32u << 10)	/* bytes sent on the vCPU's thread */

#define NET_BIT(x)	(1ull << VIRTIO_NET_F_##x)
#define NET_OFFLOAD_TX	(NET_BIT(CSUM) | NET_BIT(HOST_TSO4) | NET_BIT(HOST_TSO6) | NET_BIT(HOST_ECN))
#define NET_OFFLOAD_RX	(NET_BIT(GUEST_CSUM) | NET_BIT(GUEST_TSO4) | NET_BIT(GUEST_TSO6) | \
			 NET_BIT(GUEST_ECN))
#define NET_OFFLOADS	(NET_OFFLOAD_TX | NET_OFFLOAD_RX)

enum { NET_RX, NET_TX, NET_QUEUES };

enum { NET_NONE, NET_TAP, NET_DATAGRAM, NET_SEQPACKET, NET_STREAM };

/* A turn of receiving ends because... */
enum { NET_DONE, NET_MORE, NET_NO_ROOM };

struct net_back {
	uint8_t		kind;		/* NET_NONE ... */
	uint8_t		header;		/* it takes and gives our header */
	int		fd;
	uint64_t	offloads;	/* NET_OFFLOADS that it can do */
};

struct net {
	struct virtio	v;
	struct virtio_net_config config;
	struct net_back	back;
	struct io	io;
	uint32_t	watch;		/* EPOLL* it is watched for, if it is */
	struct throttle	rx_limit, tx_limit;
	uint8_t		starved;	/* the guest has no buffers */
	uint8_t		rx_wait, tx_wait;	/* for a limit */
	uint8_t		tx_full;	/* the descriptor takes no more */
	uint8_t		rx_later, tx_later;	/* left to the I/O thread */
	uint32_t	refusals;	/* of offloads, by the tap */
	struct io	timer;		/* of a frame that waits; fd -1 until needed */
	uint32_t	scant;		/* room that a frame last waited to see grow */
	/* The frame to be received: the guest's buffers for it. */
	uint32_t	nbufs, niov, room, want;
	struct net_slot {
		uint16_t	head;
		uint32_t	len;
	} slot[NET_BUFS];
	struct iovec	iov[CHAIN_MAX + 1];
	/* One that waits, with its header; of a stream, whatever was read. */
	uint8_t		*buf;
	uint32_t	head, len;
	/* The rest of a frame, which a stream did not take. */
	uint8_t		*rest;
	uint32_t	rest_head, rest_len;
};

/* ---- The back end ------------------------------------------------------------- */

static void net_watch(struct net *n)
{
	struct loop *loop = n->v.env.loop;
	uint32_t events = 0;

	if (n->v.active && n->back.kind != NET_NONE) {
		events |= !n->starved && !n->rx_wait ? EPOLLIN : 0;
		events |= n->tx_full ? EPOLLOUT : 0;
	}
	/* epoll reports an end even if it is not asked to. */
	if (!events)
		loop_del(loop, &n->io);
	else if (!n->io.watched)
		loop_add(loop, &n->io, events);
	else if (events != n->watch)
		loop_mod(loop, &n->io, events);
	n->watch = events;
}

static void net_detach(struct net *n)
{
	loop_del(n->v.env.loop, &n->io);
	if (n->back.fd >= 0)
		close(n->back.fd);
	n->back = (struct net_back){ .fd = -1 };
	n->io.fd = -1;
	n->head = n->len = n->rest_len = 0;
	n->tx_full = n->starved = n->rx_later = 0;
	n->scant = 0;
}

static void net_link(struct net *n, int up)
{
	uint16_t status = up ? VIRTIO_NET_S_LINK_UP : 0;

	if (n->config.status == status)
		return;
	n->config.status = status;
	virtio_config_changed(&n->v);
}

/* The other side is gone, or talks nonsense. */
static void net_gone(struct net *n, int os_errno, const char *why)
{
	virtio_trouble(&n->v, os_errno, "link down: %s", why);
	net_detach(n);
	net_link(n, 0);
	/* Frames that it did not take are the guest's again. */
	if (n->v.active)
		queue_again(&n->v.queue[NET_TX]);
}

/* What the guest has agreed to receive; the header is 12 bytes. */
static int net_tap_set(int fd, uint64_t features)
{
	unsigned int flags = 0;

	if (features & NET_BIT(GUEST_CSUM)) {
		flags |= TUN_F_CSUM;
		flags |= features & NET_BIT(GUEST_TSO4) ? TUN_F_TSO4 : 0;
		flags |= features & NET_BIT(GUEST_TSO6) ? TUN_F_TSO6 : 0;
		/* Alone it is an error to the kernel; a driver may ask for it (5.1.3.1). */
		if (flags & (TUN_F_TSO4 | TUN_F_TSO6))
			flags |= features & NET_BIT(GUEST_ECN) ? TUN_F_TSO_ECN : 0;
	}
	return ioctl(fd, TUNSETOFFLOAD, flags);
}

static int net_tap_open(struct net_back *b, const char *name, struct vmm_error *err)
{
	int flags = fcntl(b->fd, F_GETFL), hdr = NET_HDR;
	struct ifreq ifr;

	memset(&ifr, 0, sizeof(ifr));
	if (ioctl(b->fd, TUNGETIFF, &ifr) < 0)
		return fail_sys(err, errno, "descriptor for %s is neither a socket nor a tap", name);
	if (!(ifr.ifr_flags & IFF_TAP) || !(ifr.ifr_flags & IFF_NO_PI))
		return fail(err, VMM_EINVAL, "%s: %.15s is not a tap with IFF_NO_PI", name,
			    ifr.ifr_name);
	b->kind = NET_TAP;
	if (flags < 0 || fcntl(b->fd, F_SETFL, flags | O_NONBLOCK) < 0)
		return fail_sys(err, errno, "%s", name);
	if (!(ifr.ifr_flags & IFF_VNET_HDR))
		return 0;
	b->header = 1;
	if (ioctl(b->fd, TUNSETVNETHDRSZ, &hdr) < 0)
		return fail_sys(err, errno, "header of tap %.15s", ifr.ifr_name);
	b->offloads = NET_OFFLOAD_TX;
	if (net_tap_set(b->fd, NET_OFFLOAD_RX) == 0)
		b->offloads |= NET_OFFLOAD_RX;
	net_tap_set(b->fd, 0);
	return 0;
}

/* Find out what fd is.  -1: nothing yet. */
static int net_back_open(struct net_back *b, int fd, const char *name, struct vmm_error *err)
{
	int type, r = 0;
	socklen_t len = sizeof(type);

	*b = (struct net_back){ .fd = -1 };
	if (fd < 0)
		return 0;
	b->fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	if (b->fd < 0)
		return fail_sys(err, errno, "descriptor for %s", name);
	if (getsockopt(b->fd, SOL_SOCKET, SO_TYPE, &type, &len) < 0)
		r = net_tap_open(b, name, err);
	else if (type == SOCK_DGRAM)
		b->kind = NET_DATAGRAM;
	else if (type == SOCK_SEQPACKET)
		b->kind = NET_SEQPACKET;
	else if (type == SOCK_STREAM)
		b->kind = NET_STREAM;
	else
		r = fail(err, VMM_EINVAL, "socket for %s is of type %d", name, type);
	if (r) {
		close(b->fd);
		*b = (struct net_back){ .fd = -1 };
	}
	return r;
}

/* ---- The guest's buffers ---------------------------------------------------------- */

/* Copy between buf and iov[0..n), from byte off on; to: into the iov. */
static void net_copy(const struct iovec *iov, uint32_t n, uint32_t off, uint8_t *buf, uint32_t len,
		     int to)
{
	uint32_t i, run;

	for (i = 0; i < n && len; i++) {
		uint8_t *p = iov[i].iov_base;

		run = (uint32_t)iov[i].iov_len;
		if (off >= run) {
			off -= run;
			continue;
		}
		run = run - off < len ? run - off : len;
		if (to)
			memcpy(p + off, buf, run);
		else
			memcpy(buf, p + off, run);
		buf += run;
		len -= run;
		off = 0;
	}
}

/* Take buffers until there is room for size bytes: 1.  0: not now, -1: never. */
static int net_gather(struct net *n, uint32_t size)
{
	struct queue *q = &n->v.queue[NET_RX];
	uint32_t most = q->num < NET_BUFS ? q->num : NET_BUFS;
	struct chain c;

	if (!virtio_has(&n->v, VIRTIO_NET_F_MRG_RXBUF))
		most = 1;
	while (n->room < size) {
		if (n->nbufs == most)
			return -1;
		if (!queue_pop(q, &c))
			return 0;
		if (c.in_len < NET_HDR) {
			virtio_fail(&n->v, "a receive buffer has no room for a header");
			return 0;
		}
		if (n->niov + c.nin > CHAIN_MAX) {
			queue_unpop(q);
			return -1;
		}
		memcpy(&n->iov[n->niov], &c.iov[c.nout], c.nin * sizeof(c.iov[0]));
		n->niov += c.nin;
		n->slot[n->nbufs++] = (struct net_slot){ c.head, c.in_len };
		/* Together they may be longer than 32 bits can tell. */
		n->room = c.in_len < UINT32_MAX - n->room ? n->room + c.in_len : UINT32_MAX;
	}
	return 1;
}

/*
 * There are buffers, but too few for a frame of size bytes: may it wait for more (0), or
 * is it dropped (-1)?  All others wait behind it.  A driver that has offered all it has
 * gets nothing back, and so never notifies: after a while a timer does in its place.
 * When somebody has, there must be more room than before, and there cannot be more each
 * time for ever.  The room that was waited for in vain is kept in mind: frames that are
 * longer do not wait again for that, until one of them has fitted after all.
 */
static int net_wait(struct net *n, uint32_t size)
{
	const struct itimerspec when = { .it_value = { .tv_nsec = NET_WAIT_MS * 1000000 } };

	if (n->room <= n->scant && n->scant < size)
		return -1;
	if (n->timer.fd < 0) {
		n->timer.fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
		if (n->timer.fd < 0)
			return -1;
	}
	if (!n->timer.watched && loop_add(n->v.env.loop, &n->timer, EPOLLIN) < 0)
		return -1;
	n->scant = n->room;
	return timerfd_settime(n->timer.fd, 0, &when, NULL);
}

static void net_put_back(struct net *n)
{
	for (; n->nbufs; n->nbufs--)
		queue_unpop(&n->v.queue[NET_RX]);
	n->niov = n->room = 0;
}

/* The buffers hold len bytes, all but the part of the header that is ours. */
static void net_push(struct net *n, uint32_t len)
{
	struct virtio_net_hdr_v1 h = { .flags = 0 };
	uint32_t at = n->back.header ? offsetof(struct virtio_net_hdr_v1, num_buffers) : 0;
	uint32_t used, run, left = len;

	for (used = 0; left; used++, left -= run) {
		run = n->slot[used].len < left ? n->slot[used].len : left;
		queue_push(&n->v.queue[NET_RX], n->slot[used].head, run);
	}
	h.num_buffers = (uint16_t)used;		/* 5.1.6.4.1: 1 if none are merged */
	net_copy(n->iov, n->niov, at, (uint8_t *)&h + at, NET_HDR - at, 1);
	for (; n->nbufs > used; n->nbufs--)
		queue_unpop(&n->v.queue[NET_RX]);
	n->nbufs = n->niov = n->room = 0;
	n->want = len;
	if (len > n->scant)
		n->scant = 0;
	throttle_charge(&n->rx_limit, len);
}

/* What of a header is written by us comes before what a back end gives. */
static uint32_t net_skip(const struct net *n)
{
	return n->back.header ? 0 : NET_HDR;
}

/* From our own buffer: len bytes that the back end gave. */
static int net_deliver(struct net *n, uint8_t *p, uint32_t len)
{
	uint32_t at = net_skip(n);
	int r = net_gather(n, at + len);

	if (r > 0) {
		net_copy(n->iov, n->niov, at, p, len, 1);
		net_push(n, at + len);
		return NET_MORE;
	}
	if (r == 0 && n->nbufs)
		r = net_wait(n, at + len);
	net_put_back(n);
	return r == 0 ? NET_NO_ROOM : NET_MORE;
}

/* ---- Receiving ----------------------------------------------------------------------- */

/* Bytes; 0: the end of a stream; -1: nothing now, and why is in errno. */
static ssize_t net_read(struct net *n, struct iovec *iov, size_t niov)
{
	struct msghdr msg = { .msg_iov = iov, .msg_iovlen = niov };
	ssize_t r;

	do
		r = n->back.kind == NET_TAP ? readv(n->back.fd, iov, (int)niov) :
					      recvmsg(n->back.fd, &msg, MSG_DONTWAIT);
	while (r < 0 && errno == EINTR);
	return r;
}

static int net_nothing_read(struct net *n, ssize_t r)
{
	if (r == 0)
		net_gone(n, ECONNRESET, "the other side has closed it");
	else if (errno != EAGAIN && errno != ECONNREFUSED && errno != ENOBUFS && errno != ENOMEM)
		net_gone(n, errno, strerror(errno));
	return NET_DONE;
}

/*
 * A frame from a tap or datagram socket, straight into the guest's buffers, and
 * what they have no room for into ours, at the place where it would be if all
 * were there.
 */
static int net_receive_frame(struct net *n)
{
	uint32_t skip = net_skip(n), room, cut, len, i;
	struct iovec iov[CHAIN_MAX + 1];
	ssize_t got;
	int r;

	if (n->len) {
		r = net_deliver(n, n->buf + skip, n->len - skip);
		if (r == NET_MORE)
			n->len = 0;
		return r;
	}
	net_gather(n, n->want);
	if (!n->nbufs)
		return NET_NO_ROOM;
	room = n->room;
	for (i = 0, cut = skip; i < n->niov; i++) {
		iov[i] = n->iov[i];
		if (cut < iov[i].iov_len) {
			iov[i].iov_base = (uint8_t *)iov[i].iov_base + cut;
			iov[i].iov_len -= cut;
			cut = 0;
		} else {
			cut -= (uint32_t)iov[i].iov_len;
			iov[i].iov_len = 0;
		}
	}
	/* One byte more than is allowed tells what is too long. */
	iov[i].iov_base = n->buf + (room < NET_BUF ? room : 0);
	iov[i].iov_len = room < NET_HDR + NET_FRAME + 1 ? NET_HDR + NET_FRAME + 1 - room : 0;
	got = net_read(n, iov, i + 1);
	if (got < 0 || (got == 0 && n->back.kind != NET_DATAGRAM)) {
		net_put_back(n);
		return net_nothing_read(n, got);
	}
	len = skip + (uint32_t)got;
	if (len < NET_HDR + NET_FRAME_MIN || len > NET_HDR + NET_FRAME) {
		net_put_back(n);
		return NET_MORE;	/* that is no frame: drop it */
	}
	r = net_gather(n, len);
	if (r > 0) {
		if (len > room)
			net_copy(n->iov, n->niov, room, n->buf + room, len - room, 1);
		net_push(n, len);
		return NET_MORE;
	}
	if (r == 0)
		r = net_wait(n, len);
	if (r == 0) {
		net_copy(n->iov, n->niov, 0, n->buf, room, 0);
		n->len = n->want = len;
	}
	net_put_back(n);
	return r == 0 ? NET_NO_ROOM : NET_MORE;
}

static int net_receive_stream(struct net *n)
{
	struct iovec iov;
	uint32_t size;
	ssize_t got;
	int r;

	for (;;) {
		if (n->len >= sizeof(size)) {
			memcpy(&size, n->buf + n->head, sizeof(size));
			size = ntohl(size);
			if (size < NET_FRAME_MIN || size > NET_FRAME) {
				net_gone(n, EPROTO, "the other side sent a frame of impossible length");
				return NET_DONE;
			}
			if (n->len >= sizeof(size) + size)
				break;
		}
		memmove(n->buf, n->buf + n->head, n->len);
		n->head = 0;
		iov.iov_base = n->buf + n->len;
		iov.iov_len = NET_BUF - n->len;
		got = net_read(n, &iov, 1);
		if (got <= 0)
			return net_nothing_read(n, got);
		n->len += (uint32_t)got;
	}
	r = net_deliver(n, n->buf + n->head + sizeof(size), size);
	if (r == NET_MORE) {
		n->head += (uint32_t)sizeof(size) + size;
		n->len -= (uint32_t)sizeof(size) + size;
	}
	return r;
}

/* Receive again soon, on the I/O thread: epoll does not know what we keep. */
static void net_again(struct net *n)
{
	n->rx_later = 1;
	queue_again(&n->v.queue[NET_RX]);
}

static void net_receive(struct net *n)
{
	uint32_t turn;
	int r = NET_MORE;

	for (turn = 0; r == NET_MORE && turn < NET_TURN; turn++) {
		if (!throttle_ok(&n->rx_limit)) {
			n->rx_wait = 1;
			break;
		}
		r = n->back.kind == NET_STREAM ? net_receive_stream(n) : net_receive_frame(n);
	}
	n->starved = r == NET_NO_ROOM;
	queue_signal(&n->v.queue[NET_RX]);
	if (r == NET_MORE && n->len && !n->rx_wait)
		net_again(n);
	net_watch(n);
}

/*
 * There is room, or time: take up what was left.  Of a ring that is not set up
 * notify() is not called, and whoever counts on it does not read.
 */
static void net_go_on(struct net *n)
{
	if (n->back.kind != NET_NONE && n->len && n->v.active && n->v.queue[NET_RX].ready)
		net_again(n);
	else
		net_watch(n);
}

/* A frame has waited long enough: what the driver's notification would do. */
static void net_waited(void *arg, uint32_t events)
{
	struct net *n = arg;
	uint64_t count;

	(void)events;
	if (read(n->timer.fd, &count, sizeof(count)) < 0 || !n->starved)
		return;
	n->starved = 0;
	net_go_on(n);
}

static void net_rx_allowed(void *arg)
{
	struct net *n = arg;

	n->rx_wait = 0;
	net_go_on(n);
}

/* ---- Sending ---------------------------------------------------------------------------- */

/* Bytes, or -1: not now; what can never be sent is dropped. */
static ssize_t net_write(struct net *n, struct iovec *iov, size_t niov, size_t len)
{
	struct msghdr msg = { .msg_iov = iov, .msg_iovlen = niov };
	ssize_t r;

	do
		r = n->back.kind == NET_TAP ? writev(n->back.fd, iov, (int)niov) :
			sendmsg(n->back.fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
	while (r < 0 && errno == EINTR);
	if (r >= 0)
		return r;
	if (errno == EAGAIN)
		return -1;
	if (errno == EPIPE || errno == ECONNRESET || errno == ENOTCONN || errno == EBADFD ||
	    n->back.kind == NET_STREAM)
		net_gone(n, errno, strerror(errno));
	return (ssize_t)len;
}

/* 1: sent, or dropped.  0: not now. */
static int net_send(struct net *n, const struct chain *c)
{
	uint32_t cut = net_skip(n), len = c->out_len - NET_HDR, i, lead = 0, total;
	struct iovec iov[CHAIN_MAX + 1];
	uint32_t size = htonl(len);
	ssize_t r;

	if (n->back.kind == NET_NONE || c->out_len < NET_HDR + NET_FRAME_MIN || len > NET_FRAME)
		return 1;
	if (n->back.kind == NET_STREAM) {
		iov[0].iov_base = &size;
		iov[0].iov_len = sizeof(size);
		lead = 1;
	}
	total = c->out_len - cut + lead * (uint32_t)sizeof(size);
	for (i = 0; i < c->nout; i++) {
		struct iovec *v = &iov[lead + i];

		*v = c->iov[i];
		if (cut < v->iov_len) {
			v->iov_base = (uint8_t *)v->iov_base + cut;
			v->iov_len -= cut;
			cut = 0;
		} else {
			cut -= (uint32_t)v->iov_len;
			v->iov_len = 0;
		}
	}
	r = net_write(n, iov, lead + c->nout, total);
	if (r < 0)
		return 0;
	if (n->back.kind == NET_STREAM && r < (ssize_t)total) {
		n->rest_head = 0;
		n->rest_len = total - (uint32_t)r;
		net_copy(iov, lead + c->nout, (uint32_t)r, n->rest, n->rest_len, 0);
		n->tx_full = 1;
	}
	throttle_charge(&n->tx_limit, len);
	return 1;
}

static void net_transmit(struct net *n)
{
	struct queue *q = &n->v.queue[NET_TX];
	int later = n->tx_later;
	uint64_t bytes = 0;
	struct chain c;

	n->tx_later = 0;
	while (!n->tx_full && !n->tx_wait && queue_pop(q, &c)) {
		bytes += c.out_len;
		if (c.out_len < NET_HDR) {
			virtio_fail(&n->v, "a frame has no header");
			return;
		}
		if (!throttle_ok(&n->tx_limit)) {
			n->tx_wait = 1;
		} else if (bytes > NET_AT_ONCE && !later) {
			n->tx_later = 1;
			queue_again(q);
		} else if (net_send(n, &c)) {
			queue_push(q, c.head, 0);
			continue;
		} else {
			n->tx_full = 1;
		}
		queue_unpop(q);
		break;
	}
	queue_signal(q);
	net_watch(n);
}

static void net_tx_allowed(void *arg)
{
	struct net *n = arg;

	n->tx_wait = 0;
	if (n->v.active)
		queue_again(&n->v.queue[NET_TX]);
}

/* The rest of a frame first, then others. */
static void net_writable(struct net *n)
{
	struct iovec iov = { n->rest + n->rest_head, n->rest_len };
	ssize_t r = n->rest_len ? net_write(n, &iov, 1, n->rest_len) : 0;

	if (r < 0)
		return;
	if (n->rest_len) {
		n->rest_head += (uint32_t)r;
		n->rest_len -= (uint32_t)r;
	}
	if (n->rest_len)
		return;
	n->tx_full = 0;
	/* Only within notify() is there a bound to what a guest can make us take. */
	n->tx_later = 1;
	queue_again(&n->v.queue[NET_TX]);
	net_watch(n);
}

static void net_on_ready(void *arg, uint32_t events)
{
	struct net *n = arg;

	/* Broken since: what was left to notify() stays there until the reset. */
	if (!n->v.active) {
		net_watch(n);
		return;
	}
	if (n->tx_full)
		net_writable(n);
	if ((events & ~(uint32_t)EPOLLOUT) && n->back.kind != NET_NONE && !n->starved &&
	    !n->rx_wait && !n->rx_later)
		net_receive(n);
}

static void net_notify(struct virtio *v, struct queue *q)
{
	struct net *n = (struct net *)v;

	if (q->index == NET_TX) {
		net_transmit(n);
	} else if (n->rx_later) {
		n->rx_later = 0;
		if (n->back.kind != NET_NONE)
			net_receive(n);
	} else if (n->starved) {
		n->starved = 0;
		net_go_on(n);
	}
}

/* ---- The device ------------------------------------------------------------------------------ */

static void net_activate(struct virtio *v)
{
	struct net *n = (struct net *)v;

	if (n->back.header && net_tap_set(n->back.fd, v->features) < 0) {
		/* Fewer and fewer lines: a guest can start over as often as it likes. */
		n->refusals++;
		if ((n->refusals & (n->refusals - 1)) == 0)
			virtio_log(v, VMM_LOG_WARN, "offloads of the tap: %s", strerror(errno));
	}
	n->want = NET_HDR + 1514;
	net_go_on(n);
	queue_again(&v->queue[NET_TX]);	/* frames left there when it was saved */
}

/* What was on its way to the guest is dropped; the rest of a frame is not. */
static void net_reset(struct virtio *v)
{
	struct net *n = (struct net *)v;

	n->nbufs = n->niov = n->room = 0;
	if (n->back.kind != NET_STREAM)
		n->len = 0;
	n->starved = n->rx_later = n->tx_later = 0;
	n->scant = 0;
	net_watch(n);
}

static void net_save(const struct virtio *v, struct writer *w)
{
	const struct net *n = (const struct net *)v;

	put_bytes(w, n->config.mac, sizeof(n->config.mac));
	put_u64(w, v->offers);
	put_u64(w, n->rx_limit.bytes.rate);
	put_u64(w, n->rx_limit.ops.rate);
}

static void net_limits(struct net *n, uint64_t bytes_per_sec, uint64_t ops_per_sec)
{
	throttle_set(&n->rx_limit, bytes_per_sec, ops_per_sec);
	throttle_set(&n->tx_limit, bytes_per_sec, ops_per_sec);
}

static int net_load(struct virtio *v, struct reader *r, struct vmm_error *err)
{
	struct net *n = (struct net *)v;
	uint64_t offers, bytes, ops;

	(void)err;
	get_bytes(r, n->config.mac, sizeof(n->config.mac));
	offers = get_u64(r);
	bytes = get_u64(r);
	ops = get_u64(r);
	/* Whoever gives it a back end must see to it that it can do that. */
	if (n->back.kind == NET_NONE) {
		v->offers |= offers & NET_OFFLOADS;
		n->config.status = VIRTIO_NET_S_LINK_UP;
		net_limits(n, bytes, ops);
	}
	return 0;
}

/* No back end was given: the cable is pulled. */
static int net_open(struct virtio *v, struct vmm_error *err)
{
	struct net *n = (struct net *)v;

	(void)err;
	if (n->back.kind == NET_NONE)
		net_link(n, 0);
	return 0;
}

static void net_free(struct virtio *v)
{
	struct net *n = (struct net *)v;

	net_detach(n);
	loop_del(v->env.loop, &n->timer);
	if (n->timer.fd >= 0)
		close(n->timer.fd);
	throttle_fini(&n->rx_limit);
	throttle_fini(&n->tx_limit);
	free(n->buf);
	free(n->rest);
	virtio_fini(v);
	free(n);
}

static const struct virtio_ops net_ops = {
	.type		= "net",
	.id		= VIRTIO_ID_NET,
	.version	= 1,
	.notify		= net_notify,
	.activate	= net_activate,
	.reset		= net_reset,
	.save		= net_save,
	.load		= net_load,
	.open		= net_open,
	.free		= net_free,
};

/* Take over a back end that was opened. */
static void net_attach(struct net *n, const struct net_back *b)
{
	net_detach(n);
	n->back = *b;
	n->io.fd = b->fd;
	n->v.offers = (n->v.offers & ~NET_OFFLOADS) | b->offloads;
}

int net_new(struct virtio **out, const struct virtio_env *env, const char *name,
	    const struct net_config *cfg, struct vmm_error *err)
{
	struct net *n = calloc(1, sizeof(*n));
	struct net_back b;
	int r;

	*out = NULL;
	if (!n)
		return fail(err, VMM_ENOMEM, "%s", name);
	n->back.fd = -1;
	n->io = (struct io){ .fn = net_on_ready, .arg = n, .fd = -1 };
	n->timer = (struct io){ .fn = net_waited, .arg = n, .fd = -1 };
	throttle_init(&n->rx_limit, env->loop, net_rx_allowed, n);
	throttle_init(&n->tx_limit, env->loop, net_tx_allowed, n);
	r = virtio_init(&n->v, &net_ops, env, name, NET_QUEUES, err);
	if (r)
		goto drop;
	n->buf = malloc(NET_BUF);
	n->rest = malloc(NET_FRAME + sizeof(uint32_t));
	if (!n->buf || !n->rest) {
		r = fail(err, VMM_ENOMEM, "%s", name);
		goto drop;
	}
	if (cfg->mac) {
		memcpy(n->config.mac, cfg->mac, sizeof(n->config.mac));
	} else {
		if (getrandom(n->config.mac, sizeof(n->config.mac), 0) != sizeof(n->config.mac)) {
			r = fail_sys(err, errno, "a MAC address for %s", name);
			goto drop;
		}
		/* Locally administered, not a group's. */
		n->config.mac[0] = (uint8_t)((n->config.mac[0] & ~1u) | 2u);
	}
	r = net_back_open(&b, cfg->fd, name, err);
	if (r)
		goto drop;
	n->v.offers |= NET_BIT(MAC) | NET_BIT(STATUS) | NET_BIT(MRG_RXBUF);
	net_attach(n, &b);
	n->config.status = b.kind == NET_NONE ? 0 : VIRTIO_NET_S_LINK_UP;
	n->v.config = &n->config;
	n->v.config_size = offsetof(struct virtio_net_config, max_virtqueue_pairs);
	net_limits(n, cfg->bytes_per_sec, cfg->ops_per_sec);
	*out = &n->v;
	return 0;

drop:
	net_free(&n->v);
	return r;
}

int net_replace(struct virtio *v, const struct net_config *cfg, struct vmm_error *err)
{
	struct net *n = (struct net *)v;
	struct net_back b;
	uint64_t alien;
	int r = net_back_open(&b, cfg->fd, v->name, err);

	if (r)
		return r;
	alien = v->features & NET_OFFLOADS & ~b.offloads;
	if (v->active && alien) {
		if (b.fd >= 0)
			close(b.fd);
		return fail(err, VMM_EVERSION,
			    "%s: the guest uses features 0x%llx, which only a tap with IFF_VNET_HDR has",
			    v->name, (unsigned long long)alien);
	}
	net_attach(n, &b);
	if (cfg->bytes_per_sec || cfg->ops_per_sec)
		net_limits(n, cfg->bytes_per_sec, cfg->ops_per_sec);
	net_link(n, b.kind != NET_NONE);
	if (v->active)
		net_activate(v);
	return 0;
}

void net_limit(struct virtio *v, uint64_t bytes_per_sec, uint64_t ops_per_sec)
{
	net_limits((struct net *)v, bytes_per_sec, ops_per_sec);
}
