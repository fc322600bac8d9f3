/* SPDX-License-Identifier: MIT */
/*
 * vsock_host.c - how programs of the host connect to the guest, and listen for
 * it: see vsock.c for what happens then.
 *
 * Connecting.  The caller waits, on a condition variable under the I/O lock, for
 * the guest's answer.  A guest on which nobody listens yet refuses; it is asked
 * again soon, until the caller's time is over.  A caller waits through a reset
 * of the device, and for a driver that has not come up yet.
 *
 * Listening.  A program gets a listening AF_UNIX socket, to which we connect for
 * each request of the guest.  It needs a name for that, but not for long: we
 * keep hold of the socket's inode, and take the name away, so that nobody else
 * can connect and be taken for the guest.  (In the abstract namespace all could.)
 * We do not keep the socket itself: when the program closes it, connecting
 * fails, and the port is free.
 *
 * Both belong to this machine, and are not saved.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "../core/clock.h"
#include "vsock.h"

#define VSOCK_PORTS	0x40000000u	/* where the host connects from: so many
					   ports, from this one on */
#define VSOCK_RETRY_NS	1000000ull	/* after a refusal, at first */
#define VSOCK_RETRY_MAX	10000000ull
#define VSOCK_SLICE_NS	100000000ull	/* the longest a caller sleeps */

/* ---- To the guest ------------------------------------------------------------- */

/*
 * A port of ours from which nothing goes to this port of the guest.  Where to
 * begin is random: a restored guest may still be closing a connection, whose port
 * we do not know, and would take a new one from there for the old one.
 */
static uint32_t vsock_pick_port(struct vsock *vs, uint32_t peer_port)
{
	uint32_t port;

	while (!vs->next_port)
		if (getrandom(&vs->next_port, sizeof(vs->next_port), 0) < 0)
			vs->next_port = (uint32_t)clock_ns();
	do
		port = VSOCK_PORTS + vs->next_port++ % VSOCK_PORTS;
	while (vsock_find(vs, port, peer_port));
	return port;
}

/* Rings are not touched while the machine is held: leave it to the loop then. */
static void vsock_call_pump(struct vsock *vs)
{
	const struct loop *loop = vs->v.env.loop;

	if (!vs->v.active)
		return;			/* until the driver is ready */
	if (loop->started && !loop->hold)
		vsock_pump(vs, 0);
	else
		queue_again(&vs->v.queue[VSOCK_RX]);
}

/* The guest may still answer a request that nobody waits for: end that. */
static void vsock_cancel(struct vsock_conn *c)
{
	struct vsock *vs = c->vs;
	const struct virtio_vsock_hdr h = {
		.src_cid = vs->config.guest_cid, .dst_cid = VSOCK_HOST,
		.src_port = c->peer_port, .dst_port = c->port,
		.type = VIRTIO_VSOCK_TYPE_STREAM, .op = VIRTIO_VSOCK_OP_RESPONSE,
	};

	vsock_refuse(vs, &h);
	vsock_call_pump(vs);
}

void vsock_answer(struct vsock_conn *c, int refused)
{
	c->owed &= (uint8_t)~VSOCK_REQUEST;
	c->call->refused = refused;
	c->call->refusals += (uint32_t)refused;
	pthread_cond_signal(&c->call->cond);
	if (refused)
		return;
	c->call->conn = NULL;
	c->call = NULL;
	c->state = VSOCK_OPEN;
}

static struct timespec vsock_timespec(uint64_t ns)
{
	return (struct timespec){ (time_t)(ns / 1000000000u), (long)(ns % 1000000000u) };
}

/*
 * Wait, I/O lock held, until the connection is made, or it is too late.  A
 * guest that refuses is asked again: 1, 2, 4, 8, 10, 10 ... ms later.
 */
static void vsock_call_wait(struct vsock_call *call, uint64_t deadline,
			    int (*more)(const void *arg), const void *arg)
{
	struct vsock *vs = call->conn->vs;
	uint64_t now, wake, retry = 0, backoff = VSOCK_RETRY_NS;
	struct timespec ts;

	vsock_owe(call->conn, VSOCK_REQUEST);
	vsock_call_pump(vs);
	while (call->conn && (now = clock_ns()) < deadline && (!more || more(arg))) {
		wake = now + VSOCK_SLICE_NS;
		if (!call->refused) {
			retry = 0;
		} else if (!retry) {
			retry = now + backoff;
			backoff = backoff * 2 < VSOCK_RETRY_MAX ? backoff * 2 : VSOCK_RETRY_MAX;
		} else if (now >= retry) {
			call->refused = 0;
			retry = 0;
			vsock_owe(call->conn, VSOCK_REQUEST);
		}
		if (retry && retry < wake)
			wake = retry;
		if (vsock_settled(vs) && (call->conn->owed & VSOCK_REQUEST))
			vsock_call_pump(vs);
		ts = vsock_timespec(wake < deadline ? wake : deadline);
		pthread_cond_timedwait(&call->cond, &vs->v.env.loop->lock, &ts);
	}
}

