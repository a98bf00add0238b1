#!/usr/bin/env bash
# torchrun, which ends with status 1 however its processes do; this ends with 75 where SIGTERM stopped a training, as the
# training itself does: a checkpoint is written, and the same command goes on. What pair.sh and elastic.sh start.
set -uo pipefail

export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-600} # seconds for the step, and its checkpoint
stopped=0 torchrun=
trap 'stopped=1; [ -z "$torchrun" ] || kill -TERM "$torchrun"' TERM
torchrun --nproc-per-node="${PROCESSES:-gpu}" "$@" &
torchrun=$!
[ "$stopped" -eq 0 ] || kill -TERM "$torchrun" # it came in between
while true; do
    wait "$torchrun"
    status=$?
    kill -0 "$torchrun" 2>/dev/null || break # else a signal has interrupted the wait
done
if [ "$stopped" -eq 1 ] && [ "$status" -ne 0 ]; then status=75; fi
exit "$status"
