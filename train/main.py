"""`python -m train.main`: trains a draft head for a frozen target.

Not here: the options (`run/options.py`), reading files and rows (`data/`), the update (`run/step.py`), the loop and
what it reports (`run/loop.py`, `run/log.py`), the loss (`redrafter_jax/loss.py`).
"""

import argparse
import dataclasses
import json
import sys

import tyro

from infer import distributed, replies, templates
from infer.command import read_options, run_command
from redrafter_jax.devices import processes
from redrafter_jax.errors import BadInput
from redrafter_jax.files import json_files
from train.run import stop
from train.run.options import Options
from train.run.recipe import HEADS, PRESETS, Recipe, named


def main(options: Options) -> int:
    """Trains, exports and says where the head is; returns the exit code, which is not 0 where the run was asked to end.

    Raises:
      BadInput: whatever is wrong with the options, the target, the data or the folder of the run.
    """
    check(options)
    if options.config:
        processes.say(json.dumps(as_json(options), indent=1))
        return 0
    from train.data import records
    from train.run import configuration as configurations
    from train.run import folders

    records.check_outside(options.output, (*options.conversations, *options.text, *options.token_ids))
    for place, option in ((options.checkpoints, "--checkpoints"), (options.profile, "--profile")):
        if place is not None:
            configurations.check_place(place, option)
    with folders.claim(options.output, options.checkpoints):
        return _train(options)


def _train(options: Options) -> int:
    import jax

    from infer import notes, pair
    from infer.options import name_formats
    from redrafter_jax.devices import memory, mesh_choice
    from redrafter_jax.devices import mesh as meshes
    from redrafter_jax.files import config, fingerprint, hub, provenance, weights
    from train.data import datasets
    from train.run import beginning, card, evaluation, footprint, loop, merged, shapes
    from train.run import configuration as configurations

    name, adapter = options.target, pair.read_adapter(options.lora)
    dtype, weight_format = pair.number_formats(options.dtype, options.weights)
    options = dataclasses.replace(options, target=hub.locate(name, "--target"), dtype=dtype, weights=weight_format)
    target_config = config.target_config(config.read_json(options.target, "--target"), "--target", weight_format)
    options.recipe.check_against(target_config.weight_format)
    of_target = {"merged": options.output / merged.MERGED_FOLDER, "alone": options.output / merged.ADAPTER_FOLDER}
    if options.recipe.trains_target:
        merged.check(*of_target.values(), ("--output", "--output"))
    longest = target_config.max_position_embeddings
    if options.recipe.row_length > longest:
        raise BadInput(f"--row-length should be at most the target's context of {longest}, not {options.recipe.row_length}")
    load = load_of(options, target_config)
    mesh, why = mesh_choice.resolve(load, options.mesh, True, "--mesh", "--distributed")
    what = "--target, with the head, its gradients and its moments,"
    memory.check(load, mesh, what, smaller(options, target_config), "a smaller target or more devices")
    footprint.check(load, options.recipe, mesh)
    jax.set_mesh(meshes.make_mesh(*mesh))
    numbers = name_formats(options.dtype, target_config.weight_format)
    begun = options.begin_with and beginning.load(options.begin_with, shapes.make_head_config(target_config, options.recipe))
    notes.say(options.target, [options.begin_with], numbers)
    parts = [datasets.build(source, options.output / "datasets") for source in sources(options)]
    rows, held_out = datasets.join(parts, "train"), datasets.join(parts, "validation")
    if rows is None:
        raise BadInput(f"--held-out {options.held_out} leaves no example to train on; give a smaller share, or more data")
    if held_out is None and options.recipe.evaluate_every > 0:
        processes.say("no example is held out, so there are no evaluations (--held-out, or more data)", sys.stderr)
    is_spread = options.shard_target == "data,model"
    target = weights.load_target(options.target, options.dtype, "--target", is_spread, adapter, weight_format)
    if why is not None:
        processes.say(why, sys.stderr)
    configuration = {
        **as_json(options)["recipe"],
        "dtype": options.dtype,
        **({} if weight_format is None else {"weights": weight_format}),
        **({} if begun is None else {"begin_with": fingerprint.fingerprint(options.begin_with)}),
        "target": fingerprint.fingerprint(options.target, adapter.fingerprint if adapter else None),
        "data": [part.parent.name for part in parts],
    }
    processes.check_same(json.dumps(configuration), "--target or the data to train on is not the same in all processes")
    trained_for = provenance.describe(options.target, numbers, "--target", adapter, template_kwargs(options))
    configuration[configurations.NOT_COMPARED] = {
        name: value for name, value in as_json(options).items() if name not in ("recipe", "dtype", "weights")
    } | {configurations.TRAINED_FOR: trained_for}
    processes.run_in_first(lambda: configurations.save(options.output, configuration, options.resume, options.checkpoints))
    folder, steps, place = options.output / "head", options.recipe.steps, options.checkpoints or options.output
    try:
        places = options.checkpoints, options.profile
        state = loop.train_pair(target, rows, options.recipe, options.output, held_out, *places, begun=begun)
    except stop.Stopped as stopped:
        processes.say(f"stopped; the same command goes on from step {stopped.step} of {steps}, which is in {place}")
        return stopped.code
    last = loop.read_last_evaluation(options.output, steps)
    head = evaluation.with_tree(state.drafter, last)
    note = evaluation.note_of_tree(head)
    if note is not None:
        processes.say(note, sys.stderr)
    whose = None
    if state.lora is not None:
        whose = merged.write(state.lora.adapter, options.target, name.name, steps, **of_target)
        trained_for = provenance.of_merged(trained_for, options.target, of_target["merged"], of_target["alone"])
    card.write(head, None, folder, card.compose(name, configuration, last, steps, whose), trained_for)
    processes.say(f"the head is in {folder}")
    return 0


