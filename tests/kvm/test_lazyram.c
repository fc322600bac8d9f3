/* SPDX-License-Identifier: MIT */
/*
 * test_lazyram.c - RAM that is decoded when a vCPU touches it, on real KVM.
 *
 *	test_lazyram [options] [-n ROUNDS] [CASE...]
 *
 * The guest, pages.c, knows each page of its RAM and says if one is not what it was.
 * What can go wrong meanwhile: decoders that do not get to run, a file that is cut
 * short, changed or removed, a machine that is stopped, paused or freed or a process
 * that is killed while a vCPU waits inside the kernel for a page (on Linux 6.12 no
 * signal but SIGKILL ends that), huge pages, and limits of the process.
 *
 * -n restores and frees a machine so often, to see what is left.  Other options and
 * output: kvmtest.h.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kvmtest.h"

#define RAM_SIZE	(32ull << 20)
#define PAGES		7168u			/* that the guest knows, of 4 KiB */
#define ALONE		3u			/* count_threads() of one thread */

static char dir[] = "/tmp/lazyram.XXXXXX", file[64], copy[64];
static unsigned int rounds = 30;

/* ---- Reads that do not return --------------------------------------------------- */

enum { SERVER = 1, DECODERS = 2 };		/* who is held */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t cond = PTHREAD_COND_INITIALIZER;
static int held, there;				/* who is, and who has come */

/* The library's reads of a file come by here. */
ssize_t pread(int fd, void *p, size_t n, off_t off)
{
	char name[16] = "";
	int who;

	prctl(PR_GET_NAME, name);
	who = strcmp(name, "vmm-fault") == 0 ? SERVER : strcmp(name, "vmm-decode") == 0 ? DECODERS : 0;
	pthread_mutex_lock(&lock);
	there |= who & held;
	pthread_cond_broadcast(&cond);
	while (who & held)
		pthread_cond_wait(&cond, &lock);
	pthread_mutex_unlock(&lock);
	return syscall(SYS_pread64, fd, p, n, off);
}

static void hold(int who)
{
	pthread_mutex_lock(&lock);
	held = who;
	there = 0;
	pthread_cond_broadcast(&cond);
	pthread_mutex_unlock(&lock);
}

/* Somebody is held: of the server that is to say, a vCPU waits for a page. */
static void await(int who)
{
	pthread_mutex_lock(&lock);
	while (!(there & who))
		pthread_cond_wait(&cond, &lock);
	pthread_mutex_unlock(&lock);
}

/* ---- Machines ---------------------------------------------------------------------- */

static void freeze(void)
{
	struct vmm_config cfg;
	struct vmm_snap *s;
	struct vmm *vm;

	guest_config(&cfg, "pages", 1);
	cfg.memory = RAM_SIZE;
	CALL(vmm_create(&vm, &cfg, &test_err));
	guest_arg(vm, 0, PAGES);
	CALL(vmm_start(vm, &test_err));
	expect_event(vm, VMM_EV_DOORBELL, 1, 60);
	CALL(vmm_pause(vm, &test_err));
	CALL(vmm_snap_take(&s, vm, &test_err));
	CALL(vmm_snap_write(s, file, NULL, &test_err));
	vmm_snap_free(s);
	vmm_free(vm);
}

/* A file of its own for this case. */
static struct vmm_snap *open_copy(void)
{
	struct vmm_snap *s;
	char command[200];

	test_host();
	if (access(file, R_OK))
		test_process(freeze);
	snprintf(command, sizeof(command), "cp %s %s", file, copy);
	CHECK_EQ(system(command), 0);
	CALL(vmm_snap_open(&s, copy, &test_err));
	return s;
}

static void may_skip(void)
{
	if (!test_host()->lazy)
		test_skip("%s", test_host()->lazy_note);
}

static struct vmm *restore(struct vmm_snap *s)
{
	struct vmm *vm;

	CALL(vmm_restore(&vm, s, NULL, &test_err));
	return vm;
}

/* Have it look at so many pages. */
static void go(struct vmm *vm, uint64_t pages, uint64_t from)
{
	guest_arg(vm, 1, pages);
	guest_arg(vm, 2, from);
	guest_arg(vm, 7, 1);
	CALL(vmm_start(vm, &test_err));
}

