/* SPDX-License-Identifier: MIT */
/*
 * mem.h - guest RAM: one mapping, one memslot.
 *
 * Behind the RAM, in the same mapping, lies a reserved tail of pages that
 * belong to the platform (the generation id).  The guest may read and write
 * them, but no device is ever pointed there: mem_get() does not know them.
 */
#ifndef CORE_MEM_H
#define CORE_MEM_H

#include "error.h"

#define MEM_TAIL	65536u		/* bytes of platform pages behind the RAM */

enum mem_kind {
	MEM_ANON,			/* memory of this process */
	MEM_SHARED,			/* a memfd, which others may map, too */
	MEM_PRIVATE			/* copy on write over a frozen memfd */
};

struct mem {
	uint64_t	gpa;		/* guest-physical address of RAM */
	uint64_t	size;		/* bytes of RAM, without the tail */
	uint8_t		*hva;		/* aligned as gpa is, modulo 2 MiB */
	enum mem_kind	kind;
	int		fd;		/* the memfd, or -1; MEM_PRIVATE: not ours */
};

int mem_init(struct mem *m, uint64_t gpa, uint64_t size, struct vmm_error *err);
void mem_fini(struct mem *m);

/*
 * The same, as a private view of fd, which has size + MEM_TAIL bytes, does not
 * change, and stays the caller's, who keeps it open.
 */
int mem_init_private(struct mem *m, uint64_t gpa, uint64_t size, int fd, struct vmm_error *err);

/* Back to what fd holds. */
int mem_rewind(struct mem *m, struct vmm_error *err);

/*
 * A memfd with what RAM and tail hold now, sealed against any change; holes
 * where they are zero.  Nobody writes to RAM meanwhile.
 */
int mem_copy(const struct mem *m, int *fd, struct vmm_error *err);

/* Let nobody change a memfd from now on. */
void mem_seal(int fd);

/* Make RAM that nobody uses at the moment MEM_SHARED: for vhost-user. */
int mem_share(struct mem *m, struct vmm_error *err);

/* Give every page back to the host, so that all of it reads as zeroes. */
int mem_clear(struct mem *m, struct vmm_error *err);

/*
 * The only way from a guest-physical address to a pointer: len bytes at gpa if
 * all of them are RAM, else NULL.  The pointer is not kept across a pause.
 */
void *mem_get(const struct mem *m, uint64_t gpa, uint64_t len);

/* The platform pages, and their guest-physical address. */
void *mem_tail(const struct mem *m);
uint64_t mem_tail_gpa(const struct mem *m);

/*
 * Copy len bytes of fd from offset off on to gpa.  VMM_EFORMAT if the file
 * ends before, or if they do not fit.
 */
int mem_load(const struct mem *m, uint64_t gpa, int fd, uint64_t off, uint64_t len,
	     const char *name, struct vmm_error *err);

/*
 * Give the whole pages among len bytes at p, which mem_get() gave, back to the
 * host; they read as zeroes then.  -errno if they stay as they are.
 */
int mem_discard(struct mem *m, void *p, uint64_t len);

/* Bytes of RAM that are held in host memory. */
uint64_t mem_used(const struct mem *m);

#endif
