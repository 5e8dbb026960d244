"""This project beside the libraries a user would pick instead, on the same work in one process.

    python -m benchmarks train|lora|frozen|sft|generate|memory|startup --shape tiny|small|gpt2

    python -m benchmarks gpu      all of it on a GPU, in seven minutes: benchmarks/gpu/page.py

Needs benchmarks/requirements.txt. Prints a Markdown table and the ratios with their spread: the median over the rounds
and, in brackets, the middle half of them. What came out, and on which machine, is in benchmarks/README.md.
"""

import argparse
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import torch

from benchmarks import contestants as who
from benchmarks.contestants import BF16, FP32, SHAPES, Shape
from benchmarks.measure import Contestant, machine, matmul_peak, quartiles, race, times
from cli import Mistake
from data.examples import Example, instruction_example, packed, read_instructions
from data.tokenizer import load_tokenizer
from run.device import choose_device, peak_mb

BUILTIN = Path(__file__).parent.parent / "data" / "builtin"


def main() -> None:
    if sys.argv[1:2] == ["gpu"]:  # it has flags of its own
        from benchmarks.gpu import page

        sys.exit(page.main(sys.argv[2:]))
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    works = {work.__name__: work for work in (train, lora, frozen, sft, generate, memory, startup)}
    parser.add_argument("work", choices=works)
    parser.add_argument("--shape", choices=SHAPES, default="small", help="size of the model and its batches")
    parser.add_argument("--rows", type=int, help="rows a batch, instead of the shape's own")
    parser.add_argument("--tokens", type=int, help="tokens a row, instead of the shape's own")
    parser.add_argument("--rounds", type=int, default=15, help="steps of each contestant that count")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument(
        "--compile", action="store_true", help="train: one more contestant, with blocks and loss compiled"
    )
    parser.add_argument("--nanogpt", metavar="DIR", help="train: a checkout of nanoGPT to measure, too")
    parser.add_argument("--instructions", help="sft, frozen: what to learn from")
    parser.add_argument(
        "--tokenizer", default=str(BUILTIN / "tokenizer.tiktoken"), help="of these: gpt2, bytes or a file"
    )
    parser.add_argument("--preamble", default="", help="put before each of these, as Alpaca's template does")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16], help="generate: prompts at once")
    args = parser.parse_args()
    numbers = [args.rows, args.tokens, args.rounds, args.threads, *args.batch]
    if any(number is not None and number < 1 for number in numbers):
        parser.error("--rows, --tokens, --rounds, --threads and --batch must be at least 1")
    if args.tokens is not None and args.tokens <= 32 and args.work == "generate":
        parser.error("generate needs --tokens above 32, which the prompts may have")
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    shape = SHAPES[args.shape]
    shape = shape._replace(B=args.rows or shape.B, T=args.tokens or shape.T)
    print(f"{args.work}, {args.shape}: {shape}\n{machine(torch.device(args.device))}\n")
    try:
        works[args.work](shape, choose_device(args.device), args)
    except (Mistake, OSError, ImportError) as error:
        parser.error(str(error))


Ratio = tuple[str, str, float | None]  # one, other, the least that was aimed at


def print_table(contestants: list[Contestant], device: torch.device, work: str, ratios: list[Ratio]) -> None:
    """A row a contestant, then a line for each ratio of two that are there."""
    by_name = {contestant.name: contestant for contestant in contestants}
    clock = "CUDA" if device.type == "cuda" else "CPU"
    print(f"| | {clock} ms a step | {work} per {clock} second |\n| --- | ---: | ---: |")
    for one in contestants:
        print(f"| {one.name} | {1000 * quartiles(one.seconds)[1]:.1f} | {quartiles(one.speeds())[1]:,.0f} |")
    print()
    for name, other, least in ratios:
        if name in by_name and other in by_name:
            aim = f", at least {least}×" if least else ""
            print(f"- {name} : {other} = {times(by_name[name], by_name[other])}{aim}")
    print()


