/* SPDX-License-Identifier: MIT */
/*
 * test_virtio_queue.c - rings, good ones and hostile ones, against an entropy
 * device and one that copies what it reads to what it may write.
 */
#include "driver.h"

#include <pthread.h>

/* ---- A device that copies ------------------------------------------------- */

struct echo {
	struct virtio	v;
	uint32_t	config;
	uint32_t	popped;
	int		unpop;		/* put the first request back once */
	struct driver	*refill;	/* whose driver adds as fast as we take */
	uint32_t	refills;
};

static void echo_notify(struct virtio *v, struct queue *q)
{
	struct echo *e = (struct echo *)v;
	uint8_t buf[4096];
	struct chain c;
	size_t n;

	while (queue_pop(q, &c)) {
		if (e->unpop) {
			e->unpop = 0;
			queue_unpop(q);
			continue;
		}
		e->popped++;
		if (e->refills && e->refills--)
			drv_expose(e->refill, 0, 0);
		n = chain_read(&c, 0, buf, sizeof(buf));
		n = chain_write(&c, 0, buf, n);
		queue_push(q, c.head, (uint32_t)n);
	}
	queue_signal(q);
}

static void echo_config_write(struct virtio *v, uint32_t off, uint32_t len, uint64_t val)
{
	memcpy((uint8_t *)&((struct echo *)v)->config + off, &val, len);
}

static void echo_free(struct virtio *v)
{
	virtio_fini(v);
	free(v);
}

static const struct virtio_ops echo_ops = {
	.type = "echo", .id = 63, .version = 1, .notify = echo_notify,
	.config_write = echo_config_write, .free = echo_free,
};

static struct echo *echo_attach(struct driver *d, uint8_t notify_by)
{
	struct echo *e = calloc(1, sizeof(*e));
	struct vmm_error err;

	assert_non_null(e);
	assert_int_equal(virtio_init(&e->v, &echo_ops, &d->env, "echo0", 2, &err), 0);
	e->v.config = &e->config;
	e->v.config_size = sizeof(e->config);
	e->v.notify_by = notify_by;
	drv_attach(d, &e->v);
	return e;
}

/* One request of three readable and two writable buffers. */
static void roundtrip(struct driver *d, const char *text)
{
	size_t n = strlen(text), a = n / 3;
	uint64_t src = drv_put(d, text, n), dst = drv_alloc(d, n);
	struct drv_buf b[5] = { { src, (uint32_t)a }, { src + a, 0 },
				{ src + a, (uint32_t)(n - a) }, { dst, 1 },
				{ dst + 1, (uint32_t)(n - 1) } };

	assert_int_equal(drv_send(d, 0, b, 3, 2), n);
	assert_memory_equal(drv_hva(d, dst), text, n);
	d->brk = src;
}

static void rounds(struct driver *d, uint64_t features)
{
	char text[40];
	int i;

	drv_start(d, features);
	for (i = 0; i < 1000; i++) {
		snprintf(text, sizeof(text), "request %d", i);
		roundtrip(d, text);
	}
	assert_int_equal(d->lines, 0);
}

static void test_direct(void **state)
{
	struct driver *d = *state;

	echo_attach(d, NOTIFY_VCPU);
	rounds(d, 0);
	assert_int_equal(drv_irqs(d), 1000);
}

static void test_indirect(void **state)
{
	struct driver *d = *state;

	echo_attach(d, NOTIFY_VCPU);
	rounds(d, DRV_INDIRECT);
}

static void test_event_idx(void **state)
{
	struct driver *d = *state;

	echo_attach(d, NOTIFY_VCPU);
	rounds(d, DRV_EVENT_IDX | DRV_INDIRECT);
	assert_int_equal(drv_irqs(d), 1000);
	/* An interrupt is wanted only after three more. */
	drv_avail(d, 0)[2 + DRV_NUM] = (uint16_t)(d->ring[0].seen + 2);
	d->features &= ~DRV_EVENT_IDX;
	roundtrip(d, "one");
	roundtrip(d, "two");
	assert_int_equal(drv_irqs(d), 1000);
	roundtrip(d, "three");
	assert_int_equal(drv_irqs(d), 1001);
	roundtrip(d, "four");
	assert_int_equal(drv_irqs(d), 1001);
}

