"""The table of `infer.evaluate`, as Markdown. Not here: measuring anything (`metrics.py`)."""

import pathlib

COLUMNS = {
    "along_text": "along the text",
    "greedy": "generated, T = 0",
    "coupled": "T = 1 coupled",
    "independent": "T = 1 independent",
}


def heading(result: dict) -> str:
    """What stands above the rows of the heads."""
    return "\n".join(
        [
            f"{result['tokens']:,} tokens of text: {result['bits_per_byte']:.3f} bits per byte; {result['loops']:.0%} of the greedy"
            " continuations end in a loop.",
            "Tokens per step, the +1 counted:",
            "",
            "| head | W x L | tree | " + " | ".join(COLUMNS.values()) + " |",
            "|---|---|---|" + "---|" * len(COLUMNS),
        ]
    )


def line(head: pathlib.Path, row: dict) -> str:
    """A row of a head."""
    return f"| {head} | {row['shape'].replace('x', ' x ')} | {row['tree']} | {' | '.join(f'{row[key]:.3f}' for key in COLUMNS)} |"
