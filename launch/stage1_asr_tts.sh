#!/bin/bash
#SBATCH --job-name=stage1-asr-tts
#SBATCH --nodes=6
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
# Phase 1: speech and text are tied to each other. sbatch [--nodes=N] launch/stage1_asr_tts.sh [--dry-run] [FIELDS]
# FIELDS are those of tools/train.py. More nodes are more data parallelism at the same global batch.
script=$0 # in a job a copy in the spool: Slurm knows the real one, and what follows it
[ -e "$(dirname "$script")/common.sh" ] || script=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *Command=//p')
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "${script%%.sh *}")/common.sh" || exit 2
take_dry_run "$@"
facts_of_job 6 8
start=none
if ! given --config "${words[@]}" && ! given --checkpoint.start-from "${words[@]}"; then
    need MOST_BACKBONE "the checkpoint to begin with, made by launch/convert.sh; or none: random weights"
    start=$MOST_BACKBONE
fi
phase "$stage1" "asr tts text-lm" "$start"
