/* SPDX-License-Identifier: MIT */
/*
 * devices.h - how each virtio device is made.
 *
 * Every constructor gives a struct virtio for transport_new(), or fails with
 * *out NULL.  It copies what it is given and duplicates descriptors.  For a
 * restored machine a device is made without a back end (each says how), then
 * loaded; then either its ..._replace() gives it one, or transport_open()
 * reopens the one that was saved.
 */
#ifndef VIRTIO_DEVICES_H
#define VIRTIO_DEVICES_H

#include "virtio.h"

/* ---- rng: entropy (rng.c) ---------------------------------------------- */

int rng_new(struct virtio **out, const struct virtio_env *env, const char *name,
	    struct vmm_error *err);

/* ---- blk: disks (blk.c) ------------------------------------------------ */

enum {
	BLK_READONLY	= 1,
	BLK_DIRECT	= 2,	/* past the host's page cache */
	BLK_NOSYNC	= 4,	/* a flush of the guest does nothing */
	BLK_OVERLAY	= 8,	/* what is written stays with the machine */
	BLK_THREADS	= 16	/* no io_uring */
};

struct blk_config {
	const char	*path;		/* of a raw image or block device, or NULL */
	int		fd;		/* the same, instead of path, if >= 0 */
	uint32_t	flags;		/* BLK_* */
	uint32_t	queues;		/* default 1 */
	const char	*layer_dir;	/* where an overlay lies; NULL: in memory */
	const char	*serial;	/* up to 20 bytes; NULL: the device's name */
	uint64_t	bytes_per_sec, ops_per_sec;	/* limits; 0: none */
};
#define BLK_CONFIG_INIT { NULL, -1, 0, 0, NULL, NULL, 0, 0 }

/*
 * Neither path nor fd: a device to be loaded.  Its size, flags, queues and overlay
 * come with its state.
 */
int blk_new(struct virtio **out, const struct virtio_env *env, const char *name,
	    const struct blk_config *cfg, struct vmm_error *err);

/*
 * Another file behind a disk of a machine that is NEW or PAUSED: as large, and
 * BLK_READONLY and BLK_OVERLAY as before.  What an overlay holds is kept.
 */
int blk_replace(struct virtio *v, const struct blk_config *cfg, struct vmm_error *err);

/* While the driver has set none up. */
int blk_set_queues(struct virtio *v, uint32_t n, struct vmm_error *err);

/* I/O lock held: look at the size of the file again, and tell the guest. */
int blk_resize(struct virtio *v, struct vmm_error *err);

/* I/O lock held: other limits. */
void blk_limit(struct virtio *v, uint64_t bytes_per_sec, uint64_t ops_per_sec);

/* ---- balloon: guest memory given back (balloon.c) ------------------------ */

#define BALLOON_STATS_MAX 16	/* values the guest may report */

struct balloon_info {
	uint64_t	target, actual;		/* bytes: wanted, given up */
	uint64_t	inflated, reported;	/* bytes given to the host so far */
	uint64_t	hinted;			/* of the last hint */
	int		hint_running;		/* the guest has not finished yet */
	uint32_t	stats_seq;		/* counts answers to balloon_poll() */
	uint64_t	stat[BALLOON_STATS_MAX];	/* by VIRTIO_BALLOON_S_* */
};

int balloon_new(struct virtio **out, const struct virtio_env *env, const char *name,
		struct vmm_error *err);

/* I/O lock held for these.  Ask the guest for so many bytes in all. */
void balloon_set(struct virtio *v, uint64_t bytes);

/* Ask for new statistics; 0 if the guest does not tell any. */
int balloon_poll(struct virtio *v);

/*
 * Have the guest hand over what it has free; 0 if it cannot.  When that has
 * ended (hint_running), or is not waited for any longer, and the memory is no
 * longer wanted, balloon_hint_done() lets the guest use it again.
 */
int balloon_hint_start(struct virtio *v);
void balloon_hint_done(struct virtio *v);

void balloon_look(struct virtio *v, struct balloon_info *out);

/* ---- console: terminals and named ports (vconsole.c) --------------------- */

#define CONSOLE_PORTS	16u

struct console_port {
	const char	*name;		/* NULL: a terminal, as hvc0; else a port */
	int		in_fd, out_fd;	/* or -1 */
};

