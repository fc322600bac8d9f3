/* SPDX-License-Identifier: MIT */
/*
 * blk.c - virtio block device (virtio 1.2, 5.2) on raw images and block
 * devices.  What the file holds is never looked at: no format is guessed.
 *
 * A read or write is done in pieces.  A piece ends where the overlay ends or
 * begins (layer.h), or where a transfer came out short; a guest can ask for much,
 * and in many small ones, but not have all else wait for it.  A small piece is first
 * tried at once, on the thread that took the notification, if that does not
 * wait for a disk: what is in the host's page cache is answered without a
 * switch of threads.  Everything else is left to the I/O thread, which gives
 * it to aio.c.  So are all requests of a guest that has many at a time, which are
 * then taken together, for one notification and one interrupt; whether it has is
 * tried now and then.  No two requests are ordered, which is all that virtio
 * asks for; a flush covers what has completed.
 *
 * BLK_DIRECT opens the file twice.  What O_DIRECT refuses (EINVAL: buffer or
 * offset not aligned) is done through the other descriptor.
 *
 * Errors of the host become I/O errors of the guest, and events.
 *
 * I/O lock held.  Saved: flags, size, path, limits, overlay; the file is not.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <linux/falloc.h>
#include <linux/magic.h>
#include <linux/virtio_blk.h>
#include <linux/virtio_ids.h>

#include "aio.h"
#include "devices.h"
#include "layer.h"
#include "throttle.h"

#define BLK_SECTOR	512u
#define BLK_NEAR	131072u		/* bytes copied without a second thought */
#define BLK_PIECE	(8u << 20)	/* bytes of a request done at once */
#define BLK_PIECES	64u		/* as many of a request before others have a turn */
#define BLK_TRY		256u		/* notifications until many at a time are tried */
#define BLK_MANY	3u		/* as many are worth a switch of threads; */
#define BLK_FEW		4u		/* so often fewer are not */
#define BLK_REQS_MAX	1024u		/* in flight on one disk */
#define BLK_BUSY_MAX	(64u << 20)	/* bytes of theirs: whoever pauses waits for them */
#define BLK_SLAB	4u		/* requests are made so many at a time, when needed */
#define BLK_UNMAP_MAX	(8u << 20)	/* sectors of one discard */
#define BLK_PATH_MAX	4096u

enum { BLK_LATER = 1 };		/* a request was not begun, or is to begin again */

struct blk_req {
	struct aio_req	aio;
	struct blk	*b;
	struct blk_req	*next;		/* while it is free */
	struct queue	*q;
	uint16_t	head;
	uint32_t	in_len;
	uint64_t	cost;		/* bytes it moves, or has the host write */
	uint8_t		*status;	/* in guest RAM */
	uint64_t	off, left;	/* still to do */
	uint64_t	piece;		/* of it, being done */
	int		here;		/* in the overlay */
	int		no_direct;	/* O_DIRECT refused it */
	uint32_t	first, niov;	/* iov[first..niov) is still to do */
	size_t		cut;		/* from the last buffer of the piece */
	struct iovec	iov[CHAIN_MAX];
};

struct blk_slab {
	struct blk_slab	*next;
	struct blk_req	req[BLK_SLAB];
};

struct blk {
	struct virtio	v;
	struct virtio_blk_config config;
	char		serial[VIRTIO_BLK_ID_BYTES];
	char		*path, *layer_dir;	/* NULL: none */
	uint32_t	flags;
	int		fd, direct_fd;	/* or -1 */
	int		in_memory;	/* fd is on a file system that is */
	uint64_t	sectors;
	struct layer	layer;
	struct aio	aio;
	struct throttle	throttle;
	struct blk_slab	*slabs;
	struct blk_req	*free;
	uint32_t	more;		/* requests that may still be made */
	uint64_t	busy;		/* cost of those in flight */
	int		stalled;	/* requests were left in a ring */
	uint32_t	many;		/* left to the I/O thread, so often if it finds few */
	uint32_t	alone;		/* notifications since that was tried */
	int		may_wait[2];	/* by AIO_READ, AIO_WRITE: RWF_NOWAIT fails */
	uint64_t	errors;
};

/* ---- Requests --------------------------------------------------------------- */

static void blk_cost(struct blk_req *r, uint64_t bytes)
{
	r->cost += bytes;
	r->b->busy += bytes;
}

static void blk_release(struct blk_req *r)
{
	r->b->busy -= r->cost;
	r->next = r->b->free;
	r->b->free = r;
}