/* What it was to look at was there. */
static void is_there(struct vmm *vm, uint64_t pages)
{
	struct vmm_stats st = VMM_STATS_INIT;

	expect_event(vm, VMM_EV_DOORBELL, 2, 120);
	CHECK_EQ(guest_counter(vm, 0), pages);
	CALL(vmm_stat(vm, &st, &test_err));
	test_note("%llu of %llu pages were waited for", (unsigned long long)st.memory_waits,
		  (unsigned long long)pages);
}

static void all_is_there(struct vmm *vm)
{
	is_there(vm, PAGES);
}

static int runs_on(struct vmm *vm)
{
	uint64_t was = guest_counter(vm, 1), until = now_ms() + 10000 * test_options.factor;

	while (guest_counter(vm, 1) == was && now_ms() < until)
		sleep_ms(1);
	return guest_counter(vm, 1) != was;
}

/* ---- All is well ------------------------------------------------------------------- */

/* Two clones at once go through parts of RAM while it is decoded.  (Not all of it: two
   vCPUs of one process that copy pages have much to tell each other, which takes an
   emulated host that has other work 15 ms a page.) */
static void two_clones(void)
{
	struct vmm_snap *s = open_copy();
	struct vmm *a = restore(s), *b = restore(s);

	go(a, PAGES / 8, 0);
	go(b, PAGES / 8, PAGES / 16);
	vmm_snap_free(s);
	is_there(a, PAGES / 8);
	is_there(b, PAGES / 8);
	vmm_free(a);
	vmm_free(b);
}

/* The file need not have a name any more. */
static void file_removed(void)
{
	struct vmm_snap *s = open_copy();
	struct vmm *vm;

	CHECK(unlink(copy) == 0);
	vm = restore(s);
	go(vm, PAGES, 0);
	all_is_there(vm);
	vmm_free(vm);
	vmm_snap_free(s);
}

/* ---- Decoders that do not get to run -------------------------------------------------- */

static void decoders_stand_still(void)
{
	struct vmm_snap *s = open_copy();
	struct vmm *vm;

	may_skip();
	hold(DECODERS);
	vm = restore(s);
	await(DECODERS);
	go(vm, PAGES, 0);
	all_is_there(vm);
	hold(0);
	CHECK(runs_on(vm));
	vmm_free(vm);
	vmm_snap_free(s);
}

/* They have idle priority, and there are others. */
static void others_are_busy(void)
{
	struct vmm_snap *s = open_copy();
	struct vmm *vm;
	pid_t busy;

	/* On the other of two CPUs; the guest wants all of its own. */
	busy = fork();
	if (busy == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (;;)
			;
	}
	vm = restore(s);
	go(vm, PAGES, 0);
	all_is_there(vm);
	kill(busy, SIGKILL);
	vmm_free(vm);
	vmm_snap_free(s);
}

/* ---- A vCPU that waits for a page --------------------------------------------------------- */

/* One, in the machine of a fresh snapshot. */
static struct vmm *waiting(struct vmm_snap **s, uint64_t pages)
{
	struct vmm *vm;

	*s = open_copy();
	may_skip();
	hold(SERVER | DECODERS);
	vm = restore(*s);
	go(vm, pages, 0);
	await(SERVER);
	return vm;
}

static int ended;

static void *stop(void *vm)
{
	CALL(vmm_stop(vm, &test_err));
	__atomic_store_n(&ended, 1, __ATOMIC_SEQ_CST);
	return NULL;
}

static void *pause_it(void *vm)
{
	CALL(vmm_pause(vm, &test_err));
	__atomic_store_n(&ended, 1, __ATOMIC_SEQ_CST);
	return NULL;
}

static void *free_it(void *vm)
{
	vmm_free(vm);
	__atomic_store_n(&ended, 1, __ATOMIC_SEQ_CST);
	return NULL;
}

/* A call that has to wait for the page, too, comes to its end as soon as it is there. */
static void call_while_waiting(struct vmm *vm, void *(*call)(void *))
{
	pthread_t t;

	CHECK(pthread_create(&t, NULL, call, vm) == 0);
	sleep_ms(300);
	test_note("without the page the call %s", __atomic_load_n(&ended, __ATOMIC_SEQ_CST) ?
		  "ends" : "waits");
	hold(DECODERS);
	CHECK(pthread_join(t, NULL) == 0);
	hold(0);
}

static void stopped_while_waiting(void)
{
	struct vmm_snap *s;
	struct vmm *vm = waiting(&s, PAGES);

	call_while_waiting(vm, stop);
	CHECK_EQ(vmm_state(vm), VMM_STOPPED);
	CALL(vmm_reset(vm, &test_err));
	go(vm, PAGES, 0);
	all_is_there(vm);
	vmm_free(vm);
	vmm_snap_free(s);
}

