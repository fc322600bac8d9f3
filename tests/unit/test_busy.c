/* SPDX-License-Identifier: MIT */
/*
 * test_busy.c - machines whose devices are busy all the time, while they are
 * paused, started and freed: nothing is in flight in a paused machine, no request
 * is lost or done twice, and threads do not meet (make check-tsan).
 *
 * Each of two harts drives devices of its own: a disk whose requests are done at
 * once and one whose requests wait, a network that echoes, a console, entropy.
 */
#include "rig.h"

#include <sys/socket.h>

#include <linux/virtio_blk.h>
#include <linux/virtio_config.h>
#include <linux/virtio_mmio.h>
#include <linux/virtio_net.h>
#include <linux/virtio_ring.h>

#include "../../virtio/devices.h"

#define SIZE		32u		/* entries of a ring */
#define NUM		8u		/* requests in flight */
#define BUFS		3u		/* of a request, at most */
#define DISK		(1u << 20)
#define EVENT_IDX	(1ull << VIRTIO_RING_F_EVENT_IDX)

/* One ring and what goes through it; its hart's, while that runs. */
struct ring {
	uint32_t	device, index;
	uint32_t	out[BUFS], in[BUFS];	/* lengths of buffers, up to a 0 */
	/* From here on, anew for each machine: */
	struct vring_desc *desc;
	uint16_t	*avail, *used;
	uint8_t		*data;
	uint16_t	added, seen;
	uint32_t	flying;		/* heads the device has */
	uint64_t	done;
};

#define BLK_OUT { sizeof(struct virtio_blk_outhdr), 4096 }

/* Devices are in the order in which add_devices() adds them. */
static struct ring rings[] = {
	{ .device = 0, .index = 0, .out = BLK_OUT, .in = { 1 } },
	{ .device = 1, .index = 0, .out = BLK_OUT, .in = { 1 } },
	{ .device = 2, .index = 0, .in = { 2048 } },
	{ .device = 2, .index = 1, .out = { sizeof(struct virtio_net_hdr_v1), 100 } },
	{ .device = 3, .index = 1, .out = { 40 } },
	{ .device = 4, .index = 0, .in = { 100 } },
};
#define RINGS (sizeof(rings) / sizeof(rings[0]))

static struct vmm_error err;
static int lost;		/* atomic */
static uint8_t *ram;

static uint64_t ring_gpa(const void *p)
{
	return MAP_RAM + (uint64_t)((const uint8_t *)p - ram);
}

static void ring_place(struct ring *r, uint8_t *at)
{
	r->desc = (struct vring_desc *)(void *)at;
	r->avail = (uint16_t *)(void *)(at + 0x800);
	r->used = (uint16_t *)(void *)(at + 0xc00);
	r->data = at + 0x1000;		/* 0x4000 for each head */
	r->added = r->seen = 0;
	r->flying = 0;
}

/* ---- The guest ------------------------------------------------------------------ */

static int set(struct fake_vcpu *v, const struct ring *r, uint32_t reg, uint64_t val)
{
	return fake_write(v, MAP_VIRTIO + r->device * TRANSPORT_SIZE + reg, 4, (uint32_t)val);
}

