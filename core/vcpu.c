/* SPDX-License-Identifier: MIT */
/*
 * vcpu.c - vCPU threads: running the guest, holding it still, letting it end.
 *
 * Each vCPU has one thread that makes every KVM_RUN of it.  Between two of
 * them it looks at what is wanted.  To get it out of the guest from another
 * thread, immediate_exit is set and then a signal sent that is blocked in the
 * thread and unblocked only inside KVM_RUN (KVM_SET_SIGNAL_MASK): either the
 * flag is seen on the way in, or the signal ends the stay.  The signal is
 * never delivered, so that no handler is needed and the host program's, or
 * its language runtime's, are not disturbed.
 *
 * An exit for MMIO, SBI or a CSR is only complete when KVM_RUN is entered
 * again: then the kernel writes the guest's register and steps over the
 * instruction.  A vCPU is therefore parked after one more KVM_RUN that returns
 * at once (api.rst, "immediate_exit").
 */
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "clock.h"
#include "machine.h"
#include "thread.h"

_Static_assert(EVENTS_SLACK > VCPUS_MAX, "every vCPU may ring once too often");

/* One that nobody else uses.  A real-time signal would be queued, and the queue
   can be full (RLIMIT_SIGPENDING): then a kick would be lost. */
#define VCPU_SIGNAL	SIGSTKFLT

