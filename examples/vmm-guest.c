/* SPDX-License-Identifier: MIT */
/*
 * vmm-guest.c - the guest's side of the library, for shell scripts: vmm-guest(1).
 *
 *	vmm-guest ring [VALUE]	tell the host program: VMM_EV_DOORBELL (1)
 *	vmm-guest exit [CODE]	power off, at once, with an exit code (0)
 *	vmm-guest clock		set the wall clock from the real-time clock
 *	vmm-guest wait [COMMAND]
 *				return when this guest finds itself restored as a
 *				clone; or run a shell command whenever it does
 *
 * A restored guest's clocks go on from where they stood: that is right for the
 * monotonic one, and wrong for the wall clock, which nothing but "clock" puts
 * right.
 *
 * Linux tells no program that the machine has become another: wait looks at how
 * often the generation id's interrupt has come, ten times a second.  When it
 * returns the kernel has reseeded its random numbers, as it does that there
 * (drivers/virt/vmgenid.c).
 *
 * A few kilobytes without a C library, so that it goes into any initramfs and
 * runs in any guest: RISC-V Linux's system calls are made by hand.  ring and exit
 * want /dev/mem (CONFIG_DEVMEM); clock has it to the microsecond with that and
 * to the second without; wait wants /proc.
 */
#include <linux/time.h>
#include <asm/unistd.h>
#include <stddef.h>
#include <stdint.h>

#include <vmm_guest.h>

/* Of headers that want a C library. */
enum { AT_FDCWD_ = -100, O_RDWR_SYNC = 02 | 04010000, PROT_RW = 3, MAP_SHARED_ = 1,
       SIGCHLD_ = 17 };

static char text[65536];		/* of a file */

static long call(long n, long a, long b, long c, long d, long e, long f)
{
	register long a0 __asm__("a0") = a, a1 __asm__("a1") = b, a2 __asm__("a2") = c;
	register long a3 __asm__("a3") = d, a4 __asm__("a4") = e, a5 __asm__("a5") = f;
	register long a7 __asm__("a7") = n;

	__asm__ volatile("ecall" : "+r"(a0)
			 : "r"(a1), "r"(a2), "r"(a3), "r"(a4), "r"(a5), "r"(a7) : "memory");
	return a0;
}

static size_t length(const char *s)
{
	size_t n = 0;

	while (s[n])
		n++;
	return n;
}

static int same(const char *a, const char *b)
{
	while (*a && *a == *b) {
		a++;
		b++;
	}
	return *a == *b;
}

static int complain(const char *what)
{
	static const char name[] = "vmm-guest: ";

	call(__NR_write, 2, (long)name, sizeof(name) - 1, 0, 0, 0);
	call(__NR_write, 2, (long)what, (long)length(what), 0, 0, 0);
	call(__NR_write, 2, (long)"\n", 1, 0, 0, 0);
	return 1;
}

/* A number, decimal or hexadecimal; *ok is 0 if it is none. */
static uint64_t number(const char *s, int *ok)
{
	unsigned int base = 10, digit;
	uint64_t n = 0;

	if (s[0] == '0' && s[1] == 'x') {
		base = 16;
		s += 2;
	}
	*ok = *s != 0;
	for (; *s; s++) {
		digit = *s <= '9' ? (unsigned int)(*s - '0') : (unsigned int)((*s | 32) - 'a') + 10;
		*ok &= digit < base && n <= (UINT64_MAX - digit) / base;
		n = n * base + digit;
	}
	return n;
}

/* A file of /proc or /sys, into text; it is empty if there is none. */
static void read_text(const char *path)
{
	long fd = call(__NR_openat, AT_FDCWD_, (long)path, 0, 0, 0, 0), n = 0, got;

	while (fd >= 0 && n < (long)sizeof(text) - 1) {
		got = call(__NR_read, fd, (long)(text + n), (long)sizeof(text) - 1 - n, 0, 0, 0);
		if (got <= 0)
			break;
		n += got;
	}
	text[n] = 0;
	if (fd >= 0)
		call(__NR_close, fd, 0, 0, 0, 0, 0);
}

/* A page of registers, or NULL. */
static volatile uint32_t *page(uint64_t gpa)
{
	long fd = call(__NR_openat, AT_FDCWD_, (long)"/dev/mem", O_RDWR_SYNC, 0, 0, 0), p;

	if (fd < 0)
		return NULL;
	p = call(__NR_mmap, 0, 4096, PROT_RW, MAP_SHARED_, fd, (long)gpa);
	return p < 0 && p > -4096 ? NULL : (volatile uint32_t *)p;
}

