#!/bin/bash
#SBATCH --job-name=most-data
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.log
# A step of tools/prepare_data.py over many shards, and the joining of them:
#
#     launch/prepare_data.sh submit SHARDS [OPTIONS OF SBATCH] -- units --manifest M --codec C --out U
#     launch/prepare_data.sh submit SHARDS [OPTIONS OF SBATCH] -- build --task asr --manifest M --units U --out D ...
#
# submits an array of SHARDS tasks; for `build` also, behind it, a job that merges the shards of D into D-whole.
# Prints a line for each job: its number and name. Shards that are done end at once: the same line repeats what failed.
# sbatch launch/prepare_data.sh WORDS runs one step as one job.
script=$0 # in a job a copy in the spool: Slurm knows the real one
if [ ! -e "$(dirname "$script")/common.sh" ]; then
    script=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *Command=//p')
    script=${script%%.sh *}
    script=${script%.sh}.sh # its arguments follow
fi
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "$script")/common.sh" || exit 2

if [ "${1:-}" = submit ]; then
    shards=${2:-}
    usage="usage: prepare_data.sh submit SHARDS [OPTIONS OF SBATCH] -- units|build ..."
    [[ $shards =~ ^[1-9][0-9]*$ ]] || die "submit: how many shards, not '$shards'; $usage"
    shift 2
    options=()
    while [ $# -gt 0 ] && [ "$1" != -- ]; do
        options+=("$1")
        shift
    done
    [ $# -gt 1 ] || die "submit: no step after --; $usage"
    shift
    case $1 in
        units | build) ;;
        *) die "submit: only units and build have shards, not $1; sbatch launch/prepare_data.sh $1 ... is one job" ;;
    esac
    array=$(sbatch --parsable --array="0-$((shards - 1))" "${options[@]}" "$root/launch/prepare_data.sh" "$@") || exit 2
    printf '%s %s\n' "${array%%;*}" "$1"
    [ "$1" = build ] || exit 0
    out=''
    while [ $# -gt 0 ]; do
        case $1 in --out) out=${2:-} ;; --out=*) out=${1#--out=} ;; esac
        shift
    done
    merge=$(sbatch --parsable --dependency="afterok:${array%%;*}" --kill-on-invalid-dep=yes "${options[@]}" \
        "$root/launch/prepare_data.sh" merge --dataset "$out" --out "$out-whole") || exit 2
    printf '%s merge\n' "${merge%%;*}"
    exit 0
fi
take_dry_run "$@"
[ ${#words[@]} -gt 0 ] || die "which step? sbatch launch/prepare_data.sh WORDS, those of tools/prepare_data.py"
run_one "$root/tools/prepare_data.py" "${words[@]}"
