/* SPDX-License-Identifier: MIT */
/*
 * vmm.h - run RISC-V virtual machines on KVM.
 * This file is the whole public interface, and its reference manual.
 *
 *	struct vmm_config cfg = VMM_CONFIG_INIT;
 *	struct vmm_error err;
 *	struct vmm_event ev;
 *	struct vmm *vm;
 *
 *	cfg.kernel = "Image";
 *	cfg.initrd = "initrd.cpio";
 *	cfg.cmdline = "console=ttyS0";
 *	if (vmm_create(&vm, &cfg, &err) ||
 *	    vmm_add_serial(vm, 0, 1, &err) ||
 *	    vmm_start(vm, &err) ||
 *	    vmm_wait(vm, -1, &ev, &err))
 *		errx(1, "%s", err.message);
 *	vmm_free(vm);
 *
 * What holds for every function, unless its comment says otherwise:
 *
 * Errors.  A function that returns int returns 0 or a negative VMM_E code,
 * and on failure describes it in *err, if err is not NULL.  A failed call
 * changes nothing.  Where that cannot be kept the machine becomes VMM_BROKEN:
 * from then on every call on it but vmm_free(), vmm_state(), vmm_stat(),
 * vmm_wait() and vmm_fd() fails with VMM_EBROKEN.
 *
 * Ownership.  Strings, structs and buffers are copied; descriptors passed in
 * are duplicated.  What is returned through *out is the caller's to free or
 * close; on failure *out is NULL, -1 or zeroes.  Freeing NULL does nothing.
 *
 * Threads.  Any function may be called from any thread.  Calls on one object
 * take turns, but one that waits up to a timeout lets the others pass.
 * Functions that take a const pointer never wait.  Freeing an object must be
 * the last call on it.  The library starts its own threads, with every signal
 * blocked, and installs no signal handler.
 *
 * Processes.  KVM ties a machine to the process that created it: after fork()
 * the child must not use it; every call it makes on it but vmm_free() fails
 * with VMM_ESTATE, and vmm_free() releases the child's copy alone.  So it is
 * with a snapshot whose file is still being decoded (VMM_MEM_LAZY).  Every
 * descriptor is close-on-exec.
 *
 * Structs.  A struct whose first field is its size is set up by its INIT
 * macro and may grow in later versions.  A shorter one than the library knows
 * is taken to end in zeroes; a longer one is taken if the part that the
 * library does not know is all zeroes.
 *
 * Defaults.  A field or flag left 0 and a pointer left NULL ask for them.
 */
#ifndef VMM_H
#define VMM_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#ifndef VMM_API
#define VMM_API
#endif

#define VMM_VERSION_MAJOR 0
#define VMM_VERSION_MINOR 1
#define VMM_VERSION_PATCH 0
#define VMM_VERSION (VMM_VERSION_MAJOR * 1000000 + VMM_VERSION_MINOR * 1000 + VMM_VERSION_PATCH)

/* ---- Errors ---------------------------------------------------------- */

enum {
	VMM_OK		= 0,
	VMM_EINVAL	= -1,	/* bad argument: a bug in the caller */
	VMM_ESTATE	= -2,	/* not in the machine's present state */
	VMM_ENOMEM	= -3,	/* out of memory */
	VMM_ESYS	= -4,	/* a system call failed: see os_errno */
	VMM_ENOKVM	= -5,	/* no usable /dev/kvm on this host */
	VMM_ENOTSUP	= -6,	/* this host or this build cannot do that */
	VMM_EFORMAT	= -7,	/* a kernel or snapshot file is malformed */
	VMM_EVERSION	= -8,	/* a snapshot of another version or host */
	VMM_ETIMEDOUT	= -9,	/* did not happen in time */
	VMM_EREFUSED	= -10,	/* the guest refused the connection */
	VMM_EBROKEN	= -11	/* the machine can only be freed */
};

struct vmm_error {		/* 256 bytes; will not change */
	int32_t		code;		/* VMM_E code */
	int32_t		os_errno;	/* the errno behind it, or 0 */
	char		message[248];	/* one line, for people */
};

/* VMM_VERSION of the library in use, to compare with that of the header. */
VMM_API uint32_t vmm_version(void);

/* The name of a code, as "VMM_ESTATE"; "VMM_E?" for any other; never NULL. */
VMM_API const char *vmm_strerror(int code);

/* ---- This host ------------------------------------------------------- */

