"""The claims ledger: what a textbook says of finetuning (SLP3, ch. 12), each sentence with a verdict from the numbers.

A claim is a function of one seed's evidence (compare.py gathers it) that returns a verdict and the numbers behind it.
Nothing is decided in advance: two shares differ when they are more than 1.96 standard errors apart, and where the
evidence is missing or too small the verdict says so.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any

HOLDS, FAILS, UNSEEN = "holds", "does not hold", "not visible at this scale"
Evidence = dict[str, Any]
Finding = tuple[str, str]  # verdict, numbers


def ledger(seeds: list[Evidence]) -> list[dict[str, Any]]:
    """Each claim with its verdict on every seed; the verdict of all is theirs if they agree."""
    entries = []
    for number, (sentence, claim) in enumerate(CLAIMS.items(), 1):
        findings = [claim(evidence) for evidence in seeds]
        verdicts = [verdict for verdict, _ in findings]
        overall = verdicts[0] if len(set(verdicts)) == 1 else f"{UNSEEN}: the seeds disagree ({', '.join(verdicts)})"
        numbers = [numbers for _, numbers in findings]
        entries.append(
            {"number": number, "claim": sentence, "verdict": overall, "verdicts": verdicts, "numbers": numbers}
        )
    return entries


def report(entries: list[dict[str, Any]]) -> str:
    """The ledger as a list in Markdown."""
    lines = []
    for entry in entries:
        lines.append(f"{entry['number']}. {entry['claim']} **{entry['verdict']}**")
        several = len(entry["numbers"]) > 1
        lines += [f"   - {f'seed {i}: ' if several else ''}{numbers}" for i, numbers in enumerate(entry["numbers"])]
    return "\n".join(lines)


# ---- how to compare ----------------------------------------------------------------------------------------------


def standard_error(share: float, n: int) -> float:
    """Of a share among n, from (hits + 1) / (n + 2), so that 0 and 100 % have one too."""
    p = (share * n + 1) / (n + 2)
    return math.sqrt(p * (1 - p) / n)


def beats(one: float, other: float, n_one: int, n_other: int) -> str:
    """Whether a share is above another by more than chance would do: 1.96 standard errors of the difference."""
    error = 1.96 * math.hypot(standard_error(one, n_one), standard_error(other, n_other) if n_other else 0)
    return HOLDS if one - other > error else FAILS if other - one > error else UNSEEN


def above_chance(share: dict[str, Any]) -> str:
    return beats(share["value"], share["chance"], share["n"], 0) if share["n"] else UNSEEN


def both(*verdicts: str) -> str:
    """All hold, or the worst of them; without any, nothing was seen."""
    return FAILS if FAILS in verdicts else UNSEEN if UNSEEN in verdicts or not verdicts else HOLDS


def when(condition: bool) -> str:
    return HOLDS if condition else FAILS


def match(evidence: Evidence, method: str, split: str) -> dict[str, Any]:
    return evidence["rows"][method]["exact_match"][split]


def said(share: dict[str, Any]) -> str:
    return f"{share['value']:.1%} of {share['n']} (chance {share['chance']:.0%})" if share["n"] else "no such questions"


# ---- the claims --------------------------------------------------------------------------------------------------


def base_continues(e: Evidence) -> Finding:
    row, exact = e["rows"]["base"], match(e, "base", "instances")
    follows_nothing = when(exact["value"] <= 0.01) if exact["n"] else UNSEEN
    verdict = both(when(row["base_ppl"] < e["base"]["unigram_ppl"] / 10), follows_nothing)
    return verdict, (
        f"perplexity {row['base_ppl']:.2f} of held-out base text, {e['base']['unigram_ppl']:.0f} by word frequencies; "
        f"exact match {said(exact)}; {e['base']['begins_with_the_answer']:.1%} of what it says begins with the answer"
    )


def continued_adapts(e: Evidence) -> Finding:
    before, after = e["rows"]["base"]["domain_ppl"], e["rows"]["continued pretraining"]["domain_ppl"]
    c = e["continued"]
    return both(when(c["changed"] == c["tensors"]), when(after < before)), (
        f"{c['changed']} of {c['tensors']} tensors changed; domain perplexity {before:.1f} -> {after:.2f} "
        f"({after / before - 1:+.1%})"
    )


def continued_forgets(e: Evidence) -> Finding:
    before, after = e["rows"]["base"]["base_ppl"], e["rows"]["continued pretraining"]["base_ppl"]
    return when(after > before), f"base perplexity {before:.2f} -> {after:.2f} ({after / before - 1:+.0%})"


def lora_gains(e: Evidence) -> Finding:
    base, full, lora = (e["rows"][name] for name in ("base", "continued pretraining", "LoRA on the domain"))
    if not full["domain_ppl"] < base["domain_ppl"] < math.inf:
        return UNSEEN, "full finetuning gained nothing on the domain that LoRA could reach"
    gain = math.log(base["domain_ppl"] / lora["domain_ppl"]) / math.log(base["domain_ppl"] / full["domain_ppl"])
    share = lora["trainable"] / lora["total"]
    verdict = both(when(e["lora"]["base_untouched"]), when(share < 0.1), when(gain > 0.5))
    return verdict, (
        f"base weights {'bit for bit the same' if e['lora']['base_untouched'] else 'CHANGED'}; {share:.1%} of the "
        f"parameters learn; domain perplexity {lora['domain_ppl']:.2f}, {gain:.0%} of full finetuning's gain in nats"
    )


def lora_forgets_less(e: Evidence) -> Finding:
    """Base NLL of both at the domain NLLs that LoRA's curve passes, between points of the full curve, in a line."""
    full, lora = (
        sorted((math.log(domain), math.log(base)) for _, domain, base in e["forgetting"][name])
        for name in ("continued pretraining", "LoRA on the domain")
    )
    pairs = []
    for domain, base in lora[:-1]:  # the last is where both start
        for (x0, y0), (x1, y1) in itertools.pairwise(full):
            if x0 <= domain <= x1 and x1 > x0:
                pairs.append((domain, y0 + (y1 - y0) * (domain - x0) / (x1 - x0), base))
                break
    if not pairs:
        return UNSEEN, "the two curves pass no common domain perplexity"
    less = sum(base < other for _, other, base in pairs)
    verdict = HOLDS if less == len(pairs) else FAILS if less == 0 else UNSEEN
    points = ", ".join(f"{math.exp(d):.2f}: {math.exp(base):.2f} and {math.exp(other):.2f}" for d, other, base in pairs)
    return verdict, f"domain perplexity: base perplexity of LoRA and of full finetuning there: {points}"


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
    curve = e["number_of_tasks"]
    sft, lora = match(e, "SFT", "tasks"), match(e, "LoRA-SFT", "tasks")
    if not sft["n"] or len(curve) < 2:
        return UNSEEN, "no tasks are told apart in the instructions"
    best = max(sft, lora, key=lambda share: share["value"])
    more = beats(curve[-1]["value"], curve[0]["value"], curve[-1]["n"], curve[0]["n"])
    points = ", ".join(f"{point['tasks']} tasks {point['value']:.1%}" for point in curve)
    return both(above_chance(best), more), (
        f"SFT {said(sft)}; LoRA-SFT {said(lora)}; LoRA-SFT for a third of the steps, trained on {points}"
    )


