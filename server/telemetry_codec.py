"""Telemetry counts as JSON text, the form in which the registry keeps them."""

import json
from dataclasses import asdict

from quantization.errors import MalformedError
from server.telemetry_counts import TelemetryCounts


def counts_to_json(counts: TelemetryCounts) -> str:
    """Return every field as JSON; latencies as pairs of bucket and count."""
    fields = asdict(counts)
    fields["latency"] = [[bucket, count] for bucket, count in enumerate(counts.latency) if count]
    return json.dumps(fields, sort_keys=True)


def counts_from_json(text: str) -> TelemetryCounts:
    """Return the counts that `counts_to_json` wrote.

    Raises:
        MalformedError: If the text is not one that `counts_to_json` can have written.
    """
    try:
        fields = json.loads(text)
        latency = [0] * len(TelemetryCounts().latency)
        for bucket, count in fields.pop("latency"):
            latency[bucket] = count
        return TelemetryCounts(**fields, latency=tuple(latency))
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise MalformedError(f"telemetry counts cannot be read: {error}") from error
