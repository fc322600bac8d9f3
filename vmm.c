/* SPDX-License-Identifier: MIT */
/*
 * vmm.c - the public functions of a machine: its making, life, events, memory
 * and figures.  vmm.h is the manual; vmm_devices.c and vmm_snap.c are the rest.
 *
 * A machine is built in stages that are timed (vmm_stat), in the order in
 * which KVM wants them: memory, every vCPU and what it is configured with,
 * interrupt controller.  vmm_reset() builds the KVM side afresh, as most kernels
 * have no way to take a used one back to its beginning (renew).
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "core/clock.h"
#include "core/thread.h"
#include "riscv/fdt.h"
#include "riscv/hart.h"
#include "riscv/host.h"
#include "riscv/map.h"
#include "riscv/platform.h"
#include "riscv/aia.h"
#include "riscv/regs.h"
#include "riscv/touch.h"
#include "virtio/devices.h"
#include "vmm_impl.h"

#define MEMORY_DEFAULT	(128ull << 20)
#define MEMORY_STEP	(2ull << 20)
#define START_TRIES	200	/* milliseconds that a hart has to start in */

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

int vm_import(void *dst, size_t known, const void *src, const char *name,
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

void vm_export(void *dst, const void *src, size_t known)
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

	rc = vm_import(&h, sizeof(h), out, "struct vmm_host", err);
	if (rc)
		return rc;
	memset(&h, 0, sizeof(h));
	rc = host_probe(&h, err);
	if (rc)
		memset(&h, 0, sizeof(h));
	vm_export(out, &h, sizeof(h));
	return rc;
}

/* ---- Turns ---------------------------------------------------------------- */

int vm_enter_any(struct vmm *vm, struct vmm_error *err)
{
	if (!vm)
		return fail(err, VMM_EINVAL, "no machine");
	if (vm->pid != getpid())
		return fail(err, VMM_ESTATE, "machine %s belongs to process %d, before its fork()",
			    vm->m.name, (int)vm->pid);
	pthread_mutex_lock(&vm->turn);
	return 0;
}

int vm_enter(struct vmm *vm, struct vmm_error *err)
{
	int rc = vm_enter_any(vm, err);

	if (rc || machine_state(&vm->m) != VMM_BROKEN)
		return rc;
	pthread_mutex_unlock(&vm->turn);
	return fail(err, VMM_EBROKEN, "machine %s is broken and can only be freed", vm->m.name);
}

int vm_leave(struct vmm *vm, int rc)
{
	pthread_mutex_unlock(&vm->turn);
	return rc;
}

static const char *state_name(int state)
{
	static const char *const names[] = { "NEW", "RUNNING", "PAUSED", "STOPPED", "BROKEN" };

	return names[state];
}

int vm_expect(struct vmm *vm, unsigned int states, const char *what, struct vmm_error *err)
{
	int state = machine_state(&vm->m);

	if (states >> state & 1)
		return 0;
	return fail(err, VMM_ESTATE, "machine %s is %s: cannot %s it", vm->m.name,
		    state_name(state), what);
}

/* ---- Building --------------------------------------------------------------- */

void vm_stage(struct vmm *vm, int which)
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
	if (vm->snap)
		return vm_configure_harts(vm, err);
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

/* May its vCPUs be made as new?  A kernel that cannot is asked once for each snapshot. */
static int renewable(const struct vmm *vm)
{
	struct vmm_snap *s = vm->snap;

	if (!s || __atomic_load_n(&s->no_renew, __ATOMIC_RELAXED))
		return 0;
	if (kvm_enable(vm->m.vm, KVM_CAP_MP_INIT) == 0)
		return 1;
	__atomic_store_n(&s->no_renew, 1, __ATOMIC_RELAXED);
	return 0;
}

