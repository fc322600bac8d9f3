/* SPDX-License-Identifier: MIT */
/*
 * test_lazy.c - RAM that is decoded when it is touched: what every view sees,
 * damage, and ends in the middle.  Skipped where userfaultfd is not allowed.
 */
#include "snaptest.h"

#include <pthread.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "../../core/uffd.h"
#include "../../snapshot/snaplazy.h"

#define SIZE	(24 * MB)		/* of RAM; the platform's pages are behind it */

static struct ram ram;

static void hold(int on);

static int setup(void **state)
{
	int fd = uffd_open();

	hold(0);			/* whatever a test before left */
	enter_tmpdir(state);
	ram = ram_new(SIZE + MEM_TAIL);
	ram_mix(&ram, 5);
	/* A run of zeroes that is long, and one at the end. */
	memset(ram.map + 4 * MB, 0, 3 * MB);
	memset(ram.map + 20 * MB, 0, 4 * MB);
	if (fd >= 0)
		close(fd);
	return 0;
}

static int teardown(void **state)
{
	ram_free(&ram);
	return leave_tmpdir(state);
}

/*
 * The library's reads of a file come by here.  While decoders are held, those of a
 * thread that decodes in the background do not return.
 */
static pthread_mutex_t held_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t held_cond = PTHREAD_COND_INITIALIZER;
static int held, holding;

ssize_t pread(int fd, void *p, size_t n, off_t off)
{
	char name[16] = "";

	prctl(PR_GET_NAME, name);
	if (strcmp(name, "vmm-decode") == 0) {
		pthread_mutex_lock(&held_lock);
		holding++;
		pthread_cond_broadcast(&held_cond);
		while (held)
			pthread_cond_wait(&held_cond, &held_lock);
		holding--;
		pthread_mutex_unlock(&held_lock);
	}
	return syscall(SYS_pread64, fd, p, n, off);
}

static void hold(int on)
{
	pthread_mutex_lock(&held_lock);
	held = on;
	pthread_cond_broadcast(&held_cond);
	pthread_mutex_unlock(&held_lock);
}

/* So many are. */
static void await_held(int n)
{
	pthread_mutex_lock(&held_lock);
	while (holding < n)
		pthread_cond_wait(&held_cond, &held_lock);
	pthread_mutex_unlock(&held_lock);
}

static void may_skip(void)
{
	int fd = uffd_open();

	if (fd < 0)
		skip();
	close(fd);
}

static struct snap_lazy *lazy(const struct snapfile *f, unsigned int threads)
{
	struct snap_lazy *l;

	OK(snap_lazy_new(&l, f, ram.size, threads, &e_));
	return l;
}

static void view(struct mem *m, struct snap_lazy *l)
{
	OK(mem_init_private(m, 0x80000000, SIZE, snap_lazy_source(l), &e_));
}

struct toucher {
	struct mem	m;
	uint64_t	seed;
	pthread_t	thread;
	pthread_barrier_t *begin;	/* or NULL: behind a chunk of its own */
};

/* Every page once, in no order, half of them written to; as a vCPU does, by
   the mapping, or as a device does. */
static void *touch(void *arg)
{
	struct toucher *t = arg;
	uint64_t pages = ram.size / SNAP_PAGE, i, page;
	uint8_t *p;

	if (t->begin) {
		page = 8 * MB / SNAP_PAGE + t->seed * SNAP_CHUNK_PAGES;
		if (memcmp(t->m.hva + page * SNAP_PAGE, ram.map + page * SNAP_PAGE, SNAP_PAGE))
			return t;
		pthread_barrier_wait(t->begin);
	}
	for (i = 0; i < pages; i++) {
		page = (i * 2654435761u + t->seed) % pages;
		p = t->m.hva + page * SNAP_PAGE;
		if (t->seed & 1 && page * SNAP_PAGE < SIZE)
			p = mem_get(&t->m, t->m.gpa + page * SNAP_PAGE, SNAP_PAGE);
		if (i & 1)
			p[7] ^= 0xff;
		else if (memcmp(p, ram.map + page * SNAP_PAGE, SNAP_PAGE))
			return t;
		if (i & 1) {
			p[7] ^= 0xff;
			if (memcmp(p, ram.map + page * SNAP_PAGE, SNAP_PAGE))
				return t;
		}
	}
	return NULL;
}

