"""How a layer's kept tokens are packed: NonZero, as the served graph has it, against what else could, measured.

    python -m export.packing --bundle models/zoo/NAME --precision int8

Every alternative is a change of the served graph, whose answers it must give at mixed thresholds before it is timed.
Runs are interleaved on real images at the full size, as in `export.execution`: a ratio above 1 means that the
alternative is faster. A few minutes; the last line of the output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, numpy_helper
from tqdm import tqdm

from export.benchmark import machine
from export.execution import SERVED, Run, measure, table
from export.parity import LOGIT_TOLERANCE, TIES_TOLERATED, image_array
from export.rivals import session
from export.to_onnx import ExportError, save
from models.checkpoint import WEIGHTS
from models.data import DataError, load_images
from service.artifact import Bundle, Precision, load_bundle
from service.cpu import usable_cpus
from service.errors import ServiceError

BUCKET = 8  # tokens
CHECKED_IMAGES, CHECKED_ROWS = 64, 16  # at mixed thresholds: in all, in a batch
_SHAPING = ("Reshape", "Transpose", "Squeeze", "Unsqueeze")
_CONSTANTS = {"zero": 0, "first": [0], "second": [1], "flat": [-1], "line": [1, -1], "upright": [-1, 1]}
_CONSTANTS |= {"before": [0, 0, 0], "bucket": [BUCKET]}
_SHARED = {name: f"packing/{name}" for name in (*_CONSTANTS, "starts", "N")}  # by all layers

# Nodes in ONNX's own notation. Names are the fields of a Packing and what is shared; others are new in each layer.
_STARTS = """
    sizes = Shape (keep)
    B, N = Split <axis = 0, num_outputs = 2> (sizes)
    total = ReduceProd <keepdims = 0> (sizes)
    step = Squeeze (N, first)
    each = Range (zero, total, step)
    starts = Reshape (each, upright)
"""  # (B, 1): each image's first row among the flattened tokens
_LARGEST_COUNT = """
    chosen = Cast <to = 1> (keep)
    counts = ReduceSum <keepdims = 0> (chosen, second)
    largest = ReduceMax (counts)
"""
_EXACT = "count = Cast <to = 7> (largest)"
_UP_TO_BUCKET = """
    negative = Neg (exact)
    missing = Mod (negative, bucket)
    whole = Add (exact, missing)
    count = Min (whole, most)
"""
_LARGEST_UP_TO_BUCKET = "exact = Cast <to = 7> (largest)" + _UP_TO_BUCKET.replace("most", "N")
_TOP_K = """
    kept, places = TopK <axis = 1, sorted = 0> (chosen, count)
    used = Cast <to = 7> (kept)
    own = Mul (places, used)
    among = Add (starts, own)
    found = Reshape (among, line)
"""  # an image that keeps fewer has its first token, which every image keeps, more than once
_ROWS_UP_TO_BUCKET = f"""
    flags = Reshape (keep, flat)
    some = NonZero (flags)
    exact = Shape <start = 1> (some)
    most = Shape (flags)
    {_UP_TO_BUCKET}
    more = Sub (count, exact)
    pads = Concat <axis = 0> (before, more)
    found = Pad (some, pads)
"""  # padded with row 0, the first image's first token
_ONE_GATHER = """
    both = Concat <axis = 1> (attended, tokens)
    packed = Gather <axis = 0> (both, rows)
    packed_attended, packed_tokens = Split <axis = 1, num_outputs = 2> (packed)
"""
_GATHER_ELEMENTS = """
    C = Shape <start = 1> (tokens)
    shape = Concat <axis = 0> (second, C)
    column = Unsqueeze (rows, second)
    elements = Expand (column, shape)
    packed_attended = GatherElements <axis = 0> (attended, elements)
    packed_tokens = GatherElements <axis = 0> (tokens, elements)
"""
_SCATTER_ELEMENTS = "result = ScatterElements <axis = 0> (tokens, elements, updates)"
_NO_GATHER = "packed_attended = Identity (attended) packed_tokens = Identity (tokens)"
_WHERE = """
    computed = Reshape (keep, upright)
    result = Where (computed, updates, tokens)
"""


class Packing(NamedTuple):
    """One gated layer's packing, by the names of its tensors."""

    keep: str  # (B, N) bool
    found: str  # (1, M) int64: what NonZero finds
    rows: str  # (M,) int64: the same
    attended: str  # (B * N, C) float
    packed_attended: str  # (M, C) float
    tokens: str  # (B * N, C) float
    packed_tokens: str  # (M, C) float
    updates: str  # (M, C) float: what the layer makes of the kept tokens
    result: str  # (B * N, C) float


