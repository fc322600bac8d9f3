/* SPDX-License-Identifier: MIT */
/*
 * virtio.h - what a virtio device is to the rest of us.
 *
 * A device is a table of functions (struct virtio_ops) and a struct virtio
 * embedded in its own state.  The transport (transport.c) owns the registers,
 * the queue code (queue.c) owns the rings; a device sees neither, only chains
 * of buffers that have been checked to lie in guest RAM.
 *
 * Threads: every operation runs with the I/O lock held (loop.h), on the I/O
 * thread or on the vCPU thread that touched a register, except where it says
 * otherwise.  A device takes no lock and never blocks on the outside world.
 *
 * Host and guest are little-endian, and so is every field of virtio 1.x.
 */
#ifndef VIRTIO_VIRTIO_H
#define VIRTIO_VIRTIO_H

#include <sys/uio.h>

#include "../core/device.h"
#include "../core/event.h"
#include "../core/loop.h"
#include "../core/mem.h"

#define QUEUE_SIZE_MAX	256u	/* entries in a ring, and default */
#define QUEUES_MAX	64u	/* rings of one device */
#define CHAIN_MAX	256u	/* buffers in one request; a power of two */

struct virtio;
struct queue;
struct transport;

/* ---- Requests ---------------------------------------------------------- */

/*
 * One request: nout buffers to read, followed by nin buffers to write.  The
 * addresses and lengths are our copies; what the buffers hold is still the
 * guest's, and may change while it is looked at: copy it out, then check it.
 */
struct chain {
	uint16_t	head;		/* what queue_push() hands back */
	uint16_t	nout, nin;	/* iov[0..nout), iov[nout..nout+nin) */
	uint32_t	out_len, in_len;	/* bytes in them; the sum fits 32 bits */
	struct iovec	iov[CHAIN_MAX];
};

/*
 * Copy n bytes at offset off of the readable (the writable) part of a request
 * to (from) buf.  Returns the bytes copied: fewer than n where the part ends.
 */
size_t chain_read(const struct chain *c, size_t off, void *buf, size_t n);
size_t chain_write(const struct chain *c, size_t off, const void *buf, size_t n);

/*
 * Take the next request.  0: there is none now, and notify() is called when
 * there is; or the device is broken, or not set up.  Within notify() at most
 * one ring's worth is given out at once: notify() is then called again soon.
 */
int queue_pop(struct queue *q, struct chain *c);

/* Put back the request that was popped last, to be popped again. */
void queue_unpop(struct queue *q);

/*
 * Hand a request back, with the number of bytes written to its buffers.  The
 * guest sees what was pushed, all of it at once, at queue_signal(), which
 * interrupts it if it asked for that.
 */
void queue_push(struct queue *q, uint16_t head, uint32_t written);
void queue_signal(struct queue *q);

/*
 * Call notify() of this queue again, from the I/O loop.  A device that left
 * requests in the ring when it was saved does this in activate().
 */
void queue_again(struct queue *q);

/*
 * A ring.  Devices look at index, num and ready; those that hand their rings
 * to another process (NOTIFY_EXTERNAL) at the addresses and kick.fd, too.
 */
struct queue {
	struct virtio	*v;
	uint16_t	index;		/* among the device's queues */
	uint16_t	num;		/* entries; a power of two, if ready */
	uint8_t		ready;		/* set up, and within RAM */
	uint8_t		quiet;		/* the guest need not notify */
	uint8_t		more;		/* notify() is to be called again */
	uint16_t	last_avail;	/* the next request to take */
	uint16_t	used_idx;	/* the next place in the used ring */
	uint16_t	seen_idx;	/* used_idx, as the guest saw it last */
	uint32_t	budget;		/* requests pop still gives out */
	uint64_t	desc_gpa, avail_gpa, used_gpa;
	uint8_t		*desc, *avail, *used;	/* there, while ready */
	struct io	kick;		/* eventfd of its notifications, or fd -1 */
};

/* ---- Queues that another process runs ------------------------------------ */

/* It stopped before request last_avail with none in flight. */
void queue_resume_at(struct queue *q, uint16_t last_avail);

/*
 * What it has in flight, as seen in the rings from outside, so that somebody
 * can answer if it dies.  Start before it begins; look often: more than a ring's
 * worth between two looks is lost, until a moment when nothing is in flight.
 */
struct flight {
	uint16_t	avail, used;	/* up to here the rings have been read */
	uint8_t		lost;
	int16_t		count[QUEUE_SIZE_MAX];	/* how often a head is out */
};

void queue_flight_start(struct queue *q, struct flight *f);
void queue_flight_look(struct queue *q, struct flight *f);

/*
 * It is dead, and the queue is ours: queue_flight_pop() gives what was in
 * flight, then queue_pop() what comes.  -1 if that is not known.
 */
int queue_flight_end(struct queue *q, struct flight *f);
int queue_flight_pop(struct queue *q, struct flight *f, struct chain *c);

/*
 * The transport's part: check size and addresses, and make the ring ready, or
 * break the device; back to power-on.
 */
void queue_setup(struct queue *q);
void queue_clear(struct queue *q);

/* ---- Devices ----------------------------------------------------------- */

/*
 * Who handles a notification of the guest.  On the vCPU's thread (v->on_vcpu)
 * a device does what is done at once.  What may have to wait it puts back
 * (queue_unpop) and leaves to the I/O thread (queue_again): a thread that is
 * to run a guest does not wait, and is not disturbed by what it had begun.
 */
