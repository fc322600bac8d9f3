/* SPDX-License-Identifier: MIT */
/*
 * test_net.c - network device: frames to and from sockets, and a tap where one
 * can be made.  The other side of the wire is this program.
 */
#define DRV_RAM_SIZE (32ull << 20)
#include "driver.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <pthread.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <linux/if_tun.h>
#include <linux/rtnetlink.h>
#include <linux/virtio_net.h>

#define F(x) (1ull << VIRTIO_NET_F_##x)
#define HDR 12u
#define BUF 2048u			/* of a receive buffer */
#define LONG 65550u			/* the longest frame */

enum { RX, TX };

struct wire {
	struct driver	d;
	int		fd;		/* our end */
	int		type;
	int		sndbuf;		/* of the device's end, if not 0 */
	int		still;		/* no I/O thread: step() is what there is */
	uint64_t	rx[256];
	uint16_t	slot[256];
	uint64_t	tx;
};

static void give(struct wire *w, uint16_t slot, uint32_t len)
{
	struct drv_buf b[2] = { { w->rx[slot], 20 }, { w->rx[slot] + 20, len - 20 } };

	w->slot[w->d.ring[RX].free] = slot;
	drv_add(&w->d, RX, b, 0, 2);
}

/* The driver is ready, with n buffers of len bytes. */
static void begin(struct wire *w, uint64_t features, uint16_t n, uint32_t len)
{
	struct driver *d = &w->d;
	uint16_t i;

	d->brk = DRV_RAM + 4096;
	d->num = 64;
	assert_true(drv_negotiate(d, features | DRV_INDIRECT) & VIRTIO_CONFIG_S_FEATURES_OK);
	for (i = 0; i < 2; i++) {
		drv_ring_place(d, i);
		drv_ring_set(d, i, d->num, d->ring[i].desc, d->ring[i].avail, d->ring[i].used);
	}
	for (i = 0; i < n; i++) {
		w->rx[i] = drv_alloc(d, len);
		give(w, i, len);
	}
	w->tx = drv_alloc(d, LONG + HDR);
	drv_ok(d);
}

static void attach(struct wire *w, int type, const struct net_config *more)
{
	struct net_config cfg = more ? *more : (struct net_config)NET_CONFIG_INIT;
	struct vmm_error err;
	struct virtio *v;
	int s[2], big = 1 << 20;

	w->type = type;
	assert_int_equal(socketpair(AF_UNIX, type, 0, s), 0);
	setsockopt(s[0], SOL_SOCKET, SO_SNDBUF, &big, sizeof(big));
	if (w->sndbuf)
		setsockopt(s[1], SOL_SOCKET, SO_SNDBUF, &w->sndbuf, sizeof(w->sndbuf));
	cfg.fd = s[1];
	assert_int_equal(net_new(&v, &w->d.env, "net0", &cfg, &err), 0);
	close(s[1]);
	w->fd = s[0];
	drv_attach(&w->d, v);
	if (!w->still)
		drv_run(&w->d);
}

/* What the I/O thread would do next, if there is anything. */
static int step(struct wire *w)
{
	struct epoll_event ev;
	struct io *io;

	if (epoll_wait(w->d.loop.epfd, &ev, 1, 0) != 1)
		return 0;
	io = ev.data.ptr;
	loop_lock(&w->d.loop);
	io->fn(io->arg, ev.events);
	loop_unlock(&w->d.loop);
	return 1;
}

static int setup(void **state)
{
	struct wire *w = calloc(1, sizeof(*w));

	drv_open(&w->d);
	w->fd = -1;
	*state = w;
	return 0;
}

static int teardown(void **state)
{
	struct wire *w = *state;

	drv_close(&w->d);
	if (w->fd >= 0)
		close(w->fd);
	free(w);
	return 0;
}

static uint8_t pattern(uint32_t seed, uint32_t off)
{
	return (uint8_t)((seed * 31 + off) * 2654435761u >> 13);
}

static const uint8_t *frame(uint32_t seed, uint32_t len)
{
	static uint8_t buf[4 + LONG];
	uint32_t i, be = htonl(len);

	memcpy(buf, &be, 4);
	for (i = 0; i < len; i++)
		buf[4 + i] = pattern(seed, i);
	return buf + 4;
}

/* To the guest, from the other side of the wire. */
static void put(struct wire *w, uint32_t seed, uint32_t len)
{
	const uint8_t *p = frame(seed, len);
	size_t lead = w->type == SOCK_STREAM ? 4 : 0;

	assert_int_equal(send(w->fd, p - lead, len + lead, 0), len + lead);
}

