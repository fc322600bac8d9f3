/* SPDX-License-Identifier: MIT */
/*
 * holes.c - reads and writes where nobody answers, in every size.
 *
 * The first and last bytes of each hole between devices, and a place in each
 * 64 MiB of what lies below RAM: reads give 0, writes do nothing.  Then it does
 * the same to the devices themselves, reads and writes of all sizes at all
 * offsets (but for the ones that end or restart the guest): there is nothing to
 * expect but to get over it.  counter[0] counts accesses.
 */
#include "lib/guest.h"

static void read_all(uint64_t a, int zero)
{
	uint64_t v = 0;

	v |= R8(a);
	if (a % 2 == 0)
		v |= R16(a);
	if (a % 4 == 0)
		v |= R32(a);
	if (a % 8 == 0)
		v |= R64(a);
	if (zero)
		CHECK_EQ(v, 0);
	shared.counter[0] += 4;
}

static void write_all(uint64_t a, uint64_t v)
{
	R8(a) = (uint8_t)v;
	if (a % 2 == 0)
		R16(a) = (uint16_t)v;
	if (a % 4 == 0)
		R32(a) = (uint32_t)v;
	if (a % 8 == 0)
		R64(a) = v;
	shared.counter[0] += 4;
}

static void hole(uint64_t from, uint64_t to)
{
	static const uint64_t at[] = { 0, 1, 2, 4, 8, 0x10, 0x100, 0xff8 };
	unsigned int i;

	for (i = 0; i < sizeof(at) / sizeof(at[0]); i++) {
		read_all(from + at[i], 1);
		write_all(from + at[i], ~0ul);
		read_all(from + at[i], 1);
	}
	for (i = 1; i <= 16; i++) {
		write_all(to - i, ~0ul);
		read_all(to - i, 1);
	}
}

static void device(uint64_t base, uint64_t size)
{
	uint64_t off;

	for (off = 0; off < size; off += 4) {
		read_all(base + off, 0);
		write_all(base + off, 0);
		write_all(base + off, off * 0x0123456789abcdeful);
		read_all(base + off + 1, 0);
	}
}

/* A hardware interrupt file takes 32-bit accesses only: the others fault. */
static int step(struct frame *f, uint64_t cause, uint64_t value)
{
	if ((cause != 5 && cause != 7) || value < IMSIC || value >= IMSIC + 0x1000)
		return 0;
	f->pc += (R16(f->pc) & 3) == 3 ? 4 : 2;
	return 1;
}

int main(void)
{
	unsigned int n = harts();
	uint64_t a;

	on_exception = step;

	hole(0, 0x1000);		/* a null pointer is a hole, too */
	hole(0x1000, APLIC);
	hole(APLIC + 0x4000, UART);
	hole(UART + 0x100, RTC);
	hole(DOORBELL + 0x1000, VIRTIO);
	hole(VIRTIO, IMSIC);		/* no device was added */
	hole(IMSIC + 0x1000ul * n, RAM);
	for (a = 0; a < RAM; a += 64ul << 20)
		if (a != UART && a != IMSIC)
			hole(a + 0x800000, a + 0x1000000);
	hole(RAM + shared.arg[1] + 0x10000, 1ul << 40);

	device(UART, 8);
	device(RTC, 0x20);
	device(APLIC, 0x10);
	device(APLIC + 0x1bc0, 0x20);
	device(APLIC + 0x1c00, 0x400);
	device(APLIC + 0x3000, 0x40);
	device(IMSIC, 0x20);
	read_all(DOORBELL, 1);
	for (a = DOORBELL + 0x10; a < DOORBELL + 0x1000; a += 0x20)
		write_all(a, ~0ul);
	CHECK_EQ(R32(DOORBELL + VMM_GUEST_MAGIC), VMM_GUEST_MAGIC_VALUE);
	return 0;
}
