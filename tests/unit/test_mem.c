/* SPDX-License-Identifier: MIT */
/*
 * test_mem.c - core/mem.c: the bounds of guest RAM, and loading into it.
 */
#include "unit.h"

#include <sys/wait.h>

#include "../../core/mem.h"

#define GPA	0x80000000ull
#define SIZE	(4ull << 20)

static struct mem m;
static struct vmm_error err;

static int setup(void **state)
{
	(void)state;
	return mem_init(&m, GPA, SIZE, &err);
}

static int teardown(void **state)
{
	(void)state;
	mem_fini(&m);
	return 0;
}

static void test_bounds(void **state)
{
	static const struct {
		uint64_t	gpa, len;
		int		ram;
	} t[] = {
		{ GPA, 0, 1 }, { GPA, 1, 1 }, { GPA, SIZE, 1 }, { GPA, SIZE + 1, 0 },
		{ GPA + SIZE - 1, 1, 1 }, { GPA + SIZE - 1, 2, 0 },
		{ GPA + SIZE, 0, 1 }, { GPA + SIZE, 1, 0 }, { GPA + SIZE + 1, 0, 0 },
		{ GPA - 1, 1, 0 }, { GPA - 1, 0, 0 }, { GPA - 1, 2, 0 }, { 0, 0, 0 }, { 0, 1, 0 },
		/* What would wrap around. */
		{ 0, UINT64_MAX, 0 }, { GPA, UINT64_MAX, 0 }, { GPA + 1, UINT64_MAX, 0 },
		{ GPA + SIZE, UINT64_MAX, 0 }, { GPA, 0 - GPA, 0 }, { GPA, 0 - GPA + 1, 0 },
		{ UINT64_MAX, 1, 0 }, { UINT64_MAX, UINT64_MAX, 0 }, { UINT64_MAX - 7, 8, 0 },
		{ 1ull << 63, 1ull << 63, 0 },
		/* The platform's pages are behind the RAM, and not RAM. */
		{ GPA + SIZE + MEM_TAIL - 1, 1, 0 }, { GPA + SIZE - 4096, 4097, 0 },
	};
	unsigned int i;

	(void)state;
	for (i = 0; i < sizeof(t) / sizeof(t[0]); i++) {
		uint8_t *p = mem_get(&m, t[i].gpa, t[i].len);

		if (t[i].ram && p != m.hva + (t[i].gpa - GPA))
			fail_msg("case %u: RAM was refused", i);
		if (!t[i].ram && p)
			fail_msg("case %u: what is not RAM was given", i);
	}
}

static void test_last_byte(void **state)
{
	uint8_t *p = mem_get(&m, GPA + SIZE - 1, 1);

	(void)state;
	*p = 0x5a;
	assert_int_equal(*(uint8_t *)mem_get(&m, GPA + SIZE - 1, 1), 0x5a);
	/* The tail begins right behind it, and is memory, too. */
	assert_ptr_equal(mem_tail(&m), p + 1);
	assert_int_equal(mem_tail_gpa(&m), GPA + SIZE);
	memset(mem_tail(&m), 0xa5, MEM_TAIL);
	assert_int_equal(*p, 0x5a);
}

static void test_alignment(void **state)
{
	(void)state;
	/* So that a 2 MiB page of the host can back one of the guest. */
	assert_int_equal(((uintptr_t)m.hva ^ GPA) & ((2u << 20) - 1), 0);
}

static void test_sizes(void **state)
{
	struct mem big;

	(void)state;
	/* Nothing is held until it is touched. */
	assert_ok(mem_init(&big, GPA, 8ull << 30, &err));
	assert_int_equal(mem_used(&big), 0);
	*(uint8_t *)mem_get(&big, GPA + (7ull << 30), 1) = 1;
	assert_in_range(mem_used(&big), 4096, 2u << 20);	/* a page, huge or not */
	mem_fini(&big);
	mem_fini(&big);			/* does nothing */
	assert_int_equal(mem_used(&big), 0);
	/* No host has that much; nothing is left behind, and the text says what. */
	assert_fails(mem_init(&big, GPA, 1ull << 62, &err), err.code, "RAM");
	mem_fini(&big);
}

static void test_clear(void **state)
{
	uint8_t *p = mem_get(&m, GPA, SIZE);

	(void)state;
	memset(p, 0xff, SIZE);
	memset(mem_tail(&m), 0xff, MEM_TAIL);
	assert_true(mem_used(&m) >= SIZE);
	assert_ok(mem_clear(&m, &err));
	assert_int_equal(mem_used(&m), 0);
	assert_int_equal(p[0] | p[SIZE / 2] | p[SIZE - 1] | *(uint8_t *)mem_tail(&m), 0);
}

#define LOAD	300001u

static uint8_t data[LOAD];

