/* SPDX-License-Identifier: MIT */
/*
 * test_vhost_user.c - the front end, against a back end in a thread: it maps
 * the guest's RAM, serves the rings of a disk of 64 sectors, and does what the
 * test tells it to do wrong.
 *
 * The front end is compiled into this file: its state is looked at, and a test
 * says how long it waits.
 */
static unsigned int timeout_ms;

#define VHOST_TIMEOUT_MS timeout_ms
#define vhost_user_new vhost_user_new_here
#include "driver.h"
#include "../../virtio/vhost_user.c"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include <linux/fuse.h>
#include <linux/virtio_blk.h>
#include <linux/virtio_fs.h>
#include <linux/virtio_ids.h>

#define SECTORS 64u
#define QUEUES 4u

enum { FAULT_NONE, FAULT_MUTE, FAULT_NACK, FAULT_GARBAGE, FAULT_HANGUP, FAULT_SHORT };

struct msg {
	uint32_t	request, flags, size;
	uint8_t		data[512];
} __attribute__((packed));

struct bring {
	uint32_t	num, base;
	uint64_t	desc, used, avail;	/* addresses of the front end */
	int		kick, call, on;
	uint16_t	held[8];	/* what it will answer late */
	uint32_t	nheld;
};

struct backend {
	pthread_t	thread;
	int		fd;
	uint64_t	features, protocol, acked;	/* offered, offered, agreed */
	uint64_t	queue_num;
	uint64_t	capacity;
	int		fault;		/* FAULT_* ... */
	uint32_t	fault_at;	/* ... at this message; 0: at a request */
	int		slow_ms;	/* per request */
	int		late;		/* it takes requests, and answers after a while */
	int		keep, dying;	/* atomic: answer every so-manieth, last first; then die */
	int		untold;		/* atomic: ... before it has told of them */
	int		stalled;	/* atomic: 1: it neither answers nor hangs up; 2: no more */
	uint8_t		*ram;
	uint64_t	ram_gpa, ram_size, ram_uaddr;
	struct bring	ring[QUEUES];
	int		served, starts;	/* atomic */
	uint8_t		disk[SECTORS * 512];
};

/* ---- The back end --------------------------------------------------------------- */

static void *at_uaddr(struct backend *b, uint64_t uaddr, size_t n)
{
	uint64_t off = uaddr - b->ram_uaddr;

	return off <= b->ram_size && n <= b->ram_size - off ? b->ram + off : NULL;
}

static void *at_gpa(struct backend *b, uint64_t gpa, size_t n)
{
	return at_uaddr(b, gpa - b->ram_gpa + b->ram_uaddr, n);
}

/* One request: header, data, status; each in one buffer. */
static uint32_t serve_one(struct backend *b, struct bring *r, uint16_t head)
{
	struct vring_desc *d = at_uaddr(b, r->desc, 16u * r->num), c[3];
	struct virtio_blk_outhdr *h;
	uint8_t *data;
	uint32_t i, at = head;

	if (d[head].flags & VRING_DESC_F_INDIRECT) {
		d = at_gpa(b, d[head].addr, d[head].len);
		at = 0;
	}
	for (i = 0; i < 3; i++, at = c[i - 1].next)
		c[i] = d[at];
	h = at_gpa(b, c[0].addr, sizeof(*h));
	data = at_gpa(b, c[1].addr, c[1].len);
	if (h->type == VIRTIO_BLK_T_OUT)
		memcpy(b->disk + h->sector * 512, data, c[1].len);
	else
		memcpy(data, b->disk + h->sector * 512, c[1].len);
	*(uint8_t *)at_gpa(b, c[2].addr, 1) = 0;
	return h->type == VIRTIO_BLK_T_OUT ? 1 : c[1].len + 1;
}

static void answer(struct backend *b, struct bring *r, uint16_t head)
{
	uint16_t *used = at_uaddr(b, r->used, 6 + 8u * r->num), idx = used[1];
	uint32_t *e = (uint32_t *)(void *)((uint8_t *)used + 4 + 8u * (idx % r->num));
	uint64_t one = 1;

	e[0] = head;
	e[1] = serve_one(b, r, head);
	__atomic_store_n(&used[1], (uint16_t)(idx + 1), __ATOMIC_SEQ_CST);
	__atomic_fetch_add(&b->served, 1, __ATOMIC_SEQ_CST);
	if (r->call >= 0 && !__atomic_load_n(&b->untold, __ATOMIC_SEQ_CST) &&
	    write(r->call, &one, sizeof(one)) < 0)
		return;
}

