/* SPDX-License-Identifier: MIT */
/*
 * test_boot.c - Linux boots to user space, says so, and powers off; every time.
 *
 *	test_boot [-m MODE,...|all] [-c VCPUS,...] [-n ROUNDS] [-s SECONDS]
 *		  [-o ttyS0|hvc0] [-t FACTOR] [-v] NAME KERNEL INITRD
 *
 * A case is a kernel, a mode of the interrupt controller and a number of vCPUs,
 * booted ROUNDS times.  A boot is good if "guest: up" comes, if the guest sees
 * as many CPUs as it was given, if its own log has nothing in it that should
 * not be there, and if it powers off before the time is up.  A mode that the
 * host kernel does not get right is skipped.
 *
 * What a boot took goes into the lines with "#": milliseconds from vmm_create()
 * to the first byte on the console, to the first line of user space and to
 * power-off; exits by kind until "guest: up"; what the stages of the start took.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kvmtest.h"

/* Lines of the guest's log that no good boot has.  ("error" is also in the
   name of harmless things: only as a word of its own, and not "error: 0".) */
#define BAD "WARNING|BUG|Oops|panic|[Rr][Cc][Uu].*stall|nobody cared|lockup|" \
	"[Uu]nhandled|[Ff]ailed|[^a-z_-]error[^a-z_]|Call Trace"

static const char *name, *kernel, *initrd, *port = "ttyS0";
static unsigned int rounds = 1, limit = 60;

static uint64_t total(const struct vmm_stats *s)
{
	unsigned int i;
	uint64_t n = 0;

	for (i = 0; i < VMM_EXITS; i++)
		n += s->exits[i];
	return n;
}

static void note(unsigned int round, uint64_t first, uint64_t up, uint64_t off,
		 const struct vmm_stats *s, const struct vmm_stats *end)
{
	test_note("%s %s c=%u %u: first %llu up %llu off %llu ms; exits to up: mmio %llu sbi %llu "
		  "csr %llu signal %llu other %llu kernel %llu (to off: mmio %llu, all %llu)",
		  name, port, s->vcpus, round, (unsigned long long)first, (unsigned long long)up,
		  (unsigned long long)off, (unsigned long long)s->exits[VMM_EXIT_MMIO],
		  (unsigned long long)s->exits[VMM_EXIT_SBI],
		  (unsigned long long)s->exits[VMM_EXIT_CSR],
		  (unsigned long long)s->exits[VMM_EXIT_SIGNAL],
		  (unsigned long long)s->exits[VMM_EXIT_OTHER],
		  (unsigned long long)s->exits[VMM_EXIT_KERNEL],
		  (unsigned long long)end->exits[VMM_EXIT_MMIO], (unsigned long long)total(end));
	test_note("%s %s c=%u %u: setup %llu us: kvm %llu vm %llu memory %llu vcpus %llu "
		  "irqchip %llu load %llu start %llu; memory used %llu KiB",
		  name, port, s->vcpus, round, (unsigned long long)s->setup_ns / 1000,
		  (unsigned long long)s->stage_ns[VMM_STAGE_KVM] / 1000,
		  (unsigned long long)s->stage_ns[VMM_STAGE_VM] / 1000,
		  (unsigned long long)s->stage_ns[VMM_STAGE_MEMORY] / 1000,
		  (unsigned long long)s->stage_ns[VMM_STAGE_VCPUS] / 1000,
		  (unsigned long long)s->stage_ns[VMM_STAGE_IRQCHIP] / 1000,
		  (unsigned long long)s->stage_ns[VMM_STAGE_LOAD] / 1000,
		  (unsigned long long)s->stage_ns[VMM_STAGE_START] / 1000,
		  (unsigned long long)s->memory_used >> 10);
}

/* The console's last lines, for a boot that went wrong. */
static void show_tail(struct console *c)
{
	size_t len = console_len(c), from = len > 1500 ? len - 1500 : 0;
	char *line, *save = NULL;

	for (line = strtok_r(c->text + from, "\r\n", &save); line;
	     line = strtok_r(NULL, "\r\n", &save))
		test_note("console: %s", line);
}

