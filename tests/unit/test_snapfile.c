/* SPDX-License-Identifier: MIT */
/*
 * test_snapfile.c - what is written to a snapshot file comes back: RAM of all
 * kinds and sizes, sections, working set; through pipes, as diffs, merged.
 */
#include <pthread.h>
#include <sys/stat.h>

#include "snaptest.h"

static void test_kinds(void **state)
{
	static const uint64_t sizes[] = { 4 * KB, 60 * KB, 64 * KB, 68 * KB, 1 * MB, 2 * MB + 4 * KB,
					  5 * MB };
	unsigned int kind, i;
	uint64_t p;

	(void)state;
	for (i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
		for (kind = 0; kind < 5; kind++) {
			struct ram r = ram_new(sizes[i]);

			for (p = 0; p < sizes[i] / SNAP_PAGE; p++)
				if (kind < 4)
					page_fill(r.map + p * SNAP_PAGE, kind, p / 16 % 3);
			if (kind == 4)
				ram_mix(&r, i);
			write_ram("kinds", &r, NULL);
			check_file("kinds", &r);
			ram_free(&r);
		}
	}
}

static void test_large_sparse(void **state)
{
	struct ram r = ram_new(64 * MB);
	struct snap_counts n;
	struct snapfile *f;
	struct stat st;
	uint64_t p;

	(void)state;
	for (p = 0; p < 64; p++)
		page_fill(r.map + (p * 257 % 16384) * SNAP_PAGE, 1 + (unsigned int)p % 3, p);
	write_ram("sparse", &r, NULL);
	/* Looking for what is there has not made anything there. */
	assert_int_equal(fstat(r.fd, &st), 0);
	assert_true(st.st_blocks <= 64 * 8);
	check_file("sparse", &r);
	f = open_file("sparse");
	OK(snapfile_count(f, &n, &e_));
	assert_int_equal(n.ram_pages, 64);
	assert_true(n.own_bytes < 64 * SNAP_PAGE);
	snapfile_close(f);
	ram_free(&r);
}

/* The same bytes whatever the number of threads, and the source. */
static void test_deterministic(void **state)
{
	struct ram r = ram_new(9 * MB);
	struct snap_region region;
	struct snap_image im;
	uint8_t first[16] = { 0 };
	unsigned int i;

	(void)state;
	ram_mix(&r, 3);
	im = image_of(&r, &region);
	im.uuid[0] = 1;
	for (i = 0; i < 6; i++) {
		struct snap_how how = { .threads = 1 + i };
		struct snapfile *f;

		im.ram.map = i % 3 ? r.map : NULL;
		im.ram.fd = i % 3 == 1 ? -1 : r.fd;
		OK(snapfile_write("same", &im, &how, &e_));
		f = open_file("same");
		if (!i)
			memcpy(first, f->footer.manifest, 16);
		assert_memory_equal(first, f->footer.manifest, 16);
		check_ram(f, &r);
		snapfile_close(f);
	}
	ram_free(&r);
}

static void test_twins(void **state)
{
	struct ram r = ram_new(16 * MB);
	struct snap_counts n;
	struct snapfile *f;
	uint64_t p;

	(void)state;
	/* Three chunks again and again, and pages at other places in theirs. */
	for (p = 0; p < r.size / SNAP_PAGE; p++)
		page_fill(r.map + p * SNAP_PAGE, 3, p % 16 + p / 16 % 3 * 16);
	memset(r.map, 0, 2 * SNAP_CHUNK);
	page_fill(r.map + 3 * SNAP_PAGE, 3, 77);
	page_fill(r.map + SNAP_CHUNK + 9 * SNAP_PAGE, 3, 77);
	write_ram("twins", &r, NULL);
	check_file("twins", &r);
	f = open_file("twins");
	OK(snapfile_count(f, &n, &e_));
	assert_int_equal(n.own_frames, 4);
	assert_int_equal(n.shared, 256 - 4);
	OK(snapfile_merge(f, "twins.merged", NULL, &e_));
	snapfile_close(f);
	check_file("twins.merged", &r);
	f = open_file("twins.merged");
	OK(snapfile_count(f, &n, &e_));
	assert_int_equal(n.own_frames, 4);
	snapfile_close(f);
	ram_free(&r);
}

