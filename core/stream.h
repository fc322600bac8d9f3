/* SPDX-License-Identifier: MIT */
/*
 * stream.h - bytes between a console-like device and the host's descriptors.
 *
 * Input is read when the device wants some.  Output is written at once if that
 * does not block, else kept in a bounded buffer; when that is full the device
 * is told, and lets its guest wait: nothing is lost.
 *
 * All calls with the I/O lock held.  None of this is part of a snapshot: what
 * the guest has written has left it.
 */
#ifndef CORE_STREAM_H
#define CORE_STREAM_H

#include "loop.h"

#define STREAM_BUF	65536u	/* bytes of output kept, at most */
#define STREAM_LOW	64u	/* less room than this is scarce */

struct stream {
	struct loop	*loop;
	struct io	in, out;	/* fd -1: nothing comes, all is dropped */
	void		(*on_input)(void *arg);	/* stream_read() may give bytes */
	void		(*on_room)(void *arg);	/* there is plenty, after it was scarce */
	void		*arg;
	uint8_t		*buf;		/* output not yet written, a ring */
	size_t		head, len;
	size_t		step;		/* bytes a ready descriptor takes */
	uint8_t		in_how, out_how;	/* how not to block: stream.c */
	int		always;		/* input is a file: always ready */
	int		wanted, eof, starved, inside;
};

/*
 * Duplicates both descriptors.  Their file status flags, which the caller
 * shares, are left alone: a pipe or a terminal is opened anew to make it
 * non-blocking for us only.
 */
int stream_open(struct stream *s, struct loop *loop, int in_fd, int out_fd,
		void (*on_input)(void *arg), void (*on_room)(void *arg), void *arg,
		struct vmm_error *err);
void stream_close(struct stream *s);

/* How many bytes stream_write() takes now. */
size_t stream_room(const struct stream *s);

/* Returns the bytes taken: fewer than n only if there is no more room. */
size_t stream_write(struct stream *s, const void *data, size_t n);

/* Returns the bytes read; 0 if there are none now. */
size_t stream_read(struct stream *s, void *data, size_t n);

/* Whether on_input is to be called when there is input.  -errno if it will not
   be; that can only be the first time. */
int stream_want(struct stream *s, int wanted);

#endif
