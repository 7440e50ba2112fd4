#!/usr/bin/env bash
# Slow check: do the two commands of the README work on a bare Debian 12, and again without the network?
#
#   tests/bare_debian.sh FOLDER [--only demo|tests] [--mirror URL]
#
# FOLDER gets a minimal Debian (debootstrap), a clone of this repository's HEAD and, where it lies beside the checkout,
# shared/. There, on 2 cores, launch/demo.sh and tests/run.sh are run, each twice: the second time without the network.
# A FOLDER that holds a Debian from before is used again, and is then no longer bare. Needs root and the packages
# debootstrap and git; about 4 GB; up to an hour. URL is a Debian mirror (default: the one that this machine uses).
set -euo pipefail

help() { sed -n '2,9s/^# \{0,1\}//p' "$0"; }
fail() {
  echo "bare_debian: $*" >&2
  exit 2
}

folder="" only="" mirror=""
while (($#)); do
  case "$1" in
    --help | -h) help && exit 0 ;;
    --only | --mirror)
      (($# > 1)) || fail "$1 needs a value"
      [[ $1 == --only ]] && only="$2" || mirror="$2"
      shift 2
      ;;
    -*) fail "unknown option $1 (see --help)" ;;
    *) folder="$1" && shift ;;
  esac
done
[[ $folder ]] || { help >&2 && exit 2; }
[[ $only =~ ^(|demo|tests)$ ]] || fail "--only takes demo or tests, not '$only'"
((EUID == 0)) || fail "must be root (chroot, mount)"
for tool in debootstrap git unshare taskset; do
  command -v "$tool" >/dev/null || fail "the program $tool is missing"
done

# In namespaces of its own: every mount and process made here ends with this script, however that ends.
if [[ ! ${NOTELLM_BARE_INSIDE:-} ]]; then
  exec env NOTELLM_BARE_INSIDE=1 unshare --mount --pid --fork --kill-child --propagation private \
    bash "$0" "$folder" --only "$only" --mirror "$mirror"
fi
trap 'exit 130' INT TERM
repository="$(git -C "$(dirname "$(readlink -f "$0")")" rev-parse --show-toplevel)"
mkdir -p "$folder"
folder="$(readlink -f "$folder")"
report="bare Debian 12, 2 cores, commit $(git -C "$repository" rev-parse --short HEAD)"$'\n'
verdict=0

# timed TITLE COMMAND...: runs it and notes its time and exit code.
timed() {
  local title="$1" start=$SECONDS code=0
  shift
  printf '\n#### %s\n' "$title"
  "$@" </dev/null || code=$?
  ((code == 0)) || verdict=1
  report+="$(printf '%-44s %3d min %02d s  %s' "$title" $(((SECONDS - start) / 60)) $(((SECONDS - start) % 60)) \
    "$( ((code == 0)) && echo ok || echo "FAILED, exit code $code")")"$'\n'
  return "$code"
}

bootstrap() {
  if [[ ! $mirror ]]; then
    mirror="$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Label: Debian' 'Component: main' |
      grep -m1 -E '^(http|https|file)://')" || fail "cannot tell this machine's Debian mirror: run apt-get update or give --mirror URL"
  fi
  debootstrap --variant=minbase bookworm "$folder" "$mirror" >"$folder.debootstrap.log" 2>&1 || { tail -n 20 "$folder.debootstrap.log" && return 1; }
}

# What a running machine has: processes, devices, shared memory, names of hosts; the sources beside each other.
furnish() {
  mount -t proc proc "$folder/proc"
  mount --rbind /sys "$folder/sys"
  mkdir -p "$folder/dev/shm" "$folder/dev/pts" "$folder/src"
  mount -t devpts -o newinstance,ptmxmode=0666 devpts "$folder/dev/pts"
  ln -sf pts/ptmx "$folder/dev/ptmx"
  mount -t tmpfs -o size=2g tmpfs "$folder/dev/shm"
  cp -L /etc/resolv.conf /etc/hosts "$folder/etc/"
  rm -rf "$folder/src/notellm"
  git clone --quiet --no-hardlinks "$repository" "$folder/src/notellm"
  if [[ -d $repository/../shared ]]; then
    mkdir -p "$folder/src/shared"
    mount --bind -o ro "$repository/../shared" "$folder/src/shared"
  fi
}

cores="$(python3 -c 'import os; print(",".join(map(str, sorted(os.sched_getaffinity(0))[:2])))')"
# inside COMMAND: as a newcomer would type it, as root in the clone.
inside() {
  taskset -c "$cores" chroot "$folder" env -i HOME=/root TERM="${TERM:-dumb}" PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    ${http_proxy:+http_proxy="$http_proxy"} ${https_proxy:+https_proxy="$https_proxy"} \
    bash -c "cd /src/notellm && $1"
}
# The same without any network but the machine's own.
inside_offline() {
  export -f inside
  export folder cores
  # shellcheck disable=SC2016  # expanded by the inner shell
  unshare --net bash -c 'ip link set lo up 2>/dev/null || true; inside "$1"' bash "$1"
}

if [[ -x $folder/usr/bin/apt-get && ! -d $folder/debootstrap ]]; then
  echo "bare_debian: using the Debian in $folder again"
  report+="(packages of an earlier run are there)"$'\n'
else
  timed "debootstrap" bootstrap || fail "debootstrap failed (its output: $folder.debootstrap.log)"
fi
furnish
for command in launch/demo.sh tests/run.sh; do
  [[ $only == demo && $command == tests/* || $only == tests && $command == launch/* ]] && continue
  if timed "$command" inside "$command"; then
    timed "$command again, without the network" inside_offline "$command" || true
  fi
done

printf '\n%s%s\n' "$report" "$( ((verdict == 0)) && echo "verdict: all well" || echo "verdict: FAILED")"
exit "$verdict"
