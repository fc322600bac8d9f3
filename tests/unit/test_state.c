/* SPDX-License-Identifier: MIT */
/*
 * test_state.c - core/state.c: what is written comes back, and a reader
 * survives whatever it is given.
 */
#include "unit.h"

#include "../../core/state.h"

static struct vmm_error err;

static void test_round_trip(void **state)
{
	struct writer w = { 0 };
	struct reader r;
	uint8_t big[3000], back[3000];
	char text[16];
	unsigned int i;

	(void)state;
	for (i = 0; i < sizeof(big); i++)
		big[i] = (uint8_t)(i * 13);
	put_u8(&w, 0xfe);
	put_u16(&w, 0xfedc);
	put_u32(&w, 0xfedcba98u);
	put_u64(&w, 0xfedcba9876543210ull);
	put_str(&w, "name");
	put_str(&w, "");
	put_str(&w, NULL);
	put_bytes(&w, big, sizeof(big));
	put_bytes(&w, NULL, 0);
	assert_int_equal(w.failed, 0);
	assert_int_equal(w.len, 1 + 2 + 4 + 8 + 6 + 2 + 2 + 3000);

	r = (struct reader){ w.data, w.len, 0 };
	assert_int_equal(get_u8(&r), 0xfe);
	assert_int_equal(get_u16(&r), 0xfedc);
	assert_int_equal(get_u32(&r), 0xfedcba98u);
	assert_int_equal(get_u64(&r), 0xfedcba9876543210ull);
	get_str(&r, text, sizeof(text));
	assert_string_equal(text, "name");
	get_str(&r, text, sizeof(text));
	assert_string_equal(text, "");
	get_str(&r, text, sizeof(text));
	assert_string_equal(text, "");
	get_bytes(&r, back, sizeof(back));
	assert_memory_equal(back, big, sizeof(big));
	assert_ok(reader_end(&r, "part", &err));
	free(w.data);
}

/* The bytes are part of the snapshot format. */
static void test_layout(void **state)
{
	static const uint8_t want[] = { 1, 3, 2, 7, 6, 5, 4, 15, 14, 13, 12, 11, 10, 9, 8,
					2, 0, 'h', 'i' };
	struct writer w = { 0 };

	(void)state;
	put_u8(&w, 1);
	put_u16(&w, 0x0203);
	put_u32(&w, 0x04050607);
	put_u64(&w, 0x08090a0b0c0d0e0full);
	put_str(&w, "hi");
	assert_int_equal(w.len, sizeof(want));
	assert_memory_equal(w.data, want, sizeof(want));
	free(w.data);
}

static void test_dry(void **state)
{
	static const uint8_t data[] = { 1, 2, 3 };
	uint8_t buf[4] = { 9, 9, 9, 9 };
	struct reader r;

	(void)state;
	r = (struct reader){ data, 3, 0 };
	assert_int_equal(get_u16(&r), 0x0201);
	assert_int_equal(get_u32(&r), 0);	/* too much: nothing of it */
	assert_int_equal(r.failed, 1);
	assert_int_equal(get_u8(&r), 0);	/* and nothing from then on */
	get_bytes(&r, buf, 4);
	assert_int_equal(buf[0] | buf[1] | buf[2] | buf[3], 0);
	assert_fails(reader_end(&r, "the uart", &err), VMM_EFORMAT, "the uart: too short");

	r = (struct reader){ data, 3, 0 };
	get_u8(&r);
	assert_fails(reader_end(&r, "the uart", &err), VMM_EFORMAT, "the uart: 2 bytes too many");
	r = (struct reader){ NULL, 0, 0 };
	assert_ok(reader_end(&r, "nothing", &err));
	assert_int_equal(get_u64(&r), 0);
	assert_fails(reader_end(&r, "nothing", &err), VMM_EFORMAT, "too short");
}

static void test_strings(void **state)
{
	static const uint8_t exact[] = { 3, 0, 'a', 'b', 'c' }, lies[] = { 4, 0, 'a', 'b', 'c' },
			     huge[] = { 0xff, 0xff, 'a' };
	struct reader r;
	char text[4] = "zzz";

	(void)state;
	r = (struct reader){ exact, sizeof(exact), 0 };
	get_str(&r, text, 4);
	assert_string_equal(text, "abc");
	assert_int_equal(r.failed, 0);
	r = (struct reader){ exact, sizeof(exact), 0 };
	get_str(&r, text, 3);		/* no room for its end */
	assert_string_equal(text, "");
	assert_int_equal(r.failed, 1);
	r = (struct reader){ lies, sizeof(lies), 0 };
	get_str(&r, text, 4);
	assert_string_equal(text, "");
	assert_int_equal(r.failed, 1);
	r = (struct reader){ huge, sizeof(huge), 0 };
	get_str(&r, text, 4);
	assert_string_equal(text, "");
	assert_int_equal(r.failed, 1);
}

static void test_long_string(void **state)
{
	char *text = malloc(70001), *back = malloc(70001);
	struct writer w = { 0 };
	struct reader r;

	(void)state;
	memset(text, 'x', 70000);
	text[70000] = 0;
	put_str(&w, text);		/* its length has 16 bits: it is cut */
	r = (struct reader){ w.data, w.len, 0 };
	get_str(&r, back, 70001);
	assert_int_equal(strlen(back), 65535);
	assert_ok(reader_end(&r, "part", &err));
	free(w.data);
	free(text);
	free(back);
}

/* What is cut off anywhere is noticed; so is what is too much. */
static void test_every_length(void **state)
{
	struct writer w = { 0 };
	struct reader r;
	char text[8];
	size_t n;

	(void)state;
	put_u32(&w, 1);
	put_str(&w, "abc");
	put_u64(&w, 2);
	put_u8(&w, 3);			/* what the reader does not know */
	for (n = 0; n <= w.len; n++) {
		uint8_t *copy = malloc(n ? n : 1);	/* so that ASan sees its end */

		memcpy(copy, w.data, n);
		r = (struct reader){ copy, n, 0 };
		get_u32(&r);
		get_str(&r, text, sizeof(text));
		get_u64(&r);
		assert_int_equal(reader_end(&r, "part", &err), n == w.len - 1 ? 0 : VMM_EFORMAT);
		free(copy);
	}
	free(w.data);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_round_trip),
		cmocka_unit_test(test_layout),
		cmocka_unit_test(test_dry),
		cmocka_unit_test(test_strings),
		cmocka_unit_test(test_long_string),
		cmocka_unit_test(test_every_length),
	};

	time_limit(5);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
