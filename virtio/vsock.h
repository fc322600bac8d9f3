/* SPDX-License-Identifier: MIT */
/*
 * vsock.h - what vsock.c, the device, and vsock_host.c, which serves programs
 * of the host, share.  I/O lock held throughout.
 */
#ifndef VIRTIO_VSOCK_H
#define VIRTIO_VSOCK_H

#include <linux/virtio_vsock.h>

#include "devices.h"

#define VSOCK_HOST	2u		/* the CID of a host */

#define VSOCK_CONNS	8192u		/* at once */
#define VSOCK_HASH	1024u		/* a power of two */
#define VSOCK_RESETS	256u		/* answers that belong to no connection */
#define VSOCK_BATCH	16u		/* buffers filled by one system call */

enum { VSOCK_RX, VSOCK_TX, VSOCK_EVENT, VSOCK_QUEUES };

enum {
	VSOCK_CALLING,			/* by the host, and not answered yet */
	VSOCK_OPEN,
	VSOCK_CLOSING,			/* its last packet is owed to the guest */
	VSOCK_DRAINING			/* the guest has closed it; bytes are left */
};

/* What the guest is to be told, in this order. */
enum { VSOCK_REQUEST = 1, VSOCK_RESPONSE = 2, VSOCK_CREDIT = 4, VSOCK_SHUTDOWN = 8, VSOCK_RST = 16 };

/* A caller that waits for a connection. */
struct vsock_call {
	pthread_cond_t	cond;
	struct vsock_conn *conn;	/* until it is made */
	int		refused;	/* and not asked again yet */
	uint32_t	refusals;
};

struct vsock_conn {
	struct vsock	*vs;
	struct io	io;
	uint32_t	watch;		/* EPOLL* it is watched for, if it is */
	struct vsock_conn *next, **link;	/* in its bucket */
	struct vsock_conn *wait_next, **wait_link;	/* among those that wait */
	struct vsock_call *call;
	uint32_t	port, peer_port;	/* the host's, the guest's */
	uint8_t		state, owed;
	uint8_t		ready;		/* bytes wait in the socket for a buffer */
	uint8_t		eof;		/* the socket has no more, or nobody wants it */
	uint8_t		lingers;	/* the loop does not end before it, or not at once */
	uint32_t	shut, peer_shut;	/* VIRTIO_VSOCK_SHUTDOWN_*, said so far */
	/* To the guest: sent, forwarded there, its window.  Wraps (5.10.6.3). */
	uint32_t	tx_cnt, peer_fwd, peer_alloc;
	/* From the guest: received, taken by the socket, told so, our window. */
	uint32_t	rx_cnt, fwd_cnt, fwd_told, window;
	uint8_t		*buf;		/* window bytes, a ring; NULL while empty */
	uint32_t	head, len;
};

struct vsock_listener {
	struct vsock_listener *next;
	uint32_t	port;
	int		path;		/* O_PATH of its socket */
};

/* An answer to a packet that belongs to no connection. */
struct vsock_reset {
	uint64_t	src_cid, dst_cid;
	uint32_t	src_port, dst_port;
	uint16_t	type;
};

struct vsock {
	struct virtio	v;
	struct virtio_vsock_config config;
	struct vsock_conn *table[VSOCK_HASH];
	struct vsock_conn *draining;
	struct vsock_conn *wait, **wait_tail;
	struct vsock_listener *listeners;
	uint32_t	nconns, next_port;
	uint32_t	windows;	/* bytes, of all connections */
	uint32_t	reset_head, nresets;
	struct vsock_reset reset[VSOCK_RESETS];
	struct io	timer;		/* timerfd, or fd -1 until needed */
	uint8_t		armed;
	uint8_t		tx_stalled;	/* by a full list of answers */
	uint8_t		tx_later, rx_later;	/* left to the I/O thread */
	uint8_t		lost;		/* the guest has connections that are gone */
	uint8_t		late;		/* ... and was not waited for any longer */
	uint8_t		untold;		/* ... and has not been sent the event */
	uint16_t	told_at;	/* end of the event ring when it was */
	uint64_t	lost_until;	/* a driver that does not care is not waited for */
	uint64_t	errors;
	struct chain	rx[VSOCK_BATCH];	/* last: large, and seldom used */
};

/* ---- The device (vsock.c) ------------------------------------------------ */

/* A connection over a socket, fd, which it takes; NULL: no memory. */
struct vsock_conn *vsock_conn_new(struct vsock *vs, int fd, uint32_t port, uint32_t peer_port,
				  uint8_t state);
void vsock_conn_free(struct vsock_conn *c);
struct vsock_conn *vsock_find(struct vsock *vs, uint32_t port, uint32_t peer_port);

/* Tell the guest: VSOCK_REQUEST ..., when vsock_pump() comes to it. */
void vsock_owe(struct vsock_conn *c, uint8_t what);

/*
 * Send what waits for buffers of the guest, as far as there are any.  What is
 * in sockets is left to the I/O thread (data).
 */
void vsock_pump(struct vsock *vs, int data);

/* Answer a packet of the guest with a reset; no room for it: not at all. */
void vsock_refuse(struct vsock *vs, const struct virtio_vsock_hdr *h);

/* May there be connections?  Not before the guest knows that the old are gone. */
int vsock_settled(struct vsock *vs);

/* ---- Programs of the host (vsock_host.c) ----------------------------------- */

/* A socket connected to the program that listens on this port, or -errno. */
int vsock_dial(struct vsock *vs, uint32_t port);

/* The guest's answer to a request. */
void vsock_answer(struct vsock_conn *c, int refused);

void vsock_unlisten(struct vsock *vs);		/* every port */

#endif
