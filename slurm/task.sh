#!/usr/bin/env bash
# One task: task.sh FILE COMMAND... Of the tasks that share FILE the first to fail leaves its status there.
set -uo pipefail
first=$1
shift
# Whoever was told to end is not the first to fail. The command is told too, and may save.
trap 'first=/dev/null' TERM
"$@"
status=$?
if ((status != 0)); then
  (set -o noclobber && echo "$status" >"$first") 2>/dev/null
fi
exit "$status"
