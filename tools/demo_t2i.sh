#!/usr/bin/env bash
# The demo of text to image: emoji and their names, which installed packages ship, a tokenizer, a generator of prompts,
# samples of names that it never saw, how well they are found again, and a report.
# `make demo-t2i` calls it after the set-up.
#   tools/demo_t2i.sh BIN_FOLDER_OF_THE_ENVIRONMENT
set -euo pipefail
python=$1/python
began=$SECONDS
"$python" tools/prepare_emoji.py work_dirs/demo_t2i/emoji
"$python" tools/train.py configs/demo/emoji_t2i.py --cfg-options data_root=work_dirs/demo_t2i/emoji
"$python" tools/sample.py work_dirs/demo_t2i/run --prompts work_dirs/demo_t2i/emoji/val/captions.csv --out work_dirs/demo_t2i/run/samples/held_out --grid 36
"$python" benchmarks/retrieval_rank.py work_dirs/demo_t2i/run/samples/held_out work_dirs/demo_t2i/emoji
"$python" tools/report.py work_dirs/demo_t2i/run --title "The AlignTok demo of text to image"
echo "The demo took $((SECONDS - began)) s. Started again, it skips what is finished (rm -r work_dirs/demo_t2i for a new run)."
