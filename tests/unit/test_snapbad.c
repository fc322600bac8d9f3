/* SPDX-License-Identifier: MIT */
/*
 * test_snapbad.c - snapshot files that are damaged, cut short, of another
 * version or hostile, and writers that are stopped half-way.
 *
 * Always a named error and never a crash; and of a file in the making either
 * the old one or the new.
 */
#include <dirent.h>
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <xxhash.h>
#include <zstd.h>

#include "snaptest.h"

/* A file's bytes, in memory, and where its parts are. */
struct bytes {
	uint8_t		*p;
	size_t		n;
	size_t		state, groups, index, ws, footer;
	int		fd;		/* a memfd to write them to and open */
};

static uint32_t size_at(const struct bytes *b, size_t off)
{
	uint32_t v;

	memcpy(&v, b->p + off + 4, 4);
	return v + 8;
}

static struct bytes bytes_of(const char *path)
{
	struct bytes b = { .fd = memfd_create("bad", MFD_CLOEXEC) };
	int fd = open(path, O_RDONLY);
	struct snap_footer t;
	struct stat st;

	assert_true(fd >= 0 && fstat(fd, &st) == 0);
	b.n = (size_t)st.st_size;
	b.p = malloc(b.n);
	assert_int_equal(read(fd, b.p, b.n), b.n);
	close(fd);
	b.footer = b.n - sizeof(t);
	memcpy(&t, b.p + b.footer, sizeof(t));
	b.state = size_at(&b, 0);
	b.groups = b.state + size_at(&b, b.state);
	b.index = t.index_off;
	b.ws = t.ws_off;
	return b;
}

static struct bytes bytes_copy(const struct bytes *b)
{
	struct bytes c = *b;

	c.p = malloc(c.n);
	memcpy(c.p, b->p, c.n);
	c.fd = memfd_create("bad", MFD_CLOEXEC);
	return c;
}

static void bytes_free(struct bytes *b)
{
	free(b->p);
	close(b->fd);
}

/* Open, and verify unless that fails, n bytes of it. */
static int try_bytes(const struct bytes *b, size_t n, struct vmm_error *err)
{
	struct snapfile *f;
	int rc;

	assert_int_equal(ftruncate(b->fd, 0), 0);
	assert_int_equal(pwrite(b->fd, b->p, n, 0), n);
	memset(err, 0, sizeof(*err));
	rc = snapfile_open_fd(&f, b->fd, "bad", NULL, 0, err);
	if (rc) {
		assert_null(f);
	} else {
		rc = snapfile_verify(f, 1, err);
		snapfile_close(f);
	}
	assert_int_equal(rc, err->code);
	assert_true(!rc == !err->message[0]);
	return rc;
}

static void rehash_frame(struct bytes *b, size_t off)
{
	size_t n = size_at(b, off);
	uint64_t h;

	if (off + n > b->n || n < 24)
		return;
	h = XXH64(b->p + off, n - 8, 0);
	memcpy(b->p + off + n - 8, &h, 8);
}

/* Make all hashes right again after a change. */
static void rehash(struct bytes *b)
{
	uint64_t h[3], id[2];

	rehash_frame(b, 0);
	rehash_frame(b, b->state);
	rehash_frame(b, b->groups);
	rehash_frame(b, b->index);
	rehash_frame(b, b->ws);
	memcpy(&h[0], b->p + b->state - 8, 8);
	memcpy(&h[1], b->p + b->groups - 8, 8);
	memcpy(&h[2], b->p + b->ws - 8, 8);
	id[0] = XXH64(h, 24, 0);
	id[1] = XXH64(h, 24, 1);
	memcpy(b->p + b->footer + offsetof(struct snap_footer, manifest), id, 16);
	memcpy(b->p + b->footer + offsetof(struct snap_footer, uuid), b->p + 40, 16);
	rehash_frame(b, b->footer);
}

static void write_sample(const char *path, uint64_t size, uint64_t seed)
{
	struct ram r = ram_new(size);
	uint64_t ws[3] = { 2 << SNAP_WS_SHIFT, 1 << SNAP_WS_SHIFT | 1, 9 << SNAP_WS_SHIFT };
	struct snap_region region;
	struct snap_image im;

	ram_mix(&r, seed);
	im = image_of(&r, &region);
	im.ws = ws;
	im.nws = 3;
	OK(snapfile_write(path, &im, NULL, &e_));
	ram_free(&r);
}

