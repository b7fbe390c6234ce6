"""Files and folders as a stranger might hand them over, and what becomes of each when it is read.

Shared by `test_hostile_files.py` and `benchmarks/hostile.py`. All is made from one seed.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors
from synthetic import write_store

import avel
from avel import checkpoint
from avel.config import TrainConfig
from avel.data.ave.export import export_h5
from avel.data.check import check, exit_code
from avel.data.store import WORK, Settings, checksum, open_store
from avel.data.store_writing import ClipFeatures, part_file, read_part, write_part
from avel.errors import AvelError
from avel.evaluation import evaluate, read_predictions
from avel.files import file_sha256
from avel.models import build_model
from avel.runs import read_metrics, read_run
from avel.timeline import Timeline
from avel.training import train
from avel.types import Event, Span

MEMORY = 2**29  # bytes that a case may take beyond what the process has
SECONDS = 20  # after which a case is taken to hang; far more than any takes
OPTIONS = {"width": 8, "heads": 2}
SETTINGS = Settings(
    1.0, "time", {kind: {"name": "m", "tag": "m-1", "options": {}} for kind in ("visual", "audio")}, (2, 2), 3, 4
)
CLASSES = ("bell", "dog")


@dataclass(frozen=True)
class Case:
    """One changed file: its kind, what was done to it, its new bytes, and whether it may be read at all."""

    kind: str
    name: str
    content: bytes
    must_be_refused: bool = False


def write_good(folder: Path) -> None:
    """One good file of each kind: a store, a trained and evaluated run, a timeline and a part."""
    write_store(folder / "store", clips=12, segments=4, visual_dim=6, audio_dim=5)
    run = TrainConfig(folder / "store", folder / "run", options=OPTIONS, window=4, epochs=1, device="cpu", threads=1)
    train(run)
    evaluate(folder / "run", "test")
    (folder / "parts" / WORK).mkdir(parents=True)
    random = np.random.default_rng(0)
    visual = random.random((2, 2, 2, 3)).astype(np.float16)
    write_part(folder / "parts", "part", SETTINGS, ClipFeatures(visual, np.ones((2, 4), np.float32), 2.0), "s")
    probabilities = np.array([[0.5, 0.25, 0.25], [0.125, 0.125, 0.75]])
    events, truth = (Event("bell", 0.0, 1.0, 0.5),), (Span("dog", 0.0, 2.0),)
    timeline = Timeline("v.mp4", 2.0, 1.0, CLASSES, probabilities, None, events, {"model": "ccln"}, truth, 0.25, 0.5)
    timeline.to_json(folder / "timeline.json")


#: Kind -> its file below the folder of `write_good`.
FILES = {
    "best.json": "run/best.json",
    "best.safetensors": "run/best.safetensors",
    "last.state.safetensors": "run/last.state.safetensors",
    "run.json": "run/run.json",
    "metrics.jsonl": "run/metrics.jsonl",
    "predictions": "run/predictions_test.npz",
    "store.json": "store/store.json",
    "shard": "store/SHARD",
    "part": part_file(Path("parts"), "part").as_posix(),
    "timeline": "timeline.json",
}
JSON_KINDS = ("best.json", "run.json", "store.json", "timeline", "metrics.jsonl")
TENSOR_KINDS = ("best.safetensors", "last.state.safetensors", "shard", "part")


def file_of(kind: str, folder: Path) -> Path:
    """The file of a kind."""
    if kind == "shard":
        return next((folder / "store").glob("shard-*"))
    return folder / FILES[kind]


# What is done to files


def cases(good: Path, seed: int = 0) -> list[Case]:
    """Every case, the same for the same seed."""
    generator = random.Random(seed)
    whole = {kind: file_of(kind, good).read_bytes() for kind in FILES}
    found: list[Case] = []
    for kind in JSON_KINDS:
        found += _by_name(kind, whole[kind])
        found += [_json_case(kind, whole[kind], generator) for _ in range(36)]
    for kind in TENSOR_KINDS:
        found += _tensor_cases(kind, whole[kind], generator)
    found += _array_cases(whole["predictions"], generator)
    for kind in FILES:
        found += [_byte_case(kind, whole[kind], generator) for _ in range(8)]
        found += [Case(kind, "empty", b"", kind != "metrics.jsonl"), Case(kind, "zeros", bytes(4096), True)]
    return found


def _changed(text: bytes, change: Callable[[Any], None]) -> bytes:
    content = json.loads(text)
    change(content)
    return json.dumps(content).encode()


def _by_name(kind: str, text: bytes) -> list[Case]:
    """What the issue of a hostile model names, and its brothers in the other files; all must be refused."""
    head = text.rstrip()[:-1]
    deep = b'{"a":' * 100_000 + b"1" + b"}" * 100_000
    raw = {
        "deep": head + b', "deep": ' + deep + b"}",
        "all deep": b"[" * 200_000,
        "a key twice": head + b', "epoch": 1, "epoch": 1}',
        "NaN": head + b', "x": NaN}',
        "infinity": head + b', "x": -Infinity}',
        "a number of many digits": head + b', "x": ' + b"9" * 10_000 + b"}",
        "UTF-16": text.decode().encode("utf-16"),
        "not UTF-8": head + b', "x": "\xff"}',
        "many values": head + b', "x": [' + b"[]," * 2_100_000 + b"[]]}",
    }
    if kind == "metrics.jsonl":  # a loss may be NaN
        del raw["NaN"], raw["infinity"]
    found = [Case(kind, name, content, True) for name, content in raw.items()]

    def put(*path: Any, value: Any) -> Callable[[Any], None]:
        def apply(content: Any) -> None:
            for key in path[:-1]:
                content = content[key]
            content[path[-1]] = value

        return apply

    classes = [
        ("classes twice", ["bell", "bell", "dog"]),
        ("background a class", ["bell", "dog", "background"]),
        ("classes a string", "abc"),
        ("a control character", ["bell", "dog", "train\x1b]0;x\x07"]),
        ("an empty class", ["bell", "dog", ""]),
        ("classes of numbers", [1, 2, 3]),
    ]
    changes: list[tuple[str, Callable[[Any], None]]] = []
    if kind in ("best.json", "store.json", "timeline"):
        changes += [(name, put("classes", value=value)) for name, value in classes]
        changes += [(f"segments of {value} s", put("segment_seconds", value=value)) for value in (0, -1, 1e300, "1")]
    if kind == "best.json":
        for name in ("visual_dim", "audio_dim", "num_classes"):
            changes += [(f"{name} {value}", put("network", name, value=value)) for value in (10**9, 0, 2.5, 10**40)]
        changes += [(f"a window of {value}", put("window", value=value)) for value in (10**9, 0, -1, "4", None)]
        changes += [
            ("unknown streams", put("streams", value="smell")),
            ("unknown task", put("network", "task", value="all")),
            ("unknown model", put("network", "name", value="rnn")),
            ("a grid of a line", put("network", "grid", value=[4])),
            ("a huge grid", put("network", "grid", value=[65536, 65536])),
            ("a huge width", put("network", "options", value={"width": 10**9})),
            ("a wide width", put("network", "options", value={"width": 65536, "heads": 2})),
            ("an option twice", put("network", "options", value={"audio_dim": 5})),
            ("an option that is a list", put("network", "options", value={"width": [8]})),
            ("another sha", put("weights_sha256", value="0" * 64)),
            ("a sha that is none", put("weights_sha256", value=7)),
            ("an extractor without tag", lambda content: content["extractors"]["audio"].pop("tag")),
        ]
    if kind == "store.json":
        for name, value in (
            ("segments", 10**9), ("segments", -1), ("row", 10**9), ("row", -1), ("shard", "../store/store.json"),
            ("shard", "/etc/passwd"), ("shard", "other"), ("spans", [["bell", 0]]), ("spans", [["bell", "0", "1"]]),
            ("duration", 1e300), ("splits", "train"), ("checksum", "0"), ("spans", [["cow", 0, 1]]),
        ):  # fmt: skip
            changes.append((f"{name} {value}", put("clips", 0, name, value=value)))
        for name, value in (("visual_dim", 10**9), ("audio_dim", 7), ("grid", [1, 1]), ("grid", [0, 0]), ("grid", 4)):
            changes.append((f"{name} {value}", put(name, value=value)))
        for name in ("..", ".", "a/b", "/dev/zero", "a\x00b", ""):
            changes.append((f"a shard called {name!r}", put("shards", 0, "name", value=name)))
    if kind == "timeline":
        for name, value in (("score", 2), ("score", None), ("start", -1), ("label", "cow"), ("end", -1)):
            changes.append((f"{name} {value}", put("events", 0, name, value=value)))
        for value in ([], [[]], [[0.5, 0.5]], [[0.5, 0.25, 1e9]], [["0.5", 0.25, 0.25]], "abc", [[0.5, 0.25, None]]):
            changes.append((f"probabilities {value}", put("probabilities", value=value)))
    if kind == "run.json":
        for name, value in (
            ("store", 7), ("window", 10**10), ("batch_size", 0), ("batch_size", "32"), ("task", "all"),
            ("select_on", "all"), ("streams", "smell"), ("cml_mode", None), ("learning_rate", -1), ("unknown", 1),
        ):  # fmt: skip
            changes.append((f"{name} {value}", put("config", name, value=value)))
        changes += [("another store", put("store_checksum", value="0")), ("threads 0", put("threads", value=0))]
        changes += [("settings a list", put("config", value=[])), ("no store", lambda c: c["config"].pop("store"))]
    return found + [Case(kind, name, _changed(text, change), True) for name, change in changes]


_VALUES: list[Any] = [None, [], {}, "", "abc", "\x1b[31m", -1, 0, 10**9, 10**30, 1.5, True, [1, 2], {"a": 1}]


def _json_case(kind: str, text: bytes, generator: random.Random) -> Case:
    """A value anywhere is dropped, renamed or another one. Some such files are sound, and say another thing."""
    content = json.loads(text)
    place = content
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = generator.choice(keys)
        if not (isinstance(place[key], dict | list) and place[key] and generator.random() < 0.7):
            break
        place = place[key]
    way = generator.choice(["drop", "rename", "other", "other", "other", "other"])
    if way == "drop":
        del place[key]
    elif way == "rename" and isinstance(place, dict):
        place[f"{key}x"] = place.pop(key)
    else:
        place[key] = generator.choice(_VALUES)
    return Case(kind, f"{way} {key}", json.dumps(content).encode())


def _byte_case(kind: str, whole: bytes, generator: random.Random) -> Case:
    """The file cut, or with a few bytes of other values."""
    if generator.random() < 0.3:
        return Case(kind, "cut", whole[: generator.randrange(len(whole))])
    changed = bytearray(whole)
    for _ in range(generator.choice([1, 1, 4, 30])):
        changed[generator.randrange(len(changed))] ^= generator.randrange(1, 256)
    return Case(kind, "bytes flipped", bytes(changed))


def _tensor_cases(kind: str, whole: bytes, generator: random.Random) -> list[Case]:
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    data = whole[8 + length :]

    def packed(changed: Any, size: int | None = None) -> bytes:
        text = changed if isinstance(changed, bytes) else json.dumps(changed).encode()
        return (len(text) if size is None else size).to_bytes(8, "little") + text + data

    names = [name for name in header if name != "__metadata__"]
    name = generator.choice(names)
    entry = header[name]
    metadata = header.get("__metadata__")
    tensors = load_tensors(whole)
    found = [
        ("cut in the header", whole[: 8 + length // 2]),
        ("cut in the length", whole[:5]),
        ("cut in the data", whole[:-10]),
        ("more at the end", whole + b"more"),
        ("a header of 2^63", packed(header, 2**63)),
        ("a header of 2^40", packed(header, 2**40)),
        ("a header of 99 MB", packed(header, 99_000_000)),
        ("a header of 0", packed(header, 0)),
        ("a deep header", packed(b"[" * 100_000)),
        ("a header that is a list", packed([])),
        ("a huge shape", packed({**header, name: {**entry, "shape": [10**12, 10**12]}})),
        ("a negative shape", packed({**header, name: {**entry, "shape": [-1]}})),
        ("another shape", packed({**header, name: {**entry, "shape": [*entry["shape"], 1]}})),
        ("an unknown type", packed({**header, name: {**entry, "dtype": "F7"}})),
        ("offsets outside", packed({**header, name: {**entry, "data_offsets": [0, 2**50]}})),
        ("offsets backwards", packed({**header, name: {**entry, "data_offsets": [8, 0]}})),
        ("no tensors", save_tensors({}, metadata)),
        ("a tensor missing", save_tensors({key: each for key, each in tensors.items() if key != name}, metadata)),
        ("another tensor", save_tensors({**tensors, "extra": np.zeros(3, np.float32)}, metadata)),
        ("other types", save_tensors({key: each.astype(np.float64) for key, each in tensors.items()}, metadata)),
        ("whole numbers", save_tensors({key: each.astype(np.int64) for key, each in tensors.items()}, metadata)),
        ("NaN", save_tensors({key: np.full_like(each, np.nan) for key, each in tensors.items()}, metadata)),
        ("infinity", save_tensors({**tensors, name: np.full_like(tensors[name], np.inf)}, metadata)),
        ("turned", save_tensors({k: np.ascontiguousarray(each[None]) for k, each in tensors.items()}, metadata)),
    ]
    if kind in ("last.state.safetensors", "part"):
        facts = json.loads(metadata["facts"])
        said = ["", "[]", "{}", "[" * 100_000, "null", '{"epoch": NaN}']
        said += [json.dumps({**facts, key: value}) for key in facts for value in (None, [], -5)]
        found += [(f"facts {text[-30:]}", save_tensors(tensors, {**metadata, "facts": text})) for text in said]
        found += [("no metadata", save_tensors(tensors))]
    # A shard may hold more than its two arrays; weights may be of float64, from a run with precision 64-true.
    free = {"shard": {"another tensor"}, "best.safetensors": {"other types"}}.get(kind, set())
    return [Case(kind, name, content, name not in free) for name, content in found]


def _array_cases(whole: bytes, generator: random.Random) -> list[Case]:
    import io

    arrays = dict(np.load(io.BytesIO(whole)))

    def saved(**changed: Any) -> bytes:
        file = io.BytesIO()
        np.savez_compressed(file, **{key: each for key, each in {**arrays, **changed}.items() if each is not None})
        return file.getvalue()

    def member(content: bytes, name: str = "labels.npy") -> bytes:
        file = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(whole)) as source, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as target:
            for each in source.namelist():
                if each != name:
                    target.writestr(each, source.read(each))
            target.writestr(name, content)
        return file.getvalue()

    def header(shape: str, kind: str = "<i8") -> bytes:
        text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
        return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text

    found = [(f"without {name}", saved(**{name: None})) for name in arrays]
    found += [(f"{name} of another kind", saved(**{name: np.array([b"x"])})) for name in arrays]
    found += [(f"{name} a part", saved(**{name: each[:1]})) for name, each in arrays.items()]
    found += [(f"{name} with an axis more", saved(**{name: each[None]})) for name, each in arrays.items()]
    found += [
        ("pickled", saved(labels=np.array([{"a": 1}], dtype=object))),
        ("NaN", saved(probabilities=np.full_like(arrays["probabilities"], np.nan))),
        ("segments below 0", saved(segments=-arrays["segments"])),
        ("huge segments", saved(segments=np.full_like(arrays["segments"], 2**60))),
        ("a huge shape", member(header("(1000000000000,)"))),
        ("a shape of huge numbers", member(header(f"({'9' * 60},)"))),
        ("a negative shape", member(header("(-1,)"))),
        ("a deep header", member(header("(" * 60))),
        ("objects", member(header("(2,)", "|O") + b"cos\nsystem\n")),
        ("a zip bomb", member(header("(1000000000,)") + bytes(2**28))),
        ("no array", member(b"hello")),
    ]
    return [Case("predictions", name, content, True) for name, content in found]


# What becomes of them


def read(kind: str, folder: Path) -> tuple[Any, Any]:
    """What avel reads from the file of a kind, and what plain readers find in it: the two must be equal."""
    file = file_of(kind, folder)
    if kind in ("best.json", "best.safetensors"):
        model = checkpoint.load(folder / "run")
        said = json.loads((folder / "run" / "best.json").read_text())
        network = said["network"]
        shape = (network["audio_dim"], *network["grid"], network["visual_dim"])
        ours = (model.name, model.task, list(model.classes), model.window, model.segment_seconds, model.extractors)
        theirs = (network["name"], network["task"], said["classes"], said["window"], said["segment_seconds"])
        weights = load_tensors((folder / "run" / "best.safetensors").read_bytes())
        state = {key: value.numpy() for key, value in model.network.state_dict().items()}
        return [*ours, model.streams, model.shape, _plain(state)], [
            *theirs, said["extractors"], said["streams"], shape, _plain(weights)
        ]  # fmt: skip
    if kind == "last.state.safetensors":
        network = build_model("ccln", audio_dim=5, visual_dim=6, grid=(2, 2), num_classes=3, task="full", **OPTIONS)
        optimizer = torch.optim.Adam(network.parameters())
        facts = msgspec.structs.asdict(checkpoint.load_state(file, network, optimizer))
        tensors = {f"network.{key}": value.numpy() for key, value in network.state_dict().items()}
        for number, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{key}": value.numpy() for key, value in state.items()}
        data = file.read_bytes()
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return [facts, _plain(tensors)], [json.loads(header["__metadata__"]["facts"]), _plain(load_tensors(data))]
    if kind == "run.json":
        facts = read_run(folder / "run")
        return {name: getattr(facts, name) for name in facts.__struct_fields__}, _known(file, facts.__struct_fields__)
    if kind == "metrics.jsonl":
        return read_metrics(folder / "run"), [json.loads(line) for line in file.read_bytes().splitlines()]
    if kind in ("store.json", "shard"):
        store = open_store(folder / "store")
        clips = []
        for index, clip in enumerate(store.clips):
            store.labels(index)
            if checksum(store.visual(index).numpy(), store.audio(index).numpy()) != clip.checksum:
                raise AvelError("other features", "those that were written", "extract again")
            spans = None if clip.spans is None else [[span.label, span.start, span.end] for span in clip.spans]
            clips.append({**msgspec.structs.asdict(clip), "spans": spans, "splits": list(clip.splits)})
        said = json.loads((folder / "store" / "store.json").read_text())
        ours = [list(store.classes), list(store.grid), store.visual_dim, store.audio_dim, store.segment_seconds]
        names = ("classes", "grid", "visual_dim", "audio_dim", "segment_seconds", "extractors", "origin", "framing")
        return [*ours, store.extractors, store.origin, store.framing, clips], [
            *(said[name] for name in names), [{"streams": "", **clip} for clip in said["clips"]]
        ]  # fmt: skip
    if kind == "part":
        part = read_part(folder / "parts", "part", SETTINGS, "s")
        if part is None:  # to be made again
            raise AvelError("no part", "one", "extract again")
        data = file.read_bytes()
        facts = json.loads(json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]["facts"])
        return {name: getattr(part, name) for name in facts}, facts
    if kind == "predictions":
        return _plain(read_predictions(folder / "run", "test")), _plain(dict(np.load(file)))
    timeline = Timeline.from_json(file)
    said = json.loads(file.read_bytes())
    names = ("video", "duration", "segment_seconds", "threshold", "min_seconds", "tags")
    spans = [
        [vars(each) for each in timeline.events],
        None if timeline.truth is None else [vars(each) for each in timeline.truth],
    ]
    ours = [*(getattr(timeline, name) for name in names), list(timeline.classes), timeline.probabilities.tolist()]
    return [*ours, spans], [
        *(said[name] for name in names), said["classes"], said["probabilities"], [said["events"], said["truth"]]
    ]  # fmt: skip


def _known(file: Path, names: tuple[str, ...]) -> Any:
    said = {"started_from": None, **json.loads(file.read_bytes())}  # earlier versions did not write it
    return {name: said[name] for name in names}


def _plain(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    return {name: (each.dtype.str, each.shape, each.tobytes()) for name, each in sorted(arrays.items())}


def outcome(case: Case, folder: Path) -> str:
    """Put the case's file among the good ones and read it: ``refused``, ``as it says``, or what is wrong.

    ``folder`` is as `write_good` made it, and is so again afterwards.
    """
    file = file_of(case.kind, folder)
    before = {path: path.read_bytes() for path in (file, folder / "run" / "best.json", folder / "store" / "store.json")}
    file.write_bytes(case.content)
    try:
        if case.kind == "best.safetensors":  # whoever can change the weights can change the hash beside them
            _reword(folder / "run" / "best.json", lambda said: said.update(weights_sha256=file_sha256(file)))
        if case.kind == "shard":
            _reword(folder / "store" / "store.json", lambda said: said["shards"][0].update(bytes=len(case.content)))
        with bounded():
            ours, theirs = read(case.kind, folder)
    except AvelError:
        return "refused"
    except Exception as error:  # noqa: BLE001 (the very thing that is looked for)
        return f"{type(error).__name__}: {error}"[:200]
    finally:
        for path, content in before.items():
            path.write_bytes(content)
    if case.must_be_refused:
        return "taken, though it must be refused"
    return "as it says" if ours == theirs else "misread"


def _reword(file: Path, change: Callable[[Any], None]) -> None:
    said = json.loads(file.read_text())
    change(said)
    file.write_text(json.dumps(said))


class HangError(Exception):
    """A case that does not come to an end."""


@contextmanager
def bounded() -> Iterator[None]:
    """Bound memory, so that a large allocation is a MemoryError, and time, so that a hang is a HangError."""

    def stop(*_: Any) -> None:
        raise HangError

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    former = signal.signal(signal.SIGALRM, stop)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, hard))
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGALRM, former)


# Folders

COMMANDS = ("check", "train", "evaluate", "localize", "export-h5")


def _link(to: str | Path) -> Callable[[Path], None]:
    def put(file: Path) -> None:
        file.symlink_to(to)

    return put


def _sparse(head: bytes = b"") -> Callable[[Path], None]:
    def put(file: Path) -> None:
        file.write_bytes(head)
        os.truncate(file, 2**40)

    return put


def _huge_tensors(file: Path) -> None:
    """A terabyte that its header describes rightly, and that takes no room."""
    text = json.dumps({"visual": {"dtype": "U8", "shape": [2**40], "data_offsets": [0, 2**40]}}).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(file, 8 + len(text) + 2**40)


#: What lies in the folder, which file of it, and what stands in that file's place. ``OUT`` is a good twin elsewhere.
FOLDERS: list[tuple[str, str, Callable[[Path], None] | str]] = [
    ("store.json is a pipe", "store/store.json", os.mkfifo),
    ("store.json leads to /dev/zero", "store/store.json", _link("/dev/zero")),
    ("store.json is a folder", "store/store.json", Path.mkdir),
    ("store.json leads out", "store/store.json", "OUT"),
    ("store.json leads nowhere", "store/store.json", _link("nowhere")),
    ("store.json leads to itself", "store/store.json", _link("store.json")),
    ("store.json of a terabyte", "store/store.json", _sparse()),
    ("a shard is a pipe", "store/SHARD", os.mkfifo),
    ("a shard leads to /dev/zero", "store/SHARD", _link("/dev/zero")),
    ("a shard is a folder", "store/SHARD", Path.mkdir),
    ("a shard leads out", "store/SHARD", "OUT"),
    ("a shard of a terabyte", "store/SHARD", _huge_tensors),
    ("a shard called ../..", "store/store.json", "../../"),
    ("a shard called by its whole path", "store/store.json", "/"),
    ("best.json is a pipe", "run/best.json", os.mkfifo),
    ("best.json leads out", "run/best.json", "OUT"),
    ("best.json of a terabyte", "run/best.json", _sparse(b"{")),
    ("the weights are a pipe", "run/best.safetensors", os.mkfifo),
    ("the weights lead to /dev/zero", "run/best.safetensors", _link("/dev/zero")),
    ("the weights lead out", "run/best.safetensors", "OUT"),
    ("the weights of a terabyte", "run/best.safetensors", _huge_tensors),
    ("run.json is a pipe", "run/run.json", os.mkfifo),
    ("run.json leads to /dev/zero", "run/run.json", _link("/dev/zero")),
    ("run.json leads out", "run/run.json", "OUT"),
    ("the state is a pipe", "run/last.state.safetensors", os.mkfifo),
    ("metrics.jsonl leads to /dev/zero", "run/metrics.jsonl", _link("/dev/zero")),
]


def make_folder(good: Path, folder: Path, place: str, put: Callable[[Path], None] | str) -> None:
    """A copy of the good folder with one hostile file; its run was trained on its own store."""
    for part in ("store", "run"):
        shutil.copytree(good / part, folder / part, ignore=shutil.ignore_patterns("plots"))
    _reword(folder / "run" / "run.json", lambda said: said["config"].update(store=str(folder / "store")))
    file = file_of("shard", folder) if place.endswith("SHARD") else folder / place
    if put == "OUT":
        (folder / "out").mkdir()
        shutil.move(file, folder / "out" / file.name)
        file.symlink_to(folder / "out" / file.name)
    elif isinstance(put, str):
        shard = file_of("shard", folder)
        shutil.move(shard, folder / shard.name)
        name = f"../{shard.name}" if put.startswith("..") else str(folder / shard.name)

        def rename(said: Any) -> None:
            said["shards"][0]["name"] = name
            for clip in said["clips"]:
                clip["shard"] = name

        _reword(file, rename)
    else:
        file.unlink()
        put(file)
        if place.endswith("SHARD"):
            size = file.stat().st_size
            _reword(folder / "store" / "store.json", lambda said: said["shards"][0].update(bytes=size))
    # A stranger's run says what fits: the store's new checksum.
    with suppress(OSError, AvelError, ValueError):
        index = folder / "store" / "store.json"
        if place.startswith("store/") and index.is_file() and index.stat().st_size < 2**20:
            checksum = file_sha256(index)
            _reword(folder / "run" / "run.json", lambda said: said.update(store_checksum=checksum))


def command_outcome(command: str, folder: Path, hostile: str) -> str:
    """``refused``, ``done``, or what is wrong. The folder is what the command is given, be it a store or a run."""
    given = folder / hostile.split("/")[0]
    began = time.perf_counter()
    try:
        with bounded():
            if command == "check":
                return "refused" if exit_code(check(given, window=4)) else "done"
            if command == "train":
                out = folder / ("run" if given.name == "run" else "new")
                train(TrainConfig(folder / "store", out, options=OPTIONS, window=4, epochs=1, device="cpu", threads=1))
            elif command == "evaluate":
                evaluate(folder / "run", "test")
            elif command == "localize":
                avel.localize(folder / "no.mp4", given)
            else:
                export_h5(given, folder / "h5")
        return "done"
    except AvelError:
        return "refused"
    except Exception as error:  # noqa: BLE001 (the very thing that is looked for)
        return f"{type(error).__name__}: {error} after {time.perf_counter() - began:.1f} s"[:200]
