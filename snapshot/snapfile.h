/* SPDX-License-Identifier: MIT */
/*
 * snapfile.h - write and read snapshot files (docs/snapshot-format.md).
 *
 * This part knows files, pages and named sections; it knows no machine.  RAM
 * is one image of bytes, as in the machine's memfd; page and chunk numbers
 * count from its start, and the RAM map says where the guest sees it.
 *
 *	snapout.c	a file that appears whole or not at all; pipes
 *	snapparts.c	header, groups, index, working set, footer, as they are written
 *	snapwrite.c	RAM to a file, compressed on n threads; diffs
 *	snapopen.c	open a file, and check all that is not RAM
 *	snapread.c	read and decode one chunk
 *	snapfill.c	all of RAM, or the working set, on n threads; verify
 *	snapmerge.c	flatten a chain; teach a file its working set
 *
 * Threads: an open file never changes, and its functions take it const: any
 * thread may call them, each with a decoder of its own.  Every call returns
 * when its own threads have ended.  Files are hostile; error messages begin
 * with the file's name.
 */
#ifndef SNAPSHOT_SNAPFILE_H
#define SNAPSHOT_SNAPFILE_H

#include <signal.h>

#include "../core/error.h"
#include "../core/state.h"
#include "format.h"

struct ZSTD_DCtx_s;

/* ---- Writing ----------------------------------------------------------- */

struct snap_section {
	const char	*name;
	uint16_t	version, flags;		/* SNAP_MUST_UNDERSTAND */
	const void	*data;
	size_t		len;
};

/*
 * RAM that is to be written.  It must not change meanwhile; if it does, the
 * file is whole, but of no one moment.
 *
 * dirty has a bit for each page that may differ from the parent, if there is
 * one, and from fd, if there is one (what PAGEMAP_SCAN finds in a private
 * mapping); of anonymous memory without a parent, for each that may not be
 * zero.  NULL: map is as fd, and anything may differ from the parent.
 */
struct snap_ram {
	uint64_t	size;		/* a multiple of SNAP_PAGE */
	const void	*map;		/* all of it; NULL: read fd */
	/* The memfd that map is of, whose holes are zero, or -1.  Its offset
	   is moved. */
	int		fd;
	const uint64_t	*dirty;		/* page 0 is bit 0 */
	const void	*base;		/* the parent's RAM where it is in memory, or NULL */
};

struct snap_image {
	uint8_t		uuid[16];	/* all zero: a random one */
	uint64_t	created;	/* seconds since 1970; 0: not told */
	const struct snap_region *regions;
	uint32_t	nregions;
	const char	*about;		/* "key=value\n" lines, or NULL */
	const struct snap_section *sections;
	uint32_t	nsections;
	struct snap_ram	ram;
	/* Working set: page << SNAP_WS_SHIFT | SNAP_WS_WRITE, in order of the
	   first touch: the file has room for SNAP_WS_PAGES. */
	const uint64_t	*ws;
	uint32_t	nws;
};

struct snapfile;

struct snap_how {
	int		level;		/* zstd's; 0: 1 */
	unsigned int	threads;	/* that compress; 0: one per CPU */
	const struct snapfile *parent;	/* store only what differs; or NULL */
	/* Called on the calling thread now and then, with how much is done of
	   what there is to do.  Not 0: stop. */
	int		(*progress)(void *arg, uint64_t done, uint64_t total);
	void		*arg;
};

/*
 * Write a file: when this returns 0, path holds all of it and it is on disk;
 * else path is as it was.  VMM_ESTATE if progress() said stop.  how may be
 * NULL.
 */
int snapfile_write(const char *path, const struct snap_image *image, const struct snap_how *how,
		   struct vmm_error *err);

/* The same, to a descriptor that need not seek. */
int snapfile_send(int fd, const struct snap_image *image, const struct snap_how *how,
		  struct vmm_error *err);

/* ---- Reading ----------------------------------------------------------- */

struct snap_layer {			/* a file that this one stands on */
	struct snap_layer_head head;
	char		*path;		/* as recorded */
	char		*real;		/* absolute: where it was found, or should be */
	int		fd;		/* -1: not used, or not opened */
	uint64_t	end;		/* of its frames */
};

struct snap_ws_run {			/* pages of one frame: neighbours */
	uint64_t	page;
	uint32_t	n;
};

/* Is b, of the working set's list, in the frame of the page before it that is
   stored, which is a and the n-th of that? */
static inline int snap_ws_joins(uint64_t a, uint64_t b, uint32_t n)
{
	return b >> SNAP_WS_SHIFT == (a >> SNAP_WS_SHIFT) + 1 && n < SNAP_CHUNK_PAGES;
}

