"""The caller's arrays as NumPy arrays, and results back in the caller's library.

NumPy arrays pass as they are, whatever their strides. Everything else on the host becomes a NumPy view of the same
memory: objects with ``__array_interface__``, ``__dlpack__``, the buffer protocol or ``__array__``, and PyTorch and JAX
arrays by their own ways. A framework is never imported here: whoever hands us its array has imported it.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from .errors import ArgumentError, DTypeError, NoKernelError

_ONE_STEP: Any = 1  # of NumPy's search for a common element: bounds and simple strides (its stubs know 0 and -1 only)
DLPACK_HOST = (1, 3)  # kDLCPU, kDLCUDAHost: device types whose memory the CPU may read
_FOREIGN_ERRORS = (TypeError, ValueError, RuntimeError, AttributeError, BufferError, OSError, NotImplementedError)


def as_ndarray(op: str, name: str, value: Any) -> np.ndarray:
    """The argument as a plain ndarray that kernels can read; a view of the caller's memory wherever possible.

    Args:
        op, name: the public op and its argument, for messages.
        value: the array.

    Returns:
        An ndarray for which ``is_regular`` holds. Strides may be negative or zero.

    Raises:
        ArgumentError: not an array, or one that cannot be read (masked, sparse, traced, wants a gradient).
        DTypeError: not in the machine's byte order, or of a type that NumPy cannot name.
        NoKernelError: the array is not in host memory.
    """
    array = value if type(value) is np.ndarray else _foreign(op, name, value)
    _check_byte_order(op, name, array)
    return array if is_regular(array) else _regular_copy(array)


def as_writable(op: str, name: str, value: Any) -> tuple[np.ndarray, np.ndarray]:
    """The argument as (array to compute on, view of the caller's memory): the same ndarray unless that is not regular.

    Raises:
        As ``as_ndarray``; also ArgumentError for an object that only hands out copies of its data.
    """
    if type(value) is not np.ndarray and not _shares(value):
        raise ArgumentError(f"{op}: {name} must be an array that shares its memory, got {type(value).__name__}.")
    view = value if type(value) is np.ndarray else _foreign(op, name, value)
    _check_byte_order(op, name, view)
    if is_regular(view):
        return view, view
    array = view.copy()
    array.flags.writeable = view.flags.writeable
    return array, view


def is_regular(array: np.ndarray) -> bool:
    """Aligned, and strides are whole elements. Kernels count offsets in elements, so no other array can reach them."""
    size = array.dtype.itemsize
    flags = array.flags
    return size > 0 and flags.aligned and (flags.c_contiguous or not any(stride % size for stride in array.strides))


def _check_byte_order(op: str, name: str, array: np.ndarray) -> None:
    if not array.dtype.isnative:
        order = "big-endian" if sys.byteorder == "little" else "little-endian"
        native = array.dtype.newbyteorder("=").name
        raise DTypeError(
            f"{op}: {name} is {order} {native} (byte order {array.dtype.byteorder!r})."
            f' Convert it: {name}.astype("{native}").'
        )


def _regular_copy(array: np.ndarray) -> np.ndarray:
    """A contiguous copy in which broadcast axes (stride 0) stay broadcast, so that it is never larger than the data."""
    core = array[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in array.strides)]
    return np.broadcast_to(core.copy(), array.shape)


def result_wrapper(value: Any) -> Callable[[np.ndarray], Any] | None:
    """What turns a fresh NumPy result into an array of the library that ``value`` comes from; None: NumPy it stays."""
    if type(value) is np.ndarray:
        return None
    kind: Any = type(value)
    return {"torch": _to_torch, "jax": _to_jax}.get(_library(kind) or "")


def shares_memory(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two arrays have an element in common; True also where finding out would take a search."""
    try:
        return np.shares_memory(a, b, max_work=_ONE_STEP)
    except np.exceptions.TooHardError:
        return True


def overlaps_itself(array: np.ndarray) -> bool:
    """Whether two indices may name the same memory: never so for slices and transposes of an ordinary array."""
    span = array.dtype.itemsize
    for stride, extent in sorted((abs(s), n) for s, n in zip(array.strides, array.shape) if n > 1):
        if stride < span:
            return array.size > 0
        span += stride * (extent - 1)
    return False


def _foreign(op: str, name: str, value: Any) -> np.ndarray:
    kind: Any = type(value)
    library = _library(kind)
    if library == "masked":
        raise ArgumentError(f"{op}: {name} is a masked array, and kernels ignore masks. Fill it: {name}.filled(0).")
    if isinstance(value, (np.ndarray, np.generic)):
        return np.asarray(value)
    try:
        if library == "torch":
            return _from_torch(op, name, value)
        if library == "jax":
            return _from_jax(op, name, value)
        return _from_protocol(op, name, value)
    except (ArgumentError, DTypeError, NoKernelError):
        raise
    except _FOREIGN_ERRORS as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ArgumentError(f"{op}: {name} ({type(value).__name__}) cannot be read as an array: {reason}") from error


def _shares(value: Any) -> bool:
    """Whether there is a way to the object's own memory, not only to a copy (``__array__`` promises neither)."""
    if hasattr(value, "__array_interface__") or hasattr(value, "__dlpack__"):
        return True
    try:
        memoryview(value)
    except TypeError:
        return not hasattr(value, "__array__")  # no array at all: as_ndarray's sentence says so better
    return True


def _from_protocol(op: str, name: str, value: Any) -> np.ndarray:
    if hasattr(value, "__array_interface__"):
        return np.asarray(value)
    if hasattr(value, "__cuda_array_interface__"):
        raise _not_on_host(op, name, "a CUDA device")
    if hasattr(value, "__dlpack__"):
        if value.__dlpack_device__()[0] not in DLPACK_HOST:
            raise _not_on_host(op, name, f"DLPack device {tuple(map(int, value.__dlpack_device__()))}")
        return np.from_dlpack(value)
    try:
        return np.asarray(memoryview(value))
    except TypeError:  # no buffer protocol
        pass
    if hasattr(value, "__array__"):
        return np.asarray(value)
    came = "None" if value is None else type(value).__name__
    raise ArgumentError(
        f"{op}: {name} must be an array (NumPy, or an object with __array_interface__, __dlpack__, the buffer protocol"
        f" or __array__), got {came}."
    )


def _not_on_host(op: str, name: str, where: str, copy: str | None = None) -> NoKernelError:
    hint = f"Copy it: {copy}." if copy else "Copy it to host memory first."
    return NoKernelError(f"{op}: {name} is on {where}, and every kernel here reads host memory. {hint}")


@functools.lru_cache(maxsize=256)
def _library(kind: type) -> str | None:
    """Which library's array this class is or derives from: "torch", "jax", "masked" (NumPy's), or None of these."""
    for base in kind.__mro__:
        package = base.__module__.split(".")[0]
        if package == "torch" and base.__name__ == "Tensor":
            return "torch"
        if package in ("jax", "jaxlib"):
            return "jax"
        if package == "numpy" and base.__name__ == "MaskedArray":
            return "masked"
    return None


# --- PyTorch


def _from_torch(op: str, name: str, tensor: Any) -> np.ndarray:
    torch = sys.modules["torch"]
    if tensor.device.type != "cpu":
        raise _not_on_host(op, name, f"device {tensor.device}", f"{name}.cpu()")
    if tensor.layout is not torch.strided:
        raise ArgumentError(f"{op}: {name} is a sparse tensor ({tensor.layout}). Use {name}.to_dense().")
    if tensor.requires_grad and torch.is_grad_enabled():
        raise ArgumentError(
            f"{op}: {name} requires a gradient, which this function does not record."
            f" Pass {name}.detach(), or call it under torch.no_grad()."
        )
    tensor = tensor.detach()
    if tensor.dtype is torch.bfloat16:  # NumPy has no bfloat16 of its own, and .numpy() raises
        import ml_dtypes

        return tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    try:
        return tensor.numpy()
    except TypeError as error:
        raise DTypeError(
            f"{op}: {name} is {tensor.dtype}, which has no NumPy counterpart. Convert it: {name}.float()."
        ) from error


def _to_torch(array: np.ndarray) -> Any:
    torch = sys.modules["torch"]
    if array.dtype.kind == "V":  # of our results only bfloat16
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)


# --- JAX


def _from_jax(op: str, name: str, array: Any) -> np.ndarray:
    devices = getattr(array, "devices", None)
    if devices is not None:
        for device in devices():
            if getattr(device, "platform", "cpu") != "cpu":
                raise _not_on_host(op, name, f"device {device}", f"jax.device_get({name})")
    return np.asarray(array)  # a read-only view


def _to_jax(array: np.ndarray) -> Any:
    return sys.modules["jax"].device_put(array)  # no copy: results start on 64 bytes
