/* SPDX-License-Identifier: MIT */
/*
 * loop.c - the I/O thread: epoll, one callback at a time (see loop.h).
 *
 * What epoll reports is kept in the struct, not on the stack, so that
 * loop_del() can strike out an event that has been fetched but not handled.
 * While held, fetched events wait; they are level-triggered and still true.
 */
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "clock.h"
#include "loop.h"
#include "thread.h"

#define LINGER_MS	1000u

int loop_init(struct loop *l, const char *name, struct vmm_error *err)
{
	int r;

	memset(l, 0, sizeof(*l));
	l->epfd = -1;
	l->wakefd = -1;
	snprintf(l->name, sizeof(l->name), "%.12s/io", name);
	r = pthread_mutex_init(&l->lock, NULL);
	if (r)
		return fail_sys(err, r, "I/O lock");
	r = pthread_cond_init(&l->cond, NULL);
	if (r) {
		pthread_mutex_destroy(&l->lock);
		return fail_sys(err, r, "I/O lock");
	}
	return 0;
}

void loop_fini(struct loop *l)
{
	if (l->wakefd >= 0)
		close(l->wakefd);
	if (l->epfd >= 0)
		close(l->epfd);
	pthread_cond_destroy(&l->cond);
	pthread_mutex_destroy(&l->lock);
}

void loop_lock(struct loop *l)
{
	pthread_mutex_lock(&l->lock);
}

void loop_unlock(struct loop *l)
{
	pthread_mutex_unlock(&l->lock);
}

void loop_orphan(struct loop *l)
{
	if (l->wakefd >= 0)
		close(l->wakefd);
	if (l->epfd >= 0)
		close(l->epfd);
	l->epfd = l->wakefd = -1;	/* epoll_ctl() fails, as it should */
	l->orphan = 1;
}

/* With the I/O lock held.  The batch may shrink under us: loop_del(). */
static void loop_dispatch(struct loop *l)
{
	int i;

	for (i = 0; i < l->nbatch; i++) {
		struct io *io = l->batch[i].data.ptr;

		if (io)
			io->fn(io->arg, l->batch[i].events);
	}
	l->nbatch = 0;
}

static void *loop_main(void *arg)
{
	struct loop *l = arg;
	uint64_t count, now, moved = 0;
	int n;

	thread_name(l->name);
	loop_lock(l);
	while (!l->quit || l->lingering) {
		int timeout = -1;

		if (l->quit) {
			now = clock_ns() / 1000000;
			moved = moved ? moved : now;
			if (now - moved >= LINGER_MS)
				break;
			timeout = (int)(moved + LINGER_MS - now);
		}
		l->struck = 0;
		loop_unlock(l);
		n = epoll_wait(l->epfd, l->batch, LOOP_BATCH, timeout);
		if (__atomic_exchange_n(&l->patient, 0, __ATOMIC_RELAXED))
			sched_yield();
		loop_lock(l);
		/* What was struck out meanwhile may be in the batch, and its
		   owner gone: fetch it again, now that nobody can. */
		if (l->struck)
			n = epoll_wait(l->epfd, l->batch, LOOP_BATCH, 0);
		l->nbatch = n > 0 ? n : 0;
		for (n = 0; n < l->nbatch; n++) {
			if (l->batch[n].events & EPOLLOUT)
				moved = 0;
			if (l->batch[n].data.ptr != l)
				continue;
			/* wakefd: only there to end the wait. */
			l->batch[n].data.ptr = NULL;
			if (read(l->wakefd, &count, sizeof(count)) < 0)
				continue;
		}
		if (l->hold) {
			l->held = 1;
			pthread_cond_broadcast(&l->cond);
			while (l->hold && !l->quit)
				pthread_cond_wait(&l->cond, &l->lock);
			l->held = 0;
		}
		loop_dispatch(l);
	}
	loop_unlock(l);
	return NULL;
}

static void loop_wake(struct loop *l)
{
	uint64_t one = 1;

	if (write(l->wakefd, &one, sizeof(one)) < 0)
		return;			/* EAGAIN: it is awake enough */
}

/* With the I/O lock held, or before the machine is started. */
static int loop_thread(struct loop *l)
{
	int r;

	if (l->alive || !l->started || l->epfd < 0)
		return 0;
	r = thread_start(&l->thread, loop_main, l);
	if (r)
		return -r;
	l->alive = 1;
	return 0;
}

int loop_start(struct loop *l, struct vmm_error *err)
{
	int r;

	loop_lock(l);
	l->started = 1;
	l->quit = 0;
	r = loop_thread(l);
	if (r)
		l->started = 0;
	loop_unlock(l);
	return r ? fail_sys(err, -r, "I/O thread") : 0;
}

void loop_stop(struct loop *l)
{
	int alive;

	loop_lock(l);
	l->started = 0;
	l->quit = 1;
	l->hold = 0;
	alive = l->alive;
	if (alive) {
		loop_wake(l);
		pthread_cond_broadcast(&l->cond);
	}
	loop_unlock(l);
	if (alive)
		pthread_join(l->thread, NULL);
	l->alive = 0;
	loop_lock(l);
	if (l->give_up)
		l->give_up(l->give_up_arg);
	loop_unlock(l);
}

void loop_hold(struct loop *l)
{
	loop_lock(l);
	l->hold = 1;
	if (l->alive)
		loop_wake(l);
	while (l->alive && !l->held)
		pthread_cond_wait(&l->cond, &l->lock);
	loop_unlock(l);
}

void loop_release(struct loop *l)
{
	loop_lock(l);
	l->hold = 0;
	pthread_cond_broadcast(&l->cond);
	loop_unlock(l);
}

void loop_be_patient(struct loop *l)
{
	__atomic_store_n(&l->patient, 1, __ATOMIC_RELAXED);
}

static int loop_open(struct loop *l)
{
	struct epoll_event ev = { .events = EPOLLIN, .data.ptr = l };

	l->epfd = epoll_create1(EPOLL_CLOEXEC);
	if (l->epfd < 0)
		return -errno;
	l->wakefd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (l->wakefd >= 0 && epoll_ctl(l->epfd, EPOLL_CTL_ADD, l->wakefd, &ev) == 0)
		return 0;
	ev.events = (uint32_t)errno;
	if (l->wakefd >= 0)
		close(l->wakefd);
	close(l->epfd);
	l->epfd = l->wakefd = -1;
	return -(int)ev.events;
}

int loop_add(struct loop *l, struct io *io, uint32_t events)
{
	struct epoll_event ev = { .events = events, .data.ptr = io };
	int r;

	if (l->epfd < 0) {
		r = loop_open(l);
		if (r < 0)
			return r;
	}
	if (epoll_ctl(l->epfd, EPOLL_CTL_ADD, io->fd, &ev) < 0)
		return -errno;
	io->watched = 1;
	r = loop_thread(l);
	if (r < 0)
		loop_del(l, io);
	return r;
}

void loop_mod(struct loop *l, struct io *io, uint32_t events)
{
	struct epoll_event ev = { .events = events, .data.ptr = io };

	epoll_ctl(l->epfd, EPOLL_CTL_MOD, io->fd, &ev);
}

void loop_del(struct loop *l, struct io *io)
{
	int i;

	if (!io->watched)
		return;
	epoll_ctl(l->epfd, EPOLL_CTL_DEL, io->fd, NULL);
	io->watched = 0;
	l->struck = 1;
	for (i = 0; i < l->nbatch; i++)
		if (l->batch[i].data.ptr == io)
			l->batch[i].data.ptr = NULL;
}
