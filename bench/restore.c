/* SPDX-License-Identifier: MIT */
/*
 * restore.c - how fast machines start from a snapshot: for bench/restore.
 *
 *	restore KIND ROUNDS DIR KERNEL INITRD DISK [GUEST...]
 *
 * KIND is "virtual" (the clock counts instructions) or "wall", whose rows end in
 * ".wall"; or "memory", which is told by those, too.  All that is compared is measured
 * in one run, in turn.  Guests, and how a clone proves itself in each measurement:
 * restore_guests.c.
 *
 *	floor	bare ioctls and two instructions: restore_floor.c
 *	warm	the RAM of the snapshot has been decoded before, by another machine
 *	file	the file is in the page cache, nothing else is there; from the
 *		call of vmm_snap_open() on
 *	pool	a machine waits in a pool; from the call of vmm_pool_take() on
 *	raw	the RAM lies in a memfd, as it is, and is mapped MAP_PRIVATE: there is no
 *		working set, and no mapping that another machine has left.  That is
 *		what restoring from an uncompressed file in the page cache comes to.
 *	reset	a machine that has answered was taken back to its snapshot
 */
#include <err.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <zstd.h>

#include "restore.h"

#define LIVE		200u		/* busybox clones at once */
#define CROWD		100u		/* started as fast as can be */
#define BATCH		48u		/* clones whose memory is told */
#define PAUSE_US	30000		/* until a pool, or the kernel, has done its work */

static const char *dir, *kind;
static struct json_object *rows;

/* Add a row; what it is compared with may be NULL. */
static void add(const char *name, const char *unit, struct samples *s, const char *reference,
		struct samples *ref)
{
	char full[80];

	snprintf(full, sizeof(full), "%s%s", name,
		 strcmp(kind, "wall") || strstr(name, ".wall") ? "" : ".wall");
	row(rows, full, unit, s, reference, ref);
}

static struct vmm_stats stat_of(struct vmm *vm)
{
	struct vmm_stats st = VMM_STATS_INIT;

	check(vmm_stat(vm, &st, &e));
	return st;
}

static struct vmm *clone_of(struct vmm_snap *snap, uint32_t memory)
{
	struct vmm_restore_config how = VMM_RESTORE_INIT;
	struct vmm *vm;

	how.memory = memory;
	check(vmm_restore(&vm, snap, &how, &e));
	return vm;
}

/* A snapshot whose RAM is there. */
static struct vmm_snap *decoded(const struct guest *g, const char *suffix)
{
	struct vmm_snap *snap = guest_open(g, dir, suffix);

	vmm_free(clone_of(snap, VMM_MEM_EAGER));
	return snap;
}

/* ---- One start ------------------------------------------------------------- */

/* What is known of the starts of one kind. */
struct starts {
	struct samples us, free_us, waits, decoded, own, stage[VMM_STAGES], exits[VMM_EXITS];
};

static void note(struct starts *s, struct vmm *vm)
{
	struct vmm_stats st = stat_of(vm);
	double begin;
	int i;

	sample(&s->waits, (double)st.memory_waits);
	sample(&s->decoded, (double)st.memory_decoded);
	sample(&s->own, (double)st.memory_own);
	for (i = 0; i < VMM_STAGES; i++)
		sample(&s->stage[i], (double)st.stage_ns[i] / 1e3);
	for (i = 0; i < VMM_EXITS; i++)
		sample(&s->exits[i], (double)st.exits[i]);
	begin = now_us();
	vmm_free(vm);
	sample(&s->free_us, now_us() - begin);
}

static void start_warm(struct guest *g, struct vmm_snap *snap, struct starts *s)
{
	double begin = now_us();
	struct vmm *vm = clone_of(snap, 0);

	sample(&s->us, guest_go(g, vm) - begin);
	note(s, vm);
}