/* Interrupt controllers, and the bits 1 << VMM_IRQCHIP_x that stand for them. */
enum {
	VMM_IRQCHIP_DEFAULT	= 0,	/* the best that is sound on this host */
	VMM_IRQCHIP_AIA_EMUL	= 1,	/* in-kernel AIA, interrupt files in memory */
	VMM_IRQCHIP_AIA_HWACCEL	= 2,	/* ... in hardware, or KVM_RUN fails */
	VMM_IRQCHIP_AIA_AUTO	= 3	/* ... in hardware while any is free */
};

struct vmm_host {
	uint32_t	size;		/* set by VMM_HOST_INIT */
	uint32_t	max_vcpus;	/* in one machine */
	uint32_t	irqchip;	/* what VMM_IRQCHIP_DEFAULT is here */
	uint32_t	irqchips;	/* bits: what the host offers */
	uint32_t	irqchips_sound;	/* bits: what its kernel gets right */
	uint32_t	gpa_bits;	/* width of a guest-physical address */
	uint32_t	satp_bits;	/* 39, 48 or 57: the guest's widest paging */
	uint32_t	vlenb;		/* bytes in a vector register, or 0 */
	uint64_t	timebase_hz;	/* ticks of the guest's time a second */
	char		kernel[72];	/* release of the host kernel */
	char		isa[1024];	/* all a guest can have, as "rv64imafdc_sstc" */
	char		note[256];	/* why irqchip is what it is, for people */
	uint32_t	lazy;		/* 1: VMM_MEM_LAZY works; 0: it is VMM_MEM_EAGER */
	char		lazy_note[124];	/* why, for people */
};
#define VMM_HOST_INIT { sizeof(struct vmm_host), 0, 0, 0, 0, 0, 0, 0, 0, "", "", "", 0, "" }

/*
 * Find out what this host offers; needs no machine and leaves none behind.
 * VMM_ENOKVM says that there is no usable KVM, VMM_ENOTSUP that KVM lacks what
 * a machine needs; both name what is missing.
 */
VMM_API int vmm_probe(struct vmm_host *out, struct vmm_error *err);

/* ---- A machine --------------------------------------------------------
 *
 *	    vmm_create, vmm_restore                   vmm_reset
 *	        |                                         |
 *	       NEW <--------------------------------------+
 *	        | vmm_start                               |
 *	     RUNNING -- the guest stops, vmm_stop ---> STOPPED
 *	        | ^                                       |
 *	        v | vmm_pause, vmm_start                  |
 *	      PAUSED ----------- vmm_stop ----------------+
 *
 * Every machine has RAM from guest-physical address 0x80000000 on, vCPUs with
 * an interrupt controller, a real-time clock that tells the host's time, a
 * generation id (microsoft,vmgenid) and a doorbell (vmm_guest.h).  It has no
 * other device than those that are added to it.
 */
struct vmm;

enum { VMM_NEW = 0, VMM_RUNNING = 1, VMM_PAUSED = 2, VMM_STOPPED = 3, VMM_BROKEN = 4 };
enum { VMM_LOG_ERROR = 0, VMM_LOG_WARN = 1, VMM_LOG_INFO = 2, VMM_LOG_DEBUG = 3 };

struct vmm_config {
	uint32_t	size;		/* set by VMM_CONFIG_INIT */
	uint32_t	vcpus;		/* 1 to 64; default 1 */
	uint64_t	memory;		/* bytes of RAM, in 2 MiB steps; default 128 MiB */
	uint32_t	irqchip;	/* VMM_IRQCHIP_* */
	uint32_t	flags;		/* none yet */
	int32_t		kernel_fd;	/* greater than 0: used if kernel is NULL */
	int32_t		initrd_fd;	/* the same for initrd */
	const char	*kernel;	/* path; required unless kernel_fd is given */
	const char	*initrd;	/* path of an initial RAM disk */
	const char	*cmdline;	/* of the kernel */
	const char	*isa;		/* see below; default: all the host has */
	const char	*name;		/* in logs and thread names; default "vm" */
	void		(*log)(void *arg, int level, const char *line);
	void		*log_arg;	/* log: any thread; no vmm_* calls in it */
};
#define VMM_CONFIG_INIT { sizeof(struct vmm_config), 0, 0, 0, 0, -1, -1, \
			  NULL, NULL, NULL, NULL, NULL, NULL, NULL }

