/* SPDX-License-Identifier: MIT */
/*
 * inlinux.c - see inlinux.h.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "inlinux.h"
#include "peer.h"

const char *il_kernel, *il_initrd;

static const char prologue[] =
	"set -e\n"
	"export PATH=/tmp:/usr/sbin:/usr/bin LC_ALL=C\n"
	"say() { echo \"says: $*\"; }\n"
	"hear() { local l; read -r l; echo \"$l\"; }\n"
	"stty -echo\n"
	"cat /dev/vdc >/tmp/inside\n"
	"chmod +x /tmp/inside\n"
	"say up\n";

/* ---- Files of the host -------------------------------------------------------- */

static char dir[64];
static char mounts[4][96];		/* mount points, last one first to go */
static unsigned int nmounts;

int il_shell(char *out, size_t cap, const char *fmt, ...)
{
	char cmd[1024], rest[256];
	size_t n = 0, r;
	int status;
	va_list ap;
	FILE *p;

	va_start(ap, fmt);
	vsnprintf(cmd, sizeof(cmd), fmt, ap);
	va_end(ap);
	p = popen(cmd, "re");
	CHECK(p);
	while (cap && n < cap - 1 && (r = fread(out + n, 1, cap - 1 - n, p)) > 0)
		n += r;
	if (cap)
		out[n] = 0;
	while (fread(rest, 1, sizeof(rest), p) > 0)
		;
	status = pclose(p);
	return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/*
 * A case may end anywhere, or be killed: a child of it stays behind, sees the
 * end of a pipe whose only writer was the case, and cleans up.
 */
static void cleaner(void)
{
	char cmd[256];
	int p[2], i;

	CHECK(pipe(p) == 0);
	fcntl(p[1], F_SETFD, FD_CLOEXEC);
	if (fork() != 0) {
		close(p[0]);
		return;
	}
	setsid();
	for (i = 0; i < 1024; i++)
		if (i != p[0])
			close(i);
	while (read(p[0], cmd, 1) < 0 && errno == EINTR)
		;
	/* Processes that the case leaves behind may hold it for a moment. */
	for (i = 0; i < 20; i++) {
		snprintf(cmd, sizeof(cmd), "for d in %s/*/; do mountpoint -q $d && umount $d; done;"
			 " rm -rf --one-file-system %s", dir, dir);
		if (system(cmd) == 0)
			break;
		sleep_ms(500);
	}
	_exit(0);
}

const char *il_dir(void)
{
	const char *tmp = getenv("TMPDIR");

	if (!dir[0]) {
		snprintf(dir, sizeof(dir), "%.40s/vmm-XXXXXX", tmp ? tmp : "/tmp");
		CHECK(mkdtemp(dir));
		cleaner();
	}
	return dir;
}

const char *il_file(const char *in, const char *name, uint64_t bytes)
{
	static char paths[4][128];
	static unsigned int next;
	char *path = paths[next++ % 4];
	int fd;

	snprintf(path, sizeof(paths[0]), "%s/%s", in, name);
	fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0 || ftruncate(fd, (off_t)bytes) < 0)
		test_fail("%s: %s", path, strerror(errno));
	close(fd);
	return path;
}

const char *il_mount(const char *kind, unsigned int mib)
{
	char *at = mounts[nmounts];
	char out[300];
	int r;

	if (geteuid() != 0)
		test_skip("mounting a %s wants root", kind);
	snprintf(at, sizeof(mounts[0]), "%s/m%u", il_dir(), nmounts++);
	CHECK(mkdir(at, 0700) == 0);
	if (strcmp(kind, "tmpfs") == 0)
		r = il_shell(out, sizeof(out), "mount -t tmpfs -o size=%uM t %s 2>&1", mib, at);
	else
		r = il_shell(out, sizeof(out), "truncate -s %uM %s.img && mkfs.%s -q %s.img 2>&1 && "
			     "mount -o loop,discard %s.img %s 2>&1", mib, at, kind, at, at, at);
	if (r)
		test_fail("a %s of %u MiB: %s", kind, mib, out);
	return at;
}

/* ---- Conversations ------------------------------------------------------------- */

static unsigned int serve_rest_ms;

static void *serve_one(void *arg)
{
	struct peer p = { (int)(intptr_t)arg, "", serve_rest_ms };

	pthread_detach(pthread_self());
	if (peer_serve(&p))
		test_fail("host's end: %s", p.why);
	close(p.fd);
	return NULL;
}

static void *serve(void *arg)
{
	int s = (int)(intptr_t)arg, c;
	pthread_t t;

	pthread_detach(pthread_self());
	while ((c = accept(s, NULL, NULL)) >= 0)
		CHECK(pthread_create(&t, NULL, serve_one, (void *)(intptr_t)c) == 0);
	return NULL;
}

void il_serve(int s, unsigned int rest_ms)
{
	pthread_t t;

	serve_rest_ms = rest_ms;
	CHECK(pthread_create(&t, NULL, serve, (void *)(intptr_t)s) == 0);
}

/* ---- The guest ---------------------------------------------------------------- */