/* Step n of setting a device up (virtio 1.2, 3.1.1); DRIVER_OK comes later. */
static int set_up(struct fake_vcpu *v, const struct ring *r, unsigned int n)
{
	switch (n) {
	case 0:
		return set(v, r, VIRTIO_MMIO_DRIVER_FEATURES_SEL, 0);
	case 1:
		return set(v, r, VIRTIO_MMIO_DRIVER_FEATURES, EVENT_IDX);
	case 2:
		return set(v, r, VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
	case 3:
		return set(v, r, VIRTIO_MMIO_DRIVER_FEATURES, 1);
	case 4:
		return set(v, r, VIRTIO_MMIO_STATUS, VIRTIO_CONFIG_S_FEATURES_OK);
	case 5:
		return set(v, r, VIRTIO_MMIO_QUEUE_SEL, r->index);
	case 6:
		return set(v, r, VIRTIO_MMIO_QUEUE_NUM, SIZE);
	case 7:
		return set(v, r, VIRTIO_MMIO_QUEUE_DESC_LOW, ring_gpa(r->desc));
	case 8:
		return set(v, r, VIRTIO_MMIO_QUEUE_AVAIL_LOW, ring_gpa(r->avail));
	case 9:
		return set(v, r, VIRTIO_MMIO_QUEUE_USED_LOW, ring_gpa(r->used));
	default:
		return set(v, r, VIRTIO_MMIO_QUEUE_READY, 1);
	}
}
#define SET_UP 11u

static uint16_t buffers(struct ring *r, uint16_t head, const uint32_t *len, uint16_t n, int write)
{
	uint32_t i;

	for (i = 0; i < BUFS && len[i]; i++, n++)
		r->desc[head + n] = (struct vring_desc){
			ring_gpa(r->data) + head / BUFS * 0x4000u + n * 0x1000u, len[i],
			(uint16_t)(VRING_DESC_F_NEXT | (write ? VRING_DESC_F_WRITE : 0)),
			(uint16_t)(head + n + 1) };
	return n;
}

static void add(struct ring *r)
{
	uint16_t head = (uint16_t)((unsigned int)__builtin_ctz(~r->flying) * BUFS), n;
	struct virtio_blk_outhdr hdr = { .type = r->added % 3 ? VIRTIO_BLK_T_OUT : VIRTIO_BLK_T_FLUSH,
					 .sector = r->added % 100 * 8u };

	if (r->device < 2)
		memcpy(r->data + head / BUFS * 0x4000u, &hdr, sizeof(hdr));
	n = buffers(r, head, r->out, 0, 0);
	n = buffers(r, head, r->in, n, 1);
	r->desc[head + n - 1].flags &= (uint16_t)~VRING_DESC_F_NEXT;
	r->flying |= 1u << head / BUFS;
	r->avail[2 + r->added % SIZE] = head;
	__atomic_store_n(&r->avail[1], ++r->added, __ATOMIC_SEQ_CST);
}

/* What has come back: each once. */
static void take(struct ring *r)
{
	const uint32_t *e;

	while (r->seen != __atomic_load_n(&r->used[1], __ATOMIC_ACQUIRE)) {
		e = (const uint32_t *)(const void *)(r->used + 2) + 2 * (r->seen++ % SIZE);
		if (e[0] % BUFS || e[0] / BUFS >= NUM || !(r->flying >> e[0] / BUFS & 1))
			__atomic_store_n(&lost, 1, __ATOMIC_RELAXED);
		r->flying &= ~(1u << e[0] / BUFS % 32);
		__atomic_add_fetch(&r->done, 1, __ATOMIC_RELAXED);
	}
	__atomic_store_n(&r->avail[2 + SIZE], r->seen, __ATOMIC_SEQ_CST);
}

/* Hart 0 has the disks, hart 1 the rest. */
static int works(struct fake_vcpu *v)
{
	unsigned int first = v->id ? 2 : 0, n = v->id ? RINGS - 2 : 2;
	uint64_t step = v->step++;
	struct ring *r;

	if (step < n * SET_UP)
		return set_up(v, &rings[first + step / SET_UP], (unsigned int)(step % SET_UP));
	step -= n * SET_UP;
	r = &rings[first + step % n];
	if (step < n)
		return set(v, r, VIRTIO_MMIO_STATUS,
			   VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK);
	take(r);
	if (r->flying == (1u << NUM) - 1)
		return step % 16 ? FAKE_AGAIN : FAKE_NAP;
	add(r);
	return set(v, r, VIRTIO_MMIO_QUEUE_NOTIFY, r->index);
}

/* ---- The host --------------------------------------------------------------------- */

/* Frames go back to where they came from, until the other end is closed. */
static void *echo(void *arg)
{
	int fd = *(int *)arg;
	char frame[2048];
	ssize_t n;

	while ((n = recv(fd, frame, sizeof(frame), 0)) > 0)
		send(fd, frame, (size_t)n, MSG_DONTWAIT);
	return NULL;
}

static void add_disk(struct vmm *vm, const char *name, const char *dir, uint32_t flags)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "%s/test_busy.XXXXXX", dir);
	fd = mkstemp(path);
	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, DISK), 0);
	if (vmm_add_blk(vm, name, path, flags, &err))		/* no O_DIRECT there */
		assert_ok(vmm_add_blk(vm, name, path, 0, &err));
	close(fd);
	unlink(path);
}

static void add_devices(struct vmm *vm, int net, int null)
{
	add_disk(vm, "near", "/dev/shm", 0);
	add_disk(vm, "far", "/var/tmp", VMM_DIRECT);
	assert_ok(vmm_add_net(vm, "net", net, NULL, &err));
	assert_ok(vmm_add_console(vm, "console", -1, null, &err));
	assert_ok(vmm_add_rng(vm, "rng", &err));
}

/* Nothing that a device has taken is still to be answered. */
static void check_quiet(struct vmm *vm)
{
	static const char *const names[] = { "near", "far", "net", "console", "rng" };
	const struct queue *q;
	unsigned int i;

	for (i = 0; i < RINGS; i++) {
		q = &transport_virtio(machine_device(rig_inside(vm),
						     names[rings[i].device]))->queue[rings[i].index];
		assert_int_equal(q->last_avail, q->used_idx);
		assert_int_equal(q->used_idx, q->seen_idx);
	}
}

static void one_machine(int pauses)
{
	int null = open("/dev/null", O_WRONLY | O_CLOEXEC), net[2], i;
	pthread_t thread;
	struct vmm *vm;

	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, net), 0);
	vm = rig_vmm(2);
	ram = rig_inside(vm)->mem.hva;
	for (i = 0; i < (int)RINGS; i++)
		ring_place(&rings[i], ram + (uint32_t)i * 0x40000u);	/* below the kernel */
	add_devices(vm, net[0], null);
	close(net[0]);
	assert_int_equal(pthread_create(&thread, NULL, echo, &net[1]), 0);
	assert_ok(vmm_start(vm, &err));
	for (i = 0; i < pauses; i++) {
		if (i % 3)
			nap_ms((unsigned int)i % 4);
		assert_ok(vmm_pause(vm, &err));
		check_quiet(vm);
		assert_ok(vmm_start(vm, &err));
	}
	nap_ms(5);
	vmm_free(vm);
	pthread_join(thread, NULL);
	close(net[1]);
	close(null);
	assert_int_equal(__atomic_load_n(&lost, __ATOMIC_RELAXED), 0);
}

static void test_busy(void **state)
{
	unsigned int i, round;

	(void)state;
	fake.boot_all = 1;
	fake.guest = works;
	for (round = 0; round < 40; round++)
		one_machine(10);
	for (i = 0; i < RINGS; i++)
		if (rings[i].done < 50)
			fail_msg("ring %u: only %llu requests", i, (unsigned long long)rings[i].done);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_busy, rig_setup, rig_teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
