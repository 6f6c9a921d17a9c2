"""What docs/architecture.md and CONTRIBUTING.md say of the code, checked against it: paths, names, rooms, pictures."""

import ast
import importlib.util
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

import sparkdl
from tests.paths import ROOT
from tests.unit.docs.test_docs import names_in, rows_of, section, slug

PACKAGES = ("xray", "streaming", "training", "sparkdl", "schemas")
PAGES = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("docs/architecture.md", "CONTRIBUTING.md")}
PICTURES = ROOT / "docs" / "pictures"
STEMS = ("image-way", "training", "model-folder")

_SUFFIXES = "py|md|json|yml|yaml|toml|lock|svg"
_PATH = re.compile(rf"(?:[\w.\-]+/)+(?:[\w.\-]+\.(?:{_SUFFIXES}))?")
_FOLDER = re.compile(r"[\w\-]+(?:/[\w\-]+)+")
_BLOCK = re.compile(r"```\w*\n(.*?)```", re.DOTALL)
_NAME = re.compile(r"[A-Za-z_]\w*")
_BLOCKS = ("body", "orelse", "finalbody", "handlers", "cases")
_NOT_OURS = {"preprocess_input", "timeout_s"}  # Keras's, and an example of a name
_TOPS = {path.name for path in ROOT.iterdir() if path.is_dir()} - {"build"}  # what commands write, such as make sbom


@cache
def names_defined(path: Path) -> frozenset[str]:
    """Functions, classes, methods, constants and imports of a file, or of all files of a folder."""
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in files if file.suffix == ".py"]
    return frozenset(name for tree in trees for node in _statements(tree) for name in _defined_by(node))


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """All statements below a node: expressions are most of a tree, and define nothing."""
    for block in _BLOCKS:
        for statement in getattr(node, block, ()):
            yield statement
            yield from _statements(statement)


def _defined_by(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        yield from (target.id for target in targets if isinstance(target, ast.Name))


def code_in(text: str) -> list[str]:
    """Words in code: those in the line, and those of blocks."""
    words = [word for block in _BLOCK.findall(text) for word in block.split()]
    return words + [word for code in names_in(_BLOCK.sub("", text)) for word in code.split()]


def paths_in(text: str) -> list[str]:
    """Paths of this repository, among the words in code."""
    names = [word.removesuffix("/") for word in code_in(text) if _PATH.fullmatch(word) or _FOLDER.fullmatch(word)]
    return [name for name in names if name.partition("/")[0] in _TOPS]


def pairs_in(cell: str) -> Iterator[tuple[str, str]]:
    """Each name in a cell with the path it is said of: "`path`: `name`, `name`; `path`", or "`name` in `path`"."""
    for part in cell.split(";"):
        named = names_in(part)
        paths = [name for name in named if "/" in name]
        for name in named:
            if _NAME.fullmatch(name):
                assert paths, f"no path is named with {name}: {part}"
                yield paths[0], name


def all_names() -> frozenset[str]:
    return frozenset().union(*(names_defined(ROOT / package) for package in PACKAGES))


# --- both pages -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_every_path_exists(page: str) -> None:
    named = paths_in(PAGES[page])
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", PAGES[page]):
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE) if anchor else []
        assert not anchor or anchor in {slug(heading) for heading in headings}, link


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.slow
def test_every_function_named_exists(page: str) -> None:
    """Names with an underscore in them are the code's; a word in code may be anything."""
    known = all_names() | names_defined(ROOT / "tests")
    named = {name for name in code_in(PAGES[page]) if re.fullmatch(r"_?[a-z]+(_[a-z]+)+", name)}
    assert sorted(named - known - _NOT_OURS) == []


# --- architecture -----------------------------------------------------------------------------------------------------


