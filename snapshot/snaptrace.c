/* SPDX-License-Identifier: MIT */
/*
 * snaptrace.c - see snaptrace.h.
 *
 * The machine has a private view of a memfd of its own, which is all holes and
 * watched by userfaultfd.  Each first touch of a page is a fault: a thread notes
 * it, copies the page from the snapshot's RAM into the memfd, and wakes the
 * vCPU.  Device code asks first (need), and is noted as well.  A page that is
 * read first and written later is found by what the view holds of its own.
 *
 * That is slow, and exact: nothing is guessed from its neighbours.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../core/pagemap.h"
#include "../core/thread.h"
#include "../core/uffd.h"
#include "snapfile.h"
#include "snaptrace.h"

#define TRACE_WRITTEN	2u		/* in seen */

struct snap_trace {
	struct mem_source source;	/* first */
	const struct mem_source *from;
	uint64_t	size;
	int		uffd, wake;
	pthread_t	server;
	int		serving, quit;	/* quit: atomic */
	pthread_mutex_t	lock;		/* what follows */
	struct mem	*view;
	uint8_t		*seen;		/* [page] */
	uint64_t	*pages;		/* in the order of the first touch */
	uint32_t	n;
};

/* With lock held: note a page, and put it there. */
static int trace_page(struct snap_trace *t, uint64_t page, int write, struct vmm_error *err)
{
	uint8_t buf[SNAP_PAGE];
	off_t off = (off_t)(page * SNAP_PAGE);
	ssize_t r;

	if (t->seen[page])
		return 0;
	r = pread(t->from->fd, buf, sizeof(buf), off);
	if (r == (ssize_t)sizeof(buf))
		r = pwrite(t->source.fd, buf, sizeof(buf), off);
	if (r != (ssize_t)sizeof(buf))
		return fail_sys(err, r < 0 ? errno : EIO, "memory for guest RAM");
	t->seen[page] = write ? TRACE_WRITTEN : 1;
	t->pages[t->n++] = page;
	return 0;
}

/* struct mem_source, need */
static int trace_need(struct mem_source *s, const struct mem *m, uint64_t off, uint64_t len,
		      struct vmm_error *err)
{
	struct snap_trace *t = (struct snap_trace *)s;
	uint64_t page = off / SNAP_PAGE, last = (off + len - !!len) / SNAP_PAGE;
	int rc = 0;

	(void)m;
	pthread_mutex_lock(&t->lock);
	for (; page <= last && rc == 0; page++)
		rc = trace_page(t, page, 0, err);
	pthread_mutex_unlock(&t->lock);
	return rc;
}

static int trace_watch(struct mem_source *s, struct mem *m, struct vmm_error *err)
{
	struct snap_trace *t = (struct snap_trace *)s;
	int r;

	pthread_mutex_lock(&t->lock);
	r = uffd_watch(t->uffd, m->hva, t->size);
	t->view = m;
	pthread_mutex_unlock(&t->lock);
	return r < 0 ? fail_sys(err, -r, "userfaultfd on guest RAM") : 0;
}

static void trace_unwatch(struct mem_source *s, struct mem *m)
{
	struct snap_trace *t = (struct snap_trace *)s;

	(void)m;
	pthread_mutex_lock(&t->lock);
	t->view = NULL;
	pthread_mutex_unlock(&t->lock);
}

static void trace_serve(struct snap_trace *t, const struct uffd_fault *fault)
{
	struct vmm_error err;
	struct mem *m;
	int rc = 0;

	pthread_mutex_lock(&t->lock);
	m = t->view;
	if (m && fault->page >= m->hva && fault->page < m->hva + t->size)
		rc = trace_page(t, (uint64_t)(fault->page - m->hva) / SNAP_PAGE, fault->write,
				&err);
	if (rc && m->lost)
		m->lost(m->lost_arg, &err);
	pthread_mutex_unlock(&t->lock);
	if (rc)
		uffd_zero(t->uffd, fault->page, SNAP_PAGE);
	else
		uffd_wake(t->uffd, fault->page, SNAP_PAGE);
}

static void *trace_server(void *arg)
{
	struct snap_trace *t = arg;
	struct pollfd p[2] = { { t->uffd, POLLIN, 0 }, { t->wake, POLLIN, 0 } };
	struct uffd_fault faults[16];
	int i, n;

	thread_name("vmm-trace");
	while (!__atomic_load_n(&t->quit, __ATOMIC_ACQUIRE)) {
		n = uffd_read(t->uffd, faults, 16);
		for (i = 0; i < n; i++)
			trace_serve(t, &faults[i]);
		if (n <= 0)
			poll(p, 2, -1);
	}
	return NULL;
}