static void serve(struct backend *b, struct bring *r)
{
	uint16_t *avail = at_uaddr(b, r->avail, 6 + 2u * r->num), i, n;

	if (__atomic_load_n(&b->dying, __ATOMIC_SEQ_CST)) {
		n = (uint16_t)(__atomic_load_n(&avail[1], __ATOMIC_ACQUIRE) - r->base);
		for (i = n; i--;)
			if (i % b->keep == 0)
				answer(b, r, avail[2 + (r->base + i) % r->num]);
		return;
	}
	while ((uint16_t)r->base != __atomic_load_n(&avail[1], __ATOMIC_ACQUIRE)) {
		if (b->slow_ms)
			usleep((useconds_t)b->slow_ms * 1000);
		i = avail[2 + r->base % r->num];
		r->base = (uint16_t)(r->base + 1);
		if (b->late && r->nheld < 8)
			r->held[r->nheld++] = i;
		else
			answer(b, r, i);
	}
}

static void set_fd(int *slot, int fd)
{
	if (*slot >= 0)
		close(*slot);
	*slot = fd;
}

static void reply(struct backend *b, struct msg *m, uint32_t size)
{
	m->flags = 1 | 4;
	m->size = size;
	if (b->fault && b->fault_at == m->request) {
		switch (b->fault) {
		case FAULT_MUTE:
			return;
		case FAULT_NACK:
			memset(m->data, 0xff, size);
			break;
		case FAULT_GARBAGE:
			memset(m, 0xa5, sizeof(*m));
			break;
		case FAULT_SHORT:
			m->size = size = 0;
			break;
		default:
			shutdown(b->fd, SHUT_RDWR);
			return;
		}
	}
	send(b->fd, m, 12 + size, MSG_NOSIGNAL);
}

static void reply_u64(struct backend *b, struct msg *m, uint64_t val)
{
	memcpy(m->data, &val, 8);
	reply(b, m, 8);
}

/* 0: it has hung up. */
static int hear(struct backend *b)
{
	union {
		struct cmsghdr	align;
		char		buf[CMSG_SPACE(sizeof(int))];
	} u;
	struct msg m;
	struct iovec iov = { &m, 12 };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = u.buf,
			      .msg_controllen = sizeof(u.buf) };
	struct virtio_blk_config *cfg;
	uint32_t w[2], i;
	uint64_t q[5];
	int fd = -1;

	if (recvmsg(b->fd, &msg, MSG_CMSG_CLOEXEC | MSG_WAITALL) != 12)
		return 0;
	if (msg.msg_controllen && CMSG_FIRSTHDR(&msg))
		memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&msg)), sizeof(fd));
	if (m.size > sizeof(m.data) ||
	    (m.size && recv(b->fd, m.data, m.size, MSG_WAITALL) != (ssize_t)m.size))
		return 0;
	memcpy(w, m.data, sizeof(w));
	memcpy(q, m.data, sizeof(q));
	switch (m.request) {
	case 1:
		reply_u64(b, &m, b->features);
		break;
	case 2:
		b->acked = q[0];
		break;
	case 5:
		if (b->ram)
			munmap(b->ram, b->ram_size);
		b->ram_gpa = q[1];
		b->ram_size = q[2];
		b->ram_uaddr = q[3];
		b->ram = mmap(NULL, b->ram_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		close(fd);
		if (m.flags & 8)
			reply_u64(b, &m, b->ram == MAP_FAILED);
		break;
	case 8:
		b->ring[w[0]].num = w[1];
		break;
	case 9:
		b->ring[w[0]].desc = q[1];
		b->ring[w[0]].used = q[2];
		b->ring[w[0]].avail = q[3];
		break;
	case 10:
		b->ring[w[0]].base = w[1];
		break;
	case 11:
		set_fd(&b->ring[w[0]].kick, -1);
		set_fd(&b->ring[w[0]].call, -1);
		b->ring[w[0]].on = 0;
		memcpy(m.data + 4, &b->ring[w[0]].base, 4);
		reply(b, &m, 8);
		/* As qemu-storage-daemon: how is it to tell of these? */
		return b->ring[w[0]].nheld == 0;
	case 12:
		set_fd(&b->ring[w[0] & 0xff].kick, fd);
		__atomic_fetch_add(&b->starts, 1, __ATOMIC_SEQ_CST);
		if (!(b->acked >> 30 & 1))
			b->ring[w[0] & 0xff].on = 1;
		break;
	case 13:
		set_fd(&b->ring[w[0] & 0xff].call, fd);
		break;
	case 15:
		reply_u64(b, &m, b->protocol);
		break;
	case 17:
		reply_u64(b, &m, b->queue_num);
		break;
	case 18:
		b->ring[w[0]].on = (int)w[1];
		break;
	case 24:
		cfg = (void *)(m.data + 12);
		memset(cfg, 0, w[1]);
		memcpy(&cfg->capacity, &b->capacity, 8);
		i = 9;
		memcpy(&cfg->num_queues, &i, 2);
		reply(b, &m, 12 + w[1]);
		break;
	default:
		break;
	}
	return 1;
}

