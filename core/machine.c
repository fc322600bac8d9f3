/* SPDX-License-Identifier: MIT */
/*
 * machine.c - putting the parts of a machine together, and apart: machine.h.
 */
#include <stdio.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "machine.h"
#include "thread.h"

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

static void machine_reaped(struct machine *m);

void machine_fini(struct machine *m)
{
	struct device *d;

	while ((d = m->devices)) {
		m->devices = d->next;
		d->ops->free(d);
	}
	machine_reaped(m);
	machine_unbuild(m);
	mem_fini(&m->mem);
	loop_fini(&m->loop);
	events_fini(&m->events);
	pthread_cond_destroy(&m->cond);
	pthread_mutex_destroy(&m->lock);
}

/* The KVM side of a machine that has another, or none, by now. */
struct remains {
	struct vcpu	*vcpu;
	uint32_t	nvcpus;
	struct irqchip	*irqchip;
	int		kvm, vm;
	struct mem	mem;		/* its RAM, if that goes, too */
};

static struct remains machine_strip(struct machine *m)
{
	const struct remains r = { m->vcpu, m->nvcpus, m->irqchip, m->kvm, m->vm, { 0 } };

	m->vcpu = NULL;
	m->nvcpus = 0;
	m->irqchip = NULL;
	m->vm = m->kvm = -1;
	return r;
}

static void remains_free(struct remains *r)
{
	vcpus_free(r->vcpu, r->nvcpus);
	if (r->irqchip)
		r->irqchip->ops->free(r->irqchip);
	if (r->vm >= 0)
		close(r->vm);
	if (r->kvm >= 0)
		close(r->kvm);
	mem_fini(&r->mem);
}

void machine_unbuild(struct machine *m)
{
	struct remains r = machine_strip(m);

	remains_free(&r);
}

void machine_orphan(struct machine *m)
{
	struct device *d;

	machine_unbuild(m);
	loop_orphan(&m->loop);
	while ((d = m->devices)) {
		m->devices = d->next;
		d->ops->free(d);
	}
	close(m->events.fd);
	if (m->mem.kind == MEM_SHARED)
		close(m->mem.fd);
}

static void *machine_reaper(void *arg)
{
	const struct sched_param none = { 0 };

	/* There is no hurry; but it takes locks of the process, with which it must not be
	   stopped, as one of idle priority could be, and somebody will wait for it. */
	sched_setscheduler(0, SCHED_BATCH, &none);
	thread_name("vmm-reaper");
	remains_free(arg);
	free(arg);
	return NULL;
}

static void machine_reaped(struct machine *m)
{
	if (!m->reaping)
		return;
	pthread_join(m->reaper, NULL);
	m->reaping = 0;
}

void machine_reset_devices(struct machine *m)
{
	struct device *d;

	loop_lock(&m->loop);
	for (d = m->devices; d; d = d->next)
		d->ops->reset(d);
	loop_unlock(&m->loop);
}

int machine_replace(struct machine *m)
{
	struct remains old, *r;
	int fresh;

	machine_reaped(m);
	old = machine_strip(m);
	/* Without a VM: none has to be told that nothing is to be kicked.  From
	   here on nothing writes to RAM. */
	machine_reset_devices(m);
	mem_leave(&m->mem, &old.mem);
	fresh = old.mem.hva != NULL;
	r = malloc(sizeof(*r));
	if (r) {
		*r = old;
		m->reaping = thread_start(&m->reaper, machine_reaper, r) == 0;
	}
	if (!m->reaping) {
		remains_free(&old);
		free(r);
	}
	return fresh;
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
