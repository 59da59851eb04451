"""The README and the pages of docs: their code runs, their links lead somewhere, their commands are CI's."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import tomllib
from safetensors.numpy import save_file

from gramless.cli.main import main

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language, page=README):
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def run(page):
    names = {}
    for block in blocks("python", page):
        exec(compile(block, page.name, "exec"), names)
    return names


@pytest.mark.parametrize("page", [page for page in PAGES if blocks("python", page)], ids=lambda page: page.stem)
def test_python_blocks_run_in_order(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run(page)
    if page == README:
        assert names["matrix"].values.shape == (2, 1)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
    paths = [link for link in links if not link.startswith(("https://", "#"))]
    assert [path for path in paths if not (page.parent / path).exists()] == []


def test_commands_name_what_exists():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    commands = "".join(blocks("sh"))
    for extra in re.findall(r'"\.\[(\w+)\]"', commands):
        assert extra in project["optional-dependencies"]
    assert re.findall(r"^gramless|&& gramless", commands, flags=re.MULTILINE)
    assert "gramless" in project["scripts"]


@pytest.mark.parametrize("command", re.findall(r"^gramless compare .*$", "".join(blocks("sh")), flags=re.MULTILINE))
def test_compare_command_runs(tmp_path, monkeypatch, command):
    arguments = shlex.split(command)[1:]
    monkeypatch.chdir(tmp_path)
    layers = {name: np.random.default_rng(0).standard_normal((20, 5)) for name in ("early", "late")}
    for name in arguments[1:3]:
        save_file(layers, name)
    assert main(arguments) == 0
    assert all(Path(name).stat().st_size > 0 for name in arguments if name.endswith((".json", ".png")))


def test_ci_installs_by_the_readme():
    """Both name the same extra under the same constraints, so that CI tests what a user installs."""
    pattern = r'pip install (?:-q )?-c constraints\.txt "(\.\[\w+\])"'
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert re.findall(pattern, script) == re.findall(pattern, "".join(blocks("sh"))) != []
