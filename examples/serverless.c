/* SPDX-License-Identifier: MIT */
/*
 * serverless.c - a function host: each HTTP request is answered by a fresh clone of
 * one warm machine, which is then taken back to what it was.
 *
 *	serverless KERNEL DISK [PORT [READY [THREADS]]]
 *
 * DISK has a guest that rings the doorbell when it is warm and then answers lines,
 * one each, on vsock port 5000: tests/lab/python-guest.py, say.  It is booted once,
 * frozen in memory, and asked once to learn which pages a request touches.  READY
 * clones (default 4) wait in a pool.
 *
 *	POST /		the body is the request, sent as a line; the reply is the guest's
 *	GET /stats	what it has cost so far, as JSON
 *
 * No request sees what another has left behind: neither files, nor memory, nor random
 * numbers.  Built by "make serverless", with libmicrohttpd.
 */
#include <err.h>
#include <errno.h>
#include <microhttpd.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
#include <vmm.h>

#define GUEST_PORT	5000
#define LINE_MOST	65536u		/* bytes of a request, and of an answer */
#define PATIENCE	10000		/* ms that a request may take */
#define BOOT_PATIENCE	600000
#define FIRST		"{\"id\": 1, \"nonce\": \"first\"}\n"

static const char *disk;
static struct vmm_pool *pool;

static double now_us(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec * 1e6 + (double)ts.tv_nsec / 1e3;
}

/* ---- The guest -------------------------------------------------------------- */

/* Send a line, get one; -1 if the guest does not answer in time, or too much. */
static ssize_t ask(struct vmm *vm, const char *line, size_t n, char *reply, struct vmm_error *e)
{
	const struct timeval patience = { .tv_sec = PATIENCE / 1000 };
	size_t got = 0;
	ssize_t r = -1;
	int fd;

	if (vmm_connect(vm, GUEST_PORT, PATIENCE, &fd, e))
		return -1;
	snprintf(e->message, sizeof(e->message), "the guest does not answer");
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
	if (send(fd, line, n, MSG_NOSIGNAL) == (ssize_t)n)
		while (got < LINE_MOST && (r = read(fd, reply + got, LINE_MOST - got)) > 0) {
			got += (size_t)r;
			if (reply[got - 1] == '\n')
				break;
		}
	close(fd);
	return got && reply[got - 1] == '\n' ? (ssize_t)got : -1;
}

/* A clone's devices get what stands behind them. */
static int prepare(void *arg, struct vmm *vm)
{
	struct vmm_error e;

	(void)arg;
	if (!vmm_add_blk(vm, "root", disk, VMM_READONLY, &e))
		return 0;
	warnx("%s", e.message);
	return -1;
}

/* Boot it, until it is warm; freeze it. */
static struct vmm_snap *warm(const char *kernel)
{
	struct vmm_config cfg = VMM_CONFIG_INIT;
	struct vmm_snap *snap;
	struct vmm_event ev;
	struct vmm_error e;
	struct vmm *vm;

	cfg.kernel = kernel;
	cfg.cmdline = "console=ttyS0 quiet root=/dev/vda ro init=/init";
	cfg.memory = 512u << 20;
	if (vmm_create(&vm, &cfg, &e) || vmm_add_serial(vm, -1, 2, &e) ||
	    vmm_add_blk(vm, "root", disk, VMM_READONLY, &e) || vmm_add_vsock(vm, 3, &e) ||
	    vmm_start(vm, &e) || vmm_wait(vm, BOOT_PATIENCE, &ev, &e))
		errx(1, "%s", e.message);
	if (ev.type != VMM_EV_DOORBELL)
		errx(1, "the guest does not ring: %s", ev.detail);
	usleep(300000);			/* it is about to wait for requests */
	if (vmm_pause(vm, &e) || vmm_snap_take(&snap, vm, &e))
		errx(1, "%s", e.message);
	vmm_free(vm);
	return snap;
}

/* What does a request touch?  Clones will have that mapped before they are asked. */
static void learn(struct vmm_snap *snap, uint32_t flags)
{
	struct vmm_restore_config how = VMM_RESTORE_INIT;
	static char reply[LINE_MOST];
	struct vmm_error e;
	struct vmm *vm;

	how.flags = flags;
	if (vmm_restore(&vm, snap, &how, &e)) {
		warnx("not learned: %s", e.message);
		return;
	}
	if (prepare(NULL, vm) || vmm_start(vm, &e) ||
	    ask(vm, FIRST, strlen(FIRST), reply, &e) < 0 || vmm_snap_learn(snap, vm, &e))
		errx(1, "%s", e.message);
	vmm_free(vm);
}

/* ---- What it costs ------------------------------------------------------------ */

#define KEPT	1024u			/* of the last requests */

static struct {
	pthread_mutex_t	lock;
	unsigned long	served, failed;
	double		take[KEPT], answer[KEPT];	/* us */
} stats = { .lock = PTHREAD_MUTEX_INITIALIZER };

