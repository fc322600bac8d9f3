/* SPDX-License-Identifier: MIT */
/*
 * snaplazy.c - see snaplazy.h.
 *
 * Machines have private views of the memfd, which are watched by userfaultfd
 * while it has holes that are not zeroes.  Who fills them:
 *
 *	workers		at idle priority, first the working set, in the order of its
 *			frames, then all of RAM in the order of the file
 *	the server	what a vCPU waits for: it reads the faults, decodes
 *			the chunk, and wakes the vCPU; and, if there is no
 *			fault, it writes what workers have decoded
 *	need()		what device code is about to look at, on its own
 *			thread: that never waits inside the kernel
 *
 * The first machine does not wait for its working set to come by way of the memfd, where a
 * page costs 8 us, and as much again for the copy that is written to: it gets pages of its
 * own, 4 us each, straight from the file.  Those are not wanted from the memfd.
 *
 * Whoever decodes a chunk writes all 64 KiB of it with one pwrite().  Two may
 * do so at once, with the same bytes: nobody ever waits for a worker, whose
 * priority is low.  That is why a worker does not write: where all CPUs are
 * busy it could be stopped for seconds in pwrite(), which holds the lock of the
 * memfd's inode.  A chunk that the file does not have is zeroes; the long
 * runs of them are no part of the views (mem_rewind), the others become pages
 * when touched.
 *
 * When everything is there the views are no longer watched, the memfd is
 * sealed, and all threads are gone: from then on it costs nothing.
 *
 * A chunk that cannot be read or is damaged does not disturb machines that do
 * without it: those that touch it are told (struct mem, lost), which stops
 * them, and their vCPU is let go on a page of zeroes on which it will not run
 * an instruction, because the kick that stops it is older.  In that case the
 * server stays for as long as the snapshot.
 *
 * Locks: lock guards the views, and what is done; demand the decoder of those
 * who cannot wait.  The machine's run control is taken inside lock.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <semaphore.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../core/thread.h"
#include "../core/uffd.h"
#include "snaplazy.h"

#define LAZY_THREADS	4u
#define LAZY_BATCH	16u		/* chunks that a worker takes at once */
#define LAZY_ALL	0xffffu		/* pages of a chunk */

struct snap_lazy;

/* What one thread decodes with. */
struct lazy_hand {
	struct snap_decoder decoder;
	uint8_t		*chunk;
	/* What was decoded, for lazy_put_chunk() or lazy_put_frame(). */
	uint64_t	off;
	size_t		len;
	uint32_t	frame;
	const uint8_t	*plain;
	/* A worker's of low priority: what the server is to do for it. */
	int		idle;
	int		(*job)(struct snap_lazy *l, struct lazy_hand *h, struct vmm_error *err);
	int		rc;
	struct vmm_error err;
	sem_t		done;
};

struct snap_lazy {
	struct mem_source source;	/* first */
	pid_t		pid;		/* whose threads, and faults, these are */
	const struct snapfile *f;
	uint64_t	size;
	struct mem_run	*runs;
	uint32_t	*there;		/* [chunk], atomic: pages in the memfd */
	const struct mem *first;	/* atomic: this view has pages of its own, which are */
	uint16_t	*firsts;	/* [chunk]; or NULL */
	uint32_t	*order;		/* entries as they lie in the file */
	uint32_t	next_ws, next;	/* atomic: work to be taken */
	int		uffd, wake;	/* descriptors */
	pthread_t	server, worker[LAZY_THREADS];
	struct lazy_hand hands[LAZY_THREADS];	/* theirs */
	unsigned int	nhands;			/* atomic: how many have been taken */
	unsigned int	nworkers;
	int		serving;	/* the server is to be joined */
	pthread_mutex_t	demand;
	struct lazy_hand hand;		/* demand's */
	pthread_mutex_t	lock;
	pthread_cond_t	cond;
	struct mem	*views;
	int		served;		/* atomic: there was a first machine */
	unsigned int	left;		/* workers who have not done */
	int		quit;		/* atomic: no more is to be decoded */
	int		over;		/* atomic: nor is anybody to be served */
	int		whole;		/* atomic: the server is to end the watch */
	int		done;		/* all is there */
	int		rc;		/* the first failure, and */
	struct vmm_error err;		/* what it was */
};

