"""Jobs in processes of their own, forked from one that has imported everything: a start takes no time to speak of.

Run as a program it is that one: it reads jobs from stdin, a line of JSON each, and says pid and then exit code of each.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SOURCE = str(Path(__file__).resolve().parents[2] / "src")


class Forks:
    """Starts jobs, one at a time."""

    def __init__(self, **environment: str) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RANK", "WORLD", "LOCAL_"))}
        path = os.pathsep.join(filter(None, (SOURCE, os.environ.get("PYTHONPATH"))))
        self.server = subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__],
            env={**kept, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._line() == "ready"

    def _line(self) -> str:
        return self.server.stdout.readline().strip()

    def run(
        self,
        job: dict[str, Any],
        kill_after: tuple[int, float] | None = None,
        meanwhile: Callable[[int], None] = lambda pid: None,
    ) -> tuple[int, int]:
        """Exit code of a job (-9 if it was killed) and its peak memory in KiB; killed so many parts and seconds on.

        `meanwhile` is called with its pid.
        """
        there = parts(job["out"])
        print(json.dumps(job, default=str), file=self.server.stdin, flush=True)
        pid = int(self._line())
        try:
            meanwhile(pid)
        except BaseException:
            os.kill(pid, signal.SIGKILL)
            raise
        if kill_after is not None:
            more, seconds = kill_after
            begun = time.monotonic()
            while parts(job["out"]) < there + more and time.monotonic() < begun + 60:
                time.sleep(0.002)
            time.sleep(seconds)
            # Until the server has heard that it may, nobody takes the pid.
            os.kill(pid, signal.SIGKILL)
        print("wait", file=self.server.stdin, flush=True)
        code, peak = map(int, self._line().split())
        return code, peak

    def close(self) -> None:
        self.server.stdin.close()
        self.server.stdout.close()
        self.server.wait(30)


def parts(folder: Path) -> int:
    return sum(1 for _ in folder.glob("part-*.parquet"))


def main() -> None:
    import bothways.corpus.on_ray
    import bothways.encoder  # noqa: F401

    print("ready", flush=True)
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            child(json.loads(line))
        print(pid, flush=True)
        sys.stdin.readline()
        _, status, usage = os.wait4(pid, 0)
        print(os.waitstatus_to_exitcode(status), usage.ru_maxrss, flush=True)


def child(job: dict[str, Any]) -> None:
    from bothways.corpus import Encode, encode
    from bothways.corpus.on_ray import OnRay

    os.dup2(os.open(job.pop("said", os.devnull), os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    code = 1
    try:
        kill_at(job.pop("kill", ""))
        engine = OnRay(**job["ray"]) if "ray" in job else None
        settings = Encode(**job["settings"])
        encode(job["encoder"], job["inputs"], job["out"], settings, opening={"dtype": "float32"}, engine=engine)
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def kill_at(moment: str) -> None:
    """SIGKILL before a part takes its name, or right after: before what comes next is done."""
    real, seen = os.replace, []

    def replace(source: Any, target: Any) -> None:
        if Path(target).name.startswith("part-"):
            seen.append(target)
            if moment == "before" and len(seen) == 2:
                os.kill(os.getpid(), signal.SIGKILL)
        real(source, target)
        if Path(target).name == moment or (moment == "after" and len(seen) == 2):
            os.kill(os.getpid(), signal.SIGKILL)

    if moment:
        os.replace = replace


if __name__ == "__main__":
    main()
