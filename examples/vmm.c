/* SPDX-License-Identifier: MIT */
/*
 * vmm.c - the vmm command: run RISC-V virtual machines from a shell.
 *
 * It uses vmm.h and nothing else of the library, and is the largest of the
 * examples.  vmm(1) describes it; tool.h says what is in its other files.
 *
 * One thread here: a poll loop over the terminal, the machine's events and
 * signals.  What is typed goes through a pipe, so that Ctrl-A can be taken out.
 */
#include <argp.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <json-c/json.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <termios.h>
#include <unistd.h>

#include "tool.h"

#define CTRL_A	1

int trouble(const struct vmm_error *err)
{
	fprintf(stderr, "vmm: %s\n", err->message);
	return EXIT_TROUBLE;
}

/* ---- The terminal ------------------------------------------------------ */

static struct termios tty_saved;
static volatile sig_atomic_t tty_raw;

static void tty_restore(void)
{
	if (!tty_raw)
		return;
	tty_raw = 0;
	tcsetattr(0, TCSANOW, &tty_saved);	/* safe in a signal handler */
}

static void tty_crashed(int sig)
{
	tty_restore();
	signal(sig, SIG_DFL);
	raise(sig);
}

static void tty_set_raw(void)
{
	static const int fatal[] = { SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGQUIT };
	struct termios t;
	size_t i;

	if (!isatty(0) || tcgetattr(0, &tty_saved) < 0)
		return;
	t = tty_saved;
	cfmakeraw(&t);
	t.c_oflag |= OPOST;		/* our own messages want their line ends */
	for (i = 0; i < sizeof(fatal) / sizeof(fatal[0]); i++)
		signal(fatal[i], tty_crashed);
	atexit(tty_restore);
	tty_raw = 1;
	tcsetattr(0, TCSANOW, &t);
}

/* ---- vmm run ------------------------------------------------------------- */

enum { OPT_DUMP = 256, OPT_NO_REBOOT, OPT_TIMING, OPT_JSON, OPT_ISA, OPT_IRQCHIP, OPT_NAME,
       OPT_SNAPSHOT, OPT_RESUME, OPT_CONTROL, OPT_COUNT };

struct run {
	struct vmm_config cfg;
	struct vmm_restore_config restore;
	const char	*file;		/* of the snapshot to restore; NULL: boot */
	const char	*dump;		/* write the device tree here, do not run */
	const char	*snapshot;	/* write one here when the guest rings */
	const char	*control;	/* path of the control socket, or NULL */
	uint32_t	count;		/* of clones; 0: one, on this terminal */
	struct devices	devices;
	int		no_reboot, timing, json, verbose;
	char		no_return[160];	/* why a restored machine does not go back, or "" */
};

