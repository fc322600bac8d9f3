/* SPDX-License-Identifier: MIT */
/*
 * layer.c - the private layer over a shared disk image: see layer.h.
 *
 * It is as durable as the machine: the file has no name, so that nothing is
 * left behind when the process ends, however it ends.
 *
 * Saved as runs: first sector, number of sectors, their bytes; a run of none
 * ends it.  Sectors that are zero are a run of their own kind, without bytes.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../core/thread.h"
#include "layer.h"

#define LAYER_SECTOR	512u
#define LAYER_CHUNK	128u		/* sectors of one saved run, at most */

enum { LAYER_END = 0, LAYER_DATA = 1, LAYER_ZERO = 2 };

static size_t layer_bytes(uint64_t sectors)
{
	return (size_t)((sectors + 63) / 64 * 8);
}

/* On the caller's thread, where it may raise SIGXFSZ.  0 or an errno value. */
static int layer_resize(struct layer *l, uint64_t sectors)
{
	sigset_t before;
	int e;

	thread_hold(&before);
	e = ftruncate(l->fd, (off_t)(sectors * LAYER_SECTOR)) < 0 ? errno : 0;
	thread_release(&before, e);
	return e;
}

int layer_open(struct layer *l, uint64_t sectors, const char *dir, struct vmm_error *err)
{
	int e;

	memset(l, 0, sizeof(*l));
	l->in_memory = !dir;
	l->sectors = sectors;
	if (dir)
		l->fd = open(dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	else
		l->fd = memfd_create("vmm-layer", MFD_CLOEXEC);
	if (l->fd < 0)
		return fail_sys(err, errno, "overlay in %s", dir ? dir : "memory");
	l->bits = mmap(NULL, layer_bytes(sectors), PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (l->bits == MAP_FAILED) {
		close(l->fd);
		l->fd = -1;
		return fail_sys(err, errno, "overlay map");
	}
	e = layer_resize(l, sectors);
	if (e) {
		layer_close(l);
		return fail_sys(err, e, "overlay of %llu sectors", (unsigned long long)sectors);
	}
	return 0;
}

void layer_close(struct layer *l)
{
	if (l->fd < 0)
		return;
	munmap(l->bits, layer_bytes(l->sectors));
	close(l->fd);
	l->fd = -1;
}

int layer_grow(struct layer *l, uint64_t sectors, struct vmm_error *err)
{
	void *p;
	int e = layer_resize(l, sectors);

	if (e)
		return fail_sys(err, e, "overlay of %llu sectors", (unsigned long long)sectors);
	p = mremap(l->bits, layer_bytes(l->sectors), layer_bytes(sectors), MREMAP_MAYMOVE);
	if (p == MAP_FAILED)
		return fail_sys(err, errno, "overlay map");
	l->bits = p;
	l->sectors = sectors;
	return 0;
}

uint64_t layer_run(const struct layer *l, uint64_t s, uint64_t n, int *here)
{
	uint64_t first = s, end = s + n, flip, word;

	*here = (int)(l->bits[s / 64] >> (s % 64) & 1);
	flip = *here ? ~0ull : 0;	/* look for the next set bit of word */
	while (s < end) {
		word = (l->bits[s / 64] ^ flip) >> (s % 64);
		if (word) {
			s += (uint64_t)__builtin_ctzll(word);
			break;
		}
		s += 64 - s % 64;
	}
	return (s < end ? s : end) - first;
}

void layer_mark(struct layer *l, uint64_t s, uint64_t n)
{
	uint64_t end = s + n, mask;

	while (s < end) {
		mask = ~0ull << (s % 64);
		if (end / 64 == s / 64)
			mask &= ~(~0ull << (end % 64));
		l->bits[s / 64] |= mask;
		s += 64 - s % 64;
	}
}

/* ---- Saved state ------------------------------------------------------------ */

static int layer_is_zero(const uint8_t *p, size_t n)
{
	return !p[0] && memcmp(p, p + 1, n - 1) == 0;
}

static int layer_pread(const struct layer *l, uint64_t s, uint8_t *buf, size_t n)
{
	ssize_t r;
	size_t done;

	for (done = 0; done < n; done += (size_t)r) {
		r = pread(l->fd, buf + done, n - done, (off_t)(s * LAYER_SECTOR + done));
		if (r < 0 && errno == EINTR)
			r = 0;
		else if (r <= 0)
			return -1;
	}
	return 0;
}

void layer_save(const struct layer *l, struct writer *w)
{
	uint8_t buf[LAYER_CHUNK * LAYER_SECTOR];
	uint64_t s, n;
	int here, zero;

	for (s = 0; s < l->sectors; s += n) {
		n = layer_run(l, s, l->sectors - s, &here);
		if (!here)
			continue;
		if (n > LAYER_CHUNK - s % LAYER_CHUNK)
			n = LAYER_CHUNK - s % LAYER_CHUNK;
		if (layer_pread(l, s, buf, n * LAYER_SECTOR) < 0) {
			w->failed = 1;
			return;
		}
		zero = layer_is_zero(buf, n * LAYER_SECTOR);
		put_u8(w, zero ? LAYER_ZERO : LAYER_DATA);
		put_u64(w, s);
		put_u32(w, (uint32_t)n);
		if (!zero)
			put_bytes(w, buf, n * LAYER_SECTOR);
	}
	put_u8(w, LAYER_END);
}

int layer_load(struct layer *l, struct reader *r, const char *name, struct vmm_error *err)
{
	uint8_t buf[LAYER_CHUNK * LAYER_SECTOR];
	uint64_t s, n;
	uint8_t kind;

	for (;;) {
		kind = get_u8(r);
		if (kind == LAYER_END)
			return 0;	/* or it ended early, as the caller finds */
		s = get_u64(r);
		n = get_u32(r);
		if (kind > LAYER_ZERO || !n || n > LAYER_CHUNK || s >= l->sectors ||
		    n > l->sectors - s)
			return fail(err, VMM_EFORMAT, "state of %s: the overlay's sectors", name);
		if (kind == LAYER_DATA) {
			get_bytes(r, buf, n * LAYER_SECTOR);
			if (r->failed)
				return 0;
			if (pwrite(l->fd, buf, n * LAYER_SECTOR, (off_t)(s * LAYER_SECTOR)) !=
			    (ssize_t)(n * LAYER_SECTOR))
				return fail_sys(err, errno, "overlay of %s", name);
		}
		layer_mark(l, s, n);
	}
}
