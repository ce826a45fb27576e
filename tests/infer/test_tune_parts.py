"""The parts of `infer.tune`: rounds counted from known texts, races, what is raced, the file of settings."""

import dataclasses
import functools
import itertools
import json
import pathlib

import numpy as np
import pytest

from infer import programs, settings
from infer.settings import SettingsFile
from infer.tune import acceptance, costs, final, points, race, report
from infer.tune.measure import TunePlan, Tuner
from infer.tune.points import Estimate, Point
from redrafter_jax.decode.engine import Engine, Limits, Sampling
from redrafter_jax.decode.propose.recurrent import Recurrent, Shape
from redrafter_jax.errors import BadInput
from tests.measured import CHOICE, ENTRY, keep
from tests.support import load_pair, with_features

PROMPTS = [[1, 5, 9], [4, 8, 100, 200, 7, 7], [3] * 20, [9, 8]]


@pytest.mark.parametrize(
    ("sampling", "shape", "reads"),
    [(Sampling(), Shape(3, 2), ()), (Sampling(1.0), Shape(3, 4, 6), (0, 1))],
    ids=["greedy", "coupled, a budget, features"],
)
def test_rounds_are_those_of_the_engine(sampling, shape, reads):
    target, head = load_pair("mha_rnn")
    head = with_features(head, reads) if reads else head
    new, width, length = 20, 3, 4
    texts = acceptance.decode(target, PROMPTS, sampling, new, len(PROMPTS))
    proposer = Recurrent(head, Shape(width, length)).prepare(target)
    needed = acceptance.search(target, proposer, texts, acceptance.read_hidden(target.showing(reads), texts))
    counted = acceptance.count_rounds(needed, new, shape.length, shape.budget)
    engine = Engine(target, Recurrent(head, shape))
    replies = list(engine.generate(PROMPTS, sampling, Limits(new=new), range(len(PROMPTS)), len(PROMPTS)))
    assert counted == [reply.rounds for reply in replies]
    assert sum(counted) < len(PROMPTS) * (new - 1)  # some drafts are accepted, else every way to count would agree


def test_heads_that_read_different_layers_start_from_states_of_their_own():
    target, head = load_pair("mha_rnn")
    batches = costs.PromptBatches(target.showing((0, 1)), PROMPTS[:2], Sampling(), 2, 12, 2)
    heads = {"one": head, "two": with_features(head), "three": with_features(head, (0, 1))}
    ways = {name: Recurrent(each, Shape(1, 2)).prepare(target) for name, each in heads.items()}
    found = costs.measure(batches, {(name, 1, 2): way for name, way in ways.items()}, [3])
    assert set(found.propose) == {(name, 1, 2) for name in heads} and all(seconds > 0 for seconds in found.propose.values())
    programs = {name: batches.program(name, way) for name, way in ways.items()}
    assert [programs[name].features for name in heads] == [(), (0,), (0, 1)]
    for name, way in ways.items():
        (*_, rounds) = programs[name].reply_seconds(batches.seen_by(batches.start(0), way.features))
        replies = Engine(target, way).generate(PROMPTS[:2], Sampling(), Limits(new=12), range(2), 2)
        assert rounds == max(reply.rounds for reply in replies)


def test_the_batches_of_a_tuner_show_all_that_its_heads_read():
    target, head = load_pair("mha_rnn")
    plan = TunePlan(((1, 2),), (3,), Sampling(), 16, 1.0)
    heads = {"a": with_features(head, (1,)), "b": with_features(head), "c": head}
    batches = Tuner(target, heads, PROMPTS, plan, None, str).setting(2, None)
    assert batches.target.features == (0, 1) and batches.first((1,)).h.shape == (2, 2 * target.config.hidden_size)


def test_batches_are_full_and_wait_for_their_slowest_row():
    assert acceptance.groups(5, 2) == ((0, 1), (2, 3), (4, 0))
    assert acceptance.rounds_of_batches([10, 3, 4, 8, 5], 2) == 10 + 8 + 10
    assert acceptance.rounds_of_batches([10, 3], 4) == 10


def test_costs_are_interpolated_and_kept_as_json():
    found = costs.Costs({1: 1.0, 5: 2.0, 9: 4.0}, {("a", 2, 1): 0.1, ("a", 2, 5): 0.5, ("b", 2, 1): 9.0}, 0.25)
    found = costs.of_json(json.loads(json.dumps(found.as_json())))
    assert found.round_seconds("a", 2, 3, 7) == pytest.approx(3.0 + 0.3 + 0.25)