static int trace_open(struct snap_trace *t, struct vmm_error *err)
{
	int r;

	t->uffd = uffd_open();
	if (t->uffd < 0)
		return fail(err, VMM_ENOTSUP, "to see what a machine touches: %s",
			    uffd_note(t->uffd));
	t->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (t->wake < 0)
		return fail_sys(err, errno, "eventfd");
	t->source.fd = memfd_create("vmm-trace", MFD_CLOEXEC);
	if (t->source.fd < 0 || ftruncate(t->source.fd, (off_t)t->size) < 0)
		return fail_sys(err, errno, "memory for guest RAM");
	r = uffd_can_watch(t->source.fd);
	if (r < 0)
		return fail(err, VMM_ENOTSUP, "to see what a machine touches: %s", uffd_note(r));
	t->seen = calloc(t->size / SNAP_PAGE, 1);
	t->pages = malloc(t->size / SNAP_PAGE * sizeof(*t->pages));
	if (!t->seen || !t->pages)
		return fail(err, VMM_ENOMEM, "memory to note pages in");
	r = thread_start(&t->server, trace_server, t);
	t->serving = r == 0;
	return r ? fail_sys(err, r, "thread to note pages") : 0;
}

int snap_trace_new(struct snap_trace **out, const struct mem_source *from, uint64_t size,
		   struct vmm_error *err)
{
	struct snap_trace *t = calloc(1, sizeof(*t));
	int rc;

	*out = NULL;
	if (!t)
		return fail(err, VMM_ENOMEM, "memory to note pages in");
	pthread_mutex_init(&t->lock, NULL);
	t->from = from;
	t->size = size;
	t->uffd = t->wake = t->source.fd = -1;
	t->source.lacking = 1;
	t->source.need = trace_need;
	t->source.watch = trace_watch;
	t->source.unwatch = trace_unwatch;
	rc = trace_open(t, err);
	if (rc)
		snap_trace_free(t);
	else
		*out = t;
	return rc;
}

void snap_trace_know(struct snap_trace *t, const uint64_t *ws, uint32_t n)
{
	uint32_t i;

	pthread_mutex_lock(&t->lock);
	for (i = 0; i < n; i++)
		trace_page(t, ws[i] >> SNAP_WS_SHIFT, (int)(ws[i] & SNAP_WS_WRITE), NULL);
	pthread_mutex_unlock(&t->lock);
}

void snap_trace_free(struct snap_trace *t)
{
	if (!t)
		return;
	__atomic_store_n(&t->quit, 1, __ATOMIC_RELEASE);
	if (t->wake >= 0)
		eventfd_write(t->wake, 1);
	if (t->serving)
		pthread_join(t->server, NULL);
	if (t->uffd >= 0)
		close(t->uffd);
	if (t->wake >= 0)
		close(t->wake);
	if (t->source.fd >= 0)
		close(t->source.fd);
	free(t->seen);
	free(t->pages);
	pthread_mutex_destroy(&t->lock);
	free(t);
}

struct mem_source *snap_trace_source(struct snap_trace *t)
{
	return &t->source;
}

/* pagemap_own(): pages that the view holds for itself have been written. */
static int trace_own(void *arg, size_t off, size_t len)
{
	struct snap_trace *t = arg;
	size_t page;

	for (page = off / SNAP_PAGE; page < (off + len) / SNAP_PAGE; page++)
		if (t->seen[page])
			t->seen[page] = TRACE_WRITTEN;
	return 0;
}

int snap_trace_read(struct snap_trace *t, uint64_t **ws, uint32_t *n, struct vmm_error *err)
{
	uint32_t i;
	int r = 0;

	pthread_mutex_lock(&t->lock);
	*n = 0;
	*ws = malloc(((size_t)t->n + 1) * sizeof(**ws));
	if (*ws && t->view)
		r = pagemap_own(t->view->hva, t->size, trace_own, t);
	/* A kernel that cannot tell: what was written first is known. */
	if (r == -ENOTTY || r == -EINVAL)
		r = 0;
	for (i = 0; *ws && r == 0 && i < t->n; i++)
		(*ws)[(*n)++] = t->pages[i] << SNAP_WS_SHIFT |
				(t->seen[t->pages[i]] == TRACE_WRITTEN ? SNAP_WS_WRITE : 0);
	pthread_mutex_unlock(&t->lock);
	if (!*ws)
		return fail(err, VMM_ENOMEM, "a working set");
	return r < 0 ? fail_sys(err, -r, "pages that were written") : 0;
}
