/* SPDX-License-Identifier: MIT */
/*
 * test_fdt.c - riscv/fdt.c: the device tree, read back with libfdt, and by dtc
 * where it is installed.
 */
#include "rig.h"

#include <libfdt.h>

#include "../../riscv/fdt.h"

static struct vmm_error err;
static struct machine m;
static uint8_t *tree;
static size_t len;

static int build(const char *cmdline, const char *spec, uint64_t initrd, uint64_t size)
{
	struct isa host = { { fake.isa[0], fake.isa[1] } }, isa;
	struct fdt_config cfg = { .cmdline = cmdline, .isa = &isa, .initrd = initrd,
				  .initrd_size = size };
	size_t room;
	int rc;

	assert_ok(isa_choose(spec, &host, &isa, &err));
	free(tree);
	room = fdt_room(&m, &cfg);
	tree = malloc(room);
	memset(tree, 0xee, room);
	rc = fdt_build(&m, &cfg, tree, room, &len, &err);
	if (rc)
		return rc;
	/* Nothing behind its end is read or needed. */
	assert_true(len <= room);
	tree = realloc(tree, len);
	return 0;
}

static void make(uint32_t vcpus)
{
	rig_make(&m, vcpus, 0);
	assert_ok(rtc_add(&m, &err));
	assert_ok(genid_add(&m, &err));
	assert_ok(doorbell_add(&m, &err));
	assert_ok(uart_add(&m, -1, -1, &err));
}

static int setup(void **state)
{
	(void)state;
	fake_reset();
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	rig_free(&m);
	free(tree);
	tree = NULL;
	return 0;
}

static int at(const char *path)
{
	int node = fdt_path_offset(tree, path);

	if (node < 0)
		fail_msg("no node %s: %s", path, fdt_strerror(node));
	return node;
}

static const char *text(const char *path, const char *name)
{
	const char *p;
	int n;

	p = fdt_getprop(tree, at(path), name, &n);
	if (!p || !n || p[n - 1])
		fail_msg("%s: no string %s", path, name);
	return p;
}

static uint32_t cell(const char *path, const char *name, unsigned int i)
{
	const fdt32_t *p;
	int n;

	p = fdt_getprop(tree, at(path), name, &n);
	if (!p || n % 4 || (unsigned int)n / 4 <= i)
		fail_msg("%s: no cell %u of %s", path, i, name);
	return fdt32_to_cpu(p[i]);
}

static uint64_t wide(const char *path, const char *name, unsigned int i)
{
	return (uint64_t)cell(path, name, 2 * i) << 32 | cell(path, name, 2 * i + 1);
}

static int has(const char *path, const char *name)
{
	return fdt_getprop(tree, at(path), name, NULL) != NULL;
}

/* libfdt's own check, and what dtc reads over but others do not: properties
   come before subnodes (Devicetree specification 0.4, 5.4.2). */
static void check_structure(void)
{
	int depth = 0, off = 0, next, had_child[32] = { 0 };
	uint32_t tag;

	assert_int_equal(fdt_check_full(tree, len), 0);
	assert_int_equal(fdt_totalsize(tree), len);
	assert_int_equal((uintptr_t)tree % 8, 0);
	do {
		tag = fdt_next_tag(tree, off, &next);
		if (tag == FDT_BEGIN_NODE) {
			had_child[depth++] = 1;
			had_child[depth] = 0;
		} else if (tag == FDT_END_NODE) {
			depth--;
		} else if (tag == FDT_PROP) {
			assert_false(had_child[depth]);
		}
		off = next;
	} while (tag != FDT_END);
	assert_int_equal(depth, 0);
}

