/* SPDX-License-Identifier: MIT */
/*
 * 04-disk.c - a disk that the guest writes to, and that stays as it is.
 *
 *	04-disk KERNEL INITRD IMAGE
 *
 * What the guest writes lies in an overlay, in memory: any number of machines
 * can share an image.  Then the image grows while the guest runs.
 */
#include <fcntl.h>
#include <sys/stat.h>
#include <vmm.h>

#include "console.h"

/* The first line of a file. */
static void show(const char *path)
{
	char line[64] = "";
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0 || read(fd, line, sizeof(line) - 1) < 0)
		err(1, "%s", path);
	close(fd);
	printf("\n%s: %.*s\n", path, (int)strcspn(line, "\n"), line);
}

int main(int argc, char **argv)
{
	struct vmm_config cfg = VMM_CONFIG_INIT;
	struct vmm_error e;
	struct vmm_event ev;
	struct vmm *vm;
	int console[2], fd;

	if (argc != 4)
		errx(2, "usage: 04-disk KERNEL INITRD IMAGE");
	fd = open(argv[3], O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0 || write(fd, "the host's\n", 11) != 11 || ftruncate(fd, 1 << 20) < 0)
		err(1, "%s", argv[3]);
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, console) < 0)
		err(1, "socketpair");
	cfg.kernel = argv[1];
	cfg.initrd = argv[2];
	cfg.cmdline = "console=ttyS0 quiet";
	if (vmm_create(&vm, &cfg, &e) ||
	    vmm_add_serial(vm, console[1], console[1], &e) ||
	    vmm_add_blk(vm, "disk", argv[3], VMM_OVERLAY, &e) ||
	    vmm_limit(vm, "disk", 20u << 20, 0, &e) ||
	    vmm_start(vm, &e))
		errx(1, "%s", e.message);
	close(console[1]);
	if (!wait_for(console[0], "# "))
		errx(1, "no shell prompt");
	command(console[0], "head -n 1 /dev/vda");
	command(console[0], "echo \"the guest's\" | dd of=/dev/vda conv=fsync 2>/dev/null");
	command(console[0], "head -n 1 /dev/vda");
	show(argv[3]);
	if (ftruncate(fd, 2 << 20) < 0 || vmm_resize_blk(vm, "disk", &e))
		errx(1, "%s", e.message);
	command(console[0], "blockdev --getsize64 /dev/vda");
	type(console[0], "poweroff -f");
	if (vmm_wait(vm, -1, &ev, &e))
		errx(1, "%s", e.message);
	vmm_free(vm);
	wait_for(console[0], NULL);
	return ev.type == VMM_EV_SHUTDOWN ? 0 : 1;
}
