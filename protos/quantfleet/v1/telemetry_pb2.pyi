from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Judge(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    JUDGE_UNSPECIFIED: _ClassVar[Judge]
    JUDGE_FLOAT_MODEL: _ClassVar[Judge]
    JUDGE_CORRECTED_FLOAT_MODEL: _ClassVar[Judge]
    JUDGE_PREVIOUS_ARTIFACT: _ClassVar[Judge]

class InstallOutcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    INSTALL_OUTCOME_UNSPECIFIED: _ClassVar[InstallOutcome]
    INSTALL_OUTCOME_ACTIVATED: _ClassVar[InstallOutcome]
    INSTALL_OUTCOME_CONFIRMED: _ClassVar[InstallOutcome]
    INSTALL_OUTCOME_REVERTED: _ClassVar[InstallOutcome]
    INSTALL_OUTCOME_FETCH_FAILED: _ClassVar[InstallOutcome]
    INSTALL_OUTCOME_NOT_TRUSTED: _ClassVar[InstallOutcome]
    INSTALL_OUTCOME_LOAD_FAILED: _ClassVar[InstallOutcome]
    INSTALL_OUTCOME_SELF_TEST_FAILED: _ClassVar[InstallOutcome]
JUDGE_UNSPECIFIED: Judge
JUDGE_FLOAT_MODEL: Judge
JUDGE_CORRECTED_FLOAT_MODEL: Judge
JUDGE_PREVIOUS_ARTIFACT: Judge
INSTALL_OUTCOME_UNSPECIFIED: InstallOutcome
INSTALL_OUTCOME_ACTIVATED: InstallOutcome
INSTALL_OUTCOME_CONFIRMED: InstallOutcome
INSTALL_OUTCOME_REVERTED: InstallOutcome
INSTALL_OUTCOME_FETCH_FAILED: InstallOutcome
INSTALL_OUTCOME_NOT_TRUSTED: InstallOutcome
INSTALL_OUTCOME_LOAD_FAILED: InstallOutcome
INSTALL_OUTCOME_SELF_TEST_FAILED: InstallOutcome

class ReportRequest(_message.Message):
    __slots__ = ("reports",)
    REPORTS_FIELD_NUMBER: _ClassVar[int]
    reports: _containers.RepeatedCompositeFieldContainer[TelemetryReport]
    def __init__(self, reports: _Optional[_Iterable[_Union[TelemetryReport, _Mapping]]] = ...) -> None: ...

class ReportResponse(_message.Message):
    __slots__ = ("stored_sequence", "retry_after_seconds")
    STORED_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_SECONDS_FIELD_NUMBER: _ClassVar[int]
    stored_sequence: int
    retry_after_seconds: float
    def __init__(self, stored_sequence: _Optional[int] = ..., retry_after_seconds: _Optional[float] = ...) -> None: ...

class TelemetryReport(_message.Message):
    __slots__ = ("sequence", "model_digest", "device_class", "version", "generation", "manifest_digest", "covered_seconds", "counts", "latency", "memory", "installs")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    DEVICE_CLASS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_DIGEST_FIELD_NUMBER: _ClassVar[int]
    COVERED_SECONDS_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    LATENCY_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    INSTALLS_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    model_digest: bytes
    device_class: str
    version: int
    generation: int
    manifest_digest: bytes
    covered_seconds: float
    counts: TelemetryCounts
    latency: LatencyHistogram
    memory: MemoryUse
    installs: _containers.RepeatedCompositeFieldContainer[InstallAttempt]
    def __init__(self, sequence: _Optional[int] = ..., model_digest: _Optional[bytes] = ..., device_class: _Optional[str] = ..., version: _Optional[int] = ..., generation: _Optional[int] = ..., manifest_digest: _Optional[bytes] = ..., covered_seconds: _Optional[float] = ..., counts: _Optional[_Union[TelemetryCounts, _Mapping]] = ..., latency: _Optional[_Union[LatencyHistogram, _Mapping]] = ..., memory: _Optional[_Union[MemoryUse, _Mapping]] = ..., installs: _Optional[_Iterable[_Union[InstallAttempt, _Mapping]]] = ...) -> None: ...

class TelemetryCounts(_message.Message):
    __slots__ = ("samples", "failures", "labelled", "hits", "judged", "agreements", "judge", "observed_values", "clipped_values", "load_failures")
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    FAILURES_FIELD_NUMBER: _ClassVar[int]
    LABELLED_FIELD_NUMBER: _ClassVar[int]
    HITS_FIELD_NUMBER: _ClassVar[int]
    JUDGED_FIELD_NUMBER: _ClassVar[int]
    AGREEMENTS_FIELD_NUMBER: _ClassVar[int]
    JUDGE_FIELD_NUMBER: _ClassVar[int]
    OBSERVED_VALUES_FIELD_NUMBER: _ClassVar[int]
    CLIPPED_VALUES_FIELD_NUMBER: _ClassVar[int]
    LOAD_FAILURES_FIELD_NUMBER: _ClassVar[int]
    samples: int
    failures: int
    labelled: int
    hits: int
    judged: int
    agreements: int
    judge: Judge
    observed_values: int
    clipped_values: int
    load_failures: int
    def __init__(self, samples: _Optional[int] = ..., failures: _Optional[int] = ..., labelled: _Optional[int] = ..., hits: _Optional[int] = ..., judged: _Optional[int] = ..., agreements: _Optional[int] = ..., judge: _Optional[_Union[Judge, str]] = ..., observed_values: _Optional[int] = ..., clipped_values: _Optional[int] = ..., load_failures: _Optional[int] = ...) -> None: ...

class LatencyHistogram(_message.Message):
    __slots__ = ("counts", "sum_microseconds")
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    SUM_MICROSECONDS_FIELD_NUMBER: _ClassVar[int]
    counts: _containers.RepeatedScalarFieldContainer[int]
    sum_microseconds: int
    def __init__(self, counts: _Optional[_Iterable[int]] = ..., sum_microseconds: _Optional[int] = ...) -> None: ...

class MemoryUse(_message.Message):
    __slots__ = ("peak_rss_bytes", "store_bytes")
    PEAK_RSS_BYTES_FIELD_NUMBER: _ClassVar[int]
    STORE_BYTES_FIELD_NUMBER: _ClassVar[int]
    peak_rss_bytes: int
    store_bytes: int
    def __init__(self, peak_rss_bytes: _Optional[int] = ..., store_bytes: _Optional[int] = ...) -> None: ...

class InstallAttempt(_message.Message):
    __slots__ = ("version", "manifest_digest", "outcome", "fetched_bytes", "install_seconds")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_DIGEST_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    FETCHED_BYTES_FIELD_NUMBER: _ClassVar[int]
    INSTALL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    version: int
    manifest_digest: bytes
    outcome: InstallOutcome
    fetched_bytes: int
    install_seconds: float
    def __init__(self, version: _Optional[int] = ..., manifest_digest: _Optional[bytes] = ..., outcome: _Optional[_Union[InstallOutcome, str]] = ..., fetched_bytes: _Optional[int] = ..., install_seconds: _Optional[float] = ...) -> None: ...
