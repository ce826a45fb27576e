"""XLA's flags for tests: most of the suite's time is compiling. Imports no JAX, because XLA reads them once, at its start."""

import importlib.metadata

# XLA ends a process that gives it a flag it does not know, and says nowhere when it drops one: only for versions that were tried.
IS_KNOWN = importlib.metadata.version("jaxlib").startswith("0.10.")
# The older emitters of fusions take a third less time to compile, and a module in one part, where two test processes have
# two cores, a twentieth less.
OF_THE_CPU = " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
# Level 0 takes a third less time to compile on a CPU.
FASTER_TO_COMPILE = "--xla_backend_optimization_level=0" + OF_THE_CPU * IS_KNOWN


def devices(count: int) -> str:
    """The flag for so many simulated devices of a CPU."""
    return f"--xla_force_host_platform_device_count={count}"


def of_all_compilers(flags: str) -> str:
    """Without what the TPU's compiler does not know."""
    return " ".join(flag for flag in flags.split() if not flag.startswith("--xla_cpu_"))
