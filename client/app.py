"""The ClientApp: answers hello, calibrate, probe, train and assess for the device it runs on.

What goes wrong on the device becomes an error reply of one line; the server counts it and goes on without it.
"""

from collections.abc import Callable
from contextlib import closing
from functools import wraps

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from client.answers import answer_assess, answer_hello, answer_moments, answer_ranges
from client.device import Device, device_name, open_device
from client.precision_answers import answer_inputs, answer_probe, answer_profile
from client.training import answer_train
from quantization.errors import QuantFleetError
from strategies.precision_records import decode_inputs_request, decode_probe_request, decode_profile_request
from strategies.records import (
    PHASE_INPUTS,
    PHASE_MOMENTS,
    PHASE_PROFILE,
    PHASE_RANGES,
    decode_assess_request,
    decode_moments_request,
    decode_ranges_request,
    encode_assessment,
    encode_hello,
    read_phase,
)

_APP_RAISED_EXCEPTION = 2
"""Flower's code for an error that a ClientApp raised."""

_CALIBRATE: dict[str, Callable[[Device, RecordDict], RecordDict]] = {
    PHASE_MOMENTS: lambda device, content: answer_moments(device, decode_moments_request(content)),
    PHASE_RANGES: lambda device, content: answer_ranges(device, decode_ranges_request(content)),
    PHASE_INPUTS: lambda device, content: answer_inputs(device, decode_inputs_request(content)),
    PHASE_PROFILE: lambda device, content: answer_profile(device, decode_profile_request(content)),
}

Answer = Callable[[Device, RecordDict, Context], RecordDict]
"""The device, the request's content and Flower's context, to the reply's content."""

app = ClientApp()


def _replying(answer: Answer) -> Callable[[Message, Context], Message]:
    """Return a handler that opens the device and replies with the answer, or with an error of one line."""

    @wraps(answer)
    def handle(message: Message, context: Context) -> Message:
        try:
            with closing(open_device(context)) as device:
                return Message(answer(device, message.content, context), reply_to=message)
        except QuantFleetError as error:
            reason = f"{type(error).__name__}: {error}"
            return Message(Error(_APP_RAISED_EXCEPTION, reason), reply_to=message)

    return handle


@app.query("hello")
@_replying
def hello(device: Device, _content: RecordDict, context: Context) -> RecordDict:
    """Say what this device is and holds."""
    return encode_hello(answer_hello(device, context.node_id, device_name(context)))


@app.query("calibrate")
@_replying
def calibrate(device: Device, content: RecordDict, _context: Context) -> RecordDict:
    """Observe this device's inputs, or its kernels: the phase says which statistics."""
    return _CALIBRATE[read_phase(content)](device, content)


@app.query("probe")
@_replying
def probe(device: Device, content: RecordDict, _context: Context) -> RecordDict:
    """Run the reference model and changes of it side by side."""
    return answer_probe(device, decode_probe_request(content))


@app.train("qat")
@_replying
def train(device: Device, content: RecordDict, context: Context) -> RecordDict:
    """Train the model for a few epochs on this device's inputs."""
    return answer_train(device, content, device_name(context) or str(context.node_id))


@app.query("assess")
@_replying
def assess(device: Device, content: RecordDict, _context: Context) -> RecordDict:
    """Run the current and the candidate model side by side."""
    return encode_assessment(answer_assess(device, decode_assess_request(content)))