static int lazy_hand_init(struct lazy_hand *h, struct vmm_error *err)
{
	h->chunk = malloc(SNAP_CHUNK);
	return h->chunk ? snap_decoder_init(&h->decoder, err) :
			  fail(err, VMM_ENOMEM, "out of memory for a decoder");
}

static void lazy_hand_fini(struct lazy_hand *h)
{
	snap_decoder_fini(&h->decoder);
	free(h->chunk);
}

/* ---- Filling ------------------------------------------------------------ */

static int lazy_write(struct snap_lazy *l, const void *p, size_t n, uint64_t off,
		      struct vmm_error *err)
{
	const uint8_t *b = p;
	size_t put = 0;
	ssize_t r;

	while (put < n) {
		r = pwrite(l->source.fd, b + put, n - put, (off_t)(off + put));
		if (r < 0 && errno == EINTR)
			continue;
		if (r <= 0)
			return fail_sys(err, r < 0 ? errno : EIO, "%s: memory for guest RAM",
					l->f->name);
		put += (size_t)r;
	}
	return 0;
}

/* Write what was decoded: at once, or by the server if this thread has low priority. */
static int lazy_put(struct snap_lazy *l, struct lazy_hand *h,
		    int (*job)(struct snap_lazy *, struct lazy_hand *, struct vmm_error *),
		    struct vmm_error *err)
{
	if (!h->idle)
		return job(l, h, err);
	__atomic_store_n(&h->job, job, __ATOMIC_RELEASE);
	eventfd_write(l->wake, 1);
	while (sem_wait(&h->done) < 0)
		;
	if (h->rc && err)
		*err = h->err;
	return h->rc;
}

/* What one worker wants to be written.  0: none wants anything. */
static int lazy_put_one(struct snap_lazy *l)
{
	int (*job)(struct snap_lazy *, struct lazy_hand *, struct vmm_error *);
	struct lazy_hand *h;

	for (h = l->hands; h < l->hands + LAZY_THREADS; h++) {
		job = __atomic_load_n(&h->job, __ATOMIC_ACQUIRE);
		if (!job)
			continue;
		h->rc = job(l, h, &h->err);
		__atomic_store_n(&h->job, NULL, __ATOMIC_RELEASE);
		sem_post(&h->done);
		return 1;
	}
	return 0;
}

static int lazy_put_chunk(struct snap_lazy *l, struct lazy_hand *h, struct vmm_error *err)
{
	return lazy_write(l, h->chunk, h->len, h->off, err);
}

static int lazy_put_zeroes(struct snap_lazy *l, struct lazy_hand *h, struct vmm_error *err)
{
	return fallocate(l->source.fd, 0, (off_t)h->off, (off_t)h->len) == 0 ? 0 :
	       fail_sys(err, errno, "%s: memory for guest RAM", l->f->name);
}

static int lazy_is_there(const struct snap_lazy *l, uint64_t chunk, uint32_t pages)
{
	return (__atomic_load_n(&l->there[chunk], __ATOMIC_ACQUIRE) & pages) == pages;
}

static uint32_t lazy_bit(uint64_t page)
{
	return 1u << page % SNAP_CHUNK_PAGES;
}

static int lazy_has_page(const struct snap_lazy *l, uint64_t page)
{
	return lazy_is_there(l, page / SNAP_CHUNK_PAGES, lazy_bit(page));
}

static void lazy_got_page(struct snap_lazy *l, uint64_t page)
{
	__atomic_fetch_or(&l->there[page / SNAP_CHUNK_PAGES], lazy_bit(page), __ATOMIC_RELEASE);
}

/* Decode a chunk into its place. */
static int lazy_chunk(struct snap_lazy *l, struct lazy_hand *h, uint64_t chunk,
		      struct vmm_error *err)
{
	uint32_t n;
	int rc;

	h->off = chunk * SNAP_CHUNK;
	h->len = l->size - h->off < SNAP_CHUNK ? (size_t)(l->size - h->off) : SNAP_CHUNK;
	snapfile_chunk(l->f, chunk, &n);
	if (n) {
		rc = snapfile_decode(l->f, &h->decoder, chunk, h->chunk, err);
		if (rc == 0)
			rc = lazy_put(l, h, lazy_put_chunk, err);
		__atomic_fetch_add(&l->source.decoded, h->len, __ATOMIC_RELAXED);
	} else {
		rc = lazy_put(l, h, lazy_put_zeroes, err);
	}
	if (rc == 0)
		__atomic_store_n(&l->there[chunk], LAZY_ALL, __ATOMIC_RELEASE);
	return rc;
}

