"""Tokenizers: text to ids and back. Each is a tiktoken.Encoding whose end-of-text id is `tokenizer.eot_token`.

    bytes    one token a byte: any text, offline, 257 tokens
    gpt2     GPT-2's byte-level BPE, 50,257 tokens (tiktoken downloads it once)
    FILE     a byte-level BPE of one's own:   python -m data.tokenizer --text TEXT --out FILE

User text always goes through `encode_ordinary`, for which "<|endoftext|>" is thirteen characters like any others;
the end-of-text id is appended by code only.
"""

import base64
import codecs
import hashlib
import heapq
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import tiktoken

from cli import Mistake, command_line
from data.files import write_whole
from data.text import files_of, pieces_of

# Words and numbers with the space before them, punctuation, white space: every character matches one of these.
# None is longer than 32, so that a text without spaces is no single word.
PATTERN = r" ?[^\W\d_]{1,32}| ?\d{1,32}| ?(?:[^\s\w]|_){1,32}|\s{1,32}(?!\S)|\s{1,32}"


def load_tokenizer(name: str) -> tiktoken.Encoding:
    """name: bytes, gpt2, or the path of a file that save_tokenizer wrote. Raises ValueError for anything else."""
    if name == "bytes":
        return _encoding("bytes", {bytes([i]): i for i in range(256)})
    if name == "gpt2":
        try:
            return tiktoken.get_encoding("gpt2")
        except (OSError, ValueError) as error:  # no network (of requests); another file, as a login page is
            raise Mistake(
                "the gpt2 tokenizer is not on this machine and could not be downloaded: go online once, or set "
                "TIKTOKEN_CACHE_DIR to a folder that has it, or begin with new_model.py --tokenizer bytes"
            ) from error
    try:
        content = Path(name).read_bytes()
        ranks = {
            base64.b64decode(token, validate=True): int(rank) for token, rank in map(bytes.split, content.splitlines())
        }
    except OSError as error:
        raise Mistake(
            f"there is no tokenizer {name!r}: give bytes, gpt2 or a file from python -m data.tokenizer"
        ) from error
    except ValueError as error:
        raise Mistake(f"{name} is no tokenizer file: each line must be a token in base64 and its rank") from error
    if list(ranks.values()) != list(range(len(ranks))) or not all(bytes([i]) in ranks for i in range(256)):
        raise Mistake(f"{name} is no tokenizer file: ranks must count up from 0 and all 256 bytes be there")
    return _encoding(f"bpe-{hashlib.sha256(PATTERN.encode() + content).hexdigest()[:16]}", ranks)


def _encoding(name: str, ranks: dict[bytes, int]) -> tiktoken.Encoding:
    return tiktoken.Encoding(name, pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": len(ranks)})


def fitted(tokenizer: tiktoken.Encoding, vocab_size: int, model: str) -> tiktoken.Encoding:
    """The tokenizer for a model of so many tokens: some have more, for speed. Each id that no text has gets a name, so
    that whatever the model says can be decoded. Raises Mistake, naming the model, if it has fewer."""
    if vocab_size < tokenizer.n_vocab:
        raise Mistake(
            f"{model} has a model of {vocab_size:,} tokens, but its tokenizer {tokenizer.name} has "
            f"{tokenizer.n_vocab:,}: they do not belong together"
        )
    if vocab_size == tokenizer.n_vocab:
        return tokenizer
    return with_special(tokenizer, {f"<|unused {i}|>": i for i in range(tokenizer.n_vocab, vocab_size)})


def with_special(tokenizer: tiktoken.Encoding, special: dict[str, int]) -> tiktoken.Encoding:
    """The same tokenizer with more ids, which no text has, and their names."""
    return tiktoken.Encoding(
        tokenizer.name,
        pat_str=tokenizer._pat_str,
        mergeable_ranks=tokenizer._mergeable_ranks,
        special_tokens=tokenizer._special_tokens | special,
    )


def as_it_comes(tokenizer: tiktoken.Encoding) -> Callable[[int], str]:
    """Returns a function from one token after another to their texts; a character that several tokens share comes with
    the last of them."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    return lambda token: decoder.decode(tokenizer.decode_single_token_bytes(token))


def save_tokenizer(ranks: dict[bytes, int], path: str | Path) -> None:
    """Writes tiktoken's file format: a line a token, its bytes in base64 and its rank."""
    write_whole(Path(path), b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items()))


def ranks_of(tokenizer: tiktoken.Encoding) -> dict[bytes, int]:
    """Each token's rank, without end-of-text, which comes after all of them."""
    return {tokenizer.decode_single_token_bytes(rank): rank for rank in range(tokenizer.eot_token)}


