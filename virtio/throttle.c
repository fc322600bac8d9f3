/* SPDX-License-Identifier: MIT */
/*
 * throttle.c - rate limits of a device: see throttle.h.
 *
 * The buckets are filled when they are looked at.  The timer is only set while
 * somebody waits, for the moment when the emptier one is above zero again.
 */
#include <errno.h>
#include <string.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "../core/clock.h"
#include "throttle.h"

#define THROTTLE_BURST	0.1		/* seconds' worth that a bucket holds */
#define THROTTLE_SEC	1e9

void throttle_init(struct throttle *t, struct loop *loop, void (*fn)(void *arg), void *arg)
{
	memset(t, 0, sizeof(*t));
	t->loop = loop;
	t->fn = fn;
	t->arg = arg;
	t->timer.fd = -1;
}

void throttle_fini(struct throttle *t)
{
	if (t->timer.fd < 0)
		return;
	loop_del(t->loop, &t->timer);
	close(t->timer.fd);
	t->timer.fd = -1;
}

static double bucket_size(const struct throttle_bucket *b)
{
	double size = (double)b->rate * THROTTLE_BURST;

	return size < 1 ? 1 : size;
}

static void bucket_fill(struct throttle_bucket *b, uint64_t ns)
{
	b->tokens += (double)b->rate * (double)ns / THROTTLE_SEC;
	if (b->tokens > bucket_size(b))
		b->tokens = bucket_size(b);
}

/* Nanoseconds until there is something in it; 0: there is. */
static uint64_t bucket_wait(const struct throttle_bucket *b)
{
	if (!b->rate || b->tokens > 0)
		return 0;
	return (uint64_t)((1 - b->tokens) * THROTTLE_SEC / (double)b->rate) + 1;
}

static void throttle_fill(struct throttle *t)
{
	uint64_t now = clock_ns();

	bucket_fill(&t->bytes, now - t->last_ns);
	bucket_fill(&t->ops, now - t->last_ns);
	t->last_ns = now;
}

void throttle_set(struct throttle *t, uint64_t bytes_per_sec, uint64_t ops_per_sec)
{
	t->last_ns = clock_ns();
	t->bytes.rate = bytes_per_sec;
	t->bytes.tokens = bucket_size(&t->bytes);
	t->ops.rate = ops_per_sec;
	t->ops.tokens = bucket_size(&t->ops);
	if (t->armed) {			/* those who wait look again */
		t->armed = 0;
		t->fn(t->arg);
	}
}

static void throttle_expired(void *arg, uint32_t events)
{
	struct throttle *t = arg;
	uint64_t count;

	(void)events;
	if (read(t->timer.fd, &count, sizeof(count)) < 0 || !t->armed)
		return;
	t->armed = 0;
	t->fn(t->arg);
}

static int throttle_arm(struct throttle *t, uint64_t ns)
{
	struct itimerspec when = { .it_value = { .tv_sec = (time_t)(ns / 1000000000u),
						 .tv_nsec = (long)(ns % 1000000000u) } };

	if (t->timer.fd < 0) {
		t->timer = (struct io){ .fn = throttle_expired, .arg = t };
		t->timer.fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
		if (t->timer.fd < 0)
			return -errno;
		if (loop_add(t->loop, &t->timer, EPOLLIN) < 0) {
			close(t->timer.fd);
			t->timer.fd = -1;
			return -EMFILE;
		}
	}
	t->armed = 1;
	return timerfd_settime(t->timer.fd, 0, &when, NULL);
}

int throttle_ok(struct throttle *t)
{
	uint64_t wait, other;

	if (!t->bytes.rate && !t->ops.rate)
		return 1;
	throttle_fill(t);
	wait = bucket_wait(&t->bytes);
	other = bucket_wait(&t->ops);
	wait = wait > other ? wait : other;
	/* Without a timer nobody could wait: better too fast than never. */
	return !wait || (throttle_arm(t, wait) < 0);
}

void throttle_charge(struct throttle *t, uint64_t bytes)
{
	if (t->bytes.rate)
		t->bytes.tokens -= (double)bytes;
	if (t->ops.rate)
		t->ops.tokens -= 1;
}
