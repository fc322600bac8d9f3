/* SPDX-License-Identifier: MIT */
/*
 * image.h - loading a kernel and an initial RAM disk.
 */
#ifndef RISCV_IMAGE_H
#define RISCV_IMAGE_H

#include "../core/machine.h"

struct image {
	uint64_t	entry;		/* where hart 0 begins */
	uint64_t	end;		/* behind all that the kernel claims */
};

/* A file by its path or, if path is NULL, by a descriptor, which stays the
   caller's.  *name (cap bytes) is what to call it in an error. */
int image_open(const char *path, int fd, const char *what, char *name, size_t cap,
	       struct vmm_error *err);

/* Load a kernel into RAM.  VMM_EFORMAT says what is wrong with the file. */
int image_load(const struct mem *mem, int fd, const char *name, struct image *out,
	       struct vmm_error *err);

/* Load an initial RAM disk at gpa, a page's beginning; *size is its bytes. */
int image_initrd(const struct mem *mem, int fd, const char *name, uint64_t gpa, uint64_t *size,
		 struct vmm_error *err);

#endif