/* Is there a free request, now or again? */
static int blk_have(struct blk *b)
{
	struct blk_slab *s;
	uint32_t i;

	if (b->free || b->more < BLK_SLAB)
		return b->free != NULL;
	s = calloc(1, sizeof(*s));
	if (!s)
		return 0;
	s->next = b->slabs;
	b->slabs = s;
	b->more -= BLK_SLAB;
	for (i = 0; i < BLK_SLAB; i++) {
		s->req[i].b = b;
		blk_release(&s->req[i]);
	}
	return 1;
}

static void blk_finish(struct blk_req *r, uint8_t status)
{
	*r->status = status;
	/* 2.7.8.2: no more than what has surely been written. */
	queue_push(r->q, r->head, status == VIRTIO_BLK_S_OK || r->in_len == 1 ? r->in_len : 0);
	blk_release(r);
}

/* What is to wait, from here on.  On a vCPU's thread nothing is. */
static int blk_submit(struct blk_req *r)
{
	if (r->b->v.on_vcpu) {
		blk_release(r);
		return BLK_LATER;
	}
	aio_submit(&r->b->aio, &r->aio);
	return 0;
}

static void blk_failed(struct blk_req *r, int os_errno)
{
	static const char *const names[] = { "read", "write", "flush", "discard" };
	struct blk *b = r->b;

	if (r->aio.op == AIO_FALLOCATE && os_errno == EOPNOTSUPP) {
		blk_finish(r, VIRTIO_BLK_S_UNSUPP);
		return;
	}
	/* The 1st, 2nd, 4th, 8th: a guest cannot fill the host's log. */
	b->errors++;
	if ((b->errors & (b->errors - 1)) == 0)
		virtio_trouble(&b->v, os_errno, "%s at byte %llu: %s (error %llu of this disk)",
			       names[r->aio.op], (unsigned long long)r->off, strerror(os_errno),
			       (unsigned long long)b->errors);
	blk_finish(r, VIRTIO_BLK_S_IOERR);
}

/* Where the next piece is, and how long. */
static void blk_piece(struct blk_req *r)
{
	const struct blk *b = r->b;
	uint64_t n;

	r->piece = r->left < BLK_PIECE ? r->left : BLK_PIECE;
	r->here = 0;
	if (b->layer.fd >= 0) {
		n = layer_run(&b->layer, r->off / BLK_SECTOR, r->piece / BLK_SECTOR, &r->here);
		if (r->aio.op == AIO_WRITE)
			r->here = 1;
		else
			r->piece = n * BLK_SECTOR;
	}
	r->aio.far = 0;
	if (r->here)
		r->aio.fd = b->layer.fd;
	else if (b->direct_fd >= 0 && !r->no_direct)
		r->aio.fd = b->direct_fd;
	else
		r->aio.fd = b->fd;
}

/* Let aio.iov cover the piece, and no more: the last buffer may be cut short. */
static void blk_cut(struct blk_req *r)
{
	uint64_t sum = 0;
	uint32_t i = r->first;

	while (sum < r->piece)
		sum += r->iov[i++].iov_len;
	r->aio.iov = &r->iov[r->first];
	r->aio.niov = i - r->first;
	r->aio.off = r->off;
	r->cut = (size_t)(sum - r->piece);
	r->iov[i - 1].iov_len -= r->cut;
}

/* n bytes of the piece are done. */
static void blk_advance(struct blk_req *r, uint64_t n)
{
	r->aio.iov[r->aio.niov - 1].iov_len += r->cut;
	r->off += n;
	r->left -= n;
	while (r->first < r->niov && n >= r->iov[r->first].iov_len)
		n -= r->iov[r->first++].iov_len;
	if (n) {
		r->iov[r->first].iov_base = (uint8_t *)r->iov[r->first].iov_base + n;
		r->iov[r->first].iov_len -= n;
	}
}

