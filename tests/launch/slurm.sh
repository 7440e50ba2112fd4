#!/usr/bin/env bash
# launch/train.sbatch on a Slurm of its own: a controller and two nodes on this machine, all in a temporary folder.
#
#   tests/launch/slurm.sh [--install] [NOTELLM]     --install: Slurm and munge first, where they are missing (root or sudo)
#
# 1. A job on both nodes is sent USR1, saves, is queued again, goes on, and ends with the bytes of the undisturbed run.
# 2. The same as an array, whose second job goes on and whose third is cancelled.
# 3. Slurm itself sends USR1 before the time limit; then scancel ends the job, which stays ended.
# 4. A job with a mistake fails with the program's exit code and is not queued again; so does one that USR1 finds before its
#    first step.
# About two minutes. Exit code 77: Slurm or munge is missing, and nothing was checked.
set -euo pipefail

help() { sed -n '2,11s/^# \{0,1\}//p' "$0"; }
repository="$(dirname "$(dirname "$(dirname "$(readlink -f "$0")")")")"
install="" notellm="$repository/build/release/notellm"
for argument; do
  case "$argument" in
    --help | -h) help && exit 0 ;;
    --install) install=yes ;;
    -*) echo "slurm.sh: unknown option $argument" >&2 && help >&2 && exit 2 ;;
    *) notellm="$(readlink -f "$argument")" ;;
  esac
done
[[ -x $notellm ]] || { echo "slurm.sh: there is no program $notellm: build it, or name it" >&2 && exit 2; }
[[ $install ]] && "$repository/launch/install_packages.sh" "$repository/tests/launch/slurm_packages.txt"
PATH="$PATH:/usr/sbin:/sbin"
for program in munged slurmctld slurmd sbatch scontrol scancel squeue; do
  command -v "$program" >/dev/null && continue
  echo "slurm.sh: skipped: there is no $program here (tests/launch/slurm.sh --install)"
  exit 77
done

