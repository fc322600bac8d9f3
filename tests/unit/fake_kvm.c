/* SPDX-License-Identifier: MIT */
/*
 * fake_kvm.c - core/kvm.h with a model of KVM behind it: see fake_kvm.h.
 *
 * Each descriptor is a memfd, and its number the index of what it stands for.
 * The library closes it as it would KVM's, so a number that comes back, or an
 * inode that is not the one we made, says that the object is gone.
 *
 * Modelled, because the library depends on it:
 *
 * - KVM_RUN: an exit is completed by the next one, even if immediate_exit is
 *   set; a signal that the vCPU's mask lets through ends the stay and remains
 *   pending; a hart that is not started waits.  (api.rst, KVM_RUN)
 * - Registers: sizes, which can be written, what is refused after the first
 *   run; the ISA and SBI sets behind their bitmaps.
 * - AIA: attributes with their checks; sources, targets and interrupt files,
 *   so far that a line's edge becomes a bit in a file (or is lost, or comes
 *   twice, if it is not set up in the right order).
 *
 * Not modelled: guest memory, timers, CPUs.  One lock for everything; it is
 * not held while a guest's function runs.  Nothing is allocated.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "../../riscv/regs.h"
#include "../../vmm_guest.h"
#include "fake_kvm.h"

#define OBJECTS		1024	/* descriptors below this */
#define REGS		320
#define LINES		64
#define IOEVENTFDS	64
#define RUN_SIZE	12288u

enum kind { NOTHING, SYSTEM, VM, VCPU, AIA };

struct object {
	enum kind	kind;
	int		fd;
	ino_t		ino;
	pid_t		pid;
};

struct reg {
	uint64_t	id;
	uint8_t		value[32];
};

struct vcpu_object {
	struct object	o;
	struct fake_vcpu v;
	sigset_t	mask;
	int		masked;
	int		inside;		/* a thread is in KVM_RUN */
	int		ran;
	int		threaded;
	pthread_t	thread;
	uint32_t	mp_state;
	uint64_t	isa[2], sbi;
	struct reg	reg[REGS];
	unsigned int	nregs;
	/* The interrupt file. */
	uint64_t	eie, eip, eithreshold, eidelivery;
	int		file_set;	/* by an attribute */
};

struct fake_vm {
	struct object	o;
	int		renewable;	/* KVM_MP_INIT can be set */
	int		vcpu[64];	/* descriptors, or 0 */
	fake_guest	guest;
	uint64_t	slot_gpa, slot_size;
	void		*slot_hva;
	uint64_t	time_delta;
	int		time_set;
	/* AIA */
	int		aia, aia_ready;	/* its descriptor, or 0 */
	uint32_t	mode, ids, srcs, hart_bits;
	uint64_t	aplic, imsic[64];
	uint32_t	domaincfg, sourcecfg[LINES], target[LINES];
	uint64_t	pending, enabled, input;
	unsigned int	pulses[LINES];
	struct { uint64_t gpa, match; uint32_t len; int fd; } io[IOEVENTFDS];
};

struct aia_object {
	struct object	o;
	struct fake_vm	*vm;
};

struct fake fake;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct object systems[OBJECTS];
static struct fake_vm vms[OBJECTS];
static struct vcpu_object vcpus[OBJECTS];
static struct aia_object aias[OBJECTS];
static struct object *objects[OBJECTS];
static int last_vm;

#define FAULT()	do {							\
		int fault_ = fake.fault ? fake.fault(__func__) : 0;	\
									\
		if (fault_)						\
			return -fault_;					\
	} while (0)

static void violation(const char *what)
{
	if (!fake.violations++)
		snprintf(fake.violation, sizeof(fake.violation), "%s", what);
}

void fake_reset(void)
{
	memset(&fake, 0, sizeof(fake));
	memset(objects, 0, sizeof(objects));
	last_vm = 0;
	fake.native = 1;
	fake.version = KVM_API_VERSION;
	fake.aia = 1;
	fake.narrow = 1;
	/* a c d f i m svpbmt sstc svinval zihintpause zicbom zicboz zbb ssaia
	   v svnapot zba zbs zicntr zicsr zifencei, and zicbop. */
	fake.isa[0] = 0x3fffefull;
	fake.isa[1] = 1ull << (71 - 64);
	fake.isa_fixed[0] = 1ull << 0 | 1ull << 1 | 1ull << 5 | 1ull << 6 | 1ull << 8;
	fake.hz = 10000000;
	fake.satp = 9;
	fake.vlenb = 32;
	fake.block = 64;
}

/* ---- Objects ------------------------------------------------------------- */

/* With the lock held: whether o's descriptor still is the one we made. */
static int alive(const struct object *o)
{
	struct stat st;

	/* Not fstat(), which tests of faults make fail. */
	return o->kind != NOTHING && objects[o->fd] == o &&
	       fstatat(o->fd, "", &st, AT_EMPTY_PATH) == 0 && st.st_ino == o->ino;
}

/* With the lock held: a descriptor for a new object out of an array of them. */
static int create(enum kind kind, void *array, size_t size, off_t bytes)
{
	struct object *o;
	struct stat st;
	int fd = memfd_create("fake-kvm", MFD_CLOEXEC);

	if (fd < 0)
		return -errno;
	if (fd >= OBJECTS || ftruncate(fd, bytes) < 0 || fstat(fd, &st) < 0) {
		close(fd);
		return -EMFILE;
	}
	o = (struct object *)(void *)((char *)array + (size_t)fd * size);
	memset(o, 0, size);
	*o = (struct object){ kind, fd, st.st_ino, getpid() };
	objects[fd] = o;
	return fd;
}

