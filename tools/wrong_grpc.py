"""Wrong messages over gRPC, made from a right one, and who sends them."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable

import grpc
import numpy as np
from right_request import Right

from cloud.protobuf import open_inference_pb2 as messages
from edge_sdk.tensors import DTYPES, dtype_name

FINE = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "UNAVAILABLE",
        "UNIMPLEMENTED", "DEADLINE_EXCEEDED"}  # fmt: skip
"""What may be answered: DEADLINE_EXCEEDED to a request's own timeout, of a microsecond. UNKNOWN is what gRPC makes of
an exception that nobody caught, INTERNAL what the server makes of one of its own."""

SERVICE = "/inference.GRPCInferenceService/"
METHODS = [each.name for each in messages.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods]
NO_ANSWER = "no answer"
SECONDS = 20.0

NAMES = ("", "x", "tail", "\n", "\x00", "é", "a" * 9000, "../..", "1", "-1", "99999999999999999999")
SIZES = (-1, 0, 1, 2, 3, 2**31 - 1, 2**31, 2**63 - 1, -(2**63))


class MessageMutator:
    """Wrong messages, the same for the same seed."""

    def __init__(self, right: Right, seed: int) -> None:
        self._right, self._random = right_message(right), random.Random(seed)  # noqa: S311  (not a secret)
        self._kinds: list[Callable[[], bytes]] = [
            self._noise, self._flipped, self._cut, self._grown, self._changed, self._changed, self._changed,
            self._typed,
        ]  # fmt: skip

    def call(self) -> tuple[str, bytes]:
        """A method's path, and what to send it."""
        if self._random.random() < 0.8:
            return f"{SERVICE}ModelInfer", self._random.choice(self._kinds)()
        if self._random.random() < 0.1:
            return self._random.choice((f"{SERVICE}Other", "/other/ModelInfer", f"{SERVICE}x\u007f")), self._noise()
        # All others take a name, a version, a flag or nothing: whatever is sent to them is wrong or means little.
        asked = messages.ModelReadyRequest(name=self._name(), version=self._name())
        sent = self._noise() if self._random.random() < 0.5 else asked.SerializeToString()
        return SERVICE + self._random.choice(METHODS), sent

    def _noise(self) -> bytes:
        return self._random.randbytes(self._random.choice((0, 1, 2, 40, 400)))

    def _flipped(self) -> bytes:
        changed = bytearray(self._right.SerializeToString())
        for _ in range(self._random.choice((1, 2, 8))):  # the tensor's bytes, which may be any, come last
            changed[self._random.randrange(min(len(changed), 80))] = self._random.randrange(256)
        return bytes(changed)

    def _cut(self) -> bytes:
        whole = self._right.SerializeToString()
        return whole[: self._random.randrange(len(whole))]

    def _grown(self) -> bytes:
        return self._right.SerializeToString() + self._random.randbytes(self._random.choice((1, 7, 4096, 2**21)))

    def _changed(self) -> bytes:
        """A message of protobuf's, with something else in some fields."""
        message = self._copy()
        changes = (self._rename, self._reshape, self._retype, self._reinput, self._reraw, self._parameter, self._output)
        for _ in range(self._random.choice((1, 1, 2, 3))):
            self._random.choice(changes)(message)
        return message.SerializeToString()

    def _typed(self) -> bytes:
        """Numbers in place of raw bytes: of the right number or not, in the right field or not."""
        message = self._copy()
        del message.raw_input_contents[:]
        for tensor in message.inputs:
            if self._random.random() < 0.5:
                tensor.datatype = self._random.choice(list(DTYPES))
            size = self._random.choice((0, 1, 7, int(np.prod(tensor.shape, dtype=np.int64)), 70_000))
            field = self._random.choice(tensor.contents.DESCRIPTOR.fields)
            value = b"x" if field.name == "bytes_contents" else field.default_value or self._random.randrange(300)
            getattr(tensor.contents, field.name).extend(
                [bool(value) if field.name == "bool_contents" else value] * size
            )
        return message.SerializeToString()

    def _copy(self) -> messages.ModelInferRequest:
        copy = messages.ModelInferRequest()
        copy.CopyFrom(self._right)
        return copy

    def _name(self) -> str:
        return self._random.choice(NAMES)

    def _rename(self, message: messages.ModelInferRequest) -> None:
        setattr(message, self._random.choice(("model_name", "model_version", "id")), self._name())

    def _reshape(self, message: messages.ModelInferRequest) -> None:
        for tensor in message.inputs:
            size = self._random.choice(SIZES)
            if self._random.random() < 0.3 or not tensor.shape:
                tensor.shape.extend([size] * self._random.choice((1, 40)))
            else:
                tensor.shape[self._random.randrange(len(tensor.shape))] = size

    def _retype(self, message: messages.ModelInferRequest) -> None:
        for tensor in message.inputs:
            tensor.datatype = self._random.choice([*DTYPES, *NAMES, "BYTES", "BF16"])

    def _reinput(self, message: messages.ModelInferRequest) -> None:
        if self._random.random() < 0.3:
            del message.inputs[:]
            return
        tensor = message.inputs.add(name=self._name(), datatype="FP32", shape=[1])
        if self._random.random() < 0.5 and len(message.inputs) > 1:
            tensor.CopyFrom(message.inputs[0])

    def _reraw(self, message: messages.ModelInferRequest) -> None:
        raw = message.raw_input_contents
        if not raw or self._random.random() < 0.3:
            raw.append(self._noise())
        elif self._random.random() < 0.5:
            raw[0] = raw[0][: self._random.randrange(len(raw[0]) + 1)]
        else:
            raw[0] = raw[0] + self._noise()

    def _parameter(self, message: messages.ModelInferRequest) -> None:
        name = self._random.choice(("timeout", "edgesdk_bundle_id", "priority", *NAMES))
        parameter = message.parameters[name]  # a parameter without a value, unless it gets one
        kind = self._random.choice(
            ("none", "bool_param", "int64_param", "string_param", "double_param", "uint64_param")
        )
        values = {
            "bool_param": True,
            "int64_param": self._random.choice(SIZES),
            "string_param": self._name(),
            "double_param": self._random.choice((float("nan"), float("inf"), 1e308, -0.0)),
            "uint64_param": self._random.choice((0, 1, 2**64 - 1)),
        }
        if kind in values:
            setattr(parameter, kind, values[kind])

    def _output(self, message: messages.ModelInferRequest) -> None:
        for _ in range(self._random.choice((1, 2, 300))):
            message.outputs.add(name=self._name())


