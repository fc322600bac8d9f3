/* SPDX-License-Identifier: MIT */
/*
 * aia.c - the in-kernel AIA as our interrupt controller: see aia.h.
 *
 * What KVM emulates is fixed: an APLIC in MSI mode, one S-level interrupt file
 * a hart, no guest files.  We choose how many sources and identities, where it
 * all lies, and whether the files are in memory or in the host's hardware:
 *
 *   EMUL	in memory: works everywhere, takes an exit for each access
 *   HWACCEL	in the host's guest interrupt files, of which a CPU has few
 *   AUTO	in hardware while one is free, else in memory
 *
 * A vCPU whose file is in hardware can miss the interrupt that should wake it: on
 * Linux 6.11 to 6.15 when its thread changes CPU, and on any where QEMU 10 is the CPU.
 * Nobody has tried another.  So EMUL is what a machine gets, and the others are there for
 * those who ask for them (docs/decisions/interrupt-files.md).  Before 7.3 a file in
 * memory keeps identities below 32 only (map.h).  A wired irqfd is never lowered, on
 * any kernel: lines are pulsed with KVM_IRQ_LINE.
 *
 * The guest can see and change: APLIC domaincfg, sourcecfg, target, setip,
 * setie and the inputs; IMSIC eie, eip, eithreshold, eidelivery of each hart.
 * All of that is saved, in the order in which it can be loaded (kvm: aia_aplic.c,
 * aia_imsic.c): inputs before sourcecfg, since a line that rises afterwards is
 * an edge; domaincfg last, since from then on messages flow.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <libfdt.h>

#include "aia.h"
#include "map.h"

/* arch/riscv/include/uapi/asm/kvm.h */
enum { AIA_CONFIG = 0, AIA_ADDR = 1, AIA_CTRL = 2, AIA_APLIC = 3, AIA_IMSIC = 4 };
enum { AIA_MODE = 0, AIA_IDS = 1, AIA_SRCS = 2, AIA_HART_BITS = 5 };
enum { AIA_MODE_EMUL = 0, AIA_MODE_HWACCEL = 1, AIA_MODE_AUTO = 2 };

#define AIA_NUM_IDS	63u		/* the fewest there can be */
#define AIA_NUM_SRCS	IRQ_LAST

/* APLIC registers (AIA specification, 4.5) and IMSIC ones (3.8). */
#define APLIC_DOMAINCFG	0x0000u
#define APLIC_SOURCECFG	0x0004u
#define APLIC_SETIP	0x1c00u
#define APLIC_INPUT	0x1d00u
#define APLIC_CLRIP	0x1d00u
#define APLIC_SETIE	0x1e00u
#define APLIC_CLRIE	0x1f00u
#define APLIC_TARGET	0x3004u
#define APLIC_TARGET_HART 18
#define APLIC_TARGET_ID	0x7ffu
#define APLIC_IE	0x100u
#define APLIC_MODE	7u		/* of sourcecfg */
#define APLIC_DETACHED	1u
#define APLIC_FALLING	5u
#define APLIC_LEVEL	6u		/* and above */
#define APLIC_LOW	7u
#define IMSIC_EIDELIVERY 0x70u
#define IMSIC_EITHRESHOLD 0x72u
#define IMSIC_EIP0	0x80u
#define IMSIC_EIE0	0xc0u

#define AIA_PHANDLE_CPU	1u		/* hart n's is + n: see fdt.c */
#define AIA_PHANDLE	(AIA_PHANDLE_CPU + VCPUS_MAX)

struct aia {
	struct irqchip	chip;
	struct machine	*m;
	int		fd;
	int		used;		/* sources may be other than 0 */
	uint32_t	high;		/* lines that were raised when it was loaded */
};

/* What of an interrupt file is saved, in the order in which it is loaded. */
static const uint32_t imsic_regs[] = { IMSIC_EIE0, IMSIC_EIP0, IMSIC_EITHRESHOLD,
				       IMSIC_EIDELIVERY };
#define IMSIC_REGS	(sizeof(imsic_regs) / sizeof(imsic_regs[0]))

