/* SPDX-License-Identifier: MIT */
/*
 * next.c - a guest's program that shows that it goes on: for bench/restore.
 *
 * It rings the doorbell with the guest-physical address of a word, plus 1, and is
 * frozen while it waits for that to change.  Whoever goes on from there rings
 * again, with 32 random bits above the low 32, which are 2; or with 3 if
 * anything is wrong: memory that it had filled, time that went backwards, or
 * random numbers that were drawn before.  No C library: the initramfs has none.
 */
#include <asm/unistd.h>
#include <stdint.h>

#include "call.h"
#include "vmm_guest.h"

#define AT_FDCWD_	-100
#define RDWR_SYNC	04010002
#define SHARED_RW	3, 1

static volatile uint32_t filled[4096];
static volatile uint64_t go __attribute__((aligned(4096)));

/* proc_pid_pagemap(5) */
static uint64_t physical(volatile void *p)
{
	uint64_t entry = 0;
	long fd = call(__NR_openat, AT_FDCWD_, (long)"/proc/self/pagemap", 0, 0, 0, 0);

	call(__NR_pread64, fd, (long)&entry, 8, (long)((uintptr_t)p / 4096 * 8), 0, 0);
	return (entry & ((1ull << 55) - 1)) * 4096;
}

static uint64_t now(void)
{
	int64_t ts[2] = { 0, 0 };

	call(__NR_clock_gettime, 1, (long)ts, 0, 0, 0, 0);
	return (uint64_t)ts[0] * 1000000000 + (uint64_t)ts[1];
}

static uint32_t draw(void)
{
	uint32_t r = 0;

	call(__NR_getrandom, (long)&r, sizeof(r), 0, 0, 0, 0);
	return r;
}

void _start(void);
void _start(void)
{
	uint32_t i, wrong = 0, drawn = draw(), random;
	volatile uint64_t *bell;
	uint64_t before, after;
	long fd;

	fd = call(__NR_openat, AT_FDCWD_, (long)"/dev/mem", RDWR_SYNC, 0, 0, 0);
	bell = (volatile uint64_t *)call(__NR_mmap, 0, 4096, SHARED_RW, fd, VMM_GUEST_DOORBELL);
	for (i = 0; i < 4096; i++)
		filled[i] = i * 2654435761u;
	before = now();
	go = 0;
	*bell = physical(&go) + 1;
	while (!go)
		;
	after = now();
	for (i = 0; i < 4096; i += 512)
		wrong |= filled[i] != i * 2654435761u;
	wrong |= after < before;
	random = draw();
	wrong |= !random || random == drawn;
	*bell = (uint64_t)random << 32 | (wrong ? 3 : 2);
	for (;;)
		call(__NR_nanosleep, (long)(int64_t[]){ 1000, 0 }, 0, 0, 0, 0, 0);
}
