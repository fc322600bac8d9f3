/* SPDX-License-Identifier: MIT */
/*
 * snapfile.c - measure the snapshot file on images of guest RAM: its size
 * against zstd's of the same level, writing, eager fill against zstd -d, cp
 * and memcpy.  No KVM: any machine will do.
 *
 *	snapfile ROUNDS DIR [NAME=IMAGE...]
 *
 * An image is the raw RAM of a guest, or a snapshot (NAME.snap).  Without one RAM is made up: pieces of
 * what lies in /usr/lib, with holes, in 512 MiB.  DIR is for the files; all are
 * in the page cache.  What is decoded or copied goes to memory: guest RAM to a
 * memfd, the tools' output to /dev/shm.  Contenders take turns within a round.
 *
 * A raw image is a full file, zeroes and all; "sparse" is cp's time for one
 * with holes in their place.
 *
 * The library's sources are included, for their inside is not in the library.
 */
#include <fcntl.h>
#include <fts.h>
#include <sys/mman.h>

#include "core/error.c"
#include "core/state.c"
#include "core/thread.c"
#include "snapshot/snapfill.c"
#include "snapshot/snapmerge.c"
#include "snapshot/snapopen.c"
#include "snapshot/snapout.c"
#include "snapshot/snapparts.c"
#include "snapshot/snapread.c"
#include "snapshot/snapwrite.c"

#include "bench.h"

#define MADE_UP		(512ull << 20)
#define OUTPUT		"/dev/shm/snapfile.out"

struct guest {
	const char	*name;
	char		raw[256], sparse[256], zst[2][256], snap[2][256];
	uint64_t	size;
	int		fd;		/* memfd, holes where there are zeroes */
	uint8_t		*map;
};

static const char *dir;
static unsigned int rounds;
static struct json_object *rows;

static void die(const struct vmm_error *e)
{
	errx(1, "%s", e->message);
}

static const char *row_name(const struct guest *g, const char *name)
{
	static char full[64];

	snprintf(full, sizeof(full), "%s.%s", g->name, name);
	return full;
}

static void guest_row(const struct guest *g, const char *name, const char *unit,
		      struct samples *s, const char *reference, struct samples *ref)
{
	row(rows, row_name(g, name), unit, s, reference, ref);
}

/* ---- What is measured --------------------------------------------------- */

/* A command that writes OUTPUT. */
static double run_out(const char *command)
{
	double t = run(command);

	unlink(OUTPUT);
	return t;
}

static double time_write(const struct guest *g, const char *path, int level)
{
	struct snap_region region = { .gpa = 0x80000000, .size = g->size };
	struct snap_image im = { .regions = &region, .nregions = 1 };
	struct snap_how how = { .level = level };
	double t = now_us();
	struct vmm_error e;

	im.ram.size = g->size;
	im.ram.fd = g->fd;
	if (snapfile_write(path, &im, &how, &e))
		die(&e);
	return now_us() - t;
}

static struct snapfile *open_snap(const struct guest *g)
{
	struct snapfile *f;
	struct vmm_error e;

	if (snapfile_open(&f, g->snap[0], 0, &e))
		die(&e);
	return f;
}

enum to { MEMFD, MAPPING, NOWHERE };

