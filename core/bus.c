/* SPDX-License-Identifier: MIT */
/*
 * bus.c - MMIO regions: see bus.h.
 */
#include <string.h>

#include "bus.h"

int bus_add(struct bus *bus, uint64_t gpa, uint64_t size, const struct bus_ops *ops, void *dev,
	    struct vmm_error *err)
{
	unsigned int i = 0;

	if (bus->nregions == BUS_MAX)
		return fail(err, VMM_ENOTSUP, "more than %d device regions", BUS_MAX);
	while (i < bus->nregions && bus->region[i].gpa < gpa)
		i++;
	if ((i && bus->region[i - 1].gpa + bus->region[i - 1].size > gpa) ||
	    (i < bus->nregions && gpa + size > bus->region[i].gpa))
		return fail(err, VMM_EINVAL, "device region at 0x%llx overlaps another",
			    (unsigned long long)gpa);
	memmove(&bus->region[i + 1], &bus->region[i],
		(bus->nregions - i) * sizeof(bus->region[0]));
	bus->region[i] = (struct bus_region){ gpa, size, ops, dev };
	bus->nregions++;
	return 0;
}

static const struct bus_region *bus_find(const struct bus *bus, uint64_t gpa, unsigned int len)
{
	unsigned int lo = 0, hi = bus->nregions;

	while (lo < hi) {
		unsigned int mid = (lo + hi) / 2;
		const struct bus_region *r = &bus->region[mid];

		if (gpa < r->gpa)
			hi = mid;
		else if (gpa - r->gpa >= r->size)
			lo = mid + 1;
		else
			return len <= r->size - (gpa - r->gpa) ? r : NULL;
	}
	return NULL;
}

int bus_read(struct bus *bus, uint64_t gpa, unsigned int len, uint64_t *val)
{
	const struct bus_region *r = bus_find(bus, gpa, len);

	*val = r ? r->ops->read(r->dev, gpa - r->gpa, len) : 0;
	return r != NULL;
}

int bus_write(struct bus *bus, uint64_t gpa, unsigned int len, uint64_t val)
{
	const struct bus_region *r = bus_find(bus, gpa, len);

	if (r)
		r->ops->write(r->dev, gpa - r->gpa, len, val);
	return r != NULL;
}