/* Do the piece now if that is quick.  Bytes, or -errno: -EAGAIN if it is not. */
static int64_t blk_try(struct blk_req *r)
{
	struct blk *b = r->b;
	int flags = (r->here ? b->layer.in_memory : b->in_memory) ? 0 : RWF_NOWAIT;
	int op = r->aio.op;
	ssize_t n;

	if (r->piece > BLK_NEAR) {
		r->aio.far = r->aio.fd != b->direct_fd;
		return -EAGAIN;
	}
	if (r->aio.flags || r->aio.fd == b->direct_fd || (flags && b->may_wait[op]))
		return -EAGAIN;
	if (op == AIO_READ)
		n = preadv2(r->aio.fd, r->aio.iov, (int)r->aio.niov, (off_t)r->off, flags);
	else
		n = pwritev2(r->aio.fd, r->aio.iov, (int)r->aio.niov, (off_t)r->off, flags);
	if (n >= 0)
		return n;
	if (errno == EOPNOTSUPP)
		b->may_wait[op] = 1;
	return errno == EOPNOTSUPP || errno == EINTR ? -EAGAIN : -errno;
}

/* A piece is over.  0: go on; else the request has failed, and is finished. */
static int blk_result(struct blk_req *r, int64_t result)
{
	struct blk *b = r->b;

	if (result == -EINVAL && r->aio.fd == b->direct_fd && !r->no_direct) {
		r->no_direct = 1;
		result = -EINTR;
	}
	if (result == -EINTR) {
		blk_advance(r, 0);
		return 0;
	}
	/* Whole sectors.  None: the file is shorter than it was. */
	if (result >= 0)
		result -= result % BLK_SECTOR;
	if (result <= 0) {
		blk_failed(r, result ? (int)-result : EIO);
		return -1;
	}
	if (r->aio.op == AIO_WRITE && r->here)
		layer_mark(&b->layer, r->off / BLK_SECTOR, (uint64_t)result / BLK_SECTOR);
	blk_advance(r, (uint64_t)result);
	return 0;
}

static int blk_transfer(struct blk_req *r)
{
	uint32_t turns = BLK_PIECES;
	int64_t n;

	while (r->left) {
		blk_piece(r);
		blk_cut(r);
		n = turns-- ? blk_try(r) : -EAGAIN;
		if (n == -EAGAIN)
			return blk_submit(r);
		if (blk_result(r, n) < 0)
			return 0;
	}
	blk_finish(r, VIRTIO_BLK_S_OK);
	return 0;
}

static void blk_transferred(struct aio_req *a, int64_t result)
{
	struct blk_req *r = (struct blk_req *)a;

	/* Whoever asked is gone, and somebody waits for us to be. */
	if (!r->b->v.active)
		blk_release(r);
	else if (blk_result(r, result) == 0)
		blk_transfer(r);
}

/* A flush, discard or the like is over. */
static void blk_done(struct aio_req *a, int64_t result)
{
	struct blk_req *r = (struct blk_req *)a;

	if (result == -EOPNOTSUPP && a->op == AIO_FALLOCATE &&
	    (a->flags & FALLOC_FL_ZERO_RANGE)) {
		/* Not on tmpfs, say.  A hole reads the same. */
		a->flags = FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE;
		aio_submit(&r->b->aio, a);
		return;
	}
	if (result < 0) {
		blk_failed(r, (int)-result);
		return;
	}
	if (a->op == AIO_FALLOCATE && a->fd == r->b->layer.fd)
		layer_mark(&r->b->layer, a->off / BLK_SECTOR, a->len / BLK_SECTOR);
	blk_finish(r, VIRTIO_BLK_S_OK);
}

/* ---- What the guest asks for -------------------------------------------------- */

static int blk_in_range(const struct blk *b, uint64_t sector, uint64_t n)
{
	return sector <= b->sectors && n <= b->sectors - sector;
}

/* len bytes from buffers first to last of the chain, at a sector. */
static int blk_rw(struct blk_req *r, const struct chain *c, uint8_t op, uint64_t sector)
{
	struct blk *b = r->b;
	int write = op == AIO_WRITE;
	/* Readable: behind the header.  Writable: before the status. */
	size_t skip = write ? sizeof(struct virtio_blk_outhdr) : 0, run;
	uint64_t len = write ? c->out_len - skip : c->in_len - 1u, left = len;
	uint32_t i = write ? 0 : c->nout;

	if (!blk_in_range(b, sector, len / BLK_SECTOR) || len % BLK_SECTOR || b->fd < 0 ||
	    (write && (b->flags & BLK_READONLY))) {
		blk_finish(r, VIRTIO_BLK_S_IOERR);
		return 0;
	}
	for (r->niov = 0; left; i++) {
		run = c->iov[i].iov_len;
		if (skip >= run) {
			skip -= run;
			continue;
		}
		run -= skip;
		if (run > left)
			run = (size_t)left;
		r->iov[r->niov].iov_base = (uint8_t *)c->iov[i].iov_base + skip;
		r->iov[r->niov++].iov_len = run;
		left -= run;
		skip = 0;
	}
	r->first = 0;
	r->off = sector * BLK_SECTOR;
	r->left = len;
	r->no_direct = 0;
	r->aio.op = op;
	r->aio.done = blk_transferred;
	/* 5.2.6.2: a driver that cannot flush is promised that it need not. */
	r->aio.flags = write && !virtio_has(&b->v, VIRTIO_BLK_F_FLUSH) &&
		       !(b->flags & (BLK_NOSYNC | BLK_OVERLAY)) ? RWF_DSYNC : 0;
	return blk_transfer(r);
}

