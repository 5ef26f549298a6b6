from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class BlobEncoding(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    BLOB_ENCODING_UNSPECIFIED: _ClassVar[BlobEncoding]
    BLOB_ENCODING_FULL: _ClassVar[BlobEncoding]
    BLOB_ENCODING_INT8_SUB_ZSTD: _ClassVar[BlobEncoding]
    BLOB_ENCODING_BSDIFF: _ClassVar[BlobEncoding]
    BLOB_ENCODING_BUNDLE: _ClassVar[BlobEncoding]
BLOB_ENCODING_UNSPECIFIED: BlobEncoding
BLOB_ENCODING_FULL: BlobEncoding
BLOB_ENCODING_INT8_SUB_ZSTD: BlobEncoding
BLOB_ENCODING_BSDIFF: BlobEncoding
BLOB_ENCODING_BUNDLE: BlobEncoding

class CheckRequest(_message.Message):
    __slots__ = ("device_class", "model_digest", "version", "manifest_digest")
    DEVICE_CLASS_FIELD_NUMBER: _ClassVar[int]
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_DIGEST_FIELD_NUMBER: _ClassVar[int]
    device_class: str
    model_digest: bytes
    version: int
    manifest_digest: bytes
    def __init__(self, device_class: _Optional[str] = ..., model_digest: _Optional[bytes] = ..., version: _Optional[int] = ..., manifest_digest: _Optional[bytes] = ...) -> None: ...

class CheckResponse(_message.Message):
    __slots__ = ("version", "manifest_digest", "fetch_after_seconds", "retry_after_seconds")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_DIGEST_FIELD_NUMBER: _ClassVar[int]
    FETCH_AFTER_SECONDS_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_SECONDS_FIELD_NUMBER: _ClassVar[int]
    version: int
    manifest_digest: bytes
    fetch_after_seconds: float
    retry_after_seconds: float
    def __init__(self, version: _Optional[int] = ..., manifest_digest: _Optional[bytes] = ..., fetch_after_seconds: _Optional[float] = ..., retry_after_seconds: _Optional[float] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("device_class", "model_digest", "version", "manifest_digest")
    DEVICE_CLASS_FIELD_NUMBER: _ClassVar[int]
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_DIGEST_FIELD_NUMBER: _ClassVar[int]
    device_class: str
    model_digest: bytes
    version: int
    manifest_digest: bytes
    def __init__(self, device_class: _Optional[str] = ..., model_digest: _Optional[bytes] = ..., version: _Optional[int] = ..., manifest_digest: _Optional[bytes] = ...) -> None: ...

class TargetChanged(_message.Message):
    __slots__ = ("version", "manifest_digest", "fetch_after_seconds", "retry_after_seconds", "silent_after_seconds")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_DIGEST_FIELD_NUMBER: _ClassVar[int]
    FETCH_AFTER_SECONDS_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_SECONDS_FIELD_NUMBER: _ClassVar[int]
    SILENT_AFTER_SECONDS_FIELD_NUMBER: _ClassVar[int]
    version: int
    manifest_digest: bytes
    fetch_after_seconds: float
    retry_after_seconds: float
    silent_after_seconds: float
    def __init__(self, version: _Optional[int] = ..., manifest_digest: _Optional[bytes] = ..., fetch_after_seconds: _Optional[float] = ..., retry_after_seconds: _Optional[float] = ..., silent_after_seconds: _Optional[float] = ...) -> None: ...

class FetchMetadataRequest(_message.Message):
    __slots__ = ("role", "version")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    role: str
    version: int
    def __init__(self, role: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class MetadataChunk(_message.Message):
    __slots__ = ("total_bytes", "data")
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    total_bytes: int
    data: bytes
    def __init__(self, total_bytes: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class FetchBlobsRequest(_message.Message):
    __slots__ = ("opening", "wanted")
    OPENING_FIELD_NUMBER: _ClassVar[int]
    WANTED_FIELD_NUMBER: _ClassVar[int]
    opening: FetchOpening
    wanted: BlobWanted
    def __init__(self, opening: _Optional[_Union[FetchOpening, _Mapping]] = ..., wanted: _Optional[_Union[BlobWanted, _Mapping]] = ...) -> None: ...

class FetchOpening(_message.Message):
    __slots__ = ("device_class", "model_digest", "held_digests", "accepted_encodings", "held_manifest_digests", "wanted")
    DEVICE_CLASS_FIELD_NUMBER: _ClassVar[int]
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    HELD_DIGESTS_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_ENCODINGS_FIELD_NUMBER: _ClassVar[int]
    HELD_MANIFEST_DIGESTS_FIELD_NUMBER: _ClassVar[int]
    WANTED_FIELD_NUMBER: _ClassVar[int]
    device_class: str
    model_digest: bytes
    held_digests: _containers.RepeatedScalarFieldContainer[bytes]
    accepted_encodings: _containers.RepeatedScalarFieldContainer[BlobEncoding]
    held_manifest_digests: _containers.RepeatedScalarFieldContainer[bytes]
    wanted: _containers.RepeatedCompositeFieldContainer[BlobWanted]
    def __init__(self, device_class: _Optional[str] = ..., model_digest: _Optional[bytes] = ..., held_digests: _Optional[_Iterable[bytes]] = ..., accepted_encodings: _Optional[_Iterable[_Union[BlobEncoding, str]]] = ..., held_manifest_digests: _Optional[_Iterable[bytes]] = ..., wanted: _Optional[_Iterable[_Union[BlobWanted, _Mapping]]] = ...) -> None: ...

class BlobWanted(_message.Message):
    __slots__ = ("digest", "offset_bytes", "payload_digest", "base_manifest_digest")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    OFFSET_BYTES_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_DIGEST_FIELD_NUMBER: _ClassVar[int]
    BASE_MANIFEST_DIGEST_FIELD_NUMBER: _ClassVar[int]
    digest: bytes
    offset_bytes: int
    payload_digest: bytes
    base_manifest_digest: bytes
    def __init__(self, digest: _Optional[bytes] = ..., offset_bytes: _Optional[int] = ..., payload_digest: _Optional[bytes] = ..., base_manifest_digest: _Optional[bytes] = ...) -> None: ...

class BlobChunk(_message.Message):
    __slots__ = ("payload", "offset_bytes", "data")
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    OFFSET_BYTES_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    payload: BlobPayload
    offset_bytes: int
    data: bytes
    def __init__(self, payload: _Optional[_Union[BlobPayload, _Mapping]] = ..., offset_bytes: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class BlobPayload(_message.Message):
    __slots__ = ("digest", "encoding", "base_digest", "total_bytes", "payload_digest")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    BASE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_DIGEST_FIELD_NUMBER: _ClassVar[int]
    digest: bytes
    encoding: BlobEncoding
    base_digest: bytes
    total_bytes: int
    payload_digest: bytes
    def __init__(self, digest: _Optional[bytes] = ..., encoding: _Optional[_Union[BlobEncoding, str]] = ..., base_digest: _Optional[bytes] = ..., total_bytes: _Optional[int] = ..., payload_digest: _Optional[bytes] = ...) -> None: ...
