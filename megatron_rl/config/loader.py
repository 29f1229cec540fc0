"""Recipe files to a checked `TrainConfig`: composition by `defaults`, dotted overrides, readable refusals."""

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from megatron_rl.config.check import check_config
from megatron_rl.config.schema import TrainConfig
from megatron_rl.errors import InputError

_GONE = {"policy.activation_checkpointing": "policy.recompute_granularity=full"}
"""Keys of older versions, and of other projects, with what to write instead."""
_MAX_DEPTH = 50
"""The C parser recurses: some ten thousand brackets would end the process."""


def load_config(recipe: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """The checked configuration of `recipe` with `key=value` overrides applied last.

    Raises:
        InputError: a missing or broken file, an unknown key, a wrong type, an impossible layout.
    """
    with refusals(str(recipe)):
        raw = OmegaConf.merge(compose(Path(recipe)), parse_overrides(overrides))
    return to_config(raw, source=str(recipe))


def to_config(raw: Any, source: str) -> TrainConfig:
    """`raw` merged into the schema and checked; `source` names it in messages.

    Raises:
        InputError: as `load_config`.
    """
    with refusals(source):
        merged = OmegaConf.merge(OmegaConf.structured(TrainConfig), raw)
        config = OmegaConf.to_object(merged)
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
    with refusals(str(path)):
        if not path.is_file():
            raise InputError(f"{path}: no such recipe; see the recipes/ folder")
        check_depth(path.read_text(encoding="utf-8"))
        own = OmegaConf.load(path)
        if not isinstance(own, DictConfig):
            raise InputError(f"{path}: a recipe is a mapping of keys to values")
        parents = own.pop("defaults", [])
        if not isinstance(parents, list | ListConfig) or not all(isinstance(parent, str) for parent in parents):
            raise InputError(f"{path}: defaults is a list of paths; it is {parents!r:.80}")
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
    with refusals(f"overrides {list(overrides)}"):
        for override in overrides:
            check_depth(override.partition("=")[2])
        return OmegaConf.from_dotlist(list(overrides))


@contextmanager
def refusals(source: str) -> Iterator[None]:
    """What YAML and OmegaConf refuse, as bad input; `source` names the file or the settings in messages.

    Raises:
        InputError: instead of theirs.
    """
    try:
        yield
    except InputError:
        raise
    except (ConfigKeyError, ConfigAttributeError) as error:
        raise InputError(_unknown_key(error, source)) from error
    except OmegaConfBaseException as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{source}: {error.full_key or 'config'}: {first_line}") from error
    except yaml.YAMLError as error:
        raise InputError(f"{source}: not YAML: {' '.join(str(error).split())}") from error
    except (ValueError, TypeError, LookupError, OSError, RecursionError) as error:  # a number of too many digits ...
        raise InputError(f"{source}: unreadable: {error}") from error


def check_depth(text: str) -> None:
    """Refuse YAML that is nested more deeply than any recipe.

    Raises:
        ValueError: it is.
        YAMLError: it is no YAML.
    """
    depth = 0
    for event in yaml.parse(text, yaml.CSafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            raise ValueError(f"nested more than {_MAX_DEPTH} deep")


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
