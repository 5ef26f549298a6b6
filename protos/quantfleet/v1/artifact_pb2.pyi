from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DataType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DATA_TYPE_UNSPECIFIED: _ClassVar[DataType]
    DATA_TYPE_BYTES: _ClassVar[DataType]
    DATA_TYPE_INT8: _ClassVar[DataType]
    DATA_TYPE_UINT8: _ClassVar[DataType]
    DATA_TYPE_INT32: _ClassVar[DataType]
    DATA_TYPE_INT64: _ClassVar[DataType]
    DATA_TYPE_FLOAT32: _ClassVar[DataType]
    DATA_TYPE_FLOAT16: _ClassVar[DataType]
    DATA_TYPE_UINT16: _ClassVar[DataType]
DATA_TYPE_UNSPECIFIED: DataType
DATA_TYPE_BYTES: DataType
DATA_TYPE_INT8: DataType
DATA_TYPE_UINT8: DataType
DATA_TYPE_INT32: DataType
DATA_TYPE_INT64: DataType
DATA_TYPE_FLOAT32: DataType
DATA_TYPE_FLOAT16: DataType
DATA_TYPE_UINT16: DataType

class Manifest(_message.Message):
    __slots__ = ("format_version", "model_digest", "device_class", "generation", "stages")
    FORMAT_VERSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    DEVICE_CLASS_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    format_version: int
    model_digest: bytes
    device_class: str
    generation: int
    stages: _containers.RepeatedCompositeFieldContainer[Stage]
    def __init__(self, format_version: _Optional[int] = ..., model_digest: _Optional[bytes] = ..., device_class: _Optional[str] = ..., generation: _Optional[int] = ..., stages: _Optional[_Iterable[_Union[Stage, _Mapping]]] = ...) -> None: ...

class Stage(_message.Message):
    __slots__ = ("name", "input", "outputs", "skeleton", "files", "plain", "normalizing", "reference_files", "layers", "sites", "self_test")
    NAME_FIELD_NUMBER: _ClassVar[int]
    INPUT_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    SKELETON_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    PLAIN_FIELD_NUMBER: _ClassVar[int]
    NORMALIZING_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_FILES_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    SITES_FIELD_NUMBER: _ClassVar[int]
    SELF_TEST_FIELD_NUMBER: _ClassVar[int]
    name: str
    input: TensorSpec
    outputs: _containers.RepeatedScalarFieldContainer[str]
    skeleton: Blob
    files: _containers.RepeatedCompositeFieldContainer[Blob]
    plain: Blob
    normalizing: Blob
    reference_files: _containers.RepeatedCompositeFieldContainer[Blob]
    layers: _containers.RepeatedCompositeFieldContainer[ObservedLayer]
    sites: _containers.RepeatedScalarFieldContainer[str]
    self_test: Blob
    def __init__(self, name: _Optional[str] = ..., input: _Optional[_Union[TensorSpec, _Mapping]] = ..., outputs: _Optional[_Iterable[str]] = ..., skeleton: _Optional[_Union[Blob, _Mapping]] = ..., files: _Optional[_Iterable[_Union[Blob, _Mapping]]] = ..., plain: _Optional[_Union[Blob, _Mapping]] = ..., normalizing: _Optional[_Union[Blob, _Mapping]] = ..., reference_files: _Optional[_Iterable[_Union[Blob, _Mapping]]] = ..., layers: _Optional[_Iterable[_Union[ObservedLayer, _Mapping]]] = ..., sites: _Optional[_Iterable[str]] = ..., self_test: _Optional[_Union[Blob, _Mapping]] = ...) -> None: ...

class TensorSpec(_message.Message):
    __slots__ = ("name", "data_type", "shape")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DATA_TYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    name: str
    data_type: DataType
    shape: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, name: _Optional[str] = ..., data_type: _Optional[_Union[DataType, str]] = ..., shape: _Optional[_Iterable[int]] = ...) -> None: ...

class Blob(_message.Message):
    __slots__ = ("location", "digest", "data_type", "shape", "bit_width", "stored_size_bytes")
    LOCATION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    DATA_TYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    BIT_WIDTH_FIELD_NUMBER: _ClassVar[int]
    STORED_SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    location: str
    digest: bytes
    data_type: DataType
    shape: _containers.RepeatedScalarFieldContainer[int]
    bit_width: int
    stored_size_bytes: int
    def __init__(self, location: _Optional[str] = ..., digest: _Optional[bytes] = ..., data_type: _Optional[_Union[DataType, str]] = ..., shape: _Optional[_Iterable[int]] = ..., bit_width: _Optional[int] = ..., stored_size_bytes: _Optional[int] = ...) -> None: ...

class ObservedLayer(_message.Message):
    __slots__ = ("name", "channels", "reference")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CHANNELS_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    name: str
    channels: int
    reference: ReferenceSlot
    def __init__(self, name: _Optional[str] = ..., channels: _Optional[int] = ..., reference: _Optional[_Union[ReferenceSlot, _Mapping]] = ...) -> None: ...

class ReferenceSlot(_message.Message):
    __slots__ = ("mean_offset_bytes", "std_offset_bytes", "count_offset_bytes")
    MEAN_OFFSET_BYTES_FIELD_NUMBER: _ClassVar[int]
    STD_OFFSET_BYTES_FIELD_NUMBER: _ClassVar[int]
    COUNT_OFFSET_BYTES_FIELD_NUMBER: _ClassVar[int]
    mean_offset_bytes: int
    std_offset_bytes: int
    count_offset_bytes: int
    def __init__(self, mean_offset_bytes: _Optional[int] = ..., std_offset_bytes: _Optional[int] = ..., count_offset_bytes: _Optional[int] = ...) -> None: ...
