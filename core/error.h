/* SPDX-License-Identifier: MIT */
/*
 * error.h - how a failure is told to the caller, and a line to the log.
 */
#ifndef CORE_ERROR_H
#define CORE_ERROR_H

#include "../vmm.h"

/*
 * Fill *err (which may be NULL) with a code and one line that names the thing,
 * not the function.  Returns code, so that a caller can return it on.
 */
int fail(struct vmm_error *err, int code, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

/*
 * The same for a system call that failed with errno value os_errno: appends
 * strerror and sets err->os_errno.  The code is VMM_ESYS, or VMM_ENOMEM.
 */
int fail_sys(struct vmm_error *err, int os_errno, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

/* Where the lines of one machine go; fn may be NULL. */
struct log {
	void		(*fn)(void *arg, int level, const char *line);
	void		*arg;
};

void log_line(const struct log *log, int level, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

#endif