/* With the lock held: the object behind fd, or NULL and a reason in *err. */
static void *find(int fd, enum kind kind, int *err)
{
	struct object *o = fd >= 0 && fd < OBJECTS ? objects[fd] : NULL;

	*err = -EBADF;
	if (!o || !alive(o)) {
		violation("a call on a descriptor that is closed, or not KVM's");
		return NULL;
	}
	*err = -ENOTTY;
	if (o->kind != kind) {
		violation("a call on another kind of object");
		return NULL;
	}
	*err = -EIO;		/* KVM knows the process that made it */
	return o->pid == getpid() ? o : NULL;
}

static struct vcpu_object *vcpu_of(struct fake_vm *vm, uint32_t id)
{
	int fd = id < 64 ? vm->vcpu[id] : 0;
	struct vcpu_object *c = &vcpus[fd];

	return fd && alive(&c->o) && c->v.vm == vm ? c : NULL;
}

struct fake_vm *fake_vm(void)
{
	struct fake_vm *vm;

	pthread_mutex_lock(&lock);
	vm = last_vm && alive(&vms[last_vm].o) ? &vms[last_vm] : NULL;
	pthread_mutex_unlock(&lock);
	return vm;
}

struct fake_vcpu *fake_vcpu(struct fake_vm *vm, uint32_t id)
{
	struct vcpu_object *c;

	pthread_mutex_lock(&lock);
	c = vm ? vcpu_of(vm, id) : NULL;
	pthread_mutex_unlock(&lock);
	return c ? &c->v : NULL;
}

int kvm_native(void)
{
	return fake.native;
}

int kvm_open(void)
{
	int r;

	FAULT();
	if (fake.open_errno)
		return -fake.open_errno;
	pthread_mutex_lock(&lock);
	r = create(SYSTEM, systems, sizeof(systems[0]), 0);
	pthread_mutex_unlock(&lock);
	return r;
}

int kvm_version(int kvm)
{
	int r;

	FAULT();
	pthread_mutex_lock(&lock);
	if (find(kvm, SYSTEM, &r))
		r = fake.version;
	pthread_mutex_unlock(&lock);
	return r;
}

int kvm_cap(int kvm_or_vm, int cap)
{
	(void)kvm_or_vm;
	FAULT();
	if (cap == fake.missing_cap)
		return 0;
	return cap == KVM_CAP_MAX_VCPUS ? 64 : cap == KVM_CAP_VM_GPA_BITS ? 50 : 1;
}

int kvm_enable(int fd, int cap)
{
	struct fake_vm *vm;
	int r;

	FAULT();
	pthread_mutex_lock(&lock);
	vm = find(fd, VM, &r);
	if (vm) {
		r = cap == KVM_CAP_MP_INIT && cap != fake.missing_cap ? 0 : -EINVAL;
		vm->renewable = r == 0;
	}
	pthread_mutex_unlock(&lock);
	return r;
}

/* Tests know which VM is the last, and how many there were: none is made unasked. */
static int for_stock(void)
{
	char name[16] = "";

	prctl(PR_GET_NAME, name);
	return strcmp(name, "vmm-stock") == 0;
}

int kvm_vm(int kvm)
{
	int r;

	if (for_stock() && !fake.stock)
		return -ENOMEM;
	FAULT();
	pthread_mutex_lock(&lock);
	if (find(kvm, SYSTEM, &r)) {
		r = create(VM, vms, sizeof(vms[0]), 0);
		if (r >= 0) {
			vms[r].guest = fake.guest;
			fake.vms++;
			last_vm = r;
		}
	}
	pthread_mutex_unlock(&lock);
	return r;
}

int kvm_slot(int fd, uint32_t slot, uint64_t gpa, uint64_t size, void *hva)
{
	struct fake_vm *vm;
	int r;

	FAULT();
	pthread_mutex_lock(&lock);
	vm = find(fd, VM, &r);
	if (vm && (slot || (gpa | size | (uintptr_t)hva) & 4095)) {
		r = -EINVAL;
	} else if (vm) {
		vm->slot_gpa = gpa;
		vm->slot_size = size;
		vm->slot_hva = hva;
		r = 0;
	}
	pthread_mutex_unlock(&lock);
	return r;
}

int fake_aia(struct fake_vm *vm)
{
	int fd;

	pthread_mutex_lock(&lock);
	fd = vm->aia;
	pthread_mutex_unlock(&lock);
	return fd;
}

uint64_t fake_slot(struct fake_vm *vm, uint64_t *gpa, void **hva)
{
	uint64_t size;

	pthread_mutex_lock(&lock);
	*gpa = vm->slot_gpa;
	*hva = vm->slot_hva;
	size = vm->slot_size;
	pthread_mutex_unlock(&lock);
	return size;
}

/* ---- vCPUs: registers ------------------------------------------------------ */

static struct reg *reg_find(struct vcpu_object *c, uint64_t id)
{
	unsigned int i;

	for (i = 0; i < c->nregs; i++)
		if (c->reg[i].id == id)
			return &c->reg[i];
	return NULL;
}

static void reg_add(struct vcpu_object *c, uint64_t id, uint64_t value)
{
	struct reg *r = &c->reg[c->nregs++];

	r->id = id;
	memset(r->value, 0, sizeof(r->value));
	memcpy(r->value, &value, sizeof(value));
}

