"""What a notebook shows: replies as HTML, the tree of a round, the sentence about devices."""

import html.parser

import pytest

import infer
from infer.display import benchmark_plots, markup, rounds, session, stream, tree_plot, ways
from infer.pair import Completion
from redrafter_jax.decode.markup import mark_drafts
from redrafter_jax.decode.propose.lookup import Lookup
from redrafter_jax.decode.propose.recurrent import Shape
from redrafter_jax.decode.reply import Reply
from redrafter_jax.decode.request import Sampling
from redrafter_jax.errors import BadInput
from tests.support import MODELS
from tests.texts import with_tokenizer

PROMPT = "def fib(n):"
REPLY = Reply([5, 6, 7], [False, True, False], "length", rounds=1, accepted_histogram=[0, 1], seconds=0.1, seed=0)


class Page(html.parser.HTMLParser):
    """The text of a page that stands in `pre`, and the part of it that is marked."""

    def __init__(self, page: str):
        super().__init__()
        self.open, self.text, self.marked, self.below = [], "", [], ""
        self.feed(page)
        self.text = self.text.removeprefix("\n")  # as a browser does

    def handle_starttag(self, tag, _):
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "pre" not in self.open:
            self.below += data
            return
        self.text += data
        if "mark" in self.open:
            self.marked.append(data)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = with_tokenizer(tmp_path_factory.mktemp("pair") / "target")
    return infer.load(str(folder), str(MODELS / "drafter_mha_rnn"), Shape(2, 3))


@pytest.fixture(scope="module")
def sampled(pair) -> Completion:
    return pair.complete(PROMPT, 16, temperature=0.8, seed=3)


def test_accepted_drafts_are_marked_and_explained():
    page = Page(mark_drafts([("a ", False), ("<b>", True), ("&c", True), ("", True)], "3 < 4", before="<p>"))
    assert Page(mark_drafts([("\na", False)], "")).text == "\na"
    assert page.text == "<p>a <b>&c" and page.marked == ["<b>", "&c"]
    assert "drafted and accepted" in page.below and "the target's own choice" in page.below and "3 < 4" in page.below


def test_a_reply_shows_its_ids():
    page = Page(REPLY._repr_html_())
    assert page.text == "5 6 7 " and page.marked == ["6 "]
    assert "3 tokens, 1 target passes after the prompt's, 2.00 tokens per step; ended by length." in page.below


def test_a_completion_shows_its_text(sampled):
    page = Page(sampled._repr_html_())
    assert page.text == sampled.text == "".join(sampled.pieces)
    drafted = [text for text, is_draft in zip(sampled.pieces, sampled.reply.drafted, strict=True) if is_draft and text]
    assert page.marked == drafted and drafted


def test_a_completion_without_a_tokenizer_shows_ids():
    assert Page(Completion(None, REPLY)._repr_html_()).text == "5 6 7 "


def test_a_text_that_was_cut_is_shown_cut():
    page = Page(markup.completion("ab", REPLY, ["a", "bcd", "e"]))
    assert page.text == "ab" and page.marked == ["b"]


def test_a_text_without_pieces_is_shown_plain():
    page = Page(markup.completion("abc", REPLY, []))
    assert page.text == "abc" and page.marked == []


def test_streaming_shows_the_prompt_and_returns_the_completion(pair, sampled, monkeypatch):
    shown = []

    class Area:
        def update(self, page):
            shown.append(page.data)

    monkeypatch.setattr("IPython.display.display", lambda *_, **__: Area())
    done = stream.stream(pair, PROMPT, 16, Sampling(0.8), seed=3)
    assert (done.text, done.pieces, done.reply.token_ids) == (sampled.text, sampled.pieces, sampled.reply.token_ids)
    assert len(shown) >= 2 and Page(shown[-1]).text == PROMPT + sampled.text
    assert all(Page(shown[-1]).text.startswith(Page(page).text) for page in shown if "\ufffd" not in page)


def test_messages_and_ids_can_be_streamed_too(pair):
    assert stream.ids_of(pair, [1, 5]) == [1, 5]
    said = pair.tokenizer.decode(stream.ids_of(pair, [{"role": "user", "content": "a"}]))
    assert "USER: a ASSISTANT:" in said  # Vicuna's, for this tokenizer has no template
    with pytest.raises(BadInput, match="prompt"):
        stream.ids_of(pair, [])


