/* SPDX-License-Identifier: MIT */
/*
 * vmm_snap.c - the public functions of snapshots, and restoring machines.
 *
 * What belongs to the state of a machine, section by section, is here; what a
 * section holds is its owner's business (riscv/hart.c, device_ops.save), and
 * how sections and RAM lie in a file is snapshot/'s.
 *
 * RAM of a snapshot is a sealed memfd, of which machines are private views.  The
 * snapshot of such a machine shares that memfd, and keeps the pages that were
 * written since: taking it costs what the machine has changed.  If those are few,
 * its clones are views of the same memfd, too, with those pages laid over it; else,
 * or if it is to differ from some other file, the whole is put together.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "core/thread.h"
#include "riscv/host.h"
#include "riscv/map.h"
#include "riscv/platform.h"
#include "riscv/touch.h"
#include "virtio/devices.h"
#include "vmm_impl.h"

/* So many pages, or an eighth of RAM, are laid over another snapshot's RAM in each
   clone, which takes some us a page; more are put together with it once for all. */
#define LIGHT_PAGES	4096u

static struct vmm_snap *new_snap(struct vmm_error *err)
{
	struct vmm_snap *s = calloc(1, sizeof(*s));

	if (!s) {
		fail(err, VMM_ENOMEM, "a snapshot");
		return NULL;
	}
	pthread_mutex_init(&s->lock, NULL);
	stock_init(&s->stock);
	s->refs = 1;
	s->whole.fd = s->delta = s->kvm = -1;
	return s;
}

static struct vmm_snap *keep_snap(struct vmm_snap *s)
{
	pthread_mutex_lock(&s->lock);
	s->refs++;
	pthread_mutex_unlock(&s->lock);
	return s;
}

void vmm_snap_free(struct vmm_snap *s)
{
	uint32_t i, refs;

	if (!s)
		return;
	pthread_mutex_lock(&s->lock);
	refs = --s->refs;
	pthread_mutex_unlock(&s->lock);
	if (refs)
		return;
	for (i = 0; i < s->nsections && !s->file; i++) {
		free((char *)(uintptr_t)s->sections[i].name);
		free((void *)(uintptr_t)s->sections[i].data);
	}
	if (!s->file)
		free(s->sections);
	if (s->source)
		mem_source_fini(s->source, s->size - MEM_TAIL);
	snap_lazy_free(s->lazy);
	snapfile_close(s->file);
	if (s->whole.fd >= 0)
		close(s->whole.fd);
	free(s->zero);
	if (s->delta >= 0)
		close(s->delta);
	stock_fini(&s->stock);
	if (s->kvm >= 0)
		close(s->kvm);
	vmm_snap_free(s->base);
	free(s->own);
	free(s->ws);
	free(s->warm);
	pthread_mutex_destroy(&s->lock);
	free(s);
}

/* Add a section; what w has written becomes the snapshot's. */
static int add_section(struct vmm_snap *s, const char *name, uint16_t version, struct writer *w,
		       struct vmm_error *err)
{
	struct snap_section *p = &s->sections[s->nsections];

	p->name = strdup(name);
	if (!p->name || w->failed) {
		free((char *)(uintptr_t)p->name);
		free(w->data);
		return fail(err, VMM_ENOMEM, "state of %s", name);
	}
	p->version = version;
	p->flags = SNAP_MUST_UNDERSTAND;
	p->data = w->data;
	p->len = w->len;
	s->nsections++;
	return 0;
}

