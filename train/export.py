"""`python -m train.export`: a head from a run's checkpoint, as a folder in Apple's format with a model card."""

import contextlib
import dataclasses
import pathlib
import sys
from typing import ClassVar

from etils import epath

from infer.command import read_options, run_command
from redrafter_jax.errors import BadInput
from redrafter_jax.files import claims


@dataclasses.dataclass(frozen=True)
class Options:
    """Write the head of a run's checkpoint as a folder that infer.generate reads."""

    VALUES: ClassVar = {
        "run": "FOLDER", "target": "MODEL", "output": "FOLDER", "lora": "FOLDER", "checkpoints": "FOLDER", "step": "N",
        "merged": "FOLDER",
        "adapter": "FOLDER",
    }  # fmt: skip
    EXAMPLES: ClassVar = (
        "python -m train.export --run head-run --target MODEL --output head --step 800",
        "python -m train.export --run joint-run --target MODEL --output head --merged merged",
    )

    run: pathlib.Path
    """Folder of the run (train.main's --output)."""
    target: pathlib.Path
    """Folder or hub name of the target that the head was trained for."""
    output: pathlib.Path
    """Folder for the head."""
    lora: str | None = None
    """The adapter that train.main was given, if it was given one."""
    checkpoints: str | None = None
    """Folder of the run's checkpoints, where train.main was given one."""
    step: int | None = None
    """Which checkpoint; the newest if not given."""
    best: bool = False
    """The checkpoint with the lowest loss on held-out examples."""
    whole: bool = False
    """Write the head so that Apple's code and TensorRT-LLM's converter can read it: a slim head with the target's LM head, and a
    draft vocabulary as the whole one (the same drafts, from an exit a few features wider)."""
    merged: pathlib.Path | None = None
    """Of a run that trained the target too: folder for the merged target, to which the head belongs."""
    adapter: pathlib.Path | None = None
    """Of such a run: folder for the target's adapter in PEFT's format."""


def main(options: Options) -> None:
    """Exports, and says what it exported.

    Raises:
      BadInput: the run, its checkpoint or the target is missing, or they do not belong together.
    """
    import jax

    from infer import pair
    from redrafter_jax.devices import memory, placement
    from redrafter_jax.devices.mesh import make_mesh
    from redrafter_jax.files import checkpoint, config, fingerprint, hub, provenance, weights
    from train.run import card, evaluation, merged, shapes
    from train.run import configuration as configurations
    from train.run import loop as run

    if options.best and options.step is not None:
        raise BadInput("--best chooses the checkpoint that --step names; give one of them")
    claims.check_head(options.output, "--output")
    merged.check(options.merged, options.adapter, ("--merged", "--adapter"))
    checkpoints = checkpoint.resolve_folder(options.checkpoints or options.run / "checkpoints")
    if options.checkpoints is not None:
        configurations.check_place(options.checkpoints, "--checkpoints")
    configuration = configurations.read(checkpoints) if checkpoints.is_dir() else None
    if configuration is None:
        raise BadInput(f"--run: {options.run} is not the folder of a run of train.main")
    card.check_own(options.output, configuration, "--output")
    name = options.target
    options = dataclasses.replace(options, target=hub.locate(name, "--target"))
    weight_format = configuration.get("weights")
    target_config = config.target_config(config.read_json(options.target, "--target"), "--target", weight_format)
    adapter = pair.read_adapter(options.lora)
    is_comparable = fingerprint.is_current(configuration.get("target"))
    now = fingerprint.fingerprint(options.target, adapter.fingerprint if adapter else None)
    if is_comparable and configuration["target"] != now:
        raise BadInput(
            f"--target: {options.run} was trained for another target than {options.target}, whose config.json, weights"
            " or tokenizer differ; give the folder that train.main was given, as it was then, and its --lora"
        )
    recipe = configurations.read_recipe(configuration, checkpoints / configurations.CONFIGURATION_FILE)
    parts = shapes.make_head_config(target_config, recipe).beyond_the_papers
    if options.whole and parts:
        has = " and ".join(parts)
        raise BadInput(f"--whole: the head has {has}, and Apple's architecture has no place for that; export it without --whole")
    if options.whole:
        load = placement.to_decode(target_config, None, "float32")
        memory.check(load, (1, 1), "--target, whose LM head --whole takes over,", {}, "an export without --whole")
    if not recipe.trains_target and (options.merged or options.adapter):
        option = "--merged" if options.merged else "--adapter"
        raise BadInput(
            f"{option}: {options.run} did not train its target (--train-target lora), so there is no adapter; leave it out"
        )
    jax.set_mesh(make_mesh())
    like = shapes.artefacts_to_decode(target_config, recipe)
    step = choose(options, checkpoints, like)
    if not is_comparable:
        print(
            f"note: {options.run} was made by an earlier version, which did not record all of the target's bytes; the head fits"
            f" {options.target}, but whether that is the target it was trained for cannot be told",
            file=sys.stderr,
        )
    last = run.read_last_evaluation(options.run, step)
    found = checkpoint.restore(checkpoints, step, **like)
    whose, trained_for = None, configurations.read_trained_for(configuration)
    if recipe.trains_target:
        places = (options.merged, options.adapter)
        whose = merged.write(found["adapter"], options.target, name.name, step, *places) or "not written with it, see --merged"
        trained_for = trained_for and provenance.of_merged(trained_for, options.target, *places)
    card.write(
        evaluation.with_tree(found["head"], last),
        weights.load_target(options.target, what="--target", adapter=adapter, weights=weight_format) if options.whole else None,
        options.output,
        card.compose(name, configuration, last, step, whose),
        trained_for,
    )
    print(f"the head of step {step} is in {options.output}")


