/* SPDX-License-Identifier: MIT */
/*
 * guest.h - a guest made of random bytes, before one virtio device.
 *
 * The input is a program: each step writes RAM, a register or configuration,
 * adds a request that is well formed but for its contents, notifies, saves and
 * loads, or starts anew.  So a fuzzer reaches the parser of requests as well
 * as the rings and the registers.  There is no I/O thread: what is in flight
 * is waited for at the end, as by vmm_pause().
 */
#ifndef FUZZ_GUEST_H
#define FUZZ_GUEST_H

#include <stdlib.h>
#include <string.h>

#include <linux/virtio_config.h>
#include <linux/virtio_mmio.h>
#include <linux/virtio_ring.h>

#include "../../virtio/devices.h"

#define GUEST_RAM	0x80000000ull
#define GUEST_SIZE	(1ull << 18)
#define GUEST_GPA	0x10001000ull
#define GUEST_NUM	8u
#define GUEST_RINGS	0x1000u		/* of each queue; queue 0 first */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct guest {
	struct mem	mem;
	struct loop	loop;
	struct log	log;
	struct irqchip	chip, *chipp;
	int		vm;
	struct virtio_env env;
	struct device	*dev;
	const uint8_t	*in;
	size_t		left;
};

static inline void guest_line(struct irqchip *chip, uint32_t line, int level)
{
	(void)chip;
	(void)line;
	(void)level;
}

/* The one guest of the process; its RAM is zero again. */
static inline struct guest *guest_new(const uint8_t *data, size_t size)
{
	static const struct irqchip_ops ops = { .name = "none", .line = guest_line };
	static struct guest g;
	struct vmm_error err;

	if (!g.mem.hva) {
		if (mem_init(&g.mem, GUEST_RAM, GUEST_SIZE, &err) ||
		    loop_init(&g.loop, "fuzz", &err))
			abort();
		g.chip.ops = &ops;
		g.chipp = &g.chip;
		g.vm = -1;
		g.env = (struct virtio_env){ &g.mem, &g.loop, &g.log, &g.vm, NULL };
	}
	memset(g.mem.hva, 0, GUEST_SIZE);
	g.in = data;
	g.left = size;
	return &g;
}

/* v is its device from now on. */
static inline void guest_attach(struct guest *g, struct virtio *v)
{
	if (transport_new(&g->dev, v, GUEST_GPA, 1, NULL, NULL))
		abort();
	g->dev->irq.chip = &g->chipp;
}

static inline uint64_t guest_take(struct guest *g, size_t n)
{
	uint64_t v = 0;

	if (n > g->left)
		n = g->left;
	memcpy(&v, g->in, n);
	g->in += n;
	g->left -= n;
	return v;
}

static inline void guest_reg(struct guest *g, uint32_t reg, uint32_t val)
{
	g->dev->ops->bus->write(g->dev, reg, 4, val);
}

