/* SPDX-License-Identifier: MIT */
/*
 * test_pool.c - machines that wait to be used, and what a snapshot learns of
 * one that was watched.
 */
#include "rig.h"

#include "../../core/uffd.h"

#define MiB	(1ull << 20)
#define HERE	(MAP_RAM + 3 * MiB)

static struct vmm_error err;
static char path[] = "/tmp/test_pool.XXXXXX";

static int setup(void **state)
{
	strcpy(path, "/tmp/test_pool.XXXXXX");
	close(mkstemp(path));
	return rig_setup(state);
}

static int teardown(void **state)
{
	unlink(path);
	return rig_teardown(state);
}

static struct vmm_snap *frozen(void)
{
	struct vmm_snap *s;
	struct vmm *vm;

	fake.guest = rig_rings;
	vm = rig_vmm(1);
	assert_ok(vmm_add_serial(vm, -1, -1, &err));
	assert_ok(vmm_start(vm, &err));
	rig_event(vm, VMM_EV_DOORBELL);
	assert_ok(vmm_pause(vm, &err));
	assert_ok(vmm_write(vm, HERE, "original", 8, &err));
	assert_ok(vmm_snap_take(&s, vm, &err));
	vmm_free(vm);
	return s;
}

static void is_original(struct vmm *vm)
{
	char buf[9] = "";

	assert_ok(vmm_read(vm, HERE, buf, 8, &err));
	assert_string_equal(buf, "original");
}

static int prepared;

static int prepare(void *arg, struct vmm *vm)
{
	__atomic_fetch_add(&prepared, 1, __ATOMIC_RELAXED);
	return vmm_add_serial(vm, -1, -1, NULL) || arg;
}

static void test_take(void **state)
{
	struct vmm_pool_config cfg = VMM_POOL_INIT;
	struct vmm_snap *s = frozen();
	struct vmm_pool *p;
	struct vmm *vm[5];
	int i, before;

	(void)state;
	before = fds();
	prepared = 0;
	cfg.ready = 3;
	cfg.prepare = prepare;
	assert_ok(vmm_pool_create(&p, s, &cfg, &err));
	for (i = 0; i < 5; i++) {
		assert_ok(vmm_pool_take(p, -1, &vm[i], &err));
		assert_int_equal(vmm_state(vm[i]), VMM_NEW);
		is_original(vm[i]);
		assert_ok(vmm_write(vm[i], HERE, "modified", 8, &err));
		assert_ok(vmm_start(vm[i], &err));
		rig_event(vm[i], VMM_EV_DOORBELL);
	}
	/* One is given back while it runs, one stopped, one paused. */
	vmm_pool_give(p, vm[0]);
	assert_ok(vmm_stop(vm[1], &err));
	vmm_pool_give(p, vm[1]);
	assert_ok(vmm_pause(vm[2], &err));
	vmm_pool_give(p, vm[2]);
	vmm_pool_give(p, NULL);
	vmm_free(vm[3]);
	for (i = 0; i < 4; i++) {
		assert_ok(vmm_pool_take(p, 10000, &vm[i], &err));
		is_original(vm[i]);
		vmm_free(vm[i]);
	}
	vmm_pool_free(p);
	/* One that was taken lives on. */
	assert_int_equal(vmm_state(vm[4]), VMM_RUNNING);
	vmm_free(vm[4]);
	assert_true(prepared >= 5);
	vmm_snap_free(s);
	assert_true(fds() <= before);
}

static void test_modified_is_gone(void **state)
{
	struct vmm_snap *s = frozen();
	struct vmm_pool *p;
	struct vmm *vm;
	int i;

	(void)state;
	assert_ok(vmm_pool_create(&p, s, NULL, &err));
	for (i = 0; i < 20; i++) {
		assert_ok(vmm_pool_take(p, -1, &vm, &err));
		is_original(vm);
		assert_ok(vmm_write(vm, HERE, "modified", 8, &err));
		vmm_pool_give(p, vm);
	}
	vmm_pool_free(p);
	vmm_pool_free(NULL);
	vmm_snap_free(s);
}

/* A machine that is ready to run, as pools have them, runs after each reset. */
static void test_again(void **state)
{
	struct vmm_restore_config how = VMM_RESTORE_INIT;
	struct vmm_snap *s = frozen();
	struct vmm *vm;
	int i;

	(void)state;
	how.flags = VMM_POPULATE;
	assert_ok(vmm_restore(&vm, s, &how, &err));
	for (i = 0; i < 200; i++) {
		assert_ok(vmm_start(vm, &err));
		rig_event(vm, VMM_EV_DOORBELL);
		if (i & 1)
			assert_ok(vmm_stop(vm, &err));
		else
			assert_ok(vmm_pause(vm, &err));
		assert_ok(vmm_reset(vm, &err));
	}
	vmm_free(vm);
	vmm_snap_free(s);
}

/* A device's trouble, of which a guest that runs on has heard before it rings. */
static int trouble(void *arg, struct vmm *vm)
{
	(void)arg;
	events_push(&rig_inside(vm)->events, VMM_EV_DEVICE, 0, 0, "net0: link down");
	return 0;
}

