"""`python -m infer.tune`: measures which beam shape, node budget, draft_top_k and head are fastest here, or that none is, and keeps
the choice in a file that the other commands read.

The options end here. Not here: measuring (`measure.py`), the file (`infer/settings.py`), what a person sees (`report.py`).
"""

import contextlib
import dataclasses
import importlib.util
import itertools
import pathlib
import sys
from typing import Literal

from infer import settings
from infer.command import INTERRUPTED, read_options, run_command
from infer.options import Weights, check_each, check_nodes, check_range, check_temperature, read_beams
from redrafter_jax.errors import BadInput
from redrafter_jax.files import claims, lock

SOFTWARE = settings.WRITER  # as a picture names it
CPU_BEAMS = tuple(f"{width}x{length}" for width in (1, 2, 4) for length in (1, 2, 3, 4, 5))
ACCELERATOR_BEAMS = tuple(f"{width}x{length}" for width in (1, 2, 4, 8, 16) for length in (2, 3, 4, 5, 6, 8))
CPU_NODES, ACCELERATOR_NODES = (3, 5, 9, 17), (4, 8, 16, 32, 64, 128)


@dataclasses.dataclass(frozen=True)
class Options:
    """Measure which settings are the fastest on this machine, and keep them for infer.generate and infer.benchmark."""

    target: str | None = None
    """Folder or hub name of the target; the embedded one if not given."""
    lora: str | None = None
    """Folder or hub name of a low-rank adapter of the target in PEFT's format, which is merged into it."""
    drafter: tuple[str, ...] = ()
    """Folder or hub name of its draft head, recurrent or Medusa's, or of several, of which the fastest is found; by default the
    embedded ones."""
    prompts: str | None = None
    """JSONL file of prompts, as in infer.generate; by default the embedded pair's own. Use your own: how much is accepted depends
    on the text."""
    batch: tuple[int, ...] = (1, 4, 16)
    """Prompts decoded together; each is tuned."""
    context: tuple[int, ...] = ()
    """Tokens of prompt and reply together at which rounds are timed; each is tuned. By default those of the prompts."""
    temperature: float = 0.0
    """0 is greedy."""
    max_new_tokens: int = 96
    """New tokens per prompt."""
    beams: tuple[str, ...] = ()
    """Beam shapes WxL to choose among, such as 1x3 4x4; by default many that suit the device."""
    nodes: tuple[int, ...] = ()
    """Node budgets to choose among, which are also the passes that are timed; by default some that suit the device. Of Medusa's
    heads, whose tree is a constant, they are all that is chosen."""
    seconds: float = 6.0
    """Seconds for which the best shapes of a batch are timed against each other, by their rounds and then by whole replies; more is
    more certain."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Number format of weights and cache; by default float32 on a CPU and bfloat16 elsewhere."""
    weights: Weights | None = None
    """How the matrices of the target's layers are stored: int8 or fp8 (eight bits and a scale per output channel, made as they are
    read), or as --dtype; by default as --dtype, or as a quantised checkpoint has them."""
    mesh: tuple[int, int] | None = None
    """Devices over which a batch (D) and the target (M) are split; by default what infer.generate would choose for each batch."""
    output: pathlib.Path | None = None
    """File for the settings; by default ~/.config/redrafter_jax/settings.json, which the other commands read by themselves."""
    plot: pathlib.Path | None = None
    """PNG file for a plot of tokens per step over the cost of a round."""
    check_grid: bool = False
    """Then measure every shape and budget, and say how near the choice is to the best. Takes many minutes."""
    cache_dir: pathlib.Path | None = None
    """Folder for compiled programs, as in infer.generate."""


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code (`infer.command`)."""
    return run_command(lambda: _main(arguments))


def _main(arguments: list[str] | None) -> int:
    options = read_options(Options, "infer.tune", arguments)
    check(options)
    path = output_of(options)
    with lock.file(path, "--output"):
        claims.check_replaceable(path, "--output", settings.is_ours, "a file of settings")
        try:
            run(options, path)
        except KeyboardInterrupt:
            print(f"\ninterrupted; what was measured is in {path}, and the same command goes on from there", file=sys.stderr)
            return INTERRUPTED
    return 0


def output_of(options: Options) -> pathlib.Path:
    """The file to write. The folder of the default one is made."""
    if options.output is not None:
        claims.check_file(options.output, "--output")
        return options.output
    path = settings.default_file()
    with contextlib.suppress(OSError):  # the lock says what is wrong with it
        path.parent.mkdir(parents=True, exist_ok=True)
    return path


def check(options: Options) -> None:
    """Raises BadInput for options out of range."""
    check_each("batch", options.batch, 1, 4096)
    if options.context:
        check_each("context", options.context, options.max_new_tokens + 1, 10**7)
    check_range("max_new_tokens", options.max_new_tokens, 16, 10**6)
    check_range("seconds", options.seconds, 0.1, 3600)
    check_temperature(options.temperature)
    check_nodes(options.nodes)
    if 1 in options.nodes:
        raise BadInput("--nodes should be from 2 up; plain decoding, which has one, is always measured")
    read_beams(options.beams)
    if "lookup" in options.drafter:
        raise BadInput("--drafter lookup has no beams to tune; infer.benchmark --with lookup measures it (a folder is ./lookup)")
    if options.target is not None and not options.drafter:
        raise BadInput("--drafter is missing: name the head for --target, or several")
    if options.plot is not None:
        claims.check_picture(options.plot, "--plot", SOFTWARE)
        if importlib.util.find_spec("matplotlib") is None:
            raise BadInput("--plot needs matplotlib; install requirements-dev.txt")


def run(options: Options, path: pathlib.Path) -> None:
    """Measures, prints and writes."""
    import jax  # only once the options are known to be good

    from infer import notes, programs
    from infer.tune import load, report
    from infer.tune.kept import Kept
    from infer.tune.measure import TunePlan
    from redrafter_jax.decode.engine import Sampling

    programs.use_cache(options.cache_dir)
    is_cpu = jax.default_backend() == "cpu"
    plan = TunePlan(
        tuple(read_beams(options.beams or (CPU_BEAMS if is_cpu else ACCELERATOR_BEAMS))),
        options.nodes or (CPU_NODES if is_cpu else ACCELERATOR_NODES),
        Sampling(options.temperature),
        options.max_new_tokens,
        options.seconds,
    )
    wanted = load.find(options, plan)
    on = {mesh: settings.machine_of(mesh, resolved.numbers) for mesh, (resolved, _) in wanted.planned.items()}
    kept = Kept(path, [list(map(dataclasses.asdict, on.values())), wanted.marks, wanted.prompts, dataclasses.asdict(plan)])
    if kept.is_resumed:
        print(f"going on with what {path} has of an interrupted run", flush=True)
    print(wanted.name, flush=True)
    resolved, _ = next(iter(wanted.planned.values()))
    notes.say(resolved.target, list(wanted.folders.values()), resolved.numbers, resolved.adapter)
    found = {mesh: _measure(options, wanted, mesh, plan, kept) for mesh in wanted.planned}
    outcomes = [outcome for measured in found.values() for _, outcome in measured]
    print(report.LEGEND)
    print("\n".join(map(report.chosen, outcomes)))
    kept.finish([entry for mesh in found for _, each in found[mesh] for entry in load.entries(wanted, on[mesh], plan, each)])
    print(f"written to {path}" + (", which infer.generate and infer.benchmark read" if options.output is None else ""), flush=True)
    if options.plot is not None:
        machine = next(iter(on.values()))
        report.plot(outcomes, options.plot, f"{wanted.name}; {machine.device}, {machine.dtype}", SOFTWARE)
    for mesh in found if options.check_grid else ():
        _check_grid(_tuner(wanted, mesh, plan, kept), found[mesh])


def _tuner(wanted, mesh: tuple[int, int], plan, kept):
    """What measures on one mesh, with the weights there. Only one is held at a time."""
    from infer.tune import load
    from infer.tune.measure import Tuner

    loaded, (_, batches) = load.load(wanted, mesh), wanted.planned[mesh]
    here = kept.at(f"mesh {mesh[0]}x{mesh[1]}")
    return Tuner(loaded.target, loaded.heads, wanted.prompts, plan, here, load.say, max(batches))


def _measure(options: Options, wanted, mesh: tuple[int, int], plan, kept) -> list[tuple]:
    """The outcomes of the batches of one mesh at each context, printed as soon as they are there."""
    from infer.tune import load, report

    resolved, batches = wanted.planned[mesh]
    machine, outcomes = settings.machine_of(mesh, resolved.numbers), []
    print(f"{machine.device}, mesh {machine.mesh}, {machine.dtype}, jax {machine.jax}", flush=True)
    tuner = _tuner(wanted, mesh, plan, kept)
    for batch, context in itertools.product(batches, load.contexts(options)):
        outcomes.append((context, tuner.tune(batch, context)))
        print(f"\n{report.table(outcomes[-1][1])}", flush=True)
    return outcomes


def _check_grid(tuner, outcomes: list[tuple]) -> None:
    from infer.tune import grid

    for context, outcome in outcomes:
        print(grid.check(tuner, outcome, context), flush=True)


if __name__ == "__main__":
    sys.exit(main())
