/* SPDX-License-Identifier: MIT */
/*
 * test_linux_balloon.c - guest memory that goes back to the host, and returns.
 *
 *	test_linux_balloon [options] KERNEL INITRD [CASE...]
 *
 * Measured by vmm_stats.memory_used, what of the guest's RAM the host holds.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "inlinux.h"

#define MIB		(1ull << 20)
#define GUEST_MIB	256u

static struct inlinux guest;

static uint64_t used(void)
{
	struct vmm_stats st = VMM_STATS_INIT;

	CALL(vmm_stat(guest.vm, &st, &test_err));
	return st.memory_used;
}

/* Wait until the host holds less (more) than that; what it holds. */
static uint64_t settle(uint64_t bytes, int more)
{
	uint64_t until = now_ms() + 120000, n;

	while (n = used(), more ? n < bytes : n > bytes) {
		if (now_ms() > until)
			test_fail("%llu MiB of RAM held, not %s %llu", (unsigned long long)(n / MIB),
				  more ? "more than" : "less than", (unsigned long long)(bytes / MIB));
		sleep_ms(200);
	}
	return n;
}

/* Of the guest's /proc/meminfo, in bytes: what it has free. */
static uint64_t guest_free(void)
{
	char line[64];

	il_say(&guest, "look");
	il_expect_rest(&guest, "has", line, sizeof(line), 60);
	return strtoull(line, NULL, 10) * 1024;
}

/* What the guest tells of itself, once it has. */
static void stats(uint64_t returned)
{
	struct vmm_balloon_stats st = VMM_BALLOON_STATS_INIT;
	uint64_t until = now_ms() + 60000;
	uint32_t before;

	CALL(vmm_balloon_stat(guest.vm, "balloon", &st, &test_err));
	before = st.answers;
	do {
		if (now_ms() > until)
			test_fail("the guest does not answer");
		sleep_ms(10);
		CALL(vmm_balloon_stat(guest.vm, "balloon", &st, &test_err));
	} while (st.answers == before);
	CHECK(st.total > (GUEST_MIB - 64) * MIB && st.total <= GUEST_MIB * MIB);
	CHECK(st.free > 0 && st.free < st.total && st.available > 0 && st.minor_faults > 0);
	CHECK(st.returned >= returned);
}

static void balloon(void)
{
	static const char script[] =
		"while w=$(hear); do case $w in\n"
		"look) say has $(awk '/MemFree/ { print $2 }' /proc/meminfo) ;;\n"
		"fill) inside fill 1 62914560 >/tmp/x; inside check 1 62914560 </tmp/x; say filled ;;\n"
		"free) rm /tmp/x; say freed ;;\n"
		"end) break ;;\n"
		"esac; done\n";
	const uint64_t size = (test_options.full ? 160 : 96) * MIB;
	uint64_t full, freed, before, small, again;

	il_new(&guest, script, 1, GUEST_MIB);
	CALL(vmm_add_balloon(guest.vm, "balloon", &test_err));
	il_start(&guest);
	before = used();

	/* At once, when asked: all that is free in blocks of 4 MiB, Linux tells of no others. */
	il_say(&guest, "fill");
	il_expect(&guest, "filled", 300);
	full = used();
	il_say(&guest, "free");
	il_expect(&guest, "freed", 60);
	CALL(vmm_trim(guest.vm, "balloon", 120000, &test_err));
	freed = used();
	test_note("trimmed: %llu MiB held with a file of 60 MiB, %llu without it",
		  (unsigned long long)(full / MIB), (unsigned long long)(freed / MIB));
	CHECK(freed <= full - 16 * MIB);
	stats(full - freed);

	/* By itself: what the guest frees is reported, within seconds. */
	il_say(&guest, "fill");
	il_expect(&guest, "filled", 300);
	full = used();
	CHECK(full >= before + 55 * MIB);
	il_say(&guest, "free");
	il_expect(&guest, "freed", 60);
	freed = settle(full - 40 * MIB, 0);
	test_note("reported: %llu MiB held, with a file of 60 MiB %llu, without it %llu",
		  (unsigned long long)(before / MIB), (unsigned long long)(full / MIB),
		  (unsigned long long)(freed / MIB));

	/* When asked. */
	il_say(&guest, "fill");
	il_expect(&guest, "filled", 300);
	CALL(vmm_balloon(guest.vm, "balloon", size, &test_err));
	il_say(&guest, "free");
	il_expect(&guest, "freed", 60);
	small = settle((GUEST_MIB * MIB) - size, 0);
	while (guest_free() > GUEST_MIB * MIB - size)
		sleep_ms(200);
	small = settle((GUEST_MIB * MIB) - size, 0);

	/* And back: the guest can have it again, and it is as good as new. */
	CALL(vmm_balloon(guest.vm, "balloon", 0, &test_err));
	while (guest_free() < size)
		sleep_ms(200);
	il_say(&guest, "fill");
	il_expect(&guest, "filled", 300);
	/* In pages that came back, or in some that had not been reported yet. */
	again = settle(80 * MIB, 1);
	test_note("balloon of %llu MiB: %llu MiB held; deflated and in use again: %llu",
		  (unsigned long long)(size / MIB), (unsigned long long)(small / MIB),
		  (unsigned long long)(again / MIB));
	il_say(&guest, "end");
	il_end(&guest, 60);
}

static const struct test_case cases[] = {
	{ "balloon", balloon, 900, 0 },
};

int main(int argc, char **argv)
{
	return test_main_args(argc, argv, cases, sizeof(cases) / sizeof(cases[0]),
			      "KERNEL INITRD ", &il_kernel, &il_initrd);
}
