"""The ways of finetuning from one base, judged by the same yardsticks: one table, and each claim about them a number.

    python compare.py            the built-in world, from the base model that ships with it
    python compare.py --quick    the same with fewer steps and questions, in about a minute
    python compare.py --only peft                                                   what learns beside a frozen base
    python compare.py --only task                                        a class is predicted, of a text or of each word
    python compare.py --only preference                               what the loss asks: a reward model, DPO, RLHF
    python compare.py --base RUN --text FILE --domain FILE --instructions FILE --questions FILE      one's own

Each method is a call of a script's main(config), on the same data in the same order, in a process of its own, so that
its peak memory is its own. experiment/claims.py reads what was measured and says what it shows.
"""

import dataclasses
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

import train_adapter
import train_classifier
import train_dpo
import train_lora
import train_prefix
import train_pretrain
import train_prompt
import train_reward
import train_rlhf
import train_sft
from cli import Mistake, check, command_line, flag
from data.examples import Reading, from_text, instruction_example, read_instructions, render_prompt
from data.files import write_whole
from evaluate import SPLITS, Yardsticks, judge
from experiment import claims, evidence, frozen, plot, preference, report, tasks
from experiment.in_context import as_json
from experiment.method import Method
from experiment.own_process import in_own_process
from experiment.sweep import sweep
from model.generate import cannot_write, generate
from model.gpt import GPT
from run.device import choose_device, machine
from run.resume import is_finished, written_settings
from store import checkpoint


@dataclass(kw_only=True)
class Config:
    base: str = "data/builtin/base"  # run folder of the base model
    text: str = "data/builtin/base.jsonl"  # text of the base's kind, to judge what is forgotten
    domain: str = "data/builtin/domain.jsonl"  # text of another kind, for continued pretraining and LoRA
    instructions: str = "data/builtin/instructions.json"  # instructions, for SFT and LoRA-SFT
    questions: str = "data/builtin/questions.json"  # instructions to judge by, none of them in the file above
    classes: str = "data/builtin"  # folder with labelled.json, pairs.json, tagged.json, and NAME-unseen.json of each
    encoder: str = "data/builtin/encoder"  # run folder of a model that sees both sides, for --only task
    out: str = "runs/compare"  # folder to write the runs, results.json, results.md, report.html and the plots to
    resume: bool = False  # go on with the comparison in --out: what is done is not done again
    styled: str = "data/builtin/styled.json"  # instructions whose responses are in two styles; and the next, for
    pairs: str = "data/builtin/preferences.json"  # pairs of which the chosen has the one style: --only preference
    only: str = "core"  # core: kinds of finetuning; peft: beside a frozen base; task: classes; preference; or all
    sweep: bool = False  # instead of the comparison, each method at several learning rates
    quick: bool = False  # a sixth of the steps on the domain, a twelfth of the others, a sixth of the questions
    seeds: int = 1  # how many times all of it is done: means and 95 % intervals
    seed: int = 0  # the first seed, of the order of the data and of new weights
    block_size: int = 240  # tokens a row at most, which leaves room for a prefix; instructions are packed
    batch_size: int = 8  # rows a step
    domain_steps: int = 40  # optimizer steps on the domain
    steps: int = 230  # optimizer steps on the instructions
    learning_rate: float = 1e-3  # continued pretraining's, at its peak; this and the next six by --sweep
    lora_learning_rate: float = 2e-3  # LoRA's on the domain
    sft_learning_rate: float = 1.5e-4  # SFT's
    lora_sft_learning_rate: float = 2e-3  # LoRA-SFT's
    adapter_learning_rate: float = 4e-3  # adapter-SFT's
    prefix_learning_rate: float = 1e-1  # prefix-SFT's
    prompt_learning_rate: float = 1.6e-1  # prompt-SFT's
    styled_learning_rate: float = 3e-4  # of the SFT that learns two styles: at SFT's it writes neither well
    reward_learning_rate: float = 1e-4  # the reward model's
    dpo_learning_rate: float = 1e-5  # DPO's; ten times as much is too strong
    rlhf_learning_rate: float = 5e-5  # RLHF's; six times as much, with the KL and without, is fast
    pair_steps: int = 60  # optimizer steps on pairs
    answer_steps: int = 40  # optimizer steps on own answers
    r: int = 6  # LoRA's rank
    width: int = 12  # a bottleneck's
    length: int = 16  # positions of a prefix, and of a soft prompt
    held_out: float = 0.05  # share of each text that is not learned from, but judged by
    device: str = "auto"  # cuda, mps, cpu, or auto


