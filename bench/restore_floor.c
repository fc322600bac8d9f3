/* SPDX-License-Identifier: MIT */
/*
 * restore_floor.c - what a machine cannot do without, by the shortest way: bare
 * ioctls that make a VM, a vCPU, its interrupt controller (see riscv/aia.c) and a
 * slot, and two instructions.
 */
#include <err.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "restore.h"

static int request(int fd, unsigned long what, void *arg)
{
	int r = ioctl(fd, what, arg);

	if (r < 0)
		err(1, "ioctl 0x%lx", what);
	return r;
}

static void attr(int dev, uint32_t group, uint64_t which, uint64_t value)
{
	struct kvm_device_attr a = { .group = group, .attr = which, .addr = (uintptr_t)&value };

	request(dev, KVM_SET_DEVICE_ATTR, &a);
}

uint8_t *floor_ram(uint64_t size)
{
	/* li a0, 1; ecall: an SBI call that nobody knows */
	static const uint32_t code[] = { 0x090008b7, 0x00000073 };
	uint8_t *ram = mmap(NULL, size, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (ram == MAP_FAILED)
		err(1, "memory");
	memcpy(ram, code, sizeof(code));
	return ram;
}

double floor_program(uint8_t *ram, uint64_t size)
{
	struct kvm_userspace_memory_region slot = {
		.guest_phys_addr = 0x80000000, .memory_size = size, .userspace_addr = (uintptr_t)ram,
	};
	struct kvm_create_device aia = { .type = 11 };
	uint64_t pc = 0x80000000;
	struct kvm_one_reg reg = { 0x8030000002000000, (uintptr_t)&pc };
	double begin = now_us(), end;
	struct kvm_run *run;
	int kvm, vm, vcpu;
	size_t run_size;

	kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	vm = request(kvm, KVM_CREATE_VM, NULL);
	request(vm, KVM_SET_USER_MEMORY_REGION, &slot);
	vcpu = request(vm, KVM_CREATE_VCPU, NULL);
	run_size = (size_t)request(kvm, KVM_GET_VCPU_MMAP_SIZE, NULL);
	run = mmap(NULL, run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	request(vm, KVM_CREATE_DEVICE, &aia);
	attr((int)aia.fd, 0, 0, 0);		/* mode: interrupt files in memory */
	attr((int)aia.fd, 0, 1, 63);		/* identities */
	attr((int)aia.fd, 0, 2, 30);		/* sources */
	attr((int)aia.fd, 0, 5, 0);		/* bits of a hart's number */
	attr((int)aia.fd, 1, 0, 0x0d000000);	/* APLIC */
	attr((int)aia.fd, 1, 1, 0x28000000);	/* interrupt file of hart 0 */
	attr((int)aia.fd, 2, 0, 0);		/* that is all */
	request(vcpu, KVM_SET_ONE_REG, &reg);
	request(vcpu, KVM_RUN, NULL);
	end = now_us();
	if (run->exit_reason != 35)
		errx(1, "floor: exit %u", run->exit_reason);
	munmap(run, run_size);
	close((int)aia.fd);
	close(vcpu);
	close(vm);
	close(kvm);
	return end - begin;
}
