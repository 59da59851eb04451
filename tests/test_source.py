"""Source files are short and plain: a line cap, no grab-bag modules, no banners, no dead code, no assert."""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SUFFIXES = (".py", ".pyi", ".cpp", ".hpp", ".inl")
SOURCES = sorted(
    path
    for top in ("python", "csrc", "tests", "benchmarks")
    for path in (ROOT / top).rglob("*")
    if path.suffix in SUFFIXES and {".asv", "__pycache__"}.isdisjoint(path.parts)
)
PACKAGE_SOURCES = [path for path in SOURCES if path.is_relative_to(ROOT / "python") and path.suffix == ".py"]

MAX_LINES = 600
BANNED_NAMES = {"utils", "util", "helpers", "helper", "common"}
BANNER = re.compile(r"(#|//|/\*)\s*[-=#*~/]{4,}")
UNFINISHED = re.compile(r"\b(TO[D]O|FIX[M]E|XX[X]|HA[C]K)\b")
DEAD_CPP = re.compile(r"^\s*//.*;\s*$")


def relative(path):
    return path.relative_to(ROOT).as_posix()


def comments_of(source, suffix):
    """The (line, text) of each comment."""
    if suffix in (".py", ".pyi"):
        tokens = tokenize.generate_tokens(io.StringIO(source).readline)
        return [(token.start[0], token.string) for token in tokens if token.type == tokenize.COMMENT]
    lines = enumerate(source.splitlines(), 1)
    return [(number, line[match.start() :]) for number, line in lines if (match := re.search(r"//|/\*|^\s*\* ", line))]


def text_complaints(source, suffix):
    complaints = []
    count = source.count("\n")
    if count > MAX_LINES:
        complaints.append(f"{count} lines")
    for number, text in comments_of(source, suffix):
        if BANNER.search(text):
            complaints.append(f"line {number}: banner comment")
        if UNFINISHED.search(text):
            complaints.append(f"line {number}: unfinished work")
        if suffix not in (".py", ".pyi") and DEAD_CPP.match(text):
            complaints.append(f"line {number}: commented-out code")
    return complaints


def assert_lines(source):
    return [node.lineno for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Assert)]


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_file_is_short_and_plain(path):
    assert path.stem not in BANNED_NAMES
    assert BANNED_NAMES.isdisjoint(path.relative_to(ROOT).parts)
    assert text_complaints(path.read_text(encoding="utf-8"), path.suffix) == []


@pytest.mark.parametrize("path", PACKAGE_SOURCES, ids=relative)
def test_no_assert_in_the_package(path):
    assert assert_lines(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("source", "suffix"),
    [
        ("x = 1\n" * (MAX_LINES + 1), ".py"),
        ("# -----------\n", ".py"),
        ("# ==== moments ====\n", ".py"),
        ("x = 1  # TO" + "DO: later\n", ".py"),
        ("// ----------\n", ".cpp"),
        ("/**********\n", ".hpp"),
        ("  // FIX" + "ME\n", ".cpp"),
        ("// int i = 0;\n", ".cpp"),
    ],
)
def test_text_checker_complains(source, suffix):
    assert len(text_complaints(source, suffix)) == 1


def test_text_checker_accepts():
    assert text_complaints("x = '# -----'  # why - and how\n", ".py") == []
    assert text_complaints("int i = 0;  // row of the tile\n", ".cpp") == []
    assert assert_lines("def f(x):\n    assert x\n") == [2]
