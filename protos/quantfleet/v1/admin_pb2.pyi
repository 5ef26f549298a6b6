from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RolloutPhase(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROLLOUT_PHASE_UNSPECIFIED: _ClassVar[RolloutPhase]
    ROLLOUT_PHASE_CANARY: _ClassVar[RolloutPhase]
    ROLLOUT_PHASE_EXPANDING: _ClassVar[RolloutPhase]
    ROLLOUT_PHASE_PAUSED: _ClassVar[RolloutPhase]
    ROLLOUT_PHASE_COMPLETE: _ClassVar[RolloutPhase]
    ROLLOUT_PHASE_ROLLED_BACK: _ClassVar[RolloutPhase]

class Verdict(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VERDICT_UNSPECIFIED: _ClassVar[Verdict]
    VERDICT_UNDECIDED: _ClassVar[Verdict]
    VERDICT_NOT_WORSE: _ClassVar[Verdict]
    VERDICT_WORSE: _ClassVar[Verdict]
ROLLOUT_PHASE_UNSPECIFIED: RolloutPhase
ROLLOUT_PHASE_CANARY: RolloutPhase
ROLLOUT_PHASE_EXPANDING: RolloutPhase
ROLLOUT_PHASE_PAUSED: RolloutPhase
ROLLOUT_PHASE_COMPLETE: RolloutPhase
ROLLOUT_PHASE_ROLLED_BACK: RolloutPhase
VERDICT_UNSPECIFIED: Verdict
VERDICT_UNDECIDED: Verdict
VERDICT_NOT_WORSE: Verdict
VERDICT_WORSE: Verdict

class Rollout(_message.Message):
    __slots__ = ("rollout_id", "model_digest", "device_class", "version", "generation", "manifest_digest", "base_version", "phase", "share_ratio", "devices", "opened_at_seconds", "changed_at_seconds", "reason")
    ROLLOUT_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    DEVICE_CLASS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_DIGEST_FIELD_NUMBER: _ClassVar[int]
    BASE_VERSION_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    SHARE_RATIO_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    OPENED_AT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    CHANGED_AT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    rollout_id: str
    model_digest: bytes
    device_class: str
    version: int
    generation: int
    manifest_digest: bytes
    base_version: int
    phase: RolloutPhase
    share_ratio: float
    devices: int
    opened_at_seconds: float
    changed_at_seconds: float
    reason: str
    def __init__(self, rollout_id: _Optional[str] = ..., model_digest: _Optional[bytes] = ..., device_class: _Optional[str] = ..., version: _Optional[int] = ..., generation: _Optional[int] = ..., manifest_digest: _Optional[bytes] = ..., base_version: _Optional[int] = ..., phase: _Optional[_Union[RolloutPhase, str]] = ..., share_ratio: _Optional[float] = ..., devices: _Optional[int] = ..., opened_at_seconds: _Optional[float] = ..., changed_at_seconds: _Optional[float] = ..., reason: _Optional[str] = ...) -> None: ...

class RolloutEvent(_message.Message):
    __slots__ = ("at_seconds", "action", "actor", "phase", "share_ratio", "detail")
    AT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    SHARE_RATIO_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    at_seconds: float
    action: str
    actor: str
    phase: RolloutPhase
    share_ratio: float
    detail: str
    def __init__(self, at_seconds: _Optional[float] = ..., action: _Optional[str] = ..., actor: _Optional[str] = ..., phase: _Optional[_Union[RolloutPhase, str]] = ..., share_ratio: _Optional[float] = ..., detail: _Optional[str] = ...) -> None: ...

class RolloutEvidence(_message.Message):
    __slots__ = ("rule", "target_value", "base_value", "target_count", "base_count", "verdict")
    RULE_FIELD_NUMBER: _ClassVar[int]
    TARGET_VALUE_FIELD_NUMBER: _ClassVar[int]
    BASE_VALUE_FIELD_NUMBER: _ClassVar[int]
    TARGET_COUNT_FIELD_NUMBER: _ClassVar[int]
    BASE_COUNT_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    rule: str
    target_value: float
    base_value: float
    target_count: int
    base_count: int
    verdict: Verdict
    def __init__(self, rule: _Optional[str] = ..., target_value: _Optional[float] = ..., base_value: _Optional[float] = ..., target_count: _Optional[int] = ..., base_count: _Optional[int] = ..., verdict: _Optional[_Union[Verdict, str]] = ...) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatusResponse(_message.Message):
    __slots__ = ("targets", "watchers", "uptime_seconds", "software_version")
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    WATCHERS_FIELD_NUMBER: _ClassVar[int]
    UPTIME_SECONDS_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_VERSION_FIELD_NUMBER: _ClassVar[int]
    targets: _containers.RepeatedCompositeFieldContainer[ServedTarget]
    watchers: int
    uptime_seconds: float
    software_version: str
    def __init__(self, targets: _Optional[_Iterable[_Union[ServedTarget, _Mapping]]] = ..., watchers: _Optional[int] = ..., uptime_seconds: _Optional[float] = ..., software_version: _Optional[str] = ...) -> None: ...

class ServedTarget(_message.Message):
    __slots__ = ("model_name", "model_digest", "device_class", "version", "generation", "manifest_digest", "rollout")
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    DEVICE_CLASS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ROLLOUT_FIELD_NUMBER: _ClassVar[int]
    model_name: str
    model_digest: bytes
    device_class: str
    version: int
    generation: int
    manifest_digest: bytes
    rollout: Rollout
    def __init__(self, model_name: _Optional[str] = ..., model_digest: _Optional[bytes] = ..., device_class: _Optional[str] = ..., version: _Optional[int] = ..., generation: _Optional[int] = ..., manifest_digest: _Optional[bytes] = ..., rollout: _Optional[_Union[Rollout, _Mapping]] = ...) -> None: ...

class ListRolloutsRequest(_message.Message):
    __slots__ = ("device_class", "is_open_only", "limit")
    DEVICE_CLASS_FIELD_NUMBER: _ClassVar[int]
    IS_OPEN_ONLY_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    device_class: str
    is_open_only: bool
    limit: int
    def __init__(self, device_class: _Optional[str] = ..., is_open_only: _Optional[bool] = ..., limit: _Optional[int] = ...) -> None: ...

class ListRolloutsResponse(_message.Message):
    __slots__ = ("rollouts",)
    ROLLOUTS_FIELD_NUMBER: _ClassVar[int]
    rollouts: _containers.RepeatedCompositeFieldContainer[Rollout]
    def __init__(self, rollouts: _Optional[_Iterable[_Union[Rollout, _Mapping]]] = ...) -> None: ...

class ShowRolloutRequest(_message.Message):
    __slots__ = ("rollout_id",)
    ROLLOUT_ID_FIELD_NUMBER: _ClassVar[int]
    rollout_id: str
    def __init__(self, rollout_id: _Optional[str] = ...) -> None: ...

class ShowRolloutResponse(_message.Message):
    __slots__ = ("rollout", "events", "evidence")
    ROLLOUT_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    rollout: Rollout
    events: _containers.RepeatedCompositeFieldContainer[RolloutEvent]
    evidence: _containers.RepeatedCompositeFieldContainer[RolloutEvidence]
    def __init__(self, rollout: _Optional[_Union[Rollout, _Mapping]] = ..., events: _Optional[_Iterable[_Union[RolloutEvent, _Mapping]]] = ..., evidence: _Optional[_Iterable[_Union[RolloutEvidence, _Mapping]]] = ...) -> None: ...

class PauseRequest(_message.Message):
    __slots__ = ("rollout_id", "reason")
    ROLLOUT_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    rollout_id: str
    reason: str
    def __init__(self, rollout_id: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class PauseResponse(_message.Message):
    __slots__ = ("rollout",)
    ROLLOUT_FIELD_NUMBER: _ClassVar[int]
    rollout: Rollout
    def __init__(self, rollout: _Optional[_Union[Rollout, _Mapping]] = ...) -> None: ...

class ResumeRequest(_message.Message):
    __slots__ = ("rollout_id", "reason")
    ROLLOUT_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    rollout_id: str
    reason: str
    def __init__(self, rollout_id: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class ResumeResponse(_message.Message):
    __slots__ = ("rollout",)
    ROLLOUT_FIELD_NUMBER: _ClassVar[int]
    rollout: Rollout
    def __init__(self, rollout: _Optional[_Union[Rollout, _Mapping]] = ...) -> None: ...

class PromoteRequest(_message.Message):
    __slots__ = ("rollout_id", "reason")
    ROLLOUT_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    rollout_id: str
    reason: str
    def __init__(self, rollout_id: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class PromoteResponse(_message.Message):
    __slots__ = ("rollout",)
    ROLLOUT_FIELD_NUMBER: _ClassVar[int]
    rollout: Rollout
    def __init__(self, rollout: _Optional[_Union[Rollout, _Mapping]] = ...) -> None: ...

class RollbackRequest(_message.Message):
    __slots__ = ("rollout_id", "reason", "signed_targets")
    ROLLOUT_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    SIGNED_TARGETS_FIELD_NUMBER: _ClassVar[int]
    rollout_id: str
    reason: str
    signed_targets: bytes
    def __init__(self, rollout_id: _Optional[str] = ..., reason: _Optional[str] = ..., signed_targets: _Optional[bytes] = ...) -> None: ...

class RollbackResponse(_message.Message):
    __slots__ = ("rollout", "version")
    ROLLOUT_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    rollout: Rollout
    version: int
    def __init__(self, rollout: _Optional[_Union[Rollout, _Mapping]] = ..., version: _Optional[int] = ...) -> None: ...

class PlanSigningRequest(_message.Message):
    __slots__ = ("manifest_digest", "rollout_id", "is_again")
    MANIFEST_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ROLLOUT_ID_FIELD_NUMBER: _ClassVar[int]
    IS_AGAIN_FIELD_NUMBER: _ClassVar[int]
    manifest_digest: bytes
    rollout_id: str
    is_again: bool
    def __init__(self, manifest_digest: _Optional[bytes] = ..., rollout_id: _Optional[str] = ..., is_again: _Optional[bool] = ...) -> None: ...

class PlanSigningResponse(_message.Message):
    __slots__ = ("model_digest", "device_class", "version", "names", "targets_metadata", "root_metadata")
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    DEVICE_CLASS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    TARGETS_METADATA_FIELD_NUMBER: _ClassVar[int]
    ROOT_METADATA_FIELD_NUMBER: _ClassVar[int]
    model_digest: bytes
    device_class: str
    version: int
    names: _containers.RepeatedCompositeFieldContainer[SignedName]
    targets_metadata: bytes
    root_metadata: bytes
    def __init__(self, model_digest: _Optional[bytes] = ..., device_class: _Optional[str] = ..., version: _Optional[int] = ..., names: _Optional[_Iterable[_Union[SignedName, _Mapping]]] = ..., targets_metadata: _Optional[bytes] = ..., root_metadata: _Optional[bytes] = ...) -> None: ...

class SignedName(_message.Message):
    __slots__ = ("version", "manifest_digest", "size_bytes")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_DIGEST_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    version: int
    manifest_digest: bytes
    size_bytes: int
    def __init__(self, version: _Optional[int] = ..., manifest_digest: _Optional[bytes] = ..., size_bytes: _Optional[int] = ...) -> None: ...

class PublishRequest(_message.Message):
    __slots__ = ("manifest_digest", "is_immediate", "reason", "version", "signed_targets", "is_again")
    MANIFEST_DIGEST_FIELD_NUMBER: _ClassVar[int]
    IS_IMMEDIATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SIGNED_TARGETS_FIELD_NUMBER: _ClassVar[int]
    IS_AGAIN_FIELD_NUMBER: _ClassVar[int]
    manifest_digest: bytes
    is_immediate: bool
    reason: str
    version: int
    signed_targets: bytes
    is_again: bool
    def __init__(self, manifest_digest: _Optional[bytes] = ..., is_immediate: _Optional[bool] = ..., reason: _Optional[str] = ..., version: _Optional[int] = ..., signed_targets: _Optional[bytes] = ..., is_again: _Optional[bool] = ...) -> None: ...

class PublishResponse(_message.Message):
    __slots__ = ("rollout", "was_published")
    ROLLOUT_FIELD_NUMBER: _ClassVar[int]
    WAS_PUBLISHED_FIELD_NUMBER: _ClassVar[int]
    rollout: Rollout
    was_published: bool
    def __init__(self, rollout: _Optional[_Union[Rollout, _Mapping]] = ..., was_published: _Optional[bool] = ...) -> None: ...
