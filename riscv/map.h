/* SPDX-License-Identifier: MIT */
/*
 * map.h - where things are in a guest's physical address space.
 *
 * Part of the snapshot format: what is here stays where it is.  RAM is one
 * memslot, so everything the guest finds below it is a device.
 */
#ifndef RISCV_MAP_H
#define RISCV_MAP_H

#define MAP_APLIC	0x0d000000ull
#define MAP_APLIC_SIZE	0x4000ull
#define MAP_UART	0x10000000ull
#define MAP_RTC		0x10001000ull
#define MAP_DOORBELL	0x10002000ull
#define MAP_VIRTIO	0x10008000ull	/* device n at + n * 0x1000 */
#define MAP_IMSIC	0x28000000ull	/* hart n at + n * 0x1000 */
#define MAP_RAM		0x80000000ull

/*
 * Wired interrupts.  Linux gives each one interrupt identity of its own on one
 * hart, after the one for IPIs, and KVM's interrupt files in memory keep only
 * identities below 32 (kernels before 7.3): so there are no more than 30.
 */
#define IRQ_UART	1u
#define IRQ_RTC		2u
#define IRQ_GENID	3u
#define IRQ_VIRTIO	4u		/* device n is + n */
#define IRQ_LAST	30u

#define VIRTIO_MAX	(IRQ_LAST - IRQ_VIRTIO + 1)

#endif
