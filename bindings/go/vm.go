// SPDX-License-Identifier: MIT

package vmm

// #include "shim.h"
import "C"

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"
)

// State is where a machine is in its life.
type State int

// A machine is New until it is started, and again after Reset.
const (
	StateNew     State = C.VMM_NEW
	StateRunning State = C.VMM_RUNNING
	StatePaused  State = C.VMM_PAUSED
	StateStopped State = C.VMM_STOPPED
	StateBroken  State = C.VMM_BROKEN // it can only be closed, or has been
)

func (s State) String() string {
	return name(int(s), "new", "running", "paused", "stopped", "broken")
}

func name(i int, names ...string) string {
	if i < 0 || i >= len(names) {
		return fmt.Sprintf("%d?", i)
	}
	return names[i]
}

// Config says what machine [Create] makes.  What is left zero is the default.
type Config struct {
	VCPUs   int    // 1 to 64; default 1
	Memory  uint64 // bytes of RAM, in 2 MiB steps; default 128 MiB
	IRQChip IRQChip
	Flags   uint32 // none yet

	Kernel     string   // path; required unless KernelFile is given
	KernelFile *os.File // used if there is no Kernel; need not stay open
	Initrd     string   // path of an initial RAM disk
	InitrdFile *os.File // the same
	Cmdline    string   // of the kernel

	// What the guest is to have, as "rv64imafdc_zba_zbb", or what to take away
	// from all the host has, as "-v,-zicbom"; default: all the host has.
	ISA string

	Name string // in logs and thread names; default "vm"
	Log  LogFunc
}

// VM is a virtual machine.  Its methods may be called from any goroutine; calls on
// one machine take turns, but Wait lets the others pass.
//
// Close is how it ends.  One that becomes unreachable is closed by the garbage
// collector, some time; connections, listeners and consoles that came of it keep it.
type VM struct {
	// Value is the caller's.  A pool keeps it with the machine, from Prepare to
	// Take and from Give to the next Take.
	Value any

	*machine
	lost *finalizer[*machine]
	cid  atomic.Uint32 // of its vsock device, if we know
}

type cVM = *C.struct_vmm

// machine is what there is of a VM when nobody has it any more.
type machine struct {
	*handle
	p      cVM
	log    *logger
	waiter chan struct{} // holds one token: who has it sleeps on events
	mu     sync.Mutex
	events *os.File // vmm_fd, once somebody has slept on it
}

func newVM(p cVM, log *logger) *VM {
	m := &machine{p: p, log: log, waiter: make(chan struct{}, 1)}
	m.handle = newHandle(func() { C.vmm_free(p); log.drop() })
	vm := &VM{machine: m}
	vm.lost = finalize(m, (*machine).close)
	return vm
}

// Create makes a machine, which has no devices yet, and is to be closed.  Files are
// read now, and again by Reset.
func Create(config Config) (*VM, error) {
	c := allocate(C.vmmgo_config_init)
	defer free(c)
	c.vcpus = C.uint32_t(config.VCPUs)
	c.memory = C.uint64_t(config.Memory)
	c.irqchip = C.uint32_t(config.IRQChip)
	c.flags = C.uint32_t(config.Flags)
	log, err := newLogger(config.Log)
	if err != nil {
		return nil, err
	}
	if log != nil {
		C.vmmgo_config_log(c, C.uint64_t(log.id))
	}
	var p cVM
	err = withFDs(func(fd []C.int) error {
		c.kernel_fd, c.initrd_fd = fd[0], fd[1]
		return call(func(s []*C.char, e cError) C.int {
			c.kernel, c.initrd, c.cmdline, c.isa, c.name = s[0], s[1], s[2], s[3], s[4]
			return C.vmm_create(&p, c, e)
		}, config.Kernel, config.Initrd, config.Cmdline, config.ISA, config.Name)
	}, conn(config.KernelFile), conn(config.InitrdFile))
	if err != nil {
		log.drop()
		return nil, err
	}
	return newVM(p, log), nil
}

// conn gives a nil interface for a nil file.
func conn(f *os.File) syscall.Conn {
	if f == nil {
		return nil
	}
	return f
}

// do makes one call on the machine.  The receiver stays reachable meanwhile.
func (vm *VM) do(f func(p cVM, s []*C.char, e cError) C.int, strs ...string) error {
	if err := vm.enter(); err != nil {
		return err
	}
	defer vm.leave()
	return call(func(s []*C.char, e cError) C.int { return f(vm.p, s, e) }, strs...)
}

