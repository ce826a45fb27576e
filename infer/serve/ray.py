"""Replicas of the server behind one address, by Ray Serve: each is a process with a pair of its own.

    serve run infer.serve.ray:app replicas=2 target=MODEL drafter=HEAD batch_size=16

Arguments are those of `python -m infer.serve`, with `_` for `-`, but for the ones about listening, and those of `Share`. Not here:
the application (`routes.py`).
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import fastapi

try:
    from ray import serve
except ImportError:
    from infer.workers import INSTALL
    from redrafter_jax.errors import BadInput

    raise BadInput(f"infer.serve.ray needs ray[serve]; {INSTALL}") from None

from infer.command import read_options
from infer.serve import checks
from infer.serve.__main__ import Options
from redrafter_jax.errors import BadInput

OF_LISTENING = ("host", "port", "drain_seconds", "group")  # which Ray does
HEALTH_SECONDS = 5.0  # from one look at a replica's health to the next
NAME = "redrafter"  # of the deployment
MOST = 100_000  # replicas, or of what a replica takes


@dataclasses.dataclass(frozen=True)
class Share:
    """What of the cluster the deployment takes. replicas: how many; cpus, gpus, tpus: of each, tpus being chips of one host."""

    replicas: int = 1
    cpus: float = 1.0
    gpus: float = 0.0
    tpus: float = 0.0


def app(arguments: Mapping[str, Any]) -> serve.Application:
    """The application that `serve run` starts.

    Raises:
      BadInput: an argument is unknown or wrong, or a package is missing.
    """
    names = {field.name for field in dataclasses.fields(Share)}
    share = Share(**{name: _number(name, value) for name, value in arguments.items() if name in names})
    options = options_of({name: value for name, value in arguments.items() if name not in names})
    keys = checks.read_keys(options.api_key_file)
    deployment = serve.deployment(
        serve.ingress(builder(options, keys))(Replica),
        name=NAME,
        num_replicas=int(share.replicas),
        max_ongoing_requests=options.batch_size + options.max_queue,
        health_check_period_s=HEALTH_SECONDS,
        graceful_shutdown_timeout_s=options.drain_seconds,
        ray_actor_options={"num_cpus": share.cpus, "num_gpus": share.gpus, "resources": {"TPU": share.tpus} if share.tpus else {}},
    )
    return deployment.bind()


def options_of(arguments: Mapping[str, Any]) -> Options:
    """The server's checked options. A list is an option of several values, true a flag."""
    given = []
    for name, value in arguments.items():
        if name in OF_LISTENING:
            raise BadInput(f"{name} is Ray's; see serve run --help, or the http_options of its configuration")
        flag = f"--{name.replace('_', '-')}"
        is_flag = isinstance(value, bool) or str(value).lower() in ("true", "false")
        values = [] if is_flag else value if isinstance(value, list | tuple) else str(value).split() if name == "mesh" else [value]
        given += [] if is_flag and str(value).lower() == "false" else [flag, *map(str, values)]
    try:
        options = read_options(Options, "infer.serve", given)
    except SystemExit:  # tyro has printed what is wrong
        raise BadInput(f"these arguments are none of python -m infer.serve: {' '.join(given)}") from None
    checks.alone(options)
    checks.packages()
    return options


class Replica:
    """A process that serves. Ray starts another in place of one that is not well."""

    def check_health(self) -> None:
        """Raises RuntimeError once the device has failed."""
        if not self.app.state.house.worker.is_well:
            raise RuntimeError("the device failed, or the worker has ended")


def builder(options: Options, keys: list[bytes]) -> Callable[[], fastapi.FastAPI]:
    """What makes the application in the process of a replica. Where there are no ``keys``, a key in the environment of the replica
    counts: on a cluster it need not be that of the process that deploys."""

    def build() -> fastapi.FastAPI:
        from infer import programs, templates  # JAX is imported here
        from infer.serve import routes, session

        programs.use_cache(options.cache_dir)
        template = None if options.chat_template is None else templates.read(options.chat_template)
        loaded, scheduler = session.load(options)
        name = options.model_name or options.target or "embedded"
        house = session.furnish(loaded, scheduler, name, options, keys or checks.read_keys(None), template)
        session.prepare(scheduler, loaded)
        made = routes.make_app(house)
        made.state.house = house
        return made

    return build


def _number(name: str, value: Any) -> float:
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = -1.0
    if not (1 if name == "replicas" else 0) <= found <= MOST:
        raise BadInput(f"{name} should be a number from {1 if name == 'replicas' else 0} to {MOST}, not {value}")
    return found
