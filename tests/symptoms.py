"""What the mistakes of tests/zoo.py do, measured: each function takes no argument and returns a sentence.

It says the same kind of thing of the right code and of the wrong, so that the two can be laid side by side.
"""

import dataclasses
import json
import math
import tempfile
from pathlib import Path

import numpy as np
import torch
from conftest import RECORDS, metrics, weights

import sample
import train_dpo
import train_lora
import train_prompt
import train_sft
from data.batches import Batches, collate
from data.examples import Reading, from_instructions, from_text, graded_everywhere, next_token, packed, render_prompt
from data.labelled import from_labelled, to_classify
from data.masked import Masked, MaskedBatches, with_mask
from data.pairs import SCORE, from_pairs
from evaluate import token_nll
from model.adapter import apply_adapter
from model.generate import generate
from model.gpt import GPT, GPTConfig
from model.head import new_head
from model.lora import apply_lora, lora_layers, lora_state_dict, merge, unmerge
from model.preference import leave_one_out, log_likelihood
from model.prefix import apply_prefix
from model.switch import base_state_dict
from run.predict import accuracy, confusion
from run.rollout import Answer, scored
from run.session import Session
from store import checkpoint, gpt2
from store.checkpoint import open_run
from store.learned import load_adapter

BASE = "data/builtin/base"
SCRIPTS = {"sft": train_sft, "lora": train_lora, "prompt": train_prompt}  # they learn from instructions
TOKENIZER = open_run(BASE).tokenizer
ONE = [{"instruction": "Name a sea.", "output": "Baltic"}] * 2
TOKENS = torch.arange(3, 67).view(2, 32)


def new(name):
    return Path(tempfile.mkdtemp(dir=".")) / name


def written(records):
    path = new("instructions.json")
    path.write_text(json.dumps(records), encoding="utf-8")
    return str(path)


def train(method="sft", records=RECORDS, **settings):
    """A short run from the built-in base: what it returns, and its folder."""
    short = {"init_from": BASE, "batch_size": 4, "steps": 4, "warmup": 0.0, "device": "cpu", "precision": "fp32"}
    config = {"out": str(new("run")), "instructions": written(records), **short, **settings}
    script = SCRIPTS[method]
    return script.main(script.Config(**config)), Path(config["out"])


def some_examples():
    return list(from_instructions(written(RECORDS), Reading(TOKENIZER, 128, 0.1))[0])


def with_adapter(targets=("q_proj", "up_proj"), r=4, alpha=8.0, dropout=0.0):
    """The base with an adapter that does something."""
    torch.manual_seed(0)
    model = open_run(BASE).model().eval()
    apply_lora(model, r, alpha, dropout, targets)
    for tensor in lora_state_dict(model).values():
        torch.nn.init.normal_(tensor, std=0.1)
    return model


@torch.no_grad()
def distance(one, other):
    """How far two models' logits, or two tensors, are apart at most."""
    one, other = (model(TOKENS) if callable(model) else model for model in (one, other))
    return f"{(one - other).abs().max().item():.2g}"


def off(found, expected):
    return f"{abs(float(found) / float(expected) - 1):.2%} off"


# ---- which tokens are graded -------------------------------------------------------------------------------------


def what_is_graded():
    _, targets, graded, _ = collate(some_examples()[:1])
    return f"the targets that are graded read {TOKENIZER.decode(targets[graded].tolist())!r}"


def other_prompt_targets():
    _, run = train(steps=1)
    of_step = Batches.of_step

    def corrupted(self, step):
        batches = of_step(self, step)
        return [b._replace(targets=torch.where(b.graded, b.targets, (b.targets + 7) % 256)) for b in batches]

    Batches.of_step = corrupted
    _, other = train(steps=1)
    losses = [f"{float(metrics(folder, 'loss')[0]):.6f}" for folder in (run, other)]
    return f"with other targets in the prompt the loss is {' and '.join(losses)}"


def fitted():
    return open_run(train(records=ONE, steps=60, batch_size=1, learning_rate=2e-3)[1]).model()


def answers_that_end():
    prompt = TOKENIZER.encode_ordinary(render_prompt(ONE[0]["instruction"]))
    answers = generate(
        fitted(), [prompt] * 20, 40, TOKENIZER.eot_token, 1.0, generator=torch.Generator().manual_seed(0)
    )
    return f"fitted to one example, {sum(len(answer) < 40 for answer in answers)} of 20 answers end"


