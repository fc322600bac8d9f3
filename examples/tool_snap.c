/* SPDX-License-Identifier: MIT */
/*
 * tool_snap.c - snapshots for the vmm command: info, merge, learn, verify, snap, and the
 * control socket of a vmm that runs.
 *
 * A command on the socket is one line, its words separated by tabs; the answer is
 * one line of JSON, and the connection ends.  Before it snap-progress tells how far it
 * is, a line for each percent.  Who may connect may do everything with the machine:
 * the socket is its owner's alone.  One command is done at a time, on the thread of
 * the loop; the guest runs on meanwhile.
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
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "tool.h"

#define CHILDREN_MAX	10000		/* of one vmm fork */
#define LINE_MAX_	9000		/* two paths, and more */
#define SLOW_CLIENT	5		/* seconds that one has for its line */

static const char *const state_names[] = { "new", "running", "paused", "stopped", "broken" };

static int complain(const char *what, const char *thing)
{
	fprintf(stderr, "vmm: %s: %s\n", thing, what);
	return EXIT_TROUBLE;
}

/* ---- Saving ---------------------------------------------------------------- */

/* Who is told: a terminal, or a client of the control socket. */
struct progress {
	int		client;		/* or -1 */
	unsigned int	shown;		/* percent */
};

static int show_progress(void *arg, uint64_t done, uint64_t total)
{
	unsigned int percent = total ? (unsigned int)(done * 100 / total) : 100;
	struct progress *p = arg;
	char line[32];
	int n;

	if (percent == p->shown)
		return 0;
	p->shown = percent;
	if (p->client < 0) {
		fprintf(stderr, "\rvmm: writing: %3u %%%s", percent, percent == 100 ? "\r\n" : "");
		return 0;
	}
	/* Whether somebody reads it or not, the file is written. */
	n = snprintf(line, sizeof(line), "{\"percent\":%u}\n", percent);
	send(p->client, line, (size_t)n, MSG_NOSIGNAL | MSG_DONTWAIT);
	return 0;
}

static void want_progress(struct vmm_write_config *how, struct progress *p, int client)
{
	*p = (struct progress){ client, 101 };
	if (client < 0 && !isatty(2))
		return;
	how->progress = show_progress;
	how->progress_arg = p;
}

int save_machine(struct vmm *vm, const char *path, const char *parent, int client,
		 struct vmm_error *err)
{
	struct vmm_write_config how = VMM_WRITE_INIT;
	int was = vmm_state(vm), rc = 0;
	struct vmm_snap *snap = NULL;
	struct progress progress;

	want_progress(&how, &progress, client);
	how.parent = parent;
	if (was == VMM_RUNNING)
		rc = vmm_pause(vm, err);
	if (rc == 0)
		rc = vmm_snap_take(&snap, vm, err);
	if (rc == 0 && was == VMM_RUNNING)
		rc = vmm_start(vm, err);
	else if (rc && vmm_state(vm) == VMM_PAUSED && was == VMM_RUNNING)
		vmm_start(vm, NULL);
	if (rc == 0)
		rc = vmm_snap_write(snap, path, &how, err);
	vmm_snap_free(snap);
	return rc;
}

/* ---- vmm info ---------------------------------------------------------------- */

static void uuid_text(const uint8_t uuid[16], char text[37])
{
	int i, n = 0;

	for (i = 0; i < 16; i++)
		n += sprintf(text + n, "%s%02x", i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "",
			     uuid[i]);
}

