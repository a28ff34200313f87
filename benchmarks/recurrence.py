"""Two-way recurrence: how the two directions of a recurrent mixer are combined, measured on two tiny hybrids."""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.frame import Findings, say
from benchmarks.texts import json_rows, unlabelled

RECORD = "pretraining.json"
WINDOW, WINDOWS_PER_STEP = 128, 16
WARM_UP, COOL_DOWN = 0.02, 0.4
"""Shares of the pre-training: the learning rate rises linearly, stays, and falls linearly to zero."""
WIDTH, HEADS = 160, 5
SHAPE: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 448,
    "num_hidden_layers": 4,
    "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}
HYBRIDS: dict[str, dict[str, Any]] = {
    "lfm2": {
        **SHAPE,
        "block_auto_adjust_ff_dim": False,
        "conv_L_cache": 3,
        "layer_types": ["conv", "conv", "full_attention", "conv"],
    },
    "qwen3_5_text": {
        **SHAPE,
        "head_dim": WIDTH // HEADS,
        "linear_key_head_dim": 48,
        "linear_value_head_dim": WIDTH // 2,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 2,
        "layer_types": ["linear_attention", "linear_attention", "full_attention", "linear_attention"],
    },
}
"""A short-convolution kind and a gated-delta kind, three recurrent layers to one of attention each."""

