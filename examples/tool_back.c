/* SPDX-License-Identifier: MIT */
/*
 * tool_back.c - what stands behind networks and shared directories of the vmm
 * command: taps, and helper programs at the other end of a socket.
 *
 * Nobody waits for a helper.  It ends when its socket does; one that ends before
 * is told of by the machine (VMM_EV_DEVICE).
 */
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <linux/if_tun.h>

#include "tool.h"

#define ARGS_MAX	16

static int back_trouble(const char *what)
{
	fprintf(stderr, "vmm: %s: %s\n", what, strerror(errno));
	return -1;
}

int back_tap(const char *ifname)
{
	int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
	struct ifreq ifr;

	memset(&ifr, 0, sizeof(ifr));
	ifr.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
	snprintf(ifr.ifr_name, sizeof(ifr.ifr_name), "%s", ifname);
	if (fd < 0 || ioctl(fd, TUNSETIFF, &ifr) < 0) {
		back_trouble(ifname);
		if (fd >= 0)
			close(fd);
		return -1;
	}
	return fd;
}

/*
 * Start a program, argv[0] or, where Debian has it, in /usr/libexec.  It keeps fd
 * and what it says goes to standard error; it gets its signals, which we block.
 */
static int back_start(const char *const *argv, int fd)
{
	char libexec[64];
	sigset_t none;
	pid_t pid = fork();

	if (pid)
		return pid < 0 ? back_trouble(argv[0]) : 0;
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	signal(SIGPIPE, SIG_DFL);
	signal(SIGCHLD, SIG_DFL);
	/* The terminal is the guest's: neither its input nor its Ctrl-C. */
	setpgid(0, 0);
	dup2(open("/dev/null", O_RDWR), 0);
	dup2(2, 1);
	fcntl(fd, F_SETFD, 0);
	execvp(argv[0], (char *const *)(uintptr_t)argv);
	snprintf(libexec, sizeof(libexec), "/usr/libexec/%s", argv[0]);
	execv(libexec, (char *const *)(uintptr_t)argv);
	back_trouble(argv[0]);
	_exit(127);
}

int back_passt(const char *tcp, const char *udp)
{
	const char *argv[ARGS_MAX] = { "passt", "--foreground", "--quiet", "--fd" };
	char number[16];
	int n = 4, pair[2], rc;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
		return back_trouble("socketpair");
	snprintf(number, sizeof(number), "%d", pair[1]);
	argv[n++] = number;
	if (tcp) {
		argv[n++] = "--tcp-ports";
		argv[n++] = tcp;
	}
	if (udp) {
		argv[n++] = "--udp-ports";
		argv[n++] = udp;
	}
	rc = back_start(argv, pair[1]);
	close(pair[1]);
	if (rc == 0)
		return pair[0];
	close(pair[0]);
	return -1;
}

/*
 * virtiofsd takes a listening socket: one with a name that the kernel chooses,
 * and no file.  We are its first and only client, before it has looked.
 */
int back_virtiofsd(const char *dir, int readonly, const char *sandbox)
{
	const char *argv[ARGS_MAX] = { "virtiofsd", "--log-level", "error", "--shared-dir", dir,
				       "--fd" };
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	socklen_t len = sizeof(sa_family_t);
	char number[16];
	int n = 6, s, c = -1, rc = -1;

	s = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (s >= 0 && bind(s, (struct sockaddr *)&addr, len) == 0 && listen(s, 1) == 0) {
		len = sizeof(addr);
		c = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
		if (c >= 0 && getsockname(s, (struct sockaddr *)&addr, &len) == 0)
			rc = connect(c, (struct sockaddr *)&addr, len);
	}
	if (rc < 0)
		back_trouble("socket for virtiofsd");
	snprintf(number, sizeof(number), "%d", s);
	argv[n++] = number;
	if (readonly)
		argv[n++] = "--readonly";
	if (sandbox) {
		argv[n++] = "--sandbox";
		argv[n++] = sandbox;
	}
	if (rc == 0)
		rc = back_start(argv, s);
	if (s >= 0)
		close(s);
	if (rc == 0)
		return c;
	if (c >= 0)
		close(c);
	return -1;
}
