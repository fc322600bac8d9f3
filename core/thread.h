/* SPDX-License-Identifier: MIT */
/*
 * thread.h - a thread of ours: every signal blocked, named, joinable.
 *
 * The host program's signal handlers therefore never run on our threads, and
 * a SIGPIPE or the kick of a vCPU stays pending instead of ending the process.
 */
#ifndef CORE_THREAD_H
#define CORE_THREAD_H

#include <pthread.h>

/* 0 or an errno value, as pthread_create().  name: at most 15 bytes. */
int thread_start(pthread_t *t, const char *name, void *(*fn)(void *), void *arg);

#endif
