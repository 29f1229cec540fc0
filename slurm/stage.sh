#!/usr/bin/env bash
# One stage inside a job, one task per GPU: stage.sh 7b|14b math|code [STAGE] [key=value ...]
# RECIPE names another pipeline than the model's own: FP8, an ablation.
set -euo pipefail
# shellcheck source=slurm/job.sh
source "$SLURM_SUBMIT_DIR/slurm/job.sh"
trap 'conclude $?' EXIT

recipe=${RECIPE:-recipes/$1/pipeline.yaml}
choice=(--domain "$2")
shift 2
if [[ $# -gt 0 && $1 != *=* ]]; then
  choice=(--stage "$1")
  shift
fi
read -ra site <<<"$OVERRIDES"
gpus_per_node=$SLURM_GPUS_ON_NODE
size=("cluster.num_nodes=$SLURM_JOB_NUM_NODES" "cluster.gpus_per_node=$gpus_per_node")

# Checked once, before a task per GPU starts.
words=$(srun --nodes=1 --ntasks=1 --gpus="$gpus_per_node" "${task_options[@]}" \
  megatron-rl command "$recipe" "${choice[@]}" "${size[@]}" "${site[@]}" "$@")
command=()
eval "command=($words)"
echo "+ ${command[*]}"

# Slurm's warning goes to every process of a task: blocked, it ends none, and waits for the trainer to take it.
srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks=$((SLURM_JOB_NUM_NODES * gpus_per_node)) \
  --ntasks-per-node="$gpus_per_node" --kill-on-bad-exit=1 "${task_options[@]}" \
  env --block-signal=USR1 bash slurm/task.sh "$first" "${command[@]}"