static uint64_t imsic_attr(uint32_t hart, uint32_t reg)
{
	return (uint64_t)hart << 12 | reg;
}

static void aia_line(struct irqchip *chip, uint32_t line, int level)
{
	struct aia *a = (struct aia *)chip;
	int r = kvm_irq_line(a->m->vm, line, level);

	if (r < 0)
		log_line(&a->m->log, VMM_LOG_ERROR, "interrupt %u: %s", line,
			 strerrorname_np(-r));
}

/* ---- Device tree -------------------------------------------------------- */

static int aia_fdt(struct irqchip *chip, void *fdt, uint32_t *phandle)
{
	struct aia *a = (struct aia *)chip;
	uint32_t i, n = a->m->nvcpus;
	fdt32_t ext[2 * VCPUS_MAX];
	fdt64_t reg[2];
	char node[32];
	int e = 0;

	for (i = 0; i < n; i++) {
		ext[2 * i] = cpu_to_fdt32(AIA_PHANDLE_CPU + i);
		ext[2 * i + 1] = cpu_to_fdt32(9);	/* supervisor external */
	}
	snprintf(node, sizeof(node), "interrupt-controller@%llx", MAP_IMSIC);
	reg[0] = cpu_to_fdt64(MAP_IMSIC);
	reg[1] = cpu_to_fdt64(0x1000ull * n);
	e |= fdt_begin_node(fdt, node);
	e |= fdt_property_string(fdt, "compatible", "riscv,imsics");
	e |= fdt_property(fdt, "reg", reg, sizeof(reg));
	e |= fdt_property(fdt, "interrupt-controller", NULL, 0);
	e |= fdt_property_u32(fdt, "#interrupt-cells", 0);
	e |= fdt_property(fdt, "msi-controller", NULL, 0);
	e |= fdt_property_u32(fdt, "#msi-cells", 0);
	e |= fdt_property_u32(fdt, "riscv,num-ids", AIA_NUM_IDS);
	e |= fdt_property(fdt, "interrupts-extended", ext, (int)(2 * n * sizeof(ext[0])));
	e |= fdt_property_u32(fdt, "phandle", AIA_PHANDLE);
	e |= fdt_end_node(fdt);

	snprintf(node, sizeof(node), "interrupt-controller@%llx", MAP_APLIC);
	reg[0] = cpu_to_fdt64(MAP_APLIC);
	reg[1] = cpu_to_fdt64(MAP_APLIC_SIZE);
	e |= fdt_begin_node(fdt, node);
	e |= fdt_property_string(fdt, "compatible", "riscv,aplic");
	e |= fdt_property(fdt, "reg", reg, sizeof(reg));
	e |= fdt_property(fdt, "interrupt-controller", NULL, 0);
	e |= fdt_property_u32(fdt, "#interrupt-cells", 2);
	e |= fdt_property_u32(fdt, "riscv,num-sources", AIA_NUM_SRCS);
	e |= fdt_property_u32(fdt, "msi-parent", AIA_PHANDLE);
	e |= fdt_property_u32(fdt, "phandle", AIA_PHANDLE + 1);
	e |= fdt_end_node(fdt);
	*phandle = AIA_PHANDLE + 1;
	return e;
}

/* ---- Save and load ------------------------------------------------------ */

/* What KVM does not tell is no state to save: the writer has failed. */
static uint32_t aplic_save(struct aia *a, struct writer *w, uint32_t off)
{
	uint32_t v = 0;

	if (kvm_attr_get(a->fd, AIA_APLIC, off, &v) < 0)
		w->failed = 1;
	put_u32(w, v);
	return v;
}

static int aplic_set(struct aia *a, uint32_t off, uint32_t v)
{
	return kvm_attr_set(a->fd, AIA_APLIC, off, &v);
}

/* APLIC_INPUT reads as a source means it, so that a low line of an inverted one
   is 1 (AIA specification, 4.7): whether the line itself is high. */
