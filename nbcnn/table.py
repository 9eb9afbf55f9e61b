"""Plain text tables."""


def format_table(header, rows):
    """Columns separated by two spaces, numbers to the right, a rule under the header."""
    rows = [header, *rows]
    widths = [max(len(row[k]) for row in rows) for k in range(len(header))]
    right = [all(row[k][:1] in "0123456789?.-" for row in rows[1:] if row[k]) for k in range(len(header))]
    pads = [str.rjust if number else str.ljust for number in right]
    lines = ["  ".join(pad(cell, width) for pad, cell, width in zip(pads, row, widths, strict=True)) for row in rows]
    return "\n".join([lines[0].rstrip(), "-" * max(map(len, lines)), *(line.rstrip() for line in lines[1:])])
