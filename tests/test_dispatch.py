"""Which row runs and why: the table, forced choices, explanations, the fallback. What the native cache must not confuse
is in ``test_plan_cache.py``, settings and the environment in ``test_settings.py``."""

from __future__ import annotations

import logging

import numpy as np
import pytest

import cnnkern as ck
from cnnkern import dispatch, plan
from cnnkern.config import BACKENDS
from cnnkern.spec import DTYPES, ISA_LEVELS, OPS, PRECISIONS, op_name
from matrix import AVAILABLE, COMPLETE, NATIVE, ROWS, each_row, needs_native
from scripts import output_of, run_script

pytestmark = pytest.mark.usefixtures("plain_settings")

X = np.ones((1, 4, 6, 6), np.float32)
W = np.ones((8, 4, 3, 3), np.float32)
HALF = X.astype(np.float16)  # of which relu has no native row


# ---- the table


def test_columns_of_the_table_name_what_exists() -> None:
    assert ROWS
    for row in ROWS:
        assert row.op in OPS and row.backend in BACKENDS
        assert row.isa is None or row.isa in (*ISA_LEVELS, "neon")
        assert row.dtypes and set(row.dtypes) <= set(DTYPES)
        assert row.layouts and set(row.layouts) <= {"NCHW", "NHWC"}
        assert row.ranks and set(row.ranks) <= set(OPS[row.op].ranks)
        assert row.precisions and set(row.precisions) <= set(PRECISIONS)
        assert row.name == ".".join(filter(None, (row.backend, row.algorithm, row.isa)))
    names = [(row.op, row.name) for row in ROWS]
    assert len(names) == len(set(names)), "two rows of one name"


def test_kernels_selects_by_op_with_or_without_rank_and_by_backend() -> None:
    for op, spec in OPS.items():
        rows = ck.kernels(op)
        assert rows == [row for row in ROWS if row.op == op]
        assert all(ck.kernels(op_name(op, rank)) == rows for rank in spec.ranks)
    assert ck.kernels(backend="cpp") == NATIVE
    assert ck.kernels("conv", "reference") == [row for row in ROWS if (row.op, row.backend) == ("conv", "reference")]
    with pytest.raises(ck.ArgumentError, match=r"op 'conv4d' is not known\. Use one of conv, "):
        ck.kernels("conv4d")
    with pytest.raises(ck.ArgumentError, match="backend must be one of cpp, reference, got 'cuda'"):
        ck.kernels(backend="cuda")


@needs_native
def test_the_table_lists_faster_backends_and_stronger_instruction_sets_first() -> None:
    order = [BACKENDS.index(row.backend) for row in ROWS]
    assert order == sorted(order)
    for op in OPS:
        for algorithm in {row.algorithm for row in NATIVE if row.op == op}:
            isas = [ISA_LEVELS.index(row.isa) for row in NATIVE if (row.op, row.algorithm) == (op, algorithm)]
            assert isas == sorted(isas, reverse=True)


# ---- forced choices


def rows_of_conv2d() -> tuple[str, ...]:
    ck.conv2d(X, W)
    return plan.last_rows()


@each_row("conv")
def test_a_forced_row_runs_or_says_why_not(row: dispatch.Kernel) -> None:
    with ck.using(kernel=row.name):
        if "f32" in row.dtypes and row.why_not(ck.explain("conv2d", X, W)[0].request) is None:
            assert rows_of_conv2d() == (f"conv.{row.name}.f32",)
        else:
            with pytest.raises(ck.NoKernelError, match=rf"conv2d\.{row.name}\.f32 +(needs|serves) "):
                ck.conv2d(X, W)


@needs_native
@pytest.mark.parametrize("isa", COMPLETE)
def test_an_instruction_set_is_a_ceiling(isa: str) -> None:
    with ck.using(backend="cpp", isa=isa):
        assert rows_of_conv2d()[0].split(".")[3] == isa
        for kernel in (row for row in NATIVE if row.op == "conv" and row.isa in AVAILABLE):
            if ISA_LEVELS.index(kernel.isa) > ISA_LEVELS.index(isa):
                with ck.using(kernel=kernel.name), pytest.raises(ck.NoKernelError, match=f"the ceiling is {isa}"):
                    ck.conv2d(X, W)


@needs_native
def test_the_best_instruction_set_is_chosen_freely() -> None:
    assert rows_of_conv2d()[0].split(".")[3] == max(COMPLETE, key=ISA_LEVELS.index)


@needs_native
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_forced_backend_or_the_beginning_of_a_name_leaves_the_rest_free(backend: str) -> None:
    for how in ({"backend": backend}, {"kernel": backend}, {"kernel": f"{backend}.direct"}):
        with ck.using(**how):
            assert rows_of_conv2d()[0].startswith(f"conv.{backend}.direct")


