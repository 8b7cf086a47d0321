"""Tokenizers as GGUF vocabularies: kinds, special tokens, and the reader of tokenizer.model."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lathe.quantize.checkpoint import Checkpoint
from lathe.quantize.convert.hparams import Hparams
from lathe.quantize.convert.vocabulary.choose import draft_vocabulary
from lathe.quantize.convert.vocabulary.model import Specials, TokenType, Vocabulary
from lathe.quantize.convert.vocabulary.pieces import Piece, read_pieces
from lathe.quantize.convert.vocabulary.pretokenizers import CANDIDATES, candidates, propose
from lathe.quantize.convert.vocabulary.source import looks_special, read_tokenizer
from lathe.quantize.convert.vocabulary.specials import read_specials
from lathe.quantize.errors import CheckpointError
from support import tokenizer_files as files


def checkpoint(folder: Path, document: dict[str, Any] | None = None, **values: Any) -> Checkpoint:
    """A checkpoint that is nothing but a tokenizer."""
    if document is not None:
        (folder / "tokenizer.json").write_text(json.dumps(document))
    return Checkpoint(folder=folder, config={}, **values)


def drafted(folder: Path, document: dict[str, Any], size: int | None = None, **values: Any) -> Vocabulary:
    """The vocabulary before any comparison."""
    config = {"vocab_size": size} if size else {}
    return draft_vocabulary(checkpoint(folder, document, **values), Hparams(config, {})).vocabulary


def test_byte_level_bpe_keeps_tokens_merges_and_roles(tmp_path: Path) -> None:
    document = files.byte_level_bpe("llama-bpe", ("<|endoftext|>", "<pad>"))
    count = len(document["model"]["vocab"])
    vocabulary = drafted(tmp_path, document, count + 5)
    assert vocabulary.model == "gpt2"
    assert vocabulary.tokens[:3] == ["Ā".encode(), "ā".encode(), "Ă".encode()]
    assert vocabulary.merges[0] == "Ġ t"
    assert vocabulary.types[count : count + 2] == [TokenType.CONTROL] * 2
    assert vocabulary.tokens[count + 2 :] == [f"[PAD{count + number}]".encode() for number in (2, 3, 4)]
    assert vocabulary.types[count + 2 :] == [TokenType.UNUSED] * 3


def test_spaces_inside_merges_are_written_as_their_stand_in(tmp_path: Path) -> None:
    document = files.byte_level_bpe()
    document["model"]["merges"] = [["a ", "b"], "c d"]
    assert drafted(tmp_path, document).merges == ["aĠ b", "c d"]


def test_added_tokens_that_are_not_special_are_matched_as_text(tmp_path: Path) -> None:
    document = files.byte_level_bpe(specials=())
    count = len(document["model"]["vocab"])
    document["added_tokens"] = [
        files.added("▁▁tool", count, special=False),
        files.added("<|looks|>", count + 1, special=False),
    ]
    vocabulary = drafted(tmp_path, document)
    assert vocabulary.tokens[count] == b"  tool"
    assert vocabulary.types[count:] == [TokenType.USER_DEFINED, TokenType.CONTROL]


@pytest.mark.parametrize(
    ("token", "special"),
    [("<|im_end|>", True), ("<｜end｜>", True), ("<unused7>", True), ("<pad>", True), ("<|", False), ("<b>", False)],
)
def test_control_tokens_are_known_by_their_looks(token: str, special: bool) -> None:
    assert looks_special(token) is special


def test_merge_order_becomes_the_score(tmp_path: Path) -> None:
    vocabulary = drafted(tmp_path, files.spm_json())
    assert vocabulary.model == "llama"
    assert vocabulary.scores is not None
    score = dict(zip(vocabulary.tokens, vocabulary.scores, strict=True))
    assert score["▁t".encode()] > score["▁th".encode()] > score["▁the".encode()] > score[b"<0x41>"]
    types = dict(zip(vocabulary.tokens, vocabulary.types, strict=True))
    assert types[b"<0x41>"] == TokenType.BYTE
    assert types[b"</s>"] == TokenType.CONTROL


@pytest.mark.parametrize(
    ("pipeline", "settings", "expected"),
    [
        ({"normalizer": {"type": "Prepend", "prepend": "▁"}}, {}, None),
        ({"normalizer": {"type": "Replace"}}, {}, False),
        ({"normalizer": None, "pre_tokenizer": {"type": "Metaspace", "prepend_scheme": "first"}}, {}, None),
        ({"normalizer": None, "pre_tokenizer": {"type": "Metaspace", "prepend_scheme": "never"}}, {}, False),
        ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend"}]}}, {}, None),
        ({"normalizer": {"type": "Prepend"}}, {"add_prefix_space": False}, False),
        ({"normalizer": None}, {"add_prefix_space": True}, True),
    ],
)
def test_a_leading_space_is_found_wherever_it_is_set(
    tmp_path: Path, pipeline: dict[str, Any], settings: dict[str, Any], expected: bool | None
) -> None:
    vocabulary = drafted(tmp_path, files.spm_json() | pipeline, tokenizer=settings)
    value = vocabulary.extra.get("add_space_prefix")
    assert (value.data if value else None) is expected


def test_a_tokenizer_model_brings_its_own_scores(tmp_path: Path) -> None:
    pieces = files.spm_pieces()
    (tmp_path / "tokenizer.model").write_bytes(files.spm_model(pieces))
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|extra|>": len(pieces), "word▁": len(pieces) + 1}))
    draft = draft_vocabulary(checkpoint(tmp_path), Hparams({"vocab_size": len(pieces) + 3}, {}))
    vocabulary = draft.vocabulary
    assert vocabulary.scores is not None
    assert vocabulary.scores[:-3] == [score for _, score, _ in pieces]
    assert vocabulary.tokens[-3:] == [b"<|extra|>", b"word ", f"[PAD{len(pieces) + 2}]".encode()]
    assert vocabulary.types[-3:] == [TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNUSED]
    assert draft.reference is not None
    assert draft.original.name == "tokenizer.model"


def test_a_file_that_only_shares_the_name_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\n")
    assert drafted(tmp_path, files.byte_level_bpe()).model == "gpt2"


def test_added_tokens_without_weights_are_left_out_and_named(tmp_path: Path) -> None:
    document = files.byte_level_bpe(specials=("<|end|>", "[LATE]"))
    count = len(document["model"]["vocab"])
    settings = {"eos_token": "<|end|>", "pad_token": "[LATE]"}
    given = checkpoint(tmp_path, document, tokenizer=settings)
    draft = draft_vocabulary(given, Hparams({"vocab_size": count + 1}, {}))
    assert len(draft.vocabulary.tokens) == count + 1
    assert draft.vocabulary.specials.ids == {"eos": count}
    assert draft.warnings == ("the added token '[LATE]' has no weights and was left out",)


def test_base_tokens_without_weights_are_refused(tmp_path: Path) -> None:
    document = files.byte_level_bpe()
    with pytest.raises(CheckpointError, match="vocab_size"):
        drafted(tmp_path, document, 300)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer.model").write_bytes(files.spm_model(files.spm_pieces()))
    with pytest.raises(CheckpointError, match="vocab_size"):
        draft_vocabulary(checkpoint(tmp_path), Hparams({"vocab_size": 300}, {}))


def test_wordpiece_marks_the_start_of_words(tmp_path: Path) -> None:
    vocabulary = drafted(tmp_path, files.wordpiece_json())
    assert vocabulary.model == "bert"
    assert vocabulary.tokens[:5] == [text.encode() for text in files.BERT_SPECIALS]
    assert "▁the".encode() in vocabulary.tokens
    assert b"ing" in vocabulary.tokens
    assert b"##ing" not in vocabulary.tokens
    assert vocabulary.specials.normalizer == {"lowercase": True}


def test_unigram_keeps_scores_rules_and_the_unknown_token(tmp_path: Path) -> None:
    vocabulary = drafted(tmp_path, files.unigram_json())
    assert vocabulary.model == "t5"
    assert vocabulary.types[3] == TokenType.UNKNOWN
    assert vocabulary.scores is not None
    assert vocabulary.scores[4] == -2.0
    assert len(vocabulary.extra["precompiled_charsmap"].data) > 4096
    assert vocabulary.extra["add_space_prefix"].data is True


def specials(folder: Path, settings: dict[str, Any], config: dict[str, Any] | None = None, **parts: Any) -> Specials:
    """The special tokens of a tokenizer with these settings."""
    names = ("<s>", "</s>", "<sep>", "<pad>", "<end>")
    document = files.byte_level_bpe(specials=names) | parts
    (folder / "tokenizer.json").write_text(json.dumps(document))
    given = Checkpoint(folder=folder, config=config or {}, tokenizer=settings)
    found = read_specials(given, read_tokenizer(given), 10_000)
    first = len(document["model"]["vocab"])
    return Specials(
        ids={role: number - first if number >= first else number for role, number in found.ids.items()}, add=found.add
    )


def test_roles_come_from_the_settings_then_from_config_json(tmp_path: Path) -> None:
    found = specials(
        tmp_path,
        {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "pad_token": "unheard of", "add_bos_token": True},
        {"bos_token_id": 1, "pad_token_id": 3, "eos_token_id": [1, 2], "unk_token_id": -1},
    )
    assert found.ids == {"bos": 0, "eos": 1, "pad": 3}
    assert found.add == {"bos": True}


def test_a_template_tells_what_is_added(tmp_path: Path) -> None:
    settings = {"bos_token": "<s>", "eos_token": "</s>"}
    only_first = specials(tmp_path, settings, post_processor=files.template(("<s>", 0), None))
    assert (only_first.add["bos"], only_first.add.get("eos")) == (True, None)
    both = specials(tmp_path, settings, post_processor=files.template(("<s>", 0), ("</s>", 1)))
    assert (both.add["bos"], both.add["eos"]) == (True, True)


def test_a_text_that_ends_otherwise_than_a_turn_keeps_both_tokens(tmp_path: Path) -> None:
    settings = {"bos_token": "<s>", "eos_token": "<end>"}
    found = specials(tmp_path, settings, post_processor=files.template(None, ("</s>", 1)))
    assert (found.ids["eos"], found.ids["eot"]) == (1, 4)


def test_bert_names_serve_where_the_usual_ones_are_missing(tmp_path: Path) -> None:
    settings = {"cls_token": "<s>", "sep_token": "<sep>"}
    found = specials(tmp_path, settings, post_processor=files.template(("<s>", 0), ("<sep>", 2)))
    assert (found.ids["bos"], found.ids["eos"], found.ids["sep"]) == (0, 2, 2)


def test_chat_templates_keep_their_names() -> None:
    templates = [
        {"name": "default", "template": "one"},
        {"name": "tool use", "template": "two"},
        {"name": "", "template": "three"},
    ]
    facts = Vocabulary(model="gpt2", tokens=[b"a"], types=[1], chat_template=templates).metadata()
    assert facts["tokenizer.chat_template"].data == "one"
    assert facts["tokenizer.chat_template.tool_use"].data == "two"
    assert facts["tokenizer.chat_templates"].data == ["tool_use"]


@pytest.mark.parametrize("name", files.PRE_TOKENIZERS)
def test_structure_proposes_the_candidate_that_was_made_for_it(name: str) -> None:
    assert propose(files.PRE_TOKENIZERS[name]) == name
    assert candidates(files.PRE_TOKENIZERS[name])[0] == name
    assert sorted(candidates(files.PRE_TOKENIZERS[name])) == sorted(CANDIDATES)


def test_pieces_are_read_back(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(files.spm_model([("<unk>", 0.0, 2), ("▁a", -1.5, 1)], kind=2, prefix=False))
    model = read_pieces(path)
    assert model.pieces == [Piece("<unk>", 0.0, 2), Piece("▁a", -1.5, 1)]
    assert (model.kind, model.add_prefix) == (2, False)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x0a",
        b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        b"\x0a\x05abc",
        b"\x80" * 20,
        b"\x0d\x00",
        b"\x0b",
        b"\x0a\x02\x18\x09",
        b"\x0a\x03\x0a\x01\xff",
        b"\x12\x00",
    ],
)
def test_what_is_no_piece_model_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="SentencePiece"):
        read_pieces(path)


@given(position=st.integers(0, 200), byte=st.integers(0, 255))
def test_a_changed_byte_is_read_or_refused(tmp_path_factory: Any, position: int, byte: int) -> None:
    content = bytearray(files.spm_model(files.spm_pieces()[:20]))
    content[position % len(content)] = byte
    path = tmp_path_factory.mktemp("pieces") / "tokenizer.model"
    path.write_bytes(content)
    try:
        model = read_pieces(path)
    except CheckpointError:
        return
    assert all(1 <= piece.type <= 6 for piece in model.pieces)


def test_a_fixed_number_may_not_leave_the_file(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    piece = b"\x0a\x01a" + b"\x15" + struct.pack("<f", 1.0)[:2]
    path.write_bytes(b"\x0a" + bytes([len(piece)]) + piece)
    with pytest.raises(CheckpointError):
        read_pieces(path)
