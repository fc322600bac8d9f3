/* SPDX-License-Identifier: MIT */
/*
 * event.c - the event queue: see event.h.
 */
#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "clock.h"
#include "event.h"

int events_init(struct events *q, struct vmm_error *err)
{
	pthread_condattr_t attr;

	memset(q, 0, sizeof(*q));
	q->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (q->fd < 0)
		return fail_sys(err, errno, "eventfd for events");
	pthread_mutex_init(&q->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&q->cond, &attr);
	pthread_condattr_destroy(&attr);
	return 0;
}

void events_fini(struct events *q)
{
	close(q->fd);
	pthread_cond_destroy(&q->cond);
	pthread_mutex_destroy(&q->lock);
}

/* Called with q->lock held; events_crowded() reads it without. */
static void events_set_len(struct events *q, unsigned int len)
{
	__atomic_store_n(&q->len, len, __ATOMIC_RELAXED);
}

void events_push(struct events *q, uint32_t type, uint32_t vcpu, uint64_t value,
		 const char *detail)
{
	struct vmm_event *ev;
	uint64_t one = 1;

	pthread_mutex_lock(&q->lock);
	if (q->len < EVENTS_MAX) {
		ev = &q->ring[(q->head + q->len) % EVENTS_MAX];
		memset(ev, 0, sizeof(*ev));
		ev->type = type;
		ev->vcpu = vcpu;
		ev->value = value;
		ev->time_ns = clock_ns();
		if (detail)
			strncpy(ev->detail, detail, sizeof(ev->detail) - 1);
		if (!q->len && write(q->fd, &one, sizeof(one)) < 0)
			ev->time_ns = clock_ns();	/* cannot be: it was 0 */
		events_set_len(q, q->len + 1);
	}
	pthread_cond_broadcast(&q->cond);
	pthread_mutex_unlock(&q->lock);
}

int events_crowded(struct events *q)
{
	/* The slack is for vCPUs that have looked and are ringing just now. */
	return __atomic_load_n(&q->len, __ATOMIC_RELAXED) >= EVENTS_MAX - EVENTS_SLACK;
}

/* Called with q->lock held, when the last event has gone. */
static void events_quiet(struct events *q)
{
	uint64_t count;

	if (read(q->fd, &count, sizeof(count)) < 0)
		return;
}

void events_take(struct events *q, int timeout_ms, int (*more)(const void *arg),
		 const void *arg, struct vmm_event *out)
{
	struct timespec until;
	int r = 0;

	clock_after(&until, timeout_ms);
	memset(out, 0, sizeof(*out));
	pthread_mutex_lock(&q->lock);
	while (!q->len && timeout_ms && r != ETIMEDOUT && more(arg)) {
		if (timeout_ms < 0)
			r = pthread_cond_wait(&q->cond, &q->lock);
		else
			r = pthread_cond_timedwait(&q->cond, &q->lock, &until);
	}
	if (q->len) {
		*out = q->ring[q->head];
		q->head = (q->head + 1) % EVENTS_MAX;
		events_set_len(q, q->len - 1);
		if (!q->len)
			events_quiet(q);
	}
	pthread_mutex_unlock(&q->lock);
}

void events_poke(struct events *q)
{
	pthread_mutex_lock(&q->lock);
	pthread_cond_broadcast(&q->cond);
	pthread_mutex_unlock(&q->lock);
}

void events_clear(struct events *q)
{
	pthread_mutex_lock(&q->lock);
	if (q->len)
		events_quiet(q);
	events_set_len(q, 0);
	pthread_mutex_unlock(&q->lock);
}
