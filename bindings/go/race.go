// SPDX-License-Identifier: MIT

//go:build race

package vmm

const race = true
