#!/usr/bin/env python3
"""Write one HTML page about runs: curves, reconstructions, samples, sweeps, results. It opens from disk, offline.

    python tools/report.py work_dirs/my_run
    python tools/report.py work_dirs/my_run work_dirs/another --out comparison.html --title "Two tokenizers"

RUN is a work folder of tools/train.py, a folder of tools/sample.py or of its --guidance-sweep, the folder of an
evaluation, or a folder that holds any of them.
"""

from aligntok.cli import report
from aligntok.ends import leave

if __name__ == "__main__":
    leave(report)
