/* SPDX-License-Identifier: MIT */
/*
 * test_vsock.c - sockets between host and guest.  The guest is this program's
 * main thread: a small vsock stack over the driver's rings.
 */
#include "driver.h"
#include "../../core/clock.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <linux/virtio_vsock.h>

#define CID	42u
#define HOST	2u
#define SLOTS	16u			/* packets of the guest on their way */
#define SLOT	(68u << 10)
#define BUF	4096u			/* of a receive buffer */
#define WINDOW	(256u << 10)		/* the device's, with few connections */

enum { RX, TX, EV };

struct guest {
	struct driver	d;
	uint64_t	rx[256], tx[SLOTS], ev[8];
	uint16_t	slot[256];	/* of a head in the receive ring */
	uint16_t	sent;
	int		hold_rx;	/* do not give buffers back */
	uint64_t	kicks;
	uint32_t	buf_alloc, fwd_cnt;	/* what packets say */
	struct virtio_vsock_hdr h;	/* of the packet that came last */
	uint8_t		data[BUF];
};

/* ---- A guest's side ---------------------------------------------------------- */

/* As 2.7.10 asks: only if the device listens. */
static void kick(struct guest *g, uint32_t q)
{
	struct driver *d = &g->d;
	uint16_t event = __atomic_load_n(&drv_used(d, q)[2 + 4 * d->num], __ATOMIC_SEQ_CST);
	uint16_t flags = __atomic_load_n(&drv_used(d, q)[0], __ATOMIC_SEQ_CST);

	if (d->features & DRV_EVENT_IDX ? (uint16_t)(d->ring[q].next - event - 1) >= 1 : flags & 1)
		return;
	g->kicks++;
	drv_notify(d, q);
}

static void give(struct guest *g, uint16_t slot, uint32_t len)
{
	struct drv_buf b[2] = { { g->rx[slot], sizeof(g->h) }, { g->rx[slot] + sizeof(g->h),
				len - (uint32_t)sizeof(g->h) } };

	g->slot[g->d.ring[RX].free] = slot;
	drv_add(&g->d, RX, b, 0, 2);
}

/* The driver is ready, with nrx buffers to receive into. */
static void begin(struct guest *g, uint64_t features, uint16_t nrx)
{
	struct driver *d = &g->d;
	uint16_t i;

	d->brk = DRV_RAM + 4096;
	drv_negotiate(d, features | DRV_INDIRECT);
	for (i = 0; i < 3; i++) {
		drv_ring_place(d, i);
		drv_ring_set(d, i, d->num, d->ring[i].desc, d->ring[i].avail, d->ring[i].used);
	}
	g->sent = 0;
	for (i = 0; i < nrx; i++) {
		g->rx[i] = drv_alloc(d, BUF);
		give(g, i, BUF);
	}
	for (i = 0; i < SLOTS; i++)
		g->tx[i] = drv_alloc(d, SLOT);
	for (i = 0; i < 8; i++) {
		struct drv_buf b = { g->ev[i] = drv_alloc(d, 4), 4 };

		drv_add(d, EV, &b, 0, 1);
	}
	drv_ok(d);
}

static void rest(int *n)
{
	if (++*n % 64)
		sched_yield();
	else
		usleep(50);
}

/* The next packet within ms, in g->h and g->data. */
static int hear_ms(struct guest *g, int ms)
{
	struct driver *d = &g->d;
	uint64_t end = clock_ns() + (uint64_t)ms * 1000000;
	uint32_t id, len, i;
	int n = 0;

	while (!drv_get(d, RX, &id, &len)) {
		if (clock_ns() >= end)
			return 0;
		rest(&n);
	}
	i = g->slot[id % d->num];
	assert_in_range(len, sizeof(g->h), BUF);
	memcpy(&g->h, drv_hva(d, g->rx[i]), sizeof(g->h));
	memcpy(g->data, drv_hva(d, g->rx[i] + sizeof(g->h)), len - sizeof(g->h));
	assert_int_equal(g->h.len, len - sizeof(g->h));
	assert_int_equal(g->h.dst_cid, CID);
	if (!g->hold_rx) {
		give(g, (uint16_t)i, BUF);
		kick(g, RX);
	}
	return 1;
}

static void hear(struct guest *g, uint16_t op)
{
	assert_true(hear_ms(g, DRV_WAIT_MS));
	assert_int_equal(g->h.op, op);
	assert_int_equal(g->h.src_cid, HOST);
}

/* One way or the other, nothing is to come. */
static void silence(struct guest *g)
{
	assert_false(hear_ms(g, 20));
}

static void say_hdr(struct guest *g, const struct virtio_vsock_hdr *h, const void *data, uint32_t n)
{
	struct driver *d = &g->d;
	uint64_t at = g->tx[g->sent % SLOTS];
	struct drv_buf b[2] = { { at, sizeof(*h) }, { at + sizeof(*h), n } };
	int k = 0;

	while ((uint16_t)(g->sent - d->ring[TX].seen) >= SLOTS)
		if (!drv_get(d, TX, NULL, NULL))
			rest(&k);
	memcpy(drv_hva(d, at), h, sizeof(*h));
	if (n)
		memcpy(drv_hva(d, b[1].gpa), data, n);
	drv_add(d, TX, b, n ? 2 : 1, 0);
	g->sent++;
	kick(g, TX);
}

static struct virtio_vsock_hdr header(struct guest *g, uint16_t op, uint32_t port, uint32_t host,
				      uint32_t len)
{
	return (struct virtio_vsock_hdr){
		.src_cid = CID, .dst_cid = HOST, .src_port = port, .dst_port = host, .len = len,
		.type = VIRTIO_VSOCK_TYPE_STREAM, .op = op, .buf_alloc = g->buf_alloc,
		.fwd_cnt = g->fwd_cnt,
	};
}

static void say(struct guest *g, uint16_t op, uint32_t port, uint32_t host, const void *data,
		uint32_t n)
{
	struct virtio_vsock_hdr h = header(g, op, port, host, n);

	say_hdr(g, &h, data, n);
}

static void shut(struct guest *g, uint32_t port, uint32_t host, uint32_t flags)
{
	struct virtio_vsock_hdr h = header(g, VIRTIO_VSOCK_OP_SHUTDOWN, port, host, 0);

	h.flags = flags;
	say_hdr(g, &h, NULL, 0);
}

/* All that was sent has been taken. */
static void flush(struct guest *g)
{
	int k = 0;

	while (g->sent != g->d.ring[TX].seen)
		if (!drv_get(&g->d, TX, NULL, NULL))
			rest(&k);
}

/* ---- A host program's side ------------------------------------------------------ */

struct caller {
	pthread_t	thread;
	struct guest	*g;
	uint32_t	port;
	int		timeout_ms, fd, rc;
	struct vmm_error err;
};

static void *call_main(void *arg)
{
	struct caller *c = arg;

	c->rc = vsock_connect(c->g->d.v, c->port, c->timeout_ms, NULL, NULL, &c->fd, &c->err);
	return NULL;
}

static void call(struct caller *c, struct guest *g, uint32_t port, int timeout_ms)
{
	*c = (struct caller){ .g = g, .port = port, .timeout_ms = timeout_ms };
	pthread_create(&c->thread, NULL, call_main, c);
}

static int called(struct caller *c)
{
	pthread_join(c->thread, NULL);
	return c->rc;
}

