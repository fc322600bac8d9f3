/* SPDX-License-Identifier: MIT */
/*
 * test_stream.c - core/stream.c: console bytes over every kind of descriptor,
 * none lost, none out of order, nobody else's descriptor changed.
 */
#include "unit.h"

#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <termios.h>

#include "../../core/stream.h"

static struct loop l;
static struct stream s;
static struct vmm_error err;
static int inputs, rooms;	/* calls of on_input and on_room */

static void on_input(void *arg)
{
	(void)arg;
	__atomic_add_fetch(&inputs, 1, __ATOMIC_SEQ_CST);
	stream_want(&s, 0);		/* as a device that is not asked */
}

static void on_room(void *arg)
{
	(void)arg;
	__atomic_add_fetch(&rooms, 1, __ATOMIC_SEQ_CST);
}

static int count(const int *n)
{
	return __atomic_load_n(n, __ATOMIC_SEQ_CST);
}

static int setup(void **state)
{
	sigset_t pipe_only;

	(void)state;
	inputs = rooms = 0;
	/* As on every thread of the library. */
	sigemptyset(&pipe_only);
	sigaddset(&pipe_only, SIGPIPE);
	pthread_sigmask(SIG_BLOCK, &pipe_only, NULL);
	return loop_init(&l, "test", &err);
}

static int teardown(void **state)
{
	(void)state;
	loop_stop(&l);
	loop_fini(&l);
	return 0;
}

static void begin(int in, int out)
{
	assert_ok(stream_open(&s, &l, in, out, on_input, on_room, NULL, &err));
	assert_ok(loop_start(&l, &err));
}

static void end(void)
{
	loop_stop(&l);
	stream_close(&s);
	stream_close(&s);		/* does nothing */
}

static size_t put(const void *p, size_t n)
{
	size_t r;

	loop_lock(&l);
	r = stream_write(&s, p, n);
	loop_unlock(&l);
	return r;
}

static size_t get(void *p, size_t n)
{
	size_t r;

	loop_lock(&l);
	r = stream_read(&s, p, n);
	loop_unlock(&l);
	return r;
}

static void want(int on)
{
	loop_lock(&l);
	stream_want(&s, on);
	loop_unlock(&l);
}

static size_t room(void)
{
	size_t r;

	loop_lock(&l);
	r = stream_room(&s);
	loop_unlock(&l);
	return r;
}

/* Wait for n bytes of input, by being told, not by asking. */
static void await_input(void *p, size_t n)
{
	size_t done = 0;
	int seen;

	while (done < n) {
		seen = count(&inputs);
		want(1);
		while (count(&inputs) == seen)
			nap_ms(1);
		done += get((uint8_t *)p + done, n - done);
	}
}

static uint8_t pattern(size_t i)
{
	return (uint8_t)(i * 31 + i / 256 + i / 65536);
}

/* ---- Output ------------------------------------------------------------------ */

struct drain {
	int		fd;
	size_t		want, got;
	int		wrong;
	int		slow;
};

static void *drain(void *arg)
{
	struct drain *d = arg;
	uint8_t buf[5000];
	ssize_t n, i;

	while (d->got < d->want) {
		size_t size = 1 + d->got % sizeof(buf);

		if (d->slow && d->got / 20000 != (d->got + size) / 20000)
			nap_ms(1);
		n = read(d->fd, buf, size);
		if (n <= 0)
			break;
		for (i = 0; i < n; i++)
			d->wrong += buf[i] != pattern(d->got + (size_t)i);
		d->got += (size_t)n;
	}
	return NULL;
}

/* Write as a device does: what is taken is gone, for more there must be room. */
static void flood(int write_fd, int read_fd, size_t total, int slow)
{
	struct drain d = { .fd = read_fd, .want = total, .slow = slow };
	uint8_t buf[3000];
	size_t done = 0, n, i;
	pthread_t t;
	int seen;

	begin(-1, write_fd);
	pthread_create(&t, NULL, drain, &d);
	while (done < total) {
		n = 1 + done % sizeof(buf);
		n = n < total - done ? n : total - done;
		for (i = 0; i < n; i++)
			buf[i] = pattern(done + i);
		seen = count(&rooms);
		i = put(buf, n);
		done += i;
		/* Not all taken: there is none, and we are told of some. */
		while (i < n && count(&rooms) == seen)
			nap_ms(1);
	}
	end();
	pthread_join(t, NULL);
	assert_int_equal(d.got, total);
	assert_int_equal(d.wrong, 0);
}

