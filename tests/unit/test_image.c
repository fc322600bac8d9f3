/* SPDX-License-Identifier: MIT */
/*
 * test_image.c - riscv/image.c: kernels of every form, whole, cut, and lying.
 */
#include "rig.h"

#include "../../riscv/image.h"
#include "kernels.h"

/* Linux claims the whole of its last 2 MiB. */
#define CLAIM(gpa) (((gpa) + 0x1fffff) & ~0x1fffffull)

static struct mem mem;
static struct vmm_error err;
static struct image image;

static int setup(void **state)
{
	(void)state;
	return mem_init(&mem, MAP_RAM, RIG_RAM, &err);
}

static int teardown(void **state)
{
	(void)state;
	mem_fini(&mem);
	return 0;
}

/* ---- Loading them ---------------------------------------------------------------- */

static int load(const struct blob *b, size_t n)
{
	int fd = file_of(b->data, n), before = fds(), rc;

	memset(&image, 0, sizeof(image));
	memset(&err, 0, sizeof(err));
	rc = image_load(&mem, fd, "kernel x", &image, &err);
	assert_int_equal(fds(), before);
	assert_int_equal(err.code, rc);
	/* Every error names the file. */
	if (rc && !strstr(err.message, "kernel x"))
		fail_msg("%s: does not name the file", err.message);
	close(fd);
	return rc;
}

static void loads_linux(const struct blob *whole, const struct blob *kernel)
{
	assert_ok(mem_clear(&mem, &err));
	assert_ok(load(whole, whole->n));
	assert_int_equal(image.entry, MAP_RAM + 0x200000);
	assert_int_equal(image.end, CLAIM(MAP_RAM + 0x200000 + 10000));
	assert_memory_equal(mem.hva + 0x200000, kernel->data, kernel->n);
	assert_int_equal(mem.hva[0x200000 + BODY] | mem.hva[0x1fffff], 0);
}

static void test_linux(void **state)
{
	struct blob k, z, w;

	(void)state;
	make_linux(&k, 0x200000, 10000);
	loads_linux(&k, &k);
	gzip(&z, &k);
	loads_linux(&z, &k);
	zboot(&w, &z, "gzip");
	loads_linux(&w, &k);
	zstd(&z, &k);
	loads_linux(&z, &k);
	zboot(&w, &z, "zstd22");
	loads_linux(&w, &k);
	/* Without an EFI stub; and one without PE behind its MZ. */
	memcpy(k.data, "\x6f\0", 2);
	loads_linux(&k, &k);
	make_linux(&k, 0x200000, 10000);
	memset(k.data + PE, 0, 4);
	loads_linux(&k, &k);
}

/* The header's size counts BSS; a file that is longer than it counts itself. */
static void test_linux_size(void **state)
{
	struct blob k;

	(void)state;
	make_linux(&k, 0, 100);
	assert_ok(load(&k, k.n));
	assert_int_equal(image.end, CLAIM(MAP_RAM + BODY));
	/* All of RAM, to the last byte; and one more. */
	make_linux(&k, 0, RIG_RAM);
	assert_ok(load(&k, k.n));
	assert_int_equal(image.end, CLAIM(MAP_RAM + RIG_RAM));
	make_linux(&k, 0, RIG_RAM + 1);
	assert_fails(load(&k, k.n), VMM_EFORMAT, "takes 5 MiB at 0x80000000, RAM has 4 MiB");
	make_linux(&k, 0x200000, 0x200000);
	assert_ok(load(&k, k.n));
	make_linux(&k, 0x200000, 0x200001);
	assert_fails(load(&k, k.n), VMM_EFORMAT, "RAM has 4 MiB");
	make_linux(&k, RIG_RAM, 0);
	assert_fails(load(&k, k.n), VMM_EFORMAT, "RAM has 4 MiB");
	make_linux(&k, RIG_RAM - BODY, 0);
	assert_ok(load(&k, k.n));
}

static void test_linux_overflow(void **state)
{
	static const uint64_t offsets[] = { ~0ull, ~0ull - MAP_RAM, 0 - MAP_RAM, 1ull << 63,
					    0 - MAP_RAM + 0x1000, RIG_RAM + 1 };
	static const uint64_t sizes[] = { ~0ull, 0 - MAP_RAM, 1ull << 63, ~0ull - MAP_RAM };
	struct blob k;
	unsigned int i;

	(void)state;
	for (i = 0; i < sizeof(offsets) / sizeof(offsets[0]); i++) {
		make_linux(&k, offsets[i], 10000);
		assert_fails(load(&k, k.n), VMM_EFORMAT, "RAM has 4 MiB");
	}
	for (i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		make_linux(&k, 0x200000, sizes[i]);
		assert_fails(load(&k, k.n), VMM_EFORMAT, "RAM has 4 MiB");
	}
}

