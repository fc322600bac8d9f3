/* SPDX-License-Identifier: MIT */
/*
 * test_linux_blk.c - disks, with the Linux driver, and what can go wrong behind them.
 *
 *	test_linux_blk [options] KERNEL INITRD [CASE...]
 *
 * Guests: inlinux.h.  Files are on tmpfs, where requests are done at once; on
 * ext4, where they may have to wait; and past the page cache (VMM_DIRECT).  With
 * -f 200 MiB, else less, and not on all of them.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "inlinux.h"
#include "pattern.h"

enum { ON_TMPFS, ON_EXT4, ON_DIRECT };

static unsigned int data_mib(void)
{
	return test_options.full ? 200 : 4;
}

/* Where the case's disks lie, and how they are opened. */
static const char *place(unsigned int mib, uint32_t *flags)
{
	*flags = test_arg == ON_DIRECT ? VMM_DIRECT : 0;
	return il_mount(test_arg == ON_TMPFS ? "tmpfs" : "ext4", mib);
}

static uint64_t blocks(const char *path)
{
	struct stat st;

	CHECK(stat(path, &st) == 0);
	return (uint64_t)st.st_blocks * 512;
}

/* What the host's fsck finds in the file. */
static void fsck(const char *path)
{
	char out[400];

	if (il_shell(out, sizeof(out), "PATH=$PATH:/usr/sbin:/sbin; command -v e2fsck >/dev/null || exit 0; "
		     "e2fsck -fn %s 2>&1", path))
		test_fail("e2fsck: %s", out);
}

/* A number of a script, which is not the shell's own to expand. */
static char *with_numbers(const char *fmt, unsigned int mib)
{
	char *s;

	CHECK(asprintf(&s, "MIB=%u BYTES=%llu\n%s", mib, (unsigned long long)mib << 20, fmt) > 0);
	return s;
}

/*
 * A file system made, filled, read back from the disk and checked, by the guest
 * and, after power-off, by the host; several things at once, with checksums.
 */
static void ext4(void)
{
	static const char script[] =
		"D=/dev/vdd\n"
		"mkfs.ext4 -q $D\n"
		"mkdir /tmp/m; mount $D /tmp/m\n"
		"inside fill 1 $BYTES >/tmp/m/a & \n"
		"inside fill 2 $((BYTES / 4)) >/tmp/m/b & \n"
		"wait %1 && wait %2\n"
		"sync; echo 3 >/proc/sys/vm/drop_caches\n"
		"inside check 1 $BYTES </tmp/m/a\n"
		"umount /tmp/m; mount $D /tmp/m\n"
		"inside check 2 $((BYTES / 4)) </tmp/m/b\n"
		"say read back\n"
		"fio --name=v --filename=/tmp/m/f --size=$((MIB / 4))M --rw=randwrite --bsrange=4k-64k"
		" --direct=1 --ioengine=io_uring --iodepth=16 --verify=crc32c"
		" --verify_fatal=1 --minimal >/tmp/fio\n"
		"rm /tmp/m/f; umount /tmp/m\n"
		"e2fsck -fn $D\n"
		"say done\n";
	char *text = with_numbers(script, data_mib());
	unsigned int mib = data_mib() * 2 + 32;
	struct inlinux g;
	const char *path;
	uint32_t flags;

	if (test_arg != ON_EXT4)
		test_long();
	path = il_file(place(mib + 32 + mib / 8, &flags), "disk", (uint64_t)mib << 20);
	il_new(&g, text, test_arg == ON_EXT4 ? 2 : 1, 256);
	CALL(vmm_add_blk(g.vm, "disk", path, flags, &test_err));
	il_start(&g);
	il_expect(&g, "read back", 900);
	il_expect(&g, "done", 400);
	il_end(&g, 60);
	fsck(path);
	free(text);
}

/* The plug is pulled while it writes: what was flushed is there. */
static void plug(void)
{
	static const char first[] =
		"mkfs.ext4 -q /dev/vdd; mkdir /tmp/m; mount /dev/vdd /tmp/m\n"
		"inside fill 7 $BYTES >/tmp/m/a; sync /tmp/m/a; sync\n"
		"say flushed\n"
		"i=0; while :; do i=$((i + 1)); inside fill $i 300000 >/tmp/m/x$((i % 20)); done\n";
	static const char second[] =
		"mkdir /tmp/m; mount /dev/vdd /tmp/m\n"
		"inside check 7 $BYTES </tmp/m/a; umount /tmp/m\n"
		"e2fsck -fn /dev/vdd\n";
	unsigned int mib = test_options.full ? 50 : 4;
	char *a = with_numbers(first, mib), *b = with_numbers(second, mib);
	struct inlinux g;
	const char *path;
	uint32_t flags;

	test_long();
	path = il_file(place(mib + 64, &flags), "disk", (uint64_t)(mib + 24) << 20);
	il_new(&g, a, 1, 256);
	CALL(vmm_add_blk(g.vm, "disk", path, flags, &test_err));
	il_start(&g);
	il_expect(&g, "flushed", 120);
	sleep_ms(1000);
	CALL(vmm_stop(g.vm, &test_err));
	il_free(&g);
	il_new(&g, b, 1, 256);
	CALL(vmm_add_blk(g.vm, "disk", path, flags, &test_err));
	il_start(&g);
	il_end(&g, 120);
	fsck(path);
	free(a);
	free(b);
}

