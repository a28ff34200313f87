"""The only room that asks about devices, number formats and kernels. Every choice carries its reason."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from bothways.errors import ConfigError, did_you_mean

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ALIASES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}

EAGER_TOKENS = 512
"""Longest row for which eager attention is chosen."""
LONG_ROW = 512
"""Tokens of a row that fills the matrix products by itself on CPU."""
CPU_TOKENS = 1024
"""Tokens of one forward and backward pass where rows are shorter: with 512 the products of short rows are slower."""
GPU_TOKENS = 16384
"""The same: not measured, where to begin halving."""
VARLEN_DIM = 256
"""Widest attention head that flash kernels compute."""

CPU_WORDS = ("can't allocate memory", "not enough memory", "out of memory", "bad allocation", "std::bad_alloc")
"""How torch's allocators say it where they have no exception of their own for it."""


@dataclass(frozen=True)
class Device:
    """Where the model computes, and why."""

    value: torch.device
    why: str


@dataclass(frozen=True)
class Precision:
    """The number format, and why."""

    value: torch.dtype
    why: str


@dataclass(frozen=True)
class Kernel:
    """The attention implementation, as transformers names it, and why."""

    value: str
    why: str


@dataclass(frozen=True)
class MicroBatch:
    """Tokens that go through the model at once, and why."""

    value: int
    why: str


@dataclass(frozen=True)
class Accelerator:
    """What a data sheet says of one device."""

    name: str
    memory: int
    """Bytes, a GB read as 10**9: drivers show a little more."""
    bf16: float
    """Dense FLOP/s of bfloat16 matrix products with float32 sums."""
    fp32: float
    """FLOP/s of float32 without TF32, which torch leaves off."""
    source: str

    def rate(self, dtype: torch.dtype) -> float:
        """Peak FLOP/s of matrix products in this number format."""
        return self.fp32 if dtype == torch.float32 else self.bf16


_H100, _H200 = "NVIDIA H100 Tensor Core GPU data sheet, SXM", "NVIDIA H200 Tensor Core GPU data sheet, SXM"
_A100 = "NVIDIA A100 Tensor Core GPU data sheet"
ACCELERATORS = {
    known.name: known
    for known in (
        Accelerator("h100", 80 * 10**9, 989.4e12, 66.9e12, _H100),
        Accelerator("h200", 141 * 10**9, 989.4e12, 66.9e12, _H200),
        Accelerator("a100-40", 40 * 10**9, 312e12, 19.5e12, _A100),
        Accelerator("a100-80", 80 * 10**9, 312e12, 19.5e12, _A100),
        Accelerator("l4", 24 * 10**9, 121e12, 30.3e12, "NVIDIA L4 Tensor Core GPU data sheet"),
        Accelerator("l40s", 48 * 10**9, 362.05e12, 91.6e12, "NVIDIA L40S data sheet"),
        Accelerator("rtx4090", 24 * 10**9, 165.2e12, 82.6e12, "NVIDIA Ada GPU Architecture white paper, appendix A"),
        Accelerator("b200", 180 * 10**9, 2250e12, 75e12, "NVIDIA HGX B200 data sheet, an eighth of the board"),
        Accelerator("mi300x", 192 * 10**9, 1307.4e12, 163.4e12, "AMD Instinct MI300X data sheet"),
    )
}
"""Devices that can be planned for without being there. Rates with sparsity, twice as high, are not used."""


def accelerator(name: str) -> Accelerator:
    """The device of this name. Raises ConfigError that names the nearest for an unknown one."""
    if name not in ACCELERATORS:
        raise ConfigError(f'"{name}" is no accelerator that is known here. {did_you_mean(name.lower(), ACCELERATORS)}')
    return ACCELERATORS[name]


def choose_device(wish: str | torch.device | None = None) -> Device:
    """`wish` if one is given, else the first accelerator that works, else the CPU."""
    if wish is not None:
        return Device(torch.device(wish), "asked for")
    if torch.cuda.is_available():
        return Device(torch.device("cuda"), f"found {torch.cuda.get_device_name()}")
    if torch.backends.mps.is_available():
        return Device(torch.device("mps"), "found Apple's Metal backend")
    return Device(torch.device("cpu"), "no accelerator was found")


def choose_dtype(wish: str | torch.dtype, device: torch.device) -> Precision:
    """A named format as it is; "auto": bfloat16 where the device multiplies it faster than float32, else float32.

    Raises ConfigError for an unknown name.
    """
    if isinstance(wish, torch.dtype):
        return Precision(wish, "asked for")
    if wish != "auto":
        name = ALIASES.get(wish, wish)
        if name not in DTYPES:
            raise ConfigError(f'dtype="{wish}" is not known. Use "auto" or one of {", ".join([*DTYPES, *ALIASES])}.')
        return Precision(DTYPES[name], "asked for")
    if device.type == "cuda":
        if torch.cuda.get_device_capability(device) >= (8, 0):
            return Precision(torch.bfloat16, "the GPU has bfloat16 tensor cores")
        return Precision(torch.float32, "the GPU has no bfloat16 tensor cores")
    if device.type == "cpu":
        found = sorted({"avx512_bf16", "amx_bf16", "bf16", "sve2_bf16"} & cpu_flags())
        if found:
            return Precision(torch.bfloat16, f"the CPU has {found[0]}")
        return Precision(torch.float32, "the CPU has no bfloat16 instructions")
    return Precision(torch.float32, f"float32 is what is tested on {device.type}")


