"""What the ops are, apart from how they are computed. Imports NumPy and nothing else."""

from .geometry import (
    ChannelGeometry,
    ClassGeometry,
    ConvGeometry,
    PointwiseGeometry,
    PoolGeometry,
    ResizeGeometry,
)
from .kernel import ISA_LEVELS, PRECISIONS, Geometry, Kernel, Request
from .ops import DTYPES, OPS, SHORT_DTYPES, Operand, OpSpec, numpy_dtype, op_name

__all__ = [
    "DTYPES",
    "ISA_LEVELS",
    "OPS",
    "PRECISIONS",
    "SHORT_DTYPES",
    "ChannelGeometry",
    "ClassGeometry",
    "ConvGeometry",
    "Geometry",
    "Kernel",
    "OpSpec",
    "Operand",
    "PointwiseGeometry",
    "PoolGeometry",
    "Request",
    "ResizeGeometry",
    "numpy_dtype",
    "op_name",
]
