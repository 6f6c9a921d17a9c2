"""What became of an image: the tables first, then the topics that the tables do not have yet, then the ledgers."""

from collections.abc import Callable, Collection
from datetime import datetime
from typing import TypeVar

from schemas.errors import JobError
from streaming.gateway.receipts.receipt import Receipt
from streaming.kafka.cluster import describe_cluster
from streaming.lookup.history import Confirmed, History, Looked, Reach
from streaming.lookup.ledgers import search_alarms, search_page_findings, search_receipt_store, search_reports
from streaming.lookup.query import Image, Query
from streaming.lookup.rows import Days
from streaming.lookup.tables import search_labels, search_tables
from streaming.lookup.topics import search_findings, search_images, search_outcomes, search_receipts
from streaming.reports.report import name_image
from streaming.settings import StreamSettings

T = TypeVar("T")

_NO_TOPIC = "there is no such topic, or this user may not see it"


def find_image(
    settings: StreamSettings,
    query: Query,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    with_images: bool = False,
) -> History:
    """Find what became of the images that are asked for.

    Nothing is changed, and no program has to run: what cannot be asked now is among ``looked``, with the reason.

    Parameters
    ----------
    settings : StreamSettings
        Tables, broker and state folder.
    query : Query
        What is asked.
    since, until : datetime, optional
        Only images that Kafka took in this time, with a time zone: days of the tables, and the beginning of topics.
    with_images : bool
        Read the images topic too.

    Returns
    -------
    History
        Without outcomes and all else where nothing is known of such an image.
    """
    search = _Search(settings, query, since, until)
    search.look_into_tables()
    search.look_into_topics(with_images=with_images)
    search.look_at_what_followed()
    return search.history