@needs_native
def test_all_steps_of_a_call_are_forced_and_told() -> None:
    gy = np.ones((1, 8, 4, 4), np.float32)
    for name in ("cpp.direct.scalar", "reference.direct"):
        with ck.using(kernel=name):
            ck.conv2d_backward(gy, X, W)
        assert plan.last_rows() == tuple(
            f"{op}.{name}.f32" for op in ("conv_grad_input", "conv_grad_weight", "channel_sum")
        )


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ({"backend": "cuda"}, "backend must be one of cpp, reference, got 'cuda'"),
        ({"isa": "sse9"}, "isa must be one of scalar, avx2, avx512, avx512vnni, amx, neon, got 'sse9'"),
        ({"precision": "double"}, "precision must be one of strict, f32, fast, bf16, got 'double'"),
        ({"kernel": ""}, "kernel must name a row"),
        ({"kernel": 3}, "kernel must name a row"),
        ({"num_threads": 0}, "num_threads must be an int from 1 to 1024, got 0"),
        ({"num_threads": 2.0}, "num_threads must be an int from 1 to 1024, got 2.0"),
        ({"num_threads": True}, "num_threads must be an int from 1 to 1024, got True"),
    ],
    ids=str,
)
def test_values_that_are_no_choice_are_refused_at_once(how: dict, sentence: str) -> None:
    with pytest.raises(ck.ArgumentError, match=sentence):
        ck.using(**how)


@needs_native
@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ({"kernel": "cuda.direct"}, "kernel 'cuda.direct' names no backend. Begin with one of cpp, reference."),
        ({"kernel": "cpp.magic"}, "kernel 'cpp.magic' names no row. Rows of cpp: cpp.depthwise."),
        ({"kernel": "cpp.direct.amx"}, "kernel 'cpp.direct.amx' names no row."),
        ({"kernel": "cpp.direct.avx2.f32"}, "kernel 'cpp.direct.avx2.f32' names no row."),
    ],
    ids=str,
)
def test_a_forced_choice_that_does_not_exist_is_an_error_of_the_op(how: dict, sentence: str) -> None:
    with ck.using(**how):
        for _ in range(2):
            with pytest.raises(ck.ArgumentError, match=sentence):
                ck.conv2d(X, W)


@needs_native
@pytest.mark.skipif("neon" in AVAILABLE, reason="this CPU lacks avx2")
def test_an_instruction_set_that_is_not_here_is_an_error_of_the_op() -> None:
    with ck.using(isa="neon"), pytest.raises(ck.ArgumentError, match=r"isa 'neon' is not available.* offer scalar"):
        ck.conv2d(X, W)


@needs_native
@pytest.mark.parametrize(
    "how", [{"backend": "cpp"}, {"kernel": "cpp.direct"}, {"kernel": "cpp.direct.scalar"}], ids=str
)
def test_a_forced_choice_that_cannot_serve_is_never_replaced(how: dict) -> None:
    """The reference could compute float16; the error lists every row with its sentence."""
    with ck.using(**how), pytest.raises(ck.NoKernelError) as caught:
        ck.relu(HALF)
    lines = str(caught.value).splitlines()[2:]
    assert len(lines) == len(ck.kernels("relu"))
    assert any("needs dtype f32 or f64, got f16" in line for line in lines)
    assert lines[-1].endswith("was asked for")


# ---- the fallback


@needs_native
def test_falling_to_a_slower_backend_is_logged_once_with_the_reason(caplog: pytest.LogCaptureFixture) -> None:
    if dispatch.config.strict_backend:
        with pytest.raises(ck.NoKernelError, match="CNNKERN_STRICT=1"):
            ck.relu(HALF)
        return
    dispatch._noted.clear()
    dispatch._choose.cache_clear()
    with caplog.at_level(logging.WARNING, "cnnkern"):
        for size in (6, 6, 7):
            ck.relu(np.ones((1, 4, size, size), np.float16))
            assert plan.last_rows() == ("relu.reference.direct.f16",)
    (record,) = caplog.records
    sentence = "relu f16 runs on the slower backend reference: needs dtype f32 or f64, got f16"
    assert record.getMessage().startswith(sentence)


_STRICT = """
import numpy as np, cnnkern as ck
x = np.ones((1, 4, 6, 6), np.float16)
for _ in range(2):
    try:
        ck.relu(x)
    except ck.NoKernelError as error:
        assert "CNNKERN_STRICT=1 makes this an error" in str(error) and "needs dtype f32 or f64, got f16" in str(error)
    else:
        raise SystemExit("the call fell back silently")
with ck.using(backend="reference"):
    ck.relu(x)  # asked for, so no fall
print("ok")
"""


@needs_native
def test_strict_makes_the_fall_an_error() -> None:
    assert output_of(_STRICT, environment={"CNNKERN_STRICT": "1"}) == "ok\n"


