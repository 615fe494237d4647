"""How many requests a core answers and what a million images cost, from the bundle's measured tables.

    python3 k8s/capacity.py --price-per-core-hour 0.04

Speed and accuracy are `make bench`'s; pods compute for the share of time that the autoscaler aims at.
Only the engine is counted: large photos take their time to decode, too, on the same cores.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ZOO = Path(__file__).parent.parent / "models/zoo"
BATCH_SIZE = 8  # what comes together in a pod under load; single images are dearer


def main(argv: list[str] | None = None) -> int:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser("python3 k8s/capacity.py", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--bundle", type=Path, default=ZOO / "cifar100-vits14")
    parser.add_argument(
        "--benchmark", type=Path, help="measured table, of a machine like yours (the bundle's benchmark.json)"
    )
    parser.add_argument("--price-per-core-hour", type=float, default=0.04, help="in any currency")
    parser.add_argument("--busy", type=float, default=0.7, help="share of time in which a pod computes")
    parser.add_argument("--cores", type=int, default=2, help="cores of a pod")
    arguments = parser.parse_args(argv)
    files = (arguments.benchmark or arguments.bundle / "benchmark.json", arguments.bundle / "manifest.json")
    bench, manifest = (json.loads(file.read_text()) for file in files)
    print(
        f"| preset | precision | top-1 | images/s a core | requests/s a pod of {arguments.cores} "
        "| cost of a million images |"
    )
    print("|---|---|---|---|---|---|")
    for name, preset in manifest["presets"].items():
        point = preset | {"again_px": manifest["graphs"][0]["size_px"] if preset["sure"] else 0}  # the full size
        for precision in ("float32", "int8"):
            timed = _row(bench["rows"], point, batch_size=BATCH_SIZE, precision=precision)
            core_images_s = timed["images_s"] / bench["machine"]["threads"]
            used_images_s = core_images_s * arguments.busy
            cost = 1e6 / used_images_s / 3600 * arguments.price_per_core_hour
            print(
                f"| {name} | {precision} | {timed['accuracy']:.1%} | {core_images_s:.1f} "
                f"| {used_images_s * arguments.cores:.0f} | {cost:.2f} |"
            )
    return 0


def _row(rows: list[dict[str, Any]], point: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A table's line for a preset."""
    wanted = point | more
    (found,) = [row for row in rows if all(row.get(name) == value for name, value in wanted.items())]
    result: dict[str, Any] = found
    return result


if __name__ == "__main__":
    sys.exit(main())
