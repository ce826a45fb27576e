"""TPU slices that are not attached: their chips, libtpu's description of them, and meshes that can split a pair there.

Where an argument is wrong, the error begins with its name; a command passes its own option's name for it. Not here:
compiling for a slice (`compiler.py`).
"""

import dataclasses
import importlib.util
import math
import os
import pathlib
import re

import jax
from jax.experimental import topologies

from redrafter_jax.devices import mesh, mesh_choice, placement
from redrafter_jax.errors import BadInput
from redrafter_jax.files import config
from redrafter_jax.files.heads import DraftsConfig
from redrafter_jax.model.shapes import SHAPES
from redrafter_jax.model.target import TargetConfig
from redrafter_jax.slices.chips import CHIPS, Chip

LIBTPU_ENVIRONMENT = {  # keeps libtpu from asking the machine for a TPU, and from locking out others, since no TPU is taken
    "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}  # fmt: skip
MAX_SHOWN_CHARACTERS = 40  # of a name, in errors


@dataclasses.dataclass(frozen=True)
class Slice:
    """A slice by the name of its topology, such as v5e:2x4."""

    name: str
    chip: Chip
    devices: tuple

    def mesh(self, data: int, model: int) -> jax.sharding.Mesh:
        """The mesh that `redrafter_jax.devices.mesh.make_mesh` would make there."""
        return mesh.of_devices(self.devices, data, model)


def parse_topology(name: str, what: str = "topology") -> tuple[Chip, int]:
    """The kind of chip of a slice, and how many chips it has.

    Raises:
      BadInput: the name is not a chip and a grid, or has more chips than a pod.
    """
    kind, _, grid = name.partition(":")
    if kind not in CHIPS or not re.fullmatch(r"[1-9]\d{0,5}(x[1-9]\d{0,5}){1,2}", grid):
        shown = name if len(name) <= MAX_SHOWN_CHARACTERS else name[:MAX_SHOWN_CHARACTERS] + "..."
        raise BadInput(f"{what} should be a chip ({', '.join(CHIPS)}) and a grid, such as v5e:2x4 or v5p:2x2x1, not {shown}")
    chip, chips = CHIPS[kind], math.prod(map(int, grid.split("x")))
    if chips > chip.pod:
        raise BadInput(f"{what} should have at most the {chip.pod} chips of a whole pod of {kind}, and {name} has {chips}")
    return chip, chips


def find_slice(name: str, what: str = "topology") -> Slice:
    """The slice of this name.

    Raises:
      BadInput: the chip or the topology is unknown, or libtpu is not installed.
    """
    chip, _ = parse_topology(name, what)
    if importlib.util.find_spec("libtpu") is None:
        raise BadInput('the TPU compiler, libtpu, is not installed; install it with: pip install "jax[tpu]" (Linux on x86-64)')
    for key, value in LIBTPU_ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    try:
        topology = topologies.get_topology_desc(platform="tpu", topology_name=name)
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        known = "2x2 and 2x4 (v5p: 2x2x1 and 2x2x2) are known"
        raise BadInput(f"{what}: libtpu does not know {name} ({reason}); {known}") from None
    return Slice(name, chip, tuple(topology.devices))


def read_target_config(model: str, what: str = "model", weight_format: str | None = None) -> TargetConfig:
    """The shapes of a target, by a known name or from a folder with config.json, with its matrices in a format of
    `quantised.FORMATS`, or None.

    Raises:
      BadInput: it is neither.
    """
    name = model.replace("vicuna", "llama")
    if name in SHAPES:
        return dataclasses.replace(SHAPES[name], weight_format=weight_format)
    folder = pathlib.Path(model).expanduser()
    if not folder.is_dir():
        names = [*SHAPES, *(name.replace("llama", "vicuna") for name in SHAPES if re.fullmatch(r"llama-\d+b", name))]
        raise BadInput(f"{what} should be one of {', '.join(names)}, or a folder with config.json, not {model}")
    return config.target_config(config.read_json(folder, what), what, weight_format)


def why_not(target: TargetConfig, head: DraftsConfig, model: int) -> str | None:
    """What ``model`` shards do not divide, in words; None where they divide everything."""
    return placement.Footprint(target, head).why_not(1, model)


def choose_meshes(
    given: tuple[int, int] | None, topology: str, target: TargetConfig, head: DraftsConfig, what: str = "mesh"
) -> tuple[list[tuple[int, int]], list[str]]:
    """The meshes to try: the one given, or all of all chips that can split the pair; and why others are left out.

    Raises:
      BadInput: the mesh given does not have all chips, or cannot split the pair; or see `parse_topology`.
    """
    chips = parse_topology(topology)[1]
    sizes = [(chips // model, model) for model in range(1, chips + 1) if chips % model == 0]
    reasons = {size: why_not(target, head, size[1]) for size in sizes}
    able = [size for size in sizes if not reasons[size]]
    if given is None:
        return able, [f"mesh {data}x{model}: {reason}" for (data, model), reason in reasons.items() if reason]
    data, model = given
    if given not in reasons:
        wrong = f"should be two numbers whose product is the {chips} chips of {topology}, not {data} {model}"
        raise BadInput(f"{what} {wrong}; {mesh_choice.named(able)} would do")
    if reasons[given]:
        raise BadInput(f"{what} {data} {model} cannot split this target: {reasons[given]}; {mesh_choice.named(able)} would do")
    return [given], []


def refuse_batches(batches: tuple[int, ...], tried: list[tuple[int, int]], what: str = "batch") -> dict[int, str]:
    """The batches that the data shards of no mesh divide, each with a sentence.

    Raises:
      BadInput: these are all batches.
    """
    data, model = tried[0]
    shards = sorted(shards for shards, _ in tried)
    none = f"mesh {data}x{model} does not take" if len(tried) == 1 else f"no mesh of all {data * model} chips takes"
    said = f"data shards are {', '.join(map(str, shards))}; give a multiple"
    found = {batch: f"{none} batch {batch}; {said}" for batch in batches if all(batch % count for count in shards)}
    if all(batch in found for batch in batches):
        raise BadInput(f"{what}: {found[batches[0]]}")
    return found
