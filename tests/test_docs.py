"""README.md and the documents in docs/ against the code: every number in a table, command, test, file and link.

The tables of docs/privacy.md are in `test_docs_privacy`.
"""

from __future__ import annotations

import ast
import importlib
import operator
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer

from fedseg import errors
from fedseg.cli.main import app
from fedseg.federation.exchange import Confirm, Head, Join, Published, Submit, Unmask
from fedseg.federation.vector import model_hash
from fedseg.labels import scheme
from fedseg.policy import SitePolicy
from fedseg.rpc import codec
from fedseg.runtime.roster_words import words
from fedseg.runtime.study import StudyFolder
from fedseg.secagg.encoding import Encoding
from fedseg.secagg.messages import SessionHeader
from fedseg.secagg.thresholds import Thresholds
from fedseg.store.audit_records import KINDS
from tests.runtime.script import SECURE, Script, header, runner
from tests.runtime.toy import FIRST, INITIAL, plan
from tests.secagg.helpers import after_advertise, after_confirm, after_mask, after_share, after_unmask, session

ROOT = Path(__file__).resolve().parents[1]
README, THREATS, PRIVACY = ROOT / "README.md", ROOT / "docs" / "threat-model.md", ROOT / "docs" / "privacy.md"
SEGMENTATION = ROOT / "docs" / "segmentation.md"
DOCUMENTS = [README, THREATS, PRIVACY, SEGMENTATION]
NAME_BYTES, PARAMETERS = 8, 4_815_817
STUDY_ID = "ab" * 16

Row = tuple[str, ...]


# Tables.


@cache
def tables(path: Path) -> dict[Row, list[Row]]:
    """Every table of a Markdown file by its header."""
    found: dict[Row, list[Row]] = {}
    header: Row | None = None
    for line in path.read_text().splitlines():
        if not line.startswith("|"):
            header = None
            continue
        cells = tuple(cell.strip() for cell in line.strip().strip("|").split("|"))
        if header is None:
            header = cells
            found[header] = []
        elif not set("".join(cells)) <= set("-: "):
            found[header].append(cells)
    return found


def rows(*header: str, path: Path = THREATS) -> list[Row]:
    """The rows of the table with this header; it must be there and hold something."""
    found = tables(path).get(header)
    assert found, f"{path.name} has no table {header}"
    return found


def number(cell: str) -> int:
    return int(cell.strip("`").replace(",", ""))


def evaluate(node: ast.AST, values: Mapping[str, int]) -> int:
    """The value of a formula of whole numbers, names, +, - and *."""
    match node:
        case ast.Expression(body):
            return evaluate(body, values)
        case ast.Constant(int() as value):
            return value
        case ast.Name(name):
            return values[name]
        case ast.BinOp(left, sign, right):
            signs: dict[type, Callable[[int, int], int]] = {
                ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul
            }  # fmt: skip
            return signs[type(sign)](evaluate(left, values), evaluate(right, values))
    raise ValueError(ast.dump(node))


# Thresholds and encoding.


def test_thresholds() -> None:
    header = ("n", "c", "t", "m", "fewest in a sum", "of them honest", "may be lost before", "may be lost after")
    found = [tuple(map(number, row)) for row in rows(*header)]
    assert [row[0] for row in found] == [3, 4, 5, 6, 10, 30, 100]
    for n, *rest in found:
        of = Thresholds.of(n)
        assert rest == [of.c, of.t, of.m, of.quorum, of.quorum - of.c, n - of.quorum, n - of.t]


def test_two_groups_of_t_share_an_honest_site() -> None:
    for n in range(3, 101):
        of = Thresholds.of(n)
        assert 2 * of.t - n > of.c


def test_encoding() -> None:
    found = rows("n", "scale", "one step", "rounding moves the mean by")
    assert [row[0] for row in found] == ["3", "10", "30", "100"]
    for n, *rest in found:
        code = Encoding(int(n), 64.0, 1, PARAMETERS)
        moved = code.relative_error * code.clip
        assert rest == [f"2^{int(np.log2(code.scale))}", f"{1 / code.scale:.1e}", f"{moved:.1e}"]


def test_the_base_network_has_so_many_parameters() -> None:
    from fedseg.training.network import arrays, build_network

    network = arrays(build_network("base", scheme("feta").classes, 0))
    assert sum(array.size for array in network.values()) == PARAMETERS
    assert f"{PARAMETERS:,}" in THREATS.read_text()


# Sizes of messages.


def site_names(n: int, size: int) -> tuple[str, ...]:
    return tuple(f"{i:0{size}d}" for i in range(n))


def one_session(n: int, size: int, dimension: int = 5) -> SessionHeader:
    code = Encoding(n, 64.0, 1, dimension)
    return session(encoding=code, sites=site_names(n, size), thresholds=Thresholds.of(n), study=STUDY_ID, round=1)