static void paused_while_waiting(void)
{
	struct vmm_snap *s, *more;
	struct vmm *vm = waiting(&s, PAGES / 8), *child;

	call_while_waiting(vm, pause_it);
	CHECK_EQ(vmm_state(vm), VMM_PAUSED);
	CALL(vmm_snap_take(&more, vm, &test_err));
	child = restore(more);
	CALL(vmm_start(child, &test_err));
	CALL(vmm_start(vm, &test_err));
	is_there(vm, PAGES / 8);
	is_there(child, PAGES / 8);
	vmm_free(vm);
	vmm_free(child);
	vmm_snap_free(more);
	vmm_snap_free(s);
}

static void freed_while_waiting(void)
{
	unsigned int fds = count_fds();
	struct vmm_snap *s;
	struct vmm *vm = waiting(&s, PAGES);

	call_while_waiting(vm, free_it);
	vmm_snap_free(s);
	CHECK_EQ(count_fds(), fds);
	CHECK_EQ(threads_left(ALONE), ALONE);
}

/* Nobody will ever bring the page: the process can be killed all the same. */
static void killed_while_waiting(void)
{
	struct vmm_snap *s;
	int pipes[2], status;
	pid_t pid;
	char c;

	CHECK(pipe(pipes) == 0);
	vmm_snap_free(open_copy());
	pid = fork();
	if (pid == 0) {
		waiting(&s, PAGES);
		sleep_ms(100);
		CHECK(write(pipes[1], "x", 1) == 1);
		for (;;)
			pause();
	}
	close(pipes[1]);
	if (read(pipes[0], &c, 1) == 1) {
		kill(pid, SIGKILL);
		CHECK(waitpid(pid, &status, 0) == pid && WIFSIGNALED(status));
		return;
	}
	/* It has said why. */
	CHECK(waitpid(pid, &status, 0) == pid);
	_exit(WEXITSTATUS(status));
}

/* ---- Files that are not what they were ------------------------------------------------------ */

/* a, which looks at everything, is stopped, and this is why; b goes on. */
static void stops_one(struct vmm_snap *s, struct vmm *b, const char *why)
{
	struct vmm *a = restore(s);
	struct vmm_event ev;

	go(a, PAGES, 0);
	next_event(a, &ev, 60);
	if (ev.type != VMM_EV_FAULT || !strstr(ev.detail, why) || !strstr(ev.detail, copy))
		test_fail("event %s: %s", event_name(ev.type), ev.detail);
	test_note("%s", ev.detail);
	CHECK_EQ(vmm_state(a), VMM_BROKEN);
	CALL_FAILS(VMM_EBROKEN, "broken", vmm_start(a, &test_err));
	vmm_free(a);
	CHECK_EQ(vmm_state(b), VMM_RUNNING);
	CHECK(runs_on(b));
	/* It can be paused, and frozen: what is lost is not its own. */
	CALL(vmm_pause(b, &test_err));
	CALL(vmm_start(b, &test_err));
	CHECK(runs_on(b));
	vmm_free(b);
	vmm_snap_free(s);
}

/* A machine that runs, and touches no more than it has. */
static struct vmm *content(struct vmm_snap *s)
{
	struct vmm *b = restore(s);

	go(b, 16, 0);
	expect_event(b, VMM_EV_DOORBELL, 2, 60);
	return b;
}

static void file_cut(void)
{
	struct vmm_snap *s = open_copy();
	struct vmm *b;

	may_skip();
	hold(DECODERS);			/* or it may all be there */
	b = content(s);
	CHECK(truncate(copy, 100000) == 0);
	hold(0);
	stops_one(s, b, "cut short");
}

static void file_changed(void)
{
	struct vmm_snap *s = open_copy();
	int fd = open(copy, O_WRONLY | O_CLOEXEC);
	struct vmm *b;
	off_t at;

	may_skip();
	hold(DECODERS);
	b = content(s);
	for (at = lseek(fd, 0, SEEK_END) / 2; pwrite(fd, "change", 6, at) == 6 && at > 20000; at -= 256)
		;
	close(fd);
	hold(0);
	stops_one(s, b, "is damaged");
}

/* ---- Huge pages ------------------------------------------------------------------------------ */

#define THP	"/sys/kernel/mm/transparent_hugepage/"

