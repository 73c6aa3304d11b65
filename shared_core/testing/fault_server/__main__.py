"""The fault server for other stacks: ``python -m shared_core.testing.fault_server --script gpt-x=503,503,ok``."""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Sequence

from shared_core.testing.fault_server._faults import FAULTS
from shared_core.testing.fault_server._log import SeenRequest, line
from shared_core.testing.fault_server._server import FaultServer


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _script(text: str) -> tuple[str, list[str]]:
    model, equals, steps = text.rpartition("=")
    if not equals or not model or not steps:
        raise argparse.ArgumentTypeError(f"{text!r} is no script. hint: MODEL=STEP,STEP,... such as gpt-x=503,503,ok")
    return model, [step.strip() for step in steps.split(",")]


def main(argv: Sequence[str] | None = None, *, until: threading.Event | None = None) -> int:
    """Run the server until interrupted (or until the event is set). Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m shared_core.testing.fault_server", description=__doc__)
    parser.add_argument("--port", type=int, default=8099, help="loopback port, 0 for any free one (default 8099)")
    parser.add_argument(
        "--script", type=_script, action="append", default=[], metavar="MODEL=STEP,STEP",
        help="statuses, 'ok' or fault names, one for each request; the last one repeats; MODEL may be '*'",
    )  # fmt: skip
    parser.add_argument("--default", default="ok", metavar="STEP", help="the step of models without a script")
    parser.add_argument("--tls", action="store_true", help="serve https, with a certificate of its own authority")
    parser.add_argument("--faults", action="store_true", help="list the fault names and exit")
    options = parser.parse_args(argv)
    if options.faults:
        for kind in FAULTS.values():
            _say(f"{kind.name:<22} {kind.shapes:<9} {kind.what}")
        return 0

    def report(seen: SeenRequest) -> None:
        _say(line(seen))

    try:
        server = FaultServer(
            dict(options.script), default=options.default, port=options.port, tls=options.tls, on_request=report
        )
        server.start()
    except (ValueError, OSError) as error:
        parser.error(str(error))
    with server:
        _say(f"openai     {server.openai_url}\nanthropic  {server.anthropic_url}\ngoogle     {server.google_url}")
        if options.tls:
            _say(f"authority  {server.ca_file}")
        try:
            (until or threading.Event()).wait()
        except KeyboardInterrupt:
            pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
