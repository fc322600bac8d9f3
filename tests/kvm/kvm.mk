# Tests on real KVM: host programs (tests/kvm) and the guests they run
# (tests/guest).  A fragment of the Makefile.
#
#	make check-kvm			all of them, on every host (tests/kvm/check)
#	make check-kvm T=test_life	one program, on the first host
#	make check-kvm FULL=1		20 boots in a row, 100 snapshots, 1000 restores
#	make ARCH=riscv64 kvm-tests	build them only

KVM_TESTS	:= $(patsubst tests/kvm/%.c,$B/kvm/%,$(wildcard tests/kvm/test_*.c))
KVM_GUESTS	:= $(patsubst tests/guest/%.c,$B/guest/%,$(wildcard tests/guest/*.c))

# Guests are freestanding and never linked with anything: integer registers
# only, so that a guest that tests floating point says so itself.
GUEST_CC	:= $(if $(filter riscv64,$(shell uname -m)),cc,riscv64-linux-gnu-gcc)
GUEST_CFLAGS	:= -std=gnu11 -O2 -g -march=rv64imac_zicsr_zifencei -mabi=lp64 -mcmodel=medany \
	-ffreestanding -fno-pic -fno-delete-null-pointer-checks -fno-stack-protector -fno-common -fno-asynchronous-unwind-tables \
	-Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wundef $(if $(DEVELOPER),-Werror)
GUEST_LDFLAGS	:= -nostdlib -static -no-pie -Wl,-T,tests/guest/lib/guest.ld -Wl,--build-id=none \
	-Wl,--no-warn-rwx-segments

$B/guest/lib/%.o: tests/guest/lib/%.c
	@mkdir -p $(@D)
	$(GUEST_CC) $(GUEST_CFLAGS) -MMD -MP -c -o $@ $<

$B/guest/lib/%.o: tests/guest/lib/%.S
	@mkdir -p $(@D)
	$(GUEST_CC) $(GUEST_CFLAGS) -MMD -MP -c -o $@ $<

$B/guest/%: tests/guest/%.c $B/guest/lib/start.o $B/guest/lib/guest.o tests/guest/lib/guest.ld
	$(GUEST_CC) $(GUEST_CFLAGS) $(GUEST_LDFLAGS) -MMD -MP -MF $@.d -o $@ \
		$(filter %.o %.c,$^)

# A program for Linux guests, which stands on nothing but system calls.
$B/guest/busy: tests/guest/linux/busy.c
	@mkdir -p $(@D)
	$(GUEST_CC) $(subst rv64imac,rv64gc,$(subst lp64,lp64d,$(GUEST_CFLAGS))) -nostdlib -static -no-pie \
		-Wl,--build-id=none -Wl,--no-warn-rwx-segments -MMD -MP -MF $@.d -o $@ $<

$B/kvm/%: $B/tests/kvm/%.o $B/tests/kvm/kvmtest.o $B/tests/kvm/inlinux.o $B/libvmm.a
	@mkdir -p $(@D)
	$(CC) -o $@ $^ $(LDFLAGS) $(LIBS)

# What tests with a Linux guest run in it, in the userland of the lab.
$B/kvm/inside: tests/kvm/inside.c tests/kvm/peer.h tests/kvm/pattern.h
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(CFLAGS) -o $@ $< $(ARCH_LDFLAGS) -lpthread

-include $(wildcard $B/guest/*.d $B/guest/lib/*.d $B/tests/kvm/*.d)

.PHONY: kvm-tests check-kvm
kvm-tests: $(KVM_TESTS) $(KVM_GUESTS) $B/guest/busy $B/kvm/inside

check-kvm:	## tests on real KVM: in the lab, or here on a RISC-V host (T=one FULL=1)
	T="$(if $(findstring command,$(origin T)),$(T))" FULL="$(FULL)" tests/kvm/check
