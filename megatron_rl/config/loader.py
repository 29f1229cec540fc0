"""Recipe files to a checked `TrainConfig`: composition by `defaults`, dotted overrides, readable refusals."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException
from yaml import YAMLError

from megatron_rl.config.check import check_config
from megatron_rl.config.schema import TrainConfig
from megatron_rl.errors import InputError

_GONE = {"policy.activation_checkpointing": "policy.recompute_granularity=full"}
"""Keys of older versions, and of other projects, with what to write instead."""


def load_config(recipe: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """The checked configuration of `recipe` with `key=value` overrides applied last.

    Raises:
        InputError: a missing or broken file, an unknown key, a wrong type, an impossible layout.
    """
    raw = OmegaConf.merge(compose(Path(recipe)), parse_overrides(overrides))
    return to_config(raw, source=str(recipe))


def to_config(raw: Any, source: str) -> TrainConfig:
    """`raw` merged into the schema and checked; `source` names it in messages.

    Raises:
        InputError: as `load_config`.
    """
    try:
        merged = OmegaConf.merge(OmegaConf.structured(TrainConfig), raw)
        config = OmegaConf.to_object(merged)
    except (ConfigKeyError, ConfigAttributeError) as error:
        raise InputError(_unknown_key(error, source)) from error
    except OmegaConfBaseException as error:
        first_line = str(error).splitlines()[0]
        raise InputError(f"{source}: {error.full_key or 'config'}: {first_line}") from error
    assert isinstance(config, TrainConfig)
    check_config(config)
    return config


def compose(path: Path, _seen: tuple[Path, ...] = ()) -> DictConfig:
    """The YAML file with its `defaults` (paths relative to it, earlier ones weaker) merged underneath.

    Raises:
        InputError: a missing or broken file, or a circle of defaults.
    """
    if path in _seen:
        raise InputError(f"{path}: its defaults lead back to itself; remove one of {[str(p) for p in _seen]}")
    if not path.is_file():
        raise InputError(f"{path}: no such recipe; see the recipes/ folder")
    try:
        own = OmegaConf.load(path)
    except (YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(own, DictConfig):
        raise InputError(f"{path}: a recipe is a mapping of keys to values")
    parents = own.pop("defaults", [])
    layers = [compose((path.parent / parent).resolve(), (*_seen, path)) for parent in parents]
    merged = OmegaConf.merge(*layers, own)
    assert isinstance(merged, DictConfig)
    return merged


def parse_overrides(overrides: Sequence[str]) -> DictConfig:
    """`["a.b=1"]` as a config.

    Raises:
        InputError: an override that is not `key=value`.
    """
    for override in overrides:
        if "=" not in override.lstrip("="):
            raise InputError(f"override {override!r}: write it as key=value, for example seed=2")
    try:
        return OmegaConf.from_dotlist(list(overrides))
    except (YAMLError, OmegaConfBaseException) as error:
        raise InputError(f"overrides {list(overrides)}: {' '.join(str(error).split())}") from error


def save_config(config: TrainConfig, path: Path) -> None:
    """Write the resolved configuration as YAML."""
    temporary = path.with_name(f".{path.name}.tmp")
    OmegaConf.save(OmegaConf.structured(config), temporary)
    temporary.replace(path)


def _unknown_key(error: OmegaConfBaseException, source: str) -> str:
    key = error.full_key or str(error.key)
    parent = error.parent_node
    known = [str(k) for k in parent] if isinstance(parent, DictConfig) else []
    close = difflib.get_close_matches(str(error.key), known, n=1)
    prefix = key.rpartition(".")[0]
    remedy = (
        f"did you mean {'.'.join(filter(None, [prefix, close[0]]))!r}?" if close else f"known here: {sorted(known)}"
    )
    if key in _GONE:
        remedy = f"write {_GONE[key]}"
    return f"{source}: unknown key {key!r}; {remedy}"
