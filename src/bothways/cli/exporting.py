"""`bothways export` writes an encoder for another engine, `bothways verify` asks an engine what it makes of one."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import OmitArgPrefixes, Positional

from bothways.cli.options import misused, quiet, say
from bothways.errors import DataError, did_you_mean
from bothways.export.http_settings import Http

if TYPE_CHECKING:
    from bothways.export.verdict import Verdict


def export(
    folder: Positional[Path],
    to: str,
    out: Path,
    number_format: str | None = None,
    tolerance: float | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
) -> None:
    """Write an encoder for another engine, and check that engine's vectors.

    Args:
        folder: Folder of an encoder.
        to: The engine it is for.
        out: File or folder to write; must not exist yet.
        number_format: What the target has beside its default, as q8_0 or int8.
        tolerance: Largest difference of a number between unit vectors that is right; None: by the number format.
        device: Where to compute; None: the first accelerator that works.
        trust_remote_code: Run code that the model brings along.
    """
    from bothways.export import TARGETS
    from bothways.export import export as write
    from bothways.export.serving import SERVERS, next_steps

    if to not in TARGETS:
        misused(f"export: --to {to} is not known. {did_you_mean(to, TARGETS)}")
    quiet()
    verdict = write(
        folder,
        to,
        out,
        number_format=number_format,
        tolerance=tolerance,
        device=device,
        trust_remote_code=trust_remote_code,
    )
    say(verdict.sentence())
    say(f"export: written to {out}")
    if to in SERVERS:
        print(next_steps(to, folder, out))


def verify(
    target: Positional[str],
    http: OmitArgPrefixes[Http],
    against: str | None = None,
    texts: Path | None = None,
    prompt_name: str | None = None,
    number_format: str | None = None,
    tolerance: float | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
    json: bool = False,
) -> None:
    """Say whether an engine's vectors are an encoder's, or silently causal ones. Exit code 0: they are its vectors.

    Args:
        target: A sentence-transformers folder, a file that `bothways export` wrote, the URL of an endpoint that ends
            with /v1/embeddings or /embed, or KIND:PLACE, as vllm:FOLDER.
        http: How an endpoint is asked.
        against: Folder of the encoder; None: the target itself, or what it was exported from.
        texts: File of texts to compare, one a line, instead of the built-in ones.
        prompt_name: The stored prompt that the engine itself puts before every text.
        number_format: What the engine computes in (float32, float16, bfloat16, q8_0, int8); None: what it says.
        tolerance: Largest difference of a number between unit vectors that is right; None: by the number format.
        device: Where to compute; None: the first accelerator that works.
        trust_remote_code: Run code that the model brings along.
        json: Print everything as JSON.
    """
    from bothways.export import made_of
    from bothways.export.engines import kind_of, open_engine

    kind, place = kind_of(target)
    options: dict[str, object] = {}
    if kind == "sentence-transformers":
        options = {"device": device, "trust_remote_code": trust_remote_code}
    if kind == "http":
        options = {"settings": http}
    elif http != Http():
        misused(f"verify: {target} is no server. Leave out --model, --api-key-env, --timeout and --encoding-format.")
    folder = against or (made_of(place) if kind != "http" else None)
    if folder is None:
        misused(f"verify: nothing says which encoder {target} is to be compared with. Pass --against FOLDER.")
    lines = None if texts is None else _lines(texts)
    # Here and not above, so that wrong usage answers at once: torch takes seconds to import.
    from bothways.export.verify import verify as compare

    quiet()
    engine = open_engine(target, options=options)
    try:
        verdict = compare(
            engine,
            folder,
            texts=lines,
            tolerance=tolerance,
            number_format=number_format,
            prompt=prompt_name,
            device=device,
            trust_remote_code=trust_remote_code,
        )
    finally:
        engine.close()
    if json:
        print(json_module.dumps(verdict.as_json(), indent=2, ensure_ascii=False))
    else:
        _tell(verdict)
    if not verdict.right:
        raise SystemExit(1)


def _tell(verdict: Verdict) -> None:
    """A row for each case, and the sentence."""
    from bothways.cli import tables
    from bothways.evaluation.tables import Row

    rows: list[Row] = [
        {
            "case": case.name,
            "texts": case.texts,
            "cosine, bidirectional": f"{case.bidirectional.cosine:.6f}",
            "difference ": f"{case.bidirectional.difference:.1e}",
            "cosine, causal": f"{case.causal.cosine:.6f}",
            "difference": f"{case.causal.difference:.1e}",
            "matches": case.matches,
        }
        for case in verdict.cases
    ]
    tables.show("Worst of each case", rows)
    for note in verdict.notes:
        say(f"note: {note}")
    print(verdict.sentence())


def _lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--texts {path}: {error}. Pass a UTF-8 file with one text a line.") from error
