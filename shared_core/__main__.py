"""`python -m shared_core` is `llm-fallback`."""

from __future__ import annotations

import sys

from shared_core.cli import main

if __name__ == "__main__":
    sys.exit(main())
