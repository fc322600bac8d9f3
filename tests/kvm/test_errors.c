/* SPDX-License-Identifier: MIT */
/*
 * test_errors.c - what goes wrong on a real host is named, and leaves nothing.
 *
 * Every failed call is made many times over, with descriptors and threads
 * counted before and after.  Cases that need a host of a certain kind (without
 * AIA, without guest interrupt files) are skipped on others; those that change
 * /dev do so in a mount namespace of their own, and need root.
 */
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "kvmtest.h"

/* The call fails like this, each time, and nothing is left behind. */
static void create_fails(const struct vmm_config *cfg, int code, const char *text)
{
	unsigned int fds = count_fds(), threads = count_threads(), i;
	struct vmm *vm = (struct vmm *)&fds;

	for (i = 0; i < 5; i++) {
		CALL_FAILS(code, text, vmm_create(&vm, cfg, &test_err));
		CHECK(vm == NULL);
	}
	CHECK_EQ(count_fds(), fds);
	CHECK_EQ(threads_left(threads), threads);
	test_note("%s", test_err.message);
}

static void probe_fails(int code, const char *text)
{
	struct vmm_host host = VMM_HOST_INIT;
	unsigned int fds = count_fds();

	CALL_FAILS(code, text, vmm_probe(&host, &test_err));
	CHECK_EQ(host.max_vcpus, 0);
	CHECK_EQ(count_fds(), fds);
}

/* ---- /dev/kvm -------------------------------------------------------------------- */

/* A /dev with nothing in it but, perhaps, a kvm that is this device. */
static void other_dev(mode_t mode, dev_t dev)
{
	if (geteuid() != 0)
		test_skip("needs root");
	if (unshare(CLONE_NEWNS) || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
	    mount("tmpfs", "/dev", "tmpfs", 0, NULL))
		test_skip("no mount namespace: %s", strerror(errno));
	if (dev)
		CHECK(mknod("/dev/kvm", S_IFCHR | mode, dev) == 0 &&
		      chmod("/dev/kvm", mode) == 0);
}

static void kvm_missing(void)
{
	struct vmm_config cfg;

	guest_config(&cfg, "hello", 1);
	other_dev(0, 0);
	probe_fails(VMM_ENOKVM, "/dev/kvm");
	create_fails(&cfg, VMM_ENOKVM, "/dev/kvm");
	CHECK_EQ(test_err.os_errno, ENOENT);
}

static void kvm_forbidden(void)
{
	struct vmm_config cfg;

	guest_config(&cfg, "hello", 1);
	other_dev(0600, makedev(10, 232));
	CHECK(seteuid(65534) == 0);
	probe_fails(VMM_ENOKVM, "/dev/kvm");
	create_fails(&cfg, VMM_ENOKVM, "ermission");
	CHECK_EQ(test_err.os_errno, EACCES);
}

static void kvm_is_something_else(void)
{
	struct vmm_config cfg;

	guest_config(&cfg, "hello", 1);
	other_dev(0666, makedev(1, 3));
	probe_fails(VMM_ENOKVM, "/dev/kvm");
	create_fails(&cfg, VMM_ENOKVM, "not KVM");
}

/* ---- Interrupt controllers ----------------------------------------------------------- */

static int cpu_has_aia(void)
{
	FILE *f = fopen("/proc/cpuinfo", "r");
	char line[2048];
	int found = 0;

	while (f && fgets(line, sizeof(line), f))
		found |= strstr(line, "_ssaia") != NULL;
	if (f)
		fclose(f);
	return found;
}

static void no_aia(void)
{
	struct vmm_config cfg;

	if (cpu_has_aia())
		test_skip("this host has AIA");
	probe_fails(VMM_ENOTSUP, "Ssaia");
	guest_config(&cfg, "hello", 1);
	create_fails(&cfg, VMM_ENOTSUP, "AIA");
}

static void no_guest_files(void)
{
	struct vmm_config cfg;
	uint32_t mode;

	if (test_host()->irqchips >> VMM_IRQCHIP_AIA_HWACCEL & 1)
		test_skip("this host has guest interrupt files");
	for (mode = VMM_IRQCHIP_AIA_HWACCEL; mode <= VMM_IRQCHIP_AIA_AUTO; mode++) {
		guest_config(&cfg, "hello", 1);
		cfg.irqchip = mode;
		create_fails(&cfg, VMM_ENOTSUP, "guest interrupt files");
	}
}

/* More vCPUs than the host has files for: one machine says so and is BROKEN,
   the others run. */
