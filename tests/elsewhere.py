"""Every script on a device that is not the CPU, where no GPU is at hand: tests/test_gpu.py runs these in a process of
their own.

The device "elsewhere" is the CPU behind a name. PyTorch takes its tensors for another device's, and refuses what a GPU
refuses: an operation between a tensor of that device and one that was left behind.
"""

import functools

import pytest
import torch
from conftest import metrics
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._pytree import tree_map

import evaluate
import sample
from run import device
from run.session import Session

# ---- the device ------------------------------------------------------------------------------------------------------

HERE = {}  # the CPU tensor that stands behind each storage of the device
ASKED = []  # operations, by name
MAY_MIX = ("aten::index.Tensor", "aten::index_put_", "aten::_index_put_impl_")  # a GPU takes indices from the CPU


class Module(backend_registration._DummyBackendModule):
    """What torch.elsewhere is."""

    def _is_in_bad_fork(self):
        return False

    def manual_seed_all(self, seed):
        pass


def elsewhere(tensor):
    """The device's tensor that this one of the CPU stands behind."""
    made = torch._C._acc.create_empty_tensor(tensor.shape, tensor.dtype)
    HERE[made.untyped_storage()._cdata] = tensor
    return made


def behind(tensor):
    found = HERE[tensor.untyped_storage()._cdata]
    return found if found.shape == tensor.shape else found.reshape(tensor.shape)  # PyTorch itself has seen it so


def operation(op, *args, **kwargs):
    """Any operation of PyTorch, by the CPU tensors behind its arguments."""
    name, theirs = op.name(), {}
    ASKED.append(name)
    if name == "aten::_fused_sdp_choice":
        return 0  # attention of products and a softmax
    if name == "aten::_copy_from":
        source, target = (behind(tensor) if tensor.device.type == "elsewhere" else tensor for tensor in args[:2])
        target.copy_(source)
        return args[1]

    if op._schema.name.endswith("_") and isinstance(args[0], Tensor) and args[0].device.type == "cpu":
        raise RuntimeError(f"{name}: a tensor on the CPU is changed by one that is elsewhere")

    def bring(value):
        if isinstance(value, Tensor) and value.device.type == "elsewhere":
            found = behind(value)
            theirs[id(found)] = value
            return found
        if isinstance(value, Tensor) and value.dim() and name not in MAY_MIX:
            raise RuntimeError(f"{name}: one tensor is elsewhere, another on the CPU")
        return torch.device("cpu") if isinstance(value, torch.device) else value

    def give(value):
        if not isinstance(value, Tensor):
            return value
        if id(value) not in theirs:
            return elsewhere(value)
        if theirs[id(value)].shape != value.shape:  # an output, made as large as it must be
            theirs[id(value)].data = elsewhere(value)
        return theirs[id(value)]

    args, kwargs = tree_map(bring, args), tree_map(bring, kwargs)
    if name == "aten::_fused_adamw_":  # reads memory as it lies
        args = (args[0], [gradient.contiguous() for gradient in args[1]], *args[2:])
    if name in ("aten::view", "aten::_unsafe_view"):
        return give(args[0].reshape(args[1]))
    return tree_map(give, op(*args, **kwargs))


def make(op, *args, device=None, **kwargs):
    return elsewhere(op(*args, **kwargs))


VIEWS = """slice.Tensor select.int transpose.int t permute expand unsqueeze squeeze squeeze.dim split.Tensor
unbind.int""".split()
backend_registration._setup_privateuseone_for_python_backend("elsewhere", Module())
FALLBACK, ATEN = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
FALLBACK.fallback(operation, "PrivateUse1")
for how, names in ((operation, VIEWS), (make, ("arange", "arange.start", "arange.start_step"))):
    for name in names:
        packet, _, overload = name.partition(".")
        op = getattr(getattr(torch.ops.aten, packet), overload or "default")
        ATEN.impl(name, functools.partial(how, op), "PrivateUse1")


class Generator(torch.Generator):
    """On the CPU, wherever it is asked for."""

    def __new__(cls, device="cpu"):
        return super().__new__(cls)


torch.Generator = Generator
torch.inference_mode = lambda mode=True: torch.no_grad()  # its tensors cannot be those of a device in Python


@pytest.fixture(autouse=True)
def device_elsewhere(monkeypatch):
    choose = device.choose_device
    chosen = lambda name: torch.device(name) if name == "elsewhere" else choose(name)  # noqa: E731
    for module in (device, evaluate, sample):
        monkeypatch.setattr(module, "choose_device", chosen)
    ASKED.clear()


def both(run):
    """run(device) there and here, which must come to the same."""
    found, asked, expected = run("elsewhere"), len(ASKED), run("cpu")
    assert asked and len(ASKED) == asked, "it computes there, and then here"
    return found, expected


