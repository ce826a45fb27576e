"""The results of methods x suites for people: tables as Markdown, and the files of `--output`. Not here: plots (`plots.py`)."""

import json
import pathlib
import sys
from collections.abc import Mapping, Sequence

from infer.evaluate.checks import MARK, PLOTS, REPORT, RESULTS, SOFTWARE, has_matplotlib
from infer.options import name_formats

LEGEND = """\
tau: tokens per step, delivered by a target pass after the prefill, with its standard error over conversations; speed-up:
tokens/s over plain decoding's, prefill included, on the same prompts in turn, with its standard error; round: seconds of a draft
and a target pass, in plain steps; at i: share of rounds that accepted at least i drafts; same: replies whose tokens are plain
decoding's."""

NOTES = {  # by whether the rule is exact
    True: "\\* need not be the same: by this rule the tokens depend on the drafts too, and their distribution is the target's.",
    False: "\\** this rule changes the distribution of the text.",
}


def write(result: Mapping, folder: pathlib.Path) -> None:
    """Writes results.json, report.md and, with matplotlib, the plots."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RESULTS).write_text(json.dumps(result, indent=1) + "\n")
    pictures = PLOTS if has_matplotlib() else ()
    shown = "".join(f"\n![{name.removesuffix('.png').replace('_', ' ')}]({name})\n" for name in pictures)
    (folder / REPORT).write_text(f"{MARK}\n{markdown(result)}\n{shown}")
    if not pictures:
        print("note: plots need matplotlib (redrafter-jax[plots]); none are written", file=sys.stderr)
        return
    from infer.evaluate import plots

    for name, draw in zip(PLOTS, plots.ALL, strict=True):
        draw(result).savefig(folder / name, dpi=120, metadata={"Software": SOFTWARE})


def markdown(result: Mapping) -> str:
    """All tables."""
    numbers = name_formats(result["dtype"], result["weights"])
    size = f"{result['target_parameters'] / 1e6:.1f} M parameters, {result['target_bytes'] / 1e6:.1f} MB"
    parts = [
        "# Methods side by side",
        f"`{result['command']}`",
        f"Target: {result['target']}, {size} in {numbers}; {result['device']}, load average {result['load_average']:.1f}"
        f" before it began; {result['max_new_tokens']} new tokens, {result['batch_size']} at a time.",
        LEGEND,
        _methods(result["methods"]),
    ]
    for suite, temperature in dict.fromkeys((row["suite"], row["temperature"]) for row in result["rows"]):
        rows = [row for row in result["rows"] if (row["suite"], row["temperature"]) == (suite, temperature)]
        parts += [f"## {suite}, temperature {temperature:g}", _in_all([row for row in rows if row["category"] is None])]
        parts.append(_by_category([row for row in rows if row["category"] is not None]))
    if "along_text" in result:
        along = result["along_text"]
        places = f"One greedy round from each of {along['contexts']} places in {along['tokens']:,} tokens."
        parts.append(f"## Along held-out text\n\n{places}")
        parts.append(_table(["method", "tau"], [[name, f"{tau:.3f}"] for name, tau in along["tokens_per_step"].items()]))
    parts += [f"Left out: {sentence}." for sentence in result["refused"]]
    parts += [f"**{sentence}**" for sentence in result["differences"]]
    return "\n\n".join(parts)


def _methods(methods: Sequence[Mapping]) -> str:
    rows = []
    for each in methods:
        size = _size(each["drafter_parameters"], each["drafter_bytes"])
        rows.append([each["name"], str(each["nodes"]), str(each["length"]), each["rule"], *size])
    return _table(["method", "nodes", "deep", "rule", "drafter, M parameters", "MB"], rows)


def _size(parameters: int, size: int) -> list[str]:
    return [f"{parameters / 1e6:.2f}", f"{size / 1e6:.2f}"] if parameters else ["-", "-"]


def _in_all(rows: Sequence[Mapping]) -> str:
    deepest = max(len(row["acceptance_by_position"]) for row in rows)
    depths = sorted({1, 2, 3, 4, deepest} & set(range(1, deepest + 1)))
    head = ["method", "tau", *(f"at {i}" for i in depths), "tokens/s", "speed-up", "round", "same"]
    cells = []
    for row in rows:
        shares = row["acceptance_by_position"]
        at = [f"{shares[i - 1]:.2f}" if i <= len(shares) else "-" for i in depths]
        same = f"{row['identical_replies']}/{row['replies']}" + ("" if row["same_text"] else " *" if row["exact"] else " **")
        speed = _number(row["tokens_per_second"], 1)
        round = _number(row["round_over_plain"], 2)
        cells.append([row["method"], _tau(row), *at, speed, _speedup(row), round, same])
    notes = [NOTES[row["exact"]] for row in rows if not row["same_text"]]
    return "\n\n".join([_table(head, cells), *dict.fromkeys(notes)])


def _by_category(rows: Sequence[Mapping]) -> str:
    """Speed-up, and tau in brackets, of each method in each category."""
    names = list(dict.fromkeys(row["method"] for row in rows if row["kind"] != "plain"))
    found = {(row["category"], row["method"]): row for row in rows}
    counts = {row["category"]: row["conversations"] for row in rows}
    cells = [
        [category, str(count)]
        + [f"{_speedup(found[category, name])} ({_number(found[category, name]['tokens_per_step'], 2)})" for name in names]
        for category, count in counts.items()
    ]
    return _table(["category", "conversations", *(f"{name}: speed-up (tau)" for name in names)], cells)


def _tau(row: Mapping) -> str:
    return _with_error(row["tokens_per_step"], row["tokens_per_step_error"])


def _speedup(row: Mapping) -> str:
    return _with_error(row["speedup"], row["speedup_error"])


def _with_error(value: float | None, error: float | None) -> str:
    return _number(value, 2) + (f" ± {error:.2f}" if error is not None and error > 1e-9 else "")


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
