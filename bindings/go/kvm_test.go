// SPDX-License-Identifier: MIT

package vmm_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmm"
)

// Tests on real KVM: Linux in machines.  VMM_KERNEL and VMM_INITRD say where it is
// (build/lab/guest: a shell on the serial port).

func linux(t *testing.T) vmm.Config {
	t.Helper()
	c := vmm.Config{Kernel: os.Getenv("VMM_KERNEL"), Initrd: os.Getenv("VMM_INITRD"), Cmdline: "console=ttyS0"}
	if c.Kernel == "" {
		t.Skip("VMM_KERNEL is not set")
	}
	if _, err := vmm.Probe(); err != nil {
		t.Skip(err)
	}
	return c
}

// until reads what a guest says until it has said each of texts, one after the other.
func until(t *testing.T, c net.Conn, texts ...string) string {
	t.Helper()
	var said string
	buf, from := make([]byte, 4096), 0
	c.SetReadDeadline(time.Now().Add(4 * time.Minute))
	for _, text := range texts {
		for !strings.Contains(said[from:], text) {
			n, err := c.Read(buf)
			said += string(buf[:n])
			if err != nil {
				t.Fatalf("%v, after %q", err, said)
			}
		}
		from += strings.Index(said[from:], text) + len(text)
	}
	return said
}

// command types one, and gives what the guest says to it.
func command(t *testing.T, c net.Conn, text string) string {
	t.Helper()
	_, err := fmt.Fprintf(c, "%s; echo do''ne\n", text)
	ok(t, err)
	return until(t, c, "done", "# ")
}

func TestKVMLinux(t *testing.T) {
	signals := make(chan os.Signal, 100)
	signal.Notify(signals)
	defer signal.Stop(signals)
	config := linux(t)
	config.Log = func(l vmm.LogLevel, line string) { t.Log(l, line) }
	begin := time.Now()
	vm, err := vmm.Create(config)
	ok(t, err)
	defer vm.Close()
	console, err := vm.SerialConn()
	ok(t, err)
	defer console.Close()
	ok(t, vm.AddRNG("rng"))
	ok(t, vm.AddVsock(3))
	ok(t, vm.Start())
	until(t, console, "# ")
	t.Logf("a prompt after %v", time.Since(begin))
	if said := command(t, console, "answer=$((6 * 7)); uname -m"); !strings.Contains(said, "riscv64") {
		t.Errorf("%q", said)
	}

	ok(t, vm.Pause())
	snap, err := vm.Snapshot()
	ok(t, err)
	path := filepath.Join(t.TempDir(), "snap")
	ok(t, snap.Write(context.Background(), path, nil))
	ok(t, snap.Close())
	ok(t, vm.Start())
	fmt.Fprintln(console, "poweroff -f")
	for ev, err := range vm.Events(context.Background()) {
		ok(t, err)
		if ev.Type != vmm.EventShutdown {
			t.Error(ev)
		}
	}

	// Clones, all at once, of the file and from a pool.
	snap, err = vmm.Open(path)
	ok(t, err)
	defer snap.Close()
	pool, err := snap.NewPool(&vmm.PoolConfig{Ready: 2, Prepare: func(vm *vmm.VM) error {
		c, err := vm.SerialConn()
		vm.Value = c
		return err
	}})
	ok(t, err)
	defer pool.Close()
	var group waitGroup
	for range 4 {
		group.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
			defer cancel()
			clone, err := pool.Take(ctx)
			if err != nil {
				t.Error(err)
				return
			}
			defer pool.Give(clone)
			c := clone.Value.(net.Conn)
			if err := clone.Start(); err != nil {
				t.Error(err)
				return
			}
			if said := command(t, c, "echo the answer is $answer"); !strings.Contains(said, "the answer is 42") {
				t.Errorf("%q", said)
			}
		})
	}
	group.Wait()
	syscall.Kill(os.Getpid(), syscall.SIGUSR1)
	for s := range signals {
		if s == syscall.SIGUSR1 {
			break
		}
		if s != syscall.SIGURG {
			t.Errorf("a signal: %v", s)
		}
	}
}

