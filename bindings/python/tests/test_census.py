# SPDX-License-Identifier: MIT
"""Everything that vmm.h has is here: functions, constants, fields, and in the docs."""

import dataclasses
import enum
import inspect
import re
import runpy
from pathlib import Path

import pytest
from conftest import TOP

import vmm
from vmm import _types, aio
from vmm._vmm import ffi, lib

HEADER = (TOP / "vmm.h").read_text()
FUNCTIONS = re.findall(r"^VMM_API.*?\b(vmm_\w+)\(", HEADER, flags=re.M)
# In an enum; not those of the version, nor the INIT macros.
CONSTANTS = sorted(set(re.findall(r"\b(VMM_\w+)\s*= -?\d", HEADER)))
PACKAGE = Path(vmm.__file__).parent
CODE = {p.name: p.read_text() for p in PACKAGE.glob("*.py")}
# | `vmm_create` | `Machine()` |
TABLE = dict(
    re.findall(r"^\| `(vmm_\w+)` \| `([\w.]+)", (TOP / "docs" / "python.md").read_text(), re.M)
)


def test_there_is_something() -> None:
    assert len(FUNCTIONS) > 50
    assert len(CONSTANTS) > 50


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function(name: str) -> None:
    assert hasattr(lib, name), "rebuild the module"
    used = any(re.search(rf"\blib\.{name}\b", code) for code in CODE.values())
    assert used, f"{name} is in vmm.h, and nothing in the package calls it"


@pytest.mark.parametrize("name", CONSTANTS)
def test_constant(name: str) -> None:
    value = int(re.search(rf"\b{name}\s*= (-?\d+)", HEADER)[1])  # type: ignore[index]
    assert getattr(lib, name) == value
    # Nothing to say, and the ends of lists.
    if name not in ("VMM_OK", "VMM_EV_NONE", "VMM_STAGES", "VMM_EXITS"):
        used = any(re.search(rf"\blib\.{name}\b", code) for code in CODE.values())
        assert used, f"{name} is in vmm.h, and nothing in the package stands for it"


def test_struct_fields() -> None:
    pairs = {
        "vmm_event": vmm.Event,
        "vmm_host": vmm.Host,
        "vmm_stats": vmm.Stats,
        "vmm_balloon_stats": vmm.BalloonStats,
        "vmm_snap_info": vmm.SnapshotInfo,
        "vmm_snap_device": vmm.Device,
    }
    for struct, cls in pairs.items():
        there = {name for name, _ in ffi.typeof(f"struct {struct}").fields} - {"size", "reserved"}
        assert there == {f.name for f in dataclasses.fields(cls)}, struct


@pytest.mark.parametrize(
    "struct", ["vmm_config", "vmm_write_config", "vmm_restore_config", "vmm_pool_config"]
)
def test_config_fields(struct: str) -> None:
    code = "".join(CODE.values())
    for name, _ in ffi.typeof(f"struct {struct}").fields:
        if name in ("size", "reserved") or name.endswith("_arg"):
            continue
        if name == "flags" and struct in ("vmm_config", "vmm_write_config"):
            continue  # there are none yet
        if struct == "vmm_config" and name.removesuffix("_fd") in ("kernel", "initrd"):
            continue  # by name
        assert re.search(rf"\bconfig\.{name} = ", code), f"{struct}.{name}"


def test_enums_are_whole() -> None:
    """No enum of ours lacks one of vmm.h's."""
    prefixes = {
        vmm.LogLevel: "VMM_LOG_",
        vmm.Irqchip: "VMM_IRQCHIP_",
        vmm.EventType: "VMM_EV_",
        vmm.Stage: "VMM_STAGE_",
        vmm.Exit: "VMM_EXIT_",
    }
    for cls, prefix in prefixes.items():
        names = {n.removeprefix(prefix) for n in CONSTANTS if n.startswith(prefix)}
        assert names - {"NONE"} == set(cls.__members__)
    assert all(isinstance(c, enum.EnumMeta) for c in prefixes)


def test_the_table_of_names() -> None:
    assert set(TABLE) == set(FUNCTIONS), "the table in docs/python.md"
    for name in TABLE.values():
        thing: object = vmm
        for part in name.split("."):
            thing = getattr(thing, part)


def test_docstrings() -> None:
    things = {n: getattr(vmm, n) for n in vmm.__all__ if n != "HasFileno"}
    things |= {f"aio.{n}": getattr(aio, n) for n in ("Machine", "Pool", "create", "restore")}
    for name, thing in things.items():
        if not inspect.isclass(thing):
            continue
        assert thing.__doc__, name
        for attribute, value in vars(thing).items():
            if (
                callable(value)
                and not attribute.startswith("_")
                and not issubclass(thing, enum.Enum)
            ):
                assert value.__doc__, f"{name}.{attribute}"


def test_reference(capsys: pytest.CaptureFixture[str]) -> None:
    """Everything that is public is in what is made of the docstrings."""
    runpy.run_path(str(TOP / "bindings" / "python" / "reference.py"), run_name="__main__")
    text = capsys.readouterr().out
    for name in vmm.__all__:
        assert f"`{name}" in text or name in ("Log", "Path", "aio") or name.startswith("__"), name
    for name in ("Machine.wait", "Snapshot.close", "Pool.take"):
        assert f"#### `{name}(" in text


def test_initialisers() -> None:
    for struct in re.findall(r"^#define VMM_\w+_INIT \{ sizeof\(struct (\w+)\)", HEADER, re.M):
        assert _types.new(struct).size == ffi.sizeof(f"struct {struct}")
