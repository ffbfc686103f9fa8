"""The `jaxnet` command."""

import sys

try:
    import typer  # noqa: F401 - the modules below need it
except ModuleNotFoundError as error:
    print(f"the jaxnet command needs {error.name}: install jaxnet with its extra [experiments]", file=sys.stderr)
    raise SystemExit(2) from None  # 1 is for a wrong backward pass alone

from jaxnet.cli import network_commands, run_commands
from jaxnet.cli.app import app, main

__all__ = ["app", "main", "network_commands", "run_commands"]