def nothing_graded():
    inputs, targets, graded, _ = collate([next_token(np.arange(5), np.arange(5) > 9)])
    nll = -open_run(BASE).model()(inputs, graded).log_softmax(-1).gather(-1, targets[graded].unsqueeze(-1)).squeeze(-1)
    return f"the loss of a row with nothing graded is {(nll.sum() / graded.sum()).item()}"


def prompts_that_fill_the_block():
    records = [{"instruction": "i", "input": "x" * 200, "output": "never seen"}, *RECORDS[:2], *RECORDS[:2]]
    train, held_out = from_instructions(written(records), Reading(TOKENIZER, 60, 0.1))
    rows = [*train, *held_out]
    return f"of {len(rows)} rows that are kept, {sum(not row.graded.any() for row in rows)} have nothing graded"


# ---- what the loss is divided by -----------------------------------------------------------------------------------


def in_micro_batches():
    (_, whole), (_, parts) = train(steps=1, batch_size=9), train(steps=1, batch_size=2, micro_batches=5)
    loss, norm = (off(metrics(parts, column)[0], metrics(whole, column)[0]) for column in ("loss", "grad_norm"))
    return f"nine examples in five micro-batches: the loss is {loss}, the gradient's length {norm}"


def at_batch_sizes():
    model, examples = open_run(BASE).model(), some_examples()
    return f"the NLL in batches of 1, 3 and 9 is {', '.join(f'{token_nll(model, examples, n):.4f}' for n in (1, 3, 9))}"


def as_reported():
    results, run = train(steps=10)
    judged = token_nll(open_run(run).model(), from_instructions(written(RECORDS), Reading(TOKENIZER, 128, 0.1))[1], 4)
    return f"train_sft.py says {results['held_out_nll']:.4f} nats, evaluate.py {judged:.4f}"


# ---- the prompt ----------------------------------------------------------------------------------------------------


def training_prefixes():
    prompts = [TOKENIZER.encode_ordinary(render_prompt(one["instruction"], one["input"])) for one in RECORDS]
    n = sum(example.prompt() not in prompts for example in some_examples())
    return f"{n} of {len(some_examples())} training examples begin in another way than the prompt of who asks"


def asked_by_sample():
    [prompt] = sample.prompts(sample.Config(instruction=ONE[0]["instruction"]))
    [answer] = generate(fitted(), [TOKENIZER.encode_ordinary(prompt)], 12, TOKENIZER.eot_token)
    return f"fitted to the answer ' Baltic', it answers {TOKENIZER.decode(answer)!r}"


# ---- LoRA ----------------------------------------------------------------------------------------------------------


def lora_at_its_start():
    model = open_run(BASE).model()
    apply_lora(model, 8, 16.0, 0.0)
    return f"before the first step LoRA moves the base's logits by up to {distance(model, open_run(BASE).model())}"


def scale_of_lora():
    model = with_adapter(r=4, alpha=8.0)
    layer = next(layer for _, layer in lora_layers(model))
    A, B, before = (
        *(getattr(layer.adapters["default"], name) for name in ("lora_A", "lora_B")),
        layer.base.weight.clone(),
    )
    merge(model)
    times = ((layer.base.weight - before) / (B @ A)).median().item()
    return f"with alpha 8 and r 4, B A counts {times:.2f} times"


def drift_of_the_base():
    seen = []
    train_lora.checkpoint.save = lambda out, model, base: seen.append(model) or 0
    train("lora", steps=20, weight_decay=0.1)
    before, after = open_run(BASE).model().state_dict(), base_state_dict(seen[0])
    drift = {name: (after[name] - tensor).abs().max().item() for name, tensor in before.items()}
    moved = sum(value > 0 for value in drift.values())
    return f"after 20 steps {moved} of the base's {len(drift)} tensors have drifted, by up to {max(drift.values()):.2g}"


def groups_of(method, **settings):
    """The optimizer's parameters in its two groups, those with decay and those without."""
    made, plain = [], torch.optim.AdamW
    torch.optim.AdamW = lambda groups, **how: made.append(plain(groups, **how)) or made[0]
    try:
        train(method, steps=1, **settings)
    finally:
        torch.optim.AdamW = plain
    return made[0].param_groups


def what_the_optimizer_holds():
    held = [p for group in groups_of("lora") for p in group["params"]]
    return f"the optimizer holds {len(held)} tensors, of which {sum(p.requires_grad for p in held)} learn"


def merged_twice():
    model, expected = with_adapter(), with_adapter()
    merge(model)
    merge(model)
    return f"merged twice, the logits are up to {distance(model, expected)} from those of the adapter beside the base"


