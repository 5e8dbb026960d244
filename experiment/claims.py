"""The claims ledger: what a textbook says of finetuning (SLP3, ch. 12), each sentence with a verdict from the numbers.

A claim is a function of one seed's evidence (compare.py gathers it) that returns a verdict and the numbers behind it.
Nothing is decided in advance: two shares differ when they are more than 1.96 standard errors apart, and where the
evidence is missing or too small the verdict says so.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from experiment.verdicts import FAILS, HOLDS, UNSEEN, above_chance, beats, both, draws_beat, when

Evidence = dict[str, Any]
Finding = tuple[str, str]  # verdict, numbers
Claim = Callable[[Evidence], Finding]


def ledger(seeds: list[Evidence], claims: Mapping[str, tuple[str, Claim]]) -> list[dict[str, Any]]:
    """Each claim with its verdict on every seed; the verdict of all is theirs if they agree."""
    entries, seeds = [], with_all_draws(seeds)
    for number, (sentence, claim) in claims.items():
        verdicts, numbers = map(list, zip(*map(claim, seeds), strict=True))
        overall = verdicts[0] if len(set(verdicts)) == 1 else f"{UNSEEN}: the seeds disagree ({', '.join(verdicts)})"
        entry = {"number": number, "claim": sentence, "verdict": overall}
        entries.append(entry | {"verdicts": verdicts, "numbers": numbers})
    return entries


def with_all_draws(seeds: list[Evidence]) -> list[Evidence]:
    """Each seed's evidence with the draws of tasks of all of them: another seed is another draw."""
    of_points = zip(*(evidence.get("number_of_tasks", []) for evidence in seeds), strict=True)
    points = [{**of_seeds[0], "draws": [draw for one in of_seeds for draw in one["draws"]]} for of_seeds in of_points]
    return [{**evidence, "number_of_tasks": points} for evidence in seeds]


def match(evidence: Evidence, method: str, split: str) -> dict[str, Any]:
    return evidence["rows"][method]["exact_match"][split]


def from_to(before: float, after: float) -> str:
    """Of nats a token; the change of the perplexity, their exponential, in per cent."""
    return f"{before:.3f} -> {after:.3f} (perplexity {math.exp(after - before) - 1:+.0%})"


def said(share: dict[str, Any]) -> str:
    return f"{share['value']:.1%} of {share['n']} (chance {share['chance']:.0%})" if share["n"] else "no such questions"


# ---- the claims --------------------------------------------------------------------------------------------------


def base_continues(e: Evidence) -> Finding:
    row, exact = e["rows"]["base"], match(e, "base", "instances")
    # of few questions, one answered by luck is more than 1 %
    follows_nothing = when(exact["value"] <= max(0.01, 1 / exact["n"])) if exact["n"] else UNSEEN
    verdict = both(when(row["base_nll"] < e["base"]["unigram_nll"] - math.log(10)), follows_nothing)
    return verdict, (
        f"NLL {row['base_nll']:.3f} of held-out base text, {e['base']['unigram_nll']:.3f} by word frequencies; exact "
        f"match, to the end of its answer, {said(exact)}; the first line of {e['base']['begins_with_the_answer']:.1%} "
        "begins with the answer"
    )


def continued_adapts(e: Evidence) -> Finding:
    before, after = e["rows"]["base"]["domain_nll"], e["rows"]["continued pretraining"]["domain_nll"]
    c = e["continued"]
    return both(when(c["changed"] == c["tensors"]), when(after < before)), (
        f"{c['changed']} of {c['tensors']} tensors changed; domain NLL {from_to(before, after)}"
    )


def continued_forgets(e: Evidence) -> Finding:
    before, after = e["rows"]["base"]["base_nll"], e["rows"]["continued pretraining"]["base_nll"]
    return when(after > before), f"base NLL {from_to(before, after)}"


def lora_gains(e: Evidence) -> Finding:
    base, full, lora = (e["rows"][name] for name in ("base", "continued pretraining", "LoRA on the domain"))
    if not full["domain_nll"] < base["domain_nll"]:
        return UNSEEN, "full finetuning gained nothing on the domain that LoRA could reach"
    gain = (base["domain_nll"] - lora["domain_nll"]) / (base["domain_nll"] - full["domain_nll"])
    share = lora["trainable"] / lora["total"]
    verdict = both(when(e["lora"]["base_untouched"]), when(share < 0.1), when(gain > 0.5))
    return verdict, (
        f"base weights {'bit for bit the same' if e['lora']['base_untouched'] else 'CHANGED'}; {share:.1%} of the "
        f"parameters learn; domain NLL {from_to(base['domain_nll'], lora['domain_nll'])}, {gain:.0%} of what full "
        "finetuning gains"
    )


