// SPDX-License-Identifier: MIT

package vmm

// Where the C library comes from: "make go" puts the amalgamated one here, and
// the go command compiles it with the package; or, with -tags libvmm, it is the
// one that pkg-config finds.

/*
#cgo !libvmm CFLAGS: -DVMM_AMALGAM -std=gnu11
#cgo !libvmm LDFLAGS: -lfdt -lzstd -lxxhash -luring -lz -lpthread
#cgo libvmm pkg-config: vmm
#include "shim.h"
*/
import "C"