#define TOTAL	(SLOW ? 500000u : 1000000u)

static void test_pipe(void **state)
{
	int p[2];

	(void)state;
	assert_int_equal(pipe2(p, O_CLOEXEC), 0);
	flood(p[1], p[0], TOTAL, 1);
	assert_int_equal(fcntl(p[1], F_GETFL) & O_NONBLOCK, 0);
	close(p[0]);
	close(p[1]);
}

static void test_socket(void **state)
{
	int p[2];

	(void)state;
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, p), 0);
	flood(p[1], p[0], TOTAL, 1);
	assert_int_equal(fcntl(p[1], F_GETFL) & O_NONBLOCK, 0);
	close(p[0]);
	close(p[1]);
}

static int open_pty(int *other)
{
	struct termios t;
	int master = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);

	if (master < 0 || grantpt(master) < 0 || unlockpt(master) < 0)
		return -1;
	*other = open(ptsname(master), O_RDWR | O_NOCTTY | O_CLOEXEC);
	tcgetattr(*other, &t);
	cfmakeraw(&t);
	tcsetattr(*other, TCSANOW, &t);
	return master;
}

static void test_terminal(void **state)
{
	uint8_t buf[8];
	int master, slave;

	(void)state;
	master = open_pty(&slave);
	if (master < 0)
		skip();
	flood(slave, master, TOTAL / 10, 1);
	assert_int_equal(fcntl(slave, F_GETFL) & O_NONBLOCK, 0);
	/* And in the other direction. */
	begin(slave, slave);
	assert_int_equal(get(buf, sizeof(buf)), 0);
	assert_int_equal(write(master, "typed", 5), 5);
	await_input(buf, 5);
	assert_memory_equal(buf, "typed", 5);
	assert_int_equal(fcntl(slave, F_GETFL) & O_NONBLOCK, 0);
	end();
	close(master);
	close(slave);
}

/* The other side of a terminal: it cannot be opened again by its name. */
static void test_terminal_master(void **state)
{
	uint8_t buf[8];
	int master, slave;

	(void)state;
	master = open_pty(&slave);
	if (master < 0)
		skip();
	flood(master, slave, TOTAL / 10, 1);
	begin(master, master);
	assert_int_equal(get(buf, sizeof(buf)), 0);	/* does not block */
	assert_int_equal(write(slave, "typed", 5), 5);
	await_input(buf, 5);
	assert_memory_equal(buf, "typed", 5);
	assert_int_equal(fcntl(master, F_GETFL) & O_NONBLOCK, 0);
	end();
	close(master);
	close(slave);
}

static void test_file(void **state)
{
	char path[] = "/tmp/test_stream.XXXXXX";
	uint8_t buf[5000], back[5000];
	int fd = mkstemp(path);
	size_t i;

	(void)state;
	unlink(path);
	for (i = 0; i < sizeof(buf); i++)
		buf[i] = pattern(i);
	assert_int_equal(write(fd, "head", 4), 4);
	begin(-1, fd);
	for (i = 0; i < 100; i++)
		assert_int_equal(put(buf + 50 * i, 50), 50);
	end();
	assert_int_equal(pread(fd, back, sizeof(back), 4), 5000);
	assert_memory_equal(back, buf, 5000);
	close(fd);
}

static void test_null(void **state)
{
	int fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	uint8_t buf[70000] = { 0 };

	(void)state;
	begin(fd, fd);
	assert_int_equal(put(buf, sizeof(buf)), sizeof(buf));
	assert_int_equal(get(buf, sizeof(buf)), 0);
	want(1);
	assert_int_equal(get(buf, sizeof(buf)), 0);
	end();
	close(fd);
	/* A device that is always full takes everything, to nowhere. */
	fd = open("/dev/full", O_RDWR | O_CLOEXEC);
	begin(-1, fd);
	assert_int_equal(put(buf, sizeof(buf)), sizeof(buf));
	end();
	close(fd);
}

