# Benchmarks: "make bench-NAME" runs bench/NAME, which writes build/bench/NAME.json.

$B/bench/%: bench/%.c bench/bench.h $B/libvmm.a
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(CFLAGS) -I. -o $@ $< $B/libvmm.a $(LDFLAGS) $(LIBS) -ljson-c

bench-%:
	bench/$*
