#!/usr/bin/env python3
"""Draw samples from a trained generator: pictures, one array of all of them for evaluation, and a grid to look at.

    python tools/sample.py work_dirs/my_generator --num-samples 16
    torchrun --nproc_per_node=8 tools/sample.py work_dirs/my_generator --num-samples 50000 --steps 250 --cfg-scale 6.7
    python tools/sample.py work_dirs/my_generator --guidance-sweep 1 2 4 8 --sweep-steps 10 30 50 --num-samples 64

The same command started again goes on where it stopped, a larger --num-samples with what is missing. A sample
follows from its seed and its label: batch size, processes and interruptions do not change it.
"""

from aligntok.cli import sample
from aligntok.ends import leave

if __name__ == "__main__":
    leave(sample)
