// SPDX-License-Identifier: MIT

package vmm

import (
	"io"
	"net"
	"os"
	"syscall"
	"unsafe"
)

// Conn is a connection to a guest: a Unix socket, with all that package net can do
// with one.  It keeps its machine from the garbage collector, not from Close, which
// ends it.
type Conn struct {
	*net.UnixConn
	raw           syscall.RawConn
	vm            *VM
	local, remote net.Addr // nil: the socket's own
}

func (vm *VM) newConn(c *net.UnixConn, local, remote net.Addr) (*Conn, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	return &Conn{c, raw, vm, local, remote}, nil
}

// LocalAddr gives the host's side, on a vsock an [*Addr].
func (c *Conn) LocalAddr() net.Addr {
	if c.local == nil {
		return c.UnixConn.LocalAddr()
	}
	return c.local
}

// RemoteAddr gives the guest's side, on a vsock an [*Addr].
func (c *Conn) RemoteAddr() net.Addr {
	if c.remote == nil {
		return c.UnixConn.RemoteAddr()
	}
	return c.remote
}

// Messages up to this many bytes are read and written without telling the scheduler,
// which readies itself for a system call that takes long: with a guest that answers
// at once that is half of what Go adds to a round trip.  These calls never wait, which
// is left to the poller as ever.  The race detector wants to know of each, though: it
// takes a connection for something that orders what is before and behind it.
const small = 64 << 10

// Read is that of net.Conn.
func (c *Conn) Read(b []byte) (int, error) {
	if race || len(b) == 0 || len(b) > small {
		return c.UnixConn.Read(b)
	}
	var n int
	var errno syscall.Errno
	err := c.raw.Read(func(fd uintptr) bool {
		n, errno = transfer(syscall.SYS_RECVFROM, fd, b)
		return errno != syscall.EAGAIN
	})
	switch {
	case err != nil: // closed, or too late: let package net say so
		return c.UnixConn.Read(b)
	case errno != 0:
		return 0, c.failed("read", errno)
	case n == 0:
		return 0, io.EOF
	}
	return n, nil
}

// Write is that of net.Conn.
func (c *Conn) Write(b []byte) (int, error) {
	if race || len(b) == 0 || len(b) > small {
		return c.UnixConn.Write(b)
	}
	n := 0
	var errno syscall.Errno
	err := c.raw.Write(func(fd uintptr) bool {
		for n < len(b) {
			var m int
			if m, errno = transfer(syscall.SYS_SENDTO, fd, b[n:]); errno != 0 {
				break
			}
			n += m
		}
		return errno != syscall.EAGAIN
	})
	switch {
	case err != nil:
		m, err := c.UnixConn.Write(b[n:])
		return n + m, err
	case errno != 0:
		return n, c.failed("write", errno)
	}
	return n, nil
}

func (c *Conn) failed(op string, errno syscall.Errno) error {
	return &net.OpError{Op: op, Net: c.LocalAddr().Network(), Source: c.LocalAddr(),
		Addr: c.RemoteAddr(), Err: os.NewSyscallError(op, errno)}
}

// transfer sends or receives, and never waits.
func transfer(call, fd uintptr, b []byte) (int, syscall.Errno) {
	for {
		n, _, errno := syscall.RawSyscall6(call, fd, uintptr(unsafe.Pointer(&b[0])),
			uintptr(len(b)), syscall.MSG_DONTWAIT|syscall.MSG_NOSIGNAL, 0, 0)
		switch errno {
		case 0:
			return int(n), 0
		case syscall.EINTR:
		default:
			return 0, errno
		}
	}
}
