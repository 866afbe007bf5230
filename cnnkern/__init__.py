"""Hand-written kernels for convolutional networks on plain NumPy arrays (and those of PyTorch and JAX).

Usually imported as ``import cnnkern as ck``; the positional order and the defaults of every function are PyTorch's.
"""

from typing import TYPE_CHECKING as _TYPE_CHECKING

from .config import get_num_threads, set_num_threads, using
from .dispatch import kernels
from .errors import ArgumentError, DTypeError, NoKernelError, ShapeError
from .explain import explain
from .machine import build_info, calibrate, ceilings, measure_copy, measure_peak, measure_read
from .ops.activation import relu, relu_backward, sigmoid, sigmoid_backward, tanh, tanh_backward
from .ops.adaptive_pool import (
    adaptive_avg_pool1d,
    adaptive_avg_pool1d_backward,
    adaptive_avg_pool2d,
    adaptive_avg_pool2d_backward,
    adaptive_avg_pool3d,
    adaptive_avg_pool3d_backward,
    adaptive_max_pool1d,
    adaptive_max_pool1d_backward,
    adaptive_max_pool2d,
    adaptive_max_pool2d_backward,
    adaptive_max_pool3d,
    adaptive_max_pool3d_backward,
)
from .ops.avg_pool import (
    avg_pool1d,
    avg_pool1d_backward,
    avg_pool2d,
    avg_pool2d_backward,
    avg_pool3d,
    avg_pool3d_backward,
)
from .ops.conv import conv1d, conv1d_backward, conv2d, conv2d_backward, conv3d, conv3d_backward
from .ops.conv_transpose import (
    conv_transpose1d,
    conv_transpose1d_backward,
    conv_transpose2d,
    conv_transpose2d_backward,
    conv_transpose3d,
    conv_transpose3d_backward,
)
from .ops.dropout import dropout, dropout_backward
from .ops.loss import softmax_cross_entropy
from .ops.lp_pool import (
    lp_pool1d,
    lp_pool1d_backward,
    lp_pool2d,
    lp_pool2d_backward,
    lp_pool3d,
    lp_pool3d_backward,
)
from .ops.max_pool import (
    max_pool1d,
    max_pool1d_backward,
    max_pool2d,
    max_pool2d_backward,
    max_pool3d,
    max_pool3d_backward,
)
from .ops.norm import batch_norm, batch_norm_backward, local_response_norm, local_response_norm_backward
from .ops.output_shapes import (
    adaptive_pool1d_output_shape,
    adaptive_pool2d_output_shape,
    adaptive_pool3d_output_shape,
    conv1d_output_shape,
    conv2d_output_shape,
    conv3d_output_shape,
    conv_transpose1d_output_shape,
    conv_transpose2d_output_shape,
    conv_transpose3d_output_shape,
    fold_output_shape,
    max_unpool1d_output_shape,
    max_unpool2d_output_shape,
    max_unpool3d_output_shape,
    pool1d_output_shape,
    pool2d_output_shape,
    pool3d_output_shape,
    unfold_output_shape,
)
from .ops.planned import plan_conv2d
from .ops.unfold import fold, unfold
from .ops.unpool import (
    max_unpool1d,
    max_unpool1d_backward,
    max_unpool2d,
    max_unpool2d_backward,
    max_unpool3d,
    max_unpool3d_backward,
)

if _TYPE_CHECKING:
    from . import problem

__version__ = "0.1.0"

__all__ = [
    "ArgumentError",
    "DTypeError",
    "NoKernelError",
    "ShapeError",
    "adaptive_avg_pool1d",
    "adaptive_avg_pool1d_backward",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool2d_backward",
    "adaptive_avg_pool3d",
    "adaptive_avg_pool3d_backward",
    "adaptive_max_pool1d",
    "adaptive_max_pool1d_backward",
    "adaptive_max_pool2d",
    "adaptive_max_pool2d_backward",
    "adaptive_max_pool3d",
    "adaptive_max_pool3d_backward",
    "adaptive_pool1d_output_shape",
    "adaptive_pool2d_output_shape",
    "adaptive_pool3d_output_shape",
    "avg_pool1d",
    "avg_pool1d_backward",
    "avg_pool2d",
    "avg_pool2d_backward",
    "avg_pool3d",
    "avg_pool3d_backward",
    "batch_norm",
    "batch_norm_backward",
    "build_info",
    "calibrate",
    "ceilings",
    "conv1d",
    "conv1d_backward",
    "conv1d_output_shape",
    "conv2d",
    "conv2d_backward",
    "conv2d_output_shape",
    "conv3d",
    "conv3d_backward",
    "conv3d_output_shape",
    "conv_transpose1d",
    "conv_transpose1d_backward",
    "conv_transpose1d_output_shape",
    "conv_transpose2d",
    "conv_transpose2d_backward",
    "conv_transpose2d_output_shape",
    "conv_transpose3d",
    "conv_transpose3d_backward",
    "conv_transpose3d_output_shape",
    "dropout",
    "dropout_backward",
    "explain",
    "fold",
    "fold_output_shape",
    "get_num_threads",
    "kernels",
    "local_response_norm",
    "local_response_norm_backward",
    "lp_pool1d",
    "lp_pool1d_backward",
    "lp_pool2d",
    "lp_pool2d_backward",
    "lp_pool3d",
    "lp_pool3d_backward",
    "max_pool1d",
    "max_pool1d_backward",
    "max_pool2d",
    "max_pool2d_backward",
    "max_pool3d",
    "max_pool3d_backward",
    "max_unpool1d",
    "max_unpool1d_backward",
    "max_unpool1d_output_shape",
    "max_unpool2d",
    "max_unpool2d_backward",
    "max_unpool2d_output_shape",
    "max_unpool3d",
    "max_unpool3d_backward",
    "max_unpool3d_output_shape",
    "measure_copy",
    "measure_peak",
    "measure_read",
    "plan_conv2d",
    "pool1d_output_shape",
    "pool2d_output_shape",
    "pool3d_output_shape",
    "problem",
    "relu",
    "relu_backward",
    "set_num_threads",
    "sigmoid",
    "sigmoid_backward",
    "softmax_cross_entropy",
    "tanh",
    "tanh_backward",
    "unfold",
    "unfold_output_shape",
    "using",
]


def __getattr__(name: str) -> object:
    """``cnnkern.problem`` is loaded on first use: computing needs no problem strings."""
    if name == "problem":
        import importlib

        return importlib.import_module("cnnkern.problem")
    raise AttributeError(f"module 'cnnkern' has no attribute {name!r}")
