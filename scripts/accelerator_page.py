"""The page of `scripts/accelerator.sh`, made from its JSON alone: a dictionary in, Markdown out."""

FIRST_LINE = "# One accelerator"
STAGES = ("noise", "draft", "pack", "verify", "commit")


def page(report: dict) -> str:
    """The report for people. A part that is missing is named with what became of it."""
    device = report["device"]
    memory = f", {device['bytes'] / 2**30:.0f} GiB" if device.get("bytes") else ""
    rate = f"{report['bandwidth']:,.0f} GB/s by the data sheet" if report["bandwidth"] else "not known"
    lines = [
        FIRST_LINE,
        "",
        f"{device['kind']} ({device['platform']}{memory}), jax {device['jax']}, redrafter_jax {report['version']},"
        f" {report['began']}; memory bandwidth: {rate}. Printed by `scripts/accelerator.sh`;"
        " all figures are in accelerator.json beside this page.",
        "",
    ]
    if report["is_dry_run"]:
        lines += ["**A dry run at small shapes: the figures say nothing.**", ""]
    lines += _table("Parts", ("part", "what became of it", "seconds"), map(_part_row, report["parts"].items()))
    lines += [f"int8: {report['int8']}.", ""]
    results = {name: found["result"] for name, found in report["parts"].items() if "result" in found}
    benchmarks = {name: result for name, result in results.items() if "autoregressive" in result}
    lines += _plain(benchmarks) + _nodes(benchmarks) + _rounds(benchmarks) + _training(results) + _tuned(results)
    return "\n".join(lines).rstrip() + "\n"


def _part_row(item: tuple[str, dict]) -> tuple[str, ...]:
    name, found = item
    last = (found.get("last_lines", "").strip().splitlines() or [""])[-1]
    is_told = name == "exactness" or found["status"].startswith("failed")
    words = f": {last.strip('= ')[:160]}" if is_told and last else ""
    return name, (found["status"] + words).replace("|", "/"), f"{found.get('seconds', 0):.0f}"


def _table(title: str, head: tuple[str, ...], rows) -> list[str]:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    if not lines:
        return []
    return [f"## {title}", "", "| " + " | ".join(head) + " |", "|" + "---|" * len(head), *lines, ""]


def _plain(benchmarks: dict) -> list[str]:
    rows = [
        (
            name,
            f"{found['autoregressive']['tokens_per_second']:,.1f}",
            f"{found['autoregressive']['round_seconds'] * 1e3:.3f}",
            f"{found['autoregressive']['read_rate'] / 1e9:,.0f}",
            f"{found['autoregressive']['read_rate'] / found['autoregressive']['yardstick_rate']:.0%}",
        )
        for name, found in benchmarks.items()
    ]
    return _table("Plain decoding", ("shape, bfloat16", "tokens/s", "step, ms", "GB/s", "of the yardstick"), rows)


def _nodes(benchmarks: dict) -> list[str]:
    rows = [
        (name, ", ".join(f"{count}: {seconds * 1e3:.3f}" for count, seconds in found["node_seconds"].items()))
        for name, found in benchmarks.items()
    ]
    return _table("A pass over N nodes per row", ("shape", "N: ms"), rows)


def _rounds(benchmarks: dict) -> list[str]:
    rows = [
        (
            name,
            row["shape"],
            f"{row['tokens_per_step']:.2f}",
            f"{row['speedup']:.2f}x",
            f"{row['round_seconds'] * 1e3:.3f}",
            f"{row['round_over_autoregressive']:.2f}",
            ", ".join(f"{stage} {row['stage_seconds'][stage] * 1e3:.3f}" for stage in STAGES if stage in row["stage_seconds"]),
            f"{row['identical']} of {row['rows']}",
        )
        for name, found in benchmarks.items()
        for row in found["rows"]
    ]
    head = ("shape", "W x L", "tokens per step (asked for)", "speed-up", "round, ms", "over a step", "stages, ms", "identical")
    return _table("Rounds, with synthetic acceptance", head, rows)


def _training(results: dict) -> list[str]:
    rows = [
        (
            f"{found['shape']}, {found['head']} head",
            f"{found['rows']} x {found['row_length']}",
            f"{found['median_seconds']:.3f}",
            f"{found['tokens_per_second']:,.0f}",
            f"{(found['argument_bytes'] + found['temporary_bytes']) / 2**30:.1f}",
        )
        for found in results.values()
        if "median_seconds" in found
    ]
    return _table("A training step of the head", ("target", "batch", "seconds", "tokens/s", "GiB"), rows)


def _tuned(results: dict) -> list[str]:
    rows = []
    for found in results.values():
        for entry in found.get("entries", ()):
            choice, head = entry["choice"], entry["head_name"].rpartition("/")[2]
            what = f"{choice['width']}x{choice['length']}" + (f", {choice['nodes']} nodes" if choice["nodes"] else "")
            batch, says = str(entry["conditions"]["batch"]), "" if choice["speedup"] > 1 else " (do not speculate)"
            rows.append((batch, head, what, f"{choice['tokens_per_step']:.2f}", f"{choice['speedup']:.2f}x{says}"))
    return _table("Tuned, the embedded pair", ("batch", "head", "W x L", "tokens per step", "speed-up"), rows)