static int aplic_high(uint32_t input, uint32_t source, uint32_t sourcecfg)
{
	uint32_t mode = sourcecfg & APLIC_MODE;

	return (int)((input >> source & 1) ^ (mode == APLIC_FALLING || mode == APLIC_LOW));
}

/*
 * Does the guest use identities from 32 on?  A file in memory does not keep them, and
 * one in hardware is restored by way of memory.  The former gives its low word, sign-
 * extended.
 */
static int imsic_wide(uint64_t v)
{
	return v >> 32 && v != (uint64_t)(int64_t)(int32_t)(uint32_t)v;
}

static int aia_save(struct irqchip *chip, struct writer *w, struct vmm_error *err)
{
	struct aia *a = (struct aia *)chip;
	uint64_t v;
	uint32_t i, k;

	put_u32(w, AIA_NUM_SRCS);
	put_u32(w, a->m->nvcpus);
	aplic_save(a, w, APLIC_INPUT);
	for (i = 0; i < AIA_NUM_SRCS; i++) {
		/* The target of a source that is not in use is zero; KVM keeps
		   one all the same (AIA specification, 4.5.16). */
		if (aplic_save(a, w, APLIC_SOURCECFG + 4 * i) & APLIC_MODE)
			aplic_save(a, w, APLIC_TARGET + 4 * i);
		else
			put_u32(w, 0);
	}
	aplic_save(a, w, APLIC_SETIE);
	aplic_save(a, w, APLIC_SETIP);
	aplic_save(a, w, APLIC_DOMAINCFG);
	for (i = 0; i < a->m->nvcpus; i++) {
		for (k = 0; k < IMSIC_REGS; k++) {
			v = 0;
			if (kvm_attr_get(a->fd, AIA_IMSIC, imsic_attr(i, imsic_regs[k]), &v) < 0)
				w->failed = 1;
			if (imsic_wide(v))
				return fail(err, VMM_ENOTSUP, "hart %u uses interrupt identities from 32 "
					    "on, which cannot be restored", i);
			put_u32(w, (uint32_t)v);
		}
	}
	return 0;
}

static int aia_load(struct irqchip *chip, struct reader *r, struct vmm_error *err)
{
	struct aia *a = (struct aia *)chip;
	uint32_t srcs = get_u32(r), harts = get_u32(r), input = get_u32(r);
	uint32_t cfg[AIA_NUM_SRCS], target[AIA_NUM_SRCS], ie, ip, domain, i;
	uint64_t v;
	int e = 0;

	if (srcs != AIA_NUM_SRCS || harts != a->m->nvcpus)
		return fail(err, VMM_EVERSION,
			    "interrupt controller with %u sources and %u harts, not %u and %u",
			    srcs, harts, AIA_NUM_SRCS, a->m->nvcpus);
	for (i = 0; i < srcs; i++) {
		cfg[i] = get_u32(r);
		target[i] = get_u32(r);
	}
	ie = get_u32(r);
	ip = get_u32(r);
	domain = get_u32(r);
	for (i = 0; i < srcs; i++)
		if (aplic_high(input, i + 1, cfg[i])) {
			aia_line(chip, i + 1, 1);
			a->high |= 2u << i;
		}
	/* What is 0 is so on a fresh controller. */
	for (i = 0; i < srcs; i++) {
		if (cfg[i] || a->used)
			e |= aplic_set(a, APLIC_SOURCECFG + 4 * i, cfg[i]);
		if (target[i] || a->used)
			e |= aplic_set(a, APLIC_TARGET + 4 * i, target[i]);
	}
	if (ie)
		e |= aplic_set(a, APLIC_SETIE, ie);
	if (ip)
		e |= aplic_set(a, APLIC_SETIP, ip);
	/* A level that has gone stays pending in KVM, but is not taken from setip:
	   it comes and goes again. */
	for (i = 0; i < srcs; i++) {
		int high = aplic_high(input, i + 1, cfg[i]);

		if ((ip & ~input) >> (i + 1) & 1 && (cfg[i] & APLIC_MODE) >= APLIC_LEVEL) {
			aia_line(chip, i + 1, !high);
			aia_line(chip, i + 1, high);
		}
	}
	for (i = 0; i < harts; i++) {
		uint32_t k;

		for (k = 0; k < IMSIC_REGS; k++) {
			v = get_u32(r);
			if (v)
				e |= kvm_attr_set(a->fd, AIA_IMSIC, imsic_attr(i, imsic_regs[k]), &v);
		}
	}
	if (domain & APLIC_IE)
		e |= aplic_set(a, APLIC_DOMAINCFG, domain);
	if (e)
		return fail(err, VMM_ESYS, "KVM refuses the state of the interrupt controller");
	return reader_end(r, "the interrupt controller", err);
}

