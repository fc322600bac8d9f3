/* SPDX-License-Identifier: MIT */
/*
 * frozen.c - arms every state a hart can be in, is frozen, and checks itself.
 *
 * It is frozen twice.  It rings 1 when all is armed, interrupts off: then every
 * register that can be read is noted down, and compared when arg[7] is not 0 any
 * more; after that what was pending comes, each thing once.  It rings 2 when
 * harts stand still on one instruction, with patterns in all their registers,
 * in S- or U-mode, under some paging: it goes on when the generation id's
 * interrupt tells hart 0 that it is a clone, which tells the others.
 *
 * arg[0]	which hart does what
 * arg[1]	the widest paging, 39, 48 or 57
 * arg[2]	FLAG_*
 * arg[3]	ticks of time a second
 * arg[4]	where the generation id is
 * arg[7]	GO: it has been frozen; and as CLONE, or as itself
 * counter[0]	ticks that were missing when it went on
 */
#include "lib/guest.h"

enum { GO = 1, CLONE = 2 };
/* EARLY: timers may be.  SINGLE: there is F, but not D. */
enum { FLAG_FP = 1, FLAG_VECTOR = 2, FLAG_EARLY = 4, FLAG_SINGLE = 8 };

#define WORDS		128		/* noted of a hart */
#define VLENB_MAX	256
#define SOURCES		30
#define FIRST		4		/* source: no device's in this machine */
#define GENERATED	25		/* identities */
#define LONE		26		/* enabled and pending */
#define IDLE		27		/* enabled */
#define SHUT		28		/* pending */
#define HIGH		31		/* enabled and pending */
#define BORN		29		/* for the second freeze: of the generation id, */
#define WAKE		30		/* and from hart 0 */

#define SSTATUS_SIE	(1ul << 1)
#define SSTATUS_SPIE	(1ul << 5)
#define SSTATUS_SPP	(1ul << 8)
#define SSTATUS_VS	9
#define SSTATUS_FS	13
#define SSTATUS_SUM	(1ul << 18)
#define SSTATUS_MXR	(1ul << 19)
#define SIP_STIP	(1ul << 5)

/* A hart that stands still: see still(). */
struct still {
	uint64_t	x[32];		/* to be loaded, and what was found */
	uint64_t	pc, sstatus;
	uint64_t	keep[14];
};

struct words {
	uint64_t	w[WORDS];
	unsigned int	n;
};

static struct words noted[GUEST_HARTS], found[GUEST_HARTS];
static struct still stills[GUEST_HARTS];
static uint8_t vector[GUEST_HARTS][32 * VLENB_MAX], vector_found[GUEST_HARTS][32 * VLENB_MAX];
static uint64_t newest, due[GUEST_HARTS];
static unsigned int seen[GUEST_HARTS][64], want[GUEST_HARTS][64];
static unsigned int timers[GUEST_HARTS], softs[GUEST_HARTS], missing[GUEST_HARTS];
static uint64_t identity[2];
static unsigned int n, awake, variant, gone, stage[8];
static uint64_t root39[512] __attribute__((aligned(4096)));
static uint64_t root48[512] __attribute__((aligned(4096)));
static uint64_t root57[512] __attribute__((aligned(4096)));
static uint64_t pages[1 << 10];

void still(struct still *s);
void fp_load(const uint64_t *f);
void fp_store(uint64_t *f);
void single_load(const uint64_t *f);
void single_store(uint64_t *f);
void vector_load(const uint8_t *v, uint64_t vlenb);
void vector_store(uint8_t *v, uint64_t vlenb);
extern char still_here[];

/*
 * still() loads what s says and jumps to pc, where a jump to itself is; it
 * returns at the first trap, with what it found.  a0 is s all the way out and,
 * through sscratch, in.
 */
