/* SPDX-License-Identifier: MIT */
/*
 * mem.c - guest RAM: see mem.h.
 *
 * RAM is anonymous memory, in huge pages where the host has them.  A memfd
 * would be nearer to what a snapshot and a vhost-user process want, but each
 * of its pages costs four to six times what a page of this does, and is never
 * huge on a host as Debian sets it up: a boot would take half as long again
 * (docs/decisions/anonymous-ram.md).
 *
 * Address space is reserved with room to align: a 2 MiB page of the host can
 * then back a 2 MiB page of the guest, and KVM map it at once.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "mem.h"
#include "pagemap.h"
#include "thread.h"

#define MEM_ALIGN	(2ull << 20)
#define MEM_PAGE	4096u
#define MEM_PARTS	2048u		/* of RAM: the least that is discarded of a view */
#define MEM_RESTORE	(16u << 20)	/* bytes that are worth being overwritten */
#define MEM_KEEP	(4u << 20)	/* ... and being kept while nobody uses them */

/* A core dump of the host program is no place for a guest's RAM, and a child
   has no use for it. */
static void mem_advise(void *p, size_t len)
{
	madvise(p, len, MADV_DONTDUMP);
	madvise(p, len, MADV_DONTFORK);
}

/* Address space for RAM, aligned; what it maps is laid over it. */
static int mem_reserve(struct mem *m, uint64_t gpa, uint64_t size, struct vmm_error *err)
{
	uint64_t total = size + MEM_TAIL, room = total + MEM_ALIGN;
	uint8_t *p, *start;

	memset(m, 0, sizeof(*m));
	m->gpa = gpa;
	m->size = size;
	m->kind = MEM_ANON;
	m->fd = -1;
	p = mmap(NULL, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
		 -1, 0);
	if (p == MAP_FAILED)
		return fail_sys(err, errno, "%llu MiB of guest RAM",
				(unsigned long long)(size >> 20));
	start = p + ((gpa - (uintptr_t)p) & (MEM_ALIGN - 1));
	if (start > p)
		munmap(p, (size_t)(start - p));
	munmap(start + total, (size_t)(p + room - (start + total)));
	m->hva = start;
	return 0;
}

int mem_init(struct mem *m, uint64_t gpa, uint64_t size, struct vmm_error *err)
{
	int rc = mem_reserve(m, gpa, size, err);

	if (rc)
		return rc;
	/* A host without huge pages refuses. */
	madvise(m->hva, size, MADV_HUGEPAGE);
	mem_advise(m->hva, size + MEM_TAIL);
	return 0;
}

static int mem_view(struct mem *m, int flags, struct vmm_error *err);

/*
 * Are mappings that a source keeps this process's?  A child of fork() does not have its
 * parent's, and begins anew; 0: another thread is just doing that.
 */
static int mem_mine(struct mem_source *s)
{
	const pid_t pid = getpid();
	pid_t was = __atomic_load_n(&s->pid, __ATOMIC_ACQUIRE);

	if (was == pid)
		return 1;
	if (was == -1 || !__atomic_compare_exchange_n(&s->pid, &was, -1, 0, __ATOMIC_ACQ_REL,
						      __ATOMIC_RELAXED))
		return 0;
	memset(s->spare, 0, sizeof(s->spare));
	s->plain = NULL;
	__atomic_store_n(&s->pid, pid, __ATOMIC_RELEASE);
	return 1;
}

/* A view that another machine has left, as good as new, or NULL; *used: with the pages
   that it has written to, of which the lowest bit tells. */
static uint8_t *mem_take_spare(struct mem_source *s, int *used)
{
	const uint32_t n = mem_mine(s) ? MEM_SPARES : 0;
	uintptr_t p = 0;
	uint32_t i;

	for (i = 0; i < n && !p; i++)
		p = __atomic_exchange_n(&s->spare[i], 0, __ATOMIC_ACQ_REL);
	*used = (int)(p & 1);
	return (uint8_t *)(p & ~(uintptr_t)1);
}

/* Of small pages all: there is nothing to align for. */
int mem_init_private(struct mem *m, uint64_t gpa, uint64_t size, struct mem_source *source,
		     struct vmm_error *err)
{
	int rc;

	*m = (struct mem){ .gpa = gpa, .size = size, .kind = MEM_PRIVATE, .fd = -1,
			   .source = source };
	m->hva = mem_take_spare(source, &m->used);
	rc = m->hva ? 0 : mem_view(m, 0, err);
	if (rc)
		mem_fini(m);
	return rc;
}

