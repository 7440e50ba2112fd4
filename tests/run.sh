#!/usr/bin/env bash
# Builds with tests and runs them all with ctest; 5 to 20 minutes on 2 cores, with nvcc 15 more. Installs missing packages first.
#
#   tests/run.sh             the optimised build (build/tests); where nvcc is found, with the CUDA tests, on softgpu
#   tests/run.sh --sanitize  the same tests under AddressSanitizer and UBSan (build/sanitize)
#   tests/run.sh --gpu       the CUDA tests on this machine's GPU (build/gpu)
set -euo pipefail

help() { sed -n '2,6s/^# \{0,1\}//p' "$0"; }
preset=tests
ctest_options=(-j2)
case "${1:-}" in
  "") ;;
  --sanitize) preset=sanitize ;;
  --gpu)
    preset=gpu ctest_options=(-j1 -L cuda)
    ;;
  --help | -h) help && exit 0 ;;
  *) echo "run.sh: unknown option $1" >&2 && help >&2 && exit 2 ;;
esac
cd "$(dirname "$(readlink -f "$0")")/.."
source launch/steps.sh

# Tests run side by side on the same cores: waiting threads must not spin.
export OMP_WAIT_POLICY=passive GTEST_COLOR=no
export ASAN_OPTIONS=strict_string_checks=1 UBSAN_OPTIONS=print_stacktrace=1
export LSAN_OPTIONS="suppressions=$PWD/tests/support/lsan.supp:print_suppressions=0"

summary="build/$preset/ctest_summary.txt"
# ctest's closing summary is kept for the end, after the list of what was skipped inside the tests.
run_ctest() {
  : >"$summary"
  ctest --test-dir "build/$preset" --output-on-failure --no-tests=error "${ctest_options[@]}" 2>&1 |
    while IFS= read -r line; do
      if [[ $line == *'% tests passed'* || -s $summary ]]; then
        printf '%s\n' "$line" >>"$summary"
      else
        printf '%s\n' "$line"
      fi
    done
}
# Python's tests and slurm.sh say it in a line. GoogleTest prints the reason before the skipped test; the tests of several
# ranks print it once a rank.
skipped() {
  awk '
    /: Skipped$/ { while ((getline reason) > 0 && reason ~ /: Skipped$/) continue }
    /^\[  SKIPPED \] .* \([0-9]+ ms\)$/ { print "  " $4 ": " reason }
    /^test.* \.\.\. skipped / || /^slurm\.sh: skipped/ { print "  " $0 }' "build/$preset/Testing/Temporary/LastTest.log" | sort -u
}

step "Debian packages" "Put it right and run tests/run.sh again." launch/install_packages.sh
step "build ($preset)" "The compiler's message is above." build "$preset"
printf '\n== 3. tests\n'
code=0
run_ctest || code=$?
skips="$(skipped)"
if [[ $skips ]]; then
  printf '\nSkipped, and so not checked:\n%s\n\n' "$skips"
fi
if ! grep -q '^NOTELLM_CUDA_BUILT:INTERNAL=TRUE' "build/$preset/CMakeCache.txt"; then
  printf '\nLeft out, and so not checked: all of CUDA (%s).\n\n' "$(grep -o 'CUDA backend: .*' "build/$preset.log" | tail -n 1)"
fi
cat "$summary"
exit "$code"
