/* SPDX-License-Identifier: MIT */
/*
 * fuzz_image.c - any bytes as a kernel: Image, compressed, wrapped, ELF.
 */
#include <sys/mman.h>
#include <unistd.h>

#include "../../riscv/image.h"
#include "../unit/kernels.h"

#define RAM	(4ull << 20)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t fuzz_seed(unsigned int n, uint8_t *buf, size_t cap);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct mem mem;
	struct vmm_error err = { 0 };
	struct image image = { 0 };
	int fd, rc;

	if (!mem.hva && mem_init(&mem, MAP_RAM, RAM, NULL))
		abort();
	fd = memfd_create("kernel", MFD_CLOEXEC);
	if (fd < 0 || write(fd, data, size) != (ssize_t)size)
		abort();
	rc = image_load(&mem, fd, "kernel", &image, &err);
	close(fd);
	if (rc && (rc != err.code || !err.message[0]))
		abort();
	/* What was loaded begins in RAM, and ends there. */
	if (rc == 0 && (!mem_get(&mem, image.entry, 1) || image.end > MAP_RAM + RAM ||
			image.end <= MAP_RAM))
		abort();
	/* Nothing has reached the pages behind it. */
	if (*(uint64_t *)mem_tail(&mem))
		abort();
	return 0;
}

size_t fuzz_seed(unsigned int n, uint8_t *buf, size_t cap)
{
	static struct blob k, z, w;

	if (n < 6)
		make_linux(&k, n % 2 ? 0 : 0x200000, 10000);
	else
		make_elf(&k);
	switch (n) {
	case 0: case 6:
		w = k;
		break;
	case 1: case 7:
		gzip(&w, &k);
		break;
	case 2: case 8:
		zstd(&w, &k);
		break;
	case 3:
		gzip(&z, &k);
		zboot(&w, &z, "gzip");
		break;
	case 4:
		zstd(&z, &k);
		zboot(&w, &z, "zstd22");
		break;
	case 5:
		memset(k.data, 0, 2);
		w = k;
		w.n = 64;
		break;
	default:
		return 0;
	}
	if (w.n > cap)
		return 0;
	memcpy(buf, w.data, w.n);
	return w.n;
}
