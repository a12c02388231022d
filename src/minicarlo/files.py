"""Results that appear whole or not at all: temporary sibling, fsync, rename; and checksums."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from minicarlo.errors import OutputError

_SYNCS_AT_ONCE = 16  # file systems commit them together: 4,000 small files in 0.5 instead of 19 s

_REMEDIES = {
    errno.ENOSPC: "the disk is full; free some space or choose another place",
    errno.EDQUOT: "your disk quota is used up; free some space or choose another place",
    errno.EFBIG: "it would be larger than files may be here; write fewer events or raise the limit",
    errno.EACCES: "you may not write there; choose a folder of yours",
    errno.EPERM: "you may not write there; choose a folder of yours",
    errno.EROFS: "that file system is read-only; choose another place",
    errno.ENOENT: "its folder does not exist; create it first",
    errno.ENOTDIR: "a part of the path is a file, not a folder; choose another path",
    errno.EISDIR: "there is a folder of that name; choose another name",
    errno.EEXIST: "there is already something of that name; remove it or choose another name",
    errno.ENOTEMPTY: "there is already a folder of that name that is not empty; remove it or choose another name",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    errno.ELOOP: "a part of the path is a link that leads to itself; choose another path",
}


def output_error(path: Path, error: OSError) -> OutputError:
    """The OutputError that tells a person why `path` could not be written."""
    code = error.errno
    if code is None:  # h5py hides the number in the text
        found = re.search(r"errno = (\d+)", str(error))
        code = int(found.group(1)) if found else None
    if code == errno.ENOENT and path.parent.is_dir():
        code = errno.EACCES  # a folder such as /proc takes no files
    reason = _REMEDIES.get(code) if code is not None else None
    if reason is None:
        reason = f"{error.strerror or error}; choose another place"
    return OutputError(f"Cannot write {path}: {reason}.")


def check_writable(final: Path | str) -> None:
    """Raise OutputError now if `final` plainly cannot be written later: before a long computation, not after it."""
    final = Path(final)
    try:
        _check_target(final)
        probe = _temporary_sibling(final)
        os.close(os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        probe.unlink()
    except OSError as error:
        raise output_error(final, error) from error


@contextmanager
def atomic_path(final: Path | str) -> Iterator[Path]:
    """A temporary file beside `final` to write to; it becomes `final` when the block ends well and vanishes when not.

    The data are on the disk (fsync) before the rename. Raises OutputError for whatever the file system refuses.
    """
    final = Path(final)
    with _output_errors(final):
        _check_target(final)
        _remove_stale(final)
        temporary = _temporary_sibling(final)
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, 0o666))
        try:
            yield temporary
            _sync(temporary)
            os.replace(temporary, final)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        _sync_folder(final.parent)


@contextmanager
def atomic_directory(final: Path | str, *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder beside `final` to fill; it becomes `final` when the block ends well and vanishes when not.

    An empty `final` is replaced; one that holds something only with `overwrite`. Raises OutputError.
    """
    final = Path(final)
    with _output_errors(final):
        if final.exists() and not final.is_dir():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(final))
        if not overwrite and final.is_dir() and any(final.iterdir()):
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(final))
        _remove_stale(final)
        temporary = _temporary_sibling(final)
        temporary.mkdir()
        try:
            yield temporary
            with ThreadPoolExecutor(_SYNCS_AT_ONCE) as pool:
                for _ in pool.map(_sync, (path for path in temporary.rglob("*") if path.is_file())):
                    pass
            for path in (temporary, *temporary.rglob("*")):
                if path.is_dir():
                    _sync_folder(path)
            if overwrite and final.is_dir():
                old = _temporary_sibling(final)
                os.rename(final, old)
                os.rename(temporary, final)
                shutil.rmtree(old, ignore_errors=True)
            else:
                os.rename(temporary, final)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        _sync_folder(final.parent)


def sha256(path: Path | str) -> str:
    """Hexadecimal SHA-256 of a file."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_json(path: Path | str, value: Any) -> None:  # noqa: ANN401
    """Write `value` as indented JSON, atomically. Raises OutputError."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _check_target(final: Path) -> None:
    """Raise OSError for what a file must not replace: a folder, a device, a pipe."""
    if final.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(final))
    if final.exists() and not final.is_file():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(final))


@contextmanager
def _output_errors(final: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.filename is not None and final.name not in str(error.filename):
            raise  # about another file: an input that the block read
        raise output_error(final, error) from error


def _temporary_sibling(final: Path) -> Path:
    """A hidden name beside `final` that tells who writes it, so that what a killed process left can be removed."""
    host = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())[:32]
    return final.with_name(f".{final.name}.{host}.{os.getpid()}.{secrets.token_hex(4)}.partial")


def _remove_stale(final: Path) -> None:
    """Remove what processes of this machine that no longer live left beside `final`."""
    host = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())[:32]
    pattern = re.compile(re.escape(f".{final.name}.{host}.") + r"(\d+)\.[0-9a-f]{8}\.partial")
    with suppress(OSError):
        for path in final.parent.iterdir():
            found = pattern.fullmatch(path.name)
            if found and not _alive(int(found.group(1))):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_folder(folder: Path) -> None:
    with suppress(OSError):  # some network file systems refuse fsync of a folder
        _sync(folder)
