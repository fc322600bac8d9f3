/* SPDX-License-Identifier: MIT */
/*
 * mem.h - guest RAM: one memfd, one mapping, one memslot.
 *
 * Behind the RAM, in the same mapping, lies a reserved tail of pages that
 * belong to the platform (the generation id).  The guest may read and write
 * them, but no device is ever pointed there: mem_get() does not know them.
 */
#ifndef CORE_MEM_H
#define CORE_MEM_H

#include "error.h"

#define MEM_TAIL	65536u		/* bytes of platform pages behind the RAM */

struct mem {
	uint64_t	gpa;		/* guest-physical address of RAM */
	uint64_t	size;		/* bytes of RAM, without the tail */
	uint8_t		*hva;		/* aligned as gpa is, modulo 2 MiB */
	int		fd;		/* memfd of size + MEM_TAIL bytes */
};

int mem_init(struct mem *m, uint64_t gpa, uint64_t size, struct vmm_error *err);
void mem_fini(struct mem *m);

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
 * Copy len bytes of fd from offset off (-1: from where a pipe stands) to gpa,
 * by the kernel's hand where it can: no user mapping is faulted in.
 * VMM_EFORMAT if the file ends before, or if they do not fit.
 */
int mem_load(const struct mem *m, uint64_t gpa, int fd, int64_t off, uint64_t len,
	     const char *name, struct vmm_error *err);

/* Bytes of RAM that are held in host memory. */
uint64_t mem_used(const struct mem *m);

#endif
