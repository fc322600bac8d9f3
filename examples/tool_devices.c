/* SPDX-License-Identifier: MIT */
/*
 * tool_devices.c - the devices of the vmm command's machines: what the options
 * say of them, and adding them.
 *
 * An option of a device is a path or the like, and words behind commas.
 */
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tool.h"

/* ---- Options ------------------------------------------------------------- */

uint64_t parse_size(const char *arg, struct argp_state *state)
{
	const char units[] = "KMGT";
	const char *unit;
	unsigned int shift = 0;
	uint64_t n;
	char *end;

	errno = 0;
	n = strtoull(arg, &end, 0);
	unit = *end ? strchr(units, toupper((unsigned char)*end)) : NULL;
	if (unit) {
		shift = 10 * (unsigned int)(unit - units + 1);
		end++;
	}
	if (errno || end == arg || *end || *arg == '-' || n > UINT64_MAX >> shift)
		argp_error(state, "not a size: %s", arg);
	return n << shift;
}

uint32_t parse_count(const char *arg, struct argp_state *state)
{
	char *end;
	unsigned long n;

	errno = 0;
	n = strtoul(arg, &end, 10);
	if (errno || end == arg || *end || *arg == '-' || !n || n > 1u << 30)
		argp_error(state, "not a count: %s", arg);
	return (uint32_t)n;
}

/* The next word behind a comma, as its number in words, or -1 at the end; *value is
   what is behind its '=', "" if nothing.  A word that wants a value ends in '='. */
static int next_word(char **save, const char *const *words, char **value,
		     struct argp_state *state)
{
	char *word = strtok_r(NULL, ",", save);
	size_t n;
	int i;

	for (i = 0; word && words[i]; i++) {
		n = strlen(words[i]);
		if (words[i][n - 1] == '=' ? strncmp(word, words[i], n) : strcmp(word, words[i]))
			continue;
		*value = word + n;
		return i;
	}
	if (word)
		argp_error(state, "not an option of this: %s", word);
	return -1;
}

/* "PATH,ro,overlay", or of a restored machine "NAME=PATH,..." */
static void parse_disk(struct devices *all, char *arg, int restored, struct argp_state *state)
{
	enum { RO, OVERLAY, DIRECT, NOSYNC, QUEUES, BYTES, OPS };
	static char names[DISKS_MAX][8];
	static const char *const words[] = { "ro", "overlay", "direct", "nosync", "queues=",
					     "bytes=", "ops=", NULL };
	static const uint32_t flags[] = { VMM_READONLY, VMM_OVERLAY, VMM_DIRECT, VMM_NOSYNC };
	struct disk *d = &all->disk[all->ndisks];
	char *save, *value, *equals;
	int word;

	if (all->ndisks == DISKS_MAX)
		argp_error(state, "more than %d disks", DISKS_MAX);
	snprintf(names[all->ndisks], sizeof(names[0]), "disk%u", all->ndisks);
	d->name = names[all->ndisks++];
	d->path = strtok_r(arg, ",", &save);
	if (!d->path)
		argp_error(state, "a disk without a path");
	equals = restored ? strchr(d->path, '=') : NULL;
	if (equals) {
		*equals = 0;
		d->name = d->path;
		d->path = equals + 1;
	}
	while ((word = next_word(&save, words, &value, state)) >= 0) {
		switch (word) {
		case QUEUES:
			d->queues = parse_count(value, state);
			break;
		case BYTES:
			d->bytes = parse_size(value, state);
			break;
		case OPS:
			d->ops = parse_count(value, state);
			break;
		default:
			d->flags |= flags[word];
			break;
		}
	}
}

static void parse_mac(struct net *n, const char *arg, struct argp_state *state)
{
	unsigned int b[6];
	char end;
	int i;

	if (sscanf(arg, "%2x:%2x:%2x:%2x:%2x:%2x%c", &b[0], &b[1], &b[2], &b[3], &b[4], &b[5],
		   &end) != 6)
		argp_error(state, "not a MAC address: %s", arg);
	for (i = 0; i < 6; i++)
		n->mac[i] = (uint8_t)b[i];
	n->has_mac = 1;
}

/* "user,tcp=2222:22", "tap=tap0", "fd=3" */
static void parse_net(struct devices *all, char *arg, struct argp_state *state)
{
	enum { MAC, TCP, UDP, BYTES, OPS };
	static const char *const words[] = { "mac=", "tcp=", "udp=", "bytes=", "ops=", NULL };
	struct net *n = &all->net[all->nnets];
	char *kind, *save, *value;
	int word;

	if (all->nnets == NETS_MAX)
		argp_error(state, "more than %d network cards", NETS_MAX);
	snprintf(n->name, sizeof(n->name), "net%u", all->nnets++);
	n->fd = -1;
	kind = strtok_r(arg, ",", &save);
	if (kind && strncmp(kind, "tap=", 4) == 0 && kind[4])
		n->tap = kind + 4;
	else if (kind && strncmp(kind, "fd=", 3) == 0)
		n->fd = (int)parse_count(kind + 3, state);
	else if (!kind || strcmp(kind, "user") != 0)
		argp_error(state, "not user, tap=NAME or fd=N: %s", arg);
	while ((word = next_word(&save, words, &value, state)) >= 0) {
		switch (word) {
		case MAC:
			parse_mac(n, value, state);
			break;
		case TCP:
			n->tcp = value;
			break;
		case UDP:
			n->udp = value;
			break;
		case BYTES:
			n->bytes = parse_size(value, state);
			break;
		default:
			n->ops = parse_count(value, state);
			break;
		}
	}
	if ((n->tcp || n->udp) && (n->tap || n->fd >= 0))
		argp_error(state, "tcp= and udp= are options of user");
}

