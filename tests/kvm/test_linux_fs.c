/* SPDX-License-Identifier: MIT */
/*
 * test_linux_fs.c - a directory of the host in a guest, by virtiofsd.
 *
 *	test_linux_fs [options] KERNEL INITRD [CASE...]
 *
 * Guests: inlinux.h.  A tree of files goes both ways and is compared on both sides;
 * then virtiofsd is killed while files are read.  With -f 2,000 files, else 40; up to
 * eight directories are copied at a time, since each answer takes long to arrive.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "inlinux.h"

/* Start virtiofsd for a directory; our end of its socket. */
static int serve(const char *shared, pid_t *pid)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	socklen_t len = sizeof(sa_family_t);
	int s = socket(AF_UNIX, SOCK_STREAM, 0), fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	char number[16];

	if (access("/usr/libexec/virtiofsd", X_OK) < 0)
		test_skip("no virtiofsd on this host");
	CHECK(bind(s, (struct sockaddr *)&a, len) == 0 && listen(s, 1) == 0);
	len = sizeof(a);
	CHECK(getsockname(s, (struct sockaddr *)&a, &len) == 0);
	CHECK(connect(fd, (struct sockaddr *)&a, len) == 0);
	*pid = fork();
	if (*pid == 0) {
		snprintf(number, sizeof(number), "%d", s);
		execl("/usr/libexec/virtiofsd", "virtiofsd", "--log-level", "error", "--shared-dir",
		      shared, "--fd", number, (char *)NULL);
		_exit(127);
	}
	close(s);
	return fd;
}

static void share(void)
{
	static const char script[] =
		"mkdir /tmp/s; mount -t virtiofs share /tmp/s; cd /tmp/s\n"
		"each() { ls tree | xargs -P 8 -I D sh -ec \"$1\"; }\n"
		"mkdir /tmp/tree; each 'cp -a tree/D /tmp/tree; diff -r tree/D /tmp/tree/D; echo says: in'\n"
		"mkdir back; each 'cp -a /tmp/tree/D back; echo says: out'\n"
		"mv back/d0 back/e0; ln -s e0 back/link; chmod 600 back/e0/*aa\n"
		"sync; say synced; hear\n"
		"while :; do cat tree/*/* >/dev/null || break; done 2>/tmp/why\n"
		"! ls /tmp/s/back; ! touch /tmp/s/new; say gone\n"
		"! dmesg | grep -E 'hung|stall|BUG'\n";
	unsigned int dirs = test_options.full ? 20 : 2, each = test_options.full ? 100 : 20, i;
	char out[300];
	uint64_t start;
	struct vmm_event ev;
	struct inlinux g;
	pid_t pid;
	int fd;

	if (il_shell(out, sizeof(out), "exec 2>&1; set -e; inside=$(realpath %s); cd %s; i=0; "
		     "while [ $i -lt %u ]; do mkdir -p tree/d$i; "
		     "$inside fill $i %u | split -b 1500 - tree/d$i/f; i=$((i + 1)); done; "
		     "[ $(find tree -type f | wc -l) = %u ]",
		     guest_path("../kvm/inside"), il_dir(), dirs, each * 1500, dirs * each))
		test_fail("a tree: %s", out);
	fd = serve(il_dir(), &pid);
	il_new(&g, script, 2, 256);
	CALL(vmm_add_fs(g.vm, "share", fd, &test_err));
	close(fd);
	il_start(&g);
	start = now_ms();
	for (i = 0; i < dirs; i++)
		il_expect(&g, "in", 600);
	for (i = 0; i < dirs; i++)
		il_expect(&g, "out", 600);
	il_expect(&g, "synced", 600);
	test_note("%u files copied both ways: %llu ms", dirs * each,
		  (unsigned long long)(now_ms() - start));
	if (il_shell(out, sizeof(out), "exec 2>&1; set -e; cd %s; mv back/e0 back/d0; [ -L back/link ]; "
		     "rm back/link; [ $(stat -c %%a back/d0/faa) = 600 ]; diff -r tree back", il_dir()))
		test_fail("what came back: %s", out);
	/* The guest is held while it is served, and served again. */
	CALL(vmm_pause(g.vm, &test_err));
	CALL(vmm_start(g.vm, &test_err));
	il_say(&g, "go");
	sleep_ms(1000);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	next_event(g.vm, &ev, 60);
	CHECK_EQ(ev.type, VMM_EV_DEVICE);
	il_expect(&g, "gone", 60);
	il_end(&g, 60);
}

static const struct test_case cases[] = {
	{ "share", share, 7200, 0 },
};

int main(int argc, char **argv)
{
	return test_main_args(argc, argv, cases, sizeof(cases) / sizeof(cases[0]),
			      "KERNEL INITRD ", &il_kernel, &il_initrd);
}
