"""A swarm's result on a terminal."""

from rich.console import Console
from rich.text import Text

from simulation.summary import format_bytes
from simulation.swarm_result import Spread, SwarmResult
from simulation.terminal import print_table

_MOST_NAMED = 10


def print_swarm(result: SwarmResult, console: Console) -> None:
    """Print a table of versions, then what it took and what went wrong."""
    heads = ("version", "told", "median", "last", "up to date", "median", "last", "received", "changes")
    rows = [
        (
            str(version.version),
            *_cells(version.told),
            *_cells(version.current),
            format_bytes(version.received_bytes),
            version.changes,
        )
        for version in result.versions
    ]
    print_table(heads, rows, console)
    for sentence in _sentences(result):
        console.print(Text(sentence), soft_wrap=True)


def _cells(spread: Spread) -> tuple[str, str, str]:
    return f"{spread.devices:,}", f"{spread.median_seconds:.2f} s", f"{spread.max_seconds:.2f} s"


def _sentences(result: SwarmResult) -> list[str]:
    errors = ", ".join(f"{kind} {count:,}" for kind, count in sorted(result.errors.items())) or "none"
    wrong = list(result.wrong_devices.items())
    received = f"{format_bytes(result.received_bytes)} received"
    again = (
        f"{format_bytes(result.refetched_bytes)} for {result.refetched_payloads:,} payloads had come before"
    )
    peak, cpu = f"{result.server.peak_rss_bytes / (1 << 20):.0f} MiB", f"{result.server.cpu_seconds:.1f} s"
    return [
        f"{result.devices:,} devices in {result.wall_seconds:.1f} s; faults: {result.faults or 'none'}.",
        f"Calls that failed and were made again: {errors}.",
        f"Blobs verified: {result.verified_blobs:,}; {received}, of which {again}.",
        f"Server: {peak} at most, {cpu} of processor time, killed {result.server.kills} times.",
        *(f"{name} {reason}." for name, reason in wrong[:_MOST_NAMED]),
        f"{len(wrong):,} devices ended wrong." if wrong else "All devices run the last version, verified.",
    ]
