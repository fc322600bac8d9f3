/* SPDX-License-Identifier: MIT */
/*
 * test_linux_pause.c - machines held still over and over, with devices busy.
 *
 *	test_linux_pause [options] KERNEL INITRD [CASE...]
 *
 * Guests: inlinux.h.  Two disks are written and verified by fio, and bytes run
 * through vsock both ways, while the machine is paused and started: nothing may
 * be lost, nor done twice, which the driver would call an id that is no head.
 * How long a pause takes is told.  With -f 1,000 rounds, else less.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "inlinux.h"

#define PORT	5000u

static struct inlinux guest;
static uint64_t took[2000];		/* microseconds */

static uint64_t now_us(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000 + (uint64_t)ts.tv_nsec / 1000;
}

static int order(const void *a, const void *b)
{
	const uint64_t *x = a, *y = b;

	return (*x > *y) - (*x < *y);
}

static void rounds(const char *what, unsigned int n)
{
	unsigned int i, seed = 1;
	uint64_t start;

	for (i = 0; i < n; i++) {
		start = now_us();
		CALL(vmm_pause(guest.vm, &test_err));
		took[i] = now_us() - start;
		if (i % 10 == 0)
			sleep_ms(5);
		CALL(vmm_start(guest.vm, &test_err));
		seed = seed * 1664525 + 1013904223;
		sleep_ms(seed >> 27);
	}
	qsort(took, n, sizeof(took[0]), order);
	test_note("%u pauses, %s: median %llu us, p99 %llu, longest %llu", n, what,
		  (unsigned long long)took[n / 2], (unsigned long long)took[n - 1 - n / 100],
		  (unsigned long long)took[n - 1]);
}

static void busy(void)
{
	static const char script[] =
		"hear\n"
		"until [ -e /tmp/stop ]; do inside call vsock:5000 1 1 source 50000; done & \n"
		"until [ -e /tmp/stop ]; do inside call vsock:5000 1 1 sink 50000; done & \n"
		"for d in vdd vde; do until [ -e /tmp/stop ]; do\n"
		"fio --name=v --filename=/dev/$d --size=1M --io_size=512K --rw=randwrite --bs=4k --direct=1"
		" --ioengine=io_uring --iodepth=16 --verify=crc32c --verify_fatal=1 --verify_state_save=0"
		" --randrepeat=0 --minimal >/tmp/$d; echo $d >>/tmp/rounds; done & done\n"
		"sleep 3; say busy; hear; touch /tmp/stop\n"
		"for j in 1 2 3 4; do wait -n; done; say rounds $(wc -l </tmp/rounds)\n"
		"! dmesg | grep -E 'virtio.*(bad|rror|head)|I/O error|hung|stall'\n";
	char line[64];
	const char *near, *far;
	int s;

	if (test_arg == 1)
		test_long();
	near = il_file(il_mount("tmpfs", 16), "near", 8u << 20);
	far = il_file(il_mount("ext4", 32), "far", 8u << 20);
	il_new(&guest, script, (uint32_t)test_arg, 256);
	CALL(vmm_add_blk(guest.vm, "near", near, 0, &test_err));
	CALL(vmm_add_blk(guest.vm, "far", far, VMM_DIRECT, &test_err));
	CALL(vmm_add_vsock(guest.vm, 3, &test_err));
	CALL(vmm_listen(guest.vm, PORT, &s, &test_err));
	il_serve(s, 0);
	il_start(&guest);
	sleep_ms(500);
	rounds("idle", 20);
	CHECK(took[10] < 100000 * test_options.factor);
	il_say(&guest, "go");
	il_expect(&guest, "busy", 120);
	rounds("busy", test_options.full ? 1000 : 30);
	il_say(&guest, "stop");
	il_expect_rest(&guest, "rounds", line, sizeof(line), 300);
	test_note("fio has written and verified%s times", line);
	il_end(&guest, 120);
}

static const struct test_case cases[] = {
	{ "busy-1", busy, 1800, 1 },
	{ "busy-2", busy, 1800, 2 },
};

int main(int argc, char **argv)
{
	return test_main_args(argc, argv, cases, sizeof(cases) / sizeof(cases[0]),
			      "KERNEL INITRD ", &il_kernel, &il_initrd);
}
