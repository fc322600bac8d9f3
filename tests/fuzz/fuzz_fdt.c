/* SPDX-License-Identifier: MIT */
/*
 * fuzz_fdt.c - what the caller's configuration puts into a device tree: any
 * command line, any ISA string, any number of harts, any place for an initrd,
 * any room.
 */
#include <libfdt.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../../riscv/aia.h"
#include "../../riscv/fdt.h"
#include "../../riscv/host.h"
#include "../../riscv/map.h"
#include "../../riscv/platform.h"
#include "../unit/fake_kvm.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t fuzz_seed(unsigned int n, uint8_t *buf, size_t cap);

static struct machine m;
static struct isa host;

static void set_up(void)
{
	const struct log log = { NULL, NULL };

	fake_reset();
	if (machine_init(&m, "fuzz", &log, NULL) || mem_init(&m.mem, MAP_RAM, 4u << 20, NULL) ||
	    (m.kvm = host_open(NULL)) < 0 || (m.vm = kvm_vm(m.kvm)) < 0 ||
	    vcpus_create(&m, 64, NULL) || aia_create(&m, 0, NULL, NULL) ||
	    isa_of_vcpu(m.vcpu[0].fd, &host, NULL) || rtc_add(&m, NULL) || genid_add(&m, NULL) ||
	    doorbell_add(&m, NULL) || uart_add(&m, -1, -1, NULL))
		abort();
}

/* The next n bytes of the input as a string. */
static char *take(const uint8_t **p, size_t *left, size_t n)
{
	char *s;

	n = n < *left ? n : *left;
	s = malloc(n + 1);
	memcpy(s, *p, n);
	s[n] = 0;
	*p += n;
	*left -= n;
	return s;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct fdt_config cfg = { 0 };
	struct isa isa;
	char *spec, *cmdline;
	uint32_t harts, room;
	uint8_t *buf;
	const char *args;
	size_t len = 0;
	int n;

	if (!m.vcpu)
		set_up();
	if (size < 8)
		return 0;
	harts = m.nvcpus;
	m.nvcpus = 1 + data[0] % 64;
	room = data[1] & 1 ? FDT_ROOM : (uint32_t)(data[2] << 8 | data[3]);
	cfg.initrd = (uint64_t)data[4] << 56 | data[5];
	cfg.initrd_size = (uint64_t)data[6] << 56 | data[7];
	data += 8;
	size -= 8;
	spec = take(&data, &size, size && data[0] % 2 ? data[0] : 0);
	cmdline = take(&data, &size, size);
	if (isa_choose(spec, &host, &isa, NULL))
		isa = host;
	cfg.isa = &isa;
	cfg.cmdline = cmdline;
	buf = malloc(room ? room : 1);
	if (fdt_build(&m, &cfg, buf, room, &len, NULL) == 0) {
		if (len > room || fdt_check_full(buf, len))
			abort();
		args = fdt_getprop(buf, fdt_path_offset(buf, "/chosen"), "bootargs", &n);
		if (!args || strcmp(args, cmdline) != 0)
			abort();
	}
	free(buf);
	free(spec);
	free(cmdline);
	m.nvcpus = harts;
	return 0;
}

size_t fuzz_seed(unsigned int n, uint8_t *buf, size_t cap)
{
	static const char *const seed[] = {
		"\1\1\0\0\0\0\0\0console=ttyS0 root=/dev/vda",
		"\77\1\0\0\0\1\0\1\23rv64imafdc_zba_zbb earlycon=sbi",
		"\4\1\0\0\200\1\0\1\15-v,-zicbom,-d quiet",
		"\2\0\20\0\0\0\0\0\7rv64gc\n",
	};
	static const size_t len[] = { 35, 8 + 31, 8 + 19, 8 + 8 };

	if (n >= 4 || cap < len[n])
		return 0;
	memcpy(buf, seed[n], len[n]);
	return len[n];
}
