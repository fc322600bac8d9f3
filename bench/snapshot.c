/* SPDX-License-Identifier: MIT */
/*
 * snapshot.c - measure snapshots of a real guest on KVM, by vmm.h alone.
 *
 *	snapshot KIND ROUNDS DIR NAME MEMORY-MIB COMMAND-LINE KERNEL INITRD|- DISK|-
 *
 * KIND is "virtual" (the clock counts instructions) or "wall", whose rows end in ".wall".
 * The guest rings when it is ready; "python" is also asked over vsock after each
 * restore, and its answers checked (tests/lab/python-guest.py); another must ring
 * again.  DIR is in memory.  Left there: NAME.snap, for bench/snapfile, which
 * measures the file on the machine at hand.
 *
 *	NAME.pause	vmm_pause to vmm_start, with vmm_snap_take in between
 *	NAME.pause.clone	the same of a restored guest
 *	NAME.write	vmm_snap_write; NAME.write.mib_s: RAM written a second
 *	NAME.size.*	of the file, beside "zstd" of the same level, 1 or 3, of the RAM
 *	NAME.diff	vmm_snap_write of a clone's changes; NAME.diff.size
 *	NAME.eager.*	vmm_snap_open and vmm_restore, beside "zstd -d" and "cp"
 *			of the same RAM
 *	NAME.clone	vmm_restore once more, from the same struct vmm_snap
 *	NAME.answer	vmm_start of a clone to its first sign of life
 *	rounds.failed	restores after which the guest did not go on
 */
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <vmm.h>

#include "bench.h"

#define PORT		5000
#define RAM		0x80000000ull
#define PATIENCE	600000		/* ms: emulated hosts are slow */

static struct vmm_error e;
static struct json_object *rows;
static const char *kind, *name, *disk;
static char snap_path[256], diff_path[256], raw_path[256], zst_path[256], out_path[256];
static uint64_t memory;

static void check(int rc)
{
	if (rc)
		errx(1, "%s", e.message);
}

static const char *full_name(const char *what)
{
	static char full[64];

	snprintf(full, sizeof(full), "%s.%s%s", name, what, strcmp(kind, "wall") ? "" : ".wall");
	return full;
}

static void add_row(const char *what, const char *unit, struct samples *s, const char *reference,
		    struct samples *ref)
{
	row(rows, full_name(what), unit, s, reference, ref);
}

static void add_devices(struct vmm *vm)
{
	check(vmm_add_serial(vm, -1, 2, &e));
	check(vmm_add_rng(vm, "rng", &e));
	check(vmm_add_vsock(vm, 3, &e));
	if (*disk != '-')
		check(vmm_add_blk(vm, "disk", disk, VMM_READONLY, &e));
}

/* The guest rings; 0 if it does not. */
static int rings(struct vmm *vm)
{
	struct vmm_event ev;

	return vmm_wait(vm, PATIENCE, &ev, &e) == 0 && ev.type == VMM_EV_DOORBELL;
}

/* A request, as python-guest.py has them, and its answer; 0 if that is wrong. */
static int answers(struct vmm *vm)
{
	static int id;
	char line[512], want[32];
	int fd, n;
	FILE *f;

	if (vmm_connect(vm, PORT, PATIENCE, &fd, &e))
		return 0;
	n = snprintf(line, sizeof(line), "{\"id\": %d, \"nonce\": \"n\"}\n", ++id);
	snprintf(want, sizeof(want), "{\"id\": %d, \"rows\": 10,", id);
	if (write(fd, line, (size_t)n) != n)
		return 0;
	f = fdopen(fd, "r");
	n = f && fgets(line, sizeof(line), f) && strncmp(line, want, strlen(want)) == 0 &&
	    strstr(line, "\"sha256\": \"");
	fclose(f);
	return n;
}

static int lives(struct vmm *vm)
{
	return strcmp(name, "python") == 0 ? answers(vm) : rings(vm);
}

static struct vmm_snap *take(struct vmm *vm, struct samples *pause)
{
	struct vmm_snap *s;
	double t = now_us();

	check(vmm_pause(vm, &e));
	check(vmm_snap_take(&s, vm, &e));
	check(vmm_start(vm, &e));
	sample(pause, now_us() - t);
	return s;
}

/* What the tools are given: RAM as it is in the snapshot. */
static void write_raw(struct vmm *vm)
{
	static uint8_t buf[1 << 20];
	uint64_t off;
	FILE *f = fopen(raw_path, "wb");

	for (off = 0; off < memory; off += sizeof(buf)) {
		check(vmm_read(vm, RAM + off, buf, sizeof(buf), &e));
		if (!f || fwrite(buf, 1, sizeof(buf), f) != sizeof(buf))
			err(1, "%s", raw_path);
	}
	if (!f || fclose(f))
		err(1, "%s", raw_path);
}

/* One restore from the file, and from what has been read of it; does it live? */
static int restored(struct samples *eager, struct samples *clone, struct samples *answer,
		    struct vmm **out)
{
	struct vmm_restore_config how = VMM_RESTORE_INIT;
	struct vmm_snap *s;
	struct vmm *vm;
	double t = now_us();
	int ok;

	how.memory = VMM_MEM_EAGER;
	check(vmm_snap_open(&s, snap_path, &e));
	check(vmm_restore(&vm, s, &how, &e));
	sample(eager, now_us() - t);
	vmm_free(vm);
	t = now_us();
	check(vmm_restore(&vm, s, NULL, &e));
	sample(clone, now_us() - t);
	add_devices(vm);
	t = now_us();
	check(vmm_start(vm, &e));
	ok = lives(vm);
	sample(answer, now_us() - t);
	vmm_snap_free(s);
	if (ok)
		*out = vm;
	else
		vmm_free(vm);
	return ok;
}