/* A connection that the host makes; the guest's end is g->h. */
static int connect_to(struct guest *g, uint32_t port)
{
	struct caller c;

	call(&c, g, port, DRV_WAIT_MS);
	hear(g, VIRTIO_VSOCK_OP_REQUEST);
	assert_int_equal(g->h.dst_port, port);
	say(g, VIRTIO_VSOCK_OP_RESPONSE, port, g->h.src_port, NULL, 0);
	assert_int_equal(called(&c), 0);
	return c.fd;
}

static int listen_on(struct guest *g, uint32_t port)
{
	struct vmm_error err;
	int s;

	assert_int_equal(vsock_listen(g->d.v, port, &s, &err), 0);
	return s;
}

static int accept_from(struct guest *g, int s, uint32_t port, uint32_t host)
{
	int fd;

	say(g, VIRTIO_VSOCK_OP_REQUEST, port, host, NULL, 0);
	hear(g, VIRTIO_VSOCK_OP_RESPONSE);
	assert_int_equal(g->h.dst_port, port);
	assert_int_equal(g->h.src_port, host);
	fd = accept(s, NULL, NULL);
	assert_true(fd >= 0);
	return fd;
}

static void read_all(int fd, void *p, size_t n)
{
	assert_int_equal(recv(fd, p, n, MSG_WAITALL), n);
}

static void read_end(int fd)
{
	char c;

	assert_int_equal(recv(fd, &c, 1, 0), 0);
}

static int open_fds(void)
{
	DIR *dir = opendir("/proc/self/fd");
	int n = 0;

	while (readdir(dir))
		n++;
	closedir(dir);
	return n;
}

static int setup(void **state)
{
	struct guest *g = calloc(1, sizeof(*g));
	struct vmm_error err;
	struct virtio *v;

	drv_open(&g->d);
	g->d.num = 64;
	g->buf_alloc = WINDOW;
	assert_int_equal(vsock_new(&v, &g->d.env, "vsock0", CID, &err), 0);
	drv_attach(&g->d, v);
	drv_run(&g->d);
	*state = g;
	return 0;
}

static int teardown(void **state)
{
	struct guest *g = *state;

	drv_close(&g->d);
	free(g);
	return 0;
}

/* ---- Tests ------------------------------------------------------------------------ */

static void test_config(void **state)
{
	struct guest *g = *state;
	struct vmm_error err;
	struct virtio *v;
	uint64_t cid;
	static const uint32_t bad[] = { 0, 1, 2, UINT32_MAX };
	size_t i;

	for (i = 0; i < 4; i++)
		assert_int_equal(vsock_new(&v, &g->d.env, "x", bad[i], &err), VMM_EINVAL);
	begin(g, 0, 16);
	drv_config(&g->d, 0, &cid, sizeof(cid));
	assert_int_equal(cid, CID);
	assert_true(drv_offers(&g->d) & 1);
	assert_false(drv_offers(&g->d) & 2);
}

static void test_connect(void **state)
{
	struct guest *g = *state;
	uint32_t host;
	char buf[8];
	int fd;

	begin(g, DRV_EVENT_IDX, 16);
	fd = connect_to(g, 1000);
	host = g->h.src_port;
	assert_int_equal(g->h.buf_alloc, WINDOW);
	assert_true(fcntl(fd, F_GETFD) & FD_CLOEXEC);
	assert_int_equal(write(fd, "ping", 4), 4);
	hear(g, VIRTIO_VSOCK_OP_RW);
	assert_int_equal(g->h.src_port, host);
	assert_int_equal(g->h.dst_port, 1000);
	assert_int_equal(g->h.len, 4);
	assert_memory_equal(g->data, "ping", 4);
	say(g, VIRTIO_VSOCK_OP_RW, 1000, host, "pong", 4);
	read_all(fd, buf, 4);
	assert_memory_equal(buf, "pong", 4);
	say(g, VIRTIO_VSOCK_OP_CREDIT_REQUEST, 1000, host, NULL, 0);
	hear(g, VIRTIO_VSOCK_OP_CREDIT_UPDATE);
	assert_int_equal(g->h.fwd_cnt, 4);
	/* The host program closes it. */
	close(fd);
	hear(g, VIRTIO_VSOCK_OP_SHUTDOWN);
	assert_int_equal(g->h.flags, 3);
	say(g, VIRTIO_VSOCK_OP_RST, 1000, host, NULL, 0);
	silence(g);
	/* Whatever comes now belongs to no connection. */
	say(g, VIRTIO_VSOCK_OP_RW, 1000, host, "more", 4);
	hear(g, VIRTIO_VSOCK_OP_RST);
	/* The guest closes one. */
	fd = connect_to(g, 1000);
	assert_int_not_equal(g->h.src_port, host);
	host = g->h.src_port;
	assert_int_equal(write(fd, "unread", 6), 6);
	hear(g, VIRTIO_VSOCK_OP_RW);
	say(g, VIRTIO_VSOCK_OP_RW, 1000, host, "bye", 3);
	shut(g, 1000, host, 3);
	hear(g, VIRTIO_VSOCK_OP_RST);
	read_all(fd, buf, 3);
	read_end(fd);
	close(fd);
	silence(g);
}

static void test_refused(void **state)
{
	struct guest *g = *state;
	struct caller c;
	int i;

	begin(g, 0, 16);
	/* Asked again until somebody listens. */
	call(&c, g, 7, DRV_WAIT_MS);
	for (i = 0; i < 5; i++) {
		hear(g, VIRTIO_VSOCK_OP_REQUEST);
		say(g, VIRTIO_VSOCK_OP_RST, 7, g->h.src_port, NULL, 0);
	}
	hear(g, VIRTIO_VSOCK_OP_REQUEST);
	say(g, VIRTIO_VSOCK_OP_RESPONSE, 7, g->h.src_port, NULL, 0);
	assert_int_equal(called(&c), 0);
	close(c.fd);
	hear(g, VIRTIO_VSOCK_OP_SHUTDOWN);
	/* Refused to the end. */
	call(&c, g, 7, 500);
	while (hear_ms(g, 600))
		say(g, VIRTIO_VSOCK_OP_RST, 7, g->h.src_port, NULL, 0);
	assert_int_equal(called(&c), VMM_EREFUSED);
	assert_int_equal(c.fd, -1);
	/* No answer: the request is taken back. */
	call(&c, g, 8, 10);
	hear(g, VIRTIO_VSOCK_OP_REQUEST);
	hear(g, VIRTIO_VSOCK_OP_RST);
	assert_int_equal(called(&c), VMM_ETIMEDOUT);
	say(g, VIRTIO_VSOCK_OP_RESPONSE, 8, g->h.src_port, NULL, 0);
	hear(g, VIRTIO_VSOCK_OP_RST);
	/* Reset as soon as it was made. */
	call(&c, g, 9, DRV_WAIT_MS);
	hear(g, VIRTIO_VSOCK_OP_REQUEST);
	say(g, VIRTIO_VSOCK_OP_RESPONSE, 9, g->h.src_port, NULL, 0);
	say(g, VIRTIO_VSOCK_OP_RST, 9, g->h.src_port, NULL, 0);
	assert_int_equal(called(&c), 0);
	read_end(c.fd);
	close(c.fd);
	silence(g);
}

static int no_more(const void *arg)
{
	(void)arg;
	return 0;
}

