// SPDX-License-Identifier: MIT

package vmm

// #include "shim.h"
import "C"

import (
	"context"
	"fmt"
	"math"
	"net"
	"os"
	"syscall"
	"unsafe"
)

// Devices are added while a machine is New.  Each but the serial port has a name of
// at most 31 bytes, unique in its machine.  On a machine that was restored the same
// call puts another back end behind the device of that name.

// AddSerial adds the serial port: the kernel's ttyS0, and the same stream behind the
// SBI debug console.  in or out may be nil: then nothing comes in, and what goes out
// is dropped.  Output that cannot be written at once is kept until it can, and the
// guest waits rather than lose any.
func (vm *VM) AddSerial(in, out syscall.Conn) error {
	return withFDs(func(fd []C.int) error { return vm.addSerial(fd[0], fd[1]) }, in, out)
}

func (vm *VM) addSerial(in, out C.int) error {
	return vm.do(func(p cVM, _ []*C.char, e cError) C.int { return C.vmm_add_serial(p, in, out, e) })
}

// SerialConn adds the serial port and gives its other end, to talk to the guest.  It
// is the caller's to close, and must be read: a guest waits rather than lose output.
func (vm *VM) SerialConn() (net.Conn, error) { return vm.pair(vm.addSerial) }

// AddConsole adds a virtio console; in and out are as of AddSerial.
func (vm *VM) AddConsole(name string, in, out syscall.Conn) error {
	return withFDs(func(fd []C.int) error { return vm.addConsole(name, fd[0], fd[1]) }, in, out)
}

func (vm *VM) addConsole(name string, in, out C.int) error {
	return vm.do(func(p cVM, s []*C.char, e cError) C.int {
		return C.vmm_add_console(p, s[0], in, out, e)
	}, name)
}

// ConsoleConn adds a virtio console and gives its other end: see SerialConn.
func (vm *VM) ConsoleConn(name string) (net.Conn, error) {
	return vm.pair(func(in, out C.int) error { return vm.addConsole(name, in, out) })
}

// AddPort adds a named port to a console, which the guest finds as
// /dev/virtio-ports/PORT; up to 15 of them.  What is written before somebody in the
// guest opens it waits.
func (vm *VM) AddPort(console, port string, in, out syscall.Conn) error {
	return withFDs(func(fd []C.int) error { return vm.addPort(console, port, fd[0], fd[1]) }, in, out)
}

func (vm *VM) addPort(console, port string, in, out C.int) error {
	return vm.do(func(p cVM, s []*C.char, e cError) C.int {
		return C.vmm_add_port(p, s[0], s[1], in, out, e)
	}, console, port)
}

// PortConn adds a named port and gives its other end: see SerialConn.
func (vm *VM) PortConn(console, port string) (net.Conn, error) {
	return vm.pair(func(in, out C.int) error { return vm.addPort(console, port, in, out) })
}

// ResizeConsole says how many columns and rows the terminal of a console has; the
// guest is told.
func (vm *VM) ResizeConsole(name string, cols, rows uint16) error {
	return vm.do(func(p cVM, s []*C.char, e cError) C.int {
		return C.vmm_resize_console(p, s[0], C.uint16_t(cols), C.uint16_t(rows), e)
	}, name)
}

// BlkFlags says how a disk is used.
type BlkFlags uint32

// Flags of a disk.
const (
	BlkReadOnly BlkFlags = C.VMM_READONLY // the guest cannot write
	BlkDirect   BlkFlags = C.VMM_DIRECT   // past the host's page cache
	BlkNoSync   BlkFlags = C.VMM_NOSYNC   // a flush of the guest does nothing: for what may be lost
	// What the guest writes stays with the machine, and in its snapshots; the
	// file is only read, and may be shared.
	BlkOverlay BlkFlags = C.VMM_OVERLAY
)

// AddBlk adds a disk: a raw image or a block device, a multiple of 512 bytes long.
func (vm *VM) AddBlk(name, path string, flags BlkFlags) error {
	return vm.do(func(p cVM, s []*C.char, e cError) C.int {
		return C.vmm_add_blk(p, s[0], s[1], C.uint32_t(flags), e)
	}, name, path)
}

// ResizeBlk tells the guest that the file of a disk has another size.
func (vm *VM) ResizeBlk(name string) error {
	return vm.do(func(p cVM, s []*C.char, e cError) C.int { return C.vmm_resize_blk(p, s[0], e) }, name)
}

// SetQueues says how many queues a disk of a New machine has, 1 to 64; default 1.
// With as many as there are vCPUs none waits for another.
func (vm *VM) SetQueues(name string, queues int) error {
	return vm.do(func(p cVM, s []*C.char, e cError) C.int {
		return C.vmm_set_queues(p, s[0], C.uint32_t(queues), e)
	}, name)
}

// Limit lets no more than so many bytes and requests (packets) a second through a
// disk or a network card, there each way; 0: no limit, the default.  In any state.
func (vm *VM) Limit(name string, bytesPerSec, opsPerSec uint64) error {
	return vm.do(func(p cVM, s []*C.char, e cError) C.int {
		return C.vmm_limit(p, s[0], C.uint64_t(bytesPerSec), C.uint64_t(opsPerSec), e)
	}, name)
}

