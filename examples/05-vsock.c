/* SPDX-License-Identifier: MIT */
/*
 * 05-vsock.c - ask a guest, and print its answer.
 *
 *	05-vsock KERNEL DISK CMDLINE REQUEST
 *
 * The guest boots from DISK, which it does not change, and something in it
 * listens on vsock port 1024.  With a root file system that has socat, CMDLINE
 * can be
 *
 *	root=/dev/vda init=/bin/sh -- -c "socat VSOCK-LISTEN:1024 EXEC:sh"
 *
 * and REQUEST "uname -a".  The connection is an ordinary stream socket.
 */
#include <err.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include <vmm.h>

int main(int argc, char **argv)
{
	struct vmm_config cfg = VMM_CONFIG_INIT;
	struct vmm_error e;
	struct vmm *vm;
	char buf[4096];
	ssize_t n;
	int fd;

	if (argc != 5)
		errx(2, "usage: 05-vsock KERNEL DISK CMDLINE REQUEST");
	cfg.kernel = argv[1];
	cfg.cmdline = argv[3];
	cfg.memory = 256u << 20;
	if (vmm_create(&vm, &cfg, &e) ||
	    vmm_add_serial(vm, -1, 2, &e) ||
	    vmm_add_blk(vm, "root", argv[2], VMM_OVERLAY, &e) ||
	    vmm_add_vsock(vm, 3, &e) ||
	    vmm_start(vm, &e) ||
	    vmm_connect(vm, 1024, 120000, &fd, &e))	/* until it listens */
		errx(1, "%s", e.message);
	dprintf(fd, "%s\n", argv[4]);
	shutdown(fd, SHUT_WR);		/* that was all; the answer is still to come */
	while ((n = read(fd, buf, sizeof(buf))) > 0)
		fwrite(buf, 1, (size_t)n, stdout);
	close(fd);
	vmm_free(vm);
	return n < 0;
}
