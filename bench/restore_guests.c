/* SPDX-License-Identifier: MIT */
/*
 * restore_guests.c - the guests of bench/restore.
 *
 * "stub" is bare metal: frozen between two instructions, it goes on with one that
 * rings the doorbell, so that the event's time is that of the first instruction.
 * "busybox" is Linux with a process that is frozen in its own access to the
 * doorbell; its next one proves that it is whole (guest/next.c).  "python" is warm
 * and waits for requests (tests/lab/python-guest.py).
 */
#include <err.h>
#include <fcntl.h>
#include <sys/mman.h>

#include "restore.h"

#define PORT		5000
#define PATIENCE	600000		/* ms */
#define REQUEST		"{\"id\": 7, \"nonce\": \"seven\"}\n"

struct vmm_error e;

struct guest guests[GUESTS] = {
	[STUB] = { .name = "stub", .memory = 128 * MiB },
	[BUSYBOX] = { .name = "busybox", .memory = 128 * MiB,
		      .cmdline = "console=ttyS0 quiet run=/next" },
	[PYTHON] = { .name = "python", .memory = 512 * MiB,
		     .cmdline = "console=ttyS0 quiet root=/dev/vda ro init=/init" },
};

void check(int rc)
{
	if (rc)
		errx(1, "%s", e.message);
}

/* Two clones that draw the same number are not two. */
static void is_new(uint64_t random)
{
	static uint64_t seen[8192];
	static unsigned int n;
	unsigned int i;

	for (i = 0; i < n; i++)
		if (seen[i] == random)
			errx(1, "two clones draw the number %llx", (unsigned long long)random);
	if (n < sizeof(seen) / sizeof(seen[0]))
		seen[n++] = random;
}

/* ---- Answers --------------------------------------------------------------- */

/* The next event, which must be the doorbell. */
static struct vmm_event rung(struct vmm *vm)
{
	struct vmm_event ev;

	check(vmm_wait(vm, PATIENCE, &ev, &e));
	if (ev.type != VMM_EV_DOORBELL || (ev.value & 7) == 3)
		errx(1, "event %u, value %llx: %s", ev.type, (unsigned long long)ev.value,
		     ev.detail);
	return ev;
}

static const char *member(struct json_object *o, const char *key)
{
	struct json_object *v;

	if (!json_object_object_get_ex(o, key, &v))
		errx(1, "an answer without %s", key);
	return json_object_get_string(v);
}

/* A reply of the Python guest is what the original said, later, and by another. */
static void judge(struct guest *g, const char *line)
{
	struct json_object *o = json_tokener_parse(line);

	if (!o)
		errx(1, "not an answer: %s", line);
	if (!*g->sha256)
		snprintf(g->sha256, sizeof(g->sha256), "%s", member(o, "sha256"));
	if (strcmp(g->sha256, member(o, "sha256")))
		errx(1, "a wrong answer: %s", line);
	if (atof(member(o, "uptime")) <= g->uptime)
		errx(1, "an answer of the past: %s", line);
	is_new(strtoull(member(o, "random"), NULL, 16));
	if (g->uptime == 0)
		g->uptime = atof(member(o, "uptime"));
	json_object_put(o);
}

static double ask(struct guest *g, struct vmm *vm)
{
	char line[512];
	size_t n = 0;
	double when;
	ssize_t r;
	int fd;

	check(vmm_connect(vm, PORT, PATIENCE, &fd, &e));
	if (write(fd, REQUEST, strlen(REQUEST)) != (ssize_t)strlen(REQUEST))
		err(1, "request");
	do {
		r = read(fd, line + n, sizeof(line) - 1 - n);
		if (r <= 0)
			errx(1, "the guest hangs up");
		n += (size_t)r;
	} while (line[n - 1] != '\n' && n < sizeof(line) - 1);
	when = now_us();
	close(fd);
	line[n] = 0;
	judge(g, line);
	return when;
}

double guest_again(struct guest *g, struct vmm *vm)
{
	struct vmm_event ev;

	if (g == &guests[PYTHON])
		return ask(g, vm);
	ev = rung(vm);
	if (g == &guests[BUSYBOX])
		is_new(ev.value >> 32);
	return (double)ev.time_ns / 1e3;
}