__asm__(
"	.option push\n"
"	.option norelax\n"
"	.option arch, +d, +v\n"
"	.balign 4\n"
"	.globl still_here\n"
"still_here:\n"
"	.option norvc\n"
"	j	still_here\n"
"	.option rvc\n"
"	.globl still\n"
"still:\n"
"	.irp	r, 0,1,2,3,4,5,6,7,8,9,10,11\n"
"	sd	s\\r, 8*(34+\\r)(a0)\n"
"	.endr\n"
"	sd	sp, 8*46(a0)\n"
"	sd	ra, 8*47(a0)\n"
"	csrw	sscratch, a0\n"
"	lla	t0, still_trap\n"
"	csrw	stvec, t0\n"
"	ld	t0, 8*32(a0)\n"
"	csrw	sepc, t0\n"
"	ld	t0, 8*33(a0)\n"
"	csrw	sstatus, t0\n"
"	.irp	n, 1,2,3,4,5,6,7,8,9,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31,10\n"
"	ld	x\\n, 8*\\n(a0)\n"
"	.endr\n"
"	sret\n"
"	.balign 4\n"
"still_trap:\n"
"	csrrw	a0, sscratch, a0\n"
"	.irp	n, 1,2,3,4,5,6,7,8,9,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n"
"	sd	x\\n, 8*\\n(a0)\n"
"	.endr\n"
"	csrr	t0, sscratch\n"
"	sd	t0, 8*10(a0)\n"
"	csrr	t0, sepc\n"
"	sd	t0, 8*32(a0)\n"
"	csrr	t0, sstatus\n"
"	sd	t0, 8*33(a0)\n"
"	.irp	r, 0,1,2,3,4,5,6,7,8,9,10,11\n"
"	ld	s\\r, 8*(34+\\r)(a0)\n"
"	.endr\n"
"	ld	sp, 8*46(a0)\n"
"	ld	ra, 8*47(a0)\n"
"	lla	gp, __global_pointer$\n"
"	lla	t0, stills\n"		/* tp, from which of them it is */
"	sub	tp, a0, t0\n"
"	li	t0, 48*8\n"
"	divu	tp, tp, t0\n"
"	lla	t0, trap_entry\n"
"	csrw	stvec, t0\n"
"	ret\n"
"	.globl fp_load\n"
"fp_load:\n"
"	.irp	n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n"
"	fld	f\\n, 8*\\n(a0)\n"
"	.endr\n"
"	ret\n"
"	.globl fp_store\n"
"fp_store:\n"
"	.irp	n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n"
"	fsd	f\\n, 8*\\n(a0)\n"
"	.endr\n"
"	ret\n"
"	.globl single_load\n"
"single_load:\n"
"	.irp	n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n"
"	flw	f\\n, 8*\\n(a0)\n"
"	.endr\n"
"	ret\n"
"	.globl single_store\n"
"single_store:\n"
"	.irp	n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n"
"	fsw	f\\n, 8*\\n(a0)\n"
"	.endr\n"
"	ret\n"
"	.globl vector_load\n"
"vector_load:\n"
"	slli	a1, a1, 3\n"
"	.irp	n, 0,8,16,24\n"
"	vl8re8.v v\\n, (a0)\n"
"	add	a0, a0, a1\n"
"	.endr\n"
"	ret\n"
"	.globl vector_store\n"
"vector_store:\n"
"	slli	a1, a1, 3\n"
"	.irp	n, 0,8,16,24\n"
"	vs8r.v	v\\n, (a0)\n"
"	add	a0, a0, a1\n"
"	.endr\n"
"	ret\n"
"	.option pop\n");

_Static_assert(sizeof(struct still) == 48 * 8, "as the assembler has it");

static uint64_t pattern(unsigned int h, uint64_t i)
{
	return 0x0101010101010101ul * (h + 1) ^ (i + 1) * 0x9e3779b97f4a7c15ul;
}

/* All harts that are awake meet, each place but once. */
static void meet(unsigned int place, unsigned int all)
{
	__atomic_add_fetch(&stage[place], 1, __ATOMIC_SEQ_CST);
	while (__atomic_load_n(&stage[place], __ATOMIC_SEQ_CST) < all)
		;
}

/* What of f a floating point register holds. */
static uint64_t fp_bits(uint64_t f)
{
	return shared.arg[2] & FLAG_SINGLE ? (uint32_t)f : f;
}

