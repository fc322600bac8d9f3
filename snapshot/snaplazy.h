/* SPDX-License-Identifier: MIT */
/*
 * snaplazy.h - RAM of a snapshot file that is decoded when it is touched.
 *
 * One memfd for all machines restored from the file in this process, at first
 * with holes in it.  See snaplazy.c.
 */
#ifndef SNAPSHOT_SNAPLAZY_H
#define SNAPSHOT_SNAPLAZY_H

#include "../core/mem.h"
#include "snapfile.h"

struct snap_lazy;

/*
 * Begin: f stays open for as long as *out lives.  threads decode in the
 * background (0: one for each CPU, 4 at most).  VMM_ENOTSUP: this process may
 * not use userfaultfd, or this host has none.
 */
int snap_lazy_new(struct snap_lazy **out, const struct snapfile *f, uint64_t size,
		  unsigned int threads, struct vmm_error *err);

/* No view of it is left. */
void snap_lazy_free(struct snap_lazy *l);

struct mem_source *snap_lazy_source(struct snap_lazy *l);

/* Returns when the working set is there for a view that nobody has looked at yet; if it is
   damaged the chunks tell.  1: it has pages of its own, which need no copies. */
int snap_lazy_ready(struct snap_lazy *l, struct mem *m);

/* Returns when all is there, and sealed; the caller's thread helps.  Of
   several failures the first is told, each time. */
int snap_lazy_finish(struct snap_lazy *l, struct vmm_error *err);

#endif
