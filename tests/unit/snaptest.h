/* SPDX-License-Identifier: MIT */
/*
 * snaptest.h - RAM and snapshot files for tests of the snapshot file.
 *
 * RAM is made from a seed, page by page: zeroes, noise, text, one repeated
 * word, repetitions of other chunks; the same seed gives the same bytes on
 * every machine, and for ever: the golden files depend on it.
 */
#ifndef TESTS_UNIT_SNAPTEST_H
#define TESTS_UNIT_SNAPTEST_H

#include <fcntl.h>
#include <stdarg.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* Before cmocka.h, which has a macro fail(). */
#include "../../snapshot/snapfile.h"

#include <cmocka.h>

#define UNUSED __attribute__((unused))
#define KB 1024ull
#define MB (1024 * KB)

#define OK(call) do { \
	struct vmm_error e_ = { 0 }; \
	int rc_ = call; \
	if (rc_) \
		fail_msg("%s: %d %s", #call, rc_, e_.message); \
} while (0)

/* The call must fail with this code and words in its message. */
#define FAILS(want, words, call) do { \
	struct vmm_error e_ = { 0 }; \
	int rc_ = call; \
	if (rc_ != (want) || e_.code != rc_ || !strstr(e_.message, words)) \
		fail_msg("%s: %d (not %d) '%s' (not '%s')", #call, rc_, want, e_.message, words); \
} while (0)

static inline uint64_t next_random(uint64_t *x)
{
	*x ^= *x << 13;
	*x ^= *x >> 7;
	*x ^= *x << 17;
	return *x;
}

struct ram {
	int		fd;
	uint8_t		*map;
	uint64_t	size;
};

UNUSED static struct ram ram_new(uint64_t size)
{
	struct ram r = { .fd = memfd_create("test", MFD_CLOEXEC), .size = size };

	assert_true(r.fd >= 0);
	assert_int_equal(ftruncate(r.fd, (off_t)size), 0);
	r.map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, r.fd, 0);
	assert_true(r.map != MAP_FAILED);
	return r;
}

UNUSED static void ram_free(struct ram *r)
{
	munmap(r->map, r->size);
	close(r->fd);
}

/* One page of a kind, from a seed. */
UNUSED static void page_fill(uint8_t *p, unsigned int kind, uint64_t seed)
{
	static const char *const words[8] = { "guest ", "page ", "table ", "lock ", "free ", "0x",
					      "\n", "ffffffd8" };
	uint64_t x = seed * 0x9e3779b97f4a7c15ull + 0x1234567, i, n;

	for (i = 0; i < 4; i++)
		next_random(&x);
	switch (kind) {
	case 0:				/* zeroes */
		memset(p, 0, SNAP_PAGE);
		break;
	case 1:				/* noise */
		for (i = 0; i < SNAP_PAGE; i += 8) {
			next_random(&x);
			memcpy(p + i, &x, 8);
		}
		break;
	case 2:				/* one word */
		for (i = 0; i < SNAP_PAGE; i += 8)
			memcpy(p + i, &x, 8);
		break;
	default:			/* text and numbers */
		for (i = 0; i < SNAP_PAGE; i += n) {
			const char *w = words[next_random(&x) % 8];

			n = strlen(w);
			if (n > SNAP_PAGE - i)
				n = SNAP_PAGE - i;
			memcpy(p + i, w, n);
			if (x >> 32 & 1 && i + n + 2 < SNAP_PAGE) {
				memcpy(p + i + n, &x, 2);
				n += 2;
			}
		}
	}
}

/* Everything mixed: a third of the pages zero, some chunks alike. */
UNUSED static void ram_mix(struct ram *r, uint64_t seed)
{
	uint64_t pages = r->size / SNAP_PAGE, i, x, kind;

	for (i = 0; i < pages; i++) {
		uint64_t chunk = i / SNAP_CHUNK_PAGES;

		x = (seed + 1) * 1000003 + i;
		next_random(&x);
		next_random(&x);
		next_random(&x);
		kind = x % 16;
		if (chunk % 8 == 7 && i >= 5 * SNAP_CHUNK_PAGES) {
			memcpy(r->map + i * SNAP_PAGE,
			       r->map + (i - 5 * SNAP_CHUNK_PAGES) * SNAP_PAGE, SNAP_PAGE);
		} else if (chunk % 8 == 6) {
			page_fill(r->map + i * SNAP_PAGE, 2, seed);
		} else if (chunk % 8 != 3 && (chunk % 8 < 3 || kind > 4)) {
			/* Not touched at all: a hole. */
			page_fill(r->map + i * SNAP_PAGE,
				  chunk % 8 == 2 ? 1 : kind < 7 ? 1 : 3, x);
		}
	}
}