/* The list of a vCPU on Linux 6.12, near enough. */
static void regs_init(struct vcpu_object *c)
{
	uint64_t vreg = REG_RISCV | 0x09000000;
	unsigned int i;

	reg_add(c, REG_CONFIG(0), 0x112d);
	reg_add(c, CONFIG_ZICBOM, fake.block);
	for (i = 2; i <= 4; i++)		/* mvendorid, marchid, mimpid */
		reg_add(c, REG_CONFIG(i), 0x100 + i);
	reg_add(c, CONFIG_ZICBOZ, fake.block);
	reg_add(c, CONFIG_SATP, fake.satp);
	reg_add(c, CONFIG_ZICBOP, fake.block);
	for (i = 0; i <= 32; i++)		/* pc, x1 to x31, mode */
		reg_add(c, REG_CORE(i), i == 32);
	for (i = 0; i <= 10; i++)
		reg_add(c, REG_CSR(i), 0);
	for (i = 0; i <= 6; i++)		/* AIA */
		reg_add(c, REG_CSR(0x10000 + i), 0);
	reg_add(c, REG_CSR(0x20000), 0);	/* sstateen0 */
	reg_add(c, TIMER_FREQUENCY, fake.hz);
	reg_add(c, TIMER_TIME, 0);
	reg_add(c, TIMER_COMPARE, ~0ull);
	reg_add(c, TIMER_STATE, 0);
	for (i = 0; i < 32; i++)
		reg_add(c, REG_RISCV | REG_U32 | 0x05000000 | i, 0);
	reg_add(c, REG_RISCV | REG_U32 | 0x05000020, 0);
	for (i = 0; i < 32; i++)
		reg_add(c, REG_RISCV | REG_U64 | 0x06000000 | i, 0);
	reg_add(c, REG_RISCV | REG_U32 | 0x06000020, 0);
	for (i = 0; i < 128; i++)
		if (fake.isa[i / 64] >> (i % 64) & 1)
			reg_add(c, REG_ISA(i), 1);
	for (i = 0; i <= 10; i++)
		reg_add(c, REG_RISCV | REG_U64 | 0x08000000 | i, 0);
	if (!fake.vlenb)
		return;
	for (i = 0; i <= 4; i++)
		reg_add(c, REG_RISCV | REG_U64 | 0x09000000 | i, i == 4 ? fake.vlenb : 0);
	vreg |= (uint64_t)__builtin_ctzll(fake.vlenb) << 52;
	for (i = 0; i < 32; i++)
		reg_add(c, vreg | (6 + i), 0);
}

/* With the lock held: as regs_init() left it, but for what it was configured with. */
static void renew(struct vcpu_object *c)
{
	unsigned int i;
	uint64_t id;

	for (i = 0; i < c->nregs; i++) {
		id = c->reg[i].id;
		if (REG_TYPE(id) == 1 || REG_TYPE(id) == 7 || id == REG_VLENB ||
		    id == TIMER_FREQUENCY)
			continue;
		memset(c->reg[i].value, id == TIMER_COMPARE ? 0xff : 0, sizeof(c->reg[i].value));
		c->reg[i].value[0] |= id == CORE_MODE;
	}
	c->eie = c->eip = c->eithreshold = c->eidelivery = 0;
	c->file_set = 0;
	c->v.vm->time_set = 0;
	/* The next KVM_RUN would complete it. */
	if (c->v.unfinished)
		violation("a vCPU made as new, in the middle of an exit");
	c->v.step = 0;
}

/* With the lock held: a hart that another has started has its registers set
   when it first runs. */
static void begin_hart(struct vcpu_object *c)
{
	struct reg *pc = reg_find(c, CORE_PC);
	const uint64_t entry = c->v.vm->slot_gpa + 0x1000, zero = 0;

	if (memcmp(pc->value, &zero, sizeof(zero)) == 0)
		memcpy(pc->value, &entry, sizeof(entry));
}

int kvm_vcpu(int fd, uint32_t id)
{
	struct vcpu_object *c;
	struct fake_vm *vm;
	int r;

	FAULT();
	pthread_mutex_lock(&lock);
	vm = find(fd, VM, &r);
	if (vm && (id >= 64 || vcpu_of(vm, id))) {
		r = id >= 64 ? -EINVAL : -EEXIST;
	} else if (vm) {
		if (vm->aia_ready)
			violation("a vCPU made after its interrupt controller");
		r = create(VCPU, vcpus, sizeof(vcpus[0]), RUN_SIZE);
		if (r >= 0) {
			c = &vcpus[r];
			vm->vcpu[id] = r;
			c->v.vm = vm;
			c->v.id = id;
			c->v.fd = r;
			c->mp_state = id && !fake.boot_all ? KVM_MP_STOPPED : KVM_MP_RUNNABLE;
			c->isa[0] = fake.isa[0];
			c->isa[1] = fake.isa[1];
			c->sbi = 0x1ff;		/* TIME to VENDOR */
			regs_init(c);
			if (id && fake.boot_all)
				begin_hart(c);
		}
	}
	pthread_mutex_unlock(&lock);
	return r;
}

/* A vCPU that is not in the guest: else KVM would let the caller wait. */
static struct vcpu_object *vcpu_out(int fd, int *err)
{
	struct vcpu_object *c = find(fd, VCPU, err);

	if (c && c->inside)
		violation("a vCPU ioctl while the vCPU is in KVM_RUN");
	return c;
}

