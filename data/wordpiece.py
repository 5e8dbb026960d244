"""WordPiece, BERT's tokenizer (Devlin et al. 2019, sec. 3; Wu et al. 2016): words, and pieces of rarer ones.

    "Unaffable!"  ->  una ##ffa ##ble !          a piece that goes on with a word begins with ##

A text is cleaned first, in lower case and without accents if the vocabulary is uncased; punctuation and Chinese
characters stand apart; then the longest piece that fits is taken, again and again. Ids are those of transformers'
BertTokenizer, but that "[CLS]" in a text is five characters like any others.
"""

import hashlib
import json
import unicodedata
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import tiktoken

from cli import Mistake, listed
from data.files import write_whole

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LONGEST_WORD = 100  # characters: a longer one is [UNK]
CHINESE = (  # and Japanese and Korean characters that are Chinese by origin; as the tokenizers package has it
    (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2A6DF), (0x2A700, 0x2B81F), (0x2B920, 0x2CEAF),
    (0x2F800, 0x2FA1F),
)  # fmt: skip


@cache
def cleaned(character: str) -> str:
    """Nothing of a control character, a space for white space of any kind, all others as they are."""
    category = unicodedata.category(character)
    if character in "\t\n\r" or category in ("Zs", "Zl", "Zp"):
        return " "
    return "" if category in ("Cc", "Cf", "Co", "Cs") or character == "\ufffd" else character


@cache
def cleaned_and_chinese_apart(character: str) -> str:
    is_chinese = any(first <= ord(character) <= last for first, last in CHINESE)
    return f" {character} " if is_chinese else cleaned(character)


@cache
def punctuation_apart(character: str) -> str:
    """Punctuation, and whatever else of ASCII is neither letter nor digit: $ is a symbol, but stands apart too."""
    is_ascii_symbol = "!" <= character <= "~" and not character.isalnum()
    is_punctuation = is_ascii_symbol or unicodedata.category(character).startswith("P")
    return f" {character} " if is_punctuation else character


class WordPiece(tiktoken.Encoding):
    """Stands where a tiktoken.Encoding stands: encode_ordinary, encode_to_numpy, decode, n_vocab, eot_token, name."""

    def __init__(
        self, vocabulary: Sequence[str], lower_case: bool, strip_accents: bool | None = None, chinese_apart: bool = True
    ) -> None:
        """vocabulary: the tokens in the order of their ids; strip_accents: None, and it is as lower_case.

        Raises ValueError for a vocabulary without the special tokens, or with a token that comes twice.
        """
        self.vocabulary, self.lower_case, self.chinese_apart = list(vocabulary), lower_case, chinese_apart
        self.strip_accents = lower_case if strip_accents is None else strip_accents
        self.ids = {token: number for number, token in enumerate(vocabulary)}
        if missing := [token for token in SPECIAL if token not in self.ids]:
            raise ValueError(f"its vocabulary lacks {listed(missing)}")
        if len(self.ids) < len(vocabulary):
            twice = [token for number, token in enumerate(vocabulary) if self.ids[token] != number]
            raise ValueError(f"its vocabulary has {listed(twice, 3)} twice")
        self.pad, self.unk, self.cls, self.sep, self.mask = (self.ids[token] for token in SPECIAL)
        how = (self.vocabulary, lower_case, self.strip_accents, chinese_apart)
        self.name = f"wordpiece-{hashlib.sha256(repr(how).encode()).hexdigest()[:16]}"
        self.of_texts = np.setdiff1d(np.arange(len(vocabulary)), [self.ids[token] for token in SPECIAL])  # ids
        self.pieces_of = lru_cache(2**17)(self.pieces)  # most words of a text come again

    @property
    def n_vocab(self) -> int:
        return len(self.vocabulary)

    @property
    def eot_token(self) -> int:
        """[SEP]: it ends a text."""
        return self.sep

    def words(self, text: str) -> list[str]:
        """The text's words, normalised, punctuation apart."""
        text = "".join(map(cleaned_and_chinese_apart if self.chinese_apart else cleaned, text))
        if self.strip_accents:  # a letter and its accent become two characters, of which one is left out
            text = "".join(c for c in unicodedata.normalize("NFD", text) if unicodedata.category(c) != "Mn")
        if self.lower_case:
            text = text.replace("Σ", "σ").lower()  # Python alone would write ς at the end of a word
        return "".join(map(punctuation_apart, text)).split()

    def pieces(self, word: str) -> list[int]:
        """The longest piece that the word begins with, then the longest that goes on with it, and so on; [UNK] for a
        word that cannot be made of pieces."""
        if len(word) > LONGEST_WORD:
            return [self.unk]
        ids: list[int] = []
        start = 0
        while start < len(word):
            end, before = len(word), "##" if start else ""
            while end > start and before + word[start:end] not in self.ids:
                end -= 1
            if end == start:
                return [self.unk]
            ids.append(self.ids[before + word[start:end]])
            start = end
        return ids

    def encode_ordinary(self, text: str) -> list[int]:
        return [number for word in self.words(text) for number in self.pieces_of(word)]

    def encode_to_numpy(self, text: str, **_: Any) -> np.ndarray:
        return np.array(self.encode_ordinary(text), np.uint32)

    def decode(self, tokens: Sequence[int], errors: str = "replace") -> str:
        """Tokens with a space between, pieces of a word together; white space and what was cleaned away is lost."""
        return " ".join(self.vocabulary[token] for token in tokens).replace(" ##", "")


