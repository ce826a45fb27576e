"""What is downloaded of a repository on the hub, and what is said where it cannot be had. The hub is a folder here."""

import json
import pathlib

import huggingface_hub
import pytest
from huggingface_hub.utils import filter_repo_objects

from redrafter_jax.errors import BadInput
from redrafter_jax.files import hub

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SMALL = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
         "chat_template.jinja", "tokenizer.model"]  # fmt: skip
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
OTHERS = ["consolidated.safetensors", "consolidated-00001-of-00002.safetensors", "consolidated.00.pth", "params.json",
          "tekken.json", "original/params.json", "original/tokenizer.model", "original/consolidated.00.pth",
          "pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json", "model.fp16.safetensors", "onnx/model.onnx",
          "README.md", "picture.png", ".gitattributes", "tokenizer.bin"]  # fmt: skip


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """Serves files by their names; returns the names that were asked for, and how. Reads as `snapshot_download` does."""
    asked = []

    def serve(files: dict[str, str], fails: Exception | None = None):
        def snapshot_download(name, *, allow_patterns, ignore_patterns=None, revision="main"):
            assert name == "owner/model" and revision in ("main", COMMIT)
            asked.append(revision)
            if fails is not None:
                raise fails
            folder = tmp_path / "models--owner--model" / "snapshots" / COMMIT
            for file in filter_repo_objects(files, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns):
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                (folder / file).write_text(files[file])
            return str(folder)

        monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
        return asked

    return serve


def taken(folder: pathlib.Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def index(names) -> dict[str, str]:
    return {"model.safetensors.index.json": json.dumps({"weight_map": {f"tensor {n}": name for n, name in enumerate(names)}})}


def test_of_a_repository_that_has_everything_twice_the_model_alone_is_taken(repository):
    files = dict.fromkeys([*SMALL, *SHARDS, "model.safetensors", *OTHERS], "x") | index(SHARDS)
    asked = repository(files)
    folder = hub.locate("owner/model", "--target")
    assert taken(folder) == {*SMALL, *SHARDS, "model.safetensors.index.json"}
    assert asked == ["main", COMMIT]  # both of one commit, whatever is pushed between them


@pytest.mark.parametrize(
    "names",
    [
        ["config.json", "model.safetensors"],
        ["config.json", "medusa_lm_head.safetensors"],
        ["adapter_config.json", "adapter_model.safetensors"],
    ],
)
def test_without_an_index_the_weights_of_a_model_a_head_or_an_adapter_are_taken(repository, names):
    repository(dict.fromkeys([*names, *OTHERS], "x"))
    assert taken(hub.locate("owner/model", "--target")) == set(names)


def test_an_index_cannot_ask_for_more_than_the_files_of_its_names(repository):
    files = dict.fromkeys(["config.json", *OTHERS, "odd[1].safetensors"], "x") | index(["*", "odd[1].safetensors"])
    repository(files)
    assert taken(hub.locate("owner/model", "--target")) == {
        "config.json", "model.safetensors.index.json", "odd[1].safetensors",
    }  # fmt: skip


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.mark.parametrize(
    ("files", "missing"),
    [
        ({"config.json": "x", SHARDS[0]: "x"} | index(SHARDS), SHARDS[1]),
        ({"config.json": "x"}, "model.safetensors"),
    ],
)
def test_offline_a_model_of_which_a_part_is_missing_is_named_with_what_to_do(repository, offline, files, missing):
    repository(files)
    with pytest.raises(BadInput) as caught:
        hub.locate("owner/model", "--target")
    assert str(caught.value) == (
        f"--target: the hub's cache has no {missing} of owner/model, and HF_HUB_OFFLINE is set; unset it, or run"
        " `hf download owner/model` where the hub can be reached, and copy its cache"
    )


def test_offline_a_model_that_was_never_downloaded_is_named_with_what_to_do(tmp_path, monkeypatch, offline):
    """The hub's own client, which finds nothing in its cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(BadInput, match="^--drafter: there is no folder owner/model, and HF_HUB_OFFLINE is set; unset it") as caught:
        hub.locate("owner/model", "--drafter")
    assert "\n" not in str(caught.value)


def test_offline_a_model_in_the_hubs_own_cache_is_found(tmp_path, monkeypatch, offline):
    folder = tmp_path / "models--owner--model" / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_text("x")
    (tmp_path / "models--owner--model" / "refs").mkdir()
    (tmp_path / "models--owner--model" / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert hub.locate("owner/model", "--target") == folder


def test_a_model_that_is_not_open_to_all_is_one_sentence_about_its_terms_and_the_token(repository):
    class Gated(huggingface_hub.errors.GatedRepoError):
        def __init__(self):
            Exception.__init__(self, "403 Client Error.\n\nCannot access gated repo")

    repository({}, Gated())
    with pytest.raises(BadInput, match="^--target: owner/model is for those who accept its terms: .*HF_TOKEN") as caught:
        hub.locate("owner/model", "--target")
    assert "\n" not in str(caught.value)


def test_a_full_disk_is_said_as_such(repository):
    repository({}, OSError(28, "No space left on device"))
    with pytest.raises(BadInput, match="there is no space left on the disk"):
        hub.locate("owner/model", "--target")
