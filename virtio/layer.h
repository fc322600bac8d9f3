/* SPDX-License-Identifier: MIT */
/*
 * layer.h - what a machine has written to a disk image it shares with others.
 *
 * A sparse private file as large as the disk, and one bit for each sector of
 * it: set if the sector is here, clear if it is still that of the image below.
 * A bit for a sector, not for a larger block, means that no write ever has to
 * be filled up with what lies around it.  (Bits that were never touched are
 * memory that was never allocated: a terabyte disk costs what is written.)
 *
 * I/O lock held.  Saved: the sectors that are here.
 */
#ifndef VIRTIO_LAYER_H
#define VIRTIO_LAYER_H

#include "../core/state.h"

struct layer {
	int		fd;		/* -1: there is no layer */
	int		in_memory;	/* it never waits for a disk */
	uint64_t	sectors;
	uint64_t	*bits;
};

/* dir: where the file lies, without a name; NULL: in memory. */
int layer_open(struct layer *l, uint64_t sectors, const char *dir, struct vmm_error *err);
void layer_close(struct layer *l);

/* The disk has grown. */
int layer_grow(struct layer *l, uint64_t sectors, struct vmm_error *err);

/*
 * How many of the n > 0 sectors from s on are in the same place as the first,
 * and whether that is here.
 */
uint64_t layer_run(const struct layer *l, uint64_t s, uint64_t n, int *here);

/* n sectors from s on have been written. */
void layer_mark(struct layer *l, uint64_t s, uint64_t n);

void layer_save(const struct layer *l, struct writer *w);
int layer_load(struct layer *l, struct reader *r, const char *name, struct vmm_error *err);

#endif
