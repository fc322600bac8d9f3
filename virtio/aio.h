/* SPDX-License-Identifier: MIT */
/*
 * aio.h - file operations that do not hold up the caller.
 *
 * One struct aio per disk.  Behind it is an io_uring or, where the host does
 * not allow one, a few threads; which, is found out when the first request is
 * made, so that a disk that is never waited for costs neither.
 *
 * I/O lock held for all calls, and when done() is called: from the I/O loop,
 * or from within aio_flush() or aio_drain().
 */
#ifndef VIRTIO_AIO_H
#define VIRTIO_AIO_H

#include <liburing.h>
#include <pthread.h>
#include <sys/uio.h>

#include "../core/loop.h"

#define AIO_THREADS	4

enum { AIO_READ, AIO_WRITE, AIO_SYNC, AIO_FALLOCATE };

/* The caller's, untouched by it until done() is called. */
struct aio_req {
	void		(*done)(struct aio_req *r, int64_t result);	/* bytes or -errno */
	uint8_t		op;		/* AIO_* */
	uint8_t		far;		/* it is long: not on this thread */
	int		fd;
	int		flags;		/* RWF_*, or the mode of fallocate */
	uint32_t	niov;
	struct iovec	*iov;
	uint64_t	off;
	uint64_t	len;		/* of AIO_FALLOCATE */
	int64_t		result;
	struct aio_req	*next;
};

struct aio {
	struct loop	*loop;
	const struct log *log;
	const char	*name;		/* of the disk, in the log */
	void		(*idle)(void *arg);	/* after a batch of done()s */
	void		*arg;
	uint32_t	depth;
	uint8_t		engine;		/* none yet, io_uring, threads */
	uint8_t		threads_only;	/* to be set before the first request */
	uint32_t	inflight, unsent;
	struct io	io;		/* readable when there is a result */
	struct io_uring	ring;
	/* The threads' part: */
	pthread_mutex_t	lock;
	pthread_cond_t	work, finish;
	struct aio_req	*todo, **todo_tail, *finished;
	pthread_t	thread[AIO_THREADS];
	uint32_t	nthreads;
	int		quit;
};

/* depth: as many requests are expected at once; more are possible. */
void aio_init(struct aio *a, struct loop *loop, const struct log *log, const char *name,
	      uint32_t depth, void (*idle)(void *arg), void *arg);
void aio_fini(struct aio *a);		/* with nothing in flight */

void aio_submit(struct aio *a, struct aio_req *r);
void aio_flush(struct aio *a);		/* after a batch of submits */

/* Wait until nothing is in flight. */
void aio_drain(struct aio *a);

#endif