static const struct argp_option run_options[] = {
	{ "kernel", 'k', "FILE", 0, "Linux Image (plain, gzip, zstd, EFI zboot) or ELF file", 1 },
	{ "initrd", 'i', "FILE", 0, "initial RAM disk", 1 },
	{ "append", 'a', "TEXT", 0, "kernel command line (console=ttyS0)", 1 },
	{ "memory", 'm', "SIZE", 0, "RAM, with K, M or G behind it (256M)", 2 },
	{ "cpus", 'c', "N", 0, "virtual CPUs (1)", 2 },
	{ "isa", OPT_ISA, "ISA", 0, "what the guest has, as rv64gc_zba, or lacks, as -v,-zbb", 2 },
	{ "irqchip", OPT_IRQCHIP, "MODE", 0, "emul, hwaccel or auto (what is best here)", 2 },
	{ "disk", OPT_DISK, "PATH[,ro][,overlay][,direct][,...]", 0,
	  "a raw image or block device; may be repeated", 2 },
	{ "net", OPT_NET, "user|tap=NAME|fd=N[,mac=MAC][,...]", 0,
	  "a network card, with passt, a tap or a socket behind it; may be repeated", 2 },
	{ "vsock", OPT_VSOCK, "CID[,uds=PATH]", 0,
	  "sockets between host and guest; at PATH for other programs", 2 },
	{ "share", OPT_SHARE, "DIR[,tag=TAG][,ro]", 0,
	  "a directory, which the guest mounts as TAG (share); may be repeated", 2 },
	{ "rng", OPT_RNG, NULL, 0, "a source of entropy", 2 },
	{ "balloon", OPT_BALLOON, NULL, 0, "give unused memory back to the host", 2 },
	{ "console", OPT_CONSOLE, NULL, 0, "this terminal is hvc0 instead of ttyS0", 2 },
	{ "snapshot-on-ready", OPT_SNAPSHOT, "FILE", 0,
	  "when the guest rings its doorbell, save it to FILE", 3 },
	{ "control", OPT_CONTROL, "PATH", 0, "a socket for vmm snap, fork and control", 3 },
	{ "name", OPT_NAME, "NAME", 0, "of the machine, in logs and threads", 3 },
	{ "no-reboot", OPT_NO_REBOOT, NULL, 0, "exit when the guest restarts", 3 },
	{ "dump-dtb", OPT_DUMP, "FILE", 0, "write the device tree to FILE and exit", 3 },
	{ "timing", OPT_TIMING, NULL, 0, "tell where the time of the start went", 4 },
	{ "json", OPT_JSON, NULL, 0, "... as JSON", 4 },
	{ "verbose", 'v', NULL, 0, "show the library's log; twice: all of it", 4 },
	{ NULL, 0, NULL, 0, NULL, 0 }
};

static uint32_t parse_irqchip(const char *arg, struct argp_state *state)
{
	static const char *const modes[] = { "", "emul", "hwaccel", "auto" };
	uint32_t i;

	for (i = 1; i < 4; i++)
		if (strcmp(arg, modes[i]) == 0)
			return i;
	argp_error(state, "not an interrupt controller: %s", arg);
	return 0;
}

static error_t run_parse(int key, char *arg, struct argp_state *state)
{
	struct run *run = state->input;

	switch (key) {
	case 'k':
		run->cfg.kernel = arg;
		break;
	case 'i':
		run->cfg.initrd = arg;
		break;
	case 'a':
		run->cfg.cmdline = arg;
		break;
	case 'm':
		run->cfg.memory = parse_size(arg, state);
		if (!run->cfg.memory)
			argp_error(state, "a machine needs memory");
		break;
	case 'c':
		run->cfg.vcpus = parse_count(arg, state);
		break;
	case OPT_ISA:
		run->cfg.isa = arg;
		break;
	case OPT_IRQCHIP:
		run->cfg.irqchip = parse_irqchip(arg, state);
		break;
	case OPT_NAME:
		run->cfg.name = arg;
		break;
	case OPT_SNAPSHOT:
		run->snapshot = arg;
		break;
	case OPT_CONTROL:
		run->control = arg;
		break;
	case OPT_NO_REBOOT:
		run->no_reboot = 1;
		break;
	case OPT_DUMP:
		run->dump = arg;
		break;
	case OPT_TIMING:
		run->timing = 1;
		break;
	case OPT_JSON:
		run->timing = run->json = 1;
		break;
	case 'v':
		run->verbose++;
		break;
	case ARGP_KEY_END:
		if (!run->cfg.kernel)
			argp_error(state, "--kernel is missing");
		if (run->devices.nshares && run->snapshot)
			argp_error(state, "a machine with --share cannot be saved");
		break;
	default:
		return devices_option(&run->devices, key, arg, run->file != NULL, state);
	}
	return 0;
}

static void show_log(void *arg, int level, const char *line)
{
	static const char *const names[] = { "error", "warning", "info", "debug" };
	const struct run *run = arg;

	if (level <= VMM_LOG_WARN + run->verbose)
		fprintf(stderr, "vmm: %s: %s\n", names[level], line);
}