folder="$(mktemp -d)"
chmod 755 "$folder" # munge wants its socket where everyone can reach it
cd "$folder"
# Every process that was started with this Slurm, its jobs' too.
processes() {
  local process
  for process in /proc/[0-9]*; do
    if grep -qsxz "SLURM_CONF=$folder/slurm.conf" "$process/environ"; then echo "${process#/proc/}"; fi
  done
}
cleanup() {
  local try left
  for ((try = 0; try < 50; ++try)); do
    mapfile -t left < <(processes)
    ((${#left[@]})) || break
    # A tenth of a second for daemons to end by themselves, then none.
    kill "$( ((try == 0)) && echo -TERM || echo -KILL)" "${left[@]}" 2>/dev/null || true
    sleep 0.1
  done
  wait 2>/dev/null
  cd / && rm -rf "$folder"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

fail() {
  echo "slurm.sh: FAILED: $*"
  local log
  for log in *.log; do
    echo "==== the end of $log" && tail -n 40 "$log"
  done
  squeue --all --states=all 2>&1 || true
  exit 1
}
# wait_for SECONDS WHAT COMMAND...: until the command succeeds.
wait_for() {
  local end=$((SECONDS + $1)) what="$2"
  shift 2
  until "$@"; do
    ((SECONDS < end)) || fail "waited in vain for $what"
    sleep 0.2
  done
}

# ---- a cluster
free_port() {
  local port
  while port=$((20000 + RANDOM % 10000)); do
    (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
  done
  echo "$port"
}
start_slurm() {
  sed -e "s|@FOLDER@|$folder|; s|@USER@|$(id -un)|; s|@PORT@|$(free_port)|; s|@PORT1@|$(free_port)|; s|@PORT2@|$(free_port)|" \
    "$repository/tests/launch/two_nodes.conf" >slurm.conf
  mkdir -p munge state spool/n1 spool/n2
  (umask 077 && head -c 128 /dev/urandom >munge/key)
  export SLURM_CONF="$folder/slurm.conf"
  munged --foreground --key-file="$folder/munge/key" --socket="$folder/munge/socket" --pid-file="$folder/munge/pid" \
    --log-file="$folder/munge/log" --seed-file="$folder/munge/seed" >munged.log 2>&1 &
  wait_for 10 "munge's socket" test -S munge/socket
  slurmctld -D >controller.out.log 2>&1 &
  local node
  for node in n1 n2; do slurmd -D -N "$node" >"$node.out.log" 2>&1 & done
  wait_for 30 "two idle nodes" two_nodes_idle
}
two_nodes_idle() { [[ $(sinfo --noheader --format='%D %t' 2>/dev/null) == "2 idle" ]]; }

# ---- jobs
# submit RUN [OPTIONS OF SBATCH...] -- [MORE --set...]: the job's number in job.
submit() {
  local run="$1" options=()
  shift
  while [[ $1 != -- ]]; do options+=("$1") && shift; done
  shift
  job="$(sbatch --parsable "${options[@]}" "$repository/launch/train.sbatch" config.yaml --set "train.run=$run" "${set[@]}" "$@")" ||
    fail "sbatch refused"
}
field() { scontrol --oneliner show job "$job" | grep -o "\b$1=[^ ]*" | cut -d= -f2; }
is() { [[ $(field "$1") == "$2" ]]; }
has_lines() { (($(wc -l 2>/dev/null <"$1/metrics.jsonl" || echo 0) >= $2)); }
says() { grep -qsF -- "$1" "notellm-$job.log"; }
check() {
  local what="$1"
  shift
  "$@" || fail "$what"
}
# Weights and moments of the last step, and every step once.
same_as_whole() {
  local file last
  last="$(printf 'checkpoints/step-%08d' "$steps")"
  for file in model-00001-of-00001.safetensors note_head.safetensors optimizer-00001-of-00001.safetensors; do
    cmp "whole/$last/$file" "$1/$last/$file" || fail "run $1 is not the undisturbed one"
  done
  grep -o '"step":[0-9]*' "$1/metrics.jsonl" | cut -d: -f2 | cmp - <(seq "$steps") || fail "run $1 misses or repeats steps"
}

source "$repository/tests/support/tiny_run.sh"
steps=250
write_tiny_run "$steps"
set=(model.dim=96 model.ffn=256 train.pairs_per_step=32 train.checkpoint_every=25)
export NOTELLM="$notellm" NOTELLM_HOME="$repository" OMP_NUM_THREADS=1
"$notellm" prepare config.yaml >prepare.log 2>&1 || fail "prepare"
timeout 120 "$repository/launch/mpirun.sh" -n 2 train config.yaml --set train.run=whole "${set[@]}" >whole.log 2>&1 || fail "the undisturbed run"
start_slurm

echo "Slurm $(slurmctld -V | cut -d" " -f2), two nodes, ${SECONDS} s"

echo "1. USR1, saved, queued again, on to the end"
submit requeued --
wait_for 240 "three steps" has_lines requeued 3
check "the job does not run on both nodes" is NodeList 'n[1-2]'
scancel --signal=USR1 --batch "$job"
wait_for 240 "the job's return to the queue" is Restarts 1
check "the job did not say that it saved" says "saved; queueing again"
stopped="$(wc -l <requeued/metrics.jsonl)"
((stopped < steps)) || fail "the run was over before USR1: make it longer"
wait_for 240 "the end of the job" is JobState COMPLETED
check "exit code $(field ExitCode)" is ExitCode 0:0
check "Restarts $(field Restarts)" is Restarts 1
same_as_whole requeued
echo "   job $job stopped after step $stopped of $steps, was queued again, and ended with the bytes of the undisturbed run"

echo "2. an array"
submit array --array=1-3%1 --no-requeue --
array="$job"
wait_for 240 "three steps" has_lines array 3
job="$(job="${array}_1" field JobId)"
# To a job of an array scancel of Slurm 22.05 sends it again and again for a minute, and then fails.
timeout 2 scancel --signal=USR1 --batch "$job" || true
wait_for 240 "the end of the array's first job" is JobState FAILED
check "exit code $(field ExitCode)" is ExitCode 85:0
check "the first job did not say that it saved" says "saved; the next job of the array goes on"
job="${array}_2"
wait_for 240 "the array's second job" is JobState RUNNING
job="$(field JobId)"
wait_for 240 "the end of the array's second job" is JobState COMPLETED
same_as_whole array
job="${array}_3"
wait_for 10 "the third job" is JobState CANCELLED
echo "   the second job ended with the bytes of the undisturbed run, the third was cancelled"

echo "3. the time limit, then scancel"
submit limit --time=1 --signal=B:USR1@10 -- train.steps=1000000
wait_for 240 "USR1 by Slurm before the limit of a minute" is Restarts 1
check "the job did not say that it saved" says "saved; queueing again"
stopped="$(wc -l <limit/metrics.jsonl)"
check "no checkpoint" test -e limit/checkpoints/latest
wait_for 240 "the job to go on" has_lines limit $((stopped + 1))
scancel "$job"
wait_for 30 "the end of the cancelled job" two_nodes_idle
# Long enough for a job that was queued again to start.
sleep 8
check "state $(field JobState) after scancel" is JobState CANCELLED
check "Restarts $(field Restarts)" is Restarts 1
echo "   saved after step $stopped, went on, and stayed cancelled"

echo "4. a mistake"
submit mistake -- model.dmi=64
wait_for 240 "the end of the job" is JobState FAILED
check "exit code $(field ExitCode)" is ExitCode 2:0
check "Restarts $(field Restarts)" is Restarts 0
check "no message of the mistake" says "unknown key 'model.dmi'"
echo "   exit code 2, not queued again"
printf '#!/bin/sh\ntouch reached\nexec sleep 60\n' >never_a_step && chmod +x never_a_step
NOTELLM="$folder/never_a_step" submit early --
wait_for 240 "the ranks" test -e reached
scancel --signal=USR1 --batch "$job"
wait_for 240 "the end of the job" is JobState FAILED
check "exit code $(field ExitCode)" is ExitCode 138:0
check "Restarts $(field Restarts)" is Restarts 0
check "no word of the early USR1" says "USR1 came before the first step"
echo "   nor after USR1 before the first step"
