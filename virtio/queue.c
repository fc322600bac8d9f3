/* SPDX-License-Identifier: MIT */
/*
 * queue.c - split virtqueues (virtio 1.2, 2.7): the one place where the rings
 * and descriptors of a guest are read.
 *
 * All three parts of a ring lie in guest RAM, and so does everything they
 * point to.  The guest is taken to be hostile, and to have other vCPUs that
 * write to the ring while we read it:
 *
 * - A ring is checked to lie in RAM once, when it is made ready, and kept as
 *   pointers; indices into it are masked.
 * - A descriptor is copied out once; every buffer it names is checked by
 *   mem_get(), in the copy.
 * - A chain has at most CHAIN_MAX buffers, so that a loop ends; an indirect
 *   table is the last of a chain, and holds no other.
 * - Whatever else is wrong breaks the device (virtio_fail), not the machine.
 *
 * Notifications and interrupts are suppressed by VIRTIO_F_EVENT_IDX, or by the
 * flags where the driver does not take it.  Not done: packed rings, in-order
 * use, reset of a single queue.
 *
 * I/O lock held.  Saved by the transport: sizes, addresses, the two indices.
 */
#include <string.h>

#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>

#include "virtio.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "virtio is little-endian");

#define QUEUE_DESC_SIZE	16u
#define QUEUE_USED_SIZE	8u

struct queue_desc {
	uint64_t	addr;
	uint32_t	len;
	uint16_t	flags, next;
};

/* ---- Fields of the rings (2.7.6, 2.7.8) --------------------------------- */

static uint16_t *avail_flags(const struct queue *q)
{
	return (uint16_t *)(void *)q->avail;
}

static uint16_t *avail_idx(const struct queue *q)
{
	return (uint16_t *)(void *)(q->avail + 2);
}

static uint16_t *avail_entry(const struct queue *q, uint16_t idx)
{
	return (uint16_t *)(void *)(q->avail + 4 + 2u * (idx & (q->num - 1u)));
}

static uint16_t *used_event(const struct queue *q)
{
	return (uint16_t *)(void *)(q->avail + 4 + 2u * q->num);
}

static uint16_t *used_flags(const struct queue *q)
{
	return (uint16_t *)(void *)q->used;
}

static uint16_t *used_idx(const struct queue *q)
{
	return (uint16_t *)(void *)(q->used + 2);
}

static uint32_t *used_entry(const struct queue *q, uint16_t idx)
{
	return (uint32_t *)(void *)(q->used + 4 + QUEUE_USED_SIZE * (idx & (q->num - 1u)));
}

static uint16_t *avail_event(const struct queue *q)
{
	return (uint16_t *)(void *)(q->used + 4 + QUEUE_USED_SIZE * q->num);
}

static uint16_t ring_load(const uint16_t *p)
{
	return __atomic_load_n(p, __ATOMIC_RELAXED);
}

static void ring_store(uint16_t *p, uint16_t v)
{
	__atomic_store_n(p, v, __ATOMIC_RELAXED);
}

/* ---- Setting up ---------------------------------------------------------- */

void queue_clear(struct queue *q)
{
	q->num = QUEUE_SIZE_MAX;
	q->ready = q->quiet = q->more = 0;
	q->last_avail = q->used_idx = q->seen_idx = 0;
	q->budget = UINT32_MAX;
	q->desc_gpa = q->avail_gpa = q->used_gpa = 0;
	q->desc = q->avail = q->used = NULL;
}

void queue_setup(struct queue *q)
{
	const struct mem *mem = q->v->env.mem;

	q->ready = 0;
	if (!q->num || q->num > QUEUE_SIZE_MAX || (q->num & (q->num - 1))) {
		virtio_fail(q->v, "queue %u cannot have %u entries", q->index, q->num);
		return;
	}
	if (q->desc_gpa % 16 || q->avail_gpa % 2 || q->used_gpa % 4) {
		virtio_fail(q->v, "queue %u is not aligned", q->index);
		return;
	}
	q->desc = mem_get(mem, q->desc_gpa, QUEUE_DESC_SIZE * q->num);
	q->avail = mem_get(mem, q->avail_gpa, 6 + 2u * q->num);
	q->used = mem_get(mem, q->used_gpa, 6 + QUEUE_USED_SIZE * q->num);
	if (!q->desc || !q->avail || !q->used)
		virtio_fail(q->v, "queue %u is not in RAM", q->index);
	else
		q->ready = 1;
}

void queue_resume_at(struct queue *q, uint16_t last_avail)
{
	q->last_avail = q->used_idx = q->seen_idx = last_avail;
}

/* ---- Taking requests ----------------------------------------------------- */

/*
 * Copy a descriptor out, once: the fence keeps the compiler from reading the
 * guest's copy again where ours is used.  (An indirect table need not be
 * aligned; hence bytes.)
 */
