/* SPDX-License-Identifier: MIT */
/*
 * device.h - what a device and an interrupt controller are to the machine.
 *
 * A device is a table of functions and a struct device embedded in its own
 * state.  It knows its registers, its interrupt, its back end and the I/O
 * loop; it does not know that KVM or snapshots exist.  Its state (what the
 * guest can see) is kept apart from its back end (descriptors, threads), so
 * that the state can be saved here and loaded there.
 */
#ifndef CORE_DEVICE_H
#define CORE_DEVICE_H

#include "bus.h"
#include "state.h"

struct loop;

/* ---- Interrupts -------------------------------------------------------- */

struct irqchip;

struct irqchip_ops {
	const char	*name;		/* in logs and snapshots */
	uint16_t	version;	/* of what save writes */
	/* Raise or lower a wired line; any thread. */
	void		(*line)(struct irqchip *chip, uint32_t line, int level);
	/* Add the controller's nodes to the device tree being written at fdt;
	   *phandle is what devices name as their interrupt parent. */
	int		(*fdt)(struct irqchip *chip, void *fdt, uint32_t *phandle);
	/* With every vCPU out of the guest. */
	int		(*save)(struct irqchip *chip, struct writer *w, struct vmm_error *err);
	int		(*load)(struct irqchip *chip, struct reader *r, struct vmm_error *err);
	/* Is an interrupt of a line pending, and enabled, in the interrupt file of the hart
	   that it goes to?  *hart is which; its vCPU is out of the guest. */
	int		(*pending)(struct irqchip *chip, uint32_t line, uint32_t *hart);
	/* Its vCPUs are as new: make it fit to be loaded again; -errno. */
	int		(*renew)(struct irqchip *chip);
	void		(*free)(struct irqchip *chip);
};

struct irqchip {
	const struct irqchip_ops *ops;
};

/* One wired interrupt.  All are edge-triggered: a pulse is an interrupt. */
struct irq {
	struct irqchip	**chip;		/* the machine's; it changes at a reset */
	uint32_t	line;		/* 0: none */
};

void irq_pulse(const struct irq *irq);

/* ---- Devices ----------------------------------------------------------- */

struct device;

struct device_ops {
	const char	*type;		/* "uart": in logs and snapshots */
	uint16_t	version;	/* of what save writes */
	const struct bus_ops *bus;	/* NULL: it has no registers */
	/* Back to power-on: the guest's side only.  I/O lock held. */
	void		(*reset)(struct device *d);
	/* The vCPUs are held and no callback runs: finish what is in flight,
	   start nothing.  NULL: nothing ever is. */
	void		(*quiesce)(struct device *d);
	/* Of a quiet device; load may meet any bytes.  save NULL: its state
	   is not here, and the machine cannot be saved. */
	void		(*save)(const struct device *d, struct writer *w);
	int		(*load)(struct device *d, struct reader *r, struct vmm_error *err);
	/* A restored clone is about to run for the first time.  May be NULL. */
	void		(*cloned)(struct device *d);
	/* Where loop->orphan is set: only memory, and descriptors. */
	void		(*free)(struct device *d);
};

struct device {
	const struct device_ops *ops;
	struct device	*next;		/* in the order the guest finds them */
	char		name[32];	/* unique in its machine */
	uint64_t	gpa, size;	/* of its registers, as in its tree node */
	struct irq	irq;
	/* Its device tree node: compatible and, if not NULL, one cell more. */
	const char	*compatible, *cell_name;
	uint32_t	cell;
};

#endif
