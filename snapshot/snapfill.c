/* SPDX-License-Identifier: MIT */
/*
 * snapfill.c - all of RAM, or the working set, on n threads; verify.
 *
 * The descriptors are put in the order in which their frames lie on disk and
 * cut into jobs of about a megabyte of file, which is asked for at once and then
 * read and decoded frame by frame, in buffers that stay in the cache.  Frames that several chunks
 * share lie side by side in this order and are decoded once.  What comes out
 * goes to the memfd by pwrite(), in runs of pages: the kernel then neither
 * faults nor clears what is about to be overwritten.
 *
 * Jobs are taken by the calling thread and by n - 1 others, which have ended
 * when a call returns.  The first failure stops all; it is the one reported.
 *
 * Verify is a fill that goes nowhere, after a walk from frame to frame which
 * proves that the file has no byte that nobody checks.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../core/thread.h"
#include "snapfile.h"

#define SNAPFILL_SPAN	(1u << 20)	/* bytes of file in one job, about */
#define SNAPFILL_GAP	65536u		/* that are read ahead rather than skipped */
#define SNAPFILL_GROUP	2048u		/* bytes of a group's descriptors, usually */
#define SNAPFILL_FILLS	256u		/* chunks without a frame in one job */
#define SNAPFILL_FRAMES	64u		/* of the working set in one job */
#define SNAPFILL_THREADS 256u

struct snapfill_job {
	uint32_t	first, n;	/* in the order */
};

struct snapfill {
	const struct snapfile *f;
	int		fd;
	uint8_t		*map;
	int		(*run)(struct snapfill *s, struct snap_decoder *d, uint32_t job,
			       struct vmm_error *err);
	uint32_t	*order;
	struct snapfill_job *jobs;
	uint32_t	njobs;
	uint32_t	next;		/* atomic */
	pthread_mutex_t	lock;
	int		rc;		/* under lock: the first failure, and */
	struct vmm_error err;		/* what it was */
};

unsigned int snap_threads(unsigned int want)
{
	cpu_set_t set;
	long n;

	if (!want) {
		n = sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set)
								 : sysconf(_SC_NPROCESSORS_ONLN);
		want = n > 0 ? (unsigned int)n : 1;
	}
	return want < SNAPFILL_THREADS ? want : SNAPFILL_THREADS;
}

/* ---- Threads and jobs --------------------------------------------------- */

static void *snapfill_work(void *arg)
{
	struct snapfill *s = arg;
	struct snap_decoder d = { 0 };
	struct vmm_error err = { 0 };
	uint32_t job;
	int rc;

	rc = snap_decoder_init(&d, &err);
	while (!rc) {
		job = __atomic_fetch_add(&s->next, 1, __ATOMIC_RELAXED);
		if (job >= s->njobs)
			break;
		rc = s->run(s, &d, job, &err);
	}
	if (rc) {
		/* Above njobs it stays: an overflow takes 2^32 threads. */
		__atomic_store_n(&s->next, s->njobs, __ATOMIC_RELAXED);
		pthread_mutex_lock(&s->lock);
		if (!s->rc) {
			s->rc = rc;
			s->err = err;
		}
		pthread_mutex_unlock(&s->lock);
	}
	snap_decoder_fini(&d);
	return NULL;
}

static void *snapfill_thread(void *arg)
{
	thread_name("vmm-decode");
	return snapfill_work(arg);
}

static int snapfill_run(struct snapfill *s, unsigned int threads, struct vmm_error *err)
{
	pthread_t t[SNAPFILL_THREADS];
	unsigned int n = 0;

	threads = snap_threads(threads);
	if (threads > s->njobs)
		threads = s->njobs;
	pthread_mutex_init(&s->lock, NULL);
	/* If there are no more threads to be had, fewer do. */
	while (n + 1 < threads && thread_start(&t[n], snapfill_thread, s) == 0)
		n++;
	snapfill_work(s);
	while (n)
		pthread_join(t[--n], NULL);
	pthread_mutex_destroy(&s->lock);
	if (s->rc && err)
		*err = s->err;
	return s->rc;
}

/* ---- RAM ---------------------------------------------------------------- */

