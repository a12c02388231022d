"""What a million showers cost, from what was measured: `python benchmarks/scale.py BULK.json CLUSTER.json [--shard-size 100000]`.

Takes what `benchmarks/bulk.py speed --json` and `benchmarks/cluster.py --json` wrote, and the cost of a shower in Geant4 from the
sample that the package ships; prints the tables of docs/cluster.md. Rows marked "measured" are those numbers; the others are the
rate of one core times a number of cores.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from minicarlo.events import events_info
from minicarlo.surrogate import sample_path

CORES = (1_000, 10_000, 100_000)
SHOWERS = 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bulk", type=Path)
    parser.add_argument("cluster", type=Path)
    parser.add_argument("--shard-size", type=int, default=100_000)
    arguments = parser.parse_args()
    bulk, cluster = (json.loads(path.read_text(encoding="utf-8")) for path in (arguments.bulk, arguments.cluster))
    cores = bulk["streams"] * bulk["threads"]
    rate = bulk["showers_per_second"]["to_disk"] / cores
    geant4 = events_info(sample_path())["attributes"]["seconds_per_event"]
    per_shard = min(cluster["seconds_per_shard"].values())
    print(f"Measured on {cores} cores of {bulk['machine']['processor']}, {bulk['precision']}:\n")
    print("| a million showers | core hours | GB |\n|---|---|---|")
    print(f"| Geant4 (measured, the shipped sample) | {geant4 * 1e6 / 3600:,.1f} | |")
    print(f"| surrogate to disk (measured) | {1e6 / rate / 3600:.3f} | {bulk['bytes_per_shower'] * 1e6 / 1e9:.2f} |\n")
    print(f"One run took {1 / per_shard:.0f} shards/s (measured: shards of 64 events, {cluster['machine']['cores']} cores).\n")
    print(f"| cores | showers/s | {SHOWERS:.0e} showers take | shards/s of {arguments.shard_size:,} | disk, GB/s |")
    print("|---|---|---|---|---|")
    for number in CORES:
        whole = number * rate
        shards, disk = whole / arguments.shard_size, whole * bulk["bytes_per_shower"] / 1e9
        print(f"| {number:,} (extrapolated) | {whole:,.0f} | {SHOWERS / whole / 60:.1f} min | {shards:.2g} | {disk:.2g} |")


if __name__ == "__main__":
    main()
