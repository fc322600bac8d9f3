/* SPDX-License-Identifier: MIT */
/*
 * test_life.c - the life of machines on real KVM: start, pause, stop, reset,
 * free, wait, in every order, many at once, from many threads.
 *
 * The guests count in memory that is read from here: a counter that moves is a
 * vCPU that runs, and one that stands still is one that does not.
 */
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kvmtest.h"

#define MACHINES	8

static int has_moved(struct vmm *vm, unsigned int hart, unsigned int ms)
{
	uint64_t was = guest_counter(vm, hart), until = now_ms() + ms * test_options.factor;

	do {
		if (guest_counter(vm, hart) != was)
			return 1;
		sleep_ms(1);
	} while (now_ms() < until);
	return 0;
}

static void start(struct vmm *vm)
{
	CALL(vmm_start(vm, &test_err));
}

static struct vmm *spinning(uint32_t vcpus)
{
	struct vmm *vm = guest_new("spin", vcpus, 1);

	start(vm);
	expect_event(vm, VMM_EV_DOORBELL, 1, 20);
	return vm;
}

/* ---- One machine ------------------------------------------------------------ */

static void exit_code(void)
{
	static const uint64_t codes[] = { 0, 1, 42, 255, 0x7fffffff };
	unsigned int i, how;

	for (how = 0; how < 3; how++) {
		for (i = 0; i < 5; i++) {
			struct vmm *vm = guest_new("hello", 1, 1);

			guest_arg(vm, 0, codes[i]);
			guest_arg(vm, 1, how);
			start(vm);
			expect_event(vm, VMM_EV_SHUTDOWN, how == 2 ? 0 : codes[i], 20);
			CHECK_EQ(vmm_state(vm), VMM_STOPPED);
			vmm_free(vm);
		}
	}
}

/* vmm_start() does not wait for its guest, however busy that is. */
static void start_returns(void)
{
	struct vmm *vm = guest_new("spin", 2, 0);
	uint64_t begin = now_ms();

	start(vm);
	CHECK(now_ms() - begin < 2000 * test_options.factor);
	CHECK_EQ(vmm_state(vm), VMM_RUNNING);
	expect_event(vm, VMM_EV_DOORBELL, 1, 20);
	CHECK(has_moved(vm, 0, 5000) && has_moved(vm, 1, 5000));
	vmm_free(vm);
}

static void never_started(void)
{
	struct vmm *vm = guest_new("spin", 2, 1);
	struct vmm_event ev;

	CHECK_EQ(vmm_state(vm), VMM_NEW);
	CALL(vmm_wait(vm, -1, &ev, &test_err));
	CHECK_EQ(ev.type, VMM_EV_NONE);
	CALL(vmm_reset(vm, &test_err));
	CALL(vmm_stop(vm, &test_err));
	CHECK_EQ(vmm_state(vm), VMM_STOPPED);
	CALL(vmm_reset(vm, &test_err));
	CHECK_EQ(vmm_state(vm), VMM_NEW);
	vmm_free(vm);
}

static void pause_and_resume(void)
{
	uint32_t vcpus = (uint32_t)test_arg, v;
	struct vmm *vm = spinning(vcpus);
	uint64_t held[GUEST_HARTS], worst = 0, t, begin = now_ms();
	unsigned int i, rounds = 1000 / vcpus;

	for (i = 0; i < rounds; i++) {
		t = now_ms();
		CALL(vmm_pause(vm, &test_err));
		t = now_ms() - t;
		worst = t > worst ? t : worst;
		CHECK_EQ(vmm_state(vm), VMM_PAUSED);
		for (v = 0; v < vcpus; v++)
			held[v] = guest_counter(vm, v);
		if (i % 100 == 0)
			sleep_ms(50);
		for (v = 0; v < vcpus; v++)
			CHECK_EQ(guest_counter(vm, v), held[v]);
		start(vm);
		if (i % 100 == 0)
			for (v = 0; v < vcpus; v++)
				CHECK(has_moved(vm, v, 10000));
	}
	test_note("%u vCPUs: %u rounds in %llu ms, longest pause call %llu ms", vcpus, rounds,
		  (unsigned long long)(now_ms() - begin), (unsigned long long)worst);
	vmm_free(vm);
}

static void pause_idle(void)
{
	struct vmm *vm = guest_new("idle", 4, 1);
	unsigned int i;

	start(vm);
	expect_event(vm, VMM_EV_DOORBELL, 1, 20);
	for (i = 0; i < 100; i++) {
		CALL(vmm_pause(vm, &test_err));
		start(vm);
	}
	vmm_free(vm);
}

