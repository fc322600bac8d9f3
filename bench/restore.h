/* SPDX-License-Identifier: MIT */
/*
 * restore.h - what the files of bench/restore share.
 *
 *	restore.c		what is measured, and the rows
 *	restore_guests.c	guests: booting, freezing, and that a clone is whole
 *	restore_floor.c		the least that a machine takes
 */
#ifndef BENCH_RESTORE_H
#define BENCH_RESTORE_H

#include <vmm.h>

#include "bench.h"

#define MiB	(1ull << 20)

extern struct vmm_error e;

/* End, and say why, unless rc is 0. */
void check(int rc);

enum which { STUB, BUSYBOX, PYTHON, GUESTS };

/* What a guest is booted from, and what is known of it since it was frozen. */
struct guest {
	const char	*name, *kernel, *initrd, *disk, *cmdline;
	uint64_t	memory;
	uint64_t	word;		/* of the busybox guest: it waits for that to change */
	char		sha256[65];	/* of the Python guest's answer */
	double		uptime;		/* seconds, in it */
	double		boot_us;	/* vmm_create() to the first answer */
};
extern struct guest guests[GUESTS];

/* Boot a guest until it is where it is to be frozen, g->boot_us; the caller's. */
struct vmm *guest_boot(struct guest *g);

/* Save a guest that runs as DIR/NAME, and end it. */
void guest_freeze(struct guest *g, struct vmm *vm, const char *dir);

/* Write DIR/NAME.ws, which knows its working set. */
void guest_learn(struct guest *g, const char *dir);

/*
 * Start a clone, and have it answer: the doorbell, or a reply over vsock.  Ends the
 * program if the clone is not whole, or the same as one before.  Gives the time of
 * the answer, as now_us().
 */
double guest_go(struct guest *g, struct vmm *vm);

/* The same of one that has answered before. */
double guest_again(struct guest *g, struct vmm *vm);

struct vmm_snap *guest_open(const struct guest *g, const char *dir, const char *suffix);

/* From open("/dev/kvm") to the exit of the second instruction, in ram: microseconds. */
double floor_program(uint8_t *ram, uint64_t size);
uint8_t *floor_ram(uint64_t size);

#endif
