/* SPDX-License-Identifier: MIT */
/*
 * call.h - a system call of RISC-V Linux, for programs in guests that may have no
 * C library.  Negative: -errno.
 */
#ifndef GUEST_CALL_H
#define GUEST_CALL_H

static long call(long nr, long a, long b, long c, long d, long e, long f)
{
	register long a0 __asm__("a0") = a, a1 __asm__("a1") = b, a2 __asm__("a2") = c;
	register long a3 __asm__("a3") = d, a4 __asm__("a4") = e, a5 __asm__("a5") = f;
	register long a7 __asm__("a7") = nr;

	__asm__ volatile("ecall" : "+r"(a0)
			 : "r"(a1), "r"(a2), "r"(a3), "r"(a4), "r"(a5), "r"(a7) : "memory");
	return a0;
}

#endif
