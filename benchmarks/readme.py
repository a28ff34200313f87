"""The generated parts of the pages: tables from benchmarks/results, the file tree from the files' own first lines."""

from __future__ import annotations

import argparse
import ast
import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import engines as others
from benchmarks import growth as grows
from benchmarks import performance, scale
from benchmarks import plans as planned
from benchmarks import serve as served
from benchmarks.frame import RESULTS, ROOT
from benchmarks.quality import page as quality_page
from bothways.evaluation.tables import markdown

Found = Mapping[str, Any]
"""A results file."""
README = ROOT / "README.md"
PERFORMANCE = ROOT / "docs" / "performance.md"
QUALITY = ROOT / "docs" / "quality.md"
SCALE = ROOT / "docs" / "scale.md"
ONNX = ROOT / "docs" / "onnx.md"
SERVE = ROOT / "docs" / "serve.md"
TREES = ("src/bothways", "benchmarks", "scripts", "recipes")


def arguments(parser: argparse.ArgumentParser) -> None:
    """`--check` compares and writes nothing."""
    parser.add_argument("--check", action="store_true", help="exit with 1 if a page is not up to date")


def run(options: argparse.Namespace) -> int:
    """Rewrite the generated parts, or say whether they are up to date. Returns the exit code."""
    stale = 0
    for page in (README, PERFORMANCE, QUALITY, SCALE, ONNX, SERVE):
        before = page.read_text(encoding="utf-8")
        after = generated(before, page)
        if options.check and before != after:
            print(f"{page.name} is not up to date. Run: python -m benchmarks readme", file=sys.stderr)
            stale = 1
        elif not options.check:
            page.write_text(after, encoding="utf-8")
    return stale


def generated(text: str, page: Path = README) -> str:
    """`text` with every part of that page, between its markers, made anew."""
    parts = {
        README: {"demo": demo, "decoder": decoder, "tree": tree},
        PERFORMANCE: {
            "mntp": mntp,
            "mntp-cuda": mntp_cuda,
            "contrastive": contrastive,
            "encode": encode,
            "growth": growth,
            "plans": plans,
        },
        SCALE: {"plan": billion, "failures": failures},
        QUALITY: {"quality": quality},
        ONNX: {"engines": engines},
        SERVE: {"serve": serve},
    }
    for name, make in parts[page].items():
        begin, end = f"<!-- begin {name}: python -m benchmarks readme -->", f"<!-- end {name} -->"
        pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
        if not pattern.search(text):
            raise SystemExit(f'{page.name}: the markers of the part "{name}" are gone.')
        part = f"{begin}\n{make()}{end}"
        text = pattern.sub(lambda _, part=part: part, text)
    return text


def demo() -> str:
    """The demo's table, and on what it was measured."""
    found = _results("demo")
    if found is None:
        return "Not measured yet.\n"
    observed = found["observed"]
    minutes, seconds = divmod(round(observed["seconds"]), 60)
    facts = observed["documentation"]
    return (
        f"{markdown(found['rows'])}\n"
        f"{facts['held-out pairs']:,} held-out queries; {facts['training pairs']:,} pairs and "
        f"{facts['unlabelled texts']:,} texts to train on; {minutes} min {seconds} s in all, "
        f"{observed['peak_memory_bytes'] / 2**30:.1f} GiB at most.\n{_machine(found)}\n\n{_verdict(observed)}\n"
    )


def _verdict(observed: dict[str, Any]) -> str:
    gain, share = (observed[f"ndcg@10 over {name}"] for name in ("causal decoder", "tf-idf"))
    if share > 1:
        return f"After the last step nDCG@10 is {gain:.1f} times the causal decoder's, and above tf-idf."
    return (
        f"After the last step nDCG@10 is {gain:.1f} times the causal decoder's, and **below tf-idf**, "
        f"at {share:.0%} of it.\n"
        "The likely reason: a docstring repeats the rare words of its first sentence, names above all. Counting words\n"
        "finds those without learning anything; a decoder of 7.6M parameters has hardly met them."
    )


