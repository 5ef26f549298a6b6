"""Who is there: wait for nodes to register, then ask each what it is.

Flower's node list holds ids alone, so the device class, the generation and the artifact a device holds come
from its answer to a hello.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from flwr.app import Message
from flwr.serverapp import Grid

from quantization.errors import RoundFailedError
from strategies.messages import DeviceHello
from strategies.records import HELLO, decode_hello, encode_hello_request
from strategies.rounds import (
    DEFAULT_SETTINGS,
    SYSTEM_CLOCK,
    Clock,
    EndFunction,
    ProgressFunction,
    RoundOutcome,
    RoundSettings,
    messages_to,
    run_round,
)


def wait_for_nodes(
    grid: Grid,
    expected: int,
    timeout_seconds: float = 120.0,
    *,
    poll_seconds: float = 1.0,
    clock: Clock = SYSTEM_CLOCK,
) -> tuple[int, ...]:
    """Return the ids of the registered nodes, ascending, as soon as `expected` of them are there.

    At the timeout it returns those that are there: at the start of a run only some may be registered.

    Args:
        grid: Flower's way to the devices.
        expected: How many to wait for; at least one is always waited for.
        timeout_seconds: Longest wait.
        poll_seconds: Pause between two looks.
        clock: Time that the timeout is measured in.

    Raises:
        RoundFailedError: If no node is there at the timeout.
    """
    deadline = clock.now() + timeout_seconds
    while True:
        node_ids = tuple(sorted(grid.get_node_ids()))
        if len(node_ids) >= max(expected, 1):
            return node_ids
        if clock.now() >= deadline:
            break
        clock.sleep(poll_seconds)
    if not node_ids:
        raise RoundFailedError(
            f"no device registered within {timeout_seconds:g} s; check that SuperNodes reach this SuperLink"
        )
    return node_ids


def hello(
    grid: Grid,
    node_ids: tuple[int, ...],
    settings: RoundSettings = DEFAULT_SETTINGS,
    *,
    clock: Clock = SYSTEM_CLOCK,
    on_progress: ProgressFunction | None = None,
    on_end: EndFunction | None = None,
) -> RoundOutcome[tuple[DeviceHello, ...]]:
    """Return what the devices say of themselves, in the order of `DeviceHello.rank`; some 300 bytes each.

    Raises:
        RoundFailedError: If fewer than the quorum answered.
    """

    def fold(devices: list[DeviceHello], reply: Message) -> list[DeviceHello]:
        devices.append(decode_hello(reply.content, reply.metadata.src_node_id))
        return devices

    initial: list[DeviceHello] = []
    messages = messages_to(node_ids, encode_hello_request(), HELLO)
    outcome = run_round(
        grid,
        messages,
        fold,
        initial,
        settings,
        name="hello",
        clock=clock,
        on_progress=on_progress,
        on_end=on_end,
    )
    return outcome.with_value(with_unique_names(outcome.value))


def with_unique_names(devices: Sequence[DeviceHello]) -> tuple[DeviceHello, ...]:
    """Return the devices in the order of their ranks; a name that several claim is taken from all of them.

    A node's number is its own: nobody can go by the number of another, under which facts about that one are kept.
    """
    claims = Counter(name for device in devices for name in {device.name, str(device.node_id)})
    known = (device if claims[device.name] == 1 else replace(device, name="") for device in devices)
    return tuple(sorted(known, key=lambda device: device.rank))
