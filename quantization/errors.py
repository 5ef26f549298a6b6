"""Every error Quantfleet raises on purpose, as one tree.

Names say what is wrong with the world; messages give the expected and the actual value, and the remedy
where there is one. Only the outermost shell catches `QuantFleetError`: a command line turns it into one
line on stderr and an exit code, a service into a status.
"""


class QuantFleetError(Exception):
    """Base of all errors that Quantfleet raises on purpose."""


class ConfigurationError(QuantFleetError):
    """A setting, an argument or a scenario that cannot be used as given."""


class InvalidDataError(ConfigurationError):
    """A data file or an array of inputs that cannot be used: wrong shape, pickled, not finite."""


class UnsupportedModelError(QuantFleetError):
    """An ONNX model that cannot be read, or that holds nothing Quantfleet can quantize."""


class IncompatibleStatsError(QuantFleetError):
    """Statistics with different parameters, which no merge can make one of."""


class MalformedError(QuantFleetError):
    """Bytes or arrays from outside that are not what their format says."""


class UnreachableError(QuantFleetError):
    """A service that cannot be reached, or a stream of it that broke; it can be tried again.

    `retry_after_seconds` is how long the service asks to wait before that; 0 where it did not say.
    """

    def __init__(self, message: str = "", retry_after_seconds: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class RoundFailedError(QuantFleetError):
    """A round that ended without the quorum of replies it needed."""


class NotFoundError(QuantFleetError):
    """A model, generation or blob that the registry or the store does not hold."""


class IllegalTransitionError(QuantFleetError):
    """An event that a state machine does not know in the present state."""


class OverloadedError(QuantFleetError):
    """More is asked than can be given now; `retry_after_seconds` says how long to wait before asking again."""

    def __init__(self, message: str, retry_after_seconds: float) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class UnauthenticatedError(QuantFleetError):
    """A caller that cannot show who it is: no certificate, a revoked or expired one, a token that is not good."""


class ForbiddenError(QuantFleetError):
    """A caller that is known, and may not do what it asks."""


class UpdateRejectedError(QuantFleetError):
    """An update that the device refuses; the model it has keeps serving."""


class DigestMismatchError(UpdateRejectedError):
    """Content whose SHA-256 is not the one its name promises."""


class StaleVersionError(UpdateRejectedError):
    """An update older than what the device already has."""