static struct vmm *booted(char **argv)
{
	struct vmm_config cfg = VMM_CONFIG_INIT;
	struct vmm *vm;

	cfg.cmdline = argv[6];
	cfg.kernel = argv[7];
	cfg.initrd = argv[8][0] == '-' ? NULL : argv[8];
	cfg.memory = memory;
	check(vmm_create(&vm, &cfg, &e));
	add_devices(vm);
	check(vmm_start(vm, &e));
	if (!rings(vm))
		errx(1, "%s did not ring", name);
	return vm;
}

/* Level 3, and what stays: level 1, with the tool's file beside it. */
static void sizes(struct vmm_snap *s)
{
	struct vmm_write_config how = VMM_WRITE_INIT;
	char command[600], row_name[16], tool[16];

	for (how.level = 3; how.level > 0; how.level -= 2) {
		check(vmm_snap_write(s, snap_path, &how, &e));
		snprintf(command, sizeof(command), "exec zstd -qf -%d %s -o %s", (int)how.level,
			 raw_path, zst_path);
		run(command);
		snprintf(row_name, sizeof(row_name), "size.l%d", (int)how.level);
		snprintf(tool, sizeof(tool), "zstd -%d", (int)how.level);
		row_value(rows, full_name(row_name), "bytes", size_of(snap_path), tool,
			  size_of(zst_path));
	}
}

static void measure(unsigned int rounds, char **argv)
{
	static struct samples pause_, again, write_, mib, eager, clone, answer, unzstd, cp, diff,
		failures;
	struct vmm_write_config how = VMM_WRITE_INIT;
	char c_unzstd[600], c_cp[600];
	struct vmm *vm = booted(argv), *copy;
	struct vmm_snap *s = NULL;
	unsigned int i, failed = 0;

	for (i = 0; i < rounds; i++) {
		vmm_snap_free(s);
		s = take(vm, &pause_);
		if (!lives(vm))
			errx(1, "%s does not live on", name);
	}
	vmm_free(vm);
	for (i = 0; i < rounds; i++) {
		double t = now_us();

		check(vmm_snap_write(s, snap_path, NULL, &e));
		t = now_us() - t;
		sample(&write_, t);
		sample(&mib, (double)(memory >> 20) / t * 1e6);
	}
	check(vmm_restore(&vm, s, NULL, &e));
	write_raw(vm);
	vmm_free(vm);
	sizes(s);
	vmm_snap_free(s);
	snprintf(c_unzstd, sizeof(c_unzstd), "exec zstd -dqf %s -o %s", zst_path, out_path);
	snprintf(c_cp, sizeof(c_cp), "exec cp %s %s", raw_path, out_path);
	how.parent = snap_path;
	for (i = 0; i < rounds; i++) {
		sample(&unzstd, run(c_unzstd));
		unlink(out_path);
		sample(&cp, run(c_cp));
		unlink(out_path);
		if (!restored(&eager, &clone, &answer, &copy)) {
			warnx("round %u: %s", i, e.message);
			failed++;
			continue;
		}
		s = take(copy, &again);
		vmm_free(copy);
		{
			double t = now_us();

			check(vmm_snap_write(s, diff_path, &how, &e));
			sample(&diff, now_us() - t);
		}
		vmm_snap_free(s);
	}
	add_row("pause", "us", &pause_, NULL, NULL);
	add_row("pause.clone", "us", &again, "of the original", &pause_);
	add_row("write", "us", &write_, NULL, NULL);
	add_row("write.mib_s", "MiB/s", &mib, NULL, NULL);
	add_row("diff", "us", &diff, "whole", &write_);
	if (diff.n)
		row_value(rows, full_name("diff.size"), "bytes", size_of(diff_path), "whole",
			  size_of(snap_path));
	add_row("eager.vs_zstd", "us", &eager, "zstd -d", &unzstd);
	add_row("eager.vs_cp", "us", &eager, "cp", &cp);
	add_row("clone", "us", &clone, "from the file", &eager);
	add_row("answer", "us", &answer, NULL, NULL);
	sample(&failures, failed);
	row(rows, "rounds.failed", "", &failures, NULL, NULL);
}

int main(int argc, char **argv)
{
	const char *dir;

	if (argc != 10 || atoi(argv[2]) < 1)
		errx(2, "usage: snapshot KIND ROUNDS DIR NAME MIB CMDLINE KERNEL INITRD DISK");
	kind = argv[1];
	dir = argv[3];
	name = argv[4];
	memory = strtoull(argv[5], NULL, 10) << 20;
	disk = argv[9];
	snprintf(snap_path, sizeof(snap_path), "%s/%s.snap", dir, name);
	snprintf(diff_path, sizeof(diff_path), "%s/%s.diff", dir, name);
	snprintf(raw_path, sizeof(raw_path), "%s/%s.raw", dir, name);
	snprintf(zst_path, sizeof(zst_path), "%s/%s.zst", dir, name);
	snprintf(out_path, sizeof(out_path), "%s/%s.out", dir, name);
	signal(SIGPIPE, SIG_IGN);
	rows = json_object_new_array();
	measure((unsigned int)atoi(argv[2]), argv);
	unlink(raw_path);
	unlink(zst_path);
	unlink(diff_path);
	print_results(host_info(), rows);
	return 0;
}
