"""What a run survives: kills, full disks, signals, damage; tests/test_faults_data.py is about its data."""

import csv
import json
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from conftest import has_trained, metrics, until, weights

import compare
import new_model
import sample
import train_pretrain
import train_sft
from cli import Mistake
from data.examples import Reading, from_instructions
from data.text import token_file
from data.tokenizer import load_tokenizer
from evaluate import token_nll
from run import resume
from run.device import GradientScale
from run.signals import asked_to_stop
from store import checked, checkpoint, learned
from tests import kill
from tests.process import Process

ROOT = Path(__file__).parent.parent
METHODS = ["pretrain", "sft", "lora", "lora_sft"]


def files(run):
    """All but the seconds in metrics.csv."""
    return kill.outcome(Path(run))


# ---- saving --------------------------------------------------------------------------------------------------------


def test_runs_killed_at_random_moments_and_resumed_are_bit_equal(builtin, capsys):
    """By hand: python -m tests.kill --times 50."""
    methods = ["pretrain", "lora", "tagger", "mlm"]
    assert kill.main(4, seed=int(os.environ.get("KILL_SEED", 0)), methods=methods, data=builtin) == 0
    assert "4 of 4 ended bit-equal" in capsys.readouterr().out


def test_kill_9_in_the_midst_of_a_save_leaves_the_previous_checkpoint(tmp_path):
    """A child saves without end, and is killed ten times; what is there always loads."""
    program = (
        "import sys, torch; from pathlib import Path; from store import checked\n"
        "for n in range(10**9): checked.write(Path(sys.argv[1]), {'n': n, 'w': torch.full((300_000,), float(n))})\n"
    )
    path, found = tmp_path / "last.pt", []
    for moment in range(10):
        path.unlink(missing_ok=True)
        child = Process("-c", program, path)
        until(child, path.exists)
        time.sleep(0.05 + 0.013 * moment)
        child.kill()
        child.wait()
        contents = checked.read(path, ("n", "w"))
        assert (contents["w"] == contents["n"]).all()
        found.append((path.stat().st_size, list(tmp_path.iterdir())))
    assert len({size for size, _ in found}) == 1


