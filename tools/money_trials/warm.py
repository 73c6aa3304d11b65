"""Imported by the process that callers are forked from: does once what each of them would do first."""

from __future__ import annotations

from tools.money_trials.caller import preload

preload()
