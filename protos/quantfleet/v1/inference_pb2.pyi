from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Tensor(_message.Message):
    __slots__ = ("shape", "data")
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    shape: _containers.RepeatedScalarFieldContainer[int]
    data: bytes
    def __init__(self, shape: _Optional[_Iterable[int]] = ..., data: _Optional[bytes] = ...) -> None: ...

class InferRequest(_message.Message):
    __slots__ = ("input",)
    INPUT_FIELD_NUMBER: _ClassVar[int]
    input: Tensor
    def __init__(self, input: _Optional[_Union[Tensor, _Mapping]] = ...) -> None: ...

class InferResponse(_message.Message):
    __slots__ = ("output", "version", "generation", "first_sample_id")
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    FIRST_SAMPLE_ID_FIELD_NUMBER: _ClassVar[int]
    output: Tensor
    version: int
    generation: int
    first_sample_id: int
    def __init__(self, output: _Optional[_Union[Tensor, _Mapping]] = ..., version: _Optional[int] = ..., generation: _Optional[int] = ..., first_sample_id: _Optional[int] = ...) -> None: ...

class LabelRequest(_message.Message):
    __slots__ = ("sample_id", "class_index")
    SAMPLE_ID_FIELD_NUMBER: _ClassVar[int]
    CLASS_INDEX_FIELD_NUMBER: _ClassVar[int]
    sample_id: int
    class_index: int
    def __init__(self, sample_id: _Optional[int] = ..., class_index: _Optional[int] = ...) -> None: ...

class LabelResponse(_message.Message):
    __slots__ = ("is_hit",)
    IS_HIT_FIELD_NUMBER: _ClassVar[int]
    is_hit: bool
    def __init__(self, is_hit: _Optional[bool] = ...) -> None: ...

class DeviceStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DeviceStatusResponse(_message.Message):
    __slots__ = ("device", "device_class", "model_digest", "phase", "serving", "fallback", "refused_version", "generation", "is_connected", "samples", "failures", "spooled_reports", "store_bytes", "last_error", "rss_bytes", "uptime_seconds")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_CLASS_FIELD_NUMBER: _ClassVar[int]
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    SERVING_FIELD_NUMBER: _ClassVar[int]
    FALLBACK_FIELD_NUMBER: _ClassVar[int]
    REFUSED_VERSION_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    IS_CONNECTED_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    FAILURES_FIELD_NUMBER: _ClassVar[int]
    SPOOLED_REPORTS_FIELD_NUMBER: _ClassVar[int]
    STORE_BYTES_FIELD_NUMBER: _ClassVar[int]
    LAST_ERROR_FIELD_NUMBER: _ClassVar[int]
    RSS_BYTES_FIELD_NUMBER: _ClassVar[int]
    UPTIME_SECONDS_FIELD_NUMBER: _ClassVar[int]
    device: str
    device_class: str
    model_digest: bytes
    phase: str
    serving: DeviceTarget
    fallback: DeviceTarget
    refused_version: int
    generation: int
    is_connected: bool
    samples: int
    failures: int
    spooled_reports: int
    store_bytes: int
    last_error: str
    rss_bytes: int
    uptime_seconds: float
    def __init__(self, device: _Optional[str] = ..., device_class: _Optional[str] = ..., model_digest: _Optional[bytes] = ..., phase: _Optional[str] = ..., serving: _Optional[_Union[DeviceTarget, _Mapping]] = ..., fallback: _Optional[_Union[DeviceTarget, _Mapping]] = ..., refused_version: _Optional[int] = ..., generation: _Optional[int] = ..., is_connected: _Optional[bool] = ..., samples: _Optional[int] = ..., failures: _Optional[int] = ..., spooled_reports: _Optional[int] = ..., store_bytes: _Optional[int] = ..., last_error: _Optional[str] = ..., rss_bytes: _Optional[int] = ..., uptime_seconds: _Optional[float] = ...) -> None: ...

class DeviceTarget(_message.Message):
    __slots__ = ("version", "manifest_digest")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_DIGEST_FIELD_NUMBER: _ClassVar[int]
    version: int
    manifest_digest: bytes
    def __init__(self, version: _Optional[int] = ..., manifest_digest: _Optional[bytes] = ...) -> None: ...

class RollBackDeviceRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RollBackDeviceResponse(_message.Message):
    __slots__ = ("left_version", "serving")
    LEFT_VERSION_FIELD_NUMBER: _ClassVar[int]
    SERVING_FIELD_NUMBER: _ClassVar[int]
    left_version: int
    serving: DeviceTarget
    def __init__(self, left_version: _Optional[int] = ..., serving: _Optional[_Union[DeviceTarget, _Mapping]] = ...) -> None: ...
