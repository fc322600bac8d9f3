/* SPDX-License-Identifier: MIT */
/*
 * snapwrite.c - RAM to a snapshot file, compressed on n threads; diffs.
 *
 * RAM is cut into groups of 2 MiB.  Workers take the next group each, find
 * its pages that are not zero (and, in a diff, not the parent's), copy a
 * chunk's at a time, hash and compress the copy, into a slot.  The calling
 * thread takes the slots in order and writes them.  There are two slots per
 * worker and one more: that bounds the memory, and lets a worker run ahead of
 * a slower one.  The bytes written do not depend on the number of threads.
 *
 * A page is looked at twice (is it zero? copy it), what is stored comes from
 * the copy alone: whatever happens to RAM meanwhile, the file is sound.
 *
 * A chunk's twin, seen before, is found by its hash and proved by comparing
 * RAM with RAM.  Workers look among what has been written, which saves the
 * compression; the caller looks again, when all that comes before is known.
 * A guest can make as many pages of one hash as it likes, each another: only so
 * many are looked at.
 */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zstd.h>
#include <zstd_errors.h>

#include "../core/thread.h"
#include "snapfile.h"

#define SNAPWRITE_CHUNKS	32u	/* in a group */
#define SNAPWRITE_ITEMS		(SNAPWRITE_CHUNKS * SNAP_PARTS_MAX)
#define SNAPWRITE_THREADS	64u
#define SNAPWRITE_PROBES	32u	/* places in the table that a hash may be at */
#define SNAPWRITE_BOUND		(SNAP_CHUNK + SNAP_CHUNK / 128)	/* zstd's, and more */

_Static_assert(SNAPWRITE_ITEMS <= SNAP_GROUP_MAX, "a group holds what a slot holds");

struct snapwrite_slot {
	int		ready;		/* under lock */
	uint32_t	n;
	struct snap_entry entry[SNAPWRITE_ITEMS];
	uint8_t		fresh[SNAPWRITE_ITEMS];	/* its frame is in buf, at entry.off */
	uint32_t	twin[SNAPWRITE_ITEMS];	/* or it is the frame of this entry, + 1 */
	uint8_t		*buf;
	size_t		len;
};

struct snapwrite {
	struct snap_out	*o;
	const struct snap_ram *ram;
	const struct snapfile *parent;
	int		level;
	uint64_t	nchunks, ngroups;
	uint64_t	*present;	/* bit per page; NULL: all */

	pthread_mutex_t	lock;
	pthread_cond_t	cond;
	uint64_t	next, turn;	/* groups: to be taken, to be written */
	int		stop, rc;
	struct vmm_error err;
	uint32_t	nslots;
	struct snapwrite_slot *slots;
	/* The index so far, and a hash table of those that own a frame: only
	   the caller writes to them, under lock; workers read under lock. */
	struct snap_entry *entries;
	uint32_t	nentries, cap;
	uint32_t	*table, mask;
};

/* What one thread works with. */
struct snapwrite_work {
	ZSTD_CCtx	*z;
	struct snap_decoder d;
	uint8_t		*a, *b;		/* a chunk each */
	uint8_t		*base;		/* the parent's chunk */
};

/* ---- Pages -------------------------------------------------------------- */

int snap_is_zero(const void *page)
{
	const uint64_t *p = page;
	uint32_t i;

	for (i = 0; i < SNAP_PAGE / 8; i += 8)
		if (p[i] | p[i + 1] | p[i + 2] | p[i + 3] | p[i + 4] | p[i + 5] | p[i + 6] | p[i + 7])
			return 0;
	return 1;
}

static uint16_t snapwrite_bits(const uint64_t *bitmap, uint64_t chunk)
{
	return (uint16_t)(bitmap ? bitmap[chunk / 4] >> chunk % 4 * 16 : 0xffff);
}

/*
 * Copy these pages of a chunk to their places in dst, a chunk.  *filled are
 * those that are not zero, and only they are sure to have been copied.
 */
