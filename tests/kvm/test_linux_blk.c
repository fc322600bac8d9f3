/* SPDX-License-Identifier: MIT */
/*
 * test_linux_blk.c - disks, with the Linux driver, and what can go wrong behind them.
 *
 *	test_linux_blk [options] KERNEL INITRD [CASE...]
 *
 * Guests: inlinux.h.  Files are on tmpfs, where requests are done at once; on
 * ext4, where they may have to wait; and past the page cache (VMM_DIRECT).  With
 * -f 200 MiB, else less, and not on all of them.  An image in a format of its own,
 * qcow2, is served by qemu-storage-daemon over vhost-user.
 */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
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

/* A file system made on the disk, filled by two at once, and read back from it. */
#define FILL_AND_CHECK \
	"D=/dev/vdd\n" \
	"mkfs.ext4 -q $D\n" \
	"mkdir /tmp/m; mount $D /tmp/m\n" \
	"inside fill 1 $BYTES >/tmp/m/a & \n" \
	"inside fill 2 $((BYTES / 4)) >/tmp/m/b & \n" \
	"wait %1 && wait %2\n" \
	"sync; echo 3 >/proc/sys/vm/drop_caches\n" \
	"inside check 1 $BYTES </tmp/m/a\n" \
	"umount /tmp/m; mount $D /tmp/m\n" \
	"inside check 2 $((BYTES / 4)) </tmp/m/b\n"

/*
 * A file system made, filled, read back from the disk and checked, by the guest
 * and, after power-off, by the host; several things at once, with checksums.
 */
static void ext4(void)
{
	static const char script[] =
		FILL_AND_CHECK
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
		"inside fill $(cat /tmp/me) $BYTES | cmp -n 4096 - /tmp/m/base\n"
		"cmp -i 0:4096 -n 65536 /dev/zero /tmp/m/base\n"
		"inside fill $(cat /tmp/me) $BYTES | cmp -i 69632 - /tmp/m/base\n"
		"umount /tmp/m; e2fsck -fn /dev/vdd\n"
		"say done; hear\n";
	unsigned int mib = test_options.full ? data_mib() : 2;
	char *text = with_numbers(script, mib), before[100], after[100], out[300];
	const char *path = il_file(il_dir(), "base", (uint64_t)(mib + mib / 8 + 24) << 20);
	struct inlinux g[2];
	int i;

	snprintf(out, sizeof(out), "%s", guest_path("../kvm/inside"));
	if (il_shell(before, sizeof(before), "PATH=$PATH:/usr/sbin:/sbin; mkdir %s.d && %s fill 5 %u >%s.d/base && "
		     "mkfs.ext4 -q -d %s.d %s && rm -r %s.d", path, out, mib << 20, path, path, path,
		     path))
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
		il_expect(&g[i], "done", test_options.full ? 1500 : 200);
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

/* ---- qcow2 ------------------------------------------------------------------------ */

/* Make an image; skips the case on a host that cannot. */
static const char *qcow2_new(const char *dir, unsigned int mib)
{
	static char path[128];
	char out[300];

	if (il_shell(NULL, 0, "command -v qemu-storage-daemon && command -v qemu-img"))
		test_skip("no qemu-storage-daemon on this host");
	snprintf(path, sizeof(path), "%s/qcow2", dir);
	if (il_shell(out, sizeof(out), "qemu-img create -q -f qcow2 %s %uM 2>&1", path, mib))
		test_fail("qemu-img: %s", out);
	return path;
}

/* Serve it; our end of the daemon's socket. */
static int qcow2_serve(const char *path, pid_t *pid)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), i;
	char file[300], export[300];

	snprintf(a.sun_path, sizeof(a.sun_path), "%s/served", il_dir());
	snprintf(file, sizeof(file), "driver=qcow2,node-name=disk,discard=unmap,file.driver=file,"
		 "file.discard=unmap,file.filename=%s", path);
	snprintf(export, sizeof(export), "type=vhost-user-blk,id=export,node-name=disk,writable=on,"
		 "addr.type=unix,addr.path=%s", a.sun_path);
	*pid = fork();
	if (*pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		execlp("qemu-storage-daemon", "qemu-storage-daemon", "--blockdev", file, "--export",
		       export, (char *)NULL);
		_exit(127);
	}
	for (i = 0; i < 600 && connect(fd, (struct sockaddr *)&a, sizeof(a)) < 0; i++) {
		if (waitpid(*pid, NULL, WNOHANG) == *pid)
			test_fail("qemu-storage-daemon has ended");
		sleep_ms(50);
	}
	return fd;
}