/* Fresh zeroes, in small pages: a machine that waits holds few. */
static int mem_map_zero(struct mem *m, uint64_t off, uint64_t len)
{
	if (mmap(m->hva + off, len, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == MAP_FAILED)
		return -errno;
	return 0;
}

static void mem_advise_private(struct mem *m, uint64_t off, uint64_t len)
{
	madvise(m->hva + off, len, MADV_NOHUGEPAGE);
	mem_advise(m->hva + off, len);
}

/*
 * Where the source has long runs of zeroes there is anonymous memory: what the
 * guest writes there is then written once, and nothing of it is shared for no gain.
 */
static int mem_view(struct mem *m, int flags, struct vmm_error *err)
{
	const struct mem_source *s = m->source;
	uint32_t i;
	void *p;
	int r = 0;

	p = mmap(m->hva, m->size + MEM_TAIL, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_NORESERVE | flags, s->fd, 0);
	if (p == MAP_FAILED)
		r = -errno;
	else
		m->hva = p;
	for (i = 0; i < s->nzero && r == 0; i++)
		r = mem_map_zero(m, s->zero[i].off, s->zero[i].len);
	if (r < 0)
		return fail_sys(err, -r, "mapping %llu MiB of guest RAM",
				(unsigned long long)(m->size >> 20));
	mem_advise_private(m, 0, m->size + MEM_TAIL);
	return s->watch ? s->watch(m->source, m, err) : 0;
}

/* pagemap_own(): what is dropped shows the source again, or zeroes. */
static int mem_drop_run(void *arg, size_t off, size_t len)
{
	const struct mem *m = arg;

	return madvise(m->hva + off, len, MADV_DONTNEED) < 0 ? -errno : 0;
}

/*
 * What is mapped of the source can stay, and costs what has been written.  If
 * parts have been discarded, or a kernel cannot tell, all is mapped anew.
 */
int mem_rewind(struct mem *m, struct vmm_error *err)
{
	if (!m->dropped && pagemap_own(m->hva, m->size + MEM_TAIL, mem_drop_run, m) == 0)
		return 0;
	free(m->dropped);
	m->dropped = NULL;
	if (m->source->unwatch)
		m->source->unwatch(m->source, m);
	return mem_view(m, MAP_FIXED, err);
}

/* What a source holds, mapped to be read: NULL if it cannot be. */
static const uint8_t *mem_plain(struct mem_source *s, size_t size)
{
	uint8_t *none = NULL, *p;

	if (!mem_mine(s))
		return NULL;
	p = __atomic_load_n(&s->plain, __ATOMIC_ACQUIRE);
	if (p)
		return p;
	p = mmap(NULL, size, PROT_READ, MAP_SHARED | MAP_NORESERVE, s->fd, 0);
	if (p == MAP_FAILED)
		return NULL;
	mem_advise(p, size);
	if (__atomic_compare_exchange_n(&s->plain, &none, p, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
		return p;
	munmap(p, size);
	return none;
}

struct mem_restoring {
	const struct mem *m;
	const uint8_t	*plain;
	size_t		left;		/* bytes that may still be overwritten */
};

static int mem_restore_run(void *arg, size_t off, size_t len)
{
	struct mem_restoring *c = arg;

	if (len > c->left)
		return -E2BIG;
	c->left -= len;
	memcpy(c->m->hva + off, c->plain + off, len);
	return 0;
}

/* What was written is overwritten, if it is no more than max bytes; else -E2BIG, and the
   view holds anything. */
static int mem_overwrite(const struct mem *m, size_t max)
{
	struct mem_restoring c = { m, mem_plain(m->source, m->size + MEM_TAIL), max };

	return c.plain ? pagemap_own(m->hva, m->size + MEM_TAIL, mem_restore_run, &c) : -ENOMEM;
}

int mem_restore(struct mem *m)
{
	int r;

	if (m->kind != MEM_PRIVATE || m->dropped ||
	    __atomic_load_n(&m->source->lacking, __ATOMIC_ACQUIRE))
		return 0;
	r = mem_overwrite(m, MEM_RESTORE);
	return r < 0 ? r : 1;
}

int mem_holes(int fd, uint64_t size, struct mem_run **runs, uint32_t *n, struct vmm_error *err)
{
	struct mem_run *r = malloc(MEM_RUNS_MAX * sizeof(*r));
	off_t data = 0, hole = 0, end = (off_t)size;

	*runs = r;
	*n = 0;
	if (!r)
		return fail(err, VMM_ENOMEM, "memory for a snapshot");
	while (hole < end && *n < MEM_RUNS_MAX) {
		data = lseek(fd, hole, SEEK_DATA);
		if (data < 0 || data > end)
			data = end;
		if (data - hole >= MEM_RUN_MIN)
			r[(*n)++] = (struct mem_run){ (uint64_t)hole, (uint64_t)(data - hole) };
		hole = data < end ? lseek(fd, data, SEEK_HOLE) : end;
		if (hole < 0)
			break;
	}
	return 0;
}

/* Nothing that it has written is left, but the pages it has written to, if those are few:
   keep it for the next one, which is going to write to the same.  0: it goes. */
static int mem_keep_spare(struct mem *m)
{
	struct mem_source *s = m->source;
	uintptr_t none, used;
	uint32_t i = 0;

	if (m->kind != MEM_PRIVATE || m->dropped ||
	    __atomic_load_n(&s->lacking, __ATOMIC_ACQUIRE) || !mem_mine(s))
		return 0;
	while (i < MEM_SPARES && __atomic_load_n(&s->spare[i], __ATOMIC_RELAXED))
		i++;
	if (i == MEM_SPARES)
		return 0;
	used = mem_overwrite(m, MEM_KEEP) == 0;
	if (!used && pagemap_own(m->hva, m->size + MEM_TAIL, mem_drop_run, m))
		return 0;
	for (; i < MEM_SPARES; i++) {
		none = 0;
		if (__atomic_compare_exchange_n(&s->spare[i], &none, (uintptr_t)m->hva | used, 0,
						__ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
			return 1;
	}
	return 0;
}

void mem_source_fini(struct mem_source *s, uint64_t size)
{
	uint8_t *p;
	int used;

	while ((p = mem_take_spare(s, &used)))
		munmap(p, size + MEM_TAIL);
	if (mem_mine(s) && s->plain)
		munmap(s->plain, size + MEM_TAIL);
}

void mem_fini(struct mem *m)
{
	if (!m->hva)
		return;
	if (m->source && m->source->unwatch)
		m->source->unwatch(m->source, m);
	if (!mem_keep_spare(m))
		munmap(m->hva, m->size + MEM_TAIL);
	if (m->kind == MEM_SHARED)
		close(m->fd);
	free(m->dropped);
	m->hva = NULL;
}

void mem_leave(struct mem *m, struct mem *old)
{
	struct mem fresh;

	memset(old, 0, sizeof(*old));
	if (m->kind != MEM_PRIVATE || __atomic_load_n(&m->source->lacking, __ATOMIC_ACQUIRE))
		return;
	/* By its address: it is about to have another. */
	if (m->source->unwatch)
		m->source->unwatch(m->source, m);
	if (mem_init_private(&fresh, m->gpa, m->size, m->source, NULL))
		return;
	*old = *m;
	m->hva = fresh.hva;
	m->used = fresh.used;
	m->dropped = NULL;
}

int mem_clear(struct mem *m, struct vmm_error *err)
{
	int r = mem_discard(m, m->hva, m->size + MEM_TAIL);

	return r < 0 ? fail_sys(err, -r, "clearing guest RAM") : 0;
}

/* ---- Pages, as bits ------------------------------------------------------ */

static uint64_t *mem_bits_new(const struct mem *m)
{
	return calloc((m->size + MEM_TAIL) / MEM_PAGE / 64 + 1, sizeof(uint64_t));
}

static void mem_bits_set(uint64_t *bits, uint64_t off, uint64_t len)
{
	uint64_t i;

	for (i = off / MEM_PAGE; i < (off + len) / MEM_PAGE; i++)
		bits[i / 64] |= 1ull << i % 64;
}

static int mem_bit(const uint64_t *bits, uint64_t off)
{
	return bits[off / MEM_PAGE / 64] >> off / MEM_PAGE % 64 & 1;
}

/* ---- Copies ----------------------------------------------------------------- */

struct mem_copying {
	const struct mem *m;
	int		fd;
	uint64_t	*own;		/* NULL: all that is not zero is copied */
};

/* Copy what is not zero of a run of pages; but a zero page that was copied
   before must become one again. */
static int mem_copy_run(void *arg, size_t off, size_t len)
{
	static const uint8_t zero[MEM_PAGE];
	const struct mem_copying *c = arg;
	const uint8_t *p = c->m->hva;
	size_t end = off + len, run;

	if (c->own)
		mem_bits_set(c->own, off, len);
	while (off < end) {
		while (off < end && c->m->kind != MEM_PRIVATE &&
		       memcmp(p + off, zero, MEM_PAGE) == 0)
			off += MEM_PAGE;
		run = off;
		while (run < end && (c->m->kind == MEM_PRIVATE ||
				     memcmp(p + run, zero, MEM_PAGE) != 0))
			run += MEM_PAGE;
		while (off < run) {
			ssize_t n = pwrite(c->fd, p + off, run - off, (off_t)off);

			if (n < 0 && errno != EINTR)
				return errno;
			off += n > 0 ? (size_t)n : 0;
		}
	}
	return 0;
}

/* What a file holds, as seen through the mapping: a part may be discarded. */
static int mem_copy_file(const struct mem_copying *c)
{
	off_t data = 0, hole, end = (off_t)(c->m->size + MEM_TAIL);
	int r = 0, fd = c->m->kind == MEM_PRIVATE ? c->m->source->fd : c->m->fd;

	while (r == 0 && data < end) {
		data = lseek(fd, data, SEEK_DATA);
		if (data < 0)
			return errno == ENXIO ? 0 : errno;
		hole = lseek(fd, data, SEEK_HOLE);
		if (hole < 0)
			return errno;
		r = mem_copy_run((void *)(uintptr_t)c, (size_t)data, (size_t)(hole - data));
		data = hole;
	}
	return r;
}

/* Everything that is not zero, or what is its own, into fd, an empty memfd. */
static int mem_copy_out(const struct mem *m, int fd, uint64_t **own)
{
	struct mem_copying c = { m, fd, NULL };
	int r;

	if (own && *own) {
		c.own = *own;
		r = pagemap_own(m->hva, m->size + MEM_TAIL, mem_copy_run, &c);
		if (r != -ENOTTY && r != -EINVAL)
			return r < 0 ? -r : r;
		free(*own);
		*own = c.own = NULL;
	}
	r = m->kind == MEM_ANON ? 0 : mem_copy_file(&c);
	if (r == 0 && m->kind != MEM_SHARED)
		r = pagemap_own(m->hva, m->size + MEM_TAIL, mem_copy_run, &c);
	if (r == -ENOTTY || r == -EINVAL)	/* an old kernel: look at it all */
		r = mem_copy_run(&c, 0, m->size + MEM_TAIL);
	return r < 0 ? -r : r;
}

static int mem_memfd(const struct mem *m, int *fd, uint64_t **own, struct vmm_error *err)
{
	int r;

	*fd = memfd_create("vmm-ram", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (*fd < 0)
		return fail_sys(err, errno, "memfd for guest RAM");
	r = ftruncate(*fd, (off_t)(m->size + MEM_TAIL)) < 0 ? errno :
	    mem_copy_out(m, *fd, own);
	if (!r)
		return 0;
	close(*fd);
	*fd = -1;
	return fail_sys(err, r, "memfd of %llu MiB for guest RAM",
			(unsigned long long)(m->size >> 20));
}

int mem_copy(const struct mem *m, int *fd, struct vmm_error *err)
{
	int rc = mem_memfd(m, fd, NULL, err);

	if (rc == 0)
		mem_seal(*fd);
	return rc;
}

int mem_copy_own(const struct mem *m, int *fd, uint64_t **own, struct vmm_error *err)
{
	uint64_t i;
	int rc;

	*own = NULL;
	if (m->kind == MEM_PRIVATE) {
		*own = mem_bits_new(m);
		if (!*own)
			return fail(err, VMM_ENOMEM, "memory for a map of guest RAM");
	}
	rc = mem_memfd(m, fd, own, err);
	if (rc) {
		free(*own);
		*own = NULL;
		return rc;
	}
	mem_seal(*fd);
	/* What was discarded is a hole of the mapping, and differs all the same. */
	for (i = 0; *own && m->dropped && i <= (m->size + MEM_TAIL) / MEM_PAGE / 64; i++)
		(*own)[i] |= m->dropped[i];
	return 0;
}

int mem_apply(struct mem *m, int fd, const uint64_t *own, struct vmm_error *err)
{
	uint64_t off = 0, end = m->size + MEM_TAIL, run;
	ssize_t n;

	while (off < end) {
		while (off < end && !mem_bit(own, off))
			off += MEM_PAGE;
		for (run = off; run < end && mem_bit(own, run); run += MEM_PAGE)
			;
		while (off < run) {
			n = pread(fd, m->hva + off, run - off, (off_t)off);
			if (n <= 0 && errno != EINTR)
				return fail_sys(err, n < 0 ? errno : EIO, "pages of guest RAM");
			off += n > 0 ? (uint64_t)n : 0;
		}
	}
	return 0;
}

void mem_seal(int fd)
{
	/* Of a memfd that nobody maps for writing this cannot fail. */
	fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
}

int mem_share(struct mem *m, struct vmm_error *err)
{
	sigset_t before;
	int fd, rc;

	if (m->kind == MEM_SHARED)
		return 0;
	thread_hold(&before);
	rc = mem_memfd(m, &fd, NULL, err);
	thread_release(&before, rc);
	if (rc)
		return rc;
	if (mmap(m->hva, m->size + MEM_TAIL, PROT_READ | PROT_WRITE,
		 MAP_SHARED | MAP_NORESERVE | MAP_FIXED, fd, 0) == MAP_FAILED) {
		rc = fail_sys(err, errno, "mapping %llu MiB of guest RAM",
			      (unsigned long long)(m->size >> 20));
		close(fd);
		return rc;
	}
	mem_advise(m->hva, m->size + MEM_TAIL);
	free(m->dropped);
	m->dropped = NULL;
	m->fd = fd;
	m->kind = MEM_SHARED;
	return 0;
}

static int mem_is_ram(const struct mem *m, uint64_t gpa, uint64_t len)
{
	return gpa >= m->gpa && gpa - m->gpa <= m->size && len <= m->size - (gpa - m->gpa);
}

/* Bytes of RAM are about to be looked at: have them there. */
static int mem_there(const struct mem *m, uint64_t off, uint64_t len)
{
	struct vmm_error err;
	int rc;

	if (!m->source || !__atomic_load_n(&m->source->lacking, __ATOMIC_ACQUIRE))
		return 1;
	rc = m->source->need(m->source, m, off, len, &err);
	if (rc > 0)
		__atomic_fetch_add((uint64_t *)(uintptr_t)&m->waits, 1, __ATOMIC_RELAXED);
	if (rc >= 0)
		return 1;
	if (m->lost)
		m->lost(m->lost_arg, &err);
	return 0;
}

void *mem_get(const struct mem *m, uint64_t gpa, uint64_t len)
{
	if (!mem_is_ram(m, gpa, len) || !mem_there(m, gpa - m->gpa, len))
		return NULL;
	return m->hva + (gpa - m->gpa);
}

int mem_missing(const struct mem *m, uint64_t gpa, uint64_t len, struct vmm_error *err)
{
	int rc = 0;

	if (mem_is_ram(m, gpa, len) && m->source && m->source->need)
		rc = m->source->need(m->source, m, gpa - m->gpa, len, err);
	return rc < 0 ? rc : 0;
}

void *mem_tail(const struct mem *m)
{
	mem_there(m, m->size, MEM_PAGE);
	return m->hva + m->size;
}

uint64_t mem_tail_gpa(const struct mem *m)
{
	return m->gpa + m->size;
}

int mem_load(const struct mem *m, uint64_t gpa, int fd, uint64_t off, uint64_t len,
	     const char *name, struct vmm_error *err)
{
	uint8_t *dst = mem_get(m, gpa, len);
	uint64_t done = 0;
	ssize_t n;

	if (!dst)
		return fail(err, VMM_EFORMAT, "%s: %llu bytes do not fit into %llu MiB of RAM",
			    name, (unsigned long long)len, (unsigned long long)(m->size >> 20));
	while (done < len) {
		/* Linux reads at most 2 GiB at once, and says how much. */
		n = pread(fd, dst + done, len - done, (off_t)(off + done));
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return fail_sys(err, errno, "read %s", name);
		if (n == 0)
			return fail(err, VMM_EFORMAT, "%s: ends %llu bytes too early", name,
				    (unsigned long long)(len - done));
		done += (uint64_t)n;
	}
	return 0;
}

/*
 * Where the pages of a file lie below, MADV_DONTNEED would bring back what the
 * snapshot holds: fresh zero pages take their place instead.  Each run of them is
 * a mapping more, and the kernel's limit on those is the process's, which a guest
 * must not reach: runs are made of parts of RAM, of which there are not many.
 */
static uint64_t mem_part(const struct mem *m)
{
	uint64_t part = MEM_PAGE;

	while (part < MEM_ALIGN && part < m->size / MEM_PARTS)
		part *= 2;
	return part;
}

static int mem_discard_private(struct mem *m, uint64_t start, uint64_t end)
{
	const uint64_t part = mem_part(m);
	int r;

	start = (start + part - 1) & ~(part - 1);
	end &= ~(part - 1);
	if (start >= end)
		return -EAGAIN;
	if (!m->dropped)
		m->dropped = mem_bits_new(m);
	if (!m->dropped)
		return -ENOMEM;
	r = mem_map_zero(m, start, end - start);
	mem_advise_private(m, start, end - start);
	if (r == 0)
		mem_bits_set(m->dropped, start, end - start);
	return r;
}

/*
 * Have the huge page around an end of what is to go split first, which MADV_COLD
 * does.  KVM maps it as one; Linux 7.2's warns, so that a guest could fill the
 * host's log, when it is told of a part of it before it is told of the split.
 */
static void mem_split(const struct mem *m, uint64_t end, uint64_t page)
{
	if (end % MEM_ALIGN)
		madvise(m->hva + page, MEM_PAGE, MADV_COLD);
}

int mem_discard(struct mem *m, void *p, uint64_t len)
{
	uint64_t start = (uint64_t)((uint8_t *)p - m->hva), end = start + len;
	int r;

	start = (start + MEM_PAGE - 1) & ~(uint64_t)(MEM_PAGE - 1);
	end &= ~(uint64_t)(MEM_PAGE - 1);
	if (start >= end)
		return 0;
	if (m->kind == MEM_PRIVATE)
		return mem_discard_private(m, start, end);
	if (m->kind == MEM_ANON) {
		mem_split(m, start, start);
		mem_split(m, end, end - MEM_PAGE);
	}
	/* MADV_REMOVE punches a hole into the memfd, not just into a mapping. */
	r = madvise(m->hva + start, end - start,
		    m->kind == MEM_SHARED ? MADV_REMOVE : MADV_DONTNEED);
	return r < 0 ? -errno : 0;
}

int mem_release(struct mem *m, void *p, uint64_t len)
{
	int r;

	/* Not while some of RAM is lacking: its source knows which pages we have. */
	if (m->kind == MEM_PRIVATE &&
	    !(m->source && __atomic_load_n(&m->source->lacking, __ATOMIC_ACQUIRE)) &&
	    madvise(p, len, MADV_DONTNEED) < 0)
		return -errno;
	r = mem_discard(m, p, len);
	return m->kind == MEM_PRIVATE ? 0 : r;
}

uint64_t mem_used(const struct mem *m)
{
	unsigned char vec[4096];
	uint64_t off, n, i, pages = 0;

	if (!m->hva)
		return 0;
	for (off = 0; off < m->size; off += n * MEM_PAGE) {
		n = (m->size - off) / MEM_PAGE;
		n = n < sizeof(vec) ? n : sizeof(vec);
		if (mincore(m->hva + off, n * MEM_PAGE, vec) < 0)
			return 0;
		for (i = 0; i < n; i++)
			pages += vec[i] & 1;
	}
	return pages * MEM_PAGE;
}

static int mem_count(void *arg, size_t off, size_t len)
{
	uint64_t *sum = arg;

	(void)off;
	*sum += len;
	return 0;
}

uint64_t mem_own(const struct mem *m)
{
	uint64_t sum = 0;

	if (m->kind == MEM_SHARED || !m->hva)
		return 0;
	pagemap_own(m->hva, m->size + MEM_TAIL, mem_count, &sum);
	return sum;
}

/* Can a run be had?  A fault here that nobody can serve would leave zeroes, and there is no
   vCPU yet to be stopped before it sees them: those pages are left to the guest's own. */
static int mem_has(const struct mem *m, uint64_t off, uint64_t len)
{
	struct mem_source *s = m->source;

	return !s || !__atomic_load_n(&s->lacking, __ATOMIC_ACQUIRE) ||
	       s->need(s, m, off, len, NULL) >= 0;
}

void mem_populate(const struct mem *m, const struct mem_warm *runs, uint32_t n, int reads)
{
	uint32_t i;

	if (m->used && !reads)		/* and has its pages */
		return;
	/* Only to save time: what a kernel (before 5.14) does not know, or has
	   no memory for, the guest's own faults will do. */
	for (i = 0; i < n; i++)
		if ((runs[i].write || reads) && mem_has(m, runs[i].off, runs[i].len) &&
		    madvise(m->hva + runs[i].off, runs[i].len,
			    runs[i].write ? MADV_POPULATE_WRITE : MADV_POPULATE_READ) < 0)
			return;
}
