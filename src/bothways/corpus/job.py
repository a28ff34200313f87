"""What is to be encoded, how and where to: kept in the folder, so that a job that was interrupted goes on."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa

from bothways import folders
from bothways.corpus import inputs as room
from bothways.corpus.columns import KINDS, Kept, kept_columns
from bothways.corpus.fingerprint import encoder_fingerprint
from bothways.corpus.inputs import InputFile, Losses, Rejected, Unit
from bothways.corpus.layout import Manifest
from bothways.data import OnBadRow, Source
from bothways.data.formats import check_column
from bothways.data.hub import HubData
from bothways.data.rows import TEXT
from bothways.encoding import Asked, Overflow
from bothways.errors import ConfigError, DataError
from bothways.precision import Precision

JOB, UNITS, LOCK = "job.json", "units.jsonl", ".lock"
VERSION = 1
MAX_ROW_BYTES = 16 << 20
PIECES = 16
"""In so many a part is planned, until it is known how many there are ..."""
PARTS_OF_A_WORKER = 4
"""... so that a small corpus has as many parts for each worker, the last of which ends soon after the others."""
MAY_CHANGE = ("on_bad_row", "max_row_bytes")
"""Settings that decide about bad rows alone: until one was left out, what is done does not depend on them."""
CHANGES_NOTHING = ("tokens_per_batch",)
"""Settings that a run may have otherwise than the one before."""


@dataclass(frozen=True, kw_only=True)
class Encode:
    """How a corpus is encoded."""

    text_column: str = TEXT
    """The column, or JSON field, of the text; a source may name its own: `docs.csv?column=body`."""
    id_column: str | None = None
    """The column that names a row. None: "_id" or "id"; a row with neither is FILE:NUMBER, as errors name it."""
    keep: tuple[str, ...] = ()
    """Other columns to write beside the vectors, as NAME or NAME:TYPE (string, int, float, bool)."""
    texts: bool = True
    """Write the texts too."""
    on_bad_row: OnBadRow = "raise"
    """raise: stop at a row that cannot be used; skip: count it, list it, go on."""
    max_row_bytes: int = MAX_ROW_BYTES
    """A longer line, or text, is a bad row."""
    rows_per_part: int | None = None
    """Rows that become one file, which is what an interruption costs; None: at most 8,192 on CPU,
    65,536 on a GPU, less in a small corpus."""
    instruction: str | None = None
    """Put before every text by the encoder's template; None: the prompt it has stored for documents."""
    precision: Precision = "float32"
    """Numbers of the vectors: float32, float16, int8, uint8, binary or ubinary."""
    truncate_dim: int | None = None
    """Only so many of the first numbers of a vector."""
    overflow: Overflow = "truncate"
    """What is done with a text of more tokens than the encoder reads: cut it (truncate), compute it in pieces (chunk),
    or stop there (error)."""
    tokens_per_batch: int | None = None
    """Tokens that go through the model at once; None: what is fast on the device. Changes speed and memory alone."""

    def __post_init__(self) -> None:
        for name in ("max_row_bytes", "rows_per_part", "truncate_dim"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"Encode({name}={value}): expected 1 or more.")
        if self.on_bad_row not in get_args(OnBadRow):
            raise ConfigError(f'Encode(on_bad_row="{self.on_bad_row}"): use "raise" or "skip".')
        # What it asks of the encoder, checked where that is known.
        Asked(call="Encode", precision=self.precision, overflow=self.overflow, tokens_per_batch=self.tokens_per_batch)
        kept_columns(self.keep)


@dataclass(frozen=True)
class Job:
    """All that a worker needs, and by which one job is told from another."""

    out: Path
    encoder: str
    fingerprint: str
    """SHA-256 of the encoder's files."""
    opening: dict[str, Any]
    """How it is opened, but for the device: arguments of `Encoder.from_pretrained`."""
    settings: Encode
    files: tuple[InputFile, ...]
    types: dict[Kept, pa.DataType]
    lost: tuple[Rejected, ...] = ()
    """What damaged files lost."""

    @property
    def rows(self) -> int:
        """Rows of all files, good and bad."""
        return sum(file.rows for file in self.files)

    def part(self, unit: Unit) -> Path:
        """The file that a unit becomes."""
        return self.out / f"part-{unit.number:05d}.parquet"

    def rejected(self, unit: Unit) -> Path:
        """The file of its rows that could not be used; there is none if all could."""
        return self.out / f"rejected-{unit.number:05d}.jsonl"

    def is_done(self, unit: Unit) -> bool:
        """Whether its part is there: it appears whole, after the list of its bad rows."""
        return self.part(unit).exists()

    def named(self, unit: Unit) -> str:
        """A unit in words."""
        return f"unit {unit.number} ({self.files[unit.file].name}, rows {unit.row + 1:,} to {unit.row + unit.rows:,})"

    def manifest(self, dim: int) -> Manifest:
        """What the folder holds, as yet without parts."""
        return Manifest(
            encoder=self.encoder,
            fingerprint=self.fingerprint,
            dim=dim,
            precision=self.settings.precision,
            texts=self.settings.texts,
            columns=tuple(column.name for column in self.types),
        )

    def schema(self, dim: int) -> pa.Schema:
        """Of every part."""
        return self.manifest(dim).schema({column.name: kind for column, kind in self.types.items()})


