"""Public files by name: where each is, its licence, and what it must hash to."""

from dataclasses import dataclass

HUB = "https://huggingface.co"
RAW = "https://raw.githubusercontent.com"
BOOK = f"{RAW}/rasbt/LLMs-from-scratch/main/ch07"


@dataclass(frozen=True)
class Public:
    """A public file, and how to read it."""

    kind: str  # text, instructions or weights
    licence: str
    size: int | None  # bytes, where known
    sha256: str | None  # where known: without it only a broken download is noticed, not another file
    url: str
    member: str = ""  # the file to read in a .zip
    columns: str = ""  # as for --columns
    as_labelled: str = ""  # the same, of instructions that --labelled can read too
    has_pairs: bool = False  # whether the instructions have two responses each, for --pairs

    def kinds(self) -> tuple[str, ...]:
        return (self.kind, *["labelled"] * bool(self.as_labelled), *["pairs"] * self.has_pairs)


CORPORA = {
    "tinyshakespeare": Public(
        "text",
        "public-domain text",
        1_115_394,
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        f"{RAW}/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
    ),
    "instruction-data": Public(
        "instructions",
        "Apache-2.0",
        203_524,
        "7e09a9af353722ca15c18bc580f093f9c39d3178335a75177319cb1e1d163944",
        f"{BOOK}/01_main-chapter-code/instruction-data.json",
    ),
    "preference-pairs": Public(
        "instructions",
        "Apache-2.0",
        386_968,
        "305315abf14f65fa42c01a0877572f832606571c2a7d49f152ac1d758b16756e",
        f"{BOOK}/04_preference-tuning-with-dpo/instruction-data-with-preference.json",
        has_pairs=True,
    ),
    "alpaca": Public(
        "instructions",
        "CC BY-NC 4.0",
        22_773_992,
        "2eddafc6b977608d778aaab8dfc7e50e547b3af9826dfb9e909d9fc362e4a419",
        f"{RAW}/tatsu-lab/stanford_alpaca/761dc5bfbdeeffa89b8bff5d038781a4055f796a/alpaca_data.json",
    ),
    "dolly-15k": Public(
        "instructions",
        "CC BY-SA 3.0",
        None,
        "2df9083338b4abd6bceb5635764dab5d833b393b55759dffb0959b6fcbf794ec",
        f"{HUB}/datasets/databricks/databricks-dolly-15k/resolve/bdd27f4d94b9c1f951818a7da7fd7aeea5dbff1a"
        "/databricks-dolly-15k.jsonl",
        columns="instruction=instruction,input=context,output=response",
    ),
    "sms-spam": Public(
        "instructions",
        "CC BY 4.0",
        None,
        "1587ea43e58e82b14ff1f5425c88e17f8496bfcdb67a583dbff9eefaf9963ce3",
        "https://archive.ics.uci.edu/static/public/228/sms+spam+collection.zip",
        member="SMSSpamCollection",
        columns="instruction==Is this message spam or ham?,input=2,output=1",
        as_labelled="text=2,label=1",
    ),
}


def _weights(repository: str, revision: str, licence: str, size: int | None = None, sha256: str | None = None):
    return Public("weights", licence, size, sha256, f"{HUB}/{repository}/resolve/{revision}/model.safetensors")


WEIGHTS = {
    "gpt2": _weights(
        "openai-community/gpt2",
        "607a30d783dfa663caf39e06633721c8d4cfcd7e",
        "modified MIT",
        548_105_171,
        "248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707",
    ),
    "distilgpt2": _weights(
        "distilbert/distilgpt2",
        "2290a62682d06624634c1f46a6ad5be0f47f38aa",
        "Apache-2.0",
        352_824_413,
        "e1ff18884359fe8beb795a5f414feb85a6ce3d929ad019c0d958c039d2b94a1b",
    ),
    "gpt2-medium": _weights("openai-community/gpt2-medium", "6dcaa7a952f72f9298047fd5137cd6e4f05f41da", "modified MIT"),
    "gpt2-large": _weights("openai-community/gpt2-large", "main", "modified MIT"),
    "gpt2-xl": _weights("openai-community/gpt2-xl", "main", "modified MIT"),
    "bert-base-uncased": _weights(
        "google-bert/bert-base-uncased",
        "86b5e0934494bd15c9632b12f734a8a67f723594",
        "Apache-2.0",
        440_449_768,
        "68d45e234eb4a928074dfd868cead0219ab85354cc53d20e772753c6bb9169d3",
    ),
    "bert-base-cased": _weights(
        "google-bert/bert-base-cased",
        "cd5ef92a9fb2f889e972770a36d4ed042daf221e",
        "Apache-2.0",
        435_755_784,
        "1d8bdcee6021e2c25f0325e84889b61c2eb26b843eef5659c247af138d64f050",
    ),
    "distilbert-base-uncased": _weights(
        "distilbert/distilbert-base-uncased",
        "12040accade4e8a0f71eabdb258fecc2e7e948be",
        "Apache-2.0",
        267_954_768,
        "5e3f1108e3cb34ee048634875d8482665b65ac713291a7e32396fb18f6ff0063",
    ),
}


def _vocabulary(name: str, size: int, sha256: str) -> Public:
    weights = WEIGHTS[name]
    return Public("vocabulary", weights.licence, size, sha256, weights.url.replace("model.safetensors", "vocab.txt"))


UNCASED = (231_508, "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3")
CASED = (213_450, "eeaa9875b23b04b4c54ef759d03db9d1ba1554838f8fb26c5d96fa551df93d02")
OF_BERT = {"bert-base-uncased": UNCASED, "bert-base-cased": CASED, "distilbert-base-uncased": UNCASED}
VOCABULARIES = {name: _vocabulary(name, *pinned) for name, pinned in OF_BERT.items()}
