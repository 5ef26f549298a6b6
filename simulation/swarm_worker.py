"""A process with many devices of a swarm: `python -m simulation.swarm_worker`.

It reads one line that says which devices it has, and writes a line whenever something happened. A line on stdin, or
its end, ends it; then it says what each device runs.
"""

import asyncio
import contextlib
import json
import random
import resource
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from simulation.bad_network import BadNetwork
from simulation.swarm_counts import Contents, SwarmCounts, SwarmTarget, Told
from simulation.swarm_device import SwarmDevice

REPORT_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class WorkerOrder:
    """Which devices a process has.

    Attributes:
        host: Of the server.
        port: Likewise.
        target: What the devices run.
        names: Of the devices.
        faults: What is wrong with the network of each: "cut", "slow", "corrupt" or "".
        connects_per_second: How many devices start in a second.
        seed: Of waits and faults.
    """

    host: str
    port: int
    target: SwarmTarget
    names: Sequence[str]
    faults: Sequence[str]
    connects_per_second: float
    seed: int

    def to_line(self) -> str:
        """Return the line that `from_line` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def from_line(cls, line: str) -> "WorkerOrder":
        """Return what `to_line` wrote."""
        record = json.loads(line)
        return cls(**record | {"target": SwarmTarget(**record["target"])})


async def work(order: WorkerOrder) -> None:
    """Run the devices until stdin says otherwise."""
    rng, counts, events = random.Random(order.seed), SwarmCounts(), list[Told]()  # noqa: S311
    contents = Contents()
    async with BadNetwork(order.host, order.port, rng) as network:
        devices = [
            SwarmDevice(
                name,
                f"{order.host}:{network.ports.get(fault, order.port)}",
                order.target,
                contents=contents,
                counts=counts,
                on_event=events.append,
                rng=random.Random(rng.random()),  # noqa: S311
            )
            for name, fault in zip(order.names, order.faults, strict=True)
        ]
        tasks = [asyncio.create_task(_start(devices, order.connects_per_second))]
        tasks.append(asyncio.create_task(_report(events, counts)))
        await asyncio.wait({asyncio.create_task(_told_to_end()), *tasks}, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task.done():
                task.result()  # a device never ends: this is a bug of ours, and raises
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    runs = [[device.name, device.manifest_digest, device.is_complete] for device in devices]
    _write({"events": [], "counts": counts.to_json(), "runs": runs})


async def _told_to_end() -> None:
    """Wait for a line on stdin, or its end, in a thread that nothing waits for."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()

    def read() -> None:
        sys.stdin.readline()
        with contextlib.suppress(RuntimeError):  # the loop has ended before
            loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=read, daemon=True).start()
    await ended.wait()


async def _start(devices: Sequence[SwarmDevice], per_second: float) -> None:
    """Run all devices, started one after another."""
    async with asyncio.TaskGroup() as tasks:
        for number, device in enumerate(devices):
            tasks.create_task(device.run())
            if number % 50 == 0:
                await asyncio.sleep(50 / per_second)


async def _report(events: list[Told], counts: SwarmCounts) -> None:
    """Write what happened."""
    while True:
        await asyncio.sleep(REPORT_SECONDS)
        news = [[told.kind, told.version, told.manifest_digest, told.at_seconds] for told in events]
        events.clear()
        _write({"events": news, "counts": counts.to_json()})


def _write(record: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(record) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Run what stdin orders."""
    allow_many_files()
    asyncio.run(work(WorkerOrder.from_line(sys.stdin.readline())))


def allow_many_files() -> int:
    """Raise the number of files that this process and its children may open; return it."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most


if __name__ == "__main__":
    main()
