/* SPDX-License-Identifier: MIT */
/*
 * test_api.c - the public interface, as vmm.h promises it: every call in every
 * state, every argument that can be wrong, nothing left behind by a failure,
 * and nothing done to the process it lives in.
 */
#include "rig.h"

#include <libfdt.h>
#include <sys/fsuid.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "../../riscv/regs.h"
#include "../../vmm_impl.h"

#define MiB		(1ull << 20)

static struct vmm_error err;

static int spins(struct fake_vcpu *v)
{
	(void)v;
	return FAKE_SPIN;
}

static int fails(struct fake_vcpu *v)
{
	(void)v;
	return -EFAULT;
}

static int rings_for_ever(struct fake_vcpu *v)
{
	return fake_sbi(v, VMM_GUEST_SBI, VMM_GUEST_SBI_RING, v->step++, 0, 0);
}

static int rings_once(struct fake_vcpu *v)
{
	return v->step ? FAKE_SPIN : rings_for_ever(v);
}

/* A machine in a state, whose guest does nothing. */
static struct vmm *in_state(int state)
{
	struct vmm *vm;

	fake.guest = state == VMM_BROKEN ? fails : spins;
	vm = rig_vmm(2);
	if (state != VMM_NEW)
		assert_ok(vmm_start(vm, &err));
	if (state == VMM_PAUSED)
		assert_ok(vmm_pause(vm, &err));
	if (state == VMM_STOPPED)
		assert_ok(vmm_stop(vm, &err));
	if (state == VMM_BROKEN)
		rig_event(vm, VMM_EV_FAULT);
	assert_int_equal(vmm_state(vm), state);
	return vm;
}

/* ---- Every call, in every state --------------------------------------------------- */

static int do_serial(struct vmm *vm)
{
	return vmm_add_serial(vm, -1, -1, &err);
}

static int do_rng(struct vmm *vm)
{
	return vmm_add_rng(vm, "rng0", &err);
}

static int do_console(struct vmm *vm)
{
	return vmm_add_console(vm, "con0", -1, -1, &err);
}

static int do_balloon_device(struct vmm *vm)
{
	return vmm_add_balloon(vm, "balloon0", &err);
}

static int do_blk(struct vmm *vm)
{
	char path[] = "/tmp/test_api.XXXXXX";
	int fd = mkstemp(path), rc;

	if (ftruncate(fd, 4096) < 0)
		return 1;
	rc = vmm_add_blk(vm, "disk0", path, 0, &err);
	close(fd);
	unlink(path);
	return rc;
}

static int do_net(struct vmm *vm)
{
	int p[2], rc;

	if (socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, p) < 0)
		return 1;
	rc = vmm_add_net(vm, "net0", p[0], NULL, &err);
	close(p[0]);
	close(p[1]);
	return rc;
}

/* What a vhost-user back end answers, in the socket before it is asked. */
static void answer(int fd, uint32_t request, uint64_t val, uint32_t size)
{
	struct {
		uint32_t	request, flags, size;
		uint64_t	val;
		uint8_t		more[64];
	} __attribute__((packed)) m = { request, 5, size, val, { 0 } };

	assert_int_equal(send(fd, &m, 12 + size, MSG_NOSIGNAL), 12 + size);
}

static int add_vhost(struct vmm *vm, int blk, int p[2])
{
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, p) < 0)
		return 1;
	answer(p[1], 1, 1ull << 32 | 1ull << 30, 8);	/* GET_FEATURES */
	answer(p[1], 15, 1ull << 9, 8);			/* GET_PROTOCOL_FEATURES: CONFIG */
	answer(p[1], 24, 0, 72);			/* GET_CONFIG */
	return blk ? vmm_add_vhost_blk(vm, "vhost0", p[0], &err) :
		     vmm_add_fs(vm, "vhost0", p[0], &err);
}

static int do_fs(struct vmm *vm)
{
	int p[2], rc = add_vhost(vm, 0, p);

	close(p[0]);
	close(p[1]);
	return rc;
}

static int do_vhost_blk(struct vmm *vm)
{
	int p[2], rc = add_vhost(vm, 1, p);

	close(p[0]);
	close(p[1]);
	return rc;
}

static int do_vsock(struct vmm *vm)
{
	return vmm_add_vsock(vm, 3, &err);
}

static int do_fdt(struct vmm *vm)
{
	size_t size = 1;
	int rc = vmm_fdt(vm, NULL, 0, &size, &err);

	assert_true(rc ? size == 0 : size > 1000);
	return rc;
}

static int do_start(struct vmm *vm)
{
	return vmm_start(vm, &err);
}

static int do_pause(struct vmm *vm)
{
	return vmm_pause(vm, &err);
}

static int do_stop(struct vmm *vm)
{
	return vmm_stop(vm, &err);
}

static int do_reset(struct vmm *vm)
{
	return vmm_reset(vm, &err);
}

static int do_wait(struct vmm *vm)
{
	struct vmm_event ev;

	return vmm_wait(vm, 0, &ev, &err);
}

static int do_read(struct vmm *vm)
{
	char c;

	return vmm_read(vm, MAP_RAM, &c, 1, &err);
}

static int do_write(struct vmm *vm)
{
	return vmm_write(vm, MAP_RAM, "x", 1, &err);
}

static int do_stat(struct vmm *vm)
{
	struct vmm_stats s = VMM_STATS_INIT;

	return vmm_stat(vm, &s, &err);
}

static int do_take(struct vmm *vm)
{
	struct vmm_snap *s = (struct vmm_snap *)(uintptr_t)1;
	int rc = vmm_snap_take(&s, vm, &err);

	assert_int_equal(s != NULL, rc == 0);
	vmm_snap_free(s);
	return rc;
}

#define S VMM_ESTATE
#define B VMM_EBROKEN

static const struct {
	const char	*name;
	int		(*call)(struct vmm *vm);
	int		rc[5];		/* NEW, RUNNING, PAUSED, STOPPED, BROKEN */
	int		then[5];	/* the state it leaves */
} calls[] = {
	{ "vmm_add_serial", do_serial,	{ 0, S, S, S, B }, { 0, 1, 2, 3, 4 } },
	{ "vmm_add_rng", do_rng,	{ 0, S, S, S, B }, { 0, 1, 2, 3, 4 } },
	{ "vmm_add_console", do_console, { 0, S, S, S, B }, { 0, 1, 2, 3, 4 } },
	{ "vmm_add_balloon", do_balloon_device, { 0, S, S, S, B }, { 0, 1, 2, 3, 4 } },
	{ "vmm_add_blk", do_blk,	{ 0, S, S, S, B }, { 0, 1, 2, 3, 4 } },
	{ "vmm_add_net", do_net,	{ 0, S, S, S, B }, { 0, 1, 2, 3, 4 } },
	{ "vmm_add_vsock", do_vsock,	{ 0, S, S, S, B }, { 0, 1, 2, 3, 4 } },
	{ "vmm_add_fs", do_fs,		{ 0, S, S, S, B }, { 0, 1, 2, 3, 4 } },
	{ "vmm_add_vhost_blk", do_vhost_blk, { 0, S, S, S, B }, { 0, 1, 2, 3, 4 } },
	{ "vmm_fdt", do_fdt,		{ 0, 0, 0, 0, B }, { 0, 1, 2, 3, 4 } },
	{ "vmm_start", do_start,	{ 0, S, 0, S, B }, { 1, 1, 1, 3, 4 } },
	{ "vmm_pause", do_pause,	{ S, 0, S, S, B }, { 0, 2, 2, 3, 4 } },
	{ "vmm_stop", do_stop,		{ 0, 0, 0, 0, B }, { 3, 3, 3, 3, 4 } },
	{ "vmm_reset", do_reset,	{ 0, S, 0, 0, B }, { 0, 1, 0, 0, 4 } },
	{ "vmm_wait", do_wait,		{ 0, 0, 0, 0, 0 }, { 0, 1, 2, 3, 4 } },
	{ "vmm_read", do_read,		{ 0, 0, 0, 0, B }, { 0, 1, 2, 3, 4 } },
	{ "vmm_write", do_write,	{ 0, 0, 0, 0, B }, { 0, 1, 2, 3, 4 } },
	{ "vmm_stat", do_stat,		{ 0, 0, 0, 0, 0 }, { 0, 1, 2, 3, 4 } },
	{ "vmm_snap_take", do_take,	{ S, S, 0, S, B }, { 0, 1, 2, 3, 4 } },
};

