#!/usr/bin/env bash
# What the demo of text to image learned of words: its generator and one of another seed, each beside a control whose
# captions are those of other pictures, on the demo's tokenizer; the ranks of names that none of them saw.
# `make demo-t2i-measure` calls it after `make demo-t2i`.
#   tools/demo_t2i_measure.sh BIN_FOLDER_OF_THE_ENVIRONMENT
set -euo pipefail
python=$1/python
data=work_dirs/demo_t2i
[ -d $data/shuffled ] || "$python" benchmarks/shuffled_captions.py $data/emoji $data/shuffled
for each in shuffled_0 emoji_1 shuffled_1; do  # emoji_0 is the demo's own
  run=$data/measured/$each
  "$python" tools/train.py configs/demo/emoji_t2i.py --stage generation --work-dir $run --cfg-options generation.tokenizer=$data/run/tokenizer data_root=$data/${each%_*} seed=${each#*_}
  "$python" tools/sample.py $run --prompts $data/emoji/val/captions.csv --out $run/held_out --no-npz
done
"$python" benchmarks/retrieval_rank.py $data/run/samples/held_out $data/measured/*/held_out $data/emoji --out $data/measured/ranks.json
