"""Archives and tables of images: what is read, which labels come with it, and what is refused."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from xfeat.featurize.datasets.layouts import SPLITS, Dataset, open_dataset
from xfeat.featurize.errors import DataError, ImageError
from xfeat.featurize.sources.containers import open_container
from xfeat.featurize.sources.folder import FolderSource, local_file
from xfeat.featurize.sources.opening import open_source


def picture(level: int = 100) -> bytes:
    file = io.BytesIO()
    Image.new("L", (8, 8), level).save(file, "PNG")
    return file.getvalue()


Members = dict[str, "bytes | str | tarfile.TarInfo"]


def tar(path: Path, members: Members, mode: str = "w", **options: Any) -> Path:
    """Write an archive; a text is the target of a link."""
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, mode, **options) as archive:  # type: ignore[call-overload]
        for name, content in members.items():
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
            data = content if isinstance(content, bytes) else b""
            info.size, info.mtime = len(data) or info.size, 1_000_000_000
            archive.addfile(info, io.BytesIO(data))
    return path


def special(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def seen(dataset: Dataset) -> list[str]:
    """Return path, class and split of each image, such as ``a/1.png|a|train``."""
    names = ["", *dataset.class_names]
    parts = [(e.path, names[e.label + 1], SPLITS[e.split] if e.split < 3 else "") for e in dataset.entries]
    return ["|".join(part).rstrip("|") for part in parts]


def sample(kind: str, content: bytes) -> Members:
    return {"1.png": P, f"1.{kind}": content}


P = picture()
DEVICES = {"a/3.png": special("a/3.png", tarfile.CHRTYPE), "a/4.png": special("a/4.png", tarfile.FIFOTYPE)}
LINKED = {"a/1.png": P, "b/2.png": special("b/2.png", tarfile.LNKTYPE, "a/1.png")}
FOUR = [f"{n}.png" for n in range(4)]
LONG = "n" * 300
TARS: dict[str, tuple[Members, list[str]]] = {
    "folders": ({"d/train/a/1.png": P, "d/test/b/2.png": P}, ["d/test/b/2.png|b|test", "d/train/a/1.png|a|train"]),
    "dots and slashes": ({"./a/1.png": P, "/b/2.png": P}, ["a/1.png|a", "b/2.png|b"]),
    "a parent": ({"../../a/1.png": P, "b/../2.png": P}, ["a/1.png|a", "b/2.png|b"]),
    "long names": ({f"{LONG}/1.png": P, "b/2.png": P}, ["b/2.png|b", f"{LONG}/1.png|{LONG}"]),
    "cls": ({"1.png": P, "1.cls": b"0\n", "2.png": P, "2.cls": b"1"}, ["1.png|0", "2.png|1"]),
    "cls of words": (sample("cls", "ä b".encode()), ["1.png|ä b"]),
    "json": (sample("json", b'{"label": "a", "age": 3}'), ["1.png|a"]),
    "json of a number": (sample("json", b"7"), ["1.png|7"]),
    "json with a split": (sample("json", b'{"class": "a", "split": "val"}'), ["1.png|a|valid"]),
    "json without a label": (sample("json", b'{"boxes": [1, 2]}'), ["1.png"]),
    "json that is none": (sample("json", b"{["), ["1.png"]),
    "txt": (
        dict.fromkeys(FOUR, P) | {f"{n}.txt": b"ab"[n % 2 :][:1] for n in range(4)},
        [f"{n}.png|{'ab'[n % 2]}" for n in range(4)],
    ),
    "captions": (dict.fromkeys(FOUR, P) | {f"{n}.txt": b"words %d" % n for n in range(4)}, FOUR),
    "pictures of a sample": ({"1.l.png": P, "1.r.png": P, "1.cls": b"3"}, ["1.l.png|3", "1.r.png|3"]),
    "a hard link": (LINKED, ["a/1.png|a", "b/2.png|b"]),
    "links, devices and pipes": ({"a/1.png": P, "a/2.png": "/etc/passwd", **DEVICES}, ["a/1.png|a"]),
}


@pytest.mark.parametrize("kind", TARS)
@pytest.mark.parametrize("packed", [False, True])
def test_a_tar_archive_is_read_where_it_is(tmp_path: Path, kind: str, packed: bool) -> None:
    members, expected = TARS[kind]
    file = tar(tmp_path / f"data.tar{'.gz' * packed}", members, "w:gz" if packed else "w")
    dataset = open_dataset(file)
    assert seen(dataset) == expected
    source = pickle.loads(pickle.dumps(dataset.open()))
    for path in [each.split("|")[0] for each in expected]:
        data, state = source.read(path)
        assert (data, state) == (P, open_source(file).state(path))
        assert source.head(path, 4) == P[:4]
    assert sorted(path.name for path in tmp_path.iterdir()) == [file.name], "nothing is unpacked beside it"


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_all_forms_of_tar_are_read(tmp_path: Path, form: int) -> None:
    file = tar(tmp_path / "data.tar", {"ä/1.png": P, "b/2.png": P}, format=form)
    assert seen(open_dataset(file)) == ["b/2.png|b", "ä/1.png|ä"]


def joined(path: Path) -> Path:
    first = tar(path.with_name("1"), {"a/1.png": P}).read_bytes()
    path.write_bytes(first + tar(path.with_name("2"), {"b/2.png": P}).read_bytes())
    return path


def test_archives_one_after_the_other_are_read(tmp_path: Path) -> None:
    assert len(open_dataset(joined(tmp_path / "data.tar")).entries) == 2


def of(content: Callable[[bytes], bytes]) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        tar(path, {"a/1.png": P, "b/2.png": P * 20})
        path.write_bytes(content(path.read_bytes()))
        return path

    return write


def sparse(path: Path) -> Path:
    """Return an archive with a file of 8 EB in 100 bytes."""
    info = special("a/big.png", tarfile.GNUTYPE_SPARSE)
    info.size = 0
    tar(path, {"a/1.png": P, "a/big.png": info})
    return path


def header_of(size: int, kind: bytes) -> Callable[[Path], Path]:
    info = special("a/1.png", kind)
    info.size = size
    return of(lambda _: info.tobuf(tarfile.GNU_FORMAT) + bytes(4096))


BROKEN_TARS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "cut in a file": (of(lambda data: data[:2000]), "cannot be read|end of the archive is missing"),
    "cut in a header": (of(lambda data: data[:1200]), "cannot be read|end of the archive is missing"),
    "a damaged header": (of(lambda data: data[:1100] + b"!" + data[1101:]), "cannot be read"),
    "a file of 8 EB": (header_of(1 << 62, tarfile.REGTYPE), "the end of the archive is missing"),
    "a name of 1 GB": (header_of(1 << 30, tarfile.GNUTYPE_LONGNAME), "cannot be read"),
    "an extended header of 1 GB": (header_of(1 << 30, tarfile.XHDTYPE), "cannot be read"),
    "nothing": (of(lambda _: b""), "no images found"),
    "zeros": (of(lambda _: bytes(10240)), "not a zip archive|cannot be read|no images"),
    "an HTML page": (of(lambda _: b"<html>" * 200), "cannot be read|not a zip"),
}


@pytest.mark.parametrize("kind", BROKEN_TARS)
def test_a_damaged_tar_archive_is_refused(tmp_path: Path, kind: str) -> None:
    make, words = BROKEN_TARS[kind]
    with pytest.raises(DataError, match=words) as refused:
        open_dataset(make(tmp_path / "data.tar"))
    assert len(str(refused.value)) < 1000


def test_a_sparse_file_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert len(open_dataset(sparse(tmp_path / "data.tar")).entries) == 1
    assert "1 sparse files" in caplog.text


PACKED: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "a bomb": (lambda data: gzip.compress(data + bytes(66 << 20), 1), "inflates to more than"),
    "cut short": (lambda data: gzip.compress(data)[:-30], "damaged or cut short"),
    "no gzip after its first bytes": (lambda _: b"\x1f\x8b" + b"x" * 100, "damaged or cut short"),
    "bzip2": (lambda _: b"BZh91AY", "packed with bzip2"),
    "xz": (lambda _: b"\xfd7zXZ\0", "packed with xz"),
    "Zstandard": (lambda _: b"\x28\xb5\x2f\xfd\0", "packed with Zstandard"),
}


@pytest.mark.parametrize("kind", PACKED)
def test_what_is_packed_is_bounded(tmp_path: Path, kind: str) -> None:
    pack, words = PACKED[kind]
    file = tar(tmp_path / "data.tar.gz", {"a/1.png": P})
    file.write_bytes(pack(file.read_bytes()))
    with pytest.raises(DataError, match=words):
        open_dataset(file)


# Parquet

BYTES_AND_PATH = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def cells(*paths: str | None, data: bytes | None = P) -> pa.Array:
    return pa.array([{"bytes": data, "path": path} for path in paths], BYTES_AND_PATH)


def table(path: Path, columns: dict[str, Any], names: dict[str, list[str]] | None = None, **options: Any) -> Path:
    """Write a table; ``names`` are those of classes, as Hugging Face's datasets store them."""
    features = {name: {"names": values, "_type": "ClassLabel"} for name, values in (names or {}).items()}
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path, **options)
    return path


