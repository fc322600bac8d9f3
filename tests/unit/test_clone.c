/* SPDX-License-Identifier: MIT */
/*
 * test_clone.c - snapshots by the public interface: a machine frozen, cloned,
 * written to a file and restored from it in another process; what a clone
 * shares, and what it must not.
 */
#include "rig.h"

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "../../core/uffd.h"
#include "../../riscv/isa.h"
#include "../../riscv/regs.h"

#define MiB	(1ull << 20)
#define HERE	(MAP_RAM + 3 * MiB)

static struct vmm_error err;
static char path[] = "/tmp/test_clone.XXXXXX";

static int setup(void **state)
{
	strcpy(path, "/tmp/test_clone.XXXXXX");
	close(mkstemp(path));
	return rig_setup(state);
}

static int teardown(void **state)
{
	unlink(path);
	return rig_teardown(state);
}

static int vcpu0(struct vmm *vm)
{
	return rig_inside(vm)->vcpu[0].fd;
}

static uint64_t reg(struct vmm *vm, uint64_t id)
{
	uint64_t v = 0;

	assert_int_equal(kvm_reg_get(vcpu0(vm), id, &v), 0);
	return v;
}

static void *genid(struct vmm *vm)
{
	return mem_tail(&rig_inside(vm)->mem);
}

/* A machine that ran, and is PAUSED, with something in every part. */
static struct vmm *original(void)
{
	const uint64_t x5 = 0x5555, sscratch = 0x1234;
	struct vmm *vm;

	fake.guest = rig_rings;
	vm = rig_vmm(2);
	assert_ok(vmm_add_serial(vm, -1, -1, &err));
	assert_ok(vmm_add_rng(vm, "rng0", &err));
	assert_ok(vmm_start(vm, &err));
	rig_event(vm, VMM_EV_DOORBELL);
	assert_ok(vmm_pause(vm, &err));
	assert_int_equal(kvm_reg_set(vcpu0(vm), CORE_X(5), &x5), 0);
	assert_int_equal(kvm_reg_set(vcpu0(vm), REG_CSR(2), &sscratch), 0);
	rig_write(rig_inside(vm), MAP_UART + 7, 1, 0x77);
	assert_ok(vmm_write(vm, HERE, "original", 8, &err));
	return vm;
}

static void holds(struct vmm *vm, const char *text)
{
	char buf[32] = "";

	assert_ok(vmm_read(vm, HERE, buf, strlen(text), &err));
	assert_string_equal(buf, text);
}

/* That vm is what original() was. */
static void check(struct vmm *vm)
{
	holds(vm, "original");
	assert_int_equal(reg(vm, CORE_X(5)), 0x5555);
	assert_int_equal(reg(vm, REG_CSR(2)), 0x1234);
	assert_int_equal(rig_read(rig_inside(vm), MAP_UART + 7, 1), 0x77);
}

static struct vmm_snap *take(struct vmm *vm)
{
	struct vmm_snap *s;

	assert_ok(vmm_snap_take(&s, vm, &err));
	assert_int_equal(vmm_state(vm), VMM_PAUSED);
	return s;
}

static struct vmm *cloned(struct vmm_snap *s)
{
	struct vmm *vm;

	assert_ok(vmm_restore(&vm, s, NULL, &err));
	assert_int_equal(vmm_state(vm), VMM_NEW);
	return vm;
}

static void test_clone(void **state)
{
	int before = fds();
	struct vmm *vm = original(), *a, *b;
	struct vmm_snap *s = take(vm);

	(void)state;
	/* The original goes on; its snapshot does not. */
	assert_ok(vmm_write(vm, HERE, "changed!", 8, &err));
	assert_ok(vmm_start(vm, &err));
	a = cloned(s);
	b = cloned(s);
	check(a);
	check(b);
	assert_ok(vmm_write(a, HERE, "clone a!", 8, &err));
	holds(b, "original");
	holds(vm, "changed!");
	/* They run, each for itself. */
	assert_ok(vmm_start(a, &err));
	assert_ok(vmm_start(b, &err));
	rig_event(a, VMM_EV_DOORBELL);
	rig_event(b, VMM_EV_DOORBELL);
	assert_ok(vmm_pause(a, &err));
	holds(a, "clone a!");
	vmm_free(vm);
	vmm_snap_free(s);			/* before the machines made of it */
	assert_ok(vmm_stop(b, &err));
	assert_ok(vmm_reset(b, &err));		/* back to it all the same */
	check(b);
	vmm_free(b);
	vmm_free(a);
	assert_int_equal(fds(), before);
}

/* One that is held goes back in place, if KVM can make a vCPU as new: there nothing is left
   of what it was. */
