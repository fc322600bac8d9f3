/* SPDX-License-Identifier: MIT */
/*
 * snapparts.c - the parts of a snapshot file as they are written: header,
 * state, groups, index, working set, footer (docs/snapshot-format.md).
 *
 * Whoever writes a file (snapwrite.c, snapmerge.c) puts the parts in order;
 * here each gets its bytes, its hash, and its place in the footer and in the
 * manifest.  The working set's frames are made here too, of raw blocks: it is
 * read whenever a machine is to start soon, and a copy is what decodes fastest
 * (docs/snapshot-format.md, 11).
 */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "snapfile.h"

static int snapparts_nomem(const struct snap_out *o, struct vmm_error *err)
{
	return fail(err, VMM_ENOMEM, "%s: out of memory", o->name);
}

/* ---- Metadata frames ---------------------------------------------------- */

static void snapparts_begin(struct snap_out *o, const char *tag)
{
	o->meta.len = 0;
	o->meta.failed = 0;
	put_u32(&o->meta, SNAP_MAGIC);
	put_u32(&o->meta, 0);
	put_bytes(&o->meta, tag, 8);
}

/* hash: where to keep it, or NULL. */
static int snapparts_end(struct snap_out *o, uint64_t *hash, struct vmm_error *err)
{
	struct writer *w = &o->meta;
	uint64_t h = 0;
	size_t total = w->len + SNAP_HASH_SIZE;
	uint32_t size = (uint32_t)(total - 8);

	if (total - 8 > UINT32_MAX)
		return fail(err, VMM_ENOTSUP, "%s: too much RAM or state for this format", o->name);
	if (!w->failed) {
		memcpy(w->data + offsetof(struct snap_frame, size), &size, sizeof(size));
		h = snap_hash(w->data, w->len);
		put_u64(w, h);
	}
	if (w->failed)
		return snapparts_nomem(o, err);
	if (hash)
		*hash = h;
	return snap_out_put(o, w->data, w->len, err);
}

static void snapparts_pad(struct writer *w, size_t n)
{
	put_bytes(w, (const char[8]){ 0 }, (8 - n % 8) % 8);
}

static void snapparts_section(struct writer *w, const char *name, uint16_t version,
			      uint16_t flags, const void *data, size_t len)
{
	struct snap_section_head h = { .version = version, .flags = flags, .len = (uint32_t)len };

	snprintf(h.name, sizeof(h.name), "%s", name);
	put_bytes(w, &h, sizeof(h));
	put_bytes(w, data, len);
	snapparts_pad(w, len);
}

/* ---- Header and state --------------------------------------------------- */

/* The path of the absolute file seen from the absolute directory dir. */
static char *snapparts_relative(const char *dir, const char *file)
{
	size_t i, common = 0, ups = 0;
	char *out, *p;

	if (!dir)
		return strdup(file);
	for (i = 0; dir[i] && dir[i] == file[i]; i++)
		if (dir[i] == '/')
			common = i + 1;
	/* All of dir, and a whole name. */
	if (!dir[i] && file[i] == '/')
		common = i + 1;
	for (i = common; i < strlen(dir); i++)
		ups += i == common || dir[i - 1] == '/';
	p = out = malloc(3 * ups + strlen(file + common) + 1);
	if (!out)
		return NULL;
	while (ups--)
		p = stpcpy(p, "../");
	strcpy(p, file + common);
	return out;
}

static int snapparts_layer(struct snap_out *o, struct writer *w, const uint8_t *uuid,
			   const uint8_t *manifest, const char *file, struct vmm_error *err)
{
	struct snap_layer_head h = { .zero32 = 0 };
	char *path = snapparts_relative(o->dir, file);

	if (!path)
		return snapparts_nomem(o, err);
	if (strlen(path) >= PATH_MAX) {
		free(path);
		return fail(err, VMM_EINVAL, "%s: parent %s: path too long", o->name, file);
	}
	memcpy(h.uuid, uuid, 16);
	memcpy(h.manifest, manifest, 16);
	h.path_len = (uint32_t)strlen(path);
	put_bytes(w, &h, sizeof(h));
	put_bytes(w, path, h.path_len);
	snapparts_pad(w, h.path_len);
	free(path);
	return 0;
}

/* The parent, and what it stands on. */
static int snapparts_layers(struct snap_out *o, const struct snapfile *parent,
			    struct vmm_error *err)
{
	struct writer w = { 0 };
	const struct snap_layer *l;
	uint32_t i;
	int rc;

	rc = snapparts_layer(o, &w, parent->footer.uuid, parent->footer.manifest, parent->real, err);
	for (i = 0; i < parent->nlayers && !rc; i++) {
		l = &parent->layers[i];
		rc = snapparts_layer(o, &w, l->head.uuid, l->head.manifest, l->real, err);
	}
	if (!rc && w.failed)
		rc = snapparts_nomem(o, err);
	if (!rc)
		snapparts_section(&o->meta, "layers", 1, SNAP_MUST_UNDERSTAND, w.data, w.len);
	free(w.data);
	return rc;
}

