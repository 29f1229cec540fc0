#!/usr/bin/env bash
# Sourced inside a job: the site's settings, how srun starts a task, and what becomes of the job in the end.
cd "$SLURM_SUBMIT_DIR" || exit
# shellcheck source=slurm/site.env
source "${SITE:-slurm/site.env}"

# The checkout wins over the copy that an environment holds.
export PYTHONPATH=$PWD
# A task's threads, verifier workers and engine share the node's processors; a mask of one each would starve them.
task_options=(--cpu-bind=none)
if [[ -n $CONTAINER_IMAGE ]]; then
  mounts=$PWD:$PWD${CONTAINER_MOUNTS:+,$CONTAINER_MOUNTS}
  task_options+=(--container-image="$CONTAINER_IMAGE" --container-mounts="$mounts" --container-workdir="$PWD")
else
  # shellcheck source=/dev/null
  source "$ENVIRONMENT/bin/activate"
fi

# When a task fails srun ends the others, and its own status is the highest of all. What counts is who failed first:
# slurm/task.sh leaves that status here.
first=$PWD/slurm/$SLURM_JOB_NAME-$SLURM_JOB_ID.status
rm -f "$first"
# One line for each start in a row that failed.
failures=${first%.status}.failures
# Slurm ends the job, by scancel or to start it again itself: nothing to decide.
trap 'trap - EXIT; exit 143' TERM

# conclude STATUS, in an EXIT trap: back into the queue after a run that saved and stopped, or died.
conclude() {
  local status=$1
  [[ ! -s $first ]] || status=$(<"$first")
  rm -f "$first"
  case $status in
    0) rm -f "$failures" && echo "done after $SECONDS s" && exit 0 ;;
    75 | 76) ;; # saved, before the time limit; hung
    2 | 3) echo "status $status: not again, see above" && exit "$status" ;; # bad input; a guard
    *) ((SECONDS >= REQUEUE_AFTER_SECONDS)) || { echo "status $status after $SECONDS s: not again" && exit "$status"; } ;;
  esac
  if ((status == 75)); then
    rm -f "$failures"
  else
    echo "status $status after $SECONDS s" >>"$failures"
    (($(wc -l <"$failures") < ${REQUEUE_FAILURES:-10})) || { cat "$failures" && rm "$failures" && echo "not again" && exit "$status"; }
  fi
  echo "status $status after $SECONDS s: back into the queue"
  scontrol requeue "$SLURM_JOB_ID"
}