def grading_the_prompt(e: Evidence) -> Finding:
    masked, graded = e["rows"]["SFT"], e["rows"]["SFT, prompt graded"]
    splits = [split for split, share in masked["exact_match"].items() if share["n"]]
    if not splits:
        return UNSEEN, "no questions"
    n = sum(masked["exact_match"][split]["n"] for split in splits)
    right = [
        sum(row["exact_match"][s]["value"] * row["exact_match"][s]["n"] for s in splits) / n for row in (masked, graded)
    ]
    helps = beats(right[1], right[0], n, n)
    return {HOLDS: FAILS, FAILS: HOLDS, UNSEEN: UNSEEN}[helps], (
        f"masked: response NLL {masked['response_nll']:.3f}, exact match {right[0]:.1%} of {n} questions; "
        f"prompt graded too: {graded['response_nll']:.3f}, {right[1]:.1%}"
        + ("; the difference is within 1.96 standard errors" if helps == UNSEEN else "")
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
    shots = e["few_shot"]
    if not shots["n"]:
        return UNSEEN, "no question fits the block with four examples"
    verdict = beats(shots["base"]["4"], shots["base"]["0"], shots["n"], shots["n"])
    curves = "; ".join(
        f"{name} {', '.join(f'{value:.1%}' for value in shots[name].values())}" for name in ("base", "SFT", "LoRA-SFT")
    )
    asked = f"{shots['n']} questions of tasks never trained (chance {shots['chance']:.0%})"
    return verdict, f"0, 1, 2, 4 examples, {asked}: {curves}"


CLAIMS: dict[str, Callable[[Evidence], Finding]] = {
    "The base model continues text well and follows no instruction.": base_continues,
    "Continued pretraining updates all the parameters and adapts to the domain.": continued_adapts,
    "It forgets some of what it knew.": continued_forgets,
    "LoRA leaves the base as it was, trains a few per cent of it, and reaches most of the gain.": lora_gains,
    "LoRA forgets less than full finetuning at the same domain perplexity.": lora_forgets_less,
    "A LoRA checkpoint is as small as its parameters, and merging changes no answer.": lora_is_small,
    "SFT has pretraining's objective: with the prompt graded too, loss and gradients are bit-equal.": same_objective,
    "SFT makes the model follow instructions: new instances, phrasings, entities.": sft_follows,
    "SFT elicits knowledge that only pretraining gave; from random weights it cannot.": sft_elicits,
    "It generalises to tasks never trained on, and more training tasks make it better.": generalises_to_tasks,
    "Grading the prompt too does not help.": grading_the_prompt,
    "Instruction tuning costs a small fraction of pretraining.": sft_is_cheap,
    "In-context learning: examples in the prompt make the base model answer better.": in_context,
}