static void test_in_place(void **state)
{
	struct vmm *vm = original(), *a;
	struct vmm_snap *s = take(vm);
	const uint32_t cfg = 6, target = 1 << 18 | 5;
	const uint64_t pattern = 0x123456789abcdef;
	uint64_t gpa, fp = REG_RISCV | REG_U64 | 0x06000007;
	void *hva;
	unsigned int vms;
	uint32_t v;
	int i, aia;

	(void)state;
	vmm_free(vm);
	for (i = 0; i < 3; i++) {
		fake.missing_cap = i == 2 ? KVM_CAP_MP_INIT : 0;
		a = cloned(s);
		vms = fake.vms;
		assert_ok(vmm_start(a, &err));
		rig_event(a, VMM_EV_DOORBELL);
		assert_ok(i == 1 ? vmm_stop(a, &err) : vmm_pause(a, &err));
		assert_ok(vmm_write(a, HERE, "clone a!", 8, &err));
		assert_ok(vmm_write(a, HERE + 65536, "was zero", 8, &err));
		/* What the snapshot has as zero, and a fresh vCPU, too. */
		assert_int_equal(kvm_reg_set(vcpu0(a), fp, &pattern), 0);
		aia = fake_aia(fake_vm());
		assert_int_equal(kvm_attr_set(aia, 3, 0x4 + 4 * 20, &cfg), 0);
		assert_int_equal(kvm_attr_set(aia, 3, 0x3004 + 4 * 20, &target), 0);
		assert_int_equal(kvm_attr_set(aia, 4, 0xc0, &pattern), 0);
		assert_ok(vmm_reset(a, &err));
		assert_int_equal(vmm_state(a), VMM_NEW);
		assert_int_equal(fake.vms, i == 0 ? vms : vms + 1);
		/* With the page tables that it has now. */
		for (v = 0; v < 2; v++)
			assert_int_equal(fake_vcpu(fake_vm(), v)->fences, i == 0);
		fake_slot(fake_vm(), &gpa, &hva);
		check(a);
		assert_int_equal(reg(a, fp), 0);
		holds(a, "original");
		assert_int_equal(*(uint64_t *)((uint8_t *)hva + (HERE + 65536 - MAP_RAM)), 0);
		aia = fake_aia(fake_vm());
		assert_int_equal(kvm_attr_get(aia, 3, 0x4 + 4 * 20, &v), 0);
		assert_int_equal(v, 0);
		assert_int_equal(kvm_attr_get(aia, 3, 0x3004 + 4 * 20, &v), 0);
		assert_int_equal(v, 0);
		assert_ok(vmm_start(a, &err));
		rig_event(a, VMM_EV_DOORBELL);
		vmm_free(a);
	}
	vmm_snap_free(s);
}

/* A machine that cannot call us is not sent on errands, from which it would not come back. */
static void test_no_errands(void **state)
{
	struct vmm_restore_config how = VMM_RESTORE_INIT;
	const uint64_t vendor = 1 << SBI_VENDOR;
	struct vmm *vm, *a;
	struct vmm_snap *s;
	unsigned int vms;

	(void)state;
	fake.guest = NULL;
	vm = rig_vmm(1);
	assert_int_equal(kvm_reg_set(vcpu0(vm), REG_SBI_OFF(0), &vendor), 0);
	assert_ok(vmm_start(vm, &err));
	assert_ok(vmm_pause(vm, &err));
	s = take(vm);
	how.flags = VMM_POPULATE;
	assert_ok(vmm_restore(&a, s, &how, &err));
	vms = fake.vms;
	assert_ok(vmm_start(a, &err));
	assert_ok(vmm_pause(a, &err));
	assert_ok(vmm_reset(a, &err));
	assert_int_equal(fake.vms, vms + 1);
	assert_ok(vmm_start(a, &err));
	vmm_free(a);
	vmm_free(vm);
	vmm_snap_free(s);
}

static struct {
	int	handled, early, deaf;	/* atomic */
} genid_guest;

/* Hart 1 has interrupts off, then takes identity 5, handles it, and has them on; the other
   tells whether it ran before that. */
static int hears_late(struct fake_vcpu *v)
{
	if (v->id == 0) {
		if (!__atomic_load_n(&genid_guest.handled, __ATOMIC_SEQ_CST))
			__atomic_store_n(&genid_guest.early, 1, __ATOMIC_SEQ_CST);
		return rig_rings(v);
	}
	if (__atomic_load_n(&genid_guest.deaf, __ATOMIC_SEQ_CST))
		return FAKE_AGAIN;
	if (++v->step == 5)
		fake_claim(v, 5);
	if (v->step == 10) {
		__atomic_store_n(&genid_guest.handled, 1, __ATOMIC_SEQ_CST);
		fake_interrupts(v, 1);
	}
	return FAKE_NAP;
}

/* No hart of a clone runs before the one that hears of the new generation has handled it;
   but for one that never does, nobody waits for long. */
static void test_lead(void **state)
{
	const uint32_t rising = 4, target = 1 << 18 | 5, line = 1u << IRQ_GENID, on = 0x100;
	const uint64_t identity = 1 << 5, deliver = 1;
	struct vmm_restore_config how = VMM_RESTORE_INIT;
	struct vmm_event ev = { .type = VMM_EV_NONE };
	struct vmm *vm, *a;
	struct vmm_snap *s;
	int i, k, aia;

	(void)state;
	fake.boot_all = 1;
	vm = original();
	aia = fake_aia(fake_vm());
	assert_int_equal(kvm_attr_set(aia, 3, 4 * IRQ_GENID, &rising), 0);
	assert_int_equal(kvm_attr_set(aia, 3, 0x3000 + 4 * IRQ_GENID, &target), 0);
	assert_int_equal(kvm_attr_set(aia, 3, 0x1e00, &line), 0);
	assert_int_equal(kvm_attr_set(aia, 3, 0, &on), 0);
	assert_int_equal(kvm_attr_set(aia, 4, 1 << 12 | 0xc0, &identity), 0);
	assert_int_equal(kvm_attr_set(aia, 4, 1 << 12 | 0x70, &deliver), 0);
	s = take(vm);
	vmm_free(vm);
	fake.guest = hears_late;
	/* 0 and 1: in another VM, and in place.  2: deaf.  3: no clone. */
	for (i = 0; i < 4; i++) {
		memset(&genid_guest, 0, sizeof(genid_guest));
		genid_guest.deaf = i >= 2;
		how.flags = i == 3 ? VMM_RESUME : 0;
		ev.type = VMM_EV_NONE;
		if (i == 1)
			assert_ok(vmm_reset(a, &err));
		else
			assert_ok(vmm_restore(&a, s, &how, &err));
		/* Pauses give it no more time. */
		for (k = 0; i == 2 && k < 10; k++) {
			assert_ok(vmm_start(a, &err));
			usleep(60000);
			assert_ok(vmm_pause(a, &err));
		}
		assert_true(i != 2 || vmm_wait(a, 0, &ev, &err) == 0);
		assert_int_equal(ev.type, i == 2 ? VMM_EV_DOORBELL : VMM_EV_NONE);
		assert_ok(vmm_start(a, &err));
		if (i != 2)
			rig_event(a, VMM_EV_DOORBELL);
		assert_int_equal(__atomic_load_n(&genid_guest.early, __ATOMIC_SEQ_CST), i >= 2);
		if (i == 0)
			assert_ok(vmm_pause(a, &err));
		else
			vmm_free(a);
	}
	vmm_snap_free(s);
}

