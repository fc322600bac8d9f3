/* SPDX-License-Identifier: MIT */
/*
 * vmm_snapinfo.c - what a snapshot tells of itself, to people and to a restore.
 *
 * Its state is named sections: "machine", which lists the devices, "cpuN", the
 * interrupt controller's, "device.NAME".  This file knows the first, and checks
 * that the others are there; what is in them is for their owners to read.
 *
 * vm_check_snap() is made before a restore touches KVM or decodes RAM.  What
 * only a vCPU of this host can tell (ISA, vector length, timer frequency ...) is
 * compared by hart_fits(), before anything is loaded.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>

#include "vmm_impl.h"

#define SNAPINFO_STEP	(2ull << 20)	/* RAM is in steps of this */
#define SNAPINFO_MAX	(1ull << 40)
#define SNAPINFO_DEVICES 64u

/* ---- Sections ---------------------------------------------------------------- */

void vm_put_machine(const struct vmm *vm, struct writer *w)
{
	const struct machine *m = &vm->m;
	const struct device *d;
	uint32_t n = 0;

	put_u32(w, m->nvcpus);
	put_u64(w, m->mem.size);
	put_u64(w, vm->time);
	put_u64(w, 0);		/* reserved */
	for (d = m->devices; d; d = d->next)
		n++;
	put_u32(w, n);
	for (d = m->devices; d; d = d->next) {
		put_str(w, d->ops->type);
		put_str(w, d->name);
		put_u64(w, d->gpa);
		put_u32(w, d->irq.line);
	}
}

int vm_get_machine(const struct vmm_snap *s, struct vm_frozen *out, struct vmm_error *err)
{
	struct reader r;
	int rc = vm_get_section(s, VM_SECTION, VM_SECTION_VERSION, &r, err);

	if (rc)
		return rc;
	out->vcpus = get_u32(&r);
	out->memory = get_u64(&r);
	out->time = get_u64(&r);
	get_u64(&r);
	out->ndevices = get_u32(&r);
	out->devices = r;
	if (r.failed || !out->vcpus || out->vcpus > VCPUS_MAX || !out->memory ||
	    out->memory % SNAPINFO_STEP || out->memory > SNAPINFO_MAX ||
	    out->memory + MEM_TAIL != s->size || out->ndevices > SNAPINFO_DEVICES)
		return fail(err, VMM_EFORMAT,
			    "state of the machine: %u vCPUs, %llu bytes of RAM, %u devices",
			    out->vcpus, (unsigned long long)out->memory, out->ndevices);
	return 0;
}

int vm_get_device(struct reader *r, struct vmm_snap_device *out, struct vmm_error *err)
{
	memset(out, 0, sizeof(*out));
	get_str(r, out->type, sizeof(out->type));
	get_str(r, out->name, sizeof(out->name));
	get_u64(r);		/* where it is follows from the list's order */
	get_u32(r);
	return r->failed ? fail(err, VMM_EFORMAT, "state of the machine: too short") : 0;
}

static const struct snap_section *find_section(const struct vmm_snap *s, const char *name)
{
	uint32_t i;

	for (i = 0; i < s->nsections; i++)
		if (strcmp(s->sections[i].name, name) == 0)
			return &s->sections[i];
	return NULL;
}

int vm_get_section(const struct vmm_snap *s, const char *name, uint16_t version,
		   struct reader *r, struct vmm_error *err)
{
	const struct snap_section *p = find_section(s, name);

	if (!p)
		return fail(err, VMM_EFORMAT, "the snapshot has no state of %s", name);
	if (p->version > version)
		return fail(err, VMM_EVERSION,
			    "the snapshot's %s is of version %u, this library reads %u", name,
			    p->version, version);
	*r = (struct reader){ p->data, p->len, 0 };
	return 0;
}

int vm_get_hart(const struct vmm_snap *s, uint32_t i, struct hart_config *c, struct reader *r,
		struct vmm_error *err)
{
	char name[16];
	int rc;

