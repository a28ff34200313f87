"""Parity: gloo processes under `accelerate launch` with DeepSpeed give what one gives. Contract: what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent))

from launching import WORKER, command, environment, weights, worst
from worker import train

from bothways import convert
from bothways.errors import ConfigError
from bothways.training import processes, zero_config
from bothways.training.zero_config import sharing_of

needs_deepspeed = pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs the extra bothways[deepspeed]")
SETTINGS = {
    "steps": 10,
    "batch_size": 6,
    "block_size": None,
    "learning_rate": 1e-3,
    "lora_dropout": 0.0,
    "tokens_per_batch": 400,
}
FULL = {"tune": "full", "max_grad_norm": 0.5, "ema_decay": 0.5}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, tiny_llama_folder: Path, real_texts: list[str]) -> dict[str, Path]:
    texts = tmp_path_factory.mktemp("texts") / "texts.txt"
    texts.write_text("\n".join(real_texts[:60]) + "\n", encoding="utf-8")
    return {"base": tiny_llama_folder, "texts": texts}


def launch(config: Path, *jobs: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    words = command(
        "accelerate.commands.launch", "--config_file", config, WORKER, json.dumps(jobs, default=str), module=True
    )
    return subprocess.run(words, env=environment(), capture_output=True, text=True, check=False, timeout=200)


def configuration(path: Path, **deepspeed: Any) -> Path:
    """As `accelerate config` writes it (YAML takes JSON)."""
    general = {"compute_environment": "LOCAL_MACHINE", "num_machines": 1, "num_processes": 2}
    path.write_text(json.dumps({**general, "distributed_type": "DEEPSPEED", "deepspeed_config": deepspeed}))
    return path


@pytest.fixture(scope="module", params=[1, 2, 3])
def launched(
    request: pytest.FixtureRequest, base: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """Runs of one stage of ZeRO, in one launch. The first is stopped at step 5 by a SIGTERM to a process, and resumed.

    ZeRO 3 shares every weight, also small ones; ZeRO 2 offloads what the optimiser has.
    """
    stage, folder = request.param, tmp_path_factory.mktemp("launched")
    jobs: dict[str, dict[str, Any]] = {
        "full": {**base, "settings": {**SETTINGS, **FULL}, "checkpoints": folder / "full", "resume": True},
        "lora": {**base, "settings": SETTINGS},
        "simcse": {**base, "stage": "simcse", "settings": {**SETTINGS, "tune": "full", "dropout": 0.1}, "alike": True},
    }
    for name, job in jobs.items():
        job["out"] = folder / f"{name}.pt"
    sharing: dict[str, Any] = {"stage": stage}
    if stage == 2:
        sharing["offload_optimizer"] = {"device": "cpu"}
    if stage == 3:
        sharing["stage3_param_persistence_threshold"] = 0
    own = folder / "deepspeed.json"
    own.write_text(json.dumps({"zero_optimization": sharing, "gradient_clipping": "auto", "train_batch_size": "auto"}))
    config = configuration(folder / "accelerate.yaml", deepspeed_config_file=str(own))
    stop = {"die": {"rank": 1, "step": 4, "how": "SIGTERM"}, "interrupted": True}
    done = launch(config, {**jobs["full"], **stop}, jobs["full"], jobs["lora"])
    assert done.returncode == 0, done.stderr
    assert f"interrupted after step 5; resume from {folder}/full/step-00000005.shards" in done.stderr
    assert done.stderr.count("resumed after step 5") == 1
    return jobs


@needs_deepspeed
@pytest.mark.parametrize("name", ["full", "lora"])
def test_two_processes_equal_one(base: dict[str, Path], launched: dict[str, dict[str, Any]], name: str) -> None:
    alone = train({**base, "settings": launched[name]["settings"]}).state_dict()
    untrained = convert(base["base"], dtype="float32", device="cpu").state_dict()
    assert worst(alone, weights(launched[name])) <= 1e-5
    assert worst(alone, untrained) > 1e-3
