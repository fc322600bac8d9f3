/* SPDX-License-Identifier: MIT */
/*
 * aio.c - file operations in the background: see aio.h.
 *
 * io_uring: requests of a batch go to the kernel in one system call, results
 * are read from its ring, whose descriptor is watched by the I/O loop.
 *
 * Threads: where io_uring_setup() fails (a container's seccomp filter, the
 * sysctl kernel.io_uring_disabled), AIO_THREADS of them make the same system
 * calls, and write to an eventfd.  They share nothing with the rest but two
 * lists under a lock of their own.
 *
 * Not done: registered files and buffers, polling.  A short transfer is the
 * caller's to go on with.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "../core/thread.h"
#include "aio.h"

enum { AIO_NONE, AIO_URING, AIO_POOL };

void aio_init(struct aio *a, struct loop *loop, const struct log *log, const char *name,
	      uint32_t depth, void (*idle)(void *arg), void *arg)
{
	memset(a, 0, sizeof(*a));
	a->loop = loop;
	a->log = log;
	a->name = name;
	a->depth = depth;
	a->idle = idle;
	a->arg = arg;
	a->io.fd = -1;
}

/* A request is over.  done() may submit the next. */
static void aio_done(struct aio *a, struct aio_req *r, int64_t result)
{
	a->inflight--;
	r->done(r, result);
}

/* ---- Threads --------------------------------------------------------------- */

static int64_t aio_perform(const struct aio_req *r)
{
	ssize_t n = -1;

	switch (r->op) {
	case AIO_READ:
		n = preadv2(r->fd, r->iov, (int)r->niov, (off_t)r->off, r->flags);
		break;
	case AIO_WRITE:
		n = pwritev2(r->fd, r->iov, (int)r->niov, (off_t)r->off, r->flags);
		break;
	case AIO_SYNC:
		n = fdatasync(r->fd);
		break;
	case AIO_FALLOCATE:
		n = fallocate(r->fd, r->flags, (off_t)r->off, (off_t)r->len);
		break;
	default:
		errno = EINVAL;
		break;
	}
	return n < 0 ? -errno : n;
}

static void *pool_main(void *arg)
{
	struct aio *a = arg;
	const uint64_t one = 1;
	struct aio_req *r;

	pthread_mutex_lock(&a->lock);
	for (;;) {
		while (!a->todo && !a->quit)
			pthread_cond_wait(&a->work, &a->lock);
		r = a->todo;
		if (!r)
			break;
		a->todo = r->next;
		if (!a->todo)
			a->todo_tail = &a->todo;
		pthread_mutex_unlock(&a->lock);
		r->result = aio_perform(r);
		pthread_mutex_lock(&a->lock);
		r->next = a->finished;
		a->finished = r;
		pthread_cond_signal(&a->finish);
		if (write(a->io.fd, &one, sizeof(one)) < 0)
			continue;	/* full: it is readable already */
	}
	pthread_mutex_unlock(&a->lock);
	return NULL;
}

static void pool_submit(struct aio *a, struct aio_req *r)
{
	pthread_mutex_lock(&a->lock);
	r->next = NULL;
	*a->todo_tail = r;
	a->todo_tail = &r->next;
	pthread_cond_signal(&a->work);
	pthread_mutex_unlock(&a->lock);
}

/* The results so far; with wait, at least one. */
static void pool_reap(struct aio *a, int wait)
{
	struct aio_req *r, *next;

	pthread_mutex_lock(&a->lock);
	while (wait && !a->finished)
		pthread_cond_wait(&a->finish, &a->lock);
	r = a->finished;
	a->finished = NULL;
	pthread_mutex_unlock(&a->lock);
	for (; r; r = next) {
		next = r->next;
		aio_done(a, r, r->result);
	}
}

static void pool_close(struct aio *a)
{
	uint32_t i;

	pthread_mutex_lock(&a->lock);
	a->quit = 1;
	pthread_cond_broadcast(&a->work);
	pthread_mutex_unlock(&a->lock);
	for (i = 0; i < a->nthreads; i++)
		pthread_join(a->thread[i], NULL);
	pthread_cond_destroy(&a->finish);
	pthread_cond_destroy(&a->work);
	pthread_mutex_destroy(&a->lock);
	close(a->io.fd);
}

static int pool_open(struct aio *a)
{
	a->io.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (a->io.fd < 0)
		return -errno;
	pthread_mutex_init(&a->lock, NULL);
	pthread_cond_init(&a->work, NULL);
	pthread_cond_init(&a->finish, NULL);
	a->todo = a->finished = NULL;
	a->todo_tail = &a->todo;
	a->quit = 0;
	for (a->nthreads = 0; a->nthreads < AIO_THREADS; a->nthreads++)
		if (thread_start(&a->thread[a->nthreads], pool_main, a))
			break;
	if (a->nthreads)		/* fewer do as well */
		return 0;
	pool_close(a);
	return -ENOMEM;
}

