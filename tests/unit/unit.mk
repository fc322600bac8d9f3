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
	epoll_create1 epoll_ctl timerfd_create open fcntl fstat pread pwrite madvise
$B/fault/%: $B/tests/fault/%.o $(FAKE)
	@mkdir -p $(@D)
	$(CC) -o $@ $^ $(FAULT_WRAP:%=-Wl,--wrap=%) $(LDFLAGS) $(LIBS)

-include $(wildcard $B/tests/*/*.d)

.PHONY: check-unit check-tsan check-fault fuzz unit-run tsan-run fault-run fuzz-run

# What looks at the library as it is built for use.
HOUSE	= 'tests/unit/check-source build/$(ARCH)' 'tests/unit/check-examples build/$(ARCH)'

check-unit:	## unit tests and fuzz corpora, under ASan and UBSan: seconds
	@$(MAKE) -s DEVELOPER=1 all
	@$(MAKE) -s SAN=address,undefined B=build/$(ARCH)-san unit-run

check-tsan:	## unit tests under ThreadSanitizer: a minute
	@$(MAKE) -s SAN=thread B=build/$(ARCH)-tsan tsan-run

check-fault:	## the first, second, ... allocation, system call, KVM call fails
	@$(MAKE) -s SAN=address,undefined B=build/$(ARCH)-san fault-run

fuzz:	## libFuzzer on T=fuzz_image for TIME=60 seconds
	@$(MAKE) -s CC=clang SAN=fuzzer-no-link,address,undefined B=build/$(ARCH)-fuzz fuzz-run

unit-run: $(UNIT) $(FUZZ:%=$B/fuzz/%)
	@env -u SAN -u B -u MAKEFLAGS -u MAKEOVERRIDES tests/unit/run $(HOUSE) $(UNIT) $(foreach f,$(FUZZ),'$B/fuzz/$f $(wildcard tests/fuzz/corpus/$f)')

tsan-run: $(UNIT)
	@tests/unit/run $(UNIT)

fault-run: $(FAULT:%=$B/fault/%)
	@tests/unit/run $^

fuzz-run: $B/fuzz/$T $B/tests/fuzz/$T.o $(FAKE)
	@mkdir -p $B/corpus/$T
	@$B/fuzz/$T -w $B/corpus/$T
	@$(CC) -fsanitize=fuzzer -o $B/fuzz/$T.fuzzer $B/tests/fuzz/$T.o $(FAKE) $(LDFLAGS) $(LIBS)
	$B/fuzz/$T.fuzzer -max_total_time=$(TIME) -rss_limit_mb=4096 -timeout=10 -verbosity=1 \
		-print_final_stats=1 -artifact_prefix=$B/ $B/corpus/$T $(wildcard tests/fuzz/corpus/$T)
