/* SPDX-License-Identifier: MIT */
/*
 * fuzz_transport.c - nothing but accesses to registers, in any order and of
 * any width, before a device with many queues.
 */
#include "guest.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct guest *g = guest_new(data, size);
	struct virtio *v;
	unsigned int len;
	uint64_t off;

	if (balloon_new(&v, &g->env, "balloon0", NULL))
		abort();
	v->notify_by = size & 1 ? NOTIFY_LOOP : NOTIFY_VCPU;
	guest_attach(g, v);
	while (g->left) {
		uint8_t how = (uint8_t)guest_take(g, 1);

		len = 1u << (how & 3);
		off = how & 4 ? 4 * guest_take(g, 1) : guest_take(g, 2) % (TRANSPORT_SIZE - 8);
		if (how & 4)
			len = 4;
		if (how & 8)
			g->dev->ops->bus->read(g->dev, off, len);
		else if (how & 16)
			g->dev->ops->bus->write(g->dev, off, len,
						GUEST_RAM + 64 * guest_take(g, 1));
		else
			g->dev->ops->bus->write(g->dev, off, len, guest_take(g, len));
	}
	g->dev->ops->free(g->dev);
	return 0;
}
