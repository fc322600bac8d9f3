/* SPDX-License-Identifier: MIT */
/*
 * start.S - where harts begin, and where they trap.
 *
 * RAM is all zeroes before the guest is loaded, so .bss needs no clearing.  tp
 * holds the hart id; each hart has a stack of STACK bytes.
 */
#define STACK		8192
#define FRAME		272		/* struct frame, a multiple of 16 */

	.macro	setup
	.option	push
	.option	norelax
	lla	gp, __global_pointer$
	.option	pop
	mv	tp, a0
	li	t0, STACK
	addi	t1, a0, 1
	mul	t0, t0, t1
	lla	sp, stacks
	add	sp, sp, t0
	lla	t0, trap_entry
	csrw	stvec, t0
	.endm

	.section .text.start, "ax"
	.globl	_start
_start:					/* a0: hart, a1: device tree */
	setup
	call	guest_main

	.globl	secondary
	.balign	4
secondary:				/* a0: hart, a1: as given to HSM */
	setup
	mv	a0, a1
	call	guest_secondary

	.balign	4
	.globl	trap_entry
trap_entry:
	addi	sp, sp, -FRAME
	.irp	n, 1,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
	sd	x\n, 8*\n(sp)
	.endr
	addi	t0, sp, FRAME
	sd	t0, 8*2(sp)
	csrr	t0, sepc
	sd	t0, 8*32(sp)
	mv	a0, sp
	call	guest_trap
	ld	t0, 8*32(sp)
	csrw	sepc, t0
	.irp	n, 1,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
	ld	x\n, 8*\n(sp)
	.endr
	addi	sp, sp, FRAME
	sret

	.section .bss.stacks, "aw", @nobits
	.balign	16
stacks:
	.space	64 * STACK
