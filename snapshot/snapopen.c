/* SPDX-License-Identifier: MIT */
/*
 * snapopen.c - open a snapshot file and check all of it that is not RAM.
 *
 * docs/snapshot-format.md, section 9, is the list of checks made here.  All
 * metadata is read once and checked before it is looked at; whatever it says
 * afterwards is within bounds, so that the rest of this part need not ask
 * again.
 *
 * A layer's file is taken for what it was if its footer has the uuid and the
 * manifest id that were recorded; of its index nothing is needed, as ours is
 * complete.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "snapfile.h"

#define SNAPOPEN_HEADER		4096u	/* a guess: usually less than that */
#define SNAPOPEN_STATE		32768u

/* ---- Sections ----------------------------------------------------------- */

/* Count (out == NULL) or list the sections in n bytes at p; -1: malformed. */
static int64_t snapopen_sections(const uint8_t *p, size_t n, struct snap_section *out)
{
	struct snap_section_head h;
	uint32_t count = 0, i;
	size_t room;

	while (n) {
		if (n < sizeof(h) || count == SNAP_SECTIONS_MAX)
			return -1;
		memcpy(&h, p, sizeof(h));
		room = ((size_t)h.len + 7) & ~(size_t)7;
		if (!h.name[0] || !memchr(h.name, 0, sizeof(h.name)) || room > n - sizeof(h))
			return -1;
		if (out) {
			out[count].name = (const char *)p;
			out[count].version = h.version;
			out[count].flags = h.flags;
			out[count].data = p + sizeof(h);
			out[count].len = h.len;
			for (i = 0; i < count; i++)
				if (strcmp(out[i].name, out[count].name) == 0)
					return -1;
		}
		count++;
		p += sizeof(h) + room;
		n -= sizeof(h) + room;
	}
	return count;
}

static int snapopen_list(const struct snapfile *f, const char *where, const uint8_t *p, size_t n,
			 struct snap_section **out, uint32_t *count, struct vmm_error *err)
{
	int64_t k = snapopen_sections(p, n, NULL);

	*out = NULL;
	if (k >= 0) {
		*out = calloc((size_t)k + 1, sizeof(**out));
		if (!*out)
			return fail(err, VMM_ENOMEM, "%s: out of memory", f->name);
		k = snapopen_sections(p, n, *out);
	}
	if (k < 0) {
		free(*out);
		*out = NULL;
		return fail(err, VMM_EFORMAT, "%s: malformed sections in %s", f->name, where);
	}
	*count = (uint32_t)k;
	return 0;
}

const struct snap_section *snapfile_section(const struct snapfile *f, const char *name)
{
	uint32_t i;

	for (i = 0; i < f->nsections; i++)
		if (strcmp(f->sections[i].name, name) == 0)
			return &f->sections[i];
	return NULL;
}

static int snapopen_not_understood(const struct snapfile *f, const struct snap_section *s,
				   struct vmm_error *err)
{
	return fail(err, VMM_EVERSION, "%s: section %s, version %u, is not understood", f->name,
		    s->name, s->version);
}

int snapfile_understood(const struct snapfile *f,
			int (*known)(void *arg, const struct snap_section *s), void *arg,
			struct vmm_error *err)
{
	uint32_t i;

	for (i = 0; i < f->nsections; i++)
		if ((f->sections[i].flags & SNAP_MUST_UNDERSTAND) && !known(arg, &f->sections[i]))
			return snapopen_not_understood(f, &f->sections[i], err);
	return 0;
}

/* ---- Header ------------------------------------------------------------- */