#define CALLS (sizeof(calls) / sizeof(calls[0]))
#undef S
#undef B

static void test_states(void **state)
{
	static const char *const names[] = { "NEW", "RUNNING", "PAUSED", "STOPPED" };
	struct vmm *vm;
	unsigned int i;
	int s, rc, before = fds();

	(void)state;
	for (i = 0; i < CALLS; i++) {
		for (s = VMM_NEW; s <= VMM_BROKEN; s++) {
			vm = in_state(s);
			memset(&err, 0, sizeof(err));
			rc = calls[i].call(vm);
			if (rc != calls[i].rc[s])
				fail_msg("%s in state %d: %s, not %s (%s)", calls[i].name, s,
					 vmm_strerror(rc), vmm_strerror(calls[i].rc[s]),
					 err.message);
			if (vmm_state(vm) != calls[i].then[s])
				fail_msg("%s in state %d leaves state %d", calls[i].name, s,
					 vmm_state(vm));
			assert_int_equal(err.code, rc);
			/* Which machine, and what of it. */
			if (rc == VMM_ESTATE && (!strstr(err.message, "machine vm") ||
						 !strstr(err.message, names[s])))
				fail_msg("%s: %s", calls[i].name, err.message);
			vmm_free(vm);
			assert_int_equal(fds(), before);
		}
	}
}

/* The same without anyone who wants to hear of errors. */
static void test_null_machine(void **state)
{
	struct vmm_host host = VMM_HOST_INIT;
	unsigned int i;

	(void)state;
	for (i = 0; i < CALLS; i++) {
		memset(&err, 0, sizeof(err));
		assert_int_equal(calls[i].call(NULL), VMM_EINVAL);
		assert_int_equal(err.code, VMM_EINVAL);
	}
	assert_int_equal(vmm_state(NULL), VMM_BROKEN);
	assert_int_equal(vmm_fd(NULL), -1);
	vmm_free(NULL);
	vmm_snap_free(NULL);
	assert_int_equal(vmm_start(NULL, NULL), VMM_EINVAL);
	assert_int_equal(vmm_create(NULL, NULL, NULL), VMM_EINVAL);
	assert_ok(vmm_probe(&host, NULL));
}

static void test_null_arguments(void **state)
{
	struct vmm_config cfg = VMM_CONFIG_INIT;
	struct vmm *vm = (struct vmm *)(uintptr_t)1;
	struct vmm_event ev;
	char c = 0;
	int fd = 1;
	size_t n;

	(void)state;
	assert_fails(vmm_create(NULL, &cfg, &err), VMM_EINVAL, "nowhere to put");
	assert_fails(vmm_create(&vm, NULL, &err), VMM_EINVAL, "no struct vmm_config");
	assert_null(vm);
	assert_fails(vmm_probe(NULL, &err), VMM_EINVAL, "no struct vmm_host");
	vm = in_state(VMM_NEW);
	assert_fails(vmm_wait(vm, 0, NULL, &err), VMM_EINVAL, "nowhere to put the event");
	assert_fails(vmm_wait(vm, -2, &ev, &err), VMM_EINVAL, "timeout");
	assert_fails(vmm_stat(vm, NULL, &err), VMM_EINVAL, "no struct vmm_stats");
	assert_fails(vmm_read(vm, MAP_RAM, NULL, 1, &err), VMM_EINVAL, "no buffer");
	assert_fails(vmm_write(vm, MAP_RAM, NULL, 1, &err), VMM_EINVAL, "no buffer");
	assert_ok(vmm_read(vm, MAP_RAM, NULL, 0, &err));
	assert_ok(vmm_write(vm, MAP_RAM, NULL, 0, &err));
	assert_fails(vmm_fdt(vm, &c, 1, NULL, &err), VMM_EINVAL, "nowhere");
	assert_fails(vmm_fdt(vm, NULL, 1, &n, &err), VMM_EINVAL, "nowhere");
	assert_fails(vmm_snap_take(NULL, vm, &err), VMM_EINVAL, "nowhere");
	assert_fails(vmm_add_rng(vm, NULL, &err), VMM_EINVAL, "name");
	assert_fails(vmm_add_rng(vm, "", &err), VMM_EINVAL, "name");
	assert_fails(vmm_add_rng(vm, "a-name-of-more-than-31-characters", &err), VMM_EINVAL,
		     "name");
	assert_fails(vmm_add_blk(vm, "d", NULL, 0, &err), VMM_EINVAL, "path");
	assert_fails(vmm_add_blk(vm, "d", "/x", 1u << 31, &err), VMM_EINVAL, "flags 0x80000000");
	assert_fails(vmm_add_net(vm, "n", -1, NULL, &err), VMM_EINVAL, "no descriptor");
	assert_fails(vmm_add_net(vm, NULL, rig_kernel, NULL, &err), VMM_EINVAL, "name");
	assert_fails(vmm_add_net(vm, "n", rig_kernel, NULL, &err), err.code, "n");
	assert_fails(vmm_add_fs(vm, "f", -1, &err), VMM_EINVAL, "no descriptor");
	assert_fails(vmm_add_fs(vm, NULL, rig_kernel, &err), VMM_EINVAL, "name");
	assert_fails(vmm_add_fs(vm, "f", rig_kernel, &err), VMM_ESYS, "f: ");
	assert_fails(vmm_add_vhost_blk(vm, "b", 901, &err), VMM_ESYS, "b: ");
	assert_fails(vmm_add_vsock(vm, 2, &err), VMM_EINVAL, "CID 2");
	assert_fails(vmm_add_vsock(vm, 0xffffffff, &err), VMM_EINVAL, "CID 4294967295");
	assert_fails(vmm_connect(vm, 1, 0, &fd, &err), VMM_EINVAL, "vsock");
	assert_int_equal(fd, -1);
	assert_fails(vmm_listen(vm, 1, &fd, &err), VMM_EINVAL, "vsock");
	assert_int_equal(fd, -1);
	assert_fails(vmm_connect(vm, 1, 0, NULL, &err), VMM_EINVAL, "nowhere");
	assert_fails(vmm_listen(vm, 1, NULL, &err), VMM_EINVAL, "nowhere");
	assert_fails(vmm_listen(NULL, 1, &fd, &err), VMM_EINVAL, "no machine");
	assert_fails(vmm_balloon(vm, NULL, 0, &err), VMM_EINVAL, "no balloon");
	assert_fails(vmm_balloon(vm, "b", 0, &err), VMM_EINVAL, "no balloon b");
	vmm_free(vm);
}

