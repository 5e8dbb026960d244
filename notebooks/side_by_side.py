"""The training scripts side by side, as one page to read, project or print: every line, and why it differs.

    python -m notebooks.side_by_side [--out FILE]

The page is made from the scripts as they are, and from CONCEPTS, which tests/test_side_by_side.py holds them to. It
needs no server and no network: its style and its script are in it. Colours are by Pygments.
"""

import difflib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import NamedTuple

from cli import Mistake, command_line
from notebooks.map_of_scripts import Map, normalised, there

HERE = Path(__file__).parent
SCRIPTS = tuple(there())
FIRST = (0, 1, 2)  # those that are shown first, by their places in SCRIPTS
MARK = '<meta name="generator" content="notebooks.side_by_side">'  # by which a page is known

# What a line that differs may be about: concept -> {pattern of such a line: why it differs}. A line that has no reason
# here is noise, and a line that has two is not understood: both fail tests/test_side_by_side.py.
CONCEPTS = {
    "which method it is": {
        r'^"""(Pretraining|\w+ tuning|LoRA|Adapters|A classifier|Masked)\b': "What is graded and what learns: the "
        "method in a sentence.",
        r"^(python train_(?!reward|dpo|rlhf)\w+\.py|Give --text FILE) ": "What it needs: data of its own kind, and a "
        "run to start from.",
        r"^python train_(reward|dpo|rlhf)\.py ": "What it needs: pairs, or a reward, and a run of train_sft.py to "
        "start from. Preferences come after instruction tuning: they choose among answers that a model can give.",
    },
    "what is graded": {
        r"^(text|instructions): str": "Data of two kinds: a text is graded everywhere, an instruction in its response.",
        r"^(labelled|tagged): str": "Data of two more kinds: a text, or two, with a label; words with a tag each.",
        r"^columns: str": "What the file's columns may be called instead: each kind of data has its own.",
        r"^if config\.text:$|^else: # graded": "LoRA is about what learns, so it takes data of either kind.",
        r"^# graded: every|\.from_text\(": "Every token counts: a mask of ones.",
        r"^# graded: the response|\.from_instructions\(": "The prompt is read, but not graded: there the mask is "
        "false, and the loop, the same as ever, computes the loss where it is true.",
        r"^from data\.labelled|from_labelled\(": "A class stands as the target at the last token of a text, or of "
        "each word: there the mask is true, and the loop, the same as ever, computes the loss.",
        r"^# graded: 15 %|^from data\.(batches|masked)|= Masked\(|^batches = |^tokenizer = ": "Some of the tokens are "
        "hidden behind a mask, for which the tokenizer has one id more. They alone are graded, each with itself as the "
        "target (Devlin et al. 2019, sec. 3.1). Which ones they are is drawn anew in each epoch.",
        r"grade_prompt": "Takes the mask off again, to see what it is worth. Graded everywhere, SFT is pretraining.",
    },
    "what is predicted": {
        r"^model = base\.decoder": "The next token: a causal mask hides what follows, and the logits are of "
        "the vocabulary.",
        r"^model = base\.classifier": "A class: the last state goes through a new head, a Linear from its C channels "
        "to the classes (Radford et al. 2018; Devlin et al. 2019, sec. 4). To the loop they are the V words.",
        r"^model = base\.encoder": "A hidden token, from both of its sides: the same GPT without its causal mask.",
        r"generate\b|^prompt = |^sample = tokenizer": "A model that predicts the next token shows what it writes.",
        r"^sample = show\.report": "A classifier shows how often it is right: accuracy, and of each class "
        "precision, recall and F1.",
        r"^sample = show\.filled": "A masked language model shows what it puts in the place of the masks.",
    },
    "what learns": {
        r"^from .* import apply_\w+$": "What is put beside the frozen model, written by hand: model/lora.py, "
        "model/adapter.py and model/prefix.py.",
        r"^(r|alpha|lora_dropout|targets): ": "How wide the path beside a layer is, how much it counts, how much of "
        "its input is dropped, and which layers have one.",
        r"^learn: ": "How much of the base learns with the head: nothing, its last blocks, A and B, or all of it.",
        r"^from model\.head|^let_learn\(": "The head is new, so it must learn; of the base below, as much as one says.",
        r"^(width|mlp_only): ": "How many channels a bottleneck has, and after which parts of a block one stands.",
        r"^(length|random_start): ": "How many positions stand before a row, and what they are at first.",
        r"\.requires_grad_\(True\)": "Every parameter learns: nothing is frozen.",
        r"\.learn_on\(": "What learned in the run that it starts from learns on: of a LoRA run A and B, else all.",
        r"^apply_lora\(": "With LoRA the model is frozen, and beside its layers runs a thin path, "
        "h = W0 x + (alpha / r) B A x (Hu et al. 2021, eq. 3): only A and B learn. B starts at zero, so the first step "
        "starts from the base.",
        r"^apply_adapter\(": "With adapters the model is frozen, and what attention or the MLP says goes through a "
        "bottleneck, h + up(gelu(down(h))) (Houlsby et al. 2019): only down and up learn. up starts at zero, so the "
        "first step starts from the base.",
        r"^apply_prefix\(": "With prefix tuning the model is frozen, and in each layer keys and values stand before "
        "those of the row (Li and Liang 2021), as if tokens had been read before it: only they learn. They start as "
        "those of common tokens, so the first step does not start from the bare base.",
        r"^apply_soft_prompt\(": "With prompt tuning only embeddings before the row learn (Lester et al. 2021): a "
        "prefix whose keys and values the model computes itself.",
    },
    "how fast": {
        r"^learning_rate: ": "Trained weights need small steps, new weights larger ones, and what stands beside a "
        "frozen model the largest: a prefix or a prompt, which are few numbers, larger ones than LoRA. DPO needs the "
        "smallest: it asks only that one response gains on the other, and in larger steps both become unlikely.",
        r"^weight_decay: ": "A and B pulled to zero would be the base again: LoRA's default is not to pull.",
    },
    "how rows are filled": {
        r"^pack: |config\.pack": "A text fills its rows. Instructions are short: several may share a row, kept apart.",
    },
    # of train_reward.py, train_dpo.py and train_rlhf.py
    "what the loss asks": {
        r'^"""(A reward model|Direct preference|Reinforcement learning)\b': "What is compared: two responses, by a "
        "score or by their likelihood, or the model's own answers, by their reward.",
        r"^pairs: |(scored|from)_pairs\b": "Pairs of responses to one prompt: two rows each, chosen first, then "
        "rejected. A score is graded at the last token; for DPO both responses are.",
        r"^batch_size: ": "A pair is two rows, and K answers to a prompt are K.",
        r"from model\.preference import": "The losses as functions, with their equations: model/preference.py.",
        r"^inputs, (_|targets), graded|^scores = model\(|^nll = preference_loss\(|n_graded / 2\)": "The head's one "
        "number at the last token of each response is its score, and how unlikely it is, by the scores, that the "
        "chosen one is better is the loss: -log σ(r⁺ - r⁻) (Bradley and Terry 1952). No targets are needed.",
        r"^log_p = model\(|^nll = -log_p": "A reward model scores responses: it predicts no token and no class.",
        r"^loss = nll\.sum\(\) / n_graded$": "Cross-entropy: be likely where graded. Here answers are compared "
        "instead.",
        r"^beta: ": "How strong the pull back to the reference is, the model as it was when it began.",
        r"^(chosen_nll = |nll: )": "The chosen response may become unlikely too, if the rejected one does so faster: "
        "so its own NLL is measured, and --nll adds it to the loss.",
        r"frozen_copy\(|^log_ref = ": "The reference π_ref is the model as it was when it began; it does not learn. "
        "How much likelier response y to prompt x has become since is log π(y|x) / π_ref(y|x).",
        r"^scores = config\.beta": "The score of a response is how much likelier it has become, times β: the model's "
        "own likelihood stands for a reward (Rafailov et al. 2023, eq. 5). row_sums adds up its tokens.",
        r"^loss = \(preference_loss": "A reward model's loss of these scores, -log σ(chosen - rejected) (eq. 7): it "
        "falls when the chosen response gains on the rejected one.",
        r"^n_pairs = ": "The mean is over the pairs of the whole step, not over tokens: two rows are a pair.",
        r"^session\.measure\(": "What the loss alone does not tell, in columns of metrics.csv: how far the chosen "
        "responses are ahead, or what answers are worth and how far they have left the reference.",
        r"^(Each answer serves|\(Schulman|model learn which)": "Why there is no ratio and no clipping here, as in PPO.",
        r"^(reward|samples|max_new_tokens): |from run\.rollout import|^reward = reward_of": "What an answer is worth: "
        "a reward model's score, or whether it is right to the letter; and how many are drawn for each prompt.",
        r"^keep_best: |session\.keep_best": "The lowest NLL of the data's responses is not what is sought here.",
        r"batches\.of_step\(|^# K answers": "Graded are the model's own answers: sampled in each step, and rewarded.",
        r"^n_answers = |^for batch(, r)? in ": "The mean is over the answers of the whole step, each with its reward.",
        r"^log_pi = |^kl = ": "How likely the model finds its answer, and how much likelier than the reference does: "
        "on average this is the KL, and it costs reward.",
        r"^advantage = |^loss = -\(advantage": "Each answer's log-likelihood is moved by its advantage: by how much "
        "its reward, less β times what it has left the reference, is above that of the other answers to its prompt "
        "(REINFORCE with a leave-one-out baseline: Ahmadian et al. 2024). The mean of such gradients is that of the "
        "reward.",
    },
}  # fmt: skip


