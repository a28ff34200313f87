"""`python -m benchmarks NAME --json FILE` measures; `python -m benchmarks readme` writes README.md's tables of it."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from benchmarks import (
    contrastive,
    decoder,
    demo,
    encode,
    engines,
    growth,
    learning,
    mntp,
    plans,
    probe,
    quality,
    readme,
    recurrence,
    scale,
    serve,
)
from benchmarks.frame import framed
from bothways.evaluation.tables import write_json

MEASURED = {
    "contrastive": contrastive,
    "demo": demo,
    "decoder": decoder,
    "encode": encode,
    "engines": engines,
    "growth": growth,
    "learning": learning,
    "mntp": mntp,
    "plans": plans,
    "probe": probe,
    "quality": quality,
    "recurrence": recurrence,
    "scale": scale,
    "serve": serve,
}


def main(given: list[str]) -> int:
    """Run one command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    names = parser.add_subparsers(dest="name", required=True)
    for name, module in MEASURED.items():
        one = names.add_parser(name, help=module.__doc__)
        one.add_argument("--json", type=Path, required=True, help="file to write the figures to")
        module.arguments(one)
    readme.arguments(names.add_parser("readme", help=readme.__doc__))
    options = parser.parse_args(given)
    if options.name == "readme":
        return readme.run(options)
    findings = MEASURED[options.name].measure(options)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.json, framed(findings, shlex.join(["python", "-m", "benchmarks", *given])))
    print(f"written to {options.json}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
