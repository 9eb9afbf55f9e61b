"""Reads the pickles of CIFAR-10's and CIFAR-100's python versions: numbers, strings, lists, dicts and arrays.

A pickle is a program for a small machine with a stack. This is such a machine. It can do what is in `OPERATIONS` and nothing else:
it imports and calls nothing that a file names, and needs no more memory than a few times the file's size.
"""
import codecs
import io
import os

from nbcnn.files import require_file
from nbcnn.kernels.shown import shown

LARGEST = 5 * 10_000 * 3072     # bytes of a file with 10,000 images: the oldest protocol writes up to four for a byte of an image
MOST = 200_000                  # operations for them: the longest files take sixteen for an image's labels and name
DEPTH = 20                      # of values in values
DIGITS = 20                     # of a number: one of 64 bits has up to 20


class Pickled:
    """What a pickle gets when it asks for an array or a type of NumPy: an object that keeps what it is given and does nothing."""

    def __init__(self, *arguments):
        self.arguments, self.state = arguments, None


def _array(data, dtype, shape, order):
    """An array as the newest protocol describes it, kept as the older ones describe it."""
    array = Pickled()
    array.state = (1, shape, dtype, order == "F", data)
    return array


def _encode(text, _):
    """Bytes as Python 3 writes them for Python 2: always in this encoding, so a file may not choose another."""
    return text.encode("latin-1")


KNOWN = {       # the names that a pickle may ask for
    **{f"numpy{core}.multiarray._reconstruct": Pickled for core in (".core", "._core")},
    **{f"numpy{core}.numeric._frombuffer": _array for core in (".core", "._core")},
    "numpy.ndarray": Pickled, "numpy.dtype": Pickled, "_codecs.encode": _encode,
}


def unpickle(path, batches=1):
    """The content of a file of a python version: keys of dicts are str, arrays and types of NumPy are `Pickled`.

    The file has at most so many times 10,000 images. Where it is no such pickle, a ValueError names the file and the byte.
    """
    require_file(path)
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > LARGEST * batches:
            raise ValueError(f"{path}: expected at most {LARGEST * batches} bytes, got {size}")
        machine = _Machine(file.read(size))
    try:
        return machine.run(MOST * batches)
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        reason = error if isinstance(error, ValueError) else "what it says to do does not fit what is before"
        raise ValueError(f"{path}: byte {machine.stream.tell()}: no pickle of CIFAR: {reason}") from None


class _Machine:
    """The file's content and the stack.

    The memo gives back only values that hold no other values. So no value is in two places, or inside itself: all values are trees.
    """

    def __init__(self, content):
        self.stream, self.stack, self.marks, self.memo = io.BytesIO(content), [], [], {}
        self.left = len(content)        # bytes that may still be copied from one value into another
        self.read, self.push = self.stream.read, self.stack.append

    def run(self, most):
        """Do one operation after another, and return what the last one leaves."""
        read, operations = self.read, OPERATIONS
        for _ in range(most):
            code = read(1)
            if code == b".":
                return self.stack.pop()
            if code not in operations:
                raise ValueError(f"refused operation {code!r}, which no CIFAR file needs" if code else "it ends too early")
            operations[code](self)
        raise ValueError(f"expected at most {most} operations")

    # ---- what follows an operation in the file ----

    def number(self, size, signed=False):
        return int.from_bytes(self.read(size), "little", signed=signed)     # `run` notices where the file has ended

    def counted(self, size):
        """The bytes after their count, which takes `size` bytes itself."""
        count = self.number(size)
        content = self.read(count)      # it takes no memory for bytes that are not there
        if len(content) < count:
            raise ValueError(f"expected {count} more bytes, got {len(content)}")
        return content

    def text(self, size):
        return str(self.counted(size), "utf-8")

    def line(self):
        line = self.stream.readline()
        if line[-1:] != b"\n":
            raise ValueError("expected a line that ends")
        return line[:-1]

    def decimal(self):
        line = self.line().removesuffix(b"L")
        if len(line) > DIGITS:
            raise ValueError(f"expected a number of at most {DIGITS} digits, got {len(line)}")
        return int(line)

    def long(self):
        content = self.counted(1)
        if len(content) > 8:
            raise ValueError(f"expected a number of at most 8 bytes, got {len(content)}")
        return int.from_bytes(content, "little", signed=True)

    def quoted(self):
        line = self.line()
        if len(line) < 2 or line[:1] not in (b"'", b'"') or line[:1] != line[-1:]:
            raise ValueError("expected a string in quotes")
        return codecs.escape_decode(line[1:-1])[0]

    # ---- what an operation does ----

    def marked(self):
        """Take all values after the last mark off the stack."""
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def pop(self, count):
        items = [self.stack.pop() for _ in range(count)]
        return items[::-1]

    def put(self, index):
        self.memo[index] = self.stack[-1]

    def get(self, index):
        value = self.memo[index]
        if type(value) in INSIDE:
            raise ValueError(f"refused to use a {type(value).__name__} twice, which no CIFAR file needs")
        self.push(value)

    def new_tuple(self, items):
        _require_shallow(items)
        self.push(tuple(items))

    def new_list(self, items):
        self.push([])
        self.append(items)

    def new_dict(self, items):
        self.push({})
        self.update(items)

    def append(self, items):
        _require_shallow(items)
        self.top(list).extend(items)

    def update(self, items):
        keys, values = items[::2], items[1::2]
        _require_shallow(values)
        if not {type(key) for key in keys} <= {str, bytes} or len(keys) != len(values):
            raise ValueError("expected a string before each value of a dict")
        self.spend(sum(map(len, keys)))
        self.top(dict).update(zip([key if isinstance(key, str) else str(key, "latin-1") for key in keys], values, strict=True))

    def top(self, kind):
        value = self.stack[-1]
        if type(value) is not kind:
            raise ValueError(f"expected a {kind.__name__} below, got a {type(value).__name__}")
        return value

    def name(self, module, name):
        full = ".".join([module, name])
        if full not in KNOWN:
            raise ValueError(f"refused to load {shown(full)}, which no CIFAR file needs")
        self.push(KNOWN[full])

    def call(self, function, arguments):
        if type(arguments) is not tuple:
            raise ValueError(f"refused a call with a {type(arguments).__name__}, which no CIFAR file needs")
        self.spend(sum(len(value) for value in arguments if isinstance(value, str)))
        self.push(function(*arguments))     # it is one of KNOWN: nothing else on the stack can be called

    def spend(self, count):
        """Count what is copied: a file could ask for any number of copies."""
        self.left -= count
        if self.left < 0:
            raise ValueError("refused to copy more than the file holds")

    def build(self, state):
        _require_shallow([state])
        self.top(Pickled).state = state


