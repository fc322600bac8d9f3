/* SPDX-License-Identifier: MIT */
/*
 * vmm.c - the public functions: vmm.h is their manual.
 *
 * Each checks its arguments, takes its turn on the machine, checks the state,
 * and calls the layers below, which do the work:
 *
 *	core/	memory, bus, I/O thread, vCPU threads, events
 *	riscv/	what makes it a RISC-V machine
 *
 * A machine is built in stages that are timed (vmm_stat), in the order in
 * which KVM wants them: memory, every vCPU and what it is configured with,
 * interrupt controller.  vmm_reset() builds the KVM side afresh, because KVM
 * has no way to take a used one back to its beginning.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "core/clock.h"
#include "core/machine.h"
#include "riscv/aia.h"
#include "riscv/fdt.h"
#include "riscv/hart.h"
#include "riscv/host.h"
#include "riscv/image.h"
#include "riscv/isa.h"
#include "riscv/map.h"
#include "riscv/platform.h"
#include "riscv/regs.h"
#include "snapshot/snapfile.h"
#include "virtio/devices.h"
#include "vmm.h"

#define VSOCK_NAME	"vsock"
#define MEMORY_DEFAULT	(128ull << 20)
#define MEMORY_STEP	(2ull << 20)
#define START_TRIES	200	/* milliseconds that a hart has to start in */

struct vmm {
	struct machine	m;
	pthread_mutex_t	turn;		/* one public call at a time */
	pid_t		pid;		/* that made it: KVM ties it to that */
	struct vmm_config cfg;		/* with strings of our own */
	int		kernel_fd, initrd_fd;	/* ours, or -1: opened by path */
	struct isa	isa;		/* what the guest is told it has */
	struct image	image;
	uint64_t	initrd, initrd_size;
	uint8_t		*fdt;		/* once it has been built */
	size_t		fdt_len;
	uint64_t	mark_ns;	/* where the present stage began */
	uint64_t	time;		/* guest time to go on from, in ticks */
	struct vmm_snap	*snap;		/* it was restored from, or NULL */
	uint64_t	snap_time;	/* guest time there */
};

/* ---- Library ------------------------------------------------------------- */

uint32_t vmm_version(void)
{
	return VMM_VERSION;
}

const char *vmm_strerror(int code)
{
	static const char *const names[] = {
		"VMM_OK", "VMM_EINVAL", "VMM_ESTATE", "VMM_ENOMEM", "VMM_ESYS", "VMM_ENOKVM",
		"VMM_ENOTSUP", "VMM_EFORMAT", "VMM_EVERSION", "VMM_ETIMEDOUT", "VMM_EREFUSED",
		"VMM_EBROKEN",
	};

	return code <= 0 && code >= VMM_EBROKEN ? names[-code] : "VMM_E?";
}

/*
 * Take in a struct that may be older or newer than ours (vmm.h, Structs): dst
 * has known bytes.
 */
static int import(void *dst, size_t known, const void *src, const char *name,
		  struct vmm_error *err)
{
	const uint8_t *p = src;
	uint32_t size;
	size_t i;

	if (!src)
		return fail(err, VMM_EINVAL, "no %s", name);
	memcpy(&size, src, sizeof(size));
	if (size < sizeof(size) || size > 65536)
		return fail(err, VMM_EINVAL, "%s: size %u (set it up with its INIT macro)", name,
			    size);
	for (i = known; i < size; i++)
		if (p[i])
			return fail(err, VMM_EINVAL,
				    "%s: byte %zu is set, but this library knows only %zu", name, i,
				    known);
	memset(dst, 0, known);
	memcpy(dst, src, size < known ? size : known);
	return 0;
}

/* Hand out a struct that the caller may know less, or more, of. */
static void export(void *dst, const void *src, size_t known)
{
	uint32_t size;

	memcpy(&size, dst, sizeof(size));
	memcpy((uint8_t *)dst + sizeof(size), (const uint8_t *)src + sizeof(size),
	       (size < known ? size : known) - sizeof(size));
}

int vmm_probe(struct vmm_host *out, struct vmm_error *err)
{
	struct vmm_host h;
	int rc;

	rc = import(&h, sizeof(h), out, "struct vmm_host", err);
	if (rc)
		return rc;
	memset(&h, 0, sizeof(h));
	rc = host_probe(&h, err);
	if (rc)
		memset(&h, 0, sizeof(h));
	export(out, &h, sizeof(h));
	return rc;
}

/* ---- Turns ---------------------------------------------------------------- */

/* Take a turn on vm, whatever its state. */
static int enter_any(struct vmm *vm, struct vmm_error *err)
{
	if (!vm)
		return fail(err, VMM_EINVAL, "no machine");
	if (vm->pid != getpid())
		return fail(err, VMM_ESTATE, "machine %s belongs to process %d, before its fork()",
			    vm->m.name, (int)vm->pid);
	pthread_mutex_lock(&vm->turn);
	return 0;
}

static int enter(struct vmm *vm, struct vmm_error *err)
{
	int rc = enter_any(vm, err);

	if (rc || machine_state(&vm->m) != VMM_BROKEN)
		return rc;
	pthread_mutex_unlock(&vm->turn);
	return fail(err, VMM_EBROKEN, "machine %s is broken and can only be freed", vm->m.name);
}

static int leave(struct vmm *vm, int rc)
{
	pthread_mutex_unlock(&vm->turn);
	return rc;
}

static const char *state_name(int state)
{
	static const char *const names[] = { "NEW", "RUNNING", "PAUSED", "STOPPED", "BROKEN" };

	return names[state];
}

/* May a call that wants one of these states (bits) be made now? */
static int expect(struct vmm *vm, unsigned int states, const char *what, struct vmm_error *err)
{
	int state = machine_state(&vm->m);

	if (states >> state & 1)
		return 0;
	return fail(err, VMM_ESTATE, "machine %s is %s: cannot %s it", vm->m.name,
		    state_name(state), what);
}

/* ---- Building --------------------------------------------------------------- */

static void stage(struct vmm *vm, int which)
{
	uint64_t now = clock_ns();

	vm->m.stage_ns[which] += now - vm->mark_ns;
	vm->mark_ns = now;
}

static int configure_harts(struct vmm *vm, struct vmm_error *err);