def train(shape: Shape, device: torch.device, args: argparse.Namespace) -> None:
    """A full training step on random rows; every token is graded."""
    rows = who.random_rows(shape, device)
    batch = who.one_batch(rows)
    runs = [
        Contestant("ours", who.ours(who.our_model(shape, device), "full", batch)),
        Contestant("ours bf16", who.ours(who.our_model(shape, device, BF16), "full", batch)),
        Contestant("transformers", who.theirs(who.transformers_model(shape, device), rows, FP32)),
        Contestant("transformers bf16", who.theirs(who.transformers_model(shape, device), rows, BF16)),
    ]
    one_kernel = who.transformers_model(shape, device, "gelu_pytorch_tanh")
    runs.append(Contestant("transformers, fused GELU", who.theirs(one_kernel, rows, FP32)))
    if args.nanogpt:
        runs.append(Contestant("nanoGPT", who.nanogpt(args.nanogpt, shape, rows)))
    if args.compile:
        compiled = who.our_model(shape, device, BF16, compiled=True)
        runs.append(Contestant("ours bf16 compiled", who.ours(compiled, "full", batch)))
    race(runs, args.rounds, device)
    big = args.shape == "gpt2"
    ratios: list[Ratio] = [
        ("ours", "nanoGPT", 1.1 if big else 0.97),
        ("ours", "transformers", 1.0 if big else 1.1),
        ("ours", "transformers, fused GELU", None),
        ("ours bf16", "ours", {"tiny": None, "small": 1.9, "gpt2": 2.0}[args.shape]),
        ("ours bf16", "transformers bf16", None),
        ("ours bf16 compiled", "ours bf16", None),
    ]
    print_table(runs, device, "tokens", ratios)
    for run in runs:
        dtype = BF16 if "bf16" in run.name else FP32
        reached, peak = quartiles(run.speeds())[1] * shape.flops_per_token(), matmul_peak(dtype, device)
        print(f"- {run.name}: {reached / peak:.0%} of the measured matmul peak, {peak / 1e9:,.0f} GFLOP/s")


def lora(shape: Shape, device: torch.device, args: argparse.Namespace) -> None:
    """A LoRA step, r = 8 beside all projections, with every token graded."""
    rows = who.random_rows(shape, device)
    batch = who.one_batch(rows)
    runs = [
        Contestant("ours, full", who.ours(who.our_model(shape, device), "full", batch)),
        Contestant("ours", who.ours(who.our_model(shape, device), "LoRA", batch)),
        Contestant("ours bf16", who.ours(who.our_model(shape, device, BF16), "LoRA", batch)),
        Contestant("PEFT", who.theirs(who.with_peft(who.transformers_model(shape, device)), rows, FP32)),
        Contestant("PEFT bf16", who.theirs(who.with_peft(who.transformers_model(shape, device)), rows, BF16)),
    ]
    race(runs, args.rounds, device)
    big = args.shape == "gpt2"
    ratios: list[Ratio] = [
        ("ours", "PEFT", 1.1 if big else 1.25),
        ("ours bf16", "PEFT bf16", 1.4 if args.shape == "small" else None),
        ("ours", "ours, full", 1.35 if big else None),
    ]
    print_table(runs, device, "tokens", ratios)


def frozen(shape: Shape, device: torch.device, args: argparse.Namespace) -> None:
    """A step of what learns beside a frozen model, and how much there is to save. Random rows, of which every token is
    graded, or with --instructions the same batches of them for all, of which the responses are."""
    rows, batches = who.random_rows(shape, device), None
    if args.instructions:
        shape = shape._replace(vocab_size=50257)
        batches = partial(who.batches_of, instructions(shape, args), shape.B)
    longer, runs = shape._replace(T=shape.T + who.LENGTH), []  # positions for a prefix, too
    models = {method: who.our_model(longer, device) for method in who.LEARN}
    for method, model in models.items():
        step = who.ours(model, method, batches() if batches else who.one_batch(rows))
        runs.append(Contestant(f"ours, {method}", step))
    for method in PEFT_HAS:
        theirs = who.with_peft(who.transformers_model(longer, device), method)
        labelled = who.in_their_form(batches(), device) if batches else None
        step = who.theirs_with_labels(theirs, labelled) if labelled else who.theirs(theirs, rows, FP32)
        runs.append(Contestant(f"PEFT, {method}", step))
    race(runs, args.rounds, device)
    ratios: list[Ratio] = [(f"ours, {method}", f"PEFT, {method}", 1.1) for method in PEFT_HAS]
    print_table(runs, device, "graded tokens", [*ratios, ("ours, bottlenecks", "ours, full", None)])
    for method, model in models.items():
        learns = sum(p.numel() for p in model.parameters() if p.requires_grad)
        print(f"- {method}: {learns:,} numbers learn, {4 * learns / 1e6:,.2f} MB to save")