/*
 * Make a machine.  Its files are read now, and again by vmm_reset().
 *
 * kernel is a Linux Image, as it is, in an EFI zboot wrapper, or compressed
 * with gzip or zstd; or an ELF file, which is loaded at its physical
 * addresses.  It is entered in VS-mode on hart 0, a0 = 0, a1 = the device tree
 * (Linux, Documentation/arch/riscv/boot.rst).
 *
 * isa is either what the guest is to have, as "rv64imafdc_zba_zbb", or what to
 * take away from all the host has, as "-v,-zicbom".  Extensions that KVM cannot
 * switch off are left out of the device tree all the same.
 *
 * VMM_EINVAL: an argument.  VMM_ENOKVM, VMM_ENOTSUP: the host.  VMM_ESYS: a
 * file or the kernel; os_errno is errno.  VMM_EFORMAT: a file is not what it
 * should be, or does not fit into RAM.
 */
VMM_API int vmm_create(struct vmm **out, const struct vmm_config *config, struct vmm_error *err);

/* Stop the machine at once, as if by pulling the plug, and free it. */
VMM_API void vmm_free(struct vmm *vm);

/*
 * Devices are added while the machine is NEW.  A machine has one serial port:
 * an ns16550a UART (the kernel's ttyS0), and the same stream behind the SBI
 * debug console (earlycon=sbi, hvc0).  in_fd or out_fd may be -1: then nothing
 * comes in, and what goes out is dropped.  Output that cannot be written at
 * once is kept until it can, and the guest waits rather than lose any.
 */
VMM_API int vmm_add_serial(struct vmm *vm, int in_fd, int out_fd, struct vmm_error *err);

/*
 * The devices that follow are virtio ones.  Each has a name of at most 31 bytes,
 * unique in its machine; there are up to 27.  On a restored machine the same call
 * puts another back end behind the device of that name.
 *
 * A disk: a raw image or a block device, a multiple of 512 bytes long.  The file
 * is what it is: no format is guessed.
 *
 *	VMM_READONLY	the guest cannot write
 *	VMM_DIRECT	past the host's page cache
 *	VMM_NOSYNC	a flush of the guest does nothing: for what may be lost
 *	VMM_OVERLAY	what the guest writes stays with the machine, and in its
 *			snapshots; path is only read, and may be shared
 */
enum { VMM_READONLY = 1, VMM_DIRECT = 2, VMM_NOSYNC = 4, VMM_OVERLAY = 8 };

VMM_API int vmm_add_blk(struct vmm *vm, const char *name, const char *path, uint32_t flags, struct vmm_error *err);

/* A source of entropy: the host's getrandom(). */
VMM_API int vmm_add_rng(struct vmm *vm, const char *name, struct vmm_error *err);

/* A virtio console, the guest's hvc0 (or next after the SBI console, if it has a
   driver for that and the machine a serial port); in_fd and out_fd as of vmm_add_serial(). */
VMM_API int vmm_add_console(struct vmm *vm, const char *name, int in_fd, int out_fd, struct vmm_error *err);

/*
 * A named port of a console, which the guest finds as /dev/virtio-ports/PORT; up
 * to 15 of them.  What is written before somebody in the guest opens it waits.
 */
VMM_API int vmm_add_port(struct vmm *vm, const char *console, const char *port, int in_fd, int out_fd, struct vmm_error *err);

/* The terminal of a console has so many columns and rows; the guest is told. */
VMM_API int vmm_resize_console(struct vmm *vm, const char *name, uint16_t cols, uint16_t rows, struct vmm_error *err);

/* The file of a disk has another size, which the guest is told. */
VMM_API int vmm_resize_blk(struct vmm *vm, const char *name, struct vmm_error *err);

/*
 * How many queues a disk of a NEW machine has, 1 to 64; default 1.  With as many
 * as there are vCPUs none waits for another.  A restored one has those it had.
 */
VMM_API int vmm_set_queues(struct vmm *vm, const char *name, uint32_t queues, struct vmm_error *err);

/*
 * No more than so many bytes and requests (packets) a second through a disk or a
 * network card, there each way; 0: no limit, the default.  In any state.
 */
VMM_API int vmm_limit(struct vmm *vm, const char *name, uint64_t bytes_per_sec, uint64_t ops_per_sec, struct vmm_error *err);

/*
 * A balloon: what the guest does not use goes back to the host by itself (free
 * page reporting), and more of it when vmm_balloon() asks for so many bytes.
 */
