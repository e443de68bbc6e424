"""Files of format 1, written as the format is documented; imports nothing of the package."""

import hashlib
import json
import struct

import numpy as np

DTYPES = {
    np.dtype(np.bool_): "BOOL",
    np.dtype("<i8"): "I64",
    np.dtype("<i4"): "I32",
    np.dtype("u1"): "U8",
    np.dtype("<f2"): "F16",
    np.dtype("<f4"): "F32",
    np.dtype("<f8"): "F64",
}


def dumps(value):
    """Return JSON in the one form that is hashed."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def checksum(kind, about, arrays):
    """Return the SHA-256 over all contents, in the order of the arrays' names."""
    parts = [dumps([kind, about]).encode()]
    for name in sorted(arrays):
        array = arrays[name]
        parts += [dumps([name, array.dtype.str, list(array.shape)]).encode(), array.tobytes()]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def safetensors(tensors, metadata, data):
    """Return a file of safetensors: length of the header, the header, the data."""
    header = dict(tensors)
    if metadata is not None:
        header["__metadata__"] = metadata
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def forge(path, kind, about, arrays, **entries):
    """Write contents with a checksum that fits them; `entries` replace some of the header's."""
    tensors, data = {}, b""
    for name, array in sorted(arrays.items(), key=lambda one: -one[1].dtype.itemsize):
        end = len(data) + array.nbytes
        shape, offsets = list(array.shape), [len(data), end]
        tensors[name] = {"dtype": DTYPES[array.dtype], "shape": shape, "data_offsets": offsets}
        data += array.tobytes()
    header = {"format": 1, "kind": kind, "about": about, "sha256": checksum(kind, about, arrays)}
    path.write_bytes(safetensors(tensors, {"bioren": json.dumps(header | entries)}, data))
    return path