static unsigned int kind(unsigned int h)
{
	return (h + variant) % 4;
}

/* ---- Paging ------------------------------------------------------------------- */

#define PTE_LEAF	0xcful			/* V R W X, A D */
#define PTE_USER	0x10ul
#define KERNEL_ALIAS	(6ul << 30)		/* of RAM, beside where it is */
#define USER_ALIAS	(5ul << 30)

static void make_tables(void)
{
	unsigned int i;

	for (i = 0; i < 4; i++)
		root39[i] = (uint64_t)i << 28 | PTE_LEAF;
	root39[5] = RAM >> 2 | PTE_LEAF | PTE_USER;
	root39[6] = RAM >> 2 | PTE_LEAF;
	root48[0] = (uintptr_t)root39 >> 2 | 1;
	root57[0] = (uintptr_t)root48 >> 2 | 1;
}

/* 0: none; else 8, 9, 10, as in satp. */
static unsigned int paging(unsigned int h)
{
	unsigned int mode = 7 + (h + variant + 1) % 4;

	while (mode > 7 && 39 + 9 * (mode - 8) > shared.arg[1])
		mode--;
	return mode > 7 ? mode : 0;
}

static void page(unsigned int h)
{
	uint64_t mode = paging(h), *root = mode == 8 ? root39 : mode == 9 ? root48 : root57;

	CSR_WRITE(satp, mode ? mode << 60 | (uintptr_t)root >> 12 : 0);
	__asm__ volatile("sfence.vma" : : : "memory");
	CHECK_EQ(CSR_READ(satp) >> 60, mode);
}

/* ---- Arming -------------------------------------------------------------------- */

static unsigned int probing[GUEST_HARTS];

static int absent(struct frame *f, uint64_t cause, uint64_t value)
{
	(void)value;
	if (cause != 2 || !probing[hart()])
		return 0;
	missing[hart()] = 1;
	f->pc += 4;
	return 1;
}

/* Vector instructions clear vstart. */
static uint64_t vstart(unsigned int h)
{
	return kind(h) < 2;
}

/*
 * QEMU's CSR writes do not make the state dirty for its host: if that has saved it since the
 * last instruction that does, KVM keeps what it saved then.  So such an instruction comes
 * last, and all of it twice; and vstart is written until it has outlived an exit.
 */
static void arm_floating(unsigned int h)
{
	void (*load)(const uint64_t *f) = shared.arg[2] & FLAG_SINGLE ? single_load : fp_load;
	uint64_t f[32], i, k, vlenb;

	CSR_WRITE(sstatus, SSTATUS_SUM | SSTATUS_MXR | 3ul << SSTATUS_FS | 3ul << SSTATUS_VS);
	if (shared.arg[2] & FLAG_VECTOR) {
		vlenb = CSR_READ(0xc22);
		CHECK(vlenb <= VLENB_MAX);
		for (i = 0; i < 32 * vlenb; i++)
			vector[h][i] = (uint8_t)(pattern(h, i / 8) >> i % 8 * 8);
		vector_load(vector[h], vlenb);
		do {
			for (k = 0; k < 2; k++) {
				CSR_WRITE(0x00f, kind(h) << 1 | (h & 1));	/* vcsr */
				if (kind(h) == 3)	/* vtype of nothing that there is */
					__asm__ volatile(".option push\n.option arch, +v\n"
							 "vsetvl x0, x0, %0\n.option pop"
							 : : "r"(0xfful));
				else
					__asm__ volatile(".option push\n.option arch, +v\n"
							 "vsetivli x0, 3, e32, m2, tu, mu\n"
							 ".option pop");
			}
			if (vstart(h)) {
				CSR_WRITE(0x008, vstart(h));
				R8(UART + UART_LSR);
			}
		} while (CSR_READ(0x008) != vstart(h));
	}
	if (shared.arg[2] & FLAG_FP) {
		for (i = 0; i < 32; i++)
			f[i] = pattern(h, 200 + i);
		for (k = 0; k < 2; k++) {
			CSR_WRITE(0x003, (uint64_t)(h + 1) % 5 << 5 | (h + 3) % 32);	/* fcsr */
			load(f);
		}
	}
}

