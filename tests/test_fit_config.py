"""Settings of `fit`: the paper's defaults, and that nothing wrong goes unnoticed."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.changes import differences
from trainer.cli import UsageError, main
from trainer.config import Fit, fixed_part, record_for_others
from trainer.settings import describe_settings, parse_settings, to_plain, to_yaml

SD15 = """
out: run
base: {architecture: sd15, checkpoint: model.safetensors}
data: {dataset: photographs}
"""
FLUX = SD15.replace("sd15", "flux")


def read(text: str, *overrides: str) -> Fit:
    return parse_settings(text, Fit, "c.yaml", overrides)


def test_defaults_are_the_papers() -> None:
    sd15, flux = read(SD15).resolved(), read(FLUX).resolved()
    assert (sd15.optimizer.name, sd15.optimizer.lr, sd15.batch.total) == ("adamw", 1e-4, 80)
    assert (sd15.noise.offset, sd15.noise.min_snr, sd15.contrastive.share) == (0.04, 2.0, 0.5)
    assert (sd15.steps, sd15.localisation, sd15.adapter.layers, sd15.adapter.rank) == (
        12000,
        0.0,  # with one bokeh token there is nothing that attention could steer
        "decoder",
        0,
    )
    assert (flux.optimizer.name, flux.optimizer.lr, flux.batch.total) == ("prodigy", 1.0, 48)
    assert (flux.adapter.rank, flux.adapter.query_key_rank, flux.adapter.layers) == (128, 128, "all")
    assert (flux.noise.offset, flux.localisation) == (0.0, 0.0)


def test_localisation_is_on_where_it_can_steer() -> None:
    assert read(SD15 + "adapter: {tokens: 2}").resolved().localisation == 0.01
    assert read(FLUX + "adapter: {tokens: 2}").resolved().localisation == 0.0


def test_what_is_given_goes_before_the_defaults() -> None:
    settings = read(
        SD15 + "batch: {total: 8}\noptimizer: {lr: 1e-3}\nlocalisation: 0", "optimizer.name=prodigy"
    )
    resolved = settings.resolved()
    assert resolved.batch.total == 8
    assert (resolved.optimizer.name, resolved.optimizer.lr) == ("prodigy", 1e-3)
    assert resolved.localisation == 0


WRONG = {
    "steps: 10\nstpes: 20": ("line 6", "stpes", "Did you mean steps?"),
    "optimizer: {learning_rate: 1e-4}": ("optimizer.learning_rate", "Did you mean optimizer.lr?"),
    "lr: 1e-4": ("Did you mean optimizer.lr?",),
    "noise: {offsett: 0.1}": ("Did you mean noise.offset?",),
    "xyzzy: 1": ("xyzzy is no setting", "There are: out, base"),
    "steps: many": ("steps is 'many'", "whole number"),
    "steps: 1.5": ("steps is '1.5'", "whole number"),
    "steps: 0": ("steps is 0", "at least 1"),
    "ema: true": ("ema is 'true'", "a number"),
    "ema: 1": ("ema is 1", "at most 0.999999"),
    "optimizer: {lr: 0}": ("optimizer.lr is 0", "above 0"),
    "optimizer: {lr: .inf}": ("optimizer.lr is '.inf'",),
    "optimizer: {lr: inf}": ("optimizer.lr is inf",),
    "optimizer: {lr: nan}": ("optimizer.lr is nan",),
    "optimizer: {name: adamv}": ("optimizer.name is 'adamv'", "Did you mean adamw?"),
    "optimizer: {betas: [0.9]}": ("optimizer.betas has 1 numbers",),
    "optimizer: adamw": ("optimizer must be settings",),
    "samples: {k: 3}": ("samples.k must be a list",),
    "samples: {k: [0, a]}": ("samples.k[1] is 'a'",),
    "samples: {prompts: {a: b}}": ("samples.prompts must be a list",),
    "checkpointing: 1": ("checkpointing is '1'", "true or false"),
    "seed: -1": ("seed is -1", "at least 0"),
    "out: other": ("out is set twice",),
    "batch: {total: 6}": ("batch.total is 6 and contrastive.levels 4",),
    "batch: {micro: 2}": ("batch.micro is 2 and contrastive.levels 4",),
    "contrastive: {k_least: 9, k_most: 8}": ("k_least is 9",),
    "dropout: {caption: 0.6, both: 0.6}": ("add up to more than 1",),
    "steps: [": ("not YAML",),
    "steps: ": ("steps is ''",),
}


@pytest.mark.parametrize("line", WRONG, ids=lambda line: line.replace("\n", "; "))
def test_a_mistake_is_an_error_that_says_where_and_what(line: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(SD15 + line)
    assert "c.yaml" in str(caught.value)
    for part in WRONG[line]:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "out is missing"),
        ("- 1", "must be settings"),
        (SD15.replace("checkpoint: model.safetensors", ""), "either checkpoint or diffusion_model"),
        (SD15.replace("sd15", "sd4"), "must be one of flux, sd15"),
        (FLUX + "localisation: 0.1", "localisation needs cross-attention, which FLUX lacks"),
        (FLUX + "adapter: {layers: decoder}", "adapter.layers is decoder"),
        (
            FLUX.replace("model.s", "x.s").replace("checkpoint:", "prediction: v, checkpoint:"),
            "are for discrete schedules, and FLUX is a",
        ),
    ],
)
def test_what_does_not_go_together(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        read(text)


@pytest.mark.parametrize("override", ["steps", "out.x=1", "bach.total=4", "steps=few"])
def test_overrides_are_checked_too(override: str) -> None:
    with pytest.raises(UsageError):
        read(SD15, override)


def test_settings_survive_yaml() -> None:
    settings = read(SD15, "samples.k=[0, 1.5]", "noise.shift=1e-1").resolved()
    assert parse_settings(to_yaml(settings), Fit) == settings


@pytest.mark.parametrize("name", ["sd15-12gb", "flux-24gb", "tiny", "world-sd15", "world-flux"])
def test_the_shipped_profiles_are_valid(repo: Path, name: str) -> None:
    text = (repo / "trainer" / "configs" / f"{name}.yaml").read_text(encoding="utf-8")
    settings = parse_settings(text, Fit, name).resolved()
    assert settings.batch.total is not None
    if name.endswith("gb"):  # what they spell out is the default
        bare = FLUX if "flux" in name else SD15
        assert settings.optimizer == read(bare).resolved().optimizer
        assert settings.noise == read(bare).resolved().noise
        assert settings.batch.total == read(bare).resolved().batch.total


def test_what_may_change_when_a_run_goes_on() -> None:
    one = to_plain(read(SD15).resolved())
    for free in (
        "steps=5",
        "samples.every=1",
        "checkpoint.keep=9",
        "data.workers=0",
        "batch.micro=8",
        "device=cpu",
    ):
        assert fixed_part(to_plain(read(SD15, free).resolved())) == fixed_part(one)
    for held in (
        "seed=1",
        "optimizer.lr=1e-3",
        "batch.total=8",
        "precision=fp32",
        "data.dataset=x",
        "ema=0.9",
    ):
        other = to_plain(read(SD15, held).resolved())
        assert list(differences(fixed_part(one), fixed_part(other)))
    cosine = [to_plain(read(SD15, "optimizer.schedule=cosine", f"steps={n}").resolved()) for n in (5, 6)]
    assert list(differences(fixed_part(cosine[0]), fixed_part(cosine[1]))) == ["steps: 5 -> 6"]


def test_the_command_line_says_it_and_returns_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(SD15 + "stpes: 3", encoding="utf-8")
    assert main(["fit", str(path)]) == 2
    assert "mine.yaml, line 5: stpes is no setting. Did you mean steps?" in capsys.readouterr().err
    assert main(["fit", str(tmp_path / "none.yaml")]) == 2
    path.write_text(SD15, encoding="utf-8")
    assert main(["fit", str(path), "--show", "--set", "steps=7"]) == 0
    assert parse_settings(capsys.readouterr().out, Fit) == read(SD15, "steps=7").resolved()


def test_the_reference_names_every_setting(repo: Path) -> None:
    text = (repo / "docs" / "train.md").read_text(encoding="utf-8")
    for key, _, default, help in describe_settings(Fit):
        row = next((line for line in text.splitlines() if line.startswith(f"| `{key}` |")), None)
        assert row is not None, f"{key} is not in docs/train.md"
        assert default in row
        assert help in row


def test_an_adapter_tells_nothing_of_the_machine() -> None:
    held = (
        "out=/home/me/out",
        "data.dataset=/data/my photographs/set",
        r"base.vae=C:\\models\\vae.safetensors",
    )
    record = record_for_others(to_plain(read(SD15, *held).resolved()))
    assert not {"out", "samples", "comfyui", "cache"} & set(record)
    assert (record["data"]["dataset"], record["base"]["vae"]) == ("set", "vae.safetensors")
    assert record["optimizer"] == to_plain(read(SD15).resolved())["optimizer"]
    assert not [text for text in map(str, record.values()) if "/" in text.replace("//", "/")]