ONE_WAY, CAUSAL_MIXERS, MEAN, GATE, HALF = "one-way as it came", "causal mixers", "mean", "gate", "gate from one half"
ARMS = (CAUSAL_MIXERS, MEAN, GATE, HALF, ONE_WAY)
"""one-way: nothing is opened. causal mixers: attention is, recurrence is not. mean and gate: recurrence runs both ways,
and its outputs are averaged, or the second direction comes in by the library's learned gate, which starts at 0.1, or
at 0.5."""
MNTP_STEPS, SUPERVISED_STEPS = 90, 50
MAX_LENGTH = 128
HELD_OUT_FOCI = 100
"""Subjects of medquad (of 5,126) whose questions and answers make the held-out retrieval task."""
SCORES = ("mntp loss before", "mntp loss after", "medquad ndcg@10", "xquad-en ndcg@10")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Where the texts are, where pre-trained hybrids are kept, and how much is done."""
    parser.add_argument("--data", type=Path, required=True, help="folder of text-*, wiki-sents, medquad and xquad-en")
    parser.add_argument("--cache", type=Path, default=Path("build/recurrence"), help="folder for pre-trained hybrids")
    parser.add_argument("--tokens", type=float, default=4e6, help="tokens of each pre-training")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each arm that opens something")
    parser.add_argument("--mntp-steps", type=int, default=MNTP_STEPS, help="optimiser steps of MNTP, 2,048 tokens each")


def measure(options: argparse.Namespace) -> Findings:
    """Pre-train what the cache lacks, then MNTP and supervised training of every arm from the same weights."""
    from bothways.bidirectional import gate
    from bothways.evaluation import FLOOR, TfIdf, read_retrieval, score

    texts = unlabelled(options.data)
    examples, medquad = answers(options.data / "medquad" / "pairs.jsonl.gz")
    tasks = [medquad, read_retrieval(options.data / "xquad-en")]
    folders = {kind: pretrained(kind, options.cache, texts, options.tokens) for kind in HYBRIDS}
    floor = {f"{task.name} ndcg@10": score(TfIdf.of(task), task)["ndcg@10"] for task in tasks}
    rows: list[dict[str, Any]] = [{"decoder": FLOOR, "arm": None, "seed": None, **floor}]
    plan = [(seed, kind, arm) for seed in range(options.seeds) for kind in HYBRIDS for arm in ARMS if arm != ONE_WAY]
    plan += [(0, kind, ONE_WAY) for kind in HYBRIDS]
    for seed, kind, arm in plan:
        found = _run(folders[kind], arm, seed, options.mntp_steps, texts, examples, tasks)
        rows.append({"decoder": kind, "arm": arm, "seed": seed, **found})
        say(json.dumps(rows[-1]))
    return Findings(
        rows,
        observed={
            "mean and standard deviation over seeds": summary(rows),
            "arm minus mean, same seed": differences(rows),
            "pretraining": {kind: json.loads((folder / RECORD).read_text()) for kind, folder in folders.items()},
            "gate": {"start": gate.GATE_START, "speed": gate.GATE_SPEED},
        },
    )


def answers(path: Path) -> tuple[list[Any], Any]:
    """Examples to train on, and a retrieval task of the questions on subjects that none of them is on."""
    from bothways.data import Document, Example
    from bothways.evaluation import Retrieval

    rows = json_rows(path)
    foci = sorted({row["focus"].lower() for row in rows})
    chosen = set(random.Random(0).sample(foci, HELD_OUT_FOCI))
    apart = [row for row in rows if row["focus"].lower() in chosen]
    documents = {text: str(number) for number, text in enumerate(dict.fromkeys(row["answer"] for row in apart))}
    relevance: dict[str, dict[str, int]] = {}
    for row in apart:
        relevance.setdefault(row["question"], {})[documents[row["answer"]]] = 1
    task = Retrieval(
        "medquad",
        [Document(question, question) for question in relevance],
        [Document(name, text) for text, name in documents.items()],
        relevance,
    )
    known = {*documents, *relevance}
    kept = [row for row in rows if row["answer"] not in known and row["question"] not in known]
    return [Example(row["question"], row["answer"]) for row in kept], task


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, list[float | None]]]]:
    """Decoder -> arm -> score -> mean and standard deviation over the seeds."""
    found: dict[str, dict[str, dict[str, list[float | None]]]] = {}
    for (decoder, arm), group in _grouped(rows).items():
        found.setdefault(decoder, {})[arm] = {name: _spread([row[name] for row in group]) for name in SCORES}
    return found


def differences(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, list[float | None]]]]:
    """Decoder -> arm -> score -> mean and standard deviation of the difference to the mean of the same seed."""
    groups = _grouped(rows)
    found: dict[str, dict[str, dict[str, list[float | None]]]] = {}
    for (decoder, arm), group in groups.items():
        base = {row["seed"]: row for row in groups.get((decoder, MEAN), [])}
        pairs = [(row, base[row["seed"]]) for row in group if arm != MEAN and row["seed"] in base]
        if pairs:
            found.setdefault(decoder, {})[arm] = {
                name: _spread([row[name] - other[name] for row, other in pairs]) for name in SCORES
            }
    return found


def _grouped(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["arm"] is not None:
            groups.setdefault((row["decoder"], row["arm"]), []).append(row)
    return groups


def _spread(values: Sequence[float]) -> list[float | None]:
    return [round(statistics.fmean(values), 4), round(statistics.stdev(values), 4) if len(values) > 1 else None]


def _run(
    folder: Path,
    arm: str,
    seed: int,
    steps: int,
    texts: tuple[list[str], list[str]],
    examples: list[Any],
    tasks: list[Any],
) -> dict[str, Any]:
    """MNTP, then supervised training of one arm; every arm sees the same texts in the same order under one seed."""
    from bothways import MNTP, Supervised, mntp, supervised
    from bothways.evaluation import score

    encoder = opened(folder, arm)
    rng = random.Random(seed)
    train, held_out = rng.sample(texts[0], 8000), random.Random(0).sample(texts[1], min(400, len(texts[1])))
    # Gradients are not clipped: those of the gate, enlarged by its speed, would decide how much the others are.
    same: dict[str, Any] = {"tune": "full", "learning_rate": 1e-3, "warm_up": 0.1, "max_grad_norm": 0.0, "seed": seed}
    same["held_out_items"] = 0
    mntp(
        encoder,
        train,
        MNTP(steps=steps, batch_size=16, block_size=WINDOW, tokens_per_batch=2048, **same),
        held_out=held_out,
        show_progress=False,
    )
    gates = {"gates after mntp": gate_shares(encoder.model)}
    supervised(
        encoder,
        rng.sample(examples, min(len(examples), 32 * SUPERVISED_STEPS)),
        Supervised(
            steps=SUPERVISED_STEPS, batch_size=32, max_length=64, tokens_per_batch=4096, temperature=0.05, **same
        ),
        show_progress=False,
    )
    gates["gates after supervised"] = gate_shares(encoder.model)
    learnt, taught = encoder.record.stages[-2:]
    first, last = learnt["held_out"]["0"], learnt["held_out"][str(steps)]
    return {
        "mntp loss before": round(first["loss"], 4),
        "mntp loss after": round(last["loss"], 4),
        "mntp accuracy after": round(last["accuracy"], 4),
        **{f"{task.name} {name}": round(value, 4) for task in tasks for name, value in score(encoder, task).items()},
        "mntp seconds": learnt["seconds"],
        "supervised seconds": taught["seconds"],
        **(gates if arm in (GATE, HALF) else {}),
    }


def opened(folder: Path, arm: str) -> Any:
    """The pre-trained hybrid as an encoder, its directions combined as the arm says."""
    from transformers import AutoModelForCausalLM

    from bothways import Encoder, make_bidirectional
    from bothways.bidirectional import gate
    from bothways.bidirectional.attention import prepare, treat
    from bothways.bidirectional.recurrence import runs_both_ways
    from bothways.head import head_of
    from bothways.loading import load_tokenizer
    from bothways.provenance import EncoderSettings, Record

    # The attention that training computes with on CPU, so that no arm is measured under another one.
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    head, trunk = head_of(model), model.base_model
    if arm == ONE_WAY:
        prepare(trunk.config, "causal")
    elif arm == CAUSAL_MIXERS:
        prepare(trunk.config)
        treat(trunk)
    else:
        make_bidirectional(trunk)
    if arm == MEAN:
        for name in runs_both_ways(trunk):
            trunk.get_submodule(name).add_module(gate.GATE, Mean())
    if arm == HALF:
        for name in runs_both_ways(trunk):
            nn.init.zeros_(trunk.get_submodule(name).get_submodule(gate.GATE).get_parameter("logit"))
    # A model whose mixers are one-way cannot be certified as bidirectional, although its attention is.
    direction: Any = "bidirectional" if arm in (MEAN, GATE, HALF) else "causal"
    settings = EncoderSettings(max_length=MAX_LENGTH, direction=direction)
    return Encoder(trunk, load_tokenizer(folder, trust_remote_code=False), settings, Record(base=folder.name), head)


class Mean(nn.Module):
    """Stands where the library's gate does: both directions count alike, and nothing is learned."""

    def forward(self, forward: Tensor, backward: Tensor) -> Tensor:
        """Half of each."""
        return (forward + backward) / 2


