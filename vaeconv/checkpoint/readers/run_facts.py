"""Facts of its run that ``vaeconv finetune`` wrote into a checkpoint, as far as they are plain."""

from __future__ import annotations

from vaeconv.checkpoint.readers.state_dict import as_mapping

Fact = str | int | float


def read_run_facts(root: object) -> dict[str, Fact]:
    """Read options and names of a run, and its number of steps, from an unpickled file.

    Returns:
        By name, without anything nested; empty for a file of another trainer.
    """
    top = as_mapping(root) or {}
    told = as_mapping((as_mapping(top.get("hyper_parameters")) or {}).get("finetune")) or {}
    if not told:
        return {}
    found = {"global_step": top.get("global_step"), **{str(key): one for key, one in told.items()}}
    return {key: one for key, one in found.items() if isinstance(one, str | int | float)}
