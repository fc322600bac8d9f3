/* SPDX-License-Identifier: MIT */
/*
 * bus.h - which device answers at a guest-physical address.
 *
 * Regions are added while the machine is built and looked up by vCPU threads
 * that hold the I/O lock (loop.h).  Nobody answers in a hole: reads are 0 and
 * writes are dropped, as on a bus without a master abort.
 */
#ifndef CORE_BUS_H
#define CORE_BUS_H

#include "error.h"

#define BUS_MAX		48		/* regions of one machine */

/* Accesses are 1, 2, 4 or 8 bytes and lie within the region. */
struct bus_ops {
	uint64_t	(*read)(void *dev, uint64_t off, unsigned int len);
	void		(*write)(void *dev, uint64_t off, unsigned int len, uint64_t val);
};

struct bus_region {
	uint64_t	gpa, size;
	const struct bus_ops *ops;
	void		*dev;
};

struct bus {
	struct bus_region region[BUS_MAX];	/* sorted by gpa */
	unsigned int	nregions;
};

int bus_add(struct bus *bus, uint64_t gpa, uint64_t size, const struct bus_ops *ops, void *dev,
	    struct vmm_error *err);

/* 1 if a device answered, 0 if it was a hole. */
int bus_read(struct bus *bus, uint64_t gpa, unsigned int len, uint64_t *val);
int bus_write(struct bus *bus, uint64_t gpa, unsigned int len, uint64_t val);

#endif
