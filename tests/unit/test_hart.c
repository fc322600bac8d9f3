/* SPDX-License-Identifier: MIT */
/*
 * test_hart.c - riscv/hart.c: a vCPU's state saved, and loaded where it fits;
 * refused by name where it does not.
 */
#include "rig.h"

#include "../../riscv/hart.h"
#include "../../riscv/regs.h"

static struct vmm_error err;
static struct machine m;
static struct vcpu *v;

static int setup(void **state)
{
	(void)state;
	fake_reset();
	fake.boot_all = 1;
	rig_make(&m, 2, 0);
	v = &m.vcpu[1];
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	fake.fault = NULL;
	rig_free(&m);
	return 0;
}

/* Another machine, on the host that fake is now. */
static void move(void)
{
	rig_free(&m);
	rig_make(&m, 2, 0);
	v = &m.vcpu[1];
}

/* A host with everything again. */
static void fresh(void)
{
	rig_free(&m);
	setup(NULL);
}

static void set(uint64_t id, uint64_t value)
{
	uint64_t buf[4] = { value, ~value, value, ~value };

	assert_int_equal(kvm_reg_set(v->fd, id, buf), 0);
}

static uint64_t get(uint64_t id)
{
	uint64_t buf[4] = { 0 };

	assert_int_equal(kvm_reg_get(v->fd, id, buf), 0);
	return buf[0];
}

static struct writer save(void)
{
	struct writer w = { 0 };

	assert_ok(hart_save(v, &w, &err));
	return w;
}

/* The three steps; where it fails it stops. */
static int load(const void *data, size_t len)
{
	struct reader r = { data, len, 0 };
	struct hart_config c;
	struct hart_host host;
	int rc;

	memset(&err, 0, sizeof(err));
	rc = hart_begin(&r, &c, &err);
	rc = rc ? rc : hart_host(v, &host, &err);
	rc = rc ? rc : hart_fits(&c, &host, &err);
	rc = rc ? rc : hart_configure(v, &c, &host, &err);
	rc = rc ? rc : hart_load(v, &c, &host, &r, &err);
	rc = rc ? rc : hart_set_time(v, 1000, &err);
	return rc ? rc : hart_set_timer(v, &c, &err);
}

/* What is neither configuration nor the timer's, each with bits of its own. */
static unsigned int each_register(void (*fn)(uint64_t id, unsigned int i))
{
	struct kvm_reg_list *list = calloc(1, 8 + 400 * 8);
	unsigned int i, n = 0;

	list->n = 400;
	assert_int_equal(kvm_reg_list(v->fd, list), 0);
	for (i = 0; i < list->n; i++) {
		uint64_t id = list->reg[i], type = REG_TYPE(id);

		/* F is another view of D. */
		if (type == 1 || type == 4 || type == 5 || type == 7 || type == 8 ||
		    id == REG_VLENB)
			continue;
		fn(id, i);
		n++;
	}
	free(list);
	return n;
}

static void put_pattern(uint64_t id, unsigned int i)
{
	set(id, 0x0101010101010101ull * (i & 0xff) ^ i);
}

static void check_pattern(uint64_t id, unsigned int i)
{
	uint64_t want[4], got[4] = { 0 };

	want[0] = want[2] = 0x0101010101010101ull * (i & 0xff) ^ i;
	want[1] = want[3] = ~want[0];
	assert_int_equal(kvm_reg_get(v->fd, id, got), 0);
	if (memcmp(got, want, REG_SIZE(id)) != 0)
		fail_msg("register 0x%llx is not what was saved", (unsigned long long)id);
}

static void check_zero(uint64_t id, unsigned int i)
{
	(void)i;
	if (get(id) && id != CORE_MODE && id != CORE_PC)
		fail_msg("register 0x%llx is not 0", (unsigned long long)id);
}

static void test_every_register(void **state)
{
	struct writer w, again;
	uint32_t mp;

	(void)state;
	assert_true(each_register(put_pattern) > 120);
	set(TIMER_COMPARE, 123456);
	kvm_mp_set(v->fd, KVM_MP_STOPPED);
	w = save();
	move();
	each_register(check_zero);
	assert_ok(load(w.data, w.len));
	each_register(check_pattern);
	assert_int_equal(get(TIMER_COMPARE), 123456);
	assert_int_equal(kvm_mp_get(v->fd, &mp), 0);
	assert_int_equal(mp, KVM_MP_STOPPED);
	again = save();
	assert_int_equal(again.len, w.len);
	assert_memory_equal(again.data, w.data, w.len);
	free(w.data);
	free(again.data);
}

