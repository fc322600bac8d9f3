/* SPDX-License-Identifier: MIT */
/*
 * test_linux_vsock.c - sockets between host and guest, with the Linux driver.
 *
 *	test_linux_vsock [options] KERNEL INITRD [CASE...]
 *
 * Guests: inlinux.h; what is said over a connection: peer.h.  Each case is done
 * twice, with the host and with the guest as the side that connects.  With -f
 * 10,000 connections one after another, 500 at once and 100 MiB each way, else less.
 */
#include <pthread.h>
#include <sys/resource.h>

#include "inlinux.h"
#include "peer.h"

#define PORT	5000u
#define AT_ONCE	500u

/* ---- The host's side ----------------------------------------------------------- */

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
		test_fail("call %u: %s", c->seed, c->p.why);
	return NULL;
}

/* As "inside call" does. */
static void call(struct vmm *vm, unsigned int count, unsigned int at_once, uint32_t op, uint64_t n)
{
	static struct call c[AT_ONCE];
	unsigned int i, done;

	for (done = 0; done < count; done += at_once) {
		for (i = 0; i < at_once; i++) {
			c[i] = (struct call){ .op = op, .seed = done + i, .n = n };
			CALL(vmm_connect(vm, PORT, 60000, &c[i].p.fd, &test_err));
		}
		for (i = 0; i < at_once; i++)
			CHECK(pthread_create(&c[i].thread, NULL, call_one, &c[i]) == 0);
		for (i = 0; i < at_once; i++) {
			pthread_join(c[i].thread, NULL);
			close(c[i].p.fd);
		}
	}
}

/* ---- Cases ---------------------------------------------------------------------- */

static struct inlinux guest;

static void begin(const char *script)
{
	int s;

	il_new(&guest, script, 1, 256);
	CALL(vmm_add_vsock(guest.vm, 42, &test_err));
	CALL(vmm_listen(guest.vm, PORT, &s, &test_err));
	il_serve(s, 0);
	il_start(&guest);
}

/* The script connects, which takes long, and then listens. */
static void conversations(unsigned int count, unsigned int at_once, uint64_t n)
{
	uint64_t start, fds;
	char script[600];

	snprintf(script, sizeof(script),
		 "say begins\n"
		 "inside call vsock:%u %u %u sink %llu\n"
		 "inside call vsock:%u %u %u source %llu\n"
		 "say called\n"
		 "inside serve vsock:%u & \n"
		 "hear; kill %%1; ! dmesg | grep -E 'virtio.*(bad|rror|head)'\n",
		 PORT, count, at_once, (unsigned long long)n, PORT, count, at_once,
		 (unsigned long long)n, PORT);
	begin(script);
	il_expect(&guest, "begins", 60);
	start = now_ms();
	il_expect(&guest, "called", 3000);
	test_note("guest to host: %u connections, %u at once, %llu bytes each way: %llu ms", 2 * count,
		  at_once, (unsigned long long)n, (unsigned long long)(now_ms() - start));
	/* The guest may not listen yet: vmm_connect() waits for it. */
	call(guest.vm, 1, 1, PEER_SINK, 10);
	fds = count_fds();
	start = now_ms();
	call(guest.vm, count, at_once, PEER_SINK, n);
	call(guest.vm, count, at_once, PEER_SOURCE, n);
	test_note("host to guest: the same: %llu ms", (unsigned long long)(now_ms() - start));
	sleep_ms(500);
	CHECK(count_fds() <= fds + 2);
	il_say(&guest, "go");
	il_end(&guest, 120);
}

static void in_turn(void)
{
	conversations(test_options.full ? 2500 : 25, 1, 10);
}

static void at_once(void)
{
	unsigned int n = test_options.full ? AT_ONCE : 50;
	struct rlimit l;

	/* Both ends of each are this process's, and those of the last round may not be gone yet. */
	CHECK(getrlimit(RLIMIT_NOFILE, &l) == 0);
	l.rlim_cur = l.rlim_max;
	CHECK(setrlimit(RLIMIT_NOFILE, &l) == 0);
	conversations(n, n, 3000);
}

static void bulk(void)
{
	conversations(1, 1, test_options.full ? 100u << 20 : 2u << 20);
}

/* Nobody listens; a port that is closed; a guest that goes while it is spoken to. */
static void ends(void)
{
	static const char script[] =
		"! inside call vsock:77 1 1 sink 10 2>/tmp/why; grep -q reset /tmp/why\n"
		"inside serve vsock:5000 & \n"
		"hear\n";
	struct peer p = { -1, "", 0 };
	uint8_t buf[100];
	int fd;

	begin(script);
	CALL_FAILS(VMM_EREFUSED, "port 78", vmm_connect(guest.vm, 78, 200, &fd, &test_err));
	call(guest.vm, 1, 1, PEER_SOURCE, 100);
	CALL(vmm_connect(guest.vm, PORT, 10000, &p.fd, &test_err));
	il_say(&guest, "go");
	expect_event(guest.vm, VMM_EV_SHUTDOWN, 0, 60);
	CHECK(read(p.fd, buf, sizeof(buf)) <= 0);
	il_free(&guest);
}

static const struct test_case cases[] = {
	{ "in-turn", in_turn, 3600, 0 },
	{ "at-once", at_once, 1200, 0 },
	{ "bulk", bulk, 1200, 0 },
	{ "ends", ends, 120, 0 },
};

int main(int argc, char **argv)
{
	return test_main_args(argc, argv, cases, sizeof(cases) / sizeof(cases[0]),
			      "KERNEL INITRD ", &il_kernel, &il_initrd);
}
