"""`torchscript.json`: the TorchScript files that were made of a bundle. Its schema and its verified load.

It lies beside the manifest and not in it: a bundle and its version stay the same whether or not somebody made
TorchScript of it, and serving by ONNX Runtime never reads this file. It knows no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from service.artifact import Bundle, FileDigest, verify_file
from service.errors import BundleError

RECORD = "torchscript.json"


class TorchScriptRecord(BaseModel):
    """What `torchscript.json` holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    bundle_version: str  # of the bundle they were made of
    torch: str  # the version that made them
    files: dict[str, FileDigest]


def torchscript_file(size_px: int, full_px: int) -> str:
    """The file name for an input size, of a model whose full size is `full_px`."""
    return "model.pt" if size_px == full_px else f"model-{size_px}.pt"


def find_torchscript(bundle: Bundle) -> dict[int, Path]:
    """The verified TorchScript file of every input size of the bundle.

    Raises:
        BundleError: one is missing, broken, or was made of another version of the bundle; names it and the mend.
    """
    record, mend = _read(bundle), torchscript_mend(bundle.path)
    if record.bundle_version != bundle.manifest.version:
        raise BundleError(
            f"{bundle.path / RECORD} is of the bundle's version {record.bundle_version}, which now is "
            f"{bundle.manifest.version}: {mend}"
        )
    found = {}
    for size_px in bundle.manifest.sizes_px:
        name = torchscript_file(size_px, bundle.manifest.full.size_px)
        if name not in record.files:
            raise BundleError(f"{bundle.path / RECORD} has no {name}, for {size_px} px: {mend}")
        verify_file(bundle.path / name, record.files[name], record=RECORD, mend=mend)
        found[size_px] = bundle.path / name
    return found


def torchscript_mend(path: Path) -> str:
    """What to do about TorchScript files that can't be served."""
    return (
        f"make them with `python -m export --checkpoint {path} --out {path} --format torchscript`, or set "
        "SKIPVIT_ENGINE=onnxruntime"
    )


def _read(bundle: Bundle) -> TorchScriptRecord:
    file, mend = bundle.path / RECORD, torchscript_mend(bundle.path)
    try:
        return TorchScriptRecord.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        raise BundleError(f"{file} is missing: the bundle has no TorchScript files: {mend}") from None
    except OSError as error:
        raise BundleError(f"{file} can't be read ({error.strerror}): {mend}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or RECORD
        raise BundleError(f"{file}: {where}: {first['msg']}: {mend}") from None
