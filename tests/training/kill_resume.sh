#!/usr/bin/env bash
# A run that saves after every step and is killed with -9 again and again, at random moments, and gone on with by
# --resume auto, ends with the same bytes as the run that nobody disturbed. After every kill what stands under a
# checkpoint's name is whole. And a run that is sent TERM ends with exit code 85 and its state saved.
#
#   kill_resume.sh NOTELLM MPIRUN [--kills N] [--seed SEED]
#
# Two ranks, with parallel.sharding: parameters. N (6): how many kills, of one of the ranks at random or of mpirun. SEED:
# of the moments (printed; another one each time when left out).
set -euo pipefail

source "$(dirname "$(readlink -f "$0")")/../support/tiny_run.sh"
notellm=$(readlink -f "$1") mpirun=$2 kills=6 seed=$RANDOM
shift 2
while (($#)); do
  case $1 in
    --kills) kills=$2 ;;
    --seed) seed=$2 ;;
    *) echo "kill_resume: unknown option $1" && exit 2 ;;
  esac
  shift 2
done
RANDOM=$seed
echo "seed $seed"
export OMP_NUM_THREADS=1 OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
folder=$(mktemp -d)
cleanup() {
  kill -9 "${rank_pids[@]}" "${run_pid:-}" 2>/dev/null || true
  rm -rf "$folder"
}
rank_pids=()
trap cleanup EXIT
cd "$folder"

endless=1000000
write_tiny_run "$endless"
"$notellm" prepare config.yaml >prepare.log 2>&1 || { cat prepare.log; exit 1; }

# Whether any of the processes is there and not a zombie.
running() {
  local pid state
  for pid; do
    state=$(sed 's/.*) \(.\).*/\1/' "/proc/$pid/stat" 2>/dev/null) && [[ $state != Z ]] && return 0
  done
  return 1
}
# start RUN STEPS: mpirun in the background; its pid in run_pid, the ranks' in rank_pids. final_share: the learning rate
# does not depend on the number of steps.
start() {
  "$mpirun" --oversubscribe --bind-to none -n 2 "$notellm" train config.yaml --resume auto --set "train.run=$1" \
    "train.steps=$2" train.checkpoint_every=1 parallel.sharding=parameters optimizer.final_share=1 >>"$1.log" 2>&1 &
  run_pid=$!
  rank_pids=()
  while ((${#rank_pids[@]} < 2)) && running "$run_pid"; do
    read -ra rank_pids <"/proc/$run_pid/task/$run_pid/children" || true
  done
}
finish() {
  wait "$run_pid" || { code=$? && tail -n 30 "$1.log" && echo "kill_resume: run $1 ended with code $code" && exit 1; }
}
lines() { wc -l 2>/dev/null <"$1/metrics.jsonl" || echo 0; }
wait_for_lines() {
  while running "$run_pid" && (($(lines "$1") < $2)); do sleep 0.01; done
}
# A killed mpirun leaves its ranks to themselves for a moment: nobody may write to the run when it starts again.
wait_until_gone() {
  for ((try = 0; try < 500; ++try)); do
    running "$run_pid" "${rank_pids[@]}" || break
    sleep 0.01
  done
  kill -9 "$run_pid" "${rank_pids[@]}" 2>/dev/null || true
  while running "$run_pid" "${rank_pids[@]}"; do sleep 0.01; done
  wait "$run_pid" 2>/dev/null || true
}
fail() {
  tail -n 30 killed.log
  echo "kill_resume: $1 (seed $seed)"
  exit 1
}

interrupted=0 in_a_save=0
for ((kill = 0; kill < kills; ++kill)); do
  before=$(lines killed)
  start killed "$endless"
  wait_for_lines killed $((before + 1 + RANDOM % 4))
  sleep "0.0$((RANDOM % 10))$((RANDOM % 10))"
  victims=("${rank_pids[@]}" "$run_pid")
  victim=${victims[RANDOM % 3]}
  if running "$run_pid"; then
    kill -9 "$victim" 2>/dev/null || true
    ((++interrupted))
  fi
  wait_until_gone
  [[ ! -d killed/checkpoints ]] || "$notellm" inspect killed >inspect.log 2>&1 ||
    { cat inspect.log && fail "a checkpoint is not whole after kill $((kill + 1))"; }
  ! compgen -G "killed/checkpoints/*.partial" >/dev/null || ((++in_a_save))
done
steps=$(($(lines killed) + 3))
echo "killed $interrupted times, $in_a_save of them within a save, in $steps steps"
((interrupted == kills)) || fail "only $interrupted of $kills runs lived until they were killed"
((in_a_save > 0)) || fail "no kill came within a save"
start killed "$steps"
finish killed
start whole "$steps"
finish whole

last=$(printf 'step-%08d' "$steps")
for file in model-00001-of-00001.safetensors note_head.safetensors optimizer-00001-of-00001.safetensors; do
  cmp "whole/checkpoints/$last/$file" "killed/checkpoints/$last/$file" || fail "other bytes"
done
seq "$steps" >expected_steps
grep -o '"step":[0-9]*' killed/metrics.jsonl | cut -d: -f2 | cmp - expected_steps ||
  fail "metrics.jsonl misses or repeats steps"

start ended "$endless"
wait_for_lines ended 3
kill -TERM "${rank_pids[1]}"
code=0
wait "$run_pid" || code=$?
((code == 85)) || { tail -n 30 ended.log && echo "kill_resume: after TERM the exit code was $code, not 85" && exit 1; }
[[ -e ended/checkpoints/latest ]] || { echo "kill_resume: TERM left no checkpoint" && exit 1; }
echo "the same bytes; TERM ended the run with code 85"
