"""Results of `quantfleet-client` as rows of a name and a value."""

from client.benching import BenchResult, Latency
from client.device_status import DeviceStatus
from client.slots import Target


def status_rows(status: DeviceStatus) -> list[tuple[str, str]]:
    """Return a device's status as rows."""
    rows = [
        ("device", status.device or "-"),
        ("class", status.device_class or "-"),
        ("model", status.model_digest[:12] or "-"),
        ("phase", status.phase),
        ("serving", _target(status.serving)),
        ("generation", str(status.generation) if status.serving else "-"),
        ("fallback", _target(status.fallback)),
        ("refused", f"version {status.refused_version}" if status.refused_version else "-"),
        ("store", f"{status.store_bytes:,} bytes"),
    ]
    if not status.is_running:
        return [*rows, ("agent", "does not run")]
    return [
        *rows,
        ("agent", f"runs since {status.uptime_seconds:,.0f} s, {status.rss_bytes / 1e6:.0f} MB"),
        ("server", "connected" if status.is_connected else "not connected"),
        ("samples", f"{status.samples:,}"),
        ("failures", f"{status.failures:,}"),
        ("reports", f"{status.spooled_reports} waiting"),
        ("last error", status.last_error or "-"),
    ]


def bench_rows(result: BenchResult) -> list[tuple[str, str]]:
    """Return a measurement as rows."""
    rows = [
        (
            "model",
            f"generation {result.generation}, class {result.device_class}, {result.size_bytes:,} bytes",
        ),
        ("runs", f"{result.runs} of one input, {result.threads} threads"),
    ]
    rows.append(("int8", _latency(result.int8)))
    if result.plain is not None:
        rows.append(("float", _latency(result.plain)))
        rows.append(
            ("ratio", f"{result.int8.p50_seconds / result.plain.p50_seconds:.2f} of the float model's p50")
        )
    else:
        rows.append(("float", "the artifact has no observation graph"))
    rows += [
        ("swap", f"{result.swap_seconds * 1e3:.1f} ms in the background"),
        ("memory", f"{result.rss_bytes / 1e6:.1f} MB resident, {result.peak_rss_bytes / 1e6:.1f} MB at most"),
    ]
    return rows


def _latency(latency: Latency) -> str:
    quantiles = (("p50", latency.p50_seconds), ("p95", latency.p95_seconds), ("p99", latency.p99_seconds))
    return ", ".join(f"{name} {seconds * 1e3:.3f} ms" for name, seconds in quantiles)


def _target(target: Target | None) -> str:
    return "-" if target is None else f"version {target.version} ({target.manifest_digest[:12]})"