/* Pages behind RAM are not RAM, so pages must be prime to the multiplier. */
_Static_assert((SIZE + MEM_TAIL) / SNAP_PAGE % 2654435761u, "each page once");

static void test_views(void **state)
{
	struct toucher t[4] = { 0 };
	struct snapfile *f;
	struct snap_lazy *l;
	struct mem last = { 0 };
	void *wrong;
	unsigned int i, round;

	(void)state;
	may_skip();
	write_ram("file", &ram, NULL);
	f = open_file("file");
	for (round = 0; round < 2; round++) {
		l = lazy(f, 1 + round % 2);
		for (i = 0; i < 4; i++) {
			view(&t[i].m, l);
			t[i].seed = i + round * 1000;
			pthread_create(&t[i].thread, NULL, touch, &t[i]);
		}
		for (i = 0; i < 4; i++) {
			pthread_join(t[i].thread, &wrong);
			assert_null(wrong);
		}
		OK(snap_lazy_finish(l, &e_));
		assert_int_equal(snap_lazy_source(l)->lacking, 0);
		/* What they wrote is theirs; and nobody is asked any more. */
		view(&last, l);
		assert_memory_equal(last.hva, ram.map, ram.size);
		assert_int_equal(last.waits, 0);
		assert_int_equal(pwrite(snap_lazy_source(l)->fd, "x", 1, 0), -1);
		mem_fini(&last);
		for (i = 0; i < 4; i++)
			mem_fini(&t[i].m);
		snap_lazy_free(l);
	}
	snapfile_close(f);
}

/* Decoders that never get to run hold up nobody: what is touched is there. */
static void test_starved(void **state)
{
	struct toucher t[2] = { 0 };
	pthread_barrier_t begin;
	struct snapfile *f;
	struct snap_lazy *l;
	unsigned int i;
	void *wrong;

	(void)state;
	may_skip();
	write_ram("file", &ram, NULL);
	f = open_file("file");
	hold(1);
	l = lazy(f, 2);
	assert_int_equal(snap_lazy_ready(l, NULL), 0);	/* there is none */
	await_held(2);
	pthread_barrier_init(&begin, NULL, 2);
	for (i = 0; i < 2; i++) {
		view(&t[i].m, l);
		t[i].seed = i;
		t[i].begin = &begin;
		pthread_create(&t[i].thread, NULL, touch, &t[i]);
	}
	for (i = 0; i < 2; i++) {
		pthread_join(t[i].thread, &wrong);
		assert_null(wrong);
		assert_true(__atomic_load_n(&t[i].m.waits, __ATOMIC_RELAXED) > 0);
	}
	pthread_barrier_destroy(&begin);
	assert_int_equal(snap_lazy_source(l)->lacking, 1);
	hold(0);
	OK(snap_lazy_finish(l, &e_));
	assert_int_equal(snap_lazy_source(l)->lacking, 0);
	for (i = 0; i < 2; i++)
		mem_fini(&t[i].m);
	snap_lazy_free(l);
	snapfile_close(f);
}

/* Views that come, go back and go while it fills; and it goes before the end. */
static void test_early_end(void **state)
{
	struct snapfile *f;
	struct snap_lazy *l;
	struct mem m = { 0 };
	unsigned int round;
	uint64_t at;

	(void)state;
	may_skip();
	write_ram("file", &ram, NULL);
	f = open_file("file");
	for (round = 0; round < 40; round++) {
		l = lazy(f, 1 + round % 3);
		view(&m, l);
		at = round * 1234567u % SIZE;
		assert_int_equal(m.hva[at], ram.map[at]);
		m.hva[at] ^= 1;
		OK(mem_rewind(&m, &e_));
		assert_int_equal(m.hva[at], ram.map[at]);
		if (round % 3 == 0)
			OK(snap_lazy_finish(l, &e_));
		at = round * 7654321u % SIZE;
		assert_memory_equal(mem_get(&m, m.gpa + at, 1), ram.map + at, 1);
		mem_fini(&m);
		snap_lazy_free(l);
	}
	snapfile_close(f);
}