/* The flag that asks for no interrupt; the one that asks for no notification. */
static void test_flags(void **state)
{
	struct driver *d = *state;
	struct echo *e = echo_attach(d, NOTIFY_VCPU);

	drv_start(d, 0);
	drv_avail(d, 0)[0] = VRING_AVAIL_F_NO_INTERRUPT;
	roundtrip(d, "quiet");
	assert_int_equal(drv_irqs(d), 0);
	drv_avail(d, 0)[0] = 0;
	e->unpop = 1;
	roundtrip(d, "twice");
	assert_int_equal(e->popped, 2);
	assert_int_equal(drv_irqs(d), 1);
	assert_int_equal(drv_used(d, 0)[0], 0);
	assert_int_equal(drv_read(d, VIRTIO_MMIO_INTERRUPT_STATUS), 1);
	drv_write(d, VIRTIO_MMIO_INTERRUPT_ACK, 1);
	assert_int_equal(drv_read(d, VIRTIO_MMIO_INTERRUPT_STATUS), 0);
}

/* Notifications through an eventfd, and by another thread's leave. */
static void test_loop(void **state)
{
	struct driver *d = *state;
	struct echo *e = echo_attach(d, NOTIFY_LOOP);
	uint64_t one = 1;
	uint32_t id, len;
	struct drv_buf b[2];

	drv_run(d);
	rounds(d, DRV_EVENT_IDX);
	/* What KVM does with a QueueNotify: */
	b[0].gpa = drv_put(d, "hello", 5);
	b[0].len = 5;
	b[1].gpa = drv_alloc(d, 5);
	b[1].len = 5;
	drv_add(d, 0, b, 1, 1);
	assert_true(e->v.queue[0].kick.fd >= 0);
	assert_int_equal(write(e->v.queue[0].kick.fd, &one, 8), 8);
	assert_true(drv_wait(d, 0, &id, &len));
	assert_int_equal(len, 5);
}

/* A guest that adds as fast as we take is cut short, but served by the loop. */
static void test_flood(void **state)
{
	struct driver *d = *state;
	struct drv_buf b = { DRV_RAM, 1 };
	struct echo *e = echo_attach(d, NOTIFY_VCPU);
	uint32_t popped;
	int i;

	drv_start(d, 0);
	e->refill = d;
	e->refills = 1000;
	drv_add(d, 0, &b, 1, 0);
	drv_notify(d, 0);
	assert_int_equal(e->popped, DRV_NUM);
	drv_run(d);
	for (i = 0; i < 10000; i++) {
		loop_lock(&d->loop);
		popped = e->popped;
		loop_unlock(&d->loop);
		if (popped == 1001)
			break;
		drv_sleep();
	}
	assert_int_equal(popped, 1001);
	assert_false(drv_broken(d));
}

/* ---- Hostile rings ----------------------------------------------------------- */

/* The device is broken and says so; a reset mends it; nothing else happened. */
static void expect_broken(struct driver *d, const char *why)
{
	assert_true(drv_broken(d));
	assert_int_equal(d->lines, 1);
	assert_non_null(strstr(d->line, why));
	assert_int_equal(drv_used(d, 0)[1], 0);
	drv_notify(d, 0);
	drv_notify(d, 1);
	assert_int_equal(d->lines, 1);
	d->lines = 0;
	drv_start(d, d->features);
	assert_false(drv_broken(d));
	roundtrip(d, "well again");
	drv_start(d, d->features);
}

static void give(struct driver *d, uint16_t head)
{
	drv_expose(d, 0, head);
	drv_notify(d, 0);
}