def gate_shares(model: nn.Module) -> dict[str, list[float]]:
    """Sub-module -> mean, least and largest share of the second direction."""
    from bothways.bidirectional.gate import GATE, Gate

    gates = {
        name.removesuffix(f".{GATE}"): module.share().detach()
        for name, module in model.named_modules()
        if isinstance(module, Gate)
    }
    return {name: [round(float(f(g)), 4) for f in (torch.mean, torch.min, torch.max)] for name, g in gates.items()}


def pretrained(kind: str, cache: Path, texts: tuple[list[str], list[str]], tokens: float, seed: int = 0) -> Path:
    """The folder of a tiny hybrid, pre-trained as a causal language model now if the cache does not hold it yet."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from bothways.loading import EMBEDDED, load_tokenizer
    from bothways.training.precision import WorkingWeights

    folder = cache / f"{kind}-{tokens:.2g}-{seed}"
    if (folder / RECORD).exists():
        return folder
    tokenizer = load_tokenizer(EMBEDDED, trust_remote_code=False)
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    ids, held_out = (_joined(tokenizer, part) for part in texts)
    torch.manual_seed(seed)
    config = AutoConfig.for_model(kind, vocab_size=len(tokenizer), **special, **HYBRIDS[kind])
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().train()
    weights = WorkingWeights(model, torch.bfloat16)
    inside = {name for name, master in weights.masters.items() if "layers" in name and master.ndim == 2}
    optimisers = [
        torch.optim.Muon(
            [weights.masters[name] for name in weights.masters if name in inside],
            lr=0.0,
            weight_decay=0.1,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(
            [weights.masters[name] for name in weights.masters if name not in inside], lr=0.0, betas=(0.9, 0.95)
        ),
    ]
    steps = math.ceil(tokens / (WINDOW * WINDOWS_PER_STEP))
    source, begun = _windows(ids, tokenizer.bos_token_id, seed), time.monotonic()
    for step in range(steps):
        loss = _causal_loss(model, torch.stack([next(source) for _ in range(WINDOWS_PER_STEP)]))
        loss.backward()
        weights.collect()
        torch.nn.utils.clip_grad_norm_(list(weights.masters.values()), 1.0)
        progress = (step + 1) / steps
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = 5e-3 * min(1.0, progress / WARM_UP, (1 - progress) / COOL_DOWN)
            optimiser.step()
            optimiser.zero_grad()
        weights.publish()
        if step % 100 == 0 or step + 1 == steps:
            say(f"{kind}: step {step + 1}/{steps} loss {loss.item():.3f} seconds {time.monotonic() - begun:.0f}")
    seconds = time.monotonic() - begun
    model.eval()
    rows = held_out[: len(held_out) // (WINDOW - 1) * (WINDOW - 1)].view(-1, WINDOW - 1)[::8].long()
    rows = torch.cat([torch.full((len(rows), 1), tokenizer.bos_token_id), rows], dim=1)
    with torch.no_grad():
        nats = sum(float(_causal_loss(model, chunk)) * len(chunk) for chunk in rows.split(WINDOWS_PER_STEP)) / len(rows)
    weights.restore()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    record = {
        "kind": kind,
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "tokens": steps * WINDOW * WINDOWS_PER_STEP,
        "distinct_tokens": len(ids),
        "seconds": round(seconds),
        "held_out_nats_per_token": round(nats, 4),
        "seed": seed,
        "config": HYBRIDS[kind],
    }
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    say(f"{kind}: {nats:.4f} nats a held-out token")
    return folder


def _causal_loss(model: Any, rows: Tensor) -> Tensor:
    from bothways.training.losses import token_cross_entropy

    hidden = model.base_model(rows[:, :-1], use_cache=False).last_hidden_state
    wanted = rows[:, 1:]
    return token_cross_entropy(hidden.flatten(0, 1), model.lm_head.weight, wanted.flatten()) / wanted.numel()


def _joined(tokenizer: Any, lines: Sequence[str]) -> Tensor:
    encoded = tokenizer.backend_tokenizer.encode_batch_fast([line + "\n" for line in lines], add_special_tokens=False)
    return torch.tensor([i for line in encoded for i in line.ids], dtype=torch.int32)


def _windows(ids: Tensor, bos: int, seed: int) -> Iterator[Tensor]:
    """Endless int64 windows (WINDOW,), bos first; every epoch has an order of its own."""
    size = WINDOW - 1
    for epoch in range(1_000_000):
        rng = random.Random(f"{seed}/{epoch}")
        starts = list(range(rng.randrange(size), len(ids) - size, size))
        rng.shuffle(starts)
        for start in starts:
            yield torch.cat([torch.tensor([bos]), ids[start : start + size].long()])
