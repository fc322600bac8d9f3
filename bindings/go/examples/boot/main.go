// SPDX-License-Identifier: MIT

// Boot runs Linux with its console on this terminal, until it powers off or an
// interrupt comes.
//
//	boot KERNEL INITRD COMMAND-LINE
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"os/signal"

	"vmm"
)

func main() {
	if len(os.Args) != 4 {
		log.Fatal("usage: boot KERNEL INITRD COMMAND-LINE")
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1], os.Args[2], os.Args[3]); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, kernel, initrd, cmdline string) error {
	vm, err := vmm.Create(vmm.Config{Kernel: kernel, Initrd: initrd, Cmdline: cmdline})
	if err != nil {
		return err
	}
	defer vm.Close()
	if err := vm.AddSerial(os.Stdin, os.Stdout); err != nil {
		return err
	}
	if err := vm.Start(); err != nil {
		return err
	}
	for ev, err := range vm.Events(ctx) {
		if err != nil {
			return err
		}
		fmt.Println(ev.Type, ev.Value, ev.Detail)
	}
	return nil
}
