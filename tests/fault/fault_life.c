/* SPDX-License-Identifier: MIT */
/*
 * fault_life.c - a machine's life, again and again: with the first, the second,
 * ... allocation, system call or KVM call failing, once and from then on, until
 * a life meets no fault.
 *
 * After each failed call: the error is one that a fault can cause and says
 * something, the machine is in the state it was in, or BROKEN, and what failed
 * just once works when it is tried again.  After each life: every block freed
 * (ASan sees what was used after), every descriptor closed.
 *
 * The linker sends the calls here (--wrap, unit.mk), and fake_kvm.c asks.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "../../vmm.h"
#include "../../vmm_guest.h"
#include "../unit/fake_kvm.h"

#define ROUNDS	10000u

/* ---- The plan: which call fails ----------------------------------------------- */

static struct {
	int		on;		/* off while the test itself is at work */
	unsigned int	at;		/* the call that fails */
	int		lasting;	/* and all that follow */
	unsigned int	calls, faults;	/* atomic */
	const char	*what;		/* the first that failed */
	long		blocks;		/* allocated and not freed; atomic */
} plan;

static int fault(const char *what)
{
	unsigned int n;

	if (!__atomic_load_n(&plan.on, __ATOMIC_SEQ_CST))
		return 0;
	n = __atomic_add_fetch(&plan.calls, 1, __ATOMIC_SEQ_CST);
	if (n != plan.at && !(plan.lasting && n > plan.at))
		return 0;
	if (__atomic_fetch_add(&plan.faults, 1, __ATOMIC_SEQ_CST) == 0)
		__atomic_store_n(&plan.what, what, __ATOMIC_SEQ_CST);
	return 1;
}

static int kvm_fault(const char *what)
{
	return fault(what) ? ENOMEM : 0;
}

static void switch_on(int on)
{
	__atomic_store_n(&plan.on, on, __ATOMIC_SEQ_CST);
}

static void count(long n)
{
	__atomic_add_fetch(&plan.blocks, n, __ATOMIC_SEQ_CST);
}

