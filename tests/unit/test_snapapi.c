/* SPDX-License-Identifier: MIT */
/*
 * test_snapapi.c - snapshots of clones, diffs, merging, receiving, and what a
 * snapshot tells of itself, by the public interface.
 *
 * A machine's RAM is a few pages that the tests know; each snapshot must give
 * back what its machine had when it was taken, whichever way it went.
 */
#include "rig.h"

#include <sys/stat.h>

#include "../../core/mem.h"
#include "../../snapshot/snapfile.h"
#include "../../vmm_impl.h"

#define MiB	(1ull << 20)
#define PAGE(n)	(MAP_RAM + MiB + 4096ull * (n))
#define PAGES	64u

static struct vmm_error err;
static char dir[] = "/tmp/test_snapapi.XXXXXX";

static int setup(void **state)
{
	rig_setup(state);
	strcpy(dir, "/tmp/test_snapapi.XXXXXX");
	return mkdtemp(dir) ? chdir(dir) : -1;
}

static int teardown(void **state)
{
	static const char *const names[] = { "base", "diff", "diff2", "flat", "full", "copy" };
	unsigned int i;

	for (i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		unlink(names[i]);
	assert_int_equal(chdir("/"), 0);
	assert_int_equal(rmdir(dir), 0);
	return rig_teardown(state);
}

static void put(struct vmm *vm, unsigned int page, const char *text)
{
	assert_ok(vmm_write(vm, PAGE(page), text, strlen(text) + 1, &err));
}

/* Pages 0, 1 ... of RAM hold these texts; "" is all zeroes. */
static void has(struct vmm *vm, const char *const *text, unsigned int n)
{
	char buf[4096], want[4096];
	unsigned int i;

	for (i = 0; i < n; i++) {
		assert_ok(vmm_read(vm, PAGE(i), buf, sizeof(buf), &err));
		memset(want, 0, sizeof(want));
		strcpy(want, text[i]);
		if (memcmp(buf, want, sizeof(buf)) != 0)
			fail_msg("page %u: '%s', not '%s'", i, buf, want);
	}
}

static struct vmm_snap *take(struct vmm *vm)
{
	struct vmm_snap *s;

	assert_ok(vmm_snap_take(&s, vm, &err));
	return s;
}

static void run(struct vmm *vm)
{
	assert_ok(vmm_start(vm, &err));
	assert_ok(vmm_pause(vm, &err));
}

/* A clone that has run, and is PAUSED. */
static struct vmm *cloned(struct vmm_snap *s)
{
	struct vmm *vm;

	assert_ok(vmm_restore(&vm, s, NULL, &err));
	run(vm);
	return vm;
}

static void write_to(struct vmm_snap *s, const char *path, const char *parent)
{
	struct vmm_write_config how = VMM_WRITE_INIT;

	how.parent = parent;
	assert_ok(vmm_snap_write(s, path, &how, &err));
}

static struct vmm_snap *opened(const char *path)
{
	struct vmm_snap *s;

	assert_ok(vmm_snap_open(&s, path, &err));
	return s;
}

static struct vmm_snap_info info_of(const struct vmm_snap *s)
{
	struct vmm_snap_info info = VMM_SNAP_INFO_INIT;

	assert_ok(vmm_snap_info(s, &info, &err));
	return info;
}

/* The machine in a file has these pages. */
static void file_has(const char *path, const char *const *text, unsigned int n)
{
	struct vmm_snap *s = opened(path);
	struct vmm *vm = cloned(s);

	has(vm, text, n);
	vmm_free(vm);
	vmm_snap_free(s);
	assert_ok(vmm_snap_verify(path, &err));
}

static struct vmm *original(void)
{
	struct vmm *vm = rig_vmm(1);
	unsigned int i;
	char text[32];

	assert_ok(vmm_add_serial(vm, -1, -1, &err));
	assert_ok(vmm_add_rng(vm, "dice", &err));
	for (i = 0; i < PAGES; i++) {
		snprintf(text, sizeof(text), "page %u", i);
		put(vm, i, text);
	}
	run(vm);
	return vm;
}

static const char *const base_text[] = { "page 0", "page 1", "page 2", "page 3" };
static const char *const clone_text[] = { "page 0", "changed", "", "page 3" };

/* A clone whose pages are clone_text: one written, one given back to the host. */
static struct vmm *changed(struct vmm_snap *base)
{
	struct vmm *vm = cloned(base);
	struct mem *m = &rig_inside(vm)->mem;

	put(vm, 1, "changed");
	assert_int_equal(mem_discard(m, mem_get(m, PAGE(2), 4096), 4096), 0);
	return vm;
}

/* Taking it copies what the clone has changed, and no more. */
static void test_take(void **state)
{
	int before = fds();
	struct vmm *vm = original(), *a, *b;
	struct vmm_snap *base = take(vm), *s, *s2;
	struct stat st;

	(void)state;
	vmm_free(vm);
	a = changed(base);
	s = take(a);
	assert_int_equal(fstat(s->delta, &st), 0);
	assert_in_range(st.st_blocks * 512, 4096, 16 * 4096);
	assert_null(s->source);
	/* Later changes are not in it; and it outlives what it stands on. */
	put(a, 0, "later");
	s2 = take(a);
	vmm_free(a);
	vmm_snap_free(base);
	a = cloned(s);
	has(a, clone_text, 4);
	assert_null(s->source);			/* few pages: laid over the base's */
	vmm_free(a);
	s->light = 0;
	a = cloned(s);
	has(a, clone_text, 4);
	assert_null(s->base);			/* whole by now */
	b = cloned(s2);
	has(b, (const char *const[]){ "later", "changed", "", "page 3" }, 4);
	vmm_free(a);
	vmm_free(b);
	vmm_snap_free(s);
	vmm_snap_free(s2);
	assert_int_equal(fds(), before);
}

/* Written whole, though most of it was never looked at. */
static void test_full(void **state)
{
	int before = fds();
	struct vmm *vm = original(), *a;
	struct vmm_snap *base = take(vm), *s;

	(void)state;
	a = changed(base);
	s = take(a);
	write_to(s, "full", NULL);
	assert_null(s->source);
	vmm_snap_free(base);
	vmm_snap_free(s);
	vmm_free(a);
	vmm_free(vm);
	file_has("full", clone_text, 4);
	assert_int_equal(fds(), before);
}

/* A diff is small, whoever finds what has changed; merged it stands alone. */
static void test_diff(void **state)
{
	int before = fds();
	struct vmm *vm = original(), *a;
	struct vmm_snap *base = take(vm), *s;
	struct vmm_snap_info info, diff;

	(void)state;
	write_to(base, "base", NULL);
	/* 1: the kernel knows the clone's pages.  Twice: as a view, then whole. */
	a = changed(base);
	s = take(a);
	write_to(s, "diff", "base");
	file_has("diff", clone_text, 4);
	s->light = 0;
	vmm_free(cloned(s));
	assert_null(s->base);
	write_to(s, "diff", "base");
	file_has("diff", clone_text, 4);
	vmm_snap_free(s);
	s = opened("diff");
	diff = info_of(s);
	assert_int_equal(diff.parents, 1);
	assert_non_null(strstr(vmm_snap_parent(s, 0), "/base"));
	assert_null(vmm_snap_parent(s, 1));
	vmm_snap_free(s);
	s = opened("base");
	info = info_of(s);
	assert_true(diff.ram_own < info.ram_own && diff.ram_own <= 4096 + 64);
	assert_in_range(diff.ram_parents, 1, info.ram_own);
	/* 2: of the original, which is no clone, by comparing. */
	vmm_snap_free(s);
	put(vm, 3, "original");
	s = take(vm);
	write_to(s, "diff2", "base");
	file_has("diff2", (const char *const[]){ "page 0", "page 1", "page 2", "original" }, 4);
	vmm_snap_free(s);
	/* 3: on a diff; its base is another file than that of the clone. */
	put(a, 3, "again");
	s = take(a);
	write_to(s, "diff2", "diff");
	assert_in_range(info_of(s).file_size, 0, 0);
	vmm_snap_free(s);
	file_has("diff2", (const char *const[]){ "page 0", "changed", "", "again" }, 4);
	/* Merged, it needs neither. */
	assert_ok(vmm_snap_merge("diff2", "flat", NULL, &err));
	unlink("base");
	assert_fails(vmm_snap_open(&s, "diff2", &err), VMM_ESYS, "base");
	file_has("flat", (const char *const[]){ "page 0", "changed", "", "again" }, 4);
	s = opened("flat");
	assert_int_equal(info_of(s).parents, 0);
	assert_memory_not_equal(info_of(s).uuid, diff.uuid, 16);
	vmm_snap_free(s);
	vmm_snap_free(base);
	vmm_free(a);
	vmm_free(vm);
	assert_int_equal(fds(), before);
}

static void test_parent_errors(void **state)
{
	struct vmm_write_config how = VMM_WRITE_INIT;
	int before = fds();
	struct vmm *vm = original();
	struct vmm_snap *base = take(vm);

	(void)state;
	write_to(base, "base", NULL);
	write_to(base, "diff", "base");
	how.parent = "missing";
	assert_fails(vmm_snap_write(base, "diff2", &how, &err), VMM_ESYS, "missing");
	how.parent = "/dev/null";
	assert_fails(vmm_snap_write(base, "diff2", &how, &err), VMM_EFORMAT, "/dev/null");
	how.parent = "base";
	assert_fails(vmm_snap_write(base, "base", &how, &err), VMM_EINVAL, "stands on");
	how.parent = "diff";
	assert_fails(vmm_snap_write(base, "base", &how, &err), VMM_EINVAL, "stands on");
	assert_ok(vmm_snap_verify("base", &err));
	assert_fails(vmm_snap_merge(NULL, "flat", NULL, &err), VMM_EINVAL, "no path");
	assert_fails(vmm_snap_merge("base", NULL, NULL, &err), VMM_EINVAL, "nowhere");
	assert_fails(vmm_snap_merge("base", "flat", &how, &err), VMM_EINVAL, "no parent");
	assert_fails(vmm_snap_merge("missing", "flat", NULL, &err), VMM_ESYS, "missing");
	assert_int_equal(access("flat", F_OK), -1);
	vmm_snap_free(base);
	vmm_free(vm);
	assert_int_equal(fds(), before);
}

static void *sending(void *arg)
{
	int fd = *(int *)arg;
	struct vmm_error e;
	struct vmm *vm;
	struct vmm_snap *s;

	/* cmocka's asserts are the main thread's. */
	if (vmm_snap_open(&s, "base", &e))
		return NULL;
	if (vmm_restore(&vm, s, NULL, &e) == 0) {
		vmm_free(vm);
		vmm_snap_send(s, fd, NULL, &e);
	}
	vmm_snap_free(s);
	close(fd);
	return NULL;
}

static void test_receive(void **state)
{
	int before = fds(), p[2], fd;
	struct vmm *vm = original();
	struct vmm_snap *s = take(vm), *r;
	pthread_t t;

	(void)state;
	write_to(s, "base", NULL);
	assert_int_equal(pipe2(p, O_CLOEXEC), 0);
	pthread_create(&t, NULL, sending, &p[1]);
	assert_ok(vmm_snap_receive(&r, p[0], &err));
	pthread_join(t, NULL);
	close(p[0]);
	assert_memory_equal(info_of(r).uuid, info_of(s).uuid, 16);
	vmm_free(vm);
	vm = cloned(r);
	has(vm, base_text, 4);
	vmm_free(vm);
	vmm_snap_free(r);
	vmm_snap_free(s);
	fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
	assert_fails(vmm_snap_receive(&r, fd, &err), VMM_EFORMAT, "received");
	assert_null(r);
	close(fd);
	assert_fails(vmm_snap_receive(&r, -1, &err), VMM_EINVAL, "no descriptor");
	assert_fails(vmm_snap_receive(NULL, 0, &err), VMM_EINVAL, "nowhere");
	assert_int_equal(fds(), before);
}

static void test_info(void **state)
{
	static const char *const want[][2] = {
		{ "rtc", "rtc" }, { "vmgenid", "" }, { "doorbell", "" }, { "serial", "serial" },
		{ "rng", "dice" },
	};
	struct {
		struct vmm_snap_info i;
		uint8_t		tail[8];
	} large = { .i = VMM_SNAP_INFO_INIT };
	struct vmm *vm = original();
	struct vmm_snap *s = take(vm), *f;
	struct vmm_snap_device d;
	struct vmm_snap_info a, b;
	unsigned int i;

	(void)state;
	a = info_of(s);
	assert_int_equal(a.vcpus, 1);
	assert_int_equal(a.memory, 4 * MiB);
	assert_int_equal(a.file_size | a.created | a.ram_used | a.parents, 0);
	assert_int_equal(a.timebase_hz, fake.hz);
	assert_int_equal(a.vlenb, fake.vlenb);
	assert_int_equal(memcmp(a.isa, "rv64ima", 7), 0);
	write_to(s, "base", NULL);
	f = opened("base");
	b = info_of(f);
	assert_memory_equal(a.uuid, b.uuid, 16);
	assert_string_equal(a.isa, b.isa);
	assert_in_range(b.ram_used, PAGES * 4096, 2 * MiB);
	assert_in_range(b.created, (uint64_t)time(NULL) - 100, (uint64_t)time(NULL));
	assert_true(b.file_size > b.ram_own && b.ram_own > 0);
	assert_int_equal(b.format_major, 1);
	assert_int_equal(b.working_set, 0);
	assert_true(*b.kernel >= '0' && *b.kernel <= '9');
	assert_int_equal(a.devices, 5);
	assert_int_equal(b.devices, 5);
	for (i = 0; i < 5; i++) {
		assert_ok(vmm_snap_device(f, i, &d, &err));
		assert_string_equal(d.type, want[i][0]);
		if (*want[i][1])
			assert_string_equal(d.name, want[i][1]);
	}
	assert_fails(vmm_snap_device(f, 5, &d, &err), VMM_EINVAL, "device 5 of 5");
	assert_int_equal(*d.type, 0);
	assert_fails(vmm_snap_device(NULL, 0, &d, &err), VMM_EINVAL, "no snapshot");
	assert_fails(vmm_snap_device(f, 0, NULL, &err), VMM_EINVAL, "nowhere");
	assert_null(vmm_snap_parent(f, 0));
	assert_null(vmm_snap_parent(s, 0));
	assert_null(vmm_snap_parent(NULL, 0));
	assert_fails(vmm_snap_info(f, NULL, &err), VMM_EINVAL, "struct vmm_snap_info");
	assert_fails(vmm_snap_info(NULL, &a, &err), VMM_EINVAL, "no snapshot");
	large.i.size = sizeof(large);
	assert_ok(vmm_snap_info(f, &large.i, &err));
	assert_int_equal(large.i.memory, 4 * MiB);
	vmm_snap_free(f);
	vmm_snap_free(s);
	vmm_free(vm);
}

/* Sections as in *s, with one more, or one of another version, or without one. */
static void forge(const struct vmm_snap *s, const char *skip, const char *add, uint16_t flags,
		  uint16_t version)
{
	const struct snap_region region = { .gpa = MAP_RAM, .size = s->size };
	struct snap_section sections[32];
	struct snap_image image = { .regions = &region, .nregions = 1, .sections = sections };
	uint32_t i;

	for (i = 0; i < s->nsections; i++) {
		if (strcmp(s->sections[i].name, skip) == 0)
			continue;
		sections[image.nsections] = s->sections[i];
		if (version && strcmp(s->sections[i].name, "machine") == 0)
			sections[image.nsections].version = version;
		image.nsections++;
	}
	if (*add)
		sections[image.nsections++] = (struct snap_section){ add, 1, flags, "x", 1 };
	image.ram = (struct snap_ram){ .size = s->size, .fd = s->source->fd };
	assert_ok(snapfile_write("copy", &image, NULL, &err));
}

static int asked(const char *function)
{
	(void)function;
	return ENOSYS;
}

/* KVM is not asked, nor any RAM decoded. */
static void refuses(int code, const char *text)
{
	int before = fds();
	struct vmm_snap *s = opened("copy");
	struct vmm *vm;

	fake.fault = asked;
	assert_fails(vmm_restore(&vm, s, NULL, &err), code, text);
	fake.fault = NULL;
	assert_null(vm);
	assert_null(s->source);
	vmm_snap_free(s);
	assert_int_equal(fds(), before);
}

/* What a restore would not understand, or would miss, is named at once. */
static void test_sections(void **state)
{
	struct vmm *vm = original();
	struct vmm_snap *s = take(vm), *f;
	int before, i;

	(void)state;
	vmm_free(vm);
	forge(s, "", "device.gpu0", SNAP_MUST_UNDERSTAND, 0);
	refuses(VMM_EVERSION, "section device.gpu0, version 1, is not understood");
	forge(s, "", "cpu1", SNAP_MUST_UNDERSTAND, 0);
	refuses(VMM_EVERSION, "section cpu1");
	forge(s, "cpu0", "", 0, 0);
	refuses(VMM_EFORMAT, "no state of cpu0");
	forge(s, "device.dice", "", 0, 0);
	refuses(VMM_EFORMAT, "no state of device.dice");
	forge(s, "machine", "", 0, 0);
	refuses(VMM_EFORMAT, "no state of machine");
	forge(s, "", "", 0, 2);
	refuses(VMM_EVERSION, "machine is of version 2");
	/* What may be ignored is. */
	forge(s, "", "note", 0, 0);
	f = opened("copy");
	vm = cloned(f);
	has(vm, base_text, 4);
	vmm_free(vm);
	vmm_snap_free(f);
	/* A kind of device that there is not. */
	memcpy(memmem(s->sections[0].data, s->sections[0].len, "rng", 3), "gpu", 3);
	for (i = 0; i < 2; i++) {	/* the first opens what stays with s */
		before = fds();
		assert_fails(vmm_restore(&vm, s, NULL, &err), VMM_EVERSION, "unknown type \"gpu\"");
		assert_null(vm);
	}
	assert_int_equal(fds(), before);
	vmm_snap_free(s);
}

/* The host is looked at once, before any vCPU is changed. */
static void test_hosts(void **state)
{
	struct vmm *vm = original();
	struct vmm_snap *s = take(vm);
	int before;

	(void)state;
	vmm_free(vm);
	before = fds();
	fake.isa[0] &= ~(1ull << ISA_V);
	fake.isa[0] &= ~(1ull << ISA_SSTC);
	assert_fails(vmm_restore(&vm, s, NULL, &err), VMM_EVERSION, "this host lacks: v_sstc");
	fake.isa[0] |= 1ull << ISA_V | 1ull << ISA_SSTC;
	assert_int_equal(fds(), before + 1);		/* the snapshot has KVM open */
	vmm_free(cloned(s));
	vmm_snap_free(s);
}

int main(void)
{
#define T(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(test_take), T(test_full), T(test_diff), T(test_parent_errors), T(test_receive),
		T(test_info), T(test_sections), T(test_hosts),
	};

	time_limit(30);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