VMM_API int vmm_add_balloon(struct vmm *vm, const char *name, struct vmm_error *err);
VMM_API int vmm_balloon(struct vmm *vm, const char *name, uint64_t bytes, struct vmm_error *err);

/*
 * Have the guest of a RUNNING machine give back what it has free, now: before a
 * snapshot, say.  Waits until it has, up to timeout_ms (-1: as long as it takes),
 * or until the machine no longer runs, which is 0, too.
 * VMM_ENOTSUP: its driver cannot; VMM_ETIMEDOUT: it has not come to an end.
 */
VMM_API int vmm_trim(struct vmm *vm, const char *name, int timeout_ms, struct vmm_error *err);

struct vmm_balloon_stats {
	uint32_t	size;		/* set by VMM_BALLOON_STATS_INIT */
	uint32_t	answers;	/* how often the guest has told what is its own */
	uint64_t	target;		/* bytes it is asked to give up */
	uint64_t	actual;		/* bytes it says it has given up */
	uint64_t	returned;	/* bytes given to the host so far, all in all */
	/* The guest's own, of the last answer; 0: it does not tell. */
	uint64_t	total, free, available, caches;	/* bytes */
	uint64_t	swap_in, swap_out;	/* bytes, since it booted, and so these: */
	uint64_t	major_faults, minor_faults, oom_kills;
};
#define VMM_BALLOON_STATS_INIT { sizeof(struct vmm_balloon_stats), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, \
				 0, 0, 0 }

/*
 * What the guest told last.  A guest that runs is asked for more, without waiting
 * for it: when answers has grown, the figures are new.
 */
VMM_API int vmm_balloon_stat(struct vmm *vm, const char *name, struct vmm_balloon_stats *out, struct vmm_error *err);

/*
 * A network card.  fd is a tap, or a connected socket: datagrams are frames; a
 * stream has a length of 4 bytes, big-endian, before each, as passt and QEMU
 * speak it.  mac: 6 bytes, or NULL for a random one that is locally administered.
 * A tap is made non-blocking, which all who share it see.  When the other side
 * goes, the guest's link is down.  VMM_EVERSION: a restored guest uses offloads, which
 * its tap had and this network has not.
 */
VMM_API int vmm_add_net(struct vmm *vm, const char *name, int fd, const uint8_t *mac, struct vmm_error *err);

/*
 * Sockets between host and guest (vsock).  cid is the guest's address, 3 to
 * 0xfffffffe; each machine can have the same.  The device is called "vsock".
 */
VMM_API int vmm_add_vsock(struct vmm *vm, uint32_t cid, struct vmm_error *err);

/*
 * Connect to a port that the guest listens on, or will within timeout_ms (-1:
 * whenever).  *out is a connected stream socket, the caller's to close.
 * VMM_EREFUSED: nobody listens, or the machine does not run; VMM_ETIMEDOUT: the
 * guest does not answer.
 */
VMM_API int vmm_connect(struct vmm *vm, uint32_t port, int timeout_ms, int *out, struct vmm_error *err);

/*
 * *out is a listening socket: accept() on it gives the connections that the guest
 * makes to this port of the host, CID 2.  Closing it ends that; another one for the
 * same port takes its place.  It is made in a directory in /tmp, /dev/shm or /run.
 */
VMM_API int vmm_listen(struct vmm *vm, uint32_t port, int *out, struct vmm_error *err);

/*
 * Devices that another process serves, by the vhost-user protocol.  fd is a stream
 * socket that is connected to it; it gets all of the guest's RAM, and the machine
 * starts somewhat slower.  If it goes, the guest's requests fail as I/O errors, now
 * and later.  If it does not answer for 10 s it may still write to the guest's RAM:
 * the device cannot be used any more, and that process is to be ended before the
 * machine is reset.  VMM_EV_DEVICE tells of either.  Such a machine can be paused, but
 * not saved.
 *
 * vmm_add_fs(): a directory, as virtiofsd serves it; the guest mounts it by the
 * device's name (mount -t virtiofs NAME DIR).  vmm_add_vhost_blk(): a disk, as
 * qemu-storage-daemon serves images of any format.
 */
VMM_API int vmm_add_fs(struct vmm *vm, const char *name, int fd, struct vmm_error *err);
VMM_API int vmm_add_vhost_blk(struct vmm *vm, const char *name, int fd, struct vmm_error *err);

