"""Names and folders -> model, head and tokenizer in memory, with nothing missing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from bothways import hardware
from bothways.errors import ConversionError, DataError
from bothways.head import Head, head_of

EMBEDDED = Path(__file__).parent / "embedded"
"""The small decoder that comes with the package; its name is "embedded"."""
Names = str | Path | Sequence[str | Path]
"""One folder or hub id, or several."""


@dataclass(frozen=True)
class Wish:
    """How a model is to be loaded. None: the checkpoint's own dtype, the best device, transformers' kernel."""

    dtype: str | torch.dtype | None = None
    device: str | torch.device | None = None
    attn_implementation: str | None = None
    trust_remote_code: bool = False
    revision: str | None = None
    model_kwargs: Mapping[str, Any] | None = None
    adapters: tuple[str, ...] = ()
    """What is merged into the model, in order; see `stack`."""
    base: str | Path | None = None
    """What the first adapter was trained on, instead of what it says itself."""
    without_mntp: bool = False

    def arguments(self) -> tuple[torch.device, dict[str, Any]]:
        """Device, and the keyword arguments of transformers' from_pretrained."""
        device = hardware.choose_device(self.device).value
        dtype = "auto" if self.dtype is None else hardware.choose_dtype(self.dtype, device).value
        arguments: dict[str, Any] = {"dtype": dtype, "trust_remote_code": self.trust_remote_code}
        if self.attn_implementation not in (None, "auto"):
            arguments["attn_implementation"] = self.attn_implementation
        return device, arguments | dict(self.model_kwargs or {})


def names_of(names: Names) -> tuple[str, ...]:
    """One name or several, as a tuple."""
    return (str(names),) if isinstance(names, (str, Path)) else tuple(map(str, names))


def resolve(
    name: str | Path, revision: str | None = None, *, only: list[str] | None = None, exported: bool = False
) -> Path:
    """The local folder of a name: itself, the embedded decoder, or a snapshot from the hub (`only` these files).

    Of a snapshot `exported` leaves out torch's weights, and else those of all other engines are left out.
    Raises DataError if it is no folder and the hub does not have it, or cannot be reached.
    """
    folder = EMBEDDED if str(name) == "embedded" else Path(name)
    if folder.is_dir():
        return folder
    if folder.exists() or str(name).startswith((".", "/", "~")) or str(name).count("/") > 1:
        raise DataError(
            f"{name} is not a folder. Pass a folder with a config.json, or a hub id such as Qwen/Qwen3-0.6B."
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    others = ["*.bin", "*.pth", "*.gguf", "*.onnx", "original/*", "onnx/*", "openvino/*"]
    ignored = None if only else ["*.safetensors", "*.pth", "*.gguf"] if exported else others
    try:
        return Path(snapshot_download(str(name), revision=revision, allow_patterns=only, ignore_patterns=ignored))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            f'"{name}" is no folder here, and the hub gave none: {reason} '
            "Pass a folder, or download the model where there is a network."
        ) from error


def load_config(folder: Path, *, trust_remote_code: bool) -> PreTrainedConfig:
    """The config of a folder. Raises DataError if there is none that transformers knows."""
    if not (folder / "config.json").exists():
        adapter = (folder / "adapter_config.json").exists()
        hint = "It holds an adapter alone: merge it into its base first." if adapter else "Pass the folder of a model."
        raise DataError(f"{folder} has no config.json. {hint}")
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (ValueError, KeyError) as error:
        raise DataError(f"{folder / 'config.json'}: {str(error).strip().splitlines()[0]}") from error
    return config


def load_tokenizer(folder: Path, *, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder. Raises DataError if it cannot be read."""
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (ValueError, OSError, KeyError) as error:
        raise DataError(f"{folder}: no tokenizer could be read ({str(error).strip().splitlines()[0]})") from error
    return tokenizer


def load_decoder(
    folder: Path, config: PreTrainedConfig, wish: Wish, *, with_head: bool
) -> tuple[PreTrainedModel, Head | None]:
    """Trunk and head of a causal language model, in evaluation mode, on its device.

    An encoder that transformers also offers as a decoder comes without its head where that is more than a matrix.
    Raises ConversionError for what is no decoder, DataError if weights are missing.
    """
    device, arguments = wish.arguments()
    if config.is_encoder_decoder:
        raise ConversionError(
            f"{config.model_type} is an encoder-decoder, whose encoder sees both ways. Pass a decoder-only model."
        )
    remote = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if not remote and config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ConversionError(
            f"{config.model_type} is not a causal language model that transformers knows. Pass a decoder-only model, "
            "or trust_remote_code=True for one that brings its own code."
        )
    if not with_head:
        return load_trunk(folder, config, wish), None
    model = _complete(AutoModelForCausalLM, folder, config, arguments, device)
    trunk: Any = model.base_model
    try:
        return trunk, head_of(model)
    except ConversionError:
        # What is an encoder unless told otherwise (BERT) computes its logits in ways of its own, and needs no MNTP.
        if getattr(config, "is_decoder", True):
            raise
        return trunk, None


def load_trunk(folder: Path, config: PreTrainedConfig, wish: Wish) -> PreTrainedModel:
    """The headless model of a folder, in evaluation mode, on its device. Raises DataError if weights are missing."""
    device, arguments = wish.arguments()
    return _complete(AutoModel, folder, config, arguments, device)


def _complete(
    factory: Any, folder: Path, config: PreTrainedConfig, arguments: dict[str, Any], device: torch.device
) -> PreTrainedModel:
    try:
        model, info = factory.from_pretrained(folder, config=config, output_loading_info=True, **arguments)
    except (ValueError, OSError) as error:
        raise DataError(f"{folder}: {str(error).strip().splitlines()[0]}") from error
    missing = sorted(key for key in info["missing_keys"] if "pooler" not in key)
    if missing:
        raise DataError(
            f"{folder}: {len(missing)} weights are not in the files, the first is {missing[0]}; transformers fills "
            "such gaps with random numbers. Pass a complete folder."
        )
    loaded: PreTrainedModel = model.to(device).eval()
    return loaded


def load_head(folder: Path, model: PreTrainedModel, facts: Mapping[str, Any]) -> Head | None:
    """The head that bothways.json describes: the input embedding if tied, else `lm_head.*` of the files, or None."""
    if not facts:
        return None
    scaling = {"scale": float(facts["scale"]), "softcap": facts["softcap"]}
    embedding: Any = model.get_input_embeddings()
    if facts["tied"]:
        return Head(embedding.weight, **scaling, tied=True)
    tensors = read_tensors(folder, ("lm_head.weight", "lm_head.bias"))
    if "lm_head.weight" not in tensors:
        return None

    def parameter(tensor: Tensor) -> nn.Parameter:
        return nn.Parameter(tensor.to(embedding.weight.device, embedding.weight.dtype))

    bias = parameter(tensors["lm_head.bias"]) if "lm_head.bias" in tensors else None
    return Head(parameter(tensors["lm_head.weight"]), bias, **scaling)


def read_tensors(folder: Path, names: Sequence[str]) -> dict[str, Tensor]:
    """Those of the named tensors that the safetensors files of a folder hold."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        where = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = {name: folder / where[name] for name in names if name in where}
    else:
        files = dict.fromkeys(names, folder / "model.safetensors")
    found = {}
    for name, path in files.items():
        if path.exists():
            with safe_open(path, framework="pt") as tensors:
                if name in set(tensors.keys()):
                    found[name] = tensors.get_tensor(name)
    return found


def weight_files(folder: Path) -> list[Path]:
    """The files that decide what a model computes."""
    return [folder / "config.json", *folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")]
