"""`python -m infer.benchmark`: how much faster speculative decoding is than plain decoding, per beam shape, and why.

All trials run in turn in one process, and medians are reported. The options end here, as a `BenchmarkTask`. Not here: timing
(`infer/stages.py`), random pairs (`infer/synthetic.py`), the table and the plot (`report.py`).
"""

import dataclasses
import json
import pathlib
import sys
from typing import Annotated, ClassVar, Literal

import tyro

from infer import drafting, settings
from infer.benchmark import checks
from infer.benchmark.checks import COMMAND, SOFTWARE
from infer.command import read_options, run_command
from infer.options import Weights, read_beams
from redrafter_jax.decode.request import DRAFT_TOP_K, Limits, Sampling

CPU_BEAMS = ("1x2", "1x3", "1x4", "2x2", "2x3", "4x4", "8x5")
ACCELERATOR_BEAMS = ("1x4", "4x4", "8x5", "16x4", "45x4")
Shapes = Literal[
    "demo", "llama-7b", "llama-13b", "llama-33b", "llama-3.1-8b", "llama-3.1-70b", "smollm-135m", "smollm-360m", "qwen3-0.6b",
    "qwen3-1.7b", "qwen3-4b", "qwen3-8b", "qwen3-32b", "qwen3-30b-a3b", "gemma-3-1b", "gemma-3-4b", "gemma-3-27b", "mistral-7b",
    "phi-4-mini", "llama-3.2-1b", "llama-3.2-3b",
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Options:
    """Measure speculative against plain decoding. Without options: the embedded pair and its twenty prompts."""

    GROUPS: ClassVar = {
        "models": "target",
        "random_models": "shape",
        "drafting": "beams",
        "sampling": "temperature",
        "prompts_measured": "prompts",
        "measuring": "repeats",
        "machine": "dtype",
        "report": "output",
    }
    VALUES: ClassVar = {
        "target": "MODEL", "lora": "FOLDER", "drafter": "HEAD", "lookup_match": "LONGEST SHORTEST", "prompts": "FILE",
        "output": "FILE",
        "plot": "FILE", "mesh": "D M", "beams": "WxL ...", "node_budget": "N", "draft_top_k": "K", "top_k": "K", "top_p": "P",
        "temperature": "T",
    }  # fmt: skip
    EXAMPLES: ClassVar = (
        "python -m infer.benchmark",
        "python -m infer.benchmark --target MODEL --drafter HEAD --prompts in.jsonl --plot map.png",
        "python -m infer.benchmark --shape llama-7b --dtype bfloat16 --tokens-per-step 3.5",
    )

    target: str | None = None
    """Folder or hub name of the target; the embedded one if not given."""
    lora: str | None = None
    """Folder or hub name of a low-rank adapter of the target in PEFT's format, which is merged into it."""
    drafter: str | None = None
    """Folder or hub name of its head. `lookup`: no head; what followed the last tokens where they stood before is drafted (a
    folder that is called lookup is ./lookup)."""
    beside: Annotated[Literal["lookup"] | None, tyro.conf.arg(name="with")] = None
    """lookup: measure a lookup too, alone and with each of the beam shapes at once."""
    lookup_length: int | None = None
    """Tokens that a lookup drafts in a round; by default 6."""
    lookup_match: tuple[int, int] | None = None
    """LONGEST SHORTEST: how many of the last tokens a lookup tries to find, and has to find; by default 8 and 2."""
    shape: Shapes | None = None
    """Instead of a pair on disk: random weights of this shape, and SYNTHETIC ACCEPTANCE (drafts right as often as asked for)."""
    layers: int | None = None
    """With --shape: fewer layers than it has, to fit a small device; the report says so."""
    head: Literal["slim", "best", "full"] | None = None
    """Which of the embedded heads, or which random one; by default what suits the device."""
    head_vocab: int = 0
    """With --shape: tokens that the random head can draft; 0: all of the target's."""
    rates: tuple[float, ...] = ()
    """With --shape: the probability that the draft is right at depth 1, 2, ...; the last one goes for all deeper ones."""
    tokens_per_step: float = 4.2
    """With --shape and without --rates: the same probability at every depth, such that this comes out."""
    beams: tuple[str, ...] = ()
    """Beam shapes WxL to measure, such as 1x3 4x4; by default 1x2 1x3 1x4 2x2 2x3 4x4 8x5 on a CPU, and 1x4 4x4 8x5
    16x4 45x4 elsewhere, and what infer.tune found."""
    settings: str | None = None
    """File of settings that infer.tune wrote; by default ~/.config/redrafter_jax/settings.json, if it is there; `none`: no file."""
    node_budget: int = 0
    """Nodes that the target scores per pass at most, the root included; 0: all."""
    tree: Literal["search", "beams"] = "search"
    """search: everything the beam search kept; beams: the final beams alone, as in the paper."""
    draft_top_k: int = DRAFT_TOP_K
    """Cut each draft distribution to its k likeliest tokens, or W if that is more; 0 is off."""
    temperature: float = 0.0
    """0 is greedy."""
    top_k: int = 0
    """Sample among the k likeliest tokens; 0 is off."""
    top_p: float = 1.0
    """Sample among the likeliest tokens that together have this probability; 1 is off."""
    acceptance: Literal["coupled", "independent", "rejection", "typical"] = "coupled"
    """As in infer.generate."""
    prompts: str | None = None
    """JSONL file of prompts, as in infer.generate; by default the embedded pair's own, or random ids with --shape."""
    prompt_length: int = 64
    """With --shape: tokens of each random prompt."""
    prompt_count: int = 1
    """With --shape: random prompts per row of a batch."""
    max_new_tokens: int = 128
    """New tokens per prompt."""
    batch_size: int = 1
    """Prompts decoded together."""
    repeats: int = 3
    """Times that everything is timed; medians are reported."""
    nodes: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128)
    """Numbers of nodes N for which a pass of the target is timed without any drafting."""
    against_transformers: bool = False
    """Time transformers.generate (torch) on the same weights too: greedy, one prompt at a time."""
    bandwidth: float = 0.0
    """Memory bandwidth of the device in GB/s, to compare the plain loop with; 0: with what a sum over all weights reaches."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Number format of weights and cache; by default float32 on a CPU and bfloat16 elsewhere."""
    weights: Weights | None = None
    """How the matrices of the target's layers are stored: int8 or fp8 (eight bits and a scale per output channel, made as they are
    read), or as --dtype; by default as --dtype, or as a quantised checkpoint has them."""
    mesh: tuple[int, int] | None = None
    """Devices over which a batch (D) and the target (M) are split; by default what infer.generate would choose."""
    output: pathlib.Path | None = None
    """JSON file for the whole report."""
    plot: pathlib.Path | None = None
    """PNG file for a plot of speed-up and tokens per step over W and L."""


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code (`infer.command`)."""
    return run_command(lambda: _main(arguments))


def _main(arguments: list[str] | None) -> None:
    options = read_options(Options, "infer.benchmark", arguments)
    checks.check(options)
    _write(run(options), options)


def _write(report: dict, options: Options) -> None:
    if options.output is not None:
        options.output.write_text(json.dumps(report, indent=1) + "\n")
    if options.plot is not None:
        from infer.benchmark import report as tables

        tables.plot(report, options.plot, SOFTWARE)


def run(options: Options) -> dict:
    """Measures and prints; returns the whole report."""
    import jax  # only once the options are known to be good

    from infer import pair
    from infer.benchmark import cases as subject
    from infer.benchmark import report as tables
    from infer.benchmark import transformers, tuning
    from infer.benchmark import trials as trial
    from redrafter_jax.devices import placement

    dtype, weight_format = pair.number_formats(options.dtype, options.weights)
    options = dataclasses.replace(options, dtype=dtype)
    task = tuning.apply(
        task_of(options, jax.default_backend(), weight_format), settings.source_of(options.settings), bool(options.beams)
    )
    what = subject.subject_of(task)
    mesh = what.target.norm[...].sharding.mesh.shape
    theirs = transformers.Transformers(what.folder, options.dtype) if options.against_transformers else None
    report = {
        "command": " ".join([COMMAND, *sys.argv[1:]]),  # stands first: `checks.is_report`
        "device": f"{jax.devices()[0].device_kind}, mesh {mesh['data']} x {mesh['model']}, jax {jax.__version__}",
        "mesh_because": what.mesh_because,
        "subject": what.name,
        "prompts": what.prompts,
        "parameters": placement.parameters_of(what.target),
        "head_parameters": placement.parameters_of(what.drafter),
        "acceptance": "synthetic" if options.shape else "real",
        "options": {name: str(value) for name, value in dataclasses.asdict(options).items()},
    }
    print(tables.heading(report), flush=True)
    plain = trial.plain_case(what)
    cases = [trial.case(what, way, plain, trial.rates_of(task.rates, way.length)) for way in task.ways]
    plain_trials, *trials = trial.run_all([plain, *cases], options.repeats)
    report["autoregressive"] = trial.plain_row(what, plain, plain_trials, options.bandwidth, options.repeats)
    print(tables.plain(report["autoregressive"]), flush=True)
    print(tables.legend(), flush=True)
    report["rows"], widest = [], max(len(way.name) for way in task.ways)
    for case, outcomes in zip(cases, trials, strict=True):
        report["rows"].append(trial.row(what, case, outcomes, plain_trials, options.repeats))
        print(tables.row(report["rows"][-1], len(report["rows"]) == 1, widest), flush=True)
    print(tables.out_of_reach(report["rows"], task.rates), end="")
    report["node_seconds"] = trial.node_curve(what, options.nodes, options.repeats)
    print(tables.nodes(report["node_seconds"]))
    if theirs is not None:
        report["transformers"] = trial.against(what, plain, theirs, options.repeats)
        print(tables.transformers(report["transformers"]))
    return report


def task_of(options: Options, platform: str, weight_format: str | None = None):
    """The checked options as a `task.BenchmarkTask`, except what is timed and where the report goes."""
    from infer.benchmark import task
    from infer.proposers import lookup_of
    from redrafter_jax.decode.propose.recurrent import Shape

    head, has_head = options.head, drafting.has_head(options.drafter)
    models = task.Files(options.target, options.drafter if has_head else None, head, has_head, options.prompts, options.lora)
    if options.shape is not None:
        rates, prompts = task.Rates(options.rates, options.tokens_per_step), (options.prompt_length, options.prompt_count)
        models = task.Random(options.shape, options.layers, head, options.head_vocab, *prompts, rates)
    lookup = drafting.wanted_lookup(options.drafter, options.beside, options.lookup_length, options.lookup_match)
    names = options.beams or (CPU_BEAMS if platform == "cpu" else ACCELERATOR_BEAMS)
    searches = [Shape(*beam, options.node_budget, options.tree, options.draft_top_k) for beam in read_beams(names)]
    ways = task.combine(searches if has_head else [], lookup_of(lookup))
    sampling = Sampling(options.temperature, options.top_k, options.top_p, options.acceptance)
    limits = Limits(options.max_new_tokens)
    return task.BenchmarkTask(models, ways, sampling, limits, options.batch_size, options.dtype, options.mesh, weight_format)


if __name__ == "__main__":
    sys.exit(main())
