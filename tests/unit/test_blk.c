/* SPDX-License-Identifier: MIT */
/*
 * test_blk.c - the disk on real files: by io_uring, by threads, with O_DIRECT,
 * with an overlay; saved and loaded; and hosts that fail it.
 */
#include "driver.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <linux/virtio_blk.h>

#define DISK_SIZE	(4u << 20)
#define BLK_BASE_FEATURES (1ull << VIRTIO_BLK_F_FLUSH | DRV_EVENT_IDX | DRV_INDIRECT)

struct disk_test {
	struct driver	d;
	char		path[64];
	int		fd;
	struct blk_config cfg;
};

static uint32_t rnd_state = 1;

static uint32_t rnd(void)
{
	rnd_state = rnd_state * 1664525u + 1013904223u;
	return rnd_state >> 8;
}

static int setup(void **state)
{
	struct disk_test *t = calloc(1, sizeof(*t));
	uint8_t block[4096];
	uint32_t i, k;

	drv_open(&t->d);
	snprintf(t->path, sizeof(t->path), "%s/disk-XXXXXX",
		 getenv("TMPDIR") ? getenv("TMPDIR") : "/var/tmp");
	t->fd = mkstemp(t->path);
	for (i = 0; i < DISK_SIZE / sizeof(block); i++) {
		for (k = 0; k < sizeof(block); k++)
			block[k] = (uint8_t)rnd();
		if (write(t->fd, block, sizeof(block)) != sizeof(block))
			return -1;
	}
	t->cfg = (struct blk_config)BLK_CONFIG_INIT;
	t->cfg.path = t->path;
	*state = t;
	return 0;
}

static int teardown(void **state)
{
	struct disk_test *t = *state;

	drv_close(&t->d);
	close(t->fd);
	unlink(t->path);
	free(t);
	return 0;
}

static struct virtio *make(struct disk_test *t)
{
	struct virtio *v;
	struct vmm_error err;

	if (blk_new(&v, &t->d.env, "disk0", &t->cfg, &err)) {
		print_message("%s\n", err.message);
		return NULL;
	}
	return v;
}

static void start(struct disk_test *t, uint64_t features)
{
	struct virtio *v = make(t);

	assert_non_null(v);
	drv_attach(&t->d, v);
	drv_run(&t->d);
	drv_start(&t->d, features);
}

/* ---- Requests --------------------------------------------------------------- */

struct request {
	uint64_t	hdr, data, status;
	uint16_t	head;
};

/* In flight: header, data in up to four buffers, status. */
static struct request ask(struct driver *d, uint32_t q, uint32_t type, uint64_t sector,
			  uint32_t len, const void *out)
{
	struct virtio_blk_outhdr h = { type, 0, sector };
	struct request r = { drv_put(d, &h, sizeof(h)), 0, 0, 0 };
	int in = type == VIRTIO_BLK_T_IN || type == VIRTIO_BLK_T_GET_ID;
	struct drv_buf b[7];
	uint16_t n = 0;
	uint32_t at = 0, run;

	r.data = drv_alloc(d, len + 1);
	if (out)
		memcpy(drv_hva(d, r.data), out, len);
	r.status = drv_alloc(d, 1);
	*(uint8_t *)drv_hva(d, r.status) = 0xee;
	b[n++] = (struct drv_buf){ r.hdr, sizeof(h) };
	while (at < len && n < 5) {
		run = n == 4 ? len - at : (len - at) / 2 + (len - at) % 2;
		b[n++] = (struct drv_buf){ r.data + at, run };
		at += run;
	}
	b[n++] = (struct drv_buf){ r.status, 1 };
	r.head = in ? drv_add(d, q, b, 1, (uint16_t)(n - 1)) :
		      drv_add(d, q, b, (uint16_t)(n - 1), 1);
	return r;
}

/* One request, waited for; returns its status. */
static int ask_wait(struct driver *d, uint32_t type, uint64_t sector, uint32_t len, const void *out,
		    void *in)
{
	uint64_t brk = d->brk;
	struct request r = ask(d, 0, type, sector, len, out);
	uint32_t id;
	int status;

	drv_notify(d, 0);
	assert_true(drv_wait(d, 0, &id, NULL));
	assert_int_equal(id, r.head);
	status = *(uint8_t *)drv_hva(d, r.status);
	if (in)
		memcpy(in, drv_hva(d, r.data), len);
	d->brk = brk;
	return status;
}

static int unmap(struct driver *d, uint32_t type, uint64_t sector, uint32_t n, uint32_t flags)
{
	struct virtio_blk_discard_write_zeroes seg = { sector, n, flags };

	return ask_wait(d, type, 0, sizeof(seg), &seg, NULL);
}

static uint64_t blocks(int fd)
{
	struct stat st;

	fsync(fd);
	fstat(fd, &st);
	return (uint64_t)st.st_blocks;
}

