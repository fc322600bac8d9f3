/* SPDX-License-Identifier: MIT */
/*
 * pool.c - machines that wait to be used: struct vmm_pool of vmm.h.
 *
 * It makes machines with nothing but vmm.h, as any program could.  A thread makes
 * machines until enough wait, and takes those that were given back to their
 * snapshot.  vmm_pool_take() only unlinks one from a list.
 *
 * Who takes one is about to start it: the thread lets him, before it begins to
 * make the next, unless somebody waits for that.
 *
 * If a machine cannot be made those who wait are told why, and the next
 * vmm_pool_take() has it tried again.
 */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "../core/error.h"
#include "../core/thread.h"

#define POOL_PAUSE_NS	10000000u
#define POOL_STEP_MS	50u

struct pool_entry {
	struct pool_entry *next;
	struct vmm	*vm;
	uint64_t	bytes;		/* that it holds while it waits */
};

struct vmm_pool {
	struct vmm_snap	*snap;
	struct vmm_pool_config cfg;
	struct vmm_restore_config how;
	char		*name;
	pthread_t	thread;
	pthread_mutex_t	lock;		/* what follows */
	pthread_cond_t	work, changed;	/* for the thread; for those who wait */
	struct pool_entry *ready, *given;
	uint32_t	nready, waiting;	/* machines; callers */
	uint64_t	bytes;		/* that the ready ones hold */
	int		taken;		/* one was, just now */
	int		stopping, failed;
	struct vmm_error err;		/* why, if failed */
};

static struct timespec pool_in(uint64_t ns)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	ts.tv_sec += (time_t)(ns / 1000000000);
	ts.tv_nsec += (long)(ns % 1000000000);
	if (ts.tv_nsec >= 1000000000L) {
		ts.tv_sec++;
		ts.tv_nsec -= 1000000000L;
	}
	return ts;
}

/* A moment, or until somebody waits. */
static void pool_sleep(struct vmm_pool *p)
{
	struct timespec until = pool_in(POOL_PAUSE_NS);

	while (!p->stopping && !p->waiting &&
	       pthread_cond_timedwait(&p->work, &p->lock, &until) == 0)
		;
}

/* ---- The pool's thread --------------------------------------------------- */

/* Run a machine until it rings the doorbell, and hold it there. */
static int pool_park(const struct vmm_pool *p, struct vmm *vm, struct vmm_error *err)
{
	struct vmm_event ev = { .type = VMM_EV_NONE };
	uint32_t left = p->cfg.park_ms, step;
	int rc = vmm_start(vm, err);

	/* In steps: the pool may be freed meanwhile. */
	while (rc == 0 && ev.type == VMM_EV_NONE && vmm_state(vm) == VMM_RUNNING &&
	       !__atomic_load_n(&p->stopping, __ATOMIC_RELAXED) && (left || !p->cfg.park_ms)) {
		step = left && left < POOL_STEP_MS ? left : POOL_STEP_MS;
		left -= left ? step : 0;
		rc = vmm_wait(vm, (int)step, &ev, err);
		if (ev.type == VMM_EV_DEVICE)
			ev.type = VMM_EV_NONE;		/* the guest runs on */
	}
	if (rc == 0 && ev.type == VMM_EV_NONE)
		rc = fail(err, VMM_ETIMEDOUT, "pool %s: the guest does not ring within %u ms",
			  p->name, p->cfg.park_ms);
	if (rc == 0 && ev.type != VMM_EV_DOORBELL)
		rc = fail(err, VMM_ESTATE, "pool %s: the guest stops before it rings: %s", p->name,
			  ev.detail);
	return rc ? rc : vmm_pause(vm, err);
}

/* Make a machine, or take one back to its snapshot; without the lock. */
static int pool_make(const struct vmm_pool *p, struct vmm **vm, struct vmm_error *err)
{
	int rc, fresh = !*vm;

	rc = fresh ? vmm_restore(vm, p->snap, &p->how, err) : vmm_reset(*vm, err);
	if (rc == 0 && fresh && p->cfg.prepare && p->cfg.prepare(p->cfg.prepare_arg, *vm))
		rc = fail(err, VMM_ESTATE, "pool %s: prepare() refuses", p->name);
	if (rc == 0 && p->cfg.flags & VMM_POOL_PARK)
		rc = pool_park(p, *vm, err);
	if (rc) {
		vmm_free(*vm);
		*vm = NULL;
	}
	return rc;
}

