#!/bin/bash
#SBATCH --job-name=most-prebuild
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus=1
#SBATCH --cpus-per-task=8
#SBATCH --output=%x-%j.log
# What torch, Triton and DeepSpeed compile when a recipe first runs, compiled once, into the folders of common.sh, so
# that no rank needs a compiler, nor do all of them race for it: make prebuild, or sbatch launch/prebuild.sh [FIELDS]
# On a machine with the GPUs of the runs: what is compiled is for them alone. FIELDS are those of tools/train.py.
script=$0 # in a job a copy in the spool: Slurm knows the real one, and what follows it
[ -e "$(dirname "$script")/common.sh" ] || script=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *Command=//p')
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "${script%%.sh *}")/common.sh" || exit 2
take_dry_run "$@"
words=("${words[@]/#--runtime.device/--device}") # as some write it
given --config "${words[@]}" || words=(--config "$stage1" "${words[@]}")
given --device "${words[@]}" || words+=(--device gpu)
command=("${python[@]}" "$root/tools/job.py" prebuild -- "${words[@]}")
if [ $dry = 1 ]; then
    if [ "${MOST_CONTAINER:-none}" != pyxis ] || [ -n "${SLURM_JOB_ID:-}" ]; then
        job folder -- "${words[@]}" > /dev/null || exit 2 # what the recipe would refuse
    fi
    quoted "${command[@]}"
    exit
fi
exec "${command[@]}"
