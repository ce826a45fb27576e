"""The tree of a round as a picture, by matplotlib: what was accepted, what was drafted in vain, what the target chose itself."""

from infer.display.rounds import DraftedTree
from redrafter_jax.errors import BadInput

ACCEPTED, REFUSED, CHOSEN = "#2ea043", "#8b949e", "#d29922"
ROW_INCHES, DEPTH_INCHES = 0.34, 1.7
MAX_LETTERS = 14  # of a token


def plot_tree(tree: DraftedTree):
    """A matplotlib Figure: depth from left to right, the likeliest child on top.

    Raises:
      BadInput: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise BadInput("plots need matplotlib; install redrafter-jax[plots]") from None
    depth, row = tree.depth, rows(tree)
    deepest, count = max(depth) + 1, max(row) + 1
    size = (DEPTH_INCHES * (deepest + 1), max(2.2, ROW_INCHES * (count + 2)))
    axes = Figure(figsize=size, layout="constrained").subplots()
    for node in range(1, len(tree.tokens)):
        accepted, parent = node in tree.path, tree.parent[node]
        style = {"color": ACCEPTED, "linewidth": 2.2} if accepted else {"color": REFUSED, "linewidth": 0.9}
        axes.plot([depth[parent], depth[node]], [row[parent], row[node]], zorder=1, **style)
        _write(axes, tree.texts[node], depth[node], row[node], ACCEPTED if accepted else REFUSED, tree.probability[node])
    _write(axes, tree.texts[0], 0, row[0], "black")
    if tree.own_choice is not None:
        _add_own_choice(axes, tree, depth, row)
    axes.set_xlim(-0.4, deepest + 0.6)
    axes.set_ylim(count - 0.3, -1.5)
    axes.set_yticks([])
    axes.set_xticks(range(deepest + 1))
    axes.set_xlabel("depth (0: the newest token of the text)")
    axes.spines[["left", "right", "top"]].set_visible(False)
    axes.set_title(sentence(tree), fontsize="medium", loc="left")
    return axes.figure


def sentence(tree: DraftedTree) -> str:
    """What the round did, in words."""
    got = f"{len(tree.delivered)} token{'s' * (len(tree.delivered) != 1)} from one target pass"
    return f"{len(tree.tokens) - 1} drafted, {len(tree.path)} accepted (green), then the target's own choice (yellow): {got}"


def rows(tree: DraftedTree) -> list[int]:
    """Of each node the row that it is drawn in: a node's first child shares its row, every other one opens a new row."""
    children = [[] for _ in tree.tokens]
    for node in range(1, len(tree.tokens)):
        children[tree.parent[node]].append(node)
    row, used = [0] * len(tree.tokens), 0
    waiting = [(0, True)]
    while waiting:
        node, is_first = waiting.pop()
        if not is_first:
            used += 1
        row[node] = used
        likeliest = sorted(children[node], key=lambda child: -tree.probability[child])
        waiting += [(child, number == 0) for number, child in reversed(list(enumerate(likeliest)))]
    return row


def _add_own_choice(axes, tree: DraftedTree, depth: list[int], row: list[int]) -> None:
    """The token that the target chose behind the accepted path, above it, where no drafted node is."""
    last = tree.path[-1] if tree.path else 0
    at = (depth[last] + 1, row[last] - 0.95)
    axes.plot([depth[last], at[0]], [row[last], at[1]], ":", color=CHOSEN, linewidth=2, zorder=1)
    _write(axes, tree.texts[-1], *at, CHOSEN)


def _write(axes, text: str, x: float, y: float, color: str, probability: float | None = None) -> None:
    short = text if len(text) <= MAX_LETTERS else text[: MAX_LETTERS - 1] + "\u2026"
    label = short if probability is None else f"{short}  {probability:.0%}"
    box = {"boxstyle": "round,pad=0.25", "facecolor": "white", "edgecolor": color, "linewidth": 1.2}
    axes.text(x, y, label, fontsize=8, family="monospace", ha="center", va="center", bbox=box, parse_math=False, zorder=2)
