#!/usr/bin/env python3
"""Write a tokenizer as a folder that anyone can load.

python tools/export.py work_dirs/aligntok_dinov2_f16d32 my_tokenizer --ema 0.08
"""

from aligntok.cli import export
from aligntok.ends import leave

if __name__ == "__main__":
    leave(export)
