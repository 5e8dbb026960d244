"""BERT's tokenizer by hand: id for id that of transformers, in every script that has letters, and in none."""

import random
import string
import unicodedata
from functools import cache

import numpy as np
import pytest

from cli import Mistake
from data.wordpiece import SPECIAL, WordPiece, load_wordpiece, save_wordpiece

WORDS = {
    "latin": "the old ship sails home over a calm sea it's unaffable Ærø naïve café Straße İstanbul œuvre ﬁn don't",
    "greek": "ὁ παλαιός ναῦς ΟΔΟΣ Σίσυφος θάλασσα",
    "cyrillic": "старый корабль плывёт домой Йод їжак",
    "hebrew": "הספינה הישנה שׁלום",
    "arabic": "السفينة القديمة تُبحر",
    "devanagari": "पुराना जहाज़ घर जाता है",
    "thai": "เรือเก่าแล่นกลับบ้าน",
    "hangul": "오래된 배가 집으로 간다",
    "chinese": "旧船驶回家乡 𠀀𪜶 豈 鿿",
    "japanese": "古い船が 家へ帰る カタカナ ガ",
    "others": "ძველი გემი հին նավ አሮጌ መርከብ ᏣᎳᎩ 𐐀𐐨 tiếng Việt",
}
STRANGE = [
    "", " ", "\t\n\r", "\x00a\x0b\x0c\x1c\x85b\u200b\ufeff\ufffd", "\u00a0\u3000\u2028x\u2029", "a\u0301\u0323b",
    "\ue000", "👩\u200d👩\u200d👧 🇫🇷 ☂", "$5.00+2=7^~`|<a_b>", "¡¿…—“x”«y»、。", "x" * 100, "x" * 101,
    "##a ## #", "[CLS] [MASK] [sep]", "ǅ ŉ ß ẞ ΐ", "١٢٣ ４５ Ⅷ ½",
]  # fmt: skip


@cache
def vocabulary():
    """All letters of the words alone and in words, and some words whole: much is split, something is unknown."""
    rng, tokens = random.Random(0), [*SPECIAL]
    words = sorted({form for text in WORDS.values() for word in text.split() for form in (word, word.lower())})
    words += [unicodedata.normalize("NFD", word) for word in words]
    letters = sorted(set("".join(words)) | set(string.printable.strip()))
    pieces = {word[i : i + rng.randint(2, 5)] for word in words for i in range(0, len(word), 2)}
    found = [*letters[::-1], *(f"##{letter}" for letter in letters if rng.random() < 0.9), *words[::2], *sorted(pieces)]
    return list(dict.fromkeys([*tokens, *found, *(f"##{piece}" for piece in sorted(pieces))]))


@cache
def both(lower_case, strip_accents=None, chinese=True):
    """Ours and transformers'."""
    transformers = pytest.importorskip("transformers", reason="transformers is no run-time requirement")
    vocab = {token: number for number, token in enumerate(vocabulary())}
    how = {"do_lower_case": lower_case, "strip_accents": strip_accents, "tokenize_chinese_chars": chinese}
    return WordPiece(vocabulary(), lower_case, strip_accents, chinese), transformers.BertTokenizer(vocab=vocab, **how)


def theirs_of(tokenizer, texts):
    """Without [CLS] and [SEP]; with split_special_tokens a "[SEP]" that a user writes is a text like any other."""
    return tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def characters():
    """Of every plane in which there are some, those that have been in Unicode for long: since then, categories of a few
    hundred rare characters have changed, and Python and tokenizers know other editions of it."""
    return [
        c for c in map(chr, [*range(0x500), *range(0x5D0, 0x600), *range(0x900, 0x950), *range(0x1E00, 0x2100),
        *range(0x2190, 0x2300), *range(0x3000, 0x3100), *range(0x4E00, 0x4E80), *range(0xAC00, 0xAC80),
        *range(0xE000, 0xE010), *range(0xF900, 0xF940), *range(0xFE50, 0xFF60), *range(0x1F600, 0x1F640),
        *range(0x20000, 0x20020), *range(0x2B810, 0x2B830)]) if unicodedata.category(c) != "Cn"
    ]  # fmt: skip


def fuzz(n, seed=0):
    """Words of all scripts, cut, joined, accented, between strange characters and white space."""
    rng, words = random.Random(seed), [word for text in WORDS.values() for word in text.split()]
    texts, odd = [*STRANGE, *WORDS.values()], characters()
    while len(texts) < n:
        parts = []
        for _ in range(rng.randint(1, 12)):
            word = rng.choice(words)
            kind = rng.random()
            if kind < 0.2:
                word = word[rng.randrange(len(word)) :] + rng.choice(words)[:2]
            elif kind < 0.4:
                word = unicodedata.normalize(rng.choice(["NFD", "NFKC"]), rng.choice([str.upper, str.title])(word))
            elif kind < 0.5:
                word = rng.choice(STRANGE)
            elif kind < 0.8:
                word = "".join(rng.choice(odd) for _ in range(rng.randint(1, 6)))
            parts.append(word + rng.choice(["", " ", " ", "  ", "\n", "\u00a0", "."]))
        texts.append("".join(parts))
    return texts[:n]


