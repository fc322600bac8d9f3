/* SPDX-License-Identifier: MIT */
/*
 * test_platform.c - riscv/genid.c and riscv/doorbell.c.
 */
#include "rig.h"

#include "../../vmm_guest.h"

static struct vmm_error err;
static struct machine m;

static int setup(void **state)
{
	(void)state;
	fake_reset();
	rig_make(&m, 1, 0);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	rig_free(&m);
	return 0;
}

/* ---- Generation id ------------------------------------------------------------------ */

static void test_genid(void **state)
{
	uint8_t id[16], none[16] = { 0 };
	struct device *d;
	struct writer w;

	(void)state;
	assert_ok(genid_add(&m, &err));
	d = machine_device(&m, "vmgenid");
	/* In the platform's pages, right behind the RAM. */
	assert_int_equal(d->gpa, MAP_RAM + RIG_RAM);
	rig_reset(&m, d);
	memcpy(id, mem_tail(&m.mem), 16);
	assert_memory_not_equal(id, none, 16);
	assert_int_equal(fake_pulses(fake_vm(), IRQ_GENID), 0);
	/* Saving and loading leave it to the RAM; a clone gets a new one. */
	w = rig_save(d);
	assert_int_equal(w.len, 0);
	assert_ok(rig_load(&m, d, w.data, w.len, &err));
	assert_fails(rig_load(&m, d, "x", 1, &err), VMM_EFORMAT, "vmgenid: 1 bytes too many");
	assert_memory_equal(id, mem_tail(&m.mem), 16);
	d->ops->cloned(d);
	assert_memory_not_equal(id, mem_tail(&m.mem), 16);
	assert_memory_not_equal(none, mem_tail(&m.mem), 16);
	assert_int_equal(fake_pulses(fake_vm(), IRQ_GENID), 1);
	assert_int_equal(fake_level(fake_vm(), IRQ_GENID), 0);
	/* Just 16 bytes of the page. */
	assert_int_equal(((uint8_t *)mem_tail(&m.mem))[16], 0);
}

/* ---- Doorbell ------------------------------------------------------------------------ */

static int no_more(const void *arg)
{
	(void)arg;
	return 0;
}

static struct vmm_event take(void)
{
	struct vmm_event ev;

	events_take(&m.events, 0, no_more, NULL, &ev);
	return ev;
}

static void test_doorbell(void **state)
{
	static const uint64_t values[] = { 0, 1, 0xffffffff, 0x123456789abcdef0ull, ~0ull };
	struct vmm_event ev;
	unsigned int i;

	(void)state;
	assert_ok(doorbell_add(&m, &err));
	assert_int_equal(rig_read(&m, MAP_DOORBELL + VMM_GUEST_MAGIC, 4), VMM_GUEST_MAGIC_VALUE);
	for (i = 0; i < 5; i++) {
		rig_write(&m, MAP_DOORBELL + VMM_GUEST_RING, 8, values[i]);
		ev = take();
		assert_int_equal(ev.type, VMM_EV_DOORBELL);
		assert_int_equal(ev.value, values[i]);
		assert_int_equal(ev.vcpu, 0);
	}
	/* Reads ring nothing; nor do writes elsewhere on the page. */
	for (i = 0; i < 0x1000; i++) {
		if (i != VMM_GUEST_RING && i != VMM_GUEST_EXIT)
			rig_write(&m, MAP_DOORBELL + i, 1, 0xff);
		if (i != VMM_GUEST_MAGIC)
			assert_int_equal(rig_read(&m, MAP_DOORBELL + i, 1), 0);
	}
	assert_int_equal(take().type, VMM_EV_NONE);
}

/* In a machine that does not run there is nothing to end. */
static void test_exit_register(void **state)
{
	(void)state;
	assert_ok(doorbell_add(&m, &err));
	rig_write(&m, MAP_DOORBELL + VMM_GUEST_EXIT, 8, 3);
	assert_int_equal(take().type, VMM_EV_NONE);
	assert_int_equal(machine_state(&m), VMM_NEW);
}

static void test_doorbell_state(void **state)
{
	struct device *d;
	struct writer w;

	(void)state;
	assert_ok(doorbell_add(&m, &err));
	d = machine_device(&m, "doorbell");
	w = rig_save(d);
	assert_int_equal(w.len, 0);
	assert_ok(rig_load(&m, d, NULL, 0, &err));
	assert_fails(rig_load(&m, d, "xy", 2, &err), VMM_EFORMAT, "doorbell: 2 bytes too many");
	rig_reset(&m, d);
}

/* ---- The list of devices ----------------------------------------------------------------- */

static void test_list(void **state)
{
	int before = fds();

	(void)state;
	assert_ok(rtc_add(&m, &err));
	assert_ok(genid_add(&m, &err));
	assert_ok(doorbell_add(&m, &err));
	assert_string_equal(m.devices->name, "rtc");
	assert_string_equal(m.devices->next->name, "vmgenid");
	assert_string_equal(m.devices->next->next->name, "doorbell");
	assert_fails(rtc_add(&m, &err), VMM_EINVAL, "has a device rtc already");
	assert_fails(genid_add(&m, &err), VMM_EINVAL, "has a device vmgenid already");
	assert_fails(doorbell_add(&m, &err), VMM_EINVAL, "has a device doorbell already");
	assert_null(machine_device(&m, "serial"));
	assert_int_equal(fds(), before);
}

/* A line nobody is connected to, and one before its controller is there. */
static void test_no_line(void **state)
{
	struct irqchip *none = NULL;
	const struct irq unconnected = { NULL, 3 }, unbuilt = { &none, 3 };
	const struct irq zero = { &m.irqchip, 0 }, line = { &m.irqchip, 7 };

	(void)state;
	irq_pulse(&unconnected);
	irq_pulse(&unbuilt);
	irq_pulse(&zero);
	irq_pulse(&line);
	assert_int_equal(fake_pulses(fake_vm(), 7), 1);
	assert_int_equal(fake_pulses(fake_vm(), 3), 0);
}

int main(void)
{
#define T(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(test_genid), T(test_doorbell), T(test_exit_register), T(test_doorbell_state),
		T(test_list), T(test_no_line),
	};

	time_limit(10);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
