/* SPDX-License-Identifier: MIT */
/*
 * test_aia.c - riscv/aia.c: making the in-kernel AIA, its lines, and saving and
 * loading it in the order in which no interrupt is lost or comes twice.
 */
#include "rig.h"


enum { CONFIG = 0, ADDR = 1, CTRL = 2, APLIC = 3, IMSIC = 4 };

#define DOMAINCFG	0x0000u
#define SOURCECFG(i)	(4u * (i))
#define SETIP		0x1c00u
#define SETIE		0x1e00u
#define TARGET(i)	(0x3000u + 4u * (i))
#define EIE(hart)	((uint64_t)(hart) << 12 | 0xc0)
#define EIP(hart)	((uint64_t)(hart) << 12 | 0x80)
#define EITHRESHOLD(hart) ((uint64_t)(hart) << 12 | 0x72)
#define EIDELIVERY(hart) ((uint64_t)(hart) << 12 | 0x70)

#define EDGE		4u
#define FALLING		5u
#define LEVEL		6u
#define LOW		7u

static struct vmm_error err;
static struct machine m;
static int dev;			/* the AIA's descriptor, for the guest's part */

/* The chip's own struct begins with these. */
struct aia_head {
	struct irqchip	chip;
	struct machine	*m;
	int		fd;
};

static void make(uint32_t vcpus)
{
	rig_make(&m, vcpus, VMM_IRQCHIP_AIA_EMUL);
	dev = ((struct aia_head *)(void *)m.irqchip)->fd;
}

static int setup(void **state)
{
	(void)state;
	fake_reset();
	return 0;
}

static void set(uint32_t group, uint64_t attr, uint64_t v)
{
	assert_int_equal(kvm_attr_set(dev, group, attr, &v), 0);
}

static uint64_t get(uint32_t group, uint64_t attr)
{
	uint64_t v = 0;

	assert_int_equal(kvm_attr_get(dev, group, attr, &v), 0);
	return v;
}

/* ---- Creation ------------------------------------------------------------------------ */

static int create(uint32_t vcpus, uint32_t mode, struct aia_choice *c)
{
	const struct log log = { NULL, NULL };
	int rc;

	assert_ok(machine_init(&m, "aia", &log, &err));
	m.kvm = host_open(&err);
	m.vm = kvm_vm(m.kvm);
	assert_ok(vcpus_create(&m, vcpus, &err));
	fake.logged = 0;
	memset(c, 0, sizeof(*c));
	rc = aia_create(&m, mode, c, &err);
	rig_free(&m);
	return rc;
}

#define BIT(x) (1u << VMM_IRQCHIP_AIA_##x)

static void test_modes(void **state)
{
	struct aia_choice c;
	int before = fds();

	(void)state;
	assert_ok(create(1, VMM_IRQCHIP_DEFAULT, &c));
	assert_int_equal(c.offered, BIT(EMUL));
	assert_int_equal(c.sound, BIT(EMUL));
	assert_int_equal(c.best, VMM_IRQCHIP_AIA_EMUL);
	assert_non_null(strstr(c.note, "no guest interrupt files"));
	assert_fails(create(1, VMM_IRQCHIP_AIA_HWACCEL, &c), VMM_ENOTSUP, "mode 2");
	assert_fails(create(1, VMM_IRQCHIP_AIA_AUTO, &c), VMM_ENOTSUP, "mode 3");

	fake.hgei = 3;
	assert_ok(create(1, VMM_IRQCHIP_DEFAULT, &c));
	assert_int_equal(c.offered, BIT(EMUL) | BIT(HWACCEL) | BIT(AUTO));
	assert_int_equal(c.sound, BIT(EMUL));
	assert_int_equal(c.best, VMM_IRQCHIP_AIA_EMUL);
	assert_int_equal(fake.log[0].group, CONFIG);
	assert_int_equal(fake.log[0].value, 0);
	assert_ok(create(1, VMM_IRQCHIP_AIA_EMUL, &c));
	assert_int_equal(fake.log[0].value, 0);
	assert_ok(create(1, VMM_IRQCHIP_AIA_HWACCEL, &c));
	assert_int_equal(fake.log[0].value, 1);
	assert_ok(create(1, VMM_IRQCHIP_AIA_AUTO, &c));
	assert_int_equal(fake.log[0].value, 2);
	fake.aia = 0;
	assert_fails(create(1, VMM_IRQCHIP_DEFAULT, &c), VMM_ENOTSUP, "no in-kernel AIA");
	assert_int_equal(fds(), before);
}