/* The working set is there first, and costs what it is. */
static void test_ws(void **state)
{
	struct snap_region region;
	struct snap_image im = image_of(&ram, &region);
	struct snap_how how = { .threads = 1 };
	uint64_t ws[300], i;
	struct snapfile *f;
	struct snap_lazy *l;
	struct mem m = { 0 };

	(void)state;
	may_skip();
	for (i = 0; i < 300; i++)
		ws[i] = (i * 37 + 11) % (SIZE / SNAP_PAGE) << SNAP_WS_SHIFT | (i & 1);
	im.ws = ws;
	im.nws = 300;
	OK(snapfile_write("file", &im, &how, &e_));
	f = open_file("file");
	l = lazy(f, 2);
	view(&m, l);
	assert_int_equal(snap_lazy_ready(l, &m), 1);
	for (i = 0; i < 300; i++) {
		uint64_t off = (ws[i] >> SNAP_WS_SHIFT) * SNAP_PAGE;

		assert_memory_equal(mem_get(&m, m.gpa + off, SNAP_PAGE), ram.map + off, SNAP_PAGE);
	}
	OK(snap_lazy_finish(l, &e_));
	assert_memory_equal(m.hva, ram.map, ram.size);
	mem_fini(&m);
	snap_lazy_free(l);
	snapfile_close(f);
}

/* The first machine's working set is its own, until it is taken back: then device code asks for
   those pages, too. */
static void test_ws_again(void **state)
{
	struct snap_region region;
	struct snap_image im = image_of(&ram, &region);
	struct snap_how how = { .threads = 1 };
	uint64_t ws[20], i, off;
	struct snapfile *f;
	struct snap_lazy *l;
	struct mem m = { 0 };
	int fd;

	(void)state;
	may_skip();
	for (i = 0; i < 20; i++)
		ws[i] = (8 * MB + i * 5 * SNAP_PAGE) / SNAP_PAGE << SNAP_WS_SHIFT | 1;
	im.ws = ws;
	im.nws = 20;
	OK(snapfile_write("file", &im, &how, &e_));
	f = open_file("file");
	hold(1);
	l = lazy(f, 1);
	fd = snap_lazy_source(l)->fd;
	await_held(1);
	view(&m, l);
	assert_int_equal(snap_lazy_ready(l, &m), 1);
	OK(mem_rewind(&m, &e_));
	/* Nor can its working set be had at once any more. */
	assert_int_equal(truncate("file", (off_t)f->footer.ws_off), 0);
	assert_int_equal(snap_lazy_ready(l, &m), 0);
	for (i = 0; i < 20; i++) {
		off = (ws[i] >> SNAP_WS_SHIFT) * SNAP_PAGE;
		assert_non_null(mem_get(&m, m.gpa + off, SNAP_PAGE));
		if (!snap_is_zero(ram.map + off))	/* else it looks like a hole */
			assert_int_equal(lseek(fd, (off_t)off, SEEK_DATA), off);
	}
	hold(0);
	mem_fini(&m);
	snap_lazy_free(l);
	snapfile_close(f);
}

/* Of a frame of it that is damaged, or cut short, not a byte comes to the first machine: its pages
   are then had from where they are besides. */
static void test_ws_damaged(void **state)
{
	struct snap_region region;
	struct snap_image im = image_of(&ram, &region);
	uint64_t ws[20], i, first = 8 * MB, pass;
	struct snap_how how = { .threads = 1 };
	struct snapfile *f;
	struct snap_lazy *l;
	struct mem m = { 0 };
	int fd;

	(void)state;
	may_skip();
	for (i = 0; i < 20; i++) {
		memset(ram.map + first + i * SNAP_PAGE, (int)i + 1, 50);
		ws[i] = (first / SNAP_PAGE + i) << SNAP_WS_SHIFT | (i & 1);
	}
	im.ws = ws;
	im.nws = 20;
	for (pass = 0; pass < 3; pass++) {
		OK(snapfile_write("file", &im, &how, &e_));
		f = open_file("file");
		assert_int_equal(f->ws.nframes, 2);
		hold(1);
		l = lazy(f, 1);
		await_held(1);
		view(&m, l);
		fd = open("file", O_WRONLY);
		/* Within the fourth page of the first frame; in pass 2 nothing is wrong. */
		i = f->ws.frames[0].off + SNAP_RAW_HEAD + 3 * SNAP_PAGE + 100;
		if (pass == 0)
			assert_int_equal(pwrite(fd, "damage", 6, (off_t)i), 6);
		else if (pass == 1)
			assert_int_equal(ftruncate(fd, (off_t)i), 0);
		close(fd);
		assert_int_equal(snap_lazy_ready(l, &m), pass == 2);
		assert_memory_equal(mem_get(&m, m.gpa + first, 20 * SNAP_PAGE), ram.map + first,
				    20 * SNAP_PAGE);
		assert_int_equal(m.waits > 0, pass < 2);
		hold(0);
		/* RAM is whole all the same. */
		if (pass != 1)
			OK(snap_lazy_finish(l, &e_));
		mem_fini(&m);
		snap_lazy_free(l);
		snapfile_close(f);
	}
}

