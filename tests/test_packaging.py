"""What `pip install` gives: the same requirements everywhere, one version, and a wheel and an sdist that run from any folder."""

import importlib
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile

import pytest

from redrafter_jax.version import __version__

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGED = ("redrafter_jax", "infer", "train", "pyproject.toml", "README.md", "LICENSE", "requirements.txt")


def requirements(name: str) -> list[str]:
    """The lines of a requirements file without comments and without references to other files."""
    lines = (line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines())
    return [line for line in lines if line and not line.startswith("-r")]


def normal(requirement: str) -> str:
    """A requirement as metadata may spell it: no spaces, the bounds in order."""
    name, bounds = re.fullmatch(r"([\w.-]+(?:\[[\w,]+\])?)(.*)", re.sub(r"[\s()]", "", requirement)).groups()
    return name.lower().replace("_", "-") + ",".join(sorted(bounds.split(",")))


@pytest.mark.parametrize(
    "name", ["requirements.txt", "requirements-dev.txt", "requirements-docs.txt", "requirements-serve.txt", "requirements-ray.txt"]
)
def test_every_requirement_says_both_ends(name):
    for line in requirements(name):
        assert "==" in line or (">=" in line and "<" in line), line


@pytest.mark.parametrize("extra", ["dev", "docs", "serve", "ray"])
def test_an_extra_is_the_requirements_of_its_name(extra):
    assert sorted(PROJECT["project"]["optional-dependencies"][extra]) == sorted(requirements(f"requirements-{extra}.txt"))


def test_the_newest_entry_of_the_changelog_is_the_version():
    entries = re.findall(r"^## \[([\d.]+)\]", (ROOT / "CHANGELOG.md").read_text(), flags=re.M)
    assert entries[0] == __version__


@pytest.mark.parametrize("script", PROJECT["project"]["scripts"].values())
def test_a_console_script_returns_its_exit_code(script, capsys):
    module, name = script.split(":")
    main = getattr(importlib.import_module(module), name)
    assert main(["--target", "/nowhere", "--prompt", "a"] if "generate" in module else ["--target", "/nowhere"]) == 2
    assert capsys.readouterr().err.startswith("error: ")


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[pathlib.Path, pathlib.Path]:
    """The sdist of a copy of the source, and the wheel that is built from the sdist."""
    folder = tmp_path_factory.mktemp("built")
    for name in PACKAGED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    run([sys.executable, "-m", "build", "--outdir", "dist", "."], folder)
    (sdist,), (wheel,) = folder.glob("dist/*.tar.gz"), folder.glob("dist/*.whl")
    return sdist, wheel


def run(command: list, folder: pathlib.Path) -> str:
    """Standard output of a command in a folder, which sees nothing of this repository."""
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV", "XLA_FLAGS")}
    ended = subprocess.run([*map(str, command)], cwd=folder, env=clean, capture_output=True, text=True, timeout=1200)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def packaged_files() -> set[str]:
    """Files of the three packages that belong in a wheel."""
    files = (file for name in PACKAGED[:3] for file in (ROOT / name).rglob("*") if file.is_file())
    return {file.relative_to(ROOT).as_posix() for file in files if file.suffix != ".pyc"}


@pytest.mark.slow
def test_wheel_and_sdist_have_every_file(built):
    sdist, wheel = built
    with zipfile.ZipFile(wheel) as opened:
        names = set(opened.namelist())
        metadata = opened.read(next(name for name in names if name.endswith("METADATA"))).decode()
    assert {name for name in names if ".dist-info/" not in name} == packaged_files()
    with tarfile.open(sdist) as opened:
        inside = {name.partition("/")[2] for name in opened.getnames()}
    assert packaged_files() | {"pyproject.toml", "requirements.txt", "LICENSE", "README.md"} <= inside
    needed = [line.removeprefix("Requires-Dist: ") for line in metadata.splitlines() if line.startswith("Requires-Dist: ")]
    plain = sorted(normal(line) for line in needed if "extra ==" not in line)
    assert plain == sorted(map(normal, requirements("requirements.txt")))
    assert f"Version: {__version__}" in metadata.splitlines()


@pytest.mark.slow
def test_an_empty_environment_runs_the_commands_from_any_folder(built, tmp_path):
    sdist, wheel = built
    run([sys.executable, "-m", "venv", "env"], tmp_path)
    folder, bin_ = tmp_path / "elsewhere", tmp_path / "env" / "bin"
    folder.mkdir()
    for package, more in ((wheel, []), (sdist, ["--no-deps", "--force-reinstall"])):
        run([bin_ / "pip", "install", "--quiet", "--disable-pip-version-check", *more, package], folder)
        said = run([bin_ / "python", "-c", "import redrafter_jax as r; print(r.__version__, r.Engine, r.__file__)"], folder)
        assert said.startswith(__version__) and str(tmp_path / "env") in said
        given = ["--max-new-tokens", 8, "--cache-dir", tmp_path / "cache", "--json"]
        text = run([bin_ / "redrafter-generate", *given], folder)
        assert '"token_ids"' in text
        assert run([bin_ / "python", "-m", "infer.generate", *given], folder).count('"token_ids"') == 1
        for command in ([bin_ / "redrafter-train"], [bin_ / "python", "-m", "train.main"]):
            assert "--conversations" in run([*command, "--help"], folder)