int kvm_run_map(int kvm, int vcpu, struct kvm_run **run, size_t *size)
{
	struct vcpu_object *c;
	void *p;
	int r;

	(void)kvm;
	FAULT();
	pthread_mutex_lock(&lock);
	c = vcpu_out(vcpu, &r);
	if (c) {
		p = mmap(NULL, RUN_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
		r = p == MAP_FAILED ? -errno : 0;
		if (r == 0) {
			c->v.run = *run = p;
			*size = RUN_SIZE;
		}
	}
	pthread_mutex_unlock(&lock);
	return r;
}

void kvm_run_unmap(struct kvm_run *run, size_t size)
{
	munmap(run, size);
}

int kvm_sigmask(int vcpu, const sigset_t *set)
{
	struct vcpu_object *c;
	int r;

	FAULT();
	pthread_mutex_lock(&lock);
	c = vcpu_out(vcpu, &r);
	if (c) {
		c->mask = *set;
		c->masked = 1;
		r = 0;
	}
	pthread_mutex_unlock(&lock);
	return r;
}

int kvm_mp_get(int vcpu, uint32_t *state)
{
	struct vcpu_object *c;
	int r;

	FAULT();
	pthread_mutex_lock(&lock);
	c = vcpu_out(vcpu, &r);
	if (c) {
		*state = c->mp_state;
		r = 0;
	}
	pthread_mutex_unlock(&lock);
	return r;
}

int kvm_mp_set(int vcpu, uint32_t state)
{
	struct vcpu_object *c;
	int r;

	FAULT();
	pthread_mutex_lock(&lock);
	c = vcpu_out(vcpu, &r);
	if (c) {
		r = state == KVM_MP_RUNNABLE || state == KVM_MP_STOPPED ||
		    (state == KVM_MP_INIT && c->v.vm->renewable) ? 0 : -EINVAL;
		if (r == 0 && state == KVM_MP_INIT)
			renew(c);
		else if (r == 0)
			c->mp_state = state;
	}
	pthread_mutex_unlock(&lock);
	return r;
}

/* One counter, "exits", as it is now (api.rst, KVM_GET_STATS_FD): a header, a
   descriptor with its name, the value. */
int kvm_stats(int vcpu)
{
	const struct kvm_stats_header h = {
		.name_size = 48, .num_desc = 1, .id_offset = 24, .desc_offset = 256,
		.data_offset = 512,
	};
	const struct kvm_stats_desc d = { .size = 1 };
	struct vcpu_object *c;
	uint64_t value;
	int r;

	FAULT();
	pthread_mutex_lock(&lock);
	c = vcpu_out(vcpu, &r);
	if (c) {
		value = c->v.begun + c->v.kicked;
		r = memfd_create("fake-stats", MFD_CLOEXEC);
		if (r >= 0 && (pwrite(r, &h, sizeof(h), 0) < 0 ||
			       pwrite(r, &d, sizeof(d), 256) < 0 ||
			       pwrite(r, "exits", 6, 256 + sizeof(d)) < 0 ||
			       pwrite(r, &value, sizeof(value), 512) < 0)) {
			close(r);
			r = -1;
		}
		r = r < 0 ? -errno : r;
	}
	pthread_mutex_unlock(&lock);
	return r;
}

static uint64_t clock_now(const struct fake_vm *vm)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return vm->time_delta + (uint64_t)ts.tv_sec * fake.hz +
	       (uint64_t)ts.tv_nsec * fake.hz / 1000000000u;
}

/* The bitmap behind a set's "many at once" registers, or NULL. */
static uint64_t *reg_set_of(struct vcpu_object *c, uint64_t id, int *off)
{
	unsigned int i;

	for (i = 0; i < 2; i++) {
		*off = id == REG_ISA_OFF(i) || id == REG_SBI_OFF(i);
		if (id == REG_ISA_ON(i) || id == REG_ISA_OFF(i))
			return &c->isa[i];
		if (i == 0 && (id == REG_SBI_ON(i) || id == REG_SBI_OFF(i)))
			return &c->sbi;
	}
	return NULL;
}

static int reg_get(struct vcpu_object *c, uint64_t id, void *value)
{
	uint64_t n = id & 0xffff, *set;
	struct reg *r;
	int off;

	set = reg_set_of(c, id, &off);
	if (set) {
		n = off ? ~*set : *set;
		memcpy(value, &n, sizeof(n));
		return 0;
	}
	r = reg_find(c, id);
	if (!r)
		return -ENOENT;
	if (id == TIMER_TIME)
		n = clock_now(c->v.vm);
	else if (REG_TYPE(id) == 7)
		n = c->isa[n / 64] >> (n % 64) & 1;
	else if (REG_TYPE(id) == 8)
		n = c->sbi >> n & 1;
	else
		memcpy(&n, r->value, sizeof(n));
	memcpy(r->value, &n, sizeof(n));
	memcpy(value, r->value, REG_SIZE(id));
	return 0;
}

static int reg_put(struct vcpu_object *c, uint64_t id, const void *value)
{
	uint64_t n = id & 0xffff, v = 0, *set;
	struct reg *r;
	int off;

	memcpy(&v, value, REG_SIZE(id) < 8 ? REG_SIZE(id) : 8);
	set = reg_set_of(c, id, &off);
	if (set) {
		if (c->ran)
			return -EBUSY;
		if (set == &c->sbi)
			v &= 0x7ff;	/* the others it does not know */
		else
			v &= fake.isa[set - c->isa] & (off ? ~fake.isa_fixed[set - c->isa] : ~0ull);
		*set = off ? *set & ~v : *set | v;
		return 0;
	}
	r = reg_find(c, id);
	if (!r)
		return -ENOENT;
	if (REG_TYPE(id) == 1 && n >= 2 && n <= 4) {	/* mvendorid, marchid, mimpid */
		if (c->ran && memcmp(r->value, value, 8))
			return -EBUSY;
		memcpy(r->value, value, 8);
		return 0;
	}
	if (REG_TYPE(id) == 1 || id == REG_VLENB || id == TIMER_FREQUENCY)
		return memcmp(r->value, value, REG_SIZE(id)) ? -EINVAL : 0;
	if (id == CSR_SIP && c->file_set)
		violation("sip written behind the interrupt file: what is pending there is lost");
	if (id == TIMER_STATE && v && !c->v.vm->time_set)
		violation("a timer armed before the guest's time was set");
	if (id == TIMER_STATE && !v)
		return -EINVAL;
	if (id == TIMER_TIME) {
		c->v.vm->time_set = 1;
		c->v.vm->time_delta += v - clock_now(c->v.vm);
	}
	if (REG_TYPE(id) == 7 || REG_TYPE(id) == 8) {
		set = REG_TYPE(id) == 7 ? &c->isa[n / 64] : &c->sbi;
		if ((*set >> (n % 64) & 1) == v && !(c->ran && set == &c->sbi))
			return 0;
		if (c->ran)
			return -EBUSY;
		if (set != &c->sbi && !v && fake.isa_fixed[n / 64] >> (n % 64) & 1)
			return -EINVAL;
		*set = (*set & ~(1ull << (n % 64))) | (v & 1) << (n % 64);
		return 0;
	}
	memcpy(r->value, value, REG_SIZE(id));
	return 0;
}

