/* SPDX-License-Identifier: MIT */
/*
 * test_snap.c - machines frozen in one process, restored in another.
 *
 *	test_snap [options] [-a 1] [-n ROUNDS] [-g US] [-w DIR | -r DIR [-x TEXT]] [CASE...]
 *
 * Most cases have the guest frozen.c, which arms all the state there is and checks
 * itself.  They are three processes: one freezes it with interrupts off and writes
 * a file; the next restores that, lets it check, and freezes it standing still; the
 * third restores that file, and the guest goes on to its end.  Beside each mode of
 * the interrupt controller that this host offers, one is restored in another.
 *
 * The storm is storm.c, which is never at rest, frozen and restored ROUNDS times in a
 * row, at any moment, each time by another process, while the host's scheduler is made
 * to move its threads from CPU to CPU.
 *
 * -w leaves the files of the first freeze in DIR, and -r restores those that it
 * finds there, on another host; with -x that host must refuse them, and name TEXT.
 * -a runs the modes that this host's kernel does not get right, too.  With -g no more
 * than so many microseconds of the guest's time may be missing from the first freeze to
 * the restore: that is for a host whose time counts instructions (tests/lab/run
 * --icount).  Other options and output: kvmtest.h.
 */
#include <dirent.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "kvmtest.h"

/* As in frozen.c. */
enum { FLAG_FP = 1, FLAG_VECTOR = 2, FLAG_EARLY = 4, FLAG_SINGLE = 8, GO = 1, CLONE = 2 };

enum { SINGLE = 4 };	/* a variant: without D, and without V, which needs it */

static char dir[] = "/tmp/snap.XXXXXX";
static const char *write_to, *read_from, *refused, *all;
static char first[300], second[300];		/* files */

/* A case: its modes, the original's and what follows, harts and variant. */
#define ARG(mode, then, harts, variant) \
	((uint64_t)(mode) << 24 | (uint64_t)(then) << 16 | (harts) << 8 | (variant))
static uint32_t mode, then, harts, variant;
static unsigned int rounds = 10, gap;

static int offered(uint32_t m)
{
	return test_host()->irqchips >> m & 1;
}

static int has(const char *ext)
{
	return strstr(test_host()->isa, ext) != NULL;
}

static void unpack(void)
{
	mode = test_arg >> 24 & 0xff;
	then = test_arg >> 16 & 0xff;
	harts = test_arg >> 8 & 0xff;
	variant = test_arg & 0xff;
	if (read_from)			/* mode: what it was elsewhere */
		return;
	if (!offered(mode) || !offered(then))
		test_skip("this host has no guest interrupt files");
	if (!all && (!test_mode_sound(mode) || !test_mode_sound(then)))
		test_skip("not sound on this kernel");
}

/* ---- Freezing and thawing ------------------------------------------------------- */

static void save(struct vmm *vm, const char *path)
{
	struct vmm_snap *s;

	CALL(vmm_pause(vm, &test_err));
	CALL(vmm_snap_take(&s, vm, &test_err));
	CALL(vmm_snap_write(s, path, NULL, &test_err));
	vmm_snap_free(s);
}

static struct vmm_snap *open_snap(const char *path)
{
	struct vmm_snap *s;

	CALL(vmm_snap_open(&s, path, &test_err));
	return s;
}

static struct vmm *restore_snap(struct vmm_snap *s, uint32_t irqchip, uint32_t flags)
{
	struct vmm_restore_config how = VMM_RESTORE_INIT;
	struct vmm *vm;

	how.irqchip = irqchip;
	how.flags = flags;
	how.memory = gap ? VMM_MEM_EAGER : VMM_MEM_LAZY;
	CALL(vmm_restore(&vm, s, &how, &test_err));
	CHECK_EQ(vmm_state(vm), VMM_NEW);
	return vm;
}

static struct vmm *restore(const char *path, uint32_t irqchip, uint32_t flags)
{
	struct vmm_snap *s = open_snap(path);
	struct vmm *vm = restore_snap(s, irqchip, flags);

	vmm_snap_free(s);
	return vm;
}

static uint64_t flags(void)
{
	uint64_t f = FLAG_FP;

	if (variant & SINGLE)
		f |= FLAG_SINGLE;
	else if (test_host()->vlenb)
		f |= FLAG_VECTOR;
	/* Without Sstc Linux 6.12 fires a restored timer at once, and all of them one
	   that is due while the machine is held (riscv/hart.c). */
	if (!has("_sstc"))
		f |= FLAG_EARLY;
	return f;
}

