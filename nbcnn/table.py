"""Plain text: lines that are safe to print, and tables."""
import re

# Control characters, also those of C1; separators of lines and paragraphs; marks that turn the direction of writing; halves of
# surrogate pairs. U+DCA0 to U+DCFF stay: they stand for bytes of a file's name that are no text.
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udc9f\udd00-\udfff]")


def printable(text):
    """The text as one line that is safe to print: names from files may hold characters that a terminal obeys; these are escaped."""
    return UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text)


def format_table(header, rows):
    """A table: columns separated by two spaces, numbers to the right, a rule under the header. Cells are made `printable`."""
    rows = [list(map(printable, row)) for row in (header, *rows)]
    widths = [max(len(row[k]) for row in rows) for k in range(len(header))]
    right = [all(row[k][:1] in "0123456789?.-" for row in rows[1:] if row[k]) for k in range(len(header))]
    pads = [str.rjust if number else str.ljust for number in right]
    lines = ["  ".join(pad(cell, width) for pad, cell, width in zip(pads, row, widths, strict=True)) for row in rows]
    return "\n".join([lines[0].rstrip(), "-" * max(map(len, lines)), *(line.rstrip() for line in lines[1:])])
