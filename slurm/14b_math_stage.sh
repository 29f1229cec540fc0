#!/usr/bin/env bash
# A math stage of the 14B recipe: sbatch slurm/14b_math_stage.sh [STAGE] [key=value ...]
# Without STAGE the first unfinished one. Source slurm/site.env first: what it sets wins over the lines below.
#SBATCH --job-name=14b_math
#SBATCH --output=slurm/%x-%j.log
#SBATCH --open-mode=append
#SBATCH --gpus=128
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=04:00:00
#SBATCH --signal=USR1@600
#SBATCH --requeue
exec bash "$SLURM_SUBMIT_DIR/slurm/stage.sh" 14b math "$@"
