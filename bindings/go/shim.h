/* SPDX-License-Identifier: MIT */
/*
 * shim.h - vmm.h for the Go package, and what Go cannot say in its own words: the
 * values of INIT macros, integers as void pointers, C functions that call Go ones.
 */
#ifndef VMMGO_SHIM_H
#define VMMGO_SHIM_H

#ifndef VMM_AMALGAM
#include <vmm.h>
#elif __has_include("vmm_amalgam.h")
#include "vmm_amalgam.h"
#else
#error "run make go in the project's top directory, or build with -tags libvmm"
#endif

extern const struct vmm_host		vmmgo_host_init;
extern const struct vmm_config		vmmgo_config_init;
extern const struct vmm_balloon_stats	vmmgo_balloon_stats_init;
extern const struct vmm_write_config	vmmgo_write_init;
extern const struct vmm_snap_info	vmmgo_snap_info_init;
extern const struct vmm_restore_config	vmmgo_restore_init;
extern const struct vmm_pool_config	vmmgo_pool_init;
extern const struct vmm_stats		vmmgo_stats_init;

/*
 * A line of a log, as it is read from the descriptor that vmmgo_log_open() gives:
 * one read, one line.  lost: so many before it did not find room.
 */
struct vmmgo_line {
	uint64_t	id;		/* of the LogFunc it is for */
	int32_t		level;		/* VMM_LOG_*, or -1: no more for this id */
	uint32_t	lost;
	char		text[1008];	/* only as long as it need be */
};

int vmmgo_log_open(void);		/* once; or -errno */
void vmmgo_log_end(uint64_t id);	/* waits for room */

/* Callbacks; id is what Go knows the function by. */
void vmmgo_config_log(struct vmm_config *c, uint64_t id);
void vmmgo_restore_log(struct vmm_restore_config *c, uint64_t id);
void vmmgo_write_progress(struct vmm_write_config *c, uintptr_t id);
void vmmgo_pool_prepare(struct vmm_pool_config *c, uintptr_t id);

#endif
