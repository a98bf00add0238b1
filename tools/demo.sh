#!/usr/bin/env bash
# The demo: photographs that installed packages ship, the three stages, a generator on their latents, samples of it.
# `make demo` calls it after the set-up.
#   tools/demo.sh BIN_FOLDER_OF_THE_ENVIRONMENT
set -euo pipefail
python=$1/python
began=$SECONDS
"$python" tools/make_demo_data.py work_dirs/demo/photographs --crops 6
"$python" tools/train.py configs/demo/photographs_f8d16.py --cfg-options data_root=work_dirs/demo/photographs
"$python" tools/sample.py work_dirs/demo/run --num 54 --labels balanced --out work_dirs/demo/samples --beside work_dirs/demo/photographs --split crops
echo "The demo took $((SECONDS - began)) s. Started again, it skips what is finished (rm -r work_dirs/demo for a new run)."
