/* SPDX-License-Identifier: MIT */
/*
 * fdt.c - writing the device tree, by libfdt: see fdt.h.
 *
 * After the Devicetree Specification 0.4 and Linux' bindings (riscv/cpus.yaml,
 * riscv/extensions.yaml, interrupt-controller/riscv,aplic.yaml).  libfdt keeps
 * count of the room: an error is remembered by or-ing, and looked at once.
 */
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#include <libfdt.h>

#include "fdt.h"
#include "map.h"
#include "regs.h"

#define FDT_PHANDLE_CPU	1u	/* hart n's interrupt controller is + n: aia.c */

static int fdt_reg(void *fdt, uint64_t gpa, uint64_t size)
{
	fdt64_t reg[2] = { cpu_to_fdt64(gpa), cpu_to_fdt64(size) };

	return fdt_property(fdt, "reg", reg, sizeof(reg));
}

static int fdt_text(void *fdt, const char *name, const char *text)
{
	return fdt_property(fdt, name, text, (int)strlen(text) + 1);
}

static int fdt_chosen(void *fdt, const struct fdt_config *cfg, const char *console)
{
	uint8_t seed[64];
	ssize_t n = getrandom(seed, sizeof(seed), 0);
	int e = fdt_begin_node(fdt, "chosen");

	e |= fdt_text(fdt, "bootargs", cfg->cmdline ? cfg->cmdline : "");
	if (n > 0)
		e |= fdt_property(fdt, "rng-seed", seed, (int)n);
	if (console)
		e |= fdt_text(fdt, "stdout-path", console);
	if (cfg->initrd_size) {
		e |= fdt_property_u64(fdt, "linux,initrd-start", cfg->initrd);
		e |= fdt_property_u64(fdt, "linux,initrd-end", cfg->initrd + cfg->initrd_size);
	}
	return e | fdt_end_node(fdt);
}

/* The size of a cache block, if the extension that needs it is there. */
static int fdt_block(void *fdt, int vcpu, const struct isa *isa, unsigned int ext, uint64_t reg,
		     const char *name)
{
	uint64_t size = 0;

	if (!isa_has(isa, ext) || kvm_reg_get(vcpu, reg, &size) < 0)
		return 0;
	return fdt_property_u32(fdt, name, (uint32_t)size);
}

static const char *fdt_mmu(int vcpu)
{
	uint64_t satp = 0;

	if (kvm_reg_get(vcpu, CONFIG_SATP, &satp) < 0)
		satp = 8;
	return satp >= 10 ? "riscv,sv57" : satp == 9 ? "riscv,sv48" : "riscv,sv39";
}

static int fdt_cpus(void *fdt, struct machine *m, const struct isa *isa, uint64_t hz)
{
	char isa_line[1024], isa_names[1024], node[24];
	const char *mmu = fdt_mmu(m->vcpu[0].fd);
	size_t names = isa_list(isa, isa_names, sizeof(isa_names));
	uint32_t i;
	int e;

	isa_string(isa, isa_line, sizeof(isa_line));
	e = fdt_begin_node(fdt, "cpus");
	e |= fdt_property_u32(fdt, "#address-cells", 1);
	e |= fdt_property_u32(fdt, "#size-cells", 0);
	e |= fdt_property_u32(fdt, "timebase-frequency", (uint32_t)hz);
	for (i = 0; i < m->nvcpus; i++) {
		int fd = m->vcpu[0].fd;

		snprintf(node, sizeof(node), "cpu@%x", i);
		e |= fdt_begin_node(fdt, node);
		e |= fdt_text(fdt, "device_type", "cpu");
		e |= fdt_text(fdt, "compatible", "riscv");
		e |= fdt_property_u32(fdt, "reg", i);
		e |= fdt_text(fdt, "status", "okay");
		e |= fdt_text(fdt, "riscv,isa", isa_line);
		e |= fdt_text(fdt, "riscv,isa-base", "rv64i");
		e |= fdt_property(fdt, "riscv,isa-extensions", isa_names, (int)names);
		e |= fdt_block(fdt, fd, isa, ISA_ZICBOM, CONFIG_ZICBOM, "riscv,cbom-block-size");
		e |= fdt_block(fdt, fd, isa, ISA_ZICBOZ, CONFIG_ZICBOZ, "riscv,cboz-block-size");
		e |= fdt_block(fdt, fd, isa, ISA_ZICBOP, CONFIG_ZICBOP, "riscv,cbop-block-size");
		e |= fdt_text(fdt, "mmu-type", mmu);
		e |= fdt_begin_node(fdt, "interrupt-controller");
		e |= fdt_text(fdt, "compatible", "riscv,cpu-intc");
		e |= fdt_property_u32(fdt, "#interrupt-cells", 1);
		e |= fdt_property(fdt, "interrupt-controller", NULL, 0);
		e |= fdt_property_u32(fdt, "phandle", FDT_PHANDLE_CPU + i);
		e |= fdt_end_node(fdt);
		e |= fdt_end_node(fdt);
	}
	return e | fdt_end_node(fdt);
}

