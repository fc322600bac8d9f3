/* SPDX-License-Identifier: MIT */
/*
 * isa.c - ISA extensions: see isa.h.
 *
 * KVM tells what the host's harts have and what a guest can be given; we know
 * only the names.  An extension that is newer than the table below is left on
 * in KVM but kept out of the device tree, and so unused by the guest.
 */
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "../core/kvm.h"
#include "isa.h"
#include "regs.h"

/* enum KVM_RISCV_ISA_EXT_ID, Linux 7.2. */
static const char *const isa_names[] = {
	"a", "c", "d", "f", "h", "i", "m", "svpbmt", "sstc", "svinval", "zihintpause",
	"zicbom", "zicboz", "zbb", "ssaia", "v", "svnapot", "zba", "zbs", "zicntr", "zicsr",
	"zifencei", "zihpm", "smstateen", "zicond", "zbc", "zbkb", "zbkc", "zbkx", "zknd",
	"zkne", "zknh", "zkr", "zksed", "zksh", "zkt", "zvbb", "zvbc", "zvkb", "zvkg",
	"zvkned", "zvknha", "zvknhb", "zvksed", "zvksh", "zvkt", "zfh", "zfhmin",
	"zihintntl", "zvfh", "zvfhmin", "zfa", "ztso", "zacas", "sscofpmf", "zimop", "zca",
	"zcb", "zcd", "zcf", "zcmop", "zawrs", "smnpm", "ssnpm", "svade", "svadu", "svvptc",
	"zabha", "ziccrse", "zaamo", "zalrsc", "zicbop", "zfbfmin", "zvfbfmin", "zvfbfwma",
	"zclsd", "zilsd", "zalasr",
};
#define ISA_COUNT	(sizeof(isa_names) / sizeof(isa_names[0]))

_Static_assert(ISA_COUNT <= 64 * ISA_WORDS, "a set of extensions holds them all");

/* The order of single letters: ISA manual, "ISA extension naming conventions". */
static const char isa_letters[] = "imafdcvh";

int isa_has(const struct isa *isa, unsigned int ext)
{
	return (int)(isa->bit[ext / 64] >> (ext % 64) & 1);
}

static void isa_set(struct isa *isa, unsigned int ext, int on)
{
	uint64_t bit = 1ull << (ext % 64);

	if (on)
		isa->bit[ext / 64] |= bit;
	else
		isa->bit[ext / 64] &= ~bit;
}

static int isa_find(const char *name, size_t len)
{
	unsigned int i;

	for (i = 0; i < ISA_COUNT; i++)
		if (strlen(isa_names[i]) == len && strncasecmp(isa_names[i], name, len) == 0)
			return (int)i;
	return -1;
}

int isa_of_vcpu(int vcpu, struct isa *out, struct vmm_error *err)
{
	unsigned int i;
	int r;

	memset(out, 0, sizeof(*out));
	for (i = 0; i < ISA_WORDS; i++) {
		r = kvm_reg_get(vcpu, REG_ISA_ON(i), &out->bit[i]);
		/* Kernels that know fewer extensions have fewer words. */
		if (r < 0 && (i == 0 || r != -ENOENT))
			return fail_sys(err, -r, "ISA extensions of a vCPU");
	}
	return 0;
}

int isa_apply(int vcpu, const struct isa *host, const struct isa *want, struct vmm_error *err)
{
	unsigned int i;
	uint64_t off;
	int r;

	for (i = 0; i < ISA_WORDS; i++) {
		off = host->bit[i] & ~want->bit[i];
		if (!off)
			continue;
		r = kvm_reg_set(vcpu, REG_ISA_OFF(i), &off);
		if (r < 0)
			return fail_sys(err, -r, "switching off ISA extensions");
	}
	return 0;
}

/* One name of a list, "zba", in a set that starts from nothing or the host's. */
static int isa_pick(const char *spec, const char *name, size_t len, int on,
		    const struct isa *host, struct isa *out, struct vmm_error *err)
{
	int ext = isa_find(name, len);

	if (ext < 0)
		return fail(err, VMM_EINVAL, "isa \"%.60s\": unknown extension \"%.*s\"", spec,
			    (int)(len < 40 ? len : 40), name);
	if (on && !isa_has(host, (unsigned int)ext))
		return fail(err, VMM_ENOTSUP, "isa \"%.60s\": this host has no %s", spec,
			    isa_names[ext]);
	isa_set(out, (unsigned int)ext, on);
	return 0;
}

