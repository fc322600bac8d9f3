/* SPDX-License-Identifier: MIT */
/*
 * image.c - kernels: Linux Image (Documentation/arch/riscv/boot-image-header.rst),
 * the same in an EFI zboot wrapper, compressed with gzip or zstd, and ELF.
 *
 * What cannot be sought in (a pipe) and what is compressed is first made a file
 * in memory; from there on there are only files, read by offset and copied to
 * guest RAM by the kernel (mem_load).  Nothing in a file is trusted: each
 * offset and length is checked against the file and against RAM where it is
 * used, and unpacking ends at the size of RAM.
 */
#include <ctype.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <zlib.h>
#include <zstd.h>

#include "image.h"

#define IMAGE_CHUNK	(128u << 10)
#define IMAGE_ALIGN	(2ull << 20)

/* One file while it is looked at: fd is ours to close. */
struct image_file {
	int		fd;
	uint64_t	size;
	const char	*name;		/* for errors */
};

static uint64_t image_le(const uint8_t *p, int n)
{
	uint64_t v = 0;

	while (n--)
		v = v << 8 | p[n];
	return v;
}

int image_open(const char *path, int fd, const char *what, char *name, size_t cap,
	       struct vmm_error *err)
{
	int new;

	if (path) {
		snprintf(name, cap, "%s %s", what, path);
		new = open(path, O_RDONLY | O_CLOEXEC);
	} else {
		snprintf(name, cap, "%s (descriptor %d)", what, fd);
		new = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	}
	return new < 0 ? fail_sys(err, errno, "%s", name) : new;
}

/* Read n bytes at off, all of them. */
static int image_read(const struct image_file *f, uint64_t off, void *buf, size_t n,
		      struct vmm_error *err)
{
	size_t done = 0;
	ssize_t r;

	if (off > f->size || n > f->size - off)
		return fail(err, VMM_EFORMAT, "%s: truncated: %llu bytes, %llu needed", f->name,
			    (unsigned long long)f->size, (unsigned long long)(off + n));
	while (done < n) {
		r = pread(f->fd, (uint8_t *)buf + done, n - done, (off_t)(off + done));
		if (r < 0 && errno == EINTR)
			continue;
		if (r < 0)
			return fail_sys(err, errno, "read %s", f->name);
		if (r == 0)
			return fail(err, VMM_EFORMAT, "%s: became shorter while read", f->name);
		done += (size_t)r;
	}
	return 0;
}

/* ---- From anything to a file -------------------------------------------- */

static int image_write(int fd, const uint8_t *p, size_t n, uint64_t *total, uint64_t limit,
		       const char *name, struct vmm_error *err)
{
	if (n > limit - *total)
		return fail(err, VMM_EFORMAT, "%s: larger than the %llu MiB of RAM", name,
			    (unsigned long long)(limit >> 20));
	*total += n;
	while (n) {
		ssize_t r = write(fd, p, n);

		if (r < 0 && errno == EINTR)
			continue;
		if (r < 0)
			return fail_sys(err, errno, "%s: memory to unpack it", name);
		p += r;
		n -= (size_t)r;
	}
	return 0;
}

/* A decoder: takes input from *in, gives at most cap bytes, says how many or a
   negative number, and sets *end behind the last byte of the stream. */
struct image_codec {
	const char	*name;
	ZSTD_DStream	*zstd;
	z_stream	zlib;
	int		gzip;
};

static long image_decode(struct image_codec *c, const uint8_t **p, size_t *n, uint8_t *out,
			 size_t cap, int *end)
{
	if (c->gzip) {
		int r;

		c->zlib.next_in = (Bytef *)(uintptr_t)*p;
		c->zlib.avail_in = (uInt)*n;
		c->zlib.next_out = out;
		c->zlib.avail_out = (uInt)cap;
		r = inflate(&c->zlib, Z_NO_FLUSH);
		*p = c->zlib.next_in;
		*n = c->zlib.avail_in;
		*end = r == Z_STREAM_END;
		if (r != Z_OK && r != Z_STREAM_END && r != Z_BUF_ERROR)
			return -1;
		return (long)(cap - c->zlib.avail_out);
	} else {
		ZSTD_inBuffer in = { *p, *n, 0 };
		ZSTD_outBuffer o = { out, cap, 0 };
		size_t r = ZSTD_decompressStream(c->zstd, &o, &in);

		*p += in.pos;
		*n -= in.pos;
		*end = r == 0;
		return ZSTD_isError(r) ? -1 : (long)o.pos;
	}
}

