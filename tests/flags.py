"""XLA's flags for tests: most of the suite's time is compiling. Imports no JAX, because XLA reads them once, at its start."""

import importlib.metadata

# Level 0 takes a third less time to compile on a CPU, and the older emitters of fusions a third less again. XLA ends a process
# that gives it a flag it does not know, and says nowhere when it drops one: so only for versions that were tried.
KNOWS_THE_OLDER_EMITTERS = importlib.metadata.version("jaxlib").startswith("0.10.")
FASTER_TO_COMPILE = "--xla_backend_optimization_level=0" + " --xla_cpu_use_fusion_emitters=false" * KNOWS_THE_OLDER_EMITTERS


def devices(count: int) -> str:
    """The flag for so many simulated devices of a CPU."""
    return f"--xla_force_host_platform_device_count={count}"
