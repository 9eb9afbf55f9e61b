"""Files from the network: taken up where they broke off, verified, unpacked safely, named only when all are there."""
import gzip
import hashlib
import http.client
import os
import shutil
import tarfile
import urllib.error
import urllib.request
import zlib

from nbcnn import files
from nbcnn.files import naming
from nbcnn.kernels.shown import one_line

TIMEOUT = 30            # seconds without a byte
TRIES = 5               # connections to one place, as long as each brings something
CHUNK = 1 << 16         # bytes


class Broken(Exception):
    """A place does not deliver; the text says why."""


def bring(wanted, folder, members, places):
    """Make a folder that holds downloaded files, or the members of a downloaded archive: all of them, or no such folder.

    Parameters
    ----------
    wanted : sequence of nbcnn.datasets.sources.File
    folder : Path
        It must not be there yet. Until all is complete, what came so far is in `.NAME.part` beside it, also for later calls.
    members : dict or None
        What to take out of the one archive: the names in a folder of the same name, and how many bytes each has at most.
    places : sequence of str
        Addresses of folders that have the files, or of a single wanted one; the first that delivers wins.

    Raises
    ------
    ConnectionError
        When no place delivers a file; the message says for each why.
    ValueError
        When another process is at work on the same, or the archive holds anything but the members as regular files.
    OSError
        When a file cannot be written.
    """
    work = folder.with_name(f".{folder.name}.part")
    whole = work / "whole"
    files.make_folder(work)
    try:
        lock = files.Lock(work)
    except BlockingIOError:
        raise ValueError(f"{folder}: another process is downloading it; wait for its end") from None
    try:
        for file in wanted:
            _fetch(file, work / file.name, places)
        if whole.exists():      # of a process that was killed
            shutil.rmtree(whole)
        whole.mkdir()
        if members:
            unpack(work / wanted[0].name, folder.name, members, whole)
        else:
            for file in wanted:
                os.replace(work / file.name, whole / file.name)
        files.sync_folder(whole)
        with naming(folder):
            os.rename(whole, folder)
        files.sync_folder(folder.parent)
        shutil.rmtree(work, ignore_errors=True)
    finally:
        lock.release()


def _fetch(file, path, places):
    """Have a file, whole and verified."""
    from tqdm.auto import tqdm
    path.touch()
    reasons = []
    for place in places:
        address = place if place.endswith(f"/{file.name}") else f"{place.rstrip('/')}/{file.name}"
        for _ in range(TRIES):
            before = path.stat().st_size
            with tqdm(desc=file.name, total=file.size, initial=before, unit="B", unit_scale=True, leave=False, disable=None) as bar:
                try:
                    if before < file.size:
                        _download(address, path, before, file.size, bar)
                    _verify(path, file.md5)
                    return
                except Broken as error:
                    reasons.append(f"{address}: {error}")
            after = path.stat().st_size
            if not (before < after or (before and not after)):     # what was kept and turned out wrong is asked for anew
                break
    raise ConnectionError(f"{file.name} cannot be had: {'; '.join(dict.fromkeys(reasons))}. The same again goes on with what came "
                          "so far; --url (url) names another place")


def _download(address, path, start, size, bar):
    """Add to a file what it lacks from byte `start` on."""
    with naming(path), open(path, "r+b") as out:
        for position, data in _receive(address, start, size):
            out.seek(position)      # a server may begin again
            out.write(data)
            bar.update(position + len(data) - bar.n)
        out.flush()
        os.fsync(out.fileno())


def _receive(address, start, size):
    """(position, bytes) for the rest of a file from `start` on, or for all of it where the server knows no ranges; or Broken."""
    headers = {"User-Agent": "nbcnn", **({"Range": f"bytes={start}-"} if start else {})}
    position = 0
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=TIMEOUT) as response:
            if response.status == 206:
                position, header, expected = start, "Content-Range", f"bytes {start}-{size - 1}/{size}"
            else:
                header, expected = "Content-Length", str(size)
            if (got := response.headers.get(header, expected)) != expected:
                raise Broken(f"expected {header} {expected}, got {one_line(got, 100)}")
            while position < size and (data := response.read1(min(CHUNK, size - position))):
                yield position, data
                position += len(data)
    except urllib.error.HTTPError as error:
        error.close()
        raise Broken(f"HTTP {error.code} {one_line(error.reason, 100)}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:      # the last one for an address that is none
        raise Broken(one_line(str(getattr(error, "reason", error)), 200) or type(error).__name__) from None
    if position < size:
        raise Broken(f"ended after {position:,} of {size:,} bytes")


def _verify(path, md5):
    """Empty a file, and raise Broken, unless it has this checksum."""
    found = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as content:
        while data := content.read(1 << 20):
            found.update(data)
    if found.hexdigest() != md5:
        os.truncate(path, 0)
        raise Broken(f"expected the MD5 {md5}, got {found.hexdigest()}")


def unpack(archive, folder, members, target):
    """Write the members of an archive that are in a folder there to the folder `target`; see `bring`.

    Nothing else in it is written, so there are no paths to be followed. What is read is bounded by what the members may take.
    """
    most = sum(members.values()) + (1 << 20)
    try:
        with gzip.open(archive) as content, tarfile.open(fileobj=_Bounded(content, most), mode="r|") as tar:
            for member in tar:
                home, _, name = member.name.rpartition("/")
                if home != folder or name not in members:
                    continue
                if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.size > members[name]:
                    raise ValueError(f"{member.name}: expected a regular file of at most {members[name]:,} bytes")
                with open(target / name, "xb") as out:
                    shutil.copyfileobj(tar.extractfile(member), out)
                    out.flush()
                    os.fsync(out.fileno())
        if missing := [name for name in members if not (target / name).exists()]:
            raise ValueError(f"it lacks {', '.join(missing)}")
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error, FileExistsError, ValueError) as error:
        raise ValueError(f"{archive}: not the archive it should be: {error}") from None


class _Bounded:
    """A file that may be read up to a number of bytes: a few can be unpacked to any number."""

    def __init__(self, file, left):
        self.file, self.left = file, left

    def read(self, size):
        data = self.file.read(size)
        self.left -= len(data)
        if self.left < 0:
            raise ValueError("it has more in it than what is wanted")
        return data
