/* SPDX-License-Identifier: MIT */
/*
 * shim.c - see shim.h.
 *
 * Log lines do not call Go.  They come on any thread, those of vCPUs among them,
 * and a thread that enters Go has SIGSTKFLT unblocked from then on: Go takes it for
 * a fault and ends the process.  For the library it is how a vCPU is made to leave
 * its guest, and it must stay blocked there.  So a line becomes a datagram, which
 * needs neither Go nor a lock, and a goroutine reads it.
 *
 * The other callbacks come on the caller's thread or on a pool's, which get no such
 * signal.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#include "_cgo_export.h"

const struct vmm_host vmmgo_host_init = VMM_HOST_INIT;
const struct vmm_config vmmgo_config_init = VMM_CONFIG_INIT;
const struct vmm_balloon_stats vmmgo_balloon_stats_init = VMM_BALLOON_STATS_INIT;
const struct vmm_write_config vmmgo_write_init = VMM_WRITE_INIT;
const struct vmm_snap_info vmmgo_snap_info_init = VMM_SNAP_INFO_INIT;
const struct vmm_restore_config vmmgo_restore_init = VMM_RESTORE_INIT;
const struct vmm_pool_config vmmgo_pool_init = VMM_POOL_INIT;
const struct vmm_stats vmmgo_stats_init = VMM_STATS_INIT;

/* ---- Logs ---------------------------------------------------------------- */

static int log_fd = -1;		/* set before there is anybody to log */
static uint32_t log_lost;

int vmmgo_log_open(void)
{
	int fd[2], size = 1 << 20;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fd) < 0)
		return -errno;
	(void)setsockopt(fd[1], SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));	/* or as it is */
	log_fd = fd[1];
	return fd[0];
}

static void log_line(void *arg, int level, const char *text)
{
	struct vmmgo_line l = { .id = (uintptr_t)arg, .level = level };
	size_t n = strnlen(text, sizeof(l.text));

	memcpy(l.text, text, n);
	l.lost = __atomic_exchange_n(&log_lost, 0, __ATOMIC_RELAXED);
	if (send(log_fd, &l, offsetof(struct vmmgo_line, text) + n, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
		__atomic_fetch_add(&log_lost, l.lost + 1, __ATOMIC_RELAXED);
}

void vmmgo_log_end(uint64_t id)
{
	const struct vmmgo_line l = { .id = id, .level = -1 };

	while (send(log_fd, &l, offsetof(struct vmmgo_line, text), MSG_NOSIGNAL) < 0 && errno == EINTR)
		;
}

void vmmgo_config_log(struct vmm_config *c, uint64_t id)
{
	c->log = log_line;
	c->log_arg = (void *)(uintptr_t)id;
}

void vmmgo_restore_log(struct vmm_restore_config *c, uint64_t id)
{
	c->log = log_line;
	c->log_arg = (void *)(uintptr_t)id;
}

/* ---- What calls Go ----------------------------------------------------------- */

static int write_progress(void *arg, uint64_t done, uint64_t total)
{
	return vmmgoProgress((uintptr_t)arg, done, total);
}

void vmmgo_write_progress(struct vmm_write_config *c, uintptr_t id)
{
	c->progress = write_progress;
	c->progress_arg = (void *)id;
}

static int pool_prepare(void *arg, struct vmm *vm)
{
	return vmmgoPrepare((uintptr_t)arg, vm);
}

void vmmgo_pool_prepare(struct vmm_pool_config *c, uintptr_t id)
{
	c->prepare = pool_prepare;
	c->prepare_arg = (void *)id;
}