static int known(void *arg, const struct snap_section *s)
{
	return strcmp(s->name, arg) != 0;
}

/* A guest can make pages of one hash, each another.  Were each compared with all of
   them this would take many minutes. */
static void test_flood(void **state)
{
	/* XXH64, of its first lane: what a word does to it, and undone. */
	const uint64_t p1 = 0x9e3779b185ebca87, p2 = 0xc2b2ae3d27d4eb4f;
	struct ram r = ram_new(16384 * SNAP_CHUNK);
	uint64_t i, a, b, inverse = p2, hash = 0;
	struct snap_counts n;
	struct snapfile *f;

	(void)state;
	for (i = 0; i < 6; i++)
		inverse *= 2 - p2 * inverse;
	for (i = 0; i < 16384; i++) {
		uint8_t *page = r.map + i * SNAP_CHUNK;

		a = p1 + p2 + i * p2;
		a = (a << 31 | a >> 33) * p1;
		b = -a * inverse;
		memset(page, 1, SNAP_PAGE);
		memcpy(page, &i, 8);
		memcpy(page + 32, &b, 8);
		if (i)
			assert_true(hash == snap_hash(page, SNAP_PAGE));
		hash = snap_hash(page, SNAP_PAGE);
	}
	write_ram("flood", &r, NULL);
	f = open_file("flood");
	OK(snapfile_verify(f, 2, &e_));
	OK(snapfile_count(f, &n, &e_));
	assert_int_equal(n.own_frames, 16384);
	snapfile_close(f);
	ram_free(&r);
}

static void test_header(void **state)
{
	struct ram r = ram_new(192 * KB);
	struct snap_region regions[2] = {
		{ .gpa = 0x80000000, .size = 128 * KB },
		{ .gpa = 0x100000000, .size = 64 * KB, .kind = SNAP_REGION_PLATFORM },
	};
	struct snap_image im;
	const struct snap_section *s;
	struct snapfile *f;

	(void)state;
	ram_mix(&r, 1);
	im = image_of(&r, regions);
	im.regions = regions;
	regions[0].size = 128 * KB;
	im.nregions = 2;
	OK(snapfile_write("header", &im, NULL, &e_));
	f = open_file("header");
	assert_int_equal(f->header->created, 1700000000);
	assert_string_equal(f->about, im.about);
	assert_int_equal(f->nregions, 2);
	assert_memory_equal(f->regions, regions, sizeof(regions));
	assert_int_equal(snapfile_gpa(f, 64 * KB), 0x80010000);
	assert_int_equal(snapfile_gpa(f, 128 * KB + 8), 0x100000008);
	assert_int_equal(f->nsections, 3);
	s = snapfile_section(f, "vcpu.0");
	assert_true(s && s->version == 3 && s->len == 9);
	assert_memory_equal(s->data, "registers", 9);
	s = snapfile_section(f, "uart");
	assert_true(s && s->len == 0);
	assert_null(snapfile_section(f, "vcpu"));
	OK(snapfile_understood(f, known, (char[]){ "uart" }, &e_));
	FAILS(VMM_EVERSION, "section vcpu.0, version 3, is not understood",
	      snapfile_understood(f, known, (char[]){ "vcpu.0" }, &e_));
	snapfile_close(f);

	/* What a caller can get wrong. */
	regions[1].size = 4 * KB;
	FAILS(VMM_EINVAL, "RAM map", snapfile_write("header", &im, NULL, &e_));
	regions[1].size = 64 * KB;
	im.sections = (struct snap_section[]){ { "a", 1, 0, "", 0 }, { "a", 1, 0, "", 0 } };
	im.nsections = 2;
	FAILS(VMM_EINVAL, "section a twice", snapfile_write("header", &im, NULL, &e_));
	im.nsections = 0;
	FAILS(VMM_ESYS, "no/header", snapfile_write("no/header", &im, NULL, &e_));
	FAILS(VMM_EINVAL, "not a regular file", snapfile_write("/dev/null", &im, NULL, &e_));
	FAILS(VMM_EINVAL, "not a regular file", snapfile_write(".", &im, NULL, &e_));
	im.ram.map = NULL;
	im.ram.fd = -1;
	FAILS(VMM_EINVAL, "no RAM", snapfile_write("header", &im, NULL, &e_));
	ram_free(&r);
}

