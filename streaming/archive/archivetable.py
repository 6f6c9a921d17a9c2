"""One table as ARCHIVE fills it: opened once, claimed, appended to by compare-and-swap, and opened anew when it moved.

Whoever fills a table first claims it, with a commit of the table's properties. That ends every other writer: an append
that was begun before fails because the version moved, a compaction because the properties did (delta-rs lets two
compactions of the same files both land, and every row is there twice), and a writer that opens the table again finds
another's name in it. So it holds for one that was started by mistake, and for one that was frozen for an hour.
"""

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from deltalake import DeltaTable
from deltalake.schema import DataType, Field
from deltalake.schema import Schema as DeltaSchema

from schemas.deltatable import append_rows, arrow_schema, create_table, failing_as, open_table
from schemas.documents import Table
from schemas.errors import DataLossError, TableClaimedError, TableError, TableMovedError
from schemas.objectstore import local_folder
from streaming.account.archived import TOPIC_PROPERTY, describe_topic, place_name, read_places, recorded_topic
from streaming.archive.knownids import KnownIds
from streaming.archive.leftovers import list_files, remove_leftovers
from streaming.archive.rows import Row, to_arrow
from streaming.kafka.topicids import TopicIds

log = logging.getLogger(__name__)

WRITER_PROPERTY = "xray.archive.writer"
"""Property of a table: the name of who fills it."""
COMPACTION = "compaction"
"""How the name of one begins that compacts by hand."""
APPENDED_BY = "xray.archive"
"""In an append's own metadata: who made it."""

_CLAIM_ATTEMPTS = 10
_LOOKED_BACK = 200
"""Commits in which a RESTORE is looked for; a writer's own append ends the search before, almost always."""