def test_a_stale_temporary_file_is_removed_at_the_next_start(train, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        stopped(train, "sft", at=2, steps=4)
    [run] = tmp_path.glob("run*")
    (run / "best").mkdir()
    for name in ("last.pt.unfinished", "best/tokenizer.tiktoken.unfinished"):
        (run / name).write_bytes(b"half of it")
    train("sft", steps=4, resume=True, out=run)
    assert not list(run.rglob("*.unfinished"))


@pytest.mark.skipif(
    not Path("/proc/self/mounts").exists() or os.geteuid() != 0, reason="mounts a small disk: needs root"
)
def test_a_full_disk_is_a_clear_error_and_the_good_file_stays(tmp_path):
    """On a real file system of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        checked.write(disk / "last.pt", {"w": torch.ones(50_000)})
        with pytest.raises(OSError, match="No space left on device"):
            checked.write(disk / "last.pt", {"w": torch.zeros(500_000)})
        assert checked.read(disk / "last.pt", ("w",))["w"].sum() == 50_000
        assert [path.name for path in disk.iterdir()] == ["last.pt"]
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_disk_that_fills_up_in_training_ends_in_a_sentence_and_the_last_save_stays(base, text, tmp_path):
    """In a script, where the limit is on the size of a file."""
    limited = (
        "import resource, runpy, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, 600_000))\n"
        "runpy.run_path('train_pretrain.py', run_name='__main__')\n"
    )
    new_model.main(new_model.Config(out=str(tmp_path / "new"), n_layer=2, n_head=2, n_embd=64, block_size=32))
    flags = ["--text", text, "--init-from", tmp_path / "new", "--block-size", "32", "--out", tmp_path / "run"]
    child = Process("-c", limited, *flags, "--steps", "9", "--save-every", "2", "--device=cpu")
    said = child.communicate()[1]
    assert child.returncode == 2 and "Traceback" not in said and "File too large" in said
    assert not list((tmp_path / "run").glob("*.unfinished")) and not (tmp_path / "run" / "last.pt").exists()


def test_a_disk_that_fills_up_while_a_text_is_tokenised_is_named(tmp_path, monkeypatch):
    import resource  # Windows has none

    monkeypatch.setenv("FINETUNING_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text.txt").write_text("to and fro " * 1000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match="File too large") as error:
            token_file(tmp_path / "text.txt", load_tokenizer("bytes"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert Path(error.value.filename).parent == tmp_path / "cache" and not list((tmp_path / "cache").iterdir())


def test_an_output_folder_that_cannot_be_written_is_said_before_training(text, base, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for out, sentence in [
        (tmp_path / "file" / "run", "cannot be written"),
        (Path("/proc/run"), r"/proc|No such file"),
    ]:
        monkeypatch.setattr(train_pretrain, "token_nll", lambda *args: pytest.fail("it trains"))
        with pytest.raises((Mistake, OSError), match=sentence):
            train_pretrain.main(train_pretrain.Config(text=text, init_from=base, out=str(out), device="cpu"))


def test_two_runs_into_one_folder_are_refused_without_resume(train, base, text):
    _, run = train("pretrain")
    again = {"text": text, "init_from": base, "block_size": 192, "device": "cpu"}
    for settings, sentence in [
        ({"out": str(run)}, "holds a run already: give another --out, or delete it$"),
        ({"out": base}, "holds a run already"),
        ({"out": str(run), "resume": True}, "is finished: to train it further, begin another run with --init-from"),
    ]:
        before = files(run)
        with pytest.raises(Mistake, match=sentence):
            train_pretrain.main(train_pretrain.Config(**again, **settings))
        assert files(run) == before


def test_a_second_process_is_refused_while_the_first_writes(train, base, text, tmp_path):
    """The same command twice at once, and two that resume: one of them trains. The lock goes with its process."""
    with pytest.raises(KeyboardInterrupt):
        stopped(train, "pretrain", at=1, out=tmp_path / "run")
    holder = "import sys, time; from pathlib import Path; from data import files; lock = files.lock(Path(sys.argv[1]))"
    child = Process("-c", f"{holder}; print('held', flush=True); time.sleep(600)", tmp_path / "run")
    child.wait_for("held")
    for go_on in (True, False):
        with pytest.raises(Mistake, match=r"another run is writing to .*run right now: give another --out, or wait"):
            train("pretrain", out=tmp_path / "run", resume=go_on)
    child.kill()
    child.wait()
    train("pretrain", out=tmp_path / "run", resume=True)


# ---- resuming ------------------------------------------------------------------------------------------------------


def stopped(train, method, at, **settings):
    """A run that gets Ctrl-C in the midst of a step."""
    log = train_pretrain.Session.log

    def interrupted(session, step, *args):
        if step == at - 1 and not session.config.resume:
            os.kill(os.getpid(), signal.SIGINT)
        return log(session, step, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_pretrain.Session, "log", interrupted)
        return train(method, **settings)


def interrupted_in_the_last_evaluation(train, method, **settings):
    calls, judge = [], train_sft.token_nll

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return judge(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_sft, "token_nll", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(method, **settings)


def test_what_fails_after_the_last_step_costs_no_step(train, tmp_path, monkeypatch):
    """An interrupt in the last evaluation, a full disk at model.pt, a kill between model.pt and sample.txt."""
    _, whole = train("sft", steps=3)
    interrupted_in_the_last_evaluation(train, "sft", steps=3)
    [run] = [path for path in tmp_path.glob("run*") if path != whole]
    (run / "model.pt").write_bytes(b"half a model")
    step = train_sft.Session.log
    monkeypatch.setattr(train_sft.Session, "log", lambda *args: pytest.fail("it trains again"))
    train("sft", steps=3, resume=True, out=run)
    assert files(run) == files(whole)
    monkeypatch.setattr(train_sft.Session, "log", step)
    (run / "sample.txt").unlink()
    with pytest.raises(Mistake, match=r"holds model\.pt, but not the last\.pt to go on from: give another --out"):
        train("sft", steps=3, resume=True, out=run)


@pytest.mark.parametrize("damage", [b"", None, b"\xff\xfe\0\0", b"step,loss\n0,1\n"])
def test_a_damaged_metrics_file_costs_its_rows_and_not_the_run(damage, train, tmp_path, capsys):
    _, whole = train("sft", steps=4)
    with pytest.raises(KeyboardInterrupt):
        stopped(train, "sft", at=2, steps=4)
    [run] = [path for path in tmp_path.glob("run*") if path != whole]
    (run / "metrics.csv").unlink()
    if damage is not None:
        (run / "metrics.csv").write_bytes(damage)
    train("sft", steps=4, resume=True, out=run)
    assert "lacks the rows of 2 steps" in capsys.readouterr().out
    assert metrics(run, "step") == ["2", "3"]
    assert (run / "model.pt").read_bytes() == (whole / "model.pt").read_bytes()


@pytest.mark.parametrize("raised", [KeyboardInterrupt, SystemExit(143)])
def test_a_signal_in_the_midst_of_a_save_is_that_signal_and_leaves_the_old_file(raised, tmp_path, monkeypatch):
    checked.write(tmp_path / "last.pt", {"n": 1})
    save = torch.save

    class Slow:
        def __init__(self, file):
            self.file = file

        def write(self, piece):
            raise raised

        def __getattr__(self, name):
            return getattr(self.file, name)

    monkeypatch.setattr(torch, "save", lambda contents, file: save(contents, Slow(file)))
    with pytest.raises(type(raised) if isinstance(raised, BaseException) else raised):
        checked.write(tmp_path / "last.pt", {"n": 2})
    assert checked.read(tmp_path / "last.pt", ("n",)) == {"n": 1} and len(list(tmp_path.iterdir())) == 1


def test_a_resumed_run_in_fp16_goes_on_with_the_scale_that_it_had(train, tmp_path, monkeypatch):
    """Here it doubles every second step; beginning anew with 65,536 would differ."""
    monkeypatch.setattr(GradientScale, "GOOD_STEPS", 2)
    how = {"steps": 6, "precision": "fp16", "learning_rate": 1e-3}
    _, whole = train("sft", **how)
    with pytest.raises(KeyboardInterrupt):
        stopped(train, "sft", at=4, **how)
    [run] = [path for path in tmp_path.glob("run*") if path != whole]
    contents = checked.read(run / "last.pt", resume.LAST)
    scale, good_steps = contents["scale"]
    assert scale == 2**18 and good_steps == 4
    train("sft", **how, resume=True, out=run)
    assert files(run) == files(whole)


def test_a_comparison_that_is_killed_takes_its_training_with_it_saved(base, instructions, tmp_path):
    """Else two processes would train into one folder after --resume; and it ends, since nobody waits for its result."""
    program = (
        "import os, sys, compare, train_sft\n"
        "def train(config):\n"
        "    print(os.getpid(), flush=True)\n"
        "    return train_sft.main(config)\n"
        "if __name__ == '__main__':\n"
        "    out, instructions, base = sys.argv[1:]\n"
        "    how = dict(instructions=instructions, init_from=base, steps=100_000, block_size=192, device='cpu')\n"
        "    config = train_sft.Config(out=out, **how)\n"
        "    compare.in_own_process(train, config)\n"
    )
    (tmp_path / "program.py").write_text(program, encoding="utf-8")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    run = tmp_path / "run"
    program = [sys.executable, str(tmp_path / "program.py"), str(run), instructions, base]
    parent = subprocess.Popen(program, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    trainer = Path("/proc", parent.stdout.readline().strip(), "stat")
    until(parent, lambda: has_trained(run))
    parent.kill()
    parent.wait()
    deadline = time.time() + 30
    while trainer.exists() and ") Z " not in trainer.read_text():  # a zombie has ended
        assert time.time() < deadline, "it goes on"
        time.sleep(0.1)
    assert checked.read(run / "last.pt", resume.LAST)["step"] == metrics_rows(run)


HARD = {"steps": 7, "dropout": 0.2, "micro_batches": 3, "batch_size": 2, "eval_every": 2, "weight_decay": 0.1}


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_is_bit_equal_to_the_uninterrupted_one(method, train, tmp_path):
    """With dropout, in mid-epoch, and stopped in the midst of a step."""
    more = {"keep_best": True, **({"lora_dropout": 0.1} if "lora" in method else {})}
    _, whole = train(method, **HARD, **more)
    with pytest.raises(KeyboardInterrupt):
        stopped(train, method, at=4, **HARD, **more)
    [run] = [path for path in tmp_path.glob("run*") if path != whole]
    assert metrics_rows(run) == 4 and (run / "last.pt").exists() and not (run / "sample.txt").exists()
    train(method, **HARD, **more, resume=True, out=run)
    assert files(run) == files(whole) and not (run / "last.pt").exists()
    assert weights(run).keys() == weights(whole).keys()


def metrics_rows(run):
    return len(list(csv.reader((run / "metrics.csv").read_text().splitlines()))) - 1


def test_rows_written_after_the_last_save_are_written_once(train, tmp_path):
    """Killed between a save and the next, metrics.csv has rows that the resumed run writes again."""
    _, whole = train("sft", steps=6)
    with pytest.raises(KeyboardInterrupt):
        stopped(train, "sft", at=3, steps=6)
    [run] = [path for path in tmp_path.glob("run*") if path != whole]
    with open(run / "metrics.csv", "a", encoding="utf-8") as file:
        file.write("3,9.9,,0.1,1,1,1\n4,9.9,,0.1,1,1,1\n5,9")
    train("sft", steps=6, resume=True, out=run)
    assert metrics(run, "step") == ["0", "1", "2", "3", "4", "5"] and files(run) == files(whole)


def test_a_run_killed_before_it_saved_anything_begins_anew(train, tmp_path, capsys):
    _, whole = train("pretrain")
    run = tmp_path / "killed"
    run.mkdir()
    (run / "config.json").write_bytes((whole / "config.json").read_bytes())
    with pytest.raises(Mistake, match="began with --seed 0, and now it is 5"):
        train("pretrain", resume=True, out=run, seed=5)
    train("pretrain", resume=True, out=run)
    assert "nothing was saved, begins anew" in capsys.readouterr().out
    assert files(run) == files(whole)


def test_resume_begins_where_nothing_was_begun_and_finds_what_has_moved(train, base, text, tmp_path, capsys):
    """A job script that is queued again has one command. Paths may be written otherwise, and data may have moved."""
    _, whole = train("lora", steps=4)
    with pytest.raises(KeyboardInterrupt):
        stopped(train, "lora", at=2, steps=4, resume=False, out=tmp_path / "again")
    moved = tmp_path / "moved.txt"
    moved.write_bytes(Path(text).read_bytes())
    train("lora", steps=4, resume=True, out=tmp_path / "again", init_from=f"{base}/../base/", text=str(moved))
    assert "goes on after step 2" in capsys.readouterr().out
    train("lora", steps=4, resume=True, out=tmp_path / "new")
    assert "nothing was saved, begins anew" in capsys.readouterr().out
    for run in (tmp_path / "again", tmp_path / "new"):
        assert weights_of(run) == weights_of(whole)


def weights_of(run):
    return {name: tensor.tolist() for name, tensor in weights(run).items()}


def test_another_config_other_data_and_another_base_are_refused_by_name(train, tmp_path, text, base):
    with pytest.raises(KeyboardInterrupt):
        stopped(train, "lora", at=2, steps=4)
    [run] = tmp_path.glob("run*")
    before = (run / "last.pt").read_bytes()
    other = tmp_path / "other.txt"
    other.write_text(Path(text).read_text(encoding="utf-8").replace("ship", "boat"), encoding="utf-8")
    for change, sentence in [
        (
            {"learning_rate": 0.5},
            r"began with --learning-rate 0\.004, and now it is 0\.5: a run is resumed as it began",
        ),
        ({"r": 4}, "began with --r 8, and now it is 4"),
        ({"seed": 1}, "began with --seed 0, and now it is 1"),
        ({"text": str(other)}, "began with other data"),
        ({"targets": "q_proj"}, "began with --targets"),
    ]:
        with pytest.raises(Mistake, match=sentence):
            train("lora", resume=True, out=run, **{"steps": 4, **change})
    saved = Path(text).read_text(encoding="utf-8")
    try:
        Path(text).write_text(other.read_text(encoding="utf-8"), encoding="utf-8")
        with pytest.raises(Mistake, match="began with other data: its file has changed since"):
            train("lora", resume=True, out=run, steps=4)
    finally:
        Path(text).write_text(saved, encoding="utf-8")
    model = Path(base, "model.pt")
    saved = model.read_bytes()
    try:
        changed = checkpoint.open_run(base).model()
        changed.wte.weight.data[0, 0] += 1
        checkpoint.save_model(base, changed, checkpoint.open_run(base).tokenizer)
        with pytest.raises(Mistake, match="began with another base"):
            train("lora", resume=True, out=run, steps=4)
    finally:
        model.write_bytes(saved)
    assert (run / "last.pt").read_bytes() == before
    train("lora", resume=True, out=run, steps=4, save_every=2)  # when to save may change


def test_a_save_is_due_by_steps_and_by_minutes(train, monkeypatch):
    saved = []
    monkeypatch.setattr(resume.Saves, "save", lambda self, done: saved.append(done))
    train("sft", steps=7, save_every=3)
    train("sft", steps=3, save_every=0, save_minutes=1e-9)
    train("sft", steps=3, save_every=0, save_minutes=0)
    assert saved == [3, 6, 7, 1, 2, 3, 3], "and after the last step"


def test_the_best_model_is_the_one_of_the_lowest_held_out_loss(train, instructions):
    """A rate that is far too high: the model gets worse in the end, and one before it is kept; else the last one is."""
    _, better = train("sft", steps=3, eval_every=2, learning_rate=1e-3, keep_best=True)
    assert (better / "best" / "model.pt").read_bytes() == (better / "model.pt").read_bytes()
    _, run = train("sft", steps=6, eval_every=1, learning_rate=0.3, keep_best=True)
    losses = [float(value) for value in metrics(run, "held_out_nll")]
    assert min(losses) < losses[-1]
    held_out = from_instructions(instructions, Reading(checkpoint.open_run(run / "best").tokenizer, 192, 0.1))[1]
    assert token_nll(checkpoint.open_run(run / "best").model(), held_out, 4) == pytest.approx(min(losses), rel=1e-6)


def test_compare_goes_on_with_the_methods_that_are_not_done(builtin, tmp_path, monkeypatch):
    """The second of three methods fails; resumed, the first is not trained again."""
    trained = []
    real = compare.in_own_process

    def fails(main, config):
        trained.append(Path(config.out).name)
        if len(trained) == 2:
            raise MemoryError
        return real(main, config)

    monkeypatch.setattr(compare, "in_own_process", fails)
    core = compare.FAMILIES["core"]
    three = core._replace(
        methods=lambda *args: core.methods(*args)[:3],
        gather=lambda base_run, base, methods, rows, *args: {"rows": rows},
        claims={},
        plot=lambda *args: "",
    )
    monkeypatch.setitem(compare.FAMILIES, "core", three)
    files = {"text": "base.jsonl", "domain": "domain.jsonl"}
    files |= {name: f"{name}.json" for name in ("instructions", "questions")} | {"base": "base"}
    settings = {name: str(builtin / file) for name, file in files.items()}
    settings |= {"quick": True, "out": str(tmp_path / "c"), "domain_steps": 6, "steps": 12}
    with pytest.raises(MemoryError):
        compare.main(compare.Config(**settings))
    with pytest.raises(Mistake, match="or --resume to go on with it"):
        compare.main(compare.Config(**settings))
    with pytest.raises(Mistake, match="began with --r 6, and now it is 7"):
        compare.main(compare.Config(**settings, resume=True, r=7))
    compare.main(compare.Config(**settings, resume=True))
    assert trained == ["continued-pretraining", "lora-on-the-domain", "lora-on-the-domain", "sft"]
    with pytest.raises(Mistake, match="holds a comparison already"):
        compare.main(compare.Config(**settings, resume=True))


# ---- signals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_finishes_the_step_saves_and_says_how_to_resume(number, code, base, text, tmp_path):
    flags = ["--text", text, "--init-from", base, "--block-size", "64", "--steps", "100000", "--device", "cpu"]
    child = Process(ROOT / "train_pretrain.py", *flags, "--out", tmp_path / "run")
    until(child, lambda: has_trained(tmp_path / "run"))
    child.send_signal(number)
    out, err = child.communicate(timeout=30)
    assert child.returncode == code and "Traceback" not in err
    assert "the same command and --resume goes on" in out
    assert checked.read(tmp_path / "run" / "last.pt", resume.LAST)["step"] == metrics_rows(tmp_path / "run")


def test_under_nohup_a_run_goes_on_when_its_terminal_is_closed():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with asked_to_stop() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.number
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_second_signal_leaves_at_once(number, code, base, text, tmp_path):
    """The step at hand would take a minute."""
    program = tmp_path / "slow.py"
    program.write_text(
        "import sys, time, train_pretrain as script\n"
        "from cli import command_line\n"
        "log = script.Session.log\n"
        "def slow(*args):\n"
        "    print('in a step', flush=True)\n"
        "    for _ in range(600): time.sleep(0.1)\n"
        "script.Session.log = slow\n"
        "command_line(script.main, script.Config)\n"
    )
    flags = ["--text", text, "--init-from", base, "--block-size", "64", "--device", "cpu", "--out", tmp_path / "run"]
    child = Process(program, *flags)
    child.wait_for("in a step")
    child.send_signal(number)
    time.sleep(0.5)
    assert child.poll() is None, "the first is waited for"
    child.send_signal(number)
    _, err = child.communicate(timeout=30)  # of the minute that the step would take
    assert child.returncode == code and "Traceback" not in err


def test_in_a_notebook_an_interrupt_leaves_the_kernel_usable(train):
    """The same process goes on, Ctrl-C is its own again, and it can resume; in a thread signals are left alone."""
    before = signal.getsignal(signal.SIGINT)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            stopped(train, "sft", at=1, steps=3)
        assert signal.getsignal(signal.SIGINT) == before
    with pytest.raises(Mistake):
        train("sft", learning_rate=1e38)
    assert signal.getsignal(signal.SIGINT) == before
    thread = threading.Thread(target=lambda: train("sft", steps=1))
    thread.start()
    thread.join()


# ---- damage --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["model.pt", "learned.pt", "last.pt"])
@pytest.mark.parametrize(
    "damage, sentence",
    [
        (lambda content: content[: len(content) // 2], "is damaged"),
        (lambda content: b"", "it is empty"),
        (lambda content: b"<!DOCTYPE html><html>404</html>", "it is a web page"),
        (lambda content: b"version https://git-lfs.github.com/spec/v1\n", "it is a Git LFS pointer"),
        (lambda content: content[:5000] + bytes([content[5000] ^ 4]) + content[5001:], "is damaged"),
        (lambda content: content[:-70] + bytes([content[-70] ^ 1]) + content[-69:], "is damaged"),
        (lambda content: content + b"\0", "is damaged"),
        (lambda content: content[:-66] + struct.pack("<H", 0), "is damaged"),
    ],
    ids=["cut", "empty", "html", "lfs", "one bit", "one bit at the end", "one byte more", "no checksum"],
)
def test_a_damaged_checkpoint_is_one_clear_error(file, damage, sentence, train, tmp_path):
    if file == "last.pt":
        with pytest.raises(KeyboardInterrupt):
            stopped(train, "pretrain", at=1)
    else:
        train("pretrain" if file == "model.pt" else "lora")
    [run] = tmp_path.glob("run*")
    (run / file).write_bytes(damage((run / file).read_bytes()))
    with pytest.raises(Mistake, match=sentence) as said:
        if file == "last.pt":
            train("pretrain", resume=True, out=run)
        else:
            checkpoint.load_run(str(run), "", torch.device("cpu"))
    assert str(run / file) in str(said.value)


def test_a_checkpoint_from_a_stranger_cannot_run_code(tmp_path, base, train):
    """With a good checksum too, which a stranger can make."""

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    checked.write(tmp_path / "model.pt", {"config": Evil(), "tokenizer": "bytes", "weights": {}})
    with pytest.raises(Mistake, match="cannot be read as a checkpoint"):
        checkpoint.open_run(tmp_path).model()
    with pytest.raises(KeyboardInterrupt):
        stopped(train, "pretrain", at=1)
    [run] = tmp_path.glob("run*")
    contents = checked.read(run / "last.pt", resume.LAST)
    checked.write(run / "last.pt", {**contents, "so_far": Evil()})
    with pytest.raises(Mistake, match="cannot be read as a checkpoint"):
        train("pretrain", resume=True, out=run)
    assert not (tmp_path / "owned").exists()


def test_nothing_is_ever_unpickled_without_weights_only():
    for path in ROOT.rglob("*.py"):
        if not {".venv", "tests"} & set(path.relative_to(ROOT).parts):
            for line in path.read_text(encoding="utf-8").splitlines():
                assert "torch.load(" not in line or "weights_only=True" in line, path
                assert "pickle.load" not in line and "hub.load" not in line, path


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_what_is_not_finite_stops_the_run_and_never_replaces_a_good_save(what, method, train, tmp_path, monkeypatch):
    log = train_pretrain.Session.log

    def broken(session, step, loss, n_graded, rate, gradient, nll):
        if step == 3:
            loss, gradient = (loss * torch.nan, gradient) if what == "loss" else (loss, gradient * torch.inf)
        return log(session, step, loss, n_graded, rate, gradient, nll)

    monkeypatch.setattr(train_pretrain.Session, "log", broken)
    with pytest.raises(Mistake, match=r"step 3 has loss .* at learning rate .*: training diverged .*has the last good"):
        train(method, steps=6, save_every=1)
    [run] = tmp_path.glob("run*")
    contents = checked.read(run / "last.pt", resume.LAST)
    assert contents["step"] == 3 and all(tensor.isfinite().all() for tensor in contents["learns"].values())


def test_weights_that_are_not_finite_are_not_saved(train, tmp_path):
    """The loss of the step was finite, its update was not."""
    with pytest.raises(Mistake, match=r"last\.pt is not saved: training diverged"):
        train("pretrain", steps=3, learning_rate=1e39, weight_decay=1.0, warmup=0.0, save_every=1)
    assert not list(tmp_path.rglob("*.pt"))


def test_a_run_writes_nothing_outside_its_folder_and_the_cache(text, instructions, base, tmp_path):
    """As a child process sees it that may write nowhere else: everything new is in those two folders."""
    home, cwd = tmp_path / "home", tmp_path / "cwd"
    home.mkdir()
    cwd.mkdir()
    environment = os.environ | {"HOME": str(home), "TMPDIR": str(tmp_path / "tmp"), "PYTHONDONTWRITEBYTECODE": "1"}
    (tmp_path / "tmp").mkdir()
    environment.pop("FINETUNING_CACHE")
    flags = ["--text", text, "--init-from", base, "--out", str(tmp_path / "run"), "--steps", "2", "--device", "cpu"]
    program = [sys.executable, str(ROOT / "train_pretrain.py"), *flags, "--block-size", "64"]
    status = subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True).stdout
    subprocess.run(program, cwd=cwd, env=environment, check=True, capture_output=True)
    assert not list(cwd.iterdir()) and not list((tmp_path / "tmp").iterdir())
    assert [path.relative_to(home).parts[:2] for path in home.rglob("*.uint16")] == [(".cache", "finetuning")]
    assert {path.relative_to(home).parts[0] for path in home.rglob("*")} <= {".cache"}
    assert subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True).stdout == status


def test_an_adapter_on_the_wrong_base_or_rank_is_refused(train, base, tmp_path):
    _, adapter = train("lora")
    _, other = train("pretrain")
    with pytest.raises(Mistake, match=r"was trained on .*, not on this base: their weights differ"):
        sample.main(sample.Config(from_=str(other), adapter=str(adapter), prompt="the", device="cpu"))
    contents = checked.read(adapter / "learned.pt", learned.LEARNED)
    checked.write(adapter / "learned.pt", {**contents, "attached": [{**contents["attached"][0], "r": 4}]})
    with pytest.raises(Mistake, match=r"does not fit its base: .* is \(4, 16\) in the model, \(8, 16\) in what"):
        sample.main(sample.Config(from_=base, adapter=str(adapter), prompt="the", device="cpu"))


def test_a_checkpoint_holds_plain_types_and_says_json_of_its_config(train):
    """What is stored can be read by anybody who has torch: no class of ours, no Path, no numpy."""
    _, run = train("lora")
    contents = torch.load(run / "learned.pt", weights_only=True)
    json.dumps({name: value for name, value in contents.items() if name != "weights"})