static void desc_copy(struct queue_desc *d, const uint8_t *table, uint32_t i)
{
	_Static_assert(sizeof(*d) == QUEUE_DESC_SIZE, "2.7.5");
	memcpy(d, table + (size_t)i * QUEUE_DESC_SIZE, sizeof(*d));
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
}

/* Returns NULL, or what is wrong with the chain. */
static const char *chain_walk(const struct queue *q, struct chain *c, uint16_t head)
{
	const struct mem *mem = q->v->env.mem;
	const uint8_t *table = q->desc;
	uint32_t i = head, n = q->num, left = CHAIN_MAX + 1;
	uint64_t total = 0;
	struct queue_desc d;
	void *p;

	c->head = head;
	c->nout = c->nin = 0;
	c->out_len = c->in_len = 0;
	do {
		if (i >= n)
			return "points outside its table";
		if (!left--)
			return "is too long, or has a loop";
		desc_copy(&d, table, i);
		if (d.flags & VRING_DESC_F_INDIRECT) {
			/* 2.7.5.3.1: at most once, and last. */
			if (table != q->desc || (d.flags & VRING_DESC_F_NEXT) ||
			    !virtio_has(q->v, VIRTIO_RING_F_INDIRECT_DESC))
				return "has an indirect table where it may not";
			table = d.len % QUEUE_DESC_SIZE ? NULL : mem_get(mem, d.addr, d.len);
			if (!table)
				return "has an indirect table that is not in RAM";
			n = d.len / QUEUE_DESC_SIZE;
			i = 0;
			d.flags = VRING_DESC_F_NEXT;	/* on to its first */
			continue;
		}
		if (c->nout + c->nin == CHAIN_MAX)
			return "is too long, or has a loop";
		p = mem_get(mem, d.addr, d.len);
		if (!p)
			return "has a buffer that is not in RAM";
		total += d.len;
		if (total > UINT32_MAX)		/* 2.7.5.3.1 */
			return "has more than 4 GiB of buffers";
		c->iov[c->nout + c->nin].iov_base = p;
		c->iov[c->nout + c->nin].iov_len = d.len;
		if (d.flags & VRING_DESC_F_WRITE) {
			c->nin++;
			c->in_len += d.len;
		} else if (c->nin) {		/* 2.7.4.2 */
			return "has a readable buffer after a writable one";
		} else {
			c->nout++;
			c->out_len += d.len;
		}
		i = d.next;
	} while (d.flags & VRING_DESC_F_NEXT);
	return NULL;
}

/* How many requests wait.  The device is broken if that cannot be. */
static uint16_t queue_waiting(struct queue *q)
{
	/* Acquire: entries and descriptors are read after the index.  Partner:
	   the driver's barrier before it writes the index (2.7.13.3). */
	uint16_t n = (uint16_t)(__atomic_load_n(avail_idx(q), __ATOMIC_ACQUIRE) - q->last_avail);

	if (n <= q->num)
		return n;
	virtio_fail(q->v, "queue %u: %u requests in a ring of %u", q->index, n, q->num);
	return 0;
}

/* The ring is empty: ask for a notification, then look again (2.7.10). */
static uint16_t queue_listen(struct queue *q)
{
	q->quiet = 0;
	if (virtio_has(q->v, VIRTIO_RING_F_EVENT_IDX))
		ring_store(avail_event(q), q->last_avail);
	else
		ring_store(used_flags(q), 0);
	/* We write that we listen, then read its index.  Partner: the driver
	   writes its index, then reads whether we listen (2.7.13.4.1). */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	return queue_waiting(q);
}

int queue_pop(struct queue *q, struct chain *c)
{
	const char *wrong;
	uint16_t head;

	if (!q->ready || !q->v->active)
		return 0;
	if (!queue_waiting(q) && !queue_listen(q))
		return 0;
	if (!q->budget) {
		q->more = 1;
		return 0;
	}
	if (q->budget != UINT32_MAX)	/* there is one */
		q->budget--;
	if (!q->quiet) {
		/* With EVENT_IDX avail_event stays behind, which is enough. */
		q->quiet = 1;
		if (!virtio_has(q->v, VIRTIO_RING_F_EVENT_IDX))
			ring_store(used_flags(q), VRING_USED_F_NO_NOTIFY);
	}
	head = ring_load(avail_entry(q, q->last_avail));
	wrong = chain_walk(q, c, head);
	if (wrong) {
		virtio_fail(q->v, "queue %u: request %u %s", q->index, head, wrong);
		return 0;
	}
	q->last_avail++;
	return 1;
}

void queue_unpop(struct queue *q)
{
	q->last_avail--;
}

/* ---- Giving them back ---------------------------------------------------- */