def test_prompts_are_stretched_to_a_context():
    assert costs.stretch([[1, 2, 3], [7]], 5) == [[1, 2, 3, 1, 2], [7] * 5]


class Clock:
    """A machine that slows down and recovers: every call takes its own time times the machine's slowness of the moment."""

    def __init__(self):
        self.calls, self.noise = itertools.count(), np.random.default_rng(0)

    def timing(self, seconds: float):
        return lambda: seconds * (1 + 2 * (next(self.calls) // 40 % 2)) * self.noise.uniform(0.97, 1.03)


def test_a_race_finds_the_fastest_on_a_machine_that_slows_down():
    clock = Clock()
    made = {f"{n}": race.Contender(clock.timing(1.5), 1.5 * speedup) for n, speedup in enumerate((1.02, 1.0, 1.1, 1.06, 0.8))}
    made[race.PLAIN] = race.Contender(clock.timing(1.0), 1.0)
    laps = race.run(made, seconds=1.0)
    found = race.speedups(made, laps)
    assert max(found, key=found.get) == "2" and found["2"] == pytest.approx(1.1, rel=0.03)
    assert "4" not in laps[-1] and race.PLAIN in laps[-1]
    assert len([lap for lap in laps if "4" in lap]) == race.MIN_LAPS


def test_a_race_goes_on_from_the_laps_that_were_kept():
    clock, kept = Clock(), []
    made = {name: race.Contender(clock.timing(1.0), gain) for name, gain in ((race.PLAIN, 1.0), ("a", 1.2))}
    first = race.run(made, 0.0, keep=kept.append)
    assert len(first) == race.MIN_LAPS == len(kept) and kept[-1] == first
    assert race.run(made, 0.0, first[:3])[:3] == first[:3]


class Replies:
    """A program whose rounds take the clock's time, of a head that reads these features."""

    def __init__(self, clock: Clock, seconds: float, rounds: int, features: tuple[int, ...] = ()):
        self.round, self.rounds, self.features = clock.timing(seconds), rounds, features

    def reply_seconds(self, state: tuple[int, ...]) -> tuple[float, int]:
        assert state == self.features
        return self.round() * self.rounds, self.rounds


class Started:
    """Three batches in place of `costs.PromptBatches`; which were started."""

    def __init__(self):
        self.inputs, self.numbers = [0, 1, 2], []

    def start(self, number: int) -> int:
        self.numbers.append(number)
        return number

    def seen_by(self, state: int, features: tuple[int, ...]) -> tuple[int, ...]:
        assert state == self.numbers[-1]
        return features

    def let_go(self) -> None:
        pass


def test_whole_replies_are_decoded_in_turn_and_one_slow_lap_does_not_decide():
    clock, kept, started = Clock(), [], Started()
    clock.calls = itertools.chain([0, 40], itertools.count(2))  # of the first lap the second program is slow
    programs = {race.PLAIN: Replies(clock, 1.0, 90), "a": Replies(clock, 1.5, 50, (0, 2))}
    laps = final.run(started, programs, 0.0, keep=kept.append)
    assert started.numbers == [0, 1, 2, 0] and kept[-1] == laps and len(laps) == final.MIN_LAPS
    assert final.round_cost("a", laps) == pytest.approx(1.5, rel=0.06) and final.plain_seconds(laps) == pytest.approx(1.0, rel=0.06)
    assert list(laps[0]) == ["a", race.PLAIN] and list(laps[1]) == [race.PLAIN, "a"]
    assert final.run(started, programs, 0.0, laps[:3])[:3] == laps[:3] and started.numbers[4:] == [0]


def test_the_best_of_every_head_decodes_whole_replies():
    raced = {Point("a", 1, length, 0, 10): 1.0 + length for length in range(1, 6)} | {Point("b", 2, 2, 0, 10): 0.5}
    assert [(point.head, point.length) for point in final.finalists(raced)] == [("a", 5), ("a", 4), ("a", 3), ("b", 2)]


class Judged(Tuner):
    """Its race says that every draft pays, and its whole replies that only one does, or none."""

    pays = True

    def estimate(self, batch, context):
        return [Estimate(point, 2.0, 2.0, 1.0, 2.0) for point in self.grid]

    def compare(self, name, entered):
        return {point: 1.9 - 0.1 * point.length for point in entered}

    def decode_whole(self, entered):
        return {point: 0.8 + 0.2 * self.pays * (point.length == 2) + 0.05 for point in entered}, 0.5

    def tokens_per_step(self, point):
        return 2.0


def test_whole_replies_decide_which_draft_is_chosen_and_whether_it_pays():
    target, head = load_pair("mha_rnn")
    plan = TunePlan(((1, 1), (1, 2), (1, 3)), (3,), Sampling(), 16, 1.0)
    tuner = Judged(target, {"a": head}, PROMPTS, plan, None, str)
    found = tuner.tune(4, None)
    assert (found.best.length, found.choices["a"].length, found.choices["a"].speedup) == (2, 2, pytest.approx(1.05))
    assert found.choices["a"].plain_tokens_per_second == 8.0
    tuner.pays = False
    found = tuner.tune(4, None)
    assert found.best is None and not found.choices["a"].speculates and min(found.raced.values()) > 1.5
    assert "batch 4: do not speculate" in report.chosen(found) and "*" not in report.table(found)


def estimate(width, length, seconds, tokens, head="a"):
    return Estimate(Point(head, width, length, 0, 10), tokens, tokens, seconds, tokens / seconds)


def test_the_frontier_is_what_nothing_beats_in_both():
    cheap, good, worse, same = (
        estimate(1, 2, 1.5, 1.6),
        estimate(2, 2, 2.0, 2.0),
        estimate(4, 1, 2.1, 1.9),
        estimate(2, 3, 2.0, 1.8),
    )
    assert points.frontier([worse, good, same, cheap]) == [cheap, good]


def test_the_best_of_every_head_is_raced():
    first = [estimate(1, length, 1.0, 1 + length) for length in range(1, 9)]
    other = estimate(2, 2, 9.0, 1.0, head="b")
    chosen = points.shortlist([other, *first], most=3)
    assert [each.point.length for each in chosen[:3]] == [8, 7, 6] and chosen[3:] == [other]


def test_budgets_are_tried_where_they_leave_something_out():
    tried = list(points.grid([(1, 3), (2, 2)], ["a"], (2, 3, 4, 9), 10))
    assert [(each.shape, each.budget) for each in tried] == [("1x3", 0), ("2x2", 0), ("2x2", 3), ("2x2", 4)]


@pytest.fixture
def file(tmp_path):
    """Writes entries; returns the file as a command reads it."""
    return functools.partial(keep, tmp_path)


def test_a_later_measurement_replaces_an_earlier_one(file):
    source = file(ENTRY)
    later = dataclasses.replace(ENTRY, choice=dataclasses.replace(CHOICE, width=4))
    content = settings.add(settings.read(source.path, ""), source.path, "", [later])
    assert settings.entries_of(content, source.path, "") == [later]


def test_the_settings_are_no_part_of_the_cache_of_programs(monkeypatch):
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", "/home/a")
    assert str(settings.default_file()) == "/home/a/.config/redrafter_jax/settings.json"
    assert not settings.default_file().is_relative_to(programs.DEFAULT_CACHE.expanduser())
    monkeypatch.setenv("XDG_CONFIG_HOME", "/etc/a")
    assert settings.source_of(None).path == settings.default_file() == pathlib.Path("/etc/a/redrafter_jax/settings.json")
    monkeypatch.setenv("XDG_CONFIG_HOME", "a")  # the specification passes over a relative path
    assert settings.default_file().is_relative_to("/home/a/.config")


def test_no_file_is_nothing_and_a_named_one_has_to_be_there(tmp_path):
    assert SettingsFile(tmp_path / "none.json").load() == [] == settings.source_of("none").load()
    with pytest.raises(BadInput, match="there is no file"):
        settings.source_of(str(tmp_path / "none.json")).load()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "cannot be read as JSON"),
        ("{}", "is no file of settings"),
        ('{"written_by": "redrafter_jax infer.tune", "entries": [{"machine": {}}]}', "damaged entry"),
        ('{"written_by": "redrafter_jax infer.tune", "entries": [3]}', "damaged entry"),
    ],
)
def test_a_damaged_file_is_one_sentence(tmp_path, content, said):
    (tmp_path / "s.json").write_text(content)
    with pytest.raises(BadInput, match=said):
        settings.source_of(str(tmp_path / "s.json")).load()


@pytest.mark.parametrize("change", [{"width": 0}, {"length": -1}, {"nodes": 2.5}, {"speedup": float("nan")}, {"speedup": "fast"}])
def test_an_impossible_choice_is_a_damaged_entry(file, change):
    with pytest.raises(BadInput, match="damaged entry"):
        file(dataclasses.replace(ENTRY, choice=dataclasses.replace(CHOICE, **change))).load()