static void freeze(void)
{
	struct vmm_config cfg;
	struct vmm *vm;

	test_options.irqchip = mode;
	guest_config(&cfg, "frozen", harts);
	if (variant & SINGLE)
		cfg.isa = test_host()->vlenb ? "-d,-v" : "-d";
	CALL(vmm_create(&vm, &cfg, &test_err));
	CALL(vmm_add_serial(vm, -1, -1, &test_err));
	guest_arg(vm, 0, variant);
	guest_arg(vm, 1, test_host()->satp_bits);
	guest_arg(vm, 2, flags());
	guest_arg(vm, 3, test_host()->timebase_hz);
	guest_arg(vm, 4, 0x80000000 + (16u << 20));	/* behind its RAM: genid.c */
	CALL(vmm_start(vm, &test_err));
	expect_event(vm, VMM_EV_DOORBELL, 1, 20);
	if (gap)
		sleep_ms(10);		/* till they watch the time */
	save(vm, first);
	vmm_free(vm);
}

/* What was missing of the guest's time when it went on. */
static void check_gap(struct vmm *vm)
{
	const uint64_t ticks = guest_counter(vm, 0), hz = test_host()->timebase_hz;

	test_note("%llu us missing", (unsigned long long)(ticks * 1000000 / hz));
	CHECK(ticks > 0 && ticks * 1000000 <= gap * hz);
}

/* The first freeze, restored; frozen again. */
static void check(void)
{
	struct vmm *vm = restore(first, then, variant & 1 ? VMM_RESUME : 0);

	guest_arg(vm, 2, flags());	/* this host's */
	guest_arg(vm, 7, variant & 1 ? GO : GO | CLONE);
	CALL(vmm_start(vm, &test_err));
	expect_event(vm, VMM_EV_DOORBELL, 2, 60);
	if (gap)
		check_gap(vm);
	sleep_ms(10);			/* till they stand; it would be right before, too */
	save(vm, second);
	vmm_free(vm);
}

static void finish(void)
{
	struct vmm *vm = restore(second, read_from ? then : mode, 0);

	CALL(vmm_start(vm, &test_err));
	expect_event(vm, VMM_EV_SHUTDOWN, 0, 20);
	vmm_free(vm);
}

static void in_other_processes(void)
{
	unpack();
	snprintf(first, sizeof(first), "%s/1", dir);
	snprintf(second, sizeof(second), "%s/2", dir);
	test_process(freeze);
	test_process(check);
	test_process(finish);
}

/* ---- Again and again -------------------------------------------------------------- */

#define RAM_SIZE	(16u << 20)

static void *ram_of(struct vmm *vm)
{
	void *p = malloc(RAM_SIZE);

	CALL(vmm_read(vm, 0x80000000, p, RAM_SIZE, &test_err));
	return p;
}

/* One machine goes back to its snapshot, and each time it is there exactly. */
static void reset_again(void)
{
	struct vmm *vm = restore(first, mode, 0);
	void *begin = ram_of(vm), *now;
	unsigned int i, in_place = 0;

	for (i = 0; i < rounds; i++) {
		struct vmm_stats st = VMM_STATS_INIT;

		now = ram_of(vm);
		CHECK(memcmp(begin, now, RAM_SIZE) == 0);
		free(now);
		guest_arg(vm, 7, GO | CLONE);
		CALL(vmm_start(vm, &test_err));
		expect_event(vm, VMM_EV_DOORBELL, 2, 60);
		if (i % 2)
			CALL(vmm_pause(vm, &test_err));
		else
			CALL(vmm_stop(vm, &test_err));
		CALL(vmm_reset(vm, &test_err));
		CHECK_EQ(vmm_state(vm), VMM_NEW);
		CALL(vmm_stat(vm, &st, &test_err));
		in_place += !st.stage_ns[VMM_STAGE_VM];
	}
	/* None of those that were stopped; the others where the kernel can. */
	CHECK(in_place == 0 || in_place == rounds / 2);
	test_note("%u of %u in place", in_place, rounds);
	free(begin);
	vmm_free(vm);
}

static void resets(void)
{
	unpack();
	snprintf(first, sizeof(first), "%s/1", dir);
	test_process(freeze);
	test_process(reset_again);
}

/* Machines of one snapshot run side by side and know nothing of each other; the
   file stays what it was. */
