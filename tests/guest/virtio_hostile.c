/* SPDX-License-Identifier: MIT */
/*
 * virtio_hostile.c - everything a driver must not do, to every virtio device.
 *
 * The host program adds devices of any kind, the last one an rng, which stays in
 * good hands: after each crime the others may be broken (DEVICE_NEEDS_RESET) or
 * not, but this one goes on, and what was broken works again after a reset.
 * arg[0]: how often those things are done that need luck.  counter[0] counts
 * crimes, counter[1] how many broke the device.
 */
#include "lib/guest.h"

enum { MAGIC = 0x00, DEVICE_ID = 0x08, DRIVER_FEATURES = 0x20, DRIVER_SEL = 0x24, QUEUE_SEL = 0x30,
       QUEUE_MAX = 0x34, QUEUE_NUM = 0x38, QUEUE_READY = 0x44, NOTIFY = 0x50, ISR = 0x60, ACK = 0x64, STATUS = 0x70,
       DESC = 0x80, AVAIL = 0x90, USED = 0xa0, CONFIG = 0x100 };
enum { S_ACK = 1, S_DRIVER = 2, S_DRIVER_OK = 4, S_FEATURES_OK = 8, S_NEEDS_RESET = 64 };
enum { D_NEXT = 1, D_WRITE = 2, D_INDIRECT = 4 };
enum { RNG = 4, NUM = 16 };

struct desc {
	uint64_t	addr;
	uint32_t	len;
	uint16_t	flags, next;
};

struct ring {
	struct desc	desc[256];
	uint16_t	avail[4 + 256];
	uint16_t	pad[4];
	uint32_t	used[4 + 2 * 256];
};

static volatile struct ring rings[2] __attribute__((aligned(4096)));
static volatile struct desc table[512] __attribute__((aligned(16)));
static volatile uint8_t buffer[8192] __attribute__((aligned(16)));
static volatile struct ring *const vq = &rings[0];
static uint64_t dev;			/* the one at hand */
static uint32_t queues;			/* that it has */
static uint32_t features;		/* bits 0 to 31 that it is told */
static volatile int stop, going;

static uint64_t rnd(void)
{
	static uint64_t x = 88172645463325252ull;

	x ^= x << 13;
	x ^= x >> 7;
	return x ^= x << 17;
}

static void fence(void)
{
	__asm__ volatile("fence iorw, iorw" : : : "memory");
}

/* ---- A driver ------------------------------------------------------------------ */

static void wipe(volatile void *p, uint64_t n)
{
	volatile uint64_t *q = p;

	for (; n; n -= 8)
		*q++ = 0;
}

/* Up to the queues. */
static void init(uint64_t d)
{
	R32(d + STATUS) = 0;
	R32(d + STATUS) = S_ACK;
	R32(d + STATUS) = S_ACK | S_DRIVER;
	R32(d + DRIVER_SEL) = 0;
	R32(d + DRIVER_FEATURES) = features;
	R32(d + DRIVER_SEL) = 1;
	R32(d + DRIVER_FEATURES) = 1;	/* VERSION_1 */
	R32(d + STATUS) = S_ACK | S_DRIVER | S_FEATURES_OK;
	CHECK(R32(d + STATUS) & S_FEATURES_OK);
}

static void set_queue(uint64_t d, uint32_t q, uint32_t num, uint64_t desc, uint64_t avail,
		      uint64_t used)
{
	R32(d + QUEUE_SEL) = q;
	R32(d + QUEUE_NUM) = num;
	R32(d + DESC) = (uint32_t)desc;
	R32(d + DESC + 4) = (uint32_t)(desc >> 32);
	R32(d + AVAIL) = (uint32_t)avail;
	R32(d + AVAIL + 4) = (uint32_t)(avail >> 32);
	R32(d + USED) = (uint32_t)used;
	R32(d + USED + 4) = (uint32_t)(used >> 32);
	R32(d + QUEUE_READY) = 1;
}

static void driver_ok(uint64_t d)
{
	R32(d + STATUS) = S_ACK | S_DRIVER | S_FEATURES_OK | S_DRIVER_OK;
}

/* All of its queues are this ring. */
static void set_up(uint64_t d, volatile struct ring *r)
{
	uint32_t q;

	init(d);
	wipe(r, sizeof(*r));
	for (q = 0; q < queues; q++)
		set_queue(d, q, NUM, (uintptr_t)r->desc, (uintptr_t)r->avail, (uintptr_t)r->used);
	driver_ok(d);
}

static void describe(volatile struct desc *d, uint64_t addr, uint32_t len, uint16_t flags,
		     uint16_t next)
{
	d->addr = addr;
	d->len = len;
	d->flags = flags;
	d->next = next;
}

