"""Training on many processes: the gradients, weights, numbers and files of one process that has the whole batch."""

import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from safetensors.torch import load_file, save_file
from synthetic import CLASSES, write_store
from torch.distributed import TCPStore

from avel import cli, training
from avel.checkpoint import load
from avel.cml import Direction, by_length, events
from avel.config import TrainConfig
from avel.data.loader import Windows, task_split
from avel.data.store import open_store
from avel.models import build_model
from avel.training import Update, fit_epoch, plan, scores_on, train

pytestmark = pytest.mark.usefixtures("one_thread")

PROCESSES = 2
TINY = {"width": 8, "heads": 2, "branch": "AV+V+A"}
EXACT = {**TINY, "dropout": 0.0}

# As torchrun starts them, but from a server that has torch imported already: it takes seconds each.
CHILDREN = multiprocessing.get_context("forkserver")
CHILDREN.set_forkserver_preload(["avel.training", "avel.cli", "pytest"])


def together(work: Callable[..., None], *arguments: object) -> list[int | None]:
    """Run ``work(rank, *arguments)`` on every process of a group; their exit codes, -SIGKILL for one that hung."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # as torchrun's, at a port that is free
    started = [CHILDREN.Process(target=as_rank, args=(rank, store.port, work, arguments)) for rank in range(PROCESSES)]
    for process in started:
        process.start()
    for process in started:
        process.join(120)
        process.kill()
        process.join()
    return [process.exitcode for process in started]


def as_rank(rank: int, port: int, work: Callable[..., None], arguments: tuple[object, ...]) -> None:
    local = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": PROCESSES, "LOCAL_WORLD_SIZE": PROCESSES}
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GROUP_RANK": 0}
    elastic = {"TORCHELASTIC_RUN_ID": "test", "TORCHELASTIC_USE_AGENT_STORE": True, "TORCHELASTIC_RESTART_COUNT": 0}
    os.environ.update({name: str(value) for name, value in {**local, **place, **elastic}.items()})
    torch.set_num_threads(1)
    work(rank, *arguments)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store: 19 clips to train on, 9 in val, so that two processes do not divide them."""
    folder = tmp_path_factory.mktemp("parallel")
    write_store(folder / "store", clips=37, background=6)
    return folder


# --- the gradients of one update ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """An update: what is trained, and in which direction where that is ``strict``."""

    task: str
    options: dict[str, Any] = field(default_factory=dict)
    query: Direction | None = None
    weak_labels: Any = "onehot"


CASES = {
    "full": Case("full"),
    "full, FEE of segments": Case("full", {"fee_level": "segment"}),
    "full, as printed": Case(
        "full", {"classification": "sigmoid_focal", "wccl_reduction": "sum", "fee_gate": "product"}
    ),
    "weak": Case("weak"),
    "weak, proportion": Case("weak", {"classification": "sigmoid_focal"}, weak_labels="proportion"),
    "cml joint": Case("cml"),
    "cml joint, all pairs": Case("cml", {"cml_pairs": "all"}),
    "cml strict a2v": Case("cml", query="a2v"),
    "cml strict v2a": Case("cml", query="v2a"),
}


def shares(windows: Windows, case: Case) -> tuple[list[int], list[int]]:
    """What each process gets: unequal numbers of videos with an event, and the class ``train`` on the first alone."""
    videos = windows.batch(range(len(windows))).target.video.tolist()
    bells, dogs, trains, silent = ([i for i, video in enumerate(videos) if video == c] for c in range(4))
    if case.query:  # one length of event a batch
        asked = by_length(events(windows))[2]
        bells, dogs, trains = ([index for index in group if index in asked] for group in (bells, dogs, trains))
        return [trains[0], bells[0], trains[1]], [dogs[0], *bells[1:3]]
    return [*bells[:2], dogs[0], *trains[:3]], [bells[2], dogs[1], *silent[:4]]