@cache
def sizes(n: int, size: int) -> dict[str, int]:
    """What each message of a session in which nobody is lost has, in bytes; vectors are apart."""
    opened = one_session(n, size)
    first, sites = opened.sites[0], opened.sites
    inputs = {site: np.zeros(opened.length, np.uint32) for site in sites}
    _, advertised = after_advertise(opened)
    server, shared = after_share(opened)
    u2 = server.close_share()
    submit = codec.encode_instruction(Submit(opened.sid0(), u2, server.envelopes_for(first))).submit
    _, masked = after_mask(opened, inputs)
    confirm = codec.encode_instruction(Confirm(opened.sid0(), sites)).confirm
    server, signed = after_confirm(opened, inputs)
    unmask = codec.encode_instruction(Unmask(opened.sid0(), server.close_consistency())).unmask
    _, unmasked = after_unmask(opened, inputs)
    return {
        "session header": len(opened.to_bytes()),
        "advertisement": len(advertised[first].message.to_bytes()),
        "all advertisements": sum(len(state.message.to_bytes()) for state in advertised.values()),
        "envelopes": len(shared[first].message.to_bytes()),
        "sharers, and this site's envelopes": submit.ByteSize(),
        "ahead of the vector": codec.encode_upload(
            opened.sid0(), masked[first].message, 4 * (PARAMETERS + 1)
        ).ByteSize(),
        "contributors": confirm.ByteSize(),
        "signature": len(signed[first].message.to_bytes()),
        "all signatures": unmask.ByteSize(),
        "shares": len(unmasked[first].message.to_bytes()),
        "ahead of the sum": ahead_of_the_sum(opened),
    }


def ahead_of_the_sum(opened: SessionHeader) -> int:
    total = np.empty(PARAMETERS + 1, np.uint32)
    published = Published(1, opened.sites, total, bytes(32), "00" * 32, bytes(64))
    return codec.encode_published(published).ByteSize()


def vector_bytes(dimension: int, scored: bool = False) -> int:
    return 4 * Encoding(3, 64.0, 1, dimension, scored).length


SIZES = ("step", "to", "message", "bytes", "n = 3", "n = 10", "n = 30")
VECTORS = ("masked vector", "sum")


def test_every_message_is_in_the_table() -> None:
    assert [row[2] for row in rows(*SIZES) if row[2] not in VECTORS] == list(sizes(3, NAME_BYTES))


@pytest.mark.parametrize(("n", "size"), [(3, 8), (10, 8), (30, 8), (3, 32), (7, 5)])
def test_the_formulas_give_the_sizes_of_real_messages(n: int, size: int) -> None:
    for _, _, message, formula, *_ in rows(*SIZES):
        values = {"n": n, "s": size, "d": PARAMETERS}
        real = vector_bytes(PARAMETERS) if message in VECTORS else sizes(n, size)[message]
        assert evaluate(ast.parse(formula.strip("`"), mode="eval"), values) == real, message


def test_the_sizes_are_those_of_the_formulas() -> None:
    for row in rows(*SIZES):
        for n, cell in zip((3, 10, 30), row[4:], strict=True):
            values = {"n": n, "s": NAME_BYTES, "d": PARAMETERS}
            assert number(cell) == evaluate(ast.parse(row[3].strip("`"), mode="eval"), values), row


UP = ("advertisement", "envelopes", "ahead of the vector", "signature", "shares")


def test_what_a_site_sends_beside_its_vector() -> None:
    vector = vector_bytes(PARAMETERS)
    for n, up, part in rows("n", "up beside the vector", "of the vector"):
        beside = sum(sizes(int(n), NAME_BYTES)[message] for message in UP)
        assert (number(up), part) == (beside, f"{100 * beside / vector:.3f}%")


def test_a_scored_study_sends_eight_bytes_more() -> None:
    assert vector_bytes(1000, scored=True) - vector_bytes(1000) == 8
    assert "8 bytes more" in THREATS.read_text()


# What the log, the policy and the code's constants say.


def test_the_kinds_of_records_and_their_fields() -> None:
    found = rows("kind", "written by", "fields")
    assert [row[0].strip("`") for row in found] == list(KINDS)
    for kind, _, fields in found:
        assert re.findall(r"`(\w+)`", fields) == list(KINDS[kind.strip("`")].model_fields), kind


def test_the_keys_of_the_policy_and_their_defaults() -> None:
    found = rows("key of the policy", "default", "what it refuses or allows")
    defaults = SitePolicy().model_dump()
    spelled = {True: "true", False: "false", None: "unset"}
    about = ("require_secure_aggregation", "allow_robust_rules", "allow_two_contributors", "allow_reused_models",
             "allow_validation_scores", "allow_evaluation", "min_sites", "min_contributors", "min_collusion",
             "tasks")  # fmt: skip
    assert [row[0].strip("`") for row in found] == list(about)
    for key, default, _ in found:
        value = defaults[key.strip("`")]
        written = ", ".join(value) if isinstance(value, tuple) else value
        assert default.strip("`") == (spelled[value] if type(value) in (bool, type(None)) else str(written)), key


def test_the_numbers_of_the_code() -> None:
    for _, value, place in rows("number", "value", "in the code"):
        path, _, name = place.strip("`").partition(": ")
        module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
        assert number(value) == getattr(module, name), place


