"""Geant4's data sets, from a server on this machine: checked, resumed, whole or not at all."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import textwrap
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import minicarlo
from limits import files_at_most
from minicarlo.cli import main
from minicarlo.errors import DownloadError, InvalidConfig, OutputError
from minicarlo.simulators.data_sets import DATA_SETS, DataSet, default_folder, find_data_sets, install, locate

CONTENT = {"brem_SB/table": np.random.default_rng(1).bytes(3_000_000), "README": b"small"}


class Server(ThreadingHTTPServer):
    """Serves `files`; `ranges` lists the Range header of every request."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.ranges: list[str | None] = []
        self.bytes_per_second = 0
        self.cut_after = 0
        self.knows_ranges = True
        self.status = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_: object) -> None:
        pass  # clients are killed here


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, asked = self.server, self.headers["Range"]
        server.ranges.append(asked)
        whole = server.files.get(self.path.lstrip("/"))
        if whole is None or server.status:
            self.send_error(server.status or 404)
            return
        begin = int(asked.removeprefix("bytes=").rstrip("-")) if asked and server.knows_ranges else 0
        if begin >= len(whole):
            self.send_error(416)
            return
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(whole) - 1}/{len(whole)}")
        self.send_header("Content-Length", str(len(whole) - begin))
        self.end_headers()
        step = server.bytes_per_second // 50 or len(whole)
        end = begin + server.cut_after if server.cut_after else len(whole)
        for place in range(begin, min(end, len(whole)), step):
            self.wfile.write(whole[place : min(place + step, end)])
            if server.bytes_per_second:
                time.sleep(1 / 50)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.05,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def archive(members: dict[str, bytes], *special: tarfile.TarInfo) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz", compresslevel=1) as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for member in special:
            tar.addfile(member)
    return stream.getvalue()


def publish(server: Server, content: bytes, **changes: object) -> DataSet:
    """Put an archive on the server and describe it as it is."""
    server.files["G4EMLOW.8.8.tar.gz"] = content
    fields = {
        "variable": "G4LEDATA",
        "directories": ("G4EMLOW*",),
        "content": "brem_SB",
        "name": "G4EMLOW",
        "version": "8.8",
        "archive": "G4EMLOW.8.8.tar.gz",
        "md5": hashlib.md5(content).hexdigest(),
        "sha256": hashlib.sha256(content).hexdigest(),
        "largest": 10**7,
    }
    return DataSet(**fields | changes)


@pytest.fixture
def data(server: Server) -> DataSet:
    return publish(server, archive({f"G4EMLOW8.8/{name}": content for name, content in CONTENT.items()}))


