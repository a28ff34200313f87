"""`bothways encode`: the vectors of a corpus."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tyro.conf import OmitArgPrefixes, Positional

from bothways.cli.options import Opening, misused, quiet, say
from bothways.corpus.job import Encode
from bothways.corpus.sinks import Format

if TYPE_CHECKING:
    from bothways.corpus import Encoded


def encode(
    encoder: Positional[str],
    inputs: Positional[tuple[str, ...]],
    settings: OmitArgPrefixes[Encode],
    opening: OmitArgPrefixes[Opening],
    out: Path,
    format: Format = "parquet",
    devices: tuple[str, ...] = (),
    processes: int = 1,
    engine: Literal["local", "ray"] = "local",
    ray_address: str | None = None,
) -> None:
    """Write the vectors of texts as a folder of Parquet files; the same command goes on where it was interrupted.

    Args:
        encoder: Folder of the encoder, or a hub id.
        inputs: Texts: .txt (one a line), .jsonl, .csv, .tsv or .parquet, all but the last also .gz, .bz2, .xz or .zst;
            folders and patterns of them; URLs that fsspec opens (s3://, https://, hf://); data sets as hub:OWNER/NAME.
            Options stand behind a ?, as in docs.csv?column=body. "title" goes in front of "text".
        out: Folder for the parts and corpus.json; must be empty, not exist yet, or hold the same job unfinished.
        format: Beside the Parquet files: npy writes vectors.npy and ids.jsonl, lance a LanceDB table in lance/.
        devices: One process on each, as in cuda:0 cuda:1.
        processes: Processes on each device, or on the one that is chosen. With Ray: of the whole cluster.
        engine: Who does the work: local is this machine; ray the machines of a Ray cluster, each process with a GPU
            or a CPU of its own (needs bothways[ray]). Encoder, inputs and --out must be at the same place on all.
        ray_address: Where the cluster is; else RAY_ADDRESS says so, else one is started on this machine.
    """
    _check(inputs, devices, processes, engine, ray_address, opening)
    from bothways import corpus
    from bothways.corpus.on_ray import OnRay

    quiet()
    cluster = OnRay(processes, ray_address, opening.device) if engine == "ray" else None
    how = {name: value for name, value in vars(opening).items() if name != "device"}
    # With commas or without.
    named = tuple(device for item in devices for device in item.split(",") if device)
    places = named or ((opening.device,) if opening.device and cluster is None else ())
    try:
        done = corpus.encode(
            encoder,
            inputs,
            out,
            settings,
            devices=places,
            processes=1 if cluster else processes,
            engine=cluster,
            format=format,
            opening=how,
            show_progress=True,
        )
    except KeyboardInterrupt:
        say(f"encode: interrupted. What is finished stays in {out}; the same command goes on.")
        raise
    if done.whole:
        _tell(done, out, format)


def _check(
    inputs: tuple[str, ...],
    devices: tuple[str, ...],
    processes: int,
    engine: str,
    ray_address: str | None,
    opening: Opening,
) -> None:
    """Leave with 2 for what cannot be meant."""
    if not inputs:
        misused("encode: no input. Name one or more files, folders, patterns, URLs or hub:OWNER/NAME.")
    if processes < 1:
        misused(f"encode: --processes {processes}, expected 1 or more.")
    if devices and opening.device is not None:
        misused("encode: --device and --devices say the same. Leave one of them out.")
    if engine == "ray" and devices:
        misused("encode: --engine ray gives every process its device. Say how many: --processes N, not --devices.")
    if engine == "local" and ray_address is not None:
        misused(f"encode: --ray-address {ray_address} is for --engine ray. Add that, or leave it out.")


def _tell(done: Encoded, out: Path, format: Format) -> None:
    """What was written, and what was left out."""
    if done.rejected:
        more = f"\n  and {done.rejected - len(done.listed):,} more" if done.rejected > len(done.listed) else ""
        listed = "\n".join(f"  {line}" for line in done.listed)
        say(f"encode: {done.rejected:,} rows could not be used, {out}/rejected.jsonl has all:\n{listed}{more}")
    say(f"encode: {done.vectors:,} vectors in {out} ({done.seconds:.1f} s)")
    if format != "parquet":
        say(f"encode: written to {out / done.written.name}")
