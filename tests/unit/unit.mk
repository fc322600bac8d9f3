# Native tests: no KVM, no root, any Linux.  Included by the Makefile.
#
# Programs with the fake KVM link the library's objects, all but core/kvm.o.
# Each kind of build has its directory, so that switching costs nothing:
#
#	build/ARCH-san		AddressSanitizer and UBSan
#	build/ARCH-tsan		ThreadSanitizer
#	build/ARCH-fuzz		libFuzzer (clang)

FAKE	:= $(filter-out $B/core/kvm.o,$(OBJ)) $B/tests/unit/fake_kvm.o
FUZZ	:= $(patsubst tests/fuzz/%.c,%,$(wildcard tests/fuzz/fuzz_*.c))
FAULT	:= $(patsubst tests/fault/%.c,%,$(wildcard tests/fault/fault_*.c))
T	?= fuzz_image
TIME	?= 60

# ThreadSanitizer does not understand fences, and gcc says so.
ifeq ($(SAN)$(findstring clang,$(CC)),thread)
CFLAGS	+= -Wno-tsan
endif

# Tests are compiled with the library's warnings, and for speed of building.
$B/tests/%.o: tests/%.c
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(CFLAGS) -MMD -MP -c -o $@ $<

$B/unit/%: $B/tests/unit/%.o $(FAKE)
	@mkdir -p $(@D)
	$(CC) -o $@ $^ $(LDFLAGS) -lcmocka $(LIBS)

# Each fuzz target is run over its seeds, and over what has been found, by a
# main() of our own.
$B/fuzz/%: $B/tests/fuzz/%.o $B/tests/fuzz/main.o $(FAKE)
	@mkdir -p $(@D)
	$(CC) -o $@ $^ $(LDFLAGS) $(LIBS)

# Fault injection: what allocates and what opens is called through us.
FAULT_WRAP := malloc calloc realloc strdup free pthread_create memfd_create ftruncate mmap eventfd \
	epoll_create1 epoll_ctl timerfd_create open fcntl fstat pread pwrite madvise ioctl syscall strndup realpath asprintf
$B/fault/%: $B/tests/fault/%.o $(FAKE)
	@mkdir -p $(@D)
	$(CC) -o $@ $^ $(FAULT_WRAP:%=-Wl,--wrap=%) $(LDFLAGS) $(LIBS)

-include $(wildcard $B/tests/*/*.d)

.PHONY: check-unit check-warnings check-tsan check-fault check-fuzz fuzz unit-run tsan-run fault-run fuzz-run fuzz-all

# What looks at the library as it is built for use.
HOUSE	= 'tests/unit/check-source build/$(ARCH)' 'tests/unit/check-examples build/$(ARCH)'

# As many jobs as there are CPUs, unless it was said how many.
JOBS	= $(if $(findstring -j,$(MAKEFLAGS)),,-j$(shell nproc))

check-unit:	## unit tests and fuzz corpora, under ASan and UBSan: seconds (FULL=1: more)
	@$(MAKE) -s $(JOBS) DEVELOPER=1 all
	@$(MAKE) -s $(JOBS) SAN=address,undefined B=build/$(ARCH)-san unit-run

check-tsan:	## unit tests under ThreadSanitizer: a minute
	@$(MAKE) -s $(JOBS) SAN=thread B=build/$(ARCH)-tsan tsan-run

check-fault:	## the first, second, ... allocation, system call, KVM call fails
	@$(MAKE) -s $(JOBS) SAN=address,undefined B=build/$(ARCH)-san fault-run

check-warnings:	## gcc and clang, native and cross-built: none may warn
	@env -u MAKEFLAGS tests/unit/run \
		'gcc: make -s DEVELOPER=1 B=build/gcc all && echo ok 1' \
		'clang: make -s DEVELOPER=1 CC=clang B=build/clang all && echo ok 1' \
		'riscv64-gcc: make -s ARCH=riscv64 DEVELOPER=1 B=build/gcc-riscv64 all && echo ok 1' \
		'riscv64-clang: make -s ARCH=riscv64 DEVELOPER=1 CROSS_CC=clang B=build/clang-riscv64 all && echo ok 1'

FUZZING	= CC=clang SAN=fuzzer-no-link,address,undefined B=build/$(ARCH)-fuzz

fuzz:	## libFuzzer on T=fuzz_image for TIME=60 seconds
	@$(MAKE) -s $(JOBS) $(FUZZING) fuzz-run

check-fuzz:	## libFuzzer on every target, TIME=60 seconds each
	@$(MAKE) -s $(JOBS) $(FUZZING) fuzz-all

# FULL=1: 10,000 bits flipped, 200 writers killed (test_snapbad.c).
unit-run: $(UNIT) $(FUZZ:%=$B/fuzz/%)
	@env -u SAN -u B -u MAKEFLAGS -u MAKEOVERRIDES $(if $(FULL),SNAP_FLIPS=10000 SNAP_KILLS=200) tests/unit/run $(HOUSE) $(UNIT) $(foreach f,$(FUZZ),'$B/fuzz/$f $(wildcard tests/fuzz/corpus/$f)')

tsan-run: $(UNIT)
	@tests/unit/run $(UNIT)

fault-run: $(FAULT:%=$B/fault/%)
	@tests/unit/run $^

# libFuzzer's own main() instead of ours.
$B/fuzz/%.fuzzer: $B/tests/fuzz/%.o $(FAKE)
	@mkdir -p $(@D)
	$(CC) -fsanitize=fuzzer -o $@ $^ $(LDFLAGS) $(LIBS)

fuzz-run: $B/fuzz/$T $B/fuzz/$T.fuzzer
	tests/fuzz/run $B $T $(TIME)

fuzz-all: $(FUZZ:%=$B/fuzz/%) $(FUZZ:%=$B/fuzz/%.fuzzer)
	@tests/unit/run $(foreach f,$(FUZZ),'$f: tests/fuzz/run $B $f $(TIME)')