static int snapopen_ram(struct snapfile *f, const struct snap_section *s, struct vmm_error *err)
{
	uint32_t n = (uint32_t)(s->len / sizeof(struct snap_region)), i, j;
	const struct snap_region *r = s->data, *q;
	uint64_t sum = 0;

	if (s->len % sizeof(*r) || n == 0 || n > SNAP_REGIONS_MAX)
		goto bad;
	for (i = 0; i < n; i++) {
		if (!r[i].size || (r[i].size | r[i].gpa) % SNAP_PAGE ||
		    r[i].size > f->header->ram_size - sum || r[i].gpa + r[i].size < r[i].gpa)
			goto bad;
		sum += r[i].size;
		for (j = 0, q = r; j < i; j++, q++)
			if (r[i].gpa < q->gpa + q->size && q->gpa < r[i].gpa + r[i].size)
				goto bad;
	}
	if (sum != f->header->ram_size)
		goto bad;
	f->regions = r;
	f->nregions = n;
	return 0;
bad:
	return fail(err, VMM_EFORMAT, "%s: impossible RAM map", f->name);
}

static int snapopen_layers(struct snapfile *f, const struct snap_section *s, struct vmm_error *err)
{
	const uint8_t *p = s->data;
	struct snap_layer *l;
	size_t n = s->len, room;

	f->layers = calloc(SNAP_LAYERS_MAX, sizeof(*f->layers));
	if (!f->layers)
		return fail(err, VMM_ENOMEM, "%s: out of memory", f->name);
	while (n) {
		if (n < sizeof(l->head) || f->nlayers == SNAP_LAYERS_MAX)
			goto bad;
		l = &f->layers[f->nlayers++];
		l->fd = -1;
		memcpy(&l->head, p, sizeof(l->head));
		room = ((size_t)l->head.path_len + 7) & ~(size_t)7;
		p += sizeof(l->head);
		n -= sizeof(l->head);
		if (!l->head.path_len || l->head.path_len >= PATH_MAX || room > n ||
		    memchr(p, 0, l->head.path_len))
			goto bad;
		l->path = strndup((const char *)p, l->head.path_len);
		if (!l->path)
			return fail(err, VMM_ENOMEM, "%s: out of memory", f->name);
		p += room;
		n -= room;
	}
	if (f->nlayers)
		return 0;
bad:
	return fail(err, VMM_EFORMAT, "%s: malformed list of parents", f->name);
}

static int snapopen_header_sections(struct snapfile *f, struct vmm_error *err)
{
	struct snap_section *s;
	uint32_t n, i;
	int rc;

	rc = snapopen_list(f, "header", f->header_frame + sizeof(*f->header),
			   f->header_size - sizeof(*f->header) - SNAP_HASH_SIZE, &s, &n, err);
	if (rc)
		return rc;
	for (i = 0; i < n && !rc; i++) {
		if (strcmp(s[i].name, "ram") == 0 && s[i].version == 1) {
			rc = snapopen_ram(f, &s[i], err);
		} else if (strcmp(s[i].name, "layers") == 0 && s[i].version == 1) {
			rc = snapopen_layers(f, &s[i], err);
		} else if (strcmp(s[i].name, "about") == 0) {
			f->about = strndup(s[i].data, s[i].len);
			if (!f->about)
				rc = fail(err, VMM_ENOMEM, "%s: out of memory", f->name);
		} else if (s[i].flags & SNAP_MUST_UNDERSTAND) {
			rc = snapopen_not_understood(f, &s[i], err);
		}
	}
	free(s);
	if (rc)
		return rc;
	if (!f->nregions)
		return fail(err, VMM_EFORMAT, "%s: no RAM map", f->name);
	if (!f->nlayers != !(f->header->incompat & SNAP_INCOMPAT_LAYERS))
		return fail(err, VMM_EFORMAT, "%s: parents and feature bits disagree", f->name);
	if (!f->about)
		f->about = strdup("");
	return f->about ? 0 : fail(err, VMM_ENOMEM, "%s: out of memory", f->name);
}

/* Damaged, or something else altogether? */
static int snapopen_looks(const struct snapfile *f)
{
	struct snap_frame head;

	return snap_read_at(f->fd, f->name, &head, sizeof(head), 0, NULL) == 0 &&
	       head.magic == SNAP_MAGIC && !memcmp(head.tag, SNAP_TAG_HEADER, sizeof(head.tag));
}