def lora_learns_and_forgets_less(e: Evidence) -> Finding:
    """Of the trainings at the table's rates, and of those at a third of them."""
    verdicts, numbers = [], []
    for full, lora in pairs_of_rates(e):
        (steps, full_domain, full_base), (_, lora_domain, lora_base) = full["points"][-1], lora["points"][-1]
        verdicts += [when(lora_domain > full_domain), when(lora_base < full_base)]
        numbers.append(
            f"{steps} steps at {lora['rate']:.1e} and {full['rate']:.1e}: domain NLL {lora_domain:.3f} and "
            f"{full_domain:.3f}, base NLL {lora_base:.3f} and {full_base:.3f}"
        )
    return both(*verdicts), f"LoRA and full finetuning, {'; '.join(numbers)}"


def lora_forgets_less_for_the_same(e: Evidence) -> Finding:
    """Base NLL of both at the domain NLLs that LoRA's curve passes, between points of the full curve, in a line."""
    verdicts, numbers = [], []
    for full, lora in pairs_of_rates(e):
        pairs = at_the_same_domain_nll(full["points"], lora["points"])
        less = sum(base < other for _, other, base in pairs)
        verdicts.append(UNSEEN if not pairs else HOLDS if less == len(pairs) else FAILS if not less else UNSEEN)
        points = ", ".join(f"at {domain:.2f} {base:.3f} and {other:.3f}" for domain, other, base in pairs)
        numbers.append(f"rates {lora['rate']:.1e} and {full['rate']:.1e}: {points or 'none is common to both'}")
    return both(*verdicts), f"base NLL of LoRA and of full finetuning at the same domain NLL, {'; '.join(numbers)}"


def pairs_of_rates(e: Evidence) -> list[tuple[Evidence, Evidence]]:
    """The trainings along which something is learned and forgotten: full finetuning's and LoRA's, rate by rate."""
    return list(zip(e["forgetting"]["continued pretraining"], e["forgetting"]["LoRA on the domain"], strict=True))


def at_the_same_domain_nll(
    full: Sequence[Sequence[float]], lora: Sequence[Sequence[float]]
) -> list[tuple[float, float, float]]:
    """(domain NLL, base NLL of full, of LoRA); both are given as points (steps, domain NLL, base NLL)."""
    full_curve, lora_curve = (sorted((domain, base) for _, domain, base in curve) for curve in (full, lora))
    xs, ys = zip(*full_curve, strict=True)
    common = [one for one in lora_curve[:-1] if xs[0] <= one[0] <= xs[-1]]  # the last is where both start
    return [(domain, float(np.interp(domain, xs, ys)), base) for domain, base in common]


def lora_is_small(e: Evidence) -> Finding:
    row, lora = e["rows"]["LoRA-SFT"], e["lora"]
    needed = 4 * row["trainable"]
    verdict = both(when(row["checkpoint_bytes"] < 1.2 * needed), when(lora["same_answers_merged"] == lora["n"]))
    return verdict, (
        f"{row['checkpoint_bytes']:,} bytes for {row['trainable']:,} parameters of 4 bytes; merged, "
        f"{lora['same_answers_merged']} of {lora['n']} answers are the same"
    )


def same_objective(e: Evidence) -> Finding:
    mask = e["mask"]
    verdict = both(when(mask["prompt_graded_is_pretraining"]), when(not mask["masked_is_pretraining"]))
    return verdict, (
        f"one batch, as text: {mask['loss']['text']:.6f} nats a token over {mask['graded_tokens']['text']} tokens; as "
        f"SFT with the prompt graded: {mask['loss']['graded']:.6f}, gradients "
        f"{'bit-equal' if mask['prompt_graded_is_pretraining'] else 'DIFFERENT'}; with the prompt masked: "
        f"{mask['loss']['masked']:.6f} over {mask['graded_tokens']['masked']}"
    )