static void *backend_main(void *arg)
{
	struct backend *b = arg;
	struct pollfd p[1 + QUEUES];
	uint64_t count;
	uint32_t i;

	for (;;) {
		p[0] = (struct pollfd){ .fd = b->fd, .events = POLLIN };
		for (i = 0; i < QUEUES; i++)
			p[1 + i] = (struct pollfd){ .fd = b->ring[i].on ? b->ring[i].kick : -1,
						    .events = POLLIN };
		if (poll(p, 1 + QUEUES, b->late ? 2 : -1) == 0) {
			if (__atomic_load_n(&b->stalled, __ATOMIC_SEQ_CST))
				continue;
			/* One of each ring at a time. */
			for (i = 0; i < QUEUES; i++)
				if (b->ring[i].nheld)
					answer(b, &b->ring[i], b->ring[i].held[--b->ring[i].nheld]);
			continue;
		}
		if (p[0].revents && !hear(b))
			break;
		if (p[0].revents)
			continue;
		for (i = 0; i < QUEUES; i++) {
			if (!p[1 + i].revents)
				continue;
			if (read(b->ring[i].kick, &count, 8) != 8)
				continue;
			if (b->fault == FAULT_HANGUP && !b->fault_at)
				goto out;
			serve(b, &b->ring[i]);
			if (__atomic_load_n(&b->dying, __ATOMIC_SEQ_CST))
				goto out;
		}
	}
out:
	/* As qemu-storage-daemon: it finishes what it has, though nobody listens. */
	while (__atomic_load_n(&b->stalled, __ATOMIC_SEQ_CST) == 1)
		usleep(1000);
	while (b->stalled && b->ring[0].nheld)
		answer(b, &b->ring[0], b->ring[0].held[--b->ring[0].nheld]);
	for (i = 0; i < QUEUES; i++) {
		set_fd(&b->ring[i].kick, -1);
		set_fd(&b->ring[i].call, -1);
		b->ring[i].on = 0;
	}
	if (b->ram)
		munmap(b->ram, b->ram_size);
	b->ram = NULL;
	close(b->fd);
	b->fd = -1;
	return NULL;
}

#define PROTO (1ull << 30)
#define MQ 1ull
#define ACK (1ull << 3)
#define CONFIG (1ull << 9)

static void backend_init(struct backend *b)
{
	uint32_t i;

	memset(b, 0, sizeof(*b));
	b->fd = -1;
	b->features = 1ull << VIRTIO_F_VERSION_1 | DRV_INDIRECT | PROTO | 1ull << 26 | 1ull << 34 |
		      1ull << VIRTIO_BLK_F_FLUSH;
	b->protocol = MQ | ACK | CONFIG | 1ull << 5;
	b->queue_num = QUEUES;
	b->capacity = SECTORS;
	for (i = 0; i < QUEUES; i++)
		b->ring[i].kick = b->ring[i].call = -1;
}

/* Returns the front end's end of the socket. */
static int backend_start(struct backend *b)
{
	int s[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, s), 0);
	b->fd = s[0];
	pthread_create(&b->thread, NULL, backend_main, b);
	return s[1];
}

/* ---- The front end ----------------------------------------------------------------- */

struct both {
	struct driver	d;
	struct backend	b;
	uint64_t	hdr, data, status;
};

static int setup(void **state)
{
	struct both *t = calloc(1, sizeof(*t));
	struct vmm_error err;

	timeout_ms = 10000;
	drv_open(&t->d);
	assert_int_equal(mem_share(&t->d.mem, &err), 0);
	backend_init(&t->b);
	*state = t;
	return 0;
}

static int teardown(void **state)
{
	struct both *t = *state;

	drv_close(&t->d);
	free(t);
	return 0;
}

static int make(struct both *t, uint32_t queues, struct virtio **v, struct vmm_error *err)
{
	struct vhost_user_config cfg = VHOST_USER_CONFIG_INIT;
	int r;

	cfg.id = VIRTIO_ID_BLOCK;
	cfg.queues = queues;
	cfg.fd = backend_start(&t->b);
	r = vhost_user_new(v, &t->d.env, "vda", &cfg, err);
	close(cfg.fd);
	if (r)
		pthread_join(t->b.thread, NULL);
	return r;
}

static void begin(struct both *t, uint32_t queues)
{
	struct vmm_error err;
	struct virtio *v;

	assert_int_equal(make(t, queues, &v, &err), 0);
	drv_attach(&t->d, v);
	drv_run(&t->d);
}

static void begin_fs(struct both *t)
{
	struct vhost_user_config cfg = VHOST_USER_CONFIG_INIT;
	struct vmm_error err;
	struct virtio *v;

	cfg.id = VIRTIO_ID_FS;
	cfg.tag = "share";
	cfg.fd = backend_start(&t->b);
	assert_int_equal(vhost_user_new(&v, &t->d.env, "fs0", &cfg, &err), 0);
	close(cfg.fd);
	drv_attach(&t->d, v);
	drv_run(&t->d);
}