static void side_by_side(void)
{
	struct vmm_snap *s = open_snap(first);
	struct vmm *vm[4];
	unsigned int i;

	for (i = 0; i < 4; i++) {
		vm[i] = restore_snap(s, mode, i & 1 ? VMM_RESUME : 0);
		guest_arg(vm[i], 7, i & 1 ? GO : GO | CLONE);
	}
	for (i = 0; i < 4; i++)
		CALL(vmm_start(vm[i], &test_err));
	vmm_snap_free(s);
	for (i = 0; i < 4; i++)
		expect_event(vm[i], VMM_EV_DOORBELL, 2, 60);
	for (i = 0; i < 4; i++)
		vmm_free(vm[i]);
	CALL(vmm_snap_verify(first, &test_err));
}

static void clones(void)
{
	unpack();
	snprintf(first, sizeof(first), "%s/1", dir);
	test_process(freeze);
	test_process(side_by_side);
}

/* ---- The storm ---------------------------------------------------------------------- */

/* What the guest has done, as the host has seen it: kept from process to process. */
static struct progress {
	unsigned int	round;
	uint64_t	bells[3], bytes, counter[64];
} *seen;

static void take_event(struct vmm *vm, int ms, int *ended)
{
	struct vmm_event ev;
	uint64_t kind;

	CALL(vmm_wait(vm, ms, &ev, &test_err));
	if (ev.type == VMM_EV_NONE)
		return;
	if (ev.type == VMM_EV_SHUTDOWN && ended && ev.value == 0) {
		*ended = 1;
		return;
	}
	if (ev.type != VMM_EV_DOORBELL || (ev.value & GUEST_REPORT_MASK) == GUEST_REPORT)
		test_fail("round %u: event %s 0x%llx %s", seen->round, event_name(ev.type),
			  (unsigned long long)ev.value, ev.detail);
	kind = ev.value >> 32;
	CHECK(kind == 1 || kind == 2);
	if ((uint32_t)ev.value != seen->bells[kind] + 1)
		test_fail("round %u: bell %llu of kind %llu after %llu", seen->round,
			  (unsigned long long)(uint32_t)ev.value, (unsigned long long)kind,
			  (unsigned long long)seen->bells[kind]);
	seen->bells[kind]++;
}

/* Everybody has got on by this much since the freeze. */
static int moved(struct vmm *vm)
{
	uint32_t h;

	for (h = 0; h < harts; h++) {
		if (guest_counter(vm, h) < seen->counter[h] + 10)
			return 0;
		if ((h == 0 || h < harts - 1) &&
		    guest_counter(vm, 32 + h) < seen->counter[32 + h] + 10)
			return 0;
	}
	return 1;
}

static void stuck(struct vmm *vm)
{
	char text[200];
	uint32_t h, n = 0;

	for (h = 0; h < harts; h++)
		n += (uint32_t)snprintf(text + n, sizeof(text) - n, " %llu+%llu/%llu+%llu",
					(unsigned long long)seen->counter[h],
					(unsigned long long)(guest_counter(vm, h) - seen->counter[h]),
					(unsigned long long)seen->counter[32 + h],
					(unsigned long long)(guest_counter(vm, 32 + h) -
							     seen->counter[32 + h]));
	test_fail("round %u: somebody stands still: work/timers%s: %s", seen->round, text,
		  guest_keep(vm));
}

static void check_bytes(struct console *con)
{
	size_t i;

	console_finish(con);
	for (i = 0; i < con->len; i++)
		if (con->text[i] != 'a' + (char)((seen->bytes + i) % 23))
			test_fail("round %u: byte %zu of the console is \"%c\"", seen->round, i,
				  con->text[i]);
	seen->bytes += con->len;
	console_close(con);
}

/* Every thread of this process, vCPUs among them, to some CPU. */
static void shuffle(void)
{
	int cpus = (int)sysconf(_SC_NPROCESSORS_ONLN);
	DIR *d = opendir("/proc/self/task");
	struct dirent *e;
	cpu_set_t set;

	while (d && (e = readdir(d))) {
		CPU_ZERO(&set);
		CPU_SET((size_t)(rand() % cpus), &set);
		if (atoi(e->d_name))
			sched_setaffinity(atoi(e->d_name), sizeof(set), &set);
	}
	if (d)
		closedir(d);
}