PEFT_HAS = ("LoRA", "prefix", "soft prompt")


def instructions(shape: Shape, args: argparse.Namespace) -> list[Example]:
    """Those that fit rows of T tokens, and a line about them."""
    tokenizer, file = load_tokenizer(args.tokenizer), args.instructions or str(BUILTIN / "instructions.json")
    records = read_instructions(file)
    prefixed = [record._replace(instruction=args.preamble + record.instruction) for record in records]
    examples = [instruction_example(record, tokenizer) for record in prefixed]
    examples = [example for example in examples if len(example.inputs) <= shape.T]
    if not examples:
        raise Mistake(f"no instruction of {file} fits rows of --tokens {shape.T}")
    n, graded = sum(len(e.inputs) for e in examples), sum(int(e.graded.sum()) for e in examples)
    next_batch = who.batches_of(examples, shape.B)
    rows = [next_batch()[0].numel() for _ in range(-(-len(examples) // shape.B))]
    print(f"{len(examples)} instructions, {n / len(examples):.0f} tokens each, ", end="")
    print(f"{graded / n:.0%} of them graded; batches of {shape.B} are {1 - n / sum(rows):.1%} padding\n")
    return examples


def sft(shape: Shape, device: torch.device, args: argparse.Namespace) -> None:
    """Instruction tuning: graded tokens per second, with a head as wide as GPT-2's, whatever the tokenizer."""
    shape = shape._replace(vocab_size=50257)
    examples = instructions(shape, args)
    packed_batches = who.batches_of(packed(examples, shape.T), 2)

    def our(precision=FP32, method="full", batches=None, all_logits=False):
        loader = batches or who.batches_of(examples, shape.B)
        return who.ours(who.our_model(shape, device, precision), method, loader, all_logits)

    with tempfile.TemporaryDirectory() as folder:

        def trl(bf16=False, lora=False):
            return who.trl(who.transformers_model(shape, device), examples, shape.B, bf16, lora, folder)

        runs = [
            Contestant("ours", our()),
            Contestant("ours bf16", our(BF16)),
            Contestant("ours, all logits", our(all_logits=True)),
            Contestant("ours, packed", our(batches=packed_batches)),
            Contestant("ours LoRA", our(method="LoRA")),
            Contestant("ours LoRA bf16", our(BF16, "LoRA")),
            Contestant("TRL", trl()),
            Contestant("TRL bf16", trl(bf16=True)),
            Contestant("TRL with PEFT", trl(lora=True)),
        ]
        for run in runs:  # steps differ in length: a round is several
            run.step = lambda step=run.step: sum(step() for _ in range(8))  # type: ignore[misc]
        race(runs, args.rounds, device, warmup=1)
    ratios: list[Ratio] = [("ours", "TRL", 3), ("ours bf16", "TRL bf16", 4), ("ours", "ours, all logits", 1.8)]
    ratios += [("ours LoRA", "TRL with PEFT", 5), ("ours, packed", "ours", None)]
    print_table(runs, device, "graded tokens", ratios)


def generate(shape: Shape, device: torch.device, args: argparse.Namespace) -> None:
    """Greedy generation after prompts of 16 to 32 tokens, with a key-value cache."""
    new = min(64, shape.T - 32)
    for B in args.batch:
        lengths = [32 - (7 * i) % 17 for i in range(B)]
        prompts = [torch.randint(1, shape.vocab_size, (n,)).tolist() for n in lengths]
        ours, bf16 = (who.our_model(shape, device, precision).eval() for precision in (FP32, BF16))
        runs = [
            Contestant("ours", who.our_generation(ours, prompts, new)),
            Contestant("ours bf16", who.our_generation(bf16, prompts, new)),
        ]
        theirs = who.transformers_model(shape, device)
        runs.append(Contestant("transformers", who.transformers_generation(theirs, prompts, new)))
        race(runs, args.rounds, device, warmup=1)
        print(f"{B} prompts, {new} new tokens each\n")
        least = {"tiny": 2, "small": 1.3, "gpt2": 1.05 if B == 1 else 1.1}[args.shape]
        print_table(runs, device, "tokens", [("ours", "transformers", least), ("ours bf16", "transformers", None)])


MEASURED = [
    "ours, full", "transformers", "ours LoRA", "PEFT", "ours LoRA, checkpointed", "ours LoRA bf16", "PEFT bf16",
    "ours bottlenecks", "ours prefix", "PEFT prefix", "ours soft prompt", "PEFT soft prompt",
]  # fmt: skip
IN_PAIRS = [
    ("ours, full", "transformers"), ("ours LoRA", "PEFT"), ("ours LoRA bf16", "PEFT bf16"),
    ("ours prefix", "PEFT prefix"), ("ours soft prompt", "PEFT soft prompt"),
]  # fmt: skip


def memory(shape: Shape, device: torch.device, args: argparse.Namespace) -> None:
    """The most memory that a process of its own held during three steps; on a CPU with Python and all it imported."""
    found = {}
    print("| | peak MB |\n| --- | ---: |")
    for name in MEASURED:
        call = f"peak_of({name!r}, {shape!r}, {str(device)!r}, {args.threads})"
        code = f"from benchmarks.__main__ import *; print({call})"
        process = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True)
        found[name] = float(process.stdout)
        print(f"| {name} | {found[name]:,.0f} |", flush=True)
    print()
    for one, other in IN_PAIRS:
        if one in found and other in found:
            print(f"- {one} : {other} = {found[one] / found[other]:.2f}×")


def peak_of(name: str, shape: Shape, device_name: str, threads: int) -> float:
    """The peak of this process, in MB (10^6 bytes), after three steps of the contestant of that name."""
    torch.set_num_threads(threads)
    device = torch.device(device_name)
    rows, precision = who.random_rows(shape, device), BF16 if "bf16" in name else FP32
    method = next((method for method in who.LEARN if method in name), "LoRA")  # PEFT's, where none is named
    shape = shape._replace(T=shape.T + who.LENGTH) if method in ("prefix", "soft prompt") else shape
    if "ours" in name:
        model = who.our_model(shape, device, precision)
        model.checkpoint_activations = "checkpointed" in name
        step = who.ours(model, method, who.one_batch(rows))
    else:
        model = who.transformers_model(shape, device)
        step = who.theirs(who.with_peft(model, method) if "PEFT" in name else model, rows, precision)
    for _ in range(3):
        step()
    return peak_mb(device) or 0.0


TINY = """
import torch
from benchmarks import contestants as who
shape, cpu = who.SHAPES["tiny"], torch.device("cpu")
rows = who.random_rows(shape, cpu)
"""
STARTS = {
    "import torch": "import torch",
    "import train_sft (ours)": "import train_sft",
    "import transformers": "from transformers import GPT2LMHeadModel",
    "import peft": "import peft",
    "import trl": "from trl import SFTTrainer",
    "first step (ours)": TINY + 'who.ours(who.our_model(shape, cpu), "full", who.one_batch(rows))()',
    "first step (transformers)": TINY + "who.theirs(who.transformers_model(shape, cpu), rows, who.FP32)()",
}


def startup(shape: Shape, device: torch.device, args: argparse.Namespace) -> None:
    """CPU seconds of a process that only imports, or takes one step of the tiny shape."""
    found: dict[str, list[float]] = {name: [] for name in STARTS}
    for _ in range(args.rounds):
        for name, code in STARTS.items():
            limit = f"import torch; torch.set_num_threads({args.threads})\n" if "step" in name else ""
            code = f"{limit}{code}\nimport time; print(time.process_time())"
            done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
            found[name].append(float(done.stdout.split()[-1]))
    print("| | CPU seconds |\n| --- | ---: |")
    for name, seconds in found.items():
        low, middle, high = quartiles(seconds)
        print(f"| {name} | {middle:.2f} ({low:.2f}–{high:.2f}) |")
    print()
    for one, other in [("import train_sft (ours)", "import torch"), ("first step (ours)", "first step (transformers)")]:
        low, middle, high = quartiles([a / b for a, b in zip(found[one], found[other], strict=True)])
        print(f"- {one} : {other} = {middle:.2f}× ({low:.2f}–{high:.2f})")


if __name__ == "__main__":
    main()