static void test_hostile_chains(void **state)
{
	struct driver *d = *state;
	uint64_t end = DRV_RAM + DRV_RAM_SIZE;
	struct vring_desc *t;
	uint64_t table;
	uint16_t i;

	echo_attach(d, NOTIFY_VCPU);
	drv_start(d, DRV_INDIRECT);

	/* Loops: of one, of two, of the whole table. */
	*drv_desc(d, 0, 0) = (struct vring_desc){ DRV_RAM, 1, VRING_DESC_F_NEXT, 0 };
	give(d, 0);
	expect_broken(d, "loop");
	*drv_desc(d, 0, 0) = (struct vring_desc){ DRV_RAM, 1, VRING_DESC_F_NEXT, 1 };
	*drv_desc(d, 0, 1) = (struct vring_desc){ DRV_RAM, 0, VRING_DESC_F_NEXT, 0 };
	give(d, 0);
	expect_broken(d, "loop");

	/* Indices outside the table. */
	give(d, DRV_NUM);
	expect_broken(d, "outside");
	give(d, 65535);
	expect_broken(d, "outside");
	*drv_desc(d, 0, 0) = (struct vring_desc){ DRV_RAM, 1, VRING_DESC_F_NEXT, 65535 };
	give(d, 0);
	expect_broken(d, "outside");

	/* Buffers: below RAM, behind it, across its end, wrapping, platform pages. */
	static const struct { uint64_t gpa; uint32_t len; } bad[] = {
		{ 0, 1 }, { DRV_RAM - 1, 2 }, { DRV_RAM + DRV_RAM_SIZE, 1 },
		{ DRV_RAM + DRV_RAM_SIZE - 1, 2 }, { ~0ull, 2 }, { ~0ull - 10, 0xffffffff },
		{ DRV_RAM, 0xffffffff }, { DRV_RAM + DRV_RAM_SIZE + 4096, 16 },
	};
	for (i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
		*drv_desc(d, 0, 0) = (struct vring_desc){ bad[i].gpa, bad[i].len, 0, 0 };
		give(d, 0);
		expect_broken(d, "not in RAM");
	}
	/* The last byte is good. */
	*drv_desc(d, 0, 0) = (struct vring_desc){ end - 1, 1, 0, 0 };
	give(d, 0);
	assert_false(drv_broken(d));
	drv_start(d, DRV_INDIRECT);

	/* A readable buffer behind a writable one. */
	*drv_desc(d, 0, 0) = (struct vring_desc){ DRV_RAM, 1,
						  VRING_DESC_F_NEXT | VRING_DESC_F_WRITE, 1 };
	*drv_desc(d, 0, 1) = (struct vring_desc){ DRV_RAM, 1, 0, 0 };
	give(d, 0);
	expect_broken(d, "readable");

	/* Indirect tables: odd, empty, not in RAM, with more behind, nested. */
	*drv_desc(d, 0, 0) = (struct vring_desc){ DRV_RAM, 17, VRING_DESC_F_INDIRECT, 0 };
	give(d, 0);
	expect_broken(d, "table");
	*drv_desc(d, 0, 0) = (struct vring_desc){ DRV_RAM, 0, VRING_DESC_F_INDIRECT, 0 };
	give(d, 0);
	expect_broken(d, "outside");
	*drv_desc(d, 0, 0) = (struct vring_desc){ end - 16, 32, VRING_DESC_F_INDIRECT, 0 };
	give(d, 0);
	expect_broken(d, "table");
	*drv_desc(d, 0, 0) = (struct vring_desc){ DRV_RAM, 16,
						  VRING_DESC_F_INDIRECT | VRING_DESC_F_NEXT, 1 };
	give(d, 0);
	expect_broken(d, "may not");
	table = drv_alloc(d, 16 * 600);
	t = drv_hva(d, table);
	t[0] = (struct vring_desc){ DRV_RAM, 16, VRING_DESC_F_INDIRECT, 0 };
	*drv_desc(d, 0, 0) = (struct vring_desc){ table, 16, VRING_DESC_F_INDIRECT, 0 };
	give(d, 0);
	expect_broken(d, "may not");

	/* CHAIN_MAX buffers are taken, one more is not; nor is a loop in a table. */
	for (i = 0; i < 600; i++)
		t[i] = (struct vring_desc){ DRV_RAM, 1,
					    i + 1u < CHAIN_MAX ? VRING_DESC_F_NEXT : 0,
					    (uint16_t)(i + 1) };
	*drv_desc(d, 0, 0) = (struct vring_desc){ table, 16 * 600, VRING_DESC_F_INDIRECT, 0 };
	give(d, 0);
	assert_false(drv_broken(d));
	assert_int_equal(drv_used(d, 0)[1], 1);
	drv_start(d, DRV_INDIRECT);
	t[CHAIN_MAX - 1].flags = VRING_DESC_F_NEXT;
	*drv_desc(d, 0, 0) = (struct vring_desc){ table, 16 * 600, VRING_DESC_F_INDIRECT, 0 };
	give(d, 0);
	expect_broken(d, "too long");
	t[CHAIN_MAX - 1].next = 0;
	*drv_desc(d, 0, 0) = (struct vring_desc){ table, 16 * 600, VRING_DESC_F_INDIRECT, 0 };
	give(d, 0);
	expect_broken(d, "too long");

	/* Large ones, the same RAM again and again. */
	for (i = 0; i < 600; i++) {
		t[i].addr = DRV_RAM;
		t[i].len = 0x800000;
		t[i].flags = VRING_DESC_F_NEXT;
	}
	*drv_desc(d, 0, 0) = (struct vring_desc){ table, 16 * 600, VRING_DESC_F_INDIRECT, 0 };
	give(d, 0);
	expect_broken(d, "too long");
	memset(t, 0, 16 * 600);

	/* Indirect, though that was not agreed on. */
	drv_start(d, 0);
	*drv_desc(d, 0, 0) = (struct vring_desc){ table, 16, VRING_DESC_F_INDIRECT, 0 };
	give(d, 0);
	expect_broken(d, "may not");

	/* An index that leaps ahead. */
	drv_avail(d, 0)[1] = DRV_NUM + 1;
	drv_notify(d, 0);
	expect_broken(d, "in a ring of");
	drv_avail(d, 0)[1] = 65535;
	drv_notify(d, 0);
	expect_broken(d, "in a ring of");
}

