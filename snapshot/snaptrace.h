/* SPDX-License-Identifier: MIT */
/*
 * snaptrace.h - which pages a restored machine touches, in what order.
 *
 * RAM that is empty at first, for one machine: see snaptrace.c.
 */
#ifndef SNAPSHOT_SNAPTRACE_H
#define SNAPSHOT_SNAPTRACE_H

#include "../core/mem.h"

struct snap_trace;

/* Pages are had from a source of size bytes that is all there, and outlives it.
   VMM_ENOTSUP: this process may not use userfaultfd. */
int snap_trace_new(struct snap_trace **out, const struct mem_source *from, uint64_t size,
		   struct vmm_error *err);

/* What is known of the working set: it has been touched, in this order, and is there, so that
   only what comes to it takes time. */
void snap_trace_know(struct snap_trace *t, const uint64_t *ws, uint32_t n);

/* Its view is gone. */
void snap_trace_free(struct snap_trace *t);

/* For one view. */
struct mem_source *snap_trace_source(struct snap_trace *t);

/*
 * What has been touched so far: page << SNAP_WS_SHIFT, with SNAP_WS_WRITE if it
 * was written; *ws is the caller's to free.
 */
int snap_trace_read(struct snap_trace *t, uint64_t **ws, uint32_t *n, struct vmm_error *err);

#endif