struct snap_ws_view {
	const uint64_t	*pages;
	const struct snap_ws_frame *frames;
	struct snap_ws_run *runs;	/* [nframes] */
	uint32_t	npages, nframes;
};

/* All of it is read-only for everybody but snapopen.c. */
struct snapfile {
	char		*name;		/* for messages */
	char		*real;		/* absolute path, or NULL if it came from a pipe */
	int		fd;
	uint64_t	size;
	const struct snap_header *header;
	struct snap_footer footer;
	const struct snap_region *regions;
	uint32_t	nregions;
	char		*about;		/* never NULL */
	struct snap_layer *layers;	/* [0] is the parent */
	uint32_t	nlayers;
	struct snap_section *sections;
	uint32_t	nsections;
	uint64_t	groups_off;	/* where STATE ends */
	uint64_t	nchunks;	/* of RAM */
	const struct snap_entry *entries;
	uint32_t	nentries;
	uint32_t	*first;		/* [chunk]: its first entry + 1, or 0 */
	struct snap_ws_view ws;
	/* The metadata frames, which the pointers above point into. */
	uint8_t		*header_frame, *state_frame, *index_frame, *ws_frame;
	size_t		header_size, state_size;
};

enum { SNAP_OPEN_ALONE = 1 };	/* do not open layers: to look, not to decode */

/*
 * Read and check all that is not RAM.  VMM_EFORMAT: damaged, or not a
 * snapshot; VMM_EVERSION: of another version or architecture; VMM_ESYS.  A
 * parent that is missing or another file than it was is named.
 */
int snapfile_open(struct snapfile **out, const char *path, int flags, struct vmm_error *err);

/*
 * The same, of a descriptor, which stays the caller's.  What cannot seek is
 * first read to its end.  Paths of layers are relative to dir (NULL: ".").
 */
int snapfile_open_fd(struct snapfile **out, int fd, const char *name, const char *dir, int flags,
		     struct vmm_error *err);
void snapfile_close(struct snapfile *f);

/* NULL if there is none of that name. */
const struct snap_section *snapfile_section(const struct snapfile *f, const char *name);

/*
 * VMM_EVERSION, naming it, if a section that must be understood is not:
 * known() says whether one is, by name and version.
 */
int snapfile_understood(const struct snapfile *f,
			int (*known)(void *arg, const struct snap_section *s), void *arg,
			struct vmm_error *err);

/* The guest-physical address of a byte of the image. */
uint64_t snapfile_gpa(const struct snapfile *f, uint64_t off);

/* What it takes to decode: one for each thread. */
struct snap_decoder {
	struct ZSTD_DCtx_s *zstd;
	uint8_t		*frame;		/* SNAP_FRAME_MAX bytes */
	uint8_t		*plain;		/* SNAP_CHUNK */
};

int snap_decoder_init(struct snap_decoder *d, struct vmm_error *err);
void snap_decoder_fini(struct snap_decoder *d);

/*
 * The descriptors of a chunk: *n of them, 0 if all its pages are zero.  The
 * pages that are not zero are live in one of them.
 */
const struct snap_entry *snapfile_chunk(const struct snapfile *f, uint64_t chunk, uint32_t *n);

/*
 * Decode a chunk into 64 KiB at dst, zeroes where it has none (or, in the last
 * chunk, where there is no RAM).  On failure dst holds anything.
 */
int snapfile_decode(const struct snapfile *f, struct snap_decoder *d, uint64_t chunk, void *dst,
		    struct vmm_error *err);

/*
 * Decode a frame of the working set: *plain are its run of pages, somewhere in
 * the decoder, until that is used again.
 */
int snapfile_decode_ws(const struct snapfile *f, struct snap_decoder *d, uint32_t frame,
		       const uint8_t **plain, struct vmm_error *err);

/*
 * Put all of RAM (or the working set) where zeroes are now: into a memfd if
 * fd >= 0, else to map.  The memfd is faster: whole pages are written, none
 * is faulted in and cleared first.
 */
int snapfile_fill(const struct snapfile *f, int fd, void *map, unsigned int threads,
		  struct vmm_error *err);
int snapfile_fill_ws(const struct snapfile *f, int fd, void *map, unsigned int threads,
		     struct vmm_error *err);

/* Check every byte of the file, and of its layers' frames that it uses. */
int snapfile_verify(const struct snapfile *f, unsigned int threads, struct vmm_error *err);

struct snap_counts {
	uint64_t	ram_pages;	/* not zero */
	uint64_t	own_bytes;	/* of frames in this file */
	uint64_t	layer_bytes;	/* of frames in its layers */
	uint32_t	own_frames, layer_frames;
	uint32_t	shared;		/* descriptors that repeat a frame */
	uint32_t	fills;
	uint64_t	ws_bytes;	/* of the working set's frames */
};