static uint64_t pool_bytes(struct vmm *vm)
{
	struct vmm_stats st = VMM_STATS_INIT;

	return vmm_stat(vm, &st, NULL) ? 0 : st.memory_own;
}

/* May another one wait? */
static int pool_wants(const struct vmm_pool *p)
{
	return p->nready < p->cfg.ready && (!p->failed || p->waiting) &&
	       (!p->nready || !p->cfg.memory || p->bytes < p->cfg.memory);
}

static void *pool_thread(void *arg)
{
	struct vmm_pool *p = arg;
	struct vmm_error err;
	struct pool_entry *e;
	int rc;

	thread_name("vmm-pool");
	pthread_mutex_lock(&p->lock);
	while (!p->stopping) {
		e = p->given;
		if (!e && !pool_wants(p)) {
			pthread_cond_wait(&p->work, &p->lock);
			continue;
		}
		if (p->taken && !p->waiting) {
			p->taken = 0;
			pool_sleep(p);
			continue;
		}
		if (e)
			p->given = e->next;
		rc = e && !pool_wants(p);	/* more than enough */
		p->failed = 0;
		pthread_mutex_unlock(&p->lock);
		if (rc) {
			vmm_free(e->vm);
			free(e);
			pthread_mutex_lock(&p->lock);
			continue;
		}
		if (!e)
			e = calloc(1, sizeof(*e));
		memset(&err, 0, sizeof(err));
		rc = e ? pool_make(p, &e->vm, &err) : fail(&err, VMM_ENOMEM, "a pool's machine");
		if (rc == 0)
			e->bytes = p->cfg.memory ? pool_bytes(e->vm) : 0;
		else
			free(e);
		pthread_mutex_lock(&p->lock);
		if (rc == 0) {
			e->next = p->ready;
			p->ready = e;
			p->nready++;
			p->bytes += e->bytes;
			pthread_cond_signal(&p->changed);
		} else {
			p->failed = 1;
			p->err = err;
			p->waiting = 0;		/* they are told, and go */
			pthread_cond_broadcast(&p->changed);
		}
	}
	pthread_mutex_unlock(&p->lock);
	return NULL;
}

/* ---- Public ---------------------------------------------------------------- */

static int pool_config(struct vmm_pool *p, const struct vmm_pool_config *config,
		       struct vmm_error *err)
{
	static const struct vmm_restore_config def = VMM_RESTORE_INIT;
	uint32_t size = config ? config->size : 0;
	const uint8_t *b = (const uint8_t *)config;

	p->cfg.size = sizeof(p->cfg);
	p->how = def;
	if (config && (size < sizeof(size) || size > 65536))
		return fail(err, VMM_EINVAL, "struct vmm_pool_config: size %u (set it up with its INIT macro)",
			    size);
	for (; size > sizeof(p->cfg); size--)
		if (b[size - 1])
			return fail(err, VMM_EINVAL, "struct vmm_pool_config: byte %u is set, but this library knows only %zu",
				    size - 1, sizeof(p->cfg));
	if (config)
		memcpy(&p->cfg, config, size);
	if (p->cfg.flags & ~(uint32_t)VMM_POOL_PARK)
		return fail(err, VMM_EINVAL, "unknown flags 0x%x", p->cfg.flags);
	if (!p->cfg.ready)
		p->cfg.ready = 1;
	/* What is wrong with it vmm_restore() will say. */
	if (p->cfg.restore) {
		size = p->cfg.restore->size < sizeof(p->how) ? p->cfg.restore->size
							      : (uint32_t)sizeof(p->how);
		memcpy(&p->how, p->cfg.restore, size);
		p->how.size = sizeof(p->how);
	}
	p->name = strdup(p->how.name ? p->how.name : "vm");
	p->how.name = p->name;
	p->how.flags |= VMM_POPULATE;
	return p->name ? 0 : fail(err, VMM_ENOMEM, "a pool");
}