/* Any number of harts: KVM's checks are the fake's. */
static void test_harts(void **state)
{
	static const uint32_t harts[] = { 1, 2, 3, 4, 5, 8, 9, 16, 17, 33, 63, 64 };
	struct aia_choice c;
	unsigned int i;

	(void)state;
	for (i = 0; i < sizeof(harts) / sizeof(harts[0]); i++) {
		assert_ok(create(harts[i], 0, &c));
		assert_int_equal(fake.log[fake.logged - 1].group, CTRL);
	}
}

static unsigned int calls, fail_at;

static int nth(const char *fn)
{
	return strncmp(fn, "kvm_attr_set", 12) == 0 && ++calls == fail_at ? EIO : 0;
}

static void test_kvm_fails(void **state)
{
	struct aia_choice c;
	int before = fds(), rc;

	(void)state;
	for (fail_at = 1, rc = -1; rc; fail_at++) {
		calls = 0;
		fake.fault = nth;
		rc = create(2, 0, &c);
		if (rc) {
			assert_int_equal(rc, VMM_ESYS);
			assert_int_equal(err.os_errno, EIO);
			assert_non_null(strstr(err.message, "AIA"));
		}
		assert_int_equal(fds(), before);
	}
	assert_int_equal(fail_at, 10);	/* mode, ids, sources, bits, 3 addresses, init */
}

static void test_narrow(void **state)
{
	(void)state;
	make(1);
	assert_true(aia_narrow(&m));
	assert_int_equal(get(IMSIC, EIE(0)), 0);
	fake.narrow = 0;
	assert_false(aia_narrow(&m));
	assert_int_equal(get(IMSIC, EIE(0)), 0);
	rig_free(&m);
}

/* ---- Lines ---------------------------------------------------------------------------- */

/* As Linux: edge-triggered, each source an identity on a hart. */
static void guest_setup(uint32_t source, uint32_t hart, uint32_t id)
{
	set(APLIC, SOURCECFG(source), EDGE);
	set(APLIC, TARGET(source), hart << 18 | id);
	set(APLIC, SETIE, 1u << source);
}

static void test_pulses(void **state)
{
	struct irq irq = { &m.irqchip, 5 };
	uint32_t i;

	(void)state;
	make(2);
	set(APLIC, DOMAINCFG, 0x100);
	guest_setup(5, 1, 9);
	irq_pulse(&irq);
	assert_int_equal(get(IMSIC, EIP(1)), 1u << 9);
	assert_int_equal(get(IMSIC, EIP(0)), 0);
	for (i = 1; i <= IRQ_LAST; i++) {
		irq.line = i;
		irq_pulse(&irq);
		assert_int_equal(fake_pulses(fake_vm(), i), i == 5 ? 2 : 1);
		assert_false(fake_level(fake_vm(), i));
	}
	rig_free(&m);
}

/* ---- Save and load ------------------------------------------------------------------------ */

static struct writer save(void)
{
	struct writer w = { 0 };

	assert_ok(m.irqchip->ops->save(m.irqchip, &w, &err));
	assert_int_equal(w.failed, 0);
	return w;
}

static int load(const void *data, size_t len)
{
	struct reader r = { data, len, 0 };

	fake.logged = 0;
	return m.irqchip->ops->load(m.irqchip, &r, &err);
}

