"""Geant4's data sets that electromagnetic showers need: where they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from minicarlo.errors import MissingExtra


@dataclass(frozen=True)
class DataSet:
    """A Geant4 data set: the variable that points to it, how its directory is called, what it must contain."""

    variable: str
    directories: tuple[str, ...]
    content: str | None


DATA_SETS = (
    DataSet("G4LEDATA", ("G4EMLOW*",), "brem_SB"),
    DataSet("G4ENSDFSTATEDATA", ("G4ENSDFSTATE*",), "ENSDFSTATE.dat"),
    DataSet("G4LEVELGAMMADATA", ("PhotonEvaporation*", "G4LEVELGAMMA*"), None),
)
HOW_TO_GET_DATA = (
    "Point the variable to the data set of a Geant4 installation (`source geant4.sh` does), or set GEANT4_DATA_DIR to "
    "the directory that holds all of them, or download the official ones (about 2 GB, into ~/.geant4_pybind) with: "
    'python -c "import geant4_pybind"'
)


def find_data_sets(environment: Mapping[str, str]) -> dict[str, str]:
    """Locate the data sets that electromagnetic showers need; return the variables to set before the import.

    Looks at each data set's own variable, then into GEANT4_DATA_DIR, then into ~/.geant4_pybind, where
    geant4_pybind puts its downloads. The result always holds GEANT4_DATA_DIR: while that is unset, importing
    geant4_pybind asks on standard input whether to download, or downloads without asking where CI=true.
    Raises MissingExtra with the variable and the remedy.
    """
    roots = [Path(environment["GEANT4_DATA_DIR"])] if environment.get("GEANT4_DATA_DIR") else []
    roots.append(Path(environment.get("HOME", "~")).expanduser() / ".geant4_pybind")
    found = {}
    for data in DATA_SETS:
        where = environment.get(data.variable)
        if where is None:
            newest = sorted(d for root in roots for pattern in data.directories for d in root.glob(pattern))
            if not newest:
                raise MissingExtra(
                    f"Geant4 data set not found: {data.variable} is not set, and there is no {data.directories[0]} in "
                    f"{' or '.join(map(str, roots))}. {HOW_TO_GET_DATA}"
                )
            where = str(newest[-1])
        content = Path(where, data.content) if data.content else Path(where)
        if not content.exists():
            raise MissingExtra(
                f"Geant4 data set not usable: {data.variable}={where}, but {content} does not exist. {HOW_TO_GET_DATA}"
            )
        found[data.variable] = str(Path(where).resolve())
    directory = environment.get("GEANT4_DATA_DIR") or str(Path(found["G4LEDATA"]).parent)
    return {**found, "GEANT4_DATA_DIR": directory}