N3 = [f"{n}.png" for n in range(3)]
A3 = {"label": ["a"] * 3}
AB = {"label": ["a", "b"]}
ROWS = [f"{n:07d}|a" for n in range(3)]
ELSEWHERE = cells("/root/x/1.png", "../2.png", "C:\\d\\3.png")
IN_SPLITS = {**A3, "split": ["train", "val", "test"]}
PARQUETS: dict[str, tuple[dict[str, Any], dict[str, list[str]], list[str]]] = {
    "names of classes": ({"image": cells(*N3), "label": [0, 1, -1]}, AB, ["0.png|a", "1.png|b"]),
    "numbers of pandas": ({"image": cells(*N3), "label": [0.0, 1.0, None]}, AB, ["0.png|a", "1.png|b"]),
    "a class by another name": (
        {"image": cells(*N3), "disease": [1, 1, 0]},
        {"disease": ["a", "b"]},
        ["0.png|b", "1.png|b", "2.png|a"],
    ),
    "text": ({"image": cells(*N3), "label": ["x", "y", "NA"]}, {}, ["0.png|x", "1.png|y"]),
    "integers": ({"image": cells(*N3), "label": [0, 1, 2]}, {}, ["0.png|0", "1.png|1", "2.png|2"]),
    "floats of pandas": ({"image": cells(*N3), "label": [0.0, 1.0, None]}, {}, ["0.png|0", "1.png|1"]),
    "splits": ({"image": cells(*N3), **IN_SPLITS}, {}, ["0.png|a|train", "1.png|a|valid", "2.png|a|test"]),
    "plain bytes": ({"img": pa.array([P] * 3, pa.binary()), **A3}, {}, ROWS),
    "large bytes": ({"x": pa.array([P] * 3, pa.large_binary()), **A3}, {}, ROWS),
    "no paths": ({"image": cells(None, None, None), **A3}, {}, ROWS),
    "the same path": ({"image": cells("1.png", "1.png", "2.png"), **A3}, {}, [f"{n:07d}.png|a" for n in range(3)]),
    "paths of others": ({"image": ELSEWHERE, **A3}, {}, ["2.png|a", "C:/d/3.png|a", "root/x/1.png|a"]),
    "no label": ({"image": cells(*N3)}, {}, N3),
    "a thumbnail": ({"image": cells(*N3), "thumbnail": pa.array([b"x"] * 3), **A3}, {}, [f"{n}|a" for n in N3]),
}