/* Little RAM of every kind: a file of some kilobytes. */
static void write_tiny(const char *path)
{
	struct ram r = ram_new(5 * SNAP_CHUNK);
	uint64_t ws[3] = { 2 << SNAP_WS_SHIFT, 1 << SNAP_WS_SHIFT | 1, 9 << SNAP_WS_SHIFT };
	struct snap_region region;
	struct snap_image im;

	page_fill(r.map + SNAP_PAGE, 3, 1);
	memset(r.map + 2 * SNAP_PAGE, 7, 100);
	page_fill(r.map + SNAP_CHUNK, 2, 1);
	memset(r.map + 2 * SNAP_CHUNK + 5, 1, 200);
	memcpy(r.map + 3 * SNAP_CHUNK, r.map + 2 * SNAP_CHUNK, SNAP_CHUNK);
	memset(r.map + 4 * SNAP_CHUNK + 77, 3, 400);
	im = image_of(&r, &region);
	im.ws = ws;
	im.nws = 3;
	OK(snapfile_write(path, &im, NULL, &e_));
	ram_free(&r);
}

/* A bit of each byte of a small file, the next one of the next; of a larger file, at
   random.  With SNAP_FLIPS=N every bit, and N. */
static void test_flips(void **state)
{
	const char *rounds = getenv("SNAP_FLIPS");
	uint64_t i, n = rounds ? strtoull(rounds, NULL, 0) : 1000, x = 42, bit, plain;
	struct vmm_error err;
	struct bytes b;

	(void)state;
	write_tiny("tiny");
	b = bytes_of("tiny");
	assert_true(b.n < 14000);
	assert_int_equal(try_bytes(&b, b.n, &err), 0);
	plain = b.ws + size_at(&b, b.ws) + SNAP_RAW_HEAD;
	/* Of plain pages, some. */
	for (bit = 0; bit < 8 * b.n; bit += bit / 8 >= plain && bit / 8 + 200 <= b.n ? 29 : rounds ? 1 : 9) {
		b.p[bit / 8] ^= (uint8_t)(1u << bit % 8);
		if (try_bytes(&b, b.n, &err) != VMM_EFORMAT)
			fail_msg("bit %llu of byte %llu: %d %s", (unsigned long long)bit % 8,
				 (unsigned long long)bit / 8, err.code, err.message);
		b.p[bit / 8] ^= (uint8_t)(1u << bit % 8);
	}
	bytes_free(&b);
	write_sample("sample", 768 * KB, 1);
	b = bytes_of("sample");
	for (i = 0; i < n; i++) {
		bit = next_random(&x) % (8 * b.n);
		b.p[bit / 8] ^= (uint8_t)(1u << bit % 8);
		if (try_bytes(&b, b.n, &err) != VMM_EFORMAT)
			fail_msg("bit %llu of byte %llu: %d %s", (unsigned long long)bit % 8,
				 (unsigned long long)bit / 8, err.code, err.message);
		b.p[bit / 8] ^= (uint8_t)(1u << bit % 8);
	}
	assert_int_equal(try_bytes(&b, b.n, &err), 0);
	bytes_free(&b);
}

/* What is wrong is said, and where. */
static void test_messages(void **state)
{
	struct vmm_error err;
	struct bytes b, c;
	struct snap_entry e;
	char want[100];

	(void)state;
	write_sample("sample", 2 * MB, 1);
	b = bytes_of("sample");
	c = bytes_copy(&b);
	memcpy(&e, b.p + b.index + 16 + sizeof(e), sizeof(e));
	c.p[e.off + 20] ^= 1;
	assert_int_equal(try_bytes(&c, c.n, &err), VMM_EFORMAT);
	snprintf(want, sizeof(want), "bad: frame at byte %llu is damaged (check): RAM at 0x%llx",
		 (unsigned long long)e.off, 0x80000000ull + e.chunk * SNAP_CHUNK);
	assert_string_equal(err.message, want);
	c.p[e.off + 20] ^= 1;
	c.p[b.ws + size_at(&b, b.ws) + 8] ^= 1;
	assert_int_equal(try_bytes(&c, c.n, &err), VMM_EFORMAT);
	assert_non_null(strstr(err.message, "working set frame at byte"));
	c.p[b.ws + size_at(&b, b.ws) + 8] ^= 1;
	c.p[b.state + 30] ^= 1;
	assert_int_equal(try_bytes(&c, c.n, &err), VMM_EFORMAT);
	snprintf(want, sizeof(want), "bad: STATE at byte %zu is damaged", b.state);
	assert_string_equal(err.message, want);
	bytes_free(&c);
	bytes_free(&b);
}