/* Cut anywhere, each form is refused: never half a kernel. */
static void cut(const struct blob *b, size_t whole)
{
	size_t n;

	assert_fails(load(b, 0), VMM_EFORMAT, "kernel x: empty");
	for (n = 1; n < whole; n += n < 600 || whole - n < 100 ? 1 : 37)
		if (load(b, n) != VMM_EFORMAT)
			fail_msg("%zu of %zu bytes: %s", n, whole, err.message);
	assert_ok(load(b, whole));
}

static void test_truncated(void **state)
{
	struct blob k, z, w;

	(void)state;
	make_linux(&k, 0x200000, 10000);
	cut(&k, k.n);
	gzip(&z, &k);
	cut(&z, z.n);
	zboot(&w, &z, "gzip");
	cut(&w, w.n - 100);
	zstd(&z, &k);
	cut(&z, z.n);
	zboot(&w, &z, "zstd");
	cut(&w, w.n - 100);
	make_elf(&k);
	cut(&k, k.n);
	gzip(&z, &k);
	cut(&z, z.n);
	/* A whole wrapper around a truncated kernel. */
	make_linux(&k, 0x200000, 10000);
	k.n -= 1;
	zstd(&z, &k);
	assert_fails(load(&z, z.n), VMM_EFORMAT, "truncated");
}

/* One bit wrong: an error, or a kernel (the right one, if its form has a
   checksum); never a crash. */
static void flip(struct blob *b, const struct blob *kernel)
{
	size_t i;

	for (i = 0; i < b->n; i += i < 300 ? 1 : 17) {
		b->data[i] ^= (uint8_t)(1u << i % 8);
		if (load(b, b->n) == 0 && kernel &&
		    memcmp(mem.hva + 0x200000, kernel->data, kernel->n) != 0)
			fail_msg("byte %zu is wrong, and so is what was loaded", i);
		b->data[i] ^= (uint8_t)(1u << i % 8);
	}
}

static void test_corrupt(void **state)
{
	struct blob k, z, w;

	(void)state;
	make_linux(&k, 0x200000, 10000);
	flip(&k, NULL);
	gzip(&z, &k);
	flip(&z, &k);
	zstd(&z, &k);
	flip(&z, NULL);
	zboot(&w, &z, "zstd");
	flip(&w, NULL);
	make_elf(&k);
	flip(&k, NULL);
	gzip(&z, &k);
	memset(z.data + 20, 0xff, 50);
	assert_fails(load(&z, z.n), VMM_EFORMAT, "corrupt gzip data");
	zstd(&z, &k);
	memset(z.data + 8, 0xff, 50);
	assert_fails(load(&z, z.n), VMM_EFORMAT, "corrupt zstd data");
}

static void test_other_architecture(void **state)
{
	struct blob k;

	(void)state;
	make_linux(&k, 0, 0);
	memcpy(k.data + 56, "ARM\x64", 4);
	assert_fails(load(&k, k.n), VMM_EFORMAT, "another architecture (arm64)");
	make_elf(&k);
	elf_header(&k)->e_machine = EM_X86_64;
	assert_fails(load(&k, k.n), VMM_EFORMAT, "another architecture (machine 62)");
	make_elf(&k);
	elf_header(&k)->e_ident[EI_CLASS] = ELFCLASS32;
	assert_fails(load(&k, k.n), VMM_EFORMAT, "not 64-bit RISC-V");
	make_elf(&k);
	elf_header(&k)->e_ident[EI_DATA] = ELFDATA2MSB;
	assert_fails(load(&k, k.n), VMM_EFORMAT, "not 64-bit RISC-V");
	memset(&k, 'x', sizeof(k));
	assert_fails(load(&k, ROOM), VMM_EFORMAT, "neither a RISC-V Linux Image nor an ELF");
	assert_fails(load(&k, 63), VMM_EFORMAT, "truncated");
}

