// SPDX-License-Identifier: MIT

package vmm_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"vmm"
)

// Tests that need no KVM: against the library as it is.

const (
	golden     = "../../tests/golden/snapshot-1.0.snap"
	goldenDiff = "../../tests/golden/snapshot-1.0-diff.snap"
)

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// fails wants err to be code, with a message that tells more.
func fails(t testing.TB, err error, code vmm.Code) {
	t.Helper()
	var e *vmm.Error
	if !errors.Is(err, code) || !errors.As(err, &e) || e.Code != code || e.Message == "" {
		t.Fatalf("%v, not %v", err, code)
	}
}

func TestVersion(t *testing.T) {
	if v := vmm.LibraryVersion(); v != vmm.Version {
		t.Errorf("library %d, header %d", v, vmm.Version)
	}
	if vmm.Version != vmm.VersionMajor*1000000+vmm.VersionMinor*1000+vmm.VersionPatch {
		t.Error("version is not made of its parts")
	}
}

func TestCodes(t *testing.T) {
	names := map[vmm.Code]string{
		0: "VMM_OK", vmm.ErrInvalid: "VMM_EINVAL", vmm.ErrState: "VMM_ESTATE",
		vmm.ErrNoMemory: "VMM_ENOMEM", vmm.ErrSys: "VMM_ESYS", vmm.ErrNoKVM: "VMM_ENOKVM",
		vmm.ErrNotSupported: "VMM_ENOTSUP", vmm.ErrFormat: "VMM_EFORMAT",
		vmm.ErrVersion: "VMM_EVERSION", vmm.ErrTimeout: "VMM_ETIMEDOUT",
		vmm.ErrRefused: "VMM_EREFUSED", vmm.ErrBroken: "VMM_EBROKEN", 99: "VMM_E?",
	}
	for c, name := range names {
		if c.Error() != name {
			t.Errorf("code %d is %s, not %s", c, c.Error(), name)
		}
		err := error(&vmm.Error{Code: c, Errno: syscall.ENOENT, Message: "m"})
		for other := range names {
			if errors.Is(err, other) != (c == other) {
				t.Errorf("%v, %v", c, other)
			}
		}
		if !errors.Is(err, fs.ErrNotExist) || err.Error() != "m" {
			t.Errorf("%v: errno or message", c)
		}
		if errors.Is(err, os.ErrDeadlineExceeded) != (c == vmm.ErrTimeout) ||
			errors.Is(err, errors.ErrUnsupported) != (c == vmm.ErrNotSupported) {
			t.Errorf("%v: the standard library's names", c)
		}
	}
}

func TestNoKVM(t *testing.T) {
	if _, err := vmm.Probe(); err == nil {
		t.Skip("there is KVM")
	} else {
		fails(t, err, vmm.ErrNoKVM)
	}
	_, err := vmm.Create(vmm.Config{Kernel: golden})
	fails(t, err, vmm.ErrNoKVM)
}

func TestCreateErrors(t *testing.T) {
	_, err := vmm.Create(vmm.Config{})
	fails(t, err, vmm.ErrInvalid)
	_, err = vmm.Create(vmm.Config{Kernel: golden, VCPUs: 65})
	fails(t, err, vmm.ErrInvalid)
	_, err = vmm.Create(vmm.Config{Kernel: golden, Name: "a\x00b"})
	fails(t, err, vmm.ErrInvalid)
	_, err = vmm.Create(vmm.Config{Kernel: golden, Flags: 1 << 31, Log: func(vmm.LogLevel, string) {}})
	fails(t, err, vmm.ErrInvalid)
}

