"""llama.cpp at arm's length: errors with reasons, silence, callbacks that may fail, memory that is released."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lathe.engine.errors import DataError, InternalError
from lathe.engine.native.batch import Batch
from lathe.engine.native.devices import Threadpool
from lathe.engine.native.llama import ContextOptions, DecodeFailed, LlamaContext, LlamaModel
from lathe.quantize import libllama
from lathe.quantize.gguf.types import ValueType
from support.gguf_writer import array, text, tiny_model

pytestmark = pytest.mark.native
ONE = ContextOptions(n_ctx=64, n_batch=32, n_ubatch=32, n_threads=1)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    path.write_bytes(tiny_model().build())
    return path


@pytest.fixture(scope="module")
def model(tiny: Path) -> Iterator[LlamaModel]:
    with LlamaModel(tiny) as loaded:
        yield loaded


def test_a_model_tells_about_itself(model: LlamaModel) -> None:
    assert (model.n_layer, model.n_embd, model.n_ctx_train) == (1, 32, 64)
    assert model.metadata("general.name") == "tiny"
    assert model.metadata("general.nothing") is None
    assert model.chat_template is not None
    assert (model.has_decoder, model.has_encoder, model.is_recurrent) == (True, False, False)
    assert model.size > 0
    assert "F32" in model.description


def test_a_file_that_is_no_model_is_refused_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "letter.gguf"
    path.write_bytes(b"Dear model, please load.")
    with pytest.raises(DataError, match=r"letter\.gguf: invalid magic"):
        LlamaModel(path)


def test_loading_reports_progress_and_can_be_stopped(tiny: Path) -> None:
    heard: list[float] = []
    LlamaModel(tiny, progress=lambda fraction: heard.append(fraction) or True).close()
    assert heard[-1] == 1.0
    with pytest.raises(DataError):
        LlamaModel(tiny, progress=lambda fraction: False)

    def fail(_fraction: float) -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        LlamaModel(tiny, progress=fail)


def test_a_closed_model_says_so_and_closing_twice_is_fine(tiny: Path) -> None:
    loaded = LlamaModel(tiny)
    loaded.close()
    loaded.close()
    with pytest.raises(InternalError, match="closed"):
        LlamaContext(loaded, ONE)


def test_logits_come_in_the_order_of_the_output_flags(model: LlamaModel) -> None:
    tokens = [5, 9, 12, 7, 30]
    with LlamaContext(model, ONE) as context:
        batch = Batch(8)
        batch.extend(tokens, 0, 0, True)
        context.decode(batch)
        everything = context.logits(5).copy()
        context.clear()
        batch.clear()
        batch.extend(tokens, 0, 0, [False, True, False, False, True])
        assert batch.n_outputs == 2
        context.decode(batch)
        some = context.logits(2).copy()
        np.testing.assert_allclose(context.logits_of(4), some[1])
        with pytest.raises(InternalError, match="no logits were asked for at index 0"):
            context.logits_of(0)
    np.testing.assert_allclose(some, everything[[1, 4]], rtol=1e-4, atol=1e-5)


def test_sequences_do_not_see_each_other(model: LlamaModel) -> None:
    with LlamaContext(model, ContextOptions(n_ctx=128, n_seq_max=2, n_threads=1)) as context:
        batch = Batch(8)
        batch.extend([5, 9, 12], 0, 0, [False, False, True])
        batch.extend([40, 41], 0, 1, [False, True])
        context.decode(batch)
        together = context.logits(2).copy()
        context.clear()
        batch.clear()
        batch.extend([40, 41], 0, 0, [False, True])
        context.decode(batch)
        np.testing.assert_allclose(context.logits(1)[0], together[1], rtol=1e-4, atol=1e-5)


def test_a_full_cache_is_told_by_its_status(model: LlamaModel) -> None:
    with LlamaContext(model, ContextOptions(n_ctx=256, n_threads=1)) as context:
        batch = Batch(64)
        for start in range(0, 256, 64):
            batch.clear()
            batch.extend([5] * 64, start)
            context.decode(batch)
        batch.clear()
        batch.add(5, 256)
        with pytest.raises(DecodeFailed, match="no room") as caught:
            context.decode(batch)
        assert caught.value.status == 1
        assert context.remove(0, 200)
        batch.clear()
        batch.add(5, 200)
        context.decode(batch)


def test_an_invalid_batch_is_told_with_the_reason(model: LlamaModel) -> None:
    with LlamaContext(model, ONE) as context:
        batch = Batch(4)
        batch.add(5, 7)
        batch.add(5, 3)
        with pytest.raises(DecodeFailed, match="position") as caught:
            context.decode(batch)
        assert caught.value.status == -1
        with pytest.raises(InternalError, match="4 tokens cannot take 6"):
            batch.extend([1, 2, 3, 4], 0)


def test_a_callback_that_fails_fails_the_decode_and_nothing_else(model: LlamaModel) -> None:
    armed = True

    def on_node(_tensor: int, _ask: bool) -> bool:
        if armed:
            raise LookupError("seen")
        return False

    with LlamaContext(model, ONE, on_node=on_node) as context:
        batch = Batch(2)
        batch.extend([5, 6], 0, 0, True)
        with pytest.raises(LookupError, match="seen"):
            context.decode(batch)
        armed = False
        context.clear()
        context.decode(batch)


def test_a_decode_can_be_aborted(model: LlamaModel) -> None:
    with LlamaContext(model, ONE) as context:
        batch = Batch(2)
        batch.extend([5, 6], 0, 0, True)
        context.abort_when(lambda: True)
        assert context.try_decode(batch) == 2
        context.abort_when(None)
        context.clear()
        context.decode(batch)


def test_a_saved_sequence_goes_on_as_if_nothing_happened(model: LlamaModel) -> None:
    batch = Batch(8)
    with LlamaContext(model, ONE) as context:
        batch.extend([5, 9, 12, 7], 0, 0, [False, False, False, True])
        context.decode(batch)
        state = context.save(0)
        batch.clear()
        batch.add(30, 4, 0, True)
        context.decode(batch)
        expected = context.logits_of(-1).copy()
    with LlamaContext(model, ONE) as other, Threadpool(1) as pool:
        pool.attach(other)
        assert other.restore(0, state)
        other.decode(batch)
        np.testing.assert_allclose(other.logits_of(-1), expected, rtol=1e-4, atol=1e-5)
        assert not other.restore(0, b"nonsense of some length")
        other.close()


@settings(max_examples=40, deadline=None)
@given(sample=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"), max_size=40))
def test_any_text_survives_the_tokenizer_of_a_model_with_bytes(model: LlamaModel, sample: str) -> None:
    tokens = model.tokenize(sample)
    back = b"".join(model.piece(int(token)) for token in tokens).decode()
    assert back == (f" {sample}".replace(" ", "\u2581") if sample else "")


def test_text_that_a_vocabulary_cannot_write_is_refused_not_fatal(tmp_path: Path) -> None:
    """Without byte tokens llama.cpp aborts the process on the first unknown character."""
    raw = tiny_model()
    tokens = [b"<unk>", b"<s>", b"</s>", b"\xe2\x96\x81", b"a", b"b", *(b"w%d" % index for index in range(257))]
    raw.put("tokenizer.ggml.tokens", array(ValueType.STRING, tokens))
    raw.put("tokenizer.ggml.token_type", array(ValueType.INT32, [2, 3, 3, *[1] * 260]))
    path = tmp_path / "letters.gguf"
    path.write_bytes(raw.build())
    with LlamaModel(path, vocab_only=True) as model:
        assert len(model.tokenize("ab a")) > 0
        with pytest.raises(DataError, match="cannot write 'c', 'é'") as caught:
            model.tokenize("abécab")
        assert caught.value.code == "E_VOCABULARY"


def test_control_tokens_in_text_are_text_unless_asked(model: LlamaModel) -> None:
    assert 2 not in model.tokenize("a</s>b")
    assert 2 in model.tokenize("a</s>b", special=True)
    assert model.tokenize("", add_special=True).tolist() == [1]


def test_the_library_never_writes_to_the_terminal(tiny: Path) -> None:
    code = """
        import sys
        from pathlib import Path
        from lathe.engine.errors import LatheError
        from lathe.engine.native.llama import ContextOptions, LlamaContext, LlamaModel, log_to
        heard = []
        log_to(lambda level, line: heard.append((level, line)))
        with LlamaModel(Path(sys.argv[1])) as model, LlamaContext(model, ContextOptions(n_ctx=64)):
            pass
        try:
            LlamaModel(Path(sys.argv[0]))
        except LatheError:
            pass
        assert any("tiny" in line for level, line in heard), heard[:5]
        assert any(level == "error" for level, line in heard)
        assert not any("\\n" in line for level, line in heard)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), tiny], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_fragments_of_the_log_become_lines() -> None:
    heard: list[tuple[str, str]] = []
    log = libllama._Log()
    log.callback = lambda level, line: heard.append((level, line))
    for level, fragment in ((2, b"one "), (5, b"and "), (2, b"two\nthree"), (4, b"\xff broken\n"), (2, b"\n")):
        log.receive(level, fragment, None)
    assert heard == [("info", "one and two"), ("info", "three"), ("error", "\ufffd broken")]
    log.receive(2, b"x" * 100_000, None)
    log.receive(2, b"y\n", None)
    assert len(heard[-1][1]) <= 4096


def test_a_long_call_can_be_interrupted_and_its_failure_is_carried() -> None:
    heard: list[str] = []
    assert libllama.interruptible(lambda: 7, lambda _level, line: heard.append(line)) == 7
    with pytest.raises(ZeroDivisionError):
        libllama.interruptible(lambda: 1 // 0, lambda *_: None)


def test_template_of_a_model_without_one_is_none(tmp_path: Path) -> None:
    path = tmp_path / "plain.gguf"
    path.write_bytes(tiny_model().drop("tokenizer.chat_template").put("general.name", text("x")).build())
    with LlamaModel(path, vocab_only=True) as model:
        assert model.chat_template is None
