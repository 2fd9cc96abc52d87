"""New weights beside the ones that serve: read into host memory, checked there, then copied over in one go.

Whatever can be wrong with a checkpoint is found while it is staged; what serves is not touched before `put_in_place`,
which only copies within parameters that exist, so addresses stay valid (CUDA graphs need no new capture).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from baton_serving.errors import ConfigError
from baton_serving.model.checkpoint import Checkpoint
from baton_serving.model.config import DecoderConfig, decoder_config, read_config_json
from baton_serving.model.decoder import Decoder
from baton_serving.model.digest import TOKENIZER_FILES, root_of, tensor_leaves
from baton_serving.model.loading import end_tokens
from baton_serving.model.options import LoadedModel, ModelOptions
from baton_serving.model.placement import Placement, placements
from baton_serving.model.quantized import fill, read_part
from baton_serving.model.weights import match_names, scale_of

FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
_HASH_THREADS = 2  # requests are served meanwhile

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class StagedWeights:
    """This rank's part of a checkpoint, in host memory, by parameter; `digest` and `leaves` on first ranks of nodes.

    `files` tells what was read (name, bytes, modification time, inode), so that ranks can compare.
    """

    parameters: Mapping[str, torch.Tensor]
    digest: str = ""
    leaves: Mapping[str, bytes] = dataclasses.field(default_factory=dict)
    files: tuple[tuple[str, int, int, int], ...] = ()


def stage_checkpoint(
    loaded: LoadedModel, options: ModelOptions, checkpoint: Checkpoint, path: Path, progress: Progress
) -> StagedWeights:
    """All weights of the checkpoint at `path`, for the model that `options` loaded.

    ConfigError, naming file and tensor or field, unless it is the same model with other weights: architecture,
    tokenizer, chat template and end tokens as they are, every tensor there, finite, of the right shape.
    """
    model = _decoder(loaded)
    before = _files(path)
    values = read_config_json(path, options.overrides)
    origin = str(path / "config.json")
    _same_architecture(model.config, decoder_config(values, origin, options.max_positions), origin)
    ends = end_tokens(decoder_config(values, origin, options.max_positions).eos_token_ids, path)
    if set(ends) != set(loaded.info.eos_token_ids):
        raise ConfigError(
            f"{path}: end tokens {sorted(ends)} are not the {sorted(loaded.info.eos_token_ids)} that this worker stops "
            "at; start workers anew for such a change"
        )
    leaves: dict[str, bytes] = {}
    if options.parallel.first_of_node:
        own_tokenizer = options.tokenizer_path in (None, options.path)
        tokenizer = path if own_tokenizer and any((path / name).is_file() for name in TOKENIZER_FILES) else None
        moved = dataclasses.replace(options, path=path, tokenizer_path=tokenizer or options.tokenizer_path)
        leaves = moved.setting_leaves(values)
        _same_tokenizer(loaded.leaves, leaves, path)
    parameters = _place(model, options, checkpoint, path, progress, partial=False)
    if options.parallel.first_of_node:
        leaves |= tensor_leaves(checkpoint, _HASH_THREADS)
    if _files(path) != before:
        raise ConfigError(f"{path}: files changed while they were read; update again once the checkpoint is complete")
    return StagedWeights(parameters, root_of(leaves).hex() if leaves else "", leaves, before)


def stage_tensors(
    loaded: LoadedModel, options: ModelOptions, checkpoint: Checkpoint, progress: Progress
) -> StagedWeights:
    """Some tensors by their Hugging Face names; all others stay as they are. The digest is that of the whole again.

    ConfigError for a tensor that the model does not have, or that is not finite or of another shape.
    """
    parameters = _place(_decoder(loaded), options, checkpoint, Path("tensors"), progress, partial=True)
    if not options.parallel.first_of_node:
        return StagedWeights(parameters)
    leaves = {**loaded.leaves, **tensor_leaves(checkpoint, _HASH_THREADS)}
    return StagedWeights(parameters, root_of(leaves).hex(), leaves)


@torch.no_grad()
def put_in_place(loaded: LoadedModel, staged: StagedWeights) -> None:
    """Copy the staged weights over those that serve, and wait for the device. Nothing may be launched meanwhile."""
    model = _decoder(loaded)
    for name, tensor in staged.parameters.items():
        model.get_parameter(name).data.copy_(tensor, non_blocking=True)
    if torch.cuda.is_available() and model.embed.weight.is_cuda:
        torch.cuda.synchronize(model.embed.weight.device)


def _decoder(loaded: LoadedModel) -> Decoder:
    if not isinstance(loaded.model, Decoder):
        raise ConfigError(
            f"{loaded.info.architecture} runs through transformers (--model-impl), whose weights cannot be changed "
            "while the worker runs; start workers anew"
        )
    return loaded.model


def _place(
    model: Decoder, options: ModelOptions, checkpoint: Checkpoint, path: Path, progress: Progress, *, partial: bool
) -> dict[str, torch.Tensor]:
    state = options.parallel
    plan = placements(model.config, state.tp_size, state.tp_rank)
    names = match_names(plan, checkpoint, model.config, path, partial=partial)
    plan = tuple(placement for placement in plan if placement.source in names)
    wanted = {placement.parameter for placement in plan}
    total = sum(model.get_parameter(name).nbytes for name in wanted)
    placed: dict[str, torch.Tensor] = {}
    done = 0
    for placement in plan:
        name = names[placement.source]
        _check_tensor(checkpoint, name, placement)
        part, scale = read_part(checkpoint, name, placement)
        if not all(bool(torch.isfinite(numbers.float()).all()) for numbers in (part, scale) if numbers is not None):
            raise ConfigError(f"{checkpoint.file(name)}: tensor {name!r} holds values that are not finite: damaged?")
        scale_name = scale_of(model, placement.parameter)
        for parameter in (placement.parameter, scale_name):
            if parameter is not None and parameter not in placed:
                placed[parameter] = _room(model, parameter, partial)
        target = placed[placement.parameter]
        fill(target, None if scale_name is None else placed[scale_name], placement.row, part, scale)
        done += part.numel() * target.itemsize
        progress(done, total)
    return placed


def _room(model: Decoder, name: str, partial: bool) -> torch.Tensor:
    """Host memory for a parameter: as it is now, since only some rows may come, or zeros, which pad a vocabulary."""
    parameter = model.get_parameter(name)
    pinned = parameter.is_cuda
    room = torch.zeros(parameter.nbytes, dtype=torch.uint8, pin_memory=pinned).view(parameter.dtype)
    room = room.view(parameter.shape)
    return room.copy_(parameter.data) if partial else room


def _check_tensor(checkpoint: Checkpoint, name: str, placement: Placement) -> None:
    file = checkpoint.file(name)
    dtype, shape = checkpoint.header(name)
    if shape != placement.shape:
        raise ConfigError(f"{file}: tensor {name!r} has shape {list(shape)}, this model's has {list(placement.shape)}")
    if dtype not in FLOATS | {"F8_E4M3"}:
        raise ConfigError(
            f"{file}: tensor {name!r} has dtype {dtype}; weights must be one of {', '.join(sorted(FLOATS))} or F8_E4M3"
        )


def _same_architecture(mine: DecoderConfig, theirs: DecoderConfig, origin: str) -> None:
    for field in dataclasses.fields(mine):
        if field.name in ("dtype", "eos_token_ids"):
            continue
        ours, other = getattr(mine, field.name), getattr(theirs, field.name)
        if ours != other:
            raise ConfigError(
                f"{origin}: another architecture: {field.name} is {other!r}, this worker serves {ours!r}; start "
                "workers anew for such a change"
            )


def _same_tokenizer(mine: Mapping[str, bytes], theirs: Mapping[str, bytes], path: Path) -> None:
    settings = {name for name in mine if not name.startswith("tensor/")} | set(theirs)
    changed = sorted(name for name in settings - {"config"} if mine.get(name) != theirs.get(name))
    if changed:
        name = changed[0].removeprefix("file/")
        raise ConfigError(
            f"{path}: {name} differs from the one that this worker reads prompts with; start workers anew for such a "
            "change"
        )


def _files(path: Path) -> tuple[tuple[str, int, int, int], ...]:
    found = []
    for file in sorted(path.iterdir()):
        status = file.stat()
        found.append((file.name, status.st_size, status.st_mtime_ns, status.st_ino))
    return tuple(found)