struct pipe_arg {
	const char	*path;		/* read a file, or */
	struct snap_image *im;		/* send an image */
	int		fd;
};

static void *feed(void *arg)
{
	struct pipe_arg *a = arg;
	char buf[1000];
	ssize_t n;
	int fd;

	if (a->im) {
		OK(snapfile_send(a->fd, a->im, NULL, &e_));
	} else {
		fd = open(a->path, O_RDONLY);
		while ((n = read(fd, buf, sizeof(buf))) > 0)
			if (write(a->fd, buf, (size_t)n) != n)
				break;
		close(fd);
	}
	close(a->fd);
	return NULL;
}

static void test_pipe(void **state)
{
	struct ram r = ram_new(7 * MB + 8 * KB);
	struct snap_region region;
	struct snap_image im;
	struct snapfile *f;
	pthread_t t;
	int p[2], i;

	(void)state;
	ram_mix(&r, 8);
	im = image_of(&r, &region);
	OK(snapfile_write("piped", &im, NULL, &e_));
	for (i = 0; i < 2; i++) {
		struct pipe_arg a = { .path = "piped", .im = i ? &im : NULL };

		assert_int_equal(pipe2(p, O_CLOEXEC | (i ? O_NONBLOCK : 0)), 0);
		if (i)
			fcntl(p[0], F_SETFL, 0);
		a.fd = p[1];
		assert_int_equal(pthread_create(&t, NULL, feed, &a), 0);
		OK(snapfile_open_fd(&f, p[0], "pipe", NULL, 0, &e_));
		pthread_join(t, NULL);
		close(p[0]);
		check_ram(f, &r);
		snapfile_close(f);
	}
	/* A reader that is not interested: an error, and no signal. */
	assert_int_equal(pipe(p), 0);
	close(p[0]);
	FAILS(VMM_ESYS, "Broken pipe", snapfile_send(p[1], &im, NULL, &e_));
	close(p[1]);
	i = open("/dev/zero", O_RDONLY);
	FAILS(VMM_EFORMAT, "not a snapshot", snapfile_open_fd(&f, i, "zero", NULL, 0, &e_));
	close(i);
	ram_free(&r);
}

static int stop_at_half(void *arg, uint64_t done, uint64_t total)
{
	assert_true(done <= total);
	++*(int *)arg;
	return done >= total / 2;
}

static void test_cancel(void **state)
{
	struct ram r = ram_new(16 * MB);
	struct snap_region region;
	struct snap_image im;
	int calls = 0;
	struct snap_how how = { .progress = stop_at_half, .arg = &calls };

	(void)state;
	ram_mix(&r, 8);
	write_ram("cancel", &r, NULL);
	im = image_of(&r, &region);
	im.created = 1;
	FAILS(VMM_ESTATE, "stopped", snapfile_write("cancel", &im, &how, &e_));
	assert_int_equal(calls, 4);
	check_file("cancel", &r);
	ram_free(&r);
}

/* Change some pages; returns their bitmap. */
static uint64_t *ram_change(struct ram *r, uint64_t seed, unsigned int n)
{
	uint64_t *dirty = calloc(r->size / SNAP_PAGE / 64 + 1, 8), x = seed * 77 + 5, page;

	while (n--) {
		page = next_random(&x) % (r->size / SNAP_PAGE);
		dirty[page / 64] |= 1ull << page % 64;
		/* Some to zero, and some to what they were. */
		if (x >> 40 & 7)
			page_fill(r->map + page * SNAP_PAGE, (unsigned int)(x >> 50 & 3), x);
	}
	return dirty;
}