static int build_vcpus(struct vmm *vm, struct vmm_error *err)
{
	struct machine *m = &vm->m;
	struct isa host;
	uint32_t i;
	int rc;

	rc = vcpus_create(m, vm->cfg.vcpus, err);
	if (rc)
		return rc;
	if (vm->snap)
		return configure_harts(vm, err);
	rc = isa_of_vcpu(m->vcpu[0].fd, &host, err);
	if (rc)
		return rc;
	rc = isa_choose(vm->cfg.isa, &host, &vm->isa, err);
	if (rc)
		return rc;
	for (i = 0; i < m->nvcpus; i++) {
		rc = isa_apply(m->vcpu[i].fd, &host, &vm->isa, err);
		if (rc == 0)
			rc = host_setup_vcpu(m->vcpu[i].fd, err);
		if (rc)
			return rc;
	}
	return 0;
}

/* The KVM side of a machine whose RAM is there. */
static int build(struct vmm *vm, struct vmm_error *err)
{
	struct machine *m = &vm->m;
	int rc;

	m->kvm = host_open(err);
	if (m->kvm < 0)
		return m->kvm;
	stage(vm, VMM_STAGE_KVM);
	m->vm = kvm_vm(m->kvm);
	if (m->vm < 0)
		return fail_sys(err, -m->vm, "KVM_CREATE_VM");
	stage(vm, VMM_STAGE_VM);
	rc = kvm_slot(m->vm, 0, m->mem.gpa, m->mem.size + MEM_TAIL, m->mem.hva);
	if (rc < 0)
		return fail_sys(err, -rc, "memslot for %llu MiB of RAM",
				(unsigned long long)(m->mem.size >> 20));
	stage(vm, VMM_STAGE_MEMORY);
	rc = build_vcpus(vm, err);
	if (rc)
		return rc;
	stage(vm, VMM_STAGE_VCPUS);
	rc = aia_create(m, vm->cfg.irqchip, NULL, err);
	stage(vm, VMM_STAGE_IRQCHIP);
	return rc;
}

static uint64_t next_page(uint64_t gpa)
{
	return (gpa + 0xfff) & ~0xfffull;
}

/*
 * Kernel and initrd, into RAM that is all zeroes.  They lie one behind the
 * other, the device tree behind them (boot), so that few huge pages are
 * touched.
 */
static int load(struct vmm *vm, struct vmm_error *err)
{
	const struct mem *mem = &vm->m.mem;
	char name[160];
	int fd, rc;

	fd = image_open(vm->cfg.kernel, vm->kernel_fd, "kernel", name, sizeof(name), err);
	if (fd < 0)
		return fd;
	rc = image_load(mem, fd, name, &vm->image, err);
	close(fd);
	if (rc)
		return rc;
	vm->initrd = next_page(vm->image.end);
	vm->initrd_size = 0;
	if (vm->cfg.initrd || vm->initrd_fd >= 0) {
		fd = image_open(vm->cfg.initrd, vm->initrd_fd, "initrd", name, sizeof(name), err);
		if (fd < 0)
			return fd;
		rc = image_initrd(mem, fd, name, vm->initrd, &vm->initrd_size, err);
		close(fd);
	}
	stage(vm, VMM_STAGE_LOAD);
	return rc;
}

/* To power-on; a vmm_connect() may be waiting for one of them. */
static void reset_devices(struct machine *m)
{
	struct device *d;

	loop_lock(&m->loop);
	for (d = m->devices; d; d = d->next)
		d->ops->reset(d);
	loop_unlock(&m->loop);
}

static int add_platform(struct machine *m, struct vmm_error *err)
{
	int rc;

	rc = rtc_add(m, err);
	if (rc == 0)
		rc = genid_add(m, err);
	if (rc == 0)
		rc = doorbell_add(m, err);
	if (rc == 0)
		reset_devices(m);
	return rc;
}

static int check_config(const struct vmm_config *c, struct vmm_error *err)
{
	if (c->vcpus > VCPUS_MAX)
		return fail(err, VMM_EINVAL, "%u vCPUs: 1 to %u are possible", c->vcpus, VCPUS_MAX);
	if (c->memory % MEMORY_STEP || c->memory > 1ull << 40)
		return fail(err, VMM_EINVAL,
			    "%llu bytes of memory: a multiple of 2 MiB, 1 TiB at most, is possible",
			    (unsigned long long)c->memory);
	if (c->irqchip > VMM_IRQCHIP_AIA_AUTO)
		return fail(err, VMM_EINVAL, "unknown interrupt controller %u", c->irqchip);
	if (c->flags)
		return fail(err, VMM_EINVAL, "unknown flags 0x%x", c->flags);
	if (!c->kernel && c->kernel_fd <= 0)
		return fail(err, VMM_EINVAL, "no kernel: neither a path nor a descriptor");
	return 0;
}

static int copy_string(const char **s, struct vmm_error *err)
{
	if (*s && !(*s = strdup(*s)))
		return fail(err, VMM_ENOMEM, "memory for the configuration");
	return 0;
}

/* Everything in *c that is the caller's becomes ours.  On failure what has not
   been copied is NULL or -1, so that free_config() is right. */
static int own_config(struct vmm *vm, const struct vmm_config *c, struct vmm_error *err)
{
	const char **field[] = { &vm->cfg.kernel, &vm->cfg.initrd, &vm->cfg.cmdline, &vm->cfg.isa,
				 &vm->cfg.name };
	const char *value[] = { c->kernel, c->initrd, c->cmdline, c->isa, c->name };
	unsigned int i;
	int rc = 0;

	vm->cfg = *c;
	for (i = 0; i < 5; i++)
		*field[i] = NULL;
	for (i = 0; i < 5 && rc == 0; i++) {
		*field[i] = value[i];
		rc = copy_string(field[i], err);
	}
	if (rc == 0 && !c->kernel) {
		vm->kernel_fd = image_open(NULL, c->kernel_fd, "kernel", (char[64]){ 0 }, 64, err);
		rc = vm->kernel_fd < 0 ? vm->kernel_fd : 0;
	}
	if (rc == 0 && !c->initrd && c->initrd_fd > 0) {
		vm->initrd_fd = image_open(NULL, c->initrd_fd, "initrd", (char[64]){ 0 }, 64, err);
		rc = vm->initrd_fd < 0 ? vm->initrd_fd : 0;
	}
	if (!vm->cfg.vcpus)
		vm->cfg.vcpus = 1;
	if (!vm->cfg.memory)
		vm->cfg.memory = MEMORY_DEFAULT;
	return rc;
}

