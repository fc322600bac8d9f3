/* SPDX-License-Identifier: MIT */
/*
 * driver.h - a machine with one virtio device, and a driver for it, in a test.
 *
 * There is RAM, an I/O loop and an interrupt controller that counts; no KVM,
 * no vCPU.  The driver works as the specification asks (virtio 1.2, 3.1.1 and
 * 2.7.13), and leaves its parts open, so that a test can do worse.
 *
 *	struct driver d;
 *	drv_open(&d);
 *	drv_attach(&d, v);
 *	drv_start(&d, features);
 *	drv_send(&d, 0, bufs, nout, nin);	adds, notifies and waits
 *	drv_close(&d);
 */
#ifndef UNIT_DRIVER_H
#define UNIT_DRIVER_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>
#undef fail				/* the library's own is another */

#include <linux/virtio_config.h>
#include <linux/virtio_mmio.h>
#include <linux/virtio_ring.h>

#include "../../virtio/devices.h"

#if defined(__SANITIZE_THREAD__)
#define DRV_TSAN	1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define DRV_TSAN	1		/* races that are meant are not tested */
#endif
#endif
#ifndef DRV_TSAN
#define DRV_TSAN	0
#endif

#define DRV_RAM		0x80000000ull
#ifndef DRV_RAM_SIZE
#define DRV_RAM_SIZE	(8ull << 20)
#endif
#define DRV_GPA		0x10001000ull
#define DRV_NUM		16u		/* entries of a ring, by default */
#define DRV_QUEUES	16u
#define DRV_WAIT_MS	10000
#define DRV_EVENT_IDX	(1ull << VIRTIO_RING_F_EVENT_IDX)
#define DRV_INDIRECT	(1ull << VIRTIO_RING_F_INDIRECT_DESC)

struct drv_buf {
	uint64_t	gpa;
	uint32_t	len;
};

struct drv_ring {
	uint16_t	num;
	uint64_t	desc, avail, used, table;	/* gpas */
	uint16_t	next, seen;	/* next avail, next used */
	uint16_t	free;		/* next descriptor */
};

struct drv_chip {
	struct irqchip	chip;
	int		pulses;		/* atomic */
};

struct driver {
	struct mem	mem;
	struct loop	loop;
	struct log	log;
	int		vm;
	struct virtio_env env;
	struct events	events;
	struct drv_chip	chip;
	struct irqchip	*chipp;
	struct virtio	*v;
	struct device	*dev;
	struct drv_ring	ring[DRV_QUEUES];
	uint16_t	num;
	uint64_t	features;
	uint64_t	brk;		/* next free byte of RAM */
	int		running;
	int		lines;		/* logged, at WARN or worse; atomic */
	char		line[256];	/* the last of them */
	char		all[256];	/* the last of any level */
};

static inline void drv_line(struct irqchip *chip, uint32_t line, int level)
{
	struct drv_chip *c = (struct drv_chip *)chip;

	(void)line;
	__atomic_fetch_add(&c->pulses, level, __ATOMIC_SEQ_CST);
}

static inline void drv_log(void *arg, int level, const char *text)
{
	struct driver *d = arg;

	snprintf(d->all, sizeof(d->all), "%s", text);
	if (level > VMM_LOG_WARN)
		return;
	snprintf(d->line, sizeof(d->line), "%s", text);
	__atomic_fetch_add(&d->lines, 1, __ATOMIC_SEQ_CST);
}

/* ---- Memory ------------------------------------------------------------- */

static inline void *drv_hva(const struct driver *d, uint64_t gpa)
{
	return d->mem.hva + (gpa - DRV_RAM);
}

static inline uint64_t drv_alloc(struct driver *d, size_t n)
{
	uint64_t gpa = (d->brk + 63) & ~63ull;

	d->brk = gpa + n;
	if (d->brk > DRV_RAM + DRV_RAM_SIZE)
		abort();
	memset(drv_hva(d, gpa), 0, n);
	return gpa;
}

/* A copy of n bytes in guest RAM. */
static inline uint64_t drv_put(struct driver *d, const void *p, size_t n)
{
	uint64_t gpa = drv_alloc(d, n);

	memcpy(drv_hva(d, gpa), p, n);
	return gpa;
}