/* Random reads and writes beside a model of the disk. */
static void exercise(struct disk_test *t, int rounds)
{
	uint8_t *model = malloc(DISK_SIZE), *buf = malloc(1u << 20);
	uint32_t sector, len;
	int i;

	for (sector = 0; sector < DISK_SIZE / 512; sector += 2048)
		assert_int_equal(ask_wait(&t->d, VIRTIO_BLK_T_IN, sector, 1u << 20, NULL,
					  model + sector * 512), VIRTIO_BLK_S_OK);
	for (i = 0; i < rounds; i++) {
		len = 512 * (1 + rnd() % (i % 8 ? 16 : 2048));
		sector = rnd() % ((DISK_SIZE - len) / 512 + 1);
		if (rnd() & 1) {
			memset(buf, (int)rnd() & 0xff, len);
			memcpy(buf, &i, sizeof(i));
			memcpy(model + sector * 512, buf, len);
			assert_int_equal(ask_wait(&t->d, VIRTIO_BLK_T_OUT, sector, len, buf, NULL),
					 VIRTIO_BLK_S_OK);
		} else {
			assert_int_equal(ask_wait(&t->d, VIRTIO_BLK_T_IN, sector, len, NULL, buf),
					 VIRTIO_BLK_S_OK);
			assert_memory_equal(buf, model + sector * 512, len);
		}
	}
	assert_int_equal(ask_wait(&t->d, VIRTIO_BLK_T_FLUSH, 0, 0, NULL, NULL), VIRTIO_BLK_S_OK);
	assert_int_equal(pread(t->fd, buf, 1u << 20, 0), 1u << 20);
	if (!(t->cfg.flags & BLK_OVERLAY))
		assert_memory_equal(buf, model, 1u << 20);
	assert_int_equal(t->d.lines, 0);
	assert_false(drv_broken(&t->d));
	free(model);
	free(buf);
}

static void test_rw(void **state)
{
	struct disk_test *t = *state;

	start(t, BLK_BASE_FEATURES);
	exercise(t, 200);
}

static void test_rw_threads(void **state)
{
	struct disk_test *t = *state;

	t->cfg.flags = BLK_THREADS;
	start(t, BLK_BASE_FEATURES);
	exercise(t, 200);
	assert_non_null(strstr(t->d.all, "threads"));
}

/* As in many a container: io_uring_setup() is forbidden, to this thread and to
   those it starts. */
static void *without_uring(void *arg)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_io_uring_setup, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog prog = { sizeof(code) / sizeof(*code), code };
	struct disk_test *t = arg;

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ||
	    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog))
		return NULL;
	start(t, BLK_BASE_FEATURES);
	exercise(t, 20);
	return strstr(t->d.all, "no io_uring (Operation not permitted)") ? t : NULL;
}

static void test_forbidden(void **state)
{
	pthread_t thread;
	void *result;

	pthread_create(&thread, NULL, without_uring, *state);
	pthread_join(thread, &result);
	assert_ptr_equal(result, *state);
}

static void test_rw_direct(void **state)
{
	struct disk_test *t = *state;

	t->cfg.flags = BLK_DIRECT;
	start(t, BLK_BASE_FEATURES);
	exercise(t, 100);
}

/* A driver that cannot flush: each write is durable. */
static void test_writethrough(void **state)
{
	struct disk_test *t = *state;

	start(t, 0);
	exercise(t, 20);
}

static void test_loop(void **state)
{
	struct disk_test *t = *state;
	struct virtio *v = make(t);

	v->notify_by = NOTIFY_LOOP;
	drv_attach(&t->d, v);
	drv_run(&t->d);
	drv_start(&t->d, BLK_BASE_FEATURES);
	exercise(t, 100);
}

static void test_requests(void **state)
{
	struct disk_test *t = *state;
	struct virtio_blk_config c;
	uint8_t buf[4096] = { 0 };

	t->cfg.serial = "a serial of more than twenty bytes";
	start(t, BLK_BASE_FEATURES);
	drv_config(&t->d, 0, &c, sizeof(c));
	assert_int_equal(c.capacity, DISK_SIZE / 512);
	assert_int_equal(c.seg_max, 254);
	assert_int_equal(ask_wait(&t->d, VIRTIO_BLK_T_GET_ID, 0, 20, NULL, buf), 0);
	assert_memory_equal(buf, "a serial of more tha", 20);
	assert_int_equal(ask_wait(&t->d, 99, 0, 512, buf, NULL), VIRTIO_BLK_S_UNSUPP);
	/* Outside: just, far, wrapping; and half a sector. */
	assert_int_equal(ask_wait(&t->d, VIRTIO_BLK_T_IN, DISK_SIZE / 512, 512, NULL, buf), 1);
	assert_int_equal(ask_wait(&t->d, VIRTIO_BLK_T_OUT, DISK_SIZE / 512 - 1, 1024, buf, NULL), 1);
	assert_int_equal(ask_wait(&t->d, VIRTIO_BLK_T_OUT, ~0ull, 512, buf, NULL), 1);
	assert_int_equal(ask_wait(&t->d, VIRTIO_BLK_T_IN, ~0ull / 512 + 1, 512, NULL, buf), 1);
	assert_int_equal(ask_wait(&t->d, VIRTIO_BLK_T_IN, 0, 100, NULL, buf), 1);
	assert_int_equal(ask_wait(&t->d, VIRTIO_BLK_T_IN, 0, 0, NULL, NULL), 0);
	assert_int_equal(ask_wait(&t->d, VIRTIO_BLK_T_DISCARD, 0, 15, buf, NULL), 1);
	assert_int_equal(ask_wait(&t->d, VIRTIO_BLK_T_DISCARD, 0, 32, buf, NULL), 1);
	/* None of it is the host's concern. */
	assert_int_equal(t->d.lines, 0);
}