int snapfile_count(const struct snapfile *f, struct snap_counts *out, struct vmm_error *err);

/* ---- Rewriting --------------------------------------------------------- */

/*
 * Write f and all it stands on as one file that stands on none.  Frames are
 * copied, and checked on the way: of how, only progress() matters.  It is a new
 * snapshot, with a new uuid.
 */
int snapfile_merge(const struct snapfile *f, const char *path, const struct snap_how *how,
		   struct vmm_error *err);

/*
 * Write f with this working set in the place of what it had; path may be its
 * own.  It remains the same snapshot, and a parent to its children.
 */
int snapfile_learn(const struct snapfile *f, const char *path, const uint64_t *ws, uint32_t nws,
		   struct vmm_error *err);

/* ---- Between the files of this part ------------------------------------ */

/* A file in the making: its bytes (snapout.c), its parts (snapparts.c). */
struct snap_out {
	const char	*name;		/* for messages */
	int		fd, dirfd;
	char		*base;		/* what it will be called; NULL: a pipe */
	char		*tmp;		/* what it is called now, if anything */
	char		*dir;		/* its directory, absolute; or NULL */
	uint64_t	off;		/* bytes written */
	int		held, hit;	/* signals (core/thread.h); a write has failed */
	sigset_t	before;
	uint64_t	hashes[3];	/* of header, state, index */
	struct snap_footer footer;
	struct writer	meta;		/* a metadata frame in the making */
};

int snap_out_file(struct snap_out *o, const char *path, struct vmm_error *err);
int snap_out_fd(struct snap_out *o, int fd, struct vmm_error *err);
int snap_out_put(struct snap_out *o, const void *p, size_t n, struct vmm_error *err);
/* The first n bytes of f. */
int snap_out_copy(struct snap_out *o, const struct snapfile *f, uint64_t n, struct vmm_error *err);
/* Ends it: if rc is 0 the file takes its place, else it vanishes. */
int snap_out_end(struct snap_out *o, int rc, struct vmm_error *err);

/* The parts of a file, in this order.  Of the image, head takes all but RAM. */
int snap_put_head(struct snap_out *o, const struct snap_image *image,
		  const struct snapfile *parent, struct vmm_error *err);
/* Where the first frame behind a group of n descriptors will be; the group,
   with the frames that are new in it. */
uint64_t snap_group_base(const struct snap_out *o, uint32_t n);
int snap_put_group(struct snap_out *o, const struct snap_entry *entries, uint32_t n,
		   const void *frames, size_t len, struct vmm_error *err);
int snap_put_index(struct snap_out *o, const struct snap_entry *entries, uint32_t n,
		   struct vmm_error *err);

/* plain: the nws pages, in order.  snap_ws_tidy() has seen the list. */
int snap_put_ws(struct snap_out *o, const uint64_t *ws, uint32_t nws, const uint8_t *plain,
		struct vmm_error *err);
int snap_put_footer(struct snap_out *o, struct vmm_error *err);

/* By address, without repetitions, the first SNAP_WS_PAGES; free() it. */
#define SNAP_WS_PAGES	65536u
int snap_ws_tidy(const uint64_t *ws, uint32_t nws, uint64_t ram_pages, uint64_t **out,
		 uint32_t *n, struct vmm_error *err);

uint64_t snap_hash(const void *p, size_t n);		/* XXH64 */
void snap_manifest(const uint64_t hashes[3], uint8_t id[16]);
void snap_raw_head(uint8_t head[SNAP_RAW_HEAD], size_t n);
int snap_is_zero(const void *page);
int snap_read_at(int fd, const char *name, void *buf, size_t n, uint64_t off,
		 struct vmm_error *err);
unsigned int snap_threads(unsigned int want);

/* Decode the stored pages of e, packed: *plain is dst, a chunk, or d->frame. */
int snap_unpack(const struct snapfile *f, struct snap_decoder *d, const struct snap_entry *e,
		uint8_t *dst, const uint8_t **plain, struct vmm_error *err);

/* The bytes of e's frame, checked but not decoded, in d->frame. */
int snap_read_frame(const struct snapfile *f, struct snap_decoder *d, const struct snap_entry *e,
		    struct vmm_error *err);

/* Indexes of the entries as their frames lie, by layer and offset, those
   without a frame first; NULL if out of memory.  free() it. */
uint32_t *snap_order(const struct snapfile *f, struct vmm_error *err);

/* Whether two descriptors mean one frame. */
int snap_same_frame(const struct snap_entry *a, const struct snap_entry *b);

/* Read and check the metadata frame at off, which lies before end and may be
   guess bytes long; free() it. */
int snap_read_meta(int fd, const char *name, const char *tag, uint64_t off, uint64_t end,
		   size_t guess, uint8_t **frame, size_t *size, struct vmm_error *err);

#endif
