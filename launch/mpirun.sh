#!/usr/bin/env bash
# Runs notellm under Open MPI's mpirun, on this host, on several, or on the nodes of a Slurm job.
#
#   launch/mpirun.sh [-n RANKS] [--hosts HOSTS] COMMAND [ARGUMENT...]
#   launch/mpirun.sh --hosts gpu1,gpu2 train run.yaml --resume auto
#
#   -n RANKS       ranks in all, evenly over the hosts (default: with device: cuda one a GPU of this host, on every host;
#                  otherwise one a NUMA node, bound to it; in a Slurm job its tasks)
#   --hosts HOSTS  names with commas between them, or a file with a name a line: reached by ssh without a password, with
#                  this folder and this notellm at the same place, and alike (default: this host; in a Slurm job its nodes)
#
# The program is build/release/notellm of this repository; NOTELLM=PATH names another. All ranks get the variables NCCL_*,
# UCX_*, OMP_*, LD_LIBRARY_PATH and CUDA_VISIBLE_DEVICES where they are set. The exit code is notellm's; 1: cannot start.
# TERM or USR1 to this process saves and ends a training with exit code 85; a second TERM ends it at once, as INT does.
set -euo pipefail

help() { sed -n '2,16s/^# \{0,1\}//p' "$0"; }
fail() {
  echo "mpirun.sh: $1" >&2
  exit "${2:-1}"
}
repository="$(dirname "$(dirname "$(readlink -f "$0")")")"
notellm="$(readlink -m "${NOTELLM:-$repository/build/release/notellm}")"

