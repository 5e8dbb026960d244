"""What the loss asks where responses are compared: a reward model, DPO, and RLHF from one SFT model; claims 27 to 34.

The SFT model answers in two styles, as its instructions do; people prefer one, which ends in a closing. What is judged:
how many answers are in that style, how many are right whatever their style, and what else has changed.
"""

from collections.abc import Sequence
from typing import Any

import torch

from cli import Mistake
from data.examples import Pair, Reading, instruction_example
from data.pairs import from_pairs, read_pairs, scored_pairs
from evaluate import Yardsticks, token_nll
from experiment.claims import Claim, Evidence, Finding
from experiment.evidence import metrics
from experiment.method import Method
from experiment.report import aligned, formatted, how_exact
from experiment.verdicts import FAILS, HOLDS, beats, both, when
from model.generate import cannot_write, generate
from model.gpt import GPT
from model.preference import log_likelihood
from run.pairs import pair_accuracy, pair_margins
from run.rollout import Answer, as_batch
from store import checkpoint

SFT, REWARD, DPO, WITH_NLL, STRONG, RLHF, EXACT, FAST, HACKED = METHODS = (
    "SFT", "reward model", "DPO", "DPO too strong, with NLL", "DPO too strong",
    "RLHF", "RLHF, exact rewards", "RLHF, fast", "RLHF, fast, without KL",
)  # fmt: skip
POINTS = 0.03  # of right answers that a preference may cost


def closing_of(path: str) -> str:
    """What the chosen responses have more than the rejected ones. Raises Mistake unless that is the same in all."""
    more = {one.chosen.output.removeprefix(one.rejected.output) for one in read_pairs(path)}
    if len(more) != 1 or "" in more:
        raise Mistake(f"{path}: its chosen responses must be the rejected ones and a closing, the same in all of them")
    return more.pop()


def judge(model: GPT, y: Yardsticks) -> dict[str, float | None]:
    """What can be judged of any model that writes: the NLL of the base's own text."""
    return {"base_nll": None if cannot_write(model) else token_nll(model, y.text, y.batch_size)}


def gather(
    base_run: str, base: GPT, methods: dict[str, Method], rows: dict[str, Any], seed: int, y: Yardsticks
) -> Evidence:
    """base_run: the folder of the base model; methods and rows of the table by name. Adds to the rows what is judged by
    answers and by pairs."""
    settings = methods[DPO].settings
    closing = closing_of(settings["pairs"])
    how = Reading(y.tokenizer, settings["block_size"], settings["held_out"])
    pairs = from_pairs(settings["pairs"], how)[1]
    models = {name: checkpoint.load_run(method.out, "", y.device)[0] for name, method in methods.items()}
    for name, model in {"base": base, **models}.items():
        if name == REWARD:
            scored = scored_pairs(settings["pairs"], how)[1]
            rows[name] |= {**NOTHING, "pairs": pair_accuracy(pair_margins(model, scored, y.batch_size))}
        else:
            rows[name] |= of_answers(model, models[SFT], name != "base", closing, seed, y)
            rows[name] |= of_pairs(model, models[SFT], name not in ("base", SFT), pairs, y)
    return {
        "rows": rows,
        "n": len(y.of_split("instances")),
        "metrics": {name: metrics(methods[name].out) for name in METHODS},
    }


NOTHING: dict[str, None] = dict.fromkeys(
    ("style", "right", "sampled_style", "sampled_right", "kl", "length", "pairs", "chosen_nll")
)


