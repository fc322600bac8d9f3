/* SPDX-License-Identifier: MIT */
/*
 * transport.c - virtio over MMIO (virtio 1.2, 4.2.2), once for all devices.
 *
 * Version 2 registers, VIRTIO_F_VERSION_1 only.  None of them has a side
 * effect when it is read.  So what they read as is kept in a page of memory,
 * and reading is copying; the machine could even map that page into the guest
 * (docs/decisions/register-pages.md).  The guest would read it at any moment
 * then: ConfigGeneration changes before and after the configuration does.
 *
 * A notification comes as a write to QueueNotify, on the vCPU thread, or by
 * KVM through an eventfd of the queue, on the I/O thread: the device chooses
 * (notify_by).  Interrupts are edges: there is one for each cause, whether or
 * not the guest has acknowledged the last.
 *
 * The driver's order (3.1.1) is enforced where we depend on it: features stand
 * from FEATURES_OK on, rings from DRIVER_OK on.  Status 0 takes everything
 * back at any moment.
 *
 * I/O lock held.  Saved: registers, queues, then the device's own state, in
 * one section.  Eventfds are made anew.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <linux/virtio_config.h>
#include <linux/virtio_mmio.h>
#include <linux/virtio_ring.h>

#include "../core/kvm.h"
#include "virtio.h"

#define TRANSPORT_VERSION	1	/* of the saved state */
#define TRANSPORT_LINES		64u	/* of log for what a driver does, at first */
#define TRANSPORT_MAGIC		0x74726976u	/* "virt" */
#define TRANSPORT_VENDOR	0x004d4d56u	/* "VMM" */

struct transport {
	struct device	dev;
	struct device_ops ops;		/* its type and version are v's */
	struct virtio	*v;
	uint8_t		*page;		/* what the registers read as */
	int		own_page;
	int		vm;		/* that knows our eventfds, or -1 */
	struct io	again;		/* eventfd, or fd -1 until needed */
	uint32_t	first;		/* queue, modulo their number, that is looked at first then */
	/* What the guest has written: */
	uint32_t	status, isr, generation;
	uint32_t	device_sel, driver_sel, queue_sel;
	uint64_t	driver_features;
};

/* ---- What the registers read as ------------------------------------------ */

static void transport_show(struct transport *t, uint32_t reg, uint32_t val)
{
	__atomic_store_n((uint32_t *)(void *)(t->page + reg), val, __ATOMIC_RELEASE);
}

static struct queue *transport_selected(const struct transport *t)
{
	return t->queue_sel < t->v->nqueues ? &t->v->queue[t->queue_sel] : NULL;
}

static void transport_show_queue(struct transport *t)
{
	const struct queue *q = transport_selected(t);

	transport_show(t, VIRTIO_MMIO_QUEUE_NUM_MAX, q ? QUEUE_SIZE_MAX : 0);
	transport_show(t, VIRTIO_MMIO_QUEUE_READY, q ? q->ready : 0);
}

static void transport_show_features(struct transport *t)
{
	uint32_t sel = t->device_sel;

	transport_show(t, VIRTIO_MMIO_DEVICE_FEATURES,
	     sel < 2 ? (uint32_t)(t->v->offers >> (32 * sel)) : 0);
}

static void transport_show_config(struct transport *t)
{
	if (t->v->config)
		memcpy(t->page + VIRTIO_MMIO_CONFIG, t->v->config, t->v->config_size);
	transport_show(t, VIRTIO_MMIO_CONFIG_GENERATION, t->generation);
}