/* What is told to devices there are, and of whom it can be asked. */
static void test_tuning(void **state)
{
	struct vmm_balloon_stats b = VMM_BALLOON_STATS_INIT;
	char path[] = "/tmp/test_api.XXXXXX";
	int fd = mkstemp(path);
	struct vmm *vm = in_state(VMM_NEW), *clone;
	struct vmm_snap *snap;

	(void)state;
	assert_int_equal(ftruncate(fd, 8192), 0);
	assert_ok(vmm_add_blk(vm, "disk0", path, 0, &err));
	assert_ok(vmm_add_console(vm, "con0", -1, -1, &err));
	assert_ok(vmm_add_balloon(vm, "balloon", &err));
	assert_ok(do_net(vm));
	/* Things that a machine does not have, or that are something else. */
	assert_fails(vmm_set_queues(vm, "disk1", 2, &err), VMM_EINVAL, "no blk disk1");
	assert_fails(vmm_set_queues(vm, "net0", 2, &err), VMM_EINVAL, "net0");
	assert_fails(vmm_set_queues(vm, NULL, 2, &err), VMM_EINVAL, "no blk ");
	assert_fails(vmm_limit(vm, "con0", 1, 1, &err), VMM_EINVAL, "no blk or net con0");
	assert_fails(vmm_resize_blk(vm, "con0", &err), VMM_EINVAL, "con0");
	assert_fails(vmm_resize_console(vm, "disk0", 80, 25, &err), VMM_EINVAL, "disk0");
	assert_fails(vmm_add_port(vm, "disk0", "p", -1, -1, &err), VMM_EINVAL, "disk0");
	assert_fails(vmm_add_port(vm, "con0", "", -1, -1, &err), VMM_EINVAL, "port");
	assert_fails(vmm_add_port(vm, "con0", NULL, -1, -1, &err), VMM_EINVAL, "port");
	assert_fails(vmm_add_port(vm, "con0", "a-name-of-more-than-31-characters", -1, -1, &err),
		     VMM_EINVAL, "too long");
	assert_fails(vmm_balloon_stat(vm, "con0", &b, &err), VMM_EINVAL, "con0");
	assert_fails(vmm_balloon_stat(vm, "balloon", NULL, &err), VMM_EINVAL, "no struct");
	/* Queues: 1 to 64. */
	assert_fails(vmm_set_queues(vm, "disk0", 0, &err), VMM_EINVAL, "0 queues");
	assert_fails(vmm_set_queues(vm, "disk0", 65, &err), VMM_EINVAL, "65 queues");
	assert_ok(vmm_set_queues(vm, "disk0", 64, &err));
	assert_ok(vmm_set_queues(vm, "disk0", 3, &err));
	/* Ports. */
	assert_ok(vmm_add_port(vm, "con0", "a", -1, -1, &err));
	assert_fails(vmm_add_port(vm, "con0", "a", -1, -1, &err), VMM_EINVAL, "port a already");
	assert_ok(vmm_add_port(vm, "con0", "b", -1, -1, &err));
	assert_ok(vmm_limit(vm, "disk0", 1000000, 0, &err));
	assert_ok(vmm_limit(vm, "net0", 0, 1000, &err));
	assert_ok(vmm_resize_console(vm, "con0", 100, 30, &err));
	assert_fails(vmm_trim(vm, "balloon", 0, &err), VMM_ESTATE, "NEW");
	assert_ok(vmm_start(vm, &err));
	assert_fails(vmm_trim(vm, "balloon", 0, &err), VMM_ENOTSUP, "no driver");
	assert_fails(vmm_trim(vm, "balloon", -2, &err), VMM_EINVAL, "timeout");
	assert_fails(vmm_trim(vm, "disk0", 0, &err), VMM_EINVAL, "no balloon disk0");
	assert_ok(vmm_limit(vm, "disk0", 1000000, 7, &err));
	assert_ok(vmm_resize_console(vm, "con0", 101, 30, &err));
	assert_int_equal(ftruncate(fd, 511), 0);
	assert_fails(vmm_resize_blk(vm, "disk0", &err), VMM_EINVAL, "511");
	assert_int_equal(ftruncate(fd, 16384), 0);
	assert_ok(vmm_resize_blk(vm, "disk0", &err));
	assert_ok(vmm_balloon(vm, "balloon", 1 * MiB, &err));
	assert_ok(vmm_balloon_stat(vm, "balloon", &b, &err));
	assert_int_equal(b.target, 1 * MiB);
	assert_int_equal(b.answers, 0);
	assert_fails(vmm_set_queues(vm, "disk0", 2, &err), VMM_ESTATE, "RUNNING");
	assert_fails(vmm_add_port(vm, "con0", "c", -1, -1, &err), VMM_ESTATE, "RUNNING");
	/* All of it is there again where it is restored. */
	assert_ok(vmm_pause(vm, &err));
	assert_ok(vmm_snap_take(&snap, vm, &err));
	vmm_free(vm);
	assert_ok(vmm_restore(&clone, snap, NULL, &err));
	assert_fails(vmm_set_queues(clone, "disk0", 2, &err), VMM_ENOTSUP, "keeps its 3 queues");
	assert_ok(vmm_add_console(clone, "con0", -1, -1, &err));
	assert_ok(vmm_add_port(clone, "con0", "b", -1, -1, &err));
	assert_ok(vmm_add_port(clone, "con0", "a", -1, -1, &err));
	assert_fails(vmm_add_port(clone, "con0", "c", -1, -1, &err), VMM_EINVAL, "no port c");
	assert_ok(vmm_balloon_stat(clone, "balloon", &b, &err));
	assert_int_equal(b.target, 1 * MiB);
	assert_fails(vmm_resize_blk(clone, "disk0", &err), VMM_ESTATE, "no file yet");
	assert_ok(vmm_start(clone, &err));
	assert_ok(vmm_resize_blk(clone, "disk0", &err));
	assert_ok(vmm_stop(clone, &err));
	assert_ok(vmm_reset(clone, &err));
	assert_ok(vmm_add_port(clone, "con0", "a", -1, -1, &err));
	vmm_free(clone);
	vmm_snap_free(snap);
	unlink(path);
	close(fd);
}

/* A machine part of which is in another process: paused, but not saved; and it
   hears when that is gone. */
static void test_vhost(void **state)
{
	struct vmm *vm = in_state(VMM_NEW);
	struct vmm_snap *snap;
	struct vmm_event ev;
	char c = 0;
	int p[2];

	(void)state;
	assert_ok(vmm_write(vm, MAP_RAM + 2 * MiB, "x", 1, &err));
	assert_ok(add_vhost(vm, 0, p));
	/* RAM is another kind now, and holds what it did. */
	assert_ok(vmm_read(vm, MAP_RAM + 2 * MiB, &c, 1, &err));
	assert_int_equal(c, 'x');
	close(p[0]);
	assert_ok(vmm_start(vm, &err));
	assert_ok(vmm_pause(vm, &err));
	assert_fails(vmm_snap_take(&snap, vm, &err), VMM_ENOTSUP, "vhost0");
	assert_ok(vmm_start(vm, &err));
	close(p[1]);
	ev = rig_event(vm, VMM_EV_DEVICE);
	assert_non_null(strstr(ev.detail, "vhost0: its back end is gone"));
	assert_int_equal(vmm_state(vm), VMM_RUNNING);
	assert_ok(vmm_pause(vm, &err));
	assert_ok(vmm_reset(vm, &err));
	assert_ok(vmm_start(vm, &err));
	vmm_free(vm);
}

/* ---- Structs that grow --------------------------------------------------------------- */

static void test_config_size(void **state)
{
	struct {
		struct vmm_config c;
		uint8_t		tail[100];
	} big = { .c = VMM_CONFIG_INIT };
	struct vmm_config *small;
	struct vmm *vm;
	char text[64];
	uint32_t n;

	(void)state;
	/* An older one: what it lacks is 0.  ASan sees that it is not read. */
	big.c.kernel_fd = rig_kernel;
	big.c.vcpus = 3;
	n = offsetof(struct vmm_config, initrd_fd);
	small = malloc(n);
	memcpy(small, &big.c, n);
	small->size = n;
	assert_ok(vmm_create(&vm, small, &err));
	vmm_free(vm);
	small->size = 8;
	assert_fails(vmm_create(&vm, small, &err), VMM_EINVAL, "no kernel");
	for (n = 0; n < 4; n++) {
		small->size = n;
		assert_fails(vmm_create(&vm, small, &err), VMM_EINVAL, "INIT macro");
	}
	free(small);
	/* A newer one: as long as nothing is asked for that we do not know. */
	big.c.memory = 4 * MiB;
	big.c.size = sizeof(big);
	assert_ok(vmm_create(&vm, &big.c, &err));
	vmm_free(vm);
	for (n = 0; n < sizeof(big.tail); n += 33) {
		big.tail[n] = 1;
		snprintf(text, sizeof(text), "byte %zu is set", sizeof(big.c) + n);
		assert_fails(vmm_create(&vm, &big.c, &err), VMM_EINVAL, text);
		assert_null(vm);
		big.tail[n] = 0;
	}
	big.c.size = 0xffffffff;
	assert_fails(vmm_create(&vm, &big.c, &err), VMM_EINVAL, "size 4294967295");
}

static void test_out_sizes(void **state)
{
	struct {
		struct vmm_stats s;
		uint8_t		tail[64];
	} big = { .s = VMM_STATS_INIT };
	struct vmm *vm = in_state(VMM_NEW);
	struct vmm_host *host;
	struct vmm_stats *small;
	uint32_t n;

	(void)state;
	for (n = 4; n < sizeof(*small); n += 4) {
		small = malloc(n);
		memset(small, 0, n);
		small->size = n;
		assert_ok(vmm_stat(vm, small, &err));
		assert_int_equal(small->size, n);
		if (n >= 8)
			assert_int_equal(small->vcpus, 2);
		free(small);
	}
	big.s.size = sizeof(big);
	assert_ok(vmm_stat(vm, &big.s, &err));
	assert_int_equal(big.s.size, sizeof(big));
	assert_int_equal(big.s.memory, 4 * MiB);
	big.tail[5] = 1;
	assert_fails(vmm_stat(vm, &big.s, &err), VMM_EINVAL, "struct vmm_stats: byte");
	big.s.size = 0;
	assert_fails(vmm_stat(vm, &big.s, &err), VMM_EINVAL, "size 0");
	for (n = 4; n < sizeof(*host); n += 36) {
		host = malloc(n);
		memset(host, 0, n);
		host->size = n;
		assert_ok(vmm_probe(host, &err));
		assert_int_equal(host->size, n);
		free(host);
	}
	vmm_free(vm);
}

