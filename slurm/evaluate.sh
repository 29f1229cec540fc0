#!/usr/bin/env bash
# A checkpoint on a benchmark, one task per GPU: sbatch slurm/evaluate.sh CHECKPOINT NAME|FILE [options of eval]
# Source slurm/site.env first: what it sets wins over the lines below.
#SBATCH --job-name=evaluate
#SBATCH --output=slurm/%x-%j.log
#SBATCH --open-mode=append
#SBATCH --gpus=8
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=04:00:00
#SBATCH --requeue
set -euo pipefail
# shellcheck source=slurm/job.sh
source "$SLURM_SUBMIT_DIR/slurm/job.sh"
checkpoint=$1 benchmark=$2
shift 2
srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks=$((SLURM_JOB_NUM_NODES * SLURM_GPUS_ON_NODE)) \
  --ntasks-per-node="$SLURM_GPUS_ON_NODE" --kill-on-bad-exit=1 "${task_options[@]}" \
  megatron-rl eval "$checkpoint" --benchmark "$benchmark" "$@"
