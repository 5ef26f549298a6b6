import random
from dataclasses import replace

import pytest

from quantization.errors import ConfigurationError, OverloadedError
from server.peers import PeerLimits
from server.update_settings import UpdateSettings

SETTINGS = UpdateSettings(calls_burst=3, calls_per_second=2.0, max_streams_per_device=1, max_known_devices=5)


class Time:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def limits(time: Time | None = None) -> PeerLimits:
    return PeerLimits(SETTINGS, random.Random(0), time or Time())  # noqa: S311 - it guards nothing


def test_a_burst_is_answered_and_then_the_rate() -> None:
    time = Time()
    peers = limits(time)
    for _ in range(3):
        peers.count_call("a")
    with pytest.raises(OverloadedError) as caught:
        peers.count_call("a")
    assert 0.5 <= caught.value.retry_after_seconds <= 1.0
    peers.count_call("b")
    time.now += 0.5
    peers.count_call("a")
    with pytest.raises(OverloadedError):
        peers.count_call("a")


def test_times_to_wait_differ() -> None:
    peers = limits()
    waits = set()
    for device in "abcde":
        for _ in range(3):
            peers.count_call(device)
        with pytest.raises(OverloadedError) as caught:
            peers.count_call(device)
        waits.add(caught.value.retry_after_seconds)
    assert len(waits) == 5


def test_a_pause_gives_no_more_than_a_burst() -> None:
    time = Time()
    peers = limits(time)
    peers.count_call("a")
    time.now += 1e6
    for _ in range(3):
        peers.count_call("a")
    with pytest.raises(OverloadedError):
        peers.count_call("a")


def test_the_number_of_devices_that_are_remembered_is_bounded() -> None:
    peers = limits()
    for number in range(1000):
        peers.count_call(f"device {number}")
    assert len(peers._tokens) == SETTINGS.max_known_devices


def test_streams_are_counted_apart_and_given_back() -> None:
    peers = limits()
    with peers.stream("a", "watch", 2):
        with peers.stream("a", "fetch", 2):
            pass
        with pytest.raises(OverloadedError, match="one device"), peers.stream("a", "watch", 2):
            pass
        with (
            peers.stream("b", "watch", 2),
            pytest.raises(OverloadedError, match="2 devices"),
            peers.stream("c", "watch", 2),
        ):
            pass
    with peers.stream("a", "watch", 2):
        pass
    assert not peers._streams


def test_settings_that_would_stop_the_service_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="above 0: workers"):
        replace(SETTINGS, workers=0)
