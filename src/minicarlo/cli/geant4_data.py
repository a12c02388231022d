"""`minicarlo geant4-data`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from minicarlo.cli._common import Progress, json_option, print_json, progress_bar, say, table
from minicarlo.errors import InvalidConfig
from minicarlo.simulators.data_sets import DATA_SETS, URL, DataSet, default_folder, install, is_complete, locate


@click.group()
def command() -> None:
    """Geant4's data sets: see what is there, fetch what is missing.

    \b
    Example:
      minicarlo geant4-data install --list
      minicarlo geant4-data install
    """


@command.command("install")
@click.option("--to", "folder", type=click.Path(path_type=Path), help="Folder for the data sets. Default: where simulate looks.")
@click.option("--list", "only_list", is_flag=True, help="Only show what is there and what is missing.")
@click.option("--url", default=URL, show_default=True, help="A mirror; the checksums stay those of Geant4.")
@json_option
def install_command(folder: Path | None, only_list: bool, url: str, as_json: bool) -> None:
    """Download the data sets that electromagnetic showers need, from Geant4's own site.

    Those that `minicarlo simulate` finds already are left alone; with --to, all that the folder lacks are downloaded. An
    interrupted download is taken up by the same command. Every archive is checked (MD5 and SHA-256) before it is unpacked.

    \b
    Example:
      minicarlo geant4-data install --list
      minicarlo geant4-data install
      minicarlo geant4-data install --to /data/geant4 && export GEANT4_DATA_DIR=/data/geant4
    """
    if not only_list:
        for data in [data for data in DATA_SETS if _where(data, folder) is None]:
            if folder is None and data.variable in os.environ:
                raise InvalidConfig(
                    f"{data.variable}={os.environ[data.variable]} does not hold {data.name}, and is looked at first: unset it."
                )
            with progress_bar(data.directory, unit="kB") as progress:
                where = install(data, folder or default_folder(os.environ), url=url, progress=_in_kilobytes(progress))
            say(f"Installed {where}.")
    rows = [_row(data, folder) for data in DATA_SETS]
    if as_json:
        print_json({"folder": folder or default_folder(os.environ), "data_sets": rows})
        return
    lines = [(row["name"], row["version"], row["variable"], row["path"] or "missing") for row in rows]
    click.echo(table([tuple(map(str, line)) for line in lines], ("data set", "version", "variable", "where")))
    if folder is not None and not only_list:
        say(f"Simulate with them: export GEANT4_DATA_DIR={folder.resolve()}")


def _in_kilobytes(progress: Progress) -> Progress:
    return lambda done, total: progress(done // 1000, total // 1000)


def _where(data: DataSet, folder: Path | None) -> Path | None:
    where = locate(data, os.environ) if folder is None else folder / data.directory
    return where if where is not None and is_complete(data, where) else None


def _row(data: DataSet, folder: Path | None) -> dict[str, Any]:
    """A data set as it is found: what is asked for is `version`, what is there may be another."""
    where = _where(data, folder)
    return {
        "name": data.name,
        "version": data.version,
        "variable": data.variable,
        "path": where,
        "archive": data.archive,
        "md5": data.md5,
        "sha256": data.sha256,
    }
