/* SPDX-License-Identifier: MIT */
/*
 * vmm_devices.c - the public functions of a machine's devices.
 *
 * Adding one gives it a name, a place and an interrupt, in the order of the
 * calls.  On a restored machine the devices are there, and the same calls put
 * a back end behind the one of that name.
 */
#include <stdlib.h>
#include <string.h>

#include <linux/virtio_balloon.h>
#include <linux/virtio_ids.h>

#include "core/clock.h"
#include "riscv/map.h"
#include "riscv/platform.h"
#include "virtio/devices.h"
#include "vmm_impl.h"

#define BALLOON_S_OOM_KILL	10	/* younger than some headers */

/* ---- Adding ------------------------------------------------------------------- */

void vm_forget_fdt(struct vmm *vm)
{
	free(vm->fdt);
	vm->fdt = NULL;
}

static int replace_serial(struct vmm *vm, int in_fd, int out_fd, struct vmm_error *err)
{
	struct device *d = machine_device(&vm->m, UART_NAME);

	if (!d)
		return fail(err, VMM_EINVAL, "the snapshot of machine %s has no serial port",
			    vm->m.name);
	return uart_replace(d, in_fd, out_fd, err);
}

int vmm_add_serial(struct vmm *vm, int in_fd, int out_fd, struct vmm_error *err)
{
	int rc = vm_enter(vm, err);

	if (rc)
		return rc;
	rc = vm_expect(vm, 1u << VMM_NEW, "add a serial port to", err);
	if (rc == 0 && vm->snap)
		rc = replace_serial(vm, in_fd, out_fd, err);
	else if (rc == 0)
		rc = uart_add(&vm->m, in_fd, out_fd, err);
	if (rc == 0)
		vm_forget_fdt(vm);
	return vm_leave(vm, rc);
}

struct virtio_env vm_env(struct vmm *vm)
{
	struct machine *m = &vm->m;

	return (struct virtio_env){ &m->mem, &m->loop, &m->log, &m->vm, &m->events };
}

int vm_add_virtio(struct vmm *vm, struct virtio *v, struct vmm_error *err)
{
	struct device *d;
	uint32_t n = 0;
	int rc;

	for (d = vm->m.devices; d; d = d->next)
		n += transport_virtio(d) != NULL;
	if (n == VIRTIO_MAX) {
		v->ops->free(v);
		return fail(err, VMM_ENOTSUP, "more than %u virtio devices", VIRTIO_MAX);
	}
	rc = transport_new(&d, v, MAP_VIRTIO + (uint64_t)n * TRANSPORT_SIZE, IRQ_VIRTIO + n, NULL,
			   err);
	if (rc == 0)
		rc = machine_add(&vm->m, d, err);
	if (rc == 0)
		vm_forget_fdt(vm);
	return rc;
}

/* Take a turn to add a device of that name; of a restored machine *v is the one
   there is, of this type, else NULL. */
static int enter_add(struct vmm *vm, const char *name, const char *type, struct virtio **v,
		     struct vmm_error *err)
{
	struct device *d;
	int rc = vm_enter(vm, err);

	*v = NULL;
	if (rc)
		return rc;
	rc = vm_expect(vm, 1u << VMM_NEW, "add a device to", err);
	if (rc == 0 && (!name || !*name || strlen(name) >= sizeof(d->name)))
		rc = fail(err, VMM_EINVAL, "a device's name has 1 to %zu bytes", sizeof(d->name) - 1);
	if (rc == 0 && vm->snap) {
		d = machine_device(&vm->m, name);
		*v = d ? transport_virtio(d) : NULL;
		if (!*v || strcmp((*v)->ops->type, type) != 0)
			rc = fail(err, VMM_EINVAL, "the snapshot of machine %s has no %s device %s",
				  vm->m.name, type, name);
	}
	return rc ? vm_leave(vm, rc) : 0;
}

_Static_assert((int)VMM_READONLY == (int)BLK_READONLY && (int)VMM_DIRECT == (int)BLK_DIRECT &&
	       (int)VMM_NOSYNC == (int)BLK_NOSYNC && (int)VMM_OVERLAY == (int)BLK_OVERLAY,
	       "flags are passed on");

int vmm_add_blk(struct vmm *vm, const char *name, const char *path, uint32_t flags,
		struct vmm_error *err)
{
	struct blk_config cfg = BLK_CONFIG_INIT;
	struct virtio_env env;
	struct virtio *v;
	int rc;