def of_answers(
    model: GPT, reference: GPT, has_kl: bool, closing: str, seed: int, y: Yardsticks
) -> dict[str, float | None]:
    """The share of answers to new instances that are in the preferred style, and that are right in either; greedy, and
    sampled; and of the sampled ones the KL to the reference, nats an answer, and tokens."""
    questions, eot = y.of_split("instances"), y.tokenizer.eot_token
    prompts = [instruction_example(one, y.tokenizer).prompt() for one in questions]
    found: dict[str, float | None] = {}
    for prefix, temperature in (("", 0.0), ("sampled_", 1.0)):
        generator = torch.Generator(y.device).manual_seed(seed)
        said: list[list[int]] = []
        for i in range(0, len(prompts), 64):
            said += generate(model, prompts[i : i + 64], LONGEST, eot, temperature, generator=generator)
        texts = [y.tokenizer.decode(answer).strip() for answer in said]
        right = [
            len(answer) < LONGEST and text.removesuffix(closing) == one.output
            for answer, text, one in zip(said, texts, questions, strict=True)
        ]
        found[f"{prefix}style"] = sum(text.endswith(closing) for text in texts) / len(texts)
        found[f"{prefix}right"] = sum(right) / len(right)
    said = [[*answer, eot] if len(answer) < LONGEST else answer for answer in said]
    answers = [Answer(prompt, answer, []) for prompt, answer in zip(prompts, said, strict=True)]
    apart = [kl_of(model, reference, answers[i : i + 64], y.device) for i in range(0, len(answers), 64)]
    found["kl"] = float(torch.cat(apart).mean()) if has_kl else None
    found["length"] = sum(len(one.tokens) for one in answers) / len(answers)
    return found


LONGEST = 48  # tokens an answer


@torch.no_grad()
def kl_of(model: GPT, reference: GPT, answers: Sequence[Answer], device: torch.device) -> torch.Tensor:
    """log π(y|x) / π_ref(y|x) of the model's own answers: its mean is their KL divergence, in nats."""
    inputs, targets, graded, positions = (tensor.to(device) for tensor in as_batch(answers))
    one, other = (log_likelihood(each, inputs, targets, graded, positions) for each in (model, reference))
    return one - other


def of_pairs(
    model: GPT, reference: GPT, has_learned: bool, pairs: Sequence[Pair], y: Yardsticks
) -> dict[str, float | None]:
    """Of held-out pairs: the share told right by log π / π_ref, and the NLL of the chosen responses, nats a token."""
    return {
        "pairs": pair_accuracy(pair_margins(model, pairs, y.batch_size, reference)) if has_learned else None,
        "chosen_nll": token_nll(model, [pair.chosen for pair in pairs], y.batch_size),
    }


# ---- what is said ----------------------------------------------------------------------------------------------------

COLUMNS = {  # heading of the table: key in results.json, format
    "method": ("method", "{}"),
    "seconds": ("seconds", "{:.0f}"),
    "style": ("style", "{:.1%}"),
    "right": ("right", "{:.1%}"),
    "style, sampled": ("sampled_style", "{:.1%}"),
    "right, sampled": ("sampled_right", "{:.1%}"),
    "KL": ("kl", "{:.2f}"),
    "tokens": ("length", "{:.1f}"),
    "pairs": ("pairs", "{:.1%}"),
    "chosen NLL": ("chosen_nll", "{:.3f}"),
    "base NLL": ("base_nll", "{:.3f}"),
}


def page(results: dict[str, Any]) -> str:
    lines = [[formatted(row, key, form) for key, form in COLUMNS.values()] for row in results["rows"]]
    return f"{aligned([list(COLUMNS), *lines])}\n\n" + (
        f"Answers to {results['evidence'][0]['n']} new instances. style: the share in the preferred style; right: of\n"
        "right answers, in either style; greedy, and sampled. KL: of the answers from those of SFT, nats an answer;\n"
        "tokens: an answer. pairs: the share of held-out pairs told right, by the score or by log π / π_ref.\n"
        "chosen NLL: of the chosen responses of those pairs, nats a token; base NLL: of the base's text.\n"
        f"{how_exact(results)}"
    )


# ---- the claims ------------------------------------------------------------------------------------------------------


def shares(e: Evidence, *names: str) -> str:
    """Style and right answers, greedy, of some methods."""
    return "; ".join(f"{name} {e['rows'][name]['style']:.1%} / {e['rows'][name]['right']:.1%}" for name in names)


def reaches(e: Evidence, name: str) -> str:
    """Whether nearly all greedy answers are in the style, where those of SFT are not."""
    return when(e["rows"][name]["style"] >= 0.95 > e["rows"][SFT]["style"])


def loses_answers(e: Evidence, name: str, than: str) -> str:
    return beats(e["rows"][than]["right"], e["rows"][name]["right"], e["n"], e["n"])