	snprintf(name, sizeof(name), "cpu%u", i);
	rc = vm_get_section(s, name, HART_VERSION, r, err);
	return rc ? rc : hart_begin(r, c, err);
}

/* ---- Checks -------------------------------------------------------------------- */

/* The names of the sections that a machine is restored from. */
struct snapinfo_names {
	uint32_t	vcpus, ndevices;
	char		device[SNAPINFO_DEVICES][SNAP_NAME_MAX];
};

static int snapinfo_known(void *arg, const struct snap_section *s)
{
	const struct snapinfo_names *n = arg;
	char cpu[16];
	uint32_t i;

	if (strcmp(s->name, VM_SECTION) == 0 || strcmp(s->name, "aia") == 0)
		return 1;
	for (i = 0; i < n->vcpus; i++) {
		snprintf(cpu, sizeof(cpu), "cpu%u", i);
		if (strcmp(s->name, cpu) == 0)
			return 1;
	}
	for (i = 0; i < n->ndevices; i++)
		if (strcmp(s->name, n->device[i]) == 0)
			return 1;
	return 0;
}

int vm_check_snap(const struct vmm_snap *s, struct vmm_error *err)
{
	struct snapinfo_names *names;
	struct vmm_snap_device d;
	struct hart_config c;
	struct vm_frozen f;
	struct reader r;
	uint32_t i;
	int rc;

	rc = vm_get_machine(s, &f, err);
	if (rc)
		return rc;
	names = calloc(1, sizeof(*names));
	if (!names)
		return fail(err, VMM_ENOMEM, "a snapshot");
	names->vcpus = f.vcpus;
	for (i = 0; i < f.vcpus && rc == 0; i++)
		rc = vm_get_hart(s, i, &c, &r, err);
	for (i = 0; i < f.ndevices && rc == 0; i++) {
		rc = vm_get_device(&f.devices, &d, err);
		snprintf(names->device[i], sizeof(names->device[i]), "device.%s", d.name);
		if (rc == 0)
			rc = vm_get_section(s, names->device[i], UINT16_MAX, &r, err);
		names->ndevices++;
	}
	if (rc == 0)
		rc = reader_end(&f.devices, "the machine", err);
	if (rc == 0 && s->file)
		rc = snapfile_understood(s->file, snapinfo_known, names, err);
	free(names);
	return rc;
}

/* ---- For people and tools -------------------------------------------------------- */

char *vm_about_snap(const struct vmm_snap *s)
{
	struct hart_config c;
	struct utsname u;
	struct reader r;
	char isa[1024], *about;

	if (s->file)
		return strdup(s->file->about);
	if (uname(&u) < 0 || vm_get_hart(s, 0, &c, &r, NULL))
		return NULL;
	isa_string(&c.isa, isa, sizeof(isa));
	if (asprintf(&about, "created-by=libvmm %d.%d.%d\nhost.kernel=%s\nhost.isa=%s\n",
		     VMM_VERSION_MAJOR, VMM_VERSION_MINOR, VMM_VERSION_PATCH, u.release, isa) < 0)
		return NULL;
	return about;
}

/* The value of a key of the "about" lines. */
static void snapinfo_value(const char *about, const char *key, char *out, size_t cap)
{
	size_t n = strlen(key);
	const char *p;

	for (p = about; p; p = strchr(p, '\n') ? strchr(p, '\n') + 1 : NULL) {
		if (strncmp(p, key, n) != 0 || p[n] != '=')
			continue;
		snprintf(out, cap, "%.*s", (int)strcspn(p + n + 1, "\n"), p + n + 1);
		return;
	}
}

static int snapinfo_file(const struct snapfile *f, struct vmm_snap_info *o, struct vmm_error *err)
{
	struct snap_counts n;
	int rc = snapfile_count(f, &n, err);

	if (rc)
		return rc;
	o->parents = f->nlayers;
	o->created = f->header->created;
	o->file_size = f->size;
	o->ram_used = n.ram_pages * SNAP_PAGE;
	o->ram_own = n.own_bytes;
	o->ram_parents = n.layer_bytes;
	o->working_set = f->ws.npages;
	o->format_major = f->header->major;
	o->format_minor = f->header->minor;
	snapinfo_value(f->about, "host.kernel", o->kernel, sizeof(o->kernel));
	return 0;
}