static void files_run_out(void)
{
	struct vmm_stats st = VMM_STATS_INIT;
	unsigned int i, good = 0, broken = 0;
	struct vmm_event ev;
	struct vmm *vm[16];

	/* These do not sleep, so that no wake-up can be lost. */
	if (!(test_host()->irqchips >> VMM_IRQCHIP_AIA_HWACCEL & 1))
		test_skip("this host has no guest interrupt files");
	test_options.irqchip = VMM_IRQCHIP_AIA_HWACCEL;
	for (i = 0; i < 16; i++) {
		vm[i] = guest_new("spin", 1, 0);
		CALL(vmm_start(vm[i], &test_err));
		CALL(vmm_wait(vm[i], 20000 * (int)test_options.factor, &ev, &test_err));
		if (ev.type == VMM_EV_FAULT) {
			CHECK(strstr(ev.detail, "interrupt file"));
			if (!broken++)
				test_note("after %u: %s", good, ev.detail);
			CHECK_EQ(vmm_state(vm[i]), VMM_BROKEN);
			CALL_FAILS(VMM_EBROKEN, "broken", vmm_start(vm[i], &test_err));
			CALL_FAILS(VMM_EBROKEN, "broken", vmm_pause(vm[i], &test_err));
			CALL_FAILS(VMM_EBROKEN, "broken", vmm_stop(vm[i], &test_err));
			CALL_FAILS(VMM_EBROKEN, "broken", vmm_reset(vm[i], &test_err));
			CALL_FAILS(VMM_EBROKEN, "broken", vmm_read(vm[i], 0, NULL, 0, &test_err));
			CALL(vmm_stat(vm[i], &st, &test_err));
			CALL(vmm_wait(vm[i], -1, &ev, &test_err));
			CHECK_EQ(ev.type, VMM_EV_NONE);
		} else {
			CHECK_EQ(ev.type, VMM_EV_DOORBELL);
			good++;
		}
	}
	CHECK(good && broken);
	for (i = 0; i < 16; i++)
		vmm_free(vm[i]);
	/* They are there again. */
	vm[0] = guest_new("spin", 1, 0);
	CALL(vmm_start(vm[0], &test_err));
	expect_event(vm[0], VMM_EV_DOORBELL, 1, 20);
	vmm_free(vm[0]);
}

/* ---- Kernels and configurations --------------------------------------------------------- */

static void config_is_wrong(void)
{
	struct {
		struct vmm_config cfg;
		uint64_t newer;
	} next;
	struct vmm_config cfg, good;

	test_host();
	guest_config(&good, "hello", 1);
#define BAD(field, value, code, text)					\
	do {								\
		cfg = good;						\
		cfg.field = (value);					\
		create_fails(&cfg, code, text);				\
	} while (0)
	BAD(vcpus, 65, VMM_EINVAL, "65");
	BAD(memory, 4096, VMM_EINVAL, "4096");
	BAD(memory, (16u << 20) + 1, VMM_EINVAL, "2 MiB");
	BAD(memory, 1ull << 62, VMM_EINVAL, "TiB");
	BAD(irqchip, 4, VMM_EINVAL, "4");
	BAD(flags, 1u << 31, VMM_EINVAL, "flags");
	BAD(kernel, NULL, VMM_EINVAL, "kernel");
	BAD(isa, "rv64imafdc_zfoo", VMM_EINVAL, "zfoo");
	BAD(isa, "-v,-qux", VMM_EINVAL, "qux");
	BAD(isa, "x86", VMM_EINVAL, "x86");
	BAD(size, 2, VMM_EINVAL, "size");
	next.cfg = good;
	next.newer = 1ull << 56;
	next.cfg.size = sizeof(next);
	create_fails(&next.cfg, VMM_EINVAL, "byte");
}

static const char *file_with(const void *data, size_t n, size_t size)
{
	static char path[64];
	int fd;

	snprintf(path, sizeof(path), "/tmp/kvmtest-%d", (int)getpid());
	fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	CHECK(fd >= 0 && write(fd, data, n) == (ssize_t)n && ftruncate(fd, (off_t)size) == 0);
	close(fd);
	return path;
}

static void files_are_wrong(void)
{
	uint8_t head[64] = { 0 };
	Elf64_Ehdr eh = { .e_ident = { 0x7f, 'E', 'L', 'F', ELFCLASS64, ELFDATA2LSB, EV_CURRENT },
			  .e_type = ET_EXEC, .e_machine = EM_X86_64,
			  .e_phentsize = sizeof(Elf64_Phdr) };
	struct vmm_config cfg, good;
	const char *path;

	test_host();
	guest_config(&good, "hello", 1);
	BAD(kernel, "/no/such/file", VMM_ESYS, "/no/such/file");
	CHECK_EQ(test_err.os_errno, ENOENT);
	BAD(kernel, "/tmp", VMM_ESYS, "/tmp");
	BAD(initrd, "/no/such/initrd", VMM_ESYS, "/no/such/initrd");
	path = file_with("", 0, 0);
	BAD(kernel, path, VMM_EFORMAT, "empty");
	BAD(kernel, path, VMM_EFORMAT, path);
	BAD(initrd, path, VMM_EFORMAT, path);
	path = file_with("#!/bin/sh\n", 10, 4096);
	BAD(kernel, path, VMM_EFORMAT, path);
	path = file_with(&eh, sizeof(eh), 4096);
	BAD(kernel, path, VMM_EFORMAT, "architecture");
	memcpy(head + 56, "RSC\005", 4);
	head[16 + 4] = 1;		/* takes 4 GiB */
	path = file_with(head, sizeof(head), 4096);
	BAD(kernel, path, VMM_EFORMAT, "RAM");
	path = file_with("x", 1, 64u << 20);
	BAD(initrd, path, VMM_EFORMAT, "fit");
	unlink(path);
	good.kernel = NULL;
	BAD(kernel_fd, 12345, VMM_ESYS, "12345");
	BAD(kernel_fd, open("/dev/null", O_RDONLY | O_CLOEXEC), VMM_EFORMAT, "empty");
	close(cfg.kernel_fd);
}