static void fill(void)
{
	unsigned int i;

	for (i = 0; i < LOAD; i++)
		data[i] = (uint8_t)(i * 7 + i / 251);
}

static void test_load_file(void **state)
{
	int fd;

	(void)state;
	fill();
	fd = file_of(data, LOAD);
	assert_ok(mem_load(&m, GPA + 4095, fd, 0, LOAD, "file", &err));
	assert_memory_equal(mem_get(&m, GPA + 4095, LOAD), data, LOAD);
	assert_int_equal(m.hva[4094] | m.hva[4095 + LOAD], 0);
	/* From the middle, up to the last byte of RAM. */
	assert_ok(mem_load(&m, GPA + SIZE - 1000, fd, 77, 1000, "file", &err));
	assert_memory_equal(mem_get(&m, GPA + SIZE - 1000, 1000), data + 77, 1000);
	assert_int_equal(*(uint8_t *)mem_tail(&m), 0);
	/* The caller's file offset is where it was. */
	assert_int_equal(lseek(fd, 0, SEEK_CUR), 0);
	assert_ok(mem_load(&m, GPA, fd, 0, 0, "file", &err));
	close(fd);
}

static void test_load_short(void **state)
{
	int fd;

	(void)state;
	fill();
	fd = file_of(data, 1000);
	assert_fails(mem_load(&m, GPA, fd, 0, 1001, "/a/file", &err), VMM_EFORMAT,
		     "/a/file: ends 1 bytes too early");
	assert_fails(mem_load(&m, GPA, fd, 1000, 1, "/a/file", &err), VMM_EFORMAT, "1 bytes");
	assert_fails(mem_load(&m, GPA, fd, 5000, 10, "/a/file", &err), VMM_EFORMAT, "10 bytes");
	assert_fails(mem_load(&m, GPA, fd, 0, SIZE + 1, "/a/file", &err), VMM_EFORMAT,
		     "/a/file: 4194305 bytes do not fit into 4 MiB of RAM");
	assert_fails(mem_load(&m, GPA + SIZE - 10, fd, 0, 11, "f", &err), VMM_EFORMAT, "f: 11");
	assert_fails(mem_load(&m, GPA - 1, fd, 0, 1, "f", &err), VMM_EFORMAT, "f: 1 ");
	close(fd);
	assert_fails(mem_load(&m, GPA, fd, 0, 1, "/a/file", &err), VMM_ESYS, "/a/file");
	assert_int_equal(err.os_errno, EBADF);
}

/* Only what can be read by offset; image.c makes a file of anything else. */
static void test_load_special(void **state)
{
	int fd = open("/dev/zero", O_RDONLY | O_CLOEXEC), p[2];

	(void)state;
	memset(mem_get(&m, GPA, 8192), 0xff, 8192);
	assert_ok(mem_load(&m, GPA, fd, 0, 8192, "/dev/zero", &err));
	assert_int_equal(m.hva[0] | m.hva[8191], 0);
	close(fd);
	assert_int_equal(pipe(p), 0);
	assert_fails(mem_load(&m, GPA, p[0], 0, 1, "a pipe", &err), VMM_ESYS, "a pipe");
	close(p[0]);
	close(p[1]);
}

static void check_pattern(void)
{
	unsigned int i;

	for (i = 0; i < SIZE; i += 4096)
		assert_int_equal(m.hva[i + 5], i >> 12 & 0xff);
	assert_int_equal(*(uint8_t *)mem_tail(&m), 0x77);
}

/* RAM that becomes a memfd has the same bytes, and others can map it. */
static void test_share(void **state)
{
	uint8_t *hva = m.hva, *other;
	unsigned int i;

	(void)state;
	for (i = 0; i < SIZE; i += 4096)
		m.hva[i + 5] = (uint8_t)(i >> 12);
	*(uint8_t *)mem_tail(&m) = 0x77;
	assert_ok(mem_share(&m, &err));
	assert_int_equal(m.kind, MEM_SHARED);
	assert_ptr_equal(m.hva, hva);
	check_pattern();
	assert_true(fcntl(m.fd, F_GETFD) & FD_CLOEXEC);
	other = mmap(NULL, SIZE + MEM_TAIL, PROT_READ | PROT_WRITE, MAP_SHARED, m.fd, 0);
	assert_ptr_not_equal(other, MAP_FAILED);
	other[4096] = 0x42;
	assert_int_equal(m.hva[4096], 0x42);
	munmap(other, SIZE + MEM_TAIL);
	i = (unsigned int)m.fd;
	assert_ok(mem_share(&m, &err));		/* it is */
	assert_int_equal(m.fd, i);
	check_pattern();
	assert_ok(mem_clear(&m, &err));
	assert_int_equal(m.hva[4096] | m.hva[5] | *(uint8_t *)mem_tail(&m), 0);
}

