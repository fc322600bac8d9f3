/* SPDX-License-Identifier: MIT */
/*
 * test_snaplinux.c - a busy Linux, frozen and restored again and again.
 *
 *	test_snaplinux [options] [-n ROUNDS] [-d DRAWS] KERNEL INITRD [CASE...]
 *
 * INITRD is a cpio archive, not compressed; the guest's program, busy.c, is put
 * behind it.  It reckons, sleeps, writes to two disks, sends frames that come back,
 * and checks itself; what it says, and the kernel's log, is looked at.  In each round
 * every part of it has to get on, and every third restores from a file, in another
 * process.
 *
 * The other cases restore one file DRAWS times, each time with the guest about to
 * draw random bytes: no two draws may be the same.
 *
 * Other options and output: kvmtest.h.
 */
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../guest/linux/busy.h"
#include "kvmtest.h"

#define DISK_SIZE	(1u << 20)
#define PATIENCE	120000		/* ms: nothing is late on a host with too much to do */

static char dir[] = "/tmp/snaplinux.XXXXXX";
static const char *kernel, *initrd;
static unsigned int rounds = 5, draws = 50;

static const char *in_dir(const char *name)
{
	static char path[4][64];
	static unsigned int turn;
	char *p = path[turn++ % 4];

	snprintf(p, sizeof(path[0]), "%s/%s", dir, name);
	return p;
}

/* ---- The guest's files ------------------------------------------------------------ */

static void copy(FILE *out, const char *path)
{
	FILE *in = fopen(path, "r");
	char buf[65536];
	size_t n;

	CHECK(in);
	while ((n = fread(buf, 1, sizeof(buf), in)) > 0)
		CHECK_EQ(fwrite(buf, 1, n, out), n);
	fclose(in);
}

static void pad(FILE *out)
{
	while (ftell(out) % 4)
		fputc(0, out);
}

/* A file in an archive of its own: cpio(5), "new ASCII format". */
static void append(FILE *out, const char *name, const char *path)
{
	struct stat st = { .st_size = 0 };

	CHECK(!path || stat(path, &st) == 0);
	fprintf(out, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08zx%08x%s%c", 1,
		path ? 0100755 : 0, 0, 0, 1, 0, (unsigned int)st.st_size, 0, 0, 0, 0,
		strlen(name) + 1, 0, name, 0);
	pad(out);
	if (path)
		copy(out, path);
	pad(out);
}

static void make_files(void)
{
	FILE *f = fopen(in_dir("initrd"), "w");
	int fd;

	CHECK(f);
	copy(f, initrd);
	pad(f);
	append(f, "busy", guest_path("busy"));
	append(f, "TRAILER!!!", NULL);
	CHECK_EQ(fclose(f), 0);
	fd = open(in_dir("disk"), O_RDWR | O_CREAT, 0600);
	CHECK(fd >= 0 && ftruncate(fd, DISK_SIZE) == 0);
	close(fd);
	fd = open(in_dir("base"), O_RDWR | O_CREAT, 0600);
	CHECK(fd >= 0 && ftruncate(fd, DISK_SIZE) == 0);
	close(fd);
}

/* ---- The other ends of its devices --------------------------------------------------- */

static int wire[2];

static void *send_back(void *arg)
{
	char frame[2048];
	ssize_t n;

	(void)arg;
	while ((n = read(wire[1], frame, sizeof(frame))) > 0)
		if (write(wire[1], frame, (size_t)n) < 0)
			break;
	return NULL;
}

static void open_wire(void)
{
	pthread_t thread;

	CHECK_EQ(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, wire), 0);
	CHECK_EQ(pthread_create(&thread, NULL, send_back, NULL), 0);
	pthread_detach(thread);
}