int kvm_reg_get(int vcpu, uint64_t id, void *value)
{
	struct vcpu_object *c;
	int r;

	FAULT();
	pthread_mutex_lock(&lock);
	c = vcpu_out(vcpu, &r);
	if (c)
		r = reg_get(c, id, value);
	pthread_mutex_unlock(&lock);
	return r;
}

int kvm_reg_set(int vcpu, uint64_t id, const void *value)
{
	struct vcpu_object *c;
	int r;

	FAULT();
	pthread_mutex_lock(&lock);
	c = vcpu_out(vcpu, &r);
	if (c)
		r = reg_put(c, id, value);
	pthread_mutex_unlock(&lock);
	return r;
}

uint64_t fake_reg(struct fake_vcpu *v, uint64_t id)
{
	uint64_t value[4] = { 0 };

	pthread_mutex_lock(&lock);
	reg_get(&vcpus[v->fd], id, value);
	pthread_mutex_unlock(&lock);
	return value[0];
}

int fake_claim(struct fake_vcpu *v, uint32_t id)
{
	struct vcpu_object *c = &vcpus[v->fd];
	int pending;

	pthread_mutex_lock(&lock);
	pending = (int)(c->eip >> id & 1);
	c->eip &= ~(1ull << id);
	pthread_mutex_unlock(&lock);
	return pending;
}

void fake_interrupts(struct fake_vcpu *v, int on)
{
	pthread_mutex_lock(&lock);
	reg_find(&vcpus[v->fd], CSR_SSTATUS)->value[0] = on ? SSTATUS_SIE : 0;
	pthread_mutex_unlock(&lock);
}

int kvm_reg_list(int vcpu, struct kvm_reg_list *list)
{
	struct vcpu_object *c;
	unsigned int i;
	int r;

	FAULT();
	pthread_mutex_lock(&lock);
	c = vcpu_out(vcpu, &r);
	if (c) {
		r = list->n < c->nregs ? -E2BIG : 0;
		list->n = c->nregs;
		for (i = 0; i < c->nregs && r == 0; i++)
			list->reg[i] = c->reg[i].id;
	}
	pthread_mutex_unlock(&lock);
	return r;
}

/* ---- KVM_RUN ---------------------------------------------------------------- */

/* Is a signal pending that the vCPU's mask lets through?  Wait up to ms for
   one; it stays pending. */
static int signalled(struct vcpu_object *c, long ms)
{
	const struct timespec t = { ms / 1000, ms % 1000 * 1000000 };
	sigset_t set;
	int s;

	sigemptyset(&set);
	for (s = 1; s <= SIGRTMAX; s++)
		if (!sigismember(&c->mask, s))
			sigaddset(&set, s);
	s = sigtimedwait(&set, NULL, &t);
	if (s <= 0)
		return 0;
	pthread_kill(pthread_self(), s);
	return 1;
}

/* With the lock held: what the last exit asked for is in v->run now. */
static void finish(struct fake_vcpu *v)
{
	struct kvm_run *run = v->run;
	const struct kvm_sbi_exit *sbi = kvm_exit_data(run);
	const struct kvm_csr_exit *csr = kvm_exit_data(run);

	if (!v->unfinished)
		return;
	v->unfinished = 0;
	v->completed++;
	if (run->exit_reason == KVM_EXIT_MMIO && !run->mmio.is_write) {
		v->value = 0;
		memcpy(&v->value, run->mmio.data, run->mmio.len);
	} else if (run->exit_reason == KVM_EXIT_SBI) {
		v->ret[0] = sbi->ret[0];
		v->ret[1] = sbi->ret[1];
	} else if (run->exit_reason == KVM_EXIT_CSR) {
		v->value = csr->ret;
	}
}

static void check_thread(struct vcpu_object *c)
{
	sigset_t set;
	int s;

	if (c->threaded && !pthread_equal(c->thread, pthread_self()))
		violation("KVM_RUN of one vCPU from two threads");
	c->thread = pthread_self();
	c->threaded = 1;
	if (!c->masked)
		violation("KVM_RUN without a signal mask");
	pthread_sigmask(SIG_SETMASK, NULL, &set);
	for (s = 1; s < NSIG; s++)
		if (s != SIGKILL && s != SIGSTOP && (s < 32 || s >= SIGRTMIN) &&
		    !sigismember(&set, s))
			violation("KVM_RUN on a thread that host signals can interrupt");
}

/* Is it sent on an errand (riscv/touch.h), behind the RAM? */
static int on_errand(struct vcpu_object *c)
{
	const struct fake_vm *vm = c->v.vm;
	uint32_t first;
	uint64_t pc;

	pthread_mutex_lock(&lock);
	reg_get(c, CORE_PC, &pc);
	pthread_mutex_unlock(&lock);
	if (!vm->slot_size || pc < vm->slot_gpa + vm->slot_size - 32768 ||
	    pc >= vm->slot_gpa + vm->slot_size)
		return 0;
	if (__atomic_load_n(&c->mp_state, __ATOMIC_ACQUIRE) != KVM_MP_RUNNABLE)
		violation("an errand for a hart that is stopped");
	memcpy(&first, (uint8_t *)vm->slot_hva + (pc - vm->slot_gpa), sizeof(first));
	c->v.fences += first == 0x12000073;
	return 1;
}