/* From the guest. */
static void get(struct wire *w, uint32_t seed, uint32_t len)
{
	static uint8_t buf[LONG + 1];
	uint32_t be;

	if (w->type == SOCK_STREAM) {
		assert_int_equal(recv(w->fd, &be, 4, MSG_WAITALL), 4);
		assert_int_equal(ntohl(be), len);
	}
	assert_int_equal(recv(w->fd, buf, w->type == SOCK_STREAM ? len : sizeof(buf), MSG_WAITALL),
			 len);
	assert_memory_equal(buf, frame(seed, len), len);
}

/* In the guest: a frame arrives, in any number of buffers of `size` bytes. */
static void hear(struct wire *w, uint32_t seed, uint32_t len, uint32_t size)
{
	struct driver *d = &w->d;
	struct virtio_net_hdr_v1 h;
	uint8_t buf[LONG + HDR];
	uint32_t id = 0, n = 0, got = 0, i, left = 1;
	uint16_t slot;

	for (i = 0; i < left; i++) {
		assert_true(drv_wait(d, RX, &id, &n));
		slot = w->slot[id % d->num];
		assert_true(n <= size && got + n <= sizeof(buf));
		memcpy(buf + got, drv_hva(d, w->rx[slot]), n);
		got += n;
		if (i == 0) {
			memcpy(&h, buf, sizeof(h));
			left = h.num_buffers;
			assert_in_range(left, 1, 64);
		}
		memset(drv_hva(d, w->rx[slot]), 0xee, size);
		give(w, slot, size);
	}
	drv_notify(d, RX);
	assert_int_equal(got, HDR + len);
	assert_int_equal(h.flags, 0);
	assert_int_equal(h.gso_type, 0);
	assert_memory_equal(buf + HDR, frame(seed, len), len);
}

/* In the guest: send a frame, in `cuts` + 1 buffers. */
static void say(struct wire *w, uint32_t seed, uint32_t len, uint32_t cuts)
{
	struct driver *d = &w->d;
	uint8_t *p = drv_hva(d, w->tx);
	struct drv_buf b[4];
	uint32_t i, at = 0;

	memset(p, 0, HDR);
	memcpy(p + HDR, frame(seed, len), len);
	for (i = 0; i < cuts; i++) {
		b[i] = (struct drv_buf){ w->tx + at, 5 + i };
		at += 5 + i;
	}
	b[cuts] = (struct drv_buf){ w->tx + at, HDR + len - at };
	assert_int_equal(drv_send(d, TX, b, (uint16_t)(cuts + 1), 0), 0);
}

static uint16_t status(struct wire *w)
{
	uint16_t s;

	drv_config(&w->d, offsetof(struct virtio_net_config, status), &s, sizeof(s));
	return s;
}

static void wait_status(struct wire *w, uint16_t want)
{
	int i;

	for (i = 0; i < DRV_WAIT_MS && status(w) != want; i++)
		usleep(1000);
	assert_int_equal(status(w), want);
}

/* ---- Tests ---------------------------------------------------------------------- */

static void test_config(void **state)
{
	struct wire *w = *state;
	static const uint8_t mac[6] = { 2, 3, 4, 5, 6, 7 };
	struct net_config cfg = NET_CONFIG_INIT;
	uint8_t got[6], other[6];
	struct vmm_error err;
	struct virtio *v;

	cfg.mac = mac;
	attach(w, SOCK_DGRAM, &cfg);
	begin(w, F(MAC) | F(STATUS), 4, BUF);
	drv_config(&w->d, 0, got, 6);
	assert_memory_equal(got, mac, 6);
	assert_int_equal(status(w), VIRTIO_NET_S_LINK_UP);
	assert_false(drv_offers(&w->d) & (F(CSUM) | F(HOST_TSO4) | F(GUEST_TSO4)));
	assert_true(drv_offers(&w->d) & F(MRG_RXBUF));
	drv_detach(&w->d);
	close(w->fd);
	attach(w, SOCK_STREAM, NULL);
	drv_config(&w->d, 0, got, 6);
	assert_int_equal(got[0] & 3, 2);
	drv_detach(&w->d);
	close(w->fd);
	attach(w, SOCK_SEQPACKET, NULL);
	drv_config(&w->d, 0, other, 6);
	assert_memory_not_equal(got, other, 6);
	/* What is no network. */
	cfg.fd = open("/dev/null", O_RDWR);
	assert_int_equal(net_new(&v, &w->d.env, "x", &cfg, &err), VMM_ESYS);
	assert_null(v);
	close(cfg.fd);
	assert_int_equal(net_new(&v, &w->d.env, "x", &cfg, &err), VMM_ESYS);
}

