"""Folders that tasks write to are emptied here, whatever was done to them: no depth, mode or name keeps them.

`shutil.rmtree` calls itself for every level, and names each by its whole path; a task can make more levels than that.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import stat
from collections.abc import Iterator


def remove_tree(path: str) -> None:
    """Remove a file, or a folder with all that is in it, whatever modes that has and however deep it is.

    What cannot be removed stays, and so does what a link leads to. Nothing else may be at work in there.
    """
    with contextlib.suppress(OSError):
        if stat.S_ISDIR(os.lstat(path).st_mode):
            empty_folder(path)
            os.rmdir(path)
        else:
            os.unlink(path)


def empty_folder(folder: str) -> None:
    """Remove all that is in a folder, as `remove_tree` does; raises `OSError` where it is none, or something stays.

    What lies deeper is moved up and then emptied: a path has 4096 bytes at most, and recursion has an end, too.
    """
    top = _open_folder(folder, None)
    try:
        moved, stays = (f".removed-{os.urandom(8).hex()}-{number}" for number in itertools.count()), set[str]()
        while left := [name for name in os.listdir(top) if name not in stays]:
            for name in left:
                try:
                    _take_apart(name, top, moved)
                except OSError:
                    stays.add(name)
    finally:
        os.close(top)
    if stays:
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), folder)


def _take_apart(name: str, top: int, moved: Iterator[str]) -> None:
    """Remove one entry of a folder; the folders in it become entries of that folder themselves."""
    if not _is_folder(name, top):
        os.unlink(name, dir_fd=top)
        return
    folder = _open_folder(name, top)
    try:
        for entry in os.listdir(folder):
            if _is_folder(entry, folder):
                unlock(entry, folder)
                os.rename(entry, next(moved), src_dir_fd=folder, dst_dir_fd=top)
            else:
                os.unlink(entry, dir_fd=folder)
    finally:
        os.close(folder)
    os.rmdir(name, dir_fd=top)


def _open_folder(name: str, at: int | None) -> int:
    unlock(name, at)
    return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)


def _is_folder(name: str, at: int) -> bool:
    return stat.S_ISDIR(os.stat(name, dir_fd=at, follow_symlinks=False).st_mode)


def unlock(name: str, at: int | None = None) -> None:
    """Give ourselves access to a folder of ours again, whose modes somebody has changed; at: the folder it is in."""
    if not os.access(name, os.R_OK | os.W_OK | os.X_OK, dir_fd=at):
        with contextlib.suppress(OSError):
            os.chmod(name, 0o700, dir_fd=at)