enum {
	NOTIFY_VCPU	= 0,	/* the vCPU thread, at once: no switch of threads */
	NOTIFY_LOOP	= 1,	/* the I/O thread, through an eventfd in KVM */
	NOTIFY_EXTERNAL	= 2	/* whoever was given kick.fd; notify() is not called */
};

struct virtio_ops {
	const char	*type;		/* "rng": in logs and snapshots */
	uint16_t	id;		/* virtio 1.2, 5: device types */
	uint8_t		version;	/* of what save writes */
	uint8_t		unsaved;	/* its state is not here: no snapshots */
	/* There may be requests in q. */
	void		(*notify)(struct virtio *v, struct queue *q);
	/* The driver is ready: features and queues stand until reset.  Also
	   after load, if it was then.  NULL: nothing to do. */
	void		(*activate)(struct virtio *v);
	/* Back to power-on.  On return nothing touches a ring or buffer any
	   more: wait for what is in flight.  NULL: nothing ever is. */
	void		(*reset)(struct virtio *v);
	/* The guest has written len bytes (1 to 8, within config_size) of
	   configuration.  NULL: it is read-only. */
	void		(*config_write)(struct virtio *v, uint32_t off, uint32_t len, uint64_t val);
	/* vCPUs and loop are held: finish what is in flight.  May be NULL. */
	void		(*quiesce)(struct virtio *v);
	/* The device's own state, apart from registers and rings; NULL: it
	   has none.  Load may meet any bytes, and need not check for their
	   end.  It comes before activate. */
	void		(*save)(const struct virtio *v, struct writer *w);
	int		(*load)(struct virtio *v, struct reader *r, struct vmm_error *err);
	/* It had n queues when it was saved, and is to have them again:
	   virtio_set_queues().  NULL: it always has as many. */
	int		(*set_queues)(struct virtio *v, uint32_t n, struct vmm_error *err);
	/* A restored device is about to run for the first time: open the back
	   end that was saved, unless another was given.  May be NULL. */
	int		(*open)(struct virtio *v, struct vmm_error *err);
	/* This one is a clone, and is about to run.  May be NULL. */
	void		(*cloned)(struct virtio *v);
	/* After reset; no lock held, and no other thread knows of it. */
	void		(*free)(struct virtio *v);
};

/* Where a device lives: parts of the machine, which outlives it. */
struct virtio_env {
	struct mem	*mem;
	struct loop	*loop;
	const struct log *log;
	const int	*vm;		/* KVM's descriptor or -1; changes at a reset */
	struct events	*events;	/* or NULL: nobody wants to know */
};

struct virtio {
	const struct virtio_ops *ops;
	struct virtio_env env;
	char		name[32];
	/* The device's to set, before its transport is made: */
	uint64_t	offers;		/* features; virtio_init() sets the rings' own */
	const void	*config;	/* its configuration, as the guest reads it */
	uint16_t	config_size;
	uint8_t		notify_by;	/* NOTIFY_*; default NOTIFY_VCPU */
	/* The transport's: */
	uint8_t		active;		/* the driver is ready, nothing broken */
	uint8_t		broken;		/* DEVICE_NEEDS_RESET */
	uint8_t		on_vcpu;	/* notify() is called by a vCPU: see below */
	uint32_t	failures;	/* how often it was broken */
	uint64_t	features;	/* agreed on, while active */
	uint16_t	nqueues;
	struct queue	*queue;
	struct transport *transport;
};

/* The first thing a device's constructor does. */
int virtio_init(struct virtio *v, const struct virtio_ops *ops, const struct virtio_env *env,
		const char *name, uint32_t nqueues, struct vmm_error *err);
void virtio_fini(struct virtio *v);	/* the last in its free */

/* Another number of queues, while the driver has set none up.  They lie
   somewhere else then. */
int virtio_set_queues(struct virtio *v, uint32_t n, struct vmm_error *err);

static inline int virtio_has(const struct virtio *v, unsigned int bit)
{
	return (int)(v->features >> bit & 1);
}

/*
 * The guest has broken the rules: the device asks for a reset and does no more
 * until it comes; a line goes to the log, if it was not broken too often.
 */
void virtio_fail(struct virtio *v, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/*
 * What stands behind the device has failed: a line to the log, and an event for
 * the host program (VMM_EV_DEVICE; dropped if it takes none).
 */
void virtio_trouble(struct virtio *v, int os_errno, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

/* The device cannot go on: it asks for a reset, without a word. */
void virtio_break(struct virtio *v);

/* What v->config points to has changed: tell the guest. */
void virtio_config_changed(struct virtio *v);

/* Interrupt for used buffers, unasked (NOTIFY_EXTERNAL). */
void virtio_interrupt(struct virtio *v);

/* A line to the machine's log, led by the device's name. */
void virtio_log(const struct virtio *v, int level, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

/* ---- Transport --------------------------------------------------------- */

#define TRANSPORT_SIZE	0x1000u		/* address space of one device */

/*
 * The registers of a device, at gpa with interrupt line irq, as a part of the
 * machine: ready for machine_add().  Takes v; frees it on failure.
 *
 * What the registers read as is kept in page: TRANSPORT_SIZE zeroed bytes that
 * outlive the device, which the machine may map into the guest, read-only, so
 * that no read of a register leaves it.  NULL: the device has its own.
 */
int transport_new(struct device **out, struct virtio *v, uint64_t gpa, uint32_t irq, void *page,
		  struct vmm_error *err);

/* The virtio device behind d, or NULL if d is something else. */
struct virtio *transport_virtio(struct device *d);

/*
 * A restored machine is about to run: see virtio_ops.open.  I/O lock held.
 */
int transport_open(struct device *d, struct vmm_error *err);

#endif
