/* SPDX-License-Identifier: MIT */
/*
 * thread.h - a thread of ours: every signal blocked, joinable.
 *
 * The host program's signal handlers therefore never run on our threads, and
 * a SIGPIPE or the kick of a vCPU stays pending instead of ending the process.
 */
#ifndef CORE_THREAD_H
#define CORE_THREAD_H

#include <pthread.h>
#include <signal.h>

/* 0 or an errno value, as pthread_create(). */
int thread_start(pthread_t *t, void *(*fn)(void *), void *arg);

/* Name the calling thread, for those who look at it: 15 bytes count. */
void thread_name(const char *name);

/*
 * Writing may raise SIGPIPE, or SIGXFSZ where files must not be large (RLIMIT_FSIZE; a memfd
 * is one), of which the host program might die.  On the calling thread both are blocked from
 * here on, until thread_release(), which takes back what came of what failed.
 */
void thread_hold(sigset_t *before);
void thread_release(const sigset_t *before, int failed);

#endif