/* Small in its file, larger than RAM when unpacked. */
static void test_bomb(void **state)
{
	size_t n = RIG_RAM + (1u << 20);
	uint8_t *big = calloc(1, n);
	struct blob b, z;
	z_stream s = { 0 };

	(void)state;
	memset(&z, 0, sizeof(z));
	z.n = ZSTD_compress(z.data, ROOM, big, n, 3);
	assert_false(ZSTD_isError(z.n));
	assert_fails(load(&z, z.n), VMM_EFORMAT, "larger than the 4 MiB of RAM");
	zboot(&b, &z, "zstd");
	assert_fails(load(&b, b.n), VMM_EFORMAT, "larger than the 4 MiB of RAM");
	deflateInit2(&s, 9, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY);
	s.next_in = big;
	s.avail_in = (uInt)n;
	s.next_out = z.data;
	s.avail_out = ROOM;
	assert_int_equal(deflate(&s, Z_FINISH), Z_STREAM_END);
	z.n = ROOM - s.avail_out;
	deflateEnd(&s);
	assert_fails(load(&z, z.n), VMM_EFORMAT, "larger than the 4 MiB of RAM");
	free(big);
}

static void test_zboot(void **state)
{
	struct blob k, z, w;

	(void)state;
	make_linux(&k, 0x200000, 10000);
	zstd(&z, &k);
	zboot(&w, &z, "lz4");
	assert_fails(load(&w, w.n), VMM_ENOTSUP, "compressed with lz4, not gzip or zstd");
	zboot(&w, &z, "gzip");			/* it is not */
	assert_fails(load(&w, w.n), VMM_EFORMAT, "corrupt gzip data");
	zboot(&w, &z, "zstd");
	put(&w, 8, 0xffffffff, 4);
	assert_fails(load(&w, w.n), VMM_EFORMAT, "truncated");
	zboot(&w, &z, "zstd");
	put(&w, 12, 0xffffffff, 4);
	assert_fails(load(&w, w.n), VMM_EFORMAT, "truncated");
	zboot(&w, &z, "zstd");
	put(&w, 12, 0, 4);
	assert_fails(load(&w, w.n), VMM_EFORMAT, "truncated");
}

static void test_pe(void **state)
{
	struct blob k;

	(void)state;
	make_linux(&k, 0, 10000);
	put(&k, 60, 0xfffffff0, 4);		/* no PE header there */
	assert_fails(load(&k, k.n), VMM_EFORMAT, "truncated");
	make_linux(&k, 0, 10000);
	put(&k, PE + 6, 0xffff, 2);		/* more sections than file */
	assert_fails(load(&k, k.n), VMM_EFORMAT, "truncated");
	make_linux(&k, 0, 10000);
	put(&k, PE + 20, 0xffff, 2);
	assert_fails(load(&k, k.n), VMM_EFORMAT, "truncated");
	make_linux(&k, 0, 10000);
	put(&k, PE + 40 + 16, 0xffffffff, 4);	/* a section that is not whole */
	put(&k, PE + 40 + 20, 0xffffffff, 4);
	assert_fails(load(&k, k.n), VMM_EFORMAT, "3000 bytes, 8589934590 needed");
	make_linux(&k, 0, 10000);
	put(&k, PE + 40 + 16, BODY - 511, 4);
	assert_fails(load(&k, k.n), VMM_EFORMAT, "3000 bytes, 3001 needed");
}

/* ---- ELF ---------------------------------------------------------------------------- */

static void test_elf(void **state)
{
	struct blob k;

	(void)state;
	make_elf(&k);
	assert_ok(load(&k, k.n));
	assert_int_equal(image.entry, MAP_RAM + 0x1004);
	assert_int_equal(image.end, CLAIM(MAP_RAM + 0x12000));
	assert_memory_equal(mem.hva + 0x1000, k.data + 512, 1024);
	assert_memory_equal(mem.hva + 0x10000, k.data + 1536, 1024);
	assert_int_equal(mem.hva[0x10400] | mem.hva[0x11fff], 0);
	/* Linked for a virtual address, as vmlinux is. */
	elf_segment(&k, 0)->p_vaddr = 0xffffffff80000000ull;
	elf_header(&k)->e_entry = 0xffffffff80000010ull;
	assert_ok(load(&k, k.n));
	assert_int_equal(image.entry, MAP_RAM + 0x1010);
	/* Segments out of order, over each other, up to the end of RAM. */
	make_elf(&k);
	elf_segment(&k, 2)->p_paddr = MAP_RAM + RIG_RAM - 8192;
	assert_ok(load(&k, k.n));
	assert_int_equal(image.end, CLAIM(MAP_RAM + RIG_RAM));
	elf_segment(&k, 2)->p_paddr = MAP_RAM + 0x1200;
	assert_ok(load(&k, k.n));
	assert_memory_equal(mem.hva + 0x1000, k.data + 512, 512);
	assert_memory_equal(mem.hva + 0x1200, k.data + 1536, 1024);
	elf_segment(&k, 2)->p_paddr = MAP_RAM;
	assert_ok(load(&k, k.n));
	assert_int_equal(image.end, CLAIM(MAP_RAM + 8192));
}