static int save_state(struct vmm *vm, struct vmm_snap *s, struct vmm_error *err)
{
	struct machine *m = &vm->m;
	const struct device *d;
	char name[64];
	uint32_t i, n = 2 + m->nvcpus;
	struct writer w = { NULL, 0, 0, 0 };
	int rc;

	for (d = m->devices; d; d = d->next, n++)
		if (!d->ops->save)
			return fail(err, VMM_ENOTSUP, "machine %s cannot be saved: what serves %s is "
				    "another process", m->name, d->name);
	s->sections = calloc(n, sizeof(*s->sections));
	if (!s->sections)
		return fail(err, VMM_ENOMEM, "a snapshot");
	vm_put_machine(vm, &w);
	rc = add_section(s, VM_SECTION, VM_SECTION_VERSION, &w, err);
	for (i = 0; i < m->nvcpus && rc == 0; i++) {
		snprintf(name, sizeof(name), "cpu%u", i);
		memset(&w, 0, sizeof(w));
		rc = hart_save(&m->vcpu[i], &w, err);
		if (rc)
			free(w.data);
		else
			rc = add_section(s, name, HART_VERSION, &w, err);
	}
	if (rc)
		return rc;
	memset(&w, 0, sizeof(w));
	rc = m->irqchip->ops->save(m->irqchip, &w, err);
	if (rc)
		free(w.data);
	else
		rc = add_section(s, m->irqchip->ops->name, m->irqchip->ops->version, &w, err);
	for (d = m->devices; d && rc == 0; d = d->next) {
		snprintf(name, sizeof(name), "device.%s", d->name);
		memset(&w, 0, sizeof(w));
		d->ops->save(d, &w);
		rc = add_section(s, name, d->ops->version, &w, err);
	}
	return rc;
}

/* fd, a sealed memfd which s owns now, is RAM of s.  If that fails it is closed. */
static int set_source(struct vmm_snap *s, int fd, struct vmm_error *err)
{
	int rc = mem_holes(fd, s->size - MEM_TAIL, &s->zero, &s->whole.nzero, err);

	if (rc) {
		close(fd);
		return rc;
	}
	s->whole.fd = fd;
	s->whole.zero = s->zero;
	s->source = &s->whole;
	return 0;
}

/* The snapshot whose RAM machines of s are views of. */
static struct vmm_snap *below(struct vmm_snap *s)
{
	return s->light ? s->base : s;
}

/* RAM of vm, which is PAUSED: all of it, or what it has changed. */
static int save_ram(struct vmm *vm, struct vmm_snap *s, struct vmm_error *err)
{
	uint64_t pages = 0, i;
	sigset_t before;
	int fd, rc;

	thread_hold(&before);
	rc = mem_copy_own(&vm->m.mem, &fd, &s->own, err);
	thread_release(&before, rc);
	if (rc)
		return rc;
	if (!s->own)
		return set_source(s, fd, err);
	for (i = 0; i <= s->size / SNAP_PAGE / 64; i++)
		pages += (uint64_t)__builtin_popcountll(s->own[i]);
	s->delta = fd;
	s->base = keep_snap(vm->trace ? vm->snap : below(vm->snap));
	s->light = pages <= LIGHT_PAGES && pages <= s->size / SNAP_PAGE / 8 && !s->base->light;
	memcpy(s->base_uuid, s->base->uuid, sizeof(s->base_uuid));
	return 0;
}

int vmm_snap_take(struct vmm_snap **out, struct vmm *vm, struct vmm_error *err)
{
	struct vmm_snap *s;
	int rc;

	if (!out)
		return fail(err, VMM_EINVAL, "nowhere to put the snapshot");
	*out = NULL;
	rc = vm_enter(vm, err);
	if (rc)
		return rc;
	rc = vm_expect(vm, 1u << VMM_PAUSED, "take a snapshot of", err);
	if (rc)
		return vm_leave(vm, rc);
	s = new_snap(err);
	if (!s)
		return vm_leave(vm, VMM_ENOMEM);
	s->size = vm->m.mem.size + MEM_TAIL;
	rc = getrandom(s->uuid, sizeof(s->uuid), 0) == sizeof(s->uuid) ? 0 :
	     fail(err, VMM_ESYS, "no random numbers for a snapshot");
	if (rc == 0)
		rc = save_state(vm, s, err);
	if (rc == 0)
		rc = save_ram(vm, s, err);
	if (rc)
		vmm_snap_free(s);
	else
		*out = s;
	return vm_leave(vm, rc);
}

static int fill_snap(struct vmm_snap *s, uint32_t threads, const struct log *log,
		     struct vmm_error *err);

/* RAM of a snapshot that was taken of a clone, as that clone saw it.  Called with
   s->lock held. */
static int map_snap(struct vmm_snap *s, struct mem *view, uint32_t threads, struct vmm_error *err)
{
	int rc = fill_snap(s->base, threads, NULL, err);

	if (rc == 0)
		rc = mem_init_private(view, MAP_RAM, s->size - MEM_TAIL, s->base->source, err);
	if (rc)
		return rc;
	rc = mem_apply(view, s->delta, s->own, err);
	if (rc)
		mem_fini(view);
	return rc;
}

