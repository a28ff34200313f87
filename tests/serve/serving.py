"""`bothways serve` in processes of its own, forked from one that has imported everything: a start takes no time.

Run as a program it is that one: it reads from stdin, a line of JSON each, what to run and what to wait for.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

SOURCE = str(Path(__file__).resolve().parents[2] / "src")
READY = re.compile(r"serve: ready: (.+) on (http://\S+)/v1\n")
QUIET = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def environment(**more: str) -> dict[str, str]:
    """Of a process that finds the package."""
    path = os.pathsep.join(filter(None, (SOURCE, os.environ.get("PYTHONPATH"))))
    return {**os.environ, **QUIET, "PYTHONPATH": path, **more}


@dataclass
class Server:
    """One that runs."""

    forks: Forks
    pid: int
    file: Path
    code: int | None = None

    @property
    def said(self) -> str:
        """All of its stderr."""
        return self.file.read_text(encoding="utf-8")

    @property
    def url(self) -> str:
        """Where it is, once it is ready."""
        return ready(self.file)

    def signal(self, number: int) -> None:
        assert self.code is None
        os.kill(self.pid, number)

    def wait(self) -> int:
        """Its exit code."""
        if self.code is None:
            self.code = int(self.forks.ask({"wait": self.pid}))
        return self.code

    def end(self) -> None:
        """Whatever it does."""
        if self.code is None:
            self.signal(signal.SIGKILL)
            self.wait()


def ready(file: Path, seconds: float = 60) -> str:
    """The URL that a server said it is ready at."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found = READY.search(file.read_text(encoding="utf-8"))
        if found:
            return found[2]
        time.sleep(0.02)
    raise AssertionError(f"not ready after {seconds} s:\n{file.read_text(encoding='utf-8')}")


@dataclass
class Forks:
    """Starts servers."""

    folder: Path
    servers: list[Server] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._line() == "imported"

    def ask(self, what: dict[str, Any]) -> str:
        print(json.dumps(what, default=str), file=self.process.stdin, flush=True)
        return self._line()

    def start(self, encoder: Path, *flags: object, port: int = 0, **env: str) -> Server:
        """One that may not be ready yet."""
        words = ["serve", str(encoder), "--port", str(port), "--device", "cpu", *map(str, flags)]
        file = self.folder / f"said-{len(self.servers)}"
        file.touch()
        pid = int(self.ask({"run": words, "said": file, "env": env}))
        self.servers.append(Server(self, pid, file))
        return self.servers[-1]

    def close(self) -> None:
        for server in self.servers:
            server.end()
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(30)

    def _line(self) -> str:
        return self.process.stdout.readline().strip()


def post(server: Server, body: Any, **more: Any) -> httpx.Response:
    """A request for vectors."""
    return httpx.post(f"{server.url}/v1/embeddings", json=body, timeout=60, **more)


def metric(server: Server, name: str, **labels: str) -> float:
    """A number that the server counts."""
    from prometheus_client.parser import text_string_to_metric_families

    page = httpx.get(f"{server.url}/metrics", timeout=60).text
    found = [
        sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]
    return sum(found)


def until(true: Any, seconds: float = 20) -> None:
    """Waits for it."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def main() -> None:
    import bothways.cli
    import bothways.cli.serving
    import bothways.encoder
    import bothways.serve.server  # noqa: F401

    print("imported", flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        if "wait" in asked:
            _, status = os.waitpid(asked["wait"], 0)
            print(os.waitstatus_to_exitcode(status), flush=True)
            continue
        pid = os.fork()
        if not pid:
            child(asked["run"], asked["said"], asked["env"])
        print(pid, flush=True)


def child(words: Sequence[str], said: str, env: dict[str, str]) -> None:
    from bothways.cli import main

    if planted := env.pop("PLANTED", ""):
        plant(planted)
    os.environ.update(env)
    # What the process was forked from reads its orders there.
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    os.dup2(os.open(os.devnull, os.O_RDWR), 1)
    os.dup2(os.open(said, os.O_WRONLY | os.O_APPEND), 2)
    code: Any = 1
    try:
        main(words)
    except SystemExit as left:
        code = left.code
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code or 0)


def plant(defect: str) -> None:
    """The model computes once, when the server starts; after that it is "lost", or "slow"."""
    from bothways.encoder import Encoder

    real, calls = Encoder.token_states, []

    def token_states(self: Encoder, rows: Any) -> Any:
        calls.append(rows)
        if len(calls) > 1 and defect == "slow":
            time.sleep(60)
        if len(calls) > 1:
            raise RuntimeError("planted")
        return real(self, rows)

    Encoder.token_states = token_states


if __name__ == "__main__":
    main()