/* The file says how many, and how many there are in a second: either may be anything. */
static uint64_t ticks_ns(uint64_t ticks, uint64_t hz)
{
	unsigned __int128 ns = hz ? (unsigned __int128)ticks * 1000000000u / hz : 0;

	return ns > UINT64_MAX ? UINT64_MAX : (uint64_t)ns;
}

int vmm_snap_info(const struct vmm_snap *s, struct vmm_snap_info *out, struct vmm_error *err)
{
	struct vmm_snap_info o;
	struct hart_config c;
	struct vm_frozen f;
	struct reader r;
	int rc;

	rc = vm_import(&o, sizeof(o), out, "struct vmm_snap_info", err);
	if (rc)
		return rc;
	memset(&o, 0, sizeof(o));
	vm_export(out, &o, sizeof(o));
	if (!s)
		return fail(err, VMM_EINVAL, "no snapshot");
	rc = vm_get_machine(s, &f, err);
	if (rc == 0)
		rc = vm_get_hart(s, 0, &c, &r, err);
	if (rc == 0 && s->file)
		rc = snapinfo_file(s->file, &o, err);
	if (rc)
		return rc;
	o.vcpus = f.vcpus;
	o.memory = f.memory;
	o.time_ns = ticks_ns(f.time, c.hz);
	o.devices = f.ndevices;
	o.vlenb = (uint32_t)c.vlenb;
	o.timebase_hz = c.hz;
	o.satp_bits = c.satp >= 10 ? 57 : c.satp == 9 ? 48 : 39;
	memcpy(o.uuid, s->uuid, sizeof(o.uuid));
	isa_string(&c.isa, o.isa, sizeof(o.isa));
	vm_export(out, &o, sizeof(o));
	return 0;
}

int vmm_snap_device(const struct vmm_snap *s, uint32_t i, struct vmm_snap_device *out,
		    struct vmm_error *err)
{
	struct vm_frozen f;
	uint32_t k;
	int rc;

	if (out)
		memset(out, 0, sizeof(*out));
	if (!s || !out)
		return fail(err, VMM_EINVAL, s ? "nowhere to put the device" : "no snapshot");
	rc = vm_get_machine(s, &f, err);
	if (rc == 0 && i >= f.ndevices)
		rc = fail(err, VMM_EINVAL, "device %u of %u", i, f.ndevices);
	for (k = 0; k <= i && rc == 0; k++)
		rc = vm_get_device(&f.devices, out, err);
	return rc;
}

const char *vmm_snap_parent(const struct vmm_snap *s, uint32_t i)
{
	return s && s->file && i < s->file->nlayers ? s->file->layers[i].real : NULL;
}

int vmm_snap_merge(const char *from, const char *to, const struct vmm_write_config *config,
		   struct vmm_error *err)
{
	struct vmm_write_config c = VMM_WRITE_INIT;
	struct snap_how how = { 0 };
	struct snapfile *f;
	int rc;

	if (!from || !to)
		return fail(err, VMM_EINVAL, from ? "nowhere to write the snapshot" :
			    "no path of a snapshot");
	rc = config ? vm_import(&c, sizeof(c), config, "struct vmm_write_config", err) : 0;
	if (rc == 0 && (c.flags || c.parent))
		rc = fail(err, VMM_EINVAL, "a merged snapshot has no parent and no flags");
	if (rc == 0)
		rc = snapfile_open(&f, from, 0, err);
	if (rc)
		return rc;
	how.progress = c.progress;
	how.arg = c.progress_arg;
	rc = snapfile_merge(f, to, &how, err);
	snapfile_close(f);
	return rc;
}
