/* SPDX-License-Identifier: MIT */
/*
 * hart.c - save and load a vCPU: see hart.h.
 *
 * KVM has no bulk access: each register is an ioctl, and KVM_GET_REG_LIST says
 * which there are.  Registers are kept as pairs of KVM's id, which holds the
 * size, and value, so that one which is new in some kernel needs no change
 * here.  Not kept so are
 *
 *	CONFIG, ISA, SBI	as words of flags, and compared with the host's
 *	TIMER			by name: its parts are loaded at different moments;
 *				the time is one for all harts, and the machine's
 *
 * A register that is zero is not kept, as it is zero on a fresh vCPU; those few
 * that may be something else there always are (hart_always).
 *
 * Without Sstc a timer is one of KVM's, on the host's clock, which goes on while the
 * machine is held: one that is due then is pending, and early, when it goes on.  With
 * Sstc a guest that sets its timer by SBI, and not in stimecmp as Linux does, loses it if
 * its vCPU is preempted, or paused, before it is back in the guest: KVM (6.12, 7.2) has
 * written the CSR then, and not noted it down (tests/guest/lib/guest.c).
 *
 * A software interrupt that is pending (sip.SSIP) is there for the guest when it is
 * restored, but KVM does not count it among what ends a WFI: a guest that executes
 * one with interrupts off sleeps on until something else comes.  Guests with an AIA
 * send messages, and do not use it.
 *
 * The order in which a state is loaded is given in hart.h, and for registers by
 * HART_ORDER: KVM wipes what was written before in some (STA: shmem_hi before
 * shmem_lo on 7.2), and locks others (FWFT: value before flags).
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "hart.h"
#include "regs.h"

#define HART_REGS_MAX	1024u

enum { HART_CONFIG = 1, HART_CORE = 2, HART_CSR = 3, HART_TIMER = 4, HART_FP_F = 5,
       HART_FP_D = 6, HART_ISA = 7, HART_SBI = 8, HART_VECTOR = 9, HART_SBI_STATE = 10 };

#define HART_STA_LO	(REG_RISCV | REG_U64 | 0x0a000000 | 0)
#define HART_OFF	(~0ull)		/* what STA's registers are when it is off */

#define HSM_EXTENSION	0x48534du
#define HSM_HART_STOP	1u

static struct kvm_reg_list *hart_list(struct vcpu *v, struct vmm_error *err)
{
	struct kvm_reg_list *list;
	int r;

	list = calloc(1, sizeof(*list) + HART_REGS_MAX * sizeof(list->reg[0]));
	if (!list) {
		fail(err, VMM_ENOMEM, "registers of vCPU %u", v->id);
		return NULL;
	}
	list->n = HART_REGS_MAX;
	r = kvm_reg_list(v->fd, list);
	if (r < 0) {
		fail_sys(err, -r, "list of registers of vCPU %u", v->id);
		free(list);
		return NULL;
	}
	return list;
}

/* Is this one of the registers that are saved by name, or seen twice? */
static int hart_named(uint64_t id, int has_d)
{
	switch (REG_TYPE(id)) {
	case HART_CONFIG:
	case HART_ISA:
	case HART_SBI:
	case HART_TIMER:
		return 1;
	case HART_FP_F:		/* another view of the same registers */
		return has_d;
	case HART_VECTOR:
		return id == REG_VLENB;
	default:
		return 0;
	}
}

/* Not zero on every fresh vCPU. */
static int hart_always(uint64_t id)
{
	switch (REG_TYPE(id)) {
	case HART_CORE:
		return id == CORE_MODE;
	case HART_CSR:
		return id == CSR_SCOUNTEREN || (id & 0xff0000) == CSR_SMSTATEEN;
	case HART_VECTOR:
		return (id & 0xffff) < 4;	/* vstart, vl, vtype, vcsr */
	default:
		return REG_TYPE(id) == HART_SBI_STATE;
	}
}

static int hart_zero(const uint8_t *p, size_t n)
{
	while (n--)
		if (*p++)
			return 0;
	return 1;
}

/* A register that this host does not have reads as 0; of other failures the first is kept. */
static uint64_t hart_read(struct vcpu *v, uint64_t id, int *error)
{
	uint64_t value = 0;
	int r = kvm_reg_get(v->fd, id, &value);

	if (r < 0 && r != -ENOENT && r != -EINVAL && *error == 0)
		*error = r;
	return r < 0 ? 0 : value;
}