@pytest.mark.parametrize("kind", PARQUETS)
def test_a_parquet_table_is_read(tmp_path: Path, kind: str) -> None:
    columns, names, expected = PARQUETS[kind]
    file = table(tmp_path / "x.parquet", columns, names, row_group_size=2)
    dataset = open_dataset(file)
    assert seen(dataset) == expected
    source = pickle.loads(pickle.dumps(dataset.open()))
    for path in [each.split("|")[0] for each in reversed(expected)]:
        assert source.read(path) == (P, open_source(file).state(path))


NESTED = pa.array([{"x": 1}] * 3)
NOT_KEPT: dict[str, tuple[dict[str, Any], str]] = {
    "a struct": ({"image": cells(*N3), **A3, "box": NESTED}, "not kept: box ("),
    "a list": ({"image": cells(*N3), **A3, "boxes": [[1, 2]] * 3}, "not kept: boxes ("),
    "two images": ({"image": cells(*N3), "mask": cells(*N3), "thumb": pa.array([b"x"] * 3)}, "not kept: mask, thumb ("),
    "more of an image": (
        {"image": pa.array([{"bytes": P, "path": name, "width": 8} for name in N3])},
        "not kept: image.width (",
    ),
    "nothing": ({"image": cells(*N3), "age": [1, 2, 3], "labels": [["a"]] * 3}, ""),
}


