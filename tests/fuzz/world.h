/* SPDX-License-Identifier: MIT */
/*
 * world.h - for devices that the world outside speaks to: the I/O loop's turn,
 * taken by the fuzzer's only thread, and buffers that are offered as a driver
 * does it.
 */
#ifndef FUZZ_WORLD_H
#define FUZZ_WORLD_H

#include "guest.h"

/* What is ready is handled, as by loop.c. */
static inline void world_turn(struct guest *g)
{
	struct loop *l = &g->loop;
	struct io *io;
	int i;

	if (l->epfd < 0)
		return;
	i = epoll_wait(l->epfd, l->batch, LOOP_BATCH, 0);
	l->nbatch = i > 0 ? i : 0;
	for (i = 0; i < l->nbatch; i++) {
		io = l->batch[i].data.ptr;
		if (io && l->batch[i].data.ptr != l)
			io->fn(io->arg, l->batch[i].events);
	}
	l->nbatch = 0;
}

/*
 * Offer n bytes of guest RAM, in up to three buffers; the first bytes of what
 * the device is to read are copied from p.
 */
static inline void world_add(struct guest *g, uint32_t q, const void *p, uint32_t copy, uint32_t n,
			     int write)
{
	uint8_t *ring = g->mem.hva + GUEST_RINGS * q;
	struct vring_desc *desc = (struct vring_desc *)(void *)ring;
	uint16_t *avail = (uint16_t *)(void *)(ring + 0x400);
	uint32_t slot = avail[1] % GUEST_NUM, at = 0x20000 + q * 0x8000 + slot * 0x1000;
	uint16_t flags = write ? VRING_DESC_F_WRITE : 0;

	if (n > 0x1000)
		n = 0x1000;
	if (copy)
		memcpy(g->mem.hva + at, p, copy < n ? copy : n);
	desc[slot] = (struct vring_desc){ GUEST_RAM + at, n, flags, 0 };
	avail[2 + slot] = (uint16_t)slot;
	avail[1]++;
	guest_reg(g, VIRTIO_MMIO_QUEUE_NOTIFY, q);
}

/* What any guest may do next, if what is one of these: 1; else 0. */
static inline int world_step(struct guest *g, uint64_t what, uint32_t queues)
{
	switch (what) {
	case 0:
		guest_add(g);
		return 1;
	case 1:
		guest_write(g);
		return 1;
	case 2:
		guest_reg(g, VIRTIO_MMIO_QUEUE_NOTIFY, (uint32_t)guest_take(g, 1) % queues);
		return 1;
	case 3:
		guest_start(g, ~guest_take(g, 8));
		return 1;
	case 4:
		guest_roundtrip(g);
		return 1;
	}
	return 0;
}

#endif
