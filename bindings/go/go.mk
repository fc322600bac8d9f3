# The Go package: a fragment of the Makefile.
#
#	make go			put the library where the go command finds it
#	make check-go		its tests here: no KVM needed
#	make check-go-kvm	its tests on real KVM: in the lab, or here on a RISC-V host
#
# Native tests run twice: against the library itself, whose KVM is not there, and
# against one with the fake KVM of the unit tests, where machines live (tag vmmfake).
# The go command must not look for anything on the network: the package needs nothing.

GO	?= go
GODIR	:= bindings/go
GOENV	:= GOFLAGS= GOPROXY=off GOTOOLCHAIN=local GOWORK=off CGO_ENABLED=1
GOFAKE	:= $(CURDIR)/$B/gofake

.PHONY: go gofake check-go check-go-kvm check-bindings check-bindings-kvm
go: $(GODIR)/vmm_amalgam.c	## the Go package, ready to build

$(GODIR)/vmm_amalgam.c: dist/vmm.c
	cp vmm.h $(GODIR)/vmm_amalgam.h
	{ echo '//go:build !libvmm'; echo; sed 's/^#include "vmm.h"/#include "vmm_amalgam.h"/' $<; } > $@

# The library with the fake KVM, as pkg-config knows it.
gofake: $(GOFAKE)/libvmm.a
$(GOFAKE)/libvmm.a: $(FAKE)
	@mkdir -p $(@D)
	rm -f $@
	$(AR) rcs $@ $^
	printf 'Name: vmm\nDescription: for tests\nVersion: %s\nCflags: -I%s\nLibs: %s\n' '$(VERSION)' \
		'$(CURDIR)' '$@ $(LIBS)' > $(@D)/vmm.pc

.PHONY: reference
reference: build/reference/python.md build/reference/go.txt	## of both bindings, out of their comments

build/reference/go.txt: go FORCE
	@mkdir -p $(@D)
	cd $(GODIR) && $(GOENV) $(GO) doc -all . > ../../$@

check-bindings:	## the Python and the Go binding, natively (FULL=1: longer)
	@FULL='$(FULL)' bindings/check

check-bindings-kvm:	## both on real KVM, in the lab
	@FULL='$(FULL)' bindings/check kvm

check-go: go $(GOFAKE)/libvmm.a	## the Go package's tests that need no KVM
	GO='$(GO)' FULL='$(FULL)' $(GODIR)/check $(GOFAKE)

# In the lab what is cross-built as everything for it is (tests/lab/cross.mk).
check-go-kvm:	## the Go package's tests on real KVM, in the lab
	@$(MAKE) -s ARCH=riscv64 $(addprefix build/riscv64/go,.test -boot -clones -pool)
	FULL='$(FULL)' $(GODIR)/check kvm $(if $(filter-out riscv64,$(shell uname -m)),tests/lab/run \
		--host $(or $(HOST),6.12) --timeout 3000 --env FULL='$(FULL)' --,env)

# A program as package vmm's tests are, in $B: $(call gobuild,go test -c,DIRECTORY).
gobuild	= cd $(GODIR) && $(GOENV) GOARCH=$(patsubst x86_64,amd64,$(ARCH)) CC='$(CC)' \
	CGO_CFLAGS='-O2 -g $(ARCH_CFLAGS)' CGO_LDFLAGS='$(ARCH_LDFLAGS)' $(GO) $(1) -o ../../$@ $(2)

$B/go.test: go FORCE
	@mkdir -p $(@D)
	$(call gobuild,test -c,.)

$B/go-%: go FORCE
	$(call gobuild,build,./examples/$*)

$B/bench/bindings-go: bench/bindings.go go FORCE
	@mkdir -p $(@D)
	$(call gobuild,build,../../bench/bindings.go)
