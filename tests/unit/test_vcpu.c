/* SPDX-License-Identifier: MIT */
/*
 * test_vcpu.c - core/vcpu.c: what vCPUs leave the guest for, how they are held
 * and let go, and how a run ends; through the public interface.
 */
#include "rig.h"

static struct vmm_error err;
static struct vmm *vm;

static int teardown(void **state)
{
	vmm_free(vm);
	vm = NULL;
	return rig_teardown(state);
}

static void start(fake_guest guest, uint32_t vcpus)
{
	fake.guest = guest;
	vm = rig_vmm(vcpus);
	assert_ok(vmm_start(vm, &err));
}

static uint64_t exits(unsigned int kind)
{
	struct vmm_stats s = VMM_STATS_INIT;

	assert_ok(vmm_stat(vm, &s, &err));
	return s.exits[kind];
}

/* ---- Exits --------------------------------------------------------------------------- */

/* Reads the doorbell's magic number, over and over, and rings if it is wrong. */
static int reads_magic(struct fake_vcpu *v)
{
	if (v->step++ && v->value != VMM_GUEST_MAGIC_VALUE)
		return fake_write(v, VMM_GUEST_DOORBELL + VMM_GUEST_EXIT, 4, 1);
	return fake_read(v, VMM_GUEST_DOORBELL + VMM_GUEST_MAGIC, 4);
}

/* However often a guest is paused, each access is made once, and whole. */
static void test_completion(void **state)
{
	uint64_t last[3] = { 0 };
	struct fake_vcpu *v;
	struct vmm_event ev;
	uint32_t i;
	int round;

	(void)state;
	fake.boot_all = 1;
	start(reads_magic, 3);
	for (round = 0; round < 100; round++) {
		if (round % 3)
			nap_ms(1);
		assert_ok(vmm_pause(vm, &err));
		for (i = 0; i < 3; i++) {
			v = fake_vcpu(fake_vm(), i);
			assert_false(v->unfinished);
			assert_int_equal(v->begun, v->completed);
			assert_true(v->begun >= last[i]);
			last[i] = v->begun;
		}
		assert_ok(vmm_start(vm, &err));
	}
	assert_true(last[0] > 0 && last[1] > 0 && last[2] > 0);
	assert_ok(vmm_wait(vm, 0, &ev, &err));
	assert_int_equal(ev.type, VMM_EV_NONE);
	assert_int_equal(vmm_state(vm), VMM_RUNNING);
	assert_ok(vmm_pause(vm, &err));
	assert_int_equal(exits(VMM_EXIT_MMIO), fake_vcpu(fake_vm(), 0)->begun +
			 fake_vcpu(fake_vm(), 1)->begun + fake_vcpu(fake_vm(), 2)->begun);
}

/* Accesses of every width to where nobody is: 0, and dropped. */
static int touches_holes(struct fake_vcpu *v)
{
	static const uint64_t hole[] = { 0, 0x1000, 0x10000008, 0x10003000, 0x20000000, 0x7ffffff8,
					 0x100000000000, ~0ull - 7 };
	static const uint32_t len[] = { 1, 2, 4, 8 };
	uint64_t i = v->step / 2;

	if (v->step % 2 == 1 && v->value)
		return -EFAULT;			/* ends as VMM_EV_FAULT */
	if (i == 8 * 4)
		return fake_system(v, KVM_SYSTEM_EVENT_SHUTDOWN, 0);
	if (v->step++ % 2 == 0)
		return fake_read(v, hole[i / 4], len[i % 4]);
	return fake_write(v, hole[i / 4], len[i % 4], ~0ull);
}

static void test_holes(void **state)
{
	(void)state;
	start(touches_holes, 1);
	rig_event(vm, VMM_EV_SHUTDOWN);
	assert_int_equal(exits(VMM_EXIT_MMIO), 64);
}

static int mixes(struct fake_vcpu *v)
{
	switch (v->step++) {
	case 0:
		return fake_csr(v, 0x015);
	case 1:
		return v->value >> 30 == 2 ? fake_sbi(v, 0x4442434e, 2, 'x', 0, 0) : -EFAULT;
	case 2:
		return v->ret[0] ? -EFAULT : fake_sbi(v, 77, 0, 0, 0, 0);
	case 3:
		return v->ret[0] != (uint64_t)-2 ? -EFAULT : fake_read(v, MAP_RTC, 4);
	case 4:
		return fake_sbi(v, VMM_GUEST_SBI, VMM_GUEST_SBI_RING, 5, 0, 0);
	case 5:
		return -EINTR;			/* as after a stop and continue */
	case 6:
		return -EAGAIN;
	default:
		return fake_sbi(v, VMM_GUEST_SBI, VMM_GUEST_SBI_EXIT, 42, 0, 0);
	}
}