def _require_shallow(items, deeper=DEPTH):
    """Raise ValueError when values are nested too deeply. All values on the stack were checked by this."""
    if not deeper:
        raise ValueError(f"expected values nested at most {DEPTH} deep")
    for item in items:
        if type(item) in INSIDE:
            _require_shallow(INSIDE[type(item)](item), deeper - 1)


INSIDE = {list: list, tuple: tuple, dict: dict.values, Pickled: lambda pickled: (pickled.arguments, pickled.state)}
OPERATIONS = {      # as the module pickletools documents them: those that these files need, in any protocol
    # numbers
    b"N": lambda m: m.push(None), b"\x88": lambda m: m.push(True), b"\x89": lambda m: m.push(False),
    b"I": lambda m: m.push(m.decimal()), b"L": lambda m: m.push(m.decimal()),
    b"K": lambda m: m.push(m.number(1)), b"M": lambda m: m.push(m.number(2)), b"J": lambda m: m.push(m.number(4, signed=True)),
    b"\x8a": lambda m: m.push(m.long()),
    # strings of bytes and of text
    b"S": lambda m: m.push(m.quoted()),
    b"U": lambda m: m.push(m.counted(1)), b"T": lambda m: m.push(m.counted(4)),
    b"C": lambda m: m.push(m.counted(1)), b"B": lambda m: m.push(m.counted(4)), b"\x8e": lambda m: m.push(m.counted(8)),
    b"\x96": lambda m: m.push(m.counted(8)),
    b"V": lambda m: m.push(str(m.line(), "raw-unicode-escape")),
    b"\x8c": lambda m: m.push(m.text(1)), b"X": lambda m: m.push(m.text(4)), b"\x8d": lambda m: m.push(m.text(8)),
    # tuples, lists, dicts
    b"(": lambda m: m.marks.append(len(m.stack)),
    b")": lambda m: m.push(()), b"]": lambda m: m.push([]), b"}": lambda m: m.push({}),
    b"\x85": lambda m: m.new_tuple(m.pop(1)), b"\x86": lambda m: m.new_tuple(m.pop(2)), b"\x87": lambda m: m.new_tuple(m.pop(3)),
    b"t": lambda m: m.new_tuple(m.marked()),
    b"l": lambda m: m.new_list(m.marked()), b"d": lambda m: m.new_dict(m.marked()),
    b"a": lambda m: m.append(m.pop(1)), b"e": lambda m: m.append(m.marked()),
    b"s": lambda m: m.update(m.pop(2)), b"u": lambda m: m.update(m.marked()),
    # the memo
    b"p": lambda m: m.put(m.decimal()), b"q": lambda m: m.put(m.number(1)), b"r": lambda m: m.put(m.number(4)),
    b"\x94": lambda m: m.put(len(m.memo)),
    b"g": lambda m: m.get(m.decimal()), b"h": lambda m: m.get(m.number(1)), b"j": lambda m: m.get(m.number(4)),
    # names, calls, states
    b"c": lambda m: m.name(str(m.line(), "latin-1"), str(m.line(), "latin-1")), b"\x93": lambda m: m.name(*m.pop(2)),
    b"R": lambda m: m.call(*m.pop(2)), b"b": lambda m: m.build(*m.pop(1)),
    # protocol and frames, which are not needed
    b"\x80": lambda m: m.number(1), b"\x95": lambda m: m.number(8),
}