static void check_floating(unsigned int h)
{
	void (*store)(uint64_t *f) = shared.arg[2] & FLAG_SINGLE ? single_store : fp_store;
	uint64_t f[32], i, k, vlenb;

	CSR_WRITE(sstatus, CSR_READ(sstatus) | 3ul << SSTATUS_FS | 3ul << SSTATUS_VS);
	if (shared.arg[2] & FLAG_FP) {
		store(f);
		for (i = 0; i < 32; i++)
			if (fp_bits(f[i]) != fp_bits(pattern(h, 200 + i)))
				guest_fail("floating point register", (unsigned int)i, "found, set",
					   f[i], pattern(h, 200 + i));
		CHECK_EQ(CSR_READ(0x003), (uint64_t)(h + 1) % 5 << 5 | (h + 3) % 32);
	}
	if (shared.arg[2] & FLAG_VECTOR) {
		vlenb = CSR_READ(0xc22);
		CHECK_EQ(CSR_READ(0x008), vstart(h));
		CHECK_EQ(CSR_READ(0x00f), kind(h) << 1 | (h & 1));
		CHECK_EQ(CSR_READ(0xc20), kind(h) == 3 ? 0 : 3);
		CHECK_EQ(CSR_READ(0xc21), kind(h) == 3 ? 1ul << 63 : 0x11);
		/* Twice: with the old vstart the first byte is left out. */
		for (k = 0; k < 2; k++) {
			CSR_WRITE(0x008, 0);
			vector_store(vector_found[h], vlenb);
		}
		for (i = 0; i < 32 * vlenb; i++)
			if (vector_found[h][i] != vector[h][i])
				guest_fail("vector register", (unsigned int)(i / vlenb), "found, set",
					   vector_found[h][i], vector[h][i]);
	}
}

/* Far, past, never, soon; by SBI on some. */
static void arm_timer(unsigned int h)
{
	const uint64_t hz = shared.arg[3];
	uint64_t now = time_now();

	switch (kind(h)) {
	case 0:
		due[h] = now + 3600 * hz;
		break;
	case 1:
		due[h] = now - 5;
		break;
	case 2:
		due[h] = ~0ul;
		break;
	default:
		due[h] = now + hz / 5;
		break;
	}
	if (variant & 1)
		timer_by_sbi(due[h]);
	else
		timer_set(due[h]);
	while (kind(h) == 1 && !(CSR_READ(sip) & SIP_STIP))
		;
}

static void expect_msi(unsigned int h, uint32_t id)
{
	want[h][id]++;
}

static void arm_imsic(unsigned int h)
{
	uint32_t id;

	imsic_init();
	for (id = 1; id < GENERATED; id++)
		imsic_enable(id);		/* the APLIC's */
	imsic_enable(LONE);
	imsic_enable(IDLE);
	imsic_enable(HIGH);
	msi(h, LONE);
	msi(h, SHUT);
	msi(h, HIGH);
	while ((imsic_get(IMSIC_EIP) >> LONE & 0x25) != 0x25)
		;
	if (kind(h) == 1)
		imsic_set(IMSIC_THRESHOLD, IDLE);
	if (kind(h) == 2)
		imsic_set(IMSIC_DELIVERY, 0);
	expect_msi(h, LONE);
	expect_msi(h, HIGH);
}

