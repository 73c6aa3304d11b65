"""`llm-fallback reconcile`: compare a vendor's usage export with a ledger's file, and post the differences."""

from __future__ import annotations

import argparse
import json
import time

__all__ = ["configure", "run"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    parser.add_argument("export", metavar="EXPORT", help="the vendor's usage or cost export: .json, .jsonl, .csv, .tsv")
    parser.add_argument("--vendor", required=True, help="whose it is: openai, anthropic, or any provider's name")
    parser.add_argument("--ledger", default="costs.db", metavar="FILE", help="the ledger's file (costs.db)")
    parser.add_argument("--provider", metavar="NAME", help="whose rows are compared, if not the vendor's")
    parser.add_argument("--dry-run", action="store_true", help="tell what would be posted, and post nothing")
    parser.add_argument(
        "--adopt", action="store_true", help="post what was billed for models that the ledger has no rows of, too"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    """Do it."""
    from shared_core.ledger.reconcile import reconcile
    from shared_core.ledger.sqlite import SQLiteLedger
    from shared_core.ledger.sums import LedgerFile

    LedgerFile(options.ledger).close()  # what is no ledger is refused, not made into one
    with SQLiteLedger(options.ledger) as ledger:
        found = reconcile(
            ledger, options.export, options.vendor, now=time.time(), provider=options.provider,
            dry_run=options.dry_run, adopt=options.adopt,
        )  # fmt: skip
    if options.json:
        print(json.dumps(found.rows(), indent=2, ensure_ascii=False))
    else:
        print(found)
    return 0