/* 0, or -1: this host has no such thing.  The value that it had in old, if not NULL. */
static int set_huge(const char *path, const char *value, char *old, size_t cap)
{
	char text[128] = "", *from, *to;
	int fd = open(path, O_RDWR | O_CLOEXEC), rc;

	if (fd < 0)
		return -1;
	if (old && read(fd, text, sizeof(text) - 1) > 0 && (from = strchr(text, '[')) &&
	    (to = strchr(from, ']')))
		snprintf(old, cap, "%.*s", (int)(to - from - 1), from + 1);
	rc = write(fd, value, strlen(value)) == (ssize_t)strlen(value) ? 0 : -1;
	close(fd);
	return rc;
}

static void go_through(void)
{
	struct vmm_restore_config how = VMM_RESTORE_INIT;
	struct vmm_host host = VMM_HOST_INIT;
	struct vmm_snap *s = open_copy();
	struct vmm *vm;

	CALL(vmm_probe(&host, &test_err));
	test_note("lazy: %u, %s", host.lazy, host.lazy_note);
	hold(DECODERS);
	vm = restore(s);
	go(vm, PAGES, 0);
	all_is_there(vm);
	hold(0);
	CHECK(runs_on(vm));
	vmm_free(vm);
	how.flags = VMM_RECORD;
	if (host.lazy) {
		CALL(vmm_restore(&vm, s, &how, &test_err));
		go(vm, PAGES, 0);
		all_is_there(vm);
		vmm_free(vm);
	} else {
		CALL_FAILS(VMM_ENOTSUP, "huge pages", vmm_restore(&vm, s, &how, &test_err));
	}
	vmm_snap_free(s);
}

/* A page that nobody has decoded must not be there because its neighbour is, in one
   huge page with it. */
static void huge_pages(void)
{
	char anon[32] = "madvise", shmem[32] = "never";
	int status;
	pid_t pid;

	vmm_snap_free(open_copy());
	if (set_huge(THP "enabled", "always", anon, sizeof(anon)) ||
	    set_huge(THP "shmem_enabled", "always", shmem, sizeof(shmem)))
		test_skip("this host has no huge pages, or we may not have them");
	pid = fork();
	if (pid == 0) {
		go_through();
		fflush(NULL);
		_exit(0);
	}
	CHECK(waitpid(pid, &status, 0) == pid);
	set_huge(THP "enabled", anon, NULL, 0);
	set_huge(THP "shmem_enabled", shmem, NULL, 0);
	if (status)
		_exit(1);
}

/* ---- Limits ----------------------------------------------------------------------- */

/* From the file to a machine that runs, and to its end. */
static int whole_life(void)
{
	struct vmm_snap *s;
	struct vmm *vm;
	int rc;

	memset(&test_err, 0, sizeof(test_err));
	rc = vmm_snap_open(&s, copy, &test_err);
	if (rc)
		return rc;
	rc = vmm_restore(&vm, s, NULL, &test_err);
	vmm_snap_free(s);
	if (rc)
		return rc;
	rc = vmm_start(vm, &test_err);
	vmm_free(vm);
	return rc;
}

/* The limit grows by step from least on, until a life meets none. */
static void limited(int resource, rlim_t least, rlim_t step, const char *what)
{
	unsigned int fds = count_fds(), i, last = 0;
	struct rlimit limit;
	int rc = -1;

	CHECK(getrlimit(resource, &limit) == 0);
	for (i = 0; i < 400 && rc; i++) {
		limit.rlim_cur = least + i * step;
		CHECK(setrlimit(resource, &limit) == 0);
		rc = whole_life();
		limit.rlim_cur = limit.rlim_max;
		CHECK(setrlimit(resource, &limit) == 0);
		if (rc) {
			if (rc != VMM_ENOMEM && (rc != VMM_ESYS || !test_err.os_errno) &&
			    rc != VMM_ENOKVM)
				test_fail("%s: %s", vmm_strerror(rc), test_err.message);
			CHECK(test_err.code == rc && test_err.message[0]);
			if (!last++)
				test_note("at first: %s", test_err.message);
		}
		CHECK_EQ(count_fds(), fds);
		CHECK_EQ(threads_left(ALONE), ALONE);
	}
	CHECK_EQ(rc, 0);
	test_note("%llu more %s suffice", (unsigned long long)((i - 1) * step), what);
	CHECK_EQ(whole_life(), 0);
}

static void descriptors_run_out(void)
{
	vmm_snap_free(open_copy());
	CHECK_EQ(whole_life(), 0);
	limited(RLIMIT_NOFILE, count_fds() - 3, 1, "descriptors");
}