/* A controller in use: everything that can be, is. */
static void use(uint32_t harts)
{
	uint32_t i;

	set(APLIC, DOMAINCFG, 0x100);
	for (i = 1; i <= 20; i++)
		guest_setup(i, i % harts, 1 + i);
	set(APLIC, SOURCECFG(21), LEVEL);
	set(APLIC, SOURCECFG(22), EDGE);
	set(APLIC, TARGET(22), 3);		/* pending, not enabled */
	set(APLIC, SETIP, 1u << 22);
	kvm_irq_line(m.vm, 7, 1);		/* an edge that is not over */
	kvm_irq_line(m.vm, 21, 1);
	kvm_irq_line(m.vm, 23, 1);		/* of an inactive source */
	set(APLIC, SOURCECFG(24), FALLING);
	set(APLIC, SOURCECFG(25), LOW);		/* low, so it may be pending */
	set(APLIC, SOURCECFG(26), LOW);
	set(APLIC, SETIP, 1u << 25);
	kvm_irq_line(m.vm, 26, 1);
	set(APLIC, SOURCECFG(27), LEVEL);	/* that came and went */
	kvm_irq_line(m.vm, 27, 1);
	kvm_irq_line(m.vm, 27, 0);
	set(APLIC, SOURCECFG(28), LOW);
	kvm_irq_line(m.vm, 28, 0);
	kvm_irq_line(m.vm, 28, 1);
	for (i = 0; i < harts; i++) {
		set(IMSIC, EIE(i), 0x7ffffffeu);
		set(IMSIC, EITHRESHOLD(i), 20 + i);
		set(IMSIC, EIDELIVERY(i), 1);
	}
}

static void test_save_load(void **state)
{
	struct writer w, again;
	uint64_t eip[3];
	unsigned int i;

	(void)state;
	make(3);
	use(3);
	for (i = 0; i < 3; i++)
		eip[i] = get(IMSIC, EIP(i));
	assert_int_equal(eip[1], 1u << 8);	/* source 7 on hart 1: identity 8 */
	w = save();
	rig_free(&m);

	make(3);
	assert_ok(load(w.data, w.len));
	again = save();
	assert_int_equal(again.len, w.len);
	assert_memory_equal(again.data, w.data, w.len);
	/* The same interrupts are pending: none lost, none twice. */
	for (i = 0; i < 3; i++)
		assert_int_equal(get(IMSIC, EIP(i)), eip[i]);
	assert_true(fake_level(fake_vm(), 7) && fake_level(fake_vm(), 21) &&
		    fake_level(fake_vm(), 23) && fake_level(fake_vm(), 26) && fake_level(fake_vm(), 28));
	assert_int_equal(get(APLIC, SETIP), 3u << 21 | 1u << 25 | 3u << 27);
	assert_false(fake_level(fake_vm(), 27) || fake_level(fake_vm(), 24) || fake_level(fake_vm(), 25));
	/* The end of the old edge is none; the next one is. */
	set(IMSIC, EIP(1), 0);
	kvm_irq_line(m.vm, 7, 0);
	assert_int_equal(get(IMSIC, EIP(1)), 0);
	kvm_irq_line(m.vm, 7, 1);
	assert_int_equal(get(IMSIC, EIP(1)), 1u << 8);
	free(w.data);
	free(again.data);
	rig_free(&m);
}

/* Inputs before sourcecfg, files before domaincfg, and that last (kvm-riscv). */
static void test_load_order(void **state)
{
	unsigned int i, line = 0, source = 0, target = 0, imsic = 0, domain = 0;
	struct writer w;

	(void)state;
	make(2);
	use(2);
	w = save();
	rig_free(&m);
	make(2);
	assert_ok(load(w.data, w.len));
	for (i = 0; i < fake.logged; i++) {
		const struct fake_record *r = &fake.log[i];

		if (r->group == FAKE_LINE) {
			assert_int_equal(imsic + domain, 0);
			/* But for a level that comes and goes. */
			assert_true(source + target == 0 || r->attr >= 27);
			line++;
		} else if (r->group == APLIC && r->attr == DOMAINCFG) {
			assert_int_equal(i, fake.logged - 1);
			domain++;
		} else if (r->group == APLIC && r->attr < SETIP) {
			assert_int_equal(imsic, 0);
			source++;
		} else if (r->group == APLIC && r->attr > SETIE) {
			assert_int_equal(fake.log[i - 1].attr, SOURCECFG((r->attr - 0x3000) / 4));
			target++;
		} else if (r->group == APLIC) {
			assert_true(target > 0);
			assert_true(source > 0);
		} else {
			assert_int_equal(r->group, IMSIC);
			imsic++;
		}
	}
	assert_int_equal(line, 5 + 4);
	assert_int_equal(domain, 1);
	assert_int_equal(imsic, 2 * 3 + 1);	/* and what is pending on one */
	free(w.data);
	rig_free(&m);
}

