/* SPDX-License-Identifier: MIT */
/*
 * tool_fork.c - vmm fork: children of a machine that runs.
 *
 * They live in the vmm that has the machine, share its memory until they write, and
 * end with it.  Like clones they have no terminal; what stands behind the parent
 * alone - a tap, a descriptor, forwarded ports - is not theirs.
 */
#include <errno.h>
#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

#include "tool.h"

struct child {
	struct child	*next;
	struct vmm	*vm;
	struct front	*front;
	uint32_t	number;
};

static double now_us(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec * 1e6 + (double)ts.tv_nsec / 1e3;
}

int family_open(struct family *f)
{
	f->fd = epoll_create1(EPOLL_CLOEXEC);
	if (f->fd < 0)
		fprintf(stderr, "vmm: %s\n", strerror(errno));
	return f->fd < 0 ? EXIT_TROUBLE : 0;
}

static void child_free(struct child *c)
{
	vmm_stop(c->vm, NULL);
	front_close(c->front);
	vmm_free(c->vm);
	free(c);
}

void family_close(struct family *f)
{
	struct child *c;

	while ((c = f->children)) {
		f->children = c->next;
		child_free(c);
	}
	if (f->fd >= 0)
		close(f->fd);
	f->fd = -1;
}

/* What a child's devices stand on, of what its parent's do. */
static void inherit(const struct family *f, struct devices *d)
{
	uint32_t i;

	*d = *f->devices;
	d->nnets = d->nshares = 0;
	for (i = 0; i < f->devices->nnets; i++) {
		struct net *n = &d->net[d->nnets];

		*n = f->devices->net[i];
		n->tcp = n->udp = NULL;
		d->nnets += n->fd < 0 && !n->tap;
	}
	for (i = 0; i < d->ndisks; i++)
		d->disk[i].queues = 0;		/* those it had */
}

static int child_add(struct family *f, struct vmm_snap *snap, struct vmm_error *err)
{
	struct epoll_event ev = { .events = EPOLLIN };
	struct child *c = calloc(1, sizeof(*c));
	struct devices devices;
	char path[4096];
	int rc;

	inherit(f, &devices);
	if (!c)
		return err->code = VMM_ENOMEM;
	rc = vmm_restore(&c->vm, snap, &f->how, err);
	if (rc) {
		free(c);
		return rc;
	}
	c->number = ++f->last;
	ev.data.ptr = c;
	snprintf(path, sizeof(path), "%s.%u", devices.uds ? devices.uds : "", c->number);
	if (devices_add(c->vm, &devices, -1, err) ||
	    (devices.uds && !(c->front = front_open(c->vm, path))) ||
	    epoll_ctl(f->fd, EPOLL_CTL_ADD, vmm_fd(c->vm), &ev) < 0) {
		snprintf(err->message, sizeof(err->message), "child %u has nothing behind its devices",
			 c->number);
		rc = err->code = VMM_ESYS;
	}
	if (rc == 0)
		rc = vmm_start(c->vm, err);
	if (rc) {
		child_free(c);
		return rc;
	}
	c->next = f->children;
	f->children = c;
	return 0;
}

struct json_object *family_fork(struct family *f, struct vmm *vm, uint32_t n, struct vmm_error *err)
{
	struct json_object *o, *list;
	struct vmm_snap *snap = NULL;
	int was = vmm_state(vm), rc = 0;
	double begin = now_us(), pause;
	uint32_t i;

	memset(err, 0, sizeof(*err));
	if (was == VMM_RUNNING)
		rc = vmm_pause(vm, err);
	if (rc == 0)
		rc = vmm_snap_take(&snap, vm, err);
	if (was == VMM_RUNNING && vmm_state(vm) == VMM_PAUSED && vmm_start(vm, rc ? NULL : err))
		rc = rc ? rc : err->code;
	pause = now_us() - begin;
	if (rc == 0 && devices_shared(f->devices, snap, "children would share", err->message, sizeof(err->message)))
		rc = err->code = VMM_EINVAL;
	o = json_object_new_object();
	list = json_object_new_array();
	json_object_object_add(o, "pause_us", json_us(pause));
	json_object_object_add(o, "children", list);
	for (i = 0; i < n && rc == 0; i++) {
		struct json_object *child = json_object_new_object();

		begin = now_us();
		rc = child_add(f, snap, err);
		json_object_object_add(child, "number", json_object_new_int64(f->last));
		json_object_object_add(child, "start_us", json_us(now_us() - begin));
		if (rc == 0)
			json_object_object_add(child, "timing", stat_json(f->children->vm, err));
		json_object_array_add(list, child);
	}
	vmm_snap_free(snap);
	if (rc == 0)
		return o;
	json_object_put(o);
	return NULL;
}

void family_serve(struct family *f)
{
	struct epoll_event ev;
	struct child **p, *c;
	struct vmm_event what;

	if (epoll_wait(f->fd, &ev, 1, 0) != 1)
		return;
	c = ev.data.ptr;
	if (vmm_wait(c->vm, 0, &what, NULL) == 0 &&
	    (what.type == VMM_EV_NONE || what.type == VMM_EV_DOORBELL || what.type == VMM_EV_DEVICE))
		return;
	if (what.type == VMM_EV_CRASH || what.type == VMM_EV_FAULT)
		fprintf(stderr, "vmm: child %u: %s\n", c->number, what.detail);
	else
		fprintf(stderr, "vmm: child %u has ended with %u\n", c->number,
			(unsigned int)(what.value & 255));
	for (p = &f->children; *p != c; p = &(*p)->next)
		;
	*p = c->next;
	child_free(c);
}

/* ---- vmm fork -------------------------------------------------------------- */

static double number(struct json_object *o, const char *key)
{
	struct json_object *v;

	return json_object_object_get_ex(o, key, &v) ? json_object_get_double(v) : 0;
}

void family_show(struct json_object *answer, int timing)
{
	struct json_object *list = NULL, *child, *stages;
	size_t i, n;

	json_object_object_get_ex(answer, "children", &list);
	n = list ? json_object_array_length(list) : 0;
	for (i = 0; i < n; i++) {
		child = json_object_array_get_idx(list, i);
		printf("child %-6.0f %10.1f us", number(child, "number"), number(child, "start_us"));
		if (timing && json_object_object_get_ex(child, "timing", &child) &&
		    json_object_object_get_ex(child, "stages_us", &stages)) {
			json_object_object_foreach(stages, name, us)
				printf("  %s %.1f", name, json_object_get_double(us));
			printf("  waits %.0f", number(child, "memory_waits"));
		}
		printf("\n");
	}
	printf("pause        %10.1f us\n", number(answer, "pause_us"));
}
