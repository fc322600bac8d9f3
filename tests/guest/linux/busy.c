/* SPDX-License-Identifier: MIT */
/*
 * busy.c - a Linux process that keeps a machine busy and checks that nothing goes
 * wrong, while the machine is frozen and restored.
 *
 *	busy		until power-off
 *	busy random	waits for the host, then draws random bytes
 *
 * Its parts are processes.  Each counts what it got done; one that finds something
 * wrong says so, on the console and in what the host is told.  The host asks by
 * vsock, on PORT: a connection gets a struct status for each byte it sends, and then
 * the byte back.
 *
 * Freestanding: system calls and no library, so that it needs nothing of its guest.
 */
#include <stddef.h>
#include <stdint.h>

#include "../../../bench/guest/call.h"
#include "busy.h"

static struct status *st;

void *memset(void *p, int c, size_t n);
void *memcpy(void *to, const void *from, size_t n);
void begin(const uint64_t *sp) __attribute__((noreturn));

void *memset(void *p, int c, size_t n)
{
	uint8_t *b = p;

	while (n--)
		*b++ = (uint8_t)c;
	return p;
}

void *memcpy(void *to, const void *from, size_t n)
{
	uint8_t *d = to;
	const uint8_t *s = from;

	while (n--)
		*d++ = *s++;
	return to;
}

/* ---- System calls (asm-generic/unistd.h) --------------------------------------- */

enum { SYS_ioctl = 29, SYS_openat = 56, SYS_close = 57, SYS_read = 63, SYS_write = 64,
       SYS_pread = 67, SYS_pwrite = 68, SYS_ppoll = 73, SYS_fsync = 82, SYS_exit_group = 94,
       SYS_nanosleep = 101, SYS_clock_gettime = 113, SYS_sched_setaffinity = 122,
       SYS_socket = 198, SYS_bind = 200, SYS_listen = 201, SYS_accept = 202, SYS_sendto = 206,
       SYS_clone = 220, SYS_mmap = 222, SYS_mlock = 228, SYS_getrandom = 278 };

#define CALL1(n, a)		call(SYS_##n, (long)(a), 0, 0, 0, 0, 0)
#define CALL2(n, a, b)		call(SYS_##n, (long)(a), (long)(b), 0, 0, 0, 0)
#define CALL3(n, a, b, c)	call(SYS_##n, (long)(a), (long)(b), (long)(c), 0, 0, 0)
#define CALL4(n, a, b, c, d)	call(SYS_##n, (long)(a), (long)(b), (long)(c), (long)(d), 0, 0)

#define O_RDWR		2
#define O_DIRECT	040000

static uint64_t now_ns(void)
{
	struct { int64_t s, ns; } t;

	CALL2(clock_gettime, 1, &t);
	return (uint64_t)t.s * 1000000000u + (uint64_t)t.ns;
}

static void nap_us(unsigned int us)
{
	struct { int64_t s, ns; } t = { 0, (int64_t)us * 1000 };

	CALL2(nanosleep, &t, 0);
}

static void say(const char *s)
{
	size_t n = 0;

	while (s[n])
		n++;
	CALL3(write, 1, s, n);
}

static char *hex(char *p, uint64_t v)
{
	int i;

	for (i = 60; i >= 0; i -= 4)
		*p++ = "0123456789abcdef"[v >> i & 15];
	return p;
}

/* What is wrong, and two values: the first to say so is heard. */
static void wrong(const char *what, uint64_t a, uint64_t b)
{
	char *p = st->wrong;
	size_t i;

	if (__atomic_exchange_n(&st->failed, 1, __ATOMIC_SEQ_CST) == 0) {
		for (i = 0; what[i] && i < 60; i++)
			*p++ = what[i];
		*p++ = ' ';
		p = hex(p, a);
		*p++ = ' ';
		p = hex(p, b);
		*p = 0;
		say("busy: WRONG ");
		say(st->wrong);
		say("\n");
	}
	for (;;)
		nap_us(1000000);
}

static void done(unsigned int part)
{
	__atomic_add_fetch(&st->count[part], 1, __ATOMIC_SEQ_CST);
}

/* ---- Arithmetic ------------------------------------------------------------------ */

static uint64_t chaos(unsigned int steps)
{
	double x = 0.3141592653589793;
	uint64_t bits;
	unsigned int i;

	for (i = 0; i < steps; i++)
		x = 3.9999 * x * (1.0 - x);
	__builtin_memcpy(&bits, &x, sizeof(bits));
	return bits;
}

static void floating(void)
{
	uint64_t first = chaos(100000), v;

	for (;;) {
		v = chaos(100000);
		if (v != first)
			wrong("floating point", v, first);
		done(BUSY_FLOAT);
	}
}