static int run_guest(struct vcpu_object *c)
{
	fake_guest guest = c->v.vm->guest;
	int stopped, r;

	for (;;) {
		if (signalled(c, 0))
			return -EINTR;
		/* It repeats a call that KVM answers. */
		if (on_errand(c) && c->sbi >> SBI_VENDOR & 1)
			return fake_sbi(&c->v, VMM_GUEST_SBI, VMM_GUEST_SBI_RING, 0, 0, 0);
		stopped = __atomic_load_n(&c->mp_state, __ATOMIC_ACQUIRE) == KVM_MP_STOPPED;
		if (!stopped) {
			pthread_mutex_lock(&lock);
			begin_hart(c);
			pthread_mutex_unlock(&lock);
		}
		r = stopped ? FAKE_NAP : guest ? guest(&c->v) : FAKE_SPIN;
		if (r <= 0)
			return r;
		if (r == FAKE_SPIN)
			while (!signalled(c, 1000))
				;
		if (r == FAKE_NAP)
			signalled(c, stopped ? 5 : 1);
	}
}

int kvm_run(int vcpu)
{
	struct vcpu_object *c;
	int r;

	FAULT();
	pthread_mutex_lock(&lock);
	c = find(vcpu, VCPU, &r);
	if (!c)
		goto out;
	check_thread(c);
	c->ran = 1;
	c->v.runs++;
	finish(&c->v);
	r = -EINTR;
	if (!__atomic_load_n(&c->v.run->immediate_exit, __ATOMIC_SEQ_CST)) {
		c->inside = 1;
		pthread_mutex_unlock(&lock);
		r = run_guest(c);
		pthread_mutex_lock(&lock);
		c->inside = 0;
	}
	if (r == 0)
		c->v.begun++;
	else if (r == -EINTR)
		c->v.kicked++;
	if (r < 0)
		c->v.run->exit_reason = KVM_EXIT_INTR;
out:
	pthread_mutex_unlock(&lock);
	return r;
}

/* ---- What guests do ---------------------------------------------------------- */

int fake_read(struct fake_vcpu *v, uint64_t gpa, uint32_t len)
{
	v->run->exit_reason = KVM_EXIT_MMIO;
	v->run->mmio.phys_addr = gpa;
	v->run->mmio.len = len;
	v->run->mmio.is_write = 0;
	memset(v->run->mmio.data, 0, 8);
	v->unfinished = 1;
	return FAKE_EXIT;
}

int fake_write(struct fake_vcpu *v, uint64_t gpa, uint32_t len, uint64_t value)
{
	struct fake_vm *vm = v->vm;
	const uint64_t one = 1;
	int i, fd = 0;

	pthread_mutex_lock(&lock);
	for (i = 0; i < IOEVENTFDS; i++)
		if (vm->io[i].fd && vm->io[i].gpa == gpa && vm->io[i].match == value &&
		    (!vm->io[i].len || vm->io[i].len == len))
			fd = vm->io[i].fd;
	if (fd && write(fd, &one, sizeof(one)) < 0)
		violation("an ioeventfd that is closed");
	pthread_mutex_unlock(&lock);
	if (fd)
		return FAKE_AGAIN;
	v->run->exit_reason = KVM_EXIT_MMIO;
	v->run->mmio.phys_addr = gpa;
	v->run->mmio.len = len;
	v->run->mmio.is_write = 1;
	memcpy(v->run->mmio.data, &value, 8);
	v->unfinished = 1;
	return FAKE_EXIT;
}

int fake_sbi(struct fake_vcpu *v, uint64_t ext, uint64_t fn, uint64_t a0, uint64_t a1,
	     uint64_t a2)
{
	struct kvm_sbi_exit *s = kvm_exit_data(v->run);

	v->run->exit_reason = KVM_EXIT_SBI;
	*s = (struct kvm_sbi_exit){ .extension = ext, .function = fn, .args = { a0, a1, a2 } };
	s->ret[0] = (uint64_t)-2;	/* as KVM has it: not supported */
	v->unfinished = 1;
	return FAKE_EXIT;
}

int fake_csr(struct fake_vcpu *v, uint64_t csr)
{
	struct kvm_csr_exit *c = kvm_exit_data(v->run);

	v->run->exit_reason = KVM_EXIT_CSR;
	*c = (struct kvm_csr_exit){ .csr = csr };
	v->unfinished = 1;
	return FAKE_EXIT;
}

int fake_system(struct fake_vcpu *v, uint32_t type, uint64_t reason)
{
	struct vcpu_object *c;
	uint32_t i;

	pthread_mutex_lock(&lock);
	for (i = 0; i < 64; i++)
		if ((c = vcpu_of(v->vm, i)))
			__atomic_store_n(&c->mp_state, KVM_MP_STOPPED, __ATOMIC_RELEASE);
	pthread_mutex_unlock(&lock);
	v->run->exit_reason = KVM_EXIT_SYSTEM_EVENT;
	v->run->system_event.type = type;
	v->run->system_event.ndata = 1;
	v->run->system_event.data[0] = reason;
	return FAKE_EXIT;
}

void fake_hart_start(struct fake_vm *vm, uint32_t id)
{
	struct vcpu_object *c;

	pthread_mutex_lock(&lock);
	c = vcpu_of(vm, id);
	if (c)
		__atomic_store_n(&c->mp_state, KVM_MP_RUNNABLE, __ATOMIC_RELEASE);
	pthread_mutex_unlock(&lock);
}

/* ---- AIA ------------------------------------------------------------------------ */

enum { CONFIG = 0, ADDR = 1, CTRL = 2, APLIC = 3, IMSIC = 4 };

static void record(uint32_t group, uint64_t attr, uint64_t value)
{
	if (fake.logged < sizeof(fake.log) / sizeof(fake.log[0]))
		fake.log[fake.logged++] = (struct fake_record){ group, attr, value };
}

/* An interrupt file in memory keeps what its kernel can. */
static uint64_t file_bits(uint64_t v)
{
	return fake.narrow ? (uint64_t)(int64_t)(int32_t)(uint32_t)v : v;
}

