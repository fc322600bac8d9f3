/* SPDX-License-Identifier: MIT */
/*
 * test_virtio_transport.c - registers, features, configuration, saved state;
 * against a device that only counts.
 */
#include "driver.h"

struct count {
	struct virtio	v;
	uint8_t		config[12];
	int		activated, resets, opened, cloned, notified;
	int		was[8];		/* queues that were notified */
	uint32_t	own;		/* its saved state */
};

static void count_notify(struct virtio *v, struct queue *q)
{
	struct count *c = (struct count *)v;

	c->was[c->notified % 8] = (int)q->index;
	__atomic_fetch_add(&c->notified, 1, __ATOMIC_SEQ_CST);
}

static void count_activate(struct virtio *v)
{
	((struct count *)v)->activated++;
}

static void count_reset(struct virtio *v)
{
	((struct count *)v)->resets++;
}

static void count_config_write(struct virtio *v, uint32_t off, uint32_t len, uint64_t val)
{
	memcpy(((struct count *)v)->config + off, &val, len);
}

static void count_save(const struct virtio *v, struct writer *w)
{
	put_u32(w, ((const struct count *)v)->own);
}

static int count_load(struct virtio *v, struct reader *r, struct vmm_error *err)
{
	(void)err;
	((struct count *)v)->own = get_u32(r);
	return 0;
}

static int count_open(struct virtio *v, struct vmm_error *err)
{
	(void)err;
	((struct count *)v)->opened++;
	return 0;
}

static void count_cloned(struct virtio *v)
{
	((struct count *)v)->cloned++;
}

static void count_free(struct virtio *v)
{
	virtio_fini(v);
	free(v);
}

static const struct virtio_ops count_ops = {
	.type = "count", .id = 42, .version = 7, .notify = count_notify,
	.activate = count_activate, .reset = count_reset, .config_write = count_config_write,
	.save = count_save, .load = count_load, .open = count_open, .cloned = count_cloned,
	.free = count_free,
};

static struct count *make(struct driver *d, uint8_t notify_by, uint32_t queues)
{
	struct count *c = calloc(1, sizeof(*c));
	struct vmm_error err;

	assert_non_null(c);
	assert_int_equal(virtio_init(&c->v, &count_ops, &d->env, "count0", queues, &err), 0);
	c->v.offers |= 1ull << 3 | 1ull << 50;
	c->v.config = c->config;
	c->v.config_size = sizeof(c->config);
	c->v.notify_by = notify_by;
	drv_attach(d, &c->v);
	return c;
}

static void test_registers(void **state)
{
	struct driver *d = *state;
	uint32_t off;

	make(d, NOTIFY_VCPU, 3);
	assert_string_equal(d->dev->ops->type, "count");
	assert_int_equal(d->dev->ops->version & 0xff, 7);
	assert_string_equal(d->dev->name, "count0");
	assert_string_equal(d->dev->compatible, "virtio,mmio");
	assert_int_equal(drv_read(d, VIRTIO_MMIO_MAGIC_VALUE), 0x74726976);
	assert_int_equal(drv_read(d, VIRTIO_MMIO_VERSION), 2);
	assert_int_equal(drv_read(d, VIRTIO_MMIO_DEVICE_ID), 42);
	assert_int_equal(drv_read(d, VIRTIO_MMIO_QUEUE_NUM_MAX), 256);
	assert_int_equal(drv_read(d, VIRTIO_MMIO_SHM_LEN_LOW), 0xffffffff);
	drv_write(d, VIRTIO_MMIO_QUEUE_SEL, 3);
	assert_int_equal(drv_read(d, VIRTIO_MMIO_QUEUE_NUM_MAX), 0);
	/* All of it, read and written; in every width; and to the last byte. */
	for (off = 0; off < TRANSPORT_SIZE; off++) {
		unsigned int len;

		for (len = 1; len <= 8 && off + len <= TRANSPORT_SIZE; len *= 2) {
			d->dev->ops->bus->read(d->dev, off, len);
			d->dev->ops->bus->write(d->dev, off, len, 0x0101010101010101ull * off);
		}
	}
	drv_write(d, VIRTIO_MMIO_STATUS, 0);
	assert_int_equal(drv_read(d, VIRTIO_MMIO_STATUS), 0);
}

