/* SPDX-License-Identifier: MIT */
/*
 * sbi.c - SBI calls and CSRs that KVM leaves to user space.
 *
 * KVM answers most of SBI itself.  To us come the debug console (SBI 2.0,
 * chapter 12), the legacy console (chapter 5), the vendor extension that is
 * our doorbell, and reads of the entropy source CSR.
 *
 * The console moves at most SBI_CHUNK bytes a call and says how many: the
 * guest calls again, and one that names gigabytes gains nothing by it.
 */
#include <errno.h>
#include <sys/random.h>

#include "../vmm_guest.h"
#include "platform.h"

#define SBI_LEGACY_PUTCHAR	0x01u
#define SBI_LEGACY_GETCHAR	0x02u
#define SBI_DEBUG_CONSOLE	0x4442434eu
#define DBCN_WRITE		0u
#define DBCN_READ		1u
#define DBCN_WRITE_BYTE		2u

#define SBI_FAILED		((uint64_t)-1)
#define SBI_NOT_SUPPORTED	((uint64_t)-2)
#define SBI_INVALID_PARAM	((uint64_t)-3)

#define SBI_CHUNK		4096u

#define CSR_SEED		0x015u
#define SEED_ES16		(2ull << 30)	/* unprivileged manual, 31.4 */

static void dbcn(struct machine *m, struct kvm_sbi_exit *s)
{
	struct device *uart = machine_device(m, UART_NAME);
	uint64_t n = s->args[0] < SBI_CHUNK ? s->args[0] : SBI_CHUNK;
	uint8_t byte = (uint8_t)s->args[0];
	void *p;

	if (s->function == DBCN_WRITE_BYTE) {
		if (!uart_put(uart, &byte, 1))
			s->ret[0] = SBI_FAILED;	/* no room now */
		return;
	}
	if (s->function > DBCN_WRITE_BYTE) {
		s->ret[0] = SBI_NOT_SUPPORTED;
		return;
	}
	p = mem_get(&m->mem, s->args[1], n);
	if (!p || s->args[2])
		s->ret[0] = SBI_INVALID_PARAM;
	else if (s->function == DBCN_WRITE)
		s->ret[1] = uart_put(uart, p, n);
	else
		s->ret[1] = uart_get(uart, p, n);
}

static void sbi_call(struct vcpu *v, struct kvm_sbi_exit *s)
{
	struct machine *m = v->m;
	uint8_t byte = (uint8_t)s->args[0];

	s->ret[0] = s->ret[1] = 0;
	switch (s->extension) {
	case SBI_DEBUG_CONSOLE:
		dbcn(m, s);
		break;
	case SBI_LEGACY_PUTCHAR:
		if (!uart_put(machine_device(m, UART_NAME), &byte, 1))
			s->ret[0] = SBI_FAILED;	/* no room now */
		break;
	case SBI_LEGACY_GETCHAR:
		s->ret[0] = uart_get(machine_device(m, UART_NAME), &byte, 1) ? byte : (uint64_t)-1;
		break;
	case VMM_GUEST_SBI:
		if (s->function == VMM_GUEST_SBI_RING)
			doorbell_ring(m, v->id, s->args[0]);
		else if (s->function == VMM_GUEST_SBI_EXIT)
			doorbell_exit(m, v->id, s->args[0]);
		else
			s->ret[0] = SBI_NOT_SUPPORTED;
		break;
	default:
		s->ret[0] = SBI_NOT_SUPPORTED;
		break;
	}
}

static void csr_read(struct vcpu *v, struct kvm_csr_exit *c)
{
	uint16_t seed = 0;

	c->ret = 0;
	if (c->csr == CSR_SEED && getrandom(&seed, sizeof(seed), 0) == sizeof(seed))
		c->ret = SEED_ES16 | seed;
	else
		log_line(&v->m->log, VMM_LOG_WARN, "vCPU %u: no answer for CSR 0x%llx", v->id,
			 (unsigned long long)c->csr);
}

int riscv_exit(struct vcpu *v)
{
	if (v->run->exit_reason == KVM_EXIT_SBI) {
		sbi_call(v, kvm_exit_data(v->run));
		return VMM_EXIT_SBI;
	}
	csr_read(v, kvm_exit_data(v->run));
	return VMM_EXIT_CSR;
}
