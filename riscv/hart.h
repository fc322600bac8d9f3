/* SPDX-License-Identifier: MIT */
/*
 * hart.h - the state of a vCPU: every register that KVM lists.
 */
#ifndef RISCV_HART_H
#define RISCV_HART_H

#include "../core/machine.h"
#include "../core/state.h"
#include "isa.h"

#define HART_VERSION	1	/* of what hart_save() writes */

/* Append the state of a vCPU that is out of the guest. */
int hart_save(struct vcpu *v, struct writer *w, struct vmm_error *err);

/*
 * True if another hart has asked for this one to start (SBI HSM) and KVM has
 * not yet set its registers: then they say nothing, and it must run first.
 */
int hart_starting(struct vcpu *v);

/* What a saved vCPU is built with, and needs of its host. */
struct hart_config {
	struct isa	isa;
	uint64_t	sbi;			/* extensions that are on */
	uint64_t	machine[3];		/* mvendorid, marchid, mimpid */
	uint64_t	block[3];		/* cache blocks: zicbom, zicboz, zicbop */
	uint64_t	satp, vlenb, hz;
	uint64_t	compare, timer_on;
	uint32_t	mp_state;
};

/*
 * Loading goes in steps, since KVM wants things in an order (of all harts: the
 * first step, then the next).  hart_begin() reads what begins a saved state;
 * the reader then stands at the registers.
 */
int hart_begin(struct reader *r, struct hart_config *c, struct vmm_error *err);

/* 1: fresh vCPU, before anything else: VMM_EVERSION names what this host lacks
   or has otherwise. */
int hart_configure(struct vcpu *v, const struct hart_config *c, struct vmm_error *err);

/* 2: registers, and whether it is stopped. */
int hart_load(struct vcpu *v, const struct hart_config *c, struct reader *r,
	      struct vmm_error *err);

/* 3: behind the interrupt controller: the timer. */
int hart_set_timer(struct vcpu *v, const struct hart_config *c, struct vmm_error *err);

/*
 * Guest time, in ticks, which all harts share: it is set once, last, when the
 * machine is about to run.
 */
uint64_t hart_time(struct vcpu *v);
int hart_set_time(struct vcpu *v, uint64_t time, struct vmm_error *err);

#endif
