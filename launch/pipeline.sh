#!/bin/bash
# Submits the chain, each job once the one before it is done: pipeline.sh [OPTIONS OF SBATCH] [-- FIELDS [-- TASKS]]
#
#     bash launch/pipeline.sh --nodes=6
#     bash launch/pipeline.sh --nodes=2 -- --train.micro-batch-size 2
#     MOST_STAGES="stage1 stage2 evaluate" bash launch/pipeline.sh --nodes=6 -- -- swuggy --zerospeech sLM21 --codec C
#
# FIELDS, of tools/train.py, go to every phase; TASKS, with their words of tools/evaluate.py, to the stage `evaluate`;
# options of sbatch to all, but to `convert`, which is one process, only those of place (--partition, --account, ...).
# What a dry run refuses is refused here, and nothing is submitted. Where a job fails, those behind it are cancelled. A
# phase that is done already ends at once. Prints a line for each job: its number and name. --dry-run prints the lines
# of sbatch instead.
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "$0")/common.sh" || exit 2

options=() fields=() first=()
while [ $# -gt 0 ]; do
    word=$1
    shift
    case $word in
        --) break ;;
        --dry-run) dry=1 ;;
        --array | --array=* | -a*) die "--array: a run has one job at a time" ;;
        -N?*) options+=(--nodes="${word#-N}") ;;
        -N) options+=(--nodes="${1:-}") && shift ;;
        # What the chain waits for is for its first job: of two dependencies sbatch takes the last alone.
        --dependency=*) first=("$word") ;;
        --dependency | -d) first=(--dependency="${1:-}") && shift ;;
        -d?*) first=(--dependency="${word#-d}") ;;
        *) options+=("$word") ;;
    esac
done
while [ $# -gt 0 ]; do
    word=$1
    shift
    [ "$word" != -- ] || break
    fields+=("$word")
done
! given --dry-run "${fields[@]}" "$@" || die "--dry-run goes before --"
stages=${MOST_STAGES:-stage1 stage2}
[ -n "${stages// /}" ] || die "MOST_STAGES names no stage; there are convert, stage1, stage2, evaluate"
case " $stages " in
    *' evaluate '*) [ $# -gt 0 ] || die "evaluate: which tasks? pipeline.sh ... -- FIELDS -- TASKS" ;;
    *) [ $# = 0 ] || die "$* would go to the stage evaluate: set MOST_STAGES=\"$stages evaluate\"" ;;
esac
tasks=("$@")
if [[ ${stages// /} != "${stages%% *}" ]]; then # of several stages one begins with what the other leaves
    for word in --checkpoint.folder --checkpoint.start-from --name; do
        ! given "$word" "${fields[@]}" ||
            die "$word: would be for every phase, and what one leaves the next begins with; sbatch that phase by itself"
    done
fi
case " $stages " in
    *' stage1 stage2 '*)
        ! given --config "${fields[@]}" ||
            die "--config: would be both phases' recipe; MOST_STAGE1_RECIPE and MOST_STAGE2_RECIPE name each its own"
        [ -z "${MOST_STAGE1:-}" ] || die "MOST_STAGE1=$MOST_STAGE1: this chain makes its own phase 1; unset it"
        ;;
esac
if [[ " $stages " == *' stage2 evaluate '* && -n ${MOST_MODEL:-} ]] && ! given --model "${tasks[@]}"; then
    say "MOST_MODEL=$MOST_MODEL is passed over: this chain evaluates what it makes, $runs/$stage2"
    tasks+=(--model "$runs/$stage2")
fi
of_stage() { # STAGE: its script, the script's words, and the options of sbatch that are for it
    words=("${fields[@]}") own=("${options[@]}")
    case $1 in
        convert) of_place "${options[@]}" && script=convert.sh words=() own=("${placed[@]}") ;;
        stage1) script=stage1_asr_tts.sh ;;
        stage2) script=stage2_instruct.sh ;;
        evaluate) script=evaluate.sh words=("${tasks[@]}") ;;
        *) die "MOST_STAGES: no stage $1; there are convert, stage1, stage2, evaluate" ;;
    esac
}

behind=' convert stage1 stage2 evaluate '
for stage in $stages; do
    of_stage "$stage"
    [[ $behind == *" $stage "* ]] ||
        die "MOST_STAGES=$stages: $stage cannot stand there; the order is convert, stage1, stage2, evaluate, each once"
    behind=" ${behind#*" $stage "}"
    sizes=()
    for name in --nodes --ntasks-per-node; do
        size=$(value_of "$name" "${own[@]}")
        [ -z "$size" ] || sizes+=("$name=${size%%-*}") # of 2-4 the least
    done
    check "$script" "${sizes[@]}" "${words[@]}"
done
# What a stage begins with is made by one before it, or is there; its job would find that out days later.
if [[ " $stages " == *' stage2 '* && " $stages " != *' stage1 '* && -z ${MOST_STAGE1:-} ]] &&
    ! given --config "${fields[@]}" && ! given --checkpoint.start-from "${fields[@]}"; then
    [ -e "$runs/$stage1/DONE" ] || die "stage2 begins with $runs/$stage1, which is not done: add stage1 to MOST_STAGES"
fi
if [[ " $stages " == *' evaluate '* && " $stages " != *' stage2 '* && -z ${MOST_MODEL:-} ]] &&
    ! given --model "${tasks[@]}"; then
    [ -e "$runs/$stage2/DONE" ] || die "evaluate is of $runs/$stage2, which is not done: add stage2 to MOST_STAGES"
fi
before=''
for stage in $stages; do
    of_stage "$stage"
    wait=("${first[@]}")
    [ -z "$before" ] || wait=(--dependency="afterok:$before" --kill-on-invalid-dep=yes)
    submit "${wait[@]}" "${own[@]}" "$root/launch/$script" "${words[@]}" || die "$stage was not accepted"
    before=$number
    [ $dry = 1 ] || printf '%s %s\n' "$number" "$stage"
done