/* Whole pages are given back; what lies in part of one stays. */
static void discard(void)
{
	uint8_t *p = mem_get(&m, GPA, SIZE);
	unsigned int i;

	memset(p, 0xff, SIZE);
	memset(mem_tail(&m), 0xff, MEM_TAIL);
	assert_int_equal(mem_discard(&m, p + 4095, 4096 + 2), 0);
	for (i = 4090; i < 8200; i++)
		if (p[i] != (i < 4096 || i >= 8192 ? 0xff : 0))
			fail_msg("byte %u is %02x", i, p[i]);
	assert_int_equal(mem_discard(&m, p + 12288, 4095), 0);	/* no whole page */
	assert_int_equal(mem_discard(&m, p + 12289, 8190), 0);
	assert_int_equal(mem_discard(&m, p, 0), 0);
	assert_int_equal(p[0] & p[12288] & p[16383] & p[16384], 0xff);
	assert_int_equal(mem_discard(&m, p + SIZE - 4096, 4096), 0);
	assert_int_equal(p[SIZE - 1] | p[SIZE - 4096], 0);
	assert_int_equal(p[SIZE - 4097] & *(uint8_t *)mem_tail(&m), 0xff);
	p[4096] = 1;			/* and can be used again */
	assert_int_equal(p[4096] + p[4097], 1);
}

static void test_discard(void **state)
{
	(void)state;
	discard();
	assert_ok(mem_share(&m, &err));
	discard();
}

/* Lines of /proc/self/maps. */
static unsigned int mappings(void)
{
	FILE *f = fopen("/proc/self/maps", "r");
	unsigned int n = 0;
	int c;

	while ((c = fgetc(f)) != EOF)
		n += c == '\n';
	fclose(f);
	return n;
}

/* However a guest gives its pages back, the process has not many mappings more. */
static void test_mappings(void **state)
{
	const uint64_t size = 64u << 20;
	struct mem_source source = { .fd = memfd_create("source", MFD_CLOEXEC) };
	unsigned int before = mappings();
	struct mem a;
	uint64_t off;

	(void)state;
	assert_int_equal(ftruncate(source.fd, (off_t)size + MEM_TAIL), 0);
	assert_ok(mem_init_private(&a, GPA, size, &source, &err));
	memset(a.hva, 1, size);
	for (off = 0; off < size; off += 2 * 4096)
		assert_int_equal(mem_discard(&a, a.hva + off, 4096), -EAGAIN);
	for (off = 0; off < size; off += 128 << 10)
		assert_int_equal(mem_discard(&a, a.hva + off, 64 << 10), 0);
	assert_in_range(mappings(), before, before + 1100);
	assert_int_equal(a.hva[0] | a.hva[65535], 0);
	assert_int_equal(a.hva[65536] & a.hva[size - 1], 1);
	/* What nobody will read is given back all the same, once the source has all of RAM. */
	source.lacking = 1;
	assert_int_equal(mem_release(&a, a.hva + size - 8192, 4096), 0);
	assert_int_equal(a.hva[size - 8192], 1);
	source.lacking = 0;
	for (off = 0; off < size; off += 2 * 4096)
		assert_int_equal(mem_release(&a, a.hva + off, 4096), 0);
	assert_in_range(mappings(), before, before + 1100);
	assert_int_equal(a.hva[size - 8192], 0);
	assert_int_equal(a.hva[size - 1], 1);
	mem_fini(&a);
	close(source.fd);
}

/* A view that has gone is another machine's next, and shows nothing of the first. */
static void test_spare(void **state)
{
	const struct mem_run zero = { 0, SIZE / 2 };
	struct mem_source source = { .fd = memfd_create("source", MFD_CLOEXEC), .zero = &zero,
				     .nzero = 1 };
	unsigned int before, i;
	struct mem a[6];
	uint8_t *was;

	(void)state;
	assert_int_equal(ftruncate(source.fd, SIZE + MEM_TAIL), 0);
	assert_int_equal(pwrite(source.fd, "source", 6, SIZE - 4096), 6);
	before = mappings();
	for (i = 0; i < 6; i++)
		assert_ok(mem_init_private(&a[i], GPA, SIZE, &source, &err));
	was = a[0].hva;
	memset(was, 1, SIZE + MEM_TAIL);
	for (i = 0; i < 6; i++)
		mem_fini(&a[i]);
	assert_ok(mem_init_private(&a[0], GPA, SIZE, &source, &err));
	if (source.pid)			/* the kernel is new enough */
		assert_ptr_equal(a[0].hva, was);
	for (i = 0; i < SIZE + MEM_TAIL; i++)
		assert_int_equal(a[0].hva[i], i < SIZE - 4096 || i >= SIZE - 4090 ? 0 :
				 "source"[i - (SIZE - 4096)]);
	/* One that is lacking, or that has given pages back, is not kept. */
	assert_int_equal(mem_discard(&a[0], a[0].hva + SIZE - 65536, 65536), 0);
	mem_fini(&a[0]);
	for (i = 0; i < 6; i++)
		assert_ok(mem_init_private(&a[i], GPA, SIZE, &source, &err));
	assert_memory_equal(a[5].hva + SIZE - 4096, "source", 6);
	for (i = 0; i < 6; i++)
		mem_fini(&a[i]);
	mem_source_fini(&source, SIZE);
	assert_int_equal(mappings(), before);
	close(source.fd);
}

