/* SPDX-License-Identifier: MIT */
/*
 * kvmtest.c - see kvmtest.h.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "kvmtest.h"

#define STATUS_SKIP	77

struct test_options test_options = { .factor = 1 };
uint64_t test_arg;
__thread struct vmm_error test_err;

static char guests[256];		/* directory */
static char *why;			/* shared with the case's process */
static unsigned int passed, failed, skipped;

/* ---- Running cases -------------------------------------------------------------- */

/* One line for people, whatever a console left in it. */
static void tidy(char *s)
{
	for (; *s; s++)
		if (*s < ' ' || *s > '~')
			*s = ' ';
}

static void end(int status, const char *fmt, va_list ap)
	__attribute__((format(printf, 2, 0), noreturn));

static void end(int status, const char *fmt, va_list ap)
{
	static pthread_mutex_t once = PTHREAD_MUTEX_INITIALIZER;

	pthread_mutex_lock(&once);	/* for ever: the first reason counts */
	vsnprintf(why, 512, fmt, ap);
	tidy(why);
	fflush(NULL);
	_exit(status);
}

void test_fail(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	end(1, fmt, ap);
}

void test_skip(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	end(STATUS_SKIP, fmt, ap);
}

void test_long(void)
{
	if (!test_options.full)
		test_skip("takes long: -f");
}

void test_note(const char *fmt, ...)
{
	va_list ap;
	char line[512];

	va_start(ap, fmt);
	vsnprintf(line, sizeof(line), fmt, ap);
	va_end(ap);
	tidy(line);
	printf("# %s\n", line);
	fflush(stdout);
}

/* Wait for the case until its time is up; its wait status, or -1. */
static int await(pid_t pid, unsigned int seconds)
{
	uint64_t until = now_ms() + seconds * 1000ull;
	int status;

	for (;;) {
		if (waitpid(pid, &status, WNOHANG) == pid)
			return status;
		if (now_ms() >= until)
			break;
		sleep_ms(5);
	}
	kill(pid, SIGKILL);
	waitpid(pid, &status, 0);
	return -1;
}

void test_run(const char *name, void (*fn)(void), uint64_t arg, unsigned int seconds)
{
	uint64_t start = now_ms();
	int status;
	pid_t pid;

	if (test_options.list) {
		printf("%s\n", name);
		return;
	}
	if (!why)
		why = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	seconds = (seconds ? seconds : 30) * test_options.factor;
	why[0] = 0;
	fflush(NULL);
	pid = fork();
	if (pid == 0) {
		test_arg = arg;
		fn();
		fflush(NULL);
		_exit(0);
	}
	status = await(pid, seconds);
	if (status == -1) {
		snprintf(why, 512, "still running after %u s", seconds);
	} else if (WIFSIGNALED(status)) {
		snprintf(why, 512, "killed by signal %d", WTERMSIG(status));
		status = -1;
	}
	if (status == 0) {
		passed++;
		printf("ok %s # %llu ms\n", name, (unsigned long long)(now_ms() - start));
	} else if (status != -1 && WEXITSTATUS(status) == STATUS_SKIP) {
		skipped++;
		printf("skip %s - %s\n", name, why);
	} else {
		failed++;
		printf("not ok %s - %s\n", name, why);
	}
	fflush(stdout);
}

void test_process(void (*fn)(void))
{
	pid_t pid;
	int status;

	fflush(NULL);
	pid = fork();
	CHECK(pid >= 0);
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		fn();
		fflush(NULL);
		_exit(0);
	}
	CHECK_EQ(waitpid(pid, &status, 0), pid);
	if (WIFSIGNALED(status))
		test_fail("a part of it was killed by signal %d", WTERMSIG(status));
	if (WEXITSTATUS(status))
		_exit(WEXITSTATUS(status));	/* it has said why */
}

int test_status(void)
{
	if (failed)
		return 1;
	return skipped && !passed ? STATUS_SKIP : 0;
}

static void usage(const char *prog, const char *args)
{
	fprintf(stderr, "usage: %s [-flv] [-m emul|hwaccel|auto|default] [-t FACTOR] %s[CASE...]\n",
		prog, args);
	exit(2);
}