/* The daemon ends, and closes its image. */
static void qcow2_end(pid_t pid)
{
	int status;

	kill(pid, SIGTERM);
	CHECK(waitpid(pid, &status, 0) == pid);
	CHECK_EQ(status, 0);
}

/* What qemu-img finds in an image, and fsck in what is in it. */
static void qcow2_check(const char *path, const char *how)
{
	char out[400];

	if (il_shell(out, sizeof(out), "qemu-img check -f qcow2 %s %s 2>&1", how, path))
		test_fail("qemu-img check: %s", out);
	if (il_shell(out, sizeof(out), "qemu-img convert -f qcow2 -O raw %s %s.raw 2>&1", path, path))
		test_fail("qemu-img convert: %s", out);
	snprintf(out, sizeof(out), "%s.raw", path);
	fsck(out);
	unlink(out);
}

/*
 * As ext4() above; then the machine is held now and then, for which the daemon has to give
 * its ring back in the midst of requests.
 */
static void qcow2(void)
{
	static const char script[] =
		FILL_AND_CHECK
		"copies() { n=0; until [ -e /tmp/stop ]; do\n"
		"dd if=/tmp/p of=/tmp/m/x$1 bs=64k oflag=direct conv=notrunc status=none\n"
		"dd if=/tmp/m/x$1 of=/tmp/y$1 bs=64k iflag=direct status=none\n"
		"cmp /tmp/p /tmp/y$1; n=$((n + 1)); done; echo $n >>/tmp/copies; }\n"
		"inside fill 3 1048576 >/tmp/p\n"
		"copies 1 & copies 2 & copies 3 & \n"
		"say busy; hear; touch /tmp/stop; wait -n; wait -n; wait -n\n"
		"say copied $(cat /tmp/copies)\n"
		"rm /tmp/m/a /tmp/m/x?; sync; fstrim /tmp/m; umount /tmp/m\n"
		"e2fsck -fn $D\n"
		"! dmesg | grep -E 'virtio.*(bad|rror|head)|I/O error|hung|stall'\n"
		"say done\n";
	char *text = with_numbers(script, data_mib()), line[64];
	unsigned int mib = data_mib() * 2 + 32, n = test_options.full ? 300 : 30, i;
	uint64_t full, after, start;
	struct inlinux g;
	const char *path;
	pid_t pid;
	int fd;

	path = qcow2_new(il_mount("ext4", mib + 64 + mib / 8), mib);
	fd = qcow2_serve(path, &pid);
	il_new(&g, text, 2, 256);
	CALL(vmm_add_vhost_blk(g.vm, "disk", fd, &test_err));
	close(fd);
	il_start(&g);
	il_expect(&g, "busy", 900);
	start = now_ms();
	for (i = 0; i < n; i++) {
		CALL(vmm_pause(g.vm, &test_err));
		CALL(vmm_start(g.vm, &test_err));
		sleep_ms(20 + i * 37 % 300);
	}
	test_note("held %u times within %llu ms", n, (unsigned long long)(now_ms() - start));
	full = blocks(path);
	il_say(&g, "stop");
	il_expect_rest(&g, "copied", line, sizeof(line), 300);
	il_expect(&g, "done", 400);
	after = blocks(path);
	test_note("copied meanwhile:%s; the file had %llu KiB, trimmed it has %llu", line,
		  (unsigned long long)full >> 10, (unsigned long long)after >> 10);
	CHECK(after + ((uint64_t)data_mib() << 20) <= full + (1 << 20));
	il_end(&g, 60);
	qcow2_end(pid);
	qcow2_check(path, "");
	free(text);
}

