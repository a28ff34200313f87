"""Contract: what is said of devices that are here is measured, of others read from data sheets."""

from __future__ import annotations

import torch

from bothways import hardware
from bothways.hardware import ACCELERATORS, matmul_rate, memory_bytes

CPU = torch.device("cpu")


def test_a_matmul_rate_is_that_of_the_machine() -> None:
    # One core of any machine that runs this computes between 1 GFLOP/s and 10 TFLOP/s.
    assert 1e9 < matmul_rate(CPU, torch.float32, seconds=0.2) < 1e13


def test_the_memory_of_the_cpu_is_that_of_the_machine() -> None:
    assert 2**28 < memory_bytes(CPU) < 2**45


def test_data_sheets_are_those_of_dense_products() -> None:
    for name, known in ACCELERATORS.items():
        assert known.name == name
        # Sparse figures are twice as high, TF32 half as high: a slip of either would leave this range.
        assert 1.9 < known.bf16 / known.fp32 < 31
        assert "data sheet" in known.source or "white paper" in known.source


def test_long_rows_go_one_by_one_on_the_cpu() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert hardware.choose_tokens_per_batch(None, cpu, 511).value == hardware.CPU_TOKENS
    assert hardware.choose_tokens_per_batch(None, cpu, 512).value == hardware.LONG_ROW
    assert hardware.choose_tokens_per_batch(None, cpu, 100, cached=True).value == hardware.LONG_ROW
    assert hardware.choose_tokens_per_batch(77, cpu, 100, cached=True).value == 77
    assert hardware.choose_tokens_per_batch(None, gpu, 512).value == hardware.GPU_TOKENS
    assert hardware.choose_tokens_per_batch(77, cpu, 512).value == 77