static void test_kinds(void **state)
{
	struct vmm_event ev;

	(void)state;
	start(mixes, 1);
	assert_int_equal(rig_event(vm, VMM_EV_DOORBELL).value, 5);
	ev = rig_event(vm, VMM_EV_SHUTDOWN);
	assert_int_equal(ev.value, 42);
	assert_int_equal(vmm_state(vm), VMM_STOPPED);
	assert_int_equal(exits(VMM_EXIT_CSR), 1);
	assert_int_equal(exits(VMM_EXIT_SBI), 4);
	assert_int_equal(exits(VMM_EXIT_MMIO), 1);
	assert_int_equal(exits(VMM_EXIT_SIGNAL), 2);
	assert_int_equal(exits(VMM_EXIT_OTHER), 0);
}

/* ---- Ends ---------------------------------------------------------------------------- */

static uint32_t end_type, end_who;
static uint64_t end_reason;
static int end_errno;

static int ends(struct fake_vcpu *v)
{
	if (v->id != end_who)
		return FAKE_SPIN;
	if (end_errno)
		return -end_errno;
	return fake_system(v, end_type, end_reason);
}

static void ends_as(uint32_t type, uint64_t reason, int os_errno, uint32_t event, int final)
{
	struct vmm_event ev, none;

	end_type = type;
	end_reason = reason;
	end_errno = os_errno;
	end_who = 1;
	fake.boot_all = 1;
	start(ends, 2);
	ev = rig_event(vm, event);
	assert_int_equal(ev.vcpu, 1);
	assert_true(ev.time_ns > 0);
	assert_int_equal(vmm_state(vm), final);
	assert_int_equal(ev.detail[0] != 0, event == VMM_EV_CRASH || event == VMM_EV_FAULT);
	/* It is the only one, and nothing is waited for. */
	assert_ok(vmm_wait(vm, -1, &none, &err));
	assert_int_equal(none.type, VMM_EV_NONE);
	vmm_free(vm);
	vm = NULL;
}

static void test_ends(void **state)
{
	(void)state;
	ends_as(KVM_SYSTEM_EVENT_SHUTDOWN, 0, 0, VMM_EV_SHUTDOWN, VMM_STOPPED);
	ends_as(KVM_SYSTEM_EVENT_RESET, 0, 0, VMM_EV_REBOOT, VMM_STOPPED);
	ends_as(KVM_SYSTEM_EVENT_CRASH, 0, 0, VMM_EV_CRASH, VMM_STOPPED);
	/* SBI 2.0, 10.1: whatever it asks for, because of a failure. */
	ends_as(KVM_SYSTEM_EVENT_SHUTDOWN, 1, 0, VMM_EV_CRASH, VMM_STOPPED);
	ends_as(KVM_SYSTEM_EVENT_RESET, 1, 0, VMM_EV_CRASH, VMM_STOPPED);
	/* What KVM cannot emulate is the guest's doing. */
	ends_as(0, 0, EOPNOTSUPP, VMM_EV_CRASH, VMM_STOPPED);
	ends_as(0, 0, ENXIO, VMM_EV_CRASH, VMM_STOPPED);
	/* The rest is the host's. */
	ends_as(0, 0, EFAULT, VMM_EV_FAULT, VMM_BROKEN);
	ends_as(0, 0, ENOMEM, VMM_EV_FAULT, VMM_BROKEN);
	ends_as(0, 0, 4000, VMM_EV_FAULT, VMM_BROKEN);	/* an errno without a name */
}

static uint32_t odd_reason;

static int odd_exit(struct fake_vcpu *v)
{
	v->run->exit_reason = odd_reason;
	v->run->fail_entry.hardware_entry_failure_reason = 0x600;
	return FAKE_EXIT;
}

static void test_odd_exits(void **state)
{
	static const uint32_t reasons[] = { KVM_EXIT_FAIL_ENTRY, KVM_EXIT_UNKNOWN,
					    KVM_EXIT_INTERNAL_ERROR, 4711 };
	struct vmm_event ev;
	unsigned int i;

	(void)state;
	for (i = 0; i < 4; i++) {
		odd_reason = reasons[i];
		start(odd_exit, 1);
		ev = rig_event(vm, VMM_EV_FAULT);
		assert_int_equal(vmm_state(vm), VMM_BROKEN);
		assert_int_equal(ev.value, i ? reasons[i] : 0x600);
		assert_non_null(strstr(ev.detail, i ? "unknown KVM exit" : "0x600"));
		vmm_free(vm);
	}
	vm = NULL;
}