static void test_broken_requests(void **state)
{
	struct disk_test *t = *state;
	struct driver *d = &t->d;
	uint64_t m;
	struct drv_buf b[2];

	start(t, BLK_BASE_FEATURES);
	m = drv_alloc(d, 64);
	b[0] = b[1] = (struct drv_buf){ m, 15 };
	drv_add(d, 0, b, 1, 1);
	drv_notify(d, 0);
	assert_true(drv_broken(d));
	drv_start(d, BLK_BASE_FEATURES);
	b[0].len = 16;
	drv_add(d, 0, b, 2, 0);
	drv_notify(d, 0);
	assert_true(drv_broken(d));
	drv_start(d, BLK_BASE_FEATURES);
	b[1].len = 0;
	drv_add(d, 0, b, 1, 1);
	drv_notify(d, 0);
	assert_true(drv_broken(d));
	drv_start(d, BLK_BASE_FEATURES);
	assert_int_equal(d->lines, 3);
	d->lines = 0;
	exercise(t, 1);
}

static void test_readonly(void **state)
{
	struct disk_test *t = *state;
	uint8_t buf[512] = { 1 };

	t->cfg.flags = BLK_READONLY;
	start(t, BLK_BASE_FEATURES | 1ull << VIRTIO_BLK_F_RO);
	assert_true(drv_offers(&t->d) & 1ull << VIRTIO_BLK_F_RO);
	assert_false(drv_offers(&t->d) & 1ull << VIRTIO_BLK_F_DISCARD);
	assert_int_equal(ask_wait(&t->d, VIRTIO_BLK_T_OUT, 0, 512, buf, NULL), 1);
	assert_int_equal(unmap(&t->d, VIRTIO_BLK_T_DISCARD, 0, 8, 0), 1);
	assert_int_equal(ask_wait(&t->d, VIRTIO_BLK_T_IN, 0, 512, NULL, buf), 0);
	assert_int_equal(ask_wait(&t->d, VIRTIO_BLK_T_FLUSH, 0, 0, NULL, NULL), 0);
}

static void test_discard(void **state)
{
	static const uint8_t zero[65536];
	struct disk_test *t = *state;
	uint8_t buf[65536];
	uint64_t before;
	int r;

	start(t, BLK_BASE_FEATURES);
	before = blocks(t->fd);
	assert_int_equal(unmap(&t->d, VIRTIO_BLK_T_DISCARD, 1024, 2048, 0), 0);
	assert_int_equal(ask_wait(&t->d, VIRTIO_BLK_T_IN, 1024, 65536, NULL, buf), 0);
	assert_memory_equal(buf, zero, 65536);
	assert_true(blocks(t->fd) + 2040 <= before);
	assert_int_equal(unmap(&t->d, VIRTIO_BLK_T_WRITE_ZEROES, 7, 3, 1), 0);
	assert_int_equal(ask_wait(&t->d, VIRTIO_BLK_T_IN, 0, 8192, NULL, buf), 0);
	assert_memory_equal(buf + 7 * 512, zero, 3 * 512);
	assert_memory_not_equal(buf + 6 * 512, zero, 512);
	assert_memory_not_equal(buf + 10 * 512, zero, 512);
	/* Without leave to unmap: done, or left to the driver. */
	r = unmap(&t->d, VIRTIO_BLK_T_WRITE_ZEROES, 4000, 100, 0);
	assert_true(r == VIRTIO_BLK_S_OK || r == VIRTIO_BLK_S_UNSUPP);
	assert_int_equal(unmap(&t->d, VIRTIO_BLK_T_WRITE_ZEROES, 0, 1, 2), VIRTIO_BLK_S_UNSUPP);
	assert_int_equal(unmap(&t->d, VIRTIO_BLK_T_DISCARD, 0, 1, 1), VIRTIO_BLK_S_UNSUPP);
	assert_int_equal(unmap(&t->d, VIRTIO_BLK_T_DISCARD, DISK_SIZE / 512 - 1, 2, 0), 1);
	assert_int_equal(unmap(&t->d, VIRTIO_BLK_T_DISCARD, ~0ull, 2, 0), 1);
	assert_int_equal(unmap(&t->d, VIRTIO_BLK_T_DISCARD, 0, ~0u, 0), 1);
	assert_int_equal(unmap(&t->d, VIRTIO_BLK_T_DISCARD, 5, 0, 0), 0);
	assert_int_equal(t->d.lines, 0);
}

/* On tmpfs, which cannot zero a range but can punch a hole. */
static void test_zeroes_in_memory(void **state)
{
	static const uint8_t zero[8192];
	struct disk_test *t = *state;
	uint8_t buf[8192];

	t->cfg.path = NULL;
	t->cfg.fd = memfd_create("disk", MFD_CLOEXEC);
	memset(buf, 1, sizeof(buf));
	assert_int_equal(pwrite(t->cfg.fd, buf, sizeof(buf), 0), sizeof(buf));
	start(t, BLK_BASE_FEATURES);
	assert_int_equal(unmap(&t->d, VIRTIO_BLK_T_WRITE_ZEROES, 1, 14, 0), 0);
	assert_int_equal(ask_wait(&t->d, VIRTIO_BLK_T_IN, 0, 8192, NULL, buf), 0);
	assert_memory_equal(buf + 512, zero, 14 * 512);
	assert_int_equal(buf[511], 1);
	assert_int_equal(buf[15 * 512], 1);
	close(t->cfg.fd);
	assert_int_equal(t->d.lines, 0);
}

