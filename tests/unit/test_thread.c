/* SPDX-License-Identifier: MIT */
/*
 * test_thread.c - core/thread.c: signals are blocked; below each stack is a guard.
 */
#include "unit.h"

#include <signal.h>

#include "../../core/thread.h"

#define THREADS	8

struct seen {
	int	signals;		/* that are not blocked */
	int	guarded;
};

static pthread_barrier_t all;

/* Can a byte be read?  The kernel tells. */
static int can_read(const void *p)
{
	int fd[2], r;

	assert_int_equal(pipe(fd), 0);
	r = write(fd[1], p, 1) == 1;
	close(fd[0]);
	close(fd[1]);
	return r;
}

static void *look(void *arg)
{
	struct seen *s = arg;
	pthread_attr_t attr;
	sigset_t mask;
	size_t size;
	void *stack;
	int i;

	pthread_sigmask(SIG_SETMASK, NULL, &mask);
	for (i = 1; i < SIGRTMAX; i++)
		s->signals += sigismember(&mask, i) == 0 && i != SIGKILL && i != SIGSTOP &&
			      (i < 32 || i >= SIGRTMIN);
	/* All of them live, and lie side by side; and who starts one may be putting up its
	   guard yet. */
	pthread_barrier_wait(&all);
	assert_int_equal(pthread_getattr_np(pthread_self(), &attr), 0);
	assert_int_equal(pthread_attr_getstack(&attr, &stack, &size), 0);
	pthread_attr_destroy(&attr);
	s->guarded = !can_read(stack) || !can_read((char *)stack - getpagesize());
	return NULL;
}

static void threads_begin_well(void **state)
{
	struct seen seen[THREADS] = { { 0, 0 } };
	pthread_t t[THREADS];
	int i;

	(void)state;
	pthread_barrier_init(&all, NULL, THREADS + 1);
	for (i = 0; i < THREADS; i++)
		assert_int_equal(thread_start(&t[i], look, &seen[i]), 0);
	pthread_barrier_wait(&all);
	for (i = 0; i < THREADS; i++) {
		pthread_join(t[i], NULL);
		assert_int_equal(seen[i].signals, 0);
		assert_true(seen[i].guarded);
	}
	pthread_barrier_destroy(&all);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(threads_begin_well),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
