/* SPDX-License-Identifier: MIT */
/*
 * fuzz_vsock.c - packets of a guest, and a host program at the other end that
 * reads, writes and closes.
 */
#include "world.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <linux/virtio_vsock.h>

#include "../../virtio/vsock.h"

#define CID 42u
#define FDS 8

static uint32_t port(uint64_t b)
{
	return b & 0x80 ? 0x40000000u + (uint32_t)(b & 0x7f) : (uint32_t)b % 4;
}

/* Mostly well addressed. */
static void packet(struct guest *g)
{
	uint64_t b = guest_take(g, 1);
	struct virtio_vsock_hdr h = {
		.src_cid = (b & 0xf) == 0xf ? 3 : CID, .dst_cid = (b & 0xf0) == 0xf0 ? 3 : 2,
		.type = (uint16_t)((b & 0x3c) == 0x3c ? 2 : 1),
	};
	uint32_t n;

	h.op = (uint16_t)(guest_take(g, 1) % 9);
	h.src_port = port(guest_take(g, 1));
	h.dst_port = port(guest_take(g, 1));
	h.buf_alloc = 1u << guest_take(g, 1) % 32;
	h.fwd_cnt = (uint32_t)guest_take(g, 1);
	h.flags = (uint32_t)guest_take(g, 1);
	n = (uint32_t)guest_take(g, 2) % 4000;
	h.len = b & 1 ? n : (uint32_t)guest_take(g, 4);
	world_add(g, 1, &h, sizeof(h), (uint32_t)sizeof(h) + n, 0);
}

/* What the program on the host does with one of its sockets. */
static void host(struct guest *g, int s, int *fd)
{
	static uint8_t buf[1 << 16];
	uint64_t b = guest_take(g, 1);
	int *f = &fd[b / 8 % FDS];

	if (*f < 0)
		*f = accept4(s, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	if (*f < 0)
		return;
	switch (b % 8) {
	case 0:
	case 1:
		send(*f, buf, guest_take(g, 2), MSG_NOSIGNAL);
		break;
	case 2:
	case 3:
		recv(*f, buf, sizeof(buf), 0);
		break;
	case 4:
		shutdown(*f, SHUT_WR);
		break;
	case 5:
		shutdown(*f, SHUT_RD);
		break;
	default:
		close(*f);
		*f = -1;
		break;
	}
}

static void step(struct guest *g, struct virtio *v, int s, int *fd)
{
	uint64_t what = guest_take(g, 1) % 16;
	int out;

	switch (what) {
	case 5:
		vsock_connect(v, port(guest_take(g, 1)), 0, NULL, NULL, &out, NULL);
		break;
	case 6:
		world_add(g, 2, NULL, 0, 4, 1);
		break;
	case 7:
		vsock_set_cid(v, guest_take(g, 1) & 1 ? CID : CID + 1, NULL);
		break;
	case 8:
	case 9:
		host(g, s, fd);
		break;
	case 10:
	case 11:
	case 12:
		world_add(g, 0, NULL, 0, 45 + (uint32_t)guest_take(g, 2) % 4000, 1);
		break;
	default:
		if (!world_step(g, what, 4))
			packet(g);
		break;
	}
	world_turn(g);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct guest *g = guest_new(data, size);
	int fd[FDS], s, i;
	struct virtio *v;

	if (vsock_new(&v, &g->env, "vsock0", CID, NULL))
		abort();
	guest_attach(g, v);
	((struct vsock *)v)->next_port = 0x40000000;	/* not random */
	if (vsock_listen(v, 1, &s, NULL))
		abort();
	fcntl(s, F_SETFL, O_NONBLOCK);
	for (i = 0; i < FDS; i++)
		fd[i] = -1;
	guest_start(g, ~guest_take(g, 1));
	while (g->left)
		step(g, v, s, fd);
	if (s >= 0)
		close(s);
	for (i = 0; i < FDS; i++)
		if (fd[i] >= 0)
			close(fd[i]);
	world_turn(g);
	g->dev->ops->free(g->dev);
	return 0;
}