static void info_json(const struct vmm_snap *snap, const struct vmm_snap_info *in, const char *file)
{
	struct json_object *o = json_object_new_object(), *list, *item;
	struct vmm_snap_device d;
	char uuid[37];
	uint32_t i;

	uuid_text(in->uuid, uuid);
#define TEXT(key, v) json_object_object_add(o, key, json_object_new_string(v))
#define NUMBER(key, v) json_object_object_add(o, key, json_object_new_int64((int64_t)(v)))
	TEXT("file", file);
	TEXT("uuid", uuid);
	NUMBER("format_major", in->format_major);
	NUMBER("format_minor", in->format_minor);
	NUMBER("created", in->created);
	TEXT("kernel", in->kernel);
	NUMBER("vcpus", in->vcpus);
	NUMBER("memory", in->memory);
	NUMBER("time_ns", in->time_ns);
	TEXT("isa", in->isa);
	NUMBER("vlenb", in->vlenb);
	NUMBER("timebase_hz", in->timebase_hz);
	NUMBER("satp_bits", in->satp_bits);
	NUMBER("file_size", in->file_size);
	NUMBER("ram_used", in->ram_used);
	NUMBER("ram_own", in->ram_own);
	NUMBER("ram_parents", in->ram_parents);
	NUMBER("working_set", in->working_set);
#undef TEXT
#undef NUMBER
	list = json_object_new_array();
	for (i = 0; vmm_snap_device(snap, i, &d, NULL) == 0; i++) {
		item = json_object_new_object();
		json_object_object_add(item, "type", json_object_new_string(d.type));
		json_object_object_add(item, "name", json_object_new_string(d.name));
		json_object_array_add(list, item);
	}
	json_object_object_add(o, "devices", list);
	list = json_object_new_array();
	for (i = 0; i < in->parents; i++)
		json_object_array_add(list, json_object_new_string(vmm_snap_parent(snap, i)));
	json_object_object_add(o, "parents", list);
	printf("%s\n", json_object_to_json_string_ext(o, JSON_C_TO_STRING_PRETTY));
	json_object_put(o);
}

static double mib(uint64_t bytes)
{
	return (double)bytes / 1048576;
}

/* What a file says of itself may be anything: it shall not move the cursor. */
static char *plain(char *text)
{
	char *s;

	for (s = text; *s; s++)
		if ((unsigned char)*s < ' ' || *s == 127)
			*s = '?';
	return text;
}

static void info_text(const struct vmm_snap *snap, struct vmm_snap_info *in)
{
	time_t made = (time_t)in->created;
	char uuid[37], when[64] = "?", *path;
	struct vmm_snap_device d;
	struct tm tm;
	uint32_t i;

	if (in->created && gmtime_r(&made, &tm))
		strftime(when, sizeof(when), "%Y-%m-%d %H:%M:%S UTC", &tm);
	uuid_text(in->uuid, uuid);
	printf("machine      %u vCPU%s, %.0f MiB, has run %.3f s\n", in->vcpus,
	       in->vcpus == 1 ? "" : "s", mib(in->memory), (double)in->time_ns / 1e9);
	printf("taken        %s, on Linux %s\n", when, *in->kernel ? plain(in->kernel) : "?");
	printf("file         %.1f MiB, format %u.%u\n", mib(in->file_size), in->format_major,
	       in->format_minor);
	printf("uuid         %s\n", uuid);
	printf("RAM          %.1f MiB not zero: %.1f MiB here", mib(in->ram_used), mib(in->ram_own));
	if (in->parents)
		printf(", %.1f MiB in what it stands on", mib(in->ram_parents));
	printf("\nworking set  ");
	if (in->working_set)
		printf("%u pages\n", in->working_set);
	else
		printf("not known\n");
	printf("needs        %s\n             ", in->isa);
	if (in->vlenb)
		printf("vectors of %u bits, ", 8 * in->vlenb);
	printf("timebase of %" PRIu64 " Hz, Sv%u paging\n", in->timebase_hz, in->satp_bits);
	for (i = 0; vmm_snap_device(snap, i, &d, NULL) == 0; i++)
		printf("%-12s %s%s%s\n", i ? "" : "devices", plain(d.type),
		       strcmp(d.type, d.name) ? " " : "",
		       strcmp(d.type, d.name) ? plain(d.name) : "");
	for (i = 0; i < in->parents; i++) {
		path = strdup(vmm_snap_parent(snap, i));
		printf("%-12s %s\n", i ? "" : "stands on", path ? plain(path) : "?");
		free(path);
	}
}

enum { OPT_INFO_JSON = 1, OPT_PARENT, OPT_RINGS, OPT_SECONDS, OPT_CHILDREN, OPT_TIMES };

struct files {
	const char	*name[2];
	unsigned int	n, most;
	const char	*parent;
	int		json, rings, seconds, timing;
	uint32_t	count;
};