def first_and_last(e: Evidence, name: str, column: str) -> tuple[float, float]:
    """Means of the first and of the last tenth of the steps."""
    values = [float(row[column]) for row in e["metrics"][name] if row.get(column)]
    n = max(1, len(values) // 10)
    return sum(values[:n]) / n, sum(values[-n:]) / n


def scores_tell(e: Evidence) -> Finding:
    share = e["rows"][REWARD]["pairs"]
    return when(share >= 0.95), f"held-out pairs told right: {share:.1%}"


def dpo_needs_little(e: Evidence) -> Finding:
    dpo, rlhf, reward = (e["rows"][name] for name in (DPO, RLHF, REWARD))
    verdict = both(reaches(e, DPO), when(dpo["pairs"] >= 0.95), when(dpo["seconds"] < rlhf["seconds"]))
    return verdict, (
        f"style / right: {shares(e, SFT, DPO)}; held-out pairs told right {dpo['pairs']:.1%}; {dpo['seconds']:.0f} s, "
        f"RLHF {rlhf['seconds']:.0f} s after {reward['seconds']:.0f} s of its reward model"
    )


def rlhf_reaches(e: Evidence) -> Finding:
    return reaches(e, RLHF), f"style / right: {shares(e, SFT, RLHF)}; KL {e['rows'][RLHF]['kl']:.2f} nats an answer"


def tax_is_small(e: Evidence) -> Finding:
    is_small = all(e["rows"][name]["right"] >= e["rows"][SFT]["right"] - POINTS for name in (DPO, RLHF))
    return when(is_small), f"style / right: {shares(e, SFT, DPO, RLHF)}"


def too_strong_collapses(e: Evidence) -> Finding:
    sft, strong = e["rows"][SFT], e["rows"][STRONG]
    told = when(strong["pairs"] >= 0.95)
    verdict = both(told, when(strong["chosen_nll"] > 2 * sft["chosen_nll"]), loses_answers(e, STRONG, SFT))
    return verdict, (
        f"chosen responses' NLL {sft['chosen_nll']:.3f} -> {strong['chosen_nll']:.3f} nats a token, pairs told right "
        f"{strong['pairs']:.1%}; style / right: {shares(e, SFT, STRONG)}"
    )


def nll_mends(e: Evidence) -> Finding:
    verdict = both(reaches(e, WITH_NLL), loses_answers(e, STRONG, WITH_NLL))
    return verdict, f"style / right: {shares(e, STRONG, WITH_NLL)}"


def without_kl_hacks(e: Evidence) -> Finding:
    before, after = first_and_last(e, HACKED, "reward")
    held = first_and_last(e, FAST, "reward")[1]
    verdict = both(when(after > before), loses_answers(e, HACKED, FAST))
    return verdict, (
        f"reward {before:.2f} -> {after:.2f} (with KL {held:.2f}); style / right: {shares(e, FAST, HACKED)}; KL "
        f"{e['rows'][FAST]['kl']:.2f}, without {e['rows'][HACKED]['kl']:.2f} nats an answer"
    )


def exact_rewards_teach(e: Evidence) -> Finding:
    sft, exact = e["rows"][SFT], e["rows"][EXACT]
    ways = {"greedy": "right", "sampled": "sampled_right"}
    verdicts = [beats(exact[key], sft[key], e["n"], e["n"]) for key in ways.values()]
    verdict = HOLDS if HOLDS in verdicts and FAILS not in verdicts else both(*verdicts)
    return verdict, "right: " + "; ".join(
        f"{way} {sft[key]:.1%} -> {exact[key]:.1%} of {e['n']}" for way, key in ways.items()
    )


CLAIMS: dict[str, tuple[str, Claim]] = {
    "27": ("A reward model tells which of two responses people prefer.", scores_tell),
    "28": ("DPO reaches the preference without a reward model and without sampling.", dpo_needs_little),
    "29": ("RLHF with a reward model reaches it too.", rlhf_reaches),
    "30": ("The preference costs at most three points of right answers.", tax_is_small),
    "31": ("Too strong a DPO tells pairs apart and lowers the chosen responses' own likelihood.", too_strong_collapses),
    "32": ("The chosen responses' NLL in the loss mends that.", nll_mends),
    "33": ("Without the KL the reward rises and the answers get worse.", without_kl_hacks),
    "34": ("Exact rewards raise the share of right answers over SFT's.", exact_rewards_teach),
}
