/* SPDX-License-Identifier: MIT */
/*
 * loop.h - the I/O thread of a machine, and the lock that guards its devices.
 *
 * Device code runs with the I/O lock held, either on the I/O thread, when a
 * descriptor is ready, or on the vCPU thread that touched a register.  So a
 * device takes no lock of its own, and a register read costs no switch.
 *
 * The thread exists only while the machine runs and some descriptor is watched.
 */
#ifndef CORE_LOOP_H
#define CORE_LOOP_H

#include <pthread.h>
#include <sys/epoll.h>

#include "error.h"

#define LOOP_BATCH	16

/* One watched descriptor, embedded in its owner's state. */
struct io {
	void		(*fn)(void *arg, uint32_t events);	/* EPOLL* bits */
	void		*arg;
	int		fd;
	int		watched;
};

struct loop {
	pthread_mutex_t	lock;		/* the I/O lock */
	pthread_cond_t	cond;
	pthread_t	thread;
	char		name[16];
	int		epfd, wakefd;	/* -1 until needed */
	int		started;	/* the machine has been started */
	int		alive;		/* the thread exists */
	int		hold;		/* asked to stay between callbacks */
	int		held;		/* and it does */
	int		quit;
	int		lingering;	/* watched fds with output to finish */
	void		(*give_up)(void *arg);	/* by loop_stop(), lock held: no more will be
					   written; NULL: what is left is kept */
	void		*give_up_arg;
	int		struck;		/* loop_del() since the last wait began */
	int		orphan;		/* this is a child of fork(), without its threads */
	int		patient;	/* atomic: what comes next is better a little late */
	struct epoll_event batch[LOOP_BATCH];
	int		nbatch;
};

int loop_init(struct loop *l, const char *name, struct vmm_error *err);
void loop_fini(struct loop *l);		/* after loop_stop() */

/*
 * In a child of fork(): the set of watched descriptors is the parent's too, and
 * is left alone from now on; only our own descriptors of it go.
 */
void loop_orphan(struct loop *l);

/* Let callbacks happen from now on. */
int loop_start(struct loop *l, struct vmm_error *err);

/*
 * End the thread.  Output that lingers is written first, for as long as it
 * moves at least once a second; then give_up() is called.
 */
void loop_stop(struct loop *l);

/* Returns when no callback runs; none will until loop_release(). */
void loop_hold(struct loop *l);
void loop_release(struct loop *l);

/* Let others run, if they wait for this CPU, before the next callbacks. */
void loop_be_patient(struct loop *l);

void loop_lock(struct loop *l);
void loop_unlock(struct loop *l);

/*
 * Watch io->fd for events (level-triggered); change them; stop watching it.
 * With the I/O lock held, or before loop_start().  After loop_del() its
 * function is not called any more, not even for what was ready by then.
 * loop_add() gives -errno: -EPERM for a file that is always ready.
 */
int loop_add(struct loop *l, struct io *io, uint32_t events);
void loop_mod(struct loop *l, struct io *io, uint32_t events);
void loop_del(struct loop *l, struct io *io);

#endif
