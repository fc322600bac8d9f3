/* SPDX-License-Identifier: MIT */
/*
 * test_snapregs.c - the registers that this host's KVM lists are those we know.
 *
 * A register of a kind that is saved as it is, by its id (riscv/hart.c), needs no
 * change when there is one more of them; but somebody has to look at each new kind,
 * for the order it is loaded in, and what it depends on.  So one that is neither on
 * the list of what is saved nor on that of what need not be fails the test.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "../../riscv/regs.h"
#include "kvmtest.h"

#define MAX_REGS 1024u

static const struct kind {
	uint64_t	type, first, last;	/* of the id: bits 31:24, and 23:0 */
	const char	*what;
} kinds[] = {
	/* Saved by name, and compared with the host that restores. */
	{ 1, 1, 1, "zicbom block size" },
	{ 1, 2, 4, "machine ids" },
	{ 1, 5, 5, "zicboz block size" },
	{ 1, 6, 6, "satp mode" },
	{ 1, 7, 7, "zicbop block size" },
	{ 7, 0, 0xffff, "ISA extensions" },
	{ 8, 0, 13, "SBI extensions, up to MPXY" },
	{ 9, 4, 4, "vlenb" },
	{ 4, 0, 0, "timer frequency" },
	{ 4, 1, 1, "guest time, once for the machine" },
	{ 4, 2, 3, "timer" },
	/* Saved as they are. */
	{ 2, 0, 32, "pc, x1 to x31, mode" },
	{ 3, 0, 10, "sstatus to senvcfg" },
	{ 3, 0x10000, 0x10006, "siselect, iprio" },
	{ 3, 0x20000, 0x20000, "sstateen0" },
	{ 6, 0, 32, "floating point, double" },
	{ 9, 0, 3, "vstart, vl, vtype, vcsr" },
	{ 9, 6, 37, "v0 to v31" },
	{ 10, 0, 1, "steal time: its memory" },
	{ 10, 0x10000, 0x100ff, "firmware features" },
	/* Need not be. */
	{ 1, 0, 0, "isa: ISA extensions once more" },
	{ 5, 0, 32, "floating point, single: the same registers as double" },
};

static const struct kind *kind_of(uint64_t id)
{
	uint64_t n = id & 0xffffff;
	size_t i;

	for (i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++)
		if (kinds[i].type == REG_TYPE(id) && n >= kinds[i].first && n <= kinds[i].last)
			return &kinds[i];
	return NULL;
}

static void known(void)
{
	struct kvm_reg_list *list = calloc(1, sizeof(*list) + MAX_REGS * 8);
	int kvm, vm, vcpu;
	uint64_t i;

	test_host();
	kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	CHECK(kvm >= 0);
	vm = ioctl(kvm, KVM_CREATE_VM, 0);
	CHECK(vm >= 0);
	vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
	CHECK(vcpu >= 0);
	list->n = MAX_REGS;
	if (ioctl(vcpu, KVM_GET_REG_LIST, list) < 0)
		test_fail("KVM_GET_REG_LIST: %s", strerror(errno));
	for (i = 0; i < list->n; i++)
		if (!kind_of(list->reg[i]))
			test_fail("register 0x%llx is new: see tests/kvm/test_snapregs.c",
				  (unsigned long long)list->reg[i]);
	test_note("%llu registers", (unsigned long long)list->n);
	free(list);
}

int main(int argc, char **argv)
{
	static const struct test_case cases[] = { { "registers", known, 0, 0 } };

	return test_main(argc, argv, cases, 1);
}