/* Callers that wait for a guest which is not there yet, and one that starts over. */
static void test_wait(void **state)
{
	struct guest *g = *state;
	struct vmm_error err;
	struct caller c;
	int fd;

	assert_int_equal(vsock_connect(g->d.v, 5, 10, NULL, NULL, &fd, &err), VMM_ETIMEDOUT);
	assert_int_equal(vsock_connect(g->d.v, 5, 0, NULL, NULL, &fd, &err), VMM_ETIMEDOUT);
	assert_int_equal(vsock_connect(g->d.v, 5, -1, no_more, NULL, &fd, &err), VMM_EREFUSED);
	call(&c, g, 5, -1);
	usleep(10000);
	begin(g, 0, 16);
	hear(g, VIRTIO_VSOCK_OP_REQUEST);
	begin(g, 0, 16);
	hear(g, VIRTIO_VSOCK_OP_REQUEST);
	say(g, VIRTIO_VSOCK_OP_RST, 5, g->h.src_port, NULL, 0);
	begin(g, 0, 16);
	hear(g, VIRTIO_VSOCK_OP_REQUEST);
	say(g, VIRTIO_VSOCK_OP_RESPONSE, 5, g->h.src_port, NULL, 0);
	assert_int_equal(called(&c), 0);
	/* A connection that is made does not survive. */
	begin(g, 0, 16);
	read_end(c.fd);
	close(c.fd);
	silence(g);
}

static void test_listen(void **state)
{
	struct guest *g = *state;
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	socklen_t len = sizeof(addr);
	int s, s2, fd;
	char buf[8];

	begin(g, 0, 16);
	say(g, VIRTIO_VSOCK_OP_REQUEST, 900, 80, NULL, 0);
	hear(g, VIRTIO_VSOCK_OP_RST);
	s = listen_on(g, 80);
	/* Nobody else gets at it. */
	assert_int_equal(getsockname(s, (struct sockaddr *)&addr, &len), 0);
	assert_int_equal(access(addr.sun_path, F_OK), -1);
	fd = accept_from(g, s, 900, 80);
	say(g, VIRTIO_VSOCK_OP_RW, 900, 80, "hello", 5);
	read_all(fd, buf, 5);
	assert_memory_equal(buf, "hello", 5);
	assert_int_equal(write(fd, "world", 5), 5);
	hear(g, VIRTIO_VSOCK_OP_RW);
	assert_memory_equal(g->data, "world", 5);
	/* The same again is no new connection, and ends the old. */
	say(g, VIRTIO_VSOCK_OP_REQUEST, 900, 80, NULL, 0);
	hear(g, VIRTIO_VSOCK_OP_RST);
	read_end(fd);
	close(fd);
	/* Another takes its place. */
	s2 = listen_on(g, 80);
	fd = accept_from(g, s2, 901, 80);
	close(fd);
	hear(g, VIRTIO_VSOCK_OP_SHUTDOWN);
	close(s);
	fd = accept_from(g, s2, 902, 80);
	/* A listener that is gone. */
	close(s2);
	say(g, VIRTIO_VSOCK_OP_REQUEST, 903, 80, NULL, 0);
	hear(g, VIRTIO_VSOCK_OP_RST);
	say(g, VIRTIO_VSOCK_OP_REQUEST, 903, 80, NULL, 0);
	hear(g, VIRTIO_VSOCK_OP_RST);
	/* One that goes with a connection in its backlog. */
	s = listen_on(g, 81);
	say(g, VIRTIO_VSOCK_OP_REQUEST, 904, 81, NULL, 0);
	hear(g, VIRTIO_VSOCK_OP_RESPONSE);
	close(s);
	assert_true(hear_ms(g, DRV_WAIT_MS));
	assert_true(g->h.op == VIRTIO_VSOCK_OP_RST || g->h.op == VIRTIO_VSOCK_OP_SHUTDOWN);
	close(fd);
	hear(g, VIRTIO_VSOCK_OP_SHUTDOWN);
	assert_int_equal(g->h.dst_port, 902);
}

static void test_half_close(void **state)
{
	struct guest *g = *state;
	int s, fd;
	char buf[8];

	begin(g, 0, 16);
	s = listen_on(g, 80);
	/* The host's half first. */
	fd = accept_from(g, s, 1, 80);
	assert_int_equal(write(fd, "request", 7), 7);
	shutdown(fd, SHUT_WR);
	hear(g, VIRTIO_VSOCK_OP_RW);
	hear(g, VIRTIO_VSOCK_OP_SHUTDOWN);
	assert_int_equal(g->h.flags, VIRTIO_VSOCK_SHUTDOWN_SEND);
	say(g, VIRTIO_VSOCK_OP_RW, 1, 80, "answer", 6);
	read_all(fd, buf, 6);
	silence(g);
	shut(g, 1, 80, 3);
	hear(g, VIRTIO_VSOCK_OP_RST);
	read_end(fd);
	close(fd);
	silence(g);
	/* The guest's half first. */
	fd = accept_from(g, s, 2, 80);
	say(g, VIRTIO_VSOCK_OP_RW, 2, 80, "request", 7);
	shut(g, 2, 80, VIRTIO_VSOCK_SHUTDOWN_SEND);
	read_all(fd, buf, 7);
	read_end(fd);
	assert_int_equal(write(fd, "answer", 6), 6);
	hear(g, VIRTIO_VSOCK_OP_RW);
	close(fd);
	hear(g, VIRTIO_VSOCK_OP_SHUTDOWN);
	assert_int_equal(g->h.flags, 3);
	/* Both halves, one by one. */
	fd = accept_from(g, s, 3, 80);
	shut(g, 3, 80, VIRTIO_VSOCK_SHUTDOWN_SEND);
	read_end(fd);
	shutdown(fd, SHUT_WR);
	hear(g, VIRTIO_VSOCK_OP_SHUTDOWN);
	assert_int_equal(g->h.flags, 3);
	close(fd);
	silence(g);
	/* The guest wants no more. */
	fd = accept_from(g, s, 4, 80);
	shut(g, 4, 80, VIRTIO_VSOCK_SHUTDOWN_RCV);
	flush(g);
	assert_int_equal(send(fd, "x", 1, MSG_NOSIGNAL), -1);
	say(g, VIRTIO_VSOCK_OP_RW, 4, 80, "still", 5);
	read_all(fd, buf, 5);
	shut(g, 4, 80, VIRTIO_VSOCK_SHUTDOWN_SEND);
	hear(g, VIRTIO_VSOCK_OP_RST);
	read_end(fd);
	close(fd);
	/* Closed with something unread: what was lost was not delivered. */
	fd = accept_from(g, s, 5, 80);
	say(g, VIRTIO_VSOCK_OP_RW, 5, 80, "unread", 6);
	flush(g);
	close(fd);
	hear(g, VIRTIO_VSOCK_OP_RST);
	close(s);
}

/* ---- Bulk --------------------------------------------------------------------------- */

static uint8_t pattern(uint64_t off)
{
	return (uint8_t)(off * 2654435761u >> 13);
}

struct bulk {
	pthread_t	thread;
	int		fd;
	uint64_t	len, bad;
};

static void *bulk_read(void *arg)
{
	struct bulk *b = arg;
	static uint8_t buf[1 << 17];
	uint64_t off = 0;
	ssize_t n, i;

	while ((n = read(b->fd, buf, sizeof(buf))) > 0)
		for (i = 0; i < n; i++, off++)
			b->bad += buf[i] != pattern(off);
	b->len = off;
	return NULL;
}