/*
 * The device tree that a machine would be started with, or was: its size in bytes
 * in *size, and the first cap bytes in buf, which may be NULL if cap is 0.
 * VMM_ESTATE of a machine that was restored: the tree is its guest's.
 */
VMM_API int vmm_fdt(struct vmm *vm, void *buf, size_t cap, size_t *size, struct vmm_error *err);

/* Run a NEW or PAUSED machine, on threads of its own.  Returns at once. */
VMM_API int vmm_start(struct vmm *vm, struct vmm_error *err);

/*
 * Hold a RUNNING machine still.  Returns when no vCPU is in the guest, every
 * access it had begun is finished, and no device has I/O in flight.  The
 * guest's monotonic time stands still until vmm_start().  VMM_ESTATE if the
 * guest stopped first.
 */
VMM_API int vmm_pause(struct vmm *vm, struct vmm_error *err);

/*
 * Power a RUNNING, PAUSED or NEW machine off, as if by pulling the plug; no
 * event tells of it.  A machine that is STOPPED stays so.
 */
VMM_API int vmm_stop(struct vmm *vm, struct vmm_error *err);

/*
 * Take a machine that does not run back to NEW.  One that was created reads
 * its files again and sets everything up afresh: this is how a guest that
 * asked to restart gets its restart.  One that was restored goes back to its
 * snapshot.  Devices keep what stands behind them; queued events are dropped.
 * If that cannot be done the machine is VMM_BROKEN.
 *
 * A disk does not go back: what was written to one without VMM_OVERLAY stays, and
 * does not fit a snapshot that has its file system mounted.  Disks of machines that
 * are reset to a snapshot, pooled, or restored again are read-only or overlays.
 */
VMM_API int vmm_reset(struct vmm *vm, struct vmm_error *err);

/* VMM_NEW ... VMM_BROKEN; VMM_BROKEN for NULL. */
VMM_API int vmm_state(const struct vmm *vm);

/* ---- Events ---------------------------------------------------------- */

enum {
	VMM_EV_NONE	= 0,	/* nothing before the timeout */
	VMM_EV_SHUTDOWN	= 1,	/* the guest powered off; value: its exit code */
	VMM_EV_REBOOT	= 2,	/* the guest asked to restart; it is STOPPED */
	VMM_EV_CRASH	= 3,	/* the guest cannot go on; detail says why */
	VMM_EV_DOORBELL	= 4,	/* the guest rang with value: see vmm_guest.h */
	VMM_EV_FAULT	= 5,	/* the host side failed: it is BROKEN */
	VMM_EV_DEVICE	= 6	/* what is behind a device failed, as detail says, and
				   value, an errno; the guest got an error, and runs on */
};

struct vmm_event {		/* 128 bytes; will not change */
	uint32_t	type;		/* VMM_EV_* */
	uint32_t	vcpu;		/* that caused it */
	uint64_t	value;
	uint64_t	time_ns;	/* CLOCK_MONOTONIC of the host */
	char		detail[104];	/* one line, for people, or empty */
};

/*
 * Wait up to timeout_ms (0: not at all, -1: for ever) for the next event.  If
 * none is queued and the machine is not RUNNING, gives VMM_EV_NONE at once.
 * A guest that rings faster than its events are taken is made to wait; devices
 * are heard of while fewer than 63 are queued.
 */
VMM_API int vmm_wait(struct vmm *vm, int timeout_ms, struct vmm_event *out, struct vmm_error *err);

/* Polls readable while an event is queued.  Only poll it; it is not yours.
   -1 for NULL. */
VMM_API int vmm_fd(const struct vmm *vm);

/* ---- Guest memory ----------------------------------------------------- */

/*
 * Copy len bytes from or to guest-physical address gpa: all of them, or none
 * and VMM_EINVAL if they are not all RAM.  In any state; of a machine that
 * runs, bytes may be of different moments.
 */
VMM_API int vmm_read(struct vmm *vm, uint64_t gpa, void *buf, size_t len, struct vmm_error *err);
VMM_API int vmm_write(struct vmm *vm, uint64_t gpa, const void *buf, size_t len, struct vmm_error *err);

/* ---- Snapshots -------------------------------------------------------- */

/*
 * A machine frozen in time: registers, interrupt controller, timers, devices,
 * RAM.  It never changes, and any number of machines can be restored from it.
 */
struct vmm_snap;

