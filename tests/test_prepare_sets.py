"""Sets of deep and of shallow depth of field: every rule with a photograph just inside and just outside."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bokeh_ops.errors import BokehError
from tests.photographs import photograph, pixels
from tests.test_prepare_annotate import SETTINGS, accepted, look
from trainer.cli import main
from trainer.data import open_dataset
from trainer.data.prepare import report
from trainer.data.prepare.annotate import look_at
from trainer.data.prepare.lacking import what_is_lacking
from trainer.data.prepare.providers import Photograph, make_providers, pipelines
from trainer.data.prepare.providers.question import BLUR, PHOTOGRAPH
from trainer.data.prepare.record import Item, Record
from trainer.data.prepare.rejection import REASONS
from trainer.data.prepare.settings import Settings
from trainer.data.prepare.sources import PICTURES, items

WIDE: dict[str, Any] = {"focal_length": 24.0}  # sharp all over at f/10
LONG: dict[str, Any] = {"focal_length": 135.0}  # a blur radius of 2 pixels and more at f/10


def beside(path: Path, **fields: Any) -> Path:
    path.with_suffix(".json").write_text(json.dumps(fields))
    return path


def outcome(path: Path, **settings: Any) -> str | None:
    """The reason for which it is refused; None for what is taken."""
    return look(path, **settings).reason


@pytest.mark.parametrize(
    ("set", "fields", "reason"),
    [
        ("deep", {**WIDE, "f_number": 9.99}, "f_number"),
        ("deep", {**WIDE, "f_number": 10.0}, None),
        ("deep", {**WIDE, "f_number": 50.0}, None),
        ("deep", {**WIDE, "f_number": 50.1}, "f_number"),
        ("deep", {**WIDE, "f_number": 0.0}, "no_lens_data"),
        ("deep", {**WIDE, "f_number": 11.0, "exposure_time": 0.1}, None),
        ("deep", {**WIDE, "f_number": 11.0, "exposure_time": 0.101}, "exposure"),
        ("deep", {**LONG, "f_number": 11.0}, "blur"),
        ("deep", {**WIDE, "f_number": 11.0, "make": "", "model": ""}, "no_lens_data"),
        ("shallow", {**LONG, "f_number": 9.99}, None),
        ("shallow", {**LONG, "f_number": 10.0}, "f_number"),
        ("shallow", {**LONG, "f_number": 0.0}, "no_lens_data"),
        ("shallow", {**LONG, "f_number": 5.6, "exposure_time": 2.0}, None),
        ("shallow", {**WIDE, "f_number": 9.0}, "blur"),
        ("shallow", {**WIDE, "f_number": 9.0, "exposure_time": 2.0}, "blur"),  # moved, but no lens blurred it
        ("shallow", {**LONG, "f_number": 5.6, "make": "", "model": ""}, "no_lens_data"),
        ("shallow", {"make": "Apple", "model": "iPhone 8"}, "smartphone"),
    ],
)
def test_rules_of_the_sets(tmp_path: Path, set: str, fields: dict[str, Any], reason: str | None) -> None:
    found = look(photograph(tmp_path / "a.jpg", **fields), set=set)
    assert found.reason == reason, found.detail
    assert reason is None or found.detail


def test_telephones_are_no_camera_of_a_shallow_set_unless_asked_for(tmp_path: Path) -> None:
    path = photograph(tmp_path / "a.jpg", make="Apple", model="iPhone 8", focal_length_35=85)
    assert outcome(path, set="shallow") == "smartphone"
    assert outcome(path, set="shallow", smartphones=True) is None


def test_the_radius_where_nobody_looked(tmp_path: Path) -> None:
    """The limit between the two is that of what is all in focus."""
    deep = photograph(tmp_path / "d.jpg", **LONG, f_number=11.0)
    shallow = photograph(tmp_path / "s.jpg", **LONG, f_number=8.0)
    for path, inside, outside in ((deep, 1.001, 0.999), (shallow, 0.999, 1.001)):
        name = "deep" if path is deep else "shallow"
        radius = accepted(path).info["blur_px"]
        sample = accepted(path, set=name, sharp_radius=radius * inside)
        assert sample.all_in_focus is (name == "deep")
        found = look(path, set=name, sharp_radius=radius * outside)
        assert found.reason == "blur"
        assert f"a blur radius of {radius:.3g} pixels in 95 % of the crop; a {name} set takes" in found.detail


@pytest.mark.parametrize("set", [None, "deep", "shallow"])
@pytest.mark.parametrize("answer", ["no blur", "desired blur", "undesired blur"])
def test_what_a_classifier_says_decides(tmp_path: Path, set: str | None, answer: str) -> None:
    f_number = 5.6 if set == "shallow" else 11.0
    path = beside(photograph(tmp_path / "a.jpg", **WIDE, f_number=f_number), blur=answer)
    wanted = {"deep": ["no blur"], "shallow": ["desired blur"], None: ["no blur", "desired blur"]}[set]
    if answer not in wanted:
        found = look(path, set=set, blur="files")
        assert found.reason == "blur"
        assert f"the classifier says {answer!r}" in found.detail
        return
    sample = accepted(path, set=set, blur="files")
    assert sample.info["blur"] == answer
    assert sample.all_in_focus is (answer == "no blur")
    assert sample.info["all_in_focus_by"] == "classifier"
    assert sample.k is not None
    assert "blur" not in accepted(path).info


def test_a_classifier_and_a_lens_that_contradict_each_other(tmp_path: Path) -> None:
    """Whoever looked is believed; K, which is wrong then, is not trained on."""
    deep = beside(photograph(tmp_path / "d.jpg", **LONG, f_number=11.0), blur="no blur")
    assert outcome(deep, set="deep") == "blur"
    sample = accepted(deep, set="deep", blur="files")
    assert sample.all_in_focus
    assert sample.k is None
    assert sample.info["k_by_lens"] == pytest.approx(accepted(deep).k)
    assert sample.info["f_number"] == 11.0


def test_what_lies_beside_it_counts_more_than_a_classifier(tmp_path: Path) -> None:
    path = photograph(tmp_path / "a.jpg", **LONG, f_number=8.0)
    beside(path, blur="desired blur", pseudo_aif=True)
    found = look(path, set="shallow", blur="files")
    assert (found.reason, found.detail[:18]) == ("blur", "pseudo_aif is true")
    beside(path, blur="desired blur", pseudo_aif=False)
    sample = accepted(path, set="shallow", blur="files")
    assert sample.info["all_in_focus_by"] == "given"


def test_a_deep_set_needs_the_f_number_alone_where_somebody_looked(tmp_path: Path) -> None:
    path = photograph(tmp_path / "a.jpg", **WIDE, f_number=11.0, exposure_time=0.01, make="", model="")
    beside(path, blur="no blur")
    assert outcome(path, set="deep") == "no_lens_data"
    sample = accepted(path, set="deep", blur="files")
    assert sample.all_in_focus
    assert sample.k is None
    assert (sample.info["f_number"], sample.info["exposure_s"]) == (11.0, 0.01)
    beside(path, blur="desired blur", f_number=8)
    assert outcome(path, set="shallow", blur="files") == "no_lens_data"
    bare = photograph(tmp_path / "b.png", f_number=0.0, focal_length=0.0, make="", model="")
    beside(bare, blur="no blur", pseudo_aif=True)
    assert outcome(bare, set="deep", blur="files") == "no_lens_data"
    assert accepted(bare, blur="files").k is None
    beside(bare, blur="desired blur")
    assert outcome(bare, blur="files") == "no_lens_data"


def test_what_a_shallow_set_is_for_has_its_whole_lens(tmp_path: Path) -> None:
    sample = accepted(photograph(tmp_path / "a.jpg", **LONG, f_number=5.6), set="shallow")
    assert sample.k is not None
    assert not sample.all_in_focus
    assert None not in [sample.info[name] for name in ("f_number", "f_mm", "sensor_shown_mm")]


# ---- who is asked ----


@pytest.mark.parametrize(("said", "taken"), [(True, True), ("Yes", True), (False, False), ("no", False)])
def test_photographs_only(tmp_path: Path, said: Any, taken: bool) -> None:
    path = beside(photograph(tmp_path / "a.jpg"), photograph=said)
    if taken:
        assert accepted(path, photograph="files").info["photograph"] == "yes"
    else:
        assert outcome(path, photograph="files") == "not_a_photograph"
    assert "photograph" not in accepted(path).info


@pytest.mark.parametrize(
    ("role", "value", "message"),
    [
        ("blur", "some", "says 'some'; expected no blur, desired blur, undesired blur."),
        ("blur", True, "says 'True'; expected no blur, desired blur, undesired blur."),
        ("blur", ["no blur"], """says "['no blur']"; expected no blur"""),
        ("photograph", "perhaps", "says 'perhaps'; expected yes, no."),
        ("photograph", 0.7, "says '0.7'; expected yes, no."),
    ],
)
def test_answers_that_are_nonsense(tmp_path: Path, role: str, value: Any, message: str) -> None:
    path = beside(photograph(tmp_path / "a.jpg"), **{role: value})
    settings: dict[str, Any] = {role: "files"}
    found = look(path, **settings)
    assert found.reason == "bad_fields"
    assert f"the field {role!r} {message}" in found.detail


def test_no_answer(tmp_path: Path) -> None:
    path = photograph(tmp_path / "a.jpg")
    for role in ("blur", "photograph"):
        settings: dict[str, Any] = {role: "files"}
        found = look(path, **settings)
        assert (found.reason, found.detail) == ("no_answer", f"there is no field {role!r} beside it")


def test_functions_that_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They see the photograph before its depth is computed, and their nonsense is its reason."""
    (tmp_path / "judge_for_tests.py").write_text(
        "def seen(photo):\n    assert photo.disparity is None and photo.image.size == (96, 64)\n    return 'No_Blur'\n"
        "def nonsense(photo):\n    return 'sharpish'\n"
        "def nothing(photo):\n    pass\n"
        "def fails(photo):\n    raise ZeroDivisionError('of mine')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    path = photograph(tmp_path / "a.jpg")
    assert accepted(path, blur="python:judge_for_tests:seen").info["blur"] == "no blur"
    for name, detail in (
        ("nonsense", "python:judge_for_tests:nonsense says 'sharpish'; expected no blur, desired blur, und"),
        ("nothing", "says 'None'; expected"),
        ("fails", "blur: ZeroDivisionError: of mine"),
    ):
        found = look(path, blur=f"python:judge_for_tests:{name}")
        assert found.reason == "provider_failed"
        assert detail in found.detail


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("guess", "blur 'guess' is unknown; choose files, transformers:MODEL or python:MODULE:FUNCTION"),
        ("files:x", "blur 'files:x' is unknown"),
        ("nearest", "blur 'nearest' is unknown"),
        ("transformers:x,task=poetry", "task=poetry answers no question; choose image-text-to-text"),
        ("transformers:x,labels=a", "there is no option labels; known are device, no blur, desired blur"),
    ],
)
def test_words_of_nobody(word: str, message: str) -> None:
    with pytest.raises(BokehError, match=message):
        make_providers(Settings(blur=word))