static void test_truncation(void **state)
{
	struct snap_entry e;
	struct vmm_error err;
	struct bytes b;
	size_t n, i, at;
	int k;

	(void)state;
	write_tiny("tiny");
	b = bytes_of("tiny");
	for (n = 0; n < b.n; n += n < b.ws || n + 300 > b.n ? 1 : 13)
		assert_int_equal(try_bytes(&b, n, &err), VMM_EFORMAT);
	bytes_free(&b);
	write_sample("sample", 4 * MB, 2);
	b = bytes_of("sample");
	for (i = b.index + 16; i + 8 < b.ws; i += sizeof(e)) {
		memcpy(&e, b.p + i, sizeof(e));
		for (k = -1; k < 2; k++) {
			at = snap_entry_kind(&e) ? i : e.off;
			assert_int_equal(try_bytes(&b, at + (size_t)k, &err), VMM_EFORMAT);
		}
	}
	bytes_free(&b);
}

/* Cut short while it is in use: an error of whoever reads on. */
static void test_cut_under_us(void **state)
{
	struct ram r = ram_new(2 * MB);
	struct snapfile *f;

	(void)state;
	ram_mix(&r, 6);
	write_ram("cut", &r, NULL);
	f = open_file("cut");
	assert_int_equal(truncate("cut", 5000), 0);
	FAILS(VMM_EFORMAT, "cut: cut short at byte 5000", snapfile_fill(f, -1, r.map, 2, &e_));
	FAILS(VMM_EFORMAT, "cut short", snapfile_verify(f, 2, &e_));
	FAILS(VMM_EFORMAT, "cut short", snapfile_merge(f, "cut.2", NULL, &e_));
	FAILS(VMM_EFORMAT, "cut short", snapfile_learn(f, "cut.2", NULL, 0, &e_));
	assert_int_equal(access("cut.2", F_OK), -1);
	snapfile_close(f);
	ram_free(&r);
}