/* Where a frame lies; what needs none comes first. */
static int snapfill_compare(const void *a, const void *b, void *arg)
{
	const struct snapfile *f = arg;
	const struct snap_entry *x = &f->entries[*(const uint32_t *)a];
	const struct snap_entry *y = &f->entries[*(const uint32_t *)b];
	uint32_t kx = snap_entry_kind(x), ky = snap_entry_kind(y);
	uint32_t lx = snap_entry_layer(x), ly = snap_entry_layer(y);

	if (kx != ky)
		return kx == SNAP_KIND_FILL ? -1 : 1;
	if (lx != ly)
		return lx < ly ? -1 : 1;
	if (x->off != y->off && kx != SNAP_KIND_FILL)
		return x->off < y->off ? -1 : 1;
	return x < y ? -1 : x > y;
}

uint32_t *snap_order(const struct snapfile *f, struct vmm_error *err)
{
	uint32_t *order = malloc(((size_t)f->nentries + 1) * sizeof(*order)), i;
	int sorted = 1;

	if (!order) {
		fail(err, VMM_ENOMEM, "%s: out of memory", f->name);
		return NULL;
	}
	for (i = 0; i < f->nentries; i++) {
		order[i] = i;
		if (i && sorted)
			sorted = snapfill_compare(&order[i - 1], &order[i], (void *)(uintptr_t)f) < 0;
	}
	if (!sorted)
		qsort_r(order, f->nentries, sizeof(*order), snapfill_compare, (void *)(uintptr_t)f);
	return order;
}

int snap_same_frame(const struct snap_entry *a, const struct snap_entry *b)
{
	return snap_entry_kind(a) == SNAP_KIND_FRAME && a->where == b->where && a->off == b->off &&
	       a->check == b->check && a->hash == b->hash &&
	       __builtin_popcount(a->stored) == __builtin_popcount(b->stored);
}

static int snapfill_store(const struct snapfill *s, const void *p, size_t n, uint64_t off,
			  struct vmm_error *err)
{
	const uint8_t *b = p;
	size_t done = 0;
	ssize_t r;

	if (s->map)
		memcpy(s->map + off, p, n);
	if (s->fd < 0)
		return 0;
	while (done < n) {
		r = pwrite(s->fd, b + done, n - done, (off_t)(off + done));
		if (r < 0 && errno == EINTR)
			continue;
		if (r <= 0)
			return fail_sys(err, r < 0 ? errno : EIO, "%s: fill guest RAM", s->f->name);
		done += (size_t)r;
	}
	return 0;
}

/* The live pages of e, of which plain has those stored, in runs. */
static int snapfill_scatter(const struct snapfill *s, const struct snap_entry *e,
			    const uint8_t *plain, struct vmm_error *err)
{
	uint64_t base = (uint64_t)e->chunk * SNAP_CHUNK;
	uint32_t page = 0, slot = 0, run;
	int rc;

	while (page < SNAP_CHUNK_PAGES) {
		for (run = 0; page + run < SNAP_CHUNK_PAGES && (e->live >> (page + run) & 1); run++)
			;
		if (!run) {
			slot += e->stored >> page & 1;
			page++;
			continue;
		}
		rc = snapfill_store(s, plain + slot * SNAP_PAGE, run * SNAP_PAGE,
				    base + page * SNAP_PAGE, err);
		if (rc)
			return rc;
		page += run;
		slot += run;
	}
	return 0;
}

static int snapfill_ram(struct snapfill *s, struct snap_decoder *d, uint32_t job,
			struct vmm_error *err)
{
	const struct snapfill_job *j = &s->jobs[job];
	const struct snapfile *f = s->f;
	const struct snap_entry *e = &f->entries[s->order[j->first]], *prev = NULL;
	const struct snap_entry *last = &f->entries[s->order[j->first + j->n - 1]];
	uint32_t layer = snap_entry_layer(e), i;
	const uint8_t *plain = NULL;
	int rc = 0;

	if (snap_entry_kind(e) == SNAP_KIND_FRAME)
		posix_fadvise(layer ? f->layers[layer - 1].fd : f->fd, (off_t)e->off,
			      (off_t)(last->off + snap_entry_len(last) - e->off),
			      POSIX_FADV_WILLNEED);
	for (i = 0; i < j->n && !rc; i++, prev = e) {
		e = &f->entries[s->order[j->first + i]];
		if (!prev || !snap_same_frame(prev, e))
			rc = snap_unpack(f, d, e, d->plain, &plain, err);
		if (!rc)
			rc = snapfill_scatter(s, e, plain, err);
	}
	return rc;
}