def photo(seed: int) -> Photograph:
    image = Image.fromarray(pixels((48, 48), seed))
    return Photograph("a", image, None, Record(Item("a.jpg", Path("a.jpg")), PICTURES), {})


def test_answers_of_a_network_that_gives_labels(tmp_path: Path) -> None:
    """The labels of an answer count together; what no answer claims is the last one."""
    import torch

    from tests.host.launch import make_torchvision_importable

    make_torchvision_importable()
    transformers = pytest.importorskip("transformers")
    names = ["Desired_Blur", "sharp", "motion", "no blur"]
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=32,
        patch_size=16,
        initializer_range=1.0,  # or it would say the same of all
        id2label=dict(enumerate(names)),
        label2id={name: number for number, name in enumerate(names)},
    )
    transformers.set_seed(3)
    model = transformers.ViTForImageClassification(config).eval()
    model.save_pretrained(tmp_path)
    processor = transformers.ViTImageProcessor(size={"height": 32, "width": 32})
    processor.save_pretrained(tmp_path)
    judges = {
        labels: make_providers(Settings(blur=f"transformers:{tmp_path}{labels}")).blur
        for labels in ("", ",no blur=sharp+No_blur", ",no blur=motion,desired blur=sharp")
    }
    kinds = {
        "": ["desired blur", "undesired blur", "undesired blur", "no blur"],
        ",no blur=sharp+No_blur": ["desired blur", "no blur", "undesired blur", "no blur"],
        ",no blur=motion,desired blur=sharp": ["undesired blur", "desired blur", "no blur", "undesired blur"],
    }
    seen = set()
    for seed in range(12):
        picture = photo(seed)
        with torch.no_grad():
            shares = model(**processor(images=picture.image, return_tensors="pt")).logits.softmax(1)[0]
        for labels, judge in judges.items():
            assert judge is not None
            sums = dict.fromkeys(BLUR.answers, 0.0)
            for answer, share in zip(kinds[labels], shares.tolist(), strict=True):
                sums[answer] += share
            assert judge(picture) == max(sums, key=lambda answer: sums[answer])
            seen.add((labels, judge(picture)))
    assert len(seen) >= 6  # or nothing was told apart
    with pytest.raises(
        BokehError, match=r"has no label yes; it knows desired blur, motion, no blur, sharp\. Say wh"
    ):
        make_providers(Settings(photograph=f"transformers:{tmp_path}"))
    with pytest.raises(BokehError, match="has no label crisp"):
        make_providers(Settings(blur=f"transformers:{tmp_path},no blur=sharp+crisp"))