static int dump_fdt(struct vmm *vm, const char *path, struct vmm_error *err)
{
	uint8_t *buf;
	size_t size;
	FILE *f;
	int rc;

	rc = vmm_fdt(vm, NULL, 0, &size, err);
	if (rc)
		return trouble(err);
	buf = malloc(size);
	f = fopen(path, "wb");
	if (!buf || !f || vmm_fdt(vm, buf, size, &size, err) ||
	    fwrite(buf, 1, size, f) != size) {
		fprintf(stderr, "vmm: %s: %s\n", path, strerror(errno));
		rc = EXIT_TROUBLE;
	}
	if (f && fclose(f) != 0)
		rc = EXIT_TROUBLE;
	free(buf);
	return rc;
}

static const char *const stage_names[VMM_STAGES] = {
	"kvm", "vm", "memory", "vcpus", "irqchip", "load", "start"
};
static const char *const exit_names[VMM_EXITS] = {
	"mmio", "sbi", "csr", "signal", "other", "kernel"
};

struct json_object *json_us(double us)
{
	static char format[] = "%.1f";
	struct json_object *o = json_object_new_double(us);

	json_object_set_serializer(o, json_object_double_to_json_string, format, NULL);
	return o;
}

struct json_object *stat_json(struct vmm *vm, struct vmm_error *err)
{
	struct json_object *top, *stages, *exits;
	struct vmm_stats st = VMM_STATS_INIT;
	int i;

	if (vmm_stat(vm, &st, err))
		return NULL;
	top = json_object_new_object();
	stages = json_object_new_object();
	exits = json_object_new_object();
	for (i = 0; i < VMM_STAGES; i++)
		json_object_object_add(stages, stage_names[i],
				       json_us((double)st.stage_ns[i] / 1e3));
	for (i = 0; i < VMM_EXITS; i++)
		json_object_object_add(exits, exit_names[i],
				       json_object_new_int64((int64_t)st.exits[i]));
	json_object_object_add(top, "stages_us", stages);
	json_object_object_add(top, "setup_us", json_us((double)st.setup_ns / 1e3));
	json_object_object_add(top, "exits", exits);
	json_object_object_add(top, "vcpus", json_object_new_int64(st.vcpus));
	json_object_object_add(top, "memory", json_object_new_int64((int64_t)st.memory));
	json_object_object_add(top, "memory_used", json_object_new_int64((int64_t)st.memory_used));
	json_object_object_add(top, "memory_own", json_object_new_int64((int64_t)st.memory_own));
	json_object_object_add(top, "memory_waits", json_object_new_int64((int64_t)st.memory_waits));
	json_object_object_add(top, "memory_decoded",
			       json_object_new_int64((int64_t)st.memory_decoded));
	return top;
}

static void show_timing(struct vmm *vm, int json)
{
	struct vmm_stats st = VMM_STATS_INIT;
	struct json_object *o;
	struct vmm_error err;
	int i;

	if (json) {
		o = stat_json(vm, &err);
		if (!o)
			trouble(&err);
		else
			fprintf(stderr, "%s\n",
				json_object_to_json_string_ext(o, JSON_C_TO_STRING_PRETTY));
		json_object_put(o);
		return;
	}
	if (vmm_stat(vm, &st, &err)) {
		trouble(&err);
		return;
	}
	fprintf(stderr, "%-10s %10s\n", "stage", "us");
	for (i = 0; i < VMM_STAGES; i++)
		fprintf(stderr, "%-10s %10.1f\n", stage_names[i], (double)st.stage_ns[i] / 1e3);
	fprintf(stderr, "%-10s %10.1f\n%-10s %10s\n", "total", (double)st.setup_ns / 1e3, "exits",
		"count");
	for (i = 0; i < VMM_EXITS; i++)
		fprintf(stderr, "%-10s %10" PRIu64 "\n", exit_names[i], st.exits[i]);
	fprintf(stderr, "%-10s %10s\n%-10s %10" PRIu64 "\n%-10s %10" PRIu64 "\n", "RAM", "KiB", "held",
		st.memory_used >> 10, "its own", st.memory_own >> 10);
	if (st.memory_decoded)
		fprintf(stderr, "%-10s %10" PRIu64 "\n%-10s %10" PRIu64 " times\n", "decoded",
			st.memory_decoded >> 10, "waited", st.memory_waits);
}

