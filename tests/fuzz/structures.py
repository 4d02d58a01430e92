"""What can be wrong inside containers: headers of safetensors, arrays of NumPy, ONNX graphs, HDF5 files, TOML."""

from __future__ import annotations

import gzip
import io
import json
import random
import zipfile
from typing import Any

import h5py
import numpy as np
import onnx

from tests.fuzz.mutations import WRONG_JSON, change_json
from xfeat.featurize.cache.layout import BLOCK_BYTES

_ELSEWHERE = "/etc/passwd"
_LENGTHS = (0, 1, 3, 10**6, 10**12, 2**62)


def change_safetensors(chance: random.Random, content: bytes, other: bytes) -> bytes:
    """Change the JSON in front of the weights, whose length is right again; or the weights."""
    length, other_length = (int.from_bytes(each[:8], "little") for each in (content, other))
    if chance.randrange(4) == 0:
        weights = np.frombuffer(content[8 + length :], np.float32).copy()
        weights[chance.randrange(len(weights))] = chance.choice((np.nan, np.inf, -np.inf, 1e38))
        return content[: 8 + length] + weights.tobytes()
    header = change_json(chance, content[8 : 8 + length], other[8 : 8 + other_length])
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


def change_numbers(chance: random.Random, content: bytes, _: bytes) -> bytes:
    """Change one of the numbers of an array that is stored without a header."""
    numbers = np.frombuffer(content, np.float32).copy()
    numbers[chance.randrange(len(numbers))] = chance.choice((np.nan, np.inf, -1, 1e30))
    return numbers.tobytes()