static uint64_t hart_get(struct vcpu *v, uint64_t id)
{
	int passed_over = 0;

	return hart_read(v, id, &passed_over);
}

/* Write a register down; one that cannot be read must not be saved as 0. */
static void hart_put(struct vcpu *v, uint64_t id, struct writer *w)
{
	int error = 0;

	put_u64(w, hart_read(v, id, &error));
	w->failed |= error < 0;
}

int hart_starting(struct vcpu *v)
{
	uint32_t mp = KVM_MP_STOPPED;

	if (kvm_mp_get(v->fd, &mp) < 0 || mp != KVM_MP_RUNNABLE)
		return 0;
	/* Never run, or last seen in the call that stopped it. */
	return (!hart_get(v, CORE_PC) && !hart_get(v, CORE_X(2))) ||
	       (hart_get(v, CORE_X(17)) == HSM_EXTENSION && hart_get(v, CORE_X(16)) == HSM_HART_STOP);
}

int hart_save(struct vcpu *v, struct writer *w, struct vmm_error *err)
{
	struct kvm_reg_list *list;
	uint8_t value[512];
	struct writer regs = { NULL, 0, 0, 0 };
	uint32_t mp = 0, n = 0;
	struct isa isa;
	uint64_t i;
	int r = 0, rc;

	rc = isa_of_vcpu(v->fd, &isa, err);
	if (rc)
		return rc;
	list = hart_list(v, err);
	if (!list)
		return err ? err->code : VMM_ENOMEM;
	/* sip first: reading it brings KVM's pending interrupts up to date. */
	hart_get(v, CSR_SIP);
	for (i = 0; i < list->n; i++) {
		uint64_t id = list->reg[i];
		size_t size = REG_SIZE(id);

		if (hart_named(id, isa_has(&isa, ISA_D)))
			continue;
		if (size > sizeof(value)) {
			r = -E2BIG;
			break;
		}
		r = kvm_reg_get(v->fd, id, value);
		if (r < 0)
			break;
		if (hart_zero(value, size) && !hart_always(id))
			continue;
		put_u64(&regs, id);
		put_bytes(&regs, value, size);
		n++;
	}
	if (r == 0)
		r = kvm_mp_get(v->fd, &mp);
	if (r < 0) {
		rc = fail_sys(err, -r, "register 0x%llx of vCPU %u",
			      (unsigned long long)(i < list->n ? list->reg[i] : 0), v->id);
		goto out;
	}
	put_u64(w, isa.bit[0]);
	put_u64(w, isa.bit[1]);
	hart_put(v, REG_SBI_ON(0), w);
	for (i = 2; i < 5; i++)
		hart_put(v, REG_CONFIG(i), w);
	hart_put(v, CONFIG_ZICBOM, w);
	hart_put(v, CONFIG_ZICBOZ, w);
	hart_put(v, CONFIG_ZICBOP, w);
	hart_put(v, CONFIG_SATP, w);
	if (isa_has(&isa, ISA_V))
		hart_put(v, REG_VLENB, w);
	else
		put_u64(w, 0);
	hart_put(v, TIMER_FREQUENCY, w);
	hart_put(v, TIMER_COMPARE, w);
	hart_put(v, TIMER_STATE, w);
	put_u32(w, mp);
	put_u32(w, n);
	put_bytes(w, regs.data, regs.len);
	rc = w->failed || regs.failed ? fail(err, VMM_ENOMEM, "state of vCPU %u", v->id) : 0;
out:
	free(regs.data);
	free(list);
	return rc;
}

int hart_begin(struct reader *r, struct hart_config *c, struct vmm_error *err)
{
	int i;

	c->isa.bit[0] = get_u64(r);
	c->isa.bit[1] = get_u64(r);
	c->sbi = get_u64(r);
	for (i = 0; i < 3; i++)
		c->machine[i] = get_u64(r);
	for (i = 0; i < 3; i++)
		c->block[i] = get_u64(r);
	c->satp = get_u64(r);
	c->vlenb = get_u64(r);
	c->hz = get_u64(r);
	c->compare = get_u64(r);
	get_u64(r);		/* the timer's state, of no use: hart_set_timer() */
	c->mp_state = get_u32(r);
	return r->failed ? fail(err, VMM_EFORMAT, "state of a vCPU: too short") : 0;
}

