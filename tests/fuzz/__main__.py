"""`python -m tests.fuzz TARGET FOLDER [FLAG...]`: coverage-guided fuzzing of one target by atheris.

FOLDER is made, filled with the target's corpus, and grows by what is found; an input for which the target doesn't hold
ends the run and is left there. FLAGs are libFuzzer's: -runs=N, -max_total_time=S; or a file, to try nothing but it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris  # type: ignore[import-untyped]  # it comes without types

with atheris.instrument_imports(include=["fedseg"]):
    from .targets import TARGETS


def main(name: str, where: str, *flags: str) -> None:
    """Fuzz one target; libFuzzer ends the process."""
    target, folder = TARGETS[name], Path(where)
    corpus = folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, sample in enumerate(target.corpus()):
        (corpus / str(number)).write_bytes(sample)
    limits = ["-max_len=4096", "-timeout=30", "-rss_limit_mb=2048", f"-artifact_prefix={folder}/"]
    atheris.Setup([name, *limits, *flags, str(corpus)], target.check)
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
