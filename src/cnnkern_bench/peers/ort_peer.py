"""ONNX Runtime: one layer as a model, weights as constants (packed with the session), output memory bound once."""

from __future__ import annotations

import functools

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as errors

from cnnkern.problem import Problem

from . import Cannot, Prepared
from .onnx_model import model


def prepare(problem: Problem, inputs: dict[str, np.ndarray], arm: str, threads: int) -> Prepared:
    content, feeds, shape = model(problem, inputs)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except (errors.Fail, errors.NotImplemented, errors.InvalidGraph) as error:
        raise Cannot(f"ONNX Runtime refuses the model: {str(error).splitlines()[0]}") from None
    binding = session.io_binding()
    dtype = problem.outputs[0].dtype
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in feeds.values()]
    for name, value in zip(feeds, values):
        binding.bind_ortvalue_input(name, value)
    result = onnxruntime.OrtValue.ortvalue_from_shape_and_type(list(shape), dtype.type)
    binding.bind_ortvalue_output("y", result)
    call = functools.partial(session.run_with_iobinding, binding)
    return Prepared(call, lambda _: (result.numpy(),))