_WITHOUT_NATIVE = """
import logging, sys
sys.modules["cnnkern._cnnkern_core"] = None  # importing it raises ImportError
logging.basicConfig(format="%(message)s", stream=sys.stdout)
import numpy as np, cnnkern as ck
from cnnkern import plan
x, w = np.ones((1, 4, 6, 6), np.float32), np.ones((8, 4, 3, 3), np.float32)
for _ in range(2):
    assert (ck.conv2d(x, w) == 36).all()
    assert plan.last_rows() == ("conv.reference.direct.f32",)
made = ck.plan_conv2d(w, x_shape=x.shape)
assert (made(x) == 36).all() and made.kernel == "reference.direct"
info = ck.build_info()
assert info["loads"] is False and "_cnnkern_core" in info["load_error"] and info["available"] == []
assert str(ck.explain("conv2d", x, w)).splitlines()[1].startswith("  cpp ")
for how in ({"backend": "cpp"}, {"kernel": "cpp.direct.avx2"}):
    with ck.using(**how):
        try:
            ck.conv2d(x, w)
        except ck.NoKernelError as error:
            assert "backend cpp is not available" in str(error)
        else:
            raise SystemExit("a forced choice was replaced")
"""


def test_without_the_native_module_everything_runs_and_says_so_once() -> None:
    lines = output_of(_WITHOUT_NATIVE).splitlines()
    assert len(lines) == 1 and lines[0].startswith(
        "conv2d f32 runs on the slower backend reference: backend cpp is not"
    )


def test_without_the_native_module_strict_refuses() -> None:
    status, _, errors = run_script(_WITHOUT_NATIVE, environment={"CNNKERN_STRICT": "1"})
    assert status == 1 and "NoKernelError" in errors and "backend cpp is not available" in errors


# ---- explanations


def test_an_explanation_has_a_line_for_every_row_and_names_the_one_that_runs() -> None:
    (explanation,) = ck.explain("conv2d", X, W)
    chosen = explanation.chosen
    assert chosen is not None
    assert [v.kernel for v in explanation.verdicts if v.kernel] and len(explanation.verdicts) == len(ck.kernels("conv"))
    lines = str(explanation).splitlines()
    assert lines[0] == "conv2d f32 NCHW"
    assert len(lines) == 1 + len(explanation.verdicts)
    assert [line for line in lines if "  chosen" in line] == [
        line for line in lines if f"conv2d.{chosen.name}.f32 " in line
    ]
    assert rows_of_conv2d() == (f"conv.{chosen.name}.f32",)


def test_an_explanation_of_a_call_with_several_ops_has_one_table_each() -> None:
    made = ck.explain("conv2d_backward", np.ones((1, 8, 4, 4), np.float32), X, W)
    assert [e.request.op for e in made] == ["conv_grad_input", "conv_grad_weight", "channel_sum"]
    assert str(made).count("chosen") == 3


def test_an_explanation_of_a_problem_string() -> None:
    (explanation,) = ck.explain("max_pool2d:mb1ic3ih7kh3sh2@layout=NHWC@dt=f64")
    assert str(explanation).startswith("max_pool2d f64 NHWC\n")
    assert explanation.chosen is not None and explanation.chosen.op == "max_pool"


@needs_native
def test_an_explanation_says_why_not_in_sentences() -> None:
    with ck.using(isa="scalar"):
        text = str(ck.explain("conv2d", X, W))
    for isa in COMPLETE:
        if isa != "scalar":
            assert f"needs isa {isa}, the ceiling is scalar" in text
    with ck.using(backend="reference"):
        assert "backend reference was asked for" in str(ck.explain("conv2d", X, W))
    text = str(ck.explain("relu", HALF))
    assert "needs dtype f32 or f64, got f16" in text
    assert "relu.reference.direct.f16" in text and text.splitlines()[-1].endswith("chosen")


def test_explaining_runs_nothing_and_leaves_nothing_behind() -> None:
    before = rows_of_conv2d()
    out = np.full((1, 8, 4, 4), np.nan, np.float32)
    ck.explain("conv2d", X, W, out=out)
    assert np.isnan(out).all() and plan.last_rows() == before
    assert (ck.conv2d(X, W, out=out) == 36).all()
    with pytest.raises(ck.ShapeError, match="weight expects 4 channels per group, x has 3"):
        ck.explain("conv2d", X[:, :3], W)
    assert (ck.conv2d(X, W) == 36).all()


def test_what_cannot_be_explained_is_refused() -> None:
    with pytest.raises(
        ck.ArgumentError, match="op must name a public op such as 'conv2d', or be a problem string, got 'conv4d'"
    ):
        ck.explain("conv4d", X, W)
    with pytest.raises(ck.ArgumentError):
        ck.explain("conv2d:mb1")
