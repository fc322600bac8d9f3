# SPDX-License-Identifier: MIT
"""Make vmm._vmm, the compiled module, out of vmm.h: run by setup.py.

What Python sees of the library is vmm.h itself: its comments and preprocessor
lines are taken away, and what is left is what cffi is told, so that there is
no second list of functions and structs to keep.  Of the #defines the numbers
are kept, and of each VMM_..._INIT a function is made that sets a struct up.

The library is either in the module, as the one file that "make amalgam" makes
of it (the default), or an installed libvmm, found by pkg-config, if
VMM_SYSTEM=1 is in the environment.
"""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import cffi

HERE = Path(__file__).resolve().parent
TOP = HERE.parent.parent
# A source distribution carries the library here; in the project it is made anew.
SOURCE = HERE / "source"

LIBRARIES = ["fdt", "zstd", "xxhash", "uring", "z", "pthread"]

# Callbacks.  C counts how deep this thread is in them (vmmpy_inside): while the
# library waits for one, no object of it may be freed on that thread, and what
# Python's garbage collector frees, and when, nobody knows.
CALLBACKS = """
extern "Python" void vmmpy_log(void *arg, int level, const char *line);
extern "Python" int vmmpy_progress(void *arg, uint64_t done, uint64_t total);
extern "Python" int vmmpy_prepare(void *arg, struct vmm *vm);
int vmmpy_inside(void);
void vmmpy_log_c(void *arg, int level, const char *line);
int vmmpy_progress_c(void *arg, uint64_t done, uint64_t total);
int vmmpy_prepare_c(void *arg, struct vmm *vm);
"""

CALLBACKS_C = """
static void vmmpy_log(void *arg, int level, const char *line);
static int vmmpy_progress(void *arg, uint64_t done, uint64_t total);
static int vmmpy_prepare(void *arg, struct vmm *vm);

static __thread int inside;

static int vmmpy_inside(void)
{
	return inside;
}

static void vmmpy_log_c(void *arg, int level, const char *line)
{
	inside++;
	vmmpy_log(arg, level, line);
	inside--;
}

static int vmmpy_progress_c(void *arg, uint64_t done, uint64_t total)
{
	int rc;

	inside++;
	rc = vmmpy_progress(arg, done, total);
	inside--;
	return rc;
}

static int vmmpy_prepare_c(void *arg, struct vmm *vm)
{
	int rc;

	inside++;
	rc = vmmpy_prepare(arg, vm);
	inside--;
	return rc;
}
"""


def declarations(header: str) -> str:
    """What cffi.FFI.cdef() takes, of the text of vmm.h."""
    text = re.sub(r"/\*.*?\*/", "", header, flags=re.S).replace("\\\n", " ")
    numbers = re.findall(r"^#define (VMM_VERSION\w*) ", text, flags=re.M)
    text = re.sub(r'^extern "C" \{\n#endif\n(.*)^\}\n', r"\1", text, flags=re.M | re.S)
    text = re.sub(r"^#.*\n", "", text, flags=re.M)
    text = re.sub(r"^\}\n\Z|^extern \"C\" \{$", "", text, flags=re.M)
    text = text.replace("VMM_API ", "")
    return "".join(f"#define {n} ...\n" for n in numbers) + text


def initialisers(header: str) -> tuple[str, str]:
    """For each struct with an INIT macro, init_NAME(): its prototypes, its code."""
    found = re.findall(r"^#define (VMM_\w+_INIT) \{ sizeof\(struct (\w+)\)", header, flags=re.M)
    prototypes = [f"void init_{struct}(struct {struct} *p)" for _, struct in found]
    bodies = [f"{{ *p = (struct {struct}){macro}; }}" for macro, struct in found]
    code = [f"static {p}\n{b}\n" for p, b in zip(prototypes, bodies, strict=True)]
    return "".join(p + ";\n" for p in prototypes), "".join(code)


def stage() -> Path:
    """The directory that holds vmm.h and vmm.c: fresh, if this is the project."""
    if (TOP / "core" / "amalgam.awk").exists():
        subprocess.run(["make", "-s", "-C", str(TOP), "amalgam"], check=True)
        SOURCE.mkdir(exist_ok=True)
        for name in ("vmm.h", "vmm.c"):
            shutil.copy(TOP / "dist" / name, SOURCE / name)
        shutil.copy(TOP / "LICENSE", SOURCE / "LICENSE")
    return SOURCE


def version() -> str:
    header = next(p for p in (TOP / "vmm.h", SOURCE / "vmm.h") if p.exists()).read_text()
    return ".".join(
        re.search(rf"VMM_VERSION_{part} (\d+)", header)[1]  # type: ignore[index]
        for part in ("MAJOR", "MINOR", "PATCH")
    )


def pkg_config(option: str) -> list[str]:
    command = [os.environ.get("PKG_CONFIG", "pkg-config"), option, "vmm"]
    return shlex.split(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def make() -> cffi.FFI:
    ffi = cffi.FFI()
    if os.environ.get("VMM_SYSTEM"):
        flags = pkg_config("--cflags")
        where = [Path(f[2:]) for f in flags if f.startswith("-I")] + [Path("/usr/include")]
        header = next(d / "vmm.h" for d in where if (d / "vmm.h").exists()).read_text()
        how = {"extra_compile_args": flags, "extra_link_args": pkg_config("--libs")}
        sources = []
    else:
        directory = stage()
        header = (directory / "vmm.h").read_text()
        # distutils wants the path to be relative to setup.py.
        sources = [os.path.relpath(directory / "vmm.c", HERE)]
        how = {
            "libraries": LIBRARIES,
            "include_dirs": [str(directory)],
            "extra_compile_args": ["-std=gnu11", "-fvisibility=hidden"],
        }
    prototypes, code = initialisers(header)
    ffi.cdef(declarations(header) + prototypes + CALLBACKS)
    ffi.set_source("vmm._vmm", "#include <vmm.h>\n" + code + CALLBACKS_C, sources=sources, **how)
    return ffi