static int build(struct vmm *vm, struct vmm_error *err)
{
	struct machine *m = &vm->m;
	int rc;

	m->vm = vm->snap ? stock_take(&vm->snap->stock, m->kvm) : kvm_vm(m->kvm);
	if (m->vm < 0)
		return fail_sys(err, -m->vm, "KVM_CREATE_VM");
	m->renewable = renewable(vm);
	vm_stage(vm, VMM_STAGE_VM);
	rc = kvm_slot(m->vm, 0, m->mem.gpa, m->mem.size + MEM_TAIL, m->mem.hva);
	if (rc < 0)
		return fail_sys(err, -rc, "memslot for %llu MiB of RAM",
				(unsigned long long)(m->mem.size >> 20));
	vm_stage(vm, VMM_STAGE_MEMORY);
	rc = build_vcpus(vm, err);
	if (rc)
		return rc;
	vm_stage(vm, VMM_STAGE_VCPUS);
	rc = aia_create(m, vm->cfg.irqchip, NULL, err);
	vm_stage(vm, VMM_STAGE_IRQCHIP);
	return rc;
}

int vm_build(struct vmm *vm, struct vmm_error *err)
{
	struct machine *m = &vm->m;
	int rc;

	m->kvm = vm->snap ? vm_snap_kvm(vm->snap, err) : host_open(err);
	if (m->kvm < 0)
		return m->kvm;
	vm_stage(vm, VMM_STAGE_KVM);
	rc = build(vm, err);
	if (vm->snap)
		m->kvm = -1;		/* the snapshot's */
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
static int load_images(struct vmm *vm, struct vmm_error *err)
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
	return rc;
}

static int load(struct vmm *vm, struct vmm_error *err)
{
	sigset_t before;
	int rc;

	thread_hold(&before);		/* images are unpacked into memfds */
	rc = load_images(vm, err);
	thread_release(&before, rc);
	vm_stage(vm, VMM_STAGE_LOAD);
	return rc;
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
		machine_reset_devices(m);
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

int vm_new(struct vmm **out, const char *name,
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
	rc = vm_import(&c, sizeof(c), config, "struct vmm_config", err);
	if (rc == 0)
		rc = check_config(&c, err);
	if (rc)
		return rc;
	rc = vm_new(&vm, c.name, c.log, c.log_arg, err);
	if (rc)
		return rc;
	rc = own_config(vm, &c, err);
	if (rc == 0)
		rc = mem_init(&vm->m.mem, MAP_RAM, vm->cfg.memory, err);
	if (rc == 0)
		rc = vm_build(vm, err);
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
		snap_trace_free(vm->trace);
		vmm_snap_free(vm->snap);
	} else {
		machine_orphan(m);
	}
	free_config(vm);
	free(vm->fdt);
	free(vm);
}

/* ---- Device tree --------------------------------------------------------------- */