def hugging_face_tokenizer(tokenizer: tiktoken.Encoding, block_size: int) -> dict[str, dict[str, Any]]:
    """The same tokenizer for transformers: {"tokenizer.json": …, "tokenizer_config.json": …}.

    There a token's text is one letter a byte (Radford et al. 2019), and what tiktoken decides by the rank of the merged
    token is a list of merges: every two tokens that make up a third, by its rank.
    """
    ranks = ranks_of(tokenizer)
    merges = [
        [spelled(token[:i]), spelled(token[i:])]
        for token in ranks
        for i in range(1, len(token))
        if token[:i] in ranks and token[i:] in ranks
    ]
    end = "<|endoftext|>"
    special = {"id": tokenizer.eot_token, "content": end, "special": True, "normalized": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": tokenizer._pat_str}, "behavior": "Isolated", "invert": False}
    return {
        "tokenizer.json": {
            "version": "1.0",
            "added_tokens": [{**special, "single_word": False, "lstrip": False, "rstrip": False}],
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
            "decoder": byte_level,
            # ignore_merges: a word that is a token is taken whole, as in tiktoken
            "model": {"type": "BPE", "ignore_merges": True, "vocab": vocabulary_of(tokenizer), "merges": merges},
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": end,
            "eos_token": end,
            "model_max_length": block_size,
            "clean_up_tokenization_spaces": False,
        },
    }


def vocabulary_of(tokenizer: tiktoken.Encoding) -> dict[str, int]:
    """{token: id}, as vocab.json has it, end-of-text included."""
    of_texts = {spelled(token): rank for token, rank in ranks_of(tokenizer).items()}
    return of_texts | {"<|endoftext|>": tokenizer.eot_token}


VISIBLE = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
INVISIBLE = [byte for byte in range(256) if byte not in VISIBLE]
LETTERS = [chr(byte if byte in VISIBLE else 256 + INVISIBLE.index(byte)) for byte in range(256)]


def spelled(token: bytes) -> str:
    """GPT-2's way to print bytes: as their character in Latin-1, or, where that is invisible, as one from 256 on."""
    return "".join(LETTERS[byte] for byte in token)


def train_bpe(text: Iterable[str], vocab_size: int) -> dict[bytes, int]:
    """Byte-pair encoding: the commonest pair of neighbours becomes a token, again and again (SLP3, ch. 2).

    text: in pieces of any length; vocab_size: bytes and merges together, without end-of-text. Returns each token's
    rank, which is its id; fewer than vocab_size when nothing is left to merge. Raises ValueError for a vocab_size below
    256 or no text. A merge visits only the words that hold its pair, so a megabyte takes about a second.
    """
    if vocab_size < 256:
        raise Mistake(f"a byte-level vocabulary has at least 256 tokens, got --vocab-size {vocab_size}")
    frequency = Counter(word for piece in text for word in re.findall(PATTERN, piece))
    if not frequency:
        raise Mistake("there is no text to learn merges from")
    words = [([bytes([byte]) for byte in word.encode()], n) for word, n in frequency.items()]  # (tokens, how often)
    ranks = {bytes([i]): i for i in range(256)}
    pair_counts: Counter[tuple[bytes, bytes]] = Counter()
    words_with: defaultdict[tuple[bytes, bytes], set[int]] = defaultdict(set)  # pair -> indices of words
    for i, (word, n) in enumerate(words):
        for pair in pairwise(word):
            pair_counts[pair] += n
            words_with[pair].add(i)
    heap = [(-count, pair) for pair, count in pair_counts.items()]  # the commonest pair on top
    heapq.heapify(heap)
    while len(ranks) < vocab_size and heap:
        count, pair = heapq.heappop(heap)
        if -count != pair_counts[pair]:
            continue  # an old count: the pair is in the heap with its new one too
        ranks.setdefault(pair[0] + pair[1], len(ranks))  # two pairs can spell the same token
        changed: set[tuple[bytes, bytes]] = set()
        for i in words_with.pop(pair):
            word, n = words[i]
            merged = _merge(word, pair)
            for old in pairwise(word):
                pair_counts[old] -= n
            for new in pairwise(merged):
                pair_counts[new] += n
                words_with[new].add(i)
            changed.update(pairwise(word), pairwise(merged))
            words[i] = merged, n
        for other in changed:
            if pair_counts[other]:
                heapq.heappush(heap, (-pair_counts[other], other))
    return ranks


def _merge(word: list[bytes], pair: tuple[bytes, bytes]) -> list[bytes]:
    merged: list[bytes] = []
    for token in word:
        if merged and (merged[-1], token) == pair:
            merged[-1] += token
        else:
            merged.append(token)
    return merged


@dataclass(kw_only=True)
class Config:
    text: str  # what to learn the merges from: a text file, a folder of them, or a corpus by name
    out: str  # file to write, in tiktoken's format
    vocab_size: int = 1024  # tokens: 256 bytes and the merges


def main(config: Config) -> None:
    if Path(config.out).exists():
        raise Mistake(f"{config.out} exists already: give another --out, or delete it")
    ranks = train_bpe((piece for piece, _ in pieces_of(*files_of(config.text))), config.vocab_size)
    save_tokenizer(ranks, config.out)
    print(f"{config.out}: {len(ranks):,} tokens, the last one {list(ranks)[-1]!r}")


if __name__ == "__main__":
    command_line(main, Config)
