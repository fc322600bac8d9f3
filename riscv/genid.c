/* SPDX-License-Identifier: MIT */
/*
 * genid.c - the generation id: how a guest learns that it is a clone.
 *
 * A page behind the RAM holds 16 random bytes (microsoft,vmgenid; Linux,
 * drivers/virt/vmgenid.c).  A clone gets new ones and an interrupt that is
 * pending before its first instruction, on which its kernel reseeds its random
 * numbers.  The page lies inside the RAM's memslot, but no memory node tells
 * the guest of it.
 *
 * Saved: nothing here; the page is saved with the RAM.
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/random.h>

#include "map.h"
#include "platform.h"
#include "regs.h"

struct genid {
	struct device	dev;
	struct machine	*m;
};

static void genid_draw(struct genid *g)
{
	/* 16 bytes never come short, and only a kernel without the call fails. */
	if (getrandom(mem_tail(&g->m->mem), 16, 0) != 16)
		log_line(&g->m->log, VMM_LOG_ERROR, "generation id: no random numbers");
}

static void genid_reset(struct device *d)
{
	genid_draw((struct genid *)d);
}

static void genid_cloned(struct device *d)
{
	genid_draw((struct genid *)d);
	irq_pulse(&d->irq);
}

static void genid_save(const struct device *d, struct writer *w)
{
	(void)d;
	(void)w;
}

static int genid_load(struct device *d, struct reader *r, struct vmm_error *err)
{
	return reader_end(r, d->name, err);
}

static void genid_free(struct device *d)
{
	free(d);
}

static const struct device_ops genid_ops = {
	.type		= "vmgenid",
	.version	= 1,
	.reset		= genid_reset,
	.save		= genid_save,
	.load		= genid_load,
	.cloned		= genid_cloned,
	.free		= genid_free,
};

/*
 * Has the hart that leads reseeded?  The interrupt is no longer in its interrupt file, and
 * interrupts are on again, which they are not in a handler; or since this was seen the hart
 * has waited, or turned to a device: Linux prints a line when it has reseeded, which takes
 * longer than all the rest.
 */
static int genid_handled(struct vcpu *v)
{
	struct machine *m = v->m;
	uint64_t sstatus = 0, seen;
	uint32_t hart;

	if (m->irqchip->ops->pending(m->irqchip, IRQ_GENID, &hart) ||
	    kvm_reg_get(v->fd, CSR_SSTATUS, &sstatus) < 0)
		return 0;
	seen = 1 + vcpu_waits(v) + v->exits[VMM_EXIT_MMIO] + v->exits[VMM_EXIT_SBI];
	if (sstatus & SSTATUS_SIE || (m->lead.seen && seen > m->lead.seen))
		return 1;
	m->lead.seen = seen;
	return 0;
}

/*
 * The interrupt goes to one hart.  Until that has reseeded, a program on another could draw
 * the original's random numbers.
 */
void genid_lead(struct machine *m)
{
	uint32_t hart, mp = KVM_MP_STOPPED;
	struct vcpu *v = NULL;

	if (m->nvcpus > 1 && m->irqchip->ops->pending(m->irqchip, IRQ_GENID, &hart) &&
	    kvm_mp_get(m->vcpu[hart].fd, &mp) == 0 && mp == KVM_MP_RUNNABLE) {
		v = &m->vcpu[hart];
		vcpu_all_exits(v);		/* opens its counters */
	}
	vcpus_lead(m, v, genid_handled);
}

int genid_add(struct machine *m, struct vmm_error *err)
{
	struct genid *g = calloc(1, sizeof(*g));

	if (!g)
		return fail(err, VMM_ENOMEM, "generation id");
	g->dev = (struct device){
		.ops = &genid_ops, .name = "vmgenid", .gpa = mem_tail_gpa(&m->mem), .size = 0x1000,
		.irq.line = IRQ_GENID, .compatible = "microsoft,vmgenid",
	};
	g->m = m;
	return machine_add(m, &g->dev, err);
}
