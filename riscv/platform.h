/* SPDX-License-Identifier: MIT */
/*
 * platform.h - the devices of a RISC-V machine that are not virtio.
 *
 * Each function adds its device to the machine.
 */
#ifndef RISCV_PLATFORM_H
#define RISCV_PLATFORM_H

#include "../core/machine.h"

/* ns16550a (uart.c). */
int uart_add(struct machine *m, int in_fd, int out_fd, struct vmm_error *err);

/* Other descriptors behind the port of a machine that is not running. */
int uart_replace(struct device *d, int in_fd, int out_fd, struct vmm_error *err);

/* The same stream for the SBI console: bytes taken, bytes given.  d may be
   NULL: what goes out is dropped then.  I/O lock held. */
size_t uart_put(struct device *d, const void *p, size_t n);
size_t uart_get(struct device *d, void *p, size_t n);
#define UART_NAME	"serial"

int rtc_add(struct machine *m, struct vmm_error *err);		/* rtc.c */
int genid_add(struct machine *m, struct vmm_error *err);	/* genid.c */
int doorbell_add(struct machine *m, struct vmm_error *err);	/* doorbell.c */

/* Before a clone starts: of its harts, the one that hears of the new generation leads. */
void genid_lead(struct machine *m);

/* What the doorbell and its SBI call do. */
void doorbell_ring(struct machine *m, uint32_t vcpu, uint64_t value);
void doorbell_exit(struct machine *m, uint32_t vcpu, uint64_t code);

/* m->arch_exit (sbi.c): SBI calls and CSRs that KVM leaves to us. */
int riscv_exit(struct vcpu *v);

#endif