def unmerged():
    model, base = with_adapter(), open_run(BASE).model().state_dict()
    merge(model)
    unmerge(model)
    after = base_state_dict(model)
    changed = sum(int((after[name] != tensor).sum()) for name, tensor in base.items())
    return (
        f"merged and unmerged, {changed:,} of the base's {sum(t.numel() for t in base.values()):,} weights have changed"
    )


def merged():
    model = with_adapter()
    merge(model)
    return f"merged and unmerged differ by up to {distance(model, with_adapter())} in a logit"


def merged_into_the_head():
    model = open_run(BASE).model()
    theirs = gpt2.weights_of(model.state_dict())
    theirs["lm_head.weight"] = model.wte.weight.detach() + 0.05 * torch.randn(model.wte.weight.shape)
    ours = GPT(model.config)
    ours.load_state_dict(gpt2.weights_from(gpt2.without_extras(theirs), model.config))
    expected = model.hidden(TOKENS) @ theirs["lm_head.weight"].T
    return f"read in, its logits are up to {distance(ours, expected)} from those that it had"


def lora_on_the_embedding():
    model = open_run(BASE).model()
    apply_lora(model, 8, 16.0, 0.0, ("q_proj", "wte"))
    has = sorted({path.split(".")[-1] for path, _ in lora_layers(model)})
    return f"asked for q_proj and wte, it is on {' and '.join(has)}"


# ---- the model -----------------------------------------------------------------------------------------------------


def logits_of_gpt2():
    import transformers

    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=70, n_positions=32, n_layer=2, n_head=2, n_embd=12)
    theirs, far = transformers.GPT2LMHeadModel(config).eval(), []
    for scale in (0.3, 0.02):  # large enough for GELU to matter, small enough for LayerNorm's epsilon
        for name, parameter in theirs.named_parameters():
            torch.nn.init.normal_(parameter, std=scale if ".wte" in name or ".wpe" in name else 0.3)
        ours = GPT(GPTConfig(70, 32, 2, 2, 12))
        ours.load_state_dict(gpt2.weights_from(gpt2.without_extras(theirs.state_dict()), ours.config))
        far.append(distance(ours, theirs(TOKENS).logits))
    return f"logits differ from transformers' GPT-2 by up to {far[0]}, of small embeddings by {far[1]}"


def packed_and_separate():
    model, separate = open_run(BASE).model(), graded_everywhere(some_examples())
    alone, together = (token_nll(model, rows, 9) for rows in (separate, packed(separate, 128)))
    return f"the NLL of examples in rows of their own is {alone:.4f}, packed {together:.4f}"


def checkpointed():
    runs = [train("lora", steps=2, checkpoint_activations=on)[1] for on in (False, True)]
    plain, again = (float(metrics(run, "grad_norm")[1]) for run in runs)
    return f"the gradient's length is {plain:.4f}, with checkpointing {again:.4f}"


# ---- the run -------------------------------------------------------------------------------------------------------


def resumed():
    settings = {"steps": 6, "dropout": 0.1, "instructions": written(RECORDS)}
    _, whole = train(**settings)
    out, log = str(new("run")), train_sft.Session.log

    def breaks_off(session, step, *values):
        return log(session, step, *values) if step < 3 else [][step]

    train_sft.Session.log = breaks_off
    try:
        train(**settings, out=out, save_every=3)
    except IndexError:
        train_sft.Session.log = log
    _, run = train(**settings, out=out, save_every=3, resume=True)
    apart = max((tensor - weights(run)[name]).abs().max().item() for name, tensor in weights(whole).items())
    return f"broken off and resumed, weights are up to {apart:.2g} from those of a run in one go"


def evaluated_twice():
    model, examples = open_run(BASE).model(dropout=0.2).train(), some_examples()
    first, second = (token_nll(model, examples, 9) for _ in range(2))
    mode = "training" if model.training else "eval"
    return f"two evaluations give {first:.4f} and {second:.4f}, and leave the model in {mode} mode"


def alone_and_together():
    model, n = open_run(BASE).model(), 20
    prompts = [
        TOKENIZER.encode_ordinary(text) for text in ("The", "Once there was", "Anna has a red ball in the old box")
    ]
    together = generate(model, prompts, n)
    same = sum(generate(model, [prompt], n) == [answer] for prompt, answer in zip(prompts, together, strict=True))
    return f"{same} of {len(prompts)} prompts of unlike length are continued in a batch as they are alone"