/* ---- Configuration -------------------------------------------------------------------- */

/* A machine that cannot be made: why, and nothing is left behind. */
static void refused(const struct vmm_config *cfg, int code, const char *text)
{
	struct vmm *vm = (struct vmm *)(uintptr_t)1;
	int before = fds();

	assert_fails(vmm_create(&vm, cfg, &err), code, text);
	assert_null(vm);
	assert_int_equal(fds(), before);
}

static void test_defaults(void **state)
{
	struct vmm_config cfg = VMM_CONFIG_INIT;
	struct vmm_stats s = VMM_STATS_INIT;
	struct vmm *vm;

	(void)state;
	cfg.kernel_fd = rig_kernel;
	assert_ok(vmm_create(&vm, &cfg, &err));
	assert_int_equal(vmm_state(vm), VMM_NEW);
	assert_ok(vmm_stat(vm, &s, &err));
	assert_int_equal(s.vcpus, 1);
	assert_int_equal(s.memory, 128 * MiB);
	vmm_free(vm);
	cfg.vcpus = 64;
	assert_ok(vmm_create(&vm, &cfg, &err));
	vmm_free(vm);
}

static void test_bad_config(void **state)
{
	static const struct vmm_config init = VMM_CONFIG_INIT;
	struct vmm_config cfg;

	(void)state;
#define BAD(field, value, code, text) do {	\
		cfg = init;			\
		cfg.kernel_fd = rig_kernel;		\
		cfg.memory = 4 * MiB;		\
		cfg.field = (value);		\
		refused(&cfg, code, text);	\
	} while (0)
	BAD(vcpus, 65, VMM_EINVAL, "65 vCPUs: 1 to 64");
	BAD(vcpus, 0xffffffff, VMM_EINVAL, "4294967295 vCPUs");
	BAD(memory, 1, VMM_EINVAL, "1 bytes of memory");
	BAD(memory, 3 * MiB, VMM_EINVAL, "3145728 bytes of memory: a multiple of 2 MiB");
	BAD(memory, 2 * MiB - 1, VMM_EINVAL, "2097151 bytes of memory");
	BAD(memory, 2ull << 40, VMM_EINVAL, "bytes of memory");
	BAD(memory, ~0ull << 21, VMM_EINVAL, "bytes of memory");
	BAD(irqchip, 9, VMM_EINVAL, "unknown interrupt controller 9");
	BAD(irqchip, VMM_IRQCHIP_AIA_HWACCEL, VMM_ENOTSUP, "no guest interrupt files");
	BAD(flags, 0x100, VMM_EINVAL, "unknown flags 0x100");
	BAD(isa, "rv64imafdc_zfoo", VMM_EINVAL, "unknown extension \"zfoo\"");
	BAD(isa, "rv64imafdc_zfh", VMM_ENOTSUP, "this host has no zfh");
	BAD(isa, "none", VMM_EINVAL, "isa \"none\"");
	BAD(kernel_fd, -1, VMM_EINVAL, "no kernel");
	BAD(kernel_fd, 0, VMM_EINVAL, "no kernel");
	BAD(kernel_fd, 900, VMM_ESYS, "kernel (descriptor 900)");
	assert_int_equal(err.os_errno, EBADF);
	BAD(kernel, "/nonexistent/Image", VMM_ESYS, "kernel /nonexistent/Image: No such file");
	assert_int_equal(err.os_errno, ENOENT);
	BAD(kernel, "/dev/null/Image", VMM_ESYS, "kernel /dev/null/Image: Not a directory");
	BAD(kernel, "/tmp", VMM_ESYS, "kernel /tmp: Is a directory");
	BAD(kernel, "/dev/null", VMM_EFORMAT, "kernel /dev/null: empty");
	BAD(kernel, "/proc/self/exe", VMM_EFORMAT, "another architecture");
	BAD(kernel, "", VMM_ESYS, "kernel ");
	BAD(initrd, "/nonexistent/initrd", VMM_ESYS, "initrd /nonexistent/initrd: No such");
	BAD(initrd, "/dev/null", VMM_EFORMAT, "initrd /dev/null: empty");
	BAD(initrd, "/dev/zero", VMM_EFORMAT, "initrd /dev/zero: larger than the 4 MiB of RAM");
	BAD(initrd_fd, 901, VMM_ESYS, "initrd (descriptor 901)");
#undef BAD
}

/* What does not fit into RAM says which file, and what there is. */
static void test_too_large(void **state)
{
	struct vmm_config cfg = VMM_CONFIG_INIT;
	uint8_t *data = calloc(1, 5 * MiB);

	(void)state;
	cfg.kernel_fd = rig_kernel;
	cfg.memory = 4 * MiB;
	cfg.initrd_fd = file_of(data, 5 * MiB);
	refused(&cfg, VMM_EFORMAT, "5120 KiB do not fit into RAM");
	memcpy(data + 56, "RSC\x05", 4);
	cfg.kernel_fd = file_of(data, 5 * MiB);
	refused(&cfg, VMM_EFORMAT, "takes 5 MiB at 0x80000000, RAM has 4 MiB");
	close(cfg.kernel_fd);
	close(cfg.initrd_fd);
	free(data);
}

/* Kernel and initrd fit, but the device tree behind them does not. */
static void test_no_room_for_tree(void **state)
{
	struct vmm_config cfg = VMM_CONFIG_INIT;
	uint8_t *data = calloc(1, 2 * MiB);
	struct vmm *vm;

	(void)state;
	cfg.kernel_fd = rig_kernel;
	cfg.memory = 4 * MiB;
	cfg.initrd_fd = file_of(data, 2 * MiB);
	assert_ok(vmm_create(&vm, &cfg, &err));
	assert_fails(vmm_start(vm, &err), VMM_EFORMAT, "no room for the device tree in 4 MiB");
	assert_int_equal(vmm_state(vm), VMM_NEW);
	vmm_free(vm);
	close(cfg.initrd_fd);
	free(data);
}

static void test_permission(void **state)
{
	struct vmm_config cfg = VMM_CONFIG_INIT;
	char path[] = "/tmp/test_api.XXXXXX";
	int fd = mkstemp(path);

	(void)state;
	fchmod(fd, 0);
	setfsuid(1);			/* of this thread, if we are root */
	cfg.kernel = path;
	refused(&cfg, VMM_ESYS, "Permission denied");
	assert_non_null(strstr(err.message, path));
	assert_int_equal(err.os_errno, EACCES);
	cfg.kernel = NULL;
	cfg.kernel_fd = rig_kernel;
	cfg.initrd = path;
	refused(&cfg, VMM_ESYS, "Permission denied");
	setfsuid(geteuid());
	close(fd);
	unlink(path);
}

static void test_bad_host(void **state)
{
	static const struct { int cap; const char *name; } caps[] = {
		{ KVM_CAP_USER_MEMORY, "KVM_CAP_USER_MEMORY" },
		{ KVM_CAP_ONE_REG, "KVM_CAP_ONE_REG" },
		{ KVM_CAP_MP_STATE, "KVM_CAP_MP_STATE" },
		{ KVM_CAP_IMMEDIATE_EXIT, "KVM_CAP_IMMEDIATE_EXIT" },
		{ KVM_CAP_IOEVENTFD, "KVM_CAP_IOEVENTFD" },
	};
	struct vmm_config cfg = VMM_CONFIG_INIT;
	struct vmm_host host = VMM_HOST_INIT;
	unsigned int i;
	int before = fds();

	(void)state;
	cfg.kernel_fd = rig_kernel;
	fake.native = 0;
	refused(&cfg, VMM_ENOKVM, "no 64-bit RISC-V");
	assert_fails(vmm_probe(&host, &err), VMM_ENOKVM, "no 64-bit RISC-V");
	fake.native = 1;
	fake.open_errno = ENOENT;
	refused(&cfg, VMM_ENOKVM, "/dev/kvm: No such file");
	assert_int_equal(err.os_errno, ENOENT);
	assert_fails(vmm_probe(&host, &err), VMM_ENOKVM, "/dev/kvm: No such file");
	fake.open_errno = EACCES;
	refused(&cfg, VMM_ENOKVM, "/dev/kvm: Permission denied");
	fake.open_errno = 0;
	fake.version = 11;
	refused(&cfg, VMM_ENOKVM, "version 11");
	fake.version = 12;
	for (i = 0; i < sizeof(caps) / sizeof(caps[0]); i++) {
		fake.missing_cap = caps[i].cap;
		refused(&cfg, VMM_ENOTSUP, caps[i].name);
		assert_fails(vmm_probe(&host, &err), VMM_ENOTSUP, caps[i].name);
	}
	fake.missing_cap = 0;
	fake.aia = 0;
	refused(&cfg, VMM_ENOTSUP, "no in-kernel AIA");
	host = (struct vmm_host)VMM_HOST_INIT;
	assert_fails(vmm_probe(&host, &err), VMM_ENOTSUP, "no in-kernel AIA");
	assert_int_equal(host.size, sizeof(host));
	assert_int_equal(host.max_vcpus | host.irqchip, 0);
	assert_string_equal(host.isa, "");
	assert_int_equal(fds(), before);
}

