/* SPDX-License-Identifier: MIT */
/*
 * balloon.c - virtio memory balloon (virtio 1.2, 5.5): guest memory given back
 * to the host, in three ways.
 *
 * - Inflating: the host says how many pages it wants back, and the guest gives
 *   some it can spare; deflating needs no more than the guest's word, for a
 *   page comes back when it is touched.
 * - Free page reporting: the guest tells on its own of memory it has freed.
 * - Free page hinting: asked once, as before a snapshot, it hands over all it
 *   has free, keeps its hands off until it is told that we are done, and so
 *   a snapshot need not hold what nobody uses.
 *
 * The first ends in mem_release(); the others in mem_discard(): there the guest
 * relies on pages that come back reading as zero, or as the pattern it poisons
 * free pages with; as we can only do zero, reports and hints do nothing for a
 * guest that poisons with another.
 *
 * Also the guest's own statistics of its memory, when asked for: the buffer it
 * offers for them stays in its ring until then.
 *
 * I/O lock held.  Saved: configuration, and how far a hint has got.  Pages
 * given back are zeroes in a snapshot, which costs nothing.
 */
#include <stdlib.h>
#include <string.h>

#include <linux/virtio_balloon.h>
#include <linux/virtio_ids.h>

#include "devices.h"

#define BALLOON_PAGE	4096u		/* whatever the guest's pages are: 5.5.6 */
#define BALLOON_PFNS	4096u		/* in one request, at most */
#define BALLOON_TURN	8192u		/* pages before others have a turn */

enum { BALLOON_INFLATE, BALLOON_DEFLATE, BALLOON_STATS, BALLOON_HINT, BALLOON_REPORT,
       BALLOON_QUEUES };

struct balloon {
	struct virtio	v;
	struct virtio_balloon_config config;
	uint32_t	last_id;	/* of a hint */
	uint32_t	hint_id;	/* of the one that runs; 0: none */
	int		hinting;	/* the guest has begun to answer it */
	struct balloon_info info;
};

/* ---- Giving pages back ------------------------------------------------------- */

static int balloon_by_number(const void *a, const void *b)
{
	const uint32_t *x = a, *y = b;

	return *x < *y ? -1 : *x > *y;
}

/* Page numbers come one by one: make as few runs of them as can be. */
static int balloon_inflate(struct balloon *b, const struct chain *c)
{
	struct mem *mem = b->v.env.mem;
	uint32_t pfn[BALLOON_PFNS], i, n, run;
	void *p;

	if (c->out_len > sizeof(pfn) || c->out_len % 4)
		return -1;
	n = (uint32_t)chain_read(c, 0, pfn, sizeof(pfn)) / 4;
	qsort(pfn, n, sizeof(pfn[0]), balloon_by_number);
	for (i = 0; i < n; i += run) {
		run = 1;
		while (i + run < n && pfn[i + run] == pfn[i] + run)
			run++;
		p = mem_get(mem, (uint64_t)pfn[i] * BALLOON_PAGE, (uint64_t)run * BALLOON_PAGE);
		if (!p)
			return -1;
		if (mem_release(mem, p, (uint64_t)run * BALLOON_PAGE) == 0)
			b->info.inflated += (uint64_t)run * BALLOON_PAGE;
	}
	return 0;
}

/* The writable buffers of a report or hint are the free memory itself. */
static void balloon_discard(struct balloon *b, const struct chain *c, uint64_t *count)
{
	uint16_t i;

	if (b->config.poison_val && virtio_has(&b->v, VIRTIO_BALLOON_F_PAGE_POISON))
		return;
	for (i = c->nout; i < c->nout + c->nin; i++)
		if (mem_discard(b->v.env.mem, c->iov[i].iov_base, c->iov[i].iov_len) == 0)
			*count += c->iov[i].iov_len;
}

/* ---- Queues --------------------------------------------------------------------- */

/*
 * Which queue this is.  The driver numbers those that exist by the features
 * agreed on, without a gap (5.5.2, and what drivers make of it).
 */