static pthread_mutex_t lost_lock = PTHREAD_MUTEX_INITIALIZER;

static void lost(void *arg, const struct vmm_error *err)
{
	struct vmm_error *to = arg;

	pthread_mutex_lock(&lost_lock);
	*to = *err;
	pthread_mutex_unlock(&lost_lock);
}

/* That it was told so, by the thread that serves faults or by another. */
static void was_lost(struct vmm_error *e, const char *words)
{
	pthread_mutex_lock(&lost_lock);
	assert_non_null(strstr(e->message, words));
	memset(e, 0, sizeof(*e));
	pthread_mutex_unlock(&lost_lock);
}

/* Change one byte of chunk's frame. */
static void damage(const struct snapfile *f, uint64_t chunk)
{
	uint32_t n;
	const struct snap_entry *e = snapfile_chunk(f, chunk, &n);
	int fd = open("file", O_RDWR);
	uint8_t b;

	assert_true(n && snap_entry_kind(e) == SNAP_KIND_FRAME);
	assert_int_equal(pread(fd, &b, 1, (off_t)e->off + 40), 1);
	b ^= 4;
	assert_int_equal(pwrite(fd, &b, 1, (off_t)e->off + 40), 1);
	close(fd);
}

static void test_damage(void **state)
{
	struct vmm_error a_lost = { 0 }, b_lost = { 0 };
	struct mem a = { 0 }, b = { 0 }, c = { 0 };
	struct snapfile *f;
	struct snap_lazy *l;
	uint64_t at = 9 * SNAP_CHUNK;

	(void)state;
	may_skip();
	write_ram("file", &ram, NULL);
	f = open_file("file");
	damage(f, 9);
	l = lazy(f, 2);
	view(&a, l);
	view(&b, l);
	a.lost = b.lost = lost;
	a.lost_arg = &a_lost;
	b.lost_arg = &b_lost;
	/* ThreadSanitizer sees no faults, but this lock. */
	view(&c, l);
	mem_fini(&c);
	/* A vCPU is let go, on zeroes. */
	assert_int_equal(*(volatile uint8_t *)(a.hva + at), 0);
	was_lost(&a_lost, "file: frame at byte");
	assert_null(mem_get(&a, a.gpa + at + 5000, 1));
	was_lost(&a_lost, "is damaged");
	FAILS(VMM_EFORMAT, "is damaged", mem_missing(&a, a.gpa + at, 1, &e_));
	/* The others go on. */
	assert_memory_equal(b.hva, ram.map, at);
	FAILS(VMM_EFORMAT, "is damaged", snap_lazy_finish(l, &e_));
	FAILS(VMM_EFORMAT, "is damaged", snap_lazy_finish(l, &e_));
	assert_memory_equal(b.hva + at + SNAP_CHUNK, ram.map + at + SNAP_CHUNK,
			    ram.size - at - SNAP_CHUNK);
	assert_int_equal(b_lost.code, 0);
	mem_fini(&a);
	mem_fini(&b);
	snap_lazy_free(l);
	snapfile_close(f);
}