class ArchiveTable:
    """One table, its places and its ids.

    Parameters
    ----------
    folder : str
        Path or URI of the tables.
    table : Table
        Its definition.
    topic : str
        The topic it is filled from.
    writer : str
        Name of this writer, unlike any other's.
    known : KnownIds
        Of this table.
    keep_days : int
        How long a table that is made now keeps its commits.
    min_free_bytes : int
        Room that appends leave on the table's disk.
    """

    def __init__(
        self,
        folder: str,
        table: Table,
        topic: str,
        writer: str,
        known: KnownIds,
        *,
        keep_days: int = 3,
        min_free_bytes: int = 0,
    ) -> None:
        self.name = table.name
        self.topic = topic
        self._place = f"{folder}/{table.name}"
        self._definition = table
        self._writer = writer
        self._known = known
        self._min_free_bytes = min_free_bytes
        # A commit every 15 s is 5,760 a day: with Delta's own month the log alone would be gigabytes.
        self._properties = {
            "delta.logRetentionDuration": f"interval {keep_days} days",
            "delta.checkpointInterval": "100",
        }
        self._ids = TopicIds("", {topic: ""})
        self._table: DeltaTable | None = None
        self.places: dict[int, int] = {}

    @property
    def version(self) -> int:
        """The table's version that this writer goes by."""
        return int(self.opened.version())

    @property
    def opened(self) -> DeltaTable:
        """The table as this writer has it."""
        if self._table is None:
            msg = f"{self._place} is used before it was claimed"
            raise AssertionError(msg)
        return self._table

    def claim(
        self,
        ids: TopicIds,
        spans: Mapping[int, range],
        *,
        find_former: Callable[[], Mapping[int, int]] = dict,
        accept_loss: bool = False,
        from_beginning: bool = False,
    ) -> None:
        """Become the writer of this table, which is made where it is missing; any other writer's commits fail from now.

        Parameters
        ----------
        ids : TopicIds
            Of the topic, as it is now.
        spans : Mapping of int to range
            Offsets that each partition of the topic has.
        find_former : callable
            Gives the places of a release that kept them elsewhere; asked where the table has none of its own.
        accept_loss : bool
            Go on where the table was filled from another topic of that name.
        from_beginning : bool
            Forget the places: read all that the topic has. No row is added twice.

        Raises
        ------
        DataLossError
            The table was filled from another topic.
        TableError
            It cannot be made, read or written.
        """
        self._ids = ids
        for attempt in range(1, _CLAIM_ATTEMPTS + 1):
            try:
                self._claim(spans, find_former, accept_loss=accept_loss, from_beginning=from_beginning)
            except TableMovedError:
                if attempt == _CLAIM_ATTEMPTS:
                    raise
            else:
                return

    def _claim(
        self,
        spans: Mapping[int, range],
        find_former: Callable[[], Mapping[int, int]],
        *,
        accept_loss: bool,
        from_beginning: bool,
    ) -> None:
        former: Mapping[int, int] = {}
        own = {TOPIC_PROPERTY: describe_topic(self._ids, self.topic)}
        table = open_table(self._place)
        if table is None:
            # With its topic from the first commit on: without, it would pass for one of the former release at the next
            # start, if this one were killed now, and the places of that release for those of the new, empty table.
            table = create_table(self._place, self._definition, self._properties | own)
        elif (noted := recorded_topic(table)) is None:
            former = find_former()
        elif self._ids.differ_from(noted) and not accept_loss:
            raise DataLossError(_describe_other_topic(self._place, noted, self.topic))
        self._add_columns(table)
        self._check_columns(table)
        properties = own | {WRITER_PROPERTY: self._writer}
        given = table.metadata().configuration
        properties |= {name: value for name, value in self._properties.items() if name not in given}
        with failing_as(f"the table {self._place} cannot be written"):
            table.alter.set_table_properties(properties, raise_if_not_exists=False)
        self._table = table
        self._read_places(spans)
        if from_beginning:
            self._begin_anew(spans)
        elif former and not self.places:
            log.info("table %s goes on where its Spark query stood", self.name)
            self._commit([], former)

    def _add_columns(self, table: DeltaTable) -> None:
        """Add columns that are new, in a commit of their own; rows that are there have null in them."""
        there = {field.name for field in table.schema().fields}
        wanted = DeltaSchema.from_arrow(arrow_schema(self._definition)).fields
        new: list[Field] = [field for field in wanted if field.name not in there]
        if new:
            with failing_as(f"the table {self._place} cannot be brought up to date"):
                table.alter.add_columns(new)
            log.info("table %s: added %s", self.name, ", ".join(field.name for field in new))

    def _check_columns(self, table: DeltaTable) -> None:
        """Refuse a table whose columns somebody has changed; columns that somebody has added do no harm.

        Delta would convert the values, and its error would show one that it cannot convert.
        """
        there = {field.name: field.type for field in table.schema().fields}
        wanted = {field.name: field.type for field in DeltaSchema.from_arrow(arrow_schema(self._definition)).fields}
        wrong = [
            f"{name} is {_tell_kind(there.get(name))}, wanted {_tell_kind(kind)}"
            for name, kind in wanted.items()
            if there.get(name) != kind
        ]
        if wrong:
            msg = f"the table {self._place} has other columns than its rows: {'; '.join(wrong)}"
            raise TableError(msg)

    def reopen(self, spans: Mapping[int, range]) -> None:
        """Open the table's newest version, after something failed or somebody else wrote to it.

        Raises
        ------
        TableClaimedError
            Another writer fills it now.
        TableError
            It cannot be read, or is gone.
        """
        table = open_claimed(self._place, self._writer)
        self._check_columns(table)
        self._table = table
        self._read_places(spans)

    def _read_places(self, spans: Mapping[int, range]) -> None:
        self.places = read_places(self.opened, self._ids, self.topic, spans)
        if self.places and self._was_restored():
            log.warning("table %s was restored to an older version: its topic is read from the beginning", self.name)
            self._begin_anew(spans)

    def _was_restored(self) -> bool:
        """Tell whether RESTORE took rows away since the last append: it leaves the places where they were."""
        with failing_as(f"the table {self._place} cannot be read"):
            for commit in self.opened.history(_LOOKED_BACK):
                if APPENDED_BY in commit:
                    return False
                if commit["operation"] == "RESTORE":
                    return True
        return False

    def _begin_anew(self, spans: Mapping[int, range]) -> None:
        # A commit, so that a writer that is killed now does not go on behind what was not read again.
        self._commit([], {partition: span.start for partition, span in spans.items()})

    def _commit(self, rows: Sequence[Row], places: Mapping[int, int]) -> None:
        named = {place_name(self._ids, self.topic, partition): place for partition, place in places.items()}
        append_rows(self.opened, to_arrow(rows, self._definition), named, {APPENDED_BY: self._writer})
        self.places = dict(places)

    def append(self, rows: Sequence[Row], places: Mapping[int, int]) -> int:
        """Append the rows that the table does not have, and the places behind them, in one commit.

        Parameters
        ----------
        rows : sequence of Row
            All that was read between the present places and the new ones.
        places : Mapping of int to int
            Next offset of every partition that anything was read of.

        Returns
        -------
        int
            How many rows are new.

        Raises
        ------
        TableMovedError
            Somebody else wrote to the table; nothing was written, and `reopen` is called for.
        TableError
            It cannot be read or written; what was written is to be found out with `reopen`.
        """
        self._refuse_full_disk()
        new = self._known.drop_known(self.opened, rows)
        there = self._list_files(new)
        try:
            self._commit(new, places)
        except TableMovedError:
            raise  # whoever was first may be writing the same rows just now
        except TableError:
            self._remove_leftovers(new, there)
            raise
        self._known.note_appended(self.opened, new)
        return len(new)

    def _refuse_full_disk(self) -> None:
        folder = local_folder(self._place)
        if folder is None or not self._min_free_bytes:
            return
        with failing_as(f"the table {self._place} cannot be written"):
            free = shutil.disk_usage(folder).free
        if free < self._min_free_bytes:
            msg = (
                f"the table {self._place} is not written: its disk has {free // 10**6} MB left, wanted at least "
                f"{self._min_free_bytes // 10**6}. SCORE's checkpoint may be there too. Make room, or lower "
                "XRAY_ARCHIVE__MIN_FREE_BYTES."
            )
            raise TableError(msg)

    def _list_files(self, rows: Sequence[Row]) -> set[Path]:
        folder = local_folder(self._place)
        # An object store has room, and may carry out later what it has not answered.
        return set() if folder is None else list_files(folder, {row.values["date"] for row in rows})

    def _remove_leftovers(self, rows: Sequence[Row], there: set[Path]) -> None:
        try:
            new = self._list_files(rows) - there
            removed = remove_leftovers(new, open_claimed(self._place, self._writer), [row.event_id for row in rows])
            log.info("removed %s files of an append to %s that failed", removed, self._place)
        except (TableError, OSError) as exc:
            log.info("files of an append that failed stay for the next clean-up: %s", exc)


