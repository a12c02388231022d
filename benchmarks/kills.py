"""kill -9 at random moments, again and again: nothing half-written shows, and files end up as those of a run left in peace.

`python benchmarks/kills.py --kills 50` kills runs into a folder, one file and a cluster in turn, restarts them, and begins
anew when one came to its end. Prints JSON; exit code 1 when a file differed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from minicarlo.files import sha256


@dataclass
class Mode:
    """A way to run: where it writes, what it adds to the command, what it gave in peace, and its count."""

    name: str
    output: str
    options: tuple[str, ...] = ()
    wanted: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    kills: int = 0
    finished: int = 0


MODES = {
    "folder": Mode("folder", "run", ("--streams", "2", "--batch", "16")),
    "file": Mode("file", "run.h5", ("--streams", "1", "--batch", "8")),
    "cluster": Mode("cluster", "run", ("--cluster", "local:2")),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="in all")
    parser.add_argument("--surrogate", default="clic-ecal")
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--shard-size", type=int, default=2_048)
    parser.add_argument("--modes", default="folder,file,cluster")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    modes = [MODES[name] for name in arguments.modes.split(",")]
    random = np.random.default_rng(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        for mode in modes:
            learn(mode, arguments, Path(folder, mode.name, "peace"))
        differences = [stress(modes[n % len(modes)], arguments, Path(folder), random) for n in range(arguments.kills)]
        differences += [check(mode, finish(mode, arguments, Path(folder, mode.name)), whole=True) for mode in modes]
    counts = {mode.name: {"kills": mode.kills, "runs_that_ended_first": mode.finished} for mode in modes}
    print(json.dumps({"kills": arguments.kills, "modes": counts, "differences": sum(differences, [])}, indent=2))
    sys.exit(1 if any(differences) else 0)


def learn(mode: Mode, arguments: argparse.Namespace, folder: Path) -> None:
    """One run in peace, for the checksums and the time it takes."""
    folder.mkdir(parents=True)
    started = time.monotonic()
    finish(mode, arguments, folder)
    mode.seconds = time.monotonic() - started
    mode.wanted = found(mode, folder)


def stress(mode: Mode, arguments: argparse.Namespace, folder: Path, random: np.random.Generator) -> list[str]:
    """Start or restart a run, kill it and all its processes at a random moment, and return what is wrong."""
    place = folder / mode.name
    process = start(mode, arguments, place)
    time.sleep(random.uniform(0, mode.seconds))
    ended = process.poll() is not None
    if not ended:
        os.killpg(process.pid, signal.SIGKILL)
        mode.kills += 1
    process.wait()
    wrong = check(mode, place, whole=ended)
    if ended:
        mode.finished += 1
        output = place / mode.output
        shutil.rmtree(output) if output.is_dir() else output.unlink()
    return wrong


def check(mode: Mode, place: Path, *, whole: bool) -> list[str]:
    """Files that differ from those in peace; all of them must be there when the run is `whole`."""
    have = found(mode, place)
    wrong = [name for name, digest in have.items() if mode.wanted.get(name) != digest]
    return [f"{mode.name}: {name}" for name in wrong + [name for name in mode.wanted if whole and name not in have]]


def found(mode: Mode, place: Path) -> dict[str, str]:
    """Checksums of what shows: a file that is not complete is hidden."""
    output = place / mode.output
    files = [output] if output.is_file() else sorted(output.glob("shard-*.h5"))
    return {path.name: sha256(path) for path in files}


def start(mode: Mode, arguments: argparse.Namespace, place: Path) -> subprocess.Popen[bytes]:
    numbers = ["-n", str(arguments.events), "--seed", "7", "--shard-size", str(arguments.shard_size)]
    command = ["generate", arguments.surrogate, "-o", str(place / mode.output), "--json", *numbers, *mode.options]
    return subprocess.Popen([sys.executable, "-m", "minicarlo.cli", *command], start_new_session=True, stdout=subprocess.DEVNULL)


def finish(mode: Mode, arguments: argparse.Namespace, place: Path) -> Path:
    if code := start(mode, arguments, place).wait():
        raise SystemExit(f"A run ({mode.name}) ended with exit code {code}.")
    return place


if __name__ == "__main__":
    main()
