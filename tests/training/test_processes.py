"""Parity: gloo processes, launched for real, give what one process gives. Contract: launches that are refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.append(str(Path(__file__).parent))

from launching import WORKER, command, environment, run, weights, worst
from worker import train

from bothways import Encoder, convert
from bothways.errors import ConfigError
from bothways.recipe import read
from bothways.recipe import run as recipe_run
from bothways.training import processes

STEPS = 20
SETTINGS = {
    "steps": STEPS,
    "batch_size": 6,
    "block_size": None,
    "learning_rate": 1e-3,
    "lora_dropout": 0.0,
    "tokens_per_batch": 400,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, tiny_llama_folder: Path, real_texts: list[str]) -> dict[str, Path]:
    texts = tmp_path_factory.mktemp("texts") / "texts.txt"
    texts.write_text("\n".join(real_texts[:60]) + "\n", encoding="utf-8")
    return {"base": tiny_llama_folder, "texts": texts}


def job(base: dict[str, Path], out: Path, settings: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {**base, "out": out, "settings": {**SETTINGS, **settings}, **more}


@pytest.fixture(scope="module")
def launched(base: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Runs on two processes, in one launch, because starting costs more than they do.

    Two of them are stopped at step 10 by a SIGTERM to the second process alone, and resumed.
    """
    folder = tmp_path_factory.mktemp("launched")
    full, lora = {"tune": "full", "max_grad_norm": 0.5, "ema_decay": 0.5}, {"tune": "lora", "precision": "fp32"}
    stop = {"die": {"rank": 1, "step": 9, "how": "SIGTERM"}, "interrupted": True}
    jobs = {
        "full": job(base, folder / "full.pt", full),
        "lora": job(base, folder / "lora.pt", lora, checkpoints=folder / "lora", resume=True),
        "sharded": job(base, folder / "sharded.pt", full, shard=True, checkpoints=folder / "sharded", resume=True),
        "sharded lora": job(base, folder / "sharded-lora.pt", lora, shard=True),
    }
    order = [jobs["full"]]
    for name in ("lora", "sharded"):
        order += [{**jobs[name], **stop}, jobs[name]]
    code, said = run(*order, jobs["sharded lora"], processes=2)
    assert code == 0, said
    for name, kind in (("lora", "pt"), ("sharded", "shards")):
        assert f"interrupted after step 10; resume from {folder / name}/step-00000010.{kind}" in said
    assert said.count("resumed after step 10") == 2
    return jobs


@pytest.mark.parametrize("name", ["full", "lora", "sharded", "sharded lora"])
def test_two_processes_equal_one(base: dict[str, Path], launched: dict[str, dict[str, Any]], name: str) -> None:
    """Float32, one thread, no dropout, rows of many lengths in packs; the same global batch, 20 steps."""
    alone = train({**base, "settings": launched[name]["settings"]}).state_dict()
    untrained = convert(base["base"], dtype="float32", device="cpu").state_dict()
    assert worst(alone, weights(launched[name])) <= 1e-5
    assert worst(alone, untrained) > 1e-3


@pytest.mark.parametrize("how", ["SIGKILL", pytest.param("raise", marks=pytest.mark.slow)])
def test_where_one_process_dies_the_others_stop_with_one_error(base: dict[str, Path], tmp_path: Path, how: str) -> None:
    die = {"rank": 1, "step": 7, "how": how}
    folder = tmp_path / "checkpoints"
    settings = {"save_every": 5}
    # Before the launcher ends the other one, that shall have its say, also on a busy machine.
    code, said = run(job(base, tmp_path / "out.pt", settings, die=die, checkpoints=folder), processes=2, look=3)
    assert code == 1
    errors = [line for line in said.splitlines() if line.startswith("process 0:")]
    assert len(errors) == 1, said
    expected = "another process of this run has died" if how == "SIGKILL" else "process 1 of this run has failed"
    assert errors[0].startswith(f"process 0: TrainingError: {expected}")
    assert "--resume" in errors[0]
    assert not (tmp_path / "out.pt").exists()
    assert [path.name for path in folder.iterdir()] == ["step-00000005.pt"]


def test_the_command_line_under_torchrun_writes_once(base: dict[str, Path], tmp_path: Path) -> None:
    """Two processes of `bothways mntp`; only the first one speaks and writes."""
    settings = ("--steps", 3, "--batch-size", 4, "--block-size", 32, "--precision", "fp32", "--lora-dropout", 0)
    convert(base["base"], dtype="float32", device="cpu").save_pretrained(tmp_path / "0")
    arguments = ("bothways", "mntp", tmp_path / "0", "--data", base["texts"], "--out", tmp_path / "1", *settings)
    done = call(command(*arguments, processes=2, module=True))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("mntp: written to") == done.stderr.count("mntp: step 3/3") == 1
    assert not [*tmp_path.glob("*.checkpoints"), *tmp_path.glob(".*")]
    both = Encoder.from_pretrained(tmp_path / "1")
    assert [stage["stage"] for stage in both.record.stages] == ["convert", "mntp"]


@pytest.mark.slow
def test_a_recipe_under_accelerate_launch_equals_one_process(base: dict[str, Path], tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"base: {base['base']}\nstages:\n  - mntp:\n      data: {base['texts']}\n      steps: 3\n      batch_size: 4\n"
        "      block_size: 32\n      precision: fp32\n      lora_dropout: 0\n"
    )
    recipe_run(read(recipe), tmp_path / "one")
    launcher = ("accelerate.commands.launch", "--cpu", "--num_processes", 2, "--num_machines", 1)
    rest = ("--mixed_precision", "no", "--dynamo_backend", "no", "-m", "bothways", "run", recipe)
    done = call(command(*launcher, *rest, "--out", tmp_path / "two", module=True))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("starting with 60 rows") == 1
    found = [Encoder.from_pretrained(tmp_path / name / "1-mntp").state_dict() for name in ("one", "two")]
    assert worst(*found) <= 1e-5


def test_sharding_on_cpu_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """What accelerate 1.15 turns into replicas without a word."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    with pytest.raises(ConfigError, match=r"asks for FSDP on CPU processes, where accelerate would train replicas"):
        processes.begin()


def call(words: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, env=environment(), capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.gpu
def test_fsdp2_of_a_launch_configuration_equals_one_process(base: dict[str, Path], tmp_path: Path) -> None:
    """Two GPUs, an ordinary accelerate configuration; stopped in the middle and resumed."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    settings = {"tune": "full", "max_grad_norm": 0.5}
    alone = train({**base, "settings": {**SETTINGS, **settings}}).state_dict()
    job_ = job(base, tmp_path / "out.pt", settings, device="cuda", checkpoints=tmp_path / "checkpoints", resume=True)
    stop = {"die": {"rank": 1, "step": 9, "how": "SIGTERM"}, "interrupted": True}
    launcher = ("accelerate.commands.launch", "--use_fsdp", "--fsdp_version", 2, "--num_processes", 2)
    wrap = ("--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP", "--mixed_precision", "no", "--dynamo_backend", "no")
    jobs = json.dumps([{**job_, **stop}, job_], default=str)
    done = call(command(*launcher, *wrap, "--num_machines", 1, WORKER, jobs, module=True))
    assert done.returncode == 0, done.stderr
    assert "resumed after step 10" in done.stderr
    assert worst(alone, weights(job_)) <= 1e-4
