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
	uint64_t	compare;		/* when the timer is due */
	uint32_t	mp_state;
};

/*
 * Loading goes in steps, since KVM wants things in an order (of all harts: the
 * first step, then the next).  hart_begin() reads what begins a saved state;
 * the reader then stands at the registers.
 */
int hart_begin(struct reader *r, struct hart_config *c, struct vmm_error *err);

/* What this host gives to a fresh vCPU, each alike. */
#define HART_FRESH	32u
struct hart_host {
	struct isa	isa;
	uint64_t	sbi, machine[3];
	uint64_t	block[3];
	uint64_t	satp, vlenb, hz;
	struct { uint64_t id, value; } fresh[HART_FRESH];	/* registers not zero for certain */
	uint32_t	nfresh;
};

int hart_host(struct vcpu *v, struct hart_host *out, struct vmm_error *err);

/* Can a vCPU saved elsewhere go on here?  Asks nobody and changes nothing;
   VMM_EVERSION names what this host lacks or has otherwise. */
int hart_fits(const struct hart_config *c, const struct hart_host *host, struct vmm_error *err);

/* 1: fresh vCPU, before anything else, if it fits. */
int hart_configure(struct vcpu *v, const struct hart_config *c, const struct hart_host *host,
		   struct vmm_error *err);

/* 2: registers that are not as on a fresh vCPU, and whether it is stopped. */
int hart_load(struct vcpu *v, const struct hart_config *c, const struct hart_host *host,
	      struct reader *r, struct vmm_error *err);

/* 3: behind the interrupt controller, and when the guest's time has been set, by
   which KVM counts how long it is till then: the timer. */
int hart_set_timer(struct vcpu *v, const struct hart_config *c, struct vmm_error *err);

/*
 * Guest time, in ticks, which all harts share: it is set once, when the machine
 * is about to run.
 */
uint64_t hart_time(struct vcpu *v);
int hart_set_time(struct vcpu *v, uint64_t time, struct vmm_error *err);

#endif
