/* SPDX-License-Identifier: MIT */
/*
 * snapread.c - read from an open snapshot file: hashes, frames, chunks.
 *
 * The file is read with pread() and never mapped: if somebody cuts it short
 * while it is in use that is an error of that read, not a SIGBUS.  Frames are
 * checked each time they are read, before they are decompressed and after.
 * That an entry lies within its file, and what it describes within RAM, has
 * been checked when the file was opened (snapopen.c).
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>
#include <zstd.h>

#include "snapfile.h"

/* ---- Bytes and hashes --------------------------------------------------- */

uint64_t snap_hash(const void *p, size_t n)
{
	return XXH64(p, n, 0);
}

void snap_manifest(const uint64_t hashes[3], uint8_t id[16])
{
	uint64_t h[2] = { XXH64(hashes, 24, 0), XXH64(hashes, 24, 1) };

	memcpy(id, h, 16);
}

int snap_read_at(int fd, const char *name, void *buf, size_t n, uint64_t off, struct vmm_error *err)
{
	uint8_t *b = buf;
	size_t done = 0;
	ssize_t r;

	while (done < n) {
		r = pread(fd, b + done, n - done, (off_t)(off + done));
		if (r < 0 && errno == EINTR)
			continue;
		if (r < 0)
			return fail_sys(err, errno, "read %s", name);
		if (r == 0)
			return fail(err, VMM_EFORMAT, "%s: cut short at byte %llu", name,
				    (unsigned long long)(off + done));
		done += (size_t)r;
	}
	return 0;
}

/* Most are read at once: guess is how long it may be. */
int snap_read_meta(int fd, const char *name, const char *tag, uint64_t off, uint64_t end,
		   size_t guess, uint8_t **frame, size_t *size, struct vmm_error *err)
{
	struct snap_frame head;
	uint64_t total, hash;
	uint8_t *p, *more;
	int rc;

	if (off > end || end - off < SNAP_META_MIN)
		return fail(err, VMM_EFORMAT, "%s: no room for %s at byte %llu", name, tag,
			    (unsigned long long)off);
	if (guess < SNAP_META_MIN)
		guess = SNAP_META_MIN;
	if (guess > end - off)
		guess = end - off;
	p = malloc(guess);
	if (!p)
		return fail(err, VMM_ENOMEM, "%s: out of memory for %s", name, tag);
	rc = snap_read_at(fd, name, p, guess, off, err);
	if (rc)
		goto out;
	memcpy(&head, p, sizeof(head));
	total = (uint64_t)head.size + 8;
	if (head.magic != SNAP_MAGIC || memcmp(head.tag, tag, sizeof(head.tag)) ||
	    total < SNAP_META_MIN || total > end - off) {
		rc = fail(err, VMM_EFORMAT, "%s: no %s at byte %llu", name, tag,
			  (unsigned long long)off);
		goto out;
	}
	if (total > guess) {
		more = realloc(p, total);
		if (!more) {
			rc = fail(err, VMM_ENOMEM, "%s: out of memory for %s", name, tag);
			goto out;
		}
		p = more;
		rc = snap_read_at(fd, name, p + guess, total - guess, off + guess, err);
		if (rc)
			goto out;
	}
	memcpy(&hash, p + total - SNAP_HASH_SIZE, SNAP_HASH_SIZE);
	if (hash != snap_hash(p, total - SNAP_HASH_SIZE))
		rc = fail(err, VMM_EFORMAT, "%s: %s at byte %llu is damaged", name, tag,
			  (unsigned long long)off);
out:
	if (rc) {
		free(p);
		return rc;
	}
	*frame = p;
	*size = total;
	return 0;
}

/* ---- Decode ------------------------------------------------------------- */

int snap_decoder_init(struct snap_decoder *d, struct vmm_error *err)
{
	d->zstd = ZSTD_createDCtx();
	/* What follows the head of a raw block is aligned: hashes of such bytes
	   cost a fifth where loads must be, as on RISC-V. */
	d->frame = malloc(SNAP_FRAME_MAX);
	d->plain = malloc(SNAP_CHUNK);
	if (d->zstd && d->frame && d->plain)
		return 0;
	snap_decoder_fini(d);
	return fail(err, VMM_ENOMEM, "out of memory for a decoder");
}

void snap_decoder_fini(struct snap_decoder *d)
{
	ZSTD_freeDCtx(d->zstd);
	free(d->frame);
	free(d->plain);
	memset(d, 0, sizeof(*d));
}

uint64_t snapfile_gpa(const struct snapfile *f, uint64_t off)
{
	uint32_t i;

	for (i = 0; i + 1 < f->nregions && off >= f->regions[i].size; i++)
		off -= f->regions[i].size;
	return f->regions[i].gpa + off;
}

#define SNAPREAD_NO_CHUNK	UINT32_MAX	/* a frame of the working set */

static int snapread_damaged(const struct snapfile *f, const struct snap_entry *e, const char *how,
			    struct vmm_error *err)
{
	uint32_t layer = snap_entry_layer(e);
	const char *file = layer ? f->layers[layer - 1].path : f->name;

	if (e->chunk == SNAPREAD_NO_CHUNK)
		return fail(err, VMM_EFORMAT, "%s: working set frame at byte %llu is damaged (%s)",
			    file, (unsigned long long)e->off, how);
	return fail(err, VMM_EFORMAT, "%s: frame at byte %llu is damaged (%s): RAM at 0x%llx", file,
		    (unsigned long long)e->off, how,
		    (unsigned long long)snapfile_gpa(f, (uint64_t)e->chunk * SNAP_CHUNK));
}

