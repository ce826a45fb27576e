"""What needs an accelerator, checked and measured once: parts, each a command in a process of its own, one JSON file, one page.

A part that fails, hangs or runs out of memory ends alone. Both files are written after every part, so that what was measured
is there whatever comes next. Not here: the page (`accelerator_page.py`), measuring (the commands).
"""

import contextlib
import dataclasses
import datetime
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

import tyro

from infer import settings
from infer.command import BAD_INPUT, INTERRUPTED
from redrafter_jax.errors import BadInput
from redrafter_jax.files import atomic, claims
from redrafter_jax.version import __version__
from scripts import accelerator_page

WRITER = "redrafter_jax scripts.accelerator"
INT8 = "not supported yet"  # by the package; what is measured with it will stand here
MIN_PART_SECONDS = 20.0  # of the budget; a part that would have less is skipped
DEVICE_SECONDS = 300.0  # in which JAX has to start
MAX_TAIL = 2000  # letters of a failed part's last words
BANDWIDTHS = {  # GB/s by what a device's kind contains, from the makers' data sheets
    "H200": 4800, "H100 PCIe": 2000, "H100": 3350, "A100": 2039, "L40": 864, "L4": 300, "T4": 320,
    "v6": 1640, "v5 lite": 819, "v5e": 819, "v5p": 2765, "v5": 2765, "v4": 1228,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Options:
    """Check and measure this accelerator."""

    output: pathlib.Path = pathlib.Path("docs/reports")
    """Folder for accelerator.json and accelerator.md, which are replaced if an earlier run wrote them."""
    minutes: float = 25.0
    """All parts together; those that no time is left for are skipped, and the report says so."""
    bandwidth: float = 0.0
    """Memory bandwidth of the device in GB/s; by default by its name, or else what a sum over all weights reaches."""
    parts: tuple[str, ...] = ()
    """Only these parts; by default all."""
    small: bool = False
    """A dry run: the same parts at small shapes, on whatever device there is. Its figures say nothing."""


@dataclasses.dataclass(frozen=True)
class Part:
    """A command, and seconds that it may take. result: the JSON file that it writes; None: its last lines are the result;
    adds: it adds to what an earlier run left in that file, which is removed first."""

    name: str
    command: tuple[str, ...]
    limit: float
    result: pathlib.Path | None = None
    environment: tuple[tuple[str, str], ...] = ()
    adds: bool = False


def plan(work: pathlib.Path, small: bool, bandwidth: float) -> list[Part]:
    """All parts, the most important first; ``work``: a folder for what they write."""
    suite = ("tests/properties/test_exactness.py", "tests/properties/test_precision.py", "tests/decode/test_golden_decode.py")
    chosen = ("-k", "test_another_seed_gives_another_text") if small else ()
    on_device = (("TEST_PLATFORMS", os.environ.get("JAX_PLATFORMS", "")), ("XLA_FLAGS", "--xla_backend_optimization_level=3"))
    return [
        _benchmark(work, "llama-7b, batch 1", 330, small, bandwidth, "llama-7b", 1, "1x4 4x4 8x5", "1 2 4 8 16 32 64 128"),
        Part("exactness", (sys.executable, "-m", "pytest", "-n0", *suite, *chosen), 270, environment=on_device),
        _benchmark(work, "llama-7b, batch 8", 150, small, bandwidth, "llama-7b", 8, "4x4", "1 4 16 64"),
        _benchmark(work, "llama-7b, batch 64", 150, small, bandwidth, "llama-7b", 64, "2x4", "1 4 16"),
        _benchmark(work, "llama-3.1-8b, batch 1", 240, small, bandwidth, "llama-3.1-8b", 1, "4x4 8x5", "1 16 64"),
        _training(work, "training step, llama-7b", 150, small, "llama-7b"),
        _tune(work, 240, small),
        _benchmark(work, "llama-7b, batch 4", 120, small, bandwidth, "llama-7b", 4, "4x4", "1 16"),
        _benchmark(work, "llama-7b, batch 16", 120, small, bandwidth, "llama-7b", 16, "4x4", "1 16"),
    ]  # fmt: skip


def _benchmark(
    work, name: str, limit: float, small: bool, bandwidth: float, shape: str, batch: int, beams: str, nodes: str
) -> Part:
    file = work / f"{shape}-{batch}.json"
    size = ["--shape", shape, "--dtype", "bfloat16", "--max-new-tokens", "64"]
    if small:
        size = ["--shape", "demo", "--layers", "1", "--dtype", "bfloat16", "--max-new-tokens", "8", "--prompt-length", "8"]
        batch, beams, nodes = min(batch, 4), beams.split()[0], "1 4"
    command = ["infer.benchmark", *size, "--head", "slim", "--batch-size", str(batch), "--tokens-per-step", "2.5", "--repeats", "3"]
    command += ["--beams", *beams.split(), "--nodes", *nodes.split(), "--bandwidth", str(bandwidth), "--output", str(file)]
    return Part(name, (sys.executable, "-m", *command), limit, file)


def _training(work, name: str, limit: float, small: bool, shape: str) -> Part:
    file = work / "training.json"
    size = ["--shape", "demo", "--layers", "1", "--rows", "2", "--row-length", "16"] if small else ["--shape", shape]
    return Part(name, (sys.executable, "-m", "scripts.training_step", *size, "--output", str(file)), limit, file)


def _tune(work, limit: float, small: bool) -> Part:
    file = work / ("settings_small.json" if small else "settings.json")
    size = ["--beams", "1x2", "--batch", "1", "--max-new-tokens", "16", "--seconds", "0.1"] if small else []
    return Part(
        "tune, the embedded pair", (sys.executable, "-m", "infer.tune", *size, "--output", str(file)), limit, file, adds=True
    )


def run_part(part: Part, seconds: float) -> dict:
    """Runs a part for so many seconds at most; what became of it: status, seconds, command, and its result or its last words. It
    ends with this process's work, however that ends."""
    began, environment = time.monotonic(), {**os.environ, **dict(part.environment)}
    found = {"command": " ".join(["python", *part.command[1:]])}
    try:
        if part.adds and part.result.is_file() and settings.is_ours(part.result.read_bytes()):
            part.result.unlink()
        process = subprocess.Popen(
            part.command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True
        )
        try:
            said, _ = process.communicate(timeout=seconds)
            status = "done" if process.returncode == 0 else f"failed with exit code {process.returncode}"
        except subprocess.TimeoutExpired:
            _kill(process)
            said, status = process.communicate()[0], f"stopped after {seconds:.0f} s"
        except BaseException:  # Ctrl-C does not reach the part, whose session is its own
            _kill(process)
            raise
        found |= {"status": status, "last_lines": said[-MAX_TAIL:]}
        if status == "done" and part.result is not None:
            found["result"] = json.loads(part.result.read_text())
    except (OSError, ValueError) as error:
        found |= {"status": f"failed: {error}"}
    return {**found, "seconds": round(time.monotonic() - began, 1)}


def _kill(process: subprocess.Popen) -> None:
    """Ends all of a part's session: only then is its device free."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run_all(parts: Sequence[Part], minutes: float) -> Iterator[tuple[str, dict]]:
    """Each part's name and what became of it, within the time for all."""
    ends = time.monotonic() + 60 * minutes
    for part in parts:
        left = ends - time.monotonic()
        if left < min(MIN_PART_SECONDS, part.limit):
            yield part.name, {"status": "skipped: no time was left", "command": " ".join(["python", *part.command[1:]])}
        else:
            yield part.name, run_part(part, min(left, part.limit))


DEVICE = """
import json, jax
device = jax.devices()[0]
memory = (device.memory_stats() or {}).get("bytes_limit")
found = {"kind": device.device_kind, "platform": device.platform, "count": jax.device_count(), "bytes": memory}
print(json.dumps({**found, "jax": jax.__version__}))
"""


def read_device() -> dict:
    """The device, asked in a process that ends: one process at a time can have a TPU.

    Raises:
      BadInput: JAX does not start here, or not in `DEVICE_SECONDS`.
    """
    command = [sys.executable, "-c", DEVICE]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=DEVICE_SECONDS)
    except subprocess.TimeoutExpired:
        sentence = f"JAX has not started on this machine within {DEVICE_SECONDS:g} s; another process may have its accelerator"
        raise BadInput(f"{sentence}, or JAX_PLATFORMS=cpu leaves it out") from None
    lines = found.stdout.strip().splitlines()
    if found.returncode or not lines:
        raise BadInput(f"JAX does not start on this machine: {(found.stderr.strip().splitlines() or ['it says nothing'])[-1]}")
    return json.loads(lines[-1])


