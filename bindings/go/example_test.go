// SPDX-License-Identifier: MIT

package vmm_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"log/slog"
	"os"
	"time"

	"vmm"
)

// Boot Linux, with its console on this terminal.
func Example() {
	vm, err := vmm.Create(vmm.Config{
		Kernel:  "Image",
		Initrd:  "initrd.cpio",
		Cmdline: "console=ttyS0",
	})
	if err != nil {
		log.Fatal(err)
	}
	defer vm.Close()
	if err := vm.AddSerial(os.Stdin, os.Stdout); err != nil {
		log.Fatal(err)
	}
	if err := vm.Start(); err != nil {
		log.Fatal(err)
	}
	for ev, err := range vm.Events(context.Background()) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(ev.Type, ev.Value, ev.Detail)
	}
}

// An error tells its code, the errno behind it, and what it is about.
func ExampleError() {
	_, err := vmm.Open("/nowhere/vm.snap")
	var e *vmm.Error
	fmt.Println(errors.Is(err, vmm.ErrSys), errors.Is(err, fs.ErrNotExist), errors.As(err, &e))
	fmt.Println(e.Code, "-", e.Message)
	// Output:
	// true true true
	// VMM_ESYS - open /nowhere/vm.snap: No such file or directory
}

func ExampleVerify() {
	fmt.Println(vmm.Verify("../../tests/golden/snapshot-1.0.snap"))
	// Output: <nil>
}

func ExampleProbe() {
	host, err := vmm.Probe()
	switch {
	case errors.Is(err, vmm.ErrNoKVM):
		fmt.Println("no KVM here")
	case err != nil:
		fmt.Println(err)
	default:
		fmt.Println(host.ISA, host.IRQChip, host.Note)
	}
}

// Freeze a machine into a file.
func ExampleVM_Snapshot() {
	var vm *vmm.VM // one that runs
	freeze := func() error {
		if err := vm.Pause(); err != nil {
			return err
		}
		snap, err := vm.Snapshot()
		if err != nil {
			return err
		}
		defer snap.Close()
		return snap.Write(context.Background(), "vm.snap", nil)
	}
	_ = freeze
}

// Three clones of one snapshot, with a log of their own.
func ExampleSnapshot_Restore() {
	snap, err := vmm.Open("vm.snap")
	if err != nil {
		log.Fatal(err)
	}
	defer snap.Close()
	for i := range 3 {
		vm, err := snap.Restore(&vmm.RestoreConfig{
			Name: fmt.Sprint("clone ", i),
			Log:  vmm.Slog(slog.With("clone", i)),
		})
		if err != nil {
			log.Fatal(err)
		}
		defer vm.Close()
		if err := vm.Start(); err != nil {
			log.Fatal(err)
		}
	}
}

// Ask a guest that listens on port 1024 for a line.
func ExampleVM_Connect() {
	var vm *vmm.VM // one that runs, and has a vsock device
	ask := func() (string, error) {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		conn, err := vm.Connect(ctx, 1024)
		if err != nil {
			return "", err
		}
		defer conn.Close()
		return bufio.NewReader(conn).ReadString('\n')
	}
	_ = ask
}

// Take what a guest sends to port 80 of its host.
func ExampleVM_Listen() {
	var vm *vmm.VM // one that has a vsock device
	serve := func() error {
		l, err := vm.Listen(80)
		if err != nil {
			return err
		}
		defer l.Close()
		for {
			conn, err := l.Accept()
			if err != nil {
				return err
			}
			go func() {
				defer conn.Close()
				io.Copy(os.Stdout, conn)
			}()
		}
	}
	_ = serve
}

// Machines that are ready when somebody comes.
func ExamplePool() {
	snap, err := vmm.Open("vm.snap")
	if err != nil {
		log.Fatal(err)
	}
	defer snap.Close()
	pool, err := snap.NewPool(&vmm.PoolConfig{Ready: 4})
	if err != nil {
		log.Fatal(err)
	}
	defer pool.Close()

	vm, err := pool.Take(context.Background())
	if err != nil {
		log.Fatal(err)
	}
	defer pool.Give(vm) // it is reset, and waits again
	if err := vm.Start(); err != nil {
		log.Fatal(err)
	}
}
