// SPDX-License-Identifier: MIT

//go:build vmmfake

package vmm_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"vmm"
	"vmm/internal/fakekvm"
)

// Tests with the fake KVM: machines live, and their guests do as they are told.

const (
	ram = 0x80000000
	MiB = 1 << 20
)

// lab readies the fake host for a test, and looks afterwards whether KVM would have
// liked it all, and whether every descriptor is back.
func lab(t *testing.T, g fakekvm.Guest, value uint64) (kernel string) {
	t.Helper()
	// The logs' own descriptors, once and for all.
	vm, err := vmm.Create(vmm.Config{Kernel: "/nowhere", Log: func(vmm.LogLevel, string) {}})
	if err == nil {
		vm.Close()
	}
	runtime.GC()
	fakekvm.Reset()
	fakekvm.SetGuest(g, value)
	image := make([]byte, 4096)
	copy(image[48:], "RISCV")
	copy(image[56:], "RSC\x05")
	kernel = filepath.Join(t.TempDir(), "Image")
	ok(t, os.WriteFile(kernel, image, 0o666))
	before := openFDs(t)
	t.Cleanup(func() {
		for deadline := time.Now().Add(20 * time.Second); openFDs(t) > before; {
			if time.Now().After(deadline) {
				t.Fatalf("%d descriptors, %d before", openFDs(t), before)
			}
			runtime.GC()
			time.Sleep(time.Millisecond)
		}
		if v := fakekvm.Violation(); v != "" {
			t.Errorf("KVM: %s", v)
		}
	})
	return kernel
}

func create(t testing.TB, kernel string) *vmm.VM {
	t.Helper()
	vm, err := vmm.Create(vmm.Config{Kernel: kernel, Memory: 4 * MiB})
	ok(t, err)
	t.Cleanup(func() { vm.Close() })
	return vm
}

func start(t testing.TB, kernel string) *vmm.VM {
	t.Helper()
	vm := create(t, kernel)
	ok(t, vm.Start())
	return vm
}

func expect(t testing.TB, vm *vmm.VM, want vmm.EventType, value uint64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	ev, err := vm.Wait(ctx)
	ok(t, err)
	if ev.Type != want || ev.Value != value {
		t.Fatalf("%v %d (%s), not %v %d", ev.Type, ev.Value, ev.Detail, want, value)
	}
}

func TestLife(t *testing.T) {
	kernel := lab(t, fakekvm.Rings, 77)
	vm := create(t, kernel)
	if vm.State() != vmm.StateNew {
		t.Fatal(vm.State())
	}
	ok(t, vm.AddSerial(nil, nil))
	fdt, err := vm.FDT()
	ok(t, err)
	if !bytes.HasPrefix(fdt, []byte{0xd0, 0x0d, 0xfe, 0xed}) {
		t.Error("that is no device tree")
	}
	fails(t, vm.Pause(), vmm.ErrState)
	ok(t, vm.Start())
	expect(t, vm, vmm.EventDoorbell, 77)
	ok(t, vm.Pause())
	if ev, err := vm.Wait(context.Background()); err != nil || ev.Type != vmm.EventNone {
		t.Fatal(ev, err)
	}
	n, err := vm.WriteAt([]byte("here"), ram+3*MiB)
	ok(t, err)
	b := make([]byte, 4)
	if _, err := vm.ReadAt(b, ram+3*MiB); err != nil || n != 4 || string(b) != "here" {
		t.Fatal(n, err, b)
	}
	_, err = vm.ReadAt(b, ram+4*MiB-2)
	fails(t, err, vmm.ErrInvalid)
	_, err = vm.ReadAt(b, -1)
	fails(t, err, vmm.ErrInvalid)
	if _, err = vm.ReadAt(nil, ram); err != nil {
		t.Error(err)
	}
	st, err := vm.Stats()
	ok(t, err)
	if st.VCPUs != 1 || st.Memory != 4*MiB || st.Setup <= 0 || st.Exits[vmm.ExitSBI] == 0 {
		t.Errorf("%+v", st)
	}
	ok(t, vm.Start())
	ok(t, vm.Stop())
	ok(t, vm.Reset())
	ok(t, vm.Start())
	expect(t, vm, vmm.EventDoorbell, 77)
	ok(t, vm.Close())
	ok(t, vm.Close())
	if err := vm.Start(); !errors.Is(err, os.ErrClosed) {
		t.Error(err)
	}
	if _, err := vm.Wait(context.Background()); !errors.Is(err, os.ErrClosed) {
		t.Error(err)
	}
	if vm.State() != vmm.StateBroken {
		t.Error(vm.State())
	}
}

