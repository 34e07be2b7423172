"""Sweeps of held-out captions: made once, in folders that `evaluate images` measures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from bokeh_ops.depth.estimate import load_estimator
from bokeh_ops.errors import BokehError
from tests import models
from tests.models import one_thread  # noqa: F401
from tests.test_small import small
from trainer.data import open_dataset
from trainer.frozen.depth import FrozenDepth
from trainer.measure.sweep_measures import measure_sweep
from trainer.measure.sweeps import find_sweeps, match_reference
from trainer.world.data import write_dataset
from trainer.world.depth import depth_errors, train_depth, write_depth
from trainer.world.mask import overlap, read_mask, train_mask, write_network
from trainer.world.scene import HELD_OUT
from trainer.world.steps import measure, renders, ways
from trainer.world.sweeps import KS, Variant, held_out, write_reference, write_sweeps

pytest.importorskip("skimage")


@pytest.fixture(autouse=True)
def unloaded(pack: Any) -> Iterator[None]:
    yield
    models.unload()


@pytest.fixture
def base(tmp_path: Path) -> Any:
    from bokeh_ops.host.small.model import read_small

    return read_small(small(tmp_path / "base", "flux"))


def adapter(base: Any) -> Any:
    from bokeh_ops.adapter.network import AdapterConfig, BokehAdapter, LayerSpec
    from bokeh_ops.host.architectures import recognise

    layers = {path: LayerSpec(width, 4) for path, width in recognise(base.patcher).widths.items()}
    made = BokehAdapter(AdapterConfig("flux", bokeh_hidden_dim=8, bokeh_context_dim=16), layers)
    source = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in made.parameters():
            weight.copy_(torch.randn(weight.shape, generator=source) * 0.3)
    return made


class Known:
    """In place of the network: the main thing is the left half."""

    def mask(self, pictures: torch.Tensor) -> torch.Tensor:
        found = torch.zeros(len(pictures), *pictures.shape[2:], dtype=torch.bool)
        found[:, :, : pictures.shape[3] // 2] = True
        return found


KNOWN: Any = Known()


def test_what_is_rendered_is_its_own_best_reference(pack: Any, tmp_path: Path) -> None:
    write_reference(tmp_path, held_out(2))
    found = find_sweeps(tmp_path)
    assert [sweep.name for sweep in found] == [f"scene{HELD_OUT}", f"scene{HELD_OUT + 1}"]
    for sweep in found:
        assert sweep.values == KS
        measured = measure_sweep(sweep, match_reference(sweep, found))
        assert measured["lvcorr"] == pytest.approx(1)
        assert measured["lv_rank"] == pytest.approx(1)


def test_sweeps_are_sampled_once(base: Any, tmp_path: Path) -> None:
    variant = Variant(steps=3)
    folder = tmp_path / "sweeps"
    write_sweeps(folder, base, adapter(base), held_out(1), variant, KNOWN)
    (sweep,) = find_sweeps(folder)
    assert sweep.values == KS
    pictures = sweep.load()
    assert pictures[0].shape == (3, 64, 64)
    assert sweep.pivot is not None
    assert sweep.pivot[0] == 14
    # A target of the pivot's own K is it.
    assert sweep.pivot[1].read_bytes() == (folder / f"scene{HELD_OUT}" / "k14.png").read_bytes()
    assert not torch.equal(pictures[0], pictures[-1])  # another K, another picture
    before = sweep.paths[0].stat().st_mtime_ns
    write_sweeps(folder, base, adapter(base), held_out(2), variant, KNOWN)
    assert len(find_sweeps(folder)) == 2
    assert sweep.paths[0].stat().st_mtime_ns == before
    with pytest.raises(BokehError, match="made in another way"):
        write_sweeps(folder, base, adapter(base), held_out(2), Variant(steps=3, grounding=0), KNOWN)


def test_colours_are_those_of_the_pivot(base: Any, tmp_path: Path) -> None:
    made = adapter(base)
    write_sweeps(tmp_path / "as", base, made, held_out(1), Variant(steps=3), KNOWN)
    write_sweeps(
        tmp_path / "matched", base, made, held_out(1), Variant(steps=3, colours="mean and deviation"), KNOWN
    )
    (plain,), (matched,) = find_sweeps(tmp_path / "as"), find_sweeps(tmp_path / "matched")
    assert measure_sweep(matched)["drift_L"] < 0.5 * measure_sweep(plain)["drift_L"]


def test_k_has_a_guidance_scale_of_its_own(base: Any, tmp_path: Path) -> None:
    made = adapter(base)
    found = {}
    for name, scale in (("with the caption", None), ("alone", 1.0), ("more", 30.0)):
        variant = Variant(steps=3, bokeh_guidance=scale)
        write_sweeps(tmp_path / name, base, made, held_out(1), variant, KNOWN)
        (sweep,) = find_sweeps(tmp_path / name)
        found[name] = torch.stack(sweep.load())
    # Without guidance by the caption (FLUX), a scale of 1 leaves the estimate as it is, but for the files' 8 bits.
    assert float((found["alone"] - found["with the caption"]).abs().max()) <= 1.01 / 255
    assert float((found["more"] - found["alone"]).abs().max()) > 0.02


def test_the_subject_is_what_is_found_in_the_pivot(base: Any, tmp_path: Path) -> None:
    made = adapter(base)
    for name, kept in (("whole", False), ("kept", True)):
        variant = Variant(steps=3, grounding=0, subject=kept)
        write_sweeps(tmp_path / name, base, made, held_out(1), variant, KNOWN)
    (whole,), (kept,) = find_sweeps(tmp_path / "whole"), find_sweeps(tmp_path / "kept")
    assert whole.pivot is not None
    assert kept.pivot is not None
    assert torch.equal(whole.load_pivot(), kept.load_pivot())
    assert measure_sweep(kept)["focus_dE"] < 0.8 * measure_sweep(whole)["focus_dE"]


def test_words_share_the_noise_and_say_something_of_blur(base: Any, tmp_path: Path) -> None:
    write_sweeps(tmp_path / "words", base, None, held_out(1), Variant("words", steps=3), KNOWN)
    (sweep,) = find_sweeps(tmp_path / "words")
    pictures = sweep.load()
    assert torch.equal(pictures[2], pictures[4])  # 14 and 28 are the same words
    assert not torch.equal(pictures[0], pictures[4])
    with pytest.raises(BokehError, match="controlled by an adapter"):
        write_sweeps(tmp_path / "none", base, None, held_out(1), Variant(steps=3), KNOWN)


def test_the_experiment_is_a_table(base: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trainer.world import experiment

    assert {name for name, _ in experiment.variants(["both", "wild"]).values()} == {None, "both", "wild"}
    chosen = {"words": (None, Variant("words", steps=2)), "pivot 4": ("both", Variant(steps=2, pivot=4.0))}
    made = {"both": adapter(base)}
    table = experiment.run(tmp_path / "out", base, made, KNOWN, None, 2, chosen)
    assert list(table) == ["words", "pivot 4"]
    assert -1 <= table["words"]["lvcorr"].mean <= 1
    assert table["pivot 4"]["focus_dE"].mean > 0
    text = (tmp_path / "out" / "table.md").read_text(encoding="utf-8")
    assert f"| {table['pivot 4']['focus_dE'].mean:.3f} (" in text
    assert "n/a" in text  # no weights of LPIPS were given

    def no_sampling(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr("trainer.world.sweeps._sample", no_sampling)
    assert str(experiment.run(tmp_path / "out", base, made, KNOWN, None, 2, chosen)) == str(table)
    # One alone: the others stay in the table.
    assert list(
        experiment.run(tmp_path / "out", base, made, KNOWN, None, 2, {"words": chosen["words"]})
    ) == list(table)
    with Image.open(tmp_path / "out" / "sheets" / "pivot-4.png") as sheet:
        assert sheet.width > 6 * 3 * 64  # the pivot and five K
    (tmp_path / "out" / "figures.json").write_text('{"scenes": 2}')
    with pytest.raises(BokehError, match=r"figures\.json is not what this command wrote .* Delete it"):
        experiment.run(tmp_path / "out", base, made, KNOWN, None, 2, chosen)


def test_the_mask_of_the_main_thing_can_be_learnt(pack: Any, tmp_path: Path) -> None:
    dataset = open_dataset(write_dataset(tmp_path / "data", photographs=6, sharp=2))
    untaught, taught = train_mask(dataset, 1, batch=4), train_mask(dataset, 40, batch=8)
    assert overlap(taught, dataset, range(8)) > max(0.5, overlap(untaught, dataset, range(8)) + 0.2)
    write_network(tmp_path / "mask.safetensors", taught)
    assert overlap(read_mask(tmp_path / "mask.safetensors"), dataset, range(8)) == pytest.approx(
        overlap(taught, dataset, range(8)), abs=0.02
    )


def test_depth_can_be_learnt(pack: Any, tmp_path: Path) -> None:
    dataset = open_dataset(write_dataset(tmp_path / "data", photographs=6, sharp=2))
    untaught, taught = train_depth(dataset, 1, batch=4), train_depth(dataset, 60, batch=8)
    before, after = (depth_errors(FrozenDepth(each), dataset, range(8)) for each in (untaught, taught))
    assert all(after[name] < 0.6 * before[name] for name in before)
    write_depth(tmp_path / "depth", taught)
    again = depth_errors(FrozenDepth(load_estimator(tmp_path / "depth")), dataset, range(8))
    assert again == pytest.approx(after, rel=0.05)


def test_edits_are_measured_against_true_renders(
    base: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bokeh_ops.host.adapter.apply import apply_adapter
    from trainer.world import edit

    methods = ("again", "sdedit", "flowedit", "inverted", "retextured", "true")
    assert {way.method for way in edit.ways().values()} == {"none", *methods}
    chosen = {"no edit": edit.Edit("none")}
    for method in methods:
        chosen[method] = edit.Edit(method, strength=0.5, steps=2, corrections=0, subject=method == "inverted")
    patcher = apply_adapter(base.patcher, adapter(base))
    table = edit.measure(base, patcher, held_out(2), chosen, None, tmp_path)
    cells = [f"{k0:g} -> {k1:g}" for k0 in edit.FROM for k1 in KS]
    for name, found in table.items():
        assert set(found) == {*cells, *(f"{k0:g} -> all" for k0 in edit.FROM)}
        for cell in cells:
            k0, k1 = map(float, cell.split(" -> "))
            # K of the photograph changes nothing.
            exact = k1 == k0 and name in ("no edit", "flowedit", "inverted")
            exact |= k1 >= k0 and name == "retextured"  # which knows all, and has nothing to invent
            assert (found[cell]["psnr"].mean > 60) == exact, (name, cell)
            if exact:
                assert found[cell]["focus"].mean == pytest.approx(1, abs=1e-3), (name, cell)
    assert "| flowedit |" in (tmp_path / "edit.md").read_text()
    assert len(list((tmp_path / "sheets").glob("*.png"))) == len(chosen) * len(edit.FROM)
    # Given again it has all it needs; with one scene more it makes that one's.
    made: list[int] = []
    right = edit.edited
    monkeypatch.setattr(edit, "TOGETHER", 2)
    monkeypatch.setattr(edit, "edited", lambda *args: made.append(len(args[0].seeds)) or right(*args))
    assert str(edit.measure(base, patcher, held_out(2), chosen, None, tmp_path)) == str(table)
    assert not made
    edit.measure(base, patcher, held_out(3), {"no edit": chosen["no edit"]}, None, tmp_path)
    assert made == [1] * len(edit.FROM)
    with pytest.raises(BokehError, match=r"values\.json is of another base or adapter"):
        edit.measure(base, patcher, held_out(2), chosen, None, tmp_path, "another")


def test_generators_beside_their_teacher(base: Any, tmp_path: Path) -> None:
    network = read_mask()
    assert network.features(renders([0]).movedim(-1, 1)).shape == (1, 128)
    compared = ways(base, {"distilled": base})
    assert [(way.steps, way.cfg, way.sampler, way.told) for way in compared.values()] == [
        (20, 1.0, "euler", ""),
        (4, 1.0, "euler", ""),
        (20, 1.0, "euler", "sharp background"),
        (4, 1.0, "lcm", ""),
        (4, 1.0, "lcm", ""),
    ]
    found = measure(tmp_path / "out", compared, network, 3, 3)
    assert list(found) == ["renders", *compared]
    assert found["teacher, 4 steps of lcm"][0] == found["distilled, 4 steps"][0]
    assert found["renders"][0] < found["distilled, 4 steps"][0]
    assert (tmp_path / "out" / "steps.png").is_file()
    assert (tmp_path / "out" / "steps.md").read_text().count("\n") == 8