static void *bulk_write(void *arg)
{
	struct bulk *b = arg;
	static uint8_t buf[1 << 17];
	uint64_t off = 0, i;
	ssize_t n;

	while (off < b->len) {
		for (i = 0; i < sizeof(buf); i++)
			buf[i] = pattern(off + i);
		n = write(b->fd, buf, b->len - off < sizeof(buf) ? b->len - off : sizeof(buf));
		if (n <= 0)
			break;
		off += (uint64_t)n;
	}
	shutdown(b->fd, SHUT_WR);
	return NULL;
}

static uint64_t bulk_bytes(void)
{
	const char *mib = getenv("VSOCK_MIB");

	return (mib ? strtoull(mib, NULL, 0) : 4) << 20;
}

static void test_bulk_out(void **state)
{
	struct guest *g = *state;
	struct bulk b = { .len = 0 };
	uint64_t off = 0, end = bulk_bytes(), told = 0, packets = 0;
	static uint8_t buf[64 << 10];
	uint32_t n, i;
	int s;

	begin(g, DRV_EVENT_IDX, 16);
	s = listen_on(g, 80);
	b.fd = accept_from(g, s, 1, 80);
	pthread_create(&b.thread, NULL, bulk_read, &b);
	while (off < end) {
		n = (uint32_t)(off % 5 == 0 ? sizeof(buf) : 1 + off % sizeof(buf));
		if (n > WINDOW - (off - told))
			n = (uint32_t)(WINDOW - (off - told));
		if (!n) {
			hear(g, VIRTIO_VSOCK_OP_CREDIT_UPDATE);
			told += (uint32_t)(g->h.fwd_cnt - (uint32_t)told);
			continue;
		}
		for (i = 0; i < n; i++)
			buf[i] = pattern(off + i);
		say(g, VIRTIO_VSOCK_OP_RW, 1, 80, buf, n);
		off += n;
		packets++;
		while (hear_ms(g, 0))
			told += (uint32_t)(g->h.fwd_cnt - (uint32_t)told);
	}
	shut(g, 1, 80, 3);
	do
		assert_true(hear_ms(g, DRV_WAIT_MS));
	while (g->h.op == VIRTIO_VSOCK_OP_CREDIT_UPDATE);
	assert_int_equal(g->h.op, VIRTIO_VSOCK_OP_RST);
	pthread_join(b.thread, NULL);
	assert_int_equal(b.len, off);
	assert_int_equal(b.bad, 0);
	if (getenv("VSOCK_MIB"))
		printf("# %llu packets, %llu kicks, %d interrupts\n", (unsigned long long)packets,
		       (unsigned long long)g->kicks, drv_irqs(&g->d));
	close(b.fd);
	close(s);
}

static void test_bulk_in(void **state)
{
	struct guest *g = *state;
	struct bulk b = { .len = bulk_bytes() };
	uint64_t off = 0, packets = 0;
	uint32_t i, bad = 0, host;

	begin(g, DRV_EVENT_IDX, 48);
	b.fd = connect_to(g, 1);
	host = g->h.src_port;
	pthread_create(&b.thread, NULL, bulk_write, &b);
	for (;;) {
		assert_true(hear_ms(g, DRV_WAIT_MS));
		if (g->h.op == VIRTIO_VSOCK_OP_SHUTDOWN)
			break;
		assert_int_equal(g->h.op, VIRTIO_VSOCK_OP_RW);
		for (i = 0; i < g->h.len; i++)
			bad += g->data[i] != pattern(off + i);
		off += g->h.len;
		packets++;
		assert_true((uint32_t)off - g->fwd_cnt <= WINDOW);
		if ((uint32_t)off - g->fwd_cnt > WINDOW / 2) {
			g->fwd_cnt = (uint32_t)off;
			say(g, VIRTIO_VSOCK_OP_CREDIT_UPDATE, 1, host, NULL, 0);
		}
	}
	pthread_join(b.thread, NULL);
	assert_int_equal(bad, 0);
	assert_int_equal(off, b.len);
	if (getenv("VSOCK_MIB"))
		printf("# %llu packets, %llu kicks, %d interrupts\n", (unsigned long long)packets,
		       (unsigned long long)g->kicks, drv_irqs(&g->d));
	close(b.fd);
	g->fwd_cnt = 0;
}

/* ---- Many ------------------------------------------------------------------------------ */

/* Nobody reads it: neither its window nor its socket takes much. */
static void fill_last(struct guest *g, uint32_t port, int fd, uint32_t window)
{
	static uint8_t buf[8 * (16 << 10)];
	uint32_t sent = 0, fwd, n;

	for (;;) {
		say(g, VIRTIO_VSOCK_OP_CREDIT_REQUEST, port, 80, NULL, 0);
		do {
			hear(g, VIRTIO_VSOCK_OP_CREDIT_UPDATE);
			fwd = g->h.fwd_cnt;
		} while (hear_ms(g, 1));
		n = window - (sent - fwd);
		if (!n)
			break;
		if (n > 1024)
			n = 1024;
		say(g, VIRTIO_VSOCK_OP_RW, port, 80, buf, n);
		sent += n;
		assert_true(sent <= 4 * window);
	}
	assert_int_equal(window, 16 << 10);
	while (sent) {
		read_all(fd, buf, sent < sizeof(buf) ? sent : sizeof(buf));
		sent -= sent < sizeof(buf) ? sent : (uint32_t)sizeof(buf);
	}
	while (hear_ms(g, 20))
		assert_int_equal(g->h.op, VIRTIO_VSOCK_OP_CREDIT_UPDATE);
}

static void test_many(void **state)
{
	enum { N = 500 };
	struct guest *g = *state;
	int s, fd[N], i, before;
	uint32_t windows = 0;
	char buf[8];

	begin(g, DRV_EVENT_IDX, 16);
	s = listen_on(g, 80);
	close(accept_from(g, s, 1, 80));	/* whatever is opened once, is now */
	hear(g, VIRTIO_VSOCK_OP_SHUTDOWN);
	before = open_fds();
	for (i = 0; i < N; i++) {
		fd[i] = accept_from(g, s, 1000 + (uint32_t)i, 80);
		assert_in_range(g->h.buf_alloc, 16 << 10, WINDOW);
		windows += g->h.buf_alloc;
	}
	/* What a guest can make us keep does not grow with each as with the first. */
	assert_in_range(windows, 32 << 20, (64 << 20) + N * (16 << 10));
	fill_last(g, 1000 + N - 1, fd[N - 1], g->h.buf_alloc);
	/* All at once, with 16 buffers for them. */
	for (i = 0; i < N; i++)
		assert_int_equal(write(fd[i], &i, sizeof(i)), sizeof(i));
	for (i = 0; i < N; i++) {
		int k;

		hear(g, VIRTIO_VSOCK_OP_RW);
		assert_int_equal(g->h.len, sizeof(k));
		memcpy(&k, g->data, sizeof(k));
		assert_int_equal(g->h.dst_port, 1000 + k);
		say(g, VIRTIO_VSOCK_OP_RW, 1000 + (uint32_t)k, 80, &k, sizeof(k));
	}
	for (i = 0; i < N; i++) {
		read_all(fd[i], buf, sizeof(i));
		assert_memory_equal(buf, &i, sizeof(i));
		if (i % 2)
			close(fd[i]);
		else
			shut(g, 1000 + (uint32_t)i, 80, 3);
	}
	for (i = 0; i < N; i++) {
		assert_true(hear_ms(g, DRV_WAIT_MS));
		assert_int_equal(g->h.op, g->h.dst_port % 2 ? VIRTIO_VSOCK_OP_SHUTDOWN :
							      VIRTIO_VSOCK_OP_RST);
	}
	for (i = 0; i < N; i += 2) {
		read_end(fd[i]);
		close(fd[i]);
	}
	assert_int_equal(open_fds(), before);
	close(s);
}