/* What has been typed and not yet given to the guest. */
struct keys {
	int		to_guest;	/* the pipe, non-blocking */
	int		escape;		/* the last key was Ctrl-A */
	int		eof;
	size_t		len;
	char		buf[4096];
};

/* Take Ctrl-A sequences out of what was typed.  1: leave. */
static int keys_filter(struct keys *k, const char *in, size_t n)
{
	size_t i;

	for (i = 0; i < n; i++) {
		if (!k->escape && in[i] == CTRL_A && tty_raw) {
			k->escape = 1;
			continue;
		}
		if (k->escape && in[i] == 'x')
			return 1;
		if (k->escape && in[i] == 'h')
			fprintf(stderr, "\nCtrl-A x: leave; Ctrl-A Ctrl-A: Ctrl-A; Ctrl-A h: this\n");
		if (!k->escape || in[i] == CTRL_A)
			k->buf[k->len++] = in[i];
		k->escape = 0;
	}
	return 0;
}

static int keys_read(struct keys *k)
{
	char in[sizeof(k->buf)];
	ssize_t n = read(0, in, sizeof(k->buf) - k->len);

	if (n > 0)
		return keys_filter(k, in, (size_t)n);
	if (n == 0 || (errno != EAGAIN && errno != EINTR))
		k->eof = 1;
	return 0;
}

static void keys_write(struct keys *k)
{
	ssize_t n = write(k->to_guest, k->buf, k->len);

	if (n > 0) {
		k->len -= (size_t)n;
		memmove(k->buf, k->buf + n, k->len);
	} else if (n < 0 && errno != EAGAIN && errno != EINTR) {
		k->len = 0;		/* nobody reads any more */
	}
}

/* What an event means for us: an exit code, or -1 to go on. */
static int take_event(struct vmm *vm, const struct run *run, struct vmm_error *err)
{
	struct vmm_event ev;

	if (vmm_wait(vm, 0, &ev, err))
		return trouble(err);
	switch (ev.type) {
	case VMM_EV_SHUTDOWN:
		return (int)(ev.value & 255);
	case VMM_EV_REBOOT:
		if (run->no_return[0] && !run->no_reboot)
			fprintf(stderr, "vmm: %s\n", run->no_return);
		if (run->no_reboot || run->no_return[0])
			return 0;
		if (vmm_reset(vm, err) || vmm_start(vm, err))
			return trouble(err);
		return -1;
	case VMM_EV_DOORBELL:
		if (run->snapshot && save_machine(vm, run->snapshot, NULL, -1, err))
			return trouble(err);
		return -1;
	case VMM_EV_CRASH:
		fprintf(stderr, "vmm: the guest crashed: %s\n", ev.detail);
		return EXIT_CRASH;
	case VMM_EV_FAULT:
		fprintf(stderr, "vmm: %s\n", ev.detail);
		return EXIT_TROUBLE;
	default:
		return -1;
	}
}

/* The guest's terminal is as large as ours. */
static void fit_console(struct vmm *vm, const struct run *run)
{
	struct winsize w;

	if (run->devices.console && ioctl(1, TIOCGWINSZ, &w) == 0)
		vmm_resize_console(vm, "console", w.ws_col, w.ws_row, NULL);
}

