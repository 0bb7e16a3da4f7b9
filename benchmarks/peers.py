"""Other engines: each in an environment of its own, made on first use, answering one line per question.

A peer is a process that stays alive between its turns, so that it can be measured in turn with everything else. It
reads a line of JSON, works, and answers with a line of JSON.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lowdim.data import assets
from lowdim.data.assets import cache_dir
from lowdim.pipeline.front.llamacpp import FTYPES

HERE = Path(__file__).parent
DEEPSPARSE = ("deepsparse", "deepsparse==1.8.0", "3.11")  # its last release; wheels up to Python 3.11
LLAMACPP = ("llama_cpp", "llama-cpp-python==0.3.36", None)  # built from source in five to ten minutes
GALORE = ("galore_torch", "torch==2.13.0 galore-torch==1.0", None)
TORCHAO = ("torchao", "torch==2.13.0 transformers==5.23.0 torchao==0.18.0", None)
OPENVINO = ("optimum.intel", "torch==2.13.0 torchvision==0.28.0 optimum-intel==2.2.0 -torchvision", None)
SOURCE = "Q4_1"  # what the embedded model's own file is in
PYTORCH_OPTIMIZER = ("pytorch_optimizer", "torch==2.13.0 pytorch-optimizer==4.1.0", None)

SPINS, PAUSE = 2_000_000, 0.1
"""How often a peer's threads look for work before they sleep, some 30 ms; seconds after its turn, by when they do.

Threads that sleep at once (``OMP_WAIT_POLICY=passive``) cost llama.cpp most of its speed: each layer ends at a barrier.
"""


class Unavailable(Exception):
    """A peer cannot be had on this machine, and why."""


def environment(peer: tuple[str, str, str | None]) -> Path:
    """Return the interpreter of a peer's environment, made on first use: its requirements, one after the other.

    One that begins with a minus is taken out again: torchvision, say, does not load beside torch for processors alone.

    Raises:
        Unavailable: no interpreter of the version that it needs, or pip failed.
    """
    module, requirement, version = peer
    words = requirement.split()
    last = [word for word in words if word[0] != "-"][-1]
    home = cache_dir() / "peers" / last.replace("==", "-")
    python = home / "bin" / "python"
    if subprocess.run([python, "-c", f"import {module}"], capture_output=True).returncode if python.exists() else 1:
        print(f"Making the environment of {requirement} (once) ...", file=sys.stderr, flush=True)
        shutil.rmtree(home, ignore_errors=True)
        _run([_interpreter(version), "-m", "venv", home])
        for word in words:
            act = ["uninstall", "--yes", word[1:]] if word[0] == "-" else ["install", word]
            _run([python, "-m", "pip", *act, "--quiet", "--disable-pip-version-check"])
    return python


def _interpreter(version: str | None) -> str:
    if version is None or sys.version_info[:2] == tuple(map(int, version.split("."))):
        return sys.executable
    found = shutil.which(f"python{version}")
    if not found or subprocess.run([found, "--version"], capture_output=True).returncode:
        raise Unavailable(f"no Python {version} on this machine")
    return found


def _run(command: Sequence[str | Path]) -> None:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no reason given"]
        raise Unavailable(next((line for line in lines if line.startswith("ERROR")), lines[-1])[:300])


def _environment() -> dict[str, str]:
    """Return this process's environment, but for how its own threads wait."""
    return {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}


class Peer:
    """A peer's process; used as a context manager.

    Args:
        peer: its environment.
        script: its program, beside this file.
        arguments: of the program.
        threads: that it may use.
    """

    def __init__(
        self, peer: tuple[str, str, str | None], script: str, arguments: Sequence[str | Path], threads: int
    ) -> None:
        command = [environment(peer), HERE / script, *arguments, "--threads", str(threads)]
        self._process = subprocess.Popen(
            list(map(str, command)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=_environment() | {"OMP_NUM_THREADS": str(threads), "GOMP_SPINCOUNT": str(SPINS)},
        )

    def ask(self, **question: Any) -> dict[str, Any]:
        """Send a question and wait for its answer.

        Raises:
            Unavailable: the peer has died.
        """
        assert self._process.stdin and self._process.stdout
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
            answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        except (BrokenPipeError, json.JSONDecodeError) as error:
            raise Unavailable("the peer's process ended; run its script by hand to see why") from error
        time.sleep(PAUSE)
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def gguf(kind: str) -> Path:
    """Return the embedded model's file, as it is or in another of llama.cpp's kinds, made once by its own quantizer.

    Raises:
        Unavailable: llama.cpp is not there.
    """
    if kind == SOURCE:
        return assets.path("smollm2-135m")
    file = cache_dir() / "peers" / f"smollm2-135m-{kind.lower()}.gguf"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        with Peer(LLAMACPP, "peer_llamacpp.py", [assets.path("smollm2-135m")], os.cpu_count() or 1) as peer:
            peer.ask(ftype=FTYPES[kind], target=str(file))
    return file