class _Search:
    """One search; each step may learn names of the images, by which the next one finds more."""

    def __init__(self, settings: StreamSettings, query: Query, since: datetime | None, until: datetime | None) -> None:
        self._settings = settings
        self._kafka = settings.kafka
        self._since = since
        self._days = Days(None if since is None else since.date(), None if until is None else until.date())
        self._topics: Collection[str] = ()
        self.history = History(query)

    def look_into_tables(self) -> None:
        """Look into the receipts that are here, which know images by ids that no table has; then into the tables."""
        history = self.history
        history.receipts, self._receipts_looked = search_receipt_store(self._settings, history.query, ())
        self._meet(history.receipts)
        finds = search_tables(self._settings.tables_folder, history.query, self._days)
        history.query, history.rows, self._tables_looked = finds.query, finds.rows, finds.looked
        history.add_outcomes(finds.outcomes)
        history.query = history.query.follow(history.outcomes)

    def look_into_topics(self, *, with_images: bool) -> None:
        """Look into the topics; what they name is looked for in the tables once more."""
        history, known = self.history, self.history.query
        looked: list[Looked] = []
        try:
            self._topics = describe_cluster(self._kafka).topics
        except JobError as exc:  # told once, for all topics
            looked.append(Looked("all topics", limits=f"not looked through: {exc}", reach=Reach.FAILED))
        else:
            self._look_into_receipts(looked)
            self._look_into_outcomes(looked)
            self._look_into_images(looked, with_images=with_images)
        if history.query != known:
            finds = search_tables(self._settings.tables_folder, history.query, self._days)
            history.rows, self._tables_looked = finds.rows, finds.looked
            history.add_outcomes(finds.outcomes)
        if not history.receipts and history.outcomes:
            store = search_receipt_store(self._settings, history.query, history.outcomes)
            history.receipts, self._receipts_looked = store
        history.looked += [*self._tables_looked, *looked, self._receipts_looked]

    def look_at_what_followed(self) -> None:
        """Look at what people and programs did about the outcomes."""
        history, settings = self.history, self._settings
        digests = history.query.digests | {one.sha256 for one in history.receipts}
        digests |= {one.sha256 for one in history.outcomes if one.sha256}
        event_ids = history.query.to_json_ids(history.outcomes)
        labels, rows, label_table = search_labels(settings.tables_folder, digests)
        page, page_looked = search_page_findings(settings, event_ids)
        history.rows += rows
        history.looked += [label_table, page_looked]
        events = self._look_into_labels(digests)
        history.confirmed = sorted(labels + page + events, key=lambda one: one.confirmed_at)
        history.reports, reports_looked = search_reports(settings, event_ids)
        history.alarms, alarms_looked = search_alarms(settings, event_ids)
        history.looked += [*reports_looked, alarms_looked]

    def _look_into_receipts(self, looked: list[Looked]) -> None:
        history, topic = self.history, self._kafka.receipts_topic
        if history.receipts:
            return  # the gateway's own file has what it has read from there
        if topic not in self._topics:
            looked.append(Looked(f"topic {topic}", limits=f"{_NO_TOPIC}: no gateway publishes receipts"))
            return
        history.receipts, found = _ask(topic, lambda: search_receipts(self._kafka, history.query))
        looked.append(found)
        self._meet(history.receipts)

    def _look_into_outcomes(self, looked: list[Looked]) -> None:
        history, folder = self.history, self._settings.tables_folder
        try:
            found, told = search_outcomes(self._kafka, folder, history.query, self._since)
            followed = history.query.follow(found)
            if followed != history.query:  # another outcome of the same image may lie before the one that named it
                found, told = search_outcomes(self._kafka, folder, followed, self._since)
        except JobError as exc:
            where = f"topics {self._kafka.predictions_topic} and {self._kafka.deadletters_topic}"
            looked.append(Looked(where, limits=f"not looked through: {exc}", reach=Reach.FAILED))
            return
        history.query = followed
        history.add_outcomes(found)
        looked += told

    def _look_into_images(self, looked: list[Looked], *, with_images: bool) -> None:
        history, topic = self.history, self._kafka.images_topic
        if not with_images:
            limits = "an image may wait there without an outcome. --images reads all of it, which may take long"
            looked.append(Looked(f"topic {topic}", limits=limits, reach=Reach.LEFT_OUT))
            return
        history.images, found = _ask(topic, lambda: search_images(self._kafka, history.query, self._since))
        looked.append(found)

    def _look_into_labels(self, digests: frozenset[str]) -> list[Confirmed]:
        topic = self._kafka.labels_topic
        if not self._topics:
            return []
        if topic not in self._topics:
            limits = f"{_NO_TOPIC}: nobody confirms findings as events"
            self.history.looked.append(Looked(f"topic {topic}", limits=limits))
            return []
        names = name_images(self.history, digests)
        found, looked = _ask(topic, lambda: search_findings(self._kafka, names))
        self.history.looked.append(looked)
        return found

    def _meet(self, receipts: list[Receipt]) -> None:
        """Mean the images of receipts that were found by an event id."""
        for one in receipts:
            if not self.history.query.takes_image(one.source, one.image_id, one.sha256):
                self.history.query = self.history.query.meet(Image(one.source, one.image_id, one.sha256))


def name_images(history: History, digests: frozenset[str]) -> frozenset[str]:
    """Give every name by which a confirmed finding may mean one of the images.

    Parameters
    ----------
    history : History
        What is known.
    digests : frozenset of str
        SHA-256 of the images' bytes.
    """
    names = {name_image("sha256", one) for one in digests}
    names |= {name_image("event_id", one) for one in history.query.hex_ids}
    for one in history.outcomes:
        names.add(name_image("event_id", one.event_id))
        if one.source and one.image_id:
            names.add(name_image("source and id", one.source, one.image_id))
    return frozenset(names)


def _ask(topic: str, search: Callable[[], tuple[list[T], Looked]]) -> tuple[list[T], Looked]:
    """Search a topic; of one that cannot be read it is told, and the others are searched."""
    try:
        return search()
    except JobError as exc:
        return [], Looked(f"topic {topic}", limits=f"not looked through: {exc}", reach=Reach.FAILED)
