#!/bin/bash
#SBATCH --job-name=stage2-instruct
#SBATCH --nodes=6
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
# Phase 2: instructions, spoken and written. sbatch [--nodes=N] launch/stage2_instruct.sh [--dry-run] [FIELDS]
# It begins with phase 1's weights: of MOST_STAGE1, or else of runs/stage1-asr-tts, which must be done.
script=$0 # in a job a copy in the spool: Slurm knows the real one, and what follows it
[ -e "$(dirname "$script")/common.sh" ] || script=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *Command=//p')
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "${script%%.sh *}")/common.sh" || exit 2
take_dry_run "$@"
facts_of_job 6 8
start=${MOST_STAGE1:-}
if [ -z "$start" ] && ! given --config "${words[@]}" && ! given --checkpoint.start-from "${words[@]}"; then
    start=$runs/$stage1
    [ $dry = 1 ] || [ -e "$start/DONE" ] ||
        die "$start is not done: finish phase 1, or name what to begin with as MOST_STAGE1"
fi
phase "$stage2" "speech-instruct text-instruct asr tts" "${start:-none}"