def test_the_trees_of_rounds_make_the_reply(pair, sampled):
    ids = sampled.reply.token_ids
    trees = rounds.fetch_trees(pair, PROMPT, rounds=8, sampling=Sampling(0.8), seed=3)
    delivered = sum((tree.delivered for tree in trees), [])
    assert len(trees) == 8 and trees[0].tokens[0] == ids[0]
    assert delivered[: len(ids) - 1] == ids[1 : len(delivered) + 1]
    assert any(tree.path for tree in trees)  # some drafts are accepted
    for tree in trees:
        assert [tree.tokens[node] for node in tree.path] == tree.delivered[: len(tree.path)]
        assert len(tree.path) == len(tree.delivered) - 1 and tree.own_choice == tree.delivered[-1]
        assert all(tree.probability[node] <= tree.probability[tree.parent[node]] + 1e-6 for node in range(len(tree.tokens)))
        assert max(tree.depth) <= 3 and len(tree.texts) == len(tree.tokens) + 1


def tree_of(parents: list[int], path: list[int], delivered: list[int]) -> rounds.DraftedTree:
    nodes = range(len(parents))
    return rounds.DraftedTree([*nodes], parents, [1 / (1 + n) for n in nodes], delivered, path, ["x"] * (len(nodes) + 1))


def test_a_path_ends_where_the_tree_does_not_have_the_token():
    assert rounds.walk([0, 5, 6, 7], [0, 0, 1, 1], [5, 7, 9]) == [1, 3]
    assert rounds.walk([0, 5, 6], [0, 0, 0], [8]) == []


def test_no_two_nodes_of_a_depth_share_a_row():
    tree = tree_of([0, 0, 0, 1, 1, 2, 3], [1, 3], [1, 3, 9])
    placed = list(zip(tree.depth, tree_plot.rows(tree), strict=True))
    assert len(set(placed)) == len(placed)
    assert tree_plot.rows(tree)[:2] == [0, 0]  # the likeliest child stands beside its parent


def test_a_tree_is_drawn_with_what_was_accepted_and_chosen():
    figure = tree_plot.plot_tree(tree_of([0, 0, 0, 1], [1], [1, 9]))
    edges = [text.get_bbox_patch().get_edgecolor() for text in figure.axes[0].texts]
    from matplotlib.colors import to_rgba

    assert edges.count(to_rgba(tree_plot.ACCEPTED)) == 1 and edges.count(to_rgba(tree_plot.CHOSEN)) == 1
    assert edges.count(to_rgba(tree_plot.REFUSED)) == 2
    title = figure.axes[0].get_title(loc="left")
    assert title == "3 drafted, 1 accepted (green), then the target's own choice (yellow): 2 tokens from one target pass"


def test_another_way_to_draft_on_the_same_weights_gives_the_same_text(pair, sampled):
    looking = ways.with_proposer(pair, Lookup())
    assert looking.complete(PROMPT, 16, temperature=0.8, seed=3).text == sampled.text
    assert looking.engine.stop_ids.tolist() == pair.engine.stop_ids.tolist()
    with pytest.raises(BadInput, match="has none"):
        ways.with_shape(looking, Shape(2, 2))


def test_what_there_is_to_decode_on_is_one_sentence():
    assert session.describe_devices("tpu", "TPU v5 lite", 1) == "1 TPU chip (TPU v5 lite)."
    assert "no TPU here" in session.describe_devices("cpu", "cpu", 2) and "2 devices" in session.describe_devices("cpu", "cpu", 2)


def test_ways_are_plotted_beside_plain_decoding():
    row = {"tokens_per_step": 2.0, "stage_seconds": {"draft": 1e-3, "pack": 2e-3, "verify": 4e-3, "commit": 1e-3}}
    rows = [
        row | {"shape": "1x2", "speedup": 0.8, "speedup_from_to": [0.7, 1.1]},
        row
        | {"shape": "lookup", "speedup": 1.5, "speedup_from_to": [1.4, 1.6], "stage_seconds": {"propose": 1e-3, "verify": 3e-3}},
    ]
    figure = benchmark_plots.plot_ways({"rows": rows, "autoregressive": {"round_seconds": 3e-3}})
    speed, steps, time = figure.axes
    assert [tick.get_text() for tick in speed.get_yticklabels()] == ["1x2", "lookup"]
    colours = [bar.get_facecolor() for bar in speed.patches]
    assert colours[0] != colours[1] and [bar.get_width() for bar in speed.patches] == [0.8, 1.5]  # slower and faster than plain
    assert [line.get_xdata()[0] for axes in (speed, steps, time) for line in axes.lines[-1:]] == [1.0, 1.0, 3.0]
    ends = {way: max(bar.get_x() + bar.get_width() for bar in time.patches if round(bar.get_y() + 0.4) == way) for way in (0, 1)}
    assert ends == pytest.approx({0: 8.0, 1: 4.0})  # ms: the stages follow each other


def test_lines_are_plotted_with_plain_decoding():
    axes = benchmark_plots.plot_lines({"coupled": {0.0: 2.0, 1.0: 1.8}}, "temperature", "tokens per step", plain=1.0).axes[0]
    assert [list(line.get_ydata()) for line in axes.lines] == [[2.0, 1.8], [1.0, 1.0]]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["coupled", "plain decoding"]
