# vmm - a library that runs RISC-V virtual machines on KVM.
#
#	make			the library and the vmm tool, for this machine
#	make ARCH=riscv64	the same, cross-built against the lab's root tree
#	make help		every target
#
# Output goes to build/ARCH; nothing is written elsewhere but dist/ (amalgam).

ARCH	?= $(shell uname -m)
B	:= build/$(ARCH)$(if $(SAN),-san)
PREFIX	?= /usr/local
DESTDIR	?=
LIBDIR	?= $(PREFIX)/lib

VERSION	:= $(shell sed -n 's/^.define VMM_VERSION_[MP][AI][JNT][OC][RH] *//p; s/^.define VMM_VERSION_MINOR *//p' vmm.h | paste -sd.)
SONAME	:= libvmm.so.$(firstword $(subst ., ,$(VERSION)))

ifeq ($(ARCH),$(shell uname -m))
PKG_CONFIG ?= pkg-config
OBJCOPY	?= objcopy
else
include tests/lab/cross.mk
CC	:= $(CROSS_CC)
AR	:= $(CROSS_AR)
LD	:= $(CROSS_LD)
OBJCOPY	:= $(CROSS_OBJCOPY)
PKG_CONFIG := $(CROSS_PKG_CONFIG)
ARCH_CFLAGS := $(CROSS_CFLAGS)
ARCH_LDFLAGS := $(CROSS_LDFLAGS)
endif

WARN	:= -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes \
	-Wold-style-definition -Wpointer-arith -Wwrite-strings -Wcast-qual -Wundef -Wvla \
	-Wformat=2 -Winit-self -Wredundant-decls -Wnested-externs -Wimplicit-fallthrough \
	-Wconversion -Wswitch-enum
ifneq ($(findstring clang,$(CC)),clang)
WARN	+= -Wmaybe-uninitialized -Wlogical-op
endif
ifdef DEVELOPER
WARN	+= -Werror
endif

OPT	?= -O2 -g -D_FORTIFY_SOURCE=2 -fstack-protector-strong
ifdef SAN	# SAN=address,undefined or SAN=thread
OPT	:= -O1 -g -fno-omit-frame-pointer -fsanitize=$(SAN)
LDSAN	:= -fsanitize=$(SAN)
endif

PKGS	:= libfdt libzstd libxxhash liburing zlib
# libfdt has no .pc file in Debian.
pkg	= $(shell $(PKG_CONFIG) $(1) $(filter-out libfdt,$(PKGS)) 2>/dev/null)
CPPFLAGS += -D_GNU_SOURCE -DVMM_API='__attribute__((visibility("default")))'
CFLAGS	:= -std=gnu11 $(OPT) -fvisibility=hidden -fno-common $(WARN) $(ARCH_CFLAGS) $(CFLAGS)
LDFLAGS	:= $(ARCH_LDFLAGS) $(LDSAN) $(LDFLAGS)
LIBS	:= -lfdt $(or $(call pkg,--libs),-lzstd -lxxhash -luring -lz) -lpthread

