"""Plain text tables."""


def format_table(header, rows):
    """Columns separated by two spaces, numbers to the right, a rule under the header."""
    rows = [header, *rows]
    widths = [max(len(row[k]) for row in rows) for k in range(len(header))]
    right = [all(row[k][:1] in "0123456789?." for row in rows[1:] if row[k]) for k in range(len(header))]
    lines = ["  ".join(cell.rjust(width) if r else cell.ljust(width) for cell, width, r in zip(row, widths, right, strict=True)).rstrip()
             for row in rows]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])