static error_t files_parse(int key, char *arg, struct argp_state *state)
{
	struct files *f = state->input;

	switch (key) {
	case OPT_INFO_JSON:
		f->json = 1;
		return 0;
	case OPT_PARENT:
		f->parent = arg;
		return 0;
	case OPT_RINGS:
	case OPT_SECONDS:
		*(key == OPT_RINGS ? &f->rings : &f->seconds) = atoi(arg);
		if (atoi(arg) < 1 || atoi(arg) > 1000000)
			argp_error(state, "%s: a number from 1 on", arg);
		return 0;
	case OPT_CHILDREN:
		f->count = parse_count(arg, state);
		return 0;
	case OPT_TIMES:
		f->timing = 1;
		return 0;
	case ARGP_KEY_ARG:
		if (f->n == f->most)
			argp_error(state, "what about %s?", arg);
		f->name[f->n++] = arg;
		return 0;
	case ARGP_KEY_END:
		if (f->n < f->most)
			argp_usage(state);
		return 0;
	default:
		return ARGP_ERR_UNKNOWN;
	}
}

int cmd_info(int argc, char **argv)
{
	static const struct argp_option options[] = {
		{ "json", OPT_INFO_JSON, NULL, 0, "as JSON", 0 },
		{ NULL, 0, NULL, 0, NULL, 0 }
	};
	const struct argp argp = { options, files_parse, "FILE",
		"Tell what machine is saved in FILE, and what it needs.", NULL, NULL, NULL };
	struct vmm_snap_info info = VMM_SNAP_INFO_INIT;
	struct files f = { .most = 1 };
	struct vmm_snap *snap;
	struct vmm_error err;

	argp_parse(&argp, argc, argv, 0, NULL, &f);
	if (vmm_snap_open(&snap, f.name[0], &err))
		return trouble(&err);
	if (vmm_snap_info(snap, &info, &err)) {
		vmm_snap_free(snap);
		return trouble(&err);
	}
	if (f.json)
		info_json(snap, &info, f.name[0]);
	else
		info_text(snap, &info);
	vmm_snap_free(snap);
	return 0;
}

/* ---- vmm merge, vmm learn, vmm verify ---------------------------------------- */

int cmd_merge(int argc, char **argv)
{
	const struct argp argp = { NULL, files_parse, "FROM TO",
		"Write FROM and all that it stands on as one file.", NULL, NULL, NULL };
	struct vmm_write_config how = VMM_WRITE_INIT;
	struct files f = { .most = 2 };
	struct progress progress;
	struct vmm_error err;

	argp_parse(&argp, argc, argv, 0, NULL, &f);
	want_progress(&how, &progress, -1);
	return vmm_snap_merge(f.name[0], f.name[1], &how, &err) ? trouble(&err) : 0;
}

/* Restore it, watched, until the guest has rung so often. */
static int learn(struct vmm_snap *snap, const struct files *f, uint32_t flags,
		 struct vmm_error *err)
{
	struct vmm_restore_config how = VMM_RESTORE_INIT;
	struct vmm_event ev;
	struct vmm *vm;
	int i, rc;

	how.flags = flags;
	rc = vmm_restore(&vm, snap, &how, err);
	if (rc)
		return rc;
	rc = vmm_start(vm, err);
	for (i = 0; i < f->rings && rc == 0; i++) {
		do	/* a device's trouble is its guest's */
			rc = vmm_wait(vm, f->seconds * 1000, &ev, err);
		while (rc == 0 && ev.type == VMM_EV_DEVICE);
		if (rc == 0 && ev.type != VMM_EV_DOORBELL) {
			snprintf(err->message, sizeof(err->message), "%s: %s", f->name[0],
				 ev.type == VMM_EV_NONE ? "the guest did not ring in time" :
				 *ev.detail ? ev.detail : "the guest stopped before it rang");
			rc = err->code = VMM_ETIMEDOUT;
		}
	}
	if (rc == 0)
		rc = vmm_snap_learn(snap, vm, err);
	vmm_free(vm);
	return rc;
}