static void traffic(struct wire *w, int type)
{
	static const uint32_t lens[] = { 14, 60, 1514, 1515, 2035, 2036, 2037, 4084, 4085, 9000,
					 65535, LONG, 14, LONG, 60 };
	uint32_t i, k;

	attach(w, type, NULL);
	begin(w, F(MRG_RXBUF) | F(STATUS) | DRV_EVENT_IDX, 60, BUF);
	for (i = 0; i < sizeof(lens) / sizeof(lens[0]); i++) {
		put(w, i, lens[i]);
		hear(w, i, lens[i], BUF);
		say(w, i, lens[i], i % 4);
		get(w, i, lens[i]);
	}
	/* Many at once. */
	for (k = 0; k < 5; k++) {
		for (i = 0; i < 10; i++)
			put(w, i, 1000 + i);
		for (i = 0; i < 10; i++)
			hear(w, i, 1000 + i, BUF);
	}
	/* One buffer each. */
	begin(w, F(STATUS), 32, BUF);
	for (i = 0; i < 100; i++) {
		put(w, i, 14 + i * 20);
		hear(w, i, 14 + i * 20, BUF);
	}
	put(w, 1, 2036);
	put(w, 2, 2037);	/* does not fit, and is dropped */
	put(w, 3, 100);
	hear(w, 1, 2036, BUF);
	hear(w, 3, 100, BUF);
	assert_int_equal(__atomic_load_n(&w->d.lines, __ATOMIC_SEQ_CST), 0);
}

static void test_datagram(void **state)
{
	traffic(*state, SOCK_DGRAM);
}

static void test_seqpacket(void **state)
{
	struct wire *w = *state;

	traffic(w, SOCK_SEQPACKET);
	close(w->fd);
	w->fd = -1;
	wait_status(w, 0);
}

static void test_stream(void **state)
{
	traffic(*state, SOCK_STREAM);
}

/* Notify until something has been used. */
static void kick(struct wire *w)
{
	int i;

	for (i = 0; i < DRV_WAIT_MS; i++) {
		if (__atomic_load_n(&drv_used(&w->d, RX)[1], __ATOMIC_ACQUIRE) !=
		    w->d.ring[RX].seen)
			break;
		drv_notify(&w->d, RX);
		usleep(1000);
	}
}

/* Buffers come late, too few, or too small. */
static void test_room(void **state)
{
	struct wire *w = *state;
	uint32_t i;

	attach(w, SOCK_DGRAM, NULL);
	begin(w, F(MRG_RXBUF) | DRV_EVENT_IDX, 0, BUF);
	put(w, 1, 100);
	put(w, 2, 200);
	usleep(2000);
	for (i = 0; i < 2; i++) {
		w->rx[i] = drv_alloc(&w->d, BUF);
		give(w, (uint16_t)i, BUF);
	}
	drv_notify(&w->d, RX);
	hear(w, 1, 100, BUF);
	hear(w, 2, 200, BUF);
	/* It takes five, and there are two; then there are six. */
	put(w, 3, 9000);
	usleep(5000);
	for (i = 2; i < 6; i++) {
		w->rx[i] = drv_alloc(&w->d, BUF);
		give(w, (uint16_t)i, BUF);
	}
	drv_notify(&w->d, RX);
	hear(w, 3, 9000, BUF);
	/* It takes eight, and there will never be; others pass. */
	put(w, 4, 14000);
	put(w, 5, 100);
	kick(w);
	hear(w, 5, 100, BUF);
	/* The same with a stream. */
	drv_detach(&w->d);
	close(w->fd);
	attach(w, SOCK_STREAM, NULL);
	begin(w, F(MRG_RXBUF), 6, BUF);
	put(w, 4, 14000);
	put(w, 5, 100);
	kick(w);
	hear(w, 5, 100, BUF);
	/* A buffer for less than a header is no buffer. */
	begin(w, F(MRG_RXBUF), 0, BUF);
	struct drv_buf b = { w->tx, HDR - 1 };
	drv_add(&w->d, RX, &b, 0, 1);
	put(w, 6, 100);
	for (i = 0; i < 1000 && !drv_broken(&w->d); i++)
		usleep(1000);
	assert_true(drv_broken(&w->d));
	begin(w, F(MRG_RXBUF), 8, BUF);
	hear(w, 6, 100, BUF);
}

/* All that the driver has is too little, and nothing comes back that it could offer again. */
static void small(struct wire *w, int type)
{
	struct timespec a, b;
	uint32_t i;

	attach(w, type, NULL);
	begin(w, F(MRG_RXBUF) | DRV_EVENT_IDX, 6, BUF);
	put(w, 1, 100);
	hear(w, 1, 100, BUF);
	clock_gettime(CLOCK_MONOTONIC, &a);
	for (i = 0; i < 100; i++) {
		put(w, 4, 14000);
		put(w, i, 100 + i);
		hear(w, i, 100 + i, BUF);
	}
	/* Not each of them waits. */
	clock_gettime(CLOCK_MONOTONIC, &b);
	assert_in_range(b.tv_sec - a.tv_sec, 0, 6);
	/* As long as there may be is waited for, still; then as long as there are. */
	put(w, 6, 12000);
	hear(w, 6, 12000, BUF);
	for (i = 6; i < 10; i++) {
		w->rx[i] = drv_alloc(&w->d, BUF);
		give(w, (uint16_t)i, BUF);
	}
	drv_notify(&w->d, RX);
	put(w, 7, 14000);
	hear(w, 7, 14000, BUF);
	drv_detach(&w->d);
	close(w->fd);
}