/* A file with these bytes, padded to whole sectors. */
static void put_file(char *path, size_t cap, const char *head, const char *body, size_t n, char pad)
{
	int fd;
	off_t size;

	snprintf(path, cap, "%s/disk-XXXXXX", il_dir());
	fd = mkstemp(path);
	CHECK(fd >= 0);
	CHECK(write(fd, head, strlen(head)) == (ssize_t)strlen(head));
	CHECK(write(fd, body, n) == (ssize_t)n);
	for (size = (off_t)(strlen(head) + n); size % 512; size++)
		CHECK(write(fd, &pad, 1) == 1);
	close(fd);
}

static char *read_file(const char *path, size_t *n)
{
	struct stat st;
	char *p;
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0 || fstat(fd, &st) < 0)
		test_fail("%s: %s", path, strerror(errno));
	p = malloc((size_t)st.st_size);
	CHECK(read(fd, p, (size_t)st.st_size) == st.st_size);
	close(fd);
	*n = (size_t)st.st_size;
	return p;
}

static void il_log(void *arg, int level, const char *line)
{
	(void)arg;
	printf("# log %d: %s\n", level, line);
}

void il_new(struct inlinux *g, const char *script, uint32_t vcpus, unsigned int mib)
{
	struct vmm_config cfg = VMM_CONFIG_INIT;
	char tools[300], inside[300];
	const char *slash;
	size_t n;
	char *p;

	test_host();
	memset(g, 0, sizeof(*g));
	slash = strrchr(il_kernel, '/');
	snprintf(tools, sizeof(tools), "%.*s/../root.erofs",
		 slash ? (int)(slash - il_kernel) : 1, slash ? il_kernel : ".");
	snprintf(inside, sizeof(inside), "%s", guest_path("../kvm/inside"));
	put_file(g->files[0], sizeof(g->files[0]), prologue, script, strlen(script), '\n');
	p = read_file(inside, &n);
	put_file(g->files[1], sizeof(g->files[1]), "", p, n, 0);
	free(p);
	cfg.kernel = il_kernel;
	cfg.initrd = il_initrd;
	cfg.cmdline = "console=ttyS0 quiet run=\""
		"mount -t erofs /dev/vda /mnt && for d in dev proc sys; do mount -o rbind /$d /mnt/$d; "
		"done; mount -t tmpfs t /mnt/tmp; exec chroot /mnt bash /dev/vdb\"";
	cfg.vcpus = vcpus;
	cfg.memory = (uint64_t)mib << 20;
	cfg.irqchip = test_options.irqchip;
	if (test_options.verbose)
		cfg.log = il_log;
	console_open(&g->con);
	CALL(vmm_create(&g->vm, &cfg, &test_err));
	CALL(vmm_add_serial(g->vm, g->con.in, g->con.out, &test_err));
	CALL(vmm_add_blk(g->vm, "tools", tools, VMM_READONLY, &test_err));
	CALL(vmm_add_blk(g->vm, "script", g->files[0], VMM_READONLY, &test_err));
	CALL(vmm_add_blk(g->vm, "inside", g->files[1], VMM_READONLY, &test_err));
}

static void __attribute__((noreturn)) il_failed(struct inlinux *g, const char *what)
{
	test_fail("%s; state %d, the console ends with \"%s\"", what, vmm_state(g->vm),
		  console_tail(&g->con));
}

void il_expect_rest(struct inlinux *g, const char *words, char *rest, size_t cap, int seconds)
{
	uint64_t until = now_ms() + (uint64_t)seconds * 1000 * test_options.factor;
	char line[200];
	size_t at, end;

	snprintf(line, sizeof(line), "says: %s", words);
	while (console_find(&g->con, line, &g->at, 500) != 0) {
		if (vmm_state(g->vm) == VMM_RUNNING && now_ms() < until)
			continue;
		snprintf(line, sizeof(line), "no \"%s\"", words);
		il_failed(g, line);
	}
	if (!rest)
		return;
	at = end = g->at;
	if (console_find(&g->con, "\n", &end, 10000))
		il_failed(g, "no end of a line");
	snprintf(rest, cap, "%.*s", (int)(end - at), g->con.text + at);
	rest[strcspn(rest, "\r\n")] = 0;
	g->at = end;
}

void il_expect(struct inlinux *g, const char *words, int seconds)
{
	il_expect_rest(g, words, NULL, 0, seconds);
}

void il_start(struct inlinux *g)
{
	CALL(vmm_start(g->vm, &test_err));
	il_expect(g, "up", 120);	/* before that, what is typed may be lost */
}

void il_say(struct inlinux *g, const char *line)
{
	console_send(&g->con, line, strlen(line));
	console_send(&g->con, "\n", 1);
}

void il_end(struct inlinux *g, int seconds)
{
	struct vmm_event ev;

	/* That a device has trouble is what some tests are about. */
	do
		CALL(vmm_wait(g->vm, seconds * 1000 * (int)test_options.factor, &ev, &test_err));
	while (ev.type == VMM_EV_DEVICE);
	if (ev.type != VMM_EV_SHUTDOWN || ev.value ||
	    console_find(&g->con, "guest: exit 0", &g->at, 1000))
		il_failed(g, "the script did not end well");
	il_free(g);
}

void il_free(struct inlinux *g)
{
	vmm_free(g->vm);
	console_close(&g->con);
}