def gradients(fabric: Fabric, store: Path, case: Case, only: int | None = None) -> dict[str, torch.Tensor]:
    """Gradients and terms of one update in double precision, by the loop that trains; of one share, if ``only``."""
    opened = open_store(store)
    clips = [*opened.split("train"), *opened.split("background")]
    windows = Windows(opened, clips, 6, weak_labels=case.weak_labels)
    torch.manual_seed(0)
    shapes = {"audio_dim": opened.audio_dim, "visual_dim": opened.visual_dim, "grid": opened.grid, "num_classes": 3}
    network = build_model("ccln", **shapes, task=case.task, **EXACT, **case.options).double()
    model, optimizer = fabric.setup(network, torch.optim.Adam(network.parameters()))
    parts = shares(windows, case)
    order = [index for pair in zip(*parts, strict=True) for index in pair] if only is None else parts[only]
    settings = TrainConfig(store, store, task=case.task)  # type: ignore[arg-type]
    terms = fit_epoch(fabric, model, optimizer, windows, [Update(order, case.query)], settings)
    found = {f"term {name}": torch.tensor(value, dtype=torch.float64) for name, value in terms.items()}
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None
        found[name] = parameter.grad.clone()
    return found


def save_gradients(rank: int, folder: Path) -> None:
    fabric = training._fabric(TrainConfig(folder, folder), torch.device("cpu"))
    assert (fabric.world_size, fabric.global_rank) == (PROCESSES, rank)
    for name, case in CASES.items():
        save_file(gradients(fabric, folder / "store", case), folder / f"{name}-{rank}.safetensors")


@pytest.fixture(scope="module")
def shared_gradients(folder: Path) -> Path:
    assert together(save_gradients, folder) == [0, 0]
    return folder


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradients_are_those_of_the_joint_batch(name: str, shared_gradients: Path) -> None:
    alone = Fabric(accelerator="cpu", devices=1)
    expected = gradients(alone, shared_gradients / "store", CASES[name])
    weights = [key for key in expected if not key.startswith("term ")]
    largest = max(float(expected[key].abs().max()) for key in weights)
    for rank in range(PROCESSES):
        found = load_file(shared_gradients / f"{name}-{rank}.safetensors")
        assert set(found) == set(expected)
        for key, gradient in expected.items():
            assert float((found[key] - gradient).abs().max()) < 1e-9 * largest, key
    # The mean of the gradients that each process would find by itself is something else, or this could not fail.
    apart = [gradients(alone, shared_gradients / "store", CASES[name], only) for only in range(PROCESSES)]
    assert (
        max(float(((apart[0][key] + apart[1][key]) / 2 - expected[key]).abs().max()) for key in weights)
        > 1e-3 * largest
    )


def test_the_shares_are_unequal(folder: Path) -> None:
    opened = open_store(folder / "store")
    windows = Windows(opened, [*opened.split("train"), *opened.split("background")], 6)
    for case in CASES.values():
        one, other = (windows.batch(share).target.video.tolist() for share in shares(windows, case))
        assert CLASSES.index("train") in one and CLASSES.index("train") not in other
        assert case.query or (sum(video < 3 for video in one), sum(video < 3 for video in other)) == (6, 2)


# --- whole runs -----------------------------------------------------------------------------------------------------


def config(folder: Path, out: str, **changes: object) -> TrainConfig:
    settings = {"window": 6, "epochs": 3, "batch_size": 8, "device": "cpu", "threads": 1, "options": EXACT}
    return TrainConfig(folder / "store", folder / out, **{**settings, **changes})  # type: ignore[arg-type]


RUNS: dict[str, dict[str, object]] = {
    "full": {"schedule": "cosine"},
    "full, one epoch": {"epochs": 1, "batch_size": 4},
    "weak": {"task": "weak", "validate_every": 2, "gradient_clipping": 0.01},  # every gradient is larger
    "joint": {"task": "cml", "epochs": 2},
    "strict": {"task": "cml", "cml_mode": "strict", "batch_size": 4, "epochs": 2},
}
RUNS = {name: {**changes, "precision": "64-true"} for name, changes in RUNS.items()}
#: Nothing left out: dropout and noise differ from process to process, in single precision.
NOISY: dict[str, object] = {"options": TINY, "feature_noise": 0.1, "epochs": 3}


