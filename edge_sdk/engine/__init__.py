"""TensorRT engines: built from a bundle's ONNX on the machine that runs them, and kept there.

An engine belongs to one GPU model and one TensorRT version, so bundles carry ONNX alone.
"""