/* What is mapped ahead, and cannot be had, is not zero: who touches it later is told. */
static void test_populate(void **state)
{
	const uint64_t at = 9 * SNAP_CHUNK + 3 * SNAP_PAGE;
	const struct mem_warm runs[] = { { SNAP_PAGE, SNAP_PAGE, 1 }, { at, SNAP_PAGE, 1 },
					 { at + SNAP_CHUNK, SNAP_PAGE, 1 } };
	struct vmm_error e = { 0 };
	struct mem m = { 0 };
	struct snapfile *f;
	struct snap_lazy *l;

	(void)state;
	may_skip();
	write_ram("file", &ram, NULL);
	f = open_file("file");
	damage(f, 9);
	l = lazy(f, 1);
	view(&m, l);
	m.lost = lost;
	m.lost_arg = &e;
	mem_populate(&m, runs, 3, 0);
	pthread_mutex_lock(&lost_lock);
	assert_int_equal(e.code, 0);
	pthread_mutex_unlock(&lost_lock);
	assert_memory_equal(m.hva + SNAP_PAGE, ram.map + SNAP_PAGE, SNAP_PAGE);
	assert_memory_equal(m.hva + at + SNAP_CHUNK, ram.map + at + SNAP_CHUNK, SNAP_PAGE);
	assert_int_equal(*(volatile uint8_t *)(m.hva + at), 0);
	was_lost(&e, "is damaged");
	mem_fini(&m);
	snap_lazy_free(l);
	snapfile_close(f);
}

/* The file is cut short, or removed, while it is in use. */
static void test_truncated(void **state)
{
	struct vmm_error e = { 0 };
	struct mem m = { 0 };
	struct snapfile *f;
	struct snap_lazy *l;
	uint64_t i, bad = 0;

	(void)state;
	may_skip();
	write_ram("file", &ram, NULL);
	f = open_file("file");
	unlink("file");
	l = lazy(f, 1);
	view(&m, l);
	assert_memory_equal(m.hva, ram.map, ram.size);
	mem_fini(&m);
	snap_lazy_free(l);
	snapfile_close(f);

	write_ram("file", &ram, NULL);
	f = open_file("file");
	assert_int_equal(truncate("file", (off_t)f->size / 2), 0);
	l = lazy(f, 1);
	view(&m, l);
	m.lost = lost;
	m.lost_arg = &e;
	for (i = 0; i < SIZE; i += SNAP_CHUNK)
		bad += !mem_get(&m, m.gpa + i, 1);
	assert_true(bad > 10 && bad < 300);
	was_lost(&e, "file: cut short");
	FAILS(VMM_EFORMAT, "cut short", snap_lazy_finish(l, &e_));
	mem_fini(&m);
	snap_lazy_free(l);
	snapfile_close(f);
}

/* In a process that locks what it maps a view would have pages before it is watched: wrong ones.
   The system call, as sanitizers leave the function out.  77: it may not. */
static int locked(void)
{
	struct mem m = { 0 };
	struct snapfile *f = open_file("file");
	struct vmm_error err;
	struct snap_lazy *l;
	int r;

	hold(1);
	l = lazy(f, 1);
	if (syscall(SYS_mlockall, MCL_FUTURE | MCL_ONFAULT) < 0)
		return 77;
	r = mem_init_private(&m, 0x80000000, SIZE, snap_lazy_source(l), &err);
	if (r != VMM_ENOTSUP || !strstr(err.message, "locked"))
		return 1;
	r = snap_lazy_new(&l, f, ram.size, 1, &err);
	return r != VMM_ENOTSUP || !strstr(err.message, "locked");
}

static void test_locked(void **state)
{
	int status;

	(void)state;
	may_skip();
	write_ram("file", &ram, NULL);
	if (fork() == 0)
		_exit(locked());
	assert_true(wait(&status) > 0);
	if (WEXITSTATUS(status) == 77)
		skip();
	assert_int_equal(status, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_views, setup, teardown),
		cmocka_unit_test_setup_teardown(test_starved, setup, teardown),
		cmocka_unit_test_setup_teardown(test_early_end, setup, teardown),
		cmocka_unit_test_setup_teardown(test_ws, setup, teardown),
		cmocka_unit_test_setup_teardown(test_ws_again, setup, teardown),
		cmocka_unit_test_setup_teardown(test_ws_damaged, setup, teardown),
		cmocka_unit_test_setup_teardown(test_damage, setup, teardown),
		cmocka_unit_test_setup_teardown(test_populate, setup, teardown),
		cmocka_unit_test_setup_teardown(test_truncated, setup, teardown),
		cmocka_unit_test_setup_teardown(test_locked, setup, teardown),
	};

	alarm(240);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
