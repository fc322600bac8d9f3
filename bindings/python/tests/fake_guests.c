/* SPDX-License-Identifier: MIT */
/*
 * fake_guests.c - guests for the fake KVM (tests/unit/fake_kvm.h), chosen by name.
 *
 * With the library's objects, all but core/kvm.o, this makes a libvmm.so on which
 * machines live and die as on real KVM; conftest.py finds vmmpy_guest() in it.
 */
#include <errno.h>
#include <linux/kvm.h>
#include <string.h>

#include "../../../tests/unit/fake_kvm.h"
#include "../../../vmm_guest.h"

#define EXPORT __attribute__((visibility("default")))

static int spins(struct fake_vcpu *v)
{
	(void)v;
	return FAKE_SPIN;
}

static int rings(struct fake_vcpu *v)
{
	return v->step ? FAKE_SPIN :
	       fake_sbi(v, VMM_GUEST_SBI, VMM_GUEST_SBI_RING, v->step++ + 7, 0, 0);
}

/* Rings as often as it can. */
static int chatters(struct fake_vcpu *v)
{
	return fake_sbi(v, VMM_GUEST_SBI, VMM_GUEST_SBI_RING, v->step++, 0, 0);
}

static int exits(struct fake_vcpu *v)
{
	return fake_sbi(v, VMM_GUEST_SBI, VMM_GUEST_SBI_EXIT, 42, 0, 0);
}

/* Powers off a moment after it was started, when everybody waits. */
static int exits_later(struct fake_vcpu *v)
{
	return v->step++ < 200 ? FAKE_NAP : exits(v);
}

static int reboots(struct fake_vcpu *v)
{
	return fake_system(v, KVM_SYSTEM_EVENT_RESET, 0);
}

static int fails(struct fake_vcpu *v)
{
	(void)v;
	return -14;		/* EFAULT */
}

static const struct { const char *name; fake_guest guest; } guests[] = {
	{ "spins", spins }, { "rings", rings }, { "chatters", chatters }, { "exits", exits },
	{ "exits_later", exits_later }, { "reboots", reboots }, { "fails", fails },
};

/* Guests that are made from now on do this; -1: no such name. */
EXPORT int vmmpy_guest(const char *name);
EXPORT int vmmpy_guest(const char *name)
{
	unsigned int i;

	for (i = 0; i < sizeof(guests) / sizeof(guests[0]); i++)
		if (!strcmp(guests[i].name, name)) {
			fake_reset();
			fake.guest = guests[i].guest;
			return 0;
		}
	return -1;
}

/* The host has no extensions that may be missing; no interrupt controller. */
EXPORT void vmmpy_poor_host(void);
EXPORT void vmmpy_poor_host(void)
{
	fake.isa[0] = fake.isa_fixed[0];
	fake.isa[1] = fake.isa_fixed[1];
}

EXPORT void vmmpy_no_aia(void);
EXPORT void vmmpy_no_aia(void)
{
	fake.aia = 0;
}

/* No memory for a vCPU. */
static int no_memory(const char *function)
{
	return strcmp(function, "kvm_vcpu") ? 0 : ENOMEM;
}

EXPORT void vmmpy_no_memory(void);
EXPORT void vmmpy_no_memory(void)
{
	fake.fault = no_memory;
}

/* What KVM would not have liked, so far. */
EXPORT const char *vmmpy_violation(void);
EXPORT const char *vmmpy_violation(void)
{
	return fake.violations ? fake.violation : "";
}