/* ---- Machine ------------------------------------------------------------- */

static inline void drv_open(struct driver *d)
{
	static const struct irqchip_ops ops = { .name = "count", .line = drv_line };
	struct vmm_error err;

	memset(d, 0, sizeof(*d));
	d->num = DRV_NUM;
	d->vm = -1;
	d->log = (struct log){ drv_log, d };
	d->chip.chip.ops = &ops;
	d->chipp = &d->chip.chip;
	if (mem_init(&d->mem, DRV_RAM, DRV_RAM_SIZE, &err) || loop_init(&d->loop, "test", &err) ||
	    events_init(&d->events, &err))
		abort();
	d->brk = DRV_RAM + 4096;
	d->env = (struct virtio_env){ &d->mem, &d->loop, &d->log, &d->vm, &d->events };
}

static inline void drv_attach(struct driver *d, struct virtio *v)
{
	struct vmm_error err;

	if (transport_new(&d->dev, v, DRV_GPA, 1, NULL, &err))
		abort();
	d->dev->irq.chip = &d->chipp;
	d->v = v;
}

/* Let the I/O thread run. */
static inline void drv_run(struct driver *d)
{
	struct vmm_error err;

	if (!d->running && loop_start(&d->loop, &err))
		abort();
	d->running = 1;
}

static inline void drv_detach(struct driver *d)
{
	if (d->running)
		loop_stop(&d->loop);
	d->running = 0;
	if (d->dev)
		d->dev->ops->free(d->dev);
	d->dev = NULL;
}

static inline void drv_close(struct driver *d)
{
	drv_detach(d);
	loop_fini(&d->loop);
	events_fini(&d->events);
	mem_fini(&d->mem);
}

/* Before and after a test whose state is a struct driver. */
static inline int drv_setup(void **state)
{
	struct driver *d = malloc(sizeof(*d));

	drv_open(d);
	*state = d;
	return 0;
}

static inline int drv_teardown(void **state)
{
	drv_close(*state);
	free(*state);
	return 0;
}

/* ---- Registers ------------------------------------------------------------ */

static inline uint32_t drv_read(struct driver *d, uint32_t reg)
{
	uint32_t val;

	loop_lock(&d->loop);
	val = (uint32_t)d->dev->ops->bus->read(d->dev, reg, 4);
	loop_unlock(&d->loop);
	return val;
}

static inline void drv_write(struct driver *d, uint32_t reg, uint32_t val)
{
	loop_lock(&d->loop);
	d->dev->ops->bus->write(d->dev, reg, 4, val);
	loop_unlock(&d->loop);
}

static inline void drv_config(struct driver *d, uint32_t off, void *p, uint32_t n)
{
	uint8_t *b = p;
	uint32_t i;

	loop_lock(&d->loop);
	for (i = 0; i < n; i++)
		b[i] = (uint8_t)d->dev->ops->bus->read(d->dev, VIRTIO_MMIO_CONFIG + off + i, 1);
	loop_unlock(&d->loop);
}

static inline uint64_t drv_offers(struct driver *d)
{
	uint64_t low;

	drv_write(d, VIRTIO_MMIO_DEVICE_FEATURES_SEL, 0);
	low = drv_read(d, VIRTIO_MMIO_DEVICE_FEATURES);
	drv_write(d, VIRTIO_MMIO_DEVICE_FEATURES_SEL, 1);
	return low | (uint64_t)drv_read(d, VIRTIO_MMIO_DEVICE_FEATURES) << 32;
}

static inline void drv_ring_place(struct driver *d, uint32_t i)
{
	struct drv_ring *r = &d->ring[i];

	memset(r, 0, sizeof(*r));
	r->num = d->num;
	r->desc = drv_alloc(d, 16u * r->num);
	r->avail = drv_alloc(d, 6 + 2u * r->num);
	r->used = drv_alloc(d, 6 + 8u * r->num);
	r->table = drv_alloc(d, 16u * r->num * r->num);
}

