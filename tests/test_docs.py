"""What people read keeps step with the nodes: help pages, translations, README and the folder ``docs``.

    python -m tests.test_docs

writes ``locales/en/nodeDefs.json`` anew from the nodes' own English.
"""

from __future__ import annotations

import ast
import contextlib
import io
import itertools
import json
import os
import re
import runpy
import unicodedata
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
LANGUAGES = ("en", "zh", "ja")
HELP = ROOT / "web" / "docs"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
PICTURE_BYTES = 120_000


def words(language: str) -> dict[str, Any]:
    return json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))


def help_page(node_id: str, language: str) -> Path:
    """The front end asks for ``docs/NODE/LANGUAGE.md`` and then for ``docs/NODE.md``, which is English here."""
    return HELP / f"{node_id}.md" if language == "en" else HELP / node_id / f"{language}.md"


def english(node_classes: dict[str, Any]) -> dict[str, Any]:
    """The nodes' own texts, as the front end's translations are laid out."""
    found = {}
    for node_id, cls in node_classes.items():
        schema = cls.GET_SCHEMA()
        found[node_id] = {
            "display_name": schema.display_name,
            "description": schema.description,
            "inputs": {
                entry.id: {"name": entry.display_name or entry.id, "tooltip": entry.tooltip}
                for entry in schema.inputs
            },
            "outputs": {
                str(index): {"name": entry.display_name or entry.io_type, "tooltip": entry.tooltip}
                for index, entry in enumerate(schema.outputs)
            },
        }
    return found


def texts(entry: Any) -> Iterator[str]:
    if isinstance(entry, dict):
        for value in entry.values():
            yield from texts(value)
    else:
        yield entry


def foreign(text: str) -> bool:
    """Whether a text has Chinese characters or kana."""
    return bool(re.search(r"[\u3040-\u30ff\u4e00-\u9fff]", text))


def columns(line: str) -> int:
    """Width in a fixed-width font, where Chinese characters and kana take two columns."""
    return sum(1 + (unicodedata.east_asian_width(char) in "WF") for char in line)


# ---- translations ----


def test_english_is_what_the_nodes_say(node_classes: dict[str, Any]) -> None:
    assert words("en") == english(node_classes), "run `python -m tests.test_docs`, then mend zh and ja"


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_node_is_translated_whole(node_classes: dict[str, Any], language: str) -> None:
    found = words(language)
    assert set(found) == set(node_classes)
    for node_id, wanted in english(node_classes).items():
        entry = found[node_id]
        assert set(entry["inputs"]) == set(wanted["inputs"]), node_id
        assert set(entry["outputs"]) == set(wanted["outputs"]), node_id
        assert all(texts(entry)), f"{node_id}: a text is empty"
        for part in ("inputs", "outputs"):
            for name in wanted[part]:
                assert set(entry[part][name]) == {"name", "tooltip"}, f"{node_id}: {name}"


@pytest.mark.parametrize("language", ["zh", "ja"])
def test_translations_are_in_their_language(language: str) -> None:
    for node_id, entry in words(language).items():
        long = [entry["display_name"], entry["description"]]
        long += [each["tooltip"] for part in ("inputs", "outputs") for each in entry[part].values()]
        left = [text for text in long if not foreign(text)]
        # An example that is nothing but a node's name needs no translation.
        assert not [text for text in left if len(text.split()) > 3], f"{node_id}: still English: {left}"
    assert words("zh") != words("ja")


@pytest.mark.parametrize("language", LANGUAGES)
def test_translations_hold_no_sign_that_the_front_end_interprets(language: str) -> None:
    """vue-i18n takes these for links, places to fill in, and choices of plural."""
    for file in (ROOT / "locales" / language).glob("*.json"):
        for text in texts(json.loads(file.read_text(encoding="utf-8"))):
            assert not re.search(r"[@{}|]", text), f"{file.relative_to(ROOT)}: {text}"


@pytest.mark.parametrize("language", ["zh", "ja"])
def test_values_of_drop_down_lists_are_named_as_the_node_shows_them(
    node_classes: dict[str, Any], language: str
) -> None:
    """They stay English, so a tooltip that explains one has to spell it so."""
    found = words(language)
    for node_id, cls in node_classes.items():
        for entry in cls.GET_SCHEMA().inputs:
            options = [str(option) for option in getattr(entry, "options", None) or ()]
            for quoted in re.findall(
                r"[“「]([a-z][a-z0-9 ()-]+)[”」]", found[node_id]["inputs"][entry.id]["tooltip"]
            ):
                known = [o for each in node_classes.values() for o in all_options(each)]
                assert any(option.startswith(quoted) for option in options or known), f"{node_id}: {quoted}"