static int run_loop(struct vmm *vm, const struct run *run, int to_guest, int sigfd, int control,
		    struct family *family)
{
	struct keys keys = { .to_guest = to_guest };
	struct signalfd_siginfo si;
	struct vmm_error err;
	int code = -1;

	while (code < 0) {
		struct pollfd p[] = {
			{ .fd = vmm_fd(vm), .events = POLLIN },
			{ .fd = sigfd, .events = POLLIN },
			{ .fd = keys.eof || keys.len == sizeof(keys.buf) ? -1 : 0, .events = POLLIN },
			{ .fd = keys.len ? to_guest : -1, .events = POLLOUT },
			{ .fd = control, .events = POLLIN },
			{ .fd = family->fd, .events = POLLIN },
		};

		if (poll(p, 6, -1) < 0 && errno != EINTR)
			return EXIT_TROUBLE;
		if (p[1].revents && read(sigfd, &si, sizeof(si)) == sizeof(si)) {
			if (si.ssi_signo != SIGWINCH)
				return 128 + (int)si.ssi_signo;
			fit_console(vm, run);
		}
		if (p[2].revents && keys_read(&keys))
			return EXIT_KEYS;
		if (keys.len)
			keys_write(&keys);
		if (p[0].revents)
			code = take_event(vm, run, &err);
		if (code < 0 && p[4].revents)
			code = control_serve(control, vm, family);
		if (p[5].revents)
			family_serve(family);
	}
	return code;
}

static int run_machine(struct vmm *vm, const struct run *run, int in, int out, int sigfd)
{
	struct family family = { .how = VMM_RESTORE_INIT, .devices = &run->devices, .fd = -1 };
	struct front *front = NULL;
	struct vmm_error err;
	int code = devices_add(vm, &run->devices, in, &err), control = -1;

	if (code)
		return code;
	if (run->dump)
		return dump_fdt(vm, run->dump, &err);
	if (run->devices.uds && !(front = front_open(vm, run->devices.uds)))
		return EXIT_TROUBLE;
	family.how.log = show_log;
	family.how.log_arg = (void *)(uintptr_t)run;
	family.how.irqchip = run->cfg.irqchip;
	if (run->control) {
		control = control_open(run->control);
		if (control < 0 || family_open(&family)) {
			control_close(control, run->control);
			front_close(front);
			return EXIT_TROUBLE;
		}
	}
	tty_set_raw();
	fit_console(vm, run);
	if (vmm_start(vm, &err))
		code = trouble(&err);
	else
		code = run_loop(vm, run, out, sigfd, control, &family);
	control_close(control, run->control);
	family_close(&family);
	if (run->timing)
		show_timing(vm, run->json);
	vmm_stop(vm, &err);		/* who waits for the guest does so no longer */
	front_close(front);
	return code;
}

/* --count: no terminal, what they print mixes. */
static int restore_clones(struct vmm_snap *snap, const struct run *run, int sigfd)
{
	struct vmm **vm = calloc(run->count, sizeof(*vm));
	struct vmm_error err = { .message = "out of memory" };
	int code = 0;
	uint32_t i;

	if (!vm || devices_shared(&run->devices, snap, "clones would share", err.message, sizeof(err.message)))
		code = trouble(&err);
	for (i = 0; i < run->count && code == 0; i++) {
		if (vmm_restore(&vm[i], snap, &run->restore, &err))
			code = trouble(&err);
		else
			code = devices_add(vm[i], &run->devices, -1, &err);
	}
	if (code == 0)
		code = run_clones(vm, run->count, sigfd);
	for (i = 0; vm && i < run->count; i++)
		vmm_free(vm[i]);
	free(vm);
	return code;
}