/* Every phandle is one node's only, and all that is pointed to is there. */
static void check_phandles(void)
{
	static const char *const refs[] = { "interrupt-parent", "msi-parent" };
	int node, n;
	uint32_t ph;
	unsigned int i;

	for (node = 0; node >= 0; node = fdt_next_node(tree, node, NULL)) {
		ph = fdt_get_phandle(tree, node);
		if (ph)
			assert_int_equal(fdt_node_offset_by_phandle(tree, ph), node);
		for (i = 0; i < 2; i++) {
			const fdt32_t *p = fdt_getprop(tree, node, refs[i], &n);

			if (!p)
				continue;
			n = fdt_node_offset_by_phandle(tree, fdt32_to_cpu(*p));
			assert_true(n >= 0);
			assert_non_null(fdt_getprop(tree, n, "interrupt-controller", NULL));
		}
	}
}

/* The compiler that knows them best has nothing to say about it, but that
   interrupt controllers might have an #address-cells, which nothing needs. */
static void check_dtc(void)
{
	char path[] = "/tmp/test_fdt.XXXXXX", cmd[160], said[200] = "";
	int fd = mkstemp(path);
	FILE *p;

	if (system("command -v dtc >/dev/null 2>&1") == 0) {
		assert_int_equal(write(fd, tree, len), (ssize_t)len);
		snprintf(cmd, sizeof(cmd),
			 "dtc -W no-interrupt_provider -I dtb -O dts -o /dev/null %s 2>&1", path);
		p = popen(cmd, "r");
		said[fread(said, 1, sizeof(said) - 1, p)] = 0;
		pclose(p);
	}
	close(fd);
	unlink(path);
	assert_string_equal(said, "");
}

static void check_all(void)
{
	check_structure();
	check_phandles();
	check_dtc();
}

static void test_tree(void **state)
{
	(void)state;
	make(1);
	assert_ok(build("console=ttyS0 \"quoted\"", NULL, 0, 0));
	check_all();
	assert_string_equal(text("/", "compatible"), "linux,dummy-virt");
	assert_string_equal(text("/chosen", "bootargs"), "console=ttyS0 \"quoted\"");
	assert_string_equal(text("/chosen", "stdout-path"), "/soc/serial@10000000");
	at(text("/chosen", "stdout-path"));
	assert_false(has("/chosen", "linux,initrd-start"));
	assert_int_equal(wide("/memory@80000000", "reg", 0), MAP_RAM);
	assert_int_equal(wide("/memory@80000000", "reg", 1), RIG_RAM);
	assert_string_equal(text("/memory@80000000", "device_type"), "memory");
	assert_int_equal(cell("/cpus", "timebase-frequency", 0), fake.hz);
	assert_string_equal(text("/cpus/cpu@0", "mmu-type"), "riscv,sv48");
	assert_string_equal(text("/cpus/cpu@0", "riscv,isa-base"), "rv64i");
	assert_string_equal(text("/cpus/cpu@0", "riscv,isa"), "rv64imafdcv_svpbmt_sstc_svinval_"
			    "zihintpause_zicbom_zicboz_zbb_ssaia_svnapot_zba_zbs_zicntr_zicsr_"
			    "zifencei_zicbop");
	assert_int_equal(cell("/cpus/cpu@0", "riscv,cbom-block-size", 0), 64);
	assert_int_equal(cell("/cpus/cpu@0", "riscv,cboz-block-size", 0), 64);
	assert_int_equal(cell("/cpus/cpu@0", "riscv,cbop-block-size", 0), 64);
}

/* The seed is fresh in every tree. */
static void test_seed(void **state)
{
	uint8_t seed[64];
	const void *p;
	int n;

	(void)state;
	make(1);
	assert_ok(build(NULL, NULL, 0, 0));
	assert_string_equal(text("/chosen", "bootargs"), "");
	p = fdt_getprop(tree, at("/chosen"), "rng-seed", &n);
	assert_int_equal(n, 64);
	memcpy(seed, p, 64);
	assert_ok(build(NULL, NULL, 0, 0));
	p = fdt_getprop(tree, at("/chosen"), "rng-seed", &n);
	assert_memory_not_equal(seed, p, 64);
}