static void test_chain(void **state)
{
	struct ram r = ram_new(2 * MB + 20 * KB);
	struct snapfile *parent, *f;
	char name[32], last[32] = "chain.0";
	struct snap_counts n;
	unsigned int depth;

	(void)state;
	ram_mix(&r, 11);
	write_ram(last, &r, NULL);
	for (depth = 1; depth <= 16; depth++) {
		struct snap_region region;
		struct snap_image im = image_of(&r, &region);
		struct snap_how how = { 0 };
		uint64_t *dirty = ram_change(&r, depth, depth % 3 == 2 ? 200 : 40);
		struct ram base = ram_new(r.size);

		parent = open_file(last);
		/* By bitmap, by decoding the parent, by the parent's RAM. */
		if (depth % 3 == 0)
			im.ram.dirty = dirty;
		if (depth % 3 == 1) {
			OK(snapfile_fill(parent, base.fd, NULL, 1, &e_));
			im.ram.base = base.map;
		}
		how.parent = parent;
		snprintf(name, sizeof(name), "chain.%u", depth);
		OK(snapfile_write(name, &im, &how, &e_));
		snapfile_close(parent);
		check_file(name, &r);
		f = open_file(name);
		assert_int_equal(f->nlayers, depth);
		OK(snapfile_count(f, &n, &e_));
		assert_true(n.own_frames <= (depth % 3 == 2 ? 110 : 40));
		if (depth % 5 == 1) {
			OK(snapfile_merge(f, "chain.merged", NULL, &e_));
			snapfile_close(f);
			check_file("chain.merged", &r);
			f = open_file("chain.merged");
			assert_int_equal(f->nlayers, 0);
			assert_int_equal(f->nsections, 3);
		}
		snapfile_close(f);
		strcpy(last, name);
		free(dirty);
		ram_free(&base);
	}
	ram_free(&r);
}