static void test_probe(void **state)
{
	struct vmm_host h = VMM_HOST_INIT;
	int before = fds();

	(void)state;
	assert_ok(vmm_probe(&h, &err));
	assert_int_equal(h.max_vcpus, 64);
	assert_int_equal(h.irqchip, VMM_IRQCHIP_AIA_EMUL);
	assert_int_equal(h.irqchips, 1u << VMM_IRQCHIP_AIA_EMUL);
	assert_int_equal(h.irqchips_sound, 1u << VMM_IRQCHIP_AIA_EMUL);
	assert_int_equal(h.gpa_bits, 50);
	assert_int_equal(h.satp_bits, 48);
	assert_int_equal(h.vlenb, 32);
	assert_int_equal(h.timebase_hz, 10000000);
	assert_memory_equal(h.isa, "rv64imafdcv_", 12);
	assert_true(h.kernel[0] && h.note[0] && h.lazy_note[0]);
	assert_in_range(h.lazy, 0, 1);
	fake.isa[0] &= ~(1ull << 15);
	fake.satp = 10;
	h = (struct vmm_host)VMM_HOST_INIT;
	assert_ok(vmm_probe(&h, &err));
	assert_int_equal(h.vlenb, 0);
	assert_int_equal(h.satp_bits, 57);
	assert_int_equal(fds(), before);
}

/* ---- What is in a machine ---------------------------------------------------------------- */

static void test_boot(void **state)
{
	struct vmm *vm = in_state(VMM_NEW);
	uint8_t *tree = malloc(1 << 18), *seen = malloc(1 << 18);
	uint64_t gpa, slot_gpa;
	struct fake_vcpu *v;
	size_t size, again;
	void *hva;

	(void)state;
	assert_int_equal(fake_slot(fake_vm(), &slot_gpa, &hva), 4 * MiB + 65536);
	assert_int_equal(slot_gpa, MAP_RAM);
	assert_ok(vmm_add_serial(vm, -1, -1, &err));
	assert_ok(vmm_start(vm, &err));
	assert_ok(vmm_pause(vm, &err));
	v = fake_vcpu(fake_vm(), 0);
	assert_int_equal(fake_reg(v, CORE_PC), MAP_RAM);
	assert_int_equal(fake_reg(v, CORE_X(X_A0)), 0);
	gpa = fake_reg(v, CORE_X(X_A1));
	assert_int_equal(gpa % 8, 0);
	assert_ok(vmm_fdt(vm, tree, 1 << 18, &size, &err));
	assert_int_equal(fdt_check_full(tree, size), 0);
	assert_ok(vmm_read(vm, gpa, seen, size, &err));
	assert_memory_equal(seen, tree, size);
	/* A part of it, and none. */
	memset(seen, 0xee, size);
	assert_ok(vmm_fdt(vm, seen, 100, &again, &err));
	assert_int_equal(again, size);
	assert_memory_equal(seen, tree, 100);
	assert_int_equal(seen[100], 0xee);
	assert_ok(vmm_fdt(vm, NULL, 0, &again, &err));
	assert_int_equal(again, size);
	vmm_free(vm);
	free(tree);
	free(seen);
}

static void test_memory(void **state)
{
	static const struct { uint64_t gpa; size_t len; } bad[] = {
		{ MAP_RAM - 1, 1 }, { MAP_RAM - 1, 2 }, { 0, 1 }, { MAP_RAM + 4 * MiB, 1 },
		{ MAP_RAM + 4 * MiB - 1, 2 }, { MAP_RAM, 4 * MiB + 1 }, { MAP_RAM, SIZE_MAX },
		{ MAP_RAM + 1, SIZE_MAX }, { UINT64_MAX, 1 }, { UINT64_MAX, SIZE_MAX },
		{ MAP_UART, 1 }, { MAP_RAM + 4 * MiB + 4096, 16 },
	};
	struct vmm *vm = in_state(VMM_RUNNING);
	uint8_t out[300], in[300];
	unsigned int i;

	(void)state;
	for (i = 0; i < sizeof(out); i++)
		out[i] = (uint8_t)(i * 3);
	assert_ok(vmm_write(vm, MAP_RAM + 4 * MiB - 300, out, 300, &err));
	assert_ok(vmm_read(vm, MAP_RAM + 4 * MiB - 300, in, 300, &err));
	assert_memory_equal(in, out, 300);
	assert_ok(vmm_read(vm, MAP_RAM + 4 * MiB - 1, in, 1, &err));
	assert_int_equal(in[0], out[299]);
	for (i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		memset(in, 0x77, sizeof(in));
		assert_fails(vmm_read(vm, bad[i].gpa, in, bad[i].len, &err), VMM_EINVAL,
			     "not all RAM");
		assert_int_equal(in[0], 0x77);		/* all of it, or none */
		assert_fails(vmm_write(vm, bad[i].gpa, out, bad[i].len, &err), VMM_EINVAL,
			     "not all RAM");
	}
	vmm_free(vm);
}

static void test_stats(void **state)
{
	struct vmm *vm = in_state(VMM_NEW);
	struct vmm_stats s = VMM_STATS_INIT;
	uint64_t sum = 0;
	int i;

	(void)state;
	assert_ok(vmm_stat(vm, &s, &err));
	assert_int_equal(s.stage_ns[VMM_STAGE_START], 0);
	assert_true(s.stage_ns[VMM_STAGE_VCPUS] > 0 && s.stage_ns[VMM_STAGE_LOAD] > 0);
	assert_true(s.memory_used >= 4096 && s.memory_used <= s.memory);
	assert_ok(vmm_start(vm, &err));
	assert_ok(vmm_stat(vm, &s, &err));
	assert_true(s.stage_ns[VMM_STAGE_START] > 0);
	for (i = 0; i < VMM_STAGES; i++)
		sum += s.stage_ns[i];
	assert_int_equal(s.setup_ns, sum);
	vmm_free(vm);
}

static char logged[200];
static int log_level;

static void keep_log(void *arg, int level, const char *line)
{
	if (arg == logged && strstr(line, "0x30000000")) {
		snprintf(logged, sizeof(logged), "%s", line);
		log_level = level;
	}
}

static int touches_a_hole(struct fake_vcpu *v)
{
	return v->step++ ? fake_system(v, KVM_SYSTEM_EVENT_SHUTDOWN, 0) :
	       fake_read(v, 0x30000000, 4);
}

static void test_log(void **state)
{
	struct vmm_config cfg = VMM_CONFIG_INIT;
	struct vmm *vm;

	(void)state;
	fake.guest = touches_a_hole;
	cfg.kernel_fd = rig_kernel;
	cfg.log = keep_log;
	cfg.log_arg = logged;
	assert_ok(vmm_create(&vm, &cfg, &err));
	assert_ok(vmm_start(vm, &err));
	rig_event(vm, VMM_EV_SHUTDOWN);
	vmm_free(vm);
	assert_string_equal(logged, "vCPU 0: no device at 0x30000000");
	assert_int_equal(log_level, VMM_LOG_DEBUG);
}

