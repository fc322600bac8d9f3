/* SPDX-License-Identifier: MIT */
/*
 * test_loop.c - core/loop.c: the I/O thread, held and released; what is struck
 * out while it is being handled; output that lingers.
 */
#include "unit.h"

#include <sys/eventfd.h>

#include "../../core/loop.h"

static struct loop l;
static struct vmm_error err;

/* A watched eventfd, and what its callback does. */
struct watch {
	struct io	io;
	int		calls;		/* atomic */
	int		stale;		/* called although struck out */
	int		keep;		/* leave it readable */
	struct watch	*strikes;	/* strike this one out */
};

static void on_ready(void *arg, uint32_t events)
{
	struct watch *w = arg;
	uint64_t n;

	(void)events;
	if (!w->io.watched)
		w->stale = 1;
	if (!w->keep && read(w->io.fd, &n, sizeof(n)) < 0)
		n = 0;
	if (w->strikes)
		loop_del(&l, &w->strikes->io);
	__atomic_add_fetch(&w->calls, 1, __ATOMIC_SEQ_CST);
}

static void watch_init(struct watch *w, int keep)
{
	memset(w, 0, sizeof(*w));
	w->io = (struct io){ .fn = on_ready, .arg = w,
			     .fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK) };
	w->keep = keep;
}

static void watch_fini(struct watch *w)
{
	loop_lock(&l);
	loop_del(&l, &w->io);
	loop_unlock(&l);
	close(w->io.fd);
}

static void ring(struct watch *w)
{
	const uint64_t one = 1;

	assert_int_equal(write(w->io.fd, &one, sizeof(one)), sizeof(one));
}

static int calls(struct watch *w)
{
	return __atomic_load_n(&w->calls, __ATOMIC_SEQ_CST);
}

static void await_calls(struct watch *w, int n)
{
	while (calls(w) < n)
		nap_ms(1);
}

static int add(struct watch *w)
{
	int r;

	loop_lock(&l);
	r = loop_add(&l, &w->io, EPOLLIN);
	loop_unlock(&l);
	return r;
}

static int threads(void)
{
	DIR *d = opendir("/proc/self/task");
	int n = -2;

	while (readdir(d))
		n++;
	closedir(d);
	return n;
}

/* A thread that has been joined may be listed a moment longer. */
static int threads_fall_to(int n)
{
	int i;

	for (i = 0; i < 10000 && threads() > n; i++)
		nap_ms(1);
	return threads();
}

static int setup(void **state)
{
	(void)state;
	return loop_init(&l, "a-name-that-is-long", &err);
}

static int teardown(void **state)
{
	(void)state;
	loop_stop(&l);
	loop_fini(&l);
	return 0;
}

static void test_call(void **state)
{
	struct watch a, b;

	(void)state;
	watch_init(&a, 0);
	watch_init(&b, 0);
	assert_int_equal(add(&a), 0);
	ring(&a);
	nap_ms(10);
	assert_int_equal(calls(&a), 0);		/* not before it is started */
	assert_ok(loop_start(&l, &err));
	await_calls(&a, 1);
	assert_int_equal(add(&b), 0);		/* while the thread waits */
	ring(&b);
	await_calls(&b, 1);
	ring(&a);
	await_calls(&a, 2);
	loop_stop(&l);
	ring(&a);
	nap_ms(10);
	assert_int_equal(calls(&a), 2);
	/* What was ready while it stood still is seen when it goes on. */
	assert_ok(loop_start(&l, &err));
	await_calls(&a, 3);
	watch_fini(&a);
	watch_fini(&b);
}

/* No thread, and no descriptors, before there is something to watch. */
static void test_lazy(void **state)
{
	struct watch a;
	int before = fds(), n = threads_fall_to(1);

	(void)state;
	assert_ok(loop_start(&l, &err));
	loop_hold(&l);
	loop_release(&l);
	assert_int_equal(fds(), before);
	assert_int_equal(threads(), n);
	watch_init(&a, 0);
	assert_int_equal(add(&a), 0);
	assert_int_equal(threads(), n + 1);
	ring(&a);
	await_calls(&a, 1);
	loop_stop(&l);
	assert_int_equal(threads_fall_to(n), n);
	watch_fini(&a);
}