def test_answers_of_a_model_that_is_asked_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "Yes, it is."

    def pipeline(task: str, model: str, device: str) -> Callable[..., Any]:
        assert (task, model, device) == ("image-text-to-text", "some/model", "cpu")

        def ask(text: Any, **more: Any) -> Any:
            asked.append(text[0]["content"][1]["text"])
            return [{"generated_text": said}]

        return ask

    asked: list[str] = []
    monkeypatch.setattr(pipelines, "_pipeline", pipeline)
    word = "transformers:some/model,task=image-text-to-text"
    judge = make_providers(Settings(photograph=word)).photograph
    assert judge is not None
    assert judge(photo(0)) == "yes"
    own = make_providers(Settings(photograph=f"{word},prompt=Real?")).photograph
    assert own is not None
    said = "It might be."
    with pytest.raises(BokehError, match=r"some/model says 'It might be\.'; expected yes, no\."):
        own(photo(0))
    assert asked == [PHOTOGRAPH.prompt, "Real?"]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("No blur.", "no blur"),
        ("**Desired blur**: the subject is sharp", "desired blur"),
        ("'undesired_blur'", "undesired blur"),
        ("no blurring", None),
        ("nothing", None),
        ("It has no blur", None),
        ("", None),
    ],
)
def test_sentences(text: str, answer: str | None) -> None:
    if answer is not None:
        assert BLUR.heard(text, "it") == answer
        return
    with pytest.raises(BokehError, match="it says"):
        BLUR.heard(text, "it")


