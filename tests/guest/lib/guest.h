/* SPDX-License-Identifier: MIT */
/*
 * guest.h - what a test guest is made of.
 *
 * A guest is one C file with a main() that runs on hart 0 in S-mode, without
 * paging, in one address space for all harts.  What main() returns is the
 * guest's exit code.  CHECK() ends the guest and tells the host program which
 * check failed, where, and with which two values.
 *
 * Interrupts are off in main() until irqs_on() or wait_for(); handlers run
 * with interrupts off.  A trap that nobody expects is a failed check.
 */
#ifndef GUEST_H
#define GUEST_H

#include <stddef.h>
#include <stdint.h>

#include "../../../vmm_guest.h"
#include "shared.h"

/* Where things are (riscv/map.h). */
#define APLIC		0x0d000000ul
#define UART		0x10000000ul
#define RTC		0x10001000ul
#define DOORBELL	VMM_GUEST_DOORBELL
#define VIRTIO		0x10008000ul
#define IMSIC		0x28000000ul
#define RAM		0x80000000ul
#define IRQ_UART	1
#define IRQ_RTC		2
#define IRQ_GENID	3

extern volatile struct guest_shared shared;

int main(void);

/* ---- Checks -------------------------------------------------------------- */

#define CHECK(cond)	CHECK_EQ(!(cond), 0)
#define CHECK_EQ(x, y)							\
	do {								\
		uint64_t x_ = (uint64_t)(x), y_ = (uint64_t)(y);	\
		if (x_ != y_)						\
			guest_fail(__FILE__, __LINE__, #x " == " #y, x_, y_); \
	} while (0)

void guest_fail(const char *file, unsigned int line, const char *what, uint64_t a, uint64_t b)
	__attribute__((noreturn));

/* ---- SBI ------------------------------------------------------------------ */

#define SBI_TIME	0x54494d45ul
#define SBI_IPI		0x735049ul
#define SBI_HSM		0x48534dul
#define SBI_SRST	0x53525354ul
#define SBI_DBCN	0x4442434eul
#define SBI_NOT_SUPPORTED	(-2)

struct sbiret {
	long		error;
	uint64_t	value;
};

struct sbiret sbi(uint64_t ext, uint64_t fn, uint64_t a0, uint64_t a1, uint64_t a2);

void ring(uint64_t value);
void quit(uint64_t code) __attribute__((noreturn));
void print(const char *s);		/* by the debug console; all of it */
void print_number(uint64_t n);

/* ---- CSRs and memory -------------------------------------------------------- */

#define CSR_SISELECT	0x150
#define CSR_SIREG	0x151
#define CSR_STIMECMP	0x14d
#define CSR_STOPEI	0x15c
#define CSR_SEED	0x015
#define CSR_TEXT(csr)	#csr
#define CSR_NAME(csr)	CSR_TEXT(csr)
#define CSR_READ(csr)							\
	({ uint64_t v_; __asm__ volatile("csrr %0, " CSR_NAME(csr) : "=r"(v_) : : "memory"); v_; })
#define CSR_WRITE(csr, v)						\
	__asm__ volatile("csrw " CSR_NAME(csr) ", %0" : : "r"((uint64_t)(v)) : "memory")
#define CSR_SWAP(csr, v)						\
	({ uint64_t v_; __asm__ volatile("csrrw %0, " CSR_NAME(csr) ", %1"	\
		: "=r"(v_) : "r"((uint64_t)(v)) : "memory"); v_; })

#define SIE_SOFT	(1ul << 1)
#define SIE_TIMER	(1ul << 5)
#define SIE_EXTERNAL	(1ul << 9)

#define R8(a)		(*(volatile uint8_t *)(uintptr_t)(a))
#define R16(a)		(*(volatile uint16_t *)(uintptr_t)(a))
#define R32(a)		(*(volatile uint32_t *)(uintptr_t)(a))
#define R64(a)		(*(volatile uint64_t *)(uintptr_t)(a))

static inline unsigned int hart(void)
{
	uint64_t id;

	__asm__("mv %0, tp" : "=r"(id));
	return (unsigned int)id;
}

static inline uint64_t time_now(void)
{
	uint64_t t;

	__asm__ volatile("rdtime %0" : "=r"(t) : : "memory");
	return t;
}

/* ---- Harts -------------------------------------------------------------------- */

unsigned int harts(void);		/* how many the machine has */
void hart_start(unsigned int id, void (*fn)(uint64_t arg), uint64_t arg);

/* ---- Traps -------------------------------------------------------------------- */

struct frame {
	uint64_t	x[32];		/* x[0] is not used */
	uint64_t	pc;
};

/* Return 1 if the exception is dealt with; f->pc is where to go on. */
extern int (*on_exception)(struct frame *f, uint64_t cause, uint64_t value);
extern void (*on_timer)(void);
extern void (*on_soft)(void);
extern void (*on_msi)(uint32_t id);	/* an IMSIC identity, claimed */

static inline void irqs_on(void)
{
	__asm__ volatile("csrsi sstatus, 2" : : : "memory");
}

static inline void irqs_off(void)
{
	__asm__ volatile("csrci sstatus, 2" : : : "memory");
}

/* Sleep until cond, which only an interrupt handler of this hart, or another
   hart that then sends an interrupt, makes true. */
#define wait_for(cond)							\
	do {								\
		irqs_off();						\
		while (!(cond)) {					\
			__asm__ volatile("wfi" : : : "memory");		\
			irqs_on();					\
			irqs_off();					\
		}							\
	} while (0)

/* ---- Interrupt controllers, timer, UART ------------------------------------------ */

void imsic_init(void);			/* of this hart: deliver */
void imsic_enable(uint32_t id);
uint64_t imsic_get(uint32_t reg);
void imsic_set(uint32_t reg, uint64_t value);
#define IMSIC_DELIVERY	0x70
#define IMSIC_THRESHOLD	0x72
#define IMSIC_EIP	0x80
#define IMSIC_EIE	0xc0

/* To any hart's IMSIC: an IPI is that, too. */
static inline void msi(unsigned int id, uint32_t identity)
{
	__asm__ volatile("fence rw, o" : : : "memory");
	R32(IMSIC + 0x1000ul * id) = identity;
}

/* Source src, edge-triggered, becomes identity id on a hart. */
void aplic_route(uint32_t src, unsigned int to_hart, uint32_t id);
#define APLIC_DOMAINCFG	0x0000
#define APLIC_SOURCECFG	0x0004
#define APLIC_SETIPNUM	0x1cdc
#define APLIC_INPUT	0x1d00
#define APLIC_SETIENUM	0x1edc
#define APLIC_CLRIENUM	0x1fdc
#define APLIC_TARGET	0x3004

int has_sstc(void);
void timer_set(uint64_t when);		/* by Sstc if there is, else by SBI */
unsigned int timer_by_sbi(uint64_t when);	/* until it is set: how often KVM lost it */

enum { UART_DATA = 0, UART_IER = 1, UART_IIR = 2, UART_FCR = 2, UART_LCR = 3, UART_MCR = 4,
       UART_LSR = 5 };

#endif
