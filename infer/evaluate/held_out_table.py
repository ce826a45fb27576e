"""The table of `infer.evaluate`, as Markdown. Not here: measuring anything (`metrics.py`)."""

import pathlib

COLUMNS = {
    "along_text": "along the text",
    "greedy": "generated, T = 0",
    "coupled": "T = 1 coupled",
    "independent": "T = 1 independent",
}
LEGEND = """\
Tokens per step: delivered by a target pass after the prefill, averaged.
- along the text: one round from each of many places of the text, greedy; no loop can flatter it
- generated, T = 0: greedy continuations of the text
- T = 1 coupled, independent: sampled ones; the head sees the target's noise, or does not
"""


def heading(result: dict) -> str:
    """What stands above the rows of the heads."""
    return "\n".join(
        [
            f"{result['tokens']:,} tokens of text: {result['bits_per_byte']:.3f} bits per byte; {result['loops']:.0%} of the greedy"
            " continuations end in a loop.",
            LEGEND,
            "| head | W x L | tree | " + " | ".join(COLUMNS.values()) + " |",
            "|---|---|---|" + "---|" * len(COLUMNS),
        ]
    )


def line(head: pathlib.Path, row: dict) -> str:
    """A row of a head."""
    return f"| {head} | {row['shape'].replace('x', ' x ')} | {row['tree']} | {' | '.join(f'{row[key]:.3f}' for key in COLUMNS)} |"
