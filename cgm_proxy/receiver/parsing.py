"""Parses a body to a FHIR document, within the limits; large bodies are parsed in a thread."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

from cgm_proxy.core.codec import bodies
from cgm_proxy.core.codec.fhir_xml import FhirXml
from cgm_proxy.core.codec.json_body import Buffer
from cgm_proxy.core.issues import RETRY_AFTER, refuse, unavailable
from cgm_proxy.core.json_values import JsonObject
from cgm_proxy.core.submission import reader
from cgm_proxy.observability.stream_stats import StreamStats
from cgm_proxy.offload import IN_THREAD_BYTES, Throttle
from cgm_proxy.settings.loading import Settings

#: Bytes of memory that each element of a document takes while it is parsed: an empty list takes 80, an object with one member 250,
#: and both have two of the characters that are counted.
ELEMENT_BYTES = 100

#: The characters that are counted, so that no document has more elements: those of JSON, and for XML `<` and the `=` of attributes.
COUNTED = (b",", b"[", b"{", b"<", b"=")

#: Bytes that are counted at a time: no other thread runs meanwhile.
STEP = 2**20

#: What parsing may need, in bodies of the largest size for each submission in flight. A reading takes eight times its text if all
#: of its elements are in memory.
ROOM_PER_BODY = 2


class BodyParser:
    """Inflates and parses the bodies of submissions, within the memory that all of them together may take."""

    def __init__(self, settings: Settings, xml: FhirXml, stats: StreamStats) -> None:
        self._limits = settings.limits
        self._xml = xml
        self._stats = stats
        self._most = settings.limits.body_bytes * settings.limits.in_flight * ROOM_PER_BODY
        #: Bytes that parsing may still take.
        self._room = self._most
        self._lock = Lock()
        self._localize = settings.bases.localize

    async def parse(self, raw: Buffer, content_encoding: str) -> JsonObject:
        """Return the document.

        Raises `RequestRefused` as `reader.read_document` does; 413 if parsing needs more memory than there may be, 503 if it
        needs more than there is now. If it is cancelled, it ends when its thread has ended, since the body is in use until then.
        """
        if len(raw) < IN_THREAD_BYTES and not content_encoding:
            return self._read(raw)
        throttle = Throttle(self._stats)
        work = asyncio.ensure_future(asyncio.to_thread(self._inflate_and_read, raw, content_encoding, throttle))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            throttle.stop()
            await asyncio.wait([work])
            if not work.cancelled():
                work.exception()  # nobody else looks at it
            raise

    def _inflate_and_read(self, raw: Buffer, content_encoding: str, throttle: Throttle) -> JsonObject:
        inflated = bodies.inflate(raw, content_encoding, self._limits.body_bytes)
        with self._room_for(inflated, throttle):
            return self._read(inflated, throttle)

    @contextmanager
    def _room_for(self, data: Buffer, throttle: Throttle) -> Iterator[None]:
        """Reserve the memory that parsing a body may take."""
        elements = 0
        for start in range(0, len(data), STEP):
            elements += sum(data.count(character, start, start + STEP) for character in COUNTED)
            throttle()
        needed = len(data) + elements * ELEMENT_BYTES
        if needed > self._most:
            text = (
                f"the body has about {elements:,} elements, more than this receiver reads at once; split the submission"
            )
            raise refuse(413, "too-many-elements", text, code="too-costly")
        with self._lock:
            if needed > self._room:
                text = f"too many large bodies are being read; send this one again in {RETRY_AFTER} seconds"
                raise unavailable("busy", text, code="throttled")
            self._room -= needed
        try:
            yield
        finally:
            with self._lock:
                self._room += needed

    def _read(self, data: Buffer, throttle: Throttle | None = None) -> JsonObject:
        return reader.read_document(data, self._xml, self._localize, self._limits.entries, throttle)
