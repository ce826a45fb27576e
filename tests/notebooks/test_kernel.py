"""Pairs in a notebook's kernel: two meshes side by side, in its cells, in threads, and in its event loop."""

import nbformat

from notebooks import make
from tests.notebooks.kernels import printed, run
from tests.support import MODELS

CELLS = (
    """
import sys
sys.path.insert(0, ROOT)
from infer import load
from redrafter_jax import Shape
one = load(TARGET, HEAD, Shape(2, 3))
other = load(TARGET, HEAD, Shape(2, 3), mesh=(2, 1))
""",
    """
def ids(pair, seed=0):
    return pair.complete([1, 5, 9], max_new_tokens=12, temperature=0.8, seed=seed).reply.token_ids

print(dict(one.engine.mesh.shape), dict(other.engine.mesh.shape))
expected = ids(one)
print("in turn", [ids(pair) == expected for pair in (other, one, other)])
""",
    """
import threading
found = {}
threads = [threading.Thread(target=lambda n=n, p=p: found.update({n: ids(p)})) for n, p in enumerate((one, other, one, other))]
for thread in threads: thread.start()
for thread in threads: thread.join()
print("in threads", [found[n] == expected for n in range(4)])
""",
    """
import asyncio
print("in the event loop", ids(one) == expected)
print("beside it", [got == expected for got in await asyncio.gather(*(asyncio.to_thread(ids, pair) for pair in (one, other)))])
""",
    """
import jax
jax.set_mesh(jax.make_mesh((8,), ("elsewhere",)))
print("under another mesh", [ids(pair) == expected for pair in (one, other)], len(expected))
""",
)


def test_two_pairs_on_two_meshes_in_a_kernel():
    names = {"ROOT": make.FOLDER.parent, "TARGET": MODELS / "target_mha", "HEAD": MODELS / "drafter_mha_rnn"}
    first = "\n".join(f"{name} = {str(value)!r}" for name, value in names.items())
    cells = [nbformat.v4.new_code_cell(source) for source in (first, *CELLS)]
    said = "".join(map(printed, run(nbformat.v4.new_notebook(cells=cells), devices=8)))
    assert "'data': 1, 'model': 1" in said and "'data': 2, 'model': 1" in said
    assert "in turn [True, True, True]" in said
    assert "in threads [True, True, True, True]" in said
    assert "in the event loop True" in said and "beside it [True, True]" in said
    assert "under another mesh [True, True] 12" in said