static void transport_show_all(struct transport *t)
{
	transport_show(t, VIRTIO_MMIO_MAGIC_VALUE, TRANSPORT_MAGIC);
	transport_show(t, VIRTIO_MMIO_VERSION, 2);
	transport_show(t, VIRTIO_MMIO_DEVICE_ID, t->v->ops->id);
	transport_show(t, VIRTIO_MMIO_VENDOR_ID, TRANSPORT_VENDOR);
	transport_show(t, VIRTIO_MMIO_INTERRUPT_STATUS, t->isr);
	transport_show(t, VIRTIO_MMIO_STATUS, t->status);
	/* 4.2.2: there is no shared memory region. */
	transport_show(t, VIRTIO_MMIO_SHM_LEN_LOW, UINT32_MAX);
	transport_show(t, VIRTIO_MMIO_SHM_LEN_HIGH, UINT32_MAX);
	transport_show(t, VIRTIO_MMIO_SHM_BASE_LOW, UINT32_MAX);
	transport_show(t, VIRTIO_MMIO_SHM_BASE_HIGH, UINT32_MAX);
	transport_show_features(t);
	transport_show_queue(t);
	transport_show_config(t);
}

/* ---- Interrupts, and what devices call ------------------------------------ */

static void transport_raise(struct virtio *v, uint32_t cause)
{
	struct transport *t = v->transport;

	t->isr |= cause;
	transport_show(t, VIRTIO_MMIO_INTERRUPT_STATUS, t->isr);
	irq_pulse(&t->dev.irq);
}

void virtio_interrupt(struct virtio *v)
{
	transport_raise(v, VIRTIO_MMIO_INT_VRING);
}

void virtio_config_changed(struct virtio *v)
{
	struct transport *t = v->transport;

	if (!t)
		return;			/* nobody has read it yet */
	/* 4.2.2.1: what was read between two equal generations is whole. */
	transport_show(t, VIRTIO_MMIO_CONFIG_GENERATION, ++t->generation);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	++t->generation;
	transport_show_config(t);
	transport_show_features(t);	/* may follow from it */
	if (v->active)
		transport_raise(v, VIRTIO_MMIO_INT_CONFIG);
}

void virtio_log(const struct virtio *v, int level, const char *fmt, ...)
{
	char line[200];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(line, sizeof(line), fmt, ap);
	va_end(ap);
	log_line(v->env.log, level, "%s: %s", v->name, line);
}

/* DEVICE_NEEDS_RESET, until the driver does (2.1.2). */
void virtio_break(struct virtio *v)
{
	struct transport *t = v->transport;

	if (v->broken)
		return;
	v->broken = 1;
	t->status |= VIRTIO_CONFIG_S_NEEDS_RESET;
	transport_show(t, VIRTIO_MMIO_STATUS, t->status);
	if (v->active)
		transport_raise(v, VIRTIO_MMIO_INT_CONFIG);
	v->active = 0;
}

void virtio_fail(struct virtio *v, const char *fmt, ...)
{
	char line[200];
	va_list ap;

	if (v->broken)
		return;
	va_start(ap, fmt);
	vsnprintf(line, sizeof(line), fmt, ap);
	va_end(ap);
	/* Fewer and fewer: a guest cannot fill the host's log. */
	v->failures++;
	if (v->failures <= TRANSPORT_LINES || (v->failures & (v->failures - 1)) == 0)
		virtio_log(v, VMM_LOG_WARN, "broken by its driver: %s", line);
	virtio_break(v);
}

void virtio_trouble(struct virtio *v, int os_errno, const char *fmt, ...)
{
	struct events *events = v->env.events;
	char what[160], line[200];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(what, sizeof(what), fmt, ap);
	va_end(ap);
	virtio_log(v, VMM_LOG_ERROR, "%s", what);
	snprintf(line, sizeof(line), "%s: %s", v->name, what);
	/* The room left is for events that nobody may miss. */
	if (events && !events_crowded(events))
		events_push(events, VMM_EV_DEVICE, 0, (uint64_t)os_errno, line);
}

int virtio_init(struct virtio *v, const struct virtio_ops *ops, const struct virtio_env *env,
		const char *name, uint32_t nqueues, struct vmm_error *err)
{
	v->ops = ops;
	v->env = *env;
	snprintf(v->name, sizeof(v->name), "%s", name);
	v->offers = 1ull << VIRTIO_F_VERSION_1 | 1ull << VIRTIO_RING_F_INDIRECT_DESC |
		    1ull << VIRTIO_RING_F_EVENT_IDX;
	return virtio_set_queues(v, nqueues, err);
}

