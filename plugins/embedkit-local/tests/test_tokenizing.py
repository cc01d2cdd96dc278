"""Token ids, counts and cuts: ours beside those of transformers."""

from __future__ import annotations

import json
import shutil

import pytest
from embedkit_local.model_files import Place, read_model
from embedkit_local.tokenizing import BulkTokenizer, load_tokenizer
from transformers import AutoTokenizer

from embedkit.errors import ModelLoadError

TEXTS = [
    "hello world",
    "Crème Brûlée, ÅNGSTRÖM and naïve façade",
    "検索は意味によって行われ、単語の一致だけに頼らない。",
    "a [MASK] b [SEP] c [PAD] [UNK]",
    "tabs\tand\nnewlines\x00and\u200bzero width\ufffd",
    "x" * 300,
    "😀 emoji 👩‍👩‍👧 and ﬁ ligature",
    " ",
]


def read(directory):
    """Read a directory's files."""
    return read_model(Place(directory=directory, model=str(directory)), trust_remote_code=False)


@pytest.mark.weights
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"do_lower_case": False},
        {"strip_accents": False},
        {"tokenize_chinese_chars": False},
        {"do_lower_case": None},
    ],
)
def test_a_wordpiece_tokenizer_is_read_as_transformers_reads_it(minilm, tmp_path, settings):
    """Also where tokenizer_config.json and tokenizer.json disagree: transformers obeys the former."""
    shutil.copytree(minilm, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "tokenizer_config.json"
    config = {**json.loads(path.read_text(encoding="utf-8")), **settings}
    config = {key: value for key, value in config.items() if value is not None or key == "strip_accents"}
    path.write_text(json.dumps(config), encoding="utf-8")
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    ours = BulkTokenizer(load_tokenizer(read(tmp_path)), max_tokens=256)
    expected = [theirs(text, truncation=True, max_length=256)["input_ids"] for text in TEXTS]
    assert expected == [row.tolist() for row in ours.tokenize(TEXTS).rows]


@pytest.mark.weights
def test_a_truncation_in_the_tokenizers_own_file_is_not_obeyed(minilm):
    """Its file says 128; the directory says 256."""
    tokens = BulkTokenizer(load_tokenizer(read(minilm)), max_tokens=256).tokenize(["word " * 1000])
    assert [256] == tokens.lengths.tolist()


@pytest.mark.parametrize("kind", ["word_tokenizer", "byte_tokenizer"])
@pytest.mark.parametrize("append", [(), (4,)])
def test_counts_are_those_of_uncut_texts(zoo, kind, append):
    """Special and appended tokens included, exactly, for texts that are cut off many times over."""
    texts = ["a", "a b c", "a b " * 50, "c " * 333]
    make = getattr(zoo, kind)
    cut = BulkTokenizer(make(), max_tokens=8, append=append)
    whole = BulkTokenizer(make(), max_tokens=None, append=append)
    assert whole.tokenize(texts).lengths.tolist() == cut.count(texts)
    tokens = cut.tokenize(texts)
    assert [2, 3] == [i for i in range(4) if tokens.full_lengths[i] > tokens.lengths[i]]
    assert 8 == max(tokens.lengths)


def test_a_token_that_the_tokenizer_appends_itself_is_not_appended_again(zoo):
    """One probe tells."""
    assert () == BulkTokenizer(zoo.word_tokenizer(), max_tokens=8, append=(3,)).appended
    assert (4,) == BulkTokenizer(zoo.word_tokenizer(), max_tokens=8, append=(4,)).appended


def test_the_callers_tokenizer_is_left_alone(zoo):
    """Ours is a copy: nobody changes it under a thread that encodes."""
    tokenizer = zoo.word_tokenizer()
    BulkTokenizer(tokenizer, max_tokens=8)
    assert tokenizer.truncation is None


def test_a_limit_without_room_for_a_text_is_refused(zoo):
    """Two special tokens leave nothing of two."""
    with pytest.raises(ModelLoadError, match="no room"):
        BulkTokenizer(zoo.word_tokenizer(), max_tokens=2)
