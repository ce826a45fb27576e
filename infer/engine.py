from redrafter_jax.decode.engine import *  # noqa: F403  (moved; import from redrafter_jax.decode.engine)
