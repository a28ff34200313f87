"""README.md of an encoder's folder: what it is, how it was made, how good it is, and how each engine loads it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from bothways.engines import LLAMA_CPP, NATIVE_FAMILIES, ONNX_RUNTIME, TEI, VLLM, Engine
from bothways.provenance import EncoderSettings, Record

COMMIT = re.compile(r"[0-9a-f]{40}")
HUB = "hub:"
LICENSE_KEYS = ("license", "license_name", "license_link")
CITATION = """\
@article{behnamghader2024llm2vec,
  title  = {{LLM2Vec}: Large Language Models Are Secretly Powerful Text Encoders},
  author = {BehnamGhader, Parishad and Adlakha, Vaibhav and Mosbach, Marius and Bahdanau, Dzmitry and Chapados, Nicolas
            and Reddy, Siva},
  journal = {arXiv preprint arXiv:2404.05961},
  year   = {2024}
}"""
COMMANDS: tuple[tuple[Engine, str], ...] = (
    (VLLM, "bothways export FOLDER --to vllm --out vllm-folder"),
    (TEI, "bothways export FOLDER --to tei --out tei-folder"),
    (LLAMA_CPP, "bothways export FOLDER --to gguf --out encoder.gguf"),
    (ONNX_RUNTIME, "bothways export FOLDER --to onnx --out onnx-folder"),
)


def model_card(
    settings: EncoderSettings,
    record: Record,
    *,
    dim: int,
    family: str,
    attn_implementation: str | None = None,
    two_way: bool = False,
) -> str:
    """The whole card. `family` is the config's model_type; `attn_implementation` and `two_way` are as in the folder."""
    notes = [f"> **Note.** {note}\n" for note in record.notes]
    if attn_implementation is not None:
        notes.append(
            f"> **Note.** This family needs `attn_implementation={attn_implementation}`, which "
            "`sentence_bert_config.json` says; sentence-transformers drops that line when it saves the folder again.\n"
        )
    parts = [
        f"---\n{_front_matter(record)}\n---",
        f"# A {settings.direction} text encoder made from `{record.base}`",
        _what_it_is(settings, dim),
        *notes,
        "## How to load it",
        _loading(settings, family, two_way=two_way),
        "## How it was made",
        *(_stage(number, stage) for number, stage in enumerate(record.stages)),
        _scores(record.stages),
        "## Certificate",
        _certificate(record),
        "## Citation",
        f"The method is LLM2Vec (arXiv 2404.05961).\n\n```bibtex\n{CITATION}\n```",
    ]
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def license_of(folder: Path) -> dict[str, str]:
    """What the card in a folder says of the licence, in the hub's own keys; nothing if there is no card, or no word."""
    path = folder / "README.md"
    if not path.exists():
        return {}
    try:
        data = ModelCard.load(path, ignore_metadata_errors=True).data.to_dict()
    except ValueError:  # no metadata, or none that can be read
        return {}
    return {key: data[key] for key in LICENSE_KEYS if isinstance(data.get(key), str)}


def _front_matter(record: Record) -> str:
    convert: Mapping[str, Any] = next((stage for stage in record.stages if stage["stage"] == "convert"), {})
    sources = [source["name"] for stage in record.stages for source in stage.get("data", {}).get("sources", ())]
    datasets = [source.removeprefix(HUB).partition("?")[0] for source in sources if source.startswith(HUB)]
    # A base that came from the hub is known by its commit; any other is a folder of somebody's.
    from_hub = COMMIT.fullmatch(str(convert.get("base_fingerprint")))
    data = ModelCardData(
        base_model=record.base if from_hub else None,
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        tags=["bothways", "sentence-transformers", "feature-extraction", "llm2vec"],
        datasets=list(dict.fromkeys(datasets)) or None,
        **convert.get("base_license", {}),
    )
    return data.to_yaml().strip()


