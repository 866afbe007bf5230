"""How long a native convolution should take on one core: the cost model behind the choice of an algorithm.

Each part of an algorithm is two numbers, operations and bytes, and takes the sum of their times. (The longer of them, a
roofline, is a bound; of 16 layers measured on one core the sum was the better estimate, by up to a half.)

    seconds = call + sum over parts of operations / (0.95 * peak) + bytes / bandwidth

Parts that run one after the other are added: packing weights (not for a plan, which packed them before), then the
walk. Operations are vector instructions times two lanes, what a multiply-add does in their place, so multiply-adds on
padding, loads, shuffles and the additions of a transform count by the time they take and not by what they compute.
Bytes are the arrays, each moved once, and the weights that a walk reads again for each strip. Arrays are taken to lie
in the last-level cache if they fit half of it, as behind another layer; else in memory.

It orders algorithms; as a prediction it is good to perhaps a third. It knows nothing of threads (``roofline.py``).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, log2, prod

from .. import roofline
from ..spec import ConvGeometry, Request, numpy_dtype

VECTOR_BYTES = {"scalar": 16, "avx2": 32, "avx512": 64, "avx512vnni": 64, "neon": 16}  # csrc/cpu/target_*.cpp
TILE_PIXELS = {"scalar": 6, "avx2": 6, "avx512": 14, "avx512vnni": 14, "neon": 12}
_REACHED = 0.95  # of the peak, by a register tile without tails
_LATENCY = 8  # multiply-adds in flight on two units: a tile with fewer accumulators waits
_STRIP = 448  # outputs for which a walk reads all weights once
_ROWS_LOAD = 11  # instructions per 64 bytes loaded unaligned from the second-level cache (Zen 5, measured: 10 to 15)
_SHORT_ROW = 24  # instructions beside the copy itself, for each row of one channel that is picked or spread by a stride
_GRAD_STRIP = 196  # outputs summed between two visits of the weight gradient


@dataclass(frozen=True)
class _Machine:
    """One core as an algorithm of this instruction set and type sees it."""

    isa: str
    item: int  # bytes of an element of the arrays
    wide: int  # of an element of what is packed and summed: 16-bit types are widened
    lanes: int
    peak: float
    roofs: roofline.Ceilings

    def part(self, slots: float, arrays: float, streamed: float = 0.0) -> float:
        """Seconds of a part: vector instructions, bytes of arrays, bytes of weights read from the last-level cache."""
        bandwidth = self.roofs.cache if arrays <= roofline.last_level() / 2 else self.roofs.memory
        return slots * 2 * self.lanes / (_REACHED * self.peak) + arrays / bandwidth + streamed / self.roofs.cache

    def shuffles(self) -> float:
        """Instructions per vector of a transposition in registers: one shuffle per cycle, where two others start."""
        return 2 * log2(self.lanes)

    def again(self, weights: float, times: float) -> float:
        """Bytes of weights read ``times`` times beyond the first; nothing if they stay in the second-level cache."""
        return 0.0 if weights <= roofline.second_level() / 2 else weights * max(0.0, times - 1)


@dataclass(frozen=True)
class _Walk:
    """A convolution or its input gradient, as reads, sums and writes: the gradient reads y's channels and writes x's.

    ``steps``: (output, tap) pairs of one image, channel read and channel written. ``row``: neighbouring outputs that
    share their taps; a 1x1 window with stride 1 makes one row of all.
    """

    images: int
    groups: int
    reads: int  # channels per group
    writes: int
    taps: int
    steps: float
    row: int
    inputs: int  # elements per image and channel
    outputs: int
    axes: tuple[int, ...]  # sizes of the outputs
    window: tuple[int, ...]
    last: bool  # channels are the arrays' last axis
    across: bool  # weights of neighbouring channels written are neighbours, as vectors of them are packed
    packed: bool  # a plan has packed the weights

    @property
    def weights(self) -> int:
        return self.groups * self.reads * self.writes * self.taps


def _walk(request: Request) -> _Walk:
    g = request.geometry
    assert isinstance(g, ConvGeometry)
    backward = request.op == "conv_grad_input"
    flat = prod(g.kernel) == prod(g.stride) == 1
    into, out = (g.output, g.input) if backward else (g.input, g.output)
    per_axis = zip(out, g.kernel, g.stride) if backward else zip(out, g.kernel, (1,) * g.rank)
    row = ceil(g.input[-1] / g.stride[-1]) if backward else g.output[-1]
    channels = g.in_channels // g.groups, g.out_channels // g.groups
    return _Walk(
        images=g.batch,
        groups=g.groups,
        reads=channels[backward],
        writes=channels[not backward],
        taps=prod(g.kernel),
        steps=prod(size * taps / stride for size, taps, stride in per_axis),
        row=max(1, g.batch * prod(out) if flat else row),
        inputs=prod(into),
        outputs=prod(out),
        axes=out,
        window=g.kernel,
        last=request.layout == "NHWC",
        across=backward and prod(g.kernel) == 1,
        packed=request.prepacked,
    )


def _tile(pixels: float, vectors: float) -> float:
    """Instructions per product step of a register tile: multiply-adds, or loads (two per cycle too), or latency."""
    return max(pixels * vectors, pixels + vectors, _LATENCY)


def _per_pixel(m: _Machine, length: int, channels: int, pairs: bool = False) -> float:
    """Instructions of the register tile per pixel of a row of ``length`` and per product; lanes are ``channels``.

    pairs: two short rows share a tile.
    """
    most = TILE_PIXELS[m.isa]
    pixels = length / ceil(length / most)
    if pairs and 2 * pixels <= most:
        pixels *= 2
    blocks, rest = divmod(channels, 2 * m.lanes)
    slots = blocks * _tile(pixels, 2)
    if rest:
        slots += _tile(pixels, 1 if rest <= m.lanes else 2)
    return slots / pixels


def _packing(m: _Machine, w: _Walk, elements: float, slots: float) -> float:
    """Weights to their packed form within the call: ``elements``, ``slots`` per vector of them."""
    if w.packed:
        return 0.0
    return m.part(elements / m.lanes * slots, w.weights * m.item + elements * m.wide)


def _gather(m: _Machine, w: _Walk) -> float:
    """Instructions for a packed vector of weights: channels written become neighbours."""
    return 3.0 if w.across else 2.0 + m.shuffles()


def _arrays(m: _Machine, w: _Walk) -> float:
    """Bytes of input and output."""
    return w.images * w.groups * (w.reads * w.inputs + w.writes * w.outputs) * m.item


def _vectors(m: _Machine, w: _Walk) -> tuple[float, float]:
    """Vectors of channels in all inputs and in all outputs, the last one of a group partly empty."""
    images = w.images * w.groups
    return images * w.inputs * ceil(w.reads / m.lanes), images * w.outputs * ceil(w.writes / m.lanes)


def _direct(m: _Machine, w: _Walk) -> float:
    if m.item == 1:
        return _direct_int8(m, w)
    packed = w.groups * w.reads * w.taps * ceil(w.writes / m.lanes) * m.lanes
    products = w.images * w.groups * w.reads * w.steps * _per_pixel(m, w.row, w.writes, pairs=True)
    into, out = _vectors(m, w)
    moves = into * (3 + m.shuffles() * w.last) + out * (5 + m.shuffles() * (not w.last))
    visits = max(1.0, w.images * w.outputs / _STRIP)
    if not w.packed and visits <= 2:  # a block of weights is packed into the core's own cache just before each use
        late = visits * m.part(packed / m.lanes * _gather(m, w), w.weights * m.item)
        return late + m.part(products + moves, _arrays(m, w))
    walk = m.part(products + moves, _arrays(m, w) + packed * m.wide, m.again(packed * m.wide, visits))
    if w.packed:
        return min(walk, m.part(0.0, packed * m.wide) + m.part(products + moves, _arrays(m, w)))
    return _packing(m, w, packed, _gather(m, w)) + walk


_CELLS = {"avx512vnni": (4, 1), "neon": (1, 1)}  # channels of a cell (csrc/cpu/conv_int8_cells.inl), instructions
_PAIRS = (2, 2)  # of other instruction sets: vpmaddwd and an addition


def _direct_int8(m: _Machine, w: _Walk) -> float:
    """As ``_direct``, over int32 cells of neighbouring channels."""
    channels, instructions = _CELLS.get(m.isa, _PAIRS)
    cells = ceil(w.reads / channels)
    packed = w.groups * cells * w.taps * ceil(w.writes / m.lanes) * m.lanes
    products = w.images * w.groups * cells * w.steps * _per_pixel(m, w.row, w.writes, pairs=True) * instructions
    into, out = w.images * w.groups * w.inputs * ceil(cells / m.lanes), _vectors(m, w)[1]
    moves = into * (3 + 5 * channels + m.shuffles() * w.last) + out * (5 + m.shuffles() * (not w.last))
    arrays = w.images * w.groups * (w.reads * w.inputs + 4 * w.writes * w.outputs)
    packing = m.part(packed / m.lanes * (2 + 5 * channels + m.shuffles()), w.weights)
    visits = max(1.0, w.images * w.outputs / _STRIP)
    if not w.packed and visits <= 2:  # packed late, as there
        return visits * packing + m.part(products + moves, arrays)
    walk = m.part(products + moves, arrays + packed * 4, m.again(packed * 4, visits))
    return walk if w.packed else packing + m.part(0.0, packed * 4) + walk


def _rows(m: _Machine, w: _Walk) -> float:
    """Lanes are the pixels of a row; a panel of channels written shares a load, which few of them wait for."""
    panels = ceil(w.writes / TILE_PIXELS[m.isa])
    channels = w.writes / max(1, panels)
    most = max(1, min(4 if m.isa == "avx512" else 3, int(2 * TILE_PIXELS[m.isa] // max(1, ceil(channels)))))
    row = min(w.row, max(1, w.outputs))  # a plane of a 1x1 window; images are apart
    vectors = ceil(row / m.lanes)
    wide = vectors / ceil(vectors / most)  # of a tile
    slots = panels * vectors / wide * max(channels * wide, _ROWS_LOAD * VECTOR_BYTES[m.isa] / 64 * wide, _LATENCY)
    products = w.images * w.groups * w.reads * w.steps / row * slots * (1.1 if w.across else 1.0)
    element = m.lanes if w.last else 1  # of channels-last arrays one element at a time
    stored = w.writes * w.outputs * vectors / row * 3 * element
    if w.outputs > w.inputs and w.taps == 1:  # a strided gradient: zeros between
        stored = (
            w.writes * w.outputs / max(1, w.axes[-1]) * (2 * _SHORT_ROW + 32 * ceil(w.axes[-1] / m.lanes)) * element
        )
    copied = w.reads * w.inputs / m.lanes * 3
    if w.inputs > w.outputs and w.taps == 1:  # a stride: row by row, pixels picked from twice as many
        copied = w.reads * w.outputs / max(1, w.axes[-1]) * (2 * _SHORT_ROW + 16 * ceil(w.axes[-1] / m.lanes))
    moves = w.images * w.groups * (copied + stored)
    moves += w.last * m.shuffles() * _vectors(m, w)[0]
    weights = 2.0 * (w.images if w.groups > 1 else 1) * w.weights  # one by one, for each strip of another group
    into = w.images * w.groups * w.reads * w.inputs * m.item  # results are written while others are computed
    walk = m.part(products + moves + weights, into + w.weights * m.item)
    return max(walk, m.part(0.0, _arrays(m, w)))


def _depthwise(m: _Machine, w: _Walk) -> float:
    """Lanes are channels in NHWC, pixels in NCHW; weights stay in registers."""
    maps = w.groups * w.writes
    vectors = ceil(maps / m.lanes) / m.lanes if w.last else maps * ceil(w.row / m.lanes) / w.row
    steps = w.reads * w.steps + 4 * w.outputs  # a load for each new column of the window, epilogue, store
    return m.part(w.images * vectors * steps, _arrays(m, w) + w.weights * m.item)


def _gemm(m: _Machine, w: _Walk) -> float:
    """1x1: lanes are pixels, neighbours in NCHW alone; weights are copied, a panel at a time, for each strip."""
    pixels = w.images * w.steps
    vectors = w.groups * ceil(pixels / m.lanes)
    products = vectors * w.reads * w.writes * (1.15 if w.across else 1.0)
    element = m.lanes * 3 if w.last else 1  # of channels-last arrays one element at a time
    copied, stored = 3.0 * vectors * w.reads * element, 3.0 * vectors * w.writes * element
    if w.inputs > w.steps:  # a stride: row by row, pixels picked from twice as many
        rows = w.images * w.groups * w.reads * w.outputs / max(1, w.axes[-1])
        copied = rows * (_SHORT_ROW + 8 * ceil(w.axes[-1] / m.lanes)) * element
    if w.outputs > w.steps:  # its gradient: zeros between
        rows = w.images * w.groups * w.writes * w.outputs / max(1, w.axes[-1])
        stored = rows * (2 * _SHORT_ROW + 32 * ceil(w.axes[-1] / m.lanes)) * element
    visits = max(1.0, pixels / _STRIP)
    panels = 0.0 if w.packed else visits * w.weights / m.lanes * 2
    if w.inputs == w.outputs and w.outputs % m.lanes == 0 and w.writes <= min(128, 2 * w.reads) and not w.last:
        copied = 0.0  # read in place
    # Fetched while the strip before is multiplied; but few strips wait for the gradient's weights to be packed.
    ahead = w.inputs == w.outputs and not w.last and not (w.across and visits <= 2)
    fetched = _arrays(m, w) if ahead else 0.0
    arrays = _arrays(m, w) - fetched + w.weights * m.item
    walk = m.part(products + copied + stored + panels, arrays, m.again(w.weights * m.item, visits))
    return max(walk, m.part(0.0, fetched))


@dataclass(frozen=True)
class _Form:
    """A Winograd algorithm F(outputs, taps) on both axes: instructions of its transforms per tile (weights: per filter)
    and vector, with loads and stores."""

    outputs: int
    taps: int
    input: int
    inverse: int
    weights: int

    @property
    def cells(self) -> int:
        return (self.outputs + self.taps - 1) ** 2

    def tiles(self, w: _Walk) -> int:
        return w.images * prod(ceil(size / self.outputs) for size in w.axes)


_FORMS = (  # arithmetic, then loads and stores
    _Form(4, 3, input=144 + 36 + 36, inverse=100 + 36 + 16, weights=54 + 9 + 36),
    _Form(2, 5, input=144 + 36 + 36, inverse=48 + 36 + 4, weights=154 + 25 + 36),
)
_SMALL_FORMS = (_Form(2, 3, input=32 + 16 + 16, inverse=24 + 16 + 4, weights=28 + 9 + 16),)
_TILES_TOGETHER = 64  # tiles for which the products read all transformed weights once
_WINOGRAD_REACHED = 0.85  # of what direct reaches: transforms wait for loads and stores


def _form(forms: tuple[_Form, ...], w: _Walk) -> _Form | None:
    return next((form for form in forms if w.window == (form.taps, form.taps)), None)


def _winograd(forms: tuple[_Form, ...], m: _Machine, w: _Walk) -> float | None:
    form = _form(forms, w)
    if form is None:
        return None
    tiles = form.tiles(w)
    filters = w.groups * w.reads * ceil(w.writes / m.lanes)  # vectors of them
    transformed = filters * m.lanes * form.cells * m.wide
    products = w.groups * form.cells * tiles * w.reads * _per_pixel(m, max(1, tiles), w.writes)
    transforms = w.groups * tiles * (ceil(w.reads / m.lanes) * form.input + ceil(w.writes / m.lanes) * form.inverse)
    moves = sum(_vectors(m, w)) * m.shuffles() * (not w.last)
    slots = (products + transforms + moves) / _WINOGRAD_REACHED
    visits = max(1.0, tiles / _TILES_TOGETHER)  # of all transformed weights
    walk = m.part(slots, _arrays(m, w) + transformed, m.again(transformed, visits))
    if w.packed:  # transformed before, or transformed late from weights that need no shuffles
        late = visits * m.part(filters * form.weights, w.weights * m.wide, transformed)
        return min(walk, late + m.part(slots, _arrays(m, w)))
    early = m.part(filters * _transform(m, form), w.weights * m.item + transformed) + walk
    # Many weights, or few tiles: transformed in the core's own cache, anew for each group of tiles.
    late = visits * m.part(filters * _transform(m, form), w.weights * m.item, transformed)
    return min(early, late + m.part(slots, _arrays(m, w)))


def _transform(m: _Machine, form: _Form) -> float:
    """Instructions for a vector of filters, channels first in memory and last in the transformed ones."""
    return form.weights + form.taps**2 * m.shuffles()


_SPLIT = {"split6": (6, 3), "split3": (3, 2), "split1": (1, 1)}  # products, and bfloat16 parts of a float32
_AMX = 32  # pixels and channels of two tiles, and products of a step


def _blocks(w: _Walk) -> float:
    """Blocks of 32 products per tap: neighbouring taps of a row share one where few channels leave room."""
    taps = w.window[-1]
    most = min(taps, 2 * _AMX // max(1, w.reads))
    return min(ceil(taps / n) * ceil(w.reads * n / _AMX) for n in range(1, max(1, most) + 1)) / taps


def _matrix(products: int, m: _Machine, w: _Walk) -> float:
    """Seconds of the tile products: 32 outputs by 32 channels by 32 channels, the pad column of each row computed."""
    pixels = ceil(w.images * w.outputs * (1 + (w.taps > 1) / w.row) / _AMX) * _AMX
    padded = _blocks(w) * ceil(w.writes / _AMX) * _AMX**2 * w.groups
    operations = 2.0 * products * pixels * padded * (w.steps / w.outputs if w.outputs else 0.0)
    return operations / (_REACHED * m.roofs.peaks["amx.bf16"])


def _split(algorithm: str, m: _Machine, w: _Walk) -> float:
    """Operands as sums of bfloat16 parts, multiplied on AMX tiles; splitting and write-back in AVX-512."""
    products, parts = _SPLIT[algorithm]
    packed = _blocks(w) * ceil(w.writes / _AMX) * _AMX**2 * w.groups * w.taps * 2 * parts / m.item
    into, out = _vectors(m, w)
    splitting = 2 + m.shuffles() + 4 * parts
    moves = into * splitting + out * (5 + m.shuffles() * (not w.last))
    streamed = m.again(packed * m.item, w.images * w.outputs / _STRIP)
    moving = m.part(0.0, _arrays(m, w) + packed * m.item, streamed)
    walk = max(_matrix(products, m, w) + m.part(moves, 0.0), moving)
    return _packing(m, w, packed, splitting) + walk


def _grad_weight(m: _Machine, w: _Walk, slots: float) -> float:
    """The arrays transposed to channels last; the gradient written, from the second strip on in a packed form first."""
    into, out = _vectors(m, w)
    if w.reads == 3 and not w.last:  # an image, woven: 20 instructions for a vector of each channel
        into *= 20 / m.lanes / (3 + m.shuffles())
    moves = (into + out) * (3 + m.shuffles() * (not w.last))
    packed = w.groups * w.reads * w.taps * ceil(w.writes / m.lanes) * m.lanes
    passes = 1 if w.images * w.outputs <= _GRAD_STRIP else 3
    return m.part(slots + moves + 3 * packed / m.lanes, _arrays(m, w) + passes * packed * m.wide)


def _grad_weight_direct(m: _Machine, w: _Walk) -> float:
    """A tile holds neighbouring elements of a row of the window, taps and channels, and sums over pixels."""
    run = max(1, w.window[-1] * w.reads)
    strips = w.images * w.outputs / _GRAD_STRIP
    again = m.part(0.0, 0.0, 2 * m.again(w.weights * m.wide, strips - 1))  # sums, written and read between two strips
    return again + _grad_weight(m, w, w.images * w.groups * w.steps * w.reads * _per_pixel(m, run, w.writes))


def _grad_weight_winograd(forms: tuple[_Form, ...], m: _Machine, w: _Walk) -> float | None:
    """F(taps, outputs): both arrays transformed, products summed over all tiles, one inverse transform."""
    form = _form(forms, w)
    if form is None:
        return None
    together = max(1, m.lanes // 2)  # channels read that a tile holds, the last one too
    products = form.cells * ceil(w.reads / together) * together * _per_pixel(m, max(1, w.reads), w.writes)
    transforms = ceil(w.reads / m.lanes) * form.input + ceil(w.writes / m.lanes) * form.inverse
    filters = w.groups * w.reads * ceil(w.writes / m.lanes)
    sums = filters * m.lanes * form.cells * m.wide
    back = m.part(filters * _transform(m, form), 0.0, 2 * sums)  # written, then read
    return back + _grad_weight(m, w, w.groups * form.tiles(w) * (products + transforms) / _WINOGRAD_REACHED)


# csrc/cpu/conv_rows_grad_weight.inl: pairs of channel and tap in a tile, times 4 or 2 output channels.
_DOT_COLUMNS = 6
_DOT_ROW = 24  # instructions beside the products for each row of outputs, pointers and a last vector
_DOT_UNIT = 90  # for each unit, to add up lanes
_DOT_PIXELS = 1024  # outputs of a unit


def _grad_weight_rows(m: _Machine, w: _Walk) -> float:
    """Lanes are the outputs of a row: tiles of output channels times (channel, tap) pairs, nothing transposed."""
    rows, pairs = (4 if TILE_PIXELS[m.isa] >= 12 else 2), w.reads * w.taps
    tiles = w.groups * ceil(w.writes / rows) * ceil(pairs / _DOT_COLUMNS)
    row, plane = (w.outputs if w.taps == 1 else max(1, w.axes[-1])), max(1, w.outputs)
    images = max(1, min(w.images, _DOT_PIXELS // plane))  # of a unit
    joined = w.taps == 1 and images > 1 and 20 * plane < 19 * ceil(plane / m.lanes) * m.lanes
    if joined:
        row = images * plane
    lines, units = w.images * w.outputs / max(1, row), ceil(w.images / images) * ceil(plane / _DOT_PIXELS)
    products = tiles * (lines * (ceil(row / m.lanes) * rows * _DOT_COLUMNS + _DOT_ROW) + units * _DOT_UNIT)
    into, out = w.images * w.groups * w.reads * w.inputs / m.lanes, w.images * w.groups * w.writes * w.outputs / m.lanes
    moves = 3.0 * (into * (w.taps > 1 or joined) + out * (joined or pairs >= max(128, 2 * w.writes)))
    if w.inputs > w.outputs and w.taps == 1:  # a stride: row by row, pixels picked from twice as many
        picked = w.images * w.groups * w.reads * w.outputs / max(1, w.axes[-1])
        moves += picked * (2 * _SHORT_ROW + 40 * ceil(w.axes[-1] / m.lanes))
    moves += w.last * m.shuffles() * (into + out)
    copied = _arrays(m, w) if joined or (w.inputs > w.outputs and w.taps == 1) else 0.0
    fetched = m.part(0.0, _arrays(m, w) - copied)  # while tiles are computed
    return max(m.part(products + moves, copied), fetched) + m.part(0.0, 2 * w.weights * m.wide)


def _grad_weight_split(algorithm: str, m: _Machine, w: _Walk) -> float:
    products, parts = _SPLIT[algorithm]
    return _matrix(products, m, w) + _grad_weight(m, w, sum(_vectors(m, w)) * 4 * parts)


_Model = Callable[[_Machine, _Walk], "float | None"]
_FORWARD: dict[str, _Model] = {
    "direct": _direct,
    "rows": _rows,
    "gemm": _gemm,
    "depthwise": _depthwise,
    "winograd": functools.partial(_winograd, _FORMS),
    "winograd_f2": functools.partial(_winograd, _SMALL_FORMS),
    **{name: functools.partial(_split, name) for name in _SPLIT},
}
_GRAD_WEIGHT: dict[str, _Model] = {
    "direct": _grad_weight_direct,
    "rows": _grad_weight_rows,
    "depthwise": _depthwise,
    "winograd": functools.partial(_grad_weight_winograd, _FORMS),
    "winograd_f2": functools.partial(_grad_weight_winograd, _SMALL_FORMS),
    **{name: functools.partial(_grad_weight_split, name) for name in _SPLIT},
}
_MODELS = {"conv": _FORWARD, "conv_grad_input": _FORWARD, "conv_grad_weight": _GRAD_WEIGHT}


def cost(op: str, algorithm: str, isa: str) -> Callable[[Request], float | None] | None:
    """The column ``Kernel.cost`` of a native row: seconds of a request on one core; None where there is no model."""
    model = _MODELS.get(op, {}).get(algorithm)
    return None if model is None else functools.partial(_seconds, model, isa)


def _seconds(model: _Model, isa: str, request: Request) -> float | None:
    roofs = roofline.current()
    item = numpy_dtype(request.dtype).itemsize
    dtype = "f64" if request.dtype == "f64" else "f32"  # shorter types are widened
    wide = int(dtype[1:]) // 8
    vectors = "avx512" if isa == "amx" else isa  # beside its tiles, such a row computes in AVX-512
    lanes = VECTOR_BYTES[vectors] // wide
    machine = _Machine(vectors, item, wide, lanes, roofs.peaks[f"{vectors}.{dtype}"], roofs)
    seconds = model(machine, _walk(request))
    return None if seconds is None else roofs.call + seconds