void queue_push(struct queue *q, uint16_t head, uint32_t written)
{
	uint32_t *e;

	if (!q->ready || !q->v->active)
		return;
	e = used_entry(q, q->used_idx++);
	__atomic_store_n(&e[0], head, __ATOMIC_RELAXED);
	__atomic_store_n(&e[1], written, __ATOMIC_RELAXED);
}

void queue_signal(struct queue *q)
{
	uint16_t old = q->seen_idx, new = q->used_idx, event;

	if (!q->ready || !q->v->active || old == new)
		return;
	/* Release: buffers and entries are written before the index.  Partner:
	   the driver's barrier after it has read the index (2.7.14). */
	__atomic_store_n(used_idx(q), new, __ATOMIC_RELEASE);
	q->seen_idx = new;
	/* We write our index, then read whether it listens.  Partner: the
	   driver writes that it listens, then reads our index (2.7.14). */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (virtio_has(q->v, VIRTIO_RING_F_EVENT_IDX)) {
		event = ring_load(used_event(q));
		/* 2.7.7.1: has the index moved past event? */
		if ((uint16_t)(new - event - 1) >= (uint16_t)(new - old))
			return;
	} else if (ring_load(avail_flags(q)) & VRING_AVAIL_F_NO_INTERRUPT) {
		return;
	}
	virtio_interrupt(q->v);
}

/* ---- What another process has in flight ------------------------------------ */

void queue_flight_start(struct queue *q, struct flight *f)
{
	memset(f, 0, sizeof(*f));
	f->avail = f->used = q->last_avail;
}

void queue_flight_look(struct queue *q, struct flight *f)
{
	/* Used first: what has come back by then was given out before. */
	uint16_t used = __atomic_load_n(used_idx(q), __ATOMIC_ACQUIRE);
	uint16_t avail = __atomic_load_n(avail_idx(q), __ATOMIC_ACQUIRE), i;
	uint32_t head;

	f->lost |= (uint16_t)(used - f->used) > q->num || (uint16_t)(avail - f->avail) > q->num;
	for (i = f->used; !f->lost && i != used; i++) {
		head = __atomic_load_n(used_entry(q, i), __ATOMIC_RELAXED);
		if (head < q->num)
			f->count[head]--;
	}
	for (i = f->avail; !f->lost && i != avail; i++) {
		head = ring_load(avail_entry(q, i));
		if (head < q->num)
			f->count[head]++;
	}
	/* Entries are written anew when an index is a whole ring ahead. */
	__atomic_thread_fence(__ATOMIC_ACQUIRE);
	f->lost |= (uint16_t)(ring_load(used_idx(q)) - f->used) > q->num ||
		   (uint16_t)(ring_load(avail_idx(q)) - f->avail) > q->num;
	f->avail = avail;
	f->used = used;
	if (f->lost && avail == used)
		memset(f->count, 0, sizeof(f->count));
	f->lost &= avail != used;
}

int queue_flight_end(struct queue *q, struct flight *f)
{
	queue_flight_look(q, f);
	q->last_avail = f->avail;
	q->used_idx = q->seen_idx = f->used;
	return f->lost ? -1 : 0;
}

int queue_flight_pop(struct queue *q, struct flight *f, struct chain *c)
{
	const char *wrong;
	uint16_t head;

	for (head = 0; head < q->num && f->count[head] <= 0; head++)
		;
	if (head == q->num || !q->ready || !q->v->active)
		return 0;
	f->count[head] = 0;
	wrong = chain_walk(q, c, head);
	if (wrong)
		virtio_fail(q->v, "queue %u: request %u %s", q->index, head, wrong);
	return !wrong;
}

/* ---- Buffers ------------------------------------------------------------- */

/* Copy between buf and iov[0..n), from byte off on; to: into the iov. */
static size_t chain_copy(const struct iovec *iov, size_t n, size_t off, uint8_t *buf, size_t len,
		       int to)
{
	size_t i, run, done = 0;

	for (i = 0; i < n && done < len; i++) {
		uint8_t *p = iov[i].iov_base;

		if (off >= iov[i].iov_len) {
			off -= iov[i].iov_len;
			continue;
		}
		run = iov[i].iov_len - off;
		if (run > len - done)
			run = len - done;
		if (to)
			memcpy(p + off, buf + done, run);
		else
			memcpy(buf + done, p + off, run);
		done += run;
		off = 0;
	}
	__atomic_signal_fence(__ATOMIC_SEQ_CST);	/* as in desc_copy() */
	return done;
}

size_t chain_read(const struct chain *c, size_t off, void *buf, size_t n)
{
	return chain_copy(c->iov, c->nout, off, buf, n, 0);
}

size_t chain_write(const struct chain *c, size_t off, const void *buf, size_t n)
{
	union { const void *in; uint8_t *p; } u = { .in = buf };	/* only read */

	return chain_copy(c->iov + c->nout, c->nin, off, u.p, n, 1);
}
