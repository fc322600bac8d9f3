/* SPDX-License-Identifier: MIT */
/*
 * stock.c - see stock.h.
 */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "clock.h"
#include "kvm.h"
#include "stock.h"
#include "thread.h"

/* So long nobody has wanted one: a crowd of restores has the CPUs for itself. */
#define STOCK_QUIET_MS	10
/* So long nobody has taken the one there is: KVM tells it, too, of each page that a machine of
   this process copies. */
#define STOCK_KEEP_MS	1000

/* With the lock held, which is let go meanwhile: make one that is wanted, else give up the one
   that is not. */
static void stock_change(struct stock *s)
{
	int kvm = s->kvm, vm = s->vm, wanted = s->wanted;

	s->vm = -1;
	pthread_mutex_unlock(&s->lock);
	if (wanted)
		vm = kvm_vm(kvm);
	else
		close(vm);
	pthread_mutex_lock(&s->lock);
	if (!wanted)
		return;
	/* If there is none, who wants one tries, and is told why. */
	s->vm = vm < 0 ? -1 : vm;
	s->wanted = 0;
	clock_after(&s->when, STOCK_KEEP_MS);
}

static void *stock_main(void *arg)
{
	struct stock *s = arg;
	struct timespec when;

	thread_name("vmm-stock");
	pthread_mutex_lock(&s->lock);
	while (!s->quit) {
		when = s->when;
		if (!s->wanted && s->vm < 0)
			pthread_cond_wait(&s->cond, &s->lock);
		/* It may have been put off meanwhile. */
		else if (pthread_cond_clockwait(&s->cond, &s->lock, CLOCK_MONOTONIC, &when) ==
				 ETIMEDOUT && !memcmp(&when, &s->when, sizeof(when)))
			stock_change(s);
	}
	pthread_mutex_unlock(&s->lock);
	return NULL;
}

void stock_init(struct stock *s)
{
	*s = (struct stock){ .kvm = -1, .vm = -1 };
	pthread_mutex_init(&s->lock, NULL);
	pthread_cond_init(&s->cond, NULL);
}

int stock_take(struct stock *s, int kvm)
{
	pid_t pid = __atomic_load_n(&s->pid, __ATOMIC_RELAXED);
	int vm;

	if (pid && pid != getpid())
		return kvm_vm(kvm);
	pthread_mutex_lock(&s->lock);
	vm = s->vm;
	s->vm = -1;
	clock_after(&s->when, STOCK_QUIET_MS);
	if (s->kvm >= 0 && !s->pid && thread_start(&s->thread, stock_main, s) == 0)
		__atomic_store_n(&s->pid, getpid(), __ATOMIC_RELAXED);
	s->kvm = kvm;
	/* A thread that waits to make one finds out for itself that it is to wait longer. */
	if (!s->wanted)
		pthread_cond_signal(&s->cond);
	s->wanted = 1;
	pthread_mutex_unlock(&s->lock);
	return vm < 0 ? kvm_vm(kvm) : vm;
}

void stock_fini(struct stock *s)
{
	if (s->pid == getpid()) {
		pthread_mutex_lock(&s->lock);
		s->quit = 1;
		pthread_cond_signal(&s->cond);
		pthread_mutex_unlock(&s->lock);
		pthread_join(s->thread, NULL);
	}
	if (s->vm >= 0)
		close(s->vm);
	if (!s->pid || s->pid == getpid()) {
		pthread_cond_destroy(&s->cond);
		pthread_mutex_destroy(&s->lock);
	}
}