/* What the caller gave is the caller's again, at once. */
static void test_ownership(void **state)
{
	char *path = strdup("/tmp/test_api.XXXXXX"), *name = strdup("named");
	char *isa = strdup("rv64imac"), *cmdline = strdup("quiet");
	struct vmm_config *cfg = malloc(sizeof(*cfg));
	struct vmm *vm;
	uint8_t image[4096];
	int fd = mkstemp(path), p[2];
	size_t n;
	char c;

	(void)state;
	assert_int_equal(pread(rig_kernel, image, sizeof(image), 0), sizeof(image));
	assert_int_equal(write(fd, image, sizeof(image)), sizeof(image));
	*cfg = (struct vmm_config)VMM_CONFIG_INIT;
	cfg->kernel = path;
	cfg->initrd_fd = fd;
	cfg->name = name;
	cfg->isa = isa;
	cfg->cmdline = cmdline;
	cfg->memory = 4 * MiB;
	assert_ok(vmm_create(&vm, cfg, &err));
	memset(name, 'x', 5);
	memset(isa, 'x', 8);
	memset(cmdline, 'x', 5);
	free(name);
	free(isa);
	free(cmdline);
	free(cfg);
	close(fd);
	assert_int_equal(pipe2(p, O_CLOEXEC), 0);
	assert_ok(vmm_add_serial(vm, -1, p[1], &err));
	close(p[1]);
	assert_ok(vmm_start(vm, &err));
	assert_ok(vmm_stop(vm, &err));
	assert_ok(vmm_reset(vm, &err));		/* reads both files again */
	assert_ok(vmm_fdt(vm, NULL, 0, &n, &err));
	/* One that is gone is missed then, and the machine is no more. */
	unlink(path);
	assert_fails(vmm_reset(vm, &err), VMM_ESYS, path);
	assert_int_equal(vmm_state(vm), VMM_BROKEN);
	assert_fails(vmm_start(vm, &err), VMM_EBROKEN, "named");
	vmm_free(vm);
	assert_int_equal(read(p[0], &c, 1), 0);	/* and nobody holds its pipe */
	close(p[0]);
	free(path);
}

/* ---- Life ----------------------------------------------------------------------------------- */

static int reboots_once(struct fake_vcpu *v)
{
	switch (v->step++) {
	case 0:
		return fake_write(v, MAP_UART, 1, 'b');
	case 1:
		return fake_sbi(v, VMM_GUEST_SBI, VMM_GUEST_SBI_RING, 1, 0, 0);
	default:
		return fake_system(v, KVM_SYSTEM_EVENT_RESET, 0);
	}
}

static void test_reset_after_reboot(void **state)
{
	struct vmm_event ev;
	struct vmm *vm;
	char id[2][16], c, text[8] = "";
	int p[2], i;

	(void)state;
	fake.guest = reboots_once;
	vm = rig_vmm(2);
	assert_int_equal(pipe2(p, O_CLOEXEC), 0);
	assert_ok(vmm_add_serial(vm, -1, p[1], &err));
	close(p[1]);
	for (i = 0; i < 5; i++) {
		assert_ok(vmm_write(vm, MAP_RAM + 3 * MiB, "dirty", 5, &err));
		memcpy(id[i % 2], mem_tail(&rig_inside(vm)->mem), 16);
		if (i)
			assert_memory_not_equal(id[0], id[1], 16);
		assert_ok(vmm_start(vm, &err));
		if (i % 2)
			rig_event(vm, VMM_EV_DOORBELL);
		while (vmm_state(vm) == VMM_RUNNING)
			nap_ms(1);
		if (i % 2)
			rig_event(vm, VMM_EV_REBOOT);
		assert_int_equal(readable(vmm_fd(vm), 0), i % 2 == 0);
		assert_ok(vmm_reset(vm, &err));
		assert_int_equal(vmm_state(vm), VMM_NEW);
		/* What was queued is dropped, RAM is fresh, the console stays. */
		assert_false(readable(vmm_fd(vm), 0));
		assert_ok(vmm_wait(vm, -1, &ev, &err));
		assert_int_equal(ev.type, VMM_EV_NONE);
		assert_ok(vmm_read(vm, MAP_RAM + 3 * MiB, &c, 1, &err));
		assert_int_equal(c, 0);
		assert_ok(vmm_read(vm, MAP_RAM + 48, text, 6, &err));
		assert_string_equal(text, "RISCV");
	}
	vmm_free(vm);
	assert_int_equal(read(p[0], text, sizeof(text)), 5);
	assert_int_equal(read(p[0], text, sizeof(text)), 0);
	close(p[0]);
}

static void test_wait(void **state)
{
	struct vmm *vm = in_state(VMM_RUNNING);
	struct vmm_event ev;
	uint64_t begin = now_ms();

	(void)state;
	assert_ok(vmm_wait(vm, 30, &ev, &err));
	assert_int_equal(ev.type, VMM_EV_NONE);
	assert_in_range(now_ms() - begin, 29, 2000);
	assert_ok(vmm_pause(vm, &err));
	assert_ok(vmm_wait(vm, -1, &ev, &err));	/* nothing can come */
	assert_int_equal(ev.type, VMM_EV_NONE);
	assert_ok(vmm_start(vm, &err));
	assert_ok(vmm_stop(vm, &err));		/* no event tells of it */
	assert_ok(vmm_wait(vm, -1, &ev, &err));
	assert_int_equal(ev.type, VMM_EV_NONE);
	vmm_free(vm);
}

static void *wait_for_ever(void *arg)
{
	static struct vmm_event ev;
	struct vmm_error e;

	ev.type = 99;
	return vmm_wait(arg, -1, &ev, &e) ? NULL : &ev;
}

/* Who waits lets the others pass, and returns when there is nothing to come. */
static void test_wait_elsewhere(void **state)
{
	static int (*const end[])(struct vmm *) = { do_stop, do_pause };
	struct vmm_event *ev;
	struct vmm *vm;
	pthread_t t;
	void *out;
	int i;

	(void)state;
	for (i = 0; i < 2; i++) {
		vm = in_state(VMM_RUNNING);
		pthread_create(&t, NULL, wait_for_ever, vm);
		nap_ms(10);
		assert_ok(do_read(vm));
		assert_ok(do_stat(vm));
		assert_ok(end[i](vm));
		pthread_join(t, &out);
		ev = out;
		assert_non_null(ev);
		assert_int_equal(ev->type, VMM_EV_NONE);
		vmm_free(vm);
	}
}

static void test_any_order(void **state)
{
	static const int order[][5] = {
		{ 0, 1, 2, 3, 4 }, { 4, 3, 2, 1, 0 }, { 2, 0, 4, 1, 3 }, { 1, 4, 0, 3, 2 },
	};
	struct vmm *vm[5];
	int before = fds();
	unsigned int i, k;

	(void)state;
	for (i = 0; i < 4; i++) {
		for (k = 0; k < 5; k++)
			vm[k] = in_state((int)k);
		for (k = 0; k < 5; k++)
			vmm_free(vm[order[i][k]]);
		assert_int_equal(fds(), before);
	}
}

#define MANY	(SLOW ? 8 : 24)

static void test_many(void **state)
{
	struct vmm *vm[MANY];
	int i, before = fds();

	(void)state;
	fake.guest = rings_once;
	for (i = 0; i < MANY; i++) {
		vm[i] = rig_vmm(1);
		assert_ok(vmm_start(vm[i], &err));
	}
	for (i = 0; i < MANY; i++)
		rig_event(vm[i], VMM_EV_DOORBELL);
	for (i = 0; i < MANY; i++)
		vmm_free(vm[i]);
	assert_int_equal(fds(), before);
}

/* As many virtio devices as there are places, and no more. */
static void test_many_devices(void **state)
{
	struct vmm *vm = in_state(VMM_NEW);
	char name[16];
	int i, before;

	(void)state;
	for (i = 0; i < 27; i++) {
		snprintf(name, sizeof(name), "rng%d", i);
		assert_ok(vmm_add_rng(vm, name, &err));
		if (i < 26)
			assert_fails(vmm_add_rng(vm, name, &err), VMM_EINVAL, name);
	}
	before = fds();
	assert_fails(vmm_add_rng(vm, "another", &err), VMM_ENOTSUP, "more than 27");
	assert_fails(vmm_add_blk(vm, "disk", "/nonexistent/disk", 0, &err), VMM_ESYS,
		     "/nonexistent/disk");
	assert_int_equal(fds(), before);
	assert_ok(vmm_start(vm, &err));
	assert_ok(vmm_pause(vm, &err));
	vmm_free(vm);
}

/* ---- Threads --------------------------------------------------------------------------------- */

struct life {
	pthread_t	t;
	char		wrong[200];
};

