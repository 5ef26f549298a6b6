"""What operators are shown: answers of the admin service as JSON and as tables."""

import time
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from protos.quantfleet.v1 import admin_pb2 as pb
from quantization.printable import printable
from server.cli_common import table_of

_UNKNOWN = "-"
_MINUTE, _HOUR, _DAY = 60, 3600, 86_400


def rollout_json(rollout: pb.Rollout) -> dict[str, Any]:
    """Return a rollout as JSON has it."""
    return {
        "rollout_id": rollout.rollout_id,
        "model_digest": rollout.model_digest.hex(),
        "device_class": rollout.device_class,
        "version": rollout.version,
        "generation": rollout.generation,
        "manifest_digest": rollout.manifest_digest.hex(),
        "base_version": rollout.base_version,
        "phase": phase_name(rollout.phase),
        "share_ratio": rollout.share_ratio,
        "devices": rollout.devices,
        "opened_at_seconds": rollout.opened_at_seconds,
        "changed_at_seconds": rollout.changed_at_seconds,
        "reason": rollout.reason,
    }


def status_json(status: pb.StatusResponse) -> dict[str, Any]:
    """Return what is served as JSON has it."""
    return {
        "targets": [
            {
                "model_name": target.model_name,
                "model_digest": target.model_digest.hex(),
                "device_class": target.device_class,
                "version": target.version,
                "generation": target.generation,
                "manifest_digest": target.manifest_digest.hex(),
                "rollout": rollout_json(target.rollout) if target.HasField("rollout") else None,
            }
            for target in status.targets
        ],
        "watchers": status.watchers,
        "uptime_seconds": status.uptime_seconds,
        "software_version": status.software_version,
    }


def shown_json(shown: pb.ShowRolloutResponse) -> dict[str, Any]:
    """Return one rollout with all that is known of it as JSON has it."""
    return {
        **rollout_json(shown.rollout),
        "events": [
            {
                "at_seconds": event.at_seconds,
                "action": event.action,
                "actor": event.actor,
                "phase": phase_name(event.phase),
                "share_ratio": event.share_ratio,
                "detail": event.detail,
            }
            for event in shown.events
        ],
        "evidence": [
            {
                "rule": row.rule,
                "target_value": row.target_value if row.target_count else None,
                "base_value": row.base_value if row.base_count else None,
                "target_count": row.target_count,
                "base_count": row.base_count,
                "verdict": pb.Verdict.Name(row.verdict).removeprefix("VERDICT_").lower(),
            }
            for row in shown.evidence
        ],
    }


def phase_name(phase: int) -> str:
    """Return a phase as one word; empty if it is not known."""
    name = pb.RolloutPhase.Name(phase).removeprefix("ROLLOUT_PHASE_").lower()
    return "" if name == "unspecified" else name


def status_view(status: pb.StatusResponse) -> RenderableType:
    """Return what is served as a table."""
    heads = ("model", "class", "version", "generation", "rollout", "phase", "share", "devices", "why")
    rows = []
    for target in status.targets:
        row = [target.model_name, target.device_class, str(target.version), str(target.generation)]
        if target.HasField("rollout"):
            one = target.rollout
            row += [one.rollout_id, f"{phase_name(one.phase)} v{one.version}", f"{one.share_ratio:.1%}"]
            row += [str(one.devices), one.reason]
        else:
            row += [_UNKNOWN] * 4 + [""]
        rows.append(row)
    watching = "1 device watches" if status.watchers == 1 else f"{status.watchers} devices watch"
    up = f"up for {duration(status.uptime_seconds)} · {watching} · version {status.software_version}"
    if not rows:
        return Group(Text("nothing is published yet"), Text(printable(up), style="dim"))
    return Group(table_of(heads, rows), Text(printable(up), style="dim"))


def rollouts_view(rollouts: list[pb.Rollout]) -> RenderableType:
    """Return rollouts as a table."""
    heads = ("rollout", "class", "version", "generation", "phase", "share", "devices", "opened", "why")
    rows = [
        (
            one.rollout_id,
            one.device_class,
            f"{one.base_version} → {one.version}",
            str(one.generation),
            phase_name(one.phase),
            f"{one.share_ratio:.1%}",
            str(one.devices),
            moment(one.opened_at_seconds),
            one.reason,
        )
        for one in rollouts
    ]
    return table_of(heads, rows) if rows else Text("no rollouts")


def shown_view(shown: pb.ShowRolloutResponse) -> RenderableType:
    """Return one rollout with its evidence and its history."""
    one = shown.rollout
    evidence = [
        (
            row.rule,
            _value(row.rule, row.target_value, row.target_count),
            _value(row.rule, row.base_value, row.base_count),
            str(row.target_count),
            str(row.base_count),
            pb.Verdict.Name(row.verdict).removeprefix("VERDICT_").lower().replace("_", " "),
        )
        for row in shown.evidence
    ]
    events = [
        (
            moment(event.at_seconds),
            event.action,
            event.actor or _UNKNOWN,
            phase_name(event.phase) or _UNKNOWN,
            f"{event.share_ratio:.1%}",
            event.detail,
        )
        for event in shown.events
    ]
    return Group(
        rollouts_view([one]),
        Text(printable(f"manifest {one.manifest_digest.hex()}"), style="dim"),
        table_of(("rule", "new version", "base version", "new n", "base n", "verdict"), evidence),
        table_of(("when", "what", "who", "phase", "share", "why"), events),
    )


def _value(rule: str, value: float, count: int) -> str:
    if not count:
        return _UNKNOWN
    if rule.endswith("_seconds"):
        return f"{1000 * value:.2f} ms"
    return f"{value / 1e6:.1f} MB" if rule.endswith("_bytes") else f"{value:.2%}"


def moment(seconds: float) -> str:
    """Return a time for people, in their zone."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if seconds else _UNKNOWN


def duration(seconds: float) -> str:
    """Return a duration for people."""
    for unit, name in ((_DAY, "d"), (_HOUR, "h"), (_MINUTE, "min")):
        if seconds >= unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.0f} s"
