"""Ways to obey an f-number: measures on pictures whose answers are known, and the command from end to end."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from bokeh_ops.depth.focus_transformer import SHIPPED as FOCUS
from bokeh_ops.depth.focus_transformer import FocusTransformer, read_focus_transformer
from bokeh_ops.errors import BokehError
from bokeh_ops.picture.colour import linear_to_srgb
from tests import models
from tests.models import one_thread  # noqa: F401
from tests.test_small import small
from trainer import cli
from trainer.data import open_dataset
from trainer.recipes.dmd.lens import Seen
from trainer.world import apertures
from trainer.world.apertures import APERTURES, Generator, Judges, Made, cameras, figures, monotonicity
from trainer.world.classes import CLASSES, accuracy, read_classes, train_classes, true_classes
from trainer.world.data import scene_sample, write_dataset
from trainer.world.mask import read_mask, write_network
from trainer.world.paint import owners, paint
from trainer.world.scene import HELD_OUT, Scene, draw_scene

pytest.importorskip("skimage")
JUDGES = Judges(read_mask(), read_classes(), None)


@pytest.fixture(autouse=True)
def unloaded(pack: Any) -> Iterator[None]:
    yield
    models.unload()


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base of random weights, which takes a step or two however many are asked of it."""
    from bokeh_ops.host.small import model

    right = model.sample_texts
    monkeypatch.setattr(
        model,
        "sample_texts",
        lambda *given: right(*given[:4], min(given[4], 2), *given[5:]),  # type: ignore[arg-type]
    )
    return small(tmp_path / "base", "flux")


def exact(pictures: Tensor) -> Tensor:
    """Depth that is the same everywhere but for the lower half, which is near."""
    disparity = torch.full_like(pictures[:, :1], 0.3)
    disparity[:, :, 32:] = 2.0
    return disparity


def compared(file: Path, **generators: Generator) -> dict[str, apertures.Way]:
    from bokeh_ops.host.small.model import read_small

    return apertures.ways(read_small(file), generators, exact, read_focus_transformer(FOCUS))


def day(count: int) -> list[Scene]:
    """Without lamps, whose light the lens recovers beyond the picture's white."""
    return [scene for scene in map(draw_scene, range(HELD_OUT, HELD_OUT + 50)) if scene.time == "day"][:count]


def photographed(scene: Scene, picture: Tensor, seen: Seen | None = None) -> dict[str, Any]:
    """Figures of one picture ``[1, 3, S, S]`` that is the same at every aperture."""
    return figures(scene, Made(picture.expand(len(APERTURES) + 1, -1, -1, -1), picture, seen), JUDGES)


def test_a_lens_in_light_is_monotonic_in_light_and_not_in_what_is_displayed(file: Path) -> None:
    way = compared(file)["renders"]
    for scene in day(3):
        made = way(scene, cameras(scene))
        assert made.pictures.shape == (len(APERTURES) + 1, 3, 64, 64)
        taken = torch.from_numpy(scene_sample(scene).image).movedim(-1, 0) / 255
        assert float((made.pictures[-1] - taken).abs().max()) < 1.5 / 255  # the scene's own camera
        found = figures(scene, made, JUDGES)
        assert found["light"] == found["light, even"] == found["display, even"] == 1
        assert found["display"] < 0.5
        assert found["content"] > 0.93
        assert found["content 3"] >= found["content"]
        assert found["named"] == 1
        light = found["brightness of light"]
        assert max(light) < 1.01 * min(light)
        assert found["brightness"][0] > found["brightness"][-1]  # blur makes what is displayed brighter


def test_a_picture_that_never_changes() -> None:
    (scene,) = day(1)
    picture = torch.from_numpy(scene_sample(draw_scene(scene.seed, True)).image).movedim(-1, 0)[None] / 255
    found = photographed(scene, picture)
    assert [found[name] for name in ("display", "display, even", "light", "light, even")] == [0, 0, 0, 0]
    assert found["content"] == found["content 3"] == 1
    assert found["named"] == 1
    assert found["sharpness"] > 2 * photographed(scene, blurred(picture))["sharpness"]
    assert photographed(day(2)[1], torch.full_like(picture, 0.5))["named"] == 0


def blurred(picture: Tensor) -> Tensor:
    return torch.nn.functional.avg_pool2d(picture, 3, 1, 1, count_include_pad=False)


