/* SPDX-License-Identifier: MIT */
/*
 * test_virtio_console.c - bytes through a terminal and through named ports.
 */
#include "driver.h"

#include <fcntl.h>
#include <sys/socket.h>

#include <linux/virtio_console.h>

#define SIZE	(1ull << VIRTIO_CONSOLE_F_SIZE)
#define MULTI	(1ull << VIRTIO_CONSOLE_F_MULTIPORT)

struct console_test {
	struct driver	d;
	int		host[3];	/* our ends */
	int		guest[3];	/* the device's */
};

static int setup(void **state)
{
	struct console_test *t = calloc(1, sizeof(*t));
	int i, sv[2];

	drv_open(&t->d);
	for (i = 0; i < 3; i++) {
		if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv) < 0)
			return -1;
		t->host[i] = sv[0];
		t->guest[i] = sv[1];
		fcntl(sv[0], F_SETFL, O_NONBLOCK);
	}
	*state = t;
	return 0;
}

static int teardown(void **state)
{
	struct console_test *t = *state;
	int i;

	drv_close(&t->d);
	for (i = 0; i < 3; i++) {
		close(t->host[i]);
		close(t->guest[i]);
	}
	free(t);
	return 0;
}

static void attach(struct console_test *t, uint32_t nports)
{
	const struct console_port ports[3] = {
		{ NULL, t->guest[0], t->guest[0] },
		{ "org.example.agent", t->guest[1], t->guest[1] },
		{ "log", -1, t->guest[2] },
	};
	struct vmm_error err;
	struct virtio *v;

	assert_int_equal(console_new(&v, &t->d.env, "console0", ports, nports, &err), 0);
	drv_attach(&t->d, v);
	drv_run(&t->d);
}

/* What the host gets, within a while. */
static void expect_host(int fd, const char *text)
{
	char buf[256] = { 0 };
	size_t n = 0;
	ssize_t r;
	int i;

	for (i = 0; i < 5000 && n < strlen(text); i++) {
		r = read(fd, buf + n, sizeof(buf) - 1 - n);
		if (r > 0)
			n += (size_t)r;
		else
			drv_sleep();
	}
	assert_string_equal(buf, text);
}

static void say(struct driver *d, uint32_t q, const char *text)
{
	struct drv_buf b = { drv_put(d, text, strlen(text)), (uint32_t)strlen(text) };

	assert_int_equal(drv_send(d, q, &b, 1, 0), 0);
}

/* Offer a buffer for input; returns where it is. */
static uint64_t offer(struct driver *d, uint32_t q, uint32_t len)
{
	struct drv_buf b = { drv_alloc(d, len), len };

	drv_add(d, q, &b, 0, 1);
	drv_notify(d, q);
	return b.gpa;
}

static void expect_guest(struct driver *d, uint32_t q, uint64_t gpa, const char *text)
{
	uint32_t len;

	assert_true(drv_wait(d, q, NULL, &len));
	assert_int_equal(len, strlen(text));
	assert_memory_equal(drv_hva(d, gpa), text, len);
}

static void test_terminal(void **state)
{
	struct console_test *t = *state;
	struct driver *d = &t->d;
	struct virtio_console_config c;
	uint64_t a, b;

	attach(t, 1);
	assert_int_equal(drv_offers(d) & MULTI, 0);
	/* Before there is a driver. */
	loop_lock(&d->loop);
	d->dev->ops->bus->write(d->dev, VIRTIO_MMIO_CONFIG + 8, 4, '!');
	loop_unlock(&d->loop);
	expect_host(t->host[0], "!");
	assert_int_equal(write(t->host[0], "early", 5), 5);
	drv_start(d, SIZE | DRV_EVENT_IDX);
	say(d, 1, "hello");
	say(d, 1, ", world\n");
	expect_host(t->host[0], "hello, world\n");
	a = offer(d, 0, 3);
	expect_guest(d, 0, a, "ear");
	a = offer(d, 0, 64);
	expect_guest(d, 0, a, "ly");
	a = offer(d, 0, 64);
	b = offer(d, 0, 64);
	assert_int_equal(write(t->host[0], "one", 3), 3);
	expect_guest(d, 0, a, "one");
	assert_int_equal(write(t->host[0], "two", 3), 3);
	expect_guest(d, 0, b, "two");
	loop_lock(&d->loop);
	console_resize(d->v, 132, 43);
	loop_unlock(&d->loop);
	drv_config(d, 0, &c, sizeof(c));
	assert_int_equal(c.cols, 132);
	assert_int_equal(c.rows, 43);
	/* Nobody there any more: output goes nowhere, the guest goes on. */
	close(t->host[0]);
	t->host[0] = dup(t->host[1]);
	say(d, 1, "anybody?");
	say(d, 1, "anybody?");
}