/* With m->lock held. */
static void vcpu_kick(struct vcpu *v)
{
	if (!v->threaded)
		return;			/* and perhaps only half made */
	v->kicked = 1;
	__atomic_store_n(&v->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
	pthread_kill(v->thread, VCPU_SIGNAL);
}

static void vcpus_kick(struct machine *m)
{
	uint32_t i;

	for (i = 0; i < m->nvcpus; i++)
		vcpu_kick(&m->vcpu[i]);
}

static void machine_set_state(struct machine *m, int state)
{
	__atomic_store_n(&m->state, state, __ATOMIC_RELEASE);
}

/* With m->lock held. */
static void machine_set_want(struct machine *m, enum want want)
{
	__atomic_store_n(&m->want, (int)want, __ATOMIC_RELAXED);
	pthread_cond_broadcast(&m->cond);
}

static void vcpu_count(struct vcpu *v, int kind)
{
	/* One writer: no need for an atomic addition. */
	__atomic_store_n(&v->exits[kind], v->exits[kind] + 1, __ATOMIC_RELAXED);
}

/* ---- The end of a run -------------------------------------------------- */

/* With m->lock held and no vCPU in the guest: tell why the machine stopped. */
static void machine_halted(struct machine *m)
{
	if (!m->halt.type)
		return;
	machine_set_state(m, m->halt.type == VMM_EV_FAULT ? VMM_BROKEN : VMM_STOPPED);
	events_push(&m->events, m->halt.type, m->halt.vcpu, m->halt.value, m->halt.detail);
	memset(&m->halt, 0, sizeof(m->halt));
}

void machine_halt(struct machine *m, uint32_t type, uint32_t vcpu, uint64_t value,
		  const char *fmt, ...)
{
	va_list ap;

	pthread_mutex_lock(&m->lock);
	if (!m->halt.type && (m->state == VMM_RUNNING || m->state == VMM_PAUSED)) {
		m->halt.type = type;
		m->halt.vcpu = vcpu;
		m->halt.value = value;
		va_start(ap, fmt);
		vsnprintf(m->halt.detail, sizeof(m->halt.detail), fmt, ap);
		va_end(ap);
		machine_set_want(m, WANT_STOP);
		vcpus_kick(m);
		if (!m->running)
			machine_halted(m);
	}
	pthread_mutex_unlock(&m->lock);
}

void machine_poke(struct machine *m)
{
	pthread_mutex_lock(&m->lock);
	pthread_cond_broadcast(&m->cond);
	pthread_mutex_unlock(&m->lock);
}

void machine_settle(struct machine *m)
{
	/* machine_halted() sets the state, then queues the event, under it. */
	pthread_mutex_lock(&m->lock);
	pthread_mutex_unlock(&m->lock);
}

/* ---- One that leads ---------------------------------------------------- */

/*
 * It may be waiting, with interrupts off, for a lock that another holds: that is over when it
 * has had some CPU time.  It may also be waiting for a CPU or, while RAM is decoded, for pages.
 */
#define LEAD_NAP_NS	50000
#define LEAD_CPU_NS	100000000u
#define LEAD_NS		500000000u

#ifndef sigev_notify_thread_id		/* glibc before 2.37 */
#define sigev_notify_thread_id _sigev_un._tid
#endif

static uint64_t vcpu_cpu_ns(void)
{
	struct timespec ts = { 0, 0 };

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static int vcpu_leads(struct vcpu *v)
{
	return __atomic_load_n(&v->m->lead.vcpu, __ATOMIC_RELAXED) == v;
}

static void vcpus_follow(struct machine *m)
{
	pthread_mutex_lock(&m->lock);
	__atomic_store_n(&m->lead.vcpu, NULL, __ATOMIC_RELAXED);
	pthread_cond_broadcast(&m->cond);
	pthread_mutex_unlock(&m->lock);
}

/* On its thread: a signal that got it out of the guest, and a kick has more than that. */
static int vcpu_take_signal(void)
{
	const struct timespec now = { 0, 0 };
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, VCPU_SIGNAL);
	return sigtimedwait(&set, NULL, &now) > 0;
}

/* On its thread. */
static void vcpu_lead_end(struct vcpu *v)
{
	if (!v->ticking)
		return;
	timer_delete(v->timer);
	vcpu_take_signal();
	v->ticking = 0;
	v->m->lead.spent_ns += vcpu_cpu_ns() - v->m->lead.cpu_ns;
}

/* On its thread: the signal that kicks it comes by itself when the nap is over. */
static void vcpu_lead_nap(struct vcpu *v)
{
	const struct itimerspec when = { .it_value = { 0, v->m->lead.nap_ns } };

	if (timer_settime(v->timer, 0, &when, NULL) == 0)
		return;
	vcpu_lead_end(v);
	vcpus_follow(v->m);
}

static void vcpu_lead_begin(struct vcpu *v)
{
	struct lead *l = &v->m->lead;
	struct sigevent e;

	memset(&e, 0, sizeof(e));
	e.sigev_notify = SIGEV_THREAD_ID;
	e.sigev_signo = VCPU_SIGNAL;
	e.sigev_notify_thread_id = gettid();
	if (timer_create(CLOCK_MONOTONIC, &e, &v->timer) < 0) {
		vcpus_follow(v->m);
		return;
	}
	v->ticking = 1;
	l->nap_ns = LEAD_NAP_NS;
	l->cpu_ns = vcpu_cpu_ns();
	if (!l->end_ns)
		l->end_ns = clock_ns() + LEAD_NS;
	vcpu_lead_nap(v);
}

/* On its thread, which has left the guest because of a signal. */
static void vcpu_lead_look(struct vcpu *v)
{
	struct lead *l = &v->m->lead;

	vcpu_take_signal();
	if (l->over(v) || l->spent_ns + vcpu_cpu_ns() - l->cpu_ns > LEAD_CPU_NS ||
	    clock_ns() > l->end_ns) {
		vcpu_lead_end(v);
		vcpus_follow(v->m);
		return;
	}
	if (l->nap_ns < LEAD_CPU_NS / 100)
		l->nap_ns *= 2;
	vcpu_lead_nap(v);
}

void vcpus_lead(struct machine *m, struct vcpu *v, int (*over)(struct vcpu *v))
{
	pthread_mutex_lock(&m->lock);
	m->lead.over = over;
	m->lead.seen = m->lead.end_ns = m->lead.spent_ns = 0;
	__atomic_store_n(&m->lead.vcpu, v, __ATOMIC_RELAXED);
	pthread_mutex_unlock(&m->lock);
}

/* ---- A vCPU's thread --------------------------------------------------- */

/* With m->lock held: this vCPU is out of the guest, for now or for good. */
static void vcpu_park(struct vcpu *v)
{
	struct machine *m = v->m;

	if (v->parked)
		return;
	v->parked = 1;
	if (--m->running == 0) {
		if (m->want == WANT_STOP)
			machine_halted(m);
		pthread_cond_broadcast(&m->cond);
	}
}

/* On its thread, with m->lock held: the signal that got it out of the guest is taken back. */
static void vcpu_unkick(struct vcpu *v)
{
	while (v->kicked && vcpu_take_signal())
		;
	v->kicked = 0;
}

/* On its thread.  Nobody wants anything else of the machine, so that a signal is none of ours. */
static int vcpu_run_errand(struct vcpu *v)
{
	int r, tries = 0;

	__atomic_store_n(&v->run->immediate_exit, 0, __ATOMIC_SEQ_CST);
	do
		r = kvm_run(v->fd);
	while ((r == -EINTR || r == -EAGAIN) && tries++ < 1000);
	__atomic_store_n(&v->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
	if (r < 0)
		return r;
	r = v->run->exit_reason == KVM_EXIT_SBI ? 0 : -EIO;
	kvm_run(v->fd);			/* EINTR, and the exit is complete */
	return r;
}

/* Wait until this vCPU may run.  0: never again. */
static int vcpu_await_turn(struct vcpu *v)
{
	struct machine *m = v->m;
	int run, r;

	__atomic_store_n(&v->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
	vcpu_lead_end(v);
	if (v->unfinished) {
		kvm_run(v->fd);		/* EINTR, and the exit is complete */
		v->unfinished = 0;
	}
	pthread_mutex_lock(&m->lock);
	for (;;) {
		if (v->want_stats) {
			v->want_stats = 0;
			v->stats_fd = kvm_stats(v->fd);
			pthread_cond_broadcast(&m->cond);
		}
		if (m->want == WANT_STOP ||
		    (m->want == WANT_RUN && (!m->lead.vcpu || vcpu_leads(v)) &&
		     !events_crowded(&m->events)))
			break;
		if (v->errand > 0) {
			vcpu_unkick(v);
			pthread_mutex_unlock(&m->lock);
			r = vcpu_run_errand(v);
			pthread_mutex_lock(&m->lock);
			v->errand = r;
			pthread_cond_broadcast(&m->cond);
			continue;
		}
		if (m->want == WANT_PAUSE)
			vcpu_park(v);
		pthread_cond_wait(&m->cond, &m->lock);
	}
	run = m->want == WANT_RUN;
	if (run) {
		/* Under the lock, so that no kick is lost: who wants
		   something else says so under it, and kicks then. */
		__atomic_store_n(&v->run->immediate_exit, 0, __ATOMIC_SEQ_CST);
		vcpu_unkick(v);
	} else {
		vcpu_park(v);
	}
	pthread_mutex_unlock(&m->lock);
	if (run && vcpu_leads(v))
		vcpu_lead_begin(v);
	return run;
}

static void vcpu_mmio(struct vcpu *v)
{
	struct machine *m = v->m;
	uint64_t gpa = v->run->mmio.phys_addr, val = 0;
	uint32_t len = v->run->mmio.len;
	int found;

	if (len > 8)
		len = 8;
	loop_lock(&m->loop);
	if (v->run->mmio.is_write) {
		memcpy(&val, v->run->mmio.data, len);
		found = bus_write(&m->bus, gpa, len, val);
	} else {
		found = bus_read(&m->bus, gpa, len, &val);
		memcpy(v->run->mmio.data, &val, len);
	}
	loop_unlock(&m->loop);
	if (!found)
		log_line(&m->log, VMM_LOG_DEBUG, "vCPU %u: no device at 0x%llx", v->id,
			 (unsigned long long)gpa);
}

static void vcpu_system_event(struct vcpu *v)
{
	struct machine *m = v->m;
	uint64_t reason = v->run->system_event.ndata ? v->run->system_event.data[0] : 0;

	/* SBI 2.0, 10.1: reason 1 is a system failure. */
	if (v->run->system_event.type == KVM_SYSTEM_EVENT_CRASH || reason == 1)
		machine_halt(m, VMM_EV_CRASH, v->id, reason,
			     "the guest reset the system because of a failure");
	else if (v->run->system_event.type == KVM_SYSTEM_EVENT_SHUTDOWN)
		machine_halt(m, VMM_EV_SHUTDOWN, v->id, 0, "%s", "");
	else
		machine_halt(m, VMM_EV_REBOOT, v->id, 0, "%s", "");
}

static void vcpu_exit(struct vcpu *v)
{
	struct machine *m = v->m;
	int kind = VMM_EXIT_OTHER;

	switch (v->run->exit_reason) {
	case KVM_EXIT_MMIO:
		vcpu_mmio(v);
		v->unfinished = 1;
		kind = VMM_EXIT_MMIO;
		break;
	case KVM_EXIT_SBI:
	case KVM_EXIT_CSR:
		loop_lock(&m->loop);
		kind = m->arch_exit(v);
		loop_unlock(&m->loop);
		v->unfinished = 1;
		break;
	case KVM_EXIT_SYSTEM_EVENT:
		vcpu_system_event(v);
		break;
	case KVM_EXIT_FAIL_ENTRY:
		machine_halt(m, VMM_EV_FAULT, v->id,
			     v->run->fail_entry.hardware_entry_failure_reason,
			     "vCPU %u cannot enter the guest (reason 0x%llx): no interrupt file free?",
			     v->id, (unsigned long long)
			     v->run->fail_entry.hardware_entry_failure_reason);
		break;
	default:
		machine_halt(m, VMM_EV_FAULT, v->id, v->run->exit_reason,
			     "vCPU %u: unknown KVM exit %u", v->id, v->run->exit_reason);
		break;
	}
	vcpu_count(v, kind);
}

static void vcpu_run_failed(struct vcpu *v, int os_errno)
{
	/* What KVM cannot emulate is the guest's doing: an instruction fetched
	   from where there is no RAM, an atomic access to a device, one that is
	   not aligned. */
	if (os_errno == EOPNOTSUPP || os_errno == ENXIO || os_errno == EIO)
		machine_halt(v->m, VMM_EV_CRASH, v->id, (uint64_t)os_errno,
			     "vCPU %u did what cannot be emulated, such as a jump to where no RAM is",
			     v->id);
	else
		machine_halt(v->m, VMM_EV_FAULT, v->id, (uint64_t)os_errno,
			     "vCPU %u: KVM_RUN: %s", v->id, strerrorname_np(os_errno));
	vcpu_count(v, VMM_EXIT_OTHER);
}

static void vcpu_interrupted(struct vcpu *v)
{
	vcpu_count(v, VMM_EXIT_SIGNAL);
	if (v->ticking)
		vcpu_lead_look(v);
}

static void *vcpu_main(void *arg)
{
	struct vcpu *v = arg;
	struct machine *m = v->m;
	char name[24];
	int r;

	snprintf(name, sizeof(name), "%.10s/%u", m->name, v->id);
	thread_name(name);
	for (;;) {
		if ((__atomic_load_n(&v->run->immediate_exit, __ATOMIC_RELAXED) ||
		     __atomic_load_n(&m->want, __ATOMIC_RELAXED) != WANT_RUN ||
		     events_crowded(&m->events)) && !vcpu_await_turn(v))
			return NULL;
		r = kvm_run(v->fd);
		v->unfinished = 0;
		if (r >= 0)
			vcpu_exit(v);
		else if (r == -EINTR || r == -EAGAIN)
			vcpu_interrupted(v);
		else
			vcpu_run_failed(v, -r);
	}
}

/* ---- From outside ------------------------------------------------------ */

int vcpus_create(struct machine *m, uint32_t n, struct vmm_error *err)
{
	sigset_t mask;
	uint32_t i;
	int r;

	m->vcpu = calloc(n, sizeof(*m->vcpu));
	if (!m->vcpu)
		return fail(err, VMM_ENOMEM, "%u vCPUs", n);
	sigfillset(&mask);
	sigdelset(&mask, VCPU_SIGNAL);
	for (i = 0; i < n; i++) {
		struct vcpu *v = &m->vcpu[i];

		v->m = m;
		v->id = i;
		v->stats_fd = -1;
		v->parked = 1;
		v->fd = kvm_vcpu(m->vm, i);
		if (v->fd < 0)
			return fail_sys(err, -v->fd, "vCPU %u", i);
		m->nvcpus = i + 1;
		r = kvm_run_map(m->kvm, v->fd, &v->run, &v->run_size);
		if (r == 0)
			r = kvm_sigmask(v->fd, &mask);
		if (r < 0)
			return fail_sys(err, -r, "vCPU %u", i);
	}
	return 0;
}

void vcpus_free(struct vcpu *vcpu, uint32_t n)
{
	uint32_t i;

	for (i = 0; i < n; i++) {
		struct vcpu *v = &vcpu[i];

		if (v->run)
			kvm_run_unmap(v->run, v->run_size);
		if (v->stats_fd >= 0)
			close(v->stats_fd);
		close(v->fd);
	}
	free(vcpu);
}

static void vcpus_join(struct machine *m)
{
	uint32_t i;

	for (i = 0; i < m->nvcpus; i++) {
		if (!m->vcpu[i].threaded)
			continue;
		pthread_join(m->vcpu[i].thread, NULL);
		m->vcpu[i].threaded = 0;
	}
}

/* Have all threads there: they wait until they are wanted, or (run) go. */
static int vcpus_threads(struct machine *m, int run, struct vmm_error *err)
{
	uint32_t i;
	int r = 0;

	pthread_mutex_lock(&m->lock);
	/* Device code may have stopped a machine that was held: it goes first. */
	if (run && m->state != VMM_NEW && m->state != VMM_PAUSED) {
		pthread_mutex_unlock(&m->lock);
		return fail(err, VMM_ESTATE, "the guest stopped before it could go on");
	}
	machine_set_want(m, WANT_PAUSE);	/* that of a reset is to stop */
	for (i = 0; i < m->nvcpus; i++) {
		struct vcpu *v = &m->vcpu[i];

		v->parked = !run;
		if (v->threaded)
			continue;
		v->run->immediate_exit = 1;	/* its first look is at want */
		r = thread_start(&v->thread, vcpu_main, v);
		if (r)
			break;
		v->threaded = 1;
	}
	m->running = run ? i : 0;
	if (!r && run)
		machine_set_state(m, VMM_RUNNING);
	if (r || run)
		machine_set_want(m, r ? WANT_STOP : WANT_RUN);
	pthread_mutex_unlock(&m->lock);
	if (!r)
		return 0;
	vcpus_join(m);
	machine_set_want(m, WANT_PAUSE);
	return fail_sys(err, r, "thread of vCPU %u", i);
}

int vcpus_ready(struct machine *m, struct vmm_error *err)
{
	return vcpus_threads(m, 0, err);
}

int vcpus_start(struct machine *m, struct vmm_error *err)
{
	return vcpus_threads(m, 1, err);
}

int vcpus_pause(struct machine *m, struct vmm_error *err)
{
	int stopped;

	pthread_mutex_lock(&m->lock);
	if (m->want == WANT_RUN) {
		machine_set_want(m, WANT_PAUSE);
		vcpus_kick(m);
	}
	while (m->running)
		pthread_cond_wait(&m->cond, &m->lock);
	stopped = m->want == WANT_STOP;
	if (!stopped)
		machine_set_state(m, VMM_PAUSED);
	pthread_mutex_unlock(&m->lock);
	events_poke(&m->events);
	return stopped ? fail(err, VMM_ESTATE, "the guest stopped before it could be paused") : 0;
}

void vcpus_stop(struct machine *m)
{
	pthread_mutex_lock(&m->lock);
	machine_set_want(m, WANT_STOP);
	vcpus_kick(m);
	while (m->running)
		pthread_cond_wait(&m->cond, &m->lock);
	if (m->state != VMM_BROKEN)
		machine_set_state(m, VMM_STOPPED);
	pthread_mutex_unlock(&m->lock);
	vcpus_join(m);
	events_poke(&m->events);
}

/* What KVM has counted so far was not for this guest. */
static void vcpu_forget_exits(struct vcpu *v)
{
	v->past_exits += vcpu_all_exits(v);
	memset(v->exits, 0, sizeof(v->exits));
	if (v->stats_fd >= 0)
		close(v->stats_fd);
	v->stats_fd = -1;
}

int vcpu_errand(struct vcpu *v)
{
	struct machine *m = v->m;
	int r;

	pthread_mutex_lock(&m->lock);
	v->errand = 1;
	pthread_cond_broadcast(&m->cond);
	while (v->errand > 0)
		pthread_cond_wait(&m->cond, &m->lock);
	r = v->errand;
	pthread_mutex_unlock(&m->lock);
	vcpu_forget_exits(v);
	return r;
}

int vcpus_renew(struct machine *m)
{
	struct vcpu *v;
	int r = 0;

	for (v = m->vcpu; v < m->vcpu + m->nvcpus && r == 0; v++) {
		vcpu_forget_exits(v);
		r = kvm_mp_set(v->fd, KVM_MP_INIT);
	}
	return r;
}

void machine_renew(struct machine *m, int ok)
{
	pthread_mutex_lock(&m->lock);
	machine_set_want(m, WANT_PAUSE);
	machine_set_state(m, ok ? VMM_NEW : VMM_BROKEN);
	pthread_mutex_unlock(&m->lock);
}

/* ---- Figures ----------------------------------------------------------- */

/* Where a counter is in a binary statistics descriptor (api.rst, KVM_GET_STATS_FD);
   0: it has none of that name. */
static uint64_t stats_find(int fd, const char *name)
{
	struct kvm_stats_header h;
	struct kvm_stats_desc d;
	char all[8192], *p;
	ssize_t left;
	size_t n;

	if (pread(fd, &h, sizeof(h), 0) != sizeof(h) || h.name_size > 256)
		return 0;
	n = sizeof(d) + h.name_size;
	left = pread(fd, all, n * h.num_desc < sizeof(all) ? n * h.num_desc : sizeof(all),
		     h.desc_offset);
	for (p = all; left >= (ssize_t)n; p += n, left -= (ssize_t)n) {
		memcpy(&d, p, sizeof(d));
		if (strncmp(p + sizeof(d), name, h.name_size) == 0)
			return (uint64_t)h.data_offset + d.offset;
	}
	return 0;
}

/* One of KVM's counters, once they are open. */
static uint64_t vcpu_stat(const struct vcpu *v, uint64_t off)
{
	uint64_t n;

	return off && pread(v->stats_fd, &n, sizeof(n), (off_t)off) == sizeof(n) ? n : 0;
}

uint64_t vcpu_all_exits(struct vcpu *v)
{
	struct machine *m = v->m;
	uint64_t n;

	/* The ioctl waits while the vCPU is in the guest: let its own thread
	   make it, once, between two stays. */
	pthread_mutex_lock(&m->lock);
	if (v->stats_fd == -1) {
		if (v->threaded && !v->parked) {
			v->want_stats = 1;
			vcpu_kick(v);
			pthread_cond_broadcast(&m->cond);
			while (v->want_stats && !v->parked)
				pthread_cond_wait(&m->cond, &m->lock);
		}
		if (v->stats_fd == -1)
			v->stats_fd = kvm_stats(v->fd);
		v->want_stats = 0;
		if (v->stats_fd >= 0) {
			v->exits_off = stats_find(v->stats_fd, "exits");
			v->waits_off = stats_find(v->stats_fd, "wfi_exit_stat");
		}
	}
	pthread_mutex_unlock(&m->lock);
	n = vcpu_stat(v, v->exits_off);
	return n > v->past_exits ? n - v->past_exits : 0;
}

uint64_t vcpu_waits(struct vcpu *v)
{
	return vcpu_stat(v, v->waits_off);
}
