/* SPDX-License-Identifier: MIT */
/*
 * isa.h - which ISA extensions a guest has, and how they are written.
 *
 * A set is a bitmap in the order of enum KVM_RISCV_ISA_EXT_ID.
 */
#ifndef RISCV_ISA_H
#define RISCV_ISA_H

#include "../core/error.h"

#define ISA_WORDS	2

struct isa {
	uint64_t	bit[ISA_WORDS];
};

enum { ISA_A = 0, ISA_D = 2, ISA_F = 3, ISA_H = 4, ISA_I = 5, ISA_SVPBMT = 7, ISA_SSTC = 8,
       ISA_ZICBOM = 11, ISA_ZICBOZ = 12, ISA_SSAIA = 14, ISA_V = 15, ISA_ZICSR = 20,
       ISA_ZIFENCEI = 21, ISA_ZICBOP = 71 };

int isa_has(const struct isa *isa, unsigned int ext);

/* What a fresh vCPU has: all that KVM can give it. */
int isa_of_vcpu(int vcpu, struct isa *out, struct vmm_error *err);

/*
 * Apply config.isa to what the host has: VMM_EINVAL for what is no extension
 * (named), VMM_ENOTSUP for one that this host lacks.  spec may be NULL.
 */
int isa_choose(const char *spec, const struct isa *host, struct isa *out, struct vmm_error *err);

/* Switch off on a vCPU that has not run what is in host but not in want.  What
   KVM cannot switch off stays on. */
int isa_apply(int vcpu, const struct isa *host, const struct isa *want, struct vmm_error *err);

/* "rv64imafdcv_sstc_zba": single letters in canonical order, then the others
   in KVM's.  Cut off where buf ends. */
void isa_string(const struct isa *isa, char *buf, size_t cap);

/* The names one after the other, each with its zero, as the device tree's
   riscv,isa-extensions has them.  Returns the bytes, or 0 if cap is too small. */
size_t isa_list(const struct isa *isa, char *buf, size_t cap);

#endif