/*
 * Freeze a PAUSED machine, which stays PAUSED and may go on.  Machines restored
 * from it share its RAM until they write to it.  Free with vmm_snap_free().
 * VMM_ENOTSUP names a device that cannot be saved: see vmm_add_fs(); or the guest
 * uses interrupt identities from 32 on, which KVM may lose (Linux does not).
 */
VMM_API int vmm_snap_take(struct vmm_snap **out, struct vmm *vm, struct vmm_error *err);

struct vmm_write_config {
	uint32_t	size;		/* set by VMM_WRITE_INIT */
	int32_t		level;		/* of zstd; default 1 */
	uint32_t	threads;	/* that compress; default: one for each CPU */
	uint32_t	flags;		/* none yet */
	/* Called now and then, with bytes of RAM done and in all; if it does not
	   return 0 the write ends with VMM_ESTATE.  May be NULL. */
	int		(*progress)(void *arg, uint64_t done, uint64_t total);
	void		*progress_arg;
	/* Path of a snapshot file: store only what differs from it.  That one
	   must stay as it is, and where it is seen from the new one. */
	const char	*parent;
};
#define VMM_WRITE_INIT { sizeof(struct vmm_write_config), 0, 0, 0, NULL, NULL, NULL }

/*
 * Save a snapshot: on success path holds all of it and it is on disk, on
 * failure path is as it was.  The file is described in docs/snapshot-format.md.
 * how may be NULL.
 */
VMM_API int vmm_snap_write(struct vmm_snap *snap, const char *path, const struct vmm_write_config *how, struct vmm_error *err);

/* The same, to a descriptor that need not seek: a pipe, a socket. */
VMM_API int vmm_snap_send(struct vmm_snap *snap, int fd, const struct vmm_write_config *how, struct vmm_error *err);

/*
 * Open a saved file.  What is read is checked against its hashes; the first
 * restore reads the rest.  VMM_EFORMAT: damaged, or no snapshot; VMM_EVERSION:
 * of a version this library cannot read.
 */
VMM_API int vmm_snap_open(struct vmm_snap **out, const char *path, struct vmm_error *err);

/* The same, from a descriptor, to the end of what comes: the other side of
   vmm_snap_send(). */
VMM_API int vmm_snap_receive(struct vmm_snap **out, int fd, struct vmm_error *err);

/*
 * Write a file and all that it stands on as one file, to, that stands on none.
 * Nothing is compressed again.  how may be NULL; only its progress is used, and is
 * told frames, not bytes.
 */
VMM_API int vmm_snap_merge(const char *from, const char *to, const struct vmm_write_config *how, struct vmm_error *err);

struct vmm_snap_info {
	uint32_t	size;		/* set by VMM_SNAP_INFO_INIT */
	uint32_t	vcpus;
	uint64_t	memory;		/* bytes of RAM */
	uint64_t	time_ns;	/* of the guest's clock, since its power-on */
	uint32_t	devices;	/* vmm_snap_device() */
	uint32_t	vlenb;		/* with timebase_hz, satp_bits, isa: what the host must have */
	uint64_t	timebase_hz;
	uint32_t	satp_bits;
	uint32_t	parents;	/* vmm_snap_parent(); this to format_minor: of a file */
	uint64_t	created;	/* seconds since 1970 */
	uint64_t	file_size;	/* 0: it is in no file */
	uint64_t	ram_used;	/* bytes of RAM that are not zero */
	uint64_t	ram_own;	/* bytes that they take in this file */
	uint64_t	ram_parents;	/* and in those it stands on */
	uint32_t	working_set;	/* pages that are read first, if known */
	uint16_t	format_major, format_minor;
	uint8_t		uuid[16];
	char		isa[1024];	/* as in struct vmm_host */
	char		kernel[72];	/* of the host it comes from */
};
#define VMM_SNAP_INFO_INIT { sizeof(struct vmm_snap_info), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, \
			     0, 0, 0, { 0 }, "", "" }

/* What a snapshot is of, without restoring it. */
VMM_API int vmm_snap_info(const struct vmm_snap *snap, struct vmm_snap_info *out, struct vmm_error *err);

struct vmm_snap_device {	/* 64 bytes; will not change */
	char		type[32];	/* "blk", "net", "serial" ... */
	char		name[32];	/* that vmm_add calls know it by */
};

/* Device number i, from 0 on, in the order in which the guest finds them. */
VMM_API int vmm_snap_device(const struct vmm_snap *snap, uint32_t i, struct vmm_snap_device *out, struct vmm_error *err);