/* Decode len bytes of f from off on into fd. */
static int image_unpack(const struct image_file *f, uint64_t off, uint64_t len,
			struct image_codec *c, int fd, uint64_t limit, struct vmm_error *err)
{
	uint8_t *in = malloc(2 * IMAGE_CHUNK), *out = in + IMAGE_CHUNK;
	uint64_t total = 0, taken = 0;
	int rc = 0, end = 0;

	if (!in)
		return fail(err, VMM_ENOMEM, "%s: memory to unpack it", f->name);
	while (!end && rc == 0) {
		size_t n = len - taken < IMAGE_CHUNK ? (size_t)(len - taken) : IMAGE_CHUNK;
		const uint8_t *p = in;

		if (!n) {
			rc = fail(err, VMM_EFORMAT, "%s: truncated %s data", f->name, c->name);
			break;
		}
		rc = image_read(f, off + taken, in, n, err);
		taken += n;
		while (rc == 0 && !end) {
			long got = image_decode(c, &p, &n, out, IMAGE_CHUNK, &end);

			if (got < 0)
				rc = fail(err, VMM_EFORMAT, "%s: corrupt %s data", f->name, c->name);
			else
				rc = image_write(fd, out, (size_t)got, &total, limit, f->name, err);
			if (!n && got < (long)IMAGE_CHUNK)
				break;
		}
	}
	free(in);
	return rc;
}

/* Replace f by what its len bytes at off are when unpacked. */
static int image_expand(struct image_file *f, uint64_t off, uint64_t len, int gzip,
			uint64_t limit, struct vmm_error *err)
{
	struct image_codec c = { .name = gzip ? "gzip" : "zstd", .gzip = gzip };
	int fd, rc;

	if (gzip ? inflateInit2(&c.zlib, 15 + 32) != Z_OK : !(c.zstd = ZSTD_createDStream()))
		return fail(err, VMM_ENOMEM, "%s: memory to unpack it", f->name);
	fd = memfd_create("vmm-image", MFD_CLOEXEC);
	if (fd < 0)
		rc = fail_sys(err, errno, "%s: memory to unpack it", f->name);
	else
		rc = image_unpack(f, off, len, &c, fd, limit, err);
	if (gzip)
		inflateEnd(&c.zlib);
	else
		ZSTD_freeDStream(c.zstd);
	if (rc) {
		if (fd >= 0)
			close(fd);
		return rc;
	}
	close(f->fd);
	f->fd = fd;
	f->size = (uint64_t)lseek(fd, 0, SEEK_END);
	return 0;
}

/* Replace f, a pipe or the like, by all that comes out of it. */
static int image_spool(struct image_file *f, uint64_t limit, struct vmm_error *err)
{
	uint8_t *buf = malloc(IMAGE_CHUNK);
	int fd = memfd_create("vmm-image", MFD_CLOEXEC), rc = 0;
	ssize_t n = 0;

	if (fd < 0 || !buf)
		rc = fail(err, VMM_ENOMEM, "%s: memory to read it", f->name);
	f->size = 0;
	while (rc == 0) {
		n = read(f->fd, buf, IMAGE_CHUNK);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			break;
		rc = image_write(fd, buf, (size_t)n, &f->size, limit, f->name, err);
	}
	if (n < 0)
		rc = fail_sys(err, errno, "read %s", f->name);
	free(buf);
	if (rc) {
		if (fd >= 0)
			close(fd);
		return rc;
	}
	close(f->fd);
	f->fd = fd;
	return 0;
}

/* f, whatever fd is, as a file that is not empty; f->fd is to be closed. */
static int image_begin(struct image_file *f, int fd, const char *name, uint64_t limit,
		       struct vmm_error *err)
{
	struct stat st;
	int rc;

	*f = (struct image_file){ .fd = fcntl(fd, F_DUPFD_CLOEXEC, 3), .name = name };
	if (f->fd < 0 || fstat(f->fd, &st) < 0) {
		rc = fail_sys(err, errno, "%s", name);
	} else if (S_ISDIR(st.st_mode)) {
		rc = fail_sys(err, EISDIR, "%s", name);
	} else if (S_ISREG(st.st_mode)) {
		f->size = (uint64_t)st.st_size;
		rc = 0;
	} else {
		rc = image_spool(f, limit, err);
	}
	if (rc == 0 && f->size == 0)
		rc = fail(err, VMM_EFORMAT, "%s: empty", name);
	if (rc && f->fd >= 0)
		close(f->fd);
	return rc;
}

/* ---- Linux Image --------------------------------------------------------- */

