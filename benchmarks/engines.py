"""Other engines on this CPU: tokens a second beside torch, and what formats of fewer bits lose on a real task."""

from __future__ import annotations

import argparse
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.frame import Findings, say
from bothways import hardware
from bothways.evaluation.tables import Row, markdown

SHAPE: dict[str, Any] = {
    "hidden_size": 512,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "intermediate_size": 1536,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}
TINY: dict[str, Any] = {"hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 56}
WORDS = {"16 texts of one length": (16, 96, 96), "64 texts of mixed lengths": (64, 4, 96)}
"""What is encoded at once -> texts, and the fewest and the most words of one; a word is about 1.3 tokens."""
ENGINES: dict[str, tuple[str, dict[str, Any]]] = {
    "torch, float32": ("torch", {"dtype": "float32"}),
    "torch, bfloat16": ("torch", {"dtype": "bfloat16"}),
    "onnxruntime, float32": ("onnx", {"backend": "onnx"}),
    "onnxruntime, int8": ("int8", {"backend": "onnx"}),
    "OpenVINO, float32": ("openvino", {"backend": "openvino", "dtype": "float32"}),
    "OpenVINO, bfloat16": ("openvino", {"backend": "openvino", "dtype": "bfloat16"}),
}
"""Engine and number format -> the folder, and how it is opened."""
REFERENCE = "torch, float32"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Where the labelled pairs are, and how much is measured."""
    parser.add_argument("--data", type=Path, required=True, help="folder that holds sts-b/test.jsonl.gz")
    parser.add_argument("--rounds", type=int, default=7, help="timed passes of every engine, in turn")
    parser.add_argument("--threads", type=int, default=None, help="of every engine; None: as many as torch takes")
    parser.add_argument("--tiny", action="store_true", help="a narrow model: the figures mean nothing, but it runs")


def measure(options: argparse.Namespace) -> Findings:
    """Speed on a random Llama of 12 x 512, loss on the pairs with the embedded decoder, converted and not trained."""
    if options.rounds < 1:
        raise SystemExit(f"benchmarks engines: --rounds {options.rounds}, expected 1 or more.")
    path = options.data / "sts-b" / "test.jsonl.gz"
    if not path.exists():
        raise SystemExit(f"benchmarks engines: {path} is not there. Name the folder that holds it with --data.")
    threads = torch.get_num_threads()
    torch.set_num_threads(options.threads or threads)
    try:
        with tempfile.TemporaryDirectory() as name:
            timed, refused = opened(random_llama(Path(name), tiny=options.tiny))
            rows = list(timings(timed, options.rounds))
            # The tiny model stands for the decoder too: it is exported already.
            judged = timed if options.tiny else opened(embedded(Path(name)))[0]
            lost = losses(judged, path)
        described = hardware.describe()
    finally:
        torch.set_num_threads(threads)
    observed = {
        "shape": {**SHAPE, **(TINY if options.tiny else {})},
        "tokens a second, median": speeds(rows),
        "loss": lost,
        "not measured": refused,
        "versions": dict(timed["onnxruntime, float32"].exported.versions)
        | {"openvino": timed["OpenVINO, float32"].exported.versions["openvino"]},
    }
    return Findings(
        [*rows, *({"engine": name, **found} for name, found in lost.items())], observed=observed, hardware=described
    )


def random_llama(place: Path, *, tiny: bool) -> Path:
    """Folders of a random Llama with the embedded decoder's tokenizer, one for each kind of file."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from bothways.loading import EMBEDDED

    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED)
    torch.manual_seed(0)
    config = LlamaConfig(**{**SHAPE, **(TINY if tiny else {}), "vocab_size": len(tokenizer), "initializer_range": 0.06})
    LlamaForCausalLM(config).save_pretrained(place / "decoder")
    tokenizer.save_pretrained(place / "decoder")
    return exported(str(place / "decoder"), place / "random")


def embedded(place: Path) -> Path:
    """The same of the embedded decoder."""
    return exported("embedded", place / "embedded")