static int bell(uint32_t reg, uint64_t value)
{
	volatile uint32_t *p = page(VMM_GUEST_DOORBELL);

	if (!p)
		return complain("/dev/mem cannot be mapped");
	if (p[VMM_GUEST_MAGIC / 4] != VMM_GUEST_MAGIC_VALUE)
		return complain("this machine has no doorbell");
	*(volatile uint64_t *)(p + reg / 4) = value;
	return 0;
}

/* Nanoseconds since 1970, or 0.  A driver may keep others off the registers. */
static uint64_t true_time(void)
{
	volatile uint32_t *p = page(VMM_GUEST_RTC);
	uint64_t ns;
	size_t n;
	int ok;

	if (p) {
		ns = p[0];		/* which latches the upper half */
		return ns | (uint64_t)p[1] << 32;
	}
	read_text("/sys/class/rtc/rtc0/since_epoch");
	n = length(text);
	if (n)
		text[n - 1] = 0;	/* the line's end */
	ns = number(text, &ok);
	return ok ? ns * 1000000000 : 0;
}

static int set_clock(void)
{
	struct __kernel_timespec ts;
	uint64_t ns = true_time();

	if (!ns)
		return complain("no real-time clock can be read");
	ts.tv_sec = (long long)(ns / 1000000000);
	ts.tv_nsec = (long long)(ns % 1000000000);
	return call(__NR_clock_settime, 0, (long)&ts, 0, 0, 0, 0) ? complain("cannot set the clock") : 0;
}

/* Is this at p? */
static int begins(const char *p, const char *with)
{
	while (*with && *p == *with) {
		p++;
		with++;
	}
	return !*with;
}

/* How often the generation id's interrupt has come, on all CPUs; -1: there is no
   such thing.  A line is " 13:   1   0  CHIP  3 Edge  vmgenid". */
static int64_t generations(void)
{
	const char *p, *line = text;
	int64_t sum = 0, n;

	read_text("/proc/interrupts");
	for (p = text; *p && !begins(p, "vmgenid"); p++)
		if (*p == '\n')
			line = p;
	if (!*p)
		return -1;
	for (p = line; *p != ':'; p++)
		;
	for (p++; *p == ' ' || (*p >= '0' && *p <= '9'); sum += n) {
		while (*p == ' ')
			p++;
		for (n = 0; *p >= '0' && *p <= '9'; p++)
			n = n * 10 + (*p - '0');
	}
	return sum;
}

static int run(const char *command, char **env)
{
	const char *argv[] = { "sh", "-c", command, NULL };
	long pid = call(__NR_clone, SIGCHLD_, 0, 0, 0, 0, 0);

	if (pid < 0)
		return complain("cannot fork");
	if (pid == 0) {
		call(__NR_execve, (long)"/bin/sh", (long)argv, (long)env, 0, 0, 0);
		complain("there is no /bin/sh");
		call(__NR_exit_group, 127, 0, 0, 0, 0, 0);
	}
	call(__NR_wait4, pid, 0, 0, 0, 0, 0);
	return 0;
}

static int wait(const char *command, char **env)
{
	const struct __kernel_timespec tick = { 0, 100000000 };
	int64_t before = generations(), now;
	int rc = 0;

	if (before < 0)
		return complain("this kernel has no driver for the generation id, or there is no /proc");
	while (rc == 0) {
		call(__NR_nanosleep, (long)&tick, 0, 0, 0, 0, 0);
		now = generations();
		if (now == before)
			continue;
		before = now;
		if (!command)
			return 0;
		rc = run(command, env);
	}
	return rc;
}

static int usage(void)
{
	return complain("usage: ring [VALUE] | exit [CODE] | clock | wait [COMMAND]");
}

__attribute__((used)) static void begin(long *sp)
{
	char **argv = (char **)(sp + 1), **env = argv + *sp + 1;
	const char *arg = *sp > 2 ? argv[2] : NULL;
	int is_number = 1, rc;
	uint64_t n = arg ? number(arg, &is_number) : 0;

	if (*sp < 2 || *sp > 3)
		rc = usage();
	else if (same(argv[1], "ring") && is_number)
		rc = bell(VMM_GUEST_RING, arg ? n : 1);
	else if (same(argv[1], "exit") && is_number)
		rc = bell(VMM_GUEST_EXIT, n);
	else if (same(argv[1], "clock") && !arg)
		rc = set_clock();
	else if (same(argv[1], "wait"))
		rc = wait(arg, env);
	else
		rc = usage();
	call(__NR_exit_group, rc, 0, 0, 0, 0, 0);
}

__asm__(".globl _start\n_start:\n\tmv a0, sp\n\tandi sp, sp, -16\n\tcall begin\n");