/* An endless loop with interrupts off is ended like any other. */
static void kill_loop(void)
{
	uint64_t t, worst_stop = 0, worst_free = 0;
	struct vmm *vm;
	unsigned int i;

	for (i = 0; i < 10; i++) {
		vm = spinning(2);
		t = now_ms();
		if (i & 1) {
			CALL(vmm_stop(vm, &test_err));
			t = now_ms() - t;
			worst_stop = t > worst_stop ? t : worst_stop;
			CHECK_EQ(vmm_state(vm), VMM_STOPPED);
			CHECK(!has_moved(vm, 0, 20));
			vmm_free(vm);
		} else {
			vmm_free(vm);
			t = now_ms() - t;
			worst_free = t > worst_free ? t : worst_free;
		}
	}
	test_note("longest vmm_stop %llu ms, vmm_free of a running machine %llu ms",
		  (unsigned long long)worst_stop, (unsigned long long)worst_free);
	CHECK(worst_stop < 1000 * test_options.factor && worst_free < 1000 * test_options.factor);
}

static void kill_at_once(void)
{
	unsigned int i;

	for (i = 0; i < 12; i++) {
		struct vmm *vm = guest_new("spin", 2, 1);

		start(vm);
		if (i % 3 == 1)
			CALL(vmm_pause(vm, &test_err));
		if (i % 3 == 2)
			CALL(vmm_stop(vm, &test_err));
		vmm_free(vm);
	}
}

static void reboot(void)
{
	struct vmm *vm = guest_new("reboot", (uint32_t)test_arg, 1);
	struct vmm_event ev;
	unsigned int i;

	for (i = 0; i < 12; i++) {
		guest_arg(vm, 0, 1 + i % 2);
		start(vm);
		expect_event(vm, VMM_EV_REBOOT, 0, 20);
		CHECK_EQ(vmm_state(vm), VMM_STOPPED);
		CALL(vmm_wait(vm, 0, &ev, &test_err));
		CHECK_EQ(ev.type, VMM_EV_NONE);
		CALL(vmm_reset(vm, &test_err));
		CHECK_EQ(vmm_state(vm), VMM_NEW);
	}
	vmm_free(vm);
}

/* Taken back to NEW from every state that allows it, it runs again. */
static void reset_again(void)
{
	struct vmm *vm = guest_new("spin", 2, 1);
	unsigned int i;

	for (i = 0; i < 12; i++) {
		start(vm);
		expect_event(vm, VMM_EV_DOORBELL, 1, 20);
		CHECK(has_moved(vm, 1, 5000));
		if (i % 2)
			CALL(vmm_pause(vm, &test_err));
		else
			CALL(vmm_stop(vm, &test_err));
		CALL(vmm_reset(vm, &test_err));
		CHECK_EQ(guest_counter(vm, 0), 0);
		CHECK_EQ(guest_counter(vm, 1), 0);
	}
	vmm_free(vm);
}

static void wrong_states(void)
{
	struct vmm *vm = guest_new("spin", 1, 0);
	struct vmm_event ev;

	CALL_FAILS(VMM_ESTATE, "NEW", vmm_pause(vm, &test_err));
	start(vm);
	expect_event(vm, VMM_EV_DOORBELL, 1, 20);
	CALL_FAILS(VMM_ESTATE, "RUNNING", vmm_start(vm, &test_err));
	CALL_FAILS(VMM_ESTATE, "RUNNING", vmm_reset(vm, &test_err));
	CALL_FAILS(VMM_ESTATE, "RUNNING", vmm_add_serial(vm, -1, -1, &test_err));
	CHECK(has_moved(vm, 0, 5000));
	CALL(vmm_pause(vm, &test_err));
	CALL_FAILS(VMM_ESTATE, "PAUSED", vmm_pause(vm, &test_err));
	CALL(vmm_wait(vm, -1, &ev, &test_err));
	CHECK_EQ(ev.type, VMM_EV_NONE);
	start(vm);
	CALL(vmm_stop(vm, &test_err));
	CALL(vmm_stop(vm, &test_err));
	CALL_FAILS(VMM_ESTATE, "STOPPED", vmm_start(vm, &test_err));
	CALL_FAILS(VMM_ESTATE, "STOPPED", vmm_pause(vm, &test_err));
	vmm_free(vm);
}

