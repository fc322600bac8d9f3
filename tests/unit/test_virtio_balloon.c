/* SPDX-License-Identifier: MIT */
/*
 * test_virtio_balloon.c - memory given back to the host, for certain.
 */
#include "driver.h"

#include <sys/mman.h>

#include <linux/virtio_balloon.h>

#define F(x) (1ull << VIRTIO_BALLOON_F_##x)
#define ALL (F(STATS_VQ) | F(DEFLATE_ON_OOM) | F(FREE_PAGE_HINT) | F(PAGE_POISON) | F(REPORTING))

static int setup(void **state)
{
	struct vmm_error err;
	struct virtio *v;
	struct driver *d;

	drv_setup(state);
	d = *state;
	/* Page by page, whatever the host's huge pages are set to. */
	madvise(d->mem.hva, DRV_RAM_SIZE, MADV_NOHUGEPAGE);
	memset(d->mem.hva, 0xaa, DRV_RAM_SIZE);
	assert_int_equal(balloon_new(&v, &d->env, "balloon0", &err), 0);
	drv_attach(d, v);
	drv_run(d);
	return 0;
}

/* How many of n pages from gpa on the host holds. */
static int held(struct driver *d, uint64_t gpa, int n)
{
	unsigned char vec[64];
	int i, sum = 0;

	assert_int_equal(mincore(drv_hva(d, gpa), (size_t)n * 4096, vec), 0);
	for (i = 0; i < n; i++)
		sum += vec[i] & 1;
	return sum;
}

static void put_config(struct driver *d, uint32_t off, uint32_t val)
{
	loop_lock(&d->loop);
	d->dev->ops->bus->write(d->dev, VIRTIO_MMIO_CONFIG + off, 4, val);
	loop_unlock(&d->loop);
}

static void inflate(struct driver *d, const uint32_t *pfn, uint32_t n)
{
	struct drv_buf b = { drv_put(d, pfn, n * 4), n * 4 };

	assert_int_equal(drv_send(d, 0, &b, 1, 0), 0);
}

static void test_inflate(void **state)
{
	struct driver *d = *state;
	uint64_t at = DRV_RAM + (4u << 20);
	uint32_t pfn[6], base = (uint32_t)(at >> 12), i;
	struct virtio_balloon_config c;
	struct balloon_info info;
	static const uint8_t zero[4096];
	uint8_t old[4096];

	drv_start(d, ALL);
	loop_lock(&d->loop);
	balloon_set(d->v, 1u << 20);
	loop_unlock(&d->loop);
	drv_config(d, 0, &c, sizeof(c));
	assert_int_equal(c.num_pages, 256);
	assert_int_equal(drv_read(d, VIRTIO_MMIO_INTERRUPT_STATUS), 2);
	/* 7, 3..6, and 9: in no order. */
	pfn[0] = base + 7;
	pfn[1] = base + 4;
	pfn[2] = base + 3;
	pfn[3] = base + 9;
	pfn[4] = base + 6;
	pfn[5] = base + 5;
	inflate(d, pfn, 6);
	put_config(d, 4, 6);
	assert_int_equal(held(d, at, 16), 10);
	assert_int_equal(held(d, at + 7 * 4096, 1), 0);
	memset(old, 0xaa, sizeof(old));
	for (i = 0; i < 16; i++)
		assert_memory_equal(drv_hva(d, at + i * 4096),
				    (i >= 3 && i <= 7) || i == 9 ? zero : old, 4096);
	loop_lock(&d->loop);
	balloon_look(d->v, &info);
	loop_unlock(&d->loop);
	assert_int_equal(info.target, 1u << 20);
	assert_int_equal(info.actual, 6 * 4096);
	assert_int_equal(info.inflated, 6 * 4096);
	/* Given back, and used again. */
	struct drv_buf b = { drv_put(d, pfn, 8), 8 };
	assert_int_equal(drv_send(d, 1, &b, 1, 0), 0);
	memset(drv_hva(d, at), 0xbb, 16 * 4096);
	/* Pages that are not RAM. */
	pfn[1] = (uint32_t)((DRV_RAM + DRV_RAM_SIZE) >> 12);
	b.gpa = drv_put(d, pfn, 8);
	drv_add(d, 0, &b, 1, 0);
	drv_notify(d, 0);
	assert_true(drv_broken(d));
	drv_start(d, ALL);
	pfn[1] = 0xffffffff;
	b.gpa = drv_put(d, pfn, 8);
	drv_add(d, 0, &b, 1, 0);
	drv_notify(d, 0);
	assert_true(drv_broken(d));
	drv_start(d, ALL);
	b.len = 100000;
	drv_add(d, 0, &b, 1, 0);
	drv_notify(d, 0);
	assert_true(drv_broken(d));
}

