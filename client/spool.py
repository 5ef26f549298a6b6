"""Telemetry that waits on the disk until the server has it.

    spool/<sequence>     one report: CRC-32 of it, little-endian, then the report; the name has 20 decimal digits
    spool/used           a number up to which all were used, where no report that waits says so
    spool/begun          that the numbers begin above those which the server knew when the device first asked

1. A report gets its number once, before anybody sees it. Numbers only grow, also over a restart, so a server that
   ignores numbers it has seen counts every report once, however often it is sent.
2. A report is on the disk for good when `append` returns, and is removed when the server has it.
3. Before the first report is sent the server is asked for the greatest number that it knows of this device: a device
   whose folder was wiped goes on above it, and is not taken for its own echo.
4. Where it is damaged what was used, the server is asked again: numbers go on above what it knows. Telemetry is never
   why a device does not serve.
5. The spool is bounded: where a new report does not fit, the oldest ones go once it is written. They leave a gap in
   the numbers, and are counted. What counts is what files take on the disk: whole blocks, 4 KiB as a rule, of which a
   report fills a tenth.
"""

import os
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from client.disk import replace_file, unwritable
from client.state import StateFolder
from quantization.errors import ConfigurationError, MalformedError

_NAME = re.compile(r"[0-9]{20}")
_CRC_BYTES = 4
_MAX_SEQUENCE = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class SpooledReport:
    """A report that waits.

    Attributes:
        sequence: Its number; 1 or more.
        data: Its bytes.
    """

    sequence: int
    data: bytes


class Spool:
    """The reports of one device, oldest first; for one thread of the process that owns the state folder.

    Attributes:
        dropped: Reports that were removed unsent since the spool was opened: for want of space, or damaged.
    """

    def __init__(self, state: StateFolder, *, max_bytes: int = 16 << 20, max_reports: int = 10_000) -> None:
        """Open the spool, and find out where it stood.

        Args:
            state: Of which this process is the owner.
            max_bytes: Most that reports may take on the disk; the newest stays, whatever it takes.
            max_reports: Most reports that wait.

        Raises:
            ConfigurationError: If nothing could ever be kept.
        """
        if max_bytes < 1 or max_reports < 1:
            raise ConfigurationError(f"a spool of {max_bytes} bytes and {max_reports} reports keeps nothing")
        self.dropped = 0
        self._disk = state.disk
        self._path = state.path / "spool"
        self._max_bytes, self._max_reports = max_bytes, max_reports
        self._block_bytes = max(os.statvfs(state.path).f_frsize, 1)
        names = sorted(path.name for path in self._path.glob("*") if _NAME.fullmatch(path.name))
        self._sizes = {int(name): self._on_disk((self._path / name).stat().st_size) for name in names}
        used = self._read_used()
        self._used, self._is_sure = used or 0, used is not None or bool(self._sizes)
        self._next = max([self._used, *self._sizes]) + 1

    def __len__(self) -> int:
        return len(self._sizes)

    @property
    def last_used(self) -> int:
        """The greatest number that a report has had; 0 before the first."""
        return self._next - 1

    @property
    def size_bytes(self) -> int:
        """What the reports take on the disk."""
        return sum(self._sizes.values())

    def append(self, data: bytes) -> int:
        """Keep a report; return its number.

        Raises:
            ConfigurationError: If it alone is larger than the spool, or the folder cannot be written. Its number is
                then not used.
        """
        size, sequence = len(data) + _CRC_BYTES, self._next
        if size > self._max_bytes or sequence > _MAX_SEQUENCE:
            raise ConfigurationError(f"a report of {size} bytes; the spool keeps {self._max_bytes}")
        self._write(self._file(sequence), _with_crc(data))
        self._sizes[sequence] = self._on_disk(size)
        self._next = sequence + 1
        self._drop_oldest()
        return sequence

    def pending(self) -> Iterator[SpooledReport]:
        """Yield the reports that wait, oldest first; those that are damaged are dropped."""
        for sequence in sorted(self._sizes):
            try:
                stored = self._file(sequence).read_bytes()
            except FileNotFoundError:
                stored = b""
            data = stored[_CRC_BYTES:]
            if stored == _with_crc(data):
                yield SpooledReport(sequence, data)
            else:
                self.dropped += 1
                self._forget([sequence])

    def mark_sent(self, sequence: int) -> None:
        """Remove the reports up to this number: the server has them.

        Raises:
            ConfigurationError: If the number was never used, or the folder cannot be written.
        """
        if not 1 <= sequence < self._next:
            raise ConfigurationError(f"report {sequence} was never spooled; the next one is {self._next}")
        self._forget(waiting for waiting in sorted(self._sizes) if waiting <= sequence)

    @property
    def has_begun(self) -> bool:
        """Whether `begin_above` was called since the folder was made; if not, nothing may be sent."""
        return self._is_sure and (self._path / "begun").exists()

    def begin_above(self, sequence: int) -> None:
        """Give the reports that wait, and those to come, numbers above the greatest that the server knows.

        A process that dies in between has sent nothing, and begins again.

        Raises:
            MalformedError: If no device can have used that number.
            ConfigurationError: If the folder cannot be written.
        """
        if not 0 <= sequence < _MAX_SEQUENCE:
            raise MalformedError(f"the server says that it has report {sequence} of this device")
        is_behind = not self._is_sure or self._next <= sequence
        if is_behind or (self._sizes and min(self._sizes) <= sequence):
            waiting = list(self.pending())
            highest = max(sequence, self._next - 1)
            self._write(self._path / "used", b"%d\n" % highest)
            self._used, self._next = highest, highest + 1
            for report in waiting:
                self.append(report.data)
            self._forget(report.sequence for report in waiting if report.sequence in self._sizes)
        self._write(self._path / "begun", b"")
        self._is_sure = True

    def _on_disk(self, size_bytes: int) -> int:
        """Return what a file of this size takes: whole blocks of its file system."""
        return -(-size_bytes // self._block_bytes) * self._block_bytes

    def _drop_oldest(self) -> None:
        """Drop reports, oldest first, until the others are within the bounds; the newest stays."""
        for sequence in sorted(self._sizes)[:-1]:
            if len(self._sizes) <= self._max_reports and self.size_bytes <= self._max_bytes:
                return
            self.dropped += 1
            self._forget([sequence])

    def _forget(self, sequences: Iterable[int]) -> None:
        """Remove reports; a number that no file would remember is written down before."""
        for sequence in sequences:
            if sequence == self._next - 1 and sequence > self._used:
                self._write(self._path / "used", b"%d\n" % sequence)
                self._used = sequence
            path = self._file(sequence)
            try:
                self._disk.remove(path)
            except OSError as error:
                raise unwritable(path, error) from error
            self._sizes.pop(sequence, None)

    def _read_used(self) -> int | None:
        """Return what the file says; 0 where there is none, None where it is damaged."""
        try:
            used = int((self._path / "used").read_bytes()[: len(str(_MAX_SEQUENCE)) + 1])
        except FileNotFoundError:
            return 0
        except (ValueError, OSError):
            return None
        return used if 0 <= used <= _MAX_SEQUENCE else None

    def _write(self, path: Path, data: bytes) -> None:
        try:
            self._disk.make_folder(self._path)
        except OSError as error:
            raise unwritable(self._path, error) from error
        replace_file(self._disk, path, data)

    def _file(self, sequence: int) -> Path:
        return self._path / f"{sequence:020d}"


def _with_crc(data: bytes) -> bytes:
    return zlib.crc32(data).to_bytes(_CRC_BYTES, "little") + data