static void wait_times_out(void)
{
	struct vmm *vm = spinning(1);
	struct vmm_event ev;
	uint64_t t = now_ms();
	struct pollfd p = { .fd = vmm_fd(vm), .events = POLLIN };

	CALL(vmm_wait(vm, 0, &ev, &test_err));
	CHECK_EQ(ev.type, VMM_EV_NONE);
	CHECK(now_ms() - t < 500 * test_options.factor);
	t = now_ms();
	CALL(vmm_wait(vm, 300, &ev, &test_err));
	CHECK_EQ(ev.type, VMM_EV_NONE);
	t = now_ms() - t;
	CHECK(t >= 295 && t < 300 + 1000 * test_options.factor);
	CHECK_EQ(poll(&p, 1, 0), 0);
	vmm_free(vm);
}

/* The descriptor is readable while, and only while, an event is queued. */
static void poll_events(void)
{
	struct vmm *vm = guest_new("hello", 1, 1);
	struct pollfd p = { .fd = vmm_fd(vm), .events = POLLIN };

	CHECK_EQ(poll(&p, 1, 0), 0);
	start(vm);
	CHECK_EQ(poll(&p, 1, 20000), 1);
	expect_event(vm, VMM_EV_SHUTDOWN, 0, 1);
	CHECK_EQ(poll(&p, 1, 0), 0);
	vmm_free(vm);
}

/* ---- Many machines -------------------------------------------------------------- */

static void many(void)
{
	struct vmm *vm[MACHINES];
	unsigned int i, k;

	for (i = 0; i < MACHINES; i++)
		vm[i] = spinning(1 + i % 2);
	for (i = 0; i < MACHINES; i++)
		CHECK(has_moved(vm[i], 0, 10000));
	/* Hold one after the other still: the others go on. */
	for (i = 0; i < MACHINES; i++) {
		CALL(vmm_pause(vm[i], &test_err));
		for (k = 0; k < MACHINES; k++)
			CHECK(k == i ? !has_moved(vm[k], 0, 20) : has_moved(vm[k], 0, 10000));
		start(vm[i]);
	}
	/* Free them in an order that is not that of their making. */
	for (i = 0; i < MACHINES; i++) {
		vmm_free(vm[(i * 3) % MACHINES]);
		vm[(i * 3) % MACHINES] = NULL;
		for (k = 0; k < MACHINES; k++)
			if (vm[k])
				CHECK(has_moved(vm[k], 0, 10000));
	}
}

static void crash_is_its_own(void)
{
	struct vmm *good = spinning(2), *bad;
	struct vmm_event ev;
	unsigned int i;

	for (i = 0; i < 5; i++) {
		bad = guest_new("forbidden", 1, 1);
		guest_arg(bad, 0, 4);	/* an atomic on a device */
		start(bad);
		next_event(bad, &ev, 20);
		CHECK_EQ(ev.type, VMM_EV_CRASH);
		CHECK(ev.detail[0]);
		CHECK_EQ(vmm_state(bad), VMM_STOPPED);
		CHECK(has_moved(good, 0, 10000) && has_moved(good, 1, 10000));
		vmm_free(bad);
	}
	CHECK(has_moved(good, 0, 10000) && has_moved(good, 1, 10000));
	vmm_free(good);
}

/* ---- Many threads ------------------------------------------------------------------ */

struct storm {
	struct vmm	*vm;
	int		quit;
	unsigned int	kind, done;
};

static void *storm_main(void *arg)
{
	struct storm *s = arg;
	struct vmm_stats st = VMM_STATS_INIT;
	struct vmm_event ev;
	struct vmm_error err;
	uint64_t word;
	int rc = 0;

	while (!__atomic_load_n(&s->quit, __ATOMIC_RELAXED)) {
		switch (s->kind % 6) {
		case 0:
			rc = vmm_pause(s->vm, &err);
			break;
		case 1:
			rc = vmm_start(s->vm, &err);
			break;
		case 2:
			rc = vmm_wait(s->vm, 3, &ev, &err);
			break;
		case 3:
			rc = vmm_stat(s->vm, &st, &err);
			break;
		case 4:
			rc = vmm_read(s->vm, GUEST_SHARED, &word, 8, &err);
			break;
		default:
			rc = vmm_state(s->vm) <= VMM_PAUSED ? 0 : VMM_EBROKEN;
			sleep_ms(1);
			break;
		}
		if (rc && rc != VMM_ESTATE)
			test_fail("call %u: %s", s->kind % 6, err.message);
		s->done++;
	}
	return NULL;
}