/* Forward what is enabled and pending: AIA 4.9.1. */
static void aplic_scan(struct fake_vm *vm)
{
	struct vcpu_object *c;
	unsigned int i;
	uint32_t id;

	if (!(vm->domaincfg & 0x100))
		return;
	for (i = 1; i <= vm->srcs && i < LINES; i++) {
		if (!(vm->pending & vm->enabled & 1ull << i))
			continue;
		vm->pending &= ~(1ull << i);
		id = vm->target[i] & 0x7ff;
		c = vcpu_of(vm, vm->target[i] >> 18);
		if (c && id && id < 64)
			c->eip = file_bits(c->eip | 1ull << id);
	}
}

/* Inputs as sources mean them: AIA 4.7. */
static uint64_t aplic_inputs(const struct fake_vm *vm)
{
	uint64_t in = vm->input;
	unsigned int i;

	for (i = 1; i <= vm->srcs && i < LINES; i++)
		if (vm->sourcecfg[i] == 5 || vm->sourcecfg[i] == 7)
			in ^= 1ull << i;
	return in;
}

static int aplic_get(struct fake_vm *vm, uint64_t off, uint32_t *v)
{
	if (off & 3)
		return -EOPNOTSUPP;
	if (off == 0)
		*v = 0x80000004u | vm->domaincfg;
	else if (off >= 4 && off <= 4ull * vm->srcs)
		*v = vm->sourcecfg[off / 4];
	else if (off == 0x1c00 || off == 0x1c04)
		*v = (uint32_t)(vm->pending >> (off & 4) * 8);
	else if (off == 0x1d00 || off == 0x1d04)
		*v = (uint32_t)(aplic_inputs(vm) >> (off & 4) * 8);
	else if (off == 0x1e00 || off == 0x1e04)
		*v = (uint32_t)(vm->enabled >> (off & 4) * 8);
	else if (off >= 0x3004 && off <= 0x3000 + 4ull * vm->srcs)
		*v = vm->target[(off - 0x3000) / 4];
	else
		return -ENODEV;
	return 0;
}

static int aplic_put(struct fake_vm *vm, uint64_t off, uint32_t v)
{
	uint64_t bits = (uint64_t)v << (off & 4) * 8;
	unsigned int i;

	if (off & 3)
		return -EOPNOTSUPP;
	if (off == 0) {
		vm->domaincfg = v & 0x100;
	} else if (off >= 4 && off <= 4ull * vm->srcs) {
		vm->sourcecfg[off / 4] = v & 0x400 ? 0 : v & 7;
		if (!vm->sourcecfg[off / 4]) {
			vm->pending &= ~(1ull << off / 4);
			vm->enabled &= ~(1ull << off / 4);
		}
	} else if (off == 0x1c00 || off == 0x1c04) {
		for (i = 1; i < LINES; i++) {
			if (!(bits >> i & 1) || !vm->sourcecfg[i])
				continue;	/* an inactive source stays so, */
			if (vm->sourcecfg[i] >= 6 && !(aplic_inputs(vm) >> i & 1))
				continue;	/* and a level that is not there: 4.5.7 */
			vm->pending |= 1ull << i;
		}
	} else if (off == 0x1d00 || off == 0x1d04) {
		vm->pending &= ~bits;
	} else if (off == 0x1e00 || off == 0x1e04) {
		for (i = 1; i < LINES; i++)
			if (bits >> i & 1 && vm->sourcecfg[i])
				vm->enabled |= 1ull << i;
	} else if (off == 0x1f00 || off == 0x1f04) {
		vm->enabled &= ~bits;
	} else if (off >= 0x3004 && off <= 0x3000 + 4ull * vm->srcs) {
		vm->target[(off - 0x3000) / 4] = v;
	} else {
		return -ENODEV;
	}
	aplic_scan(vm);
	return 0;
}

static uint64_t *imsic_reg(struct vcpu_object *c, uint64_t sel)
{
	switch (sel) {
	case 0x70:
		return &c->eidelivery;
	case 0x72:
		return &c->eithreshold;
	case 0x80:
		return &c->eip;
	case 0xc0:
		return &c->eie;
	default:
		return NULL;
	}
}

static int aia_init(struct fake_vm *vm)
{
	unsigned int i;

	for (i = 0; i < 64; i++)
		if (vcpu_of(vm, i) && vm->imsic[i] != vm->imsic[0] + 0x1000ull * i)
			return -EINVAL;
	if (!vm->aplic || !vm->imsic[0] || vm->srcs > vm->ids)
		return -EINVAL;
	for (i = 0; i < 64 && vcpu_of(vm, i); i++)
		;
	if (i > 1u << vm->hart_bits)
		return -EINVAL;
	vm->aia_ready = 1;
	return 0;
}

static int config_put(struct fake_vm *vm, uint64_t attr, uint32_t v)
{
	switch (attr) {
	case 0:
		if (v > 2 || (v && !fake.hgei))
			return -EINVAL;
		vm->mode = v;
		return 0;
	case 1:
		if ((v & 63) != 63 || v >= 2048)
			return -EINVAL;
		vm->ids = v;
		return 0;
	case 2:
		if (v >= 1024)
			return -EINVAL;
		vm->srcs = v;
		return 0;
	case 5:
		vm->hart_bits = v;
		return 0;
	default:
		return -ENXIO;
	}
}

int kvm_device(int fd, uint32_t type)
{
	struct fake_vm *vm;
	int r;

	FAULT();
	pthread_mutex_lock(&lock);
	vm = find(fd, VM, &r);
	if (vm && (type != KVM_DEV_AIA || !fake.aia)) {
		r = -ENODEV;
	} else if (vm && vm->aia) {
		r = -EEXIST;
	} else if (vm) {
		r = create(AIA, aias, sizeof(aias[0]), 0);
		if (r >= 0) {
			aias[r].vm = vm;
			vm->aia = r;
			vm->mode = fake.hgei ? 2 : 0;
			vm->ids = 255;
		}
	}
	pthread_mutex_unlock(&lock);
	return r;
}