int cmd_learn(int argc, char **argv)
{
	static const struct argp_option options[] = {
		{ "rings", OPT_RINGS, "N", 0, "until it has rung the doorbell N times (1)", 0 },
		{ "timeout", OPT_SECONDS, "S", 0, "give up S seconds after a ring (60)", 0 },
		{ NULL, 0, NULL, 0, NULL, 0 }
	};
	const struct argp argp = { options, files_parse, "FILE",
		"Run the machine saved in FILE until it rings the doorbell, and note in FILE what "
		"RAM it touched: restores will have that first.", NULL, NULL, NULL };
	struct vmm_snap_info info = VMM_SNAP_INFO_INIT;
	struct files f = { .most = 1, .rings = 1, .seconds = 60 };
	struct vmm_snap *snap;
	struct vmm_error err;
	int rc;

	argp_parse(&argp, argc, argv, 0, NULL, &f);
	rc = vmm_snap_open(&snap, f.name[0], &err);
	if (rc == 0) {
		rc = learn(snap, &f, VMM_RECORD, &err);
		/* Once more, at almost full speed, for what it does only then. */
		if (rc == 0)
			rc = learn(snap, &f, VMM_RECORD | VMM_POPULATE, &err);
		if (rc == 0)
			rc = vmm_snap_write(snap, f.name[0], NULL, &err);
		vmm_snap_free(snap);
	}
	if (rc == 0)
		rc = vmm_snap_open(&snap, f.name[0], &err);
	if (rc)
		return trouble(&err);
	if (vmm_snap_info(snap, &info, NULL) == 0)
		printf("%s: %u pages\n", f.name[0], info.working_set);
	vmm_snap_free(snap);
	return 0;
}

int cmd_verify(int argc, char **argv)
{
	const struct argp argp = { NULL, NULL, "FILE...", "Check every byte of each FILE.", NULL,
		NULL, NULL };
	struct vmm_error err;
	int i, code = 0;

	argp_parse(&argp, argc, argv, 0, &i, NULL);
	if (i == argc) {
		fprintf(stderr, "usage: vmm verify FILE...\n");
		return EXIT_TROUBLE;
	}
	for (; i < argc; i++) {
		if (vmm_snap_verify(argv[i], &err))
			code = trouble(&err);
		else
			printf("%s: good\n", argv[i]);
	}
	return code;
}

/* ---- The control socket: the machine's side ------------------------------------ */

static int socket_at(const char *path, struct sockaddr_un *to)
{
	int fd;

	memset(to, 0, sizeof(*to));
	to->sun_family = AF_UNIX;
	if (strlen(path) >= sizeof(to->sun_path)) {
		errno = ENAMETOOLONG;
		return -1;
	}
	strcpy(to->sun_path, path);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	return fd;
}

int control_open(const char *path)
{
	struct sockaddr_un to;
	struct stat st;
	int fd = socket_at(path, &to), rc;
	mode_t mask;

	if (fd < 0) {
		complain(strerror(errno), path);
		return -1;
	}
	/* One that nobody answers at has been left by a vmm that was killed. */
	if (lstat(path, &st) == 0 && S_ISSOCK(st.st_mode)) {
		if (connect(fd, (struct sockaddr *)&to, sizeof(to)) == 0) {
			complain("another vmm listens there", path);
			close(fd);
			return -1;
		}
		unlink(path);
	}
	mask = umask(077);
	rc = bind(fd, (struct sockaddr *)&to, sizeof(to));
	umask(mask);
	if (rc < 0 || listen(fd, 8) < 0) {
		complain(strerror(errno), path);
		close(fd);
		return -1;
	}
	return fd;
}

void control_close(int fd, const char *path)
{
	if (fd < 0)
		return;
	close(fd);
	unlink(path);
}

/* A line of at most cap - 1 bytes, without its end; -1 if none comes. */
static int read_line(int fd, char *line, size_t cap)
{
	size_t n = 0;
	ssize_t got;
	char *end;

	while (n + 1 < cap) {
		got = recv(fd, line + n, cap - 1 - n, 0);
		if (got <= 0)
			break;
		n += (size_t)got;
		line[n] = 0;
		end = strchr(line, '\n');
		if (end) {
			*end = 0;
			return 0;
		}
	}
	return -1;
}

static void answer(int fd, struct json_object *o)
{
	const char *text = json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN);
	size_t n = strlen(text), done = 0;
	ssize_t put = 0;

	for (; done < n && put >= 0; done += put > 0 ? (size_t)put : 0)
		put = send(fd, text + done, n - done, MSG_NOSIGNAL);
	if (put >= 0)
		send(fd, "\n", 1, MSG_NOSIGNAL);
	json_object_put(o);
}

/* The words of a command. */
static int obey(struct vmm *vm, struct family *family, char *line, int client,
		struct json_object **out, int *code, struct vmm_error *err)
{
	char *save, *word = strtok_r(line, "\t", &save), *path, *parent;