def frame(tokenizer: tiktoken.Encoding) -> tuple[list[int], list[int], list[int]]:
    """The ids that stand before a text, between two, and after them: for BERT [CLS], [SEP] and [SEP]; for others no
    more than a line break between two."""
    if isinstance(tokenizer, WordPiece):
        return [tokenizer.cls], [tokenizer.sep], [tokenizer.sep]
    return [], tokenizer.encode_ordinary("\n"), []


# ---- files -----------------------------------------------------------------------------------------------------------


def load_wordpiece(folder: str | Path, vocab_size: int) -> WordPiece:
    """The tokenizer in a folder, as transformers keeps it: tokenizer.json, or vocab.txt and tokenizer_config.json.

    vocab_size: rows of the model; those beyond the vocabulary get a name, so that whatever it says can be decoded.
    Raises Mistake for a folder without one, or with one that does not fit.
    """
    file = next((Path(folder, name) for name in ("tokenizer.json", "vocab.txt") if Path(folder, name).is_file()), None)
    if file is None:
        raise Mistake(f"{folder} lacks the vocab.txt, or the tokenizer.json, of its model: copy it there too")
    try:
        if file.name == "vocab.txt":
            settings = Path(folder, "tokenizer_config.json")
            how = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
            accents, chinese = how.get("strip_accents"), how.get("tokenize_chinese_chars", True)
            return wordpiece_of(file, how.get("do_lower_case", True), vocab_size, accents, chinese)
        whole = json.loads(file.read_text(encoding="utf-8"))
        model, how = whole["model"], whole["normalizer"]
        if (model["type"], how["type"]) != ("WordPiece", "BertNormalizer"):
            raise ValueError(f"it is of the type {model['type']} and {how['type']}; only WordPiece is BERT's")
        tokens = sorted(model["vocab"], key=model["vocab"].get)
        if [model["vocab"][token] for token in tokens] != list(range(len(tokens))):
            raise ValueError("its ids must count up from 0")
        return _fitted(tokens, vocab_size, how["lowercase"], how["strip_accents"], how["handle_chinese_chars"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Mistake(f"{file} cannot be used: {error}") from error


def wordpiece_of(file: Path, lower_case: bool, vocab_size: int, *how: Any) -> WordPiece:
    """The tokenizer whose tokens are the lines of a vocab.txt."""
    lines = file.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    return _fitted(lines, vocab_size, lower_case, *how)


def _fitted(tokens: list[str], vocab_size: int, *how: Any) -> WordPiece:
    if len(tokens) > vocab_size:
        raise ValueError(f"it has {len(tokens):,} tokens, and the model {vocab_size:,}: they do not belong together")
    return WordPiece([*tokens, *(f"[row {number}]" for number in range(len(tokens), vocab_size))], *how)


def save_wordpiece(tokenizer: WordPiece, folder: str | Path) -> None:
    """Writes vocab.txt and tokenizer_config.json."""
    write_whole(Path(folder, "vocab.txt"), "".join(f"{token}\n" for token in tokenizer.vocabulary).encode())
    settings = json.dumps(settings_of(tokenizer), indent=2) + "\n"
    write_whole(Path(folder, "tokenizer_config.json"), settings.encode())


def settings_of(tokenizer: WordPiece) -> dict[str, Any]:
    """What tokenizer_config.json says."""
    return {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": tokenizer.lower_case,
        "strip_accents": tokenizer.strip_accents,
        "tokenize_chinese_chars": tokenizer.chinese_apart,
    }