/* One that was never used stays silent: KVM has nothing to be told. */
static void test_load_fresh(void **state)
{
	struct writer w;

	(void)state;
	make(1);
	w = save();
	rig_free(&m);
	make(1);
	assert_ok(load(w.data, w.len));
	assert_int_equal(fake.logged, 0);
	free(w.data);
	rig_free(&m);
}

static void test_load_errors(void **state)
{
	struct writer w;
	size_t n;

	(void)state;
	make(2);
	use(2);
	w = save();
	rig_free(&m);
	for (n = 0; n < w.len; n += 7) {
		make(2);
		assert_fails(load(w.data, n), n < 8 ? VMM_EVERSION : VMM_EFORMAT,
			     "interrupt controller");
		rig_free(&m);
	}
	make(3);
	assert_fails(load(w.data, w.len), VMM_EVERSION, "30 sources and 2 harts, not 30 and 3");
	rig_free(&m);
	make(2);
	w.data[0]++;
	assert_fails(load(w.data, w.len), VMM_EVERSION, "31 sources");
	w.data[0]--;
	fail_at = 5;
	calls = 0;
	fake.fault = nth;
	assert_fails(load(w.data, w.len), VMM_ESYS, "interrupt controller");
	fake.fault = NULL;
	rig_free(&m);
	free(w.data);
}

static void test_load_anything(void **state)
{
	unsigned int i, k, seed = 3;
	struct writer w;

	(void)state;
	make(2);
	w = save();
	for (i = 0; i < 500; i++) {
		for (k = 8; k < w.len; k++)
			w.data[k] = (uint8_t)rand_r(&seed);
		load(w.data, w.len);
	}
	free(w.data);
	rig_free(&m);
}

static int no_get(const char *fn)
{
	return strcmp(fn, "kvm_attr_get") == 0 ? EIO : 0;
}

/* What KVM does not tell must not be saved as 0. */
static void test_save_fails(void **state)
{
	struct writer w = { 0 };

	(void)state;
	make(1);
	fake.fault = no_get;
	m.irqchip->ops->save(m.irqchip, &w, &err);
	fake.fault = NULL;
	assert_int_not_equal(w.failed, 0);
	free(w.data);
	rig_free(&m);
}

/* What cannot be restored is not saved; what a file in memory makes of identity 31
   is no other one. */
static void test_save_wide(void **state)
{
	struct writer w = { 0 };

	(void)state;
	make(2);
	set(IMSIC, EIE(1), 0xffffffff80000000);
	w = save();
	free(w.data);
	memset(&w, 0, sizeof(w));
	fake.narrow = 0;
	set(IMSIC, EIE(1), 1ull << 32 | 4);
	assert_fails(m.irqchip->ops->save(m.irqchip, &w, &err), VMM_ENOTSUP,
		     "hart 1 uses interrupt identities from 32 on");
	free(w.data);
	rig_free(&m);
}

int main(void)
{
#define T(fn) cmocka_unit_test_setup(fn, setup)
	const struct CMUnitTest tests[] = {
		T(test_modes), T(test_harts), T(test_kvm_fails), T(test_narrow), T(test_pulses),
		T(test_save_load), T(test_load_order), T(test_load_fresh), T(test_load_errors),
		T(test_load_anything), T(test_save_fails), T(test_save_wide),
	};

	time_limit(10);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