static void add_devices(struct vmm *vm, struct console *con)
{
	CALL(vmm_add_serial(vm, con->in, con->out, &test_err));
	CALL(vmm_add_blk(vm, "disk", in_dir("disk"), 0, &test_err));
	CALL(vmm_add_blk(vm, "over", in_dir("base"), VMM_OVERLAY, &test_err));
	CALL(vmm_add_rng(vm, "rng", &test_err));
	CALL(vmm_add_net(vm, "net", wire[0], NULL, &test_err));
	CALL(vmm_add_vsock(vm, 3 + (uint32_t)getpid() % 1000, &test_err));
}

static struct vmm *boot(struct console *con, const char *run, uint32_t vcpus)
{
	struct vmm_config cfg = VMM_CONFIG_INIT;
	char cmdline[128];
	struct vmm *vm;

	test_host();
	snprintf(cmdline, sizeof(cmdline), "console=ttyS0 run=\"%s\"", run);
	cfg.kernel = kernel;
	cfg.initrd = in_dir("initrd");
	cfg.cmdline = cmdline;
	cfg.vcpus = vcpus;
	cfg.memory = strstr(kernel, "stock") ? 256u << 20 : 96u << 20;
	cfg.irqchip = test_options.irqchip;
	CALL(vmm_create(&vm, &cfg, &test_err));
	add_devices(vm, con);
	CALL(vmm_start(vm, &test_err));
	return vm;
}

static struct vmm *restore(struct vmm_snap *s, struct console *con, uint32_t flags)
{
	struct vmm_restore_config how = VMM_RESTORE_INIT;
	struct vmm *vm;

	how.irqchip = test_options.irqchip;
	how.flags = flags;
	CALL(vmm_restore(&vm, s, &how, &test_err));
	add_devices(vm, con);
	return vm;
}

/* What a healthy guest never says. */
static void check_console(struct console *con)
{
	static const char *const bad[] = { "WRONG", "stall", "WARNING", "BUG:", "Oops", "lockup",
					   "hung", "blocked for more", "Unable to handle",
					   "clocksource watchdog", "Marking clocksource", "segfault",
					   "unhandled signal", "I/O error" };
	const char *text, *p;
	size_t i;

	console_finish(con);
	/* A boot may stall where the host has too much to do. */
	text = strstr(con->text, "busy: at work");
	if (!text)
		text = con->text;
	for (i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		p = strstr(text, bad[i]);
		if (p && test_options.verbose)
			printf("%s\n", con->text);
		if (p)
			test_fail("the guest says \"%.200s\"", p > con->text + 40 ? p - 40 : p);
	}
	console_close(con);
}

/* ---- Rounds ---------------------------------------------------------------------------- */

/* Kept from process to process. */
static struct {
	unsigned int	round;
	struct status	last;
} *so_far;

/* With -v: where the time goes. */
static void step(const char *what)
{
	static uint64_t last;
	uint64_t now = now_ms();

	if (test_options.verbose && last)
		test_note("round %u: %s after %llu ms", so_far->round, what,
			  (unsigned long long)(now - last));
	last = now;
}

/* Fail, with the console's end, and the machine kept. */
static void stands_still(struct vmm *vm, struct console *con, const char *what)
{
	char why[100];

	snprintf(why, sizeof(why), "%.99s", what);	/* it may be of test_err */
	test_fail("round %u: %s; kept in %s; the console ends with \"%s\"", so_far->round, why,
		  guest_keep(vm), console_tail(con));
}

/*
 * 1 if the guest answered.  It may hang up once: a guest that is slow to hear of its
 * restore is called all the same in the end, and when it hears it ends what it has.
 */
static int ask(struct vmm *vm, struct console *con, struct status *st)
{
	char *p = (char *)st, byte = 'x';
	size_t got;
	ssize_t n;
	int fd;

	if (vmm_connect(vm, BUSY_PORT, PATIENCE * (int)test_options.factor, &fd, &test_err))
		stands_still(vm, con, test_err.message);
	CHECK_EQ(write(fd, &byte, 1), 1);
	for (got = 0; got < sizeof(*st) + 1; got += (size_t)n) {
		n = got < sizeof(*st) ? read(fd, p + got, sizeof(*st) - got) : read(fd, &byte, 1);
		if (n <= 0) {
			close(fd);
			return 0;
		}
	}
	CHECK_EQ(byte, 'x');
	close(fd);
	if (st->failed)
		test_fail("round %u: the guest says: %.150s", so_far->round, st->wrong);
	return 1;
}