static int snapread_check(const struct snapfile *f, const struct snap_entry *e, const void *frame,
			  struct vmm_error *err)
{
	if ((uint32_t)snap_hash(frame, snap_entry_len(e)) == e->check)
		return 0;
	return snapread_damaged(f, e, "check", err);
}

static int snapread_frame(const struct snapfile *f, struct snap_decoder *d,
			  const struct snap_entry *e, struct vmm_error *err)
{
	uint32_t layer = snap_entry_layer(e);
	const char *name = layer ? f->layers[layer - 1].path : f->name;
	int fd = layer ? f->layers[layer - 1].fd : f->fd;

	if (fd < 0)
		return fail(err, VMM_ESTATE, "%s: opened without parent %s", f->name, name);
	return snap_read_at(fd, name, d->frame, snap_entry_len(e), e->off, err);
}

int snap_read_frame(const struct snapfile *f, struct snap_decoder *d, const struct snap_entry *e,
		    struct vmm_error *err)
{
	int rc = snapread_frame(f, d, e, err);

	return rc ? rc : snapread_check(f, e, d->frame, err);
}

void snap_raw_head(uint8_t head[SNAP_RAW_HEAD], size_t n)
{
	const uint64_t size = n;
	const uint32_t block = (uint32_t)n << 3 | 1;

	/* RFC 8878: magic number; single segment, 8-byte content size; the
	   last block, raw. */
	memcpy(head, (const uint8_t[5]){ 0x28, 0xb5, 0x2f, 0xfd, 0xe0 }, 5);
	memcpy(head + 5, &size, 8);
	memcpy(head + 13, &block, 3);
}

int snap_unpack(const struct snapfile *f, struct snap_decoder *d, const struct snap_entry *e,
		uint8_t *dst, const uint8_t **plain, struct vmm_error *err)
{
	size_t n = (size_t)__builtin_popcount(e->stored) * SNAP_PAGE, i, got;
	uint8_t head[SNAP_RAW_HEAD];
	int rc;

	*plain = dst;
	if (snap_entry_kind(e) == SNAP_KIND_FILL) {
		for (i = 0; i < n; i += sizeof(e->off))
			memcpy(dst + i, &e->off, sizeof(e->off));
		return 0;
	}
	rc = snapread_frame(f, d, e, err);
	if (rc)
		return rc;
	/* A raw block is used where it is.  Its head is compared, the rest is
	   what is hashed below: the check would say nothing more. */
	snap_raw_head(head, n);
	if (snap_entry_len(e) == n + SNAP_RAW_HEAD && !memcmp(d->frame, head, SNAP_RAW_HEAD)) {
		*plain = d->frame + SNAP_RAW_HEAD;
	} else {
		rc = snapread_check(f, e, d->frame, err);
		if (rc)
			return rc;
		/* One frame, of the format that the head is of: libzstd may know
		   others, older than it. */
		if (memcmp(d->frame, head, 4) ||
		    ZSTD_getFrameContentSize(d->frame, snap_entry_len(e)) != n ||
		    ZSTD_findFrameCompressedSize(d->frame, snap_entry_len(e)) != snap_entry_len(e))
			return snapread_damaged(f, e, "frame", err);
		got = ZSTD_decompressDCtx(d->zstd, dst, n, d->frame, snap_entry_len(e));
		if (ZSTD_isError(got))
			return snapread_damaged(f, e, ZSTD_getErrorName(got), err);
	}
	if (snap_hash(*plain, n) != e->hash)
		return snapread_damaged(f, e, "hash", err);
	return 0;
}

const struct snap_entry *snapfile_chunk(const struct snapfile *f, uint64_t chunk, uint32_t *n)
{
	uint32_t i;

	*n = 0;
	if (chunk >= f->nchunks || !f->first[chunk])
		return NULL;
	for (i = f->first[chunk] - 1; i + *n < f->nentries && f->entries[i + *n].chunk == chunk;)
		++*n;
	return &f->entries[i];
}

int snapfile_decode(const struct snapfile *f, struct snap_decoder *d, uint64_t chunk, void *dst,
		    struct vmm_error *err)
{
	const struct snap_entry *e;
	const uint8_t *plain;
	uint32_t n, i, page, slot;
	uint8_t *out = dst;
	int rc, whole;

	e = snapfile_chunk(f, chunk, &n);
	whole = n == 1 && e->live == 0xffff;
	if (!whole)
		memset(out, 0, SNAP_CHUNK);
	for (i = 0; i < n; i++, e++) {
		rc = snap_unpack(f, d, e, whole ? out : d->plain, &plain, err);
		if (rc)
			return rc;
		if (plain == out)
			break;
		for (page = 0, slot = 0; page < SNAP_CHUNK_PAGES; page++) {
			if (e->live >> page & 1)
				memcpy(out + page * SNAP_PAGE, plain + slot * SNAP_PAGE, SNAP_PAGE);
			slot += e->stored >> page & 1;
		}
	}
	return 0;
}

int snapfile_decode_ws(const struct snapfile *f, struct snap_decoder *d, uint32_t frame,
		       const uint8_t **plain, struct vmm_error *err)
{
	const struct snap_ws_frame *w = &f->ws.frames[frame];
	struct snap_entry e = {
		.chunk = SNAPREAD_NO_CHUNK,
		.where = snap_where(0, SNAP_KIND_FRAME, w->len),
		.check = w->check,
		.off = w->off,
		.hash = w->hash,
		.stored = (uint16_t)((1u << f->ws.runs[frame].n) - 1),
	};

	return snap_unpack(f, d, &e, d->plain, plain, err);
}