def test_darkening_fakes_the_plain_measure_alone() -> None:
    """The wider open, the darker; and the sharper, which no lens is."""
    light, swept = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)), []
    for number in range(len(APERTURES)):
        swept.append(light * 0.8 ** (len(APERTURES) - number))
        light = blurred(light)
    found = monotonicity(linear_to_srgb(torch.cat(swept)))
    assert found["display"] == 1
    assert found["display, even"] == found["light, even"] == 0
    assert monotonicity(linear_to_srgb(torch.cat(swept).flip(0)))["light, even"] == 1


def test_what_is_focused_on_is_compared_with_the_main_thing() -> None:
    (scene,) = day(1)
    sample = scene_sample(draw_scene(scene.seed, sharp=True))
    picture, disparity = (
        torch.from_numpy(sample.image).movedim(-1, 0)[None] / 255,
        torch.tensor(sample.disparity),
    )
    main, rest = (
        float(disparity[torch.tensor(sample.mask > 0.5) == side].median()) for side in (True, False)
    )
    assert main > rest
    for share, expected in ((1.0, 1.0), (0.6, 1.0), (0.4, 0.0), (0.0, 0.0)):
        maps, focus = disparity[None, None], torch.tensor([share * main + (1 - share) * rest])
        found = photographed(scene, picture, Seen(maps, maps, maps[0], focus, torch.tensor([1.25])))
        assert (found["in focus"], found["scale"]) == (expected, 1.25)
    assert photographed(scene, picture)["in focus"] is None


def test_classes_are_those_of_the_caption(tmp_path: Path) -> None:
    for seed in range(5):
        scene = draw_scene(seed)
        shown, owner = true_classes(scene), paint(scene).owner
        assert (owners(scene) == owner).all()
        assert {CLASSES[n] for n in shown[owner < 0]} == {"backdrop", "ground"}
        for number, thing in enumerate(scene.things):
            assert {CLASSES[n] for n in shown[owner == number]} == {thing.kind}
    shipped = accuracy(read_classes(), range(HELD_OUT, HELD_OUT + 8))
    assert shipped["pixels"] > 0.94
    assert shipped["things"] > 0.8
    dataset = open_dataset(write_dataset(tmp_path / "data", photographs=6, sharp=2))
    untaught, taught = train_classes(dataset, 1, batch=4), train_classes(dataset, 40, batch=8)
    before, after = (accuracy(each, range(6)) for each in (untaught, taught))
    assert after["pixels"] > max(0.8, before["pixels"] + 0.1)
    write_network(tmp_path / "classes.safetensors", taught)
    again = accuracy(read_classes(tmp_path / "classes.safetensors"), range(6))
    assert again == pytest.approx(after, abs=0.01)


def test_ways_differ_in_what_they_tell_the_generator(file: Path) -> None:
    from bokeh_ops.host.small.model import read_small
    from bokeh_ops.host.training.exif import ExifEmbedding

    model = read_small(file)
    width = model.architecture.timestep_embedding(model.network)[1]
    embedding = ExifEmbedding(width).requires_grad_(False)
    torch.nn.init.normal_(embedding.last.weight, generator=torch.Generator().manual_seed(0))
    found = compared(
        file,
        deep=Generator(model),
        joint=Generator(model, FocusTransformer().requires_grad_(False)),
        silent=Generator(model, None, ExifEmbedding(width).requires_grad_(False)),
        exif=Generator(model, None, embedding),
    )
    lenses = ("thin lens", "layered")
    assert list(found) == [
        "renders",
        *(f"renders, {lens}" for lens in lenses),
        "teacher",
        "teacher, words",
        *(f"teacher, {lens}" for lens in lenses),
        *(f"deep, {lens}" for lens in lenses),
        "deep, mean disparity",
        *(f"joint, {lens}" for lens in lenses),
        "silent",
        "exif",
    ]
    scene = next(
        each for each in map(draw_scene, range(HELD_OUT, HELD_OUT + 50)) if each.shot.focal_length > 0.08
    )
    made = {name: way(scene, cameras(scene)) for name, way in found.items()}

    def different(name: str) -> int:
        return len({each.numpy().tobytes() for each in made[name].pictures[: len(APERTURES)]})

    assert [different(name) for name in ("teacher", "teacher, words", "silent", "exif")] == [1, 3, 1, 8]
    for name in found:
        sharp = made[name].pictures[7:8]  # f/22
        if made[name].seen is None and name != "renders":
            assert torch.equal(made[name].sharp, sharp)
    assert torch.equal(made["teacher, words"].sharp, made["teacher, layered"].sharp)
    assert torch.equal(made["silent"].sharp, made["deep, thin lens"].sharp)
    assert torch.equal(made["joint, thin lens"].sharp, made["deep, thin lens"].sharp)
    chains = [made[name].seen for name in ("deep, mean disparity", "deep, thin lens", "joint, thin lens")]
    mean, shipped, own = (float(each.focus) for each in chains if each is not None)
    assert mean == pytest.approx((0.3 + 2.0) / 2)
    assert abs(shipped - mean) > 0.05
    assert abs(own - shipped) > 0.01
    with pytest.raises(BokehError, match="A generator is called 'teacher'"):
        compared(file, teacher=Generator(model))


