"""What the README says can be done, can be; its numbers are those under results/."""

import json
import re
import shlex
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
from pages import blocks, commands

from avel import cli
from avel.verbs import parse

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def shell_lines() -> list[tuple[str, str]]:
    """(page, command) of every line in the shell blocks of the pages."""
    found = []
    for page in PAGES:
        for language, block in blocks(page):
            found += [(page.name, line) for line in commands(block) if language == "sh"]
    return found


@pytest.mark.parametrize(("page", "line"), shell_lines())
def test_every_command_is_one_that_exists(page: str, line: str) -> None:
    program, *words = shlex.split(line)
    if program == "torchrun":
        program, *words = words[words.index("-m") + 1 :]
    if program == "avel":
        config = ROOT / "configs"
        parse([word.replace("configs/", f"{config}/") for word in words], cli.VERBS)
    elif program == "make":
        result = subprocess.run(["make", "--dry-run", *words], cwd=ROOT, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
    elif program == "python":
        assert (ROOT / words[0]).is_file()
    elif program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert words in [["install", f"avel[{extra}]"] for extra in extras]
    elif program == "hf":  # tests/test_huggingface.py compares it with what avel says where the network is missing
        assert words[0] == "download"
    else:
        assert line in ("source .venv/bin/activate",), f"{page} shows an unknown command: {line}"


def test_the_tables_are_those_of_the_results() -> None:
    from readme import BLOCK, PAGES, filled

    for page in PAGES:
        text = page.read_text()
        assert BLOCK.search(text), page
        assert filled(text) == text, "run: python benchmarks/readme.py"


def test_the_numbers_of_the_findings_stand_in_the_tables() -> None:
    findings = re.sub(r"\(the paper[^)]*\)", "", (ROOT / "docs" / "study.md").read_text())
    numbers = re.findall(r"\d+\.\d", findings)
    assert len(numbers) > 50
    assert not set(numbers) - set(re.findall(r"\d+\.\d", (ROOT / "docs" / "study-tables.md").read_text()))


def test_tables_read_the_baselines_of_old_and_new_results() -> None:
    from readme import TABLES

    old = json.loads((ROOT / "results" / "study_full_cml.json").read_text())
    new = {("baselines" if key == "floors" else key): value for key, value in old.items()}
    assert TABLES["study_full_cml.json"](new) == TABLES["study_full_cml.json"](old)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_every_link_to_a_file_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if not target.startswith("http"):
            file, _, anchor = target.partition("#")
            target_page = (page.parent / file).resolve() if file else page
            assert target_page.exists(), f"{page.name} links to {target}"
            if anchor:
                headings = re.findall(r"^#+ (.*)$", target_page.read_text(), re.MULTILINE)
                slugs = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
                assert anchor in slugs, f"{page.name} links to {target}, {target_page.name} has {slugs}"


CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()


def test_the_tree_in_contributing_is_the_package() -> None:
    """Each module and folder has a line with a meaning, at its place, and no line names anything else."""
    block = re.search(r"^src/avel/\n(.*?)^```$", CONTRIBUTING, re.DOTALL | re.MULTILINE)
    assert block
    listed: list[str] = []
    folders: list[str] = []
    for line in block[1].splitlines():
        found = re.fullmatch(r"((?:  )+)(\S+) +\S.*", line)
        assert found, f"no name and meaning in {line!r}"
        folders = folders[: len(found[1]) // 2 - 1]
        listed.append("".join(folders) + found[2])
        if found[2].endswith("/"):
            folders.append(found[2])
    package = ROOT / "src" / "avel"
    files = {path.relative_to(package) for path in package.rglob("*.py")}
    there = {str(path) for path in files} | {f"{path.parent}/" for path in files if path.parent != Path()}
    assert len(listed) == len(set(listed))
    assert set(listed) == there | {f"{path.parent.parent}/" for path in files if len(path.parts) > 2}


WAY = re.findall(r"^(\S+)\.py: ([\w.]+) +-> \S.*$", CONTRIBUTING, re.MULTILINE)


def test_the_way_of_a_clip_in_contributing_has_about_twenty_steps() -> None:
    assert 18 <= len(WAY) <= 24


@pytest.mark.parametrize(("file", "name"), WAY)
def test_each_step_of_a_clip_s_way_exists(file: str, name: str) -> None:
    found = import_module(f"avel.{file.replace('/', '.')}")
    for part in name.split("."):
        found = getattr(found, part)
    assert callable(found)


def test_every_test_that_a_page_names_exists() -> None:
    files = {path.name: path.read_text() for path in (ROOT / "tests").glob("test_*.py")}
    functions = {name for text in files.values() for name in re.findall(r"^def (test_\w+)\(", text, re.MULTILINE)}
    evidence = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "fidelity.md").read_text()))
    assert len(evidence) > 20 and evidence - functions == set()
    for page in PAGES:
        assert set(re.findall(r"\b(test_\w+\.py)", page.read_text())) - set(files) == set(), page.name