/* It is whole: its base is not needed any more.  Called with s->lock held. */
static void drop_base(struct vmm_snap *s)
{
	if (s->delta >= 0)
		close(s->delta);
	s->delta = -1;
	vmm_snap_free(s->base);
	s->base = NULL;
}

/* It is to be whole: put it together. */
static int fill_whole(struct vmm_snap *s, uint32_t threads, struct vmm_error *err)
{
	struct mem view;
	int fd, rc;

	rc = map_snap(s, &view, threads, err);
	if (rc)
		return rc;
	rc = mem_copy(&view, &fd, err);
	mem_fini(&view);
	if (rc == 0)
		rc = set_source(s, fd, err);
	/* Machines may be views of it. */
	if (rc == 0 && !s->light)
		drop_base(s);
	return rc;
}

static int fill_now(struct vmm_snap *s, uint32_t threads, struct vmm_error *err)
{
	int fd, rc;

	fd = memfd_create("vmm-snap", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (fd < 0 || ftruncate(fd, (off_t)s->size) < 0)
		rc = fail_sys(err, errno, "memory for %llu MiB of snapshot",
			      (unsigned long long)(s->size >> 20));
	else
		rc = snapfile_fill(s->file, fd, NULL, threads, err);
	if (rc) {
		if (fd >= 0)
			close(fd);
		return rc;
	}
	mem_seal(fd);
	return set_source(s, fd, err);
}

static int fill_lazily(struct vmm_snap *s, uint32_t threads, const struct log *log,
		       struct vmm_error *err)
{
	int rc = snap_lazy_new(&s->lazy, s->file, s->size, threads, err);

	if (rc == 0)
		s->source = snap_lazy_source(s->lazy);
	if (rc != VMM_ENOTSUP)
		return rc;
	log_line(log, VMM_LOG_WARN, "RAM is decoded before the start (%s)", err->message);
	return fill_now(s, threads, err);
}

/* RAM of s, in memory: put together or read from its file if need be, that all of
   it or (log: of who asks) as it is touched. */
static int fill_snap(struct vmm_snap *s, uint32_t threads, const struct log *log,
		     struct vmm_error *err)
{
	struct vmm_error why;
	sigset_t before;
	int rc = 0;

	pthread_mutex_lock(&s->lock);
	if (s->source && (!s->lazy || log)) {
		pthread_mutex_unlock(&s->lock);
		return 0;
	}
	thread_hold(&before);
	if (s->source)
		rc = snap_lazy_finish(s->lazy, err);
	else if (s->base)
		rc = fill_whole(s, threads, err);
	else
		rc = log ? fill_lazily(s, threads, log, err ? err : &why)
			 : fill_now(s, threads, err);
	thread_release(&before, rc);
	pthread_mutex_unlock(&s->lock);
	return rc;
}

/* What the file layer is to write, and where from. */
struct snap_job {
	struct snap_image image;
	struct snap_how	how;
	struct snap_region region;
	struct snapfile	*parent;	/* this and the rest: ours, or NULL */
	struct vmm_snap	*base;		/* whose RAM is at image.ram.base */
	struct mem	view;
};

static void end_job(struct snap_job *j)
{
	snapfile_close(j->parent);
	mem_fini(&j->view);
	if (j->image.ram.base)
		munmap((void *)(uintptr_t)j->image.ram.base, j->image.ram.size);
	vmm_snap_free(j->base);
	free((char *)(uintptr_t)j->image.about);
	free((uint64_t *)(uintptr_t)j->image.ws);
}

/* The working set as it is now, since s may be taught another meanwhile; *learned: it is
   not the file's. */
static int job_ws(struct snap_job *j, struct vmm_snap *s, int *learned, struct vmm_error *err)
{
	uint64_t *ws;

	pthread_mutex_lock(&s->lock);
	*learned = s->learned;
	ws = malloc(((size_t)s->nws + 1) * sizeof(*ws));
	if (ws && s->nws)
		memcpy(ws, s->ws, s->nws * sizeof(*ws));
	j->image.ws = ws;
	j->image.nws = ws ? s->nws : 0;
	pthread_mutex_unlock(&s->lock);
	return ws ? 0 : fail(err, VMM_ENOMEM, "a working set");
}

/* A file is not to stand on itself, nor in the place of what it stands on. */
static int check_parent(const struct snapfile *parent, const char *path, struct vmm_error *err)
{
	struct stat to, from;
	uint32_t i;
	int fd;

	if (!path || stat(path, &to) < 0)
		return 0;
	for (i = 0; i <= parent->nlayers; i++) {
		fd = i ? parent->layers[i - 1].fd : parent->fd;
		if (fd >= 0 && fstat(fd, &from) == 0 && from.st_dev == to.st_dev &&
		    from.st_ino == to.st_ino)
			return fail(err, VMM_EINVAL, "%s: a snapshot cannot replace what it stands on",
				    path);
	}
	return 0;
}

/* The RAM of a clone's snapshot: what the clone was made of, with its own pages
   laid over it, which are all that has to be looked at. */
static int job_view(struct snap_job *j, struct vmm_snap *s, struct vmm_error *err)
{
	struct snap_ram *ram = &j->image.ram;
	int rc = map_snap(s, &j->view, j->how.threads, err);

	if (rc)
		return rc;
	j->base = keep_snap(s->base);
	ram->fd = s->base->source->fd;
	ram->map = j->view.hva;
	ram->dirty = s->own;
	/* Private: Linux before 6.7 maps no sealed file shared, be it to read only. */
	ram->base = mmap(NULL, s->size, PROT_READ, MAP_PRIVATE, ram->fd, 0);
	if (ram->base != MAP_FAILED)
		return 0;
	ram->base = NULL;
	return fail_sys(err, errno, "mapping %llu MiB of snapshot",
			(unsigned long long)(s->size >> 20));
}

/* Which RAM the job writes, and where it may differ from the parent's. */
static int job_ram(struct snap_job *j, struct vmm_snap *s, struct vmm_error *err)
{
	struct snap_ram *ram = &j->image.ram;
	int rc = 0, related;

	ram->size = s->size;
	related = s->own && (!j->parent || !memcmp(j->parent->header->uuid, s->base_uuid, 16));
	pthread_mutex_lock(&s->lock);
	if (related && s->base)
		rc = job_view(j, s, err);
	pthread_mutex_unlock(&s->lock);
	if (ram->map || rc)
		return rc;
	rc = fill_snap(s, j->how.threads, NULL, err);
	if (rc)
		return rc;
	ram->fd = s->source->fd;
	if (related && j->parent)
		ram->dirty = s->own;
	return 0;
}

static int write_snap(struct vmm_snap *s, const char *path, int fd,
		      const struct vmm_write_config *config, struct vmm_error *err)
{
	struct vmm_write_config c = VMM_WRITE_INIT;
	struct snap_job j = { .image = { .nregions = 1 } };
	int rc, learned = 0;

	if (!s)
		return fail(err, VMM_EINVAL, "no snapshot");
	if (!path && fd < 0)
		return fail(err, VMM_EINVAL, "nowhere to write the snapshot");
	rc = config ? vm_import(&c, sizeof(c), config, "struct vmm_write_config", err) : 0;
	if (rc == 0 && c.flags)
		rc = fail(err, VMM_EINVAL, "unknown flags 0x%x", c.flags);
	if (rc == 0 && c.parent)
		rc = snapfile_open(&j.parent, c.parent, 0, err);
	if (rc == 0 && j.parent)
		rc = check_parent(j.parent, path, err);
	j.how = (struct snap_how){ c.level, c.threads, j.parent, c.progress, c.progress_arg };
	if (rc == 0)
		rc = job_ws(&j, s, &learned, err);
	/* The same file with another working set: frames are copied. */
	if (rc == 0 && path && learned && s->file && !s->file->nlayers && !c.parent && !c.level) {
		rc = snapfile_learn(s->file, path, j.image.ws, j.image.nws, err);
		end_job(&j);
		return rc;
	}
	if (rc == 0)
		rc = job_ram(&j, s, err);
	if (rc == 0) {
		j.region = (struct snap_region){ .gpa = MAP_RAM, .size = s->size };
		j.image.regions = &j.region;
		memcpy(j.image.uuid, s->uuid, sizeof(s->uuid));
		j.image.created = (uint64_t)time(NULL);
		j.image.about = vm_about_snap(s);
		j.image.sections = s->sections;
		j.image.nsections = s->nsections;
		rc = path ? snapfile_write(path, &j.image, &j.how, err)
			  : snapfile_send(fd, &j.image, &j.how, err);
	}
	end_job(&j);
	return rc;
}

int vmm_snap_write(struct vmm_snap *snap, const char *path, const struct vmm_write_config *how,
		   struct vmm_error *err)
{
	return write_snap(snap, path, -1, how, err);
}

int vmm_snap_send(struct vmm_snap *snap, int fd, const struct vmm_write_config *how,
		  struct vmm_error *err)
{
	return write_snap(snap, NULL, fd, how, err);
}

/* Runs of pages that are to be mapped alike; what is zero and only read costs
   nothing until it is read. */
static void find_warm(struct vmm_snap *s)
{
	struct mem_warm *w = NULL;
	uint64_t off;
	uint32_t i;
	int write;

	s->nwarm = 0;
	for (i = 0; i < s->nws; i++) {
		write = !!(s->ws[i] & SNAP_WS_WRITE);
		off = (s->ws[i] >> SNAP_WS_SHIFT) * SNAP_PAGE;
		if (s->ws[i] & SNAP_WS_ZERO && !write)
			continue;
		if (w && w->off + w->len == off && w->write == write) {
			w->len += SNAP_PAGE;
			continue;
		}
		w = &s->warm[s->nwarm++];
		*w = (struct mem_warm){ off, SNAP_PAGE, write };
	}
}

/* The working set of s is this, by address; pages lie in its RAM, as the file's do. */
static int set_ws(struct vmm_snap *s, const uint64_t *ws, uint32_t n, int learned,
		  struct vmm_error *err)
{
	uint64_t *copy = malloc(((size_t)n + 1) * sizeof(*copy));
	struct mem_warm *warm = malloc(((size_t)n + 1) * sizeof(*warm));

	if (!copy || !warm) {
		free(copy);
		free(warm);
		return fail(err, VMM_ENOMEM, "a working set");
	}
	if (n)
		memcpy(copy, ws, n * sizeof(*copy));
	pthread_mutex_lock(&s->lock);
	free(s->ws);
	free(s->warm);
	s->ws = copy;
	s->nws = n;
	s->learned = learned;
	s->warm = warm;
	find_warm(s);
	pthread_mutex_unlock(&s->lock);
	return 0;
}

static int open_snap(struct vmm_snap **out, const char *path, int fd, struct vmm_error *err)
{
	struct vmm_snap *s = new_snap(err);
	sigset_t before;
	uint32_t i;
	int rc;

	if (!s)
		return VMM_ENOMEM;
	thread_hold(&before);		/* what comes through a pipe is kept in a memfd */
	rc = path ? snapfile_open(&s->file, path, 0, err)
		  : snapfile_open_fd(&s->file, fd, "received snapshot", NULL, 0, err);
	thread_release(&before, rc);
	if (rc) {
		vmm_snap_free(s);
		return rc;
	}
	memcpy(s->uuid, s->file->header->uuid, sizeof(s->uuid));
	s->sections = s->file->sections;
	s->nsections = s->file->nsections;
	for (i = 0; i < s->file->nregions; i++)
		s->size += s->file->regions[i].size;
	rc = set_ws(s, s->file->ws.pages, s->file->ws.npages, 0, err);
	if (rc)
		vmm_snap_free(s);
	else
		*out = s;
	return rc;
}

int vmm_snap_open(struct vmm_snap **out, const char *path, struct vmm_error *err)
{
	if (!out || !path)
		return fail(err, VMM_EINVAL, out ? "no path of a snapshot" :
			    "nowhere to put the snapshot");
	*out = NULL;
	return open_snap(out, path, -1, err);
}

int vmm_snap_receive(struct vmm_snap **out, int fd, struct vmm_error *err)
{
	if (!out || fd < 0)
		return fail(err, VMM_EINVAL, out ? "no descriptor of a snapshot" :
			    "nowhere to put the snapshot");
	*out = NULL;
	return open_snap(out, NULL, fd, err);
}

int vmm_snap_verify(const char *path, struct vmm_error *err)
{
	struct snapfile *f;
	int rc;

	if (!path)
		return fail(err, VMM_EINVAL, "no path of a snapshot");
	rc = snapfile_open(&f, path, 0, err);
	if (rc)
		return rc;
	rc = snapfile_verify(f, 0, err);
	snapfile_close(f);
	return rc;
}

int vmm_snap_learn(struct vmm_snap *s, struct vmm *vm, struct vmm_error *err)
{
	uint64_t *ws = NULL, *list = NULL;
	uint32_t n;
	int rc;

	if (!s)
		return fail(err, VMM_EINVAL, "no snapshot");
	rc = vm_enter(vm, err);
	if (rc)
		return rc;
	if (!vm->trace || vm->snap != s)
		rc = fail(err, VMM_EINVAL,
			  "machine %s was not restored from this snapshot with VMM_RECORD",
			  vm->m.name);
	if (rc == 0)
		rc = snap_trace_read(vm->trace, &ws, &n, err);
	vm_leave(vm, rc);
	if (rc == 0)
		rc = snap_ws_tidy(ws, n, s->size / SNAP_PAGE, &list, &n, err);
	if (rc == 0)
		rc = set_ws(s, list, n, 1, err);
	free(list);
	free(ws);
	return rc;
}

/* ---- Restoring -------------------------------------------------------------------- */

int vm_snap_kvm(struct vmm_snap *s, struct vmm_error *err)
{
	int kvm;

	pthread_mutex_lock(&s->lock);
	if (s->kvm < 0)
		s->kvm = host_open(err);
	kvm = s->kvm;
	pthread_mutex_unlock(&s->lock);
	return kvm;
}

int vm_configure_harts(struct vmm *vm, struct vmm_error *err)
{
	struct vmm_snap *s = vm->snap;
	struct hart_host host;
	struct hart_config c;
	struct reader r;
	uint32_t i;
	int rc = 0, known;

	/* All of them before the first is changed; the host remains the same. */
	pthread_mutex_lock(&s->lock);
	known = s->fits;
	host = s->host;
	pthread_mutex_unlock(&s->lock);
	if (!known)
		rc = hart_host(&vm->m.vcpu[0], &host, err);
	for (i = 0; i < vm->m.nvcpus && rc == 0 && !known; i++) {
		rc = vm_get_hart(s, i, &c, &r, err);
		if (rc == 0)
			rc = hart_fits(&c, &host, err);
	}
	pthread_mutex_lock(&s->lock);
	if (rc == 0 && !s->fits)
		s->host = host;
	s->fits |= rc == 0;
	pthread_mutex_unlock(&s->lock);
	for (i = 0; i < vm->m.nvcpus && rc == 0; i++) {
		rc = vm_get_hart(vm->snap, i, &c, &r, err);
		if (rc == 0)
			rc = hart_configure(&vm->m.vcpu[i], &c, &host, err);
	}
	return rc;
}

/*
 * The working set, before the first instruction: pages that will be written get their copies
 * here.  In the run each would take the guest out twice, since KVM, in the middle of mapping
 * such a page, is told that it changes, and tries again; and in a process of many machines
 * each VM is told of it (112 us a page with 200 of them).  Pages that are only read are mapped
 * as fast by the run itself; a machine that is made ahead has them, too.  All this is done
 * before there is a VM to be told.
 */
void vm_warm_up(struct vmm *vm)
{
	struct vmm_snap *s = vm->snap, *ram = below(s);

	if (vm->trace || (ram->lazy && snap_lazy_ready(ram->lazy, &vm->m.mem)))
		return;
	pthread_mutex_lock(&s->lock);
	mem_populate(&vm->m.mem, s->warm, s->nwarm, vm->populate);
	pthread_mutex_unlock(&s->lock);
}

/*
 * For a machine that is made ahead: its threads, and its working set mapped by KVM, so that
 * the guest runs without a fault.  Not while RAM is lacking; and interrupt files in hardware
 * are not to be assigned before the guest's state is there.
 */
int vm_make_ready(struct vmm *vm, struct vmm_error *err)
{
	struct vmm_snap *s = vm->snap;
	struct mem_warm *warm = NULL;
	uint32_t n = 0;
	int rc = vcpus_ready(&vm->m, err);

	if (rc || vm->cfg.irqchip > VMM_IRQCHIP_AIA_EMUL ||
	    __atomic_load_n(&vm->m.mem.source->lacking, __ATOMIC_ACQUIRE))
		return rc;
	/* It takes milliseconds, in which others may want to restore it, or to teach it. */
	pthread_mutex_lock(&s->lock);
	if (s->nwarm && (warm = malloc(s->nwarm * sizeof(*warm)))) {
		n = s->nwarm;
		memcpy(warm, s->warm, n * sizeof(*warm));
	}
	pthread_mutex_unlock(&s->lock);
	if (n)
		rc = touch(&vm->m, warm, n, err);
	free(warm);
	return rc;
}

int vm_load_state(struct vmm *vm, int clone, struct vmm_error *err)
{
	struct vmm_snap *s = vm->snap;
	struct machine *m = &vm->m;
	struct hart_config c;
	struct hart_host host;
	struct device *d;
	struct reader r;
	char name[64];
	uint32_t i;
	int rc = 0;

	pthread_mutex_lock(&s->lock);
	host = s->host;
	pthread_mutex_unlock(&s->lock);
	if (s->light && !vm->trace)
		rc = mem_apply(&m->mem, s->delta, s->own, err);
	for (i = 0; i < m->nvcpus && rc == 0; i++) {
		rc = vm_get_hart(vm->snap, i, &c, &r, err);
		if (rc == 0)
			rc = hart_load(&m->vcpu[i], &c, &host, &r, err);
	}
	if (rc == 0)
		rc = vm_get_section(vm->snap, m->irqchip->ops->name, m->irqchip->ops->version, &r, err);
	if (rc == 0)
		rc = m->irqchip->ops->load(m->irqchip, &r, err);
	/* Of a machine that is taken back: calls that wait for a device are still in it. */
	loop_lock(&m->loop);
	for (d = m->devices; d && rc == 0; d = d->next) {
		snprintf(name, sizeof(name), "device.%s", d->name);
		rc = vm_get_section(vm->snap, name, d->ops->version, &r, err);
		if (rc == 0)
			rc = d->ops->load(d, &r, err);
	}
	for (d = m->devices; d && rc == 0; d = d->next)
		if (clone && d->ops->cloned)
			d->ops->cloned(d);
	loop_unlock(&m->loop);
	vm_stage(vm, VMM_STAGE_LOAD);
	return rc;
}

int vm_load_timers(struct vmm *vm, struct vmm_error *err)
{
	struct hart_config c;
	struct reader r;
	uint32_t i;
	int rc = 0;

	for (i = 0; i < vm->m.nvcpus && rc == 0; i++) {
		rc = vm_get_hart(vm->snap, i, &c, &r, err);
		if (rc == 0)
			rc = hart_set_timer(&vm->m.vcpu[i], &c, err);
	}
	return rc;
}

/* A virtio device that nothing is behind yet. */
static int restore_virtio(struct vmm *vm, const char *type, const char *name,
			  struct vmm_error *err)
{
	const struct console_port port = { NULL, -1, -1 };
	struct blk_config blk = BLK_CONFIG_INIT;
	struct net_config net = NET_CONFIG_INIT;
	struct virtio_env env = vm_env(vm);
	struct virtio *v;
	int rc;

	if (strcmp(type, "blk") == 0)
		rc = blk_new(&v, &env, name, &blk, err);
	else if (strcmp(type, "rng") == 0)
		rc = rng_new(&v, &env, name, err);
	else if (strcmp(type, "console") == 0)
		rc = console_new(&v, &env, name, &port, 1, err);
	else if (strcmp(type, "balloon") == 0)
		rc = balloon_new(&v, &env, name, err);
	else if (strcmp(type, "net") == 0)
		rc = net_new(&v, &env, name, &net, err);
	else if (strcmp(type, "vsock") == 0)
		rc = vsock_new(&v, &env, name, 3, err);	/* its CID is loaded */
	else
		return fail(err, VMM_EVERSION, "the snapshot has a device of unknown type \"%s\"",
			    type);
	return rc ? rc : vm_add_virtio(vm, v, err);
}

/* The next device of the machine's list. */
static int restore_device(struct vmm *vm, struct reader *r, struct vmm_error *err)
{
	struct vmm_snap_device d;
	int rc = vm_get_device(r, &d, err);

	if (rc)
		return rc;
	if (strcmp(d.type, "serial") == 0)
		return uart_add(&vm->m, -1, -1, err);
	if (strcmp(d.type, "rtc") == 0)
		return rtc_add(&vm->m, err);
	if (strcmp(d.type, "vmgenid") == 0)
		return genid_add(&vm->m, err);
	if (strcmp(d.type, "doorbell") == 0)
		return doorbell_add(&vm->m, err);
	return restore_virtio(vm, d.type, d.name, err);
}

/* struct mem, lost */
static void lost_ram(void *arg, const struct vmm_error *err)
{
	machine_halt(arg, VMM_EV_FAULT, 0, 0, "%s", err->message);
}

static int restore_machine(struct vmm *vm, const struct vmm_restore_config *c,
			   struct vmm_error *err)
{
	struct vmm_snap *s = vm->snap, *ram = c->flags & VMM_RECORD ? s : below(s);
	int lazy = c->memory == VMM_MEM_LAZY && !(c->flags & VMM_RECORD);
	struct mem_source *source;
	struct vm_frozen sm;
	int rc;

	rc = vm_check_snap(s, err);
	if (rc == 0)
		rc = vm_get_machine(s, &sm, err);
	if (rc)
		return rc;
	vm->cfg.vcpus = sm.vcpus;
	vm->cfg.memory = sm.memory;
	vm->cfg.irqchip = c->irqchip;
	vm->time = vm->snap_time = sm.time;
	rc = fill_snap(ram, c->threads, lazy ? &vm->m.log : NULL, err);
	vm_stage(vm, VMM_STAGE_LOAD);
	source = ram->source;
	if (rc == 0 && c->flags & VMM_RECORD) {
		rc = snap_trace_new(&vm->trace, source, s->size, err);
		source = rc ? NULL : snap_trace_source(vm->trace);
	}
	if (rc == 0 && vm->trace && vm->populate) {
		pthread_mutex_lock(&s->lock);
		snap_trace_know(vm->trace, s->ws, s->nws);
		pthread_mutex_unlock(&s->lock);
	}
	if (rc == 0)
		rc = mem_init_private(&vm->m.mem, MAP_RAM, sm.memory, source, err);
	vm_stage(vm, VMM_STAGE_MEMORY);
	vm->m.mem.lost = lost_ram;
	vm->m.mem.lost_arg = &vm->m;
	if (rc == 0)
		vm_warm_up(vm);
	if (rc == 0)
		rc = vm_build(vm, err);
	while (rc == 0 && sm.ndevices--)
		rc = restore_device(vm, &sm.devices, err);
	if (rc == 0 && vm->populate)
		rc = vm_make_ready(vm, err);
	if (rc == 0)
		rc = vm_load_state(vm, !(c->flags & VMM_RESUME), err);
	return rc;
}

int vmm_restore(struct vmm **out, struct vmm_snap *snap, const struct vmm_restore_config *how,
		struct vmm_error *err)
{
	struct vmm_restore_config c = VMM_RESTORE_INIT;
	struct vmm *vm;
	int rc;

	if (!out || !snap)
		return fail(err, VMM_EINVAL, out ? "no snapshot" : "nowhere to put the machine");
	*out = NULL;
	rc = how ? vm_import(&c, sizeof(c), how, "struct vmm_restore_config", err) : 0;
	if (rc == 0 && c.flags & ~(uint32_t)(VMM_RESUME | VMM_RECORD | VMM_POPULATE))
		rc = fail(err, VMM_EINVAL, "unknown flags 0x%x", c.flags);
	if (rc == 0 && c.irqchip > VMM_IRQCHIP_AIA_AUTO)
		rc = fail(err, VMM_EINVAL, "unknown interrupt controller %u", c.irqchip);
	if (rc == 0 && c.memory > VMM_MEM_EAGER)
		rc = fail(err, VMM_EINVAL, "unknown way %u to restore memory", c.memory);
	if (rc)
		return rc;
	rc = vm_new(&vm, c.name, c.log, c.log_arg, err);
	if (rc)
		return rc;
	vm->snap = keep_snap(snap);
	vm->populate = c.flags & VMM_POPULATE;
	rc = restore_machine(vm, &c, err);
	if (rc)
		vmm_free(vm);
	else
		*out = vm;
	return rc;
}
