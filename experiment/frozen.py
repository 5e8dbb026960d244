"""What learns beside a frozen base: LoRA, bottlenecks, prefixes and soft prompts on one line, and claims 17 to 21.

Each method trains on the same instructions, in the same order, for as many steps. What is compared is what they reach
with how few numbers; each has a smaller variant, of less width or length.
"""

from typing import Any

from evaluate import Yardsticks, judge_answers
from experiment.claims import Claim, Evidence, Finding, match, said
from experiment.method import Method
from experiment.verdicts import HOLDS, UNSEEN, above_chance, beats, both, when
from model.gpt import GPT
from model.switch import base_state_dict
from store import checkpoint
from store.learned import fingerprint

SIZES = {"adapter-SFT": "width", "prefix-SFT": "length", "prompt-SFT": "length"}  # the flag that makes each larger


def gather(
    base_run: str, base: GPT, methods: dict[str, Method], rows: dict[str, Any], seed: int, y: Yardsticks
) -> Evidence:
    """base_run: the folder of the base model; methods and rows of the table by name."""
    before = fingerprint(dict(base.state_dict()))
    models = {name: checkpoint.load_run(method.out, "", y.device)[0] for name, method in methods.items()}
    frozen = {name: model for name, model in models.items() if rows[name]["trainable"] < rows[name]["total"]}
    return {
        "rows": rows,
        "untouched": {name: fingerprint(base_state_dict(model)) == before for name, model in frozen.items()},
        "smaller": {name: smaller(methods[name], flag, y) for name, flag in SIZES.items()},
    }


def smaller(method: Method, flag: str, y: Yardsticks) -> dict[str, Any]:
    """The same training with a fourth of the width or length: how many numbers learn then, and what they reach."""
    size = max(1, method.settings[flag] // 4)
    model = method.variant(f"{flag}-{size}", y.device, **{flag: size})
    learns = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in base_state_dict(model).values())
    return {"size": size, "trainable": learns, "instances": judge_answers(model, y, "instances")}


# ---- the claims --------------------------------------------------------------------------------------------------


def leaves_the_base(e: Evidence) -> Finding:
    same = e["untouched"]
    return when(all(same.values())), "base weights bit for bit the same: " + ", ".join(
        f"{name} {'yes' if so else 'NO'}" for name, so in same.items()
    )


def learns_little(e: Evidence) -> Finding:
    shares = {name: e["rows"][name]["trainable"] / e["rows"][name]["total"] for name in e["untouched"]}
    return when(max(shares.values()) < 0.06), ", ".join(
        f"{name} {e['rows'][name]['trainable']:,} ({share:.1%})" for name, share in shares.items()
    )


def reaches_lora(e: Evidence) -> Finding:
    lora = match(e, "LoRA-SFT", "instances")
    if not lora["n"]:
        return UNSEEN, "no questions of new instances"
    found = {name: match(e, name, "instances")["value"] for name in SIZES}
    verdict = both(*(when(share >= 0.9 * lora["value"]) for share in found.values()))
    return verdict, f"new instances: LoRA-SFT {said(lora)}; " + ", ".join(
        f"{name} {share:.1%} ({share / lora['value']:.0%} of LoRA's)" if lora["value"] else f"{name} {share:.1%}"
        for name, share in found.items()
    )


def prompt_elicits(e: Evidence) -> Finding:
    prompt, sft = match(e, "prompt-SFT", "facts"), match(e, "SFT", "facts")
    if not sft["n"]:
        return UNSEEN, "no questions about facts"
    as_well = when(beats(sft["value"], prompt["value"], sft["n"], prompt["n"]) != HOLDS)
    learned = e["rows"]["prompt-SFT"]["trainable"]
    return both(as_well, above_chance(prompt)), f"facts: {learned:,} numbers {said(prompt)}; SFT {said(sft)}"


def larger_helps(e: Evidence) -> Finding:
    verdicts, numbers = [], []
    for name, flag in SIZES.items():
        less, more = e["smaller"][name], match(e, name, "instances")
        if more["n"]:
            verdicts.append(beats(more["value"], less["instances"]["value"], more["n"], more["n"]))
            learned = e["rows"][name]["trainable"]
            numbers.append(
                f"{name}, {flag} {less['size']}: {less['trainable']:,} numbers {less['instances']['value']:.1%}, "
                f"four times as many ({learned:,}) {more['value']:.1%}"
            )
    return both(*verdicts), "; ".join(numbers) or "no questions of new instances"


CLAIMS: dict[str, tuple[str, Claim]] = {
    "17": ("Adapters, prefixes and prompts leave the base as it was, as LoRA does.", leaves_the_base),
    "18": ("Each of them learns less than 6 % of the parameters.", learns_little),
    "19": ("Each of them reaches 90 % of LoRA's accuracy on new instances.", reaches_lora),
    "20": ("A soft prompt elicits facts as well as full finetuning.", prompt_elicits),
    "21": ("More width or length helps.", larger_helps),
}