static int snapparts_check(const struct snap_out *o, const struct snap_image *image,
			   const struct snapfile *parent, struct vmm_error *err)
{
	const struct snap_section *s = image->sections;
	uint64_t sum = 0, size = image->ram.size;
	uint32_t i, j;

	for (i = 0; i < image->nregions; i++)
		sum += image->regions[i].size;
	if (!size || size % SNAP_PAGE || size > SNAP_RAM_MAX || sum != size ||
	    image->nregions > SNAP_REGIONS_MAX)
		return fail(err, VMM_EINVAL, "%s: RAM map of %llu bytes for %llu bytes of RAM",
			    o->name, (unsigned long long)sum, (unsigned long long)size);
	if (image->nsections > SNAP_SECTIONS_MAX)
		return fail(err, VMM_EINVAL, "%s: %u sections", o->name, image->nsections);
	for (i = 0; i < image->nsections; i++) {
		if (!*s[i].name || strlen(s[i].name) >= SNAP_NAME_MAX || s[i].len > UINT32_MAX)
			return fail(err, VMM_EINVAL, "%s: section %.64s: its name or size", o->name,
				    s[i].name);
		for (j = 0; j < i; j++)
			if (strcmp(s[i].name, s[j].name) == 0)
				return fail(err, VMM_EINVAL, "%s: section %s twice", o->name,
					    s[i].name);
	}
	if (!parent)
		return 0;
	if (!parent->real)
		return fail(err, VMM_EINVAL, "%s: its parent %s is no file", o->name, parent->name);
	if (parent->header->ram_size != size)
		return fail(err, VMM_EINVAL, "%s: %llu bytes of RAM, its parent %s has %llu",
			    o->name, (unsigned long long)size, parent->name,
			    (unsigned long long)parent->header->ram_size);
	if (parent->nlayers == SNAP_LAYERS_MAX)
		return fail(err, VMM_ENOTSUP, "%s: its parent %s stands on %u files: merge it first",
			    o->name, parent->name, parent->nlayers);
	return 0;
}

int snap_put_head(struct snap_out *o, const struct snap_image *image,
		  const struct snapfile *parent, struct vmm_error *err)
{
	const uint8_t zero[16] = { 0 };
	struct snap_header h = {
		.major = SNAP_MAJOR,
		.minor = SNAP_MINOR,
		.machine = SNAP_MACHINE,
		.incompat = parent ? SNAP_INCOMPAT_LAYERS : 0,
		.page_size = SNAP_PAGE,
		.chunk_size = SNAP_CHUNK,
		.ram_size = image->ram.size,
		.created = image->created,
	};
	const struct snap_section *s = image->sections;
	uint32_t i;
	int rc;

	rc = snapparts_check(o, image, parent, err);
	if (rc)
		return rc;
	memcpy(h.uuid, image->uuid, 16);
	if (!memcmp(h.uuid, zero, 16) && getrandom(h.uuid, 16, 0) != 16)
		return fail(err, VMM_ESYS, "%s: no random numbers for its uuid", o->name);
	memcpy(o->footer.uuid, h.uuid, 16);

	snapparts_begin(o, SNAP_TAG_HEADER);
	put_bytes(&o->meta, (const uint8_t *)&h + sizeof(h.frame), sizeof(h) - sizeof(h.frame));
	snapparts_section(&o->meta, "ram", 1, SNAP_MUST_UNDERSTAND, image->regions,
			  image->nregions * sizeof(*image->regions));
	if (parent)
		rc = snapparts_layers(o, parent, err);
	if (image->about)
		snapparts_section(&o->meta, "about", 1, 0, image->about, strlen(image->about));
	if (!rc)
		rc = snapparts_end(o, &o->hashes[0], err);
	if (rc)
		return rc;

	snapparts_begin(o, SNAP_TAG_STATE);
	for (i = 0; i < image->nsections; i++, s++)
		snapparts_section(&o->meta, s->name, s->version, s->flags, s->data, s->len);
	return snapparts_end(o, &o->hashes[1], err);
}

/* ---- Groups and index --------------------------------------------------- */

uint64_t snap_group_base(const struct snap_out *o, uint32_t n)
{
	return o->off + SNAP_META_MIN + n * sizeof(struct snap_entry);
}

int snap_put_group(struct snap_out *o, const struct snap_entry *entries, uint32_t n,
		   const void *frames, size_t len, struct vmm_error *err)
{
	int rc;

	snapparts_begin(o, SNAP_TAG_GROUP);
	put_bytes(&o->meta, entries, n * sizeof(*entries));
	rc = snapparts_end(o, NULL, err);
	return rc ? rc : snap_out_put(o, frames, len, err);
}

int snap_put_index(struct snap_out *o, const struct snap_entry *entries, uint32_t n,
		   struct vmm_error *err)
{
	int rc;

