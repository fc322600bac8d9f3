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
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#include "thread.h"

#define STACK_SIZE	(256u << 10)

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL	102	/* Linux 6.13 */
#endif

/*
 * May the guard below a stack be a page of the stack's own mapping?  One that is a mapping by
 * itself keeps stacks that lie side by side from becoming one, and to make a VM KVM takes the
 * locks of all mappings of the process, up to 1 us each.  glibc 2.42 does so by itself.
 */
static int guards_are_pages(void)
{
	static int known;		/* atomic: 1: yes, -1: no */
	int yes = __atomic_load_n(&known, __ATOMIC_RELAXED);
	size_t page = (size_t)getpagesize();
	void *p;

	if (yes)
		return yes > 0;
	p = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	yes = p != MAP_FAILED && madvise(p, page, MADV_GUARD_INSTALL) == 0 ? 1 : -1;
	if (p != MAP_FAILED)
		munmap(p, page);
	__atomic_store_n(&known, yes, __ATOMIC_RELAXED);
	return yes > 0;
}

static void thread_guard(pthread_t t)
{
	pthread_attr_t attr;
	size_t size;
	void *stack;

	if (pthread_getattr_np(t, &attr))
		return;
	if (pthread_attr_getstack(&attr, &stack, &size) == 0)
		madvise(stack, (size_t)getpagesize(), MADV_GUARD_INSTALL);
	pthread_attr_destroy(&attr);
}

int thread_start(pthread_t *t, void *(*fn)(void *), void *arg)
{
	pthread_attr_t attr;
	sigset_t all, old;
	int r, pages = guards_are_pages();

	r = pthread_attr_init(&attr);
	if (r)
		return r;
	pthread_attr_setstacksize(&attr, STACK_SIZE);
	if (pages)
		pthread_attr_setguardsize(&attr, 0);
	/* A new thread inherits the mask: block first, so that not even its
	   first instruction can be interrupted. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	r = pthread_create(t, &attr, fn, arg);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	pthread_attr_destroy(&attr);
	if (r == 0 && pages)
		thread_guard(*t);
	return r;
}

void thread_name(const char *name)
{
	/* By itself: another thread's name is set through a file in /proc. */
	prctl(PR_SET_NAME, name);
}

static void file_signals(sigset_t *set)
{
	sigemptyset(set);
	sigaddset(set, SIGPIPE);
	sigaddset(set, SIGXFSZ);
}

void thread_hold(sigset_t *before)
{
	sigset_t set;

	file_signals(&set);
	pthread_sigmask(SIG_BLOCK, &set, before);
}

void thread_release(const sigset_t *before, int failed)
{
	const struct timespec now = { 0, 0 };
	sigset_t set;

	file_signals(&set);
	/* What was blocked before we came is not ours to take. */
	if (sigismember(before, SIGPIPE))
		sigdelset(&set, SIGPIPE);
	if (sigismember(before, SIGXFSZ))
		sigdelset(&set, SIGXFSZ);
	if (failed)
		while (sigtimedwait(&set, NULL, &now) > 0)
			;
	pthread_sigmask(SIG_SETMASK, before, NULL);
}
