# SPDX-License-Identifier: MIT
"""pip install .: see vmm_build.py for what is in the package."""

import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.sdist import sdist

sys.path.insert(0, str(Path(__file__).resolve().parent))
import vmm_build


class Sdist(sdist):
    """A source distribution, with the library as one file in it."""

    def run(self) -> None:
        vmm_build.stage()
        super().run()


setup(
    version=vmm_build.version(),
    cmdclass={"sdist": Sdist},
    cffi_modules=["vmm_build.py:make"],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