int virtio_set_queues(struct virtio *v, uint32_t n, struct vmm_error *err)
{
	struct queue *queue = n && n <= QUEUES_MAX ? calloc(n, sizeof(*queue)) : NULL;
	uint32_t i;

	if (!queue)
		return fail(err, n && n <= QUEUES_MAX ? VMM_ENOMEM : VMM_EINVAL,
			    "%s: %u queues (1 to %u are possible)", v->name, n, QUEUES_MAX);
	for (i = 0; i < n; i++) {
		queue[i].v = v;
		queue[i].index = (uint16_t)i;
		queue[i].kick.fd = -1;
		queue_clear(&queue[i]);
	}
	free(v->queue);
	v->queue = queue;
	v->nqueues = (uint16_t)n;
	return 0;
}

void virtio_fini(struct virtio *v)
{
	free(v->queue);
	v->queue = NULL;
}

/* ---- Notifications --------------------------------------------------------- */

static void transport_notify(struct queue *q)
{
	struct virtio *v = q->v;

	if (!v->active || !q->ready)
		return;
	/* A guest that adds as fast as we take must not keep the lock for
	   ever: one ring's worth, then others have their turn. */
	q->budget = q->num;
	q->more = 0;
	v->ops->notify(v, q);
	q->budget = UINT32_MAX;
	if (q->more)
		queue_again(q);
}

static void transport_on_kick(void *arg, uint32_t events)
{
	struct queue *q = arg;
	uint64_t count;

	(void)events;
	if (read(q->kick.fd, &count, sizeof(count)) == sizeof(count))
		transport_notify(q);
}

static void transport_on_again(void *arg, uint32_t events)
{
	struct transport *t = arg;
	uint32_t i, first;
	struct queue *q;
	uint64_t count;

	(void)events;
	if (read(t->again.fd, &count, sizeof(count)) < 0)
		return;
	/* Another is first the next time: what a limit leaves is for all. */
	first = t->first++;
	for (i = 0; i < t->v->nqueues; i++) {
		q = &t->v->queue[(first + i) % t->v->nqueues];
		if (q->more)
			transport_notify(q);
	}
}

static int transport_open_again(struct transport *t)
{
	int r;

	t->again = (struct io){ .fn = transport_on_again, .arg = t };
	t->again.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (t->again.fd < 0)
		return -errno;
	r = loop_add(t->v->env.loop, &t->again, EPOLLIN);
	if (r < 0) {
		close(t->again.fd);
		t->again.fd = -1;
	}
	return r;
}

void queue_again(struct queue *q)
{
	struct transport *t = q->v->transport;
	const uint64_t one = 1;
	int r = t->again.fd < 0 ? transport_open_again(t) : 0;

	q->more = 1;
	if (r < 0) {
		/* The driver would wait for ever: better that it knows. */
		virtio_trouble(q->v, -r, "eventfd: %s", strerror(-r));
		virtio_break(q->v);
	} else if (write(t->again.fd, &one, sizeof(one)) < 0) {
		return;			/* full: it is pending already */
	}
}

/* Have KVM write the notifications of q to an eventfd. */
static int transport_kick_open(struct transport *t, struct queue *q)
{
	struct virtio *v = t->v;
	int r;

	q->kick = (struct io){ .fn = transport_on_kick, .arg = q, .fd = -1 };
	q->kick.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (q->kick.fd < 0)
		return -errno;
	if (t->vm >= 0) {
		r = kvm_ioeventfd(t->vm, t->dev.gpa + VIRTIO_MMIO_QUEUE_NOTIFY, 4, q->index,
				  q->kick.fd, 1);
		if (r < 0)
			return r;
	}
	return v->notify_by == NOTIFY_LOOP ? loop_add(v->env.loop, &q->kick, EPOLLIN) : 0;
}

