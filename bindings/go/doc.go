// SPDX-License-Identifier: MIT

// Package vmm runs RISC-V virtual machines on KVM, in this process, as many as it
// likes; freezes one, and goes on from there as often as wanted.
//
// It is the C library's interface (vmm.h) as Go has it, and nothing beside:
//
//	vm, err := vmm.Create(vmm.Config{Kernel: "Image", Initrd: "initrd.cpio", Cmdline: "console=ttyS0"})
//	if err != nil {
//		return err
//	}
//	defer vm.Close()
//	if err := vm.AddSerial(os.Stdin, os.Stdout); err != nil {
//		return err
//	}
//	if err := vm.Start(); err != nil {
//		return err
//	}
//	ev, err := vm.Wait(ctx)
//
// # Lifetimes
//
// Close ends a [VM], a [Snapshot], a [Pool]; it may be called at any time, from any
// goroutine, more than once, and calls that are under way end before the object does.
// What is lost instead is closed by the garbage collector.  Connections, listeners
// and consoles keep their machine from that, not from Close.
//
// # Goroutines
//
// Every method may be called from any goroutine.  Those that wait take a
// [context.Context]; a goroutine in [VM.Wait] takes no thread.  The library's own
// threads have all signals blocked, and it installs no handler: package os/signal
// works as ever.
//
// # What stands behind devices
//
// A [syscall.Conn], as *os.File and the connections of package net are.  It is
// duplicated, and can be closed once it has been given away.
package vmm
