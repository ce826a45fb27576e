"""The shape of a task's search: as asked for, as measured for its pair, or as suits the device. Not here: finding settings
(`infer/tuned.py`)."""

import dataclasses

from infer import pair, tuned
from infer.generate.task import Task, WantedShape
from infer.options import check_tree
from infer.settings import Conditions
from redrafter_jax.decode.propose.lookup import Lookup
from redrafter_jax.decode.propose.recurrent import Shape


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
    decoding = dataclasses.replace(decoding, beams=beams, kind=kind, own_sampling=None)  # it has been read
    return dataclasses.replace(task, models=dataclasses.replace(models, drafter=str(found.head)), decoding=decoding)


def shape_of(beams: WantedShape, resolved: pair.Resolved, lookup: Lookup | None = None, draws: bool = False) -> Shape:
    """The shape that was asked for, completed by the device's defaults; its tree has room for a lookup's nodes. ``draws``: drafts
    have to be drawn, so that one beam is the default."""
    default = pair.shape_of(resolved)
    width, length = beams.width or (1 if draws and beams.tree != "chains" else default.width), beams.length or default.length
    check_tree(width, length, beams.budget, lookup.length if lookup else 0)
    return Shape(width, length, beams.budget, beams.tree, beams.draft_top_k)
