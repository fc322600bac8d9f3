/* SPDX-License-Identifier: MIT */
/*
 * echo.c - a guest's program that sends back what it gets on vsock port 5000: for
 * bench/bindings.  It goes to the background once it listens.  No C library: the
 * initramfs has none.
 */
#include <asm/unistd.h>
#include <linux/socket.h>
#include <linux/vm_sockets.h>
#include <stdint.h>

#include "call.h"

#define SOCK_STREAM_	1
#define SIGCHLD_	17

void _start(void);
void _start(void)
{
	struct sockaddr_vm any = {
		.svm_family = AF_VSOCK, .svm_port = 5000, .svm_cid = VMADDR_CID_ANY,
	};
	long s = call(__NR_socket, AF_VSOCK, SOCK_STREAM_, 0, 0, 0, 0), fd, n;
	static char buf[4096];

	if (call(__NR_bind, s, (long)&any, sizeof(any), 0, 0, 0) ||
	    call(__NR_listen, s, 16, 0, 0, 0, 0) || call(__NR_clone, SIGCHLD_, 0, 0, 0, 0, 0))
		call(__NR_exit, 0, 0, 0, 0, 0, 0);
	for (;;) {
		fd = call(__NR_accept, s, 0, 0, 0, 0, 0);
		while ((n = call(__NR_read, fd, (long)buf, sizeof(buf), 0, 0, 0)) > 0)
			call(__NR_write, fd, (long)buf, n, 0, 0, 0);
		call(__NR_close, fd, 0, 0, 0, 0, 0);
	}
}
