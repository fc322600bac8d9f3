/* SPDX-License-Identifier: MIT */
/*
 * 02-shell.c - boot Linux to a shell, type a command into it, power off, and
 * tell where the time went.
 *
 *	02-shell KERNEL INITRD COMMAND
 *
 * The guest's serial port is one end of a socket pair; we hold the other.
 */
#include <vmm.h>

#include "console.h"

int main(int argc, char **argv)
{
	static const char *const stages[] = { "open KVM", "create the VM", "memory", "vCPUs",
		"interrupt controller", "load kernel and initrd", "device tree, threads" };
	struct vmm_config cfg = VMM_CONFIG_INIT;
	struct vmm_stats st = VMM_STATS_INIT;
	struct vmm_error e;
	struct vmm_event ev;
	struct vmm *vm;
	double begin, prompt, answer, end;
	int console[2], i;

	if (argc != 4)
		errx(2, "usage: 02-shell KERNEL INITRD COMMAND");
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, console) < 0)
		err(1, "socketpair");
	cfg.kernel = argv[1];
	cfg.initrd = argv[2];
	cfg.cmdline = "console=ttyS0";
	cfg.memory = 256u << 20;
	begin = now_ms();
	if (vmm_create(&vm, &cfg, &e) ||
	    vmm_add_serial(vm, console[1], console[1], &e) ||
	    vmm_start(vm, &e))
		errx(1, "%s", e.message);
	close(console[1]);
	if (!wait_for(console[0], "# "))
		errx(1, "no shell prompt");
	prompt = now_ms();
	command(console[0], argv[3]);
	answer = now_ms();
	type(console[0], "poweroff -f");
	if (vmm_wait(vm, -1, &ev, &e) || vmm_stat(vm, &st, &e))
		errx(1, "%s", e.message);
	end = now_ms();
	vmm_free(vm);
	wait_for(console[0], NULL);

	printf("\n%-28s %10s\n", "where the time went", "ms");
	for (i = 0; i < VMM_STAGES; i++)
		printf("  %-26s %10.2f\n", stages[i], (double)st.stage_ns[i] / 1e6);
	printf("  %-26s %10.2f\n", "guest: to the prompt", prompt - begin - (double)st.setup_ns / 1e6);
	printf("  %-26s %10.2f\n", "guest: the command", answer - prompt);
	printf("  %-26s %10.2f\n", "guest: power off", end - answer);
	return ev.type == VMM_EV_SHUTDOWN ? (int)ev.value : 1;
}
