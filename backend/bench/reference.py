"""transformers.generate in a process of its own, so that nothing of ours (threads, environment) weighs on it.

Speaks JSON lines: {"prompts", "new_tokens", "threads", "repeats"} → {"seconds", "outputs"}.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


class Reference:
    """The parent's end. fp32, greedy, KV cache, left-padded batches; `close` ends the process."""

    def __init__(self, path: Path, load_format: str, pad: int) -> None:
        env = {k: v for k, v in os.environ.items() if k != "GOMP_SPINCOUNT"}
        command = [sys.executable, "-m", "stemma.backend.bench.reference", str(path), load_format, str(pad)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        self.version: str = self._read()["version"]

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the transformers process ended; its words are above")
        return json.loads(line)

    def generate(
        self, prompts: list[list[int]], new_tokens: int, threads: int, repeats: int
    ) -> tuple[float, list[list[int]]]:
        """Median seconds, and the outputs: exactly `new_tokens` for each prompt."""
        assert self._process.stdin is not None
        ask = {"prompts": prompts, "new_tokens": new_tokens, "threads": threads, "repeats": repeats}
        self._process.stdin.write(json.dumps(ask) + "\n")
        self._process.stdin.flush()
        answer = self._read()
        return answer["seconds"], answer["outputs"]

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()


def main(path: str, load_format: str, pad: int) -> None:
    """The child: loads the model once, answers until its input ends."""
    import torch
    import transformers
    from transformers import AutoConfig, AutoModelForCausalLM

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if load_format == "dummy":
        model: Any = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path), dtype=torch.float32)
    else:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    model.eval()
    model.generation_config.eos_token_id = None  # every row runs to the end
    print(json.dumps({"version": transformers.__version__}), flush=True)
    for line in sys.stdin:
        ask = json.loads(line)
        torch.set_num_threads(ask["threads"])
        prompts, new_tokens = ask["prompts"], ask["new_tokens"]
        width = max(map(len, prompts))
        ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        times: list[float] = []
        out = ids
        for _ in range(ask["repeats"]):
            begin = time.perf_counter()
            with torch.inference_mode():
                out = model.generate(
                    ids,
                    attention_mask=mask,
                    max_new_tokens=new_tokens,
                    do_sample=False,
                    pad_token_id=pad,
                    use_cache=True,
                )
            times.append(time.perf_counter() - begin)
        outputs = out[:, width:].tolist()
        assert all(len(row) == new_tokens for row in outputs)
        print(json.dumps({"seconds": statistics.median(times), "outputs": outputs}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