static void boot(unsigned int round, uint32_t vcpus)
{
	struct vmm_stats up = VMM_STATS_INIT, off = VMM_STATS_INIT;
	struct vmm_config cfg = VMM_CONFIG_INIT;
	uint64_t begin, t_first, t_up, t_off;
	struct console con;
	struct vmm_event ev;
	char cmdline[512], cpus[32];
	struct vmm *vm;
	size_t at = 0;

	snprintf(cmdline, sizeof(cmdline), "console=%s quiet "
		 "run=\"dmesg | grep -v run= | grep -E '" BAD "' | sed 's/^/BAD: /'; echo cpus $(nproc); stty echo\"", port);
	cfg.kernel = kernel;
	cfg.initrd = initrd;
	cfg.cmdline = cmdline;
	cfg.vcpus = vcpus;
	cfg.memory = 256u << 20;
	cfg.irqchip = test_options.irqchip;
	console_open(&con);
	begin = now_ms();
	CALL(vmm_create(&vm, &cfg, &test_err));
	CALL(vmm_add_serial(vm, con.in, con.out, &test_err));
	CALL(vmm_start(vm, &test_err));
	if (console_find(&con, "guest: up", &at, (int)limit * 1000)) {
		show_tail(&con);
		test_fail("round %u: no \"guest: up\" within %u s; state %d", round, limit,
			  vmm_state(vm));
	}
	t_up = now_ms() - begin;
	t_first = con.first_ms - begin;
	CALL(vmm_stat(vm, &up, &test_err));
	next_event(vm, &ev, (int)limit);
	t_off = now_ms() - begin;
	CALL(vmm_stat(vm, &off, &test_err));
	vmm_free(vm);
	console_finish(&con);
	if (ev.type != VMM_EV_SHUTDOWN || ev.value != 0) {
		show_tail(&con);
		test_fail("round %u: event %s %llu: %s", round, event_name(ev.type),
			  (unsigned long long)ev.value, ev.detail);
	}
	snprintf(cpus, sizeof(cpus), "cpus %u\r\nguest: exit 0", vcpus);
	if (console_find(&con, cpus, &at, 0) || strstr(con.text, "BAD: ")) {
		show_tail(&con);
		test_fail("round %u: the guest's log or CPUs are not as they should be", round);
	}
	note(round, t_first, t_up, t_off, &up, &off);
	console_close(&con);
}

static void rounds_of(void)
{
	unsigned int i;

	if (test_options.irqchip && !(test_host()->irqchips >> test_options.irqchip & 1))
		test_skip("this host does not offer it");
	if (!test_mode_sound(test_options.irqchip))
		test_skip("%.200s", test_host()->note);
	for (i = 0; i < rounds; i++)
		boot(i, (uint32_t)test_arg);
}

static void usage(void)
{
	fprintf(stderr, "usage: test_boot [-m MODE,...|all] [-c VCPUS,...] [-n ROUNDS]\n"
		"                 [-s SECONDS] [-o ttyS0|hvc0] [-t FACTOR] [-v] NAME KERNEL INITRD\n");
	exit(2);
}

int main(int argc, char **argv)
{
	char all[] = "emul,hwaccel,auto", def[] = "default", one[] = "1", label[128];
	char *modes = def, *cpus = one, *m, *c, *save_m = NULL, *save_c, *list;
	int o;

	test_init(argv[0]);
	while ((o = getopt(argc, argv, "m:c:n:s:o:t:v")) != -1) {
		switch (o) {
		case 'm': modes = strcmp(optarg, "all") ? optarg : all; break;
		case 'c': cpus = optarg; break;
		case 'n': rounds = (unsigned int)atoi(optarg); break;
		case 's': limit = (unsigned int)atoi(optarg); break;
		case 'o': port = optarg; break;
		case 't': test_options.factor = (unsigned int)atoi(optarg); break;
		case 'v': test_options.verbose = 1; break;
		default: usage();
		}
	}
	if (argc - optind != 3)
		usage();
	name = argv[optind];
	kernel = argv[optind + 1];
	initrd = argv[optind + 2];
	for (m = strtok_r(modes, ",", &save_m); m; m = strtok_r(NULL, ",", &save_m)) {
		test_options.irqchip = test_mode_parse(m);
		list = strdup(cpus);
		save_c = NULL;
		for (c = strtok_r(list, ",", &save_c); c; c = strtok_r(NULL, ",", &save_c)) {
			snprintf(label, sizeof(label), "boot-%s-%s-%s-%s", name, port, m, c);
			test_run(label, rounds_of, (uint64_t)atoi(c), limit * 2 * rounds);
		}
		free(list);
	}
	return test_status();
}