/*
 * Port 0 is a terminal.  A device to be loaded has one port without descriptors;
 * how many there are, and their names, come with its state.
 */
int console_new(struct virtio **out, const struct virtio_env *env, const char *name,
		const struct console_port *ports, uint32_t nports, struct vmm_error *err);

/* One more, with a name, while the driver does not know the device. */
int console_add_port(struct virtio *v, const struct console_port *port, struct vmm_error *err);

/* The port of that name, or -1. */
int console_port(const struct virtio *v, const char *name);

/* Other descriptors behind a port of a machine that is NEW or PAUSED. */
int console_replace(struct virtio *v, uint32_t port, int in_fd, int out_fd,
		    struct vmm_error *err);

/* I/O lock held: the terminal has another size. */
void console_resize(struct virtio *v, uint16_t cols, uint16_t rows);

/* ---- net: Ethernet (net.c) ------------------------------------------------ */

struct net_config {
	const uint8_t	*mac;		/* 6 bytes; NULL: a random one */
	int		fd;		/* a tap or a connected socket; -1: see below */
	uint64_t	bytes_per_sec, ops_per_sec;	/* each way; 0: no limit */
};
#define NET_CONFIG_INIT { NULL, -1, 0, 0 }

/*
 * A tap is set to O_NONBLOCK, which all who share it see, and its header and
 * offloads to what the guest wants.  A socket is left as it is.
 *
 * fd -1: a device to be loaded; the cable is not plugged in.
 */
int net_new(struct virtio **out, const struct virtio_env *env, const char *name,
	    const struct net_config *cfg, struct vmm_error *err);

/*
 * Another back end for a device of a machine that is NEW or PAUSED; its MAC
 * stays.  VMM_EVERSION if the guest uses offloads that this one lacks.
 */
int net_replace(struct virtio *v, const struct net_config *cfg, struct vmm_error *err);

/* I/O lock held: other limits. */
void net_limit(struct virtio *v, uint64_t bytes_per_sec, uint64_t ops_per_sec);

/* ---- vsock: sockets between host and guest (vsock.c) --------------------- */

/* cid: 3 to 0xfffffffe.  A device that is loaded has the one that was saved. */
int vsock_new(struct virtio **out, const struct virtio_env *env, const char *name, uint32_t cid,
	      struct vmm_error *err);

/* Another CID for a machine that is NEW or PAUSED; it loses its connections. */
int vsock_set_cid(struct virtio *v, uint32_t cid, struct vmm_error *err);

/* I/O lock held.  The guest has stopped: end every connection. */
void vsock_hang_up_all(struct virtio *v);

/*
 * No lock held for these two.  *out is the caller's.
 *
 * A stream socket, connected to a port of the guest on which somebody listens,
 * or will before timeout_ms (-1: whenever) are over.  VMM_EREFUSED if nobody
 * does, VMM_ETIMEDOUT if the guest does not answer.  more, if not NULL, is asked
 * now and then, with the I/O lock held, whether to wait on: else VMM_EREFUSED.
 */
int vsock_connect(struct virtio *v, uint32_t port, int timeout_ms, int (*more)(const void *arg),
		  const void *arg, int *out, struct vmm_error *err);

/*
 * A listening socket: accept() gives the connections that the guest makes to
 * this port of the host.  Closing it ends that.  A second one for a port takes
 * the place of the first, which gets no more.
 */
int vsock_listen(struct virtio *v, uint32_t port, int *out, struct vmm_error *err);

/* ---- vhost-user: what another process serves (vhost_user.c) --------------- */

struct vhost_user_config {
	uint16_t	id;		/* VIRTIO_ID_BLOCK or VIRTIO_ID_FS */
	int		fd;		/* a stream socket, connected to the back end */
	uint32_t	queues;		/* for requests; default 1 */
	const char	*tag;		/* of a directory: what the guest mounts */
};
#define VHOST_USER_CONFIG_INIT { 0, -1, 0, NULL }

/*
 * Asks the back end, and waits for it, for a few seconds at most.  RAM must be
 * MEM_SHARED when the machine runs.
 */
int vhost_user_new(struct virtio **out, const struct virtio_env *env, const char *name,
		   const struct vhost_user_config *cfg, struct vmm_error *err);

#endif
