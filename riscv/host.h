/* SPDX-License-Identifier: MIT */
/*
 * host.h - what this host's KVM can do.
 */
#ifndef RISCV_HOST_H
#define RISCV_HOST_H

#include "../core/machine.h"

/* Open KVM and check that it has what every machine needs: the descriptor, or
   VMM_ENOKVM, VMM_ENOTSUP naming what is missing. */
int host_open(struct vmm_error *err);

/* vmm_probe(): by making a machine of one vCPU, and taking it apart. */
int host_probe(struct vmm_host *out, struct vmm_error *err);

/* Configure a new vCPU as every vCPU of ours is: SBI extensions. */
int host_setup_vcpu(int vcpu, struct vmm_error *err);

/* The SBI debug console, for a vCPU that has not run: off unless asked for. */
int host_debug_console(int vcpu, struct vmm_error *err);

#endif