func TestEnds(t *testing.T) {
	kernel := lab(t, fakekvm.Ends, 42)
	vm := start(t, kernel)
	var evs []vmm.Event
	for ev, err := range vm.Events(context.Background()) {
		ok(t, err)
		evs = append(evs, ev)
	}
	if len(evs) != 1 || evs[0].Type != vmm.EventShutdown || evs[0].Value != 42 || evs[0].Time <= 0 {
		t.Errorf("%+v", evs)
	}
	fakekvm.SetGuest(fakekvm.Fails, 0)
	vm = start(t, kernel)
	ev, err := vm.Wait(context.Background())
	ok(t, err)
	if ev.Type != vmm.EventFault || ev.Detail == "" {
		t.Errorf("%+v", ev)
	}
	fails(t, vm.Stop(), vmm.ErrBroken)
	fakekvm.NoKVM(syscall.EACCES)
	_, err = vmm.Probe()
	fails(t, err, vmm.ErrNoKVM)
	if !errors.Is(err, os.ErrPermission) {
		t.Error(err)
	}
	fakekvm.NoKVM(0)
	h, err := vmm.Probe()
	ok(t, err)
	if h.ISA == "" || h.TimebaseHz == 0 || h.MaxVCPUs < 1 || !h.IRQChips.Has(h.IRQChip) {
		t.Errorf("%+v", h)
	}
}

// Codes that come of what the host lacks; the others are in the tests around.
func TestHostErrors(t *testing.T) {
	kernel := lab(t, fakekvm.Rings, 1)
	s := frozen(t, kernel)
	fakekvm.Poor()
	_, err := s.Restore(nil)
	fails(t, err, vmm.ErrVersion)
	if !strings.Contains(err.Error(), "zbb") {
		t.Error(err)
	}
	ok(t, s.Close())
	fakekvm.Reset()
	fakekvm.NoAIA()
	_, err = vmm.Probe()
	fails(t, err, vmm.ErrNotSupported)
	fakekvm.Reset()
	fakekvm.NoMemory()
	_, err = vmm.Create(vmm.Config{Kernel: kernel, Memory: 4 * MiB})
	fails(t, err, vmm.ErrNoMemory)
	if !errors.Is(err, syscall.ENOMEM) || !strings.Contains(err.Error(), "vCPU 0") {
		t.Error(err)
	}
	fakekvm.Reset()
}