/* Set up signals and the pipe for what is typed; make the machine; run it. */
static int run_any(struct run *run)
{
	struct vmm_snap *snap = NULL;
	struct vmm_error err;
	struct vmm *vm = NULL;
	sigset_t set;
	int code, sigfd, pipefd[2];

	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGHUP);
	sigaddset(&set, SIGWINCH);
	sigprocmask(SIG_BLOCK, &set, NULL);
	signal(SIGPIPE, SIG_IGN);
	sigfd = signalfd(-1, &set, SFD_CLOEXEC);
	if (sigfd < 0 || pipe2(pipefd, O_CLOEXEC) < 0 ||
	    fcntl(pipefd[1], F_SETFL, O_NONBLOCK) < 0) {
		fprintf(stderr, "vmm: %s\n", strerror(errno));
		return EXIT_TROUBLE;
	}
	if (run->file && vmm_snap_open(&snap, run->file, &err) == 0)
		devices_saved(&run->devices, snap);
	if (run->file && !snap)
		code = trouble(&err);
	else if (run->count)
		code = restore_clones(snap, run, sigfd);
	else if (run->file ? vmm_restore(&vm, snap, &run->restore, &err)
			   : vmm_create(&vm, &run->cfg, &err))
		code = trouble(&err);
	else {
		if (snap)
			devices_shared(&run->devices, snap, "the guest restarts, and what was saved may no "
				       "longer fit", run->no_return, sizeof(run->no_return));
		code = run_machine(vm, run, pipefd[0], pipefd[1], sigfd);
	}
	vmm_free(vm);
	vmm_snap_free(snap);
	return code;
}

#define KEYS_AND_CODES \
	"Ctrl-A x leaves.  The exit code is the guest's; 125: vmm failed, 126: the guest " \
	"crashed, 130: left by Ctrl-A x."

static int cmd_run(int argc, char **argv)
{
	const struct argp argp = { run_options, run_parse, NULL,
		"Run a virtual machine, its console on this terminal.\v" KEYS_AND_CODES, NULL, NULL,
		NULL };
	struct run run = { .cfg = VMM_CONFIG_INIT };

	run.cfg.memory = 256u << 20;
	run.cfg.log = show_log;
	run.cfg.log_arg = &run;
	argp_parse(&argp, argc, argv, 0, NULL, &run);
	if (!run.cfg.cmdline)
		run.cfg.cmdline = run.devices.console ? "console=hvc0" : "console=ttyS0";
	return run_any(&run);
}

/* ---- vmm restore ------------------------------------------------ */

static const struct argp_option restore_options[] = {
	{ "disk", OPT_DISK, "NAME=PATH[,ro][,overlay]...", 0,
	  "another file behind the disk of that name; may be repeated", 1 },
	{ "net", OPT_NET, "user|tap=NAME|fd=N[,...]", 0,
	  "a network behind net0, and then net1...", 1 },
	{ "vsock", OPT_VSOCK, "CID[,uds=PATH]", 0, "another CID, and a Unix socket", 1 },
	{ "console", OPT_CONSOLE, NULL, 0, "this terminal is hvc0 instead of ttyS0", 1 },
	{ "count", OPT_COUNT, "N", 0, "make N clones, without a terminal", 2 },
	{ "control", OPT_CONTROL, "PATH", 0, "a socket for vmm snap, fork and control", 2 },
	{ "resume", OPT_RESUME, NULL, 0, "the original is gone: keep its identity", 2 },
	{ "irqchip", OPT_IRQCHIP, "MODE", 0, "emul, hwaccel or auto (what is best here)", 2 },
	{ "name", OPT_NAME, "NAME", 0, "of the machine, in logs and threads", 2 },
	{ "snapshot-on-ready", OPT_SNAPSHOT, "FILE", 0,
	  "when the guest rings its doorbell, save it to FILE", 2 },
	{ "no-reboot", OPT_NO_REBOOT, NULL, 0, "exit when the guest restarts", 2 },
	{ "timing", OPT_TIMING, NULL, 0, "tell where the time of the start went", 3 },
	{ "json", OPT_JSON, NULL, 0, "... as JSON", 3 },
	{ "verbose", 'v', NULL, 0, "show the library's log; twice: all of it", 3 },
	{ NULL, 0, NULL, 0, NULL, 0 }
};

