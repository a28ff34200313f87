"""What MNTP teaches: held-out loss beside the causal model's and the unigram's, and similarity with and without it."""

from __future__ import annotations

import argparse
import math
import random
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from benchmarks.frame import Findings, say
from benchmarks.texts import unlabelled

BLOCK, BATCH = 128, 32
TRAINED, HELD_OUT = 16_000, 600
"""Paragraphs of each run."""
SIMCSE_STEPS = 40
CAUSAL, SKIPPED, LEARNT = "causal, as it came", "converted, MNTP skipped", "converted, MNTP"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Where the texts are, and how much is done."""
    parser.add_argument("--data", type=Path, required=True, help="folder of text-*, wiki-sents and sts-b")
    parser.add_argument("--seeds", type=int, default=3, help="runs, each on other paragraphs")
    parser.add_argument("--steps", type=int, default=150, help=f"steps of MNTP, {BLOCK * BATCH:,} tokens each")


def measure(options: argparse.Namespace) -> Findings:
    """The embedded decoder on text that neither its pre-training nor MNTP has seen."""
    from bothways.evaluation import FLOOR, TfIdf, read_task, score

    task = read_task(options.data / "sts-b" / "test.jsonl.gz")
    texts = unlabelled(options.data)
    rows: list[dict[str, Any]] = [{"encoder": FLOOR, "seed": None, "sts-b": score(TfIdf.of(task), task)["spearman"]}]
    for seed in range(options.seeds):
        for row in _run(seed, options.steps, texts, task):
            rows.append({"seed": seed, **row})
            say(str(rows[-1]))
    return Findings(rows, observed={"mean over seeds": _means(rows)})


def _run(seed: int, steps: int, texts: tuple[list[str], list[str]], task: Any) -> list[dict[str, Any]]:
    from bothways import MNTP, SimCSE, convert, mntp, simcse
    from bothways.evaluation import score

    rng = random.Random(seed)
    train, held_out = rng.sample(texts[0], TRAINED), rng.sample(texts[1], HELD_OUT)
    same: dict[str, Any] = {"tune": "full", "seed": seed, "warm_up": 0.1, "held_out_items": 0}
    settings = MNTP(steps=steps, batch_size=BATCH, block_size=BLOCK, learning_rate=1e-3, **same)
    views = SimCSE(steps=SIMCSE_STEPS, batch_size=64, max_length=64, learning_rate=1e-4, **same)
    found = []
    for name in (CAUSAL, SKIPPED, LEARNT):
        encoder = convert("embedded", direction="causal" if name == CAUSAL else "bidirectional", max_length=128)
        if name == CAUSAL:
            found.append(_floor(encoder, train, held_out, settings))
            losses = {"next token": _next_token(encoder, held_out, settings)}
            losses["mntp loss"] = _held_out(encoder, held_out, settings)["loss"]
        elif name == SKIPPED:
            losses = {"mntp loss": _held_out(encoder, held_out, settings)["loss"]}
        else:
            mntp(encoder, train, settings, held_out=held_out, show_progress=False)
            last = encoder.record.stages[-1]["held_out"][str(steps)]
            losses = {"mntp loss": last["loss"], "mntp accuracy": last["accuracy"]}
        row = {"encoder": name, **losses, "sts-b": score(encoder, task)["spearman"]}
        simcse(encoder, train, views, show_progress=False)
        found.append({**row, "sts-b after SimCSE": score(encoder, task)["spearman"]})
    return found


def _masked(encoder: Any, texts: list[str], settings: Any) -> tuple[list[list[int]], list[list[int]], list[list[int]]]:
    """Rows as they are, the same masked, and the labels: what the stage measures its held-out loss on."""
    from bothways.stages import mntp as stage

    task = stage._Task(encoder, texts, texts, settings)
    rows = [list(row) for row in task.held_out]
    masked = [task.masking(row, (settings.seed, stage.HELD_OUT, i), settings.mask_rate) for i, row in enumerate(rows)]
    return rows, [list(ids) for ids, _ in masked], [list(labels) for _, labels in masked]


@torch.no_grad()
def _loss(encoder: Any, rows: list[list[int]], labels: list[list[int]]) -> float:
    from bothways.stages.mntp import mntp_loss

    total, count = 0.0, 0
    for start in range(0, len(rows), BATCH):
        loss, predicted = mntp_loss(encoder, rows[start : start + BATCH], labels[start : start + BATCH])
        total, count = total + float(loss), count + predicted
    return total / count


def _held_out(encoder: Any, texts: list[str], settings: Any) -> dict[str, float]:
    _, masked, labels = _masked(encoder, texts, settings)
    return {"loss": _loss(encoder, masked, labels)}


def _next_token(encoder: Any, texts: list[str], settings: Any) -> float:
    """What a causal model is made for: the same tokens, from everything before them, nothing hidden."""
    rows, _, labels = _masked(encoder, texts, settings)
    return _loss(encoder, rows, labels)


def _floor(encoder: Any, train: list[str], texts: list[str], settings: Any) -> dict[str, Any]:
    """Each hidden token by its share of the training text's tokens, one added to every count."""
    counts = Counter(token for row in encoder.tokenise(train) for token in row.ids)
    total = sum(counts.values()) + len(encoder.tokenizer)
    _, _, labels = _masked(encoder, texts, settings)
    hidden = [label for row in labels for label in row if label >= 0]
    nats = -sum(math.log((counts[label] + 1) / total) for label in hidden) / len(hidden)
    return {"encoder": "unigram", "mntp loss": nats}


def _means(rows: list[dict[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """Encoder -> figure -> mean, and standard deviation where there is more than one run."""
    found: dict[str, dict[str, list[float]]] = {}
    for encoder in dict.fromkeys(row["encoder"] for row in rows):
        mine = [row for row in rows if row["encoder"] == encoder]
        for name in dict.fromkeys(key for row in mine for key in row if key not in ("encoder", "seed")):
            values = [row[name] for row in mine if name in row]
            spread = [statistics.stdev(values)] if len(values) > 1 else []
            found.setdefault(encoder, {})[name] = [round(value, 4) for value in (statistics.fmean(values), *spread)]
    return found