static int blk_flush(struct blk_req *r)
{
	struct blk *b = r->b;

	/* Memory, and an overlay, are as durable as they can be. */
	if (b->in_memory || (b->flags & (BLK_NOSYNC | BLK_READONLY | BLK_OVERLAY))) {
		blk_finish(r, VIRTIO_BLK_S_OK);
		return 0;
	}
	if (b->fd < 0) {
		blk_finish(r, VIRTIO_BLK_S_IOERR);
		return 0;
	}
	r->aio.op = AIO_SYNC;
	r->aio.fd = b->fd;
	r->aio.done = blk_done;
	r->off = 0;
	return blk_submit(r);
}

static int blk_unmap(struct blk_req *r, const struct chain *c, uint32_t type)
{
	const size_t hdr = sizeof(struct virtio_blk_outhdr);
	struct virtio_blk_discard_write_zeroes seg;
	struct blk *b = r->b;
	int zero = type == VIRTIO_BLK_T_WRITE_ZEROES;

	/* max_discard_seg is 1. */
	if ((b->flags & BLK_READONLY) || b->fd < 0 || c->out_len != hdr + sizeof(seg)) {
		blk_finish(r, VIRTIO_BLK_S_IOERR);
		return 0;
	}
	chain_read(c, hdr, &seg, sizeof(seg));
	if (seg.flags & (zero ? ~(uint32_t)VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP : ~0u)) {
		blk_finish(r, VIRTIO_BLK_S_UNSUPP);	/* 5.2.6.2 */
		return 0;
	}
	if (!blk_in_range(b, seg.sector, seg.num_sectors) || seg.num_sectors > BLK_UNMAP_MAX) {
		blk_finish(r, VIRTIO_BLK_S_IOERR);
		return 0;
	}
	if (!seg.num_sectors) {
		blk_finish(r, VIRTIO_BLK_S_OK);
		return 0;
	}
	r->aio.op = AIO_FALLOCATE;
	r->aio.fd = b->layer.fd >= 0 ? b->layer.fd : b->fd;
	/* A hole reads as zeroes, on a block device too. */
	r->aio.flags = FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE;
	if (zero && !seg.flags && b->layer.fd < 0)
		r->aio.flags = FALLOC_FL_KEEP_SIZE | FALLOC_FL_ZERO_RANGE;
	r->aio.off = r->off = seg.sector * BLK_SECTOR;
	r->aio.len = (uint64_t)seg.num_sectors * BLK_SECTOR;
	if (r->aio.flags & FALLOC_FL_ZERO_RANGE)
		blk_cost(r, r->aio.len);	/* the host may have to write them */
	r->aio.done = blk_done;
	return blk_submit(r);
}

static int blk_get_id(struct blk_req *r, const struct chain *c)
{
	size_t n = c->in_len - 1u < VIRTIO_BLK_ID_BYTES ? c->in_len - 1u : VIRTIO_BLK_ID_BYTES;

	chain_write(c, 0, r->b->serial, n);
	blk_finish(r, VIRTIO_BLK_S_OK);
	return 0;
}