/* A clone has an identity of its own; one that goes on for the original has not. */
static void test_identity(void **state)
{
	struct vmm_restore_config how = VMM_RESTORE_INIT;
	struct vmm *vm = original(), *a, *b, *same;
	struct vmm_snap *s = take(vm);

	(void)state;
	a = cloned(s);
	assert_int_equal(fake_pulses(fake_vm(), IRQ_GENID), 1);
	b = cloned(s);
	assert_memory_not_equal(genid(vm), genid(a), 16);
	assert_memory_not_equal(genid(vm), genid(b), 16);
	assert_memory_not_equal(genid(a), genid(b), 16);
	how.flags = VMM_RESUME;
	assert_ok(vmm_restore(&same, s, &how, &err));
	assert_memory_equal(genid(vm), genid(same), 16);
	assert_int_equal(fake_pulses(fake_vm(), IRQ_GENID), 0);
	vmm_free(same);
	/* Taken back to its snapshot it is another one again. */
	memcpy(genid(b), genid(a), 16);
	assert_ok(vmm_reset(a, &err));
	assert_memory_not_equal(genid(a), genid(b), 16);
	assert_memory_not_equal(genid(a), genid(vm), 16);
	vmm_free(a);
	vmm_free(b);
	vmm_free(vm);
	vmm_snap_free(s);
}

/* The guest's time stands still from the pause on, and goes on from there. */
static void test_time(void **state)
{
	struct vmm *vm = original(), *a;
	uint64_t t = reg(vm, TIMER_TIME), then;
	struct vmm_snap *s = take(vm);

	(void)state;
	nap_ms(100);
	a = cloned(s);
	assert_ok(vmm_start(a, &err));
	assert_ok(vmm_pause(a, &err));
	then = reg(a, TIMER_TIME);
	assert_in_range(then + fake.hz / 20, t, t + fake.hz / 20 + 5 * fake.hz);
	assert_ok(vmm_start(vm, &err));
	assert_ok(vmm_pause(vm, &err));
	assert_true(reg(vm, TIMER_TIME) + fake.hz / 20 >= t);
	vmm_free(a);
	vmm_free(vm);
	vmm_snap_free(s);
}

/* KVM works out from an interrupt file what is pending in sip, and forgets that when
   sip is written: the file comes behind. */
static void test_order(void **state)
{
	const uint64_t seip = 1 << 9, on = 1, eie0 = 0xc0, eidelivery = 0x70;
	struct { struct irqchip chip; struct machine *m; int fd; } *aia;
	struct vmm *vm = original(), *a;
	struct vmm_snap *s;

	(void)state;
	aia = (void *)rig_inside(vm)->irqchip;
	assert_int_equal(kvm_reg_set(vcpu0(vm), CSR_SIP, &seip), 0);
	assert_int_equal(kvm_attr_set(aia->fd, 4, eie0, &seip), 0);
	assert_int_equal(kvm_attr_set(aia->fd, 4, eidelivery, &on), 0);
	s = take(vm);
	a = cloned(s);
	assert_int_equal(reg(a, CSR_SIP), seip);
	assert_int_equal(fake.violations, 0);
	/* The other way round is found. */
	assert_int_equal(kvm_reg_set(vcpu0(a), CSR_SIP, &seip), 0);
	assert_int_equal(fake.violations, 1);
	fake.violations = 0;
	vmm_free(a);
	vmm_free(vm);
	vmm_snap_free(s);
}

/* Without Sstc KVM counts from the guest's time: that is there before (rig). */
static void test_timers(void **state)
{
	const uint64_t due = 1000000, now = 1000;
	struct vmm *vm, *a;
	struct vmm_snap *s;

	(void)state;
	fake.isa[0] &= ~(1ull << ISA_SSTC);
	vm = original();
	assert_int_equal(kvm_reg_set(vcpu0(vm), TIMER_TIME, &now), 0);
	assert_int_equal(kvm_reg_set(vcpu0(vm), TIMER_COMPARE, &due), 0);
	s = take(vm);
	a = cloned(s);
	assert_ok(vmm_start(a, &err));
	assert_ok(vmm_pause(a, &err));
	assert_int_equal(reg(a, TIMER_COMPARE), due);
	assert_int_equal(reg(a, TIMER_STATE), 1);
	assert_ok(vmm_reset(a, &err));
	assert_ok(vmm_start(a, &err));
	vmm_free(a);
	vmm_free(vm);
	vmm_snap_free(s);
}

/* Devices are there; the same calls put something behind them. */
static void test_devices(void **state)
{
	struct vmm *vm = original(), *a;
	struct vmm_snap *s = take(vm);
	char c;
	int p[2];

	(void)state;
	vmm_free(vm);
	assert_int_equal(pipe2(p, O_CLOEXEC), 0);
	a = cloned(s);
	assert_ok(vmm_add_serial(a, -1, p[1], &err));
	assert_ok(vmm_add_rng(a, "rng0", &err));
	assert_fails(vmm_add_rng(a, "rng1", &err), VMM_EINVAL, "no rng device rng1");
	assert_fails(vmm_add_console(a, "rng0", -1, -1, &err), VMM_EINVAL,
		     "no console device rng0");
	assert_fails(vmm_add_balloon(a, "b", &err), VMM_EINVAL, "no balloon device b");
	rig_write(rig_inside(a), MAP_UART, 1, 'c');
	assert_int_equal(read(p[0], &c, 1), 1);
	assert_int_equal(c, 'c');
	assert_ok(vmm_start(a, &err));
	assert_ok(vmm_stop(a, &err));
	assert_ok(vmm_reset(a, &err));		/* keeps what is behind them */
	rig_write(rig_inside(a), MAP_UART, 1, 'd');
	assert_int_equal(read(p[0], &c, 1), 1);
	assert_int_equal(c, 'd');
	vmm_free(a);
	vmm_snap_free(s);
	close(p[0]);
	close(p[1]);
}

