"""Parity: gloo processes under `accelerate launch` with DeepSpeed give what one gives. Contract: what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

sys.path.append(str(Path(__file__).parent))

import accelerate
from launching import WORKER, command, environment, weights, worst
from worker import train

from bothways import MNTP, Supervised, convert
from bothways.errors import ConfigError
from bothways.training import loop, processes, zero, zero_config
from bothways.training.processes import Place
from bothways.training.sharded import Whole
from bothways.training.zero_config import engine_config, sharing_of

needs_deepspeed = pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs the extra bothways[deepspeed]")
SETTINGS = {
    "steps": 10,
    "batch_size": 6,
    "block_size": None,
    "learning_rate": 1e-3,
    "lora_dropout": 0.0,
    "tokens_per_batch": 400,
}
FULL = {**SETTINGS, "tune": "full"}
SUPERVISED = {
    "steps": 10,
    "batch_size": 5,
    "max_length": 24,
    "learning_rate": 1e-3,
    "temperature": 0.05,
    "lora_dropout": 0.0,
    "tokens_per_batch": 48,
}
JOBS: dict[str, dict[str, Any]] = {
    # About half of the steps are clipped: AdamW alone would not show a gradient that is too long.
    "full": {"settings": {**FULL, "max_grad_norm": 3.2, "ema_decay": 0.5}},
    "lora": {"settings": {**SETTINGS, "max_grad_norm": 0.0}},
    "supervised": {"stage": "supervised", "settings": {**SUPERVISED, "tune": "full", "gradient_checkpointing": "on"}},
    "supervised cached": {"stage": "supervised", "settings": {**SUPERVISED, "tune": "full", "grad_cache": True}},
    "bf16": {"settings": {**FULL, "precision": "bf16"}},
}
SHARING: dict[str, dict[str, Any]] = {
    "1": {"stage": 1},
    "2": {"stage": 2, "overlap_comm": True},
    # Also of small weights each process has a part.
    "3": {"stage": 3, "stage3_param_persistence_threshold": 0},
    "2 offloaded": {"stage": 2, "offload_optimizer": {"device": "cpu"}},
    "3 offloaded": {"stage": 3, "offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, tiny_llama_folder: Path, real_texts: list[str]) -> dict[str, Path]:
    texts = tmp_path_factory.mktemp("texts") / "texts.txt"
    texts.write_text("\n".join(real_texts[:60]) + "\n", encoding="utf-8")
    return {"base": tiny_llama_folder, "texts": texts}


def launch(folder: Path, sharing: str, *jobs: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    """`accelerate launch` on two processes, by the files that `accelerate config` asks for (YAML takes JSON)."""
    own, general = folder / "deepspeed.json", folder / "accelerate.yaml"
    own.write_text(json.dumps({"zero_optimization": SHARING[sharing], "gradient_clipping": "auto"}))
    machine = {"compute_environment": "LOCAL_MACHINE", "num_machines": 1, "num_processes": 2}
    asked = {"distributed_type": "DEEPSPEED", "deepspeed_config": {"deepspeed_config_file": str(own)}}
    general.write_text(json.dumps({**machine, **asked}))
    words = command(
        "accelerate.commands.launch", "--config_file", general, "--monitor_interval", 3, WORKER, module=True
    )
    words.append(json.dumps(jobs, default=str))
    return subprocess.run(words, env=environment(), capture_output=True, text=True, check=False, timeout=250)


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=[pytest.mark.slow] * ("off" in name)) for name in SHARING]
)
def launched(
    request: pytest.FixtureRequest, base: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[int, dict[str, dict[str, Any]]]:
    """A stage of ZeRO and its runs, in one launch, because starting costs more than they do.

    The first one is stopped at step 5 by a SIGTERM to the second process alone, and resumed.
    """
    sharing, folder = request.param, tmp_path_factory.mktemp("launched")
    jobs = {name: {**base, **job, "out": folder / f"{number}.pt"} for number, (name, job) in enumerate(JOBS.items())}
    jobs["full"] |= {"checkpoints": folder / "full", "resume": True}
    stop = {"die": {"rank": 1, "step": 4, "how": "SIGTERM"}, "interrupted": True}
    done = launch(folder, sharing, {**jobs["full"], **stop}, *jobs.values())
    assert done.returncode == 0, done.stderr
    assert f"interrupted after step 5; resume from {folder}/full/step-00000005.shards" in done.stderr
    assert done.stderr.count("resumed after step 5") == 1
    return SHARING[sharing]["stage"], jobs


@needs_deepspeed
@pytest.mark.parametrize("name", [name for name in JOBS if name != "bf16"])
def test_two_processes_equal_one(
    base: dict[str, Path], launched: tuple[int, dict[str, dict[str, Any]]], name: str
) -> None:
    """Float32, one thread, no dropout, rows of many lengths in packs; the same global batch, 10 steps."""
    alone = train({**base, **JOBS[name]}).state_dict()
    untrained = convert(base["base"], dtype="float32", device="cpu").state_dict()
    assert worst(alone, weights(launched[1][name])) <= 1e-5
    assert worst(alone, untrained) > 1e-3


@needs_deepspeed
def test_in_bfloat16_two_processes_stay_close_to_one(
    base: dict[str, Path], launched: tuple[int, dict[str, dict[str, Any]]]
) -> None:
    alone = train({**base, **JOBS["bf16"]}).state_dict()
    untrained = convert(base["base"], dtype="float32", device="cpu").state_dict()
    found = weights(launched[1]["bf16"])
    apart = sum(float((alone[name] - found[name]).abs().sum()) for name in alone)
    moved = sum(float((alone[name] - untrained[name]).abs().sum()) for name in alone)
    assert apart <= 0.1 * moved


@needs_deepspeed
def test_each_process_keeps_a_part(base: dict[str, Path], launched: tuple[int, dict[str, dict[str, Any]]]) -> None:
    """Of weights, moments and average: what the last checkpoint has of each process is half."""
    from torch.distributed.checkpoint import FileSystemReader

    stage, jobs = launched
    folder = jobs["full"]["checkpoints"] / "step-00000010.shards"
    assert torch.load(folder / "run.pt", weights_only=True)["identity"]["ZeRO"] == stage
    found = FileSystemReader(folder).read_metadata().state_dict_metadata
    count = sum(weight.numel() for weight in convert(base["base"], dtype="float32", device="cpu").parameters())
    for kind in ("weights", "exp_avg", "exp_avg_sq", "average"):
        for rank in (0, 1):
            own = [item.size.numel() for name, item in found.items() if name.startswith(f"{kind}.process {rank} ")]
            assert own, (kind, rank)
            # Padded to a length that all parts have.
            assert count / 2 <= sum(own) <= count / 2 + 64, (kind, rank)


@needs_deepspeed
def test_where_one_process_is_out_of_memory_both_stop_with_one_error_each(
    base: dict[str, Path], tmp_path: Path
) -> None:
    starve = {"rank": 0, "step": 3, "when": "after"}
    done = launch(tmp_path, "3", {**base, **JOBS["supervised"], "out": tmp_path / "out.pt", "starve": starve})
    assert done.returncode == 1
    assert not (tmp_path / "out.pt").exists()
    errors = sorted(line for line in done.stderr.splitlines() if line.startswith("process "))
    assert len(errors) == 2, done.stderr
    assert errors[0] == (
        "process 0: TrainingError: process 0 is out of memory, and under DeepSpeed a step cannot be taken again. Start "
        'again with a smaller tokens_per_batch, or gradient_checkpointing="on".'
    )
    assert errors[1].startswith("process 1: TrainingError: another process of this run has died")


@needs_deepspeed
def test_a_launch_configuration_is_read_as_accelerate_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of `accelerate launch --use_deepspeed --zero_stage 3 --gradient_clipping 0.7`."""
    for name, value in (("USE_DEEPSPEED", "true"), ("DEEPSPEED_ZERO_STAGE", "3"), ("GRADIENT_CLIPPING", "0.7")):
        monkeypatch.setenv(f"ACCELERATE_{name}", value)

    def accelerator(**_: Any) -> SimpleNamespace:
        state = SimpleNamespace(deepspeed_plugin=accelerate.DeepSpeedPlugin())
        return SimpleNamespace(distributed_type=accelerate.DistributedType.DEEPSPEED, state=state)

    monkeypatch.setattr(accelerate, "Accelerator", accelerator)
    with pytest.raises(ConfigError, match=r"gives DeepSpeed gradient_clipping = 0\.7, .*set the stage's max_grad_norm"):
        processes.begin()
    monkeypatch.delenv("ACCELERATE_GRADIENT_CLIPPING")
    config = processes.begin().state.deepspeed_plugin.deepspeed_config
    given = engine_config(config, 1.5, torch.float32)
    assert given["zero_optimization"] == {"stage": 3}
    assert given["gradient_clipping"] == 1.5
    assert "bf16" not in given


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"zero_optimization": {"stage": 0}},
            "asks for DeepSpeed with ZeRO 0, where weights are not shared. Use zero_",
        ),
        ({"gradient_accumulation_steps": 4}, "gradient_accumulation_steps = 4, which a run would not follow. Leave it"),
        (
            {"train_batch_size": 64},
            "train_batch_size = 64, which a run would not follow. Leave it out, and set the sta",
        ),
        ({"fp16": {"enabled": True}}, "fp16 = {'enabled': True}, which a run would not follow. Leave it out, and set"),
        (
            {"bf16": {"enabled": True}},
            'which a run would not follow. Leave it out, and set the stage\'s precision="bf16"',
        ),
        (
            {"optimizer": {"type": "Adam"}},
            "optimizer = {'type': 'Adam'}, which a run would not follow. Leave it out: a",
        ),
        (
            {"scheduler": {"type": "WarmupLR"}},
            "would not follow. Leave it out, and set the stage's schedule and warm_up",
        ),
        (
            {"tensor_parallel": {"autotp_size": 2}},
            "which a run would not follow. It was never tried here. Leave it out.",
        ),
        (
            {"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme", "nvme_path": "/nvme"}}},
            "zero_optimization.offload_param.device = 'nvme', which a run would not follow. Use \"cpu\", or none.",
        ),
        (
            {"zero_optimization": {"stage": 1, "overlap_comm": True}},
            "zero_optimization.overlap_comm = True, which a run would not follow. DeepSpeed overlaps where it does ",
        ),
        (
            {"zero_optimization": {"stage": 3, "zero_quantized_weights": True}},
            "zero_optimization.zero_quantized_weights = True, which a run would not follow. It was never tried here.",
        ),
    ],
)
def test_what_a_run_would_not_do_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as problem:
        sharing_of({"zero_optimization": {"stage": 2}, **config})
    assert message in str(problem.value)