/* Offer descriptor head n times, and notify every queue. */
static void offer(uint64_t d, uint16_t head, uint16_t n)
{
	uint16_t i;

	for (i = 0; i < n; i++)
		vq->avail[2 + (uint16_t)(vq->avail[1] + i) % NUM] = head;
	fence();
	vq->avail[1] = (uint16_t)(vq->avail[1] + n);
	fence();
	for (i = 0; i < queues; i++)
		R32(d + NOTIFY) = i;
}

/* The last device serves a request, whatever has become of the others. */
static void well_behaved(uint64_t d)
{
	volatile struct ring *r = &rings[1];
	uint32_t i, sum = 0;
	uint64_t patience = time_now() + 600000000;

	init(d);
	wipe(r, sizeof(*r));
	set_queue(d, 0, NUM, (uintptr_t)r->desc, (uintptr_t)r->avail, (uintptr_t)r->used);
	driver_ok(d);
	for (i = 0; i < 64; i++)
		buffer[i] = 0;
	describe(&r->desc[3], (uintptr_t)buffer, 64, D_WRITE, 0);
	r->avail[2] = 3;
	fence();
	r->avail[1] = 1;
	fence();
	R32(d + NOTIFY) = 0;
	while (!(r->used[0] >> 16))
		CHECK(time_now() < patience);
	CHECK_EQ(r->used[1], 3);
	CHECK_EQ(r->used[2], 64);
	for (i = 0; i < 64; i++)
		sum += buffer[i];
	CHECK(sum);
	CHECK_EQ(R32(d + STATUS) & S_NEEDS_RESET, 0);
	R32(d + STATUS) = 0;
}

/* ---- Crimes --------------------------------------------------------------------- */

static void notify_before_setup(void)
{
	static const uint32_t which[] = { 0, 1, 2, 63, 64, 65535, 0x80000000, ~0u };
	uint32_t i, status;

	for (status = 0; status < 4; status++) {
		R32(dev + STATUS) = 0;
		R32(dev + STATUS) = status == 3 ? S_DRIVER_OK : (1u << status) - 1;
		for (i = 0; i < sizeof(which) / sizeof(which[0]); i++)
			R32(dev + NOTIFY) = which[i];
	}
	init(dev);
	driver_ok(dev);			/* with no queue at all */
	for (i = 0; i < sizeof(which) / sizeof(which[0]); i++)
		R32(dev + NOTIFY) = which[i];
}

static void sizes(void)
{
	static const uint32_t num[] = { 0, 1, 2, 3, 255, 256, 257, 32768, 65535, 65536, 65537, ~0u };
	uint32_t i, q;

	for (i = 0; i < sizeof(num) / sizeof(num[0]); i++) {
		init(dev);
		wipe(vq, sizeof(*vq));
		for (q = 0; q < 70; q += q <= queues ? 1 : 20)
			set_queue(dev, q, num[i], (uintptr_t)vq->desc, (uintptr_t)vq->avail,
				  (uintptr_t)vq->used);
		driver_ok(dev);
		describe(&vq->desc[0], (uintptr_t)buffer, 64, D_WRITE, 0);
		offer(dev, 0, 1);
	}
}

static void rings_elsewhere(void)
{
	static const uint64_t at[] = { 0, 1, 0x1000, VIRTIO, RAM - 16, RAM + 8, RAM + 0x1001, ~0ull,
				       ~0ull - 15, ~0ull << 32, 1ull << 63, 0x7ffffffffffffff0ull };
	uint64_t end = RAM + shared.arg[1];
	uint32_t i, part;

	for (i = 0; i < 3 * (sizeof(at) / sizeof(at[0]) + 3); i++) {
		uint64_t a, ok[3] = { (uintptr_t)vq->desc, (uintptr_t)vq->avail,
				      (uintptr_t)vq->used };

		part = i % 3;
		a = i / 3 < 12 ? at[i / 3] : end - 16ul * (i / 3 - 12);
		ok[part] = a;
		init(dev);
		wipe(vq, sizeof(*vq));
		set_queue(dev, 0, 256, ok[0], ok[1], ok[2]);
		set_queue(dev, 1, 256, ok[0], ok[1], ok[2]);
		driver_ok(dev);
		offer(dev, 0, 1);
	}
	/* All three in one place, which is allowed, and of no use. */
	init(dev);
	set_queue(dev, 0, 256, (uintptr_t)vq, (uintptr_t)vq, (uintptr_t)vq);
	driver_ok(dev);
	offer(dev, 0, 4);
}