def _what_it_is(settings: EncoderSettings, dim: int) -> str:
    span = "all tokens" if settings.pool_over == "all" else "the text's own tokens"
    length = "unit length" if settings.normalize else "not normalised"
    prompts = "".join(f"\n- prompt `{name}`: `{text!r}`" for name, text in settings.prompts.items())
    return (
        f"{dim} dimensions, {settings.pooling} pooling over {span}, {length}, at most {settings.max_length} tokens."
        + (f"\n{prompts}" if prompts else "")
    )


def _loading(settings: EncoderSettings, family: str, *, two_way: bool) -> str:
    trust = ", trust_remote_code=True" if two_way else ""
    needs = ", where bothways is installed too" if two_way else ", without any code of bothways"
    calls = ["encode_query", "encode_document"] if settings.prompts else ["encode"]
    lines = "\n".join(f'vectors = model.{call}(["a text", "another"])' for call in calls)
    prompted = "The stored prompts go in front by `encode_query` and `encode_document`.\n\n" if settings.prompts else ""
    return (
        f"{prompted}With sentence-transformers 6.2 or newer{needs}:\n\n```python\n"
        "from sentence_transformers import SentenceTransformer\n\n"
        f'model = SentenceTransformer("FOLDER"{trust})\n{lines}\n```\n\n'
        "With bothways, which measures the certificate again:\n\n```python\nfrom bothways import Encoder\n\n"
        f'model = Encoder.from_pretrained("FOLDER")\n{lines}\n```\n\n{_engines(settings, family, two_way=two_way)}'
    )


def _engines(settings: EncoderSettings, family: str, *, two_way: bool) -> str:
    native = family in NATIVE_FAMILIES and settings.windows == "native"
    rows = []
    for engine, command in COMMANDS:
        key = engine.serves(family, native=native, pooling=settings.pooling, pool_over=settings.pool_over)
        if key is None or two_way or settings.direction == "causal":
            continue
        beside = ", with bothways installed beside the engine" if family in engine.plugin else ""
        how = f"measured with {engine.version}" if engine.how == "run" else f"by the source of {engine.version}"
        rows.append(f"| {engine.name} | `{command}`{beside} | {how} |")
    others = (
        "Other engines may serve this encoder as a causal model without a word. "
        "`bothways verify TARGET --against FOLDER` says what one returns."
    )
    if not rows:
        return others
    return "\n".join(["| engine | command | known |", "| --- | --- | --- |", *rows]) + f"\n\n{others}"


def _stage(number: int, stage: Mapping[str, Any]) -> str:
    lines = [f"### {number}. {stage['stage']}"]
    settings = stage.get("settings", {})
    if settings:
        lines.append(", ".join(f"`{name}={_value(value)}`" for name, value in settings.items()))
    data = stage.get("data", {})
    if data:
        names = ", ".join(f"`{source['name']}` ({source['rows']:,} rows)" for source in data.get("sources", ()))
        lines.append(
            f"Data: {names or 'texts in memory'}; {data['items']:,} items, fingerprint `{data['fingerprint'][:16]}`."
        )
    if "loss" in stage:
        lines.append(f"Training loss at the end: {stage['loss']:.4g}.")
    return "\n\n".join(lines)


def _value(value: Any) -> str:
    """As it stands between backticks on one line."""
    return str(value).replace("`", "'").replace("\n", "\\n")


def _scores(stages: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        f"| {number} {stage['stage']} | {task} | {measure} | {float(value):.4f} |"
        for number, stage in enumerate(stages)
        for task, measures in stage.get("scores", {}).items()
        for measure, value in measures.items()
        if isinstance(value, int | float)
    ]
    if not rows:
        return ""
    return "\n".join(["## Scores", "", "| after stage | task | measure | score |", "| --- | --- | --- | ---: |", *rows])


def _certificate(record: Record) -> str:
    proof = record.certificate.summary() if record.certificate else "None was measured"
    return f"{proof}. What was measured of every sub-module, and all else that is known, is in `bothways.json`."
