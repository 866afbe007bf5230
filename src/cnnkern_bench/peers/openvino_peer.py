"""OpenVINO on the CPU: the same one-layer model, compiled; input and output tensors are bound once."""

from __future__ import annotations

import numpy as np
import openvino

from cnnkern.problem import Problem

from . import Cannot, Prepared
from .onnx_model import model


def prepare(problem: Problem, inputs: dict[str, np.ndarray], arm: str, threads: int) -> Prepared:
    """``openvino_f32`` asks for float32; ``openvino`` takes its default, bfloat16 where the CPU has AMX or such."""
    if problem.dtype == "f64":
        raise Cannot("OpenVINO computes float64 in a lower precision")
    content, feeds, shape = model(problem, inputs)
    core = openvino.Core()
    settings = {"INFERENCE_NUM_THREADS": str(threads), "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1"}
    if arm == "openvino_f32":
        settings["INFERENCE_PRECISION_HINT"] = "f32"
    try:
        compiled = core.compile_model(core.read_model(content, b""), "CPU", settings)
    except RuntimeError as error:
        raise Cannot(f"OpenVINO refuses the model: {str(error).splitlines()[0]}") from None
    request = compiled.create_infer_request()
    for name, array in feeds.items():
        request.set_tensor(name, openvino.Tensor(array, shared_memory=True))
    result = np.empty(shape, problem.outputs[0].dtype)
    request.set_output_tensor(openvino.Tensor(result, shared_memory=True))

    def call() -> None:  # infer() would copy the result
        request.start_async()
        request.wait()

    return Prepared(call, lambda _: (result,))