static void test_hold(void **state)
{
	struct watch a;
	int i, n;

	(void)state;
	watch_init(&a, 1);
	assert_int_equal(add(&a), 0);
	assert_ok(loop_start(&l, &err));
	ring(&a);
	for (i = 0; i < 100; i++) {
		await_calls(&a, calls(&a) + 1);
		loop_hold(&l);
		n = calls(&a);
		if (i % 10 == 0)
			nap_ms(2);
		assert_int_equal(calls(&a), n);
		loop_hold(&l);			/* held it stays */
		assert_int_equal(calls(&a), n);
		loop_release(&l);
	}
	await_calls(&a, calls(&a) + 1);
	loop_hold(&l);
	loop_stop(&l);				/* a held one can be stopped */
	n = calls(&a);
	nap_ms(5);
	assert_int_equal(calls(&a), n);
	watch_fini(&a);
}

/* Struck out by a callback of the same batch. */
static void test_strike(void **state)
{
	struct watch a, b;
	int i;

	(void)state;
	for (i = 0; i < 200; i++) {
		watch_init(&a, 0);
		watch_init(&b, 0);
		a.strikes = &b;
		b.strikes = &a;
		assert_int_equal(add(&a), 0);
		assert_int_equal(add(&b), 0);
		ring(&a);
		ring(&b);
		assert_ok(loop_start(&l, &err));
		while (calls(&a) + calls(&b) == 0)
			sched_yield();
		loop_stop(&l);
		assert_int_equal(calls(&a) + calls(&b), 1);
		assert_int_equal(a.stale | b.stale, 0);
		watch_fini(&a);
		watch_fini(&b);
	}
}

/* Struck out by another thread, while the I/O thread may have fetched it. */
static void test_strike_race(void **state)
{
	struct watch a, b;
	uint64_t end = now_ms() + 300;

	(void)state;
	watch_init(&a, 1);
	watch_init(&b, 1);
	ring(&a);
	ring(&b);
	assert_int_equal(add(&a), 0);		/* keeps the thread awake */
	assert_ok(loop_start(&l, &err));
	while (now_ms() < end) {
		assert_int_equal(add(&b), 0);
		sched_yield();
		loop_lock(&l);
		loop_del(&l, &b.io);
		loop_unlock(&l);
	}
	loop_stop(&l);
	assert_true(calls(&b) > 0);
	assert_false(b.stale);
	watch_fini(&a);
	watch_fini(&b);
}

static void test_struck_can_go(void **state)
{
	struct watch *w;
	int i;

	(void)state;
	assert_ok(loop_start(&l, &err));
	for (i = 0; i < 300; i++) {
		w = malloc(sizeof(*w));		/* ASan watches it */
		watch_init(w, 1);
		ring(w);
		assert_int_equal(add(w), 0);
		if (i % 3)
			sched_yield();
		loop_lock(&l);
		loop_del(&l, &w->io);
		loop_del(&l, &w->io);		/* does nothing */
		loop_unlock(&l);
		close(w->io.fd);
		free(w);
	}
}

static void test_always_ready(void **state)
{
	struct watch a;
	char path[] = "/tmp/test_loop.XXXXXX";

	(void)state;
	watch_init(&a, 0);
	close(a.io.fd);
	a.io.fd = mkstemp(path);
	unlink(path);
	assert_int_equal(add(&a), -EPERM);
	assert_false(a.io.watched);
	close(a.io.fd);
	assert_int_equal(add(&a), -EBADF);
}

/* ---- Lingering output ------------------------------------------------------ */

/* n bytes for a pipe, four at a time. */
struct output {
	struct io	io;
	int		left;
};