	if (!word)
		word = line;
	if (strcmp(word, "stat") == 0) {
		*out = stat_json(vm, err);
		return *out ? 0 : err->code;
	}
	if (strcmp(word, "pause") == 0)
		return vmm_pause(vm, err);
	if (strcmp(word, "resume") == 0) {
		if (vmm_state(vm) == VMM_PAUSED)
			return vmm_start(vm, err);
		snprintf(err->message, sizeof(err->message), "it is not paused");
		return err->code = VMM_ESTATE;
	}
	if (strcmp(word, "stop") == 0) {
		*code = 0;
		return vmm_stop(vm, err);
	}
	path = strtok_r(NULL, "\t", &save);
	parent = strtok_r(NULL, "\t", &save);
	if (strcmp(word, "fork") == 0 && path && strtoul(path, NULL, 10) - 1 < CHILDREN_MAX) {
		*out = family_fork(family, vm, (uint32_t)strtoul(path, NULL, 10), err);
		return *out ? 0 : err->code;
	}
	if (path && (strcmp(word, "snap") == 0 || strcmp(word, "snap-progress") == 0))
		return save_machine(vm, path, parent, word[4] ? client : -1, err);
	snprintf(err->message, sizeof(err->message), "no such command: %.80s", word);
	return err->code = VMM_EINVAL;
}

int control_serve(int listener, struct vmm *vm, struct family *family)
{
	const struct timeval patience = { .tv_sec = SLOW_CLIENT };
	struct json_object *o = NULL;
	struct vmm_error err = { 0 };
	char line[LINE_MAX_] = "";
	int fd, code = -1;

	fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	if (fd < 0)
		return -1;
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
	if (read_line(fd, line, sizeof(line)) == 0) {
		if (obey(vm, family, line, fd, &o, &code, &err)) {
			o = json_object_new_object();
			json_object_object_add(o, "error", json_object_new_string(err.message));
			json_object_object_add(o, "code",
					       json_object_new_string(vmm_strerror(err.code)));
		} else if (!o) {
			o = json_object_new_object();
		}
		json_object_object_add(o, "state",
				       json_object_new_string(state_names[vmm_state(vm)]));
		answer(fd, o);
	}
	close(fd);
	return code;
}

/* ---- The control socket: the other side ------------------------------------------ */

/* What is not progress, which is shown on a terminal; NULL if it ends before. */
static struct json_object *read_answer(FILE *f)
{
	struct progress progress = { -1, 101 };
	struct json_object *o = NULL, *percent;
	char *text = NULL;
	size_t cap = 0;

	while (getline(&text, &cap, f) >= 0) {
		o = json_tokener_parse(text);
		if (!json_object_object_get_ex(o, "percent", &percent))
			break;
		if (isatty(2))
			show_progress(&progress, (uint64_t)json_object_get_int64(percent), 100);
		json_object_put(o);
		o = NULL;
	}
	free(text);
	return o;
}

/* Send a line: what comes back, or NULL and has told why. */
static struct json_object *command(const char *path, const char *line)
{
	struct json_object *o = NULL, *why;
	struct sockaddr_un to;
	int fd = socket_at(path, &to);
	FILE *f;

	if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof(to)) < 0) {
		complain(strerror(errno), path);
		if (fd >= 0)
			close(fd);
		return NULL;
	}
	f = fdopen(fd, "r+");
	if (f && fprintf(f, "%s\n", line) >= 0 && fflush(f) == 0)
		o = read_answer(f);
	if (!o) {
		complain("no answer", path);
	} else if (json_object_object_get_ex(o, "error", &why)) {
		complain(json_object_get_string(why), path);
		json_object_put(o);
		o = NULL;
	}
	if (f)
		fclose(f);
	return o;
}

static int show_answer(struct json_object *o)
{
	if (o)
		printf("%s\n", json_object_to_json_string_ext(o, JSON_C_TO_STRING_PRETTY));
	json_object_put(o);
	return o ? 0 : EXIT_TROUBLE;
}

/* A path as the other process must have it, who is elsewhere. */
static int absolute(const char *path, char *out, size_t cap)
{
	char here[4096] = "";

	if (*path != '/' && !getcwd(here, sizeof(here)))
		return complain(strerror(errno), path);
	if (strpbrk(path, "\t\n") || strpbrk(here, "\t\n"))
		return complain("a path with a tab or a line in it", path);
	snprintf(out, cap, "%s%s%s", here, *here ? "/" : "", path);
	return 0;
}

