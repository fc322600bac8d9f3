/* SPDX-License-Identifier: MIT */
/*
 * fuzz_console.c - a terminal and two ports: bytes and control messages.
 */
#include "guest.h"

#include <fcntl.h>
#include <unistd.h>

static void host(struct virtio *v, uint8_t what)
{
	if (what & 1)
		console_resize(v, what, 25);
	else
		console_replace(v, what >> 1, -1, -1, NULL);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct guest *g = guest_new(data, size);
	static int zero = -1;
	struct virtio *v;

	if (zero < 0)
		zero = open("/dev/zero", O_RDONLY | O_CLOEXEC);
	const struct console_port ports[3] = { { NULL, zero, -1 }, { "a", -1, -1 },
					       { "b", zero, -1 } };
	if (console_new(&v, &g->env, "console0", ports, size & 1 ? 3 : 1, NULL))
		abort();
	guest_run(g, v, host);
	return 0;
}
