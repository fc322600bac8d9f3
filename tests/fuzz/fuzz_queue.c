/* SPDX-License-Identifier: MIT */
/*
 * fuzz_queue.c - rings and chains, before a device that touches every byte of
 * every buffer it is given.
 */
#include "guest.h"

static void touch_notify(struct virtio *v, struct queue *q)
{
	static uint8_t buf[1u << 18];
	struct chain c;
	uint64_t out = 0, in = 0;
	uint32_t i;

	(void)v;
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
	.type = "touch", .id = 63, .notify = touch_notify, .free = touch_free,
};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct guest *g = guest_new(data, size);
	struct virtio *v = calloc(1, sizeof(*v));

	if (!v || virtio_init(v, &touch_ops, &g->env, "touch0", 2, NULL))
		abort();
	v->notify_by = size & 1 ? NOTIFY_LOOP : NOTIFY_VCPU;
	guest_run(g, v, NULL);
	return 0;
}
