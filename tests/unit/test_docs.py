"""The documentation names files, functions, headings and parameters that exist."""

import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from vision.pipeline.paths import ROOT

DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [
    page for pattern in ("*.md", "docs/*.md", "benchmarks/*.md", "tests/*.md") for page in sorted(ROOT.glob(pattern))
]
PAGES = [page for page in PAGES if page.name != "CHANGELOG.md"]  # it names what was removed
PICTURES = sorted((ROOT / "docs/images").iterdir())
MAX_README_LINES = 150
MAX_PICTURE_BYTES = 200_000

LINK = re.compile(r"\]\(([^)\s]+)\)|\bsrc=\"([^\"]+)\"")
INLINE_CODE = re.compile(r"`([^`\n]+)`")
FOLDERS = "stages|tools|tests|docs|benchmarks|recipes|metrics"
PATH = re.compile(rf"(?<![\w./-])(?:{FOLDERS})/[\w./-]*\w(?:::\w+)?|(?<![\w./-])\w+\.(?:yaml|toml)(?![\w.])")
SYMBOL = re.compile(r"`([\w.]+)` (?:in|of) `(stages/[\w/]+\.py)`")
OPTION = re.compile(r"-S '?([a-z_.0-9]+)=")
PARAMETER = re.compile(r"([a-z_]+(?:\.[a-z_0-9]+)+)(?:=\S*|: .*)?")


def parameters() -> set[str]:
    """The names of all parameters and sections of params.yaml."""

    def walk(section: dict[str, object], prefix: str) -> Iterator[str]:
        for key, value in section.items():
            yield f"{prefix}{key}"
            if isinstance(value, dict):
                yield from walk(value, f"{prefix}{key}.")

    return set(walk(yaml.safe_load((ROOT / "params.yaml").read_text()), ""))


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(text: str) -> list[str]:
    """The relative targets of links and pictures."""
    found = [target or source for target, source in LINK.findall(text)]
    return [target for target in found if not re.match(r"https?:|mailto:", target)]


def find_mistakes(text: str, folder: Path) -> list[str]:
    """What a page names that does not exist. Its links are relative to `folder`, its paths to the repository."""
    mistakes = []
    for link in links(text):
        file, _, anchor = link.partition("#")
        target = folder / file if file else None
        if target and not target.exists():
            mistakes.append(f"link {link}")
        elif anchor and anchor not in anchors(target.read_text() if target else text):
            mistakes.append(f"heading {link}")
    for path in PATH.findall("\n".join([*INLINE_CODE.findall(text), *re.findall(r"^```.*?^```", text, re.M | re.S)])):
        file, _, test = path.partition("::")
        if not (ROOT / file).exists():
            mistakes.append(f"path {path}")
        elif test and f"def {test}(" not in (ROOT / file).read_text():
            mistakes.append(f"test {path}")
    for symbol, file in SYMBOL.findall(text):
        name = re.escape(symbol.rpartition(".")[2])
        if not (ROOT / file).is_file() or not re.search(
            rf"(def|class) {name}\b|^\s*{name}\b", (ROOT / file).read_text(), re.M
        ):
            mistakes.append(f"symbol {symbol} in {file}")
    for module, name in re.findall(r"^from (vision[\w.]*) import (\w+)$", text, re.M):
        if not hasattr(importlib.import_module(module), name):
            mistakes.append(f"import {module}.{name}")
    known = parameters()
    sections = {name.partition(".")[0] for name in known}
    named = set(OPTION.findall(text))
    for code in INLINE_CODE.findall(text):
        match = PARAMETER.fullmatch(code)
        if match and match[1].split(".")[0] in sections and not re.search(r"\.(py|json|csv|html)$", match[1]):
            named.add(match[1])
    return mistakes + [f"parameter {name}" for name in sorted(named - known)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_names_only_what_exists(page: Path) -> None:
    assert find_mistakes(page.read_text(), page.parent) == []


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("[here](docs/nowhere.md)", "link docs/nowhere.md"),
        ("[here](docs/team.md#nothing)", "heading docs/team.md#nothing"),
        ("# A\n[here](#b)", "heading #b"),
        ('<img src="docs/images/none.png">', "link docs/images/none.png"),
        ("see `stages/vision/core/nothing.py`", "path stages/vision/core/nothing.py"),
        ("```bash\npython tools/nothing.py\n```", "path tools/nothing.py"),
        ("`tests/unit/test_docs.py::test_nothing`", "test tests/unit/test_docs.py::test_nothing"),
        ("`nothing` in `stages/train.py`", "symbol nothing in stages/train.py"),
        ("from vision.core.loop import nothing", "import vision.core.loop.nothing"),
        ("`train.nothing`", "parameter train.nothing"),
        ("`train.optimizer.nothing=1`", "parameter train.optimizer.nothing"),
        ("dvc exp run -S 'model.nothing=range(3)'", "parameter model.nothing"),
    ],
)
def test_a_mistake_is_found(text: str, mistake: str) -> None:
    assert find_mistakes(text, ROOT) == [mistake]


def test_what_exists_is_no_mistake() -> None:
    text = """# A b, c
    [up](#a-b-c) [page](docs/team.md#one-machine) [site](https://example.org/x)
    `main` in `stages/train.py`, `train.lr=0.1`, `train.augment`, `stages/vision`, `params.yaml`, -S seed=1
    `tests/unit/test_docs.py::test_what_exists_is_no_mistake`
    """
    assert find_mistakes(text.replace("    ", ""), ROOT) == []


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= MAX_README_LINES


def test_every_page_is_reached_from_the_readme() -> None:
    reached: set[Path] = set()
    new = {ROOT / "README.md"}
    while new:
        reached |= new
        found = {(page.parent / link.partition("#")[0]).resolve() for page in new for link in links(page.read_text())}
        new = {path for path in found if path.suffix == ".md" and path.is_file()} - reached
    assert set(DOCS) <= reached


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)
def test_a_page_opens_with_what_its_reader_can_do(page: Path) -> None:
    title, blank, opening = page.read_text().splitlines()[:3]
    assert title.startswith("# ")
    assert not blank
    assert opening.startswith("After this page you ")


def test_pictures_are_small_and_used() -> None:
    assert PICTURES
    used = {(page.parent / link).resolve() for page in PAGES for link in links(page.read_text())}
    for picture in PICTURES:
        assert picture.suffix == ".png"
        assert picture.stat().st_size <= MAX_PICTURE_BYTES
        assert picture in used
