"""Everything is in pyproject.toml but this: configs lie beside the package here, and in it where it is installed."""

from pathlib import Path
from shutil import copytree, ignore_patterns

from setuptools import setup
from setuptools.command.build_py import build_py


class WithConfigs(build_py):
    """Puts configs/ into the package, where `aligntok configs` finds them."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib, "aligntok", "_configs")
            copytree("configs", target, ignore=ignore_patterns("__pycache__"), dirs_exist_ok=True)


setup(cmdclass={"build_py": WithConfigs})
