"""Parses a body to a FHIR document, within the limits; large bodies are parsed in a thread."""

import asyncio

from cgm_proxy.core.codec import bodies
from cgm_proxy.core.codec.fhir_xml import FhirXml
from cgm_proxy.core.codec.json_body import Buffer
from cgm_proxy.core.json_values import JsonObject
from cgm_proxy.core.submission import reader
from cgm_proxy.observability.stream_stats import StreamStats
from cgm_proxy.offload import IN_THREAD_BYTES, Throttle
from cgm_proxy.settings.loading import Settings


class BodyParser:
    """Inflates and parses the bodies of submissions."""

    def __init__(self, settings: Settings, xml: FhirXml, stats: StreamStats) -> None:
        self._limits = settings.limits
        self._xml = xml
        self._stats = stats
        self._localize = settings.bases.localize

    async def parse(self, raw: Buffer, content_encoding: str) -> JsonObject:
        """Return the document; raises `RequestRefused` as `reader.read_document` does."""
        if len(raw) < IN_THREAD_BYTES and not content_encoding:
            return self._read(raw)
        return await asyncio.to_thread(self._inflate_and_read, raw, content_encoding)

    def _inflate_and_read(self, raw: Buffer, content_encoding: str) -> JsonObject:
        inflated = bodies.inflate(raw, content_encoding, self._limits.body_bytes)
        return self._read(inflated, Throttle(self._stats))

    def _read(self, data: Buffer, throttle: Throttle | None = None) -> JsonObject:
        return reader.read_document(data, self._xml, self._localize, self._limits.entries, throttle)
