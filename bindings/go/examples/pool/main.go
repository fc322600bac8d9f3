// SPDX-License-Identifier: MIT

// Pool answers HTTP requests from machines that nobody has used before: each request's
// body is typed into the shell of a fresh clone, and the answer is what it says.
//
//	pool FILE ADDRESS
//	curl --data 'uname -a' ADDRESS
//
// FILE is a snapshot of a machine with a shell on its serial port, as the example
// clones writes it.
package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"time"

	"vmm"
)

func main() {
	if len(os.Args) != 3 {
		log.Fatal("usage: pool FILE ADDRESS")
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := serve(ctx, os.Args[1], os.Args[2]); err != nil {
		log.Fatal(err)
	}
}

// serve answers until ctx ends, and then those who have asked already.
func serve(ctx context.Context, file, address string) error {
	snap, err := vmm.Open(file)
	if err != nil {
		return err
	}
	defer snap.Close()
	pool, err := snap.NewPool(&vmm.PoolConfig{Ready: 4, Prepare: addConsole})
	if err != nil {
		return err
	}
	defer pool.Close()

	server := &http.Server{Addr: address, Handler: handler{pool}}
	over := make(chan error, 1)
	context.AfterFunc(ctx, func() { over <- server.Shutdown(context.Background()) })
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return <-over
}

// addConsole gives a new machine a console, which goes with it from now on.
func addConsole(vm *vmm.VM) error {
	console, err := vm.SerialConn()
	vm.Value = console
	return err
}

type handler struct{ pool *vmm.Pool }

func (h handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	command, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 4096))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), time.Minute)
	defer cancel()
	var answer bytes.Buffer // all of it or none: a header is written once
	if err := h.answer(ctx, &answer, string(command)); err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	answer.WriteTo(w)
}

func (h handler) answer(ctx context.Context, w io.Writer, command string) error {
	vm, err := h.pool.Take(ctx)
	if err != nil {
		return err
	}
	defer vm.Close() // what one caller has done there is no business of the next
	console := vm.Value.(net.Conn)
	defer console.Close()
	if deadline, ok := ctx.Deadline(); ok {
		console.SetDeadline(deadline)
	}
	if err := vm.Start(); err != nil {
		return err
	}
	// No prompt between the answer and its end; the end as it is typed has a quote behind it.
	const end = "-- end --"
	if _, err := fmt.Fprintf(console, "stty -echo; PS1=; %s\necho '%s'\n", command, end); err != nil {
		return err
	}
	lines := bufio.NewScanner(console)
	for over := false; !over && lines.Scan(); {
		var text string
		if text, over = strings.CutSuffix(lines.Text(), end); text != "" || !over {
			fmt.Fprintln(w, text)
		}
	}
	return lines.Err()
}
