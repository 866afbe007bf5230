"""Our own arms: an eager call of the public function, or a plan for ``@plan=1``, under forced settings."""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np

import cnnkern as ck
from cnnkern.problem import Problem

from . import check, data
from .calls import padding_argument, public_call
from .peers import Cannot, Prepared


@dataclass(frozen=True)
class Forced:
    """What an arm forces; None: free choice."""

    backend: str | None = None
    kernel: str | None = None
    isa: str | None = None
    threads: int | None = None

    def using(self) -> AbstractContextManager:
        return ck.using(backend=self.backend, kernel=self.kernel, isa=self.isa, num_threads=self.threads)


def prepare(problem: Problem, inputs: dict[str, np.ndarray]) -> Prepared:
    """The call a user would write. A plan writes into the same output each time, an eager call makes a new one."""
    if not problem.plan:
        call = public_call(problem, inputs)
        return Prepared(call.bind(), call.pick)
    g = problem.geometry
    if g.rank != 2:
        raise Cannot("plans are for conv2d")
    plan = ck.plan_conv2d(
        inputs["weight"],
        inputs.get("bias"),
        x_shape=inputs["x"].shape,
        x_dtype=inputs["x"].dtype,
        stride=g.stride,
        padding=padding_argument(g),
        dilation=g.dilation,
        groups=g.groups,
        activation=problem.option("activation"),
        precision=problem.precision,
        layout=problem.layout,
    )
    out = data.buffer(problem.outputs[0].shape, problem.outputs[0].dtype)
    return Prepared(functools.partial(plan, inputs["x"], inputs.get("residual"), out), lambda result: (result,))


def verify(problem: Problem, how: str, seed: int) -> tuple[str, str | None]:
    """Run the problem once on the check fill: (the row that serves it here, None or what is wrong with it).

    The public call is compared with what it must be. Then the row itself runs on guarded, poisoned outputs and must
    give the same bits: a public call makes its own outputs, which could hold the right values by chance.
    """
    inputs = data.inputs(problem, "check", seed)
    prepared = prepare(problem, inputs)
    outputs = prepared.outputs(prepared.call())
    (explanation,) = ck.explain(str(problem))
    kernel = explanation.chosen
    if kernel is None:  # the call found a row and its request did not: the mapping between them is wrong
        return "", f"no row serves the request of the case:\n{explanation}"
    row = kernel.full_name(problem.geometry.rank, problem.dtype)
    if how == "off":
        return row, None
    if sentence := check.compare(problem, inputs, outputs, how, row):
        return row, sentence
    guarded, damage = check.run_guarded(problem, inputs, kernel)
    if sentence := damage or check.unwritten(problem, guarded):
        return row, sentence
    for spec, first, second in zip(problem.outputs, outputs, guarded):
        if first is not None and first.tobytes() != second.tobytes():
            return row, f"{spec.name}: the public call and the row itself give different bits"
    return row, None
