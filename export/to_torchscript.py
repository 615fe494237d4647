"""TorchScript of the sparse module, for those who serve from torch or C++. Each file carries its weights (float32)."""

from __future__ import annotations

import hashlib
import tempfile
import warnings
from pathlib import Path

import torch
from torch.jit._trace import TracerWarning

from export.graph import ServedViT, example_inputs
from export.parity import Parity, compare, image_array, torchscript_infer
from export.to_onnx import ExportError
from models import checkpoint
from models.checkpoint import at_size
from models.data import LabelledImages
from models.pruned_vit import PrunedViT
from service.artifact import MANIFEST, FileDigest, load_bundle
from service.torchscript_record import RECORD, TorchScriptRecord, torchscript_file


def write_torchscript(source: Path, out: Path, images: LabelledImages) -> dict[str, Parity]:
    """Write TorchScript of the model in `source` to the folder `out`, all files or none; returns each one's parity.

    Of a bundle there is a file for each input size and a record of them, so that where they lie beside the manifest
    they can be served; of a checkpoint that is no bundle, a file at its own size.

    Raises:
        CheckpointError, BundleError: what is wrong with `source`.
        ExportError: parity doesn't hold.
    """
    model = checkpoint.load(source)
    manifest = load_bundle(source.resolve()).manifest if (source / MANIFEST).exists() else None
    full_px = model.config.image_size_px
    out.mkdir(parents=True, exist_ok=True)
    parities: dict[str, Parity] = {}
    with tempfile.TemporaryDirectory(dir=out, prefix=".export-") as scratch:
        for size_px in manifest.sizes_px if manifest else (full_px,):
            file = Path(scratch) / torchscript_file(size_px, full_px)
            sized = at_size(model, size_px)
            to_torchscript(sized, file)
            parities[file.name] = parity = compare(sized, torchscript_infer(file), image_array(images, size_px))
            if not parity.holds:
                raise ExportError(f"{file.name} differs from the trained model, nothing written: {parity}")
        (out / RECORD).unlink(missing_ok=True)  # the last to come: it never vouches for files that aren't all there
        for name in parities:
            (Path(scratch) / name).replace(out / name)
    if manifest:
        digests = {name: _digest(out / name) for name in parities}
        record = TorchScriptRecord(bundle_version=manifest.version, torch=torch.__version__, files=digests)
        (out / RECORD).write_text(record.model_dump_json(indent=1) + "\n")
    return parities


def to_torchscript(model: PrunedViT, file: Path) -> None:
    """Trace the sparse path and save it; counts of kept patches stay dynamic (see `models.selection.kept_rows`).

    Frozen, because weights are then constants, LayerScales multiplied into them, and no device is written into the
    graph, which so runs on the one that it is loaded to.
    """
    with warnings.catch_warnings():
        # timm's input-size asserts are traced as constants, as they should be.
        warnings.simplefilter("ignore", TracerWarning)
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.\w+` is deprecated")
        traced = torch.jit.trace(ServedViT(model, "sparse").eval(), example_inputs(model), check_trace=False)
        torch.jit.save(torch.jit.freeze(traced), str(file))


def _digest(file: Path) -> FileDigest:
    with file.open("rb") as stream:
        return FileDigest(sha256=hashlib.file_digest(stream, "sha256").hexdigest(), size_bytes=file.stat().st_size)
