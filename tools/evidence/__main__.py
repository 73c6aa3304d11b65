"""`python -m tools.evidence [SECTION ...|all] [--quick]`: measure, write docs/evidence, write the pages' tables."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from tools.evidence import record, tables
from tools.evidence.sections import SECTIONS, MissingSection
from tools.simulation import charts

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 1 when something was not measured."""
    parser = argparse.ArgumentParser(prog="python -m tools.evidence", description=__doc__)
    parser.add_argument("section", nargs="*", metavar="SECTION", help=f"{', '.join(SECTIONS)}, or all (the default)")
    parser.add_argument("--quick", action="store_true", help="measure less, print it, write nothing")
    parser.add_argument("--out", type=Path, default=record.FOLDER, help="write the files into this folder instead")
    options = parser.parse_args(arguments)
    everything = not options.section or "all" in options.section
    asked = list(SECTIONS) if everything else list(dict.fromkeys(options.section))
    if unknown := [name for name in asked if name not in SECTIONS]:
        parser.error(f"there is no section {unknown[0]!r}; sections: {', '.join(SECTIONS)}")
    missed = []
    for name in asked:
        section = SECTIONS[name]
        command = "make evidence" if everything else f'make evidence ARGS="{name}"'
        print(f"evidence: {name}: {section.what}", flush=True)
        try:
            figures = section.measure(quick=options.quick)
        except (MissingSection, RuntimeError) as error:
            missed.append(name)
            print(f"evidence: {name} was NOT measured: {error}", file=sys.stderr)
            continue
        facts = record.record(section, figures, command=command)
        if options.quick:
            print(json.dumps(facts, indent=2, ensure_ascii=False))
        else:
            print(f"written: {record.save(name, facts, options.out)}")
    if not options.quick and options.out == record.FOLDER:
        tables.main([])
        if "simulation" in asked and "simulation" not in missed:
            charts.main([])
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
