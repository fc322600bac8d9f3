/* SPDX-License-Identifier: MIT */
/*
 * kvm.h - the seam to the kernel: every KVM ioctl that is made is made here.
 *
 * Thin and typed, nothing more: no policy, no state.  Functions return 0 (or
 * a descriptor, or a capability's value) or -errno.  Tests put a fake behind
 * the same names, and so run everything above it on any machine.
 */
#ifndef CORE_KVM_H
#define CORE_KVM_H

#include <linux/kvm.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>

/* RISC-V's part of the ABI, for headers that are older or of another
   architecture (Documentation/virt/kvm/api.rst; arch/riscv uapi asm/kvm.h). */
#define KVM_EXIT_SBI		35
#define KVM_EXIT_CSR		36
#define KVM_DEV_AIA		11
#define KVM_MP_RUNNABLE		0u
#define KVM_MP_STOPPED		5u
#define KVM_MP_INIT		2u	/* set: the vCPU is as new */
#define KVM_CAP_MP_INIT		242	/* KVM_CAP_RISCV_MP_STATE_RESET: it can be set */

struct kvm_sbi_exit {		/* at the union of struct kvm_run */
	uint64_t	extension, function, args[6], ret[2];
};

struct kvm_csr_exit {
	uint64_t	csr, new_value, write_mask, ret;
};

/* Where the exit's own data is: the union behind apic_base. */
static inline void *kvm_exit_data(struct kvm_run *run)
{
	return &run->mmio;
}

int kvm_native(void);				/* built for the guest's architecture? */
int kvm_open(void);				/* /dev/kvm */
int kvm_version(int kvm);
int kvm_cap(int kvm_or_vm, int cap);
int kvm_enable(int vm, int cap);			/* KVM_ENABLE_CAP */

int kvm_vm(int kvm);
int kvm_slot(int vm, uint32_t slot, uint64_t gpa, uint64_t size, void *hva);

int kvm_vcpu(int vm, uint32_t id);
int kvm_run_map(int kvm, int vcpu, struct kvm_run **run, size_t *size);
void kvm_run_unmap(struct kvm_run *run, size_t size);
int kvm_run(int vcpu);				/* KVM_RUN */
int kvm_sigmask(int vcpu, const sigset_t *set);	/* in force inside KVM_RUN */
int kvm_mp_get(int vcpu, uint32_t *state);
int kvm_mp_set(int vcpu, uint32_t state);
int kvm_stats(int vcpu);			/* KVM_GET_STATS_FD */

/* The size of a register is in its id; value points to that many bytes. */
int kvm_reg_get(int vcpu, uint64_t id, void *value);
int kvm_reg_set(int vcpu, uint64_t id, const void *value);
/* list->n says how many fit; -E2BIG sets it to how many there are. */
int kvm_reg_list(int vcpu, struct kvm_reg_list *list);

int kvm_device(int vm, uint32_t type);		/* KVM_CREATE_DEVICE */
int kvm_attr_get(int dev, uint32_t group, uint64_t attr, void *value);
int kvm_attr_set(int dev, uint32_t group, uint64_t attr, const void *value);

int kvm_irq_line(int vm, uint32_t irq, int level);
int kvm_ioeventfd(int vm, uint64_t gpa, uint32_t len, uint64_t match, int fd, int on);

#endif
