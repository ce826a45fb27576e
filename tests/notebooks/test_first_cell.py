"""The first cell of the notebooks, which runs before anything is installed, in made-up environments."""

import importlib.metadata
import pathlib
import subprocess
import sys
import types

import pytest

from notebooks import make

ADDRESS = "git+https://github.com/someone/redrafter_jax"
REQUIRES = ["jax<0.13,>=0.10.2", "flax<0.14,>=0.12.8", 'jax[tpu]; extra == "tpu"', 'torch==2.13.0; extra == "dev"']
RIGHT = {"redrafter-jax": "0.1.0", "jax": "0.10.2", "flax": "0.12.8", "libtpu": "0.0.42"}
COLAB_TPU = {"jax": "0.7.2", "flax": "0.11.2", "libtpu": "0.0.21.1"}


class Restarted(Exception):
    """Where a session would have ended."""


@pytest.fixture
def cell(monkeypatch):
    """What the first cell defines, in a Python with the distributions of ``cell.installed`` and without devices. What it runs is in
    ``cell.ran``, and the signals that it sends are in ``cell.signals``."""
    source = first_cell("generate")
    definitions, call = source.rsplit("\n", 1)
    assert call == "set_up(REPOSITORY)"
    names: dict = {}
    exec(compile(definitions, "first cell", "exec"), names)
    found = types.SimpleNamespace(installed={}, ran=[], signals=[], status=0, devices=set(), **names)

    def version(name):
        if name not in found.installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return found.installed[name]

    def run(command, **_):
        found.ran.append(command)
        return types.SimpleNamespace(returncode=found.status)

    def kill(process, signal):
        found.signals.append((process, signal))
        raise Restarted

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: version(name) and REQUIRES)
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(names["os"], "kill", kill)
    monkeypatch.setattr(names["os"].path, "exists", lambda path: path in found.devices)
    monkeypatch.setattr(names["glob"], "glob", lambda pattern: [])
    monkeypatch.setattr(names["time"], "sleep", lambda seconds: None)
    return found


@pytest.fixture
def on_colab(monkeypatch):
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))


def first_cell(name: str) -> str:
    """The source of a notebook's first cell of code."""
    return next(cell.source for cell in make.read_script(name).cells if cell.cell_type == "code")


def test_all_notebooks_begin_with_the_same_cell():
    assert len(make.names()) == 3
    assert len({first_cell(name) for name in make.names()}) == 1


def test_on_colab_with_an_old_jax_it_installs_says_so_and_restarts(cell, on_colab, capsys):
    cell.installed = dict(COLAB_TPU)
    with pytest.raises(Restarted):
        cell.set_up(ADDRESS)
    assert cell.ran == [[sys.executable, "-m", "pip", "install", "-q", f"redrafter-jax[tpu,plots,serve] @ {ADDRESS}"]]
    assert cell.signals == [(cell.os.getpid(), 9)]
    said = capsys.readouterr().out
    assert "redrafter-jax" in said and "The session restarts now" in said and "run all cells again" in said


def test_an_old_jax_is_found_where_the_package_is_there(cell, on_colab, capsys):
    cell.installed = RIGHT | {"jax": "0.7.2"}
    with pytest.raises(Restarted):
        cell.set_up(ADDRESS)
    said = capsys.readouterr().out
    assert "jax<0.13,>=0.10.2" in said and "flax" not in said and "torch" not in said


def test_after_the_restart_it_does_nothing(cell, on_colab, capsys):
    cell.installed = dict(RIGHT)
    cell.set_up(ADDRESS)
    assert cell.ran == [] and cell.signals == []
    assert capsys.readouterr().out == "redrafter_jax 0.1.0 and jax 0.10.2 are installed.\n"


def test_a_version_before_a_release_counts(cell, on_colab):
    cell.installed = RIGHT | {"jax": "0.11.0.dev20260101"}
    assert cell.find_unmet(["tpu"]) == []


@pytest.mark.parametrize(
    "installed, devices, extras",
    [({}, set(), "plots,serve"), ({}, {"/dev/nvidia0"}, "cuda,plots,serve"), (COLAB_TPU, set(), "tpu,plots,serve")],
)
def test_the_extra_fits_the_device(cell, on_colab, installed, devices, extras):
    cell.installed, cell.devices = dict(installed), devices
    with pytest.raises(Restarted):
        cell.set_up(ADDRESS)
    assert cell.ran[0][-1] == f"redrafter-jax[{extras}] @ {ADDRESS}"


def test_a_device_of_a_tpu_is_enough(cell, monkeypatch):
    monkeypatch.setattr(cell.glob, "glob", lambda pattern: ["/dev/vfio/0"] if "vfio" in pattern else [])
    assert cell.find_accelerator() == "tpu"


def test_a_checkout_on_colab_is_installed_from_its_folder(cell, on_colab, tmp_path):
    with pytest.raises(Restarted):
        cell.set_up(str(tmp_path))
    assert cell.ran[0][-1] == f"{tmp_path}[plots,serve]"


def test_where_pip_fails_nothing_restarts(cell, on_colab):
    cell.status = 1
    with pytest.raises(RuntimeError, match="pip could not install"):
        cell.set_up(ADDRESS)
    assert cell.signals == []


def test_without_an_address_it_asks_for_one(cell, on_colab):
    with pytest.raises(RuntimeError, match="address of the repository"):
        cell.set_up(cell.REPOSITORY)
    assert cell.ran == []


def test_elsewhere_nothing_is_installed(cell, capsys):
    cell.installed = dict(COLAB_TPU)
    cell.set_up(ADDRESS)
    assert cell.ran == [] and cell.signals == [] and capsys.readouterr().out == ""


def test_elsewhere_the_checkout_around_the_notebook_is_used(cell, monkeypatch):
    monkeypatch.setattr(cell.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(cell.os.path, "exists", pathlib.Path.exists)
    monkeypatch.chdir(make.FOLDER)
    cell.set_up(ADDRESS)
    assert sys.path[0] == str(make.FOLDER.parent) and cell.ran == []


def test_elsewhere_without_the_package_it_says_what_to_do(cell, monkeypatch, tmp_path):
    monkeypatch.setattr(cell.importlib.util, "find_spec", lambda name: None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RuntimeError, match="not Colab"):
        cell.set_up(ADDRESS)
    assert cell.ran == []
