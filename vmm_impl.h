/* SPDX-License-Identifier: MIT */
/*
 * vmm_impl.h - what the files of the public functions share.
 *
 * Each function of vmm.h checks its arguments, takes its turn on the machine
 * (vm_enter), checks the state (vm_expect), and calls the layers below, which
 * do the work: core/, riscv/, virtio/, snapshot/.
 *
 *	vmm.c		making, life, events, memory, figures
 *	vmm_devices.c	devices: adding and replacing them, talking to them
 *	vmm_snap.c	snapshots, and machines restored from them
 *	vmm_snapinfo.c	what a snapshot tells of itself
 */
#ifndef VMM_IMPL_H
#define VMM_IMPL_H

#include <pthread.h>
#include <sys/types.h>

#include "core/machine.h"
#include "core/stock.h"
#include "riscv/hart.h"
#include "riscv/image.h"
#include "riscv/isa.h"
#include "snapshot/snaplazy.h"
#include "snapshot/snaptrace.h"
#include "virtio/virtio.h"
#include "vmm.h"

#define VSOCK_NAME	"vsock"

struct vmm {
	struct machine	m;
	pthread_mutex_t	turn;		/* one public call at a time */
	pid_t		pid;		/* that made it: KVM ties it to that */
	struct vmm_config cfg;		/* with strings of our own */
	int		kernel_fd, initrd_fd;	/* ours, or -1: opened by path */
	struct isa	isa;		/* what the guest is told it has */
	struct image	image;
	uint64_t	initrd, initrd_size;
	uint8_t		*fdt;		/* once it has been built */
	size_t		fdt_len;
	uint64_t	mark_ns;	/* where the present stage began */
	uint64_t	time;		/* guest time to go on from, in ticks */
	struct vmm_snap	*snap;		/* it was restored from, or NULL */
	struct snap_trace *trace;	/* notes what it touches, or NULL */
	int		populate;	/* map its working set before it runs */
	uint64_t	snap_time;	/* guest time there */
};

/*
 * Take in a struct that may be older or newer than ours (vmm.h, Structs): dst
 * has known bytes.  Hand one out that the caller may know less, or more, of.
 */
int vm_import(void *dst, size_t known, const void *src, const char *name, struct vmm_error *err);
void vm_export(void *dst, const void *src, size_t known);

/* Take a turn on vm; _any: even if it is BROKEN.  vm_leave() gives rc. */
int vm_enter(struct vmm *vm, struct vmm_error *err);
int vm_enter_any(struct vmm *vm, struct vmm_error *err);
int vm_leave(struct vmm *vm, int rc);

/* May a call that wants one of these states (bits) be made now? */
int vm_expect(struct vmm *vm, unsigned int states, const char *what, struct vmm_error *err);

/* ---- vmm.c ---------------------------------------------------------------- */

/* A machine with nothing in it. */
int vm_new(struct vmm **out, const char *name, void (*log)(void *arg, int level, const char *line),
	   void *log_arg, struct vmm_error *err);

/* The KVM side of a machine whose RAM is there. */
int vm_build(struct vmm *vm, struct vmm_error *err);

/* A stage of the start, VMM_STAGE_*, ends here. */
void vm_stage(struct vmm *vm, int which);

int vm_still_running(const void *machine);

/* ---- vmm_devices.c -------------------------------------------------------- */

/* The device tree is not as it was. */
void vm_forget_fdt(struct vmm *vm);

/* Where a virtio device lives: the parts of the machine that it uses. */
struct virtio_env vm_env(struct vmm *vm);

/* Give a new device the next place; takes v. */
int vm_add_virtio(struct vmm *vm, struct virtio *v, struct vmm_error *err);

/* The guest has stopped: nobody is at the other end of its connections. */
void vm_hang_up(struct vmm *vm);

/* ---- Snapshots -------------------------------------------------------------- */

