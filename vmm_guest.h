/* SPDX-License-Identifier: MIT */
/*
 * vmm_guest.h - the guest's side of what a machine offers beyond its devices.
 *
 * The doorbell.  Ringing it gives the host program an event, VMM_EV_DOORBELL,
 * with the value rung (vmm.h).  A kernel or bare-metal guest makes an SBI call;
 * a process maps the page at VMM_GUEST_DOORBELL (/dev/mem, or the device tree
 * node "vmm,doorbell" through UIO) and writes 4 or 8 bytes.
 *
 *	register int64_t a0 __asm__("a0") = value;
 *	register int64_t a6 __asm__("a6") = VMM_GUEST_SBI_RING;
 *	register int64_t a7 __asm__("a7") = VMM_GUEST_SBI;
 *	__asm__ volatile("ecall" : "+r"(a0) : "r"(a6), "r"(a7) : "a1", "memory");
 *
 * The exit register ends the machine as a power-off does, and its value is that
 * of VMM_EV_SHUTDOWN.
 *
 * Shell scripts have vmm-guest(1) for all of this.
 */
#ifndef VMM_GUEST_H
#define VMM_GUEST_H

#include <stdint.h>

#define VMM_GUEST_DOORBELL	0x10002000	/* guest-physical, one page */
#define VMM_GUEST_RING		0x00		/* write: ring with this value */
#define VMM_GUEST_EXIT		0x08		/* write: power off with this exit code */
#define VMM_GUEST_MAGIC		0x10		/* reads as VMM_GUEST_MAGIC_VALUE */
#define VMM_GUEST_MAGIC_VALUE	0x676d6d76	/* "vmmg" */

/* The real-time clock, a goldfish RTC: nanoseconds since 1970, at 0 the lower half,
   whose reading keeps the upper half for 4.  The host's time, whatever became of
   the guest's own clocks. */
#define VMM_GUEST_RTC		0x10001000

#define VMM_GUEST_SBI		0x09000000	/* extension id, in a7 */
#define VMM_GUEST_SBI_RING	0		/* function id, in a6; a0: the value */
#define VMM_GUEST_SBI_EXIT	1		/* a0: the exit code */

#endif
