// SPDX-License-Identifier: MIT

package vmm

// #include "shim.h"
import "C"

import (
	"context"
	"fmt"
	"io"
	"os"
	"runtime/cgo"
	"syscall"
	"time"
)

// Snapshot is a machine frozen in time: registers, interrupt controller, timers,
// devices, RAM.  It never changes, and any number of machines can be restored from
// it.  Those, and pools, keep what they need when it is closed.
type Snapshot struct {
	*handle
	p    *C.struct_vmm_snap
	lost *finalizer[*handle]
}

type cSnap = *C.struct_vmm_snap

func newSnapshot(p cSnap) *Snapshot {
	h := newHandle(func() { C.vmm_snap_free(p) })
	return &Snapshot{h, p, finalize(h, (*handle).close)}
}

// do makes one call on the snapshot, which stays reachable meanwhile.
func (s *Snapshot) do(f func(p cSnap, s []*C.char, e cError) C.int, strs ...string) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	return call(func(c []*C.char, e cError) C.int { return f(s.p, c, e) }, strs...)
}

// Close frees the snapshot, when calls on it have returned and its pools are closed.
// It returns nil, and does nothing the second time.
func (s *Snapshot) Close() error {
	s.lost.cancel()
	s.close()
	return nil
}

// Snapshot freezes a Paused machine, which stays Paused and may go on.  Machines
// restored from it share its RAM until they write to it.  ErrNotSupported names a
// device that cannot be saved: see AddFS.
func (vm *VM) Snapshot() (*Snapshot, error) {
	var out cSnap
	err := vm.do(func(p cVM, _ []*C.char, e cError) C.int { return C.vmm_snap_take(&out, p, e) })
	if err != nil {
		return nil, err
	}
	return newSnapshot(out), nil
}

// Open opens a saved file.  What is read is checked against its hashes; the first
// Restore reads the rest.  ErrFormat: damaged, or no snapshot; ErrVersion: of a
// version that this library cannot read.
func Open(path string) (*Snapshot, error) {
	var out cSnap
	err := call(func(s []*C.char, e cError) C.int { return C.vmm_snap_open(&out, s[0], e) }, path)
	if err != nil {
		return nil, err
	}
	return newSnapshot(out), nil
}

