/* SPDX-License-Identifier: MIT */
/*
 * fdt.h - the device tree that tells a guest what its machine is.
 */
#ifndef RISCV_FDT_H
#define RISCV_FDT_H

#include "../core/machine.h"
#include "isa.h"

#define FDT_ROOM	(256u << 10)	/* bytes that it never exceeds */

struct fdt_config {
	const char	*cmdline;	/* or NULL */
	const struct isa *isa;
	uint64_t	initrd, initrd_size;	/* gpa and bytes; 0: none */
};

/*
 * Bytes that are enough for the tree of m, FDT_ROOM at the most.  libfdt clears
 * them all: room for the largest of machines would take longer than the tree.
 */
size_t fdt_room(const struct machine *m, const struct fdt_config *cfg);

/*
 * Write the tree of m into buf; *len is its size in bytes.  The timer's
 * frequency, the cache blocks and the paging mode are asked of vCPU 0.
 */
int fdt_build(struct machine *m, const struct fdt_config *cfg, void *buf, size_t cap,
	      size_t *len, struct vmm_error *err);

#endif
