/* SPDX-License-Identifier: MIT */
/*
 * kvmtest.h - what the tests on real KVM stand on.
 *
 * A test is a table of cases.  Each case runs in a process of its own, which
 * is killed if it takes too long: one that crashes, hangs or leaks harms no
 * other.  The program prints a line for each,
 *
 *	ok NAME
 *	not ok NAME - why
 *	skip NAME - why
 *
 * beside lines that begin with "#", and exits with 0, 1 if one failed, or 77
 * if all were skipped.  Options, all of them optional:
 *
 *	-m MODE		interrupt controller: emul, hwaccel, auto, default
 *	-t FACTOR	multiplies every time limit
 *	-f		full sizes: what takes minutes
 *	-v		shows the library's log
 *	-l		lists the cases
 *	CASE...		runs only those whose name contains one of these
 *
 * Guests are found in guest/ beside the program's directory.
 */
#ifndef KVMTEST_H
#define KVMTEST_H

#include <stddef.h>
#include <stdint.h>

#include "../../vmm.h"
#include "../guest/lib/shared.h"

struct test_case {
	const char	*name;
	void		(*fn)(void);
	unsigned int	seconds;	/* limit; 0: 30 */
	uint64_t	arg;		/* test_arg in fn */
};

/* Run the cases that the command line names; the program's exit status. */
int test_main(int argc, char **argv, const struct test_case *cases, size_t n);

/* The same with two arguments, named in usage, before the cases. */
int test_main_args(int argc, char **argv, const struct test_case *cases, size_t n,
		   const char *usage, const char **first, const char **second);

/* The same in two steps, for a test with arguments or cases of its own. */
struct test_options {
	uint32_t	irqchip;	/* VMM_IRQCHIP_* */
	unsigned int	factor;
	int		verbose, list, full;
};
extern struct test_options test_options;
extern uint64_t test_arg;
void test_init(const char *program);
void test_run(const char *name, void (*fn)(void), uint64_t arg, unsigned int seconds);
int test_status(void);

/* ---- In a case --------------------------------------------------------------- */

/* End this case, from any of its threads. */
void test_fail(const char *fmt, ...) __attribute__((format(printf, 1, 2), noreturn));
void test_skip(const char *fmt, ...) __attribute__((format(printf, 1, 2), noreturn));
void test_long(void);			/* only with -f */
void test_note(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

#define CHECK(cond)							\
	do {								\
		if (!(cond))						\
			test_fail("%s:%d: %s", __FILE__, __LINE__, #cond); \
	} while (0)

#define CHECK_EQ(x, y)							\
	do {								\
		long long x_ = (long long)(x), y_ = (long long)(y);	\
		if (x_ != y_)						\
			test_fail("%s:%d: %s is %lld, not %lld", __FILE__, __LINE__, #x, \
				  x_, y_);				\
	} while (0)

/* Run a part of this case in a process of its own; the case fails, or is skipped,
   if that does. */
void test_process(void (*fn)(void));

/* A library call that takes &test_err and must succeed. */
extern __thread struct vmm_error test_err;
#define CALL(call)							\
	do {								\
		int r_ = (call);					\
		if (r_)							\
			test_fail("%s:%d: %s: %s", __FILE__, __LINE__,	\
				  vmm_strerror(r_), test_err.message);	\
	} while (0)

/* One that must fail, with this code and a message that contains text. */
#define CALL_FAILS(code_, text, call)					\
	test_expect_error(__FILE__, __LINE__, (call), code_, text, &test_err)
void test_expect_error(const char *file, int line, int rc, int code, const char *text,
		       const struct vmm_error *err);

/* ---- Machines ----------------------------------------------------------------- */

/* What this host is; skips the case if it has no KVM. */
const struct vmm_host *test_host(void);
int test_mode_sound(uint32_t irqchip);
const char *test_mode_name(uint32_t irqchip);
uint32_t test_mode_parse(const char *name);	/* or exits with usage */

/* The path of a guest; of the last one only. */
const char *guest_path(const char *name);

/* A NEW machine with one of our guests in it, and a serial port or not. */
struct vmm *guest_new(const char *name, uint32_t vcpus, int serial);
struct vmm *guest_new_io(const char *name, uint32_t vcpus, int in_fd, int out_fd);
void guest_config(struct vmm_config *cfg, const char *name, uint32_t vcpus);

void guest_arg(struct vmm *vm, unsigned int i, uint64_t value);
uint64_t guest_counter(struct vmm *vm, unsigned int i);

/* The next event, which must come in time; a guest's report fails the case. */
void next_event(struct vmm *vm, struct vmm_event *ev, int seconds);
void expect_event(struct vmm *vm, uint32_t type, uint64_t value, int seconds);

/* A machine that stands still is kept for whoever wants to know why: the file it
   has been written to, or what went wrong. */
const char *guest_keep(struct vmm *vm);
const char *event_name(uint32_t type);

/* ---- The process ----------------------------------------------------------------- */

uint64_t now_ms(void);
void sleep_ms(unsigned int ms);
unsigned int count_fds(void);
unsigned int count_threads(void);
/* The same, when those that have been joined, and are listed a moment longer, are
   gone: n, if no more are left. */
unsigned int threads_left(unsigned int n);
uint64_t rss_kib(void);

/* A thread that collects what comes out of a descriptor. */
struct console {
	int		in, out;	/* for vmm_add_serial() */
	int		to, from;	/* the other ends */
	char		*text;		/* all that came, with a zero behind it */
	size_t		len, cap;
	uint64_t	first_ms;	/* now_ms() when the first byte came */
	struct reader_thread *reader;
};

void console_open(struct console *c);
/* After the machine is freed: take what is left; then close all of it. */
void console_finish(struct console *c);
void console_close(struct console *c);
void console_send(struct console *c, const void *data, size_t n);
/* Wait until text appears at or behind *at (NULL: the beginning); *at moves
   behind it.  0, or -1 after ms. */
int console_find(struct console *c, const char *text, size_t *at, int ms);
/* The same; the case fails if it does not come. */
void console_expect(struct console *c, const char *text, size_t *at, int seconds);
size_t console_len(struct console *c);
const char *console_tail(struct console *c);	/* the last 300 bytes */

#endif