static void test_one_by_one(void **state)
{
	const int n = DRV_TSAN ? 1000 : 10000;
	struct guest *g = *state;
	struct vmm_error err;
	int s, fd, i, before = 0;
	char buf[8];

	begin(g, DRV_EVENT_IDX, 16);
	s = listen_on(g, 80);
	for (i = 0; i < n; i++) {
		if (i == 10)
			before = open_fds();
		fd = accept_from(g, s, 1000 + (uint32_t)i % 7, 80);
		say(g, VIRTIO_VSOCK_OP_RW, 1000 + (uint32_t)i % 7, 80, "ping", 4);
		read_all(fd, buf, 4);
		if (i % 2) {
			close(fd);
			hear(g, VIRTIO_VSOCK_OP_SHUTDOWN);
			say(g, VIRTIO_VSOCK_OP_RST, 1000 + (uint32_t)i % 7, 80, NULL, 0);
		} else {
			shut(g, 1000 + (uint32_t)i % 7, 80, 3);
			hear(g, VIRTIO_VSOCK_OP_RST);
			read_end(fd);
			close(fd);
		}
	}
	assert_int_equal(open_fds(), before);
	close(s);
	/* A hundred callers at once, and nobody to answer them. */
	for (i = 0; i < 100; i++)
		assert_int_equal(vsock_connect(g->d.v, 5, 0, NULL, NULL, &fd, &err),
				 VMM_ETIMEDOUT);
	assert_int_equal(open_fds(), before - 1);
}

/* ---- Flow control ------------------------------------------------------------------------ */

/* The host program does not read: no more is taken than was promised. */
static void test_credit_out(void **state)
{
	struct guest *g = *state;
	static uint8_t buf[64 << 10], back[WINDOW * 4];
	uint32_t sent = 0, fwd, n, i;
	int s, fd;

	begin(g, 0, 16);
	s = listen_on(g, 80);
	fd = accept_from(g, s, 1, 80);
	/* Fill the socket, whatever it takes, and then the window. */
	for (fwd = 0;;) {
		say(g, VIRTIO_VSOCK_OP_CREDIT_REQUEST, 1, 80, NULL, 0);
		do {
			hear(g, VIRTIO_VSOCK_OP_CREDIT_UPDATE);
			fwd = g->h.fwd_cnt;
		} while (hear_ms(g, 1));
		n = WINDOW - (sent - fwd);
		if (!n)
			break;
		if (n > sizeof(buf))
			n = sizeof(buf);
		for (i = 0; i < n; i++)
			buf[i] = pattern(sent + i);
		say(g, VIRTIO_VSOCK_OP_RW, 1, 80, buf, n);
		flush(g);
		sent += n;
		assert_true(sent <= sizeof(back));
	}
	assert_true(sent > WINDOW);
	/* Room again: told when there is half a window. */
	read_all(fd, back, sent - WINDOW / 2);
	hear(g, VIRTIO_VSOCK_OP_CREDIT_UPDATE);
	assert_true(g->h.fwd_cnt - fwd >= WINDOW / 2);
	/* The guest closes: what is on its way arrives. */
	shut(g, 1, 80, 3);
	do
		assert_true(hear_ms(g, DRV_WAIT_MS));
	while (g->h.op == VIRTIO_VSOCK_OP_CREDIT_UPDATE);
	assert_int_equal(g->h.op, VIRTIO_VSOCK_OP_RST);
	read_all(fd, back + sent - WINDOW / 2, WINDOW / 2);
	read_end(fd);
	for (i = 0; i < sent; i++)
		assert_int_equal(back[i], pattern(i));
	close(fd);
	/* Small packets cost a socket more than their bytes. */
	fd = accept_from(g, s, 2, 80);
	for (i = 0; i < 3000; i++) {
		buf[0] = pattern(i);
		say(g, VIRTIO_VSOCK_OP_RW, 2, 80, buf, 1);
	}
	shut(g, 2, 80, VIRTIO_VSOCK_SHUTDOWN_SEND);
	read_all(fd, back, 3000);
	for (i = 0; i < 3000; i++)
		assert_int_equal(back[i], pattern(i));
	read_end(fd);
	close(fd);
	hear(g, VIRTIO_VSOCK_OP_SHUTDOWN);
	/* A program that is gone while bytes wait for it. */
	fd = accept_from(g, s, 3, 80);
	for (sent = 0; sent < WINDOW; sent += sizeof(buf))
		say(g, VIRTIO_VSOCK_OP_RW, 3, 80, buf, sizeof(buf));
	flush(g);
	close(fd);
	do
		assert_true(hear_ms(g, DRV_WAIT_MS));
	while (g->h.op == VIRTIO_VSOCK_OP_CREDIT_UPDATE);
	assert_int_equal(g->h.op, VIRTIO_VSOCK_OP_RST);
	/* One byte more than was promised. */
	fd = accept_from(g, s, 4, 80);
	for (i = 0; i < 64 && (!hear_ms(g, 0) || g->h.op != VIRTIO_VSOCK_OP_RST); i++) {
		say(g, VIRTIO_VSOCK_OP_RW, 4, 80, buf, sizeof(buf));
		flush(g);
	}
	assert_in_range(i, 4, 20);
	close(fd);
	close(s);
}

/* The guest does not read: no more is sent than it has room for. */
static void test_credit_in(void **state)
{
	struct guest *g = *state;
	static uint8_t buf[10000];
	uint32_t host, n, got = 0, i;
	int fd;

	begin(g, 0, 16);
	g->buf_alloc = 5000;
	fd = connect_to(g, 1);
	host = g->h.src_port;
	for (i = 0; i < sizeof(buf); i++)
		buf[i] = pattern(i);
	assert_int_equal(write(fd, buf, sizeof(buf)), sizeof(buf));
	close(fd);
	for (n = 0; n < 5000; n += g->h.len)
		hear(g, VIRTIO_VSOCK_OP_RW);
	assert_int_equal(n, 5000);
	silence(g);
	g->fwd_cnt = 1;
	say(g, VIRTIO_VSOCK_OP_CREDIT_UPDATE, 1, host, NULL, 0);
	hear(g, VIRTIO_VSOCK_OP_RW);
	assert_int_equal(g->h.len, 1);
	/* Less room than was promised, more forwarded than was sent. */
	g->buf_alloc = 0;
	say(g, VIRTIO_VSOCK_OP_CREDIT_UPDATE, 1, host, NULL, 0);
	g->buf_alloc = 5000;
	g->fwd_cnt = 20000;
	say(g, VIRTIO_VSOCK_OP_CREDIT_UPDATE, 1, host, NULL, 0);
	silence(g);
	g->fwd_cnt = got = 5001;
	say(g, VIRTIO_VSOCK_OP_CREDIT_UPDATE, 1, host, NULL, 0);
	while (got < sizeof(buf)) {
		hear(g, VIRTIO_VSOCK_OP_RW);
		for (i = 0; i < g->h.len; i++)
			assert_int_equal(g->data[i], pattern(got + i));
		got += g->h.len;
	}
	hear(g, VIRTIO_VSOCK_OP_SHUTDOWN);
	g->fwd_cnt = 0;
	g->buf_alloc = WINDOW;
}