static int blk_start(struct blk *b, struct queue *q, const struct chain *c)
{
	struct virtio_blk_outhdr hdr;
	struct blk_req *r;
	uint32_t i = c->nout + c->nin;

	if (chain_read(c, 0, &hdr, sizeof(hdr)) != sizeof(hdr) || !c->in_len) {
		virtio_fail(&b->v, "a request has no header, or no room for its status");
		return 0;
	}
	r = b->free;
	b->free = r->next;
	r->cost = 0;
	blk_cost(r, (uint64_t)c->in_len + c->out_len);
	r->q = q;
	r->head = c->head;
	r->in_len = c->in_len;
	while (!c->iov[i - 1].iov_len)
		i--;
	r->status = (uint8_t *)c->iov[i - 1].iov_base + c->iov[i - 1].iov_len - 1;
	switch (hdr.type) {
	case VIRTIO_BLK_T_IN:
		return blk_rw(r, c, AIO_READ, hdr.sector);
	case VIRTIO_BLK_T_OUT:
		return blk_rw(r, c, AIO_WRITE, hdr.sector);
	case VIRTIO_BLK_T_FLUSH:
		return blk_flush(r);
	case VIRTIO_BLK_T_GET_ID:
		return blk_get_id(r, c);
	case VIRTIO_BLK_T_DISCARD:
	case VIRTIO_BLK_T_WRITE_ZEROES:
		return blk_unmap(r, c, hdr.type);
	default:
		blk_finish(r, VIRTIO_BLK_S_UNSUPP);
		return 0;
	}
}

static void blk_notify(struct virtio *v, struct queue *q)
{
	struct blk *b = (struct blk *)v;
	struct blk_req *r;
	struct chain c;
	uint32_t n;

	if (v->on_vcpu && !b->many && ++b->alone == BLK_TRY) {
		b->many = 1;
		b->alone = 0;
	}
	if (v->on_vcpu && b->many) {
		/* On the guest's CPU the I/O thread would run at once, and find
		   the first of them only: the guest is to go on. */
		loop_be_patient(v->env.loop);
		queue_again(q);
		return;
	}
	for (n = 0; queue_pop(q, &c); n++) {
		if (!blk_have(b) || b->busy >= BLK_BUSY_MAX || !throttle_ok(&b->throttle)) {
			queue_unpop(q);
			b->stalled = 1;
			break;
		}
		r = b->free;
		if (blk_start(b, q, &c) == BLK_LATER) {
			queue_unpop(q);
			queue_again(q);
			break;
		}
		throttle_charge(&b->throttle, r->cost);
	}
	if (!v->on_vcpu && n >= BLK_MANY)
		b->many = BLK_FEW;
	else if (!v->on_vcpu && b->many)
		b->many--;
	aio_flush(&b->aio);
	queue_signal(q);
}

static void blk_signal(struct blk *b)
{
	uint32_t i;

	for (i = 0; i < b->v.nqueues; i++)
		queue_signal(&b->v.queue[i]);
}

/* Go on with what was left in the rings. */
static void blk_go_on(void *arg)
{
	struct blk *b = arg;
	uint32_t i;

	if (!b->stalled)
		return;
	b->stalled = 0;
	for (i = 0; i < b->v.nqueues; i++)
		queue_again(&b->v.queue[i]);
}

/* Some requests are done: tell the guest, and take others. */
static void blk_idle(void *arg)
{
	struct blk *b = arg;

	blk_signal(b);
	if (!b->throttle.armed)
		blk_go_on(b);
}

/* ---- The device ----------------------------------------------------------------- */

static void blk_activate(struct virtio *v)
{
	struct blk *b = (struct blk *)v;
	uint32_t i, n = 0;

	b->many = 0;
	b->alone = 0;
	for (i = 0; i < v->nqueues; i++)
		n += v->queue[i].ready ? v->queue[i].num : 0;
	b->more = n < BLK_REQS_MAX ? n + BLK_SLAB - 1 : BLK_REQS_MAX;
	/* With one of them all others can wait. */
	if (n && !blk_have(b)) {
		virtio_trouble(v, ENOMEM, "no memory for requests");
		virtio_break(v);
	}
}

static void blk_forget(struct blk *b)
{
	struct blk_slab *s;

	while ((s = b->slabs)) {
		b->slabs = s->next;
		free(s);
	}
	b->free = NULL;
	b->more = 0;
}

static void blk_reset(struct virtio *v)
{
	struct blk *b = (struct blk *)v;

	aio_drain(&b->aio);
	blk_forget(b);
	b->stalled = 0;
}

static void blk_quiesce(struct virtio *v)
{
	struct blk *b = (struct blk *)v;

	aio_drain(&b->aio);
	blk_signal(b);
	blk_go_on(b);			/* when the loop goes on */
}

/* ---- The file --------------------------------------------------------------------- */