/* What the guest discards, the host gets back. */
static void trim(void)
{
	static const char script[] =
		"mkfs.ext4 -q /dev/vdd; mkdir /tmp/m; mount /dev/vdd /tmp/m\n"
		"inside fill 3 $BYTES >/tmp/m/a; sync; say written; hear\n"
		"rm /tmp/m/a; sync; fstrim -v /tmp/m; say trimmed; hear\n"
		"inside fill 4 1000000 >/tmp/m/b; umount /tmp/m; e2fsck -fn /dev/vdd\n"
		"blkdiscard -fz /dev/vdd; cmp -n $BYTES /dev/vdd /dev/zero\n";
	unsigned int mib = test_options.full ? 100 : 6;
	char *text = with_numbers(script, mib);
	uint64_t full, after;
	struct inlinux g;
	const char *path;
	uint32_t flags;

	if (test_arg == ON_TMPFS)
		test_long();
	path = il_file(place(mib + 64, &flags), "disk", (uint64_t)(mib + 24) << 20);
	il_new(&g, text, 1, 256);
	CALL(vmm_add_blk(g.vm, "disk", path, flags, &test_err));
	il_start(&g);
	il_expect(&g, "written", 120);
	full = blocks(path);
	il_say(&g, "go");
	il_expect(&g, "trimmed", 120);
	after = blocks(path);
	test_note("%u MiB deleted and trimmed: the file had %llu KiB, and has %llu", mib,
		  (unsigned long long)full >> 10, (unsigned long long)after >> 10);
	CHECK(full >= (uint64_t)mib << 20);
	CHECK(after + ((uint64_t)mib << 20) <= full + (512 << 10));
	il_say(&g, "go");
	il_end(&g, 120);
	free(text);
}

static void sum(const char *path, char *out, size_t cap)
{
	CHECK(il_shell(out, cap, "sha256sum <%s", path) == 0);
}

/* Two machines write to overlays of one image, which stays as it was. */
static void overlay(void)
{
	static const char script[] =
		"hear >/tmp/me; mkdir /tmp/m; mount /dev/vdd /tmp/m\n"
		"inside check 5 $BYTES </tmp/m/base\n"
		"inside fill $(cat /tmp/me) $BYTES >/tmp/m/base; rm -f /tmp/m/none\n"
		"fallocate -z -o 4096 -l 65536 /tmp/m/base\n"
		"sync; fstrim /tmp/m; echo 3 >/proc/sys/vm/drop_caches\n"
		"inside fill $(cat /tmp/me) $BYTES >/tmp/want\n"
		"head -c 65536 /dev/zero | dd of=/tmp/want bs=4096 seek=1 conv=notrunc status=none\n"
		"cmp /tmp/want /tmp/m/base; umount /tmp/m; e2fsck -fn /dev/vdd\n"
		"say done; hear\n";
	unsigned int mib = 2;
	char *text = with_numbers(script, mib), before[100], after[100], out[300];
	const char *path = il_file(il_dir(), "base", 32u << 20);
	struct inlinux g[2];
	int i;

	snprintf(out, sizeof(out), "%s", guest_path("../kvm/inside"));
	if (il_shell(before, sizeof(before), "PATH=$PATH:/usr/sbin:/sbin; mkdir %s.d && %s fill 5 %u >%s.d/base && "
		     "mkfs.ext4 -q -d %s.d %s", path, out, mib << 20, path, path, path))
		test_skip("no mkfs.ext4 on this host");
	sum(path, before, sizeof(before));
	CHECK(chmod(path, 0400) == 0);
	for (i = 0; i < 2; i++) {
		il_new(&g[i], text, 1, 256);
		CALL(vmm_add_blk(g[i].vm, "disk", path, VMM_OVERLAY, &test_err));
		il_start(&g[i]);
		il_say(&g[i], i ? "11" : "10");
	}
	for (i = 0; i < 2; i++)
		il_expect(&g[i], "done", 200);
	for (i = 0; i < 2; i++) {
		il_say(&g[i], "go");
		il_end(&g[i], 60);
	}
	sum(path, after, sizeof(after));
	CHECK(strcmp(before, after) == 0);
	free(text);
}