// AddRNG adds a source of entropy: the host's getrandom.
func (vm *VM) AddRNG(name string) error {
	return vm.do(func(p cVM, s []*C.char, e cError) C.int { return C.vmm_add_rng(p, s[0], e) }, name)
}

// AddBalloon adds a balloon: what the guest does not use goes back to the host by
// itself, and more of it when Balloon asks.
func (vm *VM) AddBalloon(name string) error {
	return vm.do(func(p cVM, s []*C.char, e cError) C.int { return C.vmm_add_balloon(p, s[0], e) }, name)
}

// Balloon asks the guest to give up so many bytes.
func (vm *VM) Balloon(name string, bytes uint64) error {
	return vm.do(func(p cVM, s []*C.char, e cError) C.int {
		return C.vmm_balloon(p, s[0], C.uint64_t(bytes), e)
	}, name)
}

// Trim has the guest of a Running machine give back what it has free, now: before a
// snapshot, say.  It waits until the guest has, or ctx ends, or the machine stops.
// ErrNotSupported: its driver cannot.
func (vm *VM) Trim(ctx context.Context, name string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() {
		done <- vm.do(func(p cVM, s []*C.char, e cError) C.int {
			return C.vmm_trim(p, s[0], milliseconds(ctx, math.MaxInt64), e)
		}, name)
	}()
	select {
	case err := <-done:
		if err != nil && vm.closed() {
			err = os.ErrClosed
		}
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// BalloonStats are a balloon's figures, and those that the guest told last.
type BalloonStats struct {
	Answers  uint32 // how often the guest has told what is its own
	Target   uint64 // bytes it is asked to give up
	Actual   uint64 // bytes it says it has given up
	Returned uint64 // bytes given to the host so far, all in all

	// The guest's own, of the last answer; 0: it does not tell.
	Total, Free, Available, Caches     uint64 // bytes
	SwapIn, SwapOut                    uint64 // bytes, since it booted, and so these:
	MajorFaults, MinorFaults, OOMKills uint64
}

// BalloonStats gives what the guest told last.  A guest that runs is asked for more,
// without waiting for it: when Answers has grown, the figures are new.
func (vm *VM) BalloonStats(name string) (*BalloonStats, error) {
	c := C.vmmgo_balloon_stats_init
	err := vm.do(func(p cVM, s []*C.char, e cError) C.int {
		return C.vmm_balloon_stat(p, s[0], &c, e)
	}, name)
	if err != nil {
		return nil, err
	}
	return &BalloonStats{
		Answers:     uint32(c.answers),
		Target:      uint64(c.target),
		Actual:      uint64(c.actual),
		Returned:    uint64(c.returned),
		Total:       uint64(c.total),
		Free:        uint64(c.free),
		Available:   uint64(c.available),
		Caches:      uint64(c.caches),
		SwapIn:      uint64(c.swap_in),
		SwapOut:     uint64(c.swap_out),
		MajorFaults: uint64(c.major_faults),
		MinorFaults: uint64(c.minor_faults),
		OOMKills:    uint64(c.oom_kills),
	}, nil
}

// AddNet adds a network card.  to is a tap, or a connected socket: datagrams are
// frames; a stream has a length of 4 bytes, big-endian, before each, as passt and
// QEMU speak it.  mac may be nil, for a random one that is locally administered.
func (vm *VM) AddNet(name string, to syscall.Conn, mac net.HardwareAddr) error {
	if mac != nil && len(mac) != 6 {
		return &Error{Code: ErrInvalid, Message: fmt.Sprintf("network card %s: the address has %d bytes, not 6", name, len(mac))}
	}
	return withFDs(func(fd []C.int) error {
		return vm.do(func(p cVM, s []*C.char, e cError) C.int {
			return C.vmm_add_net(p, s[0], fd[0], (*C.uint8_t)(unsafe.SliceData(mac)), e)
		}, name)
	}, to)
}

// AddFS adds a directory that another process, virtiofsd, serves at the other end of
// a stream socket; the guest mounts it by the device's name (mount -t virtiofs NAME
// DIR).  That process gets all of the guest's RAM.  If it goes, the guest's requests
// fail as I/O errors, and EventDevice tells.  Such a machine can be paused, but not
// saved.
func (vm *VM) AddFS(name string, server syscall.Conn) error {
	return withFDs(func(fd []C.int) error {
		return vm.do(func(p cVM, s []*C.char, e cError) C.int {
			return C.vmm_add_fs(p, s[0], fd[0], e)
		}, name)
	}, server)
}

// AddVhostBlk adds a disk that another process, as qemu-storage-daemon, serves: see
// AddFS.
func (vm *VM) AddVhostBlk(name string, server syscall.Conn) error {
	return withFDs(func(fd []C.int) error {
		return vm.do(func(p cVM, s []*C.char, e cError) C.int {
			return C.vmm_add_vhost_blk(p, s[0], fd[0], e)
		}, name)
	}, server)
}

// pair calls add with one end of a socket pair and gives the other.
func (vm *VM) pair(add func(in, out C.int) error) (net.Conn, error) {
	fd, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	err = add(C.int(fd[1]), C.int(fd[1]))
	syscall.Close(fd[1])
	if err != nil {
		syscall.Close(fd[0])
		return nil, err
	}
	return vm.conn(fd[0], nil, nil)
}
