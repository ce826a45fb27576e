"""Processes of a group on the loopback, each with simulated devices of its own, as a person would start them by hand."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

from tests import flags

ROOT = pathlib.Path(__file__).parents[1]
PATIENCE = 300  # seconds, on a slow machine with other work
GLOO_WORDS = ("[Gloo]", "connected peer ranks")


class Group:
    """Two processes of one command. They are killed where the test ends before they do."""

    def __init__(self, folder: pathlib.Path, module: str, *arguments: object, devices: int = 4, count: int = 2):
        port, self.folder = free_port(), folder
        environment = {
            **os.environ,
            "XLA_FLAGS": f"{flags.FASTER_TO_COMPILE} {flags.devices(devices)}",
            "JAX_PLATFORMS": "cpu",
        }
        folder.mkdir(parents=True, exist_ok=True)
        self.processes = []
        for index in range(count):
            by_hand = ["--coordinator", f"127.0.0.1:{port}", "--num-processes", count, "--process-id", index]
            shell = [sys.executable, "-m", module, *map(str, [*arguments, *by_hand])]
            with open(folder / f"{index}.out", "w") as out, open(folder / f"{index}.err", "w") as err:
                start = subprocess.Popen(shell, stdin=subprocess.DEVNULL, stdout=out, stderr=err, cwd=ROOT, env=environment)
            self.processes.append(start)

    def __enter__(self) -> "Group":
        return self

    def __exit__(self, *error: object) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    def wait(self, seconds: float = PATIENCE) -> list[int]:
        """The exit codes."""
        end = time.monotonic() + seconds
        return [process.wait(max(end - time.monotonic(), 0.1)) for process in self.processes]

    def until(self, condition) -> None:
        """Waits for something that the processes do; fails where they end first."""
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end and all(process.poll() is None for process in self.processes), self.err(0) + self.err(1)
            time.sleep(0.02)

    def kill(self, index: int) -> None:
        os.kill(self.processes[index].pid, signal.SIGKILL)

    def out(self, index: int) -> str:
        """What a process printed itself. Gloo, which carries the collectives of CPUs, says on standard output whom it found,
        from several threads, so that one line may stand within another."""
        lines = (self.folder / f"{index}.out").read_text().splitlines(keepends=True)
        return "".join(line for line in lines if line.strip() and not any(word in line for word in GLOO_WORDS))

    def err(self, index: int) -> str:
        return (self.folder / f"{index}.err").read_text()


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]