static void start(struct both *t, uint64_t features)
{
	t->d.brk = DRV_RAM + 4096;
	drv_start(&t->d, features);
	t->hdr = drv_alloc(&t->d, 16);
	t->data = drv_alloc(&t->d, 4096);
	t->status = drv_alloc(&t->d, 1);
}

static uint16_t add(struct both *t, uint32_t q, uint32_t type, uint64_t sector, uint32_t len)
{
	struct virtio_blk_outhdr h = { .type = type, .sector = sector };
	struct drv_buf b[3] = { { t->hdr, 16 }, { t->data, len }, { t->status, 1 } };

	memcpy(drv_hva(&t->d, t->hdr), &h, sizeof(h));
	*(uint8_t *)drv_hva(&t->d, t->status) = 0xff;
	return drv_add(&t->d, q, b, type == VIRTIO_BLK_T_OUT ? 2 : 1, type == VIRTIO_BLK_T_OUT ? 1 : 2);
}

static void request(struct both *t, uint32_t q, uint32_t type, uint64_t sector, uint32_t len)
{
	uint32_t n;

	add(t, q, type, sector, len);
	drv_notify(&t->d, q);
	assert_true(drv_wait(&t->d, q, NULL, &n));
	assert_int_equal(n, type == VIRTIO_BLK_T_OUT ? 1 : len + 1);
	assert_int_equal(*(uint8_t *)drv_hva(&t->d, t->status), 0);
}

static void end(struct both *t)
{
	drv_detach(&t->d);
	pthread_join(t->b.thread, NULL);
}

static void take_event(struct driver *d, struct vmm_event *ev)
{
	events_take(d->env.events, 0, NULL, NULL, ev);
}

/* ---- Tests ---------------------------------------------------------------------------- */

static void test_disk(void **state)
{
	struct both *t = *state;
	struct virtio_blk_config c;
	uint32_t i;

	t->b.features |= 1ull << VIRTIO_BLK_F_CONFIG_WCE;
	begin(t, 1);
	/* What is offered: no log, no packed ring, no queues that we do not have, no
	   cache that could be turned off. */
	assert_int_equal(drv_offers(&t->d), 1ull << VIRTIO_F_VERSION_1 | DRV_INDIRECT |
			 1ull << VIRTIO_BLK_F_FLUSH);
	drv_config(&t->d, 0, &c, 60);
	assert_int_equal(c.capacity, SECTORS);
	assert_int_equal(c.num_queues, 1);
	start(t, DRV_INDIRECT);
	for (i = 0; i < 40; i++) {
		memset(drv_hva(&t->d, t->data), (int)i, 512);
		request(t, 0, VIRTIO_BLK_T_OUT, i, 512);
		memset(drv_hva(&t->d, t->data), 0xee, 512);
		request(t, 0, VIRTIO_BLK_T_IN, i, 512);
		assert_int_equal(*(uint8_t *)drv_hva(&t->d, t->data + 511), i);
	}
	for (i = 0; i < DRV_WAIT_MS && !drv_irqs(&t->d); i++)
		usleep(1000);
	assert_true(drv_irqs(&t->d));
	/* A driver that starts over, without indirect tables. */
	start(t, 0);
	request(t, 0, VIRTIO_BLK_T_IN, 7, 512);
	assert_int_equal(*(uint8_t *)drv_hva(&t->d, t->data), 7);
	assert_int_equal(__atomic_load_n(&t->b.starts, __ATOMIC_SEQ_CST), 2);
	end(t);
}

static void test_queues(void **state)
{
	struct both *t = *state;
	struct virtio_blk_config c;
	uint32_t i;

	t->b.features |= 1ull << VIRTIO_BLK_F_MQ;
	begin(t, QUEUES);
	assert_true(drv_offers(&t->d) & 1ull << VIRTIO_BLK_F_MQ);
	drv_config(&t->d, 0, &c, 60);
	assert_int_equal(c.num_queues, QUEUES);
	start(t, 1ull << VIRTIO_BLK_F_MQ);
	for (i = 0; i < 4 * QUEUES; i++)
		request(t, i % QUEUES, VIRTIO_BLK_T_OUT, i, 512);
	end(t);
}