/* The contract's part, which holds for every version, comes first. */
static int snapopen_header(struct snapfile *f, struct vmm_error *err)
{
	const struct snap_header *h;
	int rc;

	rc = snap_read_meta(f->fd, f->name, SNAP_TAG_HEADER, 0, f->size, SNAPOPEN_HEADER,
			    &f->header_frame, &f->header_size, err);
	if (rc == VMM_EFORMAT && !snapopen_looks(f))
		return fail(err, rc, "%s: not a snapshot", f->name);
	if (rc)
		return rc;
	f->header = h = (const struct snap_header *)f->header_frame;
	if (f->header_size < SNAP_META_MIN + 4)
		return fail(err, VMM_EFORMAT, "%s: header too short", f->name);
	if (h->major != SNAP_MAJOR)
		return fail(err, VMM_EVERSION, "%s: format %u.%u, this library reads %u.x",
			    f->name, h->major, h->minor, SNAP_MAJOR);
	if (f->header_size < sizeof(*h) + SNAP_HASH_SIZE)
		return fail(err, VMM_EFORMAT, "%s: header too short", f->name);
	if (h->incompat & ~SNAP_INCOMPAT_KNOWN)
		return fail(err, VMM_EVERSION, "%s: needs features 0x%llx unknown to this library",
			    f->name, (unsigned long long)(h->incompat & ~SNAP_INCOMPAT_KNOWN));
	if (h->machine != SNAP_MACHINE)
		return fail(err, VMM_EVERSION, "%s: a machine of architecture %u, not RISC-V (%u)",
			    f->name, h->machine, SNAP_MACHINE);
	if (h->page_size != SNAP_PAGE || h->chunk_size != SNAP_CHUNK)
		return fail(err, VMM_EVERSION, "%s: pages of %u and chunks of %u bytes", f->name,
			    h->page_size, h->chunk_size);
	if (!h->ram_size || h->ram_size % SNAP_PAGE || h->ram_size > SNAP_RAM_MAX)
		return fail(err, VMM_EFORMAT, "%s: impossible RAM size %llu", f->name,
			    (unsigned long long)h->ram_size);
	f->nchunks = (h->ram_size + SNAP_CHUNK - 1) / SNAP_CHUNK;
	return snapopen_header_sections(f, err);
}

/* ---- Footer ------------------------------------------------------------- */

/* Of this file, or of a layer's. */
static int snapopen_footer(int fd, const char *name, uint64_t size, struct snap_footer *t,
			   struct vmm_error *err)
{
	int rc;

	if (size < sizeof(*t))
		return fail(err, VMM_EFORMAT, "%s: too short for a snapshot", name);
	rc = snap_read_at(fd, name, t, sizeof(*t), size - sizeof(*t), err);
	if (rc)
		return rc;
	if (t->frame.magic != SNAP_MAGIC || t->frame.size != sizeof(*t) - 8 ||
	    memcmp(t->frame.tag, SNAP_TAG_FOOTER, sizeof(t->frame.tag)))
		return fail(err, VMM_EFORMAT, "%s: no footer at its end: cut short or damaged", name);
	if (t->hash != snap_hash(t, offsetof(struct snap_footer, hash)))
		return fail(err, VMM_EFORMAT, "%s: FOOTER at byte %llu is damaged", name,
			    (unsigned long long)(size - sizeof(*t)));
	if (t->file_size != size)
		return fail(err, VMM_EFORMAT, "%s: %llu bytes long, was written as %llu", name,
			    (unsigned long long)size, (unsigned long long)t->file_size);
	/* INDEX, WORKSET if there is one, its frames, and this. */
	if (t->index_off > size || t->index_size > size - t->index_off ||
	    t->ws_off > size || t->ws_size > size - t->ws_off ||
	    t->index_off + t->index_size != (t->ws_off ? t->ws_off : size - sizeof(*t)) ||
	    !t->ws_off != !t->ws_size || t->ws_off + t->ws_size > size - sizeof(*t))
		return fail(err, VMM_EFORMAT, "%s: impossible footer", name);
	return 0;
}

