/* SPDX-License-Identifier: MIT */
/*
 * 06-share.c - a directory of the host in a guest, by virtiofsd.
 *
 *	06-share KERNEL INITRD DIR
 *
 * virtiofsd wants a listening socket.  We give it one that needs no name, and
 * are connected to it before it has looked.  It ends when we close our end.
 */
#include <sys/un.h>
#include <vmm.h>

#include "console.h"

static int serve(const char *dir)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	socklen_t len = sizeof(sa_family_t);
	int listener = socket(AF_UNIX, SOCK_STREAM, 0);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	char number[16];

	if (bind(listener, (struct sockaddr *)&a, len) < 0 || listen(listener, 1) < 0)
		err(1, "bind");		/* to an abstract name, of the kernel's choice */
	len = sizeof(a);
	if (getsockname(listener, (struct sockaddr *)&a, &len) < 0 ||
	    connect(fd, (struct sockaddr *)&a, len) < 0)
		err(1, "connect");
	if (fork() == 0) {
		snprintf(number, sizeof(number), "%d", listener);
		execlp("virtiofsd", "virtiofsd", "--fd", number, "--shared-dir", dir, NULL);
		err(127, "virtiofsd");
	}
	close(listener);
	return fd;
}

int main(int argc, char **argv)
{
	struct vmm_config cfg = VMM_CONFIG_INIT;
	struct vmm_error e;
	struct vmm *vm;
	int console[2], fs;

	if (argc != 4)
		errx(2, "usage: 06-share KERNEL INITRD DIR");
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, console) < 0)
		err(1, "socketpair");
	fs = serve(argv[3]);
	cfg.kernel = argv[1];
	cfg.initrd = argv[2];
	cfg.cmdline = "console=ttyS0 quiet";
	if (vmm_create(&vm, &cfg, &e) ||
	    vmm_add_serial(vm, console[1], console[1], &e) ||
	    vmm_add_fs(vm, "share", fs, &e) ||
	    vmm_start(vm, &e))
		errx(1, "%s", e.message);
	close(console[1]);
	if (!wait_for(console[0], "# "))
		errx(1, "no shell prompt");
	command(console[0], "mount -t virtiofs share /mnt && ls -l /mnt");
	command(console[0], "echo 'from the guest' > /mnt/from-guest; umount /mnt");
	vmm_free(vm);
	return 0;
}