/* Pages of a chunk that cannot wait.  1: they were not there. */
static int lazy_demand(struct snap_lazy *l, uint64_t chunk, uint32_t pages, struct vmm_error *err)
{
	int rc = 1;

	if (lazy_is_there(l, chunk, pages))
		return 0;
	pthread_mutex_lock(&l->demand);
	if (!lazy_is_there(l, chunk, pages)) {
		rc = lazy_chunk(l, &l->hand, chunk, err);
		/* A worker may have done the same meanwhile, been the last, and
		   sealed the memfd. */
		if (rc == 0 || lazy_is_there(l, chunk, pages))
			rc = 1;
	}
	pthread_mutex_unlock(&l->demand);
	return rc;
}

/* struct mem_source, need */
static int lazy_need(struct mem_source *s, const struct mem *m, uint64_t off, uint64_t len,
		     struct vmm_error *err)
{
	struct snap_lazy *l = (struct snap_lazy *)s;
	int first = __atomic_load_n(&l->first, __ATOMIC_ACQUIRE) == m;
	uint64_t page = off / SNAP_PAGE, last = (off + len - !!len) / SNAP_PAGE, chunk;
	int rc = 0, waited = 0;
	uint32_t pages;

	while (page <= last && rc >= 0) {
		chunk = page / SNAP_CHUNK_PAGES;
		pages = LAZY_ALL << page % SNAP_CHUNK_PAGES & LAZY_ALL;
		if (chunk == last / SNAP_CHUNK_PAGES)
			pages &= LAZY_ALL >> (SNAP_CHUNK_PAGES - 1 - last % SNAP_CHUNK_PAGES);
		if (first)
			pages &= (uint32_t)~l->firsts[chunk];
		rc = lazy_demand(l, chunk, pages, err);
		waited |= rc;
		page = (chunk + 1) * SNAP_CHUNK_PAGES;
	}
	return rc < 0 ? rc : waited;
}

/* ---- Views -------------------------------------------------------------- */

/* Watch, or do not, what a view has of the memfd: all but the runs of zeroes. */
static int lazy_watch_file(struct snap_lazy *l, struct mem *m, int (*fn)(int, void *, size_t))
{
	uint64_t off = 0, end;
	uint32_t i;
	int r = 0;

	for (i = 0; i <= l->source.nzero && r == 0; i++) {
		end = i < l->source.nzero ? l->runs[i].off : l->size;
		if (end > off)
			r = fn(l->uffd, m->hva + off, end - off);
		off = i < l->source.nzero ? end + l->runs[i].len : end;
	}
	return r;
}

/*
 * A child of fork() has none of the threads, and the descriptor of its parent's faults: to watch
 * a view there would be to watch whatever the parent has at that address.  0: it is ours; 1: it
 * is the parent's, and all is there, so that nothing of that matters; VMM_ESTATE: it does.
 */
static int lazy_inherited(const struct snap_lazy *l, struct vmm_error *err)
{
	if (l->pid == getpid())
		return 0;
	if (!__atomic_load_n(&l->source.lacking, __ATOMIC_ACQUIRE))
		return 1;
	return fail(err, VMM_ESTATE, "%s: is being decoded by process %d, before its fork()",
		    l->f->name, (int)l->pid);
}

static int lazy_watch(struct mem_source *s, struct mem *m, struct vmm_error *err)
{
	struct snap_lazy *l = (struct snap_lazy *)s;
	int r = lazy_inherited(l, err);

	if (r)
		return r < 0 ? r : 0;
	pthread_mutex_lock(&l->lock);
	if (!l->done) {
		/* Memory may be locked since the snapshot was opened: such a view has its pages. */
		r = uffd_can_watch(s->fd);
		if (r == 0)
			r = lazy_watch_file(l, m, uffd_watch);
		m->next = l->views;
		l->views = m;
	}
	pthread_mutex_unlock(&l->lock);
	return r < 0 ? fail(err, VMM_ENOTSUP, "guest RAM cannot be watched: %s", uffd_note(r)) : 0;
}

