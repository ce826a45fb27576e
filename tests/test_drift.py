"""The drift of an adapted target, against its definition in NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from redrafter_jax import drift
from redrafter_jax.loss import IGNORED_LABEL
from tests import small
from tests.support import put

B, T, D = 8, 11, 32


def given():
    rng = np.random.default_rng(0)
    hidden, original = (put(rng.normal(size=(B, T, D)), np.float32) for _ in range(2))
    labels = rng.integers(0, small.V, (B, T))
    labels[:, 3] = IGNORED_LABEL
    segments = np.broadcast_to(np.array([1] * 5 + [2] * 4 + [0] * 2), (B, T))
    labels[segments == 0] = IGNORED_LABEL
    return hidden, original, labels, segments


def by_definition(target, hidden, original, labels, segments) -> tuple[float, ...]:
    logs = [np.asarray(jax.nn.log_softmax(target.unembed(of))) for of in (hidden, original)]
    found = []
    for b in range(B):
        for t in range(T - 1):
            if segments[b, t] != segments[b, t + 1] or labels[b, t + 1] == IGNORED_LABEL:
                continue
            q, p = logs[0][b, t], logs[1][b, t]
            label = labels[b, t + 1]
            found.append((np.sum(np.exp(p) * (p - q)), -q[label], -p[label], q.argmax() == p.argmax()))
    return *np.mean(found, axis=0), len(found)


@pytest.mark.parametrize("mesh", [(1, 1), (2, 4)], ids=str)
def test_the_drift_is_that_of_its_definition_whatever_the_chunk_and_the_mesh(mesh):
    target, _ = small.models()
    expected = by_definition(target, *given())
    target, _ = small.models(mesh)
    hidden, original, labels, segments = given()
    labels = drift.labels_of_next_tokens(put(labels), put(segments))
    measure = jax.jit(drift.measure, static_argnames="chunk")
    for chunk in (0, 4):
        found = measure(target, hidden, target, original, labels, chunk=chunk)
        np.testing.assert_allclose(list(dataclasses.astuple(found)), expected, rtol=1e-4)
    assert float(measure(target, hidden, target, hidden, labels).kl) == 0

    def by_logits(hidden):
        q, p = (jax.nn.log_softmax(target.unembed(of)) for of in (hidden, original))
        return jnp.sum(jnp.where(labels != IGNORED_LABEL, jnp.sum(jnp.exp(p) * (p - q), axis=-1), 0)) / expected[-1]

    ours = jax.jit(jax.grad(lambda hidden: drift.measure(target, hidden, target, original, labels, chunk=4).kl))(hidden)
    np.testing.assert_allclose(ours, jax.grad(by_logits)(hidden), atol=1e-6)


def test_a_text_without_labels_has_no_drift_and_no_gradient_that_is_no_number():
    target, _ = small.models()
    hidden, original, labels, _ = given()
    nothing = put(np.full(labels.shape, IGNORED_LABEL))
    aim = lambda hidden: drift.measure(target, hidden, target, original, nothing).kl  # noqa: E731
    kl, gradient = jax.jit(jax.value_and_grad(aim))(hidden)
    assert float(kl) == 0 and not np.asarray(gradient).any()
