/* SPDX-License-Identifier: MIT */
/*
 * fuzz_snapshot.c - any bytes as a snapshot file: opened, listed, decoded,
 * verified, merged.
 *
 * No mutation would ever get past the hashes.  So they are made right first,
 * those of metadata and the checks of frames, wherever the bytes still look
 * like a snapshot; an odd last byte leaves them as they are.  What remains
 * wrong is everything else, and decompression meets damaged frames.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <xxhash.h>

#include "../../snapshot/snapfile.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* The size of the metadata frame at off if it is one and lies within n. */
static size_t frame_at(const uint8_t *p, size_t n, size_t off)
{
	struct snap_frame h;

	if (off > n || n - off < SNAP_META_MIN)
		return 0;
	memcpy(&h, p + off, sizeof(h));
	if (h.size < SNAP_META_MIN - 8 || h.size > n - off - 8)
		return 0;
	return (size_t)h.size + 8;
}

static size_t rehash(uint8_t *p, size_t n, size_t off)
{
	size_t len = frame_at(p, n, off);
	uint64_t h;

	if (!len)
		return 0;
	h = XXH64(p + off, len - 8, 0);
	memcpy(p + off + len - 8, &h, 8);
	return len;
}

/* The checks in the descriptors of a frame; the bytes of the frames after it. */
static size_t recheck(uint8_t *p, size_t n, size_t off)
{
	size_t len = frame_at(p, n, off), sum = off + len, i;
	struct snap_entry e;

	for (i = off + 16; len && i + sizeof(e) + 8 <= off + len; i += sizeof(e)) {
		memcpy(&e, p + i, sizeof(e));
		if (e.where >> 20 || e.off > n || snap_entry_len(&e) > n - e.off)
			continue;
		e.check = (uint32_t)XXH64(p + e.off, snap_entry_len(&e), 0);
		memcpy(p + i, &e, sizeof(e));
		if (e.off == sum)
			sum += snap_entry_len(&e);
	}
	return sum - off;
}

static void repair(uint8_t *p, size_t n)
{
	size_t state, groups, off, len, k;
	uint64_t h[3] = { 0, 0, 0 }, id[2];
	struct snap_footer t;

	if (n < sizeof(t) + sizeof(struct snap_header))
		return;
	memcpy(&t, p + n - sizeof(t), sizeof(t));
	state = rehash(p, n, 0);
	groups = state + rehash(p, n, state);
	for (off = groups, k = 0; off < t.index_off && k < 100; off += len, k++) {
		len = recheck(p, n, off);
		if (!rehash(p, n, off))
			break;
	}
	recheck(p, n, t.index_off);
	len = rehash(p, n, t.index_off);
	if (state >= 8 && groups >= state + 8 && len) {
		memcpy(&h[0], p + state - 8, 8);
		memcpy(&h[1], p + groups - 8, 8);
		memcpy(&h[2], p + t.index_off + len - 8, 8);
	}
	id[0] = XXH64(h, 24, 0);
	id[1] = XXH64(h, 24, 1);
	rehash(p, n, t.ws_off);
	memcpy(t.manifest, id, 16);
	memcpy(t.uuid, p + offsetof(struct snap_header, uuid), 16);
	t.file_size = n;
	t.hash = XXH64(&t, offsetof(struct snap_footer, hash), 0);
	memcpy(p + n - sizeof(t), &t, sizeof(t));
}

static volatile uint8_t sink;

static int known(void *arg, const struct snap_section *s)
{
	(void)arg;
	return s->len > 8;
}

static void use(const struct snapfile *f)
{
	struct snap_decoder d;
	struct snap_counts counts;
	uint8_t *buf = malloc(SNAP_CHUNK);
	int to = memfd_create("fuzz", MFD_CLOEXEC);
	const uint8_t *plain;
	uint32_t i;

	snapfile_understood(f, known, NULL, NULL);
	snapfile_count(f, &counts, NULL);
	snapfile_section(f, "vcpu.0");
	for (i = 0; i < f->nsections; i++)
		if (f->sections[i].len)
			sink = ((const uint8_t *)f->sections[i].data)[f->sections[i].len - 1];
	if (snap_decoder_init(&d, NULL) == 0) {
		for (i = 0; i < f->nentries && i < 32; i++)
			snapfile_decode(f, &d, f->entries[i].chunk, buf, NULL);
		for (i = 0; i < f->ws.nframes && i < 4; i++)
			snapfile_decode_ws(f, &d, i, &plain, NULL);
		snap_decoder_fini(&d);
	}
	snapfile_fill(f, to, NULL, 1, NULL);
	snapfile_fill_ws(f, to, NULL, 1, NULL);
	snapfile_verify(f, 1, NULL);
	close(to);
	free(buf);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	int fd = memfd_create("fuzz", MFD_CLOEXEC);
	uint8_t *copy = malloc(size + 1);
	struct snapfile *f;

	memcpy(copy, data, size);
	copy[size] = 0;
	if (size && !(data[size - 1] & 1 && data[size / 2] & 1))
		repair(copy, size);
	if (write(fd, copy, size) == (ssize_t)size &&
	    snapfile_open_fd(&f, fd, "fuzz", "/", SNAP_OPEN_ALONE, NULL) == 0) {
		use(f);
		snapfile_close(f);
	}
	close(fd);
	free(copy);
	return 0;
}
