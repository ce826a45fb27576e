"""XLA's flags for tests: most of the suite's time is compiling. Imports no JAX, because XLA reads them once, at its start."""

import importlib.metadata

EMITTERS = "--xla_cpu_use_fusion_emitters"
# XLA ends a process that gives it a flag it does not know, and says nowhere when it drops one: only for versions that were tried.
HAS_OLDER_EMITTERS = importlib.metadata.version("jaxlib").startswith("0.10.")
# Level 0 takes a third less time to compile on a CPU, and the older emitters of fusions a third less again.
FASTER_TO_COMPILE = "--xla_backend_optimization_level=0" + f" {EMITTERS}=false" * HAS_OLDER_EMITTERS


def devices(count: int) -> str:
    """The flag for so many simulated devices of a CPU."""
    return f"--xla_force_host_platform_device_count={count}"


def of_all_compilers(flags: str) -> str:
    """Without what the TPU's compiler does not know."""
    return " ".join(flag for flag in flags.split() if not flag.startswith(EMITTERS))