def bandwidth_of(kind: str) -> float:
    """GB/s of a device of this kind, 0 where it is not known."""
    return next((float(rate) for name, rate in BANDWIDTHS.items() if name.lower() in kind.lower()), 0.0)


def write(folder: pathlib.Path, report: dict) -> None:
    """Both files, each in one step."""
    for name, text in (
        ("accelerator.json", json.dumps(report, indent=1) + "\n"),
        ("accelerator.md", accelerator_page.page(report)),
    ):
        with atomic.replacing(folder / name) as new:
            new.write_text(text)


def check(options: Options) -> None:
    """Raises BadInput for options out of range, and for files that were not written here."""
    if not 0 < options.minutes <= 24 * 60:
        raise BadInput(f"--minutes should be above 0 and at most 1440, not {options.minutes}")
    known = [part.name for part in plan(pathlib.Path(), options.small, 0.0)]
    unknown = [name for name in options.parts if name not in known]
    if unknown:
        raise BadInput(f"--parts: there is no {unknown[0]}; there are {'; '.join(known)}")
    claims.check_folder(options.output, "--output")
    starts = {"accelerator.json": f'{{ "written_by": "{WRITER}"', "accelerator.md": accelerator_page.FIRST_LINE}
    for name, start in starts.items():
        if options.output.is_dir():
            claims.check_replaceable(
                options.output / name, "--output", lambda found, start=start: _begins(found, start), f"a report of {WRITER}"
            )


def _begins(found: bytes, start: str) -> bool:
    return b" ".join(found.split()).startswith(start.encode())


def main(options: Options) -> int:
    """Runs the parts; the exit code is 1 where one of them is not done."""
    check(options)
    options.output.mkdir(parents=True, exist_ok=True)
    device = read_device()
    report = {
        "written_by": WRITER, "version": __version__, "device": device, "is_dry_run": options.small,
        "began": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "bandwidth": options.bandwidth or bandwidth_of(device["kind"]), "int8": INT8, "parts": {},
    }  # fmt: skip
    work = options.output / "accelerator_parts"
    work.mkdir(exist_ok=True)
    parts = [part for part in plan(work, options.small, report["bandwidth"]) if not options.parts or part.name in options.parts]
    for name, found in run_all(parts, options.minutes):
        report["parts"][name] = found
        write(options.output, report)
        print(f"{name}: {found['status']} ({found.get('seconds', 0):.0f} s)", flush=True)
    return int(any(found["status"] != "done" for found in report["parts"].values()))


def command(arguments: Sequence[str] | None = None) -> int:
    """Runs the script and returns its exit code (`infer.command`)."""
    try:
        return main(tyro.cli(Options, args=arguments, prog="scripts/accelerator.sh"))
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("\ninterrupted; the parts that were done are in the report of --output", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(command())
