#!/usr/bin/env bash
# The whole way on real data: packages, build, data set, prepare, train, evaluate, nearest notes in words. 8 to 15
# minutes on 2 cores, 25 without AVX-512. Run again, it skips what is done already; an interrupted training goes on.
set -euo pipefail

if (($# > 0)); then
  sed -n '2,3s/^# //p' "$0"
  [[ $1 == --help || $1 == -h ]] && exit 0 || exit 2
fi
cd "$(dirname "$(readlink -f "$0")")/.."
source launch/steps.sh
started=$SECONDS

config=configs/demo.yaml
notellm=build/release/notellm
ranks=$(($(nproc) < 2 ? 1 : 2))
again="What is done is kept: put it right and run launch/demo.sh again."

step "Debian packages" "$again" launch/install_packages.sh
step "build" "The compiler's message is above. $again" build release
step "data set from the metadata of Debian's archive" "$again" launch/debian_dataset.py -o data/debian
step "prepare: notes and clicks to shards" "$again" "$notellm" prepare "$config"
# Hardware threads count as slots, so that two fit on one core with two threads; the ranks share the cores freely.
step "train on $ranks ranks: 4 to 16 minutes on 2 cores" "Training goes on from its last checkpoint when launch/demo.sh is run again." \
  mpirun -n "$ranks" --use-hwthread-cpus --bind-to none "$notellm" train "$config" --resume auto
step "evaluate: recall of held-out pairs, against baselines" "$again" "$notellm" evaluate "$config" --popularity-weight 1

step "neighbours: the notes nearest to a few texts" "$again" "$notellm" neighbors "$config" --count 5 --pool clicked \
  --text "libvideo: decode and encode video" --text "python3-webtest: test web applications in Python" \
  --text "font editor"

took=$((SECONDS - started))
printf '\nDone in %d min %02d s. Settings: %s; other commands: %s --help\n' $((took / 60)) $((took % 60)) "$config" "$notellm"
