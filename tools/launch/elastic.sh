#!/usr/bin/env bash
# Machines that come and go: the same line on each, now or later. The training begins again from its newest checkpoint
# with those that are there whenever one is lost, or comes, as long as the one of the endpoint lives.
#   bash tools/launch/elastic.sh HOST:PORT CONFIG [options of tools/train.py]
#   bash tools/launch/elastic.sh node1:29500 configs/aligntok_dinov2_f16d32.py --cfg-options data_root=/path/to/imagenet
# PROCESSES: on this machine; its GPUs if not given. NODES: fewest:most of them. RESTARTS: after failures.
set -euo pipefail
if [ $# -lt 2 ]; then
    echo "elastic.sh takes HOST:PORT CONFIG, and then options of tools/train.py; given were $#: $*" >&2
    exit 2
fi
endpoint=$1
shift
# torch 2.14 keeps one store through restarts, and forgets to tell the others when a machine that joins keeps the next.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
exec bash "$(dirname "$0")/torchrun.sh" --nnodes="${NODES:-1:4}" --max-restarts="${RESTARTS:-3}" --rdzv-backend=c10d \
    --rdzv-endpoint="$endpoint" --rdzv-id=aligntok tools/train.py "$@"