static void test_park(void **state)
{
	struct vmm_pool_config cfg = VMM_POOL_INIT;
	struct vmm_snap *s = frozen();
	struct vmm_pool *p;
	struct vmm *vm;
	int i;

	(void)state;
	cfg.flags = VMM_POOL_PARK;
	cfg.ready = 2;
	cfg.prepare = trouble;
	assert_ok(vmm_pool_create(&p, s, &cfg, &err));
	for (i = 0; i < 6; i++) {
		assert_ok(vmm_pool_take(p, -1, &vm, &err));
		assert_int_equal(vmm_state(vm), VMM_PAUSED);
		assert_ok(vmm_start(vm, &err));
		if (i & 1)
			vmm_pool_give(p, vm);
		else
			vmm_free(vm);
	}
	vmm_pool_free(p);
	/* One that never rings. */
	fake.guest = NULL;
	cfg.park_ms = 20;
	assert_ok(vmm_pool_create(&p, s, &cfg, &err));
	assert_int_equal(vmm_pool_take(p, -1, &vm, &err), VMM_ETIMEDOUT);
	assert_non_null(strstr(err.message, "does not ring within 20 ms"));
	assert_null(vm);
	vmm_pool_free(p);
	/* Nor is one waited for for ever. */
	cfg.park_ms = 0;
	assert_ok(vmm_pool_create(&p, s, &cfg, &err));
	usleep(20000);
	vmm_pool_free(p);
	vmm_snap_free(s);
}

static int refuse(const char *function)
{
	return strcmp(function, "kvm_vm") == 0 ? ENOMEM : 0;
}

static void test_failures(void **state)
{
	struct vmm_pool_config cfg = VMM_POOL_INIT;
	struct vmm_snap *s = frozen();
	struct vmm_pool *p;
	struct vmm *vm;

	(void)state;
	assert_int_equal(vmm_pool_create(NULL, s, NULL, &err), VMM_EINVAL);
	assert_int_equal(vmm_pool_create(&p, NULL, NULL, &err), VMM_EINVAL);
	cfg.flags = 2;
	assert_int_equal(vmm_pool_create(&p, s, &cfg, &err), VMM_EINVAL);
	assert_null(p);
	cfg.flags = 0;
	/* No machine can be made; then one can. */
	fake.fault = refuse;
	assert_ok(vmm_pool_create(&p, s, &cfg, &err));
	assert_int_equal(vmm_pool_take(p, -1, &vm, &err), VMM_ENOMEM);
	assert_non_null(strstr(err.message, "KVM_CREATE_VM"));
	assert_int_equal(vmm_pool_take(p, 1000, &vm, &err), VMM_ENOMEM);
	fake.fault = NULL;
	while (vmm_pool_take(p, 1000, &vm, &err))
		;
	vmm_free(vm);
	assert_int_equal(vmm_pool_take(NULL, 0, &vm, &err), VMM_EINVAL);
	assert_int_equal(vmm_pool_take(p, -2, &vm, &err), VMM_EINVAL);
	assert_int_equal(vmm_pool_take(p, 0, NULL, &err), VMM_EINVAL);
	vmm_pool_free(p);
	/* prepare() refuses. */
	cfg.prepare = prepare;
	cfg.prepare_arg = &cfg;
	assert_ok(vmm_pool_create(&p, s, &cfg, &err));
	assert_int_equal(vmm_pool_take(p, -1, &vm, &err), VMM_ESTATE);
	vmm_pool_free(p);
	vmm_snap_free(s);
}

static void *uses(void *arg)
{
	struct vmm_event ev;
	struct vmm *vm;
	int i;

	for (i = 0; i < 12; i++) {
		assert_ok(vmm_pool_take(arg, -1, &vm, NULL));
		is_original(vm);
		assert_ok(vmm_write(vm, HERE, "modified", 8, NULL));
		if (i % 3) {
			assert_ok(vmm_start(vm, NULL));
			assert_ok(vmm_wait(vm, 20000, &ev, NULL));
			assert_int_equal(ev.type, VMM_EV_DOORBELL);
		}
		if (i % 4)
			vmm_pool_give(arg, vm);
		else
			vmm_free(vm);
	}
	return NULL;
}

static void test_threads(void **state)
{
	struct vmm_pool_config cfg = VMM_POOL_INIT;
	struct vmm_snap *s = frozen();
	struct vmm_pool *p;
	pthread_t t[8];
	int i;

	(void)state;
	cfg.ready = 4;
	cfg.memory = 1 << 20;
	assert_ok(vmm_pool_create(&p, s, &cfg, &err));
	for (i = 0; i < 8; i++)
		pthread_create(&t[i], NULL, uses, p);
	for (i = 0; i < 8; i++)
		pthread_join(t[i], NULL);
	vmm_pool_free(p);
	vmm_snap_free(s);
}

/* Each machine that waits holds a mebibyte of its own. */
static int fattens(void *arg, struct vmm *vm)
{
	static const char text[1 << 20] = "fat";
	int rc = vmm_write(vm, MAP_RAM, text, sizeof(text), NULL);

	(void)arg;
	__atomic_fetch_add(&prepared, 1, __ATOMIC_RELEASE);
	return rc;
}