def run_all(rank: int, folder: Path) -> None:
    """All of `RUNS`, then the noisy one; a process but the first may not write."""
    said: list[str] = []
    if rank:
        os.replace = refuse  # type: ignore[assignment]
    results = {
        name: train(config(folder, f"two/{name}", **changes), notice=said.append) for name, changes in RUNS.items()
    }
    dice = note_dice()
    results["noisy"] = train(config(folder, "two/noisy", **NOISY), notice=said.append)
    (folder / f"dice-{rank}.json").write_text(json.dumps(dice))
    found = {name: [run.best_epoch, run.best_accuracy, run.metrics] for name, run in results.items()}
    (folder / f"said-{rank}.json").write_text(json.dumps([said, found]))


def note_dice() -> list[list[float]]:
    """From now on, what the generator would draw as each epoch begins."""
    dice: list[list[float]] = []

    def noted(*arguments: Any) -> dict[str, float]:
        with torch.random.fork_rng(devices=[]):
            dice.append(torch.rand(4).tolist())
        return fit_epoch(*arguments)

    training.fit_epoch = noted  # type: ignore[assignment]
    return dice


def refuse(*_: object) -> None:
    raise RuntimeError("only the first process writes")


@pytest.fixture(scope="module")
def two(folder: Path) -> Path:
    assert together(run_all, folder) == [0, 0]
    return folder / "two"


def lines(run: Path) -> list[dict[str, Any]]:
    """The metric lines without their times."""
    return [
        {key: value for key, value in json.loads(line).items() if key != "seconds"}
        for line in (run / "metrics.jsonl").read_text().splitlines()
    ]


def flat(values: dict[str, Any]) -> dict[str, float]:
    return {
        f"{key} {name}": number
        for key, value in values.items()
        for name, number in (value.items() if isinstance(value, dict) else [("", value)])
    }


@pytest.mark.parametrize("name", RUNS)
def test_a_run_of_two_processes_is_that_of_one(
    name: str, two: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    same = replace(config(folder, "", **RUNS[name]), out=tmp_path / "one")

    def trimmed(windows: Windows, config: TrainConfig, epoch: int, *_: object) -> list[Update]:
        return plan(windows, config, epoch, PROCESSES)

    monkeypatch.setattr(training, "plan", trimmed)
    alone = train(same)
    assert {file.name for file in (two / name).iterdir()} == {file.name for file in same.out.iterdir()}
    for file in ("last", "best"):
        one, other = load_file(same.out / f"{file}.safetensors"), load_file(two / name / f"{file}.safetensors")
        assert all(value.dtype == torch.float64 for value in one.values()) and set(one) == set(other)
        assert max(float((one[key] - other[key]).abs().max()) for key in one) < 1e-6
    assert [line["epoch"] for line in lines(two / name)] == list(range(1, same.epochs + 1))
    for line, expected in zip(lines(two / name), lines(same.out), strict=True):
        assert flat(line) == pytest.approx(flat(expected), abs=1e-9)
    described = [json.loads((run / "best.json").read_text()) for run in (two / name, same.out)]
    assert [(each["epoch"], each["accuracy"]) for each in described] == [(alone.best_epoch, alone.best_accuracy)] * 2
    facts, expected_facts = (json.loads((run / "run.json").read_text()) for run in (two / name, same.out))
    for each in (facts, expected_facts):
        del each["config"]["out"], each["commit"]
    assert facts.pop("processes") == 2 and expected_facts.pop("processes") == 1
    assert facts == expected_facts


@pytest.mark.parametrize("name", RUNS)
def test_accuracies_are_exact(name: str, two: Path, folder: Path) -> None:
    settings = config(folder, "", **RUNS[name])
    store = open_store(folder / "store")
    windows = Windows(store, task_split(store, "val", settings.task), 6)
    assert len(windows) % PROCESSES, "the processes have shares of different size"
    network = load(two / name / "last.json").network
    assert scores_on(Fabric(accelerator="cpu", devices=1), network, windows, settings) == lines(two / name)[-1]["val"]


def test_every_process_knows_the_same_and_the_first_alone_speaks(two: Path) -> None:
    (said, found), (silence, also_found) = (
        json.loads((two.parent / f"said-{rank}.json").read_text()) for rank in range(PROCESSES)
    )
    assert silence == []
    for name, (best_epoch, best_accuracy, metrics) in found.items():
        assert also_found[name][:2] == [best_epoch, best_accuracy]
        assert [{**line, "seconds": 0} for line in metrics] == [{**line, "seconds": 0} for line in also_found[name][2]]
        assert metrics == [json.loads(line) for line in (two / name / "metrics.jsonl").read_text().splitlines()]
    # Of 19 windows in batches of 8 one is left out; the notice comes once, however many epochs follow.
    full = "some batches do not divide evenly among 2 processes: each epoch leaves out 1 window"
    assert said[0].startswith("features: ") and said[0].endswith(" MB, which fit in memory") and said[1] == full
    assert sum("do not divide" in line for line in said) == len(found)


def test_dropout_and_noise_are_drawn_anew_in_every_epoch_of_every_process(two: Path) -> None:
    """Alike on all processes, they would be alike for the windows at one place of the shares of a batch."""
    dice = [json.loads((two.parent / f"dice-{rank}.json").read_text()) for rank in range(PROCESSES)]
    assert [len(epochs) for epochs in dice] == [3] * PROCESSES
    assert len({tuple(thrown) for epochs in dice for thrown in epochs}) == 3 * PROCESSES


def test_no_file_is_left_half_written(two: Path) -> None:
    assert not list(two.rglob(".*"))
    weights = load_file(two / "noisy" / "last.safetensors")
    assert all(value.isfinite().all() for value in weights.values())
    load(two / "noisy")  # the hash in the description is that of the weights


# --- killed, then resumed -------------------------------------------------------------------------------------------


def train_noisy(rank: int, folder: Path, out: str) -> None:
    train(config(folder, out, **NOISY))


def die(rank: int, folder: Path, out: str, who: int, module: str, name: str, count: int) -> None:
    """Train, and have the process ``who`` die before the ``count``-th call of a function."""
    function, left = getattr(sys.modules[module], name), count

    def wrapped(*arguments: object, **options: object) -> object:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)

    if rank == who:
        setattr(sys.modules[module], name, wrapped)
    train_noisy(rank, folder, out)


