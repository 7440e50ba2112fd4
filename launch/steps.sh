# shellcheck shell=bash
# Steps of a script with headings and times; sourced by launch/demo.sh and tests/run.sh.

# OpenMPI refuses root unless told twice: in a container everyone is root.
if ((EUID == 0)); then
  export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
fi

step_number=0
# step TITLE WHAT_TO_DO_IF_IT_FAILS COMMAND...: ends the script with the command's exit code where that is not 0.
step() {
  local title="$1" advice="$2" start=$SECONDS code=0
  shift 2
  step_number=$((step_number + 1))
  printf '\n== %d. %s\n' "$step_number" "$title"
  "$@" || code=$?
  if ((code != 0)); then
    printf '\n%s: step %d (%s) failed with exit code %d.\n%s\n' "${0##*/}" "$step_number" "$title" "$code" "$advice" >&2
    exit "$code"
  fi
  printf -- '-- %d min %02d s\n' $(((SECONDS - start) / 60)) $(((SECONDS - start) % 60))
}

# build PRESET: configures and builds; a line of progress every twentieth of the work, warnings and errors whole.
build() {
  mkdir -p build
  cmake --preset "$1" >"build/$1.log" 2>&1 || {
    local code=$?
    cat "build/$1.log" >&2
    return "$code"
  }
  NINJA_STATUS='[%f/%t] ' cmake --build --preset "$1" 2>&1 | awk '
    match($0, /^\[[0-9]+\/[0-9]+\] /) {
      split(substr($0, 2, RLENGTH - 3), count, "/")
      part = int(20 * count[1] / count[2])
      if (part != shown) printf "  built %d of %d\n", count[1], count[2]
      shown = part; fflush(); next
    }
    { print; fflush() }'
}
