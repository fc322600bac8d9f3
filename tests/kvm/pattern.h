/* SPDX-License-Identifier: MIT */
/*
 * pattern.h - a stream of bytes that host and guest both know, from a seed.
 *
 * Each 8 bytes are a multiplicative hash of their place and the seed, so that
 * bytes that are lost, doubled, late or of another stream are wrong ones.
 */
#ifndef PATTERN_H
#define PATTERN_H

#include <stdint.h>
#include <string.h>

struct pattern {
	uint64_t	seed, off;
};

static inline void pattern_init(struct pattern *p, uint64_t seed)
{
	p->seed = seed;
	p->off = 0;
}

static inline uint64_t pattern_word(const struct pattern *p, uint64_t i)
{
	uint64_t x = (i ^ p->seed << 40) * 0x9e3779b97f4a7c15ull;

	return x ^ x >> 29;
}

/* The next n bytes. */
static inline void pattern_make(struct pattern *p, uint8_t *buf, size_t n)
{
	uint64_t w = pattern_word(p, p->off / 8);
	size_t i = 0;

	while (i < n) {
		if (p->off % 8 == 0) {
			w = pattern_word(p, p->off / 8);
			if (n - i >= 8) {
				memcpy(buf + i, &w, 8);
				i += 8;
				p->off += 8;
				continue;
			}
		}
		buf[i++] = (uint8_t)(w >> p->off++ % 8 * 8);
	}
}

static inline int pattern_is(struct pattern *p, const uint8_t *buf, size_t n)
{
	uint8_t own[1024];
	size_t k;

	for (; n; n -= k, buf += k) {
		k = n < sizeof(own) ? n : sizeof(own);
		pattern_make(p, own, k);
		if (memcmp(own, buf, k) != 0)
			return 0;
	}
	return 1;
}

#endif