	o->footer.index_off = o->off;
	snapparts_begin(o, SNAP_TAG_INDEX);
	put_bytes(&o->meta, entries, n * sizeof(*entries));
	rc = snapparts_end(o, &o->hashes[2], err);
	o->footer.index_size = o->off - o->footer.index_off;
	snap_manifest(o->hashes, o->footer.manifest);
	return rc;
}

int snap_put_footer(struct snap_out *o, struct vmm_error *err)
{
	struct snap_footer *t = &o->footer;

	t->file_size = o->off + sizeof(*t);
	snapparts_begin(o, SNAP_TAG_FOOTER);
	put_bytes(&o->meta, (const uint8_t *)t + sizeof(t->frame),
		  sizeof(*t) - sizeof(t->frame) - sizeof(t->hash));
	return snapparts_end(o, NULL, err);
}

/* ---- Working set -------------------------------------------------------- */

int snap_ws_tidy(const uint64_t *ws, uint32_t nws, uint64_t ram_pages, uint64_t **out,
		 uint32_t *n, struct vmm_error *err)
{
	size_t words = (size_t)(ram_pages + 63) / 64, k;
	uint64_t *seen = calloc(words, 8), *written = calloc(words, 8), page, bit, bits;
	uint32_t i, left = SNAP_WS_PAGES;
	int rc = 0;

	*n = 0;
	*out = malloc((nws + 1) * sizeof(**out));
	if (!seen || !written || !*out) {
		rc = fail(err, VMM_ENOMEM, "out of memory for the working set");
		goto out;
	}
	for (i = 0; i < nws; i++) {
		page = ws[i] >> SNAP_WS_SHIFT;
		bit = 1ull << page % 64;
		if (page >= ram_pages)
			continue;
		if (!(seen[page / 64] & bit) && left) {
			seen[page / 64] |= bit;
			left--;
		}
		if (ws[i] & SNAP_WS_WRITE)
			written[page / 64] |= bit;
	}
	for (k = 0; k < words; k++)
		for (bits = seen[k]; bits; bits &= bits - 1) {
			page = k * 64 + (uint64_t)__builtin_ctzll(bits);
			(*out)[(*n)++] = page << SNAP_WS_SHIFT | (written[k] >> page % 64 & 1);
		}
out:
	free(seen);
	free(written);
	if (rc) {
		free(*out);
		*out = NULL;
	}
	return rc;
}

int snap_put_ws(struct snap_out *o, const uint64_t *ws, uint32_t nws, const uint8_t *plain,
		struct vmm_error *err)
{
	struct snap_ws_frame *frame = calloc((size_t)nws + 1, sizeof(*frame)), *f = frame;
	uint64_t *list = malloc(((size_t)nws + 1) * sizeof(*list)), last = 0;
	uint8_t *out = malloc((size_t)nws * (SNAP_PAGE + SNAP_RAW_HEAD) + 1), *p = out;
	size_t size, pad, n;
	uint32_t i, nframes = 0;
	int rc;

	if (!frame || !list || !out) {
		rc = snapparts_nomem(o, err);
		goto out;
	}
	/* A page that has no neighbour in the frame so far begins another. */
	for (i = 0; i < nws; i++, plain += SNAP_PAGE) {
		list[i] = ws[i];
		if (snap_is_zero(plain)) {
			list[i] |= SNAP_WS_ZERO;
			continue;
		}
		if (!nframes || !snap_ws_joins(last, ws[i], f->len / SNAP_PAGE)) {
			f = &frame[nframes++];
			f->off = (uint64_t)(p - out);
			f->len = SNAP_RAW_HEAD;
			p += SNAP_RAW_HEAD;
		}
		memcpy(p, plain, SNAP_PAGE);
		p += SNAP_PAGE;
		f->len += SNAP_PAGE;
		last = ws[i];
	}
	size = sizeof(struct snap_ws_head) + nws * sizeof(*list) + nframes * sizeof(*frame) +
	       SNAP_HASH_SIZE;
	pad = -(o->off + size) % SNAP_WS_ALIGN;
	o->footer.ws_off = o->off;
	o->footer.ws_size = size + pad;
	for (f = frame; f < frame + nframes; f++) {
		n = f->len - SNAP_RAW_HEAD;
		snap_raw_head(out + f->off, n);
		f->hash = snap_hash(out + f->off + SNAP_RAW_HEAD, n);
		f->check = (uint32_t)snap_hash(out + f->off, f->len);
		f->off += o->off + o->footer.ws_size;
	}
	snapparts_begin(o, SNAP_TAG_WORKSET);
	put_u32(&o->meta, nws);
	put_u32(&o->meta, nframes);
	put_bytes(&o->meta, list, nws * sizeof(*list));
	put_bytes(&o->meta, frame, nframes * sizeof(*frame));
	put_bytes(&o->meta, (const uint8_t[SNAP_WS_ALIGN]){ 0 }, pad);
	rc = snapparts_end(o, NULL, err);
	if (!rc)
		rc = snap_out_put(o, out, (size_t)(p - out), err);
out:
	free(frame);
	free(list);
	free(out);
	return rc;
}
