"""Model weights: from safetensors files (memory-mapped, one or sharded), or random from a seed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from stemma.lang.errors import RequestError

Shapes = dict[str, tuple[int, ...]]  # tensor name -> shape

_IGNORED = ("rotary_emb.inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached")  # old checkpoints keep tables


def check_directory(model_dir: Path) -> Path:
    """The path of config.json. Raises `RequestError` saying what is missing and what to try."""
    if not model_dir.is_dir():
        what = "is a file" if model_dir.exists() else "does not exist"
        raise RequestError(
            f"model_path {str(model_dir)!r} {what}; give a directory with config.json, *.safetensors and "
            "tokenizer.json (models are not downloaded), or 'demo' for the bundled model",
            param="model_path",
        )
    path = model_dir / "config.json"
    if not path.is_file():
        raise RequestError(
            f"{str(model_dir)!r} holds no config.json; give the directory of a model in Hugging Face form",
            param="model_path",
        )
    return path


def _files(model_dir: Path) -> dict[str, Path]:
    """Tensor name -> file, from the index of a sharded checkpoint or from the files themselves."""
    index = model_dir / "model.safetensors.index.json"
    if index.is_file():
        try:
            named: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        except (ValueError, KeyError, TypeError) as error:
            raise RequestError(f"{index} is not a checkpoint index: {error!r}", param="model_path") from error
        absent = sorted({file for file in named.values() if not (model_dir / file).is_file()})
        if absent:
            raise RequestError(f"{index} names files that are missing: {_some(absent)}", param="model_path")
        return {name: model_dir / file for name, file in named.items()}
    files = sorted(model_dir.glob("*.safetensors"))
    if not files:
        raise RequestError(
            f"{str(model_dir)!r} holds no *.safetensors; convert the checkpoint to safetensors, "
            "or use load_format='dummy' for random weights",
            param="model_path",
        )
    return {name: file for file in files for name in _open(file).keys()}  # noqa: SIM118 - not a dict


def _open(file: Path) -> Any:
    try:
        return safe_open(str(file), framework="pt")
    except (SafetensorError, OSError) as error:
        raise RequestError(f"cannot read {file}: {error}", param="model_path") from error


def _some(names: list[str], most: int = 8) -> str:
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


class SafetensorWeights:
    """Tensors of a checkpoint directory, checked against the names and shapes that the model expects.

    Files stay memory-mapped; `take` copies one tensor out in the wanted dtype. Raises `RequestError` naming missing,
    unexpected or misshapen tensors.
    """

    def __init__(
        self,
        model_dir: Path,
        expected: dict[str, tuple[int, ...]],
        dtype: torch.dtype,
        device: torch.device,
        tied: bool,
    ) -> None:
        self.dtype, self.device = dtype, device
        files = _files(model_dir)
        handles = {file: _open(file) for file in set(files.values())}
        self._handles = {name: handles[file] for name, file in files.items()}
        missing = sorted(set(expected) - set(files))
        unexpected = sorted(
            name
            for name in set(files) - set(expected)
            if not name.endswith(_IGNORED) and not (tied and name == "lm_head.weight")
        )
        problems = [
            f"{kind} {len(names)}: {_some(names)}"
            for kind, names in (("missing", missing), ("unexpected", unexpected))
            if names
        ]
        if problems:
            raise RequestError(
                f"the weights in {str(model_dir)!r} do not fit its config.json: {'; '.join(problems)}",
                param="model_path",
            )
        wrong: list[str] = []
        for name, shape in expected.items():
            try:
                found = tuple(self._handles[name].get_slice(name).get_shape())
            except SafetensorError as error:
                raise RequestError(f"{files[name]} does not hold {name}: {error}", param="model_path") from error
            if found != shape:
                wrong.append(f"{name} is {list(found)}, config.json says {list(shape)}")
        if wrong:
            raise RequestError(f"misshapen weights in {str(model_dir)!r}: {_some(wrong)}", param="model_path")

    def take(self, name: str) -> Tensor:
        """A copy of the named tensor, in the engine's dtype and on its device."""
        return self._handles[name].get_tensor(name).to(device=self.device, dtype=self.dtype, copy=True)


class DummyWeights:
    """Random weights: norms 1, biases and matrices normal with a small deviation, the same for the same seed.

    A tensor depends on the seed, its name, its shape and the kind of device only, not on the order of `take`.
    """

    def __init__(
        self,
        expected: dict[str, tuple[int, ...]],
        dtype: torch.dtype,
        device: torch.device,
        seed: int,
        std: float = 0.02,
    ) -> None:
        self._expected, self.dtype, self.device, self.seed, self.std = expected, dtype, device, seed, std

    def take(self, name: str) -> Tensor:
        """The random tensor of this name."""
        shape = self._expected[name]
        if name.endswith("norm.weight"):
            return torch.ones(shape, dtype=self.dtype, device=self.device)
        key = self.seed
        for byte in name.encode():
            key = (key * 1099511628211 + byte) % (1 << 61)
        # drawn where they are needed: billions of them take minutes on CPU
        generator = torch.Generator(self.device).manual_seed(key)
        std = self.std if len(shape) > 1 else self.std / math.sqrt(2)
        drawn = torch.randn(shape, generator=generator, device=self.device, dtype=torch.float32)
        return drawn.mul_(std).to(self.dtype)