static inline void drv_ring_set(struct driver *d, uint32_t i, uint32_t num, uint64_t desc,
				uint64_t avail, uint64_t used)
{
	drv_write(d, VIRTIO_MMIO_QUEUE_SEL, i);
	drv_write(d, VIRTIO_MMIO_QUEUE_NUM, num);
	drv_write(d, VIRTIO_MMIO_QUEUE_DESC_LOW, (uint32_t)desc);
	drv_write(d, VIRTIO_MMIO_QUEUE_DESC_HIGH, (uint32_t)(desc >> 32));
	drv_write(d, VIRTIO_MMIO_QUEUE_AVAIL_LOW, (uint32_t)avail);
	drv_write(d, VIRTIO_MMIO_QUEUE_AVAIL_HIGH, (uint32_t)(avail >> 32));
	drv_write(d, VIRTIO_MMIO_QUEUE_USED_LOW, (uint32_t)used);
	drv_write(d, VIRTIO_MMIO_QUEUE_USED_HIGH, (uint32_t)(used >> 32));
	drv_write(d, VIRTIO_MMIO_QUEUE_READY, 1);
}

/* Up to FEATURES_OK; returns the status. */
static inline uint32_t drv_negotiate(struct driver *d, uint64_t features)
{
	d->features = features | 1ull << VIRTIO_F_VERSION_1;
	drv_write(d, VIRTIO_MMIO_STATUS, 0);
	drv_write(d, VIRTIO_MMIO_STATUS, VIRTIO_CONFIG_S_ACKNOWLEDGE);
	drv_write(d, VIRTIO_MMIO_STATUS, VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER);
	drv_write(d, VIRTIO_MMIO_DRIVER_FEATURES_SEL, 0);
	drv_write(d, VIRTIO_MMIO_DRIVER_FEATURES, (uint32_t)d->features);
	drv_write(d, VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
	drv_write(d, VIRTIO_MMIO_DRIVER_FEATURES, (uint32_t)(d->features >> 32));
	drv_write(d, VIRTIO_MMIO_STATUS, VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER |
		  VIRTIO_CONFIG_S_FEATURES_OK);
	return drv_read(d, VIRTIO_MMIO_STATUS);
}

static inline void drv_ok(struct driver *d)
{
	drv_write(d, VIRTIO_MMIO_STATUS, VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER |
		  VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK);
}

/* The whole of 3.1.1. */
static inline void drv_start(struct driver *d, uint64_t features)
{
	uint32_t i;

	drv_negotiate(d, features);
	for (i = 0; i < d->v->nqueues; i++) {
		drv_ring_place(d, i);
		drv_ring_set(d, i, d->num, d->ring[i].desc, d->ring[i].avail, d->ring[i].used);
	}
	drv_ok(d);
}

/* ---- Rings ---------------------------------------------------------------- */

static inline struct vring_desc *drv_desc(struct driver *d, uint32_t i, uint16_t n)
{
	return (struct vring_desc *)drv_hva(d, d->ring[i].desc) + n;
}

static inline uint16_t *drv_avail(struct driver *d, uint32_t i)
{
	return drv_hva(d, d->ring[i].avail);	/* flags, idx, ring, used_event */
}

static inline uint16_t *drv_used(struct driver *d, uint32_t i)
{
	return drv_hva(d, d->ring[i].used);	/* flags, idx, ring, avail_event */
}

/* Make head available, whatever it is. */
static inline void drv_expose(struct driver *d, uint32_t i, uint16_t head)
{
	struct drv_ring *r = &d->ring[i];

	drv_avail(d, i)[2 + r->next % r->num] = head;
	__atomic_store_n(&drv_avail(d, i)[1], ++r->next, __ATOMIC_SEQ_CST);
}

/* Write a chain, indirect if that was agreed on; returns its head. */
static inline uint16_t drv_chain(struct driver *d, uint32_t i, const struct drv_buf *b,
				 uint16_t nout, uint16_t nin)
{
	struct drv_ring *r = &d->ring[i];
	int indirect = (d->features & DRV_INDIRECT) && nout + nin > 1;
	uint16_t head = r->free, n = (uint16_t)(nout + nin), k;
	uint64_t table = r->table + 16u * r->num * head;

	for (k = 0; k < n; k++) {
		struct vring_desc e = { b[k].gpa, b[k].len, 0, 0 };
		uint16_t at = (uint16_t)(indirect ? k : (head + k) % r->num);

		e.flags = (uint16_t)((k >= nout ? VRING_DESC_F_WRITE : 0) |
				     (k + 1 < n ? VRING_DESC_F_NEXT : 0));
		e.next = (uint16_t)(indirect ? k + 1 : (at + 1) % r->num);
		if (indirect)
			((struct vring_desc *)drv_hva(d, table))[at] = e;
		else
			*drv_desc(d, i, at) = e;
	}
	if (indirect)
		*drv_desc(d, i, head) = (struct vring_desc){ table, 16u * n,
							     VRING_DESC_F_INDIRECT, 0 };
	r->free = (uint16_t)((head + (indirect ? 1 : n)) % r->num);
	return head;
}

static inline uint16_t drv_add(struct driver *d, uint32_t i, const struct drv_buf *b,
			       uint16_t nout, uint16_t nin)
{
	uint16_t head = drv_chain(d, i, b, nout, nin);

	drv_expose(d, i, head);
	return head;
}

static inline void drv_notify(struct driver *d, uint32_t i)
{
	drv_write(d, VIRTIO_MMIO_QUEUE_NOTIFY, i);
}

/* The next used entry: 1, or 0 if there is none. */
static inline int drv_get(struct driver *d, uint32_t i, uint32_t *id, uint32_t *len)
{
	struct drv_ring *r = &d->ring[i];
	uint32_t *e;

	if (__atomic_load_n(&drv_used(d, i)[1], __ATOMIC_SEQ_CST) == r->seen)
		return 0;
	e = (uint32_t *)(void *)((uint8_t *)drv_used(d, i) + 4 + 8u * (r->seen++ % r->num));
	if (id)
		*id = e[0];
	if (len)
		*len = e[1];
	if (d->features & DRV_EVENT_IDX)
		__atomic_store_n(&drv_avail(d, i)[2 + r->num], r->seen, __ATOMIC_SEQ_CST);
	return 1;
}

static inline void drv_sleep(void)
{
	nanosleep(&(struct timespec){ 0, 200000 }, NULL);
}

static inline int drv_wait(struct driver *d, uint32_t i, uint32_t *id, uint32_t *len)
{
	int ms;

	for (ms = 0; ms < DRV_WAIT_MS * 5; ms++) {
		if (drv_get(d, i, id, len))
			return 1;
		drv_sleep();
	}
	return 0;
}

/* One request from beginning to end; returns the bytes written, or -1. */
static inline int64_t drv_send(struct driver *d, uint32_t i, const struct drv_buf *b,
			       uint16_t nout, uint16_t nin)
{
	uint16_t head = drv_add(d, i, b, nout, nin);
	uint32_t id = ~0u, len = 0;

	drv_notify(d, i);
	return drv_wait(d, i, &id, &len) && id == head ? (int64_t)len : -1;
}

static inline int drv_irqs(struct driver *d)
{
	return __atomic_load_n(&d->chip.pulses, __ATOMIC_SEQ_CST);
}

static inline int drv_broken(struct driver *d)
{
	return (drv_read(d, VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_NEEDS_RESET) != 0;
}

/* ---- Snapshots -------------------------------------------------------------- */

/* As vmm_pause() and a save do; free(w->data). */
static inline void drv_save(struct driver *d, struct writer *w)
{
	memset(w, 0, sizeof(*w));
	if (d->running)
		loop_hold(&d->loop);
	if (d->dev->ops->quiesce)
		d->dev->ops->quiesce(d->dev);
	d->dev->ops->save(d->dev, w);
	if (d->running)
		loop_release(&d->loop);
}

static inline int drv_load(struct driver *d, const struct writer *w, struct vmm_error *err)
{
	struct reader r = { w->data, w->len, 0 };

	return d->dev->ops->load(d->dev, &r, err);
}

#endif