static void test_none(void **state)
{
	uint8_t buf[100] = { 0 };
	int before = fds();

	(void)state;
	begin(-1, -1);
	want(1);
	assert_int_equal(put(buf, sizeof(buf)), sizeof(buf));
	assert_int_equal(get(buf, sizeof(buf)), 0);
	assert_true(room() > 0);
	end();
	assert_int_equal(fds(), before);
}

/* Nobody reads: it is full at some time, keeps what it has taken, says so. */
static void test_full(void **state)
{
	uint8_t buf[4096], back[4096];
	size_t taken = 0, got = 0, n;
	ssize_t r;
	int p[2], i;

	(void)state;
	assert_int_equal(pipe2(p, O_CLOEXEC), 0);
	begin(-1, p[1]);
	do {
		for (i = 0; i < (int)sizeof(buf); i++)
			buf[i] = pattern(taken + (size_t)i);
		n = put(buf, sizeof(buf));
		taken += n;
	} while (n);
	assert_int_equal(room(), 0);
	assert_in_range(taken, STREAM_BUF, STREAM_BUF + (1u << 20));
	assert_int_equal(put(buf, 1), 0);
	nap_ms(20);
	assert_int_equal(count(&rooms), 0);
	while (got < taken) {
		r = read(p[0], back, sizeof(back));
		assert_true(r > 0);
		for (i = 0; i < r; i++)
			assert_int_equal(back[i], pattern(got + (size_t)i));
		got += (size_t)r;
	}
	while (!count(&rooms))
		nap_ms(1);
	assert_true(room() > 0);
	assert_int_equal(count(&rooms), 1);
	end();
	close(p[0]);
	close(p[1]);
}

/*
 * Who looks at the room, and so never has a byte refused, is told of room, too.
 */
static void test_exactly_full(void **state)
{
	uint8_t buf[4096] = { 0 };
	size_t n;
	int p[2];

	(void)state;
	assert_int_equal(pipe2(p, O_CLOEXEC), 0);
	begin(-1, p[1]);
	while ((n = room()))
		assert_int_equal(put(buf, n < sizeof(buf) ? n : sizeof(buf)),
				 n < sizeof(buf) ? n : sizeof(buf));
	while (!count(&rooms))
		if (readable(p[0], 1))
			assert_true(read(p[0], buf, sizeof(buf)) > 0);
	assert_true(room() > 0);
	loop_lock(&l);
	stream_close(&s);
	loop_unlock(&l);
	end();
	close(p[0]);
	close(p[1]);
}

/* A reader that goes away: all is taken, to nowhere, and no signal kills us. */
static void closed_reader(int write_fd, int read_fd)
{
	uint8_t buf[4096] = { 0 };
	unsigned int i;

	begin(-1, write_fd);
	while (put(buf, sizeof(buf)))
		;
	close(read_fd);
	for (i = 0; i < 1000; i++)
		while (!put(buf, sizeof(buf)))
			nap_ms(1);
	end();
	close(write_fd);
}

static void test_closed_reader(void **state)
{
	const struct timespec now = { 0, 0 };
	sigset_t set;
	int p[2];

	(void)state;
	assert_int_equal(pipe2(p, O_CLOEXEC), 0);
	closed_reader(p[1], p[0]);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, p), 0);
	closed_reader(p[1], p[0]);
	sigemptyset(&set);
	sigaddset(&set, SIGPIPE);
	while (sigtimedwait(&set, NULL, &now) > 0)
		;
	/* One that was gone before. */
	assert_int_equal(pipe2(p, O_CLOEXEC), 0);
	close(p[0]);
	begin(-1, p[1]);
	assert_int_equal(put("x", 1), 1);
	end();
	close(p[1]);
}

