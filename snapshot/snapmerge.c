/* SPDX-License-Identifier: MIT */
/*
 * snapmerge.c - rewrite snapshot files without compressing RAM again.
 *
 * Merge flattens a chain: every frame that the index names, in whatever layer,
 * is copied to one new file.  It is read and checked on the way rather than
 * copied by the kernel: the parents are likely to be deleted next, and a
 * damaged frame should be named while they can still be asked.  The result is
 * another snapshot, with a uuid of its own.
 *
 * Learn gives a file a working set.  All that identifies a snapshot lies before
 * it, and is copied as it is (by the kernel, which may share the blocks), so
 * that children of the file stay its children.
 *
 * Both write as all writers do (snapout.c): the new file or the old one.
 */
#include <stdlib.h>
#include <string.h>

#include "snapfile.h"

#define SNAPMERGE_GROUP		128u	/* descriptors: about as a writer's groups */

_Static_assert(SNAPMERGE_GROUP <= SNAP_GROUP_MAX, "a group");

/* Copy the frames in the order of the index, each at its first mention. */
static int snapmerge_groups(struct snap_out *o, const struct snapfile *f, const uint32_t *owner,
			    struct snap_entry *entries, const struct snap_how *how,
			    struct vmm_error *err)
{
	uint8_t *buf = malloc((size_t)SNAPMERGE_GROUP * SNAP_FRAME_MAX);
	struct snap_decoder d = { 0 };
	uint32_t i, k, n, len;
	uint64_t base;
	size_t total;
	int rc;

	rc = buf ? snap_decoder_init(&d, err) : fail(err, VMM_ENOMEM, "%s: out of memory", o->name);
	for (i = 0; i < f->nentries && !rc; i += n) {
		n = f->nentries - i < SNAPMERGE_GROUP ? f->nentries - i : SNAPMERGE_GROUP;
		base = snap_group_base(o, n);
		total = 0;
		for (k = i; k < i + n && !rc; k++) {
			struct snap_entry *e = &entries[k];

			*e = f->entries[k];
			if (snap_entry_kind(e) == SNAP_KIND_FILL)
				continue;
			len = snap_entry_len(e);
			e->where = snap_where(0, SNAP_KIND_FRAME, len);
			if (owner[k] != k) {
				e->off = entries[owner[k]].off;
				continue;
			}
			rc = snap_read_frame(f, &d, &f->entries[k], err);
			memcpy(buf + total, d.frame, len);
			e->off = base + total;
			total += len;
		}
		if (!rc)
			rc = snap_put_group(o, entries + i, n, buf, total, err);
		if (!rc && how && how->progress && how->progress(how->arg, i + n, f->nentries))
			rc = fail(err, VMM_ESTATE, "%s: writing was stopped", o->name);
	}
	snap_decoder_fini(&d);
	free(buf);
	return rc;
}

/* The n pages of the list, which is by address, out of the RAM of f. */
static int snapmerge_pages(const struct snapfile *f, const uint64_t *list, uint32_t n,
			   uint8_t *plain, struct vmm_error *err)
{
	uint8_t *chunk = malloc(SNAP_CHUNK);
	struct snap_decoder d = { 0 };
	uint64_t have = UINT64_MAX, page;
	uint32_t i;
	int rc;

	rc = chunk ? snap_decoder_init(&d, err) : fail(err, VMM_ENOMEM, "%s: out of memory", f->name);
	for (i = 0; i < n && !rc; i++) {
		page = list[i] >> SNAP_WS_SHIFT;
		if (page / SNAP_CHUNK_PAGES != have) {
			have = page / SNAP_CHUNK_PAGES;
			rc = snapfile_decode(f, &d, have, chunk, err);
		}
		memcpy(plain + (size_t)i * SNAP_PAGE, chunk + page % SNAP_CHUNK_PAGES * SNAP_PAGE,
		       SNAP_PAGE);
	}
	snap_decoder_fini(&d);
	free(chunk);
	return rc;
}

static int snapmerge_ws(struct snap_out *o, const struct snapfile *f, const uint64_t *ws,
			uint32_t nws, struct vmm_error *err)
{
	uint8_t *plain = NULL;
	uint64_t *list;
	uint32_t n;
	int rc = snap_ws_tidy(ws, nws, f->header->ram_size / SNAP_PAGE, &list, &n, err);

	if (!rc && n) {
		plain = malloc((size_t)n * SNAP_PAGE);
		rc = plain ? snapmerge_pages(f, list, n, plain, err)
			   : fail(err, VMM_ENOMEM, "%s: out of memory", o->name);
		if (!rc)
			rc = snap_put_ws(o, list, n, plain, err);
	}
	free(list);
	free(plain);
	return rc;
}

static int snapmerge_all(struct snap_out *o, const struct snapfile *f, const struct snap_how *how,
			 struct vmm_error *err)
{
	const struct snap_image image = {
		.created = f->header->created,
		.regions = f->regions,
		.nregions = f->nregions,
		.about = f->about,
		.sections = f->sections,
		.nsections = f->nsections,
		.ram = { .size = f->header->ram_size, .fd = -1 },
	};
	struct snap_entry *entries = malloc(((size_t)f->nentries + 1) * sizeof(*entries));
	uint32_t *owner = malloc(((size_t)f->nentries + 1) * sizeof(*owner));
	uint32_t *order = snap_order(f, err), i, first = 0;
	int rc = 0;

	if (!entries || !owner || !order)
		rc = fail(err, VMM_ENOMEM, "%s: out of memory", o->name);
	/* In this order those that mean one frame follow each other, and the
	   first of them is the first in the index. */
	for (i = 0; i < f->nentries && !rc; i++) {
		if (!i || !snap_same_frame(&f->entries[order[i]], &f->entries[first]))
			first = order[i];
		owner[order[i]] = first;
	}
	if (!rc)
		rc = snap_put_head(o, &image, NULL, err);
	if (!rc)
		rc = snapmerge_groups(o, f, owner, entries, how, err);
	if (!rc)
		rc = snap_put_index(o, entries, f->nentries, err);
	if (!rc)
		rc = snapmerge_ws(o, f, f->ws.pages, f->ws.npages, err);
	if (!rc)
		rc = snap_put_footer(o, err);
	free(entries);
	free(owner);
	free(order);
	return rc;
}

int snapfile_merge(const struct snapfile *f, const char *path, const struct snap_how *how,
		   struct vmm_error *err)
{
	struct snap_out o;
	int rc = snap_out_file(&o, path, err);

	return rc ? rc : snap_out_end(&o, snapmerge_all(&o, f, how, err), err);
}

/* ---- Learn -------------------------------------------------------------- */

static int snapmerge_learn(struct snap_out *o, const struct snapfile *f, const uint64_t *ws,
			   uint32_t nws, struct vmm_error *err)
{
	int rc;

	o->footer = f->footer;
	o->footer.ws_off = o->footer.ws_size = 0;
	rc = snap_out_copy(o, f, f->footer.index_off + f->footer.index_size, err);
	if (!rc)
		rc = snapmerge_ws(o, f, ws, nws, err);
	if (!rc)
		rc = snap_put_footer(o, err);
	return rc;
}

int snapfile_learn(const struct snapfile *f, const char *path, const uint64_t *ws, uint32_t nws,
		   struct vmm_error *err)
{
	struct snap_out o;
	int rc = snap_out_file(&o, path, err);

	return rc ? rc : snap_out_end(&o, snapmerge_learn(&o, f, ws, nws, err), err);
}