Changes = dict[str, list[NodeProto]]  # by a tensor's name: what stands for the node that makes it


def packings(model: ModelProto) -> list[Packing]:
    """Every gated layer's packing in a served graph, in order.

    Raises:
        ExportError: there is none, or one that isn't two gathers and a scatter of the rows that NonZero finds.
    """
    makers = {name: node for node in model.graph.node for name in node.output}
    readers: dict[str, list[NodeProto]] = defaultdict(list)
    for node in model.graph.node:
        for name in node.input:
            readers[name].append(node)

    def uses(name: str) -> Iterator[NodeProto]:
        for node in readers[name]:
            yield from uses(node.output[0]) if node.op_type in _SHAPING else (node,)

    def packing(found: NodeProto) -> Packing:
        keep = makers.get(found.input[0], found).input[0]
        used = sorted(uses(found.output[0]), key=lambda node: str(node.op_type))
        kinds = [str(node.op_type) for node in (makers.get(keep, found), *used)]
        if kinds != ["Pad", "Gather", "Gather", "ScatterND"] or used[1].input[0] != used[2].input[0]:
            raise ExportError(f"{found.output[0]} isn't packed by NonZero, two gathers and a scatter: {kinds}")
        attended, tokens, scatter = used
        gathers = (attended.input[0], attended.output[0], tokens.input[0], tokens.output[0])
        return Packing(keep, found.output[0], tokens.input[1], *gathers, scatter.input[2], scatter.output[0])

    layers = [packing(node) for node in model.graph.node if node.op_type == "NonZero"]
    if not layers:
        raise ExportError("nothing is packed: the graph has no NonZero")
    return layers


def alternatives(layers: Sequence[Packing]) -> dict[str, Changes]:
    """What is compared, by name, as changes of the graph; the served way first."""
    top_k, elements, padded, one_gather, whole = _top_k(layers, _EXACT), Changes(), Changes(), Changes(), Changes()
    for layer in layers:
        padded[layer.found] = _nodes(_ROWS_UP_TO_BUCKET, layer)
        for changes, gather in ((elements, _GATHER_ELEMENTS), (one_gather, _ONE_GATHER), (whole, _NO_GATHER)):
            changes |= {layer.packed_attended: [], layer.packed_tokens: _nodes(gather, layer)}
        elements[layer.result] = _nodes(_SCATTER_ELEMENTS, layer)
        whole[layer.result] = _nodes(_WHERE, layer)
    return {
        SERVED: {},
        "one gather of both": one_gather,
        f"rows up to a multiple of {BUCKET}": padded,
        "TopK, the largest count": top_k,
        f"TopK, up to a multiple of {BUCKET}": _top_k(layers, _LARGEST_UP_TO_BUCKET),
        "TopK, GatherElements, ScatterElements": top_k | elements,
        "nothing packed": whole,
    }


def _top_k(layers: Sequence[Packing], count: str) -> Changes:
    """As many tokens of each image as are kept of the one that keeps most, or some more."""
    changes = {layer.found: _nodes(_LARGEST_COUNT + count + _TOP_K, layer) for layer in layers}
    changes[layers[0].found][:0] = _nodes(_STARTS, layers[0])
    return changes


def _nodes(text: str, layer: Packing) -> list[NodeProto]:
    """Nodes from their notation, for one layer."""
    known = layer._asdict() | _SHARED
    nodes = list(onnx.parser.parse_graph(f"layer () => () {{{text}}}").node)
    for node in nodes:
        for tensors in (node.input, node.output):
            tensors[:] = [known.get(name, f"{layer.found}/{name}") for name in tensors]
    return nodes


def changed(model: ModelProto, changes: Changes) -> ModelProto:
    """A copy of the graph with some of its nodes replaced; what nothing reads any more is left out."""
    out, used = ModelProto(), []
    out.CopyFrom(model)
    nodes = [new for node in model.graph.node for new in changes.get(node.output[0], [node])]
    read = {output.name for output in model.graph.output}
    for node in reversed(nodes):
        if not read.isdisjoint(node.output):
            read.update(node.input)
            used.append(node)
    del out.graph.node[:]
    out.graph.node.extend(reversed(used))
    constants = {_SHARED[name]: np.array(value, np.int64) for name, value in _CONSTANTS.items()}
    out.graph.initializer.extend(numpy_helper.from_array(constants[name], name) for name in constants if name in read)
    return out