/* Every part of the guest gets on. */
static void watch(struct vmm *vm, struct console *con)
{
	uint64_t until = now_ms() + (uint64_t)PATIENCE * test_options.factor;
	const struct status *last = &so_far->last;
	struct status st;
	char what[100];
	unsigned int i, waits, hangups = 0;

	do {
		if (!ask(vm, con, &st) && (hangups++ || !ask(vm, con, &st)))
			test_fail("round %u: the guest hung up twice", so_far->round);
		for (waits = i = 0; i < BUSY_PARTS; i++)
			if (!(st.absent >> i & 1) && st.count[i] < last->count[i] + 2)
				waits |= 1u << i;
		if (now_ms() > until) {
			snprintf(what, sizeof(what), "parts 0x%x stand still", waits);
			stands_still(vm, con, what);
		}
		if (waits)
			sleep_ms(20);
	} while (waits);
	so_far->last = st;
	step("all got on");
}

/* Up to the next file, or the end. */
static void some_rounds(void)
{
	struct console con;
	struct vmm_snap *s;
	struct vmm *vm;
	size_t at = 0;

	console_open(&con);
	open_wire();
	step("");
	if (so_far->round == 0) {
		vm = boot(&con, "/busy", (uint32_t)test_arg);
		console_expect(&con, "busy: at work", &at, 180);
		step("booted");
	} else {
		CALL(vmm_snap_open(&s, in_dir("snap"), &test_err));
		vm = restore(s, &con, 0);
		vmm_snap_free(s);
		CALL(vmm_start(vm, &test_err));
		step("restored");
	}
	for (;;) {
		watch(vm, &con);
		if (so_far->round == rounds) {
			vmm_free(vm);
			so_far->round++;
			break;
		}
		CALL(vmm_pause(vm, &test_err));
		step("paused");
		CALL(vmm_snap_take(&s, vm, &test_err));
		step("taken");
		vmm_free(vm);
		if (++so_far->round % 3 == 1) {
			CALL(vmm_snap_write(s, in_dir("snap"), NULL, &test_err));
			vmm_snap_free(s);
			step("written");
			break;
		}
		vm = restore(s, &con, so_far->round & 1 ? VMM_RESUME : 0);
		vmm_snap_free(s);
		CALL(vmm_start(vm, &test_err));
		step("restored");
	}
	check_console(&con);
}

static void busy(void)
{
	so_far = mmap(NULL, sizeof(*so_far), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
		      -1, 0);
	CHECK(so_far != MAP_FAILED);
	make_files();
	while (so_far->round <= rounds)
		test_process(some_rounds);
	test_note("%u rounds; %llu sleeps, the longest of 2 ms %llu us; %llu frames of %llu again",
		  rounds, (unsigned long long)so_far->last.count[BUSY_TIME],
		  (unsigned long long)so_far->last.longest / 1000,
		  (unsigned long long)so_far->last.resent,
		  (unsigned long long)so_far->last.count[BUSY_NET]);
}

/* ---- Random bytes ------------------------------------------------------------------------ */

#define DRAW	128			/* characters */

static uint64_t word;			/* guest-physical, that the guest looks at */