#define WRAP(type, name, params, args, bad, error)			\
	type __real_##name params;					\
	type __wrap_##name params;					\
	type __wrap_##name params					\
	{								\
		if (fault(#name)) {					\
			errno = error;					\
			return bad;					\
		}							\
		return __real_##name args;				\
	}

WRAP(int, memfd_create, (const char *name, unsigned int flags), (name, flags), -1, EMFILE)
WRAP(int, ftruncate, (int fd, off_t n), (fd, n), -1, EFBIG)
WRAP(int, eventfd, (unsigned int n, int flags), (n, flags), -1, EMFILE)
WRAP(int, epoll_create1, (int flags), (flags), -1, EMFILE)
WRAP(int, timerfd_create, (int clock, int flags), (clock, flags), -1, EMFILE)
WRAP(int, fstat, (int fd, struct stat *st), (fd, st), -1, EIO)
WRAP(ssize_t, pread, (int fd, void *p, size_t n, off_t off), (fd, p, n, off), -1, EIO)
WRAP(ssize_t, pwrite, (int fd, const void *p, size_t n, off_t off), (fd, p, n, off), -1, ENOSPC)
WRAP(void *, mmap, (void *p, size_t n, int prot, int flags, int fd, off_t off),
     (p, n, prot, flags, fd, off), MAP_FAILED, ENOMEM)
WRAP(int, madvise, (void *p, size_t n, int advice), (p, n, advice), -1, EAGAIN)

/* The rest: one that returns its error, some with arguments of any number, and
   those that are counted. */
int __real_pthread_create(pthread_t *t, const pthread_attr_t *a, void *(*fn)(void *), void *arg);
int __wrap_pthread_create(pthread_t *t, const pthread_attr_t *a, void *(*fn)(void *), void *arg);
int __real_epoll_ctl(int ep, int op, int fd, struct epoll_event *ev);
int __wrap_epoll_ctl(int ep, int op, int fd, struct epoll_event *ev);
int __real_open(const char *path, int flags, ...);
int __wrap_open(const char *path, int flags, ...);
int __real_fcntl(int fd, int cmd, ...);
int __wrap_fcntl(int fd, int cmd, ...);
int __real_ioctl(int fd, unsigned long request, ...);
int __wrap_ioctl(int fd, unsigned long request, ...);
long __real_syscall(long number, ...);
long __wrap_syscall(long number, ...);
void *__real_malloc(size_t n);
void *__wrap_malloc(size_t n);
void *__real_calloc(size_t n, size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t n);
void *__wrap_realloc(void *p, size_t n);
char *__real_strdup(const char *s);
char *__wrap_strdup(const char *s);
char *__real_strndup(const char *s, size_t n);
char *__wrap_strndup(const char *s, size_t n);
char *__real_realpath(const char *path, char *out);
char *__wrap_realpath(const char *path, char *out);
int __wrap_asprintf(char **out, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void __real_free(void *p);
void __wrap_free(void *p);

int __wrap_pthread_create(pthread_t *t, const pthread_attr_t *a, void *(*fn)(void *), void *arg)
{
	return fault("pthread_create") ? EAGAIN : __real_pthread_create(t, a, fn, arg);
}

int __wrap_epoll_ctl(int ep, int op, int fd, struct epoll_event *ev)
{
	if (op == EPOLL_CTL_ADD && fault("epoll_ctl")) {
		errno = ENOSPC;
		return -1;
	}
	return __real_epoll_ctl(ep, op, fd, ev);
}

int __wrap_open(const char *path, int flags, ...)
{
	va_list ap;
	int mode;

	va_start(ap, flags);
	mode = flags & O_CREAT ? va_arg(ap, int) : 0;
	va_end(ap);
	if (fault("open")) {
		errno = EMFILE;
		return -1;
	}
	return __real_open(path, flags, mode);
}

int __wrap_fcntl(int fd, int cmd, ...)
{
	va_list ap;
	long arg;

	va_start(ap, cmd);
	arg = va_arg(ap, long);
	va_end(ap);
	if ((cmd == F_DUPFD || cmd == F_DUPFD_CLOEXEC) && fault("fcntl")) {
		errno = EMFILE;
		return -1;
	}
	return __real_fcntl(fd, cmd, arg);
}

/* Of ioctls, those by which memory is watched and looked at. */
int __wrap_ioctl(int fd, unsigned long request, ...)
{
	va_list ap;
	void *arg;

	va_start(ap, request);
	arg = va_arg(ap, void *);
	va_end(ap);
	if ((request == UFFDIO_API || request == UFFDIO_REGISTER || _IOC_TYPE(request) == 'f') &&
	    fault("ioctl")) {
		errno = ENOMEM;
		return -1;
	}
	return __real_ioctl(fd, request, arg);
}

long __wrap_syscall(long number, ...)
{
	long a[6];
	va_list ap;
	int i;

	va_start(ap, number);
	for (i = 0; i < 6; i++)
		a[i] = va_arg(ap, long);
	va_end(ap);
	if (number == SYS_userfaultfd && fault("userfaultfd")) {
		errno = EPERM;
		return -1;
	}
	return __real_syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

void *__wrap_malloc(size_t n)
{
	void *p = fault("malloc") ? NULL : __real_malloc(n);

	count(p != NULL);
	return p;
}

void *__wrap_calloc(size_t n, size_t size)
{
	void *p = fault("calloc") ? NULL : __real_calloc(n, size);

	count(p != NULL);
	return p;
}

void *__wrap_realloc(void *old, size_t n)
{
	void *p = fault("realloc") ? NULL : __real_realloc(old, n);

	count(p && !old);
	return p;
}

char *__wrap_strdup(const char *s)
{
	char *p = fault("strdup") ? NULL : __real_strdup(s);

	count(p != NULL);
	return p;
}

char *__wrap_strndup(const char *s, size_t n)
{
	char *p = fault("strndup") ? NULL : __real_strndup(s, n);

	count(p != NULL);
	return p;
}

char *__wrap_realpath(const char *path, char *out)
{
	int failed = fault("realpath");
	char *p = failed ? NULL : __real_realpath(path, out);

	if (failed)
		errno = ENOMEM;
	count(p && !out);
	return p;
}

int __wrap_asprintf(char **out, const char *fmt, ...)
{
	va_list ap;
	int n = -1;

	va_start(ap, fmt);
	if (!fault("asprintf"))
		n = vasprintf(out, fmt, ap);
	va_end(ap);
	count(n >= 0);
	return n;
}

void __wrap_free(void *p)
{
	count(p ? -1 : 0);
	__real_free(p);
}

/* ---- One life --------------------------------------------------------------------- */

static struct vmm_error err;
static int kernel, console[2], net;
static char disk_path[40], snap_path[] = "/tmp/fault_life.XXXXXX";
static char wrong[500];

static int fds(void)
{
	DIR *d = opendir("/proc/self/fd");
	int n = -3;

	while (readdir(d))
		n++;
	closedir(d);
	return n;
}

static void is_wrong(const char *call, const char *how)
{
	if (!wrong[0])
		snprintf(wrong, sizeof(wrong), "%s: %s; %s failed at call %u%s: %s", call, how,
			 plan.what ? plan.what : "nothing", plan.at, plan.lasting ? " and on" : "",
			 err.message);
}

/* Look at what a call returned; 0 if the life goes on. */
static int judge(const char *call, int rc, struct vmm *vm, int before)
{
	if (rc == 0)
		return 0;
	if (!plan.faults)
		is_wrong(call, "failed without a fault");
	if (rc > 0 || err.code != rc || !err.message[0] || strchr(err.message, '\n'))
		is_wrong(call, "no proper error");
	if (rc == VMM_EINVAL || rc == VMM_EFORMAT || rc == VMM_EVERSION ||
	    (rc == VMM_ESTATE && vmm_state(vm) != VMM_BROKEN))
		is_wrong(call, "an error that no fault can cause");
	if (vm && vmm_state(vm) != before && vmm_state(vm) != VMM_BROKEN)
		is_wrong(call, "changed the state");
	if (rc == VMM_EBROKEN && vmm_state(vm) != VMM_BROKEN)
		is_wrong(call, "not broken");
	return rc;
}

/* Make a call on vm and, if it fails by a fault that is over, once more. */
#define TRY(call) do {							\
		int before_ = vmm_state(vm), rc_;			\
									\
		memset(&err, 0, sizeof(err));				\
		rc_ = judge(#call, call, vm, before_);			\
		if (rc_ && !plan.lasting && vmm_state(vm) != VMM_BROKEN) \
			rc_ = call;					\
		if (rc_ && !plan.lasting && vmm_state(vm) != VMM_BROKEN) \
			is_wrong(#call, "fails for ever");		\
		if (rc_)						\
			goto out;					\
	} while (0)

static int guest(struct fake_vcpu *v)
{
	switch (v->step++) {
	case 0:
		return fake_write(v, 0x10000000, 1, 'x');	/* the console */
	case 1:
		return fake_sbi(v, VMM_GUEST_SBI, VMM_GUEST_SBI_RING, 1, 0, 0);
	default:
		return FAKE_SPIN;
	}
}

/* The guest rings, or a KVM_RUN failed and the machine is broken. */
static void hear(struct vmm *vm)
{
	struct vmm_event ev;

	memset(&err, 0, sizeof(err));
	if (vmm_wait(vm, 20000, &ev, &err))
		is_wrong("vmm_wait", "failed");
	else if (ev.type != VMM_EV_DOORBELL && ev.type != VMM_EV_FAULT && ev.type != VMM_EV_CRASH)
		is_wrong("vmm_wait", "not the event that was to come");
}

static int make(struct vmm **out)
{
	struct vmm_config cfg = VMM_CONFIG_INIT;
	int rc;

	cfg.kernel_fd = kernel;
	cfg.initrd_fd = kernel;
	cfg.vcpus = 2;
	cfg.memory = 4u << 20;
	cfg.cmdline = "console=ttyS0";
	cfg.name = "faulty";
	memset(&err, 0, sizeof(err));
	*out = (struct vmm *)(uintptr_t)1;
	rc = judge("vmm_create", vmm_create(out, &cfg, &err), NULL, 0);
	if (rc && *out)
		is_wrong("vmm_create", "failed, and gives a machine");
	if (rc && !plan.lasting)
		rc = vmm_create(out, &cfg, &err);
	return rc;
}

static void whole_life(void)
{
	struct vmm_stats s = VMM_STATS_INIT;
	struct vmm *vm;
	int port = -1;
	size_t size;

	if (make(&vm))
		return;
	TRY(vmm_add_serial(vm, console[0], console[1], &err));
	TRY(vmm_add_rng(vm, "rng", &err));
	TRY(vmm_add_console(vm, "con", console[0], console[1], &err));
	TRY(vmm_add_balloon(vm, "balloon", &err));
	TRY(vmm_add_net(vm, "net", net, NULL, &err));
	TRY(vmm_add_vsock(vm, 3, &err));
	TRY(vmm_add_blk(vm, "disk", disk_path, VMM_OVERLAY, &err));
	TRY(vmm_listen(vm, 1024, &port, &err));
	TRY(vmm_fdt(vm, NULL, 0, &size, &err));
	TRY(vmm_start(vm, &err));
	hear(vm);
	TRY(vmm_stat(vm, &s, &err));
	TRY(vmm_pause(vm, &err));
	TRY(vmm_write(vm, 0x80000000, "x", 1, &err));
	TRY(vmm_start(vm, &err));
	TRY(vmm_stop(vm, &err));
	TRY(vmm_reset(vm, &err));
	TRY(vmm_start(vm, &err));
	hear(vm);
out:
	if (port >= 0)
		close(port);
	vmm_free(vm);
}

static void frozen_life(void)
{
	struct vmm_snap *snap = NULL;
	struct vmm *vm, *clone = NULL;
	int rc;

	if (make(&vm))
		return;
	TRY(vmm_add_serial(vm, -1, console[1], &err));
	TRY(vmm_add_rng(vm, "rng", &err));
	TRY(vmm_add_vsock(vm, 3, &err));
	TRY(vmm_add_blk(vm, "disk", disk_path, VMM_OVERLAY, &err));
	TRY(vmm_start(vm, &err));
	hear(vm);
	TRY(vmm_pause(vm, &err));
	TRY(vmm_snap_take(&snap, vm, &err));
	memset(&err, 0, sizeof(err));
	rc = judge("vmm_restore", vmm_restore(&clone, snap, NULL, &err), NULL, 0);
	if (rc && !plan.lasting)
		rc = vmm_restore(&clone, snap, NULL, &err);
	vmm_snap_free(snap);
	snap = NULL;
	if (rc)
		goto out;
	vmm_free(vm);
	vm = clone;
	clone = NULL;
	TRY(vmm_add_serial(vm, -1, console[1], &err));
	TRY(vmm_add_blk(vm, "disk", disk_path, VMM_OVERLAY, &err));
	TRY(vmm_start(vm, &err));
	TRY(vmm_pause(vm, &err));
	/* Of a clone: what it has changed; put together for the next one. */
	TRY(vmm_snap_take(&snap, vm, &err));
	memset(&err, 0, sizeof(err));
	rc = judge("vmm_restore", vmm_restore(&clone, snap, NULL, &err), NULL, 0);
	if (rc)
		goto out;
	TRY(vmm_reset(vm, &err));
	TRY(vmm_start(vm, &err));
out:
	vmm_snap_free(snap);
	vmm_free(clone);
	vmm_free(vm);
}

/* From a file, whose RAM is decoded while the machine runs. */
static void restored_life(void)
{
	struct vmm_restore_config how = VMM_RESTORE_INIT;
	struct vmm_stats s = VMM_STATS_INIT;
	struct vmm_snap *snap = NULL;
	struct vmm *vm = NULL;
	char text[8];
	int rc;

	memset(&err, 0, sizeof(err));
	rc = judge("vmm_snap_open", vmm_snap_open(&snap, snap_path, &err), NULL, 0);
	if (rc && !plan.lasting)
		rc = vmm_snap_open(&snap, snap_path, &err);
	if (rc)
		return;
	/* Watched, then not: what is learned of the one is for the other. */
	for (how.flags = VMM_RECORD;; how.flags = VMM_POPULATE) {
		memset(&err, 0, sizeof(err));
		rc = judge("vmm_restore", vmm_restore(&vm, snap, &how, &err), NULL, 0);
		if (rc && !plan.lasting)
			rc = vmm_restore(&vm, snap, &how, &err);
		if (rc)
			break;
		TRY(vmm_add_serial(vm, -1, console[1], &err));
		TRY(vmm_add_blk(vm, "disk", disk_path, VMM_OVERLAY, &err));
		TRY(vmm_start(vm, &err));
		hear(vm);
		if (how.flags & VMM_RECORD) {
			TRY(vmm_snap_learn(snap, vm, &err));
			vmm_free(vm);
			continue;
		}
		TRY(vmm_read(vm, 0x80000000 + (1 << 20), text, 4, &err));
		if (memcmp(text, "here", 4))
			is_wrong("vmm_read", "other bytes than were frozen");
		TRY(vmm_stat(vm, &s, &err));
		TRY(vmm_stop(vm, &err));
		TRY(vmm_reset(vm, &err));
		TRY(vmm_start(vm, &err));
		break;
	}
out:
	vmm_free(vm);
	vmm_snap_free(snap);
}

static void pooled_life(void)
{
	struct vmm_pool_config cfg = VMM_POOL_INIT;
	struct vmm_snap *snap;
	struct vmm_pool *pool = NULL;
	struct vmm *vm;
	int rc, i;

	memset(&err, 0, sizeof(err));
	if (judge("vmm_snap_open", vmm_snap_open(&snap, snap_path, &err), NULL, 0))
		return;
	cfg.ready = 2;
	rc = judge("vmm_pool_create", vmm_pool_create(&pool, snap, &cfg, &err), NULL, 0);
	for (i = 0; i < 3 && rc == 0; i++) {
		memset(&err, 0, sizeof(err));
		rc = judge("vmm_pool_take", vmm_pool_take(pool, -1, &vm, &err), NULL, 0);
		if (rc && !plan.lasting)
			rc = vmm_pool_take(pool, -1, &vm, &err);
		if (rc == 0)
			vmm_pool_give(pool, vm);
	}
	vmm_pool_free(pool);
	vmm_snap_free(snap);
}

/* What the lives above are restored from. */
static void save(void)
{
	struct vmm_snap *snap;
	struct vmm *vm;

	fake_reset();
	fake.guest = guest;
	if (make(&vm) || vmm_add_serial(vm, -1, console[1], &err) ||
	    vmm_add_blk(vm, "disk", disk_path, VMM_OVERLAY, &err) ||
	    vmm_write(vm, 0x80000000 + (1 << 20), "here", 4, &err) || vmm_start(vm, &err))
		is_wrong("save", "failed");
	hear(vm);
	if (vmm_pause(vm, &err) || vmm_snap_take(&snap, vm, &err) ||
	    vmm_snap_write(snap, snap_path, NULL, &err))
		is_wrong("save", "failed");
	vmm_free(vm);
	vmm_snap_free(snap);
}

static void probe(void)
{
	struct vmm_host h = VMM_HOST_INIT;

	memset(&err, 0, sizeof(err));
	judge("vmm_probe", vmm_probe(&h, &err), NULL, 0);
}

/* ---- All of them -------------------------------------------------------------------- */

/* Lives, with a fault at every call in turn.  0: all was well. */
static int lives(const char *name, void (*life)(void), int lasting, int number)
{
	unsigned int at, met = 1;
	int before = fds();
	long blocks;

	for (at = 1; met && !wrong[0]; at++) {
		fake_reset();
		fake.guest = guest;
		fake.boot_all = 1;
		fake.fault = kvm_fault;
		memset(&plan, 0, sizeof(plan));
		plan.at = at;
		plan.lasting = lasting;
		blocks = plan.blocks;
		alarm(30);
		switch_on(1);
		life();
		switch_on(0);
		met = plan.faults;
		err.message[0] = 0;
		if (fds() != before)
			is_wrong(name, "leaves a descriptor open");
		if (plan.blocks != blocks)
			is_wrong(name, "leaves memory allocated");
		if (fake.violations)
			is_wrong(name, fake.violation);
	}
	printf("%sok %d - %s, %s: %u faults\n", wrong[0] ? "not " : "", number, name,
	       lasting ? "from then on" : "once", at - 2);
	if (wrong[0])
		printf("# %s\n", wrong);
	fflush(stdout);
	return wrong[0] != 0;
}

/* The next call that fails is one of the first n. */
static void plan_one(unsigned int *seed, unsigned int n)
{
	plan.calls = plan.faults = 0;
	plan.at = 1 + (unsigned int)rand_r(seed) % n;
	memset(&err, 0, sizeof(err));
}

/* A machine made, one restored, both freed, 10,000 times, with a fault somewhere in
   each; the file is opened again now and then: nothing is left. */
static int rounds(int number)
{
	struct vmm_snap *snap = NULL;
	unsigned int i, failed = 0, seed = 1;
	int before = fds(), rc;
	struct vmm *vm;
	long blocks;

	fake_reset();
	fake.guest = guest;
	fake.fault = kvm_fault;
	memset(&plan, 0, sizeof(plan));
	alarm(900);
	blocks = plan.blocks;
	for (i = 0; i < ROUNDS && !wrong[0]; i++) {
		if (i % 50 == 0) {
			vmm_snap_free(snap);
			if (vmm_snap_open(&snap, snap_path, &err))
				is_wrong("vmm_snap_open", "failed");
		}
		plan_one(&seed, 60);
		switch_on(1);
		failed += make(&vm) != 0;
		switch_on(0);
		vmm_free(vm);
		plan_one(&seed, 120);
		switch_on(1);
		rc = judge("vmm_restore", vmm_restore(&vm, snap, NULL, &err), NULL, 0);
		failed += rc != 0;
		if (rc == 0)
			judge("vmm_start", vmm_start(vm, &err), vm, VMM_NEW);
		switch_on(0);
		vmm_free(vm);
	}
	vmm_snap_free(snap);
	if (fds() != before)
		is_wrong("rounds", "leave descriptors open");
	if (plan.blocks != blocks)
		is_wrong("rounds", "leave memory allocated");
	printf("%sok %d - rounds: %u, of which %u failed\n", wrong[0] ? "not " : "", number, i, failed);
	if (wrong[0])
		printf("# %s\n", wrong);
	return wrong[0] != 0;
}

int main(void)
{
	static const struct { const char *name; void (*life)(void); } all[] = {
		{ "probe", probe }, { "life", whole_life }, { "snapshot", frozen_life },
		{ "file", restored_life }, { "pool", pooled_life },
	};
	uint8_t image[4096] = { 0 };
	unsigned int i;
	int bad = 0, disk, sockets[2];

	memcpy(image + 56, "RSC\x05", 4);
	kernel = memfd_create("kernel", MFD_CLOEXEC);
	if (write(kernel, image, sizeof(image)) != sizeof(image) || pipe2(console, O_CLOEXEC) < 0)
		return 1;
	disk = memfd_create("disk", MFD_CLOEXEC);
	if (ftruncate(disk, 1 << 20) < 0 ||
	    socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, sockets) < 0)
		return 1;
	net = sockets[0];
	snprintf(disk_path, sizeof(disk_path), "/proc/self/fd/%d", disk);
	/* What is made once, at first use. */
	fake_reset();
	fake.guest = guest;
	whole_life();
	close(mkstemp(snap_path));
	save();
	printf("1..%zu\n", 2 * sizeof(all) / sizeof(all[0]) + 1);
	for (i = 0; i < 2 * sizeof(all) / sizeof(all[0]); i++) {
		wrong[0] = 0;
		bad += lives(all[i / 2].name, all[i / 2].life, i % 2, (int)i + 1);
	}
	wrong[0] = 0;
	bad += rounds((int)i + 1);
	unlink(snap_path);
	return bad != 0;
}
