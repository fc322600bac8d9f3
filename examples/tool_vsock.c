/* SPDX-License-Identifier: MIT */
/*
 * tool_vsock.c - the guest's vsock as Unix sockets of the host, as other VMMs
 * offer it: see tool.h.
 *
 * One thread for each connection, which copies bytes both ways; one that takes
 * connections to the socket; one that watches the directory for files path_N;
 * and one for each of those, which takes the guest's connections.  They are
 * detached, and counted while they make calls on the machine.
 */
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <libgen.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "tool.h"

#define CONNECT_MS	10000		/* that a guest has to listen in */
#define PORTS_MAX	64		/* files path_N at once */
#define NO_PORT		UINT32_MAX

struct front {
	struct vmm	*vm;
	char		path[108], dir[108], base[108];	/* dir/base */
	int		listener, watch;
	pthread_mutex_t	lock;
	pthread_cond_t	idle;
	int		calls;		/* on vm, being made */
	int		closed;		/* no more of them */
	struct {
		uint32_t	port;
		int		fd;	/* listening for the guest, or -1 */
	} port[PORTS_MAX];
};

struct link {
	struct front	*f;
	int		fd;
	uint32_t	port;
};

/* Run fn in a thread of its own, and give it what it is about; 0, or -1. */
static int detach(void *(*fn)(void *), struct front *f, int fd, uint32_t port)
{
	struct link *l = malloc(sizeof(*l));
	pthread_t t;

	if (!l)
		return -1;
	*l = (struct link){ f, fd, port };
	if (pthread_create(&t, NULL, fn, l)) {
		free(l);
		return -1;
	}
	pthread_detach(t);
	return 0;
}

/* A call on the machine begins, unless it is too late; and ends. */
static int call_begin(struct front *f)
{
	int ok;

	pthread_mutex_lock(&f->lock);
	ok = !f->closed;
	f->calls += ok;
	pthread_mutex_unlock(&f->lock);
	return ok;
}

static void call_end(struct front *f)
{
	pthread_mutex_lock(&f->lock);
	if (!--f->calls)
		pthread_cond_signal(&f->idle);
	pthread_mutex_unlock(&f->lock);
}

/* ---- Copying ---------------------------------------------------------------- */

/* Copy what there is; 0 when from has ended, and to has been told. */
static int copy_some(int from, int to)
{
	char buf[65536];
	ssize_t n = read(from, buf, sizeof(buf)), done, r;

	if (n < 0 && errno == EINTR)
		return 1;
	for (done = 0; done < n; done += r) {
		r = send(to, buf + done, (size_t)(n - done), MSG_NOSIGNAL);
		if (r < 0) {
			shutdown(from, SHUT_RD);
			return 0;
		}
	}
	if (n <= 0)
		shutdown(to, SHUT_WR);
	return n > 0;
}

struct pair {
	int		from, to;
};

static void *copy_main(void *arg)
{
	struct pair *p = arg;

	while (copy_some(p->from, p->to))
		;
	return NULL;
}

/* Both ways, until both have ended: a half may be open for long. */
static void copy_both(int a, int b)
{
	struct pair back = { b, a };
	pthread_t t;

	if (pthread_create(&t, NULL, copy_main, &back) == 0) {
		while (copy_some(a, b))
			;
		pthread_join(t, NULL);
	}
	close(a);
	close(b);
}

/* ---- From the host to the guest ------------------------------------------------ */

/* The line that a client begins with, byte by byte: what follows is the guest's. */
static int read_port(int fd, uint32_t *port)
{
	char line[32], *end;
	size_t n = 0;

	while (n < sizeof(line) - 1 && read(fd, line + n, 1) == 1 && line[n] != '\n')
		n++;
	line[n] = 0;
	if (strncmp(line, "CONNECT ", 8) != 0 || !isdigit((unsigned char)line[8]))
		return -1;
	errno = 0;
	*port = (uint32_t)strtoul(line + 8, &end, 10);
	return errno || (*end && *end != '\r') ? -1 : 0;
}

static void *client_main(void *arg)
{
	struct link l = *(struct link *)arg;
	struct vmm_error err;
	int fd = -1, rc = -1;
	char ok[32];

	free(arg);
	if (read_port(l.fd, &l.port) == 0 && call_begin(l.f)) {
		rc = vmm_connect(l.f->vm, l.port, CONNECT_MS, &fd, &err);
		call_end(l.f);
	}
	if (rc == 0) {
		snprintf(ok, sizeof(ok), "OK %u\n", l.port);
		if (send(l.fd, ok, strlen(ok), MSG_NOSIGNAL) > 0) {
			copy_both(l.fd, fd);
			return NULL;
		}
		close(fd);
	}
	close(l.fd);
	return NULL;
}

/* ---- From the guest to the host -------------------------------------------------- */

static int unix_address(struct sockaddr_un *a, const char *path)
{
	memset(a, 0, sizeof(*a));
	a->sun_family = AF_UNIX;
	if (strlen(path) >= sizeof(a->sun_path)) {
		errno = ENAMETOOLONG;
		return -1;
	}
	memcpy(a->sun_path, path, strlen(path));
	return 0;
}

