/* SPDX-License-Identifier: MIT */
/*
 * doorbell.c - how a guest tells its host program something: vmm_guest.h.
 *
 * Nothing is saved: what has been rung is an event, and the host's.
 */
#include <stdlib.h>

#include "../vmm_guest.h"
#include "map.h"
#include "platform.h"

_Static_assert(VMM_GUEST_DOORBELL == MAP_DOORBELL && VMM_GUEST_RTC == MAP_RTC,
	       "guests know where they are");

struct doorbell {
	struct device	dev;
	struct machine	*m;
};

void doorbell_ring(struct machine *m, uint32_t vcpu, uint64_t value)
{
	events_push(&m->events, VMM_EV_DOORBELL, vcpu, value, NULL);
}

void doorbell_exit(struct machine *m, uint32_t vcpu, uint64_t code)
{
	machine_halt(m, VMM_EV_SHUTDOWN, vcpu, code, "%s", "");
}

static uint64_t doorbell_read(void *dev, uint64_t off, unsigned int len)
{
	(void)dev;
	(void)len;
	return off == VMM_GUEST_MAGIC ? VMM_GUEST_MAGIC_VALUE : 0;
}

static void doorbell_write(void *dev, uint64_t off, unsigned int len, uint64_t val)
{
	struct doorbell *b = dev;

	(void)len;
	/* Which vCPU wrote is not known here, and does not matter. */
	if (off == VMM_GUEST_RING)
		doorbell_ring(b->m, 0, val);
	else if (off == VMM_GUEST_EXIT)
		doorbell_exit(b->m, 0, val);
}

static void doorbell_reset(struct device *d)
{
	(void)d;
}

static void doorbell_save(const struct device *d, struct writer *w)
{
	(void)d;
	(void)w;
}

static int doorbell_load(struct device *d, struct reader *r, struct vmm_error *err)
{
	return reader_end(r, d->name, err);
}

static void doorbell_free(struct device *d)
{
	free(d);
}

static const struct bus_ops doorbell_bus = { doorbell_read, doorbell_write };

static const struct device_ops doorbell_ops = {
	.type		= "doorbell",
	.version	= 1,
	.bus		= &doorbell_bus,
	.reset		= doorbell_reset,
	.save		= doorbell_save,
	.load		= doorbell_load,
	.free		= doorbell_free,
};

int doorbell_add(struct machine *m, struct vmm_error *err)
{
	struct doorbell *b = calloc(1, sizeof(*b));

	if (!b)
		return fail(err, VMM_ENOMEM, "doorbell");
	b->dev = (struct device){
		.ops = &doorbell_ops, .name = "doorbell", .gpa = MAP_DOORBELL, .size = 0x1000,
		.compatible = "vmm,doorbell",
	};
	b->m = m;
	return machine_add(m, &b->dev, err);
}