static double time_fill(const struct guest *g, enum to to)
{
	int fd = memfd_create("fill", MFD_CLOEXEC), rc;
	struct snapfile *f;
	struct vmm_error e;
	void *map = NULL;
	double t = now_us();

	if (fd < 0 || ftruncate(fd, (off_t)g->size))
		err(1, "memfd");
	if (to == MAPPING) {
		map = mmap(NULL, g->size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		if (map == MAP_FAILED)
			err(1, "mmap");
	}
	f = open_snap(g);
	rc = to == NOWHERE ? snapfile_verify(f, 0, &e)
			   : snapfile_fill(f, to == MEMFD ? fd : -1, map, 0, &e);
	if (rc)
		die(&e);
	snapfile_close(f);
	t = now_us() - t;
	if (map)
		munmap(map, g->size);
	close(fd);
	return t;
}

static double time_open(const struct guest *g)
{
	double t = now_us();

	snapfile_close(open_snap(g));
	return now_us() - t;
}

static double time_memcpy(const struct guest *g)
{
	double t = now_us();
	void *to = mmap(NULL, g->size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (to == MAP_FAILED)
		err(1, "mmap");
	memcpy(to, g->map, g->size);
	t = now_us() - t;
	munmap(to, g->size);
	return t;
}

/* One chunk here, one there, as faults would ask for them. */
static void time_chunks(const struct guest *g, struct samples *s)
{
	struct snapfile *f = open_snap(g);
	uint8_t *buf = malloc(SNAP_CHUNK);
	struct snap_decoder d;
	struct vmm_error e;
	uint32_t i, x = 1;
	double t;

	if (!buf || snap_decoder_init(&d, &e))
		errx(1, "out of memory");
	for (i = 0; i < 2000 && f->nentries; i++) {
		x = x * 1664525 + 1013904223;
		t = now_us();
		if (snapfile_decode(f, &d, f->entries[x % f->nentries].chunk, buf, &e))
			die(&e);
		sample(s, now_us() - t);
	}
	snap_decoder_fini(&d);
	snapfile_close(f);
	free(buf);
}

static void measure(const struct guest *g)
{
	static struct samples write_[2], fill, mapping, verify, open_, chunk, unzstd, cp, sparse, copy;
	char c_zstd[2][800], c_unzstd[600], c_cp[600], c_sparse[600], name[32];
	struct snap_counts n;
	struct vmm_error e;
	struct snapfile *f;
	unsigned int i, k;

	write_[0].n = write_[1].n = fill.n = mapping.n = verify.n = open_.n = chunk.n = 0;
	unzstd.n = cp.n = sparse.n = copy.n = 0;
	for (k = 0; k < 2; k++) {
		snprintf(c_zstd[k], sizeof(c_zstd[k]), "exec zstd -qf -%d '%s' -o '%s'", k ? 3 : 1,
			 g->raw, g->zst[k]);
		run(c_zstd[k]);
		time_write(g, g->snap[k], k ? 3 : 1);
	}
	snprintf(c_unzstd, sizeof(c_unzstd), "exec zstd -dqf '%s' -o " OUTPUT, g->zst[0]);
	snprintf(c_cp, sizeof(c_cp), "exec cp '%s' " OUTPUT, g->raw);
	snprintf(c_sparse, sizeof(c_sparse), "exec cp '%s' " OUTPUT, g->sparse);
	for (i = 0; i < rounds; i++) {
		sample(&fill, time_fill(g, MEMFD));
		sample(&unzstd, run_out(c_unzstd));
		sample(&cp, run_out(c_cp));
		sample(&sparse, run_out(c_sparse));
		sample(&mapping, time_fill(g, MAPPING));
		sample(&copy, time_memcpy(g));
		sample(&verify, time_fill(g, NOWHERE));
		sample(&open_, time_open(g));
	}
	for (i = 0; i < (rounds + 3) / 4; i++)
		for (k = 0; k < 2; k++)
			sample(&write_[k], time_write(g, g->snap[k], k ? 3 : 1));
	time_chunks(g, &chunk);

	f = open_snap(g);
	if (snapfile_count(f, &n, &e))
		die(&e);
	snapfile_close(f);
	row_value(rows, row_name(g, "ram.used"), "bytes", (double)n.ram_pages * SNAP_PAGE,
		  "all of it", (double)g->size);
	for (k = 0; k < 2; k++) {
		snprintf(name, sizeof(name), "size.l%d", k ? 3 : 1);
		row_value(rows, row_name(g, name), "bytes", size_of(g->snap[k]),
			  k ? "zstd -3" : "zstd -1", size_of(g->zst[k]));
	}
	guest_row(g, "write", "us", &write_[0], NULL, NULL);
	guest_row(g, "write.l3", "us", &write_[1], "level 1", &write_[0]);
	guest_row(g, "open", "us", &open_, NULL, NULL);
	guest_row(g, "chunk", "us", &chunk, NULL, NULL);
	guest_row(g, "eager.vs_zstd", "us", &fill, "zstd -d", &unzstd);
	guest_row(g, "eager.vs_cp", "us", &fill, "cp", &cp);
	guest_row(g, "eager.vs_cp.sparse", "us", &fill, "cp of a sparse file", &sparse);
	guest_row(g, "eager.vs_memcpy", "us", &fill, "memcpy", &copy);
	guest_row(g, "eager.mapping", "us", &mapping, "into the memfd", &fill);
	guest_row(g, "verify", "us", &verify, NULL, NULL);
}

/* ---- Images ------------------------------------------------------------- */

/* Pieces of files, 4 to 256 KiB, holes between them. */
static void make_up(uint8_t *map, uint64_t size)
{
	const char *paths[] = { "/usr/lib", NULL };
	FTS *fts = fts_open((char **)(uintptr_t)paths, FTS_PHYSICAL | FTS_NOCHDIR, NULL);
	uint64_t off = 0, piece;
	uint32_t x = 1;
	FTSENT *e;
	ssize_t n;
	int fd;

	while (fts && off < size && (e = fts_read(fts))) {
		if (e->fts_info != FTS_F || e->fts_statp->st_size < 8192)
			continue;
		fd = open(e->fts_accpath, O_RDONLY | O_CLOEXEC);
		for (n = 1; fd >= 0 && n > 0 && off < size; off += piece) {
			x = x * 1664525 + 1013904223;
			piece = 4096u << (x >> 24) % 7;
			if (piece > size - off)
				piece = size - off;
			if (x >> 20 & 3)	/* a hole, mostly */
				continue;
			n = read(fd, map + off, piece);
		}
		if (fd >= 0)
			close(fd);
	}
	if (fts)
		fts_close(fts);
}

static void new_ram(struct guest *g, uint64_t size)
{
	g->size = size;
	g->fd = memfd_create("ram", MFD_CLOEXEC);
	if (g->fd < 0 || ftruncate(g->fd, (off_t)size))
		err(1, "memfd");
	g->map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, g->fd, 0);
	if (g->map == MAP_FAILED)
		err(1, "mmap");
}

/* The raw file, with holes or without. */
static void write_raw(const struct guest *g, const char *path, int holes)
{
	int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	uint64_t off;

	if (fd < 0 || ftruncate(fd, (off_t)g->size))
		err(1, "%s", path);
	for (off = 0; off < g->size; off += SNAP_PAGE)
		if (!(holes && snap_is_zero(g->map + off)) &&
		    pwrite(fd, g->map + off, SNAP_PAGE, (off_t)off) != SNAP_PAGE)
			err(1, "%s", path);
	close(fd);
}

static void load(struct guest *g, const char *name, const char *image)
{
	uint8_t page[SNAP_PAGE];
	uint64_t off;
	int fd, k;

	memset(g, 0, sizeof(*g));
	g->name = name;
	snprintf(g->raw, sizeof(g->raw), "%s/%s.raw", dir, name);
	snprintf(g->sparse, sizeof(g->sparse), "%s/%s.sparse", dir, name);
	for (k = 0; k < 2; k++) {
		snprintf(g->zst[k], sizeof(g->zst[k]), "%s/%s.l%d.zst", dir, name, k ? 3 : 1);
		snprintf(g->snap[k], sizeof(g->snap[k]), "%s/%s.l%d.snap", dir, name, k ? 3 : 1);
	}
	if (image && strlen(image) > 5 && strcmp(image + strlen(image) - 5, ".snap") == 0) {
		struct vmm_error e;
		struct snapfile *f;

		if (snapfile_open(&f, image, 0, &e))
			die(&e);
		new_ram(g, f->header->ram_size);
		if (snapfile_fill(f, g->fd, NULL, 0, &e))
			die(&e);
		snapfile_close(f);
	} else if (image) {
		fd = open(image, O_RDONLY | O_CLOEXEC);
		if (fd < 0)
			err(1, "%s", image);
		new_ram(g, (uint64_t)size_of(image) / SNAP_PAGE * SNAP_PAGE);
		for (off = 0; off < g->size; off += SNAP_PAGE) {
			if (pread(fd, page, SNAP_PAGE, (off_t)off) != SNAP_PAGE)
				err(1, "%s", image);
			if (!snap_is_zero(page))
				memcpy(g->map + off, page, SNAP_PAGE);
		}
		close(fd);
	} else {
		new_ram(g, MADE_UP);
		make_up(g->map, g->size);
	}
	write_raw(g, g->raw, 0);
	write_raw(g, g->sparse, 1);
}

static void unload(struct guest *g)
{
	int k;

	munmap(g->map, g->size);
	close(g->fd);
	unlink(g->raw);
	unlink(g->sparse);
	for (k = 0; k < 2; k++) {
		unlink(g->zst[k]);
		unlink(g->snap[k]);
	}
}

int main(int argc, char **argv)
{
	struct guest g;
	char *eq;
	int i;

	if (argc < 3 || atoi(argv[1]) < 1)
		errx(2, "usage: snapfile ROUNDS DIR [NAME=IMAGE...]");
	rounds = (unsigned int)atoi(argv[1]);
	dir = argv[2];
	rows = json_object_new_array();
	for (i = 3; i < argc; i++) {
		eq = strchr(argv[i], '=');
		if (!eq)
			errx(2, "%s: not NAME=IMAGE", argv[i]);
		*eq = 0;
		load(&g, argv[i], eq + 1);
		measure(&g);
		unload(&g);
	}
	if (argc == 3) {
		load(&g, "made-up", NULL);
		measure(&g);
		unload(&g);
	}
	print_results(host_info(), rows);
	return 0;
}