static void test_small(void **state)
{
	struct wire *w = *state;

	small(w, SOCK_DGRAM);
	small(w, SOCK_STREAM);
	w->fd = -1;
}

/* Behind a small buffer one of 4 GiB: RAM over and over. */
static void test_endless_buffer(void **state)
{
	enum { N = 128, SMALL = 100, LEN = 1000 };
	struct wire *w = *state;
	struct driver *d = &w->d;
	struct vring_desc *table;
	uint32_t id, len, i;
	uint64_t small, at;

	attach(w, SOCK_DGRAM, NULL);
	begin(w, F(MRG_RXBUF), 0, 0);
	small = drv_alloc(d, SMALL);
	at = drv_alloc(d, N * sizeof(*table));
	table = drv_hva(d, at);
	for (i = 0; i < N; i++)
		table[i] = (struct vring_desc){ DRV_RAM, DRV_RAM_SIZE, VRING_DESC_F_WRITE |
			(i + 1 < N ? VRING_DESC_F_NEXT : 0), (uint16_t)(i + 1) };
	table[0].len--;
	*drv_desc(d, RX, 0) = (struct vring_desc){ small, SMALL, VRING_DESC_F_WRITE, 0 };
	*drv_desc(d, RX, 1) = (struct vring_desc){ at, N * sizeof(*table), VRING_DESC_F_INDIRECT, 0 };
	drv_expose(d, RX, 0);
	drv_expose(d, RX, 1);
	drv_notify(d, RX);
	put(w, 1, LEN);
	assert_true(drv_wait(d, RX, &id, &len));
	assert_int_equal(len, SMALL);
	assert_true(drv_wait(d, RX, &id, &len));
	assert_int_equal(len, HDR + LEN - SMALL);
	assert_memory_equal(drv_hva(d, small + HDR), frame(1, LEN), SMALL - HDR);
	assert_memory_equal(drv_hva(d, DRV_RAM), frame(1, LEN) + SMALL - HDR, HDR + LEN - SMALL);
}

/* Frames that are none, from either side. */
static void test_bad_frames(void **state)
{
	struct wire *w = *state;
	static uint8_t huge[LONG + 100];
	struct drv_buf b;
	uint32_t be;

	attach(w, SOCK_DGRAM, NULL);
	begin(w, F(MRG_RXBUF) | F(STATUS), 48, BUF);
	assert_int_equal(send(w->fd, huge, 0, 0), 0);
	assert_int_equal(send(w->fd, huge, 13, 0), 13);
	assert_int_equal(send(w->fd, huge, LONG + 1, 0), LONG + 1);
	assert_int_equal(send(w->fd, huge, LONG + 100, 0), LONG + 100);
	put(w, 1, 60);
	hear(w, 1, 60, BUF);
	b = (struct drv_buf){ w->tx, HDR };
	assert_int_equal(drv_send(&w->d, TX, &b, 1, 0), 0);
	b.len = HDR + 13;
	assert_int_equal(drv_send(&w->d, TX, &b, 1, 0), 0);
	b = (struct drv_buf){ DRV_RAM, 1 << 20 };
	assert_int_equal(drv_send(&w->d, TX, &b, 1, 0), 0);
	say(w, 2, 60, 1);
	get(w, 2, 60);
	b = (struct drv_buf){ w->tx, HDR - 1 };
	drv_add(&w->d, TX, &b, 1, 0);
	drv_notify(&w->d, TX);
	assert_true(drv_broken(&w->d));
	/* A stream that is out of step cannot be trusted again. */
	drv_detach(&w->d);
	close(w->fd);
	attach(w, SOCK_STREAM, NULL);
	begin(w, F(MRG_RXBUF) | F(STATUS), 48, BUF);
	put(w, 1, 60);
	hear(w, 1, 60, BUF);
	be = htonl(LONG + 1);
	assert_int_equal(send(w->fd, &be, 4, 0), 4);
	wait_status(w, 0);
	assert_true(drv_read(&w->d, VIRTIO_MMIO_INTERRUPT_STATUS) & VIRTIO_MMIO_INT_CONFIG);
	say(w, 2, 60, 1);		/* to nowhere */
	assert_int_equal(recv(w->fd, &be, 4, 0), 0);
}

