/* SPDX-License-Identifier: MIT */
/*
 * 01-boot.c - boot Linux, with its console on this terminal.
 *
 *	01-boot Image initrd.cpio "console=ttyS0"
 */
#include <err.h>
#include <vmm.h>

int main(int argc, char **argv)
{
	struct vmm_config cfg = VMM_CONFIG_INIT;
	struct vmm_error error;
	struct vmm_event ev;
	struct vmm *vm;

	if (argc != 4)
		errx(2, "usage: 01-boot KERNEL INITRD COMMAND-LINE");
	cfg.kernel = argv[1];
	cfg.initrd = argv[2];
	cfg.cmdline = argv[3];
	if (vmm_create(&vm, &cfg, &error) ||
	    vmm_add_serial(vm, 0, 1, &error) ||
	    vmm_start(vm, &error) ||
	    vmm_wait(vm, -1, &ev, &error))
		errx(1, "%s", error.message);
	vmm_free(vm);
	return ev.type == VMM_EV_SHUTDOWN ? (int)ev.value : 1;
}
