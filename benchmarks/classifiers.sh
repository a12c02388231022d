#!/usr/bin/env bash
# Every classifier on a surrogate's showers against Monte Carlo, with floors. Needs PyTorch. Run on a quiet machine:
#
#     benchmarks/classifiers.sh TEST.h5 [SURROGATE] [FOLDER]
#
# TEST.h5 is an event set of Geant4 showers that neither training nor tuning saw, as for benchmarks/results.sh.
set -euo pipefail
test=${1:?"give an event set of Geant4 showers"}
surrogate=${2:-clic-ecal}
folder=${3:-runs/classifiers}
mkdir -p "$folder"

minicarlo generate "$surrogate" --conditions "$test" --seed 1 -o "$folder/generated.h5"
minicarlo validate "$test" "$folder/generated.h5" --fast --classifier high --classifier trees --classifier dnn-high \
    --classifier low --classifier cnn -o "$folder/classifiers.json" | tee "$folder/classifiers.txt"