def check(options: Options) -> None:
    """Raises BadInput for options out of range or that leave something out."""
    options.recipe.check()
    options.group.check()
    if not (options.conversations or options.text or options.token_ids):
        raise BadInput("there is nothing to train on: give --conversations, --text or --token-ids")
    templates.read_kwargs(options.chat_template_kwargs)
    if options.chat_template_kwargs is not None and not options.conversations:
        raise BadInput("--chat-template-kwargs is for --conversations; give these, or leave it out")
    if options.lora is not None and options.recipe.trains_target:
        raise BadInput("--train-target lora trains an adapter of the target as it is in its folder; leave out --lora")
    if options.glob and not options.text:
        raise BadInput("--glob says which files of --text folders are read; give --text, or leave it out")
    for name, high in (("held_out", 0.5), ("max_malformed", 1.0)):
        if not 0 <= getattr(options, name) <= high:
            raise BadInput(f"--{name.replace('_', '-')} should be from 0 to {high}, not {getattr(options, name)}")


def load_of(options: Options, target):
    """What a mesh has to carry (a `placement.Footprint`) in a run with this target (a `TargetConfig`): its weights; the
    head's, and the adapter's where there is one, their gradients and both moments in float32; the rows that are read at a time.

    Raises:
      BadInput: see `shapes.make_head_config`.
    """
    from redrafter_jax.devices import placement
    from train.run import shapes

    recipe = options.recipe
    head = shapes.make_head_config(target, recipe)
    size = placement.bytes_of_target(target, options.dtype or "float32") + 4 * placement.bytes_of_head(head, "float32")
    size += 4 * placement.bytes_of_adapter(target, recipe.lora_rank) if recipe.trains_target else 0
    rows = recipe.batch // recipe.accumulate
    option = "--batch" if recipe.accumulate == 1 else "--batch / --accumulate"
    spread = options.shard_target == "data,model"
    return placement.Footprint(target, head, rows, option, size, spread, repeats_heads=not recipe.trains_target)


def smaller(options: Options, target) -> dict:
    """Options with which a run needs less memory, and what a mesh has to carry then."""
    changes = {"--dtype bfloat16": {"dtype": "bfloat16"}, "--shard-target data,model": {"shard_target": "data,model"}}
    ways = {name: load_of(dataclasses.replace(options, **change), target) for name, change in changes.items()}
    if not options.recipe.trains_target:
        ways["--weights int8"] = load_of(options, dataclasses.replace(target, weight_format="int8"))
    return ways


def template_kwargs(options: Options) -> dict | None:
    """The variables of the chat template that conversations are written with, here or by `train.distill`; None: there are none,
    as far as is known."""
    if options.conversations:
        return templates.read_kwargs(options.chat_template_kwargs)
    beside = (json_files.find_object(replies.settings_file(file)) or {} for file in options.token_ids)
    found = (settings.get("chat_template_kwargs") for settings in beside)
    return next((kwargs for kwargs in found if isinstance(kwargs, dict)), None)


def sources(options: Options) -> list:
    """What the datasets are made of."""
    from train.data.datasets import Source

    kinds = ("conversations", "text", "token_ids")
    common = (str(options.target), options.held_out, options.max_malformed)
    patterns = {"text": options.glob}
    kwargs = {"conversations": templates.read_kwargs(options.chat_template_kwargs)}
    of_kind = {kind: (getattr(options, kind), *common, patterns.get(kind, ()), kwargs.get(kind)) for kind in kinds}
    return [Source(kind, *given) for kind, given in of_kind.items() if given[0]]


def as_json(options: Options) -> dict:
    """The whole configuration, as it is saved with the run."""
    return json.loads(json.dumps(dataclasses.asdict(options), default=str))


def command(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code (`infer.command`)."""

    def body() -> int:
        options = parse(sys.argv[1:] if arguments is None else arguments)
        check(options)
        with stop.says_how_to_resume(options.checkpoints or options.output):
            return distributed.run(options.group, lambda: main(options), saves=True)

    return run_command(body)


def parse(arguments: list[str]) -> Options:
    """The options. A preset, and the name of a head of a method, give the recipe's defaults, so they have to be known first."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--preset", choices=PRESETS)
    finder.add_argument("--head", nargs="?")
    finder.add_argument("--method", nargs="?")
    found = finder.parse_known_args(arguments)[0]
    recipe = PRESETS[found.preset]() if found.preset else Recipe()
    recipe = named(dataclasses.replace(recipe, method="medusa") if found.method == "medusa" else recipe, found.head)
    default = Options(target=tyro.MISSING, preset=found.preset, recipe=recipe)
    options = read_options(Options, "train.main", arguments, default=default)
    if found.head not in HEADS:
        return options
    return dataclasses.replace(options, recipe=dataclasses.replace(options.recipe, head=recipe.head))


if __name__ == "__main__":
    sys.exit(command())
