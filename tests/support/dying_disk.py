"""A disk that dies at any of its operations, with real files: what a device that is killed leaves behind."""

from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path

from client.disk import Disk


class Death(BaseException):
    """The process ends here; nothing may catch it."""


class Kind(StrEnum):
    KILLED = "killed"
    """The process: what it gave to the system is there, and half of what it was about to give."""
    POWER_CUT = "power cut"
    """The machine: what was not flushed is gone, and names are those that were flushed last."""


class DyingDisk(Disk):
    """Does `lives` operations and dies in the middle of the next one; after that it does nothing more."""

    def __init__(self, lives: int = 1 << 30, kind: Kind = Kind.KILLED) -> None:
        self.lives, self.kind = lives, kind
        self.operations = 0
        self._dead = False
        self._contents: dict[Path, bytes] = {}  # of files that were not flushed: what is left of them
        self._names: dict[Path, bytes | None] = {}  # in folders that were not flushed: what was there before

    def write(self, path: Path, data: bytes) -> None:
        self._put(path, data, b"", super().write)

    def write_private(self, path: Path, data: bytes) -> None:
        self._put(path, data, b"", super().write_private)

    def append(self, path: Path, data: bytes) -> None:
        self._put(path, data, self._contents.get(path, _content(path) or b""), super().append)

    def sync(self, path: Path) -> None:
        self._live()
        super().sync(path)
        if path.is_dir():
            self._names = {name: old for name, old in self._names.items() if name.parent != path}
        self._contents.pop(path, None)

    def rename(self, path: Path, target: Path) -> None:
        self._live()
        before = _content(target)
        super().rename(path, target)
        self._names.setdefault(target, before)
        self._names.pop(path, None)
        if path in self._contents:
            self._contents[target] = self._contents.pop(path)

    def remove(self, path: Path) -> None:
        self._live()
        super().remove(path)
        self._names.pop(path, None)
        self._contents.pop(path, None)

    def make_folder(self, path: Path) -> None:
        self._live()
        super().make_folder(path)

    def _put(self, path: Path, data: bytes, left: bytes, put: Callable[[Path, bytes], None]) -> None:
        if not path.exists():
            self._names.setdefault(path, None)
        self._contents[path] = left
        try:
            self._live()
        except Death:
            if self.kind is Kind.KILLED and self.operations == self.lives + 1:
                put(path, data[: len(data) // 2])
            raise
        put(path, data)

    def _live(self) -> None:
        """Count one operation, or die."""
        if not self._dead:
            self.operations += 1
            if self.operations <= self.lives:
                return
            self._dead = True
            if self.kind is Kind.POWER_CUT:
                self._cut_power()
        else:
            self.operations += 1
        raise Death

    def _cut_power(self) -> None:
        for path, left in self._contents.items():
            if path.exists():
                path.write_bytes(left)
        for path, before in self._names.items():
            if before is None:
                path.unlink(missing_ok=True)
            else:
                path.write_bytes(before)


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def deaths(prepare: Callable[[], object], act: Callable[[DyingDisk], object]) -> Iterator[tuple[Kind, int]]:
    """Run `act` on a disk that dies at its first operation, at its second, and so on, until it survives.

    Yields after each death, so that the caller looks at what it left; `prepare` runs before every `act`.
    """
    for kind in Kind:
        lives = 0
        while True:
            prepare()
            try:
                act(DyingDisk(lives, kind))
            except Death:
                yield kind, lives
                lives += 1
                continue
            break