/* An Image with an EFI stub says how long it is: PE format, section table. */
static int image_check_pe(const struct image_file *f, struct vmm_error *err)
{
	uint8_t b[40];
	uint64_t pe, i, n, need;
	int rc;

	rc = image_read(f, 0x3c, b, 4, err);
	if (rc)
		return rc;
	pe = image_le(b, 4);
	rc = image_read(f, pe, b, 24, err);
	if (rc)
		return rc;
	if (memcmp(b, "PE\0\0", 4) != 0)
		return 0;
	n = image_le(b + 6, 2);
	pe += 24 + image_le(b + 20, 2);
	for (i = 0; i < n; i++) {
		rc = image_read(f, pe + 40 * i, b, 40, err);
		if (rc)
			return rc;
		need = image_le(b + 16, 4) + image_le(b + 20, 4);
		if (need > f->size)
			return fail(err, VMM_EFORMAT, "%s: truncated: %llu bytes, %llu needed",
				    f->name, (unsigned long long)f->size,
				    (unsigned long long)need);
	}
	return 0;
}

static int image_load_linux(const struct mem *mem, const struct image_file *f,
			    const uint8_t head[64], struct image *out, struct vmm_error *err)
{
	uint64_t offset = image_le(head + 8, 8), size = image_le(head + 16, 8);
	uint64_t gpa = mem->gpa + offset;
	int rc;

	if (memcmp(head, "MZ", 2) == 0) {
		rc = image_check_pe(f, err);
		if (rc)
			return rc;
	}
	/* The size in the header counts what is zeroes at the start, too. */
	if (size < f->size)
		size = f->size;
	if (offset > mem->size || !mem_get(mem, gpa, size))
		return fail(err, VMM_EFORMAT, "%s: takes %llu MiB at 0x%llx, RAM has %llu MiB",
			    f->name, (unsigned long long)((size + 0xfffff) >> 20),
			    (unsigned long long)gpa, (unsigned long long)(mem->size >> 20));
	out->entry = gpa;
	out->end = gpa + size;
	return mem_load(mem, gpa, f->fd, 0, f->size, f->name, err);
}

/* ---- ELF ------------------------------------------------------------------ */

static int image_load_elf(const struct mem *mem, const struct image_file *f, struct image *out,
			  struct vmm_error *err)
{
	Elf64_Ehdr eh;
	Elf64_Phdr ph;
	unsigned int i, loads = 0;
	int rc;

	rc = image_read(f, 0, &eh, sizeof(eh), err);
	if (rc)
		return rc;
	if (eh.e_ident[EI_CLASS] != ELFCLASS64 || eh.e_ident[EI_DATA] != ELFDATA2LSB ||
	    eh.e_machine != EM_RISCV)
		return fail(err, VMM_EFORMAT,
			    "%s: an ELF file of another architecture (machine %u), not 64-bit RISC-V",
			    f->name, eh.e_machine);
	if (eh.e_phentsize != sizeof(ph))
		return fail(err, VMM_EFORMAT, "%s: ELF program headers of %u bytes", f->name,
			    eh.e_phentsize);
	out->entry = eh.e_entry;
	out->end = 0;
	for (i = 0; i < eh.e_phnum; i++) {
		if (eh.e_phoff > f->size)
			return fail(err, VMM_EFORMAT, "%s: truncated: no program headers", f->name);
		rc = image_read(f, eh.e_phoff + i * sizeof(ph), &ph, sizeof(ph), err);
		if (rc)
			return rc;
		if (ph.p_type != PT_LOAD || !ph.p_memsz)
			continue;
		loads++;
		if (ph.p_filesz > ph.p_memsz || !mem_get(mem, ph.p_paddr, ph.p_memsz))
			return fail(err, VMM_EFORMAT,
				    "%s: segment %u, 0x%llx bytes at 0x%llx, is not in RAM", f->name,
				    i, (unsigned long long)ph.p_memsz,
				    (unsigned long long)ph.p_paddr);
		if (ph.p_offset > f->size || ph.p_filesz > f->size - ph.p_offset)
			return fail(err, VMM_EFORMAT, "%s: truncated: segment %u is not whole",
				    f->name, i);
		rc = mem_load(mem, ph.p_paddr, f->fd, ph.p_offset, ph.p_filesz, f->name,
			      err);
		if (rc)
			return rc;
		/* Linux' vmlinux has a virtual entry point. */
		if (eh.e_entry >= ph.p_vaddr && eh.e_entry - ph.p_vaddr < ph.p_memsz)
			out->entry = eh.e_entry - ph.p_vaddr + ph.p_paddr;
		if (ph.p_paddr + ph.p_memsz > out->end)
			out->end = ph.p_paddr + ph.p_memsz;
	}
	if (!loads)
		return fail(err, VMM_EFORMAT, "%s: an ELF file with nothing to load", f->name);
	if (!mem_get(mem, out->entry, 4))
		return fail(err, VMM_EFORMAT, "%s: entry point 0x%llx is not in RAM", f->name,
			    (unsigned long long)out->entry);
	return 0;
}