/* Every vCPU ends the run at the same time: one event tells of it. */
static int all_end(struct fake_vcpu *v)
{
	return v->step++ < 50 ? fake_read(v, MAP_RTC, 4) :
	       fake_sbi(v, VMM_GUEST_SBI, VMM_GUEST_SBI_EXIT, v->id, 0, 0);
}

static void test_first_counts(void **state)
{
	struct vmm_event ev;
	int i;

	(void)state;
	fake.boot_all = 1;
	fake.guest = all_end;
	vm = rig_vmm(8);
	for (i = 0; i < 10; i++) {
		assert_ok(vmm_start(vm, &err));
		ev = rig_event(vm, VMM_EV_SHUTDOWN);
		assert_int_equal(ev.value, ev.vcpu);
		assert_ok(vmm_wait(vm, -1, &ev, &err));
		assert_int_equal(ev.type, VMM_EV_NONE);
		assert_ok(vmm_reset(vm, &err));
	}
}

/* A machine that is seen to be STOPPED has its last event queued: who waits for
   ever is not told that there is none. */
static int rings_and_ends(struct fake_vcpu *v)
{
	if (v->step++ < 3)
		return fake_sbi(v, VMM_GUEST_SBI, VMM_GUEST_SBI_RING, v->step, 0, 0);
	return fake_system(v, KVM_SYSTEM_EVENT_SHUTDOWN, 0);
}

static void test_wait_until_the_end(void **state)
{
	struct vmm_event ev;
	int i, n, stopped;

	(void)state;
	fake.guest = rings_and_ends;
	vm = rig_vmm(1);
	for (i = 0; i < (SLOW ? 100 : 400); i++) {
		assert_ok(vmm_start(vm, &err));
		for (n = 1; n <= 3; n++)
			assert_int_equal(rig_event(vm, VMM_EV_DOORBELL).value, n);
		do {
			stopped = i % 4 && vmm_state(vm) == VMM_STOPPED;
			assert_ok(vmm_wait(vm, i % 4 ? 0 : -1, &ev, &err));
		} while (i % 4 && !stopped && ev.type == VMM_EV_NONE);
		assert_int_equal(ev.type, VMM_EV_SHUTDOWN);
		assert_int_equal(vmm_state(vm), VMM_STOPPED);
		assert_ok(vmm_reset(vm, &err));
	}
}

/* ---- Kicks ---------------------------------------------------------------------------- */

static void test_spinning(void **state)
{
	uint64_t begin;
	int i;

	(void)state;
	fake.boot_all = 1;
	start(NULL, 4);
	for (i = 0; i < 50; i++) {
		begin = now_ms();
		assert_ok(vmm_pause(vm, &err));
		assert_true(now_ms() - begin < 1000);
		assert_int_equal(vmm_state(vm), VMM_PAUSED);
		assert_ok(vmm_start(vm, &err));
	}
	begin = now_ms();
	assert_ok(vmm_stop(vm, &err));
	assert_true(now_ms() - begin < 1000);
	assert_int_equal(vmm_state(vm), VMM_STOPPED);
	assert_ok(vmm_reset(vm, &err));
	assert_ok(vmm_start(vm, &err));
	begin = now_ms();
	vmm_free(vm);				/* while it spins */
	assert_true(now_ms() - begin < 1000);
	vm = NULL;
}

/* Harts that wait to be started can be held, too. */
static void test_unstarted(void **state)
{
	int i;

	(void)state;
	start(NULL, 64);
	for (i = 0; i < 10; i++) {
		assert_ok(vmm_pause(vm, &err));
		assert_ok(vmm_start(vm, &err));
	}
	assert_int_equal(exits(VMM_EXIT_MMIO), 0);
	assert_ok(vmm_stop(vm, &err));
}

static int starts_another(struct fake_vcpu *v)
{
	if (v->id == 0 && v->step++ == 0) {
		fake_hart_start(v->vm, 1);
		return FAKE_AGAIN;
	}
	return v->id == 1 ? fake_sbi(v, VMM_GUEST_SBI, VMM_GUEST_SBI_EXIT, 1, 0, 0) : FAKE_SPIN;
}