/* Frames that come in bits; frames the other side does not take. */
static void test_stream_bits(void **state)
{
	struct wire *w = *state;
	const uint8_t *p;
	struct drv_buf b;
	uint32_t i, sent = 0;

	w->sndbuf = 20000;		/* so that it takes parts of a frame */
	attach(w, SOCK_STREAM, NULL);
	begin(w, F(MRG_RXBUF) | F(STATUS) | DRV_EVENT_IDX, 60, BUF);
	p = frame(1, 300) - 4;
	for (i = 0; i < 304; i++) {
		assert_int_equal(send(w->fd, p + i, 1, 0), 1);
		if (i % 16 == 0)
			usleep(100);
	}
	hear(w, 1, 300, BUF);
	/* Until it is full: the rest of a frame waits. */
	for (i = 0; i < 40; i++) {
		uint64_t at = drv_alloc(&w->d, HDR + 20000);

		memcpy(drv_hva(&w->d, at + HDR), frame(i, 20000), 20000);
		b = (struct drv_buf){ at, HDR + 20000 };
		drv_add(&w->d, TX, &b, 1, 0);
		drv_notify(&w->d, TX);
	}
	usleep(5000);
	while (drv_get(&w->d, TX, NULL, NULL))
		sent++;
	assert_in_range(sent, 1, 39);
	for (i = 0; i < 40; i++)
		get(w, i, 20000);
	while (sent < 40 && drv_wait(&w->d, TX, NULL, NULL))
		sent++;
	assert_int_equal(sent, 40);
	/* A guest that starts over in the middle of one. */
	for (i = 0; i < 40; i++) {
		b = (struct drv_buf){ w->tx, HDR + 20000 };
		memcpy(drv_hva(&w->d, w->tx + HDR), frame(7, 20000), 20000);
		drv_add(&w->d, TX, &b, 1, 0);
		drv_notify(&w->d, TX);
	}
	usleep(5000);
	for (sent = 0; drv_get(&w->d, TX, NULL, NULL); sent++)
		;
	begin(w, F(MRG_RXBUF) | F(STATUS), 60, BUF);
	for (i = 0; i < sent; i++)
		get(w, 7, 20000);
	say(w, 8, 60, 1);
	get(w, 8, 60);
	w->sndbuf = 0;
}

/* Send until the device takes no more: how many it has taken, and returned. */
static uint32_t fill(struct wire *w, uint32_t n)
{
	struct drv_buf b = { w->tx, HDR + 20000 };
	uint32_t i, sent = 0;

	memcpy(drv_hva(&w->d, w->tx + HDR), frame(7, 20000), 20000);
	for (i = 0; i < n; i++) {
		drv_add(&w->d, TX, &b, 1, 0);
		drv_notify(&w->d, TX);
		while (w->still && step(w))
			;
	}
	if (!w->still)
		usleep(5000);
	while (drv_get(&w->d, TX, NULL, NULL))
		sent++;
	assert_in_range(sent, 1, n - 1);
	return sent;
}

/*
 * A socket that takes more is no notification, and none has a bound elsewhere: a guest
 * whose other vCPU goes on adding would keep the I/O lock for as long as it likes.
 */
static void test_endless_ring(void **state)
{
	struct wire *w = *state;
	static char sink[65536];
	uint32_t sent;

	w->sndbuf = 20000;
	w->still = 1;
	attach(w, SOCK_STREAM, NULL);
	begin(w, F(MRG_RXBUF), 0, 0);
	sent = fill(w, 40);
	while (sent < 40) {
		while (recv(w->fd, sink, sizeof(sink), MSG_DONTWAIT) > 0)
			;
		assert_true(step(w));
		assert_false(drv_get(&w->d, TX, NULL, NULL));
		while (step(w))
			;
		assert_true(drv_get(&w->d, TX, NULL, NULL));
		for (sent++; drv_get(&w->d, TX, NULL, NULL); sent++)
			;
	}
}

/* The I/O thread comes to rest. */
static void rest(struct wire *w)
{
	int i;

	for (i = 0; i < 1000 && step(w); i++)
		;
	assert_in_range(i, 0, 999);
}

/* What cannot be received now does not keep the I/O thread busy. */
static void test_idle(void **state)
{
	struct wire *w = *state;
	struct driver *d = &w->d;
	struct drv_buf b;

	w->still = 1;
	attach(w, SOCK_STREAM, NULL);
	begin(w, F(MRG_RXBUF), 0, 0);
	put(w, 1, 100);
	put(w, 2, 100);
	rest(w);
	/* Bytes are kept, and a driver starts over that receives nothing. */
	drv_negotiate(d, F(MRG_RXBUF) | DRV_INDIRECT);
	drv_ring_place(d, TX);
	drv_ring_set(d, TX, d->num, d->ring[TX].desc, d->ring[TX].avail, d->ring[TX].used);
	drv_ok(d);
	rest(w);
	say(w, 9, 60, 0);
	put(w, 3, 100);
	rest(w);
	get(w, 9, 60);
	say(w, 9, 60, 0);
	rest(w);
	get(w, 9, 60);
	/* The next one has them all. */
	begin(w, F(MRG_RXBUF), 8, BUF);
	rest(w);
	hear(w, 1, 100, BUF);
	hear(w, 2, 100, BUF);
	hear(w, 3, 100, BUF);
	/* Broken while a turn of receiving is still to come. */
	begin(w, F(MRG_RXBUF), 0, 0);
	put(w, 4, 100);
	rest(w);
	w->rx[0] = drv_alloc(d, BUF);
	give(w, 0, BUF);
	drv_notify(d, RX);
	b = (struct drv_buf){ w->tx, HDR - 1 };
	drv_add(d, TX, &b, 1, 0);
	drv_notify(d, TX);
	assert_true(drv_broken(d));
	put(w, 5, 100);
	rest(w);
	begin(w, F(MRG_RXBUF), 8, BUF);
	rest(w);
	hear(w, 4, 100, BUF);
	hear(w, 5, 100, BUF);
}