/* ---- Many at once ---------------------------------------------------------------- */

static void depth(struct disk_test *t, uint32_t flags, uint32_t queues)
{
	struct driver *d = &t->d;
	struct request r[DRV_NUM];
	uint64_t brk;
	uint32_t i, round, q, done;
	uint8_t want[65536];

	t->cfg.flags = flags;
	t->cfg.queues = queues;
	start(t, BLK_BASE_FEATURES);
	for (round = 0; round < 20; round++) {
		brk = d->brk;
		for (q = 0; q < queues; q++) {
			for (i = 0; i < DRV_NUM; i++)
				r[i] = ask(d, q, VIRTIO_BLK_T_IN, 100 * i + round, 4096u << (i % 5),
					   NULL);
			drv_notify(d, q);
			for (done = 0; done < DRV_NUM; done++)
				assert_true(drv_wait(d, q, NULL, NULL));
			assert_false(drv_get(d, q, NULL, NULL));
			for (i = 0; i < DRV_NUM; i++) {
				assert_int_equal(*(uint8_t *)drv_hva(d, r[i].status), 0);
				assert_true(pread(t->fd, want, 4096u << (i % 5),
						  (100 * i + round) * 512) > 0);
				assert_memory_equal(drv_hva(d, r[i].data), want, 4096u << (i % 5));
			}
			d->brk = brk;
		}
	}
	drv_detach(d);
}

static void test_depth(void **state)
{
	depth(*state, 0, 1);
	depth(*state, BLK_DIRECT, 1);
	depth(*state, BLK_DIRECT | BLK_THREADS, 1);
	depth(*state, BLK_OVERLAY, 4);
}

/* After a while of single ones it is tried whether many come at a time: those are
   taken together, for one interrupt, until only single ones come again. */
static void test_many(void **state)
{
	enum { MANY = 6 };
	struct disk_test *t = *state;
	struct driver *d = &t->d;
	int i, round, irqs;
	uint64_t brk;

	start(t, BLK_BASE_FEATURES | DRV_EVENT_IDX | DRV_INDIRECT);
	for (i = 0; i < 255; i++)
		assert_int_equal(ask_wait(d, VIRTIO_BLK_T_IN, 8, 4096, NULL, NULL), 0);
	brk = d->brk;
	for (round = 0; round < 5; round++, d->brk = brk) {
		loop_hold(&d->loop);
		irqs = drv_irqs(d);
		for (i = 0; i < MANY; i++) {
			ask(d, 0, VIRTIO_BLK_T_IN, 8, 4096, NULL);
			drv_notify(d, 0);
		}
		assert_false(drv_get(d, 0, NULL, NULL));
		loop_release(&d->loop);
		for (i = 0; i < MANY; i++)
			assert_true(drv_wait(d, 0, NULL, NULL));
		drv_read(d, VIRTIO_MMIO_STATUS);	/* the lock: it has been signalled */
		assert_int_equal(drv_irqs(d), irqs + 1);
	}
	for (i = 0; i < 4; i++)
		assert_int_equal(ask_wait(d, VIRTIO_BLK_T_IN, 8, 4096, NULL, NULL), 0);
	loop_hold(&d->loop);
	ask(d, 0, VIRTIO_BLK_T_IN, 8, 4096, NULL);
	drv_notify(d, 0);
	assert_true(drv_get(d, 0, NULL, NULL));
	loop_release(&d->loop);
}

/* Held and let go again and again, with requests on their way: none is lost. */
static void test_pause(void **state)
{
	struct disk_test *t = *state;
	struct driver *d = &t->d;
	uint64_t brk;
	uint32_t round, i, done;
	struct writer w;

	t->cfg.flags = BLK_DIRECT;
	start(t, BLK_BASE_FEATURES);
	brk = d->brk;
	for (round = 0; round < 50; round++) {
		for (i = 0; i < DRV_NUM; i++)
			ask(d, 0, VIRTIO_BLK_T_IN, rnd() % 4096, 65536, NULL);
		drv_notify(d, 0);
		drv_save(d, &w);
		free(w.data);
		/* Quiet: all of them are done. */
		for (done = 0; done < DRV_NUM; done++)
			assert_true(drv_get(d, 0, NULL, NULL));
		d->brk = brk;
	}
}

