"""What each kernel has to do in a launch: how often loops run, what is moved, what waits for what.

The instructions are those of the machine code and the launches those of csrc; what stands here is
how often a loop is passed for a problem's sizes, which only the source tells. A kernel without a
rule counts as instructions that are each executed once, from a load to a store.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from bench.launched import SCHEDULERS, WARP, Launched
from bench.machine_code import Code, Kernel, Loop
from bench.time_model import KernelWork, issue_cycles

__all__ = ["RULES", "work_of"]


@dataclass(frozen=True)
class Found:
    """What a rule says of a launch.

    Attributes
    ----------
    warp : float
        Cycles of a scheduler for the average warp of the launch.
    memory_bytes, l2_bytes, cached_bytes, chain
        As of `KernelWork`; the chain is that of one block.
    """

    warp: float
    memory_bytes: float = 0.0
    l2_bytes: float = 0.0
    cached_bytes: float = 0.0
    chain: Mapping[str, float] = field(default_factory=dict)


Rule = Callable[[Launched], Found]


def work_of(launched: Launched, name: str, *, times: float = 1.0) -> KernelWork:
    """Return the work of a launch; `name` is what the kernel is called in tables."""
    found = RULES.get(name.split("<")[0], _once)(launched)
    return KernelWork(
        kernel=name,
        times=times,
        blocks=launched.launch.blocks,
        issue_cycles=launched.busiest * found.warp,
        warps=launched.resident * launched.warps_of_block / SCHEDULERS,
        memory_bytes=found.memory_bytes,
        l2_bytes=found.l2_bytes,
        cached_bytes=found.cached_bytes,
        chain={step: n * launched.turns for step, n in found.chain.items()},
        overlaps=launched.launch.overlaps,
    )


def _once(here: Launched) -> Found:
    """Every instruction once: a thread a number."""
    moved = 8.0 * here.launch.blocks * here.launch.threads
    return Found(issue_cycles(here.code.own), l2_bytes=moved, chain={"l2": 1, "cycles": 100})


# Dense X ------------------------------------------------------------------------------------------


def _element_bytes(here: Launched) -> float:
    return here.sizes.get("element_bytes", 4)


def _tile_loop(here: Launched) -> tuple[Loop, Code]:
    """Return the loop over the entries of a tile, and what is executed once a tile around it."""
    hot = here.code.hot_loop()
    if hot is None:
        raise ValueError(f"{here.launch.symbol} multiplies and adds in no loop")
    around = here.code.around(hot)
    if around is None:
        return hot, Code()
    # X is copied in the largest pieces that there is a way for; the other ways are not taken.
    most = max((loop.copied_bytes for loop in around.inner if loop is not hot), default=0)
    copies = [loop.own for loop in around.inner if most > 0 and loop.copied_bytes == most]
    return hot, sum(copies, around.own)


def _half_step(here: Launched) -> Found:
    s, of = here.sizes, "W" if here.has("FactorE0") else "H"
    products = 1 if here.has("LossE0") else 2
    items, depth = s[f"{of}_items"], s[f"{of}_depth"]
    tiles, each = s[f"{of}_tiles"], s[f"{of}_each"]
    hot, around = _tile_loop(here)
    multiply_adds = items * depth * s["used"] * products
    passes = multiply_adds / hot.own.multiply_adds
    # Splits do not divide the depth evenly: the average warp has less than `each`.
    deep = s["f"] if of == "W" else s["n"]
    in_all = math.ceil(deep / depth)
    average = in_all / s[f"{of}_splits"]
    tile = issue_cycles(hot.own * passes + around)
    ends = issue_cycles(here.code.own)
    if s[f"{of}_splits"] == 1 and products == 2:  # new values in a loop, a vector of four a lane
        ends += items * s["padded"] / (4 * WARP) * _of_division(here.code)
    warp = tile * min(each, max(average, each - 0.5)) + ends
    batch = s["batch"]
    X = (batch if s["own_X"] else 1) * s["n"] * s["f"] * _element_bytes(here)
    own = s["n"] if of == "W" else s["f"]
    sums = 4 * batch * s[f"{of}_splits"] * own * s["padded"] if s[f"{of}_splits"] > 1 else 0
    others = 4 * batch * tiles * deep * s["padded"]
    again = s.get("reread_bytes", 0.0)  # what of X a pass finds in L2 although not all is there
    return Found(
        warp,
        memory_bytes=X - min(again, X),
        l2_bytes=sums + others + min(again, X),
        cached_bytes=X - min(again, X),
        # A tile is asked for while the one before is worked on.
        chain={"memory": 1, "cycles": each * tile},
    )


def _of_division(code: Kernel) -> float:
    """Return the cycles of a pass of the loop that divides: that finds new values."""
    loops = [loop.own for loop in code.all_loops() if loop.own.opcodes.get("FCHK", 0)]
    return max(map(issue_cycles, loops), default=0.0)


def _tensor_half_step(here: Launched) -> Found:
    """Take a warp for 32 rows, in units of 16 of their depth: 24 products of 16 x 8 x 8, thrice.

    H walks backwards after W, so that each begins with what of X the other has left in L2.
    """
    s, of = here.sizes, "W" if here.has("FactorE0") else "H"
    hot = here.code.hot_loop()
    if hot is None:
        raise ValueError(f"{here.launch.symbol} multiplies and adds in no loop")
    units = s[f"{of}_each"] * s[f"{of}_depth"] / 16
    passes = units * 32 * 16 * 16 * 2 * 3 / hot.own.multiply_adds
    around = here.code.around(hot)
    tile = Code() if around is None else (around.own + _copying(around)) * s[f"{of}_each"]
    cycles = issue_cycles(hot.own * passes + tile)
    X = (s["batch"] if s["own_X"] else 1) * s["n"] * s["f"] * _element_bytes(here)
    own = s["n"] if of == "W" else s["f"]
    sums = 4 * s["batch"] * s[f"{of}_splits"] * own * 16
    deep = s["f"] if of == "W" else s["n"]
    others = 8 * s["batch"] * math.ceil(own / 256) * deep * 16  # of a block; each in two parts
    again = min(X, 0.6 * here.device.l2_bytes)
    return Found(
        cycles + issue_cycles(here.code.own),
        memory_bytes=X - again,
        cached_bytes=X - again,
        l2_bytes=sums + others + again,
        chain={"memory": 1, "barrier": s[f"{of}_each"], "cycles": cycles},
    )


def _copying(around: Loop) -> Code:
    """Return what copies whole pieces of 16 bytes in a loop; what copies others is not executed."""
    return sum((loop.own for loop in around.inner if loop.copied_bytes == 16), Code())


def _of_load(code: Kernel) -> float:
    """Return the cycles of a load and what is done with it, in the loop that has most of them."""
    loops = [loop.own for loop in code.all_loops() if loop.own.opcodes.get("LDG", 0) > 0]
    return min((issue_cycles(own) / own.opcodes["LDG"] for own in loops), default=10.0)


def _of_four_parts(code: Kernel) -> tuple[float, float]:
    """Return the cycles of four loads of a vector of parts, and of four sums of components."""
    loops = [loop.own for loop in code.all_loops() if loop.own.opcodes.get("LDG", 0) == 4]
    cycles = sorted(issue_cycles(own) for own in loops) or [40.0]
    return cycles[-1], cycles[0]


def _update(here: Launched) -> Found:
    """Take parts four at a time, a vector a thread, then sums of components, then new values."""
    s, of = here.sizes, "W" if here.before % 2 == 0 else "H"
    parts, own = s[f"{of}_splits"], s["n"] if of == "W" else s["f"]
    values = s["batch"] * own * s["padded"] / here.launch.blocks  # of a block
    ways = min(8.0, 2.0 ** round(math.log2(max(1.0, 1024 / values))))
    rounds = math.ceil(parts / ways / 4)
    rounds_of_sums = math.ceil(parts * s["padded"] / 256 / 4)
    of_parts, of_sums = _of_four_parts(here.code)
    new = values / 256  # of a thread
    warp = issue_cycles(here.code.own) + rounds * of_parts + rounds_of_sums * of_sums
    warp += new * (_of_division(here.code) + 6 * (ways - 1)) + 6 * 7  # six for a sum of shared ones
    return Found(
        warp,
        l2_bytes=4 * s["batch"] * parts * own * s["padded"],
        chain={
            "l2": rounds + rounds_of_sums + math.ceil(new),
            "barrier": 1,
            "shared": 8 + ways * math.ceil(new),
            "cycles": 0.5 * warp + 200,
        },
    )


def _sum_parts(here: Launched) -> Found:
    """Parts are chunks of a Gram matrix, rows that are summed, or splits of X H^T."""
    s = here.sizes
    doubles = here.has("kernelIdE")
    parts = 256.0 if doubles or "W_splits" not in s else s["W_splits"]
    rounds = math.ceil(parts / 8 / 4)
    return Found(
        0.6 * issue_cycles(here.code.own) + 4 * rounds * _of_load(here.code),
        l2_bytes=parts * here.launch.blocks * 32 * (8 if doubles else 4),
        chain={"l2": rounds + 1, "barrier": 2, "shared": 8, "cycles": 150},
    )


def _gram(here: Launched) -> Found:
    s = here.sizes
    rows = s["f"] / max(here.launch.blocks, 1)
    hot = here.code.hot_loop()
    loop = hot.own if hot is not None else Code()
    passes = rows * 32 / max(loop.multiply_adds, 32)
    return Found(
        issue_cycles(here.code.own) + passes * issue_cycles(loop),
        l2_bytes=4 * s["f"] * s.get("padded", 16),
        chain={"l2": rows / 4 + 1, "cycles": 8 * rows},
    )


def _resident(here: Launched) -> Found:
    """Take a block for a problem and all its iterations, X and both factors in shared memory."""
    s = here.sizes
    hot = here.code.hot_loop()
    if hot is None:
        raise ValueError(f"{here.launch.symbol} multiplies and adds in no loop")
    components = 16 if s["k"] <= 16 else 32
    multiply_adds = 2 * s["n"] * s["f"] * components / here.warps_of_block
    passes = 2 * s["n_iter"] * multiply_adds / hot.own.multiply_adds
    around = 2 * s["n_iter"] * 500.0  # new values, by all lanes
    cycles = passes * issue_cycles(hot.own)
    return Found(
        cycles + around + issue_cycles(here.code.own),
        memory_bytes=here.launch.blocks * s["n"] * s["f"] * _element_bytes(here),
        # Two rows a lane leave part of the latencies of what they wait for.
        chain={
            "shared": 0.5 * passes,
            "cycles": 1.5 * cycles + around,
            "barrier": 6 * s["n_iter"],
            "memory": 2,
        },
    )


# Least squares ------------------------------------------------------------------------------------


def _prepare_gram(here: Launched) -> Found:
    """Take a block for a matrix, column by column; each ends with a barrier."""
    k = here.sizes["k"]
    hot = here.code.hot_loop()
    loop = Code() if hot is None else hot.own
    return Found(
        issue_cycles(here.code.own) + k * issue_cycles(loop),
        chain={"l2": 4, "barrier": k + 4, "shared": 3 * k, "cycles": 120 * k},
    )


def _nnls_lanes(here: Launched) -> Found:
    """Rows of a team, one after the other, each in `rounds` systems of `free` variables."""
    s = here.sizes
    k, rounds, free = s["k"], s.get("rounds", 4), s.get("free", s["k"] / 2)
    lanes = 8 if k <= 8 else 16 if k <= 16 else 32
    loop = max(here.code.loops, key=lambda one: one.own.slots)
    # Unrolled for all lanes, left where there are no more free variables in the warp.
    share = min(1.0, (free + 2) / lanes)
    of_round = issue_cycles(loop.own) * (0.35 + 0.65 * share)
    for inner in loop.inner:
        passes = k * 32 / max(inner.own.multiply_adds, 32)
        of_round += issue_cycles(inner.own) * passes / (1 if inner.own.slots > 40 else rounds)
    teams = here.launch.threads // lanes * here.launch.blocks
    of_team = math.ceil(s["n"] / teams) if s["n"] > 4 * teams else s["n"] / teams
    warp = of_team * rounds * of_round + issue_cycles(here.code.own)
    # Pivot by pivot: what was stored is loaded, its reciprocal, a product, and a shuffle.
    pivot = {"shared": 1.0, "cycles": 140.0}
    chain = {step: of_team * rounds * (free + 1) * n for step, n in pivot.items()}
    chain["cycles"] += of_team * rounds * (60 * free + 16 * k + 600)
    return Found(warp, memory_bytes=s["n"] * k * 9.0, chain=chain)


def _nnls_block(here: Launched) -> Found:
    s = here.sizes
    k, rounds, free = s["k"], s.get("rounds", 5), s.get("free", s["k"] / 2)
    of_block = s["n"] / here.launch.blocks
    # Panels of four columns, each from those before it, then back.
    of_round = {"barrier": 0.75 * free + 12, "shared": free * free / 4 + 4 * free, "l2": k / 4 + 4}
    chain = {step: of_block * rounds * n for step, n in of_round.items()}
    warp = of_block * rounds * (free**3 / 6 + k * k) / 32 / here.warps_of_block * 4
    return Found(warp, memory_bytes=s["n"] * k * 9.0, chain=chain)


def _one_row(here: Launched) -> Found:
    """Take a block for a row: a factor of the free variables, once, then what comes and goes."""
    s = here.sizes
    k, changes = s["k"], s.get("changes", 0.05 * s["k"])
    free = s.get("free", k / 2)
    rows = s["n"] / here.launch.blocks
    cold = 0.0 if s.get("warm") else 1.0
    # float64 of a multiprocessor: two cycles a warp's instruction, an eighth of the threads idle.
    products = free**3 / 6 + (changes + cold * s.get("rounds", 4) * k / 4) * free * free
    warp = rows * products / 32 / here.warps_of_block * 2 * 2.5
    chain = {
        "barrier": rows * (3 * free + changes * free / 4),
        "l2": rows * (2 * free + changes * free / 8),
    }
    return Found(warp, l2_bytes=8 * s["n"] * products / 8, chain=chain)


def _wide_subtract(here: Launched) -> Found:
    """Take a tile of the triangle, from which a panel's product is subtracted, then a corner."""
    found = _wide(here, _WIDE, element=8, memory=0.0)
    corner = {"barrier": _WIDE, "shared": 3.0 * _WIDE, "cycles": 120.0 * _WIDE}
    return replace(found, chain=_chain_of([dict(found.chain), corner]))