static int balloon_role(const struct virtio *v, uint16_t index)
{
	static const uint8_t feature[] = {
		[BALLOON_STATS] = VIRTIO_BALLOON_F_STATS_VQ,
		[BALLOON_HINT] = VIRTIO_BALLOON_F_FREE_PAGE_HINT,
		[BALLOON_REPORT] = VIRTIO_BALLOON_F_REPORTING,
	};
	int role;

	for (role = 0; role < BALLOON_QUEUES; role++) {
		if (role >= BALLOON_STATS && !virtio_has(v, feature[role]))
			continue;
		if (!index--)
			return role;
	}
	return -1;
}

static struct queue *balloon_queue(struct virtio *v, int role)
{
	uint16_t i;

	for (i = 0; i < v->nqueues; i++)
		if (balloon_role(v, i) == role)
			return &v->queue[i];
	return NULL;
}

/* Values are in no order, and of kinds we may not know (5.5.6.4). */
static void balloon_stats(struct balloon *b, const struct chain *c)
{
	struct virtio_balloon_stat s;
	size_t off;

	for (off = 0; chain_read(c, off, &s, sizeof(s)) == sizeof(s) && off < 64 * sizeof(s);
	     off += sizeof(s))
		if (s.tag < BALLOON_STATS_MAX)
			b->info.stat[s.tag] = s.val;
	b->info.stats_seq++;
}

/* A command of the hint queue: the id it is for, or that it is over. */
static void balloon_hint(struct balloon *b, const struct chain *c)
{
	uint32_t id;

	if (c->out_len == sizeof(id)) {
		chain_read(c, 0, &id, sizeof(id));
		if (id == VIRTIO_BALLOON_CMD_ID_STOP && b->hinting) {
			b->hinting = 0;
			b->hint_id = 0;
			b->info.hint_running = 0;
		} else {
			b->hinting = b->hint_id && id == b->hint_id;
		}
	}
	if (b->hinting)
		balloon_discard(b, c, &b->info.hinted);
}

static void balloon_notify(struct virtio *v, struct queue *q)
{
	struct balloon *b = (struct balloon *)v;
	int role = balloon_role(v, q->index);
	uint32_t pages = 0;
	struct chain c;

	while (queue_pop(q, &c)) {
		if (pages >= BALLOON_TURN) {
			queue_unpop(q);
			queue_again(q);
			break;
		}
		switch (role) {
		case BALLOON_INFLATE:
			if (balloon_inflate(b, &c) < 0) {
				virtio_fail(v, "it gave what are not pages of RAM");
				return;
			}
			pages += c.out_len / 4;
			break;
		case BALLOON_STATS:
			balloon_stats(b, &c);
			queue_unpop(q);
			return;
		case BALLOON_HINT:
			balloon_hint(b, &c);
			pages += c.in_len / 4096 + c.nin;
			break;
		case BALLOON_REPORT:
			balloon_discard(b, &c, &b->info.reported);
			pages += c.in_len / 4096 + c.nin;
			break;
		default:
			break;
		}
		queue_push(q, c.head, 0);
	}
	queue_signal(q);
}

/* 5.5.5: the driver writes how far it has got, and its poison. */
static void balloon_config_write(struct virtio *v, uint32_t off, uint32_t len, uint64_t val)
{
	struct balloon *b = (struct balloon *)v;

	if (len != 4)
		return;
	if (off == offsetof(struct virtio_balloon_config, actual))
		b->config.actual = (uint32_t)val;
	else if (off == offsetof(struct virtio_balloon_config, poison_val))
		b->config.poison_val = (uint32_t)val;
}

static void balloon_reset(struct virtio *v)
{
	struct balloon *b = (struct balloon *)v;

	b->config.actual = 0;
	b->config.poison_val = 0;
	b->config.free_page_hint_cmd_id = VIRTIO_BALLOON_CMD_ID_STOP;
	b->hint_id = 0;
	b->hinting = 0;
	b->info.hint_running = 0;
}

/* ---- Saved state -------------------------------------------------------------------- */

static void balloon_save(const struct virtio *v, struct writer *w)
{
	const struct balloon *b = (const struct balloon *)v;

	put_u32(w, b->config.num_pages);
	put_u32(w, b->config.actual);
	put_u32(w, b->config.free_page_hint_cmd_id);
	put_u32(w, b->config.poison_val);
	put_u32(w, b->last_id);
	put_u32(w, b->hint_id);
	put_u8(w, (uint8_t)b->hinting);
}

