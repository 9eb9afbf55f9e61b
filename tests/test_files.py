"""What is no regular file is refused before it is opened."""
import errno
import os

import pytest

from nbcnn.files import require_file


def test_a_regular_file_also_behind_a_link(tmp_path):
    (tmp_path / "a").touch()
    os.symlink("a", tmp_path / "b")
    require_file(tmp_path / "a")
    require_file(str(tmp_path / "b"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with names")
def test_pipes_devices_and_folders_also_behind_links(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name, target, number, text in (("a", "pipe", errno.EINVAL, "not a regular file"), ("b", "/dev/zero", errno.EINVAL, "not a"),
                                       ("c", ".", errno.EISDIR, ""), ("d", "nowhere", errno.ENOENT, "")):
        os.symlink(target, tmp_path / name)
        with pytest.raises(OSError, match=text) as caught:
            require_file(tmp_path / name)
        assert caught.value.errno == number and caught.value.filename in (tmp_path / name, str(tmp_path / name))
