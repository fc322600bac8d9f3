/* SPDX-License-Identifier: MIT */
/*
 * state.h - how the state of a part is written down, and read back.
 *
 * A part appends its fields to a writer and takes them from a reader in the
 * same order.  Numbers are little-endian and packed.  A reader checks every
 * length: once it has run dry it gives zeroes and says so at the end, so that
 * a load function reads all its fields first and checks once.
 */
#ifndef CORE_STATE_H
#define CORE_STATE_H

#include "error.h"

struct writer {
	uint8_t		*data;		/* free() it */
	size_t		len, cap;
	int		failed;		/* no memory, or nothing to write */
};

void put_bytes(struct writer *w, const void *p, size_t n);
void put_u8(struct writer *w, uint8_t v);
void put_u16(struct writer *w, uint16_t v);
void put_u32(struct writer *w, uint32_t v);
void put_u64(struct writer *w, uint64_t v);
void put_str(struct writer *w, const char *s);	/* u16 length, bytes, no zero */

struct reader {
	const uint8_t	*data;
	size_t		len;		/* bytes not yet taken */
	int		failed;		/* ran dry, or a string did not fit */
};

void get_bytes(struct reader *r, void *p, size_t n);
uint8_t get_u8(struct reader *r);
uint16_t get_u16(struct reader *r);
uint32_t get_u32(struct reader *r);
uint64_t get_u64(struct reader *r);
void get_str(struct reader *r, char *buf, size_t cap);

/* 0 if all was read and nothing is left, else VMM_EFORMAT naming the part. */
int reader_end(const struct reader *r, const char *part, struct vmm_error *err);

#endif