/* A guest that gives many pages at once does not keep the lock while it lasts. */
static void test_turns(void **state)
{
	static uint32_t pfn[4096];
	struct driver *d = *state;
	struct drv_buf b = { 0, sizeof(pfn) };
	uint32_t i;

	drv_start(d, ALL);
	for (i = 0; i < 4096; i++)
		pfn[i] = (uint32_t)((DRV_RAM + (4u << 20)) >> 12) + i % 8 * 2;
	b.gpa = drv_put(d, pfn, sizeof(pfn));
	loop_hold(&d->loop);
	for (i = 0; i < 5; i++)
		drv_add(d, 0, &b, 1, 0);
	drv_notify(d, 0);
	for (i = 0; i < 2; i++)
		assert_true(drv_get(d, 0, NULL, NULL));
	assert_false(drv_get(d, 0, NULL, NULL));
	loop_release(&d->loop);
	for (i = 0; i < 3; i++)
		assert_true(drv_wait(d, 0, NULL, NULL));
}

/* Over a snapshot: zeroes, not what the snapshot holds. */
static void test_private(void **state)
{
	struct driver *d = *state;
	uint64_t at = DRV_RAM + (4u << 20);
	static const uint8_t zero[8192];
	struct drv_buf b;
	int fd = memfd_create("snapshot", MFD_CLOEXEC);

	assert_int_equal(write(fd, d->mem.hva, DRV_RAM_SIZE), DRV_RAM_SIZE);
	assert_true(mmap(d->mem.hva, DRV_RAM_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED,
			 fd, 0) == d->mem.hva);
	d->mem.kind = MEM_PRIVATE;
	drv_start(d, ALL);
	b.gpa = at;
	b.len = 8192;
	assert_int_equal(drv_send(d, 4, &b, 0, 1), 0);
	assert_memory_equal(drv_hva(d, at), zero, 8192);
	assert_int_equal(*(uint8_t *)drv_hva(d, at + 8192), 0xaa);
	assert_int_equal(*(uint8_t *)drv_hva(d, at - 1), 0xaa);
	/* Only whole pages. */
	b.gpa = at + 16384 + 100;
	b.len = 8192;
	assert_int_equal(drv_send(d, 4, &b, 0, 1), 0);
	assert_int_equal(*(uint8_t *)drv_hva(d, at + 16384 + 4095), 0xaa);
	assert_memory_equal(drv_hva(d, at + 20480), zero, 4096);
	assert_int_equal(*(uint8_t *)drv_hva(d, at + 24576), 0xaa);
	b.gpa = at + 32768;
	b.len = 100;
	assert_int_equal(drv_send(d, 4, &b, 0, 1), 0);
	assert_int_equal(*(uint8_t *)drv_hva(d, at + 32768), 0xaa);
	close(fd);
}

static void test_reporting(void **state)
{
	struct driver *d = *state;
	uint64_t at = DRV_RAM + (4u << 20);
	struct drv_buf b[2] = { { at, 65536 }, { at + 131072, 65536 } };
	struct balloon_info info;

	drv_start(d, ALL);
	assert_int_equal(drv_send(d, 4, b, 0, 2), 0);
	assert_int_equal(held(d, at, 16), 0);
	assert_int_equal(held(d, at + 65536, 16), 16);
	assert_int_equal(held(d, at + 131072, 16), 0);
	loop_lock(&d->loop);
	balloon_look(d->v, &info);
	loop_unlock(&d->loop);
	assert_int_equal(info.reported, 131072);
	/* A guest that poisons what it frees would miss its poison. */
	put_config(d, 12, 0xaaaaaaaa);
	b[0].gpa = at + 65536;
	assert_int_equal(drv_send(d, 4, b, 0, 1), 0);
	assert_int_equal(held(d, at + 65536, 16), 16);
	/* Fewer features: the queue moves up. */
	drv_start(d, F(REPORTING) | F(STATS_VQ));
	assert_int_equal(drv_send(d, 3, b, 0, 1), 0);
	assert_int_equal(held(d, at + 65536, 16), 0);
	drv_start(d, F(REPORTING));
	b[0].gpa = at + 131072 + 65536;
	assert_int_equal(drv_send(d, 2, b, 0, 1), 0);
	assert_int_equal(held(d, b[0].gpa, 16), 0);
	/* A queue that means nothing. */
	assert_int_equal(drv_send(d, 4, b, 0, 1), 0);
}