@pytest.mark.parametrize("kind", NOT_KEPT)
def test_columns_that_are_not_kept_are_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str) -> None:
    columns, said = NOT_KEPT[kind]
    for shard in ("a", "b"):
        table(tmp_path / f"{shard}.parquet", columns)
    open_dataset(tmp_path / "*.parquet")
    assert caplog.text.count("not kept") == bool(said)
    assert said in caplog.text


NESTED_JSON: dict[str, tuple[bytes, str]] = {
    "a list": (b'{"label": "a", "boxes": [1, 2]}', "not kept: boxes ("),
    "an object": (b'{"label": "a", "meta": {"age": 3}, "tags": []}', "not kept: meta, tags ("),
    "a list alone": (b'["a", "b"]', "not kept: label ("),
    "only lists": (b'{"boxes": [1, 2]}', "not kept: boxes ("),
    "nothing": (b'{"label": "a", "age": 3, "sex": null, "old": true}', ""),
}


@pytest.mark.parametrize("kind", NESTED_JSON)
def test_nested_values_of_json_are_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str) -> None:
    content, said = NESTED_JSON[kind]
    for shard in ("a", "b"):
        tar(tmp_path / f"{shard}.tar", sample("json", content))
    dataset = open_dataset(tmp_path / "*.tar")
    assert len(dataset.entries) == 2
    assert caplog.text.count("not kept") == bool(said)
    assert said in caplog.text


@pytest.mark.parametrize(
    "content", [b"", b" ", b'{"label": "a"', b"covid", b'{"label": NaN}', b"[" * 10_000, b"\xff\xfe{}"]
)
def test_a_json_record_that_cannot_be_read_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    """Its image has no label then, and is left out."""
    good = {name.replace("1", "2"): data for name, data in sample("json", b'{"label": "b"}').items()}
    tar(tmp_path / "a.tar", {**sample("json", content), **good})
    dataset = open_dataset(tmp_path / "a.tar")
    assert (len(dataset.entries), dataset.class_names) == (1, ("b",))
    assert caplog.text.count("are no JSON: ") == 1


@pytest.mark.parametrize("name", ["image", "label", "age"])
def test_columns_of_one_name_are_refused(tmp_path: Path, name: str) -> None:
    columns = {"image": cells(*N3), "label": pa.array(["a"] * 3), "age": pa.array([1, 2, 3])}
    twice = pa.Table.from_arrays([*columns.values(), columns[name]], names=[*columns, name])
    pq.write_table(twice, tmp_path / "x.parquet")
    with pytest.raises(DataError, match=rf"several columns have one name(.|\n)*{name}"):
        open_dataset(tmp_path / "x.parquet")


