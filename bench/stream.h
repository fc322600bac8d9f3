/* SPDX-License-Identifier: MIT */
/*
 * stream.h - what guest (stream.c) and host (bench/io.c) say to each other.
 *
 * The guest connects and sends a struct stream_ask.  ECHO: the host sends back what
 * it gets.  BULK: it takes so many bytes, and then gives as many.
 */
#ifndef BENCH_STREAM_H
#define BENCH_STREAM_H

#include <err.h>
#include <stdint.h>
#include <sys/socket.h>
#include <unistd.h>

#define STREAM_PORT	5000
#define STREAM_PIECE	65536u
#define STREAM_SMALL	64u

enum { STREAM_ECHO, STREAM_BULK };

struct stream_ask {
	uint64_t	op, bytes;
};

/* n bytes of buf, or, if that is NULL, just so many. */
static inline void stream_write(int fd, const void *buf, uint64_t n)
{
	static const char piece[STREAM_PIECE];
	const char *p = buf;
	ssize_t r;

	for (; n; n -= (uint64_t)r, p += p ? r : 0) {
		r = send(fd, p ? p : piece, p || n < STREAM_PIECE ? n : STREAM_PIECE, MSG_NOSIGNAL);
		if (r <= 0)
			err(1, "stream: write");
	}
}

/* 0 if it ends before. */
static inline int stream_read(int fd, void *buf, uint64_t n)
{
	static __thread char piece[STREAM_PIECE];
	char *p = buf;
	ssize_t r;

	for (; n; n -= (uint64_t)r, p += p ? r : 0) {
		r = read(fd, p ? p : piece, p || n < STREAM_PIECE ? n : STREAM_PIECE);
		if (r <= 0)
			return 0;
	}
	return 1;
}

#endif