/* What has been taken is written before the I/O thread ends. */
static void test_linger(void **state)
{
	uint8_t buf[40000] = { 0 };
	struct drain d = { 0 };
	size_t i;
	int p[2];
	pthread_t t;

	(void)state;
	assert_int_equal(pipe2(p, O_CLOEXEC), 0);
	for (d.want = 0; d.want < 120000; d.want += sizeof(buf)) {
		if (!d.want)
			begin(-1, p[1]);
		for (i = 0; i < sizeof(buf); i++)
			buf[i] = pattern(d.want + i);
		assert_int_equal(put(buf, sizeof(buf)), sizeof(buf));
	}
	d.fd = p[0];
	d.slow = 1;
	pthread_create(&t, NULL, drain, &d);
	end();
	close(p[1]);
	pthread_join(t, NULL);
	assert_int_equal(d.got, d.want);
	assert_int_equal(d.wrong, 0);
	close(p[0]);
}

/* ---- Input ------------------------------------------------------------------- */

static void input(int from, int to)
{
	uint8_t buf[300];

	begin(from, -1);
	assert_int_equal(get(buf, sizeof(buf)), 0);
	assert_int_equal(write(to, "abc", 3), 3);
	await_input(buf, 3);
	assert_memory_equal(buf, "abc", 3);
	/* Asked for nothing it gives nothing, and goes on. */
	assert_int_equal(get(buf, 0), 0);
	assert_int_equal(write(to, "defg", 4), 4);
	assert_int_equal(get(buf, 0), 0);
	await_input(buf, 2);
	await_input(buf + 2, 2);
	assert_memory_equal(buf, "defg", 4);
	/* Unwanted it stays where it is. */
	want(0);
	inputs = 0;
	assert_int_equal(write(to, "h", 1), 1);
	nap_ms(10);
	assert_int_equal(count(&inputs), 0);
	await_input(buf, 1);
	assert_int_equal(buf[0], 'h');
	/* Its end is no busy loop. */
	close(to);
	want(1);
	nap_ms(10);
	assert_int_equal(get(buf, 1), 0);
	want(1);
	inputs = 0;
	nap_ms(10);
	assert_int_equal(count(&inputs), 0);
	assert_int_equal(get(buf, 1), 0);
	end();
	assert_int_equal(fcntl(from, F_GETFL) & O_NONBLOCK, 0);
	close(from);
}

static void test_input_pipe(void **state)
{
	int p[2];

	(void)state;
	assert_int_equal(pipe2(p, O_CLOEXEC), 0);
	input(p[0], p[1]);
}

static void test_input_socket(void **state)
{
	int p[2];

	(void)state;
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, p), 0);
	input(p[0], p[1]);
}

/* A regular file is always ready: epoll does not take it. */
static void test_input_file(void **state)
{
	int fd = file_of("0123456789", 10);
	uint8_t buf[16] = { 0 };

	(void)state;
	begin(fd, -1);
	await_input(buf, 4);
	await_input(buf + 4, 6);
	assert_memory_equal(buf, "0123456789", 10);
	want(1);
	assert_int_equal(get(buf, 1), 0);
	inputs = 0;
	want(1);
	assert_int_equal(count(&inputs), 0);
	end();
	close(fd);
}

static void test_bad_descriptor(void **state)
{
	int before = fds(), p[2];

	(void)state;
	assert_int_equal(pipe2(p, O_CLOEXEC), 0);
	assert_fails(stream_open(&s, &l, 999, -1, on_input, on_room, NULL, &err), VMM_ESYS,
		     "console input, descriptor 999");
	assert_int_equal(err.os_errno, EBADF);
	assert_fails(stream_open(&s, &l, p[0], 999, on_input, on_room, NULL, &err), VMM_ESYS,
		     "console output, descriptor 999");
	stream_close(&s);
	assert_int_equal(fds(), before + 2);
	/* Ours are close-on-exec. */
	begin(p[0], p[1]);
	assert_true(fcntl(s.in.fd, F_GETFD) & FD_CLOEXEC);
	assert_true(fcntl(s.out.fd, F_GETFD) & FD_CLOEXEC);
	end();
	close(p[0]);
	close(p[1]);
}

int main(void)
{
#define T(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(test_pipe), T(test_socket), T(test_terminal), T(test_terminal_master),
		T(test_file), T(test_null), T(test_none), T(test_full), T(test_exactly_full),
		T(test_closed_reader), T(test_linger), T(test_input_pipe), T(test_input_socket),
		T(test_input_file), T(test_bad_descriptor),
	};

	time_limit(20);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