/* Old and simple ones. */
static void test_simple(void **state)
{
	struct both *t = *state;
	struct vhost_user_config cfg = VHOST_USER_CONFIG_INIT;
	struct virtio_fs_config c;
	struct vmm_error err;
	struct virtio *v;
	int null;

	t->b.features &= ~PROTO;
	assert_int_equal(make(t, 1, &v, &err), VMM_ENOTSUP);
	backend_init(&t->b);
	t->b.features &= ~PROTO;
	begin_fs(t);
	v = t->d.v;
	drv_config(&t->d, 0, &c, sizeof(c));
	assert_memory_equal(c.tag, "share\0", 6);
	assert_int_equal(c.num_request_queues, 1);
	assert_int_equal(v->nqueues, 2);
	assert_string_equal(v->ops->type, "vhost-fs");
	start(t, 0);
	request(t, 1, VIRTIO_BLK_T_OUT, 3, 512);	/* it is a disk all the same */
	end(t);
	/* What is no socket, or no stream. */
	cfg.id = VIRTIO_ID_FS;
	cfg.tag = "share";
	assert_int_equal(vhost_user_new(&v, &t->d.env, "fs0", &cfg, &err), VMM_ESYS);
	null = cfg.fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	assert_int_equal(vhost_user_new(&v, &t->d.env, "fs0", &cfg, &err), VMM_ESYS);
	cfg.fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	assert_int_equal(vhost_user_new(&v, &t->d.env, "fs0", &cfg, &err), VMM_EINVAL);
	close(cfg.fd);
	close(null);
	cfg.tag = "";
	assert_int_equal(vhost_user_new(&v, &t->d.env, "fs0", &cfg, &err), VMM_EINVAL);
	cfg.tag = "a tag of more than thirty-six bytes is too long";
	assert_int_equal(vhost_user_new(&v, &t->d.env, "fs0", &cfg, &err), VMM_EINVAL);
	cfg.id = VIRTIO_ID_NET;
	assert_int_equal(vhost_user_new(&v, &t->d.env, "fs0", &cfg, &err), VMM_EINVAL);
	cfg.id = VIRTIO_ID_BLOCK;
	cfg.queues = 65;
	assert_int_equal(vhost_user_new(&v, &t->d.env, "fs0", &cfg, &err), VMM_EINVAL);
}

static void test_bad_backend(void **state)
{
	static const uint32_t at[] = { 1, 15, 17, 24 };
	static const int fault[] = { FAULT_GARBAGE, FAULT_HANGUP, FAULT_SHORT };
	struct both *t = *state;
	struct vmm_error err;
	struct virtio *v;
	uint32_t i, k;

	for (i = 0; i < 4; i++) {
		for (k = 0; k < 3; k++) {
			backend_init(&t->b);
			t->b.fault_at = at[i];
			t->b.fault = fault[k];
			assert_int_equal(make(t, 1, &v, &err), VMM_ESYS);
			assert_null(v);
		}
	}
	backend_init(&t->b);
	t->b.features &= ~(1ull << VIRTIO_F_VERSION_1);
	assert_int_equal(make(t, 1, &v, &err), VMM_ENOTSUP);
	backend_init(&t->b);
	t->b.queue_num = 1;
	assert_int_equal(make(t, 2, &v, &err), VMM_EINVAL);
	backend_init(&t->b);
	t->b.protocol = 0;
	assert_int_equal(make(t, 1, &v, &err), VMM_ENOTSUP);
}

static int failed(struct both *t)
{
	return *(uint8_t *)drv_hva(&t->d, t->status) == VIRTIO_BLK_S_IOERR;
}

/* A request that nobody serves any more. */
static void refused(struct both *t)
{
	add(t, 0, VIRTIO_BLK_T_IN, 0, 512);
	drv_notify(&t->d, 0);
	assert_true(drv_wait(&t->d, 0, NULL, NULL));
	assert_true(failed(t));
}

/* Does a driver that starts over get as far as its rings? */
static int set_up(struct both *t)
{
	return (drv_negotiate(&t->d, 0) & VIRTIO_CONFIG_S_FEATURES_OK) != 0;
}

/* When the guest uses it already: what is in flight fails, and what follows. */
static void test_death(void **state)
{
	struct both *t = *state;
	struct vmm_event ev;
	int i;

	t->b.fault = FAULT_HANGUP;
	begin(t, 1);
	start(t, 0);
	refused(t);
	refused(t);
	assert_false(drv_broken(&t->d));
	assert_non_null(strstr(t->d.line, "back end is gone"));
	pthread_join(t->b.thread, NULL);
	start(t, DRV_INDIRECT);		/* a driver that starts over */
	refused(t);
	take_event(&t->d, &ev);
	assert_int_equal(ev.type, VMM_EV_DEVICE);
	assert_int_equal(ev.value, ECONNRESET);
	assert_non_null(strstr(ev.detail, "vda: its back end is gone"));
	take_event(&t->d, &ev);
	assert_int_equal(ev.type, VMM_EV_NONE);
	drv_detach(&t->d);
	/* It does not take our memory. */
	backend_init(&t->b);
	t->b.fault = FAULT_NACK;
	t->b.fault_at = 5;
	begin(t, 1);
	start(t, 0);
	refused(t);
	end(t);
	/* When it is stopped it hangs up, or says nonsense, and might be alive. */
	for (i = 0; i < 2; i++) {
		backend_init(&t->b);
		t->b.fault = i ? FAULT_GARBAGE : FAULT_HANGUP;
		t->b.fault_at = 11;
		begin(t, 1);
		start(t, 0);
		request(t, 0, VIRTIO_BLK_T_OUT, 1, 512);
		drv_write(&t->d, VIRTIO_MMIO_STATUS, 0);
		assert_non_null(strstr(t->d.line, "gone"));
		if (i) {
			assert_false(set_up(t));
		} else {
			start(t, 0);
			refused(t);
		}
		end(t);
	}
}

