/* SPDX-License-Identifier: MIT */
/*
 * 03-snapshot.c - boot Linux, freeze it to a file; go on from it elsewhere.
 *
 *	03-snapshot save KERNEL INITRD FILE
 *	03-snapshot restore FILE
 */
#include <stdlib.h>
#include <vmm.h>

#include "console.h"

static struct vmm_error e;

static void check(int rc)
{
	if (rc)
		errx(1, "%s", e.message);
}

static int save(const char *kernel, const char *initrd, const char *file)
{
	struct vmm_config cfg = VMM_CONFIG_INIT;
	struct vmm_snap *snap;
	struct vmm *vm;
	double begin;
	int console[2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, console) < 0)
		err(1, "socketpair");
	cfg.kernel = kernel;
	cfg.initrd = initrd;
	cfg.cmdline = "console=ttyS0";
	check(vmm_create(&vm, &cfg, &e));
	check(vmm_add_serial(vm, console[1], console[1], &e));
	check(vmm_start(vm, &e));
	if (!wait_for(console[0], "# "))
		errx(1, "no shell prompt");
	command(console[0], "answer=42; cat /proc/uptime");
	begin = now_ms();
	check(vmm_pause(vm, &e));
	check(vmm_snap_take(&snap, vm, &e));
	printf("\n[frozen in %.1f ms]\n", now_ms() - begin);
	begin = now_ms();
	check(vmm_snap_write(snap, file, NULL, &e));
	printf("[written in %.1f ms]\n", now_ms() - begin);
	vmm_snap_free(snap);
	vmm_free(vm);
	return 0;
}

static int restore(const char *file)
{
	struct vmm_snap *snap;
	struct vmm_event ev;
	struct vmm *vm;
	double begin = now_ms();
	int console[2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, console) < 0)
		err(1, "socketpair");
	check(vmm_snap_open(&snap, file, &e));
	check(vmm_restore(&vm, snap, NULL, &e));
	check(vmm_add_serial(vm, console[1], console[1], &e));
	check(vmm_start(vm, &e));
	printf("[restored in %.1f ms]\n", now_ms() - begin);
	command(console[0], "echo the answer is $answer; cat /proc/uptime; dmesg | tail -n 3");
	type(console[0], "poweroff -f");
	check(vmm_wait(vm, -1, &ev, &e));
	vmm_free(vm);
	vmm_snap_free(snap);
	return ev.type == VMM_EV_SHUTDOWN ? 0 : 1;
}

int main(int argc, char **argv)
{
	if (argc == 5 && strcmp(argv[1], "save") == 0)
		return save(argv[2], argv[3], argv[4]);
	if (argc == 3 && strcmp(argv[1], "restore") == 0)
		return restore(argv[2]);
	errx(2, "usage: 03-snapshot save KERNEL INITRD FILE | restore FILE");
}