def begin(
    encoder: str | Path,
    inputs: Sequence[str | Path | Source],
    out: Path,
    settings: Encode,
    opening: dict[str, Any],
    rows_per_part: int,
    workers: int = 1,
) -> tuple[Job, list[Unit]]:
    """The job of a folder, which is the one it was begun with, or a new one, planned and kept there.

    Settings that leave it open get `rows_per_part`, or less, where that would leave some of the `workers` without work.
    Raises ConfigError for a job with another encoder, input or
    setting; DataError for inputs that cannot be read.
    """
    files = room.input_files(inputs, settings.text_column)
    # From the root, so that workers and searchers find it from wherever they stand.
    encoder = Path(encoder).absolute() if Path(encoder).is_dir() else encoder
    if (out / JOB).exists():
        kept, units = read(out)
        job = _same(kept, Job(out, str(encoder), "", opening, settings, files, {}))
        if job != kept:
            write(job, units)
    else:
        size = settings.rows_per_part or max(rows_per_part // PIECES, 1)
        job, units = _planned(Job(out, str(encoder), "", opening, replace(settings, rows_per_part=size), files, {}))
        if settings.rows_per_part is None:
            times = max(1, min(PIECES, len(units) // (PARTS_OF_A_WORKER * workers)))
            units = room.joined(units, times)
            job = replace(job, settings=replace(settings, rows_per_part=size * times))
        write(job, units)
    return job, units


def of_rows(
    encoder: str | Path, schema: pa.Schema, settings: Encode | None = None, opening: dict[str, Any] | None = None
) -> Job:
    """A job without folder and files, for `Worker.table`: an engine brings its rows, of this schema.

    `opening` has arguments of `Encoder.from_pretrained`, but for the device. Raises DataError for a column of the
    settings that the schema does not have.
    """
    settings = settings or Encode()
    keep = kept_columns(settings.keep)
    for column in (settings.text_column, settings.id_column, *(kept.name for kept in keep)):
        check_column("the rows", column, schema.names, "text_column, id_column, keep")
    types = {kept: KINDS[kept.said] if kept.said else schema.field(kept.name).type for kept in keep}
    encoder = Path(encoder).absolute() if Path(encoder).is_dir() else encoder
    opening = dict(opening or {})
    return Job(
        Path(), str(encoder), encoder_fingerprint(encoder, opening.get("revision")), opening, settings, (), types
    )


def refuse_others(out: Path) -> None:
    """Raises ConfigError if a folder holds something, and no job."""
    ours = out.is_dir() and all(item.name in (UNITS, LOCK) or item.suffix == ".partial" for item in out.iterdir())
    if not ours and not (out / JOB).exists():
        folders.refuse_taken(out)


def _planned(job: Job) -> tuple[Job, list[Unit]]:
    settings = job.settings
    losses = Losses(settings.on_bad_row == "skip")
    most = settings.max_row_bytes
    files, types = room.looked_at(job.files, settings.id_column, kept_columns(settings.keep), most, losses)
    fingerprint = encoder_fingerprint(job.encoder, job.opening.get("revision"))
    counted: list[InputFile] = []
    units: list[Unit] = []
    for number, file in enumerate(files):
        done, own = room.planned(file, settings.rows_per_part or 1, most, losses)
        counted.append(done)
        units += [replace(unit, number=len(units) + place, file=number) for place, unit in enumerate(own)]
    if not units:
        names = ", ".join(file.name for file in job.files[:3])
        lost = "".join(f"\n  {item.line}" for item in losses.found)
        raise DataError(f"{names}: no row to use, there is none. Give a file with at least one row.{lost}")
    return replace(job, fingerprint=fingerprint, files=tuple(counted), types=types, lost=tuple(losses.found)), units


def _same(old: Job, new: Job) -> Job:
    """The old job, if the new one is the same. Raises ConfigError with what has changed, and the way out."""
    way_out = "Give the command it was begun with and it goes on, or name another --out."
    for name in (item.name for item in fields(Encode)):
        was, now = getattr(old.settings, name), getattr(new.settings, name)
        free = name in CHANGES_NOTHING or (name in MAY_CHANGE and not _has_bad_rows(old))
        if was == now or free or (name == "rows_per_part" and now is None):
            continue
        raise ConfigError(f"{old.out} holds a job with {name}={was!r}, now it is {now!r}. {way_out}")
    for name in sorted(old.opening.keys() | new.opening.keys()):
        # What one leaves out another may name as None or False.
        was, now = old.opening.get(name) or None, new.opening.get(name) or None
        if was != now:
            raise ConfigError(f"{old.out} holds a job with {name}={was!r}, now it is {now!r}. {way_out}")
    _same_files(old, new, way_out)
    found = encoder_fingerprint(new.encoder, new.opening.get("revision"))
    if found != old.fingerprint:
        raise ConfigError(
            f"{old.out} holds vectors of another encoder: the files of {old.encoder} were {old.fingerprint[:12]}, "
            f"those of {new.encoder} are {found[:12]}. Vectors of two encoders do not compare. {way_out}"
        )
    kept = {name: getattr(new.settings, name) for name in (*MAY_CHANGE, *CHANGES_NOTHING)}
    return replace(old, settings=replace(old.settings, **kept))


def _same_files(old: Job, new: Job, way_out: str) -> None:
    were = {file.name: file for file in old.files}
    # A file of which nothing could be read is none of the job's.
    known = {*were, *(item.file for item in old.lost)}
    for file in new.files:
        if file.name not in known:
            raise ConfigError(f"{old.out} holds a job without the input {file.name}. {way_out}")
        before = were.get(file.name)
        if before is None or (file.state and file.state == before.state):
            continue
        if room.content_of_input(file) != before.content:
            raise ConfigError(f"{old.out}: the input {file.name} has changed since the job was begun. {way_out}")
    gone = [name for name in were if name not in {file.name for file in new.files}]
    if gone:
        raise ConfigError(f"{old.out} holds a job that has the input {gone[0]} too. {way_out}")


def _has_bad_rows(job: Job) -> bool:
    return bool(job.lost) or next(job.out.glob("rejected-*.jsonl"), None) is not None


def write(job: Job, units: Sequence[Unit]) -> None:
    """Keep a job in its folder."""
    job.out.mkdir(parents=True, exist_ok=True)
    # Of all that is in the folder this comes first, and the job itself last: with it the plan is whole.
    rows = (json.dumps([unit.file, unit.rows, unit.row, unit.byte, unit.line]) for unit in units)
    folders.write_whole(job.out / UNITS, "".join(f"{row}\n" for row in rows))
    content = {
        "version": VERSION,
        "encoder": job.encoder,
        "fingerprint": job.fingerprint,
        "opening": job.opening,
        "settings": asdict(job.settings),
        "types": [[kept.name, kept.said, _spelled(kind)] for kept, kind in job.types.items()],
        "files": [asdict(file) for file in job.files],
        "lost": [asdict(item) for item in job.lost],
    }
    folders.write_whole(job.out / JOB, json.dumps(content, indent=1) + "\n")


def read(out: Path) -> tuple[Job, list[Unit]]:
    """The job that a folder keeps. Raises DataError if it is damaged, or of another version."""
    try:
        found = json.loads((out / JOB).read_text(encoding="utf-8"))
        if found["version"] != VERSION:
            raise DataError(f"{out / JOB}: version {found['version']}, but this bothways knows {VERSION}. Update it.")
        with (out / UNITS).open(encoding="utf-8") as lines:
            units = [Unit(number, *json.loads(line)) for number, line in enumerate(lines)]
        settings = Encode(**found["settings"] | {"keep": tuple(found["settings"]["keep"])})
        files = tuple(_file(file) for file in found["files"])
        types = {Kept(name, said): _type(kind) for name, said, kind in found["types"]}
        lost = tuple(Rejected(**item) for item in found["lost"])
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as problem:
        raise DataError(f"{out / JOB}: not a job of this package ({problem!r}). Name another --out.") from None
    return Job(out, found["encoder"], found["fingerprint"], found["opening"], settings, files, types, lost), units


def _file(values: dict[str, Any]) -> InputFile:
    many = {name: tuple(values[name]) for name in ("columns", "header") if values[name] is not None}
    return InputFile(**values | many | {"hub": HubData(**values["hub"]) if values["hub"] else None})


def _spelled(kind: pa.DataType) -> str:
    return base64.b64encode(pa.schema([("", kind)]).serialize().to_pybytes()).decode()


def _type(spelled: str) -> pa.DataType:
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(spelled))).field(0).type
