#!/bin/bash
#SBATCH --job-name=most-convert
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
# A Hugging Face folder to a checkpoint to begin with, or back: sbatch launch/convert.sh [--dry-run] [WORDS]
# Without words: import of MOST_HF_MODEL into MOST_BACKBONE. Words are those of tools/convert_ckpt.py. Killed, the same
# command goes on where it was. On partitions that want GPUs: sbatch --gpus=1 ...
script=$0 # in a job a copy in the spool: Slurm knows the real one, and what follows it
[ -e "$(dirname "$script")/common.sh" ] || script=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *Command=//p')
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "${script%%.sh *}")/common.sh" || exit 2
take_dry_run "$@"
if [ ${#words[@]} = 0 ]; then
    need MOST_HF_MODEL "the folder of the Hugging Face model to begin with"
    need MOST_BACKBONE "the folder of the checkpoint to be made of it"
    words=(import --source "$MOST_HF_MODEL" --out "$MOST_BACKBONE")
fi
run_one "$root/tools/convert_ckpt.py" "${words[@]}"
