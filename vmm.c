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
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/clock.h"
#include "core/machine.h"
#include "riscv/aia.h"
#include "riscv/fdt.h"
#include "riscv/host.h"
#include "riscv/image.h"
#include "riscv/isa.h"
#include "riscv/map.h"
#include "riscv/platform.h"
#include "riscv/regs.h"
#include "vmm.h"

#define MEMORY_DEFAULT	(128ull << 20)
#define MEMORY_STEP	(2ull << 20)

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

static int build_vcpus(struct vmm *vm, struct vmm_error *err)
{
	struct machine *m = &vm->m;
	struct isa host;
	uint32_t i;
	int rc;

	rc = vcpus_create(m, vm->cfg.vcpus, err);
	if (rc)
		return rc;
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

static int add_platform(struct machine *m, struct vmm_error *err)
{
	struct device *d;
	int rc;

	rc = rtc_add(m, err);
	if (rc == 0)
		rc = genid_add(m, err);
	if (rc == 0)
		rc = doorbell_add(m, err);
	for (d = m->devices; d && rc == 0; d = d->next)
		d->ops->reset(d);
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

int vmm_create(struct vmm **out, const struct vmm_config *config, struct vmm_error *err)
{
	struct vmm_config c;
	struct log log;
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
	vm = calloc(1, sizeof(*vm));
	if (!vm)
		return fail(err, VMM_ENOMEM, "a machine");
	vm->pid = getpid();
	vm->mark_ns = clock_ns();
	vm->kernel_fd = vm->initrd_fd = -1;
	log = (struct log){ c.log, c.log_arg };
	rc = machine_init(&vm->m, c.name ? c.name : "vm", &log, err);
	if (rc) {
		free(vm);
		return rc;
	}
	vm->m.arch_exit = riscv_exit;
	pthread_mutex_init(&vm->turn, NULL);
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
	} else {
		/* After a fork: what is shared with the parent (an epoll set, a
		   timer) must not be touched, only let go. */
		machine_unbuild(m);
		mem_fini(&m->mem);
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

int vmm_add_serial(struct vmm *vm, int in_fd, int out_fd, struct vmm_error *err)
{
	int rc = enter(vm, err);

	if (rc)
		return rc;
	rc = expect(vm, 1u << VMM_NEW, "add a serial port to", err);
	if (rc == 0)
		rc = uart_add(&vm->m, in_fd, out_fd, err);
	if (rc == 0)
		forget_fdt(vm);
	return leave(vm, rc);
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
	if (machine_state(&vm->m) == VMM_NEW)
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
	void *p;

	rc = make_fdt(vm, err);
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

	if (rc)
		return rc;
	vm->mark_ns = clock_ns();
	rc = expect(vm, 1u << VMM_NEW | 1u << VMM_PAUSED, "start", err);
	if (rc)
		return leave(vm, rc);
	state = machine_state(&vm->m);
	if (state == VMM_PAUSED) {
		loop_release(&vm->m.loop);
	} else {
		rc = boot(vm, err);
		if (rc == 0)
			rc = loop_start(&vm->m.loop, err);
	}
	if (rc == 0)
		rc = vcpus_start(&vm->m, err);
	if (rc && state == VMM_NEW)
		loop_stop(&vm->m.loop);
	if (rc == 0 && state == VMM_NEW)
		stage(vm, VMM_STAGE_START);
	return leave(vm, rc);
}

int vmm_pause(struct vmm *vm, struct vmm_error *err)
{
	struct device *d;
	int rc = enter(vm, err);

	if (rc)
		return rc;
	rc = expect(vm, 1u << VMM_RUNNING, "pause", err);
	if (rc == 0)
		rc = vcpus_pause(&vm->m, err);
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
	loop_stop(&vm->m.loop);
	return leave(vm, 0);
}

int vmm_reset(struct vmm *vm, struct vmm_error *err)
{
	struct machine *m;
	struct device *d;
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
	vm->mark_ns = clock_ns();
	rc = mem_clear(&m->mem, err);
	if (rc == 0)
		rc = build(vm, err);
	if (rc == 0)
		rc = load(vm, err);
	for (d = m->devices; d && rc == 0; d = d->next)
		d->ops->reset(d);
	machine_renew(m, rc == 0);
	return leave(vm, rc);
}

int vmm_state(const struct vmm *vm)
{
	return vm ? machine_state(&vm->m) : VMM_BROKEN;
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
	if (out->type == VMM_EV_DOORBELL)
		machine_poke(&vm->m);	/* there is room for another */
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
	if (rc == 0)
		rc = enter_any(vm, err);
	if (rc)
		return rc;
	memset(&s, 0, sizeof(s));
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