/* Path of the file number i that it stands on, nearest first; it lives as long
   as snap.  NULL behind the last. */
VMM_API const char *vmm_snap_parent(const struct vmm_snap *snap, uint32_t i);

/* Check every byte of a file; *err says what is wrong where. */
VMM_API int vmm_snap_verify(const char *path, struct vmm_error *err);

/* Machines restored from it keep what they need. */
VMM_API void vmm_snap_free(struct vmm_snap *snap);

/*
 *	VMM_RESUME	the original is gone: keep its identity
 *	VMM_RECORD	note which pages of RAM the machine touches, for
 *			vmm_snap_learn(); it is slow
 *	VMM_POPULATE	map all of the working set now, and have threads ready:
 *			the restore takes longer, and the run that follows less.
 *			Pools always do so.
 *
 * The last two together: what is known of the working set is kept, and there at once.
 * A machine that is watched is slow, and may do other things than one that is not: who
 * records once, and then once more with both, misses little.
 */
enum { VMM_RESUME = 1, VMM_RECORD = 2, VMM_POPULATE = 4 };

/*
 * How RAM comes out of a file, for the first machine that is restored from a
 * snapshot: the others share what is there.
 *
 *	VMM_MEM_LAZY	the machine runs at once, what it touches is decoded
 *			then, and the rest in the background.  It takes
 *			userfaultfd; without it this is VMM_MEM_EAGER, as
 *			vmm_probe() and the machine's log tell.
 *	VMM_MEM_EAGER	all of it, before vmm_restore() returns
 *
 * A page that turns out to be damaged stops the machines that touch it, with
 * VMM_EV_FAULT, and no other.
 */
enum { VMM_MEM_LAZY = 0, VMM_MEM_EAGER = 1 };

struct vmm_restore_config {
	uint32_t	size;		/* set by VMM_RESTORE_INIT */
	uint32_t	flags;		/* VMM_RESUME ... */
	uint32_t	irqchip;	/* VMM_IRQCHIP_*; need not be as it was */
	uint32_t	threads;	/* that decode; default: one for each CPU, lazily 4 at most */
	const char	*name;		/* this and the next two: as in vmm_config */
	void		(*log)(void *arg, int level, const char *line);
	void		*log_arg;
	uint32_t	memory;		/* VMM_MEM_* */
	uint32_t	reserved;
};
#define VMM_RESTORE_INIT { sizeof(struct vmm_restore_config), 0, 0, 0, NULL, NULL, NULL, 0, 0 }

/*
 * Make a NEW machine from a snapshot, as often as wanted: this is cloning.  Its
 * devices are there; the vmm_add calls that described them, made again, give each
 * its back end by its name.  Without that vmm_start() opens a disk by the path it
 * had, and consoles have no input and drop their output.  The guest finds a new
 * generation id, on which it reseeds its random numbers: the vCPU that does it runs
 * alone until it has (docs/clones.md).  Its monotonic time goes on from where it
 * stood.  how may be NULL.  From the second restore on a thread of the snapshot's
 * makes a KVM VM for the next one, and gives it up if none comes for a second.
 *
 * VMM_EVERSION names what the snapshot needs and this host lacks.
 */
VMM_API int vmm_restore(struct vmm **out, struct vmm_snap *snap, const struct vmm_restore_config *how, struct vmm_error *err);

/*
 * Teach a snapshot its working set: the pages that vm, restored from it with
 * VMM_RECORD, has touched so far.  Those that were written are copied for each
 * clone ahead; the next vmm_snap_write() packs them together, to come out of the
 * file first.  It replaces what the snapshot knew.  vm may be in any state.
 */
VMM_API int vmm_snap_learn(struct vmm_snap *snap, struct vmm *vm, struct vmm_error *err);

/* ---- Pools ------------------------------------------------------------ */

/*
 * Machines that have been restored before they are needed.  A thread of the
 * library makes them, and takes those that are given back to their snapshot: in
 * place, which is quick, if they run or are held and the kernel can (Linux 6.16).
 * All of the snapshot's working set (vmm_snap_learn) is mapped for them, by KVM, too.
 */
struct vmm_pool;

enum { VMM_POOL_PARK = 1 };	/* each runs until it rings the doorbell, and is held */

