/* SPDX-License-Identifier: MIT */
/*
 * test_event.c - core/event.c: the queue of what a machine has to tell.
 */
#include "unit.h"

#include "../../core/event.h"
#include "../../core/machine.h"

static struct events q;
static struct vmm_error err;
static struct vmm_event ev;
static int going;

static int setup(void **state)
{
	(void)state;
	going = 1;
	return events_init(&q, &err);
}

static int teardown(void **state)
{
	(void)state;
	events_fini(&q);
	return 0;
}

static int more(const void *arg)
{
	return __atomic_load_n((const int *)arg, __ATOMIC_ACQUIRE);
}

static uint32_t take(int ms)
{
	memset(&ev, 0xff, sizeof(ev));
	events_take(&q, ms, more, &going, &ev);
	return ev.type;
}

static void test_order(void **state)
{
	uint64_t last = 0;
	unsigned int i, round;

	(void)state;
	/* More than once around the ring. */
	for (round = 0; round < 3 * EVENTS_MAX; round += 20) {
		for (i = 0; i < 20; i++)
			events_push(&q, VMM_EV_DOORBELL, i, round + i, NULL);
		for (i = 0; i < 20; i++) {
			assert_int_equal(take(0), VMM_EV_DOORBELL);
			assert_int_equal(ev.vcpu, i);
			assert_int_equal(ev.value, round + i);
			assert_string_equal(ev.detail, "");
			assert_true(ev.time_ns >= last);
			last = ev.time_ns;
		}
		assert_int_equal(take(0), VMM_EV_NONE);
	}
	assert_true(last > 0);
}

static void test_detail(void **state)
{
	char text[300];

	(void)state;
	memset(text, 'x', sizeof(text) - 1);
	text[sizeof(text) - 1] = 0;
	events_push(&q, VMM_EV_CRASH, 3, 4, text);
	assert_int_equal(take(0), VMM_EV_CRASH);
	assert_int_equal(strlen(ev.detail), sizeof(ev.detail) - 1);
	/* Nothing of what was there before shows through. */
	for (text[0] = 0; text[0] < 100; text[0]++)
		events_push(&q, VMM_EV_CRASH, 0, 0, "y"), take(0);
	assert_string_equal(ev.detail, "y");
	assert_int_equal(ev.detail[2], 0);
}

static void test_fd(void **state)
{
	(void)state;
	assert_true(fcntl(q.fd, F_GETFD) & FD_CLOEXEC);
	assert_false(readable(q.fd, 0));
	events_push(&q, VMM_EV_DOORBELL, 0, 1, NULL);
	assert_true(readable(q.fd, 0));
	events_push(&q, VMM_EV_DOORBELL, 0, 2, NULL);
	take(0);
	assert_true(readable(q.fd, 0));
	take(0);
	assert_false(readable(q.fd, 0));
	take(0);
	assert_false(readable(q.fd, 0));
	events_push(&q, VMM_EV_DOORBELL, 0, 3, NULL);
	assert_true(readable(q.fd, 0));
	events_clear(&q);
	assert_false(readable(q.fd, 0));
	assert_int_equal(take(0), VMM_EV_NONE);
	events_clear(&q);
	events_push(&q, VMM_EV_DOORBELL, 0, 4, NULL);
	assert_true(readable(q.fd, 0));
	assert_int_equal(take(0), VMM_EV_DOORBELL);
	assert_int_equal(ev.value, 4);
}

static void test_timeout(void **state)
{
	uint64_t begin = now_ms();

	(void)state;
	assert_int_equal(take(0), VMM_EV_NONE);
	assert_true(now_ms() - begin < 500);
	begin = now_ms();
	assert_int_equal(take(50), VMM_EV_NONE);
	assert_in_range(now_ms() - begin, 49, 1000);
	/* Nothing more is to come: no wait. */
	going = 0;
	begin = now_ms();
	assert_int_equal(take(-1), VMM_EV_NONE);
	assert_int_equal(take(10000), VMM_EV_NONE);
	assert_true(now_ms() - begin < 1000);
	/* But what is there is given. */
	events_push(&q, VMM_EV_SHUTDOWN, 0, 0, NULL);
	assert_int_equal(take(-1), VMM_EV_SHUTDOWN);
	/* A timeout of weeks does not overflow. */
	going = 1;
	events_push(&q, VMM_EV_SHUTDOWN, 0, 0, NULL);
	assert_int_equal(take(INT32_MAX), VMM_EV_SHUTDOWN);
}

