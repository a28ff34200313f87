"""One call of `Encoder.encode`, or one corpus job, on a file of texts: its CPU seconds, and the process's memory."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.growth import CALL, START
from benchmarks.peers.wire import status
from bothways import Encoder, corpus


def main(work: str, folder: Path, count: int) -> None:
    """Open, warm up, encode; what a job takes that has next to nothing to do is taken off."""
    if work == CALL:
        encoder = Encoder.from_pretrained(folder / "encoder")
        texts = (folder / f"{count}.txt").read_text(encoding="utf-8").splitlines()
        encoder.encode([f"{text} again" for text in texts[:200]])
        seconds = taken(lambda: encoder.encode(texts))
    else:

        def job(number: int, name: str) -> None:
            corpus.encode(folder / "encoder", (folder / f"{number}.txt",), folder / "out" / f"{count}-{name}")

        job(START, "warm")
        start = taken(lambda: job(START, "start"))
        seconds = taken(lambda: job(count, "job")) - start
    print(json.dumps({"seconds": seconds, "memory": status("VmHWM")}))


def taken(act: Callable[[], object]) -> float:
    """CPU seconds of this process, all its threads."""
    begun = time.process_time()
    act()
    return time.process_time() - begun


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
