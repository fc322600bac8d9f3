/* SPDX-License-Identifier: MIT */
/*
 * aia.h - the in-kernel AIA: an APLIC for wired interrupts that turns them into
 * messages, and an IMSIC file for each hart that takes the messages.
 */
#ifndef RISCV_AIA_H
#define RISCV_AIA_H

#include "../core/machine.h"

/* Which of VMM_IRQCHIP_AIA_* this host offers, and which its kernel gets
   right, as bits; the best of them; and why, for people. */
struct aia_choice {
	uint32_t	offered, sound, best;
	char		note[256];
};

/*
 * Create the controller of a machine whose vCPUs all exist and have not run:
 * m->irqchip.  mode is VMM_IRQCHIP_*; one that is offered but not sound is
 * taken, and the log says so.  choice may be NULL.
 */
int aia_create(struct machine *m, uint32_t mode, struct aia_choice *choice,
	       struct vmm_error *err);

/* True if interrupt files in memory lose identities from 32 on: to be asked
   of a controller whose vCPUs have not run. */
int aia_narrow(struct machine *m);

#endif