/* Every mode of a source, enabled or not, pending or not. */
static void arm_aplic(void)
{
	static const uint8_t modes[] = { 0, 1, 4, 5, 6, 7 };
	unsigned int s, k, id = 1, on = variant & 1;
	uint32_t pending, enabled;

	R32(APLIC + APLIC_DOMAINCFG) = 0;
	for (k = 0; k < 24; k++) {
		s = FIRST + k;
		R32(APLIC + APLIC_SOURCECFG + 4 * (s - 1)) = modes[k / 4];
		if (modes[k / 4])
			R32(APLIC + APLIC_TARGET + 4 * (s - 1)) = (k % awake) << 18 | id++;
		if (k & 1)
			R32(APLIC + APLIC_SETIENUM) = s;
		if (k & 2)
			R32(APLIC + APLIC_SETIPNUM) = s;
	}
	pending = R32(APLIC + 0x1c00);
	enabled = R32(APLIC + 0x1e00);
	for (s = 1; s <= SOURCES; s++)
		if (pending & enabled & 1u << s)
			expect_msi(R32(APLIC + APLIC_TARGET + 4 * (s - 1)) >> 18,
				   R32(APLIC + APLIC_TARGET + 4 * (s - 1)) & 0x7ff);
	R32(APLIC + APLIC_DOMAINCFG) = on ? 0x100 : 0;
	CHECK(!on || !(R32(APLIC + 0x1c00) & enabled));
}

/* A message made by the APLIC, which has come long before. */
static void generate(void)
{
	uint64_t eie = imsic_get(IMSIC_EIE);

	imsic_set(IMSIC_EIE, 1ul << GENERATED);
	R32(APLIC + APLIC_DOMAINCFG) = 0x100;
	R32(APLIC + 0x3000) = GENERATED;
	while (CSR_READ(CSR_STOPEI) >> 16 != GENERATED)
		;
	CSR_SWAP(CSR_STOPEI, 0);
	imsic_set(IMSIC_EIE, eie | 1ul << GENERATED);
}

static void arm(unsigned int h)
{
	unsigned int i;
	uint64_t uie;

	arm_floating(h);
	if (h == 0) {
		imsic_init();
		generate();
		for (i = 0; i < sizeof(pages) / 8; i++)
			pages[i] = pattern(0, i);
		/* A level that comes and goes: the UART pulses its line. */
		R32(APLIC + APLIC_SOURCECFG) = 6;
		R8(UART + UART_IER) = 2;
		CHECK_EQ(R32(APLIC + 0x1c00), 1u << IRQ_UART);
		R8(UART + UART_LCR) = 0x1b;
		R8(UART + 7) = 0x5a;
		R8(UART + UART_MCR) = 0x0b;
		R32(RTC + 0x0c) = 0x7fffffff;		/* an alarm, some day */
		R32(RTC + 0x08) = 0x12345678;
		R32(RTC + 0x10) = 1;
	}
	arm_imsic(h);
	meet(0, awake);
	if (h == 0)
		arm_aplic();
	meet(1, awake);
	CSR_WRITE(scounteren, 2 + h % 4);
	CSR_WRITE(0x10a, kind(h) & 1 ? 0xd1 : 0x80);		/* senvcfg */
	probing[h] = 1;
	__asm__ volatile(".option push\n.option norvc\ncsrw 0x10c, %0\n.option pop" : : "r"(~0ul));
	for (i = 0; i < 16; i += 2) {				/* iprio */
		CSR_WRITE(CSR_SISELECT, 0x30 + i);
		CSR_WRITE(CSR_SIREG, 0x0102030405060708ul * (h % 3 + 1) + kind(h) * 0x100000001000ul);
	}
	probing[h] = 0;
	CSR_WRITE(sie, SIE_SOFT | SIE_TIMER | SIE_EXTERNAL);
	__asm__ volatile("csrsi sip, 2");
	arm_timer(h);
	uie = CSR_READ(sstatus) & ~(3ul << SSTATUS_FS | 3ul << SSTATUS_VS);
	uie |= (uint64_t)kind(h) << SSTATUS_FS | (uint64_t)(3 - kind(h)) << SSTATUS_VS;
	CSR_WRITE(sstatus, uie | (kind(h) & 1 ? SSTATUS_SPP : SSTATUS_SPIE));
	CSR_WRITE(sscratch, pattern(h, 1));
	CSR_WRITE(sepc, pattern(h, 2) & ~1ul & 0x3ffffffffful);
	CSR_WRITE(scause, kind(h) + 12);
	CSR_WRITE(stval, pattern(h, 3));
	CSR_WRITE(CSR_SISELECT, 0x30 + 2 * kind(h));
}