static int snapwrite_fetch(const struct snapwrite *w, uint64_t chunk, uint16_t pages, uint8_t *dst,
			   uint16_t *filled, struct vmm_error *err)
{
	uint64_t off = chunk * SNAP_CHUNK;
	const uint8_t *src;
	uint32_t i, run;
	int rc;

	*filled = 0;
	for (i = 0; i < SNAP_CHUNK_PAGES; i += run) {
		for (run = 0; i + run < SNAP_CHUNK_PAGES && (pages >> (i + run) & 1); run++)
			;
		if (!run) {
			run = 1;
			continue;
		}
		if (!w->ram->map) {
			rc = snap_read_at(w->ram->fd, "guest RAM", dst + i * SNAP_PAGE,
					  run * SNAP_PAGE, off + i * SNAP_PAGE, err);
			if (rc)
				return rc;
		}
		src = w->ram->map ? (const uint8_t *)w->ram->map + off : dst;
		for (uint32_t k = i; k < i + run; k++) {
			if (snap_is_zero(src + k * SNAP_PAGE))
				continue;
			*filled |= (uint16_t)(1u << k);
			if (src != dst)
				memcpy(dst + k * SNAP_PAGE, src + k * SNAP_PAGE, SNAP_PAGE);
		}
	}
	return 0;
}

/* Close the gaps; returns the bytes that are left. */
static size_t snapwrite_pack(uint8_t *chunk, uint16_t pages)
{
	uint32_t i, slot = 0;

	for (i = 0; i < SNAP_CHUNK_PAGES; i++) {
		if (!(pages >> i & 1))
			continue;
		if (i != slot)
			memcpy(chunk + slot * SNAP_PAGE, chunk + i * SNAP_PAGE, SNAP_PAGE);
		slot++;
	}
	return slot * SNAP_PAGE;
}

/* Which pages are there at all: what is no hole, and what is dirty. */
static int snapwrite_holes(struct snapwrite *w, struct vmm_error *err)
{
	const struct snap_ram *ram = w->ram;
	size_t words = (size_t)(w->nchunks + 3) / 4, i;
	off_t pos = 0, end;
	uint64_t p;

	if (ram->fd < 0 && (!ram->dirty || w->parent))
		return 0;
	w->present = calloc(words, sizeof(*w->present));
	if (!w->present)
		return fail(err, VMM_ENOMEM, "%s: out of memory", w->o->name);
	while (ram->fd >= 0 && (uint64_t)pos < ram->size) {
		pos = lseek(ram->fd, pos, SEEK_DATA);
		if (pos < 0 && errno == ENXIO)
			break;
		end = pos < 0 ? -1 : lseek(ram->fd, pos, SEEK_HOLE);
		if (end < 0)
			return fail_sys(err, errno, "%s: holes of guest RAM", w->o->name);
		if ((uint64_t)end > ram->size)
			end = (off_t)ram->size;
		for (p = (uint64_t)pos / SNAP_PAGE; p * SNAP_PAGE < (uint64_t)end; p++)
			w->present[p / 64] |= 1ull << p % 64;
		pos = end;
	}
	if (ram->dirty)
		for (i = 0; i < (ram->size / SNAP_PAGE + 63) / 64; i++)
			w->present[i] |= ram->dirty[i];
	return 0;
}

/* ---- Twins -------------------------------------------------------------- */

/*
 * Find an entry whose frame holds what e describes.  The hash finds it, RAM
 * proves it.  plain: e's pages, packed, or NULL: fetch them too.
 */
static int snapwrite_twin(struct snapwrite *w, struct snapwrite_work *k,
			  const struct snap_entry *e, const uint8_t *plain, uint32_t *out,
			  struct vmm_error *err)
{
	uint32_t pos = (uint32_t)e->hash, end = pos + SNAPWRITE_PROBES, i;
	struct snap_entry t = { 0 };
	uint16_t filled;
	size_t n;
	int rc;

