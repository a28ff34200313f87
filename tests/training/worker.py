"""Training runs as a program of its own, to be launched, killed and starved by the tests; its jobs are JSON objects.

base, texts, device: a folder and a file to convert and to train on, and where. settings: of the stage.
stage: mntp, simcse or supervised, where a text's start looks for its rest.
alike: let SimCSE train on two views that are the same.
out: file for the trained weights. checkpoints, resume: as in `mntp`.
shard: share the weights by FSDP 2, which accelerate does not do on CPU.
die: {rank, step, how} makes one process fail at a step: the name of a signal, or "raise".
starve: {rank, step, when} lets one run out of memory once, "before" or "after" vectors are exchanged.
interrupted: whether this job is expected to be. kill: see `killed`. said: file for stderr.
memory: MiB beyond what is held at the start.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from contextlib import ExitStack, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import accelerate  # noqa: F401  (what a run would import later, to be there before a fork)
import peft  # noqa: F401
import torch

from bothways import MNTP, SimCSE, Supervised, convert, mntp, simcse, supervised
from bothways.data import Example
from bothways.encoder import Encoder
from bothways.errors import BothwaysError
from bothways.training import checkpoint, gradcache, loop, processes, run, sharded

torch.set_num_threads(1)
if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
    from deepspeed import ops

    # A kernel for inference on CPUs, which DeepSpeed would compile at its start, for minutes, and training never calls.
    ops.__compatible_ops__["deepspeed_shm_comm"] = False

STAGES: dict[str, Any] = {"mntp": (mntp, MNTP), "simcse": (simcse, SimCSE), "supervised": (supervised, Supervised)}


def train(job: dict[str, Any]) -> Encoder:
    processes.place()
    encoder = convert(job["base"], dtype="float32", device=job.get("device", "cpu"))
    texts = Path(job["texts"]).read_text(encoding="utf-8").splitlines()
    if "memory" in job:
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + job["memory"] * 2**20,) * 2)
    verb, kind = STAGES[job.get("stage", "mntp")]
    settings = kind(**{"precision": "fp32", "held_out_items": 0, **job["settings"]})
    items = texts if kind is not Supervised else [*map(example, texts, texts[1:] + texts[:1])]
    how = {"checkpoint_dir": job.get("checkpoints"), "resume": job.get("resume", False)}
    kill = killed(job.get("kill", ""))
    alike = mock.patch.object(sys.modules[simcse.__module__], "SAME", -1.0) if job.get("alike") else nullcontext()
    starve = starved(**job["starve"]) if "starve" in job else nullcontext()
    with shard_on_cpu(job.get("shard", False)), fail_at(**job.get("die", {"how": ""})), kill, alike, starve:
        return verb(encoder, items, settings, **how)


def example(text: str, other: str) -> Example:
    return Example(text[:25], text[25:], (other,))


def starved(rank: int, step: int, when: str) -> Any:
    real, steps = gradcache.exchange, iter(range(10**6))

    def exchange(place: processes.Place, *arguments: Any) -> torch.Tensor:
        now = place.rank == rank and next(steps) == step
        found = None if now and when == "before" else real(place, *arguments)
        if now:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return found

    return mock.patch.object(gradcache, "exchange", exchange)


def fail_at(how: str, rank: int = 0, step: int = 0) -> Any:
    real = run.Run._gradient

    def gradient(self: run.Run, number: int) -> tuple[float, int]:
        if how and (self.place.rank, number) == (rank, step):
            if how == "raise":
                raise ValueError("this process is ill")
            os.kill(os.getpid(), getattr(signal, how))
        return real(self, number)

    return mock.patch.object(run.Run, "_gradient", gradient)


def killed(moment: str) -> Any:
    """SIGKILL in the first checkpoint ("half": while it is written, "whole": before it gets its name, "named": before
    old ones go), or at the "end" of all steps.
    """
    if not moment:
        return nullcontext()
    owner, name = {"named": (checkpoint, "_rotate"), "end": (loop, "_finish")}.get(moment, (checkpoint, "_write"))
    real = getattr(owner, name)

    def die(*arguments: Any) -> None:
        if name == "_write":
            real(*arguments)
            if moment == "half":
                os.truncate(arguments[1], arguments[1].stat().st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)

    return mock.patch.object(owner, name, die)


def shard_on_cpu(wanted: bool) -> Any:
    """What accelerate reads from a launch configuration on GPUs, for CPU processes; and a look at what is written."""
    from accelerate import FullyShardedDataParallelPlugin
    from torch.distributed.tensor import DTensor

    real_begin, real_write = processes.begin, sharded.write_shards
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="transformer_based_wrap")

    def begin(**options: object) -> SimpleNamespace:
        real = real_begin(**options)
        return SimpleNamespace(
            distributed_type="FSDP",
            process_index=real.process_index,
            num_processes=real.num_processes,
            device=real.device,
            log_with=[],
            state=SimpleNamespace(fsdp_plugin=plugin),
            mixed_precision="no",
            is_main_process=real.is_main_process,
        )

    def write(tensors: dict, folder: Path) -> None:
        for kind in ("weights", "exp_avg", "exp_avg_sq"):
            assert tensors[kind], kind
            assert all(isinstance(tensor, DTensor) for tensor in tensors[kind].values()), kind
        assert all(master.to_local().numel() < master.numel() for master in tensors["weights"].values())
        real_write(tensors, folder)

    patches = mock.patch.object(loop, "begin", begin if wanted else real_begin)
    return _both(patches, mock.patch.object(sharded, "write_shards", write if wanted else real_write))


def _both(*patches: Any) -> Any:
    stack = ExitStack()
    for patch in patches:
        stack.enter_context(patch)
    return stack


def main(jobs: list[dict[str, Any]]) -> None:
    for job in jobs:
        if job.get("interrupted"):
            try:
                train(job)
            except KeyboardInterrupt:
                continue
            raise AssertionError("the run was not interrupted")
        encoder = train(job)
        if processes.place().main:
            partial = Path(job["out"]).with_suffix(".partial")
            torch.save({"weights": encoder.cpu().state_dict(), "stage": json.dumps(encoder.record.stages[-1])}, partial)
            os.replace(partial, job["out"])
        processes.wait(processes.place())
    processes.end()


def alone(job: dict[str, Any] | None) -> None:
    """One job, or none, in a process that was forked for it."""
    if job is None:
        return
    with open(job["said"], "a") as said:
        os.dup2(said.fileno(), 2)
    main([job])


if __name__ == "__main__":
    try:
        main(json.loads(sys.argv[1]))
    except BothwaysError as problem:
        print(f"process {os.environ.get('RANK')}: {type(problem).__name__}: {problem}", file=sys.stderr, flush=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