static void transport_kick_close(struct transport *t, struct queue *q)
{
	if (q->kick.fd < 0)
		return;
	loop_del(t->v->env.loop, &q->kick);
	/* The VM may be gone by now, and its descriptor another's: no matter,
	   that one does not know our eventfd. */
	if (t->vm >= 0 && !t->v->env.loop->orphan)
		kvm_ioeventfd(t->vm, t->dev.gpa + VIRTIO_MMIO_QUEUE_NOTIFY, 4, q->index,
			      q->kick.fd, 0);
	close(q->kick.fd);
	q->kick.fd = -1;
}

static void transport_kicks_close(struct transport *t)
{
	uint32_t i;

	for (i = 0; i < t->v->nqueues; i++)
		transport_kick_close(t, &t->v->queue[i]);
	t->vm = -1;
}

/* Those that fail come as register writes, which work as well, but slower. */
static void transport_kicks_open(struct transport *t)
{
	struct virtio *v = t->v;
	uint32_t i;
	int r;

	transport_kicks_close(t);
	if (v->notify_by == NOTIFY_VCPU)
		return;
	t->vm = v->env.vm ? *v->env.vm : -1;
	for (i = 0; i < v->nqueues; i++) {
		if (!v->queue[i].ready)
			continue;
		r = transport_kick_open(t, &v->queue[i]);
		if (r < 0) {
			transport_kick_close(t, &v->queue[i]);
			virtio_log(v, VMM_LOG_WARN, "eventfd of queue %u: %s", i, strerror(-r));
		}
	}
}

/* A write to QueueNotify that has come as an exit. */
static void transport_notified(struct transport *t, uint32_t index)
{
	struct virtio *v = t->v;
	uint64_t one = 1;

	if (index >= v->nqueues)
		return;
	if (v->notify_by != NOTIFY_EXTERNAL) {
		v->on_vcpu = 1;
		transport_notify(&v->queue[index]);
		v->on_vcpu = 0;
	} else if (v->queue[index].kick.fd >= 0 &&
		   write(v->queue[index].kick.fd, &one, sizeof(one)) < 0) {
		return;			/* full: it is pending already */
	}
}

/* ---- The driver's steps (3.1.1) -------------------------------------------- */

static void transport_activate(struct transport *t)
{
	struct virtio *v = t->v;

	v->features = t->driver_features;
	v->active = 1;
	transport_kicks_open(t);
	if (v->ops->activate)
		v->ops->activate(v);
}

static void transport_reset(struct device *d)
{
	struct transport *t = (struct transport *)d;
	struct virtio *v = t->v;
	uint32_t i;

	v->active = 0;
	if (v->ops->reset)
		v->ops->reset(v);
	transport_kicks_close(t);
	for (i = 0; i < v->nqueues; i++)
		queue_clear(&v->queue[i]);
	v->broken = 0;
	v->features = 0;
	t->status = t->isr = 0;
	t->device_sel = t->driver_sel = t->queue_sel = 0;
	t->driver_features = 0;
	transport_show_all(t);
}

static void transport_set_status(struct transport *t, uint32_t val)
{
	/* A driver only ever adds bits (2.1.1); the last is not its own. */
	uint32_t new = val & 0xffu & ~t->status & ~(uint32_t)VIRTIO_CONFIG_S_NEEDS_RESET;

	if (!val) {
		transport_reset(&t->dev);
		return;
	}
	/* 2.2.2: a subset that we offered, and no legacy driver. */
	if ((new & VIRTIO_CONFIG_S_FEATURES_OK) &&
	    ((t->driver_features & ~t->v->offers) ||
	     !(t->driver_features >> VIRTIO_F_VERSION_1 & 1)))
		new &= ~(uint32_t)(VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK);
	if (!((t->status | new) & VIRTIO_CONFIG_S_FEATURES_OK))
		new &= ~(uint32_t)VIRTIO_CONFIG_S_DRIVER_OK;
	t->status |= new;
	if ((new & VIRTIO_CONFIG_S_DRIVER_OK) && !t->v->broken)
		transport_activate(t);
	transport_show(t, VIRTIO_MMIO_STATUS, t->status);
}

