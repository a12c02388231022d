"""Geant4's data sets that electromagnetic showers need: where they are, and how to get them from Geant4's own site."""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import io
import os
import re
import shutil
import tarfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from minicarlo import __version__
from minicarlo.errors import DownloadError, InvalidConfig, MissingExtra, OutputError
from minicarlo.files import atomic_directory, output_error

URL = "https://cern.ch/geant4-data/datasets"
"""Where Geant4 publishes its data sets."""

_ATTEMPTS = 5  # in a row without a new byte
_BLOCK = 2**18
_TIMEOUT_SECONDS = 30.0
_LARGEST_ARCHIVE = 2**30
_MOST_FILES = 200_000


@dataclass(frozen=True)
class DataSet:
    """A Geant4 data set: the variable that points to it, how its directory is called, what it must contain.

    `version`, `archive` and `md5` are those that geant4_pybind 0.1.3 (Geant4 11.4.1) has for its own download, `sha256` is that
    of the same archive in Spack's package recipes. `largest` bounds the unpacked bytes.
    """

    variable: str
    directories: tuple[str, ...]
    content: str | None
    name: str
    version: str
    archive: str
    md5: str
    sha256: str
    largest: int

    @property
    def directory(self) -> str:
        """What the archive unpacks to."""
        return f"{self.name}{self.version}"


DATA_SETS = (
    DataSet(
        "G4LEDATA",
        ("G4EMLOW*",),
        "brem_SB",
        "G4EMLOW",
        "8.8",
        "G4EMLOW.8.8.tar.gz",
        "328330009df633f7e9b3a9f445745298",
        "b60cfd63176f5d16107e2a25b35b235155032d1735d749670ca50fede12624cf",
        2**31,
    ),
    DataSet(
        "G4ENSDFSTATEDATA",
        ("G4ENSDFSTATE*",),
        "ENSDFSTATE.dat",
        "G4ENSDFSTATE",
        "3.0",
        "G4ENSDFSTATE.3.0.tar.gz",
        "c500728534ce3e9fb2fefa0112eb3a74",
        "4bdc3bd40b31d43485bf4f87f055705e540a6557d64ed85c689c59c9a4eba7d6",
        2**28,
    ),
    DataSet(
        "G4LEVELGAMMADATA",
        ("PhotonEvaporation*", "G4LEVELGAMMA*"),
        None,
        "PhotonEvaporation",
        "6.1.2",
        "G4PhotonEvaporation.6.1.2.tar.gz",
        "d80ba9bdefcf9e23487a26adfa273304",
        "02149c0ab91d88ee24e78532558777e39a068b9fcdd199136101ff58e635e742",
        2**30,
    ),
)
HOW_TO_GET_DATA = (
    "Point the variable to the data set of a Geant4 installation (`source geant4.sh` does), or set GEANT4_DATA_DIR to "
    "the directory that holds all of them, or download the official ones with: minicarlo geant4-data install"
)

Progress = Callable[[int, int], None]


def default_folder(environment: Mapping[str, str]) -> Path:
    """Where data sets are installed if nothing else is said: minicarlo/geant4-data below XDG_DATA_HOME or ~/.local/share."""
    home = Path(environment.get("HOME", "~")).expanduser()
    return Path(environment.get("XDG_DATA_HOME") or home / ".local/share") / "minicarlo" / "geant4-data"


def locate(data: DataSet, environment: Mapping[str, str]) -> Path | None:
    """The directory of a data set, or None: its own variable, then GEANT4_DATA_DIR, then `default_folder`, then ~/.geant4_pybind,
    where geant4_pybind puts its downloads. Of several versions in one folder the newest.
    """
    if data.variable in environment:
        return Path(environment[data.variable])
    for root in _roots(environment):
        if found := [directory for pattern in data.directories for directory in root.glob(pattern)]:
            return max(found, key=_version)
    return None


def is_complete(data: DataSet, directory: Path) -> bool:
    """Whether `directory` holds what Geant4 reads of the data set."""
    return (directory / data.content if data.content else directory).exists()


def find_data_sets(environment: Mapping[str, str]) -> dict[str, str]:
    """Locate the data sets that electromagnetic showers need; return the variables to set before the import.

    The result always holds GEANT4_DATA_DIR: while that is unset, importing geant4_pybind asks on standard input whether to
    download, or downloads without asking where CI=true. Raises MissingExtra with the variable and the remedy.
    """
    found = {}
    for data in DATA_SETS:
        where = locate(data, environment)
        if where is None:
            raise MissingExtra(
                f"Geant4 data set not found: {data.variable} is not set, and there is no {data.directories[0]} in "
                f"{' or '.join(map(str, _roots(environment)))}. {HOW_TO_GET_DATA}"
            )
        if not is_complete(data, where):
            raise MissingExtra(
                f"Geant4 data set not usable: {data.variable}={where}, but {where / (data.content or '')} does not exist. "
                f"{HOW_TO_GET_DATA}"
            )
        found[data.variable] = str(where.resolve())
    directory = environment.get("GEANT4_DATA_DIR") or str(Path(found["G4LEDATA"]).parent)
    return {**found, "GEANT4_DATA_DIR": directory}


def install(data: DataSet, folder: Path, *, url: str = URL, progress: Progress | None = None) -> Path:
    """Download a data set into `folder` and return its directory, which appears whole or not at all.

    The archive is kept beside it until it is complete: a second call goes on where the first was interrupted. It is unpacked only
    if its MD5 and SHA-256 are the published ones, and only files and directories below the expected one are taken from it.
    `progress` is called with (bytes there, bytes in all). Nothing is done where the data set is already.
    Raises DownloadError when the server cannot be reached or gives something else, OutputError, InvalidConfig for no URL.
    """
    if not url.startswith(("https://", "http://")):
        raise InvalidConfig(f"{url!r:.200} is no address to download from: give one that begins with https:// or http://.")
    directory = folder / data.directory
    if is_complete(data, directory):
        return directory
    archive = folder / f".{data.archive}.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(archive) as file:
            _download(f"{url.rstrip('/')}/{data.archive}", file, archive, progress)
            _verify(data, file, archive)
            _unpack(data, file, directory)
            archive.unlink()
    except OSError as error:
        raise output_error(Path(error.filename or archive), error) from error
    return directory


