"""The ONNX Runtime session that every peer runs, as the benchmark's environment variables ask for it."""

import os

import onnxruntime


def open_session() -> onnxruntime.InferenceSession:
    """As our own server opens it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(os.environ["BENCH_THREADS"])
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(os.environ["BENCH_MODEL"], options, providers=["CPUExecutionProvider"])
