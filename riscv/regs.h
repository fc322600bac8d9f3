/* SPDX-License-Identifier: MIT */
/*
 * regs.h - the ids of RISC-V KVM's ONE_REG registers.
 *
 * An id says its architecture, its size and which register it is (Linux,
 * Documentation/virt/kvm/api.rst 4.68, arch/riscv/include/uapi/asm/kvm.h).
 * They are written out here because the library is also built, and tested with
 * a fake KVM, where that header is not.
 */
#ifndef RISCV_REGS_H
#define RISCV_REGS_H

#define REG_RISCV	0x8000000000000000ull
#define REG_U32		0x0020000000000000ull
#define REG_U64		0x0030000000000000ull
#define REG_SIZE(id)	(1u << (((id) >> 52) & 15))
#define REG_TYPE(id)	(((id) >> 24) & 0xff)

#define REG_CONFIG(n)	(REG_RISCV | REG_U64 | 0x01000000 | (n))
#define REG_CORE(n)	(REG_RISCV | REG_U64 | 0x02000000 | (n))
#define REG_CSR(n)	(REG_RISCV | REG_U64 | 0x03000000 | (n))
#define REG_TIMER(n)	(REG_RISCV | REG_U64 | 0x04000000 | (n))
#define REG_ISA(n)	(REG_RISCV | REG_U64 | 0x07000000 | (n))
#define REG_ISA_ON(n)	(REG_RISCV | REG_U64 | 0x07010000 | (n))	/* 64 at once */
#define REG_ISA_OFF(n)	(REG_RISCV | REG_U64 | 0x07020000 | (n))
#define REG_SBI_ON(n)	(REG_RISCV | REG_U64 | 0x08010000 | (n))
#define REG_SBI_OFF(n)	(REG_RISCV | REG_U64 | 0x08020000 | (n))
#define REG_VLENB	(REG_RISCV | REG_U64 | 0x09000000 | 4)

#define CONFIG_ZICBOM	REG_CONFIG(1)	/* cache block sizes, in bytes */
#define CONFIG_ZICBOZ	REG_CONFIG(5)
#define CONFIG_SATP	REG_CONFIG(6)	/* satp.MODE: 8, 9, 10 */
#define CONFIG_ZICBOP	REG_CONFIG(7)

#define CORE_PC		REG_CORE(0)
#define CORE_X(n)	REG_CORE(n)	/* x1 .. x31 */
#define CORE_MODE	REG_CORE(32)	/* 1: supervisor */
#define X_A0		10
#define X_A1		11

#define CSR_SSTATUS	REG_CSR(0)
#define SSTATUS_SIE	0x2u
#define CSR_SIP		REG_CSR(7)
#define CSR_SCOUNTEREN	REG_CSR(9)
#define CSR_SMSTATEEN	0x20000u	/* the subtype that holds sstateen0 */

#define TIMER_FREQUENCY	REG_TIMER(0)
#define TIMER_TIME	REG_TIMER(1)
#define TIMER_COMPARE	REG_TIMER(2)
#define TIMER_STATE	REG_TIMER(3)

/* enum KVM_RISCV_SBI_EXT_ID */
#define SBI_PMU		6
#define SBI_VENDOR	8
#define SBI_DBCN	9
#define SBI_STA		10
#define SBI_SUSP	11
#define SBI_FWFT	12
#define SBI_MPXY	13

#endif