def decoder() -> str:
    """Bits per byte, and STS-B."""
    found = _results("decoder")
    if found is None:
        return "Not measured yet.\n"
    bits, spearman = (found["observed"][name] for name in ("held_out_bits_per_byte", "spearman, mean over seeds"))
    rows = [{"held-out text": name, "bits per byte": f"{value:.3f}"} for name, value in bits.items()]
    similarity = [{"STS-B dev, mean pool, no training": name, "Spearman": value} for name, value in spearman.items()]
    return f"{markdown(rows)}\n{markdown(similarity)}\n{_machine(found)}\n"


def mntp() -> str:
    """One step of MNTP on CPU."""
    return _steps("mntp")


def mntp_cuda() -> str:
    """The same on a GPU."""
    return _steps("mntp-cuda")


def contrastive() -> str:
    """One contrastive step."""
    return _steps("contrastive")


def encode() -> str:
    """One pass of encode."""
    return _steps("encode")


def engines() -> str:
    """Speed and loss of other engines."""
    return _measured("engines", others.table)


def growth() -> str:
    """How the cost of encoding grows."""
    return _measured("growth", grows.table)


def serve() -> str:
    """Requests of many clients at once."""
    return _measured("serve", served.table)


def billion() -> str:
    """What a billion documents take."""
    found = _results("scale")
    return "Not planned yet.\n" if found is None else f"{scale.plan_table(found)}\n{scale.assumed(found)}\n"


def failures() -> str:
    """What interruptions cost."""
    found = _results("scale")
    return "Not simulated yet.\n" if found is None else f"{scale.failure_table(found)}\n"


def plans() -> str:
    """What a recipe takes before it runs."""
    found = _results("plans")
    return "Not planned yet.\n" if found is None else f"{planned.table(found)}\n{planned.made(found)}\n"


def _measured(name: str, table: Callable[[Found], str]) -> str:
    found = _results(name)
    return "Not measured yet.\n" if found is None else f"{table(found)}\n{_machine(found)}\n"


def _steps(name: str) -> str:
    """Steps beside those of the peers, their parts, their floor."""
    found = _results(name)
    if found is None:
        return "Not measured yet.\n"
    return (
        f"{performance.steps(found)}\nThe attention of each peer that was the faster one: "
        f"{performance.attention(found)}.\n\n{performance.parts(found)}\n{performance.floor(found)}\n"
        f"{_machine(found)}\n"
    )


def quality() -> str:
    """Scores after every stage, beside the peers."""
    tables = (quality_page.scores, quality_page.differences, quality_page.order, quality_page.settings)
    return _measured("quality", lambda found: "\n".join(table(found) for table in tables))


def tree() -> str:
    """Every source file with the first sentence of its docstring."""
    paths = [path for folder in TREES for path in sorted((ROOT / folder).rglob("*")) if path.suffix in (".py", ".yaml")]
    lines = [(path.relative_to(ROOT).as_posix(), _first_line(path)) for path in paths if _first_line(path)]
    width = max(len(name) for name, _ in lines)
    listed = "\n".join(f"{name:<{width}}  {line}" for name, line in lines)
    return f"```text\n{listed}\n```\n"


def _first_line(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".yaml":
        return text.splitlines()[0].removeprefix("# ") if text.startswith("# ") else ""
    return (ast.get_docstring(ast.parse(text)) or "").split("\n\n")[0].replace("\n", " ")


def _results(name: str) -> dict[str, Any] | None:
    path = RESULTS / f"{name}.json"
    if not path.exists():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _machine(found: dict[str, Any]) -> str:
    machine, versions = found["hardware"], found["versions"]
    return (
        f"Measured on {machine['processor']}, {machine['threads']} of {machine['cores']} cores, "
        f"{machine.get('memory_gib', '?')} GiB, Python {versions['python']}, torch {versions['torch']}, "
        f"transformers {versions['transformers']}, by `{found['command']}`."
    )