/* The size of b->fd in sectors. */
static int blk_size(const struct blk *b, int fd, uint64_t *sectors, struct vmm_error *err)
{
	const char *path = b->path ? b->path : b->v.name;
	off_t size = lseek(fd, 0, SEEK_END);
	struct stat st;

	if (size < 0 || fstat(fd, &st) < 0)
		return fail_sys(err, errno, "size of %s", path);
	if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
		return fail(err, VMM_EINVAL, "%s is neither a file nor a block device", path);
	if (!size || size % BLK_SECTOR)
		return fail(err, VMM_EINVAL, "%s: its size, %lld bytes, is not a multiple of %u",
			    path, (long long)size, BLK_SECTOR);
	*sectors = (uint64_t)size / BLK_SECTOR;
	return 0;
}

static void blk_close(struct blk *b)
{
	if (b->fd >= 0)
		close(b->fd);
	if (b->direct_fd >= 0)
		close(b->direct_fd);
	b->fd = b->direct_fd = -1;
}

/* Open path, or duplicate fd, as b->flags say. */
static int blk_open_file(struct blk *b, const char *path, int fd, struct vmm_error *err)
{
	int mode = b->flags & (BLK_READONLY | BLK_OVERLAY) ? O_RDONLY : O_RDWR;
	struct statfs fs;
	char self[32];
	int rc;

	/* Not to wait for the other end of a pipe, which is refused then. */
	b->fd = fd >= 0 ? fcntl(fd, F_DUPFD_CLOEXEC, 3) : open(path, mode | O_NONBLOCK | O_CLOEXEC);
	if (b->fd < 0)
		return fail_sys(err, errno, "open %s", path ? path : b->v.name);
	if (fd < 0)
		fcntl(b->fd, F_SETFL, mode);
	if (b->flags & BLK_DIRECT) {
		snprintf(self, sizeof(self), "/proc/self/fd/%d", b->fd);
		b->direct_fd = open(self, mode | O_DIRECT | O_CLOEXEC);
		if (b->direct_fd < 0) {
			rc = fail_sys(err, errno, "open %s with O_DIRECT", path ? path : b->v.name);
			blk_close(b);
			return rc;
		}
	}
	b->in_memory = fstatfs(b->fd, &fs) == 0 && fs.f_type == TMPFS_MAGIC;
	b->may_wait[AIO_READ] = b->may_wait[AIO_WRITE] = 0;
	return 0;
}

static void blk_set_size(struct blk *b, uint64_t sectors)
{
	b->sectors = sectors;
	b->config.capacity = sectors;
	virtio_config_changed(&b->v);
}

/* Features and configuration that follow from the flags. */
static void blk_describe(struct blk *b)
{
	struct virtio_blk_config *c = &b->config;
	uint64_t unmap = 1ull << VIRTIO_BLK_F_DISCARD | 1ull << VIRTIO_BLK_F_WRITE_ZEROES;

	b->v.offers |= 1ull << VIRTIO_BLK_F_SEG_MAX | 1ull << VIRTIO_BLK_F_BLK_SIZE |
		       1ull << VIRTIO_BLK_F_FLUSH | 1ull << VIRTIO_BLK_F_TOPOLOGY | unmap;
	if (b->flags & BLK_READONLY) {
		b->v.offers |= 1ull << VIRTIO_BLK_F_RO;
		b->v.offers &= ~unmap;
	}
	b->v.offers &= ~(1ull << VIRTIO_BLK_F_MQ);
	if (b->v.nqueues > 1)
		b->v.offers |= 1ull << VIRTIO_BLK_F_MQ;
	c->num_queues = b->v.nqueues;
	c->seg_max = CHAIN_MAX - 2;		/* but for header and status */
	c->blk_size = BLK_SECTOR;
	c->physical_block_exp = 3;		/* 4 KiB suit the host best */
	c->max_discard_sectors = c->max_write_zeroes_sectors = BLK_UNMAP_MAX;
	c->max_discard_seg = c->max_write_zeroes_seg = 1;
	c->discard_sector_alignment = 8;
	c->write_zeroes_may_unmap = 1;
}

int blk_set_queues(struct virtio *v, uint32_t n, struct vmm_error *err)
{
	int r = virtio_set_queues(v, n, err);

	if (r)
		return r;
	blk_describe((struct blk *)v);
	virtio_config_changed(v);
	return 0;
}

static int blk_copy(char **out, const char *s, struct vmm_error *err)
{
	char *copy = s && *s ? strdup(s) : NULL;

	if (s && *s && !copy)
		return fail(err, VMM_ENOMEM, "%s", s);
	free(*out);
	*out = copy;
	return 0;
}