static void await_prepared(int n)
{
	int ms;

	for (ms = 0; ms < 20000 && __atomic_load_n(&prepared, __ATOMIC_ACQUIRE) < n; ms += 10)
		nap_ms(10);
	nap_ms(100);
	assert_int_equal(__atomic_load_n(&prepared, __ATOMIC_ACQUIRE), n);
}

static void test_memory(void **state)
{
	struct vmm_pool_config cfg = VMM_POOL_INIT;
	struct vmm_snap *s = frozen();
	struct vmm_pool *p;
	struct vmm *vm;

	(void)state;
	prepared = 0;
	cfg.ready = 8;
	cfg.memory = 5 * MiB / 2;
	cfg.prepare = fattens;
	assert_ok(vmm_pool_create(&p, s, &cfg, &err));
	await_prepared(3);
	/* One may take the place of one that has gone. */
	assert_ok(vmm_pool_take(p, -1, &vm, &err));
	await_prepared(4);
	vmm_free(vm);
	vmm_pool_free(p);
	vmm_snap_free(s);
}

/* ---- Working sets ----------------------------------------------------------- */

/* Teach a snapshot that is just being written. */
struct teaching {
	struct vmm_snap	*snap;
	struct vmm	*vm;
};

static int teaches(void *arg, uint64_t done, uint64_t total)
{
	const struct teaching *t = arg;

	(void)done;
	(void)total;
	assert_ok(vmm_snap_learn(t->snap, t->vm, &err));
	return 0;
}

static void test_learn(void **state)
{
	struct vmm_write_config write_how = VMM_WRITE_INIT;
	struct teaching teaching;
	struct vmm *many[20];
	struct vmm_restore_config how = VMM_RESTORE_INIT;
	struct vmm_snap_info info = VMM_SNAP_INFO_INIT;
	struct vmm_stats st = VMM_STATS_INIT;
	struct vmm_snap *s = frozen(), *f;
	struct vmm *vm;
	uint8_t *p;
	int fd, i;

	(void)state;
	fd = uffd_open();
	if (fd < 0) {
		vmm_snap_free(s);
		skip();
	}
	close(fd);
	assert_ok(vmm_snap_write(s, path, NULL, &err));
	vmm_snap_free(s);
	assert_ok(vmm_snap_open(&f, path, &err));
	/* Not one that was not watched. */
	assert_ok(vmm_restore(&vm, f, NULL, &err));
	assert_int_equal(vmm_snap_learn(f, vm, &err), VMM_EINVAL);
	vmm_free(vm);
	how.flags = VMM_RECORD;
	assert_ok(vmm_restore(&vm, f, &how, &err));
	is_original(vm);
	/* As a vCPU touches it: read, and written. */
	p = rig_inside(vm)->mem.hva;
	assert_int_equal(*(volatile uint8_t *)(p + MiB), 0);
	p[2 * MiB] = 1;
	for (i = 0; i < 3; i++)
		p[2 * MiB + 40960 + 4096ull * (unsigned int)i]++;
	assert_ok(vmm_snap_learn(f, vm, &err));
	teaching = (struct teaching){ f, vm };
	write_how.level = 1;
	write_how.progress = teaches;
	write_how.progress_arg = &teaching;
	assert_ok(vmm_snap_write(f, path, &write_how, &err));
	vmm_free(vm);
	assert_ok(vmm_snap_verify(path, &err));
	/* In place: it is the same snapshot. */
	assert_ok(vmm_snap_write(f, path, NULL, &err));
	vmm_snap_free(f);
	assert_ok(vmm_snap_verify(path, &err));
	assert_ok(vmm_snap_open(&f, path, &err));
	assert_ok(vmm_snap_info(f, &info, &err));
	/* Those, the one that was looked at, and the generation id's. */
	assert_int_equal(info.working_set, 7);
	how.flags = VMM_POPULATE;
	assert_ok(vmm_restore(&vm, f, &how, &err));
	is_original(vm);
	assert_ok(vmm_stat(vm, &st, &err));
	assert_int_equal(st.memory_waits, 0);
	/* What is to be written is its own already. */
	assert_true(st.memory_own >= 4 * 4096 && st.memory_own < 64 * 4096);
	vmm_free(vm);
	/* Of any clone. */
	how.flags = 0;
	how.memory = VMM_MEM_EAGER;
	for (i = 0; i < 20; i++) {
		assert_ok(vmm_restore(&many[i], f, &how, &err));
		assert_ok(vmm_stat(many[i], &st, &err));
		assert_true(st.memory_own >= 4 * 4096 && st.memory_own < 64 * 4096);
		is_original(many[i]);
	}
	while (i--)
		vmm_free(many[i]);
	vmm_snap_free(f);
}

int main(void)
{
#define T(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(test_take), T(test_modified_is_gone), T(test_again), T(test_park), T(test_failures),
		T(test_threads), T(test_memory), T(test_learn),
	};

	time_limit(60);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
