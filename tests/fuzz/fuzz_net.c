/* SPDX-License-Identifier: MIT */
/*
 * fuzz_net.c - frames of a guest, and of another side that sends anything: on
 * a datagram, a sequenced-packet or a stream socket.
 */
#include "world.h"

#include <arpa/inet.h>
#include <sys/socket.h>
#include <unistd.h>

static uint8_t wire[(1 << 17) + 4];

/* The other side. */
static void outside(struct guest *g, int *fd, int type)
{
	uint64_t b = guest_take(g, 1);
	uint32_t n = (uint32_t)guest_take(g, 2) << (b & 1), be = htonl(n);
	size_t lead = 0;

	if (type == SOCK_STREAM && b & 6) {	/* else: out of step */
		memcpy(wire, &be, 4);
		lead = 4;
	}
	if (b % 64 == 63) {
		close(*fd);
		*fd = -1;
	} else if (b & 8) {
		recv(*fd, wire, sizeof(wire), MSG_DONTWAIT);
	} else {
		send(*fd, wire, lead + n, MSG_DONTWAIT | MSG_NOSIGNAL);
	}
}

static void step(struct guest *g, int *fd, int type)
{
	uint64_t what = guest_take(g, 1) % 12;
	uint32_t n;

	switch (what) {
	case 5:
	case 6:
	case 7:
		world_add(g, 0, NULL, 0, 12 + (uint32_t)guest_take(g, 2) % 4084, 1);
		break;
	case 8:
		n = (uint32_t)guest_take(g, 2);
		world_add(g, 1, g->in, (uint32_t)(g->left < n ? g->left : n), 12 + n % 4084, 0);
		break;
	default:
		if (!world_step(g, what, 2) && *fd >= 0)
			outside(g, fd, type);
		break;
	}
	world_turn(g);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const int types[] = { SOCK_DGRAM, SOCK_STREAM, SOCK_SEQPACKET };
	struct guest *g = guest_new(data, size);
	struct net_config cfg = NET_CONFIG_INIT;
	int type = types[guest_take(g, 1) % 3], s[2];
	struct virtio *v;

	if (socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, s))
		abort();
	cfg.fd = s[1];
	if (net_new(&v, &g->env, "net0", &cfg, NULL))
		abort();
	close(s[1]);
	guest_attach(g, v);
	guest_start(g, ~guest_take(g, 8));
	while (g->left)
		step(g, &s[0], type);
	world_turn(g);
	g->dev->ops->free(g->dev);
	if (s[0] >= 0)
		close(s[0]);
	return 0;
}