static void calls_from_many_threads(void)
{
	struct vmm *vm = spinning(2);
	struct storm s[12];
	pthread_t t[12];
	unsigned int i;

	for (i = 0; i < 12; i++) {
		s[i] = (struct storm){ .vm = vm, .kind = i };
		pthread_create(&t[i], NULL, storm_main, &s[i]);
	}
	sleep_ms(4000);
	for (i = 0; i < 12; i++)
		__atomic_store_n(&s[i].quit, 1, __ATOMIC_RELAXED);
	for (i = 0; i < 12; i++) {
		pthread_join(t[i], NULL);
		CHECK(s[i].done > 10);
	}
	if (vmm_state(vm) == VMM_PAUSED)
		start(vm);
	CHECK(has_moved(vm, 0, 10000) && has_moved(vm, 1, 10000));
	test_note("12 threads: %u pauses, %u starts, %u waits, %u stats, %u reads", s[0].done,
		  s[1].done, s[2].done, s[3].done, s[4].done);
	vmm_free(vm);
}

static void *wait_main(void *arg)
{
	struct vmm_event *ev = malloc(sizeof(*ev));

	CALL(vmm_wait(arg, -1, ev, &test_err));
	return ev;
}

/* A thread that waits for ever is told when the machine is stopped. */
static void stop_ends_waits(void)
{
	struct vmm *vm = spinning(1);
	pthread_t t[3];
	void *ev;
	int i;

	for (i = 0; i < 3; i++)
		pthread_create(&t[i], NULL, wait_main, vm);
	sleep_ms(100);
	CALL(vmm_stop(vm, &test_err));
	for (i = 0; i < 3; i++) {
		pthread_join(t[i], &ev);
		CHECK_EQ(((struct vmm_event *)ev)->type, VMM_EV_NONE);
		free(ev);
	}
	vmm_free(vm);
}

static void *machine_main(void *arg)
{
	unsigned int i;

	for (i = 0; i < 5; i++) {
		struct vmm *vm = guest_new("hello", 1, 1);

		guest_arg(vm, 0, (uintptr_t)arg + i);
		start(vm);
		expect_event(vm, VMM_EV_SHUTDOWN, (uintptr_t)arg + i, 30);
		vmm_free(vm);
	}
	return NULL;
}

static void machine_per_thread(void)
{
	pthread_t t[MACHINES];
	uintptr_t i;

	for (i = 0; i < MACHINES; i++)
		pthread_create(&t[i], NULL, machine_main, (void *)(100 * i));
	for (i = 0; i < MACHINES; i++)
		pthread_join(t[i], NULL);
}

/* Made here, started there, waited for elsewhere, freed by another. */
static void *start_main(void *arg)
{
	start(arg);
	return NULL;
}

static void *free_main(void *arg)
{
	vmm_free(arg);
	return NULL;
}

static void handed_around(void)
{
	pthread_t t;
	void *ev;
	int i;

	for (i = 0; i < 10; i++) {
		struct vmm *vm = guest_new("hello", 1, 1);

		pthread_create(&t, NULL, start_main, vm);
		pthread_join(t, NULL);
		pthread_create(&t, NULL, wait_main, vm);
		pthread_join(t, &ev);
		CHECK_EQ(((struct vmm_event *)ev)->type, VMM_EV_SHUTDOWN);
		free(ev);
		pthread_create(&t, NULL, free_main, vm);
		pthread_join(t, NULL);
	}
}

/* ---- The process ---------------------------------------------------------------------- */

static void nothing_is_left(void)
{
	unsigned int fds = 0, threads = 0, i;
	uint64_t rss = 0;

	for (i = 0; i < 30; i++) {
		struct vmm *vm = i % 2 ? spinning(2) : guest_new("hello", 1, 1);
		struct vmm_stats st = VMM_STATS_INIT;

		if (i % 4 == 2)
			CALL(vmm_start(vm, &test_err));
		CALL(vmm_stat(vm, &st, &test_err));
		vmm_free(vm);
		if (i == 10) {		/* the allocator has settled */
			fds = count_fds();
			threads = count_threads();
			rss = rss_kib();
		}
		if (i > 10) {
			CHECK_EQ(count_fds(), fds);
			CHECK_EQ(threads_left(threads), threads);
		}
	}
	test_note("RSS after 10 machines %llu KiB, after 30 %llu KiB", (unsigned long long)rss,
		  (unsigned long long)rss_kib());
	CHECK(rss_kib() <= rss + 512);
}