static int fdt_device(void *fdt, const struct device *d)
{
	fdt32_t irq[2] = { cpu_to_fdt32(d->irq.line), cpu_to_fdt32(1) };	/* rising edge */
	char node[48];
	int e;

	snprintf(node, sizeof(node), "%s@%llx", d->ops->type, (unsigned long long)d->gpa);
	e = fdt_begin_node(fdt, node);
	e |= fdt_text(fdt, "compatible", d->compatible);
	e |= fdt_reg(fdt, d->gpa, d->size);
	if (d->irq.line)
		e |= fdt_property(fdt, "interrupts", irq, sizeof(irq));
	if (d->cell_name)
		e |= fdt_property_u32(fdt, d->cell_name, d->cell);
	return e | fdt_end_node(fdt);
}

size_t fdt_room(const struct machine *m, const struct fdt_config *cfg)
{
	size_t room = 8192 + 3072 * (size_t)m->nvcpus;	/* two lists of extensions each */

	room += cfg->cmdline ? strlen(cfg->cmdline) : 0;
	return room < FDT_ROOM ? room : FDT_ROOM;
}

int fdt_build(struct machine *m, const struct fdt_config *cfg, void *buf, size_t cap,
	      size_t *len, struct vmm_error *err)
{
	char console[64] = "", node[32];
	const struct device *d;
	uint32_t phandle = 0;
	uint64_t hz = 0;
	int e;

	e = kvm_reg_get(m->vcpu[0].fd, TIMER_FREQUENCY, &hz);
	if (e < 0)
		return fail_sys(err, -e, "frequency of the guest's timer");
	for (d = m->devices; d; d = d->next)
		if (strcmp(d->ops->type, "serial") == 0)
			snprintf(console, sizeof(console), "/soc/serial@%llx",
				 (unsigned long long)d->gpa);
	/* Looking for each name among all before it takes longer than the rest. */
	e = fdt_create_with_flags(buf, (int)cap, FDT_CREATE_FLAG_NO_NAME_DEDUP);
	e |= fdt_finish_reservemap(buf);
	e |= fdt_begin_node(buf, "");
	e |= fdt_property_u32(buf, "#address-cells", 2);
	e |= fdt_property_u32(buf, "#size-cells", 2);
	e |= fdt_text(buf, "compatible", "linux,dummy-virt");
	e |= fdt_text(buf, "model", "vmm");
	e |= fdt_chosen(buf, cfg, console[0] ? console : NULL);
	snprintf(node, sizeof(node), "memory@%llx", (unsigned long long)m->mem.gpa);
	e |= fdt_begin_node(buf, node);
	e |= fdt_text(buf, "device_type", "memory");
	e |= fdt_reg(buf, m->mem.gpa, m->mem.size);
	e |= fdt_end_node(buf);
	e |= fdt_cpus(buf, m, cfg->isa, hz);
	e |= m->irqchip->ops->fdt(m->irqchip, buf, &phandle);
	e |= fdt_begin_node(buf, "soc");
	e |= fdt_text(buf, "compatible", "simple-bus");
	e |= fdt_property_u32(buf, "#address-cells", 2);
	e |= fdt_property_u32(buf, "#size-cells", 2);
	e |= fdt_property(buf, "ranges", NULL, 0);
	e |= fdt_property_u32(buf, "interrupt-parent", phandle);
	for (d = m->devices; d; d = d->next)
		e |= fdt_device(buf, d);
	e |= fdt_end_node(buf);
	e |= fdt_end_node(buf);
	e |= fdt_finish(buf);
	if (e)
		return fail(err, VMM_EINVAL, "the device tree does not fit into %zu bytes", cap);
	*len = fdt_totalsize(buf);
	return 0;
}