	for (*out = 0; pos != end; pos++) {
		pthread_mutex_lock(&w->lock);
		i = w->table[pos & w->mask];
		if (i)
			t = w->entries[i - 1];
		pthread_mutex_unlock(&w->lock);
		if (!i)
			return 0;
		if (t.hash != e->hash ||
		    __builtin_popcount(t.stored) != __builtin_popcount(e->stored))
			continue;
		rc = snapwrite_fetch(w, t.chunk, t.stored, k->b, &filled, err);
		if (rc)
			return rc;
		n = snapwrite_pack(k->b, t.stored);
		if (!plain) {
			rc = snapwrite_fetch(w, e->chunk, e->stored, k->a, &filled, err);
			if (rc)
				return rc;
			snapwrite_pack(k->a, e->stored);
			plain = k->a;
		}
		if (memcmp(k->b, plain, n) == 0) {
			*out = i;
			return 0;
		}
	}
	return 0;
}

/* Twins of what is there already stay out, or the table would fill with them; so does
   what finds its places taken. */
static void snapwrite_table_put(struct snapwrite *w, uint32_t i)
{
	const struct snap_entry *e = &w->entries[i];
	uint32_t pos = (uint32_t)e->hash, end = pos + SNAPWRITE_PROBES, *slot;

	if (snap_entry_layer(e) || snap_entry_kind(e) != SNAP_KIND_FRAME)
		return;
	for (; pos != end; pos++) {
		slot = &w->table[pos & w->mask];
		if (!*slot)
			*slot = i + 1;
		if (w->entries[*slot - 1].off == e->off)
			return;
	}
}

/* Room for n more entries, and a table at most a quarter full.  Lock held. */
static int snapwrite_room(struct snapwrite *w, uint32_t n)
{
	struct snap_entry *entries;
	uint32_t *table, cap = w->cap ? w->cap : 1024, i;

	while (cap - w->nentries < n)
		cap *= 2;
	if (cap == w->cap)
		return 0;
	entries = realloc(w->entries, (size_t)cap * sizeof(*entries));
	if (!entries)
		return -1;
	w->entries = entries;
	table = calloc((size_t)cap * 4, sizeof(*table));
	if (!table)
		return -1;
	free(w->table);
	w->table = table;
	w->mask = 4 * cap - 1;
	w->cap = cap;
	for (i = 0; i < w->nentries; i++)
		snapwrite_table_put(w, i);
	return 0;
}

/* ---- One chunk ---------------------------------------------------------- */

/*
 * One zstd frame of n bytes at src; 0: out of memory.  What does not shrink
 * becomes a raw block: decoding that is a copy.
 */
static size_t snapwrite_compress(ZSTD_CCtx *z, uint8_t *dst, const void *src, size_t n)
{
	size_t got = ZSTD_compress2(z, dst, SNAPWRITE_BOUND, src, n);

	if (!ZSTD_isError(got) && got < n - n / 20)
		return got;
	if (ZSTD_isError(got) && ZSTD_getErrorCode(got) == ZSTD_error_memory_allocation)
		return 0;
	snap_raw_head(dst, n);
	memcpy(dst + SNAP_RAW_HEAD, src, n);
	return SNAP_RAW_HEAD + n;
}

/* The pages at plain, packed, as an item of the slot: stored, anew. */
static int snapwrite_store(struct snapwrite *w, struct snapwrite_work *k,
			   struct snapwrite_slot *s, uint32_t chunk, uint16_t pages,
			   const uint8_t *plain, size_t n, struct vmm_error *err)
{
	uint32_t i = s->n++;
	struct snap_entry *e = &s->entry[i];
	size_t got;
	int rc;

	memset(e, 0, sizeof(*e));
	e->chunk = chunk;
	e->stored = e->live = pages;
	s->fresh[i] = 0;
	s->twin[i] = 0;
	if (memcmp(plain, plain + 8, n - 8) == 0) {
		e->where = snap_where(0, SNAP_KIND_FILL, 0);
		memcpy(&e->off, plain, sizeof(e->off));
		return 0;
	}
	e->hash = snap_hash(plain, n);
	rc = snapwrite_twin(w, k, e, plain, &s->twin[i], err);
	if (rc || s->twin[i])
		return rc;
	s->len = (s->len + 7) & ~(size_t)7;	/* for the hash: see SNAPREAD_SHIFT */
	got = snapwrite_compress(k->z, s->buf + s->len, plain, n);
	if (!got)
		return fail(err, VMM_ENOMEM, "%s: out of memory", w->o->name);
	e->where = snap_where(0, SNAP_KIND_FRAME, (uint32_t)got);
	e->check = (uint32_t)snap_hash(s->buf + s->len, got);
	e->off = s->len;
	s->fresh[i] = 1;
	s->len += got;
	return 0;
}

