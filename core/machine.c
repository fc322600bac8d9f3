/* SPDX-License-Identifier: MIT */
/*
 * machine.c - putting the parts of a machine together, and apart: machine.h.
 */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "machine.h"

int machine_init(struct machine *m, const char *name, const struct log *log,
		 struct vmm_error *err)
{
	int r;

	memset(m, 0, sizeof(*m));
	m->kvm = m->vm = -1;
	m->state = VMM_NEW;
	m->want = WANT_PAUSE;
	m->log = *log;
	snprintf(m->name, sizeof(m->name), "%s", name);
	r = events_init(&m->events, err);
	if (r)
		return r;
	r = loop_init(&m->loop, m->name, err);
	if (r) {
		events_fini(&m->events);
		return r;
	}
	pthread_mutex_init(&m->lock, NULL);
	pthread_cond_init(&m->cond, NULL);
	return 0;
}

void machine_fini(struct machine *m)
{
	struct device *d;

	while ((d = m->devices)) {
		m->devices = d->next;
		d->ops->free(d);
	}
	machine_unbuild(m);
	mem_fini(&m->mem);
	loop_fini(&m->loop);
	events_fini(&m->events);
	pthread_cond_destroy(&m->cond);
	pthread_mutex_destroy(&m->lock);
}

void machine_unbuild(struct machine *m)
{
	vcpus_free(m);
	if (m->irqchip)
		m->irqchip->ops->free(m->irqchip);
	m->irqchip = NULL;
	if (m->vm >= 0)
		close(m->vm);
	if (m->kvm >= 0)
		close(m->kvm);
	m->vm = m->kvm = -1;
}

int machine_state(const struct machine *m)
{
	return __atomic_load_n(&m->state, __ATOMIC_ACQUIRE);
}

int machine_add(struct machine *m, struct device *d, struct vmm_error *err)
{
	struct device **p;
	int r;

	for (p = &m->devices; *p; p = &(*p)->next) {
		if (strcmp((*p)->name, d->name) == 0) {
			r = fail(err, VMM_EINVAL, "the machine has a device %s already", d->name);
			goto drop;
		}
	}
	r = d->ops->bus ? bus_add(&m->bus, d->gpa, d->size, d->ops->bus, d, err) : 0;
	if (r)
		goto drop;
	d->irq.chip = &m->irqchip;
	d->next = NULL;
	*p = d;
	return 0;

drop:
	d->ops->free(d);
	return r;
}

struct device *machine_device(const struct machine *m, const char *name)
{
	struct device *d;

	for (d = m->devices; d; d = d->next)
		if (strcmp(d->name, name) == 0)
			return d;
	return NULL;
}

void irq_pulse(const struct irq *irq)
{
	struct irqchip *chip = irq->chip ? *irq->chip : NULL;

	if (!chip || !irq->line)
		return;
	chip->ops->line(chip, irq->line, 1);
	chip->ops->line(chip, irq->line, 0);
}