/* Sums in vector registers for a while: lane i goes up by i in each step. */
static uint64_t lanes(unsigned int steps)
{
	uint64_t sum;

	__asm__ volatile(
		".option push\n.option arch, +v\n"
		"vsetvli t0, x0, e64, m4, ta, ma\n"
		"vid.v v8\n"
		"vmv.v.i v16, 0\n"
		"vmv.v.i v24, 0\n"
		"1: vadd.vv v16, v16, v8\n"
		"vmul.vv v24, v16, v8\n"
		"addi %1, %1, -1\n"
		"bnez %1, 1b\n"
		"vmv.s.x v4, x0\n"
		"vadd.vv v16, v16, v24\n"
		"vredsum.vs v4, v16, v4\n"
		"vmv.x.s %0, v4\n"
		".option pop\n"
		: "=r"(sum), "+r"(steps) : : "t0", "memory");
	return sum;
}

static void vector(void)
{
	uint64_t first = lanes(100000), v;

	for (;;) {
		v = lanes(100000);
		if (v != first)
			wrong("vector", v, first);
		done(BUSY_VECTOR);
	}
}

/* ---- Time -------------------------------------------------------------------------- */

static void on_cpu(uint64_t cpu)
{
	uint64_t mask = 1ul << cpu;

	CALL3(sched_setaffinity, 0, sizeof(mask), &mask);
}

/* Forward only, on whichever hart; and sleeps end, not early. */
static void timing(void)
{
	uint64_t last = now_ns(), t, i;

	for (i = 0;; i++) {
		on_cpu(i % st->cpus);
		t = now_ns();
		if (t < last)
			wrong("time", t, last);
		last = t;
		nap_us(2000);
		t = now_ns();
		if (t < last + 2000000)
			wrong("sleep", t, last);
		if (t - last > st->longest)
			st->longest = t - last;
		done(BUSY_TIME);
	}
}

/* ---- Disks --------------------------------------------------------------------------- */

#define BLOCK	4096
#define BLOCKS	256

static void disk(const char *path, unsigned int part)
{
	static uint64_t buf[BLOCK / 8] __attribute__((aligned(4096)));
	uint64_t round, i, at;
	long fd = CALL4(openat, -100, path, O_RDWR | O_DIRECT, 0);

	if (fd < 0)
		wrong(path, (uint64_t)fd, 0);
	for (round = 1;; round++) {
		at = round * 7 % BLOCKS;
		for (i = 0; i < BLOCK / 8; i++)
			buf[i] = round << 32 ^ i * 0x9e3779b97f4a7c15ul ^ at;
		if (CALL4(pwrite, fd, buf, BLOCK, at * BLOCK) != BLOCK)
			wrong("disk write", at, round);
		if (round % 32 == 0 && CALL1(fsync, fd))
			wrong("disk flush", at, round);
		memset(buf, 0, sizeof(buf));
		if (CALL4(pread, fd, buf, BLOCK, at * BLOCK) != BLOCK)
			wrong("disk read", at, round);
		for (i = 0; i < BLOCK / 8; i++)
			if (buf[i] != (round << 32 ^ i * 0x9e3779b97f4a7c15ul ^ at))
				wrong("disk", buf[i], round);
		/* What was written 200 rounds ago is still there. */
		if (round > 200) {
			uint64_t old = round - 200, where = old * 7 % BLOCKS;

			if (CALL4(pread, fd, buf, BLOCK, where * BLOCK) != BLOCK ||
			    buf[5] != (old << 32 ^ 5 * 0x9e3779b97f4a7c15ul ^ where))
				wrong("disk, of before", buf[5], old);
		}
		done(part);
	}
}

/* ---- Network: frames that the host sends back ---------------------------------------- */

#define ETH_TYPE	0x88b5			/* for experiments (IEEE 802) */

struct pollfd {
	int		fd;
	short		events, revents;
};

static void net(void)
{
	struct { char name[16]; uint16_t flags; uint8_t rest[22]; } up = { "eth0", 0x43, { 0 } };
	struct { uint16_t family, protocol; int32_t ifindex; uint8_t rest[12]; } where =
		{ 17, ETH_TYPE >> 8 | (ETH_TYPE & 0xff) << 8, 2, { 0 } };
	struct { char name[16]; int32_t index; uint8_t rest[20]; } index = { "eth0", 0, { 0 } };
	static uint8_t frame[1024], back[1024];
	uint64_t seq, got, i, tries;
	long fd = CALL3(socket, 17, 3, where.protocol), n;

	if (fd < 0 || CALL3(ioctl, fd, 0x8914, &up) || CALL3(ioctl, fd, 0x8933, &index))
		wrong("no eth0", (uint64_t)fd, 0);
	where.ifindex = index.index;
	if (CALL3(bind, fd, &where, 20))
		wrong("bind", 0, 0);
	for (seq = 1;; seq++) {
		memset(frame, 0xff, 6);
		memset(frame + 6, 0x02, 6);
		frame[12] = ETH_TYPE >> 8;
		frame[13] = ETH_TYPE & 0xff;
		for (i = 14; i < sizeof(frame); i++)
			frame[i] = (uint8_t)(seq * 31 + i);
		__builtin_memcpy(frame + 14, &seq, 8);
		for (tries = 0;; tries++) {
			struct pollfd p = { (int)fd, 1, 0 };
			struct { int64_t s, ns; } half = { 0, 500000000 };

			/* What was on its way at a freeze is lost, as on any wire. */
			if (tries == 20)
				wrong("net: no answer", seq, tries);
			st->resent += tries != 0;
			CALL3(write, fd, frame, sizeof(frame));
			do {
				n = call(SYS_ppoll, (long)&p, 1, (long)&half, 0, 8, 0);
				if (n == 1)
					n = CALL3(read, fd, back, sizeof(back));
				/* Late answers to older ones are no news. */
				for (got = 0, i = 0; i < 8; i++)
					got |= (uint64_t)back[14 + i] << 8 * i;
			} while (n > 14 && got != seq);
			if (n > 14)
				break;
		}
		for (i = 14; i < sizeof(frame); i++)
			if (back[i] != frame[i])
				wrong("net", i, seq);
		done(BUSY_NET);
	}
}