/* A datagram socket that is full makes the guest wait. */
static void test_full(void **state)
{
	struct wire *w = *state;
	uint32_t i, sent = 0;
	struct drv_buf b;

	attach(w, SOCK_DGRAM, NULL);
	begin(w, F(MRG_RXBUF), 8, BUF);
	for (i = 0; i < 60; i++) {
		uint64_t at = drv_alloc(&w->d, HDR + 9000);

		memcpy(drv_hva(&w->d, at + HDR), frame(i, 9000), 9000);
		b = (struct drv_buf){ at, HDR + 9000 };
		drv_add(&w->d, TX, &b, 1, 0);
		drv_notify(&w->d, TX);
	}
	usleep(5000);
	while (drv_get(&w->d, TX, NULL, NULL))
		sent++;
	assert_in_range(sent, 1, 59);
	for (i = 0; i < 60; i++)
		get(w, i, 9000);
	while (sent < 60 && drv_wait(&w->d, TX, NULL, NULL))
		sent++;
	assert_int_equal(sent, 60);
}

static void test_gone(void **state)
{
	struct wire *w = *state;
	struct net_config cfg = NET_CONFIG_INIT;
	struct vmm_error err;
	int s[2];

	attach(w, SOCK_STREAM, NULL);
	begin(w, F(MRG_RXBUF) | F(STATUS), 8, BUF);
	close(w->fd);
	wait_status(w, 0);
	say(w, 1, 60, 0);
	/* Another back end. */
	assert_int_equal(socketpair(AF_UNIX, SOCK_DGRAM, 0, s), 0);
	cfg.fd = s[1];
	loop_lock(&w->d.loop);
	assert_int_equal(net_replace(w->d.v, &cfg, &err), 0);
	loop_unlock(&w->d.loop);
	close(s[1]);
	w->fd = s[0];
	w->type = SOCK_DGRAM;
	assert_int_equal(status(w), VIRTIO_NET_S_LINK_UP);
	put(w, 1, 60);
	hear(w, 1, 60, BUF);
	say(w, 2, 60, 0);
	get(w, 2, 60);
	/* A datagram socket tells when something is sent. */
	close(w->fd);
	w->fd = -1;
	say(w, 3, 60, 0);
	say(w, 4, 60, 0);
	assert_int_equal(status(w), 0);
	assert_false(drv_broken(&w->d));
}

/* The link goes while frames wait for it, and it is the receiving side that hears of it. */
static void test_gone_full(void **state)
{
	struct wire *w = *state;
	uint32_t sent, be = htonl(LONG + 1);

	w->sndbuf = 20000;
	attach(w, SOCK_STREAM, NULL);
	begin(w, F(MRG_RXBUF) | F(STATUS), 8, BUF);
	sent = fill(w, 40);
	assert_int_equal(send(w->fd, &be, 4, 0), 4);
	wait_status(w, 0);
	while (sent < 40 && drv_wait(&w->d, TX, NULL, NULL))
		sent++;
	assert_int_equal(sent, 40);
	say(w, 1, 60, 0);
}

static void test_limits(void **state)
{
	struct wire *w = *state;
	struct net_config cfg = NET_CONFIG_INIT;
	struct timespec a, b;
	uint32_t i;
	double ms;

	cfg.ops_per_sec = 200;
	attach(w, SOCK_DGRAM, &cfg);
	begin(w, F(MRG_RXBUF) | DRV_EVENT_IDX, 48, BUF);
	clock_gettime(CLOCK_MONOTONIC, &a);
	for (i = 0; i < 50; i++) {
		put(w, i, 60);
		hear(w, i, 60, BUF);
		say(w, i, 60, 0);
		get(w, i, 60);
	}
	clock_gettime(CLOCK_MONOTONIC, &b);
	ms = (double)(b.tv_sec - a.tv_sec) * 1e3 + (double)(b.tv_nsec - a.tv_nsec) / 1e6;
	assert_true(ms > 140);		/* 20 at once, 30 at 200 a second */
	loop_lock(&w->d.loop);
	net_limit(w->d.v, 0, 0);
	loop_unlock(&w->d.loop);
	for (i = 0; i < 500; i++) {
		put(w, i, 60);
		hear(w, i, 60, BUF);
	}
}