// Close stops the machine at once, as if by pulling the plug, and frees it.  Calls
// that wait, of other goroutines, fail with [os.ErrClosed].  It returns nil, and
// does nothing if the machine is closed already.
func (vm *VM) Close() error {
	vm.lost.cancel()
	vm.close()
	runtime.KeepAlive(vm)
	return nil
}

func (m *machine) close() {
	if m.shut() {
		m.wake()
		C.vmm_stop(m.p, nil) // who waits for the guest gives up
		m.hush()
		m.leave()
	}
	<-m.freed
}

// hush lets go of what Wait sleeps on.
func (m *machine) hush() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.events != nil {
		m.events.Close()
	}
}

// Start runs a machine that is New or Paused, on threads of the library's.  It
// returns at once.
func (vm *VM) Start() error {
	return vm.do(func(p cVM, _ []*C.char, e cError) C.int { return C.vmm_start(p, e) })
}

// Pause holds a Running machine still.  It returns when no vCPU is in the guest,
// every access it had begun is finished, and no device has I/O in flight.  The
// guest's monotonic time stands still until Start.  ErrState if the guest stopped
// first.
func (vm *VM) Pause() error {
	defer vm.wake()
	return vm.do(func(p cVM, _ []*C.char, e cError) C.int { return C.vmm_pause(p, e) })
}

// Stop powers a Running, Paused or New machine off, as if by pulling the plug; no
// event tells of it.
func (vm *VM) Stop() error {
	defer vm.wake()
	return vm.do(func(p cVM, _ []*C.char, e cError) C.int { return C.vmm_stop(p, e) })
}

// Reset takes a machine that does not run back to New: one that was created reads
// its files again, one that was restored goes back to its snapshot.  Devices keep
// what stands behind them; queued events are dropped.
func (vm *VM) Reset() error {
	defer vm.wake()
	return vm.do(func(p cVM, _ []*C.char, e cError) C.int { return C.vmm_reset(p, e) })
}

// State gives the machine's state; [StateBroken] when it has been closed.
func (vm *VM) State() State {
	if vm.enter() != nil {
		return StateBroken
	}
	defer vm.leave()
	return State(C.vmm_state(vm.p))
}

// FDT gives the device tree that a New machine would be started with, or that it
// was started with.  ErrState if it was restored.
func (vm *VM) FDT() ([]byte, error) {
	var b []byte
	err := vm.do(func(p cVM, _ []*C.char, e cError) C.int {
		var n C.size_t
		rc := C.vmm_fdt(p, nil, 0, &n, e)
		for rc == 0 && n > C.size_t(len(b)) {
			b = make([]byte, n)
			rc = C.vmm_fdt(p, unsafe.Pointer(&b[0]), n, &n, e)
		}
		b = b[:min(int(n), len(b))]
		return rc
	})
	if err != nil {
		return nil, err
	}
	return b, nil
}

// ReadAt copies guest memory from guest-physical address gpa on: all of b, or
// nothing and ErrInvalid if it is not all RAM.  In any state; of a machine that
// runs, bytes may be of different moments.  RAM begins at 0x80000000.
func (vm *VM) ReadAt(b []byte, gpa int64) (int, error) {
	return vm.copied(b, func(p cVM, _ []*C.char, e cError) C.int {
		return C.vmm_read(p, C.uint64_t(gpa), unsafe.Pointer(unsafe.SliceData(b)), C.size_t(len(b)), e)
	})
}

// WriteAt copies b to guest-physical address gpa: see ReadAt.
func (vm *VM) WriteAt(b []byte, gpa int64) (int, error) {
	return vm.copied(b, func(p cVM, _ []*C.char, e cError) C.int {
		return C.vmm_write(p, C.uint64_t(gpa), unsafe.Pointer(unsafe.SliceData(b)), C.size_t(len(b)), e)
	})
}

func (vm *VM) copied(b []byte, f func(cVM, []*C.char, cError) C.int) (int, error) {
	if err := vm.do(f); err != nil {
		return 0, err
	}
	return len(b), nil
}

// EventType says what happened.
type EventType uint32

