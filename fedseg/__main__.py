"""`python -m fedseg`."""

from fedseg.cli.main import run

run()