static void parse_vsock(struct devices *all, char *arg, struct argp_state *state)
{
	static const char *const words[] = { "uds=", NULL };
	char *save, *value, *cid = strtok_r(arg, ",", &save);

	all->cid = parse_count(cid ? cid : "", state);
	while (next_word(&save, words, &value, state) >= 0)
		all->uds = value;
}

static void parse_share(struct devices *all, char *arg, struct argp_state *state)
{
	enum { TAG, SANDBOX, RO };
	static const char *const words[] = { "tag=", "sandbox=", "ro", NULL };
	struct share *s = &all->share[all->nshares];
	char *save, *value;
	int word;

	if (all->nshares++ == SHARES_MAX)
		argp_error(state, "more than %d shared directories", SHARES_MAX);
	s->dir = strtok_r(arg, ",", &save);
	s->tag = "share";
	if (!s->dir)
		argp_error(state, "a shared directory without a path");
	while ((word = next_word(&save, words, &value, state)) >= 0) {
		if (word == TAG)
			s->tag = value;
		else if (word == SANDBOX)
			s->sandbox = value;
		else
			s->readonly = 1;
	}
}

error_t devices_option(struct devices *all, int key, char *arg, int restored,
		       struct argp_state *state)
{
	switch (key) {
	case OPT_DISK:
		parse_disk(all, arg, restored, state);
		break;
	case OPT_NET:
		parse_net(all, arg, state);
		break;
	case OPT_VSOCK:
		parse_vsock(all, arg, state);
		break;
	case OPT_SHARE:
		parse_share(all, arg, state);
		break;
	case OPT_RNG:
		all->rng = 1;
		break;
	case OPT_BALLOON:
		all->balloon = 1;
		break;
	case OPT_CONSOLE:
		all->console = 1;
		break;
	default:
		return ARGP_ERR_UNKNOWN;
	}
	return 0;
}

/* ---- Adding --------------------------------------------------------------- */

static int add_disk(struct vmm *vm, const struct disk *d, struct vmm_error *err)
{
	int rc = vmm_add_blk(vm, d->name, d->path, d->flags, err);

	if (rc == 0 && d->queues)
		rc = vmm_set_queues(vm, d->name, d->queues, err);
	if (rc == 0 && (d->bytes || d->ops))
		rc = vmm_limit(vm, d->name, d->bytes, d->ops, err);
	return rc ? trouble(err) : 0;
}

static int add_net(struct vmm *vm, const struct net *n, struct vmm_error *err)
{
	int fd = n->fd >= 0 ? n->fd : n->tap ? back_tap(n->tap) : back_passt(n->tcp, n->udp), rc;

	if (fd < 0)
		return EXIT_TROUBLE;
	rc = vmm_add_net(vm, n->name, fd, n->has_mac ? n->mac : NULL, err);
	close(fd);
	if (rc == 0 && (n->bytes || n->ops))
		rc = vmm_limit(vm, n->name, n->bytes, n->ops, err);
	return rc ? trouble(err) : 0;
}

static int add_share(struct vmm *vm, const struct share *s, struct vmm_error *err)
{
	int fd = back_virtiofsd(s->dir, s->readonly, s->sandbox), rc;

	if (fd < 0)
		return EXIT_TROUBLE;
	rc = vmm_add_fs(vm, s->tag, fd, err);
	close(fd);
	return rc ? trouble(err) : 0;
}

int devices_add(struct vmm *vm, const struct devices *all, int in, struct vmm_error *err)
{
	uint32_t i;
	int code = 0;

	if (all->console ? vmm_add_console(vm, "console", in, 1, err)
			 : vmm_add_serial(vm, in, 1, err))
		return trouble(err);
	for (i = 0; i < all->ndisks && !code; i++)
		code = add_disk(vm, &all->disk[i], err);
	for (i = 0; i < all->nnets && !code; i++)
		code = add_net(vm, &all->net[i], err);
	for (i = 0; i < all->nshares && !code; i++)
		code = add_share(vm, &all->share[i], err);
	if (!code && ((all->cid && vmm_add_vsock(vm, all->cid, err)) ||
		      (all->rng && vmm_add_rng(vm, "rng", err)) ||
		      (all->balloon && vmm_add_balloon(vm, "balloon", err))))
		code = trouble(err);
	return code;
}

void devices_saved(struct devices *all, const struct vmm_snap *snap)
{
	struct vmm_snap_device d;
	int serial = 0, console = 0;
	uint32_t i;

	for (i = 0; vmm_snap_device(snap, i, &d, NULL) == 0; i++) {
		serial |= strcmp(d.name, "serial") == 0;
		console |= strcmp(d.name, "console") == 0;
	}
	all->console |= console && !serial;
}

int devices_shared(const struct devices *all, const struct vmm_snap *snap, const char *what, char *why,
		   size_t cap)
{
	struct vmm_snap_device d;
	uint32_t i, k;

	for (i = 0; vmm_snap_device(snap, i, &d, NULL) == 0; i++) {
		if (strcmp(d.type, "blk") != 0)
			continue;
		for (k = 0; k < all->ndisks; k++)
			if (strcmp(all->disk[k].name, d.name) == 0 &&
			    all->disk[k].flags & (VMM_READONLY | VMM_OVERLAY))
				break;
		if (k < all->ndisks)
			continue;
		snprintf(why, cap, "%s the disk %s: give it with ro or overlay, by --disk", what,
			 d.name);
		return 1;
	}
	return 0;
}
