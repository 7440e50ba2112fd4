#!/usr/bin/env bash
# Installs the Debian packages of launch/packages.txt, or of another LIST, that are missing, with apt-get, as root or
# through sudo. Nothing missing: ends at once and says nothing; that needs neither root nor the network.
#
#   launch/install_packages.sh [LIST]
set -euo pipefail

if [[ ${1:-} == --help || ${1:-} == -h ]]; then
  sed -n '2,5s/^# \{0,1\}//p' "$0"
  exit 0
fi
list="${1:-$(dirname "$(readlink -f "$0")")/packages.txt}"
mapfile -t wanted <<<"$(sed 's/#.*//; s/[[:space:]]//g; /^$/d' "$list")"

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
  echo "install_packages: this is not a Debian system (no dpkg-query, apt-get). Install what these packages hold:" \
    "${wanted[*]}" >&2
  exit 1
fi
# dpkg-query fails where it does not know a package: that one is missing.
known="$(dpkg-query -W -f '${db:Status-Abbrev}|${Package}\n' "${wanted[@]}" 2>/dev/null || true)"
missing=()
for package in "${wanted[@]}"; do
  grep -qx ".i *|$package" <<<"$known" || missing+=("$package")
done
((${#missing[@]})) || exit 0

as_root=()
if ((EUID != 0)); then
  if ! command -v sudo >/dev/null; then
    echo "install_packages: neither root nor sudo here. Ask for these packages, or install them as root:" \
      "apt-get install --no-install-recommends ${missing[*]}" >&2
    exit 1
  fi
  as_root=(sudo)
fi

# A locale that every Debian has, so that perl does not complain; no questions; a while for another apt to end.
apt_get() {
  "${as_root[@]}" env LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300 \
    -o Dpkg::Use-Pty=0 "$@" </dev/null
}
# What apt-get says goes to the log; a line of progress is shown for every fifty steps.
log="$(mktemp "${TMPDIR:-/tmp}/notellm_packages.XXXXXX.log")"
progress() {
  awk -v log_file="$log" '
    { print > log_file; fflush(log_file) }
    / newly installed, / { total = $3 }
    /^Get:/ { got++ } /^Unpacking / { unpacked++ } /^Setting up / { ready++ }
    /^(Get:|Unpacking |Setting up )/ && (got + unpacked + ready) % 50 == 0 {
      printf "  %d packages: %d fetched, %d unpacked, %d ready\n", total, got, unpacked, ready; fflush() }'
}
update() {
  echo "install_packages: fetching apt's package lists (apt-get update)"
  apt_get update 2>&1 | progress
}
install() { apt_get install -y --no-install-recommends "${missing[@]}" 2>&1 | progress; }

echo "install_packages: installing ${#missing[@]} packages and what they need: ${missing[*]}"
updated=
if ! apt-cache show --no-all-versions "${missing[@]}" >/dev/null 2>&1; then
  update && updated=yes
fi
# Lists that are there may be too old: then a package is no longer found at its address.
if ! install && { [[ $updated ]] || ! update || ! install; }; then
  grep -E '^(E|W|Err):?' "$log" >&2 || tail -n 20 "$log" >&2
  echo "install_packages: apt-get could not install the packages (its output: $log). Is the network there, and a package" \
    "source of Debian 12 main in /etc/apt? Then run this again." >&2
  exit 1
fi
rm -f "$log"
echo "install_packages: done"
