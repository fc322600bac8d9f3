# SPDX-License-Identifier: MIT
"""The package's reference, in Markdown, out of its docstrings: "make reference"."""

import dataclasses
import enum
import inspect
import re

import vmm
from vmm import aio


def section(level: int, title: str, thing: object) -> None:
    print(f"{'#' * level} {title}\n")
    if doc := inspect.getdoc(thing):
        print(doc.replace("\n>>>", "\n    >>>").replace("\n...", "\n    ..."), end="\n\n")


def signature(name: str, function: object) -> str:
    text = str(inspect.signature(function))  # type: ignore[arg-type]
    text = re.sub(r"\b(vmm\._\w+|vmm\.aio|collections\.abc|logging|typing|uuid)\.", "", text)
    text = text.replace("str | bytes | os.PathLike[str] | os.PathLike[bytes]", "Path")
    text = re.sub(r"\*<class '(\w+)'>", r"\1", text)
    text = re.sub(r"<(\S+): .*?>", r"\1", text).replace("(self, ", "(").replace("(self)", "()")
    return f"`{name}{text}`"


def fields(cls: type) -> None:
    """Members, with the comments that they have in the source, beside or above them."""
    above = ""
    for line in inspect.getsource(cls).splitlines():
        if m := re.fullmatch(r"    #: (.*)", line):
            above = m[1]
        elif m := re.fullmatch(r"    (\w+)(?:: ([^=#]*?))?(?: = .*?)?(?:  #: (.*))?", line):
            comment = m[3] or above
            print(f"- `{m[1]}{': ' + m[2] if m[2] else ''}`{' - ' + comment if comment else ''}")
            above = ""
    print()


def of_class(name: str, cls: type) -> None:
    plain = issubclass(cls, enum.Enum | Exception | dict) or dataclasses.is_dataclass(cls)
    section(3, f"`{name}`" if plain else signature(name, cls), cls)
    if plain and not issubclass(cls, Exception):
        fields(cls)
    if plain or cls is vmm.HasFileno:
        return
    mine = {
        k: v for c in reversed(cls.__mro__) if "vmm" in c.__module__ for k, v in vars(c).items()
    }
    for attribute, value in mine.items():
        value = getattr(value, "__func__", value)  # of a class method
        if attribute.startswith("_"):
            continue
        if inspect.isfunction(value):
            section(4, signature(f"{name}.{attribute}", value), value)
        elif isinstance(value, property):
            section(4, f"`{name}.{attribute}`", value)


def main() -> None:
    for module, names in (
        (vmm, vmm.__all__),
        (aio, [n for n, o in vars(aio).items() if getattr(o, "__module__", "") == aio.__name__]),
    ):
        section(2, f"Module `{module.__name__}`", module)
        for name in names:
            thing = getattr(module, name)
            if name.startswith("_") or inspect.ismodule(thing):
                continue
            if inspect.isclass(thing):
                of_class(name, thing)
            elif inspect.isfunction(thing):
                section(3, signature(name, thing), thing)


if __name__ == "__main__":
    main()
