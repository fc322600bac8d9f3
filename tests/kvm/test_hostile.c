/* SPDX-License-Identifier: MIT */
/*
 * test_hostile.c - a guest that breaks every rule of virtio, beside one that does not.
 *
 * tests/guest/virtio_hostile.c does it, and checks that its last device goes on;
 * here another machine of the process must, and nothing may be left behind.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "kvmtest.h"

#define MEMORY	(16u << 20)

static unsigned int lines;

static void count_lines(void *arg, int level, const char *line)
{
	(void)arg;
	(void)level;
	__atomic_add_fetch(&lines, 1, __ATOMIC_RELAXED);
	if (test_options.verbose)
		test_note("%s", line);
}

static void add_disk(struct vmm *vm, const char *name, uint32_t flags)
{
	char path[] = "/tmp/vmm-disk-XXXXXX";
	int fd = mkstemp(path);

	CHECK(fd >= 0 && ftruncate(fd, 1 << 20) == 0);
	CALL(vmm_add_blk(vm, name, path, flags, &test_err));
	unlink(path);
	close(fd);
}

/* Another machine, in which harts pass messages around for as long as it takes. */
static struct vmm *bystander(void)
{
	struct vmm *vm = guest_new("smp", 2, 1);

	guest_arg(vm, 0, 1000);
	guest_arg(vm, 1, test_options.full ? 50000 : 2000);
	CALL(vmm_start(vm, &test_err));
	return vm;
}

static void hostile(void)
{
	unsigned int fds, threads;
	uint64_t before;
	struct vmm *vm, *other;
	struct vmm_config cfg;
	int net[2], s;

	test_host();
	vmm_free(guest_new("hello", 1, 1));
	fds = count_fds();
	threads = count_threads();
	guest_config(&cfg, "virtio_hostile", (uint32_t)test_arg);
	cfg.memory = MEMORY;
	cfg.log = count_lines;
	CALL(vmm_create(&vm, &cfg, &test_err));
	add_disk(vm, "disk", 0);
	add_disk(vm, "overlay", VMM_OVERLAY);
	CHECK(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, net) == 0);
	CALL(vmm_add_net(vm, "net", net[0], NULL, &test_err));
	CALL(vmm_add_vsock(vm, 3, &test_err));
	CALL(vmm_listen(vm, 0, &s, &test_err));
	CALL(vmm_add_console(vm, "console", -1, -1, &test_err));
	CALL(vmm_add_balloon(vm, "balloon", &test_err));
	CALL(vmm_add_rng(vm, "bad", &test_err));
	CALL(vmm_add_rng(vm, "good", &test_err));
	guest_arg(vm, 0, test_options.full ? 20000 : test_arg > 1 ? 30 : 100);
	guest_arg(vm, 1, MEMORY);
	guest_arg(vm, 2, 8);
	other = bystander();
	before = rss_kib();
	CALL(vmm_start(vm, &test_err));
	expect_event(vm, VMM_EV_SHUTDOWN, 0, 3000);
	test_note("%u harts: %llu crimes, %llu devices broken at their end, %u lines of log, "
		  "%lld KiB more", (unsigned int)test_arg, (unsigned long long)guest_counter(vm, 0),
		  (unsigned long long)guest_counter(vm, 1), lines, (long long)(rss_kib() - before));
	CHECK(guest_counter(vm, 1) > 0);
	expect_event(other, VMM_EV_SHUTDOWN, 0, 600);
	vmm_free(other);
	vmm_free(vm);
	close(net[0]);
	close(net[1]);
	close(s);
	CHECK_EQ(count_fds(), fds);
	CHECK_EQ(threads_left(threads), threads);
}

static const struct test_case cases[] = {
	{ "hostile-1", hostile, 3600, 1 },
	{ "hostile-2", hostile, 3600, 2 },
};

int main(int argc, char **argv)
{
	return test_main(argc, argv, cases, sizeof(cases) / sizeof(cases[0]));
}