static void free_config(struct vmm *vm)
{
	free((char *)(uintptr_t)vm->cfg.kernel);
	free((char *)(uintptr_t)vm->cfg.initrd);
	free((char *)(uintptr_t)vm->cfg.cmdline);
	free((char *)(uintptr_t)vm->cfg.isa);
	free((char *)(uintptr_t)vm->cfg.name);
	if (vm->kernel_fd >= 0)
		close(vm->kernel_fd);
	if (vm->initrd_fd >= 0)
		close(vm->initrd_fd);
}

/* A machine with nothing in it. */
static int new_vmm(struct vmm **out, const char *name,
		   void (*log)(void *arg, int level, const char *line), void *log_arg,
		   struct vmm_error *err)
{
	const struct log to = { log, log_arg };
	struct vmm *vm = calloc(1, sizeof(*vm));
	int rc;

	if (!vm)
		return fail(err, VMM_ENOMEM, "a machine");
	vm->pid = getpid();
	vm->mark_ns = clock_ns();
	vm->kernel_fd = vm->initrd_fd = -1;
	rc = machine_init(&vm->m, name ? name : "vm", &to, err);
	if (rc) {
		free(vm);
		return rc;
	}
	vm->m.arch_exit = riscv_exit;
	pthread_mutex_init(&vm->turn, NULL);
	*out = vm;
	return 0;
}

int vmm_create(struct vmm **out, const struct vmm_config *config, struct vmm_error *err)
{
	struct vmm_config c;
	struct vmm *vm;
	int rc;

	if (!out)
		return fail(err, VMM_EINVAL, "nowhere to put the machine");
	*out = NULL;
	rc = import(&c, sizeof(c), config, "struct vmm_config", err);
	if (rc == 0)
		rc = check_config(&c, err);
	if (rc)
		return rc;
	rc = new_vmm(&vm, c.name, c.log, c.log_arg, err);
	if (rc)
		return rc;
	rc = own_config(vm, &c, err);
	if (rc == 0)
		rc = mem_init(&vm->m.mem, MAP_RAM, vm->cfg.memory, err);
	if (rc == 0)
		rc = build(vm, err);
	if (rc == 0)
		rc = load(vm, err);
	if (rc == 0)
		rc = add_platform(&vm->m, err);
	if (rc) {
		vmm_free(vm);
		return rc;
	}
	*out = vm;
	return 0;
}

void vmm_free(struct vmm *vm)
{
	struct machine *m;

	if (!vm)
		return;
	m = &vm->m;
	if (vm->pid == getpid()) {
		vcpus_stop(m);
		loop_stop(&m->loop);
		machine_fini(m);
		pthread_mutex_destroy(&vm->turn);
		vmm_snap_free(vm->snap);
	} else {
		/* After a fork: what is shared with the parent (an epoll set, a
		   timer) must not be touched, and a lock may have been held.
		   RAM is not in the child. */
		machine_unbuild(m);
	}
	free_config(vm);
	free(vm->fdt);
	free(vm);
}

/* ---- Devices ----------------------------------------------------------------- */

static void forget_fdt(struct vmm *vm)
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
	int rc = enter(vm, err);

	if (rc)
		return rc;
	rc = expect(vm, 1u << VMM_NEW, "add a serial port to", err);
	if (rc == 0 && vm->snap)
		rc = replace_serial(vm, in_fd, out_fd, err);
	else if (rc == 0)
		rc = uart_add(&vm->m, in_fd, out_fd, err);
	if (rc == 0)
		forget_fdt(vm);
	return leave(vm, rc);
}

/* Where a virtio device lives: the parts of the machine that it uses. */
static struct virtio_env virtio_env(struct vmm *vm)
{
	struct machine *m = &vm->m;

	return (struct virtio_env){ &m->mem, &m->loop, &m->log, &m->vm };
}

/* Give a new device the next place; takes v. */
static int add_virtio(struct vmm *vm, struct virtio *v, struct vmm_error *err)
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
		forget_fdt(vm);
	return rc;
}

/* Take a turn to add a device of that name; of a restored machine *v is the one
   there is, of this type, else NULL. */
static int enter_add(struct vmm *vm, const char *name, const char *type, struct virtio **v,
		     struct vmm_error *err)
{
	struct device *d;
	int rc = enter(vm, err);

	*v = NULL;
	if (rc)
		return rc;
	rc = expect(vm, 1u << VMM_NEW, "add a device to", err);
	if (rc == 0 && (!name || !*name || strlen(name) >= sizeof(d->name)))
		rc = fail(err, VMM_EINVAL, "a device's name has 1 to %zu bytes", sizeof(d->name) - 1);
	if (rc == 0 && vm->snap) {
		d = machine_device(&vm->m, name);
		*v = d ? transport_virtio(d) : NULL;
		if (!*v || strcmp((*v)->ops->type, type) != 0)
			rc = fail(err, VMM_EINVAL, "the snapshot of machine %s has no %s device %s",
				  vm->m.name, type, name);
	}
	return rc ? leave(vm, rc) : 0;
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
	env = virtio_env(vm);
	if (v) {
		rc = blk_replace(v, &cfg, err);
	} else {
		rc = blk_new(&v, &env, name, &cfg, err);
		if (rc == 0)
			rc = add_virtio(vm, v, err);
	}
	return leave(vm, rc);
}

int vmm_add_rng(struct vmm *vm, const char *name, struct vmm_error *err)
{
	struct virtio_env env;
	struct virtio *v;
	int rc = enter_add(vm, name, "rng", &v, err);

	if (rc)
		return rc;
	env = virtio_env(vm);
	if (!v) {
		rc = rng_new(&v, &env, name, err);
		if (rc == 0)
			rc = add_virtio(vm, v, err);
	}
	return leave(vm, rc);
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
	env = virtio_env(vm);
	if (v) {
		rc = console_replace(v, 0, in_fd, out_fd, err);
	} else {
		rc = console_new(&v, &env, name, &port, 1, err);
		if (rc == 0)
			rc = add_virtio(vm, v, err);
	}
	return leave(vm, rc);
}

int vmm_add_balloon(struct vmm *vm, const char *name, struct vmm_error *err)
{
	struct virtio_env env;
	struct virtio *v;
	int rc = enter_add(vm, name, "balloon", &v, err);

	if (rc)
		return rc;
	env = virtio_env(vm);
	if (!v) {
		rc = balloon_new(&v, &env, name, err);
		if (rc == 0)
			rc = add_virtio(vm, v, err);
	}
	return leave(vm, rc);
}

