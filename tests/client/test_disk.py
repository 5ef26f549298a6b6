import threading
from pathlib import Path

import pytest
from dying_disk import Death, DyingDisk, Kind, deaths

from client.disk import Disk, replace_file
from quantization.errors import ConfigurationError


def test_a_file_is_old_or_new_wherever_a_device_dies(tmp_path: Path) -> None:
    path = tmp_path / "file"
    left = set()
    prepared, written = (
        lambda disk, data=data: replace_file(disk, path, data) for data in (b"old", b"new content")
    )
    for kind, _ in deaths(lambda: prepared(Disk()), written):
        left.add((kind, path.read_bytes()))
    # A name that was not flushed is taken back by the power cut; of a kill it is there.
    assert left == {(Kind.KILLED, b"old"), (Kind.KILLED, b"new content"), (Kind.POWER_CUT, b"old")}


def test_what_is_written_for_good_survives_a_power_cut(tmp_path: Path) -> None:
    disk = DyingDisk(kind=Kind.POWER_CUT)
    replace_file(disk, tmp_path / "file", b"content")
    disk.lives = disk.operations
    with pytest.raises(Death):
        disk.remove(tmp_path / "other")
    assert (tmp_path / "file").read_bytes() == b"content"


@pytest.mark.parametrize("left_out", ["sync file", "sync folder"])
def test_the_dying_disk_notices_what_was_not_flushed(tmp_path: Path, left_out: str) -> None:
    path, temporary = tmp_path / "file", tmp_path / "file.tmp"
    replace_file(Disk(), path, b"old")
    disk = DyingDisk(kind=Kind.POWER_CUT)
    disk.write(temporary, b"new")
    if left_out != "sync file":
        disk.sync(temporary)
    disk.rename(temporary, path)
    if left_out != "sync folder":
        disk.sync(tmp_path)
    disk.lives = disk.operations
    with pytest.raises(Death):
        disk.sync(tmp_path)
    assert path.read_bytes() == {"sync file": b"", "sync folder": b"old"}[left_out]


def test_a_file_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be written"):
        replace_file(Disk(), tmp_path / "missing" / "file", b"")


def test_threads_that_write_one_file_write_it_whole(tmp_path: Path) -> None:
    path, contents = tmp_path / "file", [bytes([i]) * 10_000 for i in range(4)]
    threads = [
        threading.Thread(target=lambda c=c: [replace_file(Disk(), path, c) for _ in range(20)])
        for c in contents
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() in contents
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