static void chains(void)
{
	uint64_t b = (uintptr_t)buffer;
	uint32_t i, k;

	for (k = 0; k < 16; k++) {
		set_up(dev, vq);
		describe(&vq->desc[0], b, 16, D_NEXT, 1);
		describe(&vq->desc[1], b, 64, D_WRITE | D_NEXT, 2);
		describe(&vq->desc[2], b, 1, D_WRITE, 0);
		wipe(table, sizeof(table));
		for (i = 0; i < 512; i++)
			describe(&table[i], b, 8, D_WRITE | D_NEXT, (uint16_t)(i + 1));
		table[511].flags = D_WRITE;
		switch (k) {
		case 0: vq->desc[0].next = 0; break;
		case 1: vq->desc[2].flags |= D_NEXT; break;	/* a loop */
		case 2: vq->desc[0].next = NUM; break;
		case 3: vq->desc[1].next = 65535; break;
		case 4:					/* read after write */
			vq->desc[0].flags |= D_WRITE;
			vq->desc[1].flags = D_NEXT;
			break;
		case 5: describe(&vq->desc[0], (uintptr_t)table, 16 * 512, D_INDIRECT, 0); break;
		case 6: describe(&vq->desc[0], (uintptr_t)table, 0, D_INDIRECT, 0); break;
		case 7: describe(&vq->desc[0], (uintptr_t)table, 17, D_INDIRECT, 0); break;
		case 8: describe(&vq->desc[0], (uintptr_t)table, ~0u, D_INDIRECT, 0); break;
		case 9: describe(&vq->desc[0], 0, 16 * 4, D_INDIRECT, 0); break;
		case 10:				/* a table in a table */
			describe(&table[0], (uintptr_t)table, 32, D_INDIRECT, 0);
			describe(&vq->desc[0], (uintptr_t)table, 32, D_INDIRECT, 0);
			break;
		case 11:				/* a table that loops */
			table[3].next = 0;
			describe(&vq->desc[0], (uintptr_t)table, 16 * 8, D_INDIRECT, 0);
			break;
		case 12: describe(&vq->desc[0], (uintptr_t)table, 32, D_INDIRECT | D_NEXT, 1); break;
		case 13: describe(&vq->desc[0], (uintptr_t)table, 32, D_INDIRECT | D_WRITE, 1); break;
		case 14:				/* nothing to read or write */
			for (i = 0; i < 3; i++)
				vq->desc[i].len = 0;
			break;
		default: vq->desc[0].flags = 0xffff; break;
		}
		offer(dev, 0, 1);
	}
	for (k = 0; k < 6; k++) {		/* heads and indices */
		set_up(dev, vq);
		describe(&vq->desc[0], b, 64, D_WRITE, 0);
		if (k < 3) {
			offer(dev, (uint16_t)(k == 0 ? NUM : k == 1 ? 255 : 65535), 1);
		} else {
			vq->avail[1] = (uint16_t)(k == 3 ? NUM + 1 : k == 4 ? 32768 : 65535);
			offer(dev, 0, 0);
		}
	}
}

static void buffers(void)
{
	uint64_t end = RAM + shared.arg[1];
	const uint64_t at[] = { 0, 8, VIRTIO, IMSIC, RAM - 1, end - 1, end, end + 65536, ~0ull, ~0ull - 8,
				1ull << 63, (uintptr_t)buffer };
	static const uint32_t len[] = { 0, 1, 12, 16, 4096, 0x7fffffff, 0x80000000, 0xfffffff0, ~0u };
	uint32_t i, k, way;

	for (i = 0; i < sizeof(at) / sizeof(at[0]); i++) {
		for (k = 0; k < sizeof(len) / sizeof(len[0]); k++) {
			for (way = 0; way < 3; way++) {
				if (shared.arg[0] < 1000 && (i + k + way) % 4)
					continue;	/* each of them sometimes */
				set_up(dev, vq);
				/* Lengths that together wrap around. */
				describe(&vq->desc[0], way ? at[i] : (uintptr_t)buffer,
					 way ? len[k] : 16, D_NEXT, 1);
				describe(&vq->desc[1], at[i], len[k], D_WRITE | D_NEXT, 2);
				describe(&vq->desc[2], way == 2 ? at[i] : (uintptr_t)buffer,
					 way == 2 ? len[k] : 1, D_WRITE, 0);
				offer(dev, 0, 1);
			}
		}
	}
}

/* Another hart changes descriptors and rings while they are read. */
static void mischief(uint64_t arg)
{
	uint64_t x = arg;

	going = 1;
	while (!stop) {
		volatile struct desc *d = &vq->desc[x >> 8 & 7];

		x = x * 6364136223846793005ull + 1442695040888963407ull;
		switch (x >> 60) {
		case 0: d->addr = x; break;
		case 1: case 2: d->addr = (uintptr_t)buffer; break;
		case 3: d->len = (uint32_t)(x >> 20) | 1u << 26; break;	/* never all in RAM */
		case 4: case 5: d->len = x >> 16 & 31; break;
		case 6: d->flags = x >> 20 & 7; break;
		case 7: case 8: d->flags = D_WRITE; break;
		case 9: case 10: d->flags = D_NEXT; break;
		case 11: case 12: d->next = x >> 20 & 15; break;
		case 13: vq->avail[2 + (x >> 20 & 15)] = x >> 30 & 15; break;
		default: wipe(table, 64); break;
		}
	}
	going = 0;
}