def rows_of_two_ranks():
    parts = [Batches(some_examples(), 9, 1, 0, rank, 2).of_step(0)[0][0].tolist() for rank in (0, 1)]
    rows = [str([token for token in row if token]) for part in parts for row in part]  # without padding
    return f"of a batch of 9 rows, two ranks compute {len(rows)}, of which {len(set(rows))} are different"


def order_of_epochs():
    batches = Batches(some_examples(), 1, 1, 0)
    epochs = [[batches.rows(9 * epoch + i).tolist() for i in range(9)] for epoch in range(3)]
    return f"of the orders of three epochs, {len({str(epoch) for epoch in epochs})} are different"


def adapter_that_comes_back():
    _, run = train("lora", steps=10, targets="q_proj,v_proj")
    model = open_run(BASE).model()
    load_adapter(model, run)
    return (
        f"an adapter of 10 steps, saved and loaded, moves the logits by up to {distance(model, open_run(BASE).model())}"
    )


def adapter_on_another_base():
    _, run = train("lora")
    base = open_run(BASE).model()
    base.ln_f.weight.data *= 1.5
    load_adapter(base, run)
    return "an adapter is taken by a base that it was not trained on"


def what_is_decayed():
    decayed = [p for group in groups_of("sft", weight_decay=0.1) for p in group["params"] if group["weight_decay"]]
    embeddings = sum(p.shape == shape for p in decayed for shape in embedding_shapes())
    vectors = sum(p.dim() == 1 for p in decayed)
    rest = len(decayed) - embeddings - vectors
    return f"decayed are {rest} matrices of linear layers, {embeddings} embeddings, {vectors} biases and LayerNorms"


def embedding_shapes():
    model = open_run(BASE).model()
    return model.wte.weight.shape, model.wpe.weight.shape


def pull_to_the_base():
    decay = {field.name: field.default for field in dataclasses.fields(train_lora.Config)}["weight_decay"]
    lengths = []
    for settings in ({"weight_decay": 0.0}, {}):
        tensors = weights(train("lora", steps=40, **settings)[1])
        lengths.append(math.sqrt(sum(t.square().sum().item() for n, t in tensors.items() if n.endswith("lora_B"))))
    change = off(lengths[1], lengths[0])
    return f"after 40 steps with the default decay, {decay}, the length of B is {change} that without decay"


# ---- adapters, prefixes and soft prompts -----------------------------------------------------------------------------


def prefix_in_packed_rows():
    model, rows = open_run(BASE).model(), [packed(some_examples(), 128)[:2], some_examples()[:2]]
    torch.manual_seed(0)
    [keys_values], lengths = apply_prefix(model, 4, from_tokens=True), []
    for inputs, _, graded, positions in map(collate, rows):
        keys_values.grad = None
        model(inputs, graded, positions).square().mean().backward()
        lengths.append(keys_values.grad.norm().item())
    return f"the length of the prefix's gradient is {lengths[0]:.2g} from packed rows, {lengths[1]:.2g} from others"


def tokens_as_a_prefix():
    base, model = open_run(BASE).model(), open_run(BASE).model()
    torch.manual_seed(0)
    apply_prefix(model, 4, from_tokens=True)
    torch.manual_seed(0)
    before = torch.randint(model.config.vocab_size, (1, 4)).expand(2, -1)
    apart = distance(model(TOKENS), base(torch.cat([before, TOKENS], dim=1))[:, 4:])
    return f"four tokens as a prefix give logits up to {apart} from those that they give as part of the row"


def bottlenecks_at_their_start():
    model = open_run(BASE).model()
    apply_adapter(model, 12)
    moved = distance(model, open_run(BASE).model())
    return f"before the first step bottlenecks move the base's logits by up to {moved}"


def share_that_is_graded():
    tokens = [int(metrics(train(method, steps=1, batch_size=9)[1], "graded_tokens")[0]) for method in ("sft", "prompt")]
    return "of the same nine examples train_sft.py grades {} tokens, train_prompt.py {}".format(*tokens)


def longest_row_behind_a_prefix():
    model = open_run(BASE).model()
    apply_prefix(model, 16)
    read, row = 0, torch.zeros(1, model.config.block_size, dtype=torch.long)
    with torch.no_grad():
        for T in range(1, row.size(1)):
            try:
                model.hidden(row[:, :T])
            except ValueError:
                break
            read = T
    return f"behind a prefix of 16, of {row.size(1)} positions, the longest row that is read has {read} tokens"


# ---- classes and masks -----------------------------------------------------------------------------------------------