def change_npz(chance: random.Random, content: bytes, other: bytes) -> bytes:
    """Remove an array, or give it another type, shape or claim; checksums are right again."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = chance.choice(list(members))
    match chance.randrange(4):
        case 0:
            del members[name]
        case 1:
            members[chance.choice(list(members))] = members[name]
        case _:
            members[name] = _change_npy(chance, members[name])
    changed = io.BytesIO()
    with zipfile.ZipFile(changed, "w", chance.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for each, data in members.items():
            archive.writestr(each, data)
    return changed.getvalue()


def _change_npy(chance: random.Random, content: bytes) -> bytes:
    """Give an array another type or shape, or a header that claims more than there is."""
    array = np.load(io.BytesIO(content))
    stored = io.BytesIO()
    match chance.randrange(6):
        case 0:
            array = array.astype(chance.choice(("f8", "f2", "i1", "U8", "S2", "?", "c8", ">f4")), casting="unsafe")
        case 1:
            array = array.reshape(chance.choice(((-1,), (1, -1), (*array.shape, 1))))
        case 2:
            array = array[:0] if array.ndim else np.array("")
        case 3:
            array = np.concatenate([array, array]) if array.ndim else array[None]
        case 4:
            shape = chance.choice(((10**6,), (10**12, 4), (2**62,), (-1,), (0, 10**9)))
            np.lib.format.write_array_header_1_0(stored, {"descr": "<f4", "fortran_order": False, "shape": shape})
            return stored.getvalue() + content[-64:]
        case _ if array.ndim and array.dtype.kind == "f":
            array.flat[chance.randrange(array.size)] = chance.choice((np.nan, np.inf, -1, 1e30))
    np.save(stored, array)
    return stored.getvalue()


def change_model(chance: random.Random, content: bytes, other: bytes) -> bytes:
    """Change the metadata, a tensor, a node, or the interface of a graph."""
    model, another = onnx.load_from_string(content), onnx.load_from_string(other)
    graph = model.graph
    match chance.randrange(10):
        case 0:
            prop = chance.choice(model.metadata_props)
            prop.value = chance.choice(("", "2", "text", "[]", 5_000 * "9", 100_000 * "["))
        case 1 | 2 | 3:
            [prop] = (each for each in model.metadata_props if each.key == "xfeat.metadata")
            prop.value = change_json(chance, prop.value.encode(), prop.value.encode()).decode()
        case 4:
            tensor = chance.choice(graph.initializer)
            tensor.dims[:] = chance.choice(([], [chance.choice(_LENGTHS)], [10**6, 10**6], [-1], list(tensor.dims) * 2))
        case 5:
            tensor = chance.choice(graph.initializer)
            tensor.data_location = onnx.TensorProto.EXTERNAL
            tensor.ClearField("raw_data")
            for key, value in (("location", chance.choice((_ELSEWHERE, "../key", "key"))), ("length", "8")):
                tensor.external_data.add(key=key, value=value)
        case 6:
            chance.choice(graph.node).op_type = chance.choice(("Expand", "Tile", "Gather", "Loop", "Div", ""))
        case 7:
            del graph.node[chance.randrange(len(graph.node))]
        case 8:
            value = chance.choice((*graph.input, *graph.output))
            kind = value.type.tensor_type
            if chance.randrange(2):
                value.name = chance.choice(("image", "ood", "", "x" * 70_000, "probabilities"))
            else:
                kind.shape.dim[-1].dim_value = chance.choice(_LENGTHS)
        case _:
            node = chance.choice(graph.node)
            node.CopyFrom(chance.choice(another.graph.node))
    return bytes(model.SerializeToString())


def change_header(chance: random.Random, content: bytes, other: bytes) -> bytes:
    """Change the header of a cache, or what the user block says of it."""
    block, old = json.loads(content[:BLOCK_BYTES]), json.loads(other[:BLOCK_BYTES])
    if chance.randrange(4):
        header, another = (
            each[of["header_offset"] :][: of["header_bytes"]] for each, of in ((content, block), (other, old))
        )
        text = change_json(chance, header, another)
        block |= {"header_offset": len(content), "header_bytes": len(text)}
        changed = json.dumps(block).encode()
        content += text
    else:
        changed = change_json(chance, json.dumps(block).encode(), json.dumps(old).encode())
    return changed.ljust(BLOCK_BYTES - 1)[: BLOCK_BYTES - 1] + b"\n" + content[BLOCK_BYTES:]


def change_hdf5(chance: random.Random, content: bytes, _: bytes) -> bytes:
    """Remove or replace an attribute or a dataset; digests stay as they were."""
    file = io.BytesIO(content)
    with h5py.File(file, "r+") as stored:
        if chance.randrange(2):
            name = chance.choice(list(stored.attrs))
            value: Any = stored.attrs[name]
            del stored.attrs[name]
            if chance.randrange(4):
                stored.attrs[name] = _wrong_attribute(chance, value)
        else:
            names: list[str] = []
            stored.visit(names.append)
            name = chance.choice([each for each in names if isinstance(stored[each], h5py.Dataset)])
            array = stored[name][()]
            del stored[name]
            _put_wrong(chance, stored, name, array)
    return file.getvalue()


def _wrong_attribute(chance: random.Random, value: Any) -> Any:
    match chance.randrange(5):
        case 0 if isinstance(value, str) and value.startswith(("{", "[")):
            return change_json(chance, value.encode(), value.encode()).decode()
        case 1:
            return chance.choice((0, 1, -1, 2**60, np.nan, np.zeros(3), np.bool_(True), h5py.Empty("f4")))
        case _:
            text = chance.choice(WRONG_JSON)
            return text[:60_000]


def _put_wrong(chance: random.Random, stored: h5py.File, name: str, array: np.ndarray) -> None:
    match chance.randrange(9):
        case 0:
            return
        case 1:
            stored[name] = array[:-1]
        case 2:
            stored[name] = array[..., None]
        case 3:
            stored.create_dataset(name, (chance.choice(_LENGTHS), *array.shape[1:]), array.dtype, chunks=True)
        case 4:
            stored[name] = h5py.SoftLink(chance.choice(("/features", "/label", "/" + name, "/none")))
        case 5:
            stored[name] = h5py.ExternalLink("other.h5", chance.choice(("/features", "/label")))
        case 6:
            stored[name] = np.zeros(array.shape, chance.choice(("f8", ">i4", "S3", "c8", "u1", [("a", "i4")])))
        case 7:
            stored.create_dataset(name, data=array, compression="gzip", chunks=True, shuffle=True)
        case _:
            stored.create_group(name)


def change_compressed(chance: random.Random, content: bytes, other: bytes) -> bytes:
    """Change JSON that is compressed."""
    return gzip.compress(change_json(chance, gzip.decompress(content), other))


def change_binary(chance: random.Random, content: bytes, other: bytes) -> bytes:
    """Change the JSON in front of binary tensors, whose length is right again."""
    end = 8 + int(content[:8])
    header = change_json(chance, content[8:end], other)
    return b"%08d" % len(header) + header + content[end:]


def change_toml(chance: random.Random, content: bytes, other: bytes) -> bytes:
    """Give a setting another value, or take one of the other file."""
    lines = content.decode().splitlines()
    at = chance.randrange(len(lines))
    name = lines[at].partition("=")[0].strip()
    value = chance.choice((*WRONG_JSON, "1979-05-27", "inf", "0x7fffffffffffffffff", "{a = 1}", "'\n'", "[[1], ['a']]"))
    lines[at] = chance.choice((f"{name} = {value}", f"'{value[:80]}' = 1", f"[{name}]", *other.decode().splitlines()))
    return "\n".join(lines).encode()