static uint64_t snapopen_hash_of(const uint8_t *frame, size_t size)
{
	uint64_t h;

	memcpy(&h, frame + size - SNAP_HASH_SIZE, SNAP_HASH_SIZE);
	return h;
}

static int snapopen_manifest(const struct snapfile *f, size_t index_size, struct vmm_error *err)
{
	const uint64_t hashes[3] = {
		snapopen_hash_of(f->header_frame, f->header_size),
		snapopen_hash_of(f->state_frame, f->state_size),
		snapopen_hash_of(f->index_frame, index_size),
	};
	uint8_t id[16];

	snap_manifest(hashes, id);
	if (!memcmp(id, f->footer.manifest, 16) && !memcmp(f->header->uuid, f->footer.uuid, 16))
		return 0;
	return fail(err, VMM_EFORMAT, "%s: header, state, index and footer are not of one file",
		    f->name);
}

/* ---- Index -------------------------------------------------------------- */

static int snapopen_entry_ok(const struct snapfile *f, const struct snap_entry *e)
{
	uint32_t len = snap_entry_len(e), kind = snap_entry_kind(e), layer = snap_entry_layer(e);
	uint64_t left;

	if (e->chunk >= f->nchunks || !e->live || (e->live & ~e->stored))
		return 0;
	left = (f->header->ram_size - (uint64_t)e->chunk * SNAP_CHUNK) / SNAP_PAGE;
	if (left < SNAP_CHUNK_PAGES && e->stored >> left)
		return 0;
	if (kind == SNAP_KIND_FILL)
		return !layer && !len && !e->check && !e->hash && e->stored == e->live;
	return kind == SNAP_KIND_FRAME && layer <= f->nlayers && len && len <= SNAP_FRAME_MAX;
}

static int snapopen_index(struct snapfile *f, size_t size, uint64_t *used, struct vmm_error *err)
{
	const struct snap_entry *e;
	uint32_t i, parts = 0;
	uint16_t live = 0;
	uint64_t n;

	size -= SNAP_META_MIN;
	n = size / sizeof(*e);
	if (size % sizeof(*e) || n > UINT32_MAX - 1)
		return fail(err, VMM_EFORMAT, "%s: malformed index", f->name);
	f->nentries = (uint32_t)n;
	f->entries = e = (const struct snap_entry *)(f->index_frame + sizeof(struct snap_frame));
	f->first = calloc(f->nchunks, sizeof(*f->first));
	if (!f->first)
		return fail(err, VMM_ENOMEM, "%s: out of memory for an index of %llu chunks",
			    f->name, (unsigned long long)f->nchunks);
	for (i = 0; i < f->nentries; i++, e++) {
		if (!snapopen_entry_ok(f, e) || (i && e->chunk < e[-1].chunk))
			goto bad;
		if (!i || e->chunk != e[-1].chunk) {
			f->first[e->chunk] = i + 1;
			parts = 0;
			live = 0;
		}
		if (++parts > SNAP_PARTS_MAX || (live & e->live))
			goto bad;
		live |= e->live;
		if (snap_entry_layer(e))
			*used |= 1ull << snap_entry_layer(e);
		if (snap_entry_kind(e) == SNAP_KIND_FRAME && !snap_entry_layer(e) &&
		    (e->off < f->groups_off || e->off > f->footer.index_off ||
		     snap_entry_len(e) > f->footer.index_off - e->off))
			goto bad;
	}
	return 0;
bad:
	return fail(err, VMM_EFORMAT, "%s: impossible descriptor %u in the index", f->name, i);
}

/* ---- Layers ------------------------------------------------------------- */

/* 0: it is the one; 1: it is not there; 2: it is not the one that was. */
static int snapopen_try(struct snap_layer *l, const char *path)
{
	struct snap_footer t;
	struct stat st;
	int fd;

	/* The path comes from the file: opening a device can do things. */
	if (stat(path, &st) < 0)
		return 1;
	if (!S_ISREG(st.st_mode))
		return 2;
	fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	if (fd < 0)
		return 1;
	if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) ||
	    snapopen_footer(fd, path, (uint64_t)st.st_size, &t, NULL) ||
	    memcmp(t.uuid, l->head.uuid, 16) || memcmp(t.manifest, l->head.manifest, 16)) {
		close(fd);
		return 2;
	}
	l->fd = fd;
	l->end = t.index_off;
	return 0;
}