/* A failed vmm_reset() leaves a machine that can only be freed. */
static void kernel_gone_at_reset(void)
{
	const char *path;
	struct vmm_config cfg;
	unsigned int fds = count_fds();
	char copy[64], buf[65536];
	struct vmm *vm;
	ssize_t n;
	int fd;

	test_host();
	guest_config(&cfg, "hello", 1);
	fd = open(cfg.kernel, O_RDONLY | O_CLOEXEC);
	n = read(fd, buf, sizeof(buf));
	close(fd);
	CHECK(n > 0 && n < (ssize_t)sizeof(buf));
	path = file_with(buf, (size_t)n, (size_t)n);
	snprintf(copy, sizeof(copy), "%s", path);
	cfg.kernel = copy;
	CALL(vmm_create(&vm, &cfg, &test_err));
	unlink(copy);
	CALL(vmm_start(vm, &test_err));
	expect_event(vm, VMM_EV_SHUTDOWN, 0, 20);
	CALL_FAILS(VMM_ESYS, copy, vmm_reset(vm, &test_err));
	CHECK_EQ(vmm_state(vm), VMM_BROKEN);
	CALL_FAILS(VMM_EBROKEN, "broken", vmm_start(vm, &test_err));
	vmm_free(vm);
	CHECK_EQ(count_fds(), fds);
}

static void memory_out_of_bounds(void)
{
	struct vmm *vm = guest_new("hello", 1, 0);
	uint64_t end = 0x80000000ull + (16u << 20), v;

	CALL(vmm_read(vm, end - 8, &v, 8, &test_err));
	CALL_FAILS(VMM_EINVAL, "RAM", vmm_read(vm, end - 7, &v, 8, &test_err));
	CALL_FAILS(VMM_EINVAL, "RAM", vmm_read(vm, 0x80000000ull - 1, &v, 8, &test_err));
	CALL_FAILS(VMM_EINVAL, "RAM", vmm_read(vm, 0, &v, 1, &test_err));
	CALL_FAILS(VMM_EINVAL, "RAM", vmm_write(vm, end, &v, 1, &test_err));
	CALL_FAILS(VMM_EINVAL, "RAM", vmm_write(vm, ~0ull, &v, 8, &test_err));
	CALL_FAILS(VMM_EINVAL, "RAM", vmm_read(vm, 0x80000000ull, &v, SIZE_MAX, &test_err));
	vmm_free(vm);
}

/* No descriptors left: each place where one is made, in its turn. */
static void descriptors_run_out(void)
{
	unsigned int fds, room;
	struct vmm_config cfg;
	struct rlimit limit;
	struct vmm *vm;
	int rc = -1;

	test_host();
	guest_config(&cfg, "hello", 2);
	fds = count_fds();		/* with "." and "..", and the directory's own */
	CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
	for (room = 0; room < 30 && rc; room++) {
		limit.rlim_cur = fds - 3 + room;
		CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
		rc = vmm_create(&vm, &cfg, &test_err);
		limit.rlim_cur = limit.rlim_max;
		CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
		if (rc)
			CHECK(vm == NULL && test_err.message[0] && test_err.os_errno == EMFILE);
		else
			vmm_free(vm);
		CHECK_EQ(count_fds(), fds);
	}
	CHECK_EQ(rc, 0);
	test_note("%u descriptors suffice for 2 vCPUs", room - 1);
}

static const struct test_case cases[] = {
	{ "kvm-missing", kvm_missing, 0, 0 },
	{ "kvm-forbidden", kvm_forbidden, 0, 0 },
	{ "kvm-is-something-else", kvm_is_something_else, 0, 0 },
	{ "no-aia", no_aia, 0, 0 },
	{ "no-guest-files", no_guest_files, 0, 0 },
	{ "files-run-out", files_run_out, 120, 0 },
	{ "config-is-wrong", config_is_wrong, 60, 0 },
	{ "files-are-wrong", files_are_wrong, 60, 0 },
	{ "kernel-gone-at-reset", kernel_gone_at_reset, 0, 0 },
	{ "memory-out-of-bounds", memory_out_of_bounds, 0, 0 },
	{ "descriptors-run-out", descriptors_run_out, 60, 0 },
};

int main(int argc, char **argv)
{
	return test_main(argc, argv, cases, sizeof(cases) / sizeof(cases[0]));
}