def exported(decoder: str, place: Path) -> Path:
    """Folders `torch`, `onnx`, `int8` and `openvino` of a decoder, converted; made of one ONNX file."""
    from bothways import convert
    from bothways.artefact import EXPORTED
    from bothways.export import onnx, openvino

    encoder = convert(decoder, dtype="float32", device="cpu")
    encoder.save_pretrained(place / "torch")
    say(f"exporting {decoder}")
    onnx.write(encoder, place / "torch", place / "onnx").close()
    file = place / "onnx" / EXPORTED["onnx"]
    (place / "int8").mkdir()
    for part in place.glob(f"onnx/{EXPORTED['onnx']}*"):
        shutil.copy(part, place / "int8")
    onnx.quantise(place / "int8" / EXPORTED["onnx"])
    onnx.complete(encoder, place / "torch", place / "int8", "onnx", "int8")
    (place / "openvino").mkdir()
    openvino.convert_file(file, place / "openvino")
    onnx.complete(encoder, place / "torch", place / "openvino", "openvino", "float32")
    return place


def opened(place: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Every engine that runs here, and why the others do not."""
    from bothways import Encoder
    from bothways.errors import ConfigError

    found: dict[str, Any] = {}
    refused: dict[str, str] = {}
    for name, (folder, how) in ENGINES.items():
        native = hardware.choose_dtype("auto", torch.device("cpu"))
        if folder == "torch" and how["dtype"] == "bfloat16" and native.value != torch.bfloat16:
            refused[name] = native.why
            continue
        try:
            found[name] = Encoder.from_pretrained(place / folder, device="cpu", **how)
        except ConfigError as error:
            refused[name] = str(error)
    return found, refused


def timings(engines: Mapping[str, Any], rounds: int) -> list[dict[str, Any]]:
    """One row for each pass; the engines take turns, and a first pass of each is not kept."""
    rows = []
    for condition, sizes in WORDS.items():
        texts = drawn(*sizes)
        tokens = sum(map(len, engines[REFERENCE].tokenise(texts)))
        for number in range(rounds + 1):
            for name, encoder in engines.items():
                begun = time.perf_counter()
                encoder.encode(texts)
                seconds = time.perf_counter() - begun
                if number:
                    rows.append(
                        {"engine": name, "condition": condition, "round": number, "tokens": tokens, "seconds": seconds}
                    )
        say(f"{condition}: {tokens} tokens")
    return rows


def drawn(texts: int, fewest: int, most: int) -> list[str]:
    """Texts of common English words, the same ones each time."""
    from pydoc_data import topics

    words = sorted({word for text in topics.topics.values() for word in text.split() if word.isalpha()})
    rng = random.Random(0)
    return [" ".join(rng.choices(words, k=rng.randint(fewest, most))) for _ in range(texts)]


def speeds(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Condition -> engine -> tokens a second, by the median pass."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        found.setdefault(row["condition"], {}).setdefault(row["engine"], []).append(row["tokens"] / row["seconds"])
    return {
        condition: {name: statistics.median(values) for name, values in engines.items()}
        for condition, engines in found.items()
    }


def losses(engines: Mapping[str, Any], path: Path) -> dict[str, dict[str, float]]:
    """Spearman on the pairs, its difference to torch's in float32, and the cosines to torch's vectors."""
    from bothways.evaluation import read_similarity, score

    task = read_similarity(path)
    texts = list(dict.fromkeys([*task.first, *task.second]))
    wanted = engines[REFERENCE].encode_document(texts)
    exact = score(engines[REFERENCE], task)["spearman"]
    found = {}
    for name, encoder in engines.items():
        cosines = (encoder.encode_document(texts) * wanted).sum(axis=1)
        spearman = score(encoder, task)["spearman"]
        found[name] = {
            "spearman": spearman,
            "spearman lost": exact - spearman,
            "cosine, mean": float(cosines.mean()),
            "cosine, lowest": float(np.min(cosines)),
        }
        say(f"{name}: {found[name]}")
    return found


def table(found: Mapping[str, Any]) -> str:
    """One row for each engine: tokens a second, times torch's in float32, and what is lost."""
    speed, lost, refused = (found["observed"][key] for key in ("tokens a second, median", "loss", "not measured"))
    rows: list[Row] = []
    for name in ENGINES:
        row: Row = {"engine": name}
        for condition, engines in speed.items():
            row[condition] = (
                f"{engines[name]:,.0f} ({engines[name] / engines[REFERENCE]:.2f}x)" if name in engines else "-"
            )
        if name in lost:
            row["Spearman, STS-B"] = f"{lost[name]['spearman']:.4f}"
            row["cosine, lowest"] = f"{lost[name]['cosine, lowest']:.6f}"
        else:
            row |= {"Spearman, STS-B": "-", "cosine, lowest": f"not measured: {refused[name]}"}
        rows.append(row)
    return markdown(rows)
