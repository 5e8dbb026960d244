"""Talk to a model, with or without an adapter.

python sample.py --from RUN --prompt "Once upon a time"
python sample.py --adapter RUN --instruction "Say the list again." --input "dog crow peach"
python sample.py --adapter RUN,OTHER --ask chat     line after line, each adapter's answers remembered
python sample.py --from RUN --classify              the class of each line, or the tag of each of its words
python sample.py --page                             a page on which models answer side by side, token by token

What is named may also be gpt2 and the like, or a folder in Hugging Face's layout.
"""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

import tiktoken
import torch

from cli import Mistake, check, command_line
from data.examples import conversation, render_prompt
from data.labelled import to_classify
from data.records import Instruction
from data.tokenizer import as_it_comes
from model.generate import cannot_write, stream
from model.gpt import GPT
from model.head import classes_of
from model.prefix import longest_row
from model.switch import activate
from run import talk
from run.device import choose_device
from run.predict import predicted
from store.checkpoint import load_run, split


@dataclass(kw_only=True)
class Config:
    from_: str = ""  # run of the model; may be left out with --adapter, which knows its base
    adapter: str = ""  # run of what learned beside a base, like LoRA; several, with commas between, answer in turn
    prompt: str = ""  # text to continue
    instruction: str = ""  # instruction to respond to
    input: str = ""  # what the instruction is about
    system: str = ""  # with --ask chat, what stands before all of it
    ask: str = "prompt"  # with neither: what each line of standard input is: prompt, instruction, or turn of a chat
    classify: bool = False  # say the class of each line, or of --prompt; a tab stands between two texts
    page: bool = False  # serve a page to this machine's browser, to ask several runs there; those named come first
    max_new_tokens: int = 128  # tokens to write at most
    temperature: float = 0.8  # below 1 likely tokens gain; 0 always takes the likeliest
    top_k: int = 0  # draw from so many likeliest tokens; 0: from all
    top_p: float = 1.0  # draw from the likeliest tokens that hold this share of the probability
    seed: int = 0  # of the draws
    device: str = "auto"  # cuda, mps, cpu, or auto


def main(config: Config) -> None:
    device = choose_device(check(config).device)
    if config.page and config.classify:
        raise Mistake("--page is for models that write, --classify for classifiers: give one of the two")
    asked = config.prompt or config.instruction or config.input or config.system or config.ask != "prompt"
    if config.page and asked:
        raise Mistake("--page is asked in the browser: leave out --prompt, --instruction, --input, --system and --ask")
    if config.page:
        return talk.serve([config.from_, *split(config.adapter)], config, device)
    model, tokenizer = load_run(config.from_, config.adapter, device)
    if config.classify:
        return classify(config, model, tokenizer)
    if why := cannot_write(model):
        way = "; --classify asks for them, and evaluate.py --pairs for scores" if classes_of(model.attached) else ""
        raise Mistake(f"{config.adapter or config.from_} cannot write: {why}{way}")
    generator = torch.Generator(device).manual_seed(config.seed)
    adapters = split(config.adapter) or ["none"]
    earlier: list[tuple[tuple[str, str], ...]] = [()] * len(adapters)  # turns of the chat with each
    for prompt in prompts(config):
        for number, adapter in enumerate(adapters):
            if len(adapters) > 1:
                activate(model, f"adapter_{number}")
                print(f"{adapter}: ", end="")
            tokens = tokenizer.encode_ordinary(prompt)
            if config.ask == "chat":
                turn = Instruction(prompt, "", "", earlier=earlier[number], system=config.system)
                tokens = conversation(turn, tokenizer)[0]
            if len(tokens) > (limit := longest_row(model)):
                print(f"the prompt has {len(tokens)} tokens; the model reads only its last {limit}", file=sys.stderr)
            how = (config.temperature, config.top_k, config.top_p, generator)
            new = stream(model, [tokens], config.max_new_tokens, tokenizer.eot_token, *how)
            answer = (token for [token], _ in new if token != tokenizer.eot_token)
            if asks_to_continue(config):
                show(map(as_it_comes(tokenizer), chain(tokens, answer)), strip=False)
            else:
                earlier[number] += ((prompt, show(map(as_it_comes(tokenizer), answer), strip=True)),)


def show(texts: Iterable[str], strip: bool) -> str:
    """Prints texts as they come, with strip without the white space around all of it. Returns what it printed."""
    said = shown = ""
    for text in texts:
        said += text
        print((said.strip() if strip else said)[len(shown) :], end="", flush=True)
        shown = said.strip() if strip else said
    print()
    return shown


def classify(config: Config, model: GPT, tokenizer: tiktoken.Encoding) -> None:
    """Prints the class of each text, or each word with its tag."""
    run, classes, block_size = config.adapter or config.from_, classes_of(model.attached), model.config.block_size
    if classes is None or classes.each == "response" or len(split(config.adapter)) > 1:
        raise Mistake(f"{run} predicts no classes: --classify takes one run, of train_classifier.py")
    if config.instruction or config.input or config.system or config.ask != "prompt":
        others = "--instruction, --input, --system and --ask"
        raise Mistake(f"--classify takes --prompt, or lines of standard input: leave out {others}")
    for text in [config.prompt] if config.prompt else lines():
        pieces = [piece.strip() for piece in text.split("\t")[:2]] if classes.each == "text" else text.split()
        if not pieces or not all(pieces):
            raise Mistake("--classify takes a text, or two with a tab between them: one is empty")
        example, is_cut = to_classify(pieces, classes.each, tokenizer, block_size)
        if is_cut:
            print(f"it is longer than the {block_size} tokens that the model reads, and cut there", file=sys.stderr)
        said = predicted(model, [example], 1)[0] if example.graded.any() else []
        names = [classes.names[number] for number in said]
        tagged = " ".join(f"{word}/{name}" for word, name in zip(pieces, names, strict=False))
        print(tagged if classes.each == "word" else names[0])


def asks_to_continue(config: Config) -> bool:
    """Whether prompts are texts to continue, which are shown with what follows, and not instructions to answer."""
    return bool(config.prompt) or (not config.instruction and config.ask == "prompt")


def prompts(config: Config) -> Iterator[str]:
    """The one of the flags, or one a line from standard input, to its end."""
    if config.ask not in ("prompt", "instruction", "chat"):
        raise Mistake(f"--ask must be prompt, instruction or chat, got {config.ask!r}")
    if config.ask == "chat" and (config.prompt or config.instruction):
        raise Mistake("--ask chat reads its turns from standard input: leave out --prompt and --instruction")
    if config.system and config.ask != "chat":
        raise Mistake("--system goes with --ask chat")
    if config.prompt and config.instruction:
        raise Mistake("give either --prompt or --instruction")
    if config.input and not (config.instruction or config.ask == "instruction"):
        raise Mistake("--input goes with --instruction, or with --ask instruction")
    if config.prompt:
        yield config.prompt
    elif config.instruction:
        yield render_prompt(config.instruction, config.input)
    else:
        for line in lines():
            yield render_prompt(line, config.input) if config.ask == "instruction" else line


def lines() -> Iterator[str]:
    """What is typed, or piped in, line by line; empty lines are passed over."""
    if sys.stdin.isatty():
        print("Type a line at a time; Ctrl-D ends.")
    while True:
        print("> " if sys.stdin.isatty() else "", end="", flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()


if __name__ == "__main__":
    command_line(main, Config)
