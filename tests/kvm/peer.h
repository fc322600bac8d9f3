/* SPDX-License-Identifier: MIT */
/*
 * peer.h - a conversation over a stream socket, for tests: host and guest can be
 * on either side of it, and both check every byte.
 *
 * Who has connected asks, first of all, for one of
 *
 *	PEER_SINK	n bytes go to the other side, then a half-close; it answers
 *			with what it has counted, and closes
 *	PEER_SOURCE	the other side sends n bytes, then a half-close; it is told
 *			what has been counted, and sees the close
 */
#ifndef PEER_H
#define PEER_H

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "pattern.h"

enum { PEER_SINK = 1, PEER_SOURCE = 2 };

struct peer_ask {
	uint32_t	op, seed;
	uint64_t	n;
};

/* 0, or -1 with a reason in why. */
struct peer {
	int		fd;
	char		why[120];
	unsigned int	rest_ms;	/* between the last byte and the half-close */
};

static inline int peer_bad(struct peer *p, const char *what, uint64_t at)
{
	snprintf(p->why, sizeof(p->why), "%s at byte %llu (errno %d)", what,
		 (unsigned long long)at, errno);
	return -1;
}

static inline int peer_write(struct peer *p, const void *buf, size_t n)
{
	const uint8_t *b = buf;
	ssize_t r;

	for (; n; b += r, n -= (size_t)r) {
		r = send(p->fd, b, n, MSG_NOSIGNAL);
		if (r <= 0)
			return peer_bad(p, "write", (uint64_t)(b - (const uint8_t *)buf));
	}
	return 0;
}

static inline int peer_read(struct peer *p, void *buf, size_t n)
{
	uint8_t *b = buf;
	ssize_t r;

	for (; n; b += r, n -= (size_t)r) {
		r = read(p->fd, b, n);
		if (r <= 0)
			return peer_bad(p, r ? "read" : "early end", (uint64_t)(b - (uint8_t *)buf));
	}
	return 0;
}

static inline int peer_eof(struct peer *p)
{
	char c;

	errno = 0;
	return read(p->fd, &c, 1) == 0 ? 0 : peer_bad(p, "no end", 0);
}

#define PEER_CHUNK 65536u

static inline int peer_send(struct peer *p, const struct peer_ask *a)
{
	uint8_t *buf = malloc(PEER_CHUNK);
	struct pattern pat;
	uint64_t left = a->n;
	int r = 0;
	size_t k;

	pattern_init(&pat, a->seed);
	for (; !r && left; left -= k) {
		k = left < PEER_CHUNK ? (size_t)left : PEER_CHUNK;
		pattern_make(&pat, buf, k);
		r = peer_write(p, buf, k);
	}
	free(buf);
	usleep(p->rest_ms * 1000);
	if (!r && shutdown(p->fd, SHUT_WR) < 0)
		r = peer_bad(p, "shutdown", a->n);
	return r;
}

static inline int peer_receive(struct peer *p, const struct peer_ask *a)
{
	uint8_t *buf = malloc(PEER_CHUNK);
	struct pattern pat;
	uint64_t got = 0;
	int r = 0;
	ssize_t k;

	pattern_init(&pat, a->seed);
	while (!r && (k = read(p->fd, buf, PEER_CHUNK)) > 0) {
		if ((uint64_t)k > a->n - got || !pattern_is(&pat, buf, (size_t)k))
			r = peer_bad(p, "wrong bytes", got);
		got += (uint64_t)k;
	}
	free(buf);
	if (!r && (k < 0 || got != a->n))
		r = peer_bad(p, k < 0 ? "read" : "early end", got);
	return r;
}

/* The side that has connected. */
static inline int peer_call(struct peer *p, uint32_t op, uint32_t seed, uint64_t n)
{
	struct peer_ask a = { op, seed, n };
	uint64_t count = n;

	if (peer_write(p, &a, sizeof(a)))
		return -1;
	if (op == PEER_SINK) {
		if (peer_send(p, &a) || peer_read(p, &count, sizeof(count)) || peer_eof(p))
			return -1;
		return count == n ? 0 : peer_bad(p, "wrong count", count);
	}
	return peer_receive(p, &a) || peer_write(p, &count, sizeof(count)) ? -1 : 0;
}

/* The side that has accepted. */
static inline int peer_serve(struct peer *p)
{
	struct peer_ask a;
	uint64_t count;

	if (peer_read(p, &a, sizeof(a)))
		return -1;
	count = a.n;
	if (a.op == PEER_SINK)
		return peer_receive(p, &a) || peer_write(p, &count, sizeof(count)) ? -1 : 0;
	if (peer_send(p, &a) || peer_read(p, &count, sizeof(count)) || peer_eof(p))
		return -1;
	return count == a.n ? 0 : peer_bad(p, "wrong count", count);
}

#endif
