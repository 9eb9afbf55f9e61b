"""Docstrings that say once what several functions share."""
import inspect
import re

TITLES = "Parameters", "Returns", "Raises", "Notes", "Examples"


def docs_from(*others):
    """Complete the docstring of a function with what it does not say itself, but those of other functions do, the first before the next.

    That is: Parameters that both functions have, Returns where it has none, and exceptions that it does not mention in Raises.
    """
    def complete(function):
        if function.__doc__:        # python -OO takes it away
            text, own = _sections(function)
            arguments = list(inspect.signature(function).parameters)
            for _, shared in map(_sections, others):
                missing = set(arguments).difference(*own["Parameters"])
                own["Parameters"] |= {names: entry for names, entry in shared["Parameters"].items() if missing.issuperset(names)}
                own["Returns"] = own["Returns"] or shared["Returns"]
                own["Raises"] = shared["Raises"] | own["Raises"]
            own["Parameters"] = dict(sorted(own["Parameters"].items(), key=lambda item: arguments.index(item[0][0])))
            function.__doc__ = text + "\n\n".join("\n".join([title, "-" * len(title), *own[title].values()])
                                                  for title in TITLES if own[title])
        return function
    return complete


def _sections(function):
    """A docstring's text before its sections, and these: for each title a dict of entries by the names that they are about.

    >>> def double(x, out=None):
    ...     '''Twice x.
    ...
    ...     Parameters
    ...     ----------
    ...     x, out : array
    ...         Of any shape.
    ...     '''
    >>> _sections(double)[1]["Parameters"]
    {('x', 'out'): 'x, out : array\\n    Of any shape.'}
    """
    text, *parts = re.split(r"^(\w+)\n-+\n", inspect.cleandoc(function.__doc__), flags=re.MULTILINE)
    sections = {title: {} for title in TITLES}
    for title, body in zip(parts[::2], parts[1::2], strict=True):
        entries = [body.rstrip()] if title in ("Notes", "Examples") else re.split(r"\n(?=\S)", body.rstrip())
        sections[title] = {tuple(entry.partition("\n")[0].partition(" : ")[0].split(", ")): entry for entry in entries}
    return text, sections