/* One process of it: from the start, or a file, to the next file, or the end. */
static void blow(void)
{
	const char *from = seen->round % 2 ? first : second, *to = seen->round % 2 ? second : first;
	uint64_t until = now_ms() + 25000ull * test_options.factor;
	struct console con;
	struct vmm *vm;
	int ended = 0, i, turn = 0;

	console_open(&con);
	srand(seen->round);
	if (seen->round == 0) {
		test_options.irqchip = mode;
		vm = guest_new_io("storm", harts, con.in, con.out);
		guest_arg(vm, 0, test_host()->timebase_hz);
		guest_arg(vm, 1, flags() & FLAG_EARLY);
	} else {
		vm = restore(from, mode, seen->round & 2 ? VMM_RESUME : 0);
		CALL(vmm_add_serial(vm, con.in, con.out, &test_err));
	}
	CALL(vmm_start(vm, &test_err));
	while (!moved(vm)) {
		take_event(vm, 1, NULL);
		if (turn++ % 8 == 0)
			shuffle();
		if (now_ms() > until)
			stuck(vm);
	}
	if (seen->round == rounds) {
		guest_arg(vm, 7, 1);
		while (!ended && now_ms() < until)
			take_event(vm, 10, &ended);
		CHECK(ended);
	} else {
		/* Any moment will do. */
		until = now_ms() + (now_ms() ^ (uint64_t)getpid()) % 16;
		while (now_ms() < until)
			take_event(vm, 1, NULL);
		save(vm, to);
		for (i = 0; i < 300; i++)
			take_event(vm, 0, NULL);
		for (i = 0; i < 64; i++)
			seen->counter[i] = guest_counter(vm, (unsigned int)i);
	}
	vmm_free(vm);
	check_bytes(&con);
}