/*
 * Nothing is pending, enabled or high; interrupt files went with their vCPUs.  What sources
 * are set to is overwritten when it is loaded.  Devices pulse their lines, so that few, if
 * any, are high; and KVM clears nothing of a source that is inactive, and looks at what is
 * done to the line of any other that is not detached.
 */
static int aia_renew(struct irqchip *chip)
{
	struct aia *a = (struct aia *)chip;
	uint32_t ip = 0, i;
	int e;

	e = aplic_set(a, APLIC_DOMAINCFG, 0);
	if (e == 0)
		e = kvm_attr_get(a->fd, AIA_APLIC, APLIC_SETIP, &ip);
	ip |= a->high;
	for (i = 0; i < AIA_NUM_SRCS && e == 0; i++)
		if (ip >> (i + 1) & 1) {
			e = aplic_set(a, APLIC_SOURCECFG + 4 * i, APLIC_DETACHED);
			if (e == 0)
				e = kvm_irq_line(a->m->vm, i + 1, 0);
		}
	if (e == 0 && ip)
		e = aplic_set(a, APLIC_CLRIP, ip);
	if (e == 0)
		e = aplic_set(a, APLIC_CLRIE, ~0u);
	a->high = 0;
	a->used = 1;
	return e;
}

/* Whether the hart would take it is told by its own registers. */
static int aia_pending(struct irqchip *chip, uint32_t line, uint32_t *hart)
{
	struct aia *a = (struct aia *)chip;
	uint32_t target = 0, id;
	uint64_t pending = 0, enabled = 0;

	if (kvm_attr_get(a->fd, AIA_APLIC, APLIC_TARGET + 4 * (line - 1), &target) < 0)
		return 0;
	*hart = target >> APLIC_TARGET_HART;
	id = target & APLIC_TARGET_ID;
	return id < 64 && *hart < a->m->nvcpus &&
	       kvm_attr_get(a->fd, AIA_IMSIC, imsic_attr(*hart, IMSIC_EIP0), &pending) == 0 &&
	       kvm_attr_get(a->fd, AIA_IMSIC, imsic_attr(*hart, IMSIC_EIE0), &enabled) == 0 &&
	       (pending & enabled) >> id & 1;
}

static void aia_free(struct irqchip *chip)
{
	struct aia *a = (struct aia *)chip;

	close(a->fd);
	free(a);
}

static const struct irqchip_ops aia_ops = {
	.name	= "aia",
	.version = 1,
	.line	= aia_line,
	.fdt	= aia_fdt,
	.save	= aia_save,
	.load	= aia_load,
	.pending = aia_pending,
	.renew	= aia_renew,
	.free	= aia_free,
};

/* ---- Creation ----------------------------------------------------------- */

/* mode is what KVM proposed: AUTO if there are guest interrupt files. */
static void aia_choose(uint32_t mode, struct aia_choice *c)
{
	c->offered = c->sound = 1u << VMM_IRQCHIP_AIA_EMUL;
	c->best = VMM_IRQCHIP_AIA_EMUL;
	if (mode == AIA_MODE_EMUL) {
		snprintf(c->note, sizeof(c->note),
			 "EMUL: the host has no guest interrupt files, or its kernel is older than 6.11");
		return;
	}
	c->offered |= 1u << VMM_IRQCHIP_AIA_HWACCEL | 1u << VMM_IRQCHIP_AIA_AUTO;
	snprintf(c->note, sizeof(c->note),
		 "EMUL: guest interrupt files lose wake-ups on Linux 6.11 to 6.15, and in QEMU on all");
}