/* "-v,-zicbom": what to take away. */
static int isa_subtract(const char *spec, const struct isa *host, struct isa *out,
			struct vmm_error *err)
{
	const char *p = spec;
	size_t len;
	int r;

	*out = *host;
	while (*p) {
		if (*p != '-')
			return fail(err, VMM_EINVAL,
				    "isa \"%.60s\": \"-\" expected before each extension to remove",
				    spec);
		p++;
		len = strcspn(p, ",");
		r = isa_pick(spec, p, len, 0, host, out, err);
		if (r)
			return r;
		p += len;
		if (*p == ',')
			p++;
	}
	return 0;
}

/* "rv64imafdc_zba_zbb": what to have. */
static int isa_collect(const char *spec, const struct isa *host, struct isa *out,
		       struct vmm_error *err)
{
	const char *p = spec;
	size_t len;
	int r;

	memset(out, 0, sizeof(*out));
	if (strncasecmp(p, "rv64", 4) != 0)
		return fail(err, VMM_EINVAL, "isa \"%.60s\": starts neither with rv64 nor with -",
			    spec);
	/* Single letters, up to the first that begins a longer name. */
	for (p += 4; *p && !strchr("_sxzSXZ", *p); p++) {
		const char *l = tolower((unsigned char)*p) == 'g' ? "imafd" : p;

		for (len = l == p ? 1 : 5; len; len--, l++) {
			r = isa_pick(spec, l, 1, 1, host, out, err);
			if (r)
				return r;
		}
		/* g is these, too, but older kernels do not tell of them. */
		if (tolower((unsigned char)*p) == 'g') {
			isa_set(out, ISA_ZICSR, isa_has(host, ISA_ZICSR));
			isa_set(out, ISA_ZIFENCEI, isa_has(host, ISA_ZIFENCEI));
		}
	}
	while (*p) {
		p += *p == '_';
		len = strcspn(p, "_");
		r = isa_pick(spec, p, len, 1, host, out, err);
		if (r)
			return r;
		p += len;
	}
	return 0;
}

int isa_choose(const char *spec, const struct isa *host, struct isa *out, struct vmm_error *err)
{
	int r;

	if (!spec || !*spec) {
		*out = *host;
		return 0;
	}
	r = *spec == '-' ? isa_subtract(spec, host, out, err) : isa_collect(spec, host, out, err);
	if (r)
		return r;
	if (!isa_has(out, ISA_I))
		return fail(err, VMM_EINVAL, "isa \"%.60s\": without i there is no machine", spec);
	/* The interrupt controller is not the guest's to choose. */
	isa_set(out, ISA_SSAIA, isa_has(host, ISA_SSAIA));
	return 0;
}

static int isa_single(unsigned int ext)
{
	return isa_names[ext][1] == 0;
}

void isa_string(const struct isa *isa, char *buf, size_t cap)
{
	size_t n = (size_t)snprintf(buf, cap, "rv64");
	const char *c;
	unsigned int i;

	for (c = isa_letters; *c && n + 1 < cap; c++)
		if (isa_has(isa, (unsigned int)isa_find(c, 1)))
			n += (size_t)snprintf(buf + n, cap - n, "%c", *c);
	for (i = 0; i < ISA_COUNT && n < cap; i++)
		if (isa_has(isa, i) && !isa_single(i))
			n += (size_t)snprintf(buf + n, cap - n, "_%s", isa_names[i]);
}

static size_t isa_append(char *buf, size_t cap, size_t n, const char *name, size_t len)
{
	if (!n || len + 1 > cap - n)
		return 0;
	memcpy(buf + n, name, len);
	buf[n + len] = 0;
	return n + len + 1;
}

size_t isa_list(const struct isa *isa, char *buf, size_t cap)
{
	size_t n;
	const char *c;
	unsigned int i;

	if (cap < 2)
		return 0;
	/* Every hart has i: it is there to begin with. */
	memcpy(buf, "i", 2);
	n = 2;
	for (c = isa_letters + 1; *c; c++)
		if (isa_has(isa, (unsigned int)isa_find(c, 1)))
			n = isa_append(buf, cap, n, c, 1);
	for (i = 0; i < ISA_COUNT; i++)
		if (isa_has(isa, i) && !isa_single(i))
			n = isa_append(buf, cap, n, isa_names[i], strlen(isa_names[i]));
	return n;
}
