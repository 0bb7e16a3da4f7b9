"""Processes forked from one that has imported what takes seconds to import."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext

SHARED = (
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
    "transformers.models.llama.modeling_llama",
    "lowdim.cli.app",
    "lowdim.infer.decode.native_backend",
    "lowdim.pipeline.recover.api",
    "lowdim.train.finetune.api",
    "lowdim.train.pretrain.api",
)


def server() -> ForkServerContext:
    """Return what starts such processes; they do not see this one's changes of the environment."""
    multiprocessing.set_forkserver_preload(list(SHARED))
    return multiprocessing.get_context("forkserver")


def lowdim(*words: str) -> None:
    """``python -m lowdim WORDS``"""
    from lowdim.cli import main

    sys.argv = ["lowdim", *words]
    main()


def code(text: str, *words: str) -> None:
    """``python -c TEXT WORDS``"""
    sys.argv = ["-c", *words]
    exec(text, {"__name__": "__main__"})


class Program:
    """One of the functions above in a process of its own, with this one's environment; a part of ``Popen``."""

    def __init__(self, target: Callable[..., None], *words: object) -> None:
        (out, into), (errors, errors_into) = multiprocessing.Pipe(duplex=False), multiprocessing.Pipe(duplex=False)
        given = (target, list(map(str, words)), dict(os.environ), into, errors_into)
        self._process = server().Process(target=_run, args=given)
        self._process.start()
        self.stdout, self.stderr = (os.fdopen(os.dup(end.fileno())) for end in (out, errors))
        for end in (into, errors_into, out, errors):
            end.close()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        assert self._process.pid
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def wait(self, timeout: float | None = None) -> int | None:
        self._process.join(timeout)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        errors: list[str] = []
        reader = threading.Thread(target=lambda: errors.append(self.stderr.read()))
        reader.start()
        written = self.stdout.read()
        self.wait(timeout)
        reader.join()
        self.close()
        return written, errors[0]

    def close(self) -> None:
        self.stdout.close()
        self.stderr.close()


def run(target: Callable[..., None], *words: object) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    program = Program(target, *words)
    written, errors = program.communicate()
    return subprocess.CompletedProcess(list(words), program.returncode or 0, written, errors)


def _run(
    target: Callable[..., None], words: list[str], environment: dict[str, str], out: Connection, errors: Connection
) -> None:
    for end, standard in ((out, 1), (errors, 2)):
        os.dup2(end.fileno(), standard)
        end.close()
    # The server's own may be files, which remember where they are.
    sys.stdout, sys.stderr = (os.fdopen(standard, "w", closefd=False) for standard in (1, 2))
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    target(*words)
