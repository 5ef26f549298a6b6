"""Upgrades a device in this process, and kills it with SIGKILL at one of its file-system operations.

python killed_upgrade.py FOLDER OPERATION: exits 0 if the upgrade had fewer operations.
"""

import os
import signal
import sys
from pathlib import Path

from artifacts import example
from memory_updates import MemoryUpdates

from client.disk import Disk
from client.garbage import Limits
from client.self_testing import load
from client.state import StateFolder
from client.trial import TrialRules
from client.updater import Updater, UpdateSettings
from quantization.artifact import Artifact

SETTINGS = UpdateSettings(
    "x86-vnni", limits=Limits(free_bytes=0), trial=TrialRules(least_seconds=0.0, least_runs=0)
)


class KillingDisk(Disk):
    """Ends the process at the end of an operation, or in the middle of one that writes."""

    def __init__(self, operation: int) -> None:
        self.left = operation

    def _count(self, path: Path | None = None, half: bytes = b"") -> None:
        if self.left == 0:
            if path is not None:
                super().append(path, half)
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1

    def make_folder(self, path: Path) -> None:
        self._count()
        super().make_folder(path)

    def write(self, path: Path, data: bytes) -> None:
        self._count(path, data[: len(data) // 2])
        super().write(path, data)

    def append(self, path: Path, data: bytes) -> None:
        self._count(path, data[: len(data) // 2])
        super().append(path, data)

    def sync(self, path: Path) -> None:
        self._count()
        super().sync(path)

    def rename(self, path: Path, target: Path) -> None:
        self._count()
        super().rename(path, target)

    def remove(self, path: Path) -> None:
        self._count()
        super().remove(path)


def artifacts() -> list[Artifact]:
    """Return what is upgraded from and to."""
    return [example("mlp").artifact(number, width=4.0 + number, is_observed=False) for number in range(2)]


def upgrade(folder: Path, disk: Disk, artifact: Artifact, version: int) -> None:
    """Bring a device to an artifact, and confirm it."""
    updates = MemoryUpdates(chunk_bytes=1 << 16)
    updates.publish(artifact, version)
    with StateFolder(folder, disk=disk) as state:
        updater = Updater(state, updates, SETTINGS, test=load)
        updater.update()
        updater.watch()
        updater.close()


if __name__ == "__main__":
    upgrade(Path(sys.argv[1]), KillingDisk(int(sys.argv[2])), artifacts()[1], 2)