static error_t restore_parse(int key, char *arg, struct argp_state *state)
{
	struct run *run = state->input;

	switch (key) {
	case OPT_RESUME:
		run->restore.flags |= VMM_RESUME;
		return 0;
	case OPT_COUNT:
		run->count = parse_count(arg, state);
		return 0;
	case ARGP_KEY_ARG:
		if (state->arg_num)
			argp_error(state, "more than one FILE");
		run->file = arg;
		return 0;
	case ARGP_KEY_END:
		if (!*run->file)
			argp_error(state, "no FILE");
		if (run->count && (run->control || run->snapshot || run->restore.flags))
			argp_error(state, "--count goes with no --control, --snapshot-on-ready, --resume");
		run->restore.irqchip = run->cfg.irqchip;
		run->restore.name = run->cfg.name;
		return 0;
	default:
		return run_parse(key, arg, state);
	}
}

static int cmd_restore(int argc, char **argv)
{
	const struct argp argp = { restore_options, restore_parse, "FILE",
		"Go on with a machine that was saved to FILE.\v" KEYS_AND_CODES, NULL, NULL, NULL };
	struct run run = { .restore = VMM_RESTORE_INIT };

	run.file = "";			/* "NAME=PATH" from the first option on */
	run.restore.log = show_log;
	run.restore.log_arg = &run;
	argp_parse(&argp, argc, argv, 0, NULL, &run);
	return run_any(&run);
}

/* ---- vmm probe ----------------------------------------------------------- */

static error_t probe_parse(int key, char *arg, struct argp_state *state)
{
	(void)arg;
	if (key != OPT_JSON)
		return ARGP_ERR_UNKNOWN;
	*(int *)state->input = 1;
	return 0;
}

static const char *const irqchip_names[] = { "none", "emul", "hwaccel", "auto" };

static struct json_object *irqchip_list(uint32_t bits)
{
	struct json_object *list = json_object_new_array();
	uint32_t i;

	for (i = 1; i < 4; i++)
		if (bits >> i & 1)
			json_object_array_add(list, json_object_new_string(irqchip_names[i]));
	return list;
}

static void probe_json(const struct vmm_host *h)
{
	struct json_object *o = json_object_new_object();

	json_object_object_add(o, "kernel", json_object_new_string(h->kernel));
	json_object_object_add(o, "max_vcpus", json_object_new_int64(h->max_vcpus));
	json_object_object_add(o, "isa", json_object_new_string(h->isa));
	json_object_object_add(o, "vlenb", json_object_new_int64(h->vlenb));
	json_object_object_add(o, "timebase_hz", json_object_new_int64((int64_t)h->timebase_hz));
	json_object_object_add(o, "gpa_bits", json_object_new_int64(h->gpa_bits));
	json_object_object_add(o, "satp_bits", json_object_new_int64(h->satp_bits));
	json_object_object_add(o, "irqchip", json_object_new_string(irqchip_names[h->irqchip]));
	json_object_object_add(o, "irqchips", irqchip_list(h->irqchips));
	json_object_object_add(o, "irqchips_sound", irqchip_list(h->irqchips_sound));
	json_object_object_add(o, "note", json_object_new_string(h->note));
	json_object_object_add(o, "lazy", json_object_new_boolean(h->lazy != 0));
	json_object_object_add(o, "lazy_note", json_object_new_string(h->lazy_note));
	printf("%s\n", json_object_to_json_string_ext(o, JSON_C_TO_STRING_PRETTY));
	json_object_put(o);
}