def sft_follows(e: Evidence) -> Finding:
    """Of every split, the better of SFT and LoRA-SFT must be above chance."""
    verdicts, numbers = [], []
    for split in ("instances", "phrasings", "entities"):
        sft, lora = match(e, "SFT", split), match(e, "LoRA-SFT", split)
        if sft["n"]:
            verdicts.append(above_chance(max(sft, lora, key=lambda share: share["value"])))
            numbers.append(f"{split} {said(sft)}, LoRA-SFT {lora['value']:.1%}")
    return both(*verdicts), "; ".join(numbers)


def sft_elicits(e: Evidence) -> Finding:
    methods = ("SFT", "LoRA-SFT", "SFT, random weights")
    sft, lora, random = (match(e, method, "facts") for method in methods)
    if not sft["n"]:
        return UNSEEN, "no questions about facts"
    best = max(sft, lora, key=lambda share: share["value"])
    not_random = beats(best["value"], random["value"], best["n"], random["n"])
    verdict = both(above_chance(best), not_random, when(above_chance(random) != HOLDS))
    return verdict, "; ".join(f"{name} {said(share)}" for name, share in zip(methods, (sft, lora, random), strict=True))


def generalises_to_tasks(e: Evidence) -> Finding:
    sft, lora = match(e, "SFT", "tasks"), match(e, "LoRA-SFT", "tasks")
    if not sft["n"] or len(e["number_of_tasks"]) < 2:
        return UNSEEN, "no tasks are told apart in the instructions"
    best = max(sft, lora, key=lambda share: share["value"])
    verdict, points = more_tasks(e, "zero_shot")
    return both(above_chance(best), verdict), f"SFT {said(sft)}; LoRA-SFT {said(lora)}; {points}"


def more_tasks(e: Evidence, key: str) -> Finding:
    """Whether the mean over draws of tasks is higher with all tasks than with the fewest."""
    curve = e["number_of_tasks"]
    draws = [[draw[key] for draw in point["draws"]] for point in curve]
    points = ", ".join(
        f"{point['tasks']} tasks {sum(of_point) / len(of_point):.1%} ({min(of_point):.0%} to {max(of_point):.0%})"
        for point, of_point in zip(curve, draws, strict=True)
    )
    return draws_beat(draws[-1], draws[0], draws), (
        f"LoRA-SFT on {curve[0]['records']} records of {points}, the mean of {len(draws[0])} draws of tasks"
    )


def grading_the_prompt(e: Evidence) -> Finding:
    masked, graded = e["rows"]["SFT"], e["rows"]["SFT, prompt graded"]
    of_splits = [[one for one in row["exact_match"].values() if one["n"]] for row in (masked, graded)]
    n = sum(share["n"] for share in of_splits[0])
    if not n:
        return UNSEEN, "no questions"
    right = [sum(share["value"] * share["n"] for share in shares) / n for shares in of_splits]
    verdict = beats(right[0], right[1], n, n)
    return verdict, (
        f"masked: response NLL {masked['response_nll']:.3f}, exact match {right[0]:.1%} of {n} questions; "
        f"prompt graded too: {graded['response_nll']:.3f}, {right[1]:.1%}"
        + ("; the difference is within 1.96 standard errors" if verdict == UNSEEN else "")
    )


def sft_is_cheap(e: Evidence) -> Finding:
    c = e["cost"]
    if not c["base_tokens"]:
        return UNSEEN, "the base does not say what it cost"
    return when(c["sft_tokens"] < c["base_tokens"] / 10), (
        f"{c['epochs']:.1f} epochs over {c['instructions']:,} instructions: {c['sft_tokens'] / 1e6:.2f}M tokens, "
        f"{c['sft_flops']:.1e} operations, {c['sft_seconds']:.0f} s; pretraining: {c['base_tokens'] / 1e6:.1f}M, "
        f"{c['base_flops']:.1e}, {c['base_seconds']:.0f} s, on the machine of its card; "
        f"SFT is {c['sft_tokens'] / c['base_tokens']:.1%} of the tokens"
    )


def in_context(e: Evidence) -> Finding:
    verdicts, numbers = [], []
    for kind, shots in e["few_shot"].items():
        if shots["n"]:
            base = shots["base"]
            verdicts.append(beats(base["4"], base["0"], shots["n"], shots["n"]))
            numbers.append(f"{shots['n']} questions of tasks {kind} (chance {shots['chance']:.0%}): {curve_of(base)}")
    found = "; ".join(numbers) or "no question fits the block with four examples"
    return both(*verdicts), f"right first lines of the base after 0, 1, 2, 4 examples, {found}"


