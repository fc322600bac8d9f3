/* SPDX-License-Identifier: MIT */
/*
 * tool.h - what the files of the vmm command share.
 *
 *	vmm.c		options, the terminal, the loop
 *	tool_devices.c	options of devices, and adding them
 *	tool_back.c	what stands behind networks and shared directories
 *	tool_vsock.c	sockets of the guest, as Unix sockets of the host
 *	tool_snap.c	snapshots: saving, telling of them, merging; the control socket
 *	tool_fork.c	children of a machine that runs
 */
#ifndef TOOL_H
#define TOOL_H

#include <argp.h>
#include <vmm.h>

/* Exit codes of our own; 0 to 255 of the guest's pass through. */
enum { EXIT_TROUBLE = 125, EXIT_CRASH = 126, EXIT_KEYS = 130 };

/* Tell of an error; gives EXIT_TROUBLE. */
int trouble(const struct vmm_error *err);

struct json_object;

/* Microseconds, to a tenth. */
struct json_object *json_us(double us);

/* The figures of a machine. */
struct json_object *stat_json(struct vmm *vm, struct vmm_error *err);

/* ---- tool_snap.c ---------------------------------------------------------- */

int cmd_fork(int argc, char **argv);
int cmd_info(int argc, char **argv);
int cmd_learn(int argc, char **argv);
int cmd_merge(int argc, char **argv);
int cmd_snap(int argc, char **argv);
int cmd_control(int argc, char **argv);
int cmd_verify(int argc, char **argv);

/*
 * Save a machine, and let it go on if it did.  parent may be NULL.  How far it is
 * is seen on a terminal, or told to a client of the control socket, if not -1.
 */
int save_machine(struct vmm *vm, const char *path, const char *parent, int client,
		 struct vmm_error *err);

/* A Unix socket for commands: a descriptor to poll, or -1 and has told why. */
int control_open(const char *path);
void control_close(int fd, const char *path);

/* Somebody has connected: do what he says.  An exit code, or -1 to go on. */
struct family;
int control_serve(int fd, struct vmm *vm, struct family *family);

/* Run n machines that are NEW until all of them have ended, or a signal comes: the
   worst exit code. */
int run_clones(struct vmm **vm, uint32_t n, int sigfd);

/* ---- tool_devices.c ------------------------------------------------------- */

enum { OPT_DISK = 512, OPT_NET, OPT_VSOCK, OPT_SHARE, OPT_RNG, OPT_BALLOON, OPT_CONSOLE };

#define DISKS_MAX	16
#define NETS_MAX	8
#define SHARES_MAX	8

struct devices {
	struct disk {
		const char	*name, *path;
		uint32_t	flags, queues;
		uint64_t	bytes, ops;	/* a second */
	} disk[DISKS_MAX];
	struct net {
		char		name[8];
		const char	*tap, *tcp, *udp;	/* neither tap nor fd: passt */
		int		fd, has_mac;
		uint8_t		mac[6];
		uint64_t	bytes, ops;
	} net[NETS_MAX];
	struct share {
		const char	*dir, *tag, *sandbox;
		int		readonly;
	} share[SHARES_MAX];
	uint32_t	ndisks, nnets, nshares;
	uint32_t	cid;		/* 0: no vsock */
	const char	*uds;		/* the vsock as a Unix socket, or NULL */
	int		rng, balloon, console;
};

uint64_t parse_size(const char *arg, struct argp_state *state);
uint32_t parse_count(const char *arg, struct argp_state *state);

/* As a parser of argp; of a restored machine a disk is "NAME=PATH". */
error_t devices_option(struct devices *all, int key, char *arg, int restored,
		       struct argp_state *state);

/* A machine that was saved with --console has no serial port: it is restored so, too. */
void devices_saved(struct devices *all, const struct vmm_snap *snap);

/* in: what is typed.  0, or an exit code. */
int devices_add(struct vmm *vm, const struct devices *all, int in, struct vmm_error *err);

/* Is there a disk of snap that several machines, or one that goes back, must not write to?
   Then which, after what it is about. */
int devices_shared(const struct devices *all, const struct vmm_snap *snap, const char *what, char *why,
		   size_t cap);

/* ---- tool_fork.c ---------------------------------------------------------- */

struct family {
	struct vmm_restore_config how;	/* of children */
	const struct devices *devices;	/* of the parent */
	int		fd;		/* to poll */
	struct child	*children;
	uint32_t	last;		/* number of the youngest */
};

/* 0, or an exit code. */
int family_open(struct family *f);
void family_close(struct family *f);

/* n children of vm, which goes on: what that took, or NULL. */
struct json_object *family_fork(struct family *f, struct vmm *vm, uint32_t n, struct vmm_error *err);

/* Something has become of one of them. */
void family_serve(struct family *f);

/* What family_fork() told, for people. */
void family_show(struct json_object *answer, int timing);

/* ---- tool_back.c ---------------------------------------------------------- */

/*
 * Each gives a descriptor for vmm_add_net() or vmm_add_fs(), which the caller
 * closes, or -1 and has told why.  The programs that some of them start end
 * when the other end of their descriptor is closed: with the machine.
 */
int back_tap(const char *ifname);

/* passt; tcp and udp are its port forwards ("2222:22"), or NULL. */
int back_passt(const char *tcp, const char *udp);

/* virtiofsd on a directory; sandbox is its option, or NULL. */
int back_virtiofsd(const char *dir, int readonly, const char *sandbox);

/* ---- tool_vsock.c --------------------------------------------------------- */

/*
 * A Unix socket at path, on which "CONNECT port\n" is answered by "OK port\n" and
 * a connection to that port of the guest; and connections of the guest to port N
 * of the host go to path_N, which may come and go.  NULL: it has told why.
 * Closed after the machine has stopped, before it is freed.
 */
struct front;
struct front *front_open(struct vmm *vm, const char *path);
void front_close(struct front *f);

#endif
