"""The one door: who acts, for which tenant, and why.

A scope holds no connection. Each statement inside it is a transaction of its own which carries the signed context;
``transaction()`` groups several. A web request can therefore live in one scope, and ``asyncio.gather`` inside it works.
"""

from __future__ import annotations

import contextlib
import ipaddress
import time
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Self
from uuid import UUID

from core.errors import ScopeError
from core.settings import settings
from core.token import ANY_BACKEND, TokenKey

__all__ = ["Scope", "current_scope", "one_line", "open_scope", "scope"]

LONGEST_REASON = 500  # characters; it stands in each audit record

_current: ContextVar[Scope | None] = ContextVar("charthold_scope", default=None)


class Scope:
    """Who acts. Made by ``scope(...)``; entered once, with ``async with``.

    Tasks started inside see the same scope; when the block ends the scope is over for them too, and their next
    statement raises ``ScopeError``.
    """

    __slots__ = (
        "_expires",
        "_over",
        "_reset",
        "_seconds",
        "_tokens",
        "actor",
        "emergency",
        "reason",
        "request_id",
        "source_ip",
        "tenant",
    )

    def __init__(
        self,
        tenant: UUID,
        actor: UUID,
        reason: str,
        request_id: str,
        source_ip: str,
        seconds: int,
        emergency: UUID | None = None,
    ) -> None:
        self.tenant = tenant
        self.actor = actor
        self.reason = reason
        self.request_id = request_id
        self.source_ip = source_ip
        self.emergency = emergency
        self._seconds = seconds
        self._expires = 0
        self._over = False
        self._reset: Token[Scope | None] | None = None
        self._tokens: dict[tuple[str, int], str] = {}

    def __repr__(self) -> str:
        return f"<Scope tenant={self.tenant} actor={self.actor} reason={self.reason!r}>"

    @property
    def expires(self) -> int:
        """When the scope ends by itself, in seconds since 1970 (45 CFR 164.312(a)(2)(iii), automatic logoff)."""
        return self._expires

    async def __aenter__(self) -> Self:
        # Nesting would let a helper switch the tenant in the middle of a request.
        outer = _current.get()
        if outer is not None and not outer._over:  # a task that outlived a scope may open its own
            raise ScopeError("A scope is open already. Leave it before you open another; a scope is never nested.")
        if self._reset is not None or self._over:
            raise ScopeError("This scope was used already. Call scope(...) again for a new one.")
        self._expires = int(time.time()) + self._seconds
        self._reset = _current.set(self)
        return self

    async def __aexit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over = True
        self._tokens.clear()
        if self._reset is not None:
            # A generator that is closed by another task leaves here in that task's context, where nothing was set.
            with contextlib.suppress(ValueError):
                _current.reset(self._reset)

    @property
    def is_over(self) -> bool:
        """Whether the scope has ended or expired."""
        return self._over or time.time() >= self._expires

    def check(self) -> None:
        """Raise ``ScopeError`` when the scope is over or has expired."""
        if self._over:
            raise ScopeError(
                "The scope that this task began in has ended. Await the task inside the scope, or open one in the task."
            )
        if time.time() >= self._expires:
            raise ScopeError(
                f"The scope expired after {self._seconds} seconds. Open a new one; see CHARTHOLD_SCOPE_SECONDS."
            )

    def token(self, key: TokenKey, backend: int) -> str:
        """The signed context for the backend with that pid; made once a connection."""
        self.check()
        token = self._tokens.get((key.id, backend))
        if token is None:
            token = self._tokens[key.id, backend] = self._signed(key, backend, self._expires)
        return token

    def last_token(self, key: TokenKey, backend: int) -> str:
        """A token good for one more minute, to record again what this scope was shown, even if it has ended."""
        return self._signed(key, backend, int(time.time()) + 60)

    def _signed(self, key: TokenKey, backend: int, expires: int) -> str:
        return key.sign(
            tenant=self.tenant,
            actor=self.actor,
            expires=expires,
            backend=backend if settings().bind_backend else ANY_BACKEND,
            request_id=self.request_id,
            source_ip=self.source_ip,
            reason=self.reason,
            emergency=self.emergency,
        )


def scope(
    *,
    tenant: UUID,
    actor: UUID,
    reason: str,
    request_id: str | None = None,
    source_ip: str | None = None,
    seconds: int | None = None,
    emergency: UUID | None = None,
) -> Scope:
    """Say who acts: ``async with scope(tenant=..., actor=..., reason="treatment"): ...``.

    ``tenant`` and ``actor`` are the ids of a tenant and of one of its active users; ``reason`` (1 to 500 characters,
    never PHI) stands in every audit record, as do ``request_id`` and ``source_ip``; the scope ends by itself after
    ``seconds`` (at most ``CHARTHOLD_SCOPE_SECONDS``). ``emergency`` is the id of one that the actor declared
    (``core/compliance/emergencies.py``). Raises ``ScopeError`` for anything else.
    """
    if not isinstance(tenant, UUID) or not isinstance(actor, UUID):
        raise ScopeError("scope(tenant=..., actor=...) takes two UUIDs: a tenant's id and the id of one of its users.")
    if emergency is not None and not isinstance(emergency, UUID):
        raise ScopeError("emergency is a UUID: the id of what break_glass() answered.")
    reason = one_line("reason", reason)
    if not reason:
        raise ScopeError('A scope needs a reason, such as reason="treatment"; it stands in each audit record.')
    if reason.startswith("break-glass:"):
        raise ScopeError("A reason that begins with break-glass: is an emergency's. See core.break_glass().")
    address = ""
    if source_ip:
        if not isinstance(source_ip, str):
            raise ScopeError("source_ip is text, such as an IP address has it.")
        try:
            address = str(ipaddress.ip_address(source_ip))
        except ValueError:
            raise ScopeError("source_ip is not an IP address.") from None
        if "%" in address:
            raise ScopeError("source_ip has a zone, which no log can use. Give the address alone.")
    longest = settings().scope_seconds
    if seconds is not None and (type(seconds) is not int or not 0 < seconds <= longest):
        raise ScopeError(f"A scope lives 1 to {longest} whole seconds; CHARTHOLD_SCOPE_SECONDS sets the most.")
    return Scope(
        tenant, actor, reason, one_line("request_id", request_id or ""), address, seconds or longest, emergency
    )


def open_scope() -> Scope:
    """The scope that was entered last, also when it has expired."""
    scope = _current.get()
    assert scope is not None
    return scope


def current_scope() -> Scope:
    """The open scope; raises ``ScopeError`` with what to write when there is none."""
    scope = _current.get()
    if scope is None:
        raise ScopeError(
            "No scope is open, so nobody is asking. Write: "
            'async with scope(tenant=..., actor=..., reason="treatment"): ...'
        )
    scope.check()
    return scope


def one_line(name: str, text: str) -> str:
    """One line of text, so that it cannot forge a record in a log that is read by lines."""
    if not isinstance(text, str) or len(text) > LONGEST_REASON or not text.isprintable():
        raise ScopeError(f"{name} must be printable text of at most {LONGEST_REASON} characters on one line.")
    return text.strip()