/* More than anybody reads: the guest waits, and nothing is lost. */
static void test_backpressure(void **state)
{
	struct console_test *t = *state;
	struct driver *d = &t->d;
	uint32_t total = 3u << 20, n = 0, i;
	uint64_t gpa;
	struct drv_buf b;
	uint8_t *p, buf[8192];
	struct writer w;
	ssize_t r;
	int tries;

	attach(t, 1);
	drv_start(d, 0);
	gpa = drv_alloc(d, total);
	p = drv_hva(d, gpa);
	for (i = 0; i < total; i++)
		p[i] = (uint8_t)(i * 7 + i / 251);
	b = (struct drv_buf){ gpa, total };
	drv_add(d, 1, &b, 1, 0);
	drv_notify(d, 1);
	drv_sleep();
	drv_save(d, &w);
	free(w.data);
	assert_false(drv_get(d, 1, NULL, NULL));
	for (tries = 0; n < total && tries < 50000; tries++) {
		r = read(t->host[0], buf, sizeof(buf));
		if (r <= 0) {
			drv_sleep();
			continue;
		}
		assert_memory_equal(buf, p + n, (size_t)r);
		n += (uint32_t)r;
	}
	assert_int_equal(n, total);
	assert_true(drv_wait(d, 1, NULL, NULL));
}

/* ---- Ports ------------------------------------------------------------------- */

static void tell(struct driver *d, uint32_t id, uint16_t event, uint16_t value)
{
	struct virtio_console_control m = { id, event, value };
	struct drv_buf b = { drv_put(d, &m, sizeof(m)), sizeof(m) };

	assert_int_equal(drv_send(d, 3, &b, 1, 0), 0);
}

static void expect_control(struct driver *d, uint32_t id, uint16_t event, const char *rest,
			   uint32_t n)
{
	struct virtio_console_control m;
	uint64_t gpa = offer(d, 2, 64);
	uint32_t len;

	assert_true(drv_wait(d, 2, NULL, &len));
	memcpy(&m, drv_hva(d, gpa), sizeof(m));
	assert_int_equal(m.id, id);
	assert_int_equal(m.event, event);
	assert_int_equal(m.value, 1);
	assert_int_equal(len, sizeof(m) + n);
	assert_memory_equal((uint8_t *)drv_hva(d, gpa) + sizeof(m), rest, n);
}

/* size: of the terminal, if it has one. */
static void ready(struct driver *d, const char *size)
{
	uint32_t i;

	tell(d, 0, VIRTIO_CONSOLE_DEVICE_READY, 1);
	for (i = 0; i < 3; i++)
		expect_control(d, i, VIRTIO_CONSOLE_PORT_ADD, "", 0);
	for (i = 0; i < 3; i++)
		tell(d, i, VIRTIO_CONSOLE_PORT_READY, 1);
	expect_control(d, 0, VIRTIO_CONSOLE_CONSOLE_PORT, "", 0);
	expect_control(d, 0, VIRTIO_CONSOLE_PORT_OPEN, "", 0);
	if (size)
		expect_control(d, 0, VIRTIO_CONSOLE_RESIZE, size, 4);
	expect_control(d, 1, VIRTIO_CONSOLE_PORT_NAME, "org.example.agent", 17);
	expect_control(d, 1, VIRTIO_CONSOLE_PORT_OPEN, "", 0);
	expect_control(d, 2, VIRTIO_CONSOLE_PORT_NAME, "log", 3);
	expect_control(d, 2, VIRTIO_CONSOLE_PORT_OPEN, "", 0);
}

static void test_ports(void **state)
{
	struct console_test *t = *state;
	struct driver *d = &t->d;
	uint64_t a;

	attach(t, 3);
	assert_int_equal(d->v->nqueues, 8);
	drv_start(d, SIZE | MULTI | DRV_INDIRECT);
	ready(d, NULL);
	/* Nothing reaches a port that is not open. */
	assert_int_equal(write(t->host[1], "question", 8), 8);
	a = offer(d, 4, 64);
	drv_sleep();
	assert_false(drv_get(d, 4, NULL, NULL));
	tell(d, 1, VIRTIO_CONSOLE_PORT_OPEN, 1);
	expect_guest(d, 4, a, "question");
	say(d, 5, "answer");
	expect_host(t->host[1], "answer");
	say(d, 7, "a line\n");
	expect_host(t->host[2], "a line\n");
	say(d, 1, "terminal");
	expect_host(t->host[0], "terminal");
	loop_lock(&d->loop);
	console_resize(d->v, 80, 25);
	loop_unlock(&d->loop);
	expect_control(d, 0, VIRTIO_CONSOLE_RESIZE, "\x50\0\x19\0", 4);
	tell(d, 1, VIRTIO_CONSOLE_PORT_OPEN, 0);
	/* Ports and events that do not exist; half a message. */
	tell(d, 99, VIRTIO_CONSOLE_PORT_OPEN, 1);
	tell(d, 1, 77, 1);
	say(d, 3, "123");
	assert_false(drv_broken(d));
	/* A buffer for input without room. */
	a = drv_alloc(d, 8);
	tell(d, 1, VIRTIO_CONSOLE_PORT_OPEN, 1);
	drv_add(d, 4, &(struct drv_buf){ a, 8 }, 1, 0);
	drv_notify(d, 4);
	assert_true(drv_broken(d));
	drv_start(d, SIZE | MULTI);
	ready(d, "\x50\0\x19\0");
}

