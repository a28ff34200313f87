"""What of a launch configuration for DeepSpeed a run does as it says; all else in it is refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import torch

from bothways.errors import ConfigError

PASSED_ON = frozenset(
    {
        "stage",
        "offload_optimizer",
        "offload_param",
        "contiguous_gradients",
        "overlap_comm",
        "reduce_scatter",
        "reduce_bucket_size",
        "allgather_partitions",
        "allgather_bucket_size",
        "sub_group_size",
        "stage3_max_live_parameters",
        "stage3_max_reuse_distance",
        "stage3_prefetch_bucket_size",
        "stage3_param_persistence_threshold",
    }
)
"""Keys of `zero_optimization` that say where weights are and how they travel, and change no result."""
OFFLOADED = frozenset({"device", "pin_memory"})
WITHOUT_EFFECT = frozenset(
    {
        # What DeepSpeed prints, and how it saves, which it is never asked to do.
        "steps_per_print",
        "wall_clock_breakdown",
        "zero_optimization.stage3_gather_16bit_weights_on_model_save",
        # Said for torch's AdamW, with which every stage trains.
        "zero_allow_untested_optimizer",
        "zero_force_ds_cpu_optimizer",
    }
)
INSTEAD = {
    "gradient_clipping": "Leave it out, and set the stage's max_grad_norm.",
    "gradient_accumulation_steps": "Leave it out: the stage's batch_size is of one step, and tokens_per_batch cuts it.",
    "train_batch_size": "Leave it out, and set the stage's batch_size.",
    "train_micro_batch_size_per_gpu": "Leave it out, and set the stage's tokens_per_batch.",
    "fp16": 'Leave it out, and set the stage\'s precision: "bf16" or "fp32", which need no scaled loss.',
    "bf16": 'Leave it out, and set the stage\'s precision="bf16".',
    "optimizer": "Leave it out: a stage trains with AdamW; set its learning_rate and weight_decay.",
    "scheduler": "Leave it out, and set the stage's schedule and warm_up.",
    "zero_optimization.overlap_comm": "DeepSpeed overlaps where it does not count steps with ZeRO 2 and 3 alone.",
    "zero_optimization.offload_optimizer.device": 'Use "cpu", or none.',
    "zero_optimization.offload_param.device": 'Use "cpu", or none.',
}
FSDP = "FSDP 2 shares weights as ZeRO 3 does: distributed_type: FSDP and, in its fsdp_config, fsdp_version: 2"


def require_deepspeed() -> None:
    """Raises ConfigError where the launch configuration asks for DeepSpeed and it is not installed."""
    if find_spec("deepspeed") is None:
        raise ConfigError(
            "the launch configuration asks for DeepSpeed, which is not installed. pip install 'bothways[deepspeed]', "
            f"or do without: {FSDP}."
        )


def sharing_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """DeepSpeed's own `zero_optimization` out of its configuration, without what is left to it ("auto").

    Raises ConfigError for anything in the configuration that the run would not do.
    """
    given = dict(config.get("zero_optimization") or {})
    stage = given.get("stage")
    if stage not in (1, 2, 3):
        raise ConfigError(
            f"the launch configuration asks for DeepSpeed with ZeRO {stage}, where weights are not shared. Use "
            "zero_stage: 1, 2 or 3, or replicas (torchrun, or accelerate launch with distributed_type: MULTI_GPU)."
        )
    for name, value in config.items():
        if name != "zero_optimization" and not (name == "gradient_accumulation_steps" and value == 1):
            _refuse(name, value)
    found: dict[str, Any] = {}
    for name, value in given.items():
        if name not in PASSED_ON or (name == "overlap_comm" and stage == 1):
            _refuse(f"zero_optimization.{name}", value)
        elif isinstance(value, Mapping):
            if _said(value.get("device")):
                found[name] = _offloaded(f"zero_optimization.{name}", value)
        elif value not in (None, "auto"):
            found[name] = value
    return found


def engine_config(config: Mapping[str, Any], longest: float, dtype: torch.dtype) -> dict[str, Any]:
    """What `deepspeed.initialize` is given. `longest`: to which the gradient is clipped; 0: never."""
    found: dict[str, Any] = {
        # It wants to know, but with this each step is one of ours, whatever went before it.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": longest,
        "zero_optimization": sharing_of(config),
        "zero_allow_untested_optimizer": True,
        # DeepSpeed's own AdamW for offloaded weights is compiled where it runs, and is not the one that is tested.
        "zero_force_ds_cpu_optimizer": False,
    }
    if dtype == torch.bfloat16:
        found["bf16"] = {"enabled": True}
        found["data_types"] = {"grad_accum_dtype": "fp32"}
        found["communication_data_type"] = "fp32"
    return found


def _offloaded(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    for key, value in given.items():
        if key not in OFFLOADED or (key == "device" and value != "cpu"):
            _refuse(f"{name}.{key}", value)
    return {key: value for key, value in given.items() if key in OFFLOADED and value not in (None, "auto")}


def _refuse(name: str, value: Any) -> None:
    """Raises ConfigError for a key that says something, unless that is without effect."""
    if name in WITHOUT_EFFECT or not _said(value):
        return
    way_out = INSTEAD.get(name, "It was never tried here. Leave it out.")
    raise ConfigError(
        f"the launch configuration gives DeepSpeed {name} = {value!r}, which a run would not follow. {way_out}"
    )


def _said(value: Any) -> bool:
    if isinstance(value, Mapping) and "enabled" in value:
        value = value["enabled"]
    return bool(value) and value not in ("auto", "none")
