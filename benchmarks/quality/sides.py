"""Who does the work: ours in this process, the peers in their own; and the decoder in the form that each reads."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks import llm2vec_env
from benchmarks.frame import ROOT
from benchmarks.peers.quality_wire import Job
from benchmarks.quality.settings import LLM2VEC, OURS, RANDOM, ST
from bothways import convert
from bothways.folders import new_folder

WORKERS = {LLM2VEC: "quality_llm2vec", ST: "quality_sentence_transformers"}
SHOWN = 2000
"""Last letters of a dead worker's stderr that are shown."""


def perform(side: str, job: Job, folder: Path) -> dict[str, Any]:
    """Have a side do a job: ours here, the peers' in processes of their own. Exits if one dies."""
    if side in (OURS, RANDOM):
        from benchmarks.peers import quality_bothways

        return quality_bothways.perform(job)
    question, answer = folder / "job.json", folder / "answer.json"
    job.write(question)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    python = sys.executable
    if side == LLM2VEC:
        python = str(llm2vec_env.PYTHON)
        environment.pop("PYTHONPATH", None)
    command = [python, "-m", f"benchmarks.peers.{WORKERS[side]}", str(question), str(answer)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, errors="replace")
    if done.returncode:
        raise SystemExit(f"benchmarks quality: {side} ended with {done.returncode}:\n{done.stderr[-SHOWN:]}")
    facts: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
    return facts


def older(base: Path, folder: Path, _: int) -> None:
    """The decoder as transformers 4.44 and tokenizers 0.19 read it: the same weights and tokens, older spellings."""
    with new_folder(folder) as partial:
        for path in base.glob("*.safetensors"):
            shutil.copy(path, partial)
        config = json.loads((base / "config.json").read_text(encoding="utf-8"))
        config |= {"rope_theta": config["rope_parameters"]["rope_theta"], "torch_dtype": config["dtype"]}
        (partial / "config.json").write_text(json.dumps(config), encoding="utf-8")
        tokenizer = json.loads((base / "tokenizer.json").read_text(encoding="utf-8"))
        model = tokenizer["model"]
        model["merges"] = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
        (partial / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
        settings = json.loads((base / "tokenizer_config.json").read_text(encoding="utf-8"))
        settings = {name: value for name, value in settings.items() if name != "backend"}
        settings |= {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_input_names": ["input_ids", "attention_mask"],
        }
        (partial / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def causal_folder(base: Path, folder: Path, max_length: int) -> None:
    """The decoder as sentence-transformers reads it: looking back alone, mean pooling, unit length."""
    encoder = convert(base, direction="causal", dtype="float32", max_length=max_length)
    encoder.save_pretrained(folder, head=False)


FORMS = {LLM2VEC: older, ST: causal_folder}
"""Base, folder to make, tokens to read of a text."""