static void start_raw(struct guest *g, struct starts *s)
{
	struct vmm_snap *snap = guest_open(g, dir, "");
	struct vmm *other = clone_of(snap, VMM_MEM_EAGER);

	/* It has touched all that is touched, and holds on to its mapping. */
	guest_go(g, other);
	check(vmm_stop(other, &e));
	usleep(PAUSE_US);
	start_warm(g, snap, s);
	vmm_free(other);
	vmm_snap_free(snap);
}

static void start_file(struct guest *g, const char *suffix, uint32_t memory, struct starts *s)
{
	double begin = now_us();
	struct vmm_snap *snap = guest_open(g, dir, suffix);
	struct vmm *vm = clone_of(snap, memory);

	sample(&s->us, guest_go(g, vm) - begin);
	note(s, vm);
	vmm_snap_free(snap);
}

static void start_pooled(struct guest *g, struct vmm_pool *pool, struct starts *s)
{
	struct vmm *vm;
	double begin;

	usleep(PAUSE_US);
	begin = now_us();
	check(vmm_pool_take(pool, -1, &vm, &e));
	sample(&s->us, guest_go(g, vm) - begin);
	note(s, vm);
	usleep(PAUSE_US);
}

struct resets {
	struct samples us, answer, both;	/* the call, the answer after it */
};

/* One that has answered, taken back to its snapshot, answers again. */
static void reset(struct guest *g, struct vmm *used, struct resets *s)
{
	double begin, done, answer;

	usleep(PAUSE_US);
	check(vmm_pause(used, &e));
	begin = now_us();
	check(vmm_reset(used, &e));
	done = now_us();
	answer = guest_go(g, used);
	sample(&s->us, done - begin);
	sample(&s->answer, answer - done);
	sample(&s->both, answer - begin);
}

/* ---- Fork ------------------------------------------------------------------- */

static struct samples fork_pause, fork_child;

/* A child of a machine that runs, which goes on. */
static void fork_one(struct guest *g, struct vmm *vm)
{
	struct vmm_snap *snap;
	struct vmm *child;
	double begin = now_us();

	check(vmm_pause(vm, &e));
	check(vmm_snap_take(&snap, vm, &e));
	check(vmm_start(vm, &e));
	sample(&fork_pause, now_us() - begin);
	begin = now_us();
	check(vmm_restore(&child, snap, NULL, &e));
	check(vmm_start(child, &e));
	sample(&fork_child, guest_again(g, child) - begin);
	guest_again(g, vm);
	vmm_free(child);
	vmm_snap_free(snap);
}

/* ---- Many at once ------------------------------------------------------------- */

struct crowd {
	struct guest	*g;
	struct vmm_snap	*snap;
	struct vmm	*vm[CROWD];
	double		us[CROWD];
	unsigned int	next;
};

static void *crowd_thread(void *arg)
{
	static const uint64_t go = 1;
	struct crowd *c = arg;
	unsigned int i;
	double begin;

	while ((i = __atomic_fetch_add(&c->next, 1, __ATOMIC_RELAXED)) < CROWD) {
		begin = now_us();
		c->vm[i] = clone_of(c->snap, 0);
		check(vmm_write(c->vm[i], c->g->word, &go, sizeof(go), &e));
		check(vmm_start(c->vm[i], &e));
		c->us[i] = now_us() - begin;
	}
	return NULL;
}

/* All of them, until the last has shown that it runs. */
static void crowd(struct guest *g, struct vmm_snap *snap, struct samples *all, struct samples *each)
{
	static struct crowd c;
	long cpus = sysconf(_SC_NPROCESSORS_ONLN);
	unsigned int i, n = cpus > 0 && cpus < 16 ? (unsigned int)cpus : 16;
	double begin = now_us(), end = 0, when;
	pthread_t t[16];

	c = (struct crowd){ .g = g, .snap = snap };
	for (i = 0; i < n; i++)
		if (pthread_create(&t[i], NULL, crowd_thread, &c))
			errx(1, "no thread");
	for (i = 0; i < n; i++)
		pthread_join(t[i], NULL);
	for (i = 0; i < CROWD; i++) {
		when = guest_again(g, c.vm[i]);
		end = when > end ? when : end;
		sample(each, c.us[i]);
	}
	sample(all, end - begin);
	for (i = 0; i < CROWD; i++)
		vmm_free(c.vm[i]);
	/* The kernel is not done with them. */
	usleep(10 * PAUSE_US);
}

