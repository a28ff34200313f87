"""The folder: a stock sentence-transformers model plus bothways.json. All about its files, nothing about tensors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedConfig

from bothways import provenance
from bothways.card import model_card
from bothways.engines import BOTH_KEYS
from bothways.errors import DataError
from bothways.pooling import Pooling
from bothways.provenance import EncoderSettings, Record

STOCK_POOLING: dict[Pooling, str] = {
    "mean": "pooling_mode_mean_tokens",
    "weighted_mean": "pooling_mode_weightedmean_tokens",
    "last": "pooling_mode_lasttoken",
    "cls": "pooling_mode_cls_token",
}
STOCK_POOLING_NAMES: dict[str, Pooling] = {
    "mean": "mean",
    "weightedmean": "weighted_mean",
    "lasttoken": "last",
    "cls": "cls",
}
ALL_STOCK_POOLINGS = (*STOCK_POOLING.values(), "pooling_mode_max_tokens", "pooling_mode_mean_sqrt_len_tokens")
TWO_WAY = "two_way_module.TwoWayTransformer"
"""The first module, in modules.json, of what no key makes see both ways."""
TWO_WAY_FILE = Path(__file__).parent / "two_way_module.py"
ADAPTER = "adapter"
"""Where in an encoder's folder its adapter is."""
EXPORTED = {"onnx": "model.onnx", "openvino": "openvino_model.xml"}
"""Backend -> the file that it computes."""


@dataclass(frozen=True)
class Adapter:
    """The unmerged LoRA adapter of the last stage, in peft's format, for continuing elsewhere."""

    config: Any
    """A PeftConfig. Not imported for its name alone: peft takes seconds, twice as many where bitsandbytes is there."""
    tensors: Mapping[str, Tensor]

    def write(self, folder: Path) -> None:
        folder.mkdir()
        self.config.save_pretrained(str(folder))
        save_file(
            {name: tensor.contiguous() for name, tensor in self.tensors.items()}, folder / "adapter_model.safetensors"
        )

    @classmethod
    def read(cls, folder: Path) -> Adapter:
        """What `write` wrote."""
        from peft import PeftConfig

        return cls(PeftConfig.from_pretrained(str(folder)), load_file(folder / "adapter_model.safetensors"))