func TestDevices(t *testing.T) {
	kernel := lab(t, fakekvm.Spins, 0)
	vm := create(t, kernel)
	disk := filepath.Join(t.TempDir(), "disk")
	ok(t, os.WriteFile(disk, make([]byte, MiB), 0o666))
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC, 0)
	ok(t, err)
	ours, theirs := os.NewFile(uintptr(pair[0]), "ours"), os.NewFile(uintptr(pair[1]), "theirs")
	defer ours.Close()

	serial, err := vm.SerialConn()
	ok(t, err)
	defer serial.Close()
	ok(t, vm.AddBlk("disk", disk, vmm.BlkOverlay))
	ok(t, vm.SetQueues("disk", 2))
	ok(t, vm.Limit("disk", 1<<20, 0))
	ok(t, vm.AddRNG("rng"))
	console, err := vm.ConsoleConn("console")
	ok(t, err)
	defer console.Close()
	port, err := vm.PortConn("console", "agent")
	ok(t, err)
	defer port.Close()
	ok(t, vm.ResizeConsole("console", 80, 25))
	ok(t, vm.AddBalloon("balloon"))
	ok(t, vm.Balloon("balloon", MiB))
	fails(t, vm.Trim(context.Background(), "balloon"), vmm.ErrState)
	bs, err := vm.BalloonStats("balloon")
	ok(t, err)
	if bs.Target != MiB {
		t.Errorf("%+v", bs)
	}
	ok(t, vm.AddNet("net", theirs, net.HardwareAddr{2, 0, 0, 0, 0, 1}))
	theirs.Close()
	ok(t, vm.AddVsock(7))
	l, err := vm.Listen(1024)
	ok(t, err)
	if l.Addr().String() != "2:1024" || l.Addr().Network() != "vsock" {
		t.Error(l.Addr())
	}
	accepted := make(chan error)
	go func() {
		_, err := l.Accept()
		accepted <- err
	}()
	l.Close()
	if err := <-accepted; !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}

	fails(t, vm.AddBlk("", disk, 0), vmm.ErrInvalid)
	fails(t, vm.AddBlk("disk", disk, 0), vmm.ErrInvalid)
	fails(t, vm.AddBlk("other", disk+"x", 0), vmm.ErrSys)
	if err := vm.AddBlk("other", disk+"x", 0); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	fails(t, vm.AddNet("n2", nil, nil), vmm.ErrInvalid)
	fails(t, vm.AddNet("n2", ours, net.HardwareAddr{1}), vmm.ErrInvalid)
	fails(t, vm.AddFS("fs", nil), vmm.ErrInvalid)
	fails(t, vm.AddVhostBlk("vb", nil), vmm.ErrInvalid)
	fails(t, vm.ResizeBlk("none"), vmm.ErrInvalid)
	ok(t, vm.Start())
	ok(t, vm.ResizeBlk("disk"))
	fails(t, vm.Trim(context.Background(), "balloon"), vmm.ErrNotSupported)
	fails(t, vm.AddRNG("late"), vmm.ErrState)

	ok(t, vm.Pause())
	s, err := vm.Snapshot()
	ok(t, err)
	defer s.Close()
	info, err := s.Info()
	ok(t, err)
	found := ""
	for _, d := range info.Devices {
		found += d.Type + ":" + d.Name + " "
	}
	for _, want := range []string{"blk:disk", "rng:rng", "balloon:balloon", "net:net"} {
		if !strings.Contains(found, want) {
			t.Errorf("%s is not among %s", want, found)
		}
	}
	ok(t, vm.Close())
	if _, err := io.ReadAll(console); err != nil { // its other end has gone
		t.Error(err)
	}
}

func frozen(t testing.TB, kernel string) *vmm.Snapshot {
	t.Helper()
	vm := start(t, kernel)
	ok(t, vm.Pause())
	_, err := vm.WriteAt([]byte("original"), ram+3*MiB)
	ok(t, err)
	s, err := vm.Snapshot()
	ok(t, err)
	t.Cleanup(func() { s.Close() })
	vm.Close()
	return s
}

func original(t testing.TB, vm *vmm.VM) {
	t.Helper()
	b := make([]byte, 8)
	_, err := vm.ReadAt(b, ram+3*MiB)
	ok(t, err)
	if string(b) != "original" {
		t.Fatalf("%q", b)
	}
}

func TestSnapshots(t *testing.T) {
	kernel := lab(t, fakekvm.Rings, 5)
	s := frozen(t, kernel)
	dir := t.TempDir()
	path := filepath.Join(dir, "s")
	ok(t, s.Write(context.Background(), path, &vmm.WriteConfig{Level: 3, Threads: 1}))
	ok(t, vmm.Verify(path))
	var sent bytes.Buffer
	ok(t, s.Send(context.Background(), &sent, nil))
	odd := errors.New("odd")
	if err := s.Send(context.Background(), badWriter{odd}, nil); !errors.Is(err, odd) {
		t.Error(err)
	}

	opened, err := vmm.Open(path)
	ok(t, err)
	received, err := vmm.Receive(&sent)
	ok(t, err)
	for _, from := range []*vmm.Snapshot{s, opened, received} {
		vm, err := from.Restore(&vmm.RestoreConfig{Memory: vmm.MemoryEager, Name: "clone"})
		ok(t, err)
		original(t, vm)
		ok(t, vm.Start())
		ok(t, vm.Pause())
		_, err = vm.WriteAt([]byte("changed!"), ram+3*MiB)
		ok(t, err)
		if from == opened {
			clone, err := vm.Snapshot()
			ok(t, err)
			ok(t, clone.Write(context.Background(), filepath.Join(dir, "diff"), &vmm.WriteConfig{Parent: path}))
			ok(t, clone.Close())
		}
		ok(t, vm.Reset())
		original(t, vm)
		ok(t, vm.Close())
	}
	diff, err := vmm.Open(filepath.Join(dir, "diff"))
	ok(t, err)
	info, err := diff.Info()
	ok(t, err)
	if len(info.Parents) != 1 || info.Parents[0] != path {
		t.Errorf("%q", info.Parents)
	}
	ok(t, diff.Close())

	vm, err := opened.Restore(&vmm.RestoreConfig{Flags: vmm.RestoreRecord})
	ok(t, err)
	ok(t, opened.Close())
	if err := opened.Learn(vm); !errors.Is(err, os.ErrClosed) {
		t.Error(err)
	}
	original(t, vm) // it keeps what it needs
	ok(t, vm.Close())
	fails(t, received.Learn(vm), vmm.ErrInvalid)
	ok(t, received.Close())

	ctx, cancel := context.WithCancel(context.Background())
	err = s.Write(ctx, filepath.Join(dir, "none"), &vmm.WriteConfig{Progress: func(_, _ uint64) { cancel() }})
	if err != nil { // it may have been quicker
		if !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		if _, err := os.Stat(filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
			t.Error(err)
		}
	}
}