// stub gives a machine that is frozen while it rings the doorbell again and again.
func stub(t *testing.T) *vmm.Snapshot {
	t.Helper()
	linux(t)
	image := make([]byte, 4096)
	for i, word := range map[int]uint32{
		0:  0x0400006f, // j 64
		12: 0x43534952, // "RISC"
		13: 0x56,       // "V"
		14: 0x05435352, // "RSC\x05"
		16: 0x090008b7, // lui a7, 0x9000: VMM_GUEST_SBI
		17: 0x00000813, // li a6, 0
		18: 0x00100513, // li a0, 1
		19: 0x00000073, // ecall
		20: 0xff1ff06f, // j back to li a6
	} {
		binary.LittleEndian.PutUint32(image[4*i:], word)
	}
	path := filepath.Join(t.TempDir(), "Image")
	ok(t, os.WriteFile(path, image, 0o666))
	vm, err := vmm.Create(vmm.Config{Kernel: path, Memory: 4 << 20})
	ok(t, err)
	defer vm.Close()
	ok(t, vm.Start())
	rings(t, vm)
	ok(t, vm.Pause())
	snap, err := vm.Snapshot()
	ok(t, err)
	t.Cleanup(func() { snap.Close() })
	return snap
}

func rings(t *testing.T, vm *vmm.VM) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	if ev, err := vm.Wait(ctx); err != nil || ev.Type != vmm.EventDoorbell {
		t.Error(ev, err)
	}
}

// 64 goroutines, each with one machine after another.
func TestKVMMany(t *testing.T) {
	snap := stub(t)
	var group waitGroup
	for range 64 {
		group.Go(func() {
			for range 3 {
				clone, err := snap.Restore(nil)
				if err != nil {
					t.Error(err)
					return
				}
				if err := clone.Start(); err != nil {
					t.Error(err)
				}
				rings(t, clone)
				clone.Close()
			}
		})
	}
	group.Wait()
}

// Rounds leave nothing behind.
func TestKVMRounds(t *testing.T) {
	snap := stub(t)
	grows(t, 50, func() {
		clone, err := snap.Restore(nil)
		ok(t, err)
		ok(t, clone.Start())
		rings(t, clone)
		ok(t, clone.Close())
	})
}

// The examples, as make check-go-kvm has built them: they talk, clone, and answer HTTP.
func TestKVMExamples(t *testing.T) {
	c := linux(t)
	example := func(name string, args ...string) *exec.Cmd {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
		t.Cleanup(cancel)
		cmd := exec.CommandContext(ctx, "../../build/riscv64/go-"+name, args...)
		cmd.Stderr = os.Stderr
		_, err := cmd.StdinPipe() // or its console would have an end at once
		ok(t, err)
		return cmd
	}
	says := func(cmd *exec.Cmd, want ...string) {
		t.Helper()
		out, err := cmd.Output()
		for _, text := range want {
			if err != nil || !strings.Contains(string(out), text) {
				t.Errorf("%v: %v, %q", cmd, err, out)
			}
		}
	}
	file := filepath.Join(t.TempDir(), "snap")
	says(example("boot", c.Kernel, c.Initrd, `console=ttyS0 run="uname -m"`), "riscv64", "shutdown 0")
	says(example("clones", c.Kernel, c.Initrd, file, "uname -m", "echo $((6 * 7))"), "riscv64", "42")

	l, err := net.Listen("tcp", "localhost:0")
	ok(t, err)
	address := l.Addr().String()
	ok(t, l.Close())
	server := example("pool", file, address)
	ok(t, server.Start())
	var group waitGroup
	for range 2 {
		group.Go(func() {
			for {
				r, err := http.Post("http://"+address, "text/plain", strings.NewReader("uname -m"))
				if errors.Is(err, syscall.ECONNREFUSED) { // not yet
					time.Sleep(100 * time.Millisecond)
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				defer r.Body.Close()
				said, err := io.ReadAll(r.Body)
				if err != nil || r.StatusCode != http.StatusOK || !strings.Contains(string(said), "riscv64") {
					t.Error(err, r.Status, string(said))
				}
				return
			}
		})
	}
	group.Wait()
	ok(t, server.Process.Signal(os.Interrupt))
	ok(t, server.Wait())
}