/* One field of a good file changed, its hashes made right: the error to come. */
static void test_mangle(void **state)
{
	enum { HEADER, STATE, INDEX, WS, FOOTER };
	/* Sections of the header: ram at 80, about at 80 + 48 + 32. */
	const size_t ram = 80, about = 160, first = 16, second = 16 + 32;
	const struct {
		int		part;
		size_t		off, size;
		uint64_t	val;
		int		code;
		const char	*words;
	} t[] = {
		{ HEADER, 0, 4, 0x184D2A50, VMM_EFORMAT, "not a snapshot" },
		{ HEADER, 8, 1, 'v', VMM_EFORMAT, "not a snapshot" },
		{ HEADER, 4, 4, 16, VMM_EFORMAT, "header too short" },
		{ HEADER, 4, 4, 0xffffffff, VMM_EFORMAT, "no VMMSNAP" },
		{ HEADER, 16, 2, 2, VMM_EVERSION, "format 2.0, this library reads 1.x" },
		{ HEADER, 18, 2, 9, 0, "" },
		{ HEADER, 20, 4, 62, VMM_EVERSION, "architecture 62, not RISC-V" },
		{ HEADER, 24, 8, 4, VMM_EVERSION, "features 0x4 unknown" },
		{ HEADER, 24, 8, 1, VMM_EFORMAT, "parents and feature bits disagree" },
		{ HEADER, 32, 8, ~0ull, 0, "" },
		{ HEADER, 56, 4, 16384, VMM_EVERSION, "pages of 16384" },
		{ HEADER, 60, 4, 131072, VMM_EVERSION, "chunks of 131072" },
		{ HEADER, 64, 8, 0, VMM_EFORMAT, "impossible RAM size" },
		{ HEADER, 64, 8, 4097, VMM_EFORMAT, "impossible RAM size" },
		{ HEADER, 64, 8, 1ull << 62, VMM_EFORMAT, "impossible RAM size" },
		{ HEADER, 64, 8, 1ull << 42, VMM_EFORMAT, "impossible RAM map" },
		{ HEADER, 72, 8, 0, 0, "" },
		{ HEADER, ram, 1, 'R', VMM_EVERSION, "section Ram, version 1, is not understood" },
		{ HEADER, ram + 40, 2, 2, VMM_EVERSION, "section ram, version 2" },
		{ HEADER, ram + 44, 4, 31, VMM_EFORMAT, "impossible RAM map" },
		{ HEADER, ram + 44, 4, 0, VMM_EFORMAT, "malformed sections in header" },
		{ HEADER, ram + 48, 8, 0x80000001, VMM_EFORMAT, "impossible RAM map" },
		{ HEADER, ram + 48, 8, ~0xfffull, VMM_EFORMAT, "impossible RAM map" },
		{ HEADER, ram + 56, 8, 0, VMM_EFORMAT, "impossible RAM map" },
		{ HEADER, about, 1, 'x', 0, "" },
		{ HEADER, about, 1, 0, VMM_EFORMAT, "malformed sections in header" },
		{ HEADER, about + 42, 2, 1, 0, "" },
		{ HEADER, about + 44, 4, 0xfffffff9, VMM_EFORMAT, "malformed sections in header" },
		{ STATE, 8, 1, 's', VMM_EFORMAT, "no STATE" },
		{ STATE, 16 + 44, 4, 1000000, VMM_EFORMAT, "malformed sections in state" },
		{ STATE, 16 + 39, 1, 'x', 0, "" },
		{ INDEX, first, 4, 5, VMM_EFORMAT, "impossible descriptor 0" },
		{ INDEX, first, 4, 3, VMM_EFORMAT, "impossible descriptor 1" },
		{ INDEX, second, 4, 0, VMM_EFORMAT, "disagree" },
		{ INDEX, first + 4, 2, 0, VMM_EFORMAT, "impossible descriptor 0" },
		{ INDEX, first + 6, 2, 0, VMM_EFORMAT, "impossible descriptor 0" },
		{ INDEX, first + 11, 1, 1, VMM_EFORMAT, "impossible descriptor 0" },
		{ INDEX, first + 10, 1, 0x20, VMM_EFORMAT, "impossible descriptor 0" },
		{ INDEX, first + 8, 4, 0, VMM_EFORMAT, "impossible descriptor 0" },
		{ INDEX, first + 8, 4, 65553, VMM_EFORMAT, "impossible descriptor 0" },
		{ INDEX, first + 16, 8, 0, VMM_EFORMAT, "impossible descriptor 0" },
		{ INDEX, first + 16, 8, ~0ull, VMM_EFORMAT, "impossible descriptor 0" },
		{ INDEX, first + 12, 4, 0, VMM_EFORMAT, "disagree" },
		{ WS, 16, 4, 4, VMM_EFORMAT, "malformed working set" },
		{ WS, 20, 4, 0, VMM_EFORMAT, "malformed working set" },
		{ WS, 24, 8, 80 << 8, VMM_EFORMAT, "malformed working set" },
		{ WS, 24, 8, 4, VMM_EFORMAT, "malformed working set" },
		{ WS, 24, 8, 3 << 8, VMM_EFORMAT, "malformed working set" },
		{ WS, 40, 8, 5 << 8 | 2, 0, "" },
		{ WS, 40, 8, 5 << 8, VMM_EFORMAT, "malformed working set" },
		{ WS, 40, 8, 2, VMM_EFORMAT, "malformed working set" },
		{ WS, 40, 8, 2 << 8 | 2, VMM_EFORMAT, "malformed working set" },
		{ WS, 40, 8, 16 << 8 | 2, VMM_EFORMAT, "page 16 of RAM is another in the working set" },
		{ WS, 48, 8, 0, VMM_EFORMAT, "malformed working set" },
		{ WS, 56, 4, 0, VMM_EFORMAT, "malformed working set" },
		{ WS, 56, 4, 8201, VMM_EFORMAT, "malformed working set" },
		{ WS, 64, 8, 0, VMM_EFORMAT, "damaged (hash)" },
		{ FOOTER, 8, 1, 'f', VMM_EFORMAT, "no footer at its end" },
		{ FOOTER, 48, 8, ~0ull, VMM_EFORMAT, "impossible footer" },
		{ FOOTER, 56, 8, 24, VMM_EFORMAT, "impossible footer" },
		{ FOOTER, 64, 8, 0, VMM_EFORMAT, "impossible footer" },
		{ FOOTER, 72, 8, ~0ull, VMM_EFORMAT, "impossible footer" },
		{ FOOTER, 80, 8, 1, VMM_EFORMAT, "was written as 1" },
	};
	struct vmm_error err;
	struct bytes good, b;
	size_t i, at;
	uint64_t h;

	(void)state;
	write_tiny("tiny");
	good = bytes_of("tiny");
	for (i = 0; i < sizeof(t) / sizeof(*t); i++) {
		b = bytes_copy(&good);
		at = (size_t[]){ 0, b.state, b.index, b.ws, b.footer }[t[i].part];
		memcpy(b.p + at + t[i].off, &t[i].val, t[i].size);
		rehash(&b);
		if (try_bytes(&b, b.n, &err) != t[i].code || !strstr(err.message, t[i].words))
			fail_msg("row %zu (%d+%zu): %d '%s', not '%s'", i, t[i].part, t[i].off,
				 err.code, err.message, t[i].words);
		bytes_free(&b);
	}
	/* Of another file, though whole: by the manifest, by the uuid. */
	b = bytes_copy(&good);
	b.p[40] ^= 1;
	rehash_frame(&b, 0);
	assert_int_equal(try_bytes(&b, b.n, &err), VMM_EFORMAT);
	assert_non_null(strstr(err.message, "not of one file"));
	bytes_free(&b);
	/* Pages in the working set that are not RAM's: nothing else of the file tells. */
	b = bytes_copy(&good);
	at = b.ws + size_at(&b, b.ws) + SNAP_RAW_HEAD;
	b.p[at + SNAP_PAGE] ^= 1;
	h = XXH64(b.p + at, 2 * SNAP_PAGE, 0);
	memcpy(b.p + b.ws + 64, &h, 8);
	rehash(&b);
	assert_int_equal(try_bytes(&b, b.n, &err), VMM_EFORMAT);
	assert_non_null(strstr(err.message, "page 2 of RAM is another in the working set"));
	bytes_free(&b);
	/* Bytes behind the end. */
	b = bytes_copy(&good);
	b.p = realloc(b.p, b.n + 200);
	memcpy(b.p + b.n, b.p + b.n - 96, 96);
	assert_int_equal(try_bytes(&b, b.n + 96, &err), VMM_EFORMAT);
	assert_non_null(strstr(err.message, "was written as"));
	bytes_free(&b);
	bytes_free(&good);
}