type badWriter struct{ err error }

func (b badWriter) Write([]byte) (int, error) { return 0, b.err }

// soon wants f to return an error that is want, soon after trigger.
func soon(t *testing.T, what string, f func() error, trigger func(), want error) {
	t.Helper()
	got := make(chan error, 1)
	go func() { got <- f() }()
	time.Sleep(10 * time.Millisecond)
	select {
	case err := <-got:
		t.Fatalf("%s: did not wait: %v", what, err)
	default:
	}
	trigger()
	select {
	case err := <-got:
		if !errors.Is(err, want) {
			t.Fatalf("%s: %v, not %v", what, err, want)
		}
	case <-time.After(time.Minute):
		t.Fatalf("%s: still waits", what)
	}
}

func TestWaiting(t *testing.T) {
	kernel := lab(t, fakekvm.Spins, 0)
	vm := start(t, kernel)
	wait := func(ctx context.Context) func() error {
		return func() error {
			_, err := vm.Wait(ctx)
			return err
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	soon(t, "cancel", wait(ctx), cancel, context.Canceled)
	soon(t, "pause", wait(context.Background()), func() { ok(t, vm.Pause()) }, nil)
	ok(t, vm.Start())
	ctx, cancel = context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if _, err := vm.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	// Several wait, one is called off, and the others for something else.
	ctx, cancel = context.WithCancel(context.Background())
	soon(t, "cancel one of two", func() error {
		var others waitGroup
		for range 3 {
			others.Go(func() { vm.Wait(context.Background()) })
		}
		time.Sleep(5 * time.Millisecond)
		_, err := vm.Wait(ctx)
		vm.Stop()
		others.Wait()
		return err
	}, cancel, context.Canceled)
	ok(t, vm.Reset())
	ok(t, vm.Start())
	soon(t, "close", wait(context.Background()), func() { ok(t, vm.Close()) }, os.ErrClosed)
}

func TestConnecting(t *testing.T) {
	kernel := lab(t, fakekvm.Spins, 0)
	vm := create(t, kernel)
	ok(t, vm.AddVsock(3))
	dial := func(ctx context.Context) func() error {
		return func() error {
			_, err := vm.Connect(ctx, 9)
			return err
		}
	}
	fails(t, dial(context.Background())(), vmm.ErrRefused) // it does not run
	ok(t, vm.Start())
	ctx, cancel := context.WithCancel(context.Background())
	soon(t, "cancel", dial(ctx), cancel, context.Canceled)
	ctx, cancel = context.WithTimeout(context.Background(), 30*time.Millisecond)
	defer cancel()
	err := dial(ctx)()
	fails(t, err, vmm.ErrTimeout)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	soon(t, "stop", dial(context.Background()), func() { ok(t, vm.Stop()) }, vmm.ErrRefused)
	ok(t, vm.Reset())
	ok(t, vm.Start())
	soon(t, "close", dial(context.Background()), func() { ok(t, vm.Close()) }, os.ErrClosed)
}

// A connection is what package net says that one is, for small and for big messages.
func TestConn(t *testing.T) {
	kernel := lab(t, fakekvm.Spins, 0)
	vm := create(t, kernel)
	c, err := vm.SerialConn()
	ok(t, err)
	ok(t, vm.Start())
	for _, size := range []int{1, 100, 1 << 20} {
		b := make([]byte, size)
		ok(t, c.SetDeadline(time.Now().Add(20*time.Millisecond)))
		if n, err := c.Read(b); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error(n, err)
		}
		ok(t, c.SetDeadline(time.Time{}))
		soon(t, "deadline", func() error {
			_, err := c.Read(b)
			return err
		}, func() { ok(t, c.SetDeadline(time.Unix(1, 0))) }, os.ErrDeadlineExceeded)
	}
	if n, err := c.Read(nil); n != 0 || err != nil {
		t.Error(n, err)
	}
	// The guest reads nothing: there is an end to what finds room.
	for _, size := range []int{1 << 10, 1 << 20} {
		ok(t, c.SetDeadline(time.Now().Add(100*time.Millisecond)))
		for total := 0; ; {
			n, err := c.Write(make([]byte, size))
			if total += n; n < 0 || n > size || err == nil && n < size || total > 64*MiB {
				t.Fatal(n, err, total)
			}
			if err != nil {
				if !errors.Is(err, os.ErrDeadlineExceeded) {
					t.Error(err)
				}
				break
			}
		}
	}
	ok(t, c.SetDeadline(time.Time{}))
	soon(t, "close", func() error {
		_, err := c.Read(make([]byte, 1))
		return err
	}, func() { ok(t, c.Close()) }, net.ErrClosed)
	for _, f := range []func([]byte) (int, error){c.Read, c.Write} {
		if _, err := f([]byte{1}); !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	}

	// The machine goes.
	vm = create(t, kernel)
	c, err = vm.SerialConn()
	ok(t, err)
	defer c.Close()
	ok(t, vm.Start())
	soon(t, "end", func() error {
		_, err := c.Read(make([]byte, 1))
		return err
	}, func() { ok(t, vm.Close()) }, io.EOF)
	_, err = c.Write([]byte{1})
	var op *net.OpError
	if !errors.Is(err, syscall.EPIPE) || !errors.As(err, &op) || op.Op != "write" {
		t.Error(err)
	}
}

func TestPool(t *testing.T) {
	kernel := lab(t, fakekvm.Rings, 5)
	s := frozen(t, kernel)
	var n atomic.Int32
	p, err := s.NewPool(&vmm.PoolConfig{
		Ready:   2,
		Restore: &vmm.RestoreConfig{Name: "pooled", Log: func(vmm.LogLevel, string) {}},
		Prepare: func(vm *vmm.VM) error {
			vm.Value = n.Add(1)
			return nil
		},
	})
	ok(t, err)
	ok(t, s.Close()) // the pool keeps it
	seen := make(map[any]bool)
	var vms []*vmm.VM
	for range 5 {
		vm, err := p.Take(context.Background())
		ok(t, err)
		original(t, vm)
		if vm.State() != vmm.StateNew || vm.Value == nil || seen[vm.Value] {
			t.Error(vm.State(), vm.Value)
		}
		seen[vm.Value] = true
		ok(t, vm.Start())
		vms = append(vms, vm)
	}
	for _, vm := range vms[:3] {
		p.Give(vm)
		if err := vm.Start(); !errors.Is(err, os.ErrClosed) {
			t.Error(err)
		}
	}
	ok(t, vms[3].Close())
	p.Give(nil)
	p.Give(vms[3])
	for range 4 {
		vm, err := p.Take(context.Background())
		ok(t, err)
		original(t, vm)
		ok(t, vm.Close())
	}
	ok(t, p.Close())
	ok(t, p.Close())
	if vms[4].State() != vmm.StateRunning {
		t.Error(vms[4].State())
	}
	p.Give(vms[4])
	if _, err := p.Take(context.Background()); !errors.Is(err, os.ErrClosed) {
		t.Error(err)
	}
}

func TestPoolWaits(t *testing.T) {
	kernel := lab(t, fakekvm.Spins, 5)
	s := frozen(t, kernel)
	// Guests that do not ring are not ready.
	p, err := s.NewPool(&vmm.PoolConfig{Flags: vmm.PoolPark, ParkTimeout: time.Hour})
	ok(t, err)
	take := func(ctx context.Context) func() error {
		return func() error {
			_, err := p.Take(ctx)
			return err
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	soon(t, "cancel", take(ctx), cancel, context.Canceled)
	soon(t, "close", take(context.Background()), func() { ok(t, p.Close()) }, os.ErrClosed)

	odd := errors.New("odd")
	p, err = s.NewPool(&vmm.PoolConfig{Prepare: func(vm *vmm.VM) error { return odd }})
	ok(t, err)
	if err := take(context.Background())(); !errors.Is(err, odd) {
		t.Error(err)
	}
	ok(t, p.Close())

	fakekvm.SetGuest(fakekvm.Rings, 9)
	p, err = s.NewPool(&vmm.PoolConfig{Flags: vmm.PoolPark, ParkTimeout: time.Minute})
	ok(t, err)
	vm, err := p.Take(context.Background())
	ok(t, err)
	if vm.State() != vmm.StatePaused {
		t.Error(vm.State())
	}
	ok(t, vm.Close())
	ok(t, p.Close())
}

// What is lost is closed, in whatever order it becomes garbage; what is in use is not.
func TestGarbage(t *testing.T) {
	kernel := lab(t, fakekvm.Rings, 5)
	for range 20 {
		vm, err := vmm.Create(vmm.Config{Kernel: kernel, Memory: 4 * MiB, Log: func(vmm.LogLevel, string) {}})
		ok(t, err)
		conn, err := vm.SerialConn()
		ok(t, err)
		ok(t, vm.Start())
		expect(t, vm, vmm.EventDoorbell, 5)
		ok(t, vm.Pause())
		s, err := vm.Snapshot()
		ok(t, err)
		vm = nil
		p, err := s.NewPool(nil)
		ok(t, err)
		s = nil
		runtime.GC()
		clone, err := p.Take(context.Background())
		ok(t, err)
		p = nil
		runtime.GC()
		original := conn
		conn = nil
		original.SetReadDeadline(time.Now().Add(time.Millisecond))
		if _, err := original.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(err) // its machine has gone
		}
		ok(t, clone.Start())
		expect(t, clone, vmm.EventDoorbell, 5)
	}
	// A machine that somebody waits for is not lost.
	soon(t, "wait", func() error {
		vm, err := vmm.Create(vmm.Config{Kernel: kernel, Memory: 4 * MiB})
		ok(t, err)
		ok(t, vm.Start())
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		vm.Wait(ctx)
		_, err = vm.Wait(ctx)
		return err
	}, func() { runtime.GC(); runtime.GC() }, context.DeadlineExceeded)
}

func TestLog(t *testing.T) {
	kernel := lab(t, fakekvm.Strays, 0)
	var mu sync.Mutex
	var lines []string
	vm, err := vmm.Create(vmm.Config{Kernel: kernel, Memory: 4 * MiB, Name: "talker", Log: func(l vmm.LogLevel, s string) {
		mu.Lock()
		defer mu.Unlock()
		lines = append(lines, fmt.Sprintf("%v %s", l, s))
	}})
	ok(t, err)
	ok(t, vm.Start())
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		mu.Lock()
		n := len(lines)
		mu.Unlock()
		if n > 0 {
			break
		}
	}
	ok(t, vm.Close())
	mu.Lock()
	defer mu.Unlock()
	if len(lines) == 0 || !strings.Contains(lines[0], "DEBUG vCPU 0: no device at 0x1000") {
		t.Errorf("%q", lines)
	}
}

// vCPUs are kicked, by a signal of their own, while everything else goes on: log
// lines of their threads, Go's preemption, the program's signals.
func TestSignals(t *testing.T) {
	kernel := lab(t, fakekvm.Strays, 0)
	got := make(chan os.Signal, 100)
	signal.Notify(got)
	defer signal.Stop(got)
	var group waitGroup
	for i := range 4 {
		group.Go(func() {
			vm, err := vmm.Create(vmm.Config{Kernel: kernel, Memory: 4 * MiB, Name: fmt.Sprint(i), Log: func(vmm.LogLevel, string) {}})
			if err != nil {
				t.Error(err)
				return
			}
			defer vm.Close()
			for range 50 {
				if err := vm.Start(); err != nil {
					t.Error(err)
				}
				if err := vm.Pause(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	done := make(chan struct{})
	go func() { group.Wait(); close(done) }()
	for n := 0; ; n++ {
		ok(t, syscall.Kill(os.Getpid(), syscall.SIGUSR1))
		select {
		case s := <-got:
			if s != syscall.SIGUSR1 && s != syscall.SIGURG {
				t.Errorf("a signal: %v", s)
			}
		case <-done:
			return
		}
	}
}

// Everything at once, on one machine that is closed meanwhile.
func TestStorm(t *testing.T) {
	kernel := lab(t, fakekvm.Floods, 0)
	for range 10 {
		vm := create(t, kernel)
		ok(t, vm.AddVsock(3))
		ok(t, vm.Start())
		calls := []func(context.Context){
			func(context.Context) { vm.Start() },
			func(context.Context) { vm.Pause() },
			func(context.Context) { vm.Stop() },
			func(context.Context) { vm.Reset() },
			func(context.Context) { vm.State() },
			func(context.Context) { vm.Stats() },
			func(ctx context.Context) { vm.Wait(ctx) },
			func(ctx context.Context) { vm.Wait(ctx) },
			func(ctx context.Context) {
				if c, err := vm.Connect(ctx, 1); err == nil {
					c.Close()
				}
			},
			func(context.Context) {
				if s, err := vm.Snapshot(); err == nil {
					s.Close()
				}
			},
			func(context.Context) { vm.ReadAt(make([]byte, 100), ram) },
			func(context.Context) { vm.WriteAt(make([]byte, 100), ram) },
		}
		var group waitGroup
		over := make(chan struct{})
		for _, f := range calls {
			group.Go(func() {
				for {
					select {
					case <-over:
						return
					default:
					}
					ctx, cancel := context.WithTimeout(context.Background(), 5*time.Millisecond)
					f(ctx)
					cancel()
				}
			})
		}
		time.Sleep(50 * time.Millisecond)
		ok(t, vm.Close())
		close(over)
		group.Wait()
	}
}

// Many machines, each with a goroutine that waits for it: no thread for each.
func TestMany(t *testing.T) {
	kernel := lab(t, fakekvm.Rings, 1)
	s := frozen(t, kernel)
	fakekvm.SetGuest(fakekvm.Spins, 0)
	var group waitGroup
	for range 64 {
		vm, err := s.Restore(nil)
		ok(t, err)
		ok(t, vm.Start())
		group.Go(func() {
			if ev, err := vm.Wait(context.Background()); err != nil || ev.Type != vmm.EventNone {
				t.Error(ev, err)
			}
			vm.Close()
		})
		group.Go(func() {
			time.Sleep(100 * time.Millisecond)
			vm.Stop()
		})
	}
	group.Wait()
}

// 64 goroutines, each with one machine after another, of a snapshot and of a pool.
func TestDrive(t *testing.T) {
	kernel := lab(t, fakekvm.Spins, 0)
	s := frozen(t, kernel)
	fakekvm.SetGuest(fakekvm.Rings, 3)
	p, err := s.NewPool(&vmm.PoolConfig{Ready: 4})
	ok(t, err)
	var group waitGroup
	for i := range 64 {
		group.Go(func() {
			for range 5 {
				vm, err := s.Restore(nil)
				if i%2 == 0 && err == nil {
					vm.Close()
					vm, err = p.Take(context.Background())
				}
				if err != nil {
					t.Error(err)
					return
				}
				if err = vm.Start(); err != nil {
					t.Error(err)
				}
				ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
				if ev, err := vm.Wait(ctx); err != nil || ev.Value != 3 {
					t.Error(ev, err)
				}
				cancel()
				if i%4 == 0 {
					p.Give(vm)
				} else {
					vm.Close()
				}
			}
		})
	}
	group.Wait()
	ok(t, p.Close())
	ok(t, s.Close())
}

// Machines are created, restored, closed and lost: nothing grows.
func TestRounds(t *testing.T) {
	kernel := lab(t, fakekvm.Rings, 1)
	s := frozen(t, kernel)
	n := 0
	grows(t, 200, func() {
		vm, err := vmm.Create(vmm.Config{Kernel: kernel, Memory: 4 * MiB})
		ok(t, err)
		ok(t, vm.Start())
		ok(t, vm.Close())
		vm, err = s.Restore(nil)
		ok(t, err)
		ok(t, vm.Start())
		expect(t, vm, vmm.EventDoorbell, 1)
		ok(t, vm.Close())
		vm, err = s.Restore(&vmm.RestoreConfig{Log: func(vmm.LogLevel, string) {}})
		ok(t, err)
		ok(t, vm.Start())
		if n++; n%20 == 0 {
			runtime.GC()
		}
	})
}
