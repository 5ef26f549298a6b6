"""The ClientApp: answers hello, calibrate and assess for the device it runs on.

What goes wrong on the device becomes an error reply of one line; the server counts it and goes on without it.
"""

from collections.abc import Callable
from contextlib import closing
from functools import wraps

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from client.answers import answer_assess, answer_hello, answer_moments, answer_ranges
from client.device import Device, open_device
from quantization.errors import QuantFleetError
from strategies.records import (
    PHASE_MOMENTS,
    decode_assess_request,
    decode_moments_request,
    decode_ranges_request,
    encode_assessment,
    encode_hello,
    read_phase,
)

_APP_RAISED_EXCEPTION = 2
"""Flower's code for an error that a ClientApp raised."""

Answer = Callable[[Device, RecordDict, int], RecordDict]
"""The device, the request's content and the node's id, to the reply's content."""

app = ClientApp()


def _replying(answer: Answer) -> Callable[[Message, Context], Message]:
    """Return a handler that opens the device and replies with the answer, or with an error of one line."""

    @wraps(answer)
    def handle(message: Message, context: Context) -> Message:
        try:
            with closing(open_device(context)) as device:
                return Message(answer(device, message.content, context.node_id), reply_to=message)
        except QuantFleetError as error:
            reason = f"{type(error).__name__}: {error}"
            return Message(Error(_APP_RAISED_EXCEPTION, reason), reply_to=message)

    return handle


@app.query("hello")
@_replying
def hello(device: Device, _content: RecordDict, node_id: int) -> RecordDict:
    """Say what this device is and holds."""
    return encode_hello(answer_hello(device, node_id))


@app.query("calibrate")
@_replying
def calibrate(device: Device, content: RecordDict, _node_id: int) -> RecordDict:
    """Observe this device's inputs: moments first, then ranges."""
    if read_phase(content) == PHASE_MOMENTS:
        return answer_moments(device, decode_moments_request(content))
    return answer_ranges(device, decode_ranges_request(content))


@app.query("assess")
@_replying
def assess(device: Device, content: RecordDict, _node_id: int) -> RecordDict:
    """Run the current and the candidate model side by side."""
    return encode_assessment(answer_assess(device, decode_assess_request(content)))
