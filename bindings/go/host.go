// SPDX-License-Identifier: MIT

package vmm

// #include "shim.h"
import "C"

import "time"

// The version of the C interface that this package was built with.
const (
	VersionMajor = C.VMM_VERSION_MAJOR
	VersionMinor = C.VMM_VERSION_MINOR
	VersionPatch = C.VMM_VERSION_PATCH
	Version      = C.VMM_VERSION // major * 1000000 + minor * 1000 + patch
)

// LibraryVersion gives the [Version] of the library in use.
func LibraryVersion() uint32 { return uint32(C.vmm_version()) }

// IRQChip is an interrupt controller.
type IRQChip uint32

// Interrupt controllers.
const (
	IRQChipDefault    IRQChip = C.VMM_IRQCHIP_DEFAULT     // the best that is sound on this host
	IRQChipAIAEmul    IRQChip = C.VMM_IRQCHIP_AIA_EMUL    // in-kernel AIA, interrupt files in memory
	IRQChipAIAHWAccel IRQChip = C.VMM_IRQCHIP_AIA_HWACCEL // ... in hardware, or nothing runs
	IRQChipAIAAuto    IRQChip = C.VMM_IRQCHIP_AIA_AUTO    // ... in hardware while any is free
)

func (c IRQChip) String() string {
	return name(int(c), "default", "aia-emul", "aia-hwaccel", "aia-auto")
}

// IRQChips is a set of interrupt controllers: bits 1 << IRQChip.
type IRQChips uint32

// Has reports whether c is one of them.
func (s IRQChips) Has(c IRQChip) bool { return s>>c&1 != 0 }

// Host is what a host offers.
type Host struct {
	MaxVCPUs      int // in one machine
	IRQChip       IRQChip
	IRQChips      IRQChips // what the host offers
	IRQChipsSound IRQChips // what its kernel gets right
	GPABits       int      // width of a guest-physical address
	SATPBits      int      // 39, 48 or 57: the guest's widest paging
	VLenB         int      // bytes in a vector register, or 0
	TimebaseHz    uint64   // ticks of the guest's time a second
	Kernel        string   // release of the host kernel
	ISA           string   // all a guest can have, as "rv64imafdc_sstc"
	Note          string   // why IRQChip is what it is, for people
	Lazy          bool     // MemoryLazy works; if not, it is MemoryEager
	LazyNote      string   // why, for people
}

// Probe finds out what this host offers; it needs no machine and leaves none behind.
// ErrNoKVM says that there is no usable KVM, ErrNotSupported that KVM lacks what a
// machine needs; both name what is missing.
func Probe() (*Host, error) {
	c := C.vmmgo_host_init
	if err := call(func(_ []*C.char, e cError) C.int { return C.vmm_probe(&c, e) }); err != nil {
		return nil, err
	}
	return &Host{
		MaxVCPUs:      int(c.max_vcpus),
		IRQChip:       IRQChip(c.irqchip),
		IRQChips:      IRQChips(c.irqchips),
		IRQChipsSound: IRQChips(c.irqchips_sound),
		GPABits:       int(c.gpa_bits),
		SATPBits:      int(c.satp_bits),
		VLenB:         int(c.vlenb),
		TimebaseHz:    uint64(c.timebase_hz),
		Kernel:        C.GoString(&c.kernel[0]),
		ISA:           C.GoString(&c.isa[0]),
		Note:          C.GoString(&c.note[0]),
		Lazy:          c.lazy != 0,
		LazyNote:      C.GoString(&c.lazy_note[0]),
	}, nil
}

// Stage is a part of a machine's start; the parts follow each other.
type Stage int

// Stages, for Stats.Stages.
const (
	StageKVM     Stage = C.VMM_STAGE_KVM     // open KVM, check what it can do
	StageVM      Stage = C.VMM_STAGE_VM      // KVM_CREATE_VM
	StageMemory  Stage = C.VMM_STAGE_MEMORY  // guest RAM, and its memslot
	StageVCPUs   Stage = C.VMM_STAGE_VCPUS   // vCPUs and what they are configured with
	StageIRQChip Stage = C.VMM_STAGE_IRQCHIP // interrupt controller
	StageLoad    Stage = C.VMM_STAGE_LOAD    // kernel and initrd
	StageStart   Stage = C.VMM_STAGE_START   // device tree, boot registers, threads
	NumStages          = C.VMM_STAGES
)

func (s Stage) String() string {
	return name(int(s), "kvm", "vm", "memory", "vcpus", "irqchip", "load", "start")
}

// Exit is what a vCPU left the guest for.
type Exit int

// Exits, for Stats.Exits.
const (
	ExitMMIO   Exit = C.VMM_EXIT_MMIO   // a device register, handled by the library
	ExitSBI    Exit = C.VMM_EXIT_SBI    // an SBI call, handled by the library
	ExitCSR    Exit = C.VMM_EXIT_CSR    // a CSR, handled by the library
	ExitSignal Exit = C.VMM_EXIT_SIGNAL // kicked by the library
	ExitOther  Exit = C.VMM_EXIT_OTHER  // other exits to the library
	ExitKernel Exit = C.VMM_EXIT_KERNEL // handled by KVM: page faults, SBI, CSRs, WFI
	NumExits        = C.VMM_EXITS
)

func (x Exit) String() string { return name(int(x), "mmio", "sbi", "csr", "signal", "other", "kernel") }

// Stats are a machine's figures.
type Stats struct {
	VCPUs         int
	Memory        uint64                   // bytes of RAM
	MemoryUsed    uint64                   // of them, held in host memory
	MemoryOwn     uint64                   // bytes that no other machine shares
	MemoryWaits   uint64                   // accesses that waited for RAM to be decoded
	MemoryDecoded uint64                   // bytes decoded, for all machines of the snapshot
	Stages        [NumStages]time.Duration // by Stage: what each took
	Setup         time.Duration            // spent in Create and Start together
	Exits         [NumExits]uint64         // by Exit, all vCPUs together
}

// Stats gives the machine's figures, in any state; of one that runs they are of now.
func (vm *VM) Stats() (*Stats, error) {
	c := C.vmmgo_stats_init
	err := vm.do(func(p cVM, _ []*C.char, e cError) C.int { return C.vmm_stat(p, &c, e) })
	if err != nil {
		return nil, err
	}
	s := &Stats{
		VCPUs:         int(c.vcpus),
		Memory:        uint64(c.memory),
		MemoryUsed:    uint64(c.memory_used),
		MemoryOwn:     uint64(c.memory_own),
		MemoryWaits:   uint64(c.memory_waits),
		MemoryDecoded: uint64(c.memory_decoded),
		Setup:         time.Duration(c.setup_ns),
	}
	for i := range s.Stages {
		s.Stages[i] = time.Duration(c.stage_ns[i])
	}
	for i := range s.Exits {
		s.Exits[i] = uint64(c.exits[i])
	}
	return s, nil
}