def sessions(bundle: Bundle, precision: Precision, threads: int) -> dict[str, Run]:
    """Every alternative to a bundle's served graph, as the service would run it.

    Raises:
        ValueError: the bundle has no such graph.
        ExportError: its packing isn't what is known here.
    """
    if precision not in bundle.manifest.served:
        raise ValueError(f"{bundle.path} has no {precision} graph")
    model = onnx.load(bundle.path / bundle.manifest.served[precision], load_external_data=False)
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "changed.onnx"
        shutil.copyfile(bundle.path / WEIGHTS, file.with_name(WEIGHTS))

        def run(changes: Changes) -> Run:
            save(changed(model, changes), file)
            made = session(file, threads)
            return lambda images, threshold: made.run(["logits", "kept"], {"images": images, "threshold": threshold})

        found = tqdm(alternatives(packings(model)).items(), desc="loading graphs", leave=False)
        return {name: run(changes) for name, changes in found}


def check(runs: dict[str, Run], images: NDArray[np.uint8], thresholds: Sequence[float], tolerance: float) -> None:
    """Compare every alternative's answers with the served way's, images at several thresholds in one batch.

    Decisions that are ties may round to either side, for as few rows as parity tolerates; all others must be the same.

    Raises:
        ExportError: an alternative keeps other patches, has another top-1, or logits further off than `tolerance`.
    """
    limits = np.resize(np.array([0, 1, *thresholds], np.float32), len(images))
    batches = [slice(first, first + CHECKED_ROWS) for first in range(0, len(images), CHECKED_ROWS)]

    def answers(run: Run) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        logits, kept = zip(*(run(images[rows], limits[rows]) for rows in batches), strict=True)
        return np.concatenate(logits), np.concatenate(kept)

    logits, kept = answers(runs[SERVED])
    for name, run in tqdm(runs.items(), desc="comparing answers", leave=False):
        other_logits, other_kept = answers(run)
        ties = (kept != other_kept).any(axis=(1, 2))
        near = np.abs(logits - other_logits).max(1) <= tolerance
        wrong = ~ties & ~(near & (logits.argmax(1) == other_logits.argmax(1)))
        if wrong.any() or ties.mean() > TIES_TOLERATED:
            told = f"{wrong.sum()} have other logits, {ties.sum()} other patches kept"
            raise ExportError(f"{name}: {len(images)} images aren't answered as by the served graph: {told}")


def main(argv: list[str] | None = None) -> int:
    """Run the command line; 2 with one clear line for input that can't be used."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--images", help="image folder; default: the bundle's own samples")
    parser.add_argument("--precision", choices=["float32", "int8"], default="float32", help="(%(default)s)")
    parser.add_argument("--thresholds", default="0.15,0.3,0.6", help="(%(default)s)")
    parser.add_argument("--batch-sizes", default="1,8,32", help="(%(default)s)")
    parser.add_argument("--seconds", type=float, default=4.0, help="for each alternative and point (%(default)s)")
    options = parser.parse_args(argv)
    try:
        thresholds = [float(threshold) for threshold in options.thresholds.split(",")]
        sizes = [int(size) for size in options.batch_sizes.split(",")]
        if not all(0 <= threshold <= 1 for threshold in thresholds) or min(sizes) < 1:
            raise ValueError("--thresholds are from 0 to 1, --batch-sizes at least 1")
        bundle = load_bundle(options.bundle)
        pixels = load_images(options.images or str(options.bundle / "samples"), "test", 1)
        images = image_array(pixels, bundle.manifest.full.size_px)
        runs = sessions(bundle, options.precision, usable_cpus())
        # In int8 a sum that rounds otherwise moves an activation by a whole step.
        check(
            runs, images[:CHECKED_IMAGES], thresholds, LOGIT_TOLERANCE if options.precision == "float32" else math.inf
        )
    except (ServiceError, DataError, ExportError, ValueError) as error:
        print(f"export.packing: {error}", file=sys.stderr)
        return 2
    speed = {
        str(threshold): {str(size): measure(runs, images, threshold, size, options.seconds) for size in sizes}
        for threshold in tqdm(thresholds, desc="thresholds")
    }
    for name, rows in speed.items():
        print(f"Threshold {name}:\n\n{table(rows)}\n")
    print(json.dumps({"machine": machine(), "precision": options.precision, "speed": speed}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
