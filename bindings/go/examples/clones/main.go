// SPDX-License-Identifier: MIT

// Clones boots Linux to a shell, freezes it to a file, and has clones of it, all at
// once, run a command each.
//
//	clones KERNEL INITRD FILE COMMAND...
package main

import (
	"bytes"
	"context"
	"fmt"
	"log"
	"net"
	"os"
	"sync"

	"vmm"
)

func main() {
	if len(os.Args) < 5 {
		log.Fatal("usage: clones KERNEL INITRD FILE COMMAND...")
	}
	if err := freeze(os.Args[1], os.Args[2], os.Args[3]); err != nil {
		log.Fatal(err)
	}
	snap, err := vmm.Open(os.Args[3])
	if err != nil {
		log.Fatal(err)
	}
	defer snap.Close()
	var clones sync.WaitGroup
	for _, text := range os.Args[4:] {
		clones.Add(1)
		go func() {
			defer clones.Done()
			said, err := command(snap, text)
			if err != nil {
				log.Printf("%s: %v", text, err)
				return
			}
			fmt.Printf("%s\n", said)
		}()
	}
	clones.Wait()
}

func freeze(kernel, initrd, file string) error {
	vm, err := vmm.Create(vmm.Config{Kernel: kernel, Initrd: initrd, Cmdline: "console=ttyS0"})
	if err != nil {
		return err
	}
	defer vm.Close()
	console, err := vm.SerialConn()
	if err != nil {
		return err
	}
	defer console.Close()
	if err := vm.Start(); err != nil {
		return err
	}
	if _, err := until(console, "# "); err != nil {
		return err
	}
	if err := vm.Pause(); err != nil {
		return err
	}
	snap, err := vm.Snapshot()
	if err != nil {
		return err
	}
	defer snap.Close()
	return snap.Write(context.Background(), file, nil)
}

// command runs one in a clone of its own, and gives what the guest says.
func command(snap *vmm.Snapshot, text string) ([]byte, error) {
	vm, err := snap.Restore(nil)
	if err != nil {
		return nil, err
	}
	defer vm.Close()
	console, err := vm.SerialConn()
	if err != nil {
		return nil, err
	}
	defer console.Close()
	if err := vm.Start(); err != nil {
		return nil, err
	}
	if _, err := fmt.Fprintln(console, text); err != nil {
		return nil, err
	}
	return until(console, "# ")
}

// until reads until text has come.
func until(console net.Conn, text string) (said []byte, err error) {
	buf := make([]byte, 4096)
	for !bytes.Contains(said, []byte(text)) {
		n, err := console.Read(buf)
		if err != nil {
			return said, err
		}
		said = append(said, buf[:n]...)
	}
	return said, nil
}
