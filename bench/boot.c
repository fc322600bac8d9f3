/* SPDX-License-Identifier: MIT */
/*
 * boot.c - how long a boot takes, beside QEMU's of the same kernel and initramfs.
 *
 *	boot KIND ROUNDS KERNEL INITRD [QEMU]
 *
 * KIND is how the rows are called, "virtual" (the clock counts instructions) or
 * "wall".  Rounds are interleaved, ours and QEMU's in turn.  Clocks start before
 * vmm_create() and before the fork() for QEMU, and are read when the guest's
 * first user-space line, "guest: up", has come and when the machine is off.
 *
 * The first instruction is measured with an Image of 5 MiB that begins by ringing
 * the doorbell.
 */
#include <err.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <vmm.h>

#include "bench.h"

#define CMDLINE "console=ttyS0 quiet run=true"
#define MEMORY (128u << 20)

static const char *kernel, *initrd, *qemu;

/* Read the console until text has come; the time then. */
static double wait_text(int fd, const char *text)
{
	char buf[4096];
	size_t n = 0;
	ssize_t r;

	while ((r = read(fd, buf + n, sizeof(buf) - 1 - n)) > 0) {
		n += (size_t)r;
		buf[n] = 0;
		if (strstr(buf, text))
			return now_us();
		if (n > sizeof(buf) / 2) {
			memmove(buf, buf + n - 64, 64);
			n = 64;
		}
	}
	errx(1, "console ended before \"%s\"", text);
}

/* Private memory of this process but for the guest's RAM, in bytes. */
static double private_bytes(void)
{
	FILE *f = fopen("/proc/self/smaps", "r");
	unsigned long start, end, kb;
	char line[512];
	double sum = 0;
	int ram = 0;

	while (f && fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
			ram = end - start >= MEMORY && end - start < 2 * MEMORY;
		else if (!ram && (sscanf(line, "Private_Clean: %lu", &kb) == 1 ||
				  sscanf(line, "Private_Dirty: %lu", &kb) == 1))
			sum += (double)kb * 1024;
	}
	if (f)
		fclose(f);
	return sum;
}

static void check(int rc, const struct vmm_error *error)
{
	if (rc)
		errx(1, "%s", error->message);
}

static void boot_ours(struct samples *up, struct samples *off, struct samples exits[VMM_EXITS],
		      struct samples *idle, struct samples stages[VMM_STAGES])
{
	struct vmm_config cfg = VMM_CONFIG_INIT;
	struct vmm_stats st = VMM_STATS_INIT;
	struct vmm_error e;
	struct vmm_event ev;
	struct vmm *vm;
	double before = private_bytes(), begin;
	int p[2], i;

	if (pipe2(p, O_CLOEXEC) < 0)
		err(1, "pipe");
	cfg.kernel = kernel;
	cfg.initrd = initrd;
	cfg.cmdline = CMDLINE;
	cfg.memory = MEMORY;
	begin = now_us();
	check(vmm_create(&vm, &cfg, &e), &e);
	check(vmm_add_serial(vm, -1, p[1], &e), &e);
	check(vmm_start(vm, &e), &e);
	sample(up, wait_text(p[0], "guest: up") - begin);
	check(vmm_stat(vm, &st, &e), &e);
	check(vmm_wait(vm, -1, &ev, &e), &e);
	sample(off, now_us() - begin);
	if (ev.type != VMM_EV_SHUTDOWN)
		errx(1, "event %u: %s", ev.type, ev.detail);
	sample(idle, private_bytes() - before);
	for (i = 0; i < VMM_EXITS; i++)
		sample(&exits[i], (double)st.exits[i]);
	for (i = 0; i < VMM_STAGES; i++)
		sample(&stages[i], (double)st.stage_ns[i] / 1e3);
	vmm_free(vm);
	close(p[0]);
	close(p[1]);
}

static void boot_qemu(struct samples *up, struct samples *off)
{
	double begin;
	int p[2];
	pid_t pid;

	if (pipe2(p, O_CLOEXEC) < 0)
		err(1, "pipe");
	begin = now_us();
	pid = fork();
	if (pid == 0) {
		dup2(p[1], 1);
		dup2(open("/dev/null", O_RDONLY), 0);
		execlp(qemu, qemu, "-M", "virt,aia=aplic-imsic", "-accel", "kvm", "-cpu", "host", "-m",
		       "128M", "-smp", "1", "-nodefaults", "-display", "none", "-no-reboot", "-serial",
		       "stdio", "-kernel", kernel, "-initrd", initrd, "-append", CMDLINE, (char *)NULL);
		err(127, "%s", qemu);
	}
	close(p[1]);
	sample(up, wait_text(p[0], "guest: up") - begin);
	waitpid(pid, NULL, 0);
	sample(off, now_us() - begin);
	close(p[0]);
}

