/* SPDX-License-Identifier: MIT */
/*
 * touch.h - errands of harts before their guest runs: to have KVM map RAM, and
 * to forget what was mapped.
 */
#ifndef RISCV_TOUCH_H
#define RISCV_TOUCH_H

#include "../core/machine.h"

/*
 * Have hart 0, which is fresh, read a byte of each page of these runs of RAM: a fault each,
 * which the guest is then spared.  Its thread is there (vcpus_ready); registers and RAM are
 * as they were when this returns.
 */
int touch(struct machine *m, const struct mem_warm *runs, uint32_t n, struct vmm_error *err);

/*
 * Have each hart, which is as new again but has run, forget what it has translated: page tables
 * of the guest are not what they were.  -errno.
 */
int touch_forget(struct machine *m);

#endif