static void *push_later(void *arg)
{
	nap_ms(20);
	events_push(&q, VMM_EV_DOORBELL, 0, 5, NULL);
	return arg;
}

static void *poke_later(void *arg)
{
	nap_ms(20);
	__atomic_store_n(&going, 0, __ATOMIC_RELEASE);
	events_poke(&q);
	return arg;
}

static void test_wake(void **state)
{
	pthread_t t;

	(void)state;
	pthread_create(&t, NULL, push_later, NULL);
	assert_int_equal(take(-1), VMM_EV_DOORBELL);
	pthread_join(t, NULL);
	pthread_create(&t, NULL, push_later, NULL);
	assert_int_equal(take(10000), VMM_EV_DOORBELL);
	pthread_join(t, NULL);
	pthread_create(&t, NULL, poke_later, NULL);
	assert_int_equal(take(-1), VMM_EV_NONE);
	pthread_join(t, NULL);
}

/*
 * Each vCPU looks whether the queue is crowded, then may ring once.  So when
 * it is not, there is room for one ring of every vCPU, and for what ends the
 * run.
 */
static void test_crowd(void **state)
{
	unsigned int i, n = 0;

	(void)state;
	while (!events_crowded(&q))
		events_push(&q, VMM_EV_DOORBELL, 0, n++, NULL);
	assert_in_range(n, 16, 100000);
	take(0);
	assert_false(events_crowded(&q));
	for (i = 0; i < VCPUS_MAX; i++)
		events_push(&q, VMM_EV_DOORBELL, i, n++, NULL);
	assert_true(events_crowded(&q));
	events_push(&q, VMM_EV_SHUTDOWN, 0, 77, "the end");
	for (i = 1; i < n; i++) {
		assert_int_equal(take(0), VMM_EV_DOORBELL);
		assert_int_equal(ev.value, i);
	}
	assert_int_equal(take(0), VMM_EV_SHUTDOWN);
	assert_int_equal(ev.value, 77);
	assert_false(events_crowded(&q));
}

/* Past all bounds (which the vCPUs keep) the queue still stands. */
static void test_overflow(void **state)
{
	unsigned int i;

	(void)state;
	for (i = 0; i < 10 * EVENTS_MAX; i++)
		events_push(&q, VMM_EV_DOORBELL, 0, i, NULL);
	for (i = 0; i < EVENTS_MAX; i++) {
		assert_int_equal(take(0), VMM_EV_DOORBELL);
		assert_int_equal(ev.value, i);
	}
	assert_int_equal(take(0), VMM_EV_NONE);
	assert_false(readable(q.fd, 0));
}

#define PUSHERS	3
#define EACH	(SLOW ? 500 : 3000)

static void *pusher(void *arg)
{
	uint64_t who = (uintptr_t)arg;
	unsigned int i;

	for (i = 0; i < EACH; i++) {
		while (events_crowded(&q))
			sched_yield();
		events_push(&q, VMM_EV_DOORBELL, (uint32_t)who, i, NULL);
	}
	return NULL;
}

static void test_threads(void **state)
{
	uint64_t next[PUSHERS] = { 0 };
	pthread_t t[PUSHERS];
	uintptr_t i;
	int n;

	(void)state;
	for (i = 0; i < PUSHERS; i++)
		pthread_create(&t[i], NULL, pusher, (void *)i);
	for (n = 0; n < PUSHERS * EACH; n++) {
		assert_int_equal(take(10000), VMM_EV_DOORBELL);
		assert_int_equal(ev.value, next[ev.vcpu]++);
	}
	for (i = 0; i < PUSHERS; i++)
		pthread_join(t[i], NULL);
	assert_int_equal(take(0), VMM_EV_NONE);
	assert_false(readable(q.fd, 0));
}

int main(void)
{
#define T(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(test_order), T(test_detail), T(test_fd), T(test_timeout), T(test_wake),
		T(test_crowd), T(test_overflow), T(test_threads),
	};

	time_limit(15);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
