/* SPDX-License-Identifier: MIT */
/*
 * fake_kvm.h - a KVM for tests: core/kvm.h without a kernel behind it.
 *
 * A test sets up what the host is and what its guests do (struct fake), then
 * uses the library as ever.  A guest is a function that is called on its
 * vCPU's thread, inside KVM_RUN, and says what happens next:
 *
 *	static int guest(struct fake_vcpu *v)
 *	{
 *		switch (v->step++) {
 *		case 0:
 *			return fake_sbi(v, VMM_GUEST_SBI, VMM_GUEST_SBI_RING, 7, 0, 0);
 *		default:
 *			return FAKE_SPIN;
 *		}
 *	}
 *
 * Descriptors are real ones, so that a leak is seen.  What KVM would not like,
 * but no return value tells, is counted in fake.violations, and the first of
 * them is described.
 */
#ifndef UNIT_FAKE_KVM_H
#define UNIT_FAKE_KVM_H

#include <pthread.h>

#include "../../core/kvm.h"

/* What a guest does next, beside failing KVM_RUN with -errno. */
enum {
	FAKE_EXIT	= 0,	/* v->run says why the guest is left */
	FAKE_SPIN	= 1,	/* goes round in a loop until it is kicked */
	FAKE_AGAIN	= 2,	/* is called again at once, unless kicked */
	FAKE_NAP	= 3	/* is called again in a millisecond, unless kicked */
};

struct fake_vm;

struct fake_vcpu {
	struct fake_vm	*vm;
	uint32_t	id;
	int		fd;
	struct kvm_run	*run;
	/* The guest's, for its script. */
	uint64_t	step;
	uint64_t	value;		/* what its last MMIO or CSR read gave */
	uint64_t	ret[2];		/* what its last SBI call gave */
	/* Exits made, and how many of them a later KVM_RUN has completed. */
	uint64_t	begun, completed;
	uint64_t	runs, kicked;	/* KVM_RUNs, and those ended by a signal */
	int		unfinished;	/* begun, to be completed */
	uint64_t	fences;		/* errands that began with SFENCE.VMA */
};

typedef int (*fake_guest)(struct fake_vcpu *v);

/* A write that reached the AIA, in order; FAKE_LINE: KVM_IRQ_LINE. */
#define FAKE_LINE	100u
struct fake_record {
	uint32_t	group;
	uint64_t	attr, value;
};

extern struct fake {
	/* The host. */
	int		native;		/* kvm_native() */
	int		version;
	int		open_errno;	/* of /dev/kvm; 0: it opens */
	int		missing_cap;	/* a capability that is not there */
	int		stock;		/* VMs may be made ahead (core/stock.h) */
	int		aia;		/* there is an in-kernel AIA */
	int		hgei;		/* guest interrupt files of a CPU */
	int		narrow;		/* files in memory are 32 bits wide */
	uint64_t	isa[2], isa_fixed[2];	/* extensions; not to be switched off */
	uint64_t	hz, satp, vlenb, block;
	/* Its guests: of VMs that are made from now on. */
	fake_guest	guest;		/* NULL: they spin */
	void		*arg;
	int		boot_all;	/* no hart waits to be started */
	/* Asked at every call; not 0: the call fails with this errno. */
	int		(*fault)(const char *function);
	/* What happened. */
	unsigned int	vms;		/* were made */
	unsigned int	violations;
	char		violation[120];
	struct fake_record log[1024];
	unsigned int	logged;
} fake;

/* Back to a host with everything.  Machines must be gone. */
void fake_reset(void);

/* The VM that was made last; its vCPU, or NULL. */
struct fake_vm *fake_vm(void);
struct fake_vcpu *fake_vcpu(struct fake_vm *vm, uint32_t id);

/* Rising edges of a wired line so far, and the level it has. */
unsigned int fake_pulses(struct fake_vm *vm, uint32_t line);
int fake_level(struct fake_vm *vm, uint32_t line);

/* The descriptor of its interrupt controller, or 0. */
int fake_aia(struct fake_vm *vm);

/* The memslot: 0 if there is none. */
uint64_t fake_slot(struct fake_vm *vm, uint64_t *gpa, void **hva);

/* A register of a vCPU, whatever it is doing. */
uint64_t fake_reg(struct fake_vcpu *v, uint64_t id);

/* What a guest does to its own hart: takes interrupt id, if it is pending (1); with its
   handler at work interrupts are off, else on (sstatus.SIE). */
int fake_claim(struct fake_vcpu *v, uint32_t id);
void fake_interrupts(struct fake_vcpu *v, int on);

/* ---- What guests do; each returns what the guest's function returns ------- */

int fake_write(struct fake_vcpu *v, uint64_t gpa, uint32_t len, uint64_t value);
int fake_read(struct fake_vcpu *v, uint64_t gpa, uint32_t len);
int fake_sbi(struct fake_vcpu *v, uint64_t ext, uint64_t fn, uint64_t a0, uint64_t a1,
	     uint64_t a2);
int fake_csr(struct fake_vcpu *v, uint64_t csr);
/* type: KVM_SYSTEM_EVENT_*, reason as in SBI 2.0, 10.1. */
int fake_system(struct fake_vcpu *v, uint32_t type, uint64_t reason);
/* Start another hart (SBI HSM). */
void fake_hart_start(struct fake_vm *vm, uint32_t id);

#endif