static void while_read(void)
{
	uint64_t i;

	stop = 0;
	hart_start(1, mischief, dev);
	while (!going)
		;
	for (i = 0; i < shared.arg[0]; i++) {
		if (i % 64 == 0 || (R32(dev + STATUS) & S_NEEDS_RESET))
			set_up(dev, vq);
		offer(dev, (uint16_t)(i % 8), 3);
	}
	stop = 1;
	while (going)
		;
	while (sbi(SBI_HSM, 2, 1, 0, 0).value != 1)
		;			/* until it can be started again */
}

/* Once a reset is done nothing is written any more. */
static void reset_in_request(void)
{
	uint64_t i, k;

	for (i = 0; i < shared.arg[0] / 8; i++) {
		set_up(dev, vq);
		for (k = 0; k < 8; k++) {
			describe(&vq->desc[3 * k], (uintptr_t)buffer, 16, D_NEXT, (uint16_t)(3 * k + 1));
			describe(&vq->desc[3 * k + 1], (uintptr_t)buffer + 512, 4096, D_WRITE | D_NEXT,
				 (uint16_t)(3 * k + 2));
			describe(&vq->desc[3 * k + 2], (uintptr_t)buffer + 6000, 1, D_WRITE, 0);
			vq->avail[2 + k] = (uint16_t)(3 * k);
		}
		wipe(buffer, 16);	/* of blk: read sector 0 */
		fence();
		vq->avail[1] = 8;
		fence();
		R32(dev + NOTIFY) = (uint32_t)(i % 3);
		R32(dev + STATUS) = 0;
		for (k = 512; k < 6008; k++)
			buffer[k] = 0xa5;
		fence();
		well_behaved(VIRTIO + (shared.arg[2] - 1) * 0x1000);
		for (k = 512; k < 6008; k++)
			CHECK_EQ(buffer[k], 0xa5);
	}
}

static void flood(void)
{
	uint64_t i;

	set_up(dev, vq);
	describe(&vq->desc[0], (uintptr_t)buffer, 64, D_WRITE, 0);
	for (i = 0; i < shared.arg[0]; i++) {
		offer(dev, 0, NUM);
		R32(dev + ACK) = ~0u;
	}
}

/* Any register, any value, any size. */
static void registers(void)
{
	uint64_t i, off, val;

	set_up(dev, vq);
	for (i = 0; i < shared.arg[0] * 2; i++) {
		off = rnd() % 0x300;
		val = rnd() >> (rnd() & 63);
		switch (rnd() & 7) {
		case 0: R8(dev + off) = (uint8_t)val; break;
		case 1: R16(dev + (off & ~1ul)) = (uint16_t)val; break;
		case 2: R64(dev + (off & ~7ul)) = val; break;
		case 3: (void)R8(dev + off); break;
		case 4: (void)R64(dev + (off & ~7ul)); break;
		default: R32(dev + (off & ~3ul)) = (uint32_t)val; break;
		}
		if (i % 256 == 0)
			set_up(dev, vq);
	}
}

static void (*const crimes[])(void) = { notify_before_setup, sizes, rings_elsewhere, chains, buffers,
					while_read, reset_in_request, flood, registers };

int main(void)
{
	uint64_t n = shared.arg[2], good = VIRTIO + (n - 1) * 0x1000, i;
	uint32_t k, way;

	CHECK_EQ(R32(good + DEVICE_ID), RNG);
	for (i = 0; i < n - 1; i++) {
		dev = VIRTIO + i * 0x1000;
		for (queues = 0; queues < 4; queues++) {
			R32(dev + QUEUE_SEL) = queues;
			if (!R32(dev + QUEUE_MAX))
				break;
		}
		for (k = 0; k < sizeof(crimes) / sizeof(crimes[0]); k++) {
			/* One hart does all but what takes two. */
			if ((crimes[k] == while_read) != (harts() > 1))
				continue;
			for (way = 0; way < 2; way++) {
				features = way ? 1u << 28 | 1u << 29 : 0;	/* indirect, event index */
				crimes[k]();
				shared.counter[0]++;
				shared.counter[1] += (R32(dev + STATUS) & S_NEEDS_RESET) != 0;
				features = 0;
				well_behaved(good);
				init(dev);	/* and so may this one again */
				CHECK_EQ(R32(dev + STATUS) & S_NEEDS_RESET, 0);
				R32(dev + STATUS) = 0;
			}
		}
	}
	return 0;
}