@pytest.mark.parametrize("numbers", [[0, 7, 1], [0.0, 7.0, 1.0], [[0], [7], [1]], [0, 2, None], [None, 0.5, -1]])
def test_the_number_of_a_class_without_a_name_is_refused(tmp_path: Path, numbers: list[Any]) -> None:
    file = table(tmp_path / "x.parquet", {"image": cells(*N3), "label": numbers}, AB)
    with pytest.raises(DataError, match=r"number of a class without a name(.|\n)*0 to 1: a, b(.|\n)*in row 1"):
        open_dataset(file)


def test_splits_of_hugging_face_are_read_from_a_folder(tmp_path: Path) -> None:
    for name in ("train-00000-of-00002", "train-00001-of-00002", "validation-00000-of-00001", "test-00000-of-00001"):
        table(tmp_path / "data" / f"{name}.parquet", {"image": cells("1.png"), "label": [0]}, {"label": ["a"]})
    (tmp_path / "README.md").write_text("x")
    dataset = open_dataset(tmp_path)
    assert [each.split("|")[2] for each in seen(dataset)] == ["test", "train", "train", "valid"]
    assert dataset.open().read("data/train-00001-of-00002.parquet/1.png")[0] == P


def test_a_row_without_bytes_reads_the_file_beside_the_table(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/1.png").write_bytes(P)
    (tmp_path.parent / "secret.png").write_bytes(P)
    paths = ["images/1.png", "../secret.png", str(tmp_path / "images/1.png"), "https://x/1.png", ""]
    source = open_source(table(tmp_path / "x.parquet", {"image": cells(*paths, data=None), "label": ["a"] * 5}))
    names = list(source.names())
    assert source.read(names[0])[0] == P
    for name in names[1:]:
        with pytest.raises(ImageError, match=r"only a path outside|no image"):
            source.read(name)


REFUSED_TABLES: dict[str, tuple[dict[str, Any], str]] = {
    "several images per row": ({"image": pa.array([[P, P]], pa.list_(pa.binary()))}, "several images per row"),
    "a list of structs": (
        {"images": pa.array([[{"bytes": P, "path": ""}]], pa.list_(BYTES_AND_PATH))},
        "several images",
    ),
    "no images": ({"path": ["1.png"], "label": ["a"]}, "no column has images"),
    "features": ({"path": ["1.png"], "f0": [1.0]}, "xfeat load"),
    "two columns of images": ({"left": cells("1"), "right": cells("2")}, "several columns could be the images"),
    "two labels": ({"image": cells("1"), "label": ["a"], "class": ["b"]}, "2 columns could be the label"),
    "lists of labels": ({"image": cells("1", "2"), "labels": [["a"], ["a", "b"]]}, "several labels per row"),
    "a caption as label": ({"image": cells("1"), "label": ["a long text\nof two lines"]}, "a text of several lines"),
    "a bomb": ({"image": pa.array([bytes(65 << 20)], pa.binary())}, "inflates to"),
}


@pytest.mark.parametrize("kind", REFUSED_TABLES)
def test_a_table_that_is_no_data_set_is_refused(tmp_path: Path, kind: str) -> None:
    columns, words = REFUSED_TABLES[kind]
    with pytest.raises(DataError, match=words):
        open_dataset(table(tmp_path / "x.parquet", columns, use_dictionary=False, compression="zstd"))


BROKEN_TABLES: dict[str, Callable[[bytes], bytes]] = {
    "cut short": lambda data: data[:-20],
    "nothing inside": lambda _: b"PAR1" + b"x" * 100 + b"PAR1",
    "a list of 2 GB": lambda data: data[:-8] + b"\xff\xff\xff\x7fPAR1",
    "other metadata": lambda data: data[:-200] + bytes(100) + data[-100:],
}


@pytest.mark.parametrize("kind", BROKEN_TABLES)
def test_a_damaged_table_is_refused(tmp_path: Path, kind: str) -> None:
    file = table(tmp_path / "x.parquet", {"image": cells(*N3), "label": ["a"] * 3})
    file.write_bytes(BROKEN_TABLES[kind](file.read_bytes()))
    with pytest.raises(DataError, match="cannot be read"):
        open_dataset(file)


def test_a_damaged_page_is_skipped(tmp_path: Path) -> None:
    file = table(tmp_path / "x.parquet", {"image": cells(*N3), "label": ["a"] * 3})
    content = bytearray(file.read_bytes())
    content[4:40] = bytes(36)
    file.write_bytes(content)
    with pytest.raises(ImageError, match="cannot be read from the table"):
        open_source(file).read("0.png")


@pytest.mark.slow
def test_memory_holds_the_rows_that_were_read_last(tmp_path: Path) -> None:
    images = pa.array([os.urandom(1 << 20) for _ in range(40)] * 5, pa.binary())
    source = open_source(table(tmp_path / "x.parquet", {"image": images, "label": ["a"] * 200}))
    before = pa.total_allocated_bytes()
    for path in source.names():
        source.read(path)
    assert pa.total_allocated_bytes() - before < 100 << 20


# Shards and changes


def shards(folder: Path) -> Path:
    for number in range(3):
        tar(folder / f"s-{number:03d}.tar", {f"{number}.png": picture(number), f"{number}.cls": b"%d" % (number % 2)})
    (folder / "notes.txt").write_text("x")
    return folder


PATTERNS = {
    "s-{000..002}.tar": 3,
    "s-{000..001}.tar": 2,
    "s-{002,000}.tar": 2,
    "*.tar": 3,
    "s-00?.tar": 3,
    "": 3,
}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_shards_are_named_by_a_pattern(tmp_path: Path, pattern: str) -> None:
    folder = shards(tmp_path / "d")
    dataset = open_dataset(f"{folder}/{pattern}")
    assert len(dataset.entries) == PATTERNS[pattern]
    assert dataset.root == folder
    again = open_source(dataset.root)
    assert [again.read(entry.path)[0] for entry in dataset.entries] == [
        picture(int(entry.path.split("/")[1][0])) for entry in dataset.entries
    ]


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("s-{000..005}.tar", "a shard is missing"),
        ("x-*.tar", "no file is called so"),
        ("*.txt", "no shards"),
        ("s-{0..99999999}.tar", "more than 100,000"),
        ("*", "no shards"),
    ],
)
def test_a_pattern_that_cannot_be_meant_is_refused(tmp_path: Path, pattern: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        open_dataset(f"{shards(tmp_path / 'd')}/{pattern}")


def test_folders_in_shards_are_those_of_one_data_set(tmp_path: Path) -> None:
    for number in range(2):
        tar(tmp_path / "d" / f"{number}.tar", {f"train/{name}/1.png": picture(number) for name in "ab"})
    assert [each.split("|")[1:] for each in seen(open_dataset(tmp_path / "d"))] == [["a", "train"], ["b", "train"]] * 2


def test_images_beside_archives_are_the_data_set(tmp_path: Path) -> None:
    folder = shards(tmp_path / "d")
    (folder / "1.png").write_bytes(P)
    dataset = open_dataset(folder)
    assert [entry.path for entry in dataset.entries] == ["1.png"]
    assert dataset.left_out["not a known kind of image"]["files"] == 4


def test_a_folder_that_is_called_like_an_archive_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "d/a.tar").mkdir(parents=True)
    (tmp_path / "d/a.tar/1.png").write_bytes(P)
    assert FolderSource(tmp_path / "d").read("a.tar/1.png")[0] == P


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_a_change_is_noticed_and_an_unchanged_file_is_not_read(tmp_path: Path, kind: str) -> None:
    def write(level: int) -> Path:
        data = picture(level)
        if kind == "tar":
            return tar(tmp_path / "x.tar", {"a/1.png": data, "a/2.png": P})
        return table(tmp_path / "x.parquet", {"image": cells("a/1.png", data=data), "label": ["a"]})

    file = write(1)
    first = open_source(file).state("a/1.png")
    assert first == open_container(local_file(file)).state("a/1.png")
    write(2)
    assert first != open_source(file).state("a/1.png")
    assert open_source(file).state("a/9.png") is None