static void *connects(void *arg)
{
	struct vmm_error e;
	int fd;

	/* There is no guest to answer. */
	assert_int_not_equal(vmm_connect(arg, 7, 20000, &fd, &e), 0);
	return NULL;
}

/* Calls that wait for a device are there still when its machine is taken back. */
static void test_reset_under_calls(void **state)
{
	struct vmm *vm, *a;
	struct vmm_snap *s;
	pthread_t t[4];
	int i, k;

	(void)state;
	fake.guest = rig_rings;
	vm = rig_vmm(1);
	assert_ok(vmm_add_vsock(vm, 5, &err));
	assert_ok(vmm_start(vm, &err));
	assert_ok(vmm_pause(vm, &err));
	s = take(vm);
	a = cloned(s);
	for (k = 0; k < 3; k++) {
		assert_ok(vmm_start(a, &err));
		for (i = 0; i < 4; i++)
			pthread_create(&t[i], NULL, connects, a);
		usleep(20000);
		assert_ok(vmm_pause(a, &err));
		for (i = 0; i < 60; i++) {
			assert_ok(vmm_reset(a, &err));
			usleep(2000);
		}
		for (i = 0; i < 4; i++)
			pthread_join(t[i], NULL);
	}
	vmm_free(a);
	vmm_free(vm);
	vmm_snap_free(s);
}

/* One of each: described once more, each has something behind it. */
static void add_all(struct vmm *vm, const char *disk, int net)
{
	assert_ok(vmm_add_serial(vm, -1, -1, &err));
	assert_ok(vmm_add_blk(vm, "disk", disk, VMM_OVERLAY, &err));
	assert_ok(vmm_add_rng(vm, "rng", &err));
	assert_ok(vmm_add_console(vm, "con", -1, -1, &err));
	assert_ok(vmm_add_balloon(vm, "balloon", &err));
	assert_ok(vmm_add_net(vm, "net", net, NULL, &err));
	assert_ok(vmm_add_vsock(vm, 5, &err));
}

static void test_every_device(void **state)
{
	int before = fds(), p[2], out;
	struct vmm *vm, *a;
	struct vmm_snap *s;

	(void)state;
	assert_int_equal(truncate(path, 1 << 20), 0);
	assert_int_equal(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, p), 0);
	fake.guest = rig_rings;
	vm = rig_vmm(1);
	add_all(vm, path, p[0]);
	assert_ok(vmm_balloon(vm, "balloon", MiB, &err));
	assert_fails(vmm_balloon(vm, "rng", MiB, &err), VMM_EINVAL, "no balloon rng");
	assert_ok(vmm_start(vm, &err));
	rig_event(vm, VMM_EV_DOORBELL);
	assert_ok(vmm_pause(vm, &err));
	s = take(vm);
	a = cloned(s);
	add_all(a, path, p[0]);
	assert_fails(vmm_add_net(a, "disk", p[0], NULL, &err), VMM_EINVAL, "no net device disk");
	assert_ok(vmm_start(a, &err));
	rig_event(a, VMM_EV_DOORBELL);
	/* The guest drives none of them: nobody listens. */
	assert_fails(vmm_connect(a, 1, 10, &out, &err), err.code, "");
	assert_int_equal(out, -1);
	assert_ok(vmm_listen(a, 1024, &out, &err));
	close(out);
	assert_ok(vmm_stop(a, &err));
	assert_ok(vmm_reset(a, &err));
	assert_ok(vmm_start(a, &err));
	rig_event(a, VMM_EV_DOORBELL);
	vmm_free(a);
	/* Without that the disk is looked for where it was. */
	a = cloned(s);
	assert_ok(vmm_start(a, &err));
	vmm_free(a);
	unlink(path);
	a = cloned(s);
	assert_fails(vmm_start(a, &err), VMM_ESYS, path);
	assert_int_equal(vmm_state(a), VMM_NEW);
	vmm_free(a);
	vmm_snap_free(s);
	vmm_free(vm);
	close(p[0]);
	close(p[1]);
	assert_int_equal(fds(), before);
}

static void test_no_serial(void **state)
{
	struct vmm *vm, *a;
	struct vmm_snap *s;

	(void)state;
	vm = rig_vmm(1);
	assert_ok(vmm_start(vm, &err));
	assert_ok(vmm_pause(vm, &err));
	s = take(vm);
	a = cloned(s);
	assert_fails(vmm_add_serial(a, -1, -1, &err), VMM_EINVAL, "no serial port");
	vmm_free(a);
	vmm_free(vm);
	vmm_snap_free(s);
}

