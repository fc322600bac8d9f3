/* SPDX-License-Identifier: MIT */
/*
 * host.c - asking KVM what it can do: see host.h.
 *
 * SBI extensions are chosen here, too.  The debug console is off in KVM unless
 * asked for, and asked for where there is a serial port.  Off are those whose state the kernel does not let us save (PMU),
 * and those that not every kernel knows (STA, SUSP, FWFT, MPXY): a guest that
 * never saw them can move to a host that lacks them.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "../core/uffd.h"
#include "aia.h"
#include "host.h"
#include "isa.h"
#include "map.h"
#include "regs.h"

static const struct {
	int		cap;
	const char	*name;
} host_caps[] = {
	{ KVM_CAP_USER_MEMORY,		"KVM_CAP_USER_MEMORY" },
	{ KVM_CAP_ONE_REG,		"KVM_CAP_ONE_REG" },
	{ KVM_CAP_MP_STATE,		"KVM_CAP_MP_STATE" },
	{ KVM_CAP_IMMEDIATE_EXIT,	"KVM_CAP_IMMEDIATE_EXIT" },
	{ KVM_CAP_IOEVENTFD,		"KVM_CAP_IOEVENTFD" },
};

int host_open(struct vmm_error *err)
{
	unsigned int i;
	int fd, v;

	if (!kvm_native())
		return fail(err, VMM_ENOKVM, "this host is no 64-bit RISC-V machine");
	fd = kvm_open();
	if (fd < 0) {
		fail_sys(err, -fd, "/dev/kvm");
		if (err)
			err->code = VMM_ENOKVM;
		return VMM_ENOKVM;
	}
	v = kvm_version(fd);
	if (v < 0) {
		close(fd);
		return fail(err, VMM_ENOKVM, "/dev/kvm: is not KVM (%s)", strerrorname_np(-v));
	}
	if (v != KVM_API_VERSION) {
		close(fd);
		return fail(err, VMM_ENOKVM, "/dev/kvm: API version %d, not %d", v,
			    KVM_API_VERSION);
	}
	for (i = 0; i < sizeof(host_caps) / sizeof(host_caps[0]); i++) {
		if (kvm_cap(fd, host_caps[i].cap) > 0)
			continue;
		close(fd);
		return fail(err, VMM_ENOTSUP, "/dev/kvm: this kernel lacks %s", host_caps[i].name);
	}
	return fd;
}

int host_setup_vcpu(int vcpu, struct vmm_error *err)
{
	const uint64_t off = 1u << SBI_PMU | 1u << SBI_STA | 1u << SBI_SUSP | 1u << SBI_FWFT |
			     1u << SBI_MPXY;
	int r;

	/* What a kernel does not know is passed over by it. */
	r = kvm_reg_set(vcpu, REG_SBI_OFF(0), &off);
	return r < 0 ? fail_sys(err, -r, "SBI extensions of a vCPU") : 0;
}

int host_debug_console(int vcpu, struct vmm_error *err)
{
	const uint64_t on = 1u << SBI_DBCN;
	int r = kvm_reg_set(vcpu, REG_SBI_ON(0), &on);

	return r < 0 ? fail_sys(err, -r, "SBI debug console of a vCPU") : 0;
}

static int host_look(struct machine *m, struct vmm_host *h, struct vmm_error *err)
{
	struct aia_choice aia = { 0 };
	uint64_t satp = 0, vlenb = 0;
	struct utsname u;
	struct isa isa;
	int rc, vcpu;

	m->kvm = host_open(err);
	if (m->kvm < 0)
		return m->kvm;
	m->vm = kvm_vm(m->kvm);
	if (m->vm < 0)
		return fail_sys(err, -m->vm, "KVM_CREATE_VM");
	rc = vcpus_create(m, 1, err);
	if (rc)
		return rc;
	vcpu = m->vcpu[0].fd;
	rc = isa_of_vcpu(vcpu, &isa, err);
	if (rc)
		return rc;
	rc = aia_create(m, VMM_IRQCHIP_DEFAULT, &aia, err);
	if (rc)
		return rc;
	rc = kvm_cap(m->kvm, KVM_CAP_MAX_VCPUS);
	h->max_vcpus = rc > 0 && (uint32_t)rc < VCPUS_MAX ? (uint32_t)rc : VCPUS_MAX;
	h->irqchip = aia.best;
	h->irqchips = aia.offered;
	h->irqchips_sound = aia.sound;
	rc = kvm_cap(m->vm, KVM_CAP_VM_GPA_BITS);
	h->gpa_bits = rc > 0 ? (uint32_t)rc : 0;
	kvm_reg_get(vcpu, CONFIG_SATP, &satp);
	h->satp_bits = satp >= 10 ? 57 : satp == 9 ? 48 : 39;
	if (isa_has(&isa, ISA_V))
		kvm_reg_get(vcpu, REG_VLENB, &vlenb);
	h->vlenb = (uint32_t)vlenb;
	kvm_reg_get(vcpu, TIMER_FREQUENCY, &h->timebase_hz);
	isa_string(&isa, h->isa, sizeof(h->isa));
	if (uname(&u) == 0)
		snprintf(h->kernel, sizeof(h->kernel), "%s", u.release);
	snprintf(h->note, sizeof(h->note), "%.180s%s", aia.note,
		 aia_narrow(m) ? "; interrupt identities from 32 on are lost in memory (not used)"
			       : "");
	return 0;
}

/* Whether RAM can be decoded when it is touched. */
static void host_lazy(struct vmm_host *h)
{
	int fd = uffd_open(), r = fd, memfd;

	if (fd >= 0) {
		memfd = memfd_create("vmm-probe", MFD_CLOEXEC);
		r = memfd < 0 ? -errno : uffd_can_watch(memfd);
		if (memfd >= 0)
			close(memfd);
		close(fd);
	}
	h->lazy = r >= 0;
	snprintf(h->lazy_note, sizeof(h->lazy_note), "%s", uffd_note(r));
}

int host_probe(struct vmm_host *out, struct vmm_error *err)
{
	const struct log nolog = { NULL, NULL };
	struct machine m;
	int rc;

	rc = machine_init(&m, "probe", &nolog, err);
	if (rc)
		return rc;
	rc = host_look(&m, out, err);
	host_lazy(out);
	machine_fini(&m);
	return rc;
}