static void transport_set_low(uint64_t *p, uint32_t val)
{
	*p = (*p & ~0xffffffffull) | val;
}

static void transport_set_high(uint64_t *p, uint32_t val)
{
	*p = (*p & 0xffffffffull) | (uint64_t)val << 32;
}

/* Size, place and readiness of the selected queue. */
static void transport_set_queue(struct transport *t, uint32_t reg, uint32_t val)
{
	struct queue *q = transport_selected(t);

	/* 4.2.2.2: the driver writes none of them while the queue is in use. */
	if (!q || (t->status & VIRTIO_CONFIG_S_DRIVER_OK) ||
	    (q->ready && reg != VIRTIO_MMIO_QUEUE_READY))
		return;
	switch (reg) {
	case VIRTIO_MMIO_QUEUE_NUM:
		q->num = val <= QUEUE_SIZE_MAX ? (uint16_t)val : 0;
		break;
	case VIRTIO_MMIO_QUEUE_DESC_LOW:
		transport_set_low(&q->desc_gpa, val);
		break;
	case VIRTIO_MMIO_QUEUE_DESC_HIGH:
		transport_set_high(&q->desc_gpa, val);
		break;
	case VIRTIO_MMIO_QUEUE_AVAIL_LOW:
		transport_set_low(&q->avail_gpa, val);
		break;
	case VIRTIO_MMIO_QUEUE_AVAIL_HIGH:
		transport_set_high(&q->avail_gpa, val);
		break;
	case VIRTIO_MMIO_QUEUE_USED_LOW:
		transport_set_low(&q->used_gpa, val);
		break;
	case VIRTIO_MMIO_QUEUE_USED_HIGH:
		transport_set_high(&q->used_gpa, val);
		break;
	case VIRTIO_MMIO_QUEUE_READY:
		if (val & 1)
			queue_setup(q);
		else
			q->ready = 0;
		transport_show_queue(t);
		break;
	default:
		break;
	}
}

/* ---- The bus --------------------------------------------------------------- */

static uint64_t transport_read(void *dev, uint64_t off, unsigned int len)
{
	const struct transport *t = dev;
	uint64_t val = 0;

	memcpy(&val, t->page + off, len);
	return val;
}

static void transport_write(void *dev, uint64_t off, unsigned int len, uint64_t val64)
{
	struct transport *t = dev;
	struct virtio *v = t->v;
	uint32_t val = (uint32_t)val64;

	if (off >= VIRTIO_MMIO_CONFIG) {
		off -= VIRTIO_MMIO_CONFIG;
		if (!v->ops->config_write || off + len > v->config_size)
			return;
		v->ops->config_write(v, (uint32_t)off, len, val64);
		transport_show_config(t);
		return;
	}
	if (len != 4 || off % 4)		/* 4.2.2.2 */
		return;
	switch (off) {
	case VIRTIO_MMIO_QUEUE_NOTIFY:
		transport_notified(t, val);
		break;
	case VIRTIO_MMIO_INTERRUPT_ACK:
		t->isr &= ~val;
		transport_show(t, VIRTIO_MMIO_INTERRUPT_STATUS, t->isr);
		break;
	case VIRTIO_MMIO_STATUS:
		transport_set_status(t, val);
		break;
	case VIRTIO_MMIO_DEVICE_FEATURES_SEL:
		t->device_sel = val;
		transport_show_features(t);
		break;
	case VIRTIO_MMIO_DRIVER_FEATURES_SEL:
		t->driver_sel = val;
		break;
	case VIRTIO_MMIO_DRIVER_FEATURES:
		if (t->status & VIRTIO_CONFIG_S_FEATURES_OK)
			break;
		if (t->driver_sel == 0)
			transport_set_low(&t->driver_features, val);
		else if (t->driver_sel == 1)
			transport_set_high(&t->driver_features, val);
		break;
	case VIRTIO_MMIO_QUEUE_SEL:
		t->queue_sel = val;
		transport_show_queue(t);
		break;
	default:
		transport_set_queue(t, (uint32_t)off, val);
		break;
	}
}