int cmd_snap(int argc, char **argv)
{
	static const struct argp_option options[] = {
		{ "parent", OPT_PARENT, "FILE", 0, "store only what differs from this one", 0 },
		{ NULL, 0, NULL, 0, NULL, 0 }
	};
	const struct argp argp = { options, files_parse, "SOCKET FILE",
		"Save the machine of a vmm that runs, by its --control SOCKET.", NULL, NULL, NULL };
	char file[4096], parent[4096] = "", line[LINE_MAX_];
	struct files f = { .most = 2 };

	argp_parse(&argp, argc, argv, 0, NULL, &f);
	if (absolute(f.name[1], file, sizeof(file)) ||
	    (f.parent && absolute(f.parent, parent, sizeof(parent))))
		return EXIT_TROUBLE;
	snprintf(line, sizeof(line), "snap-progress\t%s%s%s", file, f.parent ? "\t" : "", parent);
	return show_answer(command(f.name[0], line));
}

int cmd_control(int argc, char **argv)
{
	const struct argp argp = { NULL, files_parse, "SOCKET pause|resume|stop|stat",
		"Tell a vmm that runs what to do, by its --control SOCKET.", NULL, NULL, NULL };
	struct files f = { .most = 2 };

	argp_parse(&argp, argc, argv, 0, NULL, &f);
	return show_answer(command(f.name[0], f.name[1]));
}

int cmd_fork(int argc, char **argv)
{
	static const struct argp_option options[] = {
		{ "count", OPT_CHILDREN, "N", 0, "so many (1)", 0 },
		{ "timing", OPT_TIMES, NULL, 0, "tell where the time of their starts went", 0 },
		{ "json", OPT_INFO_JSON, NULL, 0, "all of that as JSON", 0 },
		{ NULL, 0, NULL, 0, NULL, 0 }
	};
	const struct argp argp = { options, files_parse, "SOCKET",
		"Make children of the machine of a vmm that runs, by its --control SOCKET: they "
		"live in that vmm, and go on from where the machine is, which goes on, too.",
		NULL, NULL, NULL };
	struct files f = { .most = 1, .count = 1 };
	struct json_object *o;
	char line[64];

	argp_parse(&argp, argc, argv, 0, NULL, &f);
	snprintf(line, sizeof(line), "fork\t%u", f.count);
	o = command(f.name[0], line);
	if (f.json || !o)
		return show_answer(o);
	family_show(o, f.timing);
	json_object_put(o);
	return 0;
}

/* ---- Clones ------------------------------------------------------------------------ */

/* An exit code, or -1: it goes on. */
static int clone_ended(struct vmm *vm, uint32_t number, struct vmm_error *err)
{
	struct vmm_event ev;

	if (vmm_wait(vm, 0, &ev, err))
		return trouble(err);
	if (ev.type == VMM_EV_SHUTDOWN)
		return (int)(ev.value & 255);
	if (ev.type == VMM_EV_REBOOT)
		return 0;
	if (ev.type != VMM_EV_CRASH && ev.type != VMM_EV_FAULT)
		return -1;
	fprintf(stderr, "vmm: clone %u: %s\n", number, ev.detail);
	return ev.type == VMM_EV_CRASH ? EXIT_CRASH : EXIT_TROUBLE;
}

int run_clones(struct vmm **vm, uint32_t n, int sigfd)
{
	struct pollfd *p = calloc(n + 1, sizeof(*p));
	struct signalfd_siginfo si;
	uint32_t i, left = n;
	struct vmm_error err;
	int code = 0, c;

	if (!p)
		return complain(strerror(errno), "clones");
	for (i = 0; i < n; i++) {
		p[i] = (struct pollfd){ .fd = vmm_fd(vm[i]), .events = POLLIN };
		if (vmm_start(vm[i], &err)) {
			code = trouble(&err);
			goto out;
		}
	}
	p[n] = (struct pollfd){ .fd = sigfd, .events = POLLIN };
	while (left && (poll(p, n + 1, -1) >= 0 || errno == EINTR)) {
		if (p[n].revents && read(sigfd, &si, sizeof(si)) == sizeof(si)) {
			code = 128 + (int)si.ssi_signo;
			break;
		}
		for (i = 0; i < n; i++) {
			c = p[i].revents ? clone_ended(vm[i], i, &err) : -1;
			if (c < 0)
				continue;
			p[i].fd = -1;
			left--;
			code = c > code ? c : code;
		}
	}
out:
	free(p);
	return code;
}
