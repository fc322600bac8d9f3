/* SPDX-License-Identifier: MIT */
/*
 * error.c - fail(), fail_sys() and log_line(): see error.h.
 *
 * There is no last error kept anywhere: a thread can only see its own.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "error.h"

/* One line, whatever names of files and strings of guests are in it. */
static void one_line(char *s)
{
	for (; *s; s++)
		if ((unsigned char)*s < ' ' || *s == 127)
			*s = '?';
}

static void __attribute__((format(printf, 4, 0)))
error_set(struct vmm_error *err, int code, int os_errno, const char *fmt, va_list ap)
{
	size_t n;

	if (!err)
		return;
	memset(err, 0, sizeof(*err));
	err->code = code;
	err->os_errno = os_errno;
	vsnprintf(err->message, sizeof(err->message), fmt, ap);
	one_line(err->message);
	if (!os_errno)
		return;
	n = strlen(err->message);
	/* The GNU strerror_r: thread-safe, and always gives a string. */
	snprintf(err->message + n, sizeof(err->message) - n, ": %s",
		 strerror_r(os_errno, (char[64]){ 0 }, 64));
}

int fail(struct vmm_error *err, int code, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	error_set(err, code, 0, fmt, ap);
	va_end(ap);
	return code;
}

int fail_sys(struct vmm_error *err, int os_errno, const char *fmt, ...)
{
	int code = os_errno == ENOMEM ? VMM_ENOMEM : VMM_ESYS;
	va_list ap;

	va_start(ap, fmt);
	error_set(err, code, os_errno, fmt, ap);
	va_end(ap);
	return code;
}

void log_line(const struct log *log, int level, const char *fmt, ...)
{
	char line[256];
	va_list ap;

	if (!log->fn)
		return;
	va_start(ap, fmt);
	vsnprintf(line, sizeof(line), fmt, ap);
	va_end(ap);
	one_line(line);
	log->fn(log->arg, level, line);
}
