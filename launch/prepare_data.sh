#!/bin/bash
#SBATCH --job-name=most-data
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
# A step of tools/prepare_data.py over many shards, and the joining of them:
#
#     launch/prepare_data.sh submit SHARDS [OPTIONS OF SBATCH] -- units --manifest M --codec C --out U
#     launch/prepare_data.sh submit SHARDS [OPTIONS OF SBATCH] -- build --task asr --manifest M --units U --out D ...
#
# submits an array of SHARDS tasks; for `build` also, behind it, a job that merges the shards of D into D-whole. Options
# go to the array; to the merge those of place alone (--partition, --account, ...).
# Prints a line for each job: its number and name; with --dry-run among the options, the lines of sbatch instead. Shards
# that are done end at once: the same line repeats what failed.
# sbatch launch/prepare_data.sh WORDS runs one step as one job.
script=$0 # in a job a copy in the spool: Slurm knows the real one, and what follows it
[ -e "$(dirname "$script")/common.sh" ] || script=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *Command=//p')
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "${script%%.sh *}")/common.sh" || exit 2

if [ "${1:-}" = submit ]; then
    shards=${2:-}
    usage="usage: prepare_data.sh submit SHARDS [OPTIONS OF SBATCH] -- units|build ..."
    [[ $shards =~ ^[1-9][0-9]*$ ]] || die "submit: how many shards, not '$shards'; $usage"
    shift 2
    options=()
    while [ $# -gt 0 ] && [ "$1" != -- ]; do
        if [ "$1" = --dry-run ]; then dry=1; else options+=("$1"); fi
        shift
    done
    [ $# -gt 1 ] || die "submit: no step after --; $usage"
    shift
    case $1 in
        units | build) ;;
        *) die "submit: only units and build have shards, not $1; sbatch launch/prepare_data.sh $1 ... is one job" ;;
    esac
    out=$(value_of --out "$@")
    out=${out%/}
    ! given --shard "$@" || die "submit: --shard is each task's own; leave it out"
    ! given --array "${options[@]}" || die "submit: the array is made here, of SHARDS tasks; leave --array out"
    [ -n "$out" ] || die "submit: no --out among the words of $1; $usage"
    check_words prepare_data "$@"
    submit --array="0-$((shards - 1))" --output=%x-%A_%a.log "${options[@]}" "$root/launch/prepare_data.sh" "$@" ||
        die "the array was not accepted"
    [ $dry = 1 ] || printf '%s %s\n' "$number" "$1"
    [ "$1" = build ] || exit 0
    of_place "${options[@]}"
    submit --dependency="afterok:$number" --kill-on-invalid-dep=yes "${placed[@]}" "$root/launch/prepare_data.sh" \
        merge --dataset "$out" --out "$out-whole" || die "the merge was not accepted"
    [ $dry = 1 ] || printf '%s merge\n' "$number"
    exit 0
fi
take_dry_run "$@"
[ ${#words[@]} -gt 0 ] || die "which step? sbatch launch/prepare_data.sh WORDS, those of tools/prepare_data.py"
run_one "$root/tools/prepare_data.py" "${words[@]}"