/* The host program reads no more; what it has sent still arrives, and what it sends. */
static void test_unread(void **state)
{
	struct guest *g = *state;
	static uint8_t buf[64 << 10];
	uint32_t sent;
	int s, fd;

	begin(g, DRV_EVENT_IDX, 16);
	s = listen_on(g, 80);
	/* It has closed, and the guest has no room for its last bytes yet. */
	g->buf_alloc = 0;
	fd = accept_from(g, s, 1, 80);
	assert_int_equal(write(fd, "last", 4), 4);
	close(fd);
	say(g, VIRTIO_VSOCK_OP_RW, 1, 80, "x", 1);
	hear(g, VIRTIO_VSOCK_OP_SHUTDOWN);
	assert_int_equal(g->h.flags, VIRTIO_VSOCK_SHUTDOWN_RCV);
	say(g, VIRTIO_VSOCK_OP_RW, 1, 80, "y", 1);
	silence(g);
	g->buf_alloc = WINDOW;
	say(g, VIRTIO_VSOCK_OP_CREDIT_UPDATE, 1, 80, NULL, 0);
	hear(g, VIRTIO_VSOCK_OP_RW);
	assert_memory_equal(g->data, "last", 4);
	hear(g, VIRTIO_VSOCK_OP_SHUTDOWN);
	assert_int_equal(g->h.flags, 3);
	/* It only reads no more: more than a window goes nowhere. */
	fd = accept_from(g, s, 2, 80);
	shutdown(fd, SHUT_RD);
	say(g, VIRTIO_VSOCK_OP_RW, 2, 80, "x", 1);
	hear(g, VIRTIO_VSOCK_OP_SHUTDOWN);
	assert_int_equal(g->h.flags, VIRTIO_VSOCK_SHUTDOWN_RCV);
	assert_int_equal(g->h.fwd_cnt, 1);
	for (sent = 0; sent < 2 * WINDOW; sent += sizeof(buf)) {
		say(g, VIRTIO_VSOCK_OP_RW, 2, 80, buf, sizeof(buf));
		while (hear_ms(g, 1))
			assert_int_equal(g->h.op, VIRTIO_VSOCK_OP_CREDIT_UPDATE);
	}
	flush(g);
	assert_int_equal(write(fd, "more", 4), 4);
	do
		assert_true(hear_ms(g, DRV_WAIT_MS));
	while (g->h.op == VIRTIO_VSOCK_OP_CREDIT_UPDATE);
	assert_int_equal(g->h.op, VIRTIO_VSOCK_OP_RW);
	assert_memory_equal(g->data, "more", 4);
	close(fd);
	hear(g, VIRTIO_VSOCK_OP_SHUTDOWN);
	assert_int_equal(g->h.flags, 3);
	/* It has closed while bytes waited for it: they are lost, its own are not. */
	g->buf_alloc = 0;
	fd = accept_from(g, s, 3, 80);
	for (sent = 0; sent < WINDOW; sent += sizeof(buf))
		say(g, VIRTIO_VSOCK_OP_RW, 3, 80, buf, sizeof(buf));
	flush(g);
	assert_int_equal(write(fd, "last", 4), 4);
	close(fd);
	do
		assert_true(hear_ms(g, DRV_WAIT_MS));
	while (g->h.op == VIRTIO_VSOCK_OP_CREDIT_UPDATE);
	assert_int_equal(g->h.op, VIRTIO_VSOCK_OP_SHUTDOWN);
	assert_int_equal(g->h.flags, VIRTIO_VSOCK_SHUTDOWN_RCV);
	g->buf_alloc = WINDOW;
	say(g, VIRTIO_VSOCK_OP_CREDIT_UPDATE, 3, 80, NULL, 0);
	hear(g, VIRTIO_VSOCK_OP_RW);
	assert_memory_equal(g->data, "last", 4);
	hear(g, VIRTIO_VSOCK_OP_RST);
	close(s);
}

/* ---- Guests that break the rules ------------------------------------------------------------ */

static void refused(struct guest *g, struct virtio_vsock_hdr h, const void *data, uint32_t n)
{
	say_hdr(g, &h, data, n);
	assert_true(hear_ms(g, DRV_WAIT_MS));
	assert_int_equal(g->h.op, VIRTIO_VSOCK_OP_RST);
	assert_int_equal(g->h.dst_port, h.src_port);
	assert_int_equal(g->h.src_port, h.dst_port);
	assert_int_equal(g->h.type, h.type);
}

static void test_hostile(void **state)
{
	struct guest *g = *state;
	struct virtio_vsock_hdr h;
	uint32_t op;
	int s, fd, other;
	char buf[8];

	begin(g, 0, 16);
	s = listen_on(g, 80);
	other = accept_from(g, s, 1, 80);
	h = header(g, VIRTIO_VSOCK_OP_REQUEST, 2, 80, 0);
	h.dst_cid = 3;
	say_hdr(g, &h, NULL, 0);
	assert_true(hear_ms(g, DRV_WAIT_MS));
	assert_int_equal(g->h.op, VIRTIO_VSOCK_OP_RST);
	assert_int_equal(g->h.src_cid, 3);
	h = header(g, VIRTIO_VSOCK_OP_REQUEST, 2, 80, 0);
	h.type = VIRTIO_VSOCK_TYPE_SEQPACKET;
	refused(g, h, NULL, 0);
	/* Of no connection; and what is no operation. */
	for (op = 0; op < 10; op++) {
		if (op == VIRTIO_VSOCK_OP_REQUEST || op == VIRTIO_VSOCK_OP_RST)
			continue;
		refused(g, header(g, (uint16_t)op, 2, 80, 0), NULL, 0);
	}
	say(g, VIRTIO_VSOCK_OP_RST, 2, 80, NULL, 0);
	silence(g);
	/* Of one. */
	for (op = 0; op < 10; op++) {
		if (op != VIRTIO_VSOCK_OP_INVALID && op != VIRTIO_VSOCK_OP_REQUEST &&
		    op != VIRTIO_VSOCK_OP_RESPONSE && op < 8)
			continue;
		fd = accept_from(g, s, 2, 80);
		refused(g, header(g, (uint16_t)op, 2, 80, 0), NULL, 0);
		read_end(fd);
		close(fd);
	}
	/* More than the packet holds; more than there can be. */
	fd = accept_from(g, s, 2, 80);
	refused(g, header(g, VIRTIO_VSOCK_OP_RW, 2, 80, 9), "12345678", 8);
	read_end(fd);
	close(fd);
	fd = accept_from(g, s, 2, 80);
	refused(g, header(g, VIRTIO_VSOCK_OP_RW, 2, 80, 0xffffffff), "12345678", 8);
	close(fd);
	/* Less is fine, and so is nothing. */
	fd = accept_from(g, s, 2, 80);
	h = header(g, VIRTIO_VSOCK_OP_RW, 2, 80, 3);
	say_hdr(g, &h, "12345678", 8);
	h.len = 0;
	say_hdr(g, &h, NULL, 0);
	read_all(fd, buf, 3);
	/* After the end. */
	shut(g, 2, 80, VIRTIO_VSOCK_SHUTDOWN_SEND);
	read_end(fd);
	refused(g, header(g, VIRTIO_VSOCK_OP_RW, 2, 80, 1), "1", 1);
	close(fd);
	fd = accept_from(g, s, 2, 80);
	h = header(g, VIRTIO_VSOCK_OP_SHUTDOWN, 2, 80, 0);
	refused(g, h, NULL, 0);
	close(fd);
	/* All that did nothing to the other. */
	say(g, VIRTIO_VSOCK_OP_RW, 1, 80, "fine", 4);
	read_all(other, buf, 4);
	assert_int_equal(write(other, "fine", 4), 4);
	hear(g, VIRTIO_VSOCK_OP_RW);
	assert_false(drv_broken(&g->d));
	/* No header: that is no packet. */
	struct drv_buf b = { g->tx[0], sizeof(h) - 1 };
	drv_add(&g->d, TX, &b, 1, 0);
	drv_notify(&g->d, TX);
	assert_true(drv_broken(&g->d));
	assert_int_equal(write(other, "still", 5), 5);
	begin(g, 0, 0);
	b.len = sizeof(h);
	drv_add(&g->d, RX, &b, 0, 1);
	say(g, VIRTIO_VSOCK_OP_RST + 1, 1, 80, NULL, 0);
	assert_true(drv_broken(&g->d));
	begin(g, 0, 16);
	close(other);
	fd = accept_from(g, s, 2, 80);
	close(fd);
	close(s);
}

