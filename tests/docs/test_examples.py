"""The documentation keeps its word: examples load and run, links lead somewhere, every key and record is explained."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
from command_line import call
from pydantic import BaseModel

from gossipfl.cli import app
from gossipfl.cli.run import FLAGS
from gossipfl.config import RunSpec, load_spec
from gossipfl.errors import UsageError
from gossipfl.records import COLUMNS, RECORD_FILES, load_run
from gossipfl.robust.registry import ATTACKS, RULES, make_rule
from gossipfl.sections import NamedSpec
from gossipfl.summary import FAULT_EVENTS
from gossipfl.tasks.registry import TASKS
from gossipfl.testbed.plan import build_topology
from gossipfl.testbed.saboteurs.registry import SABOTEURS, make_any_attack
from gossipfl_node.cli import app as node_app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *(ROOT / f"{folder}/README.md" for folder in ("node", "topologies", "experiments"))]
PAGES += sorted(ROOT.glob("docs/**/*.md"))
TESTBED, TASK_PAGE = ROOT / "docs/testbed.md", ROOT / "docs/tasks.md"
PROGRAMS = {"gossipfl": app, "gossipfl-node": node_app}
IMAGE_BYTES = 150_000


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    """Return the fenced blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def commands(page: Path) -> Iterator[list[str]]:
    """Yield the words of every command after a prompt, without settings of the environment before it."""
    for block in blocks(page, "console"):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("$ "):
                words = shlex.split(line.removeprefix("$ "))
                yield words[next(i for i, word in enumerate(words) if "=" not in word) :]


def parse(program: str, arguments: list[str]) -> tuple[str, dict[str, Any]]:
    """Return which command would run, and its parameters; raises as the program would for a wrong option."""
    command: Any = typer.main.get_command(PROGRAMS[program])
    context = command.make_context(program, list(arguments))
    while hasattr(command, "resolve_command"):
        rest = [*getattr(context, "_protected_args", []), *context.args]
        name, command, rest = command.resolve_command(context, rest)
        context = command.make_context(name, rest, parent=context)
    return context.command_path, dict(context.params)


def keep_files(page: Path, folder: Path) -> None:
    """Write the blocks of a page that begin with their file's name."""
    for language in ("toml", "python"):
        for block in blocks(page, language):
            name = re.match(r"# (\S+\.(?:toml|py))\n", block)
            if name:
                (folder / name[1]).write_text(block, encoding="utf-8")