/* Look where it was, then beside this file. */
static int snapopen_layer(struct snapfile *f, struct snap_layer *l, const char *dir,
			  struct vmm_error *err)
{
	const char *name = strrchr(l->path, '/');
	char *beside, *real;
	int r, r2 = 1, e;

	r = snapopen_try(l, l->real);
	e = errno;
	if (r && name && asprintf(&beside, "%s%s", dir, name) >= 0) {
		r2 = snapopen_try(l, beside);
		if (r2) {
			free(beside);
		} else {
			free(l->real);
			l->real = beside;
		}
	}
	if (!r || !r2) {
		/* Without the ".." that children would inherit. */
		real = realpath(l->real, NULL);
		if (real) {
			free(l->real);
			l->real = real;
		}
		return 0;
	}
	if (r == 2 || r2 == 2)
		return fail(err, VMM_EFORMAT, "%s: parent %s has changed", f->name, l->path);
	return fail_sys(err, e, "%s: parent %s is missing", f->name, l->path);
}

/* Those that are used; but of all, find out where they are. */
static int snapopen_open_layers(struct snapfile *f, uint64_t used, const char *dir,
				struct vmm_error *err)
{
	const struct snap_entry *e;
	uint32_t i, k;
	int rc, abs;

	for (i = 0; i < f->nlayers; i++) {
		struct snap_layer *l = &f->layers[i];

		abs = l->path[0] == '/';
		if (asprintf(&l->real, "%s%s%s", abs ? "" : dir, abs ? "" : "/", l->path) < 0) {
			l->real = NULL;
			return fail(err, VMM_ENOMEM, "%s: out of memory", f->name);
		}
		rc = used >> (i + 1) & 1 ? snapopen_layer(f, l, dir, err) : 0;
		if (rc)
			return rc;
	}
	for (i = 0, e = f->entries; i < f->nentries && used; i++, e++) {
		k = snap_entry_layer(e);
		if (k && (e->off > f->layers[k - 1].end ||
			  snap_entry_len(e) > f->layers[k - 1].end - e->off))
			return fail(err, VMM_EFORMAT, "%s: impossible descriptor %u in the index",
				    f->name, i);
	}
	return 0;
}

/* ---- Working set -------------------------------------------------------- */

static int snapopen_ws(struct snapfile *f, struct vmm_error *err)
{
	uint64_t off = f->footer.ws_off, pages = f->header->ram_size / SNAP_PAGE, last = 0;
	uint64_t end = f->size - sizeof(f->footer), exact;
	struct snap_ws_view *v = &f->ws;
	struct snap_ws_head h;
	uint32_t i, n = 0;
	size_t size;
	int rc;

	if (!off)
		return 0;
	rc = snap_read_meta(f->fd, f->name, SNAP_TAG_WORKSET, off, end, f->footer.ws_size,
			    &f->ws_frame, &size, err);
	if (rc)
		return rc;
	if (size != f->footer.ws_size || size < sizeof(h) + SNAP_HASH_SIZE)
		goto bad;
	memcpy(&h, f->ws_frame, sizeof(h));
	exact = sizeof(h) + SNAP_HASH_SIZE + sizeof(*v->pages) * (uint64_t)h.npages +
		sizeof(*v->frames) * (uint64_t)h.nframes;
	if (h.npages > pages || size < exact || size - exact >= SNAP_WS_ALIGN)
		goto bad;
	v->npages = h.npages;
	v->nframes = h.nframes;
	v->pages = (const uint64_t *)(f->ws_frame + sizeof(h));
	v->frames = (const struct snap_ws_frame *)(v->pages + v->npages);
	v->runs = calloc((size_t)v->nframes + 1, sizeof(*v->runs));
	if (!v->runs)
		return fail(err, VMM_ENOMEM, "%s: out of memory", f->name);
	for (i = 0; i < v->npages; i++) {
		if (v->pages[i] >> SNAP_WS_SHIFT >= pages ||
		    (i && v->pages[i] >> SNAP_WS_SHIFT <= v->pages[i - 1] >> SNAP_WS_SHIFT) ||
		    (v->pages[i] & ((1u << SNAP_WS_SHIFT) - 1) & ~(SNAP_WS_WRITE | SNAP_WS_ZERO)))
			goto bad;
		if (v->pages[i] & SNAP_WS_ZERO)
			continue;
		if (!n || !snap_ws_joins(last, v->pages[i], v->runs[n - 1].n)) {
			if (n == v->nframes)
				goto bad;
			v->runs[n++].page = v->pages[i] >> SNAP_WS_SHIFT;
		}
		v->runs[n - 1].n++;
		last = v->pages[i];
	}
	if (n != v->nframes)
		goto bad;
	for (i = 0, off += size; i < v->nframes; off += v->frames[i++].len)
		if (v->frames[i].off != off || !v->frames[i].len ||
		    v->frames[i].len > SNAP_FRAME_MAX || v->frames[i].len > end - off)
			goto bad;
	if (off == end)
		return 0;
bad:
	return fail(err, VMM_EFORMAT, "%s: malformed working set", f->name);
}

