"""Plain text: lines that are safe to print and fit the terminal, and tables."""
import re
import shutil
import textwrap

NARROWEST = 40      # characters of a line, however narrow the terminal is
NAME = 8            # that names in a table are shortened to before it is cut into several
NOTE = 24           # that text in a table's last column needs beside the other columns; with less it stands below them

# Control characters, also those of C1; separators of lines and paragraphs; marks that turn the direction of writing; halves of
# surrogate pairs. U+DCA0 to U+DCFF stay: they stand for bytes of a file's name that are no text.
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udc9f\udd00-\udfff]")


def printable(text):
    """The text as one line that is safe to print: names from files may hold characters that a terminal obeys; these are escaped."""
    return UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text)


def width():
    """How many characters a line may have: those of the terminal, 80 where there is none."""
    return max(shutil.get_terminal_size().columns, NARROWEST)


def fill(text, indent=0):
    """The lines of a text, all but the first indented. What holds no space, such as a path, stays whole."""
    return textwrap.wrap(text, width(), subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False)


def fit(parts):
    """The first texts of all parts, or where they do not fit into a line, with two spaces between, the second ones, and so on.

    A part's last text stands for those that it does not have.
    """
    for k in range(max(map(len, parts))):
        texts = [part[min(k, len(part) - 1)] for part in parts]
        if len("  ".join(filter(None, texts))) <= width():
            break
    return texts


def shorten(text, most):
    """The text with at most so many characters: of a longer one the beginning and, where there is room, the end."""
    if len(text) <= most or most < NAME:
        return text[:most]
    end = (most - 3) // 2
    return f"{text[:most - 3 - end]}...{text[-end:]}"


def format_table(header, rows):
    """A table: columns separated by two spaces, numbers to the right, a rule under the header. Cells are made `printable`.

    It fits the terminal. Where the last column is too long a text, it goes on in further lines, beside the others or below them;
    then names are shortened, also those above numbers; then the columns are divided among several tables that all have the first.
    """
    rows = [list(map(printable, row)) for row in (header, *rows)]
    widths = [max(len(row[k]) for row in rows) for k in range(len(header))]
    right = [all(row[k][:1] in "0123456789?.-" for row in rows[1:] if row[k]) for k in range(len(header))]
    long = _total(widths) > width() and not right[-1] and len(header) > 1
    count = len(header) - long      # of the columns that are not in `notes` below
    least = [max([len(row[k]) for row in rows[1:]] or [0]) if right[k] else min(widths[k], NAME) for k in range(count)]
    if _total(least) > width() and count > 2:
        n = next((n for n in range(count, 2, -1) if _total(least[:n]) <= width()), 2)
        parts = [row[:n] for row in rows], [row[:1] + row[n:] for row in rows]
        return "\n\n".join(format_table(part[0], part[1:]) for part in parts)
    notes, indent, beside = [[] for _ in rows], _total(widths[:count]) + 2, False
    if long:
        beside = width() - indent >= max(NOTE, *(len(word) for row in rows for word in row[-1].split(" ")))
        indent = indent if beside else 4
        notes = [textwrap.wrap(row[-1], width() - indent, break_on_hyphens=False) for row in rows]
        notes[0] = notes[0] if beside else []
    for most in range(width(), 0, -1):
        sizes = [max(smallest, min(size, most)) for smallest, size in zip(least, widths, strict=False)]
        if _total(sizes) <= width():
            break
    lines = []
    for row, note in zip(rows, notes, strict=True):
        cells = [shorten(cell, size) for cell, size in zip(row, sizes, strict=False)]
        if row is rows[0] and len(set(cells)) < len(cells):     # names that differ in their ends
            cells = [cell[-size:] for cell, size in zip(row, sizes, strict=False)]
        line = "  ".join((str.rjust if number else str.ljust)(*cell) for *cell, number in zip(cells, sizes, right, strict=False))
        note = [" " * indent + text for text in note]
        lines.append([line + note[0][len(line):], *note[1:]] if note and beside else [line.rstrip(), *note])
    rule = "-" * max(len(line) for part in lines for line in part)
    return "\n".join([*lines[0], rule, *(line for part in lines[1:] for line in part)])


def _total(widths):
    """How many characters a line has of columns of these widths."""
    return sum(widths) + 2 * (len(widths) - 1)
