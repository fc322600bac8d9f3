/* SPDX-License-Identifier: MIT */
/*
 * test_snapgolden.c - the golden snapshots in tests/golden, one of every
 * version of the format, are read by this library, for ever.
 *
 *	test_snapgolden			check them all
 *	test_snapgolden --make DIR	write those of the present version
 *
 * They are made once, when a version of the format is released, and then kept:
 * a file that is made again would prove nothing.  The second of a pair is a
 * diff that stands on the first.
 */
#include <sys/stat.h>

#include "snaptest.h"

#define GOLDEN "tests/golden"

/* A bit of everything, in little. */
static struct ram golden_ram(void)
{
	struct ram r = ram_new(6 * SNAP_CHUNK + 2 * SNAP_PAGE);
	uint32_t i;

	for (i = 0; i < 6; i++)				/* text, between zeroes */
		page_fill(r.map + (2 * i + 1) * SNAP_PAGE, 3, i);
	page_fill(r.map + SNAP_CHUNK, 1, 1);		/* noise */
	for (i = 0; i < 5; i++)				/* one word */
		page_fill(r.map + 2 * SNAP_CHUNK + i * SNAP_PAGE, 2, 1);
	memcpy(r.map + 4 * SNAP_CHUNK, r.map, SNAP_CHUNK);
	page_fill(r.map + 6 * SNAP_CHUNK + SNAP_PAGE, 3, 9);
	return r;
}

static void golden_change(struct ram *r)
{
	page_fill(r->map + SNAP_PAGE, 3, 100);		/* beside its parent's pages */
	memset(r->map + 3 * SNAP_PAGE, 0, SNAP_PAGE);	/* no more */
	page_fill(r->map + 5 * SNAP_CHUNK, 3, 101);	/* where nothing was */
	memset(r->map + 2 * SNAP_CHUNK, 0, SNAP_PAGE);
}

static void golden_write(const char *path, const struct ram *r, uint8_t id,
			 const struct snapfile *parent)
{
	const uint64_t ws[4] = { 3 << SNAP_WS_SHIFT, 16 << SNAP_WS_SHIFT | SNAP_WS_WRITE,
				 0 << SNAP_WS_SHIFT, 1 << SNAP_WS_SHIFT };
	struct snap_region regions[2] = {
		{ .gpa = 0x80000000, .size = 6 * SNAP_CHUNK },
		{ .gpa = 0x80000000 + 6 * SNAP_CHUNK, .size = 2 * SNAP_PAGE,
		  .kind = SNAP_REGION_PLATFORM },
	};
	struct snap_how how = { .parent = parent };
	struct snap_region one;
	struct snap_image im = image_of(r, &one);

	memset(im.uuid, id, 16);
	im.regions = regions;
	im.nregions = 2;
	im.ws = ws;
	im.nws = parent ? 0 : 4;
	OK(snapfile_write(path, &im, &how, &e_));
}

static int make(const char *dir)
{
	struct ram r = golden_ram();
	struct snapfile *f;

	if (chdir(dir))
		return 1;
	golden_write("snapshot-1.0.snap", &r, 1, NULL);
	f = open_file("snapshot-1.0.snap");
	golden_change(&r);
	golden_write("snapshot-1.0-diff.snap", &r, 2, f);
	snapfile_close(f);
	ram_free(&r);
	return 0;
}

static void test_1_0(void **state)
{
	struct ram r = golden_ram(), to = ram_new(r.size);
	const struct snap_section *s;
	struct snap_counts n;
	struct snapfile *f;

	(void)state;
	f = open_file(GOLDEN "/snapshot-1.0.snap");
	assert_int_equal(f->header->major, 1);
	assert_int_equal(f->header->minor, 0);
	assert_int_equal(f->header->uuid[15], 1);
	assert_int_equal(f->header->created, 1700000000);
	assert_string_equal(f->about, "created-by=test\nhost.isa=rv64gc\n");
	assert_int_equal(f->nregions, 2);
	assert_int_equal(f->regions[1].kind, SNAP_REGION_PLATFORM);
	s = snapfile_section(f, "vcpu.0");
	assert_true(s && s->version == 3 && s->flags == SNAP_MUST_UNDERSTAND && s->len == 9);
	assert_memory_equal(s->data, "registers", 9);
	check_ram(f, &r);
	assert_int_equal(f->ws.npages, 4);
	assert_int_equal(f->ws.nframes, 3);
	assert_int_equal(f->ws.pages[3], 16 << SNAP_WS_SHIFT | SNAP_WS_WRITE);
	assert_int_equal(f->ws.pages[0], SNAP_WS_ZERO);
	OK(snapfile_fill_ws(f, to.fd, NULL, 1, &e_));
	assert_memory_equal(to.map + 16 * SNAP_PAGE, r.map + 16 * SNAP_PAGE, SNAP_PAGE);
	OK(snapfile_count(f, &n, &e_));
	assert_int_equal(n.fills, 1);
	assert_int_equal(n.shared, 1);
	snapfile_close(f);

	f = open_file(GOLDEN "/snapshot-1.0-diff.snap");
	assert_int_equal(f->nlayers, 1);
	assert_string_equal(f->layers[0].path, "snapshot-1.0.snap");
	golden_change(&r);
	check_ram(f, &r);
	OK(snapfile_count(f, &n, &e_));
	assert_int_equal(n.own_frames, 2);
	snapfile_close(f);
	ram_free(&r);
	ram_free(&to);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_1_0),
	};

	if (argc == 3 && strcmp(argv[1], "--make") == 0)
		return make(argv[2]);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
