/* SPDX-License-Identifier: MIT */
/*
 * test_isa.c - riscv/isa.c: choosing extensions, and writing them down.
 */
#include "rig.h"

#include "../../riscv/isa.h"
#include "../../riscv/regs.h"

static struct vmm_error err;
static struct isa host, isa;

static int setup(void **state)
{
	(void)state;
	fake_reset();
	host.bit[0] = fake.isa[0];
	host.bit[1] = fake.isa[1];
	memset(&isa, 0, sizeof(isa));
	return 0;
}

static const char *text(const struct isa *i)
{
	static char buf[1024];

	isa_string(i, buf, sizeof(buf));
	return buf;
}

static void test_all(void **state)
{
	(void)state;
	assert_ok(isa_choose(NULL, &host, &isa, &err));
	assert_memory_equal(&isa, &host, sizeof(isa));
	assert_ok(isa_choose("", &host, &isa, &err));
	assert_memory_equal(&isa, &host, sizeof(isa));
	assert_string_equal(text(&isa), "rv64imafdcv_svpbmt_sstc_svinval_zihintpause_zicbom_zicboz_"
			    "zbb_ssaia_svnapot_zba_zbs_zicntr_zicsr_zifencei_zicbop");
}

static void test_named(void **state)
{
	(void)state;
	assert_ok(isa_choose("rv64imafdc_zba_zbb_sstc", &host, &isa, &err));
	/* The interrupt controller is not the guest's to choose. */
	assert_string_equal(text(&isa), "rv64imafdc_sstc_zbb_ssaia_zba");
	assert_ok(isa_choose("RV64IMAC_Zba", &host, &isa, &err));
	assert_string_equal(text(&isa), "rv64imac_ssaia_zba");
	assert_ok(isa_choose("rv64i", &host, &isa, &err));
	assert_string_equal(text(&isa), "rv64i_ssaia");
	/* A long name may follow the letters without a bar. */
	assert_ok(isa_choose("rv64imazba_zbs", &host, &isa, &err));
	assert_string_equal(text(&isa), "rv64ima_ssaia_zba_zbs");
	/* Twice is once. */
	assert_ok(isa_choose("rv64iimm_zba_zba", &host, &isa, &err));
	assert_string_equal(text(&isa), "rv64im_ssaia_zba");
}

/* g is imafd, and Zicsr and Zifencei where KVM tells of them. */
static void test_g(void **state)
{
	(void)state;
	assert_ok(isa_choose("rv64gc", &host, &isa, &err));
	assert_string_equal(text(&isa), "rv64imafdc_ssaia_zicsr_zifencei");
	assert_ok(isa_choose("rv64Gc_v", &host, &isa, &err));
	assert_string_equal(text(&isa), "rv64imafdcv_ssaia_zicsr_zifencei");
	host.bit[0] &= ~(3ull << 20);
	assert_ok(isa_choose("rv64gc", &host, &isa, &err));
	assert_string_equal(text(&isa), "rv64imafdc_ssaia");
	host.bit[0] &= ~(1ull << ISA_D);
	assert_fails(isa_choose("rv64gc", &host, &isa, &err), VMM_ENOTSUP, "this host has no d");
}

static void test_subtract(void **state)
{
	(void)state;
	assert_ok(isa_choose("-v", &host, &isa, &err));
	assert_false(isa_has(&isa, ISA_V));
	assert_true(isa_has(&isa, ISA_D));
	assert_ok(isa_choose("-v,-zicbom,-ZICBOZ", &host, &isa, &err));
	assert_string_equal(text(&isa), "rv64imafdc_svpbmt_sstc_svinval_zihintpause_zbb_ssaia_"
			    "svnapot_zba_zbs_zicntr_zicsr_zifencei_zicbop");
	/* What is not there can be taken away. */
	assert_ok(isa_choose("-zfh,-zalasr", &host, &isa, &err));
	assert_memory_equal(&isa, &host, sizeof(isa));
	assert_ok(isa_choose("-ssaia", &host, &isa, &err));
	assert_true(isa_has(&isa, ISA_SSAIA));
}