/* The back end that was saved, now that it is needed. */
static int blk_open(struct virtio *v, struct vmm_error *err)
{
	struct blk *b = (struct blk *)v;
	uint64_t sectors;
	int r;

	if (b->fd >= 0)
		return 0;
	if (!b->path)
		return fail(err, VMM_ESTATE,
			    "disk %s was given as a descriptor, and must be given again", v->name);
	r = blk_open_file(b, b->path, -1, err);
	if (r)
		return r;
	r = blk_size(b, b->fd, &sectors, err);
	if (!r && sectors != b->sectors)
		r = fail(err, VMM_EVERSION, "%s has %llu sectors, the disk %s had %llu", b->path,
			 (unsigned long long)sectors, v->name, (unsigned long long)b->sectors);
	if (r)
		blk_close(b);
	return r;
}

/* ---- Saved state -------------------------------------------------------------------- */

static void blk_save(const struct virtio *v, struct writer *w)
{
	const struct blk *b = (const struct blk *)v;

	put_u32(w, b->flags);
	put_u64(w, b->sectors);
	put_str(w, b->path);
	put_str(w, b->layer_dir);
	put_bytes(w, b->serial, sizeof(b->serial));
	put_u64(w, b->throttle.bytes.rate);
	put_u64(w, b->throttle.ops.rate);
	if (b->flags & BLK_OVERLAY)
		layer_save(&b->layer, w);
}

static int blk_load(struct virtio *v, struct reader *r, struct vmm_error *err)
{
	const uint32_t shape = BLK_READONLY | BLK_OVERLAY;
	struct blk *b = (struct blk *)v;
	char path[BLK_PATH_MAX], elsewhere[BLK_PATH_MAX];
	uint32_t flags = get_u32(r);
	uint64_t sectors = get_u64(r), bytes, ops;
	struct layer layer;
	int rc = 0;

	get_str(r, path, sizeof(path));
	get_str(r, elsewhere, sizeof(elsewhere));	/* where an overlay lies is for the host to say */
	get_bytes(r, b->serial, sizeof(b->serial));
	bytes = get_u64(r);
	ops = get_u64(r);
	if (r->failed || !sectors || sectors > INT64_MAX / BLK_SECTOR)
		return fail(err, VMM_EFORMAT, "state of %s: what kind of disk it is", v->name);
	if (b->fd >= 0 && (sectors != b->sectors || (flags & shape) != (b->flags & shape)))
		return fail(err, VMM_EVERSION, "disk %s is of another size or kind", v->name);
	if (b->fd < 0) {
		rc = blk_copy(&b->path, path, err);
		if (rc)
			return rc;
		b->flags = flags;
		throttle_set(&b->throttle, bytes, ops);
		blk_describe(b);
	}
	if (flags & BLK_OVERLAY) {
		rc = layer_open(&layer, sectors, b->layer_dir, err);
		if (rc)
			return rc;
		rc = layer_load(&layer, r, v->name, err);
		if (rc) {
			layer_close(&layer);
			return rc;
		}
		layer_close(&b->layer);
		b->layer = layer;
	}
	b->sectors = b->config.capacity = sectors;
	return 0;
}

static void blk_free(struct virtio *v)
{
	struct blk *b = (struct blk *)v;

	aio_fini(&b->aio);
	throttle_fini(&b->throttle);
	layer_close(&b->layer);
	blk_close(b);
	blk_forget(b);
	free(b->path);
	free(b->layer_dir);
	virtio_fini(v);
	free(b);
}

static const struct virtio_ops blk_ops = {
	.type		= "blk",
	.id		= VIRTIO_ID_BLOCK,
	.version	= 1,
	.notify		= blk_notify,
	.activate	= blk_activate,
	.reset		= blk_reset,
	.quiesce	= blk_quiesce,
	.save		= blk_save,
	.load		= blk_load,
	.set_queues	= blk_set_queues,
	.open		= blk_open,
	.free		= blk_free,
};

/* ---- From outside ---------------------------------------------------------------------- */

static int blk_attach(struct blk *b, const struct blk_config *cfg, struct vmm_error *err)
{
	char *real = cfg->fd < 0 ? realpath(cfg->path, NULL) : NULL;
	int rc = 0;

	/* The working directory may be another when it is opened again. */
	if (real || cfg->path)
		rc = blk_copy(&b->path, real ? real : cfg->path, err);
	free(real);
	return rc ? rc : blk_open_file(b, cfg->path, cfg->fd, err);
}

