/* SPDX-License-Identifier: MIT */
/*
 * smp.c - all harts at once: atomics on one word, and messages to each other.
 *
 * First each adds arg[0] times to one counter.  Then a token goes around the
 * ring of harts arg[1] times, as an interrupt: whoever gets it sends it on.  In
 * between harts sleep, so that a wake-up that is lost stops the guest.  At last
 * all send to all.  counter[63] is the shared counter, counter[hart] how often
 * a hart got the token.
 */
#include "lib/guest.h"

#define TOKEN	5
#define STORM	6

static unsigned int n, up, finished;
static unsigned int tokens[GUEST_HARTS], storms[GUEST_HARTS];
static uint64_t rounds;

static void on_message(uint32_t id)
{
	if (id == TOKEN)
		tokens[hart()]++;
	else
		__atomic_add_fetch(&storms[hart()], 1, __ATOMIC_SEQ_CST);
}

static void work(uint64_t arg)
{
	unsigned int me = hart(), i, k;
	uint64_t r;

	(void)arg;
	imsic_init();
	imsic_enable(TOKEN);
	imsic_enable(STORM);
	__atomic_add_fetch(&up, 1, __ATOMIC_SEQ_CST);
	while (__atomic_load_n(&up, __ATOMIC_SEQ_CST) < n)
		;
	for (i = 0; i < shared.arg[0]; i++)
		__atomic_add_fetch(&shared.counter[63], 1, __ATOMIC_SEQ_CST);

	for (r = 1; r <= rounds; r++) {
		if (me == 0)
			msi(1 % n, TOKEN);
		wait_for(__atomic_load_n(&tokens[me], __ATOMIC_SEQ_CST) >= r);
		shared.counter[me] = r;
		if (me)
			msi((me + 1) % n, TOKEN);
	}

	/* A message that meets one of its kind still pending is one with it:
	   only that each gets at least one from the last sender is certain. */
	for (k = 0; k < 20; k++)
		for (i = 0; i < n; i++)
			msi(i, STORM);
	wait_for(__atomic_load_n(&storms[me], __ATOMIC_SEQ_CST));
	__atomic_add_fetch(&finished, 1, __ATOMIC_SEQ_CST);
	if (me)
		for (;;)
			wait_for(0);
	while (__atomic_load_n(&finished, __ATOMIC_SEQ_CST) < n)
		;
}

int main(void)
{
	unsigned int i;

	on_msi = on_message;
	n = harts();
	rounds = shared.arg[1];
	for (i = 1; i < n; i++)
		hart_start(i, work, i);
	work(0);
	CHECK_EQ(shared.counter[63], n * shared.arg[0]);
	for (i = 0; i < n; i++)
		CHECK_EQ(tokens[i], rounds);
	return 0;
}
