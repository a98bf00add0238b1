#!/usr/bin/env bash
# The demo: photographs that installed packages ship, the three stages, a generator on their latents, samples of it,
# what both are measured to be, and a report.
# `make demo` calls it after the set-up.
#   tools/demo.sh BIN_FOLDER_OF_THE_ENVIRONMENT
set -euo pipefail
python=$1/python
began=$SECONDS
"$python" tools/make_demo_data.py work_dirs/demo/photographs --crops 6
"$python" tools/train.py configs/demo/photographs_f8d16.py --cfg-options data_root=work_dirs/demo/photographs
"$python" tools/sample.py work_dirs/demo/run --num-samples 60 --labels balanced --out work_dirs/demo/samples --real-images work_dirs/demo/photographs --split crops
"$python" tools/evaluate.py reconstruction work_dirs/demo/run work_dirs/demo/photographs --split val --image-size 160 --extractor none --perceptual st_lpips
"$python" tools/analyze_latents.py work_dirs/demo/run work_dirs/demo/photographs --encoder efficientnet_lite0 --split crops --image-size 64 --num-images 100 --seeds 0
"$python" tools/evaluate.py make-reference work_dirs/demo/photographs work_dirs/demo/crops.safetensors --split crops --image-size 64 --num-images 300 --extractor efficientnet_lite0
"$python" tools/evaluate.py generation work_dirs/demo/samples --reference work_dirs/demo/crops.safetensors --extractor efficientnet_lite0
"$python" tools/report.py work_dirs/demo --title "The AlignTok demo"
echo "The demo took $((SECONDS - began)) s. Started again, it skips what is finished (rm -r work_dirs/demo for a new run)."
