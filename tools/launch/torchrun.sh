#!/usr/bin/env bash
# torchrun, which ends with status 1 however its processes do; this ends with 75 where SIGTERM stopped a training, as the
# training itself does: a checkpoint is written, and the same command goes on. What pair.sh and elastic.sh start.
set -uo pipefail

export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-600} # seconds for the step, and its checkpoint
torchrun --nproc-per-node="${PROCESSES:-gpu}" "$@" &
torchrun=$!
stopped=0
trap 'stopped=1; kill -TERM "$torchrun"' TERM
while true; do
    wait "$torchrun"
    status=$?
    kill -0 "$torchrun" 2>/dev/null || break # else a signal has interrupted the wait
done
if [ "$stopped" -eq 1 ] && [ "$status" -ne 0 ]; then status=75; fi
exit "$status"