/* ---- Noting down, and comparing ----------------------------------------------------- */

static const uint64_t sbi_known[] = { SBI_TIME, SBI_IPI, 0x52464e43, SBI_HSM, SBI_SRST, SBI_DBCN,
				      0x504d55, 0x535441, 0x53555350, 0x46574654, 0x4d505859,
				      VMM_GUEST_SBI };

static void note(struct words *w, uint64_t v)
{
	CHECK(w->n < WORDS);
	w->w[w->n++] = v;
}

static void note_all(unsigned int h, struct words *w)
{
	uint64_t select = CSR_READ(CSR_SISELECT), i, v;
	/* A timer that comes when it comes. */
	int soon = kind(h) == 3 || (kind(h) == 0 && (shared.arg[2] & FLAG_EARLY));

	w->n = 0;
	note(w, select);
	note(w, CSR_READ(sstatus));
	note(w, CSR_READ(sie));
	v = CSR_READ(sip);
	note(w, soon ? v & ~SIP_STIP : v);
	note(w, CSR_READ(stvec));
	note(w, CSR_READ(sscratch));
	note(w, CSR_READ(sepc));
	note(w, CSR_READ(scause));
	note(w, CSR_READ(stval));
	note(w, CSR_READ(satp));			/* 9 */
	note(w, CSR_READ(scounteren));
	note(w, CSR_READ(0x10a));
	/* A trap would change what is noted down above. */
	note(w, missing[h] ? 0 : CSR_READ(0x10c));
	v = CSR_READ(0xdb0);				/* stopi */
	note(w, soon ? 0 : v);
	note(w, CSR_READ(CSR_STOPEI));
	note(w, has_sstc() ? CSR_READ(CSR_STIMECMP) : 0);
	for (i = 0; i < 16; i += 2)			/* 16: iprio */
		note(w, imsic_get((uint32_t)(0x30 + i)));
	note(w, imsic_get(IMSIC_DELIVERY));		/* 24 */
	note(w, imsic_get(IMSIC_THRESHOLD));
	note(w, imsic_get(IMSIC_EIP) & 0xffffffff);
	note(w, imsic_get(IMSIC_EIE) & 0xffffffff);
	for (i = 0; i < sizeof(sbi_known) / sizeof(sbi_known[0]); i++)
		note(w, sbi(0x10, 3, sbi_known[i], 0, 0).value);
	for (i = 4; i <= 6; i++)			/* 40: mvendorid and so on */
		note(w, sbi(0x10, i, 0, 0, 0).value);
	for (i = 0; i < n; i++)
		note(w, sbi(SBI_HSM, 2, i, 0, 0).value);
	if (h == 0) {
		for (i = 0; i < SOURCES; i++) {
			note(w, R32(APLIC + APLIC_SOURCECFG + 4 * i));
			note(w, R32(APLIC + APLIC_TARGET + 4 * i));
		}
		note(w, R32(APLIC + APLIC_DOMAINCFG));
		note(w, R32(APLIC + 0x1c00));
		note(w, R32(APLIC + 0x1e00));
		note(w, R32(APLIC + APLIC_INPUT));
		for (i = 1; i < 8; i++)
			note(w, i == UART_IIR ? 0 : R8(UART + i));
		note(w, R32(RTC + 0x08));
		note(w, R32(RTC + 0x0c));
		note(w, R32(RTC + 0x10));
		note(w, R32(RTC + 0x18));
	}
	CSR_WRITE(CSR_SISELECT, select);
}

static void compare(unsigned int h, const char *when)
{
	unsigned int i;

	note_all(h, &found[h]);
	CHECK_EQ(found[h].n, noted[h].n);
	for (i = 0; i < noted[h].n; i++)
		if (found[h].w[i] != noted[h].w[i])
			guest_fail(when, i, "word found, noted", found[h].w[i], noted[h].w[i]);
	for (i = 0; i < sizeof(pages) / 8 && h == 0; i++)
		CHECK_EQ(pages[i], pattern(0, i));
}