def spec_of(parameters: dict[str, Any]) -> RunSpec:
    return load_spec(parameters["spec"], {flag: parameters[flag] for flag in FLAGS}, parameters["pairs"] or ())


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_parse_and_their_specs_are_valid(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_files(page, tmp_path)
    monkeypatch.chdir(tmp_path)
    for words in commands(page):
        program, *arguments = words
        assert program in PROGRAMS, words
        path, parameters = parse(program, arguments)
        if path.endswith(("testbed run", "simulate")):
            spec = spec_of(parameters)
            build_topology(spec)
            make_rule(spec.rule.name, spec.rule.options)


def test_a_wrong_option_would_be_found() -> None:
    path, parameters = parse("gossipfl", ["testbed", "run", "--set", "train.learning=3"])
    assert path == "gossipfl testbed run"
    with pytest.raises(UsageError, match="unknown key"):
        spec_of(parameters)
    with pytest.raises(Exception, match="No such option"):
        parse("gossipfl", ["testbed", "run", "--no-such-option"])


@pytest.mark.parametrize("page", [TESTBED, TASK_PAGE], ids=name_of)
def test_toml_examples_are_specs(page: Path, tmp_path: Path) -> None:
    examples = blocks(page, "toml")
    assert examples
    for number, block in enumerate(examples):
        path = tmp_path / f"{number}.toml"
        path.write_text(block, encoding="utf-8")
        spec = load_spec(path, {})
        build_topology(spec)
        make_rule(spec.rule.name, spec.rule.options)
        if spec.attack.name is not None:
            make_any_attack(spec.attack.name, spec.attack.options)


def leaves(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield the dotted name of every key; of a section that picks something by name, the name alone."""
    for name, field in model.model_fields.items():
        sections = [kind for kind in _kinds(field.annotation) if issubclass(kind, BaseModel)]
        if not sections:
            yield prefix + name
        elif issubclass(sections[0], NamedSpec):
            yield f"{prefix}{name}.name"
        else:
            yield from leaves(sections[0], f"{prefix}{name}.")


def _kinds(annotation: Any) -> Iterator[type]:
    if isinstance(annotation, type):
        yield annotation
    for argument in get_args(annotation):
        yield from _kinds(argument)


def explained(example: str) -> dict[str, str]:
    """Return key and line of every assignment in a TOML text, those commented out too."""
    section, found = "", {}
    for line in example.splitlines():
        header = re.match(r"\[+([\w.]+)\]+", line)
        if header:
            section = header[1] + "."
        key = re.match(r"(?:# )?(\w+) = ", line)
        if key:
            found[section + key[1]] = line
    return found


def test_the_full_example_explains_every_key() -> None:
    lines = explained(blocks(TESTBED, "toml")[0])
    assert set(leaves(RunSpec)) - set(lines) == set()


def test_the_full_example_tells_the_defaults() -> None:
    spec = RunSpec()
    for key, line in explained(blocks(TESTBED, "toml")[0]).items():
        told = re.search(r"\(([\d.]+)\)\s*$", line)
        section, _, name = key.rpartition(".")
        plain = {"train", "gossip", "libp2p", "partition"}
        part = getattr(spec, section) if section in plain else spec if not section else None
        if told and part is not None and hasattr(part, name):
            assert float(getattr(part, name)) == float(told[1]), key


def test_every_option_of_rules_attacks_and_tasks_is_explained() -> None:
    lines = explained(blocks(TESTBED, "toml")[0])
    for section, registry in (("rule", RULES), ("attack", ATTACKS), ("attack", SABOTEURS)):
        for factory in registry.values():
            for option in fields(factory):  # type: ignore[arg-type]
                assert f"{section}.{option.name}" in lines
    table = TASK_PAGE.read_text(encoding="utf-8")
    for name, entry in TASKS.items():
        assert f"| `{name}` |" in table
        assert all(f"`{option}`" in table for option in entry.options)


def test_every_record_is_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = TESTBED.read_text(encoding="utf-8")
    out = tmp_path / "run"
    arguments = ("--nodes", "4", "--topology", "ring", "--rounds", "2", "--transport", "memory")
    code, _, _ = call(capsys, "testbed", "run", *arguments, "--no-report", "--quiet", "--out", str(out))
    assert code == 0
    run = load_run(out)
    events = FAULT_EVENTS | {event["event"] for event in run.events()} | _reported()
    for name in [*RECORD_FILES, *COLUMNS, *run.summary, *events]:
        assert f"`{name}`" in page, name


def _reported() -> set[str]:
    """Return the events that the sources name."""
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "gossipfl").glob("**/*.py")]
    return {name for source in sources for name in re.findall(r'\b(?:Report|tell)\(\s*"([a-z_-]+)"', source)}


def test_reading_the_records_works_as_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    call(capsys, "simulate", "--nodes", "5", "--rounds", "2", "--no-report", "--quiet", "--out", "runs/first")
    (shown,) = blocks(TESTBED, "python")
    exec(compile(shown, name_of(TESTBED), "exec"), {})
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith(" 10")
    assert int(second) >= 0


def test_the_own_tasks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    keep_files(TASK_PAGE, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    ran = 0
    for program, *arguments in commands(TASK_PAGE):
        _, parameters = parse(program, arguments)
        if ":" in (parameters.get("task") or ""):
            code, printed, told = call(
                capsys, *arguments, "--transport", "memory", "--no-report", "--out", str(tmp_path / str(ran))
            )
            assert code == 0, told
            assert "20 of 20" in printed
            ran += 1
    assert ran == 2
    moons, line = (load_run(tmp_path / str(number)).summary for number in range(2))
    assert moons["accuracy"]["mean"] > 0.8
    assert line["metrics"]["mae"]["mean"] < 0.2


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_pictures_are_small_and_used() -> None:
    for picture in (ROOT / "docs/images").iterdir():
        assert picture.stat().st_size < IMAGE_BYTES, picture.name
        assert any(picture.name in page.read_text(encoding="utf-8") for page in PAGES), picture.name


def test_every_decision_is_in_the_index() -> None:
    index = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    for number, decision in enumerate(sorted((ROOT / "docs/adr").glob("*.md")), start=1):
        assert decision.name.startswith(f"{number:04d}-")
        assert decision.read_text(encoding="utf-8").startswith(f"# {number}. ")
        assert f"[{number}](adr/{decision.name})" in index


def test_the_makefile_has_what_the_readme_names() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\bmake ([a-z]+)\b(?= |`)", readme))
    assert {"demo", "test", "check", "help"} <= named
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in named)