def test_what_is_left_to_the_run_or_says_nothing_is_taken() -> None:
    sharing = {
        "stage": 3,
        "reduce_bucket_size": "auto",
        "overlap_comm": True,
        "offload_optimizer": {"device": "cpu", "nvme_path": None, "pin_memory": True},
        "offload_param": {"device": "none", "nvme_path": None},
        "stage3_gather_16bit_weights_on_model_save": True,
    }
    config = {
        "train_batch_size": "auto",
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,
        "steps_per_print": float("inf"),
        "fp16": {"enabled": False, "loss_scale": 0},
        "zero_optimization": sharing,
    }
    offload = {"device": "cpu", "pin_memory": True}
    assert sharing_of(config) == {"stage": 3, "overlap_comm": True, "offload_optimizer": offload}


def test_without_deepspeed_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setattr(zero_config, "find_spec", lambda _: None)
    with pytest.raises(ConfigError) as problem:
        processes.begin()
    assert str(problem.value) == (
        "the launch configuration asks for DeepSpeed, which is not installed. pip install 'bothways[deepspeed]', or do "
        "without: FSDP 2 shares weights as ZeRO 3 does: distributed_type: FSDP and, in its fsdp_config, "
        "fsdp_version: 2."
    )


def test_where_accelerate_is_told_to_use_the_cpu_it_would_share_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    with pytest.raises(
        ConfigError, match=r"asks for DeepSpeed on CPU processes, where accelerate would train replicas"
    ):
        processes.begin()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            MNTP(tune="qlora"),
            'MNTP(tune="qlora") under DeepSpeed: layers of 4 bits are not sharded. Use tune="lora", or ',
        ),
        (
            MNTP(mask_token="new"),
            'MNTP(mask_token="new", tune="lora") under DeepSpeed: the one row that is trained is ',
        ),
        (
            Supervised(learn_temperature=True),
            "(learn_temperature=True) under DeepSpeed: the one number is not sharded.",
        ),
        (
            MNTP(compile=True),
            "MNTP(compile=True) under DeepSpeed: never tried here. Leave it out, or use replicas (tor",
        ),
    ],
)
def test_settings_that_do_not_go_with_deepspeed_are_refused(
    tiny_llama_folder: Path, settings: MNTP | Supervised, message: str
) -> None:
    encoder = convert(tiny_llama_folder, dtype="float32", device="cpu")
    accelerator = SimpleNamespace(distributed_type=accelerate.DistributedType.DEEPSPEED)
    with (
        pytest.raises(ConfigError) as problem,
        loop._shared(encoder, settings, Place(0, 2, in_step=True), accelerator, torch.float32),
    ):
        pass
    assert message in str(problem.value)


