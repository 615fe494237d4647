"""The command line's shared part, and how input that can't be used ends: one line on stderr, exit code 2."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from loadtest import data
from loadtest.data import LabelledImages
from loadtest.mix import Mix, point, weighted
from loadtest.targets import Classify, Oip, Target, plain

EXIT_USAGE = 2
DEFAULT_URL = "http://127.0.0.1:8000"


def add_shared(parser: argparse.ArgumentParser) -> None:
    """Images, objective, seed."""
    parser.add_argument(
        "--data",
        default="",
        help="parquet in the hub's schema, image folder or hub name; default: the 500 bundled images",
    )
    parser.add_argument("--images", type=int, default=500, help="images to use, 0 for all (%(default)s)")
    parser.add_argument(
        "--slo-ms", type=float, default=250.0, help="latency within which an answer is good (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the schedule and of every draw (%(default)s)")
    parser.add_argument(
        "--timeout", type=float, default=60.0, help="seconds after which a request is lost (%(default)s)"
    )


def add_mix(parser: argparse.ArgumentParser) -> None:
    """What requests are like; every list takes weights: `a:3,b:1`."""
    parser.add_argument(
        "--mix", default="threshold=0", help="operating points: threshold=0:3,preset=economy:1,size=84&threshold=0.25"
    )
    parser.add_argument(
        "--degrade", choices=["true", "false"], help="sent with every request: may load lower its compute?"
    )
    parser.add_argument("--formats", default="original", help="original, png, jpeg, webp, as png:1,jpeg:3")
    parser.add_argument(
        "--sizes", default="original", help="longer side in px the images are brought to, as original:1,512:1"
    )
    parser.add_argument("--deadlines-ms", default="none", help="deadlines sent along, as none:1,200:1")
    parser.add_argument("--cancel-rate", type=float, default=0.0, help="share of callers that hang up (%(default)s)")
    parser.add_argument("--cancel-after-ms", type=float, default=50.0, help="when they do (%(default)s)")


def add_target(parser: argparse.ArgumentParser) -> None:
    """Who is asked."""
    parser.add_argument("--url", default=DEFAULT_URL, help="%(default)s")
    parser.add_argument(
        "--headers", type=Path, help="file of headers that go with every request, one a line: X-API-Key: ..."
    )
    parser.add_argument(
        "--oip", metavar="MODEL", help="ask this model by the Open Inference Protocol instead (Triton, KServe)"
    )
    parser.add_argument("--size-px", type=int, default=112, help="with --oip: the model's input side (%(default)s)")
    parser.add_argument(
        "--labels", type=Path, help="with --oip: labels, one a line; default: those of the images, sorted"
    )


def read_mix(options: argparse.Namespace) -> Mix:
    """The mix; raises ValueError."""
    points = weighted(options.mix, point)
    if options.degrade:
        points = tuple((f"{query}&degrade={options.degrade}", weight) for query, weight in points)
    formats = weighted(options.formats, str)
    if unknown := sorted({name for name, _ in formats} - {"original", *data.FORMATS}):
        raise ValueError(f"unknown image format {unknown[0]!r}: original, {', '.join(data.FORMATS)}")
    return Mix(
        points=points,
        formats=formats,
        sides_px=weighted(options.sizes, lambda text: None if text == "original" else int(text)),
        deadlines_ms=weighted(options.deadlines_ms, lambda text: None if text == "none" else int(text)),
        cancel_ratio=options.cancel_rate,
        cancel_after_s=options.cancel_after_ms / 1e3,
    )


def read_target(options: argparse.Namespace, images: LabelledImages) -> Target:
    """Who is asked; OSError or ValueError when labels or headers can't be read."""
    headers = read_headers(options.headers) if options.headers else {}
    if not options.oip:
        return Classify(options.url, headers)
    lines = options.labels.read_text().splitlines() if options.labels else sorted({plain(x) for x in images.labels})
    labels = [line.strip() for line in lines if line.strip()]
    return Oip(options.url, options.oip, options.size_px, labels, headers)


def read_headers(file: Path) -> dict[str, str]:
    """Lines as `Name: value`; in a file, because results keep the command. ValueError names the line, not its value."""
    found = {}
    for number, line in enumerate(file.read_text().splitlines(), 1):
        name, colon, value = (part.strip() for part in line.partition(":"))
        if line.strip() and not (name and colon and value):
            raise ValueError(f"{file}, line {number}: give a header as Name: value")
        if name:
            found[name] = value
    return found


def parser(module: str, documentation: str | None) -> argparse.ArgumentParser:
    """A parser whose help is the module's docstring."""
    summary, _, rest = (documentation or "").partition("\n\n")
    return argparse.ArgumentParser(
        f"python -m {module}", description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def refuse(module: str, error: Exception | str) -> int:
    """One line on stderr."""
    print(f"{module}: {' '.join(str(error).split())}", file=sys.stderr)
    return EXIT_USAGE
