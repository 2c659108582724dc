#!/bin/bash
#SBATCH --job-name=most-evaluate
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
# Tasks of tools/evaluate.py, a process a GPU: sbatch launch/evaluate.sh [--dry-run] TASK... [WORDS]
# Without --model: MOST_MODEL, or else phase 2's run, which must be done. Without --out: evaluate/ in MOST_RUNS.
# Finished items are kept, so a job that was killed, or whose time is over, goes on where it was: as long as each turn
# adds some.
script=$0 # in a job a copy in the spool: Slurm knows the real one, and what follows it
[ -e "$(dirname "$script")/common.sh" ] || script=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *Command=//p')
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "${script%%.sh *}")/common.sh" || exit 2
take_dry_run "$@"
facts_of_job 1 8
[ ${#words[@]} -gt 0 ] || die "which tasks? sbatch launch/evaluate.sh TASK... WORDS, those of tools/evaluate.py"
if ! given --model "${words[@]}"; then
    model=${MOST_MODEL:-$runs/$stage2}
    [ -n "${MOST_MODEL:-}" ] || [ $dry = 1 ] || [ -e "$model/DONE" ] ||
        die "$model is not done: finish phase 2, or name the model as MOST_MODEL or --model"
    words+=(--model "$model")
fi
model=$(value_of --model "${words[@]}")
# A run of ours holds no tokenizer; a Hugging Face folder has its own.
if [ ! -e "$model/config.json" ] && [ -d "${MOST_DATA:-}/tokenizer" ] && ! given --tokenizer "${words[@]}"; then
    words+=(--tokenizer "$MOST_DATA/tokenizer")
fi
given --out "${words[@]}" || words+=(--out "$runs/evaluate")
given --device "${words[@]}" || words+=(--device gpu)
out=$(value_of --out "${words[@]}")
command=("${step_python[@]}" "$root/tools/evaluate.py" "${words[@]}")
if [ $dry = 1 ]; then
    check_words evaluate "${words[@]}"
    srun_line ranks
    quoted "${line[@]}" bash "$root/launch/rank.sh" CODES "${command[@]}"
    exit
fi
[ -n "${SLURM_JOB_ID:-}" ] || die "this is a batch script: sbatch $0 ... ; --dry-run shows what it would run"

kept() { # what of finished items lies there: grows by each
    find "$out" \( -name 'records*.jsonl' -o -name result.json \) -printf '%p %s\n' 2>/dev/null | sort
}
turn=$out/slurm/$job_id.$restart
mkdir -p "$turn/codes" || die "$turn cannot be made: --out must be a folder that every node can write"
before=$(kept)
# shellcheck disable=SC2034  # for on_usr1: finished items are on disk, so there is nothing to wait for
ask_with=TERM
trap on_usr1 USR1
trap on_term TERM
export MASTER_PORT=$port
say "$ranks ranks on $nodelist (restart $restart); log: $turn/log"
run_ranks "$turn" "${command[@]}"
code=$?
for name in "$turn"/codes/*.2; do
    [ -e "$name" ] || continue
    tail -n 20 "$turn/log" >&2
    exit 2
done
if [ $code = 0 ] && [ -e "$turn/codes/0.0" ]; then
    say "all tasks are done; results are in $out"
    exit 0
fi
((cancelled == 0)) || exit 75
if [ "$(kept)" = "$before" ]; then
    tail -n 20 "$turn/log" >&2
    die "ranks have ended (srun's code $code) and no item was finished in this turn, so no other begins"
fi
say "ranks have ended (srun's code $code) before all was done; what is finished is kept, going on"
requeue
