// SPDX-License-Identifier: MIT

package vmm

// #include "shim.h"
import "C"

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/cgo"
	"sync"
	"time"
)

// Pool is machines that have been restored before they are needed.  A thread of the
// library makes them, and takes those that are given back to their snapshot.
type Pool struct {
	*pool
	lost *finalizer[*pool]
}

// pool is what there is of a Pool when nobody has it any more.
type pool struct {
	*handle
	p       *C.struct_vmm_pool
	log     *logger
	prepare func(*VM) error

	mu     sync.Mutex
	why    error       // of prepare, the last time it failed
	values map[cVM]any // of machines that wait
}

// PoolFlags says what machines of a pool do until they are taken.
type PoolFlags uint32

// PoolPark: each runs until it rings the doorbell, and is held.
const PoolPark PoolFlags = C.VMM_POOL_PARK

// PoolConfig says what a pool is to be.  What is left zero is the default.
type PoolConfig struct {
	Ready       int // how many wait; default 1
	Flags       PoolFlags
	ParkTimeout time.Duration // it must ring within; 0: whenever it does
	Memory      uint64        // no more wait if those that do hold so many bytes of their own; 0: no limit
	Restore     *RestoreConfig

	// Called for each new machine, to give its devices their back ends, on a
	// thread of the pool's.  The machine is not to be kept.  An error: it is no
	// good, and who takes one is told.
	Prepare func(vm *VM) error
}

// NewPool makes a pool of machines of the snapshot.  It returns before a machine is
// ready.  config may be nil.
func (s *Snapshot) NewPool(config *PoolConfig) (*Pool, error) {
	config = orZero(config)
	how := orZero(config.Restore)
	if err := s.enter(); err != nil {
		return nil, err
	}
	pl := &pool{prepare: config.Prepare, values: make(map[cVM]any)}
	id := cgo.NewHandle(pl)
	err := restoring(how, func(r *C.struct_vmm_restore_config, log *logger) error {
		c := allocate(C.vmmgo_pool_init)
		defer free(c)
		c.ready = C.uint32_t(config.Ready)
		c.flags = C.uint32_t(config.Flags)
		if config.ParkTimeout > 0 {
			c.park_ms = C.uint32_t(max(1, config.ParkTimeout.Milliseconds()))
		}
		c.memory = C.uint64_t(config.Memory)
		c.restore = r
		C.vmmgo_pool_prepare(c, C.uintptr_t(id))
		pl.log = log
		return call(func(n []*C.char, e cError) C.int {
			r.name = n[0]
			return C.vmm_pool_create(&pl.p, s.p, c, e)
		}, how.Name)
	})
	if err != nil {
		id.Delete()
		s.leave()
		return nil, err
	}
	pl.handle = newHandle(func() {
		C.vmm_pool_free(pl.p)
		id.Delete()
		pl.log.drop()
		s.leave()
	})
	p := &Pool{pool: pl}
	p.lost = finalize(pl, (*pool).close)
	return p, nil
}

//export vmmgoPrepare
func vmmgoPrepare(id C.uintptr_t, p *C.struct_vmm) C.int {
	pl := cgo.Handle(id).Value().(*pool)
	m := &machine{p: p, waiter: make(chan struct{}, 1)}
	m.handle = newHandle(func() {})
	vm := &VM{machine: m}
	var err error
	if pl.prepare != nil {
		err = pl.prepare(vm)
	}
	// It is the pool's: from here on the VM that prepare had is a closed one.
	if m.shut() {
		m.wake()
		m.hush()
		m.leave()
	}
	<-m.freed
	pl.mu.Lock()
	defer pl.mu.Unlock()
	if err != nil {
		pl.why = err
		return 1
	}
	pl.values[p] = vm.Value
	return 0
}

// Take gives a machine, and waits if none is ready: a New one, of a PoolPark pool a
// Paused one.  Close it or Give it back.  An error of ctx, or why none could be made.
func (p *Pool) Take(ctx context.Context) (*VM, error) {
	if err := p.enter(); err != nil {
		return nil, err
	}
	vm, err := p.take(0)
	if !errors.Is(err, ErrTimeout) {
		p.leave()
		return vm, err
	}
	type result struct {
		vm  *VM
		err error
	}
	done := make(chan result)
	go func() {
		defer p.leave()
		vm, err := p.await(ctx)
		select {
		case done <- result{vm, err}:
		case <-ctx.Done():
			if err == nil {
				p.Give(vm)
			}
		}
	}()
	select {
	case r := <-done:
		return r.vm, r.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// await takes a machine.  A call of the library cannot be called off, so that each
// is for a short time.
func (p *Pool) await(ctx context.Context) (*VM, error) {
	for {
		vm, err := p.take(100)
		switch {
		case !errors.Is(err, ErrTimeout):
			return vm, err
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case p.closed():
			return nil, os.ErrClosed
		}
	}
}

func (p *Pool) take(ms C.int) (*VM, error) {
	var out cVM
	err := call(func(_ []*C.char, e cError) C.int { return C.vmm_pool_take(p.p, ms, &out, e) })
	if err != nil {
		p.mu.Lock()
		why := p.why
		p.mu.Unlock()
		if why != nil && !errors.Is(err, ErrTimeout) {
			err = fmt.Errorf("%w: %w", err, why)
		}
		return nil, err
	}
	vm := newVM(out, p.log.use())
	p.mu.Lock()
	vm.Value = p.values[out]
	delete(p.values, out)
	p.mu.Unlock()
	return vm, nil
}

// Give hands a machine back, in any state: it is reset and used again, or closed.
// The VM is a closed one from then on.
func (p *Pool) Give(vm *VM) {
	if vm == nil {
		return
	}
	if p.enter() != nil {
		vm.Close()
		return
	}
	defer p.leave()
	vm.lost.cancel()
	if !vm.shut() {
		return
	}
	vm.wake()
	if vm.busy() {
		C.vmm_stop(vm.p, nil) // who waits for the guest gives up
	}
	vm.hush()
	m, value := vm.machine, vm.Value
	m.free = func() {
		p.mu.Lock()
		p.values[m.p] = value
		p.mu.Unlock()
		C.vmm_pool_give(p.p, m.p)
		m.log.drop()
	}
	vm.leave()
	<-vm.freed
}

// Close frees the pool, and the machines that wait in it.  Those that have been
// taken stay their takers'.  It returns nil, and does nothing the second time.
func (p *Pool) Close() error {
	p.lost.cancel()
	p.close()
	runtime.KeepAlive(p)
	return nil
}

func (pl *pool) close() {
	pl.handle.close()
	<-pl.freed
}