static int named(const char *name, char **list, int n)
{
	int i;

	for (i = 0; i < n; i++)
		if (strstr(name, list[i]))
			return 1;
	return n == 0;
}

void test_init(const char *prog)
{
	const char *slash = strrchr(prog, '/');

	snprintf(guests, sizeof(guests), "%.*s../guest",
		 slash ? (int)(slash + 1 - prog) : 2, slash ? prog : "./");
	setvbuf(stdout, NULL, _IOLBF, 0);
	signal(SIGPIPE, SIG_IGN);
}

int test_main_args(int argc, char **argv, const struct test_case *cases, size_t n,
		   const char *args, const char **first, const char **second)
{
	size_t i;
	int c;

	test_init(argv[0]);
	while ((c = getopt(argc, argv, "flvm:t:")) != -1) {
		if (c == 'l')
			test_options.list = 1;
		else if (c == 'f')
			test_options.full = 1;
		else if (c == 'v')
			test_options.verbose = 1;
		else if (c == 'm')
			test_options.irqchip = test_mode_parse(optarg);
		else if (c == 't')
			test_options.factor = (unsigned int)atoi(optarg);
		else
			usage(argv[0], args);
	}
	if (first) {
		if (argc - optind < 2)
			usage(argv[0], args);
		*first = argv[optind++];
		*second = argv[optind++];
	}
	for (i = 0; i < n; i++)
		if (named(cases[i].name, argv + optind, argc - optind))
			test_run(cases[i].name, cases[i].fn, cases[i].arg, cases[i].seconds);
	return test_status();
}

int test_main(int argc, char **argv, const struct test_case *cases, size_t n)
{
	return test_main_args(argc, argv, cases, n, "", NULL, NULL);
}

void test_expect_error(const char *file, int line, int rc, int code, const char *text,
		       const struct vmm_error *err)
{
	if (rc != code)
		test_fail("%s:%d: %s, not %s: %s", file, line, vmm_strerror(rc),
			  vmm_strerror(code), rc ? err->message : "");
	if (err->code != code)
		test_fail("%s:%d: err.code %d beside %d", file, line, err->code, code);
	if (!strstr(err->message, text))
		test_fail("%s:%d: \"%s\" does not name \"%s\"", file, line, err->message, text);
}

/* ---- Machines --------------------------------------------------------------------- */

const struct vmm_host *test_host(void)
{
	static struct vmm_host host = VMM_HOST_INIT;
	struct vmm_error err;
	int rc;

	if (host.max_vcpus)
		return &host;
	rc = vmm_probe(&host, &err);
	if (rc == VMM_ENOKVM || rc == VMM_ENOTSUP)
		test_skip("%s", err.message);
	if (rc)
		test_fail("vmm_probe: %s", err.message);
	return &host;
}

int test_mode_sound(uint32_t irqchip)
{
	return irqchip == VMM_IRQCHIP_DEFAULT || (test_host()->irqchips_sound >> irqchip & 1);
}

static const char *const modes[] = { "default", "emul", "hwaccel", "auto" };

const char *test_mode_name(uint32_t irqchip)
{
	return modes[irqchip];
}

uint32_t test_mode_parse(const char *name)
{
	uint32_t i;

	for (i = 0; i < 4; i++)
		if (strcmp(modes[i], name) == 0)
			return i;
	fprintf(stderr, "no interrupt controller \"%s\"\n", name);
	exit(2);
}

const char *guest_path(const char *name)
{
	static __thread char path[400];

	snprintf(path, sizeof(path), "%s/%s", guests, name);
	return path;
}

static void show_log(void *arg, int level, const char *line)
{
	(void)arg;
	printf("# log %d: %s\n", level, line);
}

void guest_config(struct vmm_config *cfg, const char *name, uint32_t vcpus)
{
	*cfg = (struct vmm_config)VMM_CONFIG_INIT;
	cfg->kernel = guest_path(name);
	cfg->vcpus = vcpus;
	cfg->memory = 16u << 20;
	cfg->irqchip = test_options.irqchip;
	cfg->name = name;
	if (test_options.verbose)
		cfg->log = show_log;
}

struct vmm *guest_new_io(const char *name, uint32_t vcpus, int in_fd, int out_fd)
{
	struct vmm_config cfg;
	struct vmm *vm;

