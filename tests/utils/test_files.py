"""A killed run leaves the old file or the new one, never half of one."""

from __future__ import annotations

import os
import stat

import pytest

from lpss_cli.errors import InputError
from lpss_cli.utils.files import atomic_write, check_writable


def test_a_new_file_is_moved_into_place(tmp_path):
    with atomic_write(tmp_path / "model.pt") as temporary:
        temporary.write_bytes(b"new")
        assert temporary.parent == tmp_path  # one file system, so that the move is atomic
        assert not (tmp_path / "model.pt").exists()
    assert os.listdir(tmp_path) == ["model.pt"]
    assert (tmp_path / "model.pt").read_bytes() == b"new"


def test_the_old_file_is_there_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "model.pt"
    path.write_bytes(b"old")
    with atomic_write(path) as temporary:
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "model.pt"
    path.write_bytes(b"old")

    def half_written() -> None:
        with atomic_write(path) as temporary:
            temporary.write_bytes(b"half of the n")
            raise error

    with pytest.raises(error):
        half_written()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["model.pt"]


def test_a_failed_move_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "model.pt"
    path.write_bytes(b"old")

    def refuse(*_: object) -> None:
        raise OSError("disk")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(InputError, match=r"cannot write .*: disk"), atomic_write(path) as temporary:
        temporary.write_bytes(b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["model.pt"]


def test_the_content_is_on_disk_before_the_move(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda f: (calls.append("fsync"), fsync(f)))
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("replace"), replace(a, b)))
    with atomic_write(tmp_path / "a") as temporary:
        temporary.write_bytes(b"x")
    assert calls == ["fsync", "replace", "fsync"]  # of the file, and of its directory


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_mode_follows_the_umask(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        with atomic_write(tmp_path / "a") as temporary:
            temporary.write_bytes(b"x")
        assert os.umask(umask) == umask  # left as it was
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == mode


def test_a_new_name_in_a_directory_is_writable(tmp_path):
    assert check_writable(tmp_path / "a") == tmp_path / "a"
    assert not (tmp_path / "a").exists()


def test_an_existing_file_needs_force(tmp_path):
    path = tmp_path / "a"
    path.touch()
    with pytest.raises(InputError, match="already exists") as error:
        check_writable(path)
    assert "--force" in error.value.do
    assert check_writable(path, force=True) == path


@pytest.mark.parametrize("target", ["file", "directory", "nowhere"])
def test_links_and_directories_are_refused_even_with_force(tmp_path, target):
    (tmp_path / "file").touch()
    (tmp_path / "directory").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / target)
    for path in (link, tmp_path / "directory"):
        with pytest.raises(InputError, match="not a regular file"):
            check_writable(path, force=True)


def test_a_missing_directory_is_named(tmp_path):
    with pytest.raises(InputError, match="nowhere does not exist"):
        check_writable(tmp_path / "nowhere" / "a", force=True)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file does not exist"):
        check_writable(tmp_path / "file" / "a")


def test_a_read_only_directory_is_refused(tmp_path, monkeypatch):
    # Permissions do not stop the root user, so the refusal is played.
    def refuse(*_: object) -> int:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(InputError, match="cannot be written: Read-only"):
        check_writable(tmp_path / "a")