/* The daemon is killed: the guest has errors, we an event, and what was flushed is there. */
static void qcow2_killed(void)
{
	static const char first[] =
		"D=/dev/vdd\n"
		"mkfs.ext4 -q $D; mkdir /tmp/m; mount $D /tmp/m\n"
		"inside fill 7 $BYTES >/tmp/m/a; sync /tmp/m/a; sync\n"
		"inside fill 3 1048576 >/tmp/p\n"
		"refused() { cat /tmp/why$1; grep -qE \"Input/output error|$2\" /tmp/why$1; }\n"
		"reads() { while dd if=$D of=/dev/null bs=64k count=16 skip=$1 iflag=direct status=none;"
		" do :; done 2>/tmp/why$1; refused $1 none; }\n"
		"writes() { while dd if=/tmp/p of=/tmp/m/$1 bs=64k oflag=direct conv=notrunc status=none;"
		" do :; done 2>/tmp/why$1; refused $1 Read-only; }\n"
		"reads 0 & reads 16 & writes x & writes y & \n"
		"say busy; for i in 1 2 3 4; do wait -n; done; say failed\n"
		"! timeout 60 dd if=$D of=/dev/null bs=4k count=1 skip=999 iflag=direct 2>/tmp/why; refused '' none\n"
		"umount /tmp/m\n"
		"! timeout 60 dd if=/tmp/p of=$D bs=4k count=1 seek=999 oflag=direct 2>/tmp/why; refused '' none\n"
		"! dmesg | grep -E 'hung|stall|BUG'\n";
	static const char second[] =
		"mkdir /tmp/m; mount /dev/vdd /tmp/m\n"
		"inside check 7 $BYTES </tmp/m/a; umount /tmp/m\n"
		"e2fsck -fn /dev/vdd\n";
	unsigned int mib = test_options.full ? 50 : 4;
	char *a = with_numbers(first, mib), *b = with_numbers(second, mib);
	struct vmm_event ev;
	struct inlinux g;
	const char *path;
	pid_t pid;
	int fd;

	path = qcow2_new(il_mount("ext4", mib + 96), mib + 24);
	fd = qcow2_serve(path, &pid);
	il_new(&g, a, 2, 256);
	CALL(vmm_add_vhost_blk(g.vm, "disk", fd, &test_err));
	close(fd);
	il_start(&g);
	il_expect(&g, "busy", 300);
	sleep_ms(2000);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	next_event(g.vm, &ev, 60);
	CHECK_EQ(ev.type, VMM_EV_DEVICE);
	il_expect(&g, "failed", 60);
	il_end(&g, 120);

	fd = qcow2_serve(path, &pid);
	il_new(&g, b, 1, 256);
	CALL(vmm_add_vhost_blk(g.vm, "disk", fd, &test_err));
	close(fd);
	il_start(&g);
	il_end(&g, 120);
	qcow2_end(pid);
	/* Clusters that nothing refers to may be left of what was cut off. */
	qcow2_check(path, "-r leaks");
	free(a);
	free(b);
}

static const struct test_case cases[] = {
	{ "ext4-tmpfs", ext4, 1800, ON_TMPFS },
	{ "ext4-ext4", ext4, 1800, ON_EXT4 },
	{ "ext4-direct", ext4, 1800, ON_DIRECT },
	{ "plug", plug, 300, ON_EXT4 },
	{ "trim-tmpfs", trim, 300, ON_TMPFS },
	{ "trim-ext4", trim, 300, ON_EXT4 },
	{ "overlay", overlay, 1800, 0 },
	{ "trouble", trouble, 300, 0 },
	{ "qcow2", qcow2, 1800, 0 },
	{ "qcow2-killed", qcow2_killed, 600, 0 },
};

int main(int argc, char **argv)
{
	return test_main_args(argc, argv, cases, sizeof(cases) / sizeof(cases[0]),
			      "KERNEL INITRD ", &il_kernel, &il_initrd);
}