/* The mapping goes, or is replaced: that ends the watch. */
static void lazy_unwatch(struct mem_source *s, struct mem *m)
{
	struct snap_lazy *l = (struct snap_lazy *)s;
	struct mem **p;

	if (lazy_inherited(l, NULL))
		return;
	pthread_mutex_lock(&l->lock);
	if (__atomic_load_n(&l->first, __ATOMIC_ACQUIRE) == m)
		__atomic_store_n(&l->first, NULL, __ATOMIC_RELEASE);
	for (p = &l->views; *p; p = &(*p)->next)
		if (*p == m) {
			*p = m->next;
			break;
		}
	pthread_mutex_unlock(&l->lock);
}

/* ---- The server --------------------------------------------------------- */

/* With lock held: the view that has this page; NULL if it has gone. */
static struct mem *lazy_view(const struct snap_lazy *l, const uint8_t *page)
{
	struct mem *m = l->views;

	while (m && (page < m->hva || page >= m->hva + l->size))
		m = m->next;
	return m;
}

static void lazy_serve(struct snap_lazy *l, const struct uffd_fault *fault)
{
	struct vmm_error err;
	struct mem *m;
	uint64_t page;
	int rc;

	pthread_mutex_lock(&l->lock);
	m = lazy_view(l, fault->page);
	page = m ? (uint64_t)(fault->page - m->hva) / SNAP_PAGE : 0;
	pthread_mutex_unlock(&l->lock);
	if (!m) {
		/* The view has gone; whoever waited there will see. */
		uffd_wake(l->uffd, fault->page, SNAP_PAGE);
		return;
	}
	rc = lazy_demand(l, page / SNAP_CHUNK_PAGES, lazy_bit(page), &err);
	pthread_mutex_lock(&l->lock);
	m = lazy_view(l, fault->page);
	if (m)
		__atomic_fetch_add(&m->waits, 1, __ATOMIC_RELAXED);
	if (m && rc < 0 && m->lost)
		m->lost(m->lost_arg, &err);
	pthread_mutex_unlock(&l->lock);
	if (rc < 0)
		uffd_zero(l->uffd, fault->page, SNAP_PAGE);
	else
		uffd_wake(l->uffd, fault->page, SNAP_PAGE);
}

/* With lock held: everything is there, and nobody is served any more. */
static void lazy_complete(struct snap_lazy *l)
{
	struct mem *m;

	__atomic_store_n(&l->source.lacking, 0, __ATOMIC_RELEASE);
	l->done = 1;
	/* Who waits for a fault that is still unread is woken. */
	for (m = l->views; m; m = m->next)
		lazy_watch_file(l, m, uffd_unwatch);
	l->views = NULL;
	mem_seal(l->source.fd);
	__atomic_store_n(&l->over, 1, __ATOMIC_RELEASE);
	pthread_cond_broadcast(&l->cond);
}

static void *lazy_server(void *arg)
{
	struct snap_lazy *l = arg;
	struct pollfd p[2] = { { l->uffd, POLLIN, 0 }, { l->wake, POLLIN, 0 } };
	struct uffd_fault faults[16];
	eventfd_t woken;
	int i, n;

	thread_name("vmm-fault");
	while (!__atomic_load_n(&l->over, __ATOMIC_ACQUIRE)) {
		n = uffd_read(l->uffd, faults, 16);
		for (i = 0; i < n; i++)
			lazy_serve(l, &faults[i]);
		if (n > 0 || lazy_put_one(l))
			continue;
		if (__atomic_load_n(&l->whole, __ATOMIC_ACQUIRE)) {
			pthread_mutex_lock(&l->lock);
			lazy_complete(l);
			pthread_mutex_unlock(&l->lock);
		} else if (poll(p, 2, -1) > 0 && p[1].revents) {
			/* Before it is looked what for. */
			eventfd_read(l->wake, &woken);
		}
	}
	return NULL;
}

/* ---- Workers ------------------------------------------------------------ */

static void lazy_failed(struct snap_lazy *l, int rc, const struct vmm_error *err)
{
	pthread_mutex_lock(&l->lock);
	if (!l->rc) {
		l->rc = rc;
		l->err = *err;
	}
	pthread_mutex_unlock(&l->lock);
}