def test_rooms_are_the_packages_and_their_docstrings() -> None:
    rows = rows_of(section("architecture", "Rooms"), "room")
    written = {names_in(row[0])[0].rstrip("/"): row[1] for row in rows}
    found = {
        init.parent.relative_to(ROOT).as_posix(): ast.get_docstring(ast.parse(init.read_text(encoding="utf-8"))) or ""
        for package in PACKAGES
        for init in (ROOT / package).rglob("__init__.py")
    }
    assert written == {
        name: " ".join(text.partition("\n\n")[0].split()).replace("``", "`") for name, text in found.items()
    }


def test_changes_name_real_places_and_tests() -> None:
    rows = rows_of(section("architecture", "I want to change X"), "I want to change")
    assert 15 <= len(rows) <= 30
    for wanted, place, test in rows:
        assert paths_in(place), wanted
        for path, name in pairs_in(place):
            assert name in names_defined(ROOT / path), f"{wanted}: {name} is not in {path}"
        for path in names_in(test):
            assert path.startswith("tests/"), wanted
            assert (ROOT / path).is_file(), path


@pytest.mark.parametrize("heading", ["An object's way in", "A walk along a PNG", "An outcome's way into a table"])
def test_the_walk_names_real_functions(heading: str) -> None:
    rows = rows_of(section("architecture", heading), "step")
    assert [row[0] for row in rows] == [str(number) for number in range(1, len(rows) + 1)]
    for _, file, read, _ in rows:
        [path] = names_in(file)
        missing = set(names_in(read)) - names_defined(ROOT / path)
        assert not missing, f"{path} has no {', '.join(sorted(missing))}"


def imports_shown() -> set[str]:
    """What the examples import of this repository, as dotted names."""
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "examples").glob("*.py")]
    for page in (ROOT / "docs").rglob("*.md"):
        texts += re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    return {
        f"{node.module}.{alias.name}"
        for text in texts
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in PACKAGES
        for alias in node.names
    }


def test_what_examples_import_is_public() -> None:
    rows = {row[0]: row[1] for row in rows_of(section("architecture", "What is public"), "what")}
    listed = set(names_in(rows["imports for own programs"]))
    for name in listed:
        module, _, member = name.rpartition(".")
        assert importlib.util.find_spec(name) if module in PACKAGES else member in dir(importlib.import_module(module))
    library = {f"sparkdl.{name}" for name in sparkdl.__all__} | {"sparkdl.image.imageIO"}
    shown = {name for name in imports_shown() if not name.startswith("sparkdl.image.imageIO.")}
    assert sorted(shown - library - listed) == []


# --- pictures ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def draw() -> ModuleType:
    """The program that draws the pictures."""
    spec = importlib.util.spec_from_file_location("draw", PICTURES / "draw.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def texts_of(stem: str) -> list[tuple[str, str]]:
    """Font and text of each line of a picture."""
    svg = (PICTURES / f"{stem}.svg").read_text(encoding="utf-8")
    return re.findall(r'<text [^>]*font-family="([^"]*)"[^>]*>([^<]*)</text>', svg)


@pytest.mark.parametrize("stem", STEMS)
def test_a_picture_is_what_its_program_draws(stem: str, draw: ModuleType) -> None:
    assert set(draw.PICTURES) == {path.stem for path in PICTURES.glob("*.svg")} == set(STEMS)
    drawn = draw.PICTURES[stem]().to_svg()
    assert (PICTURES / f"{stem}.svg").read_text(encoding="utf-8") == drawn, "run python docs/pictures/draw.py"


@pytest.mark.parametrize("stem", STEMS)
def test_a_picture_names_real_rooms_and_functions(stem: str) -> None:
    rooms = {room for font, text in texts_of(stem) if "Mono" in font and text != "room" for room in text.split(", ")}
    assert [room for room in sorted(rooms) if not (ROOT / room).is_dir()] == []
    words = {word for _, text in texts_of(stem) for word in re.findall(r"(?<![\w.])[a-z]+(?:_[a-z]+)+(?![\w.])", text)}
    assert sorted(words - all_names() - {"dead_letters"}) == []