/* Which of these pages, fetched to k->a, are as in the parent? */
static int snapwrite_compare(struct snapwrite *w, struct snapwrite_work *k, uint64_t chunk,
			     uint16_t pages, uint16_t *same, struct vmm_error *err)
{
	const uint8_t *base = k->base;
	uint32_t i;
	int rc;

	*same = 0;
	if (!pages)
		return 0;
	if (w->ram->base) {
		base = (const uint8_t *)w->ram->base + chunk * SNAP_CHUNK;
	} else {
		rc = snapfile_decode(w->parent, &k->d, chunk, k->base, err);
		if (rc)
			return rc;
	}
	for (i = 0; i < SNAP_CHUNK_PAGES; i++)
		if ((pages >> i & 1) &&
		    memcmp(base + i * SNAP_PAGE, k->a + i * SNAP_PAGE, SNAP_PAGE) == 0)
			*same |= (uint16_t)(1u << i);
	return 0;
}

/*
 * Take over the pages keep of the parent's n parts, as items of the slot.  Few
 * pages that are left of a part are stored again instead: *again.
 */
static void snapwrite_inherit(struct snapwrite_slot *s, const struct snap_entry *part, uint32_t n,
			      uint16_t keep, uint16_t fresh, uint16_t *again)
{
	uint16_t left[SNAP_PARTS_MAX];
	uint32_t i, parts = 0, least = 0;

	*again = 0;
	for (i = 0; i < n; i++) {
		left[i] = part[i].live & keep;
		if (fresh && 4 * __builtin_popcount(left[i]) <= __builtin_popcount(fresh)) {
			*again |= left[i];
			left[i] = 0;
		}
		parts += left[i] != 0;
		if (__builtin_popcount(left[i]) < __builtin_popcount(left[least]))
			least = i;
	}
	/* All four of the parent's, and one anew, is one too many. */
	if (fresh && parts == SNAP_PARTS_MAX) {
		*again |= left[least];
		left[least] = 0;
	}
	for (i = 0; i < n; i++) {
		struct snap_entry *e = &s->entry[s->n];

		if (!left[i])
			continue;
		s->fresh[s->n] = 0;
		s->twin[s->n] = 0;
		s->n++;
		*e = part[i];
		e->live = left[i];
		if (snap_entry_kind(e) == SNAP_KIND_FILL)
			e->stored = e->live;
		else
			e->where = snap_where(snap_entry_layer(e) + 1, snap_entry_kind(e),
					      snap_entry_len(e));
	}
}

static int snapwrite_chunk(struct snapwrite *w, struct snapwrite_work *k,
			   struct snapwrite_slot *s, uint64_t chunk, struct vmm_error *err)
{
	uint64_t pages = (w->ram->size - chunk * SNAP_CHUNK) / SNAP_PAGE;
	uint16_t all = (uint16_t)(pages < SNAP_CHUNK_PAGES ? (1u << pages) - 1 : 0xffff);
	uint16_t maybe = all, store, keep = 0, live = 0, same, again, filled;
	const struct snap_entry *part = NULL;
	uint32_t n = 0, i;
	int rc;