/*
 * Behind vdd a file that is cut short while the guest runs, behind vde one on a
 * file system that fills up, behind vdf a block device that cannot be read from
 * some place on; vdg is read-only.  The guest gets errors, and all else goes on.
 */
static void trouble(void)
{
	static const char script[] =
		/* fails COMMAND...: it does, with this error, before long. */
		"fails() { if timeout 60 \"$@\" 2>/tmp/why; then say \"went well: $*\"; exit 1; fi;"
		" grep -qE 'Input/output error|Operation not permitted|No space' /tmp/why ||"
		" { cat /tmp/why; exit 1; }; }\n"
		"r=\"bs=64k iflag=direct status=none of=/dev/null\"\n"
		"w=\"bs=64k oflag=direct status=none\"\n"
		"inside fill 1 1048576 >/tmp/p\n"
		"dd if=/tmp/p of=/dev/vdd $w; dd if=/dev/vdd $r; say ready; hear\n"
		/* cut to 512 KiB + 100 bytes */
		"dd if=/dev/vdd $r count=8\n"
		"fails dd if=/dev/vdd $r skip=8\n"
		"fails dd if=/dev/vdd $r skip=100\n"
		"cmp -n 524288 /dev/vdd /tmp/p\n"
		"dd if=/tmp/p of=/dev/vdd $w; blockdev --flushbufs /dev/vdd; cmp -n 1048576 /dev/vdd /tmp/p\n"
		"say cut\n"
		/* 4 MiB of room */
		"dd if=/tmp/p of=/dev/vde $w\n"
		"fails dd if=/dev/zero of=/dev/vde $w seek=16 count=200\n"
		"fails dd if=/dev/zero of=/dev/vde bs=64k status=none seek=16 count=200 conv=fsync\n"
		"blockdev --flushbufs /dev/vde; cmp -n 1048576 /dev/vde /tmp/p\n"
		"blkdiscard -fo 1048576 /dev/vde; dd if=/tmp/p of=/dev/vde $w seek=40\n"
		"say full\n"
		/* 1 MiB of it is there */
		"dd if=/dev/vdf $r count=16\n"
		"fails dd if=/dev/vdf $r skip=16 count=1\n"
		"fails dd if=/dev/vdf $r skip=60 count=4\n"
		"dd if=/dev/vdf $r count=16\n"
		"say unreadable\n"
		"[ $(blockdev --getro /dev/vdg) = 1 ]\n"
		"fails dd if=/tmp/p of=/dev/vdg $w\n"
		"dd if=/dev/vdg $r\n";
	const char *cut, *full, *ro;
	char loop[100], path[128];
	struct inlinux g;

	full = il_file(il_mount("tmpfs", 4), "full", 32u << 20);
	cut = il_file(il_mount("ext4", 32), "cut", 16u << 20);
	ro = il_file(il_dir(), "ro", 1u << 20);
	snprintf(path, sizeof(path), "%s", il_file(il_dir(), "short", 8u << 20));
	if (il_shell(loop, sizeof(loop), "losetup -f --show %s 2>&1", path))
		test_fail("losetup: %s", loop);
	loop[strcspn(loop, "\n")] = 0;
	CHECK(truncate(path, 1 << 20) == 0);
	il_new(&g, script, 2, 256);
	CALL(vmm_add_blk(g.vm, "cut", cut, 0, &test_err));
	CALL(vmm_add_blk(g.vm, "full", full, 0, &test_err));
	CALL(vmm_add_blk(g.vm, "unreadable", loop, 0, &test_err));
	CALL(vmm_add_blk(g.vm, "ro", ro, VMM_READONLY, &test_err));
	il_shell(NULL, 0, "losetup -d %s", loop);	/* when the machine lets go of it */
	il_start(&g);
	il_expect(&g, "ready", 60);
	CHECK(truncate(cut, 512 * 1024 + 100) == 0);
	il_say(&g, "go");
	il_expect(&g, "cut", 120);
	il_expect(&g, "full", 120);
	il_expect(&g, "unreadable", 120);
	il_end(&g, 60);
}

static const struct test_case cases[] = {
	{ "ext4-tmpfs", ext4, 1800, ON_TMPFS },
	{ "ext4-ext4", ext4, 1800, ON_EXT4 },
	{ "ext4-direct", ext4, 1800, ON_DIRECT },
	{ "plug", plug, 300, ON_EXT4 },
	{ "trim-tmpfs", trim, 300, ON_TMPFS },
	{ "trim-ext4", trim, 300, ON_EXT4 },
	{ "overlay", overlay, 300, 0 },
	{ "trouble", trouble, 300, 0 },
};

int main(int argc, char **argv)
{
	return test_main_args(argc, argv, cases, sizeof(cases) / sizeof(cases[0]),
			      "KERNEL INITRD ", &il_kernel, &il_initrd);
}