/* Microseconds for a page that was read to be written: KVM is told, of each machine
   of the process. */
static void cow(struct vmm_snap *snap, uint64_t size, struct samples *s)
{
	struct vmm *vm = clone_of(snap, 0);
	uint64_t gpa = 0x80000000 + size / 2;
	double begin;
	uint8_t byte;
	int i;

	for (i = 0; i < 16; i++, gpa += 4096) {
		check(vmm_read(vm, gpa, &byte, 1, &e));
		begin = now_us();
		check(vmm_write(vm, gpa, &byte, 1, &e));
		sample(s, now_us() - begin);
	}
	vmm_free(vm);
}

/* Clone number 200 against clone number 1: when the others, and the end of the one before,
   have nothing more to do. */
static void live(struct guest *g, struct vmm_snap *snap, int n)
{
	static struct starts first, last;
	static struct samples cow_first, cow_last;
	static struct vmm *vm[LIVE];
	unsigned int i;
	int k;

	for (k = 0; k < n; k++) {
		usleep(PAUSE_US);
		start_warm(g, snap, &first);
	}
	cow(snap, g->memory, &cow_first);
	for (i = 0; i < LIVE - 1; i++) {
		vm[i] = clone_of(snap, 0);
		guest_go(g, vm[i]);
	}
	for (k = 0; k < n; k++) {
		usleep(PAUSE_US);
		start_warm(g, snap, &last);
	}
	cow(snap, g->memory, &cow_last);
	/* None of them has died meanwhile. */
	for (i = 0; i < LIVE - 1; i++) {
		if (vmm_state(vm[i]) != VMM_RUNNING)
			errx(1, "clone %u does not run", i);
		vmm_free(vm[i]);
	}
	add("clone200.vs_clone1", "us", &last.us, "clone 1", &first.us);
	add("cow.200", "us", &cow_last, "with one machine", &cow_first);
}

/* ---- Memory ------------------------------------------------------------------- */

/*
 * What a clone has for itself, all told, as the kernel charges it to a memory cgroup
 * that this process is in: nothing else on the host is in that figure.  What is missing
 * is the 16 KiB of the root of KVM's page tables, which Linux does not charge.
 */
#define CGROUP	"/tmp/restore.cgroup"

enum { ANON, TABLES, STACKS, PERCPU, SLAB, VMALLOC, KERNEL, PARTS };

static const struct { const char *stat, *row; } parts[PARTS] = {
	[ANON] = { "anon", "pages" },		/* its RAM, and the library's memory */
	[TABLES] = { "pagetables", "tables" },
	[STACKS] = { "kernel_stack", "stacks" },
	[PERCPU] = { "percpu", "percpu" },
	[SLAB] = { "slab", "slab" },
	[VMALLOC] = { "vmalloc", "vmalloc" },
	[KERNEL] = { "kernel", "kvm" },		/* without those: KVM's page tables */
};

static int tell(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC), rc;

	rc = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text) ? 0 : -1;
	if (rc)
		warn("%s", path);
	if (fd >= 0)
		close(fd);
	return rc;
}

/* From now on what we take is counted. */
static void enter_cgroup(void)
{
	mkdir(CGROUP, 0755);
	if (mount("none", CGROUP, "cgroup2", 0, NULL) < 0)
		warn("no memory cgroup");
	else if (mkdir(CGROUP "/bench", 0755) < 0)
		warn(CGROUP "/bench");
	else if (tell(CGROUP "/cgroup.subtree_control", "+memory") == 0)
		tell(CGROUP "/bench/cgroup.procs", "0");
}