int vmm_balloon(struct vmm *vm, const char *name, uint64_t bytes, struct vmm_error *err)
{
	struct device *d;
	struct virtio *v;
	int rc = enter(vm, err);

	if (rc)
		return rc;
	d = name ? machine_device(&vm->m, name) : NULL;
	v = d ? transport_virtio(d) : NULL;
	if (!v || strcmp(v->ops->type, "balloon") != 0)
		return leave(vm, fail(err, VMM_EINVAL, "machine %s has no balloon %s", vm->m.name,
				      name ? name : ""));
	loop_lock(&vm->m.loop);
	balloon_set(v, bytes);
	loop_unlock(&vm->m.loop);
	return leave(vm, 0);
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
	env = virtio_env(vm);
	if (v) {
		rc = net_replace(v, &cfg, err);
	} else {
		rc = net_new(&v, &env, name, &cfg, err);
		if (rc == 0)
			rc = add_virtio(vm, v, err);
	}
	return leave(vm, rc);
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
	env = virtio_env(vm);
	if (v) {
		rc = vsock_set_cid(v, cid, err);
	} else {
		rc = vsock_new(&v, &env, VSOCK_NAME, cid, err);
		if (rc == 0)
			rc = add_virtio(vm, v, err);
	}
	return leave(vm, rc);
}

/* The vsock device of vm, which is not freed before vm. */
static int find_vsock(struct vmm *vm, int *out, struct virtio **v, struct vmm_error *err)
{
	struct device *d;
	int rc;

	if (!out)
		return fail(err, VMM_EINVAL, "nowhere to put the socket");
	*out = -1;
	rc = enter(vm, err);
	if (rc)
		return rc;
	d = machine_device(&vm->m, VSOCK_NAME);
	*v = d ? transport_virtio(d) : NULL;
	if (!*v)
		rc = fail(err, VMM_EINVAL, "machine %s has no vsock", vm->m.name);
	return leave(vm, rc);
}

static int still_running(const void *arg);

int vmm_connect(struct vmm *vm, uint32_t port, int timeout_ms, int *out, struct vmm_error *err)
{
	struct virtio *v;
	int rc = find_vsock(vm, out, &v, err);

	if (rc)
		return rc;
	if (timeout_ms < -1)
		return fail(err, VMM_EINVAL, "timeout below -1");
	return vsock_connect(v, port, timeout_ms, still_running, &vm->m, out, err);
}

int vmm_listen(struct vmm *vm, uint32_t port, int *out, struct vmm_error *err)
{
	struct virtio *v;
	int rc = find_vsock(vm, out, &v, err);

	return rc ? rc : vsock_listen(v, port, out, err);
}

/* The guest has stopped: nobody is at the other end of its connections. */
static void hang_up(struct vmm *vm)
{
	struct device *d = machine_device(&vm->m, VSOCK_NAME);

	if (!d)
		return;
	loop_lock(&vm->m.loop);
	vsock_hang_up_all(transport_virtio(d));
	loop_unlock(&vm->m.loop);
}

static int make_fdt(struct vmm *vm, struct vmm_error *err)
{
	const struct fdt_config c = {
		.cmdline = vm->cfg.cmdline,
		.isa = &vm->isa,
		.initrd = vm->initrd,
		.initrd_size = vm->initrd_size,
	};
	uint8_t *buf;
	int rc;

	if (vm->fdt)
		return 0;
	buf = malloc(FDT_ROOM);
	if (!buf)
		return fail(err, VMM_ENOMEM, "device tree");
	rc = fdt_build(&vm->m, &c, buf, FDT_ROOM, &vm->fdt_len, err);
	if (rc) {
		free(buf);
		return rc;
	}
	vm->fdt = realloc(buf, vm->fdt_len);
	if (!vm->fdt)
		vm->fdt = buf;
	return 0;
}

int vmm_fdt(struct vmm *vm, void *buf, size_t cap, size_t *size, struct vmm_error *err)
{
	int rc;

	if (size)
		*size = 0;
	if (!size || (!buf && cap))
		return fail(err, VMM_EINVAL, "nowhere to put the device tree");
	rc = enter(vm, err);
	if (rc)
		return rc;
	if (vm->snap)
		rc = fail(err, VMM_ESTATE, "machine %s was restored: its device tree is the guest's",
			  vm->m.name);
	else if (machine_state(&vm->m) == VMM_NEW)
		rc = make_fdt(vm, err);
	else if (!vm->fdt)
		rc = fail(err, VMM_ESTATE, "machine %s was never started", vm->m.name);
	if (rc == 0) {
		*size = vm->fdt_len;
		if (buf)
			memcpy(buf, vm->fdt, cap < vm->fdt_len ? cap : vm->fdt_len);
	}
	return leave(vm, rc);
}

/* ---- Life --------------------------------------------------------------------- */

/* Device tree, and hart 0 at the kernel's entry; the others wait for it to start
   them (SBI HSM). */
static int boot(struct vmm *vm, struct vmm_error *err)
{
	struct machine *m = &vm->m;
	uint64_t gpa = next_page(vm->initrd + vm->initrd_size), hart = 0;
	int rc, fd = m->vcpu[0].fd;
	uint32_t i;
	void *p;

	rc = make_fdt(vm, err);
	for (i = 0; i < m->nvcpus && rc == 0 && machine_device(m, UART_NAME); i++)
		rc = host_debug_console(m->vcpu[i].fd, err);
	if (rc)
		return rc;
	p = mem_get(&m->mem, gpa, vm->fdt_len);
	if (!p)
		return fail(err, VMM_EFORMAT,
			    "kernel and initrd leave no room for the device tree in %llu MiB of RAM",
			    (unsigned long long)(m->mem.size >> 20));
	memcpy(p, vm->fdt, vm->fdt_len);
	rc = kvm_reg_set(fd, CORE_PC, &vm->image.entry);
	if (rc == 0)
		rc = kvm_reg_set(fd, CORE_X(X_A0), &hart);
	if (rc == 0)
		rc = kvm_reg_set(fd, CORE_X(X_A1), &gpa);
	return rc < 0 ? fail_sys(err, -rc, "boot registers") : 0;
}