/* Input for a port that the guest has closed again waits, and keeps nobody busy. */
static void test_closed(void **state)
{
	struct console_test *t = *state;
	struct driver *d = &t->d;
	struct epoll_event ev;
	uint64_t a;

	attach(t, 3);
	drv_start(d, SIZE | MULTI | DRV_INDIRECT);
	ready(d, NULL);
	tell(d, 1, VIRTIO_CONSOLE_PORT_OPEN, 1);
	a = offer(d, 4, 64);
	drv_sleep();
	tell(d, 1, VIRTIO_CONSOLE_PORT_OPEN, 0);
	assert_int_equal(write(t->host[1], "late", 4), 4);
	assert_int_equal(epoll_wait(d->loop.epfd, &ev, 1, 50), 0);
	shutdown(t->host[1], SHUT_RDWR);
	assert_int_equal(epoll_wait(d->loop.epfd, &ev, 1, 50), 0);
	assert_false(drv_get(d, 4, NULL, NULL));
	tell(d, 1, VIRTIO_CONSOLE_PORT_OPEN, 1);
	expect_guest(d, 4, a, "late");
}

static void test_state(void **state)
{
	struct console_test *t = *state;
	struct driver *d = &t->d;
	const struct console_port none = { NULL, -1, -1 };
	struct vmm_error err;
	struct writer w, w2;
	struct virtio *v;
	struct reader r;
	uint64_t a;
	size_t n;

	attach(t, 3);
	drv_start(d, SIZE | MULTI);
	ready(d, NULL);
	tell(d, 1, VIRTIO_CONSOLE_PORT_OPEN, 1);
	a = offer(d, 4, 64);
	drv_save(d, &w);
	drv_detach(d);
	/* One that knows nothing of ports; then they get their descriptors. */
	assert_int_equal(console_new(&v, &d->env, "console0", &none, 1, &err), 0);
	drv_attach(d, v);
	drv_run(d);
	for (n = 0; n < w.len; n++) {
		r = (struct reader){ w.data, n, 0 };
		assert_int_not_equal(d->dev->ops->load(d->dev, &r, &err), 0);
	}
	loop_lock(&d->loop);
	assert_int_equal(drv_load(d, &w, &err), 0);
	assert_int_equal(console_port(v, "org.example.agent"), 1);
	assert_int_equal(console_port(v, "log"), 2);
	assert_int_equal(console_port(v, "none"), -1);
	for (n = 0; n < 3; n++)
		assert_int_equal(console_replace(v, (uint32_t)n, t->guest[n], t->guest[n], &err), 0);
	loop_unlock(&d->loop);
	drv_save(d, &w2);
	assert_int_equal(w.len, w2.len);
	assert_memory_equal(w.data, w2.data, w.len);
	assert_true(drv_offers(d) & MULTI);
	assert_int_equal(write(t->host[1], "still open", 10), 10);
	expect_guest(d, 4, a, "still open");
	say(d, 1, "here");
	expect_host(t->host[0], "here");
	/* Other descriptors. */
	loop_lock(&d->loop);
	assert_int_equal(console_replace(d->v, 0, t->guest[2], t->guest[2], &err), 0);
	assert_int_equal(console_replace(d->v, 3, -1, -1, &err), VMM_EINVAL);
	assert_int_equal(console_replace(d->v, 0, 9999, -1, &err), VMM_ESYS);
	loop_unlock(&d->loop);
	say(d, 1, "there");
	expect_host(t->host[2], "there");
	a = offer(d, 0, 64);
	assert_int_equal(write(t->host[2], "and back", 8), 8);
	expect_guest(d, 0, a, "and back");
	free(w.data);
	free(w2.data);
}

/* Ports that are added one by one are as those that were there from the first. */
static void test_add_port(void **state)
{
	struct console_test *t = *state;
	struct driver *d = &t->d;
	struct console_port port = { "log", -1, t->guest[1] };
	struct virtio_console_config c;
	struct vmm_error err;
	char name[8];
	uint32_t i;

	attach(t, 1);
	assert_int_equal(console_add_port(d->v, &port, &err), 0);
	assert_int_equal(console_add_port(d->v, &port, &err), VMM_EINVAL);
	port.out_fd = 9999;
	port.name = "bad";
	assert_int_equal(console_add_port(d->v, &port, &err), VMM_ESYS);
	port.out_fd = -1;
	for (i = 2; i < CONSOLE_PORTS; i++) {
		snprintf(name, sizeof(name), "p%u", i);
		port.name = name;
		assert_int_equal(console_add_port(d->v, &port, &err), 0);
	}
	port.name = "late";
	assert_int_equal(console_add_port(d->v, &port, &err), VMM_ENOTSUP);
	assert_int_equal(d->v->nqueues, 2 * CONSOLE_PORTS + 2);
	drv_config(d, 0, &c, sizeof(c));
	assert_int_equal(c.max_nr_ports, CONSOLE_PORTS);
	assert_true(drv_offers(d) & MULTI);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(test_terminal), T(test_backpressure), T(test_ports), T(test_closed), T(test_state),
		T(test_add_port),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