/* What there is in the registers of which hart_save() cannot leave out a zero. */
static int hart_fresh(struct vcpu *v, struct hart_host *out, struct vmm_error *err)
{
	struct kvm_reg_list *list = hart_list(v, err);
	uint64_t i, value;

	if (!list)
		return err ? err->code : VMM_ENOMEM;
	for (i = 0; i < list->n && out->nfresh < HART_FRESH; i++) {
		if (hart_named(list->reg[i], 1) || !hart_always(list->reg[i]) ||
		    REG_SIZE(list->reg[i]) != sizeof(value) ||
		    kvm_reg_get(v->fd, list->reg[i], &value) < 0)
			continue;
		out->fresh[out->nfresh].id = list->reg[i];
		out->fresh[out->nfresh++].value = value;
	}
	free(list);
	return 0;
}

/* Is a register so on a fresh vCPU? */
static int hart_is_fresh(const struct hart_host *host, uint64_t id, const uint8_t *value)
{
	uint32_t i;

	for (i = 0; i < host->nfresh; i++)
		if (host->fresh[i].id == id)
			return memcmp(&host->fresh[i].value, value, sizeof(uint64_t)) == 0;
	return 0;
}

int hart_host(struct vcpu *v, struct hart_host *out, struct vmm_error *err)
{
	static const uint64_t block[] = { CONFIG_ZICBOM, CONFIG_ZICBOZ, CONFIG_ZICBOP };
	uint64_t i;
	int rc, r = 0;

	memset(out, 0, sizeof(*out));
	rc = isa_of_vcpu(v->fd, &out->isa, err);
	if (rc)
		return rc;
	out->sbi = hart_read(v, REG_SBI_ON(0), &r);
	for (i = 0; i < 3; i++)
		out->machine[i] = hart_read(v, REG_CONFIG(i + 2), &r);
	for (i = 0; i < 3; i++)
		out->block[i] = hart_read(v, block[i], &r);
	out->satp = hart_read(v, CONFIG_SATP, &r);
	out->vlenb = isa_has(&out->isa, ISA_V) ? hart_read(v, REG_VLENB, &r) : 0;
	out->hz = hart_read(v, TIMER_FREQUENCY, &r);
	/* What could not be read is not what the host lacks. */
	return r < 0 ? fail_sys(err, -r, "registers of vCPU %u", v->id) : hart_fresh(v, out, err);
}

/* A value that must be the host's own. */
static int hart_same(const char *what, uint64_t saved, uint64_t here, struct vmm_error *err)
{
	if (saved == here)
		return 0;
	return fail(err, VMM_EVERSION, "the snapshot's %s is %llu, this host's is %llu", what,
		    (unsigned long long)saved, (unsigned long long)here);
}

int hart_fits(const struct hart_config *c, const struct hart_host *host, struct vmm_error *err)
{
	static const unsigned int ext[] = { ISA_ZICBOM, ISA_ZICBOZ, ISA_ZICBOP };
	static const char *const name[] = { "zicbom block size", "zicboz block size",
					    "zicbop block size" };
	struct isa lacks;
	char list[128];
	int i, rc;

	for (i = 0; i < ISA_WORDS; i++)
		lacks.bit[i] = c->isa.bit[i] & ~host->isa.bit[i];
	if (lacks.bit[0] | lacks.bit[1]) {
		isa_string(&lacks, list, sizeof(list));
		return fail(err, VMM_EVERSION, "the snapshot uses ISA extensions this host lacks: %s",
			    list + 4 + (list[4] == '_'));
	}
	rc = hart_same("timer frequency", c->hz, host->hz, err);
	if (rc == 0 && isa_has(&c->isa, ISA_V))
		rc = hart_same("vector register size (vlenb)", c->vlenb, host->vlenb, err);
	for (i = 0; i < 3 && rc == 0; i++)
		if (isa_has(&c->isa, ext[i]))
			rc = hart_same(name[i], c->block[i], host->block[i], err);
	/* A wider paging mode than the guest's is no harm. */
	if (rc == 0 && c->satp > host->satp)
		rc = hart_same("paging mode (satp)", c->satp, host->satp, err);
	return rc;
}

int hart_configure(struct vcpu *v, const struct hart_config *c, const struct hart_host *host,
		   struct vmm_error *err)
{
	const uint64_t on = c->sbi & ~host->sbi, off = host->sbi & ~c->sbi;
	uint64_t is = 0;
	int i, r, rc;

