/* SPDX-License-Identifier: MIT */
/*
 * fuzz_balloon.c - page numbers, reports, hints and statistics; the host asks
 * for things now and then.
 */
#include "guest.h"

static void host(struct virtio *v, uint8_t what)
{
	struct balloon_info info;

	switch (what % 4) {
	case 0:
		balloon_set(v, (uint64_t)what << 12);
		break;
	case 1:
		balloon_poll(v);
		break;
	case 2:
		balloon_hint_start(v);
		break;
	default:
		balloon_hint_done(v);
		break;
	}
	balloon_look(v, &info);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct guest *g = guest_new(data, size);
	struct virtio *v;

	if (balloon_new(&v, &g->env, "balloon0", NULL))
		abort();
	guest_run(g, v, host);
	return 0;
}
