from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from limits import files_at_most
from minicarlo import files
from minicarlo.errors import OutputError
from minicarlo.files import atomic_directory, atomic_path, check_writable, output_error, sha256, write_json


def test_a_file_appears_whole_and_only_at_the_end(tmp_path: Path) -> None:
    final = tmp_path / "result.txt"
    with atomic_path(final) as temporary:
        temporary.write_text("new")
        assert temporary.parent == tmp_path and not final.exists()
    assert final.read_text() == "new"
    assert os.listdir(tmp_path) == ["result.txt"]


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path, failure: type[BaseException]) -> None:
    final = tmp_path / "result.txt"
    final.write_text("old")
    with pytest.raises(failure), atomic_path(final) as temporary:
        temporary.write_text("half")
        raise failure
    assert final.read_text() == "old"
    assert os.listdir(tmp_path) == ["result.txt"]


def test_a_full_disk_is_an_output_error_that_leaves_nothing(tmp_path: Path) -> None:
    final = tmp_path / "result.bin"
    with (
        files_at_most(1000),
        pytest.raises(OutputError, match="result.bin.*larger than"),
        atomic_path(final) as temporary,
    ):
        temporary.write_bytes(bytes(100_000))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("code", "remedy"),
    [(errno.ENOSPC, "disk is full"), (errno.EDQUOT, "quota"), (errno.EROFS, "read-only"),
     (errno.EACCES, "may not write"), (errno.EPERM, "may not write"), (errno.EIO, "choose another place")],
)  # fmt: skip
def test_what_the_file_system_refuses_is_named_with_a_remedy(tmp_path: Path, code: int, remedy: str) -> None:
    final = tmp_path / "result.bin"
    with pytest.raises(OutputError, match=remedy) as caught, atomic_path(final):
        raise OSError(code, os.strerror(code))
    assert str(final) in str(caught.value)


def test_the_number_of_an_error_is_found_in_the_text_of_hdf5() -> None:
    error = OSError("Can't write data (file write failed: time = Mon, errno = 28, error message = 'No space left')")
    assert "disk is full" in str(output_error(Path("a.h5"), error))


@pytest.mark.parametrize("name", ["missing/result", "file/result", "folder", "pipe", "x" * 300, "/proc/result"])
def test_places_that_cannot_take_a_file_are_refused_early_and_late(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OutputError):
        check_writable(tmp_path / name)
    with pytest.raises(OutputError), atomic_path(tmp_path / name):
        pytest.fail("the block must not be entered")


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="may not write"):
        check_writable(tmp_path / "result")


def test_checking_leaves_no_trace(tmp_path: Path) -> None:
    check_writable(tmp_path / "result")
    assert os.listdir(tmp_path) == []


def test_an_error_about_an_input_is_not_reported_as_one_about_the_output(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "result"):
        (tmp_path / "input").read_text()


def test_a_link_is_replaced_and_what_it_points_to_is_kept(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("other")
    (tmp_path / "result").symlink_to(tmp_path / "other")
    with atomic_path(tmp_path / "result") as temporary:
        temporary.write_text("new")
    assert not (tmp_path / "result").is_symlink()
    assert (tmp_path / "other").read_text() == "other"


def test_what_a_killed_process_left_is_removed_by_the_next_and_a_living_one_is_spared(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from minicarlo.files import atomic_path, atomic_directory\n"
        "with atomic_path(sys.argv[1]), atomic_directory(sys.argv[2]) as folder:\n"
        "    (folder / 'x').write_text('x'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    final, folder = tmp_path / "result", tmp_path / "folder"
    environment = os.environ | {"PYTHONPATH": str(Path(files.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code, str(final), str(folder)], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(os.listdir(tmp_path)) == 2
    with atomic_path(final) as living, atomic_path(final):
        assert living.exists()
    with atomic_directory(folder):
        pass
    assert sorted(os.listdir(tmp_path)) == ["folder", "result"]


def test_a_folder_appears_whole_and_only_at_the_end(tmp_path: Path) -> None:
    final = tmp_path / "surrogate"
    with atomic_directory(final) as temporary:
        (temporary / "tuned").mkdir()
        (temporary / "tuned" / "plan.json").write_text("{}")
        assert not final.exists()
    assert (final / "tuned" / "plan.json").read_text() == "{}"
    assert os.listdir(tmp_path) == ["surrogate"]


def test_a_folder_that_holds_something_is_replaced_only_when_asked(tmp_path: Path) -> None:
    final = tmp_path / "surrogate"
    final.mkdir()
    with atomic_directory(final) as temporary:  # empty: fine
        (temporary / "a").write_text("old")
    with pytest.raises(OutputError, match="not empty"), atomic_directory(final):
        pytest.fail("the block must not be entered")
    with pytest.raises(ValueError), atomic_directory(final, overwrite=True) as temporary:
        raise ValueError
    assert (final / "a").read_text() == "old"
    with atomic_directory(final, overwrite=True) as temporary:
        (temporary / "a").write_text("new")
    assert (final / "a").read_text() == "new"
    assert os.listdir(tmp_path) == ["surrogate"]


def test_json_is_written_whole_and_is_valid(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"energy": "10 \u03bcs", "values": [1, 2.5, None]})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {
        "energy": "10 \u03bcs",
        "values": [1, 2.5, None],
    }
    with pytest.raises(ValueError):
        write_json(tmp_path / "b.json", float("nan"))
    assert os.listdir(tmp_path) == ["a.json"]


def test_the_checksum_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc" * 100_000)
    assert sha256(tmp_path / "a") == hashlib.sha256(b"abc" * 100_000).hexdigest()