static int aia_config(struct aia *a, uint32_t mode, struct vmm_error *err)
{
	const uint32_t kvm_mode[] = { 0, AIA_MODE_EMUL, AIA_MODE_HWACCEL, AIA_MODE_AUTO };
	uint32_t i, n = a->m->nvcpus, hart_bits = 0;
	const uint32_t ids = AIA_NUM_IDS, srcs = AIA_NUM_SRCS;
	uint64_t addr = MAP_APLIC;
	int r;

	while (n > 1u << hart_bits)
		hart_bits++;
	r = kvm_attr_set(a->fd, AIA_CONFIG, AIA_MODE, &kvm_mode[mode]);
	if (r < 0)
		return fail_sys(err, -r, "AIA mode %u", kvm_mode[mode]);
	r = kvm_attr_set(a->fd, AIA_CONFIG, AIA_IDS, &ids);
	if (r == 0)
		r = kvm_attr_set(a->fd, AIA_CONFIG, AIA_SRCS, &srcs);
	if (r == 0 && hart_bits)
		r = kvm_attr_set(a->fd, AIA_CONFIG, AIA_HART_BITS, &hart_bits);
	if (r == 0)
		r = kvm_attr_set(a->fd, AIA_ADDR, 0, &addr);
	for (i = 0; i < n && r == 0; i++) {
		addr = MAP_IMSIC + 0x1000ull * i;
		r = kvm_attr_set(a->fd, AIA_ADDR, 1 + i, &addr);
	}
	if (r == 0)
		r = kvm_attr_set(a->fd, AIA_CTRL, 0, NULL);
	return r < 0 ? fail_sys(err, -r, "in-kernel AIA for %u vCPUs", n) : 0;
}

int aia_create(struct machine *m, uint32_t mode, struct aia_choice *choice,
	       struct vmm_error *err)
{
	struct aia_choice c = { 0 };
	uint32_t proposed = AIA_MODE_EMUL;
	struct aia *a;
	int r;

	a = calloc(1, sizeof(*a));
	if (!a)
		return fail(err, VMM_ENOMEM, "interrupt controller");
	a->chip.ops = &aia_ops;
	a->m = m;
	a->fd = kvm_device(m->vm, KVM_DEV_AIA);
	if (a->fd < 0) {
		r = a->fd;
		free(a);
		if (r == -ENODEV)
			return fail(err, VMM_ENOTSUP,
				    "this host's KVM has no in-kernel AIA (the CPU lacks Ssaia)");
		return fail_sys(err, -r, "in-kernel AIA");
	}
	m->irqchip = &a->chip;
	kvm_attr_get(a->fd, AIA_CONFIG, AIA_MODE, &proposed);
	aia_choose(proposed, &c);
	if (choice)
		*choice = c;
	if (mode == VMM_IRQCHIP_DEFAULT)
		mode = c.best;
	if (!(c.offered & 1u << mode))
		return fail(err, VMM_ENOTSUP,
			    "interrupt controller mode %u: this host has no guest interrupt files",
			    mode);
	if (!(c.sound & 1u << mode))
		log_line(&m->log, VMM_LOG_WARN,
			 "interrupt controller mode %u is not sound on this host kernel; %s", mode,
			 c.note);
	return aia_config(a, mode, err);
}

int aia_narrow(struct machine *m)
{
	struct aia *a = (struct aia *)m->irqchip;
	uint64_t v = 1ull << 40, back = 0;

	if (kvm_attr_set(a->fd, AIA_IMSIC, imsic_attr(0, IMSIC_EIE0), &v) < 0 ||
	    kvm_attr_get(a->fd, AIA_IMSIC, imsic_attr(0, IMSIC_EIE0), &back) < 0)
		return 1;
	v = 0;
	kvm_attr_set(a->fd, AIA_IMSIC, imsic_attr(0, IMSIC_EIE0), &v);
	return back != 1ull << 40;
}
