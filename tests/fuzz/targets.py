"""Everything that reads bytes which somebody else has written, each with the errors that it may raise and no others.

A target holds for some bytes if its reader refuses them with one of its errors, or gives a value that, written and read
again, is the same; and, where there is one spelling of a value, is written as the very bytes that were read.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from fedseg.errors import (
    FedsegError,
    InviteError,
    LedgerError,
    ModelError,
    PlanError,
    PolicyError,
    ProtocolError,
    StorageError,
)
from fedseg.plan.manifest import Manifest
from fedseg.plan.study import parse_plan
from fedseg.policy import parse_policy
from fedseg.privacy import chain
from fedseg.rpc import codec
from fedseg.rpc._pb import federation_pb2 as pb
from fedseg.rpc.invites import Invite
from fedseg.secagg.messages import Advertisement, Consistency, Envelopes, MaskedInput, SessionHeader, Shares
from fedseg.secagg.roster import Roster
from fedseg.secagg.shamir import Share
from fedseg.secagg.state import Ended, State, dump, load
from fedseg.store.audit_log import LogReader
from fedseg.store.audit_records import parse_body
from fedseg.store.checkpoints import load_model, save_model
from fedseg.store.vectors import load_model_vector, load_ring_vector, save_vector

from . import corpus


@dataclass(frozen=True)
class Target:
    """One reader.

    Args:
        name: What it reads.
        read: Bytes to a value.
        errors: What it may raise.
        corpus: Valid bytes, made when asked for.
        write: A value to bytes; None for documents, which nothing writes.
        canonical: Whether `write` must give the very bytes that were read.
    """

    name: str
    read: Callable[[bytes], Any]
    errors: type[FedsegError]
    corpus: Callable[[], list[bytes]]
    write: Callable[[Any], bytes] | None = None
    canonical: bool = True

    def check(self, data: bytes) -> bool:
        """Whether `data` was read; fails where it was neither read nor refused as it should be."""
        try:
            value = self.read(data)
        except self.errors:
            return False
        if self.write is not None:
            written = self.write(value)
            if written != data and (self.canonical or self.write(self.read(written)) != written):
                raise AssertionError(f"{self.name}: {data!r} is read, and written as {written!r}")
        return True


def _in_file(read: Callable[[Path], Any]) -> Callable[[bytes], Any]:
    def through_file(data: bytes) -> Any:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            # numpy has words to say about odd headers, on its way to refusing them.
            warnings.simplefilter("ignore")
            path = Path(folder) / "file"
            path.write_bytes(data)
            return read(path)

    return through_file


def _to_file(write: Callable[[Path, Any], object]) -> Callable[[Any], bytes]:
    def through_file(value: Any) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "file"
            write(path, value)
            return path.read_bytes()

    return through_file


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _from_wire(message: Any, decode: Callable[[Any], Any]) -> Callable[[bytes], Any]:
    """Bytes that protobuf itself refuses never reach the codec."""

    def read(data: bytes) -> Any:
        try:
            parsed = message.FromString(data)
        except DecodeError as error:
            raise ProtocolError("not protobuf") from error
        return decode(parsed)

    return read


def _to_wire(encode: Callable[[Any], Any]) -> Callable[[Any], bytes]:
    return lambda value: bytes(encode(value).SerializeToString(deterministic=True))


def _body(data: bytes) -> Any:
    """A record of an audit log: its kind and, as JSON, its body."""
    values = None
    with suppress(ValueError, RecursionError):
        values = json.loads(data)
    if not isinstance(values, list) or len(values) != 2 or not isinstance(values[0], str):
        raise LedgerError("not a kind and a body")
    return parse_body(values[0], values[1])


def _secagg(name: str, kind: Any, samples: Callable[[], list[bytes]]) -> Target:
    return Target(name, kind.from_bytes, ProtocolError, samples, lambda value: bytes(value.to_bytes()))


def _state(data: bytes) -> State:
    """A site's state; of one under another roster only its end is left, which is spelt otherwise."""
    state = load(data, corpus.identity_of_states())
    if not isinstance(state, Ended) and dump(state) != data:
        raise AssertionError(f"{data!r} is a state, and is written as {dump(state)!r}")
    return state


def _invite(data: bytes) -> str:
    """The invite's own spelling of itself; white space in the text doesn't count."""
    text = _text(data)
    written = Invite.decode(text).encode()
    if written != "".join(text.split()):
        raise AssertionError(f"{text!r} is an invite, and is written as {written!r}")
    return written


_ALL = [
    _secagg("advertisement", Advertisement, corpus.advertisements),
    _secagg("envelopes", Envelopes, corpus.envelopes),
    _secagg("masked-input", MaskedInput, corpus.masked_inputs),
    _secagg("consistency", Consistency, corpus.consistencies),
    _secagg("shares", Shares, corpus.shares),
    _secagg("share", Share, corpus.single_shares),
    _secagg("header", SessionHeader, corpus.headers),
    _secagg("roster", Roster, corpus.rosters),
    Target("state", _state, ProtocolError, corpus.states, dump, canonical=False),
    Target("invite", _invite, InviteError, corpus.invites),
    Target(
        "instruction",
        _from_wire(pb.PollReply, codec.decode_instruction),
        ProtocolError,
        corpus.instructions,
        _to_wire(codec.encode_instruction),
        canonical=False,
    ),
    Target(
        "enrolled",
        _from_wire(pb.GetRosterReply, codec.decode_enrolled),
        ProtocolError,
        corpus.enrolled,
        _to_wire(codec.encode_enrolled),
        canonical=False,
    ),
    Target(
        "upload",
        _from_wire(pb.UploadHeader, lambda header: (header.session, codec.decode_upload(header, "brno"), header.size)),
        ProtocolError,
        corpus.uploads,
        _to_wire(lambda value: codec.encode_upload(*value)),
        canonical=False,
    ),
    Target(
        "published",
        _from_wire(pb.DownloadHeader, lambda header: codec.decode_published(header, np.zeros(3, np.uint32))),
        ProtocolError,
        corpus.published,
        _to_wire(codec.encode_published),
        canonical=False,
    ),
    Target("plan", lambda data: parse_plan(_text(data), "plan.yaml"), PlanError, corpus.plans),
    Target("policy", lambda data: parse_policy(_text(data), "policy.yaml"), PolicyError, corpus.policies),
    Target("manifest", Manifest.from_json, PlanError, corpus.manifests, Manifest.to_json),
    Target(
        "record", lambda data: chain.parse(data, "log"), LedgerError, corpus.records, lambda record: record.line()[:-1]
    ),
    Target("audit-body", _body, LedgerError, corpus.bodies),
    Target("audit-log", _in_file(lambda path: list(LogReader(path))), LedgerError, corpus.logs),
    Target(
        "model-vector", _in_file(load_model_vector), StorageError, corpus.model_vectors, _to_file(save_vector), False
    ),
    Target("ring-vector", _in_file(load_ring_vector), StorageError, corpus.ring_vectors, _to_file(save_vector), False),
    Target(
        "model-file",
        _in_file(load_model),
        ModelError,
        corpus.model_files,
        _to_file(lambda path, value: save_model(path, *value)),
        canonical=False,
    ),
]
TARGETS = {target.name: target for target in _ALL}