	if (!path)
		return fail(err, VMM_EINVAL, "no path of a disk");
	if (flags & ~(uint32_t)(VMM_READONLY | VMM_DIRECT | VMM_NOSYNC | VMM_OVERLAY))
		return fail(err, VMM_EINVAL, "unknown flags 0x%x", flags);
	rc = enter_add(vm, name, "blk", &v, err);
	if (rc)
		return rc;
	cfg.path = path;
	cfg.flags = flags;		/* VMM_x is BLK_x */
	env = vm_env(vm);
	if (v) {
		rc = blk_replace(v, &cfg, err);
	} else {
		rc = blk_new(&v, &env, name, &cfg, err);
		if (rc == 0)
			rc = vm_add_virtio(vm, v, err);
	}
	return vm_leave(vm, rc);
}

int vmm_add_rng(struct vmm *vm, const char *name, struct vmm_error *err)
{
	struct virtio_env env;
	struct virtio *v;
	int rc = enter_add(vm, name, "rng", &v, err);

	if (rc)
		return rc;
	env = vm_env(vm);
	if (!v) {
		rc = rng_new(&v, &env, name, err);
		if (rc == 0)
			rc = vm_add_virtio(vm, v, err);
	}
	return vm_leave(vm, rc);
}

int vmm_add_console(struct vmm *vm, const char *name, int in_fd, int out_fd,
		    struct vmm_error *err)
{
	const struct console_port port = { NULL, in_fd, out_fd };
	struct virtio_env env;
	struct virtio *v;
	int rc = enter_add(vm, name, "console", &v, err);

	if (rc)
		return rc;
	env = vm_env(vm);
	if (v) {
		rc = console_replace(v, 0, in_fd, out_fd, err);
	} else {
		rc = console_new(&v, &env, name, &port, 1, err);
		if (rc == 0)
			rc = vm_add_virtio(vm, v, err);
	}
	return vm_leave(vm, rc);
}

int vmm_add_balloon(struct vmm *vm, const char *name, struct vmm_error *err)
{
	struct virtio_env env;
	struct virtio *v;
	int rc = enter_add(vm, name, "balloon", &v, err);

	if (rc)
		return rc;
	env = vm_env(vm);
	if (!v) {
		rc = balloon_new(&v, &env, name, err);
		if (rc == 0)
			rc = vm_add_virtio(vm, v, err);
	}
	return vm_leave(vm, rc);
}

int vmm_add_net(struct vmm *vm, const char *name, int fd, const uint8_t *mac,
		struct vmm_error *err)
{
	struct net_config cfg = NET_CONFIG_INIT;
	struct virtio_env env;
	struct virtio *v;
	int rc;

	if (fd < 0)
		return fail(err, VMM_EINVAL, "no descriptor of a network");
	rc = enter_add(vm, name, "net", &v, err);
	if (rc)
		return rc;
	cfg.fd = fd;
	cfg.mac = mac;
	env = vm_env(vm);
	if (v) {
		rc = net_replace(v, &cfg, err);
	} else {
		rc = net_new(&v, &env, name, &cfg, err);
		if (rc == 0)
			rc = vm_add_virtio(vm, v, err);
	}
	return vm_leave(vm, rc);
}

int vmm_add_vsock(struct vmm *vm, uint32_t cid, struct vmm_error *err)
{
	struct virtio_env env;
	struct virtio *v;
	int rc;

	if (cid < 3 || cid == UINT32_MAX)
		return fail(err, VMM_EINVAL, "vsock CID %u: 3 to 4294967294 are possible", cid);
	rc = enter_add(vm, VSOCK_NAME, "vsock", &v, err);
	if (rc)
		return rc;
	env = vm_env(vm);
	if (v) {
		loop_lock(&vm->m.loop);
		rc = vsock_set_cid(v, cid, err);
		loop_unlock(&vm->m.loop);
	} else {
		rc = vsock_new(&v, &env, VSOCK_NAME, cid, err);
		if (rc == 0)
			rc = vm_add_virtio(vm, v, err);
	}
	return vm_leave(vm, rc);
}

/* Something that another process serves, which needs the guest's RAM for it. */
static int add_vhost_user(struct vmm *vm, const char *name, uint16_t id, int fd,
			  struct vmm_error *err)
{
	struct vhost_user_config cfg = VHOST_USER_CONFIG_INIT;
	struct virtio_env env;
	struct virtio *v;
	int rc;

	if (fd < 0)
		return fail(err, VMM_EINVAL, "no descriptor of a vhost-user socket");
	rc = enter_add(vm, name, "vhost-user", &v, err);
	if (rc)
		return rc;
	cfg.id = id;
	cfg.fd = fd;
	cfg.tag = name;
	env = vm_env(vm);
	rc = vhost_user_new(&v, &env, name, &cfg, err);
	if (rc)
		return vm_leave(vm, rc);
	rc = mem_share(&vm->m.mem, err);
	if (rc)
		v->ops->free(v);
	else
		rc = vm_add_virtio(vm, v, err);
	return vm_leave(vm, rc);
}

