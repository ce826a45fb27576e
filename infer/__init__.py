"""Serving text: `python -m infer.generate`, `python -m infer.benchmark`, and the same from Python:

from infer import load

pair = load()
print(pair.complete("def fib(n):", max_new_tokens=64))
for piece in pair.stream("def fib(n):"):
    print(piece, end="", flush=True)
replies = pair.complete(["def fib(n):", "class Node:"])
"""


def __getattr__(name: str):
    if name == "load":  # looked up when it is asked for, so that `import infer` does not start JAX
        from infer.pair import load

        return load
    raise AttributeError(f"module 'infer' has no attribute {name!r}")
