"""How many use a thing at this moment, and when nobody does any more. It knows no request and no model."""

from __future__ import annotations

import asyncio


class Users:
    """A context manager that any number may be in; `gone` returns when all have left."""

    def __init__(self) -> None:
        self._count = 0
        self._nobody = asyncio.Event()
        self._nobody.set()

    def __enter__(self) -> None:
        self._count += 1
        self._nobody.clear()

    def __exit__(self, *_: object) -> None:
        self._count -= 1
        if not self._count:
            self._nobody.set()

    async def gone(self) -> None:
        """Wait until nobody uses it; at once if nobody does."""
        await self._nobody.wait()