	rc = isa_apply(v->fd, &host->isa, &c->isa, err);
	if (rc)
		return rc;
	r = on ? kvm_reg_set(v->fd, REG_SBI_ON(0), &on) : 0;
	if (r == 0 && off)
		r = kvm_reg_set(v->fd, REG_SBI_OFF(0), &off);
	for (i = 0; i < 3 && r == 0; i++)
		if (host->machine[i] != c->machine[i])
			r = kvm_reg_set(v->fd, REG_CONFIG((uint64_t)i + 2), &c->machine[i]);
	if (r == 0 && on)
		is = hart_read(v, REG_SBI_ON(0), &r);
	if (r < 0)
		return fail_sys(err, -r, "configuration of vCPU %u", v->id);
	/* KVM passes over what it does not know. */
	if ((is & on) != on)
		return fail(err, VMM_EVERSION, "the snapshot uses SBI extensions this host lacks (0x%llx)",
			    (unsigned long long)on);
	return 0;
}

int hart_load(struct vcpu *v, const struct hart_config *c, const struct hart_host *host,
	      struct reader *r, struct vmm_error *err)
{
	uint32_t n = get_u32(r), i;
	uint64_t id, sta_lo = HART_OFF;
	uint8_t value[512];
	int e;

	if (n > HART_REGS_MAX)
		return fail(err, VMM_EFORMAT, "state of vCPU %u: %u registers", v->id, n);
	for (i = 0; i < n; i++) {
		id = get_u64(r);
		if (REG_SIZE(id) > sizeof(value))
			return fail(err, VMM_EFORMAT, "state of vCPU %u: register 0x%llx", v->id,
				    (unsigned long long)id);
		get_bytes(r, value, REG_SIZE(id));
		if (r->failed)
			return fail(err, VMM_EFORMAT, "state of vCPU %u: too short", v->id);
		if (id == HART_STA_LO) {
			memcpy(&sta_lo, value, sizeof(sta_lo));
			continue;
		}
		if (hart_is_fresh(host, id, value))
			continue;
		e = kvm_reg_set(v->fd, id, value);
		/* What this kernel does not have matters only if it was used. */
		if (e == -ENOENT && hart_zero(value, REG_SIZE(id)))
			continue;
		if (e < 0)
			return fail_sys(err, -e, "register 0x%llx of vCPU %u",
					(unsigned long long)id, v->id);
	}
	if (sta_lo != HART_OFF) {
		e = kvm_reg_set(v->fd, HART_STA_LO, &sta_lo);
		if (e < 0)
			return fail_sys(err, -e, "steal time of vCPU %u", v->id);
	}
	e = kvm_mp_set(v->fd, c->mp_state);
	if (e < 0)
		return fail_sys(err, -e, "state %u of vCPU %u", c->mp_state, v->id);
	return reader_end(r, "a vCPU", err);
}

int hart_set_timer(struct vcpu *v, const struct hart_config *c, struct vmm_error *err)
{
	const uint64_t one = 1;
	uint64_t back = 0;
	int e;

	/* All ones is "never", and what a fresh vCPU has. */
	if (c->compare == ~0ull)
		return 0;
	e = kvm_reg_set(v->fd, TIMER_COMPARE, &c->compare);
	if (e == 0 && !isa_has(&c->isa, ISA_SSTC)) {
		/* This arms a host timer, whatever was saved as its state: it may
		   have expired between the reading of sip and of that, and then is
		   in neither.  A moment that has passed stays pending till the guest
		   sets another.  6.12 takes the 1 for the moment, so that the guest
		   has one interrupt too early. */
		e = kvm_reg_set(v->fd, TIMER_STATE, &one);
		if (e == 0 && kvm_reg_get(v->fd, TIMER_COMPARE, &back) == 0 && back != c->compare)
			log_line(&v->m->log, VMM_LOG_INFO,
				 "vCPU %u: this kernel fires a restored timer at once", v->id);
	}
	return e < 0 ? fail_sys(err, -e, "timer of vCPU %u", v->id) : 0;
}

uint64_t hart_time(struct vcpu *v)
{
	return hart_get(v, TIMER_TIME);
}

int hart_set_time(struct vcpu *v, uint64_t time, struct vmm_error *err)
{
	int e = kvm_reg_set(v->fd, TIMER_TIME, &time);

	return e < 0 ? fail_sys(err, -e, "guest time") : 0;
}