def _tell_kind(kind: DataType | None) -> str:
    return "missing" if kind is None else kind.to_json().strip('"')


def open_claimed(place: str, writer: str) -> DeltaTable:
    """Open the newest version of a table that a writer has claimed.

    Parameters
    ----------
    place : str
        Path or URI of the table.
    writer : str
        The name that it must still bear.

    Raises
    ------
    TableClaimedError
        It bears another one: RESTORE, or an old copy, brings back a former one's.
    TableError
        It cannot be read, or is gone.
    """
    table = open_table(place)
    if table is None:
        msg = f"the table {place} was removed meanwhile"
        raise TableError(msg)
    other = table.metadata().configuration.get(WRITER_PROPERTY)
    if other != writer:
        what = (
            "is being compacted by hand" if str(other).startswith(COMPACTION) else "is filled by another archive since"
        )
        put_back = "or was put back to a version from before this one began"
        msg = f"the table {place} {what} ({other}), {put_back}; this one ends"
        raise TableClaimedError(msg)
    return table


def _describe_other_topic(place: str, noted: TopicIds, topic: str) -> str:
    other = next(iter(noted.topics))
    what = (
        f"the topic {other}"
        if other != topic
        else "another topic of that name (deleted and created again, or of another Kafka cluster)"
    )
    return (
        f"{topic}: the table {place} is filled from {what}. If this is the wrong Kafka or the wrong topic, correct "
        "XRAY_KAFKA__BOOTSTRAP_SERVERS or XRAY_KAFKA__..._TOPIC. Otherwise start once with 'xray archive "
        "--accept-loss' (or 'xray stream --accept-loss'): it reads the present topic from its beginning."
    )