def all_options(cls: Any) -> list[str]:
    return [str(o) for entry in cls.GET_SCHEMA().inputs for o in getattr(entry, "options", None) or ()]


def test_the_server_gives_the_translations_out(comfy_server: Any) -> None:
    served = comfy_server.get("/i18n")
    for language in LANGUAGES:
        mine = {name: entry for name, entry in served[language]["nodeDefs"].items() if name in words("en")}
        assert mine == words(language)
    for language in ("zh", "ja"):
        assert foreign(served[language]["nodeCategories"]["Bokeh"])


# ---- help pages ----


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_node_has_a_help_page_that_names_all_it_has(
    node_classes: dict[str, Any], language: str
) -> None:
    for node_id, cls in node_classes.items():
        page, schema = help_page(node_id, language), cls.GET_SCHEMA()
        assert page.exists(), f"{page.relative_to(ROOT)} is missing"
        text = page.read_text(encoding="utf-8")
        names = [entry.id for entry in schema.inputs]
        names += [entry.display_name or entry.io_type for entry in schema.outputs]
        unexplained = [name for name in names if f"`{name}`" not in text]
        assert not unexplained, f"{page.relative_to(ROOT)} says nothing of {unexplained}"
        graphs = re.findall(r"```\n(.*?)```", text, flags=re.DOTALL)
        assert graphs, f"{page.relative_to(ROOT)} shows no graph"
        # The side panel that shows these pages is no wider, and code does not wrap.
        assert all(columns(line) <= 34 for graph in graphs for line in graph.splitlines())
        assert foreign(text) == (language != "en")


def test_no_help_page_without_a_node(node_classes: dict[str, Any]) -> None:
    allowed = {help_page(node_id, language) for node_id in node_classes for language in LANGUAGES}
    assert set(HELP.rglob("*.md")) == allowed


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_server_gives_the_help_pages_out_where_the_front_end_asks(
    comfy_server: Any, node_classes: dict[str, Any], language: str
) -> None:
    for node_id in node_classes:
        page = help_page(node_id, language)
        served = comfy_server._open(f"/extensions/comfyui-bokeh/docs/{page.relative_to(HELP).as_posix()}")
        assert served.decode() == page.read_text(encoding="utf-8")


def test_pictures_of_help_pages_are_served_from_the_folder_of_the_pages(comfy_server: Any) -> None:
    """The front end puts the folder ``docs`` before a relative picture, whatever page it stands on."""
    shown = {
        link
        for page in HELP.rglob("*.md")
        for image, link in links(page.read_text(encoding="utf-8"))
        if image
    }
    assert shown
    for link in shown:
        assert comfy_server._open(f"/extensions/comfyui-bokeh/docs/{link}") == (HELP / link).read_bytes()


def test_help_pages_link_to_nothing_but_pictures() -> None:
    """In the front end a relative link would lead nowhere."""
    for page in HELP.rglob("*.md"):
        for image, link in links(page.read_text(encoding="utf-8")):
            assert image or link.startswith("https://"), f"{page.relative_to(ROOT)} links to {link}"


# ---- README and docs ----


def without_code(text: str) -> str:
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def links(text: str) -> list[tuple[bool, str]]:
    """``(is it a picture, target)`` of every Markdown link."""
    found = re.findall(r"(!?)\[[^\]]*\]\(([^)\s]+)\)", without_code(text))
    return [(bool(mark), target) for mark, target in found]


