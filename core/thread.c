/* SPDX-License-Identifier: MIT */
/*
 * thread.c - how every thread of the library begins: see thread.h.
 *
 * The stack is small on purpose: a machine's threads call nothing deep, and
 * an embedder may have thousands.
 */
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <sys/prctl.h>

#include "thread.h"

#define STACK_SIZE	(256u << 10)

int thread_start(pthread_t *t, void *(*fn)(void *), void *arg)
{
	pthread_attr_t attr;
	sigset_t all, old;
	int r;

	r = pthread_attr_init(&attr);
	if (r)
		return r;
	pthread_attr_setstacksize(&attr, STACK_SIZE);
	/* A new thread inherits the mask: block first, so that not even its
	   first instruction can be interrupted. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	r = pthread_create(t, &attr, fn, arg);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	pthread_attr_destroy(&attr);
	return r;
}

void thread_name(const char *name)
{
	/* By itself: another thread's name is set through a file in /proc. */
	prctl(PR_SET_NAME, name);
}