int vmm_start(struct vmm *vm, struct vmm_error *err)
{
	int rc = enter(vm, err), state;
	struct device *d;

	if (rc)
		return rc;
	vm->mark_ns = clock_ns();
	rc = expect(vm, 1u << VMM_NEW | 1u << VMM_PAUSED, "start", err);
	if (rc)
		return leave(vm, rc);
	state = machine_state(&vm->m);
	if (state == VMM_NEW && !vm->snap)
		rc = boot(vm, err);
	else
		rc = hart_set_time(&vm->m.vcpu[0], vm->time, err);
	for (d = vm->m.devices; d && rc == 0 && vm->snap && state == VMM_NEW; d = d->next)
		if (transport_virtio(d))
			rc = transport_open(d, err);
	if (rc)
		return leave(vm, rc);
	if (state == VMM_PAUSED)
		loop_release(&vm->m.loop);
	else
		rc = loop_start(&vm->m.loop, err);
	if (rc == 0)
		rc = vcpus_start(&vm->m, err);
	if (rc && state == VMM_NEW)
		loop_stop(&vm->m.loop);
	if (rc == 0 && state == VMM_NEW)
		stage(vm, VMM_STAGE_START);
	return leave(vm, rc);
}

/*
 * A hart that has been told to start, and has not begun, cannot be looked at:
 * KVM sets its registers when it runs.  Let it.
 */
static int pause_vcpus(struct vmm *vm, struct vmm_error *err)
{
	const struct timespec moment = { 0, 1000000 };
	struct machine *m = &vm->m;
	uint32_t i = 0;
	int rc, tries;

	for (tries = 0;; tries++) {
		rc = vcpus_pause(m, err);
		if (rc)
			return rc;
		for (i = 1; i < m->nvcpus && !hart_starting(&m->vcpu[i]); i++)
			;
		if (i >= m->nvcpus || tries == START_TRIES)
			break;
		rc = vcpus_start(m, err);
		if (rc)
			return rc;
		nanosleep(&moment, NULL);
	}
	if (i < m->nvcpus)
		log_line(&m->log, VMM_LOG_WARN, "vCPU %u was started but does not run", i);
	vm->time = hart_time(&m->vcpu[0]);
	return 0;
}

int vmm_pause(struct vmm *vm, struct vmm_error *err)
{
	struct device *d;
	int rc = enter(vm, err);

	if (rc)
		return rc;
	rc = expect(vm, 1u << VMM_RUNNING, "pause", err);
	if (rc == 0)
		rc = pause_vcpus(vm, err);
	if (rc == 0) {
		loop_hold(&vm->m.loop);
		loop_lock(&vm->m.loop);
		for (d = vm->m.devices; d; d = d->next)
			if (d->ops->quiesce)
				d->ops->quiesce(d);
		loop_unlock(&vm->m.loop);
	}
	return leave(vm, rc);
}

int vmm_stop(struct vmm *vm, struct vmm_error *err)
{
	int rc = enter(vm, err);

	if (rc)
		return rc;
	vcpus_stop(&vm->m);
	hang_up(vm);
	loop_stop(&vm->m.loop);
	return leave(vm, 0);
}

static int load_state(struct vmm *vm, int clone, struct vmm_error *err);

int vmm_reset(struct vmm *vm, struct vmm_error *err)
{
	struct machine *m;
	int rc = enter(vm, err);

	if (rc)
		return rc;
	m = &vm->m;
	rc = expect(vm, 1u << VMM_NEW | 1u << VMM_PAUSED | 1u << VMM_STOPPED, "reset", err);
	if (rc)
		return leave(vm, rc);
	vcpus_stop(m);
	loop_stop(&m->loop);
	machine_unbuild(m);
	events_clear(&m->events);
	forget_fdt(vm);
	memset(m->stage_ns, 0, sizeof(m->stage_ns));
	m->exit_code = m->first_run_ns = 0;
	vm->time = vm->snap_time;
	vm->mark_ns = clock_ns();
	/* Before: nothing writes to RAM any more.  Behind: the generation id, in
	   its page, has gone with the rest. */
	reset_devices(m);
	rc = vm->snap ? mem_rewind(&m->mem, err) : mem_clear(&m->mem, err);
	if (rc == 0 && !vm->snap)
		reset_devices(m);
	if (rc == 0)
		rc = build(vm, err);
	if (rc == 0)
		rc = vm->snap ? load_state(vm, 1, err) : load(vm, err);
	machine_renew(m, rc == 0);
	return leave(vm, rc);
}

int vmm_state(const struct vmm *vm)
{
	return vm ? machine_state(&vm->m) : VMM_BROKEN;
}

/* ---- Snapshots -------------------------------------------------------------------- */

struct vmm_snap {
	pthread_mutex_t	lock;		/* refs, and the filling of ram */
	uint32_t	refs;
	struct snapfile	*file;		/* that it was opened from, or NULL */
	int		ram;		/* sealed memfd; -1: still in the file */
	uint64_t	size;		/* of RAM and platform pages, in bytes */
	struct snap_section *sections;	/* of a file: that file's */
	uint32_t	nsections;
};

#define MACHINE_VERSION	1
#define RESTORE_MAX	(1ull << 40)

static struct vmm_snap *new_snap(struct vmm_error *err)
{
	struct vmm_snap *s = calloc(1, sizeof(*s));

	if (!s) {
		fail(err, VMM_ENOMEM, "a snapshot");
		return NULL;
	}
	pthread_mutex_init(&s->lock, NULL);
	s->refs = 1;
	s->ram = -1;
	return s;
}

void vmm_snap_free(struct vmm_snap *s)
{
	uint32_t i, refs;

	if (!s)
		return;
	pthread_mutex_lock(&s->lock);
	refs = --s->refs;
	pthread_mutex_unlock(&s->lock);
	if (refs)
		return;
	for (i = 0; i < s->nsections && !s->file; i++) {
		free((char *)(uintptr_t)s->sections[i].name);
		free((void *)(uintptr_t)s->sections[i].data);
	}
	if (!s->file)
		free(s->sections);
	snapfile_close(s->file);
	if (s->ram >= 0)
		close(s->ram);
	pthread_mutex_destroy(&s->lock);
	free(s);
}

/* Add a section; what w has written becomes the snapshot's. */
static int add_section(struct vmm_snap *s, const char *name, uint16_t version, struct writer *w,
		       struct vmm_error *err)
{
	struct snap_section *p = &s->sections[s->nsections];

	p->name = strdup(name);
	if (!p->name || w->failed) {
		free((char *)(uintptr_t)p->name);
		free(w->data);
		return fail(err, VMM_ENOMEM, "state of %s", name);
	}
	p->version = version;
	p->flags = SNAP_MUST_UNDERSTAND;
	p->data = w->data;
	p->len = w->len;
	s->nsections++;
	return 0;
}