def attention_by_speed(device: torch.device) -> tuple[Kernel, ...]:
    """The attention implementations worth trying on `device`, the fastest first."""
    plain = (Kernel("sdpa", "torch's fused kernel"), Kernel("eager", "runs everywhere"))
    if device.type != "cuda":
        return plain
    flash = []
    if torch.cuda.get_device_capability(device)[0] == 9:
        flash.append(Kernel("flash_attention_3", "made for Hopper GPUs"))
    if torch.cuda.get_device_capability(device) >= (8, 0):
        flash.append(Kernel("flash_attention_2", "skips padding and masks"))
    return (*flash, plain[0], Kernel("flex_attention", "compiled, with windows"), plain[1])


def choose_training_attention(own: str, device: torch.device, longest: int) -> Kernel:
    """The attention to train with where a model was loaded with `own` and its longest row has `longest` tokens.

    On CPU the backward pass of sdpa takes a quarter of a step; eager attention makes the step 1.2 to 1.3 times faster,
    as long as its tokens x tokens matrices stay small.
    """
    if own == "sdpa" and device.type == "cpu" and longest <= EAGER_TOKENS:
        return Kernel("eager", f"faster backward pass on CPU for rows of at most {EAGER_TOKENS} tokens")
    return Kernel(own, "as the model was loaded")


def choose_tokens_per_batch(
    wish: int | None, device: torch.device, longest: int, *, cached: bool = False
) -> MicroBatch:
    """Tokens of one forward and backward pass: `wish` if one is given, else what is fast on the device.

    `longest` are the tokens of the longest row. Two long rows at once are no faster on CPU than one after the other,
    and their activations take twice the memory. `cached`: whether the gradient is, so that of the activations of all
    passes few are in memory, and the size of a pass decides how much that is.
    """
    if wish is not None:
        return MicroBatch(wish, "asked for")
    if device.type == "cpu":
        if longest >= LONG_ROW:
            return MicroBatch(LONG_ROW, "long rows one by one: as fast on CPU, with less memory")
        if cached:
            return MicroBatch(LONG_ROW, "small passes for GradCache, which is there to save memory")
        return MicroBatch(CPU_TOKENS, "among the fastest on CPU")
    return MicroBatch(GPU_TOKENS, "a first guess, halved where the memory runs out")


def runs_varlen(query: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether torch's varlen attention, a flash kernel, computes such tensors (..., tokens, dim)."""
    return (
        query.is_cuda
        and query.dtype in (torch.bfloat16, torch.float16)
        and query.shape[-1] == value.shape[-1] <= VARLEN_DIM
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
    )


@cache
def cpu_flags() -> frozenset[str]:
    """Instruction-set flags of this CPU, empty where the system does not tell."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return frozenset()
    for line in info.read_text(errors="replace").splitlines():
        if line.lower().startswith(("flags", "features")):
            return frozenset(line.split(":", 1)[1].split())
    return frozenset()


def describe() -> dict[str, str | int]:
    """What a results file says of the machine: processor, cores, memory in GiB, accelerator."""
    facts: dict[str, str | int] = {
        "processor": _cpu_name(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        facts["memory_gib"] = round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30)
    return facts


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def peak_memory_bytes() -> int:
    """The most resident memory this process has held, in bytes (0 where the system does not tell)."""
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024


def memory_bytes(device: torch.device) -> int:
    """All memory of a device; of the CPU, what this machine has, or its control group may use."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = Path("/sys/fs/cgroup/memory.max")
    allowed = limit.read_text().strip() if limit.exists() else "max"
    return min(memory, int(allowed)) if allowed.isdecimal() else memory


def is_out_of_memory(problem: BaseException) -> bool:
    """Whether the memory ran out, of a device or of the machine."""
    if isinstance(problem, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(problem, RuntimeError) and any(words in str(problem).lower() for words in CPU_WORDS)


def matmul_rate(device: torch.device, dtype: torch.dtype, *, seconds: float = 1.0) -> float:
    """FLOP/s of large square matrix products, measured now: the best of those done in `seconds`."""
    side = 8192 if device.type == "cuda" else 1024
    left, right = (torch.ones(side, side, dtype=dtype, device=device) for _ in range(2))
    best, begun = float("inf"), time.perf_counter()
    while time.perf_counter() - begun < seconds:
        since = time.perf_counter()
        # A value that is read back has been computed.
        (left @ right)[0, 0].item()
        best = min(best, time.perf_counter() - since)
    return 2 * side**3 / best