	test_host();
	guest_config(&cfg, name, vcpus);
	CALL(vmm_create(&vm, &cfg, &test_err));
	CALL(vmm_add_serial(vm, in_fd, out_fd, &test_err));
	return vm;
}

struct vmm *guest_new(const char *name, uint32_t vcpus, int serial)
{
	struct vmm_config cfg;
	struct vmm *vm;

	if (serial)
		return guest_new_io(name, vcpus, -1, -1);
	test_host();
	guest_config(&cfg, name, vcpus);
	CALL(vmm_create(&vm, &cfg, &test_err));
	return vm;
}

void guest_arg(struct vmm *vm, unsigned int i, uint64_t value)
{
	CALL(vmm_write(vm, GUEST_SHARED + offsetof(struct guest_shared, arg) + 8 * i, &value,
		       sizeof(value), &test_err));
}

uint64_t guest_counter(struct vmm *vm, unsigned int i)
{
	uint64_t v;

	CALL(vmm_read(vm, GUEST_SHARED + offsetof(struct guest_shared, counter) + 8 * i, &v,
		      sizeof(v), &test_err));
	return v;
}

const char *event_name(uint32_t type)
{
	static const char *const names[] = { "NONE", "SHUTDOWN", "REBOOT", "CRASH", "DOORBELL",
					     "FAULT" };

	return type < 6 ? names[type] : "?";
}

static void read_string(struct vmm *vm, uint64_t gpa, char *buf, size_t cap)
{
	size_t i;

	for (i = 0; i + 1 < cap; i++)
		if (vmm_read(vm, gpa + i, &buf[i], 1, NULL) || !buf[i])
			break;
	buf[i] = 0;
}

static void report(struct vmm *vm, uint64_t gpa)
{
	struct guest_report r;
	char file[160], what[160];

	CALL(vmm_read(vm, gpa, &r, sizeof(r), &test_err));
	read_string(vm, r.file, file, sizeof(file));
	read_string(vm, r.what, what, sizeof(what));
	test_fail("guest hart %llu, %s:%llu: %s (0x%llx, 0x%llx)", (unsigned long long)r.hart,
		  file, (unsigned long long)r.line, what, (unsigned long long)r.a,
		  (unsigned long long)r.b);
}

const char *guest_keep(struct vmm *vm)
{
	static __thread char path[300];
	struct vmm_snap *s;

	snprintf(path, sizeof(path), "%s/../stuck-%d.snap", guests, (int)getpid());
	if (vmm_state(vm) == VMM_RUNNING && vmm_pause(vm, &test_err))
		return test_err.message;
	if (vmm_snap_take(&s, vm, &test_err) || vmm_snap_write(s, path, NULL, &test_err))
		return test_err.message;
	vmm_snap_free(s);
	return path;
}

void next_event(struct vmm *vm, struct vmm_event *ev, int seconds)
{
	CALL(vmm_wait(vm, seconds * 1000 * (int)test_options.factor, ev, &test_err));
	if (ev->type == VMM_EV_NONE)
		test_fail("no event within %d s; the machine is in state %d: %s", seconds,
			  vmm_state(vm), guest_keep(vm));
	if (ev->type == VMM_EV_DOORBELL && (ev->value & GUEST_REPORT_MASK) == GUEST_REPORT)
		report(vm, ev->value & ~GUEST_REPORT_MASK);
}

void expect_event(struct vmm *vm, uint32_t type, uint64_t value, int seconds)
{
	struct vmm_event ev;

	next_event(vm, &ev, seconds);
	if (ev.type != type || ev.value != value)
		test_fail("event %s %llu (%s), not %s %llu", event_name(ev.type),
			  (unsigned long long)ev.value, ev.detail, event_name(type),
			  (unsigned long long)value);
}

/* ---- The process -------------------------------------------------------------------- */

uint64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

void sleep_ms(unsigned int ms)
{
	struct timespec ts = { ms / 1000, ms % 1000 * 1000000l };

	nanosleep(&ts, NULL);
}

static unsigned int count_entries(const char *path)
{
	DIR *d = opendir(path);
	unsigned int n = 0;

	while (d && readdir(d))
		n++;
	if (d)
		closedir(d);
	return n;
}

unsigned int count_fds(void)
{
	return count_entries("/proc/self/fd");
}