/* ---- What was pending comes, once ------------------------------------------------------ */

static void on_message(uint32_t id)
{
	seen[hart()][id % 64]++;
}

static void on_tick(void)
{
	unsigned int h = hart();

	if (!(shared.arg[2] & FLAG_EARLY))
		CHECK(time_now() >= due[h]);
	timers[h]++;
	timer_set(~0ul);
}

static void on_softly(void)
{
	softs[hart()]++;
}

static void rest(uint64_t ticks)
{
	uint64_t until = time_now() + ticks;

	irqs_on();
	while (time_now() < until)
		;
	irqs_off();
}

/* Take what comes until it is what is wanted, and then nothing more. */
static void take(unsigned int h, uint64_t mask)
{
	uint64_t until = time_now() + 20 * shared.arg[3];
	unsigned int id, open;

	do {
		rest(1000);
		for (open = 0, id = 1; id < 32; id++)
			open += (mask >> id & 1) && seen[h][id] < want[h][id];
	} while (open && time_now() < until);
	rest(1000);
	for (id = 1; id < 32; id++)
		if (seen[h][id] != (mask >> id & 1 ? want[h][id] : 0))
			guest_fail("identity", id, "seen, wanted", seen[h][id], want[h][id]);
}

static void thaw(unsigned int h)
{
	unsigned int s, early = shared.arg[2] & FLAG_EARLY;
	uint64_t mask = ~0ul;

	on_msi = on_message;
	on_timer = on_tick;
	on_soft = on_softly;
	/* What the threshold, or the file as a whole, or the APLIC holds back
	   must not come yet; but what it has already sent is in the file. */
	if (kind(h) == 1)
		mask = (1ul << IDLE) - 1;
	if (kind(h) == 2)
		mask = 0;
	if (!(variant & 1))
		mask &= ~((1ul << GENERATED) - 1);
	take(h, mask);
	CHECK_EQ(softs[h], 1);
	meet(2, awake);
	if (h == 0)
		R32(APLIC + APLIC_DOMAINCFG) = 0x100;
	imsic_set(IMSIC_THRESHOLD, 0);
	imsic_set(IMSIC_DELIVERY, 1);
	imsic_enable(SHUT);
	expect_msi(h, SHUT);
	take(h, ~0ul);
	meet(3, awake);
	/* A line that is low and means it (mode 7) is sent once more if asked. */
	if (h == 0) {
		for (s = FIRST + 20; s < FIRST + 24; s += 1)
			if (R32(APLIC + 0x1e00) >> s & 1) {
				uint32_t t = R32(APLIC + APLIC_TARGET + 4 * (s - 1));

				expect_msi(t >> 18, t & 0x7ff);
				R32(APLIC + 0x2000) = s;	/* setipnum_le */
			}
	}
	meet(4, awake);
	take(h, ~0ul);
	/* The timer: at once, soon, or not. */
	switch (kind(h)) {
	case 1:
		CHECK_EQ(timers[h], 1);
		break;
	case 3:
		while (!timers[h])
			rest(1000);
		CHECK_EQ(timers[h], 1);
		break;
	default:
		CHECK(timers[h] == 0 || (early && timers[h] == 1));
		break;
	}
	CHECK_EQ(softs[h], 1);
}

/* ---- The second freeze -------------------------------------------------------------------- */

