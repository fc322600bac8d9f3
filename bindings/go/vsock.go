// SPDX-License-Identifier: MIT

package vmm

// #include "shim.h"
import "C"

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"
)

// HostCID is the address of the host on every machine's vsock.
const HostCID = 2

// Addr is an address on a machine's vsock.
type Addr struct {
	CID, Port uint32 // 0: not known
}

// Network gives "vsock".
func (a *Addr) Network() string { return "vsock" }

func (a *Addr) String() string { return fmt.Sprintf("%d:%d", a.CID, a.Port) }

// conn makes a connection of fd, and takes it.
func (vm *VM) conn(fd int, local, remote net.Addr) (net.Conn, error) {
	f := os.NewFile(uintptr(fd), "guest")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	return vm.newConn(c.(*net.UnixConn), local, remote)
}

// AddVsock adds sockets between host and guest.  cid is the guest's address, 3 to
// 0xfffffffe; each machine can have the same.
func (vm *VM) AddVsock(cid uint32) error {
	err := vm.do(func(p cVM, _ []*C.char, e cError) C.int { return C.vmm_add_vsock(p, C.uint32_t(cid), e) })
	if err == nil {
		vm.cid.Store(cid)
	}
	return err
}

// Connect connects to a port that the guest listens on, or will before ctx ends.
// ErrRefused: the machine does not run.  When ctx ends first, the error is that of
// ctx, and also what the library knows: ErrRefused, nobody listens there; ErrTimeout,
// the guest does not answer.
func (vm *VM) Connect(ctx context.Context, port uint32) (net.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := vm.enter(); err != nil {
		return nil, err
	}
	type result struct {
		fd  int
		err error
	}
	done := make(chan result, 1)
	go func() {
		defer vm.leave()
		fd, err := vm.dial(ctx, port)
		done <- result{fd, err}
	}()
	select {
	case r := <-done:
		return vm.dialed(r.fd, r.err, port)
	case <-ctx.Done():
	}
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		// The library has the same deadline, and tells more.
		r := <-done
		return vm.dialed(r.fd, r.err, port)
	}
	go func() {
		if r := <-done; r.err == nil {
			syscall.Close(r.fd)
		}
	}()
	return nil, ctx.Err()
}

func (vm *VM) dialed(fd int, err error, port uint32) (net.Conn, error) {
	if err != nil {
		return nil, err
	}
	return vm.conn(fd, &Addr{CID: HostCID}, &Addr{vm.cid.Load(), port})
}

// dial connects.  A call of the library cannot be called off, so that each is for a
// limited time, which grows: none is to be too short for the guest.
func (vm *VM) dial(ctx context.Context, port uint32) (int, error) {
	for limit := time.Second; ; limit = min(2*limit, time.Minute) {
		var fd C.int
		ms := milliseconds(ctx, limit)
		err := vm.do(func(p cVM, _ []*C.char, e cError) C.int {
			return C.vmm_connect(p, C.uint32_t(port), ms, &fd, e)
		})
		switch {
		case err == nil:
			return int(fd), nil
		case vm.closed():
			return -1, os.ErrClosed
		case ctx.Err() != nil:
			return -1, fmt.Errorf("%w: %w", ctx.Err(), err)
		case errors.Is(err, ErrTimeout), errors.Is(err, ErrRefused) && vm.State() == StateRunning:
			if t, ok := ctx.Deadline(); ok && time.Until(t) <= 0 {
				return -1, fmt.Errorf("%w: %w", context.DeadlineExceeded, err)
			}
		default:
			return -1, err
		}
	}
}

// Listen gives a listener for connections that the guest makes to a port of the
// host, CID 2.  A second one for a port takes the place of the first.
func (vm *VM) Listen(port uint32) (net.Listener, error) {
	var fd C.int
	err := vm.do(func(p cVM, _ []*C.char, e cError) C.int {
		return C.vmm_listen(p, C.uint32_t(port), &fd, e)
	})
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "listener")
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		return nil, err
	}
	return &listener{l.(*net.UnixListener), vm, &Addr{HostCID, port}}, nil
}

type listener struct {
	*net.UnixListener
	vm   *VM
	addr *Addr
}

func (l *listener) Addr() net.Addr { return l.addr }

func (l *listener) Accept() (net.Conn, error) {
	c, err := l.AcceptUnix()
	if err != nil {
		return nil, err
	}
	return l.vm.newConn(c, l.addr, &Addr{CID: l.vm.cid.Load()})
}
