/* SPDX-License-Identifier: MIT */
/*
 * main.c - runs a fuzz target without libFuzzer: over its seeds, over files and
 * directories of files, and over a few thousand inputs made of them by a
 * generator that is the same every time.  A crash is a test that failed.
 *
 *	fuzz_X [FILE|DIRECTORY]...	run; TAP on standard output
 *	fuzz_X -w DIRECTORY		write the seeds there
 */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* A target may have seeds: number n, in buf; 0 bytes if there are no more. */
size_t fuzz_seed(unsigned int n, uint8_t *buf, size_t cap) __attribute__((weak));

#define INPUT_MAX	(1u << 20)
#define SEED_MAX	(64u << 10)
#define MADE		3000u		/* inputs that are made up */
#define MADE_MS		400u		/* and how long that may take */

static uint8_t pool[64][4096];		/* what they are made from */
static size_t pool_len[64];
static unsigned int pooled, run;

/* Each input in memory of its size, so that ASan sees where it ends. */
static void run_one(const uint8_t *data, size_t n)
{
	uint8_t *copy = malloc(n ? n : 1);

	memcpy(copy, data, n);
	LLVMFuzzerTestOneInput(copy, n);
	free(copy);
	run++;
}

static void run_file(const char *path)
{
	static uint8_t buf[INPUT_MAX];
	FILE *f = fopen(path, "rb");
	size_t n;

	if (!f) {
		perror(path);
		exit(1);
	}
	n = fread(buf, 1, sizeof(buf), f);
	fclose(f);
	if (pooled < 64) {
		pool_len[pooled] = n < sizeof(pool[0]) ? n : sizeof(pool[0]);
		memcpy(pool[pooled], buf, pool_len[pooled]);
		pooled++;
	}
	run_one(buf, n);
}

static void run_path(const char *path)
{
	struct dirent **list;
	char name[4096];
	struct stat st;
	int i, n;

	if (stat(path, &st) == 0 && S_ISDIR(st.st_mode)) {
		n = scandir(path, &list, NULL, alphasort);
		for (i = 0; i < n; i++) {
			snprintf(name, sizeof(name), "%s/%s", path, list[i]->d_name);
			if (list[i]->d_name[0] != '.')
				run_file(name);
			free(list[i]);
		}
		free(list);
	} else {
		run_file(path);
	}
}

static uint32_t dice(void)
{
	static uint64_t x = 88172645463325252ull;

	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	return (uint32_t)(x >> 16);
}

/* One of the pool with bytes changed, cut or put together with another; or
   bytes from nowhere. */
static void run_made(void)
{
	static const uint8_t edges[] = { 0, 1, 0x7f, 0x80, 0xff };
	static uint8_t buf[8192];
	size_t n = dice() % 300, i;
	unsigned int from, k;

	for (i = 0; i < n; i++)
		buf[i] = (uint8_t)dice();
	if (pooled && dice() % 4) {
		from = dice() % pooled;
		n = pool_len[from];
		memcpy(buf, pool[from], n);
		for (k = dice() % 8; k && n; k--)
			buf[dice() % n] = dice() % 2 ? edges[dice() % 5] : (uint8_t)dice();
		if (dice() % 8 == 0 && n)
			n = dice() % n;
		if (dice() % 8 == 0) {
			from = dice() % pooled;
			memcpy(buf + n, pool[from], pool_len[from]);
			n += pool_len[from];
		}
	}
	run_one(buf, n);
}

static uint64_t clock_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

static int write_seeds(const char *dir)
{
	static uint8_t buf[SEED_MAX];
	char path[4096];
	unsigned int i;
	size_t n;
	FILE *f;

	for (i = 0; fuzz_seed && (n = fuzz_seed(i, buf, sizeof(buf))); i++) {
		snprintf(path, sizeof(path), "%s/seed-%u", dir, i);
		f = fopen(path, "wb");
		if (!f || fwrite(buf, 1, n, f) != n || fclose(f)) {
			perror(path);
			return 1;
		}
	}
	return 0;
}

int main(int argc, char **argv)
{
	static uint8_t buf[SEED_MAX];
	uint64_t end;
	unsigned int i;
	size_t n;
	int a;

	if (argc == 3 && strcmp(argv[1], "-w") == 0)
		return write_seeds(argv[2]);
	printf("1..1\n");
	fflush(stdout);
	for (i = 0; fuzz_seed && (n = fuzz_seed(i, buf, sizeof(buf))); i++) {
		if (pooled < 64 && n <= sizeof(pool[0])) {
			memcpy(pool[pooled], buf, n);
			pool_len[pooled++] = n;
		}
		run_one(buf, n);
	}
	for (a = 1; a < argc; a++)
		run_path(argv[a]);
	end = clock_ms() + MADE_MS;
	for (i = 0; i < MADE && clock_ms() < end; i++)
		run_made();
	run_one(buf, 0);
	printf("ok 1 - %u inputs\n", run);
	return 0;
}
