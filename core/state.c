/* SPDX-License-Identifier: MIT */
/*
 * state.c - writer and reader of saved state: see state.h.
 */
#include <stdlib.h>
#include <string.h>

#include "state.h"

void put_bytes(struct writer *w, const void *p, size_t n)
{
	uint8_t *data;
	size_t cap;

	if (w->failed || !n)
		return;
	if (n > w->cap - w->len) {
		cap = w->cap ? w->cap : 256;
		while (cap - w->len < n)
			cap *= 2;
		data = realloc(w->data, cap);
		if (!data) {
			w->failed = 1;
			return;
		}
		w->data = data;
		w->cap = cap;
	}
	memcpy(w->data + w->len, p, n);
	w->len += n;
}

static void put_le(struct writer *w, uint64_t v, unsigned int n)
{
	uint8_t b[8];
	unsigned int i;

	for (i = 0; i < n; i++)
		b[i] = (uint8_t)(v >> (8 * i));
	put_bytes(w, b, n);
}

void put_u8(struct writer *w, uint8_t v)
{
	put_le(w, v, 1);
}

void put_u16(struct writer *w, uint16_t v)
{
	put_le(w, v, 2);
}

void put_u32(struct writer *w, uint32_t v)
{
	put_le(w, v, 4);
}

void put_u64(struct writer *w, uint64_t v)
{
	put_le(w, v, 8);
}

void put_str(struct writer *w, const char *s)
{
	size_t n = s ? strlen(s) : 0;

	if (n > UINT16_MAX)
		n = UINT16_MAX;
	put_u16(w, (uint16_t)n);
	put_bytes(w, s, n);
}

void get_bytes(struct reader *r, void *p, size_t n)
{
	if (r->failed || n > r->len) {
		r->failed = 1;
		memset(p, 0, n);
		return;
	}
	memcpy(p, r->data, n);
	r->data += n;
	r->len -= n;
}

static uint64_t get_le(struct reader *r, unsigned int n)
{
	uint8_t b[8];
	uint64_t v = 0;
	unsigned int i;

	get_bytes(r, b, n);
	for (i = 0; i < n; i++)
		v |= (uint64_t)b[i] << (8 * i);
	return v;
}

uint8_t get_u8(struct reader *r)
{
	return (uint8_t)get_le(r, 1);
}

uint16_t get_u16(struct reader *r)
{
	return (uint16_t)get_le(r, 2);
}

uint32_t get_u32(struct reader *r)
{
	return (uint32_t)get_le(r, 4);
}

uint64_t get_u64(struct reader *r)
{
	return get_le(r, 8);
}

void get_str(struct reader *r, char *buf, size_t cap)
{
	size_t n = get_u16(r);

	buf[0] = 0;
	if (n >= cap || n > r->len) {
		r->failed = 1;
		return;
	}
	get_bytes(r, buf, n);
	buf[n] = 0;
}

int reader_end(const struct reader *r, const char *part, struct vmm_error *err)
{
	if (r->failed)
		return fail(err, VMM_EFORMAT, "state of %s: too short", part);
	if (r->len)
		return fail(err, VMM_EFORMAT, "state of %s: %zu bytes too many", part, r->len);
	return 0;
}
