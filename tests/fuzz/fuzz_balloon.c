/* SPDX-License-Identifier: MIT */
/*
 * fuzz_balloon.c - page numbers, reports, hints and statistics; the host asks
 * for things now and then.
 */
#include "guest.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct guest *g = guest_new(data, size);
	struct virtio *v;

	if (balloon_new(&v, &g->env, "balloon0", NULL))
		abort();
	balloon_set(v, guest_take(g, 4));
	guest_run(g, v);
	return 0;
}