static const struct bus_ops transport_bus = {
	.read	= transport_read,
	.write	= transport_write,
};

/* ---- Stopping and saving ---------------------------------------------------- */

static void transport_quiesce(struct device *d)
{
	struct transport *t = (struct transport *)d;
	struct virtio *v = t->v;
	uint32_t i;

	/* What the loop has not come to yet. */
	for (i = 0; i < v->nqueues; i++) {
		if (v->queue[i].kick.watched)
			transport_on_kick(&v->queue[i], 0);
		if (v->queue[i].more)
			transport_notify(&v->queue[i]);
	}
	if (v->ops->quiesce)
		v->ops->quiesce(v);
}

static void transport_save(const struct device *d, struct writer *w)
{
	const struct transport *t = (const struct transport *)d;
	const struct virtio *v = t->v;
	uint32_t i;

	put_u32(w, t->status);
	put_u32(w, t->isr);
	put_u32(w, t->generation);
	put_u32(w, t->device_sel);
	put_u32(w, t->driver_sel);
	put_u32(w, t->queue_sel);
	put_u64(w, t->driver_features);
	put_u16(w, v->nqueues);
	for (i = 0; i < v->nqueues; i++) {
		const struct queue *q = &v->queue[i];

		put_u16(w, q->num);
		put_u8(w, q->ready);
		put_u8(w, q->quiet);
		put_u8(w, q->more);
		put_u64(w, q->desc_gpa);
		put_u64(w, q->avail_gpa);
		put_u64(w, q->used_gpa);
		put_u16(w, q->last_avail);
		put_u16(w, q->used_idx);
	}
	if (v->ops->save)
		v->ops->save(v, w);
}

static void transport_load_queue(struct queue *q, struct reader *r)
{
	q->num = get_u16(r);
	q->ready = get_u8(r) & 1;
	q->quiet = get_u8(r) & 1;
	q->more = get_u8(r) & 1;
	q->desc_gpa = get_u64(r);
	q->avail_gpa = get_u64(r);
	q->used_gpa = get_u64(r);
	q->last_avail = get_u16(r);
	q->used_idx = q->seen_idx = get_u16(r);
}

/* What was read stands, if rings and features can. */
static int transport_load_done(struct transport *t, struct vmm_error *err)
{
	struct virtio *v = t->v;
	uint64_t alien = t->driver_features & ~v->offers;
	uint32_t i;

	/* No guest gets there, but a file might. */
	if ((t->status & VIRTIO_CONFIG_S_DRIVER_OK) && !(t->status & VIRTIO_CONFIG_S_FEATURES_OK))
		return fail(err, VMM_EFORMAT, "state of %s: status 0x%x", v->name, t->status);
	if ((t->status & VIRTIO_CONFIG_S_FEATURES_OK) && alien)
		return fail(err, VMM_EVERSION, "%s: the guest uses features 0x%llx that it lacks here",
			    v->name, (unsigned long long)alien);
	v->broken = (t->status & VIRTIO_CONFIG_S_NEEDS_RESET) != 0;
	for (i = 0; i < v->nqueues; i++) {
		struct queue *q = &v->queue[i];

		if (!q->ready)
			continue;
		queue_setup(q);
		if (!q->ready)
			return fail(err, VMM_EFORMAT, "state of %s: queue %u", v->name, i);
	}
	transport_show_all(t);
	if ((t->status & VIRTIO_CONFIG_S_DRIVER_OK) && !v->broken)
		transport_activate(t);
	for (i = 0; i < v->nqueues; i++)
		if (v->queue[i].more)
			queue_again(&v->queue[i]);
	return 0;
}