static void stand(unsigned int h)
{
	struct still *s = &stills[h];
	int user = kind(h) & 1, i;
	uint64_t x[32], pc = (uintptr_t)still_here;

	timer_set(~0ul);
	imsic_init();
	imsic_set(IMSIC_EIE, 0);
	imsic_enable(h ? WAKE : BORN);
	CSR_WRITE(sie, SIE_EXTERNAL);
	arm_floating(h);
	for (i = 0; i < 32; i++)
		s->x[i] = x[i] = pattern(h, 100 + i);
	if (paging(h))
		pc += user ? USER_ALIAS - RAM : KERNEL_ALIAS - RAM;
	s->pc = pc;
	s->sstatus = (CSR_READ(sstatus) & ~SSTATUS_SPP) | SSTATUS_SPIE | (user ? 0 : SSTATUS_SPP);
	if (h == 0) {
		for (i = 1; i <= SOURCES; i++)
			R32(APLIC + APLIC_SOURCECFG + 4 * (i - 1)) = 0;
		aplic_route(IRQ_GENID, 0, BORN);
		while (__atomic_load_n(&stage[5], __ATOMIC_SEQ_CST) < n - 1)
			;
		ring(2);
	} else {
		__atomic_add_fetch(&stage[5], 1, __ATOMIC_SEQ_CST);
	}
	still(s);
	CHECK_EQ(hart(), h);
	CHECK_EQ(CSR_READ(scause), 1ul << 63 | 9);
	CHECK_EQ(s->pc, pc);
	CHECK_EQ(!(s->sstatus & SSTATUS_SPP), user);
	for (i = 1; i < 32; i++)
		if (s->x[i] != x[i])
			guest_fail("register", (unsigned int)i, "found, set", s->x[i], x[i]);
	check_floating(h);
	CHECK_EQ(CSR_READ(satp) >> 60, paging(h));
	CHECK_EQ(CSR_SWAP(CSR_STOPEI, 0) >> 16, h ? WAKE : BORN);
	CHECK_EQ(CSR_READ(CSR_STOPEI), 0);
	for (i = 1; i < (int)n && h == 0; i++)
		msi((unsigned int)i, WAKE);
	meet(6, n);
}

/* ---- A hart's way ---------------------------------------------------------------------------- */

/* One that slept through the first freeze. */
static void late(uint64_t arg)
{
	(void)arg;
	page(hart());
	stand(hart());
}

/* How much time no hart has seen since the last of them looked is noted down if the
   machine has been frozen, until the first goes its way, and looks no more. */
static void look(void)
{
	uint64_t before = __atomic_load_n(&newest, __ATOMIC_SEQ_CST), t = time_now(), old;

	CHECK(t >= before);
	__asm__ volatile("amomaxu.d.aqrl %0, %2, %1" : "=r"(old), "+A"(newest) : "r"(t) : "memory");
	if (shared.arg[7] && !gone && t > old && t - old > shared.counter[0])
		shared.counter[0] = t - old;
}

static void wait_frozen(void)
{
	uint64_t go;

	do {
		go = shared.arg[7];
		look();
	} while (!go);
	__atomic_store_n(&gone, 1, __ATOMIC_SEQ_CST);
}

static void freeze(uint64_t arg)
{
	unsigned int h = hart(), i;

	(void)arg;
	page(h);
	arm(h);
	note_all(h, &noted[h]);
	compare(h, "armed");		/* it is the same if nothing happens */
	look();
	__atomic_add_fetch(&stage[7], 1, __ATOMIC_SEQ_CST);
	if (h == 0) {
		while (__atomic_load_n(&stage[7], __ATOMIC_SEQ_CST) < awake)
			;
		identity[0] = R64(shared.arg[4]);
		identity[1] = R64(shared.arg[4] + 8);
		ring(1);
	}
	wait_frozen();
	compare(h, "thawed");
	if (h == 0)
		CHECK_EQ(identity[0] != R64(shared.arg[4]) || identity[1] != R64(shared.arg[4] + 8),
			 (shared.arg[7] & CLONE) != 0);
	check_floating(h);
	/* What is pending ends a WFI, interrupts off; but KVM does not know of a
	   software interrupt alone (riscv/hart.c). */
	if (kind(h) != 2)
		__asm__ volatile("wfi" : : : "memory");
	thaw(h);
	if (h == 0)
		for (i = awake; i < n; i++)
			hart_start(i, late, 0);
	stand(h);
}

int main(void)
{
	unsigned int i;

	n = harts();
	variant = (unsigned int)shared.arg[0];
	awake = n > 1 && variant & 2 ? n - 1 : n;
	has_sstc();
	on_exception = absent;
	make_tables();
	for (i = 1; i < awake; i++)
		hart_start(i, freeze, 0);
	freeze(0);
	return 0;
}