unsigned int count_threads(void)
{
	return count_entries("/proc/self/task");
}

unsigned int threads_left(unsigned int n)
{
	int i;

	for (i = 0; i < 10000 && count_threads() > n; i++)
		sleep_ms(1);
	return count_threads();
}

uint64_t rss_kib(void)
{
	unsigned long long all, rss = 0;
	FILE *f = fopen("/proc/self/statm", "r");

	if (!f || fscanf(f, "%llu %llu", &all, &rss) != 2)
		rss = 0;
	if (f)
		fclose(f);
	return rss * (uint64_t)sysconf(_SC_PAGESIZE) / 1024;
}

/* ---- Consoles ------------------------------------------------------------------------- */

struct reader_thread {
	pthread_t	thread;
	pthread_mutex_t	lock;
	pthread_cond_t	cond;
};

static void *collect(void *arg)
{
	struct console *c = arg;
	char buf[4096];
	ssize_t n;

	while ((n = read(c->from, buf, sizeof(buf))) > 0) {
		pthread_mutex_lock(&c->reader->lock);
		if (!c->len)
			c->first_ms = now_ms();
		if (c->len + (size_t)n + 1 > c->cap) {
			c->cap = 2 * (c->len + (size_t)n + 1);
			c->text = realloc(c->text, c->cap);
		}
		memcpy(c->text + c->len, buf, (size_t)n);
		c->len += (size_t)n;
		c->text[c->len] = 0;
		pthread_cond_broadcast(&c->reader->cond);
		pthread_mutex_unlock(&c->reader->lock);
	}
	return NULL;
}

void console_open(struct console *c)
{
	pthread_condattr_t attr;
	int in[2], out[2];

	memset(c, 0, sizeof(*c));
	CHECK(pipe2(in, O_CLOEXEC) == 0 && pipe2(out, O_CLOEXEC) == 0);
	c->in = in[0];
	c->to = in[1];
	c->out = out[1];
	c->from = out[0];
	c->text = calloc(1, c->cap = 4096);
	c->reader = calloc(1, sizeof(*c->reader));
	pthread_mutex_init(&c->reader->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&c->reader->cond, &attr);
	pthread_create(&c->reader->thread, NULL, collect, c);
}

/* The end of the output ends the reader. */
void console_finish(struct console *c)
{
	if (c->out < 0)
		return;
	close(c->out);
	c->out = -1;
	pthread_join(c->reader->thread, NULL);
}

void console_close(struct console *c)
{
	console_finish(c);
	close(c->in);
	close(c->to);
	close(c->from);
	free(c->text);
	free(c->reader);
}

void console_send(struct console *c, const void *data, size_t n)
{
	const char *p = data;
	ssize_t r;

	while (n) {
		r = write(c->to, p, n);
		if (r < 0)
			test_fail("console input: %s", strerror(errno));
		p += r;
		n -= (size_t)r;
	}
}

int console_find(struct console *c, const char *text, size_t *at, int ms)
{
	size_t from = at ? *at : 0;
	struct timespec until;
	char *p = NULL;
	int r = 0;

	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += ms * (int)test_options.factor / 1000;
	pthread_mutex_lock(&c->reader->lock);
	for (;;) {
		p = memmem(c->text + from, c->len - from, text, strlen(text));
		if (p || r == ETIMEDOUT)
			break;
		r = pthread_cond_timedwait(&c->reader->cond, &c->reader->lock, &until);
	}
	if (p && at)
		*at = (size_t)(p - c->text) + strlen(text);
	pthread_mutex_unlock(&c->reader->lock);
	return p ? 0 : -1;
}

size_t console_len(struct console *c)
{
	size_t n;

	pthread_mutex_lock(&c->reader->lock);
	n = c->len;
	pthread_mutex_unlock(&c->reader->lock);
	return n;
}

const char *console_tail(struct console *c)
{
	size_t n = console_len(c);

	return c->text + (n > 300 ? n - 300 : 0);
}

void console_expect(struct console *c, const char *text, size_t *at, int seconds)
{
	if (console_find(c, text, at, seconds * 1000))
		test_fail("no \"%s\" within %d s; the console ends with \"%s\"", text, seconds,
			  console_tail(c));
}