/* What a machine is made of, so that it can be made again. */
static void save_machine(const struct vmm *vm, struct writer *w)
{
	const struct machine *m = &vm->m;
	const struct device *d;
	uint32_t n = 0;

	put_u32(w, m->nvcpus);
	put_u64(w, m->mem.size);
	put_u64(w, vm->time);
	put_u64(w, m->exit_code);
	for (d = m->devices; d; d = d->next)
		n++;
	put_u32(w, n);
	for (d = m->devices; d; d = d->next) {
		put_str(w, d->ops->type);
		put_str(w, d->name);
		put_u64(w, d->gpa);
		put_u32(w, d->irq.line);
	}
}

static int save_state(struct vmm *vm, struct vmm_snap *s, struct vmm_error *err)
{
	struct machine *m = &vm->m;
	const struct device *d;
	char name[64];
	uint32_t i, n = 2 + m->nvcpus;
	struct writer w = { NULL, 0, 0, 0 };
	int rc;

	for (d = m->devices; d; d = d->next)
		n++;
	s->sections = calloc(n, sizeof(*s->sections));
	if (!s->sections)
		return fail(err, VMM_ENOMEM, "a snapshot");
	save_machine(vm, &w);
	rc = add_section(s, "machine", MACHINE_VERSION, &w, err);
	for (i = 0; i < m->nvcpus && rc == 0; i++) {
		snprintf(name, sizeof(name), "cpu%u", i);
		memset(&w, 0, sizeof(w));
		rc = hart_save(&m->vcpu[i], &w, err);
		if (rc)
			free(w.data);
		else
			rc = add_section(s, name, HART_VERSION, &w, err);
	}
	if (rc)
		return rc;
	memset(&w, 0, sizeof(w));
	m->irqchip->ops->save(m->irqchip, &w);
	rc = add_section(s, m->irqchip->ops->name, m->irqchip->ops->version, &w, err);
	for (d = m->devices; d && rc == 0; d = d->next) {
		snprintf(name, sizeof(name), "device.%s", d->name);
		memset(&w, 0, sizeof(w));
		d->ops->save(d, &w);
		rc = add_section(s, name, d->ops->version, &w, err);
	}
	return rc;
}

int vmm_snap_take(struct vmm_snap **out, struct vmm *vm, struct vmm_error *err)
{
	struct vmm_snap *s;
	int rc;

	if (!out)
		return fail(err, VMM_EINVAL, "nowhere to put the snapshot");
	*out = NULL;
	rc = enter(vm, err);
	if (rc)
		return rc;
	rc = expect(vm, 1u << VMM_PAUSED, "take a snapshot of", err);
	if (rc)
		return leave(vm, rc);
	s = new_snap(err);
	if (!s)
		return leave(vm, VMM_ENOMEM);
	s->size = vm->m.mem.size + MEM_TAIL;
	rc = save_state(vm, s, err);
	if (rc == 0)
		rc = mem_copy(&vm->m.mem, &s->ram, err);
	if (rc)
		vmm_snap_free(s);
	else
		*out = s;
	return leave(vm, rc);
}

/* RAM of s, in memory: read from its file if need be. */
static int fill_snap(struct vmm_snap *s, uint32_t threads, struct vmm_error *err)
{
	int fd, rc = 0;

	pthread_mutex_lock(&s->lock);
	if (s->ram < 0) {
		fd = memfd_create("vmm-snap", MFD_CLOEXEC | MFD_ALLOW_SEALING);
		if (fd < 0 || ftruncate(fd, (off_t)s->size) < 0)
			rc = fail_sys(err, errno, "memory for %llu MiB of snapshot",
				      (unsigned long long)(s->size >> 20));
		else
			rc = snapfile_fill(s->file, fd, NULL, threads, err);
		if (rc == 0) {
			mem_seal(fd);
			s->ram = fd;
		} else if (fd >= 0) {
			close(fd);
		}
	}
	pthread_mutex_unlock(&s->lock);
	return rc;
}

static int write_snap(struct vmm_snap *s, const char *path, int fd,
		      const struct vmm_write_config *config, struct vmm_error *err)
{
	const struct snap_region region = { .gpa = MAP_RAM, .size = s ? s->size : 0 };
	struct vmm_write_config c = VMM_WRITE_INIT;
	struct snap_image image = { .regions = &region, .nregions = 1 };
	struct snap_how how = { 0 };
	int rc;

	if (!s)
		return fail(err, VMM_EINVAL, "no snapshot");
	if (!path && fd < 0)
		return fail(err, VMM_EINVAL, "nowhere to write the snapshot");
	rc = config ? import(&c, sizeof(c), config, "struct vmm_write_config", err) : 0;
	if (rc == 0 && c.flags)
		rc = fail(err, VMM_EINVAL, "unknown flags 0x%x", c.flags);
	if (rc == 0)
		rc = fill_snap(s, c.threads, err);
	if (rc)
		return rc;
	image.created = (uint64_t)time(NULL);
	image.sections = s->sections;
	image.nsections = s->nsections;
	image.ram = (struct snap_ram){ .size = s->size, .fd = s->ram };
	how.level = c.level;
	how.threads = c.threads;
	how.progress = c.progress;
	how.arg = c.progress_arg;
	return path ? snapfile_write(path, &image, &how, err)
		    : snapfile_send(fd, &image, &how, err);
}

int vmm_snap_write(struct vmm_snap *snap, const char *path, const struct vmm_write_config *how,
		   struct vmm_error *err)
{
	return write_snap(snap, path, -1, how, err);
}

int vmm_snap_send(struct vmm_snap *snap, int fd, const struct vmm_write_config *how,
		  struct vmm_error *err)
{
	return write_snap(snap, NULL, fd, how, err);
}

int vmm_snap_open(struct vmm_snap **out, const char *path, struct vmm_error *err)
{
	struct vmm_snap *s;
	uint32_t i;
	int rc;

	if (!out || !path)
		return fail(err, VMM_EINVAL, out ? "no path of a snapshot" :
			    "nowhere to put the snapshot");
	*out = NULL;
	s = new_snap(err);
	if (!s)
		return VMM_ENOMEM;
	rc = snapfile_open(&s->file, path, 0, err);
	if (rc) {
		vmm_snap_free(s);
		return rc;
	}
	s->sections = s->file->sections;
	s->nsections = s->file->nsections;
	for (i = 0; i < s->file->nregions; i++)
		s->size += s->file->regions[i].size;
	*out = s;
	return 0;
}

