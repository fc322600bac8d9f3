/* SPDX-License-Identifier: MIT */
/*
 * test_memory.c - what a machine costs its host beside the guest's RAM.
 *
 *	test_memory [options] KERNEL INITRD [CASE...]
 *
 * Private memory of this process (Private_Clean + Private_Dirty of its smaps)
 * with and without one idle machine; the mapping that is the guest's RAM, which
 * is told by its unusual size, is left out.  The goal is 1 MiB.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kvmtest.h"

#define MEMORY	(202ull << 20)
#define LIMIT	1024			/* KiB */

static const char *kernel, *initrd;

static uint64_t private_kib(void)
{
	unsigned long long size = 0, kib, sum = 0;
	FILE *f = fopen("/proc/self/smaps", "r");
	char line[512];

	while (f && fgets(line, sizeof(line), f)) {
		if (sscanf(line, "Size: %llu kB", &kib) == 1)
			size = kib;
		else if ((sscanf(line, "Private_Clean: %llu kB", &kib) == 1 ||
			  sscanf(line, "Private_Dirty: %llu kB", &kib) == 1) &&
			 size != MEMORY / 1024)
			sum += kib;
	}
	if (f)
		fclose(f);
	return sum;
}

/* Page in what the first machine would: libc's and the library's own code. */
static void warm_up(void)
{
	struct vmm *vm = guest_new("hello", 1, 1);

	CALL(vmm_start(vm, &test_err));
	expect_event(vm, VMM_EV_SHUTDOWN, 0, 30);
	vmm_free(vm);
}

static void measure(const char *what, struct vmm *vm, uint64_t before)
{
	uint64_t after = private_kib();
	struct vmm_stats st = VMM_STATS_INIT;

	CALL(vmm_stat(vm, &st, &test_err));
	test_note("%s, %u vCPUs: %lld KiB private beside RAM (%llu KiB of RAM held)", what,
		  st.vcpus, (long long)(after - before), (unsigned long long)st.memory_used / 1024);
	CHECK(after <= before + LIMIT);
}

static void idle_guest(void)
{
	uint32_t vcpus = (uint32_t)test_arg;
	struct vmm_config cfg;
	uint64_t before;
	struct vmm *vm;

	test_host();
	warm_up();
	before = private_kib();
	guest_config(&cfg, "idle", vcpus);
	cfg.memory = MEMORY;
	CALL(vmm_create(&vm, &cfg, &test_err));
	CALL(vmm_add_serial(vm, 0, 1, &test_err));
	CALL(vmm_start(vm, &test_err));
	expect_event(vm, VMM_EV_DOORBELL, 1, 30);
	sleep_ms(300);
	measure("idle guest", vm, before);
	vmm_free(vm);
}

static void idle_linux(void)
{
	struct vmm_config cfg = VMM_CONFIG_INIT;
	struct console con;
	uint64_t before;
	struct vmm *vm;

	test_host();
	warm_up();
	console_open(&con);
	free(con.text);
	con.text = calloc(1, con.cap = 1 << 20);
	memset(con.text, 1, con.cap);
	before = private_kib();
	cfg.kernel = kernel;
	cfg.initrd = initrd;
	cfg.cmdline = "console=ttyS0 quiet";
	cfg.memory = MEMORY;
	cfg.vcpus = (uint32_t)test_arg;
	CALL(vmm_create(&vm, &cfg, &test_err));
	CALL(vmm_add_serial(vm, con.in, con.out, &test_err));
	CALL(vmm_start(vm, &test_err));
	CHECK_EQ(console_find(&con, "guest: up", NULL, 60000), 0);
	sleep_ms(2000);
	measure("idle Linux", vm, before);
	vmm_free(vm);
	console_close(&con);
}

static const struct test_case cases[] = {
	{ "idle-guest-1", idle_guest, 60, 1 },
	{ "idle-guest-4", idle_guest, 60, 4 },
	{ "idle-linux-1", idle_linux, 120, 1 },
};

int main(int argc, char **argv)
{
	return test_main_args(argc, argv, cases, sizeof(cases) / sizeof(cases[0]),
			      "KERNEL INITRD ", &kernel, &initrd);
}
