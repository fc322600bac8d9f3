/* SPDX-License-Identifier: MIT */
/*
 * guest.c - the library of test guests: see guest.h.
 *
 * Freestanding, S-mode, no floating point, no paging.  One copy of everything
 * is shared by all harts.
 */
#include "guest.h"

volatile struct guest_shared shared __attribute__((section(".shared")));

int (*on_exception)(struct frame *f, uint64_t cause, uint64_t value);
void (*on_timer)(void);
void (*on_soft)(void);
void (*on_msi)(uint32_t id);

struct start {
	void		(*fn)(uint64_t arg);
	uint64_t	arg;
};

static const uint8_t *tree;
static struct start starts[GUEST_HARTS];
static struct guest_report reports[GUEST_HARTS];

void guest_main(uint64_t id, uint64_t fdt) __attribute__((noreturn));
void guest_secondary(struct start *s) __attribute__((noreturn));
void guest_trap(struct frame *f);
extern char secondary[], trap_entry[];

/* ---- SBI ------------------------------------------------------------------ */

struct sbiret sbi(uint64_t ext, uint64_t fn, uint64_t arg0, uint64_t arg1, uint64_t arg2)
{
	register uint64_t a0 __asm__("a0") = arg0;
	register uint64_t a1 __asm__("a1") = arg1;
	register uint64_t a2 __asm__("a2") = arg2;
	register uint64_t a6 __asm__("a6") = fn;
	register uint64_t a7 __asm__("a7") = ext;

	__asm__ volatile("ecall" : "+r"(a0), "+r"(a1) : "r"(a2), "r"(a6), "r"(a7) : "memory");
	return (struct sbiret){ (long)a0, a1 };
}

void ring(uint64_t value)
{
	sbi(VMM_GUEST_SBI, VMM_GUEST_SBI_RING, value, 0, 0);
}

void quit(uint64_t code)
{
	for (;;)
		sbi(VMM_GUEST_SBI, VMM_GUEST_SBI_EXIT, code, 0, 0);
}

void print(const char *s)
{
	size_t n = 0;
	struct sbiret r;

	while (s[n])
		n++;
	while (n) {
		r = sbi(SBI_DBCN, 0, n, (uintptr_t)s, 0);
		if (r.error == SBI_NOT_SUPPORTED)
			return;		/* no serial port: nobody listens */
		CHECK_EQ(r.error, 0);
		CHECK(r.value <= n);
		s += r.value;
		n -= r.value;
	}
}

void print_number(uint64_t n)
{
	char buf[24], *p = buf + sizeof(buf) - 1;

	*p = 0;
	do
		*--p = (char)('0' + n % 10);
	while (n /= 10);
	print(p);
}

/* ---- Checks ------------------------------------------------------------------ */

void guest_fail(const char *file, unsigned int line, const char *what, uint64_t a, uint64_t b)
{
	struct guest_report *r = &reports[hart() % GUEST_HARTS];

	*r = (struct guest_report){ (uintptr_t)file, (uintptr_t)what, line, hart(), a, b };
	ring(GUEST_REPORT | (uintptr_t)r);
	quit(GUEST_FAILED);
}

/* ---- Harts --------------------------------------------------------------------- */