/* A child of the process that made it can use no machine, and harms none. */
static void fork_in_the_host(void)
{
	struct vmm *vm = spinning(2);
	struct vmm_event ev;
	int status;
	pid_t pid;

	pid = fork();
	if (pid == 0) {
		if (vmm_pause(vm, &test_err) != VMM_ESTATE ||
		    !strstr(test_err.message, "fork") ||
		    vmm_wait(vm, 0, &ev, &test_err) != VMM_ESTATE)
			_exit(1);
		vmm_free(vm);
		_exit(0);
	}
	CHECK(waitpid(pid, &status, 0) == pid);
	CHECK_EQ(status, 0);
	CHECK(has_moved(vm, 0, 10000) && has_moved(vm, 1, 10000));
	CALL(vmm_pause(vm, &test_err));
	start(vm);
	CHECK(has_moved(vm, 0, 10000) && has_moved(vm, 1, 10000));
	vmm_free(vm);
}

static pthread_t ticked;
static unsigned int foreign_ticks, own_ticks;

static void on_tick(int sig)
{
	(void)sig;
	if (pthread_equal(pthread_self(), ticked))
		own_ticks++;
	else
		foreign_ticks++;
}

/* A host program with a profiling timer: its signals are its own. */
static void signals_in_the_host(void)
{
	const struct itimerval often = { { 0, 2000 }, { 0, 2000 } }, never = { { 0, 0 }, { 0, 0 } };
	struct vmm_stats a = VMM_STATS_INIT, b = VMM_STATS_INIT;
	struct sigaction sa = { .sa_handler = on_tick, .sa_flags = SA_RESTART };
	struct vmm *vm = spinning(2);
	unsigned int i;

	ticked = pthread_self();
	CALL(vmm_stat(vm, &a, &test_err));
	CHECK(sigaction(SIGALRM, &sa, NULL) == 0 && setitimer(ITIMER_REAL, &often, NULL) == 0);
	for (i = 0; i < 100; i++) {
		sleep_ms(10);
		if (i % 10 == 0) {
			CALL(vmm_pause(vm, &test_err));
			start(vm);
		}
	}
	setitimer(ITIMER_REAL, &never, NULL);
	CALL(vmm_stat(vm, &b, &test_err));
	test_note("%u ticks; %llu kicks", own_ticks,
		  (unsigned long long)(b.exits[VMM_EXIT_SIGNAL] - a.exits[VMM_EXIT_SIGNAL]));
	CHECK(own_ticks > 10);
	CHECK_EQ(foreign_ticks, 0);
	CHECK(b.exits[VMM_EXIT_SIGNAL] - a.exits[VMM_EXIT_SIGNAL] <= 40);
	CHECK(has_moved(vm, 0, 10000) && has_moved(vm, 1, 10000));
	vmm_free(vm);
}

static const struct test_case cases[] = {
	{ "exit-code", exit_code, 60, 0 },
	{ "start-returns", start_returns, 0, 0 },
	{ "never-started", never_started, 0, 0 },
	{ "pause-resume-1000", pause_and_resume, 120, 1 },
	{ "pause-resume-4-vcpus", pause_and_resume, 120, 4 },
	{ "pause-idle", pause_idle, 60, 0 },
	{ "kill-loop", kill_loop, 60, 0 },
	{ "kill-at-once", kill_at_once, 60, 0 },
	{ "reboot", reboot, 60, 1 },
	{ "reboot-2-vcpus", reboot, 60, 2 },
	{ "reset-again", reset_again, 60, 0 },
	{ "wrong-states", wrong_states, 0, 0 },
	{ "wait-times-out", wait_times_out, 0, 0 },
	{ "poll-events", poll_events, 0, 0 },
	{ "many-machines", many, 120, 0 },
	{ "crash-is-its-own", crash_is_its_own, 60, 0 },
	{ "calls-from-many-threads", calls_from_many_threads, 60, 0 },
	{ "stop-ends-waits", stop_ends_waits, 0, 0 },
	{ "machine-per-thread", machine_per_thread, 120, 0 },
	{ "handed-around", handed_around, 60, 0 },
	{ "nothing-is-left", nothing_is_left, 120, 0 },
	{ "fork-in-the-host", fork_in_the_host, 0, 0 },
	{ "signals-in-the-host", signals_in_the_host, 0, 0 },
};

int main(int argc, char **argv)
{
	return test_main(argc, argv, cases, sizeof(cases) / sizeof(cases[0]));
}