/* Who waits for a disk to be quiet waits for so many bytes at most, whatever is in its ring. */
static void test_bounded(void **state)
{
	enum { ALL = 64, EACH = 2 << 20, AT_ONCE = (64 << 20) / EACH };
	struct disk_test *t = *state;
	struct driver *d = &t->d;
	struct drv_buf b[3];
	struct request r;
	uint32_t i;

	d->num = 4 * ALL;
	start(t, BLK_BASE_FEATURES);
	r = ask(d, 0, VIRTIO_BLK_T_IN, 0, EACH, NULL);
	b[0] = (struct drv_buf){ r.hdr, sizeof(struct virtio_blk_outhdr) };
	b[1] = (struct drv_buf){ r.data, EACH };
	for (i = 1; i < ALL; i++) {
		b[2] = (struct drv_buf){ drv_alloc(d, 1), 1 };
		drv_add(d, 0, b, 1, 2);
	}
	loop_hold(&d->loop);
	drv_notify(d, 0);
	d->dev->ops->quiesce(d->dev);
	for (i = 0; drv_get(d, 0, NULL, NULL); i++)
		;
	assert_in_range(i, 1, AT_ONCE + 1);
	loop_release(&d->loop);
	for (; i < ALL; i++)
		assert_true(drv_wait(d, 0, NULL, NULL));
}

/* The overlay has every other sector of the first n, so that they are n pieces. */
static void interleave(struct disk_test *t, uint32_t n)
{
	uint8_t buf[512];
	uint32_t i;

	for (i = 0; i < n; i += 2) {
		memset(buf, (int)i + 1, sizeof(buf));
		assert_int_equal(ask_wait(&t->d, VIRTIO_BLK_T_OUT, i, sizeof(buf), buf, NULL), 0);
	}
}

/* A request that is much work is not done at once. */
static void test_pieces(void **state)
{
	enum { PIECES = 1000 };
	struct disk_test *t = *state;
	struct driver *d = &t->d;
	uint8_t want[512];
	struct request r;
	uint32_t i;

	t->cfg.flags = BLK_OVERLAY;
	start(t, BLK_BASE_FEATURES);
	interleave(t, PIECES);
	loop_hold(&d->loop);
	r = ask(d, 0, VIRTIO_BLK_T_IN, 0, PIECES * 512, NULL);
	drv_notify(d, 0);
	assert_false(drv_get(d, 0, NULL, NULL));
	loop_release(&d->loop);
	assert_true(drv_wait(d, 0, NULL, NULL));
	assert_int_equal(*(uint8_t *)drv_hva(d, r.status), 0);
	for (i = 0; i < PIECES; i++) {
		memset(want, (int)i + 1, sizeof(want));
		if (i % 2)
			assert_int_equal(pread(t->fd, want, sizeof(want), i * 512), sizeof(want));
		assert_memory_equal((uint8_t *)drv_hva(d, r.data) + i * 512, want, sizeof(want));
	}
	drv_detach(d);
}

static void reset(struct disk_test *t, uint32_t flags, uint32_t len)
{
	struct driver *d = &t->d;
	uint64_t brk;
	uint32_t round, i;
	uint8_t *p;

	t->cfg.flags = flags;
	start(t, BLK_BASE_FEATURES);
	if (flags & BLK_OVERLAY)
		interleave(t, 4096);
	for (round = 0; round < 20; round++) {
		brk = d->brk;
		for (i = 0; i < DRV_NUM; i++)
			ask(d, 0, VIRTIO_BLK_T_IN, rnd() % 4096, len, NULL);
		drv_notify(d, 0);
		if (round & 1)		/* some have been begun, maybe */
			sched_yield();
		drv_write(d, VIRTIO_MMIO_STATUS, 0);
		/* From here on nothing is touched. */
		p = drv_hva(d, brk);
		memset(p, 0x55, d->brk - brk);
		drv_sleep();
		assert_memory_equal(p, p + 1, d->brk - brk - 1);
		assert_int_equal(p[0], 0x55);
		d->brk = DRV_RAM + 4096;
		drv_start(d, BLK_BASE_FEATURES);
	}
	exercise(t, 10);
	drv_detach(d);
}

static void test_reset(void **state)
{
	reset(*state, BLK_DIRECT, 65536);
	reset(*state, BLK_OVERLAY, 262144);
}

/* ---- Overlay, saved state ------------------------------------------------------- */

static uint8_t *contents(int fd)
{
	uint8_t *p = malloc(DISK_SIZE);

	assert_int_equal(pread(fd, p, DISK_SIZE, 0), DISK_SIZE);
	return p;
}

