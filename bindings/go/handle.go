// SPDX-License-Identifier: MIT

package vmm

// #include <stdlib.h>
// #include "shim.h"
import "C"

import (
	"context"
	"math"
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"
	"unsafe"
)

// handle guards an object of the C library: freeing it must be the last call on
// it.  It is freed by whoever leaves last, once it has been closed.
type handle struct {
	mu      sync.Mutex
	users   int
	free    func()
	closing chan struct{} // closed: nobody enters any more
	freed   chan struct{}
}

func newHandle(free func()) *handle {
	return &handle{users: 1, free: free, closing: make(chan struct{}), freed: make(chan struct{})}
}

func (h *handle) enter() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed() {
		return os.ErrClosed
	}
	h.users++
	return nil
}

func (h *handle) leave() {
	h.mu.Lock()
	h.users--
	last := h.users == 0
	h.mu.Unlock()
	if last {
		h.free()
		close(h.freed)
	}
}

func (h *handle) closed() bool {
	select {
	case <-h.closing:
		return true
	default:
		return false
	}
}

// shut lets nobody in any more.  The first who calls it must leave.
func (h *handle) shut() (first bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed() {
		return false
	}
	close(h.closing)
	return true
}

// busy tells whether there is somebody inside beside its owner.
func (h *handle) busy() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.users > 1
}

// close lets nobody in any more; who leaves last frees.
func (h *handle) close() {
	if h.shut() {
		h.leave()
	}
}

// finalizer closes what is lost: the object has it, and nothing leads from it back
// there, so that cycles that the object is part of do no harm.
type finalizer[T any] struct{ of T }

func finalize[T any](of T, f func(T)) *finalizer[T] {
	z := &finalizer[T]{of}
	runtime.SetFinalizer(z, func(z *finalizer[T]) { go f(z.of) })
	return z
}

func (z *finalizer[T]) cancel() {
	if z != nil {
		runtime.SetFinalizer(z, nil)
	}
}

// allocate gives a copy of v that C may keep pointers, and numbers as pointers, in.
func allocate[T any](v T) *T {
	p := (*T)(C.malloc(C.size_t(unsafe.Sizeof(v))))
	*p = v
	return p
}

func free[T any](p *T) { C.free(unsafe.Pointer(p)) }

func closeOnExec(fd int) (int, error) {
	r, _, e := syscall.Syscall(syscall.SYS_FCNTL, uintptr(fd), syscall.F_DUPFD_CLOEXEC, 0)
	if e != 0 {
		return -1, os.NewSyscallError("fcntl", e)
	}
	return int(r), nil
}

// milliseconds gives how long a call of the library may wait: until ctx ends by
// itself, but no longer than limit; for ever if ctx cannot end.
func milliseconds(ctx context.Context, limit time.Duration) C.int {
	if ctx.Done() == nil {
		return -1
	}
	if t, ok := ctx.Deadline(); ok {
		limit = min(limit, max(0, time.Until(t)))
	}
	return C.int(min((limit-1)/time.Millisecond+1, math.MaxInt32))
}

// dup gives a descriptor of our own of what c has, or -1 if c is nil.  It leaves c
// in the mode in which Go reads and writes it, which File.Fd would not.
func dup(c syscall.Conn) (fd int, err error) {
	if c == nil {
		return -1, nil
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return -1, err
	}
	fd = -1
	if e := raw.Control(func(f uintptr) { fd, err = closeOnExec(int(f)) }); e != nil {
		return -1, e
	}
	return fd, err
}

// withFDs calls f with descriptors of cs.
func withFDs(f func(fd []C.int) error, cs ...syscall.Conn) error {
	fds := make([]C.int, len(cs))
	for i, c := range cs {
		fd, err := dup(c)
		if err != nil {
			return err
		}
		if fd >= 0 {
			defer syscall.Close(fd)
		}
		fds[i] = C.int(fd)
	}
	return f(fds)
}