int vsock_connect(struct virtio *v, uint32_t port, int timeout_ms, int (*more)(const void *arg),
		  const void *arg, int *out, struct vmm_error *err)
{
	uint64_t deadline = timeout_ms < 0 ? UINT64_MAX :
					     clock_ns() + (uint64_t)timeout_ms * 1000000u;
	struct vsock *vs = (struct vsock *)v;
	struct vsock_call call = { .refused = 0 };
	pthread_condattr_t attr;
	struct vsock_conn *c;
	int fd[2], made = 0, rc = 0;

	*out = -1;
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fd) < 0)
		return fail_sys(err, errno, "socket for port %u of %s", port, v->name);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&call.cond, &attr);
	pthread_condattr_destroy(&attr);
	loop_lock(v->env.loop);
	if (vs->nconns >= VSOCK_CONNS) {
		close(fd[1]);
		rc = fail(err, VMM_ENOMEM, "%s has %u connections already", v->name, VSOCK_CONNS);
		goto out;
	}
	c = vsock_conn_new(vs, fd[1], vsock_pick_port(vs, port), port, VSOCK_CALLING);
	if (!c) {
		rc = fail(err, VMM_ENOMEM, "connection to port %u of %s", port, v->name);
		goto out;
	}
	c->call = &call;
	call.conn = c;
	vsock_call_wait(&call, deadline, more, arg);
	made = !call.conn;
	if (made)
		goto out;
	if (call.refusals)
		rc = fail(err, VMM_EREFUSED, "nobody in the guest listens on port %u", port);
	else if (more && !more(arg))
		rc = fail(err, VMM_EREFUSED, "the guest does not run");
	else
		rc = fail(err, VMM_ETIMEDOUT, "no answer from port %u of the guest", port);
	if (!call.refused && !(c->owed & VSOCK_REQUEST))
		vsock_cancel(c);
	vsock_conn_free(c);
out:
	loop_unlock(v->env.loop);
	pthread_cond_destroy(&call.cond);
	if (made)
		*out = fd[0];
	else
		close(fd[0]);
	return rc;
}

/* ---- From the guest ----------------------------------------------------------- */

/*
 * Bind s to a name, for a moment, in a directory that is our own.  0, and *path
 * is a descriptor by which we can connect to it; or -errno.  A program that
 * changes its user id later must still be able to; hence the mode.
 */
static int vsock_bind(int s, int *path)
{
	static const char *const dirs[] = { "/tmp", "/dev/shm", "/run" };
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	uint64_t id;
	char dir[48];
	size_t i;
	int e = ENOENT;

	*path = -1;
	for (i = 0; i < sizeof(dirs) / sizeof(dirs[0]) && *path < 0; i++) {
		if (getrandom(&id, sizeof(id), 0) != sizeof(id))
			return -EIO;
		snprintf(dir, sizeof(dir), "%s/vmm-%016llx", dirs[i], (unsigned long long)id);
		if (mkdir(dir, 0700) < 0) {
			e = errno;
			continue;
		}
		snprintf(addr.sun_path, sizeof(addr.sun_path), "%s/s", dir);
		if (bind(s, (struct sockaddr *)&addr, sizeof(addr)) == 0 &&
		    chmod(addr.sun_path, 0666) == 0)
			*path = open(addr.sun_path, O_PATH | O_NOFOLLOW | O_CLOEXEC);
		e = errno;
		unlink(addr.sun_path);
		rmdir(dir);
	}
	return *path < 0 ? -e : 0;
}

int vsock_listen(struct virtio *v, uint32_t port, int *out, struct vmm_error *err)
{
	struct vsock *vs = (struct vsock *)v;
	struct vsock_listener **p, *old, *l = calloc(1, sizeof(*l));
	int s, r;

	*out = -1;
	if (!l)
		return fail(err, VMM_ENOMEM, "port %u of %s", port, v->name);
	l->port = port;
	s = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	r = s < 0 ? -errno : vsock_bind(s, &l->path);
	if (r == 0 && listen(s, SOMAXCONN) < 0) {
		r = -errno;
		close(l->path);
	}
	if (r < 0) {
		if (s >= 0)
			close(s);
		free(l);
		return fail_sys(err, -r, "listening socket for port %u of %s", port, v->name);
	}
	loop_lock(v->env.loop);
	for (p = &vs->listeners; *p && (*p)->port != port; p = &(*p)->next)
		;
	old = *p;
	l->next = old ? old->next : NULL;
	*p = l;
	loop_unlock(v->env.loop);
	if (old) {
		close(old->path);
		free(old);
	}
	*out = s;
	return 0;
}

/* Of the descriptors that this process may have a guest gets half at most. */
static uint32_t vsock_most(void)
{
	struct rlimit l;

	if (getrlimit(RLIMIT_NOFILE, &l) < 0 || l.rlim_cur / 2 > VSOCK_CONNS)
		return VSOCK_CONNS;
	return (uint32_t)l.rlim_cur / 2;
}

int vsock_dial(struct vsock *vs, uint32_t port)
{
	struct vsock_listener **p = &vs->listeners, *l;
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int s, r;

	while (*p && (*p)->port != port)
		p = &(*p)->next;
	l = *p;
	if (!l)
		return -ECONNREFUSED;
	s = -1;
	errno = EMFILE;
	if (vs->nconns < vsock_most())
		s = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (s < 0) {
		r = -errno;
		/* The 1st, 2nd, 4th, 8th: a guest cannot fill the host's log. */
		vs->errors++;
		if ((vs->errors & (vs->errors - 1)) == 0)
			virtio_log(&vs->v, VMM_LOG_ERROR, "a connection of the guest: %s",
				   strerror(-r));
		return r;
	}
	snprintf(addr.sun_path, sizeof(addr.sun_path), "/proc/self/fd/%d", l->path);
	if (connect(s, (struct sockaddr *)&addr, sizeof(addr)) == 0)
		return s;
	r = -errno;			/* EAGAIN: as many wait as can */
	close(s);
	if (r == -ECONNREFUSED) {	/* nobody listens any more */
		*p = l->next;
		close(l->path);
		free(l);
	}
	return r;
}

void vsock_unlisten(struct vsock *vs)
{
	struct vsock_listener *l;

	while ((l = vs->listeners)) {
		vs->listeners = l->next;
		close(l->path);
		free(l);
	}
}
