"""Train the demo model from scratch on synthetic chats.

A plain PyTorch loop over transformers' LlamaForCausalLM.  Worker processes write documents
without end, tokenize them segment by segment and group them by length, so nothing is read
twice.  Padding is on the right; with causal attention it needs no mask.
Batches have one of a few fixed shapes, each captured as a CUDA graph.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import LlamaConfig, LlamaForCausalLM

from examples.demo_model.data import document, focused
from examples.demo_model.passages import Seg

CTX_WEIGHT = 0.03
MAX_LEN = 2048
WIDTHS = [
    32,
    48,
    64,
    80,
    96,
    128,
    160,
    192,
    256,
    320,
    384,
    512,
    768,
    1024,
    1536,
    2048,
]  # batch widths: few shapes, so that CUDA graphs fit


def split_segments(rng: Random, segs: list[Seg]) -> list[Seg]:
    """Cut some texts in two at a random word boundary, as literals and prompts do.

    The part of a reply before the cut carries no loss: it plays the literal.
    """
    out: list[Seg] = []
    for text, kind in segs:
        rate = {"gen": 0.2, "ctx": 0.05}.get(kind, 0.0)
        cuts = (
            [i for i, ch in enumerate(text) if ch == " " and 0 < i < len(text) - 1]
            if rate and rng.random() < rate
            else []
        )
        if cuts:
            at = rng.choice(cuts) + rng.randint(0, 1)
            out += [(text[:at], "skip" if kind == "gen" else kind), (text[at:], kind)]
        else:
            out.append((text, kind))
    return out


def encode(tok: Tokenizer, docs: list[list[Seg]]) -> list[tuple[list[int], list[float]]]:
    """Token ids and loss weights of each document."""
    flat = [text for doc in docs for text, _ in doc]
    encoded = iter(tok.encode_batch(flat, add_special_tokens=False))
    out = []
    for doc in docs:
        ids: list[int] = []
        weights: list[float] = []
        before = "ctx"
        for _, kind in doc:
            part = next(encoded).ids
            value = {"gen": 1.0, "ctx": CTX_WEIGHT}.get(kind, 0.0)
            w = [value] * len(part)
            if kind == "lit" and before == "gen" and w:
                w[0] = 1.0
            ids += part
            weights += w
            before = kind
        if len(ids) <= MAX_LEN:
            out.append((ids, weights))
    return out


class Documents(IterableDataset):
    """Endless micro-batches ``(ids, weights)`` of about ``tokens`` tokens each."""

    def __init__(self, tokenizer: Path, tokens: int, pool: int, seed: int, focus: bool = False) -> None:
        self.tokenizer, self.tokens, self.pool, self.seed = str(tokenizer), tokens, pool, seed
        self.write = focused if focus else document

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Generate, tokenize, group by length, shuffle the groups."""
        info = get_worker_info()
        rng = Random(f"{self.seed}/{info.id if info else 0}")
        tok = Tokenizer.from_file(self.tokenizer)
        rest: dict[int, list[tuple[list[int], list[float]]]] = {width: [] for width in WIDTHS}
        while True:
            for doc in encode(tok, [split_segments(rng, self.write(rng)) for _ in range(self.pool)]):
                rest[next(width for width in WIDTHS if width >= len(doc[0]))].append(doc)
            batches = []
            for width, docs in rest.items():
                rows = max(1, self.tokens // width)
                while len(docs) >= rows:
                    batches.append((width, docs[:rows]))
                    del docs[:rows]
            rng.shuffle(batches)
            for width, docs in batches:
                ids = torch.tensor([i + [0] * (width - len(i)) for i, _ in docs], dtype=torch.int16)
                weights = torch.tensor([x + [0.0] * (width - len(x)) for _, x in docs], dtype=torch.float16)
                yield ids, weights


def make_model(tok: Tokenizer) -> LlamaForCausalLM:
    """The model with fresh weights: deep and thin, about 7 million parameters."""
    config = LlamaConfig(
        vocab_size=tok.get_vocab_size(),
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=MAX_LEN,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        attention_bias=False,
        mlp_bias=False,
        bos_token_id=tok.token_to_id("<|bos|>"),
        eos_token_id=tok.token_to_id("<|im_end|>"),
        pad_token_id=tok.token_to_id("<|pad|>"),
        initializer_range=0.02,
    )
    model = LlamaForCausalLM(config)
    for name, p in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            torch.nn.init.normal_(p, std=0.02 / math.sqrt(2 * config.num_hidden_layers))
    return model


def loss_sum(model: torch.nn.Module, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted sum of the token losses of one micro-batch."""
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    loss = F.cross_entropy(logits.reshape(-1, logits.shape[-1]).float(), ids[:, 1:].reshape(-1), reduction="none")
    return (loss * weights[:, 1:].reshape(-1)).sum()


class Graphs:
    """One CUDA graph per batch shape: a model this small is limited by launching kernels."""

    def __init__(self, model: torch.nn.Module, tokens: int) -> None:
        self.graphs: dict[tuple[int, int], tuple[torch.cuda.CUDAGraph, torch.Tensor, torch.Tensor, torch.Tensor]] = {}
        self.scale = torch.ones((), device="cuda")
        pool = None
        for width in reversed(WIDTHS):
            shape = (max(1, tokens // width), width)
            ids, weights = torch.ones(shape, dtype=torch.long, device="cuda"), torch.ones(shape, device="cuda")
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                self._step(model, ids, weights)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                loss = self._step(model, ids, weights)
            pool = pool or graph.pool()
            self.graphs[shape] = (graph, ids, weights, loss)

    def _step(self, model: torch.nn.Module, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cuda", dtype=torch.bfloat16, cache_enabled=False):
            loss = loss_sum(model, ids, weights) * self.scale
        loss.backward()
        return loss.detach()

    def run(self, ids: torch.Tensor, weights: torch.Tensor, total: float) -> torch.Tensor:
        """Forward and backward; gradients add up in the parameters."""
        graph, static_ids, static_weights, loss = self.graphs[(ids.shape[0], ids.shape[1])]
        static_ids.copy_(ids)
        static_weights.copy_(weights)
        self.scale.fill_(1 / total)
        graph.replay()
        return loss


def save(model: LlamaForCausalLM, tok: Tokenizer, out: Path) -> None:
    """Write bf16 weights, config and generation config."""
    out.mkdir(parents=True, exist_ok=True)
    torch.nn.Module.to(model, torch.bfloat16)
    model.save_pretrained(out)
    generation = {
        "bos_token_id": tok.token_to_id("<|bos|>"),
        "eos_token_id": [tok.token_to_id("<|im_end|>")],
        "pad_token_id": tok.token_to_id("<|pad|>"),
        "do_sample": False,
    }
    (out / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")


def train(args: argparse.Namespace) -> None:
    """The training loop."""
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    cuda = args.device.startswith("cuda")
    tok = Tokenizer.from_file(str(args.tokenizer))
    model = (LlamaForCausalLM.from_pretrained(args.init, dtype=torch.float32) if args.init else make_model(tok)).to(
        args.device
    )
    print(f"parameters: {sum(p.numel() for p in model.parameters()):,}", flush=True)
    decay = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    adam = [{"params": plain, "weight_decay": 0.0}]
    opts: list[torch.optim.Optimizer] = []
    if args.optimizer == "muon":  # Muon for the matrices inside the layers, AdamW for the embedding and the norms
        inner = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
        opts.append(
            torch.optim.Muon(inner, lr=args.lr, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
        )
        decay = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" in name]
    adam.append({"params": decay, "weight_decay": 0.1})
    opts.append(torch.optim.AdamW(adam, lr=args.lr, betas=(0.9, 0.95), fused=cuda))
    graphs = Graphs(model, args.micro_tokens) if cuda else None
    for opt in opts:
        opt.zero_grad(set_to_none=not cuda)
    loader = DataLoader(
        Documents(args.tokenizer, args.micro_tokens, args.pool, args.seed, args.focus),
        batch_size=None,
        num_workers=args.workers,
        prefetch_factor=16 if args.workers else None,
    )
    batches = iter(loader)
    steps, warmup = args.steps or 10**9, args.warmup
    start, rate_start, tokens, waited = time.time(), 0.0, 0, 0.0
    step, step_loss = 0, torch.zeros(())
    while step < steps:
        if step == 40 and not args.steps:  # fix the length of the run from the measured speed
            rate_start = (time.time() - rate_start) / 30
            steps = int(args.minutes * 60 / rate_start)
            print(f"{rate_start:.3f} s per step: {steps} steps", flush=True)
        elif step == 10:
            rate_start = time.time()
        progress = max(0.0, (step - warmup) / max(1, steps - warmup))
        lr = args.lr * (
            min(1.0, (step + 1) / warmup) if step < warmup else 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
        )
        for group in (g for opt in opts for g in opt.param_groups):
            group["lr"] = lr
        asked = time.time()
        micro = [next(batches) for _ in range(args.accumulate)]
        waited += time.time() - asked
        total = sum(float(w[:, 1:].sum(dtype=torch.float32)) for _, w in micro)
        step_loss = torch.zeros((), device=args.device)
        for ids, weights in micro:
            tokens += ids.numel()
            if graphs:
                step_loss += graphs.run(ids, weights, total)
                continue
            loss = loss_sum(model, ids.to(args.device).long(), weights.to(args.device).float()) / total
            loss.backward()
            step_loss += loss.detach()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for opt in opts:
            opt.step()
            opt.zero_grad(set_to_none=not cuda)
        step += 1
        if step % args.log_every == 0 or step == 1:
            print(
                f"step {step} loss {float(step_loss):.4f} grad {float(norm):.2f} lr {lr:.2e} "
                f"tokens {tokens / 1e6:.1f}M time {time.time() - start:.0f}s (data {waited:.0f}s)",
                flush=True,
            )
    print(
        f"done: {step} steps, {tokens / 1e6:.0f}M tokens, {time.time() - start:.0f} s, loss {float(step_loss):.4f}",
        flush=True,
    )
    save(model, tok, args.out)


def main() -> None:
    """Parse arguments and train."""
    parser = argparse.ArgumentParser(
        description="Train the demo model from scratch on synthetic text; "
        "writes config.json, generation_config.json and model.safetensors (bf16).",
        epilog="Smoke test: python -m examples.demo_model.train --device cpu --steps 20 --out /tmp/demo. "
        "Train the tokenizer first (examples.demo_model.tokenizer).",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("backend/demo_model"),
        help="folder for the weights (default: backend/demo_model)",
    )
    parser.add_argument(
        "--tokenizer", type=Path, default=Path("backend/demo_model/tokenizer.json"), help="tokenizer.json to use"
    )
    parser.add_argument("--init", type=Path, help="start from the weights in this folder (second stage)")
    parser.add_argument(
        "--focus", action="store_true", help="second-stage data: mostly extraction, with some of everything"
    )
    parser.add_argument("--device", default="cuda", help="cuda or cpu (default: cuda)")
    parser.add_argument("--steps", type=int, default=0, help="optimizer steps; 0 means: as many as fit in --minutes")
    parser.add_argument("--minutes", type=float, default=6.0, help="training time when --steps is 0 (default: 6)")
    parser.add_argument("--lr", type=float, default=2.5e-3, help="peak learning rate of the cosine schedule")
    parser.add_argument(
        "--optimizer",
        choices=["adamw", "muon"],
        default="muon",
        help="muon (default) trains the matrices with Muon and the rest with AdamW",
    )
    parser.add_argument("--warmup", type=int, default=200, help="warm-up steps")
    parser.add_argument(
        "--micro-tokens",
        type=int,
        default=0,
        help="tokens per micro-batch, padding included (default: 65536; 2048 on cpu)",
    )
    parser.add_argument("--accumulate", type=int, default=2, help="micro-batches per step (default: 2)")
    parser.add_argument(
        "--pool",
        type=int,
        default=0,
        help="documents that a worker groups by length at once (default: 6000; 200 on cpu)",
    )
    parser.add_argument("--workers", type=int, default=-1, help="data processes (default: all but two cores, 0 on cpu)")
    parser.add_argument("--log-every", type=int, default=0, help="print every N steps (default: 100; 5 on cpu)")
    parser.add_argument("--seed", type=int, default=1, help="seed of weights and data (default: 1)")
    args = parser.parse_args()
    cuda = args.device.startswith("cuda")
    args.micro_tokens = args.micro_tokens or (65536 if cuda else 2048)
    args.pool = args.pool or (6000 if cuda else 200)
    args.log_every = args.log_every or (100 if cuda else 5)
    args.workers = args.workers if args.workers >= 0 else max(1, (os.cpu_count() or 4) - 2) if cuda else 0
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    train(args)


if __name__ == "__main__":
    main()