static void storm(void)
{
	unpack();
	snprintf(first, sizeof(first), "%s/1", dir);
	snprintf(second, sizeof(second), "%s/2", dir);
	seen = mmap(NULL, sizeof(*seen), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(seen != MAP_FAILED);
	for (; seen->round <= rounds; seen->round++)
		test_process(blow);
	test_note("%u rounds, %llu bells, %llu bytes", rounds,
		  (unsigned long long)(seen->bells[1] + seen->bells[2]),
		  (unsigned long long)seen->bytes);
}

/* ---- On other hosts --------------------------------------------------------------- */

static void for_another_host(void)
{
	unpack();
	snprintf(first, sizeof(first), "%s/%s-%u-%u", write_to, test_mode_name(mode), harts,
		 variant);
	test_process(freeze);
}

static void from_another_host(void)
{
	struct vmm_snap *s;
	struct vmm *vm;

	unpack();
	snprintf(first, sizeof(first), "%s/%s-%u-%u", read_from, test_mode_name(mode), harts,
		 variant);
	snprintf(second, sizeof(second), "%s/2", dir);
	if (access(first, R_OK))
		test_skip("no %s", first);
	CALL(vmm_snap_verify(first, &test_err));
	if (refused) {
		CALL(vmm_snap_open(&s, first, &test_err));
		CALL_FAILS(VMM_EVERSION, refused, vmm_restore(&vm, s, NULL, &test_err));
		CHECK(vm == NULL);
		vmm_snap_free(s);
		return;
	}
	test_process(check);
	test_process(finish);
}

/* One that was written when this version of the state was new (-w), and is kept. */
static void golden(void)
{
	struct vmm_snap *s;
	struct vmm *vm;

	unpack();
	snprintf(first, sizeof(first), "tests/golden/machine-1.0.snap");
	snprintf(second, sizeof(second), "%s/2", dir);
	if (access(first, R_OK))
		test_skip("no %s here", first);
	CALL(vmm_snap_verify(first, &test_err));
	s = open_snap(first);
	if (vmm_restore(&vm, s, NULL, &test_err) == VMM_EVERSION)
		test_skip("another host: %s", test_err.message);
	vmm_free(vm);
	vmm_snap_free(s);
	test_process(check);
	test_process(finish);
}

/* ---- The list ----------------------------------------------------------------------- */

#define EMUL	VMM_IRQCHIP_AIA_EMUL
#define HWACCEL	VMM_IRQCHIP_AIA_HWACCEL
#define AUTO	VMM_IRQCHIP_AIA_AUTO

#define LONG	200			/* seconds: longer than any wait in a case */

#define CASES(name, m, t)						\
	{ name "-1-0", in_other_processes, LONG, ARG(m, t, 1, 0) },	\
	{ name "-1-1", in_other_processes, LONG, ARG(m, t, 1, 1) },	\
	{ name "-1-2", in_other_processes, LONG, ARG(m, t, 1, 2) },	\
	{ name "-1-3", in_other_processes, LONG, ARG(m, t, 1, 3) },	\
	{ name "-2-1", in_other_processes, LONG, ARG(m, t, 2, 1) },	\
	{ name "-2-2", in_other_processes, LONG, ARG(m, t, 2, 2) },	\
	{ name "-4-0", in_other_processes, LONG, ARG(m, t, 4, 0) },	\
	{ name "-4-3", in_other_processes, LONG, ARG(m, t, 4, 3) }
#define CROSS(name, m, t) \
	{ name, in_other_processes, LONG, ARG(m, t, 2, 1) }
#define MOVED(name, fn, m, v) \
	{ name, fn, LONG, ARG(m, EMUL, 2, v) }

static const struct test_case cases[] = {
	CASES("emul", EMUL, EMUL),
	{ "emul-single", in_other_processes, LONG, ARG(EMUL, EMUL, 2, SINGLE | 1) },
	CASES("hwaccel", HWACCEL, HWACCEL),
	CASES("auto", AUTO, AUTO),
	CROSS("emul-then-auto", EMUL, AUTO),
	CROSS("emul-then-hwaccel", EMUL, HWACCEL),
	CROSS("auto-then-emul", AUTO, EMUL),
	CROSS("auto-then-hwaccel", AUTO, HWACCEL),
	CROSS("hwaccel-then-emul", HWACCEL, EMUL),
	CROSS("hwaccel-then-auto", HWACCEL, AUTO),
	{ "golden", golden, LONG, ARG(EMUL, EMUL, 2, 3) },
	{ "resets", resets, LONG, ARG(EMUL, EMUL, 2, 0) },
	{ "clones", clones, LONG, ARG(EMUL, EMUL, 1, 0) },
	{ "storm-1", storm, 600, ARG(EMUL, EMUL, 1, 0) },
	{ "storm-2", storm, 600, ARG(EMUL, EMUL, 2, 0) },
	{ "storm-4", storm, 600, ARG(EMUL, EMUL, 4, 0) },
	{ "storm-hwaccel-4", storm, 600, ARG(HWACCEL, HWACCEL, 4, 0) },
	{ "storm-auto-4", storm, 600, ARG(AUTO, AUTO, 4, 0) },
};

static const struct test_case writes[] = {
	MOVED("write-emul-0", for_another_host, EMUL, 0),
	MOVED("write-emul-3", for_another_host, EMUL, 3),
	MOVED("write-auto-1", for_another_host, AUTO, 1),
};

static const struct test_case reads[] = {
	MOVED("read-emul-0", from_another_host, EMUL, 0),
	MOVED("read-emul-3", from_another_host, EMUL, 3),
	MOVED("read-auto-1", from_another_host, AUTO, 1),
};

/* Take "-X VALUE" out of the arguments. */
static const char *option(int *argc, char **argv, const char *name)
{
	const char *value;
	int i;

	for (i = 1; i + 1 < *argc; i++) {
		if (strcmp(argv[i], name) != 0)
			continue;
		value = argv[i + 1];
		*argc -= 2;
		memmove(&argv[i], &argv[i + 2], (size_t)(*argc - i + 1) * sizeof(argv[0]));
		return value;
	}
	return NULL;
}

int main(int argc, char **argv)
{
	const char *n;
	int rc;

	write_to = option(&argc, argv, "-w");
	read_from = option(&argc, argv, "-r");
	refused = option(&argc, argv, "-x");
	all = option(&argc, argv, "-a");
	n = option(&argc, argv, "-n");
	if (n)
		rounds = (unsigned int)atoi(n);
	n = option(&argc, argv, "-g");
	if (n)
		gap = (unsigned int)atoi(n);
	if (!mkdtemp(dir) || (write_to && mkdir(write_to, 0777) && access(write_to, W_OK))) {
		perror(write_to ? write_to : dir);
		return 1;
	}
	if (write_to)
		rc = test_main(argc, argv, writes, sizeof(writes) / sizeof(writes[0]));
	else if (read_from)
		rc = test_main(argc, argv, reads, sizeof(reads) / sizeof(reads[0]));
	else
		rc = test_main(argc, argv, cases, sizeof(cases) / sizeof(cases[0]));
	snprintf(first, sizeof(first), "%s/1", dir);
	snprintf(second, sizeof(second), "%s/2", dir);
	unlink(first);
	unlink(second);
	rmdir(dir);
	return rc;
}
