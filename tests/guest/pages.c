/* SPDX-License-Identifier: MIT */
/*
 * pages.c - RAM of which each page is known, and is looked at in no order.
 *
 * arg[0] pages, from 2 MiB of RAM on, get words that tell which page it is; but for
 * 4 MiB and more that stay zero.  Rings 1, and waits until arg[7] is set: that is
 * where it is frozen.  Then arg[1] of the pages, from arg[2] on, are looked at, and
 * every other one is written to.  counter[0] counts them.  Rings 2, and counts in
 * counter[1] until it is stopped.
 */
#include "lib/guest.h"

#define PAGE	4096ul
#define FIRST	(RAM + (2ul << 20))
#define HOLE	2048ul			/* pages that stay zero: from here */
#define END	3072ul			/* to here */

static uint64_t word(uint64_t page, uint64_t i)
{
	return page >= HOLE && page < END ? 0 : (page << 10 | i) * 0x9e3779b97f4a7c15ul;
}

static void look(uint64_t page)
{
	volatile uint64_t *p = (volatile uint64_t *)(FIRST + page * PAGE);

	CHECK_EQ(p[0], word(page, 0));
	CHECK_EQ(p[page % 510 + 1], word(page, page % 510 + 1));
	CHECK_EQ(p[511], word(page, 511));
	if (page & 1) {
		p[511] = page;
		CHECK_EQ(p[511], page);
		p[511] = word(page, 511);
	}
	shared.counter[0]++;
}

int main(void)
{
	volatile uint64_t *p;
	uint64_t page, i, n;

	for (page = 0; page < shared.arg[0]; page++) {
		if (page >= HOLE && page < END)
			continue;
		p = (volatile uint64_t *)(FIRST + page * PAGE);
		p[0] = word(page, 0);
		p[page % 510 + 1] = word(page, page % 510 + 1);
		p[511] = word(page, 511);
	}
	ring(1);
	while (!shared.arg[7])
		;
	n = shared.arg[1];
	for (i = 0; i < n; i++)
		look(shared.arg[2] + i * 2654435761ul % n);
	ring(2);
	for (;;)
		shared.counter[1]++;
}
