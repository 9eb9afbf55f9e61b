"""What completes the docstrings of the public functions: help() shows all there is to say, the source says each thing once."""
import inspect
import re

EVERY = """
Raises
------
TypeError
    An argument has another type or dtype than given above.
ValueError
    An argument has another shape than given above, or a value out of range. The message names it and says what was expected.

Notes
-----
Arrays are all NumPy's or all a GPU's; the result lives where they do. Float arrays are all float32 or all float64.
"""
TITLES = "Parameters", "Returns", "Raises", "Notes", "Examples"


def documented(*others):
    """Complete the docstring of a function with what it does not say itself.

    The docstrings of `others`, functions too, give the parameters that both have, exceptions that it does not mention, and Returns
    where it has none; EVERY gives what is true of all. Parameters stand in the order of the signature, a doctest under Examples.
    """
    def complete(function):
        if function.__doc__ is None:        # python -OO takes it away
            return function
        text, own = _sections(function.__doc__)
        arguments = list(inspect.signature(function).parameters)
        for docstring in (*(other.__doc__ for other in others), EVERY):
            _, shared = _sections(docstring)
            missing = set(arguments).difference(*own["Parameters"])
            own["Parameters"] |= {names: entry for names, entry in shared["Parameters"].items() if missing.issuperset(names)}
            own["Returns"] = own["Returns"] or shared["Returns"]
            own["Raises"] = shared["Raises"] | own["Raises"]
            own["Notes"] = own["Notes"] or shared["Notes"]
        own["Parameters"] = dict(sorted(own["Parameters"].items(), key=lambda item: arguments.index(item[0][0])))
        parts = ["\n".join([title, "-" * len(title), *entries.values()]) for title, entries in own.items() if entries]
        function.__doc__ = "\n\n".join([text, *parts])
        return function
    return complete


def _sections(docstring):
    r"""The text before the sections of a docstring; and for each of TITLES its entries, by the names that they are about.

    >>> _sections("Twice x.\n\nParameters\n----------\nx, out : array\n    Of any shape.\n")[1]["Parameters"]
    {('x', 'out'): 'x, out : array\n    Of any shape.'}
    """
    docstring = inspect.cleandoc(docstring)
    if "\nExamples\n" not in docstring:
        docstring = docstring.replace("\n\n>>>", "\n\nExamples\n--------\n>>>", 1)
    text, *parts = re.split(r"^(\w+)\n-+\n", docstring, flags=re.MULTILINE)
    sections = {title: {} for title in TITLES}
    for title, body in zip(parts[::2], parts[1::2], strict=True):
        entries = [body.rstrip()] if title in ("Notes", "Examples") else re.split(r"\n(?=\S)", body.rstrip())
        sections[title] = {tuple(entry.partition("\n")[0].partition(" : ")[0].split(", ")): entry for entry in entries}
    return text.rstrip(), sections
