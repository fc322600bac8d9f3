/* SPDX-License-Identifier: MIT */
/*
 * kernels.h - small kernels of every form that riscv/image.c loads, for its
 * test and its fuzz target.
 */
#ifndef UNIT_KERNELS_H
#define UNIT_KERNELS_H

#include <elf.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>
#include <zstd.h>

#include "../../riscv/map.h"

#define ROOM	(16u << 10)
#define BODY	3000u		/* bytes of a kernel, header and all */
#define PE	128u		/* where its PE header is */

struct blob {
	uint8_t		data[ROOM];
	size_t		n;
};

static inline void put(struct blob *b, size_t off, uint64_t v, unsigned int n)
{
	while (n--) {
		b->data[off++] = (uint8_t)v;
		v >>= 8;
	}
}

/* A Linux Image with an EFI stub of one section. */
static inline void make_linux(struct blob *b, uint64_t offset, uint64_t size)
{
	size_t i;

	memset(b, 0, sizeof(*b));
	for (i = 0; i < BODY; i++)
		b->data[i] = (uint8_t)(i * 7 + i / 64 * 13);
	memset(b->data, 0, 512);
	memcpy(b->data, "MZ", 2);
	put(b, 8, offset, 8);
	put(b, 16, size, 8);
	put(b, 32, 2, 4);
	memcpy(b->data + 48, "RISCV", 5);
	memcpy(b->data + 56, "RSC\x05", 4);
	put(b, 60, PE, 4);
	memcpy(b->data + PE, "PE\0\0", 4);
	put(b, PE + 4, 0x5064, 2);
	put(b, PE + 6, 1, 2);			/* sections */
	put(b, PE + 20, 16, 2);			/* optional header */
	put(b, PE + 40 + 16, BODY - 512, 4);	/* size, offset of raw data */
	put(b, PE + 40 + 20, 512, 4);
	b->n = BODY;
}

static inline void gzip(struct blob *to, const struct blob *from)
{
	z_stream z = { 0 };

	memset(to, 0, sizeof(*to));
	deflateInit2(&z, 9, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY);
	z.next_in = (Bytef *)(uintptr_t)from->data;
	z.avail_in = (uInt)from->n;
	z.next_out = to->data;
	z.avail_out = ROOM;
	if (deflate(&z, Z_FINISH) != Z_STREAM_END)
		abort();
	to->n = ROOM - z.avail_out;
	deflateEnd(&z);
}

static inline void zstd(struct blob *to, const struct blob *from)
{
	memset(to, 0, sizeof(*to));
	to->n = ZSTD_compress(to->data, ROOM, from->data, from->n, 3);
	if (ZSTD_isError(to->n))
		abort();
}

/* An EFI zboot wrapper around what is compressed, with something behind it. */
static inline void zboot(struct blob *to, const struct blob *from, const char *type)
{
	memset(to, 0, sizeof(*to));
	memcpy(to->data, "MZ\0\0zimg", 8);
	put(to, 8, 256, 4);
	put(to, 12, from->n, 4);
	snprintf((char *)to->data + 24, 16, "%s", type);
	memcpy(to->data + 256, from->data, from->n);
	memset(to->data + 256 + from->n, 0xee, 100);
	to->n = 256 + from->n + 100;
}

/* An ELF file of two segments, and BSS. */
static inline Elf64_Ehdr *elf_header(struct blob *b)
{
	return (Elf64_Ehdr *)(void *)b->data;
}

static inline Elf64_Phdr *elf_segment(struct blob *b, unsigned int i)
{
	return (Elf64_Phdr *)(void *)(b->data + 64) + i;
}

static inline void make_elf(struct blob *b)
{
	Elf64_Ehdr *eh = elf_header(b);
	Elf64_Phdr *ph = elf_segment(b, 0);
	size_t i;

	memset(b, 0, sizeof(*b));
	for (i = 512; i < 2560; i++)
		b->data[i] = (uint8_t)(i * 11 + i / 256);
	memcpy(eh->e_ident, ELFMAG, SELFMAG);
	eh->e_ident[EI_CLASS] = ELFCLASS64;
	eh->e_ident[EI_DATA] = ELFDATA2LSB;
	eh->e_ident[EI_VERSION] = EV_CURRENT;
	eh->e_type = ET_EXEC;
	eh->e_machine = EM_RISCV;
	eh->e_version = EV_CURRENT;
	eh->e_entry = MAP_RAM + 0x1004;
	eh->e_phoff = 64;
	eh->e_ehsize = sizeof(*eh);
	eh->e_phentsize = sizeof(*ph);
	eh->e_phnum = 3;
	ph[0] = (Elf64_Phdr){ .p_type = PT_LOAD, .p_offset = 512, .p_filesz = 1024,
			      .p_memsz = 1024, .p_paddr = MAP_RAM + 0x1000,
			      .p_vaddr = MAP_RAM + 0x1000 };
	ph[1] = (Elf64_Phdr){ .p_type = PT_NOTE, .p_offset = ~0ull, .p_filesz = ~0ull };
	ph[2] = (Elf64_Phdr){ .p_type = PT_LOAD, .p_offset = 1536, .p_filesz = 1024,
			      .p_memsz = 8192, .p_paddr = MAP_RAM + 0x10000,
			      .p_vaddr = MAP_RAM + 0x10000 };
	b->n = 2560;
}

#endif
