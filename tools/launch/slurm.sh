#!/usr/bin/env bash
# A SLURM job that puts itself back into the queue when its time is up, and goes on there.
#   sbatch tools/launch/slurm.sh configs/aligntok_dinov2_f16d32.py --cfg-options data_root=/path/to/imagenet
#SBATCH --job-name=aligntok
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000)) WORLD_SIZE=$SLURM_NTASKS

# One task a GPU and no torchrun between, so that the exit status of the processes reaches this script.
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=0 bash -c 'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID exec python tools/train.py "$@"' train "$@"
status=$?

if [ "$status" -eq 75 ]; then # stopped by SIGTERM, with a checkpoint written: not an error
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
