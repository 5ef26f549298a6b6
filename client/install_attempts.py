"""What is reported of attempts to install a target."""

from client.slots import Target
from client.update_result import Outcome, Result
from protos.quantfleet.v1 import telemetry_pb2 as pb
from quantization.errors import MalformedError, QuantFleetError, UnreachableError, UpdateRejectedError

_OUTCOMES = {
    Outcome.INSTALLED: pb.INSTALL_OUTCOME_ACTIVATED,
    Outcome.ON_TRIAL: pb.INSTALL_OUTCOME_ACTIVATED,
    Outcome.CONFIRMED: pb.INSTALL_OUTCOME_CONFIRMED,
    Outcome.REVERTED: pb.INSTALL_OUTCOME_REVERTED,
    Outcome.REFUSED: pb.INSTALL_OUTCOME_SELF_TEST_FAILED,
}
_NOT_LOADED = (
    "cannot load",
    "killed the process",
    "was not done after",
    "does not run on zeros",
    "too little memory",
)
"""How reasons read where a graph did not come as far as giving wrong answers."""


def attempt_of(result: Result, seconds: float) -> pb.InstallAttempt | None:
    """Return what to report of a result; None where it is no end of an attempt.

    Args:
        result: What became of an update.
        seconds: That it took.
    """
    outcome = _OUTCOMES.get(result.outcome)
    if outcome is None or result.target is None or not result.target.version:
        return None
    if result.outcome is Outcome.REFUSED and any(words in result.reason for words in _NOT_LOADED):
        outcome = pb.INSTALL_OUTCOME_LOAD_FAILED
    return pb.InstallAttempt(
        version=result.target.version,
        manifest_digest=bytes.fromhex(result.target.manifest_digest),
        outcome=outcome,
        fetched_bytes=result.fetched_bytes,
        install_seconds=seconds,
    )


def failed_attempt(error: QuantFleetError, target: Target, seconds: float) -> pb.InstallAttempt:
    """Return what to report of an attempt that raised.

    Args:
        error: What it raised.
        target: Which was tried.
        seconds: That it took.
    """
    is_refused = isinstance(error, UpdateRejectedError | MalformedError) and not isinstance(
        error, UnreachableError
    )
    return pb.InstallAttempt(
        version=target.version,
        manifest_digest=bytes.fromhex(target.manifest_digest),
        outcome=pb.INSTALL_OUTCOME_NOT_TRUSTED if is_refused else pb.INSTALL_OUTCOME_FETCH_FAILED,
        install_seconds=seconds,
    )


def outcome_label(attempt: pb.InstallAttempt) -> str:
    """Return the outcome as metrics and logs have it, such as "self_test_failed"."""
    return pb.InstallOutcome.Name(attempt.outcome).removeprefix("INSTALL_OUTCOME_").lower()


OUTCOME_LABELS = tuple(
    name.removeprefix("INSTALL_OUTCOME_").lower() for name, value in pb.InstallOutcome.items() if value
)
"""Every outcome, as metrics and logs have it."""