/* Anonymous RAM: only what is said to be there is looked at. */
static void test_anonymous(void **state)
{
	struct ram r = ram_new(3 * MB), a = r;
	uint64_t dirty[3 * MB / SNAP_PAGE / 64] = { 0 }, i;
	struct snap_region region;
	struct snap_image im;

	(void)state;
	a.map = mmap(NULL, a.size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	a.fd = -1;
	for (i = 0; i < a.size / SNAP_PAGE; i += 7) {
		page_fill(a.map + i * SNAP_PAGE, 3, i);
		if (i % 3) {
			dirty[i / 64] |= 1ull << i % 64;
			memcpy(r.map + i * SNAP_PAGE, a.map + i * SNAP_PAGE, SNAP_PAGE);
		}
	}
	im = image_of(&a, &region);
	im.ram.dirty = dirty;
	OK(snapfile_write("anon", &im, NULL, &e_));
	check_file("anon", &r);
	im.ram.dirty = NULL;
	OK(snapfile_write("anon", &im, NULL, &e_));
	check_file("anon", &a);
	munmap(a.map, a.size);
	ram_free(&r);
}

/* Clones: RAM is a private mapping, of which only the dirty pages are known. */
static void test_private(void **state)
{
	struct ram r = ram_new(3 * MB), c = r;
	struct snap_region region;
	struct snap_image im;
	struct snap_counts n;
	struct snap_how how = { 0 };
	struct snapfile *parent, *f;
	struct stat st;
	uint64_t *dirty, blocks;

	(void)state;
	ram_mix(&r, 4);
	write_ram("template", &r, NULL);
	c.map = mmap(NULL, c.size, PROT_READ | PROT_WRITE, MAP_PRIVATE, c.fd, 0);
	dirty = ram_change(&c, 9, 30);
	assert_int_equal(fstat(r.fd, &st), 0);
	blocks = (uint64_t)st.st_blocks;
	im = image_of(&c, &region);
	im.ram.dirty = dirty;
	/* Whole, without touching the template's holes; then as a diff. */
	OK(snapfile_write("clone", &im, NULL, &e_));
	assert_int_equal(fstat(r.fd, &st), 0);
	/* A private mapping fills a hole of its file where it is touched. */
	assert_true((uint64_t)st.st_blocks <= blocks + 30 * 8);
	check_file("clone", &c);
	parent = open_file("template");
	how.parent = parent;
	OK(snapfile_write("clone.diff", &im, &how, &e_));
	snapfile_close(parent);
	check_file("clone.diff", &c);
	f = open_file("clone.diff");
	OK(snapfile_count(f, &n, &e_));
	assert_true(n.own_frames + n.fills <= 60 && n.own_frames > 0);
	snapfile_close(f);
	munmap(c.map, c.size);
	free(dirty);
	ram_free(&r);
}

static void test_parents(void **state)
{
	struct ram r = ram_new(1 * MB);
	struct snapfile *f;

	(void)state;
	ram_mix(&r, 2);
	assert_int_equal(mkdir("p", 0700), 0);
	assert_int_equal(mkdir("p/q", 0700), 0);
	assert_int_equal(mkdir("p2", 0700), 0);
	write_ram("p/base", &r, NULL);
	f = open_file("p/base");
	page_fill(r.map, 3, 99);
	write_ram("p2/child", &r, f);
	write_ram("p/q/child", &r, f);
	write_ram("p/child", &r, f);
	snapfile_close(f);
	f = open_file("p2/child");
	assert_string_equal(f->layers[0].path, "../p/base");
	page_fill(r.map + SNAP_PAGE, 3, 7);
	write_ram("p/q/grandchild", &r, f);
	check_file("p/q/grandchild", &r);
	snapfile_close(f);
	f = open_file("p/q/grandchild");
	assert_string_equal(f->layers[0].path, "../../p2/child");
	assert_string_equal(f->layers[1].path, "../base");
	snapfile_close(f);
	page_fill(r.map, 0, 0);
	ram_mix(&r, 2);
	page_fill(r.map, 3, 99);
	assert_int_equal(unlink("p/q/grandchild"), 0);
	f = open_file("p/q/child");
	assert_string_equal(f->layers[0].path, "../base");
	snapfile_close(f);
	f = open_file("p/child");
	assert_string_equal(f->layers[0].path, "base");
	snapfile_close(f);
	check_file("p2/child", &r);
	check_file("p/q/child", &r);

	/* Moved together; beside the child; gone; another. */
	assert_int_equal(rename("p", "r"), 0);
	check_file("r/q/child", &r);
	FAILS(VMM_ESYS, "parent ../p/base is missing", snapfile_open(&f, "p2/child", 0, &e_));
	OK(snapfile_open(&f, "p2/child", SNAP_OPEN_ALONE, &e_));
	assert_int_equal(f->nlayers, 1);
	FAILS(VMM_ESTATE, "without parent", snapfile_fill(f, -1, NULL, 1, &e_));
	snapfile_close(f);
	assert_int_equal(link("r/base", "p2/base"), 0);
	check_file("p2/child", &r);
	assert_int_equal(unlink("p2/base"), 0);
	write_ram("p2/base", &r, NULL);
	FAILS(VMM_EFORMAT, "parent ../p/base has changed", snapfile_open(&f, "p2/child", 0, &e_));
	write_ram("r/base", &r, NULL);
	FAILS(VMM_EFORMAT, "parent base has changed", snapfile_open(&f, "r/child", 0, &e_));
	ram_free(&r);
}

static void test_working_set(void **state)
{
	struct ram r = ram_new(4 * MB), to;
	struct snap_region region;
	struct snap_image im;
	uint64_t ws[400], x = 5, zeroes = 0, last = 0;
	struct snapfile *f, *g;
	uint8_t id[16];
	uint32_t i, pass;

	(void)state;
	ram_mix(&r, 21);
	for (i = 0; i < 400; i++)
		ws[i] = next_random(&x) % (r.size / SNAP_PAGE) << SNAP_WS_SHIFT | (x >> 20 & 1);
	im = image_of(&r, &region);
	im.ws = ws;
	im.nws = 400;
	OK(snapfile_write("ws.0", &im, NULL, &e_));
	im.nws = 0;
	im.ws = NULL;
	im.uuid[3] = 9;
	OK(snapfile_write("ws.1", &im, NULL, &e_));
	f = open_file("ws.1");
	assert_int_equal(f->ws.npages, 0);
	memcpy(id, f->footer.manifest, 16);
	page_fill(r.map, 3, 123);
	write_ram("ws.child", &r, f);
	OK(snapfile_learn(f, "ws.1", ws, 400, &e_));	/* over itself */
	OK(snapfile_learn(f, "ws.2", ws, 400, &e_));
	snapfile_close(f);
	f = open_file("ws.2");
	assert_memory_equal(id, f->footer.manifest, 16);
	OK(snapfile_merge(f, "ws.3", NULL, &e_));
	snapfile_close(f);
	/* The child does not mind what its parent has learnt. */
	snapfile_close(open_file("ws.child"));

	for (pass = 0; pass < 4; pass++) {
		char name[8];

		snprintf(name, sizeof(name), "ws.%u", pass);
		f = open_file(name);
		g = open_file("ws.1");
		to = ram_new(r.size);
		OK(snapfile_verify(f, 2, &e_));
		assert_int_equal(f->ws.npages, g->ws.npages);
		assert_memory_equal(f->ws.pages, g->ws.pages, f->ws.npages * 8);
		assert_true(f->ws.nframes > 2);
		for (i = 0; i < f->ws.nframes; i++)
			assert_int_equal(f->ws.frames[i].off % SNAP_WS_ALIGN, 0);
		for (i = 1; i < f->ws.npages; i++)
			assert_true(f->ws.pages[i - 1] >> SNAP_WS_SHIFT <
				    f->ws.pages[i] >> SNAP_WS_SHIFT);
		OK(snapfile_fill_ws(f, to.fd, NULL, 2, &e_));
		for (i = 0, zeroes = 0; i < f->ws.npages; i++) {
			last = f->ws.pages[i] >> SNAP_WS_SHIFT;
			zeroes += !!(f->ws.pages[i] & SNAP_WS_ZERO);
			assert_int_equal(!!(f->ws.pages[i] & SNAP_WS_ZERO),
					 snap_is_zero(to.map + last * SNAP_PAGE));
			if (last)
				assert_memory_equal(to.map + last * SNAP_PAGE,
						    r.map + last * SNAP_PAGE, SNAP_PAGE);
		}
		assert_true(zeroes > 10 && zeroes < f->ws.npages);
		ram_free(&to);
		snapfile_close(f);
		snapfile_close(g);
	}
	/* Forgotten again. */
	f = open_file("ws.2");
	OK(snapfile_learn(f, "ws.2", NULL, 0, &e_));
	snapfile_close(f);
	f = open_file("ws.2");
	assert_int_equal(f->ws.npages, 0);
	OK(snapfile_verify(f, 1, &e_));
	snapfile_close(f);
	ram_free(&r);
}

/* Other people's tools. */
static void test_zstd_tool(void **state)
{
	struct ram r = ram_new(2 * MB);
	struct snapfile *f;
	uint64_t ws[2] = { 3 << SNAP_WS_SHIFT, 1 << SNAP_WS_SHIFT };

	(void)state;
	if (system("zstd --version >/dev/null 2>&1")) {
		print_message("no zstd tool\n");
		skip();
	}
	ram_mix(&r, 5);
	write_ram("tool.snap", &r, NULL);
	f = open_file("tool.snap");
	OK(snapfile_learn(f, "tool.snap", ws, 2, &e_));
	snapfile_close(f);
	assert_int_equal(system("zstd -q -t <tool.snap"), 0);
	assert_int_equal(system("zstd -q -d -c <tool.snap | cmp -s - /dev/null"), 256);
	ram_free(&r);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_kinds),	   cmocka_unit_test(test_large_sparse),
		cmocka_unit_test(test_deterministic), cmocka_unit_test(test_twins),
		cmocka_unit_test(test_flood),
		cmocka_unit_test(test_header),	   cmocka_unit_test(test_pipe),
		cmocka_unit_test(test_cancel),	   cmocka_unit_test(test_chain),
		cmocka_unit_test(test_private),	   cmocka_unit_test(test_parents),
		cmocka_unit_test(test_anonymous),
		cmocka_unit_test(test_working_set), cmocka_unit_test(test_zstd_tool),
	};

	return cmocka_run_group_tests(tests, enter_tmpdir, leave_tmpdir);
}