# ---- the scripts -----------------------------------------------------------------------------------------------------

SCRIPTS = "pretrain sft lora lora_sft adapter prefix prompt prompt_sft classifier tagger mlm reward dpo rlhf".split()


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_run_has_the_losses_it_has_on_a_cpu(script, train):
    runs = both(lambda device: train(script, steps=3, eval_every=2, device=device)[1])
    for column in ("loss", "grad_norm"):
        found, expected = ([float(value) for value in metrics(run, column)] for run in runs)
        assert found == pytest.approx(expected, rel=1e-2, abs=1e-3)


WAITS = ("aten::_copy_from", "aten::nonzero", "aten::_local_scalar_dense")  # for which a GPU keeps its host waiting


@pytest.mark.parametrize("script", ["pretrain", "sft", "lora_sft", "prefix_sft", "mlm"])
def test_the_host_waits_in_a_step_as_often_as_docs_gpu_md_says(script, train, monkeypatch):
    """Counted from the end of one log to the begin of the next."""
    log, began, ended = Session.log, [], []

    def counted(*args):
        began.append(len(ASKED))
        log(*args)
        ended.append(len(ASKED))

    monkeypatch.setattr(Session, "log", counted)
    train(script, steps=3, eval_every=100, device="elsewhere")
    between = zip([0, *ended], [*began, len(ASKED)], strict=True)
    _, *steps, _ = [[name for name in ASKED[start:end] if name in WAITS] for start, end in between]
    copies, searches, question = ["aten::_copy_from"] * 4, ["aten::nonzero"] * 2, ["aten::_copy_from"]
    assert steps == [copies + searches + question] * 2
    assert sum(name in WAITS for name in ASKED[began[1] : ended[1]]) == 2, "the loss, and the gradient's norm"


@pytest.mark.parametrize(
    "script, settings",
    [
        ("sft", {"pack": True}),
        ("sft", {"micro_batches": 2, "keep_best": True, "eval_every": 1}),
        ("dpo", {"init_from": "lora_sft"}),
        ("rlhf", {"init_from": "lora_sft", "reward": "reward"}),
        ("classifier", {"init_from": "mlm"}),
    ],
)
def test_runs_from_runs_do_too(script, settings, train):
    made = {name: str(train(value, steps=1)[1]) for name, value in settings.items() if value in SCRIPTS}
    ASKED.clear()
    found, expected = both(lambda device: train(script, **settings | made, device=device)[0]["held_out_nll"])
    assert found == pytest.approx(expected, rel=1e-2)


def test_a_run_that_died_goes_on(train, tmp_path):
    """What is saved comes back to its device."""
    _, straight = train("lora", steps=4, device="elsewhere")
    out = tmp_path / "died"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ZeroDivisionError):
        log = Session.log
        patch.setattr(Session, "log", lambda run, step, *args: log(run, step, *args) if step < 2 else 1 / 0)
        train("lora", steps=4, save_every=1, device="elsewhere", out=out)
    _, resumed = train("lora", steps=4, save_every=1, device="elsewhere", out=out, resume=True)
    assert metrics(resumed, "loss") == metrics(straight, "loss")


@pytest.fixture
def said(capsys):
    """said(program, …) is what it prints, there and here."""

    def run(program, **settings):
        def prints(device):
            capsys.readouterr()
            program.main(program.Config(device=device, **settings))
            return capsys.readouterr().out

        ASKED.clear()
        found, expected = both(prints)
        assert found == expected
        return found

    return run


@pytest.mark.parametrize("script", ["sft", "lora_sft", "adapter_sft", "prefix_sft", "prompt_sft"])
def test_models_that_write_are_judged_and_write(script, train, said, text, instructions):
    run = str(train(script, steps=1)[1])
    assert "exact match" in said(evaluate, from_=run, instructions=instructions, held_out=1.0)
    said(evaluate, from_=run, text=text)
    said(sample, from_=run, instruction="the sea", max_new_tokens=6)
    said(sample, from_=run, prompt="the sea", max_new_tokens=6, temperature=1.0, top_k=5, top_p=0.9, seed=3)


def test_models_of_classes_masks_and_pairs_are_judged(train, said, base, text, labelled, tagged, pairs):
    runs = {script: str(train(script, steps=1)[1]) for script in ("classifier", "tagger", "mlm", "reward", "dpo")}
    said(evaluate, from_=runs["classifier"], labelled=labelled)
    said(evaluate, from_=runs["tagger"], tagged=tagged)
    said(evaluate, from_=runs["mlm"], text=text)
    said(evaluate, from_=runs["reward"], pairs=pairs)
    said(evaluate, from_=runs["dpo"], pairs=pairs, reference=base)
    for script in ("classifier", "tagger"):
        said(sample, from_=runs[script], prompt="the sea", classify=True)
