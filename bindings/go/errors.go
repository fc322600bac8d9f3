// SPDX-License-Identifier: MIT

package vmm

// #include "shim.h"
import "C"

import (
	"errors"
	"os"
	"strings"
	"syscall"
)

// Code says what kind of failure an [Error] is.  Each is an error itself, so that
// errors.Is(err, vmm.ErrState) asks for it.
type Code int32

// The codes.
const (
	ErrInvalid      Code = C.VMM_EINVAL    // bad argument: a bug in the caller
	ErrState        Code = C.VMM_ESTATE    // not in the machine's present state
	ErrNoMemory     Code = C.VMM_ENOMEM    // out of memory
	ErrSys          Code = C.VMM_ESYS      // a system call failed: Error.Errno says how
	ErrNoKVM        Code = C.VMM_ENOKVM    // no usable /dev/kvm on this host
	ErrNotSupported Code = C.VMM_ENOTSUP   // this host or this build cannot do that
	ErrFormat       Code = C.VMM_EFORMAT   // a kernel or snapshot file is malformed
	ErrVersion      Code = C.VMM_EVERSION  // a snapshot of another version or host
	ErrTimeout      Code = C.VMM_ETIMEDOUT // did not happen in time
	ErrRefused      Code = C.VMM_EREFUSED  // the guest refused the connection
	ErrBroken       Code = C.VMM_EBROKEN   // the machine can only be closed
)

// Error gives the name that C knows the code by, as "VMM_ESTATE".
func (c Code) Error() string {
	if c == C.VMM_OK {
		return "VMM_OK"
	}
	return C.GoString(C.vmm_strerror(C.int(c)))
}

// Is makes a code known by what the standard library calls the same.
func (c Code) Is(target error) bool {
	switch target {
	case errors.ErrUnsupported:
		return c == ErrNotSupported
	case os.ErrDeadlineExceeded:
		return c == ErrTimeout
	}
	return false
}

// Error is what every failed call of the C library gives.
//
//	errors.Is(err, vmm.ErrFormat)     // by its code
//	errors.Is(err, fs.ErrNotExist)    // by the errno behind it
//	errors.As(err, &e)                // all of it
//
// Calls on an object that has been closed fail with [os.ErrClosed], those whose
// context ended with its error, beside the library's if there is one.
type Error struct {
	Code    Code
	Errno   syscall.Errno // or 0
	Message string        // one line, for people
}

func (e *Error) Error() string { return e.Message }

// Unwrap gives the code, and the errno if there is one.
func (e *Error) Unwrap() []error {
	if e.Errno == 0 {
		return []error{e.Code}
	}
	return []error{e.Code, e.Errno}
}

// Timeout reports whether it is [ErrTimeout], as net.Error wants it.
func (e *Error) Timeout() bool { return e.Code == ErrTimeout }

type cError = *C.struct_vmm_error

func newError(e cError) error {
	return &Error{Code(e.code), syscall.Errno(e.os_errno), C.GoString(&e.message[0])}
}

// call makes one call of the library.  Each of strs goes to it as a C string, an
// empty one as NULL.
func call(f func(s []*C.char, e cError) C.int, strs ...string) error {
	s := make([]*C.char, len(strs))
	for i := range strs {
		if strings.IndexByte(strs[i], 0) >= 0 {
			return &Error{Code: ErrInvalid, Message: "a zero byte in a string"}
		}
	}
	for i := range strs {
		if strs[i] != "" {
			s[i] = C.CString(strs[i])
			defer free(s[i])
		}
	}
	var e C.struct_vmm_error
	if f(s, &e) != 0 {
		return newError(&e)
	}
	return nil
}
