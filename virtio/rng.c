/* SPDX-License-Identifier: MIT */
/*
 * rng.c - virtio entropy device (virtio 1.2, 5.4).
 *
 * The guest offers empty buffers on its one queue and we fill them from
 * getrandom(2).  That is all; the interest is in what we do not do:
 *
 * - We keep no state.  A request is answered when it comes, so a snapshot
 *   holds no half-filled buffer, and a clone never sees the bytes of its
 *   original.
 * - We do not fill a request completely.  The guest chooses its size, and the
 *   I/O lock is shared: RNG_FILL_MAX bounds what one request may cost us.
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/random.h>

#include <linux/virtio_ids.h>

#include "devices.h"

#define RNG_FILL_MAX	4096u

/* Returns the bytes written: 0 if the host has none, which is no error. */
static uint32_t rng_fill(const struct chain *c)
{
	size_t want, done = 0;
	ssize_t n;
	uint16_t i;

	for (i = 0; i < c->nin && done < RNG_FILL_MAX; i++) {
		want = c->iov[c->nout + i].iov_len;
		if (want > RNG_FILL_MAX - done)
			want = RNG_FILL_MAX - done;
		do
			n = getrandom(c->iov[c->nout + i].iov_base, want, 0);
		while (n < 0 && errno == EINTR);
		if (n < 0)
			break;
		done += (size_t)n;
		if ((size_t)n < want)
			break;
	}
	return (uint32_t)done;
}

static void rng_notify(struct virtio *v, struct queue *q)
{
	struct chain c;

	while (queue_pop(q, &c)) {
		/* 5.4.6.1: nothing to read, and something to write. */
		if (c.nout || !c.in_len) {
			virtio_fail(v, "a request has no room for an answer");
			return;
		}
		queue_push(q, c.head, rng_fill(&c));
	}
	queue_signal(q);
}

static void rng_free(struct virtio *v)
{
	virtio_fini(v);
	free(v);
}

static const struct virtio_ops rng_ops = {
	.type		= "rng",
	.id		= VIRTIO_ID_RNG,
	.version	= 1,
	.notify		= rng_notify,
	.free		= rng_free,
};

int rng_new(struct virtio **out, const struct virtio_env *env, const char *name,
	    struct vmm_error *err)
{
	struct virtio *v = calloc(1, sizeof(*v));
	int r;

	*out = NULL;
	if (!v)
		return fail(err, VMM_ENOMEM, "%s", name);
	r = virtio_init(v, &rng_ops, env, name, 1, err);
	if (r) {
		rng_free(v);
		return r;
	}
	*out = v;
	return 0;
}
