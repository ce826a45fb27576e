"""ReDrafter (Recurrent Drafter, arXiv 2403.09919) in JAX: the library, which knows no tokenizer and no command line.

    from redrafter_jax import Engine, Limits, Recurrent, Sampling, Shape, load_drafter, load_target

Names of arrays end in their dimensions (``tokens_BN``):

    B row                 W beam              L drafted position     N tree node
    S cache slot          T text position     D model width          H query head
    K key-value head      C head channel      F feed-forward width   V vocabulary
    E exit width of the draft head            U draft vocabulary

(in the training loss K is the number of drafted positions).
"""

import importlib

from redrafter_jax.version import __version__ as __version__

_PUBLIC = {
    "Engine": "decode.engine",
    "Limits": "decode.request",
    "Reply": "decode.reply",
    "Sampling": "decode.request",
    "Lookup": "decode.propose.lookup",
    "Plain": "decode.propose.plain",
    "Proposer": "decode.propose.proposer",
    "Recurrent": "decode.propose.recurrent",
    "Shape": "decode.propose.recurrent",
    "Union": "decode.propose.union",
    "BadInput": "errors",
    "make_mesh": "devices.mesh",
    "load_drafter": "files.weights",
    "load_target": "files.weights",
    "save_drafter": "files.weights",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str):
    if name in _PUBLIC:  # looked up when it is asked for, so that a command's --help does not start JAX
        return getattr(importlib.import_module(f"redrafter_jax.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module 'redrafter_jax' has no attribute {name!r}")