@dataclass(kw_only=True)
class Config:
    out: str = "side_by_side.html"  # file to write the page to


def main(config: Config) -> None:
    out = Path(config.out)
    if out.is_file() and MARK not in out.read_text(encoding="utf-8", errors="replace"):
        raise Mistake(f"{out} is there already, and is not such a page: give another --out")
    text = page([(HERE.parent / script).read_text(encoding="utf-8") for script in SCRIPTS])
    out.write_text(text, encoding="utf-8", newline="\n")
    print(f"Page: {out} ({len(text.encode()) // 1000} kB). It opens in any browser.")


def reasons(lines: Sequence[str], n: int) -> list[tuple[str, str]]:
    """(concept, why) for line n of normalised lines; an else is about what follows it."""
    text = f"{lines[n]} {lines[n + 1]}" if lines[n] == "else:" else lines[n]
    return [
        (concept, why)
        for concept, patterns in CONCEPTS.items()
        for pattern, why in patterns.items()
        if re.search(pattern, text)
    ]


Numbers = dict[int, int]  # of the lines that stand in a row, by script: {0: 12, 2: 13}


class Row(NamedTuple):
    numbers: Numbers
    why: dict[tuple[str, str], set[int]]  # (concept, sentence): scripts of whose lines it is; if all are the same, none
    kinds: str  # of its lines, by script, like "0 0 1 -": scripts of one kind have the same; "" if all of them have


