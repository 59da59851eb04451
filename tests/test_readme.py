"""The README tells the truth: its code runs, and its commands are those of the project."""

import re
from pathlib import Path

import tomllib

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_python_blocks_run_in_order():
    names = {}
    assert blocks("python")
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), names)
    assert names["matrix"].values.shape == (2, 1)


def test_commands_name_what_exists():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    commands = "".join(blocks("sh"))
    for extra in re.findall(r'"\.\[(\w+)\]"', commands):
        assert extra in project["optional-dependencies"]
    assert re.findall(r"^gramless|&& gramless", commands, flags=re.MULTILINE)
    assert "gramless" in project["scripts"]


def test_ci_installs_by_the_readme():
    command = next(block for block in blocks("sh") if "constraints.txt" in block).split("&&")[0].strip()
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert command.removeprefix("pip install") in script.replace("pip install -q", "pip install").replace(
        "pip install", ""
    )