/* Pages of the working set: a chunk is there, too, when all its pages are. */
static int lazy_put_frame(struct snap_lazy *l, struct lazy_hand *h, struct vmm_error *err)
{
	const struct snap_ws_run *run = &l->f->ws.runs[h->frame];
	int rc = lazy_write(l, h->plain, h->len, run->page * SNAP_PAGE, err);
	uint64_t page;

	for (page = run->page; page < run->page + run->n && rc == 0; page++)
		lazy_got_page(l, page);
	return rc;
}

static int lazy_ws_frame(struct snap_lazy *l, struct lazy_hand *h, uint32_t frame,
			 struct vmm_error *err)
{
	int rc;

	h->frame = frame;
	h->len = l->f->ws.runs[frame].n * SNAP_PAGE;
	rc = snapfile_decode_ws(l->f, &h->decoder, frame, &h->plain, err);
	if (rc == 0)
		rc = lazy_put(l, h, lazy_put_frame, err);
	__atomic_fetch_add(&l->source.decoded, h->len, __ATOMIC_RELAXED);
	return rc;
}

/* Its pages that are zero. */
static int lazy_put_ws_zero(struct snap_lazy *l, struct lazy_hand *h, struct vmm_error *err)
{
	const struct snap_ws_view *ws = &l->f->ws;
	uint64_t page;
	uint32_t i;

	(void)h;
	(void)err;
	for (i = 0; i < ws->npages; i++) {
		page = ws->pages[i] >> SNAP_WS_SHIFT;
		if (ws->pages[i] & SNAP_WS_ZERO && !lazy_has_page(l, page) &&
		    fallocate(l->source.fd, 0, (off_t)(page * SNAP_PAGE), SNAP_PAGE) == 0)
			lazy_got_page(l, page);
	}
	return 0;
}

static void lazy_work_ws(struct snap_lazy *l, struct lazy_hand *h)
{
	uint32_t frame;

	for (;;) {
		frame = __atomic_fetch_add(&l->next_ws, 1, __ATOMIC_RELAXED);
		if (frame == l->f->ws.nframes)
			lazy_put(l, h, lazy_put_ws_zero, NULL);
		if (frame >= l->f->ws.nframes)
			return;
		/* If that fails: its pages are in the chunks, too. */
		lazy_ws_frame(l, h, frame, NULL);
	}
}

static void lazy_work_all(struct snap_lazy *l, struct lazy_hand *h)
{
	struct vmm_error err;
	uint32_t i, end, chunk;
	int rc;

	while (!__atomic_load_n(&l->quit, __ATOMIC_ACQUIRE)) {
		i = __atomic_fetch_add(&l->next, LAZY_BATCH, __ATOMIC_RELAXED);
		end = i + LAZY_BATCH < l->f->nentries ? i + LAZY_BATCH : l->f->nentries;
		if (i >= l->f->nentries)
			return;
		for (; i < end && !__atomic_load_n(&l->quit, __ATOMIC_ACQUIRE); i++) {
			chunk = l->f->entries[l->order[i]].chunk;
			if (lazy_is_there(l, chunk, LAZY_ALL))
				continue;
			rc = lazy_chunk(l, h, chunk, &err);
			if (rc)
				lazy_failed(l, rc, &err);
		}
	}
}

/* One fewer is at it. */
static void lazy_leave(struct snap_lazy *l)
{
	pthread_mutex_lock(&l->lock);
	if (--l->left == 0) {
		if (!l->rc && !__atomic_load_n(&l->quit, __ATOMIC_ACQUIRE)) {
			__atomic_store_n(&l->whole, 1, __ATOMIC_RELEASE);
			eventfd_write(l->wake, 1);
		}
		pthread_cond_broadcast(&l->cond);
	}
	pthread_mutex_unlock(&l->lock);
}

static int lazy_enter(struct snap_lazy *l)
{
	int more;

	pthread_mutex_lock(&l->lock);
	more = l->left != 0;
	l->left += (unsigned int)more;
	pthread_mutex_unlock(&l->lock);
	return more;
}

