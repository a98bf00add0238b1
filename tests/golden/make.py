#!/usr/bin/env python3
"""Make the golden file: what AlignTok computes from seeds, to be the same after a change as before it.

    python tests/golden/make.py                    # make golden: tests/golden/golden.json, of this commit
    python tests/golden/make.py --check            # make it anew and say what differs from it
    python tests/golden/make.py --out FILE --keep FOLDER

Everything goes through the tools that users type, in a temporary folder, on one thread a process, with models of a few
thousand weights. Losses and numbers are written as they are; tensors and pixels as hashes, which know no names of
files, tensors or keys. Left out, for they are of the machine and the moment: seconds, images a second, memory, dates,
versions, paths; and plots, which belong to matplotlib and to who lays out a page, with a report's table of settings.
An LPIPS of random weights measures nothing here, for as a metric it has no seed. Nothing else had to be left out: two
runs are alike bit for bit, in two processes too.

Bits depend on the processor and the libraries, so the file says on which it was made; see comparing.py.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import commands
import comparing
import numpy
import PIL
import reading
import torch

GOLDEN = Path(__file__).with_name("golden.json")


def made_on() -> dict[str, str]:
    """Return what bits depend on: the processor, and the libraries that compute."""
    versions = dict(torch=torch.__version__, numpy=numpy.__version__, pillow=PIL.__version__)
    return {"capability": torch.backends.cpu.get_cpu_capability(), "processor": processor(), **versions}


def processor() -> str:
    """Return maker, family and model: kernels are chosen by more than the capability."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    found = [re.search(rf"^{key}\s*: (.*)$", text, re.MULTILINE) for key in ("vendor_id", "cpu family", "model")]
    return " ".join(each[1] for each in found if each) or platform.machine()


def make(folder: Path) -> dict[str, Any]:
    """Run everything in `folder` and return the golden file's content."""
    commands.run_all(folder)
    return {"made_on": made_on(), "sections": reading.read_all(folder)}


def written(content: Any, indent: str = "") -> str:
    """JSON with one line for each row of numbers."""
    if not isinstance(content, (dict, list)) or "step" in content:
        return json.dumps(content, ensure_ascii=False)
    inner = indent + "  "
    if isinstance(content, list):
        return "[\n" + ",\n".join(inner + written(each, inner) for each in content) + f"\n{indent}]"
    pairs = (f"{inner}{json.dumps(k, ensure_ascii=False)}: {written(v, inner)}" for k, v in content.items())
    return "{\n" + ",\n".join(pairs) + f"\n{indent}}}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=GOLDEN, help="the file to write (default: golden.json beside this)")
    parser.add_argument("--check", action="store_true", help="write nothing, compare with that file")
    parser.add_argument("--keep", type=Path, help="an empty or new folder for what the commands leave")
    given = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="golden_") as temporary:
        folder = given.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        content = make(folder.resolve())
    took = f"The golden run took {time.monotonic() - began:.0f} s."
    if not given.check:
        given.out.write_text(written(content) + "\n")
        print(f"{given.out}\n{took}")
        return 0
    before = json.loads(given.out.read_text())
    found = comparing.differences(before, json.loads(json.dumps(content)))
    counts = Counter(line.partition(":")[0] for line in found)
    print("\n".join([*found, *(f"{section}: {count} differ" for section, count in counts.items())]))
    print(f"{comparing.extent(before, content)}\n{took}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