def test_the_command(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from bokeh_ops.host.small.model import read_small
    from bokeh_ops.host.training.exif import ExifEmbedding

    monkeypatch.setattr("trainer.world.command.start", lambda *_, **__: None)  # it runs
    monkeypatch.setattr(apertures, "LENSES", {"thin lens": "thin_lens"})
    given = {name: tmp_path / name / "generator.safetensors" for name in ("deep", "joint", "exif")}
    for each in given.values():
        each.parent.mkdir()
        shutil.copy(file, each)
    shutil.copy(FOCUS, given["joint"].with_name("focus.safetensors"))
    model = read_small(file)
    width = model.architecture.timestep_embedding(model.network)[1]
    ExifEmbedding(width).save(given["exif"].with_name("exif.safetensors"))
    measured: list[int] = []
    right = apertures.figures
    monkeypatch.setattr(
        apertures, "figures", lambda scene, *rest: measured.append(scene.seed) or right(scene, *rest)
    )
    out = tmp_path / "out"
    words = ["world", "apertures", str(out), str(file), "--scenes", "2", "--reference", "2", "--steps", "2"]
    words += ["--generator", *(f"{name}={each}" for name, each in given.items())]
    assert cli.main(words) == 0
    text = (out / "apertures.md").read_text(encoding="utf-8")
    assert capsys.readouterr().out == text
    assert len(measured) == 2 * 9
    for name in ("renders", "teacher, words", "deep, mean disparity", "joint, thin lens", "exif"):
        assert text.count(f"| {name} | ") == 4
    assert "| renders | 100.0 |" in text.split("Before the lens")[1]  # as named
    with Image.open(out / "apertures.png") as sheet:
        assert sheet.width > 9 * 128
    # Given again it has all it needs; with another file of one generator it makes that one's ways.
    assert cli.main(words) == 0
    assert len(measured) == 2 * 9
    shutil.copy(FOCUS, given["deep"].with_name("focus.safetensors"))
    assert capsys.readouterr().out == text
    assert cli.main(words) == 0
    assert len(measured) == 2 * 9 + 2
    assert capsys.readouterr().out.count("| deep, mean disparity |") == 0


@pytest.mark.parametrize("kind", ["sd15", "flux"])
def test_the_shipped_generators(pack: Any, kind: str) -> None:
    """What they make is sharper than their teacher's, and f-numbers act on it as on a camera."""
    from bokeh_ops.depth.estimate import load_estimator
    from bokeh_ops.host.small.model import read_small
    from bokeh_ops.host.small.shipped import DEPTH, demo_path
    from trainer.frozen.depth import FrozenDepth

    generators = {"joint": Generator(read_small(demo_path(f"{kind}_few_steps")))}
    depth = FrozenDepth(load_estimator(DEPTH))
    found = apertures.ways(read_small(demo_path(kind)), generators, depth, read_focus_transformer())
    rows: dict[str, list[dict[str, Any]]] = {"teacher": [], "joint, layered": []}
    with torch.no_grad():
        for scene in map(draw_scene, range(HELD_OUT, HELD_OUT + 3)):
            for name, values in rows.items():
                values.append(figures(scene, found[name](scene, cameras(scene)), JUDGES))
    for teacher, joint in zip(*rows.values(), strict=True):
        assert joint["light"] == 1
        assert joint["content"] > 0.95
        assert joint["in focus"] == 1
        assert joint["sharpness"] > 1.3 * teacher["sharpness"]