static void on_room(void *arg, uint32_t events)
{
	struct output *o = arg;

	(void)events;
	if (write(o->io.fd, "data", 4) == 4)
		o->left -= 4;
	if (o->left <= 0) {
		loop_del(&l, &o->io);
		l.lingering--;
	}
}

static void output_init(struct output *o, int fd, int n)
{
	*o = (struct output){ .io = { .fn = on_room, .arg = o, .fd = fd }, .left = n };
	assert_int_equal(loop_add(&l, &o->io, EPOLLOUT), 0);
	l.lingering++;
}

static void test_linger(void **state)
{
	struct output o;
	int p[2];

	(void)state;
	assert_int_equal(pipe2(p, O_NONBLOCK | O_CLOEXEC), 0);
	output_init(&o, p[1], 4000);
	assert_ok(loop_start(&l, &err));
	loop_stop(&l);
	assert_int_equal(o.left, 0);
	assert_int_equal(l.lingering, 0);
	close(p[0]);
	close(p[1]);
}

/* Nobody reads: it waits for a second, and no longer, whatever else happens. */
static void stuck(int busy)
{
	struct output o;
	struct watch w;
	uint64_t begin;
	int p[2];

	assert_int_equal(pipe2(p, O_NONBLOCK | O_CLOEXEC), 0);
	while (write(p[1], "fill", 4) > 0)
		;
	watch_init(&w, 1);
	assert_int_equal(add(&w), 0);
	output_init(&o, p[1], 4);
	assert_ok(loop_start(&l, &err));
	if (busy) {
		ring(&w);
		await_calls(&w, 1);
	}
	begin = now_ms();
	loop_stop(&l);
	assert_in_range(now_ms() - begin, 900, 3000);
	assert_int_equal(o.left, 4);
	loop_del(&l, &o.io);
	l.lingering--;
	watch_fini(&w);
	close(p[0]);
	close(p[1]);
}

static void test_linger_stuck(void **state)
{
	(void)state;
	stuck(0);
}

static void test_linger_stuck_busy(void **state)
{
	(void)state;
	stuck(1);
}

/* ---- Hold, release, add and strike, all at once ------------------------------ */

static int storm_over;
static struct watch storm_w;

static void *storm(void *arg)
{
	int *errors = arg;

	while (!__atomic_load_n(&storm_over, __ATOMIC_SEQ_CST)) {
		loop_lock(&l);
		if (loop_add(&l, &storm_w.io, EPOLLIN) < 0)
			++*errors;
		loop_unlock(&l);
		sched_yield();
		loop_lock(&l);
		loop_del(&l, &storm_w.io);
		loop_unlock(&l);
	}
	return NULL;
}

static void test_storm(void **state)
{
	uint64_t end = now_ms() + 300;
	struct watch a;
	int errors = 0, n;
	pthread_t t;

	(void)state;
	watch_init(&a, 1);
	watch_init(&storm_w, 1);
	ring(&a);
	ring(&storm_w);
	assert_int_equal(add(&a), 0);
	assert_ok(loop_start(&l, &err));
	pthread_create(&t, NULL, storm, &errors);
	while (now_ms() < end) {
		loop_hold(&l);
		n = calls(&a) + calls(&storm_w);
		sched_yield();
		assert_int_equal(calls(&a) + calls(&storm_w), n);
		loop_release(&l);
		await_calls(&a, calls(&a) + 1);
	}
	__atomic_store_n(&storm_over, 1, __ATOMIC_SEQ_CST);
	pthread_join(t, NULL);
	assert_int_equal(errors, 0);
	assert_false(storm_w.stale);
	loop_stop(&l);
	watch_fini(&a);
	watch_fini(&storm_w);
}

int main(void)
{
#define T(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(test_call), T(test_lazy), T(test_hold), T(test_strike), T(test_strike_race),
		T(test_struck_can_go), T(test_always_ready), T(test_linger), T(test_linger_stuck),
		T(test_linger_stuck_busy), T(test_storm),
	};

	time_limit(20);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