static void lazy_work(struct snap_lazy *l, struct lazy_hand *h)
{
	struct vmm_error err;
	int rc;

	rc = lazy_hand_init(h, &err);
	if (rc) {
		lazy_failed(l, rc, &err);
	} else {
		lazy_work_ws(l, h);
		lazy_work_all(l, h);
	}
	lazy_hand_fini(h);
	lazy_leave(l);
}

static void *lazy_worker(void *arg)
{
	const struct sched_param none = { 0 };
	struct snap_lazy *l = arg;
	struct lazy_hand *h = &l->hands[__atomic_fetch_add(&l->nhands, 1, __ATOMIC_RELAXED)];

	thread_name("vmm-decode");
	h->idle = sched_setscheduler(0, SCHED_IDLE, &none) == 0;
	lazy_work(l, h);
	return NULL;
}

/* ---- Life --------------------------------------------------------------- */

/* Long runs of chunks that the file does not have. */
static int lazy_zero_runs(struct snap_lazy *l, struct vmm_error *err)
{
	uint64_t chunk = 0, from, n = l->f->nchunks;
	uint32_t *first = l->f->first;

	l->runs = malloc(MEM_RUNS_MAX * sizeof(*l->runs));
	if (!l->runs)
		return fail(err, VMM_ENOMEM, "%s: out of memory", l->f->name);
	l->source.zero = l->runs;
	while (chunk < n && l->source.nzero < MEM_RUNS_MAX) {
		for (from = chunk; chunk < n && !first[chunk]; chunk++)
			l->there[chunk] = 0;
		/* The platform's pages, behind RAM, are no part of it. */
		if ((chunk - from) * SNAP_CHUNK >= MEM_RUN_MIN && chunk < n) {
			l->runs[l->source.nzero++] = (struct mem_run){
				from * SNAP_CHUNK, (chunk - from) * SNAP_CHUNK };
			memset(&l->there[from], 0xff, (chunk - from) * sizeof(*l->there));
		}
		for (; chunk < n && first[chunk]; chunk++)
			;
	}
	return 0;
}