def is_whole(directory: Path) -> bool:
    found = {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    return found == CONTENT


PROGRAM = """
    import sys
    from pathlib import Path
    from minicarlo.simulators.data_sets import DataSet, install
    install(DataSet({data}), Path(sys.argv[1]), url=sys.argv[2])
"""


def start(data: DataSet, folder: Path, server: Server) -> subprocess.Popen[bytes]:
    fields = ", ".join(f"{name}={value!r}" for name, value in vars(data).items())
    program = textwrap.dedent(PROGRAM.format(data=fields))
    environment = os.environ | {"PYTHONPATH": str(Path(minicarlo.__file__).parents[1])}
    return subprocess.Popen([sys.executable, "-c", program, str(folder), server.url], env=environment)


def test_a_data_set_is_downloaded_and_unpacked_with_progress(server, data, tmp_path):
    seen = []
    directory = install(data, tmp_path / "new" / "data", url=server.url, progress=lambda done, total: seen.append((done, total)))
    size = len(server.files[data.archive])
    assert directory == tmp_path / "new/data/G4EMLOW8.8" and is_whole(directory)
    assert seen[-1] == (size, size) and seen == sorted(seen) and len(seen) > 5
    assert [path.name for path in directory.parent.iterdir()] == ["G4EMLOW8.8"]
    install(data, directory.parent, url=server.url)
    assert len(server.ranges) == 1  # what is there is not asked for again


def test_a_download_that_is_killed_goes_on_where_it_was(server, data, tmp_path):
    """Four kills on the way: asked for is always the rest alone, and nothing shows until everything is there."""
    size, partial, had = len(server.files[data.archive]), tmp_path / ".G4EMLOW.8.8.tar.gz.partial", 0
    server.bytes_per_second = 2 * size
    for share in (0.2, 0.4, 0.6, 0.8):
        process = start(data, tmp_path, server)
        while not (partial.exists() and partial.stat().st_size > share * size):
            assert process.poll() is None
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert server.ranges[-1] == (f"bytes={had}-" if had else None)
        had = partial.stat().st_size
        assert [path.name for path in tmp_path.iterdir()] == [partial.name] and had < size
    process = start(data, tmp_path, server)
    assert process.wait(timeout=60) == 0
    assert server.ranges[-1] == f"bytes={had}-"
    assert is_whole(tmp_path / "G4EMLOW8.8") and [path.name for path in tmp_path.iterdir()] == ["G4EMLOW8.8"]


def test_killed_at_any_moment_a_data_set_is_whole_or_not_there(server, tmp_path):
    """Many small files, so that kills fall into the unpacking too."""
    files = {f"G4EMLOW8.8/brem_SB/{number}": bytes(100) for number in range(2000)}
    data = publish(server, archive(files))
    for seconds in np.random.default_rng(5).uniform(0.2, 1.5, 8):
        process = start(data, tmp_path, server)
        time.sleep(seconds)
        process.kill()
        process.wait()
        directory = tmp_path / "G4EMLOW8.8"
        assert not directory.exists() or len(list(directory.rglob("*"))) == 2001
    install(data, tmp_path, url=server.url)
    assert len(list((tmp_path / "G4EMLOW8.8").rglob("*"))) == 2001
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".partial") and path.is_dir()] == []


def test_a_connection_that_breaks_is_taken_up_at_once(server, data, tmp_path):
    server.cut_after = 1_000_000
    assert is_whole(install(data, tmp_path, url=server.url))
    assert server.ranges == [None, "bytes=1000000-", "bytes=2000000-", "bytes=3000000-"]


def test_a_server_without_ranges_is_asked_for_everything(server, data, tmp_path):
    server.knows_ranges = False
    (tmp_path / ".G4EMLOW.8.8.tar.gz.partial").write_bytes(b"the beginning of something else")
    assert is_whole(install(data, tmp_path, url=server.url))


def test_an_altered_archive_is_refused_removed_and_downloaded_anew(server, data, tmp_path):
    right = server.files[data.archive]
    altered = right[:1000] + bytes([right[1000] ^ 1]) + right[1001:]
    other = publish(server, right, sha256="0" * 64)
    for checksum, wanted, served in (("MD5", data, altered), ("SHA256", other, right)):
        server.files[data.archive] = served
        with pytest.raises(DownloadError, match=rf"not the file that Geant4 published: its {checksum}.*removed"):
            install(wanted, tmp_path, url=server.url)
        assert list(tmp_path.iterdir()) == []
    assert is_whole(install(data, tmp_path, url=server.url))