def rows(scripts: Sequence[Sequence[str]]) -> Iterator[Row]:
    """The lines of all scripts, blank ones included, in an order in which each script reads from top to bottom."""
    text = [[normalised(line) for line in script] for script in scripts]
    for numbers in abreast(align(text), text):
        blank = {s: next(i for i in range(n + 1) if i == n or text[s][n - i - 1]) for s, n in numbers.items()}
        for i in range(max(blank.values()), 0, -1):  # so many blank lines are above it in each script
            yield Row({s: n - i for s, n in numbers.items() if i <= blank[s]}, {}, "")
        said = {s: text[s][n] for s, n in numbers.items()}
        lines = list(dict.fromkeys(said.values()))
        all_the_same = len(lines) == 1 and len(said) == len(scripts)
        kinds = " ".join(str(lines.index(said[s])) if s in said else "-" for s in range(len(scripts)))
        why: dict[tuple[str, str], set[int]] = {}
        for s in () if all_the_same else sorted(numbers):
            for reason in reasons(text[s], numbers[s]):
                why.setdefault(reason, set()).add(s)
        yield Row(numbers, why, "" if all_the_same else kinds)


def first(row: Numbers, text: Sequence[Sequence[str]]) -> str:
    """The line of the first script that has one in the row."""
    return text[min(row)][row[min(row)]]


