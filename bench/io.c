/* SPDX-License-Identifier: MIT */
/*
 * io.c - requests per second of virtio devices, beside QEMU's with the same guest.
 *
 *	io KIND ROUNDS DIR [QEMU]
 *
 * KIND is how rows are called, "virtual" (the clock counts instructions) or
 * "wall".  DIR has Image, initrd.cpio, tools.erofs (fio, and bench/inside, which is
 * what runs in the guest) and room for a disk of 64 MiB.  Rounds are interleaved,
 * ours and QEMU's in turn, each in a machine of its own with one vCPU.  Behind the
 * network is a tap; QEMU's vsock is the host kernel's (vhost), and if the host has
 * none, there are no figures of QEMU's.
 *
 * The guest's "mark" lines say where a measurement begins and ends, and how many
 * interrupts it had; exits are KVM's own count (debugfs), the same for both.
 */
#include <arpa/inet.h>
#include <err.h>
#include <fcntl.h>
#include <net/if.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <vmm.h>

#include <linux/if_tun.h>
#include <linux/vm_sockets.h>

#include "bench.h"
#include "stream.h"

#define MEMORY_MIB	256
#define DISK_MIB	64
#define ROWS_MAX	16

/* One row, of ours and of QEMU's. */
struct figures {
	char		name[64];
	struct samples	value[2], exits[2], irqs[2];
};

static struct figures rows[ROWS_MAX];
static unsigned int nrows;
static char kernel[256], initrd[256], tools[256], disk[256];
static const char *qemu;
static int tap, host_vsock;

static struct figures *find(const char *name)
{
	unsigned int i;

	for (i = 0; i < nrows; i++)
		if (strcmp(rows[i].name, name) == 0)
			return &rows[i];
	if (nrows == ROWS_MAX)
		errx(1, "too many rows");
	snprintf(rows[nrows].name, sizeof(rows[nrows].name), "%s", name);
	return &rows[nrows++];
}

/* Exits of all vCPUs of this host. */
static double kvm_exits(void)
{
	FILE *f = fopen("/sys/kernel/debug/kvm/exits", "r");
	double n = 0;

	if (!f || fscanf(f, "%lf", &n) != 1)
		n = 0;
	if (f)
		fclose(f);
	return n;
}

/* ---- What the guest prints -------------------------------------------------- */

struct marks {
	struct figures	*row;		/* being measured */
	double		exits, irqs;	/* when it began */
	/* Of the rows that are done: divided by requests, when those are known. */
	double		all_exits[ROWS_MAX], all_irqs[ROWS_MAX];
};

static void on_mark(struct marks *m, const char *line)
{
	char name[64];
	double irqs;

	if (sscanf(line, "mark %63s %lf", name, &irqs) != 2)
		errx(1, "guest: %s", line);
	if (strcmp(name, "end") == 0) {
		m->all_exits[m->row - rows] = kvm_exits() - m->exits;
		m->all_irqs[m->row - rows] = irqs - m->irqs;
		return;
	}
	m->row = find(name);
	m->irqs = irqs;
	m->exits = kvm_exits();
}

static void add(struct marks *m, int who, const char *name, double value, double requests)
{
	struct figures *row = find(name);

	if (value <= 0 || requests <= 0)
		errx(1, "no value of %s", name);
	sample(&row->value[who], value);
	sample(&row->exits[who], m->all_exits[row - rows] / requests);
	sample(&row->irqs[who], m->all_irqs[row - rows] / requests);
	warnx("%s %s %g", who ? "qemu" : "ours", name, value);
}

/* fio's terse line, version 3: field 5 KiB read, 6 KiB/s, 7 requests/s; 46 on: written. */
static void on_fio(struct marks *m, int who, char *line)
{
	char *field[50], *p = line;
	double kib, rate, iops;
	int i, at;

	for (i = 0; i < 50; i++) {
		field[i] = strsep(&p, ";");
		if (!field[i])
			errx(1, "fio: line of %d fields", i);
	}
	at = atof(field[5]) > 0 ? 5 : 46;
	kib = atof(field[at]);
	rate = atof(field[at + 1]);
	iops = atof(field[at + 2]);
	if (atoi(field[4]))
		errx(1, "fio: %s: error %s", field[2], field[4]);
	if (strstr(field[2], ".seq"))
		add(m, who, field[2], rate * 1024 / 1e6, kib / 128);
	else
		add(m, who, field[2], iops, kib / 4);
}

static void on_stream(struct marks *m, int who, const char *line)
{
	char name[64];
	double value, requests;

	if (sscanf(line, "stream %63s %lf %lf", name, &value, &requests) != 3)
		errx(1, "guest: %s", line);
	add(m, who, name, value, requests);
}