static void overlay(struct disk_test *t, const char *dir)
{
	uint8_t *before = contents(t->fd), *after, *a = malloc(1u << 20), *b = malloc(1u << 20);
	struct driver *d = &t->d, d2;
	struct virtio *v;
	struct writer w;
	struct vmm_error err;
	uint32_t s;

	t->cfg.flags = BLK_OVERLAY;
	t->cfg.layer_dir = dir;
	start(t, BLK_BASE_FEATURES);
	exercise(t, 200);
	assert_int_equal(unmap(d, VIRTIO_BLK_T_DISCARD, 100, 200, 0), 0);
	assert_int_equal(unmap(d, VIRTIO_BLK_T_WRITE_ZEROES, 1000, 99, 0), 0);
	after = contents(t->fd);
	assert_memory_equal(after, before, DISK_SIZE);
	drv_save(d, &w);
	assert_false(w.failed);

	/* The same disk in another machine. */
	drv_open(&d2);
	t->cfg.path = NULL;
	v = NULL;
	assert_int_equal(blk_new(&v, &d2.env, "disk0", &t->cfg, &err), 0);
	drv_attach(&d2, v);
	assert_int_equal(drv_load(&d2, &w, &err), 0);
	assert_int_equal(transport_open(d2.dev, &err), 0);
	drv_run(&d2);
	drv_start(&d2, BLK_BASE_FEATURES);
	for (s = 0; s < DISK_SIZE / 512; s += 2048) {
		assert_int_equal(ask_wait(d, VIRTIO_BLK_T_IN, s, 1u << 20, NULL, a), 0);
		assert_int_equal(ask_wait(&d2, VIRTIO_BLK_T_IN, s, 1u << 20, NULL, b), 0);
		assert_memory_equal(a, b, 1u << 20);
	}
	/* They part ways. */
	memset(a, 0x77, 4096);
	assert_int_equal(ask_wait(d, VIRTIO_BLK_T_OUT, 8, 4096, a, NULL), 0);
	assert_int_equal(ask_wait(&d2, VIRTIO_BLK_T_IN, 8, 4096, NULL, b), 0);
	assert_memory_not_equal(a, b, 4096);
	drv_close(&d2);
	free(w.data);
	free(before);
	free(after);
	free(a);
	free(b);
	drv_detach(d);
	t->cfg.path = t->path;
}

static void test_overlay(void **state)
{
	struct disk_test *t = *state;

	overlay(t, NULL);
	overlay(t, "/var/tmp");
	assert_int_equal(t->d.lines, 0);
}

/* In the middle of requests, with the driver none the wiser. */
static void test_save(void **state)
{
	struct disk_test *t = *state;
	struct driver *d = &t->d;
	struct vmm_error err;
	struct request r[8];
	struct virtio *v;
	struct writer w, w2;
	struct reader cut;
	uint8_t want[4096];
	char away[80];
	size_t n;
	uint32_t i;

	t->cfg.bytes_per_sec = 1u << 30;
	t->cfg.queues = 3;
	start(t, BLK_BASE_FEATURES);
	for (i = 0; i < 8; i++)
		r[i] = ask(d, 0, VIRTIO_BLK_T_IN, 50 * i, 4096, NULL);
	drv_notify(d, 0);
	drv_save(d, &w);
	/* Power off; a new device over the same RAM. */
	drv_detach(d);
	t->cfg.path = NULL;
	t->cfg.bytes_per_sec = 0;
	t->cfg.queues = 0;
	assert_int_equal(blk_new(&v, &d->env, "disk0", &t->cfg, &err), 0);
	drv_attach(d, v);
	for (n = 0; n < w.len; n++) {
		cut = (struct reader){ w.data, n, 0 };
		assert_int_not_equal(d->dev->ops->load(d->dev, &cut, &err), 0);
	}
	assert_int_equal(drv_load(d, &w, &err), 0);
	drv_save(d, &w2);
	assert_int_equal(w2.len, w.len);
	assert_memory_equal(w2.data, w.data, w.len);
	assert_int_equal(d->v->nqueues, 3);
	assert_int_equal(transport_open(d->dev, &err), 0);
	drv_run(d);
	for (i = 0; i < 8; i++) {
		assert_true(drv_wait(d, 0, NULL, NULL));
		assert_int_equal(*(uint8_t *)drv_hva(d, r[i].status), 0);
		assert_int_equal(pread(t->fd, want, 4096, 50 * i * 512), 4096);
		assert_memory_equal(want, drv_hva(d, r[i].data), 4096);
	}
	exercise(t, 20);
	/* The file has another size now: refused, and told why. */
	drv_detach(d);
	assert_int_equal(ftruncate(t->fd, DISK_SIZE / 2), 0);
	assert_int_equal(blk_new(&v, &d->env, "disk0", &t->cfg, &err), 0);
	drv_attach(d, v);
	assert_int_equal(drv_load(d, &w, &err), 0);
	assert_int_equal(transport_open(d->dev, &err), VMM_EVERSION);
	assert_non_null(strstr(err.message, "the disk disk0 had"));
	/* Or is not there. */
	snprintf(away, sizeof(away), "%s.away", t->path);
	assert_int_equal(rename(t->path, away), 0);
	assert_int_equal(transport_open(d->dev, &err), VMM_ESYS);
	assert_non_null(strstr(err.message, t->path));
	assert_int_equal(rename(away, t->path), 0);
	t->cfg.path = t->path;
	assert_int_equal(blk_replace(v, &t->cfg, &err), VMM_EINVAL);
	assert_int_equal(ftruncate(t->fd, DISK_SIZE), 0);
	t->cfg.flags = BLK_READONLY;
	assert_int_equal(blk_replace(v, &t->cfg, &err), VMM_EINVAL);
	t->cfg.flags = 0;
	assert_int_equal(blk_replace(v, &t->cfg, &err), 0);
	drv_run(d);
	drv_start(d, BLK_BASE_FEATURES);
	exercise(t, 5);
	free(w.data);
	free(w2.data);
}

