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

#include <sys/types.h>

#include "error.h"

#define MEM_TAIL	65536u		/* bytes of platform pages behind the RAM */
#define MEM_SPARES	4u		/* views of a source that are kept */

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
	int		fd;		/* MEM_SHARED: the memfd, or -1 */
	struct mem_source *source;	/* MEM_PRIVATE: what it is a view of */
	struct mem	*next;		/* source's: another view of it */
	uint64_t	*dropped;	/* MEM_PRIVATE: pages discarded, or NULL */
	int		used;		/* MEM_PRIVATE: another machine's before */
	uint64_t	waits;		/* atomic: accesses that had to wait for RAM */
	/* Told of RAM that cannot be had any more; any thread. */
	void		(*lost)(void *arg, const struct vmm_error *err);
	void		*lost_arg;
};

/*
 * Frozen RAM that any number of machines have private views of: size +
 * MEM_TAIL bytes of a memfd.  Not all of it need be there yet.
 */
struct mem_source {
	int		fd;
	const struct mem_run *zero;	/* long runs of zeroes, in order */
	uint32_t	nzero;
	/* Atomic: something is lacking, need() is to be called before bytes
	   are looked at; vCPUs are served by themselves.  1: it had to wait. */
	int		lacking;
	int		(*need)(struct mem_source *s, const struct mem *m, uint64_t off,
				uint64_t len, struct vmm_error *err);
	uint64_t	decoded;	/* atomic: bytes put there, for all views */
	/* A view has been mapped, and not touched; it goes.  NULL: no matter. */
	int		(*watch)(struct mem_source *s, struct mem *m, struct vmm_error *err);
	void		(*unwatch)(struct mem_source *s, struct mem *m);
	/* Views that nobody has any more, for the next ones: mapping costs, and so do
	   the host's page tables.  Atomic; of this process only. */
	uintptr_t	spare[MEM_SPARES];
	uint8_t		*plain;		/* what it holds, for mem_restore(); likewise */
	pid_t		pid;		/* 0: nobody's yet; -1: being taken */
};

struct mem_run {
	uint64_t	off, len;	/* bytes */
};

int mem_init(struct mem *m, uint64_t gpa, uint64_t size, struct vmm_error *err);
void mem_fini(struct mem *m);

/* The same, as a private view of a source, which outlives it. */
int mem_init_private(struct mem *m, uint64_t gpa, uint64_t size, struct mem_source *source,
		     struct vmm_error *err);

/* A source goes, of size bytes of RAM: its spare views go with it. */
void mem_source_fini(struct mem_source *source, uint64_t size);

/*
 * Take a fresh view of the source, if all of that is there, and leave the one that was,
 * with all that was written to it, in *old, for mem_fini().  If that cannot be done *old
 * holds nothing, and mem_rewind() is the way.
 */
void mem_leave(struct mem *m, struct mem *old);

/* Back to what the source holds. */
int mem_rewind(struct mem *m, struct vmm_error *err);

/*
 * The same in place, while KVM maps it: what was written is overwritten, and stays this
 * view's own.  1: done.  0: it has parts that were discarded, too many pages of its own or a
 * source that lacks some, and holds anything by now; -errno likewise.
 */
int mem_restore(struct mem *m);

/* Long runs of zeroes in a memfd that is all there; *runs is the caller's. */
int mem_holes(int fd, uint64_t size, struct mem_run **runs, uint32_t *n, struct vmm_error *err);

/* The shortest run that is worth a mapping of its own, and the most of them. */
#define MEM_RUN_MIN	(4u << 20)
#define MEM_RUNS_MAX	16u

/* Have pages of RAM mapped before they are touched, as far as that goes: sorted
   runs of them; reads: those that are only read, too.  What the source lacks is waited
   for, and passed over if it cannot be had. */
struct mem_warm {
	uint64_t	off, len;
	int		write;		/* they will be written */
};

void mem_populate(const struct mem *m, const struct mem_warm *runs, uint32_t n, int reads);

/*
 * A memfd with what RAM and tail hold now, sealed against any change; holes
 * where they are zero.  Nobody writes to RAM meanwhile.
 */
int mem_copy(const struct mem *m, int *fd, struct vmm_error *err);

/*
 * The same, but of MEM_PRIVATE only the pages that may differ from its source:
 * *own has a bit for each (page 0 is bit 0; free() it), and they are at their
 * places in *fd.  What the source lacks is not waited for.  *own is NULL if *fd
 * holds it all: RAM of another kind, or a kernel that cannot tell them.
 */
int mem_copy_own(const struct mem *m, int *fd, uint64_t **own, struct vmm_error *err);

/* Lay such pages over RAM. */
int mem_apply(struct mem *m, int fd, const uint64_t *own, struct vmm_error *err);

/* Let nobody change a memfd from now on. */
void mem_seal(int fd);

/* Make RAM that nobody uses at the moment MEM_SHARED: for vhost-user. */
int mem_share(struct mem *m, struct vmm_error *err);

/* Give every page back to the host, so that all of it reads as zeroes. */
int mem_clear(struct mem *m, struct vmm_error *err);

/*
 * The only way from a guest-physical address to a pointer: len bytes at gpa if
 * all of them are RAM, else NULL.  The pointer is not kept across a pause.  RAM
 * that is still lacking is waited for; if it cannot be had, that is NULL too.
 */
void *mem_get(const struct mem *m, uint64_t gpa, uint64_t len);

/* Why mem_get() gave NULL, if it is RAM that cannot be had; else 0. */
int mem_missing(const struct mem *m, uint64_t gpa, uint64_t len, struct vmm_error *err);

/* The platform pages, of which the first is waited for if it is lacking, and
   their guest-physical address. */
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
 * host; they read as zeroes then.  -errno if they stay as they are.  Of MEM_PRIVATE
 * only parts of a certain size are given back; what is between them stays, too.
 */
int mem_discard(struct mem *m, void *p, uint64_t len);

/* The same for whole pages that nobody will read before they are written: what they
   read as is not said. */
int mem_release(struct mem *m, void *p, uint64_t len);

/* Bytes of RAM that are held in host memory; and that no other machine shares. */
uint64_t mem_used(const struct mem *m);
uint64_t mem_own(const struct mem *m);

#endif