/* Of a private view only its own pages are copied; laid over another view of the
   same file they make the same RAM. */
static void test_own(void **state)
{
	struct mem_source source = { 0 };
	struct mem a, b;
	uint64_t *own;
	int fd, delta, before = fds();
	unsigned int i;

	(void)state;
	for (i = 0; i < SIZE; i += 4096)
		m.hva[i + 5] = 0xaa;
	assert_ok(mem_copy_own(&m, &fd, &own, &err));
	assert_null(own);			/* it is all its own */
	source.fd = fd;
	assert_ok(mem_init_private(&a, GPA, SIZE, &source, &err));
	assert_ok(mem_init_private(&b, GPA, SIZE, &source, &err));
	a.hva[4096] = 1;
	memset(a.hva + 8192, 0, 4096);		/* zeroes that were written */
	assert_int_equal(mem_discard(&a, a.hva + 3 * 4096, 2 * 4096), 0);
	a.hva[4 * 4096] = 4;			/* written again since */
	*(uint8_t *)mem_tail(&a) = 0x77;
	assert_ok(mem_copy_own(&a, &delta, &own, &err));
	if (own) {				/* the kernel is new enough */
		assert_int_equal(own[0], 0x1e);
		assert_int_equal(own[SIZE / 4096 / 64], 1);
		assert_ok(mem_apply(&b, delta, own, &err));
		assert_memory_equal(a.hva, b.hva, SIZE + MEM_TAIL);
		assert_ok(mem_rewind(&a, &err));
		free(own);
		close(delta);
		assert_ok(mem_copy_own(&a, &delta, &own, &err));
		assert_int_equal(own[0], 0);	/* nothing was discarded since */
	}
	assert_int_equal(a.hva[3 * 4096 + 5], 0xaa);
	free(own);
	close(delta);
	mem_fini(&a);
	mem_fini(&b);
	close(fd);
	assert_int_equal(fds(), before);
}

/* Take a view, write to it, have that undone, leave it.  0: it is as it should be. */
static int use_view(struct mem_source *source)
{
	struct mem v;
	int r;

	if (mem_init_private(&v, GPA, SIZE, source, &err) || v.hva[5] != 0xaa)
		return 1;
	memset(v.hva, 0x55, 3 * 4096);
	r = mem_restore(&v);
	if (r > 0 && (v.hva[5] != 0xaa || v.hva[4096 + 6]))
		return 2;
	mem_fini(&v);
	return 0;
}

/* A child of fork() has none of the mappings that its parent keeps for a source. */
static void test_inherited(void **state)
{
	struct mem_source source = { 0 };
	unsigned int i;
	int status;
	pid_t pid;

	(void)state;
	for (i = 0; i < SIZE; i += 4096)
		m.hva[i + 5] = 0xaa;
	assert_ok(mem_copy(&m, &source.fd, &err));
	for (i = 0; i < 2; i++)
		assert_int_equal(use_view(&source), 0);
	pid = fork();
	if (pid == 0) {
		for (i = 0; i < 2; i++)
			if (use_view(&source))
				_exit(1);
		mem_source_fini(&source, SIZE);
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	assert_int_equal(use_view(&source), 0);
	mem_source_fini(&source, SIZE);
	close(source.fd);
}

static void test_leaks(void **state)
{
	struct mem x;
	int before = fds();

	(void)state;
	assert_ok(mem_init(&x, GPA, SIZE, &err));
	mem_fini(&x);
	assert_ok(mem_init(&x, GPA, SIZE, &err));
	assert_ok(mem_share(&x, &err));
	assert_int_equal(fds(), before + 1);
	mem_fini(&x);
	assert_int_equal(mem_init(&x, GPA, 1ull << 62, &err) != 0, 1);
	mem_fini(&x);
	assert_int_equal(fds(), before);
}

int main(void)
{
#define T(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(test_bounds), T(test_last_byte), T(test_alignment), T(test_sizes), T(test_clear),
		T(test_load_file), T(test_load_short), T(test_load_special), T(test_share),
		T(test_discard), T(test_mappings), T(test_own), T(test_spare), T(test_inherited), T(test_leaks),
	};

	time_limit(10);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
