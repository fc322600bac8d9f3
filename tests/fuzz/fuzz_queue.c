/* SPDX-License-Identifier: MIT */
/*
 * fuzz_queue.c - rings and chains, before a device that touches every byte of
 * every buffer it is given.  The second queue is watched as if another process
 * ran it, which dies now and then: what is in flight is then given back.
 */
#include "guest.h"

static struct flight flight;

static void touch_activate(struct virtio *v)
{
	queue_flight_start(&v->queue[1], &flight);
}

/* The other process has died; there is another. */
static void touch_host(struct virtio *v, uint8_t what)
{
	struct queue *q = &v->queue[1];
	struct chain c;
	uint32_t n = 0;

	if (what % 4 || !v->active || !q->ready)
		return;
	if (queue_flight_end(q, &flight) == 0) {
		while (queue_flight_pop(q, &flight, &c)) {
			if (n++ > q->num)
				abort();
			queue_push(q, c.head, (uint32_t)chain_write(&c, 0, &c.head, 2));
		}
		queue_signal(q);
	}
	queue_flight_start(q, &flight);
}

static void touch_notify(struct virtio *v, struct queue *q)
{
	static uint8_t buf[1u << 18];
	struct chain c;
	uint64_t out = 0, in = 0;
	uint32_t i;

	if (q->index == 1) {
		queue_flight_look(&v->queue[1], &flight);
		return;
	}
	while (queue_pop(q, &c)) {
		for (i = 0; i < (uint32_t)c.nout + c.nin; i++)
			*(i < c.nout ? &out : &in) += c.iov[i].iov_len;
		if (out != c.out_len || in != c.in_len || i > CHAIN_MAX)
			abort();
		out = in = 0;
		i = (uint32_t)chain_read(&c, 0, buf, sizeof(buf));
		i = (uint32_t)chain_write(&c, i % 7, buf, i);
		queue_push(q, c.head, i);
		if (i == 5)
			queue_signal(q);
	}
	queue_signal(q);
}

static void touch_free(struct virtio *v)
{
	virtio_fini(v);
	free(v);
}

static const struct virtio_ops touch_ops = {
	.type = "touch", .id = 63, .notify = touch_notify, .activate = touch_activate,
	.free = touch_free,
};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct guest *g = guest_new(data, size);
	struct virtio *v = calloc(1, sizeof(*v));

	if (!v || virtio_init(v, &touch_ops, &g->env, "touch0", 2, NULL))
		abort();
	v->notify_by = size & 1 ? NOTIFY_LOOP : NOTIFY_VCPU;
	guest_run(g, v, touch_host);
	return 0;
}
