# Written by tools/make_stubs.py (make stubs). Do not edit.
"""
Native kernels of cnnkern. Use the functions of the package cnnkern instead.
"""
from __future__ import annotations
import numpy
import typing
__all__: list[str] = ['Cache', 'Program', 'c_api', 'cache_size', 'forget_all_settings', 'forget_rows', 'last_rows', 'lookup', 'measure_copy', 'measure_peak', 'measure_read', 'remember', 'result_cache_bytes', 'rows', 'set_result_cache', 'set_settings', 'set_spin_us', 'struct_sizes', 'why_not']
class Program:
    """
    Table ops bound to slots, strides and row functions.
    """
    def __init__(self, inputs: typing.SupportsInt | typing.SupportsIndex, outputs: list, steps: list, returns: typing.Any, failure: typing.Any) -> None:
        ...
    def pack(self, step: typing.SupportsInt | typing.SupportsIndex, weight: numpy.ndarray) -> None:
        """
        Pack the weights of one step now.
        """
    def run(self, arrays: tuple) -> typing.Any:
        """
        Run on the caller's arrays: ndarrays, or None where the operand is absent.
        """
    def share_packed(self, step: typing.SupportsInt | typing.SupportsIndex, other: Program) -> None:
        """
        Use the weights that another program of the same request packed.
        """
    def workspace_bytes(self, threads: typing.SupportsInt | typing.SupportsIndex) -> int:
        ...
    @property
    def packed_bytes(self) -> int:
        ...
    @property
    def packs(self) -> bool:
        """
        Whether the first step's row packs weights.
        """
class Cache:
    """
    Programs of one plan, by the strides and presence of its arrays.
    """
    def __init__(self) -> None:
        ...
    def lookup(self, *args) -> typing.Any:
        """
        The result of the program remembered under an equal key, or NotImplemented.
        """
    def remember(self, program: Program, arrays: tuple, *args) -> None:
        """
        Arrays that are not in the key are constants.
        """
def cache_size() -> int:
    """
    Programs remembered.
    """
def forget_all_settings() -> None:
    """
    Let every lookup of every thread miss until its next set_settings.
    """
def forget_rows() -> None:
    ...
def last_rows() -> list:
    """
    Rows this thread's last program ran: (op, algorithm, isa, dtype).
    """
def lookup(*key: typing.Any) -> typing.Any:
    """
    The result of the program remembered under an equal key, or NotImplemented.
    """
def measure_copy(threads: typing.SupportsInt | typing.SupportsIndex, bytes: typing.SupportsInt | typing.SupportsIndex) -> float:
    ...
def measure_peak(isa: str, dtype: typing.SupportsInt | typing.SupportsIndex, threads: typing.SupportsInt | typing.SupportsIndex) -> float:
    ...
def measure_read(bytes: typing.SupportsInt | typing.SupportsIndex) -> float:
    ...
def remember(program: Program, arrays: tuple, *key: typing.Any) -> None:
    """
    Run this program for calls with an equal key.
    """
def result_cache_bytes() -> int:
    """
    Memory of dead results that is kept now.
    """
def rows() -> list:
    """
    (index, op, algorithm, isa, dtype, family, operands, why this CPU lacks it, packs, precision)
    """
def set_result_cache(bytes: typing.SupportsInt | typing.SupportsIndex) -> None:
    """
    Memory of dead results that is kept for the next ones.
    """
def set_settings(id: typing.SupportsInt | typing.SupportsIndex, threads: typing.SupportsInt | typing.SupportsIndex, process_threads: typing.SupportsInt | typing.SupportsIndex) -> None:
    """
    Settings of the calling thread; id -1: every lookup of this thread misses.
    """
def set_spin_us(microseconds: typing.SupportsInt | typing.SupportsIndex) -> None:
    ...
def struct_sizes() -> dict:
    """
    Bytes of each family's params struct.
    """
def why_not(row: typing.SupportsInt | typing.SupportsIndex, params: bytes) -> typing.Any:
    ...
c_api: typing.Any