// Receive is the other side of Send: it reads r to its end.
func Receive(r io.Reader) (*Snapshot, error) {
	var out cSnap
	err := through(func(pr, pw int) error {
		copied := make(chan error, 1)
		go func() {
			w := os.NewFile(uintptr(pw), "snapshot")
			_, err := io.Copy(w, r)
			w.Close()
			copied <- err
		}()
		err := call(func(_ []*C.char, e cError) C.int { return C.vmm_snap_receive(&out, C.int(pr), e) })
		syscall.Close(pr) // which ends the copying, if it has not
		if cause := <-copied; err != nil && cause != nil {
			err = fmt.Errorf("%w: %w", err, cause)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return newSnapshot(out), nil
}

// through gives f a pipe, both ends of which it closes.
func through(f func(r, w int) error) error {
	var fd [2]int
	if err := syscall.Pipe2(fd[:], syscall.O_CLOEXEC); err != nil {
		return os.NewSyscallError("pipe2", err)
	}
	return f(fd[0], fd[1])
}

// WriteConfig says how a snapshot is written.  What is left zero is the default.
type WriteConfig struct {
	Level   int    // of zstd; default 1
	Threads int    // that compress; default: one for each CPU
	Flags   uint32 // none yet

	// Called now and then, with bytes of RAM done and in all.
	Progress func(done, total uint64)

	// Path of a snapshot file: store only what differs from it.  That one must
	// stay as it is, and where it is seen from the new one.
	Parent string
}

// progress is what C calls; an end of ctx ends the write.
type progress struct {
	ctx context.Context
	f   func(done, total uint64)
}

//export vmmgoProgress
func vmmgoProgress(id C.uintptr_t, done, total C.uint64_t) C.int {
	p := cgo.Handle(id).Value().(*progress)
	if p.ctx.Err() != nil {
		return 1
	}
	if p.f != nil {
		p.f(uint64(done), uint64(total))
	}
	return 0
}

// writing calls f with what how says, parent excepted.
func writing(ctx context.Context, how *WriteConfig, f func(c *C.struct_vmm_write_config) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	c := allocate(C.vmmgo_write_init)
	defer free(c)
	c.level = C.int32_t(how.Level)
	c.threads = C.uint32_t(how.Threads)
	c.flags = C.uint32_t(how.Flags)
	id := cgo.NewHandle(&progress{ctx, how.Progress})
	defer id.Delete()
	C.vmmgo_write_progress(c, C.uintptr_t(id))
	err := f(c)
	if err != nil && ctx.Err() != nil {
		err = fmt.Errorf("%w: %w", ctx.Err(), err)
	}
	return err
}

// Write saves the snapshot: on success path holds all of it and it is on disk, on
// failure, or when ctx ends first, path is as it was.  how may be nil.
func (s *Snapshot) Write(ctx context.Context, path string, how *WriteConfig) error {
	how = orZero(how)
	return writing(ctx, how, func(c *C.struct_vmm_write_config) error {
		return s.do(func(p cSnap, s []*C.char, e cError) C.int {
			c.parent = s[1]
			return C.vmm_snap_write(p, s[0], c, e)
		}, path, how.Parent)
	})
}

func orZero[T any](p *T) *T {
	if p == nil {
		return new(T)
	}
	return p
}

// Send writes the snapshot, as Write does, to w: a connection, a pipe, a buffer.
func (s *Snapshot) Send(ctx context.Context, w io.Writer, how *WriteConfig) error {
	how = orZero(how)
	return through(func(pr, pw int) error {
		copied := make(chan error, 1)
		go func() {
			r := os.NewFile(uintptr(pr), "snapshot")
			_, err := io.Copy(w, r)
			r.Close() // which ends the write, if it has not
			copied <- err
		}()
		err := writing(ctx, how, func(c *C.struct_vmm_write_config) error {
			return s.do(func(p cSnap, s []*C.char, e cError) C.int {
				c.parent = s[0]
				return C.vmm_snap_send(p, C.int(pw), c, e)
			}, how.Parent)
		})
		syscall.Close(pw)
		cause := <-copied
		switch {
		case err == nil:
			return cause
		case cause != nil:
			return fmt.Errorf("%w: %w", err, cause)
		}
		return err
	})
}

// Merge writes a file and all that it stands on as one file, to, that stands on
// none.  Nothing is compressed again; how may be nil, and only its Progress is used,
// which is told frames, not bytes.
func Merge(ctx context.Context, from, to string, how *WriteConfig) error {
	how = orZero(how)
	return writing(ctx, how, func(c *C.struct_vmm_write_config) error {
		return call(func(s []*C.char, e cError) C.int {
			c.parent = s[2]
			return C.vmm_snap_merge(s[0], s[1], c, e)
		}, from, to, how.Parent)
	})
}

// Verify checks every byte of a file; the error says what is wrong where.
func Verify(path string) error {
	return call(func(s []*C.char, e cError) C.int { return C.vmm_snap_verify(s[0], e) }, path)
}

// SnapshotInfo is what a snapshot is of.
type SnapshotInfo struct {
	VCPUs   int
	Memory  uint64        // bytes of RAM
	Time    time.Duration // of the guest's clock, since its power-on
	Devices []SnapshotDevice
	Kernel  string // of the host it comes from

	// What the host must have.
	ISA        string // as in Host
	VLenB      int
	SATPBits   int
	TimebaseHz uint64

	// Of a file.
	Parents     []string // paths of the files it stands on, nearest first
	Created     time.Time
	FileSize    uint64 // 0: it is in no file
	RAMUsed     uint64 // bytes of RAM that are not zero
	RAMOwn      uint64 // bytes that they take in this file
	RAMParents  uint64 // and in those it stands on
	WorkingSet  int    // pages that are read first, if known
	FormatMajor int
	FormatMinor int
	UUID        [16]byte
}

// SnapshotDevice is a device of a machine that was frozen.
type SnapshotDevice struct {
	Type string // "blk", "net", "serial" ...
	Name string // that the Add methods know it by
}

// Info says what the snapshot is of, without restoring it.
func (s *Snapshot) Info() (*SnapshotInfo, error) {
	c := C.vmmgo_snap_info_init
	info := new(SnapshotInfo)
	err := s.do(func(p cSnap, _ []*C.char, e cError) C.int {
		rc := C.vmm_snap_info(p, &c, e)
		for i := C.uint32_t(0); rc == 0 && i < c.devices; i++ {
			var d C.struct_vmm_snap_device
			rc = C.vmm_snap_device(p, i, &d, e)
			info.Devices = append(info.Devices, SnapshotDevice{C.GoString(&d._type[0]), C.GoString(&d.name[0])})
		}
		for i := C.uint32_t(0); rc == 0 && i < c.parents; i++ {
			info.Parents = append(info.Parents, C.GoString(C.vmm_snap_parent(p, i)))
		}
		return rc
	})
	if err != nil {
		return nil, err
	}
	info.VCPUs = int(c.vcpus)
	info.Memory = uint64(c.memory)
	info.Time = time.Duration(c.time_ns)
	info.Kernel = C.GoString(&c.kernel[0])
	info.ISA = C.GoString(&c.isa[0])
	info.VLenB = int(c.vlenb)
	info.SATPBits = int(c.satp_bits)
	info.TimebaseHz = uint64(c.timebase_hz)
	info.Created = time.Unix(int64(c.created), 0)
	info.FileSize = uint64(c.file_size)
	info.RAMUsed = uint64(c.ram_used)
	info.RAMOwn = uint64(c.ram_own)
	info.RAMParents = uint64(c.ram_parents)
	info.WorkingSet = int(c.working_set)
	info.FormatMajor = int(c.format_major)
	info.FormatMinor = int(c.format_minor)
	for i := range info.UUID {
		info.UUID[i] = byte(c.uuid[i])
	}
	return info, nil
}

// RestoreFlags says what a restored machine is to be.
type RestoreFlags uint32

// Flags of a restore.
const (
	RestoreResume RestoreFlags = C.VMM_RESUME // the original is gone: keep its identity
	// Note which pages of RAM the machine touches, for Learn; it is slow.
	RestoreRecord RestoreFlags = C.VMM_RECORD
	// Map the working set now: the restore takes longer, and the run that follows
	// less.  Pools always do so.
	RestorePopulate RestoreFlags = C.VMM_POPULATE
)

// MemoryMode is how RAM comes out of a file, for the first machine that is restored
// from a snapshot: the others share what is there.
type MemoryMode uint32

// Ways for RAM to come.
const (
	// The machine runs at once, what it touches is decoded then, and the rest in
	// the background.  It takes userfaultfd; without it this is MemoryEager.
	MemoryLazy MemoryMode = C.VMM_MEM_LAZY
	// All of it, before Restore returns.
	MemoryEager MemoryMode = C.VMM_MEM_EAGER
)

// RestoreConfig says how a machine is restored.  What is left zero is the default.
type RestoreConfig struct {
	Flags   RestoreFlags
	IRQChip IRQChip // need not be as it was
	Threads int     // that decode; default: one for each CPU
	Memory  MemoryMode
	Name    string // as in Config
	Log     LogFunc
}

// restoring calls f with how as C has it, and the logger, which f takes.
func restoring(how *RestoreConfig, f func(c *C.struct_vmm_restore_config, log *logger) error) error {
	c := allocate(C.vmmgo_restore_init)
	defer free(c)
	c.flags = C.uint32_t(how.Flags)
	c.irqchip = C.uint32_t(how.IRQChip)
	c.threads = C.uint32_t(how.Threads)
	c.memory = C.uint32_t(how.Memory)
	log, err := newLogger(how.Log)
	if err != nil {
		return err
	}
	if log != nil {
		C.vmmgo_restore_log(c, C.uint64_t(log.id))
	}
	if err = f(c, log); err != nil {
		log.drop()
	}
	return err
}

// Restore makes a New machine from the snapshot, as often as wanted: this is
// cloning.  Its devices are there; the Add calls that described them, made again,
// give each its back end by its name.  Without that Start opens a disk by the path
// it had, and consoles have no input and drop their output.  The guest finds a new
// generation id, on which it reseeds its random numbers; its monotonic time goes on
// from where it stood.  how may be nil.
//
// ErrVersion names what the snapshot needs and this host lacks.
func (s *Snapshot) Restore(how *RestoreConfig) (*VM, error) {
	how = orZero(how)
	var vm *VM
	err := restoring(how, func(c *C.struct_vmm_restore_config, log *logger) error {
		var out cVM
		err := s.do(func(p cSnap, s []*C.char, e cError) C.int {
			c.name = s[0]
			return C.vmm_restore(&out, p, c, e)
		}, how.Name)
		if err == nil {
			vm = newVM(out, log)
		}
		return err
	})
	return vm, err
}

// Learn teaches the snapshot its working set: the pages that vm, restored from it
// with RestoreRecord, has touched so far.  Those that were written are copied for each
// clone ahead; the next Write packs them together, to come out of the file first.  Of a
// machine restored with RestorePopulate, too, what was known is among them.
func (s *Snapshot) Learn(vm *VM) error {
	return s.do(func(p cSnap, _ []*C.char, e cError) C.int {
		if vm.enter() != nil {
			return C.vmm_snap_learn(p, nil, e)
		}
		defer vm.leave()
		return C.vmm_snap_learn(p, vm.p, e)
	})
}
