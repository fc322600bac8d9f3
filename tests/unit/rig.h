/* SPDX-License-Identifier: MIT */
/*
 * rig.h - a machine on the fake KVM, for tests of what is in it.
 */
#ifndef UNIT_RIG_H
#define UNIT_RIG_H

#include "../../core/machine.h"
#include "../../riscv/aia.h"
#include "../../riscv/host.h"
#include "../../riscv/map.h"
#include "../../riscv/platform.h"
#include "../../vmm_guest.h"
#include "fake_kvm.h"
#include "unit.h"

#define RIG_RAM		(4ull << 20)

static inline void rig_no_violations(void)
{
	if (fake.violations)
		fail_msg("%u things KVM would not like; first: %s", fake.violations,
			 fake.violation);
}

static inline void rig_make(struct machine *m, uint32_t vcpus, uint32_t irqchip)
{
	const struct log log = { NULL, NULL };
	struct vmm_error err;

	assert_ok(machine_init(m, "rig", &log, &err));
	m->arch_exit = riscv_exit;
	assert_ok(mem_init(&m->mem, MAP_RAM, RIG_RAM, &err));
	m->kvm = host_open(&err);
	assert_true(m->kvm >= 0);
	m->vm = kvm_vm(m->kvm);
	assert_true(m->vm >= 0);
	assert_int_equal(kvm_slot(m->vm, 0, m->mem.gpa, m->mem.size + MEM_TAIL, m->mem.hva), 0);
	assert_ok(vcpus_create(m, vcpus, &err));
	assert_ok(aia_create(m, irqchip, NULL, &err));
	fake.logged = 0;
}

static inline void rig_free(struct machine *m)
{
	vcpus_stop(m);
	loop_stop(&m->loop);
	machine_fini(m);
	rig_no_violations();
}

/* Register accesses, as vCPU threads make them. */
static inline uint64_t rig_read(struct machine *m, uint64_t gpa, unsigned int len)
{
	uint64_t v = 0;

	loop_lock(&m->loop);
	bus_read(&m->bus, gpa, len, &v);
	loop_unlock(&m->loop);
	return v;
}

static inline void rig_write(struct machine *m, uint64_t gpa, unsigned int len, uint64_t v)
{
	loop_lock(&m->loop);
	bus_write(&m->bus, gpa, len, v);
	loop_unlock(&m->loop);
}

/* What a device saves; free() what it points to. */
static inline struct writer rig_save(struct device *d)
{
	struct writer w = { 0 };

	d->ops->save(d, &w);
	assert_int_equal(w.failed, 0);
	return w;
}

static inline int rig_load(struct machine *m, struct device *d, const void *data, size_t len,
			   struct vmm_error *err)
{
	struct reader r = { data, len, 0 };
	int rc;

	loop_lock(&m->loop);
	rc = d->ops->load(d, &r, err);
	loop_unlock(&m->loop);
	return rc;
}

static inline void rig_reset(struct machine *m, struct device *d)
{
	loop_lock(&m->loop);
	d->ops->reset(d);
	loop_unlock(&m->loop);
}

/* ---- Machines by the public interface ----------------------------------------- */

static int rig_kernel;		/* descriptor of the least that is a kernel */

/* Before and after a test. */
static inline int rig_setup(void **state)
{
	uint8_t image[4096] = { 0 };

	(void)state;
	fake_reset();
	memcpy(image + 48, "RISCV", 5);
	memcpy(image + 56, "RSC\x05", 4);
	rig_kernel = file_of(image, sizeof(image));
	return 0;
}

static inline int rig_teardown(void **state)
{
	(void)state;
	close(rig_kernel);
	rig_no_violations();
	return 0;
}

/* A guest that rings with 7, once, and spins. */
static inline int rig_rings(struct fake_vcpu *v)
{
	return v->step ? FAKE_SPIN :
	       fake_sbi(v, VMM_GUEST_SBI, VMM_GUEST_SBI_RING, v->step++ + 7, 0, 0);
}

/* A small machine whose guests do what fake.guest says. */
static inline struct vmm *rig_vmm(uint32_t vcpus)
{
	struct vmm_config cfg = VMM_CONFIG_INIT;
	struct vmm_error err;
	struct vmm *vm;

	cfg.kernel_fd = rig_kernel;
	cfg.vcpus = vcpus;
	cfg.memory = 4u << 20;
	assert_ok(vmm_create(&vm, &cfg, &err));
	return vm;
}

/* What is in it: a struct vmm begins with its struct machine. */
static inline struct machine *rig_inside(struct vmm *vm)
{
	return (struct machine *)(void *)vm;
}

/* The next event is of this type, and comes within seconds. */
static inline struct vmm_event rig_event(struct vmm *vm, uint32_t type)
{
	struct vmm_error err;
	struct vmm_event ev;

	assert_ok(vmm_wait(vm, 20000, &ev, &err));
	if (ev.type != type)
		fail_msg("event %u (%s), not %u", ev.type, ev.detail, type);
	return ev;
}

#endif