def align(text: Sequence[Sequence[str]]) -> list[Numbers]:
    """One script after another is laid over those before: equal lines become one row, others stay by themselves."""
    merged: list[Numbers] = []
    for s, lines in enumerate(text):
        new = [n for n, line in enumerate(lines) if line]
        old = [first(row, text) for row in merged]
        matcher = difflib.SequenceMatcher(None, old, [lines[n] for n in new], autojunk=False)
        longer = []
        for tag, i1, i2, j1, j2 in matcher.get_opcodes():
            if tag == "equal":
                longer += [{**row, s: n} for row, n in zip(merged[i1:i2], new[j1:j2], strict=True)]
            else:
                longer += merged[i1:i2] + [{s: n} for n in new[j1:j2]]
        merged = longer
    return merged


def abreast(merged: list[Numbers], text: Sequence[Sequence[str]]) -> list[Numbers]:
    """Lines that differ share a row when they say the same thing in other words: they begin alike (a field and its
    other default), or follow each other and are about one concept; several such lines of a script begin abreast."""

    def beginning(row: Numbers) -> str:
        return re.findall(r'^(?:"""|python|[\w,. ]+|.*)', first(row, text))[0]

    def concepts(row: Numbers) -> list[str]:
        return [concept for concept, _ in reasons(text[min(row)], row[min(row)])]

    done: list[Numbers] = []
    for row in merged:
        if not joined(done, row, beginning):
            done.append(dict(row))
    merged, done = done, []
    for row in merged:
        alike = []  # rows above that it can join without passing a line of its own scripts
        for above in reversed(done):
            if above.keys() & row.keys() or concepts(above) != concepts(row):
                break
            alike.append(above)
        if alike:
            max(reversed(alike), key=len).update(row)  # the first of those that most scripts share
        else:
            done.append(row)
    return done


def joined(done: list[Numbers], row: Numbers, beginning: Callable[[Numbers], str]) -> bool:
    """Whether there is a row above that begins alike and that it can join: each script still reads from top to bottom
    when lines that must come after it go below."""
    for i in reversed(range(len(done))):
        if beginning(done[i]) == beginning(row):
            before, after, scripts = [], [], set(done[i])
            for other in done[i + 1 :]:
                if other.keys() & scripts:
                    after.append(other)
                    scripts |= other.keys()
                else:
                    before.append(other)
            if not scripts & row.keys():
                done[i:] = [*before, done[i] | row, *after]
                return True
    return False


def coloured(source: str) -> list[str]:
    """The lines of a script as HTML, in the classes of Pygments; a long line may break after a bracket."""
    try:
        from pygments import highlight
        from pygments.formatters import HtmlFormatter
        from pygments.lexers import PythonLexer
    except ImportError as error:
        raise Mistake("the page is coloured by Pygments: pip install pygments -c constraints.txt") from error
    html = highlight(source, PythonLexer(stripnl=False), HtmlFormatter(nowrap=True))
    return html.replace('<span class="p">(</span>', '<span class="p">(</span><wbr>').splitlines()


def page(sources: Sequence[str]) -> str:
    scripts, html = [source.splitlines() for source in sources], [coloured(source) for source in sources]
    parts: list[tuple[str, list[Row]]] = [("what it is", [])]
    for row in rows(scripts):
        heading = re.match(r"    # (\d\. .+)|@dataclass", first(row.numbers, scripts))
        if heading:
            parts.append((heading[1] or "settings", []))
        parts[-1][1].append(row)
    legend = "".join(f'<li class="concept {slug(concept)}">{concept}</li>' for concept in CONCEPTS)
    blanks = {
        "STYLE": (HERE / "side_by_side.css").read_text(encoding="utf-8"),
        "SCRIPT": (HERE / "side_by_side.js").read_text(encoding="utf-8"),
        "LINKS": "".join(f'<li><a href="#{slug(title)}">{escape(title)}</a></li>' for title, _ in parts),
        "MAP": map_of(Map(SCRIPTS)),
        "LEGEND": legend,
        "PARTS": "\n".join(section(title, part, html) for title, part in parts),
    }
    frame = (HERE / "side_by_side.html").read_text(encoding="utf-8")
    return re.sub(r"\{([A-Z]+)\}", lambda blank: blanks[blank[1]], frame)