int kvm_attr_get(int dev, uint32_t group, uint64_t attr, void *value)
{
	struct vcpu_object *c;
	struct aia_object *a;
	uint64_t *file;
	int r;

	FAULT();
	pthread_mutex_lock(&lock);
	a = find(dev, AIA, &r);
	if (!a)
		goto out;
	r = -ENXIO;
	if (group == CONFIG && (attr == 0 || attr == 1)) {
		memcpy(value, attr ? &a->vm->ids : &a->vm->mode, 4);
		r = 0;
	} else if (group == APLIC) {
		r = a->vm->aia_ready ? aplic_get(a->vm, attr, value) : -ENODEV;
	} else if (group == IMSIC) {
		c = vcpu_of(a->vm, (uint32_t)(attr >> 12));
		file = c ? imsic_reg(c, attr & 0xfff) : NULL;
		r = file && a->vm->aia_ready ? 0 : -ENODEV;
		if (c && c->inside)
			violation("an IMSIC attribute of a vCPU in KVM_RUN");
		if (r == 0)
			memcpy(value, file, 8);
	}
out:
	pthread_mutex_unlock(&lock);
	return r;
}

static int imsic_put(struct fake_vm *vm, uint64_t attr, uint64_t v)
{
	struct vcpu_object *c = vcpu_of(vm, (uint32_t)(attr >> 12));
	uint64_t *file = c ? imsic_reg(c, attr & 0xfff) : NULL;

	if (!file || !vm->aia_ready)
		return -ENODEV;
	if (c->inside)
		violation("an IMSIC attribute of a vCPU in KVM_RUN");
	c->file_set = 1;
	*file = file == &c->eidelivery ? v & 1 : file_bits(v);
	if (file == &c->eip || file == &c->eie)
		*file &= ~1ull;
	return 0;
}

int kvm_attr_set(int dev, uint32_t group, uint64_t attr, const void *value)
{
	struct aia_object *a;
	uint64_t v = 0;
	int r;

	FAULT();
	if (value)
		memcpy(&v, value, group == CONFIG || group == APLIC ? 4 : 8);
	pthread_mutex_lock(&lock);
	a = find(dev, AIA, &r);
	if (!a)
		goto out;
	record(group, attr, v);
	if (group <= CTRL && a->vm->aia_ready)
		r = -EBUSY;
	else if (group == CONFIG)
		r = config_put(a->vm, attr, (uint32_t)v);
	else if (group == ADDR && (v & 4095 || attr > 64))
		r = -EINVAL;
	else if (group == ADDR && attr)
		r = vcpu_of(a->vm, (uint32_t)attr - 1) ? 0 : -ENXIO;
	else if (group == ADDR)
		r = 0;
	else if (group == CTRL)
		r = attr == 0 ? aia_init(a->vm) : -ENXIO;
	else if (group == APLIC)
		r = a->vm->aia_ready ? aplic_put(a->vm, attr, (uint32_t)v) : -ENODEV;
	else
		r = group == IMSIC ? imsic_put(a->vm, attr, v) : -ENXIO;
	if (r == 0 && group == ADDR) {
		if (attr)
			a->vm->imsic[attr - 1] = v;
		else
			a->vm->aplic = v;
	}
out:
	pthread_mutex_unlock(&lock);
	return r;
}

int kvm_irq_line(int fd, uint32_t irq, int level)
{
	struct fake_vm *vm;
	uint64_t bit = 1ull << (irq & 63);
	int r, was;

	FAULT();
	pthread_mutex_lock(&lock);
	vm = find(fd, VM, &r);
	if (!vm)
		goto out;
	record(FAKE_LINE, irq, (uint64_t)level);
	r = !vm->aia ? -ENXIO : !vm->aia_ready ? -EBUSY : !irq || irq > vm->srcs ? -ENODEV : 0;
	if (r < 0 || irq >= LINES)
		goto out;
	was = !!(vm->input & bit);
	vm->input = level ? vm->input | bit : vm->input & ~bit;
	if (level && !was)
		vm->pulses[irq]++;
	if ((vm->sourcecfg[irq] == 4 && level && !was) ||
	    (vm->sourcecfg[irq] == 5 && !level && was) || (vm->sourcecfg[irq] == 6 && level) ||
	    (vm->sourcecfg[irq] == 7 && !level))
		vm->pending |= bit;
	aplic_scan(vm);
out:
	pthread_mutex_unlock(&lock);
	return r;
}

unsigned int fake_pulses(struct fake_vm *vm, uint32_t line)
{
	unsigned int n;

	pthread_mutex_lock(&lock);
	n = vm->pulses[line];
	pthread_mutex_unlock(&lock);
	return n;
}

int fake_level(struct fake_vm *vm, uint32_t line)
{
	int level;

	pthread_mutex_lock(&lock);
	level = (int)(vm->input >> line & 1);
	pthread_mutex_unlock(&lock);
	return level;
}

int kvm_ioeventfd(int fd, uint64_t gpa, uint32_t len, uint64_t match, int eventfd, int on)
{
	struct fake_vm *vm;
	int i, free_slot = -1, r;

	FAULT();
	pthread_mutex_lock(&lock);
	vm = find(fd, VM, &r);
	if (!vm)
		goto out;
	r = on ? -ENOSPC : -ENOENT;
	for (i = 0; i < IOEVENTFDS; i++) {
		if (!vm->io[i].fd) {
			free_slot = i;
		} else if (vm->io[i].gpa == gpa && vm->io[i].match == match) {
			r = on ? -EEXIST : 0;
			if (!on)
				vm->io[i].fd = 0;
			goto out;
		}
	}
	if (on && free_slot >= 0) {
		vm->io[free_slot].gpa = gpa;
		vm->io[free_slot].match = match;
		vm->io[free_slot].len = len;
		vm->io[free_slot].fd = eventfd;
		r = 0;
	}
out:
	pthread_mutex_unlock(&lock);
	return r;
}