int vmm_add_fs(struct vmm *vm, const char *name, int fd, struct vmm_error *err)
{
	return add_vhost_user(vm, name, VIRTIO_ID_FS, fd, err);
}

int vmm_add_vhost_blk(struct vmm *vm, const char *name, int fd, struct vmm_error *err)
{
	return add_vhost_user(vm, name, VIRTIO_ID_BLOCK, fd, err);
}

/* ---- Talking to devices ------------------------------------------------------ */

/* Take a turn on vm and the I/O lock, with its device of that name and one of the
   types ("blk or net"). */
static int enter_device(struct vmm *vm, const char *name, const char *types, struct virtio **v,
			struct vmm_error *err)
{
	struct device *d;
	int rc = vm_enter(vm, err);

	if (rc)
		return rc;
	d = name ? machine_device(&vm->m, name) : NULL;
	*v = d ? transport_virtio(d) : NULL;
	if (!*v || !strstr(types, (*v)->ops->type))
		return vm_leave(vm, fail(err, VMM_EINVAL, "machine %s has no %s %s",
					 vm->m.name, types, name ? name : ""));
	loop_lock(&vm->m.loop);
	return 0;
}

static int leave_device(struct vmm *vm, int rc)
{
	loop_unlock(&vm->m.loop);
	return vm_leave(vm, rc);
}

int vmm_add_port(struct vmm *vm, const char *console, const char *port, int in_fd, int out_fd,
		 struct vmm_error *err)
{
	const struct console_port cfg = { port, in_fd, out_fd };
	struct virtio *v;
	int rc, i;

	if (!port || !*port)
		return fail(err, VMM_EINVAL, "no name of a port");
	rc = enter_device(vm, console, "console", &v, err);
	if (rc)
		return rc;
	rc = vm_expect(vm, 1u << VMM_NEW, "add a port to", err);
	i = console_port(v, port);
	if (rc == 0 && vm->snap && i < 0)
		rc = fail(err, VMM_EINVAL, "%s of the snapshot has no port %s", console, port);
	else if (rc == 0 && vm->snap)
		rc = console_replace(v, (uint32_t)i, in_fd, out_fd, err);
	else if (rc == 0)
		rc = console_add_port(v, &cfg, err);
	return leave_device(vm, rc);
}

int vmm_resize_console(struct vmm *vm, const char *name, uint16_t cols, uint16_t rows,
		       struct vmm_error *err)
{
	struct virtio *v;
	int rc = enter_device(vm, name, "console", &v, err);

	if (rc)
		return rc;
	console_resize(v, cols, rows);
	return leave_device(vm, 0);
}

int vmm_resize_blk(struct vmm *vm, const char *name, struct vmm_error *err)
{
	struct virtio *v;
	int rc = enter_device(vm, name, "blk", &v, err);

	return rc ? rc : leave_device(vm, blk_resize(v, err));
}

int vmm_set_queues(struct vmm *vm, const char *name, uint32_t queues, struct vmm_error *err)
{
	struct virtio *v;
	int rc = enter_device(vm, name, "blk", &v, err);

	if (rc)
		return rc;
	rc = vm_expect(vm, 1u << VMM_NEW, "set queues of", err);
	if (rc == 0 && vm->snap)
		rc = fail(err, VMM_ENOTSUP, "machine %s was restored: %s keeps its %u queues",
			  vm->m.name, name, v->nqueues);
	if (rc == 0)
		rc = blk_set_queues(v, queues, err);
	return leave_device(vm, rc);
}

int vmm_limit(struct vmm *vm, const char *name, uint64_t bytes_per_sec, uint64_t ops_per_sec,
	      struct vmm_error *err)
{
	struct virtio *v;
	int rc = enter_device(vm, name, "blk or net", &v, err);

	if (rc)
		return rc;
	if (v->ops->id == VIRTIO_ID_BLOCK)
		blk_limit(v, bytes_per_sec, ops_per_sec);
	else
		net_limit(v, bytes_per_sec, ops_per_sec);
	return leave_device(vm, 0);
}

int vmm_balloon(struct vmm *vm, const char *name, uint64_t bytes, struct vmm_error *err)
{
	struct virtio *v;
	int rc = enter_device(vm, name, "balloon", &v, err);

	if (rc)
		return rc;
	balloon_set(v, bytes);
	return leave_device(vm, 0);
}

/* 1 when the guest has given all it has, or nobody waits any longer: then it may
   use that again. */
static int trim_over(struct vmm *vm, struct virtio *v, int late)
{
	struct balloon_info info;
	int over;

	loop_lock(&vm->m.loop);
	balloon_look(v, &info);
	over = !info.hint_running || !vm_still_running(&vm->m);
	if (over || late)
		balloon_hint_done(v);
	loop_unlock(&vm->m.loop);
	return over;
}

