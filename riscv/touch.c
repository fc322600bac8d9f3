/* SPDX-License-Identifier: MIT */
/*
 * touch.c - see touch.h.
 *
 * KVM maps a page for the guest when the guest touches it, which takes 3 to 6 us, and has
 * no call to do so before (KVM_PRE_FAULT_MEMORY is not RISC-V's).  So a few instructions are
 * put behind the RAM, with a list of what to touch, and a hart runs them, as it is when it
 * is fresh: in S-mode, untranslated, with interrupts off.  What is the machine's own is
 * mapped to be written by that, too.
 *
 * The same instructions make a hart forget what it has translated, with SFENCE.VMA.  KVM has no
 * call for that, and where a vCPU goes on on the CPU that it was on, nothing else does it: its
 * guest's old page tables would be in force where they were looked up before (RISC-V privileged
 * architecture, "Supervisor Memory-Management Fence").  Where it goes on on another CPU, KVM
 * does it.
 *
 * It ends with an SBI call to us.  A machine whose vendor extension is off has none.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "../vmm_guest.h"
#include "regs.h"
#include "touch.h"

#define TOUCH_CODE	(MEM_TAIL / 2)		/* in the tail; the list is behind it */
#define TOUCH_LIST	(TOUCH_CODE + 4096u)
#define TOUCH_RUNS	((MEM_TAIL - TOUCH_LIST) / sizeof(struct touch_run))

struct touch_run {
	uint64_t	begin, end;		/* gpa */
};

enum { X_T0 = 5, X_T1 = 6, X_A6 = 16, X_A7 = 17, X_T3 = 28, X_T4 = 29 };

/* a0, a1: the list and its end; t3: the size of a page; a6, a7: of the call at the end. */
static const uint32_t touch_code[] = {
	0x12000073,	/*	  sfence.vma */
	0x02b57063,	/* next:  bgeu	a0, a1, done */
	0x00053283,	/*	  ld	t0, 0(a0) */
	0x00853303,	/*	  ld	t1, 8(a0) */
	0x01050513,	/*	  addi	a0, a0, 16 */
	0xfe62f8e3,	/* page:  bgeu	t0, t1, next */
	0x00028e83,	/*	  lb	t4, 0(t0) */
	0x01c282b3,	/*	  add	t0, t0, t3 */
	0xff5ff06f,	/*	  j	page */
	0x00000073,	/* done:  ecall */
	0xffdff06f,	/*	  j	done */
};

static int touch_set(struct vcpu *v, const uint64_t (*regs)[2], uint32_t n)
{
	uint32_t i;
	int r = 0;

	for (i = 0; i < n && r == 0; i++)
		r = kvm_reg_set(v->fd, regs[i][0], &regs[i][1]);
	return r;
}

/* Without an answer to its call it would make it for ever. */
static int touch_can(struct machine *m)
{
	uint64_t on = 0;

	return kvm_reg_get(m->vcpu[0].fd, REG_SBI_ON(0), &on) == 0 && on >> SBI_VENDOR & 1;
}

/* Where the instructions are; what was there is kept. */
static uint8_t *touch_begin(struct machine *m, uint8_t *was, size_t len)
{
	uint8_t *tail = (uint8_t *)mem_tail(&m->mem) + TOUCH_CODE;

	memcpy(was, tail, len);
	memcpy(tail, touch_code, sizeof(touch_code));
	/* No hart runs what it has cached of that page. */
	__builtin___clear_cache((char *)tail, (char *)tail + sizeof(touch_code));
	return tail;
}

/* Run them, with n runs in the list. */
static int touch_go(struct vcpu *v, uint32_t n)
{
	const uint64_t base = mem_tail_gpa(&v->m->mem), list = base + TOUCH_LIST;
	const uint64_t begin[][2] = {
		{ CORE_PC, base + TOUCH_CODE },
		{ CORE_X(X_A0), list }, { CORE_X(X_A1), list + n * sizeof(struct touch_run) },
		{ CORE_X(X_A6), VMM_GUEST_SBI_RING }, { CORE_X(X_A7), VMM_GUEST_SBI },
		{ CORE_X(X_T3), 4096 },
	};
	int r = touch_set(v, begin, sizeof(begin) / sizeof(begin[0]));

	return r ? r : vcpu_errand(v);
}

static int touch_end(struct vcpu *v)
{
	static const uint64_t end[][2] = {
		{ CORE_PC, 0 }, { CORE_X(X_A0), 0 }, { CORE_X(X_A1), 0 }, { CORE_X(X_A6), 0 },
		{ CORE_X(X_A7), 0 }, { CORE_X(X_T0), 0 }, { CORE_X(X_T1), 0 }, { CORE_X(X_T3), 0 },
		{ CORE_X(X_T4), 0 },
	};

	return touch_set(v, end, sizeof(end) / sizeof(end[0]));
}

static int touch_some(struct machine *m, const struct mem_warm *runs, uint32_t n)
{
	struct touch_run *to = (void *)((uint8_t *)mem_tail(&m->mem) + TOUCH_LIST);
	uint32_t i;

	for (i = 0; i < n; i++) {
		to[i].begin = m->mem.gpa + runs[i].off;
		to[i].end = to[i].begin + runs[i].len;
	}
	return touch_go(&m->vcpu[0], n);
}

int touch(struct machine *m, const struct mem_warm *runs, uint32_t n, struct vmm_error *err)
{
	const size_t len = TOUCH_LIST - TOUCH_CODE +
			   (n < TOUCH_RUNS ? n : TOUCH_RUNS) * sizeof(struct touch_run);
	uint8_t *was, *tail;
	uint32_t some, done;
	int r = 0;

	if (!touch_can(m))
		return 0;
	was = malloc(len);
	if (!was)
		return fail(err, VMM_ENOMEM, "mapping guest RAM");
	tail = touch_begin(m, was, len);
	for (done = 0; done < n && r == 0; done += some) {
		some = n - done < TOUCH_RUNS ? n - done : (uint32_t)TOUCH_RUNS;
		r = touch_some(m, runs + done, some);
	}
	memcpy(tail, was, len);
	free(was);
	if (r == 0)
		r = touch_end(&m->vcpu[0]);
	return r < 0 ? fail_sys(err, -r, "mapping guest RAM") : 0;
}

int touch_forget(struct machine *m)
{
	uint8_t was[sizeof(touch_code)], *tail;
	struct vcpu *v;
	int r = 0;

	if (!touch_can(m))
		return -ENOTSUP;
	tail = touch_begin(m, was, sizeof(was));
	for (v = m->vcpu; v < m->vcpu + m->nvcpus && r == 0; v++) {
		if (!v->threaded)
			continue;		/* and has not run */
		r = kvm_mp_set(v->fd, KVM_MP_RUNNABLE);
		if (r == 0)
			r = touch_go(v, 0);
		if (r == 0)
			r = touch_end(v);
	}
	memcpy(tail, was, sizeof(was));
	return r;
}