static void test_file(void **state)
{
	int before = fds(), status;
	struct vmm *vm = original(), *a;
	struct vmm_snap *s = take(vm), *f;
	pid_t pid;

	(void)state;
	assert_ok(vmm_snap_write(s, path, NULL, &err));
	assert_ok(vmm_snap_verify(path, &err));
	vmm_snap_free(s);
	vmm_free(vm);
	assert_int_equal(fds(), before);
	pid = fork();
	if (pid == 0) {
		/* Another process: no machine of ours is in it. */
		if (vmm_snap_open(&f, path, &err) || vmm_restore(&a, f, NULL, &err))
			_exit(1);
		if (reg(a, CORE_X(5)) != 0x5555 || vmm_state(a) != VMM_NEW)
			_exit(2);
		vmm_snap_free(f);
		vmm_free(a);
		_exit(fds() == before ? 0 : 3);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	/* The file can go once the first machine has been made of it. */
	assert_ok(vmm_snap_open(&f, path, &err));
	a = cloned(f);
	unlink(path);
	vmm_free(a);
	a = cloned(f);
	check(a);
	assert_ok(vmm_start(a, &err));
	rig_event(a, VMM_EV_DOORBELL);
	vmm_snap_free(f);
	vmm_free(a);
	assert_int_equal(fds(), before);
}

static void *receive(void *arg)
{
	char buf[65536];
	int fd = open(path, O_WRONLY | O_TRUNC | O_CLOEXEC);
	ssize_t n;

	while ((n = read(*(int *)arg, buf, sizeof(buf))) > 0)
		if (write(fd, buf, (size_t)n) != n)
			break;
	close(fd);
	return NULL;
}

static void test_send(void **state)
{
	struct vmm *vm = original(), *a;
	struct vmm_snap *s = take(vm), *f;
	pthread_t t;
	int p[2];

	(void)state;
	assert_int_equal(pipe2(p, O_CLOEXEC), 0);
	pthread_create(&t, NULL, receive, &p[0]);
	assert_ok(vmm_snap_send(s, p[1], NULL, &err));
	close(p[1]);
	pthread_join(t, NULL);
	close(p[0]);
	vmm_snap_free(s);
	vmm_free(vm);
	assert_ok(vmm_snap_verify(path, &err));
	assert_ok(vmm_snap_open(&f, path, &err));
	a = cloned(f);
	check(a);
	vmm_free(a);
	vmm_snap_free(f);
}

static int stop_it(void *arg, uint64_t done, uint64_t total)
{
	(void)done;
	(void)total;
	return ++*(int *)arg > 0;
}

static void test_arguments(void **state)
{
	struct vmm_write_config write_how = VMM_WRITE_INIT;
	struct {
		struct vmm_restore_config c;
		uint8_t		tail[16];
	} how = { .c = VMM_RESTORE_INIT };
	struct vmm *vm = original(), *a = (struct vmm *)(uintptr_t)1;
	struct vmm_snap *s = take(vm), *f = (struct vmm_snap *)(uintptr_t)1;
	int before = fds(), asked = 0, fd;
	char was[6] = "";

	(void)state;
	assert_fails(vmm_restore(NULL, s, NULL, &err), VMM_EINVAL, "nowhere");
	assert_fails(vmm_restore(&a, NULL, NULL, &err), VMM_EINVAL, "no snapshot");
	how.c.flags = 0x80;
	assert_fails(vmm_restore(&a, s, &how.c, &err), VMM_EINVAL, "flags 0x80");
	assert_null(a);
	how.c.flags = 0;
	how.c.irqchip = 9;
	assert_fails(vmm_restore(&a, s, &how.c, &err), VMM_EINVAL, "interrupt controller 9");
	how.c.irqchip = VMM_IRQCHIP_AIA_HWACCEL;
	assert_fails(vmm_restore(&a, s, &how.c, &err), VMM_ENOTSUP, "guest interrupt files");
	how.c.irqchip = 0;
	how.c.size = sizeof(how);
	assert_ok(vmm_restore(&a, s, &how.c, &err));
	vmm_free(a);
	how.tail[3] = 1;
	assert_fails(vmm_restore(&a, s, &how.c, &err), VMM_EINVAL,
		     "struct vmm_restore_config: byte");
	assert_null(a);
	assert_fails(vmm_snap_open(NULL, path, &err), VMM_EINVAL, "nowhere");
	assert_fails(vmm_snap_open(&f, NULL, &err), VMM_EINVAL, "no path");
	assert_fails(vmm_snap_open(&f, "/nonexistent/s", &err), VMM_ESYS, "/nonexistent/s");
	assert_null(f);
	assert_fails(vmm_snap_open(&f, "/dev/null", &err), VMM_EFORMAT, "/dev/null");
	assert_fails(vmm_snap_verify(NULL, &err), VMM_EINVAL, "no path");
	assert_fails(vmm_snap_verify("/nonexistent/s", &err), VMM_ESYS, "/nonexistent/s");
	assert_fails(vmm_snap_write(NULL, path, NULL, &err), VMM_EINVAL, "no snapshot");
	assert_fails(vmm_snap_write(s, NULL, NULL, &err), VMM_EINVAL, "nowhere");
	assert_fails(vmm_snap_send(s, -1, NULL, &err), VMM_EINVAL, "nowhere");
	assert_fails(vmm_snap_send(s, 800, NULL, &err), VMM_ESYS, "");
	assert_fails(vmm_snap_write(s, "/nonexistent/s", NULL, &err), VMM_ESYS, "/nonexistent/s");
	write_how.flags = 2;
	assert_fails(vmm_snap_write(s, path, &write_how, &err), VMM_EINVAL, "flags 0x2");
	write_how.flags = 0;
	/* Given up on the way: what was at that path is there. */
	fd = open(path, O_WRONLY | O_TRUNC | O_CLOEXEC);
	assert_int_equal(write(fd, "was it", 6), 6);
	close(fd);
	write_how.progress = stop_it;
	write_how.progress_arg = &asked;
	assert_fails(vmm_snap_write(s, path, &write_how, &err), VMM_ESTATE, "");
	assert_true(asked > 0);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	assert_int_equal(read(fd, was, 6), 6);
	close(fd);
	assert_memory_equal(was, "was it", 6);
	assert_int_equal(fds(), before + 1);		/* the snapshot has KVM open */
	vmm_snap_free(s);
	vmm_free(vm);
}

/* A host that lacks what the snapshot needs says so, and keeps nothing. */
static void test_other_host(void **state)
{
	struct vmm *vm = original(), *a;
	struct vmm_snap *s = take(vm);
	int before;

	(void)state;
	vmm_free(vm);
	before = fds();
	fake.vlenb = 16;
	assert_fails(vmm_restore(&a, s, NULL, &err), VMM_EVERSION, "vlenb");
	fake.vlenb = 32;
	fake.hz = 1;
	assert_fails(vmm_restore(&a, s, NULL, &err), VMM_EVERSION, "timer frequency");
	fake.hz = 10000000;
	fake.isa[0] &= ~(1ull << 15);
	assert_fails(vmm_restore(&a, s, NULL, &err), VMM_EVERSION, "ISA extensions");
	fake.isa[0] |= 1ull << 15;
	fake.aia = 0;
	assert_fails(vmm_restore(&a, s, NULL, &err), VMM_ENOTSUP, "no in-kernel AIA");
	fake.aia = 1;
	assert_null(a);
	assert_int_equal(fds(), before + 1);		/* the snapshot has KVM open */
	a = cloned(s);
	check(a);
	vmm_free(a);
	vmm_snap_free(s);
}

/* A clone's clone, and so on: each is what it was frozen as. */
static void test_generations(void **state)
{
	struct vmm *vm = original(), *next;
	struct vmm_snap *s;
	char text[9];
	int i, before;

	(void)state;
	before = fds();
	for (i = 0; i < 6; i++) {
		snprintf(text, sizeof(text), "round %c.", (char)('a' + i));
		assert_ok(vmm_write(vm, HERE, text, 8, &err));
		s = take(vm);
		next = cloned(s);
		vmm_snap_free(s);
		vmm_free(vm);
		vm = next;
		holds(vm, text);
		assert_ok(vmm_write(vm, HERE + 4096 * (uint64_t)(i + 1), text, 8, &err));
		assert_ok(vmm_start(vm, &err));
		rig_event(vm, VMM_EV_DOORBELL);
		assert_ok(vmm_pause(vm, &err));
	}
	for (i = 0; i < 6; i++) {
		char seen[9] = "";

		snprintf(text, sizeof(text), "round %c.", (char)('a' + i));
		assert_ok(vmm_read(vm, HERE + 4096 * (uint64_t)(i + 1), seen, 8, &err));
		assert_string_equal(seen, text);
	}
	assert_in_range(fds(), before - 2, before + 2);
	vmm_free(vm);
}

static uint64_t number_at(struct vmm *vm, uint64_t gpa)
{
	uint64_t n = 0;

	assert_ok(vmm_read(vm, gpa, &n, sizeof(n), &err));
	return n;
}

/* Children of a clone that runs, which has changed few pages or most of them: all are
   as it was, also when reset, and it goes on alone. */
static void test_children(void **state)
{
	const uint64_t end = MAP_RAM + 4 * MiB;
	struct vmm *vm = original(), *parent, *child[3], *grandchild;
	struct vmm_snap *s = take(vm), *forked;
	int before = fds(), i;
	uint64_t gpa, n, step;

	(void)state;
	for (step = MiB; step >= 4096; step /= 256) {
		parent = cloned(s);
		for (gpa = MAP_RAM; gpa < end; gpa += step)
			assert_ok(vmm_write(parent, gpa, &gpa, sizeof(gpa), &err));
		assert_ok(vmm_start(parent, &err));
		assert_ok(vmm_pause(parent, &err));
		forked = take(parent);
		for (i = 0; i < 3; i++)
			child[i] = cloned(forked);
		n = 1;
		assert_ok(vmm_write(parent, MAP_RAM, &n, sizeof(n), &err));
		assert_ok(vmm_start(parent, &err));
		for (gpa = MAP_RAM; gpa < end; gpa += step)
			for (i = 0; i < 3; i++)
				assert_int_equal(number_at(child[i], gpa), gpa);
		n = 2;
		assert_ok(vmm_write(child[0], MAP_RAM + MiB, &n, sizeof(n), &err));
		assert_ok(vmm_write(child[0], MAP_RAM + 4096, &n, sizeof(n), &err));
		assert_int_equal(number_at(child[1], MAP_RAM + MiB), MAP_RAM + MiB);
		/* Of a child in turn; then that one goes back to what it was. */
		assert_ok(vmm_start(child[0], &err));
		assert_ok(vmm_pause(child[0], &err));
		vmm_free(parent);
		vmm_snap_free(forked);
		forked = take(child[0]);
		assert_ok(vmm_reset(child[0], &err));
		assert_int_equal(number_at(child[0], MAP_RAM + MiB), MAP_RAM + MiB);
		grandchild = cloned(forked);
		assert_int_equal(number_at(grandchild, MAP_RAM + MiB), 2);
		assert_int_equal(number_at(grandchild, MAP_RAM + 4096), 2);
		assert_int_equal(number_at(grandchild, MAP_RAM), MAP_RAM);
		/* Put together as a whole; those that exist do not mind. */
		assert_ok(vmm_snap_write(forked, path, NULL, &err));
		assert_ok(vmm_reset(grandchild, &err));
		assert_int_equal(number_at(grandchild, MAP_RAM + MiB), 2);
		vmm_free(grandchild);
		vmm_snap_free(forked);
		assert_ok(vmm_snap_open(&forked, path, &err));
		grandchild = cloned(forked);
		assert_int_equal(number_at(grandchild, MAP_RAM + 4096), 2);
		assert_int_equal(number_at(grandchild, MAP_RAM), MAP_RAM);
		vmm_free(grandchild);
		vmm_snap_free(forked);
		for (i = 0; i < 3; i++)
			vmm_free(child[i]);
	}
	vmm_snap_free(s);
	assert_int_equal(fds(), before - 1);
	vmm_free(vm);
}

struct cloner {
	pthread_t	t;
	struct vmm_snap	*s;
	int		wrong;
};

static void *cloning(void *arg)
{
	struct cloner *c = arg;
	struct vmm_error e;
	struct vmm_event ev;
	struct vmm *vm;
	char buf[8];
	int i;

	for (i = 0; i < (SLOW ? 5 : 20) && !c->wrong; i++) {
		c->wrong = vmm_restore(&vm, c->s, NULL, &e);
		if (c->wrong)
			break;
		c->wrong = vmm_read(vm, HERE, buf, 8, &e) || memcmp(buf, "original", 8) != 0 ||
			   vmm_write(vm, HERE, "whatever", 8, &e) || vmm_start(vm, &e) ||
			   vmm_wait(vm, 20000, &ev, &e) || ev.type != VMM_EV_DOORBELL;
		vmm_free(vm);
	}
	vmm_snap_free(c->s);		/* the last one to go frees it */
	return NULL;
}

/* Cloned by several threads, each of which holds it open by a file of its own,
   and one that is shared. */
static void test_threads(void **state)
{
	int before = fds(), i;
	struct vmm *vm = original();
	struct vmm_snap *s = take(vm);
	struct cloner c[3] = { 0 };

	(void)state;
	assert_ok(vmm_snap_write(s, path, NULL, &err));
	for (i = 0; i < 3; i++) {
		c[i].s = s;
		if (i)
			assert_ok(vmm_snap_open(&c[i].s, path, &err));
		pthread_create(&c[i].t, NULL, cloning, &c[i]);
	}
	for (i = 0; i < 3; i++) {
		pthread_join(c[i].t, NULL);
		assert_int_equal(c[i].wrong, 0);
	}
	vmm_free(vm);
	assert_int_equal(fds(), before);
}

/* Damage anywhere is found by who looks for it; a machine is made of what is
   whole, or not at all. */
static void test_damage(void **state)
{
	struct vmm *vm = original(), *a;
	struct vmm_restore_config how = VMM_RESTORE_INIT;
	struct vmm_snap *s = take(vm), *f;
	uint8_t byte;
	int fd, before, rc, refused = 0;
	off_t size, at;

	(void)state;
	assert_ok(vmm_snap_write(s, path, NULL, &err));
	vmm_snap_free(s);
	vmm_free(vm);
	how.memory = VMM_MEM_EAGER;
	before = fds();
	fd = open(path, O_RDWR | O_CLOEXEC);
	size = lseek(fd, 0, SEEK_END);
	for (at = 0; at < size; at += SLOW ? 31 : 5) {
		assert_int_equal(pread(fd, &byte, 1, at), 1);
		byte ^= 0x10;
		assert_int_equal(pwrite(fd, &byte, 1, at), 1);
		memset(&err, 0, sizeof(err));
		rc = vmm_snap_open(&f, path, &err);
		if (rc == 0) {
			rc = vmm_restore(&a, f, &how, &err);
			if (rc == 0) {
				check(a);
				vmm_free(a);
			}
			vmm_snap_free(f);
		}
		if (rc && rc != VMM_EFORMAT && rc != VMM_EVERSION)
			fail_msg("byte %ld of %ld: %s: %s", (long)at, (long)size, vmm_strerror(rc),
				 err.message);
		refused += rc != 0;
		rc = vmm_snap_verify(path, &err);
		if (rc != VMM_EFORMAT && rc != VMM_EVERSION)
			fail_msg("byte %ld of %ld is wrong, and the file is well: %s", (long)at,
				 (long)size, vmm_strerror(rc));
		byte ^= 0x10;
		assert_int_equal(pwrite(fd, &byte, 1, at), 1);
		assert_int_equal(fds(), before + 1);
	}
	close(fd);
	assert_true(refused > 80);
	assert_ok(vmm_snap_verify(path, &err));
}

/* The file of a snapshot of original(), a page of which, at HERE - MiB, is damaged. */
static void damaged_file(void)
{
	struct vmm *vm = original();
	struct vmm_snap *s;
	uint8_t buf[4096];
	off_t at, size;
	int fd;

	memset(buf, 0, sizeof(buf));
	getrandom(buf, sizeof(buf), 0);
	assert_ok(vmm_write(vm, HERE - MiB, buf, sizeof(buf), &err));
	s = take(vm);
	assert_ok(vmm_snap_write(s, path, NULL, &err));
	vmm_snap_free(s);
	vmm_free(vm);
	/* Noise is stored as it is: find it, and change it. */
	fd = open(path, O_RDWR | O_CLOEXEC);
	size = lseek(fd, 0, SEEK_END);
	for (at = 0; at < size; at++) {
		uint8_t there[16];

		assert_true(pread(fd, there, 16, at) > 0);
		if (memcmp(there, buf + 1024, 16) == 0)
			break;
	}
	assert_true(at < size);
	assert_int_equal(pwrite(fd, "damage", 6, at), 6);
	close(fd);
}

/* RAM that is damaged stops the machine that touches it, and no other. */
static void test_lazy_damage(void **state)
{
	struct vmm_restore_config how = VMM_RESTORE_INIT;
	struct vmm *a, *b;
	struct vmm_snap *s, *f;
	uint8_t buf[1];

	(void)state;
	damaged_file();
	assert_ok(vmm_snap_open(&f, path, &err));
	fake.guest = NULL;
	assert_ok(vmm_restore(&a, f, NULL, &err));
	assert_ok(vmm_restore(&b, f, NULL, &err));
	vmm_snap_free(f);
	assert_ok(vmm_start(a, &err));
	assert_ok(vmm_start(b, &err));
	assert_int_equal(vmm_read(a, HERE - MiB, buf, 1, &err), VMM_EFORMAT);
	assert_non_null(strstr(err.message, "is damaged"));
	assert_non_null(strstr(err.message, path));
	rig_event(a, VMM_EV_FAULT);
	assert_int_equal(vmm_state(a), VMM_BROKEN);
	holds(b, "original");
	assert_int_equal(vmm_state(b), VMM_RUNNING);
	vmm_free(a);
	assert_ok(vmm_pause(b, &err));
	/* A snapshot of it stands on what is damaged: all of it cannot be had. */
	s = take(b);
	vmm_free(b);
	assert_fails(vmm_snap_write(s, "/dev/shm/test_clone", NULL, &err), VMM_EFORMAT, path);
	how.memory = VMM_MEM_EAGER;
	assert_fails(vmm_restore(&a, s, &how, &err), VMM_EFORMAT, path);
	vmm_snap_free(s);
}

/* In a child of fork() nobody would serve what a machine lacks: none is made there, in any way,
   and nothing of the parent's is waited for. */
static void test_lazy_fork(void **state)
{
	struct vmm_restore_config how = VMM_RESTORE_INIT;
	struct vmm *a, *b;
	struct vmm_snap *f;
	int status;
	pid_t pid;

	(void)state;
	damaged_file();				/* so that it is lacking for ever */
	assert_ok(vmm_snap_open(&f, path, &err));
	assert_ok(vmm_restore(&a, f, NULL, &err));
	pid = fork();
	if (pid == 0) {
		alarm(10);
		if (vmm_restore(&b, f, &how, &err) != VMM_ESTATE)
			_exit(1);
		how.memory = VMM_MEM_EAGER;
		if (vmm_restore(&b, f, &how, &err) != VMM_ESTATE)
			_exit(2);
		vmm_free(a);
		vmm_snap_free(f);
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	check(a);
	vmm_free(a);
	/* Freed by the child, without a machine. */
	pid = fork();
	if (pid == 0) {
		alarm(10);
		vmm_snap_free(f);
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	vmm_snap_free(f);
}

static int heard;

static void hears(void *arg, int level, const char *line)
{
	(void)arg;
	heard |= level == VMM_LOG_WARN && strstr(line, "userfaultfd") != NULL;
}

/* From now on this process has no userfaultfd, as in a container: not by its system
   call, nor, if dev is set, by the device.  0: it could not be done. */
static int forbid_userfaultfd(int dev)
{
	const struct sock_filter filter[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_userfaultfd, 4, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_ioctl, 0, 2),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[1])),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, dev ? _IO(0xaa, 0) : ~0u, 1, 0),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
	};
	const struct sock_fprog prog = { sizeof(filter) / sizeof(filter[0]),
					 (struct sock_filter *)(uintptr_t)filter };

	return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
	       prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog) == 0;
}

