# ruff: noqa: F811 (fixtures)
"""Saving and merging models with an adapter: that half of it goes along is said, whichever way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests import models
from tests.models import one_thread, relative  # noqa: F401
from tests.sampling import adapter, base, kind, model, said, unloaded  # noqa: F401

Run = Callable[..., Any]


def node(name: str) -> Run:
    import comfy_extras.nodes_model_merging as merging

    cls = getattr(merging, name)
    return lambda *args: getattr(cls(), cls.FUNCTION)(*args)


@pytest.fixture
def without_query_key(pack: ModuleType, base: Any, kind: str) -> Any:
    return pack.bokeh_ops.host.adapter.apply.apply_adapter(base, models.adapter(kind, query_key=False))


@pytest.fixture
def save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], dict[str, Any]]:
    """The weights that ModelSave writes, by their names in the model."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))

    def run(model: Any) -> dict[str, Any]:
        node("ModelSave")(model, "saved")
        (path,) = tmp_path.glob("saved*")
        written = load_file(path)
        path.unlink()
        return {name.removeprefix("model."): value for name, value in written.items()}

    return run


def sampled(kind: str, model: Any) -> Any:
    return models.sample(
        model, models.conditioning(kind, 0), models.conditioning(kind, 1), models.empty_latent(kind), steps=1
    )


@pytest.mark.parametrize("loaded_before", [False, True])
def test_saving_half_an_adapter_is_said(
    kind: str, model: Any, base: Any, save: Any, said: Any, loaded_before: bool
) -> None:
    before = sampled(kind, model) if loaded_before else None
    written = save(model)
    (text,) = (text for text in said() if "being saved" in text)
    assert "Half of the adapter goes into the file" in text
    assert "Save the model that goes into LoadBokehAdapter" in text
    if before is not None:
        assert torch.equal(sampled(kind, model), before)
    models.unload()
    plain = base.model.state_dict()
    assert any(not torch.equal(written[name], plain[name]) for name in written if name in plain)


def test_saving_is_said_where_nothing_of_the_adapter_is_in_the_weights(
    base: Any, without_query_key: Any, save: Any, said: Any
) -> None:
    written = save(without_query_key)
    (text,) = (text for text in said() if "being saved" in text)
    assert "The adapter does not go into the file" in text
    models.unload()
    plain = base.model.state_dict()
    assert all(torch.equal(written[name], plain[name]) for name in written if name in plain)


def test_the_model_before_the_adapter_is_saved_in_silence(
    base: Any, model: Any, save: Any, said: Any
) -> None:
    save(base)
    assert not said()


MERGES: dict[str, tuple[str, tuple[Any, ...]]] = {
    "simple": ("ModelMergeSimple", (0.6,)),
    "subtract": ("ModelSubtract", (0.5,)),
    "add": ("ModelAdd", ()),
}


@pytest.fixture
def other(kind: str) -> Any:
    return models.host_model(kind, seed=5)


@pytest.mark.parametrize("merge", MERGES.values(), ids=MERGES)
def test_merging_another_model_into_an_adapted_one(
    kind: str, model: Any, other: Any, said: Any, merge: tuple[str, tuple[Any, ...]]
) -> None:
    name, settings = merge
    (merged,) = node(name)(model, other, *settings)
    sampled(kind, merged)
    texts = [text for text in said() if "merge" in text]
    assert ["another model was merged into one with a bokeh adapter" in text for text in texts] == [True]
    assert "Merge first, then LoadBokehAdapter" in texts[0]


@pytest.mark.parametrize("merge", MERGES.values(), ids=MERGES)
def test_merging_an_adapted_model_into_another(
    kind: str, model: Any, other: Any, said: Any, merge: tuple[str, tuple[Any, ...]]
) -> None:
    name, settings = merge
    (merged,) = node(name)(other, model, *settings)
    sampled(kind, merged)
    texts = [text for text in said() if "merge" in text]
    assert ["a model with a bokeh adapter was merged into another one" in text for text in texts] == [True]
    assert "Merge first, then LoadBokehAdapter" in texts[0]


def test_merging_by_blocks_and_saving_that(kind: str, model: Any, other: Any, save: Any, said: Any) -> None:
    import comfy_extras.nodes_model_merging as merging

    (merged,) = merging.ModelMergeBlocks().merge(other, model, input=0.3, middle=0.5, out=0.7)
    save(merged)
    assert sum("was merged into another one" in text for text in said()) == 1


def test_merged_twice(kind: str, base: Any, model: Any, other: Any, said: Any) -> None:
    """The adapted model is two merges down."""
    (once,) = node("ModelMergeSimple")(other, model, 0.5)
    (twice,) = node("ModelMergeSimple")(base, once, 0.5)
    sampled(kind, twice)
    assert sum("was merged into another one" in text for text in said()) == 1


@pytest.mark.parametrize("how", ["merged first", "no query/key", "none of the other", "a LoRA"])
def test_what_keeps_the_adapter_whole_is_not_said(
    pack: ModuleType, kind: str, base: Any, model: Any, adapter: Any, without_query_key: Any, other: Any, said: Any,
    how: str,
) -> None:  # fmt: skip
    lay = pack.bokeh_ops.host.adapter.apply.apply_adapter
    if how == "merged first":
        made = lay(node("ModelMergeSimple")(base, other, 0.5)[0], adapter)
    elif how == "no query/key":
        made = node("ModelMergeSimple")(without_query_key, other, 0.5)[0]
    elif how == "none of the other":
        made = node("ModelMergeSimple")(model, other, 1.0)[0]
    else:
        made = model.clone()
        key = next(iter(model.patches))
        made.add_patches({key: ("diff", (torch.ones_like(base.model.state_dict()[key]) * 0.01,))}, 0.5)
    sampled(kind, made)
    assert not [text for text in said() if "merge" in text or "saved" in text]