static void test_initrd(void **state)
{
	(void)state;
	make(1);
	assert_ok(build("", NULL, MAP_RAM + 0x100000, 12345));
	assert_int_equal(wide("/chosen", "linux,initrd-start", 0), MAP_RAM + 0x100000);
	assert_int_equal(wide("/chosen", "linux,initrd-end", 0), MAP_RAM + 0x100000 + 12345);
}

/* Each device is where the bus has it, with the line it pulses. */
static void test_devices(void **state)
{
	struct device *d;
	char path[80];

	(void)state;
	make(2);
	assert_ok(build(NULL, NULL, 0, 0));
	for (d = m.devices; d; d = d->next) {
		snprintf(path, sizeof(path), "/soc/%s@%llx", d->ops->type,
			 (unsigned long long)d->gpa);
		assert_string_equal(text(path, "compatible"), d->compatible);
		assert_int_equal(wide(path, "reg", 0), d->gpa);
		assert_int_equal(wide(path, "reg", 1), d->size);
		assert_int_equal(has(path, "interrupts"), d->irq.line != 0);
		if (d->irq.line) {
			assert_int_equal(cell(path, "interrupts", 0), d->irq.line);
			assert_int_equal(cell(path, "interrupts", 1), 1);	/* rising edge */
		}
	}
	assert_string_equal(text("/soc/serial@10000000", "compatible"), "ns16550a");
	assert_true(cell("/soc/serial@10000000", "clock-frequency", 0) > 0);
	/* The generation id lies behind the RAM, where no memory node is. */
	assert_int_equal(wide("/soc/vmgenid@80400000", "reg", 0), MAP_RAM + RIG_RAM);
	assert_int_equal(cell("/soc", "interrupt-parent", 0),
			 fdt_get_phandle(tree, at("/interrupt-controller@d000000")));
}

static void check_harts(uint32_t n)
{
	char path[80];
	uint32_t i;

	for (i = 0; i < n; i++) {
		snprintf(path, sizeof(path), "/cpus/cpu@%x", i);
		assert_int_equal(cell(path, "reg", 0), i);
		assert_string_equal(text(path, "status"), "okay");
		snprintf(path, sizeof(path), "/cpus/cpu@%x/interrupt-controller", i);
		/* The order of these is Linux' order of harts, and the files'. */
		assert_int_equal(cell("/interrupt-controller@28000000", "interrupts-extended",
				      2 * i), fdt_get_phandle(tree, at(path)));
		assert_int_equal(cell("/interrupt-controller@28000000", "interrupts-extended",
				      2 * i + 1), 9);
	}
	snprintf(path, sizeof(path), "/cpus/cpu@%x", n);
	assert_true(fdt_path_offset(tree, path) < 0);
	assert_int_equal(wide("/interrupt-controller@28000000", "reg", 0), MAP_IMSIC);
	assert_int_equal(wide("/interrupt-controller@28000000", "reg", 1), 0x1000ull * n);
	assert_int_equal(wide("/interrupt-controller@d000000", "reg", 0), MAP_APLIC);
	assert_int_equal(cell("/interrupt-controller@d000000", "riscv,num-sources", 0), IRQ_LAST);
	assert_int_equal(cell("/interrupt-controller@d000000", "msi-parent", 0),
			 fdt_get_phandle(tree, at("/interrupt-controller@28000000")));
	assert_int_equal(cell("/interrupt-controller@28000000", "riscv,num-ids", 0) % 64, 63);
}

static void test_harts(void **state)
{
	(void)state;
	make(3);
	assert_ok(build(NULL, NULL, 0, 0));
	check_all();
	check_harts(3);
}

static void test_64_harts(void **state)
{
	(void)state;
	make(64);
	assert_ok(build("root=/dev/vda", NULL, 0, 0));
	check_all();
	check_harts(64);
}