def anchors(page: Path) -> set[str]:
    """The anchors that code hosts make of the headings."""
    headings = re.findall(r"^#+ (.+)$", without_code(page.read_text(encoding="utf-8")), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_somewhere(page: Path) -> None:
    for _, link in links(page.read_text(encoding="utf-8")):
        if link.startswith(("https://", "http://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name} links to {link}"
        assert target.is_relative_to(ROOT)
        if anchor:
            assert anchor in anchors(target), f"{page.name} links to {link}"


def test_workflows_named_exist_and_all_are_named() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shipped = {path.stem for path in (ROOT / "workflows").glob("*.json")}
    assert shipped
    named = {
        Path(name).stem
        for page in [*PAGES, *HELP.rglob("*.md")]
        for name in re.findall(r"workflows/([\w-]+\.json)", page.read_text(encoding="utf-8"))
    }
    assert named <= shipped
    assert shipped == set(re.findall(r"\(workflows/([\w-]+)\.json\)", readme))


def test_every_node_is_in_the_readme(node_classes: dict[str, Any]) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\(web/docs/(\w+)\.md\)", readme))
    assert named == set(node_classes)
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    for cls in node_classes.values():
        title = re.sub(r" \(.*", "", cls.GET_SCHEMA().display_name)
        assert f"**{title}" in changes, f"the changelog has no {title}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist(page: Path) -> None:
    import run

    code = re.findall(
        r"```.*?```|`[^`\n]+`|^    .+$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    for text in code:
        for command in re.findall(r"python3? run\.py ([\w-]+)", text):
            assert command in run.NEEDS
        for module in re.findall(r"python3? -m ([\w.]+)", text):
            path = ROOT / module.replace(".", "/")
            assert path.with_suffix(".py").exists() or (path / "__init__.py").exists(), module
        for file in re.findall(r"\b((?:tests|workflows|bokeh_ops|nodes|web|docs)/[\w./-]*\w)", text):
            assert (ROOT / file).exists() or "custom_nodes" in text, file


def test_environment_variables_named_are_read_somewhere() -> None:
    files = [path for folder in ("tests", "trainer") for path in (ROOT / folder).rglob("*.py")]
    source = "".join(path.read_text(encoding="utf-8") for path in files)
    named = {
        name for page in PAGES for name in re.findall(r"\bBOKEH_[A-Z]+\b", page.read_text(encoding="utf-8"))
    }
    assert named
    for name in named:
        assert re.search(rf'environ\.get\("{name}"|environ\["{name}"\]', source), name


@cache
def messages() -> list[str]:
    """Every text in the extension; what is filled in at run time is a line break."""
    found = []
    for path in [*(ROOT / "bokeh_ops").rglob("*.py"), *(ROOT / "nodes").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "\n" for part in node.values)
                found.append("".join(str(part) for part in parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted(HELP.rglob("*.md"))], ids=str)
def test_messages_quoted_are_messages_of_the_extension(page: Path) -> None:
    """In these pages italics of four words and more are something that the extension says."""
    text = re.sub(
        r"\*\*[^*]+\*\*|`[^`\n]*`|^\* ", "", without_code(page.read_text(encoding="utf-8")), flags=re.M
    )
    text = text[: text.index("## Papers")] if page.name == "README.md" else text
    for quoted in re.findall(r"(?<!\\)\*([^*\n]+)(?<!\\)\*", text):
        if len(quoted.split()) < 4 or "→" in quoted:
            continue
        pieces = [piece.strip() for piece in re.split(r"…|\d+", quoted) if len(piece.strip()) > 2]
        assert any(all(piece in message for piece in pieces) for message in messages()), quoted


def test_python_examples_run_and_print_what_they_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are one script: each goes on where the one before it ended."""
    page = (ROOT / "docs" / "using-from-python.md").read_text(encoding="utf-8")
    end = "- end of the example -"
    examples, said = [], []
    for kind, body in re.findall(r"```(\w+)\n(.*?)```", page, flags=re.DOTALL):
        if kind == "python":
            examples.append(f'{body}print("{end}")\n')
            said.append("")
        else:
            assert kind == "text"
            assert not said[-1], f"only one example prints this: {body}"
            said[-1] = body
    assert len(examples) >= 8
    script = tmp_path / "examples.py"
    script.write_text("".join(examples), encoding="utf-8")
    monkeypatch.chdir(ROOT)
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        runpy.run_path(str(script))
    assert output.getvalue().split(f"{end}\n") == [*said, ""]


def test_pictures_are_small() -> None:
    pictures = [*(ROOT / "docs").rglob("*.jpg"), *(ROOT / "web").rglob("*.jpg")]
    assert pictures
    for path in pictures:
        assert path.stat().st_size < PICTURE_BYTES, path


def test_the_repository_speaks_of_itself_alone() -> None:
    """No paths of the machine it was written on, no promises of pages that are not there."""
    for page in [*PAGES, *HELP.rglob("*.md")]:
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"(?<![\w/])/(work|tmp|home|opt)/", text), page
        assert "pypi" not in text.lower(), page


def write_english() -> None:
    from tests.host import inprocess

    found = english(inprocess.node_classes(inprocess.load_pack()))
    text = json.dumps(found, indent=2, ensure_ascii=False) + "\n"
    path = ROOT / "locales" / "en" / "nodeDefs.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    print(f"Written: {os.path.relpath(path)}")


if __name__ == "__main__":
    write_english()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tables_have_a_head_as_wide_as_they_are(page: Path) -> None:
    lines = page.read_text(encoding="utf-8").splitlines()
    for above, line in itertools.pairwise(lines):
        if re.fullmatch(r"\|(\s*:?-+:?\s*\|)+", line):
            assert above.startswith("|"), f"{page.name}: {above}"
            assert above.count("|") == line.count("|"), f"{page.name}: {above}"