/* Without D it is F that is saved; without V no vector. */
static void test_less(void **state)
{
	const uint64_t f5 = REG_RISCV | REG_U32 | 0x05000005, d5 = REG_RISCV | REG_U64 | 0x06000005;
	struct writer w;

	(void)state;
	fake.isa[0] &= ~(1ull << ISA_D | 1ull << ISA_V);
	fake.vlenb = 0;
	move();
	set(f5, 0x3f800000);
	set(d5, 77);		/* the fake has both, and no union */
	w = save();
	move();
	assert_ok(load(w.data, w.len));
	assert_int_equal(get(f5) & 0xffffffff, 0x3f800000);
	free(w.data);
}

/* What the guest was not given it has not got elsewhere either. */
static void test_extensions(void **state)
{
	const uint64_t off = 1ull << ISA_V | 1ull << ISA_ZICBOM, on = 1u << SBI_DBCN;
	const uint64_t pmu = 1u << SBI_PMU;
	struct isa isa;
	struct writer w;

	(void)state;
	assert_int_equal(kvm_reg_set(v->fd, REG_ISA_OFF(0), &off), 0);
	assert_int_equal(kvm_reg_set(v->fd, REG_SBI_ON(0), &on), 0);
	assert_int_equal(kvm_reg_set(v->fd, REG_SBI_OFF(0), &pmu), 0);
	set(REG_CONFIG(2), 0xabc);		/* mvendorid */
	w = save();
	move();
	fake.vlenb = 0;				/* of no matter without V */
	assert_ok(load(w.data, w.len));
	assert_ok(isa_of_vcpu(v->fd, &isa, &err));
	assert_false(isa_has(&isa, ISA_V) || isa_has(&isa, ISA_ZICBOM));
	assert_true(isa_has(&isa, ISA_D));
	assert_true(get(REG_SBI_ON(0)) & on);
	assert_false(get(REG_SBI_ON(0)) & pmu);
	assert_int_equal(get(REG_CONFIG(2)), 0xabc);
	free(w.data);
}

/* A host that is otherwise is refused, by what it lacks. */
static void test_other_host(void **state)
{
	struct writer w;

	(void)state;
	w = save();
	fake.isa[0] &= ~(1ull << 17 | 1ull << ISA_ZICBOZ);	/* zba */
	move();
	assert_fails(load(w.data, w.len), VMM_EVERSION, "this host lacks: zicboz_zba");
	fresh();
	fake.isa[0] &= ~(1ull << ISA_V);
	move();
	assert_fails(load(w.data, w.len), VMM_EVERSION, "this host lacks: v");
	fresh();
	fake.hz = 24000000;
	move();
	assert_fails(load(w.data, w.len), VMM_EVERSION,
		     "timer frequency is 10000000, this host's is 24000000");
	fresh();
	fake.vlenb = 16;
	move();
	assert_fails(load(w.data, w.len), VMM_EVERSION, "(vlenb) is 32, this host's is 16");
	fresh();
	fake.block = 128;
	move();
	assert_fails(load(w.data, w.len), VMM_EVERSION, "block size is 64, this host's is 128");
	fresh();
	fake.satp = 8;
	move();
	assert_fails(load(w.data, w.len), VMM_EVERSION, "(satp) is 9, this host's is 8");
	fresh();
	fake.satp = 10;				/* wider does */
	fake.isa[1] |= 1;			/* and more */
	move();
	assert_ok(load(w.data, w.len));
	free(w.data);
}

/* Where in a saved state the number of registers is. */
#define COUNT_AT	(8 * 3 + 8 * 3 + 8 * 3 + 8 * 3 + 8 * 2 + 4)

static void test_unknown_register(void **state)
{
	const uint64_t id = REG_RISCV | REG_U64 | 0x0c000001;
	struct writer w;
	uint32_t n;

	(void)state;
	w = save();
	memcpy(&n, w.data + COUNT_AT, 4);
	n++;
	memcpy(w.data + COUNT_AT, &n, 4);
	put_u64(&w, id);
	put_u64(&w, 0);
	move();
	assert_ok(load(w.data, w.len));		/* it was not used */
	w.data[w.len - 8] = 1;
	move();
	assert_fails(load(w.data, w.len), VMM_ESYS, "register 0x803000000c000001 of vCPU 1");
	/* Of a size that no register has. */
	w.data[w.len - 16 + 6] |= 0xf0;
	move();
	assert_fails(load(w.data, w.len), VMM_EFORMAT, "register 0x");
	free(w.data);
}

