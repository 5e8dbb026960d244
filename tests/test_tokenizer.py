"""The trained tokenizer compresses, and a text is tokenised once; that any text comes back is in test_fuzz.py."""

import base64

import pytest
import requests
import tiktoken

from data.text import read_text, token_file
from data.tokenizer import load_tokenizer, save_tokenizer, train_bpe

TEXT = "the ship and the sea, the Ship_2 und das Öl ☂ 12345\n\n\tthe end" * 20


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "own.tiktoken"
    save_tokenizer(train_bpe([TEXT], 300), path)
    return load_tokenizer(str(path))


def test_training_merges_the_commonest_pair_first_and_the_first_of_equals(own):
    assert list(train_bpe(["aab aab aab ab"], 258))[256:] == [b"ab", b"aab"]  # ab 4 times; then a + ab 3 times
    assert list(train_bpe(["cd ab"], 257))[256:] == [b" a"]  # each pair once
    assert own.eot_token == own.n_vocab - 1
    assert len(own.encode_ordinary(TEXT)) < len(TEXT.encode()) / 2
    assert own.encode_ordinary(" the") == [own.encode_single_token(" the")]


def test_training_stops_when_nothing_is_left_to_merge_and_is_reproducible():
    assert len(train_bpe(["ab"], 1000)) == 257
    assert train_bpe([TEXT], 300) == train_bpe([TEXT], 300)
    with pytest.raises(ValueError, match="at least 256 tokens, got --vocab-size 100"):
        train_bpe([TEXT], 100)


@pytest.mark.parametrize(
    "content, complaint",
    [
        (b"not base64 at all\n", "base64"),
        (b"<html>\n", "base64"),
        (b"", "all 256 bytes"),
        (b"\n".join(base64.b64encode(bytes([i])) + b" 0" for i in range(256)), "count up from 0"),
    ],
)
def test_a_file_that_is_no_tokenizer_is_refused_in_words(tmp_path, content, complaint):
    path = tmp_path / "broken.tiktoken"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=complaint):
        load_tokenizer(str(path))
    with pytest.raises(ValueError, match="there is no tokenizer 'nowhere'"):
        load_tokenizer("nowhere")


@pytest.mark.parametrize("error", [requests.exceptions.ConnectionError("no route"), ValueError("Hash mismatch")])
def test_gpt2_without_a_network_or_behind_a_login_page_says_what_to_do(monkeypatch, error):
    def offline(name):
        raise error

    monkeypatch.setattr(tiktoken, "get_encoding", offline)
    with pytest.raises(ValueError, match=r"TIKTOKEN_CACHE_DIR .* or begin with new_model.py --tokenizer bytes"):
        load_tokenizer("gpt2")


def test_a_long_text_is_tokenised_in_pieces_once_and_read_from_disk(tmp_path, monkeypatch, own):
    path = tmp_path / "long.txt"
    text = "".join(f"line {i}: the ship and the sea\n" for i in range(100_000))
    path.write_text(text, encoding="utf-8")
    pieces = list(read_text(path))
    assert "".join(pieces) == text and len(pieces) == 4 and all(piece.endswith("\n") for piece in pieces)
    tokens = token_file(path, own)
    assert tokens.filename and tokens.dtype == "uint16" and tokens[-1] == own.eot_token
    assert own.decode(tokens[:-1].tolist()) == text
    monkeypatch.setattr("data.text.read_text", lambda path: pytest.fail("tokenised a second time"))
    assert (token_file(path, own) == tokens).all()


def test_an_edited_text_and_another_tokenizer_are_tokenised_anew(tmp_path, own):
    path = tmp_path / "text.txt"
    path.write_text("one", encoding="utf-8")
    first = token_file(path, own).tolist()
    path.write_text("two", encoding="utf-8")
    assert token_file(path, own).tolist() != first
    assert token_file(path, load_tokenizer("bytes")).tolist() == [*b"two", 256]
