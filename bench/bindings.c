/* SPDX-License-Identifier: MIT */
/*
 * bindings.c - the work that bench/bindings compares, in C; bindings.go and
 * bindings.py do the same.  In the guest something sends back what it gets on vsock
 * port 5000 (guest/echo.c).
 *
 *	bindings freeze FILE KERNEL INITRD	make the snapshot
 *	bindings work FILE			do what lines on stdin say
 *
 *	answer		restore a machine, start it, connect, send a byte, get it back:
 *			prints the microseconds of each, four numbers
 *	rr N		send a byte and get it back, N times on one connection: prints
 *			the microseconds for each time
 */
#include <err.h>
#include <vmm.h>

#include "bench.h"

#define PORT		5000
#define TIMEOUT_MS	60000

static struct vmm_error e;

static void check(int rc)
{
	if (rc)
		errx(1, "%s", e.message);
}

static void freeze(const char *file, const char *kernel, const char *initrd)
{
	struct vmm_config cfg = VMM_CONFIG_INIT;
	struct vmm_event ev;
	struct vmm_snap *snap;
	struct vmm *vm;

	cfg.kernel = kernel;
	cfg.initrd = initrd;
	cfg.cmdline = "quiet run=\"/echo; vmm-guest ring 1; sleep 1000000\"";
	check(vmm_create(&vm, &cfg, &e));
	check(vmm_add_vsock(vm, 3, &e));
	check(vmm_start(vm, &e));
	check(vmm_wait(vm, -1, &ev, &e));
	if (ev.type != VMM_EV_DOORBELL)
		errx(1, "event %u: %s", ev.type, ev.detail);
	check(vmm_pause(vm, &e));
	check(vmm_snap_take(&snap, vm, &e));
	check(vmm_snap_write(snap, file, NULL, &e));
	vmm_snap_free(snap);
	vmm_free(vm);
}

static void echo(int fd)
{
	char c = 'x';

	if (write(fd, &c, 1) != 1 || read(fd, &c, 1) != 1 || c != 'x')
		err(1, "no echo");
}

/* The first answer of a machine, and when each step towards it was done. */
static struct vmm *talk(struct vmm_snap *snap, int *fd, double at[5])
{
	struct vmm *vm;

	at[0] = now_us();
	check(vmm_restore(&vm, snap, NULL, &e));
	at[1] = now_us();
	check(vmm_start(vm, &e));
	at[2] = now_us();
	check(vmm_connect(vm, PORT, TIMEOUT_MS, fd, &e));
	at[3] = now_us();
	echo(*fd);
	at[4] = now_us();
	return vm;
}

static void answer(struct vmm_snap *snap)
{
	double at[5];
	int fd, i;
	struct vmm *vm = talk(snap, &fd, at);

	close(fd);
	vmm_free(vm);
	for (i = 0; i < 4; i++)
		printf("%.3f%c", at[i + 1] - at[i], i < 3 ? ' ' : '\n');
}

static void echoes(int fd, int n)
{
	double begin = now_us();
	int i;

	for (i = 0; i < n; i++)
		echo(fd);
	printf("%.3f\n", (now_us() - begin) / n);
}

static void work(const char *file)
{
	struct vmm *talker = NULL;
	struct vmm_snap *snap;
	double at[5];
	char line[80];
	int fd = -1, n;

	check(vmm_snap_open(&snap, file, &e));
	while (fgets(line, sizeof(line), stdin)) {
		if (sscanf(line, "rr %d", &n) == 1) {
			if (!talker)
				talker = talk(snap, &fd, at);
			echoes(fd, n);
		} else {
			answer(snap);
		}
		fflush(stdout);
	}
	if (talker)
		close(fd);
	vmm_free(talker);
	vmm_snap_free(snap);
}

int main(int argc, char **argv)
{
	if (argc == 5 && !strcmp(argv[1], "freeze"))
		freeze(argv[2], argv[3], argv[4]);
	else if (argc == 3 && !strcmp(argv[1], "work"))
		work(argv[2]);
	else
		errx(2, "usage: bindings freeze FILE KERNEL INITRD | work FILE");
	return 0;
}