def random_labels(e: Evidence) -> Finding:
    """Min et al. (2022): examples may teach the format alone; where they must teach the task, their labels count."""
    named, silent = e["labels"]["named"], e["labels"]["silent"]
    if not named["n"] or not silent["n"]:
        return UNSEEN, "no question fits the block with four examples"
    helps = beats(named["random"], named["none"], named["n"], named["n"])
    as_much = when(beats(named["right"], named["random"], named["n"], named["n"]) != HOLDS)
    needed = beats(silent["right"], silent["random"], silent["n"], silent["n"])
    return both(helps, as_much, needed), "; ".join(
        f"{what} ({share['n']} questions): {share['none']:.1%} without examples, {share['right']:.1%} after four, "
        f"{share['random']:.1%} after four with random labels"
        for what, share in (("the task is named", named), ("only inputs and outputs", silent))
    )


def tuning_lifts_few_shot(e: Evidence) -> Finding:
    shots = e["few_shot"]["trained"]
    if not shots["n"]:
        return UNSEEN, "no question fits the block with four examples"
    base, tuned, without = (shots[name]["4"] for name in ("base", "LoRA-SFT", "LoRA-SFT, no examples"))
    n = shots["n"]
    curves = "; ".join(
        f"tasks {kind}: "
        + ", ".join(f"{name} {curve_of(curve)}" for name, curve in of_kind.items() if isinstance(curve, dict))
        for kind, of_kind in e["few_shot"].items()
    )
    return both(beats(tuned, base, n, n), beats(tuned, without, n, n)), f"after 0, 1, 2, 4 examples, {curves}"


def meta_learning(e: Evidence) -> Finding:
    curve = e["number_of_tasks"]
    if len(curve) < 2 or not curve[0]["n_few_shot"]:
        return UNSEEN, "no tasks are told apart in the instructions, or no question fits the block with four examples"
    verdict, points = more_tasks(e, "few_shot")
    return verdict, f"never-trained tasks after four examples, {curve[0]['n_few_shot']} questions: {points}"


def curve_of(shares: dict[str, float]) -> str:
    return " ".join(f"{value:.0%}" for value in shares.values())


CLAIMS: dict[str, tuple[str, Claim]] = {
    "1": ("The base model continues text well and follows no instruction.", base_continues),
    "2": ("Continued pretraining updates all the parameters and adapts to the domain.", continued_adapts),
    "3": ("It forgets some of what it knew.", continued_forgets),
    "4": ("LoRA leaves the base as it was, trains a few per cent of it, and reaches most of the gain.", lora_gains),
    "5a": (
        "LoRA learns less and forgets less than full finetuning at the same number of steps.",
        lora_learns_and_forgets_less,
    ),
    "5b": ("LoRA forgets less than full finetuning at the same domain NLL.", lora_forgets_less_for_the_same),
    "6": ("A LoRA checkpoint is as small as its parameters, and merging changes no answer.", lora_is_small),
    "7": (
        "SFT has pretraining's objective: with the prompt graded too, loss and gradients are bit-equal.",
        same_objective,
    ),
    "8": ("SFT makes the model follow instructions: new instances, phrasings, entities.", sft_follows),
    "9": ("SFT elicits knowledge that only pretraining gave; from random weights it cannot.", sft_elicits),
    "10": (
        "It generalises to tasks never trained on, and more training tasks make it better, with as many records.",
        generalises_to_tasks,
    ),
    "11": ("Grading the prompt too does not help.", grading_the_prompt),
    "12": ("Instruction tuning costs a small fraction of pretraining.", sft_is_cheap),
    "13": ("In-context learning: examples in the prompt make the base model answer better.", in_context),
    "14": (
        "Random labels help as much where the task is named, and less where it must be read off the examples.",
        random_labels,
    ),
    "15": (
        "Instruction tuning lifts few-shot accuracy; tuning on records without examples harms it.",
        tuning_lifts_few_shot,
    ),
    "16": (
        "Meta-learning: with more training tasks, tasks never trained are answered better after examples.",
        meta_learning,
    ),
}