/* Whether e, which comes after last, goes into the job that began at start. */
static int snapfill_joins(const struct snap_entry *start, const struct snap_entry *last,
			  const struct snap_entry *e, uint32_t n)
{
	if (snap_entry_kind(e) != snap_entry_kind(start))
		return 0;
	if (snap_entry_kind(e) == SNAP_KIND_FILL)
		return n < SNAPFILL_FILLS;
	return snap_entry_layer(e) == snap_entry_layer(start) &&
	       e->off < last->off + snap_entry_len(last) + SNAPFILL_GAP &&
	       e->off - start->off < SNAPFILL_SPAN;
}

static int snapfill_plan(struct snapfill *s, struct vmm_error *err)
{
	const struct snap_entry *e, *start = NULL, *last = NULL;
	struct snapfill_job *j = NULL;
	uint32_t i;

	s->order = snap_order(s->f, err);
	if (!s->order)
		return VMM_ENOMEM;
	s->jobs = malloc(((size_t)s->f->nentries + 1) * sizeof(*s->jobs));
	if (!s->jobs)
		return fail(err, VMM_ENOMEM, "%s: out of memory", s->f->name);
	for (i = 0; i < s->f->nentries; i++) {
		e = &s->f->entries[s->order[i]];
		if (!start || !snapfill_joins(start, last, e, j->n)) {
			j = &s->jobs[s->njobs++];
			j->first = i;
			j->n = 0;
			start = e;
		}
		j->n++;
		last = e;
	}
	return 0;
}

int snapfile_fill(const struct snapfile *f, int fd, void *map, unsigned int threads,
		  struct vmm_error *err)
{
	struct snapfill s = { .f = f, .fd = fd, .map = fd < 0 ? map : NULL, .run = snapfill_ram };
	uint32_t i;
	int rc = 0;

	for (i = 0; i < f->nentries && !rc; i++) {
		uint32_t layer = snap_entry_layer(&f->entries[i]);

		if (layer && f->layers[layer - 1].fd < 0)
			rc = fail(err, VMM_ESTATE, "%s: opened without parent %s", f->name,
				  f->layers[layer - 1].path);
	}
	if (!rc)
		rc = snapfill_plan(&s, err);
	if (!rc && s.njobs)
		rc = snapfill_run(&s, threads, err);
	free(s.order);
	free(s.jobs);
	return rc;
}

/* ---- Working set -------------------------------------------------------- */

static int snapfill_ws(struct snapfill *s, struct snap_decoder *d, uint32_t job,
		       struct vmm_error *err)
{
	uint32_t k = job * SNAPFILL_FRAMES, end = k + SNAPFILL_FRAMES;
	const struct snap_ws_run *run = &s->f->ws.runs[k];
	const uint8_t *plain;
	int rc = 0;

	for (; k < end && k < s->f->ws.nframes && !rc; k++, run++) {
		rc = snapfile_decode_ws(s->f, d, k, &plain, err);
		if (!rc)
			rc = snapfill_store(s, plain, run->n * SNAP_PAGE, run->page * SNAP_PAGE,
					    err);
	}
	return rc;
}

int snapfile_fill_ws(const struct snapfile *f, int fd, void *map, unsigned int threads,
		     struct vmm_error *err)
{
	struct snapfill s = { .f = f, .fd = fd, .map = fd < 0 ? map : NULL, .run = snapfill_ws };

	s.njobs = (f->ws.nframes + SNAPFILL_FRAMES - 1) / SNAPFILL_FRAMES;
	return s.njobs ? snapfill_run(&s, threads, err) : 0;
}

/* ---- Verify ------------------------------------------------------------- */

/*
 * From frame to frame through the groups, beside the index: what they say of
 * this file's frames must be the same, and the frames must lie without a gap.
 */