static uint32_t be32(const uint8_t *p)
{
	return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

void guest_main(uint64_t id, uint64_t fdt)
{
	CHECK_EQ(id, 0);
	CHECK_EQ(fdt & 7, 0);
	tree = (const uint8_t *)fdt;
	CHECK_EQ(be32(tree), 0xd00dfeed);
	quit((uint64_t)main());
}

void guest_secondary(struct start *s)
{
	s->fn(s->arg);
	for (;;)				/* back to where it came from */
		sbi(SBI_HSM, 1, 0, 0, 0);
}

/*
 * From the device tree, by its nodes "cpu@N" (Devicetree Specification 0.4, 5.4):
 * KVM's SBI has a status even for harts that do not exist.
 */
unsigned int harts(void)
{
	const char *p = (const char *)tree + be32(tree + 8);
	unsigned int n = 0;
	uint32_t token;

	while ((token = be32((const uint8_t *)p)) != 9) {
		p += 4;
		if (token == 1) {
			if (p[0] == 'c' && p[1] == 'p' && p[2] == 'u' && p[3] == '@')
				n++;
			while (*p)
				p++;
			p = (const char *)(((uintptr_t)p + 4) & ~3ul);
		} else if (token == 3) {
			p += 8 + ((be32((const uint8_t *)p) + 3) & ~3u);
		}
	}
	return n;
}

void hart_start(unsigned int id, void (*fn)(uint64_t arg), uint64_t arg)
{
	starts[id] = (struct start){ fn, arg };
	CHECK_EQ(sbi(SBI_HSM, 0, id, (uintptr_t)secondary, (uintptr_t)&starts[id]).error, 0);
}

/* ---- Traps ---------------------------------------------------------------------- */

void guest_trap(struct frame *f)
{
	uint64_t cause = CSR_READ(scause), value = CSR_READ(stval), id;

	if (cause >> 63 == 0) {
		if (!on_exception || !on_exception(f, cause, value))
			guest_fail("exception", (unsigned int)cause, "pc, stval", f->pc, value);
		return;
	}
	switch (cause & 0xff) {
	case 1:
		__asm__ volatile("csrci sip, 2");
		CHECK(on_soft);
		on_soft();
		break;
	case 5:
		CHECK(on_timer);
		on_timer();
		break;
	case 9:
		while ((id = CSR_SWAP(CSR_STOPEI, 0) >> 16) != 0) {
			CHECK(on_msi);
			on_msi((uint32_t)id);
		}
		break;
	default:
		guest_fail("interrupt", cause & 0xff, "pc, stval", f->pc, value);
	}
}

/* ---- Interrupt controllers -------------------------------------------------------- */

uint64_t imsic_get(uint32_t reg)
{
	CSR_WRITE(CSR_SISELECT, reg);
	return CSR_READ(CSR_SIREG);
}

void imsic_set(uint32_t reg, uint64_t value)
{
	CSR_WRITE(CSR_SISELECT, reg);
	CSR_WRITE(CSR_SIREG, value);
}

void imsic_init(void)
{
	imsic_set(IMSIC_DELIVERY, 1);
	imsic_set(IMSIC_THRESHOLD, 0);
	__asm__ volatile("csrs sie, %0" : : "r"(SIE_EXTERNAL));
}

void imsic_enable(uint32_t id)
{
	/* One register for 64 identities, on a 64-bit hart with an even number. */
	uint32_t reg = IMSIC_EIE + id / 64 * 2;

	imsic_set(reg, imsic_get(reg) | 1ul << (id % 64));
}

void aplic_route(uint32_t src, unsigned int to_hart, uint32_t id)
{
	R32(APLIC + APLIC_SOURCECFG + 4 * (src - 1)) = 4;	/* rising edge */
	R32(APLIC + APLIC_TARGET + 4 * (src - 1)) = to_hart << 18 | id;
	R32(APLIC + APLIC_SETIENUM) = src;
	R32(APLIC + APLIC_DOMAINCFG) = 0x104;			/* IE, MSI mode */
}

/* ---- Timer -------------------------------------------------------------------------- */

static int sstc;			/* 0: not known yet, 1: no, 2: yes */

static int sstc_missing(struct frame *f, uint64_t cause, uint64_t value)
{
	(void)value;
	CHECK_EQ(cause, 2);
	sstc = 1;
	f->pc += 4;
	return 1;
}

int has_sstc(void)
{
	int (*old)(struct frame *f, uint64_t cause, uint64_t value) = on_exception;

	if (!sstc) {
		on_exception = sstc_missing;
		CSR_READ(CSR_STIMECMP);
		on_exception = old;
		if (!sstc)
			sstc = 2;
	}
	return sstc == 2;
}

/*
 * With Sstc all that KVM does is to write the CSR; what it loads next time it reads
 * at a guest's exit.  So a vCPU whose thread is preempted, or has a signal, on its way
 * back into the guest has the timer that it had before (Linux 6.12 and 7.2, KVM's
 * vcpu_timer.c; of 200,000 calls 10,874 and 15,264 were lost beside two threads
 * that wake all the time).  No VMM can help that: a0 holds the call's result then.
 */
unsigned int timer_by_sbi(uint64_t when)
{
	unsigned int lost;

	for (lost = 0;; lost++) {
		CHECK_EQ(sbi(SBI_TIME, 0, when, 0, 0).error, 0);
		if (!has_sstc() || CSR_READ(CSR_STIMECMP) == when)
			return lost;
	}
}

void timer_set(uint64_t when)
{
	if (has_sstc())
		CSR_WRITE(CSR_STIMECMP, when);
	else
		timer_by_sbi(when);
}