double guest_go(struct guest *g, struct vmm *vm)
{
	const uint64_t go = 1;

	if (g->word)
		check(vmm_write(vm, g->word, &go, sizeof(go), &e));
	check(vmm_start(vm, &e));
	return guest_again(g, vm);
}

/* ---- Booting, freezing ------------------------------------------------------ */

/* An Image that rings the doorbell again and again. */
static int stub_image(void)
{
	static const uint32_t code[] = {
		0x0400006f,	/* j 64 */
		[16] = 0x090008b7, /* lui a7, 0x9000: VMM_GUEST_SBI */
		0x00000813,	/* li a6, 0 */
		0x00100513,	/* li a0, 1 */
		0x00000073,	/* ecall */
		0xff1ff06f	/* j back to li a6 */
	};
	static const uint64_t size = 4096, offset = 2u << 20;
	uint8_t image[4096] = { 0 };
	int fd = memfd_create("image", 0);

	memcpy(image, code, sizeof(code));
	memcpy(image + 8, &offset, 8);
	memcpy(image + 16, &size, 8);
	memcpy(image + 56, "RSC\x05", 4);
	if (fd < 0 || write(fd, image, sizeof(image)) != sizeof(image))
		err(1, "image");
	return fd;
}

struct vmm *guest_boot(struct guest *g)
{
	struct vmm_config cfg = VMM_CONFIG_INIT;
	double begin = now_us();
	struct vmm_event ev;
	struct vmm *vm;

	cfg.memory = g->memory;
	cfg.kernel = g->kernel;
	cfg.initrd = g->initrd;
	cfg.cmdline = g->cmdline;
	if (!g->kernel)
		cfg.kernel_fd = stub_image();
	check(vmm_create(&vm, &cfg, &e));
	if (g->kernel)
		check(vmm_add_serial(vm, -1, 2, &e));
	if (g->disk) {
		check(vmm_add_blk(vm, "root", g->disk, VMM_READONLY, &e));
		check(vmm_add_vsock(vm, 3, &e));
	}
	check(vmm_start(vm, &e));
	ev = rung(vm);
	g->boot_us = (double)ev.time_ns / 1e3 - begin;
	/* Of the one that is frozen: another boot has it elsewhere. */
	if (g == &guests[BUSYBOX] && !g->word)
		g->word = ev.value - 1;
	if (g != &guests[PYTHON])
		return vm;
	g->boot_us = ask(g, vm) - begin;
	/* Let it come to rest: frozen, it waits for the next one. */
	ask(g, vm);
	usleep(300000);
	return vm;
}

struct vmm_snap *guest_open(const struct guest *g, const char *dir, const char *suffix)
{
	struct vmm_snap *snap;
	char path[256];

	snprintf(path, sizeof(path), "%s/%s%s", dir, g->name, suffix);
	check(vmm_snap_open(&snap, path, &e));
	return snap;
}

static void save(struct vmm_snap *snap, const struct guest *g, const char *dir, const char *suffix)
{
	char path[256];

	snprintf(path, sizeof(path), "%s/%s%s", dir, g->name, suffix);
	check(vmm_snap_write(snap, path, NULL, &e));
	vmm_snap_free(snap);
}

void guest_freeze(struct guest *g, struct vmm *vm, const char *dir)
{
	struct vmm_snap *snap;

	check(vmm_pause(vm, &e));
	check(vmm_snap_take(&snap, vm, &e));
	save(snap, g, dir, "");
	vmm_free(vm);
}

void guest_learn(struct guest *g, const char *dir)
{
	struct vmm_restore_config how = VMM_RESTORE_INIT;
	struct vmm_snap *snap = guest_open(g, dir, "");
	struct vmm *vm;
	int i;

	for (i = 0; i < 2; i++) {
		how.flags = i ? VMM_RECORD | VMM_POPULATE : VMM_RECORD;
		check(vmm_restore(&vm, snap, &how, &e));
		guest_go(g, vm);
		check(vmm_snap_learn(snap, vm, &e));
		vmm_free(vm);
	}
	save(snap, g, dir, ".ws");
}
