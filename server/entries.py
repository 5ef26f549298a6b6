"""Facts that the registry holds, apart from generations (`server.generation`)."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Model:
    """A canonical float model.

    Attributes:
        digest: SHA-256 of its bytes, hex; the blob of this name holds them.
        name: What operators call it; several models may have had the same name.
        size_bytes: Length of its bytes.
        created_at_seconds: When it was registered, seconds since 1970 (UTC); 0 before that.
    """

    digest: str
    name: str
    size_bytes: int
    created_at_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Lab:
    """What the lab measured on one model, as one device class runs it.

    Attributes:
        model_digest: The model.
        device_class: Name of the class.
        statistics_digest: Blob with references and histograms (`server.lab_statistics`).
        inputs: Inputs measured.
    """

    model_digest: str
    device_class: str
    statistics_digest: str
    inputs: int


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One change of the registry.

    Attributes:
        at_seconds: When, seconds since 1970 (UTC).
        action: What was done, as one word.
        subject: To what.
        detail: More, as JSON.
    """

    at_seconds: float
    action: str
    subject: str
    detail: str