/* A descriptor is not a name: it has to be given again. */
static void test_descriptor(void **state)
{
	struct disk_test *t = *state;
	struct driver *d = &t->d;
	struct vmm_error err;
	struct virtio *v;
	struct writer w;

	t->cfg.path = NULL;
	t->cfg.fd = t->fd;
	start(t, BLK_BASE_FEATURES);
	exercise(t, 20);
	drv_save(d, &w);
	drv_detach(d);
	t->cfg.fd = -1;
	assert_int_equal(blk_new(&v, &d->env, "disk0", &t->cfg, &err), 0);
	drv_attach(d, v);
	assert_int_equal(drv_load(d, &w, &err), 0);
	assert_int_equal(transport_open(d->dev, &err), VMM_ESTATE);
	t->cfg.fd = t->fd;
	assert_int_equal(blk_replace(v, &t->cfg, &err), 0);
	assert_int_equal(transport_open(d->dev, &err), 0);
	drv_run(d);
	exercise(t, 20);
	free(w.data);
}

/* ---- The host ------------------------------------------------------------------------ */

static void test_resize(void **state)
{
	struct disk_test *t = *state;
	struct driver *d = &t->d;
	struct virtio_blk_config c;
	uint8_t buf[512];
	struct vmm_error err;
	uint32_t gen;

	start(t, BLK_BASE_FEATURES);
	gen = drv_read(d, VIRTIO_MMIO_CONFIG_GENERATION);
	assert_int_equal(ask_wait(d, VIRTIO_BLK_T_IN, DISK_SIZE / 512, 512, NULL, buf), 1);
	assert_int_equal(ftruncate(t->fd, DISK_SIZE * 2), 0);
	loop_lock(&d->loop);
	assert_int_equal(blk_resize(d->v, &err), 0);
	loop_unlock(&d->loop);
	assert_int_equal(drv_read(d, VIRTIO_MMIO_INTERRUPT_STATUS) & 2, 2);
	assert_int_not_equal(drv_read(d, VIRTIO_MMIO_CONFIG_GENERATION), gen);
	drv_config(d, 0, &c, sizeof(c));
	assert_int_equal(c.capacity, DISK_SIZE / 256);
	assert_int_equal(ask_wait(d, VIRTIO_BLK_T_IN, DISK_SIZE / 512, 512, NULL, buf), 0);
	assert_int_equal(ftruncate(t->fd, 1000), 0);
	assert_int_equal(blk_resize(d->v, &err), VMM_EINVAL);
}

static void test_resize_overlay(void **state)
{
	struct disk_test *t = *state;
	struct driver *d = &t->d;
	uint8_t buf[4096], want[4096];
	struct vmm_error err;

	t->cfg.flags = BLK_OVERLAY;
	start(t, BLK_BASE_FEATURES);
	memset(want, 0x77, sizeof(want));
	assert_int_equal(ask_wait(d, VIRTIO_BLK_T_OUT, DISK_SIZE / 512 - 8, 4096, want, NULL), 0);
	assert_int_equal(ftruncate(t->fd, 3ll << 30), 0);
	loop_lock(&d->loop);
	assert_int_equal(blk_resize(d->v, &err), 0);
	loop_unlock(&d->loop);
	assert_int_equal(ask_wait(d, VIRTIO_BLK_T_OUT, (3ull << 30) / 512 - 8, 4096, want, NULL), 0);
	assert_int_equal(ask_wait(d, VIRTIO_BLK_T_IN, (3ull << 30) / 512 - 8, 4096, NULL, buf), 0);
	assert_memory_equal(buf, want, 4096);
	assert_int_equal(ask_wait(d, VIRTIO_BLK_T_IN, DISK_SIZE / 512 - 8, 4096, NULL, buf), 0);
	assert_memory_equal(buf, want, 4096);
	assert_int_equal(ask_wait(d, VIRTIO_BLK_T_IN, DISK_SIZE / 512, 4096, NULL, buf), 0);
	assert_memory_not_equal(buf, want, 4096);
	assert_int_equal(ftruncate(t->fd, DISK_SIZE), 0);
	assert_int_equal(blk_resize(d->v, &err), VMM_EINVAL);
	assert_int_equal(d->lines, 0);
}

/* A descriptor that does not let us write: the guest is told, every time. */
static void test_no_write(void **state)
{
	struct disk_test *t = *state;
	struct driver *d = &t->d;
	uint8_t buf[512] = { 0 };
	int fd = open(t->path, O_RDONLY | O_CLOEXEC);

	t->cfg.path = NULL;
	t->cfg.fd = fd;
	start(t, BLK_BASE_FEATURES);
	close(fd);
	assert_int_equal(ask_wait(d, VIRTIO_BLK_T_OUT, 0, 512, buf, NULL), 1);
	assert_int_equal(unmap(d, VIRTIO_BLK_T_DISCARD, 0, 8, 0), 1);
	assert_non_null(strstr(d->line, "disk0: discard at byte 0: Bad file descriptor"));
	assert_int_equal(ask_wait(d, VIRTIO_BLK_T_IN, 0, 512, NULL, buf), 0);
}