struct vmm_snap {
	pthread_mutex_t	lock;		/* refs, and the filling of ram */
	uint32_t	refs;
	uint8_t		uuid[16];
	struct snapfile	*file;		/* that it was opened from, or NULL */
	struct mem_source *source;	/* of RAM; NULL: in the file, or base and delta */
	struct mem_source whole;	/* that, if all is there, in our memfd */
	struct mem_run	*zero;		/* its runs */
	struct snap_lazy *lazy;		/* that, decoded when touched, or NULL */
	uint64_t	size;		/* of RAM and platform pages, in bytes */
	uint64_t	*ws;		/* working set, as in struct snap_image, or NULL */
	uint32_t	nws;
	int		learned;	/* that is not the file's */
	int		kvm;		/* descriptor, for all machines of it, or -1 */
	struct stock	stock;		/* of VMs */
	int		no_renew;	/* atomic: this KVM cannot make vCPUs as new */
	int		fits;		/* this host's vCPUs, which are so: */
	struct hart_host host;
	struct mem_warm	*warm;		/* the same, as runs of pages */
	uint32_t	nwarm;
	struct snap_section *sections;	/* of a file: that file's */
	uint32_t	nsections;
	/* Taken of a clone: which pages that had changed, or NULL, and of what
	   snapshot it was made. */
	uint64_t	*own;
	uint8_t		base_uuid[16];
	/* That, and those pages (mem_copy_own), until ram is put together of them;
	   else NULL, -1. */
	struct vmm_snap	*base;
	int		delta;
	int		light;		/* few pages: machines lay them over base's RAM */
};

/* ---- vmm_snapinfo.c --------------------------------------------------------- */

#define VM_SECTION	"machine"
#define VM_SECTION_VERSION	1

/* What a machine is made of, as its section tells; a reader at its devices. */
struct vm_frozen {
	uint32_t	vcpus;
	uint64_t	memory, time;
	uint32_t	ndevices;
	struct reader	devices;
};

void vm_put_machine(const struct vmm *vm, struct writer *w);
int vm_get_machine(const struct vmm_snap *s, struct vm_frozen *out, struct vmm_error *err);
int vm_get_device(struct reader *r, struct vmm_snap_device *out, struct vmm_error *err);

/* A reader of a section, whose version must be one we know. */
int vm_get_section(const struct vmm_snap *s, const char *name, uint16_t version,
		     struct reader *r, struct vmm_error *err);

/* A reader at the registers of hart i, and what it needs. */
int vm_get_hart(const struct vmm_snap *s, uint32_t i, struct hart_config *c, struct reader *r,
		  struct vmm_error *err);

/*
 * Is all there that a machine of it needs, and nothing that this library would
 * have to know and does not?  Made before a restore asks anything of KVM.
 */
int vm_check_snap(const struct vmm_snap *s, struct vmm_error *err);

/* For people and tools: "key=value" lines of who wrote it and what it needs;
   free() it. */
char *vm_about_snap(const struct vmm_snap *s);

/* ---- vmm_snap.c ----------------------------------------------------------- */

/* KVM, opened and checked once for a snapshot, whose it remains. */
int vm_snap_kvm(struct vmm_snap *s, struct vmm_error *err);

/* What vCPUs that have just been made must have, to load the state of vm->snap. */
int vm_configure_harts(struct vmm *vm, struct vmm_error *err);

/* RAM of a clone is as the snapshot's: have it mapped as far as that is worth it. */
void vm_warm_up(struct vmm *vm);

/* More of that, for one that is made ahead: when it is built, before its state is loaded. */
int vm_make_ready(struct vmm *vm, struct vmm_error *err);

/* Bring a machine that has just been built into the state it was frozen in. */
int vm_load_state(struct vmm *vm, int clone, struct vmm_error *err);

/* What is left for its start, when the guest's time has been set. */
int vm_load_timers(struct vmm *vm, struct vmm_error *err);

#endif