static int snapfill_walk(const struct snapfile *f, struct vmm_error *err)
{
	const struct snap_entry *own = f->entries, *end = own + f->nentries, *e;
	uint64_t off = f->groups_off, at;
	uint8_t *group;
	size_t size, n, i;
	int rc;

	while (off < f->footer.index_off) {
		rc = snap_read_meta(f->fd, f->name, SNAP_TAG_GROUP, off, f->footer.index_off,
				    SNAPFILL_GROUP, &group, &size, err);
		if (rc)
			return rc;
		at = off;
		off += size;
		n = (size - SNAP_META_MIN) / sizeof(*e);
		e = (const struct snap_entry *)(group + sizeof(struct snap_frame));
		for (i = 0; i < n; i++, e++) {
			while (own < end && snap_entry_layer(own))
				own++;
			if (own == end || memcmp(own, e, sizeof(*e)))
				break;
			own++;
			if (snap_entry_kind(e) == SNAP_KIND_FRAME && e->off == off)
				off += snap_entry_len(e);
			else if (snap_entry_kind(e) == SNAP_KIND_FRAME && e->off > off)
				break;
		}
		rc = i < n || !n || n > SNAP_GROUP_MAX || (size - SNAP_META_MIN) % sizeof(*e);
		free(group);
		if (rc)
			return fail(err, VMM_EFORMAT,
				    "%s: GROUP at byte %llu and the index disagree", f->name,
				    (unsigned long long)at);
	}
	while (own < end && snap_entry_layer(own))
		own++;
	if (off != f->footer.index_off || own != end)
		return fail(err, VMM_EFORMAT, "%s: groups and index disagree", f->name);
	return 0;
}

/* Is the working set what RAM is?  Only it lies outside the file's identity. */
static int snapfill_same(const struct snapfile *f, struct snap_decoder *d, struct snap_decoder *ws,
			 uint8_t *chunk, struct vmm_error *err)
{
	const struct snap_ws_view *v = &f->ws;
	const uint8_t *plain = NULL, *page;
	uint64_t have = UINT64_MAX, no;
	uint32_t i, run = 0, at = 0;
	int rc = 0;

	for (i = 0; i < v->npages && !rc; i++) {
		no = v->pages[i] >> SNAP_WS_SHIFT;
		page = chunk + no % SNAP_CHUNK_PAGES * SNAP_PAGE;
		if (no / SNAP_CHUNK_PAGES != have) {
			have = no / SNAP_CHUNK_PAGES;
			rc = snapfile_decode(f, d, have, chunk, err);
		}
		if (!rc && !(v->pages[i] & SNAP_WS_ZERO) && at == 0)
			rc = snapfile_decode_ws(f, ws, run, &plain, err);
		if (rc)
			break;
		if (v->pages[i] & SNAP_WS_ZERO ? !snap_is_zero(page)
					       : memcmp(plain + at * SNAP_PAGE, page, SNAP_PAGE))
			return fail(err, VMM_EFORMAT,
				    "%s: page %llu of RAM is another in the working set", f->name,
				    (unsigned long long)no);
		if (!(v->pages[i] & SNAP_WS_ZERO) && ++at == v->runs[run].n) {
			at = 0;
			run++;
		}
	}
	return rc;
}

static int snapfill_check_ws(const struct snapfile *f, struct vmm_error *err)
{
	struct snap_decoder d = { 0 }, ws = { 0 };
	uint8_t *chunk = malloc(SNAP_CHUNK);
	int rc;

	rc = chunk ? snap_decoder_init(&d, err) : fail(err, VMM_ENOMEM, "%s: out of memory", f->name);
	if (!rc)
		rc = snap_decoder_init(&ws, err);
	if (!rc)
		rc = snapfill_same(f, &d, &ws, chunk, err);
	snap_decoder_fini(&d);
	snap_decoder_fini(&ws);
	free(chunk);
	return rc;
}

int snapfile_verify(const struct snapfile *f, unsigned int threads, struct vmm_error *err)
{
	int rc = snapfill_walk(f, err);

	if (!rc)
		rc = snapfile_fill(f, -1, NULL, threads, err);
	if (!rc)
		rc = snapfill_check_ws(f, err);
	return rc;
}

int snapfile_count(const struct snapfile *f, struct snap_counts *out, struct vmm_error *err)
{
	const struct snap_entry *e, *prev = NULL;
	uint32_t *order = snap_order(f, err), i;

	memset(out, 0, sizeof(*out));
	if (!order)
		return VMM_ENOMEM;
	for (i = 0; i < f->nentries; i++, prev = e) {
		e = &f->entries[order[i]];
		out->ram_pages += (uint64_t)__builtin_popcount(e->live);
		if (snap_entry_kind(e) == SNAP_KIND_FILL) {
			out->fills++;
		} else if (prev && snap_same_frame(prev, e)) {
			out->shared++;
		} else if (snap_entry_layer(e)) {
			out->layer_frames++;
			out->layer_bytes += snap_entry_len(e);
		} else {
			out->own_frames++;
			out->own_bytes += snap_entry_len(e);
		}
	}
	for (i = 0; i < f->ws.nframes; i++)
		out->ws_bytes += f->ws.frames[i].len;
	free(order);
	return 0;
}
