/* SPDX-License-Identifier: MIT */
/*
 * inside.c - what tests with a Linux guest run in the guest: see inlinux.h.
 *
 *	inside fill SEED BYTES		bytes that depend on SEED, to stdout
 *	inside check SEED BYTES		are these on stdin, and no more?
 *	inside serve ADDRESS		answer connections, for ever (peer.h)
 *	inside call ADDRESS COUNT AT_ONCE sink|source BYTES
 *					connect COUNT times, so many at once
 *
 * ADDRESS is vsock:PORT, of the host if it is called, or tcp:HOST:PORT.
 *
 * Exits with 1, and a line that says why, if anything is not as it should be.
 */
#include <arpa/inet.h>
#include <err.h>
#include <pthread.h>
#include <string.h>

#include <linux/vm_sockets.h>

#include "peer.h"

#define AT_ONCE_MAX	1024

static union {
	struct sockaddr	any;
	struct sockaddr_vm vm;
	struct sockaddr_in in;
} address;
static socklen_t address_len;

static void write_all(int fd, const void *buf, size_t n)
{
	const char *p = buf;
	ssize_t r;

	for (; n; p += r, n -= (size_t)r) {
		r = write(fd, p, n);
		if (r <= 0)
			err(1, "write");
	}
}

static void fill(struct pattern *p, uint64_t n)
{
	static uint8_t buf[65536];
	size_t k;

	for (; n; n -= k) {
		k = n < sizeof(buf) ? (size_t)n : sizeof(buf);
		pattern_make(p, buf, k);
		write_all(1, buf, k);
	}
}

static void check(struct pattern *p, uint64_t n)
{
	static uint8_t buf[65536];
	uint64_t off = 0;
	ssize_t r;

	while ((r = read(0, buf, sizeof(buf))) > 0) {
		if ((uint64_t)r > n - off)
			errx(1, "more than %llu bytes", (unsigned long long)n);
		if (!pattern_is(p, buf, (size_t)r))
			errx(1, "wrong bytes behind %llu", (unsigned long long)off);
		off += (uint64_t)r;
	}
	if (r < 0)
		err(1, "read");
	if (off < n)
		errx(1, "only %llu of %llu bytes", (unsigned long long)off, (unsigned long long)n);
}

/* ---- Conversations ------------------------------------------------------------ */

static int parse_address(char *s)
{
	char *colon;

	if (strncmp(s, "vsock:", 6) == 0) {
		address.vm.svm_family = AF_VSOCK;
		address.vm.svm_cid = VMADDR_CID_HOST;
		address.vm.svm_port = (unsigned int)atoi(s + 6);
		address_len = sizeof(address.vm);
		return AF_VSOCK;
	}
	colon = strrchr(s, ':');
	if (strncmp(s, "tcp:", 4) != 0 || colon == s + 3)
		errx(2, "no address: %s", s);
	*colon = 0;
	address.in.sin_family = AF_INET;
	address.in.sin_port = htons((uint16_t)atoi(colon + 1));
	if (inet_pton(AF_INET, s + 4, &address.in.sin_addr) != 1)
		errx(2, "no address: %s", s + 4);
	address_len = sizeof(address.in);
	return AF_INET;
}

/* Hundreds of them, with little to keep. */
static void start(pthread_t *t, void *(*fn)(void *arg), void *arg)
{
	pthread_attr_t attr;

	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, 65536);
	errno = pthread_create(t, &attr, fn, arg);
	if (errno)
		err(1, "thread");
	pthread_attr_destroy(&attr);
}

static void *serve_one(void *arg)
{
	struct peer p = { (int)(intptr_t)arg, "", 0 };

	pthread_detach(pthread_self());
	if (peer_serve(&p))
		errx(1, "serve: %s", p.why);
	close(p.fd);
	return NULL;
}

static void serve(char *where)
{
	int s = socket(parse_address(where), SOCK_STREAM, 0), one = 1, c;
	pthread_t t;

	if (address.any.sa_family == AF_VSOCK)
		address.vm.svm_cid = VMADDR_CID_ANY;
	setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(s, &address.any, address_len) < 0 || listen(s, 1024) < 0)
		err(1, "listen");
	while ((c = accept(s, NULL, NULL)) >= 0)
		start(&t, serve_one, (void *)(intptr_t)c);
	err(1, "accept");
}

struct call {
	pthread_t	thread;
	struct peer	p;
	uint32_t	op, seed;
	uint64_t	n;
};

static void *call_one(void *arg)
{
	struct call *c = arg;

	if (peer_call(&c->p, c->op, c->seed, c->n))
		errx(1, "call %u: %s", c->seed, c->p.why);
	return NULL;
}

/* All of at_once are connected before the first one speaks. */
static void call(char *where, unsigned int count, unsigned int at_once, uint32_t op, uint64_t n)
{
	static struct call c[AT_ONCE_MAX];
	int family = parse_address(where);
	unsigned int i, done;

	for (done = 0; done < count; done += at_once) {
		for (i = 0; i < at_once; i++) {
			c[i] = (struct call){ .op = op, .seed = done + i, .n = n };
			c[i].p.fd = socket(family, SOCK_STREAM, 0);
			if (c[i].p.fd < 0 || connect(c[i].p.fd, &address.any, address_len) < 0)
				err(1, "connection %u", done + i);
		}
		for (i = 0; i < at_once; i++) {
			if (at_once == 1)
				call_one(&c[i]);
			else
				start(&c[i].thread, call_one, &c[i]);
		}
		for (i = 0; i < at_once; i++) {
			if (at_once > 1)
				pthread_join(c[i].thread, NULL);
			close(c[i].p.fd);
		}
	}
}

int main(int argc, char **argv)
{
	const char *what = argc > 2 ? argv[1] : "";
	struct pattern p;

	if (strcmp(what, "serve") == 0)
		serve(argv[2]);
	if (strcmp(what, "call") == 0 && argc > 6 && atoi(argv[4]) <= AT_ONCE_MAX) {
		call(argv[2], (unsigned int)atoi(argv[3]), (unsigned int)atoi(argv[4]),
		     strcmp(argv[5], "sink") == 0 ? PEER_SINK : PEER_SOURCE,
		     strtoull(argv[6], NULL, 0));
		return 0;
	}
	if (argc != 4)
		errx(2, "usage: see inside.c");
	pattern_init(&p, strtoull(argv[2], NULL, 0));
	if (strcmp(what, "fill") == 0)
		fill(&p, strtoull(argv[3], NULL, 0));
	else if (strcmp(what, "check") == 0)
		check(&p, strtoull(argv[3], NULL, 0));
	else
		errx(2, "no \"%s\"", what);
	return 0;
}
