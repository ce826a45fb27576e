"""The beginning of a notebook: one folder for all that it writes, and a sentence about the devices."""

import os
import pathlib

WANTED = "On Colab: Runtime > Change runtime type > TPU."


def begin(folder: str | pathlib.Path) -> pathlib.Path:
    """Makes the folder, keeps downloads and compiled programs in it, and says what this machine has."""
    path = pathlib.Path(folder).expanduser()
    path.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("HF_HOME", str((path / "hub").resolve()))  # read when the hub is first imported
    import jax

    from infer.programs import use_cache

    use_cache((path / "programs").resolve())
    devices = jax.devices()
    print(describe_devices(devices[0].platform, devices[0].device_kind, len(devices)))
    print(f"All files are kept in the folder {folder}.")
    return path


def describe_devices(platform: str, kind: str, count: int) -> str:
    """What there is to decode on, in a sentence, and where a TPU is to be had."""
    if platform == "tpu":
        return f"{count} TPU chip{'s' * (count > 1)} ({kind})."
    return f"There is no TPU here, so all of this runs on {count} device{'s' * (count > 1)} of kind {kind}. {WANTED}"