def link(kind: bytes, name: str, target: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


@pytest.mark.parametrize(
    "special",
    [
        link(tarfile.SYMTYPE, "G4EMLOW8.8/brem_SB/link", "/etc"),
        link(tarfile.LNKTYPE, "G4EMLOW8.8/brem_SB/hard", "G4EMLOW8.8/README"),
        link(tarfile.FIFOTYPE, "G4EMLOW8.8/pipe", ""),
        link(tarfile.CHRTYPE, "G4EMLOW8.8/device", ""),
        link(tarfile.DIRTYPE, "/absolute", ""),
        link(tarfile.DIRTYPE, "G4EMLOW8.8/../../outside", ""),
        link(tarfile.DIRTYPE, "another", ""),
    ],
    ids=lambda member: member.name.replace("/", "_"),
)
def test_only_plain_files_below_the_expected_directory_are_unpacked(server, tmp_path, special):
    """The checksum would have told; this holds even if it were fooled."""
    data = publish(server, archive({"G4EMLOW8.8/brem_SB/table": b"x"}, special))
    with pytest.raises(DownloadError, match="no plain file or directory"):
        install(data, tmp_path / "data", url=server.url)
    assert [path.name for path in tmp_path.rglob("*")] == ["data", ".G4EMLOW.8.8.tar.gz.partial"]


def test_what_is_too_large_or_no_archive_or_lacks_its_content_is_refused(server, tmp_path):
    bomb = archive({"G4EMLOW8.8/brem_SB/table": bytes(10**6)})
    for content, largest, message in (
        (bomb, 10**5, "unpacks to more than 100000 bytes"),
        (b"no archive", 10**5, "cannot be unpacked"),
        (bomb[: len(bomb) // 2], 10**7, "cannot be unpacked"),
        (archive({"G4EMLOW8.8/README": b"x"}), 10**5, "lacks brem_SB"),
    ):
        with pytest.raises(DownloadError, match=message):
            install(publish(server, content, largest=largest), tmp_path, url=server.url)
        assert not (tmp_path / "G4EMLOW8.8").exists()
        (tmp_path / ".G4EMLOW.8.8.tar.gz.partial").unlink()


def test_a_full_disk_is_a_clear_error_and_what_came_is_kept(server, data, tmp_path):
    partial = tmp_path / ".G4EMLOW.8.8.tar.gz.partial"
    with files_at_most(1_500_000), pytest.raises(OutputError, match=rf"Cannot write .*{partial.name}"):
        install(data, tmp_path, url=server.url)
    assert partial.stat().st_size == 1_500_000
    assert is_whole(install(data, tmp_path, url=server.url)) and server.ranges[-1] == "bytes=1500000-"


def test_too_little_room_is_told_before_anything_is_downloaded(server, data, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1M", "none", str(disk)], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("mounting a small file system needs privileges")
    try:
        with pytest.raises(OutputError, match="3 MB are missing and 1 MB are free"):
            install(data, disk, url=server.url)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_without_a_network_the_error_says_so(server, data, tmp_path):
    server.status = 503
    with pytest.raises(DownloadError, match=r"answers 503.*is kept"):
        install(data, tmp_path, url=server.url)
    assert len(server.ranges) == 5
    server.status = 404
    with pytest.raises(DownloadError, match=r"answers 404.*--url"):
        install(data, tmp_path, url=server.url)
    assert len(server.ranges) == 6
    with pytest.raises(DownloadError, match=r"Connection refused.*https_proxy"):
        install(data, tmp_path, url="http://127.0.0.1:9")
    with pytest.raises(InvalidConfig, match="https://"):
        install(data, tmp_path, url="file:///etc")


def test_two_downloads_never_write_the_same_archive_at_once(server, data, tmp_path):
    server.bytes_per_second = 10**6
    process = start(data, tmp_path, server)
    while not any(path.stat().st_size for path in tmp_path.iterdir()):  # what has bytes is locked
        assert process.poll() is None
        time.sleep(0.005)
    try:
        with pytest.raises(OutputError, match="another download"):
            install(data, tmp_path, url=server.url)
    finally:
        process.kill()
        process.wait()


def test_versions_and_checksums_are_those_that_geant4_pybind_has():
    found = importlib.util.find_spec("geant4_pybind")
    if found is None:
        pytest.skip("needs geant4-pybind")
    library = Path(found.origin).read_bytes()
    for data in DATA_SETS:
        entry = library[library.index(f'{{"name": "{data.name}",'.encode()) :].partition(b"}")[0].decode()
        recorded = json.loads(entry + "}")
        assert recorded["version"] == data.version and recorded["md5sum"] == data.md5
        assert recorded["envvar"] == data.variable and f"{recorded['filename']}.{data.version}.tar.gz" == data.archive


def test_installed_data_sets_are_found_before_those_of_geant4_pybind_and_the_newest_first(tmp_path):
    environment = {"HOME": str(tmp_path)}
    for folder in (tmp_path / ".geant4_pybind", default_folder(environment)):
        for name in ("G4EMLOW8.8/brem_SB", "G4EMLOW8.10/brem_SB", "G4ENSDFSTATE3.0", "PhotonEvaporation6.1.2"):
            (folder / name).mkdir(parents=True)
        (folder / "G4ENSDFSTATE3.0/ENSDFSTATE.dat").touch()
        assert find_data_sets(environment)["G4LEDATA"] == str(folder / "G4EMLOW8.10")
    assert (
        locate(DATA_SETS[0], environment | {"XDG_DATA_HOME": str(tmp_path / "nothing")})
        == tmp_path / ".geant4_pybind/G4EMLOW8.10"
    )


class TestCommand:
    @pytest.fixture(autouse=True)
    def nowhere(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        for name in ("XDG_DATA_HOME", "GEANT4_DATA_DIR", *(data.variable for data in DATA_SETS)):
            monkeypatch.delenv(name, raising=False)

    @pytest.fixture
    def published(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        every = []
        for known in DATA_SETS:
            content = archive({f"{known.directory}/{known.content or 'z1'}": b"data"})
            server.files[known.archive] = content
            digests = {"md5": hashlib.md5(content).hexdigest(), "sha256": hashlib.sha256(content).hexdigest()}
            every.append(DataSet(**vars(known) | digests))
        monkeypatch.setattr("minicarlo.cli.geant4_data.DATA_SETS", tuple(every))

    def test_installs_what_simulate_then_finds_and_only_what_is_missing(self, server, published):
        first = CliRunner().invoke(main, ["geant4-data", "install", "--url", server.url])
        assert first.exit_code == 0 and first.stderr.count("Installed") == 3 and "missing" not in first.stdout
        found = find_data_sets(os.environ)
        assert found["G4LEDATA"] == str(default_folder(os.environ) / "G4EMLOW8.8")
        again = CliRunner().invoke(main, ["geant4-data", "install", "--url", server.url])
        assert again.exit_code == 0 and "Installed" not in again.stderr and len(server.ranges) == 3

    def test_lists_without_downloading(self, server, published):
        done = CliRunner().invoke(main, ["geant4-data", "install", "--url", server.url, "--list", "--json"])
        found = json.loads(done.stdout)["data_sets"]
        assert [(row["name"], row["path"]) for row in found] == [(data.name, None) for data in DATA_SETS]
        assert server.ranges == []

    def test_installs_into_a_folder_and_says_how_to_use_it(self, server, published, tmp_path):
        done = CliRunner().invoke(main, ["geant4-data", "install", "--url", server.url, "--to", str(tmp_path / "data")])
        assert done.exit_code == 0 and f"GEANT4_DATA_DIR={tmp_path / 'data'}" in done.stderr
        assert len(find_data_sets({"GEANT4_DATA_DIR": str(tmp_path / "data"), "HOME": "/nowhere"})) == 4

    def test_refuses_a_server_that_gives_something_else(self, server, tmp_path):
        for data in DATA_SETS:
            server.files[data.archive] = archive({f"{data.directory}/x": b""})
        done = CliRunner().invoke(main, ["geant4-data", "install", "--url", server.url])
        assert done.exit_code == 2 and "not the file that Geant4 published" in " ".join(done.stderr.split())
        assert list(default_folder(os.environ).iterdir()) == []

    def test_a_variable_that_points_elsewhere_is_named(self, server, published, monkeypatch, tmp_path):
        monkeypatch.setenv("G4LEDATA", str(tmp_path))
        done = CliRunner().invoke(main, ["geant4-data", "install", "--url", server.url])
        assert done.exit_code == 2 and "unset it" in " ".join(done.stderr.split()) and server.ranges == []