static int transport_load(struct device *d, struct reader *r, struct vmm_error *err)
{
	struct transport *t = (struct transport *)d;
	struct virtio *v = t->v;
	uint32_t i;
	int rc = 0;

	transport_reset(d);
	t->status = get_u32(r) & 0xff;
	t->isr = get_u32(r);
	t->generation = get_u32(r);
	t->device_sel = get_u32(r);
	t->driver_sel = get_u32(r);
	t->queue_sel = get_u32(r);
	t->driver_features = get_u64(r);
	i = get_u16(r);
	if (i != v->nqueues && v->ops->set_queues && !r->failed)
		rc = v->ops->set_queues(v, i, err);
	else if (i != v->nqueues)
		rc = fail(err, VMM_EVERSION, "%s: it had %u queues, and has %u here", v->name, i,
			  v->nqueues);
	for (i = 0; !rc && i < v->nqueues; i++)
		transport_load_queue(&v->queue[i], r);
	if (!rc && v->ops->load)
		rc = v->ops->load(v, r, err);
	if (!rc)
		rc = reader_end(r, v->name, err);
	if (!rc)
		rc = transport_load_done(t, err);
	if (rc)
		transport_reset(d);
	return rc;
}

static void transport_cloned(struct device *d)
{
	struct virtio *v = ((struct transport *)d)->v;

	if (v->ops->cloned)
		v->ops->cloned(v);
}

int transport_open(struct device *d, struct vmm_error *err)
{
	struct virtio *v = transport_virtio(d);

	return v && v->ops->open ? v->ops->open(v, err) : 0;
}

/* ---- Coming and going -------------------------------------------------------- */

static void transport_free(struct device *d)
{
	struct transport *t = (struct transport *)d;

	if (t->v->env.loop->orphan)
		transport_kicks_close(t);
	else
		transport_reset(d);
	if (t->again.fd >= 0) {
		loop_del(t->v->env.loop, &t->again);
		close(t->again.fd);
	}
	t->v->ops->free(t->v);
	if (t->own_page)
		free(t->page);
	free(t);
}

static const struct device_ops transport_ops = {
	.bus		= &transport_bus,
	.reset		= transport_reset,
	.quiesce	= transport_quiesce,
	.save		= transport_save,
	.load		= transport_load,
	.cloned		= transport_cloned,
	.free		= transport_free,
};

int transport_new(struct device **out, struct virtio *v, uint64_t gpa, uint32_t irq, void *page,
		  struct vmm_error *err)
{
	struct transport *t = calloc(1, sizeof(*t));

	*out = NULL;
	if (t && !page) {
		t->own_page = 1;
		page = calloc(1, TRANSPORT_SIZE);
	}
	if (!t || !page) {
		fail(err, VMM_ENOMEM, "%s", v->name);
		free(t);
		v->ops->free(v);
		return VMM_ENOMEM;
	}
	t->v = v;
	t->page = page;
	t->vm = -1;
	t->again.fd = -1;
	t->ops = transport_ops;
	t->ops.type = v->ops->type;
	t->ops.version = (uint16_t)(TRANSPORT_VERSION << 8 | v->ops->version);
	if (v->ops->unsaved)
		t->ops.save = NULL;
	t->dev.ops = &t->ops;
	t->dev.gpa = gpa;
	t->dev.size = TRANSPORT_SIZE;
	t->dev.irq.line = irq;
	t->dev.compatible = "virtio,mmio";
	memcpy(t->dev.name, v->name, sizeof(t->dev.name));
	v->transport = t;
	transport_show_all(t);
	*out = &t->dev;
	return 0;
}

struct virtio *transport_virtio(struct device *d)
{
	return d->ops->bus == &transport_bus ? ((struct transport *)d)->v : NULL;
}
