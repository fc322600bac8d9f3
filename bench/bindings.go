// SPDX-License-Identifier: MIT

// The work of bindings.c, in Go.
//
//	bindings FILE
package main

import (
	"bufio"
	"context"
	"fmt"
	"log"
	"net"
	"os"
	"time"

	"vmm"
)

const port = 5000

func main() {
	snap, err := vmm.Open(os.Args[1])
	check(err)
	defer snap.Close()
	var conn net.Conn
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		var n int
		if _, err := fmt.Sscanf(lines.Text(), "rr %d", &n); err == nil {
			if conn == nil {
				var vm *vmm.VM
				vm, conn, _ = talk(snap)
				defer vm.Close()
				defer conn.Close()
			}
			begin := time.Now()
			for range n {
				echo(conn)
			}
			fmt.Printf("%.3f\n", float64(time.Since(begin))/1e3/float64(n))
			continue
		}
		vm, c, at := talk(snap)
		c.Close()
		vm.Close()
		for i := range 4 {
			fmt.Printf("%.3f ", float64(at[i+1].Sub(at[i]))/1e3)
		}
		fmt.Println()
	}
}

func talk(snap *vmm.Snapshot) (vm *vmm.VM, conn net.Conn, at [5]time.Time) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	at[0] = time.Now()
	vm, err := snap.Restore(nil)
	check(err)
	at[1] = time.Now()
	check(vm.Start())
	at[2] = time.Now()
	conn, err = vm.Connect(ctx, port)
	check(err)
	at[3] = time.Now()
	echo(conn)
	at[4] = time.Now()
	return vm, conn, at
}

func echo(conn net.Conn) {
	b := [1]byte{'x'}
	_, err := conn.Write(b[:])
	check(err)
	n, err := conn.Read(b[:])
	check(err)
	if n != 1 || b[0] != 'x' {
		log.Fatal("no echo")
	}
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