int vmm_pool_create(struct vmm_pool **out, struct vmm_snap *snap,
		    const struct vmm_pool_config *config, struct vmm_error *err)
{
	pthread_condattr_t clock;
	struct vmm_pool *p;
	int rc;

	if (!out || !snap)
		return fail(err, VMM_EINVAL, out ? "no snapshot" : "nowhere to put the pool");
	*out = NULL;
	p = calloc(1, sizeof(*p));
	if (!p)
		return fail(err, VMM_ENOMEM, "a pool");
	p->snap = snap;
	rc = pool_config(p, config, err);
	pthread_mutex_init(&p->lock, NULL);
	pthread_condattr_init(&clock);
	pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
	pthread_cond_init(&p->work, &clock);
	pthread_cond_init(&p->changed, &clock);
	pthread_condattr_destroy(&clock);
	if (rc == 0) {
		rc = thread_start(&p->thread, pool_thread, p);
		rc = rc ? fail_sys(err, rc, "thread of a pool") : 0;
	}
	if (rc) {
		free(p->name);
		free(p);
		return rc;
	}
	*out = p;
	return 0;
}

int vmm_pool_take(struct vmm_pool *p, int timeout_ms, struct vmm **out, struct vmm_error *err)
{
	struct timespec until = { 0, 0 };
	struct pool_entry *e;
	int rc = 0;

	if (!p || !out || timeout_ms < -1)
		return fail(err, VMM_EINVAL, !p ? "no pool" : !out ?
			    "nowhere to put the machine" : "timeout below -1");
	*out = NULL;
	if (timeout_ms > 0)
		until = pool_in((uint64_t)timeout_ms * 1000000);
	pthread_mutex_lock(&p->lock);
	p->failed = 0;
	while (!p->ready && rc == 0) {
		p->waiting++;
		pthread_cond_signal(&p->work);
		if (timeout_ms < 0)
			pthread_cond_wait(&p->changed, &p->lock);
		else if (!timeout_ms || pthread_cond_timedwait(&p->changed, &p->lock, &until))
			rc = p->ready ? 0 : fail(err, VMM_ETIMEDOUT,
						 "pool %s: no machine is ready", p->name);
		p->waiting -= p->waiting > 0;
		if (!p->ready && p->failed) {
			rc = p->err.code;
			if (err)
				*err = p->err;
		}
	}
	e = p->ready;
	if (e && rc == 0) {
		p->ready = e->next;
		p->nready--;
		p->bytes -= e->bytes;
		*out = e->vm;
		p->taken = 1;
		pthread_cond_signal(&p->work);
	} else {
		e = NULL;
	}
	pthread_mutex_unlock(&p->lock);
	free(e);
	return rc;
}

void vmm_pool_give(struct vmm_pool *p, struct vmm *vm)
{
	struct pool_entry *e;

	if (!vm)
		return;
	e = p && vmm_state(vm) != VMM_BROKEN ? calloc(1, sizeof(*e)) : NULL;
	/* One that is held goes back in place, where KVM can do that. */
	if (!e || (vmm_pause(vm, NULL) && vmm_state(vm) == VMM_RUNNING && vmm_stop(vm, NULL))) {
		free(e);
		vmm_free(vm);
		return;
	}
	e->vm = vm;
	pthread_mutex_lock(&p->lock);
	e->next = p->given;
	p->given = e;
	pthread_cond_signal(&p->work);
	pthread_mutex_unlock(&p->lock);
}

static void pool_free_all(struct pool_entry *e)
{
	struct pool_entry *next;

	for (; e; e = next) {
		next = e->next;
		vmm_free(e->vm);
		free(e);
	}
}

void vmm_pool_free(struct vmm_pool *p)
{
	if (!p)
		return;
	pthread_mutex_lock(&p->lock);
	__atomic_store_n(&p->stopping, 1, __ATOMIC_RELAXED);
	pthread_cond_signal(&p->work);
	pthread_mutex_unlock(&p->lock);
	pthread_join(p->thread, NULL);
	pool_free_all(p->ready);
	pool_free_all(p->given);
	pthread_cond_destroy(&p->work);
	pthread_cond_destroy(&p->changed);
	pthread_mutex_destroy(&p->lock);
	free(p->name);
	free(p);
}