class MessageSender:
    """One channel; counts what is answered."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address)
        self.codes: Counter[str] = Counter()

    def send(self, path: str, content: bytes) -> None:
        """Send, and wait for the answer."""
        began = time.monotonic()
        try:
            self._channel.unary_unary(path)(content, timeout=SECONDS)
        except grpc.RpcError as error:
            code = error.code().name
            self.codes[NO_ANSWER if time.monotonic() - began >= SECONDS else code] += 1
        else:
            self.codes["OK"] += 1

    def close(self) -> None:
        """End the channel."""
        self._channel.close()


def right_message(right: Right) -> messages.ModelInferRequest:
    """The right request, with its tensors as raw bytes."""
    message = messages.ModelInferRequest(model_name=right.model, id="id")
    for name, array in right.feeds.items():
        message.inputs.add(name=name, datatype=dtype_name(array.dtype), shape=array.shape)
        message.raw_input_contents.append(array.tobytes())
    return message


def check(right: Right, address: str) -> None:
    """Ask the right request of a server that must still be right."""
    with grpc.insecure_channel(address) as channel:
        content = channel.unary_unary(f"{SERVICE}ModelInfer")(right_message(right).SerializeToString(), timeout=SECONDS)
    answer = messages.ModelInferResponse.FromString(content)
    for tensor, raw in zip(answer.outputs, answer.raw_output_contents, strict=True):
        found = np.frombuffer(raw, DTYPES[tensor.datatype]).reshape(tensor.shape)
        np.testing.assert_allclose(found, right.answer[tensor.name], atol=1e-4)
    assert len(answer.outputs) == len(right.answer)