/* 3.1.1, with these features out of those offered. */
static inline void guest_start(struct guest *g, uint64_t features)
{
	struct virtio *v = transport_virtio(g->dev);
	uint32_t i;

	features = (features & v->offers) | 1ull << VIRTIO_F_VERSION_1;
	guest_reg(g, VIRTIO_MMIO_STATUS, 0);
	guest_reg(g, VIRTIO_MMIO_DRIVER_FEATURES_SEL, 0);
	guest_reg(g, VIRTIO_MMIO_DRIVER_FEATURES, (uint32_t)features);
	guest_reg(g, VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
	guest_reg(g, VIRTIO_MMIO_DRIVER_FEATURES, (uint32_t)(features >> 32));
	guest_reg(g, VIRTIO_MMIO_STATUS, VIRTIO_CONFIG_S_FEATURES_OK);
	for (i = 0; i < v->nqueues && i < 16; i++) {
		uint32_t at = (uint32_t)GUEST_RAM + GUEST_RINGS * i;

		memset(g->mem.hva + GUEST_RINGS * i, 0, GUEST_RINGS);
		guest_reg(g, VIRTIO_MMIO_QUEUE_SEL, i);
		guest_reg(g, VIRTIO_MMIO_QUEUE_NUM, GUEST_NUM);
		guest_reg(g, VIRTIO_MMIO_QUEUE_DESC_LOW, at);
		guest_reg(g, VIRTIO_MMIO_QUEUE_AVAIL_LOW, at + 0x400);
		guest_reg(g, VIRTIO_MMIO_QUEUE_USED_LOW, at + 0x800);
		guest_reg(g, VIRTIO_MMIO_QUEUE_READY, 1);
	}
	guest_reg(g, VIRTIO_MMIO_STATUS, VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK);
}

/* A request of up to four buffers, the first of them filled from the input:
   there is where headers are. */
static inline void guest_add(struct guest *g)
{
	uint32_t q = (uint32_t)guest_take(g, 1) % 16, shape = (uint32_t)guest_take(g, 1), i;
	uint32_t n = 1 + shape % 4, nout = (shape >> 2) % (n + 1), fill;
	uint8_t *ring = g->mem.hva + GUEST_RINGS * q;
	struct vring_desc *desc = (struct vring_desc *)(void *)ring;
	uint16_t *avail = (uint16_t *)(void *)(ring + 0x400);
	uint64_t at = 0x20000 + 256 * guest_take(g, 1);

	for (i = 0; i < n; i++) {
		uint32_t len = (uint32_t)guest_take(g, i ? 2 : 1);

		if (len & 0x8000)	/* whole sectors, more often than by chance */
			len = (len & 0x7f) * 512;
		if (i == 0) {
			fill = len < g->left ? len : (uint32_t)g->left;
			memcpy(g->mem.hva + at, g->in, fill);
			g->in += fill;
			g->left -= fill;
		}
		desc[i] = (struct vring_desc){ GUEST_RAM + at, len,
			(uint16_t)((i >= nout ? VRING_DESC_F_WRITE : 0) |
				   (i + 1 < n ? VRING_DESC_F_NEXT : 0)), (uint16_t)(i + 1) };
		at = (at + len) % GUEST_SIZE;
	}
	avail[2 + avail[1] % GUEST_NUM] = 0;
	avail[1]++;
	guest_reg(g, VIRTIO_MMIO_QUEUE_NOTIFY, q);
}

static inline void guest_write(struct guest *g)
{
	uint64_t off = guest_take(g, 3) % GUEST_SIZE;
	size_t n = 1 + guest_take(g, 1);

	if (n > g->left)
		n = g->left;
	if (n > GUEST_SIZE - off)
		n = GUEST_SIZE - off;
	memcpy(g->mem.hva + off, g->in, n);
	g->in += n;
	g->left -= n;
}

static inline void guest_roundtrip(struct guest *g)
{
	struct writer w = { NULL, 0, 0, 0 };
	struct reader r;
	struct vmm_error err;
	uint64_t at = guest_take(g, 2);
	uint8_t flip = (uint8_t)guest_take(g, 1);

	if (g->dev->ops->quiesce)
		g->dev->ops->quiesce(g->dev);
	g->dev->ops->save(g->dev, &w);
	if (w.len)
		w.data[at % w.len] ^= flip;
	r = (struct reader){ w.data, w.len, 0 };
	if (g->dev->ops->load(g->dev, &r, &err) && !flip)
		abort();		/* what was saved can be loaded */
	free(w.data);
}

/*
 * Run the program against v, and free that.  host, if not NULL, is what the
 * host program does to it in between.
 */
static inline void guest_run(struct guest *g, struct virtio *v,
			     void (*host)(struct virtio *v, uint8_t what))
{
	unsigned int len;
	uint64_t off;

	guest_attach(g, v);
	guest_start(g, ~guest_take(g, 8));
	while (g->left) {
		switch (guest_take(g, 1) % 10) {
		case 0:
			guest_add(g);
			break;
		case 1:
			guest_write(g);
			break;
		case 2:
			guest_reg(g, VIRTIO_MMIO_QUEUE_NOTIFY, (uint32_t)guest_take(g, 1) % 16);
			break;
		case 3:
			off = 4 * guest_take(g, 1) % TRANSPORT_SIZE;
			guest_reg(g, (uint32_t)off, (uint32_t)guest_take(g, 4));
			break;
		case 4:
			len = 1u << guest_take(g, 1) % 4;
			off = guest_take(g, 2) % (TRANSPORT_SIZE - len + 1);
			g->dev->ops->bus->write(g->dev, off, len, guest_take(g, len));
			g->dev->ops->bus->read(g->dev, off, len);
			break;
		case 5:
			guest_start(g, ~guest_take(g, 8));
			break;
		case 6:
			guest_roundtrip(g);
			break;
		case 7:		/* a ring's index, one further */
			++*(uint16_t *)(void *)(g->mem.hva + GUEST_RINGS *
						(guest_take(g, 1) % 16) + 0x402);
			break;
		case 9:
			if (host)
				host(v, (uint8_t)guest_take(g, 1));
			break;
		default:
			if (g->dev->ops->quiesce)
				g->dev->ops->quiesce(g->dev);
			break;
		}
	}
	if (g->dev->ops->quiesce)
		g->dev->ops->quiesce(g->dev);
	g->dev->ops->free(g->dev);
}

#endif