	if (w->parent) {
		part = snapfile_chunk(w->parent, chunk, &n);
		for (i = 0; i < n; i++)
			live |= part[i].live;
		maybe &= snapwrite_bits(w->ram->dirty, chunk);
	}
	rc = snapwrite_fetch(w, chunk, maybe & snapwrite_bits(w->present, chunk), k->a, &store, err);
	if (rc)
		return rc;
	if (w->parent) {
		rc = snapwrite_compare(w, k, chunk, store & live, &same, err);
		if (rc)
			return rc;
		keep = (uint16_t)((live & ~maybe) | same);
		store &= (uint16_t)~same;
		snapwrite_inherit(s, part, n, keep, store, &again);
		if (again) {
			rc = snapwrite_fetch(w, chunk, again, k->a, &filled, err);
			if (rc)
				return rc;
			store |= filled;
		}
	}
	if (!store)
		return 0;
	return snapwrite_store(w, k, s, (uint32_t)chunk, store, k->a, snapwrite_pack(k->a, store),
			       err);
}

/* ---- Threads ------------------------------------------------------------ */

static void snapwrite_work_fini(struct snapwrite_work *k)
{
	ZSTD_freeCCtx(k->z);
	snap_decoder_fini(&k->d);
	free(k->a);
	free(k->b);
	free(k->base);
}

static int snapwrite_work_init(struct snapwrite_work *k, const struct snapwrite *w,
			       struct vmm_error *err)
{
	memset(k, 0, sizeof(*k));
	k->z = ZSTD_createCCtx();
	k->a = malloc(SNAP_CHUNK);
	k->b = malloc(SNAP_CHUNK);
	k->base = malloc(SNAP_CHUNK);
	if (!k->z || !k->a || !k->b || !k->base)
		return fail(err, VMM_ENOMEM, "%s: out of memory", w->o->name);
	ZSTD_CCtx_setParameter(k->z, ZSTD_c_compressionLevel, w->level);
	return w->parent ? snap_decoder_init(&k->d, err) : 0;
}

static void snapwrite_fail(struct snapwrite *w, int rc, const struct vmm_error *err)
{
	pthread_mutex_lock(&w->lock);
	if (!w->rc) {
		w->rc = rc;
		w->err = *err;
	}
	w->stop = 1;
	pthread_cond_broadcast(&w->cond);
	pthread_mutex_unlock(&w->lock);
}

/* The slot for the next group, when it is free; NULL: there is no more. */
static struct snapwrite_slot *snapwrite_take(struct snapwrite *w, uint64_t *group)
{
	struct snapwrite_slot *s = NULL;

	pthread_mutex_lock(&w->lock);
	while (!w->stop && w->next < w->ngroups && w->next - w->turn >= w->nslots)
		pthread_cond_wait(&w->cond, &w->lock);
	if (!w->stop && w->next < w->ngroups) {
		*group = w->next++;
		s = &w->slots[*group % w->nslots];
	}
	pthread_mutex_unlock(&w->lock);
	return s;
}

static void *snapwrite_worker(void *arg)
{
	struct snapwrite *w = arg;
	struct snapwrite_slot *s;
	struct snapwrite_work k;
	struct vmm_error err = { 0 };
	uint64_t group, chunk, end;
	int rc;

	thread_name("vmm-compress");
	rc = snapwrite_work_init(&k, w, &err);
	while (!rc && (s = snapwrite_take(w, &group))) {
		s->n = 0;
		s->len = 0;
		chunk = group * SNAPWRITE_CHUNKS;
		end = chunk + SNAPWRITE_CHUNKS < w->nchunks ? chunk + SNAPWRITE_CHUNKS : w->nchunks;
		for (; chunk < end && !rc; chunk++)
			rc = snapwrite_chunk(w, &k, s, chunk, &err);
		pthread_mutex_lock(&w->lock);
		s->ready = 1;
		pthread_cond_broadcast(&w->cond);
		pthread_mutex_unlock(&w->lock);
	}
	if (rc)
		snapwrite_fail(w, rc, &err);
	snapwrite_work_fini(&k);
	return NULL;
}

/* ---- In order ----------------------------------------------------------- */

/* Give the items of a slot their places in the file, and write them. */
static int snapwrite_put(struct snapwrite *w, struct snapwrite_work *k, struct snapwrite_slot *s,
			 struct vmm_error *err)
{
	struct snap_entry group[SNAPWRITE_ITEMS], *e;
	uint32_t i, n = 0, own = 0;
	uint64_t base;
	size_t len = 0, size;
	int rc;

