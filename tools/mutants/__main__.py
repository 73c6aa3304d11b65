"""`python -m tools.mutants`: counts killed and surviving mutants; fails when too few are killed or one unexplained."""

from __future__ import annotations

import argparse
import signal
import sys
import time

from tools.mutants.run import FILES, MutantsFailed, run
from tools.mutants.survivors import WANTED, Report, explanations


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.mutants", description=__doc__)
    parser.add_argument("--file", action="append", metavar="PATH", choices=FILES, help=f"only of {', '.join(FILES)}")
    parser.add_argument("--children", type=int, help="mutants tested at a time (default: one per core)")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as an exception, so that mutmut is ended with us
    started = time.monotonic()
    try:
        mutants = run(options.file or FILES, children=options.children)
    except MutantsFailed as error:
        print(f"mutants: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nmutants: interrupted", file=sys.stderr)
        return 130
    report = Report(mutants, explanations())
    for mutant in report.unexplained:
        print(f"\n{mutant.status}: {mutant.file}, {mutant.function}")
        print("\n".join(f"  - {line}" for line in mutant.was.splitlines()))
        print("\n".join(f"  + {line}" for line in mutant.now.splitlines()))
    for explanation in report.stale:
        print(f"\nno longer needed in survivors.toml: {explanation.file}, {explanation.function}: {explanation.now}")
    print(f"\n{report.table()}\n")
    if report.good:
        took = f"{time.monotonic() - started:.0f} s"
        print(f"mutants: {report.killed} of {len(mutants)} killed, the rest explained, {took}")
        return 0
    print(
        f"mutants: {report.per_cent:.1f} % killed, wanted {WANTED:g} %; {len(report.unexplained)} unexplained.\n"
        "hint: write a test that fails under the change, simplify the line, or explain it in survivors.toml",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
