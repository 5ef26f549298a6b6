"""Settings of the update service."""

from dataclasses import dataclass

from quantization.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class UpdateSettings:
    """What the update service gives, to how many, and how it spreads them over time.

    Attributes:
        poll_seconds: How often the registry is asked for changed targets.
        heartbeat_seconds: Longest silence on a watch; each sign of life comes after half to all of it.
        max_watch_seconds: A watch ends after half to all of this, so that devices spread over server processes.
        max_watchers: Watches at the same time.
        max_fetches: Streams of blobs at the same time.
        max_streams_per_device: Watches, and streams of blobs, of one device at the same time, of each kind.
        calls_per_second: Calls of one device that are answered, on average.
        calls_burst: Calls of one device that are answered at once after a pause.
        max_known_devices: Devices whose rate is remembered; the least recently seen is forgotten.
        stall_seconds: Longest wait for a device that neither reads nor asks.
        fetches_per_second: Devices that are told to fetch per second when a target changes.
        connects_per_second: Devices that are told to connect per second when their watches end.
        retry_seconds: Mean time to wait before connecting or asking again, where nothing asks for more.
        check_seconds: Mean time between two checks of a device that does not watch.
        delta_wait_seconds: Longest wait for a difference that is being computed; then the full blob is sent.
        prepare_seconds: Longest time that a new version waits for the differences to it before devices know of it.
        cache_bytes: Payloads kept in memory.
        delta_bytes: Differences kept in the folder of differences; those that were used longest ago go first.
        workers: Threads for the registry, the stores and differences.
    """

    poll_seconds: float = 1.0
    heartbeat_seconds: float = 30.0
    max_watch_seconds: float = 3600.0
    max_watchers: int = 20_000
    max_fetches: int = 1024
    max_streams_per_device: int = 2
    calls_per_second: float = 2.0
    calls_burst: int = 20
    max_known_devices: int = 65_536
    stall_seconds: float = 60.0
    fetches_per_second: float = 200.0
    connects_per_second: float = 500.0
    retry_seconds: float = 2.0
    check_seconds: float = 300.0
    delta_wait_seconds: float = 20.0
    prepare_seconds: float = 300.0
    cache_bytes: int = 128 << 20
    delta_bytes: int = 4 << 30
    workers: int = 4

    def __post_init__(self) -> None:
        """Refuse what would stop the service."""
        wrong = [name for name in self.__slots__ if not getattr(self, name) > 0]
        if wrong:
            raise ConfigurationError(f"settings of the update service must be above 0: {', '.join(wrong)}")