/* ---- What the host asks ----------------------------------------------------------------- */

static void answer(void)
{
	struct { uint16_t family, zero; uint32_t port, cid; uint8_t flags, rest[3]; } any =
		{ 40, 0, BUSY_PORT, ~0u, 0, { 0 } };
	long fd = CALL3(socket, 40, 1, 0), c;
	char byte;

	if (fd < 0 || CALL3(bind, fd, &any, 16) || CALL2(listen, fd, 8))
		wrong("no vsock", (uint64_t)fd, 0);
	for (;;) {
		c = CALL3(accept, fd, 0, 0);
		if (c < 0)
			continue;
		/* A freeze ends connections; listening goes on. */
		while (CALL3(read, c, &byte, 1) == 1)
			if (CALL3(write, c, st, sizeof(*st)) != sizeof(*st) ||
			    CALL3(write, c, &byte, 1) != 1)
				break;
		CALL1(close, c);
	}
}

/* ---- Random bytes ------------------------------------------------------------------------- */

/* Tell the host where a word of ours is, spin until it is not 0, and draw. */
static void draw(void)
{
	static volatile uint64_t word[512] __attribute__((aligned(4096)));
	char line[2 * 64 + 32], *p = line;
	uint64_t entry = 0, bytes[8];
	long fd = CALL4(openat, -100, "/proc/self/pagemap", 0, 0);
	unsigned int i;

	word[1] = 1;
	CALL2(mlock, word, 4096);
	CALL4(pread, fd, &entry, 8, (uintptr_t)word / 4096 * 8);
	say("busy: word ");
	p = hex(p, (entry & ((1ul << 55) - 1)) << 12);
	*p++ = '\n';
	*p = 0;
	say(line);
	while (!word[0])
		;
	CALL3(getrandom, bytes, sizeof(bytes), 0);
	say("busy: random ");
	for (p = line, i = 0; i < 8; i++)
		p = hex(p, bytes[i]);
	*p++ = '\n';
	*p = 0;
	say(line);
}

/* ---- All of it ------------------------------------------------------------------------------ */

/* For people, where something stands still. */
static void tell(void)
{
	char line[BUSY_PARTS * 17 + 8], *p = line;
	unsigned int i;

	for (i = 0; i < BUSY_PARTS; i++, *p++ = ' ')
		p = hex(p, st->count[i]);
	*p++ = '\n';
	*p = 0;
	say(line);
}

static void part(void (*fn)(void))
{
	if (CALL2(clone, 17 /* SIGCHLD */, 0))
		return;
	fn();
	CALL1(exit_group, 1);
}

static void disk_a(void)
{
	disk("/dev/vda", BUSY_DISK);
}

static void disk_b(void)
{
	disk("/dev/vdb", BUSY_OVERLAY);
}

void begin(const uint64_t *sp)
{
	const struct { int64_t s, ns; } five = { 5, 0 };
	uint64_t argc = sp[0], hwcap = 0, mask[16] = { 0 };
	const char *arg = argc > 1 ? (const char *)sp[2] : "";
	const uint64_t *p = sp + 2 + argc;

	while (*p++)
		;				/* the environment */
	for (; p[0]; p += 2)
		if (p[0] == 16)			/* AT_HWCAP */
			hwcap = p[1];
	st = (void *)call(SYS_mmap, 0, 4096, 3, 0x21 /* shared, anonymous */, -1, 0);
	call(123 /* sched_getaffinity */, 0, sizeof(mask), (long)mask, 0, 0, 0);
	for (st->cpus = 0; mask[0] >> st->cpus & 1; st->cpus++)
		;
	if (arg[0] == 'r') {
		draw();
		for (;;)
			nap_us(1000000);
	}
	part(floating);
	if (hwcap >> ('v' - 'a') & 1)
		part(vector);
	else
		st->absent |= 1u << BUSY_VECTOR;
	part(timing);
	part(disk_a);
	part(disk_b);
	part(net);
	part(answer);
	say("busy: at work\n");
	for (;;) {
		CALL2(nanosleep, &five, 0);
		tell();
	}
}

__asm__(
"	.globl _start\n"
"_start:\n"
"	.option push\n"
"	.option norelax\n"
"	lla	gp, __global_pointer$\n"
"	.option pop\n"
"	mv	a0, sp\n"
"	andi	sp, sp, -16\n"
"	tail	begin\n");