func TestSnapshotFiles(t *testing.T) {
	dir := t.TempDir()
	ok(t, vmm.Verify(golden))
	ok(t, vmm.Verify(goldenDiff))
	fails(t, vmm.Verify(filepath.Join(dir, "none")), vmm.ErrSys)
	if err := vmm.Verify(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	data, err := os.ReadFile(golden)
	ok(t, err)
	bad := filepath.Join(dir, "bad")
	for _, at := range []int{0, 9, len(data) / 2, len(data) - 1} {
		b := bytes.Clone(data)
		b[at] ^= 0x55
		ok(t, os.WriteFile(bad, b, 0o666))
		if err := vmm.Verify(bad); err == nil {
			t.Errorf("byte %d is wrong and nobody sees it", at)
		}
	}
	ok(t, os.WriteFile(bad, data[:len(data)/2], 0o666))
	fails(t, vmm.Verify(bad), vmm.ErrFormat)
	_, err = vmm.Open(bad)
	fails(t, err, vmm.ErrFormat)

	whole := filepath.Join(dir, "whole")
	var done uint64
	how := &vmm.WriteConfig{Progress: func(d, total uint64) { done = d }}
	ok(t, vmm.Merge(context.Background(), goldenDiff, whole, how))
	ok(t, vmm.Verify(whole))
	if done == 0 {
		t.Error("no progress")
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := vmm.Merge(ctx, goldenDiff, bad, nil); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestOpenInfo(t *testing.T) {
	s, err := vmm.Open(goldenDiff)
	ok(t, err)
	_, err = s.Info()
	fails(t, err, vmm.ErrFormat) // the golden snapshots are of no machine
	ok(t, s.Close())
	ok(t, s.Close())
	if _, err := s.Info(); !errors.Is(err, os.ErrClosed) {
		t.Error(err)
	}
	if _, err := s.Restore(nil); !errors.Is(err, os.ErrClosed) {
		t.Error(err)
	}
}

func TestReceive(t *testing.T) {
	f, err := os.Open(golden)
	ok(t, err)
	defer f.Close()
	s, err := vmm.Receive(f)
	ok(t, err)
	ok(t, s.Close())
	_, err = vmm.Receive(bytes.NewReader(make([]byte, 1<<20)))
	fails(t, err, vmm.ErrFormat)
	odd := errors.New("odd")
	_, err = vmm.Receive(io.MultiReader(bytes.NewReader(make([]byte, 100)), badReader{odd}))
	fails(t, err, vmm.ErrFormat)
	if !errors.Is(err, odd) {
		t.Error(err)
	}
}

type badReader struct{ err error }

func (b badReader) Read([]byte) (int, error) { return 0, b.err }

// waitGroup is a sync.WaitGroup with the Go that it has from Go 1.25 on.
type waitGroup struct{ sync.WaitGroup }

func (g *waitGroup) Go(f func()) {
	g.Add(1)
	go func() {
		defer g.Done()
		f()
	}()
}

func openFDs(t testing.TB) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	ok(t, err)
	return len(d)
}

func TestRestoreHere(t *testing.T) {
	s, err := vmm.Open(golden)
	ok(t, err)
	defer s.Close()
	_, err = s.Restore(&vmm.RestoreConfig{Name: "x", Log: func(vmm.LogLevel, string) {}})
	if err == nil {
		t.Fatal("the golden snapshots are of no machine")
	}
}

// grows makes as many rounds as VMM_ROUNDS says, or n, and wants no more descriptors
// and no more memory after them.
func grows(t *testing.T, n int, round func()) {
	t.Helper()
	if v, err := strconv.Atoi(os.Getenv("VMM_ROUNDS")); err == nil {
		n = v
	}
	look := func() (fds, kib int) {
		// What is lost is closed a little later.
		for last := -1; fds != last; fds = openFDs(t) {
			last = fds
			debug.FreeOSMemory()
			time.Sleep(100 * time.Millisecond)
		}
		statm, err := os.ReadFile("/proc/self/statm")
		ok(t, err)
		pages, err := strconv.Atoi(strings.Fields(string(statm))[1])
		ok(t, err)
		return fds, pages * os.Getpagesize() / 1024
	}
	// What is made once, and kept, is made by then.
	for range n / 2 {
		round()
	}
	fds, kib := look()
	for range n {
		round()
	}
	fdsAfter, kibAfter := look()
	t.Logf("%d rounds: %d KiB more", n, kibAfter-kib)
	if fdsAfter > fds || kibAfter > kib+2048 {
		t.Errorf("%d descriptors and %d KiB, %d and %d before", fdsAfter, kibAfter, fds, kib)
	}
}
