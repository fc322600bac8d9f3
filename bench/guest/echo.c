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

#define SOCK_STREAM_	1
#define SIGCHLD_	17

static long call(long n, long a, long b, long c, long d, long e, long f)
{
	register long a0 __asm__("a0") = a, a1 __asm__("a1") = b, a2 __asm__("a2") = c;
	register long a3 __asm__("a3") = d, a4 __asm__("a4") = e, a5 __asm__("a5") = f;
	register long a7 __asm__("a7") = n;

	__asm__ volatile("ecall" : "+r"(a0)
			 : "r"(a1), "r"(a2), "r"(a3), "r"(a4), "r"(a5), "r"(a7) : "memory");
	return a0;
}

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