static const struct snap_section test_sections[] = {
	{ "machine", 1, SNAP_MUST_UNDERSTAND, "\1\2\3\4\5", 5 },
	{ "vcpu.0", 3, SNAP_MUST_UNDERSTAND, "registers", 9 },
	{ "uart", 1, 0, "", 0 },
};

/* A whole image of RAM; what differs between tests is set by the caller. */
UNUSED static struct snap_image image_of(const struct ram *r, struct snap_region *region)
{
	struct snap_image im = { 0 };

	*region = (struct snap_region){ .gpa = 0x80000000, .size = r->size };
	im.created = 1700000000;
	im.regions = region;
	im.nregions = 1;
	im.about = "created-by=test\nhost.isa=rv64gc\n";
	im.sections = test_sections;
	im.nsections = 3;
	im.ram.size = r->size;
	im.ram.map = r->map;
	im.ram.fd = r->fd;
	return im;
}

UNUSED static void write_ram(const char *path, const struct ram *r, const struct snapfile *parent)
{
	struct snap_how how = { .parent = parent, .threads = 2 };
	struct snap_region region;
	struct snap_image im = image_of(r, &region);

	OK(snapfile_write(path, &im, &how, &e_));
}

UNUSED static struct snapfile *open_file(const char *path)
{
	struct snapfile *f;

	OK(snapfile_open(&f, path, 0, &e_));
	return f;
}

/* Everything a reader can do gives RAM back. */
UNUSED static void check_ram(const struct snapfile *f, const struct ram *r)
{
	struct ram to = ram_new(r->size);
	struct snap_decoder d;
	uint8_t *chunk = malloc(SNAP_CHUNK), *anon;
	uint64_t i, n;

	assert_int_equal(f->header->ram_size, r->size);
	OK(snapfile_fill(f, to.fd, NULL, 3, &e_));
	assert_memory_equal(to.map, r->map, r->size);
	anon = mmap(NULL, r->size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	OK(snapfile_fill(f, -1, anon, 1, &e_));
	assert_memory_equal(anon, r->map, r->size);
	munmap(anon, r->size);
	OK(snap_decoder_init(&d, &e_));
	for (i = 0; i < f->nchunks; i++) {
		n = r->size - i * SNAP_CHUNK < SNAP_CHUNK ? r->size - i * SNAP_CHUNK : SNAP_CHUNK;
		OK(snapfile_decode(f, &d, i, chunk, &e_));
		assert_memory_equal(chunk, r->map + i * SNAP_CHUNK, n);
	}
	OK(snapfile_verify(f, 2, &e_));
	snap_decoder_fini(&d);
	free(chunk);
	ram_free(&to);
}

UNUSED static void check_file(const char *path, const struct ram *r)
{
	struct snapfile *f = open_file(path);

	check_ram(f, r);
	snapfile_close(f);
}

/* A directory of this program's own, under TMPDIR, or where syncs cost nothing;
   tests use names in it.  Before and after a test, or all of them. */
UNUSED static int enter_tmpdir(void **state)
{
	const char *tmp = getenv("TMPDIR");
	static char dir[200];

	(void)state;
	if (!tmp)
		tmp = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";
	snprintf(dir, sizeof(dir), "%s/snaptest.XXXXXX", tmp);
	if (!mkdtemp(dir) || chdir(dir))
		abort();
	return 0;
}

UNUSED static int leave_tmpdir(void **state)
{
	char dir[200], cmd[240];

	(void)state;
	if (!getcwd(dir, sizeof(dir)) || !strstr(dir, "snaptest."))
		abort();
	snprintf(cmd, sizeof(cmd), "rm -rf '%s'", dir);
	if (chdir("/") || system(cmd))
		abort();
	return 0;
}

#endif