/* It has answered some requests and not others, in no order, when it dies. */
static void test_death_in_flight(void **state)
{
	enum { N = 5 };
	struct both *t = *state;
	struct driver *d = &t->d;
	uint64_t status[N];
	uint16_t head[N];
	uint32_t id = ~0u;
	int i, k, round, seen, bad, irqs;

	for (round = 0; round < 60; round++) {
		backend_init(&t->b);
		t->b.keep = 1 + round % 3;
		begin(t, 1);
		start(t, round % 2 ? DRV_INDIRECT : 0);
		/* Rings that have gone round some times by then; as a driver does
		   that waits for its interrupts. */
		for (i = 0; i < round; i++) {
			irqs = drv_irqs(d);
			request(t, 0, VIRTIO_BLK_T_OUT, 1, 512);
			while (drv_irqs(d) == irqs)
				usleep(100);
		}
		__atomic_store_n(&t->b.dying, 1, __ATOMIC_SEQ_CST);
		for (i = 0; i < N - 2; i++) {
			t->status = status[i] = drv_alloc(d, 1);
			head[i] = add(t, 0, VIRTIO_BLK_T_IN, 0, 512);
		}
		drv_notify(d, 0);
		for (; i < N; i++) {	/* while it dies */
			t->status = status[i] = drv_alloc(d, 1);
			head[i] = add(t, 0, VIRTIO_BLK_T_IN, 0, 512);
			drv_notify(d, 0);
		}
		for (i = 0, seen = 0; i < N; i++) {
			assert_true(drv_wait(d, 0, &id, NULL));
			for (k = 0; k < N && head[k] != id; k++)
				;
			assert_true(k < N && !(seen >> k & 1));
			seen |= 1 << k;
		}
		assert_false(drv_get(d, 0, NULL, NULL));
		for (i = 0, bad = 0; i < N; i++)
			bad += *(uint8_t *)drv_hva(d, status[i]) == VIRTIO_BLK_S_IOERR;
		assert_int_equal(bad, N - __atomic_load_n(&t->b.served, __ATOMIC_SEQ_CST) + round);
		assert_false(drv_broken(d));
		end(t);
	}
}

/* It dies having answered all, and told of nothing: the driver is told all the same. */
static void test_death_untold(void **state)
{
	struct both *t = *state;
	struct driver *d = &t->d;
	int irqs, i;

	begin(t, 1);
	start(t, 0);
	request(t, 0, VIRTIO_BLK_T_OUT, 1, 512);
	for (i = 0; i < DRV_WAIT_MS && !drv_irqs(d); i++)
		usleep(1000);
	t->b.keep = 1;
	__atomic_store_n(&t->b.untold, 1, __ATOMIC_SEQ_CST);
	__atomic_store_n(&t->b.dying, 1, __ATOMIC_SEQ_CST);
	irqs = drv_irqs(d);
	add(t, 0, VIRTIO_BLK_T_IN, 1, 512);
	drv_notify(d, 0);
	for (i = 0; i < DRV_WAIT_MS && drv_irqs(d) == irqs; i++)
		usleep(1000);
	assert_true(drv_irqs(d) > irqs);
	assert_true(drv_get(d, 0, NULL, NULL));
	assert_false(failed(t));
	end(t);
}

/* What is in the ring by then is left to the I/O thread, one ring's worth at a time. */
static void test_death_held(void **state)
{
	struct both *t = *state;
	struct driver *d = &t->d;
	int i;

	t->b.fault = FAULT_NACK;
	t->b.fault_at = 5;
	begin(t, 1);
	drv_negotiate(d, 0);
	drv_ring_place(d, 0);
	drv_ring_set(d, 0, d->num, d->ring[0].desc, d->ring[0].avail, d->ring[0].used);
	t->hdr = drv_alloc(d, 16);
	t->data = drv_alloc(d, 4096);
	t->status = drv_alloc(d, 1);
	for (i = 0; i < 5; i++)
		add(t, 0, VIRTIO_BLK_T_IN, 0, 512);
	loop_hold(&d->loop);
	drv_ok(d);
	assert_non_null(strstr(d->line, "gone"));
	assert_false(drv_get(d, 0, NULL, NULL));
	loop_release(&d->loop);
	for (i = 0; i < 5; i++)
		assert_true(drv_wait(d, 0, NULL, NULL));
	assert_true(failed(t));
	refused(t);
	assert_true(drv_irqs(d));
	end(t);
}