static void test_hart_start(void **state)
{
	(void)state;
	start(starts_another, 3);
	assert_int_equal(rig_event(vm, VMM_EV_SHUTDOWN).vcpu, 1);
}

/* A hart that was told to start, and cannot yet because nobody takes what hart 0
   has rung: a machine that is said to be paused is. */
static int rings_for_ever(struct fake_vcpu *v)
{
	return fake_sbi(v, VMM_GUEST_SBI, VMM_GUEST_SBI_RING, v->step++, 0, 0);
}

static void test_pause_starting_hart(void **state)
{
	(void)state;
	start(rings_for_ever, 2);
	while (exits(VMM_EXIT_SBI) < EVENTS_MAX - EVENTS_SLACK)
		nap_ms(1);
	/* Now both are kept out of the guest. */
	assert_ok(vmm_pause(vm, &err));
	assert_ok(vmm_start(vm, &err));
	fake_hart_start(fake_vm(), 1);
	assert_ok(vmm_pause(vm, &err));
	assert_int_equal(vmm_state(vm), VMM_PAUSED);
	assert_int_equal(fake_vcpu(fake_vm(), 1)->begun, 0);
	assert_ok(vmm_start(vm, &err));
	while (rig_event(vm, VMM_EV_DOORBELL).vcpu == 0)
		;
	/* And one that just needs a moment gets it. */
	assert_ok(vmm_stop(vm, &err));
	assert_ok(vmm_reset(vm, &err));
	assert_ok(vmm_start(vm, &err));
	assert_ok(vmm_pause(vm, &err));
	fake_hart_start(fake_vm(), 1);
	assert_ok(vmm_start(vm, &err));
	assert_ok(vmm_pause(vm, &err));
	assert_int_equal(vmm_state(vm), VMM_PAUSED);
}

/* Figures of a machine that runs, from a guest that does not leave by itself. */
static void test_stat_spinning(void **state)
{
	uint64_t begin = now_ms();
	int i;

	(void)state;
	fake.boot_all = 1;
	start(NULL, 4);
	for (i = 0; i < 20; i++)
		exits(VMM_EXIT_KERNEL);
	assert_true(now_ms() - begin < 2000);
	assert_int_equal(vmm_state(vm), VMM_RUNNING);
	assert_ok(vmm_pause(vm, &err));
	exits(VMM_EXIT_KERNEL);
}

/* ---- Doorbell ---------------------------------------------------------------------------- */

#define RINGERS	8
#define RINGS	(SLOW ? 200 : 1000)

static int floods(struct fake_vcpu *v)
{
	if (v->step == RINGS)
		return FAKE_SPIN;
	return fake_sbi(v, VMM_GUEST_SBI, VMM_GUEST_SBI_RING, v->step++, 0, 0);
}

/* More than its owner takes: the guest waits, and nothing is lost. */
static void test_flood(void **state)
{
	uint64_t next[RINGERS] = { 0 };
	struct vmm_event ev;
	int i;

	(void)state;
	fake.boot_all = 1;
	start(floods, RINGERS);
	nap_ms(20);
	for (i = 0; i < RINGERS * RINGS; i++) {
		ev = rig_event(vm, VMM_EV_DOORBELL);
		assert_int_equal(ev.value, next[ev.vcpu]++);
		if (i % 500 == 0)
			nap_ms(1);
	}
	assert_false(readable(vmm_fd(vm), 5));
}

/* Nobody listens: it can still be paused, looked at, started and stopped, and
   goes on where it was. */
static void test_flood_unheard(void **state)
{
	uint64_t next[RINGERS] = { 0 };
	struct vmm_event ev;
	int i;

	(void)state;
	fake.boot_all = 1;
	start(floods, RINGERS);
	for (i = 0; i < 10; i++) {
		nap_ms(2);
		exits(VMM_EXIT_SBI);
		assert_ok(vmm_pause(vm, &err));
		exits(VMM_EXIT_SBI);
		assert_ok(vmm_start(vm, &err));
	}
	assert_true(exits(VMM_EXIT_SBI) < 1000);
	for (i = 0; i < RINGERS * RINGS; i++) {
		ev = rig_event(vm, VMM_EV_DOORBELL);
		assert_int_equal(ev.value, next[ev.vcpu]++);
	}
	assert_ok(vmm_stop(vm, &err));
	assert_ok(vmm_reset(vm, &err));
	assert_ok(vmm_start(vm, &err));
	nap_ms(5);
	vmm_free(vm);
	vm = NULL;
}