static int balloon_load(struct virtio *v, struct reader *r, struct vmm_error *err)
{
	struct balloon *b = (struct balloon *)v;

	(void)err;
	b->config.num_pages = get_u32(r);
	b->config.actual = get_u32(r);
	b->config.free_page_hint_cmd_id = get_u32(r);
	b->config.poison_val = get_u32(r);
	b->last_id = get_u32(r);
	b->hint_id = get_u32(r);
	b->hinting = get_u8(r) & 1;
	b->info.hint_running = b->hint_id != 0;
	return 0;
}

static void balloon_free(struct virtio *v)
{
	virtio_fini(v);
	free(v);
}

static const struct virtio_ops balloon_ops = {
	.type		= "balloon",
	.id		= VIRTIO_ID_BALLOON,
	.version	= 1,
	.notify		= balloon_notify,
	.reset		= balloon_reset,
	.config_write	= balloon_config_write,
	.save		= balloon_save,
	.load		= balloon_load,
	.free		= balloon_free,
};

/* ---- From outside ---------------------------------------------------------------------- */

int balloon_new(struct virtio **out, const struct virtio_env *env, const char *name,
		struct vmm_error *err)
{
	struct balloon *b = calloc(1, sizeof(*b));
	int r;

	*out = NULL;
	if (!b)
		return fail(err, VMM_ENOMEM, "%s", name);
	r = virtio_init(&b->v, &balloon_ops, env, name, BALLOON_QUEUES, err);
	if (r) {
		balloon_free(&b->v);
		return r;
	}
	b->v.offers |= 1ull << VIRTIO_BALLOON_F_STATS_VQ |
		       1ull << VIRTIO_BALLOON_F_DEFLATE_ON_OOM |
		       1ull << VIRTIO_BALLOON_F_FREE_PAGE_HINT |
		       1ull << VIRTIO_BALLOON_F_PAGE_POISON | 1ull << VIRTIO_BALLOON_F_REPORTING;
	b->v.config = &b->config;
	b->v.config_size = sizeof(b->config);
	*out = &b->v;
	return 0;
}

void balloon_set(struct virtio *v, uint64_t bytes)
{
	struct balloon *b = (struct balloon *)v;
	uint64_t max = v->env.mem->size;

	b->config.num_pages = (uint32_t)((bytes < max ? bytes : max) / BALLOON_PAGE);
	virtio_config_changed(v);
}

int balloon_poll(struct virtio *v)
{
	struct queue *q = balloon_queue(v, BALLOON_STATS);
	struct chain c;

	if (!q || !queue_pop(q, &c))
		return 0;
	/* Back to the guest, which fills it and brings it again. */
	queue_push(q, c.head, 0);
	queue_signal(q);
	if (queue_pop(q, &c))		/* none: then it is listened to */
		queue_unpop(q);
	return 1;
}

int balloon_hint_start(struct virtio *v)
{
	struct balloon *b = (struct balloon *)v;

	if (!v->active || !virtio_has(v, VIRTIO_BALLOON_F_FREE_PAGE_HINT))
		return 0;
	/* 5.5.6.6.1: a new id for each, above the reserved ones. */
	if (++b->last_id <= VIRTIO_BALLOON_CMD_ID_DONE)
		b->last_id = VIRTIO_BALLOON_CMD_ID_DONE + 1;
	b->hint_id = b->last_id;
	b->hinting = 0;
	b->info.hint_running = 1;
	b->info.hinted = 0;
	b->config.free_page_hint_cmd_id = b->hint_id;
	virtio_config_changed(v);
	return 1;
}

void balloon_hint_done(struct virtio *v)
{
	struct balloon *b = (struct balloon *)v;

	b->hint_id = 0;
	b->hinting = 0;
	b->info.hint_running = 0;
	b->config.free_page_hint_cmd_id = VIRTIO_BALLOON_CMD_ID_DONE;
	virtio_config_changed(v);
}

void balloon_look(struct virtio *v, struct balloon_info *out)
{
	struct balloon *b = (struct balloon *)v;

	*out = b->info;
	out->target = (uint64_t)b->config.num_pages * BALLOON_PAGE;
	out->actual = (uint64_t)b->config.actual * BALLOON_PAGE;
}