static void test_elf_lies(void **state)
{
	static const struct { size_t off; uint64_t val; unsigned int n; const char *text; } t[] = {
		/* File header: e_phoff, e_phentsize, e_phnum, e_entry. */
		{ 32, ~0ull, 8, "truncated" },
		{ 32, 0 - 56ull, 8, "truncated" },
		{ 32, 2560, 8, "truncated" },
		{ 32, 1ull << 63, 8, "truncated" },
		{ 54, 0, 2, "program headers of 0 bytes" },
		{ 54, 57, 2, "program headers of 57 bytes" },
		{ 56, 0xffff, 2, "kernel x" },
		{ 56, 0, 2, "nothing to load" },
		{ 24, 0, 8, "entry point 0x0 is not in RAM" },
		{ 24, MAP_RAM + RIG_RAM - 3, 8, "entry point" },
		{ 24, ~0ull, 8, "entry point" },
		{ 24, MAP_RAM - 1, 8, "entry point" },
		/* First segment: p_offset, p_paddr, p_filesz, p_memsz. */
		{ 64 + 8, ~0ull, 8, "segment 0 is not whole" },
		{ 64 + 8, 2560 - 1023, 8, "segment 0 is not whole" },
		{ 64 + 8, 0 - 512ull, 8, "segment 0 is not whole" },
		{ 64 + 24, 0, 8, "is not in RAM" },
		{ 64 + 24, MAP_RAM - 1, 8, "is not in RAM" },
		{ 64 + 24, MAP_RAM + RIG_RAM - 1023, 8, "is not in RAM" },
		{ 64 + 24, MAP_RAM + RIG_RAM, 8, "is not in RAM" },
		{ 64 + 24, ~0ull, 8, "is not in RAM" },
		{ 64 + 24, 0 - 512ull, 8, "is not in RAM" },
		{ 64 + 32, 1025, 8, "is not in RAM" },	/* more in the file than in memory */
		{ 64 + 32, ~0ull, 8, "is not in RAM" },
		{ 64 + 40, ~0ull, 8, "is not in RAM" },
		{ 64 + 40, 0 - MAP_RAM, 8, "is not in RAM" },
		{ 64 + 40, RIG_RAM, 8, "is not in RAM" },
	};
	struct blob k;
	unsigned int i;

	(void)state;
	for (i = 0; i < sizeof(t) / sizeof(t[0]); i++) {
		make_elf(&k);
		put(&k, t[i].off, t[i].val, t[i].n);
		if (load(&k, k.n) != VMM_EFORMAT || !strstr(err.message, t[i].text))
			fail_msg("case %u: not \"%s\": %s", i, t[i].text, err.message);
	}
	/* Nothing of it is in the platform's pages. */
	make_elf(&k);
	elf_segment(&k, 2)->p_paddr = MAP_RAM + RIG_RAM - 8191;
	assert_fails(load(&k, k.n), VMM_EFORMAT, "segment 2, 0x2000 bytes");
	assert_int_equal(*(uint8_t *)mem_tail(&mem), 0);
}

/* ---- Where it comes from --------------------------------------------------------------- */

static struct blob fed;
static int feed_fd;

static void *feed(void *arg)
{
	size_t done = 0;

	while (done < fed.n) {
		ssize_t n = write(feed_fd, fed.data + done,
				  fed.n - done < 100 ? fed.n - done : 100);

		if (n <= 0)
			break;
		done += (size_t)n;
	}
	close(feed_fd);
	return arg;
}

static int load_pipe(const struct blob *b)
{
	int p[2], before, rc;
	pthread_t t;

	fed = *b;
	assert_int_equal(pipe2(p, O_CLOEXEC), 0);
	feed_fd = p[1];
	pthread_create(&t, NULL, feed, NULL);
	rc = image_load(&mem, p[0], "a pipe", &image, &err);
	pthread_join(t, NULL);
	before = fds();
	close(p[0]);
	assert_int_equal(fds(), before - 1);
	return rc;
}