static void test_snapshot(void **state)
{
	struct wire *w = *state;
	struct driver *d = &w->d;
	struct net_config cfg = NET_CONFIG_INIT;
	struct vmm_error err;
	struct virtio *v;
	struct writer s;
	uint8_t mac[6], mac2[6];
	uint16_t used;
	uint8_t *q;
	uint32_t i;
	int p[2];

	cfg.bytes_per_sec = 100 << 20;
	attach(w, SOCK_DGRAM, &cfg);
	begin(w, F(MRG_RXBUF) | F(STATUS) | F(MAC) | DRV_EVENT_IDX, 16, BUF);
	put(w, 1, 60);
	hear(w, 1, 60, BUF);
	drv_config(d, 0, mac, 6);
	drv_save(d, &s);
	drv_detach(d);
	close(w->fd);
	/* Without a back end: the link goes down when it runs. */
	cfg = (struct net_config)NET_CONFIG_INIT;
	assert_int_equal(net_new(&v, &d->env, "net0", &cfg, &err), 0);
	drv_attach(d, v);
	q = s.data + 6 * 4 + 8 + 2;
	for (i = 0; i < 2; i++, q += 2 + 3 + 3 * 8 + 4) {
		used = drv_used(d, i)[1];
		assert_memory_equal(q + 31, &used, 2);
	}
	assert_int_equal(drv_load(d, &s, &err), 0);
	drv_config(d, 0, mac2, 6);
	assert_memory_equal(mac, mac2, 6);
	assert_int_equal(status(w), VIRTIO_NET_S_LINK_UP);
	loop_lock(&d->loop);
	assert_int_equal(transport_open(d->dev, &err), 0);
	loop_unlock(&d->loop);
	drv_run(d);
	assert_int_equal(status(w), 0);
	say(w, 1, 60, 0);
	drv_detach(d);
	/* With another. */
	cfg = (struct net_config)NET_CONFIG_INIT;
	assert_int_equal(net_new(&v, &d->env, "net0", &cfg, &err), 0);
	drv_attach(d, v);
	used = drv_used(d, TX)[1];
	memcpy(s.data + 6 * 4 + 8 + 2 + 33 + 29, &used, 2);
	memcpy(s.data + 6 * 4 + 8 + 2 + 33 + 31, &used, 2);
	assert_int_equal(drv_load(d, &s, &err), 0);
	assert_int_equal(socketpair(AF_UNIX, SOCK_DGRAM, 0, p), 0);
	cfg.fd = p[1];
	assert_int_equal(net_replace(v, &cfg, &err), 0);
	close(p[1]);
	w->fd = p[0];
	assert_int_equal(transport_open(d->dev, &err), 0);
	drv_run(d);
	assert_int_equal(status(w), VIRTIO_NET_S_LINK_UP);
	put(w, 3, 1000);
	hear(w, 3, 1000, BUF);
	say(w, 4, 1000, 2);
	get(w, 4, 1000);
	/* A guest that uses offloads needs a tap. */
	drv_detach(d);
	cfg.fd = -1;
	assert_int_equal(net_new(&v, &d->env, "net0", &cfg, &err), 0);
	drv_attach(d, v);
	s.data[24] |= F(CSUM) | F(GUEST_TSO4);
	assert_int_equal(drv_load(d, &s, &err), VMM_EVERSION);
	s.data[s.len - 24] |= F(CSUM) | F(GUEST_TSO4);
	assert_int_equal(drv_load(d, &s, &err), 0);
	assert_int_equal(socketpair(AF_UNIX, SOCK_DGRAM, 0, p), 0);
	cfg.fd = p[1];
	assert_int_equal(net_replace(v, &cfg, &err), VMM_EVERSION);
	assert_non_null(strstr(err.message, "IFF_VNET_HDR"));
	close(p[0]);
	close(p[1]);
	s.len--;
	assert_int_equal(drv_load(d, &s, &err), VMM_EFORMAT);
	free(s.data);
}

/* ---- A tap, where we may make one ---------------------------------------------------- */

static int open_tap(short flags)
{
	struct ifreq ifr = { .ifr_flags = flags };
	int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC), s;

	if (fd < 0 || ioctl(fd, TUNSETIFF, &ifr) < 0) {
		close(fd);
		return -1;
	}
	s = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	ioctl(s, SIOCGIFFLAGS, &ifr);
	ifr.ifr_flags |= IFF_UP;
	ioctl(s, SIOCSIFFLAGS, &ifr);
	close(s);
	return fd;
}

