"""The coordinator over gRPC: one process that ends when the study is complete."""

from __future__ import annotations

import threading
import time

from fedseg.rpc.service import Desk, start_server
from fedseg.runtime import events
from fedseg.runtime.coordinator import Coordinator
from fedseg.runtime.course import StudyState
from fedseg.runtime.evaluations import refuse_demand
from fedseg.runtime.extension import append_versions
from fedseg.runtime.simulation import LocalLink
from fedseg.runtime.study import StudyFolder
from fedseg.store.audit_log import AuditLog

TICK_S = 0.5
GOODBYE_S = 60.0
STOP_GRACE_S = 5.0


def desk_of(folder: StudyFolder, coordinator: Coordinator) -> Desk:
    """What the wire may ask of a study."""
    ca, db = folder.ca.cert_pem, folder.db
    return Desk(
        link=lambda site: LocalLink(coordinator, site),
        alive=coordinator.alive,
        site_of=db.site_of,
        enrol=lambda invite, request, key: folder.enrol(invite, request, key, now=time.time()),
        study_ca=ca,
        invites=lambda: {row.id: row.ca_certificate for row in db.invites()},
        now=time.time,
        staging=folder.staging,
        expect_upload=coordinator.expect_upload,
    )


def serve(
    folder: StudyFolder, bind: str, *, notify: events.Notify, stop: threading.Event, evaluate: bool = False
) -> Coordinator:
    """Run a study's server until the study is complete, paused or stopped.

    Args:
        folder: The study.
        bind: HOST:PORT to listen on.
        notify: Told what happens.
        stop: Set by Ctrl-C: the attempt under way is abandoned, sites are told, nothing else is lost.
        evaluate: Open an evaluation of the model of a study that is complete.

    Returns:
        The coordinator, whose state says how it ended.

    Raises:
        LinkError: if the port is in use.
        UsageError: if an evaluation is asked for and there can be none.
    """
    if evaluate:
        refuse_demand(folder.manifest, folder.db.rounds(), str(folder.root))
    with AuditLog.open(folder.audit, folder.signing_key) as log:
        append_versions(log, folder.versions)
        coordinator = Coordinator(
            folder.manifest,
            folder.archive,
            enrolled=folder.enrolled,
            key=folder.signing_key,
            evidence=log,
            notify=notify,
            evaluate=evaluate,
        )
        _serve(folder, bind, coordinator, notify, stop)
    return coordinator


def _serve(
    folder: StudyFolder, bind: str, coordinator: Coordinator, notify: events.Notify, stop: threading.Event
) -> None:
    late = coordinator.without_model()
    if coordinator.state is StudyState.COMPLETE and not late:
        return
    sites = len(folder.manifest.plan.sites)
    server, port = start_server(desk_of(folder, coordinator), bind, folder.tls, sites=sites)
    notify(events.Note(f"listening on port {port}; sites reach this server at {folder.address}"))
    try:
        if coordinator.state is StudyState.COMPLETE:
            _hand_out(coordinator, notify, stop)
        while coordinator.wait(TICK_S) in (StudyState.GATHERING, StudyState.RUNNING):
            if stop.is_set():
                coordinator.pause("the server was stopped")
        _say_goodbye(coordinator, stop)
    finally:
        server.stop(STOP_GRACE_S).wait()


def _hand_out(coordinator: Coordinator, notify: events.Notify, stop: threading.Event) -> None:
    """Serve the final model of a complete study to the sites that have not fetched it, or until stopped."""
    while (late := coordinator.without_model()) and not stop.is_set():
        notify(events.Waiting(f"the study is complete; {', '.join(late)} to fetch the model (Ctrl-C ends)"))
        stop.wait(TICK_S)


def _say_goodbye(coordinator: Coordinator, stop: threading.Event) -> None:
    """Serve on until every site that is there knows how the study ended and holds the model."""
    until = time.monotonic() + (STOP_GRACE_S if stop.is_set() else GOODBYE_S)
    while time.monotonic() < until and not coordinator.all_told():
        time.sleep(0.05)