struct vmm_pool_config {
	uint32_t	size;		/* set by VMM_POOL_INIT */
	uint32_t	ready;		/* how many wait; default 1 */
	uint32_t	flags;		/* VMM_POOL_PARK */
	uint32_t	park_ms;	/* it must ring within; 0: whenever it does */
	uint64_t	memory;		/* no more wait if those that do hold so many
					   bytes of their own; 0: no limit */
	const struct vmm_restore_config *restore;	/* or NULL; copied */
	/* Called on the pool's thread for each new machine, to give its devices
	   their back ends.  Not 0: it is no good. */
	int		(*prepare)(void *arg, struct vmm *vm);
	void		*prepare_arg;
};
#define VMM_POOL_INIT { sizeof(struct vmm_pool_config), 0, 0, 0, 0, NULL, NULL, NULL }

/* Free snap after the pool.  config may be NULL.  Returns before a machine is ready. */
VMM_API int vmm_pool_create(struct vmm_pool **out, struct vmm_snap *snap, const struct vmm_pool_config *config, struct vmm_error *err);

/*
 * Take a machine, waiting up to timeout_ms (0: not at all, -1: for ever) if none
 * is ready: a NEW one, of a VMM_POOL_PARK pool a PAUSED one.  Free it with
 * vmm_free(), or give it back.  VMM_ETIMEDOUT: none was ready in time; other codes
 * are those of the restore that failed.
 */
VMM_API int vmm_pool_take(struct vmm_pool *pool, int timeout_ms, struct vmm **out, struct vmm_error *err);

/* Hand a machine back, in any state: it is reset and used again, or freed. */
VMM_API void vmm_pool_give(struct vmm_pool *pool, struct vmm *vm);

/* Machines that have been taken stay their takers'. */
VMM_API void vmm_pool_free(struct vmm_pool *pool);

/* ---- Figures ---------------------------------------------------------- */

/* Where the time of a start goes, in order. */
enum {
	VMM_STAGE_KVM	= 0,	/* open KVM, check what it can do */
	VMM_STAGE_VM	= 1,	/* KVM_CREATE_VM */
	VMM_STAGE_MEMORY = 2,	/* guest RAM, and its memslot */
	VMM_STAGE_VCPUS	= 3,	/* vCPUs and what they are configured with */
	VMM_STAGE_IRQCHIP = 4,	/* interrupt controller */
	VMM_STAGE_LOAD	= 5,	/* kernel and initrd */
	VMM_STAGE_START	= 6,	/* device tree, boot registers, threads */
	VMM_STAGES	= 7
};

/* What vCPUs left the guest for, as KVM and the library count it. */
enum {
	VMM_EXIT_MMIO	= 0,	/* a device register, handled by the library */
	VMM_EXIT_SBI	= 1,	/* an SBI call, handled by the library */
	VMM_EXIT_CSR	= 2,	/* a CSR, handled by the library */
	VMM_EXIT_SIGNAL	= 3,	/* kicked by the library */
	VMM_EXIT_OTHER	= 4,	/* other exits to the library */
	VMM_EXIT_KERNEL	= 5,	/* handled by KVM: page faults, SBI, CSRs, WFI */
	VMM_EXITS	= 6
};

struct vmm_stats {
	uint32_t	size;		/* set by VMM_STATS_INIT */
	uint32_t	vcpus;
	uint64_t	memory;		/* bytes of RAM */
	uint64_t	memory_used;	/* of them, held in host memory */
	uint64_t	stage_ns[8];	/* [VMM_STAGE_*]: what each took, in ns */
	uint64_t	setup_ns;	/* spent in vmm_create and vmm_start together */
	uint64_t	exits[8];	/* [VMM_EXIT_*], all vCPUs together */
	uint64_t	memory_own;	/* bytes that no other machine shares; 0 if another process
					   serves a device (vmm_add_fs) */
	uint64_t	memory_waits;	/* accesses that waited for RAM to be decoded */
	uint64_t	memory_decoded;	/* bytes decoded, for all machines of the snapshot */
};
#define VMM_STATS_INIT { sizeof(struct vmm_stats), 0, 0, 0, \
			 { 0, 0, 0, 0, 0, 0, 0, 0 }, 0, { 0, 0, 0, 0, 0, 0, 0, 0 }, 0, 0, 0 }

/* In any state; the figures of a machine that runs are of now. */
VMM_API int vmm_stat(struct vmm *vm, struct vmm_stats *out, struct vmm_error *err);

#ifdef __cplusplus
}
#endif
#endif /* VMM_H */
