"""Values of any kind in a message: one short line, whatever their repr gives or raises."""
import reprlib

SHORT = reprlib.Repr()
SHORT.maxlist = SHORT.maxtuple = SHORT.maxset = SHORT.maxdict = 8
SHORT.maxstring = SHORT.maxother = 80


def shown(value):
    """The repr of a value."""
    try:
        return one_line(SHORT.repr(value))
    except Exception:       # of a number with too many digits, or of somebody else's class
        return one_line(f"<{type(value).__name__}>")


def one_line(text, most=100):
    """A text without what would break or disturb a line, its middle left out where it is long."""
    text = " ".join(text.split())
    text = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
    return text if len(text) <= most else f"{text[:most // 2]}...{text[3 - most // 2:]}"