def map_of(scripts: Map) -> str:
    """The map: a box to choose each script, a button on each line that leads to its nearest sibling."""
    paths = "".join(f'<path d="{edge.path}"/>' for edge in scripts.edges)
    parts = [f'<svg width="{scripts.width}" height="{scripts.height}" aria-hidden="true">{paths}</svg>']
    of_columns, of_rows = scripts.headings()
    for kind, headings in (("column", of_columns), ("row", of_rows)):
        parts += [f'<span class="{kind}" style="{placed(at)}">{escape(text)}</span>' for at, text in headings]
    for s, (script, place) in enumerate(scripts.places.items()):
        box = f'<input type="checkbox" name="script" value="{s}"{" checked" * (s in FIRST)}>'
        told = f"<small>{escape(place.predicted)}; what learns: {escape(place.learns)}</small>"
        name = f"<span><b>{place.name}</b> <span>{script}</span> {told}</span>"
        parts.append(f'<label style="{placed(scripts.at[script])}">{box}{name}</label>')
    for one, other, n, _, at in scripts.edges:
        names = f'<span class="names">{scripts.places[one].name} and {scripts.places[other].name}: </span>'
        pair = f"{SCRIPTS.index(one)}-{SCRIPTS.index(other)}"
        lines = '<span class="names"> lines differ</span>'
        parts.append(f'<button type="button" data-pair="{pair}" style="{placed(at)}">{names}{n}{lines}</button>')
    return f'<div class="map" style="--width: {scripts.width}px; --height: {scripts.height}px">{"".join(parts)}</div>'


def placed(at: tuple[float, float]) -> str:
    return f"--x: {at[0]:g}px; --y: {at[1]:g}px"


def section(title: str, part: Sequence[Row], html: Sequence[Sequence[str]]) -> str:
    """A step as a table: a column a script, a group of rows that are the same in the same scripts."""
    name = slug(title)
    head = "".join(f'<th scope="col" data-script="{s}">{script}</th>' for s, script in enumerate(SCRIPTS))
    of: list[list[Row]] = []  # rows that differ in the same scripts, for the reasons that the first of them has
    for row in part:
        if of and row.kinds == of[-1][0].kinds and row.why.keys() <= of[-1][0].why.keys():
            of[-1].append(row)
        else:
            of.append([row])
    groups = [group(f"{name}-{n}", alike, html) for n, alike in enumerate(of)]
    return (
        f'<section aria-labelledby="{name}"><h2 id="{name}" tabindex="-1">{escape(title)}</h2>\n'
        f'<p class="same live" hidden>The same to the byte in all of these.</p>\n'
        f"<table><thead><tr>{head}</tr></thead>\n{''.join(groups)}</table></section>"
    )


def group(name: str, of: Sequence[Row], html: Sequence[Sequence[str]]) -> str:
    lines = "".join(f"<tr>{''.join(cell(row, s, html[s]) for s in range(len(SCRIPTS)))}</tr>\n" for row in of)
    if not of[0].kinds:
        return f"<tbody>{lines}</tbody>\n"
    why = ""
    for concept, sentence in of[0].why:
        scripts = "-".join(map(str, sorted(set().union(*(row.why.get((concept, sentence), ()) for row in of)))))
        why += f' <span data-script="{scripts}" data-concept="{concept}">{escape(sentence)}</span>'
    concept = next(iter(of[0].why), ("not explained",))[0]
    note = f'<a class="concept" id="{name}" href="#{name}">{concept}</a>{why}'
    return (
        f'<tbody class="differs {slug(concept)}" data-kinds="{of[0].kinds}">'
        f'<tr class="why"><th colspan="{len(SCRIPTS)}" scope="rowgroup">{note}</th></tr>\n{lines}</tbody>\n'
    )


def cell(row: Row, s: int, html: Sequence[str]) -> str:
    if s not in row.numbers:
        return f'<td data-script="{s}"></td>'
    line = html[row.numbers[s]]
    text = re.sub(r"<[^>]*>", "", line)
    indent = len(text) - len(text.lstrip())
    where = f'data-script="{s}" data-file="{SCRIPTS[s]}" data-line="{row.numbers[s] + 1}"'
    return f'<td {where}><code style="--indent: {indent}">{line}</code></td>'


def slug(title: str) -> str:
    return re.sub(r"\W+", "-", title)


if __name__ == "__main__":
    command_line(main, Config)
