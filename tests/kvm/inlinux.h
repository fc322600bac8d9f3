/* SPDX-License-Identifier: MIT */
/*
 * inlinux.h - a test whose guest is Linux with a real userland.
 *
 * The guest boots a kernel and the busybox initramfs of the lab, with three
 * disks: vda is the lab's riscv64 tree, read-only (root.erofs beside the kernel's
 * directory), vdb a script, vdc the program "inside".  It changes its root to vda
 * and has bash run the script, in which
 *
 *	inside ...	is tests/kvm/inside.c
 *	say WORD...	prints a line for il_expect()
 *	hear		waits for a line that il_say() sends, and prints it
 *	/tmp		is the guest's own memory
 *
 * A command that fails ends the script and the case.  Devices that a case adds
 * come after these: the first disk is vdd.
 */
#ifndef INLINUX_H
#define INLINUX_H

#include "kvmtest.h"

struct inlinux {
	struct vmm	*vm;
	struct console	con;
	size_t		at;		/* what has been read of the console */
	char		files[2][64];	/* of script and program */
};

/* The first two arguments of the program: test_main_args(). */
extern const char *il_kernel, *il_initrd;

/* A NEW machine; MiB of RAM. */
void il_new(struct inlinux *g, const char *script, uint32_t vcpus, unsigned int mib);
void il_start(struct inlinux *g);

/* Wait for a line that the script says; what came after the words is in rest,
   if that is not NULL. */
void il_expect(struct inlinux *g, const char *words, int seconds);
void il_expect_rest(struct inlinux *g, const char *words, char *rest, size_t cap, int seconds);
void il_say(struct inlinux *g, const char *line);

/* The script has come to its end, all went well, and the machine is off; free it. */
void il_end(struct inlinux *g, int seconds);
void il_free(struct inlinux *g);	/* at once */

/* A directory for files of this case, and its removal at the end of the case. */
const char *il_dir(void);

/* A new file of that many bytes, a hole; its path, until the next but three calls. */
const char *il_file(const char *dir, const char *name, uint64_t bytes);

/*
 * A file system of its own for this case, of kind "tmpfs", or "ext4" on a loop
 * device; skips the case without root.
 */
const char *il_mount(const char *kind, unsigned int mib);

/* From now on, answer what connects to this listening socket (peer.h, of which rest_ms is). */
void il_serve(int s, unsigned int rest_ms);

/* Run a command of the host's shell; its exit status, and output up to cap. */
int il_shell(char *out, size_t cap, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

#endif