static void test_errors(void **state)
{
	static const struct { const char *spec; int code; const char *text; } bad[] = {
		{ "rv64imafdc_zfoo", VMM_EINVAL, "unknown extension \"zfoo\"" },
		{ "rv64imaq", VMM_EINVAL, "unknown extension \"q\"" },
		{ "rv64i2p1", VMM_EINVAL, "unknown extension \"2\"" },
		{ "rv64i_", VMM_EINVAL, "unknown extension \"\"" },
		{ "rv64i__zba", VMM_EINVAL, "unknown extension \"\"" },
		{ "rv64i zba", VMM_EINVAL, "unknown extension \" \"" },
		{ "rv64mac", VMM_EINVAL, "without i" },
		{ "rv64", VMM_EINVAL, "without i" },
		{ "rv32imac", VMM_EINVAL, "neither with rv64 nor with -" },
		{ "zba", VMM_EINVAL, "neither with rv64 nor with -" },
		{ "rv6", VMM_EINVAL, "neither with rv64 nor with -" },
		{ "rv64imac_zfh", VMM_ENOTSUP, "this host has no zfh" },
		{ "rv64imach", VMM_ENOTSUP, "this host has no h" },
		{ "-", VMM_EINVAL, "unknown extension \"\"" },
		{ "-v,zba", VMM_EINVAL, "\"-\" expected" },
		{ "-zfoo", VMM_EINVAL, "unknown extension \"zfoo\"" },
		{ "-v,,-zba", VMM_EINVAL, "\"-\" expected" },
		{ "-i", VMM_EINVAL, "without i" },
	};
	char spec[2000];
	unsigned int i;

	(void)state;
	for (i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		assert_fails(isa_choose(bad[i].spec, &host, &isa, &err), bad[i].code, bad[i].text);
	/* However long it is, the error is one line that ends. */
	memset(spec, 'z', sizeof(spec) - 1);
	memcpy(spec, "rv64i_", 6);
	spec[sizeof(spec) - 1] = 0;
	assert_fails(isa_choose(spec, &host, &isa, &err), VMM_EINVAL, "unknown extension");
}

/* What isa_string() writes, isa_choose() reads: for every extension. */
static void test_round_trip(void **state)
{
	struct isa all = { { ~0ull, ~0ull } }, back;
	char buf[1024];
	unsigned int i;

	(void)state;
	isa_string(&all, buf, sizeof(buf));
	assert_true(strlen(buf) < sizeof(buf) - 1);
	assert_ok(isa_choose(buf, &all, &isa, &err));
	isa_string(&isa, buf, sizeof(buf));
	assert_ok(isa_choose(buf, &all, &back, &err));
	assert_memory_equal(&isa, &back, sizeof(isa));
	for (i = 0; i < 78; i++) {
		struct isa one = { { 1ull << ISA_I | 1ull << ISA_SSAIA, 0 } };

		one.bit[i / 64] |= 1ull << (i % 64);
		isa_string(&one, buf, sizeof(buf));
		assert_ok(isa_choose(buf, &all, &back, &err));
		assert_memory_equal(&one, &back, sizeof(one));
	}
	/* One that we know no name of is left out. */
	memset(&isa, 0, sizeof(isa));
	isa.bit[1] = 1ull << 63;
	isa.bit[0] = 1ull << ISA_I;
	assert_string_equal(text(&isa), "rv64i");
}

/* Buffers of every size: nothing is written behind them. */
static void test_buffers(void **state)
{
	struct isa all = { { ~0ull, ~0ull } };
	size_t cap, whole, n;
	char want[1024], *buf;
	unsigned int i, names = 0;

	(void)state;
	isa_string(&all, want, sizeof(want));
	whole = strlen(want);
	for (cap = 1; cap < whole + 10; cap++) {
		buf = malloc(cap);
		isa_string(&all, buf, cap);
		n = strlen(buf);
		assert_true(n < cap);
		assert_memory_equal(buf, want, n);
		assert_true(cap <= whole || n == whole);
		free(buf);
	}
	whole = isa_list(&all, want, sizeof(want));
	assert_true(whole > 300);
	for (cap = 0; cap < whole + 10; cap++) {
		buf = malloc(cap ? cap : 1);
		assert_int_equal(isa_list(&all, buf, cap), cap < whole ? 0 : whole);
		free(buf);
	}
	for (i = 0; i < whole; i++)
		names += !want[i];
	assert_int_equal(names, 78);
}

static void test_list(void **state)
{
	static const char want[] = "i\0m\0a\0c\0zba";
	struct isa i = { { 0, 0 } };
	char buf[64];

	(void)state;
	i.bit[0] = 1ull << ISA_I | 1ull << 6 | 1ull << ISA_A | 1ull << 1 | 1ull << 17;
	assert_int_equal(isa_list(&i, buf, sizeof(buf)), sizeof(want));
	assert_memory_equal(buf, want, sizeof(want));
}

/* On a vCPU: all is on; what is not wanted goes off, where KVM can. */
static void test_apply(void **state)
{
	struct machine m;
	struct isa now;

	(void)state;
	rig_make(&m, 1, 0);
	assert_ok(isa_of_vcpu(m.vcpu[0].fd, &now, &err));
	assert_memory_equal(&now, &host, sizeof(now));
	assert_ok(isa_choose("rv64imafc_zbs", &host, &isa, &err));
	assert_ok(isa_apply(m.vcpu[0].fd, &host, &isa, &err));
	assert_ok(isa_of_vcpu(m.vcpu[0].fd, &now, &err));
	assert_false(isa_has(&now, ISA_V) || isa_has(&now, ISA_D) || isa_has(&now, ISA_ZICBOP));
	assert_true(isa_has(&now, ISA_SSTC));	/* KVM cannot switch it off */
	assert_true(isa_has(&now, ISA_F) && isa_has(&now, 18));
	rig_free(&m);
}

static const char *fails_in;

static int fault(const char *fn)
{
	return strcmp(fn, fails_in) == 0 ? EIO : 0;
}

static void test_kvm_fails(void **state)
{
	struct machine m;

	(void)state;
	rig_make(&m, 1, 0);
	fake.fault = fault;
	fails_in = "kvm_reg_get";
	assert_fails(isa_of_vcpu(m.vcpu[0].fd, &isa, &err), VMM_ESYS, "ISA extensions");
	fails_in = "kvm_reg_set";
	memset(&isa, 0, sizeof(isa));
	assert_fails(isa_apply(m.vcpu[0].fd, &host, &isa, &err), VMM_ESYS, "ISA extensions");
	assert_ok(isa_apply(m.vcpu[0].fd, &host, &host, &err));	/* nothing to do */
	fake.fault = NULL;
	rig_free(&m);
}

int main(void)
{
#define T(fn) cmocka_unit_test_setup(fn, setup)
	const struct CMUnitTest tests[] = {
		T(test_all), T(test_named), T(test_g), T(test_subtract), T(test_errors),
		T(test_round_trip), T(test_buffers), T(test_list), T(test_apply),
		T(test_kvm_fails),
	};

	time_limit(5);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