/* Decode the first chunk of tiny with another frame, of n bytes, in its place. */
static int try_frame(const struct bytes *good, const void *frame, size_t n, struct vmm_error *err)
{
	struct bytes b = bytes_copy(good);
	uint8_t chunk[SNAP_CHUNK];
	struct snap_decoder d;
	struct snap_entry e;
	struct snapfile *f;
	int rc;

	memcpy(&e, b.p + b.index + 16, sizeof(e));
	assert_true(e.off + n <= b.index);
	e.where = snap_where(0, SNAP_KIND_FRAME, (uint32_t)n);
	e.check = (uint32_t)XXH64(frame, n, 0);
	memcpy(b.p + b.index + 16, &e, sizeof(e));
	memcpy(b.p + e.off, frame, n);
	rehash(&b);
	assert_int_equal(pwrite(b.fd, b.p, b.n, 0), b.n);
	OK(snapfile_open_fd(&f, b.fd, "bad", NULL, 0, &e_));
	OK(snap_decoder_init(&d, &e_));
	rc = snapfile_decode(f, &d, 0, chunk, err);
	snap_decoder_fini(&d);
	snapfile_close(f);
	bytes_free(&b);
	return rc;
}

/* What libzstd would decode, but is not one frame that says its size. */
static void test_frames(void **state)
{
	static const uint8_t skippable[] = { 0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0 };
	uint8_t plain[2 * SNAP_PAGE], frame[2 * SNAP_PAGE + 100];
	ZSTD_CCtx *z = ZSTD_createCCtx();
	struct vmm_error err;
	struct bytes good;
	size_t n, half;

	(void)state;
	write_tiny("tiny");
	good = bytes_of("tiny");
	page_fill(plain, 3, 1);			/* as there, in pages 1 and 2 */
	memset(plain + SNAP_PAGE, 0, SNAP_PAGE);
	memset(plain + SNAP_PAGE, 7, 100);
	n = ZSTD_compress2(z, frame, sizeof(frame), plain, sizeof(plain));
	assert_int_equal(try_frame(&good, frame, n, &err), 0);

	half = ZSTD_compress2(z, frame, sizeof(frame), plain, SNAP_PAGE);
	n = half + ZSTD_compress2(z, frame + half, sizeof(frame) - half, plain + SNAP_PAGE, SNAP_PAGE);
	assert_int_equal(try_frame(&good, frame, n, &err), VMM_EFORMAT);
	assert_non_null(strstr(err.message, "damaged (frame)"));

	memcpy(frame, skippable, 8);
	n = 8 + ZSTD_compress2(z, frame + 8, sizeof(frame) - 8, plain, sizeof(plain));
	assert_int_equal(try_frame(&good, frame, n, &err), VMM_EFORMAT);
	memmove(frame, frame + 8, n - 8);
	memcpy(frame + n - 8, skippable, 8);
	assert_int_equal(try_frame(&good, frame, n, &err), VMM_EFORMAT);

	ZSTD_CCtx_setParameter(z, ZSTD_c_contentSizeFlag, 0);
	n = ZSTD_compress2(z, frame, sizeof(frame), plain, sizeof(plain));
	assert_int_equal(try_frame(&good, frame, n, &err), VMM_EFORMAT);
	ZSTD_freeCCtx(z);
	bytes_free(&good);
}