/* The interface goes, its descriptor stays. */
static void remove_link(int tap)
{
	struct {
		struct nlmsghdr	h;
		struct ifinfomsg i;
	} m = { { sizeof(m), RTM_DELLINK, NLM_F_REQUEST, 1, 0 }, { .ifi_family = AF_UNSPEC } };
	struct ifreq ifr;
	int s = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);

	assert_int_equal(ioctl(tap, TUNGETIFF, &ifr), 0);
	m.i.ifi_index = (int)if_nametoindex(ifr.ifr_name);
	assert_int_equal(send(s, &m, sizeof(m), 0), sizeof(m));
	close(s);
	assert_int_equal(ioctl(tap, TUNGETIFF, &ifr), -1);
}

static void test_tap(void **state)
{
	struct wire *w = *state;
	struct net_config cfg = NET_CONFIG_INIT;
	struct vmm_error err;
	struct virtio *v;
	uint64_t want = F(CSUM) | F(HOST_TSO4) | F(GUEST_CSUM) | F(GUEST_TSO4);
	int tap, i, size;
	uint32_t id, len;
	char arp[64];

	/* In a network of this thread's own. */
	tap = unshare(CLONE_NEWNET) < 0 ? -1 : open_tap(IFF_TAP | IFF_NO_PI | IFF_VNET_HDR);
	if (tap < 0)
		skip();
	cfg.fd = tap;
	assert_int_equal(net_new(&v, &w->d.env, "net0", &cfg, &err), 0);
	drv_attach(&w->d, v);
	drv_run(&w->d);
	assert_int_equal(drv_offers(&w->d) & want, want);
	begin(w, want | F(MRG_RXBUF) | F(STATUS), 32, BUF);
	ioctl(tap, TUNGETVNETHDRSZ, &size);
	assert_int_equal(size, HDR);
	/* The host says something on a new link sooner or later: IPv6 does. */
	for (i = 0; i < 20; i++) {
		memset(arp, 0xff, 6);
		say(w, 1, 60, 1);
	}
	if (drv_wait(&w->d, RX, &id, &len))
		assert_true(len >= HDR + 14);
	assert_false(drv_broken(&w->d));
	/* What is nothing without segmentation. */
	begin(w, F(GUEST_CSUM) | F(GUEST_ECN), 0, 0);
	assert_int_equal(__atomic_load_n(&w->d.lines, __ATOMIC_SEQ_CST), 0);
	drv_detach(&w->d);
	close(tap);
	tap = open_tap(IFF_TUN | IFF_NO_PI);
	cfg.fd = tap;
	assert_int_equal(net_new(&v, &w->d.env, "net0", &cfg, &err), VMM_EINVAL);
	close(tap);
	/* One that refuses whatever it is told, and a driver that tells it again and again. */
	tap = open_tap(IFF_TAP | IFF_NO_PI | IFF_VNET_HDR);
	cfg.fd = tap;
	assert_int_equal(net_new(&v, &w->d.env, "net0", &cfg, &err), 0);
	drv_attach(&w->d, v);
	remove_link(tap);
	for (i = 0; i < 100; i++)
		begin(w, F(GUEST_CSUM), 0, 0);
	assert_int_equal(__atomic_load_n(&w->d.lines, __ATOMIC_SEQ_CST), 7);
	assert_non_null(strstr(w->d.line, "offloads"));
	drv_detach(&w->d);
	close(tap);
}

/* ---- Back and forth, with the machine held now and then ------------------------------- */

static void *echo_main(void *arg)
{
	struct wire *w = arg;
	uint8_t buf[2048];
	ssize_t n;

	while ((n = recv(w->fd, buf, sizeof(buf), 0)) > 14)
		send(w->fd, buf, (size_t)n, 0);
	return NULL;
}

static void test_hold(void **state)
{
	struct wire *w = *state;
	pthread_t t;
	uint32_t i;

	attach(w, SOCK_SEQPACKET, NULL);
	begin(w, F(MRG_RXBUF) | DRV_EVENT_IDX, 32, BUF);
	pthread_create(&t, NULL, echo_main, w);
	for (i = 0; i < 300; i++) {
		say(w, i, 500 + i, 1);
		if (i % 3 == 0) {
			loop_hold(&w->d.loop);
			usleep(100);
			loop_release(&w->d.loop);
		}
		hear(w, i, 500 + i, BUF);
	}
	shutdown(w->fd, SHUT_RDWR);
	pthread_join(t, NULL);
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(test_config), T(test_datagram), T(test_seqpacket), T(test_stream), T(test_room),
		T(test_small), T(test_endless_buffer), T(test_bad_frames), T(test_stream_bits),
		T(test_endless_ring), T(test_idle), T(test_full), T(test_gone), T(test_gone_full),
		T(test_limits), T(test_snapshot), T(test_hold), T(test_tap),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