def _roots(environment: Mapping[str, str]) -> list[Path]:
    given = [Path(environment["GEANT4_DATA_DIR"])] if environment.get("GEANT4_DATA_DIR") else []
    return [*given, default_folder(environment), Path(environment.get("HOME", "~")).expanduser() / ".geant4_pybind"]


def _version(directory: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", directory.name)]


@contextmanager
def _locked(archive: Path) -> Iterator[io.FileIO]:
    """The partial archive, for this process alone."""
    with open(os.open(archive, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "r+b", buffering=0) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(f"Cannot write {archive}: another download is writing it now. Wait for it.") from error
        yield file


def _download(url: str, file: io.FileIO, archive: Path, progress: Progress | None) -> None:
    """Append to `file` what it lacks of `url`, asking again after an interruption."""
    failures = 0
    while True:
        before = file.seek(0, os.SEEK_END)
        try:
            if _fetch(url, file, archive, progress):
                return
            reason = "the connection was closed too early"
        except urllib.error.HTTPError as error:
            if error.code < 500:
                raise DownloadError(
                    f"{url} cannot be downloaded: the server answers {error.code} ({error.reason}). Look there for the data set, "
                    "or give another address with --url."
                ) from error
            reason = f"the server answers {error.code} ({error.reason})"
        except (OSError, http.client.HTTPException) as error:
            cause = getattr(error, "reason", error)
            reason = str(getattr(cause, "strerror", None) or cause) or type(cause).__name__
        failures = 0 if file.seek(0, os.SEEK_END) > before else failures + 1
        if failures == _ATTEMPTS:
            raise DownloadError(
                f"{url} cannot be downloaded: {reason}. What is there already is kept: check the network (a proxy is taken from "
                "https_proxy) and repeat the command."
            )
        time.sleep(0.1 * 2**failures)


def _fetch(url: str, file: io.FileIO, archive: Path, progress: Progress | None) -> bool:
    """One request for the rest of `url`; whether all of it is there now."""
    there = file.seek(0, os.SEEK_END)
    headers = {"User-Agent": f"minicarlo/{__version__}", "Accept-Encoding": "identity"}
    if there:
        headers["Range"] = f"bytes={there}-"
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return True  # nothing is missing; the checksum tells whether it is right
        raise
    with response:
        if response.status == http.HTTPStatus.OK:
            there = file.seek(0)  # a server without ranges begins anew
            file.truncate()
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {there}-"):
            raise http.client.HTTPException(f"the server gives another part than the one from byte {there}")
        length = response.headers.get("Content-Length", "")
        total = there + int(length) if length.isdigit() else 0
        free = shutil.disk_usage(archive.parent).free
        if total - there > free:
            raise OutputError(
                f"Cannot write {archive}: {(total - there) / 1e6:,.0f} MB are missing and {free / 1e6:,.0f} MB are free. "
                "Free some space or choose another place."
            )
        while block := response.read(_BLOCK):
            there += len(block)
            if max(there, total) > _LARGEST_ARCHIVE:
                raise DownloadError(f"{url} is larger than {_LARGEST_ARCHIVE} bytes: it is not the data set that is expected.")
            _write(file, block, archive)
            if progress is not None:
                progress(there, total)
    return there >= total


def _write(file: io.FileIO, block: bytes, archive: Path) -> None:
    rest = memoryview(block)
    try:
        while rest:
            rest = rest[file.write(rest) :]
    except OSError as error:
        raise output_error(archive, error) from error


def _verify(data: DataSet, file: io.FileIO, archive: Path) -> None:
    for algorithm, expected in (("md5", data.md5), ("sha256", data.sha256)):
        file.seek(0)
        found = hashlib.file_digest(file, algorithm).hexdigest()
        if found != expected:
            archive.unlink()
            raise DownloadError(
                f"{data.archive} is not the file that Geant4 published: its {algorithm.upper()} is {found}, not {expected}. "
                "It was removed and nothing was unpacked. Repeat the command; if it happens again, something alters it."
            )


def _unpack(data: DataSet, file: io.FileIO, directory: Path) -> None:
    size, count = 0, 0

    def below(member: tarfile.TarInfo, path: str) -> tarfile.TarInfo | None:
        nonlocal size, count
        first, *others = PurePosixPath(member.name).parts or ("",)
        size, count = size + member.size, count + 1
        if first != data.directory or ".." in others or not (member.isfile() or member.isdir()):
            raise DownloadError(
                f"{data.archive} holds {member.name!r:.100}, which is no plain file or directory of {data.directory}."
            )
        if size > data.largest or count > _MOST_FILES:
            raise DownloadError(f"{data.archive} unpacks to more than {data.largest} bytes or {_MOST_FILES} files.")
        return tarfile.data_filter(member.replace(name="/".join(others) or ".", deep=False), path)

    file.seek(0)
    try:
        with atomic_directory(directory) as temporary, tarfile.open(fileobj=file, mode="r:gz") as tar:
            tar.extractall(temporary, filter=below)
            if not is_complete(data, temporary):
                raise DownloadError(f"{data.archive} lacks {data.content}.")
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise DownloadError(f"{data.archive} cannot be unpacked: {error}.") from error