/* One machine's whole life, again and again, on a thread of its own. */
static void *live(void *arg)
{
	struct vmm_config cfg = VMM_CONFIG_INIT;
	struct life *l = arg;
	struct vmm_error e = { 0 };
	struct vmm_event ev;
	struct vmm *vm = NULL;
	int i, k, rc = 0;

	cfg.kernel_fd = rig_kernel;
	cfg.memory = 4 * MiB;
	cfg.vcpus = 2;
	for (i = 0; i < (SLOW ? 5 : 15) && !rc; i++) {
		rc = vmm_create(&vm, &cfg, &e);
		for (k = 0; k < 3 && !rc; k++) {
			rc = vmm_start(vm, &e);
			if (!rc)
				rc = vmm_wait(vm, 20000, &ev, &e);
			if (!rc && (ev.type != VMM_EV_DOORBELL || ev.value))
				rc = snprintf(e.message, sizeof(e.message), "event %u", ev.type);
			rc = rc ? rc : vmm_pause(vm, &e);
			rc = rc ? rc : vmm_start(vm, &e);
			rc = rc || k == 2 ? rc : vmm_stop(vm, &e);
			rc = rc || k == 2 ? rc : vmm_reset(vm, &e);
		}
		vmm_free(vm);		/* while it runs */
	}
	if (rc)
		snprintf(l->wrong, sizeof(l->wrong), "round %d: %.150s", i, e.message);
	return NULL;
}

static void test_two_threads(void **state)
{
	struct life life[3] = { 0 };
	int i, before = fds();

	(void)state;
	fake.guest = rings_once;
	for (i = 0; i < 3; i++)
		pthread_create(&life[i].t, NULL, live, &life[i]);
	for (i = 0; i < 3; i++)
		pthread_join(life[i].t, NULL);
	for (i = 0; i < 3; i++)
		assert_string_equal(life[i].wrong, "");
	assert_int_equal(fds(), before);
}

struct storm {
	pthread_t	t;
	struct vmm	*vm;
	unsigned int	seed, kinds, done;
	int		wrong;
};

static uint64_t storm_end;

static void *storm(void *arg)
{
	struct storm *s = arg;
	struct vmm_event ev;
	struct vmm_stats st;
	size_t size;
	char c;
	int rc = 0;

	/* The calls themselves, each with an error of this thread. */
	/* Some calls at least, however busy the host is. */
	while ((now_ms() < storm_end || s->done <= 10) && !s->wrong) {
		struct vmm_error e = { 0 };

		switch ((unsigned int)rand_r(&s->seed) % s->kinds) {
		case 0: case 1:
			rc = vmm_pause(s->vm, &e);
			break;
		case 2: case 3: case 4:
			rc = vmm_start(s->vm, &e);
			break;
		case 5:
			st = (struct vmm_stats)VMM_STATS_INIT;
			rc = vmm_stat(s->vm, &st, &e);
			break;
		case 6:
			rc = vmm_read(s->vm, MAP_RAM, &c, 1, &e);
			break;
		case 7:
			rc = vmm_fdt(s->vm, NULL, 0, &size, &e);
			break;
		case 8:
			rc = vmm_wait(s->vm, 1, &ev, &e);
			break;
		case 9:
			rc = vmm_state(s->vm) == VMM_BROKEN ? -99 : 0;
			break;
		case 10:
			rc = vmm_stop(s->vm, &e);
			break;
		default:
			rc = vmm_reset(s->vm, &e);
			break;
		}
		if (rc && rc != VMM_ESTATE)
			s->wrong = rc;
		s->done++;
	}
	return NULL;
}

static int busy(struct fake_vcpu *v)
{
	v->step++;
	if (v->step % 5 == 0)
		return fake_sbi(v, VMM_GUEST_SBI, VMM_GUEST_SBI_RING, v->step, 0, 0);
	if (v->step % 5 == 1)
		return fake_write(v, MAP_UART, 1, 'x');
	return v->step % 5 == 2 ? FAKE_NAP : fake_read(v, MAP_RTC, 4);
}

static void *drain_events(void *arg)
{
	struct vmm_error e;
	struct vmm_event ev;
	struct vmm *vm = arg;

	while (now_ms() < storm_end)
		if (vmm_wait(vm, -1, &ev, &e) == 0 && ev.type == VMM_EV_NONE)
			sched_yield();
	return NULL;
}

static void weather(unsigned int kinds)
{
	struct storm s[3] = { 0 };
	struct vmm *vm;
	pthread_t t;
	int i, null = open("/dev/null", O_RDWR | O_CLOEXEC);

	fake.guest = busy;
	fake.boot_all = 1;
	vm = rig_vmm(4);
	assert_ok(vmm_add_serial(vm, null, null, &err));
	storm_end = now_ms() + (SLOW ? 1000 : 400);
	pthread_create(&t, NULL, drain_events, vm);
	for (i = 0; i < 3; i++) {
		s[i] = (struct storm){ .vm = vm, .seed = (unsigned int)i, .kinds = kinds };
		pthread_create(&s[i].t, NULL, storm, &s[i]);
	}
	for (i = 0; i < 3; i++) {
		pthread_join(s[i].t, NULL);
		if (s[i].wrong)
			fail_msg("thread %d: %s", i, vmm_strerror(s[i].wrong));
		assert_true(s[i].done > 10);
	}
	assert_ok(vmm_stop(vm, &err));		/* ends the waiting, too */
	pthread_join(t, NULL);
	vmm_free(vm);
	close(null);
}

static void test_storm(void **state)
{
	(void)state;
	weather(10);			/* without stop and reset */
}

static void test_storm_with_resets(void **state)
{
	(void)state;
	weather(12);
}

/* ---- The process it lives in --------------------------------------------------- */

static pid_t main_tid;
static volatile sig_atomic_t handled, handled_elsewhere;

static void on_signal(int sig)
{
	(void)sig;
	if ((pid_t)syscall(SYS_gettid) == main_tid)
		handled++;
	else
		handled_elsewhere++;
}

/* The host program's handlers run on its own threads only. */
static void test_signals(void **state)
{
	static const int signals[] = { SIGUSR1, SIGUSR2, SIGWINCH, SIGCHLD, SIGURG, SIGIO };
	struct sigaction sa = { .sa_handler = on_signal, .sa_flags = SA_RESTART }, old[7];
	struct vmm *vm;
	int i, k, null = open("/dev/null", O_RDWR | O_CLOEXEC);

	(void)state;
	main_tid = (pid_t)syscall(SYS_gettid);
	handled = handled_elsewhere = 0;
	for (i = 0; i < 6; i++)
		sigaction(signals[i], &sa, &old[i]);
	sigaction(SIGSTKFLT, &sa, &old[6]);	/* what vCPUs are kicked with */
	fake.guest = busy;
	fake.boot_all = 1;
	vm = rig_vmm(4);
	assert_ok(vmm_add_serial(vm, null, null, &err));
	for (k = 0; k < 20; k++) {
		assert_ok(vmm_start(vm, &err));
		for (i = 0; i < 6; i++)
			kill(getpid(), signals[i]);
		assert_ok(vmm_pause(vm, &err));
	}
	vmm_free(vm);
	for (i = 0; i < 6; i++)
		sigaction(signals[i], &old[i], NULL);
	sigaction(SIGSTKFLT, &old[6], NULL);
	assert_int_equal(handled_elsewhere, 0);
	assert_int_equal(handled, 20 * 6);
	close(null);
}

/* The library changes no disposition and no mask. */
static void test_signal_state(void **state)
{
	struct sigaction before[65], after;
	sigset_t mask, now;
	struct vmm *vm;
	int s;

	(void)state;
	pthread_sigmask(SIG_SETMASK, NULL, &mask);
	for (s = 1; s < 65; s++)
		sigaction(s, NULL, &before[s]);
	vm = in_state(VMM_PAUSED);
	for (s = 1; s < 65; s++) {
		if (s == 32 || s == 33)		/* the C library's */
			continue;
		memset(&after, 0, sizeof(after));
		sigaction(s, NULL, &after);
		assert_ptr_equal((void *)(uintptr_t)after.sa_handler,
				 (void *)(uintptr_t)before[s].sa_handler);
	}
	vmm_free(vm);
	pthread_sigmask(SIG_SETMASK, NULL, &now);
	for (s = 1; s < 65; s++)
		assert_int_equal(sigismember(&mask, s), sigismember(&now, s));
}

static int writes_a_lot(struct fake_vcpu *v)
{
	if (v->step == 5000)
		return fake_system(v, KVM_SYSTEM_EVENT_SHUTDOWN, 0);
	v->step++;
	return fake_write(v, MAP_UART, 1, 'x');
}