/* ---- Open --------------------------------------------------------------- */

/* All that fd has to give, into a memfd. */
static int snapopen_spool(int fd, const char *name, int *out, struct vmm_error *err)
{
	struct pollfd pfd = { .fd = fd, .events = POLLIN };
	const size_t cap = 1u << 20;
	uint8_t *buf = malloc(cap);
	size_t have = 0, done;
	uint64_t total = 0;
	ssize_t r = 1;
	int rc = 0;

	*out = memfd_create("vmm-snapshot", MFD_CLOEXEC);
	if (!buf || *out < 0) {
		rc = fail_sys(err, buf ? errno : ENOMEM, "%s: spool", name);
		goto out;
	}
	while (r) {
		r = read(fd, buf + have, cap - have);
		if (r < 0 && (errno == EINTR || errno == EAGAIN)) {
			poll(&pfd, 1, -1);
			continue;
		}
		if (r < 0) {
			rc = fail_sys(err, errno, "read %s", name);
			goto out;
		}
		have += (size_t)r;
		/* Do not drink up /dev/zero before looking at it. */
		if (!total && have >= sizeof(struct snap_frame) &&
		    memcmp(buf + offsetof(struct snap_frame, tag), SNAP_TAG_HEADER, 8)) {
			rc = fail(err, VMM_EFORMAT, "%s: not a snapshot", name);
			goto out;
		}
		if (r && have < cap)
			continue;
		for (done = 0; done < have; done += (size_t)r, total += (uint64_t)r) {
			r = pwrite(*out, buf + done, have - done, (off_t)total);
			if (r <= 0) {
				rc = fail_sys(err, errno, "%s: spool", name);
				goto out;
			}
		}
		r = have == cap;
		have = 0;
	}
out:
	free(buf);
	if (rc && *out >= 0)
		close(*out);
	return rc;
}

