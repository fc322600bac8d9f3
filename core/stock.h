/* SPDX-License-Identifier: MIT */
/*
 * stock.h - a KVM VM that is there before it is needed.
 *
 * KVM_CREATE_VM is half of a restore: 0.2 ms, and 1 ms where the process has many
 * mappings, since KVM takes the locks of all.  Whoever makes one machine after another
 * gets the next VM from a thread, which makes it when nobody wants one just now, and
 * gives it up when nobody has for a second.
 */
#ifndef CORE_STOCK_H
#define CORE_STOCK_H

#include <pthread.h>
#include <sys/types.h>
#include <time.h>

struct stock {
	pthread_mutex_t	lock;		/* what follows */
	pthread_cond_t	cond;
	pthread_t	thread;
	pid_t		pid;		/* whose thread, and VM; 0: there is none yet */
	int		kvm;		/* to make it with */
	int		vm;		/* or -1 */
	int		wanted;		/* the next is to be made, else vm to be given up, */
	struct timespec	when;		/* if until then none is taken */
	int		quit;
};

void stock_init(struct stock *s);

/*
 * A VM, as kvm_vm() gives it.  The first two are made while the caller waits, and the
 * thread comes with the second: a process that wants one machine has none.  kvm stays
 * open until stock_fini().  In a child of fork() there is no stock.  Any thread.
 */
int stock_take(struct stock *s, int kvm);

void stock_fini(struct stock *s);

#endif
