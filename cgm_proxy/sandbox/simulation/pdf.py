"""A writer of one-page PDFs (ISO 32000-1): a title, lines of text and one bar with coloured parts."""

from collections.abc import Iterable, Sequence
from decimal import Decimal

#: A4, its margin and the distance of lines, in points.
WIDTH, HEIGHT, MARGIN, LINE = 595, 842, 60, 18

#: Colours of the ranges from very low to very high, red, green, blue in 0-1 (as in the ambulatory glucose profile).
COLOURS = ("0.55 0 0", "0.9 0.3 0.2", "0.3 0.7 0.35", "0.98 0.8 0.25", "0.95 0.55 0.15")


def one_page(title: str, lines: Sequence[str], shares: Sequence[Decimal]) -> bytes:
    """Return a PDF with a title, lines of Latin-1 text, and a bar that is divided into `shares` (percentages)."""
    text = [_text(20, HEIGHT - MARGIN, title)]
    text += [_text(11, HEIGHT - MARGIN - 40 - LINE * number, line) for number, line in enumerate(lines)]
    bar = _bar(HEIGHT - MARGIN - 40 - LINE * (len(lines) + 2), shares)
    content = "\n".join([*text, *bar]).encode("latin-1", "replace")
    return _file(
        [
            b"<< /Type /Catalog /Pages 2 0 R >>",
            b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 %d %d] /Contents 4 0 R"
            b" /Resources << /Font << /F1 5 0 R >> >> >>" % (WIDTH, HEIGHT),
            b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content),
            b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
        ]
    )


def _text(size: int, height: int, text: str) -> str:
    escaped = text.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)")
    return f"BT /F1 {size} Tf {MARGIN} {height} Td ({escaped}) Tj ET"


def _bar(height: int, shares: Sequence[Decimal]) -> list[str]:
    left, commands = Decimal(MARGIN), []
    for colour, share in zip(COLOURS, shares, strict=True):
        width = share * (WIDTH - 2 * MARGIN) / 100
        commands.append(f"{colour} rg {left:.2f} {height} {width:.2f} 24 re f")
        left += width
    return commands


def _file(objects: Iterable[bytes]) -> bytes:
    # Each row of the cross-reference table has 20 bytes (ISO 32000-1, 7.5.4).
    body, offsets = b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n", []
    for number, content in enumerate(objects, start=1):
        offsets.append(len(body))
        body += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    rows = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    table = b"xref\n0 %d\n0000000000 65535 f \n%s" % (len(offsets) + 1, rows)
    trailer = b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(offsets) + 1, len(body))
    return body + table + trailer