static int make_fdt(struct vmm *vm, struct vmm_error *err)
{
	const struct fdt_config c = {
		.cmdline = vm->cfg.cmdline,
		.isa = &vm->isa,
		.initrd = vm->initrd,
		.initrd_size = vm->initrd_size,
	};
	size_t room = fdt_room(&vm->m, &c);
	uint8_t *buf;
	int rc;

	if (vm->fdt)
		return 0;
	buf = malloc(room);
	if (!buf)
		return fail(err, VMM_ENOMEM, "device tree");
	rc = fdt_build(&vm->m, &c, buf, room, &vm->fdt_len, err);
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
	rc = vm_enter(vm, err);
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
	return vm_leave(vm, rc);
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

/* Nothing comes to devices from here on, and no request is in flight.  What they write has no
   signals, as on the I/O thread. */
static void hold_devices(struct vmm *vm)
{
	struct device *d;
	sigset_t before;

	loop_hold(&vm->m.loop);
	thread_hold(&before);
	loop_lock(&vm->m.loop);
	for (d = vm->m.devices; d; d = d->next)
		if (d->ops->quiesce)
			d->ops->quiesce(d);
	loop_unlock(&vm->m.loop);
	thread_release(&before, 1);
}

int vmm_start(struct vmm *vm, struct vmm_error *err)
{
	int rc = vm_enter(vm, err), state;
	struct device *d;

	if (rc)
		return rc;
	vm->mark_ns = clock_ns();
	rc = vm_expect(vm, 1u << VMM_NEW | 1u << VMM_PAUSED, "start", err);
	if (rc)
		return vm_leave(vm, rc);
	state = machine_state(&vm->m);
	if (state == VMM_NEW && !vm->snap)
		rc = boot(vm, err);
	/* Calls that ask devices may be on their way in other threads. */
	loop_lock(&vm->m.loop);
	for (d = vm->m.devices; d && rc == 0 && vm->snap && state == VMM_NEW; d = d->next)
		if (transport_virtio(d))
			rc = transport_open(d, err);
	loop_unlock(&vm->m.loop);
	if (rc)
		return vm_leave(vm, rc);
	if (state == VMM_PAUSED)
		loop_release(&vm->m.loop);
	else
		rc = loop_start(&vm->m.loop, err);
	/* Pages have been written that may have held other code before, and KVM leaves it to us
	   that no hart runs what it has cached of that (RISC-V: fence.i; else nothing). */
	if (state == VMM_NEW)
		__builtin___clear_cache((char *)vm->m.mem.hva,
					(char *)vm->m.mem.hva + vm->m.mem.size);
	if (rc == 0 && state == VMM_NEW && vm->snap)
		genid_lead(&vm->m);
	/* The guest's time goes on here: as late as can be. */
	if (rc == 0 && (state == VMM_PAUSED || vm->snap))
		rc = hart_set_time(&vm->m.vcpu[0], vm->time, err);
	if (rc == 0 && state == VMM_NEW && vm->snap)
		rc = vm_load_timers(vm, err);
	if (rc == 0)
		rc = vcpus_start(&vm->m, err);
	if (rc && state == VMM_NEW)
		loop_stop(&vm->m.loop);
	else if (rc)
		hold_devices(vm);
	if (rc == 0 && state == VMM_NEW)
		vm_stage(vm, VMM_STAGE_START);
	return vm_leave(vm, rc);
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
		for (i = 0; i < m->nvcpus && !hart_starting(&m->vcpu[i]); i++)
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
	int rc = vm_enter(vm, err);

	if (rc)
		return rc;
	rc = vm_expect(vm, 1u << VMM_RUNNING, "pause", err);
	if (rc == 0)
		rc = pause_vcpus(vm, err);
	if (rc == 0)
		hold_devices(vm);
	return vm_leave(vm, rc);
}

int vmm_stop(struct vmm *vm, struct vmm_error *err)
{
	int rc = vm_enter(vm, err);

	if (rc)
		return rc;
	vcpus_stop(&vm->m);
	vm_hang_up(vm);
	loop_stop(&vm->m.loop);
	return vm_leave(vm, 0);
}

/*
 * Make a clone that is held as it was before its state was loaded, with the VM and threads
 * that it has: half the work, and the next run finds its pages mapped.  KVM must be able to
 * make vCPUs as new (Linux 6.16): what it holds of one is not all to be reached otherwise.
 * Interrupt files in hardware are not to be assigned before its state is there (touch_forget).
 * 0: it is not done, and the machine needs another VM.
 */
static int renew(struct vmm *vm)
{
	struct machine *m = &vm->m;
	uint32_t i;

	if (!m->renewable || vm->trace || vm->cfg.irqchip > VMM_IRQCHIP_AIA_EMUL ||
	    machine_state(m) == VMM_STOPPED)
		return 0;
	/* KVM would set the registers of one that is starting when it runs. */
	for (i = 0; i < m->nvcpus; i++)
		if (hart_starting(&m->vcpu[i]))
			return 0;
	loop_stop(&m->loop);
	machine_reset_devices(m);	/* nothing writes to RAM from here on */
	return mem_restore(&m->mem) > 0 && vcpus_renew(m) == 0 &&
	       m->irqchip->ops->renew(m->irqchip) == 0 && touch_forget(m) == 0;
}

int vmm_reset(struct vmm *vm, struct vmm_error *err)
{
	struct machine *m;
	int rc = vm_enter(vm, err), renewed, fresh = 0;

	if (rc)
		return rc;
	m = &vm->m;
	rc = vm_expect(vm, 1u << VMM_NEW | 1u << VMM_PAUSED | 1u << VMM_STOPPED, "reset", err);
	if (rc)
		return vm_leave(vm, rc);
	renewed = renew(vm);
	if (!renewed) {
		vcpus_stop(m);
		loop_stop(&m->loop);
		fresh = machine_replace(m);
	}
	events_clear(&m->events);
	vm_forget_fdt(vm);
	memset(m->stage_ns, 0, sizeof(m->stage_ns));
	vm->time = vm->snap_time;
	vm->mark_ns = clock_ns();
	if (!renewed && !fresh)
		rc = vm->snap ? mem_rewind(&m->mem, err) : mem_clear(&m->mem, err);
	/* Once more: the generation id, in its page, has gone with the rest. */
	if (rc == 0 && !vm->snap)
		machine_reset_devices(m);
	if (rc == 0 && !renewed) {
		if (vm->snap)
			vm_warm_up(vm);
		rc = vm_build(vm, err);
		if (rc == 0 && vm->populate)
			rc = vm_make_ready(vm, err);
	}
	if (rc == 0)
		rc = vm->snap ? vm_load_state(vm, 1, err) : load(vm, err);
	machine_renew(m, rc == 0);
	return vm_leave(vm, rc);
}

int vmm_state(const struct vmm *vm)
{
	return vm ? machine_state(&vm->m) : VMM_BROKEN;
}

/* ---- Events --------------------------------------------------------------------- */

int vm_still_running(const void *arg)
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
	events_take(&vm->m.events, timeout_ms, vm_still_running, &vm->m, out);
	if (out->type == VMM_EV_NONE && !vm_still_running(&vm->m)) {
		machine_settle(&vm->m);
		events_take(&vm->m.events, 0, vm_still_running, &vm->m, out);
	}
	if (out->type == VMM_EV_DOORBELL || out->type == VMM_EV_DEVICE)
		machine_poke(&vm->m);	/* there is room for another */
	else if (out->type != VMM_EV_NONE)
		vm_hang_up(vm);
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
	rc = vm_enter(vm, err);
	if (rc)
		return rc;
	*p = mem_get(&vm->m.mem, gpa, len);
	if (*p)
		return 0;
	rc = mem_missing(&vm->m.mem, gpa, len, err);
	return vm_leave(vm, rc ? rc : fail(err, VMM_EINVAL,
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
	return vm_leave(vm, 0);
}

int vmm_write(struct vmm *vm, uint64_t gpa, const void *buf, size_t len, struct vmm_error *err)
{
	uint8_t *p;
	int rc = enter_memory(vm, gpa, buf, len, &p, err);

	if (rc)
		return rc;
	if (len)
		memcpy(p, buf, len);
	return vm_leave(vm, 0);
}

int vmm_stat(struct vmm *vm, struct vmm_stats *out, struct vmm_error *err)
{
	struct vmm_stats s;
	uint64_t all = 0, ours = 0, n;
	uint32_t i;
	int rc, k;

	rc = vm_import(&s, sizeof(s), out, "struct vmm_stats", err);
	if (rc)
		return rc;
	memset(&s, 0, sizeof(s));
	vm_export(out, &s, sizeof(s));
	rc = vm_enter_any(vm, err);
	if (rc)
		return rc;
	s.vcpus = vm->m.nvcpus;
	s.memory = vm->m.mem.size;
	s.memory_used = mem_used(&vm->m.mem);
	s.memory_own = mem_own(&vm->m.mem);
	s.memory_waits = __atomic_load_n(&vm->m.mem.waits, __ATOMIC_RELAXED);
	if (vm->m.mem.source)
		s.memory_decoded = __atomic_load_n(&vm->m.mem.source->decoded, __ATOMIC_RELAXED);
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
	vm_export(out, &s, sizeof(s));
	return vm_leave(vm, 0);
}