def test_the_words() -> None:
    said = words(bytes(range(32)))
    assert len(said) == 18
    assert words(bytes(range(24)) + bytes(8)) == said != words(bytes(range(1, 33)))
    assert "18 words" in THREATS.read_text()
    assert "18 words" in README.read_text()


def test_the_exit_codes() -> None:
    codes = {value for name, value in vars(errors).items() if name.startswith("EXIT_")}
    assert {int(row[0]) for row in rows("exit code", "meaning", path=README)} == codes


# Commands, tests, files, links.


def code_of(path: Path) -> tuple[list[str], list[str]]:
    """Lines of fenced blocks, continuations joined; and what stands between single backticks."""
    text = path.read_text()
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, flags=re.S | re.M)
    lines = [line.strip() for block in blocks for line in re.sub(r"\\\n\s*", " ", block).splitlines()]
    prose = re.sub(r"\n\s*", " ", re.sub(r"^```.*?^```", "", text, flags=re.S | re.M))
    inline = re.findall(r"`([^`]+)`", prose)
    return lines, inline


def refusal(line: str, *, whole: bool) -> str | None:
    """What the parser has against a command; None where it takes it. Values are not looked at.

    Args:
        line: The command.
        whole: Whether arguments and options that it cannot do without must be there.
    """
    names = shlex.split(line, comments=True)[1:]
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands") and names:
        if names[0] not in command.commands:
            return f"no command {names[0]}"
        command, names = command.commands[names[0]], names[1:]
    context = command.context_class(command, info_name=command.name)
    try:
        given, left, _ = command.make_parser(context).parse_args(args=list(names))
    except Exception as error:
        return str(error)
    if left:
        return f"one argument too many: {left[0]}"
    missing = [each.name for each in command.params if each.required and not given.get(each.name)]
    return f"without {missing[0]}" if whole and missing else None


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_the_parser_takes_every_command(path: Path) -> None:
    lines, inline = code_of(path)
    blocks = {line: refusal(line, whole=True) for line in lines if line.startswith("fedseg ")}
    inline_ones = {line: refusal(line, whole=False) for line in inline if line.startswith("fedseg ")}
    assert blocks or inline_ones
    assert {line: why for line, why in (blocks | inline_ones).items() if why} == {}


def test_a_wrong_command_is_seen() -> None:
    assert refusal("fedseg study roster my-study  # at the lab", whole=True) is None
    assert refusal("fedseg study rooster my-study", whole=False) == "no command rooster"
    assert "--rooster" in (refusal("fedseg study roster my-study --rooster", whole=False) or "")
    assert refusal("fedseg study roster my-study more", whole=False) == "one argument too many: more"
    assert refusal("fedseg client approve-roster --state DIR", whole=True) == "without fingerprint"
    assert refusal("fedseg audit verify", whole=True) == "without folder"


def test_every_test_that_is_named_exists() -> None:
    named = [
        (path, *each) for path in DOCUMENTS for each in re.findall(r"(tests/[\w/]+\.py)(?:::(\w+))?", path.read_text())
    ]
    assert named
    for _, file, test in named:
        source = ROOT / file
        assert source.is_file(), file
        defined = {node.name for node in ast.walk(ast.parse(source.read_text())) if isinstance(node, ast.FunctionDef)}
        assert not test or test in defined, f"{file}::{test}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_file_of_the_project_that_is_named_exists(path: Path) -> None:
    top = "|".join(("fedseg", "tests", "protos", "sample_configs", "benchmarks", "docs"))
    found = re.findall(rf"(?<![\w/.~-])((?:{top})/[\w./-]*[\w/])", path.read_text())
    assert found
    assert [name for name in found if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_leads_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text()):
        assert target.startswith("https://") or (path.parent / target).exists(), target


# What the threat model says that nothing prevents.


def test_a_server_that_claims_a_missed_round_can_send_any_model() -> None:
    any_model = np.full(INITIAL.size, 1e6, np.float32)
    named = Head(model_hash(any_model), 7, "00" * 32)
    link = Script(Join(header(SECURE, 8, model=named.model_hash), named))
    link.models[named.model_hash] = any_model
    site = runner(link, SECURE)
    with pytest.raises(errors.LinkError, match="the script is over"):
        site.run()
    assert site.released is not None
    assert (site.released == any_model).all()
    assert "advertise" in link.kinds()


def kept_names(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*"):
        yield path.relative_to(folder).as_posix()


def test_the_files_of_keys_and_logs_are_there(tmp_path: Path) -> None:
    StudyFolder.create(tmp_path / "study", plan(), FIRST, address="localhost:8443", now=1_700_000_000.0)
    study = set(kept_names(tmp_path / "study"))
    source = "\n".join(path.read_text() for path in (ROOT / "fedseg").rglob("*.py"))
    named = rows("what", "where", "lives until")
    assert len(named) > 5
    for what, where, _ in named:
        for name in re.findall(r"`([\w/.*-]+\.(?:key|pem|bin|jsonl|npy|json|sqlite))`", where):
            short = name.rsplit("/", 1)[-1].split("*")[0]
            assert name in study if "study's folder" in where else short in source, (what, name)