static void addresses_run_out(void)
{
	unsigned long pages = 0;
	FILE *f;

	vmm_snap_free(open_copy());
	CHECK_EQ(whole_life(), 0);
	f = fopen("/proc/self/statm", "r");
	CHECK(f && fscanf(f, "%lu", &pages) == 1);
	fclose(f);
	limited(RLIMIT_AS, pages * 4096, 256u << 10, "bytes of address space");
}

static int heard;

static void hears(void *arg, int level, const char *line)
{
	(void)arg;
	(void)level;
	heard |= strstr(line, "userfaultfd") != NULL;
}

/* As in a container: no userfaultfd, neither the system call nor the device's. */
static void no_userfaultfd(void)
{
	static struct sock_filter filter[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_userfaultfd, 4, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_ioctl, 0, 2),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[1])),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, _IO(0xaa, 0), 1, 0),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
	};
	const struct sock_fprog prog = { sizeof(filter) / sizeof(filter[0]), filter };
	struct vmm_restore_config how = VMM_RESTORE_INIT;
	struct vmm_host host = VMM_HOST_INIT;
	struct vmm_snap *s = open_copy();
	struct vmm_stats st = VMM_STATS_INIT;
	struct vmm *vm;

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ||
	    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog))
		test_skip("no seccomp: %s", strerror(errno));
	CALL(vmm_probe(&host, &test_err));
	CHECK_EQ(host.lazy, 0);
	test_note("%s", host.lazy_note);
	how.log = hears;
	CALL(vmm_restore(&vm, s, &how, &test_err));
	CHECK(heard);
	go(vm, PAGES, 0);
	all_is_there(vm);
	CALL(vmm_stat(vm, &st, &test_err));
	CHECK_EQ(st.memory_waits, 0);
	vmm_free(vm);
	vmm_snap_free(s);
}

/* ---- Again and again --------------------------------------------------------------- */

static void nothing_is_left(void)
{
	unsigned int fds = 0, i;
	uint64_t rss = 0;

	vmm_snap_free(open_copy());
	for (i = 0; i < rounds; i++) {
		CALL(whole_life());
		if (i == 10) {			/* the allocator has settled */
			fds = count_fds();
			rss = rss_kib();
		}
		if (i > 10) {
			CHECK_EQ(count_fds(), fds);
			CHECK_EQ(threads_left(ALONE), ALONE);
		}
	}
	test_note("RSS after 10 machines %llu KiB, after %u %llu KiB", (unsigned long long)rss, i,
		  (unsigned long long)rss_kib());
	CHECK(rss_kib() <= rss + 1024);
}

static const struct test_case cases[] = {
	{ "two-clones", two_clones, 300, 0 },
	{ "decoders-stand-still", decoders_stand_still, 120, 0 },
	{ "others-are-busy", others_are_busy, 200, 0 },
	{ "stopped-while-waiting", stopped_while_waiting, 120, 0 },
	{ "paused-while-waiting", paused_while_waiting, 300, 0 },
	{ "freed-while-waiting", freed_while_waiting, 120, 0 },
	{ "killed-while-waiting", killed_while_waiting, 120, 0 },
	{ "file-removed", file_removed, 120, 0 },
	{ "file-cut", file_cut, 120, 0 },
	{ "file-changed", file_changed, 120, 0 },
	{ "huge-pages", huge_pages, 120, 0 },
	{ "no-userfaultfd", no_userfaultfd, 120, 0 },
	{ "descriptors-run-out", descriptors_run_out, 120, 0 },
	{ "addresses-run-out", addresses_run_out, 300, 0 },
	{ "nothing-is-left", nothing_is_left, 7200, 0 },
};

int main(int argc, char **argv)
{
	int rc, i;

	for (i = 1; i + 1 < argc; i++) {
		if (strcmp(argv[i], "-n") != 0)
			continue;
		rounds = (unsigned int)atoi(argv[i + 1]);
		argc -= 2;
		memmove(&argv[i], &argv[i + 2], (size_t)(argc - i + 1) * sizeof(argv[0]));
	}
	if (!mkdtemp(dir)) {
		perror(dir);
		return 1;
	}
	snprintf(file, sizeof(file), "%s/snap", dir);
	snprintf(copy, sizeof(copy), "%s/copy", dir);
	rc = test_main(argc, argv, cases, sizeof(cases) / sizeof(cases[0]));
	unlink(file);
	unlink(copy);
	rmdir(dir);
	return rc;
}
