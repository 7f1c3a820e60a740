"""uvicorn's HTTP protocol for callers that close their half of a connection when they have sent a request.

Owns: that such a caller gets its answer. uvicorn closes the connection at the end of what the caller sends, and whether
the answer was written before is a race.
"""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class HalfClosable(HttpToolsProtocol):
    """Given to `uvicorn.Config(http=...)`."""

    def eof_received(self) -> bool | None:  # ty: ignore[incompatible-method-override]  # asyncio keeps it open for True
        """Keep the connection until the last request that came whole is answered."""
        newest = self.cycle  # of pipelined requests, the one that came last
        if newest is None or newest.response_complete or newest.more_body:
            return None
        newest.keep_alive = False
        return True
