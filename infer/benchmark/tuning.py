"""A benchmark with the settings that were measured for its pair: their shape is measured beside the others, on their head."""

import dataclasses

from infer import pair, tuned
from infer.benchmark.task import BenchmarkTask, Files, Way
from infer.settings import Conditions, SettingsFile
from redrafter_jax.decode.propose.recurrent import Shape


def apply(task: BenchmarkTask, source: SettingsFile, has_beams: bool) -> BenchmarkTask:
    """The task with one more way to draft; the task itself where its options say what to measure (random weights, no head, given
    beams, a given embedded head), or no file says anything about its pair. The prompts are not read yet, so no context is known.

    Raises:
      BadInput: as `tuned.choose`.
    """
    files = task.models
    if has_beams or not isinstance(files, Files) or not files.has_head or files.head is not None:
        return task
    found = pair.find(files.target, files.drafter, True, task.dtype, task.weight_format, files.lora)
    resolved = pair.plan(found, task.mesh, task.batch, task.limits.new, task.length)
    wanted = Conditions(task.batch, 0, task.sampling.temperature)
    heads = tuned.heads_of(files.target, files.drafter, resolved)
    chosen = tuned.choose(source, resolved, heads, wanted)
    if chosen is None:
        return task
    choice = chosen.choice
    shape = Shape(choice.width, choice.length, choice.nodes, draft_top_k=choice.draft_top_k)
    ways = task.ways if shape in [way.shape for way in task.ways] else (Way(shape), *task.ways)
    return dataclasses.replace(task, models=dataclasses.replace(files, drafter=str(chosen.head)), ways=ways)