def test_captions_where_there_are_none(tmp_path: Path) -> None:
    asked: list[str] = []

    def caption(photo: Photograph) -> list[str]:
        asked.append(photo.key[:1])
        return ["by a model"] if photo.key.startswith("b") else []

    providers = replace(make_providers(SETTINGS), captions_else=caption)
    assert accepted(photograph(tmp_path / "a.jpg"), providers).captions == ("a disc",)
    assert accepted(photograph(tmp_path / "b.jpg", caption=None), providers).captions == ("by a model",)
    assert look(photograph(tmp_path / "c.jpg", caption=None), providers).reason == "no_captions"
    assert asked == ["b", "c"]
    alone = replace(providers, captions=())
    assert look(tmp_path / "c.jpg", alone, captions=("none",)).reason == "no_captions"


# ---- the command ----


def test_two_sets_of_one_pool(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No photograph is in both, and the report tells why each is in neither."""
    monkeypatch.setattr(report, "histograms", lambda path, *rest: path.write_bytes(b""))
    pool = tmp_path / "pool"
    answers = ["no blur", "desired blur", "undesired blur"]
    for number, f_number in enumerate((1.8, 4.0, 8.0, 9.9, 10.0, 11.0, 22.0, 64.0)):
        for other, answer in enumerate(answers):
            path = pool / f"{number}-{other}.jpg"
            beside(
                photograph(path, seed=10 * number + other, **WIDE, f_number=f_number),
                blur=answer,
                photograph=number != 1,
            )
    kept: dict[str, set[str]] = {}
    for name in ("deep", "shallow"):
        out = tmp_path / name
        words = ["prepare", str(pool), "--out", str(out), "--depth-kind", "metric", "--resolution", "64"]
        words += ["--workers", "0", "--set", name, "--blur", "files", "--photograph", "files"]
        assert main(words) == 0
        dataset = open_dataset(out)
        assert dataset.settings["set"] == name
        kept[name] = {dataset.sample(index).info["id"] for index in range(len(dataset))}
        page = (out / "report" / "report.html").read_text()
        counts = {"not_a_photograph": 3, "f_number": 15 if name == "deep" else 12}
        counts["blur"] = 24 - len(kept[name]) - counts["f_number"] - (0 if name == "deep" else 3)
        if name == "deep":
            del counts["not_a_photograph"]  # those have f/4: refused before anybody is asked
        for reason, count in counts.items():
            assert f"<td>{reason}</td><td class='n'>{count}</td><td>{REASONS[reason]}</td>" in page
    assert kept == {"deep": {"4-0.jpg", "5-0.jpg", "6-0.jpg"}, "shallow": {"0-1.jpg", "2-1.jpg", "3-1.jpg"}}
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["prepare", str(pool), "--out", str(tmp_path / "x"), "--set", "both"])
    assert "invalid choice: 'both'" in capsys.readouterr().err


def test_what_a_list_answers(tmp_path: Path) -> None:
    photograph(tmp_path / "a.jpg")
    line = {"image": "a.jpg", "blur": "desired blur", "photograph": True}
    (tmp_path / "list.jsonl").write_text(json.dumps(line))
    (item,) = items(str(tmp_path / "list.jsonl"), lambda name: True, ())
    settings = replace(SETTINGS, blur="files", photograph="files")
    info = look_at(item, make_providers(settings), settings).info
    assert info is not None
    assert (info["blur"], info["photograph"]) == ("desired blur", "yes")


def test_captions_else_lets_captions_lack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "histograms", lambda path, *rest: path.write_bytes(b""))
    source = photograph(tmp_path / "in" / "a.jpg", caption=None).parent
    words = {"depth": ["files"], "mask": ["files"], "captions": ["files"]}
    assert what_is_lacking(str(source), tmp_path / "out", words) is not None
    for word in ("transformers:some/model", "files"):
        more = {**words, "captions-else": [word]}
        assert what_is_lacking(str(source), tmp_path / "out", more) is None
    more = {**words, "captions-else": ["transformers:some/model"], "depth": ["files:{stem}_d.png"]}
    said = what_is_lacking(str(source), tmp_path / "out", more)
    assert "--captions-else transformers:some/model\n" in str(said)
    (source / "a.words").write_text("another disc")
    command = ["prepare", str(source), "--out", str(tmp_path / "out"), "--resolution", "64", "--workers", "0"]
    assert main([*command, "--depth-kind", "metric", "--captions-else", "files:{stem}.words"]) == 0
    assert open_dataset(tmp_path / "out").sample(0).captions == ("another disc",)
