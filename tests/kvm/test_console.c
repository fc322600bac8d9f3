/* SPDX-License-Identifier: MIT */
/*
 * test_console.c - somebody at the console: commands, answers, long pastes.
 *
 *	test_console [options] KERNEL INITRD [CASE...]
 *
 * The guest is Linux with a shell on its console, which is the UART (ttyS0) or
 * the SBI debug console (hvc0).  Options and output: kvmtest.h.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kvmtest.h"

#define PASTE	10240			/* bytes */
#define LINE	80

static const char *kernel, *initrd;

static void say(struct console *con, const char *line)
{
	console_send(con, line, strlen(line));
}

/* A machine whose shell answers. */
static struct vmm *shell(struct console *con, const char *port, size_t *at)
{
	struct vmm_config cfg = VMM_CONFIG_INIT;
	char cmdline[64];
	struct vmm *vm;

	test_host();
	snprintf(cmdline, sizeof(cmdline), "console=%s quiet", port);
	cfg.kernel = kernel;
	cfg.initrd = initrd;
	cfg.cmdline = cmdline;
	cfg.irqchip = test_options.irqchip;
	console_open(con);
	CALL(vmm_create(&vm, &cfg, &test_err));
	CALL(vmm_add_serial(vm, con->in, con->out, &test_err));
	CALL(vmm_start(vm, &test_err));
	console_expect(con, "guest: up", at, 60);
	/* It may be typed before the shell listens: nothing is lost. */
	say(con, "echo ready-$((6 * 7))\n");
	console_expect(con, "ready-42", at, 60);
	return vm;
}

static void end(struct vmm *vm, struct console *con)
{
	say(con, "exit\n");
	expect_event(vm, VMM_EV_SHUTDOWN, 0, 60);
	vmm_free(vm);
	console_close(con);
}

static const char *port(void)
{
	return test_arg ? "hvc0" : "ttyS0";
}

/* A shell that waits costs next to nothing: what it leaves the guest for. */
static void measure_idle(struct vmm *vm)
{
	struct vmm_stats a = VMM_STATS_INIT, b = VMM_STATS_INIT;

	sleep_ms(2000);
	CALL(vmm_stat(vm, &a, &test_err));
	sleep_ms(3000);
	CALL(vmm_stat(vm, &b, &test_err));
	test_note("%s: in 3 s idle: mmio %llu sbi %llu kernel %llu", port(),
		  (unsigned long long)(b.exits[VMM_EXIT_MMIO] - a.exits[VMM_EXIT_MMIO]),
		  (unsigned long long)(b.exits[VMM_EXIT_SBI] - a.exits[VMM_EXIT_SBI]),
		  (unsigned long long)(b.exits[VMM_EXIT_KERNEL] - a.exits[VMM_EXIT_KERNEL]));
	CHECK(b.exits[VMM_EXIT_MMIO] - a.exits[VMM_EXIT_MMIO] < 50);
}

static void commands(void)
{
	struct console con;
	char line[64];
	size_t at = 0;
	struct vmm *vm = shell(&con, port(), &at);
	int i;

	say(&con, "tty; cat /proc/consoles\n");
	console_expect(&con, port(), &at, 30);
	for (i = 1; i <= 20; i++) {
		snprintf(line, sizeof(line), "echo answer-$((%d * %d))-\n", i, i);
		say(&con, line);
		snprintf(line, sizeof(line), "answer-%d-", i * i);
		console_expect(&con, line, &at, 30);
	}
	/* Control-C ends what runs; one that comes before it runs, nothing. */
	say(&con, "sleep 1000\n");
	for (i = 0; i < 20; i++) {
		sleep_ms(500);
		say(&con, "\003");
		say(&con, "echo again-$((5 * 5))\n");
		if (console_find(&con, "again-25", &at, 3000) == 0)
			break;
	}
	CHECK(i < 20);
	measure_idle(vm);
	end(vm, &con);
}

/* All of a paste arrives, and comes back, and so it does after a pause. */
static void paste(void)
{
	char *text = malloc(PASTE + 1), *back, *p, *q;
	struct console con;
	struct vmm_stats st = VMM_STATS_INIT;
	uint64_t begin;
	size_t at = 0, i;
	struct vmm *vm = shell(&con, port(), &at);

	for (i = 0; i < PASTE; i++)
		text[i] = i % LINE == LINE - 1 ? '\n' : (char)('!' + (i * 31 + i / LINE) % 90);
	text[PASTE] = 0;
	say(&con, "stty -echo; echo off-$((1 + 1))\n");
	console_expect(&con, "off-2", &at, 30);
	say(&con, "cat >/tmp/paste; wc -c </tmp/paste; echo done-$((2 + 2))\n");
	sleep_ms(300);
	begin = now_ms();
	console_send(&con, text, PASTE / 2);
	CALL(vmm_pause(vm, &test_err));
	CALL(vmm_start(vm, &test_err));
	console_send(&con, text + PASTE / 2, PASTE - PASTE / 2);
	say(&con, "\004");
	console_expect(&con, "10240", &at, 120);
	test_note("%s: %d bytes in within %llu ms", port(), PASTE,
		  (unsigned long long)(now_ms() - begin));
	console_expect(&con, "done-4", &at, 30);
	begin = now_ms();
	say(&con, "echo begin-$((3 + 3)); cat /tmp/paste; echo end-$((4 + 4))\n");
	console_expect(&con, "begin-6\r\n", &at, 60);
	back = con.text + at;
	i = at;
	console_expect(&con, "end-8", &at, 120);
	test_note("%s: %d bytes back within %llu ms", port(), PASTE,
		  (unsigned long long)(now_ms() - begin));
	back = strndup(con.text + i, at - i - strlen("end-8"));
	for (p = q = back; *p; p++)
		if (*p != '\r')
			*q++ = *p;
	*q = 0;
	if (strcmp(back, text) != 0)
		test_fail("what came back is not what was pasted (%zu bytes)", strlen(back));
	CALL(vmm_stat(vm, &st, &test_err));
	test_note("%s: exits mmio %llu sbi %llu signal %llu kernel %llu", port(),
		  (unsigned long long)st.exits[VMM_EXIT_MMIO],
		  (unsigned long long)st.exits[VMM_EXIT_SBI],
		  (unsigned long long)st.exits[VMM_EXIT_SIGNAL],
		  (unsigned long long)st.exits[VMM_EXIT_KERNEL]);
	end(vm, &con);
}

static const struct test_case cases[] = {
	{ "shell-ttyS0", commands, 180, 0 },
	{ "shell-hvc0", commands, 180, 1 },
	{ "paste-ttyS0", paste, 300, 0 },
	{ "paste-hvc0", paste, 300, 1 },
};

int main(int argc, char **argv)
{
	return test_main_args(argc, argv, cases, sizeof(cases) / sizeof(cases[0]),
			      "KERNEL INITRD ", &kernel, &initrd);
}