int blk_new(struct virtio **out, const struct virtio_env *env, const char *name,
	    const struct blk_config *cfg, struct vmm_error *err)
{
	struct blk *b = calloc(1, sizeof(*b));
	const char *serial = cfg->serial ? cfg->serial : name;
	uint32_t queues = cfg->queues ? cfg->queues : 1;
	uint64_t sectors;
	int r;

	*out = NULL;
	if (!b)
		return fail(err, VMM_ENOMEM, "%s", name);
	b->fd = b->direct_fd = b->layer.fd = -1;
	b->v.config = &b->config;
	b->v.config_size = sizeof(b->config);
	b->flags = cfg->flags;
	memcpy(b->serial, serial, strnlen(serial, sizeof(b->serial)));
	aio_init(&b->aio, env->loop, env->log, b->v.name, QUEUE_SIZE_MAX, blk_idle, b);
	b->aio.threads_only = (cfg->flags & BLK_THREADS) != 0;
	throttle_init(&b->throttle, env->loop, blk_go_on, b);
	r = virtio_init(&b->v, &blk_ops, env, name, queues, err);
	if (!r)
		r = blk_copy(&b->layer_dir, cfg->layer_dir, err);
	if (r || (!cfg->path && cfg->fd < 0))
		goto out;
	r = blk_attach(b, cfg, err);
	if (!r)
		r = blk_size(b, b->fd, &sectors, err);
	if (!r && (b->flags & BLK_OVERLAY))
		r = layer_open(&b->layer, sectors, b->layer_dir, err);
	if (!r) {
		throttle_set(&b->throttle, cfg->bytes_per_sec, cfg->ops_per_sec);
		blk_describe(b);
		blk_set_size(b, sectors);
	}
out:
	if (r)
		blk_free(&b->v);
	else
		*out = &b->v;
	return r;
}

int blk_replace(struct virtio *v, const struct blk_config *cfg, struct vmm_error *err)
{
	const uint32_t shape = BLK_READONLY | BLK_OVERLAY;
	struct blk *b = (struct blk *)v;
	struct blk new = { .fd = -1, .direct_fd = -1, .flags = cfg->flags };
	uint64_t sectors;
	int r;

	if ((cfg->flags & shape) != (b->flags & shape))
		return fail(err, VMM_EINVAL, "disk %s: read-only and overlay stay as they were",
			    v->name);
	memcpy(new.v.name, v->name, sizeof(v->name));
	r = blk_attach(&new, cfg, err);
	if (!r)
		r = blk_size(&new, new.fd, &sectors, err);
	if (!r && sectors != b->sectors)
		r = fail(err, VMM_EINVAL, "the disk for %s has %llu sectors instead of %llu",
			 v->name, (unsigned long long)sectors, (unsigned long long)b->sectors);
	if (r) {
		blk_close(&new);
		free(new.path);
		return r;
	}
	aio_drain(&b->aio);
	blk_close(b);
	free(b->path);
	b->fd = new.fd;
	b->direct_fd = new.direct_fd;
	b->in_memory = new.in_memory;
	b->path = new.path;
	b->flags = cfg->flags;
	b->may_wait[AIO_READ] = b->may_wait[AIO_WRITE] = 0;
	if (cfg->bytes_per_sec || cfg->ops_per_sec)
		throttle_set(&b->throttle, cfg->bytes_per_sec, cfg->ops_per_sec);
	return 0;
}

int blk_resize(struct virtio *v, struct vmm_error *err)
{
	struct blk *b = (struct blk *)v;
	uint64_t sectors;
	int r;

	if (b->fd < 0)
		return fail(err, VMM_ESTATE, "disk %s has no file yet", v->name);
	r = blk_size(b, b->fd, &sectors, err);
	if (!r && sectors < b->sectors && b->layer.fd >= 0)
		r = fail(err, VMM_EINVAL, "disk %s has an overlay, and cannot shrink", v->name);
	if (!r && sectors > b->sectors && b->layer.fd >= 0)
		r = layer_grow(&b->layer, sectors, err);
	if (!r && sectors != b->sectors)
		blk_set_size(b, sectors);
	return r;
}

void blk_limit(struct virtio *v, uint64_t bytes_per_sec, uint64_t ops_per_sec)
{
	throttle_set(&((struct blk *)v)->throttle, bytes_per_sec, ops_per_sec);
}
