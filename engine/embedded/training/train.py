"""Train stdlib-4m, a 4.2 M-parameter Llama, on the corpus of corpus.py and the standard library's source.

    python train.py CORPUS OUT --minutes 50      two CPU cores; float32 weights under bf16 autocast

Needs torch, transformers and tokenizers. The learning-rate schedule follows wall-clock progress, so the time budget
alone decides the length. Writes a Hugging Face checkpoint folder.
"""

from __future__ import annotations

import argparse
import ast
import json
import math
import random
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from corpus import SKIPPED
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

END, TURN, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CONFIG = LlamaConfig(
    vocab_size=4096, hidden_size=256, intermediate_size=768, num_hidden_layers=4, num_attention_heads=8,
    num_key_value_heads=4, max_position_embeddings=1024, rope_theta=10000.0, tie_word_embeddings=True, bos_token_id=0,
    eos_token_id=2, pad_token_id=0, rms_norm_eps=1e-5,
)  # fmt: skip
SHARES = {"docs": 0.3, "chat": 0.3, "source": 0.4}
PEAK_LEARNING_RATE = 2e-3


def source_files() -> Iterator[str]:
    """Every parseable source file of the standard library."""
    root = Path(sysconfig.get_path("stdlib"))
    for file in sorted(root.rglob("*.py")):
        if SKIPPED.intersection(file.relative_to(root).parts):
            continue
        try:
            text = file.read_text("utf-8")
            ast.parse(text)
        except (SyntaxError, UnicodeDecodeError):
            continue
        yield text


def make_tokenizer(texts: list[str], out: Path) -> Tokenizer:
    """Train a byte-level BPE with the GPT-2 split and save it with its chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=4096, special_tokens=[END, TURN, TURN_END], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(texts, trainer)
    saved = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END, eos_token=TURN_END, pad_token=END, clean_up_tokenization_spaces=False
    )
    saved.chat_template = CHATML
    saved.save_pretrained(out)
    return tokenizer


def token_streams(corpus: Path, out: Path) -> tuple[dict[str, np.ndarray[Any, Any]], Tokenizer]:
    """Tokenize the three kinds of text, each record ended by token 0."""
    docs = (corpus / "train.txt").read_text()
    held_out = set(json.loads((corpus / "valid_names.json").read_text()))
    questions = [json.loads(line) for line in (corpus / "qa.jsonl").read_text().splitlines()]
    questions = [item for item in questions if item["name"] not in held_out]
    sources = list(source_files())
    tokenizer = make_tokenizer([docs, *sources], out)

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def chat(item: dict[str, str]) -> list[int]:
        turns = f"{TURN}user\n{item['question']}{TURN_END}\n{TURN}assistant\n{item['answer']}{TURN_END}\n"
        return [*encode(turns), 0]

    twice = (item for _ in range(2) for item in random.sample(questions, len(questions)))
    streams = {
        "docs": np.array([*encode(docs), 0]),
        "chat": np.array([token for item in twice for token in chat(item)]),
        "source": np.array([token for text in sources for token in (*encode(text), 0)]),
    }
    return streams, tokenizer


def learning_rate(step: int, progress: float) -> float:
    """Warm up over 100 steps, then a cosine down to 5 % of the peak; `progress` is 0..1 of the time budget."""
    return PEAK_LEARNING_RATE * min(1.0, step / 100) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress)))


def train(arguments: argparse.Namespace) -> None:
    """Train until the time is up."""
    streams, tokenizer = token_streams(arguments.corpus, arguments.out)
    model = LlamaForCausalLM(CONFIG)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    generator = np.random.default_rng(0)
    length = arguments.length
    held_out = tokenizer.encode((arguments.corpus / "valid.txt").read_text(), add_special_tokens=False).ids
    validation = torch.tensor(held_out[: 64 * length]).view(-1, length)

    def batch() -> torch.Tensor:
        rows = []
        for name in generator.choice(list(SHARES), arguments.batch, p=list(SHARES.values())):
            start = generator.integers(0, len(streams[name]) - length - 1)
            rows.append(streams[name][start : start + length])
        return torch.from_numpy(np.stack(rows))

    started, step, average = time.monotonic(), 0, float("nan")
    while (progress := (time.monotonic() - started) / (arguments.minutes * 60)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, progress)
        tokens = batch()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(input_ids=tokens, labels=tokens).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        average = loss.item() if math.isnan(average) else 0.98 * average + 0.02 * loss.item()
        if step % 100 == 0:
            with torch.no_grad():
                losses = [model(input_ids=part, labels=part).loss.item() for part in validation.split(16)]
            seen = step * arguments.batch * length / 1e6
            perplexity = math.exp(float(np.mean(losses)))
            print(f"step {step}  {seen:.2f} M tokens  train {average:.3f}  validation perplexity {perplexity:.1f}")
    model.to(torch.bfloat16).save_pretrained(arguments.out)


def main() -> None:
    """Read the arguments and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=50)
    parser.add_argument("--length", type=int, default=256, help="tokens per row")
    parser.add_argument("--batch", type=int, default=16)
    torch.manual_seed(0)
    random.seed(0)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