/* A guest that sends and does not listen: its packets wait, none is lost. */
static void test_flood(void **state)
{
	struct guest *g = *state;
	const uint32_t n = 4 + 256 + SLOTS;
	uint32_t i;

	begin(g, 0, 4);
	g->hold_rx = 1;
	for (i = 0; i < n; i++)
		say(g, VIRTIO_VSOCK_OP_CREDIT_UPDATE, i, 80, NULL, 0);
	assert_int_equal((uint16_t)(g->sent - drv_used(&g->d, TX)[1]), SLOTS);
	for (i = 0; i < n; i++) {
		hear(g, VIRTIO_VSOCK_OP_RST);
		assert_int_equal(g->h.dst_port, i);
		give(g, (uint16_t)(i % 4), BUF);
		kick(g, RX);
	}
	flush(g);
}

/* A guest that connects without end leaves this process half its descriptors. */
static void test_descriptors(void **state)
{
	struct guest *g = *state;
	struct rlimit old, few;
	uint32_t i, n = 0;
	int s, fd[40];

	begin(g, 0, 4);
	s = listen_on(g, 80);
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &old), 0);
	few = (struct rlimit){ 128, old.rlim_max };
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &few), 0);
	for (i = 0; i < 200; i++) {
		say(g, VIRTIO_VSOCK_OP_REQUEST, i, 80, NULL, 0);
		assert_true(hear_ms(g, DRV_WAIT_MS));
		n += g->h.op == VIRTIO_VSOCK_OP_RESPONSE;
	}
	assert_int_equal(n, 64);
	/* Of 136 refusals the 1st, 2nd, 4th ... 128th. */
	assert_int_equal(__atomic_load_n(&g->d.lines, __ATOMIC_SEQ_CST), 8);
	for (i = 0; i < 40; i++) {
		fd[i] = dup(s);
		assert_true(fd[i] >= 0);
	}
	while (i--)
		close(fd[i]);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &old), 0);
	close(s);
}

/* A connection is answered before anything is said on it, however late. */
static void test_late_response(void **state)
{
	struct guest *g = *state;
	uint16_t i;
	int s, fd;

	begin(g, 0, 0);
	s = listen_on(g, 80);
	say(g, VIRTIO_VSOCK_OP_REQUEST, 1, 80, NULL, 0);
	fd = accept(s, NULL, NULL);
	assert_int_equal(write(fd, "early", 5), 5);
	say(g, VIRTIO_VSOCK_OP_CREDIT_UPDATE, 1, 80, NULL, 0);
	usleep(2000);
	for (i = 0; i < 4; i++) {
		g->rx[i] = drv_alloc(&g->d, BUF);
		give(g, i, BUF);
	}
	usleep(2000);
	kick(g, RX);
	hear(g, VIRTIO_VSOCK_OP_RESPONSE);
	hear(g, VIRTIO_VSOCK_OP_RW);
	assert_memory_equal(g->data, "early", 5);
	close(fd);
	close(s);
	hear(g, VIRTIO_VSOCK_OP_SHUTDOWN);
}

/* ---- The end of a run -------------------------------------------------------------- */

/* More than a socket takes; then the machine stops. */
static int stop_full(struct guest *g, struct bulk *b)
{
	static uint8_t buf[32 << 10];
	uint32_t sent, i;
	int fd;

	begin(g, DRV_EVENT_IDX, 16);
	fd = connect_to(g, 80);
	for (sent = 0; sent < WINDOW; sent += sizeof(buf)) {
		for (i = 0; i < sizeof(buf); i++)
			buf[i] = pattern(sent + i);
		say(g, VIRTIO_VSOCK_OP_RW, 80, g->h.src_port, buf, sizeof(buf));
	}
	flush(g);
	loop_lock(&g->d.loop);
	vsock_hang_up_all(g->d.v);
	loop_unlock(&g->d.loop);
	if (b) {
		b->fd = fd;
		pthread_create(&b->thread, NULL, bulk_read, b);
	}
	loop_stop(&g->d.loop);
	g->d.running = 0;
	assert_int_equal(g->d.loop.lingering, 0);
	return fd;
}

/* All that was sent is read, and then the end, before the device is freed. */
static void test_stop(void **state)
{
	struct timeval patience = { DRV_WAIT_MS / 1000, 0 };
	struct guest *g = *state;
	struct bulk b = { .len = 0 };
	char buf[4096];
	ssize_t n;
	int fd = stop_full(g, &b);

	pthread_join(b.thread, NULL);
	assert_int_equal(b.len, WINDOW);
	assert_int_equal(b.bad, 0);
	close(fd);
	/* Nobody reads: it is not waited for, and finds an end later. */
	drv_run(&g->d);
	fd = stop_full(g, NULL);
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	do
		n = read(fd, buf, sizeof(buf));
	while (n > 0);
	assert_int_equal(n, 0);
	close(fd);
}

/* ---- Snapshots ------------------------------------------------------------------ */

