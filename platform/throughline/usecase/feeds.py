"""`sources.tables.NAME.from`: files by URI, a table or query over JDBC, or rows pushed over HTTP.

Owns: the keys and their checks. Does not own: reading (`sources/`). A declaration holds no credentials.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, Discriminator, Field, Tag, field_validator, model_validator

from throughline.usecase.base import Declared

Format = Literal["csv", "json", "parquet"]
_FORMATS: dict[str, Format] = {
    ".csv": "csv", ".json": "json", ".jsonl": "json", ".ndjson": "json", ".parquet": "parquet"
}  # fmt: skip
_COMPRESSED = {".gz", ".zst"}

# By kind of URL: the driver's class, and where Maven Central has it.
DRIVERS = {"postgresql": ("org.postgresql.Driver", "org.postgresql:postgresql:42.7.14")}  # 1.2 MB


def _known_zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:  # OSError: a folder of the zone database, such as "America"
        raise ValueError(f"{name!r} is not an IANA time zone, for example America/New_York") from error
    return name


Zone = Annotated[str, AfterValidator(_known_zone)]


class _Feed(Declared):
    """The columns of event time and knowledge time; `timezone` is that of timestamps without an offset."""

    event_time: str = "event_time"
    timezone: Zone | None = None


class FilesFeed(_Feed):
    """Files by URI: a folder of this machine (relative: of the project) or s3://, `*` and `**` as usual.

    Without `available_at` a row is known from the moment its file was last modified. Names that begin with `_` or `.`
    are skipped: write a file under such a name, then rename it.
    """

    files: str = Field(min_length=1)
    format: Format | None = Field(None, description="Unset: from the ending of `files`. A file may be .gz or .zst.")
    available_at: str | None = None
    separator: str = Field(",", min_length=1, max_length=1, description="Of a CSV file.")
    null_values: list[str] = Field(default_factory=list, description="Texts of a CSV file that mean: no value.")

    @model_validator(mode="after")
    def _format_is_known(self) -> FilesFeed:
        if self.kind is None:
            raise ValueError(f"declare `format` (csv, json, parquet): {self.files} does not end so")
        return self

    @property
    def kind(self) -> Format | None:
        endings = [ending for ending in PurePosixPath(self.files).suffixes if ending not in _COMPRESSED]
        return self.format or (_FORMATS.get(endings[-1]) if endings else None)


class JdbcFeed(_Feed):
    """A table or query of a database, read by the Spark Connect server.

    `credentials: SHOP` takes user and password from SHOP_USER and SHOP_PASSWORD in the environment of the Spark server;
    without it the driver looks where it always does (PostgreSQL: ~/.pgpass or PGPASSFILE). `driver` without `package`
    is one that the server already has.
    """

    jdbc: str = Field(pattern=r"^jdbc:[a-z0-9]+:\S+$", description="jdbc:KIND://HOST:PORT/DATABASE?user=NAME")
    table: str | None = Field(None, pattern=r'^[\w."]+$')
    query: str | None = None
    available_at: str = "available_at"
    credentials: str | None = Field(None, pattern=r"^[A-Z][A-Z0-9_]*$")
    driver: str | None = Field(None, pattern=r"^[\w.$]+$", description="The driver's class.")
    package: str | None = Field(
        None, pattern=r"^[\w.-]+:[\w.-]+:[\w.-]+$", description="Maven coordinates; the Spark server fetches it."
    )

    @field_validator("jdbc")
    @classmethod
    def _holds_no_secret(cls, url: str) -> str:
        if re.search(r"(?i)(pass\w*|pwd|secret|token|key)=|//[^/?]*:[^/?@]*@", url):
            # not repeated in the message
            raise ValueError("a password does not belong here: use the driver's standard file, or `credentials`")
        return url

    @model_validator(mode="after")
    def _complete(self) -> JdbcFeed:
        if (self.table is None) == (self.query is None):
            raise ValueError("declare either `table` or `query`")
        if self.driver_and_package[0] is None:
            raise ValueError(f"declare `driver` and `package`: they are known for {', '.join(DRIVERS)} only")
        return self

    @property
    def driver_and_package(self) -> tuple[str | None, str | None]:
        """As declared; where nothing is, those known for this kind of database."""
        driver, package = DRIVERS.get(self.jdbc.split(":")[1], (None, None))
        return (self.driver, self.package) if self.driver else (driver, self.package or package)


class PushFeed(_Feed):
    """Rows POSTed to the collector; `push` names the column that identifies a row: sent again, it is kept once.

    `available_at` of a row may be at most the data clock; without it, the row is known on arrival.
    """

    push: str
    available_at: str = "available_at"


def _kind(value: Any) -> str | None:
    keys = vars(value) if isinstance(value, _Feed) else value if isinstance(value, dict) else {}
    named = [kind for kind in ("files", "jdbc", "push") if kind in keys]
    return named[0] if len(named) == 1 else None


Feed = Annotated[
    Annotated[FilesFeed, Tag("files")] | Annotated[JdbcFeed, Tag("jdbc")] | Annotated[PushFeed, Tag("push")],
    Discriminator(
        _kind,
        custom_error_type="feed",
        custom_error_message="declare one of `files: URI`, `jdbc: URL` or `push: COLUMN`",
    ),
]
