# Cross building for the lab, a fragment for GNU make.
#
# Headers and libraries are those of the tree the programs will run in,
# build/lab/root, never the cross compiler's own: Debian 12's cross libc is
# older than that tree.  CROSS_CC=clang works with the same flags.
#
#     include tests/lab/cross.mk
#     prog: prog.c
#             $(CROSS_CC) $(CROSS_CFLAGS) `$(CROSS_PKG_CONFIG) --cflags libfdt` \
#                 -o $@ $< $(CROSS_LDFLAGS) `$(CROSS_PKG_CONFIG) --libs libfdt`

LAB_DIR  := $(abspath $(dir $(lastword $(MAKEFILE_LIST)))../../build/lab)
LAB_ROOT := $(LAB_DIR)/root
LAB_LIB  := $(LAB_ROOT)/usr/lib/riscv64-linux-gnu

CROSS_CC ?= riscv64-linux-gnu-gcc
CROSS_AR ?= riscv64-linux-gnu-ar
CROSS_OBJCOPY ?= riscv64-linux-gnu-objcopy
CROSS_LD ?= riscv64-linux-gnu-ld

# -nostdinc, and the tree's directories by name: with --sysroot alone both
# compilers would look into /usr/riscv64-linux-gnu first.
CROSS_CFLAGS = $(CROSS_TARGET) --sysroot=$(LAB_ROOT) -nostdinc \
	-isystem $(CROSS_OWN_INCLUDE) \
	-isystem $(LAB_ROOT)/usr/include/riscv64-linux-gnu \
	-isystem $(LAB_ROOT)/usr/include
CROSS_LDFLAGS = $(CROSS_TARGET) --sysroot=$(LAB_ROOT) -B$(LAB_LIB) -L$(LAB_LIB)

ifneq ($(findstring clang,$(CROSS_CC)),)
CROSS_TARGET := --target=riscv64-linux-gnu
CROSS_OWN_INCLUDE := $(shell $(CROSS_CC) -print-resource-dir 2>/dev/null)/include
else
CROSS_OWN_INCLUDE := $(shell $(CROSS_CC) -print-file-name=include 2>/dev/null)
endif

CROSS_PKG_CONFIG := PKG_CONFIG_SYSROOT_DIR=$(LAB_ROOT) \
	PKG_CONFIG_LIBDIR=$(LAB_LIB)/pkgconfig:$(LAB_ROOT)/usr/share/pkgconfig \
	PKG_CONFIG_ALLOW_SYSTEM_CFLAGS= pkg-config

# With -fsanitize=..., beside CROSS_LDFLAGS: the tree's sanitizer libraries.
CROSS_SAN_LDFLAGS = -L$(LAB_ROOT)/usr/lib/gcc/riscv64-linux-gnu/14
