/* SPDX-License-Identifier: MIT */
/*
 * forbidden.c - a guest that does what it should not; arg[0] says what.
 *
 * What becomes of it is for the host program to say: some of these things end
 * the guest, others are traps that it gets over and leaves with exit code 7.
 */
#include "lib/guest.h"

static unsigned int traps;

/* Step over whatever it was: 2 or 4 bytes. */
static int step(struct frame *f, uint64_t cause, uint64_t value)
{
	(void)cause;
	(void)value;
	traps++;
	if (f->pc < RAM)
		quit(7);
	f->pc += (R16(f->pc) & 3) == 3 ? 4 : 2;
	return 1;
}

static void jump(uint64_t to)
{
	((void (*)(void))(uintptr_t)to)();
}

int main(void)
{
	uint64_t v = 0, hole = 0x50000000ul;

	on_exception = step;
	switch (shared.arg[0]) {
	case 0:				/* instructions from a hole */
		jump(hole);
		break;
	case 1:				/* from a device */
		jump(UART);
		break;
	case 2:				/* a trap vector in a hole */
		CSR_WRITE(stvec, hole);
		__asm__ volatile("unimp");
		break;
	case 3:				/* a trap vector that traps, for ever */
		CSR_WRITE(stvec, RAM + (8ul << 20));
		__asm__ volatile("unimp");
		break;
	case 4:				/* atomics on a device */
		__asm__ volatile("amoadd.w %0, %1, (%2)" : "=r"(v) : "r"(1ul), "r"(UART) : "memory");
		break;
	case 5:				/* and reservations */
		__asm__ volatile("lr.w %0, (%1)" : "=r"(v) : "r"(hole) : "memory");
		break;
	case 6:
		__asm__ volatile("sc.w %0, %1, (%2)" : "=r"(v) : "r"(1ul), "r"(hole) : "memory");
		break;
	case 7:				/* misaligned, in a hole, on a device */
		v = *(volatile uint32_t *)(hole + 1);
		break;
	case 8:
		*(volatile uint64_t *)(UART + 3) = 1;
		break;
	case 9:				/* across the end of RAM and what is behind */
		v = *(volatile uint64_t *)(RAM + shared.arg[1] + 65536 - 4);
		break;
	case 10:			/* floating point from a device */
		__asm__ volatile("csrs sstatus, %0\n.option push\n.option arch, +d\n"
				 "fld fa0, 0(%1)\n.option pop"
				 : : "r"(1ul << 13), "r"(hole) : "memory");
		break;
	case 11:			/* reset because of a failure */
		sbi(SBI_SRST, 0, 0, 1, 0);
		break;
	case 12:			/* the last hart stops: nobody is left */
		ring(1);
		sbi(SBI_HSM, 1, 0, 0, 0);
		break;
	case 13:			/* beyond all addresses */
		v = *(volatile uint64_t *)(1ul << 62);
		break;
	case 14:			/* the debug console with impossible buffers */
		CHECK(sbi(SBI_DBCN, 0, 16, hole, 0).error != 0);
		CHECK(sbi(SBI_DBCN, 0, 16, RAM - 8, 0).error != 0);
		CHECK(sbi(SBI_DBCN, 0, ~0ul, ~0ul, ~0ul).error != 0);
		CHECK(sbi(SBI_DBCN, 1, 4096, RAM + shared.arg[1] - 8, 0).error != 0);
		CHECK(sbi(SBI_DBCN, 1, 16, UART, 0).error != 0);
		CHECK_EQ(sbi(SBI_DBCN, 0, 0, RAM, 0).error, 0);
		CHECK(sbi(SBI_DBCN, 99, 0, 0, 0).error != 0);
		break;
	case 15:			/* SBI calls that nobody has */
		for (v = 0; v < 64; v++) {
			sbi(VMM_GUEST_SBI, 2 + v, v, v, v);
			sbi(0x08000000 + v, v, ~v, ~v, ~v);
			sbi(0x09000001 + v, v, ~v, ~v, ~v);
			sbi(0x0a000000 + v, v, ~v, ~v, ~v);
			sbi(SBI_SRST, 1 + v, v, v, v);
			sbi(SBI_HSM, 4 + v, v, v, v);
			sbi(SBI_TIME, 1 + v, v, v, v);
			sbi(SBI_HSM, 0, 1000 + v, v, v);
			sbi(SBI_SRST, 0, 3 + v, 0, 0);
		}
		break;
	default:
		return 1;
	}
	ring(2 + (traps ? 1 : 0));
	return 7;
}
