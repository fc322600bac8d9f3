// SPDX-License-Identifier: MIT

//go:build vmmfake

// Package fakekvm chooses what guests of the fake KVM do (tests/unit/fake_kvm.h),
// for tests of package vmm; make check-go links them with it.
package fakekvm

/*
#cgo pkg-config: vmm
#include <errno.h>
#include <stdint.h>
#include <string.h>
#include "tests/unit/fake_kvm.h"
#include "vmm_guest.h"

static uint64_t guest_value;

static int spins(struct fake_vcpu *v)
{
	(void)v;
	return FAKE_SPIN;
}

static int rings(struct fake_vcpu *v)
{
	if (v->step++)
		return FAKE_SPIN;
	return fake_sbi(v, VMM_GUEST_SBI, VMM_GUEST_SBI_RING,
			__atomic_load_n(&guest_value, __ATOMIC_RELAXED), 0, 0);
}

static int floods(struct fake_vcpu *v)
{
	return fake_sbi(v, VMM_GUEST_SBI, VMM_GUEST_SBI_RING, v->step++, 0, 0);
}

static int ends(struct fake_vcpu *v)
{
	return fake_sbi(v, VMM_GUEST_SBI, VMM_GUEST_SBI_EXIT,
			__atomic_load_n(&guest_value, __ATOMIC_RELAXED), 0, 0);
}

static int fails(struct fake_vcpu *v)
{
	(void)v;
	return -EFAULT;
}

static int strays(struct fake_vcpu *v)
{
	return fake_read(v, 0x1000, 4);
}

static const fake_guest guests[] = { spins, rings, floods, ends, fails, strays };

static void set_guest(int i, uint64_t value)
{
	__atomic_store_n(&guest_value, value, __ATOMIC_RELAXED);
	fake.guest = guests[i];
}

static void set_open_errno(int e)
{
	fake.open_errno = e;
}

static int no_memory(const char *function)
{
	return strcmp(function, "kvm_vcpu") ? 0 : ENOMEM;
}

static void set_no_memory(void)
{
	fake.fault = no_memory;
}

static void set_poor(void)
{
	fake.isa[0] = fake.isa_fixed[0];
	fake.isa[1] = fake.isa_fixed[1];
}

static void set_no_aia(void)
{
	fake.aia = 0;
}
*/
import "C"

import "syscall"

// Guest is what guests do that are made from now on.
type Guest int

// Guests, with a value.
const (
	Spins  Guest = iota // nothing, for ever
	Rings               // ring the doorbell with the value, once
	Floods              // ring it again and again
	Ends                // power off with the value
	Fails               // make the host side fail
	Strays              // read where nothing is, which the log tells
)

// Reset makes the host a good one again.  There must be no machines.
func Reset() { C.fake_reset(); SetGuest(Spins, 0) }

// SetGuest chooses what guests do.
func SetGuest(g Guest, value uint64) { C.set_guest(C.int(g), C.uint64_t(value)) }

// NoKVM makes opening /dev/kvm fail; 0: no more.
func NoKVM(e syscall.Errno) { C.set_open_errno(C.int(e)) }

// NoMemory makes it that there is no memory for a vCPU, until Reset.
func NoMemory() { C.set_no_memory() }

// Poor takes away every extension that may be missing, until Reset.
func Poor() { C.set_poor() }

// NoAIA takes the interrupt controller away, until Reset.
func NoAIA() { C.set_no_aia() }

// Violation describes the first thing that KVM would not have liked; empty: none.
func Violation() string {
	if C.fake.violations == 0 {
		return ""
	}
	return C.GoString(&C.fake.violation[0])
}