def main(config: Config) -> dict[str, Any]:
    check(config)
    out, device, started = Path(config.out), choose_device(config.device), time.perf_counter()
    if config.only not in (*FAMILIES, "all"):
        raise Mistake(f"--only must be {', '.join(FAMILIES)} or all; got {config.only!r}")
    if config.sweep and config.only not in SWEPT:
        raise Mistake(f"--sweep is for --only {' and '.join(SWEPT)}; got --only {config.only}")
    if config.only == "all":
        return one_after_another(config)
    family = FAMILIES[config.only]
    if config.quick:
        config = dataclasses.replace(
            config,
            domain_steps=max(1, config.domain_steps // 6),
            steps=max(1, config.steps // 12),
            pair_steps=max(1, config.pair_steps // 12),
            answer_steps=max(1, config.answer_steps // 12),
            held_out=config.held_out / 4,
        )
    check_folder(out, config)
    yardsticks = yardsticks_of(config, device)
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / "config.json", json.dumps(settings_of(config), indent=2).encode() + b"\n")
    if config.sweep:
        sweep(family.methods(config, out, config.seed), yardsticks, out)
        return {}

    runs = [family.one_seed(config, family, out / f"seed-{seed}", seed, yardsticks) for seed in seeds_of(config)]
    results: dict[str, Any] = {
        "only": config.only,
        "settings": settings_of(config),
        "machine": machine(device),
        "device": str(device),
        "seconds": time.perf_counter() - started,
        "seeds": seeds_of(config),
        "quick": config.quick,
        "rows": [report.averaged([run["rows"][i] for run in runs]) for i in range(len(runs[0]["rows"]))],
        "claims": claims.ledger([run["evidence"] for run in runs], family.claims),
        "samples": runs[0]["samples"],
        "evidence": [run["evidence"] for run in runs],
    }
    found = f"{family.page(results)}\n\n{report.claims(results['claims'])}\n"
    if results["samples"]:
        (out / "samples.md").write_text(report.samples(results["samples"]), encoding="utf-8")
    (out / "results.md").write_text(found, encoding="utf-8")
    (out / "report.html").write_text(report.html(results), encoding="utf-8")
    write_whole(out / "results.json", json.dumps(results, indent=2).encode() + b"\n")  # the sign that all is done
    print(f"\n{found}\n{family.plot(results, out)}\n{results['seconds']:.0f} s on {device}; all of it is in {out}.")
    return results


def one_after_another(config: Config) -> dict[str, Any]:
    """Each family in a folder of its own in --out; with --resume those that are done stay as they are."""
    found = {}
    for name in FAMILIES:
        out = Path(config.out, name)
        if config.resume and (out / "results.json").exists():
            found[name] = json.loads((out / "results.json").read_text(encoding="utf-8"))
        else:
            goes_on = config.resume and (out / "config.json").exists()
            found[name] = main(dataclasses.replace(config, only=name, out=str(out), resume=goes_on))
    return found


def check_folder(out: Path, config: Config) -> None:
    """Raises a Mistake for a folder that holds another comparison, or with --resume none to go on with."""
    begun, finished = (out / "config.json").exists(), (out / "results.json").exists()
    if (begun or finished) and (not config.resume or finished):
        way = "" if finished else "; or --resume to go on with it"
        raise Mistake(f"{out} holds a comparison already: give another --out, or delete it{way}")
    if config.resume and not begun:
        raise Mistake(f"{out} holds no comparison to go on with: leave out --resume to begin one")
    before = written_settings(out / "config.json") if config.resume else {}
    for name, value in settings_of(config).items():
        if config.resume and before.get(name) != value:
            raise Mistake(f"{out} began with {flag(name)} {before.get(name)}, and now it is {value}")


def settings_of(config: Config) -> dict[str, Any]:
    return {name: value for name, value in dataclasses.asdict(config).items() if name not in ("out", "resume")}


def seeds_of(config: Config) -> list[int]:
    return list(range(config.seed, config.seed + config.seeds))


def yardsticks_of(config: Config, device: torch.device) -> Yardsticks:
    """Reads everything there is to judge by: what cannot be used is found here, before any training."""
    base = checkpoint.open_run(config.base)
    if why := cannot_write(base.model(config.block_size)):
        raise Mistake(f"--base {config.base} cannot write: {why}; name another")
    if config.only == "peft" and config.block_size + config.length > base.config.block_size:
        room = f"the {base.config.block_size} tokens that {config.base} can read"
        raise Mistake(f"--block-size {config.block_size} and a prefix of --length {config.length} are beyond {room}")
    few = slice(0, 16 if config.quick else 128)  # rows of a text
    how = Reading(base.tokenizer, config.block_size, config.held_out)
    parts = [from_text(path, how)[1] for path in (config.text, config.domain)]
    text, domain = ([rows[i] for i in range(len(rows))[few]] for rows in parts)
    questions = read_instructions(config.questions)
    trained_on = {(one.instruction, one.input) for one in read_instructions(config.instructions)}
    leaked = sum((one.instruction, one.input) in trained_on for one in questions)
    if config.sweep:  # rates are not chosen by the questions of the comparison
        known = trained_on | {(one.instruction, one.input) for one in read_instructions(Config.questions)}
        questions = [one for one in questions if (one.instruction, one.input) not in known]
        leaked = 0
        if not questions:
            raise Mistake(
                "--sweep wants other questions than the comparison's: `python -m world --out FOLDER --seed 1` makes "
                "some; give --questions FOLDER/questions.json"
            )
    if not questions or leaked:
        found = f"{leaked} questions that {config.instructions} trains on" if leaked else "no question"
        raise Mistake(f"{config.questions} holds {found}: it must hold questions that are new")
    unknown = {one.split for one in questions} - set(SPLITS)
    if unknown:
        raise Mistake(f"{config.questions} has a split {sorted(unknown)[0]!r}: it must be among {', '.join(SPLITS)}")
    longest = max(len(instruction_example(one, base.tokenizer).inputs) for one in questions)
    if longest > config.block_size:
        raise Mistake(f"{config.questions} has a question of {longest} tokens, beyond --block-size {config.block_size}")
    few_questions = questions[:: 6 if config.quick else 1]
    return Yardsticks(text, domain, few_questions, base.tokenizer, config.batch_size, device)


# ---- one seed: every method, then what the claims ask for ----------------------------------------------------------


def settings_for_all(config: Config, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """On the domain, and of SFT: the same data in the same order for all methods."""
    same = {key: getattr(config, key) for key in ("block_size", "batch_size", "held_out", "device")} | {"seed": seed}
    from_base = {**same, "init_from": config.base, "eval_every": 200}
    domain = {**from_base, "text": config.domain, "steps": config.domain_steps}
    sft = {**from_base, "instructions": config.instructions, "steps": config.steps, "pack": True}
    return domain, {**sft, "learning_rate": config.sft_learning_rate}


def methods_of_core(config: Config, folder: Path, seed: int) -> list[Method]:
    """Four ways of finetuning, and three controls."""
    domain, sft = settings_for_all(config, seed)
    lora_sft = {**sft, "learning_rate": config.lora_sft_learning_rate, "r": config.r}
    methods = [
        ("continued pretraining", train_pretrain, {**domain, "learning_rate": config.learning_rate}),
        ("LoRA on the domain", train_lora, {**domain, "learning_rate": config.lora_learning_rate, "r": config.r}),
        ("SFT", train_sft, sft),
        ("LoRA-SFT", train_lora, lora_sft),
        ("LoRA-SFT, no examples", train_lora, {**lora_sft, "instructions": str(folder / "no-examples.json")}),
        ("SFT, prompt graded", train_sft, {**sft, "grade_prompt": True}),
        ("SFT, random weights", train_sft, {**sft, "init_from": str(folder / "random-base")}),
    ]
    return in_folders(methods, folder)


def methods_of_peft(config: Config, folder: Path, seed: int) -> list[Method]:
    """What can learn beside a frozen base, and full finetuning."""
    sft = settings_for_all(config, seed)[1]
    length = {"length": config.length}
    methods = [
        ("SFT", train_sft, sft),
        ("LoRA-SFT", train_lora, {**sft, "learning_rate": config.lora_sft_learning_rate, "r": config.r}),
        ("adapter-SFT", train_adapter, {**sft, "learning_rate": config.adapter_learning_rate, "width": config.width}),
        ("prefix-SFT", train_prefix, {**sft, "learning_rate": config.prefix_learning_rate, **length}),
        ("prompt-SFT", train_prompt, {**sft, "learning_rate": config.prompt_learning_rate, **length}),
    ]
    return in_folders(methods, folder)


def methods_of_task(config: Config, folder: Path, seed: int) -> list[Method]:
    """Who learns to tell classes: how much of a model, and which model; and SFT, which says them in words."""
    same = {"block_size": config.block_size, "device": config.device, "seed": seed, "eval_every": 200}
    same |= {"batch_size": 4 * config.batch_size}  # rows are short
    steps = {task: {"steps": config.steps * tasks.TIMES.get(task, 1)} for task in tasks.TASKS}
    ways = {
        "frozen head": {"init_from": config.base, "learn": "head", "learning_rate": 1e-2},
        "last block": {"init_from": config.base, "learn": "last-1", "learning_rate": 2e-3},
        "LoRA + head": {"init_from": config.base, "learn": "lora", "learning_rate": 4e-3},
        "all": {"init_from": config.base, "learn": "all", "learning_rate": 5e-4},
        "random weights": {"init_from": str(folder / "random-base"), "learn": "all", "learning_rate": 1e-3},
        "encoder": {"init_from": config.encoder, "learn": "all", "learning_rate": 1e-3},
    }
    methods: list[tuple[str, Any, dict[str, Any]]] = [
        (f"{who}, {task}", train_classifier, {**same, **how, **steps[task], kind: f"{config.classes}/{file}.json"})
        for who, how in ways.items()
        for task, (kind, file) in tasks.TASKS.items()
    ]
    words = {**same, "init_from": config.base, "learning_rate": 3e-4}
    for task in tasks.ASKED:
        asked = {"instructions": str(folder / f"{task}.json"), **steps[task]}
        methods.append((f"SFT in words, {task}", train_sft, {**words, **asked}))
    return in_folders(methods, folder)


def methods_of_preference(config: Config, folder: Path, seed: int) -> list[Method]:
    """An SFT model that knows two styles, and from it all that learns which of them is preferred."""
    styled = {"instructions": config.styled, "learning_rate": config.styled_learning_rate}
    sft = settings_for_all(config, seed)[1] | styled
    same = {key: sft[key] for key in ("block_size", "held_out", "device", "seed", "eval_every")}
    same |= {"init_from": str(folder / "sft"), "steps": config.pair_steps, "batch_size": 2 * config.batch_size}
    dpo = {**same, "pairs": config.pairs, "learning_rate": config.dpo_learning_rate}
    strong = {**dpo, "learning_rate": 10 * config.dpo_learning_rate, "beta": 0.1}
    reward = {**dpo, "learning_rate": config.reward_learning_rate}
    rlhf = {**same, "instructions": config.pairs, "columns": "output=chosen", "reward": str(folder / "reward-model")}
    rlhf |= {"steps": config.answer_steps, "learning_rate": config.rlhf_learning_rate}
    rlhf |= {"beta": 0.5}  # a score is in larger units than 0 and 1
    fast = {**rlhf, "learning_rate": 6 * config.rlhf_learning_rate}  # so that few steps show what the KL is for
    methods = [
        (preference.SFT, train_sft, sft),
        (preference.REWARD, train_reward, reward),
        (preference.DPO, train_dpo, dpo),
        (preference.WITH_NLL, train_dpo, {**strong, "nll": 1.0}),
        (preference.STRONG, train_dpo, strong),
        (preference.RLHF, train_rlhf, rlhf),
        (preference.EXACT, train_rlhf, {**rlhf, "reward": "exact", "beta": 0.05}),
        (preference.FAST, train_rlhf, fast),
        (preference.HACKED, train_rlhf, {**fast, "beta": 0.0}),
    ]
    return in_folders(methods, folder)


def in_folders(methods: list[tuple[str, Any, dict[str, Any]]], folder: Path) -> list[Method]:
    return [
        Method(name, script, settings, str(folder / name.lower().replace(",", "").replace(" ", "-")))
        for name, script, settings in methods
    ]


class Family(NamedTuple):
    """Methods that are compared with each other, what else is measured of them, and what is said and drawn of it."""

    methods: Callable[[Config, Path, int], list[Method]]
    one_seed: Callable[..., dict[str, Any]]
    gather: Callable[..., dict[str, Any]]
    claims: dict[str, tuple[str, claims.Claim]]
    page: Callable[[dict[str, Any]], str]
    plot: Callable[[dict[str, Any], Path], str]
    yardstick: Callable[[GPT, Yardsticks], dict[str, Any]] = judge


def one_seed(config: Config, family: Family, folder: Path, seed: int, y: Yardsticks) -> dict[str, Any]:
    """The rows of the table, what each model says, and the evidence for the claims."""
    base = checkpoint.open_run(config.base).model().to(y.device)
    torch.manual_seed(seed)
    checkpoint.save_model(folder / "random-base", GPT(base.config), y.tokenizer)
    alone = [as_json(one._replace(examples=())) for one in read_instructions(config.instructions)]
    write_whole(folder / "no-examples.json", json.dumps(alone).encode())
    rows = {"base": {"method": "base", **costs_of_base(config.base, base), **family.yardstick(base, y)}}
    said = {"base": samples(base, y)}
    methods = {method.name: method for method in family.methods(config, folder, seed)}
    for number, (name, method) in enumerate(methods.items(), 1):
        print(f"\n{name}, method {number} of {len(methods)}")
        costs = costs_of(method)
        model = checkpoint.load_run(method.out, "", y.device)[0]
        rows[name] = {"method": name, **costs, **family.yardstick(model, y)}
        if not cannot_write(model):
            said[name] = samples(model, y)
    print("\nother trainings, for the curves")
    found = family.gather(config.base, base, methods, rows, seed, y)
    return {"rows": list(rows.values()), "samples": said, "evidence": found}


def one_seed_of_task(config: Config, family: Family, folder: Path, seed: int, y: Yardsticks) -> dict[str, Any]:
    """The rows of the table, one for who learns, of all tasks; they are the evidence too."""
    torch.manual_seed(seed)
    checkpoint.save_model(folder / "random-base", GPT(checkpoint.config_of(config.base)), y.tokenizer)
    tasks.write_in_words(config.classes, folder)
    methods, costs = family.methods(config, folder, seed), {}
    for number, method in enumerate(methods, 1):
        print(f"\n{method.name}, method {number} of {len(methods)}")
        costs[method.name] = costs_of(method)
    rows = family.gather(config.classes, methods, costs, y.device)
    return {"rows": list(rows.values()), "samples": {}, "evidence": {"rows": rows}}


SWEPT = ("core", "peft")  # whose learning rates experiment/sweep.py knows
FAMILIES = {
    "core": Family(methods_of_core, one_seed, evidence.gather, claims.CLAIMS, report.page, plot.comparison),
    "peft": Family(methods_of_peft, one_seed, frozen.gather, frozen.CLAIMS, report.page, plot.learned),
    "task": Family(methods_of_task, one_seed_of_task, tasks.gather, tasks.CLAIMS, tasks.page, plot.classes),
    "preference": Family(
        methods_of_preference, one_seed, preference.gather, preference.CLAIMS, preference.page, plot.preference,
        preference.judge,
    ),
}  # fmt: skip


def samples(model: GPT, y: Yardsticks) -> list[dict[str, str]]:
    """What the model writes after the first held-out words of either text, and after one question of three splits."""
    prompts = [y.tokenizer.decode(rows[0].prompt()) for rows in (y.text, y.domain)]
    for split in ("instances", "facts", "tasks"):
        prompts += [render_prompt(one.instruction, one.input) for one in y.of_split(split)[:1]]
    new = generate(model, [y.tokenizer.encode_ordinary(one) for one in prompts], 24, y.tokenizer.eot_token)
    return [{"prompt": one, "answer": y.tokenizer.decode(answer)} for one, answer in zip(prompts, new, strict=True)]


def costs_of(method: Method) -> dict[str, Any]:
    """What the training of a method took and returned; it is done unless it has been, and kept beside its run."""
    file = Path(method.out + ".json")
    if not file.exists():
        if is_finished(Path(method.out)):
            shutil.rmtree(method.out)  # it was stopped before its costs were known
        costs = in_own_process(method.script.main, method.config(method.out))
        write_whole(file, json.dumps(costs).encode())
    return json.loads(file.read_text(encoding="utf-8"))


def costs_of_base(folder: str, base: GPT) -> dict[str, Any]:
    """What pretraining the base took, as far as its run folder tells."""
    total = sum(parameter.numel() for parameter in base.parameters())
    file, seconds = Path(folder, "model.pt"), evidence.pretraining(folder)[1]
    size = file.stat().st_size if file.is_file() else None  # a model in Hugging Face's layout
    return {"trainable": total, "total": total, "seconds": seconds, "peak_mb": None, "checkpoint_bytes": size}


if __name__ == "__main__":
    command_line(main, Config)