static void test_features(void **state)
{
	struct driver *d = *state;
	const uint32_t ok = VIRTIO_CONFIG_S_FEATURES_OK;
	struct count *c = make(d, NOTIFY_VCPU, 1);

	assert_int_equal(drv_offers(d), 1ull << 3 | 1ull << 50 | 1ull << 32 | 1ull << 28 | 1ull << 29);
	drv_write(d, VIRTIO_MMIO_DEVICE_FEATURES_SEL, 2);
	assert_int_equal(drv_read(d, VIRTIO_MMIO_DEVICE_FEATURES), 0);
	assert_int_equal(drv_negotiate(d, 1ull << 50) & ok, ok);
	/* They stand from now on. */
	drv_write(d, VIRTIO_MMIO_DRIVER_FEATURES, 0xffffffff);
	drv_ok(d);
	assert_int_equal(c->activated, 1);
	assert_int_equal(c->v.features, 1ull << 50 | 1ull << 32);
	drv_ok(d);
	assert_int_equal(c->activated, 1);
	/* One that was not offered. */
	assert_int_equal(drv_negotiate(d, 1ull << 4) & ok, 0);
	drv_ok(d);
	assert_int_equal(c->activated, 1);
	assert_int_equal(drv_read(d, VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_DRIVER_OK, 0);
	/* A legacy driver. */
	drv_write(d, VIRTIO_MMIO_STATUS, 0);
	drv_ok(d);
	assert_int_equal(c->activated, 1);
	/* Bits of status are not taken back one by one. */
	drv_negotiate(d, 0);
	drv_write(d, VIRTIO_MMIO_STATUS, 1);
	assert_int_equal(drv_read(d, VIRTIO_MMIO_STATUS), 0xb);
}

static void test_config(void **state)
{
	struct driver *d = *state;
	struct count *c = make(d, NOTIFY_VCPU, 1);
	uint8_t buf[12];
	uint32_t gen;

	drv_start(d, 0);
	d->dev->ops->bus->write(d->dev, 0x100, 4, 0x64636261);
	d->dev->ops->bus->write(d->dev, 0x104, 8, 0x6c6b6a6968676665);
	d->dev->ops->bus->write(d->dev, 0x10b, 1, 0x4c);
	d->dev->ops->bus->write(d->dev, 0x10b, 2, 0xffff);
	d->dev->ops->bus->write(d->dev, 0xffc, 4, 0xffffffff);
	drv_config(d, 0, buf, 12);
	assert_memory_equal(buf, "abcdefghijkL", 12);
	assert_memory_equal(c->config, "abcdefghijkL", 12);
	assert_int_equal(d->dev->ops->bus->read(d->dev, 0x104, 8), 0x4c6b6a6968676665);
	gen = drv_read(d, VIRTIO_MMIO_CONFIG_GENERATION);
	memcpy(c->config, "ABC", 3);
	assert_int_equal(drv_irqs(d), 0);
	virtio_config_changed(&c->v);
	assert_int_equal(drv_irqs(d), 1);
	assert_int_equal(drv_read(d, VIRTIO_MMIO_INTERRUPT_STATUS), 2);
	assert_true(drv_read(d, VIRTIO_MMIO_CONFIG_GENERATION) > gen);
	assert_int_equal(d->dev->ops->bus->read(d->dev, 0x100, 4), 0x64434241);
	drv_write(d, VIRTIO_MMIO_INTERRUPT_ACK, 2);
	assert_int_equal(drv_read(d, VIRTIO_MMIO_INTERRUPT_STATUS), 0);
}

static void test_broken(void **state)
{
	struct driver *d = *state;
	struct count *c = make(d, NOTIFY_LOOP, 2);

	drv_start(d, 0);
	drv_notify(d, 1);
	assert_int_equal(c->notified, 1);
	virtio_fail(&c->v, "reason %d", 7);
	virtio_fail(&c->v, "another");
	assert_int_equal(d->lines, 1);
	assert_string_equal(d->line, "count0: broken by its driver: reason 7");
	assert_int_equal(drv_read(d, VIRTIO_MMIO_STATUS), 0x4f);
	assert_int_equal(drv_read(d, VIRTIO_MMIO_INTERRUPT_STATUS), 2);
	assert_int_equal(drv_irqs(d), 1);
	drv_notify(d, 1);
	assert_int_equal(c->notified, 1);
	drv_start(d, 0);
	assert_int_equal(drv_read(d, VIRTIO_MMIO_STATUS), 0xf);
	drv_notify(d, 1);
	assert_int_equal(c->notified, 2);
	assert_int_equal(c->resets, 2);
}

/* A driver that breaks its device for ever does not fill the host's log. */
static void test_broken_often(void **state)
{
	struct driver *d = *state;
	struct count *c = make(d, NOTIFY_VCPU, 2);
	unsigned int i;

	for (i = 0; i < 1000; i++) {
		drv_write(d, VIRTIO_MMIO_STATUS, 0);
		virtio_fail(&c->v, "time %u", i);
	}
	assert_int_equal(d->lines, 64 + 3);	/* 128, 256, 512 */
	d->lines = 0;
}

static void test_external(void **state)
{
	struct driver *d = *state;
	struct count *c = make(d, NOTIFY_EXTERNAL, 2);
	uint64_t n = 0;

	drv_start(d, 0);
	assert_true(c->v.queue[1].kick.fd >= 0);
	drv_notify(d, 1);
	drv_notify(d, 1);
	assert_int_equal(c->notified, 0);
	assert_int_equal(read(c->v.queue[1].kick.fd, &n, 8), 8);
	assert_int_equal(n, 2);
	queue_resume_at(&c->v.queue[1], 77);
	assert_int_equal(c->v.queue[1].last_avail, 77);
	virtio_interrupt(&c->v);
	assert_int_equal(drv_read(d, VIRTIO_MMIO_INTERRUPT_STATUS), 1);
	drv_write(d, VIRTIO_MMIO_STATUS, 0);
	assert_int_equal(c->v.queue[1].kick.fd, -1);
}

static void test_again(void **state)
{
	struct driver *d = *state;
	struct count *c = make(d, NOTIFY_VCPU, 2);
	int round;

	drv_run(d);
	drv_start(d, 0);
	/* Once each, and each is the first in turn. */
	for (round = 1; round <= 4; round++) {
		loop_lock(&d->loop);
		queue_again(&c->v.queue[0]);
		queue_again(&c->v.queue[1]);
		queue_again(&c->v.queue[0]);
		loop_unlock(&d->loop);
		while (__atomic_load_n(&c->notified, __ATOMIC_SEQ_CST) < 2 * round)
			drv_sleep();
	}
	assert_memory_equal(c->was, ((const int[]){ 0, 1, 1, 0, 0, 1, 1, 0 }), sizeof(c->was));
	drv_detach(d);
}

/* The page may be the machine's, and shown to the guest. */
static void test_page(void **state)
{
	struct driver *d = *state;
	struct count *c = calloc(1, sizeof(*c));
	uint8_t *page = aligned_alloc(4096, 4096);
	struct vmm_error err;
	uint32_t val;

	memset(page, 0, 4096);
	assert_int_equal(virtio_init(&c->v, &count_ops, &d->env, "count0", 1, &err), 0);
	assert_int_equal(transport_new(&d->dev, &c->v, DRV_GPA, 1, page, &err), 0);
	d->v = &c->v;
	drv_start(d, 0);
	memcpy(&val, page + VIRTIO_MMIO_STATUS, 4);
	assert_int_equal(val, 0xf);
	drv_detach(d);
	memcpy(&val, page + VIRTIO_MMIO_STATUS, 4);
	assert_int_equal(val, 0);
	free(page);
}

/* ---- Saved state ------------------------------------------------------------- */

static void test_roundtrip(void **state)
{
	struct driver *d = *state;
	struct count *c = make(d, NOTIFY_LOOP, 3);
	struct vmm_error err;
	struct writer w, w2;
	uint8_t page[TRANSPORT_SIZE];
	struct reader r;
	size_t n;
	uint32_t i;
	int mangled, rc;

	/* At power-on, half way, running, broken. */
	for (i = 0; i < 4; i++) {
		if (i == 1)
			drv_negotiate(d, 1ull << 3);
		if (i == 2)
			drv_start(d, 1ull << 50 | DRV_EVENT_IDX);
		if (i == 3)
			virtio_fail(&c->v, "on purpose");
		c->own = 0x1234 + i;
		for (n = 0; n < TRANSPORT_SIZE; n++)
			page[n] = (uint8_t)d->dev->ops->bus->read(d->dev, n, 1);
		drv_save(d, &w);
		assert_false(w.failed);
		drv_detach(d);
		c = make(d, NOTIFY_LOOP, 3);
		assert_int_equal(drv_load(d, &w, &err), 0);
		assert_int_equal(c->own, 0x1234 + i);
		assert_int_equal(c->activated, i == 2);
		assert_int_equal(c->v.active, i == 2);
		for (n = 0; n < TRANSPORT_SIZE; n++)
			assert_int_equal(page[n], d->dev->ops->bus->read(d->dev, n, 1));
		drv_save(d, &w2);
		assert_int_equal(w.len, w2.len);
		assert_memory_equal(w.data, w2.data, w.len);
		free(w2.data);
		if (i == 2)
			break;
		free(w.data);
	}
	/* It goes on where it was. */
	drv_notify(d, 2);
	assert_int_equal(c->notified, 1);
	assert_int_equal(transport_open(d->dev, &err), 0);
	d->dev->ops->cloned(d->dev);
	assert_int_equal(c->opened + c->cloned, 2);
	/* Into one that runs; too short; too long; of another shape. */
	assert_int_equal(drv_load(d, &w, &err), 0);
	for (n = 0; n < w.len; n++) {
		r = (struct reader){ w.data, n, 0 };
		assert_int_not_equal(d->dev->ops->load(d->dev, &r, &err), 0);
		assert_int_equal(drv_read(d, VIRTIO_MMIO_STATUS), 0);
	}
	put_u8(&w, 0);
	assert_int_equal(drv_load(d, &w, &err), VMM_EFORMAT);
	w.len--;
	c->v.offers &= ~(1ull << 50);
	assert_int_equal(drv_load(d, &w, &err), VMM_EVERSION);
	assert_non_null(strstr(err.message, "features 0x4000000000000"));
	/* Nor if the driver is said to be at work without having agreed on them. */
	assert_int_equal(w.data[0], 0xf);
	w.data[0] &= (uint8_t)~VIRTIO_CONFIG_S_FEATURES_OK;
	assert_int_equal(drv_load(d, &w, &err), VMM_EFORMAT);
	w.data[0] = 0xf;
	c->v.offers |= 1ull << 50;
	drv_detach(d);
	make(d, NOTIFY_LOOP, 4);
	assert_int_equal(drv_load(d, &w, &err), VMM_EVERSION);
	drv_detach(d);
	/* Any byte changed: taken or refused, never worse. */
	make(d, NOTIFY_LOOP, 3);
	for (n = 0, mangled = 0; n < w.len; n++) {
		for (i = 1; i < 256; i <<= 1) {
			w.data[n] ^= (uint8_t)i;
			rc = drv_load(d, &w, &err);
			mangled += rc != 0;
			if (!rc)
				drv_notify(d, 0);
			w.data[n] ^= (uint8_t)i;
		}
	}
	assert_in_range(mangled, 50, w.len * 8);
	free(w.data);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, drv_setup, drv_teardown)
	const struct CMUnitTest tests[] = {
		T(test_registers), T(test_features), T(test_config), T(test_broken), T(test_broken_often),
		T(test_external), T(test_again), T(test_page), T(test_roundtrip),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