// What a machine can tell.
const (
	EventNone     EventType = C.VMM_EV_NONE     // nothing more: the machine does not run
	EventShutdown EventType = C.VMM_EV_SHUTDOWN // the guest powered off; Value: its exit code
	EventReboot   EventType = C.VMM_EV_REBOOT   // the guest asked to restart; it is Stopped
	EventCrash    EventType = C.VMM_EV_CRASH    // the guest cannot go on; Detail says why
	EventDoorbell EventType = C.VMM_EV_DOORBELL // the guest rang with Value
	EventFault    EventType = C.VMM_EV_FAULT    // the host side failed: it is Broken
	EventDevice   EventType = C.VMM_EV_DEVICE   // what is behind a device failed: Detail; Value is an errno
)

func (t EventType) String() string {
	return name(int(t), "none", "shutdown", "reboot", "crash", "doorbell", "fault", "device")
}

// Event is something that a machine tells.
type Event struct {
	Type   EventType
	VCPU   int // that caused it
	Value  uint64
	Time   time.Duration // CLOCK_MONOTONIC of the host
	Detail string        // one line, for people, or empty
}

// Wait gives the next event.  If none is queued and the machine is not Running, that
// is at once one of type EventNone.  A guest that rings faster than its events are
// taken is made to wait.
func (vm *VM) Wait(ctx context.Context) (Event, error) {
	if err := vm.enter(); err != nil {
		return Event{}, err
	}
	defer vm.leave()
	ev, more, err := vm.poll()
	if !more {
		return ev, err
	}
	select {
	case vm.waiter <- struct{}{}:
		defer func() { <-vm.waiter }()
	case <-ctx.Done():
		return Event{}, ctx.Err()
	case <-vm.closing:
		return Event{}, os.ErrClosed
	}
	raw, err := vm.sleeper()
	if err != nil {
		return Event{}, err
	}
	defer context.AfterFunc(ctx, vm.wake)()
	for {
		// Who wakes us changes things first, and then the deadline: we look at
		// them in the other order.
		err := vm.events.SetReadDeadline(time.Time{})
		if vm.closed() {
			return Event{}, os.ErrClosed
		}
		if ctx.Err() != nil {
			return Event{}, ctx.Err()
		}
		if err != nil {
			return Event{}, err
		}
		var failed error
		err = raw.Read(func(uintptr) bool {
			ev, more, failed = vm.poll()
			return !more
		})
		switch {
		case err == nil:
			return ev, failed
		case vm.closed():
			return Event{}, os.ErrClosed
		case !errors.Is(err, os.ErrDeadlineExceeded):
			return Event{}, err
		}
	}
}

// Events gives the events to come, until the machine does not run and none is left,
// or with an error, which is the last.
//
//	for ev, err := range vm.Events(ctx) {
func (vm *VM) Events(ctx context.Context) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		for {
			ev, err := vm.Wait(ctx)
			if err == nil && ev.Type == EventNone {
				return
			}
			if !yield(ev, err) || err != nil {
				return
			}
		}
	}
}

// poll takes an event; more: there is none, but one may come.
func (m *machine) poll() (ev Event, more bool, err error) {
	var c C.struct_vmm_event
	for again := false; ; again = true {
		err = call(func(_ []*C.char, e cError) C.int { return C.vmm_wait(m.p, 0, &c, e) })
		if err != nil {
			return Event{}, false, err
		}
		if c._type != C.VMM_EV_NONE || again {
			break
		}
		if C.vmm_state(m.p) == C.VMM_RUNNING {
			return Event{}, true, nil
		}
		// It may have stopped, and told why, since we asked.
	}
	return Event{
		Type:   EventType(c._type),
		VCPU:   int(c.vcpu),
		Value:  uint64(c.value),
		Time:   time.Duration(c.time_ns),
		Detail: C.GoString(&c.detail[0]),
	}, false, nil
}

// sleeper makes Go's own poller watch vmm_fd: a goroutine that waits takes no thread.
func (m *machine) sleeper() (syscall.RawConn, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed() {
		return nil, os.ErrClosed
	}
	if m.events == nil {
		fd, err := closeOnExec(int(C.vmm_fd(m.p)))
		if err != nil {
			return nil, err
		}
		m.events = os.NewFile(uintptr(fd), "events")
	}
	return m.events.SyscallConn()
}

// wake makes who sleeps in Wait look again.
func (m *machine) wake() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.events != nil {
		_ = m.events.SetReadDeadline(time.Unix(1, 0))
	}
}