/* Bytes of each part; 0: there is no cgroup. */
static int charged(double bytes[PARTS])
{
	FILE *f = fopen(CGROUP "/bench/memory.stat", "re");
	unsigned long long v;
	char name[64];
	int i;

	memset(bytes, 0, PARTS * sizeof(*bytes));
	if (!f)
		return 0;
	while (fscanf(f, "%63s %llu", name, &v) == 2)
		for (i = 0; i < PARTS; i++)
			if (strcmp(name, parts[i].stat) == 0)
				bytes[i] = (double)v;
	fclose(f);
	for (i = TABLES; i < KERNEL; i++)
		bytes[KERNEL] -= bytes[i];
	return 1;
}

/* Of clones that have answered. */
static void private_bytes(struct guest *g, struct vmm_snap *snap, int n)
{
	static struct samples part[PARTS], all;
	double before[PARTS], after[PARTS], sum;
	struct vmm *vm[BATCH];
	char name[64];
	unsigned int i;
	int k;

	memset(part, 0, sizeof(part));
	all.n = 0;
	while (n-- && charged(before)) {
		for (i = 0; i < BATCH; i++) {
			vm[i] = clone_of(snap, 0);
			guest_go(g, vm[i]);
		}
		usleep(PAUSE_US);
		charged(after);
		for (k = 0, sum = 0; k < PARTS; k++) {
			sample(&part[k], (after[k] - before[k]) / BATCH);
			sum += (after[k] - before[k]) / BATCH;
		}
		sample(&all, sum);
		for (i = 0; i < BATCH; i++)
			vmm_free(vm[i]);
		/* The kernel is not done with them. */
		usleep(10 * PAUSE_US);
	}
	if (!all.n)
		return;
	snprintf(name, sizeof(name), "clone.%s.private", g->name);
	add(name, "bytes", &all, NULL, NULL);
	for (k = 0; k < PARTS; k++) {
		snprintf(name, sizeof(name), "clone.%s.%s", g->name, parts[k].row);
		add(name, "bytes", &part[k], NULL, NULL);
	}
}

/* ---- References --------------------------------------------------------------- */

static void *pages(size_t n)
{
	void *p = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE,
		       -1, 0);

	if (p == MAP_FAILED)
		err(1, "memory");
	return p;
}

/* The guest's RAM, by ways that everybody knows. */
static void references(struct guest *g, struct vmm_snap *snap)
{
	static struct samples copy, cp, zstd;
	size_t n = g->memory, bound = ZSTD_compressBound(n), packed;
	uint8_t *ram = pages(n), *to = pages(n), *z = pages(bound);
	struct vmm *vm = clone_of(snap, 0);
	double begin;
	int i, fd;

	check(vmm_read(vm, 0x80000000, ram, n, &e));
	vmm_free(vm);
	packed = ZSTD_compress(z, bound, ram, n, 1);
	for (i = 0; i < 3; i++) {
		begin = now_us();
		memcpy(to, ram, n);
		sample(&copy, now_us() - begin);
		begin = now_us();
		fd = memfd_create("cp", 0);
		if (write(fd, ram, n) != (ssize_t)n)
			err(1, "cp");
		sample(&cp, now_us() - begin);
		close(fd);
		begin = now_us();
		if (ZSTD_decompress(to, n, z, packed) != n)
			errx(1, "zstd");
		sample(&zstd, now_us() - begin);
	}
	munmap(ram, n);
	munmap(to, n);
	munmap(z, bound);
	add("reference.memcpy", "us", &copy, NULL, NULL);
	add("reference.cp", "us", &cp, NULL, NULL);
	add("reference.zstd", "us", &zstd, NULL, NULL);
}

/* ---- Rounds ------------------------------------------------------------------- */

