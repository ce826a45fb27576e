"""A task with the settings that were measured for its pair. Not here: finding them (`infer/tuned.py`)."""

import dataclasses

from infer import pair, tuned
from infer.generate.task import Task, WantedShape
from infer.settings import Conditions


def apply(task: Task, resolved: pair.Resolved, longest: int) -> Task:
    """The task with the head and the shape that were measured to be the fastest, or with plain decoding; the task itself where no
    file says anything about it. ``longest``: tokens of the longest prompt, 0 if it is not
    known.

    Raises:
      BadInput: as `tuned.choose`.
    """
    models, decoding, tuning = task.models, task.decoding, task.tuning
    if resolved.drafter is None:
        return task
    context = longest + decoding.limits.new if longest else 0
    wanted = Conditions(decoding.batch, context, decoding.sampling.temperature)
    heads = tuned.heads_of(models.target, models.drafter, resolved)
    found = tuned.choose(tuning.source, resolved, heads, wanted, tuning.may_be_plain)
    if found is None:
        return task
    choice = found.choice
    beams = WantedShape(choice.width, choice.length, choice.nodes, draft_top_k=choice.draft_top_k)
    kind = "autoregressive" if tuning.may_be_plain and not choice.speculates else decoding.kind
    decoding = dataclasses.replace(decoding, beams=beams, kind=kind)
    return dataclasses.replace(task, models=dataclasses.replace(models, drafter=str(found.head)), decoding=decoding)