/* ---- All together ---------------------------------------------------------- */

/* How many of n bytes are a word that can be shown. */
static int image_word(const uint8_t *p, int n)
{
	int i;

	for (i = 0; i < n && isalnum(p[i]); i++)
		;
	return i;
}

/* Take off what is wrapped around the kernel, twice at the most: a zboot EFI
   program holds compressed data. */
static int image_unwrap(struct image_file *f, uint8_t head[64], uint64_t limit,
			struct vmm_error *err)
{
	int rc;

	rc = image_read(f, 0, head, f->size < 64 ? (size_t)f->size : 64, err);
	if (rc)
		return rc;
	/* Linux, drivers/firmware/efi/libstub/zboot-header.S */
	if (f->size >= 64 && memcmp(head, "MZ\0\0zimg", 8) == 0) {
		int gzip = memcmp(head + 24, "gzip", 5) == 0;
		uint64_t off = image_le(head + 8, 4), len = image_le(head + 12, 4);

		if (!gzip && memcmp(head + 24, "zstd", 4) != 0)
			return fail(err, VMM_ENOTSUP, "%s: compressed with %.*s, not gzip or zstd",
				    f->name, image_word(head + 24, 8), (const char *)head + 24);
		if (off > f->size || len > f->size - off)
			return fail(err, VMM_EFORMAT, "%s: truncated: %llu bytes, %llu needed",
				    f->name, (unsigned long long)f->size,
				    (unsigned long long)(off + len));
		rc = image_expand(f, off, len, gzip, limit, err);
	} else if (f->size >= 4 && memcmp(head, "\x1f\x8b", 2) == 0) {
		rc = image_expand(f, 0, f->size, 1, limit, err);
	} else if (f->size >= 4 && memcmp(head, "\x28\xb5\x2f\xfd", 4) == 0) {
		rc = image_expand(f, 0, f->size, 0, limit, err);
	} else {
		return 0;
	}
	memset(head, 0, 64);
	return rc ? rc : image_read(f, 0, head, f->size < 64 ? (size_t)f->size : 64, err);
}

static int image_load_any(const struct mem *mem, struct image_file *f, struct image *out,
			  struct vmm_error *err)
{
	uint8_t head[64] = { 0 };
	int rc = image_unwrap(f, head, mem->size, err);

	if (rc)
		return rc;
	if (memcmp(head, ELFMAG, SELFMAG) == 0)
		return image_load_elf(mem, f, out, err);
	if (memcmp(head + 56, "RSC\x05", 4) == 0)
		return image_load_linux(mem, f, head, out, err);
	if (memcmp(head + 56, "ARM\x64", 4) == 0)
		return fail(err, VMM_EFORMAT, "%s: a kernel of another architecture (arm64)",
			    f->name);
	if (f->size < 64)
		return fail(err, VMM_EFORMAT, "%s: truncated: %llu bytes", f->name,
			    (unsigned long long)f->size);
	return fail(err, VMM_EFORMAT, "%s: neither a RISC-V Linux Image nor an ELF file", f->name);
}

int image_load(const struct mem *mem, int fd, const char *name, struct image *out,
	       struct vmm_error *err)
{
	struct image_file f;
	int rc;

	rc = image_begin(&f, fd, name, mem->size, err);
	if (rc)
		return rc;
	rc = image_load_any(mem, &f, out, err);
	close(f.fd);
	if (rc)
		return rc;
	/* Linux with CONFIG_STRICT_KERNEL_RWX claims all of its last 2 MiB, and
	   an initrd in there is lost (arch/riscv/mm/init.c, setup_bootmem). */
	out->end = (out->end + IMAGE_ALIGN - 1) & ~(IMAGE_ALIGN - 1);
	return 0;
}

int image_initrd(const struct mem *mem, int fd, const char *name, uint64_t gpa, uint64_t *size,
		 struct vmm_error *err)
{
	uint64_t room = mem->gpa + mem->size - gpa;
	struct image_file f;
	int rc;

	rc = image_begin(&f, fd, name, mem->size, err);
	if (rc)
		return rc;
	*size = f.size;
	if (f.size > room)
		rc = fail(err, VMM_EFORMAT,
			  "%s: %llu KiB do not fit into RAM beside the kernel (%llu KiB free)", name,
			  (unsigned long long)(f.size >> 10), (unsigned long long)(room >> 10));
	else
		rc = mem_load(mem, gpa, f.fd, 0, f.size, name, err);
	close(f.fd);
	return rc;
}