static void test_pipe(void **state)
{
	struct blob k, z;
	int p[2];

	(void)state;
	make_linux(&k, 0x200000, 10000);
	assert_ok(load_pipe(&k));
	assert_memory_equal(mem.hva + 0x200000, k.data, k.n);
	zstd(&z, &k);
	assert_ok(load_pipe(&z));
	make_elf(&k);
	assert_ok(load_pipe(&k));
	k.n--;
	assert_fails(load_pipe(&k), VMM_EFORMAT, "a pipe: truncated");
	k.n = 0;
	assert_fails(load_pipe(&k), VMM_EFORMAT, "a pipe: empty");
	/* One that never ends is given up when RAM would be full. */
	p[0] = open("/dev/zero", O_RDONLY | O_CLOEXEC);
	assert_fails(image_load(&mem, p[0], "/dev/zero", &image, &err), VMM_EFORMAT,
		     "/dev/zero: larger than the 4 MiB of RAM");
	close(p[0]);
}

static void test_open(void **state)
{
	char name[160], path[4096];
	struct blob k;
	int fd, before = fds(), file;

	(void)state;
	fd = image_open("/nonexistent/Image", -1, "kernel", name, sizeof(name), &err);
	assert_int_equal(fd, VMM_ESYS);
	assert_string_equal(err.message, "kernel /nonexistent/Image: No such file or directory");
	assert_int_equal(err.os_errno, ENOENT);
	assert_int_equal(image_open(NULL, 777, "initrd", name, sizeof(name), &err), VMM_ESYS);
	assert_string_equal(err.message, "initrd (descriptor 777): Bad file descriptor");
	fd = image_open("/tmp", -1, "kernel", name, sizeof(name), &err);
	assert_true(fd >= 0);
	assert_fails(image_load(&mem, fd, name, &image, &err), VMM_ESYS, "kernel /tmp");
	assert_int_equal(err.os_errno, EISDIR);
	close(fd);
	memset(path, 'p', sizeof(path) - 1);
	path[sizeof(path) - 1] = 0;
	assert_true(image_open(path, -1, "kernel", name, sizeof(name), &err) < 0);
	assert_int_equal(strlen(name), sizeof(name) - 1);
	assert_int_equal(fds(), before);
	/* A descriptor stays the caller's, and stands where it stood. */
	make_linux(&k, 0x200000, 10000);
	file = file_of(k.data, k.n);
	lseek(file, 11, SEEK_SET);
	fd = image_open(NULL, file, "kernel", name, sizeof(name), &err);
	assert_true(fcntl(fd, F_GETFD) & FD_CLOEXEC);
	assert_ok(image_load(&mem, fd, name, &image, &err));
	close(fd);
	assert_int_equal(lseek(file, 0, SEEK_CUR), 11);
	close(file);
	assert_int_equal(fds(), before);
	/* One that can only be written cannot be loaded. */
	file = open("/dev/null", O_WRONLY | O_CLOEXEC);
	assert_fails(image_load(&mem, file, "write-only", &image, &err), VMM_ESYS, "write-only");
	close(file);
	assert_int_equal(fds(), before);
}

static void test_initrd(void **state)
{
	static uint8_t data[RIG_RAM / 2 + 1];
	uint64_t half = MAP_RAM + RIG_RAM / 2, size = 0;
	int fd, before = fds();
	size_t i;

	(void)state;
	for (i = 0; i < sizeof(data); i++)
		data[i] = (uint8_t)(i * 5 + i / 300);
	fd = file_of(data, sizeof(data));
	assert_ok(image_initrd(&mem, fd, "initrd i", half - 4096, &size, &err));
	assert_int_equal(size, sizeof(data));
	assert_memory_equal(mem_get(&mem, half - 4096, size), data, size);
	assert_fails(image_initrd(&mem, fd, "initrd i", half, &size, &err), VMM_EFORMAT,
		     "initrd i: 2048 KiB do not fit into RAM beside the kernel (2048 KiB free)");
	assert_int_equal(ftruncate(fd, RIG_RAM / 2), 0);
	assert_ok(image_initrd(&mem, fd, "initrd i", half, &size, &err));
	assert_int_equal(*(uint8_t *)mem_tail(&mem), 0);
	assert_fails(image_initrd(&mem, fd, "initrd i", MAP_RAM + RIG_RAM, &size, &err),
		     VMM_EFORMAT, "(0 KiB free)");
	close(fd);
	fd = file_of("", 0);
	assert_fails(image_initrd(&mem, fd, "initrd i", half, &size, &err), VMM_EFORMAT,
		     "initrd i: empty");
	close(fd);
	assert_int_equal(fds(), before);
}

int main(void)
{
#define T(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(test_linux), T(test_linux_size), T(test_linux_overflow), T(test_truncated),
		T(test_corrupt), T(test_other_architecture), T(test_bomb), T(test_zboot),
		T(test_pe), T(test_elf), T(test_elf_lies), T(test_pipe), T(test_open),
		T(test_initrd),
	};

	time_limit(20);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