static void test_truncated(void **state)
{
	struct disk_test *t = *state;
	struct driver *d = &t->d;
	uint8_t buf[65536];
	int i;

	start(t, BLK_BASE_FEATURES);
	assert_int_equal(ftruncate(t->fd, DISK_SIZE / 2 + 100), 0);
	for (i = 0; i < 10; i++)
		assert_int_equal(ask_wait(d, VIRTIO_BLK_T_IN, DISK_SIZE / 1024 - 8, 65536, NULL,
					  buf), 1);
	/* The 1st, 2nd, 4th and 8th. */
	assert_int_equal(d->lines, 4);
	assert_non_null(strstr(d->line, "disk0: read at byte 2097152: Input/output error"));
	assert_int_equal(ask_wait(d, VIRTIO_BLK_T_IN, 0, 65536, NULL, buf), 0);
}

/* A full disk: here, a limit on the size of files. */
static void test_full(void **state)
{
	struct disk_test *t = *state;
	struct rlimit old, lim;
	uint8_t buf[4096] = { 0 };

	signal(SIGXFSZ, SIG_IGN);
	start(t, BLK_BASE_FEATURES);
	getrlimit(RLIMIT_FSIZE, &old);
	lim = old;
	lim.rlim_cur = DISK_SIZE / 2;
	setrlimit(RLIMIT_FSIZE, &lim);
	assert_int_equal(ask_wait(&t->d, VIRTIO_BLK_T_OUT, DISK_SIZE / 512 - 8, 4096, buf, NULL), 1);
	setrlimit(RLIMIT_FSIZE, &old);
	assert_int_equal(t->d.lines, 1);
	assert_non_null(strstr(t->d.line, "disk0: write at byte 4190208: File too large"));
	assert_int_equal(ask_wait(&t->d, VIRTIO_BLK_T_OUT, DISK_SIZE / 512 - 8, 4096, buf, NULL), 0);
}

static void test_refused(void **state)
{
	struct disk_test *t = *state;
	struct blk_config c = t->cfg;
	struct vmm_error err;
	struct virtio *v;
	char pipe[80];

	c.path = "/nonexistent/disk";
	assert_int_equal(blk_new(&v, &t->d.env, "d", &c, &err), VMM_ESYS);
	assert_null(v);
	assert_non_null(strstr(err.message, "/nonexistent/disk"));
	c.path = "/dev/null";
	assert_int_not_equal(blk_new(&v, &t->d.env, "d", &c, &err), 0);
	c.path = "/";
	assert_int_not_equal(blk_new(&v, &t->d.env, "d", &c, &err), 0);
	/* A pipe that nobody has open at the other end: it is not waited for. */
	c.path = pipe;
	c.flags = BLK_READONLY;
	snprintf(pipe, sizeof(pipe), "%s.pipe", t->path);
	assert_int_equal(mkfifo(pipe, 0600), 0);
	assert_int_equal(blk_new(&v, &t->d.env, "d", &c, &err), VMM_ESYS);
	unlink(pipe);
	c.flags = 0;
	c.path = t->path;
	c.queues = QUEUES_MAX + 1;
	assert_int_equal(blk_new(&v, &t->d.env, "d", &c, &err), VMM_EINVAL);
	c.queues = 0;
	assert_int_equal(ftruncate(t->fd, 0), 0);
	assert_int_equal(blk_new(&v, &t->d.env, "d", &c, &err), VMM_EINVAL);
	assert_int_equal(ftruncate(t->fd, 1023), 0);
	assert_int_equal(blk_new(&v, &t->d.env, "d", &c, &err), VMM_EINVAL);
}

static uint64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

static void test_limits(void **state)
{
	struct disk_test *t = *state;
	struct driver *d = &t->d;
	uint64_t t0;
	uint32_t i;
	uint8_t buf[65536];

	t->cfg.ops_per_sec = 200;
	start(t, BLK_BASE_FEATURES);
	t0 = now_ms();
	for (i = 0; i < 40; i++)		/* 20 at once, then 5 ms each */
		assert_int_equal(ask_wait(d, VIRTIO_BLK_T_IN, i, 512, NULL, buf), 0);
	assert_in_range(now_ms() - t0, 80, 5000);
	loop_lock(&d->loop);
	blk_limit(d->v, 4u << 20, 0);
	loop_unlock(&d->loop);
	t0 = now_ms();
	for (i = 0; i < 14; i++)		/* 6 or 7 at once, then 16 ms each */
		assert_int_equal(ask_wait(d, VIRTIO_BLK_T_IN, 0, 65536, NULL, buf), 0);
	assert_in_range(now_ms() - t0, 70, 5000);
	t0 = now_ms();
	for (i = 0; i < 8; i++)			/* zeroes count as what is written */
		assert_int_equal(unmap(d, VIRTIO_BLK_T_WRITE_ZEROES, 0, 128, 0), 0);
	assert_true(now_ms() - t0 >= 70);
	loop_lock(&d->loop);
	blk_limit(d->v, 0, 0);
	loop_unlock(&d->loop);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(test_rw), T(test_rw_threads), T(test_forbidden), T(test_rw_direct), T(test_writethrough),
		T(test_loop), T(test_requests), T(test_broken_requests), T(test_readonly),
		T(test_discard), T(test_zeroes_in_memory), T(test_depth), T(test_many), T(test_pause),
		T(test_bounded), T(test_pieces), T(test_reset),
		T(test_overlay),
		T(test_save), T(test_descriptor), T(test_resize), T(test_resize_overlay), T(test_no_write),
		T(test_truncated),
		T(test_full), T(test_refused), T(test_limits),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
