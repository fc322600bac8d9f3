/* SPDX-License-Identifier: MIT */
/*
 * fuzz_restore.c - any bytes as one section of a machine's saved state, the others
 * as they should be: restored on the fake KVM, and if that goes well run, saved,
 * described.
 *
 * The first byte says which section.  fuzz_snapshot has the file around it.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../../vmm_guest.h"
#include "../../vmm_impl.h"
#include "../unit/fake_kvm.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t fuzz_seed(unsigned int n, uint8_t *buf, size_t cap);

static struct vmm_snap *good;

#define MUST(call) do { if (call) abort(); } while (0)

static int rings(struct fake_vcpu *v)
{
	return v->step++ ? FAKE_SPIN : fake_sbi(v, VMM_GUEST_SBI, VMM_GUEST_SBI_RING, 1, 0, 0);
}

/* A descriptor of something that a machine is made with. */
static int file_of_zeroes(size_t n)
{
	int fd = memfd_create("fuzz", 0);

	MUST(fd < 0 || ftruncate(fd, (off_t)n) < 0);
	return fd;
}

/* A machine with one of each device, frozen. */
static void prepare(void)
{
	struct vmm_config cfg = VMM_CONFIG_INIT;
	struct vmm_event ev;
	char disk[64];
	struct vmm *vm;
	int net[2];

	fake_reset();
	fake.guest = rings;
	cfg.kernel_fd = file_of_zeroes(4096);
	MUST(pwrite(cfg.kernel_fd, "RISCV\0\0\0RSC\x05", 12, 48) != 12);
	snprintf(disk, sizeof(disk), "/proc/self/fd/%d", file_of_zeroes(1 << 20));
	cfg.memory = 4 << 20;
	cfg.vcpus = 2;
	MUST(socketpair(AF_UNIX, SOCK_DGRAM, 0, net));
	MUST(vmm_create(&vm, &cfg, NULL));
	MUST(vmm_add_serial(vm, -1, -1, NULL));
	MUST(vmm_add_blk(vm, "disk", disk, VMM_OVERLAY, NULL));
	MUST(vmm_add_rng(vm, "rng", NULL));
	MUST(vmm_add_console(vm, "console", -1, -1, NULL));
	MUST(vmm_add_balloon(vm, "balloon", NULL));
	MUST(vmm_add_net(vm, "net", net[0], NULL, NULL));
	MUST(vmm_add_vsock(vm, 3, NULL));
	MUST(vmm_start(vm, NULL));
	MUST(vmm_wait(vm, -1, &ev, NULL) || ev.type != VMM_EV_DOORBELL);
	MUST(vmm_pause(vm, NULL));
	MUST(vmm_snap_take(&good, vm, NULL));
	vmm_free(vm);
}

size_t fuzz_seed(unsigned int n, uint8_t *buf, size_t cap)
{
	if (!good)
		prepare();
	if (n >= good->nsections || good->sections[n].len >= cap)
		return 0;
	buf[0] = (uint8_t)n;
	if (good->sections[n].len)
		memcpy(buf + 1, good->sections[n].data, good->sections[n].len);
	return good->sections[n].len + 1;
}

/* What went well so far must go on, or fail, but not crash. */
static void use(struct vmm *vm)
{
	struct vmm_snap *s;

	if (vmm_start(vm, NULL) == 0 && vmm_pause(vm, NULL) == 0 &&
	    vmm_snap_take(&s, vm, NULL) == 0)
		vmm_snap_free(s);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct vmm_snap_info info = VMM_SNAP_INFO_INIT;
	struct snap_section *p, was;
	struct vmm_snap_device d;
	struct vmm *vm;
	uint32_t i;

	if (!good)
		prepare();
	if (!size)
		return 0;
	p = &good->sections[data[0] % good->nsections];
	was = *p;
	p->data = data + 1;
	p->len = size - 1;
	vmm_snap_info(good, &info, NULL);
	for (i = 0; i < info.devices && vmm_snap_device(good, i, &d, NULL) == 0; i++)
		;
	if (vmm_restore(&vm, good, NULL, NULL) == 0) {
		use(vm);
		vmm_free(vm);
	}
	*p = was;
	return 0;
}