static void rounds_stub(int n)
{
	static struct starts warm, file, pooled;
	static struct samples least;
	struct guest *g = &guests[STUB];
	struct vmm_snap *snap = decoded(g, "");
	struct vmm_pool *pool;
	uint8_t *ram = floor_ram(g->memory);

	check(vmm_pool_create(&pool, snap, NULL, &e));
	while (n--) {
		usleep(PAUSE_US);
		sample(&least, floor_program(ram, g->memory));
		usleep(PAUSE_US);
		start_warm(g, snap, &warm);
		start_file(g, "", 0, &file);
		start_pooled(g, pool, &pooled);
	}
	vmm_pool_free(pool);
	vmm_snap_free(snap);
	add("floor", "us", &least, NULL, NULL);
	add("first_instruction.warm", "us", &warm.us, "floor", &least);
	add("first_instruction.pool", "us", &pooled.us, "floor", &least);
	add("first_instruction.file", "us", &file.us, "floor", &least);
}

static void details(struct starts *s)
{
	static const char *const stages[VMM_STAGES] = { "kvm", "vm", "memory", "vcpus", "irqchip",
							"load", "start" };
	static const char *const exits[VMM_EXITS] = { "mmio", "sbi", "csr", "signal", "other",
						      "kernel" };
	char name[64];
	int i;

	for (i = 0; i < VMM_STAGES; i++) {
		snprintf(name, sizeof(name), "stage.%s", stages[i]);
		add(name, "us", &s->stage[i], NULL, NULL);
	}
	for (i = 0; i < VMM_EXITS; i++) {
		snprintf(name, sizeof(name), "exits.%s", exits[i]);
		add(name, "count", &s->exits[i], NULL, NULL);
	}
	add("free", "us", &s->free_us, NULL, NULL);
}

static void rounds_busybox(int n)
{
	static struct starts warm, raw, pooled, file, eager;
	static struct samples boot, all, each;
	struct guest *g = &guests[BUSYBOX];
	struct vmm_snap *snap = decoded(g, ".ws"), *plain = decoded(g, "");
	struct vmm_pool *pool;
	int i;

	check(vmm_pool_create(&pool, snap, NULL, &e));
	for (i = 0; i < n; i++) {
		start_warm(g, snap, &warm);
		start_raw(g, &raw);
		start_pooled(g, pool, &pooled);
		start_file(g, ".ws", 0, &file);
		if (i % 4 == 0)
			start_file(g, "", VMM_MEM_EAGER, &eager);
		if (i % 10 == 0) {
			vmm_free(guest_boot(g));
			sample(&boot, g->boot_us);
			crowd(g, snap, &all, &each);
		}
	}
	vmm_pool_free(pool);
	add("next_action.warm", "us", &warm.us, "boot", &boot);
	add("next_action.raw", "us", &raw.us, "boot", &boot);
	add("next_action.pool", "us", &pooled.us, "boot", &boot);
	add("next_action.file", "us", &file.us, "boot", &boot);
	add("next_action.eager", "us", &eager.us, "boot", &boot);
	if (strcmp(kind, "wall") == 0)
		add("answer.busybox.file.wall", "us", &file.us, "boot", &boot);
	add("clones.100", "us", &all, NULL, NULL);
	add("clones.100.each", "us", &each, NULL, NULL);
	details(&warm);
	private_bytes(g, snap, 3);
	add("clone.busybox.own", "bytes", &warm.own, "raw MAP_PRIVATE, warm", &raw.own);
	live(g, snap, n < 10 ? n : 10);
	references(g, plain);
	vmm_snap_free(plain);
	vmm_snap_free(snap);
}

