# Benchmarks: "make bench-NAME" runs bench/NAME, which writes build/bench/NAME.json.

$B/bench/%: bench/%.c bench/bench.h $B/libvmm.a
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(CFLAGS) -I. -o $@ $< $B/libvmm.a $(LDFLAGS) $(LIBS) -ljson-c

RESTORE	:= bench/restore.c bench/restore_guests.c bench/restore_floor.c
$B/bench/restore: $(RESTORE) bench/restore.h bench/bench.h $B/libvmm.a
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(CFLAGS) -I. -o $@ $(RESTORE) $B/libvmm.a $(LDFLAGS) $(LIBS) -ljson-c

bench-%:	## % is boot, io, snapshot, restore, bindings, serverless; report shows all
	bench/$*

# What runs in Linux guests, with the libraries of the lab's tree.
$B/bench/inside/%: bench/inside/%.c bench/stream.h
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(CFLAGS) -Ibench -o $@ $< $(ARCH_LDFLAGS)

# What runs in guests, which may have no C library.
$B/bench/guest/%: bench/guest/%.c bench/guest/call.h vmm_guest.h
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(CFLAGS) -fno-stack-protector -I. -nostdlib -static -o $@ $<
