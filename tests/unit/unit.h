/* SPDX-License-Identifier: MIT */
/*
 * unit.h - what every unit test includes: CMocka, and a few helpers.
 *
 * CMocka's assertions leave the function they fail in: they are made on the
 * main thread only.  Other threads write down what they saw.
 */
#ifndef UNIT_UNIT_H
#define UNIT_UNIT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
/* The library has a function of this name, and CMocka's fail_msg() uses it. */
#undef fail
#undef fail_msg
#define fail_msg(...) (print_error(__VA_ARGS__), print_error("\n"), _fail(__FILE__, __LINE__))

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "../../vmm.h"

/* Built with ThreadSanitizer everything takes ten times as long. */
#if defined(__SANITIZE_THREAD__)
#define SLOW 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define SLOW 1
#endif
#endif
#ifndef SLOW
#define SLOW 0
#endif

/* Open descriptors of this process. */
static inline int fds(void)
{
	DIR *d = opendir("/proc/self/fd");
	int n = -3;		/* ".", "..", and d's own */

	while (readdir(d))
		n++;
	closedir(d);
	return n;
}

/* A file in memory with n bytes of data, at its beginning. */
static inline int file_of(const void *data, size_t n)
{
	int fd = memfd_create("test", MFD_CLOEXEC);

	if (fd < 0 || write(fd, data, n) != (ssize_t)n || lseek(fd, 0, SEEK_SET) != 0)
		fail_msg("no file for a test");
	return fd;
}

static inline uint64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

static inline void nap_ms(unsigned int ms)
{
	const struct timespec ts = { ms / 1000, ms % 1000 * 1000000L };

	nanosleep(&ts, NULL);
}

/* Is fd readable within ms? */
static inline int readable(int fd, int ms)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };

	return poll(&p, 1, ms) == 1 && p.revents & POLLIN;
}

/* A test that hangs dies by SIGALRM, and counts as failed. */
static inline void time_limit(unsigned int s)
{
	alarm(s * 10);
}

#define assert_ok(call)							\
	do {								\
		int rc_ = (call);					\
									\
		if (rc_)						\
			fail_msg("%s: %s: %s", #call, vmm_strerror(rc_), err.message); \
	} while (0)

/* A failure with this code, whose message has this in it. */
#define assert_fails(call, want, text)					\
	do {								\
		int rc_ = (call);					\
									\
		if (rc_ != (want) || err.code != (want) || !strstr(err.message, (text))) \
			fail_msg("%s: %s, not %s with \"%s\": %s", #call, vmm_strerror(rc_), \
				 vmm_strerror(want), text, err.message); \
	} while (0)

#endif
