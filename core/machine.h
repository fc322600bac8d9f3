/* SPDX-License-Identifier: MIT */
/*
 * machine.h - the parts of one machine, and how its vCPUs are run and held.
 *
 * The public struct vmm (vmm.c) is this plus what it was configured with.
 *
 * Locks, outermost first: the public call's, the I/O lock (loop.h), m->lock
 * (run control), the event queue's.
 */
#ifndef CORE_MACHINE_H
#define CORE_MACHINE_H

#include <pthread.h>

#include "bus.h"
#include "device.h"
#include "event.h"
#include "kvm.h"
#include "loop.h"
#include "mem.h"

#define VCPUS_MAX	64u

struct vcpu {
	struct machine	*m;
	uint32_t	id;		/* hart id, and KVM's vCPU id */
	int		fd;
	int		stats_fd;	/* KVM's counters; -1 until asked for */
	uint64_t	exits_off, waits_off;	/* what is where in it; 0: nowhere */
	struct kvm_run	*run;
	size_t		run_size;
	pthread_t	thread;
	int		threaded;	/* the thread is to be joined */
	int		parked;		/* under m->lock: out of the guest */
	int		kicked;		/* under m->lock: a signal may be pending */
	int		unfinished;	/* its thread's: an exit to be completed */
	int		want_stats;	/* under m->lock: open stats_fd */
	int		errand;		/* under m->lock: to be run; <0: what came of it */
	timer_t		timer;		/* its thread's, while it leads */
	int		ticking;
	uint64_t	exits[VMM_EXITS];	/* atomic; [VMM_EXIT_KERNEL] unused */
	uint64_t	past_exits;	/* KVM's count when it was last made as new */
};

enum want { WANT_RUN, WANT_PAUSE, WANT_STOP };

/* Of the vCPUs that are to run one may do so alone at first (vcpus_lead). */
struct lead {
	struct vcpu	*vcpu;		/* changed under m->lock, read without; NULL: all run */
	int		(*over)(struct vcpu *v);
	/* Its thread's own; the first is for over(). */
	uint64_t	seen;
	uint64_t	end_ns;		/* when the others go in any case; 0: not begun */
	uint64_t	cpu_ns;		/* CPU time of its thread when it last went on, and */
	uint64_t	spent_ns;	/* what it has had before that */
	long		nap_ns;		/* until it is looked at again */
};

struct machine {
	char		name[16];
	struct log	log;
	int		kvm, vm;	/* descriptors, or -1 */
	int		renewable;	/* KVM can make the vCPUs of this VM as new */
	struct mem	mem;
	struct bus	bus;
	struct loop	loop;
	struct events	events;
	struct irqchip	*irqchip;
	struct device	*devices;
	struct vcpu	*vcpu;
	uint32_t	nvcpus;
	/* Answers an exit that is the architecture's: SBI, CSR.  I/O lock
	   held.  Gives the VMM_EXIT_* it counts as. */
	int		(*arch_exit)(struct vcpu *v);

	/* Run control.  state and want are written under lock, read without. */
	pthread_mutex_t	lock;
	pthread_cond_t	cond;
	int		state;		/* VMM_NEW ... */
	int		want;		/* enum want */
	uint32_t	running;	/* vCPUs not parked */
	struct lead	lead;
	struct vmm_event halt;		/* why it stops; type 0: it does not */
	uint64_t	stage_ns[VMM_STAGES];
	pthread_t	reaper;
	int		reaping;	/* the reaper is to be joined */
};

int machine_init(struct machine *m, const char *name, const struct log *log,
		 struct vmm_error *err);
void machine_fini(struct machine *m);	/* frees devices and all, too */

/*
 * In a child of fork(): close what is its own, and free what can be; what is
 * shared with the parent is not touched.  Threads are gone, locks may be held,
 * and RAM is not there.
 */
void machine_orphan(struct machine *m);

/* Undo the KVM side, from the vCPUs to the VM; RAM and devices stay. */
void machine_unbuild(struct machine *m);

/* All to power-on; a vmm_connect() may be waiting for one of them. */
void machine_reset_devices(struct machine *m);

/*
 * The KVM side of a machine whose threads have ended goes, to be followed by another;
 * its devices are reset, and if its RAM is a private view it gets a fresh one, if it
 * can (mem_leave).  KVM takes its time to end a VM, and is told of each page that goes
 * while there is one: both is done meanwhile, on a thread.  1: the view is fresh.
 */
int machine_replace(struct machine *m);

int machine_state(const struct machine *m);

/* After a reset: NEW, or BROKEN if it failed. */
void machine_renew(struct machine *m, int ok);

/* The device that is added last is found last.  Takes d; frees it on failure. */
int machine_add(struct machine *m, struct device *d, struct vmm_error *err);
struct device *machine_device(const struct machine *m, const char *name);

/* ---- vCPUs (vcpu.c) ---------------------------------------------------- */

int vcpus_create(struct machine *m, uint32_t n, struct vmm_error *err);
void vcpus_free(struct vcpu *vcpu, uint32_t n);

/* The threads of a NEW machine, ahead of its start. */
int vcpus_ready(struct machine *m, struct vmm_error *err);

/*
 * Have a vCPU of a machine that is NEW or held, whose thread is there, run what its registers
 * say until it makes an SBI call, which nobody answers.  It counts as no exit of the guest; -errno.
 */
int vcpu_errand(struct vcpu *v);

/* NEW or PAUSED -> RUNNING. */
int vcpus_start(struct machine *m, struct vmm_error *err);

/*
 * Before vcpus_start() of a NEW machine: v runs alone until over(v) is not 0, which its thread
 * asks more and more rarely, or it has had 100 ms of CPU time, or half a second is over.
 * The others wait meanwhile.  v NULL: none leads.
 */
void vcpus_lead(struct machine *m, struct vcpu *v, int (*over)(struct vcpu *v));

/* RUNNING -> PAUSED, or VMM_ESTATE if the guest stopped first. */
int vcpus_pause(struct machine *m, struct vmm_error *err);

/* -> STOPPED, and the threads joined. */
void vcpus_stop(struct machine *m);

/* Have KVM make vCPUs that are held as they were when created; -errno. */
int vcpus_renew(struct machine *m);

/*
 * The guest stops, for this reason: the first one counts.  Any vCPU or I/O
 * thread; the machine is STOPPED (BROKEN after VMM_EV_FAULT), and the event
 * queued, when the last vCPU is out of the guest.
 */
void machine_halt(struct machine *m, uint32_t type, uint32_t vcpu, uint64_t value,
		  const char *fmt, ...) __attribute__((format(printf, 5, 6)));

/* Wake vCPUs that wait because the event queue was crowded. */
void machine_poke(struct machine *m);

/* Returns when the event of a stop that has been seen in the state is queued. */
void machine_settle(struct machine *m);

/* KVM's own count of a vCPU's exits, whoever handled them; 0 if it has none. */
uint64_t vcpu_all_exits(struct vcpu *v);

/* How often it has waited for an interrupt, of a vCPU that was asked for all its exits before
   it ran; 0 if KVM does not tell. */
uint64_t vcpu_waits(struct vcpu *v);

#endif