static void probe_text(const struct vmm_host *h)
{
	uint32_t i;

	printf("kernel        %s\n", h->kernel);
	printf("vCPUs         up to %u in a machine\n", h->max_vcpus);
	printf("ISA           %s\n", h->isa);
	if (h->vlenb)
		printf("vectors       %u bits\n", 8 * h->vlenb);
	printf("timebase      %" PRIu64 " Hz\n", h->timebase_hz);
	printf("addresses     %u bits guest-physical, Sv%u paging\n", h->gpa_bits, h->satp_bits);
	printf("interrupts    %s", irqchip_names[h->irqchip]);
	for (i = 1; i < 4; i++)
		if (h->irqchips >> i & 1 && i != h->irqchip)
			printf(", or %s%s", irqchip_names[i],
			       h->irqchips_sound >> i & 1 ? "" : " (not sound)");
	printf("\n              %s\n", h->note);
	printf("lazy restore  %s\n              %s\n", h->lazy ? "yes" : "no, RAM is decoded before the start",
	       h->lazy_note);
}

static int cmd_probe(int argc, char **argv)
{
	static const struct argp_option options[] = {
		{ "json", OPT_JSON, NULL, 0, "as JSON", 0 },
		{ NULL, 0, NULL, 0, NULL, 0 }
	};
	const struct argp argp = { options, probe_parse, NULL,
		"Tell what this host's KVM offers.", NULL, NULL, NULL };
	struct vmm_host host = VMM_HOST_INIT;
	struct vmm_error err;
	int json = 0;

	argp_parse(&argp, argc, argv, 0, NULL, &json);
	if (vmm_probe(&host, &err))
		return trouble(&err);
	if (json)
		probe_json(&host);
	else
		probe_text(&host);
	return 0;
}

/* ---- vmm -------------------------------------------------------------------- */

static const struct {
	const char	*name;
	int		(*run)(int argc, char **argv);
	const char	*what;
} commands[] = {
	{ "run", cmd_run, "run a virtual machine" },
	{ "restore", cmd_restore, "go on with a machine that was saved" },
	{ "snap", cmd_snap, "save a machine that runs" },
	{ "fork", cmd_fork, "make children of a machine that runs" },
	{ "control", cmd_control, "pause, resume, stop a machine that runs; its figures" },
	{ "info", cmd_info, "tell what is saved in a file" },
	{ "learn", cmd_learn, "note in a file which RAM its machine needs first" },
	{ "merge", cmd_merge, "make one file of a saved machine and what it stands on" },
	{ "verify", cmd_verify, "check every byte of a saved machine" },
	{ "probe", cmd_probe, "tell what this host offers" },
};
#define NCOMMANDS (sizeof(commands) / sizeof(commands[0]))

static int usage(FILE *f)
{
	size_t i;

	fprintf(f, "usage: vmm COMMAND [OPTION...]\n\n");
	for (i = 0; i < NCOMMANDS; i++)
		fprintf(f, "  %-10s %s\n", commands[i].name, commands[i].what);
	fprintf(f, "\n\"vmm COMMAND --help\" tells of its options; vmm(1) of everything.\n");
	return f == stdout ? 0 : EXIT_TROUBLE;
}

int main(int argc, char **argv)
{
	char name[32];
	size_t i;

	argp_err_exit_status = EXIT_TROUBLE;
	if (argc < 2)
		return usage(stderr);
	if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "help") == 0)
		return usage(stdout);
	if (strcmp(argv[1], "--version") == 0) {
		printf("vmm %d.%d.%d\n", VMM_VERSION_MAJOR, VMM_VERSION_MINOR, VMM_VERSION_PATCH);
		return 0;
	}
	for (i = 0; i < NCOMMANDS; i++) {
		if (strcmp(argv[1], commands[i].name) != 0)
			continue;
		/* argp names the program by argv[0]. */
		snprintf(name, sizeof(name), "vmm %s", commands[i].name);
		argv[1] = name;
		return commands[i].run(argc - 1, argv + 1);
	}
	fprintf(stderr, "vmm: no such command: %s\n", argv[1]);
	return usage(stderr);
}