/* Blocks of what the guest does not have are not told of. */
static void test_isa(void **state)
{
	(void)state;
	fake.satp = 8;
	fake.block = 128;
	make(1);
	assert_ok(build(NULL, "rv64imac_zicboz", 0, 0));
	check_all();
	assert_string_equal(text("/cpus/cpu@0", "riscv,isa"), "rv64imac_zicboz_ssaia");
	assert_int_equal(cell("/cpus/cpu@0", "riscv,cboz-block-size", 0), 128);
	assert_false(has("/cpus/cpu@0", "riscv,cbom-block-size"));
	assert_false(has("/cpus/cpu@0", "riscv,cbop-block-size"));
	assert_string_equal(text("/cpus/cpu@0", "mmu-type"), "riscv,sv39");
	assert_int_equal(fdt_stringlist_count(tree, at("/cpus/cpu@0"), "riscv,isa-extensions"), 6);
	assert_true(fdt_stringlist_search(tree, at("/cpus/cpu@0"), "riscv,isa-extensions",
					  "ssaia") >= 0);
}

static void test_sv57(void **state)
{
	(void)state;
	fake.satp = 10;
	make(1);
	assert_ok(build(NULL, NULL, 0, 0));
	assert_string_equal(text("/cpus/cpu@0", "mmu-type"), "riscv,sv57");
}

/* What is too long is refused, and never cut. */
static void test_long_cmdline(void **state)
{
	char *cmdline = malloc(FDT_ROOM + 1);
	size_t n;

	(void)state;
	make(64);
	for (n = 1000; n <= FDT_ROOM; n = n * 2 - n / 3) {
		memset(cmdline, 'c', n);
		cmdline[n] = 0;
		if (build(cmdline, NULL, 0, 0)) {
			assert_int_equal(err.code, VMM_EINVAL);
			assert_non_null(strstr(err.message, "device tree"));
			assert_true(n > 100000);
		} else {
			assert_string_equal(text("/chosen", "bootargs"), cmdline);
			check_structure();
		}
	}
	memset(cmdline, 'c', FDT_ROOM);
	cmdline[FDT_ROOM] = 0;
	assert_fails(build(cmdline, NULL, 0, 0), VMM_EINVAL, "device tree does not fit");
	free(cmdline);
}

/* fdt_room() is enough for all harts and extensions, and 27 devices more. */
static void test_widest(void **state)
{
	(void)state;
	fake.isa[0] = fake.isa[1] = ~0ull;
	make(64);
	assert_ok(build("", NULL, 0, 0));
	check_structure();
	assert_true(len + 27 * 160 <= fdt_room(&m, &(struct fdt_config){ .cmdline = "" }));
}

/* Room of any size: an error, or a whole tree; nothing behind its end. */
static void test_room(void **state)
{
	struct isa isa = { { fake.isa[0], fake.isa[1] } };
	const struct fdt_config cfg = { .cmdline = "x", .isa = &isa };
	size_t cap, whole, n;
	uint8_t *buf;

	(void)state;
	make(2);
	assert_ok(build("x", NULL, 0, 0));
	whole = len;
	for (cap = 0; cap < whole + 64; cap += cap < 200 ? 1 : 31) {
		buf = malloc(cap ? cap : 1);
		n = 0;
		if (fdt_build(&m, &cfg, buf, cap, &n, &err) == 0)
			assert_int_equal(fdt_check_full(buf, n), 0);
		else
			assert_true(cap < whole + 32);
		free(buf);
	}
}

static int no_regs(const char *fn)
{
	return strcmp(fn, "kvm_reg_get") == 0 ? EIO : 0;
}

/* A machine whose clock has no known frequency does not start. */
static void test_no_frequency(void **state)
{
	(void)state;
	make(1);
	fake.fault = no_regs;
	assert_fails(build(NULL, NULL, 0, 0), VMM_ESYS, "timer");
	fake.fault = NULL;
}

int main(void)
{
#define T(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(test_tree), T(test_seed), T(test_initrd), T(test_devices), T(test_harts),
		T(test_64_harts), T(test_isa), T(test_sv57), T(test_long_cmdline), T(test_room), T(test_widest),
		T(test_no_frequency),
	};

	time_limit(10);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