/* Read the console to its end. */
static void watch(int who, int fd)
{
	FILE *f = fdopen(fd, "r");
	struct marks m = { 0 };
	char *line = NULL, last[4][200] = { "" };
	unsigned int n = 0;
	size_t cap = 0;
	int up = 0;

	while (getline(&line, &cap, f) > 0) {
		line[strcspn(line, "\r\n")] = 0;
		snprintf(last[n++ % 4], sizeof(last[0]), "%s", line);
		if (strncmp(line, "mark ", 5) == 0)
			on_mark(&m, line);
		else if (strncmp(line, "3;fio-", 6) == 0)
			on_fio(&m, who, line);
		else if (strncmp(line, "stream ", 7) == 0)
			on_stream(&m, who, line);
		else if (strcmp(line, "guest: exit 0") == 0)
			up = 1;
	}
	if (!up)
		errx(1, "the guest failed: %s / %s / %s", last[(n + 1) % 4], last[(n + 2) % 4],
		     last[(n + 3) % 4]);
	free(line);
	fclose(f);
}

/* ---- The host's side of connections ------------------------------------------ */

/* One connection after the other, for ever. */
static void serve(int s)
{
	struct stream_ask ask;
	char buf[STREAM_SMALL];
	int c, one = 1;

	while ((c = accept(s, NULL, NULL)) >= 0) {
		setsockopt(c, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
		if (!stream_read(c, &ask, sizeof(ask)))
			errx(1, "a guest asks for nothing");
		if (ask.op == STREAM_BULK && stream_read(c, NULL, ask.bytes))
			stream_write(c, NULL, ask.bytes);
		while (ask.op == STREAM_ECHO && stream_read(c, buf, sizeof(buf)))
			stream_write(c, buf, sizeof(buf));
		close(c);
	}
	err(1, "accept");
}

static void *serve_vsock(void *s)
{
	serve(*(int *)s);
	return NULL;
}

/* Serve at an address, in a process that ends with this one.  0: cannot. */
static int serve_at(int family, const void *address, socklen_t len)
{
	int s = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (s < 0 || bind(s, address, len) < 0 || listen(s, 10) < 0)
		return 0;
	if (fork() == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		serve(s);
	}
	close(s);
	return 1;
}

static void make_network(void)
{
	struct sockaddr_vm vm = { .svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY,
				  .svm_port = STREAM_PORT };
	struct sockaddr_in in = { .sin_family = AF_INET, .sin_port = htons(STREAM_PORT) };
	struct ifreq ifr = { .ifr_name = "tap0" };
	int s = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	tap = open("/dev/net/tun", O_RDWR);	/* QEMU inherits it */
	ifr.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
	if (tap < 0 || ioctl(tap, TUNSETIFF, &ifr) < 0)
		err(1, "tap");
	in.sin_addr.s_addr = htonl(0xc0000201);	/* 192.0.2.1 */
	memcpy(&ifr.ifr_addr, &in, sizeof(in));
	if (ioctl(s, SIOCSIFADDR, &ifr) < 0)
		err(1, "address of the tap");
	ifr.ifr_flags = IFF_UP | IFF_RUNNING;
	if (ioctl(s, SIOCSIFFLAGS, &ifr) < 0)
		err(1, "tap up");
	close(s);
	if (!serve_at(AF_INET, &in, sizeof(in)))
		err(1, "TCP");
	host_vsock = access("/dev/vhost-vsock", R_OK | W_OK) == 0 &&
		     serve_at(AF_VSOCK, &vm, sizeof(vm));
	if (!host_vsock)
		warnx("this host has no vhost-vsock: no vsock for QEMU");
}

/* ---- The machines ------------------------------------------------------------- */

static const char *cmdline(int vsock)
{
	static char s[300];

	snprintf(s, sizeof(s), "console=ttyS0 quiet run=\"mount -t erofs /dev/vda /mnt || "
		 "mount -t erofs /dev/vdb /mnt; sh /mnt/all%s\"", vsock ? " vsock" : "");
	return s;
}

static void check(int rc, const struct vmm_error *error)
{
	if (rc)
		errx(1, "%s", error->message);
}

static void run_ours(void)
{
	struct vmm_config cfg = VMM_CONFIG_INIT;
	struct vmm_error e;
	struct vmm_event ev;
	struct vmm *vm;
	pthread_t thread;
	int p[2], s;
	pid_t pid;

	if (pipe2(p, O_CLOEXEC) < 0)
		err(1, "pipe");
	/* In a process of its own, as QEMU is. */
	pid = fork();
	if (pid == 0) {
		cfg.kernel = kernel;
		cfg.initrd = initrd;
		cfg.cmdline = cmdline(1);
		cfg.memory = (uint64_t)MEMORY_MIB << 20;
		check(vmm_create(&vm, &cfg, &e), &e);
		check(vmm_add_serial(vm, -1, p[1], &e), &e);
		check(vmm_add_blk(vm, "tools", tools, VMM_READONLY, &e), &e);
		check(vmm_add_blk(vm, "disk", disk, 0, &e), &e);
		check(vmm_add_net(vm, "net", tap, NULL, &e), &e);
		check(vmm_add_vsock(vm, 3, &e), &e);
		check(vmm_listen(vm, STREAM_PORT, &s, &e), &e);
		if (pthread_create(&thread, NULL, serve_vsock, &s))
			errx(1, "thread");
		check(vmm_start(vm, &e), &e);
		check(vmm_wait(vm, -1, &ev, &e), &e);
		if (ev.type != VMM_EV_SHUTDOWN)
			errx(1, "event %u: %s", ev.type, ev.detail);
		vmm_free(vm);
		_exit(0);
	}
	close(p[1]);
	watch(0, p[0]);
	waitpid(pid, NULL, 0);
}

static void run_qemu(void)
{
	char drive[2][400], memory[16], netdev[64];
	int p[2];
	pid_t pid;

	if (pipe2(p, O_CLOEXEC) < 0)
		err(1, "pipe");
	pid = fork();
	if (pid == 0) {
		snprintf(drive[0], sizeof(drive[0]), "if=none,id=tools,format=raw,readonly=on,file=%s",
			 tools);
		snprintf(drive[1], sizeof(drive[1]), "if=none,id=disk,format=raw,aio=io_uring,file=%s",
			 disk);
		snprintf(memory, sizeof(memory), "%uM", MEMORY_MIB);
		snprintf(netdev, sizeof(netdev), "tap,id=net,fd=%d", tap);
		const char *const args[] = {
			qemu, "-M", "virt,aia=aplic-imsic", "-accel", "kvm", "-cpu", "host", "-m",
			memory, "-smp", "1", "-nodefaults", "-display", "none", "-no-reboot", "-serial",
			"stdio", "-global", "virtio-mmio.force-legacy=false",
			"-drive", drive[0], "-device", "virtio-blk-device,drive=tools",
			"-drive", drive[1], "-device", "virtio-blk-device,drive=disk",
			"-netdev", netdev, "-device", "virtio-net-device,netdev=net",
			"-kernel", kernel, "-initrd", initrd, "-append", cmdline(host_vsock),
			host_vsock ? "-device" : NULL, "vhost-vsock-device,guest-cid=3", NULL
		};
		dup2(p[1], 1);
		dup2(open("/dev/null", O_RDONLY), 0);
		execvp(qemu, (char **)(uintptr_t)args);
		err(127, "%s", qemu);
	}
	close(p[1]);
	watch(1, p[0]);
	waitpid(pid, NULL, 0);
}

/* A disk without holes, in the page cache. */
static void make_disk(void)
{
	static char block[1 << 20];
	int fd = open(disk, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600), i;

	memset(block, 0x5a, sizeof(block));
	for (i = 0; i < DISK_MIB; i++)
		if (fd < 0 || write(fd, block, sizeof(block)) != sizeof(block))
			err(1, "%s", disk);
	close(fd);
}

int main(int argc, char **argv)
{
	struct json_object *out = json_object_new_array();
	unsigned int k;
	char name[128];
	int rounds, i;

	if (argc < 4)
		errx(2, "usage: io KIND ROUNDS DIR [QEMU]");
	rounds = atoi(argv[2]);
	snprintf(kernel, sizeof(kernel), "%s/Image", argv[3]);
	snprintf(initrd, sizeof(initrd), "%s/initrd.cpio", argv[3]);
	snprintf(tools, sizeof(tools), "%s/tools.erofs", argv[3]);
	snprintf(disk, sizeof(disk), "%s/disk", argv[3]);
	qemu = argc > 4 ? argv[4] : NULL;
	make_disk();
	make_network();
	for (i = 0; i < rounds; i++) {
		run_ours();
		if (qemu)
			run_qemu();
	}
	for (k = 0; k < nrows; k++) {
		struct figures *f = &rows[k];
		int bytes = strstr(f->name, ".seq") || strstr(f->name, ".bulk");

		snprintf(name, sizeof(name), "%s.%s", f->name, argv[1]);
		row(out, name, bytes ? "MB/s" : "1/s", &f->value[0], "qemu", &f->value[1]);
	}
	for (k = 0; k < nrows; k++) {
		snprintf(name, sizeof(name), "exits_per_request.%s.%s", rows[k].name, argv[1]);
		row(out, name, "count", &rows[k].exits[0], "qemu", &rows[k].exits[1]);
		snprintf(name, sizeof(name), "interrupts_per_request.%s.%s", rows[k].name, argv[1]);
		row(out, name, "count", &rows[k].irqs[0], "qemu", &rows[k].irqs[1]);
	}
	print_results(host_info(), out);
	return 0;
}
