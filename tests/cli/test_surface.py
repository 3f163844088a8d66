"""The command line's surface: help, speed of help, the sample configurations, the README's commands."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from fedseg.cli.main import app
from fedseg.plan.study import parse_plan
from fedseg.policy import parse_policy
from fedseg.runtime.session import check_aggregation
from fedseg.runtime.study import StudyFolder
from tests.cli.conftest import PLAN, Command

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = sorted((ROOT / "sample_configs").glob("*.yaml"))
HEAVY = ("torch", "monai", "SimpleITK", "grpc", "opacus", "nibabel", "scipy")
COMMANDS = (
    *(
        "study create",
        "study invite",
        "study roster",
        "study status",
        "server start",
        "client join",
        "client approve-roster",
    ),
    "client baseline",
    *("client ledger show", "client ledger verify", "client ledger export", "study extend", "pretrain"),
    *("privacy-plan", "privacy-audit"),
    *("predict", "evaluate", "privacy-report", "audit verify", "data synthesize", "data check", "demo"),
)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str, fedseg: Command) -> None:
    answer = fedseg(*command.split(), "--help")
    assert answer.code == 0
    assert f"Example: fedseg {command}" in " ".join(answer.out.split())


@pytest.mark.parametrize("command", ["client baseline", "privacy-audit", "data check"])
def test_help_breaks_where_the_terminal_ends(command: str, fedseg: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "70")
    lines = [line.strip() for line in fedseg(*command.split(), "--help").out.partition("╭")[0].splitlines()]
    text = "\n".join(lines[2:]).strip()
    for paragraph in text.split("\n\n"):
        broken = paragraph.splitlines()
        # The next word would not have fitted.
        assert all(len(line) + 1 + len(after.split()[0]) > 68 for line, after in itertools.pairwise(broken))


@pytest.mark.parametrize(
    ("typed", "meant"), [(("stdy",), "study"), (("study", "craete"), "create"), (("study", "statsu"), "status")]
)
def test_a_mistyped_command_is_answered_with_the_nearest(typed: tuple[str, ...], meant: str, fedseg: Command) -> None:
    answer = fedseg(*typed)
    assert answer.code == 2
    assert f"Did you mean '{meant}'?" in answer.err


def test_the_main_help_names_all_commands_and_exit_codes(fedseg: Command) -> None:
    answer = fedseg("--help")
    text = " ".join(answer.out.split())
    assert answer.code == 0
    for group in {command.split()[0] for command in COMMANDS}:
        assert f" {group} " in text
    assert "0 done, 1 failed, 2 wrong use, 3 paused below quorum, 130 interrupted" in text
    found = {name for name, _ in _leaves(_command(), ())}
    assert found == {tuple(command.split()) for command in COMMANDS}


@pytest.mark.parametrize("words", [["--help"], ["client", "join", "--help"], ["--version"], ["nonsense"]])
def test_help_loads_nothing_heavy(words: list[str]) -> None:
    script = (
        "import json, sys\n"
        "from fedseg.cli import main\n"
        f"sys.argv = ['fedseg', *{words!r}]\n"
        "try:\n    main.run()\n"
        "except SystemExit:\n    pass\n"
        "print('\\n' + json.dumps(sorted(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True, cwd=ROOT
    )
    loaded = json.loads(done.stdout.splitlines()[-1])
    assert "fedseg.cli.client" in loaded
    assert [name for name in loaded if name.split(".")[0] in HEAVY] == []


def test_there_are_three_sample_plans() -> None:
    assert {"demo.yaml", "atlas.yaml", "atlas-private.yaml"} <= {path.name for path in SAMPLES}


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.name)
def test_every_sample_configuration_loads(path: Path) -> None:
    text = path.read_text()
    if path.name.startswith("policy"):
        assert parse_policy(text, str(path)).content.min_sites >= 1
        return
    document = parse_plan(text, str(path))
    least = check_aggregation(document)
    assert 1 <= least <= len(document.content.sites)


def test_the_demo_carries_the_sample_plan() -> None:
    assert (ROOT / "fedseg/cli/demo.yaml").read_text() == (ROOT / "sample_configs/demo.yaml").read_text()


def _command() -> Any:
    return typer.main.get_command(app)


def _leaves(command: Any, path: tuple[str, ...]) -> list[tuple[tuple[str, ...], Any]]:
    if not hasattr(command, "commands"):
        return [(path, command)]
    return [leaf for name, sub in command.commands.items() for leaf in _leaves(sub, (*path, name))]


def _shown_commands(text: str) -> list[str]:
    """Every `fedseg ...` line in the code blocks of a Markdown text, continuation lines joined."""
    blocks = re.findall(r"^```(?:console|bash|sh|shell|text)?\n(.*?)^```", text, flags=re.S | re.M)
    lines = [line.strip() for block in blocks for line in re.sub(r"\\\n\s*", " ", block).splitlines()]
    lines = [re.sub(r"^\$ ", "", line) for line in lines]
    return [line for line in lines if re.match(r"(\.venv/bin/)?fedseg\s", line)]


def _refuse(line: str) -> str | None:
    """What the parser has against a command line; None where it takes it. Values are not looked at."""
    words = shlex.split(line.replace("'", ""), comments=True)[1:]
    command, path = _command(), ["fedseg"]
    context = command.make_context("fedseg", ["--version"], resilient_parsing=True)
    while words and hasattr(command, "commands"):
        if words[0] in ("--help", "-h", "--version"):
            return None
        if words[0] not in command.commands:
            return f"{' '.join(path)} has no command {words[0]}"
        command, words, path = command.commands[words[0]], words[1:], [*path, words[0]]
    known = {option for parameter in command.get_params(context) for option in parameter.opts}
    takes = sum(parameter.param_type_name == "argument" for parameter in command.get_params(context))
    given = [word.split("=")[0] for word in words if word.startswith("-")]
    unknown = [option for option in given if option not in known]
    if unknown:
        return f"{' '.join(path)} has no option {unknown[0]}"
    if takes == 0 and words and not words[0].startswith("-"):
        return f"{' '.join(path)} takes no argument {words[0]}"
    return None


def test_the_parser_knows_every_command_of_the_readme() -> None:
    lines = _shown_commands((ROOT / "README.md").read_text())
    if not lines:
        pytest.skip("the README shows no fedseg command")
    assert {line: why for line in lines if (why := _refuse(line))} == {}


def test_the_check_of_the_readme_sees_what_is_wrong() -> None:
    text = (
        "```console\n$ fedseg client join X \\\n    --data D --state S  # at the hospital\nfedseg study make D\n```\n"
    )
    assert _shown_commands(text) == [
        "fedseg client join X  --data D --state S  # at the hospital",
        "fedseg study make D",
    ]
    assert _refuse("fedseg client join X --data D --state S  # at the hospital") is None
    assert _refuse("fedseg study make D") == "fedseg study has no command make"
    assert _refuse("fedseg evaluate M --dta D") == "fedseg evaluate has no option --dta"


def test_a_study_created_for_a_machine(fedseg: Command, tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text(PLAN)
    words = ("--plan", tmp_path / "plan.yaml", "--address", "localhost:8443", "--json")
    answer = fedseg("study", "create", tmp_path / "study", *words)
    made = json.loads(answer.out)
    manifest = StudyFolder.open(tmp_path / "study").manifest
    assert made["plan_hash"] == manifest.plan_hash
    assert (made["quorum"], made["parameters"], made["noise_multiplier"]) == (3, 302_525, manifest.noise_multiplier)