static void test_hostile_setup(void **state)
{
	static const uint32_t sizes[] = { 0, 3, 255, 257, 512, 32768, 65535, 65536, 0xffffffff };
	struct driver *d = *state;
	uint64_t end = DRV_RAM + DRV_RAM_SIZE, at = DRV_RAM + 4096;
	size_t i;

	echo_attach(d, NOTIFY_LOOP);
	/* Notifications before anything is set up, and of queues that are not. */
	drv_notify(d, 0);
	drv_notify(d, 7);
	drv_notify(d, 0xffffffff);
	drv_ok(d);
	assert_int_equal(drv_read(d, VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_DRIVER_OK, 0);

	for (i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
		d->lines = 0;
		drv_negotiate(d, 0);
		drv_ring_set(d, 0, sizes[i], at, at, at);
		assert_int_equal(drv_read(d, VIRTIO_MMIO_QUEUE_READY), 0);
		assert_true(drv_broken(d));
		assert_int_equal(d->lines, 1);
		drv_ok(d);
		drv_notify(d, 0);
	}
	const struct { uint64_t desc, avail, used; } places[] = {
		{ at + 8, at, at }, { at, at + 1, at }, { at, at, at + 2 },
		{ 0, at, at }, { at, 0, at }, { at, at, 0 },
		{ end - 16, at, at }, { at, end - 4, at }, { at, at, end - 4 },
		{ ~0ull - 15, at, at }, { at, ~0ull - 1, at }, { at, at, ~0ull - 3 },
	};
	for (i = 0; i < sizeof(places) / sizeof(*places); i++) {
		drv_negotiate(d, 0);
		drv_ring_set(d, 0, 16, places[i].desc, places[i].avail, places[i].used);
		assert_true(drv_broken(d));
		assert_int_equal(drv_read(d, VIRTIO_MMIO_QUEUE_READY), 0);
	}
	/* All three parts to the last byte: that is a ring. */
	d->lines = 0;
	drv_negotiate(d, 0);
	drv_ring_set(d, 0, 16, end - 256, end - 38, end - 136);
	assert_false(drv_broken(d));
	assert_int_equal(drv_read(d, VIRTIO_MMIO_QUEUE_READY), 1);
	/* One entry is a size, too. */
	d->num = 1;
	drv_start(d, DRV_INDIRECT);
	roundtrip(d, "alone");
	roundtrip(d, "alone again");
	/* A queue that does not exist. */
	drv_write(d, VIRTIO_MMIO_QUEUE_SEL, 2);
	assert_int_equal(drv_read(d, VIRTIO_MMIO_QUEUE_NUM_MAX), 0);
	drv_ring_set(d, 99, 16, at, at, at);
	assert_int_equal(drv_read(d, VIRTIO_MMIO_QUEUE_READY), 0);
	/* Nothing moves while the device is in use. */
	drv_ring_set(d, 0, 16, 0, 0, 0);
	drv_write(d, VIRTIO_MMIO_QUEUE_READY, 0);
	assert_int_equal(drv_read(d, VIRTIO_MMIO_QUEUE_READY), 1);
	roundtrip(d, "still here");
}

struct flood {
	struct driver	*d;
	int		stop;
};

/* Descriptors that change while they are read: any outcome but a crash. */
static void *change_main(void *arg)
{
	struct flood *f = arg;
	struct driver *d = f->d;
	uint64_t x = 88172645463325252ull;
	uint8_t *ram = drv_hva(d, d->ring[0].desc);

	while (!__atomic_load_n(&f->stop, __ATOMIC_RELAXED)) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		__atomic_store_n(ram + x % 256, (uint8_t)(x >> 32), __ATOMIC_RELAXED);
	}
	return NULL;
}

