"""CIFAR-10's python version, byte by byte: Python 2 wrote it, and Python 3 cannot, as its byte strings look different there."""
NAMES = [b"airplane", b"automobile", b"bird", b"cat", b"deer", b"dog", b"frog", b"horse", b"ship", b"truck"]
ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n"


def string(text):
    return b"U" + bytes([len(text)]) + text if len(text) < 256 else b"T" + len(text).to_bytes(4, "little") + text


def integer(number):
    return b"K" + bytes([number]) if number < 256 else b"M" + number.to_bytes(2, "little")


def listed(items):
    return b"](" + b"".join(items) + b"e"


def array(rows, columns, data, dtype=b"u1", fortran=False):
    return (ARRAY + b"cnumpy\nndarray\nK\x00\x85" + string(b"b") + b"\x87R(K\x01" + integer(rows) + integer(columns)
            + b"\x86cnumpy\ndtype\n" + string(dtype) + b"K\x00K\x01\x87R(K\x03" + string(b"|")
            + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb" + (b"\x88" if fortran else b"\x89") + string(data) + b"tb")


def mapping(**items):
    return b"\x80\x02}(" + b"".join(string(key.encode()) + value for key, value in items.items()) + b"u."


def python_batch(labels, pixels, fortran=False):
    data = (pixels.T if fortran else pixels).tobytes()
    return mapping(batch_label=string(b"training batch"), labels=listed([integer(label) for label in labels]),
                   data=array(*pixels.shape, data, fortran=fortran), filenames=listed([string(b"a.png")]))


def python_meta(names=NAMES):
    return mapping(num_cases_per_batch=integer(10_000), label_names=listed([string(name) for name in names]))
