/* SPDX-License-Identifier: MIT */
/*
 * 03-snapshot.c - boot Linux, freeze it to a file; go on from it elsewhere.
 *
 *	03-snapshot save KERNEL INITRD FILE
 *	03-snapshot restore FILE
 *
 * In the guest a process counts, and a file is open that has no name any more.
 * When it is restored, by another process of the host, the count goes on, and the
 * file has what was written to it, and can be written to.
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

static void ms(const char *what, double begin)
{
	printf("  %-26s %10.2f ms\n", what, now_ms() - begin);
}

static void mib(const char *what, uint64_t bytes)
{
	printf("  %-26s %10.2f MiB\n", what, (double)bytes / 1048576);
}

static int save(const char *kernel, const char *initrd, const char *file)
{
	struct vmm_config cfg = VMM_CONFIG_INIT;
	double begin = now_ms(), prompt;
	struct vmm_snap *snap;
	struct vmm *vm;
	int console[2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, console) < 0)
		err(1, "socketpair");
	cfg.kernel = kernel;
	cfg.initrd = initrd;
	cfg.cmdline = "console=ttyS0 quiet";
	check(vmm_create(&vm, &cfg, &e));
	check(vmm_add_serial(vm, console[1], console[1], &e));
	check(vmm_start(vm, &e));
	if (!wait_for(console[0], "# "))
		errx(1, "no shell prompt");
	prompt = now_ms() - begin;
	command(console[0], "exec 3>notes; rm notes; echo before the freeze >&3");
	command(console[0], "count() { while sleep 0.1; do i=$((i+1)); echo $i >n; done; }");
	command(console[0], "count &");
	command(console[0], "answer=42; sleep 1; cat n");

	printf("\n\n%-28s\n", "frozen");
	printf("  %-26s %10.2f ms\n", "boot, to the prompt", prompt);
	begin = now_ms();
	check(vmm_pause(vm, &e));
	check(vmm_snap_take(&snap, vm, &e));
	ms("registers, devices, RAM", begin);
	begin = now_ms();
	check(vmm_snap_write(snap, file, NULL, &e));
	ms("compressed, to a file", begin);
	vmm_snap_free(snap);
	vmm_free(vm);
	return 0;
}

static int restore(const char *file)
{
	struct vmm_snap_info info = VMM_SNAP_INFO_INIT;
	double begin = now_ms(), opened, started, answered;
	struct vmm_snap *snap;
	struct vmm_event ev;
	struct vmm *vm;
	int console[2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, console) < 0)
		err(1, "socketpair");
	check(vmm_snap_open(&snap, file, &e));
	opened = now_ms();
	check(vmm_restore(&vm, snap, NULL, &e));
	check(vmm_add_serial(vm, console[1], console[1], &e));
	check(vmm_start(vm, &e));
	started = now_ms();
	command(console[0], "echo the answer is $answer; cat n");
	answered = now_ms();
	command(console[0], "sleep 1; cat n; jobs");
	command(console[0], "echo and after it >&3; cat /proc/$$/fd/3");
	command(console[0], "dmesg | tail -n 1; cat /proc/uptime");
	type(console[0], "poweroff -f");
	check(vmm_wait(vm, -1, &ev, &e));
	vmm_free(vm);
	check(vmm_snap_info(snap, &info, &e));
	vmm_snap_free(snap);

	printf("\n\n%-28s\n", "restored");
	mib("RAM", info.memory);
	mib("  not zero", info.ram_used);
	mib("file", info.file_size);
	printf("  %-26s %10.2f ms\n", "open the file", opened - begin);
	printf("  %-26s %10.2f ms\n", "restore and start", started - opened);
	printf("  %-26s %10.2f ms\n", "to its first answer", answered - started);
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
