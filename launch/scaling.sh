#!/bin/bash
#SBATCH --job-name=most-scaling
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=4
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
# Phase 1 on 1, 2, 4, ... nodes for 50 steps each, and a page that sets its efficiency beside what tools/plan.py says:
#
#     bash launch/scaling.sh submit 1 2 4 8 [--dry-run] [OPTIONS OF SBATCH] [-- FIELDS]
#
# Runs go to MOST_RUNS/scaling/nodes-N, the page to MOST_RUNS/scaling/report.md once all are done. The last checkpoint
# of each is removed then. Prints a line for each job: its number and name. To measure again, remove the folder.
script=$0 # in a job a copy in the spool: Slurm knows the real one, and what follows it
[ -e "$(dirname "$script")/common.sh" ] || script=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *Command=//p')
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "${script%%.sh *}")/common.sh" || exit 2
at=$runs/scaling

if [ "${1:-}" = report ]; then
    shift
    folders=("$@")
    for number in "${!folders[@]}"; do folders[number]=$at/nodes-${folders[number]}; done
    "${python[@]}" "$root/tools/plan.py" --measured "${folders[@]}" --machine "${MOST_MACHINE:-a100-80}" \
        --report "$at/report.md" || exit
    for folder in "${folders[@]}"; do rm -rf -- "$folder/checkpoints"; done # the weights of 50 steps: of no use
    exit 0
fi

usage="usage: scaling.sh submit NODES NODES... [OPTIONS OF SBATCH] [-- FIELDS]"
[ "${1:-}" = submit ] || die "$usage"
shift
counts=() options=()
while [[ ${1:-} =~ ^[1-9][0-9]*$ ]]; do
    counts+=("$1")
    shift
done
[ ${#counts[@]} -gt 1 ] || die "submit: two numbers of nodes at least, to be compared; $usage"
while [ $# -gt 0 ]; do
    word=$1
    shift
    case $word in
        --) break ;;
        --dry-run) dry=1 ;;
        --nodes | --nodes=* | -N* | --array | --array=* | -a*) die "$word: is chosen here; leave it out" ;;
        *) options+=("$word") ;;
    esac
done
tasks=$(value_of --ntasks-per-node "${options[@]}")
for word in --checkpoint.folder --checkpoint.every; do
    ! given "$word" "$@" || die "$word: is chosen here; leave it out"
done
for count in "${counts[@]}"; do
    check stage1_asr_tts.sh --nodes="$count" --ntasks-per-node="${tasks:-8}" "$@"
done
! given --dry-run "$@" || die "--dry-run goes before --"
if [ "${MOST_CONTAINER:-none}" != pyxis ] && [ -n "${MOST_MACHINE:-}" ]; then
    "${python[@]}" "$root/tools/plan.py" --machine "$MOST_MACHINE" --help > /dev/null ||
        die "MOST_MACHINE=$MOST_MACHINE: tools/plan.py knows no such machine, see above; nothing was submitted"
fi
of_place "${options[@]}"
after=''
for count in "${counts[@]}"; do
    submit --nodes="$count" "${options[@]}" "$root/launch/stage1_asr_tts.sh" --train.steps 50 \
        --train.validate-every 0 "$@" --checkpoint.every 0 --checkpoint.folder "$at/nodes-$count" ||
        die "$count nodes were not accepted"
    after+=:$number
    [ $dry = 1 ] || printf '%s nodes-%s\n' "$number" "$count"
done
placed=(--dependency="afterok$after" --kill-on-invalid-dep=yes "${placed[@]}")
submit "${placed[@]}" "$root/launch/scaling.sh" report "${counts[@]}" ||
    die "the report was not accepted"
[ $dry = 1 ] || printf '%s report\n' "$number"
