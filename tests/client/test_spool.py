import os
import shutil
from pathlib import Path

import pytest
from dying_disk import DyingDisk, deaths

from client.spool import Spool
from client.state import StateFolder
from quantization.errors import ConfigurationError, MalformedError


def block_bytes(folder: Path) -> int:
    """Return what the smallest file takes."""
    return os.statvfs(folder).f_frsize


def waiting(spool: Spool) -> dict[int, bytes]:
    return {report.sequence: report.data for report in spool.pending()}


def test_reports_wait_over_a_restart_until_the_server_has_them(tmp_path: Path) -> None:
    with StateFolder(tmp_path) as state:
        spool = Spool(state)
        assert [spool.append(data) for data in (b"one", b"", b"three")] == [1, 2, 3]
    with StateFolder(tmp_path) as state:
        spool = Spool(state)
        assert waiting(spool) == {1: b"one", 2: b"", 3: b"three"}
        spool.mark_sent(2)
        assert waiting(spool) == {3: b"three"}
        assert (len(spool), spool.size_bytes) == (1, block_bytes(tmp_path))


def test_numbers_are_never_used_twice(tmp_path: Path) -> None:
    used = []
    for _ in range(4):
        with StateFolder(tmp_path) as state:
            spool = Spool(state, max_reports=2)
            used += [spool.append(b"x") for _ in range(3)]
            spool.mark_sent(used[-1])
            assert len(spool) == 0
    assert used == list(range(1, 13))


def test_a_report_that_is_damaged_is_dropped_and_its_number_stays_used(tmp_path: Path) -> None:
    with StateFolder(tmp_path) as state:
        spool = Spool(state)
        for data in (b"one", b"two", b"three"):
            spool.append(data)
        for sequence, damage in ((1, b"\0\0\0\0one"), (3, b"")):
            (tmp_path / f"spool/{sequence:020d}").write_bytes(damage)
        assert waiting(spool) == {2: b"two"}
        assert spool.dropped == 2
    with StateFolder(tmp_path) as state:
        assert waiting(Spool(state)) == {2: b"two"}
        assert Spool(state).append(b"four") == 4


@pytest.mark.parametrize("bound", ["reports", "blocks"])
def test_where_a_report_does_not_fit_the_oldest_go(tmp_path: Path, bound: str) -> None:
    block = block_bytes(tmp_path)
    with StateFolder(tmp_path) as state:
        spool = Spool(state, max_reports=3) if bound == "reports" else Spool(state, max_bytes=3 * block + 1)
        for number in range(1, 8):
            spool.append(b"%010d" % number)
        assert list(waiting(spool)) == [5, 6, 7]
        assert (spool.dropped, spool.size_bytes) == (4, 3 * block)
        with pytest.raises(ConfigurationError, match="a report of"):
            Spool(state, max_bytes=13).append(b"%010d" % 8)
        assert list(waiting(spool)) == [5, 6, 7]


def test_what_reports_take_is_what_they_take_on_the_disk(tmp_path: Path) -> None:
    with StateFolder(tmp_path) as state:
        spool = Spool(state)
        for size in (1, block_bytes(tmp_path), 3 * block_bytes(tmp_path)):
            spool.append(b"x" * size)
        files = [path for path in (tmp_path / "spool").iterdir() if path.name.isdigit()]
        assert spool.size_bytes == (1 + 2 + 4) * block_bytes(tmp_path)
        assert spool.size_bytes >= sum(512 * path.stat().st_blocks for path in files)
    with StateFolder(tmp_path) as state:
        assert Spool(state).size_bytes == 7 * block_bytes(tmp_path)


def test_numbers_that_were_never_used_cannot_have_been_sent(tmp_path: Path) -> None:
    with StateFolder(tmp_path) as state:
        spool = Spool(state)
        spool.append(b"one")
        for wrong in (0, 2, -1):
            with pytest.raises(ConfigurationError, match="never spooled"):
                spool.mark_sent(wrong)
        spool.mark_sent(1)
        spool.mark_sent(1)


def test_bounds_that_keep_nothing_are_refused(tmp_path: Path) -> None:
    with StateFolder(tmp_path) as state:
        for bounds in ({"max_bytes": 0}, {"max_reports": 0}):
            with pytest.raises(ConfigurationError):
                Spool(state, **bounds)


