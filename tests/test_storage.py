"""The file format: whole or refused, and nothing in a file is ever executed."""

import ast
import json
import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from forgery import checksum, forge, safetensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as of_numpy
from numpy.testing import assert_array_equal
from small import described, fit, query

import bioren
from bioren.files import container
from bioren.files.container import FORMAT_VERSION, digest, read, write

KINDS = ("population", "model")
ABOUT = {"genes": ["a", "β"], "n": 2, "normalization": {"x": None}}
ARRAYS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b/c": np.array([True, False])}

#: What every refusal ends with: what can be done about it.
ADVICE = ("Name a file", "name a file", "Update bioren", "name another")

laws = settings(
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def good():
    return fit(described((60, 50, 40)), labels_key="known", covariates=["depth"])


@pytest.fixture(scope="module")
def stored(good, tmp_path_factory):
    """Contents of good files: of a population and a model, each published and not."""
    folder = tmp_path_factory.mktemp("good")
    good.population_.save(folder / "population")
    good.population_.publish(folder / "published population", min_cells=3)
    good.save(folder / "model")
    good.publish(folder / "published model", min_cells=3)
    return {path.name: read(path, KINDS) for path in folder.iterdir()}


# What is written comes back

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    # Gene names may be anything that JSON can say, half a surrogate pair as well.
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
abouts = st.dictionaries(texts, values, max_size=4)
dtypes = st.sampled_from(["?", "u1", "i4", "i8", ">i8", "f4", ">f4", "f8"])


@st.composite
def arrays(draw):
    shape = draw(of_numpy.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
    dtype = np.dtype(draw(dtypes))
    size = int(np.prod(shape))
    values = draw(st.lists(st.integers(0, 100), min_size=size, max_size=size))
    array = np.array(values, dtype=dtype).reshape(shape)
    return array.T if draw(st.booleans()) else array


tables = st.dictionaries(texts.filter(lambda name: name != "__metadata__"), arrays(), max_size=4)


@settings(laws, max_examples=50)
@given(abouts, tables)
def test_contents_come_back(tmp_path, about, tables):
    path = tmp_path / "file"
    write(path, "model", about, tables, overwrite=True)
    kind, found, back, _ = read(path, ("model",))
    assert (kind, found) == ("model", about)
    assert back.keys() == tables.keys()
    for name, array in tables.items():
        assert_array_equal(back[name], array, strict=array.dtype.isnative)
        assert back[name].dtype == array.dtype.newbyteorder("=")
    first = path.read_bytes()
    order = list(reversed(tables.items()))
    write(path, "model", dict(reversed(about.items())), dict(order), overwrite=True)
    assert path.read_bytes() == first  # same contents, same bytes


@laws
@given(abouts, tables.map(lambda t: {k: a.astype(a.dtype.newbyteorder("<")) for k, a in t.items()}))
def test_digest_is_the_documented_one(about, tables):
    tables = {name: np.asarray(array, order="C") for name, array in tables.items()}
    assert digest("model", about, tables) == checksum("model", about, tables)


def test_digest_tells_all_contents_apart():
    ones = np.ones((2, 3), dtype=np.float32)
    contents = [
        ("model", {}, {}),
        ("population", {}, {}),
        ("model", {"a": 1}, {}),
        ("model", {"a": "1"}, {}),
        ("model", {"a": [1]}, {}),
        ("model", {"a": True}, {}),
        ("model", {"a": None}, {}),
        ("model", {"b": 1}, {}),
        ("model", {}, {"a": ones}),
        ("model", {}, {"b": ones}),
        ("model", {}, {"a": ones, "b": ones}),
        ("model", {}, {"a": ones.T}),
        ("model", {}, {"a": ones.reshape(6)}),
        ("model", {}, {"a": ones.astype(np.float64)}),
        ("model", {}, {"a": ones.view(np.int32)}),
        ("model", {}, {"a": ones * 2}),
        ("model", {}, {"a": ones, "b": ones[:0]}),
        ("model", {}, {"a": ones, "b": ones[:, :0]}),
    ]
    assert len({digest(*one) for one in contents}) == len(contents)


def test_a_hand_written_file_is_read(tmp_path):
    kind, about, found, _ = read(forge(tmp_path / "file", "model", ABOUT, ARRAYS), KINDS)
    assert (kind, about) == ("model", ABOUT)
    for name, array in ARRAYS.items():
        assert_array_equal(found[name], array, strict=True)


def test_what_was_read_is_independent_of_the_file(tmp_path):
    write(tmp_path / "file", "model", ABOUT, ARRAYS)
    found = read(tmp_path / "file", KINDS)
    write(tmp_path / "file", "model", {}, {"a": np.zeros((99, 99))}, overwrite=True)
    assert_array_equal(found.arrays["a"], ARRAYS["a"])
    found.arrays["a"][:] = 7  # writable


# Whole or absent


def fails(*_, **__):
    raise OSError("No space left on device")


def half(arrays, path, metadata):
    Path(path).write_bytes(b"half")
    raise OSError("No space left on device")


def refused(arrays, path, metadata):
    Path(path).write_bytes(b"half")
    raise container.SafetensorError("I/O error: No space left on device (os error 28)")


def interrupted(arrays, path, metadata):
    Path(path).write_bytes(b"half")
    raise KeyboardInterrupt


@pytest.mark.parametrize("failure", [fails, half, refused, interrupted])
@pytest.mark.parametrize("old", [None, b"precious"])
def test_failure_leaves_all_as_it_was(tmp_path, monkeypatch, failure, old):
    path = tmp_path / "file"
    if old:
        path.write_bytes(old)
    monkeypatch.setattr(container, "save_file", failure)
    expected = KeyboardInterrupt if failure is interrupted else OSError
    with pytest.raises(expected) as error:
        write(path, "model", ABOUT, ARRAYS, overwrite=True)
    assert failure is not refused or str(path) in str(error.value)
    assert [one.name for one in tmp_path.iterdir()] == (["file"] if old else [])
    assert not old or path.read_bytes() == old


def test_a_full_disk_is_an_os_error(tmp_path):
    program = f"""
import resource, signal, numpy as np
from bioren.files.container import write
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
try:
    write({str(tmp_path / "file")!r}, "model", {{}}, {{"a": np.ones(10**5)}})
except OSError as error:
    print(error)
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert f"{tmp_path / 'file'} cannot be written" in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "array",
    [
        np.array([1.0, np.nan]),
        np.array([np.inf]),
        np.array([-np.inf], dtype=np.float32),
        np.array([1e300]),
        np.array(["text"]),
        np.array([None], dtype=object),
    ],
    ids=["nan", "inf", "-inf", "too large", "text", "object"],
)
def test_what_could_not_be_read_is_not_written(tmp_path, array):
    with pytest.raises((ValueError, OSError), match="file cannot be written"):
        write(tmp_path / "file", "model", {}, {"a": array})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("about", [{"a": np.nan}, {"a": np.inf}, {"a": {1}}, {"a": b"x"}])
def test_what_json_does_not_know_is_not_written(tmp_path, about):
    with pytest.raises((ValueError, TypeError)):
        write(tmp_path / "file", "model", about, {})
    assert not list(tmp_path.iterdir())


def test_existing_files_are_kept_unless_asked(tmp_path):
    write(tmp_path / "file", "model", {"old": 1}, {})
    with pytest.raises(FileExistsError, match="exists already"):
        write(tmp_path / "file", "model", {}, {})
    assert read(tmp_path / "file", KINDS).about == {"old": 1}


def test_permissions_are_those_of_any_file(tmp_path):
    (tmp_path / "plain").touch()
    write(tmp_path / "file", "model", ABOUT, ARRAYS)
    modes = [(tmp_path / name).stat().st_mode for name in ("plain", "file")]
    assert modes[0] == modes[1]
    (tmp_path / "file").chmod(0o640)
    write(tmp_path / "file", "model", ABOUT, ARRAYS, overwrite=True)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


# Nothing is executed


def test_nothing_that_executes_is_imported():
    forbidden = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml"}
    calls = {"eval", "exec", "compile", "__import__"}
    allowed = {"re.compile", "torch.compile", "torch.compiler", "model.eval", "network.eval"}
    for path in sorted(Path(bioren.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [one.name for one in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or "", *(f"{node.module}.{one.name}" for one in node.names)]
            elif isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in {"torch.load", "torch.save", "np.load", "numpy.load"}, path
                assert called not in calls or called in allowed, (path, called)
                assert not any(word.arg == "allow_pickle" for word in node.keywords), path
            assert not forbidden & {part for name in names for part in name.split(".")}, path


class Trap:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return (Path(self.mark).touch, ())


# Bad files

ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
TWO = np.zeros(2, dtype=np.float32)


def header(about=None, arrays=None, kind="population", **entries):
    about = {} if about is None else about
    signed = {
        "format": FORMAT_VERSION,
        "kind": kind,
        "about": about,
        "sha256": checksum(kind, about, arrays or {}),
    }
    return {"bioren": json.dumps(signed | entries)}


def raw(text, data=b"", length=None):
    """Return bytes that begin as safetensors do, whatever `text` is."""
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def said(json_of_about):
    return {"bioren": f'{{"format":1,"kind":"model","about":{json_of_about},"sha256":"0"}}'}


def tensor(**changes):
    return safetensors({"a": ONE | changes}, header(arrays={"a": TWO}), bytes(8))


def npz(path):
    np.savez(path.with_suffix(".npz"), a=np.ones(3))
    return path.with_suffix(".npz").read_bytes()


def h5ad(path):
    described((5, 5)).write_h5ad(path.with_suffix(".h5ad"))
    return path.with_suffix(".h5ad").read_bytes()


BYTES = {
    "empty": b"",
    "one byte": b"\x00",
    "seven bytes": bytes(7),
    "eight zeros": bytes(8),
    "zeros": bytes(1000),
    "text": b"gene,cell\nA1BG,12\n" * 40,
    "json": json.dumps({"bioren": {"format": 1, "about": {}}}).encode(),
    "pickle": pickle.dumps({"format": 1}),
    "npz": npz,
    "h5ad": h5ad,
    "gzip": b"\x1f\x8b\x08\x00" + bytes(60),
    "header longer than the file": raw(b"{}", length=10_000),
    "header of 2**63 bytes": raw(b"{}", length=2**63),
    "header of 2**64-1 bytes": raw(b"{}", length=2**64 - 1),
    "header of no bytes": raw(b"", length=0),
    "header that is no JSON": raw(b"{not json}"),
    "header that is a list": raw(b"[1,2]"),
    "header that is not UTF-8": raw(b'{"\xff\xfe":1}'),
    "header of nested lists": raw(b"[" * 50_000 + b"]" * 50_000),
    "no header of ours": safetensors({"a": ONE}, None, bytes(8)),
    "others' header": safetensors({"a": ONE}, {"format": "pt"}, bytes(8)),
    "our header is a number": raw(b'{"__metadata__":{"bioren":5}}'),
    "our header is a list": safetensors({}, {"bioren": "[1]"}, b""),
    "our header is null": safetensors({}, {"bioren": "null"}, b""),
    "our header is no JSON": safetensors({}, {"bioren": "{format:1}"}, b""),
    "our header is cut off": safetensors({}, {"bioren": header()["bioren"][:-3]}, b""),
    "overlapping arrays": safetensors({"a": ONE, "b": ONE}, header(), bytes(8)),
    "arrays out of range": tensor(data_offsets=[8, 16]),
    "arrays that begin before the file": tensor(data_offsets=[-8, 0]),
    "arrays that end before they begin": tensor(data_offsets=[8, 0]),
    "a hole between arrays": safetensors(
        {"a": ONE, "b": ONE | {"data_offsets": [16, 24]}}, header(), bytes(24)
    ),
    "data that nobody names": safetensors({}, header(), bytes(8)),
    "data that are missing": safetensors({"a": ONE}, header(), bytes(4)),
    "huge shape": tensor(shape=[10**18]),
    "huge shape of nothing": tensor(shape=[0, 2**62, 2**62], data_offsets=[0, 0])[:-8],
    "shape that overflows": tensor(shape=[2**63, 2]),
    "negative shape": tensor(shape=[-2]),
    "fractional shape": tensor(shape=[2.5]),
    "65 dimensions": tensor(shape=[1] * 64 + [2]),
    "unknown dtype": tensor(dtype="F33"),
    "bfloat16": tensor(dtype="BF16", shape=[4]),
    "float8": tensor(dtype="F8_E4M3", shape=[8]),
    "array of another name": safetensors({"b": ONE}, header(arrays={"a": TWO}), bytes(8)),
    "array of another shape": tensor(shape=[1, 2]),
    "array of another dtype": tensor(dtype="I32"),
    "array that was added": safetensors({"a": ONE}, header(), bytes(8)),
    "array that was removed": safetensors({}, header(arrays={"a": TWO}), b""),
    "array that was changed": tensor()[:-1] + b"\x01",
    "no checksum": safetensors({}, header(sha256=None), b""),
    "checksum of a number": safetensors({}, header(sha256=0), b""),
    "checksum in a list": safetensors({}, header(sha256=[checksum("population", {}, {})]), b""),
    "checksum cut off": safetensors({}, header(sha256=checksum("population", {}, {})[:-1]), b""),
    "about is a list": safetensors({}, header(about=[]), b""),
    "about is text": safetensors({}, header(about="genes"), b""),
    "about is null": safetensors({}, header() | said("null"), b""),
    "NaN": safetensors({}, said('{"a":NaN}'), b""),
    "infinity": safetensors({}, said('{"a":1e999}'), b""),
    "an integer of 5,000 digits": safetensors({}, said('{"a":' + "9" * 5000 + "}"), b""),
    "nested lists": safetensors({}, said("[" * 10**5 + "]" * 10**5), b""),
    "lists nested as deep as JSON reads": safetensors({}, said("[" * 960 + "]" * 960), b""),
    "another kind": safetensors({}, header(kind="atlas"), b""),
    "a kind that is a list": safetensors({}, header(kind=["model"]), b""),
    "a format of text": safetensors({}, header(format="1"), b""),
    "a format of null": safetensors({}, header(format=None), b""),
    "a format of true": safetensors({}, header(format=True), b""),
    "a format of 1.0": safetensors({}, header(format=1.0), b""),
    "a format in a list": safetensors({}, header(format=[1]), b""),
    "format 0": safetensors({}, header(format=0), b""),
    "format -1": safetensors({}, header(format=-1), b""),
    "a newer format": safetensors({}, header(format=FORMAT_VERSION + 1), b""),
    "no format": safetensors({}, {"bioren": json.dumps({"about": {}, "kind": "model"})}, b""),
    "nothing but a valid header": safetensors({}, header(), b""),
}


def loaders():
    return [bioren.Population.load, bioren.load, lambda path: read(path, KINDS)]


@pytest.mark.parametrize("content", BYTES.values(), ids=BYTES.keys())
def test_bad_file(tmp_path, content):
    path = tmp_path / "bad file.bioren"
    path.write_bytes(content(path) if callable(content) else content)
    before = path.read_bytes()
    for load in (bioren.Population.load, bioren.load):
        with pytest.raises(ValueError, match=r"bad file\.bioren") as error:
            load(path)
        message = str(error.value)
        if content != BYTES["nothing but a valid header"]:
            assert any(advice in message for advice in ADVICE), message
    assert path.read_bytes() == before


def test_a_newer_format_is_told_before_anything_else_is_read(tmp_path):
    # Nothing is known of it: neither its arrays nor what its checksum is of.
    future = {"bioren": json.dumps({"format": FORMAT_VERSION + 1})}
    (tmp_path / "f").write_bytes(safetensors({"a": ONE | {"dtype": "BF16"}}, future, bytes(4)))
    tensors = {"a": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}
    (tmp_path / "f").write_bytes(safetensors(tensors, future, bytes(4)))
    with pytest.raises(ValueError, match=r"pip install --upgrade bioren"):
        bioren.load(tmp_path / "f")


def test_a_pickle_is_not_executed(tmp_path):
    mark = tmp_path / "executed"
    (tmp_path / "f").write_bytes(pickle.dumps(Trap(mark)))
    for load in loaders():
        with pytest.raises(ValueError, match="cannot be read"):
            load(tmp_path / "f")
    assert not mark.exists()


@pytest.mark.parametrize("kind", ["missing", "folder", "loop", "dangling", "fifo", "device"])
def test_what_is_no_file(tmp_path, kind):
    path = tmp_path / "it"
    if kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "dangling":
        path.symlink_to(tmp_path / "gone")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    for load in loaders():
        with pytest.raises(OSError, match=str(path)) as error:
            load(path)
        assert any(advice in str(error.value) for advice in ADVICE)


def test_a_file_that_may_not_be_read(tmp_path):
    path = tmp_path / "it"
    write(path, "model", {}, {})
    path.chmod(0)
    root = os.geteuid() == 0
    if root:
        for folder in (tmp_path, *list(tmp_path.parents)[:3]):
            folder.chmod(folder.stat().st_mode | 0o055)
        os.seteuid(65534)
    try:
        for load in loaders():
            with pytest.raises(PermissionError, match=f"{path} cannot be read"):
                load(path)
    finally:
        if root:
            os.seteuid(0)


def test_a_file_of_the_other_kind(tmp_path, good, stored):
    good.population_.save(tmp_path / "population")
    with pytest.raises(ValueError, match="population holds a population, expected a model"):
        bioren.load(tmp_path / "population")
    good.save(tmp_path / "model")  # but a model holds a population
    assert bioren.Population.load(tmp_path / "model").digest == good.population_.digest


# Damage: cut off anywhere, changed anywhere


@pytest.fixture(scope="module", params=["population", "model", "published model"])
def whole(request, stored, tmp_path_factory):
    """A good file of each kind: its loader, its bytes, and a folder."""
    path = tmp_path_factory.mktemp("whole") / "file"
    write(path, *stored[request.param][:3])
    load = bioren.Population.load if request.param == "population" else bioren.load
    return load, path.read_bytes(), path


def assert_refused(load, path, content):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{path}"):
        load(path)


def test_truncated_anywhere(whole):
    load, content, path = whole
    n = len(content)
    start = 8 + struct.unpack("<Q", content[:8])[0]
    for end in {0, 1, 7, 8, 9, start - 1, start, start + 1, n - 1, *range(0, n, n // 40)}:
        assert_refused(load, path, content[:end])


def test_anything_appended(whole):
    load, content, path = whole
    for more in (b"\0", b" ", content):
        assert_refused(load, path, content + more)


@laws
@given(st.data())
def test_any_byte_changed(whole, data):
    load, content, path = whole
    start = 8 + struct.unpack("<Q", content[:8])[0]
    lows, highs = data.draw(st.sampled_from([(0, 8), (8, start), (start, len(content))]))
    at = data.draw(st.integers(lows, highs - 1))
    bit = data.draw(st.integers(0, 7))
    changed = bytearray(content)
    changed[at] ^= 1 << bit
    path.write_bytes(changed)
    try:
        load(path)
    except ValueError as error:
        assert str(path) in str(error)  # noqa: PT017
        return
    # White space and spellings of JSON mean the same: then so do the contents.
    assert at < start
    found = read(path, KINDS)
    path.write_bytes(content)
    assert digest(*found[:3]) == digest(*read(path, KINDS)[:3])


@laws
@given(st.data())
def test_random_damage(whole, data):
    load, content, path = whole
    damaged = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(len(damaged) - 1, 0)) | st.integers(0, 200))
        at = min(at, len(damaged))
        kind = data.draw(st.sampled_from(["insert", "delete", "replace", "copy"]))
        if kind == "insert":
            damaged[at:at] = data.draw(st.binary(min_size=1, max_size=9))
        elif kind == "delete":
            del damaged[at : at + data.draw(st.integers(1, 99))]
        elif kind == "replace":
            some = data.draw(st.binary(min_size=1, max_size=9))
            damaged[at : at + len(some)] = some
        else:
            other = data.draw(st.integers(0, len(damaged)))
            damaged[at : at + 64] = damaged[other : other + 64]
    path.write_bytes(damaged)
    try:
        load(path)
    except ValueError as error:
        assert str(path) in str(error)  # noqa: PT017
        return
    found = read(path, KINDS)
    path.write_bytes(content)
    assert digest(*found[:3]) == digest(*read(path, KINDS)[:3])


# Checksums that fit contents that do not


def entry(name, value):
    def change(about, arrays):
        about[name] = value

    return change


def inner(outer, name, value):
    def change(about, arrays):
        about[outer] = {**(about[outer] or {}), name: value}

    return change


def without(name):
    def change(about, arrays):
        (about if name in about else arrays).pop(name)

    return change


def array(name, spoil):
    def change(about, arrays):
        found = arrays[name].copy()
        arrays[name] = np.asarray(found if (new := spoil(found)) is None else new, order="C")

    return change


def put(value, at=0):
    def spoil(found):
        found.reshape(-1)[at] = value

    return spoil


def doubled(found):
    return np.concatenate([found, found])


def nothing(found):
    return found[:0]


POPULATION = {
    "genes twice": entry("genes", ["gene0"] * 20),
    "genes few": entry("genes", ["gene0"]),
    "genes none": entry("genes", []),
    "genes text": entry("genes", "gene0"),
    "genes numbers": entry("genes", list(range(20))),
    "genes null": entry("genes", None),
    "genes nested": entry("genes", [["gene0"]] * 20),
    "genes missing": without("genes"),
    "samples twice": entry("samples", ["a", "a", "b"]),
    "samples object": entry("samples", {"a": 1}),
    "samples more": entry("samples", ["a", "b", "c", "d"]),
    "samples missing": without("samples"),
    "normalization list": entry("normalization", [1]),
    "normalization missing": without("normalization"),
    "target sum text": inner("normalization", "target_sum", "10000"),
    "target sum negative": inner("normalization", "target_sum", -1.0),
    "target sum list": inner("normalization", "target_sum", [1]),
    "published number": entry("published", 3),
    "published list": entry("published", ["a"]),
    "published nothing": entry("published", {}),
    "published text": entry("published", {"a": "many"}),
    "published null": entry("published", {"a": None}),
    "published fraction": entry("published", {"a": 12.5}),
    "published negative": entry("published", {"a": -12}),
    **{
        f"{name} missing": without(name)
        for name in (
            "count",
            "mean",
            "m2",
            "scale",
            "shift",
            "in_reference",
            "variable",
            "components",
        )
    },
    **{
        f"{name} {what}": array(name, put(value))
        for name in ("count", "mean", "m2", "scale", "shift", "components")
        for what, value in (("NaN", np.nan), ("infinite", np.inf), ("huge", 1e30))
    },
    **{
        f"{name} of another shape": array(name, spoil)
        for name in ("count", "mean", "m2", "scale", "shift", "in_reference", "components")
        for spoil in (doubled,)
    },
    "count negative": array("count", put(-1)),
    "count all zero": array("count", np.zeros_like),
    "count flat": array("count", np.ravel),
    "count of integers": array("count", lambda found: found.astype(np.int64)),
    "count of no states": array("count", lambda found: found[:, :0]),
    "m2 negative": array("m2", put(-1)),
    "mean in half precision": array("mean", lambda found: found.astype(np.float16)),
    "scale zero": array("scale", put(0)),
    "scale negative": array("scale", put(-1)),
    "no reference": array("in_reference", np.zeros_like),
    "reference of numbers": array("in_reference", lambda found: found.astype(np.int64)),
    "variable out of range": array("variable", put(20)),
    "variable negative": array("variable", put(-1)),
    "variable huge": array("variable", put(2**62)),
    "variable twice": array("variable", put(2)),
    "variable none": array("variable", nothing),
    "variable of floats": array("variable", lambda found: found.astype(np.float64)),
    "components of no dimension": array("components", lambda found: found[:, :0]),
    "components long": array("components", lambda found: 1e6 * found),
}


@pytest.mark.parametrize("change", POPULATION.values(), ids=POPULATION.keys())
def test_population_that_does_not_fit(tmp_path, stored, change):
    for name, prefix in (("population", ""), ("model", "population/")):
        kind, about, arrays = stored[name][:3]
        about = json.loads(json.dumps(about))
        part = {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix or "")}
        change(about, part)
        rest = {k: v for k, v in arrays.items() if prefix and not k.startswith(prefix)}
        path = forge(
            tmp_path / name, kind, about, rest | {f"{prefix}{k}": v for k, v in part.items()}
        )
        loads = [bioren.Population.load] + ([bioren.load] if kind == "model" else [])
        for load in loads:
            with pytest.raises(ValueError, match=f"^{path}"):
                load(path)


MODEL = {
    **{
        f"{name} missing": without(name)
        for name in (
            "n_latent",
            "n_hidden",
            "strength",
            "max_removed",
            "rng",
            "batch_key",
            "layer",
            "labels_key",
            "labels",
            "covariates",
            "signed",
            "n_rounds",
            "width",
            "knows",
            "single",
            "slope",
            "level",
            "transfers",
            "own_samples",
            "network/components",
            "network/spread",
            "network/encoder.0.weight",
            "network/input_shift",
            "states/0/centers",
            "states/kept",
            "states/specific",
            "states/inlier_weight",
            "states/unit",
            "embedded/count",
            "coordinates/count",
            "coordinates/mean",
            "coordinates/m2",
            "denoiser/centers",
            "confidence/center",
            "confidence/unit",
            "labels/0/weights",
            "alignment/d",
            "alignment/samples/mean",
            "alignment/reference/m2",
            "alignment/full/scale",
            "expression/shift",
            "diagnosis/unmatched",
            "history/epoch",
        )
    },
    **{
        f"{name} {what}": entry(name, value)
        for name in ("n_latent", "n_hidden", "n_rounds", "strength", "width")
        for what, value in (
            ("zero", 0) if name not in ("strength",) else ("above one", 1.5),
            ("negative", -1),
            ("text", "1"),
            ("true", True),
            ("null", None),
            ("list", [1]),
            ("huge", 10**30),
        )
    },
    "n_latent fraction": entry("n_latent", 2.5),
    "n_rounds 1e9": entry("n_rounds", 10**9),
    "n_rounds one more": entry("n_rounds", 99),
    "n_hidden other": entry("n_hidden", 9),
    "n_hidden 1e12": entry("n_hidden", 10**12),
    "limits text": entry("max_removed", "ab"),
    "limits object": entry("max_removed", {"1": 2, "3": 4}),
    "limits one": entry("max_removed", [2]),
    "limits none": entry("max_removed", []),
    "limits three": entry("max_removed", [2, 1, 1]),
    "limits nested": entry("max_removed", [[2], [1]]),
    "limits text inside": entry("max_removed", ["2", "1"]),
    "limits true": entry("max_removed", [True, True]),
    "limits too small": entry("max_removed", [0.5, 1]),
    "limits negative": entry("max_removed", [2, -1]),
    "seed text": entry("rng", "0"),
    "seed negative": entry("rng", -1),
    "seed fraction": entry("rng", 0.5),
    "seed list": entry("rng", [1]),
    "batch key number": entry("batch_key", 3),
    "batch key null": entry("batch_key", None),
    "batch key nothing": entry("batch_key", []),
    "batch key nested": entry("batch_key", [["sample"]]),
    "layer number": entry("layer", 3),
    "layer list": entry("layer", ["counts"]),
    "labels key list": entry("labels_key", ["known"]),
    "labels text": entry("labels", "known"),
    "labels numbers": entry("labels", [1, 2, 3]),
    "labels twice": entry("labels", ["a", "a"]),
    "covariates text": entry("covariates", "depth"),
    "covariates more": entry("covariates", ["depth", "age"]),
    "covariates none": entry("covariates", []),
    "signed text": entry("signed", "false"),
    "signed number": entry("signed", 0),
    "signed null": entry("signed", None),
    "knows text": entry("knows", "true"),
    "single text": entry("single", "true"),
    "slope text": entry("slope", "-1"),
    "slope positive": entry("slope", 1.0),
    "level null": entry("level", None),
    "transfers null": entry("transfers", None),
    "transfers number": entry("transfers", 3),
    "transfers text": entry("transfers", "known"),
    "transfers of numbers": entry("transfers", [1]),
    "transfers of one": entry("transfers", [["known"]]),
    "transfers without names": entry("transfers", [["known", []]]),
    "transfers of a numbered key": entry("transfers", [[1, ["a", "b", "c"]]]),
    "transfers of numbered names": entry("transfers", [["known", [1, 2, 3]]]),
    "transfers of text": entry("transfers", [["known", "abc"]]),
    "transfers of fewer names": entry("transfers", [["known", ["a", "b"]]]),
    "transfers more": entry("transfers", [["known", ["a", "b", "c"]], ["x", ["a", "b", "c"]]]),
    "transfers of one key twice": entry("transfers", [["known", ["a", "b", "c"]]] * 2),
    "transfers of names twice": entry("transfers", [["known", ["a", "a", "b"]]]),
    **{
        f"{name} NaN": array(name, put(np.nan))
        for name in (
            "network/encoder.0.weight",
            "network/spread",
            "network/components",
            "network/input_scale",
            "states/0/shifts",
            "states/kept",
            "states/specific",
            "states/inlier_weight",
            "embedded/mean",
            "coordinates/mean",
            "denoiser/reliability",
            "confidence/center",
            "confidence/unit",
            "labels/0/level",
            "alignment/r",
            "alignment/full/shift",
            "expression/shift",
            "diagnosis/unmatched",
            "history/training",
        )
    },
    **{
        f"{name} of another shape": array(name, doubled)
        for name in (
            "network/encoder.0.weight",
            "network/encoder.3.bias",
            "network/components",
            "network/center",
            "network/input_scale",
            "network/hidden_bridge.log_r",
            "states/0/centers",
            "states/0/log_odds",
            "states/0/levels",
            "states/kept",
            "states/specific",
            "states/inlier_weight",
            "states/unit",
            "states/labels",
            "embedded/m2",
            "coordinates/count",
            "coordinates/mean",
            "coordinates/m2",
            "denoiser/centers",
            "denoiser/reliability",
            "confidence/center",
            "confidence/unit",
            "labels/0/weights",
            "alignment/removed",
            "alignment/overlap",
            "alignment/samples/count",
            "expression/shift",
            "diagnosis/overlap",
        )
    },
    "network of another dtype": array(
        "network/encoder.0.weight", lambda found: found.astype(np.int64)
    ),
    "network spread zero": array("network/spread", np.zeros_like),
    "network spread negative": array("network/spread", np.negative),
    "network variance negative": array("network/encoder.1.running_var", put(-1)),
    "embedded count negative": array("embedded/count", put(-1)),
    "embedded m2 negative": array("embedded/m2", put(-1)),
    "places count negative": array("coordinates/count", put(-1)),
    "places m2 negative": array("coordinates/m2", put(-1)),
    "usual negative": array("states/inlier_weight", put(-1e-6)),
    "usual above one": array("states/inlier_weight", put(1 + 1e-6)),
    "alignment m2 negative": array("alignment/samples/m2", put(-1)),
    "unit zero": array("states/unit", put(0)),
    "unit negative": array("states/unit", put(-1)),
    "own samples out of range": array("own_samples", put(3)),
    "own samples negative": array("own_samples", put(-1)),
    "own samples huge": array("own_samples", put(2**62)),
    "own samples twice": array("own_samples", put(1)),
    "own samples none": array("own_samples", nothing),
    "own samples of floats": array("own_samples", lambda found: found.astype(np.float64)),
    "history of two lengths": array("history/training", doubled),
    "state labels of floats": array("states/labels", lambda found: found.astype(np.float64)),
}


@pytest.mark.parametrize("change", MODEL.values(), ids=MODEL.keys())
def test_model_that_does_not_fit(tmp_path, stored, change):
    kind, about, arrays = stored["model"][:3]
    about, arrays = json.loads(json.dumps(about)), dict(arrays)
    change(about, arrays)
    path = forge(tmp_path / "model", kind, about, arrays)
    with pytest.raises(ValueError, match=f"^{path}"):
        bioren.load(path)


# A fuzzer: contents changed, and signed again

JUNK = [None, True, 0, -1, 1e9, 1e15, 10**30, "", "x", [], ["x"], ["x", "x"], {}, {"a": 1}, [[1]]]
JUNK += [[["a", []]], [["a", ["x", "y", "z"]]], [2.0, 0.5], [1, 1], {"a": None}]
NUMBERS = [0, -1, 1, 1e15, -1e15, 1e-300, 1e-30, 1e-8, 1e6, -1e6, 1e10, np.nan, np.inf]
#: These change which cells may be asked for.
OF_QUERIES = ("covariates", "batch_key", "layer", "labels_key", "genes", "samples")


@st.composite
def changes(draw, stored):
    """Draw contents that differ from good ones in one place or two."""
    about = json.loads(json.dumps(stored.about))
    arrays = dict(stored.arrays)
    for _ in range(draw(st.integers(1, 2))):
        if draw(st.integers(0, 3)) == 0:
            name = draw(st.sampled_from(sorted(set(about) - set(OF_QUERIES))))
            if isinstance(about[name], dict) and about[name] and draw(st.booleans()):
                inside = draw(st.sampled_from(sorted(about[name])))
                about[name][inside] = draw(st.sampled_from(JUNK))
            else:
                about[name] = draw(st.sampled_from(JUNK))
            continue
        name = draw(st.sampled_from(sorted(arrays)))
        found = arrays[name].copy()
        value = draw(st.sampled_from(NUMBERS))
        if found.dtype.kind != "f":
            value = draw(st.sampled_from([0, 1, 2, 100, -1]))
        kind = draw(st.sampled_from(["one", "one", "all", "times", "negative", "row", "twice"]))
        with np.errstate(all="ignore"):
            if kind == "one" and found.size:
                found.reshape(-1)[draw(st.integers(0, found.size - 1))] = value
            elif kind == "all":
                found[...] = value
            elif kind == "times" and found.dtype.kind == "f":
                found = np.asarray(found * found.dtype.type(value))
            elif kind == "negative" and found.dtype.kind != "b":
                found = np.asarray(-found)
            elif kind == "row" and found.ndim and len(found):
                found[draw(st.integers(0, len(found) - 1))] = value
            elif kind == "twice" and found.ndim:
                found = np.concatenate([found, found])
        arrays[name] = found
    return stored.kind, about, arrays


@settings(laws, max_examples=150)
@given(st.data())
def test_changed_contents_are_refused_or_work(tmp_path, stored, data):
    path = tmp_path / "file"
    name = data.draw(st.sampled_from(sorted(stored)))
    forge(path, *data.draw(changes(stored[name])))
    load = bioren.Population.load if stored[name].kind == "population" else bioren.load
    try:
        found = load(path)
    except ValueError as error:
        assert str(path) in str(error)  # noqa: PT017
        return
    assert repr(found)
    cells = query()
    if isinstance(found, bioren.Population):
        mapped = found.place(cells.X, found.columns_of(cells.var_names))
        results = [mapped.bridged, mapped.alignment.d, mapped.alignment.full.scale]
    else:
        mapped = found.map(cells, batch_key="sample")
        results = [mapped.embedding, mapped.corrected, mapped.alignment.d]
        assert not np.isinf(mapped.score).any()
    for result in results:
        assert np.isfinite(result).all()