def _wide_panel(here: Launched) -> Found:
    """Take a block for some rows of a panel, column by column of its corner."""
    return Found(
        issue_cycles(here.code.own),
        chain={"l2": 4, "shared": 2.0 * _WIDE, "cycles": 40.0 * _WIDE},
    )


@dataclass(frozen=True)
class _Multiplier:
    """How the warps of a block multiply weights: in tiles of 16 units of all its rows.

    Attributes
    ----------
    rows, warps : float
        Of the block.
    passes : float
        Of the loop that multiplies, for a tile and one input.
    slots : float
        Of a pass.
    waits : bool
        Whether each pass loads its weights from L2, and waits for them; otherwise they are copied
        ahead.
    """

    rows: float
    warps: int
    passes: float
    slots: float
    waits: bool

    @classmethod
    def of(cls, here: Launched) -> _Multiplier:
        hot = here.code.hot_loop()
        if hot is None:
            raise ValueError(f"{here.launch.symbol} multiplies and adds in no loop")
        rows = 16 if here.sizes["n"] * here.sizes["draws"] <= 16 * here.launch.blocks else 32
        passes = _UNITS * rows / hot.own.multiply_adds
        waits = hot.own.opcodes.get("LDG", 0) > 0
        return cls(rows, here.warps_of_block, passes, hot.own.slots, waits)

    def chain(self, items: float, inputs: float) -> dict[str, float]:
        """Return the chain of a layer that is cut into items, each with so many inputs."""
        split = 1.0
        if not self.waits and items < self.warps:  # idle warps take a part of the inputs
            split = max(1.0, self.warps // items)
        turns = math.ceil(items * split / self.warps)
        passes = turns * math.ceil(inputs / split * self.passes)
        together = min(items * split, self.warps) / SCHEDULERS  # warps of a scheduler
        if self.waits:
            return {"l2": passes, "cycles": passes * self.slots + 150 * turns, "barrier": 1}
        cycles = passes * (self.slots * max(1.0, together) + 40) + 200 * turns
        return {"cycles": cycles, "shared": 6, "barrier": 2 if split > 1 else 1}


_UNITS = 16  # of a tile


def _chain_of(parts: list[dict[str, float]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for part in parts:
        for step, n in part.items():
            found[step] = found.get(step, 0.0) + n
    return found


def _defence(here: Launched, layers: list[tuple[float, float]], channels: float) -> Found:
    s, multiplier = here.sizes, _Multiplier.of(here)
    pairs = math.ceil(s["f"] / 2)
    parts = [multiplier.chain(math.ceil(outputs / _UNITS), inputs) for outputs, inputs in layers]
    # Three taps of a channel at two positions; the other side has 48 - channels of them.
    tiles = (48 - channels) / _UNITS
    parts.append(multiplier.chain(pairs * tiles * multiplier.rows / 32, channels * 6))
    parts.append({"cycles": 2 * s["f"] * 45, "l2": 2, "barrier": 1})  # the first convolution
    multiply_adds = multiplier.rows * (
        sum(outputs * inputs for outputs, inputs in layers) + s["f"] * (48 * 32 + 48)
    )
    passes = multiply_adds / (_UNITS * multiplier.rows) * multiplier.passes
    warp = passes / multiplier.warps * multiplier.slots + issue_cycles(here.code.own)
    moved = 4 * here.launch.blocks * sum(outputs * inputs for outputs, inputs in layers)
    return Found(warp, l2_bytes=moved, chain=_chain_of(parts))


def _layers(s: Mapping[str, float]) -> list[tuple[float, float]]:
    hidden, f, pooled = s["hidden"], s["f"], 32 * (s["f"] // 2)
    return [(hidden, f), (hidden, hidden), (f, hidden), (64, pooled), (2, 64)]


def _defence_forward(here: Launched) -> Found:
    return _defence(here, _layers(here.sizes), 16)


def _defence_backward(here: Launched) -> Found:
    turned = [(inputs, outputs) for outputs, inputs in _layers(here.sizes)]
    return _defence(here, turned, 32)


def _prepare_defence(here: Launched) -> Found:
    """Sines and roots in float64, a barrier, and a bias for each hidden unit."""
    return Found(
        issue_cycles(here.code.own),
        l2_bytes=4.0 * 2 * here.launch.blocks * 256,
        chain={"memory": 2, "l2": 10, "barrier": 2, "cycles": 3000},
    )


def _sum_draws(here: Launched) -> Found:
    return Found(
        issue_cycles(here.code.own),
        chain={"l2": here.sizes["draws"] / 4 + 1, "cycles": 20 * here.sizes["draws"]},
    )


# Sparse X -----------------------------------------------------------------------------------------


def _side(here: Launched) -> tuple[str, float]:
    """Return which factor a launch updates, and that factor's length."""
    of = "W" if here.before % 2 == 0 else "H"
    return of, here.sizes["n"] if of == "W" else here.sizes["f"]


def _sparse_row_sums(here: Launched) -> Found:
    s, (_, length) = here.sizes, _side(here)
    group = 1
    while 4 * group < s["k"]:
        group *= 2
    hot = here.code.hot_loop()
    loop = hot.own if hot is not None else Code()
    # A warp takes four times 32 / group non-zeros in a pass; rows do not end with them.
    passes = (s["nonzeros"] * group / 128 + length / 2) / (here.launch.blocks * here.warps_of_block)
    return Found(
        issue_cycles(here.code.own) + passes * issue_cycles(loop),
        memory_bytes=8.0 * s["nonzeros"],
        l2_bytes=s["nonzeros"] * math.ceil(s["k"] * 4 / 32) * 32,
        cached_bytes=8.0 * s["nonzeros"],
        chain={"l2": 2 * passes + 3, "cycles": passes * (issue_cycles(loop) + 25 * 3) + 400},
    )


def _sparse_descent(here: Launched) -> Found:
    """Take a warp for a row: for each coordinate a gather, quotients, sums over the lanes."""
    s, (_, length) = here.sizes, _side(here)
    of_lane = math.ceil(s["nonzeros"] / length / 32)
    coordinate = 60.0 + 28.0 * of_lane
    return Found(
        s["k"] * coordinate * 1.3 + issue_cycles(here.code.own) / 4,
        memory_bytes=8.0 * s["nonzeros"],
        cached_bytes=8.0 * s["nonzeros"],
        l2_bytes=s["nonzeros"] * s["k"] * 32 / 8,
        chain={"l2": 1.3 * s["k"] + 4, "cycles": 1.3 * s["k"] * (7 * 25 + 120)},
    )


def _columns(here: Launched) -> Found:
    """Take a block for a chunk of rows, one after the other: places, counters, a barrier."""
    s = here.sizes
    rows = s["n"] / here.launch.blocks
    return Found(
        issue_cycles(here.code.own) + rows * 40,
        memory_bytes=8.0 * s["nonzeros"],
        cached_bytes=8.0 * s["nonzeros"],
        chain={"l2": 3 * rows + 1, "barrier": rows, "cycles": 60 * rows},
    )


def _accumulate(here: Launched) -> Found:
    each = here.sizes["f"] / 256
    return Found(
        issue_cycles(here.code.own) + 30 * each,
        chain={"l2": 2 * each / 4 + 2, "shared": 256 / 4, "barrier": 1},
    )


def _sum_chunks(here: Launched) -> Found:
    chunks = max(1.0, min(1024.0, here.sizes["nonzeros"] / here.sizes["f"]))
    return Found(issue_cycles(here.code.own) + 8 * chunks, chain={"l2": chunks, "cycles": chunks})


# By blocks ----------------------------------------------------------------------------------------

_WIDE = 64  # rows and columns of a block's tile


def _wide(here: Launched, depth: float, *, element: float, memory: float) -> Found:
    hot = here.code.hot_loop()
    loop = hot.own if hot is not None else Code()
    steps = math.ceil(depth / 16)
    passes = _WIDE * _WIDE * 16 / max(loop.multiply_adds, 32) / here.warps_of_block * steps
    tiles = here.launch.blocks * 2 * _WIDE * steps * 16 * element
    return Found(
        issue_cycles(here.code.own) + passes * issue_cycles(loop),
        memory_bytes=memory,
        cached_bytes=memory,
        l2_bytes=tiles,
        chain={"l2": steps + 1, "barrier": 2 * steps, "cycles": passes * issue_cycles(loop)},
    )


def _weighted_terms(here: Launched) -> Found:
    terms = here.launch.blocks * _WIDE * _WIDE
    return _wide(here, here.sizes["k"], element=4, memory=terms * (_element_bytes(here) + 8.125))


def _wide_product(here: Launched) -> Found:
    if here.sizes["weighted"]:  # a product of terms of X, in parts of 512
        return _wide(here, 512, element=4, memory=4.0 * here.launch.blocks * _WIDE * 512)
    return _wide(here, here.sizes["k"], element=8, memory=0.0)


# Bounds -------------------------------------------------------------------------------------------


def _crown(here: Launched) -> Found:
    """Hidden units whose sign is open are carried back to the features, 32 at a time."""
    s = here.sizes
    open_units = s.get("open", 0.5)
    if s["hidden"]:
        # For each layer: bounds of every open unit through those before it.
        products = s["hidden"] * open_units * 2 * s["hidden"] * s["f"] + s["hidden"] * s["hidden"]
    else:
        products = 64 * open_units * s["f"] * 16 * 3 * 32 * 1.3 + 64 * 32 * (s["f"] // 2)
    hot = here.code.hot_loop()
    each = 4.0 if hot is None else issue_cycles(hot.own) / (hot.own.multiply_adds / 32)
    boxes = s["n"] / here.launch.blocks
    warp = boxes * products / 32 / here.warps_of_block * each * 1.5
    return Found(
        warp,
        l2_bytes=8 * s["n"] * products / 64,
        chain={"l2": 40 * boxes, "barrier": 25 * boxes, "cycles": warp / 2},
    )


RULES: Mapping[str, Rule] = {
    "half_step_kernel": _half_step,
    "tensor_half_step_kernel": _tensor_half_step,
    "update_kernel": _update,
    "resident_kernel": _resident,
    "sum_parts_kernel": _sum_parts,
    "gram_kernel": _gram,
    "prepare_gram_kernel": _prepare_gram,
    "nnls_lanes_kernel": _nnls_lanes,
    "nnls_block_kernel": _nnls_block,
    "one_row_kernel": _one_row,
    "wide_subtract_kernel": _wide_subtract,
    "wide_panel_kernel": _wide_panel,
    "defence_forward_kernel": _defence_forward,
    "defence_backward_kernel": _defence_backward,
    "prepare_defence_kernel": _prepare_defence,
    "sum_draws_kernel": _sum_draws,
    "sparse_row_sums_kernel": _sparse_row_sums,
    "sparse_descent_kernel": _sparse_descent,
    "count_columns_kernel": _columns,
    "fill_columns_kernel": _columns,
    "accumulate_kernel": _accumulate,
    "sum_chunks_kernel": _sum_chunks,
    "weighted_terms_kernel": _weighted_terms,
    "wide_product_kernel": _wide_product,
    "crown_bounds_kernel": _crown,
}
"""By kernel, without template arguments."""
