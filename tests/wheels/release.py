#!/usr/bin/env python3
"""Try every environment that a release is tested in, one after the other, and tell which passed in how many minutes.

    python tests/wheels/release.py                  # make test-release
    python tests/wheels/release.py lowest mlflow    # these

Each is made by check.py in a temporary folder of 8 GB, and removed. Exit status 1: one of them failed.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time

import check  # beside this file

NEWEST = check.ROOT / "constraints/torch-2.14.txt"
ENVIRONMENTS: dict[str, list[object]] = {
    **{path.stem: ["--constraint", path] for path in sorted(NEWEST.parent.glob("*.txt"))},
    "lowest": ["--lowest"],
    **{extra: ["--constraint", NEWEST, "--extra", extra] for extra in check.TESTS_OF},
}


def main(asked: list[str]) -> int:
    if unknown := {*asked} - ENVIRONMENTS.keys():
        raise SystemExit(f"no environment named {', '.join(sorted(unknown))}; there are {', '.join(ENVIRONMENTS)}")
    failed = []
    for name in asked or ENVIRONMENTS:
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, check.__file__, folder, *map(str, ENVIRONMENTS[name])]
            failed += [name] if subprocess.call(command) else []
        how = "FAILED" if name in failed else "passed"
        print(f"{name}: {how} in {(time.monotonic() - began) / 60:.1f} minutes", flush=True)
    print(f"failed: {', '.join(failed) or 'none'}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