static void freeze_before_draw(void)
{
	struct console con;
	struct vmm_snap *s;
	struct vmm *vm;
	size_t at = 0;

	console_open(&con);
	open_wire();
	vm = boot(&con, "/busy random", (uint32_t)test_arg);
	console_expect(&con, "busy: word ", &at, 180);
	console_expect(&con, "\n", &at, 10);
	so_far->last.count[0] = strtoull(strstr(con.text, "busy: word ") + 11, NULL, 16);
	sleep_ms(500);
	CALL(vmm_pause(vm, &test_err));
	CALL(vmm_snap_take(&s, vm, &test_err));
	CALL(vmm_snap_write(s, in_dir("snap"), NULL, &test_err));
	vmm_snap_free(s);
	vmm_free(vm);
	check_console(&con);
}

static void draw(struct vmm_snap *s, uint32_t flags, char out[DRAW + 1])
{
	const uint64_t go = 1;
	struct console con;
	struct vmm *vm;
	size_t at = 0;

	console_open(&con);
	vm = restore(s, &con, flags);
	CALL(vmm_write(vm, word, &go, sizeof(go), &test_err));
	CALL(vmm_start(vm, &test_err));
	console_expect(&con, "busy: random ", &at, 30);
	console_expect(&con, "\n", &at, 10);
	vmm_free(vm);
	console_finish(&con);
	snprintf(out, DRAW + 1, "%.*s", DRAW, strstr(con.text, "busy: random ") + 13);
	CHECK_EQ(strspn(out, "0123456789abcdef"), DRAW);
	console_close(&con);
}

static int by_text(const void *a, const void *b)
{
	return memcmp(a, b, DRAW);
}

static void draw_again(void)
{
	char (*text)[DRAW + 1] = calloc(draws, DRAW + 1), a[DRAW + 1], b[DRAW + 1];
	struct vmm_snap *s;
	unsigned int i;

	open_wire();
	CALL(vmm_snap_open(&s, in_dir("snap"), &test_err));
	for (i = 0; i < draws; i++)
		draw(s, 0, text[i]);
	/* Had they the same generation id they might well be the same. */
	draw(s, VMM_RESUME, a);
	draw(s, VMM_RESUME, b);
	test_note("%u draws; two with one generation id are %s", draws,
		  strcmp(a, b) ? "not the same" : "the same");
	vmm_snap_free(s);
	qsort(text, draws, DRAW + 1, by_text);
	for (i = 1; i < draws; i++)
		if (strcmp(text[i - 1], text[i]) == 0)
			test_fail("drawn twice: %s", text[i]);
	free(text);
}

static void random_bytes(void)
{
	so_far = mmap(NULL, sizeof(*so_far), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
		      -1, 0);
	CHECK(so_far != MAP_FAILED);
	make_files();
	test_process(freeze_before_draw);
	word = so_far->last.count[0];
	test_process(draw_again);
}

/* ---- The list ------------------------------------------------------------------------------ */

static const struct test_case cases[] = {
	{ "busy-2", busy, 7200, 2 },
	{ "random-1", random_bytes, 3600, 1 },
	{ "random-2", random_bytes, 3600, 2 },
};

/* Take "-X N" out of the arguments. */
static void option(int *argc, char **argv, const char *name, unsigned int *value)
{
	int i;

	for (i = 1; i + 1 < *argc; i++) {
		if (strcmp(argv[i], name) != 0)
			continue;
		*value = (unsigned int)atoi(argv[i + 1]);
		*argc -= 2;
		memmove(&argv[i], &argv[i + 2], (size_t)(*argc - i + 1) * sizeof(argv[0]));
		return;
	}
}

int main(int argc, char **argv)
{
	static const char *const files[] = { "initrd", "disk", "base", "snap" };
	unsigned int i;
	int rc;

	option(&argc, argv, "-n", &rounds);
	option(&argc, argv, "-d", &draws);
	if (!mkdtemp(dir)) {
		perror(dir);
		return 1;
	}
	rc = test_main_args(argc, argv, cases, sizeof(cases) / sizeof(cases[0]), "KERNEL INITRD ",
			    &kernel, &initrd);
	for (i = 0; i < sizeof(files) / sizeof(files[0]); i++)
		unlink(in_dir(files[i]));
	rmdir(dir);
	return rc;
}
