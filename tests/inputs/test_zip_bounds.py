"""Archives made to cost more than they weigh, or that Python cannot read: each has one reason."""

from __future__ import annotations

import io
import struct
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from xfeat.featurize.datasets.layouts import open_dataset
from xfeat.featurize.errors import DataError, ImageError
from xfeat.featurize.sources import zip_archive
from xfeat.featurize.sources.folder import local_file
from xfeat.featurize.sources.zip_archive import ZipSource
from xfeat.featurize.system.time_limit import limited


def picture() -> bytes:
    file = io.BytesIO()
    Image.new("L", (8, 8), 100).save(file, "PNG")
    return file.getvalue()


def archive(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as written:
        for name, content in members.items():
            written.writestr(name, content)
    return path


def changed(path: Path, local: int, central: int, form: str, value: int) -> Path:
    """Write a number into the headers of all members; the places are of APPNOTE.TXT, 4.3.7 and 4.3.12."""
    content = bytearray(path.read_bytes())
    for start, place in ((b"PK\3\4", local), (b"PK\1\2", central)):
        at = -1
        while (at := content.find(start, at + 1)) >= 0:
            struct.pack_into(form, content, at + place, value)
    path.write_bytes(content)
    return path


def encrypted(path: Path) -> Path:
    return changed(archive(path, {"a/1.png": picture()}), 6, 8, "<H", 1)


def method(number: int) -> Callable[[Path], Path]:
    return lambda path: changed(archive(path, {"a/1.png": picture()}), 8, 10, "<H", number)


def bzip2(path: Path) -> Path:
    return archive(path, {"a/1.png": bytes(20 << 20)}, zipfile.ZIP_BZIP2)


def lzma(path: Path) -> Path:
    return archive(path, {"a/1.png": bytes(1 << 20)}, zipfile.ZIP_LZMA)


def bomb(path: Path) -> Path:
    return archive(path, {"a/1.png": bytes(80 << 20)})


def lying_size(path: Path) -> Path:
    """Return an archive that says 8 bytes of what are more."""
    return changed(archive(path, {"a/1.png": picture()}), 22, 24, "<I", 8)


def huge(path: Path) -> Path:
    return changed(archive(path, {"a/1.png": picture()}), 22, 24, "<I", 0xFFFFFFF0)


MEMBERS = [
    (encrypted, "encrypted in the archive"),
    (method(9), "compressed with Deflate64 in the archive"),
    (method(93), "compressed with Zstandard in the archive"),
    (method(99), "compressed with AES encryption in the archive"),
    (method(77), "compressed with method 77 in the archive"),
    (bzip2, "compressed with bzip2 in the archive"),
    (lzma, "compressed with LZMA in the archive"),
    (bomb, "inflates to 80 MB, 1[0-9]{3} times"),
    (lying_size, "cannot be read from the archive: Bad CRC-32"),
    (huge, "more than the limit of 512 MB"),
]


@pytest.mark.parametrize(("make", "reason"), MEMBERS, ids=[reason[-28:] for _, reason in MEMBERS])
def test_what_cannot_be_unpacked_has_a_reason(tmp_path: Path, make: Callable[[Path], Path], reason: str) -> None:
    source = ZipSource(local_file(make(tmp_path / "data.zip")))
    with pytest.raises(ImageError, match=reason):
        source.read("a/1.png")
    assert len(source.head("a/1.png", 100)) <= 100


def zip64(size: int, offset: int, number: int, place: int = 1000) -> bytes:
    """Return an archive of 1000 bytes whose end says where its list of files is, in 64 bits."""
    end = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, number, number, size, offset)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, place, 1)
    return b"x" * 1000 + end + locator + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 1 << 31, 1 << 31, 0)


def overlapping(path: Path) -> Path:
    """Return an archive whose two members are the same bytes, as in 42.zip's successors."""
    archive(path, {"a/1.png": picture(), "a/2.png": picture()})
    content = bytearray(path.read_bytes())
    second = content.rfind(b"PK\1\2")
    struct.pack_into("<I", content, second + 42, 0)
    path.write_bytes(content)
    return path


def written(content: bytes) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        path.write_bytes(content)
        return path

    return write


ARCHIVES = {
    "files that share bytes": (overlapping, "share the same bytes"),
    "a list of 2**62 bytes": (written(zip64(1 << 62, 0, 5)), "not a zip archive"),
    "a list of 2**64 bytes": (written(zip64((1 << 64) - 1, 0, 5)), "not a zip archive"),
    "a list after the end": (written(zip64(100, 1 << 62, 5)), "not a zip archive"),
    "a list of other bytes": (written(zip64(900, 100, 5)), "not a zip archive"),
    "2**62 files": (written(zip64(10, 0, 1 << 62)), "not a zip archive"),
    "an end without a start": (written(b"PK\5\6" + bytes(18)), "no images"),
    "a name of 60 KB": (lambda path: archive(path, {"n" * 60_000 + ".png": picture()}), "a name of 60004 characters"),
    "nothing": (written(b""), "not a zip archive"),
}


@pytest.mark.parametrize("kind", ARCHIVES)
def test_an_archive_that_lies_is_refused(tmp_path: Path, kind: str) -> None:
    make, words = ARCHIVES[kind]
    with pytest.raises(DataError, match=words) as refused:
        open_dataset(make(tmp_path / "data.zip"))
    assert len(str(refused.value)) < 1000


def test_an_archive_on_a_disk_that_does_not_answer_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = archive(tmp_path / "data.zip", {"a/1.png": picture()})
    silent = threading.Event()

    def read(*_: object) -> None:
        silent.wait()

    monkeypatch.setattr(zipfile.ZipFile, "_RealGetContents", read)
    monkeypatch.setattr(zip_archive, "limited", lambda _limit, what: limited(0.2, what))
    with pytest.raises(DataError, match="its list of files was not read within"):
        ZipSource(local_file(path))
    silent.set()
