#!/usr/bin/env bash
# One of two or more machines that train together: on each the same line, but for its number (0: the one of the address).
#   bash tools/launch/pair.sh NODES NUMBER ADDRESS PORT CONFIG [options of tools/train.py]
#   bash tools/launch/pair.sh 2 0 node1 29500 configs/aligntok_dinov2_f16d32.py --cfg-options data_root=/path/to/imagenet
# PROCESSES: on this machine; its GPUs if not given.
set -euo pipefail
if [ $# -lt 5 ]; then
    echo "pair.sh takes NODES NUMBER ADDRESS PORT CONFIG, and then options of tools/train.py; given were $#: $*" >&2
    exit 2
fi
nodes=$1 number=$2 address=$3 port=$4
shift 4
exec bash "$(dirname "$0")/torchrun.sh" --nnodes="$nodes" --node-rank="$number" --master-addr="$address" \
    --master-port="$port" tools/train.py "$@"
