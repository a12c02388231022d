#!/usr/bin/env bash
# The numbers of README.md and docs/results.md. Run on a quiet machine:
#
#     benchmarks/results.sh TEST.h5 [FOLDER]
#
# TEST.h5 is an event set of Geant4 showers that neither training nor tuning saw; those of docs/results.md are 10,000 electrons,
# as made by `minicarlo simulate -n 10000 --energy 1GeV:100GeV:log -o test.h5`.
set -euo pipefail
test=${1:?"give an event set of Geant4 showers"}
folder=${2:-runs/results}
mkdir -p "$folder"

minicarlo bench clic-ecal --seconds 60 --sweep --json > "$folder/bench.json"
for precision in fp32 tuned; do
    minicarlo generate clic-ecal --conditions "$test" --precision $precision --seed 1 --overwrite -o "$folder/$precision.h5"
    minicarlo validate "$test" "$folder/$precision.h5" -o "$folder/$precision.json" | tee "$folder/$precision.txt"
done
minicarlo report "$test" "FP32=$folder/fp32.h5" "tuned=$folder/tuned.h5" --surrogate clic-ecal --bench "$folder/bench.json" \
    --figures "$folder/figures" -o "$folder/report.html"