@pytest.mark.parametrize(
    ("who", "module", "name", "count"),
    [
        pytest.param(0, "avel.checkpoint", "save_state", 2, id="the one that writes"),
        pytest.param(1, "avel.training", "scores_on", 3, id="the other", marks=pytest.mark.slow),
    ],
)
def test_after_a_kill_two_processes_end_as_if_never_killed(
    who: int, module: str, name: str, count: int, two: Path, folder: Path
) -> None:
    out = f"killed {who}"
    codes = together(die, folder, out, who, module, name, count)
    assert codes[who] == -signal.SIGKILL and codes[1 - who] not in (0, -signal.SIGKILL), "the other one does not hang"
    finished = [line["epoch"] for line in lines(folder / out)]
    assert finished == [1, 2], "the metric lines of an unfinished epoch are written over"
    assert together(train_noisy, folder, out) == [0, 0]
    assert lines(folder / out) == lines(two / "noisy")
    for file in ("last.safetensors", "last.state.safetensors", "best.safetensors", "best.json"):
        assert (folder / out / file).read_bytes() == (two / "noisy" / file).read_bytes()


# --- what a user can get wrong --------------------------------------------------------------------------------------

TRAIN = ["train", "--window=6", "--device=cpu", "--threads=1", "--options.width=8", "--options.heads=2", "--epochs=2"]


def get_wrong(rank: int, folder: Path, cases: dict[str, list[str]]) -> None:
    """Run the command line on each case, the last one with a full disk; what is said goes to a file for each rank."""
    codes = {}
    for name, words in cases.items():
        if name == "full disk" and rank == 0:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        with open(folder / f"{name}-{rank}.txt", "w") as said, redirect_stderr(said), redirect_stdout(said):
            codes[name] = cli.main(words)
    (folder / f"codes-{rank}.json").write_text(json.dumps(codes))


