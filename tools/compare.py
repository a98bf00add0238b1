#!/usr/bin/env python3
"""Train several tokenizers at one budget and the same generator on each, and measure all of them alike.

    python tools/compare.py configs/small/comparison.py --dry-run --cfg-options data_root=tiny_imagenet.zip
    python tools/compare.py configs/small/comparison.py --cfg-options data_root=tiny_imagenet.zip

The config names them; aligntok/evaluation/comparison/settings.py has every key. The command says beforehand how many
images each training sees and how long that takes on this machine. Started again, it goes on where it stopped; to do a
part anew, remove its folder. With --only, several machines that share the work folder each train some of the
tokenizers.
"""

from aligntok.cli import compare
from aligntok.ends import leave

if __name__ == "__main__":
    leave(compare)
