"""Adapters: what is graded is as in the sibling with the same data, and only small bottlenecks learn.

Give --text FILE or --instructions FILE, --init-from RUN to begin with, and --out RUN for what comes of it.

One of eleven siblings made to be laid side by side (SLP3, ch. 12, Fig. 12.4): they differ in what is graded, in
what learns and in what the loss asks. Shapes: B rows · T tokens a row · V vocabulary · N graded tokens.
"""

from dataclasses import dataclass

import torch

from cli import command_line
from data import examples
from data.batches import Batches
from evaluate import token_nll
from model.adapter import apply_adapter
from model.generate import generate
from run import show
from run.schedule import warmup_then_cosine
from run.session import Session
from store import checkpoint


@dataclass(kw_only=True)
class Config:
    text: str = ""  # text to learn from: a file, a folder of them, or a corpus by name; either this or the next
    instructions: str = ""  # instructions to learn from: a .json, .jsonl, .csv or .tsv file, or a corpus by name
    grade_prompt: bool = False  # grade the prompts of instructions too, as pretraining would
    pack: bool = False  # fill each row with several short instructions, apart from one another: fewer, fuller rows
    columns: str = ""  # the file's names for text, instruction, input, output, chosen, rejected: "output=answer"
    skip_bad_records: bool = False  # leave out records that cannot be read, and count them
    out: str = ""  # folder to write the run to
    init_from: str  # run to start from, gpt2 or the like, or a folder in Hugging Face's layout
    width: int = 12  # channels of a bottleneck
    mlp_only: bool = False  # put bottlenecks after the MLP alone, not after attention too
    block_size: int = 128  # tokens a row at most; the model must be able to read as many
    dropout: float = 0.0  # share of activations zeroed while training
    batch_size: int = 32  # rows a micro-batch
    micro_batches: int = 1  # micro-batches a step, one after another, for less memory: their gradients add up
    steps: int = 1000  # optimizer steps
    learning_rate: float = 4e-3  # AdamW's, at its peak
    warmup: float = 0.05  # share of the steps in which it rises to the peak; then a cosine takes it down to 0
    weight_decay: float = 0.0  # AdamW's, for the matrices of linear layers only
    max_grad_norm: float = 1.0  # gradients longer than this are scaled down to it
    held_out: float = 0.1  # share of the data to judge by, not to learn from; 131,072 tokens or 1,024 records at most
    eval_every: int = 100  # steps between evaluations
    save_every: int = 1000  # steps between saves that --resume can go on from; 0: none by steps
    save_minutes: float = 10.0  # the same in minutes
    resume: bool = False  # go on with the run in --out, which was stopped or killed
    keep_best: bool = False  # save the model of the lowest held-out loss too, in OUT/best
    seed: int = 0  # of the order of the data, of dropout, and of new weights; what is held out is always the same
    device: str = "auto"  # cuda, mps, cpu, or auto
    precision: str = "auto"  # of matrix products: fp32, bf16, fp16, or auto, which takes what the device does well
    checkpoint_activations: bool = False  # keep only what enters a block and compute the rest twice, for less memory
    compile: bool = False  # compile the model, for GPUs: the first step takes a minute, later ones less time
    show_batch: bool = False  # show the first batch as the loss sees it, and what learns; then stop
    shard: bool = False  # split weights, gradients and optimizer over the processes that torchrun has started


def main(config: Config) -> dict:
    # 1. config
    session = Session(config)
    device = session.device

    # 2. data
    base = checkpoint.open_run(config.init_from)
    tokenizer = base.tokenizer
    how = examples.Reading(tokenizer, config.block_size, config.held_out, config.columns, config.skip_bad_records)
    if config.text:
        # graded: every token
        train, held_out = examples.from_text(config.text, how)
    else:
        # graded: the response and its end-of-text
        train, held_out = examples.from_instructions(config.instructions, how)
        train = examples.graded_everywhere(train) if config.grade_prompt else train
        train = examples.packed(train, config.block_size) if config.pack else train
    batches = Batches(train, config.batch_size, config.micro_batches, config.seed, session.rank, session.n_ranks)

    # 3. model
    model = base.decoder(config.block_size, config.dropout)

    # 4. what learns
    apply_adapter(model, config.width, config.mlp_only)  # bottlenecks after attention and MLP alone
    if config.show_batch:
        return show.first_batch(batches, tokenizer, model)
    session.place(model)  # to its device; matrix products in its precision
    learns = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}

    # 5. optimizer
    # decayed are the matrices of linear layers: an embedding would shrink in every step without its token
    matrices = {name: p for name, p in learns.items() if p.dim() == 2 and name[:3] not in ("wte", "wpe", "wse")}
    the_rest = [p for name, p in learns.items() if name not in matrices]  # biases, LayerNorms, embeddings
    decayed = {"params": list(matrices.values()), "weight_decay": config.weight_decay}
    optimizer = torch.optim.AdamW([decayed, {"params": the_rest, "weight_decay": 0.0}], betas=(0.9, 0.95), fused=True)
    first_step = session.begin_or_resume(model, optimizer, batches, base)  # 0, or where the run was stopped

    # 6. loop
    model.train()
    for step in session.steps(first_step):
        held_out_nll = token_nll(model, held_out, config.batch_size) if step % config.eval_every == 0 else None
        session.keep_best(held_out_nll)

        learning_rate = config.learning_rate * warmup_then_cosine(step, config.steps, config.warmup)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate

        micro_batches = batches.of_step(step)
        # N of the whole step, not of one micro-batch; of several processes the mean, as their gradients are averaged
        n_graded = session.mean_over_ranks(sum(int(batch.graded.sum()) for batch in micro_batches))
        step_loss = torch.zeros((), device=device)
        for batch in micro_batches:
            inputs, targets, graded, positions = (tensor.to(device) for tensor in batch)  # (B, T); positions also (T,)
            log_p = model(inputs, graded, positions).log_softmax(-1)  # (N, V), at the graded positions only
            nll = -log_p.gather(-1, targets[graded].unsqueeze(-1)).squeeze(-1)  # (N,) nats, each of its target
            loss = nll.sum() / n_graded
            loss.backward()
            step_loss += loss.detach()

        session.unscale(learns)  # of fp16 alone: undoes the scale that run/device.py gives to gradients
        grad_norm = torch.nn.utils.clip_grad_norm_(learns.values(), config.max_grad_norm)
        if session.is_finite(grad_norm):
            optimizer.step()
        optimizer.zero_grad()
        # a row of metrics.csv; saves when it is time, and ends after Ctrl-C or a loss that is not finite
        session.log(step, step_loss, n_graded, learning_rate, grad_norm, held_out_nll)

    # 7. evaluate
    held_out_nll = token_nll(model, held_out, config.batch_size)
    prompt = held_out[0].prompt()
    answer = generate(model, [prompt], max_new_tokens=64, stop=tokenizer.eot_token)[0]
    sample = tokenizer.decode(prompt + answer)

    # 8. save
    checkpoint_bytes = checkpoint.save(config.out, model, base)  # what has learned
    return session.finish(held_out_nll, sample, checkpoint_bytes)


if __name__ == "__main__":
    command_line(main, Config)