int vmm_snap_verify(const char *path, struct vmm_error *err)
{
	struct snapfile *f;
	int rc;

	if (!path)
		return fail(err, VMM_EINVAL, "no path of a snapshot");
	rc = snapfile_open(&f, path, 0, err);
	if (rc)
		return rc;
	rc = snapfile_verify(f, 0, err);
	snapfile_close(f);
	return rc;
}

/* ---- Restoring -------------------------------------------------------------------- */

/* A reader of a section, whose version must be one we know. */
static int read_section(const struct vmm_snap *s, const char *name, uint16_t version,
			struct reader *r, struct vmm_error *err)
{
	uint32_t i;

	for (i = 0; i < s->nsections; i++) {
		const struct snap_section *p = &s->sections[i];

		if (strcmp(p->name, name) != 0)
			continue;
		if (p->version > version)
			return fail(err, VMM_EVERSION,
				    "the snapshot's %s is of version %u, this library reads %u", name,
				    p->version, version);
		*r = (struct reader){ p->data, p->len, 0 };
		return 0;
	}
	return fail(err, VMM_EFORMAT, "the snapshot has no state of %s", name);
}

static int read_hart(const struct vmm_snap *s, uint32_t i, struct hart_config *c,
		     struct reader *r, struct vmm_error *err)
{
	char name[16];
	int rc;

	snprintf(name, sizeof(name), "cpu%u", i);
	rc = read_section(s, name, HART_VERSION, r, err);
	return rc ? rc : hart_begin(r, c, err);
}

static int configure_harts(struct vmm *vm, struct vmm_error *err)
{
	struct hart_config c;
	struct reader r;
	uint32_t i;
	int rc = 0;

	for (i = 0; i < vm->m.nvcpus && rc == 0; i++) {
		rc = read_hart(vm->snap, i, &c, &r, err);
		if (rc == 0)
			rc = hart_configure(&vm->m.vcpu[i], &c, err);
	}
	return rc;
}

/* Bring a machine that has just been built into the state it was frozen in. */
static int load_state(struct vmm *vm, int clone, struct vmm_error *err)
{
	struct machine *m = &vm->m;
	struct hart_config c;
	struct device *d;
	struct reader r;
	char name[64];
	uint32_t i;
	int rc = 0;

	for (i = 0; i < m->nvcpus && rc == 0; i++) {
		rc = read_hart(vm->snap, i, &c, &r, err);
		if (rc == 0)
			rc = hart_load(&m->vcpu[i], &c, &r, err);
	}
	if (rc == 0)
		rc = read_section(vm->snap, m->irqchip->ops->name, m->irqchip->ops->version, &r, err);
	if (rc == 0)
		rc = m->irqchip->ops->load(m->irqchip, &r, err);
	for (i = 0; i < m->nvcpus && rc == 0; i++) {
		rc = read_hart(vm->snap, i, &c, &r, err);
		if (rc == 0)
			rc = hart_set_timer(&m->vcpu[i], &c, err);
	}
	for (d = m->devices; d && rc == 0; d = d->next) {
		snprintf(name, sizeof(name), "device.%s", d->name);
		rc = read_section(vm->snap, name, d->ops->version, &r, err);
		if (rc == 0)
			rc = d->ops->load(d, &r, err);
	}
	for (d = m->devices; d && rc == 0; d = d->next)
		if (clone && d->ops->cloned)
			d->ops->cloned(d);
	stage(vm, VMM_STAGE_LOAD);
	return rc;
}

/* A virtio device that nothing is behind yet. */
static int restore_virtio(struct vmm *vm, const char *type, const char *name,
			  struct vmm_error *err)
{
	const struct console_port port = { NULL, -1, -1 };
	struct blk_config blk = BLK_CONFIG_INIT;
	struct net_config net = NET_CONFIG_INIT;
	struct virtio_env env = virtio_env(vm);
	struct virtio *v;
	int rc;

	if (strcmp(type, "blk") == 0)
		rc = blk_new(&v, &env, name, &blk, err);
	else if (strcmp(type, "rng") == 0)
		rc = rng_new(&v, &env, name, err);
	else if (strcmp(type, "console") == 0)
		rc = console_new(&v, &env, name, &port, 1, err);
	else if (strcmp(type, "balloon") == 0)
		rc = balloon_new(&v, &env, name, err);
	else if (strcmp(type, "net") == 0)
		rc = net_new(&v, &env, name, &net, err);
	else if (strcmp(type, "vsock") == 0)
		rc = vsock_new(&v, &env, name, 3, err);	/* its CID is loaded */
	else
		return fail(err, VMM_EVERSION, "the snapshot has a device of unknown type \"%s\"",
			    type);
	return rc ? rc : add_virtio(vm, v, err);
}

/* The next device of the list that save_machine() wrote. */
static int restore_device(struct vmm *vm, struct reader *r, struct vmm_error *err)
{
	char type[32], name[32];

	get_str(r, type, sizeof(type));
	get_str(r, name, sizeof(name));
	get_u64(r);
	get_u32(r);
	if (r->failed)
		return fail(err, VMM_EFORMAT, "state of the machine: too short");
	if (strcmp(type, "serial") == 0)
		return uart_add(&vm->m, -1, -1, err);
	if (strcmp(type, "rtc") == 0)
		return rtc_add(&vm->m, err);
	if (strcmp(type, "vmgenid") == 0)
		return genid_add(&vm->m, err);
	if (strcmp(type, "doorbell") == 0)
		return doorbell_add(&vm->m, err);
	return restore_virtio(vm, type, name, err);
}

static int restore_machine(struct vmm *vm, const struct vmm_restore_config *c,
			   struct vmm_error *err)
{
	struct vmm_snap *s = vm->snap;
	struct reader r;
	uint64_t size;
	uint32_t n;
	int rc;