/* What a process that may not do all does; how it went is its exit status. */
static void child_restores(int way)
{
	struct vmm_restore_config how = VMM_RESTORE_INIT;
	struct vmm_host host = VMM_HOST_INIT;
	struct vmm_snap *f;
	struct vmm *a;
	int fd;

	/* Only root may have it, usually. */
	if (way == 0 && geteuid() == 0 && setuid(65534))
		_exit(1);
	if (way > 0 && !forbid_userfaultfd(way == 2))
		_exit(0);
	fd = uffd_open();
	if (way == 2)
		assert_int_equal(fd, -EPERM);
	how.log = hears;
	assert_ok(vmm_probe(&host, &err));
	assert_int_equal(host.lazy, fd >= 0);
	assert_non_null(strstr(host.lazy_note, fd >= 0 ? "userfaultfd is permitted" : "userfaultfd"));
	assert_ok(vmm_snap_open(&f, path, &err));
	assert_ok(vmm_restore(&a, f, &how, &err));
	check(a);
	vmm_free(a);
	vmm_snap_free(f);
	assert_int_equal(heard, fd < 0);
	_exit(0);
}

/* Without userfaultfd all of RAM is read at once; the log and vmm_probe() say so. */
static void test_not_lazy(void **state)
{
	struct vmm *vm = original();
	struct vmm_snap *s = take(vm);
	int status, way;
	pid_t pid;

	(void)state;
	assert_ok(vmm_snap_write(s, path, NULL, &err));
	vmm_snap_free(s);
	vmm_free(vm);
	chmod(path, 0644);
	for (way = 0; way < 3; way++) {
		pid = fork();
		if (pid == 0)
			child_restores(way);
		assert_int_equal(waitpid(pid, &status, 0), pid);
		assert_int_equal(status, 0);
	}
}