	for (i = 0; i < s->n; i++)
		n += !snap_entry_layer(&s->entry[i]);
	base = snap_group_base(w->o, n);
	pthread_mutex_lock(&w->lock);
	rc = snapwrite_room(w, s->n);
	pthread_mutex_unlock(&w->lock);
	if (rc)
		return fail(err, VMM_ENOMEM, "%s: out of memory", w->o->name);
	for (i = 0, e = s->entry; i < s->n; i++, e++) {
		if (s->fresh[i]) {
			rc = snapwrite_twin(w, k, e, NULL, &s->twin[i], err);
			if (rc)
				return rc;
		}
		if (s->twin[i]) {
			const struct snap_entry *t = &w->entries[s->twin[i] - 1];

			e->where = t->where;
			e->check = t->check;
			e->off = t->off;
		} else if (s->fresh[i]) {
			size = snap_entry_len(e);
			memmove(s->buf + len, s->buf + e->off, size);
			e->off = base + len;
			len += size;
		}
		if (!snap_entry_layer(e))
			group[own++] = *e;
		pthread_mutex_lock(&w->lock);
		w->entries[w->nentries] = *e;
		snapwrite_table_put(w, w->nentries++);
		pthread_mutex_unlock(&w->lock);
	}
	return n ? snap_put_group(w->o, group, n, s->buf, len, err) : 0;
}

static int snapwrite_loop(struct snapwrite *w, const struct snap_how *how, struct vmm_error *err)
{
	struct snapwrite_slot *s;
	struct snapwrite_work k;
	uint64_t done;
	int rc, stop;

	rc = snapwrite_work_init(&k, w, err);
	while (!rc && w->turn < w->ngroups) {
		s = &w->slots[w->turn % w->nslots];
		pthread_mutex_lock(&w->lock);
		while (!s->ready && !w->stop)
			pthread_cond_wait(&w->cond, &w->lock);
		stop = w->stop;
		pthread_mutex_unlock(&w->lock);
		if (stop)
			break;
		rc = snapwrite_put(w, &k, s, err);
		pthread_mutex_lock(&w->lock);
		s->ready = 0;
		w->turn++;
		pthread_cond_broadcast(&w->cond);
		pthread_mutex_unlock(&w->lock);
		done = w->turn * SNAPWRITE_CHUNKS * SNAP_CHUNK;
		if (!rc && how->progress &&
		    how->progress(how->arg, done < w->ram->size ? done : w->ram->size, w->ram->size))
			rc = fail(err, VMM_ESTATE, "%s: writing was stopped", w->o->name);
	}
	snapwrite_work_fini(&k);
	return rc;
}

/* All groups; leaves the index in w->entries. */
static int snapwrite_groups(struct snapwrite *w, const struct snap_how *how, struct vmm_error *err)
{
	unsigned int threads = snap_threads(how->threads), n = 0;
	pthread_t t[SNAPWRITE_THREADS];
	uint32_t i;
	int rc = 0, r = 0;

	if (threads > SNAPWRITE_THREADS)
		threads = SNAPWRITE_THREADS;
	if (threads > w->ngroups)
		threads = (unsigned int)w->ngroups;
	w->nslots = 2 * threads + 1;
	w->slots = calloc(w->nslots, sizeof(*w->slots));
	for (i = 0; w->slots && i < w->nslots; i++) {
		w->slots[i].buf = malloc(SNAPWRITE_CHUNKS * (size_t)SNAPWRITE_BOUND);
		if (!w->slots[i].buf)
			rc = VMM_ENOMEM;
	}
	if (!w->slots || rc || snapwrite_room(w, 1))
		return fail(err, VMM_ENOMEM, "%s: out of memory", w->o->name);
	/* If there are no more threads to be had, fewer do. */
	while (n < threads && !r) {
		r = thread_start(&t[n], snapwrite_worker, w);
		n += !r;
	}
	rc = n ? snapwrite_loop(w, how, err) : fail_sys(err, r, "%s: thread", w->o->name);
	pthread_mutex_lock(&w->lock);
	w->stop = 1;
	pthread_cond_broadcast(&w->cond);
	pthread_mutex_unlock(&w->lock);
	while (n)
		pthread_join(t[--n], NULL);
	if (!rc && w->rc) {
		rc = w->rc;
		if (err)
			*err = w->err;
	}
	return rc;
}

