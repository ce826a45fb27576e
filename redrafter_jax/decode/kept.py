"""Programs that an earlier process compiled, loaded without tracing them again.

JAX's own cache saves compiling. To ask it, JAX traces and lowers every program in Python, which takes half a second each on a fast
core and longer the more layers there are. So the programs of one bucket are kept together in one file beside those of JAX, in its
folder and under a name of the form that it gives, by which it removes those that were not used for the longest time. JAX keeps no
second copy.

The name is a hash of everything that decides what is compiled: the structure and the shapes of all arguments, this package's
source, the versions and settings of JAX and XLA, and the devices. A file is as trustworthy as the folder: both hold code.
"""

import contextlib
import functools
import hashlib
import os
import pathlib
import pickle
import tempfile
import time
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import ThreadPoolExecutor

import jax
from jax.experimental import serialize_executable

from redrafter_jax.devices.compile_cache import without_persistent_cache

PACKAGE = pathlib.Path(__file__).parents[1]
KNOWN = ("redrafter_jax", "flax", "jax", "jaxlib", "builtins", "collections")  # whose classes no edit of a user's changes
ENVIRONMENT = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
Programs = Mapping[Hashable, jax.stages.Compiled]


def programs(
    what: tuple,
    trees: tuple,
    build: Callable[[], Programs],
    on_compile: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
) -> Programs:
    """What ``build`` returns, for the mesh that is set, by this process or an earlier one.

    Args:
      what: plain values that decide it: the kind of programs, sizes.
      trees: everything else: models, inputs, of which structure, shapes and shardings count.
      on_compile: makes a context for ``build``.
    """
    file = _file(what, trees)
    found = None if file is None else _load(file)
    if found is not None:
        return found
    with on_compile(), contextlib.nullcontext() if file is None else without_persistent_cache():
        built = build()
    if file is not None:
        _save(file, built)
    return built


def _file(what: tuple, trees: tuple) -> pathlib.Path | None:
    """Where they are kept; None where they cannot be."""
    folder, mesh = jax.config.jax_compilation_cache_dir, jax.sharding.get_mesh()
    if folder is None or not jax.config.jax_enable_compilation_cache or not pathlib.Path(folder).is_dir() or mesh.is_multi_process:
        return None
    leaves, structure = jax.tree.flatten(trees)
    if not _is_known(structure):
        return None
    shapes = [(str(jax.typeof(leaf)), str(getattr(leaf, "sharding", None))) for leaf in leaves]
    try:
        described = pickle.dumps((what, structure, shapes, _surroundings(mesh)))
    except (pickle.PicklingError, AttributeError, TypeError):  # something local, such as a function inside a function
        return None
    return pathlib.Path(folder) / f"redrafter-{hashlib.sha256(described).hexdigest()}-cache"


def _is_known(structure: jax.tree_util.PyTreeDef) -> bool:
    data = structure.node_data()
    here = data is None or data[0].__module__.partition(".")[0] in KNOWN
    return here and all(map(_is_known, structure.children()))


def _surroundings(mesh: jax.sharding.Mesh) -> tuple:
    devices = mesh.devices.flatten().tolist()
    client = devices[0].client
    settings = {name: value for name, value in jax.config.values.items() if "cache" not in name}
    chips = [(device.id, device.device_kind) for device in devices]
    processor = _processor() if client.platform == "cpu" else ""
    variables = [os.environ.get(name, "") for name in ENVIRONMENT]
    versions = jax.__version__, client.platform, client.platform_version
    return (_source(), versions, sorted(map(repr, settings.items())), variables, chips, mesh.devices.shape, processor)


@functools.cache
def _source() -> str:
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(f"{path.relative_to(PACKAGE)} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


@functools.cache
def _processor() -> str:
    """What this CPU can do: a folder may be shared with machines that can do less."""
    with contextlib.suppress(OSError):
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        return next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return ""


def _load(file: pathlib.Path) -> Programs | None:
    """None where there are none, or none that can be used here."""
    devices = jax.sharding.get_mesh().devices.flatten().tolist()
    try:
        kept = pickle.loads(file.read_bytes())
        with ThreadPoolExecutor() as pool:
            loads = [
                pool.submit(serialize_executable.deserialize_and_load, *each, devices[0].client, devices) for each in kept.values()
            ]
            found = dict(zip(kept, [load.result() for load in loads], strict=True))
        _touch(file)
    except Exception:  # a file that was cut off, or whatever XLA says of it: it is only a cache
        return None
    return found


def _save(file: pathlib.Path, built: Programs) -> None:
    """Before any of them has run, since the CPU's cannot be written afterwards. They must have been compiled here: what JAX's cache
    has read lacks functions if it is written again (XLA:CPU of jaxlib 0.10)."""
    try:
        content = pickle.dumps({name: serialize_executable.serialize(program) for name, program in built.items()})
        if not _make_room(file.parent, len(content)):
            return
        with tempfile.NamedTemporaryFile(dir=file.parent, prefix=".redrafter-", delete=False) as partial:
            partial.write(content)
        _touch(file)
        os.replace(partial.name, file)
    except Exception:  # a full disk; a program that this backend cannot write
        with contextlib.suppress(OSError, NameError):
            os.unlink(partial.name)


def _make_room(folder: pathlib.Path, size: int) -> bool:
    """Removes programs, JAX's too, that were not used for the longest time, until there is room for so many bytes within the limit
    of JAX's cache; False where there cannot be."""
    limit = jax.config.jax_compilation_cache_max_size
    if limit < 0:
        return True
    files = {file: file.stat().st_size for file in folder.glob("*-cache")}
    for file in sorted(files, key=lambda file: _time_of(file).read_bytes()[::-1]):
        if sum(files.values()) + size <= limit:
            break
        del files[file]
        file.unlink(missing_ok=True)
        _time_of(file).unlink(missing_ok=True)
    return sum(files.values()) + size <= limit


def _touch(file: pathlib.Path) -> None:
    """Writes when it was last used, in JAX's form."""
    _time_of(file).write_bytes(time.time_ns().to_bytes(8, "little"))


def _time_of(file: pathlib.Path) -> pathlib.Path:
    return file.with_name(file.name.removesuffix("-cache") + "-atime")