static int lazy_open(struct snap_lazy *l, struct vmm_error *err)
{
	uint32_t i;
	int rc;

	for (i = 0; i < l->f->nlayers; i++)
		if (l->f->layers[i].fd < 0 && l->f->layers[i].end)
			return fail(err, VMM_ESTATE, "%s: opened without parent %s", l->f->name,
				    l->f->layers[i].path);
	l->uffd = uffd_open();
	if (l->uffd < 0)
		return fail(err, VMM_ENOTSUP, "%s", uffd_note(l->uffd));
	l->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (l->wake < 0)
		return fail_sys(err, errno, "eventfd");
	l->source.fd = memfd_create("vmm-snap", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (l->source.fd < 0 || ftruncate(l->source.fd, (off_t)l->size) < 0)
		return fail_sys(err, errno, "memory for %llu MiB of snapshot",
				(unsigned long long)(l->size >> 20));
	rc = uffd_can_watch(l->source.fd);
	if (rc < 0)
		return fail(err, VMM_ENOTSUP, "%s", uffd_note(rc));
	l->there = calloc(l->f->nchunks, sizeof(*l->there));
	if (!l->there)
		return fail(err, VMM_ENOMEM, "%s: out of memory", l->f->name);
	l->order = snap_order(l->f, err);
	if (!l->order)
		return VMM_ENOMEM;
	rc = lazy_zero_runs(l, err);
	return rc ? rc : lazy_hand_init(&l->hand, err);
}

static int lazy_start(struct snap_lazy *l, unsigned int threads, struct vmm_error *err)
{
	unsigned int i;
	int r;

	if (!threads || threads > LAZY_THREADS)
		threads = snap_threads(0) < LAZY_THREADS ? snap_threads(0) : LAZY_THREADS;
	/* Ourselves, until they have been started. */
	l->left = 1;
	r = thread_start(&l->server, lazy_server, l);
	l->serving = r == 0;
	for (i = 0; i < threads && r == 0; i++) {
		lazy_enter(l);
		r = thread_start(&l->worker[i], lazy_worker, l);
		if (r)
			lazy_leave(l);
		else
			l->nworkers++;
	}
	/* With fewer threads than were wanted it takes longer. */
	if (l->nworkers == 0)
		return fail_sys(err, r, "thread for decoding");
	lazy_leave(l);
	return 0;
}

int snap_lazy_new(struct snap_lazy **out, const struct snapfile *f, uint64_t size,
		  unsigned int threads, struct vmm_error *err)
{
	struct snap_lazy *l = calloc(1, sizeof(*l));
	unsigned int i;
	int rc;

	*out = NULL;
	if (!l)
		return fail(err, VMM_ENOMEM, "%s: out of memory", f->name);
	pthread_mutex_init(&l->lock, NULL);
	pthread_mutex_init(&l->demand, NULL);
	pthread_cond_init(&l->cond, NULL);
	l->pid = getpid();
	l->f = f;
	l->size = size;
	l->uffd = l->wake = l->source.fd = -1;
	l->source.lacking = 1;
	l->source.need = lazy_need;
	l->source.watch = lazy_watch;
	l->source.unwatch = lazy_unwatch;
	for (i = 0; i < LAZY_THREADS; i++)
		sem_init(&l->hands[i].done, 0, 0);
	rc = lazy_open(l, err);
	if (rc == 0)
		rc = lazy_start(l, threads, err);
	if (rc) {
		snap_lazy_free(l);
		return rc;
	}
	*out = l;
	return 0;
}

void snap_lazy_free(struct snap_lazy *l)
{
	int ours;
	unsigned int i;

	if (!l)
		return;
	/* Of a parent: its threads are not here, but what they were doing may be. */
	ours = !lazy_inherited(l, NULL);
	__atomic_store_n(&l->quit, 1, __ATOMIC_RELEASE);
	for (i = 0; i < l->nworkers && ours; i++)
		pthread_join(l->worker[i], NULL);
	/* They needed it till then. */
	__atomic_store_n(&l->over, 1, __ATOMIC_RELEASE);
	if (l->wake >= 0 && ours)
		eventfd_write(l->wake, 1);
	if (l->serving && ours)
		pthread_join(l->server, NULL);
	lazy_hand_fini(&l->hand);
	for (i = 0; i < LAZY_THREADS && ours; i++)
		sem_destroy(&l->hands[i].done);
	if (l->uffd >= 0)
		close(l->uffd);
	if (l->wake >= 0)
		close(l->wake);
	if (l->source.fd >= 0)
		close(l->source.fd);
	free(l->runs);
	free(l->there);
	free(l->firsts);
	free(l->order);
	if (ours) {
		pthread_cond_destroy(&l->cond);
		pthread_mutex_destroy(&l->demand);
		pthread_mutex_destroy(&l->lock);
	}
	free(l);
}

struct mem_source *snap_lazy_source(struct snap_lazy *l)
{
	return &l->source;
}

/* ---- The working set, at once ------------------------------------------------ */

static void lazy_is_own(struct snap_lazy *l, uint64_t page)
{
	l->firsts[page / SNAP_CHUNK_PAGES] |= (uint16_t)lazy_bit(page);
}

/* The file, mapped for the kernel to copy from; nobody else looks: where it has been cut short that
   is an error, and no SIGBUS.  NULL: it cannot be mapped. */
static const uint8_t *lazy_map(const struct snapfile *f)
{
	void *p = mmap(NULL, f->size, PROT_READ, MAP_PRIVATE, f->fd, 0);

	return p == MAP_FAILED ? NULL : p;
}

/*
 * One frame of it, into a view that nobody looks at yet: if it is a raw block, from map, and hashed
 * where it has come to lie.  0: some of that is lacking there: it is damaged, or all of RAM is
 * in the memfd by now, and views are not watched any more.
 */
static int lazy_own_frame(struct snap_lazy *l, struct mem *m, struct lazy_hand *h, uint32_t frame,
			  const uint8_t *map)
{
	const struct snap_ws_frame *w = &l->f->ws.frames[frame];
	const struct snap_ws_run *run = &l->f->ws.runs[frame];
	size_t len = run->n * SNAP_PAGE;
	uint8_t *to = m->hva + run->page * SNAP_PAGE;
	const uint8_t *plain;
	uint64_t page;

	if (map && w->len == SNAP_RAW_HEAD + len)
		plain = map + w->off + SNAP_RAW_HEAD;
	else if (snapfile_decode_ws(l->f, &h->decoder, frame, &plain, NULL))
		return 0;
	if (uffd_copy(l->uffd, to, plain, len) < 0 || snap_hash(to, len) != w->hash) {
		/* Not a part of it stays. */
		madvise(to, len, MADV_DONTNEED);
		return 0;
	}
	for (page = run->page; page < run->page + run->n; page++)
		lazy_is_own(l, page);
	__atomic_fetch_add(&l->source.decoded, len, __ATOMIC_RELAXED);
	return 1;
}

/* Its pages that are zero: those that will be written are pages. */
static void lazy_own_zero(struct snap_lazy *l, struct mem *m)
{
	static const uint8_t zero[SNAP_PAGE];
	const struct snap_ws_view *ws = &l->f->ws;
	uint64_t page;
	uint32_t i;
	uint8_t *p;
	int r;

	for (i = 0; i < ws->npages; i++) {
		page = ws->pages[i] >> SNAP_WS_SHIFT;
		p = m->hva + page * SNAP_PAGE;
		if (!(ws->pages[i] & SNAP_WS_ZERO))
			continue;
		r = ws->pages[i] & SNAP_WS_WRITE ? uffd_copy(l->uffd, p, zero, SNAP_PAGE)
						 : uffd_zero(l->uffd, p, SNAP_PAGE);
		if (r == 0)
			lazy_is_own(l, page);
	}
}

/* Are the pages of a frame in the memfd? */
static int lazy_frame_is_there(const struct snap_lazy *l, uint32_t frame)
{
	const struct snap_ws_run *run = &l->f->ws.runs[frame];
	uint64_t page;

	for (page = run->page; page < run->page + run->n; page++)
		if (!lazy_has_page(l, page))
			return 0;
	return 1;
}

/* All of it, into the first machine's view.  0: some is lacking there. */
static int lazy_own_all(struct snap_lazy *l, struct mem *m, struct lazy_hand *h)
{
	const uint8_t *map = lazy_map(l->f);
	uint32_t frame;
	int own = 1;

	for (frame = 0; frame < l->f->ws.nframes; frame++)
		own &= lazy_own_frame(l, m, h, frame, map);
	if (map)
		munmap((void *)(uintptr_t)map, l->f->size);
	lazy_own_zero(l, m);
	return own;
}

int snap_lazy_ready(struct snap_lazy *l, struct mem *m)
{
	struct lazy_hand h = { 0 };	/* for frames, which need no chunk */
	uint32_t frame;
	int first, own = 0;

	/* It has been taken back: pages of its own are not its own any more. */
	if (m && __atomic_load_n(&l->first, __ATOMIC_ACQUIRE) == m)
		__atomic_store_n(&l->first, NULL, __ATOMIC_RELEASE);
	if (!l->f->ws.npages || !__atomic_load_n(&l->source.lacking, __ATOMIC_ACQUIRE) ||
	    snap_decoder_init(&h.decoder, NULL))
		return 0;
	first = m && !__atomic_exchange_n(&l->served, 1, __ATOMIC_ACQ_REL);
	if (first)
		l->firsts = calloc(l->f->nchunks, sizeof(*l->firsts));
	if (first && l->firsts) {
		own = lazy_own_all(l, m, &h);
		__atomic_store_n(&l->first, m, __ATOMIC_RELEASE);
	} else if (lazy_enter(l)) {
		/* Counted among those who are at it: nothing is sealed meanwhile. */
		lazy_work_ws(l, &h);
		/* Those that workers have begun: they may not come to end soon. */
		for (frame = 0; frame < l->f->ws.nframes; frame++)
			if (!lazy_frame_is_there(l, frame))
				lazy_ws_frame(l, &h, frame, NULL);
		lazy_leave(l);
	}
	snap_decoder_fini(&h.decoder);
	return own;
}

int snap_lazy_finish(struct snap_lazy *l, struct vmm_error *err)
{
	struct lazy_hand h = { 0 };
	int rc = lazy_inherited(l, err);

	if (rc)
		return rc < 0 ? rc : 0;
	if (lazy_enter(l))
		lazy_work(l, &h);
	pthread_mutex_lock(&l->lock);
	while (l->left || (!l->rc && !l->done))
		pthread_cond_wait(&l->cond, &l->lock);
	rc = l->rc;
	if (rc && err)
		*err = l->err;
	pthread_mutex_unlock(&l->lock);
	return rc;
}
