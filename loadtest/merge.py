"""Results of several workers of one plan (`--shard 0/4` to `--shard 3/4`) become one, as if one had sent it all.

    python -m loadtest.merge 0.json 1.json 2.json 3.json --out all.json

Percentiles can't be averaged, so the workers' files hold every request. A worker that is missing is an error: start all
with the same options, but --shard.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loadtest import tables
from loadtest.options import parser, refuse
from loadtest.records import concatenate, from_json
from loadtest.results import EXIT_FAILED, EXIT_OK, read_json, write_json
from loadtest.summary import summarise

MODULE = "loadtest.merge"


def merge(documents: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One result out of the workers' results.

    Raises:
        ValueError: they aren't all the workers of one plan.
    """
    jobs = [document["job"] for document in documents]
    shards = sorted(tuple(job["shard"]) for job in jobs)
    if shards != [(index, len(jobs)) for index in range(len(jobs))]:
        raise ValueError(
            f"these aren't all the workers of one plan, each once: {', '.join(f'{i}/{n}' for i, n in shards)}"
        )
    plans = [{name: value for name, value in job.items() if name != "shard"} for job in jobs]
    if any(plan != plans[0] for plan in plans) or len({str(document["model"]) for document in documents}) > 1:
        raise ValueError("these workers had different plans or asked different models")
    whole = concatenate([from_json(document["records"]) for document in documents])
    arrivals, mix = jobs[0]["arrivals"], jobs[0]["mix"]
    points = [name for name, _ in mix["points"]]
    summary = summarise(whole, arrivals["duration_s"], jobs[0]["slo_s"], points)
    if arrivals["kind"] == "closed":
        summary["lag"] |= {"ratio": None, "valid": bool(summary["latency_s"]["p50"])}
    job = jobs[0] | {"shard": [0, 1], "workers": len(jobs)}
    return documents[0] | {"job": job, "summary": summary, "records": whole.to_json()}


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    options = parser(MODULE, __doc__)
    options.add_argument("results", type=Path, nargs="+", help="the workers' result files")
    options.add_argument("--out", type=Path, help="JSON file to write")
    given = options.parse_args(argv)
    try:
        merged = merge([read_json(file) for file in given.results])
    except (ValueError, KeyError, TypeError) as error:
        return refuse(MODULE, error)
    if given.out:
        write_json(given.out, merged)
    print(tables.text([tables.row(f"{len(given.results)} workers", merged["summary"])]))
    print(tables.details(merged["summary"]))
    return EXIT_OK if merged["summary"]["healthy"] else EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main())