/* Where files must not be large a call fails that needs one; the program lives. */
static void child_with_limit(void)
{
	const struct rlimit small = { 1 << 20, 1 << 20 };
	struct vmm_snap *s;
	struct vmm *vm;
	sigset_t set;
	char disk[32];
	int fd = memfd_create("disk", 0);

	signal(SIGXFSZ, SIG_DFL);
	assert_int_equal(ftruncate(fd, 4 << 20), 0);
	snprintf(disk, sizeof(disk), "/proc/self/fd/%d", fd);
	vm = original();
	assert_ok(vmm_snap_open(&s, path, &err));
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
	assert_fails(vmm_restore(&vm, s, NULL, &err), VMM_ESYS, "File too large");
	assert_int_equal(err.os_errno, EFBIG);
	vm = original();
	assert_fails(vmm_snap_take(&s, vm, &err), VMM_ESYS, "File too large");
	vm = rig_vmm(1);
	assert_fails(vmm_add_blk(vm, "d", disk, VMM_OVERLAY, &err), VMM_ESYS, "File too large");
	assert_fails(mem_share(&rig_inside(vm)->mem, &err), VMM_ESYS, "File too large");
	assert_int_equal(pthread_sigmask(SIG_SETMASK, NULL, &set), 0);
	assert_int_equal(sigismember(&set, SIGXFSZ), 0);
	_exit(0);
}

static void test_file_limit(void **state)
{
	struct vmm *vm = original();
	struct vmm_snap *s = take(vm);
	int status;
	pid_t pid;

	(void)state;
	assert_ok(vmm_snap_write(s, path, NULL, &err));
	vmm_snap_free(s);
	vmm_free(vm);
	pid = fork();
	if (pid == 0)
		child_with_limit();
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}

int main(void)
{
#define T(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(test_clone), T(test_in_place), T(test_no_errands), T(test_lead),
		T(test_identity), T(test_time), T(test_order), T(test_timers),
		T(test_devices),
		T(test_every_device), T(test_reset_under_calls), T(test_no_serial),
		T(test_file), T(test_send), T(test_arguments), T(test_other_host),
		T(test_lazy_damage), T(test_lazy_fork), T(test_not_lazy), T(test_file_limit),
		T(test_generations), T(test_children), T(test_threads), T(test_damage),
	};

	time_limit(30);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