/* Hashes made right after random changes: anything but a crash. */
static void test_hostile(void **state)
{
	struct vmm_error err;
	struct bytes good, b;
	uint64_t x = 99;
	int i, k;

	(void)state;
	write_tiny("tiny");
	good = bytes_of("tiny");
	for (i = 0; i < 3000; i++) {
		b = bytes_copy(&good);
		for (k = 0; k <= i % 4; k++) {
			size_t at = next_random(&x) % b.n;

			b.p[at] = (uint8_t)(x >> 32);
			if (at % 3 == 0 && at + 8 < b.n)
				memset(b.p + at, x >> 40 & 1 ? 0xff : 0, 4);
		}
		rehash(&b);
		try_bytes(&b, b.n, &err);
		bytes_free(&b);
	}
	bytes_free(&good);
}

/* ---- Writers ------------------------------------------------------------ */

static struct ram sample_ram(uint64_t seed)
{
	struct ram r = ram_new(1 * MB);

	ram_mix(&r, seed);
	return r;
}

static int files_here(void)
{
	DIR *d = opendir(".");
	struct dirent *e;
	int n = 0;

	while ((e = readdir(d)))
		n += strcmp(e->d_name, ".") && strcmp(e->d_name, "..");
	closedir(d);
	return n;
}

static int in_child(void (*fn)(void))
{
	pid_t pid = fork();
	int status;

	if (!pid) {
		fn();
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/* Children tell what went wrong by their exit status. */
static void write_too_large(void)
{
	struct rlimit lim = { 100000, 100000 };
	struct ram r = sample_ram(2);
	struct snap_region region;
	struct snap_image im = image_of(&r, &region);
	struct vmm_error err = { 0 };

	setrlimit(RLIMIT_FSIZE, &lim);
	if (snapfile_write("limit", &im, NULL, &err) != VMM_ESYS || err.os_errno != EFBIG)
		_exit(1);
}

static int put_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY), ok;

	ok = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);
	if (fd >= 0)
		close(fd);
	return ok;
}

/* Where anybody may mount a file system. */
static int own_namespace(void)
{
	char uid[40], gid[40];

	snprintf(uid, sizeof(uid), "0 %u 1", getuid());
	snprintf(gid, sizeof(gid), "0 %u 1", getgid());
	return unshare(CLONE_NEWUSER | CLONE_NEWNS) == 0 &&
	       put_file("/proc/self/setgroups", "deny") &&
	       put_file("/proc/self/uid_map", uid) && put_file("/proc/self/gid_map", gid);
}

