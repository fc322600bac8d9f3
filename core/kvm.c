/* SPDX-License-Identifier: MIT */
/*
 * kvm.c - the KVM ioctls: see kvm.h.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "kvm.h"

static int kvm_call(int fd, unsigned long request, const void *arg)
{
	int r = ioctl(fd, request, arg);

	return r < 0 ? -errno : r;
}

int kvm_native(void)
{
#if defined(__riscv) && __riscv_xlen == 64
	return 1;
#else
	return 0;
#endif
}

int kvm_open(void)
{
	int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);

	return fd < 0 ? -errno : fd;
}

int kvm_version(int kvm)
{
	return kvm_call(kvm, KVM_GET_API_VERSION, NULL);
}

int kvm_cap(int kvm_or_vm, int cap)
{
	return kvm_call(kvm_or_vm, KVM_CHECK_EXTENSION, (void *)(uintptr_t)cap);
}

int kvm_enable(int vm, int cap)
{
	struct kvm_enable_cap c = { .cap = (uint32_t)cap };

	return kvm_call(vm, KVM_ENABLE_CAP, &c);
}

int kvm_vm(int kvm)
{
	int vm;

	/* It takes the locks of all mappings, and gives up when a signal comes meanwhile. */
	do
		vm = kvm_call(kvm, KVM_CREATE_VM, NULL);
	while (vm == -EINTR);
	return vm;
}

int kvm_slot(int vm, uint32_t slot, uint64_t gpa, uint64_t size, void *hva)
{
	struct kvm_userspace_memory_region r = {
		.slot = slot,
		.guest_phys_addr = gpa,
		.memory_size = size,
		.userspace_addr = (uintptr_t)hva,
	};

	return kvm_call(vm, KVM_SET_USER_MEMORY_REGION, &r);
}

int kvm_vcpu(int vm, uint32_t id)
{
	return kvm_call(vm, KVM_CREATE_VCPU, (void *)(uintptr_t)id);
}

int kvm_run_map(int kvm, int vcpu, struct kvm_run **run, size_t *size)
{
	static int known;		/* atomic: the kernel's, once for all */
	int n = __atomic_load_n(&known, __ATOMIC_RELAXED);
	void *p;

	if (!n)
		n = kvm_call(kvm, KVM_GET_VCPU_MMAP_SIZE, NULL);
	if (n < 0)
		return n;
	__atomic_store_n(&known, n, __ATOMIC_RELAXED);
	p = mmap(NULL, (size_t)n, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	if (p == MAP_FAILED)
		return -errno;
	*run = p;
	*size = (size_t)n;
	return 0;
}

void kvm_run_unmap(struct kvm_run *run, size_t size)
{
	munmap(run, size);
}

int kvm_run(int vcpu)
{
	return kvm_call(vcpu, KVM_RUN, NULL);
}

int kvm_sigmask(int vcpu, const sigset_t *set)
{
	/* The kernel's sigset is 8 bytes, not glibc's 128. */
	union {
		struct kvm_signal_mask mask;
		uint8_t bytes[sizeof(struct kvm_signal_mask) + 8];
	} m;

	m.mask.len = 8;
	memcpy(m.bytes + offsetof(struct kvm_signal_mask, sigset), set, 8);
	return kvm_call(vcpu, KVM_SET_SIGNAL_MASK, &m);
}

int kvm_mp_get(int vcpu, uint32_t *state)
{
	struct kvm_mp_state mp = { 0 };
	int r = kvm_call(vcpu, KVM_GET_MP_STATE, &mp);

	*state = mp.mp_state;
	return r;
}

int kvm_mp_set(int vcpu, uint32_t state)
{
	struct kvm_mp_state mp = { .mp_state = state };

	return kvm_call(vcpu, KVM_SET_MP_STATE, &mp);
}

int kvm_stats(int vcpu)
{
	return kvm_call(vcpu, KVM_GET_STATS_FD, NULL);
}

int kvm_reg_get(int vcpu, uint64_t id, void *value)
{
	struct kvm_one_reg reg = { .id = id, .addr = (uintptr_t)value };

	return kvm_call(vcpu, KVM_GET_ONE_REG, &reg);
}

int kvm_reg_set(int vcpu, uint64_t id, const void *value)
{
	struct kvm_one_reg reg = { .id = id, .addr = (uintptr_t)value };

	return kvm_call(vcpu, KVM_SET_ONE_REG, &reg);
}

int kvm_reg_list(int vcpu, struct kvm_reg_list *list)
{
	return kvm_call(vcpu, KVM_GET_REG_LIST, list);
}

int kvm_device(int vm, uint32_t type)
{
	struct kvm_create_device d = { .type = type };
	int r = kvm_call(vm, KVM_CREATE_DEVICE, &d);

	return r < 0 ? r : (int)d.fd;
}

static int kvm_attr(int dev, unsigned long request, uint32_t group, uint64_t attr,
		    const void *value)
{
	struct kvm_device_attr a = { .group = group, .attr = attr, .addr = (uintptr_t)value };

	return kvm_call(dev, request, &a);
}

int kvm_attr_get(int dev, uint32_t group, uint64_t attr, void *value)
{
	return kvm_attr(dev, KVM_GET_DEVICE_ATTR, group, attr, value);
}

int kvm_attr_set(int dev, uint32_t group, uint64_t attr, const void *value)
{
	return kvm_attr(dev, KVM_SET_DEVICE_ATTR, group, attr, value);
}

int kvm_irq_line(int vm, uint32_t irq, int level)
{
	struct kvm_irq_level l = { .irq = irq, .level = (uint32_t)level };

	return kvm_call(vm, KVM_IRQ_LINE, &l);
}

int kvm_ioeventfd(int vm, uint64_t gpa, uint32_t len, uint64_t match, int fd, int on)
{
	struct kvm_ioeventfd io = {
		.addr = gpa,
		.len = len,
		.datamatch = match,
		.fd = fd,
		.flags = (uint32_t)((on ? 0 : KVM_IOEVENTFD_FLAG_DEASSIGN) |
				    KVM_IOEVENTFD_FLAG_DATAMATCH),
	};

	return kvm_call(vm, KVM_IOEVENTFD, &io);
}