def choose(options: Options, checkpoints: epath.Path, like: dict) -> int:
    """The step to export: the one that was asked for, else the first that can be read, the best or the newest first;
    says which could not be read.

    Args:
      like: the shapes of each artefact that is exported, by its name.

    Raises:
      BadInput: there is no such step, it cannot be read, there were no evaluations, or the head is of another target.
    """
    from redrafter_jax.files import checkpoint, damage

    steps = damage.list_steps(checkpoints)
    if not steps:
        raise BadInput(
            f"--run: {options.run} has no checkpoint, for it ended before its first save; start the same train.main command"
            " again, which begins anew"
        )
    if options.step is not None and options.step not in steps:
        raise BadInput(f"--step: {options.run} has checkpoints of steps {steps}, not {options.step}")
    losses = held_out_losses(options, checkpoints, steps) if options.best else {}
    wanted = sorted(losses, key=losses.get) if options.best else steps[::-1] if options.step is None else [options.step]
    try:
        step, damaged = checkpoint.find_newest_sound(checkpoints, wanted, **like)
    except damage.ShapeMismatch as error:
        raise BadInput(f"--target: the head of {options.run} does not fit {options.target} ({error})") from None
    if step is None and options.step is not None:
        others = ", ".join(str(other) for other in steps if other != options.step) or "none"
        reason = damaged[options.step]
        raise BadInput(f"--step: checkpoint {options.step} in {checkpoints} cannot be read ({reason}); others are {others}")
    if step is None:
        raise BadInput(checkpoint.say_none_readable(checkpoints, damaged))
    for other, reason in damaged.items():
        print(f"checkpoint {other} in {checkpoints} cannot be read ({reason}); taking {step}", file=sys.stderr)
    if options.best:
        print(f"step {step} has the lowest held-out loss, {losses[step]:.4f}, of steps {', '.join(map(str, sorted(losses)))}")
    return step


def held_out_losses(options: Options, checkpoints: epath.Path, steps: list[int]) -> dict[int, float]:
    """The held-out loss of every checkpoint that has one.

    Raises:
      BadInput: none has.
    """
    from redrafter_jax.files import damage
    from train.run import loop as run

    found = {}
    for step in steps:
        with contextlib.suppress(ValueError):  # damaged: it is not the best of those that can be read
            found[step] = damage.read_scores(checkpoints / str(step)).get(run.HELD_OUT_SCORE)
    found = {step: loss for step, loss in found.items() if isinstance(loss, float)}
    if not found:
        raise BadInput(
            f"--best: the checkpoints of {options.run} have no held-out loss, for it was trained without evaluations (--held-out,"
            " --evaluate-every) or by an earlier version; give --step, or neither for the newest"
        )
    return found


def command(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code (`infer.command`)."""
    return run_command(lambda: main(read_options(Options, "train.export", arguments)))


if __name__ == "__main__":
    sys.exit(command())