/* ---- The whole ---------------------------------------------------------- */

static int snapwrite_ws(struct snapwrite *w, const struct snap_image *image, struct vmm_error *err)
{
	uint8_t *plain = NULL, *chunk = malloc(SNAP_CHUNK);
	uint64_t *list = NULL, page;
	uint32_t n = 0, i;
	uint16_t filled, bit;
	int rc;

	rc = snap_ws_tidy(image->ws, image->nws, w->ram->size / SNAP_PAGE, &list, &n, err);
	if (!rc) {
		plain = calloc((size_t)n + 1, SNAP_PAGE);
		if (!plain || !chunk)
			rc = fail(err, VMM_ENOMEM, "%s: out of memory", w->o->name);
	}
	for (i = 0; i < n && !rc; i++) {
		page = list[i] >> SNAP_WS_SHIFT;
		bit = (uint16_t)(1u << page % SNAP_CHUNK_PAGES);
		bit &= snapwrite_bits(w->present, page / SNAP_CHUNK_PAGES);
		rc = snapwrite_fetch(w, page / SNAP_CHUNK_PAGES, bit, chunk, &filled, err);
		if (!rc && filled)
			memcpy(plain + (size_t)i * SNAP_PAGE,
			       chunk + page % SNAP_CHUNK_PAGES * SNAP_PAGE, SNAP_PAGE);
	}
	if (!rc)
		rc = snap_put_ws(w->o, list, n, plain, err);
	free(list);
	free(plain);
	free(chunk);
	return rc;
}

static int snapwrite_all(struct snap_out *o, const struct snap_image *image,
			 const struct snap_how *how, struct vmm_error *err)
{
	static const struct snap_how simple;
	struct snapwrite w = { .o = o, .ram = &image->ram };
	uint32_t i;
	int rc;

	if (!how)
		how = &simple;
	if (!image->ram.map && image->ram.fd < 0)
		return fail(err, VMM_EINVAL, "%s: no RAM to write", o->name);
	w.parent = how->parent;
	w.level = how->level ? how->level : 1;
	w.nchunks = (image->ram.size + SNAP_CHUNK - 1) / SNAP_CHUNK;
	w.ngroups = (w.nchunks + SNAPWRITE_CHUNKS - 1) / SNAPWRITE_CHUNKS;
	pthread_mutex_init(&w.lock, NULL);
	pthread_cond_init(&w.cond, NULL);
	rc = snap_put_head(o, image, how->parent, err);
	if (!rc)
		rc = snapwrite_holes(&w, err);
	if (!rc)
		rc = snapwrite_groups(&w, how, err);
	if (!rc)
		rc = snap_put_index(o, w.entries, w.nentries, err);
	if (!rc && image->nws)
		rc = snapwrite_ws(&w, image, err);
	if (!rc)
		rc = snap_put_footer(o, err);
	for (i = 0; w.slots && i < w.nslots; i++)
		free(w.slots[i].buf);
	free(w.slots);
	free(w.entries);
	free(w.table);
	free(w.present);
	pthread_cond_destroy(&w.cond);
	pthread_mutex_destroy(&w.lock);
	return rc;
}

int snapfile_write(const char *path, const struct snap_image *image, const struct snap_how *how,
		   struct vmm_error *err)
{
	struct snap_out o;
	int rc = snap_out_file(&o, path, err);

	return rc ? rc : snap_out_end(&o, snapwrite_all(&o, image, how, err), err);
}

int snapfile_send(int fd, const struct snap_image *image, const struct snap_how *how,
		  struct vmm_error *err)
{
	struct snap_out o;
	int rc = snap_out_fd(&o, fd, err);

	return rc ? rc : snap_out_end(&o, snapwrite_all(&o, image, how, err), err);
}