static void test_snapshot(void **state)
{
	struct guest *g = *state;
	struct driver *d = &g->d;
	struct vmm_error err;
	struct writer w;
	struct caller c, late;
	struct virtio *v;
	uint32_t id, len, host;
	int s, s2, fd, fd2;
	char buf[8];

	begin(g, DRV_EVENT_IDX, 16);
	s = listen_on(g, 80);
	fd = accept_from(g, s, 1, 80);
	fd2 = connect_to(g, 9);
	host = g->h.src_port;
	drv_save(d, &w);
	/* The one that was saved goes on. */
	say(g, VIRTIO_VSOCK_OP_RW, 1, 80, "on", 2);
	read_all(fd, buf, 2);
	assert_int_equal(write(fd2, "on", 2), 2);
	hear(g, VIRTIO_VSOCK_OP_RW);
	flush(g);
	drv_detach(d);
	read_end(fd);
	read_end(fd2);
	close(fd);
	close(fd2);
	/* The guest's memory is as it is now; let the device be, too. */
	assert_int_equal(vsock_new(&v, &d->env, "vsock0", 77, &err), 0);
	drv_attach(d, v);
	w.len -= 8;			/* without its own state */
	assert_int_equal(drv_load(d, &w, &err), VMM_EFORMAT);
	w.len += 8;
	w.data[w.len - 8] = 1;
	assert_int_equal(drv_load(d, &w, &err), VMM_EFORMAT);
	w.data[w.len - 8] = CID;
	/* Three rings, and how far they are. */
	uint8_t *q = w.data + 6 * 4 + 8 + 2;
	for (id = 0; id < 3; id++, q += 2 + 3 + 3 * 8 + 4) {
		uint16_t used = drv_used(d, id)[1];

		memcpy(q + 29, &used, 2);
		memcpy(q + 31, &used, 2);
	}
	assert_int_equal(drv_load(d, &w, &err), 0);
	free(w.data);
	s2 = listen_on(g, 81);
	call(&c, g, 9, DRV_WAIT_MS);
	drv_run(d);
	/* The guest is told first, and until it knows there is nothing else. */
	assert_true(drv_wait(d, EV, &id, &len));
	assert_int_equal(len, 4);
	assert_int_equal(*(uint32_t *)drv_hva(d, g->ev[0]), VIRTIO_VSOCK_EVENT_TRANSPORT_RESET);
	say(g, VIRTIO_VSOCK_OP_RW, 1, 80, "old", 3);
	hear(g, VIRTIO_VSOCK_OP_RST);
	say(g, VIRTIO_VSOCK_OP_REQUEST, 1, 81, NULL, 0);
	hear(g, VIRTIO_VSOCK_OP_RST);
	say(g, VIRTIO_VSOCK_OP_RW, 9, host, "old", 3);
	hear(g, VIRTIO_VSOCK_OP_RST);
	struct drv_buf b = { g->ev[0], 4 };
	drv_add(d, EV, &b, 0, 1);
	kick(g, EV);
	hear(g, VIRTIO_VSOCK_OP_REQUEST);
	/* From elsewhere: the guest may still be closing the old one. */
	assert_true(g->h.src_port > host + 1000 || host > g->h.src_port + 1000);
	say(g, VIRTIO_VSOCK_OP_RESPONSE, 9, g->h.src_port, NULL, 0);
	assert_int_equal(called(&c), 0);
	close(c.fd);
	hear(g, VIRTIO_VSOCK_OP_SHUTDOWN);
	fd = accept_from(g, s2, 2, 81);
	/* Another CID; a guest that does not care is waited for, but not for ever. */
	loop_lock(&d->loop);
	assert_int_equal(vsock_set_cid(d->v, 2, &err), VMM_EINVAL);
	assert_int_equal(vsock_set_cid(d->v, CID, &err), 0);
	assert_int_equal(vsock_set_cid(d->v, 43, &err), 0);
	assert_int_equal(vsock_set_cid(d->v, CID, &err), 0);
	loop_unlock(&d->loop);
	read_end(fd);
	close(fd);
	call(&late, g, 10, DRV_WAIT_MS);
	assert_true(drv_wait(d, EV, &id, &len));
	hear(g, VIRTIO_VSOCK_OP_REQUEST);
	say(g, VIRTIO_VSOCK_OP_RESPONSE, 10, g->h.src_port, NULL, 0);
	assert_int_equal(called(&late), 0);
	/* It does in the end, and ends what it has: that is asked for again. */
	call(&c, g, 11, DRV_WAIT_MS);
	hear(g, VIRTIO_VSOCK_OP_REQUEST);
	b.gpa = g->ev[1];
	drv_add(d, EV, &b, 0, 1);
	kick(g, EV);
	hear(g, VIRTIO_VSOCK_OP_REQUEST);
	say(g, VIRTIO_VSOCK_OP_RESPONSE, 11, g->h.src_port, NULL, 0);
	assert_int_equal(called(&c), 0);
	read_end(late.fd);
	close(late.fd);
	loop_lock(&d->loop);
	vsock_hang_up_all(d->v);
	loop_unlock(&d->loop);
	read_end(c.fd);
	close(c.fd);
	close(s);
	close(s2);
}

/* Time in which the guest is held is none in which it could have taken note. */
static void test_held_lost(void **state)
{
	struct guest *g = *state;
	struct driver *d = &g->d;
	struct vmm_error err;
	uint32_t i;
	int s, fd;

	begin(g, DRV_EVENT_IDX, 16);
	s = listen_on(g, 80);
	/* It has no buffer left to be told in, and is given half a second for one. */
	for (i = 0; i < 9; i++) {
		loop_lock(&d->loop);
		assert_int_equal(vsock_set_cid(d->v, i % 2 ? CID : CID + 1, &err), 0);
		loop_unlock(&d->loop);
		if (i < 8)
			assert_true(drv_wait(d, EV, NULL, NULL));
	}
	loop_lock(&d->loop);
	assert_int_equal(vsock_set_cid(d->v, CID, &err), 0);
	loop_unlock(&d->loop);
	loop_hold(&d->loop);
	d->dev->ops->quiesce(d->dev);
	usleep(600000);
	loop_release(&d->loop);
	say(g, VIRTIO_VSOCK_OP_REQUEST, 1, 80, NULL, 0);
	hear(g, VIRTIO_VSOCK_OP_RST);
	usleep(600000);
	fd = accept_from(g, s, 2, 80);
	close(fd);
	close(s);
}

/* Nothing touches the rings of a machine that is held. */
static void test_hold(void **state)
{
	struct guest *g = *state;
	struct driver *d = &g->d;
	struct caller c[8];
	int round, s, fd;
	uint32_t i;

	begin(g, DRV_EVENT_IDX, 16);
	s = listen_on(g, 80);
	for (round = 0; round < 20; round++) {
		fd = accept_from(g, s, 1, 80);
		loop_hold(&d->loop);
		if (d->dev->ops->quiesce)
			d->dev->ops->quiesce(d->dev);
		for (i = 0; i < 8; i++)
			call(&c[i], g, 100 + i, DRV_WAIT_MS);
		assert_int_equal(write(fd, "x", 1), 1);
		usleep(1000);
		assert_false(hear_ms(g, 0));
		loop_release(&d->loop);
		for (i = 0; i < 9; i++) {
			assert_true(hear_ms(g, DRV_WAIT_MS));
			if (g->h.op == VIRTIO_VSOCK_OP_REQUEST)
				say(g, VIRTIO_VSOCK_OP_RESPONSE, g->h.dst_port, g->h.src_port,
				    NULL, 0);
		}
		for (i = 0; i < 8; i++) {
			assert_int_equal(called(&c[i]), 0);
			close(c[i].fd);
		}
		close(fd);
		for (i = 0; i < 9; i++)
			hear(g, VIRTIO_VSOCK_OP_SHUTDOWN);
	}
	close(s);
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(test_config), T(test_connect), T(test_refused), T(test_wait), T(test_listen),
		T(test_half_close), T(test_bulk_out), T(test_bulk_in), T(test_many),
		T(test_one_by_one), T(test_credit_out), T(test_credit_in), T(test_unread),
		T(test_hostile),
		T(test_flood), T(test_descriptors), T(test_late_response), T(test_stop),
		T(test_snapshot), T(test_held_lost), T(test_hold),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