static void rounds_python(int n, double boot_us)
{
	static struct starts warm, raw, pooled, file;
	static struct samples boot, restores, ws;
	static struct resets again;
	struct guest *g = &guests[PYTHON];
	struct vmm_snap *snap = decoded(g, ".ws");
	struct vmm_snap_info info = VMM_SNAP_INFO_INIT;
	struct vmm *used = clone_of(snap, 0), *parent = clone_of(snap, 0);
	struct vmm_pool *pool;
	struct vmm *vm;
	double begin;
	int i;

	sample(&boot, boot_us);
	check(vmm_snap_info(snap, &info, &e));
	sample(&ws, 4096.0 * info.working_set);
	guest_go(g, used);
	guest_go(g, parent);
	check(vmm_pool_create(&pool, snap, NULL, &e));
	for (i = 0; i < n; i++) {
		start_raw(g, &raw);
		start_warm(g, snap, &warm);
		start_file(g, ".ws", 0, &file);
		start_pooled(g, pool, &pooled);
		begin = now_us();
		vm = clone_of(snap, 0);
		sample(&restores, now_us() - begin);
		vmm_free(vm);
		reset(g, used, &again);
		if (i % 3 == 0)
			fork_one(g, parent);
	}
	vmm_free(used);
	vmm_free(parent);
	vmm_pool_free(pool);
	private_bytes(g, snap, 3);
	add("answer.python.raw", "us", &raw.us, "boot", &boot);
	add("answer.python.warm", "us", &warm.us, "raw MAP_PRIVATE, warm", &raw.us);
	add("answer.python.pool", "us", &pooled.us, "raw MAP_PRIVATE, warm", &raw.us);
	add("answer.python.file", "us", &file.us, "raw MAP_PRIVATE, warm", &raw.us);
	add("answer.python.vs_boot", "us", &file.us, "boot", &boot);
	add("decode_amplification", "bytes", &file.decoded, "working set", &ws);
	add("demand_faults", "count", &file.waits, NULL, NULL);
	add("clone.python.own", "bytes", &warm.own, "raw MAP_PRIVATE, warm", &raw.own);
	add("fork.pause", "us", &fork_pause, NULL, NULL);
	add("fork.child", "us", &fork_child, NULL, NULL);
	add("reset.vs_restore", "us", &again.us, "restore", &restores);
	/* A restore puts off what a reset has done. */
	add("reset.answer.vs_restore", "us", &again.both, "restore to answer", &warm.us);
	add("answer.python.reset", "us", &again.answer, "raw MAP_PRIVATE, warm", &raw.us);
	vmm_snap_free(snap);
}

/* Nothing but what clones take, which needs few rounds. */
static void memory(struct guest *g, int n)
{
	struct vmm_snap *snap = decoded(g, ".ws");

	private_bytes(g, snap, n);
	vmm_snap_free(snap);
}

int main(int argc, char **argv)
{
	struct rlimit files = { 65536, 65536 };
	struct guest *g;
	int i, n, some;

	if (argc < 7)
		errx(2, "usage: restore KIND ROUNDS DIR KERNEL INITRD DISK [GUEST...]");
	kind = argv[1];
	n = atoi(argv[2]);
	dir = argv[3];
	guests[BUSYBOX].kernel = guests[PYTHON].kernel = argv[4];
	guests[BUSYBOX].initrd = argv[5];
	guests[PYTHON].disk = argv[6];
	if (setrlimit(RLIMIT_NOFILE, &files))
		err(1, "descriptors for %u machines", LIVE);
	enter_cgroup();
	rows = json_object_new_array();
	for (g = guests; g < guests + GUESTS; g++) {
		for (i = 7, some = argc == 7; i < argc; i++)
			some |= strcmp(argv[i], g->name) == 0;
		if (!some)
			continue;
		guest_freeze(g, guest_boot(g), dir);
		guest_learn(g, dir);
		fprintf(stderr, "%s: %.3f s from power-on to the answer\n", g->name, g->boot_us / 1e6);
		if (strcmp(kind, "memory") == 0)
			memory(g, n);
		else if (g == &guests[STUB])
			rounds_stub(n);
		else if (g == &guests[BUSYBOX])
			rounds_busybox(n);
		else
			rounds_python(n, g->boot_us);
	}
	print_results(host_info(), rows);
	return 0;
}
