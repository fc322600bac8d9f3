/* SPDX-License-Identifier: MIT */
/*
 * event.h - what a machine has to tell its owner, queued until it is taken.
 *
 * The queue has a lock of its own, below every other.  It is bounded: a guest
 * that rings faster than its owner listens finds it crowded, and its vCPUs
 * wait (vcpu.c).  Room is kept for the one event that ends a run.
 */
#ifndef CORE_EVENT_H
#define CORE_EVENT_H

#include <pthread.h>

#include "error.h"

#define EVENTS_MAX	128
#define EVENTS_SLACK	65	/* a ring of each vCPU, and the end of the run */

struct events {
	pthread_mutex_t	lock;
	pthread_cond_t	cond;		/* CLOCK_MONOTONIC */
	int		fd;		/* eventfd: readable while any is queued */
	unsigned int	head, len;
	struct vmm_event ring[EVENTS_MAX];
};

int events_init(struct events *q, struct vmm_error *err);
void events_fini(struct events *q);

/* Fills in the time.  The detail may be NULL. */
void events_push(struct events *q, uint32_t type, uint32_t vcpu, uint64_t value,
		 const char *detail);

/* True while a vCPU that rings should wait. */
int events_crowded(struct events *q);

/*
 * Take the next event.  Waits up to timeout_ms (-1: for ever) while none is
 * queued and more(arg) is true; *out is VMM_EV_NONE if there was none.
 */
void events_take(struct events *q, int timeout_ms, int (*more)(const void *arg),
		 const void *arg, struct vmm_event *out);

/* Make waiters look at more() again; forget all that is queued. */
void events_poke(struct events *q);
void events_clear(struct events *q);

#endif