static void write_no_space(void)
{
	struct ram r = sample_ram(3), old = sample_ram(2);
	struct snap_region region;
	struct snap_image im = image_of(&old, &region);
	struct vmm_error err = { 0 };
	struct snapfile *f;
	struct stat st;
	char size[40];

	/* Room for one and a half. */
	if (snapfile_write("measure", &im, NULL, &err) || stat("measure", &st))
		_exit(1);
	snprintf(size, sizeof(size), "size=%lld", (long long)st.st_size * 3 / 2);
	if (!own_namespace() || mkdir("small", 0700) ||
	    mount("none", "small", "tmpfs", 0, size) || chdir("small"))
		_exit(77);
	if (snapfile_write("full", &im, NULL, &err))
		_exit(1);
	im.ram.map = r.map;
	im.ram.fd = r.fd;
	if (snapfile_write("full", &im, NULL, &err) != VMM_ESYS || err.os_errno != ENOSPC ||
	    !strstr(err.message, "write full: No space left"))
		_exit(2);
	/* A merge or a lesson that does not fit, either. */
	if (snapfile_open(&f, "full", 0, &err) || snapfile_verify(f, 1, &err))
		_exit(3);
	if (snapfile_merge(f, "full", NULL, &err) != VMM_ESYS ||
	    snapfile_learn(f, "full", NULL, 0, &err) != VMM_ESYS)
		_exit(4);
	snapfile_close(f);
	if (files_here() != 1)
		_exit(5);
}

static void test_no_space(void **state)
{
	struct ram r = sample_ram(1);
	int rc;

	(void)state;
	write_ram("limit", &r, NULL);
	assert_int_equal(in_child(write_too_large), 0);
	check_file("limit", &r);
	rc = in_child(write_no_space);
	if (rc == 77)
		print_message("no small file system: skipped\n");
	else
		assert_int_equal(rc, 0);
	ram_free(&r);
}

static void write_for_ever(void)
{
	struct ram r[2] = { sample_ram(10), sample_ram(11) };
	struct snap_region region;
	struct snap_image im[2] = { image_of(&r[0], &region), image_of(&r[1], &region) };
	unsigned int i;

	for (i = 0;; i++)
		if (snapfile_write("killed", &im[i % 2], NULL, NULL))
			_exit(1);
}

/* The old file or the new one, whole, whenever the writer is killed. */
static void test_kill(void **state)
{
	const char *rounds = getenv("SNAP_KILLS");
	int i, n = rounds ? atoi(rounds) : 15, left = 0, seen[2] = { 0, 0 };
	struct ram r[2] = { sample_ram(10), sample_ram(11) };
	struct timespec t[2];
	uint64_t x = 7, us;

	(void)state;
	assert_int_equal(mkdir("kill", 0700), 0);
	assert_int_equal(chdir("kill"), 0);
	clock_gettime(CLOCK_MONOTONIC, &t[0]);
	write_ram("killed", &r[0], NULL);
	clock_gettime(CLOCK_MONOTONIC, &t[1]);
	/* Somewhere in the first four files. */
	us = (uint64_t)(t[1].tv_sec - t[0].tv_sec) * 4000000 +
	     (uint64_t)(t[1].tv_nsec - t[0].tv_nsec + 1000) / 250;
	for (i = 0; i < n; i++) {
		struct ram to = ram_new(r[0].size);
		struct snapfile *f;
		pid_t pid = fork();
		int status, which;

		if (!pid)
			write_for_ever();
		usleep((useconds_t)(next_random(&x) % us));
		kill(pid, SIGKILL);
		assert_int_equal(waitpid(pid, &status, 0), pid);
		assert_true(WIFSIGNALED(status));
		f = open_file("killed");
		OK(snapfile_verify(f, 1, &e_));
		OK(snapfile_fill(f, to.fd, NULL, 1, &e_));
		which = memcmp(to.map, r[0].map, to.size) != 0;
		assert_memory_equal(to.map, r[which].map, to.size);
		seen[which]++;
		snapfile_close(f);
		ram_free(&to);
		left += files_here() - 1;
		assert_int_equal(system("rm -f .killed.*"), 0);
	}
	print_message("killed %d times: %d old, %d new\n", n, seen[0], seen[1]);
	/* Only one killed between its link and its rename leaves anything. */
	assert_true(left <= n / 5);
	assert_int_equal(chdir(".."), 0);
	ram_free(&r[0]);
	ram_free(&r[1]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_flips),	  cmocka_unit_test(test_messages),
		cmocka_unit_test(test_truncation), cmocka_unit_test(test_cut_under_us),
		cmocka_unit_test(test_mangle),	  cmocka_unit_test(test_hostile),
		cmocka_unit_test(test_frames),
		cmocka_unit_test(test_no_space),  cmocka_unit_test(test_kill),
	};

	return cmocka_run_group_tests(tests, enter_tmpdir, leave_tmpdir);
}