int vmm_trim(struct vmm *vm, const char *name, int timeout_ms, struct vmm_error *err)
{
	const struct timespec moment = { 0, 1000000 };
	uint64_t end = clock_ns() + (uint64_t)timeout_ms * 1000000u;
	struct virtio *v;
	int rc, late;

	if (timeout_ms < -1)
		return fail(err, VMM_EINVAL, "timeout below -1");
	rc = enter_device(vm, name, "balloon", &v, err);
	if (rc)
		return rc;
	rc = vm_expect(vm, 1u << VMM_RUNNING, "trim", err);
	if (rc == 0 && !balloon_hint_start(v))
		rc = fail(err, VMM_ENOTSUP, "the guest of machine %s has no driver that tells of "
			  "free pages", vm->m.name);
	rc = leave_device(vm, rc);
	while (rc == 0) {
		late = timeout_ms >= 0 && clock_ns() >= end;
		if (trim_over(vm, v, late))
			break;
		if (late)
			rc = fail(err, VMM_ETIMEDOUT, "the guest of machine %s is still at it",
				  vm->m.name);
		else
			nanosleep(&moment, NULL);
	}
	return rc;
}

int vmm_balloon_stat(struct vmm *vm, const char *name, struct vmm_balloon_stats *out,
		     struct vmm_error *err)
{
	struct vmm_balloon_stats s;
	struct balloon_info info;
	struct virtio *v;
	int rc = vm_import(&s, sizeof(s), out, "struct vmm_balloon_stats", err);

	if (rc)
		return rc;
	memset(&s, 0, sizeof(s));
	vm_export(out, &s, sizeof(s));
	rc = enter_device(vm, name, "balloon", &v, err);
	if (rc)
		return rc;
	balloon_look(v, &info);
	if (vm_still_running(&vm->m))
		balloon_poll(v);
	rc = leave_device(vm, 0);
	s.answers = info.stats_seq;
	s.target = info.target;
	s.actual = info.actual;
	s.returned = info.inflated + info.reported + info.hinted;
	s.total = info.stat[VIRTIO_BALLOON_S_MEMTOT];
	s.free = info.stat[VIRTIO_BALLOON_S_MEMFREE];
	s.available = info.stat[VIRTIO_BALLOON_S_AVAIL];
	s.caches = info.stat[VIRTIO_BALLOON_S_CACHES];
	s.swap_in = info.stat[VIRTIO_BALLOON_S_SWAP_IN];
	s.swap_out = info.stat[VIRTIO_BALLOON_S_SWAP_OUT];
	s.major_faults = info.stat[VIRTIO_BALLOON_S_MAJFLT];
	s.minor_faults = info.stat[VIRTIO_BALLOON_S_MINFLT];
	s.oom_kills = info.stat[BALLOON_S_OOM_KILL];
	vm_export(out, &s, sizeof(s));
	return rc;
}

/* ---- vsock ---------------------------------------------------------------------- */

/* The vsock device of vm, which is not freed before vm. */
static int find_vsock(struct vmm *vm, int *out, struct virtio **v, struct vmm_error *err)
{
	struct device *d;
	int rc;

	if (!out)
		return fail(err, VMM_EINVAL, "nowhere to put the socket");
	*out = -1;
	rc = vm_enter(vm, err);
	if (rc)
		return rc;
	d = machine_device(&vm->m, VSOCK_NAME);
	*v = d ? transport_virtio(d) : NULL;
	if (!*v)
		rc = fail(err, VMM_EINVAL, "machine %s has no vsock", vm->m.name);
	return vm_leave(vm, rc);
}

int vmm_connect(struct vmm *vm, uint32_t port, int timeout_ms, int *out, struct vmm_error *err)
{
	struct virtio *v;
	int rc = find_vsock(vm, out, &v, err);

	if (rc)
		return rc;
	if (timeout_ms < -1)
		return fail(err, VMM_EINVAL, "timeout below -1");
	return vsock_connect(v, port, timeout_ms, vm_still_running, &vm->m, out, err);
}

int vmm_listen(struct vmm *vm, uint32_t port, int *out, struct vmm_error *err)
{
	struct virtio *v;
	int rc = find_vsock(vm, out, &v, err);

	return rc ? rc : vsock_listen(v, port, out, err);
}

void vm_hang_up(struct vmm *vm)
{
	struct device *d = machine_device(&vm->m, VSOCK_NAME);

	if (!d)
		return;
	loop_lock(&vm->m.loop);
	vsock_hang_up_all(transport_virtio(d));
	loop_unlock(&vm->m.loop);
}