/* A kernel of 5 MiB whose first instructions ring the doorbell. */
static int doorbell_image(void)
{
	static const uint32_t code[] = {
		0x090008b7,	/* lui a7, 0x9000: VMM_GUEST_SBI */
		0x00000813,	/* li a6, 0 */
		0x00100513,	/* li a0, 1 */
		0x00000073,	/* ecall */
		0x0000006f	/* j . */
	};
	static const uint64_t size = 5u << 20, offset = 2u << 20;
	static const uint32_t jump = 0x0400006f;	/* j 64 */
	int fd = memfd_create("image", 0);
	uint8_t *p;
	uint64_t i;

	if (fd < 0 || ftruncate(fd, (off_t)size) < 0)
		err(1, "image");
	p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	for (i = 0; i < size; i++)
		p[i] = (uint8_t)(i * 2654435761u >> 13);
	memset(p, 0, 64);
	memcpy(p, &jump, 4);
	memcpy(p + 8, &offset, 8);
	memcpy(p + 16, &size, 8);
	memcpy(p + 56, "RSC\x05", 4);
	memcpy(p + 64, code, sizeof(code));
	munmap(p, size);
	return fd;
}

static void first_instruction(struct samples *s, int image)
{
	struct vmm_config cfg = VMM_CONFIG_INIT;
	struct vmm_error e;
	struct vmm_event ev;
	struct vmm *vm;
	double begin;

	cfg.kernel_fd = image;
	cfg.memory = MEMORY;
	begin = now_us();
	check(vmm_create(&vm, &cfg, &e), &e);
	check(vmm_start(vm, &e), &e);
	check(vmm_wait(vm, -1, &ev, &e), &e);
	if (ev.type != VMM_EV_DOORBELL)
		errx(1, "event %u: %s", ev.type, ev.detail);
	sample(s, (double)ev.time_ns / 1e3 - begin);
	vmm_free(vm);
}

static struct samples up, off, qemu_up, qemu_off, first, idle, total;
static struct samples exits[VMM_EXITS], stages[VMM_STAGES];

int main(int argc, char **argv)
{
	static const char *const exit_names[VMM_EXITS] = { "mmio", "sbi", "csr", "signal", "other",
							   "kernel" };
	static const char *const stage_names[VMM_STAGES] = { "kvm", "vm", "memory", "vcpus",
							     "irqchip", "load", "start" };
	struct json_object *rows = json_object_new_array();
	char name[64];
	int rounds, i, k, image;

	if (argc < 5)
		errx(2, "usage: boot KIND ROUNDS KERNEL INITRD [QEMU]");
	rounds = atoi(argv[2]);
	kernel = argv[3];
	initrd = argv[4];
	qemu = argc > 5 ? argv[5] : NULL;
	image = doorbell_image();
	for (i = 0; i < rounds; i++) {
		boot_ours(&up, &off, exits, &idle, stages);
		if (qemu)
			boot_qemu(&qemu_up, &qemu_off);
		first_instruction(&first, image);
	}
	for (i = 0; i < rounds; i++) {
		double sum = 0;

		for (k = 0; k < VMM_EXITS; k++)
			sum += exits[k].v[i];
		sample(&total, sum);
	}
	snprintf(name, sizeof(name), "userspace.%s", argv[1]);
	row(rows, name, "us", &up, "qemu", &qemu_up);
	snprintf(name, sizeof(name), "poweroff.%s", argv[1]);
	row(rows, name, "us", &off, "qemu", &qemu_off);
	snprintf(name, sizeof(name), "first_instruction.%s", argv[1]);
	row(rows, name, "us", &first, NULL, NULL);
	for (i = 0; i < VMM_STAGES; i++) {
		snprintf(name, sizeof(name), "stage.%s.%s", stage_names[i], argv[1]);
		row(rows, name, "us", &stages[i], NULL, NULL);
	}
	if (strcmp(argv[1], "virtual") == 0) {
		row(rows, "exits", "count", &total, NULL, NULL);
		for (k = 0; k < VMM_EXITS; k++) {
			snprintf(name, sizeof(name), "exits.%s", exit_names[k]);
			row(rows, name, "count", &exits[k], NULL, NULL);
		}
		row(rows, "idle_private_bytes", "bytes", &idle, NULL, NULL);
	}
	print_results(host_info(), rows);
	return 0;
}
