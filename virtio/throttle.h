/* SPDX-License-Identifier: MIT */
/*
 * throttle.h - no more than so many bytes and operations a second.
 *
 * Two token buckets, each filled at its rate up to a tenth of a second's worth.
 * A request may start while there is anything in both, and takes out what it
 * costs, below zero if need be: large requests pass, and are paid for after.
 *
 * I/O lock held.  Nothing of it is part of a snapshot.
 */
#ifndef VIRTIO_THROTTLE_H
#define VIRTIO_THROTTLE_H

#include "../core/loop.h"

struct throttle {
	struct loop	*loop;
	void		(*fn)(void *arg);
	void		*arg;
	struct io	timer;		/* timerfd, or fd -1 until needed */
	int		armed;
	uint64_t	last_ns;
	struct throttle_bucket {
		uint64_t	rate;	/* a second; 0: no limit */
		double		tokens;
	} bytes, ops;
};

void throttle_init(struct throttle *t, struct loop *loop, void (*fn)(void *arg), void *arg);
void throttle_fini(struct throttle *t);

/* Change the limits; 0: none. */
void throttle_set(struct throttle *t, uint64_t bytes_per_sec, uint64_t ops_per_sec);

/* May a request start?  If not, fn is called once when one may. */
int throttle_ok(struct throttle *t);

/* One has been started, of so many bytes. */
void throttle_charge(struct throttle *t, uint64_t bytes);

#endif