static int by_size(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static double part(const double *v, size_t n, double p)
{
	double sorted[KEPT];

	memcpy(sorted, v, n * sizeof(*v));
	qsort(sorted, n, sizeof(*v), by_size);
	return n ? sorted[(size_t)((double)(n - 1) * p)] : 0;
}

static int stats_text(char *text, size_t cap)
{
	size_t n;
	int len;

	pthread_mutex_lock(&stats.lock);
	n = stats.served < KEPT ? stats.served : KEPT;
	len = snprintf(text, cap, "{\"served\": %lu, \"failed\": %lu, \"take_us\": {\"p50\": %.1f, "
		       "\"p99\": %.1f}, \"answer_us\": {\"p50\": %.1f, \"p99\": %.1f}}\n",
		       stats.served, stats.failed, part(stats.take, n, 0.5),
		       part(stats.take, n, 0.99), part(stats.answer, n, 0.5),
		       part(stats.answer, n, 0.99));
	pthread_mutex_unlock(&stats.lock);
	return len;
}

static void count(double take, double answer)
{
	pthread_mutex_lock(&stats.lock);
	if (answer > 0) {
		stats.take[stats.served % KEPT] = take;
		stats.answer[stats.served++ % KEPT] = answer;
	} else {
		stats.failed++;
	}
	pthread_mutex_unlock(&stats.lock);
}

/* ---- HTTP -------------------------------------------------------------------- */

struct request {
	int	too_long;
	size_t	n;
	char	line[LINE_MOST];
};

static enum MHD_Result reply_with(struct MHD_Connection *c, unsigned int status, const char *text,
				  size_t n)
{
	struct MHD_Response *r = MHD_create_response_from_buffer(n, (void *)(uintptr_t)text,
								 MHD_RESPMEM_MUST_COPY);
	enum MHD_Result done;

	if (!r)
		return MHD_NO;
	MHD_add_response_header(r, "Content-Type", "application/json");
	done = MHD_queue_response(c, status, r);
	MHD_destroy_response(r);
	return done;
}

static enum MHD_Result trouble(struct MHD_Connection *c, unsigned int status, const char *why)
{
	char text[512];

	return reply_with(c, status, text,
			  (size_t)snprintf(text, sizeof(text), "{\"error\": \"%s\"}\n", why));
}

/* A clone for this request, and for no other. */
static enum MHD_Result serve(struct MHD_Connection *c, struct request *q)
{
	double begin = now_us(), taken;
	struct vmm_error e;
	struct vmm *vm;
	char *reply;
	ssize_t n;

	q->line[q->n++] = '\n';
	if (vmm_pool_take(pool, PATIENCE, &vm, &e)) {
		count(0, 0);
		return trouble(c, MHD_HTTP_SERVICE_UNAVAILABLE, e.message);
	}
	taken = now_us() - begin;
	reply = malloc(LINE_MOST);
	n = reply && vmm_start(vm, &e) == 0 ? ask(vm, q->line, q->n, reply, &e) : -1;
	count(taken, n > 0 ? now_us() - begin : 0);
	vmm_pool_give(pool, vm);
	if (n > 0)
		reply_with(c, MHD_HTTP_OK, reply, (size_t)n);
	else
		trouble(c, MHD_HTTP_BAD_GATEWAY, e.message);
	free(reply);
	return MHD_YES;
}

static enum MHD_Result handle(void *arg, struct MHD_Connection *c, const char *url,
			      const char *method, const char *version, const char *data,
			      size_t *n, void **state)
{
	struct request *q = *state;
	char text[512];

	(void)arg;
	(void)version;
	if (!q) {
		*state = q = calloc(1, sizeof(*q));
		return q ? MHD_YES : MHD_NO;
	}
	/* The body, in pieces, and then none. */
	if (*n) {
		q->too_long |= *n > sizeof(q->line) - 1 - q->n;
		for (; *n && !q->too_long; --*n, data++)
			q->line[q->n++] = *data == '\n' ? ' ' : *data;
		*n = 0;
		return MHD_YES;
	}
	if (q->too_long)
		return trouble(c, MHD_HTTP_CONTENT_TOO_LARGE, "more than 64 KiB");
	if (strcmp(method, "GET") == 0 && strcmp(url, "/stats") == 0)
		return reply_with(c, MHD_HTTP_OK, text, (size_t)stats_text(text, sizeof(text)));
	if (strcmp(method, "POST") != 0 || strcmp(url, "/") != 0)
		return trouble(c, MHD_HTTP_NOT_FOUND, "POST / or GET /stats");
	return serve(c, q);
}

static void completed(void *arg, struct MHD_Connection *c, void **state,
		      enum MHD_RequestTerminationCode why)
{
	(void)arg;
	(void)c;
	(void)why;
	free(*state);
	*state = NULL;
}

int main(int argc, char **argv)
{
	struct vmm_pool_config cfg = VMM_POOL_INIT;
	struct MHD_Daemon *http;
	struct vmm_snap *snap;
	struct vmm_error e;
	sigset_t set;
	int sig, port, threads;

	if (argc < 3 || argc > 6)
		errx(2, "usage: serverless KERNEL DISK [PORT [READY [THREADS]]]");
	disk = argv[2];
	port = argc > 3 ? atoi(argv[3]) : 8080;
	cfg.ready = argc > 4 ? (uint32_t)atoi(argv[4]) : 4;
	threads = argc > 5 ? atoi(argv[5]) : 4;
	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	sigprocmask(SIG_BLOCK, &set, NULL);	/* for all threads: sigwait() has them */
	snap = warm(argv[1]);
	learn(snap, VMM_RECORD);
	learn(snap, VMM_RECORD | VMM_POPULATE);
	cfg.prepare = prepare;
	if (vmm_pool_create(&pool, snap, &cfg, &e))
		errx(1, "%s", e.message);
	http = MHD_start_daemon(MHD_USE_INTERNAL_POLLING_THREAD, (uint16_t)port, NULL, NULL, handle,
				NULL, MHD_OPTION_THREAD_POOL_SIZE, (unsigned int)threads,
				MHD_OPTION_NOTIFY_COMPLETED, completed, NULL, MHD_OPTION_END);
	if (!http)
		errx(1, "port %d: %s", port, strerror(errno));
	printf("serverless: ready on port %d\n", port);
	fflush(stdout);
	sigwait(&set, &sig);
	MHD_stop_daemon(http);
	vmm_pool_free(pool);
	vmm_snap_free(snap);
	return 0;
}