static void test_stats(void **state)
{
	struct driver *d = *state;
	struct virtio_balloon_stat s[3] = { { VIRTIO_BALLOON_S_MEMFREE, 1000 },
					    { VIRTIO_BALLOON_S_MEMTOT, 5000 }, { 999, 1 } };
	struct balloon_info info;
	struct writer w;
	struct drv_buf b;
	int round;

	drv_start(d, ALL);
	loop_lock(&d->loop);
	assert_int_equal(balloon_poll(d->v), 0);
	loop_unlock(&d->loop);
	b.gpa = drv_put(d, s, sizeof(s));
	b.len = sizeof(s);
	for (round = 1; round <= 3; round++) {
		drv_add(d, 2, &b, 1, 0);
		drv_notify(d, 2);
		assert_false(drv_get(d, 2, NULL, NULL));
		drv_save(d, &w);
		free(w.data);
		loop_lock(&d->loop);
		balloon_look(d->v, &info);
		assert_int_equal(info.stats_seq, round);
		assert_int_equal(info.stat[VIRTIO_BALLOON_S_MEMFREE], 1000);
		assert_int_equal(info.stat[VIRTIO_BALLOON_S_MEMTOT], 5000);
		assert_int_equal(balloon_poll(d->v), 1);
		loop_unlock(&d->loop);
		assert_true(drv_get(d, 2, NULL, NULL));
	}
	drv_start(d, 0);
	loop_lock(&d->loop);
	assert_int_equal(balloon_poll(d->v), 0);
	loop_unlock(&d->loop);
}

static void test_hint(void **state)
{
	struct driver *d = *state;
	uint64_t at = DRV_RAM + (4u << 20);
	struct virtio_balloon_config c;
	struct balloon_info info;
	struct drv_buf b;
	uint32_t id, round, stop = 0;

	loop_lock(&d->loop);
	assert_int_equal(balloon_hint_start(d->v), 0);
	loop_unlock(&d->loop);
	drv_start(d, ALL);
	for (round = 0, id = 0; round < 2; round++) {
		loop_lock(&d->loop);
		assert_int_equal(balloon_hint_start(d->v), 1);
		loop_unlock(&d->loop);
		drv_config(d, 0, &c, sizeof(c));
		assert_true(c.free_page_hint_cmd_id >= 2 && c.free_page_hint_cmd_id != id);
		id = c.free_page_hint_cmd_id;
		memset(drv_hva(d, at), 1, 65536);
		/* Of an older hint: not to be touched. */
		b = (struct drv_buf){ at, 65536 };
		assert_int_equal(drv_send(d, 3, &b, 0, 1), 0);
		assert_int_equal(held(d, at, 16), 16);
		b = (struct drv_buf){ drv_put(d, &id, 4), 4 };
		assert_int_equal(drv_send(d, 3, &b, 1, 0), 0);
		b = (struct drv_buf){ at, 65536 };
		assert_int_equal(drv_send(d, 3, &b, 0, 1), 0);
		assert_int_equal(held(d, at, 16), 0);
		loop_lock(&d->loop);
		balloon_look(d->v, &info);
		assert_int_equal(info.hint_running, 1);
		loop_unlock(&d->loop);
		b = (struct drv_buf){ drv_put(d, &stop, 4), 4 };
		assert_int_equal(drv_send(d, 3, &b, 1, 0), 0);
		loop_lock(&d->loop);
		balloon_look(d->v, &info);
		assert_int_equal(info.hint_running, 0);
		assert_int_equal(info.hinted, 65536);
		balloon_hint_done(d->v);
		loop_unlock(&d->loop);
		drv_config(d, 0, &c, sizeof(c));
		assert_int_equal(c.free_page_hint_cmd_id, VIRTIO_BALLOON_CMD_ID_DONE);
	}
}

static void test_state(void **state)
{
	struct driver *d = *state;
	struct vmm_error err;
	struct writer w, w2;
	struct virtio *v;

	drv_start(d, ALL);
	loop_lock(&d->loop);
	balloon_set(d->v, 12345678);
	balloon_hint_start(d->v);
	loop_unlock(&d->loop);
	put_config(d, 4, 99);
	put_config(d, 12, 0x55);
	drv_save(d, &w);
	drv_detach(d);
	assert_int_equal(balloon_new(&v, &d->env, "balloon0", &err), 0);
	drv_attach(d, v);
	assert_int_equal(drv_load(d, &w, &err), 0);
	drv_save(d, &w2);
	assert_int_equal(w.len, w2.len);
	assert_memory_equal(w.data, w2.data, w.len);
	free(w.data);
	free(w2.data);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, drv_teardown)
	const struct CMUnitTest tests[] = {
		T(test_inflate),
		T(test_turns), T(test_private), T(test_reporting), T(test_stats), T(test_hint),
		T(test_state),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