@torch.no_grad()
def beside_a_longer_text():
    model = open_run(BASE).model()
    new_head(model, ["a", "b"], "text")
    short, long = (to_classify([text], "text", TOKENIZER, 128)[0] for text in ("a cow", "a cow and a horse and a dog"))
    alone, together = (model(*collate(rows)[::2]) for rows in ([short], [short, long]))
    return f"beside a longer text, the logits of a short one are up to {distance(alone, together[:1])} from those alone"


def words_and_tags():
    path = new("tagged.json")
    path.write_text(json.dumps([{"words": "Dan gives Rosa bread", "tags": "giver other taker thing"}] * 2), "utf-8")
    [example], _, classes = from_labelled("", str(path), Reading(TOKENIZER, 128, 0.5))
    names = [classes.names[n] for n in example.targets[example.graded]]
    return f"'Dan gives Rosa bread' is tagged {' '.join(names)}"


def masked_rows():
    tokenizer = with_mask(TOKENIZER)
    return Masked(from_text("data/builtin/domain.jsonl", Reading(tokenizer, 128, 0.01))[1], tokenizer)


def ends_behind_masks():
    graded = np.concatenate([row.targets[row.graded] for epoch in range(5) for row in masked_rows().of_epoch(epoch)])
    return f"of {len(graded)} graded tokens, {int((graded == TOKENIZER.eot_token).sum())} are end-of-text"


def masks_of_three_epochs():
    rows = masked_rows()
    batches = MaskedBatches(rows, len(rows), 1, 0)
    seen = [{str(row.tolist()) for row in batches.of_step(epoch)[0].inputs} for epoch in range(3)]
    return f"{len(rows)} rows are seen in {len(set.union(*seen))} forms in three epochs"


def graded_as_it_is():
    read, told = (np.concatenate([row[part][row.graded] for row in masked_rows()]) for part in (0, 1))
    return f"of {len(read)} graded tokens, {(read == told).mean():.0%} are read as they are"


def nine_of_ten():
    counts = confusion([0] * 9 + [1], [0] * 10, 2)
    return f"who always says what nine texts of ten are has an accuracy of {accuracy(counts):.0%}"


# ---- responses that are compared -------------------------------------------------------------------------------------

PAIRS = [{"instruction": "Name a sea.", "chosen": "the Baltic, north of here", "rejected": "Baltic"}] * 8


def dpo(steps):
    out = new("run")
    how = {"init_from": BASE, "batch_size": 4, "steps": steps, "warmup": 0.0, "device": "cpu", "precision": "fp32"}
    train_dpo.main(train_dpo.Config(pairs=written(PAIRS), out=str(out), learning_rate=1e-4, **how))
    return out


def margin_over_the_reference():
    margin = float(metrics(dpo(4), "margin")[-1])
    return f"after three steps of DPO the chosen responses have gained {margin:.2f} on the rejected ones"


def one_pair():
    return from_pairs(written(PAIRS), Reading(TOKENIZER, 128, 0.1))[0][0]


def likelihoods_of_responses():
    found = log_likelihood(open_run(BASE).model(), *collate([one_pair()])).tolist()
    sizes = [int(example.graded.sum()) for example in one_pair()]
    return f"log π is {found[0]:.1f} of a response of {sizes[0]} tokens, {found[1]:.1f} of one of {sizes[1]}"


def graded_of_a_pair():
    return "of a pair {} of {} positions are graded, and {} of {}".format(
        *(n for example in one_pair() for n in (int(example.graded.sum()), len(example.graded)))
    )


def first_loss_of_dpo():
    return f"DPO begins with a loss of {float(metrics(dpo(1), 'loss')[0]):.3f}; log 2 is {math.log(2):.3f}"


def scores_in_company():
    model, run, prompt = open_run(BASE).model(), new("reward"), TOKENIZER.encode_ordinary("Name a sea.")
    torch.manual_seed(0)
    new_head(model, *SCORE)
    checkpoint.save_model(run, model, TOKENIZER)
    how = train_dpo.Config(pairs="", init_from=BASE, out=str(new("run")), device="cpu", precision="fp32")
    reward = scored(str(run), Session(how), TOKENIZER)
    short, long = (Answer(prompt, TOKENIZER.encode_ordinary(" Baltic" * n), []) for n in (1, 9))
    return f"an answer scores {reward([short])[0]:.3f} alone, {reward([short, long])[0]:.3f} beside a longer one"


def advantages_of_two():
    return "of two answers with rewards 1 and 0 the advantages are {:.1f} and {:.1f}".format(
        *leave_one_out(torch.tensor([[1.0, 0.0]]))[0].tolist()
    )