/* A directory: who waits for an answer gets one, with an error. */
static void test_fs_death(void **state)
{
	struct both *t = *state;
	struct driver *d = &t->d;
	struct fuse_in_header in = { .len = sizeof(in), .opcode = FUSE_GETATTR, .unique = 77 };
	struct fuse_out_header out;
	struct drv_buf b[2];
	uint32_t n;

	t->b.fault = FAULT_HANGUP;
	begin_fs(t);
	start(t, 0);
	b[0] = (struct drv_buf){ drv_alloc(d, sizeof(in)), sizeof(in) };
	b[1] = (struct drv_buf){ drv_alloc(d, 128), 128 };
	memcpy(drv_hva(d, b[0].gpa), &in, sizeof(in));
	assert_int_equal(drv_send(d, 1, b, 1, 1), sizeof(out));
	memcpy(&out, drv_hva(d, b[1].gpa), sizeof(out));
	assert_int_equal(out.len, sizeof(out));
	assert_int_equal(out.error, -EIO);
	assert_int_equal(out.unique, 77);
	/* Without room for an answer, or a header that asks for one. */
	assert_int_equal(drv_send(d, 0, b, 1, 0), 0);
	b[0].len = 8;
	assert_int_equal(drv_send(d, 1, b, 1, 1), 0);
	drv_add(d, 1, b, 1, 1);
	drv_notify(d, 1);
	assert_true(drv_wait(d, 1, NULL, &n));
	assert_int_equal(n, 0);
	end(t);
}

/* What is needed of us fails: it has not been given the ring by then. */
static void test_no_watch(void **state)
{
	struct both *t = *state;
	struct driver *d = &t->d;
	struct epoll_event none = { .events = 0 };

	begin(t, 1);
	/* The loop cannot watch this one any more. */
	assert_int_equal(epoll_ctl(d->loop.epfd, EPOLL_CTL_ADD,
				   ((struct vhost *)d->v)->ring[0].call.fd, &none), 0);
	start(t, 0);
	refused(t);
	assert_false(drv_get(d, 0, NULL, NULL));
	end(t);
	assert_int_equal(t->b.starts, 0);
}

/* RAM that is this process's own cannot be served. */
static void test_private_ram(void **state)
{
	struct both *t = *state;

	begin(t, 1);
	t->d.mem.kind = MEM_ANON;
	start(t, 0);
	refused(t);
	assert_non_null(strstr(t->d.line, "not shared"));
	t->d.mem.kind = MEM_SHARED;
	end(t);
}

/* Held now and then: what is in flight is finished, and nothing is lost. */
static void test_hold(void **state)
{
	struct both *t = *state;
	struct driver *d = &t->d;
	int i, k, done = 0;
	uint32_t n;

	t->b.slow_ms = 1;
	begin(t, 1);
	start(t, DRV_INDIRECT);
	for (i = 0; i < 40; i++) {
		for (k = 0; k < 4; k++)
			add(t, 0, VIRTIO_BLK_T_OUT, (uint64_t)k, 512);
		drv_notify(d, 0);
		loop_hold(&d->loop);
		loop_lock(&d->loop);
		d->dev->ops->quiesce(d->dev);
		n = (uint32_t)__atomic_load_n(&t->b.served, __ATOMIC_SEQ_CST);
		assert_int_equal(d->v->queue[0].last_avail, (uint16_t)n);
		loop_unlock(&d->loop);
		usleep(1000);
		assert_int_equal(__atomic_load_n(&t->b.served, __ATOMIC_SEQ_CST), n);
		loop_release(&d->loop);
		for (k = 0; k < 4; k++, done++)
			assert_true(drv_wait(d, 0, NULL, NULL));
	}
	assert_int_equal(__atomic_load_n(&t->b.served, __ATOMIC_SEQ_CST), done);
	end(t);
}

/* It has taken requests, and works on them: it is not to be stopped before it is done. */
static void test_late(void **state)
{
	struct both *t = *state;
	struct driver *d = &t->d;
	int i, k, irqs, starts = 2, done = 0;

	t->b.late = 1;
	t->b.features |= 1ull << VIRTIO_BLK_F_MQ;
	begin(t, 2);
	start(t, DRV_INDIRECT);
	for (i = 0; i < 40; i++) {
		for (k = 0; k < 6; k++, done++)
			add(t, (uint32_t)k % 2, VIRTIO_BLK_T_OUT, (uint64_t)k, 512);
		irqs = drv_irqs(d);
		drv_notify(d, 0);
		if (i % 3)
			drv_notify(d, 1);	/* else it has come no farther than this */
		usleep((useconds_t)i * 100);
		loop_hold(&d->loop);
		loop_lock(&d->loop);
		d->dev->ops->quiesce(d->dev);
		loop_unlock(&d->loop);
		assert_int_equal(__atomic_load_n(&t->b.served, __ATOMIC_SEQ_CST), done);
		assert_true(drv_irqs(d) > irqs);
		loop_release(&d->loop);
		for (k = 0; k < 6; k++)
			assert_true(drv_wait(d, (uint32_t)k % 2, NULL, NULL));
		for (starts += 2; __atomic_load_n(&t->b.starts, __ATOMIC_SEQ_CST) < starts;)
			usleep(100);
		if (i % 10)
			continue;
		/* And when its driver starts over. */
		for (k = 0; k < 3; k++, done++)
			add(t, 0, VIRTIO_BLK_T_OUT, (uint64_t)k, 512);
		if (i % 20)
			drv_notify(d, 0);
		drv_write(d, VIRTIO_MMIO_STATUS, 0);
		assert_int_equal(__atomic_load_n(&t->b.served, __ATOMIC_SEQ_CST), done);
		start(t, 0);
		starts += 2;
	}
	end(t);
}

