/* SPDX-License-Identifier: MIT */
/*
 * fuzz_blk.c - requests to a disk of 1 MiB, with an overlay or without.
 */
#include "guest.h"

#include <sys/mman.h>
#include <unistd.h>

static void host(struct virtio *v, uint8_t what)
{
	if (what & 1)
		blk_resize(v, NULL);
	else
		blk_limit(v, what & 2 ? 1u << 30 : 0, what & 4 ? 1000 : 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct guest *g = guest_new(data, size);
	struct blk_config cfg = BLK_CONFIG_INIT;
	static int disk = -1;
	struct virtio *v;

	if (disk < 0) {
		disk = memfd_create("disk", MFD_CLOEXEC);
		if (disk < 0 || ftruncate(disk, 1 << 20) < 0)
			abort();
	}
	cfg.fd = disk;
	cfg.flags = (uint32_t)guest_take(g, 1) & (BLK_READONLY | BLK_NOSYNC | BLK_OVERLAY);
	cfg.queues = 2;
	cfg.serial = "fuzz";
	if (blk_new(&v, &g->env, "disk0", &cfg, NULL))
		abort();
	guest_run(g, v, host);
	return 0;
}