/* ---- io_uring ---------------------------------------------------------------- */

static void uring_prepare(struct io_uring_sqe *sqe, struct aio_req *r)
{
	switch (r->op) {
	case AIO_READ:
		io_uring_prep_readv2(sqe, r->fd, r->iov, r->niov, r->off, r->flags);
		break;
	case AIO_WRITE:
		io_uring_prep_writev2(sqe, r->fd, r->iov, r->niov, r->off, r->flags);
		break;
	case AIO_SYNC:
		io_uring_prep_fsync(sqe, r->fd, IORING_FSYNC_DATASYNC);
		break;
	default:
		/* io_uring_prep_fallocate() has changed its types. */
		io_uring_prep_rw(IORING_OP_FALLOCATE, sqe, r->fd, NULL, (unsigned int)r->flags,
				 r->off);
		sqe->addr = r->len;
		break;
	}
	if (r->far)
		sqe->flags |= IOSQE_ASYNC;
	io_uring_sqe_set_data(sqe, r);
}

static int uring_submit(struct aio *a, struct aio_req *r)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&a->ring);

	if (!sqe) {			/* full: make room */
		aio_flush(a);
		sqe = io_uring_get_sqe(&a->ring);
	}
	if (!sqe)
		return -ENOMEM;
	uring_prepare(sqe, r);
	a->unsent++;
	return 0;
}

static void uring_reap(struct aio *a, int wait)
{
	struct io_uring_cqe *cqe;
	struct aio_req *r;
	unsigned int n;
	int64_t result;

	if (wait)
		io_uring_wait_cqe(&a->ring, &cqe);	/* EINTR: once more */
	/* Those that are done now: each may begin another piece, which is soon done, too. */
	for (n = io_uring_cq_ready(&a->ring); n && io_uring_peek_cqe(&a->ring, &cqe) == 0; n--) {
		r = io_uring_cqe_get_data(cqe);
		result = cqe->res;
		io_uring_cqe_seen(&a->ring, cqe);
		aio_done(a, r, result);
	}
}

/* ---- Either -------------------------------------------------------------------- */

static void aio_reap(struct aio *a, int wait)
{
	if (a->engine == AIO_URING)
		uring_reap(a, wait);
	else
		pool_reap(a, wait);
}

static void aio_ready(void *arg, uint32_t events)
{
	struct aio *a = arg;
	uint64_t count;

	(void)events;
	if (a->engine == AIO_POOL && read(a->io.fd, &count, sizeof(count)) < 0)
		return;
	aio_reap(a, 0);
	aio_flush(a);
	a->idle(a->arg);
}

static int aio_open(struct aio *a)
{
	int r = a->threads_only ? -ENOSYS : io_uring_queue_init(a->depth, &a->ring, 0);

	a->io = (struct io){ .fn = aio_ready, .arg = a, .fd = -1 };
	if (r == 0) {
		a->io.fd = a->ring.ring_fd;
		a->engine = AIO_URING;
	} else {
		log_line(a->log, VMM_LOG_INFO, "%s: no io_uring (%s), threads instead", a->name,
			 strerror(-r));
		r = pool_open(a);
		if (r < 0)
			return r;
		a->engine = AIO_POOL;
	}
	r = loop_add(a->loop, &a->io, EPOLLIN);
	if (r < 0)
		aio_fini(a);
	return r;
}

void aio_submit(struct aio *a, struct aio_req *r)
{
	int rc = 0;

	a->inflight++;
	if (a->engine == AIO_NONE)
		rc = aio_open(a);
	if (rc == 0 && a->engine == AIO_URING)
		rc = uring_submit(a, r);
	else if (rc == 0)
		pool_submit(a, r);
	if (rc < 0)
		aio_done(a, r, rc);
}

void aio_flush(struct aio *a)
{
	int n;

	while (a->unsent) {
		n = io_uring_submit(&a->ring);
		if (n > 0)
			a->unsent -= (uint32_t)n;
		else if (a->inflight > a->unsent)
			uring_reap(a, 1);	/* no room until one is done */
		else if (n != -EINTR)
			usleep(1000);		/* the host is out of memory */
	}
}

void aio_drain(struct aio *a)
{
	aio_flush(a);
	while (a->inflight) {
		aio_reap(a, 1);
		aio_flush(a);
	}
}

void aio_fini(struct aio *a)
{
	if (a->io.fd >= 0)
		loop_del(a->loop, &a->io);
	if (a->engine == AIO_URING)
		io_uring_queue_exit(&a->ring);
	else if (a->engine == AIO_POOL && a->loop->orphan)
		close(a->io.fd);	/* its threads are the parent's */
	else if (a->engine == AIO_POOL)
		pool_close(a);
	a->engine = AIO_NONE;
	a->io.fd = -1;
}
