/* SPDX-License-Identifier: MIT */
/*
 * stream.c - console bytes to and from descriptors: see stream.h.
 *
 * The hard part is not to block on somebody else's descriptor without setting
 * O_NONBLOCK on it, which would be seen by everyone who shares it (the shell,
 * if it is the terminal).  Pipes and character devices are opened again
 * through /proc/self/fd; sockets take MSG_DONTWAIT; regular files do not block.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "stream.h"

/* A socket is told not to block with each call; what was opened anew never does;
   any other is asked first whether it is ready. */
enum { STREAM_SOCKET, STREAM_FREE, STREAM_ASK };

/*
 * A descriptor of our own for fd, non-blocking where that is possible.  The
 * master of a pseudo-terminal is not opened anew: its name stands for another
 * one.
 */
static int stream_dup(int fd, int flags, uint8_t *how)
{
	char path[32];
	struct stat st;
	int new, pty;

	if (fstat(fd, &st) < 0)
		return -errno;
	if (S_ISFIFO(st.st_mode) ||
	    (S_ISCHR(st.st_mode) && ioctl(fd, TIOCGPTN, &pty) < 0)) {
		snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
		new = open(path, flags | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
		*how = STREAM_FREE;
		if (new >= 0)
			return new;
	}
	*how = S_ISSOCK(st.st_mode) ? STREAM_SOCKET : STREAM_ASK;
	new = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	return new < 0 ? -errno : new;
}

/* Without blocking, a ready descriptor takes so many bytes at once: all, of one
   that does not block; what a pipe that is ready has room for; of a terminal
   it is just one. */
static size_t stream_step(int fd)
{
	struct stat st;

	if (fcntl(fd, F_GETFL) & O_NONBLOCK)
		return STREAM_BUF;
	return fstat(fd, &st) < 0 || S_ISCHR(st.st_mode) ? 1 : 512;
}

static void stream_in(void *arg, uint32_t events)
{
	struct stream *s = arg;

	(void)events;
	if (s->wanted && !s->eof)
		s->on_input(s->arg);
}

/*
 * Write what the descriptor takes without blocking.  A descriptor that is gone
 * takes everything, to nowhere: a guest does not hang on its console.
 */
static size_t stream_push(struct stream *s, const uint8_t *p, size_t n)
{
	struct pollfd pfd = { .fd = s->out.fd, .events = POLLOUT };
	size_t done = 0;
	ssize_t r;

	while (done < n) {
		if (s->out_how == STREAM_ASK && poll(&pfd, 1, 0) <= 0)
			break;
		if (s->out_how == STREAM_SOCKET)
			r = send(s->out.fd, p + done, n - done, MSG_DONTWAIT | MSG_NOSIGNAL);
		else
			r = write(s->out.fd, p + done, n - done < s->step ? n - done : s->step);
		if (r < 0 && errno == EINTR)
			continue;
		if (r < 0 && errno == EAGAIN)
			break;
		if (r < 0)
			return n;
		done += (size_t)r;
	}
	return done;
}

static void stream_out(void *arg, uint32_t events)
{
	struct stream *s = arg;
	size_t n, run;

	(void)events;
	while (s->len) {
		run = STREAM_BUF - s->head < s->len ? STREAM_BUF - s->head : s->len;
		n = stream_push(s, s->buf + s->head, run);
		s->head = (s->head + n) % STREAM_BUF;
		s->len -= n;
		if (n < run)
			break;
	}
	if (!s->len && s->out.watched) {
		loop_del(s->loop, &s->out);
		s->loop->lingering--;
	}
	if (s->starved && stream_room(s) >= STREAM_BUF / 2) {
		s->starved = 0;
		s->on_room(s->arg);
	}
}

int stream_open(struct stream *s, struct loop *loop, int in_fd, int out_fd,
		void (*on_input)(void *arg), void (*on_room)(void *arg), void *arg,
		struct vmm_error *err)
{
	int r;

	memset(s, 0, sizeof(*s));
	s->loop = loop;
	s->in = (struct io){ .fn = stream_in, .arg = s, .fd = -1 };
	s->out = (struct io){ .fn = stream_out, .arg = s, .fd = -1 };
	s->on_input = on_input;
	s->on_room = on_room;
	s->arg = arg;
	if (in_fd >= 0) {
		r = stream_dup(in_fd, O_RDONLY, &s->in_how);
		if (r < 0)
			return fail_sys(err, -r, "console input, descriptor %d", in_fd);
		s->in.fd = r;
	}
	if (out_fd >= 0) {
		r = stream_dup(out_fd, O_WRONLY, &s->out_how);
		if (r < 0) {
			stream_close(s);
			return fail_sys(err, -r, "console output, descriptor %d", out_fd);
		}
		s->out.fd = r;
		s->step = stream_step(r);
		s->buf = malloc(STREAM_BUF);
		if (!s->buf) {
			stream_close(s);
			return fail(err, VMM_ENOMEM, "memory for console output");
		}
	}
	return 0;
}

void stream_close(struct stream *s)
{
	if (!s->loop)
		return;
	loop_del(s->loop, &s->in);
	if (s->out.watched) {
		loop_del(s->loop, &s->out);
		s->loop->lingering--;
	}
	if (s->in.fd >= 0)
		close(s->in.fd);
	if (s->out.fd >= 0)
		close(s->out.fd);
	free(s->buf);
	s->loop = NULL;
}

size_t stream_room(const struct stream *s)
{
	return s->out.fd < 0 ? STREAM_BUF : STREAM_BUF - s->len;
}

size_t stream_write(struct stream *s, const void *data, size_t n)
{
	const uint8_t *p = data;
	size_t done = 0, run, tail;

	if (s->out.fd < 0)
		return n;
	if (!s->len)
		done = stream_push(s, p, n);
	if (done == n)
		return n;
	while (done < n && s->len < STREAM_BUF) {
		tail = (s->head + s->len) % STREAM_BUF;
		run = tail < s->head ? s->head - tail : STREAM_BUF - tail;
		run = run < n - done ? run : n - done;
		memcpy(s->buf + tail, p + done, run);
		s->len += run;
		done += run;
	}
	if (!s->out.watched) {
		if (loop_add(s->loop, &s->out, EPOLLOUT) == 0)
			s->loop->lingering++;
		else
			stream_out(s, 0);
	}
	s->starved = stream_room(s) < STREAM_LOW;
	return done;
}

size_t stream_read(struct stream *s, void *data, size_t n)
{
	struct pollfd pfd = { .fd = s->in.fd, .events = POLLIN };
	ssize_t r;

	/* To read 0 bytes looks like the end of a file. */
	if (s->in.fd < 0 || s->eof || !n)
		return 0;
	if (s->in_how == STREAM_ASK && poll(&pfd, 1, 0) <= 0)
		return 0;
	if (s->in_how == STREAM_SOCKET)
		r = recv(s->in.fd, data, n, MSG_DONTWAIT);
	else
		r = read(s->in.fd, data, n);
	if (r > 0)
		return (size_t)r;
	if (r < 0 && (errno == EAGAIN || errno == EINTR))
		return 0;
	s->eof = 1;			/* or gone: no more input */
	loop_del(s->loop, &s->in);
	return 0;
}

int stream_want(struct stream *s, int wanted)
{
	int r = 0;

	s->wanted = wanted;
	if (s->in.fd < 0 || s->eof)
		return 0;
	if (wanted && !s->in.watched && !s->always) {
		r = loop_add(s->loop, &s->in, EPOLLIN);
		s->always = r == -EPERM;
	} else if (!wanted) {
		loop_del(s->loop, &s->in);
	}
	if (s->always && !s->inside) {
		s->inside = 1;		/* on_input may want again */
		stream_in(s, EPOLLIN);
		s->inside = 0;
	}
	return s->always ? 0 : r;
}
