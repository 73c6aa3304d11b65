"""What a ledger does that budgets and durability need: reserve, dispatch, settle, correct. Two keep it: memory, SQLite.

ticket = ledger.reserve(draft, dispatch=True)     # a Denial when a hard budget refuses
...                                               # the request is on its way
ledger.settle(ticket, entry)                      # exactly once
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from shared_core.chat.events import Usage
from shared_core.ledger.entry import EntryStatus, Ledger, LedgerEntry, Purpose
from shared_core.resilience.budget import Ask, Claim, Denial, MeterKey, Reading

__all__ = ["Crossed", "Draft", "Exhausted", "LedgerStore", "Notice", "Overcharged", "Ticket", "Trouble"]


class Crossed(NamedTuple):
    """Spending passed a share of a budget's limit, for the first time in its window."""

    claim: Claim
    share: float
    reading: Reading


class Exhausted(NamedTuple):
    """A budget is used up, or has refused an attempt, for the first time in its window."""

    claim: Claim
    reading: Reading


class Overcharged(NamedTuple):
    """A provider charged more than could be foreseen. It is booked, and counts."""

    entry: LedgerEntry
    by_nano: int


class Trouble(NamedTuple):
    """The ledger cannot be written just now; rows wait in memory. With `over`, it can again."""

    reason: str
    waiting: int
    over: bool = False


Notice = Crossed | Exhausted | Overcharged | Trouble


class Draft(NamedTuple):
    """What is known of an attempt before it starts."""

    execution: str
    target: str
    provider: str
    model: str
    at: float
    """Seconds since the epoch: its row's time, by which its windows were chosen."""
    ask: Ask | None = None
    """What it may cost at worst; None when that is unknown."""
    claims: tuple[Claim, ...] = ()
    user: str | None = None
    tags: tuple[str, ...] = ()
    chain: str | None = None
    local: bool = False
    purpose: Purpose = Purpose.CALL
    tell: Callable[[Notice], None] | None = None
    """Told what came of it, on any thread. Must be quick, and must not raise."""

    @property
    def strict(self) -> bool:
        """Whether money may leave under a hard budget: without the ledger it must not."""
        return (self.ask is None or self.ask.most > 0) and any(claim.budget.hard for claim in self.claims)

    def opened(self, status: EntryStatus, bound_nano: int | None, number: int | None = None) -> LedgerEntry:
        """The row while the attempt is under way."""
        return LedgerEntry(
            self.execution,
            0,
            self.target,
            self.provider,
            self.model,
            self.at,
            "running",
            status,
            _NOTHING,
            None,
            bound_nano,
            user=self.user,
            tags=self.tags,
            chain=self.chain,
            local=self.local,
            purpose=self.purpose,
            id=number,
        )


_NOTHING = Usage()


@dataclass(slots=True, eq=False)
class Ticket:
    """A reservation. Settle it exactly once, whatever happens."""

    draft: Draft
    bound_nano: int | None
    """What has been set aside; None when nobody knows what the attempt may cost."""
    status: EntryStatus
    id: int | None = None
    """The row's number; None until it is on disk."""


@runtime_checkable
class LedgerStore(Ledger, Protocol):
    """A ledger that rows can be reserved in.

    `durable` ledgers write a row before the first byte of an attempt leaves, and keep it through a crash.
    """

    durable: bool

    def reserve(self, draft: Draft, *, dispatch: bool = False) -> Ticket | Denial:
        """Set the worst case aside for every claim of `draft` at once, and write the row. With `dispatch`, in the same
        breath say that the attempt begins.

        Raises:
            LedgerError: a hard budget applies, and the ledger cannot be written.
        """
        ...

    async def areserve(self, draft: Draft, *, dispatch: bool = False) -> Ticket | Denial:
        """The same, without blocking the event loop."""
        ...

    def dispatch(self, ticket: Ticket) -> bool:
        """Write down that the attempt begins. The first byte may leave when this returns: True when that is written,
        False when it waits to be, as no hard budget applies.

        Raises:
            LedgerError: a hard budget applies, and the ledger cannot be written.
        """
        ...

    async def adispatch(self, ticket: Ticket) -> bool:
        """The same, without blocking the event loop."""
        ...

    def settle(self, ticket: Ticket, entry: LedgerEntry) -> None:
        """Close the row with what became of it. Returns at once; never raises into a request.

        Raises:
            RuntimeError: the ticket was settled before, which is a bug in the caller.
        """
        ...

    def correct(
        self, number: int, cost_nano: int, *, reason: str, usage: Usage | None = None, at: float | None = None
    ) -> LedgerEntry | None:
        """Post the difference between a settled row and what it cost in truth, as a row of its own.

        Args:
            number: the row's `id`.
            cost_nano: what it cost according to the bill.
            reason: where that is from.
            usage: the tokens according to the bill.
            at: seconds since the epoch; now when left out.

        Returns:
            The new row, or None when there is no difference.

        Raises:
            LookupError: there is no such row, or it is not settled, or is a correction itself.
        """
        ...

    def meters(self, keys: Sequence[MeterKey] | None = None) -> Mapping[MeterKey, Reading]:
        """What meters show; of all that have been used when `keys` is left out. One that is asked for by its key and
        that nothing has counted towards yet shows what it will take in of the rows there are.
        """
        ...

    def flush(self) -> bool:
        """Wait until everything handed in so far is written. False when it cannot be."""
        ...