/* Events of other kinds keep a guest waiting, too, until they are taken. */
static int ends_at_once(struct fake_vcpu *v)
{
	return fake_system(v, KVM_SYSTEM_EVENT_SHUTDOWN, 0);
}

static void test_flood_of_trouble(void **state)
{
	struct events *q;
	unsigned int i;

	(void)state;
	fake.guest = ends_at_once;
	vm = rig_vmm(1);
	q = &rig_inside(vm)->events;
	for (i = 0; !events_crowded(q); i++)
		events_push(q, VMM_EV_DEVICE, 0, i, "a disk");
	assert_ok(vmm_start(vm, &err));
	nap_ms(20);				/* it waits */
	while (i--)
		rig_event(vm, VMM_EV_DEVICE);
	rig_event(vm, VMM_EV_SHUTDOWN);
}

/* What its devices find when they go on can stop a machine before its vCPUs do. */
static void test_stopped_at_start(void **state)
{
	struct machine *m;

	(void)state;
	start(NULL, 2);
	m = rig_inside(vm);
	assert_ok(vmm_pause(vm, &err));
	machine_halt(m, VMM_EV_FAULT, 0, 0, "its RAM is lost");
	assert_int_equal(vcpus_start(m, &err), VMM_ESTATE);
	assert_int_equal(vmm_state(vm), VMM_BROKEN);
	rig_event(vm, VMM_EV_FAULT);
}

/* The end of a run is told of even if nobody took what was rung before. */
static int floods_and_ends(struct fake_vcpu *v)
{
	if (v->id == 0 && v->step++ > 20)
		return fake_system(v, KVM_SYSTEM_EVENT_SHUTDOWN, 0);
	return fake_sbi(v, VMM_GUEST_SBI, VMM_GUEST_SBI_RING, 1, 0, 0);
}

static void test_flood_and_end(void **state)
{
	struct vmm_event ev;
	int i, n;

	(void)state;
	fake.boot_all = 1;
	fake.guest = floods_and_ends;
	vm = rig_vmm(64);
	for (i = 0; i < 3; i++) {
		assert_ok(vmm_start(vm, &err));
		/* Taken now and then, until hart 0 has come to its end. */
		for (n = 0; n < 100000; n++) {
			assert_ok(vmm_wait(vm, 20000, &ev, &err));
			if (ev.type != VMM_EV_DOORBELL)
				break;
		}
		assert_int_equal(ev.type, VMM_EV_SHUTDOWN);
		assert_ok(vmm_reset(vm, &err));
	}
}

/* ---- Threads ------------------------------------------------------------------------------- */

static int task_named(const char *want)
{
	char path[300], name[32];
	struct dirent *e;
	DIR *d = opendir("/proc/self/task");
	int found = 0;
	FILE *f;

	while ((e = readdir(d))) {
		snprintf(path, sizeof(path), "/proc/self/task/%s/comm", e->d_name);
		f = fopen(path, "r");
		if (!f)
			continue;
		if (fgets(name, sizeof(name), f))
			found += strcmp(strtok(name, "\n"), want) == 0;
		fclose(f);
	}
	closedir(d);
	return found;
}

static void test_names(void **state)
{
	struct vmm_config cfg = VMM_CONFIG_INIT;

	(void)state;
	cfg.kernel_fd = rig_kernel;
	cfg.vcpus = 2;
	cfg.name = "a-long-name-of-a-machine";
	assert_ok(vmm_create(&vm, &cfg, &err));
	assert_ok(vmm_start(vm, &err));
	assert_ok(vmm_pause(vm, &err));
	assert_int_equal(task_named("a-long-nam/0"), 1);
	assert_int_equal(task_named("a-long-nam/1"), 1);
	assert_ok(vmm_stop(vm, &err));
	assert_int_equal(task_named("a-long-nam/0"), 0);
}

int main(void)
{
#define T(fn) cmocka_unit_test_setup_teardown(fn, rig_setup, teardown)
	const struct CMUnitTest tests[] = {
		T(test_completion), T(test_holes), T(test_kinds), T(test_ends), T(test_odd_exits),
		T(test_first_counts), T(test_wait_until_the_end), T(test_spinning),
		T(test_unstarted), T(test_hart_start), T(test_pause_starting_hart),
		T(test_stat_spinning), T(test_flood),
		T(test_flood_unheard), T(test_flood_of_trouble), T(test_stopped_at_start), T(test_flood_and_end), T(test_names),
	};

	time_limit(30);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
