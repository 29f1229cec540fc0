#!/usr/bin/env bash
# A run's newest checkpoint as a Hugging Face folder, on one node and no GPU: slurm/convert.sh RUN FOLDER
# Run it as it stands: it submits itself, without the GPUs that the site file asks for.
#SBATCH --job-name=convert
#SBATCH --output=slurm/%x-%j.log
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=01:00:00
set -euo pipefail
if [[ -z ${SLURM_JOB_ID:-} ]]; then
  cd "$(dirname "$0")/.."
  # shellcheck source=slurm/site.env
  source "${SITE:-slurm/site.env}"
  unset SBATCH_GPUS SBATCH_GPUS_PER_NODE
  exec sbatch slurm/convert.sh "$@"
fi
# shellcheck source=slurm/job.sh
source "$SLURM_SUBMIT_DIR/slurm/job.sh"
srun --ntasks=1 "${task_options[@]}" megatron-rl convert megatron-to-hf "$@"
