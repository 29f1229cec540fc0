#!/usr/bin/env bash
# A code stage of the 7B recipe: sbatch slurm/7b_code_stage.sh [STAGE] [key=value ...]
# Without STAGE the first unfinished one. Source slurm/site.env first: what it sets wins over the lines below.
#SBATCH --job-name=7b_code
#SBATCH --output=slurm/%x-%j.log
#SBATCH --open-mode=append
#SBATCH --gpus=128
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=04:00:00
#SBATCH --signal=USR1@600
#SBATCH --requeue
exec bash "$SLURM_SUBMIT_DIR/slurm/stage.sh" 7b code "$@"
