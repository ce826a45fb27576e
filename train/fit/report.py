"""The table and the recommendation of `train.fit`, as lines of text. What `infer.fit` prints too is in `infer/fitting.py`."""

from infer.fitting import MAX_RETRIES, facts_of, gib, head_of
from infer.options import name_formats
from train.fit.points import StepSubject

COLUMNS = (
    ("mesh", 5), ("batch", 5), ("GiB/chip", 8), ("fits", 4), ("TFLOP", 7), ("step ms", 8), ("floor ms", 8), ("of peak", 7),
    ("tokens/s", 9), ("send ms", 7), ("links", 6), ("MB", 8),
)  # fmt: skip


def heading(subject: StepSubject, model: str, topology: str) -> str:
    """The lines above the table."""
    recipe, slice_ = subject.recipe, subject.slice
    head = head_of(
        recipe.method, recipe.head, recipe.head_vocab, recipe.positions, recipe.blocks, recipe.bigram, recipe.gated, recipe.depths
    )
    too = f" and the target by adapters of rank {recipe.lora_rank}" if recipe.trains_target else ""
    numbers = name_formats(subject.dtype, subject.target.weight_format)
    return (
        f"{model}, {head} in float32{too}, target in {numbers}, rows of {recipe.row_length} tokens,"
        f" {recipe.positions} positions, on {len(slice_.devices)} chips of {slice_.chip.name} ({topology},"
        f" {gib(slice_.chip.usable_bytes)} GiB usable each)\nAll figures but tokens/s are of one chip."
    )


def cells_of(row: dict) -> list[str]:
    """A row as cells. Figures are of one chip, except the tokens per second."""
    cells, is_all = facts_of(row, "" if row["whole"] else "~")
    if is_all:
        return cells
    return cells + [
        f"{row['flops_by_hand'] / 1e12:.2f}", f"{row['step_seconds'] * 1e3:.1f}", f"{row['floor_seconds'] * 1e3:.1f}",
        f"{row['peak_share']:.0%}", f"{row['tokens_per_second']:.0f}", f"{row['send_seconds'] * 1e3:.1f}",
        f"{row['links']:.0f}", f"{row['link_bytes'] / 1e6:.1f}",
    ]  # fmt: skip


def advised(best: dict | None, refused: list[dict], split_over: str) -> str:
    """The recommendation, in options of `train.main`; ``split_over`` as its --shard-target."""
    if best is None:
        what = f"none of the last {len(refused)} lines, with all layers compiled, fits" if refused else "nothing fits"
        what += ", and others were not tried" if len(refused) > MAX_RETRIES else ""
        more = "" if split_over == "data,model" else "--shard-target data,model, "
        return f"{what}; take {more}more chips, fewer rows at once (--batch), or shorter rows (--row-length)"
    data, model = best["mesh"]
    mesh = f"--mesh {data} {model}" + (" --shard-target data,model" if split_over == "data,model" else "")
    return f"{mesh} with {best['batch']} rows at once has all layers compiled and fits"