def write_stock_files(
    folder: Path,
    settings: EncoderSettings,
    record: Record,
    *,
    dim: int,
    attn_implementation: str | None = None,
    two_way: bool = False,
) -> None:
    """All files of the folder but weights, config and tokenizer. `attn_implementation` is set for stock loaders too.

    `two_way`: the first module is not stock code, but `two_way_module`, which comes with the folder.
    """
    parts = ["Transformer", "Pooling"] + (["Normalize"] if settings.normalize else [])
    modules = [
        {
            "idx": number,
            "name": str(number),
            "path": "" if number == 0 else f"{number}_{part}",
            "type": f"sentence_transformers.models.{part}",
        }
        for number, part in enumerate(parts)
    ]
    if two_way:
        modules[0]["type"] = TWO_WAY
        shutil.copy(TWO_WAY_FILE, folder)
    _json(folder / "modules.json", modules)
    for module in modules[1:]:
        (folder / str(module["path"])).mkdir()
    pooling: dict[str, Any] = {"word_embedding_dimension": dim}
    pooling |= {key: key == STOCK_POOLING[settings.pooling] for key in ALL_STOCK_POOLINGS}
    pooling["include_prompt"] = settings.pool_over == "all"
    _json(folder / "1_Pooling" / "config.json", pooling)
    transformer: dict[str, Any] = {"max_seq_length": settings.max_length, "do_lower_case": False}
    if attn_implementation is not None:
        transformer["model_args"] = {"attn_implementation": attn_implementation}
    _json(folder / "sentence_bert_config.json", transformer)
    stock = {
        "model_type": "SentenceTransformer",
        "prompts": dict(settings.prompts),
        "default_prompt_name": None,
        "similarity_fn_name": "cosine",
    }
    _json(folder / "config_sentence_transformers.json", stock)
    provenance.write(folder, settings, record)
    card = model_card(
        settings,
        record,
        dim=dim,
        family=str(_read_json(folder / "config.json").get("model_type")),
        attn_implementation=attn_implementation,
        two_way=two_way,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def write_engine_keys(folder: Path, settings: EncoderSettings) -> None:
    """Add to config.json the key that serving engines read, where transformers itself ignores it."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    if settings.direction == "bidirectional" and config.get("model_type") in BOTH_KEYS:
        config["use_bidirectional_attention"] = True
        _json(path, config)


@dataclass(frozen=True)
class StockFolder:
    """What a sentence-transformers folder without bothways.json says about its encoder."""

    settings: EncoderSettings
    transformer: Path
    model_kwargs: dict[str, Any]
    two_way: bool = False
    """Whether the first module is ours, see `TWO_WAY`."""
    says_length: bool = True
    """Whether it has a `max_seq_length`; else model and tokenizer set the limit, as in what version 6 saves."""


def transformer_of(folder: Path) -> Path:
    """Where in a sentence-transformers folder the files of its first module are."""
    return folder / str(_read_json(folder / "modules.json")[0]["path"])


def read_stock_folder(folder: Path) -> StockFolder:
    """Read a folder of Transformer + Pooling (+ Normalize). Raises DataError naming what it cannot represent."""
    modules = _read_json(folder / "modules.json")
    two_way = bool(modules) and modules[0]["type"] == TWO_WAY
    kinds = [str(module["type"]).rsplit(".", 1)[-1] for module in modules]
    if two_way:
        kinds[0] = "Transformer"
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise DataError(
            f"{folder / 'modules.json'}: modules {' + '.join(kinds)}; expected Transformer + Pooling (+ Normalize). "
            "Load it with sentence-transformers."
        )
    transformer = folder / modules[0]["path"]
    pooling_file = folder / modules[1]["path"] / "config.json"
    pooling = _read_json(pooling_file)
    if "pooling_mode" in pooling:
        mode = pooling["pooling_mode"]
        modes = [mode] if isinstance(mode, str) else list(mode)
        found = [STOCK_POOLING_NAMES.get(name) for name in modes]
    else:
        names = [key for key in ALL_STOCK_POOLINGS if pooling.get(key)]
        legacy = {stock: own for own, stock in STOCK_POOLING.items()}
        modes, found = names, [legacy.get(name) for name in names]
    if len(found) != 1 or found[0] is None:
        raise DataError(f"{pooling_file}: pooling {modes}; expected one of {', '.join(STOCK_POOLING_NAMES)}.")
    options = _read_json(transformer / "sentence_bert_config.json", default={})
    if options.get("do_lower_case"):
        raise DataError(f"{transformer / 'sentence_bert_config.json'}: do_lower_case is not supported here.")
    stock = _read_json(folder / "config_sentence_transformers.json", default={})
    prompts = {name: text for name, text in (stock.get("prompts") or {}).items() if text}
    settings = EncoderSettings(
        pooling=found[0],
        pool_over="all" if pooling.get("include_prompt", True) else "text",
        normalize=len(kinds) == 3,
        max_length=_max_length(transformer, options),
        prompts=prompts,
    )
    arguments = dict(options.get("model_args") or options.get("model_kwargs") or {})
    return StockFolder(settings, transformer, arguments, two_way, bool(options.get("max_seq_length")))


def brings_our_module(folder: Path) -> bool:
    """Whether the code that a folder brings is `two_way_module` to the byte, and so may be run without asking."""
    modules, file = folder / "modules.json", folder / TWO_WAY_FILE.name
    if not modules.exists() or not file.exists():
        return False
    ours = _read_json(modules)[0]["type"] == TWO_WAY
    return ours and file.read_bytes() == TWO_WAY_FILE.read_bytes()


def _max_length(transformer: Path, options: Mapping[str, Any]) -> int:
    """As sentence-transformers reads it: what it saves again says it in the tokenizer's files alone."""
    if options.get("max_seq_length"):
        return int(options["max_seq_length"])
    limits = [
        _read_json(transformer / "tokenizer_config.json", default={}).get("model_max_length"),
        _read_json(transformer / "config.json", default={}).get("max_position_embeddings"),
    ]
    # A tokenizer without a limit says so by an astronomical number.
    return min((int(limit) for limit in limits if limit and 0 < limit < 10**9), default=512)


def length_limit(config: PreTrainedConfig, tokenizer_limit: int) -> int:
    """The longest text, in tokens, that model and tokenizer both allow."""
    text = config.get_text_config()
    limits = [getattr(text, name, None) for name in ("max_position_embeddings", "n_positions", "max_seq_len")]
    found = [limit for limit in [*limits, tokenizer_limit] if isinstance(limit, int) and 0 < limit < 10**9]
    return min(found, default=10**9)


def _json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _read_json(path: Path, default: Any = None) -> Any:
    if not path.exists():
        if default is not None:
            return default
        raise DataError(f"{path} is missing: this is not a sentence-transformers folder.")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise DataError(f"{path} line {error.lineno}: {error.msg}.") from error