static void test_load_anything(void **state)
{
	unsigned int i, k, seed = 5;
	struct writer w;
	uint8_t *data;
	size_t n;
	int rc;

	(void)state;
	w = save();
	for (n = 0; n < w.len; n += n < COUNT_AT + 20 ? 1 : 13) {
		move();
		data = malloc(n ? n : 1);
		memcpy(data, w.data, n);
		rc = load(data, n);
		if (rc != VMM_EFORMAT)
			fail_msg("%zu of %zu bytes: %s: %s", n, w.len, vmm_strerror(rc),
				 err.message);
		free(data);
	}
	for (i = 0; i < 300; i++) {
		if (i % 10 == 0)
			move();
		data = malloc(w.len);
		memcpy(data, w.data, w.len);
		for (k = 0; k < 4; k++)
			data[(unsigned int)rand_r(&seed) % w.len] = (uint8_t)rand_r(&seed);
		load(data, w.len);
		free(data);
	}
	memset(w.data + COUNT_AT, 0xff, 4);
	move();
	assert_fails(load(w.data, w.len), VMM_EFORMAT, "4294967295 registers");
	free(w.data);
}

/* A timer that was never set is left alone: KVM would refuse some of it.  With Sstc
   the moment is all there is; without, KVM has to be told to count. */
static void test_timer(void **state)
{
	struct writer w;

	(void)state;
	w = save();
	move();
	assert_ok(load(w.data, w.len));
	assert_int_equal(get(TIMER_COMPARE), ~0ull);
	free(w.data);
	set(TIMER_COMPARE, 5000);
	w = save();
	move();
	assert_ok(load(w.data, w.len));
	assert_int_equal(get(TIMER_COMPARE), 5000);
	assert_int_equal(get(TIMER_STATE), 0);
	free(w.data);
	fake.isa[0] &= ~(1ull << ISA_SSTC);
	move();
	/* It has just expired, and its interrupt is not in the sip read before. */
	set(TIMER_COMPARE, 5000);
	w = save();
	move();
	assert_ok(load(w.data, w.len));
	assert_int_equal(get(TIMER_COMPARE), 5000);
	assert_int_equal(get(TIMER_STATE), 1);
	free(w.data);
}

static void test_time(void **state)
{
	uint64_t t;

	(void)state;
	assert_ok(hart_set_time(v, 1000000000ull, &err));
	t = hart_time(v);
	assert_in_range(t, 1000000000ull, 1000000000ull + 10 * fake.hz);
	/* It is the machine's. */
	assert_in_range(hart_time(&m.vcpu[0]), t, t + 10 * fake.hz);
	nap_ms(2);
	assert_true(hart_time(v) >= t + fake.hz / 500);
}

static void test_starting(void **state)
{
	(void)state;
	fake.boot_all = 0;
	move();
	assert_false(hart_starting(v));			/* not asked to */
	kvm_mp_set(v->fd, KVM_MP_RUNNABLE);
	assert_true(hart_starting(v));			/* asked, and has not begun */
	set(CORE_PC, MAP_RAM);
	assert_false(hart_starting(v));
	/* Stopped by itself, asked again, not yet begun. */
	set(CORE_X(17), 0x48534d);
	set(CORE_X(16), 1);
	assert_true(hart_starting(v));
	kvm_mp_set(v->fd, KVM_MP_STOPPED);
	assert_false(hart_starting(v));
}

static unsigned int calls, fail_at;

static int nth(const char *fn)
{
	(void)fn;
	return ++calls == fail_at ? EIO : 0;
}

/* What KVM does not tell is never saved as something else. */
static void test_save_fails(void **state)
{
	struct writer w, whole;
	int rc = -1;

	(void)state;
	each_register(put_pattern);
	whole = save();
	for (fail_at = 1; rc; fail_at++) {
		calls = 0;
		fake.fault = nth;
		memset(&w, 0, sizeof(w));
		rc = hart_save(v, &w, &err);
		fake.fault = NULL;
		if (calls < fail_at) {
			assert_int_equal(rc, 0);
			assert_int_equal(w.len, whole.len);
			assert_memory_equal(w.data, whole.data, w.len);
		} else if (rc == 0) {
			/* sip is read once for nothing but its effect. */
			assert_memory_equal(w.data, whole.data, w.len);
			rc = -1;
		}
		free(w.data);
	}
	assert_true(fail_at > 130);
	free(whole.data);
}

int main(void)
{
#define T(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(test_every_register), T(test_less), T(test_extensions), T(test_other_host),
		T(test_unknown_register), T(test_load_anything), T(test_timer), T(test_time),
		T(test_starting), T(test_save_fails),
	};

	time_limit(15);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
