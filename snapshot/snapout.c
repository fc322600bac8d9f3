/* SPDX-License-Identifier: MIT */
/*
 * snapout.c - a file that appears whole or not at all, and a pipe.
 *
 * A file in the making has no name where the file system allows that
 * (O_TMPFILE), so that a writer that is killed leaves nothing behind; else a
 * temporary one in the same directory.  It is synced once, when it is
 * complete, and then renamed over what was there: until that moment nobody
 * can mistake it for a snapshot, so data and footer need no order between
 * them.  Last the directory is synced.  It is readable by its owner only: a
 * guest's RAM is full of secrets.
 *
 * Writing may raise SIGPIPE or SIGXFSZ.  Both are blocked while the file is
 * open and taken back if they came, for the thread belongs to our caller; all
 * calls come from the thread that opened it.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../core/thread.h"
#include "snapfile.h"

#define SNAPOUT_PIECE	(4u << 20)	/* written at once, at most */

static void snapout_reset(struct snap_out *o)
{
	memset(o, 0, sizeof(*o));
	o->fd = o->dirfd = -1;
}

int snap_out_fd(struct snap_out *o, int fd, struct vmm_error *err)
{
	snapout_reset(o);
	o->name = "snapshot stream";
	o->fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	if (o->fd < 0)
		return fail_sys(err, errno, "%s: descriptor %d", o->name, fd);
	thread_hold(&o->before);
	o->held = 1;
	return 0;
}

/* A name beside the file's that nobody has yet. */
static int snapout_tmpname(struct snap_out *o)
{
	uint64_t r;

	free(o->tmp);
	o->tmp = NULL;
	if (getrandom(&r, sizeof(r), 0) != (ssize_t)sizeof(r))
		return -1;
	return asprintf(&o->tmp, ".%.200s.%016llx.tmp", o->base, (unsigned long long)r);
}

static int snapout_create(struct snap_out *o)
{
	/* Without /proc a file that has no name could not be given one. */
	if (access("/proc/self/fd", F_OK) == 0) {
		o->fd = openat(o->dirfd, ".", O_TMPFILE | O_WRONLY | O_CLOEXEC, 0600);
		if (o->fd >= 0 || (errno != EOPNOTSUPP && errno != EISDIR && errno != ENOENT &&
				   errno != EINVAL))
			return o->fd;
	}
	if (snapout_tmpname(o) < 0)
		return -1;
	o->fd = openat(o->dirfd, o->tmp, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0600);
	return o->fd;
}

int snap_out_file(struct snap_out *o, const char *path, struct vmm_error *err)
{
	const char *slash = strrchr(path, '/');
	struct stat st;
	char *dir;
	int rc = VMM_ENOMEM;

	snapout_reset(o);
	o->name = path;
	o->base = strdup(slash ? slash + 1 : path);
	dir = slash ? strndup(path, slash == path ? 1 : (size_t)(slash - path)) : strdup(".");
	if (!o->base || !dir) {
		fail(err, rc, "%s: out of memory", path);
		goto out;
	}
	rc = VMM_EINVAL;
	if (!*o->base || (stat(path, &st) == 0 && !S_ISREG(st.st_mode))) {
		fail(err, rc, "%s: not a regular file", path);
		goto out;
	}
	o->dir = realpath(dir, NULL);
	o->dirfd = o->dir ? open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
	if (o->dirfd < 0) {
		rc = fail_sys(err, errno, "open directory of %s", path);
		goto out;
	}
	if (snapout_create(o) < 0) {
		rc = fail_sys(err, errno, "create %s", path);
		goto out;
	}
	rc = 0;
	thread_hold(&o->before);
	o->held = 1;
out:
	free(dir);
	return rc ? snap_out_end(o, rc, NULL) : 0;
}

int snap_out_put(struct snap_out *o, const void *p, size_t n, struct vmm_error *err)
{
	struct pollfd pfd = { .fd = o->fd, .events = POLLOUT };
	const uint8_t *b = p;
	size_t done = 0, want;
	ssize_t r;

	while (done < n) {
		want = n - done < SNAPOUT_PIECE ? n - done : SNAPOUT_PIECE;
		r = write(o->fd, b + done, want);
		if (r > 0) {
			done += (size_t)r;
			continue;
		}
		if (r < 0 && errno == EINTR)
			continue;
		if (r < 0 && errno == EAGAIN) {
			poll(&pfd, 1, -1);
			continue;
		}
		o->hit = 1;
		return fail_sys(err, r < 0 ? errno : EIO, "write %s", o->name);
	}
	o->off += n;
	return 0;
}

/* The first n bytes of f, by the kernel's hand where it can. */
int snap_out_copy(struct snap_out *o, const struct snapfile *f, uint64_t n, struct vmm_error *err)
{
	const size_t cap = 1u << 20;
	off_t src = 0;
	uint8_t *buf;
	ssize_t r;
	int rc = 0;

	while ((uint64_t)src < n) {
		r = copy_file_range(f->fd, &src, o->fd, NULL, (size_t)(n - (uint64_t)src), 0);
		if (r < 0 && errno == EINTR)
			continue;
		/* Across file systems, of a memfd, on an old kernel: below.
		   An error that is real will come again there. */
		if (r <= 0)
			break;
		o->off += (uint64_t)r;
	}
	if ((uint64_t)src == n)
		return 0;
	buf = malloc(cap);
	if (!buf)
		return fail(err, VMM_ENOMEM, "%s: out of memory", o->name);
	while (!rc && (uint64_t)src < n) {
		size_t want = n - (uint64_t)src < cap ? (size_t)(n - (uint64_t)src) : cap;

		rc = snap_read_at(f->fd, f->name, buf, want, (uint64_t)src, err);
		if (!rc)
			rc = snap_out_put(o, buf, want, err);
		src += (off_t)want;
	}
	free(buf);
	return rc;
}

/* Make the complete file permanent, and give it its name. */
static int snapout_commit(struct snap_out *o, struct vmm_error *err)
{
	char proc[40];

	if (fsync(o->fd) < 0)
		return fail_sys(err, errno, "write %s", o->name);
	if (!o->tmp) {
		snprintf(proc, sizeof(proc), "/proc/self/fd/%d", o->fd);
		if (snapout_tmpname(o) < 0)
			return fail(err, VMM_ENOMEM, "%s: out of memory", o->name);
		if (linkat(AT_FDCWD, proc, o->dirfd, o->tmp, AT_SYMLINK_FOLLOW) < 0) {
			int e = errno;

			free(o->tmp);
			o->tmp = NULL;
			return fail_sys(err, e, "create %s", o->name);
		}
	}
	if (renameat(o->dirfd, o->tmp, o->dirfd, o->base) < 0)
		return fail_sys(err, errno, "rename to %s", o->name);
	free(o->tmp);
	o->tmp = NULL;
	if (fsync(o->dirfd) < 0)
		return fail_sys(err, errno, "sync directory of %s", o->name);
	return 0;
}

int snap_out_end(struct snap_out *o, int rc, struct vmm_error *err)
{
	if (!rc && o->base)
		rc = snapout_commit(o, err);
	if (o->tmp)
		unlinkat(o->dirfd, o->tmp, 0);
	if (o->fd >= 0)
		close(o->fd);
	if (o->dirfd >= 0)
		close(o->dirfd);
	if (o->held)
		thread_release(&o->before, o->hit);
	free(o->tmp);
	free(o->base);
	free(o->dir);
	free(o->meta.data);
	snapout_reset(o);
	return rc;
}
