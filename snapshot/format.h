/* SPDX-License-Identifier: MIT */
/*
 * format.h - the snapshot file as it lies on disk: docs/snapshot-format.md.
 *
 * Nothing here may change but by the contract in section 10 of that document;
 * the assertions at the end are a tripwire for those who try.  All numbers are
 * little-endian, as are the only hosts there are.
 */
#ifndef SNAPSHOT_FORMAT_H
#define SNAPSHOT_FORMAT_H

#include <stddef.h>
#include <stdint.h>

#define SNAP_MAGIC		0x184D2A56u	/* of a zstd skippable frame */
#define SNAP_MAJOR		1
#define SNAP_MINOR		0
#define SNAP_MACHINE		243u		/* EM_RISCV */

#define SNAP_PAGE		4096u
#define SNAP_CHUNK		65536u
#define SNAP_CHUNK_PAGES	16u
#define SNAP_RAW_HEAD		16u		/* before the bytes of a raw block */
#define SNAP_FRAME_MAX		(SNAP_CHUNK + SNAP_RAW_HEAD)
#define SNAP_RAM_MAX		(1ull << 42)
#define SNAP_PARTS_MAX		4u		/* descriptors of one chunk */
#define SNAP_GROUP_MAX		256u		/* descriptors of one group */
#define SNAP_REGIONS_MAX	16u
#define SNAP_LAYERS_MAX		32u		/* files below this one */
#define SNAP_SECTIONS_MAX	4096u
#define SNAP_NAME_MAX		40u		/* a section's name and its zero */

/* Every metadata frame: this, a payload, and the XXH64 of all before it. */
struct snap_frame {
	uint32_t	magic;
	uint32_t	size;		/* of the frame, less 8 */
	char		tag[8];
};

#define SNAP_HASH_SIZE		8u
#define SNAP_META_MIN		(sizeof(struct snap_frame) + SNAP_HASH_SIZE)

#define SNAP_TAG_HEADER		"VMMSNAP"	/* eight bytes with the zero */
#define SNAP_TAG_STATE		"STATE\0\0"
#define SNAP_TAG_GROUP		"GROUP\0\0"
#define SNAP_TAG_INDEX		"INDEX\0\0"
#define SNAP_TAG_WORKSET	"WORKSET"
#define SNAP_TAG_FOOTER		"FOOTER\0"

#define SNAP_INCOMPAT_LAYERS	1ull
#define SNAP_INCOMPAT_KNOWN	SNAP_INCOMPAT_LAYERS

struct snap_header {			/* sections follow */
	struct snap_frame frame;
	uint16_t	major, minor;
	uint32_t	machine;
	uint64_t	incompat, compat;
	uint8_t		uuid[16];
	uint32_t	page_size, chunk_size;
	uint64_t	ram_size;
	uint64_t	created;
};

#define SNAP_MUST_UNDERSTAND	1u

struct snap_section_head {		/* contents follow, padded to 8 bytes */
	char		name[SNAP_NAME_MAX];
	uint16_t	version, flags;
	uint32_t	len;
};

enum { SNAP_REGION_RAM = 0, SNAP_REGION_PLATFORM = 1 };

struct snap_region {
	uint64_t	gpa, size;
	uint32_t	kind, zero32;
	uint64_t	zero64;
};

struct snap_layer_head {		/* the path follows, padded to 8 bytes */
	uint8_t		uuid[16], manifest[16];
	uint32_t	path_len, zero32;
};

enum { SNAP_KIND_FRAME = 0, SNAP_KIND_FILL = 1 };

struct snap_entry {			/* a descriptor */
	uint32_t	chunk;
	uint16_t	stored, live;
	uint32_t	where;		/* length 20 bits, kind 4, layer 8 */
	uint32_t	check;
	uint64_t	off;		/* or the word that fills */
	uint64_t	hash;
};

static inline uint32_t snap_entry_len(const struct snap_entry *e)
{
	return e->where & 0xfffff;
}

static inline uint32_t snap_entry_kind(const struct snap_entry *e)
{
	return e->where >> 20 & 15;
}

static inline uint32_t snap_entry_layer(const struct snap_entry *e)
{
	return e->where >> 24;
}

static inline uint32_t snap_where(uint32_t layer, uint32_t kind, uint32_t len)
{
	return layer << 24 | kind << 20 | len;
}

struct snap_ws_head {			/* pages, frames, and padding follow */
	struct snap_frame frame;
	uint32_t	npages, nframes;
};

#define SNAP_WS_WRITE		1ull
#define SNAP_WS_ZERO		2ull
#define SNAP_WS_SHIFT		8
#define SNAP_WS_ALIGN		16u		/* of the first frame, in the file */

struct snap_ws_frame {
	uint64_t	off;
	uint32_t	len, check;
	uint64_t	hash;
};

struct snap_footer {
	struct snap_frame frame;
	uint8_t		uuid[16];
	uint8_t		manifest[16];
	uint64_t	index_off, index_size;
	uint64_t	ws_off, ws_size;
	uint64_t	file_size;
	uint64_t	hash;
};

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "a little-endian host");
_Static_assert(sizeof(struct snap_frame) == 16, "format 1");
_Static_assert(sizeof(struct snap_header) == 80, "format 1");
_Static_assert(offsetof(struct snap_header, major) == 16, "for ever");
_Static_assert(offsetof(struct snap_header, incompat) == 24, "format 1");
_Static_assert(offsetof(struct snap_header, uuid) == 40, "format 1");
_Static_assert(offsetof(struct snap_header, ram_size) == 64, "format 1");
_Static_assert(sizeof(struct snap_section_head) == 48, "format 1");
_Static_assert(sizeof(struct snap_region) == 32, "format 1");
_Static_assert(sizeof(struct snap_layer_head) == 40, "format 1");
_Static_assert(sizeof(struct snap_entry) == 32, "format 1");
_Static_assert(offsetof(struct snap_entry, off) == 16, "format 1");
_Static_assert(sizeof(struct snap_ws_head) == 24, "format 1");
_Static_assert(sizeof(struct snap_ws_frame) == 24, "format 1");
_Static_assert(sizeof(struct snap_footer) == 96, "format 1");
_Static_assert(offsetof(struct snap_footer, manifest) == 32, "format 1");
_Static_assert(SNAP_CHUNK == SNAP_PAGE * SNAP_CHUNK_PAGES, "format 1");

#endif