def test_weights_of_two_formats_are_refused(tiny_llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Whole(convert(tiny_llama_folder, dtype="float32", device="cpu").model, None)
    zero._check_dtype(whole, torch.bfloat16)
    monkeypatch.setattr(whole.model, "_keep_in_fp32_modules_strict", {"layers.1.mlp"})
    zero._check_dtype(whole, torch.float32)
    with pytest.raises(ConfigError) as problem:
        zero._check_dtype(whole, torch.bfloat16)
    assert str(problem.value).startswith(
        'precision="bf16" under DeepSpeed: model.layers.1.mlp.gate_proj.weight computes in float32 alone, and weights '
        'of two formats were never tried here. Use precision="fp32", or do without: FSDP 2'
    )


@needs_deepspeed
@pytest.mark.gpu
@pytest.mark.parametrize("sharing", SHARING)
def test_two_gpus_equal_one_process(base: dict[str, Path], tmp_path: Path, sharing: str) -> None:
    """Stopped in the middle and resumed."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    alone = train({**base, **JOBS["full"]}).state_dict()
    job = {
        **base,
        **JOBS["full"],
        "device": "cuda",
        "out": tmp_path / "out.pt",
        "checkpoints": tmp_path,
        "resume": True,
    }
    stop = {"die": {"rank": 1, "step": 4, "how": "SIGTERM"}, "interrupted": True}
    done = launch(tmp_path, sharing, {**job, **stop}, job)
    assert done.returncode == 0, done.stderr
    assert "resumed after step 5" in done.stderr
    assert worst(alone, weights(job)) <= 1e-4


@needs_deepspeed
def test_where_deepspeed_is_installed_stdout_stays_for_data() -> None:
    look = "import bothways; from deepspeed.accelerator import get_accelerator; get_accelerator()"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", look], capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