/* A console nobody reads any more kills nobody. */
static void test_sigpipe(void **state)
{
	struct vmm *vm;
	int p[2];

	(void)state;
	signal(SIGPIPE, SIG_DFL);
	fake.guest = writes_a_lot;
	assert_int_equal(pipe2(p, O_CLOEXEC), 0);
	close(p[0]);
	vm = rig_vmm(1);
	assert_ok(vmm_add_serial(vm, -1, p[1], &err));
	assert_ok(vmm_start(vm, &err));
	rig_event(vm, VMM_EV_SHUTDOWN);
	vmm_free(vm);
	close(p[1]);
}

/* A child that frees its copy keeps no descriptor of any device, and the parent's
   devices go on. */
static void test_fork_devices(void **state)
{
	char path[] = "/tmp/test_api.XXXXXX";
	int file = mkstemp(path), before = fds(), p[2], v[2], out, status;
	struct vmm *vm = in_state(VMM_NEW);
	char c = 0;
	pid_t pid;

	(void)state;
	assert_int_equal(ftruncate(file, 1 << 20), 0);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, p), 0);
	assert_ok(vmm_add_serial(vm, p[0], p[0], &err));
	assert_ok(vmm_add_console(vm, "con0", p[0], p[0], &err));
	assert_ok(vmm_add_blk(vm, "disk0", path, VMM_OVERLAY | VMM_DIRECT, &err));
	assert_ok(do_net(vm));
	assert_ok(do_vsock(vm));
	assert_ok(do_balloon_device(vm));
	assert_ok(add_vhost(vm, 0, v));
	close(v[0]);
	assert_ok(vmm_start(vm, &err));
	assert_ok(vmm_listen(vm, 1, &out, &err));
	pid = fork();
	if (pid == 0) {
		vmm_free(vm);
		close(p[0]);
		close(p[1]);
		close(v[1]);
		close(out);
		_exit(fds() == before ? 0 : 1);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	if (!WIFEXITED(status) || WEXITSTATUS(status))
		fail_msg("the child ended with 0x%x", (unsigned int)status);
	/* Output still comes, by the parent's I/O thread. */
	loop_lock(&rig_inside(vm)->loop);
	bus_write(&rig_inside(vm)->bus, MAP_UART, 1, '!');
	loop_unlock(&rig_inside(vm)->loop);
	assert_int_equal(read(p[1], &c, 1), 1);
	assert_int_equal(c, '!');
	close(v[1]);
	rig_event(vm, VMM_EV_DEVICE);
	close(out);
	vmm_free(vm);
	close(p[0]);
	close(p[1]);
	assert_int_equal(fds(), before);
	unlink(path);
	close(file);
}

static void test_fork(void **state)
{
	int s, status, before;
	unsigned int i;
	struct vmm *vm;
	pid_t pid;

	(void)state;
	for (s = VMM_NEW; s <= VMM_STOPPED; s++) {
		vm = in_state(s);
		before = fds();
		pid = fork();
		if (pid == 0) {
			/* No assertion here: the number of the failed one. */
			for (i = 0; i < CALLS; i++)
				if (calls[i].call(vm) != VMM_ESTATE ||
				    !strstr(err.message, "process"))
					_exit(10 + (int)i);
			vmm_free(vm);
			_exit(fds() >= before ? 9 : 0);
		}
		assert_int_equal(waitpid(pid, &status, 0), pid);
		if (!WIFEXITED(status) || WEXITSTATUS(status))
			fail_msg("state %d: the child ended with 0x%x", s, (unsigned int)status);
		/* The parent's is as it was. */
		assert_int_equal(vmm_state(vm), s);
		assert_int_equal(fds(), before);
		if (s == VMM_RUNNING)
			assert_ok(vmm_pause(vm, &err));
		if (s != VMM_STOPPED)
			assert_ok(vmm_start(vm, &err));
		assert_ok(vmm_stop(vm, &err));
		fake.guest = rings_once;
		assert_ok(vmm_reset(vm, &err));
		assert_ok(vmm_start(vm, &err));
		rig_event(vm, VMM_EV_DOORBELL);
		vmm_free(vm);
	}
}

/* Every descriptor that a machine has open is close-on-exec. */
static void test_exec(void **state)
{
	char was[1024] = { 0 };
	struct vmm_config cfg = VMM_CONFIG_INIT;
	struct vmm_stats st = VMM_STATS_INIT;
	struct vmm *vm;
	int fd, p[2], more = 0;

	(void)state;
	fake.guest = rings_once;
	assert_int_equal(pipe(p), 0);
	for (fd = 0; fd < 1024; fd++)
		was[fd] = fcntl(fd, F_GETFD) >= 0;
	cfg.kernel_fd = cfg.initrd_fd = rig_kernel;
	cfg.vcpus = 2;
	assert_ok(vmm_create(&vm, &cfg, &err));
	assert_ok(vmm_add_serial(vm, p[0], p[1], &err));
	assert_ok(vmm_add_console(vm, "c", p[0], p[1], &err));
	assert_int_equal(do_blk(vm), 0);
	assert_ok(vmm_start(vm, &err));
	rig_event(vm, VMM_EV_DOORBELL);
	assert_ok(vmm_stat(vm, &st, &err));
	for (fd = 0; fd < 1024; fd++) {
		if (was[fd] || fcntl(fd, F_GETFD) < 0)
			continue;
		more++;
		if (!(fcntl(fd, F_GETFD) & FD_CLOEXEC))
			fail_msg("descriptor %d would be inherited", fd);
	}
	assert_true(more > 8);
	vmm_free(vm);
	close(p[0]);
	close(p[1]);
}

/* With so many descriptors and no more: an error, and nothing lost. */
static void test_no_descriptors(void **state)
{
	struct vmm_config cfg = VMM_CONFIG_INIT;
	int before = fds(), rc = -1, first;
	struct rlimit old, few;
	struct vmm *vm;
	rlim_t n;

	(void)state;
	cfg.kernel_fd = rig_kernel;
	cfg.vcpus = 2;
	cfg.memory = 4 * MiB;
	first = dup(rig_kernel);
	close(first);
	getrlimit(RLIMIT_NOFILE, &old);
	for (n = 0; rc; n++) {
		few = old;
		few.rlim_cur = (rlim_t)first + n;
		setrlimit(RLIMIT_NOFILE, &few);
		rc = vmm_create(&vm, &cfg, &err);
		setrlimit(RLIMIT_NOFILE, &old);
		if (rc == 0)
			break;
		assert_int_equal(fds(), before);
		assert_true(rc == VMM_ESYS || rc == VMM_ENOMEM || rc == VMM_ENOKVM);
		assert_null(vm);
	}
	assert_true(n > 5);
	vmm_free(vm);
	assert_int_equal(fds(), before);
}

static int nobody_reads;

static void quiesce_writes(struct device *d)
{
	(void)d;
	assert_int_equal(write(nobody_reads, "x", 1), -1);
}

static void free_nothing(struct device *d)
{
	(void)d;
}

/* What a device writes when it is made quiet, on the caller's thread, does not end the program. */
static void test_pause_writes(void **state)
{
	static const struct device_ops ops = { .type = "writes", .quiesce = quiesce_writes,
					       .free = free_nothing };
	struct device d = { .ops = &ops };
	struct vmm *vm;
	int p[2];

	(void)state;
	assert_int_equal(pipe(p), 0);
	close(p[0]);
	nobody_reads = p[1];
	fake.guest = spins;
	vm = rig_vmm(1);
	assert_ok(vmm_start(vm, &err));
	d.next = vm->m.devices;
	vm->m.devices = &d;
	assert_ok(vmm_pause(vm, &err));
	vmm_free(vm);
	close(p[1]);
}

int main(void)
{
#define T(fn) cmocka_unit_test_setup_teardown(fn, rig_setup, rig_teardown)
	const struct CMUnitTest tests[] = {
		T(test_states), T(test_pause_writes), T(test_null_machine), T(test_null_arguments),
		T(test_vhost), T(test_tuning),
		T(test_config_size),
		T(test_out_sizes), T(test_defaults), T(test_bad_config), T(test_too_large),
		T(test_no_room_for_tree), T(test_permission), T(test_bad_host), T(test_probe),
		T(test_boot), T(test_memory), T(test_stats), T(test_log), T(test_ownership),
		T(test_reset_after_reboot), T(test_wait), T(test_wait_elsewhere),
		T(test_any_order), T(test_many), T(test_many_devices),
		T(test_two_threads), T(test_storm),
		T(test_storm_with_resets), T(test_signals), T(test_signal_state), T(test_sigpipe),
		T(test_fork), T(test_fork_devices), T(test_exec), T(test_no_descriptors),
	};

	time_limit(40);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