static void *server_main(void *arg)
{
	struct link l = *(struct link *)arg;
	struct sockaddr_un addr;
	char path[128];
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	free(arg);
	snprintf(path, sizeof(path), "%s_%u", l.f->path, l.port);
	if (fd >= 0 && unix_address(&addr, path) == 0 &&
	    connect(fd, (struct sockaddr *)&addr, sizeof(addr)) == 0) {
		copy_both(l.fd, fd);
		return NULL;
	}
	if (fd >= 0)
		close(fd);
	close(l.fd);
	return NULL;
}

/* Take connections, of clients or, if there is a port, of the guest. */
static void *accept_main(void *arg)
{
	struct link l = *(struct link *)arg;
	void *(*serve)(void *) = l.port == NO_PORT ? client_main : server_main;
	int fd;

	free(arg);
	for (;;) {
		fd = accept4(l.fd, NULL, NULL, SOCK_CLOEXEC);
		if (fd >= 0 && detach(serve, l.f, fd, l.port) < 0)
			close(fd);
		if (fd < 0 && errno != EINTR && errno != ECONNABORTED && errno != EMFILE)
			break;
		if (fd < 0)
			usleep(1000);
	}
	close(l.fd);
	return NULL;
}

/* A file path_N has come or gone. */
static void port_change(struct front *f, const char *name, int there)
{
	size_t n = strlen(f->base);
	struct vmm_error err;
	unsigned long port;
	int i, fd;
	char *end;

	if (strncmp(name, f->base, n) != 0 || name[n] != '_' || !isdigit((unsigned char)name[n + 1]))
		return;
	port = strtoul(name + n + 1, &end, 10);
	if (*end || port >= NO_PORT)
		return;
	for (i = 0; i < PORTS_MAX && (f->port[i].fd < 0 || f->port[i].port != port); i++)
		;
	if (i < PORTS_MAX && !there) {
		shutdown(f->port[i].fd, SHUT_RDWR);	/* ends accept_main(), which closes it */
		f->port[i].fd = -1;
	}
	if (i < PORTS_MAX || !there)
		return;
	for (i = 0; i < PORTS_MAX && f->port[i].fd >= 0; i++)
		;
	if (i == PORTS_MAX || !call_begin(f))
		return;
	if (vmm_listen(f->vm, (uint32_t)port, &fd, &err)) {
		fprintf(stderr, "vmm: %s\n", err.message);
	} else if (detach(accept_main, f, fd, (uint32_t)port) < 0) {
		close(fd);
	} else {
		f->port[i].port = (uint32_t)port;
		f->port[i].fd = fd;
	}
	call_end(f);
}

static void *watch_main(void *arg)
{
	struct link l = *(struct link *)arg;
	union {
		struct inotify_event e;
		char		bytes[16384];
	} u;
	struct dirent *d;
	DIR *dir;
	char *p;
	ssize_t n;

	free(arg);
	dir = opendir(l.f->dir);
	while (dir && (d = readdir(dir)))
		port_change(l.f, d->d_name, 1);
	if (dir)
		closedir(dir);
	while ((n = read(l.fd, &u, sizeof(u))) > 0 || (n < 0 && errno == EINTR)) {
		for (p = u.bytes; n > 0 && p < u.bytes + n;) {
			const struct inotify_event *e = (const void *)p;

			if (e->len)
				port_change(l.f, e->name,
					    (e->mask & (IN_CREATE | IN_MOVED_TO)) != 0);
			p += sizeof(*e) + e->len;
		}
	}
	return NULL;
}

/* ---- Coming and going --------------------------------------------------------------- */

struct front *front_open(struct vmm *vm, const char *path)
{
	struct front *f = calloc(1, sizeof(*f));
	char copy[108];
	struct sockaddr_un addr;
	int i;

	if (!f || unix_address(&addr, path) < 0)
		goto trouble;
	f->vm = vm;
	f->listener = f->watch = -1;
	pthread_mutex_init(&f->lock, NULL);
	pthread_cond_init(&f->idle, NULL);
	for (i = 0; i < PORTS_MAX; i++)
		f->port[i].fd = -1;
	strcpy(f->path, path);
	snprintf(f->dir, sizeof(f->dir), "%s", dirname(strcpy(copy, path)));
	snprintf(f->base, sizeof(f->base), "%s", basename(strcpy(copy, path)));
	f->watch = inotify_init1(IN_CLOEXEC);
	f->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (f->watch < 0 || f->listener < 0 ||
	    inotify_add_watch(f->watch, f->dir, IN_CREATE | IN_MOVED_TO | IN_DELETE |
			      IN_MOVED_FROM) < 0 ||
	    bind(f->listener, (struct sockaddr *)&addr, sizeof(addr)) < 0)
		goto trouble;
	if (listen(f->listener, SOMAXCONN) == 0 && detach(accept_main, f, f->listener, NO_PORT) == 0 &&
	    detach(watch_main, f, f->watch, NO_PORT) == 0)
		return f;
	unlink(path);
trouble:
	fprintf(stderr, "vmm: %s: %s\n", path, strerror(errno));
	return NULL;			/* the command ends, and frees what there is */
}

void front_close(struct front *f)
{
	if (!f)
		return;
	unlink(f->path);
	pthread_mutex_lock(&f->lock);
	f->closed = 1;
	while (f->calls)
		pthread_cond_wait(&f->idle, &f->lock);
	pthread_mutex_unlock(&f->lock);
	/* Threads that copy may still do so: f stays until the command ends. */
}