/* dir is absolute; takes fd. */
static int snapopen_open(struct snapfile **out, int fd, const char *name, const char *real,
			 const char *dir, int flags, struct vmm_error *err)
{
	struct snapfile *f = calloc(1, sizeof(*f));
	struct stat st;
	uint64_t used = 0;
	size_t size;
	int rc;

	*out = NULL;
	if (!f) {
		close(fd);
		return fail(err, VMM_ENOMEM, "%s: out of memory", name);
	}
	f->fd = fd;
	f->name = strdup(name);
	f->real = real ? strdup(real) : NULL;
	rc = VMM_ENOMEM;
	if (!f->name || (real && !f->real)) {
		fail(err, rc, "%s: out of memory", name);
		goto out;
	}
	rc = 0;
	if (fstat(fd, &st) < 0)
		rc = fail_sys(err, errno, "%s", name);
	f->size = rc ? 0 : (uint64_t)st.st_size;
	if (!rc)
		rc = snapopen_header(f, err);
	if (!rc)
		rc = snapopen_footer(fd, f->name, f->size, &f->footer, err);
	if (!rc)
		rc = snap_read_meta(fd, f->name, SNAP_TAG_STATE, f->header_size,
				    f->footer.index_off, SNAPOPEN_STATE, &f->state_frame,
				    &f->state_size, err);
	if (!rc) {
		f->groups_off = f->header_size + f->state_size;
		rc = snapopen_list(f, "state", f->state_frame + sizeof(struct snap_frame),
				   f->state_size - SNAP_META_MIN, &f->sections, &f->nsections, err);
	}
	if (!rc)
		rc = snap_read_meta(fd, f->name, SNAP_TAG_INDEX, f->footer.index_off,
				    f->footer.index_off + f->footer.index_size,
				    f->footer.index_size, &f->index_frame, &size, err);
	if (!rc && size != f->footer.index_size)
		rc = fail(err, VMM_EFORMAT, "%s: impossible footer", f->name);
	if (!rc)
		rc = snapopen_manifest(f, size, err);
	if (!rc)
		rc = snapopen_index(f, size, &used, err);
	if (!rc)
		rc = snapopen_ws(f, err);
	if (!rc)
		rc = snapopen_open_layers(f, flags & SNAP_OPEN_ALONE ? 0 : used, dir, err);
out:
	if (rc)
		snapfile_close(f);
	else
		*out = f;
	return rc;
}

int snapfile_open_fd(struct snapfile **out, int fd, const char *name, const char *dir, int flags,
		     struct vmm_error *err)
{
	struct stat st;
	char *abs;
	int own, rc;

	*out = NULL;
	if (fstat(fd, &st) < 0)
		return fail_sys(err, errno, "%s", name);
	abs = realpath(dir ? dir : ".", NULL);
	if (!abs)
		return fail_sys(err, errno, "%s: directory %s", name, dir ? dir : ".");
	if (S_ISREG(st.st_mode)) {
		own = fcntl(fd, F_DUPFD_CLOEXEC, 3);
		rc = own < 0 ? fail_sys(err, errno, "%s: descriptor %d", name, fd) : 0;
	} else {
		rc = snapopen_spool(fd, name, &own, err);
	}
	if (!rc)
		rc = snapopen_open(out, own, name, NULL, abs, flags, err);
	free(abs);
	return rc;
}

int snapfile_open(struct snapfile **out, const char *path, int flags, struct vmm_error *err)
{
	struct stat st;
	char *real, *dir, *slash;
	int fd, rc;

	*out = NULL;
	fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
	if (fd < 0)
		return fail_sys(err, errno, "open %s", path);
	if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode)) {
		rc = snapfile_open_fd(out, fd, path, NULL, flags, err);
		close(fd);
		return rc;
	}
	real = realpath(path, NULL);
	dir = real ? strdup(real) : NULL;
	if (!dir) {
		rc = fail_sys(err, errno, "open %s", path);
		close(fd);
		free(real);
		return rc;
	}
	slash = strrchr(dir, '/');
	*(slash == dir ? slash + 1 : slash) = 0;
	rc = snapopen_open(out, fd, path, real, dir, flags, err);
	free(dir);
	free(real);
	return rc;
}

void snapfile_close(struct snapfile *f)
{
	uint32_t i;

	if (!f)
		return;
	for (i = 0; i < f->nlayers; i++) {
		if (f->layers[i].fd >= 0)
			close(f->layers[i].fd);
		free(f->layers[i].path);
		free(f->layers[i].real);
	}
	close(f->fd);
	free(f->layers);
	free(f->sections);
	free(f->first);
	free(f->about);
	free(f->header_frame);
	free(f->state_frame);
	free(f->index_frame);
	free(f->ws_frame);
	free(f->ws.runs);
	free(f->real);
	free(f->name);
	free(f);
}
