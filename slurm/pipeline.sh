#!/usr/bin/env bash
# All unfinished stages as a chain of jobs, each waiting for the one before: slurm/pipeline.sh 7b|14b [key=value ...]
# RECIPE names another pipeline of the same stages, for example FP8.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=slurm/site.env
source "${SITE:-slurm/site.env}"

model=${1:-}
if [[ $model != 7b && $model != 14b ]]; then
  echo "usage: slurm/pipeline.sh 7b|14b [key=value ...]" >&2
  exit 2
fi
shift
export RECIPE=${RECIPE:-recipes/$model/pipeline.yaml}
root=runs name=$(sed -n 's/^name: *//p' "$RECIPE")
for setting in $OVERRIDES "$@"; do
  case $setting in
    output_dir=*) root=${setting#*=} ;;
    name=*) name=${setting#*=} ;;
  esac
done
after=()
for stage in math_8k math_16k math_24k code_24k code_32k math_32k; do
  [[ ! -f $root/$name/$stage/summary.json ]] || continue # Finished.
  job=$(sbatch --parsable "${after[@]}" "slurm/${model}_${stage%_*}_stage.sh" "$stage" "$@")
  job=${job%;*} # A cluster's name may follow.
  echo "$stage $job"
  after=(--dependency="afterok:$job" --kill-on-invalid-dep=yes)
done