@pytest.fixture(scope="module")
def wrong(two: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    said = tmp_path_factory.mktemp("wrong")
    (said / "mine").mkdir()
    (said / "mine" / "thesis.tex").write_text("mine")
    store = f"--store={folder / 'store'}"
    cases = {
        "no store": [*TRAIN, f"--store={folder / 'nowhere'}", f"--out={said / 'no store'}"],
        "no option": [*TRAIN, store, f"--out={said / 'no option'}", "--options.widht=3"],
        "another run": [*TRAIN, store, f"--out={two / 'noisy'}", "--learning_rate=0.1"],
        "other things": [*TRAIN, store, f"--out={said / 'mine'}"],
        "few windows": [*TRAIN, store, f"--out={said / 'few windows'}", "--batch_size=1"],
        "no number": [*TRAIN, store, f"--out={said / 'no number'}", "--learning_rate=1e30"],
        "full disk": [*TRAIN, store, f"--out={said / 'full disk'}"],
    }
    assert together(get_wrong, said, cases) == [0, 0]
    return said


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no store", "no feature store in"),
        ("no option", "ccln has no option 'widht'"),
        ("another run", "holds a run with different settings"),
        ("other things", "is not a run folder"),
        ("few windows", "2 processes share batches of at most 1 windows"),
        ("no number", "--learning-rate"),
        ("full disk", "could not write"),
    ],
)
def test_a_mistake_is_told_in_words_by_every_process(name: str, words: str, wrong: Path) -> None:
    for rank in range(PROCESSES):
        assert json.loads((wrong / f"codes-{rank}.json").read_text())[name] == cli.BAD_INPUT
        said = (wrong / f"{name}-{rank}.txt").read_text()
        assert words in said and "do this:" in said and "Traceback" not in said
    assert [file.name for file in (wrong / "mine").iterdir()] == ["thesis.tex"]
    assert not list((wrong / "full disk").glob(".*.tmp"))


# --- torchrun itself ------------------------------------------------------------------------------------------------


def torchrun(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={PROCESSES}"]
    return subprocess.run([*command, "-m", "avel", *TRAIN, *words], capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def by_torchrun(folder: Path) -> tuple[Path, subprocess.CompletedProcess[str]]:
    words = ["--batch-size=8", "--epochs=3", "--feature-noise=0.1", "--options.branch=AV+V+A", "--seeds", "0", "1"]
    return folder / "runs", torchrun(*words, f"--store={folder / 'store'}", f"--out={folder / 'runs'}")


@pytest.mark.slow
def test_torchrun_trains_several_seeds(by_torchrun: tuple[Path, subprocess.CompletedProcess[str]], two: Path) -> None:
    runs, done = by_torchrun
    assert done.returncode == 0, done.stderr
    assert sorted(run.name for run in runs.iterdir()) == ["seed-0", "seed-1"]
    names = {file.name for file in (two / "noisy").iterdir()}
    for seed in (0, 1):
        assert {file.name for file in (runs / f"seed-{seed}").iterdir()} == names
        assert json.loads((runs / f"seed-{seed}" / "run.json").read_text())["seed"] == seed
        assert [line["updates"] for line in lines(runs / f"seed-{seed}")] == [3, 6, 9]
    assert lines(runs / "seed-0") == lines(two / "noisy") != lines(runs / "seed-1")
    for file in ("last.safetensors", "last.state.safetensors", "best.safetensors"):
        assert (runs / "seed-0" / file).read_bytes() == (two / "noisy" / file).read_bytes()
        assert (runs / "seed-1" / file).read_bytes() != (two / "noisy" / file).read_bytes()
    assert done.stderr.count("each epoch leaves out 1 window") == 1
    assert done.stderr.count("which fit in memory") == 1
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_torchrun_prints_results_once(by_torchrun: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    assert [by_torchrun[1].stdout.count(f"seed {seed}: val accuracy") for seed in (0, 1)] == [1, 1]


@pytest.mark.slow
def test_torchrun_tells_a_mistake_in_words(folder: Path, tmp_path: Path) -> None:
    for words, said in (([f"--store={tmp_path / 'nowhere'}"], "no feature store in"), ([], "is not a run folder")):
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / "thesis.tex").write_text("mine")
        done = torchrun(f"--store={folder / 'store'}", f"--out={tmp_path / 'out'}", *words)
        assert done.returncode != 0 and said in done.stderr and "do this:" in done.stderr
        assert "exitcode  : 2" in done.stderr  # torchrun's own report, after a traceback of its own
        assert "[rank" not in done.stderr, "no process ends with a traceback"