/* How long it is waited for from now on: what went before may have taken its time. */
static void limit(struct both *t, unsigned int ms)
{
	loop_lock(&t->d.loop);
	timeout_ms = ms;
	loop_unlock(&t->d.loop);
}

/* All rings together have the time that one has. */
static void test_deadline(void **state)
{
	struct both *t = *state;
	struct driver *d = &t->d;
	uint64_t begun;
	uint32_t i;

	t->b.slow_ms = 400;
	t->b.features |= 1ull << VIRTIO_BLK_F_MQ;
	begin(t, QUEUES);
	start(t, 1ull << VIRTIO_BLK_F_MQ);
	limit(t, 500);
	usleep(20000);
	for (i = 0; i < QUEUES; i++)	/* it is told of each when that is waited for */
		add(t, i, VIRTIO_BLK_T_OUT, i, 512);
	begun = clock_ns();
	drv_write(d, VIRTIO_MMIO_STATUS, 0);
	assert_true(clock_ns() - begun < 2 * timeout_ms * 1000000ull);
	assert_non_null(strstr(d->line, "gone"));
	end(t);
}

static void *add_another(void *arg)
{
	struct both *t = arg;

	while (!__atomic_load_n(&t->b.served, __ATOMIC_SEQ_CST))
		usleep(100);
	add(t, 0, VIRTIO_BLK_T_OUT, 0, 512);
	return NULL;
}

/* A vCPU resets it, and another adds a request meanwhile: it is not waited for. */
static void test_moving(void **state)
{
	struct both *t = *state;
	struct driver *d = &t->d;
	pthread_t other;
	int i;

	t->b.late = 1;
	begin(t, 1);
	start(t, DRV_INDIRECT);
	limit(t, 1000);
	usleep(20000);
	for (i = 0; i < 4; i++)
		add(t, 0, VIRTIO_BLK_T_OUT, 0, 512);
	pthread_create(&other, NULL, add_another, t);
	drv_write(d, VIRTIO_MMIO_STATUS, 0);	/* tells it of them */
	pthread_join(other, NULL);
	assert_int_equal(d->lines, 0);
	assert_true(__atomic_load_n(&t->b.served, __ATOMIC_SEQ_CST) >= 4);
	end(t);
}

/* It is given up while it works on a request: it might finish that at any time. */
static void test_stalled(void **state)
{
	struct both *t = *state;
	struct driver *d = &t->d;
	struct vmm_event ev;

	t->b.late = t->b.stalled = 1;
	begin(t, 1);
	start(t, 0);
	limit(t, 200);
	add(t, 0, VIRTIO_BLK_T_IN, 0, 512);
	drv_notify(d, 0);
	loop_hold(&d->loop);
	loop_lock(&d->loop);
	d->dev->ops->quiesce(d->dev);
	loop_unlock(&d->loop);
	loop_release(&d->loop);
	take_event(d, &ev);
	assert_int_equal(ev.type, VMM_EV_DEVICE);
	assert_int_equal(ev.value, ECONNRESET);
	drv_notify(d, 0);
	assert_false(drv_get(d, 0, NULL, NULL));
	assert_int_equal(*(uint8_t *)drv_hva(d, t->status), 0xff);
	assert_true(drv_broken(d));
	assert_false(set_up(t));
	__atomic_store_n(&t->b.stalled, 2, __ATOMIC_SEQ_CST);
	pthread_join(t->b.thread, NULL);
	assert_int_equal(*(uint8_t *)drv_hva(d, t->status), 0);
	assert_false(set_up(t));
	take_event(d, &ev);
	assert_int_equal(ev.type, VMM_EV_NONE);
	drv_detach(d);
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(test_disk), T(test_queues), T(test_simple), T(test_bad_backend), T(test_death),
		T(test_death_in_flight), T(test_death_untold), T(test_death_held),
		T(test_fs_death), T(test_no_watch), T(test_private_ram), T(test_hold), T(test_late),
		T(test_deadline), T(test_moving), T(test_stalled),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
