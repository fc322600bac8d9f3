# SPDX-License-Identifier: MIT
# The compiled module, made of vmm.h by vmm_build.py.
from typing import Any

ffi: Any
lib: Any
