"""The device mesh: two explicit axes, from one device to a pod.

``data`` splits the rows of a batch, ``model`` splits heads, feed-forward width and vocabulary. Every module of the
package writes literal ``PartitionSpec``s over these two names, so the code that runs on one CPU device is the code
that runs on a slice. Not here: choosing a mesh for a machine, starting several processes.
"""

import jax

AXES = ("data", "model")


def make_mesh(data: int = 1, model: int = 1) -> jax.sharding.Mesh:
    """A ``(data, model)`` mesh over the first ``data * model`` devices, with explicit axes.

    Raises:
      ValueError: there are fewer devices than ``data * model``.
    """
    devices = jax.devices()
    if data * model > len(devices):
        raise ValueError(f"a mesh of {data} x {model} needs {data * model} devices; {len(devices)} are visible")
    return jax.make_mesh((data, model), AXES, devices=devices[: data * model])