	rc = read_section(s, "machine", MACHINE_VERSION, &r, err);
	if (rc)
		return rc;
	vm->cfg.vcpus = get_u32(&r);
	size = get_u64(&r);
	vm->time = vm->snap_time = get_u64(&r);
	vm->m.exit_code = get_u64(&r);
	n = get_u32(&r);
	if (r.failed || !vm->cfg.vcpus || vm->cfg.vcpus > VCPUS_MAX || !size ||
	    size % MEMORY_STEP || size > RESTORE_MAX || size + MEM_TAIL != s->size)
		return fail(err, VMM_EFORMAT, "state of the machine: %u vCPUs, %llu bytes of RAM",
			    vm->cfg.vcpus, (unsigned long long)size);
	vm->cfg.irqchip = c->irqchip;
	vm->cfg.memory = size;
	rc = fill_snap(s, c->threads, err);
	stage(vm, VMM_STAGE_LOAD);
	if (rc == 0)
		rc = mem_init_private(&vm->m.mem, MAP_RAM, size, s->ram, err);
	if (rc == 0)
		rc = build(vm, err);
	while (rc == 0 && n--)
		rc = restore_device(vm, &r, err);
	if (rc == 0)
		rc = reader_end(&r, "the machine", err);
	return rc ? rc : load_state(vm, !(c->flags & VMM_RESUME), err);
}

int vmm_restore(struct vmm **out, struct vmm_snap *snap, const struct vmm_restore_config *how,
		struct vmm_error *err)
{
	struct vmm_restore_config c = VMM_RESTORE_INIT;
	struct vmm *vm;
	int rc;

	if (!out || !snap)
		return fail(err, VMM_EINVAL, out ? "no snapshot" : "nowhere to put the machine");
	*out = NULL;
	rc = how ? import(&c, sizeof(c), how, "struct vmm_restore_config", err) : 0;
	if (rc == 0 && c.flags & ~(uint32_t)VMM_RESUME)
		rc = fail(err, VMM_EINVAL, "unknown flags 0x%x", c.flags);
	if (rc == 0 && c.irqchip > VMM_IRQCHIP_AIA_AUTO)
		rc = fail(err, VMM_EINVAL, "unknown interrupt controller %u", c.irqchip);
	if (rc)
		return rc;
	rc = new_vmm(&vm, c.name, c.log, c.log_arg, err);
	if (rc)
		return rc;
	pthread_mutex_lock(&snap->lock);
	snap->refs++;
	pthread_mutex_unlock(&snap->lock);
	vm->snap = snap;
	rc = restore_machine(vm, &c, err);
	if (rc)
		vmm_free(vm);
	else
		*out = vm;
	return rc;
}

/* ---- Events --------------------------------------------------------------------- */

static int still_running(const void *arg)
{
	return machine_state(arg) == VMM_RUNNING;
}

int vmm_wait(struct vmm *vm, int timeout_ms, struct vmm_event *out, struct vmm_error *err)
{
	if (out)
		memset(out, 0, sizeof(*out));
	if (!vm || !out || timeout_ms < -1)
		return fail(err, VMM_EINVAL, !vm ? "no machine" : !out ?
			    "nowhere to put the event" : "timeout below -1");
	if (vm->pid != getpid())
		return fail(err, VMM_ESTATE, "machine %s belongs to process %d, before its fork()",
			    vm->m.name, (int)vm->pid);
	events_take(&vm->m.events, timeout_ms, still_running, &vm->m, out);
	if (out->type == VMM_EV_NONE && !still_running(&vm->m)) {
		machine_settle(&vm->m);
		events_take(&vm->m.events, 0, still_running, &vm->m, out);
	}
	if (out->type == VMM_EV_DOORBELL)
		machine_poke(&vm->m);	/* there is room for another */
	else if (out->type != VMM_EV_NONE)
		hang_up(vm);
	return 0;
}

int vmm_fd(const struct vmm *vm)
{
	return vm ? vm->m.events.fd : -1;
}

/* ---- Memory and figures --------------------------------------------------------- */

/* Begin a copy: a turn on vm, and where its bytes are. */
static int enter_memory(struct vmm *vm, uint64_t gpa, const void *buf, size_t len, uint8_t **p,
			struct vmm_error *err)
{
	int rc;

	*p = NULL;
	if (!buf && len)
		return fail(err, VMM_EINVAL, "no buffer");
	rc = enter(vm, err);
	if (rc)
		return rc;
	*p = mem_get(&vm->m.mem, gpa, len);
	if (*p)
		return 0;
	return leave(vm, fail(err, VMM_EINVAL,
			      "0x%zx bytes at 0x%llx are not all RAM (0x%llx bytes at 0x%llx)",
			      len, (unsigned long long)gpa,
			      (unsigned long long)vm->m.mem.size,
			      (unsigned long long)vm->m.mem.gpa));
}

int vmm_read(struct vmm *vm, uint64_t gpa, void *buf, size_t len, struct vmm_error *err)
{
	uint8_t *p;
	int rc = enter_memory(vm, gpa, buf, len, &p, err);

	if (rc)
		return rc;
	if (len)
		memcpy(buf, p, len);
	return leave(vm, 0);
}

int vmm_write(struct vmm *vm, uint64_t gpa, const void *buf, size_t len, struct vmm_error *err)
{
	uint8_t *p;
	int rc = enter_memory(vm, gpa, buf, len, &p, err);

	if (rc)
		return rc;
	if (len)
		memcpy(p, buf, len);
	return leave(vm, 0);
}

int vmm_stat(struct vmm *vm, struct vmm_stats *out, struct vmm_error *err)
{
	struct vmm_stats s;
	uint64_t all = 0, ours = 0, n;
	uint32_t i;
	int rc, k;

	rc = import(&s, sizeof(s), out, "struct vmm_stats", err);
	if (rc)
		return rc;
	memset(&s, 0, sizeof(s));
	export(out, &s, sizeof(s));
	rc = enter_any(vm, err);
	if (rc)
		return rc;
	s.vcpus = vm->m.nvcpus;
	s.memory = vm->m.mem.size;
	s.memory_used = mem_used(&vm->m.mem);
	for (k = 0; k < VMM_STAGES; k++)
		s.setup_ns += s.stage_ns[k] = vm->m.stage_ns[k];
	for (i = 0; i < vm->m.nvcpus; i++) {
		for (k = 0; k < VMM_EXIT_KERNEL; k++) {
			n = __atomic_load_n(&vm->m.vcpu[i].exits[k], __ATOMIC_RELAXED);
			s.exits[k] += n;
			ours += n;
		}
		all += vcpu_all_exits(&vm->m.vcpu[i]);
	}
	s.exits[VMM_EXIT_KERNEL] = all > ours ? all - ours : 0;
	export(out, &s, sizeof(s));
	return leave(vm, 0);
}