@pytest.mark.parametrize("lower_case", [True, False])
def test_ids_are_those_of_transformers_over_texts_in_many_scripts(lower_case):
    ours, theirs = both(lower_case)
    texts = fuzz(2000, seed=1 + lower_case)
    seen = set()
    for text, expected in zip(texts, theirs_of(theirs, texts), strict=True):
        ids = ours.encode_ordinary(text)
        assert ids == expected, (text, [hex(ord(c)) for c in text])
        seen.update(ids)
    unknown = ours.unk in seen
    assert unknown and len(seen) > 0.4 * ours.n_vocab, "much of the vocabulary is met, and so is what it lacks"


@pytest.mark.parametrize("how", [(True, False, True), (False, True, True), (True, None, False)])
def test_accents_and_chinese_characters_are_treated_as_the_settings_say(how):
    ours, theirs = both(*how)
    texts = fuzz(300)
    assert [ours.encode_ordinary(text) for text in texts] == theirs_of(theirs, texts)


def test_words_are_normalised_as_by_tokenizers_for_every_character_but_the_newest():
    """Alone, all 1,112,064 of them would take long: each 7th, and all below U+3100."""
    pytest.importorskip("transformers", reason="transformers is no run-time requirement")
    ours, theirs = both(True)
    backend = theirs._tokenizer
    differ = []
    for code in [*range(0x3100), *range(0x3100, 0xD800, 7), *range(0xE000, 0x30000, 7)]:
        text = f"a{chr(code)}b"
        words = [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(text))]
        if ours.words(text) != words:
            differ.append(code)
    assert len(differ) < 300 and min(differ, default=0x600) >= 0x600, [hex(code) for code in differ]


def test_a_word_is_the_longest_pieces_that_fit_one_after_another():
    tokenizer = WordPiece([*SPECIAL, "una", "##ffa", "##ble", "!", "un", "##ff", "##a", "u"], lower_case=True)
    tokens = [tokenizer.vocabulary[number] for number in tokenizer.encode_ordinary("Unaffable!  unx [SEP]")]
    assert tokens == ["una", "##ffa", "##ble", "!", "[UNK]", "[UNK]", "[UNK]", "[UNK]"]
    assert tokenizer.decode(tokenizer.encode_ordinary("Unaffable!")) == "unaffable !"
    assert tokenizer.encode_to_numpy("una un", disallowed_special=()).tolist() == tokenizer.encode_ordinary("una un")
    assert set(tokenizer.of_texts) == set(range(5, 13)) and tokenizer.eot_token == tokenizer.sep == 3


@pytest.mark.parametrize("how", [(True, None, True), (False, None, False), (False, True, True)])
def test_a_tokenizer_comes_back_from_its_folder_and_from_that_of_transformers(tmp_path, how):
    ours, theirs = both(*how)
    save_wordpiece(ours, tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    for folder in ("ours", "theirs"):
        again = load_wordpiece(tmp_path / folder, ours.n_vocab + 2)
        assert again.vocabulary == [*ours.vocabulary, f"[row {ours.n_vocab}]", f"[row {ours.n_vocab + 1}]"]
        assert [again.encode_ordinary(text) for text in fuzz(99)] == [ours.encode_ordinary(text) for text in fuzz(99)]
    assert load_wordpiece(tmp_path / "ours", ours.n_vocab).name == ours.name
    import transformers

    read = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert theirs_of(read, fuzz(99)) == [ours.encode_ordinary(text) for text in fuzz(99)]


NORMALIZER = '{"type": "BertNormalizer", "strip_accents": null, "handle_chinese_chars": true}'
BAD = [
    (
        {"vocab.txt": "a\nb\n"},
        r"vocab.txt cannot be used: its vocabulary lacks \[PAD\], \[UNK\], \[CLS\], \[SEP\], \[M",
    ),
    ({"vocab.txt": "\n".join([*SPECIAL, "a", "a"])}, "vocab.txt cannot be used: its vocabulary has a twice"),
    ({"vocab.txt": "\n".join([*SPECIAL, *"abcdef"])}, "it has 11 tokens, and the model 9: they do not belong together"),
    ({}, r"lacks the vocab.txt, or the tokenizer.json, of its model: copy it there too"),
    ({"tokenizer.json": '{"model": {"type": "BPE"}, "normalizer": {"type": "NFC"}}'}, "of the type BPE and NFC; only"),
    (
        {"tokenizer.json": '{"model": {"type": "WordPiece", "vocab": {"[PAD]": 1}}, "normalizer": ' + NORMALIZER + "}"},
        "tokenizer.json cannot be used: its ids must count up from 0",
    ),
    ({"tokenizer.json": "{"}, "tokenizer.json cannot be used: "),
    ({"vocab.txt": "\n".join(SPECIAL), "tokenizer_config.json": "[]"}, "vocab.txt cannot be used"),
]


@pytest.mark.parametrize("files, sentence", BAD, ids=[sentence for _, sentence in BAD])
def test_a_vocabulary_that_cannot_be_used_is_one_sentence(tmp_path, files, sentence):
    for name, content in files.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(Mistake, match=sentence) as error:
        load_wordpiece(tmp_path, 9)
    assert len(str(error.value).splitlines()) == 1


def test_ids_of_a_text_do_not_depend_on_what_was_read_before():
    ours, _ = both(True)
    first = [ours.encode_ordinary(text) for text in fuzz(50)]
    again = WordPiece(vocabulary(), True)
    assert [again.encode_ordinary(text) for text in fuzz(50)[::-1]] == first[::-1]
    assert np.concatenate([again.encode_to_numpy(text) for text in fuzz(50)]).max() < again.n_vocab