ranks="" hosts=()
read_hosts() {
  if [[ -f $1 ]]; then
    mapfile -t hosts < <(sed 's/#.*//; s/[[:space:]]*$//; /^$/d' "$1")
  else
    IFS=, read -ra hosts <<<"$1"
  fi
  ((${#hosts[@]})) || fail "--hosts $1: no host in it" 2
  local host
  for host in "${hosts[@]}"; do
    [[ $host =~ ^[A-Za-z0-9][A-Za-z0-9._-]*$ ]] || fail "--hosts $1: '$host' is no host name (neither slots nor users belong there)" 2
  done
}
while (($#)); do
  case "$1" in
    --help | -h) help && exit 0 ;;
    -n | --hosts)
      (($# > 1)) || fail "$1 needs a value" 2
      if [[ $1 == -n ]]; then ranks="$2"; else read_hosts "$2"; fi
      shift 2
      ;;
    -*) fail "unknown option $1 (see --help; options of notellm stand after its command)" 2 ;;
    *) break ;;
  esac
done
(($#)) || { help >&2 && exit 2; }
[[ $ranks =~ ^([1-9][0-9]*)?$ ]] || fail "-n takes a number of ranks, not '$ranks'" 2
command -v mpirun >/dev/null || fail "there is no mpirun here: install openmpi-bin (launch/install_packages.sh)"
[[ -x $notellm ]] || fail "there is no program $notellm: build it (launch/demo.sh does), or set NOTELLM to its path"

in_slurm=""
if [[ ${SLURM_JOB_ID:-} ]] && ((${#hosts[@]} == 0)); then in_slurm=yes; fi

# Whether the arguments of notellm ask for GPUs: the last --set wins over the file.
asks_for_cuda() {
  local argument device=""
  for argument; do
    if [[ $argument == *.y*ml && -f $argument ]] && grep -qE "^device: *[\"']?cuda" "$argument"; then device=cuda; fi
  done
  for argument; do
    if [[ $argument =~ ^(--set=)?device=(.*)$ ]]; then device="${BASH_REMATCH[2]}"; fi
  done
  [[ $device == cuda ]]
}
gpus() {
  if [[ ${CUDA_VISIBLE_DEVICES:-} ]]; then
    tr , '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -c .
  else
    nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU' || true
  fi
}

# 1 where the cores are limited (taskset, a container): Open MPI would bind to others as well.
numa_nodes() {
  if [[ $(env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc) == $(nproc --all) ]]; then
    lscpu -p=NODE | grep -v '^#' | sort -u | grep -c .
  else
    echo 1
  fi
}

is_this_host() {
  [[ $1 == localhost || $1 == "$(hostname)" ]] && return
  local address
  address="$(timeout 10 getent ahosts "$1" | awk 'NR == 1 { print $1 }')"
  [[ $address && " $(hostname -I) 127.0.0.1 127.0.1.1 " == *" $address "* ]]
}
# Says what keeps a rank from starting on a host. mpirun itself may wait without end, or not name the host.
check_host() {
  is_this_host "$1" && return
  local said code=0 there
  there="cd $(printf %q "$PWD") || exit 3; test -x $(printf %q "$notellm") || exit 4; command -v orted >/dev/null || exit 5"
  said="$(timeout 30 ssh -o BatchMode=yes -o ConnectTimeout=10 "$1" "$there" </dev/null 2>&1)" || code=$?
  case "$code" in
    0) return 0 ;;
    3) said="it does not have the folder $PWD" ;;
    4) said="it does not have the program $notellm" ;;
    5) said="it has no Open MPI (no orted in the PATH of 'ssh $1'): install openmpi-bin there" ;;
    124) said="no answer in 30 s" ;;
    *) said="ssh without a password does not reach it (exit code $code): ${said:-it said nothing}" ;;
  esac
  echo "mpirun.sh: host $1: $said" >&2
  return 1
}
check_hosts() {
  local host pid pids=() bad=0
  for host in "${hosts[@]}"; do
    check_host "$host" &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do wait "$pid" || bad=1; done
  ((!bad)) || exit 1
}

# Ranks that may run anywhere share the cores of their host themselves (runtime/threads.h). Only one rank a NUMA node is
# bound, so that its memory is near.
options=(--bind-to none)
if [[ $in_slurm ]]; then
  [[ $ranks ]] && options+=(-n "$ranks")
  if [[ ${SLURM_CPUS_PER_TASK:-} && ! ${OMP_NUM_THREADS:-} ]]; then export OMP_NUM_THREADS="$SLURM_CPUS_PER_TASK"; fi
else
  if ((${#hosts[@]})); then check_hosts; else hosts=(localhost); fi
  if [[ $ranks ]]; then
    ((ranks >= ${#hosts[@]})) || fail "$ranks ranks on ${#hosts[@]} hosts: every host needs one" 2
    per_host=$(((ranks + ${#hosts[@]} - 1) / ${#hosts[@]}))
  elif asks_for_cuda "$@"; then
    per_host="$(gpus)"
    ((per_host)) || fail "device: cuda, and nvidia-smi shows no GPU here: say how many ranks (-n)"
  else
    per_host="$(numa_nodes)"
    if ((per_host > 1)); then options=(--map-by ppr:1:numa --bind-to numa); fi
  fi
  printf -v list ",%s:$per_host" "${hosts[@]}"
  # The names as they were given: Open MPI would cut them at the first dot.
  options+=(-n "${ranks:-$((per_host * ${#hosts[@]}))}" --host "${list:1}" --mca orte_keep_fqdn_hostnames 1)
fi

# ssh hands over no environment; in a Slurm job each node has its own CUDA_VISIBLE_DEVICES.
for name in $(compgen -e); do
  case "$name" in
    NCCL_* | UCX_* | OMP_* | LD_LIBRARY_PATH) options+=(-x "$name") ;;
    CUDA_VISIBLE_DEVICES) [[ $in_slurm ]] || options+=(-x "$name") ;;
  esac
done
# Open MPI refuses root unless told twice: in a container everyone is root.
if ((EUID == 0)); then export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1; fi

# mpirun passes USR1 on to the ranks. On TERM it would kill them a second later, before they have saved: the first TERM
# becomes USR1.
mpirun "${options[@]}" "$notellm" "$@" &
launcher=$!
signals=0 term=USR1
pass_on() {
  signals=$((signals + 1))
  kill "-$1" "$launcher" 2>/dev/null || true
}
trap 'pass_on USR1' USR1
trap 'pass_on INT' INT
trap 'pass_on "$term"; term=TERM' TERM
# A wait that a signal ended says nothing of the process: wait again.
while seen=$signals code=0; do
  wait "$launcher" || code=$?
  ((signals == seen)) && exit "$code"
done
