"""Other engines, each asked for vectors as its users ask it; one file each, imported when it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from bothways.errors import DataError, did_you_mean

if TYPE_CHECKING:
    from bothways.export.verify import Engine

ENGINES = {
    "sentence-transformers": "stock:StockEngine",
    "onnx": "onnx:OnnxEngine",
    "openvino": "openvino:OpenVinoEngine",
    "gguf": "gguf:GgufEngine",
    "vllm": "vllm:VllmEngine",
    "http": "http:HttpEngine",
}
"""Kind of target -> the module here and its class, which is made from the target: a path, or for "http" a URL."""
SUFFIXES = {".onnx": "onnx", ".xml": "openvino", ".gguf": "gguf"}
"""What the name of a file ends with -> its kind."""


def open_engine(target: str, *, options: Mapping[str, object] | None = None) -> Engine:
    """The engine that serves a target, see `kind_of`; `options` are further arguments of its class.

    Raises DataError for a target that is of no kind, or of one that is not known here.
    """
    kind, place = kind_of(target)
    module, name = ENGINES[kind].split(":")
    if find_spec(f"{__name__}.{module}") is None:
        present = [known for known, home in ENGINES.items() if find_spec(f"{__name__}.{home.split(':')[0]}")]
        raise DataError(f'{target}: no engine of the kind "{kind}" is known. {did_you_mean(kind, present)}')
    engine: Engine = getattr(import_module(f"{__name__}.{module}"), name)(place, **(options or {}))
    return engine


def kind_of(target: str) -> tuple[str, str]:
    """Kind and place of a target: a URL, KIND:PLACE, a file, or a folder that holds one.

    Raises DataError if it is none of them.
    """
    if target.startswith(("http://", "https://")):
        return "http", target
    kind, colon, place = target.partition(":")
    if colon and kind in ENGINES:
        return kind, place
    path = Path(target)
    if path.is_file() and path.suffix in SUFFIXES:
        return SUFFIXES[path.suffix], target
    if path.is_dir():
        if (path / "modules.json").exists():
            return "sentence-transformers", target
        files = sorted(found for found in path.iterdir() if found.suffix in SUFFIXES)
        if len(files) == 1:
            return SUFFIXES[files[0].suffix], str(files[0])
        held = f"holds {len(files)} of them" if files else "holds none of them"
        raise DataError(
            f"{target}: neither a sentence-transformers folder (modules.json) nor a folder with one file that ends "
            f"with {', '.join(SUFFIXES)}: it {held}. Name the file."
        )
    raise DataError(
        f"{target}: expected a sentence-transformers folder, a file that ends with {', '.join(SUFFIXES)}, a URL of an "
        f"embedding endpoint, or KIND:PLACE with a kind of {', '.join(ENGINES)}."
    )
