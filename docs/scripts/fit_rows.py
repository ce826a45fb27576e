"""Rows of docs/data from the JSON of `infer.fit`, `infer.fit --floors` and `train.fit`.

    python -m infer.fit --model vicuna-7b --topology v5e:2x4 --floors --beams 4x4 8x5 16x4 45x4 --json > a.json
    python docs/scripts/fit_rows.py a.json ...

Each report replaces the rows of its command in `floors.csv`, `fit.csv` or `train_fit.csv`, or with --weights in
`quantised_floors.csv` and so on; the others stay. Times in ms, sizes as their columns say, of one chip.
"""

import argparse
import csv
import json
import pathlib
import shlex
import subprocess

DATA = pathlib.Path(__file__).parents[1] / "data"
GIB, MS = 1 << 30, 1e3
STAGES = ("draft", "verify", "rest", "links")


def main() -> None:
    """Reads the reports that are named and writes their rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reports", nargs="+", type=pathlib.Path)
    for file in parser.parse_args().reports:
        name, rows = read_report(json.loads(file.read_text()))
        replace_rows(DATA / name, rows)
        print(f"{file}: {len(rows)} rows in {name}")


def read_report(report: dict) -> tuple[str, list[dict]]:
    """The table that a report belongs to, and its rows there."""
    asked = options_of(report["command"])
    of_row = {"model": asked["model"], "topology": asked.get("topology", "v5e:2x4")}
    if "train.fit" in report["command"]:
        name, make = "train_fit.csv", train_row
        head = asked.get("head", "full") + (f", {asked['head-vocab']} tokens" if "head-vocab" in asked else "")
        split_over = "both" if asked.get("shard-target") == "data,model" else "model"
        of_row |= {"target_split_over": split_over, "head": head}
    elif "floors" in asked:
        name, make = "floors.csv", floors_row
        of_row |= {"usable_gib": f"{report['chip']['usable_bytes'] / GIB:.2f}", "mesh": "x".join(map(str, report["mesh"]))}
    else:
        name, make = "fit.csv", compiled_row
        of_row |= {"usable_gib": f"{report['chip']['usable_bytes'] / GIB:.2f}"}
    if "weights" in asked:
        name, of_row["weights"] = f"quantised_{name}", asked["weights"]
    command = report["command"].removesuffix(" --json")
    made = {"version": version(), "command": command}
    return name, [of_row | make(row, report["rows"]) | made for row in [*report["rows"], *report.get("node_rows", [])]]


def options_of(command: str) -> dict[str, str]:
    """The options of a command, each with the words behind it."""
    found, name = {}, ""
    for word in shlex.split(command):
        if word.startswith("--"):
            name = word[2:]
            found[name] = ""
        elif name:
            found[name] = f"{found[name]} {word}".strip()
    return found


def compiled_row(row: dict, rows: list[dict]) -> dict:
    """A row of `infer.fit`: memory, stages, and what a round costs in plain steps."""
    shape = "plain" if row["shape"] == "AR" else row["shape"]
    facts = facts_of(row) | {"shape": shape, "nodes": row["nodes"]}
    if "seconds" not in row:
        return facts
    beside = [other for other in rows if other["shape"] == "AR" and (other["mesh"], other["batch"]) == (row["mesh"], row["batch"])]
    plain, floor = beside[0], sum(row["floor_seconds"].values())
    over_floor = floor / sum(plain["floor_seconds"].values())
    return facts | {
        "whole": "yes" if row["whole"] else "no",
        "gflop": f"{row['flops'] / 1e9:.1f}",
        "gflop_by_hand": f"{sum(row['flops_by_hand'].values()) / 1e9:.1f}",
        "gb_read": f"{sum(row['bytes_by_hand'].values()) / 1e9:.2f}",
        **{f"{stage}_ms".replace("links", "send"): f"{row['seconds'][stage] * MS:.2f}" for stage in STAGES},
        "round_ms": f"{row['round_seconds'] * MS:.2f}",
        "floor_ms": f"{floor * MS:.2f}",
        "over_plain": f"{row['round_seconds'] / plain['round_seconds']:.2f}",
        "floors_over_plain": f"{over_floor:.2f}",
        "bound_by": row["verify_is_bound_by"],
        "links": f"{row['links']:.0f}",
        "link_mb": f"{row['link_bytes'] / 1e6:.1f}",
    }


def floors_row(row: dict, _: list[dict]) -> dict:
    """A row of `infer.fit --floors`, counted by hand."""
    return {
        "batch": row["batch"],
        "gib": f"{row['resident'] / GIB:.2f}",
        "plain_ms": f"{row['plain_seconds'] * MS:.3f}",
        "knee_nodes": f"{row['knee_nodes']:.0f}",
        **{f"verify_{nodes}": f"{ratio:.2f}" for nodes, ratio in row["verify_over_plain"].items()},
        **{f"round_{shape}": f"{ratio:.2f}" for shape, ratio in row["round_over_plain"].items()},
    }


def train_row(row: dict, _: list[dict]) -> dict:
    """A row of `train.fit`."""
    facts = facts_of(row)
    if "step_seconds" not in row:
        return facts
    return facts | {
        "whole": "yes" if row["whole"] else "no",
        "tflop": f"{row['flops_by_hand'] / 1e12:.2f}",
        "step_ms": f"{row['step_seconds'] * MS:.0f}",
        "floor_ms": f"{row['floor_seconds'] * MS:.0f}",
        "peak_share": f"{row['peak_share']:.2f}",
        "tokens_per_second": f"{row['tokens_per_second']:.0f}",
        "send_ms": f"{row['send_seconds'] * MS:.0f}",
        "links": f"{row['links']:.0f}",
        "link_mb": f"{row['link_bytes'] / 1e6:.0f}",
    }


def facts_of(row: dict) -> dict:
    """What every row of a compiled program has; no size where the compiler did not say one."""
    held = "" if row["held"] is None else f"{row['held'] / GIB:.2f}"
    return {"mesh": "x".join(map(str, row["mesh"])), "batch": row["batch"], "gib": held, "fits": "yes" if row["fits"] else "no"}


def replace_rows(file: pathlib.Path, rows: list[dict]) -> None:
    """Writes a table with these rows in place of those of the same command; columns are those of all rows."""
    commands = {row["command"] for row in rows}
    kept = [row for row in read_rows(file) if row["command"] not in commands]
    rows = kept + [{name: str(value) for name, value in row.items()} for row in rows]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    last = ["version", "command"]
    columns = [name for name in columns if name not in last] + last
    with file.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_rows(file: pathlib.Path) -> list[dict[str, str]]:
    """The rows of a table; none where there is no file."""
    if not file.exists():
        return []
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


def version() -> str:
    """The commit that the programs are of."""
    return subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