SRC	:= $(wildcard core/*.c riscv/*.c virtio/*.c snapshot/*.c) $(wildcard vmm*.c)
OBJ	:= $(SRC:%.c=$B/%.o)
TESTS	:= $(wildcard tests/unit/test_*.c)
UNIT	:= $(TESTS:tests/unit/%.c=$B/unit/%)

.DEFAULT_GOAL := all
FORCE:
.PHONY: FORCE all lib tool serverless amalgam install uninstall clean help
.SECONDARY:
.DELETE_ON_ERROR:

all: lib tool	## the library and the tool (default)

lib: $B/libvmm.a $B/libvmm.so $B/vmm.pc	## libvmm.a, libvmm.so, vmm.pc

$B/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(CFLAGS) -fPIC -MMD -MP -c -o $@ $<

# One object, in which only what vmm.h declares is still a symbol.
$B/libvmm.a: $(OBJ)
	$(LD) -r -o $B/libvmm.o $(OBJ)
	$(OBJCOPY) --localize-hidden $B/libvmm.o
	rm -f $@
	$(AR) rcs $@ $B/libvmm.o

$B/libvmm.so: $(OBJ) vmm.map
	$(CC) -shared -Wl,-soname,$(SONAME) -Wl,--version-script=vmm.map -Wl,-z,defs \
		-Wl,-z,now -Wl,-z,relro -o $@ $(OBJ) $(LDFLAGS) $(LIBS)
	ln -sf libvmm.so $B/$(SONAME)

# Anew each time: it holds PREFIX.
$B/vmm.pc: vmm.pc.in vmm.h FORCE
	@mkdir -p $(@D)
	@sed -e 's,@PREFIX@,$(PREFIX),; s,@LIBDIR@,$(LIBDIR),; s,@VERSION@,$(VERSION),' $< > $@

-include $(OBJ:.o=.d)

# Programs that use vmm.h only.
tool: $B/vmm	## the vmm command

TOOL	:= examples/vmm.c $(wildcard examples/tool_*.c)

$B/vmm: $(TOOL) examples/tool.h $B/libvmm.a
	$(CC) $(CPPFLAGS) $(CFLAGS) -I. -o $@ $(TOOL) $B/libvmm.a $(LDFLAGS) $(LIBS) -ljson-c

$B/examples/%: examples/%.c $B/libvmm.a
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(CFLAGS) -I. -o $@ $< $B/libvmm.a $(LDFLAGS) $(LIBS)

# With libmicrohttpd, which nothing else needs.
serverless: $B/serverless	## examples/serverless.c, a function host behind HTTP

$B/serverless: examples/serverless.c $B/libvmm.a
	$(CC) $(CPPFLAGS) $(CFLAGS) $(MICROHTTPD_CFLAGS) -I. -o $@ $< $B/libvmm.a $(LDFLAGS) $(LIBS) \
		$(MICROHTTPD_LIBS)

MICROHTTPD_LIBS ?= -lmicrohttpd

# The guest's helper: RISC-V, no C library, no dynamic linker.  Its flags are its own.
ifeq ($(ARCH),riscv64)
all: $B/vmm-guest
INSTALL_GUEST = install -D -m 755 $B/vmm-guest $(DESTDIR)$(LIBDIR)/vmm/vmm-guest
endif

$B/vmm-guest: examples/vmm-guest.c vmm_guest.h
	@mkdir -p $(@D)
	$(CC) $(ARCH_CFLAGS) -I. -std=gnu11 -Os $(WARN) -ffreestanding -fno-stack-protector -fno-pie \
		-march=rv64gc -mabi=lp64d -nostdlib -static -Wl,--build-id=none -s -o $@ $<

clean:	## remove what was built, not what was downloaded
	rm -rf build/$(ARCH) build/$(ARCH)-san dist

help:	## this list
	@sed -n 's/^\([a-z][a-z%-]*\):.*## */\1\t/p' $(MAKEFILE_LIST) | expand -t 20

# ---- Distribution ------------------------------------------------------------

amalgam: dist/vmm.c	## dist/vmm.c and dist/vmm.h: the library as two files

dist/vmm.c: $(SRC) $(wildcard core/*.h riscv/*.h virtio/*.h snapshot/*.h) vmm.h vmm_impl.h core/amalgam.awk
	@mkdir -p dist
	awk -v version=$(VERSION) -f core/amalgam.awk $(SRC) > $@
	cp vmm.h vmm_guest.h dist/

MAN	:= $(wildcard docs/man/*)

install: all	## into DESTDIR and PREFIX (/usr/local)
	install -d $(DESTDIR)$(PREFIX)/include $(DESTDIR)$(LIBDIR)/pkgconfig \
		$(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/share/bash-completion/completions
	install -m 644 vmm.h vmm_guest.h $(DESTDIR)$(PREFIX)/include
	install -m 644 $B/libvmm.a $(DESTDIR)$(LIBDIR)
	install -m 755 $B/libvmm.so $(DESTDIR)$(LIBDIR)/libvmm.so.$(VERSION)
	ln -sf libvmm.so.$(VERSION) $(DESTDIR)$(LIBDIR)/$(SONAME)
	ln -sf $(SONAME) $(DESTDIR)$(LIBDIR)/libvmm.so
	install -m 644 $B/vmm.pc $(DESTDIR)$(LIBDIR)/pkgconfig
	install -m 755 $B/vmm $(DESTDIR)$(PREFIX)/bin
	install -m 644 docs/vmm.bash $(DESTDIR)$(PREFIX)/share/bash-completion/completions/vmm
	$(INSTALL_GUEST)
	for m in $(MAN); do install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/man/man$${m##*.} $$m; done

uninstall:	## take away what install put there
	rm -f $(DESTDIR)$(PREFIX)/include/vmm.h $(DESTDIR)$(PREFIX)/include/vmm_guest.h \
		$(DESTDIR)$(LIBDIR)/libvmm.a $(DESTDIR)$(LIBDIR)/libvmm.so* \
		$(DESTDIR)$(LIBDIR)/pkgconfig/vmm.pc $(DESTDIR)$(PREFIX)/bin/vmm \
		$(DESTDIR)$(LIBDIR)/vmm/vmm-guest \
		$(DESTDIR)$(PREFIX)/share/bash-completion/completions/vmm
	for m in $(notdir $(MAN)); do rm -f $(DESTDIR)$(PREFIX)/share/man/man$${m##*.}/$$m; done

# ---- Tests, demonstration, measurements ----------------------------------------

-include tests/unit/unit.mk
-include tests/kvm/kvm.mk
-include bench/bench.mk
-include bindings/python/python.mk
-include bindings/go/go.mk

.PHONY: check demo lab-shell size
check:	## set everything up and run every test, native and on KVM
	tests/check

demo:	## set everything up and boot two kernels on KVM, to be seen
	examples/demo

lab-shell:	## a shell in the emulated RISC-V host
	tests/lab/setup
	tests/lab/shell

size:	## lines of each file, bytes of the library
	@wc -l vmm.h $(SRC) | sort -n
	@size $B/libvmm.so 2>/dev/null || true