static void test_changing(void **state)
{
	struct driver *d = *state;
	struct flood f = { d, 0 };
	pthread_t t;
	int i;

	if (DRV_TSAN)
		skip();
	echo_attach(d, NOTIFY_VCPU);
	drv_run(d);
	drv_start(d, DRV_INDIRECT);
	pthread_create(&t, NULL, change_main, &f);
	for (i = 0; i < 20000; i++) {
		uint64_t brk = d->brk;

		drv_expose(d, 0, (uint16_t)((uint32_t)i % DRV_NUM));
		drv_notify(d, 0);
		if (!drv_broken(d))
			continue;
		/* The same rings again, for the other thread knows where. */
		drv_negotiate(d, DRV_INDIRECT);
		drv_avail(d, 0)[1] = d->ring[0].next = 0;
		drv_used(d, 0)[1] = 0;
		drv_ring_set(d, 0, d->num, d->ring[0].desc, d->ring[0].avail, d->ring[0].used);
		drv_ok(d);
		d->brk = brk;
	}
	__atomic_store_n(&f.stop, 1, __ATOMIC_RELAXED);
	pthread_join(t, NULL);
	drv_start(d, DRV_INDIRECT);
	roundtrip(d, "quiet at last");
}

/* ---- Entropy -------------------------------------------------------------------- */

static void test_rng(void **state)
{
	struct driver *d = *state;
	struct drv_buf b[2];
	struct virtio *v;
	struct vmm_error err;
	static const uint8_t zero[64];

	assert_int_equal(rng_new(&v, &d->env, "rng0", &err), 0);
	drv_attach(d, v);
	drv_start(d, DRV_EVENT_IDX | DRV_INDIRECT);
	assert_int_equal(drv_read(d, VIRTIO_MMIO_DEVICE_ID), 4);
	b[0].gpa = drv_alloc(d, 64);
	b[0].len = 40;
	b[1].gpa = b[0].gpa + 40;
	b[1].len = 24;
	assert_int_equal(drv_send(d, 0, b, 0, 2), 64);
	assert_memory_not_equal(drv_hva(d, b[0].gpa), zero, 40);
	assert_memory_not_equal(drv_hva(d, b[1].gpa), zero, 24);
	b[0].gpa = drv_alloc(d, 100000);
	b[0].len = 100000;
	assert_int_equal(drv_send(d, 0, b, 0, 1), 4096);
	drv_add(d, 0, b, 1, 0);
	drv_notify(d, 0);
	assert_true(drv_broken(d));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_direct, drv_setup, drv_teardown),
		cmocka_unit_test_setup_teardown(test_indirect, drv_setup, drv_teardown),
		cmocka_unit_test_setup_teardown(test_event_idx, drv_setup, drv_teardown),
		cmocka_unit_test_setup_teardown(test_flags, drv_setup, drv_teardown),
		cmocka_unit_test_setup_teardown(test_loop, drv_setup, drv_teardown),
		cmocka_unit_test_setup_teardown(test_flood, drv_setup, drv_teardown),
		cmocka_unit_test_setup_teardown(test_hostile_chains, drv_setup, drv_teardown),
		cmocka_unit_test_setup_teardown(test_hostile_setup, drv_setup, drv_teardown),
		cmocka_unit_test_setup_teardown(test_changing, drv_setup, drv_teardown),
		cmocka_unit_test_setup_teardown(test_rng, drv_setup, drv_teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