def test_a_device_that_dies_at_any_write_loses_no_report_and_counts_none_twice(tmp_path: Path) -> None:
    appended: dict[int, bytes] = {}
    server: dict[int, bytes] = {}
    marked = [0]

    def prepare() -> None:
        for path in (tmp_path / "spool").glob("*"):
            path.unlink()
        appended.clear()
        server.clear()
        marked[0] = 0

    def live(disk: DyingDisk) -> None:
        with StateFolder(tmp_path, disk=disk) as state:
            spool = Spool(state, max_reports=3)
            for number in range(5):
                data = b"report %d" % number
                appended[spool.append(data)] = data
                if number in (1, 3):
                    for report in spool.pending():
                        server[report.sequence] = report.data
                    spool.mark_sent(max(server))
                    marked[0] = max(server)

    count = 0
    for kind, lives in deaths(prepare, live):
        count += 1
        with StateFolder(tmp_path) as state:
            spool = Spool(state)
            found = waiting(spool)
            assert appended.keys() - server.keys() <= found.keys(), (kind, lives)
            assert {**server, **found} == {**found, **server}, (kind, lives)  # one number, one report
            again = spool.append(b"new")
            assert again not in server, (kind, lives)
            assert again > max(found, default=0)
    assert count > 40


def test_a_wiped_folder_goes_on_above_what_the_server_knows(tmp_path: Path) -> None:
    with StateFolder(tmp_path) as state:
        spool = Spool(state)
        spool.append(b"one")
        spool.append(b"two")
        assert not spool.has_begun
        spool.begin_above(70)
        assert waiting(spool) == {71: b"one", 72: b"two"}
        spool.begin_above(3)
        assert waiting(spool) == {71: b"one", 72: b"two"}
    with StateFolder(tmp_path) as state:
        spool = Spool(state)
        assert spool.has_begun
        assert spool.append(b"three") == 73


def test_a_wiped_folder_whose_numbers_are_the_servers_own_goes_on_above_both(tmp_path: Path) -> None:
    with StateFolder(tmp_path) as state:
        spool = Spool(state)
        for data in (b"one", b"two", b"three"):
            spool.append(data)
        spool.begin_above(2)
        assert waiting(spool) == {4: b"one", 5: b"two", 6: b"three"}


def test_a_new_device_begins_at_one(tmp_path: Path) -> None:
    with StateFolder(tmp_path) as state:
        spool = Spool(state)
        spool.append(b"one")
        spool.begin_above(0)
        assert (waiting(spool), spool.has_begun) == ({1: b"one"}, True)


def test_no_death_while_numbers_change_loses_a_report(tmp_path: Path) -> None:
    folder = tmp_path / "state"

    def prepare() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        with StateFolder(folder) as state:
            spool = Spool(state)
            for data in (b"one", b"two"):
                spool.append(data)

    def renumber(disk: DyingDisk) -> None:
        with StateFolder(folder, disk=disk) as state:
            Spool(state).begin_above(70)

    for _ in deaths(prepare, renumber):
        with StateFolder(folder) as state:
            spool = Spool(state)
            if not spool.has_begun:
                spool.begin_above(70)
            found = waiting(spool)
            assert {*found.values()} == {b"one", b"two"}
            assert min(found) > 70


@pytest.mark.parametrize("damage", [b"", b"\x00\xff", b"-1", b"9" * 40])
def test_where_it_is_damaged_what_was_used_the_server_is_asked(tmp_path: Path, damage: bytes) -> None:
    with StateFolder(tmp_path) as state:
        spool = Spool(state)
        spool.begin_above(0)
        spool.mark_sent(spool.append(b"one"))
    (tmp_path / "spool" / "used").write_bytes(damage)
    with StateFolder(tmp_path) as state:
        spool = Spool(state)
        spool.append(b"two")
        assert not spool.has_begun
        spool.begin_above(1)
        assert (waiting(spool), spool.has_begun) == ({2: b"two"}, True)
        spool.mark_sent(2)
    with StateFolder(tmp_path) as state:
        spool = Spool(state)
        assert (spool.has_begun, spool.append(b"three")) == (True, 3)


def test_reports_that_wait_say_what_was_used(tmp_path: Path) -> None:
    with StateFolder(tmp_path) as state:
        spool = Spool(state)
        spool.begin_above(7)
        spool.append(b"one")
    (tmp_path / "spool" / "used").write_bytes(b"?")
    with StateFolder(tmp_path) as state:
        spool = Spool(state)
        assert (spool.has_begun, waiting(spool), spool.last_used) == (True, {8: b"one"}, 8)


def test_a_number_that_no_device_can_have_used_is_refused(tmp_path: Path) -> None:
    with StateFolder(tmp_path) as state:
        spool = Spool(state)
        spool.append(b"one")
        with pytest.raises(MalformedError, match="has report"):
            spool.begin_above(1 << 63)
        assert (waiting(spool), spool.append(b"two")) == ({1: b"one"}, 2)
