"""Checks of the options of `infer.evaluate` by themselves, and what they name that needs no JAX: methods and suites."""

import dataclasses
import importlib.util
import pathlib

from infer import templates
from infer.evaluate import methods, suites
from infer.evaluate.held_out import MAX_CONTEXTS
from infer.options import changed, check_number, check_once, check_range, check_temperature, flag
from redrafter_jax.errors import BadInput
from redrafter_jax.files import claims

COMMAND = "python -m infer.evaluate"
SOFTWARE = "redrafter_jax infer.evaluate"  # as a picture names it
MARK = f"<!-- {COMMAND} -->"  # begins report.md
RESULTS, REPORT = "results.json", "report.md"
PLOTS = ("speedup_by_category.png", "tau_by_temperature.png", "acceptance_by_position.png", "tau_by_bytes.png")
OF_METHODS = ("dtype", "mesh", "method", "suite", "categories", "limit", "chat_template", "chat_template_kwargs",
              "max_new_tokens", "temperature", "seed", "ignore_eos", "batch_size", "cache_dir", "output")  # fmt: skip
OF_HEADS = ("beams", "trees", "prompts", "new_tokens")
OF_TEXT = ("glob", "contexts")
MAX_LIMIT = 10**6


@dataclasses.dataclass(frozen=True)
class Asked:
    """The methods and the suites that the options name; template: Jinja source that messages are written with; template_kwargs:
    further variables of it."""

    methods: list[methods.Method]
    suites: list[suites.Suite]
    template: str | None
    template_kwargs: dict[str, object] = dataclasses.field(default_factory=dict)


def together(options) -> None:
    """Raises BadInput for options of the command's `Options` that belong to the other report."""
    if options.drafter:
        wrong, where = changed(options, OF_METHODS), "methods and suites, and --drafter names heads for held-out text"
    else:
        wrong, where = changed(options, OF_HEADS), "the heads of --drafter"
    if wrong:
        raise BadInput(f"{flag(wrong[0])} is for {where}; leave out one of them")
    of_text = changed(options, OF_TEXT)
    if of_text and not options.text:
        raise BadInput(f"{flag(of_text[0])} goes with --text")
    if options.text and not options.drafter and not options.method:
        raise BadInput("--text needs what drafts along it: give --drafter HEAD, or --method")


def read(options) -> Asked:
    """Checks the options of a comparison of methods; its methods, its suites and its template.

    Raises:
      BadInput: one sentence that names the option.
    """
    for name in ("max_new_tokens", "batch_size", "seed"):
        check_number(name, getattr(options, name))
    check_range("limit", options.limit, 1, MAX_LIMIT)
    check_range("contexts", options.contexts, 1, MAX_CONTEXTS)
    if not options.temperature:
        raise BadInput("--temperature should be at least one number")
    for temperature in options.temperature:
        check_temperature(temperature)
    check_once("temperature", options.temperature, options.temperature)
    check_once("suite", options.suite, options.suite)
    if not options.suite:
        raise BadInput(f"--suite should be a file, or {suites.EMBEDDED}")
    embedded = [f"{kind}:{methods.EMBEDDED}" for kind in methods.WITH_FOLDER] if options.target is None else []
    found = methods.read_all(options.method or [*embedded, "lookup"])
    if options.output is not None:
        check_output(options.output)
    template = None if options.chat_template is None else templates.read(options.chat_template)
    kwargs = templates.read_kwargs(options.chat_template_kwargs)
    return Asked(found, [suites.read(name, options.categories, options.limit) for name in options.suite], template, kwargs)


def check_output(folder: pathlib.Path) -> None:
    """Raises BadInput where the folder cannot be written, or has files of these names that are not of this command."""
    claims.check_folder(folder, "--output")
    if not folder.exists():
        return
    claims.check_replaceable(folder / RESULTS, "--output", _is_result, f"a result of {COMMAND}")
    claims.check_replaceable(folder / REPORT, "--output", lambda begins: begins.startswith(MARK.encode()), f"a report of {COMMAND}")
    for name in PLOTS:
        claims.check_picture(folder / name, "--output", SOFTWARE)


def has_matplotlib() -> bool:
    """Whether plots can be drawn."""
    return importlib.util.find_spec("matplotlib") is not None


def _is_result(beginning: bytes) -> bool:
    return b" ".join(beginning.split()).startswith(f'{{ "command": "{COMMAND}'.encode())
